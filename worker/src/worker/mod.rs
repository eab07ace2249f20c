//! The worker as a whole: start, status, shutdown.
//!
//! Start: lock the state, look at the backends (a named one that can't work is an error within a second, not
//! later), take up or remove what an earlier process left, then dial. It returns before the coordinator is
//! there: any start order works.
//!
//! Shutdown is a sequence: say "not ready" and refuse → tell the coordinator that this worker stops, and by when →
//! let tasks end by themselves, and sessions be moved elsewhere, for the grace (what is quiet is not waited for) → end
//! the sessions and remove all that was theirs → tell the coordinator, and that this worker leaves → close. A [`Running`]
//! that is dropped without it leaves everything as a killed process would, for the next one to take up.

mod stop;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_net::{Acceptor, Dialer, Files, Trust};
use berth_proto::{
    Error, WorkerId,
    domain::{Backend, BackendChoice},
    spawn::spawn,
    v1::{
        self, file_service_server::FileServiceServer, interpreter_service_server::InterpreterServiceServer,
        port_service_server::PortServiceServer, task_service_server::TaskServiceServer,
    },
    world::{self, TcpListener},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tracing::info;

use crate::{
    backends::Backends,
    checkpoint::{self, CheckpointApi},
    config::{Config, StartError},
    credential::Credential,
    egress::Exits,
    health::{self, Health, canary, machine},
    link::{self, Link, LinkState, data, outbox::Outbox},
    metrics::{Canary, Observed},
    sandbox::{Problem, SandboxBackend},
    sessions::{self, Sessions, route::SessionRoute},
    state::State,
    workspace::{OpenError, Workspaces, store::Kind},
};

/// How often readiness is looked at for those that watch the health service.
const READINESS_EVERY: Duration = Duration::from_secs(1);

/// Starts workers.
pub struct Worker;

/// A worker that runs.
pub struct Running {
    id: WorkerId,
    parts: Arc<Parts>,
    /// Ends link, canary and listener.
    stop: CancellationToken,
    /// Why it stopped by itself.
    failed: watch::Receiver<Option<Failure>>,
    canary: JoinHandle<()>,
    data_address: Option<SocketAddr>,
    data_token: Option<PathBuf>,
    shutdown_grace: Duration,
    _crash: DropGuard,
    /// Last: the lock is given back when nothing uses the directory any more.
    _state: State,
}

#[derive(Clone)]
struct Failure(Arc<Error>);

/// What runs in the background.
struct Served {
    canary: JoinHandle<()>,
    data_address: Option<SocketAddr>,
    data_token: Option<PathBuf>,
}

/// The worker's own listener, if it is to have one.
struct OwnListener {
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    token: String,
    token_path: PathBuf,
}

struct Parts {
    backends: Arc<Backends>,
    sessions: Sessions,
    outbox: Arc<Outbox>,
    health: Arc<Health>,
    link: Arc<Link>,
    workspaces: Workspaces,
    /// Of the health service, wherever that is served.
    reporter: tonic_health::server::HealthReporter,
}

/// How a worker is, for its own command line and for tests.
#[derive(Clone, Debug)]
pub struct Status {
    pub id: WorkerId,
    pub incarnation: u64,
    pub attached: bool,
    pub ready: bool,
    /// Why it is not ready.
    pub reason: String,
    pub sessions: usize,
    pub data_connections: usize,
    pub cordoned: bool,
    pub backends: Vec<v1::BackendStatus>,
    pub canary: Option<v1::Canary>,
}

impl Worker {
    /// Starts a worker with the backends that its configuration names.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        config.check()?;
        let state = State::open(&config.state_dir)?;
        let config = Config { state_dir: state.dir().to_owned(), ..config };
        let instance = state.instance()?;
        let workspaces = open_workspaces(&config).await;
        if let Ok(workspaces) = &workspaces {
            state.remember_sessions(workspaces.base())?;
        }
        // A machine without any backend is told that first.
        let files = workspaces.as_ref().map_or(Kind::Directory, |workspaces| workspaces.store().kind());
        let backends = Backends::open(&config, &instance, files).await?;
        Self::start_in(config, state, workspaces, backends).await
    }

    /// The same with backends that are there already.
    pub async fn start_with(
        config: Config,
        made: Vec<Arc<dyn SandboxBackend>>,
    ) -> Result<Running, StartError> {
        config.check()?;
        let state = State::open(&config.state_dir)?;
        let config = Config { state_dir: state.dir().to_owned(), ..config };
        let workspaces = open_workspaces(&config).await;
        let backends = Backends::with(made, Default::default(), config.sandbox).await?;
        Self::start_in(config, state, workspaces, backends).await
    }

    async fn start_in(
        config: Config,
        state: State,
        workspaces: Result<Workspaces, StartError>,
        backends: Backends,
    ) -> Result<Running, StartError> {
        let backends = Arc::new(backends);
        let started = match workspaces {
            Ok(workspaces) => Self::start_with_backends(config, state, workspaces, backends.clone()).await,
            Err(error) => Err(error),
        };
        if started.is_err() {
            backends.close().await;
        }
        started
    }

    async fn start_with_backends(
        config: Config,
        state: State,
        workspaces: Workspaces,
        backends: Arc<Backends>,
    ) -> Result<Running, StartError> {
        let id = state.worker_id(config.worker_id.as_ref())?;
        let failed = |source| StartError::State { path: base(&config).to_owned(), source };
        if !fake(&config) {
            backends.note(workspaces.store().describe());
        }
        let offer = workspaces.offer(config.disk_margin_bytes).map_err(failed)?;
        let kind = workspaces.store().kind();
        let capacity = machine::capacity(&config.capacity, config.max_sessions, kind, offer);
        let tls = config.tls.as_ref().map(|dir| Files::new(dir).for_worker(&id));
        let dialer = Dialer::new(&config.coordinator, tls.as_ref().map(Trust::worker))?;
        if let Some(files) = &tls {
            own_certificate(files, &id)?;
        }
        let listener = match config.data_listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                let bound = bound.map_err(|source| StartError::Listen { address, source })?;
                let acceptor = tls.as_ref().map(Acceptor::worker).transpose()?;
                let (token, token_path) = state.data_token()?;
                Some(OwnListener { listener: bound, acceptor, token, token_path })
            }
            None => None,
        };

        let credential = Arc::new(Credential::load(state.dir(), &config.join_token)?);
        let crash = CancellationToken::new();
        let stop = crash.child_token();
        let outbox = Arc::new(Outbox::default());
        let exits = Exits::new(&config.egress, outbox.clone(), config.metrics.clone());
        let sessions = Sessions::new(
            sessions::Settings {
                exits,
                metrics: config.metrics.clone(),
                capacity,
                disk_margin_bytes: config.disk_margin_bytes,
                end_grace: config.end_grace,
                session_calls: config.session_calls.max(1),
                task_defaults: config.task_defaults,
                checkpoints: checkpoint::Source::new(
                    dialer.clone(),
                    credential.clone(),
                    checkpoint::Staging {
                        dir: workspaces.staging().map_err(failed)?,
                        margin_bytes: config.disk_margin_bytes,
                    },
                ),
            },
            workspaces.clone(),
            backends.clone(),
            outbox.clone(),
            crash.clone(),
        );
        let health = Arc::new(Health::new(
            health::Settings {
                workspaces: workspaces.base().to_owned(),
                disk_margin_bytes: config.disk_margin_bytes,
                canary_interval: config.canary_interval,
                canary_timeout: config.canary_timeout,
                metrics: config.metrics.clone(),
            },
            backends.clone(),
            sessions.clone(),
        ));
        let adopted = sessions.adopt(&state).await;
        if adopted > 0 {
            info!(adopted, "sessions of an earlier process live on");
        }
        config.metrics.adopted(adopted);
        let link = Arc::new(Link {
            settings: link::Settings {
                coordinator: config.coordinator.clone(),
                dialer,
                credential,
                worker: id.clone(),
                labels: config.labels.clone(),
                process_id: format!("{:032x}", u128::from_le_bytes(world::random_bytes())),
                instance: state.instance()?,
            },
            sessions: sessions.clone(),
            outbox: outbox.clone(),
            backends: backends.clone(),
            health: health.clone(),
            state: watch::channel(LinkState { reason: "not attached yet".to_owned(), ..Default::default() })
                .0,
            templates: link::Templates::default(),
            stopping: watch::channel(None).0,
            leaving: CancellationToken::new(),
            open: Arc::new(AtomicUsize::new(0)),
            sequence: AtomicU64::new(0),
        });
        let (reporter, health_server) = tonic_health::server::health_reporter();
        let workspace = workspaces.store().describe().summary();
        let parts = Arc::new(Parts { backends, sessions, outbox, health, link, workspaces, reporter });
        let (failure, failed) = watch::channel(None);
        let Served { canary, data_address, data_token } =
            parts.serve(&crash, &stop, failure, listener, Routes::new(health_server));
        info!(
            worker.id = %id, coordinator = config.coordinator, cpu_millis = capacity.cpu_millis,
            memory_bytes = capacity.memory_bytes, disk_bytes = capacity.disk_bytes,
            max_sessions = capacity.max_sessions, workspaces = %workspace, "worker started"
        );
        Ok(Running {
            id,
            parts,
            stop,
            failed,
            canary,
            data_address,
            data_token,
            shutdown_grace: config.shutdown_grace,
            _crash: crash.drop_guard(),
            _state: state,
        })
    }
}

