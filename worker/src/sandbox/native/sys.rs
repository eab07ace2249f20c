//! The one module of the worker that talks to the kernel without a safe wrapper: system
//! calls that neither `std` nor `nix` offers. Everything above it is safe code.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Turns a system call's result into an `io::Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `struct clone_args` of linux/sched.h, as of Linux 5.7 (88 bytes). Without `cgroup` its first version is enough.
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

/// The first version of `clone_args`, which every kernel with clone3 takes (CLONE_ARGS_SIZE_VER0).
const FIRST_VERSION: usize = 64;

/// `fork` into new namespaces, and into a cgroup of v2. Returns 0 in the child, its pid in the parent.
///
/// Only for a process with a single thread: the child goes on with a copy of this stack
/// and heap, and a lock that another thread held would stay locked in it for ever.
///
/// # Errors
/// With a cgroup also where the kernel can't do that (before 5.7: E2BIG or EINVAL).
pub fn fork_into(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000; // linux/sched.h
    let mut args = CloneArgs {
        flags: namespaces as u32 as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let size = match cgroup {
        Some(cgroup) => {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
            size_of::<CloneArgs>()
        }
        None => FIRST_VERSION,
    };
    fork(&args, size)
}

/// `fork` into new namespaces, with the caller's parent as the parent. Else as [`fork_into`].
pub fn fork_beside(namespaces: libc::c_int) -> io::Result<i32> {
    // The signal at its end is the caller's own: none may be given (clone(2), CLONE_PARENT).
    let flags = (namespaces | libc::CLONE_PARENT) as u32 as u64;
    fork(&CloneArgs { flags, ..CloneArgs::default() }, FIRST_VERSION)
}

fn fork(args: &CloneArgs, size: usize) -> io::Result<i32> {
    // SAFETY: the pointer and size describe a valid `clone_args`. Without CLONE_VM and with
    // a null stack this is fork: the child has its own copy of the address space. The caller
    // has one thread (see `fork_into`), so no lock is held by anybody else.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const *args, size) })?;
    Ok(pid as i32)
}

/// A detached copy of the mount at `path`, with what is mounted below it if `recursive`.
pub fn open_tree_clone(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a NUL-terminated string that lives through the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a detached mount at `target`, an `O_PATH` descriptor of a file or directory.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x04; // linux/mount.h
    const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: both descriptors are open for the call; the paths are constant empty strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })?;
    Ok(())
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

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

pub const ATTR_RDONLY: u64 = 0x01; // MOUNT_ATTR_* of linux/mount.h
pub const ATTR_NOSUID: u64 = 0x02;
pub const ATTR_NODEV: u64 = 0x04;
pub const ATTR_NOEXEC: u64 = 0x08;

/// Sets attributes on a mount and makes it private.
pub fn mount_setattr(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { attr_set: attributes, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open for the call, the path is a constant empty string, and
    // the pointer and size describe a valid `mount_attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that nobody uses now; it is made if need be.
pub fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82; // linux/loop.h
    // SAFETY: the request takes no argument.
    let number = check(libc::c_long::from(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }))?;
    Ok(number as u32)
}

/// Binds a file to a loop device, past the page cache where the file system can, until nobody has the device open.
pub fn loop_attach(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A; // linux/loop.h
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    // SAFETY: all-zero bytes are a valid `loop_config`, and mean the defaults.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    // SAFETY: LOOP_CONFIGURE reads a `loop_config`, which lives through the call; the kernel takes its own reference to
    // the file.
    check(libc::c_long::from(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }))?;
    Ok(())
}

/// Brings up `lo` in the caller's network namespace.
pub fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which lives through the call.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

/// Marks every descriptor from `first` on as close-on-exec.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: this changes a flag of descriptors; it closes none now, so nothing that owns
    // one is misled.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    Ok(())
}

/// The descriptor number `fd`, which this process was started with.
///
/// Call it once for each number: the result owns it.
pub fn inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the launcher's own contract (see `launcher`): its parent put this descriptor
    // there before exec, and nothing else in this process has used the number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A descriptor that becomes readable when the process has ended.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers. The result is a new descriptor, or an error.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Registers a pidfd with the runtime; it is readable once its process has ended.
pub fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on, so it stays open, and
    // stays the same file, for as long as it is registered.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(Into::into)
}

/// Ends this process now: no destructors, no flushing of what the parent has buffered too.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Gives up privileges that come by exec.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }))?;
    Ok(())
}

/// Lets ended children vanish by themselves: the launcher waits for none.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN is a valid disposition, and with it no handler code of ours can run.
    let old = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if old == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Undoes [`ignore_children`] in a child: dispositions of "ignore" survive exec.
pub fn default_children() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
