//! The system calls that a task may make, and the agent's server: [`berth_proto::system_calls`], as a filter that the kernel runs.
//!
//! Not listed: EPERM. Newer than the list, or an x32 number (a container's profile kills that): ENOSYS, so that programs
//! fall back, as they do for clone3 (its flags are behind a pointer and can't be
//! looked at). Another ABI (int 0x80): the process is killed.
//!
//! It is in two parts, [`Filters`], since init itself needs clone3: to give birth to a task's first process in its cgroup.
//! Init takes on the large part (1 ms of kernel time), which all that it forks inherit, and each task's first process the small
//! one, of four instructions, before it knows what it will run.
//!
//! Rejected: a deny-list (fails open with each kernel), and the container's profile alone (the native backend has none).

use std::collections::BTreeMap;

use berth_proto::system_calls::{
    ALLOWED, ALLOWED_HERE, Comparison, Condition, OF_INIT, UNKNOWN_FROM, conditional,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

fn rule(conditions: &[Condition]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = conditions.iter().map(|(argument, comparison)| {
        let (op, value) = match *comparison {
            Comparison::Is(value) => (SeccompCmpOp::Eq, value),
            Comparison::IsNot(value) => (SeccompCmpOp::Ne, value),
            Comparison::Masked { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
        };
        SeccompCondition::new(*argument, Dword, op, value.into())
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Both parts as BPF, ready to be loaded.
pub struct Filters {
    /// Init's, and inherited by tasks. The server has it too.
    pub init: BpfProgram,
    /// On top of it, for tasks and the server.
    pub task: BpfProgram,
}

impl Filters {
    pub fn build() -> Result<Self, seccompiler::BackendError> {
        Ok(Self { init: init()?, task: no_clone3() })
    }

    /// Both, for the calling thread and all that it ever makes: the server needs no more than a task.
    pub fn take_on(&self) -> Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.init)?;
        seccompiler::apply_filter(&self.task)
    }
}

fn init() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(ALLOWED_HERE).chain([&OF_INIT]).map(|call| (call.number, Vec::new())).collect();
    for conditional in conditional() {
        let alternatives = conditional.alternatives.iter().map(|conditions| rule(conditions));
        rules.insert(conditional.call.number, alternatives.collect::<Result<_, _>>()?);
    }
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
