//! The coordinator's store: in memory, slow as a disk is, and with a disk's losses. A commit that was not answered when
//! the coordinator died is there or is not, as the moment has it; one that was answered is there.

use std::{fs::File, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_coordinator::{
    fleet::Loaded,
    store::{Batch, Store, StoreError, memory::MemoryStore},
};
use berth_proto::{SessionId, TaskId, v1, world};

use crate::model::Model;

/// See the module.
pub struct SimStore {
    disk: MemoryStore,
    model: Arc<Model>,
}

impl SimStore {
    pub fn new(model: Arc<Model>) -> Self {
        Self { disk: MemoryStore::default(), model }
    }

    /// From now on every commit fails, or none does.
    pub fn fail(&self, failing: bool) {
        self.disk.fail(failing);
    }
}

#[async_trait]
impl Store for SimStore {
    async fn load(&self) -> Result<Loaded, StoreError> {
        self.disk.load().await
    }

    async fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        // On the way to the disk: who dies now has written nothing.
        tokio::time::sleep(Duration::from_micros(world::random_u64() % 4000)).await;
        self.disk.commit(batch).await?;
        self.model.committed(batch);
        // On the way back: who dies now has written it and never heard of it.
        tokio::time::sleep(Duration::from_micros(world::random_u64() % 2000)).await;
        Ok(())
    }

    async fn task(&self, session: SessionId, task: TaskId) -> Result<Option<v1::Task>, StoreError> {
        self.disk.task(session, task).await
    }

    async fn tasks(
        &self,
        session: SessionId,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<v1::Task>, StoreError> {
        self.disk.tasks(session, before, limit).await
    }

    async fn copy(&self) -> Result<File, StoreError> {
        self.disk.copy().await
    }

    async fn close(&self) {}
}
