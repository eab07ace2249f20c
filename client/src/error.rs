//! The one error of this library: a code, a machine-readable reason, a message and a
//! hint for people, which is always there. What a server said goes through as it said it; what
//! the transport says ("h2 protocol error") is turned into words that name the address and what to do.
//!
//! Boxed, because it travels in every `Result` and is rare.

use std::{collections::BTreeMap, fmt, time::Duration};

use berth_proto::{
    error::{DOMAIN, reason_of},
    trace::{self, TraceContext},
};
use tonic::Status;
use tonic_types::StatusExt;

pub use berth_proto::{Code, Reason};

/// What went wrong with a call.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    reason: Option<Reason>,
    message: String,
    hint: Option<String>,
    details: BTreeMap<String, String>,
    origin: Origin,
    /// See [`Error::in_doubt`].
    doubt: bool,
    cause: Option<String>,
    request: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A server answered with it.
    Answered,
    /// No connection came up: nothing was sent.
    NotConnected,
    /// The connection broke: what was sent may have been done.
    Broken,
    /// Found here, before or after the call.
    Local,
}

impl Error {
    fn new(origin: Origin, code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            reason: None,
            message: message.into(),
            hint: None,
            details: BTreeMap::new(),
            origin,
            doubt: false,
            cause: None,
            request: None,
        }))
    }

    /// An error of the caller's own making, found before anything was sent.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Origin::Local, Code::InvalidArgument, message)
    }

    /// Reading or writing on this side failed.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Origin::Local, Code::Unknown, format!("{what}: {error}"))
    }

    /// An answer that this library does not understand.
    pub(crate) fn strange(what: impl fmt::Display) -> Self {
        Self::new(Origin::Local, Code::Internal, format!("the coordinator's answer makes no sense: {what}"))
            .or_hint("are both of the same version? See `berth info`")
    }

    pub(crate) fn deadline(address: &str, after: Duration) -> Self {
        let message =
            format!("the coordinator at {address} did not answer within {:.0} s", after.as_secs_f64());
        Self::new(Origin::Broken, Code::DeadlineExceeded, message)
            .or_hint("see its log, and `berth workers` for the state of the fleet")
    }

    pub(crate) fn output_lost(stream: &str, from: u64, to: u64) -> Self {
        let message = format!("bytes {from} to {to} of {stream} are no longer kept");
        let mut error = Self::new(Origin::Local, Code::OutOfRange, message);
        error.0.reason = Some(Reason::OutputLost);
        error.0.details.insert("first_kept".to_owned(), to.to_string());
        error.or_hint("watch from that offset, or with `skip_lost`")
    }

    /// Nothing answers at this address.
    pub(crate) fn not_connected(address: &str, cause: &(dyn std::error::Error + 'static)) -> Self {
        if let Some(tls) = berth_net::error_in(cause) {
            let message = format!("no connection to the coordinator at {address}: {tls}");
            let error = Self::new(Origin::NotConnected, Code::Unavailable, message);
            return error.or_hint(tls.hint());
        }
        let mut error = Self::new(
            Origin::NotConnected,
            Code::Unavailable,
            format!("no coordinator answers at {address}"),
        )
        .or_hint("start one with `berth up`, or set COORDINATOR_ADDR");
        error.0.cause = Some(innermost(cause));
        error
    }

    pub(crate) fn from_status(status: Status, address: &str) -> Self {
        let reason = reason_of(&status);
        if reason.is_none()
            && let Some(source) = std::error::Error::source(&status)
        {
            if failed_to_connect(source) {
                return Self::not_connected(address, source);
            }
            if let Some(said) = sent_away(source) {
                let message = format!("the coordinator at {address} closed the connection: {said}");
                return Self::new(Origin::NotConnected, Code::Unavailable, message).or_hint(match said {
                    berth_net::WANTS_TLS => {
                        "write https://host:port, and set BERTH_TLS_CA to the cluster's ca.pem (`berth tls`)"
                    }
                    _ => "close some, or try again later",
                });
            }
            let message = format!("the connection to the coordinator at {address} broke");
            let mut error = Self::new(Origin::Broken, Code::Unavailable, message)
                .or_hint("is it still running? See `berth status`, or its log");
            error.0.cause = Some(innermost(source));
            return error;
        }
        let mut details: BTreeMap<String, String> = status
            .get_details_error_info()
            .filter(|info| info.domain == DOMAIN)
            .map(|info| info.metadata.into_iter().collect())
            .unwrap_or_default();
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            text => text.to_owned(),
        };
        let mut error = Self::new(Origin::Answered, status.code(), message);
        error.0.request = status
            .metadata()
            .get(trace::REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| id.len() <= 64)
            .map(ToOwned::to_owned);
        error.0.reason = reason;
        error.0.hint = details.remove("hint");
        error.0.details = details;
        match status.code() {
            // The server's own hint is for those who speak gRPC by hand.
            Code::Unauthenticated => {
                error.0.hint =
                    Some("set BERTH_TOKEN, or use the machine and user that ran `berth up`".to_owned());
                error
            }
            Code::Unimplemented => {
                error.or_hint("is this the address of a Berth coordinator, and of this version?")
            }
            _ => error,
        }
    }

    /// Adds a hint where there is none yet.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// Why, for programs. `None`: not one of Berth's own answers.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason
    }

    /// Why, for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reader may do about it. Always there.
    pub fn hint(&self) -> Option<&str> {
        Some(self.0.hint.as_deref().unwrap_or_else(|| self.usual_hint()))
    }

    /// Where nothing more fitting was said.
    fn usual_hint(&self) -> &'static str {
        match (self.0.reason, self.0.origin, self.0.code) {
            (Some(reason), ..) => reason.hint(),
            (None, Origin::Local, Code::InvalidArgument) => "correct that value, and try again",
            (None, Origin::Local, _) => "look at the path, at who may use it, and at the space on its disk",
            (.., Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::Cancelled) => {
                "try again in a moment; `berth info` shows whether the coordinator answers, its log what became of it"
            }
            (.., Code::InvalidArgument | Code::OutOfRange) => {
                "correct the request; berth/v1/*.proto says what it takes"
            }
            (.., Code::PermissionDenied) => {
                "use the token in <state>/credentials of the coordinator that you call"
            }
            _ => "see the coordinator's log",
        }
    }

    /// A machine-readable detail, e.g. `first_kept` of `OUTPUT_LOST`.
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.0.details.get(key).map(String::as_str)
    }

    /// The id of the request that failed: 32 hex digits, under which the logs of all components tell of it, and a trace is
    /// kept. `None`: nothing was sent.
    pub fn request_id(&self) -> Option<&str> {
        self.0.request.as_deref()
    }

    /// It is of this request, unless an answer has said of which.
    #[must_use]
    pub(crate) fn of_request(mut self, request: TraceContext) -> Self {
        if matches!(self.0.origin, Origin::Answered | Origin::Broken) {
            self.0.request.get_or_insert_with(|| request.request_id());
        }
        self
    }

    /// What the transport said, for a log.
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// No connection came up: the call was certainly not made.
    pub fn is_not_connected(&self) -> bool {
        self.0.origin == Origin::NotConnected
    }

    /// The way to the session is interrupted and may come back: the same call, if it is
    /// safe to repeat, may work in a moment.
    pub fn is_temporary(&self) -> bool {
        self.0.code == Code::Unavailable
    }

    /// Whether the call may have been carried out all the same: it was sent, and its answer was lost.
    pub fn in_doubt(&self) -> bool {
        self.0.doubt || self.0.origin == Origin::Broken
    }

    #[must_use]
    pub(crate) fn doubtful(mut self) -> Self {
        self.0.doubt = true;
        self
    }

    /// The same, where the message does not say so itself.
    #[must_use]
    pub(crate) fn in_doubt_of(mut self, what: &str) -> Self {
        let said = &mut self.0.message;
        *said = format!("{said} (an earlier try was not answered: whether the {what} is not known)");
        self.doubtful()
    }

    /// Whether a call that failed so may have been carried out: it was sent, and who answers did not carry it out itself.
    pub(crate) fn was_lost(&self) -> bool {
        let relayed =
            matches!(self.0.reason, None | Some(Reason::WorkerUnreachable | Reason::AgentUnreachable));
        self.0.origin == Origin::Broken
            || (self.0.origin == Origin::Answered && self.is_temporary() && relayed)
    }

    /// Whether this is the given reason.
    pub fn is(&self, reason: Reason) -> bool {
        self.0.reason == Some(reason)
    }
}

