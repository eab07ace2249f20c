//! The `worker` command, and the settings of a worker that it shares with `berth up`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_client::{Labels, local};
use berth_proto::{
    WorkerId,
    convert::bounds,
    domain::{BackendChoice, PtySize, TaskDefaults, TaskDefaultsPatch},
    egress::Target,
};
use berth_worker::{
    CapacityOverride, Config, StartError, Worker, egress,
    metrics::{Metrics, Observed},
    store,
};
use clap::{
    Args, Parser,
    builder::{BoolishValueParser, NonEmptyStringValueParser},
};

use super::{
    Errand, Serve, ServeArgs, announce,
    metrics::{MetricsArgs, Port, Told},
    probes::{Asked, Instead, Look, Probes},
    stop, withdraw,
};
use crate::{
    env,
    failure::{CommandResult, Failure, code},
    logging, output,
    signals::Interrupts,
    value,
};

const HELP: &str = "\
Started with no arguments it dials the coordinator at localhost:50051 and registers. `ready ID`
on stdout says that it takes sessions. SIGINT and SIGTERM drain it: it takes nothing new, running
tasks have the grace to end, sessions that may be restored go on elsewhere, and the others end. With
--on-stop keep it goes at once and its sandboxes live on, for its next start. A second signal ends it
at once, and the next start puts in order what is left.

CPU is offered four times over, since sessions are idle most of their time; memory and disk are
offered once. Nothing listens on a worker unless GRPC_PORT says so.

With BERTH_TLS_DIR it shows its certificate (`berth tls worker ID`) and takes only the coordinator of
that CA.

On another machine than the coordinator's it needs the join token: the coordinator keeps it in
<state>/credentials/join.token.

Examples:
  worker
  COORDINATOR_ADDR=10.0.0.5:50051 BERTH_JOIN_TOKEN_FILE=/etc/berth/join.token worker
  worker --sandbox docker --labels disk=fast,zone=a --max-sessions 20

Exit codes: 0 stopped, 1 failed, 2 wrong use.";

/// What a worker is told about this machine and its sandboxes.
#[derive(Args, Debug, Clone)]
pub struct MachineArgs {
    /// Sessions that a worker holds at most
    #[arg(long, env = "MAX_SESSIONS", default_value_t = 5, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_sessions: u32,

    /// Sandbox backend: auto, native, docker or fake
    #[arg(long, env = "BERTH_SANDBOX", default_value = "auto", value_parser = backend, value_name = "BACKEND")]
    pub sandbox: BackendChoice,

    /// Native sandboxes although a restart of this container ends them
    #[arg(long, env = "BERTH_NATIVE_IN_CONTAINER", value_parser = BoolishValueParser::new(), value_name = "BOOL",
          num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub native_in_container: bool,

