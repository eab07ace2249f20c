//! The cgroups of tasks, in the subtree that the worker gave to the agent: making one,
//! looking at who is in it, and taking it away. Knows cgroup v2, v1 and both together,
//! and, where there is neither, the processes below a task's guard.
//!
//! Plain file calls on a kernel file system. Reading takes microseconds. What changes
//! something ([`make`], [`join`], [`Group::kill`], [`Group::remove`], [`freeze`]) takes the kernel's one
//! cgroup lock, which others may hold for 20 ms: never on the server's runtime thread.
//!
//! A process is never moved by `cgroup.procs` where that can be helped: for it the kernel stops all forks of the machine, and
//! waits for an RCU grace period first, with its one lock held (8 to 20 ms, measured). A thread that moves itself by the `tasks` of v1 needs
//! none of that, nor does a process that is born in its cgroup (v2, `CLONE_INTO_CGROUP`): 0.04 ms.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::agent_config::Cgroups;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, getpgid},
};

/// Name of a task's cgroup. Not the task's id: groups are made before their task is
/// known, and cgroups can't be renamed. A v1 child can't be called `tasks`.
fn name(number: u64) -> String {
    format!("task-{number}")
}

/// Whether tasks have no cgroup here, so that each needs a guard.
pub fn needs_guard(cgroups: &Cgroups) -> bool {
    cgroups.v2.is_none() && cgroups.v1_memory.is_none()
}

fn own(cgroups: &Cgroups, number: u64) -> impl Iterator<Item = PathBuf> {
    let name = name(number);
    cgroups
        .v2
        .iter()
        .chain(&cgroups.v1_memory)
        .map(|base| base.join("t").join(&name))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Where in v2 the processes of a task belong, made and opened: for [`crate::sys::fork_into`].
/// `None`: there is no v2 here, or it can't be made; then [`join`] says what is wrong.
pub fn birthplace(cgroups: &Cgroups, number: u64) -> Option<OwnedFd> {
    let dir = cgroups.v2.as_ref()?.join("t").join(name(number));
    make(&dir).and_then(|()| Ok(fs::File::open(&dir)?.into())).ok()
}

/// Makes a cgroup of a task's. An earlier agent's of this name is empty: nobody lives in it.
fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_dir(dir)?;
            fs::create_dir(dir)
        }
        made => made,
    }
}

/// Joins the cgroups of a task, and those that all tasks share. Called by the task's own first process while it has one
/// thread. `born`: it is in that of v2 already, see [`birthplace`].
pub fn join(cgroups: &Cgroups, number: u64, born: bool) -> io::Result<()> {
    if let Some(base) = cgroups.v2.as_ref().filter(|_| !born) {
        let dir = base.join("t").join(name(number));
        make(&dir)?;
        fs::write(dir.join("cgroup.procs"), "0")?;
    }
    if let Some(base) = &cgroups.v1_memory {
        let dir = base.join("t").join(name(number));
        make(&dir)?;
        fs::write(dir.join("tasks"), "0")?;
    }
    cgroups.v1_shared.iter().try_for_each(|base| fs::write(base.join("t/tasks"), "0"))
}

