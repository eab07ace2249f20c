//! One hop of a request: from its coming to the end of its answer. Where the process exports its spans, that is one.

use std::{
    fmt,
    future::Future,
    sync::{OnceLock, PoisonError},
    time::SystemTime,
};

use http::HeaderMap;
use tokio::time::Instant;

use super::{Current, HEADER, Notes, TraceContext, current};
use crate::world;

/// Who a hop belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Clients come here: it decides whether a trace that nobody has decided about is exported.
    Entry,
    /// Behind one of those.
    Inner,
    /// The last: it makes no span of its own, and what it starts belongs to its caller's.
    Last,
}

/// What a span is, in the words of OpenTelemetry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Internal,
    Server,
}

/// A span that is over.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace_id: u128,
    pub span_id: u64,
    /// `None`: the trace begins with it.
    pub parent: Option<u64>,
    pub name: String,
    pub kind: Kind,
    pub begun: SystemTime,
    pub ended: SystemTime,
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

struct Recorder {
    /// Of all trace ids these are exported.
    below: u64,
    sink: Box<dyn Fn(Span) + Send + Sync>,
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// From now on spans go to `sink`, which must not wait. `ratio`, 0 to 1: of the traces that begin here so many. Once a
/// process; `false`: they go elsewhere already.
pub fn record(ratio: f64, sink: impl Fn(Span) + Send + Sync + 'static) -> bool {
    RECORDER.set(Recorder { below: threshold(ratio), sink: Box::new(sink) }).is_ok()
}

/// As OpenTelemetry's `TraceIdRatioBased` does it, so that all who ask say the same of one trace.
fn threshold(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * (1u64 << 63) as f64) as u64
}

fn takes(below: u64, trace: u128) -> bool {
    (trace as u64) >> 1 < below
}

/// See the module. Ends when it is dropped.
pub struct Hop {
    name: String,
    context: TraceContext,
    parent: Option<u64>,
    kind: Kind,
    begun: (SystemTime, Instant),
    current: Current,
    failed: Option<String>,
}

impl Hop {
    /// A request has come with these headers. `name`: what it asks for.
    pub fn arrived(role: Role, headers: &HeaderMap, name: &str) -> Self {
        let sent = headers.get(HEADER).and_then(|value| value.to_str().ok());
        Self::sent(role, sent.and_then(|text| text.parse().ok()), name)
    }

    /// The same for what names its context elsewhere.
    pub fn sent(role: Role, sent: Option<TraceContext>, name: &str) -> Self {
        Self::new(role, Kind::Server, sent, name)
    }

    /// A part of what is done now. `None`: it is done for nobody's request.
    pub fn within(name: &str) -> Option<Self> {
        Some(Self::new(Role::Inner, Kind::Internal, Some(current()?), name))
    }

    fn new(role: Role, kind: Kind, sent: Option<TraceContext>, name: &str) -> Self {
        let mut context = match (sent, role) {
            (Some(sent), Role::Last) => sent,
            (Some(sent), _) => sent.child(),
            (None, _) => TraceContext::begin(),
        };
        let recorder = RECORDER.get().filter(|_| role != Role::Last);
        if let (Some(recorder), Role::Entry) = (recorder, role) {
            context.sampled = context.sampled || takes(recorder.below, context.trace);
        }
        let recorded = recorder.is_some() && context.sampled;
        Self {
            name: if recorded { name.to_owned() } else { String::new() },
            context,
            parent: sent.map(|sent| sent.span),
            kind,
            begun: (world::now(), Instant::now()),
            current: context.noted(recorded.then(Notes::default)),
            failed: None,
        }
    }

    /// Under which all that is done here goes on.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// How long it lasts already.
    pub fn elapsed(&self) -> std::time::Duration {
        self.begun.1.elapsed()
    }

    /// What is done in it.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.current.clone().scope(future)
    }

    /// The same for what does not wait.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        self.current.clone().enter(work)
    }

    /// What is known of it.
    pub fn note(&self, key: &'static str, value: impl fmt::Display) {
        if let Some(notes) = &self.current.notes {
            notes.lock().unwrap_or_else(PoisonError::into_inner).push((key, value.to_string()));
        }
    }

    /// It is of another kind than was thought.
    pub fn rename(&mut self, name: &str) {
        if self.current.notes.is_some() {
            name.clone_into(&mut self.name);
        }
    }

    /// It does not do what it was to do.
    pub fn fail(&mut self, why: impl Into<String>) {
        if self.current.notes.is_some() {
            self.failed = Some(why.into());
        }
    }
}

impl Drop for Hop {
    fn drop(&mut self) {
        let Some((recorder, notes)) = RECORDER.get().zip(self.current.notes.take()) else { return };
        let attributes = std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
        (recorder.sink)(Span {
            trace_id: self.context.trace,
            span_id: self.context.span,
            parent: self.parent,
            name: std::mem::take(&mut self.name),
            kind: self.kind,
            begun: self.begun.0,
            ended: self.begun.0 + self.begun.1.elapsed(),
            attributes,
            failed: self.failed.take(),
        });
    }
}

impl Span {
    /// Records a span that others have timed: of a request that was traced, if this process exports.
    pub fn tell(of: TraceContext, itself: TraceContext, make: impl FnOnce(Self) -> Self) {
        let Some(recorder) = RECORDER.get().filter(|_| of.sampled) else { return };
        let now = world::now();
        (recorder.sink)(make(Self {
            trace_id: itself.trace,
            span_id: itself.span,
            parent: Some(of.span),
            name: String::new(),
            kind: Kind::Internal,
            begun: now,
            ended: now,
            attributes: Vec::new(),
            failed: None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_traces_are_taken_and_the_same_ones_everywhere() {
        let traces: Vec<u128> = (0..4000).map(|_| TraceContext::begin().trace).collect();
        let taken = |ratio| traces.iter().filter(|trace| takes(threshold(ratio), **trace)).count();
        assert_eq!((taken(0.0), taken(1.0), taken(7.0)), (0, 4000, 4000));
        assert!((800..1200).contains(&taken(0.25)), "{}", taken(0.25));
        let (few, more) = (threshold(0.1), threshold(0.5));
        assert!(traces.iter().all(|trace| !takes(few, *trace) || takes(more, *trace)));
    }

    #[test]
    fn a_hop_goes_on_with_its_callers_trace() {
        let sent = TraceContext::begin();
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, sent.to_string().parse().unwrap());
        for role in [Role::Entry, Role::Inner] {
            let hop = Hop::arrived(role, &headers, "x");
            assert_eq!(hop.context().request_id(), sent.request_id());
            assert_ne!(hop.context(), sent);
            assert_eq!(hop.parent, Some(sent.span));
        }
        assert_eq!(Hop::arrived(Role::Last, &headers, "x").context(), sent);
        // What is no context is not one that all such calls share.
        headers.insert(HEADER, "00-nonsense".parse().unwrap());
        let (one, other) =
            (Hop::arrived(Role::Entry, &headers, "x"), Hop::arrived(Role::Entry, &headers, "x"));
        assert_ne!(one.context().request_id(), other.context().request_id());
        assert_eq!(one.parent, None);
    }

    #[test]
    fn there_is_no_part_of_nothing() {
        assert!(Hop::within("x").is_none());
        let context = TraceContext::begin();
        let hop = context.enter(|| Hop::within("x")).expect("a part of it");
        assert_eq!(hop.context().request_id(), context.request_id());
    }
}
