//! Letting go: of checkpoints whose time is over, of pieces that none uses, and of blobs that a crash left without
//! a row. Nothing that may be in use by a checkpoint under way is touched: whoever is told that a piece is there has
//! [`GRACE`] to finish.

use std::{sync::Arc, time::Duration};

use berth_proto::world;
use futures::TryStreamExt;

use super::{Checkpoints, Claim};
use crate::{fleet::Session, tenant::Sight};

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
        let Ok(owner) = world::on_thread(self.catalog.owner()).await else { return false };
        matches!(self.blobs.claim(&owner).await, Ok(Claim::Ours))
    }

    /// What parked sessions need is held, and what they needed is let go, for as long as their policy says from now on.
    /// A session that is about to be parked may need one that it does not name yet.
    pub async fn hold_what_is_needed(&self) -> Result<(), berth_proto::Error> {
        // Held first, and then asked who needs it: what is held meanwhile is not in this list.
        let held = world::on_thread(self.catalog.held()).await.map_err(super::unkept)?;
        let parked = self.shared.view.list(&Sight::All, None, usize::MAX, |s| s.comes_from_park());
        for kept in parked.iter().filter_map(|session| session.checkpoint.as_ref()) {
            let id = &kept.from.checkpoint;
            if held.iter().any(|record| record.shown.id == *id) {
                continue;
            }
            match world::on_thread(self.catalog.get(&Sight::All, id)).await.map_err(super::unkept)? {
                Some(record) => {
                    world::on_thread(self.catalog.hold(&record, None)).await.map_err(super::unkept)?;
                }
                None => tracing::error!(checkpoint.id = id, "the checkpoint of a parked session is gone"),
            }
        }
        for record in held {
            let needs = |s: &Session| s.parking.is_some() || s.needs(&record.shown.id);
            let session = self.shared.view.session(&Sight::All, &record.session);
            if !session.is_some_and(|session| needs(&session)) {
                let keep = record.spec.checkpoints.keep_for;
                world::on_thread(self.catalog.hold(&record, Some(keep))).await.map_err(super::unkept)?;
            }
        }
        Ok(())
    }

    /// Removes what is over and what nobody uses. How many pieces went.
    pub async fn sweep(&self, grace: Duration) -> Result<usize, berth_proto::Error> {
        self.hold_what_is_needed().await?;
        world::on_thread(self.catalog.note_time()).await.map_err(super::unkept)?;
        for id in world::on_thread(self.catalog.expired()).await.map_err(super::unkept)? {
            tracing::info!(checkpoint.id = id, "a checkpoint's time is over");
            if let Err(error) = self.delete(&Sight::All, &id).await {
                tracing::warn!(?error, checkpoint.id = id, "a checkpoint whose time is over stays for now");
            }
        }
        self.ours().await?;
        let mut removed = 0;
        loop {
            let _alone = self.removing.write().await;
            let since = self.catalog.now() - grace;
            let released =
                world::on_thread(self.catalog.release(since, AT_ONCE)).await.map_err(super::unkept)?;
            for digest in &released {
                self.blobs.delete(*digest).await?;
            }
            removed += released.len();
            if released.is_empty() {
                return Ok(removed);
            }
        }
    }

    /// Removes blobs without a row: a crash came between the two, or while one was written.
    pub async fn sweep_strays(&self, grace: Duration) -> Result<usize, berth_proto::Error> {
        let mut removed = self.blobs.remove_half_written(grace).await?;
        let mut old = self.blobs.older_than(grace).try_chunks(AT_ONCE as usize);
        while let Some(digests) = old.try_next().await.map_err(|stopped| stopped.1)? {
            let _alone = self.removing.write().await;
            for digest in world::on_thread(self.catalog.unknown(&digests)).await.map_err(super::unkept)? {
                self.blobs.delete(digest).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
