//! What is seen of others, what a flood of output does, and what stays behind.

use berth_proto::{
    error::{Reason, reason_of},
    v1::{self, outcome::Kind},
};
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::arena::{Arena, Finding, Sandbox, TOKEN, hold, python, shell};

const MIB: u64 = 1 << 20;

fn with_token(arena: &Arena) -> v1::CreateSessionRequest {
    let env = arena.loosened().then(|| ("CANARY_TOKEN".to_owned(), TOKEN.to_owned()));
    v1::CreateSessionRequest { env: env.into_iter().collect(), ..Default::default() }
}

/// Loosened: the session's own env has the worker's variable.
pub async fn a60_the_environment_is_an_allow_list(arena: &Arena) -> Finding {
    let sandbox = arena.create(with_token(arena)).await;
    let code = "import os; print(' '.join(sorted(os.environ)))";
    let names = sandbox.py(code).await.ok();
    hold(names == "HOME LANG LOGNAME PATH SHELL USER", names.clone())?;
    Ok(names)
}

/// Loosened: the session's own env has the worker's variable.
pub async fn a61_processes_tell_nothing_of_the_worker(arena: &Arena) -> Finding {
    let sandbox = arena.create(with_token(arena)).await;
    let line = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; true";
    let text = sandbox.sh(line).await.ok();
    let state = arena.cluster.dir.path().to_string_lossy().into_owned();
    for secret in [TOKEN, &state, "BERTH_", &arena.cluster.admin_token] {
        hold(!text.contains(secret), format!("{secret} is in /proc"))?;
    }
    let first = sandbox.sh("tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/environ 2>&1").await.text();
    hold(first.contains("denied") || first.trim() == "/.berth/agent", first.clone())?;
    Ok(first)
}

/// The canary's token is in the worker's environment and in a file of its state. Loosened: that is shown in /tmp.
pub async fn a62_a_secret_of_the_worker_is_nowhere(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        sandbox.show(&arena.canary, "/tmp/shown").await;
    }
    // In two halves, so that the search does not find itself; and a file that it must find. Not in /usr: what is there
    // is there for all. Of /dev what a task can write: to a listing a device that is mounted over a file is a file, and
    // /dev/zero never ends. Of /proc what tells of processes.
    let (a, b) = TOKEN.split_at(9);
    let line = format!(
        "t={a}; t=${{t}}{b}; echo berth-control > control; \
         find / /dev/shm \\( -path /usr -o -path /sys -o -path /proc -o -path /dev \\) -prune -o -type f -size -2000k -print0 2>/dev/null | \
         xargs -0 grep -lsF -e \"$t\" -e berth-control; \
         p=$(cat /proc/[0-9]*/environ /proc/[0-9]*/mountinfo /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '); \
         case $p in *\"$t\"*) echo /proc;; esac"
    );
    let hits = sandbox.sh(&line).await.ok();
    let mut hits: Vec<&str> = hits.lines().collect();
    assert!(hits.contains(&"/workspace/control"), "the search finds nothing: {hits:?}");
    hits.retain(|hit| *hit != "/workspace/control");
    hold(hits.is_empty(), format!("found in {}", hits.join(", ")))?;
    Ok("0 hits".into())
}

