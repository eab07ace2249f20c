//! A copy of the record, for a backup. It is made in steps, between which records are written: while a copy of many gigabytes is
//! made at once, more would come than may wait, and those would be lost.
//!
//! INVARIANT: no row that is there is ever changed, and none is removed while the record is gone through as a whole. So rows that are
//! copied at different times are still those of one moment: all up to the last one that there was when the copy was begun.
//! (Rejected: a second connection that reads meanwhile. The file is held by one, so that no other coordinator takes it.)

use std::{
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};

use sqlx::SqliteConnection;
use tokio::sync::MutexGuard;

use super::file::{AuditFile, COLUMNS, MIGRATIONS};
use crate::store::{StoreError, file};

/// Rows of a step: some tenths of a second at most.
const ROWS: i64 = 10_000;

/// One under way.
struct Copying<'a> {
    record: &'a AuditFile,
    to: Unkept,
    /// Of the last row that was copied, and of the last that is to be.
    at: i64,
    end: i64,
    _nothing_goes: MutexGuard<'a, ()>,
}

/// The copy until it is whole, or its maker is gone.
struct Unkept(PathBuf);

impl Drop for Unkept {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A copy of all that is in the record now: an open file that has no name.
pub(super) async fn copy(record: &AuditFile, path: &Path) -> Result<File, StoreError> {
    let mut copying = Copying::begin(record, path).await?;
    while copying.step(ROWS).await? {}
    copying.open()
}

impl<'a> Copying<'a> {
    async fn begin(record: &'a AuditFile, path: &Path) -> Result<Self, StoreError> {
        let nothing_goes = record.whole.lock().await;
        let to = Unkept(file::begin_copy(path, &MIGRATIONS).await?);
        let mut state = record.state.lock().await;
        let start = "SELECT sequence, sum FROM audit_start";
        let (at, sum): (i64, Vec<u8>) = sqlx::query_as(start).fetch_one(&mut state.connection).await?;
        let copying = Self { record, to, at, end: state.last, _nothing_goes: nothing_goes };
        copying.attach(&mut state.connection).await?;
        let begun = sqlx::query("UPDATE copy.audit_start SET sequence = ?, sum = ?").persistent(false);
        let begun = begun.bind(at).bind(sum).execute(&mut state.connection).await;
        detach(&mut state.connection).await?;
        begun?;
        Ok(copying)
    }

    /// Copies so many rows. Whether there are more.
    async fn step(&mut self, rows: i64) -> Result<bool, StoreError> {
        let mut state = self.record.state.lock().await;
        self.attach(&mut state.connection).await?;
        let copied = some(&mut state.connection, self.at..self.end, rows).await;
        detach(&mut state.connection).await?;
        self.at = copied?.filter(|last| *last > self.at).unwrap_or(self.end);
        Ok(self.at < self.end)
    }

    /// Has the copy be there as `copy`.
    async fn attach(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        // Of a step whose caller went away in the middle.
        let _ = detach(connection).await;
        let name = self.to.0.to_string_lossy().into_owned();
        sqlx::query("ATTACH ? AS copy").bind(name).execute(&mut *connection).await?;
        // It is nobody's before it is whole.
        for pragma in ["PRAGMA copy.journal_mode = OFF", "PRAGMA copy.synchronous = OFF"] {
            sqlx::query(pragma).persistent(false).execute(&mut *connection).await?;
        }
        Ok(())
    }

