//! `POST /execute`: runs code, and tells what comes of it in lines of JSON, as it comes.
//!
//! Whoever asked for code is the only one who hears of it: the SDK can't find an execution again. So one whose client goes
//! away is interrupted, and taken out of the queue if it waits; it, and no other that runs in its context by then. The
//! SDK's own timeout is no more than that: it closes the connection. That holds from the moment at which Berth has taken
//! the code on, which is not the caller's to cut short.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use berth_client::{
    Context, Error, ExecutionEvent, ExecutionStream, Reason, Session, Snippet,
    model::{ExecutionEnd, ExecutionOutcome as Outcome, MimeBundle},
};
use berth_proto::{convert::bounds, spawn::spawn, world};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::sleep};

use super::{default_context, named, only_python, shown};
use crate::{
    e2b::{
        body::{Body, Upload},
        connect,
        pool::Lease,
        problem::Problem,
    },
    text::whole_characters,
};

/// Between the lines of a quiet run, by which a dead connection is noticed. The SDKs skip kinds that they don't know.
const KEEPALIVE: Duration = Duration::from_secs(30);
const STDOUT: usize = 0;
const STDERR: usize = 1;
const MOST: &str = "an execution may have 16 MiB (hint: let the code write to a file)";

#[derive(Deserialize, Default)]
#[serde(default)]
struct Asked {
    code: Option<String>,
    context_id: Option<String>,
    language: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
}