/// Loosened: the test gives the sandbox the host's name.
pub async fn a63_the_host_is_not_told(arena: &Arena) -> Finding {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_owned();
    let (sandbox, other) = (arena.sandbox().await, arena.sandbox().await);
    if arena.loosened() {
        sandbox.loosen("rename", &[&host]);
    }
    let other_task = other.start(shell("exec sleep 4243")).await;
    let name = sandbox.sh("hostname; uname -n").await.ok();
    hold(!name.lines().any(|line| line == host), format!("the host's name is {host}"))?;
    let sockets = sandbox.sh("find / -name '*.sock' 2>/dev/null").await.text();
    hold(sockets.is_empty(), format!("sockets: {sockets}"))?;
    let log = sandbox.sh("dmesg 2>&1 | head -c 200").await.text();
    hold(
        log.is_empty() || log.contains("not permitted") || log.contains("not found"),
        format!("dmesg: {log}"),
    )?;
    // Whole arguments: those of the search itself are others.
    let search = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '424[3]' || true";
    let seen = sandbox.sh(search).await.ok();
    hold(seen == "0", format!("another session's processes: {seen}"))?;
    let count = sandbox.sh("ls /proc | grep -c '^[0-9]'").await.ok();
    hold(count.parse::<u32>().is_ok_and(|n| n < 12), format!("{count} processes are seen"))?;
    let dev = sandbox
        .sh("ls /sys/class/net 2>/dev/null; cut -d: -f1 -s /proc/net/dev | tr -d ' ' | grep -v '|' || true")
        .await
        .ok();
    hold(dev.split_whitespace().all(|name| name == "lo"), format!("devices: {dev}"))?;
    drop(other_task);
    Ok(format!("{}, no socket, no dmesg, {count} processes", name.lines().next().unwrap_or_default()))
}

/// Most memory that a process had, in bytes.
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kib| kib << 10)
}

/// Coordinator, worker, and the agent's two processes.
fn ours(sandbox: &Sandbox<'_>) -> Vec<i32> {
    let cluster = &sandbox.arena.cluster;
    let init = sandbox.pid();
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap_or_default();
    // The server is its first child.
    let server = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    [cluster.coordinator.pid(), cluster.workers[0].process.pid(), init].into_iter().chain(server).collect()
}

/// Runs `work`, and fails if one of our processes needed much memory for it.
async fn in_little_memory<T>(
    sandbox: &Sandbox<'_>,
    work: impl Future<Output = T>,
) -> Result<(T, u64), String> {
    let pids = ours(sandbox);
    let before: Vec<u64> = pids.iter().map(|pid| peak(*pid)).collect();
    let result = work.await;
    let growth =
        pids.iter().zip(before).map(|(pid, before)| peak(*pid).saturating_sub(before)).max().unwrap_or(0);
    if growth < 64 * MIB { Ok((result, growth)) } else { Err(format!("memory grew by {} MiB", growth / MIB)) }
}

/// Loosened: 64 MiB are kept of a stream instead of one.
pub async fn a64_a_flood_is_cut_and_told(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let spool_bytes = arena.pick(MIB, 64 * MIB);
    let flood = v1::TaskSpec { spool_bytes, detached: true, ..shell("yes | head -c 48M") };
    let (task, growth) = in_little_memory(&sandbox, async {
        let task = sandbox.start(flood).await;
        let request =
            v1::WaitTaskRequest { session_id: sandbox.id.clone(), task_id: task.id.clone(), timeout: None };
        arena.cluster.tasks().wait_task(request).await.expect("it ends").into_inner()
    })
    .await?;
    let stdout = task.stdout.expect("its stream");
    hold(stdout.length == 48 * MIB, format!("{} bytes", stdout.length))?;
    hold(stdout.first_kept > 0, "nothing of it was dropped")?;
    let request =
        v1::WatchTaskRequest { session_id: sandbox.id.clone(), task_id: task.id, ..Default::default() };
    let status = arena.cluster.tasks().watch_task(request).await;
    let status = match status {
        Err(status) => status,
        Ok(stream) => stream.into_inner().message().await.expect_err("byte 0 is gone"),
    };
    hold(reason_of(&status) == Some(Reason::OutputLost), format!("{status:?}"))?;
    Ok(format!(
        "48 MiB, the last {} KiB kept, {} KiB of memory",
        (stdout.length - stdout.first_kept) >> 10,
        growth >> 10
    ))
}

