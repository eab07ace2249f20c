//! How a command fails: a message, what to do about it, and an exit code. Printed in one
//! place: as `error: …` and `hint: …` lines on stderr, or with `--format json` as one JSON
//! object on a line there: `{"code","reason","message","hint","request_id"}`.
//!
//! No failure is without a hint: what [`Failure::new`] makes is only one once [`Unhinted::hint`]
//! has said what to do.

use std::{io, process::ExitCode};

use berth_client::{Code, Error, Reason};
use berth_proto::error::code_name;
use serde::Serialize;

use crate::{logging, output};

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
    /// At least one, unless nobody is there to read it.
    pub hints: Vec<String>,
    /// The only hint is one for whatever fails like this: a better one takes its place.
    general: bool,
    /// What else is wrong, each with hints of its own.
    also: Vec<Failure>,
    pub code: u8,
    /// gRPC's code for it.
    pub status: Code,
    /// Machine-readable, e.g. `SESSION_NOT_FOUND`.
    pub reason: Option<&'static str>,
    /// The request that failed, for whoever looks into logs and traces.
    pub request_id: Option<String>,
}

/// A failure as `--format json` prints it.
#[derive(Serialize)]
struct Told {
    /// gRPC's name of the code, e.g. `NOT_FOUND`.
    code: String,
    reason: Option<&'static str>,
    message: String,
    /// One a line.
    hint: String,
    /// Under which the logs of all components tell of it. Null: nothing was asked.
    request_id: Option<String>,
}

/// A failure of which nobody has said yet what to do about it.
#[must_use = "a failure says what to do about it: `.hint(…)`"]
#[derive(Debug)]
pub struct Unhinted(Failure);

impl Unhinted {
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        self.0.hint(hint)
    }

    /// Several, or if there are none this one.
    pub fn hints(self, hints: impl IntoIterator<Item = String>, otherwise: impl Into<String>) -> Failure {
        let failure = hints.into_iter().fold(self.0, Failure::hint);
        if failure.hints.is_empty() { failure.hint(otherwise) } else { failure }
    }

    pub fn with_code(self, code: u8) -> Self {
        Self(self.0.with_code(code))
    }

    /// What a program is told about it.
    pub fn with_reason(self, status: Code, reason: Reason) -> Self {
        Self(self.0.with_reason(status, reason))
    }
}

/// What commands return: the exit code, or why they failed.
pub type CommandResult = Result<u8, Failure>;

impl Failure {
    #[expect(clippy::new_ret_no_self, reason = "it is none before it has a hint")]
    pub fn new(message: impl Into<String>) -> Unhinted {
        Unhinted(Self::bare(message.into(), code::FAILED, Code::Unknown))
    }

    /// Wrong use of a command: exit code 2.
    pub fn usage(message: impl Into<String>) -> Unhinted {
        Unhinted(Self::bare(message.into(), code::USAGE, Code::InvalidArgument))
    }

    /// Something on this machine could not be read, written, started.
    pub fn io(what: impl std::fmt::Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let failure = Self::new(format!("{what}: {error}")).hint(usual_hint(&error));
        Self { general: true, ..failure }
    }

    /// The user would not wait any longer.
    pub fn interrupted() -> Self {
        let hint =
            "what was begun goes on or was undone: `berth ps` and `berth tasks SESSION` show how it stands";
        let failure = Self::new("interrupted").with_code(code::CANCELLED).hint(hint);
        Self { status: Code::Cancelled, ..failure }
    }

    /// Nobody reads any more: no words are needed.
    pub fn unread() -> Self {
        Self::bare(String::new(), code::NO_READER, Code::Cancelled)
    }

    /// All that is wrong, told as one.
    pub fn all(failures: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let mut first = failures.next()?;
        first.also.extend(failures);
        Some(first)
    }