/// Where sessions live: their directory is below it.
fn base(config: &Config) -> &Path {
    config.base_workspace.as_deref().unwrap_or(&config.state_dir)
}

/// Its sandboxes hold their files themselves.
fn fake(config: &Config) -> bool {
    config.sandbox == BackendChoice::Only(Backend::Fake)
}

async fn open_workspaces(config: &Config) -> Result<Workspaces, StartError> {
    let (base, choice, fake) = (base(config).to_owned(), config.workspace, fake(config));
    let failed = |source| StartError::State { path: base.clone(), source };
    let dir = base.clone();
    let opened = world::blocking(move || match fake {
        true => Ok(Workspaces::plain(&dir)?),
        false => Workspaces::open(&dir, choice),
    });
    opened.await.map_err(failed)?.map_err(|error| match error {
        OpenError::Io(source) => failed(source),
        OpenError::Store(Problem { what, hint }) => StartError::Workspace { what, hint },
    })
}

/// A certificate that is another worker's would be refused at each attach: better told at once.
fn own_certificate(files: &Files, id: &WorkerId) -> Result<(), berth_net::Error> {
    let path = files.worker().certificate;
    let named = berth_net::facts_of(&path)?.worker;
    if named.as_ref() == Some(id) {
        return Ok(());
    }
    let whose = named.map_or("no worker".to_owned(), |named| format!("worker {named}"));
    Err(berth_net::Error::Bad {
        path,
        what: format!(
            "is the certificate of {whose}, and this is worker {id} (`berth tls worker {id}` makes its own)"
        ),
    })
}