/// Loosened: an output limit of 256 MiB instead of 16.
pub async fn a65_a_line_without_end_is_cut(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let output_limit = arena.pick(16, 256) * MIB;
    let line = v1::TaskSpec { output_limit, ..shell("head -c 64M /dev/zero") };
    let (ran, growth) = in_little_memory(&sandbox, sandbox.run(line)).await?;
    hold(ran.largest <= 1 << 20, format!("a piece of {} bytes", ran.largest))?;
    hold(ran.outcome() == Kind::OutputLimit(crate::arena::EMPTY), format!("{:?}", ran.outcome()))?;
    Ok(format!("OutputLimit, pieces of at most {} KiB, {} KiB of memory", ran.largest >> 10, growth >> 10))
}

/// Loosened: on a terminal, which changes what is written.
pub async fn a66_bytes_come_as_they_were_written(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    sandbox.sh("head -c 1M /dev/urandom > f").await.ok();
    let sum = sandbox.sh("sha256sum < f | cut -c1-64").await.ok();
    let ran = sandbox.run(v1::TaskSpec { pty: arena.pick(false, true), ..shell("cat f") }).await;
    let came: String = Sha256::digest(&ran.stdout).iter().map(|byte| format!("{byte:02x}")).collect();
    hold(came == sum, format!("other bytes came: {} of them", ran.stdout.len()))?;
    Ok("the same sha256".into())
}

/// Loosened: the socket on which a task's first process reports to the agent is left open.
pub async fn a67_what_is_printed_is_no_outcome(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    // A report of the agent's own kind: "the start failed: no such directory".
    let code = "import os\nframe = bytes(8) + bytes([0x12, 4, 8, 6, 16, 2])\n\
        for fd in range(3, 1024):\n    try: os.write(fd, frame)\n    except OSError: pass\n\
        for text in (b'{\"exit_code\":0,\"outcome\":\"EXITED\"}\\n', b'\\x00\\x00\\x00\\x00\\x07\\x22\\x05\\x4a\\x03\\x0a\\x01\\x08', b'\\x1b[2J\\x1b]0;owned\\x07\\n', frame):\n\
        \x20   os.write(1, text); os.write(2, text)\nos._exit(7)";
    let ran = sandbox.try_run(python(code)).await.map_err(|status| format!("it was believed: {status}"))?;
    hold(ran.outcome() == Kind::Exited(7), format!("{:?}", ran.outcome()))?;
    hold(ran.stdout == ran.stderr && ran.stdout.starts_with(b"{"), "its bytes were changed")?;
    Ok("Exited(7), and its bytes as they were".into())
}

/// Loosened: the agent keeps output in its memory.
pub async fn a68_who_does_not_read_costs_nothing(arena: &Arena) -> Finding {
    let (sandbox, other) = (arena.sandbox().await, arena.sandbox().await);
    let (task, growth) = in_little_memory(&sandbox, async {
        let run = v1::RunRequest {
            session_id: sandbox.id.clone(),
            task: Some(shell("head -c 96M /dev/zero")),
            ..Default::default()
        };
        let mut stream = arena.cluster.tasks().run(run).await.expect("it starts").into_inner();
        let started = stream.message().await.expect("it goes on").expect("an event").event;
        let Some(v1::task_event::Event::Started(task)) = started else { panic!("{started:?}") };
        // From here on nobody reads. The task ends all the same, and others are served.
        let request = v1::WaitTaskRequest { session_id: sandbox.id.clone(), task_id: task.id, timeout: None };
        let waited = arena.cluster.tasks().wait_task(request).await.expect("it ends").into_inner();
        for _ in 0..5 {
            assert_eq!(other.sh("echo fine").await.ok(), "fine");
        }
        drop(stream);
        waited
    })
    .await?;
    let outcome = task.end.and_then(|end| end.outcome).and_then(|outcome| outcome.kind);
    hold(outcome == Some(Kind::Exited(0)), format!("{outcome:?}"))?;
    Ok(format!("96 MiB unread; memory grew by {} KiB", growth >> 10))
}

