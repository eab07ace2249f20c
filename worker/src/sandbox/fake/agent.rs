//! The fake sandbox and its agent: what the machine knows, its deadlines, `AgentService`.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::{
    Epoch, Error, Reason, SessionId, TaskId, VERSION, convert,
    domain::{Labels, Limits, Outcome, TaskDefaults, TaskDefaultsPatch},
    secret::Given,
    spawn::spawn,
    trace::{Role, TraceLayer},
    transport::{self, DATA_STREAMS, MESSAGE_LIMIT, PORT_CONNECTIONS},
    v1::{
        self, agent_event::Event, agent_service_server::AgentService,
        agent_service_server::AgentServiceServer, file_service_server::FileServiceServer,
        interpreter_service_server::InterpreterServiceServer, port_service_server::PortServiceServer,
        task_service_server::TaskServiceServer,
    },
    world,
};
use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore, broadcast, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

use super::{Faults, Witness, files::Tree, lock, tasks::Task};
use crate::sandbox::SandboxSpec;

/// Done tasks that a session remembers.
const DONE_KEPT: usize = 1000;

/// One fake sandbox.
pub(super) struct Machine {
    session: SessionId,
    limits: Limits,
    faults: Faults,
    witness: Option<Witness>,
    /// The sandbox is no more.
    gone: CancellationToken,
    /// Shutdown was asked for: what is being served may end, then the machine is gone.
    pub stopping: CancellationToken,
    state: Mutex<State>,
    pub files: Mutex<Tree>,
    pub frozen: watch::Sender<bool>,
    /// To its one port.
    pub connections: Arc<Semaphore>,
    events: broadcast::Sender<v1::AgentEvent>,
    /// A call or a task began or ended, or a deadline was set.
    moved: Notify,
}

struct State {
    tasks: BTreeMap<TaskId, Arc<Task>>,
    /// Request ids, with what they asked for.
    ledger: HashMap<String, (v1::TaskSpec, TaskId)>,
    next_pid: u32,
    calls: usize,
    last_activity: Instant,
    configured: bool,
    env: Labels,
    defaults: TaskDefaults,
    ttl: Option<Instant>,
    idle_timeout: Option<Duration>,
    epoch: u64,
    fence: Option<Instant>,
    paused: bool,
    fenced: bool,
}

/// A sandbox as one who looks from outside sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub session: String,
    pub epoch: u64,
    /// Its tasks stand still.
    pub frozen: bool,
    /// Whatever was in it has ended.
    pub gone: bool,
    /// Each task that ever ran here: id, command line, whether it still runs.
    pub tasks: Vec<(TaskId, String, bool)>,
}

/// Counts a call for as long as it lives.
pub(super) struct Call(Arc<Machine>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.calls -= 1;
        state.last_activity = Instant::now();
        self.0.moved.notify_one();
    }
}

impl Machine {
    pub fn start(spec: &SandboxSpec, faults: &Faults, witness: Option<Witness>) -> Arc<Self> {
        let machine = Arc::new(Self {
            session: spec.session,
            limits: spec.limits,
            faults: faults.clone(),
            witness,
            gone: CancellationToken::new(),
            stopping: CancellationToken::new(),
            state: Mutex::new(State {
                tasks: BTreeMap::new(),
                ledger: HashMap::new(),
                next_pid: 2,
                calls: 0,
                last_activity: Instant::now(),
                configured: false,
                env: Labels::new(),
                defaults: TaskDefaults::default(),
                ttl: None,
                idle_timeout: None,
                epoch: 0,
                fence: None,
                paused: false,
                fenced: false,
            }),
            files: Mutex::new(Tree::new(spec.limits.disk_bytes)),
            connections: Arc::new(Semaphore::new(PORT_CONNECTIONS)),
            frozen: watch::channel(false).0,
            events: broadcast::channel(1024).0,
            moved: Notify::new(),
        });
        if let Some(after) = faults.die_after {
            let dying = machine.clone();
            spawn("fake-death", async move {
                tokio::select! {
                    () = tokio::time::sleep(after) => dying.die(),
                    () = dying.gone.cancelled() => {}
                }
            });
        }
        if !faults.no_deadlines {
            spawn("fake-deadlines", machine.clone().deadlines());
        }
        machine
    }

