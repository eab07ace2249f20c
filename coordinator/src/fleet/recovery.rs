//! From which checkpoint a session goes on, and what becomes of it when that one is gone or damaged.
//!
//! A session names its newest. One that is removed, whose time is over, or of which the blob store has lost a piece, is
//! *passed over*: the session then names the next older one of its own that is whole as far as is known. That is
//! noticed at the latest when a worker asks for the pieces, and the fleet hears of it before the worker does
//! ([`crate::checkpoints`]); so when that worker says that the sandbox failed, the session already names another, and
//! goes back to the queue with it. With none left it ends, and the reason is the truth. That something newer was
//! passed over is told: in the session's message, and by `recovered_to`.
//!
//! A session whose files were to come from a checkpoint is never started without them.
//!
//! A parked session is left alone: its checkpoint is all there is of it, and going back behind that is for somebody to
//! decide ([`super::parking`]).

use std::sync::Arc;

use berth_proto::domain::{EndReason, SessionState};

use super::{
    Fleet,
    event::{Gone, Refused, Report},
    model::{Kept, Now, Recovery, Session},
};

/// How a session's message begins whose newest checkpoint was found to be damaged.
pub(super) const CHECKPOINT_DAMAGED: &str = "its newest checkpoint is damaged: ";
/// Names of checkpoints that were passed over, at most.
const PASSED_OVER: usize = 10;

impl Fleet {
    /// Nobody shall be restored from this checkpoint any more. What has ended stays as it ended. To remove one without
    /// which a parked session would be nothing is refused.
    pub(super) fn checkpoint_gone(&mut self, gone: &Gone, now: Now) -> Result<(), Refused> {
        let parked = self.sessions.values().find(|s| s.needs(&gone.checkpoint));
        if let Some(parked) = parked.filter(|_| gone.damage.is_none()) {
            return Err(Refused::CheckpointInUse(parked.id));
        }
        let named = |s: &&Arc<Session>| {
            let kept =
                s.checkpoint.as_ref().filter(|_| s.state != SessionState::Ended && !s.comes_from_park());
            kept.is_some_and(|kept| kept.from.checkpoint == gone.checkpoint)
        };
        let sessions: Vec<_> = self.sessions.values().filter(named).cloned().collect();
        for session in sessions {
            let older = gone.older.as_ref().filter(|(of, _)| *of == session.id).map(|(_, kept)| kept.clone());
            self.pass_over(&session, older, gone, now);
        }
        Ok(())
    }

    fn pass_over(&mut self, session: &Session, older: Option<Kept>, gone: &Gone, now: Now) {
        let what =
            gone.damage.as_ref().map_or_else(|| "was removed".to_owned(), |why| format!("is damaged: {why}"));
        tracing::warn!(session.id = %session.id, checkpoint.id = gone.checkpoint, what,
            older = older.as_ref().map(|kept| &kept.from.checkpoint), "a session's newest checkpoint is gone");
        let mut changed = Session { checkpoint: older, ..session.clone() };
        match session.state {
            SessionState::Pending => {
                changed.message = format!("waits for another place: checkpoint {} {what}", gone.checkpoint);
                match stepped_back(&changed) {
                    Some(changed) => self.put_session(changed),
                    None => {
                        self.without_files(session, &format!("checkpoint {} {what}", gone.checkpoint), now)
                    }
                }
                return;
            }
            SessionState::Ready | SessionState::Paused if gone.damage.is_some() => {
                changed.message = format!("{CHECKPOINT_DAMAGED}{}", gone.checkpoint);
            }
            // Placed: its worker may have what it needs, or says that it failed.
            _ => {}
        }
        self.put_session(changed);
    }

    /// What a session was to be made of is nowhere any more.
    pub(super) fn without_files(&mut self, session: &Session, why: &str, now: Now) {
        let lost = session.recovered.as_ref().is_some_and(|recovery| recovery.under_way);
        let reason = if lost { EndReason::WorkerLost } else { EndReason::SandboxFailed };
        self.finish(session.id, reason, &format!("{why}, and there is no older checkpoint"), now);
    }

    /// A sandbox did not start. True: it was to be restored from a checkpoint that is gone by now, and the next older
    /// one is tried, or there is none.
    pub(super) fn tries_older(&mut self, session: &Session, report: &Report, now: Now) -> bool {
        let Some(recovery) = session.recovered.as_ref().filter(|_| goes_back(session)) else { return false };
        if report.reason == Some(EndReason::TtlExpired) {
            return false;
        }
        let why =
            format!("checkpoint {} can't be restored ({})", recovery.kept.from.checkpoint, report.message);
        match &session.checkpoint {
            Some(_) => {
                let until = now.mono + self.config.restore_wait.max(session.spec.wait_for_place);
                self.back_to_queue(session, &why, until, now);
            }
            None => {
                let reason = report.reason.unwrap_or(EndReason::SandboxFailed);
                self.finish(session.id, reason, &format!("{why}, and there is no older one"), now);
            }
        }
        true
    }
}

/// Whether a session is being restored from a checkpoint that is gone by now.
pub(super) fn goes_back(session: &Session) -> bool {
    let recovery = session.recovered.as_ref().filter(|recovery| recovery.under_way);
    session.state == SessionState::Placed
        && recovery.is_some_and(|recovery| session.checkpoint.as_ref() != Some(&recovery.kept))
}

/// A session that is to be placed again, with what it goes back to now. `None`: that is nowhere any more.
pub(super) fn stepped_back(session: &Session) -> Option<Session> {
    let mut session = session.clone();
    let Some(kept) = &session.checkpoint else { return (!session.needs_files()).then_some(session) };
    if let Some(recovery) = session.recovered.as_mut().filter(|recovery| recovery.under_way)
        && recovery.kept != *kept
    {
        if recovery.passed_over.len() < PASSED_OVER {
            recovery.passed_over.push(recovery.kept.from.checkpoint.clone());
        }
        recovery.kept = kept.clone();
    }
    Some(session)
}

/// The recovery of a session that loses its worker now, or is on its way back already.
pub(super) fn recovery(session: &Session, kept: Kept) -> Recovery {
    match &session.recovered {
        Some(recovery) if recovery.under_way => recovery.clone(),
        _ => Recovery { kept, passed_over: Vec::new(), under_way: true },
    }
}

/// What a session says that went back to an older checkpoint than its newest, as long as it has no newer one again.
pub(super) fn went_back(session: &Session) -> Option<String> {
    let recovery = session.recovered.as_ref()?;
    let newest = recovery.passed_over.first()?;
    let still = session.checkpoint.as_ref() == Some(&recovery.kept);
    still.then(|| format!("went back to an older checkpoint: its newest, {newest}, could not be restored"))
}
