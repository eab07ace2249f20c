//! A request on its way in, with a time for it to come ([`crate::Bounds`]).
//!
//! What is bounded is waiting for the peer. Time in which the service does not read is the service's own.

use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use berth_proto::{Code, Error, Reason};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use crate::Bounds;

/// What a request consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One message.
    One,
    /// Many, and then there is an answer.
    Upload,
    /// Many, with answers between them: a conversation, which may pause.
    Both,
}

impl Shape {
    pub(crate) fn of(shapes: &HashMap<String, Self>, path: &str) -> Self {
        let otherwise = if path.contains("ServerReflection/") { Self::Both } else { Self::One };
        shapes.get(path).copied().unwrap_or(otherwise)
    }
}

/// The calls of a `FileDescriptorSet` that take more than one message.
pub(crate) fn shapes(descriptors: &[u8]) -> HashMap<String, Shape> {
    let set = prost_types::FileDescriptorSet::decode(descriptors).unwrap_or_default();
    let mut shapes = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in service.method.iter().filter(|method| method.client_streaming()) {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                shapes.insert(path, if method.server_streaming() { Shape::Both } else { Shape::Upload });
            }
        }
    }
    shapes
}

/// Where in gRPC's messages (a byte, a length of four, so many bytes) one has come to.
#[derive(Default)]
struct Place {
    head: [u8; 5],
    /// Bytes of the head that are there.
    had: usize,
    /// Bytes of the message that are still to come.
    rest: usize,
    /// There was a whole message.
    any: bool,
}

impl Place {
    fn is_between(&self) -> bool {
        self.had == 0
    }

    /// Whether a message ended in these bytes.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            if self.had < self.head.len() {
                let taken = bytes.len().min(self.head.len() - self.had);
                self.head[self.had..self.had + taken].copy_from_slice(&bytes[..taken]);
                self.had += taken;
                bytes = &bytes[taken..];
                let [_, length @ ..] = self.head;
                self.rest = u32::from_be_bytes(length) as usize;
            } else {
                let taken = bytes.len().min(self.rest);
                self.rest -= taken;
                bytes = &bytes[taken..];
            }
            if self.had == self.head.len() && self.rest == 0 {
                self.had = 0;
                self.any = true;
                ended = true;
            }
        }
        ended
    }
}

