//! Streams that nobody moves: a request that never comes whole, and an answer that nobody takes.
//!
//! Keepalive tells whether a peer is there, not whether it takes part: who answers pings, and does nothing else, could hold
//! a call for ever. So a request has a time to come in ([`Bounds::request`]), and an answer that waits for its reader a
//! time to be taken ([`Bounds::still`]). A stream in which there is nothing to say just now waits for nobody, however long.
//!
//! Each piece of an answer is followed until it has been written to the connection: so it is known what waits, and since when,
//! wherever it waits (for the stream's window, for the connection's, for the socket). Once an answer is given up, what
//! serves it is dropped. A reader that comes back all the same is told so, and may go on where it was. What is left is in
//! HTTP/2's own buffers: so a connection is closed when none but such streams are on it, or too many.
//!
//! (Rejected: to close the connection for any such stream. A client that forgot one of twenty would lose all.)

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use berth_proto::{Error, Reason, spawn::spawn};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
};

use crate::{
    Peer, Seldom,
    request::{Incoming, Shape, shapes},
    stream::Connection,
};

/// Streams of a connection that may have been given up; one more, and it is closed.
const GIVEN_UP_MOST: usize = 8;

/// How long a stream may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For a request of one message to come whole. Of other requests: for the first message, and for each from its first
    /// byte to its last.
    pub request: Duration,
    /// For an answer's next part to be taken, and between two messages of an upload.
    pub still: Duration,
}

impl Default for Bounds {
    /// A request of 4 MiB in 30 s is 140 KiB/s. An hour is what a connection to a session's port may be silent, too.
    fn default() -> Self {
        Self { request: Duration::from_secs(30), still: Duration::from_secs(3600) }
    }
}

/// Made into a layer around all services of a server.
#[derive(Clone)]
pub struct Patience {
    bounds: Bounds,
    shapes: Arc<HashMap<String, Shape>>,
    calls: Arc<Calls>,
}

impl Patience {
    /// `descriptors`: an encoded `FileDescriptorSet`, which tells what streams. Other calls are taken for such of one
    /// message, but for reflection. Needs a runtime.
    pub fn new(bounds: Bounds, descriptors: &[u8]) -> Self {
        let over = CancellationToken::new();
        let calls = Arc::new(Calls {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            told: Seldom::new(),
            _sweeper: over.clone().drop_guard(),
        });
        let weak = Arc::downgrade(&calls);
        spawn("patience", async move {
            let sweeping = async {
                loop {
                    tokio::time::sleep(bounds.still / 4).await;
                    let Some(calls) = weak.upgrade() else { return };
                    calls.sweep(bounds.still);
                }
            };
            over.run_until_cancelled(sweeping).await;
        });
        Self { bounds, shapes: Arc::new(shapes(descriptors)), calls }
    }
}

impl<S> tower::Layer<S> for Patience {
    type Service = Patient<S>;

    fn layer(&self, inner: S) -> Patient<S> {
        Patient { patience: self.clone(), inner }
    }
}

/// Services whose calls can't be held up for ever.
#[derive(Clone)]
pub struct Patient<S> {
    patience: Patience,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Patient<S>
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Patience { bounds, shapes, calls } = &self.patience;
        let shape = Shape::of(shapes, request.uri().path());
        let connection = request.extensions().get::<Peer>().map(Peer::connection);
        let call = calls.begin(connection);
        let bounds = *bounds;
        let answer = self.inner.call(request.map(|body| Body::new(Incoming::new(body, shape, bounds))));
        Box::pin(async move { Ok(answer.await?.map(|body| call.answer(body))) })
    }
}

/// The calls of a server that are not over.
struct Calls {
    open: Mutex<BTreeMap<u64, Arc<Call>>>,
    next: AtomicU64,
    told: Seldom,
    _sweeper: DropGuard,
}

struct Call {
    connection: Option<Connection>,
    answer: Mutex<Answer>,
}

