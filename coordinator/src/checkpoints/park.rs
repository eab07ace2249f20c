//! Which paused sessions give their places up, and when. What parking is: [`crate::fleet`]'s `parking`.
//!
//! A session is parked when it has been paused for long, when its worker is drained, and when its worker is short of
//! memory: then the one that was paused first, and the next one only if a later heartbeat still says so.
//!
//! How long it has been paused is counted on the monotonic clock from when this process first saw it so: a wall clock
//! that jumps parks nobody. Across a restart it goes by the record.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{Error, SessionId, WorkerId, domain::SessionState, v1, world};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Checkpoints, Parting, Wanted};
use crate::{
    fleet::{Event, Liveness, Scheduling, Session, Worker},
    tenant::Sight,
};

const EVERY: Duration = Duration::from_millis(500);
/// An attempt that failed is made again after this ...
const AGAIN: Duration = Duration::from_secs(60);
/// ... and on a drain, which has a deadline, after this.
const AGAIN_ON_DRAIN: Duration = Duration::from_secs(5);
/// Its tasks stand still anyway: its files may take longer to be read than those of a session that is to go on.
const FREEZE_LIMIT: Duration = Duration::from_secs(600);
/// For writes to its files that are under way to end.
const SETTLE: Duration = Duration::from_secs(10);
/// A worker is short of memory when less than this share of what it offers is available ...
const SHORT: f64 = 0.1;
/// ... or less than this while tasks wait for memory ...
const SCARCE: f64 = 0.2;
/// ... for this share of the time (percent; PSI `some`, over 10 s). Alone it says little: a session that is short
/// within its own limit waits too, and nobody's leaving helps it.
const STALLED: f64 = 10.0;

/// Why a session is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Paused,
    Drain,
    Memory,
}

/// A paused session, as far as it matters here.
struct Candidate {
    session: SessionId,
    worker: WorkerId,
    paused_for: Duration,
    /// Its worker is drained.
    drained: bool,
    /// Since its last attempt failed.
    failed_for: Option<Duration>,
    /// An attempt is under way.
    busy: bool,
}

impl Candidate {
    fn may_try(&self, cause: Cause) -> bool {
        let again = if cause == Cause::Drain { AGAIN_ON_DRAIN } else { AGAIN };
        !self.busy && self.failed_for.is_none_or(|since| since >= again)
    }
}

/// Whom to park now. `short`: workers that are short of memory. One at a time of each: what one gives back is to be
/// seen before the next one goes.
fn due(
    candidates: &[Candidate],
    ttl: Option<Duration>,
    short: &BTreeSet<WorkerId>,
) -> Vec<(SessionId, Cause)> {
    let mut due: BTreeMap<SessionId, Cause> = BTreeMap::new();
    for candidate in candidates {
        let old = ttl.is_some_and(|ttl| candidate.paused_for >= ttl);
        let cause = match candidate.drained {
            true => Cause::Drain,
            false if old => Cause::Paused,
            false => continue,
        };
        if candidate.may_try(cause) {
            due.insert(candidate.session, cause);
        }
    }
    for worker in short {
        let there = || candidates.iter().filter(|c| c.worker == *worker);
        if there().any(|c| c.busy || due.contains_key(&c.session)) {
            continue;
        }
        // Of those paused at the same moment the older session: its id is the smaller one.
        let first = there()
            .filter(|c| c.may_try(Cause::Memory))
            .max_by_key(|c| (c.paused_for, std::cmp::Reverse(c.session)));
        due.extend(first.map(|c| (c.session, Cause::Memory)));
    }
    due.into_iter().collect()
}

/// Whether a worker that offers so much memory is short of it. One that can't tell is not.
fn is_short(offered: u64, health: &v1::WorkerHealth) -> bool {
    let available = health.memory_available_bytes;
    if offered == 0 || available == 0 {
        return false;
    }
    let share = available as f64 / offered as f64;
    let stalled = health.memory_pressure.is_some_and(|percent| percent >= STALLED);
    share < SHORT || (stalled && share < SCARCE)
}

/// What is known of a paused session from one look to the next.
struct Seen {
    /// Which pause it is.
    paused_at: SystemTime,
    /// On our clock.
    since: Instant,
    failed: Option<Instant>,
}

/// How an attempt ended.
struct Ended {
    session: SessionId,
    worker: WorkerId,
    parked: bool,
}

struct Keeper {
    checkpoints: Arc<Checkpoints>,
    ttl: Option<Duration>,
    seen: BTreeMap<SessionId, Seen>,
    /// Workers that gave up a session, and when: until they are heard of again nobody knows what that has brought.
    relieved: BTreeMap<WorkerId, SystemTime>,
    next: u64,
    busy: BTreeSet<SessionId>,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
}

