//! What one watcher of a fake task gets: output from its offsets on, then the end.

use std::{pin::Pin, sync::Arc, time::Duration};

use berth_proto::{
    Code, Error, Reason,
    transport::CHUNK,
    v1::{self, task_event::Event},
};
use futures::Stream;
use tokio::sync::watch;
use tonic::{Response, Status};

use super::{agent::Call, lock, output::Output, tasks::Task};

/// How often a quiet stream says that it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// What one watcher has seen.
pub(super) struct Feed {
    task: Arc<Task>,
    stdout: u64,
    stderr: u64,
    skip_lost: bool,
    follow: bool,
    started: bool,
    over: bool,
    changed: watch::Receiver<()>,
    _call: Call,
}

impl Drop for Feed {
    fn drop(&mut self) {
        lock(&self.task.state).watchers -= 1;
        self.task.changed.send_replace(());
    }
}

impl Feed {
    pub fn new(task: Arc<Task>, wire: &v1::WatchTaskRequest, call: Call) -> Result<Self, Error> {
        let mut state = lock(&task.state);
        let at = |name: &str, output: &Output, offset: u64| {
            if offset > output.length() {
                return Err(Error::new(
                    Code::OutOfRange,
                    Reason::OffsetBeyondEnd,
                    format!("{name} has {} bytes so far", output.length()),
                )
                .with("length", output.length()));
            }
            if offset < output.first_kept() && !wire.skip_lost {
                return Err(lost(name, output.first_kept()));
            }
            Ok(offset.max(output.first_kept()))
        };
        let stdout = at("stdout", &state.stdout, wire.stdout_offset)?;
        let stderr = at("stderr", &state.stderr, wire.stderr_offset)?;
        state.watchers += 1;
        drop(state);
        task.changed.send_replace(());
        Ok(Self {
            stdout,
            stderr,
            skip_lost: wire.skip_lost,
            follow: !wire.no_follow,
            started: false,
            over: false,
            changed: task.changed.subscribe(),
            task,
            _call: call,
        })
    }

    async fn next(&mut self) -> Option<Result<v1::TaskEvent, Status>> {
        if self.over {
            return None;
        }
        if !std::mem::replace(&mut self.started, true) {
            return event(Event::Started(self.task.snapshot()));
        }
        loop {
            self.changed.borrow_and_update();
            let ended = match self.pending() {
                Ok(Some(chunk)) => return event(chunk),
                Ok(None) => self.task.done(),
                Err(error) => {
                    self.over = true;
                    return Some(Err(error.into()));
                }
            };
            if ended {
                // Output written between the two looks came before the end.
                match self.pending() {
                    Ok(Some(chunk)) => return event(chunk),
                    Ok(None) => {}
                    Err(error) => {
                        self.over = true;
                        return Some(Err(error.into()));
                    }
                }
                self.over = true;
                return event(Event::Ended(self.task.snapshot()));
            }
            if !self.follow {
                self.over = true;
                return None;
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep(KEEPALIVE) => {
                    return event(Event::Keepalive(v1::task_event::Keepalive {}));
                }
            }
        }
    }

    /// The next output that this watcher has not seen.
    fn pending(&mut self) -> Result<Option<Event>, Error> {
        let state = lock(&self.task.state);
        if let Some(chunk) = read(&state.stdout, "stdout", &mut self.stdout, self.skip_lost)? {
            return Ok(Some(Event::Stdout(chunk)));
        }
        Ok(read(&state.stderr, "stderr", &mut self.stderr, self.skip_lost)?.map(Event::Stderr))
    }
}

fn read(
    output: &Output,
    name: &str,
    offset: &mut u64,
    skip_lost: bool,
) -> Result<Option<v1::OutputChunk>, Error> {
    let data = match output.read(*offset, CHUNK) {
        Ok(data) => data,
        Err(first) if skip_lost => {
            *offset = first;
            output.read(first, CHUNK).unwrap_or_default()
        }
        Err(first) => return Err(lost(name, first)),
    };
    if data.is_empty() {
        return Ok(None);
    }
    let chunk = v1::OutputChunk { offset: *offset, data };
    *offset += chunk.data.len() as u64;
    Ok(Some(chunk))
}

fn lost(name: &str, first: u64) -> Error {
    Error::new(Code::OutOfRange, Reason::OutputLost, format!("{name} below byte {first} is gone"))
        .with("first_kept", first)
}

#[allow(clippy::unnecessary_wraps)]
fn event(event: Event) -> Option<Result<v1::TaskEvent, Status>> {
    Some(Ok(v1::TaskEvent { event: Some(event) }))
}

pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

pub(super) fn stream(feed: Feed) -> Response<EventStream> {
    Response::new(Box::pin(futures::stream::unfold(feed, |mut feed| async move {
        let item = feed.next().await?;
        Some((item, feed))
    })))
}
