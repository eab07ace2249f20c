//! What a new sandbox does to itself between fork and exec: builds its root, leaves the
//! host's, and gives up what it does not need. Nothing untrusted has run by then.
//!
//! The order is that of ABUSE.md: cgroups and id maps come first (the maps are the parent's); then
//! private mounts, the root, pivot, /proc and /dev, capabilities, no_new_privs, exec. Each
//! step fails closed and says its name.
//!
//! All that comes from the host is cloned by the launcher as detached mounts *before* the
//! fork (see [`Prepared`]): inside, no host path is resolved any more, so directories that
//! only root may enter need no wider permissions.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, symlink},
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use berth_proto::secret;
use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, SigmaskHow, sigprocmask},
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::{Mode, umask},
    },
    unistd::{
        Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execve, pivot_root, setgroups, sethostname,
        setresgid, setresuid, setsid,
    },
};

use super::{launcher::Failure, plan::Plan, sys};
use crate::sandbox::{MEMLOCK, NOFILE, PROC_HIDDEN, memory_files};

/// Namespaces of a sandbox. Its cgroup namespace is made before, or later, once it is in its cgroup: see [`super::birth`].
pub const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// All that PID 1 keeps (ARCHITECTURE, decision 1). SETPCAP goes once the agent has emptied
/// its bounding set.
const KEPT: [Capability; 4] =
    [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_KILL, Capability::CAP_SETPCAP];

/// Of /proc: writable parts made read-only. What tells of the host is hidden: [`PROC_HIDDEN`].
const PROC_READ_ONLY: [&str; 3] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/bus"];
/// What files are hidden by: empty, and unlinked when it lies over all of them.
const EMPTY_FILE: &str = "/.empty";
/// The same for directories.
const EMPTY_DIR: &str = "/.empty-directory";
/// System V shared memory goes with the last process that has it, also when that was killed.
const SHM_ENDS_WITH_ITS_USERS: &str = "/proc/sys/kernel/shm_rmid_forced";

/// The caller's IPC namespace: `ipc:[number]`.
const IPC: &str = "/proc/self/ns/ipc";

/// Made by the launcher as root, before the fork.
pub struct Prepared {
    /// Beside the plan's mounts; `None` where an optional source is missing.
    trees: Vec<Option<(OwnedFd, bool)>>,
    log: OwnedFd,
    /// What a thread writes to for its own move into a cgroup of v1; the kernel asks who opened it.
    cgroup_tasks: Vec<OwnedFd>,
    /// It is born in the cgroup namespace that it is to have.
    in_cgroup_namespace: bool,
    /// Names the launcher's own IPC namespace, which is the host's.
    host_ipc: PathBuf,
}

impl Prepared {
    pub fn new(plan: &Plan, in_cgroup_namespace: bool) -> Result<Self, Failure> {
        let mut trees = Vec::with_capacity(plan.mounts.len());
        for wanted in &plan.mounts {
            let fail = |error: io::Error| Failure::new(format!("clone {}", wanted.source.display()), error);
            let source = CString::new(wanted.source.as_os_str().as_bytes()).map_err(|e| fail(e.into()))?;
            let tree = match sys::open_tree_clone(&source, wanted.recursive) {
                Ok(tree) => tree,
                Err(error) if wanted.optional && error.kind() == io::ErrorKind::NotFound => {
                    trees.push(None);
                    continue;
                }
                Err(error) => return Err(fail(error)),
            };
            sys::mount_setattr(tree.as_fd(), wanted.attributes, wanted.recursive).map_err(fail)?;
            let directory = fs::metadata(&wanted.source).map_err(fail)?.is_dir();
            trees.push(Some((tree, directory)));
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&plan.log)
            .map_err(|e| Failure::new(format!("open {}", plan.log.display()), e))?;
        let open = |file: &PathBuf| {
            let opened = fs::OpenOptions::new().write(true).open(file);
            opened.map(OwnedFd::from).map_err(|e| Failure::new(format!("open {}", file.display()), e))
        };
        let cgroup_tasks = plan.cgroup_tasks.iter().map(open).collect::<Result<_, _>>()?;
        let host_ipc = fs::read_link(IPC).map_err(|e| Failure::new("read the IPC namespace", e))?;
        Ok(Self { trees, log: log.into(), cgroup_tasks, in_cgroup_namespace, host_ipc })
    }
}

