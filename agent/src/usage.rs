//! What the session takes, in one reading: from the cgroup that holds all of its tasks, from the file system that holds its
//! files, and from the table of tasks.
//!
//! A reading is a dozen small files of the kernel's: some 0.1 ms. Where the session has no cgroups (the worker itself is in a
//! container, or the engine has a kernel of its own) the processes that run are added up instead: at most as many as the
//! sandbox may have. Rejected: asking the container engine, which answers for the container, the agent included, and takes a
//! call to a daemon that everybody else waits for too.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

use berth_proto::{agent_config::Cgroups, v1};
use nix::{
    sys::{
        statfs::{TMPFS_MAGIC, statfs},
        statvfs::statvfs,
    },
    unistd::{SysconfVar, sysconf},
};

use crate::cgroup;

/// What a v1 limit says that is none: pages that no address space has.
const V1_UNLIMITED: u64 = 1 << 62;

/// Where to read. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    pub cgroups: Cgroups,
    /// `/workspace`.
    pub workspace: PathBuf,
    /// On the worker's own disk.
    pub spool_dir: PathBuf,
    /// Where tasks write besides: what of it is in memory is the session's memory.
    pub writable: Vec<PathBuf>,
}

/// Reads all but the number of tasks. Blocks for as long as the kernel takes.
pub fn read(sources: &Sources) -> v1::SessionUsage {
    let mut usage = v1::SessionUsage::default();
    of_cgroups(&sources.cgroups, &mut usage);
    if usage.cpu_micros.is_none() || usage.memory_bytes.is_none() || usage.pids.is_none() {
        let sum = Sum::of_processes(Path::new("/proc"), process::id());
        let places = sources.writable.iter().chain([&sources.workspace]);
        let files = places.filter_map(|path| in_memory(path)).sum::<u64>();
        usage.cpu_micros.get_or_insert(sum.cpu_micros);
        usage.memory_bytes.get_or_insert(sum.memory_bytes + files);
        usage.pids.get_or_insert(sum.pids);
        usage.summed = true;
    }
    of_files(sources, &mut usage);
    usage
}

fn of_cgroups(cgroups: &Cgroups, usage: &mut v1::SessionUsage) {
    if let Some(v2) = &cgroups.v2 {
        let tasks = v2.join("t");
        // Needs no controller: it is there on hybrid machines too.
        usage.cpu_micros = cgroup::field(&tasks.join("cpu.stat"), "usage_usec");
        if cgroups.v2_memory {
            of_v2(&tasks, usage);
        }
    }
    if let Some(memory) = &cgroups.v1_memory {
        of_v1_memory(&memory.join("t"), usage);
    }
    for base in &cgroups.v1_shared {
        let tasks = base.join("t");
        match base.file_name().and_then(|name| name.to_str()) {
            Some("cpu") => {
                let file = |name: &str| cgroup::number(&tasks.join(name));
                // A quota of -1 is no number, and no limit.
                let limit = file("cpu.cfs_quota_us").zip(file("cpu.cfs_period_us"));
                usage.cpu_limit_millis = limit.and_then(|(quota, period)| (quota * 1000).checked_div(period));
                if usage.cpu_micros.is_none() {
                    usage.cpu_micros = file("cpuacct.usage").map(|nanos| nanos / 1000);
                }
            }
            Some("pids") => of_pids(&tasks, usage),
            _ => {}
        }
    }
}

fn of_v2(tasks: &Path, usage: &mut v1::SessionUsage) {
    // `max` is no number, and no limit.
    let file = |name: &str| cgroup::number(&tasks.join(name));
    let stat = |key: &str| cgroup::field(&tasks.join("memory.stat"), key);
    usage.cpu_limit_millis = fs::read_to_string(tasks.join("cpu.max")).ok().and_then(|text| {
        let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (quota, period) = (numbers.next()??, numbers.next()??);
        (quota * 1000).checked_div(period)
    });
    usage.memory_bytes = file("memory.current");
    usage.memory_cache_bytes = stat("file").map(|file| file.saturating_sub(stat("shmem").unwrap_or(0)));
    usage.memory_peak_bytes = file("memory.peak");
    usage.memory_limit_bytes = file("memory.max");
    of_pids(tasks, usage);
}

