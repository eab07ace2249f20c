//! What tasks leave in /workspace/artifacts: kept past the session, by what rules, and whatever a task arranges there.

use berth_client::{ContextOptions, model::Kernel};
use berth_tests::{
    Cluster, READY, Setup,
    process::{self, Finished},
    skip, until,
};
use serde_json::Value;

use crate::{interpreter::client, recovery::workspace};

async fn start(backend: &str, test: &str, env: &[(&str, &str)]) -> Option<Cluster> {
    if skip::without(backend, &format!("e2e artifacts {test}")) {
        return None;
    }
    let mut setup = Setup::new(backend);
    setup.coordinator_env.extend(env.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    let cluster = Cluster::start(setup).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    Some(cluster)
}

async fn shell(cluster: &Cluster, script: &str) -> String {
    cluster.berth(&["run", "-s", "box", "--", "sh", "-c", script]).await.ok()
}

/// Ends a task that was started with `run -d`, which told its session and itself.
async fn end(cluster: &Cluster, started: &str) {
    let task = started.split_whitespace().last().expect("a task");
    cluster.berth(&["kill", "box", task]).await.ok();
}

/// What is kept of a session, once nothing more is to come.
async fn listed(cluster: &Cluster, session: &str) -> Value {
    until(READY * 5, "what the tasks left to be kept", async || {
        let text = cluster.berth(&["artifact", "list", session, "--format", "json"]).await.ok();
        let listed: Value = serde_json::from_str(&text).expect("JSON");
        (listed["pending"] == false).then_some(listed)
    })
    .await
}

/// Names and ids, the newest first.
fn names(listed: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = listed["artifacts"].as_array().expect("a list");
    all.iter().map(|artifact| (text(&artifact["name"]), text(&artifact["id"]))).collect()
}

fn id_of(listed: &Value, name: &str) -> String {
    names(listed).into_iter().find(|(of, _)| of == name).unwrap_or_else(|| panic!("no {name}: {listed}")).1
}

/// Why files were not kept, by name.
fn why(listed: &Value, name: &str) -> String {
    let all = listed["not_kept"].as_array().expect("a list");
    let found = all.iter().find(|left_out| left_out["name"] == name);
    found
        .and_then(|left_out| left_out["why"].as_str())
        .unwrap_or_else(|| panic!("{name}: {listed}"))
        .to_owned()
}

/// Its content, which the command holds against the hash.
async fn content(cluster: &Cluster, id: &str) -> String {
    cluster.berth(&["artifact", "get", id, "-o", "-"]).await.ok()
}

async fn outlive(mut cluster: Cluster) {
    let session = cluster.berth(&["ps", "-q"]).await.ok().trim().to_owned();
    assert!(names(&listed(&cluster, "box").await).is_empty());
    let sum = shell(
        &cluster,
        "mkdir -p artifacts/a; printf one > artifacts/a/b.txt; seq 300000 > artifacts/big.csv; \
                               sha256sum artifacts/big.csv | cut -c1-64",
    )
    .await;
    let first = listed(&cluster, "box").await;
    let mut kept = names(&first);
    kept.sort();
    assert_eq!(kept.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a/b.txt", "big.csv"]);
    let big = first["artifacts"].as_array().unwrap().iter().find(|a| a["name"] == "big.csv").unwrap();
    assert_eq!((&big["size"], &big["media_type"]), (&1_988_895.into(), &"text/csv".into()), "{big}");
    assert_eq!(
        (big["sha256"].as_str(), &big["session"]),
        (Some(sum.trim()), &session.as_str().into()),
        "{big}"
    );
    assert!(big["task"].as_str().is_some_and(|task| task.len() == 32), "{big}");
    // What is as it was is no other artifact, though it was touched; another content is.
    shell(&cluster, "touch artifacts/big.csv; printf two > artifacts/a/b.txt").await;
    let second = listed(&cluster, "box").await;
    assert_eq!(names(&second).len(), 3, "{second}");
    let new = &names(&second)[0];
    assert_eq!((new.0.as_str(), content(&cluster, &new.1).await.as_str()), ("a/b.txt", "two"));
    assert_eq!(content(&cluster, &id_of(&first, "a/b.txt")).await, "one");
    // What came last, just before the end, and what no task left.
    shell(&cluster, "printf last > artifacts/z").await;
    let brought = cluster.dir.path().join("y");
    std::fs::write(&brought, "brought").unwrap();
    cluster.berth(&["cp", brought.to_str().unwrap(), "box:artifacts/y"]).await.ok();
    cluster.berth(&["rm", "box"]).await.ok();
    until(READY, "each to be recorded", async || {
        let audit = cluster.berth(&["audit", "--session", &session, "--format", "json"]).await.ok();
        let records: Vec<Value> = serde_json::from_str(&audit).expect("JSON");
        let kept: Vec<&Value> = records.iter().filter(|record| record["what"] == "artifact kept").collect();
        (kept.len() == 5 && kept.iter().any(|kept| kept["details"]["sha256"] == sum.trim())).then_some(())
    })
    .await;
    let numbers: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    for _ in 0..2 {
        let after = listed(&cluster, &session).await;
        assert_eq!(names(&after).len(), 5, "{after}");
        assert_eq!(content(&cluster, &id_of(&after, "z")).await, "last");
        assert_eq!(content(&cluster, &id_of(&after, "y")).await, "brought");
        assert_eq!(content(&cluster, &id_of(&after, "big.csv")).await, numbers);
        cluster.restart_coordinator().await;
    }
    cluster.workers_ready().await;
    // To a file, and not through a link that is there.
    let (file, elsewhere) = (cluster.dir.path().join("got"), cluster.dir.path().join("elsewhere"));
    std::fs::write(&elsewhere, "mine").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    let z = id_of(&listed(&cluster, &session).await, "z");
    cluster.berth(&["artifact", "get", &z[20..], "-o", file.to_str().unwrap()]).await.ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "last");
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "mine");
    cluster.berth(&["artifact", "remove", &z]).await.ok();
    cluster.berth(&["artifact", "remove", &z]).await.ok();
    assert_eq!(names(&listed(&cluster, &session).await).len(), 4);
    let gone = cluster.berth(&["artifact", "get", &z, "-o", "-"]).await;
    assert!(gone.code == Some(1) && gone.stderr.contains("hint: `berth artifact list`"), "{gone:?}");
    cluster.stop().await;
}

