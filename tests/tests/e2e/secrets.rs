//! Secrets: given to one task by name, in memory, gone with it, and kept nowhere. Each is driven through `berth`, and looked
//! for with the eyes of a neighbour, of the next task, and of whoever gets the disks.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::v1;
use berth_tests::{Cluster, Setup, process::Finished};

use crate::{
    recovery::checkpoint,
    util::{delete, on_both, run},
};

const FIRST: &str = "hunter2-31415926535897932384";
const SECOND: &str = "correct-horse-2718281828459045";
const DISK: u64 = 32 << 20;

async fn set(cluster: &Cluster, args: &[&str], value: &str) {
    cluster.berth_with(&[&["secret", "set"], args].concat(), value.as_bytes()).await.ok();
}

async fn session(cluster: &Cluster) -> String {
    let limits = Some(v1::Limits { disk_bytes: Some(DISK), ..Default::default() });
    let request = v1::CreateSessionRequest { limits, ..Default::default() };
    cluster.sessions().create_session(request).await.expect("a session").into_inner().id
}

/// What a task in `session` prints that is given the secret `key` in both ways.
async fn given(cluster: &Cluster, session: &str, line: &str) -> String {
    let args =
        ["run", "-n", "-s", session, "--secret", "key", "--secret-env", "KEY=key", "--shell", "--", line];
    cluster.berth(&args).await.ok().trim_end().to_owned()
}

/// A task that holds the secret until it is ended.
async fn holder(cluster: &Cluster, session: &str) -> String {
    let args = ["run", "-d", "-s", session, "--secret", "key", "--", "sleep", "1000"];
    let started = cluster.berth(&args).await.ok();
    started.split_whitespace().nth(1).expect("session and task").to_owned()
}

async fn cancel(cluster: &Cluster, session: &str, task: &str) {
    let request =
        v1::CancelTaskRequest { session_id: session.into(), task_id: task.into(), ..Default::default() };
    cluster.tasks().cancel_task(request).await.expect("it ends");
}

/// Red when files stay at a task's end, and when an agent keeps the value that it has for a name that is held. (With a
/// directory that others may write to the agent starts no such task.)
async fn a_secret_is_its_tasks_alone(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    // A line end at the end is not meant, as `echo` makes one.
    set(&cluster, &["key"], &format!("{FIRST}\n")).await;
    let (session, neighbour) = (session(&cluster).await, session(&cluster).await);
    let told =
        given(&cluster, &session, "echo $KEY; cat /run/secrets/key; echo; stat -f -c %T /run/secrets").await;
    assert_eq!(told.lines().collect::<Vec<_>>(), [FIRST, FIRST, "tmpfs"]);
    assert_eq!(
        run(&cluster, &session, "ls -A /run/secrets; echo [$KEY]").await.0,
        "[]",
        "gone with its task"
    );

    let task = holder(&cluster, &session).await;
    let tamper = "cd /run/secrets; for try in 'echo x > key' 'echo x >> key' 'rm -f key' 'mv key other' 'echo x > new' \
                  'chmod 666 key' 'ln key hard' 'mkdir dir' 'cp /etc/passwd .key'; do \
                  sh -c \"$try\" 2>/dev/null && echo \"$try\"; done; cat key; ls -A";
    let (seen, _) = run(&cluster, &session, tamper).await;
    assert_eq!(seen, format!("{FIRST}key"), "a task could change it");
    assert_eq!(run(&cluster, &neighbour, "ls -A /run/secrets").await.0, "", "a neighbour sees it");

    // Without any restart the next task has the new one.
    set(&cluster, &["key"], SECOND).await;
    assert_eq!(
        given(&cluster, &session, "cat /run/secrets/key; echo -$KEY").await,
        format!("{SECOND}-{SECOND}")
    );
    assert_eq!(run(&cluster, &session, "cat /run/secrets/key").await.0, SECOND, "the holder runs still");
    cancel(&cluster, &session, &task).await;
    assert_eq!(run(&cluster, &session, "ls -A /run/secrets").await.0, "");
    for id in [session, neighbour] {
        delete(&cluster, &id).await;
    }
    cluster.stop().await;
}

on_both!(a_secret_is_its_tasks_alone: native_a_secret_is_its_tasks_alone, docker_a_secret_is_its_tasks_alone);

