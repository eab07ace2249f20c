//! Which checkpoints there are, which pieces they use, and which pieces the blob store has.
//!
//! A file of its own, beside the store of the fleet: a checkpoint of many pieces must not hold up the fleet's commits.
//! The two need no common transaction: a session's record names its newest checkpoint, and one that is gone is told.
//!
//! The order of things keeps it right through any crash: a piece's row comes after its blob, and goes before it. So a
//! row is a promise, and what a crash leaves is a blob without a row, which [`super::sweep`] finds.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    time::SystemTime,
};

use berth_checkpoint::Digest;
use berth_proto::{SessionId, domain::RestoreFrom, v1};
use prost::Message;
use sqlx::{Connection, SqliteConnection, migrate::Migrator};
use tokio::sync::Mutex;

use crate::{
    fleet::{Kept, Spec},
    store::{StoreError, file, micros, spec_in, spec_out, time},
};

static MIGRATIONS: Migrator = sqlx::migrate!("./catalog");

/// A checkpoint as it is kept.
#[derive(Clone, Debug)]
pub struct Record {
    pub shown: v1::Checkpoint,
    pub session: SessionId,
    pub spec: Spec,
    pub root: Digest,
    pub created_at: SystemTime,
    pub expires_at: Option<SystemTime>,
}

impl Record {
    /// As a session's record names it.
    pub fn kept(&self) -> Kept {
        let from = RestoreFrom { checkpoint: self.shown.id.clone(), root: self.root.0 };
        Kept { from, at: self.created_at }
    }
}

/// The catalog.
pub struct Catalog {
    /// `None`: in memory.
    path: Option<PathBuf>,
    connection: Mutex<SqliteConnection>,
}

type Row = (Vec<u8>, String, String, Vec<u8>, i64, Option<i64>);
/// Its time is not over; the sweep may not have seen it yet.
const VALID: &str = "(expires_at IS NULL OR expires_at > ?2)";
const COLUMNS: &str = "shown, session_id, spec, root, created_at, expires_at";

impl Catalog {
    /// Opens or makes it. `None`: in memory.
    pub async fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let connection = match path {
            Some(path) => file::open(path, &MIGRATIONS).await?,
            None => {
                let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
                MIGRATIONS
                    .run(&mut connection)
                    .await
                    .map_err(|e| StoreError::Damaged(format!("the catalog: {e}")))?;
                connection
            }
        };
        Ok(Self { path: path.map(Path::to_owned), connection: Mutex::new(connection) })
    }

    /// A copy of all that is committed, to be restored from: an open file that has no name.
    pub async fn copy(&self) -> Result<File, StoreError> {
        let path =
            self.path.as_deref().ok_or_else(|| StoreError::Failed("the catalog has no file".into()))?;
        file::copy(&mut *self.connection.lock().await, path).await
    }

    /// Who this catalog is.
    pub async fn owner(&self) -> Result<String, StoreError> {
        let mut connection = self.connection.lock().await;
        let (id,): (String,) = sqlx::query_as("SELECT id FROM owner").fetch_one(&mut *connection).await?;
        Ok(id)
    }

    /// Of these pieces, those that are not there. Those that are stay for a while.
    pub async fn missing(&self, digests: &[Digest], now: SystemTime) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let missing = touch(&mut connection, digests, now).await;
        file::end(&mut connection, missing).await
    }

    /// Of these pieces, those that have no row. Touches nothing.
    pub async fn unknown(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        let mut unknown = Vec::new();
        for digest in digests {
            let row: Option<(i64,)> = sqlx::query_as("SELECT id FROM pieces WHERE digest = ?")
                .bind(&digest.0[..])
                .fetch_optional(&mut *connection)
                .await?;
            if row.is_none() {
                unknown.push(*digest);
            }
        }
        Ok(unknown)
    }

    /// These are in the blob store now.
    pub async fn stored(&self, pieces: &[(Digest, u64)], now: SystemTime) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let kept = keep(&mut connection, pieces, now).await;
        file::end(&mut connection, kept).await
    }

    /// A piece is gone from the blob store, or is damaged there.
    pub async fn lost(&self, digest: Digest) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = "UPDATE pieces SET lost = 1 WHERE digest = ?";
        sqlx::query(sql).bind(&digest.0[..]).execute(&mut *connection).await?;
        Ok(())
    }

    /// Adds a checkpoint, if all of its pieces are there; else the first that is not.
    pub async fn add(
        &self,
        record: &Record,
        pieces: &BTreeSet<Digest>,
    ) -> Result<Option<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let lost = insert(&mut connection, record, pieces).await;
        if matches!(lost, Ok(Some(_))) {
            sqlx::query("ROLLBACK").execute(&mut *connection).await?;
            return lost;
        }
        file::end(&mut connection, lost).await
    }

    pub async fn get(&self, id: &str) -> Result<Option<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!("SELECT {COLUMNS} FROM checkpoints WHERE id = ?1 AND {VALID}");
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(micros(SystemTime::now()))
            .fetch_optional(&mut *connection)
            .await?;
        row.map(record).transpose()
    }

    /// Newest first, older than `before`. Ids grow with time.
    pub async fn list(
        &self,
        session: Option<SessionId>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!(
            "SELECT {COLUMNS} FROM checkpoints WHERE id < ?1 AND {VALID} AND (?3 IS NULL OR session_id = ?3)
             ORDER BY id DESC LIMIT ?4"
        );
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            // Behind every id, `g` comes after the last hex digit.
            .bind(before.unwrap_or("g"))
            .bind(micros(SystemTime::now()))
            .bind(session.map(|id| id.to_string()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        rows.into_iter().map(record).collect()
    }

    /// Forgets a checkpoint. False: there was none.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone =
            sqlx::query("DELETE FROM checkpoints WHERE id = ?").bind(id).execute(&mut *connection).await?;
        Ok(gone.rows_affected() > 0)
    }

    /// Forgets those whose time is over. Their ids.
    pub async fn expire(&self, now: SystemTime) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone: Vec<(String,)> =
            sqlx::query_as("DELETE FROM checkpoints WHERE expires_at <= ? RETURNING id")
                .bind(micros(now))
                .fetch_all(&mut *connection)
                .await?;
        Ok(gone.into_iter().map(|(id,)| id).collect())
    }

    /// Forgets pieces that no checkpoint uses and nobody has asked for since. They may be removed from the blob store.
    pub async fn release(&self, untouched_since: SystemTime, limit: u32) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone: Vec<(Vec<u8>,)> = sqlx::query_as(
            "DELETE FROM pieces WHERE id IN (
                 SELECT id FROM pieces WHERE touched_at < ?
                 AND NOT EXISTS (SELECT 1 FROM uses WHERE piece_id = pieces.id) LIMIT ?)
             RETURNING digest",
        )
        .bind(micros(untouched_since))
        .bind(limit)
        .fetch_all(&mut *connection)
        .await?;
        gone.into_iter().map(|(digest,)| digest_in(&digest)).collect()
    }

    /// Checkpoints, pieces, and the pieces' compressed bytes.
    pub async fn totals(&self) -> Result<(u64, u64, u64), StoreError> {
        let mut connection = self.connection.lock().await;
        let (checkpoints, pieces, bytes): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM checkpoints), count(*), coalesce(sum(size), 0) FROM pieces",
        )
        .fetch_one(&mut *connection)
        .await?;
        Ok((checkpoints as u64, pieces as u64, bytes as u64))
    }
}

