//! What a worker leaves for the agent at [`CONFIG_PATH`] before the sandbox starts:
//! who tasks run as, where things are, and which cgroups the agent may use.
//!
//! A file and not an argument or a variable: tasks could read those. `/.berth` is
//! 0700 and belongs to the agent's uid; all that tasks must not see is below it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::Limits;

/// The agent's own directory inside a sandbox, mode 0700.
pub const BERTH_DIR: &str = "/.berth";
/// The agent's binary, mounted read-only.
pub const AGENT_PATH: &str = "/.berth/agent";
/// This configuration.
pub const CONFIG_PATH: &str = "/.berth/config.json";
/// Name of the agent's socket inside [`AgentConfig::run_dir`].
pub const SOCKET_NAME: &str = "agent.sock";
/// Name of the worker's socket beside it, through which all that leaves the sandbox goes.
pub const DOOR_NAME: &str = "net.sock";
/// The certificates that the worker trusts, where it has any.
pub const CA_PATH: &str = "/run/berth/ca.pem";
/// The session's files.
pub const WORKSPACE: &str = "/workspace";
/// HOME of the tasks' user.
pub const HOME: &str = "/home/user";
/// PATH of every task that does not set its own, behind `~/.local/bin`.
pub const TASK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All paths are as the agent sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    pub session_id: String,
    /// native, docker or fake: for messages only.
    pub backend: String,
    pub user: User,
    /// Relative paths and tasks without a cwd start here.
    pub workspace: PathBuf,
    /// Holds the socket.
    pub run_dir: PathBuf,
    /// Holds the spool: one directory a task.
    pub spool_dir: PathBuf,
    pub cgroups: Cgroups,
    /// Whether tasks and the agent itself get the seccomp filter. False only where the kernel has none and
    /// the operator allowed that.
    pub seccomp: bool,
    /// Bytes of all output of the session that is kept on the worker's disk.
    #[serde(default = "spools_bytes")]
    pub spools_bytes: u64,
    /// Where tasks write beside [`AgentConfig::workspace`] and their home: what is in memory. What is not there is
    /// left out.
    #[serde(default = "memory_files")]
    pub writable: Vec<PathBuf>,
    /// Bytes that a file may say it has, holes included ([`file_bytes`]). `None`: no bound.
    #[serde(default)]
    pub file_bytes: Option<u64>,
}

/// What agents kept before there was a word for it: sandboxes live on while the worker changes.
fn spools_bytes() -> u64 {
    512 << 20
}

/// The largest that a file of a session may say it is: its disk limit, or its memory limit where that is more, since
/// files in memory (`/dev/shm`, memfd) may be as large.
pub fn file_bytes(limits: &Limits) -> u64 {
    limits.disk_bytes.max(limits.memory_bytes)
}

/// The file systems in memory that each sandbox has, and the message queues of its own IPC namespace, as files.
pub fn memory_files() -> Vec<PathBuf> {
    ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"].map(PathBuf::from).to_vec()
}

/// Who tasks and file operations run as: numbers, never a name that is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

/// The session's cgroups, made by the worker. Each path is a directory that has a
/// child `t`, in which the agent puts tasks. Limits are set on `t` by the worker and
/// can't be changed from inside; the agent itself lives outside of `t`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroups {
    /// Under a cgroup v2 mount: `t/<task>` is made for each task; `cgroup.kill`,
    /// `cgroup.freeze` and `cpu.stat` are there. With [`Cgroups::v2_memory`] so is memory.
    /// None: the machine has no v2 mount, or it can't be written: walk /proc instead.
    pub v2: Option<PathBuf>,
    /// The memory controller is on the v2 mount.
    pub v2_memory: bool,
    /// The v1 memory controller: `t/<task>` is made for each task.
    pub v1_memory: Option<PathBuf>,
    /// Other v1 controllers (pids, cpu, ...): tasks join `t` itself.
    pub v1_shared: Vec<PathBuf>,
}
