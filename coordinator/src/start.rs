//! Starting and stopping. A start looks for everything that is wrong before it reports;
//! it announces nothing before the port is bound and the store is loaded. A stop is a
//! sequence: NOT_SERVING, refuse, let calls end, flush the store, close.

use std::{net::SocketAddr, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use berth_net::{Acceptor, Files, Patience};
use berth_proto::{
    DESCRIPTORS,
    spawn::{spawn, spawn_fallible},
    trace::{Role, TraceLayer},
    v1,
    world::{self, TcpListener},
};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic_health::server::HealthReporter;

use crate::{
    artifacts::Artifacts,
    audit::{AUDIT_FILE, Audit},
    auth::{Credentials, random_hex},
    checkpoints::{
        Blobs, Catalog, Checkpoints, Claim, Location, keep_parking, keep_policies, sweep_for_ever,
    },
    config::{Config, Problem, StartError},
    driver::{Clock, Driver, Events, Handle, Links, Shared, View, WelcomeTerms},
    fleet::Fleet,
    identity::Identity,
    listener::listen,
    metrics::Metrics,
    port_owner::port_owner,
    restore::StateDir,
    rpc::{self, Context, Gate},
    secrets::Secrets,
    store::{Store, StoreError, sqlite::SqliteStore},
    streams::Streams,
    templates::Templates,
};

/// Name of the store's file in the state directory.
pub(crate) const STORE_FILE: &str = "coordinator.db";
/// Of the catalog of checkpoints.
pub(crate) const CATALOG_FILE: &str = "checkpoints.db";
/// Of the directory that holds their pieces, unless another place was named.
const BLOBS_DIR: &str = "blobs";

/// Starts coordinators.
pub struct Coordinator;

/// What outlives a coordinator.
#[derive(Clone)]
pub struct Storage {
    pub store: Arc<dyn Store>,
    pub catalog: Arc<Catalog>,
    pub blobs: Arc<Blobs>,
    pub audit: Arc<Audit>,
}

/// A coordinator that runs. Dropping it stops it without ceremony.
pub struct Running {
    addr: SocketAddr,
    credentials: Credentials,
    grace: Duration,
    gate: Gate,
    health: HealthReporter,
    driver: Handle,
    shared: Shared,
    audit: Arc<Audit>,
    streams: Arc<Streams>,
    /// Streams end, and no connection is accepted.
    stopping: CancellationToken,
    _stop_on_drop: DropGuard,
    server: JoinHandle<()>,
    driver_task: JoinHandle<()>,
    recorded: CancellationToken,
    _recorded_on_drop: DropGuard,
    audit_task: JoinHandle<()>,
    /// Last: no backup is put back as long as anything of it is left.
    _state_dir: Option<StateDir>,
}

/// What is wrong with the settings themselves, and the templates that they name.
fn seen(config: &Config) -> (Vec<Problem>, Templates) {
    let mut problems = config.problems();
    let templates = match &config.templates {
        None => Templates::default(),
        Some(path) => Templates::load(path).unwrap_or_else(|what| {
            problems.push(Problem::new(what, "correct the templates file"));
            Templates::default()
        }),
    };
    (problems, templates)
}

impl Coordinator {
    /// What would keep one from starting as far as its settings tell. Nothing is begun.
    pub fn look(config: &Config) -> Vec<Problem> {
        seen(config).0
    }

    /// Starts one with its store in the state directory.
    pub async fn start(config: Config) -> Result<Running, StartError> {
        let (mut problems, templates) = seen(&config);
        let credentials = prepare(&config.state_dir).map_err(|p| problems.push(p)).ok();
        let door = Door::open(&config).await.map_err(|p| problems.extend(p)).ok();
        let (Some(credentials), Some(door), true) = (credentials, door, problems.is_empty()) else {
            return Err(StartError { problems });
        };
        let state_dir = StateDir::share(&config.state_dir).map_err(StartError::one)?;
        let path = config.state_dir.join(STORE_FILE);
        let store = SqliteStore::open(&path).await.map_err(|e| store_problem(&e, &config))?;
        let storage = checkpoint_storage(&config, Arc::new(store)).await?;
        let running = run(config, templates, credentials, door, storage).await?;
        Ok(Running { _state_dir: Some(state_dir), ..running })
    }

    /// The same over a store of the caller's, for tests.
    pub async fn start_with(config: Config, store: Arc<dyn Store>) -> Result<Running, StartError> {
        prepare(&config.state_dir).map_err(StartError::one)?;
        let storage = checkpoint_storage(&config, store).await?;
        Self::start_over(config, storage).await
    }

    /// The same over all that is durable, for simulations: only the credentials are on the disk.
    pub async fn start_over(config: Config, storage: Storage) -> Result<Running, StartError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(StartError { problems });
        }
        let credentials = prepare(&config.state_dir).map_err(StartError::one)?;
        let door = Door::open(&config).await.map_err(|problems| StartError { problems })?;
        run(config, Templates::default(), credentials, door, storage).await
    }
}

