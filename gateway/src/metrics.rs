//! What the gateway counts and measures. All of it is declared here; docs/metrics.md has it as a table.
//!
//! A request is told apart by the interface that it is for, and by no path: paths hold ids.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use berth_metrics::{Counters, Gauge, Gauges, Histograms, LATENCY, Registry};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// What a request can be for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interface {
    Mcp,
    Rest,
    E2b,
    /// A server in a session.
    Ports,
    /// What the gateway itself answers.
    Other,
}

impl Interface {
    const ALL: [Self; 5] = [Self::Mcp, Self::Rest, Self::E2b, Self::Ports, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Mcp => "mcp",
            Self::Rest => "rest",
            Self::E2b => "e2b",
            Self::Ports => "ports",
            Self::Other => "other",
        }
    }
}

/// See the module.
pub struct Metrics {
    registry: Registry,
    requests: Counters<2>,
    request_time: Histograms<1>,
    requests_open: Gauges<1>,
    connections: Gauge,
    conversations: Gauge,
    /// As they stand.
    open: [AtomicU64; Interface::ALL.len()],
    connected: AtomicU64,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut r = Registry::default();
        Self {
            requests: r.counters(
                "berth_http_requests_total",
                &["interface", "status"],
                "HTTP requests, by the class of the status with which their answer began (2xx, 4xx, ...)",
            ),
            request_time: r.histograms(
                "berth_http_request_duration_seconds",
                &["interface"],
                LATENCY,
                "Time from an HTTP request's head to the beginning of its answer",
            ),
            requests_open: r.gauges(
                "berth_http_requests_open",
                &["interface"],
                "HTTP requests whose answer is not over, streams included",
            ),
            connections: r.gauge("berth_http_connections", "Connections to the HTTP port"),
            conversations: r.gauge("berth_mcp_conversations", "MCP conversations that are in memory"),
            open: Default::default(),
            connected: AtomicU64::new(0),
            registry: r,
        }
    }
}

impl AsRef<Registry> for Metrics {
    fn as_ref(&self) -> &Registry {
        &self.registry
    }
}

impl Metrics {
    /// Shows how it stands. `None`: the conversations can't be counted just now.
    pub fn look(&self, conversations: Option<usize>) {
        for (interface, open) in Interface::ALL.into_iter().zip(&self.open) {
            self.requests_open.set([interface.name()], open.load(Ordering::Relaxed) as f64);
        }
        self.connections.set(self.connected.load(Ordering::Relaxed) as f64);
        conversations.into_iter().for_each(|count| self.conversations.set(count as f64));
    }

    /// A connection, until what is returned is dropped.
    pub(crate) fn connection(self: &Arc<Self>) -> Held {
        self.connected.fetch_add(1, Ordering::Relaxed);
        Held { metrics: Arc::clone(self), of: None }
    }

    /// A request begins.
    pub(crate) fn request(self: &Arc<Self>, interface: Interface) -> Request {
        self.open[interface as usize].fetch_add(1, Ordering::Relaxed);
        let held = Held { metrics: Arc::clone(self), of: Some(interface) };
        Request { held, interface, begun: Instant::now() }
    }
}

/// Counts as open until it is dropped.
pub(crate) struct Held {
    metrics: Arc<Metrics>,
    /// `None`: a connection.
    of: Option<Interface>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let open = match self.of {
            None => &self.metrics.connected,
            Some(interface) => &self.metrics.open[interface as usize],
        };
        open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request under way.
pub(crate) struct Request {
    held: Held,
    interface: Interface,
    begun: Instant,
}

impl Request {
    /// Its answer begins; it is open until that is over.
    pub fn answered<B>(self, response: Response<B>) -> Response<Counted<B>> {
        let metrics = &self.held.metrics;
        metrics.requests.add([self.interface.name(), class(response.status())], 1);
        metrics.request_time.took([self.interface.name()], self.begun.elapsed());
        response.map(|body| Counted { body, _held: self.held })
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

/// An answer's body, which counts as open.
pub(crate) struct Counted<B> {
    body: B,
    _held: Held,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