/// Red when the last look before a session's end is left out, and when what is known is not held against what is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_leaves_outlives_its_session() {
    let Some(cluster) = start("native", "what_a_task_leaves_outlives_its_session", &[]).await else { return };
    outlive(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_leaves_outlives_its_session_in_docker() {
    let test = "what_a_task_leaves_outlives_its_session_in_docker";
    let Some(cluster) = start("docker", test, &[]).await else { return };
    outlive(cluster).await;
}

/// Links, pipes, giants, odd names, and too many. Red when the agent follows links in the path (`no_links`): then files of
/// /etc are kept; or when a file's size is not looked at before it is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_task_arranges_is_bounded_and_told() {
    let env = [("BERTH_ARTIFACT_SIZE", "1M")];
    let Some(cluster) = start("native", "whatever_a_task_arranges_is_bounded_and_told", &env).await else {
        return;
    };
    shell(
        &cluster,
        "mkdir -p artifacts/dir; cd artifacts; printf x > fine; ln -s /etc/passwd link; ln -s /etc below; mkfifo pipe; \
         truncate -s 300M giant; truncate -s 1M sparse; printf x > \"$(printf 'bad\\377')\"; chmod 0 dir; \
         printf x > \"$(printf 'new\\nline\\033[2J')\"; printf x > secret; chmod 0 secret; printf x > -o",
    )
    .await;
    let told = listed(&cluster, "box").await;
    let mut kept: Vec<String> = names(&told).into_iter().map(|(name, _)| name).collect();
    kept.sort();
    assert_eq!(kept, ["-o", "fine", "new\nline\u{1b}[2J", "sparse"], "{told}");
    for (name, reason) in [
        ("link", "symbolic link"),
        ("below", "symbolic link"),
        ("pipe", "no regular file"),
        ("giant", "more than 1048576 bytes"),
        ("bad\u{fffd}", "not UTF-8"),
        ("secret", "can't be read"),
    ] {
        assert!(why(&told, name).contains(reason), "{name}: {told}");
    }
    assert_eq!(told["not_kept"].as_array().unwrap().len(), 6, "{told}");
    let shown = cluster.berth(&["artifact", "list", "box"]).await;
    assert!(shown.stderr.contains("not kept: giant (300") && shown.code == Some(0), "{shown:?}");
    assert!(!format!("{}{}", shown.stdout, shown.stderr).contains('\u{1b}'), "{shown:?}");
    // Its own name is no word of ours, nor one to be written under.
    let odd = id_of(&told, "new\nline\u{1b}[2J");
    let refused = cluster.berth(&["artifact", "get", &odd]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("strange name"), "{refused:?}");
    assert_eq!(content(&cluster, &odd).await, "x");

    // The directory itself leads elsewhere.
    shell(&cluster, "mv artifacts real; ln -s /etc artifacts").await;
    let led = listed(&cluster, "box").await;
    assert_eq!(names(&led).len(), 4, "nothing of /etc: {led}");
    assert!(why(&led, "/workspace/artifacts").contains("no directory"), "{led}");
    // And so does one in it, now and then.
    shell(&cluster, "rm artifacts; mkdir -p artifacts/x other; printf mine > artifacts/x/passwd").await;
    let swap = "while :; do mv artifacts/x other/x && touch other/x/passwd && ln -s /etc artifacts/x; rm artifacts/x && mv other/x artifacts/x; done";
    let swapping = cluster.berth(&["run", "-s", "box", "-d", "--", "sh", "-c", swap]).await.ok();
    for n in 0..10 {
        shell(&cluster, &format!("printf {n} > artifacts/n")).await;
        for (name, id) in names(&listed(&cluster, "box").await) {
            assert!(!name.contains("shadow"), "{name}");
            if name == "x/passwd" {
                assert_eq!(content(&cluster, &id).await, "mine");
            }
        }
    }
    end(&cluster, &swapping).await;

    // Thousands: the first of them are looked at, and the session works on.
    shell(&cluster, "rm -rf artifacts; mkdir artifacts; cd artifacts; seq -w 3000 | xargs touch").await;
    let many = listed(&cluster, "box").await;
    let kept = names(&many).into_iter().filter(|(name, _)| name.parse::<u32>().is_ok()).count();
    assert_eq!(kept, 1000, "{}", many["not_kept"]);
    assert!(why(&many, "/workspace/artifacts").contains("first 1000 entries"), "{}", many["not_kept"]);
    assert_eq!(shell(&cluster, "echo on").await, "on\n");
    cluster.stop().await;
}

