//! Which checkpoints there are, which pieces they use, and which pieces the blob store has.
//!
//! A file of its own, beside the store of the fleet: a checkpoint of many pieces must not hold up the fleet's commits.
//! The two need no common transaction: a session's record names its newest checkpoint, and one that is gone is told.
//!
//! The order of things keeps it right through any crash: a piece's row comes after its blob, and goes before it. So a
//! row is a promise, and what a crash leaves is a blob without a row, which [`super::sweep`] finds.

mod artifacts;
mod pieces;

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_checkpoint::Digest;
use berth_proto::{SessionId, convert::time_out, domain::RestoreFrom, v1};
use prost::Message;
use sqlx::{Connection, SqliteConnection, migrate::Migrator};
use tokio::sync::Mutex;

use super::steady::Steady;
use crate::{
    fleet::{Kept, Spec},
    store::{StoreError, file, micros, spec_in, spec_out, time},
    tenant::Sight,
};

pub use artifacts::{Added, Known, NewArtifact, Room};

static MIGRATIONS: Migrator = sqlx::migrate!("./catalog");

/// A checkpoint as it is kept.
#[derive(Clone, Debug)]
pub struct Record {
    pub shown: v1::Checkpoint,
    pub session: SessionId,
    pub spec: Spec,
    pub root: Digest,
    /// For people.
    pub created_at: SystemTime,
    /// By the catalog's own time ([`Catalog::now`]).
    pub expires_at: Option<SystemTime>,
    /// A parked session has its files in this one alone, or had lately.
    pub held: bool,
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
    steady: Steady,
}

type Row = (Vec<u8>, String, String, Vec<u8>, i64, Option<i64>, bool);
/// Its time is not over; the sweep may not have seen it yet.
const VALID: &str = "(expires_at IS NULL OR expires_at > ?2)";
/// Whose it must be, if anybody's.
const SEEN: &str = "(?3 IS NULL OR tenant = ?3)";
const COLUMNS: &str = "shown, session_id, spec, root, created_at, expires_at, held";

