//! One session as the rest of the worker sees it: what is wanted of it, what is seen of it, and
//! how busy it is. Its actor alone changes what is seen; anyone may change what is wanted.

mod connections;
mod parting;

pub use parting::moves;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use berth_proto::{
    Error, Reason, TaskId, convert,
    domain::{Backend, Egress, EndReason, Placement, SessionState},
    relay::Hop,
    trace::{self, Span, TraceContext},
    transport::PORT_CONNECTIONS,
    v1,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::info;

use crate::{link::outbox::Outbox, metrics::Metrics, sandbox::Identity, workspace::store::Footprint};

/// Calls that start something: a paused session takes none of them.
const STARTS: [&str; 6] = ["Run", "StartTask", "Dial", "CreateContext", "RestartContext", "Execute"];

/// Asking this is no activity: who watches what a session takes would keep it for ever.
const NO_ACTIVITY: &str = "GetUsage";

/// What is wanted of a session while it lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub paused: bool,
    /// On the monotonic clock: a jump of the wall clock expires nothing.
    pub expires: Option<Instant>,
    /// For people only.
    pub expires_at: Option<SystemTime>,
    pub idle_timeout: Option<Duration>,
    /// What it may reach.
    pub egress: Egress,
}

/// Why a session shall end, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub reason: EndReason,
    pub message: String,
    /// Of whom it ends, if at somebody's request.
    pub request: Option<TraceContext>,
}

impl End {
    pub fn new(reason: EndReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), request: trace::current() }
    }
}

/// What is seen of a session.
struct Observed {
    state: SessionState,
    agent: Option<Channel>,
    identity: Option<Identity>,
    /// Tasks that run now, as they were told last.
    tasks: BTreeMap<TaskId, v1::Task>,
    /// A context of an interpreter has something to execute.
    executing: bool,
    calls: usize,
    /// Of these, those that change files.
    writes: usize,
    last_activity: Instant,
    /// Until then no task is started and no file changed in it: see [`parting`].
    parting: Option<Instant>,
}

/// One session that this worker holds.
pub struct Slot {
    pub placement: Placement,
    pub backend: Backend,
    pub desired: watch::Sender<Desired>,
    end: watch::Sender<Option<End>>,
    observed: Mutex<Observed>,
    calls: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Cancelled when its agent is not to be reached any more.
    unserved: CancellationToken,
    /// The room for its files is taken: the disk's free space is without it.
    allocated: AtomicBool,
    /// Cancelled when nothing of the session is left.
    pub done: CancellationToken,
    metrics: Arc<Metrics>,
}

/// The end of a rest of time that was counted just now.
pub fn deadline(left: Option<Duration>) -> Option<Instant> {
    Some(Instant::now() + left?.min(convert::bounds::DURATION_MAX))
}

