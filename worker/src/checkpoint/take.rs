//! Taking a checkpoint: export, stage, cut, send what is missing.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    time::Duration,
};

use berth_checkpoint::{Cut, Cutter, Digest, pack_manifest, seal};
use berth_proto::{
    Code, Error, Reason,
    convert::{self, duration_out},
    spawn::spawn,
    v1::{self, agent_service_client::AgentServiceClient, archive_part::Part},
    world::blocking,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Blobs, Staging, TOGETHER, broken, damaged, from_status, wire};
use crate::health::machine;

/// Sealed pieces that wait for the network.
const AHEAD: usize = 8;
/// Pieces that are cut at once.
const BATCH: usize = 64;

/// What is to be taken.
pub struct Wanted {
    pub max_bytes: u64,
    pub freeze_limit: Duration,
    /// The session is to leave this worker with it.
    pub parting: Option<Parting>,
}

/// How a session gets ready to leave.
pub struct Parting {
    /// What is under way in it has this long to end ...
    pub settle: Duration,
    /// ... and then it goes anyway.
    pub anyway: bool,
}

/// What was taken.
#[derive(Debug)]
pub struct Taken {
    pub root: Digest,
    pub entries: u64,
    pub content_bytes: u64,
    /// Added to the store, compressed.
    pub stored_bytes: u64,
    pub frozen_for: Duration,
    pub skipped: u64,
}

/// Takes a checkpoint of the session behind `agent`.
pub async fn take(agent: Channel, blobs: Blobs, staging: &Staging, wanted: Wanted) -> Result<Taken, Error> {
    let staged = stage(agent, staging, wanted).await?;
    let mut manifest = staged.manifest;
    let (entries, skipped) = (manifest.entries.len() as u64, manifest.skipped);
    let mut sender = Sender::new(blobs);
    manifest.content = sender.content(staged.file).await?;
    let content_bytes = manifest.content.iter().map(|piece| u64::from(piece.size)).sum();
    let packed = blocking(move || pack_manifest(&manifest)).await;
    let packed = packed.map_err(broken)?.map_err(|e| failed("the manifest", &e))?;
    // The root comes last: whoever finds it finds all.
    sender.pieces(packed.pieces).await?;
    let stored_bytes = sender.end().await?;
    Ok(Taken {
        root: packed.root,
        entries,
        content_bytes,
        stored_bytes,
        frozen_for: staged.frozen_for,
        skipped,
    })
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::unavailable(Reason::CheckpointFailed, format!("{what}: {error}"))
}

struct Staged {
    manifest: v1::Manifest,
    file: File,
    frozen_for: Duration,
}

/// Writes what the agent exports to a file without a name.
async fn stage(agent: Channel, staging: &Staging, wanted: Wanted) -> Result<Staged, Error> {
    let file =
        tempfile::tempfile_in(&staging.dir).map_err(|e| failed("no room to stage a checkpoint", &e))?;
    let request = v1::ExportRequest {
        max_bytes: wanted.max_bytes,
        freeze_limit: Some(duration_out(wanted.freeze_limit)),
    };
    let mut agent = AgentServiceClient::new(agent);
    let mut parts = agent.export(request).await.map_err(from_status)?.into_inner();
    let unstaged = |e| failed("the checkpoint could not be staged on the worker's disk", &e);
    let mut file = file;
    let mut manifest = v1::Manifest { version: 1, ..Default::default() };
    let mut end = None;
    while let Some(part) = parts.message().await.map_err(from_status)? {
        match part.part {
            Some(Part::Entry(entry)) => manifest.entries.push(entry),
            // What comes meanwhile waits in the connection's window.
            Some(Part::Data(data)) => {
                let staging = staging.clone();
                let written = blocking(move || {
                    room(&staging)?;
                    file.write_all(&data).map(|()| file)
                })
                .await;
                file = written.map_err(broken)?.map_err(unstaged)?;
            }
            Some(Part::Task(task)) => manifest.tasks.push(task),
            Some(Part::Key(key)) => manifest.keys.push(key),

            Some(Part::End(last)) => end = Some(last),
            None => {}
        }
    }
    drop(parts);
    file.seek(SeekFrom::Start(0)).map_err(unstaged)?;
    let end = end.ok_or_else(|| failed("the agent's archive", &"it ended before its end"))?;
    manifest.skipped = end.skipped;
    let frozen_for = convert::duration("frozen_for", end.frozen_for.unwrap_or_default()).unwrap_or_default();
    Ok(Staged { manifest, file, frozen_for })
}

