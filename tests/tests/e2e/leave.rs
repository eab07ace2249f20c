//! Workers that leave: SIGTERM is a drain with the worker's grace, and `berth drain` shows how it goes. Under load:
//! `rolling.rs`.

use berth_proto::v1::{self, outcome::Kind, task_event::Event};
use berth_tests::{Cluster, READY, Setup, process::Process, skip, until};
use futures::future::join_all;
use nix::sys::signal::Signal;

use crate::util::{run, seconds, shell, state};

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn scheduling(cluster: &Cluster, worker: &str) -> Option<v1::Scheduling> {
    let request = v1::GetWorkerRequest { worker_id: worker.to_owned() };
    cluster.admin().get_worker(request).await.ok().map(|worker| worker.into_inner().scheduling())
}

/// Sessions on worker-1, of two.
async fn on_the_first<const N: usize>(
    cluster: &Cluster,
    requests: [v1::CreateSessionRequest; N],
) -> [v1::Session; N] {
    let other = || "worker-2".to_owned();
    cluster.admin().cordon(v1::CordonRequest { worker_id: other() }).await.expect("it is there");
    let created = requests.map(|request| {
        let mut sessions = cluster.sessions();
        async move { sessions.create_session(request).await.expect("a session").into_inner() }
    });
    let created = join_all(created).await;
    cluster.admin().uncordon(v1::UncordonRequest { worker_id: other() }).await.expect("it is there");
    created.try_into().expect("as many")
}

fn restorable() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest { on_worker_loss: v1::OnWorkerLoss::Restore.into(), ..Default::default() }
}

// ---- SIGTERM ------------------------------------------------------------------------

/// A task that takes some seconds and numbers its lines.
const LINES: usize = 60;

async fn read_to_the_end(mut stream: tonic::Streaming<v1::TaskEvent>) -> (String, Kind) {
    let mut output = Vec::new();
    while let Some(event) = stream.message().await.expect("the stream lasts as long as the task") {
        match event.event {
            Some(Event::Stdout(chunk)) => output.extend_from_slice(&chunk.data),
            Some(Event::Ended(task)) => {
                let kind = task.end.and_then(|end| end.outcome).and_then(|o| o.kind).expect("an outcome");
                return (String::from_utf8(output).expect("numbers"), kind);
            }
            _ => {}
        }
    }
    panic!("the stream ended before the task");
}

