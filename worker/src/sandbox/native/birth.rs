//! How PID 1 of a sandbox comes to be: in namespaces that belong to the session's own host id, in its cgroup, and, where the
//! worker has made one for it, in the session's cgroup namespace. Of the launcher, with its single thread.
//!
//! Where cgroup2 is mounted with `nsdelegate`, as systemd does, a cgroup namespace is a wall: nobody in it moves or makes a
//! process across its root. PID 1 could make one by itself, but it is in `agent/`, which would be the root, and its tasks go
//! to `t/` beside that. So [`namespace`] makes one whose root is the directory of the session, by a process that is in there for a
//! moment, *before* it has controllers for its children: from then on the kernel has no process there. And since who is in a
//! namespace of another user's can't enter one of root's, PID 1 is forked by one that has entered it: [`fork_owned`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use caps::CapSet;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::waitpid,
    },
    unistd::{Pid, Uid, pipe2, seteuid},
};

use super::{
    child,
    launcher::{self, Failure},
    sys,
};

/// A process of the sandbox, forked.
pub enum Forked {
    /// We are it.
    Child,
    Parent(i32),
}

/// Forks PID 1 into namespaces that belong to the session's own host id. What the kernel counts by user (inotify, fanotify,
/// namespaces, pending signals, ...) is counted for the owner of a user namespace too: did they all belong to root, one
/// session could use up what all the others, and root itself, have.
///
/// # Errors
/// Where it failed, in words; then nothing was forked that lives on.
pub fn fork_owned(
    owner: u32,
    cgroup: Option<&PathBuf>,
    namespace: Option<&OwnedFd>,
) -> Result<Forked, Failure> {
    let fail = |error: io::Error| Failure::new("new namespaces", error);
    let Some(namespace) = namespace else {
        return match as_owner(owner, || fork_in(child::NAMESPACES, cgroup)).map_err(fail)? {
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(pid)),
        };
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| fail(errno.into()))?;
    if as_owner(owner, || fork_in(0, cgroup)).map_err(fail)? > 0 {
        drop(write);
        let mut told = String::new();
        File::from(read).read_to_string(&mut told).map_err(fail)?;
        return told.parse().map(Forked::Parent).map_err(|_| told_failure(&told));
    }
    // Between the two. It has root's capabilities still.
    let entered = join_by_itself(cgroup).and_then(|()| Ok(setns(namespace, CloneFlags::CLONE_NEWCGROUP)?));
    let forked = entered
        .map_err(|error| ("enter the cgroup namespace", error))
        .and_then(|()| sys::fork_beside(child::NAMESPACES).map_err(|error| ("new namespaces", error)));
    let told = match forked {
        Ok(0) => return Ok(Forked::Child),
        Ok(pid) => pid.to_string(),
        Err((stage, error)) => format!("{stage}\0{error}"),
    };
    let _ = File::from(write).write_all(told.as_bytes());
    sys::exit_now(0)
}

