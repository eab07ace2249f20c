//! The fleet: every session and every worker, and the rules by which they change. A
//! sans-IO state machine: `apply(event, now)` returns the effects, and somebody else (the
//! driver) performs them. No runtime, no clock, no chance that isn't an argument, so that
//! ten thousand steps of it can be tested in a second and replayed from a seed.
//!
//! Invariants (INVARIANTS.md; the property tests check them after every step):
//! - An epoch grows with each placement, is saved before the worker hears of it, and a
//!   report that doesn't carry the session's worker and epoch changes nothing. Its sender
//!   is told to end what it holds.
//! - A worker's reserved capacity is the sum over the sessions that hold a place on it, and
//!   a placement never takes it above its capacity.
//! - A session moves only along the edges of ARCHITECTURE's states; Ended is for ever.
//! - A refused event has changed nothing.
//!
//! How it is built: sessions and workers are immutable values behind `Arc`, replaced whole
//! through [`Fleet::put_session`] and [`Fleet::put_worker`]. These two keep the indexes and
//! the timers, so neither can drift, and note what was there before. From that note come
//! the saves and notices (a save can't be forgotten) and the way back: when the store
//! refuses a batch, [`Fleet::rollback`] restores it, and memory was never ahead of the
//! store. Rejected: to clone the whole fleet before each batch, and to write the undo by
//! hand beside each change.
//!
//! Timers are hints: they say when to look at a session or worker again, and the look
//! decides by the state as it then is. A timer that is no longer right costs one look.
//!
//! Kubernetes' lesson on eviction (invariants 14 and 15): when no worker at all is alive,
//! the likelier fault is ours. Then nobody's sessions are given up, and each worker gets a
//! full grace from the moment the first one is back, and from our own start.

mod event;
mod fair;
mod index;
mod model;
mod parking;
mod queue;
mod quota;
mod recovery;
mod sessions;
mod stopping;
mod timers;
mod workers;

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use berth_proto::{SessionId, TaskId, WorkerId, domain::SessionState, v1};
use rand::{SeedableRng, rngs::StdRng};

pub use event::*;
pub use fair::order;
use index::Index;
use model::Clock;
pub use model::{
    FleetConfig, Kept, LinkId, Liveness, NAME_LABEL, Now, Recovery, RequestKey, Scheduling, Session, Spec,
    Stop, Waits, Worker, tenant_queue_limit,
};
pub use quota::{Exceeded, Quota, QuotaPatch};
use timers::Timer;

use crate::tenant::{Sight, Tenant};

/// All sessions and workers. See the module's prose.
pub struct Fleet {
    config: FleetConfig,
    rng: StdRng,
    started: Duration,
    /// Fences of leases that an earlier coordinator promised have passed by then, whatever this one's lease is.
    old_fences: Duration,
    /// Of the event that is being applied.
    clock: Duration,
    /// When, after a time without any live worker, the first came back.
    blackout_over: Duration,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    workers: BTreeMap<WorkerId, Arc<Worker>>,
    keys: BTreeMap<String, RequestKey>,
    quotas: BTreeMap<Tenant, Quota>,
    /// When each tenant whose rate is limited made its last sessions.
    creates: BTreeMap<Tenant, VecDeque<Duration>>,
    /// Tasks that run, as last reported: observed, never in the store.
    tasks: BTreeMap<SessionId, BTreeMap<TaskId, Arc<v1::Task>>>,
    index: Index,
    /// Number of the placement that each tenant got last, since the start. A rollback leaves it: it only orders equals.
    served: BTreeMap<Tenant, u64>,
    placements: u64,
    timers: BTreeSet<(Duration, Timer)>,
    /// Since it was last taken. A rollback leaves it: what came did come.
    tally: Tally,
    /// A place may have become free, or somebody new waits.
    place_due: bool,
    /// What stood before this event.
    before: Before,
    /// What stood before this batch.
    undo: Before,
    /// Sends, closes and other effects of this event that don't follow from a changed value.
    out: Vec<Effect>,
}

/// Values as they stood; `None`: they were not there.
#[derive(Default)]
struct Before {
    sessions: BTreeMap<SessionId, Option<Arc<Session>>>,
    workers: BTreeMap<WorkerId, Option<Arc<Worker>>>,
    keys: BTreeMap<String, Option<RequestKey>>,
    quotas: BTreeMap<Tenant, Option<Quota>>,
}

