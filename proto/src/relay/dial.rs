//! `PortService`, one hop on: bytes in both directions, neither of which waits for the other.
//!
//! What comes from the client is polled by the call to the next hop, what goes to it by the answer. So each direction has
//! its own flow control, end to end, and a hop keeps nothing but the message that it is just passing on. The two are tied
//! together: a call that is over (its client is gone, its token revoked, its session elsewhere) carries nothing more to the
//! next hop either, although the client may go on sending. To the next hop a stream that is over without `end` is broken,
//! so nothing has to be said for that.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, Streaming};

use super::{Moved, Relay, RelayStream, Route, passed_on, unless_over};
use crate::{
    convert,
    error::Error,
    transport::{FIRST_MESSAGE_TIMEOUT, MESSAGE_LIMIT},
    v1::{self, dial_request, port_service_client::PortServiceClient, port_service_server::PortService},
};

/// What the server inside says, on its way to the client.
pub struct DialStream {
    inner: RelayStream<v1::DialResponse>,
    moved: Moved,
    /// Ends the other direction with this one.
    _up: DropGuard,
}

impl Stream for DialStream {
    type Item = Result<v1::DialResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.inner.poll_next_unpin(cx));
        if let (Some(Ok(_)), Some(moved)) = (&next, &self.moved) {
            moved();
        }
        Poll::Ready(next)
    }
}

/// What the client says, on its way to the next hop.
struct Up {
    first: Option<v1::DialRequest>,
    /// `None`: the client has ended it, or was cut off.
    incoming: Option<Streaming<v1::DialRequest>>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    moved: Moved,
}

impl Stream for Up {
    type Item = v1::DialRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.over.as_mut().poll(cx).is_ready() {
            self.incoming = None;
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let message = ready!(incoming.poll_next_unpin(cx)).and_then(Result::ok);
        if let Some(moved) = &self.moved {
            moved();
        }
        let ends = message.as_ref().is_none_or(|m| matches!(m.part, Some(dial_request::Part::End(_))));
        if ends {
            self.incoming = None;
        }
        Poll::Ready(message)
    }
}

#[tonic::async_trait]
impl<R: Route> PortService for Relay<R> {
    type DialStream = DialStream;

    async fn dial(
        &self,
        request: Request<Streaming<v1::DialRequest>>,
    ) -> Result<Response<DialStream>, Status> {
        let (metadata, extensions, mut incoming) = request.into_parts();
        let first = first_message(&mut incoming).await?;
        let header = convert::dial_header(first.as_ref())?;
        self.route.note("port", header.port.to_string());
        let hop = self.hop(&header.session_id, "Dial", &extensions).await?;
        let over = CancellationToken::new();
        let tied = over.clone().drop_guard();
        let up = Up {
            first,
            incoming: Some(incoming),
            over: Box::pin(over.cancelled_owned()),
            moved: hop.moved.clone(),
        };
        let mut client = PortServiceClient::new(hop.channel).max_decoding_message_size(MESSAGE_LIMIT);
        let mut ends = hop.over;
        let call = async {
            self.timed("Dial", client.dial(passed_on(&metadata, up)))
                .await
                .map_err(|status| self.downstream(status))
        };
        let response = unless_over(&mut ends, call).await?;
        let inner = RelayStream {
            inner: response.into_inner(),
            lost: Some(self.route.lost()),
            over: ends,
            _guard: hop.guard,
        };
        Ok(Response::new(DialStream { inner, moved: hop.moved, _up: tied }))
    }
}

/// The first message of a stream, which names the session: bounded in time, since nobody else waits for it yet.
pub async fn first_message(
    incoming: &mut Streaming<v1::DialRequest>,
) -> Result<Option<v1::DialRequest>, Status> {
    match tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, incoming.message()).await {
        Ok(first) => first,
        Err(_) => Err(Error::invalid("header", "did not come within 10 seconds")
            .hint("the first message names the session and the port")
            .into()),
    }
}