/// Red when a value is written in place: a task then reads a part of it, or some of each.
async fn a_start_beside_a_change_gets_a_whole_value(sandbox: &str) {
    const LENGTH: usize = 60_000;
    const VALUES: usize = 12;
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let value = |n: usize| ["old", "new"][n % 2][..1].repeat(LENGTH);
    set(&cluster, &["key"], &value(0)).await;
    let session = session(&cluster).await;
    let look = "python3 -c \"import os; d = open('/run/secrets/key').read(); e = os.environ['KEY']\n\
                print(d[0], len(set(d)), len(d), e[0], len(set(e)), len(e))\"";
    let changing = async {
        for n in 1..VALUES {
            set(&cluster, &["key"], &value(n)).await;
        }
    };
    let starting = async || {
        let mut seen = BTreeSet::new();
        for _ in 0..VALUES / 2 {
            let told = given(&cluster, &session, look).await;
            let (file, variable) = (&told[..1], told.split(' ').nth(3).expect("six words"));
            assert_eq!(told, format!("{file} 1 {LENGTH} {variable} 1 {LENGTH}"), "no whole value");
            seen.extend([file.to_owned(), variable.to_owned()]);
        }
        seen
    };
    let ((), one, two) = tokio::join!(changing, starting(), starting());
    assert!(one.union(&two).all(|seen| ["o", "n"].contains(&seen.as_str())), "{one:?} {two:?}");
    // What was set is what the next one gets.
    let last = given(&cluster, &session, look).await;
    assert_eq!(last, format!("n 1 {LENGTH} n 1 {LENGTH}"));
    delete(&cluster, &session).await;
    cluster.stop().await;
}

on_both!(a_start_beside_a_change_gets_a_whole_value: native_a_start_beside_a_change_gets_a_whole_value, docker_a_start_beside_a_change_gets_a_whole_value);

/// The place for secrets is full: who asks for more is told so, and nothing is changed for those that have theirs. Red when
/// a start that fails leaves a part behind (no `remove_file` in the agent's `write`), or gives up what others hold.
async fn a_full_place_for_secrets_breaks_nothing(sandbox: &str) {
    const EACH: usize = 64 << 10;
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    set(&cluster, &["s0"], &"0".repeat(EACH)).await;
    let store = cluster.dir.path().join("c/secrets/default");
    for n in 1..66 {
        let file = store.join(format!("s{n}"));
        fs::write(&file, "x".repeat(EACH)).expect("it is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    let session = session(&cluster).await;
    let with = async |secrets: std::ops::Range<usize>, options: &[&str], program: &[&str]| {
        let secrets: Vec<String> = secrets.map(|n| format!("--secret=s{n}")).collect();
        let mut args = vec!["run", "-s", &session];
        args.extend(options);
        args.extend(secrets.iter().map(String::as_str));
        args.push("--");
        args.extend(program);
        cluster.berth(&args).await
    };
    // 62 of the 64 that 4 MiB hold; a task may have eight of this size.
    let mut holders = Vec::new();
    for n in 0..8 {
        let started = with(n * 8..(n * 8 + 8).min(62), &["-d"], &["sleep", "1000"]).await.ok();
        holders.push(started.split_whitespace().nth(1).expect("session and task").to_owned());
    }
    let full = with(63..66, &["-n"], &["true"]).await;
    assert_eq!(full.code, Some(125), "{full:?}");
    assert!(
        full.stderr.contains("/run/secrets is full") && full.stderr.contains("hint: "),
        "{}",
        full.stderr
    );
    let all = "cd /run/secrets; ls -A | wc -l; cat s* | wc -c; tail -c 1 s0; tail -c 1 s61";
    let seen = run(&cluster, &session, all).await.0;
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["62", &(62 * EACH).to_string(), "0x"]);
    // One that needs none runs, and so does one for which there is room.
    with(0..0, &["-n"], &["true"]).await.ok();
    with(63..64, &["-n"], &["true"]).await.ok();
    cancel(&cluster, &session, &holders[7]).await;
    with(63..66, &["-n"], &["test", "-s", "/run/secrets/s65"]).await.ok();
    delete(&cluster, &session).await;
    cluster.stop().await;
}

on_both!(a_full_place_for_secrets_breaks_nothing: native_a_full_place_for_secrets_breaks_nothing, docker_a_full_place_for_secrets_breaks_nothing);

/// Files below a directory that hold these bytes.
fn holding(dir: &Path, needle: &[u8], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            holding(&path, needle, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if memchr::memmem::find(&bytes, needle).is_some() {
                found.push(path);
            }
        }
    }
}

