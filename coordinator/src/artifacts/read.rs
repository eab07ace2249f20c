//! An artifact's content, on its way out.

use std::collections::VecDeque;

use berth_checkpoint::{Digest, PIECE_MAX};
use berth_proto::{Code, Error, Reason, v1, world};
use bytes::Bytes;

use super::Artifacts;
use crate::{checkpoints::unkept, tenant::Sight};

/// What is left of an artifact to be read.
pub struct Reading {
    pieces: VecDeque<Digest>,
    /// Of the next piece, bytes that are not wanted.
    skip: usize,
    left: u64,
}

impl Artifacts {
    /// The artifact of this id, if this sight covers it.
    pub async fn get(&self, by: &Sight, id: &str) -> Result<v1::Artifact, Error> {
        let found = world::on_thread(self.checkpoints.catalog.artifact(by, id)).await.map_err(unkept)?;
        found.ok_or_else(|| Error::not_found(Reason::ArtifactNotFound, format!("no artifact {id}")))
    }

    /// Begins to read one. `length` 0: to the end.
    pub async fn open(
        &self,
        by: &Sight,
        id: &str,
        offset: u64,
        length: u64,
    ) -> Result<(v1::Artifact, Reading), Error> {
        let shown = self.get(by, id).await?;
        if offset > shown.size {
            let text = format!("the artifact has {} bytes", shown.size);
            return Err(Error::new(Code::OutOfRange, Reason::OffsetBeyondEnd, text));
        }
        let left = shown.size - offset;
        let left = if length == 0 { left } else { left.min(length) };
        let whole = PIECE_MAX as u64;
        let pieces = self.checkpoints.catalog.artifact_pieces(id, offset / whole);
        let pieces = world::on_thread(pieces).await.map_err(unkept)?.into();
        Ok((shown, Reading { pieces, skip: (offset % whole) as usize, left }))
    }

    /// The next piece; empty at the end.
    pub async fn next(&self, reading: &mut Reading) -> Result<Bytes, Error> {
        if reading.left == 0 {
            return Ok(Bytes::new());
        }
        let lost = || {
            let text = "a part of the artifact's content is lost or damaged in the blob store";
            Error::new(Code::DataLoss, Reason::StoreFailed, text)
        };
        let digest = reading.pieces.pop_front().ok_or_else(lost)?;
        let data = match self.checkpoints.read(digest).await {
            Ok((_, data)) => Bytes::from(data),
            Err(error) if error.code() == Code::DataLoss => return Err(lost().cause(error)),
            Err(error) => return Err(error),
        };
        let from = std::mem::take(&mut reading.skip).min(data.len());
        let to = data.len().min(from.saturating_add(usize::try_from(reading.left).unwrap_or(usize::MAX)));
        let data = data.slice(from..to);
        if data.is_empty() {
            return Err(lost());
        }
        reading.left -= data.len() as u64;
        Ok(data)
    }

    /// A page of what this sight covers, and whether there is more.
    pub async fn list(
        &self,
        by: &Sight,
        session: Option<berth_proto::SessionId>,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<v1::Artifact>, Error> {
        let listed = self.checkpoints.catalog.artifacts(by, session, before, limit);
        world::on_thread(listed).await.map_err(unkept)
    }

    /// What the session's last look left out.
    pub async fn left_out(
        &self,
        by: &Sight,
        session: berth_proto::SessionId,
    ) -> Result<v1::ListArtifactsResponse, Error> {
        world::on_thread(self.checkpoints.catalog.look(by, session)).await.map_err(unkept)
    }

    /// Removes one. No error if it is gone.
    pub async fn remove(&self, by: &Sight, id: &str) -> Result<(), Error> {
        world::on_thread(self.checkpoints.catalog.remove_artifact(by, id)).await.map(drop).map_err(unkept)
    }
}
