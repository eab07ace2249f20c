//! A task's first process, from init's fork to the task's program.
//!
//! Init keeps one or two of these **parked**: forked, in a cgroup of their own, in their own
//! session, waiting for a spawn. no_new_privs, the landlock rules and most of the seccomp filter they have from init
//! (loading it took 1 ms of kernel time for each). A start then costs a packet, a few system calls and the exec. The reason is measured:
//! where a process can't be born in its cgroup (see [`crate::cgroup`]), joining one waits for an RCU grace period when
//! nobody has joined one lately, which made one start in ten take 12 to 22 ms.
//!
//! A parked process is still the agent's uid, so no task can signal it. After fork from
//! a single-threaded process allocation is sound, so this is ordinary Rust up to exec.
//!
//! Without any cgroup the parked process becomes a **guard** instead: a subreaper that
//! forks the program and stays, so that all that the task starts are its descendants.

use std::{
    ffi::{CStr, CString},
    fs,
    mem::ManuallyDrop,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use berth_proto::agent_config::Cgroups;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, ResolveFlag},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd::{self, Gid, Pid, Uid},
};
use seccompiler::BpfProgram;

use crate::{
    cgroup,
    openat::{How, openat2},
    sys::{self, Forked},
    wire::{self, Event, Exited, Failed, Spawn, Spawned, Stage},
};

/// Tasks go first when memory is short. The agent stays below.
const OOM_SCORE_ADJ: &str = "500";

/// What a parked process needs to know. Built by init before the fork.
pub struct Launch<'a> {
    pub uid: u32,
    pub gid: u32,
    /// The cgroups to make and join.
    pub cgroups: &'a Cgroups,
    pub number: u64,
    /// It is in that of v2 already.
    pub born: bool,
    /// What comes on top of init's system call filter.
    pub filter: Option<&'a BpfProgram>,
    /// Stay as a subreaper above the task.
    pub guard: bool,
    /// The largest that a file may say it is.
    pub file_bytes: Option<u64>,
}

/// Runs in the child of init's fork; never returns.
pub fn run(launch: &Launch<'_>, socket: OwnedFd) -> ! {
    let (stage, errno) = match prepare(launch, &socket) {
        Ok(()) => wait_for_spawn(launch, &socket),
        Err(failure) => failure,
    };
    fail(socket.as_fd(), stage, errno)
}

fn fail(socket: BorrowedFd<'_>, stage: Stage, errno: i32) -> ! {
    let _ = wire::report(socket, 0, Event::Failed(Failed { stage: stage.into(), errno }));
    sys::exit(1)
}

type Failure = (Stage, i32);

fn at<E: Into<std::io::Error>>(stage: Stage) -> impl Fn(E) -> Failure {
    move |error| (stage, error.into().raw_os_error().unwrap_or(0))
}

fn prepare(launch: &Launch<'_>, socket: &OwnedFd) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::Prepare))?;
    sys::close_all_but(socket.as_fd()).map_err(at(Stage::Prepare))?;
    cgroup::join(launch.cgroups, launch.number, launch.born).map_err(at(Stage::Cgroup))?;
    // Best effort: cgroups are what protects the agent.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    unistd::setsid().map_err(at(Stage::Prepare))?;
    let core = if weakened!("loose-limits") { 1 << 20 } else { 0 };
    setrlimit(Resource::RLIMIT_CORE, core, core).map_err(at(Stage::Prepare))?;
    sys::default_signals();
    if let Some(most) = launch.file_bytes
        && !weakened!("loose-limits")
    {
        bound_files(most).map_err(at(Stage::Prepare))?;
    }
    if launch.guard {
        prctl::set_child_subreaper(true).map_err(at(Stage::Prepare))?;
    }
    // From here on as a task: nothing below needs more.
    match launch.filter.map(|filter| seccompiler::apply_filter(filter)) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))) => {
            Err(at(Stage::Prepare)(error))
        }
        Some(Err(_)) => Err((Stage::Prepare, libc::EINVAL)),
    }
}

/// No file of a task's is larger than this, holes included: what has no bound in blocks (a file of 1 TiB without any)
/// would still be read, packed and searched byte by byte by whoever comes after.
///
/// SIGXFSZ stays ignored: the call fails with EFBIG, which programs tell ("File too large"), and only it. By default
/// the signal would kill them, and the task's end would say no more than a number.
fn bound_files(most: u64) -> nix::Result<()> {
    let (_, given) = getrlimit(Resource::RLIMIT_FSIZE)?;
    let most = most.min(given);
    setrlimit(Resource::RLIMIT_FSIZE, most, most)?;
    sys::ignore_signal(Signal::SIGXFSZ);
    Ok(())
}

