//! Sandboxes for E2B's unmodified SDKs: their control plane (REST) and their data plane (the Connect protocol, and files
//! over plain HTTP), over Berth's own calls. What is served, and what is not: docs/e2b.md.
//!
//! - [`control`], [`sandbox`], [`network`], [`snapshots`]: sandboxes are sessions, metadata are labels, a timeout is a TTL.
//! - [`metrics`]: what a sandbox takes.
//! - [`process`], [`filesystem`], [`files`], [`watch`]: in a sandbox, as tasks and files. [`interpreter`]: code that it runs.
//! - [`connect`], [`multipart`], [`body`], [`text`], [`paths`]: the wire.
//! - [`ports`], [`public`]: what listens in a sandbox, for who may, and for everybody.
//! - [`key`], [`access`], [`seal`]: who may. An API key is a token of Berth, and what a client shows a sandbox is sealed by us.
//! - [`pool`]: connections to the coordinator. [`problem`]: what went wrong, as the SDKs know it.
//!
//! Three rules. All that is kept here between two requests is connections, for signed URLs access tokens, for a moment
//! whose ports are open to everybody, what a watcher of the synchronous SDK has not asked for yet, and samples of sandboxes
//! whose metrics are asked for: so a gateway can be
//! stopped and started at any time. What Berth does not have is refused with the reason, and not left out in silence. And
//! nothing is held whole that may be of any size.

mod access;
mod body;
mod connect;
mod control;
mod files;
mod filesystem;
mod interpreter;
mod key;
mod metrics;
mod multipart;
mod network;
mod paths;
mod pool;
mod ports;
mod problem;
mod process;
mod public;
mod sandbox;
mod seal;
mod snapshots;
mod text;
mod watch;

use std::time::Duration;

use access::{Access, Signed};
use berth_client::{ConnectOptions, Session, SessionId};
use berth_proto::world;
use body::{Body, Pieces, Upload};
use control::{Call, Control};
use filesystem::Filesystem;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
pub use key::key;
pub(crate) use key::token as token_of_key;
use pool::{Lease, Pool};
use problem::Problem;
use process::{Message, Processes};
use public::Public;
use seal::Grant;
use watch::{Watchers, Watching};

use crate::http::{
    Received,
    callers::{Caller, Callers},
    text as header_text,
};

/// Where the SDKs find a sandbox's own services.
const ENVD_PORT: &str = "49983";
/// A unary call whose caller says of no limit.
const UNARY: Duration = Duration::from_secs(300);
const PROCESS: &str = "/process.Process/";
const FILESYSTEM: &str = "/filesystem.Filesystem/";
const FILES: &str = "/files";
const HEALTH: &str = "/health";

/// What this part of the gateway needs to know.
pub struct Settings {
    /// Without a token: each call brings its caller's.
    pub coordinator: ConnectOptions,
    /// What access tokens are sealed with: see [`Access::new`].
    pub secret: Vec<u8>,
    /// The operator's token, for one thing: see [`public`].
    pub operator: String,
}

/// See the module.
pub struct E2b {
    pool: Pool,
    access: Access,
    public: Public,
    watchers: Watchers,
    series: metrics::Series,
}

/// Which sandbox a request is for, and which port of it, as the request says.
#[derive(Clone)]
struct Target {
    sandbox: Option<String>,
    port: String,
}

impl E2b {
    pub fn new(settings: Settings) -> Self {
        let access = Access::new(&settings.secret);
        Self {
            pool: Pool::new(settings.coordinator),
            access,
            public: Public::new(settings.operator),
            watchers: Watchers::default(),
            series: metrics::Series::default(),
        }
    }

    /// Whether a request is one of these SDKs'.
    pub fn takes(&self, request: &Request<Received>) -> bool {
        let path = request.uri().path();
        let control = path.strip_prefix("/v2").unwrap_or(path);
        ["/sandboxes", "/snapshots", "/templates"].iter().any(|top| is_below(control, top))
            || path.starts_with(PROCESS)
            || path.starts_with(FILESYSTEM)
            || path == FILES
            || Target::of(request.headers()).is_some()
    }

