//! Word of resources that changed, for clients that want it.
//!
//! There is nothing in a sandbox that would tell of it. So what a resource was when it was last looked at (time and size
//! of a file, length of an output) is compared with what it is: at once when a tool of this client may have changed files or
//! a task that it started has ended, and every few seconds for what else may have. That poll is a use of the session, and
//! would keep it alive for ever: it stops when the client has asked for nothing for a while.
//!
//! Who is told is a [`Listener`]: up to 2025-11-25 the conversation, which subscribes to one resource after another; from
//! 2026-07-28 on each `subscriptions/listen`. All of it is here and in `seen.rs`, so that a watch of files can take
//! its place.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use berth_client::{SessionId, TaskHandle};
use berth_proto::spawn::spawn;
use rmcp::{
    Peer, RoleServer,
    model::ResourceUpdatedNotificationParam,
    service::{SubscriptionContext, SubscriptionSink},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    listing::{self, DEPTH},
    seen::{Seen, Subscribed},
};
use crate::mcp::{problem::Problem, sessions::Sessions};

/// Between two looks at what nobody here is known to have changed.
const EVERY: Duration = Duration::from_secs(5);
/// A client that asked for nothing for so long is not looked for any more, until it asks again.
const QUIET: Duration = Duration::from_secs(300);
/// A stream of events of a client whose other requests are not seen here ends after so long, and is begun again.
const ALONE: Duration = Duration::from_secs(600);
/// Resources that a listener may subscribe to.
pub const MOST: usize = 64;
/// Files of a session whose coming and going is told.
const LISTED: u32 = 1000;
/// Tasks whose end is waited for.
const TASKS: usize = 32;
/// Calls and streams that are remembered from before a stream listens.
const RECENT: usize = 64;
/// A client that does not read is told no more after so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// The files of each session, as one number.
type Listed = BTreeMap<SessionId, u64>;

/// What tools of the client may have changed, with the beginning of the first of their calls.
struct Touched {
    sessions: BTreeMap<SessionId, Instant>,
    first: Instant,
}

enum To {
    Conversation(Peer<RoleServer>),
    Stream(SubscriptionSink),
}

/// One who is told.
struct Listener {
    to: To,
    /// By the URI as the client wrote it.
    subscribed: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Subscribed>>>>,
    /// Set: it wants to know when the list of resources is another. With the time of the first look.
    listed: tokio::sync::Mutex<Option<(Listed, Instant)>>,
    /// `None`: nothing since it last looked.
    touched: Mutex<Option<Touched>>,
    wake: Notify,
}

impl Listener {
    fn new(to: To) -> Arc<Self> {
        Arc::new(Self {
            to,
            subscribed: Mutex::default(),
            listed: tokio::sync::Mutex::default(),
            touched: Mutex::default(),
            wake: Notify::new(),
        })
    }

    fn touched(&self, session: Option<SessionId>, began: Instant) {
        let mut touched = locked(&self.touched);
        let touched = touched.get_or_insert_with(|| Touched { sessions: BTreeMap::new(), first: began });
        touched.first = touched.first.min(began);
        if let Some(session) = session {
            let first = touched.sessions.entry(session).or_insert(began);
            *first = began.min(*first);
        }
        self.wake.notify_one();
    }

