//! What becomes of a store whose files are damaged, whose disk is full, or whose process is killed: what was told is
//! there, up to a point, or the store is refused and left as it is. Never less in silence.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    sqlite::SqliteStore,
    tests::{open, quota, session, token},
    *,
};

const COMMITS: u128 = 60;

async fn commit(store: &SqliteStore, number: u128) -> Result<(), StoreError> {
    store.commit(&Batch { sessions: vec![Arc::new(session(number))], ..Batch::default() }).await
}

type Files = BTreeMap<String, Vec<u8>>;

fn files(dir: &Path) -> Files {
    let read = |name: &str| Some((name.to_owned(), fs::read(dir.join(name)).ok()?));
    ["coordinator.db", "coordinator.db-wal"].into_iter().filter_map(read).collect()
}

/// The files of a store as a power cut leaves them: half of the commits are in the database, half in its log.
async fn made() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let identity = Batch { tokens: vec![Arc::new(token(1))], quotas: vec![quota()], ..Batch::default() };
    store.commit(&identity).await.unwrap();
    for number in 0..COMMITS / 2 {
        commit(&store, number).await.unwrap();
    }
    store.close().await;
    let store = open(dir.path()).await.unwrap();
    for number in COMMITS / 2..COMMITS {
        commit(&store, number).await.unwrap();
    }
    files(dir.path())
}

/// Opens a copy: how many commits are there, or `None` if it was refused. Whatever is there is a beginning, and what was
/// refused is as it was.
async fn opened(files_in: &Files, what: &str) -> Option<u128> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files_in {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let loaded = match open(dir.path()).await {
        Ok(store) => store.load().await,
        Err(error) => {
            assert!(files(dir.path()) == *files_in, "{what}: it was refused and changed: {error}");
            Err(error)
        }
    };
    match loaded {
        Ok(loaded) => {
            let found: Vec<_> = loaded.sessions.iter().map(|s| format!("{s:?}")).collect();
            let wanted: Vec<_> = (0..found.len() as u128).map(|n| format!("{:?}", session(n))).collect();
            assert!(found == wanted, "{what}: a hole in the middle, or another value");
            Some(found.len() as u128)
        }
        Err(error) => {
            assert!(error.to_string().contains("coordinator.db"), "{what}: {error} names no file");
            None
        }
    }
}

fn with(files: &Files, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = files.clone();
    change(files.get_mut(name).expect("it is there"));
    files
}

/// Red when a torn tail is refused.
#[tokio::test]
async fn a_cut_log_keeps_a_beginning() {
    let files = made().await;
    assert_eq!(opened(&files, "nothing").await, Some(COMMITS));
    let length = files["coordinator.db-wal"].len();
    for cut in (0..length).step_by(length / 40) {
        let cut_off = with(&files, "coordinator.db-wal", |wal| wal.truncate(cut));
        let found = opened(&cut_off, &format!("log cut at {cut}")).await;
        assert!(found.is_some_and(|n| (COMMITS / 2..COMMITS).contains(&n)), "log cut at {cut}: {found:?}");
    }
}

/// Red when nobody looks at the log (`check_log`), or a torn tail is refused.
#[tokio::test]
async fn a_log_that_has_rotted_is_refused_and_a_torn_tail_is_dropped() {
    let files = made().await;
    let length = files["coordinator.db-wal"].len();
    let mut dropped = 0;
    for at in (0..length).step_by(length / 60) {
        let flipped = with(&files, "coordinator.db-wal", |wal| wal[at] ^= 0x10);
        // Only in the last commits can it be taken for one that was under way.
        let found = opened(&flipped, &format!("log flipped at {at}")).await;
        assert!(found.is_none_or(|n| n >= COMMITS - 3), "log flipped at {at}: {found:?}");
        dropped += u32::from(found.is_some());
    }
    assert!(dropped > 0, "the tail is never taken for torn");
}

