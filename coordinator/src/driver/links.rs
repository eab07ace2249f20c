//! The connections to workers: one control link each, and the data channels beside it.
//!
//! A control link is a bounded queue. The driver never waits for a worker: a link whose
//! queue is full is dropped, and the worker attaches anew with its hello.
//!
//! Data channels belong to a worker's incarnation and not to its link: a link that broke and
//! came back leaves the streams of running tasks alone. A newer incarnation drops them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use berth_proto::{Error, Incarnation, Reason, WorkerId, relay::worker_unreachable, trace::TraceContext, v1};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::{
    auth::{Digest, digest, same},
    fleet::LinkId,
};

/// Commands that may wait for a worker to take them.
pub const LINK_QUEUE: usize = 1024;
/// Data connections that one worker may hold open, whatever it dials.
const CHANNELS_MAX: usize = 8;

/// What the driver sends to a worker, or the status that ends the stream.
pub type Outgoing = Result<v1::CoordinatorMessage, Status>;

/// A worker's control stream, seen from our side.
pub struct Link {
    pub id: LinkId,
    pub sender: mpsc::Sender<Outgoing>,
    /// Cancelled when either side is done with the link.
    pub closed: CancellationToken,
    /// Shown by the data connections of this attach.
    pub data_token: String,
    /// Handed over in the welcome: the worker's own from now on. Empty: it has what it needs.
    pub credential: String,
}

/// See the module.
#[derive(Default)]
pub struct Links {
    next: AtomicU64,
    control: Mutex<BTreeMap<LinkId, (WorkerId, Link)>>,
    workers: RwLock<BTreeMap<WorkerId, Arc<DataPlane>>>,
}

/// A worker's data channels.
struct DataPlane {
    incarnation: Incarnation,
    token: Mutex<Digest>,
    channels: Mutex<Vec<(u64, Channel, CancellationToken)>>,
    turn: AtomicUsize,
    expelled: CancellationToken,
    /// Told of a new channel. One for all incarnations: who waits while a worker is away is told of the next one's.
    changed: Arc<Notify>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// An id for a new link.
    pub fn draw(&self) -> LinkId {
        LinkId(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The fleet has taken this link as the worker's.
    pub fn admit(&self, worker: WorkerId, incarnation: Incarnation, link: Link) {
        let token = digest(link.data_token.as_bytes());
        {
            let mut workers = self.workers.write().unwrap_or_else(PoisonError::into_inner);
            match workers.get(&worker).filter(|data| data.incarnation == incarnation) {
                Some(data) => *lock(&data.token) = token,
                None => {
                    let changed = workers.get(&worker).map(|before| before.changed.clone());
                    let data = DataPlane::new(incarnation, token, changed.unwrap_or_default());
                    workers.insert(worker.clone(), Arc::new(data));
                }
            }
        }
        lock(&self.control).insert(link.id, (worker, link));
    }

    /// What the data connections of a link's attach are to show, and the credential that the worker is given.
    pub fn secrets(&self, id: LinkId) -> (String, String) {
        let control = lock(&self.control);
        let secrets = control.get(&id).map(|(_, link)| (link.data_token.clone(), link.credential.clone()));
        secrets.unwrap_or_default()
    }

    /// Hands a message to a link, for this request. False: it is gone, or was too slow and is gone now.
    pub fn send(
        &self,
        id: LinkId,
        message: v1::coordinator_message::Message,
        request: Option<TraceContext>,
    ) -> bool {
        let traceparent = request.map(|request| request.to_string()).unwrap_or_default();
        let message = v1::CoordinatorMessage { message: Some(message), traceparent };
        let control = lock(&self.control);
        let Some((worker, link)) = control.get(&id) else { return false };
        match link.sender.try_send(Ok(message)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(worker.id = %worker, %error, "a worker's link is dropped");
                link.closed.cancel();
                false
            }
        }
    }

    /// Drops a link, telling the worker why if there is room for that.
    pub fn close(&self, id: LinkId, why: Option<Error>) {
        let Some((_, link)) = lock(&self.control).remove(&id) else { return };
        if let Some(why) = why {
            // Only a courtesy: the end of the stream says enough.
            let _ = link.sender.try_send(Err(why.into()));
        }
        link.closed.cancel();
    }

    /// Drops all links.
    pub fn close_all(&self) {
        let all: Vec<LinkId> = lock(&self.control).keys().copied().collect();
        for id in all {
            self.close(id, Some(Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping")));
        }
    }

    /// Whether this preface belongs to the worker's newest process.
    pub fn verify(&self, worker: &WorkerId, preface: &v1::DataPreface) -> bool {
        let Some(data) = self.data(worker) else { return false };
        let token = *lock(&data.token);
        data.incarnation.0 == preface.incarnation && same(&token, &digest(preface.data_token.as_bytes()))
    }

    /// Adds a data channel until `closed` fires. Beyond the bound the oldest goes.
    pub fn add_channel(self: &Arc<Self>, worker: &WorkerId, channel: Channel, closed: CancellationToken) {
        let Some(data) = self.data(worker) else { return };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut channels = lock(&data.channels);
            channels.push((id, channel, closed.clone()));
            if channels.len() > CHANNELS_MAX {
                channels.remove(0);
            }
        }
        data.changed.notify_waiters();
        let worker = worker.clone();
        berth_proto::spawn::spawn("data channel", async move {
            closed.cancelled().await;
            lock(&data.channels).retain(|(other, _, _)| *other != id);
            tracing::debug!(worker.id = %worker, "a data connection ended");
        });
    }

    /// A data channel to the worker, in turn. Waits until `deadline` for one to appear.
    pub async fn channel(&self, worker: &WorkerId, deadline: Instant) -> Result<Channel, Error> {
        loop {
            let Some(data) = self.data(worker) else { return Err(worker_unreachable()) };
            let mut changed = std::pin::pin!(data.changed.notified());
            changed.as_mut().enable();
            if let Some(channel) = data.pick() {
                return Ok(channel);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(worker_unreachable());
            }
        }
    }

    /// Data connections of a worker.
    pub fn channels(&self, worker: &WorkerId) -> usize {
        self.data(worker).map_or(0, |data| lock(&data.channels).len())
    }

    /// A worker is not to be one any more: its links are closed, and its data connections are used no longer.
    pub fn expel(&self, worker: &WorkerId, why: impl Fn() -> Error) {
        let ids: Vec<LinkId> =
            lock(&self.control).iter().filter(|(_, (of, _))| of == worker).map(|(id, _)| *id).collect();
        for id in ids {
            self.close(id, Some(why()));
        }
        if let Some(data) = self.data(worker) {
            data.expelled.cancel();
        }
        self.forget(worker);
    }

    /// Cancelled when the worker is expelled: calls that are under way on its data connections end then.
    pub fn expelled(&self, worker: &WorkerId) -> CancellationToken {
        self.data(worker).map(|data| data.expelled.clone()).unwrap_or_default()
    }

    /// Forgets what is known of a worker's connections.
    pub fn forget(&self, worker: &WorkerId) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).remove(worker);
    }

