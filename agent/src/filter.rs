//! The system calls that a task may make: an allow-list in the manner of container
//! engines' default profile, without what ABUSE.md wants away (namespaces, ptrace and
//! its relatives, io_uring, bpf, keys, VSOCK, ALG, packet and raw sockets, TIOCSTI).
//!
//! Not listed: EPERM. Newer than this list, or an x32 number: ENOSYS, so that programs
//! fall back, as they do for clone3 (its flags are behind a pointer and can't be
//! looked at). Another ABI (int 0x80): the process is killed.
//!
//! It is in two parts, [`Filters`], since init itself needs clone3: to give birth to a task's first process in its cgroup.
//! Init takes on the large part (1 ms of kernel time), which all that it forks inherit, and each task's first process the small
//! one, of four instructions, before it knows what it will run.
//!
//! Rejected: a deny-list (fails open with each kernel), and Docker's own profile alone
//! (20.10's lets VSOCK and io_uring through, and the native backend has none).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

/// The first system call number that this list does not know (mseal is 462). The same
/// on every architecture since 424.
const UNKNOWN_FROM: u32 = 457;

const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32 as u64;

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Allowed whatever their arguments.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = calls![
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
const ALLOWED_HERE: &[libc::c_long] = calls![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_wait SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link
    SYS_lstat SYS_mkdir SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_renameat
    SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[libc::c_long] = calls![SYS_renameat];

fn condition(
    argument: u8,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    // All arguments looked at here are ints to the kernel: it ignores their upper half.
    SeccompCondition::new(argument, Dword, op, value)
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(
        conditions
            .iter()
            .map(|(argument, op, value)| condition(*argument, op.clone(), *value))
            .collect::<Result<_, _>>()?,
    )
}

/// Calls that are allowed by their arguments.
fn conditional() -> Result<Vec<(libc::c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut sockets = Vec::new();
    // The upper bits of the kind are SOCK_CLOEXEC and SOCK_NONBLOCK.
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        sockets.push(rule(&[(0, Eq, libc::AF_UNIX as u64), (1, MaskedEq(0xf), kind as u64)])?);
    }
    // The protocol is checked too: with another one the same kinds are MPTCP, SCTP, UDP-Lite or SMC, whose
    // modules the kernel would load for anyone who asks.
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, own) in [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)] {
            for protocol in [0, own] {
                let of = [(0, Eq, family as u64), (1, MaskedEq(0xf), kind as u64), (2, Eq, protocol as u64)];
                sockets.push(rule(&of)?);
            }
        }
    }
    // getifaddrs asks the routing table, and only it.
    sockets.push(rule(&[(0, Eq, libc::AF_NETLINK as u64), (2, Eq, libc::NETLINK_ROUTE as u64)])?);
    // Files, pipes and sockets, but no devices: without CAP_MKNOD the kernel says the same, one layer further in.
    let kinds = [0, libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK];
    let nodes = |argument| -> Result<Vec<SeccompRule>, _> {
        kinds.iter().map(|kind| rule(&[(argument, MaskedEq(libc::S_IFMT.into()), (*kind).into())])).collect()
    };
    let personalities = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
    Ok(vec![
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, nodes(1)?),
        (libc::SYS_mknodat, nodes(2)?),
        (libc::SYS_clone, vec![rule(&[(0, MaskedEq(NAMESPACE_FLAGS), 0)])?]),
        (libc::SYS_socket, sockets),
        (libc::SYS_socketpair, vec![rule(&[(0, Eq, libc::AF_UNIX as u64)])?]),
        // Typing into another's terminal (CVE-2017-5226).
        (libc::SYS_ioctl, vec![rule(&[(1, Ne, libc::TIOCSTI), (1, Ne, 0x541c /* TIOCLINUX */)])?]),
        (
            libc::SYS_personality,
            personalities.into_iter().map(|p| rule(&[(0, Eq, p)])).collect::<Result<_, _>>()?,
        ),
    ])
}

/// Both parts as BPF, ready to be loaded.
pub struct Filters {
    /// Init's, and inherited by tasks.
    pub init: BpfProgram,
    /// On top of it, for tasks.
    pub task: BpfProgram,
}

impl Filters {
    pub fn build() -> Result<Self, seccompiler::BackendError> {
        Ok(Self { init: init()?, task: no_clone3() })
    }
}

fn init() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).map(|number| (*number, Vec::new())).collect();
    rules.extend(conditional()?);
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.extend(crate::weaken::calls().map(|number| (number, Vec::new())));
    let arch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?;
    let body: BpfProgram = filter.try_into()?;
    // The body's first three instructions check the architecture and kill another's calls.
    let (check, rest) = body.split_at(3);
    let mut program = check.to_vec();
    if weakened!("i386") {
        program[2].k = libc::SECCOMP_RET_ALLOW;
    }
    // All numbers that the list does not know; x32 has bit 30 set.
    program.extend(not_there_if(libc::BPF_JGE, UNKNOWN_FROM));
    program.extend_from_slice(rest);
    Ok(program)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// ENOSYS where the number of the call compares so with `k`.