/// The state directory and the credentials in it.
fn prepare(state_dir: &Path) -> Result<Credentials, Problem> {
    let shown = state_dir.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .and_then(|()| Credentials::load_or_make(state_dir))
        .map_err(|error| {
            Problem::new(
                format!("the state directory {shown} can't be used: {error}"),
                "give a directory that this user may write to (BERTH_STATE_DIR), or correct its owner",
            )
        })
}

/// The port, and the certificate for it.
struct Door {
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
}

impl Door {
    async fn open(config: &Config) -> Result<Self, Vec<Problem>> {
        let acceptor = config.tls.as_ref().map(|dir| Acceptor::coordinator(&Files::new(dir))).transpose();
        let acceptor = acceptor.map_err(|error| Problem::new(error.to_string(), error.hint()));
        match (bind(config.listen).await, acceptor) {
            (Ok(listener), Ok(acceptor)) => Ok(Self { listener, acceptor }),
            (listener, acceptor) => Err(listener.err().into_iter().chain(acceptor.err()).collect()),
        }
    }
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(listen).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            let owner = port_owner(listen.port()).map(|owner| format!(" by {owner}")).unwrap_or_default();
            return Problem::new(
                format!("port {} is in use{owner}", listen.port()),
                "stop that, or choose another port (GRPC_PORT; 0 takes a free one)",
            );
        }
        Problem::new(
            format!("can't listen on {listen}: {error}"),
            "choose an address of this machine (BERTH_LISTEN)",
        )
    })
}

/// The catalog of checkpoints, and the blob store that is its own.
async fn checkpoint_storage(config: &Config, store: Arc<dyn Store>) -> Result<Storage, StartError> {
    let location =
        config.blobs.clone().unwrap_or_else(|| Location::Directory(config.state_dir.join(BLOBS_DIR)));
    let blobs = Blobs::open(&location).map_err(|error| StartError::one(blob_problem(&error)))?;
    let blobs = blobs.counted(config.metrics.clone());
    let catalog = Catalog::open(Some(&config.state_dir.join(CATALOG_FILE)))
        .await
        .map_err(|e| store_problem(&e, config))?;
    claim(&blobs, &catalog, &location, config).await?;
    let audit = Audit::open(&config.state_dir, config.audit).await.map_err(|e| audit_problem(&e, config))?;
    Ok(Storage { store, catalog: Arc::new(catalog), blobs: Arc::new(blobs), audit })
}

/// A blob store that another catalog describes is left alone. One that can't be reached now is no reason not to start:
/// only checkpoints wait for it.
async fn claim(
    blobs: &Blobs,
    catalog: &Catalog,
    location: &Location,
    config: &Config,
) -> Result<(), StartError> {
    let owner = catalog.owner().await.map_err(|e| store_problem(&e, config))?;
    match crate::checkpoints::claim(blobs, &owner).await {
        Ok(Claim::Ours) => Ok(()),
        Ok(Claim::Anothers) => Err(StartError::one(Problem::new(
            format!("the blob store {location} holds another coordinator's checkpoints"),
            format!("put its {CATALOG_FILE} into this state directory, or name another place (BERTH_BLOBS)"),
        ))),
        Err(error) => {
            tracing::error!(%location, error = error.message(), "no checkpoints for now: the blob store can't be used");
            Ok(())
        }
    }
}

