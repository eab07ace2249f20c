//! How a command fails: a message, what to do about it, and an exit code. Printed in one
//! place: as `error: …` and `hint: …` lines on stderr, or with `--format json` as one JSON
//! object on a line there: `{"code","reason","message","hint"}`.

use std::process::ExitCode;

use berth_client::{Code, Error, Reason};
use serde::Serialize;

use crate::output;

/// Exit codes of `berth` itself. A task's own code passes through `run` and `shell`.
pub mod code {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    /// `timeout`'s code for a command whose time was up.
    pub const TIMED_OUT: u8 = 124;
    /// Of `run` and `shell`: Berth failed, not the task. As `docker run` and `timeout` have it.
    pub const BERTH_FAILED: u8 = 125;
    /// 128 + SIGINT.
    pub const CANCELLED: u8 = 130;
    /// 128 + SIGKILL: what the kernel's OOM killer sends.
    pub const OUT_OF_MEMORY: u8 = 137;
    /// 128 + SIGPIPE: nobody reads our output any more.
    pub const NO_READER: u8 = 141;
    /// 128 + SIGXFSZ: the kernel's signal for "you wrote too much".
    pub const OUTPUT_LIMIT: u8 = 153;
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub hints: Vec<String>,
    pub code: u8,
    /// gRPC's code for it.
    pub status: Code,
    /// Machine-readable, e.g. `SESSION_NOT_FOUND`.
    pub reason: Option<&'static str>,
}

/// A failure as `--format json` prints it.
#[derive(Serialize)]
struct Told<'a> {
    /// gRPC's name of the code, e.g. `NOT_FOUND`.
    code: String,
    reason: Option<&'static str>,
    message: &'a str,
    /// One a line.
    hint: Option<String>,
}

/// What commands return: the exit code, or why they failed.
pub type CommandResult = Result<u8, Failure>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        let (hints, status) = (Vec::new(), Code::Unknown);
        Self { message: message.into(), hints, code: code::FAILED, status, reason: None }
    }

    /// Wrong use of a command: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: code::USAGE, status: Code::InvalidArgument, ..Self::new(message) }
    }

    /// Something on this machine could not be read, written, started.
    pub fn io(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::new(format!("{what}: {error}"))
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// What a program is told about it.
    #[must_use]
    pub fn with_reason(mut self, status: Code, reason: Reason) -> Self {
        (self.status, self.reason) = (status, Some(reason.as_str()));
        self
    }

    /// What is printed before the message.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Says what it is about, where the message does not do so itself.
    #[must_use]
    pub fn about(self, name: &str) -> Self {
        if self.message.contains(name) { self } else { self.context(format_args!("{name:?}")) }
    }

    /// Prints it, and is its exit code.
    pub fn report(&self) -> ExitCode {
        // A reader that went away needs no words.
        if self.code == code::NO_READER && self.message.is_empty() {
            return ExitCode::from(self.code);
        }
        if output::json_errors() {
            output::say_json(&self.told());
        } else {
            output::error(&self.message);
            for hint in &self.hints {
                output::hint(hint);
            }
        }
        ExitCode::from(self.code)
    }

    fn told(&self) -> Told<'_> {
        let hint = (!self.hints.is_empty()).then(|| self.hints.join("\n"));
        Told { code: code_name(self.status), reason: self.reason, message: &self.message, hint }
    }
}

/// As gRPC writes it: `NotFound` is `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut failure = Self::new(error.message());
        if let Some(cause) = error.cause() {
            failure.message = format!("{} ({cause})", failure.message);
        }
        failure.hints.extend(error.hint().map(str::to_owned));
        failure.status = error.code();
        failure.reason = error.reason().map(berth_client::Reason::as_str);
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_as_json_has_four_fields() {
        let failure = Failure::usage("wrong").hint("do this").hint("or that");
        let told = serde_json::to_value(failure.told()).unwrap();
        let hint = "do this\nor that";
        let expected =
            serde_json::json!({"code": "INVALID_ARGUMENT", "reason": null, "message": "wrong", "hint": hint});
        assert_eq!(told, expected);
        assert_eq!(Failure::new("no such file").about("a").message, "\"a\": no such file");
        assert_eq!(Failure::new("no file a.txt").about("a.txt").message, "no file a.txt");
        assert_eq!(code_name(Code::Ok), "OK");
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
    }
}
