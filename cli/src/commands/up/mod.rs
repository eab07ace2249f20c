//! `berth up`: a coordinator and its workers in this one process, on loopback; `berth
//! stop` and `berth status` for the one that runs detached.
//!
//! A running one is known by `<state>/up.json` (pid, start time, boot), and one at a time
//! by a lock in the state directory, which the kernel gives back however the process ends.
//! Detached means: this executable again, in a session of its own, with its talk in
//! `<state>/berth.log`; the first process waits until that one is ready, or says why not.

mod detach;
mod first;
mod manage;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_client::{
    ConnectOptions,
    local::{self, UnreadyWorker, UpRecord},
};
use berth_coordinator::{Coordinator, checkpoints::Location};
use berth_gateway::mcp::http::Lasting;
use berth_proto::WorkerId;
use berth_worker::{Worker, store};
use clap::Args;
use futures::future::{join_all, select_all};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;

pub use detach::log_path;
pub use first::agent_problem;
pub use manage::{StopArgs, runs, state_dir, status, stop};

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    logging::{self, LogArgs, LogLevel},
    output::{self, say},
    process,
    serve::{
        coordinator,
        gateway::{self, Around, Gateway, HttpArgs},
        metrics::{MetricsArgs, Port, Told},
        probes::{Asked, Look},
        remove, worker, write_atomic,
    },
    signals::Interrupts,
    spans::{self, TraceArgs},
    value,
};

const HELP: &str = "\
Settings of the worker come from the same options and variables as those of the `worker`
command. Credentials are made on first start, and found by the other commands without asking.

`ready` is said when all workers are ready. After --ready-within one is enough: which ones are not,
and why, is said beside it (with --format json: in `unready`), and the exit code of `-d` is 0.

Examples:
  berth up                       until Ctrl-C
  berth up -d                    in the background; `berth stop` ends it
  berth up --workers 2 --sandbox docker
  berth up --port 0 --state-dir /tmp/try";

/// Starts a coordinator and workers on this machine.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct UpArgs {
    /// Workers; they share what the machine has
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16), value_name = "N")]
    pub workers: u32,

    /// gRPC port on loopback; 0 takes a free one
    #[arg(long, env = "GRPC_PORT", default_value_t = 50051, value_name = "PORT")]
    pub port: u16,

    /// TOML file with templates
    #[arg(long, env = "BERTH_TEMPLATES", value_name = "FILE")]
    pub templates: Option<PathBuf>,

    /// Time for the workers to become ready; then one that is ready is enough
    #[arg(long, value_parser = value::some_duration, default_value = "60s", value_name = "TIME")]
    pub ready_within: Duration,

    #[command(flatten)]
    pub recovery: coordinator::RecoveryArgs,

    #[command(flatten)]
    pub audit: coordinator::AuditArgs,

    #[command(flatten)]
    pub artifacts: coordinator::ArtifactArgs,

    /// Run in the background; returns when it is ready, or says why it is not
    #[arg(long, short = 'd')]
    pub detach: bool,

    /// Set by `--detach` for the process in the background
    #[arg(long, hide = true)]
    pub daemon: bool,

    #[command(flatten)]
    pub http: HttpArgs,

    #[command(flatten)]
    pub machine: worker::MachineArgs,

    #[command(flatten)]
    pub metrics: MetricsArgs,

    #[command(flatten)]
    pub log: LogArgs,

    #[command(flatten)]
    pub trace: TraceArgs,
}

impl UpArgs {
    /// With no path that depends on where we are: the one in the background is at `/`.
    fn absolute(mut self) -> Result<Self, Failure> {
        for path in [&mut self.templates, &mut self.machine.agent].into_iter().flatten() {
            *path = std::path::absolute(&*path).map_err(|error| Failure::io(path.display(), error))?;
        }
        if let Some(Location::Directory(path)) = &mut self.recovery.blobs {
            *path = std::path::absolute(&*path).map_err(|error| Failure::io(path.display(), error))?;
        }
        Ok(self)
    }
}

