//! Standing still: for whom, and for how long. All tasks freeze while anyone holds them:
//! - a **pause**, as the client asked;
//! - the **fence**: the worker may have lost its right to run this session, so nothing happens here until it is
//!   confirmed, or until a newer placement is known and this one is ended;
//! - an **archive** that is being read, so that no file in it is torn.
//!
//! They come and go independently, so each is a mark of its own, and what the kernel is told follows from all of
//! them. A hold that could not be taken is no hold; one that could not be given back stays, and is told.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::{Error, Reason};
use nix::sys::signal::Signal;
use tokio::{sync::watch, time::Instant};

use crate::{
    cgroup,
    deadline::Busy,
    tasks::{Tasks, lock},
};

/// For everything to stand still.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

/// Who holds the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    pub paused: bool,
    pub fenced: bool,
    pub archives: u32,
}

impl Holds {
    fn any(self) -> bool {
        self.paused || self.fenced || self.archives > 0
    }
}

/// The marks, and what belongs to them.
pub(crate) struct Freezer {
    holds: watch::Sender<Holds>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    /// A session that is held is not idle.
    busy: Mutex<Option<Busy>>,
}

impl Freezer {
    pub(crate) fn new() -> Self {
        Self {
            holds: watch::Sender::new(Holds::default()),
            turn: tokio::sync::Mutex::new(()),
            busy: Mutex::new(None),
        }
    }

    pub(crate) fn holds(&self) -> Holds {
        *self.holds.borrow()
    }

    /// Waits until no archive holds the tasks: that is over in a moment, and nobody has to be refused for it.
    pub(crate) async fn archives_over(&self) {
        let mut holds = self.holds.subscribe();
        // It ends with the agent only.
        let _ = holds.wait_for(|holds| holds.archives == 0).await;
    }

    /// Refuses to start a task that would stand still at once.
    pub(crate) fn refuse_held(&self) -> Result<(), Error> {
        let holds = self.holds();
        if holds.paused {
            return Err(
                Error::precondition(Reason::SessionPaused, "the session is paused").hint("resume it first")
            );
        }
        if holds.fenced {
            let text = "the session's worker has lost the coordinator: it stands still until that is back";
            return Err(Error::unavailable(Reason::SessionFenced, text));
        }
        Ok(())
    }
}

impl Tasks {
    /// Pauses or resumes, as the client asked.
    pub async fn pause(&self, paused: bool) -> Result<(), Error> {
        self.hold(|holds| holds.paused = paused).await.map(|_| ())
    }

    /// Puts the fence up, or takes it down. Says whether it was up.
    pub async fn fence(&self, fenced: bool) -> Result<bool, Error> {
        Ok(self.hold(|holds| holds.fenced = fenced).await?.fenced)
    }

    /// Holds all tasks for an archive.
    pub async fn stand_still(self: &Arc<Self>) -> Result<Still, Error> {
        self.hold(|holds| holds.archives += 1).await?;
        Ok(Still { tasks: Some(self.clone()), since: Instant::now() })
    }

    /// Changes the marks, and what the kernel does by them. The marks as they were.
    async fn hold(&self, change: impl FnOnce(&mut Holds)) -> Result<Holds, Error> {
        let _turn = self.freezer.turn.lock().await;
        let before = self.freezer.holds();
        let mut after = before;
        change(&mut after);
        match (before.any(), after.any()) {
            (false, true) => {
                // First nobody starts anything, and no clock runs: what is frozen must not time out.
                self.freezer.holds.send_replace(after);
                self.shared.clock.set_paused(true);
                if let Err(error) = self.freeze(true).await {
                    let _ = self.freeze(false).await;
                    self.shared.clock.set_paused(false);
                    self.freezer.holds.send_replace(before);
                    return Err(error);
                }
                *lock(&self.freezer.busy) = Some(self.activity.enter());
            }
            (true, false) => {
                self.freeze(false).await?;
                self.shared.clock.set_paused(false);
                *lock(&self.freezer.busy) = None;
                self.freezer.holds.send_replace(after);
            }
            _ => drop(self.freezer.holds.send_replace(after)),
        }
        Ok(before)
    }

    /// Freezes or thaws everything that tasks started. Returns when it stands still.
    async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::internal("the tasks could not be frozen").cause(error);
        let cgroups = self.shared.cgroups.clone();
        let write = tokio::task::spawn_blocking(move || cgroup::freeze(&cgroups, frozen)).await;
        if !write.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(failed)? {
            self.signal_all(frozen);
            return Ok(());
        }
        let until = Instant::now() + FREEZE_DEADLINE;
        while cgroup::is_frozen(&self.shared.cgroups) != frozen {
            if Instant::now() > until {
                let text = "the tasks did not stand still in 5 s";
                return Err(Error::unavailable(Reason::SandboxFailed, text));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Without a freezer: STOP and CONT for everyone, more than once, since they may fork.
    fn signal_all(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let table = lock(&self.table);
        let running = table.running.keys().filter_map(|id| table.tasks.get(id)?.group());
        for group in running.chain(table.leftovers.iter().cloned()) {
            for _ in 0..3 {
                group.signal(signal, None);
            }
        }
    }
}

/// While this lives, all tasks stand still for an archive.
pub struct Still {
    tasks: Option<Arc<Tasks>>,
    since: Instant,
}

impl Still {
    /// Lets them go on. For how long they stood.
    pub async fn end(mut self) -> Result<Duration, Error> {
        if let Some(tasks) = self.tasks.take() {
            tasks.hold(|holds| holds.archives -= 1).await?;
        }
        Ok(self.since.elapsed())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.take() {
            berth_proto::spawn::spawn("go on after an archive", async move {
                if let Err(error) = tasks.hold(|holds| holds.archives -= 1).await {
                    tracing::error!(?error, "the tasks could not be thawed");
                }
            });
        }
    }
}
