//! What is done for sessions whose worker is drained by its operator, or stops. One that may go on elsewhere does,
//! with a checkpoint of just now; one whose policy says so has a checkpoint taken.
//!
//! The worker knows better than we do whether something is under way in a session: a call, or a task of which we have
//! not heard. So the request says that the session is parting, and the worker refuses it where something is, or waits
//! for its end; and from then on it lets nobody change what the checkpoint is of.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use berth_proto::{
    Error, Reason, SessionId, WorkerId,
    domain::{EndReason, OnWorkerLoss, SessionState},
    spawn::spawn,
    v1, world,
};
use tokio::time::Instant;

use super::{Checkpoints, Parting, Wanted};
use crate::{
    fleet::{Event, Scheduling, Session, Worker},
    tenant::Sight,
};

/// So long before the deadline nothing is waited for any more: what runs would be ended anyway. A worker that stops
/// may have less than that in all: then it is half of that.
const EARLY: Duration = Duration::from_secs(30);
/// After one that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// What is under way has this long to end while there is time.
const SETTLE: Duration = Duration::from_secs(2);
/// And when there is none: then it goes anyway.
const SETTLE_LATE: Duration = Duration::from_secs(10);
/// Its worker lets nobody into a parting session for a minute after the checkpoint.
const PARTED: Duration = Duration::from_secs(45);

/// What the drain of its worker asks of a session now.
struct Step {
    stage: Stage,
    parting: Option<Parting>,
    then: Then,
    again: Duration,
}

/// Each is a reason to try once more what was done in an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Stage {
    stopping: bool,
    late: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// It stays until it ends, or the deadline is over.
    Stay,
    /// It ends there, and goes on elsewhere.
    Move,
    End,
}

/// What was tried for a session.
struct Tried {
    stage: Stage,
    next: Instant,
    parted: bool,
    /// When a checkpoint was taken for it.
    done: Arc<OnceLock<Instant>>,
}

/// When the drain of a worker is over: on our own clock, so that no jump of the time of day moves it.
struct Deadline {
    until: SystemTime,
    at: Instant,
}

/// What was tried for the sessions of workers that are drained.
#[derive(Default)]
pub(super) struct Drains {
    tried: Round<SessionId, Tried>,
    deadlines: Round<WorkerId, Deadline>,
}

/// What is known from one look at all sessions to the next. What a look does not come upon is forgotten with it.
struct Round<K, V> {
    before: HashMap<K, V>,
    now: HashMap<K, V>,
}

impl<K, V> Default for Round<K, V> {
    fn default() -> Self {
        let (before, now) = Default::default();
        Self { before, now }
    }
}

impl<K, V> Round<K, V> {
    fn end(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }
}

impl Drains {
    /// Does what the drain of its worker asks of this session, if that is due. True: what becomes of the session is
    /// decided here.
    pub fn look(&mut self, checkpoints: &Arc<Checkpoints>, session: &Arc<Session>) -> bool {
        let view = &checkpoints.shared.view;
        let worker = session.worker.as_ref().and_then(|id| view.worker(id));
        let Some(worker) = worker.filter(|_| session.spec.kept_on_drain()) else { return false };
        let Some(left) = self.left(&worker) else { return false };
        let tried = self.tried.before.remove(&session.id);
        let stopping = worker.stopping.map(|stop| stop.within);
        let Some(step) = step(session, stopping, left, view.running_in(&session.id)) else {
            self.tried.now.extend(tried.map(|tried| (session.id, tried)));
            return false;
        };
        let tried = match tried {
            // One that is under way is waited for, whoever asked for it.
            Some(tried) if !tried.is_due(&step) || checkpoints.busy(session.id) => tried,
            tried => {
                let next = Tried::next(tried, &step);
                checkpoints.leave(session.clone(), step, next.done.clone());
                next
            }
        };
        self.tried.now.insert(session.id, tried);
        true
    }

    /// All sessions have been looked at.
    pub fn round(&mut self) {
        self.tried.end();
        self.deadlines.end();
    }

    /// How long the drain of this worker still has, if it is drained.
    fn left(&mut self, worker: &Worker) -> Option<Duration> {
        let Scheduling::Draining { until } = worker.in_force() else { return None };
        let Round { before, now } = &mut self.deadlines;
        let known = now.remove(&worker.id).or_else(|| before.remove(&worker.id));
        let deadline = known.filter(|known| known.until == until).unwrap_or_else(|| {
            let left = until.duration_since(world::now()).unwrap_or_default();
            Deadline { until, at: Instant::now() + left }
        });
        let left = deadline.at.saturating_duration_since(Instant::now());
        now.insert(worker.id.clone(), deadline);
        Some(left)
    }
}

