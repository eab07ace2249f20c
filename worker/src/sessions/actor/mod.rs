//! The life of one session, from its placement until nothing of it is left. Each session has an
//! actor of its own, and each step a deadline: one that is stuck holds up no other.
//!
//! `start` → `serve` → `finish`. Whatever way the first two end, `finish` runs, also after a panic.
//! What is wanted (paused, deadlines, the end) is read from the slot, level-triggered, so no command
//! can be lost and none has to be queued.

mod finish;
mod serve;
mod start;

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::{convert, domain::EndReason, trace::Hop, v1, world};
use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    Inner,
    events::Events,
    launch,
    slot::{Desired, End, Slot},
};
use crate::{
    egress::{Exit, Who},
    metrics::Metrics,
    sandbox::{Running, SandboxBackend},
};

/// The agent holds the session's deadlines; so long after it the worker acts by itself.
const BACKSTOP: Duration = Duration::from_secs(2);
/// For a call to the agent that has nothing to wait for.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Tasks that are looked at after a gap, the newest: the most that one page holds.
const TASKS_LOOKED_AT: u32 = convert::bounds::PAGE_MAX;
/// For what an agent said just before its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The end of the lease, for an agent: as a moment of the boot clock, which both read, so that a worker which is
/// stopped before it has sent this does not move it.
fn fence(until: Duration) -> v1::Fence {
    let now = world::boot_now();
    let within = until.saturating_sub(now);
    v1::Fence { within: Some(convert::duration_out(within)), as_of_boot_ns: now.as_nanos() as u64 }
}

/// How a session comes to this worker.
pub(super) enum Origin {
    /// Placed now; an earlier placement of it here, if there was one, has to be gone first.
    Placed { predecessor: Option<CancellationToken> },
    /// Found alive when the worker started.
    Adopted(Running),
}

/// How the first step ended.
enum Started {
    Live(Box<(Running, Events)>),
    /// This worker can't serve it: the coordinator shall look elsewhere.
    Refused(String),
    /// A start that has not returned yet may come along.
    Failed(End, Option<JoinHandle<()>>),
}

pub(super) struct Actor {
    pub inner: Arc<Inner>,
    /// What was wanted before the agent was configured.
    pub initial: Desired,
    pub slot: Arc<Slot>,
    pub backend: Arc<dyn SandboxBackend>,
    /// Its way out, if it has one now.
    pub exit: Mutex<Option<Exit>>,
}

impl Actor {
    /// Lives the session.
    pub async fn run(self, origin: Origin) {
        let life = AssertUnwindSafe(self.live(origin)).catch_unwind();
        tokio::select! {
            biased;
            // As if the process had died: nothing is cleaned up, the next one finds all.
            () = self.inner.crash.cancelled() => {}
            result = life => if result.is_err() {
                error!(session.id = %self.slot.placement.session, "a session's actor panicked");
                let end = End::new(EndReason::SandboxFailed, "a defect of the worker ended the session");
                self.finish(end, None, None).await;
            },
        }
    }

    /// The start, as a span of the request that it is for.
    async fn begin(&self) -> Started {
        let Some(mut hop) = Hop::within("start sandbox") else { return self.start().await };
        hop.note("berth.session.id", self.slot.placement.session);
        hop.note("berth.backend", self.slot.backend);
        let started = hop.scope(self.start()).await;
        match &started {
            Started::Live(_) => {}
            Started::Refused(why) => hop.fail(why.clone()),
            Started::Failed(end, _) => hop.fail(end.message.clone()),
        }
        started
    }

    fn metrics(&self) -> &Metrics {
        &self.inner.settings.metrics
    }

    /// Makes the way out there, or not there, as is wanted now.
    fn attend_exit(&self) -> io::Result<()> {
        let wanted = self.slot.desired.subscribe();
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.borrow().egress.is_none() {
            *exit = None;
        } else if exit.is_none() {
            let placement = &self.slot.placement;
            let who = Who { session: placement.session, epoch: placement.epoch };
            let dirs = self.inner.workspaces.dirs(placement.session);
            *exit = Some(self.inner.settings.exits.open(who, &dirs, wanted)?);
        }
        Ok(())
    }

    /// Nothing gets out any more.
    fn close_exit(&self) {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn live(&self, origin: Origin) {
        let started = match origin {
            Origin::Placed { predecessor } => {
                if let Some(predecessor) = predecessor {
                    predecessor.cancelled().await;
                }
                self.begin().await
            }
            Origin::Adopted(running) => self.take_up(running).await,
        };
        match started {
            Started::Live(live) => {
                let (running, mut events) = *live;
                let end = self.serve(&running, &mut events).await;
                self.finish(end, Some((running, events)), None).await;
            }
            Started::Failed(end, late) => self.finish(end, None, late).await,
            Started::Refused(message) => {
                let report = v1::SessionReport {
                    refused: true,
                    ..self.slot.end_report(&End::new(EndReason::NoPlace, message))
                };
                // Told first: another worker can take it while this one tidies up.
                let session = self.slot.placement.session;
                self.inner.outbox.session(session, report);
                launch::remove_dirs(&self.inner.workspaces, session).await;
                self.inner.over(&self.slot, None);
            }
        }
    }
}
