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
//! for a day. (Not sooner: it would end work that goes on. A session that nobody uses ends by its own idle timeout.) From
//! 2026-07-28 on there are no conversations: each request stands alone, and must say its session.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Server,
    reached::Reached,
    sessions::{Own, Sessions, TTL},
};
use crate::http::{
    Body, Patience, Received, bearer,
    callers::{Caller, Callers, Dial},
    empty, plain, text, unauthorized,
};

/// Where it is served.
pub const PATH: &str = "/mcp";
/// Conversations at once, of all tokens together.
const CONVERSATIONS: usize = 1000;
/// And of one: who never ends any takes no more than this.
const CONVERSATIONS_EACH: usize = 200;
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
    token: String,
    /// It has no conversation.
    alone: bool,
    reached: Option<Reached>,
}

/// What stands before the protocol.
pub struct Gate {
    mcp: StreamableHttpService<Server, LocalSessionManager>,
    conversations: Arc<LocalSessionManager>,
    owners: Arc<Mutex<Owners>>,
    origins: Vec<String>,
    /// Clients whose sessions are still to be ended.
    clients: TaskTracker,
}

impl Gate {
    pub fn new(dial: Dial, hosts: Vec<String>, origins: Vec<String>, stop: &CancellationToken) -> Self {
        let mut manager = LocalSessionManager::default();
        manager.session_config.keep_alive = Some(TTL);
        let (conversations, clients) = (Arc::new(manager), TaskTracker::new());
        let mut config = StreamableHttpServerConfig::default();
        config.cancellation_token = stop.child_token();
        config.max_request_body_bytes = LONGEST_MESSAGE;
        config.allowed_hosts.extend(hosts);
        let config = config.with_allowed_origins(origins.clone()).enforce_origin_validation();
        let factory = server(dial, clients.clone());
        let mcp = StreamableHttpService::new(factory, Arc::clone(&conversations), config);
        Self { mcp, conversations, owners: Arc::default(), origins, clients }
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
            Some(id) if !self.owners().is_of(id, &caller.token) => {
                plain(StatusCode::NOT_FOUND, "there is no such conversation: begin one with `initialize`")
            }
            Some(_) => self.speak(&caller, request).await,
            None => self.begin(&caller, request).await,
        };
        caller.answered(response)
    }

    /// A request outside of any conversation may begin one, whatever its header says of versions.
    async fn begin(&self, caller: &Caller, request: Request<Received>) -> Response<Body> {
        let live =
            self.conversations.sessions.read().await.keys().map(|id| id.to_string()).collect::<Vec<_>>();
        let Some(reserved) = Reserved::new(&self.owners, &caller.token, &live) else {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many conversations: end some with DELETE, or try again later",
            );
        };
        let response = self.speak(caller, request).await;
        reserved.becomes(text(response.headers(), CONVERSATION));
        response
    }

    async fn speak(&self, caller: &Caller, request: Request<Received>) -> Response<Body> {
        let headers = request.headers();
        let (alone, reached) = (alone(headers), Reached::of(headers));
        let asking = Asking { token: caller.token.clone(), alone, reached };
        let request = request.map(|body| PATIENCE.with(body));
        let ends = request.method() == Method::DELETE;
        let mut response = CALLER.scope(asking, self.mcp.handle(request)).await;
        // It has been ended, and is not only about to be: some clients take any other answer for a failure.
        if ends && response.status() == StatusCode::ACCEPTED {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    }

    /// The transport ends its conversations when it is told to stop; each then ends its sessions.
    pub async fn end(&self) {
        self.clients.close();
        if tokio::time::timeout(ENDING, self.clients.wait()).await.is_err() {
            tracing::warn!("sessions of MCP clients were not ended in time; their idle timeouts end them");
        }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        locked(&self.owners)
    }
}

/// Makes the server of a conversation, or of a request that stands alone.
fn server(dial: Dial, clients: TaskTracker) -> impl Fn() -> io::Result<Server> + Send + Sync + 'static {
    move || {
        let asking = CALLER.try_with(Asking::clone).map_err(io::Error::other)?;
        let own = if asking.alone { Own::MustSay } else { Own::usual() };
        let sessions = Sessions::reached_at(dial(asking.token), own, asking.reached);
        Ok(Server::new(sessions).ended_with(&clients))
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

/// Whose each conversation is.
#[derive(Default)]
struct Owners {
    of: HashMap<String, String>,
    /// How many a token is beginning.
    beginning: HashMap<String, usize>,
}

impl Owners {
    fn is_of(&self, conversation: &str, token: &str) -> bool {
        self.of.get(conversation).is_some_and(|owner| same(owner.as_bytes(), token.as_bytes()))
    }

    fn has_room(&self, token: &str) -> bool {
        let beginning: usize = self.beginning.values().sum();
        let of_token = self.of.values().filter(|owner| *owner == token).count();
        self.of.len() + beginning < CONVERSATIONS
            && of_token + self.beginning.get(token).copied().unwrap_or(0) < CONVERSATIONS_EACH
    }
}

/// Room for one more conversation, counted from before it begins: else all that begin at once would find the same room.
struct Reserved {
    owners: Arc<Mutex<Owners>>,
    token: String,
}

impl Reserved {
    /// `live`: the conversations that there are. `None`: there is no room.
    fn new(owners: &Arc<Mutex<Owners>>, token: &str, live: &[String]) -> Option<Self> {
        let mut all = locked(owners);
        all.of.retain(|id, _| live.contains(id));
        if !all.has_room(token) {
            return None;
        }
        *all.beginning.entry(token.to_owned()).or_default() += 1;
        Some(Self { owners: Arc::clone(owners), token: token.to_owned() })
    }

    fn becomes(self, conversation: Option<&str>) {
        if let Some(id) = conversation {
            locked(&self.owners).of.insert(id.to_owned(), self.token.clone());
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut all = locked(&self.owners);
        if let Some(count) = all.beginning.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                all.beginning.remove(&self.token);
            }
        }
    }
}

fn locked(owners: &Mutex<Owners>) -> MutexGuard<'_, Owners> {
    owners.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes as long whatever differs.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when what begins is not counted, or when one token may take all the room.
    #[test]
    fn a_token_has_its_own_bound_and_what_begins_counts() {
        let owners = Arc::new(Mutex::new(Owners::default()));
        let begin = |token: &str| {
            let live: Vec<String> = locked(&owners).of.keys().cloned().collect();
            Reserved::new(&owners, token, &live)
        };
        let held: Vec<_> = (0..CONVERSATIONS_EACH).map(|_| begin("a").expect("room")).collect();
        assert!(begin("a").is_none(), "those that begin count");
        for (n, reserved) in held.into_iter().enumerate() {
            reserved.becomes(Some(&format!("a{n}")));
        }
        assert!(begin("a").is_none(), "and so do those that have begun");
        assert!(begin("b").is_some(), "another token has room");
        assert!(locked(&owners).is_of("a0", "a") && !locked(&owners).is_of("a0", "b"));
        assert!(Reserved::new(&owners, "a", &["a0".to_owned()]).is_some(), "those that ended do not count");
        assert_eq!(locked(&owners).of.len(), 1);
        for token in 0..CONVERSATIONS {
            if let Some(reserved) = begin(&format!("t{token}")) {
                reserved.becomes(Some(&format!("t{token}")));
            }
        }
        assert_eq!(locked(&owners).of.len(), CONVERSATIONS);
        assert!(begin("one more").is_none());
        assert!(locked(&owners).beginning.is_empty());
    }
}
