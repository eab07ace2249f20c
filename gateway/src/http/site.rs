//! Which request is for which protocol.

use std::sync::Arc;

use http::{Request, Response, StatusCode, header};
use tokio_util::sync::CancellationToken;

use super::{
    Body, Received,
    callers::{Callers, Dial},
    plain, text,
};
use crate::{
    dashboard,
    e2b::{self, E2b},
    mcp,
    metrics::{Interface, Metrics},
    rest,
};

/// What is served, and to whom.
pub struct Settings {
    pub dial: Dial,
    /// Names by which the gateway is reached, beside loopback's.
    pub hosts: Vec<String>,
    /// Web pages that may call it.
    pub origins: Vec<String>,
    /// What becomes of MCP's conversations when this process ends.
    pub lasting: mcp::http::Lasting,
    pub e2b: e2b::Settings,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// All that is served over HTTP.
pub struct Site {
    callers: Callers,
    mcp: mcp::http::Gate,
    e2b: E2b,
    /// Names by which the gateway is reached behind a proxy that does not pass them on, and origins that may call it.
    names: (Vec<String>, Vec<String>),
    metrics: Arc<Metrics>,
}

impl Site {
    /// `stop` ends what lasts: streams of events.
    pub fn new(settings: Settings, stop: &CancellationToken) -> Self {
        let Settings { dial, hosts, origins, lasting, e2b, metrics } = settings;
        let callers = Callers::new(dial.clone());
        let names = (hosts.clone(), origins.clone());
        let mcp = mcp::http::Gate::new(dial, (hosts, origins), lasting, stop);
        Self { callers, mcp, e2b: E2b::new(e2b), names, metrics }
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Makes its metrics say how it stands now.
    pub fn observer(&self) -> impl Fn() + Send + Sync + 'static {
        let (metrics, conversations) = (Arc::clone(&self.metrics), self.mcp.counter());
        move || metrics.look(conversations())
    }

    /// What a request is for, for the metrics.
    pub(super) fn interface(&self, request: &Request<Received>) -> Interface {
        if self.e2b.takes(request) {
            return if e2b::for_port(request) { Interface::Ports } else { Interface::E2b };
        }
        match request.uri().path() {
            mcp::http::PATH => Interface::Mcp,
            path if path.starts_with(rest::PATH) => Interface::Rest,
            _ => Interface::Other,
        }
    }

    /// (What is boxed here and below: unoptimised, a function that waits keeps the stack for all that it may wait for, and a
    /// thread's was used up.)
    pub(super) async fn handle(&self, request: Request<Received>) -> Response<Body> {
        // First: below a sandbox's own host name every path is the sandbox's.
        if self.e2b.takes(&request) {
            return Box::pin(self.e2b.handle(&self.callers, request)).await;
        }
        let path = request.uri().path();
        let file = dashboard::find(path);
        if (file.is_some() || path.starts_with(rest::PATH)) && self.is_foreign(&request) {
            return plain(
                StatusCode::FORBIDDEN,
                "pages of other origins may not call this (BERTH_HTTP_ORIGINS names those that may)",
            );
        }
        if let Some(file) = file {
            return dashboard::answer(file, &request);
        }
        match path {
            mcp::http::PATH => Box::pin(self.mcp.handle(&self.callers, request)).await,
            path if path.starts_with(rest::PATH) => Box::pin(rest::handle(&self.callers, request)).await,
            _ => plain(
                StatusCode::NOT_FOUND,
                "the dashboard is at /, MCP is served at /mcp, plain HTTP below /v1 (/v1/openapi.json), E2B's API at /sandboxes",
            ),
        }
    }

    /// Whether a browser sent it for a page that is not ours. Ours has the origin that it was asked for at; what is no
    /// browser says no origin.
    fn is_foreign(&self, request: &Request<Received>) -> bool {
        let Some(origin) = request.headers().get(header::ORIGIN) else { return false };
        let Ok(origin) = origin.to_str() else { return true };
        let (hosts, origins) = &self.names;
        let host = text(request.headers(), header::HOST.as_str());
        is_foreign(origin, host, hosts, origins)
    }

    /// Ends what was made for clients.
    pub(super) async fn end(&self) {
        self.mcp.end().await;
    }
}

fn is_foreign(origin: &str, host: Option<&str>, hosts: &[String], origins: &[String]) -> bool {
    let Some(("http" | "https", authority)) = origin.split_once("://") else { return true };
    let same = |name: &str| name.eq_ignore_ascii_case(authority);
    let named = hosts.iter().any(|name| same(name)) || origins.iter().any(|known| known == origin);
    !named && !host.is_some_and(same)
}

#[cfg(test)]
mod tests {
    use super::is_foreign;

    #[test]
    fn a_page_of_our_own_passes_and_another_does_not() {
        let hosts = ["berth.example.org".to_owned()];
        let origins = ["https://tools.example.org".to_owned()];
        for (origin, host, foreign) in [
            ("http://127.0.0.1:8080", Some("127.0.0.1:8080"), false),
            ("https://Gateway.example.org", Some("gateway.example.org"), false),
            ("https://berth.example.org", Some("127.0.0.1:8080"), false),
            ("https://tools.example.org", Some("127.0.0.1:8080"), false),
            ("http://tools.example.org", Some("127.0.0.1:8080"), true),
            ("http://evil.example.org", Some("127.0.0.1:8080"), true),
            ("http://127.0.0.1:9090", Some("127.0.0.1:8080"), true),
            ("http://127.0.0.1:8080", None, true),
            ("null", Some("null"), true),
            ("", Some(""), true),
        ] {
            assert_eq!(is_foreign(origin, host, &hosts, &origins), foreign, "{origin} at {host:?}");
        }
    }
}
