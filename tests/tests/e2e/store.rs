//! The coordinator's store as an operator meets it: backups, damage, a full disk, and the queue.

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, process, until};

use crate::util::{delete, seconds};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_a_coordinator_with_the_same_sessions() {
    let cluster = Cluster::start(Setup { max_sessions: 20, ..Setup::new("fake") }).await;
    let mut kept = Vec::new();
    for _ in 0..5 {
        kept.push(cluster.session().await.id);
    }
    let to = cluster.dir.path().join("backup");
    let path = to.to_str().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let load = stop.run_until_cancelled(async {
        loop {
            let session = cluster.session().await;
            delete(&cluster, &session.id).await;
        }
    });
    let taking = async {
        let taken = cluster.berth(&["backup", "--to", path, "--format", "json"]).await;
        stop.cancel();
        taken.ok()
    };
    let (_, taken) = tokio::join!(load, taking);
    let taken: serde_json::Value = serde_json::from_str(&taken).unwrap();
    assert_eq!(taken.as_array().map(Vec::len), Some(3), "{taken}");
    let again = cluster.berth(&["backup", "--to", path]).await;
    assert!(again.code == Some(2) && again.stderr.contains("not empty"), "{again:?}");

    // Restored beside the one that runs, so without its workers.
    let state = cluster.dir.path().join("restored");
    let put = ["backup", "restore", "--from", path, "--state-dir", state.to_str().unwrap()];
    cluster.berth(&put).await.ok();
    let ready = cluster.dir.path().join("restored.ready");
    let env = [
        ("GRPC_PORT".to_owned(), "0".to_owned()),
        ("HTTP_PORT".into(), "0".into()),
        ("BERTH_STATE_DIR".into(), state.to_str().unwrap().to_owned()),
    ];
    let args = ["--ready-file".to_owned(), ready.to_str().unwrap().to_owned()];
    let log = cluster.dir.path().join("restored.log");
    let mut second = process::Process::spawn("coordinator", &args, &env, log);
    let address = second.wait_for_file(&ready, READY).await.trim().to_owned();
    let token = std::fs::read_to_string(state.join("credentials/admin.token")).unwrap();
    let env = [("BERTH_ADDRESS".to_owned(), address), ("BERTH_TOKEN".into(), token.trim().to_owned())];
    let listed = process::run("berth", &["ps", "-q"], &env, b"").await.ok();
    for id in &kept {
        assert!(listed.contains(id), "{id} is not in {listed}");
    }
    let recorded =
        process::run("berth", &["audit", "--limit", "1000", "--format", "json"], &env, b"").await.ok();
    assert!(kept.iter().all(|id| recorded.contains(id)), "what was done is in the backup too: {recorded}");
    let whole = process::run("berth", &["audit", "--verify"], &env, b"").await.ok();
    assert!(whole.contains("as they were written"), "{whole}");
    second.terminate().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_store_is_refused_by_name_and_left_as_it_is() {
    for (file, hint) in [
        ("coordinator.db", "berth backup restore --from"),
        ("checkpoints.db", "berth backup restore --from"),
        ("audit.db", "cp BACKUP/audit.db"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let env = [
            ("GRPC_PORT".to_owned(), "0".to_owned()),
            ("HTTP_PORT".into(), "0".into()),
            ("BERTH_STATE_DIR".into(), dir.path().to_str().unwrap().to_owned()),
        ];
        let ready = dir.path().join("ready");
        let args = ["--ready-file".to_owned(), ready.to_str().unwrap().to_owned()];
        let mut first = process::Process::spawn("coordinator", &args, &env, dir.path().join("log"));
        first.wait_for_file(&ready, READY).await;
        first.terminate().await;
        let path = dir.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..8192].fill(0x5a);
        std::fs::write(&path, &bytes).unwrap();
        let seen = process::run("coordinator", &[], &env, b"").await;
        assert_ne!(seen.code, Some(0), "{seen:?}");
        let words = format!("{}{}", seen.stdout, seen.stderr);
        assert!(words.contains(file) && words.contains(hint), "{words}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{file} was changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_shows_who_waits_for_what_next_first() {
    let cluster = Cluster::start(Setup { max_sessions: 1, ..Setup::new("fake") }).await;
    assert!(cluster.berth(&["queue"]).await.stderr.contains("nobody waits"));
    cluster.session().await;
    let create = |priority| {
        let mut sessions = cluster.sessions();
        let request =
            v1::CreateSessionRequest { priority, wait_for_place: seconds(60), ..Default::default() };
        async move { sessions.create_session(request).await }
    };
    let look = async {
        let rows = until(READY, "two to wait", async || {
            let text = cluster.berth(&["queue", "--format", "json"]).await.ok();
            let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            (rows.len() == 2).then_some(rows)
        })
        .await;
        let table = cluster.berth(&["queue"]).await.ok();
        for word in ["WAITS FOR", "WAITS UNTIL", "TENANT", "worker-1", "default", "in 5"] {
            assert!(table.contains(word), "no {word:?} in {table}");
        }
        rows
    };
    let rows = tokio::select! {
        rows = look => rows,
        _ = async { tokio::join!(create(1), create(7)) } => panic!("there was no place"),
    };
    assert_eq!((&rows[0]["priority"], &rows[1]["priority"]), (&7.into(), &1.into()));
    assert!(rows[0]["message"].as_str().is_some_and(|why| why.contains("worker-1")), "{rows:?}");
    for (row, position) in rows.iter().zip(1..) {
        assert_eq!((&row["queue_position"], &row["tenant"]), (&position.into(), &"default".into()));
        assert!(
            row["waits_since"].as_str() < row["waits_until"].as_str() && row["waits_since"].is_string(),
            "{row}"
        );
    }
    cluster.stop().await;
}
