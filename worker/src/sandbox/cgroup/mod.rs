//! The cgroups of sessions. One tree per worker instance in every hierarchy that matters,
//! below the worker's own cgroup, so that whatever bounds the worker bounds its sessions too:
//!
//! ```text
//! <hierarchy>/<own path>/berth-<instance>/<session>/        one session
//!                                          ├─ agent/        PID 1 and its server
//!                                          └─ t/            all limits are set here
//!                                             └─ <task>/    made by the agent, one a task
//! ```
//!
//! The CPU limit is set once more on the session's directory, with a little more for the agent alone: what the agent does is done for
//! the session, and one that floods it with output would have a core on top of its own.
//!
//! A session's directory is mounted into its sandbox where only the agent can see it. The
//! agent may make children of `t` and move processes below the session; the limits on `t`
//! stay the worker's. (A v1 child can't be called `tasks`: that is a file there.)
//!
//! Three layouts: pure v2; v1; and hybrid, where controllers are on v1 while `cgroup.kill`,
//! `cgroup.freeze` and `cpu.stat` are taken from the v2 mount, which needs no controller
//! for them. Which is in force is told at start.

mod file;
mod hierarchy;
mod limits;
mod remove;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_proto::{Error, SessionId, agent_config::Cgroups, domain::Limits};

use self::{
    file::{ignore_invalid, ignore_missing, mkdir, write},
    hierarchy::{enable, hierarchies, make, missing, named, namespaces_are_walls, v2_parent},
    limits::{AGENT_PIDS, CPU_PERIOD_US, delegate, limit_memory_v1, limit_v2, quota, quota_of_all, shares},
    remove::{remove_dirs, remove_tree, wait_for_change},
};
pub use self::{hierarchy::SUPERVISOR, limits::AGENT_MEMORY};

/// The cgroups of an instance, wherever a process of it made them: one that was started from another cgroup, whose sandboxes may live
/// on there. Looks through the whole of each hierarchy, which is mounted there, or anywhere.
///
/// # Errors
/// FAILED_PRECONDITION when the mounts can't be read.
pub fn earlier(instance: &str, mounted: Option<&Path>) -> Result<Vec<PathBuf>, Error> {
    let name = format!("berth-{instance}");
    anywhere(mounted, &|found| found == name)
}

/// Removes cgroups that doctors left which were killed: those in which no process is, some minutes later. (Whether one lives is not to be
/// known by a number: it may be in a container.)
pub fn sweep_doctors() {
    let old = |dir: &Path| {
        let made = dir.metadata().and_then(|meta| meta.modified());
        made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > DOCTOR_OVER))
    };
    let found = anywhere(None, &|name| name.starts_with("berth-doctor-")).unwrap_or_default();
    for dir in found.iter().filter(|dir| old(dir)) {
        if let Err(error) = remove_dirs(dir) {
            tracing::debug!(%error, dir = %dir.display(), "a cgroup of a doctor stays");
        }
    }
}

fn anywhere(mounted: Option<&Path>, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
    let mountinfo = read("/proc/self/mountinfo")?;
    let mountinfo = mounted.map_or(mountinfo.clone(), |mounted| below(&mountinfo, mounted));
    Ok(named(&hierarchies(&mountinfo, AT_THE_ROOT), wanted))
}

/// How long the processes of a killed session may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// A doctor is done by then.
const DOCTOR_OVER: Duration = Duration::from_secs(300);
/// How long a process that has ended may be told to be in its cgroup.
const EMPTY_WAIT: Duration = Duration::from_secs(1);

/// Which cgroup versions hold the controllers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    V1,
    Hybrid,
    V2,
}

impl Layout {
    pub fn as_str(self) -> &'static str {
        match self {
            Layout::V1 => "v1",
            Layout::Hybrid => "v1-hybrid",
            Layout::V2 => "v2",
        }
    }
}

/// This instance's part of each hierarchy.
#[derive(Clone, Debug)]
pub struct CgroupTree {
    layout: Layout,
    /// `unified`, `memory`, `pids`, `cpu` → `.../berth-<instance>`.
    bases: BTreeMap<&'static str, PathBuf>,
    /// The same of an earlier process, which was started from another cgroup: its sandboxes may live on there.
    earlier: Vec<PathBuf>,
    /// See [`hierarchy::namespaces_are_walls`].
    namespaces_are_walls: bool,
}

/// The cgroups of one session.
#[derive(Debug)]
pub struct SessionCgroups {
    layout: Layout,
    /// The cgroup namespace that its sandbox is to be born in. `None`: it makes one for itself.
    pub namespace: Option<OwnedFd>,
    /// Host directory and name, for mounting at `<inside>/<name>`.
    pub binds: Vec<(PathBuf, String)>,
}

/// Makes a cgroup namespace whose root is this directory of v2, which has no controllers for its children yet, and those of v1.
pub type MakeNamespace<'a> = dyn Fn(&Path, &[PathBuf]) -> io::Result<OwnedFd> + 'a;

