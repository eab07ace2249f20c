//! The event stream of one watcher of one task: `started`, output as it comes, `ended`.
//!
//! It reads the spools by offset when its reader asks for more, so its pace is the
//! reader's, it holds at most one chunk, and neither the task nor another watcher waits for it.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    Code, Error, Reason,
    transport::CHUNK,
    v1::{OutputChunk, TaskEvent, task_event},
};
use futures::Stream;
use tokio::sync::watch;
use tonic::Status;

use crate::{
    clock::TaskClock,
    deadline::Busy,
    spool::{Read, Spool},
    task::{Task, WatchGuard},
};

/// A quiet stream says that it is alive this often.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// From where, and how far.
#[derive(Clone, Copy, Default)]
pub struct Range {
    pub stdout: u64,
    pub stderr: u64,
    pub skip_lost: bool,
    pub no_follow: bool,
}

struct Side {
    spool: Arc<Spool>,
    name: &'static str,
    at: u64,
    /// Where to stop: the length when a stream that does not follow began.
    end: Option<u64>,
}

enum Stage {
    Started,
    Output,
    Over,
}

struct Watch {
    task: Arc<Task>,
    sides: [Side; 2],
    /// Which stream goes first next time: a flood on one must not hide the other.
    turn: usize,
    range: Range,
    stage: Stage,
    changes: watch::Receiver<()>,
    _watching: WatchGuard,
    _busy: Busy,
}

/// The stream. Fails at once when the range can't be served.
pub fn stream(
    task: Arc<Task>,
    clock: Arc<TaskClock>,
    range: Range,
    busy: Busy,
) -> Result<impl Stream<Item = Result<TaskEvent, Status>> + Send + 'static, Error> {
    let side = |spool: &Arc<Spool>, name, at| {
        let (length, first_kept) = spool.bounds();
        if at > length {
            return Err(beyond(name, at, length));
        }
        if at < first_kept && !range.skip_lost {
            return Err(lost(name, at, first_kept));
        }
        Ok(Side { spool: spool.clone(), name, at, end: range.no_follow.then_some(length) })
    };
    let sides = [side(&task.stdout, "stdout", range.stdout)?, side(&task.stderr, "stderr", range.stderr)?];
    let watch = Watch {
        changes: task.changes(),
        _watching: WatchGuard::new(task.clone(), clock),
        task,
        sides,
        turn: 0,
        range,
        stage: Stage::Started,
        _busy: busy,
    };
    Ok(futures::stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Some((item.map_err(Status::from), watch))
    }))
}

fn event(event: task_event::Event) -> TaskEvent {
    TaskEvent { event: Some(event) }
}

impl Watch {
    async fn next(&mut self) -> Option<Result<TaskEvent, Error>> {
        match self.stage {
            Stage::Over => return None,
            Stage::Started => {
                self.stage = Stage::Output;
                return Some(Ok(event(task_event::Event::Started(self.task.to_wire()))));
            }
            Stage::Output => {}
        }
        loop {
            // Before looking: what changes meanwhile wakes us again.
            self.changes.borrow_and_update();
            let done = self.task.is_over();
            match self.output().await {
                Ok(Some(chunk)) => return Some(Ok(event(chunk))),
                Ok(None) => {}
                Err(error) => {
                    self.stage = Stage::Over;
                    return Some(Err(error));
                }
            }
            if done {
                self.stage = Stage::Over;
                return Some(Ok(event(task_event::Event::Ended(self.task.to_wire()))));
            }
            if self.range.no_follow {
                return None;
            }
            tokio::select! {
                biased;
                _ = self.changes.changed() => {}
                () = tokio::time::sleep(KEEPALIVE) => {
                    return Some(Ok(event(task_event::Event::Keepalive(task_event::Keepalive {}))));
                }
            }
        }
    }

    async fn output(&mut self) -> Result<Option<task_event::Event>, Error> {
        for _ in 0..2 {
            let which = self.turn;
            self.turn = 1 - which;
            if let Some((offset, data)) = self.sides[which].read(self.range.skip_lost).await? {
                let chunk = OutputChunk { offset, data };
                return Ok(Some(match which {
                    0 => task_event::Event::Stdout(chunk),
                    _ => task_event::Event::Stderr(chunk),
                }));
            }
        }
        Ok(None)
    }
}

impl Side {
    async fn read(&mut self, skip_lost: bool) -> Result<Option<(u64, bytes::Bytes)>, Error> {
        loop {
            let most = match self.end {
                Some(end) if self.at >= end => return Ok(None),
                Some(end) => (end - self.at).min(CHUNK as u64) as usize,
                None => CHUNK,
            };
            let read = self.spool.read(self.at, most).await;
            match read.map_err(|error| Error::internal("the output could not be read").cause(error))? {
                Read::Data(data) => {
                    let offset = self.at;
                    self.at += data.len() as u64;
                    return Ok(Some((offset, data)));
                }
                Read::AtEnd => return Ok(None),
                Read::Lost(first_kept) if skip_lost => self.at = first_kept,
                Read::Lost(first_kept) => return Err(lost(self.name, self.at, first_kept)),
                Read::Beyond(length) => return Err(beyond(self.name, self.at, length)),
            }
        }
    }
}

fn lost(name: &'static str, at: u64, first_kept: u64) -> Error {
    Error::new(
        Code::OutOfRange,
        Reason::OutputLost,
        format!("{name} from offset {at} is no longer kept: the first kept byte is {first_kept}"),
    )
    .with("first_kept", first_kept)
    .with("stream", name)
    .hint("watch from that offset, or with `skip_lost`")
}

fn beyond(name: &'static str, at: u64, length: u64) -> Error {
    Error::new(
        Code::OutOfRange,
        Reason::OffsetBeyondEnd,
        format!("{name} has {length} bytes: offset {at} is past its end"),
    )
    .with("length", length)
    .with("stream", name)
}