    /// Looks when it is woken, and at all of it from time to time while `wanted`.
    async fn attend(&self, sessions: &Arc<Sessions>, wanted: impl Fn() -> bool) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    let Some(touched) = locked(&self.touched).take() else { continue };
                    self.look(|session| touched.sessions.get(&session).copied()).await;
                    self.look_at_list(sessions, &touched).await;
                }
                _ = tick.tick() => {
                    if wanted() {
                        self.look(|_| Some(Instant::now())).await;
                    }
                }
            }
        }
    }

    /// `began`: when what may have changed a session's files did; `None`: nothing did.
    async fn look(&self, began: impl Fn(SessionId) -> Option<Instant>) {
        let all: Vec<_> =
            locked(&self.subscribed).iter().map(|(uri, one)| (uri.clone(), Arc::clone(one))).collect();
        for (uri, one) in all {
            let mut one = one.lock().await;
            let Some(began) = began(one.session.id()) else { continue };
            match Seen::look(&one.session, &one.what).await {
                Ok(seen) if seen == one.seen && began > one.since => {}
                Ok(seen) => {
                    one.seen = seen;
                    self.tell_updated(&uri).await;
                }
                // It is gone for good. That is a change, too, and the last one.
                Err(problem) if problem.is_gone() => {
                    locked(&self.subscribed).remove(&uri);
                    self.tell_updated(&uri).await;
                }
                Err(problem) => tracing::debug!(%problem, "a subscribed resource could not be looked at"),
            }
        }
    }

    async fn look_at_list(&self, sessions: &Arc<Sessions>, touched: &Touched) {
        let mut listed = self.listed.lock().await;
        let Some((before, since)) = &mut *listed else { return };
        let now = list(sessions, before, |id| touched.sessions.contains_key(&id)).await;
        if now != *before || touched.first <= *since {
            *before = now;
            self.tell_listed().await;
        }
    }

    /// From now on it wants to know when the list is another.
    async fn begin_list(&self, sessions: &Arc<Sessions>) {
        let mut listed = self.listed.lock().await;
        if listed.is_none() {
            *listed = Some((list(sessions, &Listed::new(), |_| true).await, Instant::now()));
        }
    }

    async fn tell_updated(&self, uri: &str) {
        let told = async {
            match &self.to {
                To::Conversation(peer) => {
                    let _ = peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await;
                }
                To::Stream(sink) => drop(sink.notify_resource_updated(uri).await),
            }
        };
        let _ = timeout(PATIENCE, told).await;
    }

    async fn tell_listed(&self) {
        let told = async {
            match &self.to {
                To::Conversation(peer) => drop(peer.notify_resource_list_changed().await),
                To::Stream(sink) => drop(sink.notify_resource_list_changed().await),
            }
        };
        let _ = timeout(PATIENCE, told).await;
    }
}

/// The client's sessions and their files; those that were not touched are as they were.
async fn list(sessions: &Arc<Sessions>, before: &Listed, touched: impl Fn(SessionId) -> bool) -> Listed {
    let mut now = Listed::new();
    for id in sessions.mine().await.unwrap_or_default() {
        let known = before.get(&id).filter(|_| !touched(id)).copied();
        let files = match known {
            Some(files) => files,
            None => files_of(sessions, id).await.or(before.get(&id).copied()).unwrap_or_default(),
        };
        now.insert(id, files);
    }
    now
}

async fn files_of(sessions: &Arc<Sessions>, id: SessionId) -> Option<u64> {
    let session = sessions.find(Some(&id.to_string()), None).await.ok()?;
    let (files, _) = session.files().list_page(".", DEPTH, LISTED, String::new()).await.ok()?;
    let mut hasher = DefaultHasher::new();
    for file in files.iter().filter(|file| listing::is_listed(file)) {
        file.path.hash(&mut hasher);
    }
    Some(hasher.finish())
}

struct Recent {
    session: Option<SessionId>,
    began: Instant,
    ended: Instant,
}

/// Those who listen to one client's sessions.
pub struct Changes {
    sessions: Arc<Sessions>,
    listeners: Mutex<Vec<Weak<Listener>>>,
    /// The one of a client that has a conversation, once it wants something.
    conversation: Mutex<Option<Arc<Listener>>>,
    asked: Arc<Mutex<Instant>>,
    /// When streams were asked for that do not listen yet: their clients may be told so before they do.
    heard: Mutex<VecDeque<Instant>>,
    /// What was touched last, for these.
    recent: Mutex<VecDeque<Recent>>,
    tasks: Arc<Semaphore>,
    over: CancellationToken,
    _over: DropGuard,
}

impl Changes {
    pub fn new(sessions: Arc<Sessions>) -> Arc<Self> {
        let over = CancellationToken::new();
        Arc::new(Self {
            sessions,
            listeners: Mutex::default(),
            conversation: Mutex::default(),
            asked: Arc::new(Mutex::new(Instant::now())),
            heard: Mutex::default(),
            recent: Mutex::default(),
            tasks: Arc::new(Semaphore::new(TASKS)),
            _over: over.clone().drop_guard(),
            over,
        })
    }

    /// The client asked for something.
    pub fn asked(&self) {
        *locked(&self.asked) = Instant::now();
    }

