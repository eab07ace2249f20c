//! The one task that owns the fleet and its store. Calls and worker links send it events;
//! it applies them, commits what they changed, and only then acts on them.
//!
//! **Group commit.** All events that have come together are applied one after the other,
//! their saves go into one transaction, and then come, in this order: sends to workers, the
//! published view, watch events, answers to callers. So nobody hears of anything that a
//! crash could take back (invariants 4 and 13).
//!
//! **When the store fails**, the fleet is rolled back to the last commit: memory is never
//! ahead of the store. Calls of that batch get STORE_FAILED and may try again. Reports of
//! workers can't be answered, and must not be lost: their links are dropped, and the hello
//! that follows brings the worker's whole truth again. Reads go on all the time.
//!
//! Finished tasks alone don't cause a commit: they travel with the next one, or after
//! [`TASK_FLUSH`]. A worker still has them; the store's copy is for after the session's end,
//! and that end takes them along in its own transaction.

mod causes;
mod events;
mod handle;
mod links;
mod view;

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_proto::{Error, Incarnation, Reason, SessionId, WorkerId, trace::TraceContext, v1};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use causes::Causes;
pub use events::{Events, Watcher};
use handle::Message;
pub use handle::{CallError, Handle};
pub use links::{LINK_QUEUE, Link, Links, Outgoing};
pub use view::{Load, Used, View};

use crate::{
    fleet::{Command, Effect, Event, Fleet, LinkId, Liveness, Now, Refused, Worker},
    metrics::Metrics,
    store::{Batch, Store, TaskRecord},
    tenant::Sight,
    wire,
};

/// Events that are applied before one commit.
const TOGETHER: usize = 256;
/// Finished tasks reach the store at the latest after this.
const TASK_FLUSH: Duration = Duration::from_secs(1);
/// More finished tasks than this don't wait for company; ten times as many aren't kept
/// while the store refuses them.
const TASKS_WAITING: usize = 1000;
/// After a failed commit, timers rest for this long.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// What the driver puts into each welcome.
pub struct WelcomeTerms {
    pub lease: Duration,
    pub heartbeat: Duration,
    pub data_connections: u32,
    pub templates: Vec<v1::TemplateSpec>,
}

/// What the driver shares with the rest of the coordinator.
#[derive(Clone)]
pub struct Shared {
    pub view: Arc<View>,
    pub links: Arc<Links>,
    pub events: Arc<Events>,
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
}

/// Monotonic time since this process's start of the coordinator.
#[derive(Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// The wall clock in whole microseconds, which is what the store keeps: a record looks
    /// the same before and after a restart.
    pub fn now(&self) -> Now {
        let since = berth_proto::world::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = Duration::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        Now { mono: self.origin.elapsed(), wall: UNIX_EPOCH + micros }
    }
}

/// See the module.
pub struct Driver {
    fleet: Fleet,
    shared: Shared,
    welcome: WelcomeTerms,
    clock: Clock,
    inbox: mpsc::Receiver<Message>,
    tasks: Vec<TaskRecord>,
    tasks_since: Option<Instant>,
    /// Timers rest until then.
    rest_until: Option<Instant>,
    /// Links that turned out to be gone; the next batch begins with them.
    lost: Vec<(WorkerId, LinkId)>,
    causes: Causes,
}

/// Somebody who waits for the end of the batch.
struct Waiting {
    answer: oneshot::Sender<Result<(), CallError>>,
    result: Result<(), Refused>,
}

/// One batch under way.
#[derive(Default)]
struct Pending {
    writes: Batch,
    /// Ends of tasks that follow from this batch.
    concluded: Vec<TaskRecord>,
    after: Vec<Effect>,
    waiting: Vec<Waiting>,
    attaching: Vec<(Link, WorkerId)>,
    /// Links that said something in this batch.
    told: Vec<(LinkId, WorkerId)>,
}

