//! What the command line says, to people and to programs: errors, what was lost, what is
//! not as it was. `commands.rs` has what it does.

use std::{process::Stdio, time::Duration};

use berth_client::{Client, ConnectOptions, ListOptions, model::TaskState};
use berth_tests::{Cluster, READY, Setup, process, skip, until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The one error that a command left on stderr as JSON.
fn error(seen: &process::Finished) -> Value {
    let lines: Vec<&str> = seen.stderr.lines().collect();
    let [line] = lines[..] else { panic!("not one line: {seen:?}") };
    let error = json(line);
    let fields: Vec<&String> = error.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["code", "hint", "message", "reason", "request_id"], "{error}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_json_where_json_is_asked_for() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let seen = cluster.berth(&["tasks", "nobody", "--format", "json"]).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(1), ""));
    let told = error(&seen);
    assert_eq!((&told["code"], &told["reason"]), (&"NOT_FOUND".into(), &"SESSION_NOT_FOUND".into()));
    assert!(told["hint"].as_str().unwrap().contains("berth ps"), "{told}");
    // What the coordinator refuses.
    let told = error(&cluster.berth(&["workers", "nobody", "--format=json"]).await);
    assert_eq!((&told["code"], &told["reason"]), (&"NOT_FOUND".into(), &"WORKER_NOT_FOUND".into()));
    // What the command line itself refuses.
    let seen = cluster.berth(&["--format", "json", "run", "--sesion", "box", "ls"]).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(2), ""));
    let told = error(&seen);
    assert_eq!(told["code"], "INVALID_ARGUMENT");
    assert!(told["message"].as_str().unwrap().contains("--sesion"), "{told}");
    assert!(told["hint"].as_str().unwrap().contains("--session"), "{told}");
    // As text it is as it was.
    let seen = cluster.berth(&["tasks", "nobody"]).await;
    assert!(seen.stderr.starts_with("error: no session fits"), "{}", seen.stderr);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_option_starts_nothing() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let seen = cluster.berth(&["run", "--sesion", "box", "ls"]).await;
    assert_eq!(seen.code, Some(2), "{seen:?}");
    assert!(seen.stderr.contains("--session"), "{}", seen.stderr);
    let seen = cluster.berth(&["update", "box"]).await;
    assert_eq!(seen.code, Some(2), "{seen:?}");
    assert_eq!(cluster.berth(&["ps", "--all", "-q"]).await.ok(), "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_given_once() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let seen = cluster.berth(&["create", "--name", "box"]).await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert!(seen.stderr.contains("box") && seen.stderr.contains("hint:"), "{}", seen.stderr);
    let told = error(&cluster.berth(&["create", "--name", "box", "--format", "json"]).await);
    assert_eq!((&told["code"], &told["reason"]), (&"ALREADY_EXISTS".into(), &"NAME_TAKEN".into()));
    assert_eq!(cluster.berth(&["ps", "-q"]).await.ok().lines().count(), 1);
    cluster.berth(&["rm", "box"]).await.ok();
    cluster.berth(&["create", "--name", "box"]).await.ok();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_made_with_defaults_for_its_tasks() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let args =
        ["create", "--task-timeout", "30m", "--max-tasks", "4", "--pty-size", "100x30", "--format", "json"];
    let made = json(&cluster.berth(&args).await.ok());
    let expected =
        serde_json::json!({"timeout": 1800.0, "max_concurrent": 4, "pty_cols": 100, "pty_rows": 30});
    assert_eq!(made["task_defaults"], expected);
    let none = json(&cluster.berth(&["create", "--task-timeout", "0", "--format", "json"]).await.ok());
    assert_eq!(none["task_defaults"]["timeout"], Value::Null);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_a_silent_worker_is_not_just_ready() {
    let lease = ("BERTH_LEASE".to_owned(), "1s".to_owned());
    let cluster = Cluster::start(Setup { coordinator_env: vec![lease], ..Setup::new("fake") }).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    assert!(!cluster.berth(&["ps"]).await.ok().contains("(worker"));
    let shows = async |mark: &str| {
        until(READY, mark, async || cluster.berth(&["ps"]).await.ok().contains(mark).then_some(())).await;
    };
    cluster.workers[0].process.signal(Signal::SIGSTOP);
    shows("ready (worker lost)").await;
    let listed = json(&cluster.berth(&["ps", "--format", "json"]).await.ok());
    assert_eq!((&listed[0]["state"], &listed[0]["worker_liveness"]), (&"ready".into(), &"dead".into()));
    cluster.workers[0].process.signal(Signal::SIGCONT);
    until(READY, "the worker to be back", async || {
        (!cluster.berth(&["ps"]).await.ok().contains("(worker")).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_too_slow_is_told_what_it_lost() {
    if skip::without_root("e2e a_reader_that_is_too_slow_is_told_what_it_lost") {
        return;
    }
    const WRITTEN: usize = 96 << 20;
    let cluster = Cluster::start(Setup::new("native")).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let line = format!("head -c {WRITTEN} /dev/zero");
    let args = ["run", "--session", "box", "--keep-output", "64K", "--shell", "--", &line];
    let mut child = tokio::process::Command::new(process::binary("berth"))
        .args(args)
        .env("BERTH_ADDRESS", &cluster.address)
        .env("BERTH_TOKEN", &cluster.admin_token)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    // Nobody reads, and yet the task ends: it waits for no one.
    let options = ConnectOptions::new(cluster.address.clone()).token(cluster.admin_token.clone());
    let client = Client::connect(options).await.unwrap();
    let session = client.session(client.sessions(ListOptions::new()).await.unwrap()[0].id);
    let done = async || {
        let tasks = session.tasks().await.ok()?;
        (tasks.first()?.state == TaskState::Done).then_some(())
    };
    until(READY, "the task to end although nobody reads", done).await;
    assert!(child.try_wait().unwrap().is_none(), "the command still has output to pass on");
    let output = tokio::time::timeout(READY, child.wait_with_output()).await.expect("it ends").unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    let told = format!("{} bytes of stdout were dropped", WRITTEN - output.stdout.len());
    assert_eq!(stderr.matches(&told).count(), 1, "{} came; {stderr}", output.stdout.len());
    // What is no longer there later is told later, too; and nothing is where nothing was lost.
    let seen = cluster.berth(&["logs", "box"]).await;
    assert_eq!(seen.code, Some(0));
    assert!(seen.stderr.contains("bytes of stdout were dropped"), "{}", seen.stderr);
    let seen = cluster.berth(&["run", "--session", "box", "--", "echo", "short"]).await;
    assert_eq!((seen.code, seen.stderr.as_str()), (Some(0), ""));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_help_and_no_error_shows_a_token() {
    let env = [
        ("BERTH_TOKEN".to_owned(), "berth_s3cret".to_owned()),
        ("BERTH_JOIN_TOKEN".into(), "berth_s3cret".into()),
        ("BERTH_ADDRESS".into(), "127.0.0.1:1".into()),
    ];
    let commands: [(&str, &[&str]); 8] = [
        ("berth", &["--help"]),
        ("berth", &["run", "--help"]),
        ("berth", &["run"]),
        ("berth", &["update", "box"]),
        ("berth", &["ps"]),
        ("worker", &["--help"]),
        ("worker", &["--nope"]),
        ("worker", &["--print-config"]),
    ];
    for (program, args) in commands {
        let seen = process::run(program, args, &env, b"").await;
        assert!(!format!("{seen:?}").contains("s3cret"), "{program} {args:?}: {seen:?}");
    }
    // The usage line is about what is typed, not about what the environment has.
    let seen = process::run("berth", &["run"], &env, b"").await;
    let usage = seen.stderr.lines().find(|line| line.starts_with("Usage:")).unwrap_or_default();
    assert!(!usage.contains("--token") && !usage.contains("--address"), "{usage}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yes_is_yes_in_every_spelling() {
    for (value, expected) in [("1", "1"), ("true", "true"), ("0", "0"), ("false", "false")] {
        let env = [("BERTH_INSECURE_LISTEN".to_owned(), value.to_owned())];
        let shown = process::run("coordinator", &["--print-config"], &env, b"").await.ok();
        let line = shown.lines().find(|line| line.starts_with("BERTH_INSECURE_LISTEN")).unwrap_or_default();
        assert!(line.contains(expected) && line.contains("environment"), "{line}");
    }
    let env = [("BERTH_INSECURE_LISTEN".to_owned(), "perhaps".to_owned())];
    assert_eq!(process::run("coordinator", &["--print-config"], &env, b"").await.code, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_says_all_that_it_sees() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let env = |agent: String| {
        [
            ("BERTH_STATE_DIR".to_owned(), text(&state)),
            ("BERTH_AGENT".into(), agent),
            ("GRPC_PORT".into(), "0".into()),
        ]
    };
    let good = env(text(&process::binary("berth-agent")));
    let doctor = ["doctor", "--sandbox", "fake"];
    let seen = process::run("berth", &doctor, &good, b"").await;
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(seen.stdout.contains("state directory") && seen.stdout.contains("agent"), "{}", seen.stdout);
    assert!(!state.exists(), "nothing is made");
    let seen = process::run("berth", &[&doctor[..], &["--format", "json"]].concat(), &good, b"").await;
    let findings = json(&seen.ok());
    let findings = findings.as_array().expect("a list");
    for finding in findings {
        let verdict = finding["verdict"].as_str().unwrap_or_default();
        assert!(["ok", "note", "unknown"].contains(&verdict), "{finding}");
        assert!(finding["what"].is_string() && finding["text"].is_string(), "{finding}");
    }
    assert!(findings.iter().any(|finding| finding["what"] == "agent" && finding["verdict"] == "ok"));
    // What is missing is a problem with a hint, and an exit code.
    let bad = env("/nowhere/berth-agent".to_owned());
    let seen = process::run("berth", &[&doctor[..], &["--format", "json"]].concat(), &bad, b"").await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    let findings = json(&seen.stdout);
    let agent = findings.as_array().unwrap().iter().find(|finding| finding["what"] == "agent").unwrap();
    assert_eq!(agent["verdict"], "problem");
    assert!(agent["hint"].as_str().is_some_and(|hint| hint.contains("BERTH_AGENT")), "{agent}");
}

/// What is weaker of a fleet's workers is told to whoever asks from elsewhere, and is no problem.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_tells_what_of_the_workers_is_weaker() {
    if skip::without_root("e2e doctor_tells_what_of_the_workers_is_weaker") {
        return;
    }
    let worker_env = vec![("BERTH_WORKSPACE".to_owned(), "directory".to_owned())];
    let cluster = Cluster::start(Setup { workers: 2, worker_env, ..Setup::new("native") }).await;
    let findings = json(&cluster.berth(&["doctor", "--format", "json"]).await.stdout);
    let of_workers: Vec<&Value> =
        findings.as_array().unwrap().iter().filter(|finding| finding["what"] == "workers").collect();
    let limits: Vec<&&Value> = of_workers
        .iter()
        .filter(|finding| finding["text"].as_str().unwrap().contains("disk limits are not held"))
        .collect();
    let [limits] = limits[..] else { panic!("once: {findings}") };
    assert!(limits["text"].as_str().unwrap().starts_with("worker-1, worker-2: weaker: disk"), "{limits}");
    assert!(limits["verdict"] == "note" && limits["hint"].is_string(), "{limits}");
    cluster.stop().await;
}

/// Red without the line in the docker backend's preflight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_warns_of_an_engine_whose_restart_ends_its_sandboxes() {
    if skip::without_docker("e2e doctor_warns_of_an_engine") {
        return;
    }
    let engine = tokio::process::Command::new("docker")
        .args(["info", "--format", "{{.LiveRestoreEnabled}}"])
        .output()
        .await
        .expect("the engine's own word");
    let live_restore = String::from_utf8_lossy(&engine.stdout).trim() == "true";
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("BERTH_STATE_DIR".to_owned(), dir.path().to_str().unwrap().to_owned()),
        ("BERTH_AGENT".into(), process::binary("berth-agent").to_str().unwrap().to_owned()),
        ("GRPC_PORT".into(), "0".into()),
    ];
    let seen = process::run("berth", &["doctor", "--sandbox", "docker", "--format", "json"], &env, b"").await;
    let findings = json(&seen.ok());
    let warned = |finding: &&Value| {
        finding["verdict"] == "note"
            && finding["text"].as_str().is_some_and(|text| text.contains("live-restore"))
    };
    assert_eq!(
        findings.as_array().unwrap().iter().filter(warned).count(),
        usize::from(!live_restore),
        "{findings}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_told_when_it_is_in_force() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    assert_eq!(cluster.berth(&["backend", "worker-1", "fake"]).await.ok(), "worker-1 fake\n");
    let shown = json(&cluster.berth(&["backend", "worker-1", "fake", "--format", "json"]).await.ok());
    assert_eq!(shown["id"], "worker-1");
    tokio::time::timeout(Duration::from_secs(60), cluster.stop()).await.expect("it stops");
}

/// Red when it changes anything unasked, leaves what it says it mends, or loses what was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_mends_what_is_ours_and_keeps_what_it_changed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let credentials = state.join("credentials");
    std::fs::create_dir_all(&credentials).unwrap();
    let token = credentials.join("admin.token");
    std::fs::write(&token, "secret\n").unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(&credentials, 0o755);
    set(&token, 0o644);
    // Of a process that can't be: nobody has pid 0.
    let stale = r#"{"pid":0,"start_time":1,"boot_id":"x","address":"127.0.0.1:1","version":"0","workers":1,"ready":true}"#;
    std::fs::write(state.join("up.json"), stale).unwrap();
    let env = [
        ("BERTH_STATE_DIR".to_owned(), state.to_str().unwrap().to_owned()),
        ("BERTH_AGENT".into(), process::binary("berth-agent").to_str().unwrap().to_owned()),
        ("GRPC_PORT".into(), "0".into()),
    ];
    let doctor = ["doctor", "--sandbox", "fake"];
    let seen = process::run("berth", &doctor, &env, b"").await;
    assert_eq!(seen.code, Some(1), "others may read a token: {seen:?}");
    assert!(seen.stdout.contains("--fix") && seen.stdout.contains("which is gone"), "{}", seen.stdout);
    assert!(mode(&token) == 0o644 && state.join("up.json").exists() && !state.join("doctor").exists());

    let fix = [&doctor[..], &["--fix", "--format", "json"]].concat();
    let mended = json(&process::run("berth", &fix, &env, b"").await.ok());
    let fixed = mended.as_array().unwrap().iter().filter(|finding| finding["fixed"] == true).count();
    assert_eq!(fixed, 3, "{mended:#}");
    assert_eq!((mode(&token), mode(&credentials)), (0o600, 0o700));
    let kept = std::fs::read_dir(state.join("doctor")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read_to_string(kept.join("up.json")).unwrap(), stale);
    let changes = std::fs::read_to_string(kept.join("changes")).unwrap();
    assert!(changes.contains(&format!("chmod 644 {}", token.display())), "{changes}");
    assert!(changes.contains(&format!("chmod 755 {}", credentials.display())), "{changes}");
    assert_eq!((mode(&kept), mode(&kept.join("changes"))), (0o700, 0o600));

    // There is nothing left to mend.
    let seen = process::run("berth", &fix, &env, b"").await.ok();
    assert!(!seen.contains("\"fixed\": true"), "{seen}");
    assert_eq!(std::fs::read_dir(state.join("doctor")).unwrap().count(), 1);

    // Two of them at once are in nobody's way, and what there was is kept once.
    set(&token, 0o644);
    std::fs::write(state.join("up.json"), stale).unwrap();
    let both = tokio::join!(process::run("berth", &fix, &env, b""), process::run("berth", &fix, &env, b""),);
    for one in [both.0, both.1] {
        assert!(!one.ok().contains("\"problem\""));
    }
    assert!(mode(&token) == 0o600 && !state.join("up.json").exists());
    let kept =
        std::fs::read_dir(state.join("doctor")).unwrap().map(|dir| dir.unwrap().path().join("up.json"));
    let kept: Vec<_> = kept.filter(|record| record.exists()).collect();
    assert!(kept.len() == 2 && kept.iter().all(|record| std::fs::read_to_string(record).unwrap() == stale));
}

/// Red when a sandbox of a session that is gone stays, or one of a session that is there goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_removes_sandboxes_that_no_worker_would_take_up() {
    let test = "e2e doctor_removes_sandboxes_that_no_worker_would_take_up";
    for backend in ["native", "docker"] {
        if skip::without(backend, test) {
            continue;
        }
        let elsewhere = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
        let mut setup = Setup::new(backend);
        setup.worker_env.push(("BERTH_ON_STOP".into(), "keep".into()));
        // Not where anybody would look who does not ask.
        let base = elsewhere.path().to_str().unwrap().to_owned();
        setup.worker_env.push(("BASE_WORKSPACE".into(), base));
        let mut cluster = Cluster::start(setup).await;
        let [gone, stays] = ["gone", "stays"].map(|name| ["create", "--name", name]);
        let gone = cluster.berth(&gone).await.ok().trim().to_owned();
        let stays = cluster.berth(&stays).await.ok().trim().to_owned();
        let state = cluster.workers[0].state.clone();
        let env = [
            ("BERTH_STATE_DIR".to_owned(), state.to_str().unwrap().to_owned()),
            ("BERTH_AGENT".into(), process::binary("berth-agent").to_str().unwrap().to_owned()),
            ("GRPC_PORT".into(), "0".into()),
        ];
        let doctor = ["doctor", "--fix", "--format", "json"];
        let left = |findings: &str| {
            let all = json(findings);
            let all =
                all.as_array().unwrap().iter().filter(|finding| finding["what"] == "leftover sandboxes");
            all.cloned().collect::<Vec<_>>()
        };
        // A worker that runs looks after its own.
        let seen = process::run("berth", &doctor, &env, b"").await;
        assert!(left(&seen.stdout).is_empty(), "{seen:?}");
        cluster.workers[0].process.terminate().await;
        let (record, aside) = (elsewhere.path().join("sessions").join(&gone), elsewhere.path().join("aside"));
        // Looking alone removes none.
        assert!(
            left(&process::run("berth", &["doctor", "--format", "json"], &env, b"").await.stdout).is_empty()
        );
        std::fs::rename(&record, &aside).unwrap();
        let seen = process::run("berth", &doctor, &env, b"").await;
        let found = left(&seen.stdout);
        let [finding] = &found[..] else { panic!("{backend}: {found:#?}") };
        let text = finding["text"].as_str().unwrap();
        assert!(finding["fixed"] == true && text.contains(&gone) && !text.contains(&stays), "{finding:#}");
        assert!(left(&process::run("berth", &doctor, &env, b"").await.stdout).is_empty());
        std::fs::rename(&aside, &record).unwrap();
        cluster.restart_worker(0);
        cluster.workers_ready().await;
        // The one that was not meant lives on.
        cluster.berth(&["run", "-s", &stays, "--", "true"]).await.ok();
        cluster.stop().await;
    }
}
