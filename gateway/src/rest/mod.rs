//! Plain HTTP, for those who have nothing else: JSON under `/v1`, with a token as everywhere.
//!
//! - [`routes`]: what there is, in one table: it decides what is called, and the OpenAPI document is made of it.
//! - [`run`]: a program to its end, in one request; its output whole or as a stream of [`events`].
//! - [`views`]: sessions, tasks and the cluster, as they are told here; [`workers`]. [`usage`]: what a session takes.
//! - [`follow`]: what happens, and what tasks write, as it comes.
//! - [`artifacts`]: what sessions left behind.
//! - [`problem`]: what went wrong, as JSON with a hint.
//!
//! It is for a script with `curl`, and for what watches over a cluster. Who wants more of sessions (files, terminals,
//! checkpoints) has gRPC, MCP and E2B's interface.

mod artifacts;
mod events;
mod follow;
mod openapi;
mod problem;
mod query;
mod routes;
mod run;
mod usage;
mod views;
mod workers;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::OwnedSemaphorePermit;

use self::{
    problem::Problem,
    routes::{Found, Handler},
};
use crate::http::{
    Body, Patience, Received, bearer,
    callers::{Caller, Callers},
    query::pairs,
    text,
};

/// Where it is served.
pub const PATH: &str = "/v1/";
/// Bytes of a request: a command line of 1 MiB, its environment, and what it reads.
const LONGEST_REQUEST: usize = 4 << 20;
/// One that is longer needs room.
const SMALL: u64 = 64 << 10;
/// For it to come in.
const PATIENCE: Patience =
    Patience { each: std::time::Duration::from_secs(30), whole: Some(std::time::Duration::from_secs(60)) };

/// One request whose caller is known.
struct Call {
    caller: Caller,
    /// What stands for `{…}` in its path, in order.
    parts: Vec<String>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// What the request's body says.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Problem::invalid(format!("the body is no good: {error}")).hint(
                "send JSON as /v1/openapi.json says; unknown fields are refused, so that a mistake is told",
            )
        })
    }
}

/// Answers a request.
pub async fn handle(callers: &Callers, request: Request<Received>) -> Response<Body> {
    let (head, body) = request.into_parts();
    match answer(callers, head.method, head.uri, head.headers, body).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn answer(
    callers: &Callers,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Received,
) -> Result<Response<Body>, Problem> {
    let (handler, parts) = match routes::find(&method, uri.path()) {
        Found::Route(handler, parts) => (handler, parts),
        Found::Methods(allowed) => return Ok(problem::method_not_allowed(&allowed)),
        Found::Nothing => {
            return Err(Problem::not_found(format!("there is nothing at {}", uri.path()))
                .hint("/v1/openapi.json says what there is"));
        }
    };
    if matches!(handler, Handler::Document) {
        return Ok(json(StatusCode::OK, openapi::document()));
    }
    let token = bearer(&headers).ok_or_else(|| {
        Problem::unauthorized("there is no token")
            .hint("send `Authorization: Bearer <token>` (`berth token create`)")
    })?;
    let caller = callers.enter(token).await?;
    let _room = match content_length(&headers) {
        Some(length) if length <= SMALL => None,
        _ => Some(room(&caller)?),
    };
    let body =
        Limited::new(PATIENCE.with(body), LONGEST_REQUEST).collect().await.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => Problem::too_large(format!("the body has more than {LONGEST_REQUEST} bytes"))
                    .hint("write large files with the SDKs or `berth cp`"),
                false => Problem::invalid(format!("the body did not come: {error}")),
            }
        })?;
    let query = pairs(uri.query().unwrap_or_default());
    let call = Call { caller, parts, query, headers, body: body.to_bytes() };
    match handler {
        Handler::Document => unreachable!("it was answered"),
        Handler::Info => views::info(&call).await,
        Handler::Run => run::run(call).await,
        Handler::Sessions => views::sessions(&call).await,
        Handler::Session => views::session(&call).await,
        Handler::EndSession => views::end_session(&call).await,
        Handler::Tasks => views::tasks(&call).await,
        Handler::Task => views::task(&call).await,
        Handler::TaskOutput => follow::output(call).await,
        Handler::CancelTask => views::cancel(&call).await,
        Handler::Usage => usage::usage(&call).await,
        Handler::Artifacts => artifacts::artifacts(&call).await,
        Handler::Artifact => artifacts::artifact(&call).await,
        Handler::ArtifactContent => artifacts::content(call).await,
        Handler::RemoveArtifact => artifacts::remove(&call).await,
        Handler::Workers => workers::workers(&call).await,
        Handler::Worker => workers::worker(&call).await,
        Handler::Cordon => workers::cordon(&call).await,
        Handler::Uncordon => workers::uncordon(&call).await,
        Handler::Drain => workers::drain(&call).await,
        Handler::Queue => views::queue(&call).await,
        Handler::Events => follow::events(call).await,
    }
}

/// A request with neither length nor encoding has no body.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    match text(headers, header::CONTENT_LENGTH.as_str()) {
        Some(length) => length.parse().ok(),
        None => (!headers.contains_key(header::TRANSFER_ENCODING)).then_some(0),
    }
}

/// Room for what of one caller is held in memory and large.
fn room(caller: &Caller) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(&caller.large).try_acquire_owned().map_err(|_| {
        Problem::crowded("too many large requests or answers of this token are under way")
            .hint("try again when some have ended; output as events needs no room")
    })
}

/// An answer in JSON.
fn json(status: StatusCode, value: impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(&value).unwrap_or_else(|_| b"{}".to_vec());
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