impl Slot {
    pub fn new(
        placement: Placement,
        backend: Backend,
        paused: bool,
        (most_calls, metrics): (usize, Arc<Metrics>),
    ) -> Self {
        let desired = Desired {
            paused,
            expires: deadline(placement.expires_in),
            expires_at: placement.expires_at,
            idle_timeout: placement.idle_timeout,
            egress: placement.egress.clone(),
        };
        Self {
            placement,
            backend,
            desired: watch::channel(desired).0,
            end: watch::channel(None).0,
            observed: Mutex::new(Observed {
                state: SessionState::Placed,
                agent: None,
                identity: None,
                tasks: BTreeMap::new(),
                executing: false,
                calls: 0,
                writes: 0,
                last_activity: Instant::now(),
                parting: None,
            }),
            calls: Arc::new(Semaphore::new(most_calls)),
            connections: Arc::new(Semaphore::new(PORT_CONNECTIONS)),
            unserved: CancellationToken::new(),
            allocated: AtomicBool::new(false),
            done: CancellationToken::new(),
            metrics,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_allocated(&self) {
        self.allocated.store(true, Ordering::Relaxed);
    }

    /// What it may still take of the worker's disk.
    pub fn still_takes(&self, of: Footprint) -> u64 {
        if self.allocated.load(Ordering::Relaxed) { of.later } else { of.files.saturating_add(of.later) }
    }

    /// Its state, and how many tasks run in it.
    pub fn figures(&self) -> (SessionState, usize) {
        let observed = self.lock();
        (observed.state, observed.tasks.len())
    }

    pub fn state(&self) -> SessionState {
        self.lock().state
    }

    /// Wishes the session to end. The first to do so is right.
    pub fn end(&self, end: End) {
        self.end.send_if_modified(|wish| {
            let first = wish.is_none();
            if first {
                *wish = Some(end);
            }
            first
        });
    }

    /// Returns when the session shall end.
    pub async fn end_wanted(&self) -> End {
        let mut wish = self.end.subscribe();
        match wish.wait_for(Option::is_some).await.ok().and_then(|wish| wish.clone()) {
            Some(end) => end,
            None => std::future::pending().await,
        }
    }

    /// Enters a state and tells the coordinator.
    pub fn enter(&self, outbox: &Outbox, state: SessionState, message: &str) {
        self.lock().state = state;
        outbox.session(self.placement.session, self.report(state, message));
    }

    /// A report of this session.
    pub fn report(&self, state: SessionState, message: &str) -> v1::SessionReport {
        v1::SessionReport {
            session_id: self.placement.session.to_string(),
            epoch: self.placement.epoch.0,
            state: v1::SessionState::from(state).into(),
            message: message.to_owned(),
            backend: self.backend.to_string(),
            ..Default::default()
        }
    }

    /// Enters `Ending` and tells the coordinator, with the reason: the first one told stays.
    pub fn ending(&self, outbox: &Outbox, end: &End) {
        self.lock().state = SessionState::Ending;
        outbox.session(self.placement.session, self.reasoned(SessionState::Ending, end));
    }

    /// The last report.
    pub fn end_report(&self, end: &End) -> v1::SessionReport {
        self.reasoned(SessionState::Ended, end)
    }

    fn reasoned(&self, state: SessionState, end: &End) -> v1::SessionReport {
        v1::SessionReport {
            end_reason: v1::EndReason::from(end.reason).into(),
            ..self.report(state, &end.message)
        }
    }

    /// The placement as it is now, with what is left of its time to live: for the record.
    pub fn as_of_now(&self) -> Placement {
        let desired = self.desired.borrow();
        Placement {
            expires_at: desired.expires_at,
            expires_in: desired.expires.map(|at| at.saturating_duration_since(Instant::now())),
            idle_timeout: desired.idle_timeout,
            egress: desired.egress.clone(),
            ..self.placement.clone()
        }
    }

    pub fn set_identity(&self, identity: Identity) {
        self.lock().identity = Some(identity);
    }

    pub fn identity(&self) -> Option<Identity> {
        self.lock().identity.clone()
    }

    /// Calls may go to this agent; `None`: no more.
    pub fn set_agent(&self, agent: Option<Channel>) {
        if agent.is_none() {
            self.unserved.cancel();
        }
        self.lock().agent = agent;
    }

    /// Counts as activity: the idle clock begins anew.
    pub fn touch(&self) {
        self.lock().last_activity = Instant::now();
    }

    /// A task began, runs, or ended.
    pub fn task(&self, outbox: &Outbox, task: v1::Task) {
        let Ok(id) = convert::task_id(&task.id) else { return };
        {
            let mut observed = self.lock();
            observed.last_activity = Instant::now();
            if task.state == i32::from(v1::TaskState::Done) {
                observed.tasks.remove(&id);
            } else {
                observed.tasks.insert(id, task.clone());
            }
        }
        let ended = (task.state == i32::from(v1::TaskState::Done)).then(|| task.clone());
        let news = outbox.task(self.placement.session, id, self.placement.epoch, task);
        // Told twice it is counted once, and those whose sandbox failed are counted too.
        if let Some(task) = ended.filter(|_| news) {
            self.metrics.task(&task);
            match task.traceparent.parse::<TraceContext>() {
                Ok(request) => request.enter(|| self.task_ended(id, &task, Some(request))),
                Err(_) => self.task_ended(id, &task, None),
            }
        }
    }

    /// A line in the log, and a span in the trace of the request that started it.
    fn task_ended(&self, id: TaskId, task: &v1::Task, request: Option<TraceContext>) {
        let end = task.end.clone().unwrap_or_default();
        let took = end.duration.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default();
        let status = convert::outcome_words(&end);
        info!(session.id = %self.placement.session, task.id = %id, status,
            duration = took.as_secs_f64(), "a task ended");
        let Some(request) = request else { return };
        let began = task.started_at.and_then(|at| SystemTime::try_from(at).ok());
        Span::tell(request, request.of_task(id), |span| {
            let begun = began.unwrap_or(span.begun);
            Span {
                name: "task".to_owned(),
                begun,
                // The agent's figures: they need not make sense.
                ended: begun.checked_add(took).unwrap_or(begun),
                attributes: vec![
                    ("berth.session.id", self.placement.session.to_string()),
                    ("berth.task.id", id.to_string()),
                    ("berth.task.status", status.clone()),
                ],
                failed: (status != "exited 0").then_some(status),
                ..span
            }
        });
    }

    /// Contexts begin to execute something, or are done with all of it.
    pub fn executing(&self, busy: bool) {
        let mut observed = self.lock();
        observed.executing = busy;
        observed.last_activity = Instant::now();
    }

    /// Whether a task ran when it was last told of.
    pub fn runs(&self, task: &str) -> bool {
        convert::task_id(task).is_ok_and(|id| self.lock().tasks.contains_key(&id))
    }

    /// Takes out the tasks whose end nobody told.
    pub fn orphans(&self) -> Vec<v1::Task> {
        std::mem::take(&mut self.lock().tasks).into_values().collect()
    }

    /// When the idle time is over if nothing happens, or when to look again while something does.
    /// The idle clock does not run while the session is paused.
    pub fn idle_check(&self, idle: Duration) -> Instant {
        let observed = self.lock();
        let busy = observed.under_way() || observed.state == SessionState::Paused;
        if busy { Instant::now() + idle } else { observed.last_activity + idle }
    }

    /// Whether something is under way that will come to an end: a task, or a call, or what a client does next that
    /// did something less than `linger` ago. What is paused comes to no end by itself.
    pub fn busy(&self, linger: Duration) -> bool {
        let observed = self.lock();
        observed.is_busy()
            || observed.state == SessionState::Ready && observed.last_activity.elapsed() < linger
    }

    /// Whether it was told to end.
    pub fn ends(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Whether a call may go on, and where to.
    pub fn hop(self: &Arc<Self>, call: &'static str) -> Result<Hop, Error> {
        let mut observed = self.lock();
        if observed.parted(call) {
            return Err(moves());
        }
        match observed.state {
            SessionState::Ready => {}
            SessionState::Paused if !STARTS.contains(&call) => {}
            SessionState::Paused => {
                return Err(Error::precondition(Reason::SessionPaused, "the session is paused")
                    .hint("resume it first"));
            }
            SessionState::Pending | SessionState::Placed => {
                return Err(Error::precondition(
                    Reason::SessionNotReady,
                    "the session's sandbox still starts",
                ));
            }
            SessionState::Ending | SessionState::Ended if self.moves() => return Err(moves()),
            // Nobody parks a session here: the coordinator does, and then this one ends.
            SessionState::Ending | SessionState::Parked | SessionState::Ended => {
                return Err(Error::precondition(Reason::SessionEnded, "the session is over"));
            }
        }
        let Some(channel) = observed.agent.clone() else {
            return Err(Error::precondition(Reason::SessionNotReady, "the session's sandbox still starts"));
        };
        if call == "Dial" {
            drop(observed);
            return self.connection(channel);
        }
        let permit = self.calls.clone().try_acquire_owned().map_err(|_| {
            Error::exhausted(
                Reason::TooManyCalls,
                format!("the session has {} calls open, as many as it may", observed.calls),
            )
        })?;
        let writes = parting::writes(call);
        let counts = call != NO_ACTIVITY;
        observed.calls += usize::from(counts);
        observed.writes += usize::from(writes);
        drop(observed);
        let guard = Call { slot: self.clone(), writes, counts, _permit: permit };
        Ok(Hop { channel, guard: Some(Box::new(guard)), over: None, moved: None })
    }
}

impl Observed {
    fn under_way(&self) -> bool {
        self.calls > 0 || !self.tasks.is_empty() || self.executing
    }

    fn is_busy(&self) -> bool {
        self.state == SessionState::Ready && self.under_way()
    }
}

/// Marks the session as busy for as long as a call is open.
struct Call {
    slot: Arc<Slot>,
    writes: bool,
    /// It is activity.
    counts: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut observed = self.slot.lock();
        observed.calls -= usize::from(self.counts);
        observed.writes -= usize::from(self.writes);
        if self.counts {
            observed.last_activity = Instant::now();
        }
    }
}
