//! What belongs to one request, at every hop: W3C trace context
//! (<https://www.w3.org/TR/trace-context/>), and the spans that are made of it.
//!
//! A request has one id everywhere: its trace id, 32 hex digits. Errors show it, each log line that is written for the
//! request carries it as `requestId`, and a tracing backend finds the trace by it. Each server is mounted in a
//! [`Traced`] layer: what a call does runs in the call's context ([`current`]), background work that it starts
//! ([`crate::spawn`]) does so too, and what it sends on goes under it.
//!
//! Nothing here exports: a process that wants its spans says where they go ([`record`]). Without that a hop costs a few
//! random bytes, a header and a log span.
//!
//! Not `opentelemetry` and `tracing-opentelemetry`: what we need of them is this header, which a relay passes on anyway,
//! and they would be linked into the agent of every sandbox.

mod hop;
mod layer;

use std::{
    fmt,
    future::Future,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{Instrument, error_span};

pub use hop::{Hop, Kind, Role, Span, record};
pub use layer::{TraceLayer, Traced};

use crate::{TaskId, world};

/// The header, in HTTP and in gRPC metadata, by which the context goes from hop to hop.
pub const HEADER: &str = "traceparent";
/// The header of an answer that names its request.
pub const REQUEST_ID: &str = "berth-request-id";

/// Where in which trace something happens: what `traceparent` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    sampled: bool,
}

impl TraceContext {
    /// The beginning of a trace. Not sampled: whether it is exported is for the first server to say.
    pub fn begin() -> Self {
        let trace = u128::from(world::random_u64()) << 64 | u128::from(world::random_u64());
        Self { trace: trace.max(1), span: span_id(), sampled: false }
    }

    /// The next span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: span_id(), ..self }
    }

    /// The span of a task: its id is the last 16 digits of the task's, so that every hop knows it.
    #[must_use]
    pub fn of_task(self, task: TaskId) -> Self {
        Self { span: task.low_bits().max(1), ..self }
    }

    /// The id of the request.
    pub fn request_id(self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Whether it is exported.
    pub fn is_sampled(self) -> bool {
        self.sampled
    }

    /// What runs in it: logs under its id, and what it calls is of the same trace.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        self.noted(None).scope(future)
    }

    /// The same for what does not wait.
    pub fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        self.noted(None).enter(work)
    }

    fn noted(self, notes: Option<Notes>) -> Current {
        // What is done for the request already says so. (An error's level: no filter that lets any line pass leaves it out.)
        let log = match current() {
            Some(around) if around.trace == self.trace => tracing::Span::none(),
            _ => error_span!("request", request.id = self.request_id()),
        };
        Current { context: self, notes, log }
    }
}

fn span_id() -> u64 {
    world::random_u64().max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// Why a text is no trace context.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a W3C traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>")]
pub struct NoTraceContext;

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    /// As the recommendation has it: lower-case digits, no id of zeros; of a later version what is behind the flags is
    /// left alone.
    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let bytes = text.as_bytes();
        let dashes = bytes.len() >= 55 && [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
        let version = dashes.then(|| digits(bytes, 0, 2)).flatten().ok_or(NoTraceContext)?;
        let ends = match version {
            0 => bytes.len() == 55,
            255 => false,
            _ => bytes.len() == 55 || bytes[55] == b'-',
        };
        let trace = digits(bytes, 3, 35).filter(|trace| *trace != 0);
        let span = digits(bytes, 36, 52).filter(|span| *span != 0);
        let flags = digits(bytes, 53, 55);
        match (ends, trace, span, flags) {
            (true, Some(trace), Some(span), Some(flags)) => {
                Ok(Self { trace, span: span as u64, sampled: flags & 1 == 1 })
            }
            _ => Err(NoTraceContext),
        }
    }
}

fn digits(bytes: &[u8], from: usize, to: usize) -> Option<u128> {
    bytes[from..to].iter().try_fold(0u128, |sum, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u128::from(digit))
    })
}

