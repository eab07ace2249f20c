//! One context, as everybody but its [`super::life`] sees it: what was asked for, how it stands, what runs and what waits.
//!
//! Wishes are marks, and the life looks at them when it is woken: so nobody waits for a process that hangs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use berth_proto::{
    Code, ContextId, Error, Reason,
    convert::time_out,
    domain::{ContextSpec, Execution, Labels},
    v1,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::record::{Record, Stored};
use crate::task::Refusal;

/// Executions that wait for their turn.
const WAITING_MAX: usize = 16;
/// Request ids that are remembered.
const KEYS: usize = 64;

/// Where a context stands.
#[derive(Clone, Debug)]
pub enum Phase {
    Starting,
    Up,
    /// Its interpreter has ended; and why.
    Dead(String),
    /// It never came up, and is forgotten.
    Refused(Refusal),
    Gone,
}

/// An execution that waits or runs.
pub struct Job {
    pub record: Arc<Record>,
    pub code: String,
    pub env: Labels,
    /// Resolved: `None` is no timeout.
    pub timeout: Option<Duration>,
}

/// What is wished of a context's life.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wishes {
    pub interrupt: bool,
    pub restart: bool,
    pub delete: bool,
}

pub(super) struct State {
    pub phase: Phase,
    pub kernel: v1::Kernel,
    pub version: String,
    pub pid: u32,
    pub wishes: Wishes,
    /// The newest execution's number.
    pub executions: u64,
    pub current: Option<Arc<Job>>,
    pub queue: VecDeque<Arc<Job>>,
    /// Of the newest execution that has ended.
    pub last: Option<Arc<Record>>,
    keys: VecDeque<(String, u64)>,
}

/// A context.
pub struct Context {
    pub id: ContextId,
    pub session: String,
    pub spec: ContextSpec,
    created_at: SystemTime,
    state: Mutex<State>,
    /// Wakes its life.
    pub(super) wake: Notify,
    changed: watch::Sender<()>,
    /// Cancelled when nothing of it is left, and it is in no list.
    pub gone: CancellationToken,
}