/// A request's body.
pub(crate) struct Incoming {
    inner: Body,
    shape: Shape,
    bounds: Bounds,
    place: Place,
    /// Runs while the peer is waited for.
    patience: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl Incoming {
    pub(crate) fn new(inner: Body, shape: Shape, bounds: Bounds) -> Self {
        Self { inner, shape, bounds, place: Place::default(), patience: None, is_over: false }
    }

    /// How long what comes next may take.
    fn bound(&self) -> Option<Duration> {
        let pauses = self.place.is_between() && self.place.any;
        match self.shape {
            Shape::Upload if pauses => Some(self.bounds.still),
            Shape::Both if pauses => None,
            _ => Some(self.bounds.request),
        }
    }

    fn came(&mut self, bytes: &[u8]) {
        let was_between = self.place.is_between();
        let ended = self.place.pass(bytes);
        // A request of one message has one time for all of it. A byte now and then wins none either.
        if self.shape != Shape::One && (ended || (was_between && self.place.any && !bytes.is_empty())) {
            self.patience = None;
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(next) = Pin::new(&mut this.inner).poll_frame(cx) {
            match &next {
                Some(Ok(frame)) => this.came(frame.data_ref().map_or(&[], |data| &data[..])),
                _ => this.is_over = true,
            }
            return Poll::Ready(next);
        }
        let Some(bound) = this.bound() else { return Poll::Pending };
        ready!(this.patience.get_or_insert_with(|| Box::pin(sleep(bound))).as_mut().poll(cx));
        this.is_over = true;
        Poll::Ready(Some(Err(incomplete(bound).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn incomplete(bound: Duration) -> Error {
    let text = format!("the rest of the request did not come within {bound:?}");
    Error::new(Code::DeadlineExceeded, Reason::RequestIncomplete, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::{sync::mpsc, time::Instant};

    const BOUNDS: Bounds = Bounds { request: Duration::from_secs(30), still: Duration::from_secs(3600) };

    struct Fed(mpsc::Receiver<Bytes>);

    impl HttpBody for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    /// What becomes of a request of which a piece comes each so many seconds, and that then stands still: how many bytes
    /// were read, and after how many seconds it was ended. `None`: not within a week.
    async fn ended(shape: Shape, pieces: Vec<(u64, Vec<u8>)>) -> (usize, Option<u64>) {
        let (sender, receiver) = mpsc::channel(1);
        let mut body = Incoming::new(Body::new(Fed(receiver)), shape, BOUNDS);
        let begun = Instant::now();
        let feeding = async {
            for (seconds, piece) in pieces {
                sleep(Duration::from_secs(seconds)).await;
                if sender.send(piece.into()).await.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        let mut bytes = 0;
        let reading = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                match frame {
                    Ok(frame) => bytes += frame.into_data().unwrap().len(),
                    Err(status) => {
                        assert_eq!(status.code(), Code::DeadlineExceeded);
                        return Some(begun.elapsed().as_secs());
                    }
                }
            }
            panic!("nobody has ended it");
        };
        let week = Duration::from_secs(7 * 24 * 3600);
        let end = tokio::select! {
            end = tokio::time::timeout(week, reading) => end.ok().flatten(),
            () = feeding => None,
        };
        (bytes, end)
    }

    fn message(length: u32) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat()
    }

    /// Red when `came` gives a request of one message time anew, or `bound` none for its end.
    #[tokio::test(start_paused = true)]
    async fn a_request_of_one_message_has_one_time() {
        assert_eq!(ended(Shape::One, vec![]).await, (0, Some(30)));
        assert_eq!(
            ended(Shape::One, vec![(29, message(3))]).await,
            (8, Some(30)),
            "it never says that it ends"
        );
        let dripping = message(100).into_iter().map(|byte| (1, vec![byte])).collect();
        assert_eq!(ended(Shape::One, dripping).await.1, Some(30));
    }

    /// Red when a pause between messages is bounded as a message is, or the other way round.
    #[tokio::test(start_paused = true)]
    async fn a_conversation_may_pause_but_not_within_a_message() {
        assert_eq!(ended(Shape::Both, vec![]).await, (0, Some(30)), "it has to begin");
        assert_eq!(ended(Shape::Both, vec![(1, message(3))]).await, (8, None));
        let half = message(3)[..6].to_vec();
        assert_eq!(ended(Shape::Both, vec![(1, message(3)), (50_000, half)]).await, (14, Some(50_031)));
        let pieces = vec![(1, message(0)), (7200, message(9)), (7200, message(2))];
        assert_eq!(ended(Shape::Both, pieces).await, (26, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_pause_for_an_hour() {
        let slow = vec![(1, message(3)), (3500, message(3)), (3500, message(3))];
        assert_eq!(ended(Shape::Upload, slow).await, (24, Some(7001 + 3600)));
        // Nothing at all is no sign of life.
        let nothing = vec![(1, message(3)), (1800, vec![]), (1800, vec![])];
        assert_eq!(ended(Shape::Upload, nothing).await.1, Some(3601));
        let dripping =
            [vec![(1, message(3))], message(100).into_iter().map(|byte| (1, vec![byte])).collect()];
        assert_eq!(ended(Shape::Upload, dripping.concat()).await.1, Some(32), "its second message has 30 s");
    }

    #[test]
    fn the_contract_says_what_streams() {
        let shapes = shapes(berth_proto::DESCRIPTORS);
        let of = |path: &str| Shape::of(&shapes, path);
        assert_eq!(of("/berth.v1.FileService/Write"), Shape::Upload);
        assert_eq!(of("/berth.v1.PortService/Dial"), Shape::Both);
        assert_eq!(of("/berth.v1.WorkerService/Attach"), Shape::Both);
        assert_eq!(of("/berth.v1.TaskService/Run"), Shape::One);
        assert_eq!(of("/grpc.health.v1.Health/Watch"), Shape::One);
        assert_eq!(of("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), Shape::Both);
    }
}
