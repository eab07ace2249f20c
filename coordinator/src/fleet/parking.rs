//! Parking: a session that stays paused gives its place up. Its files are in a checkpoint, its sandbox is ended, and it
//! is in the store alone until somebody resumes it or its time is over.
//!
//! The order: the attempt is noted, the checkpoint is taken and kept, then the session is `Parked` in the store, and
//! only then its worker is told to end the sandbox. So at no moment are its files nowhere. A resume that comes before
//! it is parked ends the attempt; one that comes after waits until the sandbox is gone.
//!
//! While its sandbox still ends, a parked session has its `worker`, and its place there. That one can't act: it was
//! frozen, and only a resume thaws it, which no worker is told any more. So where the worker is lost meanwhile nobody
//! has to wait for a fence: the place is given up with the worker.
//!
//! What can't be resumed stays parked: its checkpoint is all there is of it, and the next attempt may do better.

use std::sync::Arc;

use berth_proto::{
    Epoch, SessionId,
    convert::time_out,
    domain::{EndReason, SessionState},
};

use super::{
    Fleet,
    event::{Refused, Report},
    model::{Clock, Liveness, Now, Session, Worker},
};

/// How a session's message begins that could not be parked.
const FAILED: &str = "could not be parked, and stays paused: ";

impl Fleet {
    /// An attempt to park it begins.
    pub(super) fn parking(&mut self, id: SessionId, epoch: Epoch, attempt: u64) -> Result<(), Refused> {
        let session = self.sessions.get(&id).ok_or(Refused::NoSession(id))?;
        if session.state != SessionState::Paused || session.epoch != epoch || session.clock.resumes {
            return Err(Refused::NotParked(id));
        }
        self.put_session(Session { parking: Some(attempt), ..(**session).clone() });
        Ok(())
    }

    /// Its checkpoint is kept: from now on it is parked.
    pub(super) fn park(
        &mut self,
        id: SessionId,
        (epoch, attempt): (Epoch, u64),
        checkpoint: &str,
        why: &str,
        now: Now,
    ) -> Result<(), Refused> {
        let session = self.sessions.get(&id).cloned().ok_or(Refused::NoSession(id))?;
        let ours = session.state == SessionState::Paused && session.parking == Some(attempt);
        let kept = session.checkpoint.as_ref().filter(|kept| kept.from.checkpoint == checkpoint);
        let Some(kept) = kept.filter(|_| ours && session.epoch == epoch) else {
            return Err(Refused::NotParked(id));
        };
        tracing::info!(session.id = %id, checkpoint.id = checkpoint, why, "parked");
        let parked = Session {
            state: SessionState::Parked,
            parked_at: Some(kept.at),
            paused_at: None,
            parking: None,
            resume_failed: None,
            message: format!("parked, since {why}: its files are kept, and what ran in it is gone"),
            clock: Clock { ending_check: now.mono + self.config.ending_check, ..session.clock.clone() },
            ..(*session).clone()
        };
        self.put_session(parked.clone());
        self.tell_end(&parked, EndReason::Parked);
        // A dead worker can't say that it is done.
        let dead = |w: &Arc<Worker>| w.liveness == Liveness::Dead;
        if parked.worker.as_ref().and_then(|id| self.workers.get(id)).is_none_or(dead) {
            self.vacate(&parked, now);
        }
        Ok(())
    }

    pub(super) fn parking_failed(&mut self, id: SessionId, attempt: u64, why: &str) -> Result<(), Refused> {
        let session = self.sessions.get(&id).ok_or(Refused::NoSession(id))?;
        if session.state == SessionState::Paused && session.parking == Some(attempt) {
            let message = format!("{FAILED}{why}");
            self.put_session(Session { parking: None, message, ..(**session).clone() });
        }
        Ok(())
    }

    /// The sandbox of a parked session is gone, or nobody is left who could say so: its place is free.
    pub(super) fn vacate(&mut self, session: &Session, now: Now) {
        self.finish_tasks(session.id, EndReason::Parked, now.wall);
        self.tasks.remove(&session.id);
        let resume = session.clock.resume_next;
        self.put_session(Session {
            worker: None,
            backend: String::new(),
            clock: Clock { resume_next: false, ..session.clock.clone() },
            ..session.clone()
        });
        if resume && let Err(refused) = self.unpark(session.id, now) {
            let (reason, error) = (failure(&refused), berth_proto::Error::from(refused));
            self.park_again(session.id, reason, error.message());
        }
    }

    /// Its worker has ended it, for whatever reason it gives: what it was parked with is whole.
    pub(super) fn parked_end(&mut self, session: &Session, report: &Report, now: Now) {
        match report.reason {
            Some(reason @ EndReason::TtlExpired) => self.finish(session.id, reason, &report.message, now),
            _ => self.vacate(session, now),
        }
    }

    /// Its worker should have said by now that the sandbox is gone. One that isn't there is not waited for: should it
    /// come back with it, its hello is answered with the end.
    pub(super) fn still_leaving(&mut self, session: &Session, now: Now) {
        if !self.alive(session) {
            return self.vacate(session, now);
        }
        self.tell_end(session, EndReason::Parked);
        let clock = Clock { ending_check: now.mono + self.config.ending_check, ..session.clock.clone() };
        self.put_session(Session { clock, ..session.clone() });
    }

    /// A parked session is to be ready again. Refused like a new one, and then parked as before.
    pub(super) fn unpark(&mut self, id: SessionId, now: Now) -> Result<(), Refused> {
        let session = self.sessions.get(&id).cloned().ok_or(Refused::NoSession(id))?;
        if session.worker.is_some() {
            let clock = Clock { resume_next: true, ..session.clock.clone() };
            self.put_session(Session { clock, ..(*session).clone() });
            return Ok(());
        }
        let session = Session {
            state: SessionState::Pending,
            resume_failed: None,
            start_timed_out: false,
            unservable: false,
            ..(*session).clone()
        };
        self.find_or_queue(session, now)
    }

    /// It found no place, or could not be made ready there: it is parked as it was.
    pub(super) fn park_again(&mut self, id: SessionId, reason: EndReason, why: &str) {
        let Some(session) = self.sessions.get(&id).cloned() else { return };
        tracing::warn!(session.id = %id, ?reason, why, "a parked session could not be resumed");
        self.put_session(Session {
            state: SessionState::Parked,
            worker: None,
            backend: String::new(),
            resume_failed: Some(reason),
            message: format!("could not be resumed, and stays parked: {why}"),
            ..(*session).clone()
        });
    }
}

/// What a session says that is ready for the first time since it was parked.
pub(super) fn resumed(session: &Session) -> Option<String> {
    let at = session.parked_at.filter(|_| session.comes_from_park())?;
    Some(format!("it was parked: its files are as of {}, and what ran in it then is gone", time_out(at)))
}

/// As a session would have ended that was refused like this.
fn failure(refused: &Refused) -> EndReason {
    match refused {
        Refused::NoPlace(_) | Refused::QueueFull { .. } | Refused::LimitTooHigh(_) => EndReason::NoPlace,
        _ => EndReason::SandboxFailed,
    }
}
