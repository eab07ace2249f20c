//! The store on SQLite: one file, one connection, one writer.
//!
//! WAL with `synchronous=FULL`: a commit is on the disk when it returns, so an epoch that a
//! worker has heard of is never given twice, not even after a power cut. The price, measured
//! on a 2-core VM with ext4 (test `commit_cost`): a commit of one session takes 0.43–0.48 ms
//! at the median with FULL and 0.12 ms with NORMAL. A create needs two; the doubt costs more.
//!
//! `locking_mode=EXCLUSIVE` is the lock against a second coordinator: SQLite holds it for as
//! long as the connection lives, and the kernel lets go of it with the process, however that
//! ends. Rejected: a lock file of our own, which can outlive its owner.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    str::FromStr,
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::{SessionId, TaskId, v1};
use prost::Message;
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous},
};
use tokio::sync::Mutex;

use super::{
    Batch, Store, StoreError, TASKS_PER_SESSION, TaskRecord,
    record::{SessionRow, WorkerRow, micros, time},
};
use crate::fleet::{Loaded, RequestKey, Session, Worker};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// An earlier coordinator that is just ending gets this long to let go.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// The SQLite store.
pub struct SqliteStore {
    /// `None` once closed.
    connection: Mutex<Option<SqliteConnection>>,
}

impl SqliteStore {
    /// Opens or makes the store at `path`.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let failed = |error: sqlx::Error| failure(&shown, error);
        keep_private(path).map_err(|error| StoreError::Failed(format!("{shown}: {error}")))?;
        let options = SqliteConnectOptions::from_str("sqlite::memory:")
            .map_err(failed)?
            .in_memory(false)
            .shared_cache(false)
            .filename(path)
            .create_if_missing(true)
            .locking_mode(SqliteLockingMode::Exclusive)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // What is deleted is overwritten: an env that was emptied is gone from the file.
            .pragma("secure_delete", "ON")
            .busy_timeout(LOCK_WAIT)
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(failed)?;
        // The lock is only taken by a write.
        sqlx::query("BEGIN EXCLUSIVE").execute(&mut connection).await.map_err(failed)?;
        sqlx::query("COMMIT").execute(&mut connection).await.map_err(failed)?;
        MIGRATIONS.run(&mut connection).await.map_err(|e| StoreError::Damaged(format!("{shown}: {e}")))?;
        Ok(Self { connection: Mutex::new(Some(connection)) })
    }
}

/// The store holds the env of live sessions: its files are for their owner alone. SQLite
/// gives its log and index the mode of the database, so that one must be right before it is
/// opened; what an earlier version left laxer is put right.
pub(crate) fn keep_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for end in ["", "-wal", "-shm", "-journal"] {
        let mut file = path.as_os_str().to_owned();
        file.push(end);
        match fs::set_permissions(&file, fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn failure(path: &str, error: sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|e| e.code()).map(|c| c.into_owned()).unwrap_or_default();
    // SQLite's primary result codes: the low byte. BUSY 5, LOCKED 6, CORRUPT 11, NOTADB 26.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        5 | 6 => StoreError::Locked(path.to_owned()),
        11 | 26 => StoreError::Damaged(format!("{path}: {error}")),
        _ => StoreError::Failed(format!("{path}: {error}")),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        failure("(open)", error)
    }
}

fn closed() -> StoreError {
    StoreError::Failed("the store is closed".to_owned())
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        let sessions: Vec<SessionRow> =
            sqlx::query_as("SELECT * FROM sessions").fetch_all(&mut *connection).await?;
        let workers: Vec<WorkerRow> =
            sqlx::query_as("SELECT * FROM workers").fetch_all(&mut *connection).await?;
        let keys: Vec<(String, Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT key, body, session_id, created_at FROM request_keys")
                .fetch_all(&mut *connection)
                .await?;
        Ok(Loaded {
            sessions: sessions.into_iter().map(SessionRow::session).collect::<Result<_, _>>()?,
            workers: workers.into_iter().map(WorkerRow::worker).collect::<Result<_, _>>()?,
            keys: keys.into_iter().map(key_in).collect::<Result<_, _>>()?,
        })
    }

    async fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        for session in &batch.sessions {
            save_session(&mut tx, session).await?;
        }
        for id in &batch.forget_sessions {
            for sql in ["DELETE FROM sessions WHERE id = ?", "DELETE FROM tasks WHERE session_id = ?"] {
                sqlx::query(sql).bind(id.to_string()).execute(&mut *tx).await?;
            }
        }
        for worker in &batch.workers {
            save_worker(&mut tx, worker).await?;
        }
        for id in &batch.forget_workers {
            sqlx::query("DELETE FROM workers WHERE id = ?").bind(id.as_str()).execute(&mut *tx).await?;
        }
        for key in &batch.keys {
            save_key(&mut tx, key).await?;
        }
        for key in &batch.forget_keys {
            sqlx::query("DELETE FROM request_keys WHERE key = ?").bind(key).execute(&mut *tx).await?;
        }
        save_tasks(&mut tx, &batch.tasks).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn task(&self, session: SessionId, task: TaskId) -> Result<Option<v1::Task>, StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        let row: Option<(Vec<u8>,)> =
            sqlx::query_as("SELECT summary FROM tasks WHERE session_id = ? AND id = ?")
                .bind(session.to_string())
                .bind(task.to_string())
                .fetch_optional(connection)
                .await?;
        row.map(task_in).transpose()
    }

    async fn tasks(
        &self,
        session: SessionId,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<v1::Task>, StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        // Behind every id, `g` comes after the last hex digit.
        let before = before.map_or("g".to_owned(), |id| id.to_string());
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(
            "SELECT summary FROM tasks WHERE session_id = ? AND id < ? ORDER BY id DESC LIMIT ?",
        )
        .bind(session.to_string())
        .bind(before)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
        rows.into_iter().map(task_in).collect()
    }

    async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}

