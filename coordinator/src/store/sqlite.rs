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
    fs::File,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use berth_proto::{SessionId, TaskId, v1};
use prost::Message;
use sqlx::{Connection, SqliteConnection, migrate::Migrator};
use tokio::sync::Mutex;

use super::{
    Batch, Store, StoreError, TASKS_PER_SESSION, TaskRecord, file,
    record::{SessionRow, WorkerRow, micros, time},
};
use crate::fleet::{Loaded, RequestKey, Session, Worker};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The SQLite store.
pub struct SqliteStore {
    path: PathBuf,
    /// `None` once closed.
    connection: Mutex<Option<SqliteConnection>>,
}

impl SqliteStore {
    /// Opens or makes the store at `path`. One that is damaged is refused, and left as it is.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = file::open(path, &MIGRATIONS).await?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(Some(connection)) })
    }

    /// Says which file it is that is damaged.
    fn named(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Damaged(what) => StoreError::Damaged(format!("{}: {what}", self.path.display())),
            error => error,
        }
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
            sessions: read(sessions, SessionRow::session).map_err(|error| self.named(error))?,
            workers: read(workers, WorkerRow::worker).map_err(|error| self.named(error))?,
            keys: read(keys, key_in).map_err(|error| self.named(error))?,
        })
    }

    async fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        file::begin(connection).await?;
        let written = write(connection, batch).await;
        file::end(connection, written).await
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

    async fn copy(&self) -> Result<File, StoreError> {
        let mut guard = self.connection.lock().await;
        file::copy(guard.as_mut().ok_or_else(closed)?, &self.path).await
    }

    async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}

fn read<R, T>(rows: Vec<R>, one: impl Fn(R) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
    rows.into_iter().map(one).collect()
}

async fn write(tx: &mut SqliteConnection, batch: &Batch) -> Result<(), StoreError> {
    for session in &batch.sessions {
        save_session(tx, session).await?;
    }
    for id in &batch.forget_sessions {
        for sql in ["DELETE FROM sessions WHERE id = ?", "DELETE FROM tasks WHERE session_id = ?"] {
            sqlx::query(sql).bind(id.to_string()).execute(&mut *tx).await?;
        }
    }
    for worker in &batch.workers {
        save_worker(tx, worker).await?;
    }
    for id in &batch.forget_workers {
        sqlx::query("DELETE FROM workers WHERE id = ?").bind(id.as_str()).execute(&mut *tx).await?;
    }
    for key in &batch.keys {
        save_key(tx, key).await?;
    }
    for key in &batch.forget_keys {
        sqlx::query("DELETE FROM request_keys WHERE key = ?").bind(key).execute(&mut *tx).await?;
    }
    save_tasks(tx, &batch.tasks).await
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