/// Parks what is to be parked until it is dropped. `ttl`: how long a session may stay paused; `None`: for ever.
pub async fn keep_parking(checkpoints: Arc<Checkpoints>, ttl: Option<Duration>) {
    let mut keeper = Keeper {
        checkpoints,
        ttl,
        seen: BTreeMap::new(),
        relieved: BTreeMap::new(),
        next: 0,
        busy: BTreeSet::new(),
        under_way: FuturesUnordered::new(),
    };
    let mut look = tokio::time::interval(EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => keeper.look(),
            Some(ended) = keeper.under_way.next() => keeper.ended(&ended),
        }
    }
}

impl Keeper {
    fn look(&mut self) {
        let view = &self.checkpoints.shared.view;
        let paused = view.list(&Sight::All, None, usize::MAX, |s| s.state == SessionState::Paused);
        let mut candidates = Vec::new();
        let mut seen = BTreeMap::new();
        for session in &paused {
            let (Some(worker), Some(paused_at)) = (&session.worker, session.paused_at) else { continue };
            let known = self.seen.remove(&session.id).filter(|seen| seen.paused_at == paused_at);
            let known = known.unwrap_or_else(|| first_seen(paused_at));
            // One that can't be asked is not: what becomes of its sessions is not ours to decide.
            if let Some(there) = view.worker(worker).filter(|worker| worker.liveness == Liveness::Alive) {
                candidates.push(Candidate {
                    session: session.id,
                    worker: worker.clone(),
                    paused_for: known.since.elapsed(),
                    drained: matches!(there.in_force(), Scheduling::Draining { .. }),
                    failed_for: known.failed.map(|at| at.elapsed()),
                    busy: self.busy.contains(&session.id),
                });
            }
            seen.insert(session.id, known);
        }
        self.seen = seen;
        let short = self.short();
        for (id, cause) in due(&candidates, self.ttl, &short) {
            if let Some(session) = paused.iter().find(|session| session.id == id) {
                self.begin(session.clone(), cause);
            }
        }
    }

    /// Workers that are short of memory, and have been heard of since they were helped.
    fn short(&mut self) -> BTreeSet<WorkerId> {
        let workers = self.checkpoints.shared.view.workers();
        let heard = |worker: &Worker, since: SystemTime| worker.heartbeat_at.is_some_and(|at| at > since);
        self.relieved.retain(|id, since| workers.iter().any(|w| w.id == *id && !heard(w, *since)));
        let says =
            |w: &&Arc<Worker>| w.liveness == Liveness::Alive && is_short(w.capacity.memory_bytes, &w.health);
        let short = workers.iter().filter(says).filter(|w| !self.relieved.contains_key(&w.id));
        short.map(|worker| worker.id.clone()).collect()
    }

    fn begin(&mut self, session: Arc<Session>, cause: Cause) {
        let Some(worker) = session.worker.clone() else { return };
        self.next += 1;
        self.busy.insert(session.id);
        let (checkpoints, attempt, ttl) = (self.checkpoints.clone(), self.next, self.ttl);
        let why = match cause {
            Cause::Paused => format!("it was paused for {}", words(ttl.unwrap_or_default())),
            Cause::Drain => format!("worker {worker} is drained"),
            Cause::Memory => format!("worker {worker} is short of memory"),
        };
        let settle = self.settle(&worker);
        self.under_way.push(Box::pin(async move {
            let parked = checkpoints.park(&session, attempt, why, settle).await;
            Ended { session: session.id, worker, parked }
        }));
    }

    /// For writes that are under way: on a drain no more than there is time for.
    fn settle(&self, worker: &WorkerId) -> Duration {
        match self.checkpoints.shared.view.worker(worker).map(|worker| worker.in_force()) {
            Some(Scheduling::Draining { until }) => {
                SETTLE.min(until.duration_since(world::now()).unwrap_or_default() / 3)
            }
            _ => SETTLE,
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.busy.remove(&ended.session);
        if ended.parked {
            self.relieved.insert(ended.worker.clone(), world::now());
        } else if let Some(seen) = self.seen.get_mut(&ended.session) {
            seen.failed = Some(Instant::now());
        }
    }
}

/// Its pause may be older than this process.
fn first_seen(paused_at: SystemTime) -> Seen {
    let age = world::now().duration_since(paused_at).unwrap_or_default();
    let now = Instant::now();
    Seen { paused_at, since: now.checked_sub(age).unwrap_or(now), failed: None }
}

/// `90s`, `10m`.
fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 60 && seconds.is_multiple_of(60) {
        format!("{} min", seconds / 60)
    } else {
        format!("{} s", time.as_secs_f64())
    }
}

impl Checkpoints {
    /// Parks a paused session. False: it stays paused, and says why.
    async fn park(&self, session: &Session, attempt: u64, why: String, settle: Duration) -> bool {
        let (id, epoch) = (session.id, session.epoch);
        // Somebody resumed it, or it is over.
        if self.driver.call(Event::Parking { session: id, epoch, attempt }).await.is_err() {
            return false;
        }
        let Err(error) = self.take_and_park(session, attempt, why, settle).await else { return true };
        tracing::warn!(session.id = %id, error = error.message(), "a session could not be parked");
        let why = error.message().to_owned();
        let _ = self.driver.call(Event::ParkingFailed { session: id, attempt, why }).await;
        false
    }

