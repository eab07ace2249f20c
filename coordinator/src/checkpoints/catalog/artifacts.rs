//! Artifacts in the catalog: beside checkpoints, because their content is pieces of the same store, and what is to be
//! kept there is decided in one place.
//!
//! An artifact comes into being in one transaction, once all its pieces are stored, and only if its tenant's quota has
//! room for it then: so none is ever half there, and two that come together can't both have the last of the room.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use berth_checkpoint::Digest;
use berth_proto::{SessionId, v1};
use prost::Message;
use sqlx::SqliteConnection;

use super::{Catalog, digest_in, tenant};
use crate::{
    store::{StoreError, file, micros},
    tenant::{Sight, Tenant},
};

/// A file that is to be kept.
pub struct NewArtifact {
    pub shown: v1::Artifact,
    pub session: SessionId,
    pub tenant: Tenant,
    pub sha256: [u8; 32],
    /// The file's time, in nanoseconds since 1970.
    pub modified: i64,
    /// By the catalog's own time.
    pub expires_at: SystemTime,
    /// Its content in order.
    pub pieces: Vec<Digest>,
}

/// How the newest of one name was, kept or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub size: u64,
    pub sha256: [u8; 32],
    pub modified: i64,
}

/// What a tenant may keep, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    pub count: u64,
}

/// What became of a file that was to be kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    Kept,
    /// This piece is not in the store (any more).
    Missing(Digest),
    /// The tenant has so much already.
    Full(Room),
}

/// Those that are kept, and of those whose time is over none.
const KEPT: &str = "gone = 0 AND expires_at > ?2";
const SEEN: &str = "(?3 IS NULL OR tenant = ?3)";

impl Catalog {
    /// Of each name in a session the newest.
    pub async fn known_artifacts(&self, session: SessionId) -> Result<BTreeMap<String, Known>, StoreError> {
        let mut connection = self.connection.lock().await;
        let rows: Vec<(String, i64, Vec<u8>, i64)> = sqlx::query_as(
            "SELECT name, size, sha256, modified FROM artifacts WHERE session_id = ? ORDER BY number",
        )
        .bind(session.to_string())
        .fetch_all(&mut *connection)
        .await?;
        let known = |(name, size, sha256, modified): (String, i64, Vec<u8>, i64)| {
            Ok((name, Known { size: size as u64, sha256: digest_in(&sha256)?.0, modified }))
        };
        rows.into_iter().map(known).collect()
    }

    /// The newest of this name was touched, and has the same content: it is not new.
    pub async fn same_artifact(
        &self,
        session: SessionId,
        name: &str,
        modified: i64,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        sqlx::query(
            "UPDATE artifacts SET modified = ?3 WHERE number =
             (SELECT max(number) FROM artifacts WHERE session_id = ?1 AND name = ?2)",
        )
        .bind(session.to_string())
        .bind(name)
        .bind(modified)
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// What a tenant has kept.
    pub async fn artifact_use(&self, tenant: &Tenant) -> Result<Room, StoreError> {
        let mut connection = self.connection.lock().await;
        self.used(&mut connection, tenant).await
    }

    async fn used(&self, tx: &mut SqliteConnection, tenant: &Tenant) -> Result<Room, StoreError> {
        let (bytes, count): (i64, i64) = sqlx::query_as(
            "SELECT coalesce(sum(size), 0), count(*) FROM artifacts
             WHERE tenant = ?1 AND gone = 0 AND expires_at > ?2",
        )
        .bind(tenant.as_str())
        .bind(micros(self.now()))
        .fetch_one(tx)
        .await?;
        Ok(Room { bytes: bytes as u64, count: count as u64 })
    }

    /// Adds one, if all its pieces are there and the tenant then has no more than `most`.
    pub async fn add_artifact(&self, new: &NewArtifact, most: Room) -> Result<Added, StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let added = self.insert_artifact(&mut connection, new, most).await;
        match added {
            Ok(Added::Kept) | Err(_) => file::end(&mut connection, added).await,
            Ok(other) => {
                sqlx::query("ROLLBACK").execute(&mut *connection).await?;
                Ok(other)
            }
        }
    }

