//! The kernel's surface: calls that no task has a use for, files that belong to the machine.
//!
//! Most calls would be refused for want of a capability anyway, so an EPERM alone shows nothing. They are made with
//! arguments that no kernel takes: with the filter that is EPERM all the same, without it the kernel's own error
//! (EINVAL, EFAULT, ENOENT, ...) comes, and nothing could have happened either way.

use std::os::unix::fs::PermissionsExt;

use berth_proto::v1::outcome::Kind;
use nix::libc::{self, c_long};
use sha2::{Digest, Sha256};

use crate::arena::{Arena, Finding, Not, hold, python, shell};

/// Makes each call (name, number, arguments in Python) in a child of its own; each must be EPERM or ENOSYS.
pub async fn refused(arena: &Arena, calls: &[(&str, c_long, &str)]) -> Finding {
    let mut code = String::from(
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n\
         def call(name, *a):\n    ctypes.set_errno(0); r = libc.syscall(*a)\n\
         \x20   print(name, errno.errorcode.get(ctypes.get_errno(), '?') if r < 0 else f'got {r}', flush=True)\n",
    );
    for (name, number, arguments) in calls {
        code.push_str(&format!("call('{name}', {number}, {arguments})\n"));
    }
    let text = arena.sandbox().await.py(&code).await.ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), calls.len(), "not all was tried: {text}");
    let through: Vec<&str> =
        lines.iter().filter(|l| !(l.ends_with(" EPERM") || l.ends_with(" ENOSYS"))).copied().collect();
    hold(through.is_empty(), through.join(", "))?;
    Ok(lines.join(", "))
}

/// Loosened: the filter lets unshare through.
pub async fn a46_no_new_namespaces(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let ran = sandbox.sh("unshare -Ur id 2>&1").await;
    hold(ran.outcome() != Kind::Exited(0), ran.text())?;
    hold(ran.text().contains("not permitted"), ran.text())?;
    let clone3 = format!(
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nr = libc.syscall({}, 0, 0)\n\
         print(r, errno.errorcode[ctypes.get_errno()])",
        libc::SYS_clone3
    );
    let text = sandbox.py(&clone3).await.ok();
    hold(text == "-1 ENOSYS", format!("clone3: {text}"))?;
    Ok("unshare EPERM, clone3 ENOSYS".into())
}

/// Loosened: the filter lets mount and open_tree through.
pub async fn a47_no_mounts(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("mount", libc::SYS_mount, "0, b'/nonexistent', 0, 0, 0"),
            ("umount2", libc::SYS_umount2, "b'/', -1"),
            ("fsopen", libc::SYS_fsopen, "0, 99"),
            ("open_tree", libc::SYS_open_tree, "-100, b'/', 0"),
            ("move_mount", libc::SYS_move_mount, "-1, 0, -1, 0, -1"),
            ("mount_setattr", libc::SYS_mount_setattr, "-1, 0, -1, 0, 0"),
            ("pivot_root", libc::SYS_pivot_root, "b'/nonexistent', b'/nonexistent'"),
            ("chroot", libc::SYS_chroot, "b'/nonexistent'"),
        ],
    )
    .await
}

/// Loosened: the filter lets add_key through.
pub async fn a48_no_keys(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("add_key", libc::SYS_add_key, "0, 0, 0, 0, 0"),
            ("keyctl", libc::SYS_keyctl, "9999, 0, 0, 0, 0"),
            ("request_key", libc::SYS_request_key, "0, 0, 0, 0"),
        ],
    )
    .await
}

/// Loosened: the filter lets bpf through.
pub async fn a49_no_programs_in_the_kernel(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("bpf", libc::SYS_bpf, "9999, 0, 0"),
            ("perf_event_open", libc::SYS_perf_event_open, "0, 0, 0, 0, 1 << 40"),
            ("userfaultfd", libc::SYS_userfaultfd, "9"),
        ],
    )
    .await
}

