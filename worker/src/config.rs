//! What a worker is told, and what can keep it from starting.
//!
//! The command line fills [`Config`] in (`GRPC_PORT`, `WORKER_ID`, ... are its names, not
//! ours); everything that may vary, tests included, is a field here and no variable.

use std::{
    ffi::OsString,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    WorkerId,
    convert::bounds,
    domain::{Backend, BackendChoice, Labels, TaskDefaults},
};

use crate::{egress, metrics::Metrics, sandbox::fake, workspace::store};

/// Settings of one worker.
#[derive(Clone)]
pub struct Config {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// What it registers with. May be empty where it has a credential of its own. Never logged.
    pub join_token: String,
    /// `None`: a unique id that is stored in the state directory.
    pub worker_id: Option<WorkerId>,
    pub state_dir: PathBuf,
    /// Sessions live under `<this>/sessions`. `None`: the state directory. At most 44 bytes long, for
    /// the sake of the agents' sockets.
    pub base_workspace: Option<PathBuf>,
    /// What holds sessions' files to their size. Fake sandboxes need nothing: theirs are in memory.
    pub workspace: store::Choice,
    pub max_sessions: u32,
    pub sandbox: BackendChoice,
    /// Native sandboxes although the worker is its container's main process, so that a restart of it ends them.
    pub native_in_container: bool,
    /// The static `berth-agent`.
    pub agent: PathBuf,
    /// The command line that starts the native backend's launcher.
    pub launcher: Vec<OsString>,
    pub labels: Labels,
    pub capacity: CapacityOverride,
    /// How often a canary runs. It also paces the other looks at the backends.
    pub canary_interval: Duration,
    /// A canary that takes longer has failed.
    pub canary_timeout: Duration,
    /// The image of docker sandboxes whose template names none.
    pub docker_image: String,
    /// The engine's runtime for sandboxes, by the engine's name for it. `None`: the engine's default.
    pub docker_runtime: Option<String>,
    /// Not ready with less free disk than this.
    pub disk_margin_bytes: u64,
    /// Time that a session's tasks have between TERM and KILL when it ends.
    pub end_grace: Duration,
    /// Time that running tasks have to end by themselves on shutdown; after it their sessions are ended.
    /// A session in which nothing runs is ended at once.
    pub shutdown_grace: Duration,
    /// Calls, watching streams included, that one session may have open at once.
    pub session_calls: usize,
    /// For tasks whose session and template say nothing.
    pub task_defaults: TaskDefaults,
    /// The worker's own data-plane listener. `None`: nothing listens.
    pub data_listen: Option<SocketAddr>,
    /// The directory with the CA's certificate and this worker's, or the CA's own. `None`: no TLS.
    pub tls: Option<PathBuf>,
    /// Listen beyond loopback although there is no TLS.
    pub insecure_listen: bool,
    /// What of the network sessions may have here.
    pub egress: egress::Settings,
    /// For `sandbox: fake` only.
    pub fake: fake::Settings,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// What the worker offers, where that is not what the machine has.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapacityOverride {
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
}

