//! A database file: made whole or not at all, looked at before it is used, copied while it is in use.
//!
//! **Made** under another name and linked into place: so an empty file is never one of ours that was not finished, but
//! one that has lost what was in it, and is refused like any other damage.
//!
//! **Looked at** through a connection that only reads. A database that is damaged must stay as it was found, and a
//! connection that may write folds the log into the file when it closes.
//!
//! **Copied** by `VACUUM INTO`, on the connection that holds the lock, and handed out as an open file that has no name
//! any more: nothing is left behind by a reader that goes away.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous},
};

use super::{
    StoreError, sums,
    wal::{self, Log},
};

/// An earlier coordinator that is just ending gets this long to let go.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// A larger file's indexes are not compared with its tables at every start, which takes seconds a gigabyte.
const CHECKED_IN_FULL: u64 = 64 << 20;

/// Opens a database, or makes it, and holds it against everybody else.
pub(crate) async fn open(path: &Path, migrations: &Migrator) -> Result<SqliteConnection, StoreError> {
    let on_disk = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
    if is_there(path)? {
        keep_private(path).map_err(on_disk)?;
        let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= CHECKED_IN_FULL);
        check(path, small, Some(migrations)).await?;
    } else {
        make(path, migrations).await?;
    }
    let mut connection = connect(path).await?;
    // The lock is only taken by a write.
    for sql in ["BEGIN EXCLUSIVE", "COMMIT"] {
        sqlx::query(sql).execute(&mut connection).await.map_err(|error| failure(path, error))?;
    }
    // Of a copy that was under way when the process ended.
    let _ = fs::remove_file(beside(path, "-copy"));
    migrate(path, migrations, &mut connection).await?;
    Ok(connection)
}

/// The same without a file.
pub(crate) async fn in_memory(migrations: &Migrator) -> Result<SqliteConnection, StoreError> {
    let mut connection = SqliteConnection::connect("sqlite::memory:").await?;
    migrate(Path::new("a database in memory"), migrations, &mut connection).await?;
    Ok(connection)
}

async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = options(path)?
        .create_if_missing(true)
        .locking_mode(SqliteLockingMode::Exclusive)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // What is deleted is overwritten: an env that was emptied is gone from the file.
        .pragma("secure_delete", "ON");
    options.connect().await.map_err(|error| failure(path, error))
}

fn options(path: &Path) -> Result<SqliteConnectOptions, StoreError> {
    let options = SqliteConnectOptions::from_str("sqlite::memory:").map_err(|error| failure(path, error))?;
    Ok(options
        .in_memory(false)
        .shared_cache(false)
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(LOCK_WAIT)
        .disable_statement_logging())
}

async fn migrate(
    path: &Path,
    migrations: &Migrator,
    connection: &mut SqliteConnection,
) -> Result<(), StoreError> {
    // What `run` comes to, which gives a future that no task can have: its bounds are "not general enough".
    migrations.run_direct(None, connection, false).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(error) => failure(path, error),
        error => StoreError::Damaged(format!("{}: {error}", path.display())),
    })
}

/// Whether there is a database. What can't be one any more is damaged.
fn is_there(path: &Path) -> Result<bool, StoreError> {
    let size = |path: &Path| match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::Failed(format!("{}: {error}", path.display()))),
    };
    let log = beside(path, "-wal");
    match (size(path)?, size(&log)?) {
        (Some(0), _) => Err(StoreError::Damaged(format!("{} is empty", path.display()))),
        (None, Some(1..)) => {
            let words = format!("{} is missing, but its log {} is there", path.display(), log.display());
            Err(StoreError::Damaged(words))
        }
        (found, _) => Ok(found.is_some()),
    }
}