/// Waits until init has work, and does it. Comes back only with what went wrong.
fn wait_for_spawn(launch: &Launch<'_>, socket: &OwnedFd) -> Failure {
    let mut buffer = vec![0; wire::PACKET_MAX];
    let (n, mut fds) = match sys::receive(socket.as_fd(), &mut buffer) {
        Ok((0, _)) => sys::exit(0),
        Ok(packet) => packet,
        Err(error) => return at(Stage::Message)(error),
    };
    let spawn = match wire::read_spawn(&buffer[..n], &mut fds) {
        Ok(spawn) => spawn,
        Err(error) => return at(Stage::Message)(error),
    };
    // Closed by number further on, so never by their owner: this process execs or exits.
    let fds = ManuallyDrop::new(fds);
    if launch.guard { guard(launch, socket, &spawn, &fds) } else { start(launch, socket, &spawn, &fds) }
}

/// Becomes the task's program.
fn start(launch: &Launch<'_>, keep: &OwnedFd, spawn: &Spawn, fds: &[OwnedFd]) -> Failure {
    match enter(launch, keep, spawn, fds) {
        Ok(program) => program.exec(),
        Err(failure) => failure,
    }
}

fn enter(launch: &Launch<'_>, keep: &OwnedFd, spawn: &Spawn, fds: &[OwnedFd]) -> Result<Exec, Failure> {
    let bad = (Stage::Message, libc::EBADMSG);
    let (stdin, stdout, stderr) = match (spawn.pty, fds) {
        (true, [terminal]) => {
            sys::take_terminal(terminal.as_fd()).map_err(at(Stage::Terminal))?;
            (terminal, terminal, terminal)
        }
        (false, [stdin, stdout, stderr]) => (stdin, stdout, stderr),
        _ => return Err(bad),
    };
    for (place, fd) in [stdin, stdout, stderr].into_iter().enumerate() {
        sys::install(fd.as_fd(), place as i32).map_err(at(Stage::Prepare))?;
    }
    sys::close_all_but(keep.as_fd()).map_err(at(Stage::Prepare))?;
    let program = Exec::new(spawn).ok_or(bad)?;
    drop_privileges(launch)?;
    // As the user: the kernel decides. No magic links: /proc/self/fd/N could lead out.
    let how = How::new(
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        if weakened!("magic-links") { ResolveFlag::empty() } else { ResolveFlag::RESOLVE_NO_MAGICLINKS },
    );
    let cwd = openat2(AT_FDCWD, &spawn.cwd[..], how).map_err(at(Stage::Cwd))?;
    unistd::fchdir(&cwd).map_err(at(Stage::Cwd))?;
    SigSet::empty().thread_set_mask().map_err(at(Stage::Prepare))?;
    if weakened!("leaked-directory") {
        std::mem::forget(openat2(AT_FDCWD, c"/", How::new(OFlag::O_PATH, ResolveFlag::empty())));
    }
    if weakened!("leaked-socket") {
        let _ = nix::fcntl::fcntl(keep, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()));
    }
    Ok(program)
}

fn drop_privileges(launch: &Launch<'_>) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(launch.uid), Gid::from_raw(launch.gid));
    unistd::setgroups(&[gid]).map_err(at(Stage::Privileges))?;
    unistd::setresgid(gid, gid, gid).map_err(at(Stage::Privileges))?;
    // (A saved one would not survive the exec.)
    let real = if weakened!("second-identity") { Uid::from_raw(65534) } else { uid };
    unistd::setresuid(real, uid, uid).map_err(at(Stage::Privileges))?;
    // The kernel clears them on leaving uid 0; effective and ambient can't exceed these two.
    for set in [caps::CapSet::Permitted, caps::CapSet::Inheritable] {
        match caps::read(None, set) {
            Ok(left) if left.is_empty() => {}
            _ => return Err((Stage::Privileges, libc::EPERM)),
        }
    }
    Ok(())
}

