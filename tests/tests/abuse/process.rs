//! Processes: that a task can't have more than its share, outlive its end, or reach what is not its own.

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::until;
use nix::libc;
use std::time::Duration;

use crate::arena::{Arena, EMPTY, Finding, hold, python, seconds, shell};

/// Processes that sleep, as many as there may be; says how many, and the error that ended it.
const SWARM: &str = "import os, time, errno\nn = 0\nwhy = 'none'\n\
    try:\n    while n < 300:\n        if os.fork() == 0:\n            time.sleep(100); os._exit(0)\n        n += 1\n\
    except OSError as e: why = errno.errorcode[e.errno]\nprint(n, why, flush=True)\n";

fn swarm(text: &str) -> (u32, String) {
    let (count, why) = text.split_once(' ').unwrap_or_else(|| panic!("{text:?}"));
    (count.parse().expect("a number"), why.to_owned())
}

/// Loosened: 512 processes instead of 64.
pub async fn a17_a_fork_bomb_stays_small_and_dies(arena: &Arena) -> Finding {
    let pids = v1::Limits { pids: Some(arena.pick(64, 512)), ..Default::default() };
    let bomb = arena.sandbox_with(v1::Limits { memory_bytes: Some(256 << 20), ..pids }).await;
    let neighbour = arena.sandbox().await;
    let (made, why) = swarm(&bomb.py(SWARM).await.ok());
    hold(made < 64 && why == "EAGAIN", format!("{made} processes, then {why}"))?;
    // The bomb itself, in a shell, to its timeout; a neighbour goes on meanwhile.
    let exploding = v1::TaskSpec { timeout: seconds(2), ..shell("b() { b | b & }; b; sleep 1000") };
    let going_on = async {
        for _ in 0..5 {
            assert_eq!(neighbour.sh("echo fine").await.ok(), "fine");
        }
    };
    let (ran, ()) = tokio::join!(bomb.run(exploding), going_on);
    hold(ran.outcome() == Kind::TimedOut(EMPTY), format!("it ended with {:?}", ran.outcome()))?;
    let left = bomb.sh("ls /proc | grep -c '^[0-9]'").await.ok();
    hold(left.parse::<u32>().is_ok_and(|n| n < 12), format!("{left} processes are left"))?;
    Ok(format!("{why} after {made} processes; {left} left"))
}

const ESCAPE: &str = "setsid sh -c 'exec >/dev/null 2>&1 </dev/null; while :; do echo x >> beat; sleep 0.05; done' & \
    while [ ! -s beat ]; do sleep 0.02; done";

/// Loosened: the agent leaves alone what is there when the main process has ended.
pub async fn a18_double_forks_end_with_their_task(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    sandbox.sh(ESCAPE).await.ok();
    let beats = "a=$(wc -c < beat); sleep 0.5; b=$(wc -c < beat); echo $((b - a))";
    let beats = sandbox.sh(beats).await.ok();
    hold(beats == "0", format!("its heart beats on: {beats} bytes more"))?;
    Ok("the file stops growing".into())
}

/// Loosened: the agent waits for the end of the streams.
pub async fn a19_an_inherited_stream_holds_nobody_up(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let Some(ran) = sandbox.run_in_time(shell("sleep 1000 & exit 0")).await else {
        return Err("the task hangs on a stream that its child holds".to_owned().into());
    };
    hold(ran.outcome() == Kind::Exited(0), format!("{:?}", ran.outcome()))?;
    Ok("it ends with its main process".into())
}