/// Red when a file that changes while it is read is kept as nobody ever had it, or its last content is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_it_is_read_is_kept_once_it_stands_still() {
    let test = "what_changes_while_it_is_read_is_kept_once_it_stands_still";
    let Some(cluster) = start("native", test, &[]).await else { return };
    // Each state of it says how long it is: nothing else is a state.
    let grow = "mkdir -p artifacts; while :; do head -c 100000 /dev/zero >> artifacts/log; sleep 0.01; done";
    let task = cluster.berth(&["run", "-s", "box", "-d", "--", "sh", "-c", grow]).await.ok();
    for _ in 0..3 {
        shell(&cluster, "true").await;
        let told = listed(&cluster, "box").await;
        for artifact in told["artifacts"].as_array().unwrap() {
            let id = artifact["id"].as_str().unwrap();
            assert_eq!(content(&cluster, id).await.len() as u64, artifact["size"].as_u64().unwrap());
        }
        for left_out in told["not_kept"].as_array().unwrap() {
            let why = left_out["why"].as_str().unwrap();
            assert!(
                why.contains("changed while") || why.contains("more than") || why.contains("quota"),
                "{told}"
            );
        }
    }
    end(&cluster, &task).await;
    let sum = shell(&cluster, "printf end > artifacts/log; sha256sum artifacts/log | cut -c1-64").await;
    let told = listed(&cluster, "box").await;
    assert_eq!(told["artifacts"][0]["sha256"], sum.trim(), "{told}");
    cluster.stop().await;
}