async fn touch(
    tx: &mut SqliteConnection,
    digests: &[Digest],
    now: SystemTime,
) -> Result<Vec<Digest>, StoreError> {
    let mut missing = Vec::new();
    for digest in digests {
        let touched =
            sqlx::query("UPDATE pieces SET touched_at = max(touched_at, ?) WHERE digest = ? AND lost = 0")
                .bind(micros(now))
                .bind(&digest.0[..])
                .execute(&mut *tx)
                .await?;
        if touched.rows_affected() == 0 {
            missing.push(*digest);
        }
    }
    Ok(missing)
}

async fn keep(
    tx: &mut SqliteConnection,
    pieces: &[(Digest, u64)],
    now: SystemTime,
) -> Result<(), StoreError> {
    for (digest, size) in pieces {
        sqlx::query(
            "INSERT INTO pieces (digest, size, touched_at) VALUES (?1, ?2, ?3)
             ON CONFLICT (digest) DO UPDATE SET touched_at = max(touched_at, ?3), size = ?2, lost = 0",
        )
        .bind(&digest.0[..])
        .bind(i64::try_from(*size).unwrap_or(i64::MAX))
        .bind(micros(now))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// The first piece that is not there, if one is not.
async fn insert(
    tx: &mut SqliteConnection,
    record: &Record,
    pieces: &BTreeSet<Digest>,
) -> Result<Option<Digest>, StoreError> {
    sqlx::query(
        "INSERT INTO checkpoints (id, shown, session_id, spec, root, created_at, expires_at)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&record.shown.id)
    .bind(record.shown.encode_to_vec())
    .bind(record.session.to_string())
    .bind(spec_out(&record.spec)?)
    .bind(&record.root.0[..])
    .bind(micros(record.created_at))
    .bind(record.expires_at.map(micros))
    .execute(&mut *tx)
    .await?;
    for digest in pieces {
        let used = sqlx::query("INSERT INTO uses SELECT ?, id FROM pieces WHERE digest = ? AND lost = 0")
            .bind(&record.shown.id)
            .bind(&digest.0[..])
            .execute(&mut *tx)
            .await?;
        if used.rows_affected() == 0 {
            return Ok(Some(*digest));
        }
    }
    Ok(None)
}

fn digest_in(bytes: &[u8]) -> Result<Digest, StoreError> {
    Digest::from_wire(bytes).map_err(|e| StoreError::Damaged(format!("the catalog: {e}")))
}

fn record((shown, session, spec, root, created_at, expires_at): Row) -> Result<Record, StoreError> {
    let damaged = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::Damaged(format!("the catalog: {what}: {error}"))
    };
    Ok(Record {
        shown: v1::Checkpoint::decode(&shown[..]).map_err(|e| damaged("a checkpoint", &e))?,
        session: session.parse().map_err(|e: berth_proto::Error| damaged("a session's id", &e))?,
        spec: spec_in(&spec)?,
        root: digest_in(&root)?,
        created_at: time(created_at),
        expires_at: expires_at.map(time),
    })
}
