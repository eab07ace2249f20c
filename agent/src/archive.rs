//! A session's archive: its files and its finished tasks, out of one sandbox and into another. What is read of the
//! files is on the file threads ([`crate::files::export`]); here is the order of things around it.
//!
//! While files are read, all tasks stand still, so that no file is torn and all are of one moment. The tasks go on
//! as soon as the last byte is read, whatever becomes of the archive: a reader that goes away, or one that is slow,
//! only makes this one fail.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    Error, Reason,
    archive::TAIL_MAX,
    convert::{self, duration_out},
    v1::{self, archive_part::Part},
};
use futures::Stream;
use prost::Message;
use tokio::{runtime::Handle, sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    files::{
        Files,
        export::{self, Bounds, Sink},
        import,
    },
    spool::{Read, Spool},
    task::Task,
    tasks::Tasks,
};

/// Unless the request says otherwise.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
/// Parts that wait for their reader.
const AHEAD: usize = 32;
/// Bytes of finished tasks in one archive, the newest first.
const TASKS_BYTES: usize = 16 << 20;

/// The bounds of an export. The time counts from now.
pub fn bounds(request: &v1::ExportRequest) -> Result<Bounds, Error> {
    let limit = request.freeze_limit.map(|limit| convert::duration("freeze_limit", limit)).transpose()?;
    let limit = limit.filter(|limit| !limit.is_zero()).unwrap_or(FREEZE_LIMIT);
    Ok(Bounds { bytes: request.max_bytes, until: Instant::now() + limit, runtime: Handle::current() })
}

/// The archive, part by part.
pub fn export(
    tasks: Arc<Tasks>,
    files: Arc<Files>,
    bounds: Bounds,
) -> impl Stream<Item = Result<v1::ArchivePart, Status>> {
    let (sink, parts) = mpsc::channel(AHEAD);
    berth_proto::spawn::spawn("export", async move {
        let _busy = tasks.busy();
        if let Err(error) = send_all(&tasks, &files, bounds, &sink).await {
            let _ = sink.send(Err(error.into())).await;
        }
    });
    ReceiverStream::new(parts)
}

async fn send_all(tasks: &Arc<Tasks>, files: &Files, bounds: Bounds, sink: &Sink) -> Result<(), Error> {
    let still = tasks.stand_still().await?;
    let (roots, out) = (files.roots(), sink.clone());
    let read = files.run(move |_| export::export(&roots, bounds, &out)).await;
    // Of the same moment as the files.
    let done: Vec<_> = tasks.list(None, false).into_iter().filter(|task| task.is_done()).collect();
    let keys = tasks.keys();
    // In any case: `still` would end by itself too, but later.
    let frozen_for = still.end().await?;
    let skipped = read?;
    send_tasks(done, sink).await?;
    for key in keys {
        send(sink, Part::Key(key)).await?;
    }
    let end = v1::ArchiveEnd { skipped, frozen_for: Some(duration_out(frozen_for)) };
    send(sink, Part::End(end)).await
}

async fn send(sink: &Sink, part: Part) -> Result<(), Error> {
    let gone = |_| Error::unavailable(Reason::CheckpointFailed, "the reader of the archive went away");
    sink.send(Ok(v1::ArchivePart { part: Some(part) })).await.map_err(gone)
}

/// The finished tasks, newest first, as far as they fit.
async fn send_tasks(done: Vec<Arc<Task>>, sink: &Sink) -> Result<(), Error> {
    let mut left = TASKS_BYTES;
    for task in done {
        let kept = keep(&task).await;
        let Some(rest) = left.checked_sub(kept.encoded_len()) else { return Ok(()) };
        left = rest;
        send(sink, Part::Task(kept)).await?;
    }
    Ok(())
}

async fn keep(task: &Task) -> v1::KeptTask {
    v1::KeptTask {
        task: Some(task.to_wire()),
        stdout_tail: tail(&task.stdout).await.into(),
        stderr_tail: tail(&task.stderr).await.into(),
    }
}

/// The last bytes of a stream that has ended.
async fn tail(spool: &Arc<Spool>) -> Vec<u8> {
    let (length, first_kept) = spool.bounds();
    let mut at = first_kept.max(length.saturating_sub(TAIL_MAX as u64));
    let mut tail = Vec::new();
    while at < length {
        match spool.read(at, TAIL_MAX).await {
            Ok(Read::Data(data)) => {
                at += data.len() as u64;
                tail.extend_from_slice(&data);
            }
            // Its oldest bytes went meanwhile: what is behind them is still its end.
            Ok(Read::Lost(first)) if first > at => {
                at = first;
                tail.clear();
            }
            _ => break,
        }
    }
    tail
}

/// Takes an archive in.
pub async fn import(
    tasks: &Arc<Tasks>,
    files: &Files,
    mut stream: Streaming<v1::ArchivePart>,
) -> Result<v1::ImportResponse, Error> {
    if !tasks.list(None, false).is_empty() {
        return Err(Error::precondition(Reason::CheckpointFailed, "the session has run tasks already"));
    }
    let (sink, mut parts) = mpsc::channel::<Part>(AHEAD);
    let roots = files.roots();
    let largest = files.largest();
    let making = files.run(move |gone| import::import(&roots, largest, || parts.blocking_recv(), gone));
    let feeding = async {
        loop {
            match stream.message().await {
                Ok(Some(v1::ArchivePart { part: Some(part) })) => {
                    if sink.send(part).await.is_err() {
                        // The other side knows why.
                        break;
                    }
                }
                Ok(Some(_)) => {}
                // Without its end the archive is refused.
                Ok(None) | Err(_) => break,
            }
        }
        drop(sink);
    };
    let (made, ()) = tokio::join!(making, feeding);
    let made = made?;
    let response =
        v1::ImportResponse { entries: made.entries, bytes: made.bytes, tasks: made.tasks.len() as u64 };
    // Oldest first, as they ended.
    let (tasks, kept, keys) = (tasks.clone(), made.tasks, made.keys);
    let take_up = move || {
        tasks.take_up_keys(&keys)?;
        kept.into_iter().rev().try_for_each(|task| tasks.take_up(task))
    };

    tokio::task::spawn_blocking(take_up)
        .await
        .map_err(|_| Error::internal("the tasks were not taken up"))??;
    Ok(response)
}
