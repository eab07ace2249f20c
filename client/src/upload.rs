//! The body of an upload. Two rules: an upload that fails halfway must never look
//! finished, and one that stands still must not wait for ever.
//!
//! To end a request stream says "the file is complete". So when the source fails, the
//! body stays pending and reports the failure beside it; the caller drops the call, which
//! resets it, and the server leaves the file as it was.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use berth_proto::{transport::CHUNK, v1};
use bytes::Bytes;
use futures::Stream;
use tokio::{io::AsyncRead, sync::oneshot, time::Instant};
use tokio_util::io::ReaderStream;

/// The server takes nothing, or does not answer, for this long: it is gone.
pub(crate) const STALLED: Duration = Duration::from_secs(60);

/// How an upload comes along, as seen from outside.
#[derive(Clone)]
pub(crate) struct Progress(Arc<(Mutex<Instant>, AtomicBool)>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(Instant::now()), AtomicBool::new(false))))
    }

    fn mark(&self, waits_for_source: bool) {
        *self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
        self.0.1.store(waits_for_source, Ordering::Relaxed);
    }

    /// Returns when the server has stood still for [`STALLED`]. A slow source is the
    /// caller's own affair.
    pub(crate) async fn stalled(&self) {
        loop {
            let last = *self.0.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let waits_for_source = self.0.1.load(Ordering::Relaxed);
            if !waits_for_source && last.elapsed() >= STALLED {
                return;
            }
            let next = if waits_for_source { Instant::now() + STALLED } else { last + STALLED };
            tokio::time::sleep_until(next).await;
        }
    }
}

/// The messages of a stream of which the end must be said.
pub(crate) trait Message: Unpin {
    fn data(data: Bytes) -> Self;
    fn end() -> Self;
}

impl Message for v1::WriteRequest {
    fn data(data: Bytes) -> Self {
        Self::data(data)
    }

    fn end() -> Self {
        Self::end()
    }
}

impl Message for v1::UnpackRequest {
    fn data(data: Bytes) -> Self {
        Self::data(data)
    }

    fn end() -> Self {
        Self::end()
    }
}

pub(crate) struct Body<R, M> {
    first: Option<M>,
    source: ReaderStream<R>,
    failed: Option<oneshot::Sender<io::Error>>,
    progress: Progress,
    ended: bool,
}

impl<R: AsyncRead + Unpin, M: Message> Body<R, M> {
    /// The body, where a failure of the source is told, and how it comes along. `first` is the header.
    pub(crate) fn new(first: M, source: R) -> (Self, oneshot::Receiver<io::Error>, Progress) {
        let (failed, failure) = oneshot::channel();
        let progress = Progress::new();
        let body = Self {
            first: Some(first),
            source: ReaderStream::with_capacity(source, CHUNK),
            failed: Some(failed),
            progress: progress.clone(),
            ended: false,
        };
        (body, failure, progress)
    }
}

impl<R: AsyncRead + Unpin, M: Message> Stream for Body<R, M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if self.failed.is_none() {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.source).poll_next(cx);
        self.progress.mark(polled.is_pending());
        match futures::ready!(polled) {
            Some(Ok(data)) => Poll::Ready(Some(M::data(data))),
            None => {
                self.ended = true;
                Poll::Ready(Some(M::end()))
            }
            Some(Err(error)) => {
                if let Some(failed) = self.failed.take() {
                    let _ = failed.send(error);
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1::write_request::Part;
    use futures::{FutureExt, StreamExt};
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_whole_upload_says_that_it_is_whole() {
        let content = vec![7; CHUNK + 1];
        let (body, failure, _) =
            Body::new(v1::WriteRequest::header(v1::WriteHeader::default()), io::Cursor::new(content.clone()));
        let parts: Vec<Part> = body.map(|message| message.part.expect("a part")).collect().await;
        assert!(matches!(parts.first(), Some(Part::Header(_))));
        assert!(matches!(parts.last(), Some(Part::End(_))));
        let data = parts.iter().filter_map(|part| match part {
            Part::Data(data) => Some(data.to_vec()),
            _ => None,
        });
        assert_eq!(data.collect::<Vec<_>>().concat(), content);
        assert!(failure.await.is_err(), "nothing failed");
    }

    #[tokio::test]
    async fn an_upload_whose_source_fails_never_ends() {
        let source = io::Cursor::new(b"half").chain(failing());
        let (mut body, failure, _) = Body::new(v1::WriteRequest::header(v1::WriteHeader::default()), source);
        let mut parts = Vec::new();
        while let Some(Some(message)) = body.next().now_or_never() {
            parts.push(message.part.expect("a part"));
        }
        assert!(matches!(parts[..], [Part::Header(_), Part::Data(_)]), "{parts:?}");
        assert_eq!(failure.await.expect("it is told").kind(), io::ErrorKind::PermissionDenied);
        assert!(body.next().now_or_never().is_none(), "it stays pending");
    }

    /// A source that fails.
    fn failing() -> impl AsyncRead + Unpin {
        struct Fails;
        impl AsyncRead for Fails {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()))
            }
        }
        Fails
    }
}