/// Makes the cgroup namespace of a session, whose root is this directory of v2, and those of v1. Nobody is in it.
///
/// # Errors
/// Where it failed, in words.
pub fn namespace(owner: u32, cgroup: &PathBuf, v1: &[PathBuf]) -> Result<OwnedFd, Failure> {
    let fail = |error: io::Error| Failure::new("new cgroup namespace", error);
    // By root: a kernel from 5.16 on asks who opened them. On an older one a task reads the host's names of these.
    let opened = v1.iter().map(|dir| OpenOptions::new().write(true).open(dir.join("tasks")));
    let opened: Vec<File> = opened.collect::<io::Result<_>>().map_err(fail)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| fail(errno.into()))?;
    let pid = as_owner(owner, || fork_in(0, Some(cgroup))).map_err(fail)?;
    if pid == 0 {
        drop(ours);
        let made = join_by_itself(Some(cgroup)).and_then(|()| {
            for mut tasks in opened {
                let _ = tasks.write_all(b"0");
            }
            unshare(CloneFlags::CLONE_NEWCGROUP)?;
            // Its own, since that of another process takes the right to trace it.
            File::open("/proc/self/ns/cgroup")
        });
        let _ = match made {
            Ok(made) => launcher::send(&theirs, b"made", &[&made.into()]),
            Err(error) => launcher::send(&theirs, format!("new cgroup namespace\0{error}").as_bytes(), &[]),
        };
        sys::exit_now(0);
    }
    drop(theirs);
    let mut buffer = [0; 1024];
    let heard = loop {
        match launcher::receive(&ours, &mut buffer) {
            Err(Errno::EINTR) => {}
            heard => break heard.map_err(|errno| fail(errno.into())),
        }
    };
    // Children vanish by themselves: that there is none is how this ends. Then nobody is in the directory.
    while waitpid(Pid::from_raw(pid), None) == Err(Errno::EINTR) {}
    let (length, fds) = heard?;
    fds.into_iter().next().ok_or_else(|| told_failure(&String::from_utf8_lossy(&buffer[..length])))
}

/// What a process between said, in the manner of [`child::run`].
fn told_failure(told: &str) -> Failure {
    match told.split_once('\0') {
        Some((stage, error)) => Failure::new(stage, error),
        None => Failure::new("cgroup namespace", "the process between ended without a word"),
    }
}

/// Forks, with what is made belonging to this host id. 0 in the child.
fn as_owner(owner: u32, fork: impl FnOnce() -> io::Result<i32>) -> io::Result<i32> {
    seteuid(Uid::from_raw(owner))?;
    // Leaving 0 took the effective ones. Some kernels let nobody else make user namespaces.
    let raised = caps::read(None, CapSet::Permitted).and_then(|had| caps::set(None, CapSet::Effective, &had));
    let forked = raised.map_err(io::Error::other).and_then(|()| fork());
    if !matches!(forked, Ok(0)) && seteuid(Uid::from_raw(0)).is_err() {
        // A launcher that is not root any more is none.
        sys::exit_now(1);
    }
    forked
}

/// Forks into namespaces, and into a cgroup of v2. To move a process there takes 8 to 20 ms, since it waits for an RCU grace
/// period with all forks of the machine held up at the end (measured on Linux 6.18), so that is done only where the kernel
/// can't have it born there: PID 1, which waits for its ids, is moved, and one without namespaces does [`join_by_itself`].
fn fork_in(namespaces: libc::c_int, cgroup: Option<&PathBuf>) -> io::Result<i32> {
    let Some(cgroup) = cgroup else { return sys::fork_into(namespaces, None) };
    let place = File::open(cgroup).map_err(|error| at(cgroup, &error))?;
    if let Ok(pid) = sys::fork_into(namespaces, Some(place.as_fd())) {
        return Ok(pid);
    }
    let pid = sys::fork_into(namespaces, None)?;
    if pid == 0 || namespaces == 0 {
        return Ok(pid);
    }
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, pid.to_string()).map(|()| pid).map_err(|error| {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        at(&procs, &error)
    })
}

/// Moves us into a cgroup of v2, unless we were born there.
fn join_by_itself(cgroup: Option<&PathBuf>) -> io::Result<()> {
    let Some(cgroup) = cgroup else { return Ok(()) };
    let procs = cgroup.join("cgroup.procs");
    // A process that is not in a cgroup of this name is not in this one.
    let there = fs::read_to_string("/proc/self/cgroup")?.lines().any(|line| {
        let path = line.strip_prefix("0::").map(Path::new);
        path.is_some_and(|path| ends_alike(path, cgroup))
    });
    if there { Ok(()) } else { fs::write(&procs, "0").map_err(|error| at(&procs, &error)) }
}

/// Whether two paths end in the same two names: the session's id and its part.
fn ends_alike(one: &Path, other: &Path) -> bool {
    one.iter().rev().take(2).eq(other.iter().rev().take(2))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
