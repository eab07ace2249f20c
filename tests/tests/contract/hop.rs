//! A session, and the data-plane services of one hop on the way to it.

use std::time::Duration;

use berth_proto::{
    transport,
    v1::{
        self, file_service_client::FileServiceClient, interpreter_service_client::InterpreterServiceClient,
        port_service_client::PortServiceClient, secret_service_client::SecretServiceClient,
        session_service_client::SessionServiceClient, task_event::Event,
        task_service_client::TaskServiceClient, task_spec::Program,
    },
};
use berth_tests::{Authorized, Bearer, Cluster, Setup};
use tonic::{Status, Streaming, transport::Channel};

/// Longest that a case waits for one thing.
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    Coordinator,
    Worker,
    Agent,
}

pub struct Hop {
    pub at: At,
    pub session: String,
    pub backend: String,
    pub tasks: TaskServiceClient<Authorized>,
    pub files: FileServiceClient<Authorized>,
    pub ports: PortServiceClient<Authorized>,
    pub interpreter: InterpreterServiceClient<Authorized>,
    /// The coordinator behind it.
    coordinator: (Channel, Bearer),
    /// What was started for it alone.
    cluster: Option<Cluster>,
}

/// A session with limits that a case can reach.
async fn session(coordinator: &(Channel, Bearer)) -> String {
    let (channel, bearer) = coordinator.clone();
    let limits = v1::Limits { memory_bytes: Some(128 << 20), pids: Some(64), ..v1::Limits::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..v1::CreateSessionRequest::default() };
    let made = SessionServiceClient::with_interceptor(channel, bearer).create_session(request).await;
    made.expect("a session").into_inner().id
}

impl Hop {
    pub async fn start(backend: &str, at: At) -> Self {
        let setup = Setup { worker_listener: at == At::Worker, ..Setup::new(backend) };
        let cluster = Cluster::start(setup).await;
        let coordinator = (cluster.channel(), Bearer::new(&cluster.admin_token));
        let session = session(&coordinator).await;
        let worker = &cluster.workers[0];
        let (channel, bearer) = match at {
            At::Coordinator => coordinator.clone(),
            At::Worker => {
                let address = worker.data_plane.clone().expect("it has a listener");
                let token = std::fs::read_to_string(worker.state.join("data_token")).expect("its token");
                let endpoint = transport::endpoint(transport::uri_of(&address)).expect("an address");
                (endpoint.connect().await.expect("the worker's listener"), Bearer::new(token.trim()))
            }
            At::Agent => {
                let socket = worker.state.join("sessions").join(&session).join("berth/run/agent.sock");
                (transport::channel_uds(socket), Bearer::none())
            }
        };
        Self::of(at, backend, session, (channel, bearer), coordinator, Some(cluster))
    }

    /// On a fleet that runs, by its coordinator.
    pub async fn on(channel: Channel, token: &str, backend: &str) -> Self {
        let coordinator = (channel, Bearer::new(token));
        let session = session(&coordinator).await;
        Self::of(At::Coordinator, backend, session, coordinator.clone(), coordinator, None)
    }

    fn of(
        at: At,
        backend: &str,
        session: String,
        (channel, bearer): (Channel, Bearer),
        coordinator: (Channel, Bearer),
        cluster: Option<Cluster>,
    ) -> Self {
        Self {
            at,
            session,
            backend: backend.to_owned(),
            tasks: TaskServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            files: FileServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            ports: PortServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            interpreter: InterpreterServiceClient::with_interceptor(channel, bearer),
            coordinator,
            cluster,
        }
    }

    /// Makes a secret. What a start has to bring along for it where there is no coordinator to add that.
    pub async fn secret(&self, name: &str, value: &[u8]) -> Vec<v1::SecretValue> {
        let value = value.to_vec();
        if self.at != At::Coordinator {
            let is = Some(v1::secret_value::Is::Value(value.into()));
            return vec![v1::SecretValue { name: name.into(), is }];
        }
        let set = v1::SetSecretRequest { name: name.into(), value: value.into(), ..Default::default() };
        self.secrets().set_secret(set).await.expect("it is set");
        Vec::new()
    }

    /// The coordinator's.
    pub fn secrets(&self) -> SecretServiceClient<Authorized> {
        let (channel, bearer) = self.coordinator.clone();
        SecretServiceClient::with_interceptor(channel, bearer)
    }

    pub async fn stop(self) {
        let Self { coordinator, cluster, tasks, files, ports, interpreter, session, .. } = self;
        drop((tasks, files, ports, interpreter));
        let request = v1::DeleteSessionRequest { session_id: session, ..Default::default() };
        let (channel, bearer) = coordinator;
        let deleted = SessionServiceClient::with_interceptor(channel, bearer).delete_session(request).await;
        deleted.expect("the session can be deleted");
        if let Some(cluster) = cluster {
            cluster.stop().await;
        }
    }

    /// Runs a task to its end and gathers what it wrote.
    pub async fn run(&self, task: v1::TaskSpec) -> Ran {
        self.try_run(task).await.expect("the task runs")
    }