    /// Image of docker sandboxes whose template names none
    #[arg(long, env = "BERTH_SANDBOX_IMAGE", default_value = "berth/sandbox:base", value_name = "IMAGE",
          value_parser = NonEmptyStringValueParser::new())]
    pub sandbox_image: String,

    /// The engine's runtime for docker sandboxes, such as runsc [default: the engine's own]
    #[arg(long, env = "BERTH_DOCKER_RUNTIME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub docker_runtime: Option<String>,

    /// The berth-agent executable [default: beside this one]
    #[arg(long, env = "BERTH_AGENT", value_name = "FILE")]
    pub agent: Option<PathBuf>,

    /// Labels for sessions to ask for
    #[arg(long, env = "BERTH_LABELS", value_delimiter = ',', value_parser = value::pair, value_name = "NAME=VALUE,…")]
    pub labels: Vec<(String, String)>,

    /// CPU to offer, in thousandths of a core [default: each core four times]
    #[arg(long, env = "BERTH_CPU_MILLIS", value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub cpu_millis: Option<u32>,

    /// Memory to offer [default: all of it]
    #[arg(long, env = "BERTH_MEMORY", value_parser = value::size, value_name = "SIZE")]
    pub memory: Option<u64>,

    /// What holds sessions' files to their size: auto, ext4, volume, tmpfs, or directory: nothing does
    #[arg(long, env = "BERTH_WORKSPACE", default_value = "auto", value_parser = workspace, value_name = "KIND")]
    pub workspace: store::Choice,

    /// Disk to offer [default: of what is free, what leaves room for output]
    #[arg(long, env = "BERTH_DISK", value_parser = value::size, value_name = "SIZE")]
    pub disk: Option<u64>,

    /// Time that running tasks have to end by themselves when it stops [default: 10s]
    #[arg(long, env = "BERTH_SHUTDOWN_GRACE", value_parser = value::duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,

    /// Timeout of a task, where neither it nor its session nor its template has one; 0: none [default: 5m]
    #[arg(long, env = "BERTH_TASK_TIMEOUT", value_parser = task_timeout, value_name = "TIME")]
    pub task_timeout: Option<Duration>,

    /// Size of a terminal, where none of these says [default: 80x24]
    #[arg(long, env = "BERTH_PTY_SIZE", value_parser = value::pty_size, value_name = "COLSxROWS")]
    pub pty_size: Option<PtySize>,

    /// Tasks that a session may run at once, where neither it nor its template says [default: 32]
    #[arg(long, env = "BERTH_MAX_TASKS", value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub max_tasks: Option<u32>,

    /// Sessions may reach any public address, where they ask for that (--egress full)
    #[arg(long, env = "BERTH_EGRESS_FULL", value_parser = BoolishValueParser::new(), value_name = "BOOL",
          num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub egress_full: bool,

    /// Exactly these may be private addresses, for sessions that are allowed to reach them
    #[arg(long, env = "BERTH_EGRESS_EXEMPT", value_delimiter = ',', value_parser = value::target, value_name = "HOST:PORT,…")]
    pub egress_exempt: Vec<Target>,

    /// What `--egress packages` allows beside the index that this worker's pip is set up for
    #[arg(long, env = "BERTH_EGRESS_PACKAGES", value_delimiter = ',', value_parser = value::target, value_name = "HOST:PORT,…")]
    pub egress_packages: Vec<Target>,

    /// Names with addresses of their own, which go before the resolver's
    #[arg(long, env = "BERTH_EGRESS_HOSTS", value_delimiter = ',', value_parser = value::known_host, value_name = "NAME=ADDRESS,…")]
    pub egress_hosts: Vec<(String, IpAddr)>,
}

fn workspace(text: &str) -> Result<store::Choice, String> {
    text.parse()
}

fn task_timeout(text: &str) -> Result<Duration, String> {
    let timeout = value::duration(text)?;
    if timeout > bounds::DURATION_MAX {
        return Err("it is longer than ten years: 0 means none".to_owned());
    }
    Ok(timeout)
}

fn backend(text: &str) -> Result<BackendChoice, String> {
    // The wire's empty text is "auto"; on a command line it is a mistake.
    if text.is_empty() {
        return Err("auto, native, docker or fake".to_owned());
    }
    text.parse().map_err(|_| "it is none of auto, native, docker, fake".to_owned())
}

impl MachineArgs {
    /// The worker's configuration with these settings.
    pub fn config(&self, coordinator: &str, join_token: &str, state_dir: &Path) -> Config {
        let mut config = Config::new(coordinator, join_token, state_dir);
        config.max_sessions = self.max_sessions;
        config.sandbox = self.sandbox;
        config.native_in_container = self.native_in_container;
        config.docker_image.clone_from(&self.sandbox_image);
        config.docker_runtime.clone_from(&self.docker_runtime);
        config.workspace = self.workspace;
        if let Some(agent) = &self.agent {
            config.agent.clone_from(agent);
        }
        config.labels = self.labels.iter().cloned().collect::<Labels>();
        config.capacity = CapacityOverride {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory,
            disk_bytes: self.disk,
        };
        if let Some(grace) = self.shutdown_grace {
            config.shutdown_grace = grace;
        }
        config.task_defaults = self.task_defaults().over(TaskDefaults::default());
        config.egress = egress::Settings {
            full: self.egress_full,
            exempt: self.egress_exempt.clone(),
            packages: self.egress_packages.clone(),
            hosts: self.egress_hosts.clone(),
        };
        config
    }
}

impl MachineArgs {
    fn task_defaults(&self) -> TaskDefaultsPatch {
        TaskDefaultsPatch {
            timeout: self.task_timeout.map(|timeout| (!timeout.is_zero()).then_some(timeout)),
            pty_size: self.pty_size,
            max_concurrent: self.max_tasks,
        }
    }
}