/// Loosened: orphans go to a process of the task, which does not reap them.
pub async fn a20_orphans_are_reaped(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    // Whoever reaps may be slower than who forks, and then the pids limit is met: what counts is that room comes back.
    let orphans = "import ctypes, os, time\nif LOOSE: ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n\
        def fork():\n    for _ in range(200):\n        try: return os.fork()\n        except BlockingIOError: time.sleep(0.05)\n\
        \x20   os._exit(1)\n\
        for i in range(1000):\n    pid = fork()\n    if pid == 0:\n        fork()\n        os._exit(0)\n\
        \x20   if os.waitpid(pid, 0)[1]: raise SystemExit(f'no orphan after {i}')\nprint('all')";
    let ran = sandbox.py(&orphans.replace("LOOSE", arena.pick("False", "True"))).await;
    hold(
        ran.text() == "all",
        format!("zombies are left: {}", ran.errors().lines().last().unwrap_or_default()),
    )?;
    let children = "import os\ntry:\n    for i in range(5000):\n        if os.fork() == 0: os._exit(0)\n\
        except BlockingIOError: print('full')";
    let full = sandbox.py(children).await.ok();
    let base = until(Duration::from_secs(60), "the count of processes to return", async || {
        let count = std::fs::read_to_string(sandbox.cgroup("pids").join("pids.current")).ok()?;
        count.trim().parse::<u32>().ok().filter(|count| *count <= 2)
    })
    .await;
    Ok(format!("1000 orphans reaped; of its own zombies: {full}; then {base} processes"))
}

/// Loosened: the agent's server has the tasks' saved user id, and landlock, which keeps signals in, is not there.
pub async fn a21_no_signal_reaches_the_agent(arena: &Arena) -> Finding {
    let (sandbox, other) = (arena.sandbox().await, arena.sandbox().await);
    let sleeper = other.start(shell("exec sleep 1000")).await;
    let kill = "import os\nmine = {os.getpid()}\nfor pid in {int(p) for p in os.listdir('/proc') if p.isdigit()} - mine:\n\
        \x20   for s in (9, 19, 15, 0):\n        try: os.kill(pid, s); print('signalled', pid)\n\
        \x20       except (PermissionError, ProcessLookupError): pass";
    let sent = sandbox.try_run(python(kill)).await;
    let text = sent.map(|ran| ran.text()).unwrap_or_else(|status| format!("signalled: {status}"));
    hold(text.is_empty(), format!("it was {text}"))?;
    let ran = sandbox.try_run(shell("kill -9 -1; echo still here")).await;
    let ran = ran.map_err(|status| format!("kill -9 -1 reached the agent: {status}"))?;
    let alive = sandbox.sh("echo alive").await.ok();
    let request = v1::GetTaskRequest { session_id: other.id.clone(), task_id: sleeper.id };
    let sleeper = arena.cluster.tasks().get_task(request).await.expect("it is known").into_inner();
    hold(sleeper.state() == v1::TaskState::Running, "another session's task was killed")?;
    Ok(format!("EPERM; kill -9 -1: {:?}, then {alive}", ran.outcome()))
}

/// Loosened: a grace of a minute instead of one second.
pub async fn a22_who_ignores_signals_is_killed(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    for line in ["trap '' TERM; echo up; while :; do sleep 1; done", "echo up; kill -STOP $$; sleep 1000"] {
        let task = sandbox.start(shell(line)).await;
        sandbox.prints(&task.id, "up").await;
        let Some(task) = sandbox.cancel(&task.id, arena.pick(1, 60)).await else {
            return Err(format!("it lives on after its grace: {line}").into());
        };
        let outcome = task.end.and_then(|end| end.outcome).and_then(|outcome| outcome.kind);
        hold(outcome == Some(Kind::Cancelled(EMPTY)), format!("{outcome:?}"))?;
    }
    Ok("killed after the grace, stopped or not".into())
}

/// Loosened: it begins at a niceness of -5, so that it may go to -1.
pub async fn a23_nobody_goes_before_others(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    if arena.loosened() {
        sandbox.loosen("renice", &["-5"]);
    }
    let code = "import os, errno, ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
        def attempt(name, f):\n    try: f(); print(name, 'granted')\n    except OSError as e: print(name, errno.errorcode[e.errno])\n\
        def ioprio():\n    if libc.syscall(IOPRIO, 1, 0, 1 << 13) < 0: raise OSError(ctypes.get_errno(), '')\n\
        for nice in (-1, -20): attempt('nice', lambda: os.setpriority(0, 0, nice))\n\
        attempt('fifo', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99)))\n\
        attempt('rr', lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)))\n\
        attempt('ioprio', ioprio)";
    let text = sandbox.py(&code.replace("IOPRIO", &libc::SYS_ioprio_set.to_string())).await.ok();
    for line in text.lines() {
        hold(line.ends_with("EACCES") || line.ends_with("EPERM"), line)?;
    }
    Ok(text.replace('\n', ", "))
}

