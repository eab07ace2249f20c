//! How tasks end: by themselves, by a limit, by a caller, with all that they started.

use std::time::{Duration, Instant};

use berth_proto::{v1, v1::outcome::Kind};

use crate::rig::*;

#[tokio::test]
async fn a_timeout_is_told_when_everything_is_dead() {
    let Some(rig) = Rig::start("a_timeout_is_told_when_everything_is_dead").await else { return };
    let mark = marker();
    // Ignores TERM, and so does its child.
    let spec = v1::TaskSpec {
        timeout: secs(0.3),
        ..sh(&format!("trap '' TERM; sleep {mark} & sleep {mark}; exit 0"))
    };
    let began = Instant::now();
    let done = rig.run(spec).await;
    assert_eq!(done.outcome(), Kind::TimedOut(EMPTY));
    assert!(!rig.alive(&mark), "nothing lives when it is told");
    assert!(began.elapsed() < SOON);
    assert!(Duration::try_from(done.end().duration.unwrap()).unwrap() >= Duration::from_millis(300));
}

#[tokio::test]
async fn one_that_ignores_term_is_killed_after_the_grace() {
    let Some(rig) = Rig::start("one_that_ignores_term_is_killed_after_the_grace").await else { return };
    let mark = marker();
    let line = format!("trap '' TERM; echo > ready; while :; do sleep {mark}; done");
    let task = rig.begin(sh(&line)).await;
    rig.file("ready").await;
    let began = Instant::now();
    let ended = rig.cancel(&task, Duration::from_millis(200)).await;
    assert_eq!(outcome(&ended), Kind::Cancelled(EMPTY));
    assert!(began.elapsed() >= Duration::from_millis(200), "it had its grace");
    assert!(!rig.alive(&mark));
    // Again changes nothing.
    assert_eq!(rig.cancel(&task, Duration::ZERO).await, ended);
    // One that handles TERM may say goodbye.
    let task =
        rig.begin(sh("trap 'echo bye; exit 0' TERM; echo > ready2; while :; do sleep 0.05; done")).await;
    rig.file("ready2").await;
    let ended = rig.cancel(&task, Duration::from_secs(30)).await;
    assert_eq!(outcome(&ended), Kind::Cancelled(EMPTY));
    assert_eq!(rig.watch(rig.watch_request(&task)).await.unwrap().out(), "bye\n");
}

#[tokio::test]
async fn a_stopped_process_is_ended_too() {
    let Some(rig) = Rig::start("a_stopped_process_is_ended_too").await else { return };
    let task = rig.begin(sh("echo > ready; kill -STOP $$; sleep 60")).await;
    rig.file("ready").await;
    assert_eq!(outcome(&rig.cancel(&task, Duration::from_millis(100)).await), Kind::Cancelled(EMPTY));
}

const ESCAPE: &str = "(setsid sh -c 'trap \"\" TERM HUP; (while :; do echo beat >> heart; sleep 0.02; done) & sleep MARK' >/dev/null 2>&1 </dev/null &) ; while ! [ -s heart ]; do sleep 0.02; done";

async fn nothing_survives(name: &str, groups: Groups) {
    let Some(rig) = Rig::with(name, Options { groups, ..Default::default() }).await else { return };
    let mark = marker();
    let done = rig.run(sh(&ESCAPE.replace("MARK", &mark))).await;
    assert_eq!(done.outcome(), Kind::Exited(0));
    assert!(!rig.alive(&mark), "a process outlived its attached task");
    let size = std::fs::metadata(rig.workspace("heart")).unwrap().len();
    rig.run(sh("sleep 0.2")).await;
    assert_eq!(std::fs::metadata(rig.workspace("heart")).unwrap().len(), size, "its heart still beats");
}

#[tokio::test]
async fn a_double_fork_with_setsid_is_gone_at_the_end() {
    nothing_survives("a_double_fork_with_setsid_is_gone_at_the_end", Groups::All).await;
}

#[tokio::test]
async fn a_double_fork_is_gone_without_cgroup_v2() {
    nothing_survives("a_double_fork_is_gone_without_cgroup_v2", Groups::V1Only).await;
}

#[tokio::test]
async fn a_double_fork_is_gone_without_any_cgroup() {
    nothing_survives("a_double_fork_is_gone_without_any_cgroup", Groups::None).await;
}

