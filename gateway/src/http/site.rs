//! Which request is for which protocol.

use http::{Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::{
    Body, Received,
    callers::{Callers, Dial},
    plain,
};
use crate::{
    e2b::{self, E2b},
    mcp, rest,
};

/// What is served, and to whom.
pub struct Settings {
    pub dial: Dial,
    /// Names by which the gateway is reached, beside loopback's.
    pub hosts: Vec<String>,
    /// Web pages that may call it.
    pub origins: Vec<String>,
    pub e2b: e2b::Settings,
}

/// All that is served over HTTP.
pub struct Site {
    callers: Callers,
    mcp: mcp::http::Gate,
    e2b: E2b,
}

impl Site {
    /// `stop` ends what lasts: streams of events.
    pub fn new(settings: Settings, stop: &CancellationToken) -> Self {
        let Settings { dial, hosts, origins, e2b } = settings;
        let callers = Callers::new(dial.clone());
        Self { callers, mcp: mcp::http::Gate::new(dial, hosts, origins, stop), e2b: E2b::new(e2b) }
    }

    pub(super) async fn handle(&self, request: Request<Received>) -> Response<Body> {
        // First: below a sandbox's own host name every path is the sandbox's.
        if self.e2b.takes(&request) {
            return self.e2b.handle(&self.callers, request).await;
        }
        match request.uri().path() {
            mcp::http::PATH => self.mcp.handle(&self.callers, request).await,
            path if path.starts_with(rest::PATH) => rest::handle(&self.callers, request).await,
            _ => plain(
                StatusCode::NOT_FOUND,
                "MCP is served at /mcp, plain HTTP below /v1 (/v1/openapi.json), E2B's API at /sandboxes",
            ),
        }
    }

    /// Ends what was made for clients.
    pub(super) async fn end(&self) {
        self.mcp.end().await;
    }
}