impl Driver {
    /// A driver over a restored fleet, and the handle to it. `effects` are those of the
    /// restoring.
    pub async fn new(
        fleet: Fleet,
        effects: Vec<Effect>,
        shared: Shared,
        welcome: WelcomeTerms,
        clock: Clock,
    ) -> Result<(Self, Handle), crate::store::StoreError> {
        let (handle, inbox) = handle::queue();
        for session in fleet.sessions() {
            shared.view.publish_session(session.clone());
        }
        for worker in fleet.workers() {
            shared.view.publish_worker(worker.clone());
        }
        for (tenant, quota) in fleet.quotas() {
            shared.view.publish_quota(tenant.clone(), *quota);
        }
        let mut driver = Self {
            fleet,
            shared,
            welcome,
            clock,
            inbox,
            tasks: Vec::new(),
            tasks_since: None,
            rest_until: None,
            lost: Vec::new(),
            causes: Causes::default(),
        };
        let mut pending = Pending::default();
        driver.sort(effects, &mut pending);
        driver.shared.store.commit(&pending.writes).await?;
        driver.fleet.commit();
        driver.perform(pending.after);
        Ok((driver, handle))
    }

    /// Runs until it is stopped or all handles are gone.
    pub async fn run(mut self) {
        let mut messages = Vec::with_capacity(TOGETHER);
        loop {
            let wake = self.wake_at();
            let received = tokio::select! {
                biased;
                received = self.inbox.recv_many(&mut messages, TOGETHER) => Some(received),
                () = tokio::time::sleep_until(wake) => None,
            };
            if received == Some(0) {
                return;
            }
            let stop = self.batch(&mut messages).await;
            if let Some(done) = stop {
                self.flush_tasks().await;
                let _ = done.send(());
                return;
            }
        }
    }

    fn wake_at(&self) -> Instant {
        if !self.lost.is_empty() {
            return Instant::now();
        }
        let far = Duration::from_secs(3600);
        let timer = self.fleet.next_timer().map_or_else(|| Instant::now() + far, |at| self.clock.origin + at);
        let timer = self.rest_until.map_or(timer, |rest| timer.max(rest));
        match self.tasks_since {
            Some(since) => timer.min(self.rest_until.unwrap_or(since + TASK_FLUSH).max(since + TASK_FLUSH)),
            None => timer,
        }
    }

    /// Applies what has come, commits it, acts on it.
    async fn batch(&mut self, messages: &mut Vec<Message>) -> Option<oneshot::Sender<()>> {
        let now = self.clock.now();
        let mut pending = Pending::default();
        let mut stop = None;
        let resting = self.rest_until.is_some_and(|until| until > Instant::now());
        if !resting && self.fleet.next_timer().is_some_and(|at| at <= now.mono) {
            let _ = self.apply(Event::Tick, None, now, &mut pending);
        }
        for (worker, link) in std::mem::take(&mut self.lost) {
            let _ = self.apply(Event::LinkLost { worker, link }, None, now, &mut pending);
        }
        for message in messages.drain(..) {
            match message {
                Message::Call { event, request, answer } => {
                    let result = self.apply(event, request, now, &mut pending);
                    pending.waiting.push(Waiting { answer, result });
                }
                Message::Told { event, link } => {
                    pending.told.extend(worker_of(&event).map(|worker| (link, worker)));
                    // What a worker says is never refused, only ignored.
                    let cause = self.causes.of_report(&event);
                    let _ = self.apply(event, cause, now, &mut pending);
                }
                Message::Attach { hello, link, answer } => {
                    let worker = hello.worker.clone();
                    let result = self.apply(Event::Hello(hello), None, now, &mut pending);
                    if result.is_ok() {
                        pending.attaching.push((link, worker));
                    }
                    pending.waiting.push(Waiting { answer, result });
                }
                Message::Stop { done } => stop = Some(done),
            }
        }
        self.settle(pending).await;
        stop
    }

    fn apply(
        &mut self,
        event: Event,
        request: Option<TraceContext>,
        now: Now,
        pending: &mut Pending,
    ) -> Result<(), Refused> {
        let (fleet, named) = (&mut self.fleet, causes::named(&event));
        let effects = match request {
            Some(request) => request.enter(|| fleet.apply(event, now))?,
            None => fleet.apply(event, now)?,
        };
        self.causes.note(request, named, &effects);
        self.sort(effects, pending);
        Ok(())
    }

