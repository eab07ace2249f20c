//! What a program does, told as it happens: server-sent events, each with a line of JSON. (What else is told so: [`super::follow`].)

use std::time::Duration;

use berth_client::Std;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::run::{Encoding, Told};
use crate::{http::Body, text::whole_characters, told::Ended};

/// Said to a stream's reader when there is nothing else to say, so that nobody between takes it for dead.
pub const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// What is said then: no event.
pub const ALIVE: &str = ": alive\n\n";

/// The same as events, as they come. The stream ends with `end` or `error`: without one of them, it was cut off.
pub fn events(told: mpsc::Receiver<Told>, encoding: Encoding) -> Response<Body> {
    let text = Utf8::default();
    let state = (told, text, encoding);
    let pieces = stream::unfold(Some(state), async |state| {
        let (mut told, mut text, encoding) = state?;
        let next = tokio::time::timeout(ALIVE_EVERY, told.recv()).await;
        match next {
            Err(_) => Some((ALIVE.to_owned(), Some((told, text, encoding)))),
            Ok(None) => None,
            Ok(Some(event)) => {
                let last = matches!(event, Told::Ended(_) | Told::Failed(_));
                let shown = text.show(event, encoding);
                Some((shown, (!last).then_some((told, text, encoding))))
            }
        }
    });
    answer(pieces)
}

/// An answer of events.
pub fn answer(pieces: impl Stream<Item = String> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(body(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn body(pieces: impl Stream<Item = String> + Send + 'static) -> Body {
    let frames = pieces.map(|text| Ok(Frame::data(Bytes::from(text))));
    StreamBody::new(frames).boxed_unsync()
}

/// Output as text, a piece at a time: a character that a piece cuts in two comes with the next.
#[derive(Default)]
struct Utf8 {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Utf8 {
    /// An event, or the two or three that come of the last.
    fn show(&mut self, told: Told, encoding: Encoding) -> String {
        match told {
            Told::Started { session, task } => event("started", json!({"session": session, "task": task})),
            Told::Output(stream, data) => self.output(stream, data, encoding),
            Told::Lost(stream, from, to) => {
                event("lost", json!({"stream": name(stream), "from": from, "to": to}))
            }
            Told::Ended(end) => {
                let rest =
                    [(Std::Out, std::mem::take(&mut self.out)), (Std::Err, std::mem::take(&mut self.err))];
                let rest = rest.into_iter().filter(|(_, rest)| !rest.is_empty());
                let rest: String = rest
                    .map(|(stream, rest)| event(name(stream), json!({"data": encoding.of(&rest)})))
                    .collect();
                rest + &event("end", json!(Ended::from(*end)))
            }
            Told::Failed(problem) => event("error", json!(problem.into_body())),
        }
    }

    fn output(&mut self, stream: Std, data: Bytes, encoding: Encoding) -> String {
        let held = if stream == Std::Out { &mut self.out } else { &mut self.err };
        held.extend_from_slice(&data);
        let whole = if encoding == Encoding::Text { whole_characters(held) } else { held.len() };
        if whole == 0 {
            return String::new();
        }
        let shown = encoding.of(&held[..whole]);
        held.drain(..whole);
        event(name(stream), json!({"data": shown}))
    }
}

pub fn name(stream: Std) -> &'static str {
    match stream {
        Std::Out => "stdout",
        Std::Err => "stderr",
    }
}

/// JSON has no line break, so one line of data is enough.
pub fn event(name: &str, data: Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a character that two pieces share becomes two of none.
    #[test]
    fn characters_that_pieces_cut_come_whole() {
        let mut text = Utf8::default();
        let mut shown = String::new();
        for byte in "ä€😀\u{fffd}".bytes().chain([0xff, b'x', 0xe2]) {
            let event = text.output(Std::Out, Bytes::copy_from_slice(&[byte]), Encoding::Text);
            if let Some((_, data)) = event.split_once("data: ") {
                let value: Value = serde_json::from_str(data.trim()).unwrap();
                shown.push_str(value["data"].as_str().unwrap());
            }
        }
        assert_eq!((shown.as_str(), &text.out[..]), ("ä€😀\u{fffd}\u{fffd}x", &[0xe2][..]));
    }
}
