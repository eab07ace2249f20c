//! What went wrong, in the three ways that E2B's clients are told it: the control plane's and the files' `{code, message}`
//! with a number, the Connect protocol's with a word, and the last frame of a stream. One table turns Berth's reasons into
//! both, so that a client raises the same class of error that it raises against E2B.
//!
//! A sandbox that is gone, or paused, is 404 or 409 on the control plane. On the data plane it is 502 with these very words,
//! which the clients look for: they then say that the sandbox is not running.

use std::fmt;

use berth_client::{Code, Error, Reason};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::body::{Body, full, json_response};
use crate::http::callers::Refused;

/// Bytes of a message that are sent: some quote what they were given.
const LONGEST: usize = 2000;
/// What the SDKs know a lost sandbox by.
const NOT_FOUND: &str = "The sandbox was not found";

/// Why a call failed.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    /// The Connect protocol's word.
    code: &'static str,
    message: String,
    /// The session is over, or stands still.
    gone: bool,
    /// The same call may work in a moment. Otherwise the SDKs are told not to try it again by themselves.
    again: bool,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), gone: false, again: false }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_argument", message)
    }

    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
    }

    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_denied", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "already_exists", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "resource_exhausted", message)
    }

    /// There are as many as may be.
    pub fn crowded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "resource_exhausted", message)
    }

    /// The other side is too slow with its request.
    pub fn slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "deadline_exceeded", message)
    }

    /// What the caller allowed is over.
    pub fn deadline(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
    }

    /// E2B has it, and Berth does not.
    pub fn unserved(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "unimplemented", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { again: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message) }
    }

    /// A request in a form that is not taken.
    pub fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_argument", message)
    }

    /// A sandbox that there is not.
    pub fn gone(message: impl Into<String>) -> Self {
        Self { gone: true, ..Self::not_found(message) }
    }

    /// Whether the sandbox itself is what is missing.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether it is the Connect protocol's `code`.
    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    fn message(&self) -> &str {
        let end = self.message.floor_char_boundary(LONGEST);
        &self.message[..end]
    }

    /// As the control plane and the files say it.
    pub fn rest(&self) -> Response<Body> {
        let body = json!({"code": self.status.as_u16(), "message": self.message()});
        let mut response = json_response(self.status, &body);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey"));
        }
        headers.insert("should-retry", HeaderValue::from_static(if self.again { "true" } else { "false" }));
        response
    }

    /// As a unary call of the Connect protocol says it.
    pub fn unary(&self) -> Response<Body> {
        json_response(self.status, &self.connect())
    }

    /// In the last frame of a stream.
    pub fn connect(&self) -> Value {
        json!({"code": self.code, "message": self.message()})
    }

    /// On the data plane, where the sandbox is gone.
    pub fn bad_gateway(sandbox: &str) -> Response<Body> {
        let body = json!({"sandboxId": sandbox, "message": NOT_FOUND, "code": 502});
        json_response(StatusCode::BAD_GATEWAY, &body)
    }

    /// In plain words, for a method that is not served at this place.
    pub fn wrong_method(allowed: &'static str) -> Response<Body> {
        let mut response =
            full(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "wrong method\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        response
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Token(why) => Self::unauthenticated(why),
            Refused::Crowded(why) => {
                Self { again: true, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "resource_exhausted", why) }
            }
            Refused::Unavailable(why) => Self::unavailable(why),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = error.reason().and_then(of_reason).unwrap_or_else(|| of_code(error.code()));
        let hint = error.hint().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
        let is = |reasons: &[Reason]| reasons.iter().any(|reason| error.is(*reason));
        use Reason::*;
        Self {
            status,
            code,
            message: format!("{}{hint}", error.message()),
            gone: is(&[SessionNotFound, SessionEnded, SessionPaused, SessionParked]),
            // It has waited for a place already, as long as the caller wanted.
            again: matches!(error.code(), Code::Unavailable | Code::Aborted) && !is(&[NoPlace, QueueFull]),
        }
    }
}

