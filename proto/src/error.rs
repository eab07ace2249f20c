//! The one error that crosses a wire: a gRPC code, a machine-readable reason, a
//! message and a hint for people. The cause is for the log and stays here.
//!
//! The reason travels in `google.rpc.ErrorInfo` (domain `berth`), the hint in its
//! metadata, so that any gRPC client can read both. Each reason has a hint of its own, which
//! goes out when nothing better was said: no error is without one.

use std::{collections::HashMap, fmt};

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of our `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "berth";

pub use tonic::Code;

macro_rules! reasons {
    ($($variant:ident = $text:literal: $doc:literal, $hint:literal;)*) => {
        /// Why a call failed: a closed set, for programs.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Reason { $(#[doc = $doc] $variant,)* }

        impl Reason {
            /// As it is on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What the reader may do about it, where nothing more fitting is known.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }

            /// Every reason, for documentation and tests.
            pub const ALL: &'static [Reason] = &[$(Self::$variant,)*];
        }
    };
}

reasons! {
    InvalidField = "INVALID_FIELD": "A field of the request is missing or wrong.",
        "correct that field and send the request again; berth/v1/*.proto says what each one takes";
    SessionNotFound = "SESSION_NOT_FOUND": "No such session, or not one of the caller's.",
        "`berth ps` lists sessions; ended ones are forgotten after a day";
    SessionNotReady = "SESSION_NOT_READY": "The session waits for a place, or its sandbox still starts.",
        "wait until it is READY: `berth ps` shows how it stands";
    SessionPaused = "SESSION_PAUSED": "The session must be resumed first.",
        "resume it first: `berth resume`";
    SessionParked = "SESSION_PARKED": "The session gave its place up. Its files are kept; what ran in it is gone.",
        "resume it first: `berth resume`";
    SessionEnded = "SESSION_ENDED": "The session is over.",
        "create a new session";
    SessionMoves = "SESSION_MOVES": "The session is about to go on elsewhere, or to be parked, with all that was acknowledged.",
        "try again in a few seconds: `berth ps` shows how it stands";
    SessionBusy = "SESSION_BUSY": "Something is under way in the session.",
        "try again when it has ended";
    SessionRecovered = "SESSION_RECOVERED": "The session was placed anew since the call was first made, and does not know what that had started.",
        "look at what it did, and start it again as a new request if that does no harm";
    TaskNotFound = "TASK_NOT_FOUND": "No such task in this session.",
        "`berth tasks SESSION` lists the tasks of a session";
    TaskDone = "TASK_DONE": "The task is done: it takes no input and no signal.",
        "start a new task";
    ContextNotFound = "CONTEXT_NOT_FOUND": "No such context in this session.",
        "make one (CreateContext): a context ends with its session's sandbox, and is in no checkpoint";
    ContextDead = "CONTEXT_DEAD": "The context's interpreter has ended.",
        "restart the context (RestartContext): what it had defined is gone";
    ContextBusy = "CONTEXT_BUSY": "As many executions wait for the context as may.",
        "wait for one to end, interrupt what runs (InterruptContext), or use another context";
    TooManyContexts = "TOO_MANY_CONTEXTS": "The session has as many contexts as it may.",
        "delete one that nobody needs (DeleteContext)";
    ExecutionNotFound = "EXECUTION_NOT_FOUND": "The context has no such execution, or keeps its output no more.",
        "the newest execution is kept, and those that wait; let the code write to a file what must stay";
    InterpreterMissing = "INTERPRETER_MISSING": "The session's root has no such interpreter, or not that kernel.",
        "use a template whose root has it: `make sandbox-image FORM=full` makes one with a Jupyter kernel";
    InterpreterFailed = "INTERPRETER_FAILED": "The interpreter did not come up.",
        "see the message; a session with more memory may help";
    TemplateNotFound = "TEMPLATE_NOT_FOUND": "No such template.",
        "`berth templates` lists them";
    TemplateUnavailable = "TEMPLATE_UNAVAILABLE": "No worker can serve this template.",
        "`berth templates` says what keeps each worker from it";
    EgressUnavailable = "EGRESS_UNAVAILABLE": "The worker's operator does not give sessions this egress.",
        "name what it shall reach instead (`--allow HOST`)";
    WorkerNotFound = "WORKER_NOT_FOUND": "No such worker.",
        "`berth workers` lists them";
    FileNotFound = "FILE_NOT_FOUND": "No such file or directory.",
        "list the directory above it; paths are relative to the workspace";
    FileExists = "FILE_EXISTS": "Something is at that path already.",
        "remove what is there, or choose another path";
    FileDenied = "FILE_DENIED": "The kernel refused it to the task's user.",
        "tasks and files are those of an ordinary user: use a path below /workspace or /home/user";
    FileKind = "FILE_KIND": "Not the kind of file that this call is for.",
        "look at what is there first: `stat` tells its kind";
    DirectoryNotEmpty = "DIRECTORY_NOT_EMPTY": "The directory has entries, and the call was not recursive.",
        "remove its entries first, or ask for it recursively";
    UploadBroken = "UPLOAD_BROKEN": "The upload ended before it was complete. Of a file nothing was written, of an archive what came before.",
        "send it again; the last message of an upload is `end`";
    DiskFull = "DISK_FULL": "No space, or a quota is reached.",
        "remove files, or create a session with more disk";
    CwdNotFound = "CWD_NOT_FOUND": "The task's working directory can't be entered.",
        "make the directory first, or leave the working directory out";
    NameTaken = "NAME_TAKEN": "A live session has this name.",
        "choose another name, or use or end the session that has it";
    CheckpointNotFound = "CHECKPOINT_NOT_FOUND": "No such checkpoint, or not one of the caller's.",
        "`berth checkpoint list` shows them";
    ArtifactNotFound = "ARTIFACT_NOT_FOUND": "No such artifact, or not one of the caller's.",
        "`berth artifact list` shows them; one is removed when its time is over";
    CheckpointInUse = "CHECKPOINT_IN_USE": "A parked session has its files in this checkpoint alone.",
        "resume the session first (`berth resume`), or end it (`berth rm`)";
    CheckpointFailed = "CHECKPOINT_FAILED": "A checkpoint could not be taken or restored. The session is as it was.",
        "try again; the message says what was in the way";
    SessionFenced = "SESSION_FENCED": "The session's worker has lost the coordinator: it stands still until it is known who runs it.",
        "try again: it goes on where it is, or elsewhere from its newest checkpoint";
    RequestIdReused = "REQUEST_ID_REUSED": "The request id was used with another body.",
        "draw a new request id for each new request";
    NoPlace = "NO_PLACE": "No worker has room for the session.",
        "add a worker, end sessions, ask for less, or wait longer (wait_for_place)";
    QueueFull = "QUEUE_FULL": "Too many sessions wait already.",
        "add a worker, or try again later";
    LimitTooHigh = "LIMIT_TOO_HIGH": "No worker is big enough for this limit.",
        "ask for less, or add a bigger worker";
    TooManyTasks = "TOO_MANY_TASKS": "The session runs as many tasks as it may.",
        "wait for one to end, or raise task_defaults.max_concurrent for new sessions";
    TooManyCalls = "TOO_MANY_CALLS": "The session has as many calls open as it may.",
        "close streams that are not read any more, and try again";
    PortClosed = "PORT_CLOSED": "Nothing listens on that port in the session.",
        "start a server in the session that listens on 127.0.0.1 or 0.0.0.0, and look at its output";
    PortRefused = "PORT_REFUSED": "That port is not for clients: it is the session's way out.",
        "what the session shall reach is named with `--allow HOST`; a program in it uses HTTPS_PROXY";
    ConnectionBroken = "CONNECTION_BROKEN": "The connection to the session's port broke before both sides had ended it.",
        "connect again; the output of the server in the session may say why it went away";
    TooManyConnections = "TOO_MANY_CONNECTIONS": "The session has as many connections to its ports open as it may.",
        "close those that nobody uses any more, and try again";
    TooManyWatches = "TOO_MANY_WATCHES": "Changes of files can't be watched: there are too many watches, or directories.",
        "end watches that nobody reads, watch without `recursive`, or a part of the tree";
    OutputLost = "OUTPUT_LOST": "Output below the first kept byte is gone.",
        "read on from the first kept byte; a larger spool_bytes keeps more";
    OffsetBeyondEnd = "OFFSET_BEYOND_END": "The offset is past the end.",
        "read from an offset that was told by the stream";
    NoStdin = "NO_STDIN": "The task has no open standard input.",
        "start the task with `stdin` set";
    StdinFull = "STDIN_FULL": "The task does not read its standard input.",
        "try again when the task has read what it was sent";
    NoPty = "NO_PTY": "The task has no terminal.",
        "start the task with `pty` set";
    StartTimeout = "START_TIMEOUT": "The sandbox was not ready in time.",
        "see the worker's log, and `berth workers`";
    SandboxFailed = "SANDBOX_FAILED": "The sandbox failed.",
        "see the worker's log, and `berth workers`";
    BackendUnavailable = "BACKEND_UNAVAILABLE": "The sandbox backend is not usable on this worker.",
        "`berth doctor` on the worker's machine says what is missing; `berth workers` what each worker offers";
    WorkerUnreachable = "WORKER_UNREACHABLE": "The session's worker has no link now.",
        "try again in a few seconds, and see `berth workers`";
    AgentUnreachable = "AGENT_UNREACHABLE": "The session's agent does not answer.",
        "try again; if it stays so, create a new session";
    WorkerLost = "WORKER_LOST": "The session's worker is gone.",
        "create a new session; `berth workers` shows what became of the worker";
    StaleEpoch = "STALE_EPOCH": "A newer placement of the session exists.",
        "look the session up again: it has been placed anew";
    StaleIncarnation = "STALE_INCARNATION": "A newer process has registered under this worker id.",
        "two workers must not share a WORKER_ID";
    TokenNotFound = "TOKEN_NOT_FOUND": "No such token.",
        "`berth token list --all` lists them";
    TokenRevoked = "TOKEN_REVOKED": "The token was revoked.",
        "ask the operator for a new token (`berth token create`)";
    TokenExpired = "TOKEN_EXPIRED": "The token's time is over.",
        "ask the operator for a new token (`berth token create`)";
    TokenUsedUp = "TOKEN_USED_UP": "As many workers as the token is for have registered with it.",
        "make another: `berth token create --scope worker --uses 1`";
    WorkerIdBound = "WORKER_ID_BOUND": "The worker id belongs to another credential.",
        "give the worker another WORKER_ID, or revoke the credential that has this one (`berth token list`)";
    TooManyTokens = "TOO_MANY_TOKENS": "There are as many tokens or tenants as the coordinator keeps.",
        "revoke tokens that nobody needs";
    TenantNotFound = "TENANT_NOT_FOUND": "No such tenant.",
        "`berth tenant list` lists them";
    QuotaExceeded = "QUOTA_EXCEEDED": "The tenant has as much as its quota allows.",
        "end sessions, or ask the operator for more (`berth tenant set`)";
    SecretUnusable = "SECRET_UNUSABLE": "A secret that the task was to be given is missing, expired or unreadable. Nothing was started.",
        "an operator sets it: `berth secret set NAME`; `berth secret list` shows what there is";
    SecretNotFound = "SECRET_NOT_FOUND": "The tenant has no secret of this name.",
        "`berth secret list` shows them";
    TooManySecrets = "TOO_MANY_SECRETS": "The tenant has as many secrets as the coordinator keeps.",
        "remove those that nobody needs: `berth secret rm`";
    TokenMissing = "TOKEN_MISSING": "The call carries no token.",
        "send `authorization: Bearer <token>`; tokens are in <state>/credentials";
    TokenInvalid = "TOKEN_INVALID": "The token is not known, or is over.",
        "use the token in <state>/credentials of the coordinator that you call";
    TokenScope = "TOKEN_SCOPE": "The token is good, but not for this call.",
        "clients use admin.token, workers join.token, both in <state>/credentials";
    WorkerCertificate = "WORKER_CERTIFICATE": "The connection's certificate is not that of the worker it speaks for.",
        "`berth tls worker ID` on the CA's machine makes a worker's certificate; BERTH_TLS_DIR names its directory";
    EventsLost = "EVENTS_LOST": "The event token is too old, or of an earlier coordinator.",
        "list sessions and workers, then watch anew without a token";
    StoreFailed = "STORE_FAILED": "The coordinator's store refused a write.",
        "look at the disk under the coordinator's state directory, and try again";
    RequestIncomplete = "REQUEST_INCOMPLETE": "The rest of the request did not come in time.",
        "send all of it at once; what comes slowly is sent in pieces, by a call that takes a stream";
    NotRead = "NOT_READ": "The stream waited for its reader for too long, and was given up.",
        "open it again, from the offset that was read last; end streams that nobody reads";
    Overloaded = "OVERLOADED": "Too many calls wait for an answer.",
        "try again in a moment; fewer at once get through sooner";
    ShuttingDown = "SHUTTING_DOWN": "The component is stopping.",
        "try again in a few seconds";
    Unsupported = "UNSUPPORTED": "Known, but not to be had here.",
        "see docs/ for what there is";
    Internal = "INTERNAL": "A defect of Berth.",
        "this is a defect of Berth: please report it with the log of the component that failed";
}

/// Bytes of a message, a hint and another detail that go out; what is behind that is cut, since a request's own words are
/// in many messages. All of it is in the headers of an answer, the message percent-encoded and once more with the details
/// in base 64, and most clients take 16 KiB of them. (A detail may be the ids of 100 forks.)
pub const MESSAGE_MAX: usize = 1536;
pub const HINT_MAX: usize = 1 << 10;
pub const DETAIL_MAX: usize = 4 << 10;

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

    /// What the reader may do about it: what was said where it went wrong, else what its
    /// reason says. There always is one.
    pub fn hint_text(&self) -> Option<&str> {
        Some(self.hint.as_deref().unwrap_or(self.reason.hint()))
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
            tracing::warn!(reason = error.reason.as_str(), why = %error.message, %cause, "a call failed");
        }
        let mut metadata: HashMap<String, String> =
            error.metadata.into_iter().map(|(k, v)| (k.to_owned(), cut(v, DETAIL_MAX))).collect();
        let hint = error.hint.filter(|hint| !hint.is_empty());
        let hint = hint.unwrap_or_else(|| error.reason.hint().to_owned());
        metadata.insert("hint".to_owned(), cut(hint, HINT_MAX));
        let details = ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, metadata);
        Status::with_error_details(error.code, cut(error.message, MESSAGE_MAX), details)
    }
}

/// A text of at most so many bytes, cut between characters.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// A code as gRPC writes it: `NotFound` is `NOT_FOUND`.
pub fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Our reason in a status that came over the wire, if it has one.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    Reason::ALL.iter().copied().find(|r| r.as_str() == info.reason)
}

/// The error that a status of the wire says, with its reason and its hint; `otherwise` for one that is not ours. A broken
/// connection, of which tonic says "transport error" and no more, gets words and a code that say so.
pub fn from_status(status: &Status, otherwise: Reason) -> Error {
    let broken = reason_of(status).is_none() && matches!(status.code(), Code::Unknown | Code::Cancelled);
    if broken || (reason_of(status).is_none() && std::error::Error::source(status).is_some()) {
        return Error::unavailable(otherwise, "the connection broke on the way")
            .hint("try again in a few seconds")
            .cause(status.message().to_owned());
    }
    let error = Error::new(status.code(), reason_of(status).unwrap_or(otherwise), status.message());
    match detail_of(status, "hint") {
        Some(hint) => error.hint(hint),
        None => error,
    }
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
    fn every_reason_has_a_hint_on_the_wire() {
        for reason in Reason::ALL {
            for error in
                [Error::new(Code::Internal, *reason, "x"), Error::new(Code::Internal, *reason, "x").hint("")]
            {
                let status: Status = error.into();
                assert_eq!(reason_of(&status), Some(*reason));
                let hint = detail_of(&status, "hint").unwrap_or_default();
                assert!(hint.len() > 10, "{reason:?} has no hint: {hint:?}");
            }
        }
    }

    /// Red without the cut: the client is told of a protocol error instead, since no header holds so much.
    #[test]
    fn what_goes_out_fits_into_headers() {
        let long = "ä".repeat(1 << 20);
        let error = Error::invalid("egress.preset", &long).hint(&*long).with("detail", &long);
        let status: Status = error.into();
        assert!(status.message().starts_with("egress.preset: ää") && status.message().ends_with('…'));
        assert!(status.message().len() <= MESSAGE_MAX && status.details().len() < 7 << 10);
        assert!(detail_of(&status, "hint").is_some_and(|hint| hint.len() <= HINT_MAX && hint.ends_with('…')));
        assert_eq!(cut("grüße".to_owned(), 7), "grüße");
        // What a fork that came to nothing half-way tells is told in full.
        let ids = vec!["0123456789abcdef0123456789abcdef"; 100].join(",");
        let status: Status = Error::internal("x").with("sessions", &ids).into();
        assert_eq!(detail_of(&status, "sessions"), Some(ids));
    }

    #[test]
    fn no_two_reasons_look_alike_on_the_wire() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason_of(&Status::internal("x")), None);
    }
}
