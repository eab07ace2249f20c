//! Putting a backup back, where the store is damaged or gone: the two databases of `berth backup` take the place of those
//! that are there. No coordinator may run on the state directory meanwhile ([`StateDir`]).
//!
//! **The backup is tried first**: copied beside, checked page by page, brought to this version and read as a coordinator
//! reads it at its start. Only what passes is put in place.
//!
//! **Nothing is deleted.** What was there goes into a directory `damaged-<time>` in the state directory.
//!
//! **A crash in the middle is noticed**: the first thing that happens to the files in place is that `coordinator.db`
//! becomes an empty file, which no coordinator takes for a store; the last is that it becomes the backup's. So there is
//! no moment at which a coordinator would start with half of a restore, or with the log of another database.
//!
//! **The audit record is not turned back**: what was done since the backup was done. The backup's takes its place only
//! where there is none, or a newer version's: on the way back from that.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use berth_proto::{convert::time_out, domain::SessionState, world};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    audit::{AUDIT_FILE, AuditFile},
    checkpoints::Catalog,
    config::Problem,
    start::{CATALOG_FILE, STORE_FILE},
    store::{Store, StoreError, file, sqlite::SqliteStore},
};

#[cfg(test)]
mod tests;

/// The databases, the one last that a start needs first.
const FILES: [&str; 2] = [CATALOG_FILE, STORE_FILE];
/// ... and, of a backup that has it, the audit record.
const ALL: [&str; 3] = [AUDIT_FILE, CATALOG_FILE, STORE_FILE];
/// What SQLite puts beside a database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// Where a restore prepares what it puts in place. One at a time, and of no use after it.
const STAGING: &str = "restoring";

/// What a restore has done.
#[derive(Debug)]
pub struct Restored {
    /// What was there, if anything was.
    pub aside: Option<PathBuf>,
    pub files: Vec<PathBuf>,
    /// The audit record is the backup's: there was none, or a newer version's.
    pub audit: bool,
    /// Sessions in the backup that had not ended, and those that had.
    pub live: usize,
    pub ended: usize,
    pub checkpoints: u64,
}

/// A claim on a state directory, that the kernel gives back however the process ends. Coordinators share it (which of
/// two may use the store is the store's own lock to say); a restore has it alone.
pub(crate) struct StateDir {
    _lock: Flock<File>,
}

impl StateDir {
    /// For a coordinator.
    pub(crate) fn share(dir: &Path) -> Result<Self, Problem> {
        Self::lock(dir, FlockArg::LockSharedNonblock, || {
            Problem::new(
                format!("a backup is being put back into {}", dir.display()),
                "start again when `berth backup restore` has ended",
            )
        })
    }

    fn alone(dir: &Path) -> Result<Self, Problem> {
        Self::lock(dir, FlockArg::LockExclusiveNonblock, || {
            Problem::new(
                format!("a coordinator, or another restore, uses {}", dir.display()),
                "stop it first: `berth stop`, or its service; then restore again",
            )
        })
    }

    fn lock(dir: &Path, how: FlockArg, taken: impl Fn() -> Problem) -> Result<Self, Problem> {
        let file = File::open(dir).map_err(|error| on_disk(dir, &error))?;
        match Flock::lock(file, how) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(taken()),
            Err((_, error)) => Err(on_disk(dir, &io::Error::from(error))),
        }
    }
}

/// Puts the backup in `from` into the state directory.
pub async fn restore(from: &Path, state_dir: &Path) -> Result<Restored, Problem> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
    made.map_err(|error| on_disk(state_dir, &error))?;
    is_backup(from, state_dir)?;
    let _alone = StateDir::alone(state_dir)?;
    let staging = state_dir.join(STAGING);
    let has_audit = from.join(AUDIT_FILE).is_file();
    let kept_audit = has_audit && state_dir.join(AUDIT_FILE).exists();
    let staged = async {
        clear(&staging)?;
        copy(from, &staging, if has_audit && !kept_audit { &ALL } else { &FILES })?;
        let found = try_out(&staging).await?;
        if !kept_audit || !AuditFile::is_newer(&state_dir.join(AUDIT_FILE)).await {
            return Ok(found);
        }
        copy(from, &staging, &[AUDIT_FILE])?;
        try_out(&staging).await
    };
    let result = match staged.await {
        Ok(found) => put_in_place(&staging, state_dir, || Ok(())).map(|aside| Restored { aside, ..found }),
        Err(problem) => Err(problem),
    };
    let _ = fs::remove_dir_all(&staging);
    result.map(|restored| {
        let audit = restored.audit.then_some(&AUDIT_FILE);
        let files = FILES.iter().rev().chain(audit).map(|name| state_dir.join(name)).collect();
        Restored { files, ..restored }
    })
}

/// Whether there is a whole backup to begin with.
fn is_backup(from: &Path, state_dir: &Path) -> Result<(), Problem> {
    let hint = "give the directory that `berth backup --to DIR` made";
    let shown = from.display();
    let same = from.canonicalize().ok().zip(state_dir.canonicalize().ok());
    if same.is_some_and(|(from, to)| from == to) {
        return Err(Problem::new(format!("{shown} is the state directory itself"), hint));
    }
    for name in ALL {
        if name != AUDIT_FILE && !from.join(name).is_file() {
            return Err(Problem::new(format!("{shown} is no backup: there is no file {name} in it"), hint));
        }
        if beside(&from.join(name), "-wal").exists() {
            let what =
                format!("{shown} is no backup, but the directory of a coordinator: {name}-wal is in it");
            return Err(Problem::new(what, hint));
        }
    }
    Ok(())
}