pub async fn run(global: &Global, args: UpArgs) -> CommandResult {
    let args = args.absolute()?;
    let state_dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    make_state_dir(&state_dir)?;
    let state_dir = state_dir.canonicalize().map_err(|error| Failure::io(state_dir.display(), error))?;
    if args.detach && !args.daemon {
        return detach::start(global, &state_dir, args.ready_within).await;
    }
    let log = detach::log_path(&state_dir);
    if args.daemon {
        // Away from the terminal: its hang-up and its Ctrl-C are not for us.
        nix::unistd::setsid().map_err(|error| Failure::io("can't leave the terminal", error))?;
        // Nor does it keep the directory busy that it was started in.
        std::env::set_current_dir("/").map_err(|error| Failure::io("can't go to /", error))?;
        logging::start_in_file(args.log, &log)?;
    } else if args.log.log_level != LogLevel::Off {
        logging::start(args.log);
    }
    let _lock = lock(&state_dir)?;
    let export = spans::start(&args.trace, "berth")?;
    let mut interrupts = Interrupts::new()?;
    let result = serve(global, &args, &state_dir, args.daemon.then_some(log), &mut interrupts).await;
    export.finish().await;
    remove(&local::up_record_path(&state_dir)).map_err(|error| Failure::io("can't remove up.json", error))?;
    result
}

/// For its owner alone: no sandbox resolves a path of the host, whatever ids it has.
pub(super) fn make_state_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        Failure::io(format_args!("can't make the state directory {}", dir.display()), error)
            .hint("give another one with --state-dir or BERTH_STATE_DIR")
    })
}

/// One `berth up` a state directory.
pub fn lock(state_dir: &Path) -> Result<Flock<fs::File>, Failure> {
    let path = state_dir.join("up.lock");
    let open = || {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        // One that is there may have been made by an earlier version, for all to open.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        Ok(file)
    };
    let file = open().map_err(|error: std::io::Error| {
        Failure::io(path.display(), error).hint("give a state directory of your own: --state-dir")
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error == nix::errno::Errno::EWOULDBLOCK {
            runs_already(state_dir)
        } else {
            Failure::io(path.display(), error)
        }
    })
}

fn runs_already(state_dir: &Path) -> Failure {
    let what = match local::read_up_record(state_dir) {
        Ok(Some(record)) => {
            let workers = output::count(record.workers as u64, "worker");
            format!("pid {}, {workers}, listening on {}", record.pid, record.address)
        }
        _ => "it is just starting".to_owned(),
    };
    Failure::new(format!("Berth runs here already ({what})"))
        .hint("`berth status` shows it, `berth stop` ends it")
        .hint("--state-dir DIR --port 0 starts another one beside it")
}

async fn serve(
    global: &Global,
    args: &UpArgs,
    state_dir: &Path,
    log: Option<PathBuf>,
    interrupts: &mut Interrupts,
) -> CommandResult {
    let config = args.artifacts.over(args.audit.over(args.recovery.over(berth_coordinator::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, args.port)),
        state_dir: state_dir.to_owned(),
        templates: args.templates.clone(),
        ..Default::default()
    })));
    first::look(args, &config)?;
    let port = args.metrics.listen().await?;
    let mut coordinator = tokio::select! {
        started = Coordinator::start(config) => started.map_err(coordinator::start_failure)?,
        _ = interrupts.recv() => return Ok(code::CANCELLED),
    };
    let around = Around {
        tls: None,
        insecure: false,
        remedy: "give a certificate with BERTH_HTTP_CERT and BERTH_HTTP_KEY (`berth tls init` makes one), or listen on \
            127.0.0.1 (BERTH_HTTP_LISTEN)",
        // Its workers stop with it, and their sessions end.
        lasting: Lasting { dir: state_dir.to_owned(), over_a_stop: false },
    };
    let gateway = match Gateway::start(&args.http, &coordinator, around).await {
        Ok(gateway) => gateway,
        Err(failure) => {
            coordinator.shutdown().await;
            return Err(failure);
        }
    };
    let address = coordinator.addr().to_string();
    let mut record = UpRecord {
        pid: std::process::id().cast_signed(),
        start_time: process::start_time(std::process::id().cast_signed()).unwrap_or_default(),
        boot_id: process::boot_id(),
        address: address.clone(),
        http: gateway.url(),
        version: berth_proto::VERSION.to_owned(),
        workers: args.workers as usize,
        ready: false,
        unready: Vec::new(),
        log,
    };
    write_record(state_dir, &record)?;
    let join_token = coordinator.credentials().join_token.clone();
    let mut workers = Vec::new();
    let told = Told::of("up").with(coordinator.metrics());
    let told = gateway.metrics().into_iter().fold(told, Told::with);
    let served = Served { port, told, options: gateway::beside(&coordinator, None) };
    let result = tokio::select! {
        // First: an interrupt goes before everything else that is due.
        biased;
        signal = interrupts.recv() => Ok(signal),
        () = coordinator.wait() => Err(Failure::new("the coordinator ended by itself").hint("its log says why")),
        result = work(args, state_dir, &join_token, &mut record, &mut workers, global, served) => result.map(|_never| ""),
    };
    match &result {
        Ok(signal) => {
            // Once: in the log where there is one, else as talk.
            if args.daemon || args.log.log_level >= LogLevel::Info {
                tracing::info!(signal, "stopping; once more stops at once");
            } else {
                say("stopping; once more stops at once");
            }
        }
        Err(failure) => tracing::error!(%failure, "stopping"),
    }
    // Nobody shall take it for a running one while it stops.
    record.ready = false;
    write_record(state_dir, &record)?;
    let stopped = tokio::select! {
        () = async {
            // What its clients made is ended while there is somebody to end it.
            gateway.shutdown().await;
            // Workers first: they tell the coordinator what became of their sessions.
            join_all(workers.drain(..).map(berth_worker::Running::shutdown)).await;
            coordinator.shutdown().await;
        } => 0,
        _ = interrupts.recv() => {
            output::warning("stopping at once: the next start puts in order what is left");
            code::CANCELLED
        }
    };
    result.map(|_| stopped)
}