impl Tried {
    fn is_due(&self, step: &Step) -> bool {
        let over = self.done.get().is_some() && step.then == Then::Stay;
        step.stage > self.stage || (self.next <= Instant::now() && !over)
    }

    /// A session that parted for a checkpoint of before still does: then it only has to be told once more.
    fn next(before: Option<Self>, step: &Step) -> Self {
        let parted = step.parting.is_some();
        let done = before.filter(|before| before.parted && parted).map(|before| before.done);
        let fresh = |done: &Arc<OnceLock<Instant>>| done.get().is_some_and(|at| at.elapsed() < PARTED);
        let done = done.filter(fresh).unwrap_or_default();
        Self { stage: step.stage, next: Instant::now() + step.again, parted, done }
    }
}

/// What is to be done for a session that leaves with a checkpoint. `stopping`: how long its worker's process had when
/// it began to stop. `left`: until the deadline. `None`: something runs, and still has time.
fn step(session: &Session, stopping: Option<Duration>, left: Duration, running: usize) -> Option<Step> {
    let early = stopping.map_or(EARLY, |within| EARLY.min(within / 2));
    let (late, quiet) = (left <= early, running == 0);
    // A paused session is parked: see `park`.
    if session.state == SessionState::Paused || !(quiet || late) {
        return None;
    }
    let then = match session.spec.on_worker_loss {
        OnWorkerLoss::Restore => Then::Move,
        OnWorkerLoss::End if stopping.is_some() && quiet => Then::End,
        OnWorkerLoss::End => Then::Stay,
    };
    let parting = match then {
        Then::Stay => None,
        Then::Move if late => Some(Parting { settle: SETTLE_LATE.min(left / 3), anyway: true }),
        Then::Move | Then::End => Some(Parting { settle: SETTLE.min(early / 2), anyway: false }),
    };
    let stage = Stage { stopping: stopping.is_some(), late };
    Some(Step { stage, parting, then, again: AGAIN.min(early / 5) })
}

impl Checkpoints {
    /// Takes one in the background, and does what belongs to it.
    fn leave(self: &Arc<Self>, session: Arc<Session>, step: Step, done: Arc<OnceLock<Instant>>) {
        let checkpoints = self.clone();
        spawn("checkpoint on drain", async move {
            let (id, epoch) = (session.id, session.epoch);
            let taken = match done.get() {
                Some(_) => Ok(()),
                None => checkpoints.take_for_drain(&session, step.parting).await,
            };
            let event = match taken {
                Ok(()) => {
                    let _ = done.set(Instant::now());
                    match step.then {
                        Then::Stay => return,
                        Then::Move => Event::Move { session: id, epoch },
                        Then::End => {
                            Event::Delete { by: Sight::All, session: id, reason: EndReason::Drained }
                        }
                    }
                }
                // No failure: it is not its time yet.
                Err(error) if error.reason() == Reason::SessionBusy => return,
                Err(error) => {
                    tracing::warn!(session.id = %id, error = error.message(), "a checkpoint on a drain failed");
                    Event::CheckpointFailed { session: id, epoch, why: error.message().to_owned() }
                }
            };
            let _ = checkpoints.driver.call(event).await;
        });
    }

