//! One task, as everybody but its [`crate::driver::Driver`] sees it, from its start to its one
//! terminal state: `Starting → Running → Done`, or `Starting → Refused` when nothing was
//! started.
//!
//! Only the driver moves it on. The first reason to end a task decides its outcome, and
//! the outcome is told only when the processes are dead and the output is in its spool.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use berth_proto::{Code, Error, Reason, TaskId, convert::time_out, domain::PtySize, trace::TraceContext, v1};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{cgroup::Group, clock::TaskClock, outcome::Cause, spool::Spool, stdin::Stdin, sys};

/// A reason to end a task, and the time between TERM and KILL.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub cause: Cause,
    pub grace: Duration,
}

/// Why nothing was started. Kept, because a second call with the same key gets it too.
#[derive(Clone, Debug)]
pub struct Refusal {
    code: Code,
    reason: Reason,
    message: String,
}

impl Refusal {
    pub fn new(code: Code, reason: Reason, message: String) -> Self {
        Self { code, reason, message }
    }

    pub fn error(&self) -> Error {
        Error::new(self.code, self.reason, self.message.clone())
    }
}

/// Where a task stands.
#[derive(Clone, Debug)]
pub enum Phase {
    Starting,
    Refused(Refusal),
    Running,
    Done(v1::TaskEnd),
}

struct State {
    phase: Phase,
    pid: u32,
    /// Init's number.
    number: u64,
    started_at: Option<SystemTime>,
    group: Option<Arc<Group>>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

#[derive(Clone, Copy)]
struct Watchers {
    count: usize,
    /// Task time when the last one left, or the task began.
    since: Duration,
}

/// A task as the services see it.
pub struct Task {
    pub id: TaskId,
    session: String,
    shown: v1::TaskSpec,
    /// That started it.
    request: Option<TraceContext>,
    pub stdout: Arc<Spool>,
    pub stderr: Arc<Spool>,
    pub stdin: Stdin,
    /// Cancelled when it is done.
    pub done: CancellationToken,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    watchers: watch::Sender<Watchers>,
    stops: mpsc::Sender<Stop>,
}

impl Task {
    /// A task that has not begun: what it is told to stop by, and what tells of its changes.
    pub fn new(
        id: TaskId,
        session: String,
        shown: v1::TaskSpec,
        request: Option<TraceContext>,
        [stdout, stderr]: [Arc<Spool>; 2],
        now: Duration,
    ) -> (Arc<Self>, mpsc::Receiver<Stop>, watch::Sender<()>) {
        let (send, stops) = mpsc::channel(8);
        let changed = watch::Sender::new(());
        let task = Arc::new(Task {
            id,
            session,
            shown,
            request,
            stdout,
            stderr,
            stdin: Stdin::new(),
            done: CancellationToken::new(),
            state: Mutex::new(State {
                phase: Phase::Starting,
                pid: 0,
                number: 0,
                started_at: None,
                group: None,
                terminal: None,
            }),
            changed: changed.clone(),
            watchers: watch::Sender::new(Watchers { count: 0, since: now }),
            stops: send,
        });
        (task, stops, changed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state().phase, Phase::Done(_) | Phase::Refused(_))
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state().phase, Phase::Done(_))
    }

    /// Init's number, while it runs.
    pub fn number(&self) -> Option<u64> {
        let state = self.state();
        matches!(state.phase, Phase::Running).then_some(state.number)
    }

    /// Everything it started, once it has.
    pub fn group(&self) -> Option<Arc<Group>> {
        self.state().group.clone()
    }

    /// Changes of its phase and its output.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Bytes that its record takes, output aside.
    pub fn weight(&self) -> usize {
        use prost::Message;
        self.shown.encoded_len() + 512
    }

