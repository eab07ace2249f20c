//! What the rest of the coordinator sees of the fleet: a copy behind read locks, published
//! by the driver after each commit. A data-plane call looks its session up here and never
//! waits in the driver's queue.
//!
//! Waiting for a session to change is level-triggered: look, and if it isn't so yet, be
//! woken and look again. A wake-up can't be missed, since one asks to be woken first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, atomic::AtomicUsize, atomic::Ordering},
    time::SystemTime,
};

use berth_proto::{
    SessionId, WorkerId,
    domain::{Capacity, SessionState},
    v1,
};
use tokio::{sync::Notify, time::Instant};

use crate::{
    fleet::{self, Quota, Session, Worker},
    placement::share,
    tenant::{Sight, Tenant},
};

/// See the module.
#[derive(Default)]
pub struct View {
    sessions: RwLock<Sessions>,
    workers: RwLock<BTreeMap<WorkerId, Arc<Worker>>>,
    quotas: RwLock<BTreeMap<Tenant, Quota>>,
    waiters: Mutex<HashMap<SessionId, Arc<Notify>>>,
    /// Tasks that run, as far as reported.
    pub(super) running_tasks: AtomicUsize,
    /// The same by session.
    running: RwLock<HashMap<SessionId, HashSet<String>>>,
}

/// The sessions, and what they take of their workers: counted as they change, since there may be ten thousand of
/// them, and each look at a worker asks.
#[derive(Default)]
struct Sessions {
    all: BTreeMap<SessionId, Arc<Session>>,
    loads: HashMap<WorkerId, Load>,
}

/// What a worker's sessions take of it.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Load {
    pub reserved: Capacity,
    pub sessions: u32,
}

/// How sessions stand, all tenants' together.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Census {
    pub states: BTreeMap<SessionState, u64>,
    /// Since when the one waits that has waited longest.
    pub oldest_wait: Option<SystemTime>,
}

/// What a tenant has.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Used {
    pub sessions: u64,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub created: u64,
}

impl Used {
    fn add(&mut self, session: &Session, live: bool, fresh: bool) {
        self.created += u64::from(fresh);
        if live {
            let taken = share(&session.spec.limits);
            self.sessions += 1;
            self.cpu_millis = self.cpu_millis.saturating_add(taken.cpu_millis.into());
            self.memory_bytes = self.memory_bytes.saturating_add(taken.memory_bytes);
            self.disk_bytes = self.disk_bytes.saturating_add(taken.disk_bytes);
        }
    }
}

impl Sessions {
    fn put(&mut self, session: Arc<Session>) {
        let old = self.all.insert(session.id, session.clone());
        // First in, then out: a worker's entry does not come and go with each word on its only session.
        self.count(&session, Load::add);
        if let Some(old) = old {
            self.count(&old, Load::subtract);
        }
    }

    fn forget(&mut self, id: &SessionId) {
        if let Some(old) = self.all.remove(id) {
            self.count(&old, Load::subtract);
        }
    }

    fn count(&mut self, session: &Session, change: impl Fn(&mut Load, &Capacity)) {
        let Some(worker) = session.worker.as_ref().filter(|_| session.holds_place()) else { return };
        let load = self.loads.entry(worker.clone()).or_default();
        change(load, &share(&session.spec.limits));
        if load.sessions == 0 {
            self.loads.remove(worker);
        }
    }
}

impl Load {
    fn add(&mut self, taken: &Capacity) {
        self.sessions += 1;
        self.reserved.cpu_millis += taken.cpu_millis;
        self.reserved.memory_bytes += taken.memory_bytes;
        self.reserved.disk_bytes += taken.disk_bytes;
        self.reserved.max_sessions += taken.max_sessions;
    }