const LEAVE: &str = "import ctypes, os\nlibc = ctypes.CDLL(None)\n\
    for p in ('/tmp/left', '/dev/shm/left', '/var/tmp/left'): open(p, 'w').write('left')\n\
    print(libc.shmget(0x1eff, 4096, 0o1666) >= 0, libc.semget(0x1eff, 1, 0o1666) >= 0, libc.msgget(0x1eff, 0o1666) >= 0)\n\
    name = b'left'\nprint(libc.syscall(MQ_OPEN, name, 0o100 | 2, 0o666, 0) >= 0)\nimport time\nprint('left', flush=True)\ntime.sleep(100)";
const LOOK: &str = "import ctypes, os\nlibc = ctypes.CDLL(None)\nfound = [p for p in ('/tmp/left', '/dev/shm/left', '/var/tmp/left') if os.path.exists(p)]\n\
    if libc.shmget(0x1eff, 0, 0) >= 0: found.append('shm')\nif libc.semget(0x1eff, 0, 0) >= 0: found.append('sem')\n\
    if libc.msgget(0x1eff, 0) >= 0: found.append('msg')\nif libc.syscall(MQ_OPEN, b'left', 0, 0, 0) >= 0: found.append('mqueue')\n\
    found += open('/proc/sysvipc/shm').read().splitlines()[1:]\nprint(*found)";

fn with_numbers(code: &str) -> String {
    code.replace("MQ_OPEN", &nix::libc::SYS_mq_open.to_string())
}

/// Loosened: B is shown a file of this name in its /tmp.
pub async fn a69_nothing_is_shared_in_memory(arena: &Arena) -> Finding {
    let (a, b) = (arena.sandbox().await, arena.sandbox().await);
    let task = a.start(python(&with_numbers(LEAVE))).await;
    a.prints(&task.id, "left\n").await;
    if arena.loosened() {
        std::fs::write(arena.canary.join("left"), "left").expect("written");
        b.loosen("bind", &[arena.canary.to_str().expect("UTF-8"), "/tmp"]);
    }
    let made = a.output(&task.id).await;
    hold(made.starts_with("True True True\nTrue"), format!("not all could be left: {made}"))
        .expect("it leaves them");
    let found = b.py(&with_numbers(LOOK)).await.ok();
    hold(found.is_empty(), format!("B finds {found}"))?;
    Ok("B finds nothing in files, SysV or mqueue; keys can't be made".into())
}

const EXHAUST: &str = "import ctypes, errno, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\ncount = 0\n\
    while count < 3000 and libc.inotify_init1(0) >= 0: count += 1\nprint('inotify', count)\n\
    queues = 0\nwhile queues < 300 and libc.syscall(MQ_OPEN, b'q%d' % queues, 0o100 | 2, 0o600, 0) >= 0: queues += 1\nprint('mqueue', queues)\n\
    for i in range(100):\n    try:\n        if os.fork() == 0: time.sleep(100); os._exit(0)\n    except OSError: break\nprint('exhausted', flush=True)\ntime.sleep(100)";
const NEED: &str = "import ctypes, errno, os\nlibc = ctypes.CDLL(None, use_errno=True)\n\
    print('inotify', libc.inotify_init1(0) >= 0)\nprint('mqueue', libc.syscall(MQ_OPEN, b'n', 0o100 | 2, 0o600, 0) >= 0)";

