//! The record's database: a file of its own, so that nothing here holds up a placement.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::SystemTime,
};

use futures::TryStreamExt;
use sqlx::{Connection, QueryBuilder, Sqlite, SqliteConnection, migrate::Migrator};
use tokio::sync::Mutex;

use super::{
    copy,
    record::{Record, Row, sum},
};
use crate::{
    auth::Digest,
    store::{StoreError, file, micros, time},
};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./audit");
/// Rows that are removed in one transaction.
const PURGED_AT_ONCE: i64 = 1000;
/// Rows whose sums are reckoned before the next records are written.
const VERIFIED_AT_ONCE: i64 = 10_000;

type Kept = (i64, i64, String, String, String, String, String, String, String);
pub(super) const COLUMNS: &str = "sequence, at, who, tenant, what, session, task, outcome, details";

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub since: Option<SystemTime>,
    pub until: Option<SystemTime>,
    pub who: String,
    pub tenant: String,
    /// Begins with this.
    pub what: String,
    pub session: String,
    pub task: String,
    pub refused: bool,
    /// Older than this one.
    pub before: Option<u64>,
}

/// What looking through the whole of it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub records: u64,
    pub first: u64,
    pub last: u64,
    pub sum: Digest,
    pub broken_at: Option<u64>,
}

pub struct AuditFile {
    /// `None`: it is in memory.
    path: Option<PathBuf>,
    pub(super) state: Mutex<State>,
    /// Held by whoever goes through the whole of it, some rows at a time, and so by whoever removes some.
    pub(super) whole: Mutex<()>,
}

pub(super) struct State {
    pub(super) connection: SqliteConnection,
    pub(super) last: i64,
    sum: Digest,
}

impl AuditFile {
    /// Whether one that is there is whole, and of a newer version than this. Changes nothing.
    pub async fn is_newer(path: &Path) -> bool {
        file::is_newer(path, &MIGRATIONS).await
    }

