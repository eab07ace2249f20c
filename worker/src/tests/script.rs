//! A coordinator that does what the test says and remembers what it hears.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_proto::{
    Error, Reason, SessionId, convert,
    domain::{Backend, BackendChoice, Limits, Placement},
    spawn::spawn,
    transport,
    v1::{
        self,
        coordinator_message::Message as Command,
        worker_message::Message,
        worker_service_server::{WorkerService, WorkerServiceServer},
    },
};
use futures::Stream;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{Config, Running, Worker, sandbox::fake::FakeBackend, sessions::record};

pub const TOKEN: &str = "join-token-of-the-test";
/// Nothing is measured: a wait that gets this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What was heard.
#[derive(Default)]
pub struct Seen {
    /// `authorization` of each attach.
    pub presented: Vec<String>,
    /// How often a worker said that it keeps its credential.
    pub kept: usize,
    pub hellos: Vec<v1::Hello>,
    pub beats: Vec<v1::Heartbeat>,
    pub sessions: HashMap<String, Vec<v1::SessionReport>>,
    pub tasks: Vec<v1::TaskReport>,
    pub prefaces: Vec<v1::DataPreface>,
    pub data: Vec<Channel>,
    /// A worker said that it stops, and within what time.
    pub stopping: Vec<Duration>,
    /// A worker said that it leaves, and the last beat before it.
    pub left: Vec<u64>,
}

impl Seen {
    pub fn last(&self, session: SessionId) -> Option<&v1::SessionReport> {
        self.sessions.get(&session.to_string())?.last()
    }

    pub fn state(&self, session: SessionId) -> Option<v1::SessionState> {
        self.last(session).map(v1::SessionReport::state)
    }

    pub fn health(&self) -> Option<&v1::WorkerHealth> {
        self.beats.last()?.health.as_ref()
    }
}

/// What the coordinator does by itself.
pub struct Manners {
    pub answer_heartbeats: bool,
    /// Answers an attach with this.
    pub refuse: Option<fn() -> Status>,
    pub data_token: String,
    /// Handed over in the Welcome.
    pub credential: String,
    pub templates: Vec<v1::TemplateSpec>,
    pub lease: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            answer_heartbeats: true,
            refuse: None,
            data_token: "first".to_owned(),
            credential: String::new(),
            templates: vec![v1::TemplateSpec {
                name: "base".into(),
                backend: "auto".into(),
                user: "user".into(),
                ..Default::default()
            }],
            lease: Duration::from_secs(30),
        }
    }
}

type Out = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

struct Inner {
    seen: watch::Sender<Seen>,
    manners: Mutex<Manners>,
    out: Arc<Mutex<Option<Out>>>,
    incarnation: Mutex<u64>,
}

pub struct Script {
    pub address: String,
    inner: Arc<Inner>,
    stop: CancellationToken,
}

impl Script {
    pub async fn start() -> Self {
        Self::on("127.0.0.1:0").await
    }