/// Red when a quota is not held (before a file is read nor where it is entered: either alone holds it), or is not told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_quota_is_not_kept_and_told() {
    let env = [("BERTH_ARTIFACT_QUOTA", "1000"), ("BERTH_ARTIFACT_COUNT", "3")];
    let Some(cluster) = start("native", "what_is_beyond_the_quota_is_not_kept_and_told", &env).await else {
        return;
    };
    shell(&cluster, "mkdir artifacts; cd artifacts; head -c 600 /dev/zero > a; head -c 401 /dev/zero > b")
        .await;
    let told = listed(&cluster, "box").await;
    let words = "the quota is reached: 1 artifacts with 600 bytes are kept, of at most 3 with 1000 bytes";
    assert_eq!((names(&told).len(), why(&told, "b").as_str()), (1, words), "{told}");
    let shown = cluster.berth(&["artifact", "list", "box"]).await;
    assert!(shown.stderr.contains(&format!("warning: not kept: b (401B): {words}")), "{shown:?}");
    // What is removed makes room, and is not kept again itself.
    cluster.berth(&["artifact", "remove", &id_of(&told, "a")]).await.ok();
    shell(&cluster, "true").await;
    let told = listed(&cluster, "box").await;
    assert_eq!(names(&told).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["b"], "{told}");
    assert_eq!(told["not_kept"], Value::Array(Vec::new()));
    // So many and no more, however small.
    shell(&cluster, "cd artifacts; touch c d e").await;
    let told = listed(&cluster, "box").await;
    assert_eq!(names(&told).len(), 3, "{told}");
    assert!(why(&told, "e").contains("3 artifacts with 401 bytes"), "{told}");
    cluster.stop().await;
}

/// Red when nobody looks at the time (the catalog when it tells, nor the sweep), or a file whose artifact is gone looks new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_is_gone_when_its_time_is_over() {
    let env = [("BERTH_ARTIFACT_KEEP", "2s")];
    let Some(cluster) = start("native", "an_artifact_is_gone_when_its_time_is_over", &env).await else {
        return;
    };
    shell(&cluster, "mkdir artifacts; printf x > artifacts/a").await;
    listed(&cluster, "box").await;
    let kept = || cluster.coordinator.log().matches("artifact kept").count();
    until(READY, "it to be kept", async || (kept() == 1).then_some(())).await;
    until(READY, "it to be over", async || names(&listed(&cluster, "box").await).is_empty().then_some(()))
        .await;
    shell(&cluster, "true").await;
    let told = listed(&cluster, "box").await;
    assert_eq!((names(&told).len(), kept()), (0, 1), "{told}");
    cluster.stop().await;
    let off = [("BERTH_ARTIFACT_QUOTA", "0")];
    let Some(cluster) = start("native", "an_artifact_is_gone_when_its_time_is_over", &off).await else {
        return;
    };
    shell(&cluster, "mkdir artifacts; printf x > artifacts/a").await;
    let told = listed(&cluster, "box").await;
    assert!(
        names(&told).is_empty() && why(&told, "/workspace/artifacts").contains("BERTH_ARTIFACT_QUOTA"),
        "{told}"
    );
    cluster.stop().await;
}

/// Red when a look-up does not ask whose it is, or the quota is everybody's together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tenant_has_its_own() {
    if skip::without_root("e2e artifacts each_tenant_has_its_own") {
        return;
    }
    let mut setup = Setup::new("native");
    setup.coordinator_env.push(("BERTH_ARTIFACT_COUNT".into(), "1".into()));
    let cluster = Cluster::start(setup).await;
    let berth = async |token: &str, args: &[&str]| -> Finished {
        let env = [("BERTH_ADDRESS", cluster.address.as_str()), ("BERTH_TOKEN", token)];
        process::run("berth", args, &env.map(|(name, value)| (name.into(), value.into())), b"").await
    };
    let mut ids = Vec::new();
    let mut tokens = Vec::new();
    for tenant in ["a", "b"] {
        let token = cluster.berth(&["token", "create", "--tenant", tenant]).await.ok().trim().to_owned();
        let session = berth(&token, &["create", "--name", "box"]).await.ok().trim().to_owned();
        let script = format!("mkdir artifacts; printf {tenant} > artifacts/mine");
        berth(&token, &["run", "-s", "box", "--", "sh", "-c", &script]).await.ok();
        let id = until(READY, "it to be kept", async || {
            let id = berth(&token, &["artifact", "list", "box", "-q"]).await.ok().trim().to_owned();
            (!id.is_empty()).then_some(id)
        })
        .await;
        ids.push((session, id));
        tokens.push(token);
    }
    let (session, id) = &ids[0];
    assert_eq!(berth(&tokens[0], &["artifact", "get", id, "-o", "-"]).await.ok(), "a");
    assert_eq!(berth(&tokens[1], &["artifact", "list", session, "-q"]).await.ok(), "");
    assert_eq!(berth(&tokens[1], &["artifact", "list", "-q"]).await.ok().trim(), ids[1].1);
    let refused = berth(&tokens[1], &["artifact", "get", id, "-o", "-"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains(&format!("no artifact {id}")), "{refused:?}");
    berth(&tokens[1], &["artifact", "remove", id]).await.ok();
    assert_eq!(berth(&tokens[0], &["artifact", "list", "-q"]).await.ok().trim(), id, "it is there still");
    let all = cluster.berth(&["artifact", "list"]).await.ok();
    assert!(all.contains("TENANT") && all.lines().count() == 3, "{all}");
    cluster.stop().await;
}