/// The child. Waits until its parent has mapped its ids, then becomes PID 1 of the sandbox.
/// A failure is told on `errors` as `stage NUL text`; a successful exec closes it.
pub fn run(plan: &Plan, prepared: Prepared, claim: &OwnedFd, go: OwnedFd, errors: OwnedFd) -> ! {
    // A panic must not unwind into the launcher's own loop, of which this is a copy.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut byte = [0];
        match nix::unistd::read(&go, &mut byte) {
            Ok(1) => become_sandbox(plan, &prepared, claim),
            // The parent gave up.
            _ => sys::exit_now(1),
        }
    }));
    let failure = match result {
        Ok(Ok(())) => sys::exit_now(0),
        Ok(Err(failure)) => failure,
        Err(_) => Failure::new("set-up", "a defect: the launcher's child panicked"),
    };
    let text = format!("{}\0{}", failure.stage, failure.error);
    let _ = nix::unistd::write(&errors, text.as_bytes());
    sys::exit_now(1)
}

/// Attaches the name of the step to whatever error it gave.
trait Stage<T> {
    fn stage(self, name: &str) -> Result<T, Failure>;
}

impl<T, E: ToString> Stage<T> for Result<T, E> {
    fn stage(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(name, error))
    }
}

/// Returns only when the plan has no program, which is the preflight.
fn become_sandbox(plan: &Plan, prepared: &Prepared, claim: &OwnedFd) -> Result<(), Failure> {
    // Until now our ids were the host's, which have no meaning in the new user namespace.
    setgroups(&[]).stage("setgroups")?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).stage("setresgid")?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).stage("setresuid")?;
    // By itself: for somebody else to move it would take 8 to 20 ms, and hold up all forks of the machine (see `birth`).
    // As root inside, since that is whom a kernel before 5.16 asks; a newer one asks who opened the file.
    for file in &prepared.cgroup_tasks {
        nix::unistd::write(file, b"0").stage("join cgroup")?;
    }
    if !prepared.in_cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).stage("new cgroup namespace")?;
    }
    setsid().stage("setsid")?;
    umask(Mode::from_bits_truncate(0o022));

    build_root(plan, prepared)?;
    leave_host()?;
    limit_shared_memory(&prepared.host_ipc);
    protect_proc()?;
    read_only(c"/dev", "dev")?;
    read_only(c"/", "root")?;

    sethostname(&plan.hostname).stage("sethostname")?;
    let inet =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).stage("socket")?;
    sys::loopback_up(inet.as_fd()).stage("bring up lo")?;
    // Whatever the worker itself was given.
    let (core, locked) = crate::weaken::limits(0, MEMLOCK);
    for (resource, (soft, hard)) in [
        (Resource::RLIMIT_CORE, (core, core)),
        (Resource::RLIMIT_NICE, (0, 0)),
        (Resource::RLIMIT_RTPRIO, (0, 0)),
        (Resource::RLIMIT_MEMLOCK, (locked, locked)),
        (Resource::RLIMIT_NOFILE, NOFILE),
    ] {
        // What the worker may not have, a sandbox may not either.
        let most = getrlimit(resource).stage("rlimits")?.1;
        setrlimit(resource, soft.min(most), hard.min(most)).stage("rlimits")?;
    }

    // The claim of our id range is standard input, so that it lives as long as we do.
    dup2_stdin(claim).stage("stdin")?;
    dup2_stdout(&prepared.log).stage("stdout")?;
    dup2_stderr(&prepared.log).stage("stderr")?;
    sys::close_on_exec_from(3).stage("close descriptors")?;
    sys::default_children();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).stage("signal mask")?;
    drop_capabilities()?;
    sys::no_new_privileges().stage("no_new_privs")?;

    if plan.program.is_empty() {
        return Ok(());
    }
    let program = CString::new(plan.program.as_str()).stage("program")?;
    let Err(errno) = execve(&program, &[&program], &[] as &[&CStr]);
    Err(Failure::new(format!("exec {}", plan.program), errno))
}