/// What came of events and shows in no session and no worker: for the metrics alone.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Reports on a session that is not, or no longer, where they came from.
    pub stale_reports: u64,
    /// Hellos of a process after which a newer one has registered.
    pub stale_hellos: u64,
    pub leases_expired: u64,
    /// Placements that their worker refused.
    pub refused: u64,
    pub attached: u64,
}

/// What the store holds at start.
#[derive(Default)]
pub struct Loaded {
    pub sessions: Vec<Session>,
    pub workers: Vec<Worker>,
    pub keys: Vec<RequestKey>,
    pub quotas: Vec<(Tenant, Quota)>,
    /// Not the fleet's: whoever loads takes them out.
    pub tokens: Vec<crate::identity::Token>,
    /// The longest lease under which some worker may still hold sessions. `None`: none was ever promised.
    pub promised_lease: Option<Duration>,
}

impl Fleet {
    /// A fleet as the store remembers it. The effects are what its own start changes:
    /// sessions whose client waited without a request id are given up, since no client can
    /// come back for them.
    pub fn restore(config: FleetConfig, seed: u64, loaded: Loaded, now: Now) -> (Self, Vec<Effect>) {
        let mut fleet = Self {
            config,
            rng: StdRng::seed_from_u64(seed),
            started: now.mono,
            old_fences: now.mono,
            clock: now.mono,
            blackout_over: now.mono,
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            keys: loaded.keys.into_iter().map(|key| (key.key.clone(), key)).collect(),
            quotas: loaded.quotas.into_iter().collect(),
            creates: BTreeMap::new(),
            tasks: BTreeMap::new(),
            index: Index::default(),
            served: BTreeMap::new(),
            placements: 0,
            timers: BTreeSet::from([(now.mono + timers::PURGE_EVERY, Timer::Purge)]),
            tally: Tally::default(),
            place_due: false,
            before: Before::default(),
            undo: Before::default(),
            out: Vec::new(),
        };
        let mut orphans = Vec::new();
        for mut session in loaded.sessions {
            session.clock = Clock {
                wait_until: now.mono + left(session.waits.until, now),
                placed_at: now.mono,
                expires: session.expires_at.map(|at| now.mono + left(at, now)),
                ending_check: now.mono + fleet.config.lease,
                ..Clock::default()
            };
            // An attempt to park it ended with the process that made it.
            session.parking = None;
            if session.state == SessionState::Paused {
                session.paused_at.get_or_insert(now.wall);
            }
            let waited = matches!(session.state, SessionState::Pending | SessionState::Placed);
            // Of one that was up its client knows the id.
            if waited && !session.spec.keyed && session.ready_at.is_none() {
                orphans.push(session.id);
            }
            fleet.put_session(session);
        }
        for mut worker in loaded.workers {
            worker.lease_until = now.mono + fleet.config.lease;
            worker.down_since = now.mono;
            worker.drain_at = match worker.scheduling {
                Scheduling::Draining { until } => Some(now.mono + left(until, now)),
                Scheduling::Active | Scheduling::Cordoned => None,
            };
            fleet.put_worker(worker);
        }
        // What was loaded is no change.
        fleet.before = Before::default();
        fleet.promise(loaded.promised_lease.unwrap_or_default());
        for id in orphans {
            fleet.end_session(
                id,
                berth_proto::domain::EndReason::Abandoned,
                "the coordinator restarted",
                now,
            );
        }
        let effects = fleet.settle();
        (fleet, effects)
    }

    /// The store holds the longest lease under which a worker may hold sessions: a longer one is noted before any
    /// worker hears of it, a shorter one when none of the longer ones can be in force any more. So a coordinator that
    /// is started with a shorter lease knows how long the old fences last.
    fn promise(&mut self, before: Duration) {
        let lease = self.config.lease;
        self.old_fences = self.started + before.max(lease);
        if before < lease {
            self.out.push(Effect::SaveLease(lease));
        } else if before > lease {
            self.timers.insert((self.old_fences, Timer::Lease));
        }
    }

