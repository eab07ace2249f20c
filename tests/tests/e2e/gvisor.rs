//! Docker sandboxes under gVisor (`runsc`), by a runtime of the engine's. The engine is one of the test's own, as in
//! [`crate::engine`]: the machine's, and its configuration, are not touched.
//!
//! The program is `runsc` of the PATH, or what BERTH_TEST_RUNSC names.

use std::{path::PathBuf, process::Command};

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{Cluster, READY, Setup, process, skip, until};
use serde_json::json;

use crate::{
    engine::Engine,
    recovery::{outcome, start},
    util::{run, state},
};

/// The oldest that was seen to work, by the date in its version. (Debian 12's, 20221219, refuses the agent calls that it
/// can't do without.)
const OLDEST: &str = "20240729";

/// The program, or why there is none.
fn runsc() -> Result<PathBuf, String> {
    let named = std::env::var("BERTH_TEST_RUNSC").unwrap_or_else(|_| "runsc".to_owned());
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", &named]).output().expect("sh");
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    if path.is_empty() {
        return Err(format!("{named} is not installed"));
    }
    let told = Command::new(&path).arg("--version").output().map_err(|error| format!("{path}: {error}"))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let date = told.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 8);
    match date {
        Some(date) if date < OLDEST => Err(format!("{path} is of {date}, older than {OLDEST}")),
        _ => Ok(PathBuf::from(path)),
    }
}

fn env(set: &[(&str, &str)]) -> Vec<(String, String)> {
    set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What a worker says that is told to use this runtime of this engine (`None`: the machine's), and `berth doctor`. Both
/// have to fail.
async fn refused(runtime: &str, engine: Option<&Engine>) -> [String; 2] {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (state, own) = (at("w"), at("d"));
    let mut set = vec![("BERTH_SANDBOX", "docker"), ("BERTH_DOCKER_RUNTIME", runtime)];
    let host = engine.map(|engine| format!("unix://{}", engine.socket().display()));
    if let Some(host) = &host {
        set.push(("DOCKER_HOST", host));
    }
    let worker = env(&[&set[..], &[("BERTH_STATE_DIR", &state), ("BERTH_JOIN_TOKEN", "berth_x")]].concat());
    let worker = process::run("worker", &[], &worker, b"").await;
    let doctor = env(&[&set[..], &[("BERTH_STATE_DIR", &own)]].concat());
    let doctor = process::run("berth", &["doctor"], &doctor, b"").await;
    for seen in [&worker, &doctor] {
        assert_ne!(seen.code, Some(0), "{} {}", seen.stdout, seen.stderr);
    }
    [worker, doctor].map(|seen| format!("{}{}", seen.stdout, seen.stderr))
}

/// Red when the preflight does not ask the engine for its runtimes: the worker starts, and its first session fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_the_engine_does_not_have_is_said_at_start() {
    if skip::without_docker("e2e a_runtime_that_the_engine_does_not_have_is_said_at_start") {
        return;
    }
    for said in refused("no-such", None).await {
        assert!(said.contains("no runtime no-such (BERTH_DOCKER_RUNTIME)"), "{said}");
        assert!(said.contains("it has") && said.contains("runc"), "it names what there is: {said}");
        assert!(said.contains("daemon.json"), "and what to do: {said}");
    }
}

/// Red when the arguments of the runtime are not looked at. It needs no runsc: nothing is started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runsc_that_keeps_sockets_in_is_said_at_start() {
    const NAME: &str = "e2e a_runsc_that_keeps_sockets_in_is_said_at_start";
    if skip::without_root(NAME) || skip::without_docker(NAME) {
        return;
    }
    let runtimes = json!({
        "bare": { "path": "/usr/bin/runsc" },
        "open": { "path": "/usr/bin/runsc", "runtimeArgs": ["--host-uds=create", "--host-uds=open"] },
    });
    let engine = match Engine::with(runtimes).await {
        Ok(engine) => engine,
        Err(why) => return skip::note(NAME, &why),
    };
    for runtime in ["bare", "open"] {
        for said in refused(runtime, Some(&engine)).await {
            assert!(said.contains(&format!("the runtime {runtime} lets no socket out")), "{said}");
            assert!(said.contains("--host-uds=create"), "{said}");
        }
    }
    engine.stop().await;
}

