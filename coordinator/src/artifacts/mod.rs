//! Artifacts: what tasks leave in `/workspace/artifacts` is kept past their session.
//!
//! The coordinator looks there when it hears that a task has ended, through the session's own file service: so it is the
//! agent that reads, inside the sandbox and as the task's user, and no path that a task arranged is ever walked by anybody
//! with more rights. What is new or changed is read, hashed, and stored as pieces beside those of checkpoints
//! ([`crate::checkpoints`]); then it is entered into the catalog, in one step. A look that is cut off at any point leaves
//! nothing but pieces that nobody uses, and the next look finds the files as new as before.
//!
//! Nobody waits for a look but those who would miss what it finds: a listing waits for the tasks that have ended, and the
//! end of a session that a client deletes for a last look, both for [`WITHIN`] at most. (Rejected: to hold a task's end
//! back until its files are kept. Each task would cost another call, and one that leaves gigabytes would seem to run on.)
//!
//! A task's end is heard a moment after it: a file that the next task changes at once is kept as that one leaves it. The end of
//! code that a context executes ([`Code`]) is seen as it goes by to the client that waits for it; where no client does, the next
//! listing looks.
//!
//! A session that ends by itself (idle, life span) gets no last look: its worker decides that alone, also where it can't
//! reach us, and asks nobody.

mod fetch;
mod look;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_proto::{
    Error, SessionId, TaskId,
    domain::SessionState,
    spawn::spawn,
    v1::{self, event::Subject},
    world,
};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

pub use read::Reading;

use crate::{
    audit::Audit,
    checkpoints::{Checkpoints, Room, unkept},
    driver::Shared,
    tenant::Sight,
};

/// Where tasks leave them.
pub const DIRECTORY: &str = "/workspace/artifacts";
/// Files that are read at the same time, of all sessions.
const AT_ONCE: usize = 4;
/// Between two looks into a session: tasks that end one after the other are looked after together.
const PAUSE: Duration = Duration::from_millis(250);
/// A listing, or the end of a session, waits for a look no longer.
const WITHIN: Duration = Duration::from_secs(10);
/// Between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Ended tasks of a session that are known to have been looked after. Beyond it a look too many is taken.
const LOOKED_MAX: usize = 2000;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub keep: Duration,
    /// Of one tenant's together. Zero bytes: none are kept.
    pub quota: Room,
    /// Of one file.
    pub file_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let quota = Room { bytes: 1 << 30, count: 10_000 };
        Self { keep: Duration::from_secs(7 * 86_400), quota, file_bytes: 256 << 20 }
    }
}

/// All of it.
pub struct Artifacts {
    checkpoints: Arc<Checkpoints>,
    shared: Shared,
    audit: Arc<Audit>,
    settings: Settings,
    slots: Semaphore,
    watched: Mutex<BTreeMap<SessionId, Arc<Watched>>>,
    stopping: CancellationToken,
}

/// What is known of a session while it is up.
#[derive(Default)]
struct Watched {
    /// Held while it is looked into.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Tasks that have ended, and nobody has looked since.
    ended: BTreeSet<TaskId>,
    /// Those that were looked after.
    looked: BTreeSet<TaskId>,
    /// Code of a context has ended, and nobody has looked since.
    code: bool,
    /// So it may be at any time: code runs, or has run, whose end nobody waits for here.
    unheard: bool,
    /// Somebody looks, and looks again while there are more.
    busy: bool,
}

/// Code that a context executes, while its events go by.
pub struct Code {
    artifacts: Arc<Artifacts>,
    session: SessionId,
    ended: bool,
}

impl Code {
    /// Its end goes by now: who hears of it and asks for artifacts has those that it left.
    pub fn ended(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            let watched = self.artifacts.watched(self.session);
            watched.lock().code = true;
            self.artifacts.look_soon(self.session, watched);
        }
    }
}