    fn listeners(&self) -> Vec<Arc<Listener>> {
        let mut all = locked(&self.listeners);
        all.retain(|listener| listener.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// A tool, whose call began then, may have changed files of `session`, or made or ended one.
    pub fn touched(&self, session: Option<SessionId>, began: Instant) {
        push(&self.recent, Recent { session, began, ended: Instant::now() });
        for listener in self.listeners() {
            listener.touched(session, began);
        }
    }

    /// A tool started a task that it does not wait for.
    pub fn started(self: &Arc<Self>, task: TaskHandle, began: Instant) {
        if self.listeners().is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.tasks).try_acquire_owned() else { return };
        let (changes, over) = (Arc::downgrade(self), self.over.clone());
        spawn("mcp task's end", async move {
            tokio::select! {
                () = over.cancelled() => return,
                ended = task.wait() => if let Err(error) = ended {
                    tracing::debug!(task.id = %task.id(), ?error, "a task's end was not seen; the poll sees what it did");
                }
            }
            drop(permit);
            if let Some(changes) = changes.upgrade() {
                changes.touched(Some(task.session().id()), began);
            }
        });
    }

    /// The conversation's listener, which is made if there is none.
    fn of_conversation(&self, peer: &Peer<RoleServer>) -> Arc<Listener> {
        let mut conversation = locked(&self.conversation);
        let listener = conversation.get_or_insert_with(|| {
            let listener = Listener::new(To::Conversation(peer.clone()));
            locked(&self.listeners).push(Arc::downgrade(&listener));
            let (attending, sessions) = (Arc::clone(&listener), Arc::clone(&self.sessions));
            let (asked, over) = (Arc::clone(&self.asked), self.over.clone());
            spawn("mcp subscriptions", async move {
                let wanted = || locked(&asked).elapsed() < QUIET;
                tokio::select! {
                    () = over.cancelled() => {}
                    () = attending.attend(&sessions, wanted) => {}
                }
            });
            listener
        });
        Arc::clone(listener)
    }

    pub async fn subscribe(&self, uri: &str, peer: &Peer<RoleServer>) -> Result<(), Problem> {
        let one = Subscribed::new(&self.sessions, uri).await?;
        let listener = self.of_conversation(peer);
        let mut all = locked(&listener.subscribed);
        if all.len() >= MOST && !all.contains_key(uri) {
            return Err(Problem::new(
                format!("{MOST} resources are subscribed to"),
                "unsubscribe from those that are not needed",
            ));
        }
        all.insert(uri.to_owned(), Arc::new(tokio::sync::Mutex::new(one)));
        Ok(())
    }

    /// No error where it is not subscribed to: then it is as wanted.
    pub fn unsubscribe(&self, uri: &str) {
        if let Some(listener) = &*locked(&self.conversation) {
            locked(&listener.subscribed).remove(uri);
        }
    }

    /// The conversation has seen the list of resources: it is told when that is another.
    pub async fn listed(&self, peer: &Peer<RoleServer>) {
        self.of_conversation(peer).begin_list(&self.sessions).await;
    }

    /// A stream is asked for; [`Self::listen`] follows once its client has been told.
    pub fn heard(&self) {
        push(&self.heard, Instant::now());
    }

    /// Tells `context` of what it asked for until its client no longer wants it.
    pub async fn listen(&self, context: &SubscriptionContext) -> Result<(), Problem> {
        let listener = Listener::new(To::Stream(context.sink().clone()));
        // First of all, and with what happened since its client could know that it is heard.
        locked(&self.listeners).push(Arc::downgrade(&listener));
        let since = locked(&self.heard).pop_front().unwrap_or_else(Instant::now);
        for recent in locked(&self.recent).iter().filter(|recent| recent.ended >= since) {
            listener.touched(recent.session, recent.began);
        }
        for uri in context.accepted().resource_subscriptions.iter().flatten() {
            let one = Subscribed::new(&self.sessions, uri).await?;
            locked(&listener.subscribed).insert(uri.clone(), Arc::new(tokio::sync::Mutex::new(one)));
        }
        if context.accepted().resources_list_changed == Some(true) {
            listener.begin_list(&self.sessions).await;
        }
        let alone = self.sessions.is_alone();
        let end = async {
            match alone {
                true => tokio::time::sleep(ALONE).await,
                false => std::future::pending().await,
            }
        };
        let wanted = || alone || locked(&self.asked).elapsed() < QUIET;
        tokio::select! {
            () = context.cancelled() => {}
            () = end => {}
            () = listener.attend(&self.sessions, wanted) => {}
        }
        Ok(())
    }
}

/// Keeps the last of them.
fn push<T>(all: &Mutex<VecDeque<T>>, one: T) {
    let mut all = locked(all);
    if all.len() == RECENT {
        all.pop_front();
    }
    all.push_back(one);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
