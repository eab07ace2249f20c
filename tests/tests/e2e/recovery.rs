//! Sessions outlive their machines: checkpoints, and what becomes of a session whose worker is killed, stopped or gone.

use std::{path::PathBuf, time::Duration};

use berth_proto::{
    error::{Reason, reason_of},
    v1::{self, event::Subject, outcome::Kind},
};
use berth_tests::{Cluster, READY, Setup, skip, until};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::util::{run, seconds, shell, state};

/// Two workers, and clocks short enough to be waited for.
pub fn fleet(sandbox: &str) -> Setup {
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Setup {
        workers: 2,
        coordinator_env: vec![env("BERTH_LEASE", "1s"), env("BERTH_RESTORE_GRACE", "1s")],
        ..Setup::new(sandbox)
    }
}

pub async fn restorable(cluster: &Cluster) -> v1::Session {
    let request = v1::CreateSessionRequest {
        on_worker_loss: v1::OnWorkerLoss::Restore.into(),
        labels: [("kind".to_owned(), "kept".to_owned())].into(),
        env: [("GREETING".to_owned(), "ahoy".to_owned())].into(),
        ..Default::default()
    };
    cluster.sessions().create_session(request).await.expect("a session").into_inner()
}

pub async fn checkpoint(cluster: &Cluster, session: &str) -> v1::Checkpoint {
    let request = v1::CheckpointSessionRequest { session_id: session.into(), ..Default::default() };
    cluster.checkpoints().checkpoint_session(request).await.expect("a checkpoint").into_inner()
}

pub async fn start(cluster: &Cluster, session: &str, line: &str) -> v1::Task {
    let spec = v1::TaskSpec { detached: true, ..shell(line) };
    let request = v1::StartTaskRequest { session_id: session.into(), task: Some(spec), ..Default::default() };
    cluster.tasks().start_task(request).await.expect("it starts").into_inner()
}

/// The same, and waits until the coordinator has heard of the task: of one whose machine is lost sooner, nothing is left.
pub async fn start_known(cluster: &Cluster, session: &str, line: &str) -> v1::Task {
    let events = cluster.admin().watch_events(v1::WatchEventsRequest::default()).await;
    let mut events = events.expect("events").into_inner();
    let task = start(cluster, session, line).await;
    loop {
        let event = tokio::time::timeout(READY, events.message()).await.expect("in time").expect("an event");
        if let Some(Subject::Task(seen)) = event.expect("no end").subject
            && seen.id == task.id
        {
            return task;
        }
    }
}

pub async fn outcome(cluster: &Cluster, task: &v1::Task) -> Option<Kind> {
    let request = v1::GetTaskRequest { session_id: task.session_id.clone(), task_id: task.id.clone() };
    let task = cluster.tasks().get_task(request).await.ok()?.into_inner();
    task.end?.outcome?.kind
}

/// Waits until a session is ready at a later epoch.
pub async fn moved(cluster: &Cluster, session: &v1::Session) -> v1::Session {
    until(READY, "the session to be ready elsewhere", async || {
        let now = state(cluster, &session.id).await;
        assert_ne!(now.state(), v1::SessionState::Ended, "{now:?}");
        (now.state() == v1::SessionState::Ready && now.epoch > session.epoch).then_some(now)
    })
    .await
}

pub fn index(cluster: &Cluster, worker: &str) -> usize {
    cluster.workers.iter().position(|w| w.id == worker).expect("one of ours")
}

/// A session's workspace as the host sees it.
pub fn workspace(cluster: &Cluster, worker: usize, session: &str) -> PathBuf {
    cluster.workers[worker].state.join("sessions").join(session).join("files/workspace")
}