    /// Boxed: what so many calls may wait for is large.
    pub fn handle<'a>(
        &'a self,
        callers: &'a Callers,
        request: Request<Received>,
    ) -> BoxFuture<'a, Response<Body>> {
        self.answer(callers, request).boxed()
    }

    async fn answer(&self, callers: &Callers, request: Request<Received>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let target = Target::of(&head.headers);
        // Of a server in a sandbox: nothing of it is for us to read.
        if let Some(target) = target.as_ref().filter(|target| !target.is_own()).cloned() {
            return self.port(callers, head, target, body).await;
        }
        let body = Pieces::new(body);
        let path = head.uri.path();
        let is_data =
            path.starts_with(PROCESS) || path.starts_with(FILESYSTEM) || path == FILES || path == HEALTH;
        match target {
            Some(target) => Box::pin(self.data(callers, &head, target, body)).await,
            // A signed URL does not say of which sandbox.
            None if is_data => {
                let target = Target { sandbox: None, port: ENVD_PORT.to_owned() };
                Box::pin(self.data(callers, &head, target, body)).await
            }
            None => Box::pin(self.control(callers, head, body)).await,
        }
    }

    async fn control(&self, callers: &Callers, head: Parts, body: Pieces) -> Response<Body> {
        let shown = header_text(&head.headers, "x-api-key");
        let Some(token) = shown.and_then(key::token) else {
            let text = "send an API key as X-API-KEY (`berth token create --e2b` makes one)";
            return Problem::unauthenticated(text).rest();
        };
        let caller = match enter(callers, token).await {
            Ok(caller) => caller,
            Err(problem) => return problem.rest(),
        };
        let answer = async {
            let lease = self.pool.client(&caller.token).await?;
            let token = caller.token.clone();
            let (access, public, series) = (&self.access, &self.public, &self.series);
            let control = Control { lease, token, access, public, series };
            Box::pin(control.answer(call(head, Upload::new(body, caller.large.clone())))).await
        };
        let response = answer.await.unwrap_or_else(|problem: Problem| problem.rest());
        caller.answered(response)
    }

    async fn data(&self, callers: &Callers, head: &Parts, target: Target, body: Pieces) -> Response<Body> {
        let is_call = head.uri.path().starts_with(PROCESS) || head.uri.path().starts_with(FILESYSTEM);
        let told = |problem: Problem| if is_call { problem.unary() } else { problem.rest() };
        let grant = match self.granted(head, &target) {
            Ok(grant) => grant,
            Err(problem) => return told(problem),
        };
        let caller = match enter(callers, grant.token.clone()).await {
            Ok(caller) => caller,
            Err(problem) => return told(problem),
        };
        let sandbox = grant.session.to_string();
        let body = Upload::new(body, caller.large.clone());
        let response = match self.sandbox_call(head, &target.port, grant, body).await {
            Ok(response) => response,
            Err(problem) if problem.is_gone() => Problem::bad_gateway(&sandbox),
            Err(problem) => told(problem),
        };
        caller.answered(response)
    }

    /// Which sandbox a request may go to, and as whom.
    fn granted(&self, head: &Parts, target: &Target) -> Result<Grant, Problem> {
        let grant = match header_text(&head.headers, "x-access-token") {
            Some(shown) => self.access.open(shown),
            None if target.port == interpreter::PORT && !interpreter::runs_code(head.uri.path()) => {
                let shown = header_text(&head.headers, "e2b-traffic-access-token");
                shown.and_then(|shown| self.access.traffic_grant(shown))
            }
            None => self.signed(head)?,
        };
        let wanted =
            |grant: &Grant| target.sandbox.as_ref().is_none_or(|id| *id == grant.session.to_string());
        grant.filter(wanted).ok_or_else(|| {
            Problem::unauthenticated(
                "the access token is not one of this sandbox (hint: connect to it again)",
            )
        })
    }

    fn signed(&self, head: &Parts) -> Result<Option<Grant>, Problem> {
        let query = text::query(head.uri.query().unwrap_or_default());
        let Some(signature) = text::value(&query, "signature").filter(|_| head.uri.path() == FILES) else {
            return Err(Problem::unauthenticated("the request has no access token and no signature"));
        };
        let expiration = text::value(&query, "signature_expiration");
        if let Some(at) = expiration {
            let at = at.parse().map_err(|_| Problem::invalid("signature_expiration: seconds since 1970"))?;
            let now = world::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
            if now.as_secs() >= at {
                return Err(Problem::unauthenticated("the signature has expired"));
            }
        }
        let operation = if head.method == Method::GET { "read" } else { "write" };
        let value = |name| text::value(&query, name).unwrap_or_default();
        let (path, user) = (value("path"), value("username"));
        Ok(self.access.signed(Signed { signature, path, operation, user, expiration }))
    }

    async fn sandbox_call(
        &self,
        head: &Parts,
        port: &str,
        grant: Grant,
        body: Upload,
    ) -> Result<Response<Body>, Problem> {
        let lease = self.pool.client(&grant.token).await?;
        let session = lease.session(grant.session);
        if port == interpreter::PORT {
            return interpreter::call(head, lease, session, body).await;
        }
        let path = head.uri.path();
        let posted = head.method == Method::POST;
        match path {
            HEALTH => health(&session).await,
            FILES => file_call(head, lease, session, body).await,
            _ if !posted => Ok(Problem::wrong_method("POST")),
            _ => match path.strip_prefix(PROCESS) {
                Some(method) => process_call(method, &head.headers, Processes { lease, session }, body).await,
                None => {
                    let method = path.strip_prefix(FILESYSTEM).unwrap_or_default();
                    if watch::takes(method) {
                        let watching = Watching { lease, session, token: grant.token };
                        return self.watchers.call(method, &head.headers, watching, body).await;
                    }
                    limited(&head.headers, filesystem_call(method, &head.headers, &session, body)).await
                }
            },
        }
    }
}

