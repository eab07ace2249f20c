//! Letting go: of checkpoints whose time is over, of pieces that none uses, and of blobs that a crash left without
//! a row. Nothing that may be in use by a checkpoint under way is touched: whoever is told that a piece is there has
//! [`GRACE`] to finish.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::TryStreamExt;

use super::{Checkpoints, Claim};

const EVERY: Duration = Duration::from_secs(60);
/// Longer than any checkpoint may take.
const GRACE: Duration = Duration::from_secs(3600);
/// Removals between two looks.
const AT_ONCE: u32 = 1000;
/// Listing a whole blob store is dear: once a day.
const LIST_EVERY: Duration = Duration::from_secs(86_400);

/// Sweeps until it is dropped.
pub async fn sweep_for_ever(checkpoints: Arc<Checkpoints>) {
    let mut listed = None;
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = checkpoints.sweep(GRACE).await {
            tracing::warn!(?error, "checkpoints could not be swept");
        }
        // While the store can't be reached nobody knows whose it is.
        let ours = checkpoints.claimed().await;
        if ours && listed.is_none_or(|at: tokio::time::Instant| at.elapsed() >= LIST_EVERY) {
            listed = Some(tokio::time::Instant::now());
            if let Err(error) = checkpoints.sweep_strays(GRACE).await {
                tracing::warn!(?error, "the blob store could not be looked through");
            }
        }
    }
}

impl Checkpoints {
    async fn claimed(&self) -> bool {
        let Ok(owner) = self.catalog.owner().await else { return false };
        matches!(self.blobs.claim(&owner).await, Ok(Claim::Ours))
    }

    /// Removes what is over and what nobody uses. How many pieces went.
    pub async fn sweep(&self, grace: Duration) -> Result<usize, berth_proto::Error> {
        let now = SystemTime::now();
        for id in self.catalog.expire(now).await.map_err(super::unkept)? {
            tracing::info!(checkpoint.id = id, "a checkpoint's time is over");
            self.forgotten(&id).await;
        }
        let mut removed = 0;
        loop {
            let _alone = self.removing.write().await;
            let since = now - grace;
            let released = self.catalog.release(since, AT_ONCE).await.map_err(super::unkept)?;
            for digest in &released {
                self.blobs.delete(*digest).await?;
            }
            removed += released.len();
            if released.is_empty() {
                return Ok(removed);
            }
        }
    }

    /// Removes blobs without a row: a crash came between the two.
    pub async fn sweep_strays(&self, grace: Duration) -> Result<usize, berth_proto::Error> {
        let mut removed = 0;
        let mut old = self.blobs.older_than(grace).try_chunks(AT_ONCE as usize);
        while let Some(digests) = old.try_next().await.map_err(|stopped| stopped.1)? {
            let _alone = self.removing.write().await;
            for digest in self.catalog.unknown(&digests).await.map_err(super::unkept)? {
                self.blobs.delete(digest).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
