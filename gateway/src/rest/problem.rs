//! What went wrong, as JSON: a code and a reason for programs, a message and a hint for people.

use std::fmt::Write;

use berth_client::{Code, Error, Reason, TraceContext};
use berth_proto::trace;
use http::{HeaderValue, Method, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::json;
use crate::http::{Body, callers::Refused};

/// Bytes of a message that are sent: some quote what they were given.
const LONGEST: usize = 2000;

/// An error, as it is answered.
#[derive(Serialize, JsonSchema, Debug)]
pub struct ErrorBody {
    pub error: Problem,
}

/// Why a request failed, and what to do about it.
#[derive(Serialize, JsonSchema, Debug)]
pub struct Problem {
    #[serde(skip)]
    status: StatusCode,
    /// In a word: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, ... as gRPC has them.
    code: &'static str,
    /// Why, for programs, where there is more to say than the code does: SESSION_NOT_FOUND, NO_PLACE, DISK_FULL, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
    /// What to do about it.
    hint: String,
    /// Under which the logs of all components tell of it; also in the header `x-request-id`.
    request_id: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        if message.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(end);
            let _ = write!(message, "…");
        }
        let request_id = trace::current().map(TraceContext::request_id).unwrap_or_default();
        Self { status, code, reason: None, message, hint: "see /v1/openapi.json".to_owned(), request_id }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RESOURCE_EXHAUSTED", message)
    }

    pub fn crowded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", message)
    }

    #[must_use]
    pub fn reason(self, reason: Reason) -> Self {
        Self { reason: Some(reason.as_str()), ..self }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub fn into_body(self) -> ErrorBody {
        ErrorBody { error: self }
    }

    pub fn into_response(self) -> Response<Body> {
        let (status, again) = (self.status, self.status == StatusCode::SERVICE_UNAVAILABLE);
        let mut response = json(status, self.into_body());
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if again || status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = status_of(error.code(), error.reason());
        let reason = error.reason().map(Reason::as_str);
        let problem = Self { reason, ..Self::new(status, code, error.message()) };
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Token(why) => Self::unauthorized(why).hint("`berth token create` makes one"),
            Refused::Crowded(why) => Self::crowded(why).hint("try again when some have ended"),
            Refused::Unavailable(why) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", why).hint("try again in a moment")
            }
        }
    }
}

/// HTTP's word and gRPC's for the same.
fn status_of(code: Code, reason: Option<Reason>) -> (StatusCode, &'static str) {
    if reason == Some(Reason::DiskFull) {
        return (StatusCode::INSUFFICIENT_STORAGE, "RESOURCE_EXHAUSTED");
    }
    match code {
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        Code::OutOfRange => (StatusCode::BAD_REQUEST, "OUT_OF_RANGE"),
        Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "UNAUTHENTICATED"),
        Code::PermissionDenied => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
        Code::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        Code::AlreadyExists => (StatusCode::CONFLICT, "ALREADY_EXISTS"),
        Code::FailedPrecondition => (StatusCode::CONFLICT, "FAILED_PRECONDITION"),
        Code::Aborted => (StatusCode::CONFLICT, "ABORTED"),
        Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
        Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "UNIMPLEMENTED"),
        Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
        Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "CANCELLED"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    }
}

pub fn method_not_allowed(allowed: &[Method]) -> Response<Body> {
    let names = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let problem =
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "UNIMPLEMENTED", "there is no such method here")
            .hint(format!("use {names}"));
    let mut response = problem.into_response();
    if let Ok(names) = HeaderValue::try_from(names) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}
