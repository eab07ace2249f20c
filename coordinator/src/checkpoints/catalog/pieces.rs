//! The pieces: which of them the blob store has, who uses them, and since when nobody has asked for one.

use std::{collections::BTreeSet, time::SystemTime};

use berth_checkpoint::Digest;
use sqlx::SqliteConnection;

use super::{Catalog, digest_in};
use crate::store::{StoreError, file, micros};

impl Catalog {
    /// Of these pieces, those that are not there. Those that are stay for a while.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let missing = touch(&mut connection, digests, self.now()).await;
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
    pub async fn stored(&self, pieces: &[(Digest, u64)]) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let kept = keep(&mut connection, pieces, self.now()).await;
        file::end(&mut connection, kept).await
    }

    /// A piece is gone from the blob store, or is damaged there.
    pub async fn lost(&self, digest: Digest) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = "UPDATE pieces SET lost = 1 WHERE digest = ?";
        sqlx::query(sql).bind(&digest.0[..]).execute(&mut *connection).await?;
        Ok(())
    }

    /// Checkpoints that use a piece.
    pub async fn using(&self, digest: Digest) -> Result<BTreeSet<String>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = "SELECT checkpoint_id FROM uses JOIN pieces ON pieces.id = piece_id WHERE digest = ?";
        let ids: Vec<(String,)> = sqlx::query_as(sql).bind(&digest.0[..]).fetch_all(&mut *connection).await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    /// Forgets pieces that no checkpoint and no artifact uses and nobody has asked for since. They may be removed from the blob store.
    pub async fn release(&self, untouched_since: SystemTime, limit: u32) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        let gone: Vec<(Vec<u8>,)> = sqlx::query_as(
            "DELETE FROM pieces WHERE id IN (
                 SELECT id FROM pieces WHERE touched_at < ?
                 AND NOT EXISTS (SELECT 1 FROM uses WHERE piece_id = pieces.id)
                 AND NOT EXISTS (SELECT 1 FROM artifact_pieces WHERE piece_id = pieces.id) LIMIT ?)
             RETURNING digest",
        )
        .bind(micros(untouched_since))
        .bind(limit)
        .fetch_all(&mut *connection)
        .await?;
        gone.into_iter().map(|(digest,)| digest_in(&digest)).collect()
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
