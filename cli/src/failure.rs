//! How a command fails: a message, what to do about it, and an exit code. Printed in one
//! place as `error: …` and `hint: …` lines on stderr.

use std::process::ExitCode;

use berth_client::Error;

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
    /// Machine-readable, e.g. `SESSION_NOT_FOUND`.
    pub reason: Option<&'static str>,
}

/// What commands return: the exit code, or why they failed.
pub type CommandResult = Result<u8, Failure>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hints: Vec::new(), code: code::FAILED, reason: None }
    }

    /// Wrong use of a command: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: code::USAGE, ..Self::new(message) }
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

    /// What is printed before the message.
    #[must_use]
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Prints it, and is its exit code.
    pub fn report(&self) -> ExitCode {
        // A reader that went away needs no words.
        if self.code != code::NO_READER || !self.message.is_empty() {
            output::error(&self.message);
            for hint in &self.hints {
                output::hint(hint);
            }
        }
        ExitCode::from(self.code)
    }
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
        failure.reason = error.reason().map(berth_client::Reason::as_str);
        failure
    }
}