/// Makes a database. Of two that do so at once, the first one's is kept.
async fn make(path: &Path, migrations: &Migrator) -> Result<(), StoreError> {
    let on_disk = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
    let fresh = beside(path, &format!("-new-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let made = async {
        keep_private(&fresh).map_err(on_disk)?;
        let mut connection = connect(&fresh).await?;
        migrate(&fresh, migrations, &mut connection).await?;
        connection.close().await.map_err(|error| failure(&fresh, error))?;
        match fs::hard_link(&fresh, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(on_disk(error)),
            _ => Ok(()),
        }
    };
    let made = made.await;
    for end in ["", "-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(beside(&fresh, end));
    }
    made?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(on_disk)
}

/// Looks at every page and index of a database that is there, however large it is.
pub(crate) async fn check_in_full(path: &Path) -> Result<(), StoreError> {
    is_there(path)?;
    check(path, true, None).await
}

/// Whether it is whole, and a newer version has written it: with all the steps that are known here, and more. Changes nothing.
pub(crate) async fn is_newer(path: &Path, migrations: &Migrator) -> bool {
    if !is_there(path).is_ok_and(|there| there) || check(path, true, None).await.is_err() {
        return false;
    }
    let newest = migrations.iter().map(|step| step.version).max().unwrap_or(0);
    let applied = async {
        let mut connection =
            options(path)?.read_only(true).connect().await.map_err(|error| failure(path, error))?;
        let sql = "SELECT version, success, checksum FROM _sqlx_migrations";
        let applied: Result<Vec<(i64, bool, Vec<u8>)>, _> =
            sqlx::query_as(sql).fetch_all(&mut connection).await;
        let _ = connection.close().await;
        applied.map_err(|error| failure(path, error))
    };
    let Ok(applied) = applied.await else { return false };
    let known = |version, sum: &[u8]| migrations.iter().any(|m| m.version == version && *m.checksum == *sum);
    let (newer, older): (Vec<_>, Vec<_>) = applied.iter().partition(|(version, ..)| *version > newest);
    !newer.is_empty()
        && newer.iter().all(|(_, success, _)| *success)
        && older.iter().all(|(version, success, sum)| *success && known(*version, sum))
}

/// Looks for damage, and changes nothing.
async fn check(path: &Path, in_full: bool, migrations: Option<&Migrator>) -> Result<(), StoreError> {
    let failed = |error| failure(path, error);
    let mut connection = options(path)?.read_only(true).connect().await.map_err(failed)?;
    let mut checked = check_over(path, in_full, &mut connection).await;
    if let (Ok(()), Some(migrations)) = (&checked, migrations) {
        checked = check_migrations(path, migrations, &mut connection).await;
    }
    let _ = connection.close().await;
    checked
}

async fn check_over(path: &Path, in_full: bool, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let failed = |error| failure(path, error);
    // From the first read on nobody else writes, here or in the log.
    for sql in ["BEGIN", "SELECT count(*) FROM sqlite_schema"] {
        sqlx::query(sql).execute(&mut *connection).await.map_err(failed)?;
    }
    check_log(&beside(path, "-wal"))?;
    let check = if in_full { "PRAGMA integrity_check(1)" } else { "PRAGMA quick_check(1)" };
    let found: Vec<(String,)> = sqlx::query_as(check).fetch_all(&mut *connection).await.map_err(failed)?;
    match &found[..] {
        [(word,)] if word == "ok" => {}
        found => {
            let what = found.first().map_or("nothing was found", |(what,)| what.as_str());
            return Err(StoreError::Damaged(format!("{}: {what}", path.display())));
        }
    }
    sums::check_all(connection, in_full).await.map_err(|error| match error {
        StoreError::Damaged(what) => StoreError::Damaged(format!("{}: {what}", path.display())),
        error => error,
    })
}

/// That no migration is known here which was applied otherwise. sqlx finds that too, but with a connection that writes.
async fn check_migrations(
    path: &Path,
    migrations: &Migrator,
    connection: &mut SqliteConnection,
) -> Result<(), StoreError> {
    let sql = "SELECT version, success, checksum FROM _sqlx_migrations";
    let applied: Vec<(i64, bool, Vec<u8>)> =
        sqlx::query_as(sql).fetch_all(connection).await.map_err(|error| failure(path, error))?;
    let ours = |version, sum: &[u8]| migrations.iter().any(|m| m.version == version && *m.checksum == *sum);
    match applied.iter().find(|(version, success, sum)| !success || !ours(*version, sum)) {
        None => Ok(()),
        Some((version, ..)) => {
            let words =
                format!("{}: its step {version} is not known here: it is damaged, or newer", path.display());
            Err(StoreError::Damaged(words))
        }
    }
}

fn check_log(log: &Path) -> Result<(), StoreError> {
    let shown = log.display();
    match wal::look(log).map_err(|error| StoreError::Failed(format!("{shown}: {error}")))? {
        Log::Whole => Ok(()),
        Log::TornTail(bytes) => {
            tracing::warn!(
                bytes,
                "{shown} ends in the middle of a commit: that commit is dropped, all before it is there"
            );
            Ok(())
        }
        Log::Broken => {
            Err(StoreError::Damaged(format!("{shown}: commits behind a broken page can't be read")))
        }
    }
}

/// Where a copy is made, as an empty file: SQLite takes one, and so it has our mode. Its path is UTF-8.
fn empty_copy(path: &Path) -> Result<PathBuf, StoreError> {
    let on_disk = |error: io::Error| StoreError::Failed(format!("a copy of {}: {error}", path.display()));
    let to = beside(path, "-copy");
    if to.to_str().is_none() {
        return Err(StoreError::Failed(format!("the path {} is not UTF-8", to.display())));
    }
    let _ = fs::remove_file(&to);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&to).map_err(on_disk)?;
    Ok(to)
}

