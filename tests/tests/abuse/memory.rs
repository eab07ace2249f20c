//! Memory, CPU and time: that limits hold, that what was taken comes back, and that the end is told as what it was.

use std::time::Duration;

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::until;
use nix::libc;

use crate::arena::{Arena, EMPTY, Finding, Ran, Sandbox, hold, python, seconds, shell};

const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> v1::Limits {
    v1::Limits { memory_bytes: Some(bytes), pids: Some(256), ..Default::default() }
}

fn out_of_memory(ran: &Ran) -> Result<u64, String> {
    let kills = ran.task.end.as_ref().and_then(|end| end.usage).map_or(0, |usage| usage.oom_kills);
    match ran.outcome() {
        Kind::OutOfMemory(_) if kills > 0 => Ok(kills),
        other => Err(format!("{other:?} with {kills} OOM kills: {}", ran.text())),
    }
}

/// Loosened: 256 MiB instead of 64.
pub async fn a28_out_of_memory_is_told_as_that(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(memory(arena.pick(64, 256) * MIB)).await;
    let ran =
        sandbox.py("a = []\nfor i in range(8): a.append(bytearray(1 << 24))\nprint('had 128 MiB')").await;
    let kills = out_of_memory(&ran)?;
    let peak = ran.task.end.and_then(|end| end.usage).map_or(0, |usage| usage.peak_memory_bytes);
    // A process that is being killed may pass the limit of v2 on its way out (the kernel's cgroup-v2.rst, memory.max).
    hold(peak <= 65 * MIB, format!("it had {peak} bytes"))?;
    // With swap it would have had more than its limit.
    let swap = std::fs::read_to_string(sandbox.cgroup("memory").join("memory.memsw.max_usage_in_bytes"));
    if let Ok(Ok(bytes)) = swap.map(|text| text.trim().parse::<u64>()) {
        hold(bytes <= 64 * MIB, format!("memory and swap: {bytes} bytes"))?;
    }
    hold(sandbox.sh("echo alive").await.ok() == "alive", "the session is gone")?;
    Ok(format!("OutOfMemory, {kills} OOM kills, peak {} MiB", peak / MIB))
}

async fn comes_back(sandbox: &Sandbox<'_>) -> u64 {
    let dir = sandbox.cgroup("memory");
    until(Duration::from_secs(60), "the memory to come back", async || {
        let text = std::fs::read_to_string(dir.join("memory.usage_in_bytes"))
            .or_else(|_| std::fs::read_to_string(dir.join("memory.current")));
        text.ok()?.trim().parse::<u64>().ok().filter(|bytes| *bytes < 32 * MIB)
    })
    .await
}

/// Loosened: 256 MiB instead of 64.
pub async fn a29_a_memfd_is_charged(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(memory(arena.pick(64, 256) * MIB)).await;
    let code = "import os\nfd = os.memfd_create('m')\nfor i in range(128): os.write(fd, bytes(1 << 20))\nprint('had 128 MiB')";
    let kills = out_of_memory(&sandbox.py(code).await)?;
    let left = comes_back(&sandbox).await;
    Ok(format!("{kills} OOM kills; afterwards {} KiB are charged", left >> 10))
}

/// Loosened: a limit of 8 MiB instead of 64 KiB.
pub async fn a30_memory_is_not_locked(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(memory(256 * MIB)).await;
    let code = "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n\
        a = ctypes.create_string_buffer(1 << 22)\n\
        r = libc.mlock(a, 1 << 22)\nprint('locked 4 MiB' if r == 0 else errno.errorcode[ctypes.get_errno()])\n\
        r = libc.mlockall(3)\nprint('locked all' if r == 0 else errno.errorcode[ctypes.get_errno()])";
    let text = sandbox.py(code).await.ok();
    hold(text == "ENOMEM\nENOMEM", text.replace('\n', ", "))?;
    Ok("ENOMEM".into())
}

/// Loosened: 256 MiB instead of 64.
pub async fn a31_a_swarm_does_not_take_the_agent_along(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(memory(arena.pick(64, 256) * MIB)).await;
    let denied = sandbox.sh("echo -1000 > /proc/self/oom_score_adj").await;
    hold(denied.outcome() != Kind::Exited(0), "it may say that it is never to be killed")?;
    // Below the agent's badness each, together above the limit.
    let code = "import os, time\nopen('/proc/self/oom_score_adj', 'w').write('0')\npids = []\n\
        for i in range(16):\n    pid = os.fork()\n    if pid == 0:\n        a = bytearray(os.urandom(1 << 20)) * 6; time.sleep(3); os._exit(0)\n    pids.append(pid)\n\
        bad = [p for p in pids if os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) != 0]\nos._exit(1 if bad else 0)";
    let kills = out_of_memory(&sandbox.py(code).await)?;
    hold(sandbox.sh("echo alive").await.ok() == "alive", "the agent was killed")?;
    Ok(format!("EACCES; OutOfMemory with {kills} kills, the agent lives"))
}

