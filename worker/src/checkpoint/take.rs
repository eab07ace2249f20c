//! Taking a checkpoint: export, stage, cut, send what is missing.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::Path,
    time::Duration,
};

use berth_checkpoint::{Cut, Cutter, Digest, pack_manifest, seal};
use berth_proto::{
    Code, Error, Reason,
    convert::{self, duration_out},
    spawn::spawn,
    v1::{self, agent_service_client::AgentServiceClient, archive_part::Part},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{Blobs, TOGETHER, broken, damaged, from_status, wire};

/// Sealed pieces that wait for the network.
const AHEAD: usize = 8;

/// What is to be taken.
pub struct Wanted {
    pub max_bytes: u64,
    pub freeze_limit: Duration,
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

/// Takes a checkpoint of the session behind `agent`. `staging` is a directory of the worker's.
pub async fn take(agent: Channel, blobs: Blobs, staging: &Path, wanted: Wanted) -> Result<Taken, Error> {
    let staged = stage(agent, staging, wanted).await?;
    let mut manifest = staged.manifest;
    let (entries, skipped) = (manifest.entries.len() as u64, manifest.skipped);
    let mut sender = Sender::new(blobs);
    manifest.content = sender.content(staged.file).await?;
    let content_bytes = manifest.content.iter().map(|piece| u64::from(piece.size)).sum();
    let packed = tokio::task::spawn_blocking(move || pack_manifest(&manifest)).await;
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
async fn stage(agent: Channel, staging: &Path, wanted: Wanted) -> Result<Staged, Error> {
    let file = tempfile::tempfile_in(staging).map_err(|e| failed("no room to stage a checkpoint", &e))?;
    let request = v1::ExportRequest {
        max_bytes: wanted.max_bytes,
        freeze_limit: Some(duration_out(wanted.freeze_limit)),
    };
    let mut agent = AgentServiceClient::new(agent);
    let mut parts = agent.export(request).await.map_err(from_status)?.into_inner();
    let (sink, mut data) = mpsc::channel::<bytes::Bytes>(32);
    let writing = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
        let mut file = file;
        while let Some(data) = data.blocking_recv() {
            file.write_all(&data)?;
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    });
    let mut manifest = v1::Manifest { version: 1, ..Default::default() };
    let mut end = None;
    while let Some(part) = parts.message().await.map_err(from_status)? {
        match part.part {
            Some(Part::Entry(entry)) => manifest.entries.push(entry),
            Some(Part::Data(data)) => match sink.send(data).await {
                Ok(()) => {}
                // The writer says why, below.
                Err(_) => break,
            },
            Some(Part::Task(task)) => manifest.tasks.push(task),
            Some(Part::Key(key)) => manifest.keys.push(key),

            Some(Part::End(last)) => end = Some(last),
            None => {}
        }
    }
    drop(sink);
    drop(parts);
    let written = writing.await.map_err(broken)?;
    let file = written.map_err(|e| failed("the checkpoint could not be staged on the worker's disk", &e))?;
    let end = end.ok_or_else(|| failed("the agent's archive", &"it ended before its end"))?;
    manifest.skipped = end.skipped;
    let frozen_for = convert::duration("frozen_for", end.frozen_for.unwrap_or_default()).unwrap_or_default();
    Ok(Staged { manifest, file, frozen_for })
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
        let (sink, mut batches) = mpsc::channel(1);
        let cutting = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            let mut batch = Vec::new();
            for cut in Cutter::new(file) {
                batch.push(cut?);
                // Some 16 MiB.
                if batch.len() == 64 && sink.blocking_send(std::mem::take(&mut batch)).is_err() {
                    return Ok(());
                }
            }
            let _ = sink.blocking_send(batch);
            Ok(())
        });
        let mut content = Vec::new();
        while let Some(batch) = batches.recv().await {
            let piece = |cut: &Cut| v1::Piece { digest: cut.digest.to_wire(), size: cut.data.len() as u32 };
            content.extend(batch.iter().map(piece));
            self.pieces(batch).await?;
        }
        cutting.await.map_err(broken)?.map_err(|e| failed("the staged checkpoint", &e))?;
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
            let sealed = tokio::task::spawn_blocking(move || seal(&cut.data)).await;
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
