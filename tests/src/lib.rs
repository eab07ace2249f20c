//! The harness of the suites: a real coordinator and real workers, as processes, on
//! loopback with ports of their own choosing and a throw-away state directory.
//!
//! A test says what it wants in [`Setup`], drives the [`Cluster`] through its public
//! interfaces, and ends with [`Cluster::stop`], which asserts that nothing is left. A test
//! that fails instead shows the last lines of every component's log.

pub mod browser;
pub mod containers;
pub mod http;
pub mod left;
pub mod mcp;
pub mod pages;
pub mod process;
pub mod proxy;
pub mod python;
pub mod reader;
pub mod skip;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_net::{
    Dialer, Files, Trust,
    issue::{Authority, ISSUED_FOR, Validity},
};
use berth_proto::v1::{
    self, admin_service_client::AdminServiceClient, checkpoint_service_client::CheckpointServiceClient,
    file_service_client::FileServiceClient, interpreter_service_client::InterpreterServiceClient,
    session_service_client::SessionServiceClient, task_service_client::TaskServiceClient,
};
use process::Process;
pub use proxy::{Proxy, Way};
use tempfile::TempDir;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// How long a component may take to be ready on a busy machine.
pub const READY: Duration = Duration::from_secs(60);

/// A channel that carries a token, if it needs one.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// Puts a token on every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    pub fn new(token: &str) -> Self {
        Self(Some(format!("Bearer {token}").parse().expect("a token is ASCII")))
    }

    pub fn none() -> Self {
        Self(None)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub workers: usize,
    /// auto, native, docker or fake.
    pub sandbox: String,
    pub max_sessions: u32,
    /// Text of the templates file, if there is one.
    pub templates: Option<String>,
    /// More variables for every worker.
    pub worker_env: Vec<(String, String)>,
    pub coordinator_env: Vec<(String, String)>,
    /// Give each worker its own data-plane listener.
    pub worker_listener: bool,
    /// Everything over TLS: a CA is made, with a certificate for the coordinator and for each worker that joins.
    pub tls: bool,
    /// Put a [`Proxy`] between each worker and the coordinator.
    pub proxied: bool,
    /// Take the worker and agent of `make abuse`, which can be told to loosen a protection.
    pub weakened: bool,
}

impl Setup {
    pub fn new(sandbox: &str) -> Self {
        Self {
            workers: 1,
            sandbox: sandbox.to_owned(),
            max_sessions: 5,
            templates: None,
            worker_env: Vec::new(),
            coordinator_env: Vec::new(),
            worker_listener: false,
            tls: false,
            proxied: false,
            weakened: false,
        }
    }
}

/// One worker process and its state.
pub struct WorkerProcess {
    pub id: String,
    pub state: PathBuf,
    /// Variables of its own.
    env: Vec<(String, String)>,
    ready: PathBuf,
    pub process: Process,
    /// `host:port` of its own data-plane listener, if it has one.
    pub data_plane: Option<String>,
}

/// A running fleet.
pub struct Cluster {
    pub setup: Setup,
    /// `host:port`.
    pub address: String,
    pub admin_token: String,
    pub coordinator: Process,
    pub workers: Vec<WorkerProcess>,
    /// One for each worker, if the setup says so.
    pub proxies: Vec<Proxy>,
    /// Instance ids of the machines that were lost.
    lost: Vec<String>,
    channel: Channel,
    /// Last: the processes of a test that failed show their logs in it when they are dropped.
    pub dir: TempDir,
}

impl Cluster {
    /// Starts everything and waits until every worker is ready for sessions.
    pub async fn start(setup: Setup) -> Self {
        let mut cluster = Self::start_coordinator(setup).await;
        for number in 1..=cluster.setup.workers {
            cluster.join(&format!("worker-{number}"), &[]).await;
        }
        cluster.workers_ready().await;
        cluster
    }

    /// Starts a coordinator alone.
    pub async fn start_coordinator(setup: Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("berth-t").tempdir().expect("a temporary directory");
        let mut setup = setup;
        if setup.tls {
            let files = Files::new(dir.path().join("tls"));
            let authority = Authority::make(&files).expect("a CA");
            authority.coordinator(&[], Validity::lasting(ISSUED_FOR)).expect("a certificate");
            let name = ("BERTH_TLS_DIR".to_owned(), text(files.dir()));
            setup.coordinator_env.push(name.clone());
            setup.worker_env.push(name);
        }
        let state = dir.path().join("c");
        let (coordinator, address) = spawn_coordinator(&setup, dir.path(), 0).await;
        let token = state.join("credentials/admin.token");
        let admin_token = std::fs::read_to_string(&token).expect("the admin token").trim().to_owned();
        let channel = connect(&setup, dir.path(), &address).await;
        Self {
            setup,
            dir,
            address,
            admin_token,
            coordinator,
            workers: Vec::new(),
            proxies: Vec::new(),
            lost: Vec::new(),
            channel,
        }
    }