    async fn take_for_drain(&self, session: &Session, parting: Option<Parting>) -> Result<(), Error> {
        let wanted = Wanted::by_policy(v1::CheckpointCause::Drain, &session.spec.checkpoints);
        self.take(&Sight::All, session.id, Wanted { parting, ..wanted }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::spec, *};
    use crate::fleet::{Spec, Stop};

    const SECOND: Duration = Duration::from_secs(1);

    fn session(on_worker_loss: OnWorkerLoss) -> Session {
        let spec = Spec { on_worker_loss, ..spec() };
        let mut session = Session::new(SessionId::from_u128(7), spec, SystemTime::UNIX_EPOCH);
        session.state = SessionState::Ready;
        session
    }

    /// What is done, and whether what runs keeps it from that; `None`: it is let be.
    fn asked(
        on_worker_loss: OnWorkerLoss,
        stopping: Option<u32>,
        left: u32,
        running: usize,
    ) -> Option<(Then, Option<bool>)> {
        let step = step(&session(on_worker_loss), stopping.map(|s| SECOND * s), SECOND * left, running)?;
        Some((step.then, step.parting.map(|parting| parting.anyway)))
    }

    /// Red when what runs is not waited for, or half a minute is taken from any grace.
    #[test]
    fn what_runs_has_time_until_half_a_minute_before_the_deadline_or_half_of_a_short_grace() {
        use OnWorkerLoss::{End, Restore};
        // A drain of the operator's.
        assert_eq!(asked(Restore, None, 600, 1), None);
        assert_eq!(asked(Restore, None, 600, 0), Some((Then::Move, Some(false))));
        assert_eq!(asked(Restore, None, 30, 1), Some((Then::Move, Some(true))));
        assert_eq!(asked(End, None, 600, 1), None);
        assert_eq!(asked(End, None, 600, 0), Some((Then::Stay, None)), "it may end by itself");
        assert_eq!(asked(End, None, 30, 1), Some((Then::Stay, None)));
        // A worker that stops within ten seconds, or a hundred.
        assert_eq!(asked(Restore, Some(10), 6, 1), None);
        assert_eq!(asked(Restore, Some(10), 5, 1), Some((Then::Move, Some(true))));
        assert_eq!(asked(Restore, Some(100), 31, 1), None);
        assert_eq!(asked(End, Some(10), 9, 0), Some((Then::End, Some(false))), "nobody else ends it");
        assert_eq!(asked(End, Some(10), 5, 1), Some((Then::Stay, None)));
    }

    #[test]
    fn a_paused_session_is_somebody_elses() {
        let mut paused = session(OnWorkerLoss::Restore);
        paused.state = SessionState::Paused;
        assert!(step(&paused, None, Duration::ZERO, 0).is_none());
    }

    /// Red when a stage counts for nothing, or when a session that has its checkpoint is given another at each look.
    #[tokio::test(start_paused = true)]
    async fn each_stage_is_a_reason_to_try_again_and_a_checkpoint_is_enough_for_one_that_stays() {
        let step = |left| step(&session(OnWorkerLoss::End), None, SECOND * left, 0).unwrap();
        let tried = Tried::next(None, &step(600));
        assert!(!tried.is_due(&step(600)));
        tokio::time::advance(AGAIN).await;
        assert!(tried.is_due(&step(600)), "it may have failed");
        tried.done.set(Instant::now()).unwrap();
        assert!(!tried.is_due(&step(600)));
        assert!(tried.is_due(&step(30)), "what came after it is to be kept too");
    }

    /// Red when a move is told once more after the worker lets clients in again, or never.
    #[tokio::test(start_paused = true)]
    async fn a_move_whose_word_was_lost_is_told_again_and_after_a_while_taken_anew() {
        let step = || step(&session(OnWorkerLoss::Restore), None, SECOND * 600, 0).unwrap();
        let tried = Tried::next(None, &step());
        tried.done.set(Instant::now()).unwrap();
        tokio::time::advance(AGAIN).await;
        assert!(tried.is_due(&step()));
        let again = Tried::next(Some(tried), &step());
        assert!(again.done.get().is_some(), "with the same checkpoint");
        tokio::time::advance(PARTED).await;
        assert!(Tried::next(Some(again), &step()).done.get().is_none());
    }

    /// Red when the deadline is reckoned anew at each look: a clock that is set forward by an hour would end it.
    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_on_a_clock_that_nobody_sets() {
        let mut drains = Drains::default();
        let mut worker =
            Worker::from_record("w".parse().unwrap(), berth_proto::Incarnation(1), Scheduling::Active);
        assert_eq!(drains.left(&worker), None);
        let until = world::now() + SECOND * 600;
        worker.stopping = Some(Stop { until, within: SECOND * 600 });
        let first = drains.left(&worker).unwrap();
        drains.round();
        // The time of day stands still here, and so it is the other clock that is asked.
        tokio::time::advance(SECOND * 500).await;
        let second = drains.left(&worker).unwrap();
        assert!(second <= first - SECOND * 499, "{first:?} {second:?}");
        // Another drain has another deadline.
        worker.stopping = Some(Stop { until: until + SECOND, within: SECOND });
        assert!(drains.left(&worker).unwrap() > second);
    }
}
