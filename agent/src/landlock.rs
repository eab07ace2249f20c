//! Landlock: a second lock behind the first ones. Modes, owners and read-only mounts say what a task may reach; here the
//! kernel is told the same once more, in a way that no `chmod`, no mount and no user id undoes. What it adds:
//!
//! - below the agent's own directory nothing may be opened, made or removed, whatever its modes are;
//! - writing is for the places that the worker names, and of `/dev` for the devices that programs use;
//! - nobody outside is signalled, looked into (`/proc/PID/mem`, `environ`, `fd`) or reached by an abstract socket.
//!
//! **One domain for all tasks of a sandbox**, which init enters before it forks the first of them. A domain for each
//! task would be a wall between them: `kill`, `lsof -i` and abstract sockets from one task to another's would end.
//! So what init itself does goes through it: the tasks' cgroups are open in it, and there modes and owners hold alone.
//! And init is no outsider to them: it is another user's and not dumpable, as before. The server is outside.
//! It costs a start nothing: a fork inherits it.
//!
//! Not held, because landlock has no word for it: `stat`, `chmod`, times and extended attributes; sockets with a path;
//! and, within a tree that is open, any part of it. So the names in the agent's directory are as listable as those of
//! `/` (which must be), and `/proc`, in which programs write their own `comm` and `oom_score_adj`, is open to writing:
//! for both the first locks hold alone. TCP is left free: a sandbox has its own loopback and nothing else.
//!
//! Kernels differ by version ([`ABI`]). Rights that this one does not know are not asked for; before version 2 (Linux
//! 5.19), where every rename to another directory would fail, there is no landlock, and it is told so.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use berth_proto::agent_config::{AgentConfig, BERTH_DIR, Cgroups};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, RestrictSelfAttr,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, make_bitflags,
};

use crate::sys;

/// The newest version whose rights were tried: with a later one paths of sockets would be judged too.
const TRIED: i32 = 7;
/// The first with REFER: without that right renames and links never leave their directory.
const LEAST: i32 = 2;

/// Devices that programs open. Each is harmless to share.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts"];

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});
/// All but making device files, and commands to them: no such place has devices.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    Execute | ReadFile | ReadDir | WriteFile | Truncate | Refer | RemoveDir | RemoveFile
    | MakeDir | MakeReg | MakeSock | MakeFifo | MakeSym
});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | IoctlDev});
const PROC: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate});
/// What init and first processes do: make a group, join it, take it away.
const CGROUP: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | Truncate | MakeDir | RemoveDir});

/// What may be done below a path.
type Place = (PathBuf, BitFlags<AccessFs>);

/// The rules, ready to be entered. `None`: this kernel has no landlock.
pub struct Locks {
    /// For init, and so for all tasks.
    pub tasks: Option<RulesetCreated>,
    /// For the file threads.
    pub files: Option<RulesetCreated>,
}

/// Makes the rules of this sandbox.
pub fn locks(config: &AgentConfig) -> Result<Locks, String> {
    let Some(abi) = usable(sys::landlock_version()) else {
        return Ok(Locks { tasks: None, files: None });
    };
    let failed = |error: &dyn std::fmt::Display| format!("the landlock rules: {error}");
    let shared = shared(Path::new("/"), config).map_err(|error| failed(&error))?;
    let tasks = [shared.clone(), of_tasks(&config.cgroups)].concat();
    Ok(Locks {
        tasks: Some(rules(abi, &tasks, scopes(abi)).map_err(|error| failed(&error))?),
        files: Some(rules(abi, &shared, BitFlags::EMPTY).map_err(|error| failed(&error))?),
    })
}

/// Puts the calling thread, and all that it ever forks, under the rules. Sets no_new_privs for it.
pub fn enter(rules: RulesetCreated) -> Result<(), String> {
    match rules.restrict_self() {
        Ok(RestrictionStatus { ruleset: RulesetStatus::FullyEnforced, .. }) => Ok(()),
        Ok(status) => Err(format!("the landlock rules are not in force: {status:?}")),
        Err(error) => Err(format!("the landlock rules: {error}")),
    }
}