fn clear(staging: &Path) -> Result<(), Problem> {
    match fs::remove_dir_all(staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(on_disk(staging, &error)),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(staging).map_err(|error| on_disk(staging, &error))
}

fn copy(from: &Path, staging: &Path, files: &[&str]) -> Result<(), Problem> {
    for name in files {
        let (source, target) = (from.join(name), staging.join(name));
        let mut input = File::open(&source).map_err(|error| on_disk(&source, &error))?;
        let copied = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target);
        let copied = copied.and_then(|mut output| io::copy(&mut input, &mut output));
        copied.map_err(|error| on_disk(&target, &error))?;
    }
    Ok(())
}

/// Opens the copies as a coordinator would, and closes them.
async fn try_out(staging: &Path) -> Result<Restored, Problem> {
    let refused = |error: StoreError| {
        let hint = match error {
            StoreError::Damaged(_) => "nothing was changed; try an older backup",
            StoreError::Locked(_) | StoreError::Failed(_) => {
                "nothing was changed; look at the disk under the state directory"
            }
        };
        Problem::new(format!("the backup can't be used: {error}"), hint)
    };
    let files = || ALL.iter().map(|name| staging.join(name)).filter(|path| path.exists());
    for path in files() {
        file::check_in_full(&path).await.map_err(refused)?;
    }
    let audit = staging.join(AUDIT_FILE);
    let has_audit = audit.exists();
    if has_audit {
        AuditFile::open(Some(&audit)).await.map_err(refused)?.close().await.map_err(refused)?;
    }
    let store = SqliteStore::open(&staging.join(STORE_FILE)).await.map_err(refused)?;
    let loaded = store.load().await.map_err(refused);
    store.close().await;
    let sessions = loaded?.sessions;
    let catalog = Catalog::open(Some(&staging.join(CATALOG_FILE))).await.map_err(refused)?;
    let (owner, totals) = (catalog.owner().await, catalog.totals().await);
    catalog.close().await.map_err(refused)?;
    owner.map_err(refused)?;
    for path in files() {
        File::open(&path).and_then(|file| file.sync_all()).map_err(|error| on_disk(&path, &error))?;
    }
    let ended = sessions.iter().filter(|session| session.state == SessionState::Ended).count();
    Ok(Restored {
        aside: None,
        files: Vec::new(),
        audit: has_audit,
        live: sessions.len() - ended,
        ended,
        checkpoints: totals.map_err(refused)?.0,
    })
}

/// Exchanges the files. The order is that of the module's promise. `step` is told before each change.
fn put_in_place(
    staging: &Path,
    state_dir: &Path,
    mut step: impl FnMut() -> io::Result<()>,
) -> Result<Option<PathBuf>, Problem> {
    let mut there = Vec::new();
    for name in ALL {
        if name == AUDIT_FILE && !staging.join(name).exists() {
            continue;
        }
        there.extend(parts(name).filter(|name| state_dir.join(name).exists()));
    }
    let aside = if there.is_empty() { None } else { Some(make_aside(state_dir)?) };
    let mut exchange = || {
        if let Some(aside) = &aside {
            set_aside(&there, state_dir, aside, staging, &mut step)?;
        }
        for name in ALL {
            if name == AUDIT_FILE && !staging.join(name).exists() {
                continue;
            }
            step()?;
            fs::rename(staging.join(name), state_dir.join(name))?;
            sync(state_dir)?;
        }
        Ok(())
    };
    let exchanged: io::Result<()> = exchange();
    match exchanged {
        Ok(()) => Ok(aside),
        Err(error) => {
            let kept =
                aside.map(|dir| format!("; what was there is in {}", dir.display())).unwrap_or_default();
            let what = format!("the backup could not be put into {}: {error}{kept}", state_dir.display());
            Err(Problem::new(
                what,
                "look at the disk, and restore again: the same command goes on from there",
            ))
        }
    }
}

/// Moves all that is there, and leaves an empty file for a store.
fn set_aside(
    there: &[String],
    state_dir: &Path,
    aside: &Path,
    staging: &Path,
    step: &mut impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let (store, empty) = (state_dir.join(STORE_FILE), staging.join("empty"));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&empty)?;
    if there.iter().any(|name| name == STORE_FILE) {
        step()?;
        fs::hard_link(&store, aside.join(STORE_FILE))?;
    }
    sync(aside)?;
    step()?;
    fs::rename(&empty, &store)?;
    sync(state_dir)?;
    for name in there.iter().filter(|name| *name != STORE_FILE) {
        step()?;
        fs::rename(state_dir.join(name), aside.join(name))?;
    }
    sync(aside)
}

/// A directory for what is there, that nobody else may read.
fn make_aside(state_dir: &Path) -> Result<PathBuf, Problem> {
    let now = prost_types::Timestamp { nanos: 0, ..time_out(world::now()) }.to_string();
    let name = format!("damaged-{}", now.replace([':', '-'], ""));
    let mut numbered = [name.clone()].into_iter().chain((2..).map(|n| format!("{name}-{n}")));
    loop {
        let dir = state_dir.join(numbered.next().expect("there is always one more"));
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(on_disk(&dir, &error)),
        }
    }
}

/// A database's file, and what SQLite may have put beside it.
fn parts(name: &str) -> impl Iterator<Item = String> {
    [""].into_iter().chain(BESIDE).map(move |end| format!("{name}{end}"))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

fn on_disk(path: &Path, error: &io::Error) -> Problem {
    Problem::new(
        format!("{}: {error}", path.display()),
        "run as the user that the coordinator runs as, and look at the disk under that path",
    )
}