/// The beginning of a copy that its maker fills: a database with nothing in it, at this path.
pub(crate) async fn begin_copy(path: &Path, migrations: &Migrator) -> Result<PathBuf, StoreError> {
    let to = empty_copy(path)?;
    // Nothing of it is kept before it is whole.
    let options = options(&to)?.journal_mode(SqliteJournalMode::Off).synchronous(SqliteSynchronous::Off);
    let mut connection = options.connect().await.map_err(|error| failure(&to, error))?;
    migrate(&to, migrations, &mut connection).await?;
    connection.close().await.map_err(|error| failure(&to, error))?;
    Ok(to)
}

/// A copy of all that is committed: an open file without a name.
pub(crate) async fn copy(connection: &mut SqliteConnection, path: &Path) -> Result<File, StoreError> {
    let on_disk = |error: io::Error| StoreError::Failed(format!("a copy of {}: {error}", path.display()));
    let to = empty_copy(path)?;
    let name = to.to_string_lossy().into_owned();
    let copied = sqlx::query("VACUUM INTO ?").bind(name).execute(connection).await;
    let file = File::open(&to);
    let removed = fs::remove_file(&to);
    copied.map_err(|error| failure(&to, error))?;
    removed.map_err(on_disk)?;
    file.map_err(on_disk)
}

/// Begins a transaction. Not sqlx's: that counts one that SQLite has rolled back by itself, as it does on a full disk,
/// as open for ever, and no later one would end.
pub(crate) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    if sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.is_ok() {
        return Ok(());
    }
    // Of a caller that went away in the middle.
    let _ = sqlx::query("ROLLBACK").execute(&mut *connection).await;
    sqlx::query("BEGIN IMMEDIATE").execute(connection).await.map(drop)
}

/// Ends it: with a commit if all went well, else as if it had never begun.
pub(crate) async fn end<T>(
    connection: &mut SqliteConnection,
    done: Result<T, StoreError>,
) -> Result<T, StoreError> {
    let ended = match done {
        Ok(value) => {
            let committed = sqlx::query("COMMIT").execute(&mut *connection).await;
            committed.map(|_| value).map_err(StoreError::from)
        }
        Err(error) => Err(error),
    };
    if ended.is_err() {
        // An error when SQLite has done so already.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    ended
}

/// The store holds the env of live sessions: its files are for their owner alone. SQLite
/// gives its log and index the mode of the database, so that one must be right before it is
/// opened; what an earlier version left laxer is put right.
fn keep_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for end in ["", "-wal", "-shm", "-journal"] {
        match fs::set_permissions(beside(path, end), fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

fn failure(path: &Path, error: sqlx::Error) -> StoreError {
    let path = path.display();
    let code = error.as_database_error().and_then(|e| e.code()).map(|c| c.into_owned()).unwrap_or_default();
    // SQLite's primary result codes: the low byte. BUSY 5, LOCKED 6, CORRUPT 11, NOTADB 26.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        5 | 6 => StoreError::Locked(path.to_string()),
        11 | 26 => StoreError::Damaged(format!("{path}: {error}")),
        _ => StoreError::Failed(format!("{path}: {error}")),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        failure(Path::new("(open)"), error)
    }
}