    /// Saves to one side, all else to the other.
    fn sort(&mut self, effects: Vec<Effect>, pending: &mut Pending) {
        let writes = &mut pending.writes;
        for effect in effects {
            match effect {
                Effect::SaveSession(session) => {
                    writes.sessions.retain(|s| s.id != session.id);
                    writes.sessions.push(session);
                }
                Effect::SaveWorker(worker) => {
                    writes.workers.retain(|w| w.id != worker.id);
                    writes.workers.push(worker);
                }
                Effect::SaveKey(key) => writes.keys.push(key),
                Effect::SaveQuota(tenant, quota) => {
                    writes.quotas.retain(|(of, _)| *of != tenant);
                    writes.quotas.push((tenant, quota));
                }
                Effect::SaveLease(lease) => writes.promised_lease = Some(lease),
                Effect::SaveTask { session, task, summary } => {
                    self.tasks.push(TaskRecord { session, task, summary });
                    self.tasks_since.get_or_insert_with(Instant::now);
                }
                Effect::ConcludeTask { session, task, summary } => {
                    pending.concluded.push(TaskRecord { session, task, summary });
                }
                Effect::ForgetSession(id) => {
                    writes.forget_sessions.push(id);
                    pending.after.push(Effect::ForgetSession(id));
                }
                Effect::ForgetWorker(id) => {
                    writes.forget_workers.push(id.clone());
                    pending.after.push(Effect::ForgetWorker(id));
                }
                Effect::ForgetKey(key) => writes.forget_keys.push(key),
                other => pending.after.push(other),
            }
        }
    }

    /// Commits the batch and acts on it, or takes it back.
    async fn settle(&mut self, mut pending: Pending) {
        let tasks_due = self.tasks.len() >= TASKS_WAITING
            || self.tasks_since.is_some_and(|since| since.elapsed() >= TASK_FLUSH);
        if !pending.writes.is_empty() || tasks_due {
            // What was told stands before what follows from something else.
            pending.writes.tasks.clone_from(&self.tasks);
            pending.writes.tasks.append(&mut pending.concluded);
            let begun = Instant::now();
            let committed = self.shared.store.commit(&pending.writes).await;
            self.shared.metrics.committed(begun.elapsed(), committed.is_ok());
            if let Err(error) = committed {
                self.take_back(pending, &error).await;
                return;
            }
            self.tasks.clear();
            self.tasks_since = None;
            self.rest_until = None;
        }
        self.fleet.commit();
        self.admit(&mut pending);
        self.perform(std::mem::take(&mut pending.after));
        for waiting in pending.waiting {
            let _ = waiting.answer.send(waiting.result.map_err(CallError::Refused));
        }
        self.shared.view.running_tasks.store(self.fleet.running_tasks(), Ordering::Relaxed);
    }

    /// Makes the links that attached the workers'.
    fn admit(&self, pending: &mut Pending) {
        for (link, worker) in pending.attaching.drain(..) {
            let known = self.shared_worker(&worker);
            self.shared.links.admit(worker, known.map_or(Incarnation(0), |w| w.incarnation), link);
        }
    }

