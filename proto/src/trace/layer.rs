//! The layer around all services of a server: each call is a [`Hop`], and its answer names its request.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};

use super::{HEADER, Hop, REQUEST_ID, Role};

/// Made into a layer around all services of a server.
#[derive(Clone, Copy, Debug)]
pub struct TraceLayer(pub Role);

impl<S> tower::Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { role: self.0, inner }
    }
}

/// Services whose calls are hops of a request.
#[derive(Clone)]
pub struct Traced<S> {
    role: Role,
    inner: S,
}

/// Bytes of a call's name that are kept: the longest of ours has 50.
const CALL_MAX: usize = 100;

/// Of these there is no span: they last for as long as two processes run, or are asked every few seconds by what looks
/// whether we are well.
fn is_quiet(path: &str) -> bool {
    ["/grpc.", "/berth.v1.WorkerService/", "/berth.v1.AgentService/"].iter().any(|of| path.starts_with(of))
}

impl<S> Service<http::Request<Body>> for Traced<S>
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if is_quiet(path) {
            return Box::pin(self.inner.call(request));
        }
        // What there is no call for is anybody's text, and as long as a header may be.
        let call = path.trim_start_matches('/');
        let call = call[..call.floor_char_boundary(CALL_MAX)].to_owned();
        let hop = Hop::arrived(self.role, request.headers(), &call);
        if let Some((service, method)) = call.split_once('/') {
            hop.note("rpc.system", "grpc");
            hop.note("rpc.service", service);
            hop.note("rpc.method", method);
        }
        // What goes on from here goes on under this hop.
        if let Ok(value) = hop.context().to_string().parse() {
            request.headers_mut().insert(HEADER, value);
        }
        let answer = hop.enter(|| self.inner.call(request));
        let answer = hop.scope(answer);
        Box::pin(async move {
            let mut answer = answer.await?;
            name_request(answer.headers_mut(), &hop);
            let mut told = Told { hop, call, is_over: false };
            if let Some(status) = Status::from_header_map(answer.headers()) {
                told.over(&status);
            }
            Ok(answer.map(|inner| Body::new(Answer { inner, told })))
        })
    }
}

fn name_request(headers: &mut http::HeaderMap, hop: &Hop) {
    if let Ok(value) = hop.context().request_id().parse() {
        headers.insert(REQUEST_ID, value);
    }
}

struct Told {
    hop: Hop,
    call: String,
    is_over: bool,
}

impl Drop for Told {
    /// Whoever asked did not wait for the end.
    fn drop(&mut self) {
        if !self.is_over {
            self.over(&Status::cancelled("its client went away"));
        }
    }
}

impl Told {
    fn over(&mut self, status: &Status) {
        self.is_over = true;
        self.hop.note("rpc.grpc.status_code", i32::from(status.code()));
        if status.code() == Code::Unimplemented {
            self.hop.rename("unknown call");
        }
        if status.code() != Code::Ok {
            self.hop.fail(format!("{:?}: {}", status.code(), status.message()));
        }
        let (call, code) = (&*self.call, crate::error::code_name(status.code()));
        let took_ms = self.hop.elapsed().as_millis() as u64;
        self.hop.enter(|| tracing::debug!(call, code, took_ms, "answered"));
    }
}

/// The body of an answer: the hop lasts for as long as it does.
struct Answer {
    inner: Body,
    told: Told,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = this.told.hop.enter(|| Pin::new(&mut this.inner).poll_frame(cx));
        let mut frame = std::task::ready!(polled);
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            // An error that comes behind a part of the answer names its request too.
            name_request(trailers, &this.told.hop);
            if let Some(status) = Status::from_header_map(trailers) {
                this.told.over(&status);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