/// hyper names the phase only in its text.
fn failed_to_connect(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).any(|error| {
        let text = error.to_string();
        text.contains("connect error") || text.contains("dns error") || text.contains("deadline has elapsed")
    })
}

/// What a port says that does not let us in: see `berth_net::listen`. h2 shows it in its text only.
fn sent_away(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    chain(error).find_map(|error| {
        let text = error.to_string();
        [berth_net::WANTS_TLS, berth_net::TOO_MANY].into_iter().find(|said| text.contains(said))
    })
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.0.reason.map_or("-", Reason::as_str);
        write!(f, "{:?}/{reason}: {}", self.0.code, self.0.message)?;
        if let Some(cause) = &self.0.cause {
            write!(f, " (cause: {cause})")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, " (hint: {hint})")?;
        }
        if let Some(request) = &self.0.request {
            write!(f, " (request: {request})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<berth_proto::Error> for Error {
    /// A value that the contract refuses, found on this side.
    fn from(error: berth_proto::Error) -> Self {
        Self::from_status(error.into(), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_said_is_kept() {
        let status: Status = berth_proto::Error::new(Code::OutOfRange, Reason::OutputLost, "gone")
            .hint("look later")
            .with("first_kept", 4096)
            .into();
        let error = Error::from_status(status, "a:1");
        assert_eq!(error.code(), Code::OutOfRange);
        assert_eq!(error.reason(), Some(Reason::OutputLost));
        assert_eq!(error.message(), "gone");
        assert_eq!(error.hint(), Some("look later"));
        assert_eq!(error.detail("first_kept"), Some("4096"));
        assert!(!error.is_temporary());
    }

    /// Red without `usual_hint`: an answer of another server, or a file that can't be read, has no hint of its own.
    #[test]
    fn no_error_is_without_a_hint() {
        let io = std::io::Error::other("broken");
        let cause = || Status::from_error(Box::new(std::io::Error::other("reset by peer")));
        let mut errors = vec![
            Error::invalid("x"),
            Error::io("x", &io),
            Error::strange("x"),
            Error::deadline("a:1", Duration::from_secs(1)),
            Error::output_lost("stdout", 1, 2),
            Error::not_connected("a:1", &io),
            Error::from_status(cause(), "a:1"),
        ];
        errors.extend((1..=16).map(|code| Error::from_status(Status::new(code.into(), "x"), "a:1")));
        for reason in Reason::ALL {
            errors.push(Error::from_status(
                berth_proto::Error::new(Code::Internal, *reason, "x").into(),
                "a:1",
            ));
        }
        for error in errors {
            assert!(error.hint().is_some_and(|hint| hint.len() > 10), "{error:?}");
        }
    }

    #[test]
    fn a_lost_answer_leaves_a_doubt_and_a_refusal_none() {
        let answered =
            |reason| Error::from_status(berth_proto::Error::unavailable(reason, "x").into(), "a:1");
        assert!(answered(Reason::WorkerUnreachable).was_lost());
        assert!(!answered(Reason::SessionFenced).was_lost() && !answered(Reason::SessionFenced).in_doubt());
        assert!(Error::from_status(Status::unavailable("x"), "a:1").was_lost());
        assert!(!Error::from_status(Status::not_found("x"), "a:1").was_lost());
        assert!(Error::deadline("a:1", Duration::from_secs(1)).in_doubt());
    }

    #[test]
    fn an_empty_message_gets_words() {
        assert!(!Error::from_status(Status::new(Code::NotFound, ""), "a:1").message().is_empty());
    }

    #[test]
    fn a_missing_token_says_what_to_do() {
        let error = Error::from_status(Status::unauthenticated("no token"), "a:1");
        assert!(error.hint().unwrap().contains("BERTH_TOKEN"));
    }

    #[test]
    fn a_broken_connection_names_the_address() {
        let io = std::io::Error::other("reset by peer");
        let error = Error::from_status(Status::from_error(Box::new(io)), "host:7");
        assert_eq!(error.message(), "the connection to the coordinator at host:7 broke");
        assert!(error.is_temporary() && !error.is_not_connected());
    }
}