    fn shared_worker(&self, id: &WorkerId) -> Option<&Arc<Worker>> {
        self.fleet.workers().find(|w| w.id == *id)
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        let at = berth_proto::world::now();
        let mono = self.clock.now().mono;
        self.shared.metrics.tally(self.fleet.tally());
        // Workers first: what follows is quick, but a sandbox that starts is what somebody waits for.
        for effect in &effects {
            match effect {
                Effect::Send { link, command } => self.send(*link, command),
                Effect::Close { link, why } => self.shared.links.close(*link, Some((*why).into())),
                _ => {}
            }
        }
        for effect in effects {
            match effect {
                Effect::SessionChanged(session) => {
                    let subject = v1::event::Subject::Session(wire::session(&session));
                    let tenant = session.spec.tenant.clone();
                    let before = self.shared.view.session(&Sight::All, &session.id);
                    self.shared.metrics.session(before.as_deref(), &session, at, mono);
                    self.shared.view.publish_session(session);
                    self.shared.events.push(subject, Some(tenant), at);
                }
                Effect::WorkerChanged { worker, visible } => {
                    self.shared.view.publish_worker(worker.clone());
                    if visible {
                        let load = self.shared.view.load(&worker.id);
                        let channels = self.shared.links.channels(&worker.id);
                        let subject = v1::event::Subject::Worker(wire::worker(&worker, &load, channels));
                        self.shared.events.push(subject, None, at);
                    }
                }
                Effect::TaskChanged(task) => {
                    self.shared.view.task_changed(&task);
                    let session = task.session_id.parse().ok();
                    let session = session.and_then(|id| self.shared.view.session(&Sight::All, &id));
                    let tenant = session.map(|session| session.spec.tenant.clone());
                    self.shared.events.push(v1::event::Subject::Task((*task).clone()), tenant, at);
                }
                Effect::QuotaChanged(tenant, quota) => self.shared.view.publish_quota(tenant, quota),
                Effect::ForgetSession(id) => self.shared.view.forget_session(&id),
                Effect::ForgetWorker(id) => self.forget_worker(&id, at),
                _ => {}
            }
        }
    }

    /// Whoever watches the fleet sees the worker once more: as one that is gone.
    fn forget_worker(&self, id: &WorkerId, at: SystemTime) {
        if let Some(last) = self.shared.view.worker(id).filter(|w| w.liveness != Liveness::Dead) {
            let mut gone = (*last).clone();
            gone.liveness = Liveness::Dead;
            let subject = v1::event::Subject::Worker(wire::worker(&gone, &Load::default(), 0));
            self.shared.events.push(subject, None, at);
        }
        self.shared.view.forget_worker(id);
        self.shared.links.forget(id);
    }

    fn send(&mut self, link: LinkId, command: &Command) {
        let message = wire::command(command, &self.welcome, || self.shared.links.secrets(link));
        if !self.shared.links.send(link, message, self.causes.of_command(command)) {
            self.shared.links.close(link, None);
            let owner = self.fleet.workers().find(|w| w.has_link(link)).map(|w| w.id.clone());
            self.lost.extend(owner.map(|worker| (worker, link)));
        }
    }

    /// The store refused the batch. See the module's prose.
    async fn take_back(&mut self, pending: Pending, error: &crate::store::StoreError) {
        tracing::error!(%error, "the store refused a commit; it is taken back");
        self.tasks.truncate(10 * TASKS_WAITING);
        self.tasks_since = Some(Instant::now());
        self.rest_until = Some(Instant::now() + AFTER_FAILURE);
        self.fleet.rollback();
        let known: HashSet<SessionId> = self.fleet.sessions().map(|session| session.id).collect();
        self.causes.keep(|session| known.contains(session));
        for waiting in pending.waiting {
            let failed = Error::unavailable(Reason::StoreFailed, "the coordinator's store refused a write")
                .hint("nothing was changed: look at the disk under the coordinator's state directory, and try again")
                .cause(error.to_string());
            // A refusal too may rest on what was just taken back.
            let _ = waiting.answer.send(Err(CallError::Failed(failed)));
        }
        for (link, worker) in pending.told {
            self.shared.links.close(link, None);
            self.lost.push((worker, link));
        }
    }

    async fn flush_tasks(&mut self) {
        let writes = Batch { tasks: std::mem::take(&mut self.tasks), ..Batch::default() };
        if !writes.tasks.is_empty()
            && let Err(error) = self.shared.store.commit(&writes).await
        {
            tracing::warn!(%error, "finished tasks were not stored");
        }
    }
}

/// The worker that says this.
fn worker_of(event: &Event) -> Option<WorkerId> {
    match event {
        Event::LinkLost { worker, .. } | Event::Stopping { worker, .. } | Event::Leaving { worker, .. } => {
            Some(worker.clone())
        }
        Event::Heartbeat(beat) => Some(beat.worker.clone()),
        Event::Report(report) => Some(report.worker.clone()),
        Event::Task(report) => Some(report.worker.clone()),
        _ => None,
    }
}
