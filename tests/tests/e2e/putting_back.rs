//! `berth backup restore`: from a store that is damaged to a fleet that has its sessions again, and what is refused.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, process, until};
use serde_json::Value;

use crate::util::run;

const FILES: [&str; 2] = ["coordinator.db", "checkpoints.db"];

/// A command of ours with these variables and nothing else.
async fn berth(args: &[&str]) -> process::Finished {
    process::run("berth", args, &[], b"").await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names of a directory's entries, with the content of its files.
fn entries(dir: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).ok())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

fn damage(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[4096..8192].fill(0x5a);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// A coordinator's state directory, and a backup of it.
async fn backed_up(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let backup = cluster.dir.path().join("backup");
    cluster.berth(&["backup", "--to", text(&backup)]).await.ok();
    (cluster.dir.path().join("c"), backup)
}

/// Red when the restore leaves the old log beside the new file (move only the databases aside): then the start reads
/// another database's log, or is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_takes_the_place_of_a_damaged_store_and_the_fleet_goes_on() {
    let mut cluster = Cluster::start(Setup { max_sessions: 9, ..Setup::new("fake") }).await;
    for name in ["amber", "birch"] {
        cluster.berth(&["create", "--name", name]).await.ok();
    }
    let (state, backup) = backed_up(&cluster).await;
    let later = cluster.berth(&["create", "--name", "later"]).await.ok();
    let created = async |cluster: &Cluster| {
        let asked = ["audit", "--what", "SessionService/CreateSession", "--format", "json"];
        serde_json::from_str::<Vec<Value>>(&cluster.berth(&asked).await.ok()).unwrap().len()
    };
    assert_eq!(created(&cluster).await, 3);
    cluster.coordinator.kill().await;
    let damaged = damage(&state.join(FILES[0]));
    let log = std::fs::read(state.join("coordinator.db-wal")).expect("it was killed");

    // The start that is refused says what to type.
    let env = [
        ("GRPC_PORT".to_owned(), "0".to_owned()),
        ("HTTP_PORT".into(), "0".into()),
        ("BERTH_STATE_DIR".into(), text(&state).to_owned()),
        ("BERTH_LOG_FORMAT".into(), "text".into()),
    ];
    let refused = process::run("coordinator", &[], &env, b"").await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let hint = refused.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
    let command = hint.split_once(": berth ").expect("a command").1.replace("BACKUP", text(&backup));
    let mut args: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(args[..2], ["backup", "restore"], "{hint}");
    args.extend(["--format", "json"]);
    let told: Value = serde_json::from_str(&berth(&args).await.ok()).unwrap();
    assert_eq!((&told["sessions_live"], &told["sessions_ended"]), (&2.into(), &0.into()), "{told}");

    // What was there is kept as it was, for its owner alone.
    let aside = PathBuf::from(told["aside"].as_str().expect("something was there"));
    assert!(
        aside.starts_with(&state) && aside.file_name().unwrap().to_str().unwrap().starts_with("damaged-")
    );
    let kept = entries(&aside);
    assert_eq!(kept["coordinator.db"].as_ref(), Some(&damaged));
    assert_eq!(kept["coordinator.db-wal"].as_ref(), Some(&log));
    assert!(kept.contains_key("checkpoints.db"), "{:?}", kept.keys());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&aside), 0o700);
    for file in FILES {
        assert_eq!(mode(&state.join(file)), 0o600);
        assert!(!state.join(format!("{file}-wal")).exists());
    }
    assert!(!state.join("restoring").exists());

    // The fleet is what it was at the backup: its workers bring the sessions, and end what is not known.
    cluster.restart_coordinator().await;
    let named = async || {
        let listed = cluster.berth(&["ps", "--format", "json"]).await.ok();
        let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
        let all_up = listed.iter().all(|s| s["state"] == "ready" && s["worker_liveness"] == "alive");
        let mut names: Vec<String> =
            listed.iter().map(|s| s["labels"]["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        all_up.then_some(names)
    };
    let names = until(READY, "the sessions to be back", named).await;
    assert_eq!(names, ["amber", "birch"]);
    assert_eq!(created(&cluster).await, 3, "what was done was done: the record is not turned back");
    cluster.berth(&["audit", "--verify"]).await.ok();
    cluster.berth(&["run", "--session", "amber", "--", "true"]).await.ok();
    until(READY, "the session that is not known to be ended", async || {
        let dir = cluster.workers[0].state.join("sessions").join(later.trim());
        (!dir.exists()).then_some(())
    })
    .await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "true").await;
    assert_eq!(session.state(), v1::SessionState::Ready);
    cluster.stop().await;
}