#[tokio::test]
async fn guards_serve_ordinary_tasks_too() {
    let name = "guards_serve_ordinary_tasks_too";
    let Some(rig) = Rig::with(name, Options { groups: Groups::None, ..Default::default() }).await else {
        return;
    };
    let done = rig.run(sh("echo out; echo err >&2; exit 7")).await;
    assert_eq!((done.outcome(), done.out(), done.err()), (Kind::Exited(7), "out\n".into(), "err\n".into()));
    let status = rig.try_run(v1::TaskSpec { cwd: "none".into(), ..sh("true") }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let mark = marker();
    let spec =
        v1::TaskSpec { timeout: secs(0.2), ..sh(&format!("trap '' TERM; sleep {mark}; sleep {mark}")) };
    assert_eq!(rig.run(spec).await.outcome(), Kind::TimedOut(EMPTY));
    assert!(!rig.alive(&mark));
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_task_open() {
    let Some(rig) = Rig::start("a_background_process_does_not_hold_the_task_open").await else { return };
    let mark = marker();
    let done = rig.run(sh(&format!("echo first; sleep {mark} & exit 0"))).await;
    assert_eq!((done.outcome(), done.out().as_str()), (Kind::Exited(0), "first\n"));
    assert!(!rig.alive(&mark));
}

#[tokio::test]
async fn what_a_detached_task_leaves_lives_on_until_the_session_ends() {
    let Some(mut rig) = Rig::start("what_a_detached_task_leaves_lives_on").await else { return };
    let mark = marker();
    let line = format!("echo begin; (sleep {mark}; true) & exit 4");
    let task = rig.begin(v1::TaskSpec { detached: true, ..sh(&line) }).await;
    let ended = rig.wait(&task).await;
    assert_eq!(outcome(&ended), Kind::Exited(4));
    assert_eq!(rig.watch(rig.watch_request(&task)).await.unwrap().out(), "begin\n");
    assert!(rig.alive(&mark));
    rig.agent.shutdown(v1::ShutdownRequest { grace: secs(0.1) }).await.unwrap();
    assert_eq!(rig.ended().await, 0);
    assert!(!rig.alive(&mark));
}

#[tokio::test]
async fn a_detached_task_needs_no_watcher_and_an_attached_one_does() {
    let Some(rig) = Rig::start("a_detached_task_needs_no_watcher").await else { return };
    let (attached, detached, watched) = (marker(), marker(), marker());
    let spec =
        |mark: &str, detached| v1::TaskSpec { detached, reattach_grace: secs(0.3), ..argv(&["sleep", mark]) };
    let lives = rig.begin(spec(&detached, true)).await;
    let held = rig.begin(spec(&watched, false)).await;
    let mut watch = rig.tasks.clone().watch_task(rig.watch_request(&held)).await.unwrap().into_inner();
    watch.message().await.unwrap();
    // Never watched: its grace began with it. (GetTask is no watching.)
    let task = rig.begin(spec(&attached, false)).await;
    let until = Instant::now() + SOON;
    let ended = loop {
        let now = rig.get(&task).await;
        if now.state() == v1::TaskState::Done {
            break now;
        }
        assert!(Instant::now() < until, "it must be abandoned");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(outcome(&ended), Kind::Cancelled(EMPTY));
    assert!(end(&ended).message.contains("reattach grace"));
    assert!(!rig.alive(&attached) && rig.alive(&detached) && rig.alive(&watched));
    // The last watcher leaves: from then on it counts.
    drop(watch);
    assert_eq!(until_done(&rig, &held).await, Kind::Cancelled(EMPTY));
    assert_eq!(rig.get(&lives).await.state(), v1::TaskState::Running);
}

async fn until_done(rig: &Rig, task: &v1::Task) -> Kind {
    let until = Instant::now() + SOON;
    loop {
        let now = rig.get(task).await;
        if now.state() == v1::TaskState::Done {
            return outcome(&now);
        }
        assert!(Instant::now() < until, "it must end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn out_of_memory_is_its_own_outcome_and_spares_the_others() {
    let name = "out_of_memory_is_its_own_outcome";
    let options = Options { memory: Some(96 << 20), ..Default::default() };
    let Some(rig) = Rig::with(name, options).await else { return };
    let neighbour = rig.begin(argv(&["sleep", "600"])).await;
    let eater = "x=x; while :; do x=$x$x; done";
    let done = rig.run(argv(&["sh", "-c", eater])).await;
    assert_eq!(done.outcome(), Kind::OutOfMemory(EMPTY), "{:?}", done.end());
    let usage = done.end().usage.as_ref().unwrap();
    assert!(usage.oom_kills >= 1 && usage.peak_memory_bytes > 16 << 20, "{usage:?}");
    // A child is killed, and the main process fails for it.
    let done = rig.run(sh(&format!("sh -c '{eater}'; exit 9"))).await;
    assert_eq!(done.outcome(), Kind::OutOfMemory(EMPTY));
    // It is killed, and the main process copes.
    let done = rig.run(sh(&format!("sh -c '{eater}' || true; exit 0"))).await;
    assert_eq!(done.outcome(), Kind::Exited(0));
    assert!(done.end().usage.as_ref().unwrap().oom_kills >= 1);
    assert_eq!(rig.get(&neighbour).await.state(), v1::TaskState::Running);
    assert_eq!(rig.run(argv(&["true"])).await.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn the_output_limit_ends_the_task_at_the_byte() {
    let Some(rig) = Rig::start("the_output_limit_ends_the_task_at_the_byte").await else { return };
    let limited = |line: &str, limit| v1::TaskSpec { output_limit: limit, ..sh(line) };
    let done = rig.run(limited("yes & yes >&2 & wait", 100_000)).await;
    assert_eq!(done.outcome(), Kind::OutputLimit(EMPTY));
    assert_eq!(done.stdout.len() + done.stderr.len(), 100_000);
    // In the last breath: the same output, the same outcome.
    let done = rig.run(limited("printf 12345", 4)).await;
    assert_eq!((done.outcome(), done.out().as_str()), (Kind::OutputLimit(EMPTY), "1234"));
    let done = rig.run(limited("printf 1234", 4)).await;
    assert_eq!((done.outcome(), done.out().as_str()), (Kind::Exited(0), "1234"));
}

#[tokio::test]
async fn no_zombie_stays() {
    let Some(rig) = Rig::start("no_zombie_stays").await else { return };
    let orphans = v1::TaskSpec {
        detached: true,
        ..sh("for i in $(seq 300); do (setsid sh -c 'exit 0' &) ; done; (sleep 0.1 &); echo made")
    };
    let task = rig.begin(orphans).await;
    rig.wait(&task).await;
    let until = Instant::now() + SOON;
    loop {
        // Inside the sandbox's own /proc.
        let out = rig.run(sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")).await.out();
        if out.trim() == "0" {
            break;
        }
        assert!(Instant::now() < until, "{out} zombies");
    }
}

#[tokio::test]
async fn a_fork_bomb_is_over_with_its_task() {
    let Some(rig) = Rig::start("a_fork_bomb_is_over_with_its_task").await else { return };
    let Some(pids) = rig.config.cgroups.v1_shared.first() else {
        skip("a_fork_bomb_is_over_with_its_task", "no pids controller on v1");
        return;
    };
    std::fs::write(pids.join("t/pids.max"), "150").unwrap();
    let mark = marker();
    let line = format!("f() {{ while :; do (setsid sleep {mark} &) 2>/dev/null; f & done; }}; f 2>/dev/null");
    let done = rig.run(v1::TaskSpec { timeout: secs(0.5), ..sh(&line) }).await;
    assert_eq!(done.outcome(), Kind::TimedOut(EMPTY));
    assert!(!rig.alive(&mark));
    assert_eq!(rig.run(argv(&["true"])).await.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn cgroups_of_ended_tasks_are_removed() {
    let Some(rig) = Rig::start("cgroups_of_ended_tasks_are_removed").await else { return };
    let Some(v2) = rig.config.cgroups.v2.clone() else {
        skip("cgroups_of_ended_tasks_are_removed", "no cgroup v2 mount");
        return;
    };
    for _ in 0..20 {
        rig.run(argv(&["true"])).await;
    }
    let bases = [Some(v2), rig.config.cgroups.v1_memory.clone()];
    for base in bases.into_iter().flatten() {
        let left = || {
            std::fs::read_dir(base.join("t"))
                .unwrap()
                .flatten()
                .filter(|e| e.file_type().unwrap().is_dir())
                .count()
        };
        // The two parked ones.
        until("ended cgroups are gone", || (left() <= 2).then_some(())).await;
    }
}
