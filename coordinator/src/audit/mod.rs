//! What was done, by whom, and what came of it: `berth audit`. INVARIANT: a record is never changed; that one was, or that one
//! is missing, shows in the chain of sums.
//!
//! **What is recorded**: each call that changes something or is refused ([`READS`] names those that only look), each end of a
//! task and of a session, each egress decision that a worker reports. A call is recorded when its answer begins, so a call
//! that is under way when the coordinator is killed is missing, while its effects, such as a task's end, are there.
//!
//! **What is not**: values of env and of standard input, contents of files, tokens. Of a command line there is the hash, or
//! all of it where the operator said so.
//!
//! **Nothing waits for it.** Records go through a bounded queue to a file of their own. While that can't be written they wait;
//! what finds no room is counted, and the count is recorded as soon as there is room again. Whatever goes through all of a large
//! record ([`copy`], `verify`) lets records be written in between.

mod calls;
mod copy;
mod ends;
mod file;
mod record;

use std::{
    collections::VecDeque,
    fs::File,
    path::Path,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use berth_proto::{spawn::spawn, world};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use calls::{about, about_program};
pub use file::{AuditFile, Filter, Verified};
pub use record::{BERTH, Record};

use crate::{driver::Shared, store::StoreError};

/// The database, below the state directory.
pub const AUDIT_FILE: &str = "audit.db";
/// Records that wait to be written, at most.
const WAITING: usize = 10_000;
/// Those that are written together.
const TOGETHER: usize = 256;
/// Between two tries to write.
const AGAIN: Duration = Duration::from_secs(1);
/// How often what is too old is looked for.
const PURGE_EVERY: Duration = Duration::from_secs(3600);

/// How a task's command line is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Argv {
    /// Its SHA-256.
    #[default]
    Hash,
    Full,
}

impl Argv {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Full => "full",
        }
    }
}

impl FromStr for Argv {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [Self::Hash, Self::Full].into_iter().find(|argv| argv.as_str() == text);
        found.ok_or_else(|| "it is none of hash, full".to_owned())
    }
}

/// What the operator says of it.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub argv: Argv,
    /// Older records go.
    pub keep: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { argv: Argv::Hash, keep: Duration::from_secs(90 * 86_400) }
    }
}

/// Records, since the start; and those that wait now.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub written: u64,
    pub lost: u64,
    pub waiting: u64,
}

/// See the module.
pub struct Audit {
    pub settings: Settings,
    /// `None`: nothing is recorded.
    file: Option<AuditFile>,
    waiting: Mutex<VecDeque<Record>>,
    came: Notify,
    /// One writes at a time, so that nothing overtakes what was before it.
    writing: tokio::sync::Mutex<()>,
    lost: AtomicU64,
    /// Since the start.
    written: AtomicU64,
    lost_in_all: AtomicU64,
    refusals: calls::Refusals,
}

impl Audit {
    /// Opens the record, in the state directory.
    pub async fn open(state_dir: &Path, settings: Settings) -> Result<Arc<Self>, StoreError> {
        let file = AuditFile::open(Some(&state_dir.join(AUDIT_FILE))).await?;
        Ok(Arc::new(Self::with(Some(file), settings)))
    }

    /// One that keeps nothing, for simulations: its file would be written by a thread of its own.
    pub fn nowhere() -> Arc<Self> {
        Arc::new(Self::with(None, Settings::default()))
    }

