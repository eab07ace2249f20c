//! One suite for every store, and what only SQLite has to prove.

use std::{path::Path, time::Duration};

use berth_proto::{
    Epoch, Incarnation,
    domain::{
        Backend, BackendChoice, CheckpointPolicy, Egress, EndReason, Labels, Limits, OnWorkerLoss, Preset,
        PtySize, RestoreFrom, SessionState, TaskDefaultsPatch, TemplateSpec,
    },
};

use super::{memory::MemoryStore, record::time, sqlite::SqliteStore, *};
use crate::{
    fleet::{Kept, Recovery, Scheduling, Spec, Waits},
    identity::Kind,
};

pub(super) fn session(number: u128) -> Session {
    let mut session = Session::new(
        SessionId::from_u128(number),
        Spec {
            tenant: "team-a".parse().unwrap(),
            template: TemplateSpec {
                name: "base".into(),
                root: Some("/root".into()),
                image: None,
                backend: BackendChoice::Only(Backend::Docker),
                user: "user".into(),
            },
            limits: Limits { cpu_millis: 1, memory_bytes: 2, disk_bytes: 3, pids: 4 },
            env: Labels::from([("A".into(), "1\n\"ü".into())]),
            selector: Labels::from([("zone".into(), "a".into())]),
            priority: -5,
            wait_for_place: Duration::from_millis(1500),
            patient: true,
            task_defaults: TaskDefaultsPatch {
                timeout: Some(None),
                pty_size: Some(PtySize { cols: 100, rows: 50 }),
                max_concurrent: None,
            },
            on_worker_loss: OnWorkerLoss::Restore,
            checkpoints: CheckpointPolicy {
                interval: Some(Duration::from_secs(60)),
                on_drain: true,
                before_delete: true,
                keep: 9,
                keep_for: Duration::from_secs(77),
            },
            keyed: true,
            from_checkpoint: true,
            egress: Egress { preset: Preset::Packages, allow: vec!["*.a.example:8443".parse().unwrap()] },
        },
        time(1_000_001),
    );
    let kept = Kept { from: RestoreFrom { checkpoint: "0123".into(), root: [9; 32] }, at: time(4_000_004) };
    let passed_over = vec!["0456".into()];
    session.labels = Labels::from([("l".into(), "v".into())]);
    session.state = SessionState::Ready;
    session.epoch = Epoch(3);
    session.worker = Some("w".parse().unwrap());
    session.backend = "docker".into();
    session.message = "words".into();
    session.waits = Waits { since: time(5_000_005), until: time(6_000_006) };
    session.ready_at = Some(time(2_000_002));
    session.expires_at = Some(time(3_000_003));
    session.idle_timeout = Some(Duration::from_secs(9));
    session.checkpoint = Some(kept.clone());
    session.recovered = Some(Recovery { kept, passed_over, under_way: true });
    session.paused_at = Some(time(7_000_007));
    session.parked_at = Some(time(8_000_008));
    session
}

fn task(number: u128) -> v1::Task {
    v1::Task { id: TaskId::from_u128(number).to_string(), pid: number as u32, ..Default::default() }
}

fn tasks(of: u128, numbers: std::ops::Range<u128>) -> Vec<TaskRecord> {
    let session = SessionId::from_u128(of);
    numbers.map(|n| TaskRecord { session, task: TaskId::from_u128(n), summary: Arc::new(task(n)) }).collect()
}

/// Every field of it set.
pub(super) fn token(number: u128) -> Token {
    Token {
        id: TokenId::from_u128(number),
        digest: [number as u8; 32],
        name: "ci \"ü".into(),
        kind: Kind::Worker("w".parse().unwrap()),
        tenant: "team-a".parse().unwrap(),
        created_at: time(1_000_001),
        expires_at: Some(time(2_000_002)),
        revoked_at: Some(time(3_000_003)),
        uses_left: Some(7),
        issued_by: Some(TokenId::from_u128(99)),
        kept: true,
    }
}

pub(super) fn quota() -> (Tenant, Quota) {
    let quota = Quota {
        sessions: Some(1),
        cpu_millis: Some(2),
        memory_bytes: Some(3),
        disk_bytes: None,
        streams: Some(0),
        creates_per_minute: Some(1 << 53),
    };
    ("team-a".parse().unwrap(), quota)
}