/// Loosened: the filter lets io_uring_setup through.
pub async fn a50_no_io_uring(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("io_uring_setup", libc::SYS_io_uring_setup, "0, 0"),
            ("io_uring_enter", libc::SYS_io_uring_enter, "-1, 0, 0, -1, 0, 0"),
            ("io_uring_register", libc::SYS_io_uring_register, "-1, 9999, 0, 0"),
        ],
    )
    .await
}

/// Loosened: the filter lets swapon through.
pub async fn a51_the_machine_is_not_ours_to_change(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("kexec_load", libc::SYS_kexec_load, "0, 99999, 0, -1"),
            ("init_module", libc::SYS_init_module, "0, 0, 0"),
            ("finit_module", libc::SYS_finit_module, "-1, 0, -1"),
            ("delete_module", libc::SYS_delete_module, "0, 0"),
            ("reboot", libc::SYS_reboot, "0, 0, 0, 0"),
            ("swapon", libc::SYS_swapon, "0, 1 << 20"),
            ("swapoff", libc::SYS_swapoff, "0"),
            ("acct", libc::SYS_acct, "1"),
            ("quotactl", libc::SYS_quotactl, "99, 0, 0, 0"),
            ("sethostname", libc::SYS_sethostname, "0, -1"),
            ("syslog", libc::SYS_syslog, "10, 0, 0"),
        ],
    )
    .await
}

/// Opened for writing, and never written. Loosened: the test takes the read-only cover of /proc/sys away.
pub async fn a52_host_wide_controls_are_read_only(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        sandbox.loosen("uncover", &["/proc/sys"]);
    }
    let code = "import os, errno\nfor p in ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/proc/sys/kernel/shm_rmid_forced'):\n\
        \x20   try: os.close(os.open(p, os.O_WRONLY)); print(p, 'opened')\n    except OSError as e: print(p, errno.errorcode[e.errno])\n\
        for p in ('/proc/sys', '/proc/sysrq-trigger'):\n\
        \x20   if os.path.exists(p): print(p, 'EROFS' if os.statvfs(p).f_flag & os.ST_RDONLY else 'writable for root')";
    let text = sandbox.py(code).await.ok();
    for line in text.lines() {
        hold(["EROFS", "EACCES", "ENOENT"].iter().any(|errno| line.ends_with(errno)), line)?;
    }
    Ok(text.replace('\n', ", "))
}

/// Loosened: the test shows a file of its own at the place of the kernel's memory.
pub async fn a53_kernel_memory_is_not_there(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        let secret = arena.canary.join("secret");
        sandbox.loosen("uncover", &["/proc/kmsg"]);
        sandbox.loosen("bind", &[secret.to_str().expect("UTF-8"), "/proc/kmsg"]);
    }
    let code = "import os, errno\nfor p in ('/proc/kcore', '/dev/mem', '/dev/kmem', '/dev/port', '/dev/kmsg', '/proc/kmsg', '/proc/kallsyms', '/proc/kpageflags', '/proc/vmcore', '/proc/iomem'):\n\
        \x20   try:\n        fd = os.open(p, os.O_RDONLY | os.O_NONBLOCK); n = len(os.read(fd, 64)); print(p, f'gives {n} bytes' if n else 'empty')\n\
        \x20   except OSError as e: print(p, errno.errorcode[e.errno])";
    let text = sandbox.py(code).await.ok();
    for line in text.lines() {
        hold(!line.ends_with("bytes"), line)?;
    }
    Ok(text.replace('\n', ", "))
}

