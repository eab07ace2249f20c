//! HTTP to a server in a session: a request goes over a connection to its port, and the answer comes back, both as they
//! are made and neither held whole.
//!
//! Who may is decided before: here is only how. The two sides trust each other in nothing, and neither is ours:
//!
//! - **Each side is parsed and written anew** ([`headers`]): where a message ends is said by us, on both ways, and what is
//!   meant for one hop alone (`Connection` and what it names, `Transfer-Encoding`) goes no further. A connection into the
//!   sandbox carries one request: nothing of one can be taken for the next.
//! - **No credential of Berth reaches the sandbox** ([`shown`]).
//! - **What a server says is bounded**: its head in bytes and fields, and silence in time. An answer that breaks off breaks
//!   off for the client, who never takes a part for the whole.
//! - **Another protocol** (a WebSocket) begins when the client asked for it and the server agreed; from then on it is bytes
//!   ([`relay`]), which keep what they took: a place among the connections, and one of their token's.

mod headers;
mod moved;
mod relay;
mod shown;

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use berth_client::{Error, PortStream};
use berth_proto::spawn::spawn;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use moved::{Counted, Moved};
pub use shown::{Shown, shown};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::http::{Body, Connection, Patience, empty};

/// Nothing moves for so long, in either direction: it is given up. Servers that are slow to answer, and streams of events
/// that pause, are the usual thing.
pub const SILENCE: Duration = Duration::from_secs(600);
/// Bytes of the head of an answer.
const HEAD: usize = 64 << 10;
/// And fields in it.
const FIELDS: usize = 128;
/// What is read at once.
const BUFFER: usize = 256 << 10;
/// For a connection to end in order, once nobody wants its answer any more.
const LINGER: Duration = Duration::from_secs(5);
const PATIENCE: Patience = Patience { each: SILENCE, whole: None };

/// Why there is no answer of the server's.
#[derive(Debug)]
pub enum Failure {
    /// The request is none that can be passed on.
    Request(&'static str),
    /// Of the request not all came.
    Cut,
    /// The way to the server broke, and Berth says why.
    Broken(Error),
    /// What the server said is no answer.
    Answer(String),
    /// The server said nothing.
    Silent,
}

/// Sends a request over `stream`, a connection to the server. `held` is kept until all is over.
pub async fn forward<S, B, H>(
    stream: S,
    request: Request<B>,
    here: &Connection,
    held: H,
) -> Result<Response<Body>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    H: Send + 'static,
{
    let (mut head, body) = request.into_parts();
    let client = head.extensions.remove::<OnUpgrade>();
    let asked = headers::to_server(&mut head, here.peer).map_err(Failure::Request)?;
    let moved = Arc::new(Moved::default());
    let stream = Counted::new(stream, Arc::clone(&moved));
    let body = PATIENCE.with(body);
    let mut builder = http1::Builder::new();
    builder.max_headers(FIELDS).max_header_size(HEAD).max_buf_size(BUFFER);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let over = CancellationToken::new();
    spawn("connection to a port", {
        let over = over.clone();
        async move {
            let mut connection = std::pin::pin!(connection.with_upgrades());
            tokio::select! {
                _ = &mut connection => {}
                () = over.cancelled() => drop(tokio::time::timeout(LINGER, connection).await),
            }
        }
    });
    let guard = over.drop_guard();
    let answer = tokio::select! {
        answer = sender.send_request(Request::from_parts(head, body)) => answer.map_err(broken)?,
        () = moved.stood_still(SILENCE) => return Err(Failure::Silent),
    };
    let (mut head, body) = answer.into_parts();
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        headers::to_client(&mut head).map_err(Failure::Answer)?;
        let body = PATIENCE.with(body).map_frame(move |frame| {
            let _held = (&held, &guard);
            frame
        });
        return Ok(Response::from_parts(head, body.boxed_unsync()));
    }
    let (Some(asked), Some(client)) = (asked, client) else {
        return Err(Failure::Answer("it changed to another protocol unasked".to_owned()));
    };
    let server = head.extensions.remove::<OnUpgrade>();
    headers::switched(&mut head, &asked).map_err(Failure::Answer)?;
    let here = here.clone();
    spawn("other protocol to a port", async move {
        let _held = (held, guard, here.place);
        let relayed = async {
            let (client, server) = (client.await?, server.ok_or_else(|| io::Error::other("none"))?.await?);
            relay::relay(TokioIo::new(client), TokioIo::new(server)).await
        };
        tokio::select! {
            ended = relayed => if let Err::<(), Box<dyn StdError + Send + Sync>>(error) = ended {
                tracing::debug!(%error, "a connection to a port broke");
            },
            () = here.stop.cancelled() => {}
        }
    });
    Ok(Response::from_parts(head, empty(StatusCode::SWITCHING_PROTOCOLS).into_body()))
}

fn broken(error: hyper::Error) -> Failure {
    let mut source: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(inner) = source {
        if let Some(cause) = inner.downcast_ref::<io::Error>().and_then(PortStream::cause) {
            return Failure::Broken(cause.clone());
        }
        source = inner.source();
    }
    if error.is_user() {
        return Failure::Cut;
    }
    Failure::Answer(match error.is_incomplete_message() {
        true => "it closed the connection before it had answered".to_owned(),
        false if error.is_parse_too_large() => {
            format!(
                "the head of its answer is longer than {} KiB, or has more than {FIELDS} fields",
                HEAD >> 10
            )
        }
        false if error.is_parse() => format!("its answer is no HTTP ({error})"),
        false => format!("the connection to it broke ({error})"),
    })
}

#[cfg(test)]
mod tests;