    /// On the wire.
    pub fn to_wire(&self) -> v1::Task {
        let state = self.state();
        let info = |spool: &Spool| {
            let (length, first_kept) = spool.bounds();
            Some(v1::StreamInfo { length, first_kept })
        };
        let (phase, end) = match &state.phase {
            Phase::Starting | Phase::Refused(_) => (v1::TaskState::Dispatched, None),
            Phase::Running => (v1::TaskState::Running, None),
            Phase::Done(end) => (v1::TaskState::Done, Some(end.clone())),
        };
        v1::Task {
            id: self.id.to_string(),
            session_id: self.session.clone(),
            state: phase.into(),
            spec: Some(self.shown.clone()),
            pid: state.pid,
            started_at: state.started_at.map(time_out),
            stdout: info(&self.stdout),
            stderr: info(&self.stderr),
            end,
            traceparent: self.request.map(|request| request.to_string()).unwrap_or_default(),
        }
    }

    /// Waits until it runs, or was refused.
    pub async fn started(&self) -> Result<(), Error> {
        let mut changes = self.changes();
        loop {
            match self.phase() {
                Phase::Starting => {}
                Phase::Refused(refusal) => return Err(refusal.error()),
                Phase::Running | Phase::Done(_) => return Ok(()),
            }
            if changes.changed().await.is_err() {
                return Err(Error::internal("the task was forgotten"));
            }
        }
    }

    /// Asks its driver to end it. Nothing if it is over.
    pub fn stop(&self, stop: Stop) {
        // A full queue: there are reasons enough already.
        let _ = self.stops.try_send(stop);
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, size: PtySize) -> Result<(), Error> {
        let Some(terminal) = self.state().terminal.clone() else {
            return Err(Error::precondition(Reason::NoPty, "the task has no terminal"));
        };
        sys::resize(terminal.get_ref().as_fd(), size)
            .map_err(|error| Error::internal("the terminal took no new size").cause(error))
    }

    /// For the record of a task whose agent was lost: it is done, and was never seen.
    pub fn lost(&self, end: v1::TaskEnd) {
        self.set(Phase::Done(end));
        self.done.cancel();
    }

    /// For the record of a task that ended in the sandbox that this one's files come from.
    pub fn ended_elsewhere(&self, pid: u32, started_at: Option<SystemTime>, end: v1::TaskEnd) {
        {
            let mut state = self.state();
            state.pid = pid;
            state.started_at = started_at;
        }
        self.lost(end);
    }

    /// It runs now.
    pub fn running(&self, pid: u32, number: u64, group: Arc<Group>) {
        {
            let mut state = self.state();
            state.pid = pid;
            state.number = number;
            state.started_at = Some(SystemTime::now());
            state.group = Some(group);
        }
        self.set(Phase::Running);
    }

    /// Its terminal, for [`Task::resize`]; `None` when that is over.
    pub fn set_terminal(&self, terminal: Option<Arc<AsyncFd<OwnedFd>>>) {
        self.state().terminal = terminal;
    }

    /// Moves it on. Everybody is told.
    pub fn set(&self, phase: Phase) {
        self.state().phase = phase;
        self.changed.send_replace(());
    }

    /// Waits until an attached task had no watcher for its grace.
    pub async fn abandoned(&self, clock: &TaskClock, grace: Option<Duration>) {
        let Some(grace) = grace else { return std::future::pending().await };
        let mut watchers = self.watchers.subscribe();
        loop {
            let now = *watchers.borrow_and_update();
            let deadline = (now.count == 0).then(|| now.since.saturating_add(grace));
            tokio::select! {
                () = clock.sleep_until(deadline) => return,
                _ = watchers.changed() => {}
            }
        }
    }
}

/// While this lives, somebody watches the task.
pub struct WatchGuard {
    task: Arc<Task>,
    clock: Arc<TaskClock>,
}

impl WatchGuard {
    pub fn new(task: Arc<Task>, clock: Arc<TaskClock>) -> Self {
        task.watchers.send_modify(|watchers| watchers.count += 1);
        Self { task, clock }
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let since = self.clock.now();
        self.task.watchers.send_modify(|watchers| {
            watchers.count = watchers.count.saturating_sub(1);
            watchers.since = since;
        });
    }
}