/// What is noted of a span while it lasts.
type Notes = Arc<Mutex<Vec<(&'static str, String)>>>;

#[derive(Clone)]
struct Current {
    context: TraceContext,
    /// Only of a span that is exported.
    notes: Option<Notes>,
    /// What a log line has its id from.
    log: tracing::Span,
}

tokio::task_local! {
    static CURRENT: Current;
}

impl Current {
    fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        let span = self.log.clone();
        // Each wrapper moves what it wraps, and unoptimised each keeps the stack for it.
        CURRENT.scope(self, Box::pin(future).instrument(span))
    }

    fn enter<R>(self, work: impl FnOnce() -> R) -> R {
        let span = self.log.clone();
        CURRENT.sync_scope(self, || span.in_scope(work))
    }
}

/// The request that this is done for, if it is done for one.
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|current| current.context).ok()
}

/// Says of the span that this is done in what is known now, e.g. `berth.session.id`.
pub fn note(key: &'static str, value: impl fmt::Display) {
    let _ = CURRENT.try_with(|current| {
        if let Some(notes) = &current.notes {
            notes.lock().unwrap_or_else(PoisonError::into_inner).push((key, value.to_string()));
        }
    });
}

/// The same request for a future that goes on elsewhere. Its log span is the caller's to give.
pub(crate) fn inherit<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let current = CURRENT.try_with(Clone::clone).ok();
    let future = Box::pin(future);
    async move {
        match current {
            // What it notes is not the span's any more, which may be over.
            Some(current) => CURRENT.scope(Current { notes: None, ..current }, future).await,
            None => future.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(context.request_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(context.is_sampled());
        let child = context.child();
        assert_ne!(child, context);
        assert_eq!((child.trace, child.sampled), (context.trace, true));
        // Of a later version: what we know of it counts.
        let later = format!("cc{}-what-the-future-says", &EXAMPLE[2..]);
        assert_eq!(later.parse(), Ok(context));
        // Flags that we don't know are not passed on.
        assert_eq!(format!("{}03", &EXAMPLE[..53]).parse(), Ok(context));
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let no = |text: &str| assert_eq!(text.parse::<TraceContext>(), Err(NoTraceContext), "{text:?}");
        for cut in 0..EXAMPLE.len() {
            no(&EXAMPLE[..cut]);
        }
        no(&format!("{EXAMPLE}-more"));
        no(&format!("{EXAMPLE} "));
        no(&EXAMPLE.to_uppercase());
        no(&format!("ff{}", &EXAMPLE[2..]));
        no(&format!("cc{}.", &EXAMPLE[2..]));
        no("00-00000000000000000000000000000000-00f067aa0ba902b7-01");
        no("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01");
        no(&EXAMPLE.replace('-', "_"));
        no(&"ä".repeat(28));
        no(&EXAMPLE.replace('4', "+"));
    }

    #[test]
    fn a_tasks_span_is_in_its_id() {
        let task = TaskId::from_u128(0x0192_aaaa_7bbb_8ccc_0011_2233_4455_6677);
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(
            context.of_task(task).to_string(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0011223344556677-01"
        );
        assert!(task.to_string().ends_with("0011223344556677"));
    }

    /// Red without `inherit` in `spawn`: what runs in the background is nobody's.
    #[tokio::test]
    async fn what_is_started_for_a_request_is_of_it() {
        assert_eq!(current(), None);
        let context = TraceContext::begin();
        let seen = context
            .scope(async {
                let (told, seen) = tokio::sync::oneshot::channel();
                crate::spawn::spawn("test", async move {
                    let _ = told.send(current());
                });
                seen.await.unwrap()
            })
            .await;
        assert_eq!(seen, Some(context));
        assert_eq!(context.enter(current), Some(context));
        assert_eq!(current(), None);
    }
}