    fn with(file: Option<AuditFile>, settings: Settings) -> Self {
        Self {
            settings,
            file,
            waiting: Mutex::default(),
            came: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            lost: AtomicU64::new(0),
            written: AtomicU64::new(0),
            lost_in_all: AtomicU64::new(0),
            refusals: calls::Refusals::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be written soon.
    pub fn record(&self, record: Record) {
        if self.file.is_none() {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.len() < WAITING {
            waiting.push_back(record.bounded());
        } else {
            self.lost_in_all.fetch_add(1, Ordering::Relaxed);
            if self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::error!("audit records are lost: the audit record can't be written");
            }
        }
        drop(waiting);
        self.came.notify_one();
    }

    /// How it goes.
    pub fn figures(&self) -> Figures {
        Figures {
            written: self.written.load(Ordering::Relaxed),
            lost: self.lost_in_all.load(Ordering::Relaxed),
            waiting: self.waiting().len() as u64,
        }
    }

    /// What fits, newest first.
    pub async fn list(&self, filter: &Filter, most: usize) -> Result<Vec<(u64, Record)>, StoreError> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        self.flush(file).await?;
        file.list(filter, most).await
    }

    /// A copy of what is recorded by now, to be kept with a backup. `None`: it is in no file.
    pub async fn copy(&self) -> Result<Option<File>, StoreError> {
        let Some(file) = &self.file else { return Ok(None) };
        self.flush(file).await?;
        file.copy().await
    }

    pub async fn verify(&self) -> Result<Verified, StoreError> {
        let Some(file) = &self.file else { return Ok(Verified::default()) };
        self.flush(file).await?;
        file.verify().await
    }

    /// All that was recorded by now is in the file when this returns, or can't be.
    async fn flush(&self, file: &AuditFile) -> Result<(), StoreError> {
        let _alone = self.writing.lock().await;
        loop {
            // Copied, and removed when they are written: a caller may go away in between.
            let mut some: Vec<Record> = self.waiting().iter().take(TOGETHER).cloned().collect();
            let (taken, lost) = (some.len(), self.lost.load(Ordering::Relaxed));
            if lost > 0 {
                let mut record = Record::new(world::now(), BERTH, "lost");
                record.details.insert("records".to_owned(), lost.to_string());
                some.push(record);
            }
            if some.is_empty() {
                return Ok(());
            }
            file.add(&some).await?;
            self.written.fetch_add(some.len() as u64, Ordering::Relaxed);
            self.waiting().drain(..taken);
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        }
    }

    /// Writes what is recorded, until it is told to stop; and then what is left.
    async fn keep(self: Arc<Self>, stopping: CancellationToken) {
        let Some(file) = &self.file else { return };
        while stopping.run_until_cancelled(self.came.notified()).await.is_some() {
            while let Err(error) = self.flush(file).await {
                tracing::error!(%error, waiting = self.waiting().len(), "the audit record can't be written");
                if stopping.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    break;
                }
            }
        }
        if let Err(error) = self.flush(file).await {
            tracing::error!(%error, lost = self.waiting().len(), "the last audit records could not be written");
        }
    }

    async fn forget_old(self: Arc<Self>) {
        while let Some(file) = &self.file {
            let older = world::now().checked_sub(self.settings.keep).unwrap_or(SystemTime::UNIX_EPOCH);
            match file.purge(older).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "old audit records are gone"),
                Err(error) => tracing::warn!(%error, "old audit records could not be removed"),
            }
            tokio::time::sleep(PURGE_EVERY).await;
        }
    }

    /// Begins to record, until `stopping`. What is returned ends when all is written.
    pub fn begin(self: &Arc<Self>, shared: &Shared, stopping: &CancellationToken) -> JoinHandle<()> {
        let (audit, until) = (self.clone(), stopping.clone());
        spawn("old audit records", async move {
            until.run_until_cancelled(audit.forget_old()).await;
        });
        let (audit, shared, until) = (self.clone(), shared.clone(), stopping.clone());
        spawn("ends for the audit record", async move {
            until.run_until_cancelled(ends::record(audit, shared)).await;
        });
        spawn("audit", self.clone().keep(stopping.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when one that found no room is not counted, or is counted no more once that is in the record.
    #[tokio::test]
    async fn what_finds_no_room_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), Settings::default()).await.unwrap();
        for _ in 0..WAITING + 3 {
            audit.record(Record::new(world::now(), "somebody", "A/one"));
        }
        let Figures { written, lost, waiting } = audit.figures();
        assert_eq!((written, lost, waiting), (0, 3, WAITING as u64));
        audit.flush(audit.file.as_ref().unwrap()).await.unwrap();
        let Figures { written, lost, waiting } = audit.figures();
        assert_eq!((written, lost, waiting), (WAITING as u64 + 1, 3, 0), "and one that says so");
    }
}
