//! The launcher: a process of its own with a single thread and an empty environment, which
//! forks sandboxes on request. To fork and set up inside the worker would deadlock on the
//! allocator's locks, and would show the worker's environment and descriptors to PID 1.
//!
//! It is this same executable, started with [`ARGUMENT`]. Requests and answers are JSON, one
//! a packet, on a socket that is its standard input; the range's claim and a cgroup namespace
//! come beside them as descriptors. When the worker is gone, so is the socket, and it ends;
//! the sandboxes that it started live on.

use std::{
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

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
    unistd::{pipe2, setsid},
};

use super::{
    birth::{self, Forked},
    child::{self, Prepared},
    plan::{Plan, Reply, Request},
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

    /// Starts a sandbox, in a cgroup namespace that was made for it. Blocks for some milliseconds. Requests go one at a time.
    ///
    /// # Errors
    /// When the launcher can't be started or does not answer; a launch that fails is a [`Reply`].
    pub fn launch(&self, plan: Plan, claim: &OwnedFd, namespace: Option<&OwnedFd>) -> io::Result<Reply> {
        let fds: Vec<&OwnedFd> = [claim].into_iter().chain(namespace).collect();
        Ok(self.ask(&Request::Sandbox(Box::new(plan)), &fds)?.0)
    }

    /// Makes a cgroup namespace: see [`birth`].
    ///
    /// # Errors
    /// When it can't be made, too.
    pub fn cgroup_namespace(&self, owner: u32, cgroup: &Path, v1: &[PathBuf]) -> io::Result<OwnedFd> {
        let request = Request::CgroupNamespace { owner, cgroup: cgroup.to_owned(), v1: v1.to_vec() };
        let reply = self.ask(&request, &[])?;
        match reply {
            (Reply::Namespace, Some(made)) => Ok(made),
            (Reply::Failed { stage, error }, _) => Err(io::Error::other(format!("{stage}: {error}"))),
            (reply, _) => Err(io::Error::other(format!("the launcher answers {reply:?}"))),
        }
    }

    fn ask(&self, request: &Request, fds: &[&OwnedFd]) -> io::Result<(Reply, Option<OwnedFd>)> {
        let request = serde_json::to_vec(request)?;
        let mut slot = self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // One that died between two requests is replaced; one that dies now is an error,
        // since it may have started the sandbox.
        let ended = |process: &mut Process| !matches!(process.child.try_wait(), Ok(None));
        if slot.as_mut().is_none_or(ended) {
            *slot = Some(self.start()?);
        }
        let Some(process) = slot.as_ref() else { return Err(io::Error::other("no launcher")) };
        let result = exchange(&process.socket, &request, fds);
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

fn exchange(socket: &OwnedFd, request: &[u8], fds: &[&OwnedFd]) -> io::Result<(Reply, Option<OwnedFd>)> {
    send(socket, request, fds)?;
    let mut buffer = vec![0; PACKET];
    let (length, fds) = receive(socket, &mut buffer).map_err(|errno| {
        if errno == Errno::EAGAIN {
            io::Error::new(io::ErrorKind::TimedOut, "the launcher did not answer")
        } else {
            errno.into()
        }
    })?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the launcher ended"));
    }
    Ok((serde_json::from_slice(&buffer[..length])?, fds.into_iter().next()))
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
        let (length, fds) = match receive(&socket, &mut buffer) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if length == 0 {
            return Ok(());
        }
        let mut namespace = None;
        let reply = match (serde_json::from_slice(&buffer[..length]), &fds[..]) {
            (Ok(Request::CgroupNamespace { owner, cgroup, v1 }), _) => birth::namespace(owner, &cgroup, &v1)
                .map(|made| {
                    namespace = Some(made);
                    Reply::Namespace
                }),
            (Ok(Request::Sandbox(plan)), [claim, more @ ..]) => launch(&plan, claim, more.first()),
            (Ok(Request::Sandbox(_)), []) => Err(Failure::new("request", "no claim came with it")),
            (Err(error), _) => Err(Failure::new("request", error)),
        };
        let reply =
            reply.unwrap_or_else(|failure| Reply::Failed { stage: failure.stage, error: failure.error });
        send(&socket, &serde_json::to_vec(&reply)?, namespace.as_ref().as_slice())?;
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

pub(super) fn send(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) -> nix::Result<()> {
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let slices = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &slices, rights, MsgFlags::MSG_NOSIGNAL, None).map(|_| ())
}

pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            received.extend(fds.into_iter().map(sys::inherited));
        }
    }
    Ok((message.bytes, received))
}

fn launch(plan: &Plan, claim: &OwnedFd, namespace: Option<&OwnedFd>) -> Result<Reply, Failure> {
    let prepared = Prepared::new(plan, namespace.is_some())?;
    let fail = |stage: &'static str| move |error: Errno| Failure::new(stage, error);
    let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).map_err(fail("pipe"))?;
    let (errors_read, errors_write) = pipe2(OFlag::O_CLOEXEC).map_err(fail("pipe"))?;
    let pid = match birth::fork_owned(plan.uid_base, plan.cgroup.as_ref(), namespace)? {
        Forked::Child => {
            drop((go_write, errors_read));
            child::run(plan, prepared, claim, go_read, errors_write);
        }
        Forked::Parent(pid) => pid,
    };
    drop((go_read, errors_write));
    let started = release(plan, pid, go_write).and_then(|start_time| {
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

/// Maps the ids of the child, and lets it go. Returns its start time.
fn release(plan: &Plan, pid: i32, go: OwnedFd) -> Result<u64, Failure> {
    let map = format!("0 {} {}\n", plan.uid_base, plan.uid_count);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &map).map_err(|e| Failure::new(format!("write {file}"), e))?;
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
        assert!(launcher.launch(plan.clone(), &claim, None).is_err());
        assert!(Launcher::new(vec![]).launch(plan, &claim, None).is_err());
    }

    #[test]
    fn a_socket_is_what_the_launcher_speaks_on() {
        // Standard input of the tests is no socket; `inherited` is tried on a duplicate.
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        nix::sys::socket::send(b.as_raw_fd(), b"x", MsgFlags::empty()).unwrap();
        let mut buffer = [0; 4];
        let (length, fds) = receive(&a, &mut buffer).unwrap();
        assert_eq!((length, fds.len()), (1, 0));
    }
}
