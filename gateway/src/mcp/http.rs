//! MCP over HTTP: the streamable transport at `/mcp`, for clients that start nothing.
//!
//! `rmcp` speaks the protocol. What is ours stands before it:
//!
//! - **Who.** Each request carries `Authorization: Bearer …`, and its calls go to the coordinator with that very token; so
//!   tenants hold here as everywhere. A conversation (`Mcp-Session-Id`) belongs to the token that began it: with another
//!   one it is not found.
//! - **From where.** A `Host` that is not ours is refused, and so is any `Origin` that was not allowed: a page in a browser
//!   must not reach a gateway on its user's machine. A page that was allowed is told so, as browsers ask for it.
//! - **How much.** Conversations are bounded, for each token and in all, and so is the size of a message.
//!
//! Up to 2025-11-25 a conversation is a client, with a session of its own that ends with it: by DELETE, or when nothing came
//! for a day. (Not sooner: it would end work that goes on. A session that nobody uses ends by its own idle timeout.) It goes on
//! after this process was killed or stopped: see [`super::conversations`]. From 2026-07-28 on there are no conversations: each
//! request stands alone, and must say its session.

use std::{convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration};

use berth_proto::spawn::spawn;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, combinators::BoxBody};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Server,
    conversations::{Conversations, Link, QUIET, Store},
    reached::Reached,
    sessions::{Own, Sessions},
};
use crate::http::{
    Body, Patience, Received, Timed, bearer,
    callers::{Caller, Callers, Dial},
    empty, plain, text, unauthorized,
};

/// Where it is served.
pub const PATH: &str = "/mcp";
/// Bytes of one message: a file of 16 MiB in base64, and some.
const LONGEST_MESSAGE: usize = 24 << 20;
/// For a message to come in.
const PATIENCE: Patience = Patience { each: Duration::from_secs(30), whole: Some(Duration::from_secs(60)) };
/// Time to end the sessions of clients at a stop.
const ENDING: Duration = Duration::from_secs(20);
const CONVERSATION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
/// The first version without conversations.
const ALONE_SINCE: &str = "2026-07-28";

tokio::task_local! {
    /// Whose request is being handled, for the server that is made for it.
    static CALLER: Asking;
}

#[derive(Clone)]
struct Asking {
    link: Arc<Link>,
    /// It has no conversation.
    alone: bool,
    reached: Option<Reached>,
}

/// What becomes of conversations when this process stops.
pub struct Lasting {
    /// Where they are kept, in a directory that is there.
    pub dir: PathBuf,
    /// They go on after a stop, not only after a crash, since their sessions do.
    pub over_a_stop: bool,
}

/// What stands before the protocol.
pub struct Gate {
    mcp: StreamableHttpService<Server, LocalSessionManager>,
    /// Those in memory.
    awake: Arc<LocalSessionManager>,
    conversations: Arc<Conversations>,
    origins: Vec<String>,
    dial: Dial,
    /// Clients whose sessions are still to be ended.
    clients: TaskTracker,
}

impl Gate {
    pub fn new(
        dial: Dial,
        (hosts, origins): (Vec<String>, Vec<String>),
        lasting: Lasting,
        stop: &CancellationToken,
    ) -> Self {
        let mut manager = LocalSessionManager::default();
        manager.session_config.keep_alive = Some(QUIET);
        let (awake, clients) = (Arc::new(manager), TaskTracker::new());
        let conversations = Conversations::open(lasting.dir.join("conversations"));
        let link = || CALLER.try_with(|asking| Arc::clone(&asking.link)).ok();
        let mut config = StreamableHttpServerConfig::default();
        config.cancellation_token = stop.child_token();
        config.max_request_body_bytes = LONGEST_MESSAGE;
        config.allowed_hosts.extend(hosts);
        let mut config = config.with_allowed_origins(origins.clone()).enforce_origin_validation();
        config.session_store = Some(Arc::new(Store { all: Arc::clone(&conversations), link }));
        let pause = lasting.over_a_stop.then(|| stop.clone());
        let factory = server(Arc::clone(&dial), clients.clone(), pause);
        let mcp = StreamableHttpService::new(factory, Arc::clone(&awake), config);
        Self { mcp, awake, conversations, origins, dial, clients }
    }