    /// Where the certificates are, if there are any.
    pub fn certificates(&self) -> Files {
        Files::new(self.dir.path().join("tls"))
    }

    /// Starts one more worker. It is not ready yet when this returns.
    pub fn add_worker(&mut self, id: &str) {
        let worker = self.spawn_worker(self.workers.len(), id, Vec::new());
        self.workers.push(worker);
    }

    /// The same with variables of its own, behind a proxy if the setup says so.
    pub async fn join(&mut self, id: &str, env: &[(&str, &str)]) {
        if self.setup.proxied {
            self.proxies.push(Proxy::start(&self.address).await);
        }
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let worker = self.spawn_worker(self.workers.len(), id, env);
        self.workers.push(worker);
    }

    /// Starts a worker whose process has ended anew, on its own state. It is not ready yet when this returns.
    pub fn restart_worker(&mut self, index: usize) {
        let (id, env) = (self.workers[index].id.clone(), self.workers[index].env.clone());
        self.workers[index] = self.spawn_worker(index, &id, env);
    }

    fn spawn_worker(&self, index: usize, id: &str, own: Vec<(String, String)>) -> WorkerProcess {
        let state = self.dir.path().join(id);
        let worker = id.parse().expect("an id");
        if self.setup.tls && !self.certificates().worker_dir(&worker).worker().certificate.exists() {
            let authority = Authority::open(&self.certificates()).expect("the CA");
            authority
                .worker(&worker, &["127.0.0.1".into()], Validity::lasting(ISSUED_FOR))
                .expect("a certificate");
        }
        let ready = self.dir.path().join(format!("{id}.ready"));
        let (worker, agent) = match self.setup.weakened {
            true => ("weakened/worker", "weakened/berth-agent"),
            false => ("worker", "berth-agent"),
        };
        // That of an earlier process says nothing about this one.
        let _ = std::fs::remove_file(&ready);
        let mut env = vec![
            (
                "COORDINATOR_ADDR".to_owned(),
                self.proxies.get(index).map_or_else(|| self.address.clone(), Proxy::address),
            ),
            ("WORKER_ID".into(), id.into()),
            ("MAX_SESSIONS".into(), self.setup.max_sessions.to_string()),
            ("BERTH_SANDBOX".into(), self.setup.sandbox.clone()),
            ("BERTH_STATE_DIR".into(), text(&state)),
            ("BERTH_JOIN_TOKEN_FILE".into(), text(&self.dir.path().join("c/credentials/join.token"))),
            ("BERTH_AGENT".into(), text(&process::binary(agent))),
        ];
        if self.setup.worker_listener {
            env.push(("GRPC_PORT".into(), "0".into()));
        }
        env.extend(self.setup.worker_env.iter().chain(&own).cloned());
        if own.iter().any(|(name, value)| name == "BERTH_TLS_DIR" && value.is_empty()) {
            env.retain(|(name, _)| name != "BERTH_TLS_DIR");
        }
        let args = ["--ready-file".to_owned(), text(&ready)];
        let process = Process::spawn(worker, &args, &env, self.dir.path().join(format!("{id}.log")));
        WorkerProcess { id: id.to_owned(), state, env: own, ready, process, data_plane: None }
    }

    /// Waits until every worker is ready, and the coordinator says so too.
    pub async fn workers_ready(&mut self) {
        for worker in &mut self.workers {
            let told = worker.process.wait_for_file(&worker.ready, READY).await;
            worker.data_plane = told.split_whitespace().nth(1).map(str::to_owned);
        }
        let count = self.workers.len();
        let mut admin = self.admin();
        until(READY, "the workers to be ready", async || {
            let workers = admin.list_workers(v1::ListWorkersRequest {}).await.ok()?.into_inner().workers;
            let alive = |w: &&v1::Worker| w.liveness() == v1::Liveness::Alive;
            let ready = |w: &&v1::Worker| w.health.as_ref().is_some_and(|h| h.ready);
            (workers.iter().filter(alive).filter(ready).count() >= count).then_some(())
        })
        .await;
    }

    fn bearer(&self) -> Bearer {
        Bearer::new(&self.admin_token)
    }

