//! The server: init's child, on a current-thread runtime. It puts the parts together,
//! serves them on the sandbox's socket, and ends when it is told to or when init is.

use std::{
    error::Error as StdError,
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ::landlock::RulesetCreated;
use berth_proto::{
    agent_config::{AgentConfig, SOCKET_NAME},
    secret,
    spawn::{spawn, spawn_fallible},
    trace::{Role, TraceLayer},
    transport::{self, DATA_STREAMS, MESSAGE_LIMIT},
    v1::{
        agent_service_server::AgentServiceServer, file_service_server::FileServiceServer,
        interpreter_service_server::InterpreterServiceServer, port_service_server::PortServiceServer,
        task_service_server::TaskServiceServer,
    },
};
use futures::Stream;
use nix::{
    fcntl::{OFlag, open},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
        stat::Mode,
    },
};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    clock::TaskClock,
    deadline::Deadlines,
    door::Door,
    driver::Shared,
    environment::Environment,
    files::{Files, pieces::Pieces, watch::Watcher},
    interpreter::Contexts,
    ledger::Ledger,
    lockdown::{self, Protections},
    ports::Ports,
    secrets::SecretFiles,
    service_agent::{self, AgentApi},
    service_file::FileApi,
    service_interpreter::InterpreterApi,
    service_port::PortApi,
    service_task::TaskApi,
    spawner::Spawner,
    spool::Budget,
    tasks::Tasks,
    usage,
};

/// Longest path of a Unix socket, without its NUL.
const SOCKET_PATH_MAX: usize = 107;
/// Between TERM and KILL when init was asked to end.
const TERMINATE_GRACE: Duration = Duration::from_secs(2);
/// For the last answers to go out.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs the server until its end. Returns the exit code.
pub fn run(
    config: AgentConfig,
    init: OwnedFd,
    protections: Protections,
    lock: Option<RulesetCreated>,
) -> i32 {
    // Without init there is nothing that it could do.
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        error!(%error, "PR_SET_PDEATHSIG");
        return 1;
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Best effort: a task needs a handful of descriptors.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For spool files only. The session's own files have threads of their own.
        .max_blocking_threads(4)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return 1;
        }
    };
    let result = runtime.block_on(serve(config, init, protections, lock));
    // A file operation that hangs must not keep the sandbox alive.
    runtime.shutdown_background();
    match result {
        Ok(()) => 0,
        Err(error) => {
            error!(error = &*error, "the server failed");
            1
        }
    }
}

async fn serve(
    config: AgentConfig,
    init: OwnedFd,
    protections: Protections,
    lock: Option<RulesetCreated>,
) -> Result<(), Box<dyn StdError>> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.spool_dir)?;
    let spawner = Arc::new(Spawner::new(init)?);
    let (ending, stop) = (CancellationToken::new(), CancellationToken::new());
    let watch_lock = lock.as_ref().map(RulesetCreated::try_clone).transpose()?;
    let watcher = Watcher::start(&config, watch_lock, ending.clone())?;
    let files = Arc::new(Files::start(&config, lock)?);
    lockdown::only_kill()?;
    let deadlines = Arc::new(Deadlines::new());
    let shared = Arc::new(Shared {
        spawner: spawner.clone(),
        clock: Arc::new(TaskClock::new()),
        budget: Arc::new(Budget::new(config.spools_bytes)),
        cgroups: config.cgroups.clone(),
        spool_dir: config.spool_dir.clone(),
        files: files.clone(),
        secrets: SecretFiles::new(secret::DIR),
        null: open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?,
    });
    let ledger = Ledger::open(&config.spool_dir)?;
    let tasks = Tasks::new(shared, Environment::new(&config), ledger, deadlines.activity.clone())?;
    let listener = bind(&config.run_dir)?;
    // The directory keeps everybody else out; its group is the worker's where the worker is not root.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o660);
    fs::set_permissions(config.run_dir.join(SOCKET_NAME), mode)?;
    info!(backend = config.backend, protections = protections.join(","), "ready");

    let listening = spawner.clone();
    spawn("hear init", async move { listening.listen().await });
    spawn("keep under cap", tasks.clone().keep_under_cap());
    let expire = service_agent::expire(tasks.clone(), deadlines.clone(), ending.clone(), stop.clone());
    spawn_fallible("deadlines", expire);
    let (last, begins, stopping) = (tasks.clone(), ending.clone(), stop.clone());
    spawn("terminate", async move {
        spawner.terminate.cancelled().await;
        begins.cancel();
        last.end_all(TERMINATE_GRACE).await;
        stopping.cancel();
    });

    let door = Arc::new(Door::new(&config.run_dir));
    let ports = Ports::new(door.clone(), deadlines.activity.clone(), ending.clone());
    let agent = AgentApi {
        tasks: tasks.clone(),
        files: files.clone(),
        deadlines,
        protections,
        door,
        ending,
        stop: stop.clone(),
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<TaskServiceServer<TaskApi>>().await;
    health.set_serving::<FileServiceServer<FileApi>>().await;
    health.set_serving::<PortServiceServer<PortApi>>().await;
    health.set_serving::<InterpreterServiceServer<InterpreterApi>>().await;
    health.set_serving::<AgentServiceServer<AgentApi>>().await;
    let contexts = Contexts::new(tasks.clone());
    let usage = usage::Sources {
        cgroups: config.cgroups.clone(),
        workspace: config.workspace.clone(),
        spool_dir: config.spool_dir.clone(),
        writable: config.writable.clone(),
    };
    let serving = transport::server(DATA_STREAMS)
        .layer(TraceLayer(Role::Last))
        .add_service(
            TaskServiceServer::new(TaskApi { tasks: tasks.clone(), usage })
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            FileServiceServer::new(FileApi {
                tasks: tasks.clone(),
                files,
                watcher,
                pieces: Pieces::default(),
            })
            .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            PortServiceServer::new(PortApi { tasks, ports }).max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            InterpreterServiceServer::new(InterpreterApi { contexts })
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(AgentServiceServer::new(agent).max_decoding_message_size(MESSAGE_LIMIT))
        .add_service(health_service)
        .serve_with_incoming_shutdown(accept(listener), stop.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return Ok(result?),
        () = stop.cancelled() => {}
    }
    // Streams that nobody reads do not hold up the end.
    match tokio::time::timeout(LAST_ANSWERS, serving).await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// Listens on the sandbox's socket. What an earlier agent left is removed.
fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    let path = run_dir.join(SOCKET_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
        return UnixListener::bind(path);
    }
    let dir = open(run_dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    UnixListener::bind(PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd())))
}

/// Accepted connections. A failed accept (too many open files) does not end the stream.
fn accept(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    error!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}
