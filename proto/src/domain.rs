//! The words of ARCHITECTURE.md as types. A value of these types is valid by
//! construction: only [`crate::convert`] makes them from what came over a wire.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

pub use crate::egress::{Egress, Preset};
use crate::ids::{Epoch, SessionId, TaskId};

/// Name → value; sorted, so that equal maps look equal.
pub type Labels = BTreeMap<String, String>;

/// What a session may use. All set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub pids: u32,
}

/// Limits as asked for: what is left out comes from the template.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitsPatch {
    pub cpu_millis: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub pids: Option<u32>,
}

impl LimitsPatch {
    /// These limits, with the gaps filled from `base`.
    pub fn over(self, base: Limits) -> Limits {
        Limits {
            cpu_millis: self.cpu_millis.unwrap_or(base.cpu_millis),
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            disk_bytes: self.disk_bytes.unwrap_or(base.disk_bytes),
            pids: self.pids.unwrap_or(base.pids),
        }
    }
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtySize {
    pub cols: u16,
    pub rows: u16,
}

/// Defaults for the tasks of a session. All set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskDefaults {
    /// `None`: no limit.
    pub timeout: Option<Duration>,
    pub pty_size: PtySize,
    pub max_concurrent: u32,
}

impl Default for TaskDefaults {
    /// The figures of the first issue: 300 s, 80x24, and 32 tasks at a time.
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(300)),
            pty_size: PtySize { cols: 80, rows: 24 },
            max_concurrent: 32,
        }
    }
}

/// Task defaults as asked for. `timeout: Some(None)` is "no limit".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TaskDefaultsPatch {
    pub timeout: Option<Option<Duration>>,
    pub pty_size: Option<PtySize>,
    pub max_concurrent: Option<u32>,
}

impl From<TaskDefaults> for TaskDefaultsPatch {
    fn from(all: TaskDefaults) -> Self {
        Self {
            timeout: Some(all.timeout),
            pty_size: Some(all.pty_size),
            max_concurrent: Some(all.max_concurrent),
        }
    }
}

impl TaskDefaultsPatch {
    /// These defaults, with the gaps filled from `base`.
    pub fn over(self, base: TaskDefaults) -> TaskDefaults {
        TaskDefaults {
            timeout: self.timeout.unwrap_or(base.timeout),
            pty_size: self.pty_size.unwrap_or(base.pty_size),
            max_concurrent: self.max_concurrent.unwrap_or(base.max_concurrent),
        }
    }

    /// These wishes, with the gaps filled from others, as far as those go.
    pub fn or(self, base: TaskDefaultsPatch) -> TaskDefaultsPatch {
        TaskDefaultsPatch {
            timeout: self.timeout.or(base.timeout),
            pty_size: self.pty_size.or(base.pty_size),
            max_concurrent: self.max_concurrent.or(base.max_concurrent),
        }
    }
}

/// How a session is kept apart from the rest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Backend {
    Native,
    Docker,
    Fake,
}

impl Backend {
    pub const ALL: [Backend; 3] = [Backend::Native, Backend::Docker, Backend::Fake];

    pub fn as_str(self) -> &'static str {
        match self {
            Backend::Native => "native",
            Backend::Docker => "docker",
            Backend::Fake => "fake",
        }
    }
}

/// A backend, or the worker's choice: native where its preflight passes, else docker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendChoice {
    #[default]
    Auto,
    Only(Backend),
}

impl BackendChoice {
    pub fn as_str(self) -> &'static str {
        match self {
            BackendChoice::Auto => "auto",
            BackendChoice::Only(backend) => backend.as_str(),
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `Pending → Placed → Ready ⇄ Paused → Ending → Ended`, and `Paused → Parked → Pending`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum SessionState {
    Pending,
    Placed,
    Ready,
    Paused,
    /// Its files are in a checkpoint, and nothing of it runs anywhere.
    Parked,
    Ending,
    Ended,
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EndReason {
    Deleted,
    TtlExpired,
    Idle,
    NoPlace,
    WorkerLost,
    SandboxFailed,
    Drained,
    Abandoned,
    /// Of a sandbox only: its session is parked.
    Parked,
}

impl EndReason {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::TtlExpired => "ttl_expired",
            Self::Idle => "idle",
            Self::NoPlace => "no_place",
            Self::WorkerLost => "worker_lost",
            Self::SandboxFailed => "sandbox_failed",
            Self::Drained => "drained",
            Self::Abandoned => "abandoned",
            Self::Parked => "parked",
        }
    }
}

/// How a task ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    Exited(i32),
    Signaled(i32),
    TimedOut,
    OutOfMemory,
    OutputLimit,
    Cancelled,
    SessionEnded,
    WorkerLost,
    SandboxFailed,
}