    /// Counts the conversations in memory; `None`: not just now.
    pub fn counter(&self) -> impl Fn() -> Option<usize> + Send + Sync + 'static {
        let awake = Arc::clone(&self.awake);
        move || awake.sessions.try_read().ok().map(|sessions| sessions.len())
    }

    pub async fn handle(&self, callers: &Callers, request: Request<Received>) -> Response<Body> {
        let origin = text(request.headers(), header::ORIGIN.as_str())
            .filter(|origin| self.origins.iter().any(|allowed| allowed == origin))
            .map(str::to_owned);
        let mut response = if request.method() == Method::OPTIONS && origin.is_some() {
            preflight()
        } else {
            self.answer(callers, request).await
        };
        if let Some(origin) = origin.and_then(|origin| HeaderValue::try_from(origin).ok()) {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(CONVERSATION));
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        }
        response
    }

    async fn answer(&self, callers: &Callers, request: Request<Received>) -> Response<Body> {
        let Some(token) = bearer(request.headers()) else {
            return unauthorized("send `Authorization: Bearer <token>` (`berth token create`)");
        };
        let caller = match callers.enter(token).await {
            Ok(caller) => caller,
            Err(refused) => return refused.into(),
        };
        let response = match text(request.headers(), CONVERSATION) {
            Some(id) if !self.conversations.is_of(id, &caller.token).await => {
                plain(StatusCode::NOT_FOUND, "there is no such conversation: begin one with `initialize`")
            }
            Some(id) => {
                let id = id.to_owned();
                match self.conversations.asleep(&id).await {
                    Some(waking) => self.wake(&caller, waking, request).await,
                    None => self.speak(&caller, request).await,
                }
            }
            None => self.begin(&caller, request).await,
        };
        caller.answered(response)
    }

    /// A request outside of any conversation may begin one, whatever its header says of versions.
    async fn begin(&self, caller: &Caller, request: Request<Received>) -> Response<Body> {
        let live = self.awake.sessions.read().await.keys().map(|id| id.to_string()).collect::<Vec<_>>();
        let Some(_reserved) = self.conversations.reserve(&caller.token, &live) else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many conversations: end some with DELETE, or try again later",
            );
        };
        self.speak(caller, request).await
    }

    async fn speak(&self, caller: &Caller, request: Request<Received>) -> Response<Body> {
        let (asking, request) = asked(caller, request);
        let ends = request.method() == Method::DELETE;
        let response = CALLER.scope(asking.clone(), self.mcp.handle(request)).await;
        self.said(&asking, ends, response)
    }

    /// As [`Self::speak`], to a conversation that sleeps. Its waking goes on where the client does not wait for it: half awake it
    /// would be good for nothing.
    async fn wake(
        &self,
        caller: &Caller,
        waking: OwnedMutexGuard<()>,
        request: Request<Received>,
    ) -> Response<Body> {
        let (asking, request) = asked(caller, request);
        let ends = request.method() == Method::DELETE;
        let (mcp, (tell, told)) = (self.mcp.clone(), oneshot::channel());
        let handled = CALLER.scope(asking.clone(), async move { mcp.handle(request).await });
        spawn("mcp conversation wakes", async move {
            let _ = tell.send(handled.await);
            drop(waking);
        });
        match told.await {
            Ok(response) => self.said(&asking, ends, response),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the conversation could not be gone on with"),
        }
    }

    fn said(
        &self,
        asking: &Asking,
        ends: bool,
        mut response: Response<BoxBody<Bytes, Infallible>>,
    ) -> Response<Body> {
        // It has been ended, and is not only about to be: some clients take any other answer for a failure.
        if ends && response.status() == StatusCode::ACCEPTED {
            *response.status_mut() = StatusCode::NO_CONTENT;
            // One that slept has nobody who would end its sessions.
            let sessions = sessions_of(&self.dial, asking);
            let link = Arc::clone(&asking.link);
            spawn(
                "mcp sleeping client's end",
                self.clients.track_future(async move {
                    sessions.belong_to(link).await;
                    sessions.end().await;
                }),
            );
        }
        response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    }

    /// The transport ends its conversations when it is told to stop; each that does not outlive that then ends its sessions.
    pub async fn end(&self) {
        self.clients.close();
        if tokio::time::timeout(ENDING, self.clients.wait()).await.is_err() {
            tracing::warn!("sessions of MCP clients were not ended in time; their idle timeouts end them");
        }
    }
}

/// What `rmcp` is asked, and by whom.
fn asked(caller: &Caller, request: Request<Received>) -> (Asking, Request<Timed<Received>>) {
    let link = Link::new(&caller.token);
    let headers = request.headers();
    let asking = Asking { link: Arc::clone(&link), alone: alone(headers), reached: Reached::of(headers) };
    let mut request = request.map(|body| PATIENCE.with(body));
    request.extensions_mut().insert(link);
    (asking, request)
}

fn sessions_of(dial: &Dial, asking: &Asking) -> Arc<Sessions> {
    let own = if asking.alone { Own::MustSay } else { Own::usual() };
    Sessions::reached_at(dial(asking.link.token.clone()), own, asking.reached.clone())
}

/// Makes the server of a conversation, or of a request that stands alone.
fn server(
    dial: Dial,
    clients: TaskTracker,
    pause: Option<CancellationToken>,
) -> impl Fn() -> io::Result<Server> + Send + Sync + 'static {
    move || {
        let asking = CALLER.try_with(Asking::clone).map_err(io::Error::other)?;
        Ok(Server::new(sessions_of(&dial, &asking)).ended_with(&clients, pause.clone()))
    }
}

fn alone(headers: &HeaderMap) -> bool {
    text(headers, VERSION).is_some_and(|version| version >= ALONE_SINCE)
}

/// What a browser asks before it sends what it was told to.
fn preflight() -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    let allowed = "authorization, content-type, accept, last-event-id, mcp-session-id, mcp-protocol-version, mcp-method, mcp-name";
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}
