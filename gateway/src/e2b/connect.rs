//! The Connect protocol with JSON and without compression, as far as E2B's SDKs use it: unary calls, answers that are
//! streams, and requests that are.
//!
//! A frame is a byte of flags (2: the last one), four of length, and JSON. What a frame says of its length is looked at
//! before a byte of it is waited for, so that no frame takes more memory than one message may.

use std::{future::Future, io, time::Duration};

use berth_proto::spawn::spawn;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    body::{Body, MESSAGE_WITHIN, Upload, broken, json_response, late, message, whole},
    problem::Problem,
};

/// Bytes of one message. (A program's arguments are at most 1 MiB; input for it comes in several.)
pub const MESSAGE_MAX: usize = 4 << 20;
/// Messages that wait for a client that reads slowly. Each has as much output as one of Berth's.
const AHEAD: usize = 4;
const HEAD: usize = 5;
const COMPRESSED: u8 = 1;
const LAST: u8 = 2;

/// Whether a request is of the kind that this method takes.
pub fn content_type(headers: &HeaderMap, wanted: &str) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(Problem::unsupported_media(format!(
        "send {wanted}: no other codec of the Connect protocol is served"
    )))
}

/// How long the caller gives the call. `None`: no limit.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get("connect-timeout-ms") else { return Ok(None) };
    let digits = value.to_str().ok().filter(|digits| digits.len() <= 10);
    let millis = digits.and_then(|digits| digits.parse::<u64>().ok());
    let wrong = || Problem::invalid("Connect-Timeout-Ms is a number of at most ten digits");
    Ok(Some(Duration::from_millis(millis.ok_or_else(wrong)?)))
}

/// The message of a unary call.
pub async fn unary<M: DeserializeOwned>(headers: &HeaderMap, body: Upload) -> Result<M, Problem> {
    content_type(headers, "application/json")?;
    parsed(&message(body, MESSAGE_MAX).await?)
}

pub fn answer(value: &Value) -> Response<Body> {
    json_response(StatusCode::OK, value)
}

fn parsed<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, Problem> {
    // An empty message may be no bytes at all.
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| Problem::invalid(format!("no such message: {error}")))
}

/// The frames of a request.
pub struct Frames {
    body: Upload,
    buffer: BytesMut,
}

impl Frames {
    pub fn new(headers: &HeaderMap, body: Upload) -> Result<Self, Problem> {
        content_type(headers, "application/connect+json")?;
        Ok(Self { body, buffer: BytesMut::new() })
    }

    /// The next message. `None`: there are no more.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<M>, Problem> {
        if !self.filled(HEAD).await? {
            return if self.buffer.is_empty() { Ok(None) } else { Err(cut()) };
        }
        let flags = self.buffer[0];
        let length =
            u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]) as usize;
        if flags & COMPRESSED != 0 {
            return Err(Problem::unserved("compressed messages are not served"));
        }
        if length > MESSAGE_MAX {
            return Err(Problem::too_large(format!(
                "a message has at most {MESSAGE_MAX} bytes, not {length}"
            )));
        }
        let _room = tokio::time::timeout(MESSAGE_WITHIN, self.body.room(length)).await.map_err(|_| late())?;
        let whole = tokio::time::timeout(MESSAGE_WITHIN, self.filled(HEAD + length));
        if !whole.await.map_err(|_| late())?? {
            return Err(cut());
        }
        self.buffer.advance(HEAD);
        let message = self.buffer.split_to(length);
        if flags & LAST != 0 { Ok(None) } else { parsed(&message).map(Some) }
    }

    /// The one message of a request that has one.
    pub async fn only<M: DeserializeOwned>(mut self) -> Result<M, Problem> {
        let first = tokio::time::timeout(MESSAGE_WITHIN, self.next()).await.map_err(|_| late())??;
        first.ok_or_else(|| Problem::invalid("the request has no message"))
    }

    /// Whether so many bytes are there before the request ends.
    async fn filled(&mut self, wanted: usize) -> Result<bool, Problem> {
        while self.buffer.len() < wanted {
            match self.body.next().await {
                Some(piece) => self.buffer.extend_from_slice(&piece.map_err(broken)?),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn cut() -> Problem {
    broken(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a message"))
}

fn frame(flags: u8, value: &impl Serialize) -> Bytes {
    let json = serde_json::to_vec(value).expect("what we answer can be written as JSON");
    let mut frame = BytesMut::with_capacity(HEAD + json.len());
    frame.put_u8(flags);
    frame.put_u32(u32::try_from(json.len()).expect("a message of ours is short"));
    frame.put_slice(&json);
    frame.freeze()
}

/// Where the messages of an answer go.
pub struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    /// Waits for a client that reads slowly. When it is gone, what sends to it ends: see [`stream`].
    pub async fn send(&self, value: &Value) {
        let _ = self.0.send(frame(0, value)).await;
    }
}

/// An answer that is a stream: what `work` sends, and then its result. `work` ends early when the client goes away.
pub fn stream<F>(work: impl FnOnce(Sender) -> F) -> Response<Body>
where
    F: Future<Output = Result<(), Problem>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let work = work(Sender(sender.clone()));
    spawn("e2b stream", async move {
        let result = tokio::select! {
            result = work => result,
            () = sender.closed() => return,
        };
        let _ = sender.send(last(result)).await;
    });
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
    });
    streaming(StreamBody::new(frames).boxed_unsync())
}