impl Drop for Code {
    /// Its client is gone, or what lies between; it may run on.
    fn drop(&mut self) {
        if !self.ended {
            self.artifacts.watched(self.session).lock().unheard = true;
        }
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Artifacts {
    pub fn new(
        checkpoints: Arc<Checkpoints>,
        shared: Shared,
        audit: Arc<Audit>,
        settings: Settings,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let (slots, watched) = (Semaphore::new(AT_ONCE), Mutex::default());
        Arc::new(Self { checkpoints, shared, audit, settings, slots, watched, stopping })
    }

    fn watched(&self, session: SessionId) -> Arc<Watched> {
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(session).or_default().clone()
    }

    /// Whether its files can be read now.
    fn is_up(&self, session: &SessionId) -> bool {
        let found = self.shared.view.session(&Sight::All, session);
        found.is_some_and(|s| matches!(s.state, SessionState::Ready | SessionState::Paused))
    }

    /// A task has ended: somebody looks what it left, soon.
    fn task_ended(self: &Arc<Self>, session: SessionId, task: TaskId) {
        let watched = self.watched(session);
        let is_new = {
            let mut state = watched.lock();
            !state.looked.contains(&task) && state.ended.insert(task)
        };
        if is_new {
            self.look_soon(session, watched);
        }
    }

    /// A context of this session executes code. (Who may that has been asked.)
    pub fn code(self: &Arc<Self>, session: SessionId) -> Code {
        Code { artifacts: self.clone(), session, ended: false }
    }

    fn look_soon(self: &Arc<Self>, session: SessionId, watched: Arc<Watched>) {
        if std::mem::replace(&mut watched.lock().busy, true) {
            return;
        }
        let this = self.clone();
        spawn("artifacts", async move {
            let all = async {
                loop {
                    this.look_after(session, &watched).await;
                    tokio::time::sleep(PAUSE).await;
                    let mut state = watched.lock();
                    if (state.ended.is_empty() && !state.code) || !this.is_up(&session) {
                        state.busy = false;
                        return;
                    }
                }
            };
            this.stopping.run_until_cancelled(all).await;
        });
    }

    /// Looks after the tasks and the code that are known to have ended.
    async fn look_after(self: &Arc<Self>, session: SessionId, watched: &Watched) {
        let _turn = watched.turn.lock().await;
        let (ended, code) = {
            let mut state = watched.lock();
            (state.ended.clone(), std::mem::take(&mut state.code))
        };
        if code || !ended.is_empty() {
            let looked = self.look_and_note(session, watched, ended.last().copied(), ended).await;
            watched.lock().unheard |= code && !looked;
        }
    }

    async fn look_and_note(
        &self,
        session: SessionId,
        watched: &Watched,
        task: Option<TaskId>,
        after: BTreeSet<TaskId>,
    ) -> bool {
        if let Err(error) = self.look(session, task).await {
            // They are looked after at the next end of a task, the next listing, or the session's end.
            tracing::debug!(session.id = %session, ?error, "artifacts could not be looked for");
            // Not at once again: the worker may be away for long.
            watched.lock().ended.clear();
            return false;
        }
        let mut state = watched.lock();
        state.ended.retain(|task| !after.contains(task));
        if state.looked.len() + after.len() > LOOKED_MAX {
            state.looked.clear();
        }
        state.looked.extend(after);
        true
    }

    /// What the session's ended tasks and code left is kept when this returns; so is what is there now, when it is the session's
    /// `last` look. False: it takes longer, and goes on; or the session can't be reached just now.
    pub async fn settle(self: &Arc<Self>, by: &Sight, session: SessionId, last: bool) -> bool {
        // Another's session, or one that is not up: there is nothing to look into.
        if self.shared.view.session(by, &session).is_none() || !self.is_up(&session) {
            return true;
        }
        let (this, watched) = (self.clone(), self.watched(session));
        let (tell, told) = oneshot::channel();
        spawn("artifacts", async move {
            let look = async {
                let _turn = watched.turn.lock().await;
                let Ok(done) = this.done_tasks(session).await else { return false };
                let (after, code, unheard): (BTreeSet<TaskId>, bool, bool) = {
                    let mut state = watched.lock();
                    let new = done.iter().chain(&state.ended).filter(|t| !state.looked.contains(*t));
                    (new.copied().collect(), std::mem::take(&mut state.code), state.unheard)
                };
                if !last && after.is_empty() && !code && !unheard {
                    return true;
                }
                let looked = this.look_and_note(session, &watched, after.last().copied(), after).await;
                watched.lock().unheard |= code && !looked;
                looked
            };
            let settled = this.stopping.run_until_cancelled(look).await;
            let _ = tell.send(settled.unwrap_or(false));
        });
        matches!(tokio::time::timeout(WITHIN, told).await, Ok(Ok(true)))
    }

    /// Listens for the ends of tasks.
    pub async fn listen(self: Arc<Self>) {
        loop {
            // An empty token begins now.
            let Ok(mut watcher) = self.shared.events.watch(Sight::All, "") else { return };
            // Where it falls so far behind that some are gone, the next look into their sessions finds what they left.
            while let Ok(events) = watcher.next().await {
                for event in events.iter() {
                    let Some(Subject::Task(task)) = &event.subject else { continue };
                    if task.state() != v1::TaskState::Done {
                        continue;
                    }
                    if let (Ok(session), Ok(task)) = (task.session_id.parse(), task.id.parse())
                        && self.is_up(&session)
                    {
                        self.task_ended(session, task);
                    }
                }
            }
        }
    }

    /// Lets go of those whose time is over, until it is dropped.
    pub async fn sweep_for_ever(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            if let Err(error) = self.sweep().await {
                tracing::warn!(?error, "artifacts could not be swept");
            }
        }
    }

    /// Removes those whose time is over, and forgets sessions that are. (The pieces go with the checkpoints' sweep.)
    async fn sweep(&self) -> Result<(), Error> {
        let catalog = &self.checkpoints.catalog;
        for id in world::on_thread(catalog.expire_artifacts()).await.map_err(unkept)? {
            tracing::info!(artifact.id = id, "an artifact's time is over");
        }
        world::on_thread(catalog.expire_looks()).await.map_err(unkept)?;
        let over = |id: &SessionId| {
            let session = self.shared.view.session(&Sight::All, id);
            session.is_none_or(|session| session.state == SessionState::Ended)
        };
        let none = BTreeSet::new();
        for id in world::on_thread(catalog.sessions_with_gone_artifacts()).await.map_err(unkept)? {
            if over(&id) {
                let forgotten = catalog.forget_gone_artifacts(id, &none);
                world::on_thread(forgotten).await.map_err(unkept)?;
            }
        }
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|id, watched| watched.lock().busy || !over(id));
        Ok(())
    }
}
