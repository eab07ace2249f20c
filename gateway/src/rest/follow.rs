//! What happens in the cluster, and what a task writes, as it comes: server-sent events whose ids say where a stream stands,
//! so that whoever was cut off goes on from there.
//!
//! Nothing is stored here: a reader that is slow slows its own stream down, and what it then misses is told (`lost`, or
//! `EVENTS_LOST`).

use berth_client::{
    EventStream, Std, TaskEvent, TaskHandle, TaskStream, WatchOptions,
    model::{Change, FleetEvent, json::time_text},
};
use bytes::Bytes;
use futures::stream;
use http::Response;
use serde_json::{Value, json};

use super::{
    Call,
    events::{ALIVE, ALIVE_EVERY, answer, event, name},
    problem::Problem,
    query,
    run::Encoding,
    views::{SessionView, TaskView, flag, handle},
    workers::WorkerView,
};
use crate::{
    http::{Body, query::value, text},
    text::whole_characters,
    told::Ended,
};

/// Said first, so that the answer's head is sent at once.
const BEGUN: &str = ": begun\n\n";
/// What a browser, or whoever else takes up a stream, says it has seen.
const LAST: &str = "last-event-id";

/// `GET /v1/events`.
pub async fn events(call: Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["after"])?;
    let after = text(&call.headers, LAST).or(value(&call.query, "after")).map(str::to_owned);
    let events = call.caller.client.events(after.filter(|token| !token.is_empty())).await?;
    let pieces = stream::unfold((BEGUN.to_owned(), Some(events)), async |(first, events)| {
        if !first.is_empty() {
            return Some((first, (String::new(), events)));
        }
        let mut events = events?;
        let (piece, goes_on) = match tokio::time::timeout(ALIVE_EVERY, events.next()).await {
            Ok(Ok(change)) => (happened(change), true),
            Ok(Err(error)) => (event("error", json!(Problem::from(error).into_body())), false),
            Err(_) => (quiet(&events), true),
        };
        Some((piece, (String::new(), goes_on.then_some(events))))
    });
    Ok(call.caller.answered(answer(pieces)))
}

/// Nothing has happened up to here.
fn quiet(events: &EventStream) -> String {
    match events.token() {
        "" => ALIVE.to_owned(),
        token => format!("id: {token}\n{ALIVE}"),
    }
}

fn happened(change: FleetEvent) -> String {
    let at = change.at.map(time_text);
    let (name, what) = match change.change {
        Change::Session(session) => ("session", json!(SessionView::from(*session))),
        Change::Task(task) => ("task", json!(TaskView::from(*task))),
        Change::Worker(worker) => ("worker", json!(WorkerView::from(*worker))),
    };
    let mut data = json!({"at": at});
    data[name] = what;
    format!("id: {}\n{}", change.token, event(name, data))
}

/// `GET /v1/sessions/{session}/tasks/{task}/output`.
pub async fn output(call: Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["follow", "stdout", "stderr", "tail", "encoding"])?;
    let encoding = match value(&call.query, "encoding") {
        None | Some("text") => Encoding::Text,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            return Err(Problem::invalid(format!("`encoding` is {other:?}")).hint("give text or base64"));
        }
    };
    let follow = flag(&call, "follow")?;
    let task = handle(&call).await?;
    let [stdout_offset, stderr_offset] = begin(&call, &task).await?;
    let options = WatchOptions { stdout_offset, stderr_offset, skip_lost: true, follow };
    let written = task.watch_from(options).await?;
    let told = Written { at: [stdout_offset, stderr_offset], held: Default::default(), encoding };
    let pieces =
        stream::unfold((BEGUN.to_owned(), told, Some(written)), async |(first, mut told, written)| {
            if !first.is_empty() {
                return Some((first, (String::new(), told, written)));
            }
            let (piece, written) = told.next(written?).await;
            Some((piece, (String::new(), told, written)))
        });
    Ok(call.caller.answered(answer(pieces)))
}

/// The first byte of each stream that is wanted.
async fn begin(call: &Call, task: &TaskHandle) -> Result<[u64; 2], Problem> {
    if let Some(seen) = text(&call.headers, LAST) {
        let both = seen.split_once('-').and_then(|(out, err)| Some([out.parse().ok()?, err.parse().ok()?]));
        return both.ok_or_else(|| {
            Problem::invalid("the Last-Event-ID is none of a task's output")
                .hint("send that of the last event, or none")
        });
    }
    let [out, err, tail] = ["stdout", "stderr", "tail"].map(|name| number(call, name));
    let (mut at, tail) = ([out?.unwrap_or(0), err?.unwrap_or(0)], tail?);
    if let Some(tail) = tail {
        let info = task.info().await?;
        for (at, stream) in at.iter_mut().zip([info.stdout, info.stderr]) {
            *at = (*at).max(stream.length.saturating_sub(tail)).max(stream.first_kept);
        }
    }
    Ok(at)
}

