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
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::{SessionId, TaskId, v1};
use prost::Message;
use sqlx::{Connection, Row, SqliteConnection, migrate::Migrator, sqlite::SqliteRow};
use tokio::sync::Mutex;

use super::{
    Batch, Store, StoreError, TASKS_PER_SESSION, TaskRecord, file,
    identity_rows::{QuotaRow, TokenRow},
    record::{SessionRow, WorkerRow, micros, time},
    sums::{self, Or, insert},
};
use crate::fleet::{Loaded, RequestKey};

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
        let mut connection = file::open(path, &MIGRATIONS).await?;
        file::begin(&mut connection).await?;
        let filled = sums::fill_in(&mut connection).await;
        let filled = file::end(&mut connection, filled).await;
        let store = Self { path: path.to_owned(), connection: Mutex::new(Some(connection)) };
        filled.map_err(|error| store.named(error))?;
        Ok(store)
    }

    /// Without a look at what is there.
    #[cfg(test)]
    pub(super) fn over(connection: SqliteConnection, path: &Path) -> Self {
        Self { path: path.to_owned(), connection: Mutex::new(Some(connection)) }
    }

    /// Says which file it is that is damaged, or can't be read.
    fn named(&self, error: StoreError) -> StoreError {
        let path = self.path.display();
        match error {
            StoreError::Damaged(what) => StoreError::Damaged(format!("{path}: {what}")),
            StoreError::Failed(what) => StoreError::Failed(format!("{path}: {what}")),
            error @ StoreError::Locked(_) => error,
        }
    }
}

async fn load(connection: &mut SqliteConnection) -> Result<Loaded, StoreError> {
    let sessions: Vec<SessionRow> =
        sqlx::query_as("SELECT * FROM sessions").fetch_all(&mut *connection).await?;
    let workers: Vec<WorkerRow> = sqlx::query_as("SELECT * FROM workers").fetch_all(&mut *connection).await?;
    let keys: Vec<(String, Vec<u8>, String, i64)> =
        sqlx::query_as("SELECT key, body, session_id, created_at FROM request_keys")
            .fetch_all(&mut *connection)
            .await?;
    let lease: Option<(i64,)> =
        sqlx::query_as("SELECT promised FROM lease").fetch_optional(&mut *connection).await?;
    let quotas: Vec<QuotaRow> = sqlx::query_as("SELECT * FROM quotas").fetch_all(&mut *connection).await?;
    let tokens: Vec<TokenRow> =
        sqlx::query_as("SELECT * FROM tokens ORDER BY id").fetch_all(&mut *connection).await?;
    Ok(Loaded {
        quotas: read(quotas, QuotaRow::quota)?,
        tokens: read(tokens, TokenRow::token)?,
        promised_lease: lease.map(|(us,)| Duration::from_micros(us.max(0) as u64)),
        sessions: read(sessions, SessionRow::session)?,
        workers: read(workers, WorkerRow::worker)?,
        keys: read(keys, key_in)?,
    })
}

fn closed() -> StoreError {
    StoreError::Failed("the store is closed".to_owned())
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        let mut guard = self.connection.lock().await;
        let connection = guard.as_mut().ok_or_else(closed)?;
        load(connection).await.map_err(|error| self.named(error))
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
        let row = sqlx::query("SELECT * FROM tasks WHERE session_id = ? AND id = ?")
            .bind(session.to_string())
            .bind(task.to_string())
            .fetch_optional(connection)
            .await?;
        row.as_ref().map(task_in).transpose()
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
        let rows =
            sqlx::query("SELECT * FROM tasks WHERE session_id = ? AND id < ? ORDER BY id DESC LIMIT ?")
                .bind(session.to_string())
                .bind(before)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(connection)
                .await?;
        rows.iter().map(task_in).collect()
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
        insert(tx, Or::Replace, "sessions", SessionRow::of(session)?.fields()).await?;
    }
    for id in &batch.forget_sessions {
        for sql in ["DELETE FROM sessions WHERE id = ?", "DELETE FROM tasks WHERE session_id = ?"] {
            sqlx::query(sql).bind(id.to_string()).execute(&mut *tx).await?;
        }
    }
    for worker in &batch.workers {
        insert(tx, Or::Replace, "workers", WorkerRow::of(worker).fields()).await?;
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
    if let Some(lease) = batch.promised_lease {
        let micros = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
        insert(tx, Or::Replace, "lease", vec![("one", 1.into()), ("promised", micros.into())]).await?;
    }
    for (tenant, quota) in &batch.quotas {
        insert(tx, Or::Replace, "quotas", QuotaRow::of(tenant, quota).fields()).await?;
    }
    for token in &batch.tokens {
        insert(tx, Or::Replace, "tokens", TokenRow::of(token).fields()).await?;
    }
    for id in &batch.forget_tokens {
        sqlx::query("DELETE FROM tokens WHERE id = ?").bind(id.to_string()).execute(&mut *tx).await?;
    }
    save_tasks(tx, &batch.tasks).await
}

async fn save_key(tx: &mut SqliteConnection, key: &RequestKey) -> Result<(), StoreError> {
    let fields = vec![
        ("key", key.key.clone().into()),
        ("body", key.body.to_vec().into()),
        ("session_id", key.session.to_string().into()),
        ("created_at", micros(key.created_at).into()),
    ];
    insert(tx, Or::Replace, "request_keys", fields).await
}

/// Never over one that is there: a task has one end. Then the surplus of these sessions goes.
async fn save_tasks(tx: &mut SqliteConnection, tasks: &[TaskRecord]) -> Result<(), StoreError> {
    for record in tasks {
        let fields = vec![
            ("session_id", record.session.to_string().into()),
            ("id", record.task.to_string().into()),
            ("summary", record.summary.encode_to_vec().into()),
        ];
        insert(tx, Or::Ignore, "tasks", fields).await?;
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

fn task_in(row: &SqliteRow) -> Result<v1::Task, StoreError> {
    sums::check("tasks", row)?;
    let summary: Vec<u8> = row.try_get("summary")?;
    v1::Task::decode(&summary[..]).map_err(|e| StoreError::Damaged(format!("a task: {e}")))
}
