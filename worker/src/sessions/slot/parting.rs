//! A session that is about to leave this worker with its newest checkpoint: from the moment at which that begins
//! nobody starts a task or changes a file in it, so that all that was acknowledged is in the checkpoint.
//!
//! Rejected: a pause. It lets files be written, is seen by clients as a state of the session, and goes by the
//! client's wish. What runs is let be: its own end is the best one, and it has a time for that.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    Error, Reason,
    domain::{EndReason, SessionState},
};
use tokio::time::Instant;

use super::{Observed, Slot};

/// After a checkpoint that was taken: the coordinator says in a moment what becomes of the session. If it does not,
/// it is gone itself, and the session goes on here.
const KEPT: Duration = Duration::from_secs(60);
/// While a checkpoint is under way. It has 15 minutes.
const UNDER_WAY: Duration = Duration::from_secs(3600);
/// An agent's word that a task has begun is here by then: only after it the session counts as still.
const HEARD: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(20);

/// Calls that are let through to the last: those that change nothing, and those to a task that runs already. What
/// still runs when the checkpoint is taken is not in it, and neither is what it was told.
const LET_THROUGH: [&str; 19] = [
    "GetTask",
    "ListTasks",
    "GetUsage",
    "WaitTask",
    "WatchTask",
    "WriteStdin",
    "CloseStdin",
    "ResizePty",
    "SignalTask",
    "CancelTask",
    "Read",
    "Stat",
    "List",
    "Search",
    "Pack",
    "Export",
    "ListContexts",
    "WatchExecution",
    "InterruptContext",
];

/// Calls that change files. They go on in a paused session too.
const WRITES: [&str; 5] = ["Write", "MakeDir", "Move", "Remove", "Unpack"];

/// The session is parting for as long as this lives, and a while longer if it was [kept](Parting::keep).
pub struct Parting {
    slot: Arc<Slot>,
    kept: bool,
}

impl Slot {
    /// From now on no task is started and no file changed in the session. Returns when nothing is under way in it
    /// either, or when `settle` is over: then `anyway`, or the session is not to leave yet.
    pub async fn part(self: &Arc<Self>, settle: Duration, anyway: bool) -> Result<Parting, Error> {
        let deadline = Instant::now() + settle;
        self.lock().parting = Some(Instant::now() + UNDER_WAY);
        let parting = Parting { slot: self.clone(), kept: false };
        while !self.lock().is_still() {
            if Instant::now() >= deadline {
                return if anyway { Ok(parting) } else { Err(busy()) };
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(parting)
    }

    /// It does not part: it was resumed.
    pub fn stay(&self) {
        self.lock().parting = None;
    }

    /// Whether the coordinator takes a checkpoint of it before its worker stops: its policy says so, it goes on
    /// elsewhere, or it is paused and will be parked.
    pub fn goes_with_a_checkpoint(&self) -> bool {
        self.placement.checkpoint_on_drain || self.state() == SessionState::Paused
    }

    /// Whether the session goes on elsewhere when it has ended here.
    pub fn moves(&self) -> bool {
        let drained = self.end.borrow().as_ref().is_some_and(|end| end.reason == EndReason::Drained);
        drained && self.placement.fenced
    }
}

impl Observed {
    /// Whether a call is refused because the session is parting.
    pub(super) fn parted(&self, call: &str) -> bool {
        self.parting.is_some_and(|until| Instant::now() < until) && !LET_THROUGH.contains(&call)
    }

    /// Nothing is under way, and nothing that may have begun just now is still to be heard of. In a paused session
    /// tasks stand still, and whoever watches them does no harm.
    fn is_still(&self) -> bool {
        match self.state {
            SessionState::Ready => !self.is_busy() && self.last_activity.elapsed() >= HEARD,
            _ => self.writes == 0,
        }
    }
}

impl Parting {
    /// The checkpoint is there: now the coordinator has the word.
    pub fn keep(mut self) {
        self.kept = true;
        if let Some(until) = &mut self.slot.lock().parting {
            *until = Instant::now() + KEPT;
        }
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        if !self.kept {
            self.slot.lock().parting = None;
        }
    }
}

/// What a call is told that comes too late here, and too early there.
pub fn moves() -> Error {
    Error::unavailable(Reason::SessionMoves, "the session is leaving its worker")
}

/// Whether a call changes files.
pub(super) fn writes(call: &str) -> bool {
    WRITES.contains(&call)
}

fn busy() -> Error {
    Error::precondition(Reason::SessionBusy, "something is under way in the session")
}

#[cfg(test)]
mod tests {
    use berth_proto::{SessionId, domain::Backend};

    use super::*;
    use crate::{link::outbox::Outbox, sessions::record};

    /// A client that is between two tasks is not gone. Red without the linger in `busy`.
    #[tokio::test(start_paused = true)]
    async fn a_session_is_quiet_a_moment_after_its_last_activity() {
        let slot = Slot::new(record::sample(SessionId::new()), Backend::Fake, false, (8, Arc::default()));
        slot.enter(&Outbox::default(), SessionState::Ready, "");
        let linger = Duration::from_secs(1);
        slot.touch();
        assert!(slot.busy(linger) && !slot.busy(Duration::ZERO));
        tokio::time::advance(linger).await;
        assert!(!slot.busy(linger));
        slot.touch();
        slot.enter(&Outbox::default(), SessionState::Paused, "");
        assert!(!slot.busy(linger), "what is paused comes to no end");
    }

    /// Red when a parting that was kept never ends, or not in a minute (`KEPT`): the coordinator may be gone with its
    /// word. Red when one that failed stays, or a resume does not end it.
    #[tokio::test(start_paused = true)]
    async fn a_parting_ends_with_a_failure_at_once_and_by_itself_after_a_while() {
        let slot =
            Arc::new(Slot::new(record::sample(SessionId::new()), Backend::Fake, false, (8, Arc::default())));
        slot.enter(&Outbox::default(), SessionState::Ready, "");
        let parted = || slot.lock().parted("Run");
        let parting = slot.part(Duration::from_secs(2), false).await.expect("nothing runs");
        assert!(parted() && !slot.lock().parted("Read"));
        drop(parting);
        assert!(!parted(), "it failed: the session goes on");
        let parting = slot.part(Duration::from_secs(2), false).await.expect("nothing runs");
        slot.stay();
        parting.keep();
        assert!(!parted(), "it was resumed meanwhile");
        slot.part(Duration::from_secs(2), false).await.expect("nothing runs").keep();
        // A minute: the coordinator counts on it (`PARTED`).
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(parted());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!parted());
    }
}