/// Red when a value is in the task's spec: it is then in the store's file, and in a piece of the checkpoint.
async fn nothing_of_a_secret_is_kept(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    set(&cluster, &["key"], FIRST).await;
    let session = session(&cluster).await;
    // A thing that is kept, to know that the search finds what there is.
    let kept = "kept-1618033988749894848";
    let length = given(&cluster, &session, &format!("echo {kept} > f; sync f; printf %s $KEY | wc -c")).await;
    assert_eq!(length.trim(), FIRST.len().to_string());
    let task = holder(&cluster, &session).await;
    let taken = checkpoint(&cluster, &session).await;
    let request = v1::RestoreSessionRequest { checkpoint_id: taken.id, ..Default::default() };
    let restored =
        cluster.checkpoints().restore_session(request).await.expect("it can be restored").into_inner();
    let (seen, _) = run(
        &cluster,
        &restored.id,
        "cat f; ls -A /run/secrets; grep -rl hunter2 /workspace /home /tmp /run 2>/dev/null",
    )
    .await;
    assert_eq!(seen, kept);

    let everywhere = |needle: &str| {
        let mut found = Vec::new();
        holding(cluster.dir.path(), needle.as_bytes(), &mut found);
        found
    };
    let store = |path: &PathBuf| path.ends_with("secrets/default/key");
    let found: Vec<_> = everywhere(FIRST).into_iter().filter(|path| !store(path)).collect();
    assert_eq!(found, [] as [PathBuf; 0], "the value is on a disk");
    assert!(!everywhere(kept).is_empty(), "the search finds nothing at all");

    let audit = cluster.berth(&["audit", "--what", "TaskService", "--format", "json"]).await.ok();
    assert!(audit.contains(r#""secrets": "key""#) || audit.contains(r#""secrets":"key""#), "{audit}");
    for told in [audit, cluster.berth(&["tasks", &session, "--format", "json"]).await.ok()] {
        assert!(!told.contains(FIRST), "{told}");
    }
    cancel(&cluster, &session, &task).await;
    for id in [session, restored.id] {
        delete(&cluster, &id).await;
    }
    cluster.stop().await;
}

on_both!(nothing_of_a_secret_is_kept: native_nothing_of_a_secret_is_kept, docker_nothing_of_a_secret_is_kept);

#[track_caller]
fn refused(finished: &Finished, why: &str) {
    assert_eq!(finished.code, Some(125), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("the secret key: ") && finished.stderr.contains(why),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("hint: "), "{}", finished.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_can_not_be_had_is_named_and_why() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let id = session(&cluster).await;
    let run = async || cluster.berth(&["run", "-n", "-s", &id, "--secret", "key", "--", "true"]).await;
    refused(&run().await, "there is none");
    set(&cluster, &["key", "--tenant", "team-b"], FIRST).await;
    refused(&run().await, "there is none");
    set(&cluster, &["key", "--ttl", "1ms"], FIRST).await;
    refused(&run().await, "it has expired");
    set(&cluster, &["key"], FIRST).await;
    run().await.ok();

    let file = cluster.dir.path().join("c/secrets/default/key");
    assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    refused(&run().await, "others may use its file");
    let listed = cluster.berth(&["secret", "list"]).await.ok();
    let line = listed.lines().find(|line| line.starts_with("default")).expect("it is listed");
    assert!(line.contains("others may use its file"), "{listed}");
    assert!(!listed.contains(FIRST));
    cluster.berth(&["secret", "rm", "key"]).await.ok();
    refused(&run().await, "there is none");

    // One task ran: the one that was given its secret.
    let tasks = cluster.berth(&["tasks", &id, "-q", "--all"]).await.ok();
    assert_eq!(tasks.lines().count(), 1, "{tasks}");
    for (args, value, why) in [
        (&["a/b"][..], "x", "no secret's name"),
        (&["key"], "", "the value is empty"),
        (&["key", "--from-file", "/no/such/file"], "x", "can't be read"),
        (&["key", "--tenant", "No Tenant"], "x", "tenant"),
        (&["key"], &"x".repeat((64 << 10) + 1), "65537 bytes"),
    ] {
        let finished = cluster.berth_with(&[&["secret", "set"], args].concat(), value.as_bytes()).await;
        assert_ne!(finished.code, Some(0), "{args:?}");
        assert!(finished.stderr.contains(why), "{args:?}: {}", finished.stderr);
    }
    let missing = cluster.berth(&["secret", "rm", "key"]).await;
    assert!(missing.stderr.contains("has no secret key"), "{}", missing.stderr);
    delete(&cluster, &id).await;
    cluster.stop().await;
}
