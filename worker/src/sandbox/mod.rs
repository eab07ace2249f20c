//! Sandboxes: how a session is kept apart from the rest. One trait, three backends:
//! `native` (our own launcher over namespaces and cgroups), `docker` (the Engine API)
//! and `fake` (in memory, for tests of everything else).
//!
//! A backend only starts and removes sandboxes. What happens inside is the agent's
//! business, and is the same for all: a backend hands out a channel to it.
//!
//! Everything that a backend makes carries the worker's instance id and the session id,
//! so that it can be found and removed after any crash, and nothing else ever is.

pub mod cgroup;
pub mod docker;
pub mod fake;
pub mod landlock;
pub mod memory_files;
pub mod native;

use std::path::PathBuf;

use async_trait::async_trait;
use berth_proto::{
    Error, SessionId,
    agent_config::User,
    domain::{Backend, Limits, TemplateSpec},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// What of `/proc` tells about the host or its other tenants, and no program of a task needs: both
/// backends hide it, where the kernel has it.
pub const PROC_HIDDEN: [&str; 36] = [
    "/proc/buddyinfo",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/consoles",
    "/proc/diskstats",
    "/proc/dma",
    "/proc/driver",
    "/proc/execdomains",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/irq",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/lock_stat",
    "/proc/misc",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/proc/vmcore",
    "/proc/zoneinfo",
];

/// Open files of a process: what it starts with, and what it may ask for.
pub const NOFILE: (u64, u64) = (4096, 16_384);
/// Locked memory of a process, in bytes; the kernel's own old default. A task has no use for more.
pub const MEMLOCK: u64 = 64 << 10;

/// What a backend needs to start a sandbox. The directories exist when it is called,
/// made by [`crate::workspace`]; ownership is the backend's to set, since it draws the ids.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    pub session: SessionId,
    pub template: TemplateSpec,
    pub limits: Limits,
    /// Memory that the session's files may take on top of its limit.
    pub files_in_memory: u64,
    pub dirs: SessionDirs,
}

impl SandboxSpec {
    /// The limits as tasks are held to them: with the memory that their files may take.
    pub fn charged(&self) -> Limits {
        Limits { memory_bytes: self.limits.memory_bytes.saturating_add(self.files_in_memory), ..self.limits }
    }
}

/// Where a session lives on the worker's disk.
#[derive(Clone, Debug)]
pub struct SessionDirs {
    /// `<state>/sessions/<session id>`, 0711.
    pub root: PathBuf,
}

impl SessionDirs {
    /// Becomes `/.berth` inside: `run/`, `spool/`, `config.json`. 0700, the agent's.
    pub fn berth(&self) -> PathBuf {
        self.root.join("berth")
    }
    /// Holds the agent's socket.
    pub fn run(&self) -> PathBuf {
        self.berth().join("run")
    }
    pub fn spool(&self) -> PathBuf {
        self.berth().join("spool")
    }
    /// Holds the two that follow: a file system of its own, where the worker can make one.
    pub fn files(&self) -> PathBuf {
        self.root.join("files")
    }
    /// The image of that file system, if it is in one.
    pub fn image(&self) -> PathBuf {
        self.root.join("files.img")
    }
    /// Becomes `/workspace`. 0755, the user's.
    pub fn workspace(&self) -> PathBuf {
        self.files().join("workspace")
    }
    /// Becomes `/home/user`. 0755, the user's.
    pub fn home(&self) -> PathBuf {
        self.files().join("home")
    }
    /// A copy of the certificates that the worker trusts, where it has any: [`berth_proto::agent_config::CA_PATH`] inside.
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }
    /// What the agent prints.
    pub fn agent_log(&self) -> PathBuf {
        self.root.join("agent.log")
    }
    /// The backend's note of what it made: its [`Identity`] as JSON.
    pub fn identity(&self) -> PathBuf {
        self.root.join("sandbox.json")
    }
}

/// Enough to find a sandbox again after the worker's restart, and never to mistake
/// another for it: a process by pid and start time, a container by id and label.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase")]
pub enum Identity {
    Native {
        session: String,
        pid: i32,
        /// Field 22 of /proc/PID/stat: clock ticks since boot.
        start_time: u64,
        /// First host uid of the session's range.
        uid_base: u32,
    },
    Docker {
        session: String,
        container: String,
        uid: u32,
    },
    Fake {
        session: String,
    },
}

impl Identity {
    /// Whose it is.
    pub fn session(&self) -> &str {
        match self {
            Self::Native { session, .. } | Self::Docker { session, .. } | Self::Fake { session } => session,
        }
    }
}

/// A started sandbox.
pub struct Running {
    pub identity: Identity,
    /// To the agent's services.
    pub agent: Channel,
    /// Cancelled when the sandbox is gone, for whatever reason.
    pub gone: CancellationToken,
    /// Who tasks run as, for messages.
    pub user: User,
}

/// Whether a backend can be used here, and how well.
#[derive(Clone, Debug, Default)]
pub struct Preflight {
    /// What keeps it from working. Empty: it works.
    pub problems: Vec<Problem>,
    /// What of it is weaker here than it should be, each a sentence.
    pub weaker: Vec<String>,
    /// What is in force, each a few words: "cgroup hybrid", "seccomp", ...
    pub facts: Vec<String>,
}

/// One thing that is wrong with this machine, and what to do about it.
#[derive(Clone, Debug)]
pub struct Problem {
    pub what: String,
    pub hint: String,
}

impl Preflight {
    pub fn ready(&self) -> bool {
        self.problems.is_empty()
    }

    /// Both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let join = |a: &[String], b: &[String]| [a, b].concat();
        Self {
            problems: [&self.problems[..], &other.problems].concat(),
            weaker: join(&self.weaker, &other.weaker),
            facts: join(&self.facts, &other.facts),
        }
    }

    /// One line for a status or a log.
    pub fn summary(&self) -> String {
        if self.ready() {
            let mut parts = self.facts.clone();
            parts.extend(self.weaker.iter().map(|w| format!("weaker: {w}")));
            parts.join(", ")
        } else {
            self.problems.iter().map(|p| format!("{} ({})", p.what, p.hint)).collect::<Vec<_>>().join("; ")
        }
    }
}

/// A way to make sandboxes.
#[async_trait]
pub trait SandboxBackend: Send + Sync + 'static {
    fn backend(&self) -> Backend;

    /// Looks at the machine. Makes nothing that outlives the call.
    async fn preflight(&self) -> Preflight;

    /// Whether this backend can serve a template here (its image or root is present).
    async fn can_serve(&self, template: &TemplateSpec) -> Result<(), Error>;

    /// Starts a sandbox. On an error nothing of it is left. The agent may need a moment
    /// before it answers: the caller asks it until its own deadline.
    async fn start(&self, spec: &SandboxSpec) -> Result<Running, Error>;

    /// Finds a sandbox that an earlier process of this worker started. `None`: it is gone,
    /// or it is not the one that `identity` names.
    async fn adopt(&self, identity: &Identity, dirs: &SessionDirs) -> Result<Option<Running>, Error>;

    /// Kills all that is in a sandbox and removes it, cgroups included. The directories stay.
    /// Idempotent.
    async fn remove(&self, identity: &Identity) -> Result<(), Error>;

    /// Sessions of which this instance has something left, whether or not it works.
    async fn leftovers(&self) -> Result<Vec<Identity>, Error>;

    /// Removes what the instance made for itself. Called when no session is left and none
    /// will come.
    async fn close(&self) {}
}
