//! What a session takes, as a user asks for it, in each of its states.

use berth_tests::{Cluster, READY, Setup, skip, until};
use serde_json::Value;

async fn told(cluster: &Cluster, args: &[&str]) -> Value {
    let text = cluster.berth(&[args, &["--format", "json"]].concat()).await.ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The reason for which a session has no reading.
async fn refused(cluster: &Cluster, session: &str) -> Value {
    let seen = cluster.berth(&["--format", "json", "usage", session]).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(1), ""), "{seen:?}");
    let error: Value = serde_json::from_str(seen.stderr.trim_end()).expect("JSON");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
    error["reason"].clone()
}

/// Red when one that has no sandbox gets figures of some other, or no reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_asked_in_each_of_its_states() {
    if skip::without_root("e2e a_session_is_asked_in_each_of_its_states") {
        return;
    }
    let env = [("BERTH_PAUSED_TTL".to_owned(), "1s".to_owned())].to_vec();
    let cluster = Cluster::start(Setup { coordinator_env: env, ..Setup::new("native") }).await;
    let id = cluster.berth(&["create", "--name", "box"]).await.ok().trim().to_owned();
    cluster.berth(&["run", "--detach", "--session", "box", "--", "sleep", "1000"]).await.ok();
    let ready = told(&cluster, &["usage", "box"]).await;
    assert_eq!(
        (&ready["session"], &ready["tasks"], &ready["summed"]),
        (&id.into(), &1.into(), &false.into())
    );
    let text = cluster.berth(&["usage", "box"]).await.ok();
    for what in ["cpu time", "memory", "pids", "disk", "inodes", "tasks"] {
        assert!(
            text.lines().any(|line| line.starts_with(what) && !line.contains("not counted")),
            "{what}: {text}"
        );
    }
    // (That a paused one answers is in e2e e2b's metrics.py.)
    cluster.berth(&["pause", "box"]).await.ok();
    until(READY, "the session to be parked", async || {
        let seen = cluster.berth(&["--format", "json", "usage", "box"]).await;
        seen.stderr.contains("SESSION_PARKED").then_some(())
    })
    .await;
    assert_eq!(refused(&cluster, "box").await, "SESSION_PARKED");
    cluster.berth(&["resume", "box"]).await.ok();
    let again = told(&cluster, &["usage", "box"]).await;
    assert_eq!(again["tasks"], 0, "what ran is gone: {again}");
    let id = again["session"].as_str().expect("an id").to_owned();
    cluster.berth(&["rm", "box"]).await.ok();
    assert_eq!(refused(&cluster, &id).await, "SESSION_ENDED");
    cluster.stop().await;
}

/// Where a runtime is named, tasks have no cgroups of their own: what they take is added up. Red when nothing is told then, or
/// the agent itself is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_without_cgroups_of_its_own_is_added_up() {
    let test = "e2e docker_without_cgroups_of_its_own_is_added_up";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let env = [("BERTH_DOCKER_RUNTIME".to_owned(), "runc".to_owned())].to_vec();
    let cluster = Cluster::start(Setup { worker_env: env, ..Setup::new("docker") }).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let before = told(&cluster, &["usage", "box"]).await;
    assert_eq!((&before["summed"], &before["memory_limit_bytes"]), (&true.into(), &Value::Null), "{before}");
    let figure =
        |usage: &Value, name: &str| usage[name].as_f64().unwrap_or_else(|| panic!("{name}: {usage}"));
    let work = "import sys, time\nwhile time.process_time() < 1: pass\nx = b'x' * (64 << 20)\n\
                open('/tmp/f', 'wb').write(x[:8 << 20])\nprint('ready', flush=True)\ntime.sleep(1000)";
    cluster.berth(&["run", "--detach", "--session", "box", "--", "python3", "-c", work]).await.ok();
    let held = 72.0 * 1024.0 * 1024.0;
    let during = until(READY, "all that it does to be told", async || {
        let usage = told(&cluster, &["usage", "box"]).await;
        let grown = |name: &str| figure(&usage, name) - figure(&before, name);
        (grown("memory_bytes") >= held && grown("cpu_seconds") >= 1.0 && grown("pids") >= 1.0)
            .then_some(usage)
    })
    .await;
    cluster.berth(&["kill", "box"]).await.ok();
    let after = until(READY, "the memory to be free", async || {
        let usage = told(&cluster, &["usage", "box"]).await;
        (figure(&usage, "memory_bytes") < figure(&during, "memory_bytes") - held / 2.0).then_some(usage)
    })
    .await;
    // What ended is in the sum: init has waited for it.
    assert!(figure(&after, "cpu_seconds") >= figure(&during, "cpu_seconds") - 0.1, "{after} {during}");
    cluster.stop().await;
}
