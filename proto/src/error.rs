//! The one error that crosses a wire: a gRPC code, a machine-readable reason, a
//! message and a hint for people. The cause is for the log and stays here.
//!
//! The reason travels in `google.rpc.ErrorInfo` (domain `berth`), the hint in its
//! metadata, so that any gRPC client can read both.

use std::{collections::HashMap, fmt};

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of our `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "berth";

pub use tonic::Code;

macro_rules! reasons {
    ($($variant:ident = $text:literal: $doc:literal,)*) => {
        /// Why a call failed: a closed set, for programs.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason { $(#[doc = $doc] $variant,)* }

        impl Reason {
            /// As it is on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Every reason, for documentation and tests.
            pub const ALL: &'static [Reason] = &[$(Self::$variant,)*];
        }
    };
}

reasons! {
    InvalidField = "INVALID_FIELD": "A field of the request is missing or wrong.",
    SessionNotFound = "SESSION_NOT_FOUND": "No such session, or not one of the caller's.",
    SessionNotReady = "SESSION_NOT_READY": "The session waits for a place, or its sandbox still starts.",
    SessionPaused = "SESSION_PAUSED": "The session must be resumed first.",
    SessionEnded = "SESSION_ENDED": "The session is over.",
    TaskNotFound = "TASK_NOT_FOUND": "No such task in this session.",
    TaskDone = "TASK_DONE": "The task is done: it takes no input and no signal.",
    TemplateNotFound = "TEMPLATE_NOT_FOUND": "No such template.",
    WorkerNotFound = "WORKER_NOT_FOUND": "No such worker.",
    FileNotFound = "FILE_NOT_FOUND": "No such file or directory.",
    FileExists = "FILE_EXISTS": "Something is at that path already.",
    FileDenied = "FILE_DENIED": "The kernel refused it to the task's user.",
    FileKind = "FILE_KIND": "Not the kind of file that this call is for.",
    DirectoryNotEmpty = "DIRECTORY_NOT_EMPTY": "The directory has entries, and the call was not recursive.",
    UploadBroken = "UPLOAD_BROKEN": "The upload ended before it was complete. Nothing was written.",
    DiskFull = "DISK_FULL": "No space, or a quota is reached.",
    CwdNotFound = "CWD_NOT_FOUND": "The task's working directory can't be entered.",
    RequestIdReused = "REQUEST_ID_REUSED": "The request id was used with another body.",
    NoPlace = "NO_PLACE": "No worker has room for the session.",
    QueueFull = "QUEUE_FULL": "Too many sessions wait already.",
    LimitTooHigh = "LIMIT_TOO_HIGH": "No worker is big enough for this limit.",
    TooManyTasks = "TOO_MANY_TASKS": "The session runs as many tasks as it may.",
    TooManyCalls = "TOO_MANY_CALLS": "The session has as many calls open as it may.",
    OutputLost = "OUTPUT_LOST": "Output below the first kept byte is gone.",
    OffsetBeyondEnd = "OFFSET_BEYOND_END": "The offset is past the end.",
    NoStdin = "NO_STDIN": "The task has no open standard input.",
    StdinFull = "STDIN_FULL": "The task does not read its standard input.",
    NoPty = "NO_PTY": "The task has no terminal.",
    StartTimeout = "START_TIMEOUT": "The sandbox was not ready in time.",
    SandboxFailed = "SANDBOX_FAILED": "The sandbox failed.",
    BackendUnavailable = "BACKEND_UNAVAILABLE": "The sandbox backend is not usable on this worker.",
    WorkerUnreachable = "WORKER_UNREACHABLE": "The session's worker has no link now.",
    AgentUnreachable = "AGENT_UNREACHABLE": "The session's agent does not answer.",
    WorkerLost = "WORKER_LOST": "The session's worker is gone.",
    StaleEpoch = "STALE_EPOCH": "A newer placement of the session exists.",
    StaleIncarnation = "STALE_INCARNATION": "A newer process has registered under this worker id.",
    TokenMissing = "TOKEN_MISSING": "The call carries no token.",
    TokenInvalid = "TOKEN_INVALID": "The token is not known, or is over.",
    TokenScope = "TOKEN_SCOPE": "The token is good, but not for this call.",
    EventsLost = "EVENTS_LOST": "The event token is too old, or of an earlier coordinator.",
    StoreFailed = "STORE_FAILED": "The coordinator's store refused a write.",
    ShuttingDown = "SHUTTING_DOWN": "The component is stopping.",
    Unsupported = "UNSUPPORTED": "Known, but not to be had here.",
    Internal = "INTERNAL": "A defect of Berth.",
}

/// What went wrong, for the caller (`message`, `hint`) and for the log (`cause`).
pub struct Error {
    code: Code,
    reason: Reason,
    message: String,
    hint: Option<String>,
    metadata: Vec<(&'static str, String)>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Any error. Prefer the named constructors.
    pub fn new(code: Code, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), hint: None, metadata: Vec::new(), cause: None }
    }

    /// A field of the request is missing or wrong.
    pub fn invalid(field: &str, problem: impl fmt::Display) -> Self {
        let mut error = Self::new(Code::InvalidArgument, Reason::InvalidField, format!("{field}: {problem}"));
        error.metadata.push(("field", field.to_owned()));
        error
    }

    pub fn not_found(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, message)
    }

    pub fn precondition(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, message)
    }

    pub fn exhausted(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, reason, message)
    }

    pub fn unavailable(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, reason, message)
    }

    /// A defect of ours. The message is for the caller: no inner details.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, Reason::Internal, message)
    }

    /// What the reader may do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A machine-readable detail, e.g. `("first_kept", "4096")`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// For the log only.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub fn code(&self) -> Code {
        self.code
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the reader may do about it, if that is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}: {}", self.code, self.reason.as_str(), self.message)?;
        if let Some(cause) = &self.cause {
            write!(f, " (cause: {cause})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|c| c as _)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        if let Some(cause) = &error.cause {
            tracing::warn!(reason = error.reason.as_str(), message = %error.message, %cause, "a call failed");
        }
        let mut metadata: HashMap<String, String> =
            error.metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        if let Some(hint) = error.hint {
            metadata.insert("hint".to_owned(), hint);
        }
        let details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
        Status::with_error_details(error.code, error.message, details)
    }
}

/// Our reason in a status that came over the wire, if it has one.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    Reason::ALL.iter().copied().find(|r| r.as_str() == info.reason)
}

/// A detail of a status that came over the wire, e.g. `hint`.
pub fn detail_of(status: &Status, key: &str) -> Option<String> {
    let mut info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    info.metadata.remove(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_and_hint_survive_the_wire() {
        let status: Status = Error::invalid("argv", "is empty").hint("name a program").into();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason_of(&status), Some(Reason::InvalidField));
        assert_eq!(detail_of(&status, "hint").as_deref(), Some("name a program"));
        assert_eq!(detail_of(&status, "field").as_deref(), Some("argv"));
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason_of(&Status::internal("x")), None);
    }
}