/// Whether there is room for more: what sessions were promised is not taken for archives.
fn room(staging: &Staging) -> io::Result<()> {
    if machine::disk_free(&staging.dir)? >= staging.margin_bytes {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::StorageFull, "the rest of it is kept for the sessions that run"))
}

/// The next pieces, some 16 MiB of them; none at the end.
async fn cut(mut cutter: Cutter<File>) -> Result<(Cutter<File>, Vec<Cut>), Error> {
    let batch = blocking(move || {
        let batch = cutter.by_ref().take(BATCH).collect::<std::io::Result<Vec<Cut>>>();
        batch.map(|batch| (cutter, batch))
    });
    batch.await.map_err(broken)?.map_err(|e| failed("the staged checkpoint", &e))
}

/// Sends pieces that the coordinator does not have.
struct Sender {
    blobs: Blobs,
    /// Asked about already.
    seen: BTreeSet<Digest>,
    upload: Option<Upload>,
}

struct Upload {
    sink: mpsc::Sender<v1::Blob>,
    answer: oneshot::Receiver<Result<u64, Error>>,
}

impl Sender {
    fn new(blobs: Blobs) -> Self {
        Self { blobs, seen: BTreeSet::new(), upload: None }
    }

    /// Cuts a file, and sends what is missing of it. Its pieces in order.
    async fn content(&mut self, file: File) -> Result<Vec<v1::Piece>, Error> {
        let mut content = Vec::new();
        let (mut cutter, mut batch) = cut(Cutter::new(file)).await?;
        while !batch.is_empty() {
            let piece = |cut: &Cut| v1::Piece { digest: cut.digest.to_wire(), size: cut.data.len() as u32 };
            content.extend(batch.iter().map(piece));
            // The next is cut while this one is sent.
            let (sent, next) = tokio::join!(self.pieces(batch), cut(cutter));
            sent?;
            (cutter, batch) = next?;
        }
        Ok(content)
    }

    async fn pieces(&mut self, cuts: Vec<Cut>) -> Result<(), Error> {
        let new: Vec<Cut> = cuts.into_iter().filter(|cut| self.seen.insert(cut.digest)).collect();
        let digests: Vec<Digest> = new.iter().map(|cut| cut.digest).collect();
        let mut missing = BTreeSet::new();
        for asked in digests.chunks(TOGETHER) {
            let request = v1::FindMissingRequest { digests: wire(asked) };
            let answer = self.blobs.find_missing(request).await.map_err(from_status)?.into_inner();
            for digest in answer.digests {
                missing.insert(Digest::from_wire(&digest).map_err(damaged)?);
            }
        }
        for cut in new.into_iter().filter(|cut| missing.contains(&cut.digest)) {
            let digest = cut.digest.to_wire();
            let sealed = blocking(move || seal(&cut.data)).await;
            let data = sealed.map_err(broken)?.map_err(|e| failed("a piece", &e))?;
            self.send(v1::Blob { digest, data }).await?;
        }
        Ok(())
    }

    async fn send(&mut self, blob: v1::Blob) -> Result<(), Error> {
        let upload = self.upload.get_or_insert_with(|| {
            let (sink, blobs) = mpsc::channel(AHEAD);
            let mut client = self.blobs.clone();
            let (tell, answer) = oneshot::channel();
            spawn("send pieces", async move {
                let sent = client.put_blobs(ReceiverStream::new(blobs)).await;
                let _ = tell.send(sent.map(|answer| answer.into_inner().stored_bytes).map_err(from_status));
            });
            Upload { sink, answer }
        });
        if upload.sink.send(blob).await.is_ok() {
            return Ok(());
        }
        // It ended early: with a reason.
        self.end().await?;
        Err(Error::new(Code::Aborted, Reason::CheckpointFailed, "the coordinator takes no more pieces"))
    }

    /// All that was sent is stored. How much of it was new.
    async fn end(&mut self) -> Result<u64, Error> {
        let Some(upload) = self.upload.take() else { return Ok(0) };
        drop(upload.sink);
        upload.answer.await.map_err(|_| Error::internal("the sender of pieces ended"))?
    }
}
