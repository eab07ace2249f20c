//! A coordinator on a free port, and a worker that does what a script says. The worker is
//! a plain tonic client of the public API: what passes here passes over real sockets.

#![allow(dead_code)]

pub mod keeper;
pub mod raw;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_coordinator::{Config, Coordinator, Running, store::Store};
use berth_net::{Dialer, Trust};
use berth_proto::{
    Code, Reason, TaskId,
    error::{detail_of, reason_of},
    spawn::spawn,
    transport::{self, endpoint, uri_of},
    v1::{
        self,
        admin_service_client::AdminServiceClient,
        coordinator_message::Message,
        file_service_client::FileServiceClient,
        file_service_server::{FileService, FileServiceServer},
        identity_service_client::IdentityServiceClient,
        session_service_client::SessionServiceClient,
        task_service_client::TaskServiceClient,
        task_service_server::{TaskService, TaskServiceServer},
        worker_message,
        worker_service_client::WorkerServiceClient,
    },
};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming, metadata::MetadataValue, service::interceptor::InterceptedService,
    transport::Channel,
};

/// Longer than anything takes, shorter than the runner's patience.
pub const SOON: Duration = Duration::from_secs(20);

pub type Guarded = InterceptedService<Channel, Bearer>;

/// Sends a token with each call.
#[derive(Clone)]
pub struct Bearer(pub String);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = MetadataValue::try_from(format!("Bearer {}", self.0)).expect("a token is ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

/// The call failed like this, and says what to do.
#[track_caller]
pub fn failed<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: Reason) -> Status {
    let status = result.expect_err("must fail");
    assert_eq!((status.code(), reason_of(&status)), (code, Some(reason)), "{status:?}");
    assert!(detail_of(&status, "hint").is_some(), "no hint in {status:?}");
    status
}

/// Asks until the answer fits.
pub async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let wait = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("in time")
}

/// A coordinator and its state.
pub struct Host {
    pub running: Running,
    pub state: tempfile::TempDir,
}

pub fn config(state: &std::path::Path) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: state.to_owned(),
        shutdown_grace: Duration::from_secs(1),
        ..Config::default()
    }
}

impl Host {
    pub async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let running = Coordinator::start(config(state.path())).await.expect("starts");
        Self { running, state }
    }

    pub async fn start_with(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut config = config(state.path());
        change(&mut config);
        let running = Coordinator::start_with(config, store).await.expect("starts");
        Self { running, state }
    }

    /// Stops it and starts another on the same state.
    pub async fn restart(self) -> Self {
        self.running.shutdown().await;
        let running = Coordinator::start(config(self.state.path())).await.expect("starts again");
        Self { running, state: self.state }
    }

    /// Over TLS, as whom the trust says.
    pub async fn secure(&self, trust: Trust) -> Channel {
        let dialer = Dialer::new(&self.running.addr().to_string(), Some(trust)).expect("an address");
        dialer.connect().await.expect("connects")
    }

    pub async fn channel(&self) -> Channel {
        endpoint(uri_of(&self.running.addr().to_string())).unwrap().connect().await.expect("connects")
    }

    pub fn admin(&self) -> Bearer {
        Bearer(self.running.credentials().admin_token.clone())
    }

    pub fn join(&self) -> Bearer {
        Bearer(self.running.credentials().join_token.clone())
    }

    pub async fn sessions(&self) -> SessionServiceClient<Guarded> {
        SessionServiceClient::with_interceptor(self.channel().await, self.admin())
    }

    pub async fn fleet(&self) -> AdminServiceClient<Guarded> {
        AdminServiceClient::with_interceptor(self.channel().await, self.admin())
    }

    pub async fn tasks(&self) -> TaskServiceClient<Guarded> {
        TaskServiceClient::with_interceptor(self.channel().await, self.admin())
    }

    pub async fn files(&self) -> FileServiceClient<Guarded> {
        FileServiceClient::with_interceptor(self.channel().await, self.admin())
    }

    pub async fn identity(&self) -> IdentityServiceClient<Guarded> {
        IdentityServiceClient::with_interceptor(self.channel().await, self.admin())
    }

    pub async fn sessions_as(&self, token: &Bearer) -> SessionServiceClient<Guarded> {
        SessionServiceClient::with_interceptor(self.channel().await, token.clone())
    }

    pub async fn fleet_as(&self, token: &Bearer) -> AdminServiceClient<Guarded> {
        AdminServiceClient::with_interceptor(self.channel().await, token.clone())
    }

    /// A client's token of a tenant.
    pub async fn client_of(&self, tenant: &str) -> Bearer {
        let request = v1::CreateTokenRequest {
            scope: v1::TokenScope::Client.into(),
            tenant: tenant.to_owned(),
            ..Default::default()
        };
        Bearer(self.identity().await.create_token(request).await.expect("a token").into_inner().value)
    }

    pub async fn quota(&self, tenant: &str, quota: v1::Quota) -> v1::Tenant {
        let request =
            v1::SetQuotaRequest { tenant: tenant.to_owned(), quota: Some(quota), ..Default::default() };
        self.identity().await.set_quota(request).await.expect("a quota").into_inner()
    }

    /// A worker that makes every session ready at once.
    pub async fn worker(&self, name: &str) -> Puppet {
        Puppet::attach(self, name, Script::default()).await.expect("attaches")
    }
}