impl Catalog {
    /// Opens or makes it. `None`: in memory.
    pub async fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let mut connection = match path {
            Some(path) => file::open(path, &MIGRATIONS).await?,
            None => file::in_memory(&MIGRATIONS).await?,
        };
        let noted: Option<(i64,)> =
            sqlx::query_as("SELECT at FROM clock").fetch_optional(&mut connection).await?;
        let steady = Steady::start(berth_proto::world::now(), noted.map(|(at,)| time(at)));
        Ok(Self { path: path.map(Path::to_owned), connection: Mutex::new(connection), steady })
    }

    /// With a clock of the caller's.
    #[cfg(test)]
    pub fn with_clock(self, steady: Steady) -> Self {
        Self { steady, ..self }
    }

    /// The time by which checkpoints are kept.
    pub fn now(&self) -> SystemTime {
        self.steady.now()
    }

    /// Notes it for the next process.
    pub async fn note_time(&self) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        sqlx::query("INSERT OR REPLACE INTO clock (one, at) VALUES (1, ?)")
            .bind(micros(self.now()))
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// A copy of all that is committed, to be restored from: an open file that has no name.
    pub async fn copy(&self) -> Result<File, StoreError> {
        let path =
            self.path.as_deref().ok_or_else(|| StoreError::Failed("the catalog has no file".into()))?;
        file::copy(&mut *self.connection.lock().await, path).await
    }

    /// Lets go of it. When this returns, all is in the one file.
    pub(crate) async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.into_inner().close().await?)
    }

    /// Who this catalog is.
    pub async fn owner(&self) -> Result<String, StoreError> {
        let mut connection = self.connection.lock().await;
        let (id,): (String,) = sqlx::query_as("SELECT id FROM owner").fetch_one(&mut *connection).await?;
        Ok(id)
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

    /// The checkpoint of this id, if this sight covers it.
    pub async fn get(&self, by: &Sight, id: &str) -> Result<Option<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!("SELECT {COLUMNS} FROM checkpoints WHERE id = ?1 AND {VALID} AND {SEEN}");
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(micros(self.now()))
            .bind(tenant(by))
            .fetch_optional(&mut *connection)
            .await?;
        row.map(record).transpose()
    }

    /// Newest first, older than `before`, of those that this sight covers. Ids grow with time.
    pub async fn list(
        &self,
        by: &Sight,
        session: Option<SessionId>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!(
            "SELECT {COLUMNS} FROM checkpoints WHERE id < ?1 AND {VALID} AND {SEEN}
             AND (?4 IS NULL OR session_id = ?4) ORDER BY id DESC LIMIT ?5"
        );
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            // Behind every id, `g` comes after the last hex digit.
            .bind(before.unwrap_or("g"))
            .bind(micros(self.now()))
            .bind(tenant(by))
            .bind(session.map(|id| id.to_string()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        rows.into_iter().map(record).collect()
    }

    /// All of a session, the newest first, in the order in which they were taken.
    pub async fn of_session(&self, session: SessionId) -> Result<Vec<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!(
            "SELECT {COLUMNS} FROM checkpoints WHERE session_id = ?1 AND {VALID} ORDER BY number DESC"
        );
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(session.to_string())
            .bind(micros(self.now()))
            .fetch_all(&mut *connection)
            .await?;
        rows.into_iter().map(record).collect()
    }

    /// The next older checkpoint of the same session of which no piece is known to be lost. `of`: the session, should
    /// the catalog not know this one any more.
    pub async fn older(&self, than: &str, of: Option<SessionId>) -> Result<Option<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!(
            "SELECT {COLUMNS} FROM checkpoints WHERE {VALID} AND id <> ?1
             AND session_id = coalesce((SELECT session_id FROM checkpoints WHERE id = ?1), ?3)
             AND number < coalesce((SELECT number FROM checkpoints WHERE id = ?1), 9223372036854775807)
             AND NOT EXISTS (SELECT 1 FROM uses JOIN pieces ON pieces.id = piece_id
                             WHERE checkpoint_id = checkpoints.id AND lost = 1)
             ORDER BY number DESC LIMIT 1"
        );
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(than)
            .bind(micros(self.now()))
            .bind(of.map(|id| id.to_string()))
            .fetch_optional(&mut *connection)
            .await?;
        row.map(record).transpose()
    }

    /// Forgets a checkpoint. False: there was none.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone =
            sqlx::query("DELETE FROM checkpoints WHERE id = ?").bind(id).execute(&mut *connection).await?;
        Ok(gone.rows_affected() > 0)
    }

    /// Those that are held.
    pub async fn held(&self) -> Result<Vec<Record>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!("SELECT {COLUMNS} FROM checkpoints WHERE held = 1");
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
        rows.into_iter().map(record).collect()
    }

    /// Holds one, whatever was said of its time, or lets it go for so much longer. One that is gone is no error.
    pub async fn hold(&self, record: &Record, keep: Option<Duration>) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        let shown_until = keep.map(|keep| time_out(berth_proto::world::now() + keep));
        let shown = v1::Checkpoint { expires_at: shown_until, ..record.shown.clone() };
        sqlx::query("UPDATE checkpoints SET held = ?, expires_at = ?, shown = ? WHERE id = ?")
            .bind(keep.is_none())
            .bind(keep.map(|keep| micros(self.now() + keep)))
            .bind(shown.encode_to_vec())
            .bind(&record.shown.id)
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// Those whose time is over.
    pub async fn expired(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone: Vec<(String,)> =
            sqlx::query_as("SELECT id FROM checkpoints WHERE expires_at <= ? AND held = 0")
                .bind(micros(self.now()))
                .fetch_all(&mut *connection)
                .await?;
        Ok(gone.into_iter().map(|(id,)| id).collect())
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

/// The first piece that is not there, if one is not.
async fn insert(
    tx: &mut SqliteConnection,
    record: &Record,
    pieces: &BTreeSet<Digest>,
) -> Result<Option<Digest>, StoreError> {
    sqlx::query(
        "INSERT INTO checkpoints (id, shown, session_id, spec, root, created_at, expires_at, held, tenant, number)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
                 (SELECT coalesce(max(number), 0) + 1 FROM checkpoints WHERE session_id = ?3))",
    )
    .bind(&record.shown.id)
    .bind(record.shown.encode_to_vec())
    .bind(record.session.to_string())
    .bind(spec_out(&record.spec)?)
    .bind(&record.root.0[..])
    .bind(micros(record.created_at))
    .bind(record.expires_at.map(micros))
    .bind(record.held)
    .bind(record.spec.tenant.as_str())
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

fn tenant(by: &Sight) -> Option<&str> {
    match by {
        Sight::All => None,
        Sight::Of(tenant) => Some(tenant.as_str()),
    }
}

fn digest_in(bytes: &[u8]) -> Result<Digest, StoreError> {
    Digest::from_wire(bytes).map_err(|e| StoreError::Damaged(format!("the catalog: {e}")))
}

fn record((shown, session, spec, root, created_at, expires_at, held): Row) -> Result<Record, StoreError> {
    let damaged = |what: &str, error: &dyn std::fmt::Display| {
        StoreError::Damaged(format!("the catalog: {what}: {error}"))
    };
    let spec = spec_in(&spec)?;
    let shown = v1::Checkpoint::decode(&shown[..]).map_err(|e| damaged("a checkpoint", &e))?;
    Ok(Record {
        // One of before that was told does not say it itself.
        shown: v1::Checkpoint { tenant: spec.tenant.to_string(), ..shown },
        session: session.parse().map_err(|e: berth_proto::Error| damaged("a session's id", &e))?,
        spec,
        root: digest_in(&root)?,
        created_at: time(created_at),
        expires_at: expires_at.map(time),
        held,
    })
}
