//! Conversations over HTTP: whose each is, how many there may be, and how one goes on after this process has ended.
//!
//! A conversation is *awake* while `rmcp` has it in memory. What must outlive that (what the client said of itself, its
//! owner, its sessions) is written when it changes ([`Records`]), not when we stop: a process that is killed writes nothing.
//! After a start those that are there are *asleep*; one wakes with the next request for it, which `rmcp` does by saying
//! again, for the client, what that said when it began. It ends when it is told to, or when nothing came for a day, and is
//! then gone from memory and disk alike.
//!
//! Awake or asleep, it counts, and it is its owner's alone: to all others it is not there.

mod records;

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use rmcp::transport::streamable_http_server::session::{SessionState, SessionStore, SessionStoreError};
use tokio::{sync::OwnedMutexGuard, task::spawn_blocking};

pub use records::Made;
use records::{Record, Records, hash};

use super::sessions::TTL;

/// Conversations at once, of all tokens together.
const ALL: usize = 1000;
/// And of one: who never ends any takes no more than this.
const EACH: usize = 200;
/// One in which nothing comes for so long ends.
pub const QUIET: Duration = TTL;
/// How old what is on disk of its last use may be.
const TOUCHED_EVERY: Duration = Duration::from_secs(60);

/// All of them.
pub struct Conversations {
    /// `None`: none outlives this process.
    records: Option<Records>,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// By the hash of its id.
    of: HashMap<String, Entry>,
    /// How many an owner is beginning.
    beginning: HashMap<String, usize>,
}

struct Entry {
    /// The hash of its token.
    owner: String,
    asleep: bool,
    /// As the disk has it, or a little later.
    used: SystemTime,
    /// Held by the one request that wakes it.
    waking: Arc<tokio::sync::Mutex<()>>,
}

impl Entry {
    fn new(owner: String, asleep: bool, used: SystemTime) -> Self {
        Self { owner, asleep, used, waking: Arc::default() }
    }

    fn is_over(&self) -> bool {
        self.asleep && self.used.elapsed().is_ok_and(|quiet| quiet > QUIET)
    }
}

/// One that is awake, as those have it who serve it.
pub struct Conversation {
    key: String,
    all: Arc<Conversations>,
    /// `None`: it has ended, and nothing of it is written any more.
    record: Mutex<Option<Record>>,
}

/// What a request has to do with conversations: it begins one, wakes one, or ends one.
#[derive(Default)]
pub struct Link {
    pub token: String,
    conversation: OnceLock<Arc<Conversation>>,
    /// The sessions of one that slept until now.
    sessions: Mutex<Vec<Made>>,
}

impl Link {
    pub fn new(token: &str) -> Arc<Self> {
        Arc::new(Self { token: token.to_owned(), ..Self::default() })
    }

    pub fn conversation(&self) -> Option<&Arc<Conversation>> {
        self.conversation.get()
    }

    /// Who takes them answers for them.
    pub fn take_sessions(&self) -> Vec<Made> {
        std::mem::take(&mut locked(&self.sessions))
    }

    fn found(&self, all: &Arc<Conversations>, key: String, record: Record) {
        let conversation = Conversation { key, all: Arc::clone(all), record: Mutex::new(Some(record)) };
        let _ = self.conversation.set(Arc::new(conversation));
    }
}

impl Conversation {
    /// It is in memory now.
    pub fn woke(&self) {
        if let Some(entry) = locked(&self.all.all).of.get_mut(&self.key) {
            entry.asleep = false;
        }
    }

    /// Nobody has ended it.
    pub fn goes_on(&self) -> bool {
        locked(&self.all.all).of.contains_key(&self.key)
    }

    /// Writes which sessions it has. Asks for them when nobody else writes: who is last has the last word.
    pub async fn keep(self: &Arc<Self>, sessions: impl FnOnce() -> Vec<Made> + Send + 'static) {
        let this = Arc::clone(self);
        let written = spawn_blocking(move || {
            let mut record = locked(&this.record);
            if let Some(record) = &mut *record {
                record.sessions = sessions();
                this.all.write_again(&this.key, record);
            }
        });
        let _ = written.await;
    }

    /// It is over, and is not come back to.
    pub async fn end(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let ended = spawn_blocking(move || {
            let mut record = locked(&this.record);
            *record = None;
            this.all.forget(&this.key);
        });
        let _ = ended.await;
    }
}

impl Conversations {
    /// With those that are in `dir`, asleep.
    pub fn open(dir: PathBuf) -> Arc<Self> {
        let records = Records::open(dir.clone()).inspect_err(|error| {
            let dir = dir.display();
            tracing::warn!(%error, "conversations do not outlive this process: {dir} can't be used");
        });
        let this = Self { records: records.ok(), all: Mutex::default() };
        let mut found = this.records.as_ref().map(Records::all).unwrap_or_default();
        found.sort_by_key(|(_, _, used)| std::cmp::Reverse(*used));
        for (key, record, used) in found {
            let entry = Entry::new(record.owner, true, used);
            let mut all = locked(&this.all);
            if entry.is_over() || !all.has_room(&entry.owner) {
                this.remove(&key);
            } else {
                all.of.insert(key, entry);
            }
        }
        Arc::new(this)
    }

    /// Whether there is such a conversation of this token's. It is used by that.
    pub async fn is_of(self: &Arc<Self>, id: &str, token: &str) -> bool {
        let (key, now) = (hash(id), SystemTime::now());
        let touch = {
            let mut all = locked(&self.all);
            let Some(entry) = all.of.get_mut(&key).filter(|entry| entry.owner == hash(token)) else {
                return false;
            };
            if entry.is_over() {
                all.of.remove(&key);
                self.remove(&key);
                return false;
            }
            let touch = now.duration_since(entry.used).map_or(true, |old| old > TOUCHED_EVERY);
            if touch {
                entry.used = now;
            }
            touch
        };
        if touch && self.records.is_some() {
            let this = Arc::clone(self);
            let _ = spawn_blocking(move || this.records.as_ref().map(|records| records.touch(&key))).await;
        }
        true
    }