impl Context {
    pub fn new(id: ContextId, session: String, spec: ContextSpec) -> Arc<Self> {
        Arc::new(Self {
            id,
            session,
            spec,
            created_at: SystemTime::now(),
            state: Mutex::new(State {
                phase: Phase::Starting,
                kernel: v1::Kernel::Unspecified,
                version: String::new(),
                pid: 0,
                wishes: Wishes::default(),
                executions: 0,
                current: None,
                queue: VecDeque::new(),
                last: None,
                keys: VecDeque::new(),
            }),
            wake: Notify::new(),
            changed: watch::Sender::new(()),
            gone: CancellationToken::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is one of the session's: it came up, or may yet, and was not deleted.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self.state().phase, Phase::Refused(_) | Phase::Gone)
    }

    /// Moves it on. Everybody is told.
    pub(super) fn set(&self, phase: Phase) {
        self.state().phase = phase;
        self.changed.send_replace(());
    }

    pub(super) fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        wish(&mut self.state().wishes);
        self.wake.notify_one();
    }

    /// Waits until it takes code, or is known not to.
    pub async fn up(&self) -> Result<v1::InterpreterContext, Error> {
        let mut changes = self.changed.subscribe();
        loop {
            let (phase, restarts) = {
                let state = self.state();
                (state.phase.clone(), state.wishes.restart)
            };
            match phase {
                _ if restarts => {}
                Phase::Starting => {}
                Phase::Up => return Ok(self.to_wire()),
                Phase::Refused(refusal) => return Err(refusal.error()),
                Phase::Dead(why) => return Err(dead(self.id, &why)),
                Phase::Gone => return Err(gone(self.id)),
            }
            if changes.changed().await.is_err() {
                return Err(gone(self.id));
            }
        }
    }

    /// Puts code in the queue, or finds what the same request put there before.
    pub fn execute(
        &self,
        asked: Execution,
        default: Option<Duration>,
        all: &Arc<Stored>,
        busy: impl FnOnce() -> Box<dyn Send>,
    ) -> Result<(Arc<Record>, v1::ExecutionStarted), Error> {
        let mut state = self.state();
        if let Some(key) = &asked.request_id
            && let Some((_, number)) = state.keys.iter().find(|(known, _)| known == key)
        {
            let number = *number;
            return self.find(&state, number);
        }
        match &state.phase {
            Phase::Up => {}
            Phase::Dead(why) => return Err(dead(self.id, why)),
            Phase::Gone | Phase::Refused(_) => return Err(gone(self.id)),
            Phase::Starting => {
                return Err(Error::unavailable(
                    Reason::ContextBusy,
                    "the context's interpreter still starts",
                )
                .hint("try again when it is IDLE"));
            }
        }
        if state.wishes.delete {
            return Err(gone(self.id));
        }
        if state.queue.len() >= WAITING_MAX {
            let text = format!("{WAITING_MAX} executions wait for this context, as many as may");
            return Err(Error::exhausted(Reason::ContextBusy, text).with("limit", WAITING_MAX));
        }
        state.executions += 1;
        let number = state.executions;
        let timeout = match asked.timeout {
            berth_proto::domain::Timeout::Default => default,
            berth_proto::domain::Timeout::Never => None,
            berth_proto::domain::Timeout::After(after) => Some(after),
        };
        let record = Record::new(number, asked.output_limit, all.clone(), busy());
        let Execution { code, env, request_id, .. } = asked;
        state.queue.push_back(Arc::new(Job { record: record.clone(), code, env, timeout }));
        if let Some(key) = request_id {
            state.keys.push_back((key, number));
            if state.keys.len() > KEYS {
                state.keys.pop_front();
            }
        }
        let started = self.started(&state, number);
        drop(state);
        self.wake.notify_one();
        Ok((record, started))
    }

    /// An execution of which there still is something. Zero: the newest.
    pub fn execution(&self, number: u64) -> Result<(Arc<Record>, v1::ExecutionStarted), Error> {
        let state = self.state();
        let number = if number == 0 { state.executions } else { number };
        self.find(&state, number)
    }

    fn find(&self, state: &State, number: u64) -> Result<(Arc<Record>, v1::ExecutionStarted), Error> {
        let jobs = state.current.iter().chain(&state.queue).map(|job| &job.record);
        let found = jobs.chain(&state.last).find(|record| record.number == number).cloned();
        let record = found.ok_or_else(|| {
            let text = match number {
                0 => "nothing was executed in this context yet".to_owned(),
                n if n > state.executions => format!("the context has had {} executions", state.executions),
                n => format!("what came of execution {n} is no longer kept"),
            };
            Error::not_found(Reason::ExecutionNotFound, text).with("newest", state.executions)
        })?;
        Ok((record, self.started(state, number)))
    }

    fn started(&self, state: &State, number: u64) -> v1::ExecutionStarted {
        let jobs = state.current.iter().chain(&state.queue);
        v1::ExecutionStarted {
            execution: number,
            context_id: self.id.to_string(),
            kernel: state.kernel.into(),
            ahead: jobs.filter(|job| job.record.number < number).count() as u32,
        }
    }

    /// Interrupts what runs, or takes the execution that is meant out of the queue. Its number; zero if it is over, or
    /// nothing runs.
    pub fn interrupt(&self, meant: u64) -> u64 {
        let mut state = self.state();
        let running = state.current.as_ref().map_or(0, |job| job.record.number);
        if running > 0 && (meant == 0 || meant == running) {
            // Under the same lock, so that it still runs.
            state.wishes.interrupt = true;
            drop(state);
            self.wake.notify_one();
            return running;
        }
        let Some(at) = state.queue.iter().position(|job| job.record.number == meant) else { return 0 };
        if let Some(job) = state.queue.remove(at) {
            state.last = Some(job.record.clone());
            drop(state);
            let text = "it was interrupted before it ran";
            job.record.end(v1::ExecutionOutcome::Interrupted, text, Duration::ZERO);
        }
        meant
    }

    /// On the wire.
    pub fn to_wire(&self) -> v1::InterpreterContext {
        let state = self.state();
        let (phase, message) = match &state.phase {
            Phase::Starting => (v1::ContextState::Starting, ""),
            Phase::Up if state.current.is_some() || !state.queue.is_empty() => (v1::ContextState::Busy, ""),
            Phase::Up => (v1::ContextState::Idle, ""),
            Phase::Dead(why) => (v1::ContextState::Dead, why.as_str()),
            Phase::Refused(_) | Phase::Gone => (v1::ContextState::Dead, "it is gone"),
        };
        v1::InterpreterContext {
            id: self.id.to_string(),
            session_id: self.session.clone(),
            language: "python".to_owned(),
            cwd: self.spec.cwd.clone(),
            state: phase.into(),
            kernel: state.kernel.into(),
            version: state.version.clone(),
            pid: state.pid,
            created_at: Some(time_out(self.created_at)),
            executions: state.executions,
            waiting: state.queue.len() as u32,
            message: message.to_owned(),
        }
    }
}

/// There is no such context.
pub fn gone(id: ContextId) -> Error {
    Error::not_found(Reason::ContextNotFound, format!("no context {id} in this session"))
}

fn dead(id: ContextId, why: &str) -> Error {
    let text = format!("the context is dead: {why}");
    Error::new(Code::FailedPrecondition, Reason::ContextDead, text).with("context_id", id)
}
