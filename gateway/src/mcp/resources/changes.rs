//! Word of resources that changed, for clients that want it.
//!
//! What a resource was when it was last looked at (time and size of a file, length of an output) is compared with what it is
//! (`seen.rs`): at once when a tool of this client may have changed files, when a task that it started has ended, and when
//! the session's own watch of its files says so, whoever changed them (`watches.rs`). What no watch tells of is looked at
//! every few seconds: outputs, and files of sessions that can't be watched. That is a use of the session, and so is a
//! watch, and would keep it alive for ever: both stop when the client has asked for nothing for a while.
//!
//! Who is told is a [`Listener`]: up to 2025-11-25 the conversation, which subscribes to one resource after another; from
//! 2026-07-28 on each `subscriptions/listen`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    uri::What,
    watches::{Changed, Hears, Watches, watched},
};
use crate::mcp::{problem::Problem, sessions::Sessions};

/// Between two looks at what no watch tells of.
const EVERY: Duration = Duration::from_secs(5);
/// At each of so many looks, at everything: a path may lead through a link, and then a watch doesn't tell of it.
const ALL_EVERY: u32 = 12;
/// What is told at once comes together: a build changes hundreds of files.
const GATHER: Duration = Duration::from_millis(50);
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

/// What may have changed since it was last looked at.
#[derive(Default)]
struct Touched {
    /// By tools of the client, with the beginning of the first of their calls.
    sessions: BTreeMap<SessionId, Instant>,
    /// The beginning of the first call of all.
    first: Option<Instant>,
    /// By whomever, as a watch says.
    watched: BTreeMap<SessionId, Changed>,
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
    watches: Watches,
    /// There may be another session to watch.
    other: Notify,
}

impl Hears for Listener {
    fn changed(&self, session: SessionId, changed: Changed) {
        let mut touched = locked(&self.touched);
        let watched = &mut touched.get_or_insert_default().watched;
        watched.entry(session).or_insert_with(|| Changed::Paths(BTreeSet::new())).add(changed);
        self.wake.notify_one();
    }
}

impl Listener {
    fn new(to: To) -> Arc<Self> {
        Arc::new(Self {
            to,
            subscribed: Mutex::default(),
            listed: tokio::sync::Mutex::default(),
            touched: Mutex::default(),
            wake: Notify::new(),
            watches: Watches::default(),
            other: Notify::new(),
        })
    }

    fn touched(&self, session: Option<SessionId>, began: Instant) {
        let mut touched = locked(&self.touched);
        let touched = touched.get_or_insert_default();
        touched.first = Some(touched.first.map_or(began, |first| first.min(began)));
        if let Some(session) = session {
            let first = touched.sessions.entry(session).or_insert(began);
            *first = began.min(*first);
        }
        self.wake.notify_one();
    }

    /// Looks when it is woken, and at what no watch tells of from time to time while `wanted`.
    async fn attend(self: &Arc<Self>, sessions: &Arc<Sessions>, wanted: impl Fn() -> bool) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    tokio::time::sleep(GATHER).await;
                    let Some(touched) = locked(&self.touched).take() else { continue };
                    let now = Instant::now();
                    self.look(|session, what| {
                        let watched = touched.watched.get(&session).filter(|changed| changed.concerns(what));
                        touched.sessions.get(&session).copied().or(watched.map(|_| now))
                    }).await;
                    self.look_at_list(sessions, &touched).await;
                }
                () = self.other.notified() => self.watch(wanted()).await,
                _ = tick.tick() => {
                    self.watch(wanted()).await;
                    ticks = ticks.wrapping_add(1);
                    if wanted() {
                        let now = Instant::now();
                        let all = ticks.is_multiple_of(ALL_EVERY);
                        let told = |session, what: &What| watched(what).is_some() && self.watches.stands(session);
                        self.look(|session, what| (all || !told(session, what)).then_some(now)).await;
                    }
                }
            }
        }
    }

    /// Has a watch in each session of which a file is subscribed to.
    async fn watch(self: &Arc<Self>, wanted: bool) {
        let mut sessions = Vec::new();
        if wanted {
            let all: Vec<_> = locked(&self.subscribed).values().map(Arc::clone).collect();
            for one in all {
                let one = one.lock().await;
                if watched(&one.what).is_some() {
                    sessions.push(one.session.clone());
                }
            }
        }
        self.watches.keep(sessions, &Arc::downgrade(self));
    }

    /// `began`: when what may have changed a resource of a session did; `None`: nothing did.
    async fn look(&self, began: impl Fn(SessionId, &What) -> Option<Instant>) {
        let all: Vec<_> =
            locked(&self.subscribed).iter().map(|(uri, one)| (uri.clone(), Arc::clone(one))).collect();
        for (uri, subscription) in all {
            let mut one = subscription.lock().await;
            let Some(began) = began(one.session.id(), &one.what) else { continue };
            let seen = Seen::look(&one.session, &one.what).await;
            // Meanwhile it may have been given up, and what was seen may have come after that.
            let still = locked(&self.subscribed).get(&uri).is_some_and(|now| Arc::ptr_eq(now, &subscription));
            if !still {
                continue;
            }
            match seen {
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
        let (Some((before, since)), Some(first)) = (&mut *listed, touched.first) else { return };
        let now = list(sessions, before, |id| touched.sessions.contains_key(&id)).await;
        if now != *before || first <= *since {
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
        listener.other.notify_one();
        Ok(())
    }

    /// No error where it is not subscribed to: then it is as wanted.
    pub fn unsubscribe(&self, uri: &str) {
        if let Some(listener) = &*locked(&self.conversation) {
            locked(&listener.subscribed).remove(uri);
            listener.other.notify_one();
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
