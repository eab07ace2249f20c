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