async fn a_session_goes_on_elsewhere(sandbox: &str) {
    let mut cluster = Cluster::start(fleet(sandbox)).await;
    let session = restorable(&cluster).await;
    let made =
        "set -e; mkdir -p d; echo kept > d/file; chmod 750 d/file; ln -s d/file link; echo $GREETING > ~/home
        seq 100000; echo to stderr >&2; exit 3";
    let (_, kind) = run(&cluster, &session.id, made).await;
    assert_eq!(kind, Kind::Exited(3));
    let request = v1::ListTasksRequest { session_id: session.id.clone(), ..Default::default() };
    let finished = cluster.tasks().list_tasks(request).await.unwrap().into_inner().tasks.remove(0);
    let taken = checkpoint(&cluster, &session.id).await;
    assert!(taken.content_bytes > 0 && taken.stored_bytes > 0 && taken.frozen_for.is_some(), "{taken:?}");
    run(&cluster, &session.id, "echo lost > later").await;
    let running = start_known(&cluster, &session.id, "sleep 1000").await;

    let lost = index(&cluster, &session.worker_id);
    cluster.lose_machine(lost).await;
    let now = moved(&cluster, &session).await;
    assert_ne!(now.worker_id, session.worker_id);
    assert_eq!(now.recovered_from, taken.id);
    assert_eq!(now.recovered_to, taken.created_at, "what a recovery lost is told");
    let look = "cat d/file link ~/home; stat -c %a d/file; readlink link; ls; echo $GREETING";
    let (seen, _) = run(&cluster, &session.id, look).await;
    assert_eq!(seen, "kept\nkept\nahoy\n750\nd/file\nd\nlink\nahoy");
    // A task that ran is told to be lost, and was not started again; one that had ended stays as it ended.
    assert_eq!(outcome(&cluster, &running).await, Some(Kind::WorkerLost(v1::outcome::Empty {})));
    let (alive, _) = run(&cluster, &session.id, "ps ax | grep -c '[s]leep 1000'").await;
    assert_eq!(alive, "0");
    assert_eq!(outcome(&cluster, &finished).await, Some(Kind::Exited(3)));
    let labels = now.labels;
    assert_eq!(labels.get("kind").map(String::as_str), Some("kept"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_session_goes_on_elsewhere_when_its_machine_is_lost() {
    if skip::without_root("e2e native_a_session_goes_on_elsewhere") {
        return;
    }
    a_session_goes_on_elsewhere("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_session_goes_on_elsewhere_when_its_machine_is_lost() {
    if skip::without_docker("e2e docker_a_session_goes_on_elsewhere") {
        return;
    }
    a_session_goes_on_elsewhere("docker").await;
}

/// INVARIANTS 1, 2, 3. The worker is stopped, not dead: nobody but the agent can keep its session from acting. (Take
/// `set_fence` out of the agent's Configure and Renew, and the beat goes on beside its successor.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_worker_is_fenced_before_its_session_goes_elsewhere_and_reaped_when_it_wakes() {
    let name = "e2e a_stopped_worker_is_fenced";
    if skip::without_root(name) {
        return;
    }
    let cluster = Cluster::start(fleet("native")).await;
    let session = restorable(&cluster).await;
    checkpoint(&cluster, &session.id).await;
    start(&cluster, &session.id, "while :; do date +%s%N > beat; sleep 0.01; done").await;
    let old = index(&cluster, &session.worker_id);
    let beat = workspace(&cluster, old, &session.id).join("beat");
    let read = || std::fs::read_to_string(&beat).unwrap_or_default();
    until(READY, "a beat", async || (!read().is_empty()).then_some(())).await;

    cluster.workers[old].process.signal(Signal::SIGSTOP);
    let waiting = until(READY, "the session to leave its worker", async || {
        let now = state(&cluster, &session.id).await;
        (now.worker_id != session.worker_id).then_some(now)
    })
    .await;
    let last = read();
    assert_ne!(waiting.state(), v1::SessionState::Ended);
    let now = moved(&cluster, &session).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(read(), last, "the old one still acts beside the new one");
    let (seen, _) = run(&cluster, &session.id, "ls").await;
    assert_eq!(seen, "", "the checkpoint was empty");

    cluster.workers[old].process.signal(Signal::SIGCONT);
    let root = workspace(&cluster, old, &session.id);
    until(READY, "the stale sandbox to be reaped", async || (!root.exists()).then_some(())).await;
    let after = state(&cluster, &session.id).await;
    assert_eq!(
        (after.epoch, after.state()),
        (now.epoch, v1::SessionState::Ready),
        "the late one changes nothing"
    );
    run(&cluster, &session.id, "true").await;
    cluster.stop().await;
}

/// A session that is not to be restored is nobody's but its worker's: it runs on, and is found again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_may_not_move_runs_on_and_is_reinstated() {
    if skip::without_root("e2e a_session_that_may_not_move") {
        return;
    }
    let cluster = Cluster::start(fleet("native")).await;
    let session = cluster.session().await;
    checkpoint(&cluster, &session.id).await;
    let task = start(&cluster, &session.id, "while :; do date +%s%N > beat; sleep 0.01; done").await;
    let old = index(&cluster, &session.worker_id);
    let beat = workspace(&cluster, old, &session.id).join("beat");
    let read = || std::fs::read_to_string(&beat).unwrap_or_default();
    until(READY, "a beat", async || (!read().is_empty()).then_some(())).await;
    cluster.workers[old].process.signal(Signal::SIGSTOP);
    until(READY, "the worker to be given up", async || {
        let request = v1::GetWorkerRequest { worker_id: session.worker_id.clone() };
        let worker = cluster.admin().get_worker(request).await.ok()?.into_inner();
        (worker.liveness() == v1::Liveness::Dead).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = read();
    until(READY, "another beat", async || (read() != before).then_some(())).await;
    cluster.workers[old].process.signal(Signal::SIGCONT);
    until(READY, "calls to reach it again", async || {
        let request = v1::GetTaskRequest { session_id: session.id.clone(), task_id: task.id.clone() };
        let task = cluster.tasks().get_task(request).await.ok()?.into_inner();
        (task.state() == v1::TaskState::Running).then_some(())
    })
    .await;
    let now = state(&cluster, &session.id).await;
    assert_eq!((now.epoch, now.state()), (session.epoch, v1::SessionState::Ready));
    cluster.stop().await;
}

async fn forks_diverge(sandbox: &str) {
    let cluster = Cluster::start(Setup { max_sessions: 8, ..fleet(sandbox) }).await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "echo common > f; head -c 3000000 /dev/urandom > big").await;
    let request = v1::ForkSessionRequest {
        session_id: session.id.clone(),
        count: 10,
        session: Some(v1::CreateSessionRequest { request_id: "ten".into(), ..Default::default() }),
    };
    let forked = cluster.checkpoints().fork_session(request.clone()).await.expect("ten forks").into_inner();
    assert_eq!(forked.sessions.len(), 10);
    // The same request makes no more of them.
    let same = cluster.checkpoints().fork_session(request).await.expect("the same ten").into_inner();
    let ids = |forked: &v1::ForkSessionResponse| -> Vec<String> {
        forked.sessions.iter().map(|s| s.id.clone()).collect()
    };
    assert_eq!(ids(&same), ids(&forked));
    let sum = "sha256sum < big";
    let (whole, _) = run(&cluster, &session.id, sum).await;
    for (n, fork) in forked.sessions.iter().enumerate() {
        assert_eq!(run(&cluster, &fork.id, sum).await.0, whole);
        run(&cluster, &fork.id, &format!("echo {n} >> f")).await;
    }
    for (n, fork) in forked.sessions.iter().enumerate() {
        assert_eq!(run(&cluster, &fork.id, "cat f").await.0, format!("common\n{n}"));
    }
    assert_eq!(run(&cluster, &session.id, "cat f").await.0, "common");
    // What is there already costs next to nothing.
    let again = checkpoint(&cluster, &forked.sessions[3].id).await;
    assert!(again.stored_bytes < (1 << 20) + 65_536, "no more than the piece with the change: {again:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_ten_forks_diverge() {
    if skip::without_root("e2e native_ten_forks_diverge") {
        return;
    }
    forks_diverge("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_ten_forks_diverge() {
    if skip::without_docker("e2e docker_ten_forks_diverge") {
        return;
    }
    forks_diverge("docker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_mebibyte_costs_about_that() {
    if skip::without_root("e2e a_change_of_a_mebibyte") {
        return;
    }
    let cluster = Cluster::start(fleet("native")).await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "head -c 104857600 /dev/urandom > big").await;
    let first = checkpoint(&cluster, &session.id).await;
    assert!(first.stored_bytes >= 100 << 20, "{first:?}");
    run(&cluster, &session.id, "dd if=/dev/urandom of=big bs=1M count=1 seek=40 conv=notrunc").await;
    let second = checkpoint(&cluster, &session.id).await;
    assert!((1 << 20..3 << 20).contains(&second.stored_bytes), "{second:?}");
    assert_eq!(second.content_bytes, first.content_bytes);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_damaged_piece_is_told_and_nothing_else_is_made_of_it() {
    if skip::without_root("e2e a_lost_or_damaged_piece") {
        return;
    }
    let cluster = Cluster::start(fleet("native")).await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "head -c 2000000 /dev/urandom > big").await;
    let taken = checkpoint(&cluster, &session.id).await;
    let blobs = cluster.dir.path().join("c/blobs/pieces");
    let largest = walk(&blobs).into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let restore = || v1::RestoreSessionRequest { checkpoint_id: taken.id.clone(), ..Default::default() };
    let error = cluster.checkpoints().restore_session(restore()).await.expect_err("it is damaged");
    assert!(error.message().contains("damaged"), "{error:?}");
    std::fs::remove_file(&largest).unwrap();
    let error = cluster.checkpoints().restore_session(restore()).await.expect_err("it is gone");
    assert!(error.message().contains("lost"), "{error:?}");
    // The next checkpoint brings again what was found to be lost, and with it the older one is whole again.
    let again = checkpoint(&cluster, &session.id).await;
    assert!(again.stored_bytes > 0, "{again:?}");
    let (whole, _) = run(&cluster, &session.id, "sha256sum < big").await;
    for id in [again.id, taken.id.clone()] {
        let request = v1::RestoreSessionRequest { checkpoint_id: id, ..Default::default() };
        let restored =
            cluster.checkpoints().restore_session(request).await.expect("it is whole").into_inner();
        assert_eq!(run(&cluster, &restored.id, "sha256sum < big").await.0, whole);
    }
    let request = v1::DeleteCheckpointRequest { checkpoint_id: taken.id.clone() };
    cluster.checkpoints().delete_checkpoint(request).await.unwrap();
    let error = cluster.checkpoints().restore_session(restore()).await.expect_err("it was deleted");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::CheckpointNotFound)));
    cluster.stop().await;
}

pub fn walk(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries.flat_map(|e| if e.path().is_dir() { walk(&e.path()) } else { vec![e.path()] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_take_checkpoints_at_intervals_before_the_end_and_on_a_drain() {
    if skip::without_root("e2e policies_take_checkpoints") {
        return;
    }
    let cluster = Cluster::start(fleet("native")).await;
    let policy = v1::CheckpointPolicy {
        interval: seconds(1),
        on_drain: true,
        before_delete: true,
        keep: 2,
        ..Default::default()
    };
    let request = v1::CreateSessionRequest {
        on_worker_loss: v1::OnWorkerLoss::Restore.into(),
        checkpoints: Some(policy),
        ..Default::default()
    };
    let session = cluster.sessions().create_session(request).await.unwrap().into_inner();
    run(&cluster, &session.id, "echo 1 > f").await;
    let list = async || {
        let request = v1::ListCheckpointsRequest { session_id: session.id.clone(), ..Default::default() };
        cluster.checkpoints().list_checkpoints(request).await.unwrap().into_inner().checkpoints
    };
    let mut seen = std::collections::BTreeSet::new();
    until(READY, "four checkpoints, of which the newest two stay", async || {
        let now = list().await;
        seen.extend(now.iter().map(|c| c.id.clone()));
        (seen.len() >= 4 && now.len() <= 3).then_some(())
    })
    .await;
    run(&cluster, &session.id, "echo 2 > f").await;
    let request = v1::DrainRequest { worker_id: session.worker_id.clone(), deadline: seconds(60) };
    cluster.admin().drain(request).await.unwrap();
    let now = moved(&cluster, &session).await;
    assert_ne!(now.worker_id, session.worker_id);
    assert_eq!(run(&cluster, &session.id, "cat f").await.0, "2", "a drain loses nothing");
    crate::util::delete(&cluster, &session.id).await;
    let kept = list().await;
    assert_eq!((kept[0].cause(), kept.len()), (v1::CheckpointCause::Delete, 2), "{kept:?}");
    cluster.stop().await;
}
