//! What must outlive the coordinator's process, behind one trait: who the sessions are and
//! at which epoch, request ids, the workers' incarnations, finished tasks, tokens, quotas. Everything else
//! is the workers' truth and comes back with their hellos.
//!
//! The trait has no single writes: a [`Batch`] is one transaction, so the driver commits as
//! many events as have come together at the price of one (group commit), and a record is
//! never half of what an event changed.
//!
//! SQLite is the store ([`sqlite`], over [`file`]); [`memory`] is for tests, and can be told to fail.

#[cfg(test)]
mod damage_tests;
pub(crate) mod file;
mod identity_rows;
pub mod memory;
mod record;
pub mod sqlite;
mod sums;
#[cfg(test)]
mod tests;
mod wal;

#[cfg(test)]
pub(crate) use record::as_kept;
pub(crate) use record::{micros, spec_in, spec_out, time};

use std::{fs::File, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_proto::{SessionId, TaskId, TokenId, WorkerId, v1};

use crate::{
    fleet::{Loaded, Quota, RequestKey, Session, Worker},
    identity::Token,
    tenant::Tenant,
};

/// Finished tasks that are kept of one session, the newest.
pub const TASKS_PER_SESSION: usize = 1000;

/// Changes that go into the store together or not at all. Within a batch the later record
/// of a session or worker stands for all before it.
#[derive(Default, Debug, Clone)]
pub struct Batch {
    pub sessions: Vec<Arc<Session>>,
    pub forget_sessions: Vec<SessionId>,
    pub workers: Vec<Arc<Worker>>,
    pub forget_workers: Vec<WorkerId>,
    pub keys: Vec<RequestKey>,
    pub forget_keys: Vec<String>,
    /// The longest lease under which some worker may hold sessions, from now on.
    pub promised_lease: Option<Duration>,
    pub quotas: Vec<(Tenant, Quota)>,
    pub tokens: Vec<Arc<Token>>,
    pub forget_tokens: Vec<TokenId>,
    pub tasks: Vec<TaskRecord>,
}

impl Batch {
    /// Whether nothing is to be written, but perhaps tasks, which can wait for company.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
            && self.forget_sessions.is_empty()
            && self.workers.is_empty()
            && self.forget_workers.is_empty()
            && self.keys.is_empty()
            && self.forget_keys.is_empty()
            && self.promised_lease.is_none()
            && self.quotas.is_empty()
            && self.tokens.is_empty()
            && self.forget_tokens.is_empty()
    }
}

/// A finished task.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    pub session: SessionId,
    pub task: TaskId,
    pub summary: Arc<v1::Task>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another coordinator holds it.
    #[error("the store {0} is in use by another coordinator")]
    Locked(String),
    /// It can be read, but not understood. It is never deleted or repaired by us.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A durable store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// All that the fleet needs at start.
    async fn load(&self) -> Result<Loaded, StoreError>;

    /// Writes a batch. When this returns, it survives the end of the process, and, as far
    /// as the disk keeps its promises, of the machine.
    async fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// A finished task.
    async fn task(&self, session: SessionId, task: TaskId) -> Result<Option<v1::Task>, StoreError>;

    /// Finished tasks of a session, newest first, older than `before`.
    async fn tasks(
        &self,
        session: SessionId,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<v1::Task>, StoreError>;

    /// A copy of all that is committed, to be restored from: an open file that has no name.
    async fn copy(&self) -> Result<File, StoreError>;

    /// Lets go of it, so that another may open it.
    async fn close(&self);
}