/// What a reason is to E2B's clients, where its code alone does not say enough.
fn of_reason(reason: Reason) -> Option<(StatusCode, &'static str)> {
    use Reason::*;
    Some(match reason {
        SessionNotFound | SessionEnded | TaskNotFound | TaskDone | FileNotFound | TemplateNotFound
        | CheckpointNotFound => (StatusCode::NOT_FOUND, "not_found"),
        SessionPaused | SessionParked => (StatusCode::CONFLICT, "failed_precondition"),
        FileExists | RequestIdReused | DirectoryNotEmpty => (StatusCode::CONFLICT, "already_exists"),
        FileKind | CwdNotFound | NoStdin | NoPty | EgressUnavailable | TemplateUnavailable | LimitTooHigh => {
            (StatusCode::BAD_REQUEST, "invalid_argument")
        }
        // What the SDKs raise as "not enough space".
        DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "resource_exhausted"),
        QuotaExceeded | TooManyTasks | TooManyCalls | TooManyWatches | StdinFull => {
            (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted")
        }
        NoPlace | QueueFull => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        TokenMissing | TokenInvalid | TokenRevoked | TokenExpired | TokenScope => {
            (StatusCode::UNAUTHORIZED, "unauthenticated")
        }
        _ => return None,
    })
}

fn of_code(code: Code) -> (StatusCode, &'static str) {
    match code {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, "invalid_argument"),
        Code::OutOfRange => (StatusCode::BAD_REQUEST, "out_of_range"),
        Code::FailedPrecondition => (StatusCode::BAD_REQUEST, "failed_precondition"),
        Code::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        Code::AlreadyExists => (StatusCode::CONFLICT, "already_exists"),
        Code::Aborted => (StatusCode::SERVICE_UNAVAILABLE, "aborted"),
        Code::PermissionDenied => (StatusCode::FORBIDDEN, "permission_denied"),
        Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated"),
        Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted"),
        Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "unimplemented"),
        Code::Unavailable | Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
        Code::DataLoss => (StatusCode::INTERNAL_SERVER_ERROR, "data_loss"),
        Code::Ok | Code::Unknown | Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reason: Reason, code: Code) -> Problem {
        Error::from(berth_proto::Error::new(code, reason, "x")).into()
    }

    /// Red when a reason gets another class of error than the SDKs know it by.
    #[test]
    fn reasons_are_what_the_sdks_know() {
        let told = |reason, code| {
            let problem = of(reason, code);
            (problem.status.as_u16(), problem.code, problem.gone)
        };
        assert_eq!(told(Reason::SessionNotFound, Code::NotFound), (404, "not_found", true));
        assert_eq!(told(Reason::SessionEnded, Code::FailedPrecondition), (404, "not_found", true));
        assert_eq!(told(Reason::SessionPaused, Code::FailedPrecondition), (409, "failed_precondition", true));
        assert_eq!(told(Reason::FileNotFound, Code::NotFound), (404, "not_found", false));
        assert_eq!(told(Reason::DiskFull, Code::ResourceExhausted), (507, "resource_exhausted", false));
        assert_eq!(told(Reason::TokenRevoked, Code::Unauthenticated), (401, "unauthenticated", false));
        assert_eq!(told(Reason::FileDenied, Code::PermissionDenied), (403, "permission_denied", false));
    }

    /// The SDKs take every `unavailable` that says "was not found" for a sandbox that is gone.
    #[test]
    fn no_other_problem_sounds_like_a_lost_sandbox() {
        for reason in Reason::ALL {
            let problem = of(*reason, Code::Unavailable);
            assert!(!problem.message.contains("was not found"), "{reason:?}: {}", problem.message);
        }
    }

    #[test]
    fn a_message_is_bounded() {
        let problem = Problem::invalid("ä".repeat(1 << 20));
        assert!(problem.connect().to_string().len() < 5000);
    }
}