/// What a task used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub cpu_user: Duration,
    pub cpu_system: Duration,
    /// 0: the machine can't tell.
    pub peak_memory_bytes: u64,
    pub oom_kills: u64,
}

/// What a task runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Program {
    /// Never empty.
    Argv(Vec<String>),
    Shell(String),
}

/// When a task's time is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// The session's default; none for a detached task.
    Default,
    Never,
    After(Duration),
}

/// A task as asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct TaskSpec {
    pub program: Program,
    /// As given: relative to the workspace, or absolute. Empty: the workspace.
    pub cwd: String,
    pub env: Labels,
    pub timeout: Timeout,
    /// Total over both streams.
    pub output_limit: Option<u64>,
    /// Kept of each stream.
    pub spool_bytes: u64,
    /// `Some(None)`: a terminal of the session's default size.
    pub pty: Option<Option<PtySize>>,
    pub stdin: bool,
    pub detached: bool,
    pub reattach_grace: Duration,
    pub secrets: Vec<SecretUse>,
}

/// A secret that a task is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretUse {
    /// A [`crate::secret::name`].
    pub name: String,
    /// The variable that holds it. `None`: a file in [`crate::secret::DIR`].
    pub env: Option<String>,
}

/// Which kernel a context shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelChoice {
    /// ipykernel where the interpreter has it, else our own.
    Best,
    Ipykernel,
    Builtin,
}

/// A context of an interpreter as asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct ContextSpec {
    /// As given: relative to the workspace, or absolute. Empty: the workspace.
    pub cwd: String,
    pub env: Labels,
    pub kernel: KernelChoice,
    /// A path, or a name to look up in PATH.
    pub executable: String,
    pub request_id: Option<String>,
}

/// Code for a context.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execution {
    pub code: String,
    pub timeout: Timeout,
    /// Bytes that are kept of what comes of it.
    pub output_limit: u64,
    /// Variables that it alone has, on top of its context's.
    pub env: Labels,
    pub request_id: Option<String>,
}

/// A session as asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct CreateSession {
    pub request_id: Option<String>,
    pub template: String,
    pub limits: LimitsPatch,
    pub env: Labels,
    pub labels: Labels,
    /// `None`: the template's. `Some(None)`: no end.
    pub ttl: Option<Option<Duration>>,
    pub idle_timeout: Option<Option<Duration>>,
    pub worker_selector: Labels,
    pub priority: i32,
    pub wait_for_place: Duration,
    /// `wait_for_place` was given, and not left to the default.
    pub patient: bool,
    pub task_defaults: TaskDefaultsPatch,
    pub on_worker_loss: OnWorkerLoss,
    pub checkpoints: CheckpointPolicy,
    /// `None`: the template's.
    pub egress: Option<Egress>,
}

/// What becomes of a session whose worker is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnWorkerLoss {
    #[default]
    End,
    Restore,
}

/// When checkpoints are taken without being asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointPolicy {
    pub interval: Option<Duration>,
    pub on_drain: bool,
    pub before_delete: bool,
    pub keep: u32,
    pub keep_for: Duration,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self {
            interval: None,
            on_drain: false,
            before_delete: false,
            keep: 3,
            keep_for: Duration::from_secs(7 * 86_400),
        }
    }
}

/// A checkpoint, as far as a worker has to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreFrom {
    pub checkpoint: String,
    /// Digest of the root piece.
    pub root: [u8; 32],
}

/// What a worker needs to know of a template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateSpec {
    pub name: String,
    /// native: an unpacked root directory on the worker. `None`: the host's `/usr`.
    pub root: Option<String>,
    /// docker: the image. `None`: the worker's default.
    pub image: Option<String>,
    pub backend: BackendChoice,
    pub user: String,
}

/// A placement, as a worker receives it.
#[derive(Clone, PartialEq, Eq)]
pub struct Placement {
    pub session: SessionId,
    pub epoch: Epoch,
    pub template: TemplateSpec,
    pub limits: Limits,
    pub env: Labels,
    pub created_at: SystemTime,
    /// For people: what counts is `expires_in`.
    pub expires_at: Option<SystemTime>,
    /// What was left of its time to live as it was sent.
    pub expires_in: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// What it leaves out is the worker's.
    pub task_defaults: TaskDefaultsPatch,
    pub start_timeout: Duration,
    /// `None`: it begins empty.
    pub restore: Option<RestoreFrom>,
    /// Its agent holds a fence.
    pub fenced: bool,
    /// Before its worker leaves in order the coordinator takes a checkpoint of it, and says what becomes of it.
    pub checkpoint_on_drain: bool,
    pub egress: Egress,
}

/// What a worker has to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub max_sessions: u32,
}

/// A task in a session: what every data-plane call but the first names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TaskRef {
    pub session: SessionId,
    pub task: TaskId,
}
