//! How long a connection may say nothing between two requests, and how long the head of one may take.
//!
//! hyper has one time for both. But who keeps connections to use them again must not find them closed under a request that is on
//! its way: E2B's SDKs keep them for 300 s. And a head that comes a byte a minute must not hold a place for as long.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// A client that does not say what it wants is gone.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// Longer than clients keep a connection that they do not use.
const IDLE: Duration = Duration::from_secs(330);

/// A request's head is awaited, or the rest of it.
const HEAD: u8 = 0;
/// Nothing is asked.
const WAITS: u8 = 1;
/// A request is answered; or what was HTTP is something else now.
const ANSWERS: u8 = 2;

/// What a connection is at.
#[derive(Clone, Default)]
pub struct Pace(Arc<AtomicU8>);

impl Pace {
    fn at(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, at: u8) {
        self.0.store(at, Ordering::Relaxed);
    }

    /// A request has come.
    pub fn asked(&self) {
        self.set(ANSWERS);
    }

    /// Its answer: when that is over, nothing is asked. But for one that ends the HTTP here.
    pub fn answered<B>(&self, response: Response<B>) -> Response<Answer<B>> {
        let over = (response.status() != StatusCode::SWITCHING_PROTOCOLS).then(|| Over(self.clone()));
        response.map(|body| Answer { body, _over: over })
    }
}

struct Over(Pace);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.set(WAITS);
    }
}

/// An answer's body.
pub struct Answer<B> {
    body: B,
    _over: Option<Over>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that is read as its pace says.
pub struct Paced<T> {
    io: T,
    pace: Pace,
    /// What the time is for.
    timed: u8,
    sleep: Pin<Box<Sleep>>,
}

impl<T> Paced<T> {
    pub fn new(io: T, pace: Pace) -> Self {
        Self { io, pace, timed: HEAD, sleep: Box::pin(tokio::time::sleep(HEAD_WITHIN)) }
    }

    /// The time for this begins now.
    fn begin(&mut self, at: u8) {
        self.timed = at;
        self.sleep.as_mut().reset(Instant::now() + if at == WAITS { IDLE } else { HEAD_WITHIN });
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(context, buffer) {
            if buffer.filled().len() > before && this.pace.at() == WAITS {
                this.pace.set(HEAD);
                this.begin(HEAD);
            } else if this.pace.at() == HEAD && Instant::now() >= this.sleep.deadline() {
                // Bytes that always lie ready must not put the end off.
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Ready(read);
        }
        match this.pace.at() {
            ANSWERS => {
                this.timed = ANSWERS;
                return Poll::Pending;
            }
            at if at != this.timed => this.begin(at),
            _ => {}
        }
        match (this.sleep.as_mut().poll(context), this.timed) {
            (Poll::Pending, _) => Poll::Pending,
            // As if it had closed by itself.
            (Poll::Ready(()), WAITS) => Poll::Ready(Ok(())),
            (Poll::Ready(()), _) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Reads once; after how long, and what.
    async fn read(paced: &mut Paced<impl AsyncRead + Unpin>) -> (Duration, io::Result<usize>) {
        let begin = Instant::now();
        let read = paced.read(&mut [0; 64]).await;
        (begin.elapsed(), read)
    }

    fn seconds(time: Duration) -> u64 {
        (time + Duration::from_millis(10)).as_secs()
    }

    /// Red when a connection that nobody uses is given the time of a head.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_kept_for_later_is_kept_longer_than_its_client_does() {
        let (mut client, server) = duplex(64);
        let pace = Pace::default();
        let mut paced = Paced::new(server, pace.clone());
        client.write_all(b"GET").await.unwrap();
        assert_eq!(read(&mut paced).await.1.unwrap(), 3);
        pace.asked();
        let answer = pace.answered(Response::new(Full::new(Bytes::from_static(b"yes"))));
        assert_eq!(answer.body().size_hint().exact(), Some(3));
        // While it is answered there is no end to it.
        let long = tokio::time::timeout(Duration::from_secs(3600), read(&mut paced)).await;
        assert!(long.is_err());
        drop(answer);
        let (time, end) = read(&mut paced).await;
        assert_eq!((seconds(time), end.unwrap()), (330, 0));
    }

    /// Red when bytes put the end off.
    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_however_it_comes() {
        let (mut client, server) = duplex(64);
        let pace = Pace::default();
        let mut paced = Paced::new(server, pace.clone());
        let (time, end) = read(&mut paced).await;
        assert_eq!((seconds(time), end.unwrap_err().kind()), (15, io::ErrorKind::TimedOut));

        pace.set(WAITS);
        client.write_all(b"G").await.unwrap();
        let begin = Instant::now();
        let end = loop {
            match read(&mut paced).await.1 {
                Ok(_) => {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    client.write_all(b"E").await.unwrap();
                }
                Err(error) => break error,
            }
        };
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
        assert_eq!(seconds(begin.elapsed()), 16, "with the byte that came too late");
    }

    /// Red when an upgrade is taken for an answer that is over: a terminal that nobody types into would be cut.
    #[tokio::test(start_paused = true)]
    async fn what_is_http_no_longer_has_no_end() {
        let (_client, server) = duplex(64);
        let pace = Pace::default();
        let mut paced = Paced::new(server, pace.clone());
        pace.asked();
        let mut switching = Response::new(Full::new(Bytes::new()));
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        drop(pace.answered(switching));
        assert!(tokio::time::timeout(Duration::from_secs(3600), read(&mut paced)).await.is_err());
    }
}
