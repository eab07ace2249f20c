//! What the machine has and how busy it is, from `/proc`, `/sys` and statvfs. Readings only: none of
//! them blocks for longer than the kernel takes to print a page, and what is absent is `None`, never zero.

use std::{io, path::Path};

use berth_proto::domain::Capacity;

use crate::{config::CapacityOverride, workspace::store::Kind};

/// CPU time is offered this many times over: sessions are idle most of their time, and where
/// they are not, the kernel shares by their limits. Memory and disk are offered once.
const CPU_OVERCOMMIT: u32 = 4;

/// What this machine can give, where the configuration does not say: of its disk, `disk_bytes`. Where sessions' files are
/// in memory, that is halved: one half is offered as memory, the other as disk.
pub fn capacity(given: &CapacityOverride, max_sessions: u32, kind: Kind, disk_bytes: u64) -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpu_millis = u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(1000 * CPU_OVERCOMMIT);
    let memory = memory().map_or(0, |memory| memory.total_bytes);
    let (memory, disk) = match kind {
        Kind::Tmpfs => (memory / 2, memory / 2),
        Kind::Ext4 | Kind::Volume | Kind::Directory => (memory, disk_bytes),
    };
    Capacity {
        cpu_millis: given.cpu_millis.unwrap_or(cpu_millis),
        memory_bytes: given.memory_bytes.unwrap_or(memory),
        disk_bytes: given.disk_bytes.unwrap_or(disk),
        max_sessions,
    }
}

/// Memory in bytes: of the machine, or of the worker's own cgroup where that has less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

pub fn memory() -> Option<Memory> {
    let machine = parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(match cgroup_memory(&groups) {
        Some((limit, used)) if limit < machine.total_bytes => Memory {
            total_bytes: limit,
            available_bytes: limit.saturating_sub(used).min(machine.available_bytes),
        },
        _ => machine,
    })
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    Some(Memory { total_bytes: field("MemTotal:")?, available_bytes: field("MemAvailable:")? })
}

/// Limit and use of our own memory cgroup, on v2 or v1. Inside a container its own cgroup is the root of
/// what it sees, so that is looked at too.
fn cgroup_memory(groups: &str) -> Option<(u64, u64)> {
    let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut tightest: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (mount, limit, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            list if list.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let mut dir = path.trim_end_matches('/').to_owned();
        loop {
            if let Some(found) = number(format!("{mount}{dir}/{limit}"))
                && tightest.is_none_or(|(known, _)| found < known)
            {
                tightest = Some((found, number(format!("{mount}{dir}/{used}")).unwrap_or(0)));
            }
            match dir.rfind('/') {
                Some(at) => dir.truncate(at),
                None => break,
            }
        }
    }
    tightest
}

/// Busy and total ticks of all cores since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTicks {
    busy: u64,
    total: u64,
}

pub fn cpu_ticks() -> Option<CpuTicks> {
    parse_stat(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn parse_stat(text: &str) -> Option<CpuTicks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
    let total = ticks.iter().sum::<u64>();
    Some(CpuTicks { busy: total - idle, total })
}

impl CpuTicks {
    /// Share of the time since `before` that the cores were busy, 0 to 1.
    pub fn busy_since(self, before: Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total).filter(|total| *total > 0)?;
        let busy = self.busy.saturating_sub(before.busy);
        Some((busy as f64 / total as f64).clamp(0.0, 1.0))
    }
}

/// Pressure of one resource (`cpu`, `memory`, `io`): `avg10` of `some`, in percent.
pub fn pressure(resource: &str) -> Option<f64> {
    parse_pressure(&std::fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?)
}

fn parse_pressure(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace().find_map(|part| part.strip_prefix("avg10="))?.parse().ok()
}

/// Bytes that an unprivileged writer could still write on the file system of `path`.
pub fn disk_free(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_pages_are_understood() {
        let info = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n";
        let memory = parse_meminfo(info).unwrap();
        assert_eq!(memory, Memory { total_bytes: 24_000_000 << 10, available_bytes: 12_000_000 << 10 });
        let before = parse_stat("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\n").unwrap();
        let after = parse_stat("cpu  20 0 20 150 10 0 0 0 0 0\n").unwrap();
        assert_eq!(after.busy_since(before), Some(0.2));
        assert_eq!(before.busy_since(after), None);
        assert_eq!(parse_pressure("some avg10=1.50 avg60=0.00 total=1\nfull avg10=9\n"), Some(1.5));
        assert_eq!(parse_pressure(""), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let memory = memory().unwrap();
        assert!(memory.total_bytes > 0 && memory.available_bytes <= memory.total_bytes);
        assert!(cpu_ticks().is_some());
        assert!(disk_free(Path::new("/")).unwrap() > 0);
        let given = CapacityOverride { cpu_millis: Some(7), ..Default::default() };
        let machine = |kind| capacity(&given, 3, kind, 9);
        let whole = machine(Kind::Ext4);
        assert_eq!((whole.cpu_millis, whole.max_sessions), (7, 3));
        assert_eq!((whole.memory_bytes, whole.disk_bytes), (memory.total_bytes, 9));
        // No byte of memory is offered twice.
        let halves = machine(Kind::Tmpfs);
        assert!(halves.memory_bytes + halves.disk_bytes <= memory.total_bytes && halves.disk_bytes > 9);
    }
}
