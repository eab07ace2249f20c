//! The one module that talks to the kernel where no safe wrapper exists: fork, wait4
//! with resource usage, descriptors over sockets, terminals, and the per-thread calls
//! that libc would otherwise apply to all threads.
//!
//! Everything else goes through `nix`, `caps` and `seccompiler`, which are safe.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use berth_proto::domain::PtySize;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        signal::Signal,
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
    unistd::Pid,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Descriptors that one message may carry.
pub const FDS_MAX: usize = 8;

/// Which side of a [`fork`] this is.
pub enum Forked {
    Parent(Pid),
    Child,
}

/// Forks. Only for a process with a single thread: then no lock can be held by a
/// thread that does not exist in the child, and the child may allocate.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: both callers (main before its runtime exists, and init, which has no
    // threads by construction) are single-threaded, so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid))),
    }
}

/// `struct clone_args` of linux/sched.h, as of Linux 5.7 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into a cgroup of v2: the child is born there, which costs nothing, where to move it would (see [`crate::cgroup`]).
/// Only for a process with a single thread, as [`fork`].
///
/// # Errors
/// Also where there is no clone3 (a kernel before 5.7; an engine whose filter of system calls does not know it).
pub fn fork_into(cgroup: BorrowedFd<'_>) -> io::Result<Forked> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000; // linux/sched.h
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: pointer and size describe a valid `clone_args`. Without CLONE_VM and with a null stack this is fork, and the
    // caller is single-threaded (see `fork`): no lock is held by a thread that the child does not have. What libc's own
    // fork does beside this (handlers of pthread_atfork, its cache of the thread's id) nothing here uses.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid as i32))),
    }
}

/// Ends the process at once: no destructors, no flushing, no exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A child that ended.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    pub pid: i32,
    /// As wait4 gives it.
    pub status: i32,
    pub user: Duration,
    pub system: Duration,
    pub peak_bytes: u64,
}

/// Reaps one ended child, `None` if there is none now. ECHILD: no child at all.
pub fn reap() -> Result<Option<Reaped>, Errno> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live, writable memory of the right type.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG | libc::__WALL, usage.as_mut_ptr()) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => {
            // SAFETY: zeroed is a valid rusage, and the kernel has filled it since.
            let usage = unsafe { usage.assume_init() };
            let time = |t: libc::timeval| {
                Duration::new(t.tv_sec.max(0) as u64, t.tv_usec.clamp(0, 999_999) as u32 * 1000)
            };
            Ok(Some(Reaped {
                pid,
                status,
                user: time(usage.ru_utime),
                system: time(usage.ru_stime),
                peak_bytes: usage.ru_maxrss.max(0) as u64 * 1024,
            }))
        }
    }
}

/// Sends one packet with descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let iov = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(fds)];
    let cmsgs: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    let sent = loop {
        match sendmsg::<()>(socket.as_raw_fd(), &iov, cmsgs, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a packet was cut short")) }
}

/// Receives one packet with its descriptors, close-on-exec. Length 0: the other end is closed.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([RawFd; FDS_MAX]);
    loop {
        let mut iov = [IoSliceMut::new(buffer)];
        let message =
            match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
            {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
        let mut fds = Vec::new();
        for cmsg in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = cmsg {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other("a packet was larger than its buffer"));
        }
        return Ok((message.bytes, fds));
    }
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closing is memory-safe. Callers own every descriptor in the range, or are
    // about to exec or exit and use none of them again.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Beyond any descriptor. (gVisor takes no larger number for one.)
const LAST: u32 = i32::MAX as u32;

/// Closes all descriptors from 3 on that this process inherited. Before anything is opened.
pub fn close_inherited() -> io::Result<()> {
    close_range(3, LAST)
}

/// Closes all descriptors from 3 on but one. Only in a process that will exec or exit.
pub fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd() as u32;
    close_range(3, keep.saturating_sub(1))?;
    close_range(keep.max(2) + 1, LAST)
}

/// Makes a terminal the controlling one of this session leader.
pub fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) })?;
    Ok(())
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH.
pub fn resize(terminal: BorrowedFd<'_>, size: PtySize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, and `size` outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) })?;
    Ok(())
}

/// Unlocks the terminal behind a `/dev/ptmx` descriptor and opens it, without a path
/// that anyone could have mounted over.
pub fn open_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int, and `unlock` outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// All signals to their default action: what a new program expects.
pub fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition, and replaces no handler that is in use:
        // this process is single-threaded and about to exec. Errors (KILL, STOP) are expected.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The kernel's version of landlock; below 1 where it has none, or is told to have none.
pub fn landlock_version() -> i32 {
    const VERSION: libc::c_uint = 1; // LANDLOCK_CREATE_RULESET_VERSION of linux/landlock.h
    // SAFETY: with this flag the kernel reads no memory, and makes nothing: it returns a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    i32::try_from(version).unwrap_or(0)
}

/// A signal that this process, and what it becomes, does not get.
pub fn ignore_signal(signal: Signal) {
    // SAFETY: SIG_IGN is a valid disposition, and replaces no handler that is in use (see `default_signals`).
    unsafe { libc::signal(signal as i32, libc::SIG_IGN) };
}

/// Signals a process group. Any number from 1 to 64, real-time ones included.
pub fn signal_group(leader: i32, signal: i32) {
    if leader > 1 {
        // SAFETY: kill has no memory preconditions. A group that is gone is no error here.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Sets the supplementary groups of this thread alone. libc's own call would set
/// them for every thread of the process.
pub fn set_thread_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe a live slice of gid_t.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Sets the effective ids of this thread alone, and with them those for files. The real and the saved ones stay, so
/// nobody may signal it that could not before.
pub fn set_thread_ids(uid: u32, gid: u32) -> io::Result<()> {
    const SAME: u32 = u32::MAX;
    // SAFETY: takes numbers alone.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, SAME, gid, SAME) })?;
    // SAFETY: the same.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid, SAME) })?;
    Ok(())
}

/// Registers a descriptor with the runtime.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open file for as long as it lives, and AsyncFd
    // deregisters it before it is closed.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// A stream that reads and writes stdin, stdout or stderr's place: dup2 onto 0, 1 or 2.
pub fn install(fd: BorrowedFd<'_>, place: RawFd) -> io::Result<()> {
    // SAFETY: replaces a standard descriptor of a process that is about to exec; nothing
    // in it holds an OwnedFd for 0, 1 or 2.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), place) })?;
    Ok(())
}
