//! Bodies: of answers, and of requests, which come piece by piece and are never waited for without end.

use std::{
    io,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
pub use crate::http::{Body, empty};
use crate::http::{Patience, Received};

/// A request whose next bytes don't come within this is given up. One that is a stream, or a file, has no end of its own.
const PATIENCE: Patience = Patience { each: Duration::from_secs(60), whole: None };
/// A message, as opposed to a file, is there after this or is given up.
pub const MESSAGE_WITHIN: Duration = Duration::from_secs(60);

/// A message that is longer than this counts as large.
const SMALL: usize = 64 << 10;

type Source = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The bytes of a request, as they come. A body that breaks, or stands still, ends with an error.
pub struct Pieces(Option<Source>);

impl Pieces {
    pub fn new(body: Received) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        Self::of(PATIENCE.with(body).into_data_stream().map(|piece| piece.map_err(io::Error::other)))
    }

    pub fn of(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(Some(Box::pin(pieces)))
    }
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(source) = &mut self.0 else { return Poll::Ready(None) };
        let next = ready!(source.poll_next_unpin(context));
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(next)
    }
}

/// A request's bytes, and its caller's room for large messages.
pub struct Upload {
    pieces: Pieces,
    large: Arc<Semaphore>,
}

impl Upload {
    pub fn new(pieces: Pieces, large: Arc<Semaphore>) -> Self {
        Self { pieces, large }
    }

    #[cfg(test)]
    pub fn of(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self::new(Pieces::of(pieces), Arc::new(Semaphore::new(1)))
    }

    /// What comes next.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.pieces.next().await
    }

    /// For what is not held whole.
    pub fn into_pieces(self) -> Pieces {
        self.pieces
    }

    /// Room for so many bytes of one message, once there is some. `None`: it needs none.
    pub async fn room(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes <= SMALL {
            return None;
        }
        self.large.clone().acquire_owned().await.ok()
    }
}

/// A whole message, and its room for as long as it is looked at.
pub struct Message {
    bytes: BytesMut,
    _room: Option<OwnedSemaphorePermit>,
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A whole message of at most `most` bytes.
pub async fn message(mut body: Upload, most: usize) -> Result<Message, Problem> {
    let whole = async {
        let (mut bytes, mut room) = (BytesMut::new(), None);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(broken)?;
            if bytes.len() + piece.len() > most {
                return Err(Problem::too_large(format!("a message has at most {most} bytes")));
            }
            if room.is_none() {
                room = body.room(bytes.len() + piece.len()).await;
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Message { bytes, _room: room })
    };
    tokio::time::timeout(MESSAGE_WITHIN, whole).await.map_err(|_| late())?
}

/// A message that did not come in time, or found no room.
pub fn late() -> Problem {
    Problem::slow("the request did not come in time, or too many large ones are under way")
}

/// A request that broke off, or did not come in time. Nobody may be there to read this.
pub fn broken(error: io::Error) -> Problem {
    Problem::slow(format!("the request broke off: {error}"))
}

pub fn full(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(whole(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    full(status, "application/json", value.to_string())
}

/// A body that is there.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_that_is_too_long_is_refused() {
        let endless = Upload::of(futures::stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1000]))));
        let problem = message(endless, 1 << 20).await.err().expect("it never ends");
        assert!(problem.is("resource_exhausted"), "{problem}");
    }

    /// Red when each drop puts the end off.
    #[tokio::test(start_paused = true)]
    async fn a_message_that_comes_drop_by_drop_is_given_up() {
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(MESSAGE_WITHIN / 4).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        });
        let problem = message(Upload::of(drops), 1 << 20).await.err().expect("too slow");
        assert!(problem.is("deadline_exceeded"), "{problem}");
    }

    /// Red when a caller's large messages are all held at once.
    #[tokio::test(start_paused = true)]
    async fn large_messages_wait_for_room_and_small_ones_do_not() {
        let large = Arc::new(Semaphore::new(1));
        let body = |bytes: usize| {
            let pieces = Pieces::of(futures::stream::iter([Ok(Bytes::from(vec![b'x'; bytes]))]));
            Upload::new(pieces, large.clone())
        };
        let held = message(body(SMALL + 1), 1 << 20).await.expect("there is room");
        assert_eq!(message(body(SMALL), 1 << 20).await.expect("it is small").len(), SMALL);
        assert!(
            message(body(SMALL + 1), 1 << 20).await.err().is_some_and(|late| late.is("deadline_exceeded"))
        );
        drop(held);
        assert!(message(body(SMALL + 1), 1 << 20).await.is_ok());
    }
}