    /// Applies one event. The effects are to be performed in their order, saves first.
    /// After an error nothing has changed.
    pub fn apply(&mut self, event: Event, now: Now) -> Result<Vec<Effect>, Refused> {
        self.clock = now.mono;
        match event {
            Event::Create(create) => self.create(*create, now)?,
            Event::Delete { by, session, reason } => self.delete(&by, session, reason, now)?,
            Event::Pause { by, session, paused } => self.pause(&by, session, paused, now)?,
            Event::Update(update) => self.update(*update, now)?,
            Event::Checkpointed { session, epoch, kept } => self.checkpointed(session, epoch, *kept)?,
            Event::CheckpointFailed { session, epoch, why } => {
                self.checkpoint_failed(session, epoch, &why)?
            }
            Event::CheckpointGone(gone) => self.checkpoint_gone(&gone, now)?,
            Event::Parking { session, epoch, attempt } => self.parking(session, epoch, attempt)?,
            Event::Park { session, epoch, attempt, checkpoint, why } => {
                self.park(session, (epoch, attempt), &checkpoint, &why, now)?
            }
            Event::ParkingFailed { session, attempt, why } => self.parking_failed(session, attempt, &why)?,
            Event::Move { session, epoch } => self.move_away(session, epoch)?,
            Event::Hello(hello) => self.hello(*hello, now)?,
            Event::LinkLost { worker, link } => self.link_lost(&worker, link),
            Event::Stopping { worker, link, within } => self.stopping(&worker, link, within, now),
            Event::Leaving { worker, link } => self.leaving(&worker, link, now),
            Event::Heartbeat(heartbeat) => self.heartbeat(*heartbeat, now),
            Event::Report(report) => self.report(*report, now),
            Event::Task(report) => self.task_report(*report),
            Event::TaskEnded { session, epoch, task, summary } => {
                self.task_told(session, epoch, task, summary)
            }
            Event::Cordon { worker } => self.schedule(&worker, Scheduling::Cordoned, now)?,
            Event::Uncordon { worker } => self.schedule(&worker, Scheduling::Active, now)?,
            Event::Drain { worker, within } => {
                self.schedule(&worker, Scheduling::Draining { until: now.wall + within }, now)?;
            }
            Event::SetBackend { worker, backend } => self.set_backend(&worker, backend)?,
            Event::SetQuota { tenant, patch } => self.set_quota(&tenant, patch),
            Event::Tick => self.tick(now),
        }
        if std::mem::take(&mut self.place_due) {
            self.place_waiting(now);
        }
        // Places that the last pass itself freed (a session too old to wait) free nothing new.
        self.place_due = false;
        Ok(self.settle())
    }

    /// The batch is in the store: there is no way back before it any more.
    pub fn commit(&mut self) {
        for id in std::mem::take(&mut self.undo).sessions.into_keys() {
            if self.sessions.get(&id).is_none_or(|s| s.state == SessionState::Ended) {
                self.tasks.remove(&id);
            }
        }
    }

    /// The store refused the batch: everything stands again as at the last commit.
    pub fn rollback(&mut self) {
        debug_assert!(self.before.sessions.is_empty(), "an event is being applied");
        let undo = std::mem::take(&mut self.undo);
        for (id, session) in undo.sessions {
            self.replace_session(id, session);
        }
        for (id, worker) in undo.workers {
            self.replace_worker(id, worker);
        }
        for (name, key) in undo.keys {
            match key {
                Some(key) => self.keys.insert(name, key),
                None => self.keys.remove(&name),
            };
        }
        for (tenant, quota) in undo.quotas {
            match quota {
                Some(quota) => self.quotas.insert(tenant, quota),
                None => self.quotas.remove(&tenant),
            };
        }
    }