    /// Whether it sleeps. Who gets the guard wakes it; all others wait until it is awake.
    pub async fn asleep(&self, id: &str) -> Option<OwnedMutexGuard<()>> {
        let key = hash(id);
        let sleeps = || {
            let all = locked(&self.all);
            all.of.get(&key).filter(|entry| entry.asleep).map(|entry| Arc::clone(&entry.waking))
        };
        let guard = sleeps()?.lock_owned().await;
        sleeps().map(|_| guard)
    }

    /// Room for one more; `live`: the ids of those in memory. `None`: there is none.
    pub fn reserve(self: &Arc<Self>, token: &str, live: &[String]) -> Option<Reserved> {
        let live: Vec<String> = live.iter().map(|id| hash(id)).collect();
        let owner = hash(token);
        let mut all = locked(&self.all);
        let over = |(key, entry): (&String, &Entry)| {
            let over = if entry.asleep { entry.is_over() } else { !live.contains(key) };
            over.then(|| key.clone())
        };
        for key in all.of.iter().filter_map(over).collect::<Vec<_>>() {
            all.of.remove(&key);
            self.remove(&key);
        }
        if !all.has_room(&owner) {
            return None;
        }
        *all.beginning.entry(owner.clone()).or_default() += 1;
        Some(Reserved { all: Arc::clone(self), owner })
    }

    fn begun(&self, key: &str, record: &Record) {
        let entry = Entry::new(record.owner.clone(), false, SystemTime::now());
        locked(&self.all).of.insert(key.to_owned(), entry);
        self.write(key, record);
    }

    /// Not one that was told to end meanwhile.
    fn write_again(&self, key: &str, record: &Record) {
        let is_there = || locked(&self.all).of.contains_key(key);
        if is_there() {
            self.write(key, record);
            if !is_there() {
                self.remove(key);
            }
        }
    }

    fn write(&self, key: &str, record: &Record) {
        if let Some(records) = &self.records
            && let Err(error) = records.write(key, record)
        {
            tracing::warn!(%error, "a conversation was not written: it is not gone on with after a restart");
        }
    }

    fn forget(&self, key: &str) -> Option<Entry> {
        let entry = locked(&self.all).of.remove(key);
        self.remove(key);
        entry
    }

    fn remove(&self, key: &str) {
        if let Some(records) = &self.records {
            records.remove(key);
        }
    }
}

impl All {
    fn has_room(&self, owner: &str) -> bool {
        let beginning: usize = self.beginning.values().sum();
        let of_owner = self.of.values().filter(|entry| entry.owner == owner).count();
        self.of.len() + beginning < ALL && of_owner + self.beginning.get(owner).copied().unwrap_or(0) < EACH
    }
}

/// Room for one more conversation, counted from before it begins: else all that begin at once would find the same room.
pub struct Reserved {
    all: Arc<Conversations>,
    owner: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut all = locked(&self.all.all);
        if let Some(count) = all.beginning.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                all.beginning.remove(&self.owner);
            }
        }
    }
}

/// Conversations as `rmcp` asks for them, in the request that this is about: `link` tells it.
pub struct Store<F> {
    pub all: Arc<Conversations>,
    pub link: F,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

impl<F: Fn() -> Option<Arc<Link>> + Send + Sync + 'static> SessionStore for Store<F> {
    /// It wakes. (Whose it is has been asked before.)
    fn load<'a, 'b, 'c>(&'a self, id: &'b str) -> Answer<'c, Option<SessionState>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let Some(link) = (self.link)() else { return Ok(None) };
            let (all, key) = (Arc::clone(&self.all), hash(id));
            let read = spawn_blocking(move || {
                if !locked(&all.all).of.get(&key).is_some_and(|entry| entry.asleep) {
                    return None;
                }
                let record = all.records.as_ref().and_then(|records| records.read(&key));
                let Some(record) = record.filter(|record| record.owner == hash(&link.token)) else {
                    all.forget(&key);
                    return None;
                };
                let state = SessionState::new(record.client.clone());
                *locked(&link.sessions) = record.sessions.clone();
                link.found(&all, key, record);
                Some(state)
            });
            Ok(read.await?)
        })
    }

    /// It has begun.
    fn store<'a, 'b, 'd, 'c>(&'a self, id: &'b str, state: &'d SessionState) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let Some(link) = (self.link)() else { return Ok(()) };
            let client = state.initialize_params.clone();
            let record = Record { owner: hash(&link.token), client, sessions: Vec::new() };
            let (all, key) = (Arc::clone(&self.all), hash(id));
            let begun = spawn_blocking(move || {
                all.begun(&key, &record);
                link.found(&all, key, record);
            });
            Ok(begun.await?)
        })
    }

    /// It was told to end. One that is awake ends its sessions itself; of one that sleeps the request has them now.
    fn delete<'a, 'b, 'c>(&'a self, id: &'b str) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let Some(link) = (self.link)() else { return Ok(()) };
            let (all, key) = (Arc::clone(&self.all), hash(id));
            let ended = spawn_blocking(move || {
                let record = all.records.as_ref().and_then(|records| records.read(&key));
                if all.forget(&key).is_some_and(|entry| entry.asleep)
                    && let Some(record) = record
                {
                    *locked(&link.sessions) = record.sessions;
                }
            });
            Ok(ended.await?)
        })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