/// The version to speak with a kernel of this one, if it is enough.
fn usable(kernel: i32) -> Option<ABI> {
    if weakened!("no-landlock") {
        return None;
    }
    if weakened!("killable-agent-without-landlock") {
        return None;
    }
    (kernel >= LEAST).then(|| ABI::from(kernel.min(TRIED)))
}

fn scopes(abi: ABI) -> BitFlags<Scope> {
    if abi >= ABI::V6 { Scope::AbstractUnixSocket | Scope::Signal } else { BitFlags::EMPTY }
}

/// What tasks and file threads have in common: the root to read, but the agent's directory, devices, and
/// where to write.
/// Links at the root need no rule: what they lead to has one.
fn shared(root: &Path, config: &AgentConfig) -> io::Result<Vec<Place>> {
    let mut places = vec![(root.to_owned(), AccessFs::ReadDir.into())];
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let ours = Path::new("/").join(entry.file_name()) == Path::new(BERTH_DIR);
        let apart = ["proc", "dev"].iter().any(|name| entry.file_name() == *name);
        if !ours && !apart && !entry.file_type()?.is_symlink() {
            places.push((entry.path(), READ));
        }
    }
    places.push((root.join("dev"), AccessFs::ReadDir.into()));
    // File threads too: they open the tasks' terminals.
    places.extend(DEVICES.iter().map(|name| (root.join("dev").join(name), DEVICE)));
    places.extend([&config.workspace, &config.user.home].map(|path| (path.clone(), WRITE)));
    // An image may have a link there, and lead the rule to what is not for writing.
    places.extend(config.writable.iter().filter(|path| is_itself(path)).map(|path| (path.clone(), WRITE)));
    Ok(places)
}

/// Whether no part of a path is a link, and it is no place of the agent's. Nothing changes yet: no task runs.
fn is_itself(path: &Path) -> bool {
    let real = path.canonicalize().is_ok_and(|real| real == path);
    let berth = Path::new(BERTH_DIR);
    real && !path.starts_with(berth) && !berth.starts_with(path)
}

fn of_tasks(cgroups: &Cgroups) -> Vec<Place> {
    let groups = cgroups.v2.iter().chain(&cgroups.v1_memory).chain(&cgroups.v1_shared);
    let groups = groups.map(|base| (base.join("t"), CGROUP));
    groups.chain([("/proc".into(), PROC)]).collect()
}

fn rules(abi: ABI, places: &[Place], scopes: BitFlags<Scope>) -> Result<RulesetCreated, RulesetError> {
    let known = AccessFs::from_all(abi);
    // Nothing is asked for that the kernel does not know, so what it refuses is a defect, and no sandbox starts.
    let mut ruleset =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(known)?;
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes)?;
    }
    let mut created = ruleset.create()?;
    for (path, access) in places {
        // What is not there, or not for us to reach, stays shut.
        let Ok(place) = PathFd::new(path) else { continue };
        let kind = if path.is_dir() { known } else { AccessFs::from_file(abi) };
        created = created.add_rule(PathBeneath::new(place, *access & known & kind))?;
    }
    if abi >= ABI::V7 {
        // A task may make rules of its own, and must not fill the host's audit log by breaking them.
        created = created.log_same_exec(false)?.log_subdomains(false)?;
    }
    Ok(created)
}

#[cfg(test)]
mod tests {
    use berth_proto::agent_config::User;

    use super::*;

    fn config(dir: &Path) -> AgentConfig {
        AgentConfig {
            session_id: String::new(),
            backend: "fake".into(),
            user: User { name: "user".into(), uid: 1, gid: 1, home: dir.join("home/user") },
            workspace: dir.join("workspace"),
            run_dir: dir.join(".berth/run"),
            spool_dir: dir.join(".berth/spool"),
            cgroups: Cgroups::default(),
            seccomp: true,
            spools_bytes: 0,
            writable: vec![dir.join("tmp")],
            file_bytes: None,
        }
    }