    fn subtract(&mut self, taken: &Capacity) {
        self.sessions -= 1;
        self.reserved.cpu_millis -= taken.cpu_millis;
        self.reserved.memory_bytes -= taken.memory_bytes;
        self.reserved.disk_bytes -= taken.disk_bytes;
        self.reserved.max_sessions -= taken.max_sessions;
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

impl View {
    /// The session of this id, if this sight covers it.
    pub fn session(&self, by: &Sight, id: &SessionId) -> Option<Arc<Session>> {
        read(&self.sessions).all.get(id).filter(|session| by.covers(&session.spec.tenant)).cloned()
    }

    /// What a tenant may have.
    pub fn quota(&self, tenant: &Tenant) -> Quota {
        read(&self.quotas).get(tenant).copied().unwrap_or_default()
    }

    /// Tenants that have a quota, or a session that has not ended, with what they have of them and made since then.
    pub fn tenants(&self, since: SystemTime) -> BTreeMap<Tenant, Used> {
        let mut tenants: BTreeMap<_, Used> =
            read(&self.quotas).keys().map(|tenant| (tenant.clone(), Used::default())).collect();
        for session in read(&self.sessions).all.values() {
            let live = session.state != SessionState::Ended;
            let fresh = session.created_at >= since;
            if live || fresh {
                tenants.entry(session.spec.tenant.clone()).or_default().add(session, live, fresh);
            }
        }
        tenants
    }

    /// Tasks that run in a session, as far as reported.
    pub fn running_in(&self, id: &SessionId) -> usize {
        read(&self.running).get(id).map_or(0, HashSet::len)
    }

    /// A task began or ended.
    pub(super) fn task_changed(&self, task: &v1::Task) {
        let Ok(id) = task.session_id.parse::<SessionId>() else { return };
        let mut running = self.running.write().unwrap_or_else(PoisonError::into_inner);
        if task.state() != v1::TaskState::Done {
            running.entry(id).or_default().insert(task.id.clone());
        } else if let Some(tasks) = running.get_mut(&id) {
            tasks.remove(&task.id);
            if tasks.is_empty() {
                running.remove(&id);
            }
        }
    }

    pub fn worker(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        read(&self.workers).get(id).cloned()
    }

    pub fn workers(&self) -> Vec<Arc<Worker>> {
        read(&self.workers).values().cloned().collect()
    }

    /// Sessions older than `before`, newest first, that `wanted` wants; at most `limit`.
    pub fn list(
        &self,
        by: &Sight,
        before: Option<SessionId>,
        limit: usize,
        wanted: impl Fn(&Session) -> bool,
    ) -> Vec<Arc<Session>> {
        let sessions = read(&self.sessions);
        let older: Box<dyn Iterator<Item = (&SessionId, &Arc<Session>)>> = match before {
            Some(before) => Box::new(sessions.all.range(..before).rev()),
            None => Box::new(sessions.all.iter().rev()),
        };
        let seen = older.map(|(_, s)| s).filter(|s| by.covers(&s.spec.tenant));
        seen.filter(|s| wanted(s)).take(limit).cloned().collect()
    }

    /// Those that wait, with their places in the queue, from 1 on.
    pub fn queue(&self) -> HashMap<SessionId, u32> {
        let workers = self.workers();
        let sessions = read(&self.sessions);
        let order = fleet::order(sessions.all.values().map(|s| &**s), workers.iter().map(|w| &**w));
        order.into_iter().zip(1..).collect()
    }

    /// What each worker has promised.
    pub fn loads(&self) -> HashMap<WorkerId, Load> {
        read(&self.sessions).loads.clone()
    }

    /// What a worker has promised.
    pub fn load(&self, worker: &WorkerId) -> Load {
        read(&self.sessions).loads.get(worker).copied().unwrap_or_default()
    }

    /// How many sessions are in each of these states.
    pub fn count(&self, by: &Sight, states: &[SessionState]) -> usize {
        let seen = |s: &&Arc<Session>| states.contains(&s.state) && by.covers(&s.spec.tenant);
        read(&self.sessions).all.values().filter(seen).count()
    }

    /// How many sessions are in each state.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for session in read(&self.sessions).all.values() {
            *census.states.entry(session.state).or_default() += 1;
            if session.state == SessionState::Pending {
                let since = session.waits.since;
                census.oldest_wait = Some(census.oldest_wait.map_or(since, |oldest| oldest.min(since)));
            }
        }
        census
    }

    pub fn running_tasks(&self, by: &Sight) -> usize {
        match by {
            Sight::All => self.running_tasks.load(Ordering::Relaxed),
            Sight::Of(_) => {
                let running = read(&self.running);
                running
                    .iter()
                    .filter(|(id, _)| self.session(by, id).is_some())
                    .map(|(_, tasks)| tasks.len())
                    .sum()
            }
        }
    }

    /// Waits until `done` has an answer. `None`: it had none by the deadline. A session that
    /// isn't known (any more), or not covered, is shown to `done` as `None`.
    pub async fn wait<T>(
        &self,
        by: &Sight,
        id: SessionId,
        deadline: Instant,
        done: impl Fn(Option<&Session>) -> Option<T>,
    ) -> Option<T> {
        let waiter = Waiter::new(self, id);
        loop {
            let mut woken = std::pin::pin!(waiter.notify.notified());
            woken.as_mut().enable();
            if let Some(answer) = done(self.session(by, &id).as_deref()) {
                return Some(answer);
            }
            if tokio::time::timeout_at(deadline, woken).await.is_err() {
                return done(self.session(by, &id).as_deref());
            }
        }
    }

    pub(super) fn publish_session(&self, session: Arc<Session>) {
        let id = session.id;
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).put(session);
        self.wake(&id);
    }

    pub(super) fn forget_session(&self, id: &SessionId) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).forget(id);
        self.wake(id);
    }

    pub(super) fn publish_quota(&self, tenant: Tenant, quota: Quota) {
        self.quotas.write().unwrap_or_else(PoisonError::into_inner).insert(tenant, quota);
    }

    pub(super) fn publish_worker(&self, worker: Arc<Worker>) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(worker.id.clone(), worker);
    }

    pub(super) fn forget_worker(&self, id: &WorkerId) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn wake(&self, id: &SessionId) {
        if let Some(notify) = self.waiters.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            notify.notify_waiters();
        }
    }
}

/// Somebody who waits for a session; the last one out removes the bell.
struct Waiter<'a> {
    view: &'a View,
    id: SessionId,
    notify: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn new(view: &'a View, id: SessionId) -> Self {
        let mut waiters = view.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        let notify = waiters.entry(id).or_default().clone();
        Self { view, id, notify }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = self.view.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: clones are only made under this lock.
        if Arc::strong_count(&self.notify) <= 2 {
            waiters.remove(&self.id);
        }
    }
}