fn of_v1_memory(tasks: &Path, usage: &mut v1::SessionUsage) {
    let file = |name: &str| cgroup::number(&tasks.join(name));
    let stat = |key: &str| cgroup::field(&tasks.join("memory.stat"), key);
    usage.memory_bytes = file("memory.usage_in_bytes");
    usage.memory_cache_bytes =
        stat("total_cache").map(|cache| cache.saturating_sub(stat("total_shmem").unwrap_or(0)));
    usage.memory_peak_bytes = file("memory.max_usage_in_bytes");
    usage.memory_limit_bytes = file("memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED);
}

fn of_pids(tasks: &Path, usage: &mut v1::SessionUsage) {
    usage.pids = cgroup::number(&tasks.join("pids.current"));
    usage.pids_limit = cgroup::number(&tasks.join("pids.max"));
}

/// Where the session's files have a file system of their own. In a plain directory it would be the worker's that is told.
fn of_files(sources: &Sources, usage: &mut v1::SessionUsage) {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    if device(&sources.workspace) == device(&sources.spool_dir) {
        return;
    }
    let Ok(stat) = statvfs(&sources.workspace) else { return };
    let block = stat.fragment_size();
    usage.disk_bytes = Some(stat.blocks().saturating_sub(stat.blocks_free()) * block);
    usage.disk_limit_bytes = Some(stat.blocks() * block);
    usage.inodes = Some(stat.files().saturating_sub(stat.files_free()));
    usage.inodes_limit = Some(stat.files());
}

/// Bytes of a file system in memory, if it is one.
fn in_memory(path: &Path) -> Option<u64> {
    statfs(path).ok().filter(|stat| stat.filesystem_type() == TMPFS_MAGIC)?;
    let stat = statvfs(path).ok()?;
    Some(stat.blocks().saturating_sub(stat.blocks_free()) * stat.fragment_size())
}

/// What the processes of a sandbox come to.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    cpu_micros: u64,
    memory_bytes: u64,
    pids: u64,
}

impl Sum {
    /// Of all that are in `proc` but `own` and init, of which only what they waited for counts.
    fn of_processes(proc: &Path, own: u32) -> Self {
        let number = |name| sysconf(name).ok().flatten().and_then(|n| u64::try_from(n).ok());
        let tick = 1_000_000 / number(SysconfVar::CLK_TCK).filter(|n| *n > 0).unwrap_or(100);
        let page = number(SysconfVar::PAGE_SIZE).unwrap_or(4096);
        let mut sum = Self::default();
        for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // It may be gone by now: then init has its time.
            let Some(stat) = Stat::read(&entry.path()) else { continue };
            sum.cpu_micros += stat.waited_for * tick;
            if pid != own && pid != 1 {
                sum.cpu_micros += stat.own * tick;
                sum.pids += stat.threads;
                sum.memory_bytes += anonymous_pages(&entry.path()).unwrap_or(0) * page;
            }
        }
        sum
    }
}

/// Of `/proc/PID/stat`, times in clock ticks.
struct Stat {
    own: u64,
    waited_for: u64,
    threads: u64,
}

impl Stat {
    fn read(process: &Path) -> Option<Self> {
        let text = fs::read_to_string(process.join("stat")).ok()?;
        // The name is in parentheses and may hold anything: what counts is behind the last one.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // utime is field 14, and the first behind the name is field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok()?.try_into().ok();
        let (user, system): (u64, u64) = (field(14)?, field(15)?);
        let (children_user, children_system): (u64, u64) = (field(16)?, field(17)?);
        Some(Self { own: user + system, waited_for: children_user + children_system, threads: field(20)? })
    }
}