    /// Takes what was counted since the last time.
    pub fn tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// When [`Event::Tick`] is due.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// All sessions that are known, ended ones included.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.sessions.values()
    }

    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.workers.values()
    }

    /// What each tenant that was given a quota may have.
    pub fn quotas(&self) -> impl Iterator<Item = (&Tenant, &Quota)> {
        self.quotas.iter()
    }

    /// A session that this sight covers. One that it does not cover is not found, like one that is not there.
    fn seen(&self, by: &Sight, id: SessionId) -> Result<&Arc<Session>, Refused> {
        let found = self.sessions.get(&id).filter(|session| by.covers(&session.spec.tenant));
        found.ok_or(Refused::NoSession(id))
    }

    /// The worker that a link belongs to, if it is its newest.
    fn linked(&self, worker: &WorkerId, link: LinkId) -> Option<&Arc<Worker>> {
        self.workers.get(worker).filter(|w| w.link == Some(link))
    }

    // ---- the only ways to change something ----------------------------------

    fn put_session(&mut self, session: Session) {
        let id = session.id;
        let old = self.replace_session(id, Some(Arc::new(session)));
        self.before.sessions.entry(id).or_insert(old);
    }

    fn forget_session(&mut self, id: SessionId) {
        let old = self.replace_session(id, None);
        self.before.sessions.entry(id).or_insert(old);
    }

    fn replace_session(&mut self, id: SessionId, new: Option<Arc<Session>>) -> Option<Arc<Session>> {
        let old = match &new {
            Some(session) => self.sessions.insert(id, session.clone()),
            None => self.sessions.remove(&id),
        };
        let freed = self.index.moved(old.as_deref(), new.as_deref());
        let waits = new.as_ref().is_some_and(|s| s.state == SessionState::Pending);
        self.place_due |= freed || waits;
        // After a rollback the timers that fired meanwhile must be there again.
        if let Some(at) = new.as_ref().and_then(|s| self.session_timer(s)) {
            self.arm(at, Timer::Session(id));
        }
        old
    }

    fn put_worker(&mut self, worker: Worker) {
        let id = worker.id.clone();
        let old = self.replace_worker(id.clone(), Some(Arc::new(worker)));
        self.before.workers.entry(id).or_insert(old);
    }

    fn forget_worker(&mut self, id: WorkerId) {
        let old = self.replace_worker(id.clone(), None);
        self.before.workers.entry(id).or_insert(old);
    }

    fn replace_worker(&mut self, id: WorkerId, new: Option<Arc<Worker>>) -> Option<Arc<Worker>> {
        if let Some(at) = new.as_ref().and_then(|w| self.worker_timer(w)) {
            self.arm(at, Timer::Worker(id.clone()));
        }
        let seen = |w: &Worker| w.liveness == Liveness::Alive;
        let old = match &new {
            Some(worker) => self.workers.insert(id, worker.clone()),
            None => self.workers.remove(&id),
        };
        let was = old.as_deref().is_some_and(seen);
        let is = new.as_deref().is_some_and(seen);
        self.index.alive = self.index.alive + usize::from(is) - usize::from(was);
        let changed = match (&old, &new) {
            (Some(old), Some(new)) => !new.looks_like(old),
            _ => true,
        };
        self.place_due |= changed;
        old
    }

    fn put_key(&mut self, key: RequestKey) {
        let name = key.key.clone();
        let old = self.keys.insert(name.clone(), key);
        self.before.keys.entry(name).or_insert(old);
    }

    fn forget_key(&mut self, name: &str) {
        let old = self.keys.remove(name);
        self.before.keys.entry(name.to_owned()).or_insert(old);
    }

    /// Ends an event: what changed becomes saves (first) and notices (last), and goes into
    /// the batch's undo.
    fn settle(&mut self) -> Vec<Effect> {
        let before = std::mem::take(&mut self.before);
        let mut effects = Vec::new();
        let mut notices = Vec::new();
        for (name, old) in before.keys {
            match self.keys.get(&name) {
                Some(key) => effects.push(Effect::SaveKey(key.clone())),
                None => effects.push(Effect::ForgetKey(name.clone())),
            }
            self.undo.keys.entry(name).or_insert(old);
        }
        for (tenant, old) in before.quotas {
            let quota = self.quota(&tenant);
            effects.push(Effect::SaveQuota(tenant.clone(), quota));
            notices.push(Effect::QuotaChanged(tenant.clone(), quota));
            self.undo.quotas.entry(tenant).or_insert(old);
        }
        for (id, old) in before.workers {
            match self.workers.get(&id) {
                Some(worker) => {
                    if old.as_ref().is_none_or(|old| !worker.same_record(old)) {
                        effects.push(Effect::SaveWorker(worker.clone()));
                    }
                    let visible = old.as_ref().is_none_or(|old| !worker.looks_like(old));
                    notices.push(Effect::WorkerChanged { worker: worker.clone(), visible });
                }
                None => effects.push(Effect::ForgetWorker(id.clone())),
            }
            self.undo.workers.entry(id).or_insert(old);
        }
        for (id, old) in before.sessions {
            match self.sessions.get(&id) {
                Some(session) if old.as_ref().is_none_or(|old| !session.same_record(old)) => {
                    effects.push(Effect::SaveSession(session.clone()));
                    notices.push(Effect::SessionChanged(session.clone()));
                }
                Some(_) => {}
                None => effects.push(Effect::ForgetSession(id)),
            }
            self.undo.sessions.entry(id).or_insert(old);
        }
        effects.append(&mut self.out);
        effects.append(&mut notices);
        effects
    }
}

/// Time until a wall-clock moment; none when it has passed.
fn left(until: std::time::SystemTime, now: Now) -> Duration {
    until.duration_since(now.wall).unwrap_or_default()
}
