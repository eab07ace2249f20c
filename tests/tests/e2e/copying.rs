//! `berth cp` and its listings against sandboxes that lie: what code in a session names and
//! links must not reach beyond the directory that the user gave, nor the user's terminal.

use std::{os::unix::fs::MetadataExt, path::Path};

use berth_tests::{Cluster, Setup, process::Finished, skip};
use serde_json::Value;

async fn native(test: &str) -> Option<Cluster> {
    if skip::without_root(&format!("e2e {test}")) {
        return None;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    Some(cluster)
}

async fn shell(cluster: &Cluster, line: &str) -> String {
    cluster.berth(&["run", "--session", "box", "--shell", "--", line]).await.ok()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are UTF-8")
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("it is there").next().is_none()
}

fn has_escapes(seen: &Finished) -> bool {
    format!("{}{}", seen.stdout, seen.stderr).contains(['\u{1b}', '\u{9b}', '\r'])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_copy_writes_through_no_link_of_the_first() {
    let Some(cluster) = native("a_second_copy_writes_through_no_link_of_the_first").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let (host, out) = (dir.path().join("host"), dir.path().join("out"));
    std::fs::create_dir(&host).unwrap();
    std::fs::create_dir(&out).unwrap();
    // The first copy brings a link that leads to a directory of the host: as a link.
    shell(&cluster, &format!("mkdir ry; ln -s {} ry/x; echo 1 > ry/plain", host.display())).await;
    cluster.berth(&["cp", "-r", "box:ry", text(&out)]).await.ok();
    assert_eq!(std::fs::read_link(out.join("ry/x")).unwrap(), host);
    // Then the sandbox has a directory there, and would have the second copy go through the link.
    shell(&cluster, "rm ry/x; mkdir -p ry/x/deep; echo owned > ry/x/keys; chmod 777 ry/x").await;
    let before = std::fs::metadata(&host).unwrap().mode();
    // Also where the link has the very name that the copy is to have: the user named `out/ry` only.
    for (source, destination) in [("box:ry", ""), ("box:ry/.", "ry"), ("box:ry/x", "ry")] {
        let seen = cluster.berth(&["cp", "-r", source, text(&out.join(destination))]).await;
        assert_eq!(seen.code, Some(1), "{seen:?}");
        assert!(seen.stderr.contains("out/ry/x"), "it names the path: {}", seen.stderr);
        assert!(is_empty(&host), "the host's directory was written to");
        assert_eq!(std::fs::metadata(&host).unwrap().mode(), before, "or its mode was changed");
    }
    // A single file goes to the user's word, and over a link, not through it.
    std::os::unix::fs::symlink(host.join("target"), out.join("keys")).unwrap();
    cluster.berth(&["cp", "box:ry/x/keys", text(&out)]).await.ok();
    assert_eq!(std::fs::read_to_string(out.join("keys")).unwrap(), "owned\n");
    assert!(is_empty(&host));
    // The destination itself may be a link: it is the user's.
    let named = dir.path().join("named");
    std::os::unix::fs::symlink(&host, &named).unwrap();
    cluster.berth(&["cp", "-r", "box:ry", text(&named)]).await.ok();
    assert_eq!(std::fs::read_to_string(host.join("ry/x/keys")).unwrap(), "owned\n");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_leaves_the_modes_of_directories_that_were_there() {
    let Some(cluster) = native("a_copy_leaves_the_modes_of_directories_that_were_there").await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("old")).unwrap();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    let (own, old) = (mode(""), mode("old"));
    shell(&cluster, "mkdir -p t/old t/new; chmod 777 t t/old; chmod 510 t/new; echo 1 > t/old/f").await;
    cluster.berth(&["cp", "-r", "box:t/.", text(dir.path())]).await.ok();
    assert_eq!((mode(""), mode("old"), mode("new")), (own, old, 0o510));
    assert!(dir.path().join("old/f").is_file());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sandbox_names_does_not_reach_the_terminal_raw() {
    let Some(cluster) = native("what_a_sandbox_names_does_not_reach_the_terminal_raw").await else { return };
    let dir = tempfile::tempdir().unwrap();
    // A pipe can't be copied: its name is told.
    shell(&cluster, "mkdir d; mkfifo \"d/$(printf 'a\\033[2Jb')\"").await;
    let seen = cluster.berth(&["cp", "-r", "box:d", text(dir.path())]).await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert!(seen.stderr.contains("a\\u{1b}[2Jb") && !has_escapes(&seen), "{seen:?}");
    // In JSON a name is as it is.
    let seen = cluster.berth(&["cp", "-r", "box:d", text(dir.path()), "--format", "json"]).await;
    let tally: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert!(tally["skipped"][0].as_str().unwrap().contains("a\u{1b}[2Jb"), "{tally}");
    // Command lines, names and labels in listings.
    cluster.berth(&["run", "--session", "box", "--", "echo", "\u{1b}]0;x\u{7}"]).await.ok();
    let seen = cluster.berth(&["tasks", "box"]).await;
    assert!(seen.stdout.contains("\\u{1b}]0;x\\u{7}") && !has_escapes(&seen), "{seen:?}");
    cluster.berth(&["update", "box", "--name", "b\u{1b}[31mox"]).await.ok();
    let seen = cluster.berth(&["ps"]).await;
    assert!(seen.stdout.contains("b\\u{1b}[31mox") && !has_escapes(&seen), "{seen:?}");
    let listed: Value = serde_json::from_str(&cluster.berth(&["ps", "--format", "json"]).await.ok()).unwrap();
    assert_eq!(listed[0]["labels"]["name"], "b\u{1b}[31mox");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_copy_runs_is_not_the_users_newest_task() {
    let Some(cluster) = native("what_a_copy_runs_is_not_the_users_newest_task").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("src");
    std::fs::create_dir(&source).unwrap();
    std::os::unix::fs::symlink("nowhere", source.join("link")).unwrap();
    shell(&cluster, "echo mine").await;
    cluster.berth(&["cp", "-r", text(&source), "box:src"]).await.ok();
    assert_eq!(shell(&cluster, "readlink src/link").await, "nowhere\n");
    cluster.berth(&["cp", "-r", text(&source), "box:again"]).await.ok();
    assert_eq!(cluster.berth(&["logs", "box"]).await.ok(), "nowhere\n");
    assert_eq!(cluster.berth(&["tasks", "box", "-q"]).await.ok().lines().count(), 2);
    assert_eq!(cluster.berth(&["tasks", "box", "-q", "--all"]).await.ok().lines().count(), 4);
    cluster.stop().await;
}