    /// Opens or makes it. `None`: in memory.
    pub async fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let mut connection = match path {
            Some(path) => file::open(path, &MIGRATIONS).await?,
            None => file::in_memory(&MIGRATIONS).await?,
        };
        let newest = "SELECT sequence, sum FROM audit UNION ALL SELECT sequence, sum FROM audit_start
             ORDER BY sequence DESC LIMIT 1";
        let (last, bytes): (i64, Vec<u8>) = sqlx::query_as(newest).fetch_one(&mut connection).await?;
        let state = Mutex::new(State { connection, last, sum: digest(bytes)? });
        Ok(Self { path: path.map(Path::to_owned), state, whole: Mutex::default() })
    }

    /// A copy of all that is in it now: an open file that has no name. Records are written meanwhile.
    pub async fn copy(&self) -> Result<Option<File>, StoreError> {
        let Some(path) = &self.path else { return Ok(None) };
        copy::copy(self, path).await.map(Some)
    }

    /// Lets go of it. When this returns, all is in the one file.
    pub(crate) async fn close(self) -> Result<(), StoreError> {
        Ok(self.state.into_inner().connection.close().await?)
    }

    /// Adds these, all or none.
    pub async fn add(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let State { connection, last, sum: newest } = &mut *state;
        file::begin(connection).await?;
        let added = insert(connection, records, *last, *newest).await;
        let (after, sum) = file::end(connection, added).await?;
        (*last, *newest) = (after, sum);
        Ok(())
    }

    /// Newest first.
    pub async fn list(&self, filter: &Filter, most: usize) -> Result<Vec<(u64, Record)>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(format!("SELECT {COLUMNS} FROM audit WHERE true"));
        for (name, wanted) in [
            ("who", &filter.who),
            ("tenant", &filter.tenant),
            ("session", &filter.session),
            ("task", &filter.task),
        ] {
            if !wanted.is_empty() {
                query.push(format!(" AND {name} = ")).push_bind(wanted.clone());
            }
        }
        if !filter.what.is_empty() {
            query.push(" AND substr(what, 1, length(").push_bind(filter.what.clone()).push(")) = ");
            query.push_bind(filter.what.clone());
        }
        if filter.refused {
            query.push(" AND instr(what, '/') > 0 AND outcome != 'OK'");
        }
        if let Some(since) = filter.since {
            query.push(" AND at >= ").push_bind(micros(since));
        }
        if let Some(until) = filter.until {
            query.push(" AND at < ").push_bind(micros(until));
        }
        if let Some(before) = filter.before {
            query.push(" AND sequence < ").push_bind(i64::try_from(before).unwrap_or(i64::MAX));
        }
        query.push(" ORDER BY sequence DESC LIMIT ").push_bind(most as i64);
        let mut state = self.state.lock().await;
        let rows: Vec<Kept> = query.build_query_as().fetch_all(&mut state.connection).await?;
        rows.into_iter().map(record).collect()
    }

    /// Reckons every sum anew. Records are written meanwhile.
    pub async fn verify(&self) -> Result<Verified, StoreError> {
        let _nothing_goes = self.whole.lock().await;
        let start = "SELECT sequence, sum FROM audit_start";
        let mut state = self.state.lock().await;
        let (mut at, bytes): (i64, Vec<u8>) = sqlx::query_as(start).fetch_one(&mut state.connection).await?;
        drop(state);
        let mut seen = Verified { records: 0, first: 0, last: 0, sum: digest(bytes)?, broken_at: None };
        while self.verify_some(&mut seen, &mut at).await? {}
        Ok(seen)
    }

    /// Goes on behind row `at`. Whether there may be more.
    async fn verify_some(&self, seen: &mut Verified, at: &mut i64) -> Result<bool, StoreError> {
        let sql = format!("SELECT {COLUMNS}, sum FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?");
        let mut state = self.state.lock().await;
        let last = state.last;
        let mut rows = sqlx::query_as::<_, SummedRow>(sqlx::AssertSqlSafe(sql))
            .bind(*at)
            .bind(VERIFIED_AT_ONCE)
            .fetch(&mut state.connection);
        let mut some = 0;
        while let Some(row) = rows.try_next().await? {
            let expected = sum(&seen.sum, &row.row());
            let follows = row.sequence == *at + 1 && row.sum == expected;
            *at = row.sequence;
            seen.sum = expected;
            some += 1;
            seen.records += 1;
            seen.last = row.sequence as u64;
            if seen.first == 0 {
                seen.first = row.sequence as u64;
            }
            if !follows {
                seen.broken_at = Some(row.sequence as u64);
                return Ok(false);
            }
        }
        // Rows that are missing at the end.
        if some < VERIFIED_AT_ONCE && *at != last {
            seen.broken_at = Some(*at as u64 + 1);
        }
        Ok(some == VERIFIED_AT_ONCE)
    }

    /// Removes what is older than this. How many there were.
    pub async fn purge(&self, older: SystemTime) -> Result<u64, StoreError> {
        let _nobody_looks = self.whole.lock().await;
        let mut removed = 0;
        loop {
            let mut state = self.state.lock().await;
            file::begin(&mut state.connection).await?;
            let some = purge(&mut state.connection, micros(older)).await;
            let some = file::end(&mut state.connection, some).await?;
            removed += some;
            if some < PURGED_AT_ONCE as u64 {
                return Ok(removed);
            }
        }
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    records: &[Record],
    last: i64,
    newest: Digest,
) -> Result<(i64, Digest), StoreError> {
    let (mut last, mut newest) = (last, newest);
    for record in records {
        let details =
            serde_json::to_string(&record.details).map_err(|e| StoreError::Failed(e.to_string()))?;
        last += 1;
        let texts = [
            record.who.as_str(),
            &record.tenant,
            &record.what,
            &record.session,
            &record.task,
            &record.outcome,
            &details,
        ];
        let row = Row { sequence: last, at: micros(record.at), texts };
        newest = sum(&newest, &row);
        let sql = format!("INSERT INTO audit ({COLUMNS}, sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(last).bind(row.at);
        for text in texts {
            query = query.bind(text.to_owned());
        }
        query.bind(newest.to_vec()).execute(&mut *connection).await?;
    }
    Ok((last, newest))
}

async fn purge(connection: &mut SqliteConnection, older: i64) -> Result<u64, StoreError> {
    // From the beginning on, and never a piece from the middle: a wall clock that was put back leaves times out of order.
    let (newer,): (Option<i64>,) = sqlx::query_as("SELECT min(sequence) FROM audit WHERE at >= ?")
        .bind(older)
        .fetch_one(&mut *connection)
        .await?;
    let end = newer.unwrap_or(i64::MAX);
    let last = "SELECT sequence, sum FROM
        (SELECT sequence, sum FROM audit WHERE sequence < ? ORDER BY sequence LIMIT ?) ORDER BY sequence DESC LIMIT 1";
    let last: Option<(i64, Vec<u8>)> =
        sqlx::query_as(last).bind(end).bind(PURGED_AT_ONCE).fetch_optional(&mut *connection).await?;
    let Some((last, sum)) = last else { return Ok(0) };
    sqlx::query("UPDATE audit_start SET sequence = ?, sum = ?")
        .bind(last)
        .bind(sum)
        .execute(&mut *connection)
        .await?;
    let removed =
        sqlx::query("DELETE FROM audit WHERE sequence <= ?").bind(last).execute(&mut *connection).await?;
    Ok(removed.rows_affected())
}

#[derive(sqlx::FromRow)]
struct SummedRow {
    sequence: i64,
    at: i64,
    who: String,
    tenant: String,
    what: String,
    session: String,
    task: String,
    outcome: String,
    details: String,
    sum: Vec<u8>,
}

impl SummedRow {
    fn row(&self) -> Row<'_> {
        let texts = [
            self.who.as_str(),
            &self.tenant,
            &self.what,
            &self.session,
            &self.task,
            &self.outcome,
            &self.details,
        ];
        Row { sequence: self.sequence, at: self.at, texts }
    }
}