    /// Red when a right is asked for that the kernel's version does not have, or one is left out that it has: a right
    /// that is not handled is not held.
    #[test]
    fn each_version_is_asked_for_what_it_has() {
        // ENOSYS and EOPNOTSUPP come as -1; without REFER nothing could be moved.
        for none in [-1, 0, 1] {
            assert_eq!(usable(none), None, "{none}");
        }
        let of = |kernel: i32| {
            let abi = usable(kernel).expect("it is enough");
            let known = AccessFs::from_all(abi);
            let has = |right| known.contains(right);
            (has(AccessFs::Refer), has(AccessFs::Truncate), has(AccessFs::IoctlDev), !scopes(abi).is_empty())
        };
        assert_eq!(of(2), (true, false, false, false));
        assert_eq!(of(3), (true, true, false, false));
        assert_eq!(of(4), (true, true, false, false));
        assert_eq!(of(5), (true, true, true, false));
        assert_eq!(of(6), (true, true, true, true));
        assert_eq!(of(7), of(6));
        // One that nobody knows yet is spoken to as the newest that was tried.
        assert_eq!(usable(99), Some(ABI::V7));
    }

    /// The rules are made for every version that this kernel can play: an older one's rights are among its own.
    /// Red when a file is asked for a directory's right, or a version for one that it lacks.
    #[test]
    fn rules_can_be_made_for_each_version_up_to_this_kernels() {
        let dir = std::env::temp_dir().join(format!("berth-landlock-{}", std::process::id()));
        fs::create_dir_all(dir.join("tmp")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        let places = [shared(&dir, &config(&dir)).unwrap(), of_tasks(&Cgroups::default())].concat();
        for version in LEAST..=sys::landlock_version().min(TRIED) {
            let abi = usable(version).unwrap();
            rules(abi, &places, scopes(abi)).unwrap_or_else(|error| panic!("version {version}: {error}"));
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Red when a rule is made for what a link leads to: here for the root itself.
    #[test]
    fn a_place_that_is_a_link_is_none() {
        let dir = std::env::temp_dir().join(format!("berth-landlock-links-{}", std::process::id()));
        fs::create_dir_all(dir.join("var")).unwrap();
        std::os::unix::fs::symlink("/", dir.join("var/tmp")).unwrap();
        std::os::unix::fs::symlink("var", dir.join("through")).unwrap();
        fs::create_dir_all(dir.join("var/real")).unwrap();
        let given = ["var/tmp", "through/real", "var/real", "absent"].map(|name| dir.join(name));
        let berths = ["/", "/.berth", "/.berth/spool"].map(PathBuf::from);
        let writable = [given.to_vec(), berths.to_vec()].concat();
        let places = shared(&dir, &AgentConfig { writable, ..config(&dir) }).unwrap();
        let own = [dir.join("workspace"), dir.join("home/user")];
        let open: Vec<_> = places
            .iter()
            .filter(|(path, access)| *access == WRITE && !own.contains(path))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(open, [&dir.join("var/real")]);
        fs::remove_dir_all(&dir).unwrap();
    }

    /// Red when the agent's directory, a link, or a device's directory as a whole gets into the list.
    #[test]
    fn the_agents_directory_is_in_no_rule() {
        let dir = std::env::temp_dir().join(format!("berth-landlock-places-{}", std::process::id()));
        for name in [".berth", "usr", "dev", "proc", "tmp"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("usr", dir.join("bin")).unwrap();
        let places = shared(&dir, &config(&dir)).unwrap();
        let of = |name: &str| {
            let at = dir.join(name);
            places.iter().filter(|(path, _)| *path == at).map(|(_, access)| *access).collect::<Vec<_>>()
        };
        assert_eq!(of(""), [BitFlags::from(AccessFs::ReadDir)]);
        assert_eq!(of("usr"), [READ]);
        assert_eq!(of("dev"), [BitFlags::from(AccessFs::ReadDir)]);
        assert_eq!(of("tmp"), [READ, WRITE]);
        for name in [".berth", "bin", "proc"] {
            assert!(of(name).is_empty(), "{name}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
