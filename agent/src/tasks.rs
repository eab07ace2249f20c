//! The tasks of the session: starting them at most once a key, bounding how many run and
//! how much the finished ones leave behind, and ending them all when the session ends.
//!
//! Everything is decided under one short lock, with no await in it. A task's own life is
//! its [`crate::task::Driver`]'s.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use berth_proto::{
    Code, Epoch, Error, Reason, SessionId, TaskId,
    convert::{same_placement, shown_spec, time_out},
    domain::{Labels, Outcome, TaskDefaults, TaskSpec, Timeout},
    secret::Given,
    trace,
    v1::{self, agent_event::Event},
};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    cgroup::Group,
    deadline::{Activity, Busy},
    driver::{Driver, Plan, Shared},
    environment::Environment,
    freezer::Freezer,
    housekeeping::purge,
    ledger::{BodyHash, Ledger},
    outcome::Cause,
    spool::Spool,
    task::{Stop, Task},
};

/// Finished tasks that are remembered.
const DONE_MAX: usize = 1000;
/// Bytes of the specs of finished tasks. (An argv may be 1 MiB.)
const DONE_WEIGHT: usize = 16 << 20;
/// Events that a watcher may be behind. Then it must watch anew.
const EVENTS: usize = 1024;
/// A group is looked after a moment later: the answer to the client goes first.
const TIDY: Duration = Duration::from_millis(2);

/// What Configure told of the session.
#[derive(Clone)]
pub struct Session {
    pub id: SessionId,
    pub epoch: Epoch,
    pub env: Labels,
    pub defaults: TaskDefaults,
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Oldest first.
    pub(crate) done: VecDeque<(TaskId, usize)>,
    done_weight: usize,
    pub(crate) running: HashMap<TaskId, Busy>,
    /// Cgroups that still hold what detached tasks left.
    pub(crate) leftovers: Vec<Arc<Group>>,
    /// Processes of contexts.
    pub(crate) contexts: Vec<Arc<Group>>,
    /// Executions that wait or run.
    pub(crate) executing: usize,
    pub(crate) ending: bool,
}