/// Resident, less those of files, which others may have too.
fn anonymous_pages(process: &Path) -> Option<u64> {
    let text = fs::read_to_string(process.join("statm")).ok()?;
    let mut fields = text.split_whitespace().skip(1).map(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.next()??, fields.next()??);
    Some(resident.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test's own.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("berth-usage-{name}-{}", process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn put(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    /// Red when a file is read by another version's name, or a limit that is none becomes a number.
    #[test]
    fn each_layout_of_cgroups_is_read() {
        let dir = Place::new("cgroups");
        let at = |name: &str| dir.path().join(name);
        put(
            &at("v2/t"),
            &[
                ("cpu.stat", "usage_usec 123456\nuser_usec 1\nsystem_usec 2\n"),
                ("cpu.max", "150000 100000\n"),
                ("memory.current", "5000\n"),
                ("memory.peak", "6000\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 1\nfile 3000\nshmem 1000\nfile_mapped 7\n"),
                ("pids.current", "3\n"),
                ("pids.max", "64\n"),
            ],
        );
        let mut v2 = v1::SessionUsage::default();
        of_cgroups(&Cgroups { v2: Some(at("v2")), v2_memory: true, ..Cgroups::default() }, &mut v2);
        let expected = v1::SessionUsage {
            cpu_micros: Some(123_456),
            cpu_limit_millis: Some(1500),
            memory_bytes: Some(5000),
            memory_cache_bytes: Some(2000),
            memory_peak_bytes: Some(6000),
            pids: Some(3),
            pids_limit: Some(64),
            ..Default::default()
        };
        assert_eq!(v2, expected);

        put(
            &at("memory/t"),
            &[
                ("memory.usage_in_bytes", "5000\n"),
                ("memory.max_usage_in_bytes", "6000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", "cache 9\nshmem 9\ntotal_cache 3000\ntotal_shmem 1000\n"),
            ],
        );
        put(&at("pids/t"), &[("pids.current", "3\n"), ("pids.max", "64\n")]);
        let cpu = [("cpu.cfs_quota_us", "150000\n"), ("cpu.cfs_period_us", "100000\n")];
        put(&at("cpu/t"), &cpu);
        let hybrid = Cgroups {
            v2: Some(at("v2")),
            v2_memory: false,
            v1_memory: Some(at("memory")),
            v1_shared: vec![at("pids"), at("cpu")],
        };
        let mut read = v1::SessionUsage::default();
        of_cgroups(&hybrid, &mut read);
        assert_eq!(read, expected, "hybrid");

        put(&at("cpu/t"), &[("cpuacct.usage", "123456789\n")]);
        let mut read = v1::SessionUsage::default();
        of_cgroups(&Cgroups { v2: None, ..hybrid.clone() }, &mut read);
        assert_eq!(read, expected, "v1");
        put(&at("cpu/t"), &[("cpu.cfs_quota_us", "-1\n")]);
        of_cgroups(&hybrid, &mut read);
        assert_eq!(read.cpu_limit_millis, None);
    }

    #[test]
    fn processes_are_added_up_without_the_agent() {
        let dir = Place::new("processes");
        let stat = |name: &str, own: u64, waited: u64, threads: u64| {
            format!("7 ({name}) S 1 7 7 0 -1 0 0 0 0 0 {own} {own} {waited} {waited} 20 0 {threads} 0 99\n")
        };
        let statm = "1000 300 100 1 0 200 0\n";
        put(&dir.path().join("1"), &[("stat", &stat("init", 1000, 50, 1)), ("statm", statm)]);
        put(&dir.path().join("9"), &[("stat", &stat("server", 1000, 0, 9)), ("statm", statm)]);
        put(&dir.path().join("12"), &[("stat", &stat("a) S 1 (b", 10, 5, 2)), ("statm", statm)]);
        put(&dir.path().join("13"), &[]);
        put(&dir.path().join("self"), &[("stat", &stat("x", 1, 1, 1))]);
        let sum = Sum::of_processes(dir.path(), 9);
        let page = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
        // A hundred ticks a second, as Linux has everywhere.
        assert_eq!(sum, Sum { cpu_micros: (100 + 10 + 20) * 10_000, memory_bytes: 200 * page, pids: 2 });
    }

    /// Red when the worker's own disk is told as the session's.
    #[test]
    fn a_plain_directory_has_no_size_of_its_own() {
        let dir = Place::new("directory");
        let sources = |workspace: &Path| Sources {
            cgroups: Cgroups::default(),
            workspace: workspace.to_owned(),
            spool_dir: dir.path().to_owned(),
            writable: Vec::new(),
        };
        assert_eq!(read(&sources(dir.path())).disk_limit_bytes, None);
        let shm = Path::new("/dev/shm");
        let usage = read(&sources(shm));
        let total = statvfs(shm).map(|stat| stat.blocks() * stat.fragment_size()).unwrap();
        assert_eq!(usage.disk_limit_bytes, Some(total));
        assert!(usage.summed && usage.pids.is_some_and(|pids| pids > 0), "{usage:?}");
    }
}
