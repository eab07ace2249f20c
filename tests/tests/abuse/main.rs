//! What a sandbox must survive: hostile code that knows our source, on every backend.
//!
//! Each attack is a test of its own for each backend (`native::a46_…`, `docker::a46_…`), and a second one that shows
//! that the first can fail (`native::weakened::a46_…`): there one protection is loosened, to something bounded, and
//! the very same check must see the attack get through, with the words given here. Lines whose success would change
//! the host are proven by errno (see `kernel`). `make abuse` prints the table.
//!
//! What is loosened stands beside each line, and in words above its attack. Most are numbers of a request, or
//! something that the test does to the running sandbox as root of the host (`loosen.py`). For the rest there are a
//! worker and an agent of a build of their own (the feature `weakened`), which no ordinary build contains. Where two
//! protections hold a line, each by itself, both are loosened ([`Both`]; the a73 shows what the second alone holds).

mod arena;
mod build;
mod files;
mod filesystem;
mod kernel;
mod leaks;
mod memory;
mod network;
mod process;

use arena::Weak::{Both, Built, Calls, Host, Request};
use nix::libc::{
    SYS_add_key, SYS_bpf, SYS_clock_settime, SYS_io_uring_setup, SYS_ioctl, SYS_mknodat, SYS_mount,
    SYS_name_to_handle_at, SYS_open_tree, SYS_ptrace, SYS_socket, SYS_swapon, SYS_unshare,
};

