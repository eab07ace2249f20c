//! The `berth` command against a real fleet.

use std::{
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_tests::{Cluster, READY, Setup, process, skip};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_passes_output_and_exit_code_through() {
    let Some(cluster) = native("run_passes_output_and_exit_code_through").await else { return };
    let seen = cluster.berth(&["run", "--", "python3", "-c", "print(1)"]).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(0), "1\n"), "{}", seen.stderr);
    let seen = cluster.berth(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(3), "out\n"));
    assert!(seen.stderr.starts_with("err\n"), "{}", seen.stderr);
    let seen = cluster.berth_with(&["run", "-i", "--", "tr", "a-z", "A-Z"], b"shout\n").await;
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(0), "SHOUT\n"), "{}", seen.stderr);
    let seen = cluster.berth(&["run", "--timeout", "1s", "--", "sleep", "1000"]).await;
    assert_eq!(seen.code, Some(124), "{seen:?}");
    let hog = "a = []\nwhile True: a.append(bytearray(1 << 24))";
    let seen = cluster.berth(&["run", "--memory", "64M", "--", "python3", "-c", hog]).await;
    assert_eq!(seen.code, Some(137), "{seen:?}");
    assert!(seen.stderr.contains("memory"), "{}", seen.stderr);
    let seen = cluster.berth(&["run", "--", "no-such-program"]).await;
    assert_eq!(seen.code, Some(127), "{seen:?}");
    // Nothing of the sessions that it made is left.
    let listed = json(&cluster.berth(&["ps", "--format", "json"]).await.ok());
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_session_keeps_files_tasks_and_logs() {
    let Some(cluster) = native("a_named_session_keeps_files_tasks_and_logs").await else { return };
    cluster.berth(&["create", "--name", "box", "--env", "GREETING=hi"]).await.ok();
    let script = "echo $GREETING > note; echo to stdout; echo to stderr >&2";
    cluster.berth(&["run", "--session", "box", "--", "sh", "-c", script]).await.ok();
    assert_eq!(cluster.berth(&["run", "--session", "box", "--", "cat", "note"]).await.ok(), "hi\n");
    let tasks = json(&cluster.berth(&["tasks", "box", "--format", "json"]).await.ok());
    let tasks = tasks.as_array().expect("a list");
    assert_eq!(tasks.len(), 2);
    let first = tasks[1]["id"].as_str().expect("an id");
    let logs = cluster.berth(&["logs", "box", first]).await;
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("to stdout\n", "to stderr\n"));
    // Following ends with the task.
    let slow = "for i in 1 2 3; do echo line $i; sleep 0.2; done";
    cluster.berth(&["run", "--session", "box", "--detach", "--", "sh", "-c", slow]).await.ok();
    assert_eq!(cluster.berth(&["logs", "-f", "box"]).await.ok(), "line 1\nline 2\nline 3\n");
    let seen = cluster.berth(&["ps"]).await.ok();
    assert!(seen.contains("box") && seen.contains("ready"), "{seen}");
    cluster.berth(&["rm", "box"]).await.ok();
    let seen = cluster.berth(&["run", "--session", "box", "--", "true"]).await;
    assert_ne!(seen.code, Some(0));
    assert!(seen.stderr.contains("error:") && seen.stderr.contains("box"), "{}", seen.stderr);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_are_copied_both_ways() {
    let Some(cluster) = native("directories_are_copied_both_ways").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("src");
    std::fs::create_dir_all(source.join("deep/er")).unwrap();
    std::fs::write(source.join("a.sh"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(source.join("a.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let bytes: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(source.join("deep/er/data"), &bytes).unwrap();
    std::os::unix::fs::symlink("a.sh", source.join("link")).unwrap();
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let path = |p: &std::path::Path| p.to_str().unwrap().to_owned();
    let flat = cluster.berth(&["cp", &path(&source), "box:src"]).await;
    assert_ne!(flat.code, Some(0), "a directory needs -r");
    assert!(flat.stderr.contains("-r"), "{}", flat.stderr);
    cluster.berth(&["cp", "-r", &path(&source), "box:src"]).await.ok();
    assert_eq!(cluster.berth(&["run", "--session", "box", "--", "src/a.sh"]).await.ok(), "ran\n");
    let back = dir.path().join("back");
    cluster.berth(&["cp", "-r", "box:src", &path(&back)]).await.ok();
    assert!(std::fs::read(back.join("deep/er/data")).unwrap() == bytes, "it came back changed");
    assert_eq!(std::fs::metadata(back.join("a.sh")).unwrap().mode() & 0o777, 0o755);
    assert_eq!(std::fs::read_link(back.join("link")).unwrap().to_str(), Some("a.sh"));
    let missing = cluster.berth(&["cp", "box:nothing", &path(&back)]).await;
    assert_ne!(missing.code, Some(0));
    assert!(missing.stderr.contains("nothing"), "{}", missing.stderr);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shell_is_a_real_terminal() {
    let Some(cluster) = native("shell_is_a_real_terminal").await else { return };
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).expect("a terminal");
    let end = || Stdio::from(pty.slave.try_clone().expect("a handle"));
    let mut shell = Command::new(process::binary("berth"))
        .arg("shell")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("TERM", "xterm")
        .env("BERTH_ADDRESS", &cluster.address)
        .env("BERTH_TOKEN", &cluster.admin_token)
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("it starts");
    drop(pty.slave);
    let master = std::fs::File::from(pty.master);
    let mut writer = master.try_clone().expect("a handle");
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut reader = master;
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut seen = String::new();
    let mut expect = |text: &str| {
        let end = Instant::now() + READY;
        while !seen.contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {seen:?}");
            if let Ok(bytes) = receiver.recv_timeout(Duration::from_millis(100)) {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    };
    writer.write_all(b"stty size; echo $((6 * 7))-; tty\n").unwrap();
    expect("33 111");
    expect("42-");
    expect("/dev/pts/");
    writer.write_all(b"exit 5\n").unwrap();
    let end = Instant::now() + READY;
    let status = loop {
        if let Some(status) = shell.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "the shell does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(status.code(), Some(5));
    drop(writer);
    reading.join().unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_what_to_do() {
    let env = [("BERTH_ADDRESS".to_owned(), "127.0.0.1:1".to_owned()), ("BERTH_TOKEN".into(), "t".into())];
    let seen = process::run("berth", &["ps"], &env, b"").await;
    assert_eq!(seen.code, Some(1));
    assert!(seen.stderr.contains("error:") && seen.stderr.contains("127.0.0.1:1"), "{}", seen.stderr);
    assert!(seen.stderr.contains("hint:") && seen.stderr.contains("berth up"), "{}", seen.stderr);
    for binary in ["berth", "coordinator", "worker"] {
        let env = [("BERTH_SANDBX".to_owned(), "native".to_owned())];
        let args: &[&str] = if binary == "berth" { &["ps"] } else { &[] };
        let seen = process::run(binary, args, &env, b"").await;
        assert_eq!(seen.code, Some(2), "{binary}: {}", seen.stderr);
        assert!(seen.stderr.contains("BERTH_SANDBOX"), "{binary}: {}", seen.stderr);
        let seen = process::run(binary, &["--no-such-flag"], &[], b"").await;
        assert_eq!(seen.code, Some(2), "{binary}");
    }
    let seen = process::run("worker", &["--print-config"], &[("MAX_SESSIONS".into(), "7".into())], b"").await;
    assert!(seen.stdout.lines().any(|l| l.contains("MAX_SESSIONS") && l.contains('7')), "{}", seen.stdout);
    assert!(
        seen.stdout.lines().any(|l| l.contains("COORDINATOR_ADDR") && l.contains("default")),
        "{}",
        seen.stdout
    );
    let seen = process::run("worker", &[], &[("MAX_SESSIONS".into(), "many".into())], b"").await;
    assert_eq!(seen.code, Some(2), "{}", seen.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_shown_and_drained() {
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("fake") }).await;
    let workers = json(&cluster.berth(&["workers", "--format", "json"]).await.ok());
    assert_eq!(workers.as_array().map(Vec::len), Some(2), "{workers}");
    let table = cluster.berth(&["workers"]).await.ok();
    assert!(table.contains("worker-1") && table.contains("alive"), "{table}");
    cluster.berth(&["cordon", "worker-1"]).await.ok();
    assert!(cluster.berth(&["workers"]).await.ok().contains("cordoned"));
    cluster.berth(&["uncordon", "worker-1"]).await.ok();
    cluster.berth(&["drain", "worker-1", "--deadline", "1s"]).await.ok();
    let seen = cluster.berth(&["cordon", "nobody"]).await;
    assert_eq!(seen.code, Some(1));
    assert!(seen.stderr.contains("nobody"), "{}", seen.stderr);
    assert!(cluster.berth(&["templates"]).await.ok().contains("base"));
    assert!(cluster.berth(&["completions", "bash"]).await.ok().contains("berth"));
    cluster.stop().await;
}
