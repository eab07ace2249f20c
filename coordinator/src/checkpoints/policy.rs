//! Checkpoints that a session's policy asks for: at intervals, and when its worker is drained (`drain.rs`). (The one
//! before its end is taken by DeleteSession.)
//!
//! Intervals are counted on the monotonic clock, from when this process first saw the session or began the last one:
//! a wall clock that jumps takes none too many and misses none.

use std::{collections::HashMap, sync::Arc, time::Duration};

use berth_proto::{SessionId, domain::SessionState, spawn::spawn, v1, world};
use tokio::time::Instant;

use super::{Checkpoints, Record, Wanted, drain::Drains};
use crate::{
    fleet::{Event, Session},
    tenant::Sight,
};

const EVERY: Duration = Duration::from_millis(500);

/// Looks after policies until it is dropped.
pub async fn keep_policies(checkpoints: Arc<Checkpoints>) {
    // When the next one of a session is due.
    let mut next: HashMap<SessionId, Instant> = HashMap::new();
    let mut drains = Drains::default();
    loop {
        tokio::time::sleep(EVERY).await;
        let up = |s: &Session| matches!(s.state, SessionState::Ready | SessionState::Paused);
        let mut still = HashMap::new();
        for session in checkpoints.shared.view.list(&Sight::All, None, usize::MAX, up) {
            let now = Instant::now();
            let known = next.get(&session.id).copied();
            if drains.look(&checkpoints, &session) {
                still.extend(known.map(|at| (session.id, at)));
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
        drains.round();
    }
}

impl Checkpoints {
    /// Takes one in the background, and does what belongs to it.
    fn begin(self: &Arc<Self>, session: Arc<Session>, cause: v1::CheckpointCause) {
        let checkpoints = self.clone();
        spawn("checkpoint by policy", async move {
            let wanted = Wanted::by_policy(cause, &session.spec.checkpoints);
            if let Err(error) = checkpoints.take(&Sight::All, session.id, wanted).await {
                tracing::warn!(session.id = %session.id, cause = cause.as_str_name(), error = error.message(),
                    "a checkpoint by policy failed");
                let why = error.message().to_owned();
                let failed = Event::CheckpointFailed { session: session.id, epoch: session.epoch, why };
                let _ = checkpoints.driver.call(failed).await;
            }
        });
    }

    /// Of those that nobody asked for only the newest stay, and the one that the session would be restored from: one
    /// that was taken where it was before, and came late, is newer and not that.
    pub(super) async fn keep_newest(&self, session: &Session) {
        let keep = session.spec.checkpoints.keep as usize;
        let listed = world::on_thread(self.catalog.of_session(session.id)).await.unwrap_or_default();
        let asked = v1::CheckpointCause::Requested;
        let automatic = |record: &&Record| record.shown.cause() != asked && !record.held;
        let now = self.shared.view.session(&Sight::All, &session.id);
        let named = now.and_then(|now| Some(now.checkpoint.as_ref()?.from.checkpoint.clone()));
        let unnamed = |record: &&Record| named.as_ref() != Some(&record.shown.id);
        for record in listed.iter().filter(automatic).skip(keep).filter(unnamed) {
            if let Err(error) = self.delete(&Sight::All, &record.shown.id).await {
                tracing::warn!(?error, checkpoint.id = record.shown.id, "an old checkpoint stays");
            }
        }
    }
}
