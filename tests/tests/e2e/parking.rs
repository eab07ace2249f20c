//! A paused session that gives its place up, and comes back: by time, on a drain, with a worker that stops, and for
//! want of memory. Through the commands.

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{Cluster, READY, Setup, skip, until};
use serde_json::Value;

use crate::util::{run, seconds, shell, state};

fn setup(sandbox: &str, paused_ttl: &str) -> Setup {
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Setup { coordinator_env: vec![env("BERTH_PAUSED_TTL", paused_ttl)], ..Setup::new(sandbox) }
}

async fn line(cluster: &Cluster, args: &[&str]) -> String {
    cluster.berth(args).await.ok().trim_end().to_owned()
}

async fn told(cluster: &Cluster, args: &[&str]) -> Value {
    let text = cluster.berth(&[args, &["--format", "json"]].concat()).await.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The error of a command that failed.
async fn error(cluster: &Cluster, args: &[&str]) -> Value {
    let seen = cluster.berth(&[&["--format", "json"], args].concat()).await;
    assert_ne!(seen.code, Some(0), "{seen:?}");
    serde_json::from_str(seen.stderr.trim_end()).unwrap_or_else(|error| panic!("{error} in {seen:?}"))
}

async fn row(cluster: &Cluster, name: &str) -> Value {
    let rows = told(cluster, &["ps", "--label", &format!("name={name}")]).await;
    rows.as_array().and_then(|rows| rows.first()).unwrap_or_else(|| panic!("{name} is not in {rows}")).clone()
}

/// Waits until it has given its place up.
async fn parked(cluster: &Cluster, name: &str) -> Value {
    until(READY, "the session to be parked", async || {
        let row = row(cluster, name).await;
        (row["state"] == "parked" && row["worker"].is_null()).then_some(row)
    })
    .await
}

async fn start(cluster: &Cluster, session: &str, script: &str) -> v1::Task {
    let spec = v1::TaskSpec { detached: true, ..shell(script) };
    let request = v1::StartTaskRequest { session_id: session.into(), task: Some(spec), ..Default::default() };
    cluster.tasks().start_task(request).await.expect("it starts").into_inner()
}

const MADE: &str = "mkdir -p d; echo kept > d/file; chmod 750 d/file; echo home > ~/home; seq 10; exit 3";
const LOOK: &str = "cat d/file ~/home; stat -c %a d/file; ps ax | grep -c '[s]leep 1000'";

async fn a_paused_session_comes_back(sandbox: &str) {
    let mut cluster = Cluster::start(Setup { max_sessions: 1, ..setup(sandbox, "1s") }).await;
    let session = line(&cluster, &["create", "--name", "box", "--wait", "1"]).await;
    assert_eq!(run(&cluster, &session, MADE).await.1, Kind::Exited(3));
    let running = start(&cluster, &session, "sleep 1000").await;
    let root = cluster.workers[0].state.join("sessions").join(&session);
    assert!(root.exists());
    line(&cluster, &["pause", "box"]).await;
    let row = parked(&cluster, "box").await;
    assert!(row["parked_at"].is_string() && row["running_tasks"] == 0, "{row}");
    assert!(!root.exists(), "its sandbox is gone");
    let seen = cluster.berth(&["ps"]).await;
    assert!(seen.stdout.contains("parked") && seen.stderr.contains("it was paused for 1 s"), "{seen:?}");

    // The one place of the worker is free.
    line(&cluster, &["create", "--name", "other", "--wait", "1"]).await;
    assert_eq!(line(&cluster, &["run", "--session", "other", "--", "echo", "hi"]).await, "hi");
    // What can be asked of it, and what can't.
    let seen = cluster.berth(&["run", "--session", "box", "--", "true"]).await;
    assert!(
        seen.stderr.contains("is parked") && seen.stderr.contains("hint: resume it first: berth resume"),
        "{seen:?}"
    );
    assert_eq!(error(&cluster, &["run", "--session", "box", "--", "true"]).await["reason"], "SESSION_PARKED");
    let tasks = told(&cluster, &["tasks", "box"]).await;
    let outcomes: Vec<&Value> =
        tasks.as_array().unwrap().iter().map(|task| &task["end"]["outcome"]["kind"]).collect();
    assert_eq!(outcomes, ["session_ended", "exited"], "{tasks}");
    let checkpoint = row["checkpoint_id"].as_str().unwrap();
    assert_eq!(error(&cluster, &["checkpoint", "rm", checkpoint]).await["reason"], "CHECKPOINT_IN_USE");
    assert_eq!(told(&cluster, &["info"]).await["sessions_parked"], 1);
    let no_place = error(&cluster, &["resume", "box"]).await;
    assert_eq!(no_place["reason"], "NO_PLACE", "{no_place}");

    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    assert_eq!(parked(&cluster, "box").await["parked_at"], row["parked_at"]);
    line(&cluster, &["rm", "other"]).await;
    let seen = cluster.berth(&["resume", "box"]).await;
    assert!(
        seen.stderr.contains("it was parked: its files are as of") && seen.stderr.contains("gone"),
        "{seen:?}"
    );
    assert_eq!(seen.ok().trim_end(), session);
    let back = self::row(&cluster, "box").await;
    assert_eq!((&back["state"], &back["parked_at"]), (&"ready".into(), &row["parked_at"]));
    assert_eq!(run(&cluster, &session, LOOK).await.0, "kept\nhome\n750\n0", "its files, and no process");
    let get = v1::GetTaskRequest { session_id: session.clone(), task_id: running.id };
    let task = cluster.tasks().get_task(get).await.unwrap().into_inner();
    assert_eq!(task.end.unwrap().outcome.unwrap().kind, Some(Kind::SessionEnded(v1::outcome::Empty {})));
    // The output of what had ended came along.
    let finished = tasks[1]["id"].as_str().unwrap();
    let logs = cluster.berth(&["logs", "box", finished]).await;
    assert!(logs.stdout.ends_with("9\n10\n"), "{logs:?}");

    // A plain pause says nothing of that any more.
    line(&cluster, &["pause", "box"]).await;
    let seen = cluster.berth(&["resume", "box"]).await;
    assert_eq!((seen.code, seen.stderr.as_str()), (Some(0), ""), "{seen:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_paused_session_gives_its_place_up_and_comes_back() {
    if skip::without_root("e2e native_a_paused_session_gives_its_place_up") {
        return;
    }
    a_paused_session_comes_back("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_paused_session_gives_its_place_up_and_comes_back() {
    if skip::without_docker("e2e docker_a_paused_session_gives_its_place_up") {
        return;
    }
    a_paused_session_comes_back("docker").await;
}

/// A session of which somebody writes a file while it is paused. What is acknowledged is there afterwards.
async fn leaves_its_worker(sandbox: &str, leave: impl AsyncFn(&mut Cluster, usize)) {
    let mut cluster = Cluster::start(Setup { workers: 2, ..setup(sandbox, "0") }).await;
    let session = line(&cluster, &["create", "--name", "box"]).await;
    run(&cluster, &session, MADE).await;
    start(&cluster, &session, "sleep 1000").await;
    line(&cluster, &["pause", "box"]).await;
    let late = cluster.dir.path().join("late");
    std::fs::write(&late, "late\n").unwrap();
    cluster.berth(&["cp", late.to_str().unwrap(), "box:late"]).await.ok();
    let old = state(&cluster, &session).await.worker_id;
    let index = cluster.workers.iter().position(|worker| worker.id == old).unwrap();
    leave(&mut cluster, index).await;
    let row = parked(&cluster, "box").await;
    assert!(row["message"].as_str().unwrap().contains(&old), "{row}");
    let back = told(&cluster, &["resume", "box"]).await;
    assert_ne!(back[0]["worker"], old.as_str(), "{back}");
    assert_eq!(run(&cluster, &session, LOOK).await.0, "kept\nhome\n750\n0");
    assert_eq!(run(&cluster, &session, "cat late").await.0, "late");
    cluster.stop().await;
}

/// It has no checkpoint policy, and may not move: it is parked all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_parks_what_is_paused() {
    if skip::without_root("e2e a_drain_parks_what_is_paused") {
        return;
    }
    leaves_its_worker("native", async |cluster, index| {
        let worker_id = cluster.workers[index].id.clone();
        let request = v1::DrainRequest { worker_id, deadline: seconds(600) };
        cluster.admin().drain(request).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_parks_what_is_paused() {
    if skip::without_root("e2e a_worker_that_stops_parks_what_is_paused") {
        return;
    }
    leaves_its_worker("native", async |cluster, index| cluster.workers[index].process.terminate().await)
        .await;
}

/// It offers more memory than there is, so what it has left is less than a tenth of that. Nobody else is parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_short_of_memory_parks_what_is_paused() {
    if skip::without_root("e2e a_worker_that_is_short_of_memory") {
        return;
    }
    let worker_env = vec![("BERTH_MEMORY".to_owned(), "64T".to_owned())];
    let cluster = Cluster::start(Setup { worker_env, ..setup("native", "0") }).await;
    for name in ["up", "first", "second"] {
        line(&cluster, &["create", "--name", name]).await;
    }
    for name in ["first", "second"] {
        line(&cluster, &["pause", name]).await;
    }
    for name in ["first", "second"] {
        let row = parked(&cluster, name).await;
        assert!(row["message"].as_str().unwrap().contains("is short of memory"), "{row}");
    }
    let at = async |name: &str| row(&cluster, name).await["parked_at"].as_str().unwrap().to_owned();
    assert!(at("first").await < at("second").await, "the one that was paused first goes first");
    assert_eq!(row(&cluster, "up").await["state"], "ready");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_session_ends_when_it_is_to_and_when_its_time_is_over() {
    if skip::without_root("e2e a_parked_session_ends") {
        return;
    }
    let cluster = Cluster::start(setup("native", "500ms")).await;
    let short = line(&cluster, &["create", "--name", "short"]).await;
    let other = line(&cluster, &["create", "--name", "other"]).await;
    for name in ["short", "other"] {
        line(&cluster, &["pause", name]).await;
    }
    for name in ["short", "other"] {
        parked(&cluster, name).await;
    }
    line(&cluster, &["rm", "other"]).await;
    assert_eq!(state(&cluster, &other).await.end_reason(), v1::EndReason::Deleted);
    line(&cluster, &["update", "short", "--ttl", "1"]).await;
    until(READY, "its time to be over", async || {
        (state(&cluster, &short).await.state() == v1::SessionState::Ended).then_some(())
    })
    .await;
    assert_eq!(state(&cluster, &short).await.end_reason(), v1::EndReason::TtlExpired);
    let seen = cluster.berth(&["resume", &short]).await;
    assert!(seen.stderr.contains("its time to live was over"), "{seen:?}");
    cluster.stop().await;
}
