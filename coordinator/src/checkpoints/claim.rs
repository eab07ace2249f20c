//! Whose the blob store is.
//!
//! What a catalog does not know it removes from its store, and pieces of two catalogs have the same names. So nothing is
//! kept in a store, and nothing removed from it, before the store has said that it is this catalog's. One that can't be
//! reached says nothing: it is asked again by whoever needs it.

use std::time::Duration;

use berth_proto::{Error, Reason, world};

use super::{Blobs, Checkpoints, Claim, unkept};

/// For a store to say whose it is: a start waits for it, and a checkpoint before it stops any task.
const WITHIN: Duration = Duration::from_secs(5);

/// Asks the store, and makes it this catalog's if it is nobody's.
pub async fn claim(blobs: &Blobs, catalog: &str) -> Result<Claim, Error> {
    let late = |_| Error::unavailable(Reason::StoreFailed, "the blob store does not answer");
    tokio::time::timeout(WITHIN, blobs.claim(catalog)).await.map_err(late)?
}

impl Checkpoints {
    /// Nothing is done to a store that is not ours, or of which nobody knows.
    pub(super) async fn ours(&self) -> Result<(), Error> {
        let known = self.ours.get_or_try_init(|| async {
            let owner = world::on_thread(self.catalog.owner()).await.map_err(unkept)?;
            match claim(&self.blobs, &owner).await? {
                Claim::Ours => Ok(()),
                Claim::Anothers => {
                    let text = "the blob store holds another coordinator's checkpoints";
                    let hint = "give this coordinator a place of its own (BERTH_BLOBS), or the checkpoints.db that \
                                describes this one";
                    Err(Error::precondition(Reason::StoreFailed, text).hint(hint))
                }
            }
        });
        known.await.copied()
    }
}