    async fn insert_artifact(
        &self,
        tx: &mut SqliteConnection,
        new: &NewArtifact,
        most: Room,
    ) -> Result<Added, StoreError> {
        let used = self.used(tx, &new.tenant).await?;
        if used.bytes.saturating_add(new.shown.size) > most.bytes || used.count >= most.count {
            return Ok(Added::Full(used));
        }
        sqlx::query(
            "INSERT INTO artifacts (id, tenant, session_id, name, size, sha256, modified, shown, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&new.shown.id)
        .bind(new.tenant.as_str())
        .bind(new.session.to_string())
        .bind(&new.shown.name)
        .bind(i64::try_from(new.shown.size).unwrap_or(i64::MAX))
        .bind(&new.sha256[..])
        .bind(new.modified)
        .bind(new.shown.encode_to_vec())
        .bind(micros(new.expires_at))
        .execute(&mut *tx)
        .await?;
        for (at, digest) in new.pieces.iter().enumerate() {
            let sql = "INSERT INTO artifact_pieces SELECT ?, ?, id FROM pieces WHERE digest = ? AND lost = 0";
            let used = sqlx::query(sql)
                .bind(&new.shown.id)
                .bind(i64::try_from(at).unwrap_or(i64::MAX))
                .bind(&digest.0[..])
                .execute(&mut *tx)
                .await?;
            if used.rows_affected() == 0 {
                return Ok(Added::Missing(*digest));
            }
        }
        Ok(Added::Kept)
    }

    /// The artifact of this id, if this sight covers it.
    pub async fn artifact(&self, by: &Sight, id: &str) -> Result<Option<v1::Artifact>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!("SELECT shown FROM artifacts WHERE id = ?1 AND {KEPT} AND {SEEN}");
        let row: Option<(Vec<u8>,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(micros(self.now()))
            .bind(tenant(by))
            .fetch_optional(&mut *connection)
            .await?;
        row.map(shown).transpose()
    }

    /// Newest first, older than `before`, of those that this sight covers. Ids grow with time.
    pub async fn artifacts(
        &self,
        by: &Sight,
        session: Option<SessionId>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<v1::Artifact>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!(
            "SELECT shown FROM artifacts WHERE id < ?1 AND {KEPT} AND {SEEN}
             AND (?4 IS NULL OR session_id = ?4) ORDER BY id DESC LIMIT ?5"
        );
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            // Behind every id, `g` comes after the last hex digit.
            .bind(before.unwrap_or("g"))
            .bind(micros(self.now()))
            .bind(tenant(by))
            .bind(session.map(|id| id.to_string()))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
        rows.into_iter().map(shown).collect()
    }

    /// Its content's pieces in order, from the `from`th on. They stay for a while from now on, should it be removed.
    pub async fn artifact_pieces(&self, id: &str, from: u64) -> Result<Vec<Digest>, StoreError> {
        let mut connection = self.connection.lock().await;
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        sqlx::query(
            "UPDATE pieces SET touched_at = max(touched_at, ?3) WHERE id IN
             (SELECT piece_id FROM artifact_pieces WHERE artifact_id = ?1 AND at >= ?2)",
        )
        .bind(id)
        .bind(from)
        .bind(micros(self.now()))
        .execute(&mut *connection)
        .await?;
        let rows: Vec<(Vec<u8>,)> = sqlx::query_as(
            "SELECT digest FROM artifact_pieces JOIN pieces ON pieces.id = piece_id
             WHERE artifact_id = ? AND at >= ? ORDER BY at",
        )
        .bind(id)
        .bind(from)
        .fetch_all(&mut *connection)
        .await?;
        rows.into_iter().map(|(digest,)| digest_in(&digest)).collect()
    }

    /// Removes one that this sight covers. False: there is none.
    pub async fn remove_artifact(&self, by: &Sight, id: &str) -> Result<bool, StoreError> {
        let mut connection = self.connection.lock().await;
        file::begin(&mut connection).await?;
        let removed = remove(&mut connection, by, id).await;
        file::end(&mut connection, removed).await
    }

    /// Removes those whose time is over. Their ids.
    pub async fn expire_artifacts(&self) -> Result<Vec<String>, StoreError> {
        let ids: Vec<(String,)> = {
            let mut connection = self.connection.lock().await;
            sqlx::query_as("SELECT id FROM artifacts WHERE gone = 0 AND expires_at <= ? LIMIT 1000")
                .bind(micros(self.now()))
                .fetch_all(&mut *connection)
                .await?
        };
        for (id,) in &ids {
            self.remove_artifact(&Sight::All, id).await?;
        }
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    /// Sessions of which a row is kept for an artifact that is gone.
    pub async fn sessions_with_gone_artifacts(&self) -> Result<Vec<SessionId>, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = "SELECT DISTINCT session_id FROM artifacts WHERE gone = 1";
        let ids: Vec<(String,)> = sqlx::query_as(sql).fetch_all(&mut *connection).await?;
        let session = |(id,): (String,)| {
            id.parse().map_err(|e| StoreError::Damaged(format!("the catalog: a session's id: {e}")))
        };
        ids.into_iter().map(session).collect()
    }

    /// Forgets those that are gone of a session: all, or but for these names.
    pub async fn forget_gone_artifacts(
        &self,
        session: SessionId,
        but: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = "SELECT id, name FROM artifacts WHERE gone = 1 AND session_id = ?";
        let rows: Vec<(String, String)> =
            sqlx::query_as(sql).bind(session.to_string()).fetch_all(&mut *connection).await?;
        for (id, _) in rows.iter().filter(|(_, name)| !but.contains(name)) {
            sqlx::query("DELETE FROM artifacts WHERE id = ?").bind(id).execute(&mut *connection).await?;
        }
        Ok(())
    }

    /// Notes what a session's last look left out.
    pub async fn note_look(
        &self,
        session: SessionId,
        of: &Tenant,
        left_out: &v1::ListArtifactsResponse,
        keep: Duration,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        if left_out.not_kept.is_empty() {
            let sql = "DELETE FROM looks WHERE session_id = ?";
            sqlx::query(sql).bind(session.to_string()).execute(&mut *connection).await?;
            return Ok(());
        }
        sqlx::query(
            "INSERT OR REPLACE INTO looks (session_id, tenant, left_out, expires_at) VALUES (?, ?, ?, ?)",
        )
        .bind(session.to_string())
        .bind(of.as_str())
        .bind(left_out.encode_to_vec())
        .bind(micros(self.now() + keep))
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// What that was, if this sight covers the session.
    pub async fn look(
        &self,
        by: &Sight,
        session: SessionId,
    ) -> Result<v1::ListArtifactsResponse, StoreError> {
        let mut connection = self.connection.lock().await;
        let sql = format!("SELECT left_out FROM looks WHERE session_id = ?1 AND expires_at > ?2 AND {SEEN}");
        let row: Option<(Vec<u8>,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(session.to_string())
            .bind(micros(self.now()))
            .bind(tenant(by))
            .fetch_optional(&mut *connection)
            .await?;
        let left_out = row.map(|(bytes,)| v1::ListArtifactsResponse::decode(&bytes[..])).transpose();
        Ok(left_out.map_err(damaged)?.unwrap_or_default())
    }

    /// Forgets looks whose time is over.
    pub async fn expire_looks(&self) -> Result<(), StoreError> {
        let mut connection = self.connection.lock().await;
        sqlx::query("DELETE FROM looks WHERE expires_at <= ?")
            .bind(micros(self.now()))
            .execute(&mut *connection)
            .await?;
        Ok(())
    }
}

/// Its content is let go at once. The row stays until the session is over, unless a newer one of that name says the same.
async fn remove(tx: &mut SqliteConnection, by: &Sight, id: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE artifacts SET gone = 1 WHERE id = ?1 AND gone = 0 AND (?2 IS NULL OR tenant = ?2)";
    let gone = sqlx::query(sql).bind(id).bind(tenant(by)).execute(&mut *tx).await?;
    if gone.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("DELETE FROM artifact_pieces WHERE artifact_id = ?").bind(id).execute(&mut *tx).await?;
    // Of one name the newest says it for all.
    sqlx::query(
        "DELETE FROM artifacts AS old WHERE gone = 1 AND EXISTS
         (SELECT 1 FROM artifacts AS this WHERE this.id = ?1 AND this.session_id = old.session_id
          AND this.name = old.name AND old.number <
              (SELECT max(newest.number) FROM artifacts AS newest
               WHERE newest.session_id = old.session_id AND newest.name = old.name))",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    Ok(true)
}

fn damaged(error: prost::DecodeError) -> StoreError {
    StoreError::Damaged(format!("the catalog: an artifact: {error}"))
}

fn shown((bytes,): (Vec<u8>,)) -> Result<v1::Artifact, StoreError> {
    v1::Artifact::decode(&bytes[..]).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::checkpoints::steady::Steady;

    const DAY: Duration = Duration::from_secs(86_400);
    const MOST: Room = Room { bytes: 100, count: 3 };

    struct Desk {
        catalog: Catalog,
        seconds: Arc<AtomicU64>,
        session: SessionId,
    }

    impl Desk {
        async fn start() -> Self {
            let seconds = Arc::new(AtomicU64::new(0));
            let passed = seconds.clone();
            let since = move || Duration::from_secs(passed.load(Ordering::SeqCst));
            let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            let steady = Steady::with(wall, None, Arc::new(since));
            let catalog = Catalog::open(None).await.unwrap().with_clock(steady);
            Self { catalog, seconds, session: SessionId::from_u128(7) }
        }

        /// A file of so many bytes, one piece of which is named like it.
        async fn add(&self, of: &str, name: &str, size: u64) -> (String, Added) {
            let piece = Digest::of(name.as_bytes());
            self.catalog.stored(&[(piece, size)]).await.unwrap();
            self.add_with(of, name, size, vec![piece]).await
        }

        async fn add_with(&self, of: &str, name: &str, size: u64, pieces: Vec<Digest>) -> (String, Added) {
            let id = SessionId::new().to_string();
            let shown = v1::Artifact { id: id.clone(), name: name.into(), size, ..Default::default() };
            let new = NewArtifact {
                shown,
                session: self.session,
                tenant: of.parse().unwrap(),
                sha256: [1; 32],
                modified: 5,
                expires_at: self.catalog.now() + DAY,
                pieces,
            };
            let added = self.catalog.add_artifact(&new, MOST).await.unwrap();
            (id, added)
        }

        async fn ids(&self, by: &Sight) -> Vec<String> {
            let listed = self.catalog.artifacts(by, Some(self.session), None, 100).await.unwrap();
            listed.into_iter().map(|artifact| artifact.id).collect()
        }

        async fn released(&self) -> usize {
            let now = self.catalog.now() + Duration::from_secs(1);
            self.catalog.release(now, 100).await.unwrap().len()
        }
    }

    fn of(tenant: &str) -> Sight {
        Sight::Of(tenant.parse().unwrap())
    }

    /// Red when the quota is not asked in the transaction, or is everybody's together; or when what was removed counts.
    #[tokio::test]
    async fn a_tenant_has_its_quota_and_gets_it_back() {
        let desk = Desk::start().await;
        let (first, added) = desk.add("a", "x", 60).await;
        assert_eq!(added, Added::Kept);
        assert_eq!(desk.add("a", "y", 41).await.1, Added::Full(Room { bytes: 60, count: 1 }));
        assert_eq!(desk.add("a", "y", 40).await.1, Added::Kept);
        assert_eq!(desk.add("a", "empty", 0).await.1, Added::Kept);
        assert_eq!(desk.add("a", "z", 0).await.1, Added::Full(Room { bytes: 100, count: 3 }));
        assert_eq!(desk.add("b", "x", 100).await.1, Added::Kept);
        assert!(desk.catalog.remove_artifact(&of("a"), &first).await.unwrap());
        assert_eq!(desk.add("a", "z", 60).await.1, Added::Kept);
        // So does time.
        desk.seconds.store(DAY.as_secs(), Ordering::SeqCst);
        assert_eq!(desk.add("b", "later", 100).await.1, Added::Kept);
    }

    /// Red when a row is entered before its pieces are there.
    #[tokio::test]
    async fn an_artifact_is_there_whole_or_not_at_all() {
        let desk = Desk::start().await;
        let (here, gone) = (Digest::of(b"here"), Digest::of(b"gone"));
        desk.catalog.stored(&[(here, 1)]).await.unwrap();
        let (id, added) = desk.add_with("a", "x", 2, vec![here, gone]).await;
        assert_eq!(added, Added::Missing(gone));
        assert!(desk.catalog.artifact(&Sight::All, &id).await.unwrap().is_none());
        assert_eq!(
            desk.catalog.artifact_use(&"a".parse().unwrap()).await.unwrap(),
            Room { bytes: 0, count: 0 }
        );
        assert!(desk.catalog.known_artifacts(desk.session).await.unwrap().is_empty());
        // The same piece twice, in order.
        desk.catalog.stored(&[(gone, 1)]).await.unwrap();
        let (id, added) = desk.add_with("a", "x", 3, vec![here, gone, here]).await;
        assert_eq!(added, Added::Kept);
        assert_eq!(desk.catalog.artifact_pieces(&id, 0).await.unwrap(), [here, gone, here]);
        assert_eq!(desk.catalog.artifact_pieces(&id, 2).await.unwrap(), [here]);
    }

    /// Red when a look-up does not ask whose it is.
    #[tokio::test]
    async fn another_tenant_finds_none() {
        let desk = Desk::start().await;
        let (id, _) = desk.add("a", "x", 1).await;
        let left_out = v1::NotKept { name: "y".into(), size: 1, why: "no".into() };
        let left_out = v1::ListArtifactsResponse { not_kept: vec![left_out], ..Default::default() };
        desk.catalog.note_look(desk.session, &"a".parse().unwrap(), &left_out, DAY).await.unwrap();
        for (by, found) in [(of("b"), false), (of("a"), true), (Sight::All, true)] {
            assert_eq!(desk.catalog.artifact(&by, &id).await.unwrap().is_some(), found);
            assert_eq!(desk.ids(&by).await.len(), usize::from(found));
            let look = desk.catalog.look(&by, desk.session).await.unwrap();
            assert_eq!(look == left_out, found);
        }
        assert!(!desk.catalog.remove_artifact(&of("b"), &id).await.unwrap());
        assert_eq!(desk.ids(&of("a")).await, [id]);
    }

    /// Red when the sweep lets go of pieces that an artifact has, or keeps those of one that is gone; or when a file whose
    /// artifact is gone looks new.
    #[tokio::test]
    async fn what_is_over_is_let_go_and_is_not_new_again() {
        let desk = Desk::start().await;
        let (old, _) = desk.add("a", "x", 1).await;
        desk.add("a", "y", 1).await;
        assert_eq!(desk.released().await, 0);
        assert!(desk.catalog.expire_artifacts().await.unwrap().is_empty());
        desk.catalog.remove_artifact(&Sight::All, &old).await.unwrap();
        assert!(desk.catalog.artifact(&Sight::All, &old).await.unwrap().is_none());
        assert!(desk.catalog.artifact_pieces(&old, 0).await.unwrap().is_empty());
        assert_eq!(desk.released().await, 1);
        let known = |modified| Known { size: 1, sha256: [1; 32], modified };
        assert_eq!(desk.catalog.known_artifacts(desk.session).await.unwrap()["x"], known(5));
        // It was touched.
        desk.catalog.same_artifact(desk.session, "x", 9).await.unwrap();
        assert_eq!(desk.catalog.known_artifacts(desk.session).await.unwrap()["x"], known(9));
        assert_eq!(desk.ids(&Sight::All).await.len(), 1, "and is as gone as before");
        // Another content is another artifact, and says what the name is from now on.
        let (new, _) = desk.add("a", "x", 1).await;
        assert_eq!(desk.ids(&Sight::All).await[0], new);
        desk.seconds.store(DAY.as_secs(), Ordering::SeqCst);
        assert!(desk.ids(&Sight::All).await.is_empty(), "before anybody sweeps");
        assert_eq!(desk.catalog.expire_artifacts().await.unwrap().len(), 2);
        assert_eq!(desk.released().await, 2);
        let rows = || async { desk.catalog.known_artifacts(desk.session).await.unwrap().len() };
        assert_eq!(rows().await, 2);
        let id = desk.session;
        assert_eq!(desk.catalog.sessions_with_gone_artifacts().await.unwrap(), [id]);
        desk.catalog.forget_gone_artifacts(id, &["y".to_owned()].into()).await.unwrap();
        assert_eq!(rows().await, 1);
        desk.catalog.forget_gone_artifacts(id, &BTreeSet::new()).await.unwrap();
        assert_eq!(rows().await, 0);
    }
}