/// Bits that flip inside values, where they leave the file's structure whole.
/// Red when rows are not summed up, or when nobody compares the sums before the start.
#[tokio::test]
async fn a_bit_that_flips_inside_a_value_is_found() {
    let files = made().await;
    let db = &files["coordinator.db"];
    // The message, a template's name in the JSON, the state, the labels, a checkpoint's id: as they stand in some row.
    for needle in
        ["words", "\"base\"", "SESSION_STATE_READY", "{\"l\":\"v\"}", "0123", "\"patient\":true", "ci \"ü"]
    {
        let needle = needle.as_bytes();
        let at = db.windows(needle.len()).position(|window| window == needle).expect("it is in the file");
        for (offset, bit) in [(0, 0x01), (needle.len() / 2, 0x04), (needle.len() - 1, 0x02)] {
            let flipped = with(&files, "coordinator.db", |db| db[at + offset] ^= bit);
            let what = format!("{:?} flipped at {offset}", String::from_utf8_lossy(needle));
            assert_eq!(opened(&flipped, &what).await, None, "{what}: it was taken as it is");
        }
    }
    // Wherever it is: refused, or nothing of it was in use.
    // The first pages are the tables' names and columns, and what has been done to them.
    for at in (0..8192).step_by(67).chain((8192..db.len()).step_by(db.len() / 100)) {
        let flipped = with(&files, "coordinator.db", |db| db[at] ^= 0x02);
        let found = opened(&flipped, &format!("flipped at {at}")).await;
        assert!(found.is_none_or(|n| n == COMMITS), "flipped at {at}: {found:?}");
    }
}

async fn raw(dir: &Path) -> sqlx::SqliteConnection {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
    SqliteConnectOptions::new().filename(dir.join("coordinator.db")).connect().await.unwrap()
}

/// Red when they stay without; and when a sum is not compared.
#[tokio::test]
async fn rows_of_before_there_were_sums_get_theirs() {
    use sqlx::Connection;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit(&store, 1).await.unwrap();
    let worker = Worker::from_record(
        "w".parse().unwrap(),
        berth_proto::Incarnation(4),
        crate::fleet::Scheduling::Active,
    );
    store.commit(&Batch { workers: vec![Arc::new(worker)], ..Batch::default() }).await.unwrap();
    store.close().await;
    let change = async |sql: &'static str| {
        let mut connection = raw(dir.path()).await;
        sqlx::query(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    change("UPDATE sessions SET sum = NULL").await;
    change("UPDATE workers SET sum = NULL").await;
    open(dir.path()).await.expect("taken as they are").close().await;
    open(dir.path()).await.expect("their sums are right").close().await;
    change("UPDATE sessions SET epoch = epoch - 1").await;
    let error = open(dir.path()).await.err().expect("an epoch that was never written");
    assert!(error.to_string().contains("of sessions is not as it was written"), "{error}");
    change("UPDATE sessions SET epoch = epoch + 1").await;
    change("UPDATE workers SET incarnation = 3").await;
    assert!(open(dir.path()).await.is_err());
}

/// There may be very many, so they are looked at when they are read, too. Red when tasks have no sums, when those of a
/// small file are not looked at before the start, or no task's when it is read.
#[tokio::test]
async fn a_task_that_has_changed_on_the_disk_is_not_told() {
    use sqlx::Connection;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let (session, task) = (SessionId::from_u128(1), TaskId::from_u128(2));
    let summary = Arc::new(v1::Task { id: task.to_string(), pid: 77, ..Default::default() });
    store
        .commit(&Batch { tasks: vec![TaskRecord { session, task, summary }], ..Batch::default() })
        .await
        .unwrap();
    assert_eq!(store.task(session, task).await.unwrap().map(|task| task.pid), Some(77));
    store.close().await;
    let mut connection = raw(dir.path()).await;
    let other =
        prost::Message::encode_to_vec(&v1::Task { id: task.to_string(), pid: 78, ..Default::default() });
    sqlx::query("UPDATE tasks SET summary = ?").bind(other).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let error = open(dir.path()).await.err().expect("a small file is looked at whole");
    assert!(error.to_string().contains("of tasks is not as it was written"), "{error}");
    // In a large one they are not read before the start.
    let connection =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}", dir.path().join("coordinator.db").display()));
    let store = SqliteStore::over(connection.await.unwrap(), dir.path());
    for told in [store.task(session, task).await.map(drop), store.tasks(session, None, 9).await.map(drop)] {
        assert!(matches!(told, Err(StoreError::Damaged(_))), "{told:?}");
    }
}

