//! Limits, and what of a session's cgroups is the agent's to write.

use std::{
    io,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use berth_proto::domain::Limits;

use super::file::{ignore_missing, write};

/// Memory for the agent itself; its spool's page cache is reclaimed within this. What it writes for
/// uploads into memory comes on top: see [`super::CgroupTree::create`].
pub const AGENT_MEMORY: u64 = 256 << 20;
/// Threads of the agent: PID 1, the server, its file threads.
pub(super) const AGENT_PIDS: u32 = 64;
/// Period of the CPU quota; the kernel's default.
pub(super) const CPU_PERIOD_US: u64 = 100_000;
/// What tasks leave to the agent in each period, whatever they use: a quarter of a core. Of what they do not use it can have
/// all.
const AGENT_CPU_US: u64 = CPU_PERIOD_US / 4;
/// Smallest quota that the kernel takes.
const CPU_QUOTA_MIN_US: u64 = 1_000;

pub(super) fn quota(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US)
}

/// Of tasks and agent together.
pub(super) fn quota_of_all(limits: &Limits) -> u64 {
    quota(limits) + AGENT_CPU_US
}

/// v1 shares: 1024 a core.
pub(super) fn shares(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_millis) * 1024 / 1000).max(2)
}

/// v2 weight: 100 a core, 1 to 10000.
fn weight(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_millis) / 10).clamp(1, 10_000)
}

pub(super) fn limit_memory_v1(dir: &Path, bytes: u64) -> io::Result<()> {
    write(&dir.join("memory.limit_in_bytes"), bytes)?;
    // Memory and swap together: no swap. Absent where swap accounting is off; then
    // swappiness 0 keeps anonymous memory from being swapped short of an emergency.
    write(&dir.join("memory.memsw.limit_in_bytes"), bytes).or_else(ignore_missing)?;
    write(&dir.join("memory.swappiness"), 0).or_else(ignore_missing)
}

pub(super) fn limit_v2(tasks: &Path, agent: &Path, limits: &Limits, agent_memory: u64) -> io::Result<()> {
    write(&tasks.join("cgroup.subtree_control"), "+memory +pids")?;
    for (dir, memory, pids) in [(tasks, limits.memory_bytes, limits.pids), (agent, agent_memory, AGENT_PIDS)]
    {
        write(&dir.join("memory.max"), memory)?;
        write(&dir.join("memory.swap.max"), 0).or_else(ignore_missing)?;
        write(&dir.join("pids.max"), pids)?;
    }
    write(&tasks.join("cpu.max"), format!("{} {CPU_PERIOD_US}", quota(limits)))?;
    write(&tasks.join("cpu.weight"), weight(limits))
}

/// Gives the agent what it needs and no more: making children of `t`, moving processes
/// into them (v2 asks for write access at the common ancestor), freezing and killing.
pub(super) fn delegate(session: &Path, tasks: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let own = |path: PathBuf| chown(path, Some(uid), Some(gid)).or_else(ignore_missing);
    own(tasks.to_owned())?;
    own(session.join("cgroup.procs"))?;
    ["cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control", "cgroup.freeze", "cgroup.kill"]
        .into_iter()
        .try_for_each(|file| own(tasks.join(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stay_within_what_the_kernel_takes() {
        let limits = |cpu_millis| Limits { cpu_millis, memory_bytes: 0, disk_bytes: 0, pids: 0 };
        assert_eq!(quota(&limits(1500)), 150_000);
        assert_eq!(
            (quota(&limits(10)), quota_of_all(&limits(10))),
            (CPU_QUOTA_MIN_US, CPU_QUOTA_MIN_US + 25_000)
        );
        assert_eq!((weight(&limits(10)), weight(&limits(1000)), weight(&limits(u32::MAX))), (1, 100, 10_000));
        assert_eq!((shares(&limits(1)), shares(&limits(2000))), (2, 2048));
    }
}
