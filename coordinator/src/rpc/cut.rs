//! A call that ends with its token. Whoever holds a stream open when the token is revoked, or its time is over, is told so in
//! the stream's trailers, and what serves the call is dropped.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use berth_proto::Error;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body, codegen::http};

/// Comes when the call has to end.
pub type Ended = Pin<Box<dyn Future<Output = Error> + Send>>;

/// The answer, unless the token is over before; its body then lasts no longer than the token either.
pub async fn until<E>(
    mut ended: Ended,
    call: impl Future<Output = Result<http::Response<Body>, E>>,
) -> Result<http::Response<Body>, E> {
    let answer = tokio::select! {
        biased;
        error = &mut ended => return Ok(Status::from(error).into_http()),
        answer = call => answer?,
    };
    Ok(answer.map(|inner| Body::new(Cut { inner: Some(inner), ended })))
}

struct Cut {
    /// `None`: it was cut off.
    inner: Option<Body>,
    ended: Ended,
}

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(error) = this.ended.as_mut().poll(cx) {
            this.inner = None;
            let mut trailers = http::HeaderMap::new();
            let status = Status::from(error);
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}