    async fn take_and_park(
        &self,
        session: &Session,
        attempt: u64,
        why: String,
        settle: Duration,
    ) -> Result<(), Error> {
        let wanted = Wanted {
            cause: v1::CheckpointCause::Parked,
            note: String::new(),
            // For as long as it is needed, and then as its policy says: see `sweep`.
            keep_for: None,
            freeze_limit: FREEZE_LIMIT,
            parting: Some(Parting { settle, anyway: false }),
        };
        let record = self.take(&Sight::All, session.id, wanted).await?;
        let (session, epoch, checkpoint) = (session.id, session.epoch, record.shown.id);
        Ok(self.driver.call(Event::Park { session, epoch, attempt, checkpoint, why }).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(n: u128, worker: &str, minutes: u64) -> Candidate {
        Candidate {
            session: SessionId::from_u128(n),
            worker: worker.parse().unwrap(),
            paused_for: Duration::from_secs(60 * minutes),
            drained: false,
            failed_for: None,
            busy: false,
        }
    }

    const TTL: Option<Duration> = Some(Duration::from_secs(600));

    fn chosen(candidates: &[Candidate], ttl: Option<Duration>, short: &[&str]) -> Vec<(u128, Cause)> {
        let short = short.iter().map(|id| id.parse().unwrap()).collect();
        let number = |id: SessionId| (1..10).find(|n| SessionId::from_u128(*n) == id).unwrap();
        due(candidates, ttl, &short).into_iter().map(|(id, cause)| (number(id), cause)).collect()
    }

    /// Red when the time is not looked at.
    #[test]
    fn what_is_paused_for_long_and_what_is_drained_is_parked() {
        let mut sessions = vec![candidate(1, "a", 9), candidate(2, "a", 10), candidate(3, "b", 0)];
        assert_eq!(chosen(&sessions, TTL, &[]), [(2, Cause::Paused)]);
        assert_eq!(chosen(&sessions, None, &[]), [], "for ever");
        sessions[2].drained = true;
        assert_eq!(chosen(&sessions, None, &[]), [(3, Cause::Drain)]);
    }

    /// Red when one is chosen although another of that worker is on its way.
    #[test]
    fn a_worker_that_is_short_of_memory_gives_up_the_longest_paused_one_at_a_time() {
        let mut sessions = vec![candidate(1, "a", 2), candidate(2, "a", 5), candidate(3, "a", 5)];
        sessions.push(candidate(4, "b", 9));
        assert_eq!(chosen(&sessions, TTL, &["a"]), [(2, Cause::Memory)]);
        assert_eq!(chosen(&sessions, TTL, &["a", "b", "c"]), [(2, Cause::Memory), (4, Cause::Memory)]);
        sessions[1].busy = true;
        assert_eq!(chosen(&sessions, TTL, &["a"]), []);
        sessions[1].busy = false;
        sessions[0].paused_for = Duration::from_secs(900);
        assert_eq!(chosen(&sessions, TTL, &["a"]), [(1, Cause::Paused)], "it is relieved already");
    }

    /// Red when `may_try` says yes to everything: then it is tried at every look.
    #[test]
    fn what_failed_is_tried_again_later_and_sooner_on_a_drain() {
        let mut sessions = vec![candidate(1, "a", 20), candidate(2, "a", 3)];
        sessions[0].failed_for = Some(Duration::from_secs(59));
        assert_eq!(chosen(&sessions, TTL, &[]), []);
        assert_eq!(chosen(&sessions, TTL, &["a"]), [(2, Cause::Memory)], "another one may do better");
        sessions[0].drained = true;
        assert_eq!(chosen(&sessions, TTL, &[]), [(1, Cause::Drain)]);
        sessions[0].drained = false;
        sessions[0].failed_for = Some(AGAIN);
        assert_eq!(chosen(&sessions, TTL, &[]), [(1, Cause::Paused)]);
    }

    /// Red when pressure alone is enough.
    #[test]
    fn a_worker_is_short_when_little_is_left_or_less_than_much_and_tasks_wait_for_it() {
        let with = |memory_available_bytes: u64, memory_pressure: Option<f64>| {
            is_short(
                1000,
                &v1::WorkerHealth { memory_available_bytes, memory_pressure, ..Default::default() },
            )
        };
        assert!(with(99, None) && with(99, Some(0.0)));
        assert!(!with(100, None) && !with(199, Some(9.9)) && !with(200, Some(80.0)));
        assert!(with(199, Some(10.0)));
        assert!(!with(0, Some(80.0)), "it can't tell");
    }
}
