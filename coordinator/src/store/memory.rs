//! A store in memory, for tests: what it was told survives the coordinator for as long as
//! somebody holds it, and it fails on command.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use berth_proto::{SessionId, TaskId, TokenId, WorkerId, v1};

use super::{Batch, Store, StoreError, TASKS_PER_SESSION};
use crate::{
    fleet::{Loaded, Quota, RequestKey, Session, Worker},
    identity::Token,
    tenant::Tenant,
};

/// See the module.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    failing: AtomicBool,
    commits: AtomicU64,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<SessionId, Session>,
    workers: BTreeMap<WorkerId, Worker>,
    keys: BTreeMap<String, RequestKey>,
    promised_lease: Option<std::time::Duration>,
    quotas: BTreeMap<Tenant, Quota>,
    tokens: BTreeMap<TokenId, Arc<Token>>,
    tasks: BTreeMap<(SessionId, TaskId), v1::Task>,
}

impl MemoryStore {
    /// From now on every commit fails, or none does.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    /// Commits that went through.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        let inner = self.inner();
        Ok(Loaded {
            sessions: inner.sessions.values().cloned().collect(),
            // Only the record survives, as on a disk.
            workers: inner
                .workers
                .values()
                .map(|w| Worker::from_record(w.id.clone(), w.incarnation, w.scheduling))
                .collect(),
            keys: inner.keys.values().cloned().collect(),
            promised_lease: inner.promised_lease,
            quotas: inner.quotas.clone().into_iter().collect(),
            tokens: inner.tokens.values().map(|token| (**token).clone()).collect(),
        })
    }

    async fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(StoreError::Failed("told to fail".to_owned()));
        }
        let mut inner = self.inner();
        for session in &batch.sessions {
            inner.sessions.insert(session.id, (**session).clone());
        }
        for id in &batch.forget_sessions {
            inner.sessions.remove(id);
            inner.tasks.retain(|(session, _), _| session != id);
        }
        for worker in &batch.workers {
            inner.workers.insert(worker.id.clone(), (**worker).clone());
        }
        for id in &batch.forget_workers {
            inner.workers.remove(id);
        }
        for key in &batch.keys {
            inner.keys.insert(key.key.clone(), key.clone());
        }
        for key in &batch.forget_keys {
            inner.keys.remove(key);
        }
        inner.promised_lease = batch.promised_lease.or(inner.promised_lease);
        inner.quotas.extend(batch.quotas.iter().cloned());
        inner.tokens.extend(batch.tokens.iter().map(|token| (token.id, token.clone())));
        for id in &batch.forget_tokens {
            inner.tokens.remove(id);
        }
        for record in &batch.tasks {
            let key = (record.session, record.task);
            inner.tasks.entry(key).or_insert_with(|| (*record.summary).clone());
            let of_session = |k: &&(SessionId, TaskId)| k.0 == record.session;
            let surplus = inner.tasks.keys().filter(of_session).count().saturating_sub(TASKS_PER_SESSION);
            let oldest: Vec<_> = inner.tasks.keys().filter(of_session).take(surplus).copied().collect();
            for key in oldest {
                inner.tasks.remove(&key);
            }
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn task(&self, session: SessionId, task: TaskId) -> Result<Option<v1::Task>, StoreError> {
        Ok(self.inner().tasks.get(&(session, task)).cloned())
    }

    async fn tasks(
        &self,
        session: SessionId,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<v1::Task>, StoreError> {
        let inner = self.inner();
        let older = inner
            .tasks
            .iter()
            .rev()
            .filter(|((of, id), _)| *of == session && before.is_none_or(|before| *id < before));
        Ok(older.take(limit).map(|(_, task)| task.clone()).collect())
    }

    async fn copy(&self) -> Result<std::fs::File, StoreError> {
        Err(StoreError::Failed("a store in memory has no file".to_owned()))
    }

    async fn close(&self) {}
}