async fn identity_suite(store: &dyn Store) {
    let plain = [Kind::Client, Kind::Admin, Kind::Join].into_iter().enumerate().map(|(n, kind)| Token {
        kind,
        expires_at: None,
        revoked_at: None,
        uses_left: None,
        issued_by: None,
        kept: false,
        ..token(n as u128 + 2)
    });
    let mut tokens: Vec<Token> = std::iter::once(token(1)).chain(plain).collect();
    let batch = Batch {
        tokens: tokens.iter().cloned().map(Arc::new).collect(),
        quotas: vec![quota()],
        ..Batch::default()
    };
    assert!(!batch.is_empty());
    store.commit(&batch).await.unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!((&loaded.tokens, &loaded.quotas), (&tokens, &vec![quota()]));
    tokens[0].uses_left = Some(6);
    let none = (quota().0, Quota::default());
    let batch = Batch {
        tokens: vec![Arc::new(tokens[0].clone())],
        forget_tokens: vec![tokens[1].id],
        quotas: vec![none.clone()],
        ..Batch::default()
    };
    store.commit(&batch).await.unwrap();
    tokens.remove(1);
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.tokens, loaded.quotas), (tokens, vec![none]));
}

/// Red without the migration's UPDATE: then a request that is made again makes a second session.
#[tokio::test]
async fn request_ids_of_before_there_were_tenants_are_the_default_ones() {
    use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let key = RequestKey {
        key: "a/k".into(),
        body: [5; 32],
        session: SessionId::from_u128(1),
        created_at: time(8),
    };
    store.commit(&Batch { keys: vec![key.clone()], ..Batch::default() }).await.unwrap();
    store.close().await;
    let mut raw =
        SqliteConnectOptions::new().filename(dir.path().join("coordinator.db")).connect().await.unwrap();
    for sql in ["DROP TABLE tokens", "DROP TABLE quotas", "DELETE FROM _sqlx_migrations WHERE version >= 6"] {
        sqlx::query(sql).execute(&mut raw).await.unwrap();
    }
    raw.close().await.unwrap();
    for _ in 0..2 {
        let store = open(dir.path()).await.expect("the older store is taken, and its sums are right");
        let keys = store.load().await.unwrap().keys;
        assert_eq!(keys, [RequestKey { key: "default/a/k".into(), ..key.clone() }]);
        store.close().await;
    }
}

async fn suite(store: &dyn Store) {
    identity_suite(store).await;
    let worker =
        Worker::from_record("w".parse().unwrap(), Incarnation(4), Scheduling::Draining { until: time(77) });
    let key =
        RequestKey { key: "k".into(), body: [5; 32], session: SessionId::from_u128(1), created_at: time(8) };
    let batch = Batch {
        sessions: vec![Arc::new(session(1)), Arc::new(session(2))],
        workers: vec![Arc::new(worker)],
        keys: vec![key.clone()],
        promised_lease: Some(Duration::from_secs(11)),
        tasks: tasks(1, 0..5),
        ..Batch::default()
    };
    store.commit(&batch).await.unwrap();
    let loaded = store.load().await.unwrap();
    let known: Vec<_> = loaded.sessions.iter().map(|s| format!("{s:?}")).collect();
    let mut expected = [session(1), session(2)].map(|s| format!("{s:?}"));
    expected.sort();
    assert_eq!(known, expected);
    assert_eq!(loaded.keys, [key]);
    assert_eq!(loaded.promised_lease, Some(Duration::from_secs(11)));
    assert_eq!(loaded.workers[0].incarnation, Incarnation(4));
    assert_eq!(loaded.workers[0].scheduling, Scheduling::Draining { until: time(77) });

    // Newest first, in pages; a task that is there stays as it is.
    let one = SessionId::from_u128(1);
    let other = TaskRecord { session: one, task: TaskId::from_u128(4), summary: Arc::new(task(999)) };
    store.commit(&Batch { tasks: vec![other], ..Batch::default() }).await.unwrap();
    assert_eq!(store.tasks(one, None, 2).await.unwrap(), [task(4), task(3)]);
    assert_eq!(store.tasks(one, Some(TaskId::from_u128(3)), 9).await.unwrap(), [task(2), task(1), task(0)]);
    assert_eq!(store.task(one, TaskId::from_u128(2)).await.unwrap(), Some(task(2)));
    assert_eq!(store.task(SessionId::from_u128(2), TaskId::from_u128(2)).await.unwrap(), None);
    let many = TASKS_PER_SESSION as u128 + 10;
    store.commit(&Batch { tasks: tasks(1, 5..many), ..Batch::default() }).await.unwrap();
    let kept = store.tasks(one, None, usize::MAX).await.unwrap();
    assert_eq!((kept.len(), kept.last()), (TASKS_PER_SESSION, Some(&task(10))));

    let mut ended = session(2);
    (ended.state, ended.end) = (SessionState::Ended, Some(EndReason::WorkerLost));
    let batch = Batch {
        sessions: vec![Arc::new(ended)],
        forget_sessions: vec![one],
        forget_workers: vec!["w".parse().unwrap()],
        forget_keys: vec!["k".into()],
        ..Batch::default()
    };
    store.commit(&batch).await.unwrap();
    let shorter = Batch { promised_lease: Some(Duration::from_secs(7)), ..Batch::default() };
    assert!(!shorter.is_empty());
    store.commit(&shorter).await.unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.promised_lease, Some(Duration::from_secs(7)));
    assert_eq!(loaded.sessions.len(), 1);
    assert_eq!(loaded.sessions[0].end, Some(EndReason::WorkerLost));
    assert!(loaded.workers.is_empty() && loaded.keys.is_empty());
    assert!(store.tasks(one, None, 9).await.unwrap().is_empty());
}

