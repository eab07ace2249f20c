//! What a fleet has on its host, by kind: of each as many as before is what "leaves nothing" means.
//!
//! Other fleets may come and go on the machine meanwhile, so only what can be told to be this one's is counted: by its
//! directory, by the instance ids of its workers, by the host ids of its sessions, or as a child of such a process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{Cluster, left};

/// By kind, with names for people.
#[derive(Default)]
pub struct Counts(BTreeMap<&'static str, Vec<String>>);

impl Counts {
    /// Counts now. `claims` are first host ids of the sessions that were.
    pub fn take(cluster: &Cluster, claims: &BTreeSet<u64>) -> Self {
        let dir = cluster.dir.path();
        let instances = left::instances(dir);
        let marks: Vec<String> =
            instances.iter().cloned().chain([dir.to_string_lossy().into_owned()]).collect();
        let marked = |text: &str| marks.iter().any(|mark| text.contains(mark));
        let processes = Process::ours(&marked);
        let mut counts = Self::default();
        counts.add("processes", processes.iter().map(|p| format!("{} {}", p.pid, p.name)));
        counts.add("namespaces", namespaces(&processes));
        counts.add("cgroups", instances.iter().flat_map(|id| left::cgroups(id)).flat_map(|c| tree(&c, true)));
        counts.add("containers", instances.iter().flat_map(|id| left::containers(id)));
        counts.add("mounts", lines("/proc/self/mountinfo").filter(|line| marked(line)));
        let claimed = |line: &str| claims.iter().any(|id| line.ends_with(&format!("@berth-uids-{id}")));
        let sockets =
            lines("/proc/net/unix").filter(|line| marked(line) || claimed(line) && !of_others(line, &marked));
        counts.add("sockets", sockets);
        counts.add("files of the fleet", tree(dir, false).filter(|path| lasting(path)));
        for place in ["/run", "/tmp", "/var/tmp", "/dev/shm"] {
            let named = |path: &Path| path != dir && marked(&path.to_string_lossy());
            counts.add("files elsewhere", entries(Path::new(place)).filter(|p| named(p)).map(shown));
        }
        counts
    }

    fn add(&mut self, kind: &'static str, names: impl Iterator<Item = String>) {
        self.0.entry(kind).or_default().extend(names);
    }

    /// What there is more or less of than at `level`.
    pub fn differences(&self, level: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, names) in &self.0 {
            let before = &level.0[kind];
            if names.len() != before.len() {
                let (now, then): (BTreeSet<_>, BTreeSet<_>) =
                    (names.iter().collect(), before.iter().collect());
                let more: Vec<_> = now.difference(&then).collect();
                let gone: Vec<_> = then.difference(&now).collect();
                let (count, was) = (names.len(), before.len());
                found.push(format!("{kind}: {count}, and it was {was}; new: {more:#?}; gone: {gone:#?}"));
            }
        }
        found
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each: Vec<_> = self.0.iter().map(|(kind, names)| format!("{} {kind}", names.len())).collect();
        f.write_str(&each.join(", "))
    }
}

/// What SQLite makes and removes as it likes is not counted.
fn lasting(path: &str) -> bool {
    !path.ends_with("-wal") && !path.ends_with("-shm") && !path.ends_with("-journal")
}

struct Process {
    pid: i32,
    parent: i32,
    name: String,
    /// Named by something of ours, and not dead. (When the machine's init looks after a dead orphan is its affair.)
    named: bool,
}

impl Process {
    fn read(pid: i32, marked: &dyn Fn(&str) -> bool) -> Self {
        let read = |file: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let stat = read("stat");
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let dead = fields.next() == Some("Z");
        let parent = fields.next().and_then(|parent| parent.parse().ok()).unwrap_or_default();
        let named = !dead && ["cmdline", "environ", "cgroup"].iter().any(|file| marked(&read(file)));
        Self { pid, parent, name: read("cmdline"), named }
    }

    /// Those that name what is ours, are in a cgroup of ours, or descend from one that does. Not this one.
    fn ours(marked: &dyn Fn(&str) -> bool) -> Vec<Self> {
        let own = std::process::id() as i32;
        let pids = entries(Path::new("/proc")).filter_map(|p| p.file_name()?.to_str()?.parse().ok());
        let all = pids.filter(|pid| *pid != own).map(|pid| Self::read(pid, marked));
        let (mut ours, mut others): (Vec<_>, Vec<_>) = all.partition(|process| process.named);
        let mut next = 0;
        while let Some(parent) = ours.get(next).map(|process| process.pid) {
            next += 1;
            let (children, rest) = others.into_iter().partition(|process| process.parent == parent);
            let children: Vec<_> = children;
            ours.extend(children);
            others = rest;
        }
        ours
    }
}

/// Namespaces other than this process' own.
fn namespaces(processes: &[Process]) -> impl Iterator<Item = String> {
    let links = |pid: &str| -> Vec<String> {
        let kinds = entries(&Path::new("/proc").join(pid).join("ns"));
        let targets = kinds.filter_map(|link| fs::read_link(link).ok());
        targets.map(|target| target.to_string_lossy().into_owned()).collect()
    };
    let own: BTreeSet<String> = links("self").into_iter().collect();
    let all: BTreeSet<String> = processes.iter().flat_map(|p| links(&p.pid.to_string())).collect();
    all.into_iter().filter(move |namespace| !own.contains(namespace))
}

/// Whether another fleet's sandbox has drawn the host ids that one of ours had before: there are some thousand ranges, and its
/// claim stays for as long as it lives. A claim of whoever is in no sandbox is counted as ours.
fn of_others(line: &str, marked: &dyn Fn(&str) -> bool) -> bool {
    let Some(inode) = line.split_whitespace().nth(6) else { return false };
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let holds = |process: &Path| {
        entries(&process.join("fd")).any(|fd| fs::read_link(fd).is_ok_and(|target| target == socket))
    };
    entries(Path::new("/proc")).filter(|process| holds(process)).any(|process| {
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        cgroup.contains("/berth-") && !marked(&cgroup)
    })
}

fn lines(path: &str) -> std::vec::IntoIter<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn shown(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// A directory and all below it; of cgroups the directories only.
fn tree(dir: &Path, directories_only: bool) -> impl Iterator<Item = String> + use<> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        let is_dir = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_dir());
        if is_dir(&dir) {
            found.extend(entries(&dir).filter(|path| !directories_only || is_dir(path)));
        }
    }
    found.into_iter().map(shown)
}