/// What a worker does when it is told to place a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OnPlace {
    #[default]
    Ready,
    Refuse,
    Fail(String),
    /// Says nothing.
    Nothing,
}

/// How a worker behaves.
#[derive(Clone, Debug)]
pub struct Script {
    pub on_place: OnPlace,
    pub ignore_end: bool,
    pub incarnation: u64,
    pub process: String,
    pub running: Vec<v1::RunningSession>,
    pub max_sessions: u32,
    pub data: bool,
    pub backends: Vec<v1::BackendStatus>,
    pub templates: Vec<String>,
    pub problems: Vec<v1::TemplateProblem>,
    /// As its heartbeats tell it.
    pub health: v1::WorkerHealth,
}

impl Script {
    /// It can't serve `base`, and says why.
    pub fn without_base(reason: &str) -> Self {
        let problem = v1::TemplateProblem { name: "base".into(), reason: reason.into() };
        Self { templates: vec![], problems: vec![problem], ..Self::default() }
    }
}

impl Default for Script {
    fn default() -> Self {
        Self {
            on_place: OnPlace::Ready,
            ignore_end: false,
            incarnation: 0,
            process: TaskId::new().to_string(),
            running: Vec::new(),
            max_sessions: 5,
            data: true,
            backends: vec![v1::BackendStatus {
                name: "native".into(),
                ready: true,
                chosen: true,
                ..Default::default()
            }],
            templates: vec!["base".into()],
            problems: Vec::new(),
            health: v1::WorkerHealth { ready: true, ..Default::default() },
        }
    }
}

/// A worker that does as its script says.
pub struct Puppet {
    pub name: String,
    pub script: Arc<Mutex<Script>>,
    pub welcome: v1::Welcome,
    say: mpsc::Sender<v1::WorkerMessage>,
    heard: Arc<Mutex<Vec<Message>>>,
    count: watch::Receiver<usize>,
    /// How its stream ended, once it has.
    pub ended: watch::Receiver<Option<Status>>,
    stop: CancellationToken,
}

pub fn hello(name: &str, script: &Script) -> v1::Hello {
    v1::Hello {
        worker_id: name.to_owned(),
        process_id: script.process.clone(),
        instance: format!("state of {name}"),
        incarnation: script.incarnation,
        version: "test".into(),
        capacity: Some(v1::Capacity {
            cpu_millis: 16_000,
            memory_bytes: 16 << 30,
            disk_bytes: 64 << 30,
            max_sessions: script.max_sessions,
        }),
        labels: [("name".to_owned(), name.to_owned())].into(),
        running: script.running.clone(),
        backends: script.backends.clone(),
        templates: script.templates.clone(),
        template_problems: script.problems.clone(),
        stopping_within: None,
        full_egress: false,
        health: Some(v1::WorkerHealth { ready: true, ..Default::default() }),
    }
}

fn message(message: worker_message::Message) -> v1::WorkerMessage {
    v1::WorkerMessage { message: Some(message) }
}

impl Puppet {
    pub async fn attach(host: &Host, name: &str, script: Script) -> Result<Self, Status> {
        Self::attach_as(host, host.join(), name, script).await
    }