/// Red without the worker's `Stopping` (no checkpoint is taken, and what moves goes back to the old one), and when it
/// does not wait for tasks or for the coordinator.
async fn a_stop_is_a_drain(sandbox: &str) {
    let worker_env = env(&[("BERTH_SHUTDOWN_GRACE", "50s")]);
    let mut cluster = Cluster::start(Setup { workers: 2, worker_env, ..Setup::new(sandbox) }).await;
    // Its policy's next checkpoint is an hour away: that holds up no drain.
    let policy = v1::CheckpointPolicy { interval: seconds(3600), ..Default::default() };
    let moves = v1::CreateSessionRequest { checkpoints: Some(policy), ..restorable() };
    let kept = v1::CheckpointPolicy { on_drain: true, ..Default::default() };
    let kept = v1::CreateSessionRequest { checkpoints: Some(kept), ..Default::default() };
    let [moves, ends, kept, idle] =
        on_the_first(&cluster, [moves, Default::default(), kept, Default::default()]).await;
    run(&cluster, &moves.id, "echo old > f").await;
    let request = v1::CheckpointSessionRequest { session_id: moves.id.clone(), ..Default::default() };
    let old = cluster.checkpoints().checkpoint_session(request).await.expect("a checkpoint").into_inner();
    run(&cluster, &moves.id, "echo newest > f; echo of home > ~/g").await;
    run(&cluster, &kept.id, "echo kept > f").await;
    let line = format!("for i in $(seq {LINES}); do echo $i; sleep 0.1; done");
    let request =
        v1::RunRequest { session_id: ends.id.clone(), task: Some(shell(&line)), ..Default::default() };
    let stream = cluster.tasks().run(request).await.expect("it starts").into_inner();

    let mut worker = cluster.workers.remove(0);
    let seen = async {
        until(READY, "the worker to be drained", async || {
            (scheduling(&cluster, "worker-1").await? == v1::Scheduling::Draining).then_some(())
        })
        .await;
        let new = cluster.session().await;
        assert_eq!(new.worker_id, "worker-2");
        let idle = until(READY, "the idle one to end", async || {
            let now = state(&cluster, &idle.id).await;
            (now.state() == v1::SessionState::Ended).then_some(now)
        })
        .await;
        assert_eq!(idle.end_reason(), v1::EndReason::Drained);
        until(READY, "the session to be ready elsewhere", async || {
            let now = state(&cluster, &moves.id).await;
            assert_ne!(now.state(), v1::SessionState::Ended, "{now:?}");
            (now.state() == v1::SessionState::Ready && now.worker_id == "worker-2").then_some(now)
        })
        .await
    };
    let ((), moved, (output, outcome)) =
        tokio::join!(worker.process.terminate(), seen, read_to_the_end(stream));
    assert_ne!(moved.recovered_from, old.id, "a checkpoint was taken for it");
    assert_eq!(run(&cluster, &moves.id, "cat f ~/g").await.0, "newest\nof home");
    let numbers: Vec<String> = (1..=LINES).map(|n| n.to_string()).collect();
    assert_eq!((output.lines().map(str::to_owned).collect(), outcome), (numbers, Kind::Exited(0)));
    assert_eq!(state(&cluster, &ends.id).await.end_reason(), v1::EndReason::Drained);
    // What ends with its worker has its checkpoint first, where its policy says so.
    let request = v1::ListCheckpointsRequest { session_id: kept.id.clone(), ..Default::default() };
    let taken = cluster.checkpoints().list_checkpoints(request).await.unwrap().into_inner().checkpoints;
    assert_eq!(taken.iter().map(v1::Checkpoint::cause).collect::<Vec<_>>(), [v1::CheckpointCause::Drain]);
    let request = v1::RestoreSessionRequest { checkpoint_id: taken[0].id.clone(), ..Default::default() };
    let restored = cluster.checkpoints().restore_session(request).await.expect("it is whole").into_inner();
    assert_eq!(run(&cluster, &restored.id, "cat f").await.0, "kept");
    assert_eq!(scheduling(&cluster, "worker-1").await, None, "it has left");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_stop_is_a_drain() {
    if !skip::without_root("e2e native_a_stop_is_a_drain") {
        a_stop_is_a_drain("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_stop_is_a_drain() {
    if !skip::without_docker("e2e docker_a_stop_is_a_drain") {
        a_stop_is_a_drain("docker").await;
    }
}

/// Red when the setting is not heeded: then the session is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_keep_its_sessions_has_them_at_its_next_start() {
    if skip::without_root("e2e a_worker_that_is_told_to_keep_its_sessions") {
        return;
    }
    let worker_env = env(&[("BERTH_ON_STOP", "keep")]);
    let mut cluster = Cluster::start(Setup { worker_env, ..Setup::new("native") }).await;
    let session = cluster.session().await;
    let spec = v1::TaskSpec { detached: true, ..shell("sleep 1000") };
    let request =
        v1::StartTaskRequest { session_id: session.id.clone(), task: Some(spec), ..Default::default() };
    let task = cluster.tasks().start_task(request).await.expect("it starts").into_inner();
    cluster.workers[0].process.terminate().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "the task to be reached again", async || {
        let request = v1::GetTaskRequest { session_id: session.id.clone(), task_id: task.id.clone() };
        let now = cluster.tasks().get_task(request).await.ok()?.into_inner();
        (now.state() == v1::TaskState::Running && now.pid == task.pid).then_some(())
    })
    .await;
    let now = state(&cluster, &session.id).await;
    assert_eq!((now.state(), now.epoch), (v1::SessionState::Ready, session.epoch));
    cluster.stop().await;
}

// ---- berth drain ------------------------------------------------------------------------

/// Red when the figures are not kept (`Tally::see`), or when it returns before the worker is empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_shows_what_becomes_of_the_sessions() {
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("fake") }).await;
    for format in ["text", "json"] {
        let [moves, stays] = on_the_first(&cluster, [restorable(), Default::default()]).await;
        let seen = cluster.berth(&["drain", "worker-1", "--deadline", "3s", "--format", format]).await;
        assert_eq!(seen.code, Some(0), "{seen:?}");
        let says = |words: &str| seen.stderr.lines().any(|line| line.contains(words));
        if format == "json" {
            assert_eq!(seen.stderr, "");
            let drained: serde_json::Value = serde_json::from_str(&seen.stdout).expect("one object");
            let [id, sessions, moved, parked, ended] =
                ["id", "sessions", "moved", "parked", "ended"].map(|name| drained[name].clone());
            assert_eq!((id, sessions), ("worker-1".into(), 0.into()));
            assert_eq!((moved, parked, ended), (1.into(), 0.into(), 1.into()));
            assert!(drained["took"].as_f64().is_some_and(|took| took > 0.0), "{drained}");
        } else {
            assert!(says("worker-1: 2 sessions left, 0 moved, 0 ended; for at most "), "{}", seen.stderr);
            assert!(says("worker-1 is empty after ") && says(": 1 moved, 1 ended"), "{}", seen.stderr);
            assert_eq!(seen.stdout, "worker-1 draining\n");
        }
        assert_eq!(state(&cluster, &moves.id).await.worker_id, "worker-2");
        assert_eq!(state(&cluster, &stays.id).await.end_reason(), v1::EndReason::Drained);
        cluster.berth(&["uncordon", "worker-1"]).await.ok();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_nobody_waits_for_goes_on() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let session = cluster.session().await;
    let access = env(&[("BERTH_ADDRESS", &cluster.address), ("BERTH_TOKEN", &cluster.admin_token)]);
    let args = ["drain".to_owned(), "worker-1".into(), "--deadline".into(), "10m".into()];
    let mut drain = Process::spawn("berth", &args, &access, cluster.dir.path().join("drain.log"));
    until(READY, "its first line", async || drain.log().contains("1 session left").then_some(())).await;
    drain.signal(Signal::SIGINT);
    assert_eq!(drain.ended().await, Some(130));
    let said = drain.log();
    assert!(said.contains("the drain goes on with 1 session; `berth uncordon worker-1` ends it"), "{said}");
    assert_eq!(scheduling(&cluster, "worker-1").await, Some(v1::Scheduling::Draining));
    assert_eq!(state(&cluster, &session.id).await.state(), v1::SessionState::Ready);
    // And one that does not wait says how it stands.
    let seen = cluster.berth(&["drain", "worker-1", "--no-wait"]).await.ok();
    assert_eq!(seen, "worker-1 draining\n");
    cluster.stop().await;
}
