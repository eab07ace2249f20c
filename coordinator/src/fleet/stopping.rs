//! A worker whose process stops. It is drained until it goes, and as this process only: what the operator wants of the
//! worker is another matter, and holds again for its next process.
//!
//! It ends by itself what is quiet, and what remains when its time is up; we see to it that it gets nothing new, and
//! that what may go on elsewhere does (`checkpoints::policy`). So there is no deadline to be kept here: of a worker
//! that dies while it stops, or is killed, nothing else is known than of any other that is lost.

use std::time::Duration;

use berth_proto::{
    Incarnation, WorkerId,
    domain::{EndReason, SessionState},
};

use super::{
    Fleet,
    model::{LinkId, Now, Stop, Worker},
};

impl Fleet {
    pub(super) fn stopping(&mut self, id: &WorkerId, link: LinkId, within: Duration, now: Now) {
        let Some(known) = self.linked(id, link).cloned() else { return };
        tracing::info!(worker.id = %id, within_s = within.as_secs(), "a worker stops");
        let stopping = self.stop_of(Some(&known), known.incarnation, Some(within), now);
        self.put_worker(Worker { stopping, ..(*known).clone() });
        self.unplace_starting(id, "stops", now);
    }

    /// How a process that says so stops. What it said before it attached anew still counts for how long it had.
    pub(super) fn stop_of(
        &self,
        old: Option<&Worker>,
        incarnation: Incarnation,
        within: Option<Duration>,
        now: Now,
    ) -> Option<Stop> {
        let left = within?;
        let same = old.filter(|old| old.incarnation == incarnation);
        let before = same.and_then(|old| old.stopping).map(|stop| stop.within);
        Some(Stop { until: now.wall + left, within: before.unwrap_or(left).max(left) })
    }

    /// Sessions that nobody has seen ready wait for no worker that is going or gone: nor does their client.
    pub(super) fn unplace_starting(&mut self, worker: &WorkerId, why: &str, now: Now) {
        let load = self.index.load.get(worker).cloned().unwrap_or_default();
        for id in load.sessions {
            let Some(session) = self.sessions.get(&id).cloned() else { continue };
            if session.state == SessionState::Placed {
                self.tell_end(&session, EndReason::Drained);
                self.unplace(&session, &format!("{worker} {why}"), now);
            }
        }
    }
}