    pub async fn attach_as(host: &Host, token: Bearer, name: &str, script: Script) -> Result<Self, Status> {
        let mut client = WorkerServiceClient::with_interceptor(host.channel().await, token);
        let (say, said) = mpsc::channel(64);
        say.send(message(worker_message::Message::Hello(hello(name, &script)))).await.unwrap();
        let mut incoming = client.attach(ReceiverStream::new(said)).await?.into_inner();
        let first = tokio::time::timeout(SOON, incoming.message()).await.expect("a welcome in time")?;
        let Some(Message::Welcome(welcome)) = first.and_then(|m| m.message) else {
            panic!("the welcome comes first")
        };
        let stop = CancellationToken::new();
        if script.data {
            for _ in 0..welcome.data_connections {
                serve_data(
                    &host.running.addr().to_string(),
                    name,
                    &welcome,
                    &welcome.data_token,
                    stop.clone(),
                )
                .await;
            }
        }
        let (counter, count) = watch::channel(0);
        let (ender, ended) = watch::channel(None);
        let puppet = Self {
            name: name.to_owned(),
            script: Arc::new(Mutex::new(script)),
            welcome: welcome.clone(),
            say: say.clone(),
            heard: Arc::default(),
            count,
            ended,
            stop: stop.clone(),
        };
        let (script, heard) = (puppet.script.clone(), puppet.heard.clone());
        spawn("puppet", async move {
            let every = Duration::try_from(welcome.heartbeat_interval.unwrap()).unwrap();
            let mut beat = tokio::time::interval(every);
            let end = loop {
                tokio::select! {
                    next = incoming.message() => match next {
                        Ok(Some(v1::CoordinatorMessage { message: Some(next), .. })) => {
                            let now = script.lock().unwrap().clone();
                            for answer in answers(&next, &now) {
                                let _ = say.send(message(worker_message::Message::Session(answer))).await;
                            }
                            heard.lock().unwrap().push(next);
                            counter.send_modify(|n| *n += 1);
                        }
                        Ok(_) => break Status::ok("the stream ended"),
                        Err(status) => break status,
                    },
                    _ = beat.tick() => {
                        let now = script.lock().unwrap().clone();
                        let heartbeat = v1::Heartbeat {
                            sequence: 1,
                            health: Some(now.health),
                            backends: now.backends,
                            templates: now.templates,
                            template_problems: now.problems,
                        };
                        let _ = say.send(message(worker_message::Message::Heartbeat(heartbeat))).await;
                    }
                    () = stop.cancelled() => break Status::ok("stopped"),
                }
            };
            ender.send_replace(Some(end));
        });
        Ok(puppet)
    }

    pub async fn say(&self, what: worker_message::Message) {
        self.say.send(message(what)).await.expect("the link is up");
    }

    pub async fn report(&self, session: &str, epoch: u64, state: v1::SessionState) {
        self.say(worker_message::Message::Session(report(session, epoch, state))).await;
    }

    /// Waits until something that it heard fits.
    pub async fn hear<T>(&mut self, mut fits: impl FnMut(&Message) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = self.heard.lock().unwrap().iter().find_map(&mut fits) {
                    return found;
                }
                self.count.changed().await.expect("the puppet lives");
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("heard in time")
    }

    /// Whether it has heard such a thing so far.
    pub fn has_heard(&self, fits: impl Fn(&Message) -> bool) -> bool {
        self.heard.lock().unwrap().iter().any(fits)
    }

    /// Waits for the end of its stream.
    pub async fn end(&mut self) -> Status {
        let ended =
            tokio::time::timeout(SOON, self.ended.wait_for(Option::is_some)).await.expect("ends in time");
        ended.expect("the puppet lives").clone().expect("it ended")
    }

