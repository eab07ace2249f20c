//! The launcher: a process of its own with a single thread and an empty environment, which
//! forks sandboxes on request. To fork and set up inside the worker would deadlock on the
//! allocator's locks, and would show the worker's environment and descriptors to PID 1.
//!
//! It is this same executable, started with [`ARGUMENT`]. Requests and answers are JSON, one
//! a packet, on a socket that is its standard input; the range's claim comes beside the
//! request as a descriptor. When the worker is gone, so is the socket, and it ends;
//! the sandboxes that it started live on.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use caps::CapSet;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
            sendmsg, setsockopt, socketpair, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
    unistd::{Uid, pipe2, seteuid, setsid},
};

use super::{
    child::{self, Prepared},
    plan::{Plan, Reply},
    sys,
};

/// First argument by which an executable becomes the launcher.
pub const ARGUMENT: &str = "__launcher";
/// Largest plan. A plan is a few KiB.
const PACKET: usize = 64 << 10;
/// A launch takes milliseconds; longer than this is a failure.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(20);

// ---- the worker's side ----------------------------------------------------------

/// Asks the launcher for sandboxes; starts it when there is none.
pub struct Launcher {
    command: Vec<OsString>,
    process: Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    socket: OwnedFd,
}

impl Launcher {
    /// `command` is the executable and its arguments, [`ARGUMENT`] included.
    pub fn new(command: Vec<OsString>) -> Self {
        Self { command, process: Mutex::new(None) }
    }

    /// Starts a sandbox. Blocks for some milliseconds. Requests go one at a time.
    ///
    /// # Errors
    /// When the launcher can't be started or does not answer; a launch that fails is a [`Reply`].
    pub fn launch(&self, plan: &Plan, claim: &OwnedFd) -> io::Result<Reply> {
        let request = serde_json::to_vec(plan)?;
        let mut slot = self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // One that died between two requests is replaced; one that dies now is an error,
        // since it may have started the sandbox.
        let ended = |process: &mut Process| !matches!(process.child.try_wait(), Ok(None));
        if slot.as_mut().is_none_or(ended) {
            *slot = Some(self.start()?);
        }
        let Some(process) = slot.as_ref() else { return Err(io::Error::other("no launcher")) };
        let result = exchange(&process.socket, &request, claim);
        if result.is_err()
            && let Some(mut process) = slot.take()
        {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        result
    }

    fn start(&self) -> io::Result<Process> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let seconds = LAUNCH_TIMEOUT.as_secs() as i64;
        setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(seconds))?;
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| io::Error::other("no launcher command is set"))?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(crate::weaken::for_the_launcher())
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Process { child, socket: ours })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its socket closes with us, and then it ends; waiting here keeps it from being a zombie.
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn exchange(socket: &OwnedFd, request: &[u8], claim: &OwnedFd) -> io::Result<Reply> {
    let fds = [claim.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(request)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut buffer = vec![0; PACKET];
    let length =
        nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|errno| {
            if errno == Errno::EAGAIN {
                io::Error::new(io::ErrorKind::TimedOut, "the launcher did not answer")
            } else {
                errno.into()
            }
        })?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the launcher ended"));
    }
    Ok(serde_json::from_slice(&buffer[..length])?)
}

// ---- the launcher's side ----------------------------------------------------------

/// The launcher process. Call it first thing in `main` when the first argument is
/// [`ARGUMENT`], before any thread exists. Ends when the worker does.
pub fn launcher_main() -> std::process::ExitCode {
    match serve() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth launcher: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    // A terminal's Ctrl-C is for the worker, which ends its sandboxes in order.
    let _ = setsid();
    sys::ignore_children()?;
    let socket = sys::inherited(0);
    nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SockType)
        .map_err(|_| io::Error::other("this is the worker's own helper and is not started by hand"))?;
    let mut buffer = vec![0; PACKET];
    loop {
        let (length, claim) = match receive(&socket, &mut buffer) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if length == 0 {
            return Ok(());
        }
        let reply = match (serde_json::from_slice::<Plan>(&buffer[..length]), claim) {
            (Ok(plan), Some(claim)) => launch(&plan, &claim),
            (Ok(_), None) => Err(Failure::new("request", "no claim came with it")),
            (Err(error), _) => Err(Failure::new("request", error)),
        };
        let reply =
            reply.unwrap_or_else(|failure| Reply::Failed { stage: failure.stage, error: failure.error });
        let bytes = serde_json::to_vec(&reply)?;
        nix::sys::socket::send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
    }
}

/// Where and why a launch failed.
#[derive(Debug)]
pub struct Failure {
    pub stage: String,
    pub error: String,
}

impl Failure {
    pub fn new(stage: impl Into<String>, error: impl ToString) -> Self {
        Self { stage: stage.into(), error: error.to_string() }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut claim = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                claim = Some(own(fd));
            }
        }
    }
    Ok((message.bytes, claim))
}

fn own(fd: RawFd) -> OwnedFd {
    sys::inherited(fd)
}