impl Target {
    /// Whether it is one of ours, and no server's in the sandbox.
    fn is_own(&self) -> bool {
        [ENVD_PORT, interpreter::PORT].contains(&self.port.as_str())
    }

    /// From the host name, as a link has it, or from the headers that the SDKs send. The name goes first: a page that one
    /// sandbox serves can have any header sent to its own name, and must come to no other by it.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if let Some((port, id)) = header_text(headers, header::HOST.as_str()).and_then(sandbox_host) {
            return Some(Self { sandbox: Some(id), port });
        }
        if let Some(id) = header_text(headers, "e2b-sandbox-id") {
            let port = header_text(headers, "e2b-sandbox-port").unwrap_or(ENVD_PORT);
            return Some(Self { sandbox: Some(id.to_owned()), port: port.to_owned() });
        }
        None
    }
}

/// Whether a request is for a server in a sandbox, and not for E2B's own services in it.
pub fn for_port<B>(request: &Request<B>) -> bool {
    Target::of(request.headers()).is_some_and(|target| !target.is_own())
}

/// `<port>-<id>.<domain>`: the port and the id. No other name looks so, whatever the domain is.
fn sandbox_host(host: &str) -> Option<(String, String)> {
    let label = host.split_once('.')?.0.to_ascii_lowercase();
    let (port, id) = label.split_once('-')?;
    let good =
        port.bytes().all(|byte| byte.is_ascii_digit()) && id.len() == 32 && id.parse::<SessionId>().is_ok();
    good.then(|| (port.to_owned(), id.to_owned()))
}

fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(16)]
}

async fn enter(callers: &Callers, token: String) -> Result<Caller, Problem> {
    callers.enter(token).await.map_err(Problem::from)
}

