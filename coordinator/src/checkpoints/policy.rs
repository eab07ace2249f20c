//! Checkpoints that a session's policy asks for: at intervals, and when its worker is drained. (The one before its end
//! is taken by DeleteSession.)
//!
//! Intervals are counted on the monotonic clock, from when this process first saw the session or began the last one:
//! a wall clock that jumps takes none too many and misses none.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    SessionId,
    domain::{OnWorkerLoss, SessionState},
    spawn::spawn,
    v1,
};
use tokio::time::Instant;

use super::{Checkpoints, Wanted};
use crate::fleet::{Event, Scheduling, Session};

const EVERY: Duration = Duration::from_millis(500);
/// After one for a drain: should it have failed, it is tried again.
const DRAIN_EVERY: Duration = Duration::from_secs(5);
/// A drain takes no longer.
const DRAIN_ONCE: Duration = Duration::from_secs(86_400);
/// Before a drain's deadline a session is moved although its tasks run: they would be ended anyway.
const BEFORE_DEADLINE: Duration = Duration::from_secs(30);
/// Automatic checkpoints of one session that retention looks through.
const LOOKED_AT: usize = 2000;

/// Looks after policies until it is dropped.
pub async fn keep_policies(checkpoints: Arc<Checkpoints>) {
    // When the next one of a session is due.
    let mut next: HashMap<SessionId, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let up = |s: &Session| matches!(s.state, SessionState::Ready | SessionState::Paused);
        let mut still = HashMap::new();
        for session in checkpoints.shared.view.list(None, usize::MAX, up) {
            let now = Instant::now();
            let known = next.get(&session.id).copied();
            if session.spec.checkpoints.on_drain && checkpoints.must_move(&session) {
                if known.is_none_or(|at| at <= now || at > now + DRAIN_ONCE) {
                    checkpoints.begin(session.clone(), v1::CheckpointCause::Drain);
                    // One that stays has had its checkpoint; one that moves is soon gone, or it failed.
                    let moves = session.spec.on_worker_loss == OnWorkerLoss::Restore;
                    still.insert(session.id, now + if moves { DRAIN_EVERY } else { DRAIN_ONCE });
                } else {
                    still.extend(known.map(|at| (session.id, at)));
                }
                continue;
            }
            let Some(every) = session.spec.checkpoints.interval else { continue };
            let at = known.unwrap_or(now + every);
            if at <= now {
                // The last one still goes on: that is soon enough.
                if !checkpoints.busy(session.id) {
                    checkpoints.begin(session.clone(), v1::CheckpointCause::Interval);
                }
                still.insert(session.id, now + every);
            } else {
                still.insert(session.id, at);
            }
        }
        next = still;
    }
}

impl Checkpoints {
    /// Whether its worker is drained, and nothing runs in it any more, or soon may not.
    fn must_move(&self, session: &Session) -> bool {
        let worker = session.worker.as_ref().and_then(|id| self.shared.view.worker(id));
        let Some(Scheduling::Draining { until }) = worker.map(|worker| worker.scheduling) else {
            return false;
        };
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        left <= BEFORE_DEADLINE || self.shared.view.running_in(&session.id) == 0
    }

    /// Takes one in the background, and does what belongs to it.
    fn begin(self: &Arc<Self>, session: Arc<Session>, cause: v1::CheckpointCause) {
        let checkpoints = self.clone();
        spawn("checkpoint by policy", async move {
            let wanted = Wanted::by_policy(cause, &session.spec.checkpoints);
            if let Err(error) = checkpoints.take(session.id, wanted).await {
                tracing::warn!(session.id = %session.id, cause = cause.as_str_name(), error = error.message(),
                    "a checkpoint by policy failed");
                let why = error.message().to_owned();
                let failed = Event::CheckpointFailed { session: session.id, epoch: session.epoch, why };
                let _ = checkpoints.driver.call(failed).await;
                return;
            }
            if cause == v1::CheckpointCause::Drain && session.spec.on_worker_loss == OnWorkerLoss::Restore {
                let moved = Event::Move { session: session.id, epoch: session.epoch };
                let _ = checkpoints.driver.call(moved).await;
            }
        });
    }

    /// Of those that nobody asked for only the newest stay.
    pub(super) async fn keep_newest(&self, session: &Session) {
        let keep = session.spec.checkpoints.keep as usize;
        let listed = self.catalog.list(Some(session.id), None, LOOKED_AT).await.unwrap_or_default();
        let asked = v1::CheckpointCause::Requested;
        for record in listed.iter().filter(|record| record.shown.cause() != asked).skip(keep) {
            if let Err(error) = self.delete(&record.shown.id).await {
                tracing::warn!(?error, checkpoint.id = record.shown.id, "an old checkpoint stays");
            }
        }
    }
}