/// Gives a directory of v2 controllers. Who was in it is waited for, but is in it for a moment more on Linux 6.19 and newer.
fn enable_when_empty(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_WAIT;
    loop {
        match write(&dir.join("cgroup.subtree_control"), "+memory +pids +cpu") {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                wait_for_change(dir);
            }
            done => return done,
        }
    }
}

/// The lines of what is mounted at a directory or below it.
fn below(mountinfo: &str, dir: &Path) -> String {
    let is_below =
        |line: &&str| line.split(' ').nth(4).is_some_and(|mount| Path::new(mount).starts_with(dir));
    mountinfo.lines().filter(is_below).collect::<Vec<_>>().join("\n")
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause| missing(format!("{path} can't be read: {cause}")).cause(cause))
}

/// /proc/self/cgroup of a process that is at the root of each hierarchy.
const AT_THE_ROOT: &str = "1:memory,pids,cpu:/\n0::/";

/// v1 controllers that limits need.
const V1: [&str; 3] = ["memory", "pids", "cpu"];

impl CgroupTree {
    /// Finds the hierarchies and makes this instance's directory in each.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, naming what is missing or can't be written.
    pub fn detect(instance: &str) -> Result<Self, Error> {
        let mountinfo = read("/proc/self/mountinfo")?;
        let own = read("/proc/self/cgroup")?;
        Self::from_proc(&mountinfo, &own, instance)
    }

    /// The same below the root of the host's hierarchies, which are mounted there: for a process in a container, whose own
    /// cgroup goes with that.
    ///
    /// # Errors
    /// As [`Self::detect`].
    pub fn of_host(instance: &str, mounted: &Path) -> Result<Self, Error> {
        let mountinfo = read("/proc/self/mountinfo")?;
        Self::from_proc(&below(&mountinfo, mounted), AT_THE_ROOT, instance)
    }

    fn from_proc(mountinfo: &str, own: &str, instance: &str) -> Result<Self, Error> {
        let found = hierarchies(mountinfo, own);
        let name = format!("berth-{instance}");
        let on_v1 = V1.iter().filter(|c| found.contains_key::<str>(c)).count();
        let mut bases = BTreeMap::new();
        let layout = match (found.get("unified"), on_v1) {
            (unified, 3) => {
                for controller in V1 {
                    bases.insert(controller, found[controller].dir.join(&name));
                }
                if let Some(unified) = unified {
                    bases.insert("unified", unified.dir.join(&name));
                }
                if unified.is_some() { Layout::Hybrid } else { Layout::V1 }
            }
            (Some(unified), 0) => {
                bases.insert("unified", v2_parent(unified)?.join(&name));
                Layout::V2
            }
            _ => {
                return Err(missing("the memory, pids and cpu cgroup controllers are not all mounted")
                    .hint("mount cgroup v2 at /sys/fs/cgroup, or enable these controllers"));
            }
        };
        let namespaces_are_walls = namespaces_are_walls(mountinfo);
        let tree = Self { layout, bases, earlier: Vec::new(), namespaces_are_walls };
        for base in tree.bases.values() {
            make(base)?;
        }
        if layout == Layout::V2 {
            enable(&tree.bases["unified"])?;
        }
        Ok(tree)
    }

    /// What earlier processes of an instance made, wherever that is ([`earlier`]). No place for a session: nothing is made.
    pub fn found(earlier: Vec<PathBuf>) -> Self {
        Self { layout: Layout::V1, bases: BTreeMap::new(), earlier, namespaces_are_walls: false }
    }

    /// With what earlier processes of this instance made ([`earlier`]).
    pub fn also_at(mut self, earlier: Vec<PathBuf>) -> Self {
        self.earlier = earlier;
        self.earlier.retain(|dir| self.bases.values().all(|base| base != dir));
        self
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Makes a session's cgroups with its limits, by its id (under another name no sweep takes them for a session's). `owner` is the agent, as host ids; `uploads` is what it
    /// may have to hold beside its own [`AGENT_MEMORY`]: files that it writes into memory for a client are
    /// charged to it, and an OOM there would end the session. `namespace` makes a cgroup namespace whose root is a
    /// directory; it is called where a sandbox can't do that by itself.
    ///
    /// # Errors
    /// INTERNAL, and nothing of the session is left.
    pub fn create(
        &self,
        session: &str,
        limits: &Limits,
        uploads: u64,
        owner: (u32, u32),
        namespace: Option<&MakeNamespace<'_>>,
    ) -> Result<SessionCgroups, Error> {
        let agent_memory = AGENT_MEMORY.saturating_add(uploads);
        let result = self.try_create(session, limits, agent_memory, owner, namespace);
        if result.is_err() {
            let _ = self.remove(session);
        }
        result.map_err(|cause| Error::internal("the session's cgroups could not be made").cause(cause))
    }