    fn data(&self, worker: &WorkerId) -> Option<Arc<DataPlane>> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner).get(worker).cloned()
    }
}

impl DataPlane {
    fn new(incarnation: Incarnation, token: Digest, changed: Arc<Notify>) -> Self {
        Self {
            incarnation,
            token: Mutex::new(token),
            channels: Mutex::new(Vec::new()),
            turn: AtomicUsize::new(0),
            expelled: CancellationToken::new(),
            changed,
        }
    }

    fn pick(&self) -> Option<Channel> {
        let channels = lock(&self.channels);
        let live: Vec<_> = channels.iter().filter(|(_, _, closed)| !closed.is_cancelled()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (!live.is_empty()).then(|| live[turn % live.len()].1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> v1::coordinator_message::Message {
        v1::coordinator_message::Message::Lease(v1::LeaseRenewed::default())
    }

    fn link(links: &Links, room: usize) -> (Link, mpsc::Receiver<Outgoing>) {
        let (sender, receiver) = mpsc::channel(room);
        let link = Link {
            id: links.draw(),
            sender,
            closed: CancellationToken::new(),
            data_token: "t".into(),
            credential: String::new(),
        };
        (link, receiver)
    }

    /// Red when a link whose queue is full stays.
    #[test]
    fn a_slow_link_is_dropped_and_never_waited_for() {
        let links = Links::default();
        let (slow, _receiver) = link(&links, 2);
        let (id, closed) = (slow.id, slow.closed.clone());
        links.admit("w".parse().unwrap(), Incarnation(1), slow);
        assert!(links.send(id, lease(), None) && links.send(id, lease(), None));
        assert!(!closed.is_cancelled());
        assert!(!links.send(id, lease(), None), "its queue is full");
        assert!(closed.is_cancelled());
    }

    #[tokio::test]
    async fn a_preface_must_fit_the_newest_process() {
        let links = Links::default();
        let worker: WorkerId = "w".parse().unwrap();
        let preface = |incarnation, token: &str| v1::DataPreface {
            worker_id: "w".into(),
            incarnation,
            data_token: token.into(),
        };
        assert!(!links.verify(&worker, &preface(0, "")));
        links.admit(worker.clone(), Incarnation(2), link(&links, 1).0);
        assert!(links.verify(&worker, &preface(2, "t")));
        assert!(!links.verify(&worker, &preface(1, "t")) && !links.verify(&worker, &preface(2, "")));
    }

    /// Red when each incarnation has a `changed` of its own: then the call waits in vain for as long as it may.
    #[tokio::test]
    async fn a_call_that_waits_for_a_worker_is_served_by_its_next_process() {
        let links = Arc::new(Links::default());
        let worker: WorkerId = "w".parse().unwrap();
        links.admit(worker.clone(), Incarnation(1), link(&links, 1).0);
        let patience = std::time::Duration::from_secs(2);
        let (waiter, id) = (links.clone(), worker.clone());
        let mut waits = Box::pin(async move { waiter.channel(&id, Instant::now() + patience).await });
        assert!(futures::poll!(&mut waits).is_pending());
        links.admit(worker.clone(), Incarnation(2), link(&links, 1).0);
        let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        links.add_channel(&worker, channel, CancellationToken::new());
        assert!(matches!(futures::poll!(&mut waits), std::task::Poll::Ready(Ok(_))));
    }
}
