//! `berth up -d`, `status` and `stop`: what starts in the background, what is said when it
//! does not, and what is left when it is killed.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_tests::{READY, left, process, skip, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;

/// A user's directory, with a state directory `s` in it.
struct Home {
    dir: TempDir,
    sandbox: &'static str,
}

impl Home {
    fn new(sandbox: &'static str) -> Self {
        Self { dir: tempfile::Builder::new().prefix("berth-t").tempdir().unwrap(), sandbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `berth` in this directory, with a state directory that is relative to it.
    async fn berth(&self, args: &[&str]) -> process::Finished {
        let command = tokio::process::Command::new(process::binary("berth"))
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("BERTH_STATE_DIR", "s")
            .env("BERTH_AGENT", process::binary("berth-agent"))
            .env("BERTH_SANDBOX", self.sandbox)
            .env("GRPC_PORT", "0")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(READY * 2, command).await.expect("it ends").expect("it starts");
        process::Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    async fn status(&self) -> Value {
        let seen = self.berth(&["status", "--format", "json"]).await;
        serde_json::from_str(&seen.stdout).unwrap_or_else(|error| panic!("{error} in {seen:?}"))
    }
}

impl Drop for Home {
    /// A test that failed leaves none running.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut stop = std::process::Command::new(process::binary("berth"));
            let state = self.path("s");
            let _ = stop.args(["stop", "--timeout", "20s", "--kill", "--state-dir"]).arg(&state).status();
            left::sweep(&state);
        }
    }
}

/// Red when only the first fault is told, or something was started before it was found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_would_stop_it_is_told_at_once() {
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let held = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [grpc, http, metrics] = held.each_ref().map(|port| port.local_addr().unwrap().port().to_string());
    let state = dir.path().join("s");
    let env = [
        ("BERTH_STATE_DIR", state.to_str().unwrap().to_owned()),
        ("BERTH_SANDBOX", "native".to_owned()),
        ("BERTH_AGENT", "/nowhere/berth-agent".to_owned()),
        ("GRPC_PORT", grpc.clone()),
        ("HTTP_PORT", http.clone()),
        ("BERTH_METRICS_ADDR", format!("127.0.0.1:{metrics}")),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    for detached in [&["up"][..], &["up", "-d"]] {
        let seen = process::run("berth", detached, &env, b"").await;
        assert_eq!(seen.code, Some(1), "{seen:?}");
        for port in [&grpc, &http, &metrics] {
            let said = format!("port {port} is in use by pid {}", std::process::id());
            assert!(seen.stderr.contains(&said), "{said}: {}", seen.stderr);
        }
        assert!(seen.stderr.contains("/nowhere/berth-agent"), "{}", seen.stderr);
        assert!(!state.join("up.json").exists() && !state.join("coordinator.db").exists());
    }
    let seen = process::run("berth", &["doctor", "--format", "json"], &env, b"").await;
    let findings: Value = serde_json::from_str(&seen.stdout).expect("JSON");
    for port in [&grpc, &http, &metrics] {
        let what = format!("port {port}");
        let found = findings.as_array().unwrap().iter().find(|finding| finding["what"] == what.as_str());
        let text = found.unwrap_or_else(|| panic!("{what}: {findings:#}"));
        assert!(text["verdict"] == "problem" && text["text"].as_str().unwrap().contains("held by"), "{text}");
    }
}

/// Red when a component's lines are another's, the tail is not the end, or what comes later is not told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_each_component_is_shown() {
    let home = Home::new("fake");
    let none = home.berth(&["logs"]).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    assert!(none.stderr.contains("berth up -d") && none.stderr.contains("journalctl"), "{}", none.stderr);
    home.berth(&["up", "-d"]).await.ok();
    let shown = home.berth(&["logs", "coordinator"]).await.ok();
    assert!(shown.contains("the coordinator is ready") && !shown.contains("berth_worker::"), "{shown}");
    let shown = home.berth(&["logs", "worker"]).await.ok();
    assert!(shown.contains("worker started") && !shown.contains("berth_coordinator::"), "{shown}");
    let all = home.berth(&["logs"]).await.ok();
    let last: Vec<&str> = all.lines().rev().take(2).collect();
    let tail = home.berth(&["logs", "--tail", "2"]).await.ok();
    assert_eq!(tail.lines().rev().collect::<Vec<_>>(), last);
    let lines = home.berth(&["logs", "--format", "json", "--tail", "3"]).await.ok();
    let texts: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(texts.len() == 3 && texts.iter().all(|line| line["text"].is_string()), "{lines}");
    let refused = home.berth(&["logs", "worker", "0123"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("Give its id"), "{refused:?}");

    // Followed: what happens from now on, until it is interrupted.
    let mut follow = tokio::process::Command::new(process::binary("berth"))
        .args(["logs", "-f", "--tail", "0", "worker"])
        .current_dir(home.dir.path())
        .env("BERTH_STATE_DIR", "s")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = tokio::io::BufReader::new(follow.stdout.take().expect("it is piped")).lines();
    // Twice: what comes after the first new lines is told too.
    for _ in 0..2 {
        let told = async {
            loop {
                // It may still be reading what there was.
                home.berth(&["run", "--", "true"]).await.ok();
                let next = tokio::time::timeout(Duration::from_secs(2), lines.next_line());
                if let Ok(line) = next.await {
                    return line.expect("it is text").expect("it goes on");
                }
            }
        };
        let seen = tokio::time::timeout(READY, told).await.expect("it is told");
        assert!(seen.contains("berth_worker::"), "{seen}");
    }
    let pid = Pid::from_raw(follow.id().expect("it runs").cast_signed());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(follow.wait().await.unwrap().code(), Some(130));
    home.berth(&["stop"]).await.ok();
}

/// Red when a line is lost, told twice or told in pieces as the log is turned over under whoever follows it.
#[tokio::test]
async fn a_log_that_is_turned_over_is_followed() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("berth.log");
    let open = || std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
    let line = |number: u32| format!("2026-01-01T00:00:00Z  INFO berth_worker::x: {number}\n");
    let mut file = open();
    file.write_all(line(0).as_bytes()).unwrap();
    let mut follow = tokio::process::Command::new(process::binary("berth"))
        .args(["logs", "-f", "worker"])
        .env("BERTH_STATE_DIR", dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = tokio::io::BufReader::new(follow.stdout.take().expect("it is piped")).lines();
    for number in 0..30 {
        let next = tokio::time::timeout(READY, lines.next_line()).await.expect("it is told");
        assert_eq!(next.unwrap().expect("it goes on"), line(number).trim_end());
        let next = line(number + 1);
        let (half, rest) = next.split_at(20);
        file.write_all(half.as_bytes()).unwrap();
        // Long enough for it to look at what is no line yet.
        tokio::time::sleep(Duration::from_millis(30)).await;
        file.write_all(rest.as_bytes()).unwrap();
        // As the log does it: behind a line's end.
        if number % 2 == 0 {
            std::fs::rename(&log, log.with_extension("log.1")).unwrap();
            file = open();
        }
    }
    follow.kill().await.unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relative_paths_hold_in_the_background() {
    let home = Home::new("fake");
    let template = "[[template]]\nname = \"mine\"\n";
    std::fs::write(home.path("t.toml"), template).unwrap();
    let up = home.berth(&["up", "-d", "--templates", "t.toml", "--workers", "3"]).await;
    assert_eq!(up.code, Some(0), "{up:?}");
    assert!(home.berth(&["templates"]).await.ok().contains("mine"));
    // Ready means all of them.
    let workers = home.berth(&["workers", "--format", "json"]).await.ok();
    let workers: Value = serde_json::from_str(&workers).unwrap();
    let ready = |worker: &&Value| worker["health"]["ready"] == true;
    assert_eq!(workers.as_array().unwrap().iter().filter(ready).count(), 3, "{workers}");
    // Nobody else's business.
    assert_eq!((mode(&home.path("s")), mode(&home.path("s/up.lock"))), (0o700, 0o600));
    let up_for = home.berth(&["info"]).await.ok();
    assert!(!up_for.contains("ms"), "to the second: {up_for}");
    home.berth(&["stop"]).await.ok();
    left::assert_nothing(home.dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_come_up_says_why_at_once_and_leaves_nothing() {
    let home = Home::new("fake");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    std::fs::write(home.path("bad.toml"), "[[template]]\nname = \"x\"\nmemroy = \"1G\"\n").unwrap();
    let cases: [(&[&str], &str); 3] = [
        (&["up", "-d", "--port", &port], &port),
        (&["up", "-d", "--templates", "bad.toml"], "memroy"),
        (&["up", "-d", "--templates", "no.toml"], "no.toml"),
    ];
    for (args, reason) in cases {
        let began = Instant::now();
        let seen = home.berth(args).await;
        assert_eq!((seen.code, seen.stdout.as_str()), (Some(1), ""), "{seen:?}");
        let error = seen.stderr.split("hint:").next().filter(|text| text.starts_with("error:"));
        let error = error.unwrap_or_default();
        assert!(error.contains(reason), "{args:?}: the error itself says why: {}", seen.stderr);
        assert!(seen.stderr.contains("hint:"), "{}", seen.stderr);
        assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
        assert!(!home.path("s/up.json").exists(), "no record is left");
        left::assert_nothing(home.dir.path());
    }
    let seen = home.berth(&["up", "-d", "--port", &port, "--format", "json"]).await;
    let told: Value = serde_json::from_str(seen.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {seen:?}"));
    assert!(told["message"].as_str().unwrap().contains(&port), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_one_leaves_is_told_and_taken_back() {
    if skip::without_root("e2e what_a_killed_one_leaves_is_told_and_taken_back") {
        return;
    }
    let home = Home::new("native");
    home.berth(&["up", "-d"]).await.ok();
    home.berth(&["create", "--name", "box"]).await.ok();
    home.berth(&["run", "--session", "box", "--shell", "--", "echo kept > note"]).await.ok();
    let pid = home.status().await["pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).expect("it is ours");
    until(READY, "it to be gone", async || (home.status().await["running"] == false).then_some(())).await;
    assert_eq!(home.status().await["sessions_left"], 1);
    let seen = home.berth(&["status"]).await;
    assert!(
        seen.stderr.contains("1 session ") && seen.stderr.contains("`berth up` takes"),
        "{}",
        seen.stderr
    );
    // It is as it says.
    home.berth(&["up", "-d"]).await.ok();
    assert_eq!(home.berth(&["run", "--session", "box", "--", "cat", "note"]).await.ok(), "kept\n");
    home.berth(&["stop"]).await.ok();
    assert_eq!(home.status().await["sessions_left"], 0);
    left::assert_nothing(home.dir.path());
}

/// All of its workers stop, so there is nowhere to go on: it waits in the store with what it had. Red when a stop takes
/// no checkpoint, or when a start gives up who waits for a place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_may_be_restored_is_there_again_after_a_stop() {
    if skip::without_root("e2e a_session_that_may_be_restored_is_there_again_after_a_stop") {
        return;
    }
    let home = Home::new("native");
    let up = ["up", "-d", "--workers", "2", "--shutdown-grace", "50s"];
    home.berth(&up).await.ok();
    home.berth(&["create", "--name", "box", "--on-worker-loss", "restore"]).await.ok();
    home.berth(&["create", "--name", "other"]).await.ok();
    home.berth(&["run", "--session", "box", "--shell", "--", "echo kept > note"]).await.ok();
    let began = Instant::now();
    home.berth(&["stop"]).await.ok();
    assert!(began.elapsed() < Duration::from_secs(25), "nothing ran: it took {:?}", began.elapsed());
    left::assert_nothing(home.dir.path());
    home.berth(&up).await.ok();
    let note = until(READY, "the session to be ready again", async || {
        let seen = home.berth(&["run", "--session", "box", "--", "cat", "note"]).await;
        (seen.code == Some(0)).then_some(seen.stdout)
    })
    .await;
    assert_eq!(note, "kept\n");
    assert_ne!(home.berth(&["run", "--session", "other", "--", "true"]).await.code, Some(0), "it has ended");
    home.berth(&["rm", "box"]).await.ok();
    home.berth(&["stop"]).await.ok();
    left::assert_nothing(home.dir.path());
}

/// A file system that is too small for sessions, for as long as this lives.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=8m,mode=0711", "tmpfs"];
        let mounted = std::process::Command::new("mount").args(options).arg(&path).status().unwrap();
        assert!(mounted.success(), "a tmpfs at {}", path.display());
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Red when `up` says `ready` without the warning, or takes none of two for enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_become_ready_is_named_with_its_reason() {
    if skip::without_root("e2e a_worker_that_does_not_become_ready") {
        return;
    }
    let home = Home::new("fake");
    let second = Small::at(home.path("s/w2"));
    let up = ["up", "-d", "--workers", "2", "--ready-within", "2s"];
    let seen = home.berth(&up).await;
    assert_eq!(seen.code, Some(0), "one is enough to go on with: {seen:?}");
    assert!(seen.stdout.starts_with("ready 127.0.0.1:"), "{seen:?}");
    let warning = seen.stderr.lines().find(|line| line.starts_with("warning: ")).expect("a warning");
    assert!(
        warning.contains("only 1 of 2 workers are ready: local-2: ") && warning.contains("disk"),
        "{seen:?}"
    );
    assert!(seen.stderr.contains("hint: `berth workers local-2`"), "{seen:?}");
    home.berth(&["run", "--", "true"]).await.ok();
    home.berth(&["stop"]).await.ok();
    let seen = home.berth(&[&up[..], &["--format", "json"]].concat()).await;
    let told: Value = serde_json::from_str(&seen.stdout).unwrap_or_else(|e| panic!("{e}: {seen:?}"));
    assert_eq!(
        (&told["unready"][0]["worker"], &told["unready"][1]),
        (&"local-2".into(), &Value::Null),
        "{told}"
    );
    assert!(told["unready"][0]["reason"].as_str().unwrap().contains("disk"), "{told}");
    home.berth(&["stop"]).await.ok();
    // Where none is ready it is a failure, and nothing is left running.
    let first = Small::at(home.path("s/w1"));
    let seen = home.berth(&up).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(1), ""), "{seen:?}");
    assert!(seen.stderr.contains("local-1: ") && seen.stderr.contains("local-2: "), "{seen:?}");
    assert_eq!(home.status().await["running"], false);
    drop((first, second));
    left::assert_nothing(home.dir.path());
}