// ---- the root -------------------------------------------------------------------

const NOTHING: Option<&str> = None;

fn tmpfs(target: &str, options: &str) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .stage(&format!("mount tmpfs at {target}"))
}

/// One that tasks write to: bounded in bytes and in files.
fn memory_files_at(target: &str, size: u64) -> Result<(), Failure> {
    tmpfs(target, &format!("mode=1777,size={size},nr_inodes={}", memory_files::files(size)))
}

/// Where the agent, and nobody else, puts what tasks are given.
fn secrets_at(target: &str) -> Result<(), Failure> {
    fs::create_dir(target).stage(target)?;
    let files = memory_files::files(memory_files::SECRETS);
    let options = format!("mode=0755,size={},nr_inodes={files}", memory_files::SECRETS);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(&options[..])).stage("mount tmpfs for secrets")
}

/// Builds the new root as the current directory. It is a small tmpfs of our own, so no
/// link that an image planted can lead a mount astray.
fn build_root(plan: &Plan, prepared: &Prepared) -> Result<(), Failure> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).stage("private mounts")?;
    // Any directory does as the place; nothing of the host's is looked up after this.
    tmpfs("/usr", "mode=0755,size=1m,nr_inodes=1024")?;
    std::env::set_current_dir("/usr").stage("enter the new root")?;

    for dir in ["proc", "dev", "tmp", "run", "home", "root"] {
        fs::create_dir(dir).stage(dir)?;
    }
    for (name, target) in &plan.links {
        symlink(target, name).stage(name)?;
    }
    let proc_flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "proc", Some("proc"), proc_flags, NOTHING).stage("mount proc")?;
    build_dev(plan)?;
    memory_files_at("tmp", plan.memory_files.tmp)?;
    secrets_at(secret::DIR.trim_start_matches('/'))?;

    for (wanted, tree) in plan.mounts.iter().zip(&prepared.trees) {
        let Some((tree, directory)) = tree else { continue };
        let target = wanted.target.trim_start_matches('/');
        match place(target, *directory).and_then(|place| sys::move_mount(tree.as_fd(), place.as_fd())) {
            Ok(()) => {}
            // Told by its absence: the plan calls it optional.
            Err(_) if wanted.optional => {}
            Err(error) => return Err(Failure::new(format!("mount {}", wanted.target), error)),
        }
    }
    if fs::symlink_metadata("var").is_err() {
        fs::create_dir("var").stage("var")?;
        symlink("../tmp", "var/tmp").stage("var/tmp")?;
    } else if place("var/tmp", true).is_ok() {
        memory_files_at("var/tmp", plan.memory_files.var_tmp)?;
    }
    Ok(())
}

fn build_dev(plan: &Plan) -> Result<(), Failure> {
    tmpfs("dev", "mode=0755,size=64k,nr_inodes=64").and_then(|()| {
        fs::create_dir("dev/pts").stage("dev/pts")?;
        fs::create_dir("dev/shm").stage("dev/shm")
    })?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount(Some("devpts"), "dev/pts", Some("devpts"), flags, Some(options)).stage("mount devpts")?;
    memory_files_at("dev/shm", plan.memory_files.shm)?;
    // Of the sandbox's own IPC namespace. Landlock knows its queues by this place.
    fs::create_dir("dev/mqueue").stage("dev/mqueue")?;
    mount(Some("mqueue"), "dev/mqueue", Some("mqueue"), flags | MsFlags::MS_NODEV, NOTHING)
        .stage("mount mqueue")?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("dev").join(name)).stage(name)?;
    }
    Ok(())
}