    pub fn observe(&self, session: &str) -> Observed {
        let state = lock(&self.state);
        Observed {
            session: session.to_owned(),
            epoch: state.epoch,
            frozen: *self.frozen.borrow(),
            gone: self.gone.is_cancelled(),
            tasks: state.tasks.iter().map(|(id, task)| (*id, task.command_line(), !task.done())).collect(),
        }
    }

    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// All at once, without a word.
    pub fn die(&self) {
        self.gone.cancel();
        for task in lock(&self.state).tasks.values() {
            task.stop(Outcome::SandboxFailed);
        }
    }

    /// Checks whom a call is for.
    fn is(&self, session: &str) -> Result<(), Error> {
        if session != self.session.to_string() {
            return Err(Error::not_found(Reason::SessionNotFound, "this is another session's sandbox"));
        }
        if !lock(&self.state).configured {
            return Err(Error::precondition(Reason::SessionNotReady, "the agent is not configured yet"));
        }
        Ok(())
    }

    /// The same, and counts it.
    pub fn enter(self: &Arc<Self>, session: &str) -> Result<Call, Error> {
        self.is(session)?;
        lock(&self.state).calls += 1;
        Ok(Call(self.clone()))
    }

    /// Something moves on a connection.
    pub fn touch(&self) {
        lock(&self.state).last_activity = Instant::now();
    }

    pub fn task(&self, id: &str) -> Result<Arc<Task>, Error> {
        let id = convert::task_id(id)?;
        lock(&self.state)
            .tasks
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::not_found(Reason::TaskNotFound, format!("the session has no task {id}")))
    }

    /// Newest first.
    /// Each of its tasks is one process; nothing here takes CPU time or memory that could be counted.
    pub fn usage(&self, session: &str) -> Result<v1::SessionUsage, Error> {
        self.is(session)?;
        let state = lock(&self.state);
        let running = state.tasks.values().filter(|task| !task.done()).count();
        let tasks_limit = state.defaults.max_concurrent;
        drop(state);
        let files = lock(&self.files);
        Ok(v1::SessionUsage {
            read_at: Some(convert::time_out(world::now())),
            cpu_limit_millis: Some(self.limits.cpu_millis.into()),
            memory_limit_bytes: Some(self.limits.memory_bytes),
            pids: Some(running as u64),
            pids_limit: Some(self.limits.pids.into()),
            disk_bytes: Some(files.used()),
            disk_limit_bytes: Some(self.limits.disk_bytes),
            inodes: Some(files.count()),
            tasks: u32::try_from(running).unwrap_or(u32::MAX),
            tasks_limit,
            ..Default::default()
        })
    }

    pub fn tasks(&self) -> Vec<Arc<Task>> {
        lock(&self.state).tasks.values().rev().cloned().collect()
    }

    /// Starts a task, or returns the one that this request id started before.
    pub fn start_task(
        self: &Arc<Self>,
        wire: Option<v1::TaskSpec>,
        request_id: String,
        if_epoch: Option<u64>,
        secrets: &[v1::SecretValue],
    ) -> Result<Arc<Task>, Error> {
        let wire = convert::required("task", wire)?;
        let request_id = convert::request_id(request_id)?;
        let spec = convert_spec(wire.clone())?;
        if !lock(&self.files).is_dir(super::commands::cwd_or_workspace(&spec.cwd)) {
            return Err(Error::precondition(Reason::CwdNotFound, format!("{}: no such directory", spec.cwd)));
        }
        let mut state = lock(&self.state);
        if let Some((earlier, id)) = request_id.as_ref().and_then(|key| state.ledger.get(key)) {
            if *earlier != wire {
                return Err(Error::new(
                    berth_proto::Code::AlreadyExists,
                    Reason::RequestIdReused,
                    "the request id was used for another task",
                ));
            }
            let task = state.tasks.get(id).cloned();
            return task.ok_or_else(|| Error::not_found(Reason::TaskNotFound, "that task is forgotten"));
        }
        if let Some(first) = if_epoch {
            convert::same_placement(Epoch(state.epoch), Epoch(first))?;
        }
        if self.stopping.is_cancelled() || self.gone.is_cancelled() {
            return Err(Error::precondition(Reason::SessionEnded, "the session is ending"));
        }
        let mut given = Given::of(&spec, secrets)?;
        if state.fenced {
            let text = "the session's worker has lost the coordinator: it stands still until that is back";
            return Err(Error::unavailable(Reason::SessionFenced, text));
        }
        let running = state.tasks.values().filter(|task| !task.done()).count();
        let most = state.defaults.max_concurrent as usize;
        if running >= most {
            return Err(Error::exhausted(
                Reason::TooManyTasks,
                format!("the session runs {running} tasks, and may run {most}"),
            ));
        }
        let pid = state.next_pid;
        state.next_pid += 1;
        given.env = [state.env.clone(), spec.env.clone(), given.env].into_iter().flatten().collect();
        let timeout = state.defaults.timeout;
        let task = Arc::new(Task::new(self.session, spec, wire, pid, given, self, timeout));
        state.tasks.insert(task.id(), task.clone());
        if let Some(key) = request_id {
            state.ledger.insert(key, (task.asked().clone(), task.id()));
        }
        forget_old(&mut state.tasks);
        let _ = self.events.send(event(Event::Started(task.snapshot())));
        let epoch = state.epoch;
        drop(state);
        if let Some(witness) = &self.witness {
            witness(self.session, epoch, &task.command_line());
        }
        self.moved.notify_one();
        spawn("fake-task", task.clone().supervise(self.clone()));
        Ok(task)
    }

    /// A task is done: told to those who watch the agent.
    pub fn finished(&self, task: &Task) {
        let mut state = lock(&self.state);
        state.last_activity = Instant::now();
        let _ = self.events.send(event(Event::Ended(task.snapshot())));
        drop(state);
        self.moved.notify_one();
    }

    async fn end_tasks(&self) {
        let tasks: Vec<_> = lock(&self.state).tasks.values().cloned().collect();
        for task in &tasks {
            task.stop(Outcome::SessionEnded);
        }
        for task in &tasks {
            task.wait().await;
        }
    }

    /// Tasks stand still while anyone holds them.
    fn hold(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let held = state.paused || state.fenced;
        self.frozen.send_replace(held);
        drop(state);
        self.moved.notify_one();
    }

    fn put_off(&self, fence: v1::Fence) -> Result<bool, Error> {
        let within = convert::duration("fence.within", convert::required("fence.within", fence.within)?)?;
        let mut was = false;
        self.hold(|state| {
            was = std::mem::take(&mut state.fenced);
            state.fence = Some(Instant::now() + within);
        });
        Ok(was)
    }

    /// Ends the session when its time is up, and lets it stand still at its fence.
    async fn deadlines(self: Arc<Self>) {
        loop {
            let fence = lock(&self.state).fence;
            let (ttl, idle) = {
                let state = lock(&self.state);
                let busy =
                    state.calls > 0 || *self.frozen.borrow() || state.tasks.values().any(|task| !task.done());
                let idle = state.idle_timeout.filter(|_| !busy).map(|idle| state.last_activity + idle);
                (state.ttl, idle)
            };
            let next = [ttl, idle].into_iter().flatten().min();
            tokio::select! {
                () = self.gone.cancelled() => return,
                () = self.moved.notified() => {}
                () = sleep_until(fence) => self.hold(|state| {
                    state.fenced = true;
                    state.fence = None;
                }),
                () = sleep_until(next) => {
                    let idle = ttl.is_none_or(|ttl| idle.is_some_and(|idle| idle < ttl));
                    self.end_tasks().await;
                    let _ = self.events.send(event(Event::Expired(v1::agent_event::Expired { idle })));
                    return;
                }
            }
        }
    }
}