/// Loosened: B is a second task of A's own session, so of the same user.
pub async fn a70_who_exhausts_a_limit_exhausts_its_own(arena: &Arena) -> Finding {
    let pids = v1::Limits { pids: Some(100), memory_bytes: Some(256 << 20), ..Default::default() };
    let (a, other) = (arena.sandbox_with(pids).await, arena.sandbox().await);
    let code = with_numbers(EXHAUST).replace("range(100)", "range(60)");
    let task = a.start(python(&code)).await;
    a.prints(&task.id, "exhausted").await;
    let had = a.output(&task.id).await;
    let b = arena.pick(&other, &a);
    let text = b.py(&with_numbers(NEED)).await.ok();
    hold(text == "inotify True\nmqueue True", format!("B: {}", text.replace('\n', ", ")))?;
    // Nor the host's root, who makes the sandboxes.
    let root = "import ctypes; print(ctypes.CDLL(None).inotify_init1(0) >= 0)";
    let root = std::process::Command::new("python3").args(["-c", root]).output().expect("python3 is there");
    hold(root.stdout == b"True\n", "the host's root, who makes the sandboxes, has no inotify left")?;
    Ok(format!("A had {}; B and root go on", had.trim().replace('\n', ", ")))
}

/// Loosened: both are shown one directory in which anybody may write.
pub async fn a71_no_writable_inode_is_shared(arena: &Arena) -> Finding {
    let (a, b) = (arena.sandbox().await, arena.sandbox().await);
    for sandbox in [&a, &b] {
        sandbox.sh("mkdir /tmp/s; touch /tmp/s/f").await.ok();
        if arena.loosened() {
            let file = arena.canary.join("f");
            std::fs::write(&file, "").expect("written");
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
                .expect("set");
            sandbox.loosen("bind", &[arena.canary.to_str().expect("UTF-8"), "/tmp/s"]);
        }
    }
    let lock = "import fcntl, os, sys, time\nkept = []\n\
        for p in ('/workspace', '/home/user', '/tmp', '/dev/shm', '/tmp/s/f', os.path.realpath(sys.executable)):\n\
        \x20   fd = os.open(p, os.O_RDONLY); kept.append(fd)\n    try: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); print(p, 'locked')\n    except BlockingIOError: print(p, 'shared')\n";
    let held = a.start(python(&format!("{lock}print('held', flush=True)\ntime.sleep(100)"))).await;
    a.prints(&held.id, "held").await;
    let text = b.py(lock).await.ok();
    let shared: Vec<&str> = text.lines().filter_map(|line| line.strip_suffix(" shared")).collect();
    let writable: Vec<&&str> = shared.iter().filter(|path| !path.contains("python")).collect();
    hold(writable.is_empty(), format!("one inode for both: {writable:?}"))?;
    let documents = include_str!("../../../docs/security.md");
    hold(shared.is_empty() || documents.contains("`flock`"), "an undocumented covert channel")?;
    Ok(if shared.is_empty() {
        "no lock is seen".into()
    } else {
        format!("documented: {}", shared.join(", "))
    })
}

/// Loosened: the test leaves a file in the new session's workspace, as an earlier one might have.
pub async fn a72_what_is_anothers_is_not_found(arena: &Arena) -> Finding {
    let first = arena.sandbox().await;
    first.sh("for d in /workspace ~ /tmp /var/tmp /dev/shm; do echo mine > $d/residue; done").await.ok();
    first.delete().await;
    let second = arena.sandbox().await;
    if arena.loosened() {
        std::fs::write(second.directory().join("files/workspace/residue"), "x").expect("written");
    }
    let residue = second.sh("find /workspace ~ /tmp /var/tmp /dev/shm -mindepth 1 ! -type d").await.ok();
    hold(residue.is_empty(), format!("residue: {residue}"))?;
    let unknown = Sandbox { arena, id: "0198aaaa-0000-7000-8000-000000000000".into() };
    for id in [&first.id, &unknown.id] {
        let gone = Sandbox { arena, id: id.clone() };
        let status = gone.read("/etc/passwd").await.expect_err("it is no session of anybody's");
        hold(matches!(status.code(), Code::NotFound | Code::FailedPrecondition), format!("{status:?}"))?;
    }
    let status = unknown.try_run(shell("true")).await.expect_err("it is not known");
    hold(status.code() == Code::NotFound, format!("{status:?}"))?;
    Ok("no residue; NOT_FOUND (another tenant's token: with the tenants)".into())
}