/// The place for a mount, below the new root and through no link; made when it is missing.
fn place(target: &str, directory: bool) -> io::Result<OwnedFd> {
    let find = || {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(AT_FDCWD, target, how)
    };
    match find() {
        Err(Errno::ENOENT) => {
            if let Some(parent) = Path::new(target).parent() {
                fs::create_dir_all(parent)?;
            }
            if directory {
                fs::create_dir(target)?;
            } else {
                fs::write(target, "")?;
            }
            Ok(find()?)
        }
        other => Ok(other?),
    }
}

/// Makes the current directory the root, and lets go of the host's.
fn leave_host() -> Result<(), Failure> {
    pivot_root(".", ".").stage("pivot_root")?;
    // The old root is now mounted over the new one, at "."; without it the new one shows.
    umount2(".", MntFlags::MNT_DETACH).stage("detach the host's root")?;
    std::env::set_current_dir("/").stage("enter /")
}

/// Shared memory would outlive its task otherwise. Only in an IPC namespace of our own: anywhere else it
/// would be the host's setting, and it is left alone. A kernel before 5.19 does not let us, and the
/// memory then goes with the session.
fn limit_shared_memory(host_ipc: &Path) {
    if fs::read_link(IPC).is_ok_and(|own| own != host_ipc) {
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(SHM_ENDS_WITH_ITS_USERS)
            .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
    }
}

/// Makes parts of /proc read-only, and hides others.
fn protect_proc() -> Result<(), Failure> {
    for path in PROC_READ_ONLY {
        cover(path, path)?;
    }
    fs::write(EMPTY_FILE, "").stage(EMPTY_FILE)?;
    fs::create_dir(EMPTY_DIR).stage(EMPTY_DIR)?;
    for path in PROC_HIDDEN {
        let directory = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        cover(if directory { EMPTY_DIR } else { EMPTY_FILE }, path)?;
    }
    fs::remove_dir(EMPTY_DIR).stage(EMPTY_DIR)?;
    fs::remove_file(EMPTY_FILE).stage(EMPTY_FILE)
}

/// Mounts `source` read-only over `target`, if the kernel has that.
fn cover(source: &str, target: &str) -> Result<(), Failure> {
    let place = match open(target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        // A kernel without this file has nothing to protect there.
        Err(Errno::ENOENT) => return Ok(()),
        other => other.stage(target)?,
    };
    let attributes = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    let source = CString::new(source).stage(source)?;
    sys::open_tree_clone(&source, false)
        .and_then(|tree| {
            sys::mount_setattr(tree.as_fd(), attributes, false)?;
            sys::move_mount(tree.as_fd(), place.as_fd())
        })
        .stage(&format!("protect {target}"))
}

fn read_only(path: &CStr, name: &str) -> Result<(), Failure> {
    let here = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).stage(name)?;
    sys::mount_setattr(here.as_fd(), sys::ATTR_RDONLY, false).stage(&format!("make {name} read-only"))
}

// ---- privileges -----------------------------------------------------------------

/// After exec uid 0 has what its bounding set allows, so that is what is cut.
fn drop_capabilities() -> Result<(), Failure> {
    caps::clear(None, CapSet::Ambient).stage("ambient capabilities")?;
    for capability in caps::all() {
        if !KEPT.contains(&capability) {
            match caps::drop(None, CapSet::Bounding, capability) {
                Ok(()) => {}
                // A capability that this kernel does not know can't be had either.
                Err(_) if !caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) => {}
                Err(error) => return Err(Failure::new(format!("drop {capability}"), error)),
            }
        }
    }
    caps::clear(None, CapSet::Inheritable).stage("inheritable capabilities")?;
    let kept = KEPT.into_iter().collect();
    caps::set(None, CapSet::Effective, &kept).stage("effective capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).stage("permitted capabilities")
}
