//! What every call passes before its service: the token check, its end when the token is over ([`super::cut`]), the stop at
//! shutdown, and our own words for a message that is too large (tonic's decoder speaks before any
//! handler could).
//!
//! A wrapper around each service and not one layer over all: so each service is mounted
//! with the scope that it needs, and none can be forgotten in a table of paths.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use berth_net::Peer;
use berth_proto::{Code, Error, Reason};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::cut;
use crate::{
    audit::Audit,
    identity::{Caller, Identity, Scope},
    metrics::Metrics,
    tenant::{Sight, Tenant},
};

/// Who may use a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Clients, each for what its tenant has, and admins.
    Clients,
    /// Admins; of the calls that are named here, clients too. A call that is added later is not for clients until somebody
    /// has decided that it may be.
    Admins { clients: &'static [&'static str] },
    /// Workers, and whoever may register as one.
    Joining,
    /// Workers that have registered.
    Workers,
    /// Anybody on this machine; from elsewhere, clients and admins.
    OpenOnLoopback,
}

impl Access {
    /// Whether a caller may make a call; else the scope that it needs.
    fn permits(self, caller: &Caller, path: &str) -> Result<(), &'static str> {
        let is_client = matches!(caller.scope, Scope::Client | Scope::Admin);
        let method = path.rsplit('/').next().unwrap_or_default();
        let (permitted, needed) = match self {
            Self::Clients | Self::OpenOnLoopback => (is_client, "client"),
            Self::Admins { clients } => match clients.contains(&method) {
                true => (is_client, "client"),
                false => (caller.scope == Scope::Admin, "admin"),
            },
            Self::Joining => (caller.scope == Scope::Worker, "worker"),
            Self::Workers => (caller.is_registered(), "worker"),
        };
        if permitted { Ok(()) } else { Err(needed) }
    }
}

/// What all guards of a server share.
#[derive(Clone)]
pub struct Gate {
    identity: Arc<Identity>,
    audit: Arc<Audit>,
    metrics: Arc<Metrics>,
    stopping: Arc<AtomicBool>,
}

impl Gate {
    pub fn new(identity: Arc<Identity>, audit: Arc<Audit>, metrics: Arc<Metrics>) -> Self {
        Self { identity, audit, metrics, stopping: Arc::default() }
    }

    /// From now on calls are refused.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// A service behind this gate. `limit`: bytes of a message that it takes, for our words about a larger one.
    pub fn guard<S>(&self, access: Access, limit: usize, inner: S) -> Guard<S> {
        Guard { gate: self.clone(), access, limit, inner }
    }

    fn caller<B>(&self, request: &http::Request<B>) -> Result<Caller, Error> {
        let header = request.headers().get(http::header::AUTHORIZATION).map(|value| value.as_bytes());
        self.identity.check(header)
    }

    /// Whether the call may go on, and whose it is where it needs a token.
    fn check<B>(&self, access: Access, request: &http::Request<B>) -> Result<Option<Caller>, Error> {
        if access == Access::OpenOnLoopback && request.extensions().get::<Peer>().is_some_and(Peer::is_local)
        {
            return Ok(None);
        }
        let caller = self.caller(request)?;
        access.permits(&caller, request.uri().path()).map_err(|needed| not_for_this(&caller, needed))?;
        if access != Access::OpenOnLoopback && self.stopping.load(Ordering::Relaxed) {
            return Err(Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping")
                .hint("try again in a few seconds"));
        }
        Ok(Some(caller))
    }
}

fn not_for_this(caller: &Caller, needed: &str) -> Error {
    let held = match (caller.scope, caller.is_registered()) {
        (Scope::Client, _) => "client",
        (Scope::Worker, true) => "worker",
        (Scope::Worker, false) => "worker (to register with, and nothing else)",
        (Scope::Admin, _) => "admin",
    };
    let file = if needed == "worker" { "join.token" } else { "admin.token" };
    let text =
        format!("the token is good, but not for this call: its scope is {held}, and this needs {needed}");
    Error::new(Code::PermissionDenied, Reason::TokenScope, text).hint(format!(
        "use one with that scope: `berth token create --scope {needed}`, or <state>/credentials/{file}"
    ))
}

/// Whose a guarded call is.
pub fn caller_of(extensions: &tonic::Extensions) -> Result<&Caller, Error> {
    // A service that is mounted without a guard must not serve what is somebody's.
    extensions.get::<Caller>().ok_or_else(|| Error::internal("a call without a caller"))
}

/// What it may see.
pub fn sight_of<T>(request: &tonic::Request<T>) -> Result<Sight, Error> {
    caller_of(request.extensions()).map(Caller::sight)
}

/// Whose sessions it makes.
pub fn tenant_of<T>(request: &tonic::Request<T>) -> Result<Tenant, Error> {
    caller_of(request.extensions()).map(|caller| caller.tenant.clone())
}

/// A guarded service.
#[derive(Clone)]
pub struct Guard<S> {
    gate: Gate,
    access: Access,
    limit: usize,
    inner: S,
}

impl<S: NamedService> NamedService for Guard<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.gate.metrics.call(request.uri().path());
        let answer = self.answer(request);
        Box::pin(async move {
            let answer = answer.await?;
            call.answered(&answer);
            Ok(answer)
        })
    }
}

impl<S> Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    fn answer(&mut self, mut request: http::Request<Body>) -> BoxFuture<http::Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        let (ended, note) = match self.gate.check(self.access, &request) {
            Ok(Some(caller)) => {
                let (ended, note) = (caller.ended(), self.gate.audit.call(&path, Some(&caller)));
                request.extensions_mut().insert(caller);
                (ended, note)
            }
            Ok(None) => (None, None),
            Err(error) => {
                let status = Status::from(error);
                let caller = self.gate.caller(&request).ok();
                self.gate.audit.refused(&path, caller.as_ref(), request.extensions().get::<Peer>(), &status);
                let response = status.into_http();
                return Box::pin(async move { Ok(response) });
            }
        };
        let (answer, limit) = (self.inner.call(request), self.limit);
        let answer = async move {
            let Some(note) = note else { return Ok(in_our_words(answer.await?, limit)) };
            let answer = in_our_words(note.around(answer).await?, limit);
            note.answered(Status::from_header_map(answer.headers()).as_ref());
            Ok(answer)
        };
        match ended {
            Some(ended) => Box::pin(cut::until(Box::pin(ended), answer)),
            None => Box::pin(answer),
        }
    }
}

/// tonic's own refusal of a large message gets a reason and a hint.
fn in_our_words(response: http::Response<Body>, limit: usize) -> http::Response<Body> {
    let refused = Status::from_header_map(response.headers()).filter(|status| {
        status.code() == Code::OutOfRange && status.message().contains("message length too large")
    });
    match refused {
        None => response,
        Some(_) => Status::from(
            Error::exhausted(Reason::InvalidField, format!("the message is larger than {limit} bytes"))
                .hint("send it in pieces: files and standard input are streamed in chunks")
                .with("limit", limit),
        )
        .into_http(),
    }
}