/// A worker that is killed while a file comes from it. Red when an artifact is entered before all of it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_halfway_leaves_nothing_half_there() {
    let test = "a_worker_that_is_killed_halfway_leaves_nothing_half_there";
    let Some(mut cluster) = start("native", test, &[]).await else { return };
    let script = "mkdir artifacts; for n in 1 2 3; do head -c 30000000 /dev/urandom > artifacts/$n; done; \
                  sha256sum artifacts/* | cut -c1-64";
    let sums = shell(&cluster, script).await;
    cluster.workers[0].process.kill().await;
    let text = cluster.berth(&["artifact", "list", "--format", "json"]).await.ok();
    let there: Value = serde_json::from_str(&text).expect("JSON");
    let known: Vec<&str> = sums.lines().collect();
    for artifact in there["artifacts"].as_array().unwrap() {
        assert!(known.contains(&artifact["sha256"].as_str().unwrap()), "{artifact}");
    }
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    let all = until(READY, "all of them to be kept", async || {
        let told = listed(&cluster, "box").await;
        (names(&told).len() >= 3).then_some(told)
    })
    .await;
    let mut found: Vec<&str> =
        all["artifacts"].as_array().unwrap().iter().map(|a| a["sha256"].as_str().unwrap()).collect();
    found.sort_unstable();
    let mut expected = known.clone();
    expected.sort_unstable();
    assert_eq!(found, expected, "each once");
    for (_, id) in names(&all) {
        let file = cluster.dir.path().join("got");
        cluster.berth(&["artifact", "get", &id, "-o", file.to_str().unwrap()]).await.ok();
    }
    cluster.stop().await;
}

/// Red when the end of code is not heard, when a listing does not wait for what it left, or when code that no client waits for
/// any more is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_code_in_a_context_leaves_is_kept() {
    let Some(cluster) = start("native", "what_code_in_a_context_leaves_is_kept", &[]).await else { return };
    let id = cluster.berth(&["ps", "-q"]).await.ok().trim().to_owned();
    let session = client(&cluster).await.session(id.parse().expect("an id"));
    let context =
        session.interpreter().create(ContextOptions::new().kernel(Kernel::Builtin)).await.expect("a context");
    let write = |name: &str| {
        format!(
            "import os; os.makedirs('artifacts', exist_ok=True); open('artifacts/{name}', 'w').write('{name}')"
        )
    };
    context.execute(write("asked").as_str()).await.expect("it runs");
    let told = listed(&cluster, "box").await;
    assert_eq!(content(&cluster, &id_of(&told, "asked")).await, "asked");
    // Nobody asks: its end is enough.
    context.execute(write("heard").as_str()).await.expect("it runs");
    let kept = || cluster.coordinator.log().matches("artifact kept").count();
    until(READY, "it to be kept", async || (kept() == 2).then_some(())).await;
    // Nobody waits for it.
    let waits =
        "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\n";
    let code = format!("{waits}{}\nopen('done', 'w').close()", write("unheard"));
    let stream = context.stream(code.as_str()).await.expect("it runs");
    let root = workspace(&cluster, 0, &id);
    until(READY, "the code to run", async || root.join("begun").exists().then_some(())).await;
    drop(stream);
    std::fs::write(root.join("go"), "").expect("the workspace is there");
    until(READY, "the code to end", async || root.join("done").exists().then_some(())).await;
    until(READY, "what it left", async || {
        let told = listed(&cluster, "box").await;
        names(&told).iter().any(|(name, _)| name == "unheard").then_some(())
    })
    .await;
    let told = listed(&cluster, "box").await;
    assert!(
        told["artifacts"].as_array().unwrap().iter().all(|artifact| artifact["task"].is_null()),
        "{told}"
    );
    assert_eq!(names(&told).len(), 3, "{told}");
    cluster.stop().await;
}