/// All tasks.
pub struct Tasks {
    pub(crate) shared: Arc<Shared>,
    pub(crate) environment: Environment,
    session: Mutex<Option<Session>>,
    pub(crate) table: Mutex<Table>,
    ledger: Mutex<Ledger>,
    events: broadcast::Sender<Event>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) freezer: Freezer,
    /// Told whenever a task ends.
    pub(crate) ended: Notify,
    /// Cancelled when the session ends: contexts do too.
    pub(crate) contexts_end: CancellationToken,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Tasks {
    pub fn new(
        shared: Arc<Shared>,
        environment: Environment,
        ledger: Ledger,
        activity: Arc<Activity>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            freezer: Freezer::new(shared.cgroups.clone())?,
            shared,
            environment,
            session: Mutex::new(None),
            table: Mutex::default(),
            ledger: Mutex::new(ledger),
            events: broadcast::Sender::new(EVENTS),
            activity,
            ended: Notify::new(),
            contexts_end: CancellationToken::new(),
        }))
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A call begins: the session is not idle while the mark lives.
    pub fn busy(&self) -> Busy {
        self.activity.enter()
    }

    /// Takes what Configure says. The session's id can't change; its epoch only grows.
    pub fn configure(&self, new: Session) -> Result<(), Error> {
        let mut session = lock(&self.session);
        if let Some(old) = &*session {
            if old.id != new.id {
                return Err(Error::precondition(
                    Reason::SessionNotFound,
                    "this agent serves another session",
                ));
            }
            if new.epoch < old.epoch {
                return Err(Error::precondition(Reason::StaleEpoch, "a newer placement was told already")
                    .with("epoch", old.epoch));
            }
        }
        *session = Some(new);
        Ok(())
    }

    /// Refuses another placement than the one that is configured.
    pub fn must_be(&self, epoch: Epoch) -> Result<(), Error> {
        match &*lock(&self.session) {
            None => Err(Error::precondition(Reason::SessionNotReady, "the session is not configured yet")),
            Some(session) if session.epoch == epoch => Ok(()),
            Some(session) => Err(Error::precondition(Reason::StaleEpoch, "another placement was told")
                .with("epoch", session.epoch)),
        }
    }

    /// The session, if it is the one that a call names.
    pub fn session(&self, named: &str) -> Result<Session, Error> {
        let named: SessionId = named.parse()?;
        match &*lock(&self.session) {
            None => Err(Error::precondition(Reason::SessionNotReady, "the session is not configured yet")),
            Some(session) if session.id != named => {
                Err(Error::not_found(Reason::SessionNotFound, format!("no session {named} here")))
            }
            Some(session) => Ok(session.clone()),
        }
    }

    /// A task of the session.
    pub fn get(&self, session: &str, task: &str) -> Result<Arc<Task>, Error> {
        self.session(session)?;
        let id: TaskId = task.parse()?;
        let found = lock(&self.table).tasks.get(&id).cloned();
        found.ok_or_else(|| {
            Error::not_found(Reason::TaskNotFound, format!("no task {id} in this session"))
                .hint(format!("the newest {DONE_MAX} finished tasks are kept"))
        })
    }

    /// Tasks before `before`, newest first, as many as `take` says yes to.
    pub fn list(&self, before: Option<TaskId>, running_only: bool) -> Vec<Arc<Task>> {
        let table = lock(&self.table);
        let wanted = |task: &&Arc<Task>| !(running_only && task.is_over());
        match before {
            Some(before) => {
                table.tasks.range(..before).rev().map(|(_, t)| t).filter(wanted).cloned().collect()
            }
            None => table.tasks.values().rev().filter(wanted).cloned().collect(),
        }
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        lock(&self.table).running.len()
    }

    /// Events from now on, the tasks that run now, and whether a context executes something.
    pub fn watch(&self) -> (Vec<Arc<Task>>, bool, broadcast::Receiver<Event>) {
        let table = lock(&self.table);
        let running = table.running.keys().filter_map(|id| table.tasks.get(id).cloned()).collect();
        (running, table.executing > 0, self.events.subscribe())
    }

    /// Tells all watchers.
    pub fn publish(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn tell(&self, task: &Task, ended: bool) {
        if self.events.receiver_count() > 0 {
            let task = task.to_wire();
            self.publish(if ended { Event::Ended(task) } else { Event::Started(task) });
        }
    }

    /// Starts a task, or finds the one that the key started. Returns when it runs.
    pub async fn start(
        self: &Arc<Self>,
        session: &str,
        spec: Option<v1::TaskSpec>,
        key: String,
        if_epoch: Option<u64>,
        secrets: Vec<v1::SecretValue>,
    ) -> Result<Arc<Task>, Error> {
        let session = self.session(session)?;
        let wire = berth_proto::convert::required("task", spec)?;
        let key = berth_proto::convert::request_id(key)?;
        let shown = shown_spec(wire.clone());
        let spec = TaskSpec::try_from(wire)?;
        self.freezer.archives_over().await;
        let task = self.admit(session, spec, shown, key, if_epoch.map(Epoch), &secrets)?;
        task.started().await?;
        Ok(task)
    }

    fn admit(
        self: &Arc<Self>,
        session: Session,
        spec: TaskSpec,
        shown: v1::TaskSpec,
        key: Option<String>,
        if_epoch: Option<Epoch>,
        secrets: &[v1::SecretValue],
    ) -> Result<Arc<Task>, Error> {
        let mut table = lock(&self.table);
        let body = key.as_ref().map(|_| BodyHash::of(&spec));
        if let (Some(key), Some(body)) = (&key, body)
            && let Some(found) = self.same_key(&mut table, key, body, &session, &shown)?
        {
            return Ok(found);
        }
        if let Some(first) = if_epoch {
            same_placement(session.epoch, first)?;
        }
        if table.ending {
            return Err(Error::precondition(Reason::SessionEnded, "the session is ending"));
        }
        // Not before the key: a task that was started is the answer, whatever became of its secrets.
        let given = Given::of(&spec, secrets)?;
        self.freezer.refuse_held()?;
        let limit = session.defaults.max_concurrent;
        if table.running.len() >= limit as usize {
            return Err(Error::exhausted(
                Reason::TooManyTasks,
                format!("the session runs {limit} tasks, as many as it may"),
            )
            .with("limit", limit)
            .hint("wait for one to end, or create the session with a higher max_concurrent"));
        }
        let id = TaskId::new();
        if let (Some(key), Some(body)) = (&key, body) {
            // Before the fork: a crash in between is a task that may have run, never two.
            lock(&self.ledger).record(key, body, id).map_err(|error| {
                Error::exhausted(
                    Reason::DiskFull,
                    "the key could not be written down, so nothing was started",
                )
                .cause(error)
            })?;
        }
        let plan = self.plan(id, &session, spec, shown, given);
        let (task, driver) = Driver::new(id, plan, self.shared.clone());
        table.tasks.insert(id, task.clone());
        table.running.insert(id, self.activity.enter());
        drop(table);
        let (tasks, driven) = (self.clone(), task.clone());
        berth_proto::spawn::spawn("task", async move { tasks.drive(driven, driver, key).await });
        Ok(task)
    }

    /// The task that this key started before.
    fn same_key(
        &self,
        table: &mut Table,
        key: &str,
        body: BodyHash,
        session: &Session,
        shown: &v1::TaskSpec,
    ) -> Result<Option<Arc<Task>>, Error> {
        let Some(entry) = lock(&self.ledger).get(key) else { return Ok(None) };
        if entry.body != body {
            return Err(Error::new(
                Code::AlreadyExists,
                Reason::RequestIdReused,
                format!("request id {key:?} was used with another body"),
            )
            .with("task_id", entry.task));
        }
        if let Some(task) = table.tasks.get(&entry.task) {
            return Ok(Some(task.clone()));
        }
        if entry.earlier {
            // It may have run, or not: that is what WorkerLost says.
            let plan = self.plan(
                entry.task,
                session,
                TaskSpec::try_from(shown.clone())?,
                shown.clone(),
                Given::default(),
            );
            let (task, _) = Driver::new(entry.task, plan, self.shared.clone());
            task.lost(v1::TaskEnd {
                outcome: Some(Outcome::WorkerLost.into()),
                message: "its agent was lost: what it did is not known".to_owned(),
                ended_at: Some(time_out(SystemTime::now())),
                ..Default::default()
            });
            table.tasks.insert(entry.task, task.clone());
            Self::remember_done(table, &task);
            return Ok(Some(task));
        }
        Err(Error::not_found(
            Reason::TaskNotFound,
            format!("the task {} of this request id is done and no longer kept", entry.task),
        ))
    }

    fn plan(&self, id: TaskId, session: &Session, spec: TaskSpec, shown: v1::TaskSpec, given: Given) -> Plan {
        let request = trace::current();
        let of_task = request.map(|request| request.of_task(id));
        let timeout = match spec.timeout {
            Timeout::Default if spec.detached => None,
            Timeout::Default => session.defaults.timeout,
            Timeout::Never => None,
            Timeout::After(after) => Some(after),
        };
        Plan {
            spawn: self.environment.spawn(&session.env, &spec, &given.env, of_task),
            request,
            secret_files: given.files,
            timeout,
            pty_size: spec.pty.map(|size| size.unwrap_or(session.defaults.pty_size)),
            session: session.id.to_string(),
            shown,
            spec,
        }
    }

    async fn drive(self: Arc<Self>, task: Arc<Task>, driver: Driver, key: Option<String>) {
        let Ok(running) = driver.start().await else {
            self.not_started(&task, key);
            return;
        };
        self.tell(&task, false);
        if lock(&self.table).ending {
            // It slipped in while the session's end went through the table.
            task.stop(Stop { cause: Cause::SessionEnded, grace: Duration::ZERO });
        }
        let leftover = running.run().await;
        let purged = {
            let mut table = lock(&self.table);
            table.running.remove(&task.id);
            Self::remember_done(&mut table, &task)
        };
        self.tell(&task, true);
        self.ended.notify_waiters();
        tokio::time::sleep(TIDY).await;
        self.tidy(leftover).await;
        purge(purged).await;
        self.reclaim().await;
    }

    fn not_started(&self, task: &Arc<Task>, key: Option<String>) {
        let known = !task.is_done();
        {
            let mut table = lock(&self.table);
            table.running.remove(&task.id);
            if known {
                table.tasks.remove(&task.id);
            } else {
                Self::remember_done(&mut table, task);
            }
        }
        self.ended.notify_waiters();
        if !known {
            // Its key stays used: it may have run.
            self.tell(task, true);
        } else if let Some(key) = key
            && let Err(error) = lock(&self.ledger).release(&key)
        {
            warn!(%error, "a key could not be released");
        }
    }

    /// Puts a task with the done ones; what is too much comes back, to be purged.
    fn remember_done(table: &mut Table, task: &Arc<Task>) -> Vec<Arc<Task>> {
        let weight = task.weight();
        table.done.push_back((task.id, weight));
        table.done_weight += weight;
        let mut purged = Vec::new();
        while table.done.len() > DONE_MAX || (table.done_weight > DONE_WEIGHT && table.done.len() > 1) {
            purged.extend(Self::forget_oldest(table));
        }
        purged
    }

    /// The request ids that started something.
    pub fn keys(&self) -> Vec<v1::KeptKey> {
        lock(&self.ledger).keys()
    }

    /// Takes in the request ids of the session whose archive this one was made of.
    pub fn take_up_keys(&self, keys: &[v1::KeptKey]) -> Result<(), Error> {
        let mut ledger = lock(&self.ledger);
        keys.iter().try_for_each(|key| ledger.take_up(key))
    }

    /// Puts a task among the done ones that ended in the session whose archive this one was made of.
    pub fn take_up(&self, kept: v1::KeptTask) -> Result<(), Error> {
        let wire = berth_proto::convert::required("task", kept.task)?;
        let id: TaskId = wire.id.parse()?;
        let session = lock(&self.session).as_ref().map(|s| s.id.to_string()).unwrap_or_default();
        let dir = self.shared.spool_dir.join(id.to_string());
        let spool = |name, info: Option<v1::StreamInfo>, tail: &[u8]| {
            let length = info.map_or(0, |info| info.length);
            Spool::restored(dir.clone(), name, length, tail, self.shared.budget.clone())
        };
        let spools = [
            spool("stdout", wire.stdout, &kept.stdout_tail),
            spool("stderr", wire.stderr, &kept.stderr_tail),
        ];
        let (task, ..) = Task::new(
            id,
            session,
            wire.spec.unwrap_or_default(),
            wire.traceparent.parse().ok(),
            spools,
            self.shared.clock.now(),
        );
        let started = wire.started_at.map(|at| berth_proto::convert::time("started_at", at)).transpose()?;
        task.ended_elsewhere(wire.pid, started, berth_proto::convert::required("end", wire.end)?);
        let mut table = lock(&self.table);
        table.tasks.insert(id, task.clone());
        Self::remember_done(&mut table, &task);
        Ok(())
    }

    fn forget_oldest(table: &mut Table) -> Option<Arc<Task>> {
        let (id, weight) = table.done.pop_front()?;
        table.done_weight -= weight;
        table.tasks.remove(&id)
    }
}