    fn try_create(
        &self,
        session: &str,
        limits: &Limits,
        agent_memory: u64,
        owner: (u32, u32),
        namespace: Option<&MakeNamespace<'_>>,
    ) -> io::Result<SessionCgroups> {
        let (mut binds, mut made) = (Vec::new(), None);
        for (&name, base) in &self.bases {
            let dir = base.join(session);
            let (tasks, agent) = (dir.join("t"), dir.join("agent"));
            mkdir(&dir)?;
            if let Some(make) = namespace.filter(|_| self.namespaces_are_walls && name == "unified") {
                // The others come before it in the map.
                let v1: Vec<PathBuf> = binds.iter().map(|(dir, _): &(PathBuf, String)| dir.clone()).collect();
                made = Some(make(&dir, &v1)?);
            }
            if self.layout == Layout::V2 {
                enable_when_empty(&dir)?;
            }
            mkdir(&agent)?;
            mkdir(&tasks)?;
            match name {
                "memory" => {
                    limit_memory_v1(&tasks, limits.memory_bytes)?;
                    limit_memory_v1(&agent, agent_memory)?;
                }
                "pids" => {
                    write(&tasks.join("pids.max"), limits.pids)?;
                    write(&agent.join("pids.max"), AGENT_PIDS)?;
                }
                "cpu" => {
                    write(&dir.join("cpu.cfs_period_us"), CPU_PERIOD_US)?;
                    // v1 refuses more than the worker has itself, and then that holds them.
                    write(&dir.join("cpu.cfs_quota_us"), quota_of_all(limits)).or_else(ignore_invalid)?;
                    write(&tasks.join("cpu.cfs_period_us"), CPU_PERIOD_US)?;
                    write(&tasks.join("cpu.cfs_quota_us"), quota(limits))?;
                    write(&tasks.join("cpu.shares"), shares(limits))?;
                }
                _ if self.layout == Layout::V2 => {
                    write(&dir.join("cpu.max"), format!("{} {CPU_PERIOD_US}", quota_of_all(limits)))?;
                    limit_v2(&tasks, &agent, limits, agent_memory)?;
                }
                _ => {}
            }
            delegate(&dir, &tasks, owner)?;
            binds.push((dir, name.to_owned()));
        }
        Ok(SessionCgroups { layout: self.layout, namespace: made, binds })
    }

    /// Kills whatever is in a session's cgroups and removes them. Idempotent. Blocks for
    /// up to ten seconds.
    ///
    /// # Errors
    /// INTERNAL when processes or directories stay.
    pub fn remove(&self, session: &str) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_WAIT;
        for dir in self.places().map(|base| base.join(session)).filter(|dir| dir.exists()) {
            remove_tree(&dir, deadline).map_err(|cause| {
                Error::internal(format!("the cgroup {} could not be removed", dir.display())).cause(cause)
            })?;
        }
        Ok(())
    }

    /// Kills and removes all whose names begin so, as far as that goes in a moment.
    pub fn sweep(&self, prefix: &str) {
        let deadline = Instant::now() + EMPTY_WAIT;
        let entries = self.places().filter_map(|base| fs::read_dir(base).ok()).flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Err(error) = remove_tree(&entry.path(), deadline)
            {
                tracing::warn!(%error, dir = %entry.path().display(), "a cgroup stays");
            }
        }
    }

    /// Sessions that have a cgroup of this instance.
    pub fn sessions(&self) -> Vec<SessionId> {
        let mut found: Vec<SessionId> = self
            .places()
            .filter_map(|base| fs::read_dir(base).ok())
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn places(&self) -> impl Iterator<Item = &PathBuf> {
        self.bases.values().chain(&self.earlier)
    }

    /// Removes this instance's own directories. Fails, harmlessly, while a session is there.
    pub fn close(&self) {
        for base in self.places() {
            if let Err(error) = fs::remove_dir(base).or_else(ignore_missing) {
                tracing::debug!(%error, dir = %base.display(), "a cgroup directory stays");
            }
        }
    }
}

impl SessionCgroups {
    /// The paths as the agent sees them, with each bind mounted at `inside/<name>`.
    pub fn agent_config(&self, inside: &Path) -> Cgroups {
        let mut config = Cgroups { v2_memory: self.layout == Layout::V2, ..Cgroups::default() };
        for (_, name) in &self.binds {
            let path = inside.join(name);
            match name.as_str() {
                "unified" => config.v2 = Some(path),
                "memory" => config.v1_memory = Some(path),
                _ => config.v1_shared.push(path),
            }
        }
        config
    }

    /// The agent's own cgroup of v2.
    pub fn agent_v2(&self) -> Option<PathBuf> {
        self.binds.iter().find(|(_, name)| name == "unified").map(|(dir, _)| dir.join("agent"))
    }

    /// `tasks` of the agent's own cgroups of v1: a thread that writes 0 there moves itself.
    pub fn agent_v1(&self) -> Vec<PathBuf> {
        let v1 = self.binds.iter().filter(|(_, name)| name != "unified");
        v1.map(|(dir, _)| dir.join("agent/tasks")).collect()
    }
}