pub async fn execute(
    lease: Lease,
    session: Session,
    headers: &HeaderMap,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    let Asked { code, context_id, language, env_vars } = connect::unary(headers, body).await?;
    only_python(language.as_deref())?;
    if context_id.is_some() && language.is_some() {
        return Err(Problem::invalid("give one of context_id and language, and not the other"));
    }
    let code = code.ok_or_else(|| Problem::invalid("the request has no code"))?;
    let mut snippet = Snippet::new(code)
        // The SDK keeps the time.
        .timeout(Duration::ZERO)
        .output_limit(bounds::EXECUTION_OUTPUT_MAX);
    for (name, value) in env_vars.unwrap_or_default() {
        snippet = snippet.env(name, value);
    }
    let context = context_id.map(|id| named(&session, &id)).transpose()?;
    let (told, begun) = oneshot::channel();
    // To its end, also when nobody waits any more: what has begun and nobody knows of could not be interrupted.
    spawn("e2b execute", async move {
        let run = begin(lease, &session, context, snippet).await;
        let _ = told.send(run);
    });
    let run = begun.await.map_err(|_| Problem::unavailable("the gateway stops"))??;
    let lines =
        futures::stream::unfold(run, |mut run| async move { run.next().await.map(|line| (line, run)) });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn begin(
    lease: Lease,
    session: &Session,
    named: Option<Context>,
    snippet: Snippet,
) -> Result<Run, Error> {
    if let Some(context) = named {
        let stream = context.stream(snippet).await?;
        return Ok(Run::new(lease, context, stream, None));
    }
    let mut again = true;
    loop {
        let (context, word) = default_context(session).await?;
        match context.stream(snippet.clone()).await {
            // It went between the two calls.
            Err(error) if again && (error.is(Reason::ContextDead) || error.is(Reason::ContextNotFound)) => {
                again = false;
            }
            stream => return Ok(Run::new(lease, context, stream?, word)),
        }
    }
}

/// An execution that a client waits for. Dropped before its end, it is interrupted.
struct Run {
    /// What is leased is in use for as long as the stream is.
    _lease: Lease,
    context: Context,
    stream: ExecutionStream,
    lines: VecDeque<Value>,
    /// Of stdout and of stderr: the bytes of a character that is only half there.
    halves: [Vec<u8>; 2],
    /// The client was told of an error.
    failed: bool,
    /// Nothing more comes of it here.
    over: bool,
    /// It has ended.
    ended: bool,
}

/// What cuts the connection, so that the client takes a part for no whole. The SDK then looks whether its sandbox is there.
type Cut = Box<dyn std::error::Error + Send + Sync>;

impl Run {
    fn new(lease: Lease, context: Context, stream: ExecutionStream, word: Option<String>) -> Self {
        let number = json!({"type": "number_of_executions", "execution_count": stream.number()});
        let mut run = Self {
            _lease: lease,
            context,
            stream,
            lines: VecDeque::from([number]),
            halves: Default::default(),
            failed: false,
            over: false,
            ended: false,
        };
        if let Some(word) = word {
            run.say(STDERR, word);
        }
        run
    }

    /// The next line. `None`: there are no more.
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Cut>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                let mut bytes = serde_json::to_vec(&line).expect("what we answer can be written as JSON");
                bytes.push(b'\n');
                return Some(Ok(Frame::data(bytes.into())));
            }
            if self.over {
                return None;
            }
            let event = tokio::select! {
                event = self.stream.next() => event,
                () = sleep(KEEPALIVE) => {
                    self.lines.push_back(json!({"type": "keepalive"}));
                    continue;
                }
            };
            let taken = match event {
                Ok(Some(event)) => self.take(event),
                Ok(None) => self.lost("its stream ended before it did"),
                Err(error) => match Problem::from(error) {
                    problem if problem.is_gone() => Err(problem.to_string().into()),
                    problem => self.lost(problem.to_string()),
                },
            };
            if let Err(cut) = taken {
                self.over = true;
                return Some(Err(cut));
            }
        }
    }

    fn take(&mut self, event: ExecutionEvent) -> Result<(), Cut> {
        match event {
            ExecutionEvent::Stdout(data) => self.output(STDOUT, &data),
            ExecutionEvent::Stderr(data) => self.output(STDERR, &data),
            ExecutionEvent::Display(bundle) => self.show(&bundle, false),
            ExecutionEvent::Result(bundle) => self.show(&bundle, true),
            ExecutionEvent::Error(error) => self.fail(&error.name, error.value, error.traceback),
            ExecutionEvent::Ended(end) => return self.end(end),
        }
        Ok(())
    }

    fn output(&mut self, stream: usize, data: &[u8]) {
        let mut bytes = std::mem::take(&mut self.halves[stream]);
        bytes.extend_from_slice(data);
        self.halves[stream] = bytes.split_off(whole_characters(&bytes));
        if !bytes.is_empty() {
            self.say(stream, String::from_utf8_lossy(&bytes));
        }
    }

    fn say(&mut self, stream: usize, text: impl Into<String>) {
        let kind = ["stdout", "stderr"][stream];
        let now = world::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.lines.push_back(json!({"type": kind, "text": text.into(), "timestamp": at}));
    }

    fn show(&mut self, bundle: &MimeBundle, main: bool) {
        // The SDKs know no way to change what was shown, and E2B's server does not tell of it.
        if bundle.update {
            return;
        }
        self.lines.push_back(shown::result(bundle, main));
        if !bundle.left_out.is_empty() {
            let names = bundle.left_out.join(", ");
            self.say(STDERR, format!("too large to be shown, and left out: {names}\n"));
        }
    }

    fn fail(&mut self, name: &str, value: impl Into<String>, traceback: impl Into<String>) {
        self.failed = true;
        let (value, traceback) = (value.into(), traceback.into());
        self.lines.push_back(json!({"type": "error", "name": name, "value": value, "traceback": traceback}));
    }

    /// What becomes of it nobody can say; so it is interrupted, when this is dropped.
    fn lost(&mut self, why: impl Into<String>) -> Result<(), Cut> {
        self.fail("ExecutionLost", why, "");
        self.over();
        Ok(())
    }

    fn end(&mut self, end: ExecutionEnd) -> Result<(), Cut> {
        self.ended = true;
        for stream in [STDOUT, STDERR] {
            let half = std::mem::take(&mut self.halves[stream]);
            if !half.is_empty() {
                self.say(stream, String::from_utf8_lossy(&half));
            }
        }
        if end.output_lost > 0 {
            let text = format!("{} bytes of output were left out: {MOST}\n", end.output_lost);
            self.say(STDERR, text);
        }
        // One that its code did not cause itself has no error yet.
        let name = match end.outcome {
            Outcome::SessionEnded => return Err("the sandbox ended while the code ran".into()),
            Outcome::Died => Some("ContextDied"),
            Outcome::Cancelled => Some("ExecutionCancelled"),
            Outcome::Interrupted => Some("ExecutionInterrupted"),
            Outcome::TimedOut => Some("ExecutionTimedOut"),
            Outcome::Error => Some("ExecutionFailed"),
            Outcome::Ok => None,
        };
        if let Some(name) = name.filter(|_| !self.failed) {
            self.fail(name, end.message.unwrap_or_default(), "");
        }
        self.over();
        Ok(())
    }

    fn over(&mut self) {
        self.lines.push_back(json!({"type": "end_of_execution"}));
        self.over = true;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (context, number) = (self.context.clone(), self.stream.number());
        spawn("e2b interrupt", async move {
            if let Err(error) = context.interrupt_execution(number).await {
                tracing::debug!(%error, "an execution whose client is gone could not be interrupted");
            }
        });
    }
}