    /// Goes away: link and data connections.
    pub async fn leave(mut self) {
        self.stop.cancel();
        self.end().await;
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn report(session: &str, epoch: u64, state: v1::SessionState) -> v1::SessionReport {
    v1::SessionReport {
        session_id: session.to_owned(),
        epoch,
        state: state.into(),
        backend: "fake".into(),
        ..Default::default()
    }
}

fn answers(heard: &Message, script: &Script) -> Vec<v1::SessionReport> {
    match heard {
        Message::Place(place) => {
            let ready = report(&place.session_id, place.epoch, v1::SessionState::Ready);
            match &script.on_place {
                OnPlace::Ready => vec![ready],
                OnPlace::Refuse => {
                    vec![v1::SessionReport { refused: true, message: "no room".into(), ..ready }]
                }
                OnPlace::Fail(why) => vec![v1::SessionReport {
                    state: v1::SessionState::Ended.into(),
                    end_reason: v1::EndReason::SandboxFailed.into(),
                    message: why.clone(),
                    ..ready
                }],
                OnPlace::Nothing => vec![],
            }
        }
        Message::End(end) if !script.ignore_end => {
            vec![report(&end.session_id, end.epoch, v1::SessionState::Ended)]
        }
        Message::Pause(pause) => {
            let state = if pause.paused { v1::SessionState::Paused } else { v1::SessionState::Ready };
            vec![report(&pause.session_id, pause.epoch, state)]
        }
        _ => vec![],
    }
}

/// Dials a data connection and serves the tiny data plane on it.
pub async fn serve_data(
    address: &str,
    name: &str,
    welcome: &v1::Welcome,
    token: &str,
    stop: CancellationToken,
) {
    let preface = v1::DataPreface {
        worker_id: name.to_owned(),
        incarnation: welcome.incarnation,
        data_token: token.to_owned(),
    };
    let dialer = Dialer::new(address, None).expect("an address");
    let stream = dialer.data(&preface).await.expect("dials");
    let tiny = Tiny::default();
    spawn("puppet data", async move {
        let incoming = futures::stream::once(async { Ok::<_, std::io::Error>(stream) })
            .chain(futures::stream::pending());
        let serve = transport::server(transport::DATA_STREAMS)
            .add_service(TaskServiceServer::new(tiny.clone()))
            .add_service(FileServiceServer::new(tiny))
            .serve_with_incoming(incoming);
        tokio::select! {
            _ = serve => {}
            () = stop.cancelled() => {}
        }
    });
}

/// A data plane in which every task echoes its command line and exits with 0.
#[derive(Clone, Default)]
struct Tiny {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

macro_rules! not_here {
    ($($method:ident: $request:ident => $response:ident,)*) => {
        #[tonic::async_trait]
        impl TaskService for Tiny {
            type RunStream = Events;
            type WatchTaskStream = Events;

            async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<Events>, Status> {
                let request = request.into_inner();
                assert!(request.request_id.is_empty() || request.request_id != "panic");
                let task = v1::Task { id: TaskId::new().to_string(), session_id: request.session_id, ..Default::default() };
                let line = match request.task.and_then(|t| t.program) {
                    Some(v1::task_spec::Program::Shell(line)) => line,
                    _ => String::new(),
                };
                let ended = v1::TaskEnd { outcome: Some(berth_proto::domain::Outcome::Exited(0).into()), ..Default::default() };
                let events = [
                    v1::task_event::Event::Started(task.clone()),
                    v1::task_event::Event::Stdout(v1::OutputChunk { offset: 0, data: line.into_bytes().into() }),
                    v1::task_event::Event::Ended(v1::Task { state: v1::TaskState::Done.into(), end: Some(ended), ..task }),
                ];
                let events = events.map(|event| Ok(v1::TaskEvent { event: Some(event) }));
                Ok(Response::new(Box::pin(futures::stream::iter(events))))
            }

            async fn watch_task(&self, _: Request<v1::WatchTaskRequest>) -> Result<Response<Events>, Status> {
                Err(Status::unimplemented("not here"))
            }

            async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
                let request = request.into_inner();
                Ok(Response::new(v1::Task { id: request.task_id, session_id: request.session_id, pid: 42, ..Default::default() }))
            }

            $(async fn $method(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not here"))
            })*
        }
    };
}

not_here! {
    start_task: StartTaskRequest => Task,
    list_tasks: ListTasksRequest => ListTasksResponse,
    wait_task: WaitTaskRequest => Task,
    write_stdin: WriteStdinRequest => WriteStdinResponse,
    close_stdin: CloseStdinRequest => CloseStdinResponse,
    resize_pty: ResizePtyRequest => ResizePtyResponse,
    signal_task: SignalTaskRequest => SignalTaskResponse,
    cancel_task: CancelTaskRequest => Task,
    get_usage: GetUsageRequest => SessionUsage,
}

#[tonic::async_trait]
impl FileService for Tiny {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<v1::ReadResponse, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;
    type SearchStream = Pin<Box<dyn Stream<Item = Result<v1::SearchEvent, Status>> + Send>>;
    type PackStream = Pin<Box<dyn Stream<Item = Result<v1::PackResponse, Status>> + Send>>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let path = request.into_inner().path;
        let bytes =
            self.files.lock().unwrap().get(&path).cloned().ok_or_else(|| Status::not_found("no file"))?;
        let part = v1::read_response::Part::Data(bytes.into());
        let one = Ok(v1::ReadResponse { part: Some(part) });
        Ok(Response::new(Box::pin(futures::stream::iter([one]))))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteRequest>>,
    ) -> Result<Response<v1::FileInfo>, Status> {
        let mut incoming = request.into_inner();
        let (mut path, mut bytes) = (String::new(), Vec::new());
        while let Some(part) = incoming.message().await? {
            match part.part {
                Some(v1::write_request::Part::Header(header)) => path = header.path,
                Some(v1::write_request::Part::Data(data)) => bytes.extend_from_slice(&data),
                Some(v1::write_request::Part::End(_)) | None => {}
            }
        }
        let size = bytes.len() as u64;
        self.files.lock().unwrap().insert(path.clone(), bytes);
        Ok(Response::new(v1::FileInfo { path, size, ..Default::default() }))
    }

    async fn stat(&self, _: Request<v1::StatRequest>) -> Result<Response<v1::FileInfo>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn make_dir(&self, _: Request<v1::MakeDirRequest>) -> Result<Response<v1::FileInfo>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn r#move(&self, _: Request<v1::MoveRequest>) -> Result<Response<v1::FileInfo>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn remove(&self, _: Request<v1::RemoveRequest>) -> Result<Response<v1::RemoveResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn search(&self, _: Request<v1::SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn pack(&self, _: Request<v1::PackRequest>) -> Result<Response<Self::PackStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn unpack(
        &self,
        _: Request<Streaming<v1::UnpackRequest>>,
    ) -> Result<Response<v1::UnpackResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
