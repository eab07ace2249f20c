//! A request's body, of which what nobody wants is read all the same.
//!
//! A request may be refused before all of it is there (it has no token, the disk is full). Two things go wrong then. A
//! server that closes a connection with bytes unread resets it, and the client is told of that and does not see its
//! answer. And some clients take an answer that comes while they still send for an error. So what is left of a refused
//! request is read before its answer is sent, if it comes soon; what comes later, or is long, is read beside it.
//!
//! A client that asked first (`Expect: 100-continue`) sends nothing before it is told to: nothing is read of that.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use berth_proto::spawn::spawn;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// What is read before the answer is sent.
const FIRST: Bounds = Bounds { bytes: 1 << 20, within: Duration::from_secs(2) };
/// What is read at all.
const ALL: Bounds = Bounds { bytes: 64 << 20, within: Duration::from_secs(10) };

#[derive(Clone, Copy)]
struct Bounds {
    bytes: usize,
    within: Duration,
}

/// A body, as the protocols get it.
pub struct Received<B: Source = Incoming> {
    /// `None` when dropped only.
    body: Option<B>,
    place: Place<B>,
}

pub trait Source: Body<Data = Bytes> + Unpin + Send + 'static {}

impl<B: Body<Data = Bytes> + Unpin + Send + 'static> Source for B {}

/// Where what is left goes.
type Place<B> = Arc<Mutex<State<B>>>;

enum State<B> {
    InUse,
    Left(B),
    Answered,
}

/// What will be left of a body.
pub struct Leftover<B: Source = Incoming> {
    place: Place<B>,
    asked_first: bool,
}

/// The body of a request with such a head, and what will be left of it.
pub fn receive<B: Source>(headers: &HeaderMap, body: B) -> (Received<B>, Leftover<B>) {
    let place = Arc::new(Mutex::new(State::InUse));
    let asked_first = headers.contains_key(header::EXPECT);
    (Received { body: Some(body), place: Arc::clone(&place) }, Leftover { place, asked_first })
}

impl<B: Source> Leftover<B> {
    /// To be called with the answer at hand.
    pub async fn read(self) {
        let before = std::mem::replace(&mut *lock(&self.place), State::Answered);
        if let State::Left(mut body) = before
            && !self.asked_first
            && !read(&mut body, FIRST).await
        {
            spawn("rest of a request", async move {
                read(&mut body, ALL).await;
            });
        }
    }
}

fn lock<B>(place: &Place<B>) -> std::sync::MutexGuard<'_, State<B>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nothing is to come any more.
async fn read<B: Source>(body: &mut B, bounds: Bounds) -> bool {
    let all = async {
        let mut bytes = 0;
        while bytes <= bounds.bytes {
            match body.frame().await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => return true,
            }
        }
        false
    };
    tokio::time::timeout(bounds.within, all).await.unwrap_or(false)
}

impl<B: Source> Drop for Received<B> {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let mut state = lock(&self.place);
        match *state {
            State::InUse => *state = State::Left(body),
            // Its answer is a stream, and came first. At the very end of the process there is nobody to read.
            State::Answered if tokio::runtime::Handle::try_current().is_ok() => {
                spawn("rest of a request", async move {
                    read(&mut body, ALL).await;
                });
            }
            _ => {}
        }
    }
}

impl<B: Source> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt;
    use http_body_util::StreamBody;

    use super::*;

    /// `count` pieces of `size` bytes, one every `every`, and how many were asked for.
    fn pieces(count: usize, size: usize, every: Duration) -> (impl Source, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let stream = futures::stream::iter(0..count).then(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(every).await;
                Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; size])))
            }
        });
        (StreamBody::new(Box::pin(stream)), asked)
    }

    const SOON: Duration = Duration::from_millis(100);

    /// Red when the answer is given without reading. The clock is the test's.
    #[tokio::test(start_paused = true)]
    async fn what_comes_soon_is_read_before_the_answer() {
        let (body, asked) = pieces(10, 1000, SOON);
        let (body, left) = receive(&HeaderMap::new(), body);
        drop(body);
        left.read().await;
        assert_eq!(asked.load(Ordering::Relaxed), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_late_or_is_long_is_read_beside_the_answer_and_not_without_end() {
        for (count, size, every, before, after) in [
            (20, 1000, Duration::from_millis(900), 3, 13),
            (usize::MAX, 1 << 20, Duration::from_millis(1), 2, 67),
        ] {
            let (body, asked) = pieces(count, size, every);
            let (body, left) = receive(&HeaderMap::new(), body);
            drop(body);
            left.read().await;
            assert_eq!(asked.load(Ordering::Relaxed), before, "{size}");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(asked.load(Ordering::Relaxed).abs_diff(after) <= 2, "{size}: {asked:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_read_of_what_is_in_use_or_was_asked_about_first() {
        let (body, asked) = pieces(10, 1000, SOON);
        let (mut body, left) = receive(&HeaderMap::new(), body);
        left.read().await;
        assert!(body.frame().await.is_some());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "its user reads it");
        drop(body);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 10, "and what it leaves is read");

        let (body, asked) = pieces(10, 1000, SOON);
        let expects =
            HeaderMap::from_iter([(header::EXPECT, http::HeaderValue::from_static("100-continue"))]);
        let (body, left) = receive(&expects, body);
        drop(body);
        left.read().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }
}
