//! Starting a task once, although answers get lost.
//!
//! A start whose answer was lost is sent again under the same request id, by which the session knows what it started
//! already. A session that went back to a checkpoint knows that too, but only of what was started before the checkpoint.
//! So each start says to which placement of the session it was first sent, and a newer one refuses it unless it knows
//! the id. Then nobody knows whether the task has run: that is told, and it is started again only if the caller said so.

use crate::{Command, Error, Reason, Session};

/// A start under way.
pub(crate) struct Attempt {
    /// Of the placement that it was first sent to.
    epoch: u64,
    /// It was sent, and no answer came.
    doubt: bool,
    /// Start it where it is not known whether it has run.
    again: bool,
}

/// Why a start is refused that was sent for the first time all the same: the session looked for its request id before.
const SETTLED: [Reason; 7] = [
    Reason::TooManyTasks,
    Reason::DiskFull,
    Reason::CwdNotFound,
    Reason::InvalidField,
    Reason::RequestIdReused,
    Reason::TaskNotFound,
    Reason::SessionFenced,
];

impl Attempt {
    pub(crate) async fn new(session: &Session, command: &Command) -> Result<Self, Error> {
        Ok(Self { epoch: session.epoch().await?, doubt: false, again: command.retry_after_recovery })
    }

    /// For the request.
    pub(crate) fn if_epoch(&self) -> Option<u64> {
        Some(self.epoch)
    }

    /// What a try that failed means. `None`: try again at once. An error: it may work in a moment. A failure: it is over.
    pub(crate) fn failed(&mut self, session: &Session, error: Error) -> Result<Option<Error>, Error> {
        if error.is(Reason::SessionRecovered) {
            return self.recovered(session, error).map(|()| None);
        }
        let in_doubt = self.doubt && error.reason().is_none_or(|reason| !SETTLED.contains(&reason));
        self.doubt |= error.was_lost();
        let error = if in_doubt { error.in_doubt_of("task has started") } else { error };
        if error.is_temporary() && !error.is_not_connected() { Ok(Some(error)) } else { Err(error) }
    }

    fn recovered(&mut self, session: &Session, error: Error) -> Result<(), Error> {
        let now = error.detail("epoch").and_then(|epoch| epoch.parse::<u64>().ok());
        let Some(now) = now.filter(|now| *now > self.epoch) else { return Err(error) };
        session.placed_at(now);
        if self.doubt && !self.again {
            return Err(error.doubtful());
        }
        // Refused at the first try, and so not started: only what was known here was old.
        (self.epoch, self.doubt) = (now, false);
        Ok(())
    }
}
