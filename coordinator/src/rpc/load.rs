//! Too many calls at once: what is one too many is told so at once, and does not wait. Room is kept beyond that for what
//! must get through just then: a worker's link, health, and calls that end something.
//!
//! What is counted are calls that have no answer yet, since those are what piles up in the driver's queue and waits for
//! workers. A stream that has begun is bounded by its connection: so many streams each, and so many connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use berth_net::Seldom;
use berth_proto::{Error, Reason};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};

use crate::metrics::Metrics;

/// Calls beyond the bound, of those that must get through.
const RESERVE: usize = 1024;
/// What must get through.
const VITAL: [&str; 11] = [
    "/berth.v1.WorkerService/",
    "/grpc.health.v1.Health/",
    "/berth.v1.SessionService/DeleteSession",
    "/berth.v1.TaskService/CancelTask",
    "/berth.v1.TaskService/SignalTask",
    "/berth.v1.InterpreterService/InterruptContext",
    "/berth.v1.InterpreterService/DeleteContext",
    "/berth.v1.AdminService/",
    "/berth.v1.IdentityService/",
    "/berth.v1.AuditService/",
    "/berth.v1.SecretService/",
];

/// How many calls there are, and may be. Made into a layer around all services.
#[derive(Clone)]
pub struct Room {
    most: usize,
    open: Arc<AtomicUsize>,
    shed: Arc<Seldom>,
    metrics: Arc<Metrics>,
}

impl Room {
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self { most, open: Arc::default(), shed: Arc::default(), metrics }
    }

    fn begin(&self, path: &str) -> Option<Call> {
        let is_vital = VITAL.iter().any(|vital| path.starts_with(vital));
        let most = if is_vital { self.most.saturating_add(RESERVE) } else { self.most };
        // Counted first: two that come together can't both be the last.
        let call = Call(self.open.clone());
        (self.open.fetch_add(1, Ordering::Relaxed) < most).then_some(call)
    }
}

/// A call without an answer.
struct Call(Arc<AtomicUsize>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> tower::Layer<S> for Room {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { room: self.clone(), inner }
    }
}

/// Services with a bound on their calls.
#[derive(Clone)]
pub struct Bounded<S> {
    room: Room,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Bounded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<http::Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(call) = self.room.begin(request.uri().path()) else {
            if let Some(times) = self.room.shed.tell() {
                tracing::warn!(times, most = self.room.most, "calls are refused: too many at once");
            }
            let most = self.room.most;
            let refused =
                Error::unavailable(Reason::Overloaded, format!("more than {most} calls wait for an answer"));
            let answer = Status::from(refused).into_http();
            self.room.metrics.shed(request.uri().path(), &answer);
            return Box::pin(async move { Ok(answer) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _call = call;
            answer.await
        })
    }
}