fn not_there_if(compares: u32, k: u32) -> [sock_filter; 3] {
    let code = (libc::BPF_JMP | compares | libc::BPF_K) as u16;
    [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        sock_filter { code, jt: 0, jf: 1, k },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

/// For tasks there is no clone3. (Calls of another ABI are killed by the large part, whatever this one says.)
fn no_clone3() -> BpfProgram {
    let allow = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    not_there_if(libc::BPF_JEQ, libc::SYS_clone3 as u32).into_iter().chain([allow]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a classic BPF program over one `seccomp_data`, as the kernel would.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (i, arg) in args.iter().enumerate() {
            data[16 + i * 8..24 + i * 8].copy_from_slice(&arg.to_le_bytes());
        }
        let (mut pc, mut acc) = (0usize, 0u32);
        loop {
            let i = &program[pc];
            pc += 1;
            let branch = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => acc = u32::from_le_bytes(data[i.k as usize..][..4].try_into().unwrap()),
                0x54 => acc &= i.k,
                0x05 => pc += i.k as usize,
                0x15 => pc += branch(acc == i.k),
                0x25 => pc += branch(acc > i.k),
                0x35 => pc += branch(acc >= i.k),
                0x06 => return i.k,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    /// What a task is told: of all filters the strictest counts, whose number is the lowest (as a signed one).
    fn under(filters: &[&BpfProgram], number: u32, args: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let verdicts = filters.iter().map(|filter| verdict(filter, ARCH, number, all));
        verdicts.min_by_key(|verdict| *verdict as i32).unwrap()
    }

    fn of(number: libc::c_long, args: &[u64]) -> u32 {
        let Filters { init, task } = Filters::build().unwrap();
        under(&[&init, &task], number as u32, args)
    }

    #[test]
    fn programs_can_run() {
        for number in
            [libc::SYS_read, libc::SYS_execve, libc::SYS_openat2, libc::SYS_fchmodat2, libc::SYS_rseq]
        {
            assert_eq!(of(number, &[]), ALLOW);
        }
        // What pthread_create and fork ask for.
        assert_eq!(of(libc::SYS_clone, &[0x003d_0f00]), ALLOW);
        assert_eq!(of(libc::SYS_clone, &[0x0120_0011]), ALLOW);
    }

    #[test]
    fn namespaces_are_refused() {
        for flag in [0x1000_0000u64, 0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(of(libc::SYS_clone, &[flag | 17]), EPERM, "{flag:#x}");
        }
        assert_eq!(of(libc::SYS_unshare, &[0]), EPERM);
        assert_eq!(of(libc::SYS_setns, &[]), EPERM);
        assert_eq!(of(libc::SYS_clone3, &[]), ENOSYS);
        // Init's own part alone lets it through.
        assert_eq!(under(&[&init().unwrap()], libc::SYS_clone3 as u32, &[]), ALLOW);
    }

    #[test]
    fn the_kernel_surface_is_small() {
        for number in [
            libc::SYS_mount,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_clock_settime,
            libc::SYS_settimeofday,
            libc::SYS_syslog,
        ] {
            assert_eq!(of(number, &[]), EPERM, "{number}");
        }
    }

    #[test]
    fn sockets_by_family_and_kind() {
        assert_eq!(of(libc::SYS_socket, &[1, 1 | 0o2000000]), ALLOW);
        assert_eq!(of(libc::SYS_socket, &[2, 2]), ALLOW);
        assert_eq!(of(libc::SYS_socket, &[10, 1]), ALLOW);
        assert_eq!(of(libc::SYS_socket, &[16, 3, 0]), ALLOW);
        assert_eq!(of(libc::SYS_socket, &[16, 3, 9]), EPERM);
        for refused in [[2, 3], [10, 3], [17, 3], [38, 5], [40, 1]] {
            assert_eq!(of(libc::SYS_socket, &refused), EPERM, "{refused:?}");
        }
        for (allowed, protocol) in [([2, 1], 6), ([10, 2], 17), ([2, 1 | 0o4000], 0)] {
            assert_eq!(of(libc::SYS_socket, &[allowed[0], allowed[1], protocol]), ALLOW);
        }
        // MPTCP, SCTP (twice), UDP-Lite, SMC, and ICMP, which is for those whom a sysctl names.
        for refused in [[2, 1, 262], [2, 1, 132], [2, 5, 132], [10, 2, 136], [2, 1, 256], [2, 2, 1]] {
            assert_eq!(of(libc::SYS_socket, &refused), EPERM, "{refused:?}");
        }
    }

    #[test]
    fn no_device_is_made() {
        for (mode, verdict) in [
            (libc::S_IFIFO | 0o644, ALLOW),
            (libc::S_IFSOCK, ALLOW),
            (libc::S_IFREG, ALLOW),
            (0o644, ALLOW),
            (libc::S_IFBLK | 0o600, EPERM),
            (libc::S_IFCHR, EPERM),
        ] {
            assert_eq!(of(libc::SYS_mknodat, &[0, 0, mode.into()]), verdict, "{mode:o}");
            #[cfg(target_arch = "x86_64")]
            assert_eq!(of(libc::SYS_mknod, &[0, mode.into()]), verdict, "{mode:o}");
        }
    }

    #[test]
    fn typing_into_terminals_is_refused_also_with_upper_bits() {
        assert_eq!(of(libc::SYS_ioctl, &[0, 0x5401]), ALLOW);
        assert_eq!(of(libc::SYS_ioctl, &[0, 0x5412]), EPERM);
        assert_eq!(of(libc::SYS_ioctl, &[0, 0x1_0000_5412]), EPERM);
        assert_eq!(of(libc::SYS_ioctl, &[0, 0x541c]), EPERM);
    }

    #[test]
    fn other_abis_are_no_way_round() {
        let program = init().unwrap();
        assert_eq!(verdict(&program, 0x4000_0003, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(verdict(&program, ARCH, 0x4000_0000, [0; 6]), ENOSYS);
        assert_eq!(verdict(&program, ARCH, 600, [0; 6]), ENOSYS);
        assert!(program.len() < 4096);
    }
}
