//! The end of a worker, in sequence; see [`super`].

use std::time::Duration;

use berth_proto::domain::EndReason;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Parts, Running};

/// After the grace: time for ending and removing all sessions.
const END_TIMEOUT: Duration = Duration::from_secs(40);
/// Time for the coordinator to hear the last reports.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// What sessions are told that end with their worker.
const SHUT_DOWN: &str = "its worker was shut down";
/// How often a worker that stops looks whether something still runs.
const QUIET_EVERY: Duration = Duration::from_millis(20);
/// A client that did something in a session so short a time ago may be about to do more, or to end it.
const LINGER: Duration = Duration::from_secs(1);
/// A link that is away for longer is not waited for.
const DETACHED: Duration = Duration::from_secs(3);

impl Running {
    /// Ends the worker with the grace that it was configured with.
    pub async fn shutdown(self) {
        let grace = self.shutdown_grace;
        self.shutdown_within(grace).await;
    }

    /// Ends the worker: what runs has `grace` to end by itself, then it is ended.
    pub async fn shutdown_within(self, grace: Duration) {
        let Parts { sessions, health, .. } = &*self.parts;
        sessions.close("the worker is shutting down");
        self.parts.tell_readiness(false).await;
        health.tell();
        if self.failed.borrow().is_none() {
            self.drain(grace).await;
        }
        sessions.end_all(EndReason::Drained, SHUT_DOWN);
        if tokio::time::timeout(END_TIMEOUT, sessions.empty()).await.is_err() {
            warn!("some sessions could not be removed in time: the next start will");
        }
        self.take_leave().await;
        self.stop.cancel();
        if tokio::time::timeout(END_TIMEOUT, self.canary).await.is_err() {
            warn!("the canary could not be removed in time: the next start will");
        }
        self.parts.backends.close().await;
        info!(worker.id = %self.id, "worker stopped");
    }

    /// Ends each session as soon as nothing runs in it, but for those that the coordinator moves or keeps a checkpoint
    /// of: it is told that this worker stops, and tells which to end. Returns when none is left for which there is
    /// something to wait, or the time is over.
    async fn drain(&self, grace: Duration) {
        let Parts { sessions, link, .. } = &*self.parts;
        let deadline = Instant::now() + grace;
        link.stopping.send_replace(Some(deadline));
        // Nobody to be waited for where nobody was there.
        let mut attached = link.state.borrow().attached.then(Instant::now);
        while Instant::now() < deadline {
            if link.state.borrow().attached {
                attached = Some(Instant::now());
            }
            if self.failed.borrow().is_some() {
                return;
            }
            let attended = attached.is_some_and(|last| last.elapsed() < DETACHED);
            if sessions.end_quiet(EndReason::Drained, SHUT_DOWN, LINGER, attended) == 0 {
                return;
            }
            tokio::time::sleep(QUIET_EVERY).await;
        }
    }

    /// Waits until the coordinator has heard the last of the sessions, and tells it that this worker goes.
    /// It goes anyway: one that was not told finds out by the lease.
    async fn take_leave(&self) {
        let Parts { sessions, health, outbox, link, .. } = &*self.parts;
        let flush = Instant::now() + FLUSH_TIMEOUT;
        while !outbox.settled() && link.state.borrow().attached && Instant::now() < flush {
            // The answer to a heartbeat settles what was sent before it.
            health.tell();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if *sessions.count().borrow() == 0 && link.state.borrow().attached {
            link.leaving.cancel();
            let mut state = link.state.subscribe();
            let left = state.wait_for(|state| !state.attached);
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, left).await;
        }
    }
}
