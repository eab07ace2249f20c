//! `berth checkpoint`, `berth restore`, `berth fork`: what a user types, and what is printed.

use berth_client::{CheckpointOptions, Client, ConnectOptions, CreateOptions, OnWorkerLoss, Reason};
use berth_tests::{Cluster, Setup, process::Finished, skip};
use serde_json::Value;

async fn native(test: &str) -> Option<Cluster> {
    if skip::without_root(&format!("e2e {test}")) {
        return None;
    }
    Some(Cluster::start(Setup::new("native")).await)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

async fn line(cluster: &Cluster, args: &[&str]) -> String {
    cluster.berth(args).await.ok().trim_end().to_owned()
}

async fn shell(cluster: &Cluster, session: &str, script: &str) -> String {
    line(cluster, &["run", "--session", session, "--", "sh", "-c", script]).await
}

async fn told(cluster: &Cluster, args: &[&str]) -> Value {
    json(&cluster.berth(&[args, &["--format", "json"]].concat()).await.ok())
}

/// The error of a command that failed, as JSON.
fn error(seen: &Finished) -> Value {
    assert_eq!(seen.code, Some(1), "{seen:?}");
    json(seen.stderr.trim_end())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_listed_shown_and_restored() {
    let Some(cluster) = native("a_checkpoint_is_listed_shown_and_restored").await else { return };
    let create =
        ["create", "--name", "web", "--label", "team=red", "--env", "GREETING=ahoy", "--memory", "96M"];
    let session = line(&cluster, &create).await;
    let script = "mkdir -p d; echo one > d/a; chmod 640 d/a; ln -s d/a l; ln d/a hard; mkfifo pipe; \
                  echo done > $HOME/rc; echo said; echo complained >&2";
    shell(&cluster, "web", script).await;
    let seen = cluster.berth(&["checkpoint", "web", "--note", "before"]).await;
    assert!(seen.stderr.contains("stood still for"), "{seen:?}");
    assert!(seen.stderr.contains("warning: 1 entry left out"), "the pipe: {seen:?}");
    let id = seen.ok().trim_end().to_owned();
    assert_eq!(id.len(), 32, "{id}");
    // What comes later is not in it.
    shell(&cluster, "web", "echo two > d/a").await;

    for of in ["web", "name=web", "team=red", &session, &session[24..]] {
        assert_eq!(line(&cluster, &["checkpoint", "list", of, "-q"]).await, id, "{of}");
    }
    let listed = line(&cluster, &["checkpoint", "list"]).await;
    assert!(
        listed.contains("requested") && listed.contains("before") && listed.contains(&id[20..]),
        "{listed}"
    );
    let shown = line(&cluster, &["checkpoint", "show", &id[24..]]).await;
    for part in [&*id, &*session, "before", "base", "team=red", "sockets"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let none = cluster.berth(&["checkpoint", "list", "nobody", "--format", "json"]).await;
    assert_eq!(error(&none)["reason"], "SESSION_NOT_FOUND");

    let made = told(&cluster, &["restore", &id[22..], "--name", "again", "--env", "MORE=1"]).await;
    assert_ne!(made["id"], session.as_str());
    assert_eq!(made["labels"], serde_json::json!({"name": "again", "team": "red"}));
    assert_eq!(made["limits"]["memory_bytes"], 96 << 20, "what is left out stays as it was");
    assert_eq!(
        shell(&cluster, "again", "cat d/a $HOME/rc; stat -c %a d/a; readlink l").await,
        "one\ndone\n640\nd/a"
    );
    assert_eq!(shell(&cluster, "again", "stat -c %h hard; echo $GREETING $MORE").await, "2\nahoy 1");
    assert_eq!(shell(&cluster, "again", "test -e pipe || echo gone").await, "gone");
    let tasks = told(&cluster, &["tasks", "again"]).await;
    let oldest = tasks.as_array().and_then(|tasks| tasks.last()).expect("the finished task came along");
    let logs = cluster.berth(&["logs", "again", oldest["id"].as_str().unwrap()]).await;
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("said\n", "complained\n"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_go_their_own_ways() {
    let Some(cluster) = native("forks_go_their_own_ways").await else { return };
    cluster.berth(&["create", "--name", "web"]).await.ok();
    shell(&cluster, "web", "echo common > n").await;
    let taken = cluster.berth(&["fork", "web", "-n", "2", "--name", "x"]).await;
    assert_eq!(taken.code, Some(2), "one name for two: {taken:?}");
    let forks: Vec<String> = line(&cluster, &["fork", "web", "-n", "3", "--label", "try=1"])
        .await
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(forks.len(), 3);
    for (number, fork) in forks.iter().enumerate() {
        shell(&cluster, fork, &format!("cat n > before; echo {number} > n")).await;
    }
    for (number, fork) in forks.iter().enumerate() {
        assert_eq!(shell(&cluster, fork, "cat before n").await, format!("common\n{number}"));
    }
    assert_eq!(shell(&cluster, "web", "cat n").await, "common");
    assert_eq!(line(&cluster, &["ps", "-q", "--label", "try=1"]).await.lines().count(), 3);
    // There is one place left for two.
    let seen = cluster.berth(&["fork", "web", "-n", "2", "--wait", "0"]).await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let made = line(&cluster, &["ps", "-q"]).await.lines().next().expect("the newest").to_owned();
    assert!(!forks.contains(&made) && seen.stderr.contains(&format!("stay: berth rm {made}")), "{seen:?}");
    cluster.berth(&["rm", &made]).await.ok();
    let forked = told(&cluster, &["fork", "web"]).await;
    assert_eq!(forked["sessions"].as_array().map(Vec::len), Some(1));
    assert_eq!(forked["checkpoint"]["cause"], "requested");
    assert_eq!(line(&cluster, &["checkpoint", "list", "web", "-q"]).await.lines().count(), 3, "they stay");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_gone_can_not_be_restored() {
    let Some(cluster) = native("a_checkpoint_that_is_gone_can_not_be_restored").await else { return };
    cluster.berth(&["create", "--name", "web"]).await.ok();
    let id = line(&cluster, &["checkpoint", "create", "web"]).await;
    assert_eq!(line(&cluster, &["checkpoint", "rm", &id[20..]]).await, id);
    cluster.berth(&["checkpoint", "rm", &id]).await.ok();
    assert_eq!(line(&cluster, &["checkpoint", "list", "-q"]).await, "");
    let missing = "0123456789abcdef0123456789abcdef";
    for wrong in [id.as_str(), missing, "nonsense", "web"] {
        let seen = cluster.berth(&["restore", wrong]).await;
        assert!(seen.stderr.contains("hint: `berth checkpoint list` shows them"), "{seen:?}");
        let told = error(&cluster.berth(&["restore", wrong, "--format", "json"]).await);
        assert_eq!((&told["code"], &told["reason"]), (&"NOT_FOUND".into(), &"CHECKPOINT_NOT_FOUND".into()));
    }
    let told = error(&cluster.berth(&["checkpoint", "show", missing, "--format", "json"]).await);
    assert_eq!(told["reason"], "CHECKPOINT_NOT_FOUND");
    // One that can't be removed does not keep the others.
    let ids = [line(&cluster, &["checkpoint", "web"]).await, line(&cluster, &["checkpoint", "web"]).await];
    let seen = cluster.berth(&["checkpoint", "rm", &ids[0], "nonsense", &ids[1]]).await;
    assert_eq!((seen.code, seen.stdout), (Some(1), format!("{}\n{}\n", ids[0], ids[1])));
    assert_eq!(line(&cluster, &["ps", "-q"]).await.lines().count(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_of_a_session_is_told_kept_and_can_be_left_out() {
    let Some(cluster) = native("the_policy_of_a_session_is_told_kept_and_can_be_left_out").await else {
        return;
    };
    let policy = [
        "--on-worker-loss",
        "restore",
        "--checkpoint-every",
        "1h",
        "--checkpoint-on-drain",
        "--checkpoint-before-rm",
        "--checkpoints-kept",
        "7",
        "--checkpoints-kept-for",
        "2h",
    ];
    let made = told(&cluster, &[&["create", "--name", "web"], &policy[..]].concat()).await;
    assert_eq!(made["on_worker_loss"], "restore");
    let expected = serde_json::json!({"interval": 3600.0, "on_drain": true, "before_delete": true,
        "keep": 7, "keep_for": 7200.0});
    assert_eq!(made["checkpoints"], expected);
    assert_eq!((&made["checkpoint_id"], &made["checkpointed_at"]), (&Value::Null, &Value::Null));
    shell(&cluster, "web", "echo kept > n").await;
    cluster.berth(&["rm", "web"]).await.ok();
    let listed = told(&cluster, &["checkpoint", "list", "web"]).await;
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["cause"]), (Some(1), &"delete".into()));
    assert!(listed[0]["expires_at"].is_string(), "{listed}");
    let id = listed[0]["id"].as_str().unwrap();
    let again = told(&cluster, &["restore", id, "--name", "web"]).await;
    assert_eq!(
        (&again["checkpoints"], &again["on_worker_loss"]),
        (&expected, &"restore".into()),
        "inherited"
    );
    let plain = told(&cluster, &["restore", id, "--checkpoint-every", "0", "--on-worker-loss", "end"]).await;
    assert_eq!(
        (&plain["checkpoints"]["before_delete"], &plain["on_worker_loss"]),
        (&false.into(), &"end".into())
    );
    assert_eq!(shell(&cluster, "web", "cat n").await, "kept");
    // Without one, and where none is asked for.
    cluster.berth(&["rm", "--no-checkpoint", "web"]).await.ok();
    cluster.berth(&["rm", plain["id"].as_str().unwrap()]).await.ok();
    assert_eq!(line(&cluster, &["checkpoint", "list", "-q"]).await, id);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_as_json_have_all_that_is_known() {
    let Some(cluster) = native("checkpoints_as_json_have_all_that_is_known").await else { return };
    let session = line(&cluster, &["create", "--name", "list"]).await;
    shell(&cluster, "list", "printf 12345 > n").await;
    // A session that is called like a command is meant by `create`, or as a label.
    assert_eq!(line(&cluster, &["checkpoint", "list", "list", "-q"]).await, "");
    let taken = told(&cluster, &["checkpoint", "create", "list", "--note", "x", "--keep-for", "1h"]).await;
    let other = line(&cluster, &["checkpoint", "name=list"]).await;
    let names: Vec<&str> = taken.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected = [
        "id",
        "session",
        "created_at",
        "template",
        "labels",
        "note",
        "cause",
        "entries",
        "content_bytes",
        "stored_bytes",
        "frozen_for",
        "skipped",
        "expires_at",
        "tenant",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!((&taken["session"], &taken["content_bytes"]), (&session.as_str().into(), &5.into()));
    assert!(taken["frozen_for"].is_f64() && taken["expires_at"].is_string(), "{taken}");
    let id = taken["id"].as_str().unwrap();
    assert_eq!(told(&cluster, &["checkpoint", "show", id]).await, taken);
    let listed = told(&cluster, &["checkpoint", "list"]).await;
    assert_eq!((&listed[0]["id"], &listed[1]), (&other.as_str().into(), &taken), "newest first");
    assert_eq!(listed[0]["expires_at"], Value::Null);
    let sessions = told(&cluster, &["ps"]).await;
    assert_eq!(
        (&sessions[0]["checkpoint_id"], &sessions[0]["recovered_from"]),
        (&listed[0]["id"], &Value::Null)
    );
    assert!(sessions[0]["checkpointed_at"].is_string());
    assert_eq!(told(&cluster, &["checkpoint", "rm", id, &other]).await, serde_json::json!([id, other]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_does_the_same() {
    let Some(cluster) = native("the_library_does_the_same").await else { return };
    let options = ConnectOptions::new(cluster.address.clone()).token(cluster.admin_token.clone());
    let client = Client::connect(options).await.expect("a connection");
    let options = CreateOptions::new().on_worker_loss(OnWorkerLoss::Restore).label("a", "b");
    let session = client.create_session(options).await.expect("a session");
    let taken = session.checkpoint(CheckpointOptions::new().note("n")).await.expect("a checkpoint");
    assert_eq!(client.checkpoint(&taken.id).await.unwrap(), taken);
    let listed = client.checkpoints(Some(session.id())).await.unwrap();
    assert_eq!((listed.len(), &listed[0]), (1, &taken));
    let again = CreateOptions::new().request_id("once");
    let restored = client.restore(&taken.id, again.clone()).await.expect("a session");
    assert_eq!((restored.on_worker_loss, &restored.labels["a"]), (OnWorkerLoss::Restore, &"b".to_owned()));
    assert_eq!(client.restore(&taken.id, again).await.expect("the same").id, restored.id);
    let (forks, from) = session.fork(2, CreateOptions::new()).await.expect("a fork");
    assert_eq!((forks.len(), client.checkpoints(None).await.unwrap()[0].id.as_str()), (2, from.id.as_str()));
    client.delete_checkpoint(&taken.id).await.unwrap();
    let gone = client.restore(&taken.id, CreateOptions::new()).await.expect_err("it is gone");
    assert!(gone.is(Reason::CheckpointNotFound), "{gone:?}");
    session.delete_without_checkpoint().await.unwrap();
    cluster.stop().await;
}