    pub async fn on(address: &str) -> Self {
        let listener = loop {
            // The port of a coordinator that was just stopped may need a moment.
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let address = listener.local_addr().unwrap().to_string();
        let inner = Arc::new(Inner {
            seen: watch::channel(Seen::default()).0,
            manners: Mutex::default(),
            out: Arc::default(),
            incarnation: Mutex::new(0),
        });
        let stop = CancellationToken::new();
        let accepting = inner.clone();
        let incoming = berth_net::listen(
            listener,
            None,
            berth_net::Limits::default(),
            stop.clone(),
            move |stream, preface| {
                let accepting = accepting.clone();
                async move {
                    let (channel, _closed) = transport::channel_over(stream).await.unwrap();
                    accepting.seen.send_modify(|seen| {
                        seen.prefaces.push(preface);
                        seen.data.push(channel);
                    });
                }
            },
        );
        let service = WorkerServiceServer::from_arc(inner.clone());
        let stopped = stop.clone();
        spawn("script-serve", async move {
            let serving =
                transport::server(64).add_service(service).serve_with_incoming(ReceiverStream::new(incoming));
            tokio::select! {
                _ = serving => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { address, inner, stop }
    }

    pub fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.inner.manners.lock().unwrap());
    }

    pub async fn send(&self, command: Command) {
        let out = self.inner.out.lock().unwrap().clone().expect("a worker is attached");
        out.send(Ok(v1::CoordinatorMessage { message: Some(command), ..Default::default() })).await.unwrap();
    }

    /// Ends the control stream; the port stays.
    pub fn hang_up(&self) {
        self.inner.out.lock().unwrap().take();
    }

    /// Ends the control stream with this status.
    pub async fn fail(&self, status: Status) {
        let out = self.inner.out.lock().unwrap().take().expect("a worker is attached");
        let _ = out.send(Err(status)).await;
    }

    /// Waits until what was heard satisfies `condition`, and returns what it found.
    pub async fn until<T>(&self, what: &str, condition: impl Fn(&Seen) -> Option<T>) -> T {
        let mut seen = self.inner.seen.subscribe();
        let wait = async {
            loop {
                if let Some(found) = condition(&seen.borrow_and_update()) {
                    return found;
                }
                seen.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => {
                let seen = self.inner.seen.borrow();
                panic!("never: {what}; sessions {:#?}, health {:?}", seen.sessions, seen.health());
            }
        }
    }

    pub fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.inner.seen.borrow())
    }

    pub async fn place(&self, session: SessionId) -> Placement {
        let placement = record::sample(session);
        self.send(Command::Place(placement.clone().into())).await;
        placement
    }

    pub async fn end(&self, session: SessionId, epoch: u64) {
        self.send(Command::End(v1::EndSession {
            session_id: session.to_string(),
            epoch,
            reason: v1::EndReason::Deleted.into(),
        }))
        .await;
    }

    pub async fn state(&self, session: SessionId, state: v1::SessionState) -> v1::SessionReport {
        self.until(&format!("session {state:?}"), |seen| {
            seen.last(session).filter(|report| report.state() == state).cloned()
        })
        .await
    }

    pub async fn ready(&self) -> v1::WorkerHealth {
        self.until("a ready worker", |seen| seen.health().filter(|health| health.ready).cloned()).await
    }

    /// The newest data connection.
    pub async fn data(&self) -> Channel {
        self.until("a data connection", |seen| seen.data.last().cloned()).await
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.inner.out.lock().unwrap().take();
        self.stop.cancel();
    }
}

#[tonic::async_trait]
impl WorkerService for Inner {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let presented = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let presented = presented.unwrap_or_default().to_owned();
        let own = self.manners.lock().unwrap().credential.clone();
        self.seen.send_modify(|seen| seen.presented.push(presented.clone()));
        let good = |token: &str| !token.is_empty() && presented == format!("Bearer {token}");
        if !good(TOKEN) && !good(&own) {
            return Err(
                Error::new(berth_proto::Code::Unauthenticated, Reason::TokenInvalid, "bad token").into()
            );
        }
        if let Some(refuse) = self.manners.lock().unwrap().refuse {
            return Err(refuse());
        }
        let mut incoming = request.into_inner();
        let Some(Message::Hello(hello)) = incoming.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let incarnation = {
            let mut incarnation = self.incarnation.lock().unwrap();
            if hello.incarnation == 0 {
                *incarnation += 1;
            } else {
                *incarnation = hello.incarnation;
            }
            *incarnation
        };
        self.seen.send_modify(|seen| seen.hellos.push(hello));
        let (out, commands) = mpsc::channel(64);
        let (answer, welcome) = {
            let manners = self.manners.lock().unwrap();
            let welcome = v1::Welcome {
                incarnation,
                lease: Some(convert::duration_out(manners.lease)),
                heartbeat_interval: Some(convert::duration_out(Duration::from_millis(100))),
                data_token: manners.data_token.clone(),
                data_connections: 2,
                end: Vec::new(),
                templates: manners.templates.clone(),
                credential: manners.credential.clone(),
            };
            (manners.answer_heartbeats, welcome)
        };
        let welcome =
            v1::CoordinatorMessage { message: Some(Command::Welcome(welcome)), ..Default::default() };
        out.send(Ok(welcome)).await.unwrap();
        let (seen, weak, current) = (self.seen.clone(), out.downgrade(), self.out.clone());
        *self.out.lock().unwrap() = Some(out);
        spawn("script-listen", async move {
            while let Ok(Some(message)) = incoming.message().await {
                let sequence = match &message.message {
                    Some(Message::Heartbeat(beat)) => Some(beat.sequence),
                    // As the real one does: the stream of a worker that leaves ends.
                    Some(Message::Leaving(_)) => {
                        current.lock().unwrap().take();
                        None
                    }
                    _ => None,
                };
                seen.send_modify(|seen| match message.message {
                    Some(Message::Heartbeat(beat)) => seen.beats.push(beat),
                    Some(Message::Session(report)) => {
                        seen.sessions.entry(report.session_id.clone()).or_default().push(report);
                    }
                    Some(Message::Task(report)) => seen.tasks.push(report),
                    Some(Message::Stopping(stopping)) => {
                        seen.stopping.push(Duration::try_from(stopping.within.unwrap()).unwrap());
                    }
                    Some(Message::Leaving(_)) => {
                        seen.left.push(seen.beats.last().map_or(0, |beat| beat.sequence));
                    }
                    Some(Message::CredentialKept(_)) => seen.kept += 1,
                    Some(Message::Egress(_)) => {}
                    Some(Message::Hello(_)) | None => panic!("unexpected"),
                });
                if let (Some(sequence), true) = (sequence, answer) {
                    let Some(out) = weak.upgrade() else { return };
                    let lease = v1::LeaseRenewed { sequence, lease: None };
                    let message =
                        v1::CoordinatorMessage { message: Some(Command::Lease(lease)), ..Default::default() };
                    if out.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(commands))))
    }
}

/// A worker with fake sandboxes, and what it needs.
pub struct Rig {
    pub temp: tempfile::TempDir,
    pub backend: FakeBackend,
    pub script: Script,
}

impl Rig {
    pub async fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
            backend: FakeBackend::new(Default::default()),
            script: Script::start().await,
        }
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(self.script.address.clone(), TOKEN, self.temp.path());
        config.sandbox = BackendChoice::Only(Backend::Fake);
        config.disk_margin_bytes = 1;
        config.shutdown_grace = Duration::ZERO;
        config.capacity.cpu_millis = Some(2000);
        config.capacity.memory_bytes = Some(4 << 30);
        config.capacity.disk_bytes = Some(4 << 30);
        config
    }

    pub async fn start(&self) -> Running {
        self.start_with(|_| {}).await
    }

    pub async fn start_with(&self, change: impl FnOnce(&mut Config)) -> Running {
        let mut config = self.config();
        change(&mut config);
        Worker::start_with(config, vec![Arc::new(self.backend.clone())]).await.unwrap()
    }

    /// Names of what is in the sessions directory.
    pub fn on_disk(&self) -> Vec<String> {
        std::fs::read_dir(self.temp.path().join("sessions"))
            .map(|dir| dir.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default()
    }

    pub async fn placed(&self, session: SessionId) {
        self.script.place(session).await;
        self.script.state(session, v1::SessionState::Ready).await;
    }
}

/// Polls until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn small(cpu_millis: u32, memory_bytes: u64) -> Limits {
    Limits { cpu_millis, memory_bytes, disk_bytes: 16 << 20, pids: 64 }
}

pub fn shell(session: SessionId, line: &str) -> v1::RunRequest {
    v1::RunRequest {
        session_id: session.to_string(),
        task: Some(v1::TaskSpec {
            program: Some(v1::task_spec::Program::Shell(line.to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Runs a line and returns its stdout and its end.
pub async fn run(channel: Channel, request: v1::RunRequest) -> Result<(String, v1::TaskEnd), Status> {
    let mut client = v1::task_service_client::TaskServiceClient::new(channel);
    let mut events = client.run(request).await?.into_inner();
    let mut stdout = Vec::new();
    let mut end = None;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(v1::task_event::Event::Stdout(chunk)) => stdout.extend_from_slice(&chunk.data),
            Some(v1::task_event::Event::Ended(task)) => end = task.end,
            _ => {}
        }
    }
    Ok((String::from_utf8(stdout).unwrap(), end.expect("the stream ends with the task")))
}