/// Loosened: the test shows a directory with writable files of these names.
pub async fn a54_no_cgroup_is_writable(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        for name in ["release_agent", "cgroup.procs"] {
            let file = arena.canary.join(name);
            std::fs::write(&file, "").expect("written");
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).expect("set");
        }
        sandbox.show(&arena.canary, "/tmp/shown").await;
    }
    let find = "find / \\( -name release_agent -o -name 'cgroup.*' -o -name notify_on_release -o -name 'devices.allow' \\) -writable 2>/dev/null";
    let found = sandbox.sh(find).await.text();
    hold(found.is_empty(), format!("writable: {}", found.replace('\n', ", ")))?;
    let mounted =
        sandbox.sh("grep -c cgroup /proc/self/mountinfo; ls -A /sys/fs/cgroup /.berth 2>&1").await.text();
    Ok(format!("none; {}", mounted.replace('\n', ", ")))
}

/// Loosened: the filter lets name_to_handle_at through.
pub async fn a55_no_file_handles(arena: &Arena) -> Finding {
    refused(
        arena,
        &[
            ("open_by_handle_at", libc::SYS_open_by_handle_at, "-1, 0, 0"),
            ("name_to_handle_at", libc::SYS_name_to_handle_at, "-100, b'/nonexistent', 0, 0, 0"),
        ],
    )
    .await
}

/// Loosened: the filter lets the i386 calls through.
pub async fn a56_other_call_tables_are_shut(arena: &Arena) -> Finding {
    if std::env::consts::ARCH != "x86_64" {
        return Err(crate::arena::Not::Here("this architecture has one table of calls".into()));
    }
    // mov eax, 20 (getpid); int 0x80; ret
    let code = "import ctypes, mmap, os, signal\npid = os.fork()\nif pid == 0:\n\
        \x20   m = mmap.mmap(-1, 4096, prot=7)\n    m.write(bytes.fromhex('b814000000cd80c3'))\n\
        \x20   f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\n\
        \x20   os._exit(42 if f() == os.getpid() else 43)\n\
        print('i386', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n\
        libc = ctypes.CDLL(None, use_errno=True)\npid = os.fork()\nif pid == 0:\n\
        \x20   r = libc.syscall(0x40000000 | 39)\n    os._exit(ctypes.get_errno() if r == -1 else 0)\n\
        print('x32', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    let text = arena.sandbox().await.py(code).await.ok();
    hold(!text.contains("i386 42"), "int 0x80 asked the kernel for its pid, and had it")?;
    hold(text.contains("i386 -31") || text.contains("i386 -11"), text.clone())?;
    // The agent's filter says that there is none; a container's profile, which is asked first, kills.
    hold(text.contains(&format!("x32 {}", libc::ENOSYS)) || text.contains("x32 -31"), text.clone())?;
    Ok(text.replace('\n', ", "))
}

/// Loosened: the filter lets every ioctl through.
pub async fn a57_nobody_types_into_a_terminal(arena: &Arena) -> Finding {
    let code = "import fcntl, errno, os\nfor fd in (0, os.open('/dev/null', 0)):\n\
        \x20   for request in (0x5412, 0x541c, 0x100005412):\n\
        \x20       try: fcntl.ioctl(fd, request & 0xffffffff, b'x'); print('typed')\n        except OSError as e: print(errno.errorcode[e.errno])";
    let task = berth_proto::v1::TaskSpec { pty: true, ..python(code) };
    let text = arena.sandbox().await.run(task).await.ok();
    let words: Vec<&str> = text.split_whitespace().collect();
    hold(words.len() == 6 && words.iter().all(|word| *word == "EPERM"), words.join(", "))?;
    Ok("EPERM".into())
}

