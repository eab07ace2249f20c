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

/// The machine's own tar, on bytes from its stdin.
fn tar(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("tar")
        .args(args)
        .current_dir(dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("there is a tar");
    // It fits into the pipe.
    child.stdin.take().expect("it is piped").write_all(input).expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "tar {args:?}");
    output.stdout
}

/// Red when another's tar reads ours otherwise than it was meant, or ours another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_goes_through_a_pipe_both_ways() {
    let Some(cluster) = native("an_archive_goes_through_a_pipe_both_ways").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let make = format!(
        "mkdir -p t/sub t/$(dirname {long}); echo 1 > t/sub/one; echo 2 > t/{long}; ln -s ../x t/link; ln t/sub/one t/two; \
         chmod 750 t/sub/one; echo ü > t/ü"
    );
    shell(&cluster, &make).await;
    let out = cluster.berth(&["cp", "box:t", "-"]).await;
    let archive = out.ok().into_bytes();
    tar(dir.path(), &["-x"], &archive);
    let at = |name: &str| dir.path().join("t").join(name);
    assert_eq!(std::fs::read_to_string(at(&long)).unwrap(), "2\n");
    assert_eq!(std::fs::read_to_string(at("ü")).unwrap(), "ü\n");
    assert_eq!(std::fs::read_link(at("link")).unwrap(), Path::new("../x"));
    let (one, two) = (std::fs::metadata(at("sub/one")).unwrap(), std::fs::metadata(at("two")).unwrap());
    assert_eq!((one.ino(), one.mode() & 0o7777), (two.ino(), 0o750));
    // Its contents, and one file.
    let inside = cluster.berth(&["cp", "box:t/.", "-"]).await.ok();
    let listed = String::from_utf8(tar(dir.path(), &["-t"], inside.as_bytes())).unwrap();
    assert!(listed.lines().any(|line| line == "sub/one") && !listed.contains("t/sub"), "{listed}");
    // Back in, as several programs write them.
    for (place, format) in [("gnu", "gnu"), ("pax", "pax"), ("ustar", "ustar")] {
        let what = if format == "ustar" { "t/sub" } else { "t" };
        let archive = tar(dir.path(), &["-c", "--format", format, what], b"");
        shell(&cluster, &format!("mkdir {place}")).await;
        let seen = cluster.berth_with(&["cp", "-", &format!("box:{place}")], &archive).await;
        assert_eq!(seen.code, Some(0), "{seen:?}");
        let same = format!(
            "diff -r --no-dereference t/{0} {place}/t/{0} && stat -c %a {place}/t/sub/one",
            &what[1..]
        );
        assert_eq!(shell(&cluster, &same).await, "750\n", "{format}");
    }
    for (args, says) in [
        (&["cp", "-", "box:nowhere"][..], "nowhere"),
        (&["cp", "box:nowhere", "-"], "nowhere"),
        (&["cp", "-", "-"], "SESSION:PATH"),
        (&["cp", "box:t", "-", "--format", "json"], "stdout is the archive's"),
    ] {
        let seen = cluster.berth_with(args, &archive).await;
        let said = format!("{}{}", seen.stdout, seen.stderr);
        assert!(seen.code != Some(0) && said.contains(says), "{args:?}: {seen:?}");
        assert_eq!(seen.stdout.matches("ustar").count(), 0, "{seen:?}");
    }
    let seen = cluster.berth_with(&["cp", "-", "box:."], b"no archive at all").await;
    assert!(seen.code == Some(1) && seen.stderr.contains("hint"), "{seen:?}");
    let told = cluster.berth_with(&["cp", "-", "box:.", "--format", "json"], &archive).await.ok();
    let tally: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&tally["files"], &tally["links"]), (&3.into(), &2.into()), "{tally}");
    cluster.stop().await;
}

/// Red when a full disk is no error, or what came before it is gone or torn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_is_too_large_says_how_far_it_came() {
    let Some(cluster) = native("an_archive_that_is_too_large_says_how_far_it_came").await else { return };
    cluster.berth(&["create", "--name", "small", "--disk", "16MiB"]).await.ok();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "first").unwrap();
    std::fs::write(dir.path().join("b"), vec![7; 64 << 20]).unwrap();
    let out = tar(dir.path(), &["-c", "a", "b"], b"");
    let seen = cluster.berth_with(&["cp", "-", "small:."], &out).await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert!(seen.stderr.contains("b: ") && seen.stderr.contains("1 files"), "{seen:?}");
    let left = cluster.berth(&["run", "--session", "small", "--shell", "--", "cat a; ls -A"]).await.ok();
    assert_eq!(left.trim_end(), "firsta", "the first is whole, and nothing is half: {left}");
    cluster.stop().await;
}