pub(super) async fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(&dir.join("coordinator.db")).await
}

#[tokio::test]
async fn the_memory_store_keeps_what_it_is_told() {
    suite(&MemoryStore::default()).await;
}

#[tokio::test]
async fn the_sqlite_store_keeps_what_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    suite(&open(dir.path()).await.unwrap()).await;
}

/// Red when a commit returns before its COMMIT.
#[tokio::test]
async fn a_commit_survives_a_process_that_never_said_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    store.commit(&Batch { sessions: vec![Arc::new(session(1))], ..Batch::default() }).await.unwrap();
    // What a power cut would leave: the files as they are, with the log not folded in.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let loaded = open(copy.path()).await.unwrap().load().await.unwrap();
    assert_eq!(format!("{:?}", loaded.sessions[0]), format!("{:?}", session(1)));
}

/// Red when the lock is not exclusive.
#[tokio::test]
async fn a_second_coordinator_is_kept_out_until_the_first_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await.unwrap();
    let error = open(dir.path()).await.err().expect("it is in use");
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    first.close().await;
    assert!(open(dir.path()).await.is_ok());
}

/// Red when NOTADB is an error like any other.
#[tokio::test]
async fn a_file_that_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coordinator.db");
    std::fs::write(&path, "this is no database, but somebody's only copy".repeat(100)).unwrap();
    let error = open(dir.path()).await.err().expect("it is no store");
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("this is no database"));
}

/// Not a promise, but a figure to look at: `cargo nextest run --run-ignored all commit_cost --no-capture`.
#[tokio::test]
#[ignore = "prints a measurement"]
async fn commit_cost() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let store = open(dir.path()).await.unwrap();
    let mut times = Vec::new();
    for number in 0..500 {
        let batch = Batch { sessions: vec![Arc::new(session(number))], ..Batch::default() };
        let begun = std::time::Instant::now();
        store.commit(&batch).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    println!("commit of one session: p50 {:?}, p99 {:?}", times[250], times[495]);
}

fn modes(dir: &Path) -> Vec<(String, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let mode = |file: std::fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        (name, file.metadata().unwrap().permissions().mode() & 0o777)
    };
    std::fs::read_dir(dir).unwrap().map(|file| mode(file.unwrap())).collect()
}

#[tokio::test]
async fn the_files_of_the_store_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    store.commit(&Batch { sessions: vec![Arc::new(session(1))], ..Batch::default() }).await.unwrap();
    let found = modes(dir.path());
    assert!(found.iter().any(|(name, _)| name == "coordinator.db-wal"), "{found:?}");
    assert!(found.iter().all(|(_, mode)| *mode == 0o600), "{found:?}");
}

#[tokio::test]
async fn files_that_an_earlier_version_left_open_to_all_are_closed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    store.commit(&Batch { sessions: vec![Arc::new(session(1))], ..Batch::default() }).await.unwrap();
    // As they lie after a crash: with the log beside the file.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        let to = copy.path().join(file.file_name());
        std::fs::copy(file.path(), &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    assert!(modes(copy.path()).len() > 1);
    let store = open(copy.path()).await.unwrap();
    assert_eq!(store.load().await.unwrap().sessions.len(), 1);
    let found = modes(copy.path());
    assert!(found.iter().all(|(_, mode)| *mode == 0o600), "{found:?}");
}

#[tokio::test]
async fn what_a_session_no_longer_holds_is_not_in_the_file_either() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let secret = "a-secret-that-must-not-stay".repeat(20);
    let with = |env: &str| {
        let mut session = session(1);
        session.spec =
            Arc::new(Spec { env: Labels::from([("S".into(), env.into())]), ..(*session.spec).clone() });
        Batch { sessions: vec![Arc::new(session)], ..Batch::default() }
    };
    store.commit(&with(&secret)).await.unwrap();
    store.commit(&with("")).await.unwrap();
    store.close().await;
    let bytes = std::fs::read(dir.path().join("coordinator.db")).unwrap();
    let needle = &secret.as_bytes()[..40];
    assert!(!bytes.windows(needle.len()).any(|window| window == needle));
}