/// Loosened: 256 MiB instead of 32.
pub async fn a32_pipes_are_charged(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox_with(memory(arena.pick(32, 256) * MIB)).await;
    let code = "import fcntl, os\nkept = []\nfor i in range(48):\n    r, w = os.pipe()\n    fcntl.fcntl(w, 1031, 1 << 20)\n\
        \x20   os.set_blocking(w, False)\n    n = 0\n    try:\n        while n < 1 << 20: n += os.write(w, bytes(1 << 16))\n    except BlockingIOError: pass\n    kept.append((r, w))\nprint('filled 48 MiB')";
    let ran = sandbox.py(code).await;
    hold(!ran.text().contains("filled"), "48 pipes of a mebibyte were filled")?;
    hold(sandbox.sh("echo alive").await.ok() == "alive", "the session is gone")?;
    let why = ran.errors().lines().last().unwrap_or_default().to_owned();
    Ok(format!("{:?} {why}", ran.outcome()))
}

/// Loosened: two cores instead of a tenth of one.
pub async fn a33_a_busy_loop_keeps_to_its_quota(arena: &Arena) -> Finding {
    let limits = v1::Limits { cpu_millis: Some(arena.pick(100, 2000)), ..Default::default() };
    let sandbox = arena.sandbox_with(limits).await;
    let task = v1::TaskSpec { timeout: seconds(3), ..shell("while :; do :; done") };
    let ran = sandbox.run(task).await;
    hold(ran.outcome() == Kind::TimedOut(EMPTY), format!("{:?}", ran.outcome()))?;
    let end = ran.task.end.expect("it ended");
    let time =
        |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap_or_default()).expect("positive");
    let usage = end.usage.expect("its usage");
    let (used, wall) = (time(usage.cpu_user) + time(usage.cpu_system), time(end.duration));
    let text = std::fs::read_to_string(sandbox.cgroup("cpu").join("cpu.stat")).expect("its figures");
    let throttled = text.lines().find_map(|l| l.strip_prefix("nr_throttled ")?.trim().parse::<u64>().ok());
    hold(throttled > Some(0), format!("never throttled: {used:?} of CPU in {wall:?}"))?;
    // A tenth, 5 % of it, and one period in which it may begin.
    hold(used <= wall.mul_f64(0.105) + Duration::from_millis(100), format!("{used:?} of CPU in {wall:?}"))?;
    Ok(format!("{used:.1?} of CPU in {wall:.1?}, throttled {} times", throttled.unwrap_or(0)))
}

/// Loosened: a timeout of ten minutes instead of two seconds.
pub async fn a34_a_timeout_ends_what_sleeps(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let task =
        v1::TaskSpec { timeout: seconds(arena.pick(2, 600)), ..shell("trap '' TERM; sleep 1000000000") };
    let Some(ran) = sandbox.run_in_time(task).await else {
        return Err("it sleeps on".to_owned().into());
    };
    hold(ran.outcome() == Kind::TimedOut(EMPTY), format!("{:?}", ran.outcome()))?;
    Ok(format!("TimedOut after {:?}", ran.task.end.and_then(|end| end.duration)))
}

/// By errno: no attempt could change the clock. Loosened: the filter lets the calls through.
pub async fn a35_the_clock_is_not_set(arena: &Arena) -> Finding {
    crate::kernel::refused(
        arena,
        &[
            ("clock_settime", libc::SYS_clock_settime, "99, 0"),
            ("settimeofday", libc::SYS_settimeofday, "1, 0"),
            ("adjtimex", libc::SYS_adjtimex, "1"),
            ("clock_adjtime", libc::SYS_clock_adjtime, "99, 1"),
        ],
    )
    .await
}

/// Loosened: standard input is asked for, and nobody writes to it.
pub async fn a36_without_input_there_is_an_end_of_file(arena: &Arena) -> Finding {
    let sandbox = arena.sandbox().await;
    let task =
        v1::TaskSpec { stdin: arena.pick(false, true), ..python("import sys; print(len(sys.stdin.read()))") };
    let Some(ran) = sandbox.run_in_time(task).await else {
        return Err("it waits for input".to_owned().into());
    };
    hold(ran.ok() == "0", ran.text())?;
    Ok("end of file at once".into())
}