    pub async fn try_run(&self, task: v1::TaskSpec) -> Result<Ran, Status> {
        let request =
            v1::RunRequest { session_id: self.session.clone(), task: Some(task), ..Default::default() };
        gather(self.tasks.clone().run(request).await?.into_inner()).await
    }

    pub async fn start_task(&self, task: v1::TaskSpec) -> v1::Task {
        let request =
            v1::StartTaskRequest { session_id: self.session.clone(), task: Some(task), ..Default::default() };
        self.tasks.clone().start_task(request).await.expect("the task starts").into_inner()
    }

    pub async fn watch(&self, task: &str, stdout: u64, stderr: u64) -> Result<Ran, Status> {
        let request = v1::WatchTaskRequest {
            session_id: self.session.clone(),
            task_id: task.to_owned(),
            stdout_offset: stdout,
            stderr_offset: stderr,
            ..Default::default()
        };
        gather(self.tasks.clone().watch_task(request).await?.into_inner()).await
    }

    pub async fn get(&self, task: &str) -> v1::Task {
        let request = v1::GetTaskRequest { session_id: self.session.clone(), task_id: task.to_owned() };
        self.tasks.clone().get_task(request).await.expect("the task is there").into_inner()
    }

    /// Waits until the task is done.
    pub async fn done(&self, task: &str) -> v1::Task {
        let request =
            v1::WaitTaskRequest { session_id: self.session.clone(), task_id: task.to_owned(), timeout: None };
        let waited = tokio::time::timeout(DEADLINE, self.tasks.clone().wait_task(request)).await;
        let task = waited.expect("it ends").expect("it can be waited for").into_inner();
        assert_eq!(task.state(), v1::TaskState::Done);
        task
    }

    /// Waits until its standard output holds `text`.
    pub async fn prints(&self, task: &str, text: &str) {
        berth_tests::until(DEADLINE, &format!("{text:?} in the output"), async || {
            self.output(task).await.contains(text).then_some(())
        })
        .await;
    }

    /// What it has written to its standard output so far.
    pub async fn output(&self, task: &str) -> String {
        let request = v1::WatchTaskRequest {
            session_id: self.session.clone(),
            task_id: task.to_owned(),
            no_follow: true,
            ..Default::default()
        };
        let Ok(stream) = self.tasks.clone().watch_task(request).await else { return String::new() };
        let ran = gather(stream.into_inner()).await.unwrap_or_default();
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }
}

/// A task's stream, gathered.
#[derive(Debug, Default)]
pub struct Ran {
    pub started: Option<v1::Task>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub ended: Option<v1::Task>,
}

impl Ran {
    pub fn outcome(&self) -> v1::outcome::Kind {
        kind(self.ended.as_ref().expect("it ended"))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8").trim_end()
    }

    pub fn errors(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("UTF-8").trim_end()
    }

    /// Its output, if it ended with 0.
    pub fn ok(&self) -> &str {
        assert_eq!(self.outcome(), v1::outcome::Kind::Exited(0), "stderr: {}", self.errors());
        self.text()
    }
}

pub fn kind(task: &v1::Task) -> v1::outcome::Kind {
    let end = task.end.as_ref().unwrap_or_else(|| panic!("not done: {task:?}"));
    end.outcome.expect("an outcome").kind.expect("a kind")
}

/// Reads a stream to its end; asserts that its events are in order and without gaps.
pub async fn gather(mut stream: Streaming<v1::TaskEvent>) -> Result<Ran, Status> {
    let mut ran = Ran::default();
    let mut next = [None::<u64>; 2];
    loop {
        let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("an event in time")?;
        let Some(event) = message else { break };
        let event = event.event.expect("an event has a kind");
        assert!(ran.ended.is_none(), "an event after the end: {event:?}");
        assert!(ran.started.is_some() || matches!(event, Event::Started(_)), "the first is {event:?}");
        match event {
            Event::Started(task) => ran.started = Some(task),
            Event::Ended(task) => ran.ended = Some(task),
            Event::Keepalive(_) => {}
            Event::Stdout(chunk) => append(&mut ran.stdout, &mut next[0], chunk),
            Event::Stderr(chunk) => append(&mut ran.stderr, &mut next[1], chunk),
        }
    }
    Ok(ran)
}

fn append(bytes: &mut Vec<u8>, next: &mut Option<u64>, chunk: v1::OutputChunk) {
    if let Some(next) = *next {
        assert_eq!(chunk.offset, next, "a gap or a repetition");
    }
    *next = Some(chunk.offset + chunk.data.len() as u64);
    bytes.extend_from_slice(&chunk.data);
}

pub fn argv(args: &[&str]) -> v1::TaskSpec {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    v1::TaskSpec { program: Some(Program::Argv(v1::Argv { args })), ..Default::default() }
}

pub fn shell(line: &str) -> v1::TaskSpec {
    v1::TaskSpec { program: Some(Program::Shell(line.to_owned())), ..Default::default() }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}
