//! Finds the cgroup hierarchies and this process's place in each.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use berth_proto::{Code, Error, Reason};

use super::file::{mkdir, write};

/// The leaf that this process moves into on v2, below its own cgroup. A service manager may put it there at once.
pub const SUPERVISOR: &str = "/berth-supervisor";

/// A hierarchy as this process sees it.
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// Our own cgroup in it.
    pub(super) dir: PathBuf,
}

/// Controller name (`unified` for the v2 mount) → where it is mounted and where we are.
pub(super) fn hierarchies(mountinfo: &str, own: &str) -> BTreeMap<String, Hierarchy> {
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let names: Vec<&str> = match *kind {
            "cgroup2" => vec!["unified"],
            "cgroup" => right.get(2).map(|options| options.split(',').collect()).unwrap_or_default(),
            _ => continue,
        };
        for name in names {
            let Some(path) = own_path(own, name) else { continue };
            // A second tree in this process must not nest in the first one's leaf.
            let path = path
                .strip_suffix(SUPERVISOR)
                .map_or(path, |above| if above.is_empty() { "/" } else { above });
            let below = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
            let hierarchy = Hierarchy { mount: PathBuf::from(mount), dir: Path::new(mount).join(below) };
            found.entry(name.to_owned()).or_insert(hierarchy);
        }
    }
    found
}

/// Cgroups whose name is wanted, anywhere in the hierarchies that sessions have cgroups in, and made by this user: anybody whom a part
/// of a hierarchy is delegated to can make one of any name.
pub(super) fn named(
    hierarchies: &BTreeMap<String, Hierarchy>,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<PathBuf> {
    let ours = |controller: &str| controller == "unified" || super::V1.contains(&controller);
    let mounts = hierarchies.iter().filter(|(controller, _)| ours(controller));
    let mut left: Vec<PathBuf> = mounts.map(|(_, hierarchy)| hierarchy.mount.clone()).collect();
    left.sort_unstable();
    left.dedup();
    let user = nix::unistd::geteuid().as_raw();
    let mut found = Vec::new();
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (Ok(kind), name) = (entry.file_type(), entry.file_name()) else { continue };
            let name = name.to_str().unwrap_or_default();
            if !kind.is_dir() {
            } else if wanted(name) {
                found.extend(entry.metadata().is_ok_and(|meta| meta.uid() == user).then(|| entry.path()));
            } else if !is_of_a_worker(name) {
                left.push(entry.path());
            }
        }
    }
    found
}

/// `berth-<instance>`, of docker too: nothing but sessions is within.
fn is_of_a_worker(name: &str) -> bool {
    let instance = name.strip_prefix("berth-").map(|name| name.strip_suffix("-docker").unwrap_or(name));
    instance.is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether the kernel lets nobody move a process, or make one, out of or into what lies outside of the caller's cgroup
/// namespace: cgroup2 mounted with `nsdelegate`, as systemd does (cgroups(7), "Cgroup namespaces"). PID 1 of a sandbox is in
/// `agent/` and its tasks go to `t/`, so there a namespace that it made for itself, whose root is `agent/`, would let no task start.
pub(super) fn namespaces_are_walls(mountinfo: &str) -> bool {
    mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(_, right)| {
        let mut words = right.split(' ');
        words.next() == Some("cgroup2")
            && words.nth(1).is_some_and(|all| all.split(',').any(|it| it == "nsdelegate"))
    })
}

/// Our path in a hierarchy, from /proc/self/cgroup.
fn own_path<'a>(own: &'a str, name: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let here = if name == "unified" {
            controllers.is_empty()
        } else {
            controllers.split(',').any(|c| c == name)
        };
        here.then_some(path)
    })
}

/// Where a v2 tree can have controllers: below our own cgroup when we may have it to
/// ourselves (systemd's `Delegate=yes`: we move into a leaf, since a cgroup with processes
/// can't have controllers for its children), else below the root of the hierarchy.
pub(super) fn v2_parent(unified: &Hierarchy) -> Result<PathBuf, Error> {
    if unified.dir != unified.mount {
        let leaf = unified.dir.join(SUPERVISOR.trim_start_matches('/'));
        let own = mkdir(&leaf)
            .and_then(|()| write(&leaf.join("cgroup.procs"), std::process::id()))
            .and_then(|()| write(&unified.dir.join("cgroup.subtree_control"), "+memory +pids +cpu"));
        match own {
            Ok(()) => return Ok(unified.dir.clone()),
            Err(error) => {
                tracing::info!(%error, "our own cgroup is shared with others: using the root of the hierarchy");
                let _ = write(&unified.dir.join("cgroup.procs"), std::process::id());
                let _ = std::fs::remove_dir(&leaf);
            }
        }
    }
    enable(&unified.mount)?;
    Ok(unified.mount.clone())
}