/// The whole life of a session in a sandbox whose kernel is gVisor's. Red when the runtime is not passed on to the engine
/// (the kernel is the host's), when the agent has no `openat2` of its own (no task starts), and when its file threads know
/// only setfsuid (no file call is answered).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_run_on_a_kernel_of_their_own() {
    const NAME: &str = "e2e tasks_run_on_a_kernel_of_their_own";
    if skip::without_root(NAME) || skip::without_docker(NAME) {
        return;
    }
    let program = match runsc() {
        Ok(program) => program,
        Err(why) => return skip::note(NAME, &why),
    };
    let runtimes =
        json!({ "runsc": { "path": program, "runtimeArgs": ["--network=none", "--host-uds=create"] } });
    let engine = match Engine::with(runtimes).await {
        Ok(engine) => engine,
        Err(why) => return skip::note(NAME, &why),
    };
    let host = format!("unix://{}", engine.socket().display());
    let hello = ["-H", &host, "run", "--rm", "--network=none", "--runtime=runsc", "--entrypoint=/bin/true"];
    let works = Command::new("timeout")
        .args(["-k", "1", "60", "docker"])
        .args(hello)
        .arg("berth/sandbox:base")
        .output()
        .expect("timeout");
    if !works.status.success() {
        let why = String::from_utf8_lossy(&works.stderr).lines().last().unwrap_or("no answer").to_owned();
        engine.stop().await;
        return skip::note(NAME, &format!("runsc starts no container here: {why}"));
    }
    let mut setup = Setup::new("docker");
    setup.worker_env = env(&[("DOCKER_HOST", &host), ("BERTH_DOCKER_RUNTIME", "runsc")]);
    let mut cluster = Cluster::start(setup).await;
    lives(&mut cluster).await;
    cluster.stop().await;
    engine.stop().await;
}

async fn lives(cluster: &mut Cluster) {
    let session = cluster.session().await.id;
    let (kernel, _) = run(cluster, &session, "cat /proc/version").await;
    let hosts = std::fs::read_to_string("/proc/version").expect("the host's");
    assert_ne!(kernel.trim(), hosts.trim(), "it is the host's kernel");
    // Who a task is, and what it may.
    let (who, kind) =
        run(cluster, &session, "id -u; grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status").await;
    assert_eq!(kind, Kind::Exited(0));
    assert!(!who.starts_with("0\n"), "{who}");
    assert!(
        who.lines().filter(|line| line.starts_with("Cap")).all(|line| line.ends_with(&"0".repeat(16))),
        "{who}"
    );
    // Of the agent's own there is nothing to be seen.
    let (seen, _) = run(cluster, &session, "ls /.berth 2>&1; kill -9 1 2>&1; kill -9 2 2>&1").await;
    assert!(seen.to_lowercase().contains("ermission denied") && !seen.contains("agent.sock"), "{seen}");

    // What it says, what it is given, how it ends.
    assert_eq!(run(cluster, &session, "echo out; exit 3").await, ("out".to_owned(), Kind::Exited(3)));
    let task = start(cluster, &session, "sleep 1000 & sleep 1000").await;
    let cancel =
        v1::CancelTaskRequest { session_id: session.clone(), task_id: task.id.clone(), ..Default::default() };
    cluster.tasks().cancel_task(cancel).await.expect("it is cancelled");
    until(READY, "its end", async || outcome(cluster, &task).await).await;
    let (left, _) = run(cluster, &session, "grep -lx sleep /proc/[0-9]*/comm 2>/dev/null | wc -l").await;
    assert_eq!(left.trim(), "0", "what a task started ends with it");

    // Files both ways, as the task's user, and never through a magic link.
    let dir = tempfile::tempdir().expect("a directory");
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let content: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&there, &content).expect("a file");
    let (from, to) = (there.to_str().expect("UTF-8"), format!("{session}:data"));
    cluster.berth(&["cp", from, &to]).await.ok();
    let (sum, _) = run(
        cluster,
        &session,
        "stat -c '%s %u' data; id -u; ln -s data link; ln -s /proc/self/root/etc magic",
    )
    .await;
    let mut lines = sum.lines();
    let (stat, uid) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    assert_eq!(stat, format!("12000000 {uid}"), "it is the task's");
    cluster.berth(&["cp", &format!("{session}:link"), back.to_str().expect("UTF-8")]).await.ok();
    assert!(std::fs::read(&back).expect("it is there") == content);
    for path in ["magic/passwd", "/proc/1/environ", "/.berth/run/agent.sock"] {
        let refused =
            cluster.berth(&["cp", &format!("{session}:{path}"), back.to_str().expect("UTF-8")]).await;
        assert_ne!(refused.code, Some(0), "{path}");
    }

    // It outlives the worker.
    let task = start(cluster, &session, "while [ ! -e go ]; do sleep 0.05; done; exit 7").await;
    cluster.workers[0].process.kill().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "it to be taken up", async || {
        crate::util::try_run(cluster, &session, "touch go").await.ok()
    })
    .await;
    assert_eq!(until(READY, "its end", async || outcome(cluster, &task).await).await, Kind::Exited(7));
    // And goes with its files to another sandbox.
    let fork = cluster.berth(&["fork", &session]).await.ok().trim().to_owned();
    assert_eq!(run(cluster, &fork, "cat link | wc -c").await.0.trim(), "12000000");
    assert_eq!(state(cluster, &session).await.state(), v1::SessionState::Ready);
}