fn blob_problem(error: &berth_proto::Error) -> Problem {
    Problem::new(
        error.message().to_owned(),
        "give a directory that this user may write to, or s3://BUCKET/PREFIX with AWS_* set (BERTH_BLOBS)",
    )
}

/// The record of what was done is put back by hand: a restore of all would turn the sessions back for its sake.
fn audit_problem(error: &StoreError, config: &Config) -> StartError {
    let StoreError::Damaged(_) = error else { return store_problem(error, config) };
    let file = config.state_dir.join(AUDIT_FILE).display().to_string();
    StartError::one(Problem::new(
        error.to_string(),
        format!(
            "nothing was changed; keep it aside (mv {file}* ELSEWHERE) and start again: a new record begins, or the one \
             of a backup goes on, if you put that in its place (cp BACKUP/{AUDIT_FILE} {file})"
        ),
    ))
}

fn store_problem(error: &StoreError, config: &Config) -> StartError {
    let hint = match error {
        StoreError::Locked(_) => {
            "one coordinator a state directory: stop the other one, or give this one its own".to_owned()
        }
        StoreError::Damaged(_) => format!(
            "nothing was changed; to put a backup back, and keep what is there aside: berth backup restore --from \
             BACKUP --state-dir {}",
            config.state_dir.display()
        ),
        StoreError::Failed(_) => "look at the disk under the state directory and at its owner".to_owned(),
    };
    StartError::one(Problem::new(error.to_string(), hint))
}