/// A program ready for execve.
struct Exec {
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Exec {
    fn new(spawn: &Spawn) -> Option<Self> {
        let strings = |list: &[Vec<u8>]| -> Option<Vec<CString>> {
            list.iter().map(|s| CString::new(s.clone()).ok()).collect()
        };
        let exec = Self {
            programs: strings(&spawn.programs)?,
            argv: strings(&spawn.argv)?,
            env: strings(&spawn.env)?,
        };
        (!exec.argv.is_empty()).then_some(exec)
    }

    /// Tries the candidates in order, as a shell does: 127 not found, 126 not executable.
    fn exec(&self) -> ! {
        let mut worst = Errno::ENOENT;
        for program in &self.programs {
            let Err(errno) = unistd::execve(program, &self.argv, &self.env);
            match errno {
                Errno::ENOENT if unistd::access(program.as_c_str(), unistd::AccessFlags::F_OK).is_ok() => {
                    self.give_up(126, "its interpreter is not there")
                }
                Errno::ENOENT | Errno::ENOTDIR => {}
                Errno::EACCES => worst = Errno::EACCES,
                Errno::ENOEXEC => self.give_up(126, "not a program: it has no #! line and is no binary"),
                other => self.give_up(126, other.desc()),
            }
        }
        match worst {
            Errno::EACCES => self.give_up(126, "permission denied"),
            _ if self.argv[0].to_bytes().contains(&b'/') => self.give_up(127, "no such file or directory"),
            _ => self.give_up(127, "command not found"),
        }
    }

    fn give_up(&self, code: i32, why: &str) -> ! {
        let mut text = b"berth: ".to_vec();
        text.extend_from_slice(self.argv[0].to_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(why.as_bytes());
        text.push(b'\n');
        let _ = unistd::write(std::io::stderr(), &text);
        sys::exit(code)
    }
}

/// Forks the program below this process, tells init of it, reaps all that the task
/// leaves to it, and ends when there is nothing left.
fn guard(launch: &Launch<'_>, socket: &OwnedFd, spawn: &Spawn, fds: &[OwnedFd]) -> Failure {
    let (from_child, to_guard) = match wire::pair() {
        Ok(pair) => pair,
        Err(error) => return at(Stage::Prepare)(error),
    };
    let main = match sys::fork() {
        Err(error) => return at(Stage::Fork)(error),
        Ok(Forked::Child) => {
            if let Err(errno) = unistd::setsid() {
                fail(to_guard.as_fd(), Stage::Prepare, errno as i32);
            }
            let (stage, errno) = start(launch, &to_guard, spawn, fds);
            fail(to_guard.as_fd(), stage, errno)
        }
        Ok(Forked::Parent(main)) => main,
    };
    drop(to_guard);
    let mut buffer = [0; 256];
    match sys::receive(from_child.as_fd(), &mut buffer) {
        Ok((0, _)) => {}
        Ok((n, _)) => {
            if let Some((_, Event::Failed(failed))) = wire::read_report(&buffer[..n]) {
                return (failed.stage(), failed.errno);
            }
        }
        Err(error) => return at(Stage::Message)(error),
    }
    let spawned = Spawned { pid: main.as_raw(), group: None, guard: Some(Pid::this().as_raw()) };
    if wire::report(socket.as_fd(), 0, Event::Spawned(spawned)).is_err() {
        sys::exit(1);
    }
    // The task's streams must end with the task, not with its guard.
    let _ = sys::close_all_but(socket.as_fd());
    reap_all(main, socket)
}

fn reap_all(main: Pid, socket: &OwnedFd) -> ! {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    loop {
        // Waits without reaping: wait4 below reaps, with the resource usage.
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => sys::exit(0),
        }
        while let Ok(Some(reaped)) = sys::reap() {
            if reaped.pid == main.as_raw() {
                let _ = wire::report(socket.as_fd(), 0, Event::Exited(Exited::from(reaped)));
            }
        }
    }
}

/// The candidates for a program: itself when it has a slash, else one for each entry
/// of PATH. An empty entry is the working directory, as POSIX says.
pub fn candidates(program: &str, path: &str) -> Vec<Vec<u8>> {
    if program.contains('/') {
        return vec![program.as_bytes().to_vec()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") })
        .map(String::into_bytes)
        .collect()
}

/// Whether a program is there, for the choice of the shell.
pub fn is_executable(path: &CStr) -> bool {
    unistd::access(path, unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_means_no_search() {
        assert_eq!(candidates("./x", "/bin"), [b"./x".to_vec()]);
        assert_eq!(candidates("x", "/a:/b:"), [b"/a/x".to_vec(), b"/b/x".to_vec(), b"./x".to_vec()]);
    }
}