fn call(head: Parts, body: Upload) -> Call {
    let path = head.uri.path();
    let (v2, path) = match path.strip_prefix("/v2/") {
        Some(rest) => (true, rest),
        None => (false, path.trim_start_matches('/')),
    };
    let path = path.split('/').map(text::percent_decoded).collect();
    let query = text::query(head.uri.query().unwrap_or_default());
    Call { method: head.method, path, v2, query, headers: head.headers, body }
}

async fn health(session: &Session) -> Result<Response<Body>, Problem> {
    let info = session.info().await?;
    match sandbox::state(&info) {
        Some("running") => Ok(body::empty(StatusCode::NO_CONTENT)),
        _ => Err(Problem::gone("the sandbox does not run")),
    }
}

async fn file_call(
    head: &Parts,
    lease: Lease,
    session: Session,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    let query = text::query(head.uri.query().unwrap_or_default());
    paths::user(&head.headers)?;
    paths::named(text::value(&query, "username").unwrap_or_default())?;
    let path = text::value(&query, "path");
    match head.method {
        Method::GET => files::read(lease, &session, path.unwrap_or_default()).await,
        Method::POST => files::write(&session, &head.headers, path, body).await,
        _ => Ok(Problem::wrong_method("GET, POST")),
    }
}

async fn process_call(
    method: &str,
    headers: &HeaderMap,
    processes: Processes,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    match method {
        "Start" => return processes.start(headers, body).await,
        "Connect" => return processes.connect(headers, body).await,
        "StreamInput" => return processes.stream_input(headers, body).await,
        _ => {}
    }
    limited(headers, async {
        let message = Message::read(headers, body).await?;
        let answer = match method {
            "List" => processes.list().await,
            "Update" => processes.update(message).await,
            "SendInput" => processes.send_input(message).await,
            "CloseStdin" => processes.close_stdin(message).await,
            "SendSignal" => processes.send_signal(message).await,
            _ => Err(Problem::unserved("there is no such method")),
        };
        answer.map(|answer| connect::answer(&answer))
    })
    .await
}

async fn filesystem_call(
    method: &str,
    headers: &HeaderMap,
    session: &Session,
    body: Upload,
) -> Result<Response<Body>, Problem> {
    let message = connect::unary(headers, body).await?;
    paths::user(headers)?;
    let filesystem = Filesystem::new(session);
    let answer = match method {
        "Stat" => filesystem.stat(message).await,
        "MakeDir" => filesystem.make_dir(message).await,
        "Move" => filesystem.r#move(message).await,
        "ListDir" => filesystem.list_dir(message).await,
        "Remove" => filesystem.remove(message).await,
        _ => Err(Problem::unserved("there is no such method")),
    };
    answer.map(|answer| connect::answer(&answer))
}

/// A unary call within its caller's time.
async fn limited(
    headers: &HeaderMap,
    call: impl Future<Output = Result<Response<Body>, Problem>>,
) -> Result<Response<Body>, Problem> {
    let limit = connect::timeout(headers)?.unwrap_or(UNARY).min(UNARY);
    let over = |_| Problem::deadline("the call took longer than its timeout");
    tokio::time::timeout(limit, call).await.map_err(over)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_says_which_sandbox() {
        let id = SessionId::new().to_string();
        let host = format!("8000-{id}.berth.localhost:8443");
        assert_eq!(sandbox_host(&host), Some(("8000".to_owned(), id.clone())));
        assert_eq!(sandbox_host(&host.to_uppercase()), Some(("8000".to_owned(), id.clone())));
        let hyphens = "8000-01234567-89ab-7def-8123-456789abcdef.localhost";
        for bad in
            ["api.berth.localhost:8443", "x-y.berth.localhost", "localhost", "127.0.0.1:8080", hyphens, &id]
        {
            assert_eq!(sandbox_host(bad), None, "{bad}");
        }
    }
}