/// An answer that is a stream of at most one message, or of none and an error.
pub fn single(result: Result<Value, Problem>) -> Response<Body> {
    let bytes = match result {
        Ok(value) => [frame(0, &value), last(Ok(()))].concat().into(),
        Err(problem) => last(Err(problem)),
    };
    streaming(whole(bytes))
}

fn last(result: Result<(), Problem>) -> Bytes {
    match result {
        Ok(()) => frame(LAST, &json!({})),
        Err(problem) => frame(LAST, &json!({"error": problem.connect()})),
    }
}

fn streaming(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/connect+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: Vec<&[u8]>) -> Frames {
        let pieces: Vec<_> = pieces.into_iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/connect+json"));
        Frames::new(&headers, Upload::of(futures::stream::iter(pieces))).unwrap()
    }

    #[tokio::test]
    async fn frames_are_found_however_they_are_cut() {
        let mut bytes = frame(0, &json!({"a": 1})).to_vec();
        bytes.extend_from_slice(&frame(0, &json!({"b": "ä"})));
        bytes.extend_from_slice(&frame(LAST, &json!({})));
        for size in 1..bytes.len() {
            let mut frames = frames(bytes.chunks(size).collect());
            assert_eq!(frames.next::<Value>().await.unwrap(), Some(json!({"a": 1})));
            assert_eq!(frames.next::<Value>().await.unwrap(), Some(json!({"b": "ä"})));
            assert_eq!(frames.next::<Value>().await.unwrap(), None);
        }
        assert_eq!(frames(vec![]).next::<Value>().await.unwrap(), None);
    }

    /// Red when the length is believed before it is looked at: then it waits for 4 GiB.
    #[tokio::test]
    async fn frames_that_lie_are_refused() {
        let problem = |pieces| async { frames(pieces).next::<Value>().await.expect_err("refused") };
        assert!(problem(vec![&[0, 0xff, 0xff, 0xff, 0xff]]).await.is("resource_exhausted"));
        assert!(problem(vec![&[1, 0, 0, 0, 1, b'x']]).await.is("unimplemented"));
        assert!(problem(vec![&[0, 0, 0, 0, 9, b'{', b'}']]).await.is("deadline_exceeded"));
        assert!(problem(vec![&[0, 0]]).await.is("deadline_exceeded"));
        assert!(problem(vec![&[0, 0, 0, 0, 2, b'{', b'!']]).await.is("invalid_argument"));
    }

    #[test]
    fn a_timeout_is_milliseconds() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("connect-timeout-ms", HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(of("1500").unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
        for bad in ["", "-1", "1.5", "12345678901", "x"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    /// Red when an answer goes on for a client that is gone.
    #[tokio::test]
    async fn work_ends_with_its_reader() {
        let (running, over) = tokio::sync::oneshot::channel::<()>();
        let response = stream(|sender| async move {
            let _running = running;
            sender.send(&json!({})).await;
            std::future::pending().await
        });
        drop(response);
        assert!(over.await.is_err(), "it was dropped");
    }
}