pub(super) fn enable(dir: &Path) -> Result<(), Error> {
    write(&dir.join("cgroup.subtree_control"), "+memory +pids +cpu").map_err(|cause| {
        missing(format!("{} has no memory, pids and cpu controllers to give", dir.display()))
            .hint("run the worker as root, as a service with Delegate=yes")
            .cause(cause)
    })
}

pub(super) fn make(dir: &Path) -> Result<(), Error> {
    mkdir(dir).map_err(|cause| {
        missing(format!("a cgroup can't be made: {cause}"))
            .hint("native sandboxes need root and a writable cgroup mount")
            .cause(cause)
    })
}

pub(super) fn missing(message: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, Reason::BackendUnavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
35 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn hierarchies_are_found_with_our_place_in_them() {
        let own = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/p\n0::/";
        let found = hierarchies(HYBRID, own);
        let dir = |name: &str| found[name].dir.to_str().unwrap().to_owned();
        assert_eq!(dir("memory"), "/sys/fs/cgroup/memory/a/b");
        assert_eq!(dir("cpu").trim_end_matches('/'), "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(dir("pids"), "/sys/fs/cgroup/pids/p");
        assert_eq!(dir("unified").trim_end_matches('/'), "/sys/fs/cgroup/unified");
    }

    #[test]
    fn a_namespace_is_a_wall_where_the_mount_says_so() {
        assert!(!namespaces_are_walls(HYBRID));
        let line =
            |options: &str| format!("25 22 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 {options}");
        assert!(namespaces_are_walls(&format!("{HYBRID}\n{}", line("rw,nsdelegate,memory_recursiveprot"))));
        assert!(!namespaces_are_walls(&line("rw,memory_recursiveprot")));
        let another = "31 24 0:27 / /mnt rw - nfs server:/nsdelegate rw,nsdelegate";
        assert!(!namespaces_are_walls(another));
    }

    #[test]
    fn a_bind_mounted_hierarchy_is_seen_from_its_own_root() {
        let mounts = "33 31 0:29 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let found = hierarchies(mounts, "4:memory:/docker/x/inner");
        assert_eq!(found["memory"].dir, Path::new("/sys/fs/cgroup/memory/inner"));
    }

    #[test]
    fn the_leaf_that_we_moved_into_is_not_our_place() {
        let mounts = "35 31 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let found = hierarchies(mounts, "0::/system.slice/berth.service/berth-supervisor");
        assert_eq!(found["unified"].dir, Path::new("/sys/fs/cgroup/system.slice/berth.service"));
    }

    #[test]
    fn a_missing_controller_is_named() {
        let error = super::super::CgroupTree::from_proc("", "0::/", "i").expect_err("nothing is mounted");
        assert_eq!(error.reason(), Reason::BackendUnavailable);
        assert!(error.to_string().contains("memory, pids and cpu"));
    }

    /// Red when only our own place is looked at.
    #[test]
    fn what_was_made_from_another_cgroup_is_found_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let mounts: String = super::super::V1
            .map(|name| {
                let mount = temp.path().join(name);
                fs::create_dir_all(mount.join("now")).unwrap();
                format!("33 31 0:29 / {} rw - cgroup cgroup rw,{name}\n", mount.display())
            })
            .concat();
        let session = berth_proto::SessionId::new();
        let of_session = |part: &str| temp.path().join("memory").join(part).join(session.to_string());
        let (earlier, other) = ("system.slice/berth-worker.service/berth-0123456789ab", "berth-ba9876543210");
        for part in [earlier, other, "berth-ba9876543210/berth-0123456789ab"] {
            fs::create_dir_all(of_session(part).join("t")).unwrap();
        }
        let own = "1:memory,pids,cpu:/now";
        let found = named(&hierarchies(&mounts, own), &|name| name == "berth-0123456789ab");
        assert_eq!(found, [temp.path().join("memory").join(earlier)]);
        let tree = super::super::CgroupTree::from_proc(&mounts, own, "0123456789ab").expect("a tree");
        assert!(tree.sessions().is_empty());
        let tree = tree.also_at(found);
        assert_eq!(tree.sessions(), [session]);
        tree.remove(&session.to_string()).unwrap();
        assert!(!of_session(earlier).exists() && tree.sessions().is_empty());
        tree.close();
        assert!(!temp.path().join("memory/now/berth-0123456789ab").exists());
        assert!(!temp.path().join("memory").join(earlier).exists());
        assert!(of_session(other).exists(), "another worker's");
    }
}