impl Config {
    /// Defaults for all but the four that have none. The agent is looked for beside this program, and the launcher is
    /// this program with `__launcher`.
    pub fn new(
        coordinator: impl Into<String>,
        join_token: impl Into<String>,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("berth"));
        Self {
            coordinator: coordinator.into(),
            join_token: join_token.into(),
            worker_id: None,
            state_dir: state_dir.into(),
            base_workspace: None,
            workspace: store::Choice::Auto,
            max_sessions: 5,
            sandbox: BackendChoice::Auto,
            native_in_container: false,
            agent: program.parent().unwrap_or(Path::new(".")).join("berth-agent"),
            launcher: vec![program.into(), "__launcher".into()],
            labels: Labels::new(),
            capacity: CapacityOverride::default(),
            canary_interval: Duration::from_secs(60),
            canary_timeout: Duration::from_secs(20),
            docker_image: "berth/sandbox:base".to_owned(),
            docker_runtime: None,
            disk_margin_bytes: 256 << 20,
            end_grace: Duration::from_secs(2),
            shutdown_grace: Duration::from_secs(10),
            session_calls: 256,
            task_defaults: TaskDefaults::default(),
            data_listen: None,
            tls: None,
            insecure_listen: false,
            egress: egress::Settings::default(),
            fake: fake::Settings::default(),
            metrics: Arc::default(),
        }
    }

    /// What of it can't be, before anything is touched.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let wrong = |what, hint| Err(StartError::Config { what, hint });
        if self.join_token.is_empty() && !crate::credential::is_in(&self.state_dir) {
            return wrong(
                "no join token was given",
                "`berth token show --value join` on the coordinator's machine prints it: BERTH_JOIN_TOKEN_FILE",
            );
        }
        if self.max_sessions == 0 {
            return wrong(
                "MAX_SESSIONS is 0: this worker could take nothing",
                "set it to 1 or more, or leave it out",
            );
        }
        if self.task_defaults.timeout.is_some_and(|timeout| timeout > bounds::DURATION_MAX) {
            return wrong("BERTH_TASK_TIMEOUT is longer than ten years", "0 means no timeout");
        }
        if self.task_defaults.max_concurrent == 0 {
            return wrong(
                "BERTH_MAX_TASKS is 0: no session could run anything",
                "set it to 1 or more, or leave it out for 32",
            );
        }
        if self.task_defaults.max_concurrent > bounds::CONCURRENT_MAX {
            return wrong("BERTH_MAX_TASKS is more than a session may have", "set it to at most 65536");
        }
        match self.data_listen {
            Some(address) if !address.ip().is_loopback() && self.tls.is_none() && !self.insecure_listen => {
                Err(StartError::Exposed { address })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Config {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("coordinator", &self.coordinator)
            .field("worker_id", &self.worker_id)
            .field("state_dir", &self.state_dir)
            .field("sandbox", &self.sandbox)
            .finish_non_exhaustive()
    }
}

/// Why a worker did not start. [`StartError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{path}: {source}", path = path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("another worker{} uses the state directory {}", pid.map(|p| format!(" (pid {p})")).unwrap_or_default(), path.display())]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("{what}")]
    Config { what: &'static str, hint: &'static str },
    #[error("the sandbox backend `{backend}` can't be used here: {problems}")]
    Backend { backend: Backend, problems: String, hint: String },
    #[error("no sandbox backend can be used here: {problems}")]
    NoBackend { problems: String, hint: String },
    #[error("{what}")]
    Workspace { what: String, hint: String },
    #[error("{address} can be reached from other machines, and there is no TLS")]
    Exposed { address: SocketAddr },
    #[error(transparent)]
    Tls(#[from] berth_net::Error),
    #[error("can't listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl StartError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::State { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "use a directory that this user can write, or run as root",
                io::ErrorKind::InvalidInput => "set BASE_WORKSPACE to a shorter path",
                io::ErrorKind::StorageFull => "make room on that disk, or set BERTH_STATE_DIR to another one",
                _ => "look at the disk under that path, or set BERTH_STATE_DIR to another one",
            },
            Self::Locked { .. } => "stop it first, or give this worker a state directory of its own",
            Self::Config { hint, .. } => hint,
            Self::Backend { hint, .. } | Self::NoBackend { hint, .. } if hint.is_empty() => {
                "`berth doctor` says what each backend lacks here"
            }
            Self::Backend { hint, .. } | Self::NoBackend { hint, .. } | Self::Workspace { hint, .. } => hint,
            Self::Exposed { .. } => {
                "give this worker a certificate (`berth tls worker ID --host NAME`, BERTH_TLS_DIR), listen on 127.0.0.1 \
                 (BERTH_LISTEN), or allow it on a network that you trust: BERTH_INSECURE_LISTEN=true"
            }
            Self::Tls(error) => return error.hint(),
            Self::Listen { .. } => "set GRPC_PORT to a free port, or leave it out",
        };
        hint.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Config)) -> Option<StartError> {
        let mut config = Config::new("localhost:1", "token", "/nowhere");
        change(&mut config);
        config.check().err()
    }

    #[test]
    fn a_listener_beyond_loopback_must_be_wanted() {
        let listen = |address: &str, insecure_listen| {
            let address = address.parse().unwrap();
            problem(|config| {
                config.data_listen = Some(address);
                config.insecure_listen = insecure_listen;
            })
        };
        for address in ["0.0.0.0:0", "10.0.0.1:5", "[::]:0", "[2001:db8::1]:5"] {
            let error = listen(address, false).expect("it can be reached from elsewhere");
            assert!(error.hint().contains("BERTH_INSECURE_LISTEN"), "{address}");
            assert!(listen(address, true).is_none(), "{address}");
        }
        for address in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:0"] {
            assert!(listen(address, false).is_none(), "{address}");
        }
        assert!(problem(|_| {}).is_none(), "nothing listens by default");
    }

    /// Red when `check` does not look at `tls`.
    #[test]
    fn with_tls_a_listener_may_be_reached() {
        let with_tls = |config: &mut Config| {
            config.data_listen = Some(([0, 0, 0, 0], 0).into());
            config.tls = Some("/tls".into());
        };
        assert!(problem(with_tls).is_none());
    }

    #[test]
    fn what_could_serve_nothing_is_refused() {
        let changes: [fn(&mut Config); 5] = [
            |config| config.join_token.clear(),
            |config| config.max_sessions = 0,
            |config| config.task_defaults.max_concurrent = 0,
            |config| config.task_defaults.max_concurrent = u32::MAX,
            |config| config.task_defaults.timeout = Some(Duration::MAX),
        ];
        for change in changes {
            let error = problem(change).expect("it could serve nothing");
            assert!(!error.hint().is_empty(), "{error} says nothing of what to do");
        }
    }
}