fn write_record(state_dir: &Path, record: &UpRecord) -> Result<(), Failure> {
    let path = local::up_record_path(state_dir);
    let bytes = serde_json::to_vec_pretty(record).map_err(|error| Failure::io(path.display(), error))?;
    write_atomic(&path, &bytes, 0o644).map_err(|error| Failure::io(path.display(), error))
}

/// Starts the workers and watches them. Returns only when something is wrong.
async fn work(
    args: &UpArgs,
    state_dir: &Path,
    join_token: &str,
    record: &mut UpRecord,
    workers: &mut Vec<berth_worker::Running>,
    global: &Global,
    Served { port, told, options }: Served,
) -> Result<std::convert::Infallible, Failure> {
    // They count in one place: what tells them apart is no label.
    let metrics: Arc<berth_worker::metrics::Metrics> = Arc::default();
    for number in 1..=args.workers {
        // Short: the agents' sockets below it have a path of at most 107 bytes.
        let dir = state_dir.join(format!("w{number}"));
        let mut config = args.machine.config(&record.address, join_token, &dir);
        config.worker_id =
            Some(format!("local-{number}").parse::<WorkerId>().expect("a constant shape is valid"));
        share(&mut config, args.workers, state_dir)?;
        config.metrics = metrics.clone();
        workers.push(Worker::start(config).await.map_err(worker::start_failure)?);
    }
    let asked = whole(told, options, metrics, workers);
    let _port = Port::open(port, &asked);
    tokio::select! {
        () = wait_ready(workers) => {}
        failure = first_failure(workers) => return Err(failure),
        () = tokio::time::sleep(args.ready_within) => record.unready = unready(workers, args.ready_within)?,
    }
    asked.started();
    record.ready = true;
    write_record(state_dir, record)?;
    tracing::info!(unready = record.unready.len(), "ready");
    greet(args, global, record, workers)?;
    Err(first_failure(workers).await)
}

/// What is told on the port for metrics, if there is one.
struct Served {
    port: Option<TcpListener>,
    told: Told,
    /// To the coordinator of this process.
    options: ConnectOptions,
}

/// The whole of it is ready when its coordinator is, and each worker.
fn whole(
    told: Told,
    options: ConnectOptions,
    metrics: Arc<berth_worker::metrics::Metrics>,
    workers: &[berth_worker::Running],
) -> Arc<Asked> {
    let observers = workers.iter().map(berth_worker::Running::observer).collect();
    let told = told.with(worker::shown(metrics, observers));
    let unready = workers.iter().map(|worker| (worker.id().clone(), worker.readiness()));
    let unready: Arc<Vec<_>> = Arc::new(unready.collect());
    let look: Look = Arc::new(move || {
        let (options, unready) = (options.clone(), unready.clone());
        Box::pin(async move {
            let lacking = unready.iter().find_map(|(id, unready)| Some(format!("{id}: {}", unready()?)));
            match lacking {
                Some(lacking) => Some(lacking),
                None => coordinator::unready(options).await,
            }
        })
    });
    Asked::new(look, told.scrape())
}