fn number(call: &Call, name: &str) -> Result<Option<u64>, Problem> {
    let Some(text) = value(&call.query, name) else { return Ok(None) };
    let refused = |_| Problem::invalid(format!("`{name}` is {text:?}")).hint("give a number of bytes");
    text.parse().map(Some).map_err(refused)
}

/// What has been told of a task's output.
struct Written {
    /// The next byte of each stream.
    at: [u64; 2],
    /// Half a character, which comes with its other half.
    held: [Vec<u8>; 2],
    encoding: Encoding,
}

impl Written {
    /// The next piece, and the stream where it goes on.
    async fn next(&mut self, mut written: TaskStream) -> (String, Option<TaskStream>) {
        let next = match tokio::time::timeout(ALIVE_EVERY, written.next()).await {
            Ok(next) => next,
            Err(_) => return (ALIVE.to_owned(), Some(written)),
        };
        match next {
            Ok(Some(TaskEvent::Stdout(data))) => (self.piece(Std::Out, &data), Some(written)),
            Ok(Some(TaskEvent::Stderr(data))) => (self.piece(Std::Err, &data), Some(written)),
            Ok(Some(TaskEvent::Lost { stream, from, to })) => (self.lost(stream, from, to), Some(written)),
            Ok(Some(TaskEvent::Ended(info))) => {
                let rest = self.rest();
                let end = match info.end {
                    Some(end) => event("end", json!(Ended::from(end))),
                    None => event("so_far", json!({"state": info.state.name()})),
                };
                (rest + &end, None)
            }
            Ok(None) => (self.rest() + &event("so_far", json!({"state": written.info().state.name()})), None),
            Err(error) => (event("error", json!(Problem::from(error).into_body())), None),
        }
    }

    fn piece(&mut self, stream: Std, data: &Bytes) -> String {
        let held = &mut self.held[stream as usize];
        held.extend_from_slice(data);
        let whole = if self.encoding == Encoding::Text { whole_characters(held) } else { held.len() };
        self.tell(stream, whole)
    }

    fn tell(&mut self, stream: Std, count: usize) -> String {
        if count == 0 {
            return String::new();
        }
        let from = self.at[stream as usize];
        let data: Vec<u8> = self.held[stream as usize].drain(..count).collect();
        let to = from + count as u64;
        self.at[stream as usize] = to;
        self.event(name(stream), json!({"data": self.encoding.of(&data), "from": from, "to": to}))
    }

    /// What of a character has come although no more will.
    fn rest(&mut self) -> String {
        [Std::Out, Std::Err].map(|stream| self.tell(stream, self.held[stream as usize].len())).concat()
    }

    fn lost(&mut self, stream: Std, from: u64, to: u64) -> String {
        let rest = self.tell(stream, self.held[stream as usize].len());
        self.at[stream as usize] = to;
        rest + &self.event("lost", json!({"stream": name(stream), "from": from, "to": to}))
    }

    /// With an id that says where both streams stand after it.
    fn event(&self, name: &str, data: Value) -> String {
        let [out, err] = self.at;
        format!("id: {out}-{err}\n{}", event(name, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when an id counts what was held back: then whoever goes on from it lacks half a character.
    #[test]
    fn an_id_says_what_was_told_and_no_more() {
        let mut told = Written { at: [10, 5], held: Default::default(), encoding: Encoding::Text };
        let first = told.piece(Std::Out, &Bytes::from_static(b"a\xe2\x82"));
        assert!(first.starts_with("id: 11-5\nevent: stdout\n"), "{first}");
        assert!(first.contains(r#""data":"a""#) && first.contains(r#""from":10"#), "{first}");
        let rest = told.piece(Std::Out, &Bytes::from_static(b"\xacb"));
        assert!(rest.starts_with("id: 15-5\n") && rest.contains(r#""data":"€b""#), "{rest}");
        assert_eq!(told.piece(Std::Err, &Bytes::from_static(b"\xc3")), "");
        let lost = told.lost(Std::Err, 6, 100);
        assert!(lost.contains("id: 15-6\n") && lost.contains("id: 15-100\nevent: lost"), "{lost}");
    }
}