fn launch(plan: &Plan, claim: &OwnedFd) -> Result<Reply, Failure> {
    let prepared = Prepared::new(plan)?;
    let fail = |stage: &'static str| move |error: Errno| Failure::new(stage, error);
    let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).map_err(fail("pipe"))?;
    let (errors_read, errors_write) = pipe2(OFlag::O_CLOEXEC).map_err(fail("pipe"))?;
    let place = plan.cgroup.as_ref().map(open_dir).transpose()?;
    let (pid, born) =
        fork_owned(plan.uid_base, place.as_ref()).map_err(|e| Failure::new("new namespaces", e))?;
    if pid == 0 {
        drop((go_write, errors_read));
        child::run(plan, prepared, claim, go_read, errors_write);
    }
    drop((go_read, errors_write));
    let move_to = plan.cgroup.as_ref().filter(|_| !born);
    let started = release(plan, pid, move_to, go_write).and_then(|start_time| {
        let mut text = String::new();
        std::fs::File::from(errors_read).read_to_string(&mut text).map_err(|e| Failure::new("answer", e))?;
        match text.split_once('\0') {
            None => Ok(Reply::Started { pid, start_time }),
            Some((stage, error)) => Err(Failure::new(stage, error)),
        }
    });
    if started.is_err() {
        // Ours, and not waited for yet by anyone: the number can't have been reused.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    started
}

fn open_dir(dir: &PathBuf) -> Result<OwnedFd, Failure> {
    let opened = std::fs::File::open(dir).map_err(|e| Failure::new(format!("open {}", dir.display()), e))?;
    Ok(opened.into())
}

/// Forks into namespaces that belong to the session's own host id. What the kernel counts by user (inotify, fanotify,
/// namespaces, pending signals, ...) is counted for the owner of a user namespace too: did they all belong to root, one
/// session could use up what all the others, and root itself, have.
///
/// And into the cgroup, where the kernel can do that; whether it did is the second value. To move a process there takes 8 to
/// 20 ms, since it waits for an RCU grace period with all forks of the machine held up at the end (measured on Linux 6.18).
fn fork_owned(owner: u32, cgroup: Option<&OwnedFd>) -> io::Result<(i32, bool)> {
    seteuid(Uid::from_raw(owner))?;
    // Leaving 0 took the effective ones. Some kernels let nobody else make user namespaces.
    let raised = caps::read(None, CapSet::Permitted).and_then(|had| caps::set(None, CapSet::Effective, &had));
    let forked = raised.map_err(io::Error::other).and_then(|()| {
        let born = cgroup.map(|cgroup| sys::fork_into(child::NAMESPACES, Some(cgroup.as_fd())));
        match born {
            Some(Ok(pid)) => Ok((pid, true)),
            _ => sys::fork_into(child::NAMESPACES, None).map(|pid| (pid, false)),
        }
    });
    if !matches!(forked, Ok((0, _))) && seteuid(Uid::from_raw(0)).is_err() {
        // A launcher that is not root any more is none.
        sys::exit_now(1);
    }
    forked
}

/// Maps the ids, moves the child into its cgroup of v2 if it was not born there, and lets it go. Returns its start time.
fn release(plan: &Plan, pid: i32, cgroup: Option<&PathBuf>, go: OwnedFd) -> Result<u64, Failure> {
    let map = format!("0 {} {}\n", plan.uid_base, plan.uid_count);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &map).map_err(|e| Failure::new(format!("write {file}"), e))?;
    }
    if let Some(dir) = cgroup {
        std::fs::write(dir.join("cgroup.procs"), pid.to_string())
            .map_err(|e| Failure::new(format!("join cgroup {}", dir.display()), e))?;
    }
    let start_time =
        super::start_time(pid).ok_or_else(|| Failure::new("read start time", "it ended at once"))?;
    std::fs::File::from(go).write_all(b"g").map_err(|e| Failure::new("release", e))?;
    Ok(start_time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::memory_files::MemoryFiles;

    #[test]
    fn a_launcher_that_ends_is_an_error_and_not_a_hang() {
        let launcher = Launcher::new(vec!["/bin/true".into()]);
        let plan = Plan {
            hostname: "h".into(),
            uid_base: 0,
            uid_count: 0,
            links: vec![],
            mounts: vec![],
            cgroup: None,
            cgroup_tasks: vec![],
            log: "/dev/null".into(),
            memory_files: MemoryFiles::SMALLEST,
            program: String::new(),
        };
        let claim = std::fs::File::open("/dev/null").unwrap().into();
        assert!(launcher.launch(&plan, &claim).is_err());
        assert!(Launcher::new(vec![]).launch(&plan, &claim).is_err());
    }

    #[test]
    fn a_socket_is_what_the_launcher_speaks_on() {
        // Standard input of the tests is no socket; `inherited` is tried on a duplicate.
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        nix::sys::socket::send(b.as_raw_fd(), b"x", MsgFlags::empty()).unwrap();
        let mut buffer = [0; 4];
        let (length, claim) = receive(&a, &mut buffer).unwrap();
        assert_eq!((length, claim.is_none()), (1, true));
    }
}