async fn run(
    config: Config,
    templates: Templates,
    credentials: Credentials,
    Door { listener, acceptor }: Door,
    storage: Storage,
) -> Result<Running, StartError> {
    let failed = |e: StoreError| store_problem(&e, &config);
    let addr = listener.local_addr().map_err(|e| {
        StartError::one(Problem::new(format!("the listener has no address: {e}"), "this should not happen"))
    })?;
    let Storage { store, catalog, blobs, audit } = storage;
    let shared = Shared {
        view: Arc::new(View::default()),
        links: Arc::new(Links::default()),
        events: Arc::new(Events::new(random_hex()[..16].to_owned())),
        store: store.clone(),
        metrics: config.metrics.clone(),
    };
    let clock = Clock::start();
    let mut loaded = store.load().await.map_err(failed)?;
    let identity = Identity::new(&credentials, store.clone(), std::mem::take(&mut loaded.tokens));
    tracing::info!(sessions = loaded.sessions.len(), workers = loaded.workers.len(), "the store is loaded");
    let (fleet, effects) = Fleet::restore(config.fleet(), world::random_u64(), loaded, clock.now());
    let welcome = WelcomeTerms {
        lease: config.lease,
        heartbeat: config.heartbeat.unwrap_or(config.lease / 3),
        data_connections: config.data_connections,
        templates: templates.iter().map(|t| v1::TemplateSpec::from(t.spec.clone())).collect(),
    };
    let (driver, handle) =
        Driver::new(fleet, effects, shared.clone(), welcome, clock).await.map_err(failed)?;
    let stopping = CancellationToken::new();
    let checkpoints = Checkpoints::new(blobs, catalog, shared.clone(), handle.clone());
    let artifacts = Artifacts::new(
        checkpoints.clone(),
        shared.clone(),
        audit.clone(),
        config.artifacts,
        stopping.clone(),
    );
    let streams: Arc<Streams> = Arc::default();
    let context = Context {
        shared: shared.clone(),
        artifacts: artifacts.clone(),
        driver: handle.clone(),
        checkpoints: checkpoints.clone(),
        identity: identity.clone(),
        audit: audit.clone(),
        secrets: Secrets::new(&config.state_dir),
        streams: streams.clone(),
        restore_timeout: config.fleet().restore_timeout,
        templates: Arc::new(templates),
        start_timeout: config.start_timeout,
        started_at: world::now(),
        stopping: stopping.clone(),
    };
    let gate = Gate::new(identity, audit.clone(), shared.metrics.clone());
    let health = HealthReporter::new();
    let routes = rpc::routes(&context, &gate, &health).map_err(|error| {
        StartError::one(Problem::new(
            format!("reflection has no descriptors: {error}"),
            "this build is broken",
        ))
    })?;
    let driver_task = spawn("driver", driver.run());
    // It ends after all others, so that what they do last is recorded too.
    let recorded = CancellationToken::new();
    let audit_task = audit.begin(&shared, &recorded);
    let keeper = checkpoints.clone();
    let until = stopping.clone();
    spawn("checkpoint policies", async move {
        until.run_until_cancelled(keep_policies(keeper)).await;
    });
    let (keeper, until) = (checkpoints.clone(), stopping.clone());
    spawn("parking", async move {
        until.run_until_cancelled(keep_parking(keeper, config.paused_ttl)).await;
    });
    let (sweeper, until) = (checkpoints, stopping.clone());
    spawn("checkpoint sweep", async move {
        until.run_until_cancelled(sweep_for_ever(sweeper)).await;
    });
    let (listener_of_ends, until) = (artifacts.clone(), stopping.clone());
    spawn("artifacts", async move {
        until.run_until_cancelled(listener_of_ends.listen()).await;
    });
    let until = stopping.clone();
    spawn("artifact sweep", async move {
        until.run_until_cancelled(artifacts.sweep_for_ever()).await;
    });
    let clients = listen(listener, acceptor, config.connections, shared.links.clone(), stopping.clone());
    let until = stopping.clone().cancelled_owned();
    let room = rpc::Room::new(config.calls, shared.metrics.clone());
    let patience = Patience::new(config.patience, DESCRIPTORS);
    let server = spawn_fallible("grpc server", async move {
        let incoming = ReceiverStream::new(clients);
        rpc::server()
            // First, so that whoever is refused by the others is told an id too.
            .layer(TraceLayer(Role::Entry))
            .layer(patience)
            .layer(room)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, until)
            .await
    });
    rpc::set_health(&health, true).await;
    tracing::info!(%addr, "the coordinator is ready");
    Ok(Running {
        addr,
        credentials,
        grace: config.shutdown_grace,
        gate,
        health,
        driver: handle,
        shared,
        audit,
        streams,
        _stop_on_drop: stopping.clone().drop_guard(),
        stopping,
        server,
        driver_task,
        _recorded_on_drop: recorded.clone().drop_guard(),
        recorded,
        audit_task,
        _state_dir: None,
    })
}

impl Running {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The tokens, and the files that hold them.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Its metrics, and what makes them say how it stands now.
    pub fn metrics(&self) -> (Arc<Metrics>, impl Fn() + Send + Sync + 'static) {
        let (view, audit, streams) = (self.shared.view.clone(), self.audit.clone(), self.streams.clone());
        let metrics = self.shared.metrics.clone();
        (metrics.clone(), move || metrics.look(&view, &audit, streams.all()))
    }

    /// Returns when the coordinator has ended by itself, which it only does on a defect.
    /// Cancelling it changes nothing.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = &mut self.server => tracing::error!("the gRPC server ended"),
            _ = &mut self.driver_task => tracing::error!("the driver ended"),
        }
    }

    /// Stops it: health says NOT_SERVING, new calls are refused, workers' links are closed
    /// (they keep their sessions and come back), running calls have the grace to end, and
    /// the store is flushed and let go of.
    pub async fn shutdown(self) {
        rpc::set_health(&self.health, false).await;
        self.gate.stop();
        self.driver.stop().await;
        self.shared.links.close_all();
        self.stopping.cancel();
        let abort = self.server.abort_handle();
        // A handle that `wait` has seen the end of must not be asked again.
        if !self.server.is_finished() && tokio::time::timeout(self.grace, self.server).await.is_err() {
            tracing::info!("calls that did not end in time are cut off");
            abort.abort();
        }
        self.recorded.cancel();
        let _ = self.audit_task.await;
        self.shared.store.close().await;
        tracing::info!("the coordinator has stopped");
    }
}