fn record(kept: Kept) -> Result<(u64, Record), StoreError> {
    let (sequence, at, who, tenant, what, session, task, outcome, details) = kept;
    let details = serde_json::from_str(&details)
        .map_err(|e| StoreError::Damaged(format!("audit record {sequence}: {e}")))?;
    Ok((sequence as u64, Record { at: time(at), who, tenant, what, session, task, outcome, details }))
}

fn digest(bytes: Vec<u8>) -> Result<Digest, StoreError> {
    bytes.try_into().map_err(|_| StoreError::Damaged("the audit record: a sum is not 32 bytes".into()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn at(second: u64, what: &str) -> Record {
        let mut record = Record::new(UNIX_EPOCH + Duration::from_secs(second), "somebody", what);
        record.session = format!("session-{}", second % 2);
        record
    }

    async fn filled() -> AuditFile {
        let file = AuditFile::open(None).await.unwrap();
        file.add(&[at(1, "A/one"), at(2, "A/two")]).await.unwrap();
        file.add(&[at(3, "B/one"), at(4, "A/three")]).await.unwrap();
        file
    }

    async fn run(file: &AuditFile, sql: &'static str) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(sql).execute(&mut file.state.lock().await.connection).await?;
        Ok(done.rows_affected())
    }

    #[tokio::test]
    async fn what_is_asked_for_comes_newest_first() {
        let file = filled().await;
        let seen = async |filter: Filter, most| {
            let found = file.list(&filter, most).await.unwrap();
            found.into_iter().map(|(sequence, record)| (sequence, record.what)).collect::<Vec<_>>()
        };
        let named = |n: u64, what: &str| (n, what.to_owned());
        assert_eq!(seen(Filter::default(), 2).await, [named(4, "A/three"), named(3, "B/one")]);
        assert_eq!(
            seen(Filter { before: Some(3), ..Filter::default() }, 9).await,
            [named(2, "A/two"), named(1, "A/one")]
        );
        assert_eq!(
            seen(Filter { what: "A/t".into(), ..Filter::default() }, 9).await,
            [named(4, "A/three"), named(2, "A/two")]
        );
        assert_eq!(
            seen(Filter { session: "session-1".into(), ..Filter::default() }, 9).await,
            [named(3, "B/one"), named(1, "A/one")]
        );
        let since = Some(UNIX_EPOCH + Duration::from_secs(2));
        let until = Some(UNIX_EPOCH + Duration::from_secs(3));
        assert_eq!(seen(Filter { since, until, ..Filter::default() }, 9).await, [named(2, "A/two")]);
        // A pattern is a text like any other.
        assert_eq!(seen(Filter { what: "%".into(), ..Filter::default() }, 9).await, []);
    }

    /// Red when the trigger is left out of the schema, and when `verify` leaves out the sum, the numbers or the end.
    #[tokio::test]
    async fn what_was_changed_removed_or_put_in_between_is_found() {
        let whole = filled().await.verify().await.unwrap();
        assert_eq!((whole.records, whole.first, whole.last, whole.broken_at), (4, 1, 4, None));
        assert!(run(&filled().await, "UPDATE audit SET who = 'nobody' WHERE sequence = 2").await.is_err());
        for (sql, broken) in [
            ("UPDATE audit SET who = 'nobody' WHERE sequence = 2", 2),
            ("DELETE FROM audit WHERE sequence = 3", 4),
            ("DELETE FROM audit WHERE sequence = 4", 4),
            ("DELETE FROM audit WHERE sequence = 1", 2),
            ("UPDATE audit SET who = 'some', tenant = 'body' WHERE sequence = 3", 3),
        ] {
            let file = filled().await;
            run(&file, "DROP TRIGGER audit_is_never_changed").await.unwrap();
            assert_eq!(run(&file, sql).await.unwrap(), 1);
            assert_eq!(file.verify().await.unwrap().broken_at, Some(broken), "{sql}");
        }
    }

    #[tokio::test]
    async fn the_oldest_go_and_the_rest_is_whole() {
        let file = filled().await;
        assert_eq!(file.purge(UNIX_EPOCH + Duration::from_secs(3)).await.unwrap(), 2);
        let left = file.verify().await.unwrap();
        assert_eq!((left.records, left.first, left.last, left.broken_at), (2, 3, 4, None));
        assert_eq!(file.purge(UNIX_EPOCH + Duration::from_secs(9)).await.unwrap(), 2);
        assert_eq!(file.verify().await.unwrap().broken_at, None);
        file.add(&[at(9, "C/one")]).await.unwrap();
        let left = file.verify().await.unwrap();
        assert_eq!((left.records, left.first, left.last, left.broken_at), (1, 5, 5, None));
    }

    #[tokio::test]
    async fn a_file_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.db");
        let file = AuditFile::open(Some(&path)).await.unwrap();
        file.add(&[at(1, "A/one")]).await.unwrap();
        drop(file);
        let file = AuditFile::open(Some(&path)).await.unwrap();
        file.add(&[at(2, "A/two")]).await.unwrap();
        let whole = file.verify().await.unwrap();
        assert_eq!((whole.records, whole.broken_at), (2, None));
    }
}