/// Loosened: the test opens the agent's directory to all, and landlock is not there.
pub async fn a58_the_agents_program_is_out_of_reach(arena: &Arena) -> Finding {
    let agent = berth_tests::process::binary("berth-agent");
    let sum = || Sha256::digest(std::fs::read(&agent).expect("the agent"));
    let before = sum();
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        open_to_all(&sandbox.directory().join("berth"));
    }
    let code = "import os, errno\nothers = [p for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]\n\
        paths = [f'/proc/{p}/exe' for p in others] + ['/.berth/agent', '/.berth/config.json']\n\
        for p in paths:\n    for how in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):\n\
        \x20       try: os.open(p, how); print(p, 'opened')\n        except OSError as e: print(p, errno.errorcode[e.errno])";
    let text = sandbox.py(code).await.ok();
    for line in text.lines() {
        hold(line.ends_with("EACCES") || line.ends_with("ENOENT"), line)?;
    }
    hold(sum() == before, "the program has changed")?;
    Ok("EACCES, and its hash is the same".into())
}

/// Loosened: the agent follows magic links.
pub async fn a59_a_working_directory_is_inside(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    sandbox.sh("ln -s /proc/self/fd/7 seven; ln -s /proc/self/root root").await.ok();
    let mut seen = Vec::new();
    for cwd in
        ["/proc/self/fd/7", "/proc/self/fd/0", "seven", "/proc/self/root", "root", "/proc/1/root", "/.berth"]
    {
        let task = berth_proto::v1::TaskSpec { cwd: cwd.into(), ..shell("pwd") };
        match sandbox.try_run(task).await {
            Ok(ran) => return Err(format!("{cwd} was entered: {}", ran.text()).into()),
            Err(status) => seen.push(status.code()),
        }
    }
    hold(seen.iter().all(|code| *code == tonic::Code::FailedPrecondition), format!("{seen:?}"))?;
    Ok("each is refused".into())
}

/// Lets every user into the agent's directory, and all that is in it.
fn open_to_all(berth: &std::path::Path) {
    let mode = || std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(berth, mode()).expect("it is ours");
    for entry in std::fs::read_dir(berth).expect("it is ours").flatten() {
        std::fs::set_permissions(entry.path(), mode()).expect("it is ours");
    }
}

/// The modes of the agent's directory are open to all in both runs: what is left is landlock. By a task, and by a
/// client of the file service. Loosened: the agent makes no landlock rules.
pub async fn a73_a_second_lock_holds_where_modes_do_not(arena: &Arena) -> Finding {
    let told = arena.cluster.berth(&["workers", "worker-1"]).await.ok();
    if told.contains("no landlock") {
        return Err(Not::Here("the kernel has no landlock".into()));
    }
    assert!(told.contains("landlock "), "its version is told: {told}");
    let sandbox = arena.sandbox().await;
    let berth = sandbox.directory().join("berth");
    open_to_all(&berth);
    let code = "import os, errno\ndef t(name, f):\n    try: f(); print(name, 'opened', flush=True)\n    except OSError as e: print(name, errno.errorcode[e.errno], flush=True)\n\
        for p in ('agent', 'config.json'): t('/.berth/' + p, lambda: os.open('/.berth/' + p, os.O_RDONLY))\n\
        t('/.berth/config.json written', lambda: os.open('/.berth/config.json', os.O_WRONLY))\n\
        t('/.berth/run/new', lambda: os.open('/.berth/run/new', os.O_WRONLY | os.O_CREAT))\n\
        t('/.berth/spool/new', lambda: os.mkdir('/.berth/spool/new'))\n\
        t('/.berth/agent run', lambda: os.execv('/.berth/agent', ['agent', '--config', '/nonexistent']))";
    let text = sandbox.py(code).await;
    let text = [text.text(), text.errors()].join("\n");
    for line in text.lines().filter(|line| !line.is_empty()) {
        hold(line.ends_with("EACCES"), line)?;
    }
    for path in ["/.berth/config.json", "/.berth/agent"] {
        hold(sandbox.read(path).await.is_err(), format!("{path} is served"))?;
    }
    hold(sandbox.write("/.berth/run/new", b"x").await.is_err(), "a file in /.berth/run was made")?;
    hold(!berth.join("run/new").exists() && !berth.join("spool/new").exists(), "something was made")?;
    Ok(text.replace('\n', ", "))
}