    pub fn sessions(&self) -> SessionServiceClient<Authorized> {
        SessionServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn tasks(&self) -> TaskServiceClient<Authorized> {
        TaskServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn files(&self) -> FileServiceClient<Authorized> {
        FileServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn interpreter(&self) -> InterpreterServiceClient<Authorized> {
        InterpreterServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn checkpoints(&self) -> CheckpointServiceClient<Authorized> {
        CheckpointServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    pub fn admin(&self) -> AdminServiceClient<Authorized> {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.bearer())
    }

    /// Without a token.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A session with the defaults.
    pub async fn session(&self) -> v1::Session {
        self.sessions()
            .create_session(v1::CreateSessionRequest::default())
            .await
            .expect("a session")
            .into_inner()
    }

    /// Runs the `berth` command against this cluster, to its end.
    pub async fn berth(&self, args: &[&str]) -> process::Finished {
        self.berth_with(args, b"").await
    }

    /// The same with standard input.
    pub async fn berth_with(&self, args: &[&str], stdin: &[u8]) -> process::Finished {
        let mut env = vec![
            ("BERTH_ADDRESS".to_owned(), self.address.clone()),
            ("BERTH_TOKEN".into(), self.admin_token.clone()),
        ];
        if self.setup.tls {
            env.push(("BERTH_TLS_CA".into(), text(&self.certificates().ca().certificate)));
        }
        process::run("berth", args, &env, stdin).await
    }

    /// Ends all sessions, stops everything in order and asserts that nothing is left on the
    /// machine. (A worker that is stopped gives its sessions a grace to end by themselves.)
    pub async fn stop(mut self) {
        let request = v1::ListSessionsRequest { page_size: 1000, ..Default::default() };
        if let Ok(listed) = self.sessions().list_sessions(request).await {
            for session in listed.into_inner().sessions {
                let request = v1::DeleteSessionRequest { session_id: session.id, ..Default::default() };
                self.sessions().delete_session(request).await.expect("a session can be deleted");
            }
        }
        for worker in &mut self.workers {
            worker.process.terminate().await;
        }
        self.coordinator.terminate().await;
        // What an engine had still begun when its machine was lost is gone with that machine.
        for instance in &self.lost {
            left::end_instance(instance);
        }
        left::assert_nothing(self.dir.path());
    }

    /// A worker's machine is gone: its process, its sandboxes and its disk, and its proxy.
    pub async fn lose_machine(&mut self, index: usize) {
        let mut worker = self.workers.remove(index);
        if self.setup.proxied {
            self.proxies.remove(index);
        }
        worker.process.kill().await;
        self.lost.extend(left::instance(&worker.state));
        left::end_sandboxes(&worker.state);
        std::fs::remove_dir_all(&worker.state).expect("the state of a dead worker");
    }

    /// Kills the coordinator (SIGKILL) and starts it again on the same port and state.
    pub async fn restart_coordinator(&mut self) {
        self.coordinator.kill().await;
        let port = self.address.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        let (coordinator, address) = spawn_coordinator(&self.setup, self.dir.path(), port).await;
        assert_eq!(address, self.address);
        self.coordinator = coordinator;
        self.channel = connect(&self.setup, self.dir.path(), &self.address).await;
    }
}

impl Drop for Cluster {
    /// A test that failed leaves a fleet: its workers are killed, and their sandboxes, which
    /// live on by design, are ended by their cgroups.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for worker in &mut self.workers {
            worker.process.kill_now();
        }
        left::sweep(self.dir.path());
    }
}

async fn spawn_coordinator(setup: &Setup, dir: &Path, port: u16) -> (Process, String) {
    let ready = dir.join("coordinator.ready");
    let _ = std::fs::remove_file(&ready);
    let mut env = vec![
        ("GRPC_PORT".to_owned(), port.to_string()),
        ("HTTP_PORT".into(), "0".into()),
        ("BERTH_STATE_DIR".into(), text(&dir.join("c"))),
    ];
    if let Some(templates) = &setup.templates {
        let file = dir.join("templates.toml");
        std::fs::write(&file, templates).expect("the templates");
        env.push(("BERTH_TEMPLATES".into(), text(&file)));
    }
    env.extend(setup.coordinator_env.clone());
    let args = ["--ready-file".to_owned(), text(&ready)];
    let mut process = Process::spawn("coordinator", &args, &env, dir.join("coordinator.log"));
    let address = process.wait_for_file(&ready, READY).await.trim().to_owned();
    (process, address)
}

async fn connect(setup: &Setup, dir: &Path, address: &str) -> Channel {
    let trust = setup.tls.then(|| Trust::client(Files::new(dir.join("tls")).ca().certificate));
    Dialer::new(address, trust).expect("an address").connect().await.expect("a connection")
}

fn text(path: &Path) -> String {
    path.to_str().expect("our own paths are UTF-8").to_owned()
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none by the deadline.
pub async fn until<T>(deadline: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "waited {deadline:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
