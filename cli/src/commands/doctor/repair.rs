//! `berth doctor --fix`: what is ours and can be mended without a choice. Permissions of credentials, the record of a `berth
//! up` that is gone, sandboxes that no worker would take up. What it changes is kept or written down below `<state>/doctor/`, so
//! that nothing is lost by it. Before it changes something it looks once more, with the lock that keeps others away.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_client::local;
use berth_worker::{Config, orphans, store};

use super::{Finding, Verdict};
use crate::{commands::up, process};

/// For the lock that keeps others away: this often again, after this.
const LOCK_TRIES: u32 = 20;
const LOCK_AGAIN: Duration = Duration::from_millis(100);

/// What mends a finding.
#[derive(Debug)]
pub enum Repair {
    /// Nobody but its owner may use it.
    Close(PathBuf),
    /// The record of a `berth up` is out of the way.
    Record,
    /// Sandboxes of this worker are removed.
    Remove(Box<Config>, store::Kind),
}

/// Where what was changed is kept. It is made when there is something to keep.
pub struct Kept {
    state_dir: PathBuf,
    dir: PathBuf,
}

impl Kept {
    pub fn new(state_dir: &Path) -> Self {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string().replace(':', "");
        Self { state_dir: state_dir.to_owned(), dir: state_dir.join("doctor").join(now) }
    }

    pub fn dir(&self) -> Option<&Path> {
        self.dir.exists().then_some(&self.dir)
    }

    fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// Says how it was.
    fn note(&self, line: &str) -> io::Result<()> {
        use io::Write;
        self.make()?;
        let path = self.dir.join("changes");
        let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        writeln!(file, "{line}")
    }

    /// What was done, or why not. Written down first: what can't be is not done.
    pub async fn mend(&self, repair: &Repair) -> Result<String, String> {
        let told = |error: io::Error| error.to_string();
        match repair {
            Repair::Close(path) => self.close(path).map_err(told),
            Repair::Record => self.move_record().await,
            Repair::Remove(config, files) => {
                let there = orphans::look(config, *files).await;
                for (backend, session) in there.sessions() {
                    self.note(&format!("to be removed: the {backend} sandbox of session {session}"))
                        .map_err(told)?;
                }
                let done = orphans::remove(config, *files).await.map_err(|error| error.to_string())?;
                match done {
                    (removed, failed) if failed.is_empty() => Ok(format!("{removed} removed")),
                    (removed, failed) => Err(format!("{removed} removed; {}", failed.join("; "))),
                }
            }
        }
    }

    fn close(&self, path: &Path) -> io::Result<String> {
        let mode = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
        let closed = mode & 0o700;
        self.note(&format!("chmod {mode:o} {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(closed))?;
        Ok(format!("mode {closed:o} now, {mode:o} before"))
    }

    async fn move_record(&self) -> Result<String, String> {
        // With it no `berth up` starts, and none runs. Another `--fix` has it for a moment.
        let mut tries = 0;
        let _lock = loop {
            match up::lock(&self.state_dir) {
                Ok(lock) => break lock,
                Err(failure) if tries == LOCK_TRIES => return Err(failure.message),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(LOCK_AGAIN).await;
        };
        match local::read_up_record(&self.state_dir) {
            Ok(None) => return Ok("it is gone by now".to_owned()),
            _ if record(&self.state_dir).is_none() => return Err("it is of one that runs now".to_owned()),
            _ => {}
        }
        let path = local::up_record_path(&self.state_dir);
        let kept = self.dir.join("up.json");
        let moved = self.make().and_then(|()| fs::rename(&path, &kept));
        moved.map(|()| format!("moved to {}", kept.display())).map_err(|error| error.to_string())
    }
}

/// The record of a `berth up` that is gone, or that can't be read.
pub fn record(state_dir: &Path) -> Option<Finding> {
    let path = local::up_record_path(state_dir);
    let what = "record of `berth up`";
    let finding = match local::read_up_record(state_dir) {
        Ok(None) => return None,
        Ok(Some(record)) => match process::find(&record) {
            Ok(Some(_)) => return None,
            Ok(None) => {
                let text = format!("{} is of process {}, which is gone", path.display(), record.pid);
                Finding::new(what, Verdict::Note, text)
            }
            Err(error) => {
                let text = format!("can't look at process {}: {error}", record.pid);
                return Some(
                    Finding::new(what, Verdict::Unknown, text).hint("run as the user that started it"),
                );
            }
        },
        Err(error) => Finding::new(what, Verdict::Problem, error.message()),
    };
    let hint = "`berth doctor --fix` moves it out of the way; the next `berth up` writes a new one";
    Some(finding.hint(hint).mended_by(Repair::Record))
}

/// The credentials' directory, if others may look into it. (The tokens themselves are looked at one by one.)
pub fn credentials(state_dir: &Path) -> Option<Finding> {
    let dir = state_dir.join("credentials");
    let repair = closing(&dir)?;
    let text = format!("others may look into {}", dir.display());
    let hint = format!("chmod 700 {}, or `berth doctor --fix`", dir.display());
    Some(Finding::new("credentials", Verdict::Problem, text).hint(hint).mended_by(repair))
}

/// What keeps others out of it, if they are not: of what is really there, and this user's own.
pub fn closing(path: &Path) -> Option<Repair> {
    let meta = fs::symlink_metadata(path).ok()?;
    let ours = !meta.is_symlink() && meta.uid() == nix::unistd::geteuid().as_raw();
    (ours && meta.permissions().mode() & 0o077 != 0).then(|| Repair::Close(path.to_owned()))
}
