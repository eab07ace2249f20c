//! A request's body that must come in time. A body that comes a byte a minute holds a connection, and what was made ready
//! for it, for as long as its sender likes.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one piece of it.
    pub each: Duration,
    /// For all of it. `None`: for as long as pieces come.
    pub whole: Option<Duration>,
}

impl Patience {
    /// The body, which fails when it does not come in time.
    pub fn with<B>(self, body: B) -> Timed<B> {
        let now = Instant::now();
        let until = self.whole.map(|whole| now + whole);
        Timed { body, each: self.each, until, sleep: Box::pin(tokio::time::sleep_until(now + self.each)) }
    }
}

pub struct Timed<B> {
    body: B,
    each: Duration,
    until: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Timed<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        // Asked first: pieces that always lie ready must not put the end off.
        let late = this.until.is_some_and(|until| Instant::now() >= until);
        if !late && let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            let next = Instant::now() + this.each;
            this.sleep.as_mut().reset(this.until.map_or(next, |until| until.min(next)));
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !late {
            ready!(this.sleep.as_mut().poll(context));
        }
        Poll::Ready(Some(Err("the body did not come in time".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// A piece every `every`, `count` of them.
    fn dripping(every: Duration, count: usize) -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin {
        let pieces = futures::stream::unfold(0, move |sent| async move {
            if sent == count {
                return None;
            }
            tokio::time::sleep(every).await;
            Some((Ok(Frame::data(Bytes::from_static(b"x"))), sent + 1))
        });
        StreamBody::new(Box::pin(pieces))
    }

    /// Red when one of the two deadlines is not kept. The clock is the test's.
    #[tokio::test(start_paused = true)]
    async fn a_body_comes_in_time_or_not_at_all() {
        let patience = Patience { each: Duration::from_secs(10), whole: Some(Duration::from_secs(60)) };
        let whole = patience.with(dripping(Duration::from_secs(5), 10)).collect().await.unwrap();
        assert_eq!(whole.to_bytes().len(), 10);
        assert!(patience.with(dripping(Duration::from_secs(11), 1)).collect().await.is_err(), "a pause");
        assert!(patience.with(dripping(Duration::from_secs(9), 10)).collect().await.is_err(), "all of it");
        let endless = Patience { whole: None, ..patience };
        assert!(endless.with(dripping(Duration::from_secs(9), 100)).collect().await.is_ok());
        let now =
            futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x"))));
        let mut flood = Patience { whole: Some(Duration::ZERO), ..patience }.with(StreamBody::new(now));
        assert!(flood.frame().await.unwrap().is_err(), "pieces that lie ready put nothing off");
    }
}