impl Parts {
    /// Starts all that runs in the background.
    fn serve(
        self: &Arc<Self>,
        crash: &CancellationToken,
        stop: &CancellationToken,
        failure: watch::Sender<Option<Failure>>,
        own: Option<OwnListener>,
        health: Routes,
    ) -> Served {
        let route = SessionRoute::new(self.sessions.clone());

        let (parts, stopped) = (self.clone(), stop.clone());
        spawn("readiness", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = parts.report_readiness() => {}
            }
        });
        let (parts, stopped, crashed) = (self.clone(), stop.clone(), crash.clone());
        let canary = spawn("canary", async move {
            tokio::select! {
                () = crashed.cancelled() => {}
                () = parts.health.run(&parts.workspaces, &stopped) => {}
            }
        });
        let (parts, stopped) = (self.clone(), stop.clone());
        let services = data::services(&route, CheckpointApi::new(self.sessions.clone()), health.clone());
        spawn("link", async move {
            if let Err(error) = parts.link.clone().run(services, stopped.clone()).await {
                parts.sessions.close("a newer process has this worker's id");
                stopped.cancel();
                failure.send_replace(Some(Failure(Arc::new(error))));
            }
        });
        let Some(OwnListener { listener, acceptor, token, token_path }) = own else {
            return Served { canary, data_address: None, data_token: None };
        };
        let data_address = listener.local_addr().ok();
        let services = data::guarded_services(&route, health, &token);
        spawn("data-listener", data::listen(listener, acceptor, services, stop.clone()));
        Served { canary, data_address, data_token: Some(token_path) }
    }

    fn observed(&self) -> Observed {
        let canary = self.health.canary().borrow().as_ref().map(|report| Canary {
            ok: report.result.is_ok(),
            age: report.when.elapsed().saturating_sub(report.took),
            took: report.took,
        });
        let base = Observed {
            backends: self.backends.usable(),
            places: self.sessions.capacity().max_sessions.into(),
            ready: self.unready().is_none(),
            attached: self.link.state.borrow().attached,
            data_connections: self.link.open.load(Ordering::Relaxed) as u64,
            canary,
            disk_free_bytes: machine::disk_free(self.workspaces.base()).unwrap_or_default(),
            reports_waiting: self.outbox.reports() as u64,
            ..Observed::default()
        };
        self.sessions.observed(base)
    }

    /// Why the worker is not ready, if so.
    fn unready(&self) -> Option<String> {
        let link = self.link.state.borrow();
        if !link.attached {
            return Some(format!("no link to the coordinator: {}", link.reason));
        }
        drop(link);
        self.link.unready()
    }

    async fn report_readiness(&self) {
        let mut link = self.link.state.subscribe();
        let mut canary = self.health.canary();
        loop {
            let ready = self.unready().is_none();
            self.tell_readiness(ready).await;
            // A stop that came in between has said "not ready" already, and it stays said.
            if ready && self.unready().is_some() {
                continue;
            }
            tokio::select! {
                changed = link.changed() => if changed.is_err() { return },
                changed = canary.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // At the canary's pace: an image that was missing may be there now.
                    self.link.review_templates();
                }
                () = tokio::time::sleep(READINESS_EVERY) => {}
            }
        }
    }

    /// For those that ask the health service of the worker's own listener.
    async fn tell_readiness(&self, ready: bool) {
        let status = match ready {
            true => tonic_health::ServingStatus::Serving,
            false => tonic_health::ServingStatus::NotServing,
        };
        let names = [
            "",
            <TaskServiceServer<()> as tonic::server::NamedService>::NAME,
            <FileServiceServer<()> as tonic::server::NamedService>::NAME,
            <PortServiceServer<()> as tonic::server::NamedService>::NAME,
            <InterpreterServiceServer<()> as tonic::server::NamedService>::NAME,
        ];
        for name in names {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

impl Running {
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Where the data-plane listener is, if there is one.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data_address
    }

    /// The file with the listener's bearer token.
    pub fn data_token(&self) -> Option<&std::path::Path> {
        self.data_token.as_deref()
    }

    pub fn status(&self) -> Status {
        let link = self.parts.link.state.borrow().clone();
        let reason = self.parts.unready();
        Status {
            id: self.id.clone(),
            incarnation: link.incarnation,
            attached: link.attached,
            ready: reason.is_none(),
            reason: reason.unwrap_or_default(),
            sessions: *self.parts.sessions.count().borrow(),
            data_connections: self.parts.link.open.load(Ordering::Relaxed),
            cordoned: self.parts.sessions.cordoned(),
            backends: self.parts.backends.statuses(),
            canary: self.parts.health.canary().borrow().as_ref().map(v1::Canary::from),
        }
    }

    /// Says at any time why the worker is not ready, if so.
    pub fn readiness(&self) -> impl Fn() -> Option<String> + Send + Sync + 'static {
        let parts = Arc::downgrade(&self.parts);
        move || match parts.upgrade() {
            Some(parts) => parts.unready(),
            None => Some("it has stopped".to_owned()),
        }
    }

    /// Says at any time how the worker stands, for [`Metrics::show`]. `None`: it has stopped.
    pub fn observer(&self) -> impl Fn() -> Option<Observed> + Send + Sync + 'static {
        let parts = Arc::downgrade(&self.parts);
        move || parts.upgrade().map(|parts| parts.observed())
    }

    /// Returns when the worker is ready: attached, and its canary alive. For a start message or a test;
    /// bound it.
    pub async fn ready(&self) {
        let mut link = self.parts.link.state.subscribe();
        let mut canary: watch::Receiver<Option<canary::Report>> = self.parts.health.canary();
        while self.parts.unready().is_some() {
            tokio::select! {
                _ = link.changed() => {}
                _ = canary.changed() => {}
                () = tokio::time::sleep(READINESS_EVERY) => {}
            }
        }
    }

    /// Returns when the worker can't go on, with the reason. Call [`Running::shutdown`] then too.
    pub async fn wait(&self) -> Arc<Error> {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
            Some(Failure(error)) => error,
            // The link ended as it was told to: shutdown says the rest.
            None => std::future::pending().await,
        }
    }
}