/// Several workers on one machine offer it once, not several times.
fn share(config: &mut berth_worker::Config, workers: u32, dir: &Path) -> Result<(), Failure> {
    if workers == 1 {
        return Ok(());
    }
    let all = store::machine_offers(config, dir)
        .map_err(|error| Failure::io("can't tell what this machine has", error))?;
    config.capacity = berth_worker::CapacityOverride {
        cpu_millis: Some((all.cpu_millis / workers).max(1)),
        memory_bytes: Some(all.memory_bytes / u64::from(workers)),
        disk_bytes: Some(all.disk_bytes / u64::from(workers)),
    };
    Ok(())
}

/// All of them: whoever asks for three counts on three.
pub(super) async fn wait_ready(workers: &[berth_worker::Running]) {
    join_all(workers.iter().map(berth_worker::Running::ready)).await;
}

/// When the time is over, one is enough to go on with. Those that lack something, and what.
pub(super) fn unready(
    workers: &[berth_worker::Running],
    after: Duration,
) -> Result<Vec<UnreadyWorker>, Failure> {
    let told = |status: berth_worker::Status| UnreadyWorker {
        worker: status.id.to_string(),
        reason: if status.reason.is_empty() { "it has not said why".to_owned() } else { status.reason },
    };
    let lacking: Vec<UnreadyWorker> =
        workers.iter().map(|worker| worker.status()).filter(|status| !status.ready).map(told).collect();
    if lacking.len() < workers.len() {
        return Ok(lacking);
    }
    let reasons: Vec<String> = lacking.iter().map(reason).collect();
    Err(Failure::new(format!("no worker is ready after {}: {}", output::span(after), reasons.join("; ")))
        .hint("`berth doctor` looks at what this machine has"))
}

fn reason(unready: &UnreadyWorker) -> String {
    format!("{}: {}", unready.worker, unready.reason)
}

/// Ready is less than was asked for: whoever waited for it must not take it for all.
fn tell_unready(record: &UpRecord) {
    let Some((first, rest)) = record.unready.split_first() else { return };
    let ready = record.workers - record.unready.len();
    let reasons: Vec<String> = std::iter::once(first).chain(rest).map(reason).collect();
    output::warning(format!("only {ready} of {} workers are ready: {}", record.workers, reasons.join("; ")));
    output::hint(format!("`berth workers {}` shows how it is; it is tried again all the time", first.worker));
}

pub(super) async fn first_failure(workers: &[berth_worker::Running]) -> Failure {
    let (error, ..) = select_all(workers.iter().map(|worker| Box::pin(worker.wait()))).await;
    Failure::new(format!("a worker can't go on: {error}"))
        .hint(error.hint_text().unwrap_or("`berth doctor` looks at what this machine has"))
}

/// What to type next.
fn greet(
    args: &UpArgs,
    global: &Global,
    record: &UpRecord,
    workers: &[berth_worker::Running],
) -> Result<(), Failure> {
    // Scripts read this. A closed stdout is no reason to stop serving.
    let _ = if global.json() {
        output::json_line(record)
    } else {
        output::data(format_args!("ready {}", record.address))
    };
    // In the background it goes to the log.
    if args.daemon || !global.json() {
        tell_unready(record);
    }
    if args.daemon || global.json() {
        return Ok(());
    }
    let backend = workers.first().and_then(|worker| {
        worker.status().backends.into_iter().find(|backend| backend.chosen).map(|backend| backend.name)
    });
    next_steps(global, record, backend.as_deref(), "Ctrl-C stops it");
    Ok(())
}

fn next_steps(global: &Global, record: &UpRecord, backend: Option<&str>, end: &str) {
    let sandbox = backend.map(|name| format!(", {name} sandboxes")).unwrap_or_default();
    let count = output::count(record.workers as u64, "worker");
    // A state directory that was given on the command line must be given to the others too.
    let option = match (&global.state_dir, std::env::var_os(crate::env::BERTH_STATE_DIR)) {
        (Some(dir), None) => format!(" --state-dir {}", dir.display()),
        _ => String::new(),
    };
    say(format!("Berth is up on {}: {count}{sandbox}. {end}.", record.address));
    say("");
    say(format!("  berth{option} run -- python3 -c 'print(6 * 7)'"));
    say(format!("  berth{option} shell"));
    say(format!("  berth{option} ps"));
    if let Some(url) = &record.http {
        say(format!("  berth{option} dashboard          a link that signs you in on {url}/"));
        say("");
        say("E2B's SDKs work here too (docs/e2b.md):");
        say("");
        say(format!("  export E2B_API_URL={url} E2B_SANDBOX_URL={url}"));
        say(format!("  export E2B_API_KEY=$(berth{option} token create --e2b)"));
    }
    say("");
}