/// The list: attack, what is loosened, and a part of what the weakened run must see.
macro_rules! lines {
    ($backend:ident) => {
        attacks! { $backend:
            files::a01_paths_resolve_inside, Host("a directory of the host is shown"), "canary-7c1f";
            files::a02_links_resolve_inside, Host("a directory of the host is shown"), "canary-7c1f";
            files::a03_a_race_of_links_leads_nowhere, Host("a directory of the host is shown, writable"), "the canary holds";
            files::a04_magic_links_are_refused, Built("magic-links"), "r/etc/passwd: Ok";
            files::a05_an_archive_stays_in_its_root, Built("trusted-archive"), "planted was made";
            files::a06_a_pipe_holds_up_nobody, Built("blocking-open"), "waits for a writer";
            files::a07_the_end_of_a_session_touches_nothing_outside, Built("follow-canary"), "and is (None, None)";
            files::a08_strange_trees_are_listed_and_removed, Built("shallow-removal"), "can't be removed";
            filesystem::a09_only_its_own_directories_are_writable, Host("one more writable directory"), "/run writable";
            filesystem::a10_no_devices_are_made, Calls(&[SYS_mknodat]), "block ENOENT";
            filesystem::a11_dd_fills_only_its_quota, Request("64 MiB of disk, not 8"), "32 MiB were written";
            filesystem::a12_files_are_counted, Request("64 MiB of disk, not 8"), "8000";
            filesystem::a13_a_sparse_file_is_no_way_round, Built("loose-limits"), "says that it has 1 TiB";
            filesystem::a14_no_foreign_file_is_linked, Host("another's file on the workspace's mount"), "/workspace/foreign /workspace linked";
            filesystem::a15_nobody_becomes_another, Built("second-identity"), "became 65534";
            filesystem::a16_memory_files_have_a_size, Request("256 MiB of memory, not 64"), "40 MiB were written";
            process::a17_a_fork_bomb_stays_small_and_dies, Request("512 processes, not 64"), "300 processes, then none";
            process::a18_double_forks_end_with_their_task, Built("outlived"), "its heart beats on";
            process::a19_an_inherited_stream_holds_nobody_up, Built("patient-drain"), "hangs on a stream";
            process::a20_orphans_are_reaped, Request("a reaper that does not reap"), "zombies are left";
            process::a21_no_signal_reaches_the_agent, Built("killable-agent-without-landlock"), "signalled";
            process::a22_who_ignores_signals_is_killed, Request("a minute of grace, not a second"), "lives on after its grace";
            process::a23_nobody_goes_before_others, Host("a niceness of -5 to begin with"), "nice granted";
            process::a24_nobody_looks_into_another_process, Calls(&[SYS_ptrace]), "ptrace got";
            process::a25_no_descriptor_is_inherited, Built("leaked-directory"), " /";
            process::a26_threads_count_too, Request("512 threads, not 64"), "300 threads";
            process::a27_a_crash_leaves_no_core, Built("loose-limits"), "is allowed";
            memory::a28_out_of_memory_is_told_as_that, Request("256 MiB, not 64"), "had 128 MiB";
            memory::a29_a_memfd_is_charged, Request("256 MiB, not 64"), "had 128 MiB";
            memory::a30_memory_is_not_locked, Built("loose-limits"), "locked 4 MiB";
            memory::a31_a_swarm_does_not_take_the_agent_along, Request("256 MiB, not 64"), "Exited(0) with 0 OOM kills";
            memory::a32_pipes_are_charged, Request("256 MiB, not 32"), "were filled";
            memory::a33_a_busy_loop_keeps_to_its_quota, Request("two cores, not a tenth"), "of CPU in";
            memory::a34_a_timeout_ends_what_sleeps, Request("ten minutes, not 2 s"), "sleeps on";
            memory::a35_the_clock_is_not_set, Calls(&[SYS_clock_settime]), "clock_settime EINVAL";
            memory::a36_without_input_there_is_an_end_of_file, Request("stdin open"), "waits for input";
            network::a37_there_is_no_way_out, Host("the address is its loopback's"), "1.1.1.1 53 ECONNREFUSED";
            network::a38_no_metadata_service, Host("the address is its loopback's"), "169.254.169.254 80 ECONNREFUSED";
            network::a39_berth_and_the_engine_are_out_of_reach, Host("a listener in its network"), "connected";
            network::a40_no_name_is_resolved, Host("a name in its /etc/hosts"), "resolved";
            network::a41_no_raw_sockets, Calls(&[SYS_socket]), "packet EINVAL";
            network::a42_abstract_sockets_are_the_hosts_own, Both("the name bound in its network", "no-landlock"), "connected";
            network::a43_no_vsock, Calls(&[SYS_socket]), "vsock EINVAL";
            network::a44_no_kernel_crypto, Calls(&[SYS_socket]), "alg EINVAL";
            network::a45_sessions_do_not_reach_each_other, Host("a listener in B's network"), "127.0.0.1 9000 connected";
            kernel::a46_no_new_namespaces, Calls(&[SYS_unshare]), "uid=0";
            kernel::a47_no_mounts, Calls(&[SYS_mount, SYS_open_tree]), "mount ENOENT, open_tree got";
            kernel::a48_no_keys, Calls(&[SYS_add_key]), "add_key EFAULT";
            kernel::a49_no_programs_in_the_kernel, Calls(&[SYS_bpf]), "bpf EINVAL";
            kernel::a50_no_io_uring, Calls(&[SYS_io_uring_setup]), "io_uring_setup EFAULT";
            kernel::a51_the_machine_is_not_ours_to_change, Calls(&[SYS_swapon]), "swapon EINVAL";
            kernel::a52_host_wide_controls_are_read_only, Host("no read-only cover of /proc/sys"), "writable for root";
            kernel::a53_kernel_memory_is_not_there, Host("a file at /proc/kmsg"), "/proc/kmsg gives";
            kernel::a54_no_cgroup_is_writable, Host("writable files of these names"), "/tmp/shown/release_agent";
            kernel::a55_no_file_handles, Calls(&[SYS_name_to_handle_at]), "name_to_handle_at ENOENT";
            kernel::a56_other_call_tables_are_shut, Built("i386"), "had it";
            kernel::a57_nobody_types_into_a_terminal, Calls(&[SYS_ioctl]), "ENOTTY";
            kernel::a58_the_agents_program_is_out_of_reach, Both("the agent's directory open to all", "no-landlock"), "/.berth/agent opened";
            kernel::a59_a_working_directory_is_inside, Built("magic-links"), "was entered";
            leaks::a60_the_environment_is_an_allow_list, Request("the variable in the session's env"), "CANARY_TOKEN";
            leaks::a61_processes_tell_nothing_of_the_worker, Request("the variable in the session's env"), "is in /proc";
            leaks::a62_a_secret_of_the_worker_is_nowhere, Host("a directory of the host is shown"), "/tmp/shown/secret";
            leaks::a63_the_host_is_not_told, Host("the host's name given to it"), "the host's name is";
            leaks::a64_a_flood_is_cut_and_told, Request("64 MiB kept, not 1"), "nothing of it was dropped";
            leaks::a65_a_line_without_end_is_cut, Request("a limit of 256 MiB, not 16"), "Exited(0)";
            leaks::a66_bytes_come_as_they_were_written, Request("on a terminal"), "other bytes came";
            leaks::a67_what_is_printed_is_no_outcome, Built("leaked-socket"), "it was believed";
            leaks::a68_who_does_not_read_costs_nothing, Built("hoarded-output"), "memory grew by";
            leaks::a69_nothing_is_shared_in_memory, Host("a file of A's in B's /tmp"), "/tmp/left";
            leaks::a70_who_exhausts_a_limit_exhausts_its_own, Request("B is a task of A's"), "inotify False";
            leaks::a71_no_writable_inode_is_shared, Host("one directory shown to both"), "/tmp/s/f";
            leaks::a72_what_is_anothers_is_not_found, Host("a file left in the workspace"), "workspace/residue";
            kernel::a73_a_second_lock_holds_where_modes_do_not, Built("no-landlock"), "/.berth/agent opened";
        }
    };
}

macro_rules! attacks {
    ($backend:ident: $($module:ident::$line:ident, $weak:expr, $gives:literal;)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $line() {
                    let attack = async |arena: &crate::arena::Arena| crate::$module::$line(arena).await;
                    crate::arena::run(stringify!($line), stringify!($backend), None, "", attack).await;
                }
            )*
            mod weakened {
                use super::super::*;
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $line() {
                        let attack = async |arena: &arena::Arena| $module::$line(arena).await;
                        arena::run(stringify!($line), stringify!($backend), Some($weak), $gives, attack).await;
                    }
                )*
            }
        }
    };
}

lines!(native);
lines!(docker);