    fn bare(message: String, code: u8, status: Code) -> Self {
        Self {
            message,
            hints: Vec::new(),
            general: false,
            also: Vec::new(),
            code,
            status,
            reason: None,
            request_id: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if std::mem::take(&mut self.general) {
            self.hints.clear();
        }
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
        if logging::only_json() {
            for failure in std::iter::once(self).chain(&self.also) {
                logging::fail(&failure.message, &failure.hints);
            }
        } else if output::is_json() {
            output::error_json(&self.told());
        } else {
            for failure in std::iter::once(self).chain(&self.also) {
                output::error(&failure.message, &failure.hints);
                if let Some(id) = &failure.request_id {
                    output::request(id);
                }
            }
        }
        ExitCode::from(self.code)
    }

    fn told(&self) -> Told {
        let all = || std::iter::once(self).chain(&self.also);
        let messages: Vec<&str> = all().map(|failure| failure.message.as_str()).collect();
        let hints: Vec<&str> = all().flat_map(|failure| &failure.hints).map(String::as_str).collect();
        Told {
            code: code_name(self.status),
            reason: self.reason,
            message: messages.join("\n"),
            hint: hints.join("\n"),
            request_id: all().find_map(|failure| failure.request_id.clone()),
        }
    }
}

/// What to do about an error of the operating system, where nothing better is known.
fn usual_hint(error: &io::Error) -> &'static str {
    use io::ErrorKind::*;
    match error.kind() {
        NotFound => "look at the path: a part of it is not there",
        NotADirectory | IsADirectory => "look at the path: a part of it is of another kind",
        PermissionDenied => "run as the user that it belongs to, or give another path",
        AlreadyExists => "remove what is there, or give another path",
        StorageFull | FileTooLarge => "make room on that disk, or give a path on another one",
        ReadOnlyFilesystem => "give a path on a disk that can be written to",
        OutOfMemory => "make room in this machine's memory",
        _ => {
            "`berth doctor` looks at what this machine has; the kernel's log (`dmesg`) knows more of a bad disk"
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = match error.cause() {
            Some(cause) => format!("{} ({cause})", error.message()),
            None => error.message().to_owned(),
        };
        let failure = Self::new(message).hint(error.hint().unwrap_or("`berth doctor` looks at this machine"));
        Self {
            status: error.code(),
            reason: error.reason().map(Reason::as_str),
            request_id: error.request_id().map(ToOwned::to_owned),
            ..failure
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_as_json_has_five_fields() {
        let failure = Failure::usage("wrong").hint("do this").hint("or that");
        let told = serde_json::to_value(failure.told()).unwrap();
        let hint = "do this\nor that";
        let expected = serde_json::json!({
            "code": "INVALID_ARGUMENT", "reason": null, "message": "wrong", "hint": hint, "request_id": null
        });
        assert_eq!(told, expected);
        let about = |message: &str, name: &str| Failure::new(message).hint("x").about(name).message;
        assert_eq!(about("no such file", "a"), "\"a\": no such file");
        assert_eq!(about("no file a.txt", "a.txt"), "no file a.txt");
        assert_eq!(code_name(Code::Ok), "OK");
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn all_that_is_wrong_is_one_object() {
        let each = [("one", "do a"), ("two", "do b")].map(|(what, hint)| Failure::new(what).hint(hint));
        let told = serde_json::to_value(Failure::all(each).unwrap().told()).unwrap();
        assert_eq!((told["message"].as_str(), told["hint"].as_str()), (Some("one\ntwo"), Some("do a\ndo b")));
        assert!(Failure::all([]).is_none());
    }

    /// Red without `usual_hint`. (That all others have one, the compiler sees: [`Unhinted`] is no [`Failure`].)
    #[test]
    fn an_error_of_the_system_has_a_hint_until_there_is_a_better_one() {
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::Other] {
            let failure = Failure::io("x", kind);
            assert!(failure.hints.len() == 1 && failure.hints[0].len() > 10, "{failure:?}");
            assert_eq!(failure.hint("better").hint("more").hints, ["better", "more"]);
        }
        assert!(!Failure::from(Error::invalid("x")).hints.is_empty());
        assert!(!Failure::interrupted().hints.is_empty());
    }
}