/// Red without the claim on the state directory, and without the trial of the copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_sound_backup_or_is_in_use_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let (state, backup) = backed_up(&cluster).await;
    let restore = async |from: &Path| {
        berth(&["backup", "restore", "--from", text(from), "--state-dir", text(&state)]).await
    };
    let seen = restore(&backup).await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert!(seen.stderr.contains("uses ") && seen.stderr.contains("hint: stop it"), "{seen:?}");
    // It runs on as if nothing had been asked.
    cluster.berth(&["info"]).await.ok();
    cluster.coordinator.terminate().await;

    let before = entries(&state);
    let copy = |name: &str| {
        let dir = cluster.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        for file in FILES {
            std::fs::copy(backup.join(file), dir.join(file)).unwrap();
        }
        dir
    };
    let torn = copy("torn");
    std::fs::write(torn.join(FILES[1]), &std::fs::read(backup.join(FILES[1])).unwrap()[..5000]).unwrap();
    let rotten = copy("rotten");
    damage(&rotten.join(FILES[0]));
    let foreign = copy("foreign");
    std::fs::copy(backup.join(FILES[1]), foreign.join(FILES[0])).unwrap();
    let half = copy("half");
    std::fs::remove_file(half.join(FILES[1])).unwrap();
    let alive = copy("alive");
    std::fs::write(alive.join("coordinator.db-wal"), "x").unwrap();
    let nowhere = cluster.dir.path().join("nowhere");
    for (from, why) in [
        (&torn, "checkpoints.db"),
        (&rotten, "coordinator.db"),
        (&foreign, "coordinator.db"),
        (&half, "no file checkpoints.db"),
        (&alive, "coordinator.db-wal"),
        (&nowhere, "nowhere"),
        (&state, "the state directory itself"),
    ] {
        let seen = restore(from).await;
        assert_eq!((seen.code, seen.stdout.as_str()), (Some(1), ""), "{seen:?}");
        assert!(seen.stderr.contains(why) && seen.stderr.contains("hint: "), "{why}: {seen:?}");
        assert!(entries(&state) == before, "{why}: the state directory was changed");
    }
    let seen = berth(&["backup", "restore"]).await;
    assert_eq!(seen.code, Some(2), "from where? {seen:?}");

    // Where nothing was there, nothing is set aside, and the directory is made.
    let fresh = cluster.dir.path().join("fresh/c");
    let args =
        ["backup", "restore", "--from", text(&backup), "--state-dir", text(&fresh), "--format", "json"];
    let told: Value = serde_json::from_str(&berth(&args).await.ok()).unwrap();
    assert_eq!(told["aside"], Value::Null, "{told}");
    let put = entries(&fresh);
    assert_eq!(put.keys().collect::<Vec<_>>(), ["audit.db", "checkpoints.db", "coordinator.db"]);
    assert!(told["files"].as_array().is_some_and(|files| files.len() == 3), "{told}");

    // Of a backup as they were before, there is no audit record to put back; one that is damaged is told.
    let [older, spoilt] = ["unrecorded", "spoilt"].map(|name| cluster.dir.path().join(name));
    for (dir, audit) in [(&older, None), (&spoilt, Some(vec![0x5a; 5000]))] {
        std::fs::create_dir(dir).unwrap();
        for file in FILES {
            std::fs::copy(backup.join(file), dir.join(file)).unwrap();
        }
        if let Some(bytes) = &audit {
            std::fs::write(dir.join("audit.db"), bytes).unwrap();
        }
        let to = cluster.dir.path().join("fresh").join(dir.file_name().unwrap());
        let put = berth(&["backup", "restore", "--from", text(dir), "--state-dir", text(&to)]).await;
        match audit {
            None => assert_eq!((put.code, entries(&to).len()), (Some(0), 2), "{put:?}"),
            Some(_) => {
                assert!(put.code == Some(1) && put.stderr.contains("audit.db"), "{put:?}");
                assert_eq!(entries(&to).len(), 0, "nothing is changed");
            }
        }
    }
    cluster.stop().await;
}