/// Never, when there is no deadline.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn event(event: Event) -> v1::AgentEvent {
    v1::AgentEvent { event: Some(event) }
}

fn convert_spec(wire: v1::TaskSpec) -> Result<berth_proto::domain::TaskSpec, Error> {
    wire.try_into()
}

fn forget_old(tasks: &mut BTreeMap<TaskId, Arc<Task>>) {
    let done: Vec<TaskId> = tasks.iter().filter(|(_, task)| task.done()).map(|(id, _)| *id).collect();
    for id in done.iter().take(done.len().saturating_sub(DONE_KEPT)) {
        tasks.remove(id);
    }
}

/// Serves the agent on one connection until that ends or the machine does.
pub(super) async fn serve<Io>(machine: Arc<Machine>, incoming: impl Stream<Item = std::io::Result<Io>>)
where
    Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    if machine.faults.never_answer {
        machine.gone.cancelled().await;
        return;
    }
    let handle = Served(machine.clone());
    let serving = transport::server(DATA_STREAMS)
        .layer(TraceLayer(Role::Last))
        .add_service(AgentServiceServer::new(handle.clone()))
        .add_service(TaskServiceServer::new(handle.clone()).max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(FileServiceServer::new(handle.clone()).max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(InterpreterServiceServer::new(handle.clone()))
        .add_service(PortServiceServer::new(handle).max_decoding_message_size(MESSAGE_LIMIT))
        .serve_with_incoming_shutdown(incoming, machine.stopping.clone().cancelled_owned());
    tokio::select! {
        _ = serving => {}
        () = machine.gone.cancelled() => {}
    }
}

/// The services' handle on a machine.
#[derive(Clone)]
pub(super) struct Served(pub Arc<Machine>);

#[tonic::async_trait]
impl AgentService for Served {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::AgentEvent, Status>> + Send>>;

    async fn configure(
        &self,
        request: Request<v1::ConfigureRequest>,
    ) -> Result<Response<v1::ConfigureResponse>, Status> {
        let wire = request.into_inner();
        if wire.session_id != self.0.session.to_string() {
            return Err(Error::invalid("session_id", "this is another session's sandbox").into());
        }
        let defaults = TaskDefaultsPatch::try_from(wire.task_defaults.unwrap_or_default())?;
        let ttl = wire.ttl_left.map(|left| convert::duration("ttl_left", left)).transpose()?;
        let idle = convert::optional_limit("idle_timeout", wire.idle_timeout)?.flatten();
        let mut state = lock(&self.0.state);
        state.env = convert::env("env", wire.env)?;
        state.defaults = defaults.over(TaskDefaults::default());
        state.ttl = ttl.map(|left| Instant::now() + left);
        state.idle_timeout = idle;
        if !state.configured {
            state.last_activity = Instant::now();
        }
        state.configured = true;
        state.epoch = wire.epoch;
        drop(state);
        if let Some(fence) = wire.fence {
            self.0.put_off(fence)?;
        }
        self.0.moved.notify_one();
        Ok(Response::new(v1::ConfigureResponse { version: VERSION.to_owned(), protections: Vec::new() }))
    }

    async fn watch(
        &self,
        _request: Request<v1::WatchAgentRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // Under the lock that events are sent under, so that none is missed or told twice.
        let state = lock(&self.0.state);
        let receiver = self.0.events.subscribe();
        let now: Vec<_> = state
            .tasks
            .values()
            .filter(|task| !task.done())
            .map(|task| Ok(event(Event::Started(task.snapshot()))))
            .collect();
        drop(state);
        let stopping = self.0.stopping.clone();
        let later = futures::stream::unfold((receiver, stopping), |(mut receiver, stopping)| async move {
            let next = tokio::select! {
                biased;
                next = receiver.recv() => next,
                // All tasks were ended before: their events are in the queue, which was looked at first.
                () = stopping.cancelled() => return None,
            };
            match next {
                Ok(event) => Some((Ok(event), (receiver, stopping))),
                Err(broadcast::error::RecvError::Closed) => None,
                Err(broadcast::error::RecvError::Lagged(_)) => Some((
                    Err(Status::data_loss("the watcher is too slow: watch anew")),
                    (receiver, stopping),
                )),
            }
        });
        Ok(Response::new(Box::pin(futures::StreamExt::chain(futures::stream::iter(now), later))))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        tokio::time::sleep(self.0.faults.freeze_delay).await;
        let paused = request.into_inner().frozen;
        self.0.hold(|state| {
            state.paused = paused;
            state.last_activity = Instant::now();
        });
        Ok(Response::new(v1::FreezeResponse {}))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let wire = request.into_inner();
        if wire.epoch != lock(&self.0.state).epoch {
            return Err(Error::precondition(Reason::StaleEpoch, "another placement was told").into());
        }
        let was_fenced = self.0.put_off(convert::required("fence", wire.fence)?)?;
        Ok(Response::new(v1::RenewResponse { was_fenced }))
    }

    type ExportStream = Pin<Box<dyn Stream<Item = Result<v1::ArchivePart, Status>> + Send>>;

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let parts = lock(&self.0.files).archive(request.into_inner().max_bytes)?;
        Ok(Response::new(Box::pin(futures::stream::iter(parts.into_iter().map(Ok)))))
    }

    async fn import(
        &self,
        request: Request<Streaming<v1::ArchivePart>>,
    ) -> Result<Response<v1::ImportResponse>, Status> {
        let mut incoming = request.into_inner();
        let mut parts = Vec::new();
        while let Some(part) = incoming.message().await? {
            parts.push(part);
        }
        Ok(Response::new(lock(&self.0.files).unarchive(parts)?))
    }

    async fn shutdown(
        &self,
        _request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        self.0.end_tasks().await;
        self.0.stopping.cancel();
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}
