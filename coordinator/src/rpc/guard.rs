//! What every call passes before its service: the token check, the stop at shutdown, and
//! our own words for a message that is too large (tonic's decoder speaks before any
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
use berth_proto::{Code, Error, Reason, transport::MESSAGE_LIMIT};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use crate::{
    auth::{Caller, Keyring, Scope},
    tenant::Tenant,
};

/// Who may use a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Holders of a token of this scope.
    Token(Scope),
    /// Anybody on this machine; from elsewhere, an admin token.
    OpenOnLoopback,
}

/// What all guards of a server share.
#[derive(Clone)]
pub struct Gate {
    keyring: Arc<Keyring>,
    stopping: Arc<AtomicBool>,
}

impl Gate {
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring: Arc::new(keyring), stopping: Arc::default() }
    }

    /// From now on calls are refused.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// A service behind this gate.
    pub fn guard<S>(&self, access: Access, inner: S) -> Guard<S> {
        Guard { gate: self.clone(), access, inner }
    }

    /// Whether the call may go on, and whose it is where it needs a token.
    fn check<B>(&self, access: Access, request: &http::Request<B>) -> Result<Option<Caller>, Error> {
        let header = request.headers().get(http::header::AUTHORIZATION).map(|value| value.as_bytes());
        match access {
            Access::OpenOnLoopback => {
                if request.extensions().get::<Peer>().is_some_and(Peer::is_local) {
                    return Ok(None);
                }
                self.keyring.check(header, Scope::Admin).map(Some)
            }
            Access::Token(scope) => {
                let caller = self.keyring.check(header, scope)?;
                if self.stopping.load(Ordering::Relaxed) {
                    return Err(Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping")
                        .hint("try again in a few seconds"));
                }
                Ok(Some(caller))
            }
        }
    }
}

/// Whose a guarded call is.
pub fn tenant_of<T>(request: &tonic::Request<T>) -> Result<Tenant, Error> {
    let caller = request.extensions().get::<Caller>();
    // A service that is mounted without a guard must not make sessions that are nobody's.
    caller.map(|caller| caller.tenant.clone()).ok_or_else(|| Error::internal("a call without a caller"))
}

/// A guarded service.
#[derive(Clone)]
pub struct Guard<S> {
    gate: Gate,
    access: Access,
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        match self.gate.check(self.access, &request) {
            Ok(Some(caller)) => drop(request.extensions_mut().insert(caller)),
            Ok(None) => {}
            Err(error) => {
                let response = Status::from(error).into_http();
                return Box::pin(async move { Ok(response) });
            }
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(in_our_words(answer.await?)) })
    }
}

/// tonic's own refusal of a large message gets a reason and a hint.
fn in_our_words(response: http::Response<Body>) -> http::Response<Body> {
    let refused = Status::from_header_map(response.headers()).filter(|status| {
        status.code() == Code::OutOfRange && status.message().contains("message length too large")
    });
    match refused {
        None => response,
        Some(_) => Status::from(
            Error::exhausted(
                Reason::InvalidField,
                format!("the message is larger than {MESSAGE_LIMIT} bytes"),
            )
            .hint("send it in pieces: files and standard input are streamed in chunks")
            .with("limit", MESSAGE_LIMIT),
        )
        .into_http(),
    }
}