#[derive(Default)]
struct Answer {
    /// `None`: there is none yet, or no more.
    body: Option<Body>,
    /// Of who waits for the body.
    waker: Option<Waker>,
    /// Pieces that are not written yet.
    pieces: usize,
    /// Since when the first of them is that.
    waits: Option<Instant>,
    given_up: bool,
    /// Its reader was told.
    told: bool,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Call>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, connection: Option<Connection>) -> Held {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let call = Arc::new(Call { connection, answer: Mutex::default() });
        self.lock().insert(id, call.clone());
        Held(Arc::new(Place { id, call, calls: self.clone() }))
    }

    /// Gives up what has waited too long, and closes connections that have little else.
    fn sweep(&self, still: Duration) {
        let calls: Vec<Arc<Call>> = self.lock().values().cloned().collect();
        let now = Instant::now();
        // Of each connection: streams that were given up, and others.
        let mut connections: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for call in &calls {
            if call.give_up(now, still)
                && let Some(times) = self.told.tell()
            {
                tracing::warn!(times, ?still, "streams are given up: nobody reads them");
            }
            if let Some(connection) = &call.connection {
                let (given_up, others) = connections.entry(connection.number()).or_default();
                *if call.lock().given_up { given_up } else { others } += 1;
            }
        }
        for connection in calls.iter().filter_map(|call| call.connection.as_ref()) {
            let (given_up, others) = connections.get(&connection.number()).copied().unwrap_or_default();
            if given_up > GIVEN_UP_MOST || (given_up > 0 && others == 0) {
                connection.cut();
            }
        }
    }
}

impl Call {
    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is given up now, since a piece of it has waited for so long.
    fn give_up(&self, now: Instant, still: Duration) -> bool {
        let mut answer = self.lock();
        if answer.given_up || answer.waits.is_none_or(|since| now.duration_since(since) < still) {
            return false;
        }
        answer.given_up = true;
        let (body, waker) = (answer.body.take(), answer.waker.take());
        // Without the lock: either may call back.
        drop(answer);
        drop(body);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// A call's place among the open ones: until its answer is over, and every piece of it written.
struct Place {
    id: u64,
    call: Arc<Call>,
    calls: Arc<Calls>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock is let go of before what was served is.
        let call = self.calls.lock().remove(&self.id);
        drop(call);
    }
}

/// A piece of an answer.
struct Piece {
    bytes: Bytes,
    place: Arc<Place>,
}

impl Piece {
    /// `answer` is the place's own.
    fn follow(bytes: Bytes, place: &Arc<Place>, answer: &mut Answer) -> Bytes {
        answer.pieces += 1;
        answer.waits.get_or_insert_with(Instant::now);
        Bytes::from_owner(Self { bytes, place: place.clone() })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut answer = self.place.call.lock();
        answer.pieces -= 1;
        answer.waits = (answer.pieces > 0).then(Instant::now);
    }
}

/// A call that was begun, and then its answer's body.
struct Held(Arc<Place>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.0.call.lock()
    }

    fn answer(self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        self.lock().body = Some(body);
        Body::new(self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let body = self.lock().body.take();
        drop(body);
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut answer = self.lock();
        if answer.given_up && !answer.told {
            answer.told = true;
            let mut trailers = http::HeaderMap::new();
            let status = Status::from(not_read());
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        let Some(body) = &mut answer.body else { return Poll::Ready(None) };
        let Poll::Ready(next) = Pin::new(body).poll_frame(cx) else {
            match &mut answer.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        Poll::Ready(next.map(|frame| {
            frame.map(|frame| frame.map_data(|bytes| Piece::follow(bytes, &self.0, &mut answer)))
        }))
    }

    fn is_end_stream(&self) -> bool {
        let answer = self.lock();
        match &answer.body {
            Some(body) => body.is_end_stream(),
            None => !answer.given_up || answer.told,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

fn not_read() -> Error {
    Error::unavailable(Reason::NotRead, "nobody read the stream for so long that it was given up")
}