/// Red when nobody looks before the start, when the look can write, does not ask for the integrity, or takes a missing
/// or empty file for none.
#[tokio::test]
async fn a_damaged_database_is_refused_or_whole() {
    let files = made().await;
    let length = files["coordinator.db"].len();
    for cut in (0..length).step_by(length / 20) {
        let found =
            opened(&with(&files, "coordinator.db", |db| db.truncate(cut)), &format!("cut at {cut}")).await;
        assert!(found.is_none_or(|n| n == COMMITS), "cut at {cut}: {found:?}");
    }
    for at in (0..100).chain((100..length).step_by(length / 100)) {
        let flipped = with(&files, "coordinator.db", |db| db[at] ^= 0x10);
        let found = opened(&flipped, &format!("flipped at {at}")).await;
        assert!(found.is_none_or(|n| n == COMMITS), "flipped at {at}: {found:?}");
    }
    for page in (0..length).step_by(4096) {
        let garbage = with(&files, "coordinator.db", |db| db[page..page + 4096].fill(0xa5));
        let found = opened(&garbage, &format!("garbage at {page}")).await;
        assert!(found.is_none_or(|n| n == COMMITS), "garbage at {page}: {found:?}");
    }
    let mut alone = files.clone();
    alone.remove("coordinator.db");
    assert_eq!(opened(&alone, "the database is gone").await, None);
}

/// Red (it does not end) when a commit that failed is told as done.
#[tokio::test]
async fn a_full_disk_refuses_commits_and_no_more() {
    let test = "a_full_disk_refuses_commits";
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        Command::new(args[0]).args(&args[1..]).arg(dir.path()).status().is_ok_and(|status| status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]) {
        eprintln!("skipped {test}: needs to mount a tmpfs");
        return;
    }
    let filler = dir.path().join("filler");
    let store = open(dir.path()).await.unwrap();
    commit(&store, 0).await.unwrap();
    let _ = fs::write(&filler, vec![1; 2 << 20]);
    let mut told = 1;
    let error = loop {
        match commit(&store, told).await {
            Ok(()) => told += 1,
            Err(error) => break error,
        }
    };
    let again = commit(&store, told).await;
    let read = store.load().await.map(|loaded| loaded.sessions.len());
    fs::remove_file(&filler).unwrap();
    let after = commit(&store, told).await;
    let written = store.load().await.map(|loaded| loaded.sessions.len());
    store.close().await;
    let reopened = open(dir.path()).await.unwrap();
    let found = reopened.load().await.unwrap().sessions.len();
    reopened.close().await;
    assert!(mount(&["umount"]), "it stays mounted");
    assert!(matches!(&error, StoreError::Failed(why) if why.contains("full")), "{error}");
    assert!(again.is_err());
    assert_eq!(read.unwrap(), told as usize);
    after.unwrap();
    assert_eq!((written.unwrap(), found), (told as usize + 1, told as usize + 1));
}

/// Red when a commit returns before its COMMIT.
#[tokio::test]
async fn what_was_told_survives_kills_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = 0;
    for round in 0..crate::test_scale::proptests(20).cases {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::damage_tests::child_that_commits", "--ignored", "--nocapture"])
            .env("TEST_STORE_DIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let until = rand::random_range(1..60);
        for line in lines.by_ref().map_while(Result::ok).filter(|line| line.contains("told ")).take(until) {
            told = line.split("told ").nth(1).unwrap().parse::<u128>().unwrap() + 1;
        }
        tokio::time::sleep(std::time::Duration::from_micros(rand::random_range(0..3000))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok).filter(|line| line.contains("told ")) {
            told = line.split("told ").nth(1).unwrap().parse::<u128>().map_or(told, |n| told.max(n + 1));
        }
        let store = open(dir.path()).await.unwrap();
        let found: Vec<_> = store.load().await.unwrap().sessions.iter().map(|s| s.id).collect();
        store.close().await;
        let wanted: Vec<_> = (0..found.len() as u128).map(SessionId::from_u128).collect();
        assert_eq!(found, wanted, "round {round}: a hole");
        // One more may be there that it did not come to tell.
        assert!((told..=told + 1).contains(&(found.len() as u128)), "round {round}: {told}, {}", found.len());
        told = found.len() as u128;
    }
    assert!(told > 0);
}

/// Not a test: what the one above kills.
#[tokio::test]
#[ignore = "is a part of another test"]
async fn child_that_commits() {
    let Some(dir) = std::env::var_os("TEST_STORE_DIR") else { return };
    let store = open(Path::new(&dir)).await.unwrap();
    let from = store.load().await.unwrap().sessions.len() as u128;
    for number in from.. {
        commit(&store, number).await.unwrap();
        println!("told {number}");
    }
}
