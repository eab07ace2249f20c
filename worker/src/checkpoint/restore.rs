//! Restoring a checkpoint into a sandbox that has run nothing yet.

use std::{collections::VecDeque, time::Duration};

use berth_checkpoint::{Digest, add_piece, open, unpack_manifest, unpack_root};
use berth_proto::{
    Code, Error, Reason,
    transport::CHUNK,
    v1::{self, agent_service_client::AgentServiceClient, archive_part::Part},
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Blobs, TOGETHER, damaged, from_status, part, wire};

/// Pause before pieces are asked for again.
const AGAIN: Duration = Duration::from_secs(2);
/// Parts that wait for the agent.
const AHEAD: usize = 16;

/// Makes the files and finished tasks of the checkpoint `root` in the session behind `agent`.
pub async fn restore(agent: Channel, mut blobs: Blobs, root: Digest) -> Result<v1::ImportResponse, Error> {
    let manifest = manifest(&mut blobs, root).await?;
    let (sink, parts) = mpsc::channel(AHEAD);
    let mut agent = AgentServiceClient::new(agent);
    let import = agent.import(ReceiverStream::new(parts));
    // The side that failed first knows why; the other only sees the stream end.
    let (imported, fed) = tokio::join!(import, feed(manifest, blobs, sink));
    fed?;
    Ok(imported.map_err(from_status)?.into_inner())
}

async fn manifest(blobs: &mut Blobs, root: Digest) -> Result<v1::Manifest, Error> {
    let mut pieces = Pieces::new(blobs.clone(), vec![root]);
    let root = pieces.next().await?;
    let listed = unpack_root(&root).map_err(damaged)?;
    let count = listed.len();
    let mut pieces = Pieces::new(blobs.clone(), listed);
    let mut bytes = Vec::new();
    for _ in 0..count {
        add_piece(&mut bytes, &pieces.next().await?).map_err(damaged)?;
    }
    unpack_manifest(&bytes).map_err(damaged)
}

/// Sends a manifest's entries with their content, its tasks, and the end. An agent that takes no more is no error
/// here: it says why itself.
async fn feed(
    manifest: v1::Manifest,
    blobs: Blobs,
    sink: mpsc::Sender<v1::ArchivePart>,
) -> Result<(), Error> {
    let digests = manifest.content.iter().map(|piece| Digest::from_wire(&piece.digest));
    let digests = digests.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
    let mut pieces = Pieces::new(blobs, digests);
    let mut at_hand = Bytes::new();
    for entry in manifest.entries {
        let mut left = entry.size;
        if sink.send(part(Part::Entry(entry))).await.is_err() {
            return Ok(());
        }
        while left > 0 {
            if at_hand.is_empty() {
                at_hand = pieces.next().await?;
            }
            let take = at_hand.len().min(CHUNK).min(usize::try_from(left).unwrap_or(CHUNK));
            left -= take as u64;
            if sink.send(part(Part::Data(at_hand.split_to(take)))).await.is_err() {
                return Ok(());
            }
        }
    }
    let tasks = manifest.tasks.into_iter().map(Part::Task);
    for kept in tasks.chain(manifest.keys.into_iter().map(Part::Key)) {
        if sink.send(part(kept)).await.is_err() {
            return Ok(());
        }
    }
    let _ = sink.send(part(Part::End(v1::ArchiveEnd { skipped: manifest.skipped, frozen_for: None }))).await;
    Ok(())
}

/// Pieces in order, fetched some at a time.
struct Pieces {
    blobs: Blobs,
    wanted: VecDeque<Digest>,
    coming: Option<(tonic::Streaming<v1::Blob>, usize)>,
}

impl Pieces {
    fn new(blobs: Blobs, wanted: Vec<Digest>) -> Self {
        Self { blobs, wanted: wanted.into(), coming: None }
    }

    /// The next, checked. A coordinator or a store that is away now is asked again, for as long as the start may take:
    /// that is no reason to give a session up.
    async fn next(&mut self) -> Result<Bytes, Error> {
        loop {
            match self.fetch().await {
                Err(error) if error.code() == Code::Unavailable => {
                    tracing::warn!(
                        error = error.message(),
                        "the pieces of a checkpoint can't be had for now"
                    );
                    self.coming = None;
                    tokio::time::sleep(AGAIN).await;
                }
                fetched => return fetched,
            }
        }
    }

    async fn fetch(&mut self) -> Result<Bytes, Error> {
        let short = || {
            Error::new(
                Code::DataLoss,
                Reason::CheckpointFailed,
                "the checkpoint has less content than it says",
            )
        };
        if self.coming.as_ref().is_none_or(|(_, left)| *left == 0) {
            let digests: Vec<Digest> = self.wanted.iter().take(TOGETHER).copied().collect();
            if digests.is_empty() {
                return Err(short());
            }
            let request = v1::GetBlobsRequest { digests: wire(&digests) };
            let stream = self.blobs.get_blobs(request).await.map_err(from_status)?.into_inner();
            self.coming = Some((stream, digests.len()));
        }
        let (stream, left) = self.coming.as_mut().ok_or_else(short)?;
        let blob = stream.message().await.map_err(from_status)?.ok_or_else(short)?;
        *left -= 1;
        let digest = self.wanted.pop_front().ok_or_else(short)?;
        // Whatever came: it is opened as the one that was asked for.
        open(digest, &blob.data).map(Bytes::from).map_err(damaged)
    }
}