/// Loosened: the filter lets ptrace through.
pub async fn a24_nobody_looks_into_another_process(arena: &Arena) -> Finding {
    // A child of its own too: there nothing but the filter is in the way.
    let code = "import os, time, ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n\
        child = os.fork()\nif child == 0: time.sleep(100)\n\
        def call(name, *a):\n    ctypes.set_errno(0); r = libc.syscall(*a)\n    print(name, errno.errorcode[ctypes.get_errno()] if r < 0 else 'got', flush=True)\n\
        for pid in (1, child):\n    call('ptrace', PTRACE, 16, pid, 0, 0)\n    call('readv', READV, pid, 0, 0, 0, 0, 0)\n\
        \x20   call('writev', WRITEV, pid, 0, 0, 0, 0, 0)\n    call('kcmp', KCMP, os.getpid(), pid, 0, 0, 0)\n\
        \x20   call('getfd', GETFD, os.pidfd_open(pid), 0, 0)\n\
        try: open('/proc/1/mem', 'rb'); print('mem got')\nexcept OSError as e: print('mem', errno.errorcode[e.errno])\n\
        os.kill(child, 9)";
    let numbers = [
        ("PTRACE", libc::SYS_ptrace),
        ("READV", libc::SYS_process_vm_readv),
        ("WRITEV", libc::SYS_process_vm_writev),
        ("KCMP", libc::SYS_kcmp),
        ("GETFD", libc::SYS_pidfd_getfd),
    ];
    let code = numbers.iter().fold(code.to_owned(), |code, (name, number)| {
        code.replace(&format!("{name},"), &format!("{number},"))
    });
    let text = arena.sandbox().await.py(&code).await.ok();
    hold(text.lines().count() == 11, format!("not all was tried: {text}"))?;
    for line in text.lines() {
        hold(line.ends_with("EPERM") || line.ends_with("EACCES"), line)?;
    }
    Ok("EPERM for PID 1 and for a child of its own".into())
}

/// Loosened: the agent leaves a directory open.
pub async fn a25_no_descriptor_is_inherited(arena: &Arena) -> Finding {
    let code = "import os\nfor fd in range(4096):\n    try: print(fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0])\n    except OSError: pass";
    let text = arena.sandbox().await.py(code).await.ok();
    let fds: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    hold(fds == ["0", "1", "2"], format!("open: {}", text.replace('\n', ", ")))?;
    Ok("0, 1, 2".into())
}

/// Loosened: 512 threads instead of 64.
pub async fn a26_threads_count_too(arena: &Arena) -> Finding {
    let limits =
        v1::Limits { pids: Some(arena.pick(64, 512)), memory_bytes: Some(256 << 20), ..Default::default() };
    let code = "import threading, time\nthreading.stack_size(65536)\nn = 0\n\
        try:\n    while n < 300:\n        threading.Thread(target=time.sleep, args=(100,), daemon=True).start(); n += 1\n\
        except RuntimeError as e: print(e)\nprint(n, flush=True)\nimport os\nos._exit(0)";
    let text = arena.sandbox_with(limits).await.py(code).await.ok();
    let made: u32 = text.lines().last().and_then(|line| line.parse().ok()).expect("a count");
    hold(made < 64, format!("{made} threads"))?;
    Ok(format!("{made} threads, then: {}", text.lines().next().unwrap_or_default()))
}

/// Loosened: a limit of a mebibyte.
pub async fn a27_a_crash_leaves_no_core(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let limit = sandbox.sh("ulimit -Hc").await.ok();
    hold(limit == "0", format!("a core of {limit} blocks is allowed"))?;
    let ran = sandbox.sh("kill -SEGV $$").await;
    hold(ran.outcome() == Kind::Signaled(11), format!("{:?}", ran.outcome()))?;
    let files = sandbox.sh("find / -xdev -name 'core*' -user user 2>/dev/null; ls -A").await.ok();
    hold(files.is_empty(), format!("it left {files}"))?;
    Ok("Signaled(11), hard limit 0, no file".into())
}