async fn save_session(tx: &mut SqliteConnection, session: &Session) -> Result<(), StoreError> {
    let row = SessionRow::of(session)?;
    sqlx::query(
        "INSERT OR REPLACE INTO sessions (id, state, epoch, worker_id, backend, end_reason, message, labels, spec,
         idle_timeout, created_at, ready_at, ended_at, expires_at, checkpoint, recovered)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(row.id)
    .bind(row.state)
    .bind(row.epoch)
    .bind(row.worker_id)
    .bind(row.backend)
    .bind(row.end_reason)
    .bind(row.message)
    .bind(row.labels)
    .bind(row.spec)
    .bind(row.idle_timeout)
    .bind(row.created_at)
    .bind(row.ready_at)
    .bind(row.ended_at)
    .bind(row.expires_at)
    .bind(row.checkpoint)
    .bind(row.recovered)
    .execute(tx)
    .await?;
    Ok(())
}

async fn save_worker(tx: &mut SqliteConnection, worker: &Worker) -> Result<(), StoreError> {
    let row = WorkerRow::of(worker);
    sqlx::query(
        "INSERT OR REPLACE INTO workers (id, incarnation, scheduling, drain_until) VALUES (?, ?, ?, ?)",
    )
    .bind(row.id)
    .bind(row.incarnation)
    .bind(row.scheduling)
    .bind(row.drain_until)
    .execute(tx)
    .await?;
    Ok(())
}

async fn save_key(tx: &mut SqliteConnection, key: &RequestKey) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT OR REPLACE INTO request_keys (key, body, session_id, created_at) VALUES (?, ?, ?, ?)",
    )
    .bind(&key.key)
    .bind(&key.body[..])
    .bind(key.session.to_string())
    .bind(micros(key.created_at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Never over one that is there: a task has one end. Then the surplus of these sessions goes.
async fn save_tasks(tx: &mut SqliteConnection, tasks: &[TaskRecord]) -> Result<(), StoreError> {
    for record in tasks {
        sqlx::query("INSERT OR IGNORE INTO tasks (session_id, id, summary) VALUES (?, ?, ?)")
            .bind(record.session.to_string())
            .bind(record.task.to_string())
            .bind(record.summary.encode_to_vec())
            .execute(&mut *tx)
            .await?;
    }
    let sessions: std::collections::BTreeSet<_> = tasks.iter().map(|t| t.session).collect();
    for session in sessions {
        sqlx::query(
            "DELETE FROM tasks WHERE session_id = ?1 AND id <
             (SELECT id FROM tasks WHERE session_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )
        .bind(session.to_string())
        .bind(TASKS_PER_SESSION as i64 - 1)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

fn key_in(
    (key, body, session, created_at): (String, Vec<u8>, String, i64),
) -> Result<RequestKey, StoreError> {
    Ok(RequestKey {
        key,
        body: body.try_into().map_err(|_| StoreError::Damaged("a request key's hash".into()))?,
        session: session.parse().map_err(|e| StoreError::Damaged(format!("a session's id: {e}")))?,
        created_at: time(created_at),
    })
}

fn task_in((summary,): (Vec<u8>,)) -> Result<v1::Task, StoreError> {
    v1::Task::decode(&summary[..]).map_err(|e| StoreError::Damaged(format!("a task: {e}")))
}