/// Takes a task's cgroups away. False while somebody is in one.
pub fn remove(cgroups: &Cgroups, number: u64) -> bool {
    own(cgroups, number).all(|dir| match fs::remove_dir(&dir) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

/// Takes all tasks' cgroups away that are empty. The last act of init.
pub fn remove_all(cgroups: &Cgroups) {
    for base in cgroups.v2.iter().chain(&cgroups.v1_memory) {
        for entry in fs::read_dir(base.join("t")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("task-") {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Gives task cgroups the memory controller, where v2 has it and the worker did not.
pub fn enable_memory(cgroups: &Cgroups) {
    if let (Some(v2), true) = (&cgroups.v2, cgroups.v2_memory) {
        let control = v2.join("t/cgroup.subtree_control");
        let on =
            fs::read_to_string(&control).is_ok_and(|text| text.split_whitespace().any(|c| c == "memory"));
        if !on && let Err(error) = fs::write(&control, "+memory") {
            tracing::warn!(%error, "tasks have no memory figures of their own");
        }
    }
}

/// Kills everything in all tasks' cgroups. The last word, when the session ends.
pub fn kill_everything(cgroups: &Cgroups) {
    let Some(v2) = &cgroups.v2 else {
        for base in cgroups.v1_memory.iter().chain(&cgroups.v1_shared) {
            for_each_below(&base.join("t"), &mut |pid| {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            });
        }
        return;
    };
    if let Err(error) = fs::write(v2.join("t/cgroup.kill"), "1") {
        tracing::warn!(%error, "cgroup.kill failed");
    }
}

/// Freezes or thaws all tasks. False: this machine has no freezer for us.
pub fn freeze(cgroups: &Cgroups, frozen: bool) -> io::Result<bool> {
    let Some(v2) = &cgroups.v2 else { return Ok(false) };
    fs::write(v2.join("t/cgroup.freeze"), if frozen { "1" } else { "0" })?;
    Ok(true)
}

/// Whether all tasks stand still.
pub fn is_frozen(cgroups: &Cgroups) -> bool {
    cgroups.v2.as_ref().is_some_and(|v2| field(&v2.join("t/cgroup.events"), "frozen") == Some(1))
}

fn for_each_below(dir: &Path, act: &mut dyn FnMut(i32)) {
    for pid in pids_in(&dir.join("cgroup.procs")) {
        act(pid);
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_below(&entry.path(), act);
        }
    }
}

/// The pids in a `cgroup.procs`. Processes of other PID namespaces show as 0.
fn pids_in(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// A number in a flat-keyed file: `key value` a line.
pub(crate) fn field(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A number that is all there is in a file.
pub(crate) fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// What the kernel counted for a task. `None`: not counted here.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    pub cpu: Option<(Duration, Duration)>,
    pub peak_bytes: Option<u64>,
    pub oom_kills: u64,
}

/// Everything that one task started.
#[derive(Debug)]
pub enum Group {
    Cgroup {
        cgroups: Cgroups,
        number: u64,
    },
    /// All descendants of this process.
    Below {
        guard: i32,
    },
}

impl Group {
    fn v2(&self) -> Option<PathBuf> {
        match self {
            Group::Cgroup { cgroups, number } => Some(cgroups.v2.as_ref()?.join("t").join(name(*number))),
            Group::Below { .. } => None,
        }
    }

    fn v1_memory(&self) -> Option<PathBuf> {
        match self {
            Group::Cgroup { cgroups, number } => {
                Some(cgroups.v1_memory.as_ref()?.join("t").join(name(*number)))
            }
            Group::Below { .. } => None,
        }
    }

    /// Who is in it now.
    pub fn pids(&self) -> Vec<i32> {
        match self {
            Group::Cgroup { .. } => {
                let dir = self.v2().or_else(|| self.v1_memory());
                dir.map(|dir| pids_in(&dir.join("cgroup.procs"))).unwrap_or_default()
            }
            Group::Below { guard } => below(*guard),
        }
    }

    pub fn is_empty(&self) -> bool {
        match self.v2() {
            // Also counts a nested cgroup, should a task ever manage to make one.
            Some(dir) => field(&dir.join("cgroup.events"), "populated") != Some(1),
            None => self.pids().is_empty(),
        }
    }

    /// Signals every process in it, but those of one process group (they were signalled together).
    pub fn signal(&self, signal: Signal, but_group: Option<i32>) {
        for pid in self.pids() {
            let group = getpgid(Some(Pid::from_raw(pid))).map(Pid::as_raw).ok();
            if but_group.is_none() || group != but_group {
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }

    /// Kills every process in it, once. Fork bombs need [`Group::is_empty`] and a retry
    /// where there is no `cgroup.kill`.
    pub fn kill(&self) {
        if let Some(dir) = self.v2()
            && fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // Stopped first, so that none of them starts another behind our back.
        let mut stopped = HashSet::new();
        for _ in 0..64 {
            let fresh: Vec<i32> = self.pids().into_iter().filter(|pid| stopped.insert(*pid)).collect();
            if fresh.is_empty() {
                break;
            }
            for pid in fresh {
                let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
            }
        }
        for pid in stopped {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// What the kernel counted. Read it before [`Group::remove`].
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        if let Some(dir) = self.v2() {
            let text = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
            let of = |key: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
                line.trim().parse().ok().map(Duration::from_micros)
            };
            counters.cpu = of("user_usec").zip(of("system_usec"));
            if matches!(self, Group::Cgroup { cgroups, .. } if cgroups.v2_memory) {
                counters.peak_bytes = number(&dir.join("memory.peak"));
                counters.oom_kills = field(&dir.join("memory.events"), "oom_kill").unwrap_or(0);
            }
        }
        if let Some(dir) = self.v1_memory() {
            counters.peak_bytes = number(&dir.join("memory.max_usage_in_bytes"));
            counters.oom_kills = field(&dir.join("memory.oom_control"), "oom_kill").unwrap_or(0);
        }
        counters
    }

    /// Takes it away. False while somebody is in it.
    pub fn remove(&self) -> bool {
        match self {
            Group::Cgroup { cgroups, number } => remove(cgroups, *number),
            Group::Below { guard } => kill(Pid::from_raw(*guard), None) == Err(Errno::ESRCH),
        }
    }
}

/// All living descendants of a process, by one walk over /proc.
fn below(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name is in parentheses and may hold anything: what counts is behind the last one.
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, parent) = (rest.next(), rest.next().and_then(|text| text.parse::<i32>().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "Z"
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        let mine = children.remove(&pid).unwrap_or_default();
        found.extend_from_slice(&mine);
        next.extend(mine);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(below(std::process::id() as i32).contains(&pid));
        assert!(!below(pid).contains(&pid));
        let group = Group::Below { guard: std::process::id() as i32 };
        assert!(!group.is_empty());
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(!group.pids().contains(&pid));
    }

    #[test]
    fn figures_are_read_by_their_whole_name() {
        let dir = std::env::temp_dir().join(format!("berth-cgroup-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("memory.events");
        fs::write(&file, "low 0\noom 7\noom_kill 3\noom_group_kill 9\n").unwrap();
        assert_eq!(field(&file, "oom_kill"), Some(3));
        assert_eq!(field(&file, "nothing"), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