/// Owns the sandboxes of one machine and serves their sessions.
#[derive(Parser, Debug)]
#[command(name = "worker", version = berth_proto::VERSION, after_help = HELP, max_term_width = 100)]
pub struct WorkerArgs {
    /// Address of the coordinator
    #[arg(long, env = env::COORDINATOR_ADDR, default_value = "localhost:50051", value_name = "HOST:PORT",
          value_parser = NonEmptyStringValueParser::new())]
    pub coordinator: String,

    /// Name of this worker [default: a unique id, kept in the state directory]
    #[arg(long, env = "WORKER_ID", value_parser = worker_id, value_name = "ID")]
    pub worker_id: Option<WorkerId>,

    /// Token to register with
    #[arg(long, env = "BERTH_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub join_token: Option<String>,

    /// File with the token to register with [default: the coordinator's own, on its machine]
    #[arg(long, env = "BERTH_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// State directory [default: /var/lib/berth/worker as root, else ~/.local/state/berth/worker]
    #[arg(long, env = env::BERTH_STATE_DIR, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where sessions live [default: under the state directory]
    #[arg(long, env = "BASE_WORKSPACE", value_name = "DIR")]
    pub base_workspace: Option<PathBuf>,

    /// Port of a data-plane listener of its own [default: nothing listens]
    #[arg(long, env = "GRPC_PORT", value_name = "PORT")]
    pub grpc_port: Option<u16>,

    /// IP address of that listener
    #[arg(long, env = "BERTH_LISTEN", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    pub listen: IpAddr,

    /// Directory of the certificates (`berth tls`); with it everything goes over TLS [default: no TLS]
    #[arg(long, env = env::BERTH_TLS_DIR, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Listen there beyond loopback although there is no TLS
    #[arg(long, env = "BERTH_INSECURE_LISTEN", value_parser = BoolishValueParser::new(), value_name = "BOOL",
          num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub insecure_listen: bool,

    /// What a stop does with its sessions: drain ends or moves them, keep leaves them to its next start
    #[arg(long, env = "BERTH_ON_STOP", value_enum, default_value_t = OnStop::Drain, value_name = "WHAT")]
    pub on_stop: OnStop,

    #[command(flatten)]
    pub machine: MachineArgs,

    #[command(flatten)]
    pub metrics: MetricsArgs,

    #[command(flatten)]
    pub serve: ServeArgs,

    #[command(subcommand)]
    pub instead: Option<Instead>,
}

/// What a stop does with the sessions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnStop {
    // No doc comments: see `output::Format`.
    Drain,
    Keep,
}

fn worker_id(text: &str) -> Result<WorkerId, String> {
    text.parse().map_err(|error: berth_proto::Error| error.to_string())
}

impl WorkerArgs {
    fn state_dir(&self) -> Result<PathBuf, Failure> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(local::default_state_dir()?.join("worker")),
        }
    }

    fn join_token(&self) -> Result<String, Failure> {
        // An empty one counts as left out: that is what a compose file makes of a variable that is not set.
        if let Some(token) = self.join_token.as_ref().filter(|token| !token.is_empty()) {
            if self.join_token_file.is_some() {
                return Err(Failure::usage("the join token is given twice: as a file and as itself")
                    .hint("leave one of BERTH_JOIN_TOKEN and BERTH_JOIN_TOKEN_FILE out"));
            }
            return Ok(token.clone());
        }
        if let Some(path) = &self.join_token_file {
            return local::read_token(path)?.ok_or_else(|| {
                Failure::new(format!("there is no join token in {}", path.display()))
                    .hint("`berth token show --value join` on the coordinator's machine prints it")
                    .hint("it names the file: BERTH_JOIN_TOKEN_FILE, or --join-token-file")
            });
        }
        // On the coordinator's own machine it lies where the coordinator left it.
        if local::is_loopback(&self.coordinator) {
            let places = [self.state_dir.clone(), local::default_state_dir().ok()];
            for dir in places.into_iter().flatten() {
                if let Some(token) = local::read_token(&local::join_token_path(&dir))? {
                    return Ok(token);
                }
            }
        }
        // It has registered before, and has a credential of its own.
        if berth_worker::credential::is_in(&self.state_dir()?) {
            return Ok(String::new());
        }
        Err(Failure::new("this worker has no token to register with")
            .hint("the coordinator keeps it in <state>/credentials/join.token: `berth token show`")
            .hint(
                "set BERTH_JOIN_TOKEN_FILE to a file that holds it, or BERTH_JOIN_TOKEN to the token itself",
            ))
    }

    fn config(&self) -> Result<Config, Failure> {
        let mut config = self.machine.config(&self.coordinator, &self.join_token()?, &self.state_dir()?);
        config.worker_id.clone_from(&self.worker_id);
        config.base_workspace.clone_from(&self.base_workspace);
        config.data_listen = self.grpc_port.map(|port| SocketAddr::new(self.listen, port));
        config.tls = self.tls_dir.clone().filter(|dir| !dir.as_os_str().is_empty());
        config.insecure_listen = self.insecure_listen;
        Ok(config)
    }
}