    fn open(self) -> Result<File, StoreError> {
        let path = &self.to.0;
        File::open(path).map_err(|error| StoreError::Failed(format!("a copy of {}: {error}", path.display())))
    }
}

async fn detach(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("DETACH copy").execute(connection).await.map(drop)
}

/// Copies so many rows behind the first number, up to the second. The last one that is there then.
async fn some(
    connection: &mut SqliteConnection,
    between: Range<i64>,
    rows: i64,
) -> Result<Option<i64>, sqlx::Error> {
    let sql = format!(
        "INSERT INTO copy.audit ({COLUMNS}, sum) SELECT {COLUMNS}, sum FROM main.audit
         WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"
    );
    let some = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false);
    some.bind(between.start).bind(between.end).bind(rows).execute(&mut *connection).await?;
    let last = sqlx::query_as("SELECT max(sequence) FROM copy.audit").persistent(false);
    let (last,): (Option<i64>,) = last.fetch_one(connection).await?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::Ordering,
        time::{Duration, UNIX_EPOCH},
    };

    use super::{
        super::{Audit, Record, Settings, WAITING, file::Verified},
        *,
    };

    fn record(second: u64) -> Record {
        Record::new(UNIX_EPOCH + Duration::from_secs(second), "somebody", "A/one")
    }

    /// What the copy is, as a record of its own.
    async fn looked_at(copy: File, dir: &Path) -> Verified {
        let path = dir.join("copied.db");
        std::io::copy(&mut &copy, &mut File::create(&path).unwrap()).unwrap();
        file::check_in_full(&path).await.unwrap();
        let seen = AuditFile::open(Some(&path)).await.unwrap().verify().await.unwrap();
        fs::remove_file(&path).unwrap();
        seen
    }

    fn names(dir: &Path) -> Vec<String> {
        let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        all.filter(|name| name.contains("copy")).collect()
    }

    /// Red when a copy under way holds the record: what then comes finds no room, and is lost.
    #[tokio::test]
    async fn what_comes_while_it_is_copied_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), Settings::default()).await.unwrap();
        let (file, path) = (audit.file.as_ref().unwrap(), dir.path().join(super::super::AUDIT_FILE));
        for second in 0..9 {
            file.add(&[record(second)]).await.unwrap();
        }
        let mut copying = Copying::begin(file, &path).await.unwrap();
        let mut steps = 0;
        loop {
            let more = copying.step(2).await.unwrap();
            steps += 1;
            assert!(file.state.try_lock().is_ok(), "nothing can be written between two steps");
            (0..WAITING / 4).for_each(|_| audit.record(record(99)));
            audit.flush(file).await.unwrap();
            if !more {
                break;
            }
        }
        let copied = looked_at(copying.open().unwrap(), dir.path()).await;
        assert_eq!((steps, copied.records, copied.last, copied.broken_at), (5, 9, 9, None));
        let all = audit.verify().await.unwrap();
        assert!(steps * (WAITING / 4) > WAITING, "as many as may wait would prove nothing");
        assert_eq!((all.records as usize, all.broken_at), (9 + steps * (WAITING / 4), None));
        assert_eq!((audit.lost.load(Ordering::Relaxed), names(dir.path())), (0, vec![]));
        // The whole of it, as a backup has it.
        let copy = audit.copy().await.unwrap().expect("it is in a file");
        assert_eq!(looked_at(copy, dir.path()).await, all);
    }

    /// Red when the oldest may go between two steps: the copy then has a hole.
    #[tokio::test]
    async fn what_is_too_old_stays_until_it_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.db");
        let file = AuditFile::open(Some(&path)).await.unwrap();
        for second in 0..9 {
            file.add(&[record(second)]).await.unwrap();
        }
        let mut copying = Copying::begin(&file, &path).await.unwrap();
        assert!(copying.step(2).await.unwrap());
        let rest = async {
            while copying.step(2).await.unwrap() {}
            copying.open().unwrap()
        };
        let (removed, copy) = tokio::join!(file.purge(UNIX_EPOCH + Duration::from_secs(7)), rest);
        assert_eq!(removed.unwrap(), 7);
        let copied = looked_at(copy, dir.path()).await;
        assert_eq!((copied.records, copied.first, copied.broken_at), (9, 1, None));
        // And of what is left, whose beginning is gone.
        let left = super::copy(&file, &path).await.unwrap();
        let left = looked_at(left, dir.path()).await;
        assert_eq!((left.records, left.first, left.last, left.broken_at), (2, 8, 9, None));
        assert_eq!(file.purge(UNIX_EPOCH + Duration::from_secs(99)).await.unwrap(), 2);
        let none = super::copy(&file, &path).await.unwrap();
        assert_eq!(looked_at(none, dir.path()).await.records, 0);
    }

    /// Red when a copy that nobody waits for any more is left, or is in the way of the next.
    #[tokio::test]
    async fn one_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.db");
        let file = AuditFile::open(Some(&path)).await.unwrap();
        file.add(&[record(1), record(2)]).await.unwrap();
        let mut copying = Copying::begin(&file, &path).await.unwrap();
        // In the middle of a step: the copy is still there as `copy`.
        let name = copying.to.0.to_string_lossy().into_owned();
        let attach = sqlx::query("ATTACH ? AS copy").bind(name);
        attach.execute(&mut file.state.lock().await.connection).await.unwrap();
        drop(copying);
        assert_eq!(names(dir.path()), Vec::<String>::new());
        file.add(&[record(3)]).await.unwrap();
        copying = Copying::begin(&file, &path).await.unwrap();
        while copying.step(1).await.unwrap() {}
        assert_eq!(looked_at(copying.open().unwrap(), dir.path()).await.records, 3);
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}
