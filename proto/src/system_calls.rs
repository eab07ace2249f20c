//! The system calls that a task may make, and the agent: an allow-list in the manner of container engines' default profile, without what
//! ABUSE.md wants away (namespaces, ptrace and its relatives, io_uring, bpf, keys, VSOCK, ALG, packet and raw sockets, TIOCSTI).
//!
//! One list, and two that make a filter of it: the agent, which puts it on tasks itself, wherever it runs, and the worker, which
//! hands it to the engine as the profile of a container. Data, so that neither can know another list than the other.

use nix::libc;

/// The first system call number that this list does not know (mseal is 462). The same on every architecture since 424.
pub const UNKNOWN_FROM: u32 = 457;

/// A system call of this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// As in `<sys/syscall.h>`: `SYS_read`.
    symbol: &'static str,
    pub number: libc::c_long,
}

impl Call {
    /// As the kernel's documentation has it: `read`.
    pub fn name(&self) -> &'static str {
        self.symbol.trim_start_matches("SYS_")
    }
}

/// What an argument is compared with. All that are looked at are ints to the kernel: it ignores their upper half, and so must
/// whoever compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Is(u32),
    IsNot(u32),
    /// With all bits but these away.
    Masked {
        mask: u32,
        value: u32,
    },
}

/// A condition on one argument, which are counted from 0.
pub type Condition = (u8, Comparison);

/// A call that is allowed where all conditions of one of the alternatives hold.
pub struct Conditional {
    pub call: Call,
    pub alternatives: Vec<Vec<Condition>>,
}

const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

macro_rules! call {
    ($symbol:ident) => {
        Call { symbol: stringify!($symbol), number: libc::$symbol }
    };
}
macro_rules! calls {
    ($($symbol:ident)*) => { &[$(call!($symbol)),*] };
}

/// What PID 1 of a sandbox needs on top, and neither tasks nor the agent's server get: to give birth to a task in its cgroup. (Its flags are behind a pointer
/// and can't be looked at.)
pub const OF_INIT: Call = call!(SYS_clone3);

/// Allowed whatever their arguments.
#[rustfmt::skip]
pub const ALLOWED: &[Call] = calls![
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_getres SYS_clock_gettime
    SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat
    SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod
    SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr
    SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex
    SYS_futex_waitv SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid
    SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority
    SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit SYS_getrusage SYS_getsid SYS_getsockname
    SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1
    SYS_inotify_rm_watch SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup
    SYS_io_submit SYS_ioprio_get SYS_ioprio_set SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
    SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr
    SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore
    SYS_mkdirat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr
    SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl
    SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_nanosleep
    SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc
    SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64
    SYS_process_mrelease SYS_pselect6 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead
    SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr
    SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr
    SYS_sched_getparam SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity
    SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl
    SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list
    SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid
    SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_setsid
    SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
    SYS_sigaltstack SYS_signalfd4 SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range
    SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun
    SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times
    SYS_tkill SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid
    SYS_write SYS_writev
];

/// Older forms that only this architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
pub const ALLOWED_HERE: &[Call] = calls![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_wait SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link
    SYS_lstat SYS_mkdir SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_renameat
    SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
];
#[cfg(target_arch = "aarch64")]
pub const ALLOWED_HERE: &[Call] = calls![SYS_renameat];

/// Calls that are allowed by their arguments.
pub fn conditional() -> Vec<Conditional> {
    use Comparison::{Is, IsNot, Masked};
    let mut sockets = Vec::new();
    // The upper bits of the kind are SOCK_CLOEXEC and SOCK_NONBLOCK.
    let kind = |kind: i32| (1, Masked { mask: 0xf, value: kind as u32 });
    for of in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        sockets.push(vec![(0, Is(libc::AF_UNIX as u32)), kind(of)]);
    }
    // The protocol is checked too: with another one the same kinds are MPTCP, SCTP, UDP-Lite or SMC, whose
    // modules the kernel would load for anyone who asks.
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (of, own) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
            for protocol in [0, own] {
                sockets.push(vec![(0, Is(family as u32)), kind(of), (2, Is(protocol as u32))]);
            }
        }
    }
    // getifaddrs asks the routing table, and only it.
    sockets.push(vec![(0, Is(libc::AF_NETLINK as u32)), (2, Is(libc::NETLINK_ROUTE as u32))]);
    // Files, pipes and sockets, but no devices: without CAP_MKNOD the kernel says the same, one layer further in.
    let kinds = [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
    let nodes = |argument| {
        kinds.iter().map(|kind| vec![(argument, Masked { mask: libc::S_IFMT, value: *kind })]).collect()
    };
    let personalities = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
    let when = |call, alternatives| Conditional { call, alternatives };
    vec![
        #[cfg(target_arch = "x86_64")]
        when(call!(SYS_mknod), nodes(1)),
        when(call!(SYS_mknodat), nodes(2)),
        when(call!(SYS_clone), vec![vec![(0, Masked { mask: NAMESPACE_FLAGS, value: 0 })]]),
        when(call!(SYS_socket), sockets),
        when(call!(SYS_socketpair), vec![vec![(0, Is(libc::AF_UNIX as u32))]]),
        // Typing into another's terminal (CVE-2017-5226).
        when(
            call!(SYS_ioctl),
            vec![vec![(1, IsNot(libc::TIOCSTI as u32)), (1, IsNot(0x541c /* TIOCLINUX */))]],
        ),
        when(call!(SYS_personality), personalities.iter().map(|p| vec![(0, Is(*p))]).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_listed_once_and_none_that_is_newer_than_the_list() {
        let conditional = conditional();
        let all = ALLOWED.iter().chain(ALLOWED_HERE).chain([&OF_INIT]);
        let all: Vec<Call> = all.copied().chain(conditional.iter().map(|c| c.call)).collect();
        let mut numbers: Vec<_> = all.iter().map(|call| call.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len());
        assert!(numbers.iter().all(|number| *number < UNKNOWN_FROM.into()));
        let named = |name: &str| all.iter().any(|call| call.name() == name);
        assert!(named("read") && named("clone3") && named("socket") && !named("ptrace"));
    }
}