impl Serve for WorkerArgs {
    fn serve_args(&self) -> &ServeArgs {
        &self.serve
    }

    fn instead(&self) -> Result<Option<Errand>, Failure> {
        let Some(Instead::Health { probe }) = &self.instead else { return Ok(None) };
        Ok(Some(Errand::Ask(*probe, self.state_dir()?)))
    }

    fn computed(&self) -> Vec<(&'static str, String)> {
        let Ok(state_dir) = self.state_dir() else { return Vec::new() };
        let config = self.machine.config(&self.coordinator, "", &state_dir);
        let shown = |path: &Path| path.display().to_string();
        let size = config.task_defaults.pty_size;
        vec![
            ("base_workspace", shown(config.base_workspace.as_deref().unwrap_or(&state_dir))),
            ("state_dir", shown(&state_dir)),
            ("agent", shown(&config.agent)),
            ("shutdown_grace", output::span(config.shutdown_grace)),
            ("task_timeout", config.task_defaults.timeout.map_or_else(|| "0".to_owned(), output::span)),
            ("pty_size", format!("{}x{}", size.cols, size.rows)),
            ("max_tasks", config.task_defaults.max_concurrent.to_string()),
        ]
    }

    async fn serve(self, mut interrupts: Interrupts) -> CommandResult {
        let config = self.config()?;
        let port = self.metrics.listen().await?;
        let (coordinator, metrics) = (config.coordinator.clone(), config.metrics.clone());
        let running = tokio::select! {
            started = Worker::start(config) => started.map_err(start_failure)?,
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        };
        if let Some(address) = running.data_address() {
            tracing::info!(%address, "the data plane is listening on {address}");
        }
        tracing::info!(worker.id = %running.id(), coordinator, "registering");
        let unready = running.readiness();
        let told = Told::of("worker").with(shown(metrics, vec![running.observer()]));
        let look: Look = Arc::new(move || Box::pin(std::future::ready(unready())));
        let asked = Asked::new(look, told.scrape());
        let _probes = Probes::open(&self.state_dir()?, &asked);
        let _port = Port::open(port, &asked);
        let mut announced = false;
        let failed = loop {
            tokio::select! {
                () = running.ready(), if !announced => {
                    announced = true;
                    asked.started();
                    tracing::info!(worker.id = %running.id(), "ready");
                    let data_plane = running.data_address().map(|address| format!(" {address}"));
                    announce(&self.serve, &format!("{}{}", running.id(), data_plane.unwrap_or_default()))?;
                }
                error = running.wait() => {
                    if logging::only_json() {
                        logging::fail(&error.to_string(), &error.hint_text().map(str::to_owned).into_iter().collect::<Vec<_>>());
                    } else {
                        output::error(&error, error.hint_text());
                    }
                    break true;
                }
                signal = interrupts.recv() => {
                    tracing::info!(signal, "stopping; once more stops at once");
                    break false;
                }
            }
        };
        withdraw(&self.serve);
        if self.on_stop == OnStop::Keep && !failed && running.status().sessions > 0 {
            // As a killed process would leave them: its next start takes them up.
            drop(running);
            tracing::info!("stopped; its sessions live on");
            return Ok(0);
        }
        let stopped = stop(running.shutdown(), &mut interrupts).await?;
        Ok(if failed { code::FAILED } else { stopped })
    }
}

/// The metrics of workers of this process, and what makes them say how those stand.
pub fn shown<F>(metrics: Arc<Metrics>, observers: Vec<F>) -> (Arc<Metrics>, impl Fn() + Send + Sync + 'static)
where
    F: Fn() -> Option<Observed> + Send + Sync + 'static,
{
    let shown = metrics.clone();
    (metrics, move || shown.show(&observers.iter().filter_map(|observe| observe()).collect::<Vec<_>>()))
}

pub fn start_failure(error: StartError) -> Failure {
    Failure::new(error.to_string()).hint(error.hint())
}
