//! What a worker is told, and what can keep it from starting.
//!
//! The command line fills [`Config`] in (`GRPC_PORT`, `WORKER_ID`, ... are its names, not
//! ours); everything that may vary, tests included, is a field here and no variable.

use std::{
    ffi::OsString,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::{
    WorkerId,
    domain::{Backend, BackendChoice, Labels},
};

use crate::sandbox::fake;

/// Settings of one worker.
#[derive(Clone)]
pub struct Config {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// Presented with each attach. Never logged.
    pub join_token: String,
    /// `None`: a unique id that is stored in the state directory.
    pub worker_id: Option<WorkerId>,
    pub state_dir: PathBuf,
    /// Sessions live under `<this>/sessions`. `None`: the state directory. At most 45 bytes long, for
    /// the sake of the agents' sockets.
    pub base_workspace: Option<PathBuf>,
    pub max_sessions: u32,
    pub sandbox: BackendChoice,
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
    /// Not ready with less free disk than this.
    pub disk_margin_bytes: u64,
    /// Time that a session's tasks have between TERM and KILL when it ends.
    pub end_grace: Duration,
    /// Time that sessions have to end by themselves on shutdown; after it they are ended.
    pub shutdown_grace: Duration,
    /// Calls, watching streams included, that one session may have open at once.
    pub session_calls: usize,
    /// The worker's own data-plane listener. `None`: nothing listens.
    pub data_listen: Option<SocketAddr>,
    /// For `sandbox: fake` only.
    pub fake: fake::Settings,
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
            max_sessions: 5,
            sandbox: BackendChoice::Auto,
            agent: program.parent().unwrap_or(Path::new(".")).join("berth-agent"),
            launcher: vec![program.into(), "__launcher".into()],
            labels: Labels::new(),
            capacity: CapacityOverride::default(),
            canary_interval: Duration::from_secs(60),
            canary_timeout: Duration::from_secs(20),
            docker_image: "berth/sandbox:base".to_owned(),
            disk_margin_bytes: 256 << 20,
            end_grace: Duration::from_secs(2),
            shutdown_grace: Duration::from_secs(10),
            session_calls: 256,
            data_listen: None,
            fake: fake::Settings::default(),
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
    #[error("{0}")]
    Config(String),
    #[error("the sandbox backend `{backend}` can't be used here: {problems}")]
    Backend { backend: Backend, problems: String, hint: String },
    #[error("no sandbox backend can be used here: {problems}")]
    NoBackend { problems: String, hint: String },
    #[error("can't listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}

impl StartError {
    /// What to do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::State { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("use a directory that this user can write, or run as root".to_owned())
            }
            Self::State { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Some("set BASE_WORKSPACE to a shorter path".to_owned())
            }
            Self::Locked { .. } => {
                Some("stop it first, or give this worker a state directory of its own".to_owned())
            }
            Self::Backend { hint, .. } | Self::NoBackend { hint, .. } => {
                (!hint.is_empty()).then(|| hint.clone())
            }
            Self::Listen { .. } => Some("set GRPC_PORT to a free port, or leave it out".to_owned()),
            Self::State { .. } | Self::Config(_) => None,
        }
    }
}
