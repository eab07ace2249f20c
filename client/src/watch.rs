//! A task's output as it comes, over connections that break. The stream knows by byte
//! offset what it has handed out; after a break it asks for the rest from there, for a
//! bounded time, and drops what comes twice. So: a gap-free prefix, or an error that says
//! what is missing.
//!
//! A `Run` whose answer was lost before its first event is sent again under the same
//! request id, by which the worker knows that it started that task already ([`crate::start`]).
//!
//! A session that is lost with its machine may go on elsewhere, without the task: then the stream
//! ends with what `GetTask` tells of it.
//!
//! `next` is cancel-safe: what it learned is in the fields before it waits again.

use std::{collections::VecDeque, time::Duration};

use berth_proto::v1::{self, task_event::Event};
use bytes::Bytes;
use futures::Stream;
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use crate::{
    Command, Error, Reason, Session, TaskHandle, TaskId,
    backoff::Backoff,
    model::{TaskInfo, TaskState},
    start::Attempt,
    task::service,
};

/// Servers send keepalives in quiet times; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the first attempts may go on: a caller waits for these.
const FIRST_WINDOW: Duration = Duration::from_secs(2);

/// One of the two output streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Std {
    Out = 0,
    Err = 1,
}

impl Std {
    pub fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

/// What happens to a watched task.
#[derive(Clone, Debug)]
pub enum TaskEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Output that the worker no longer keeps: bytes `from` to `to`. Only with `skip_lost`.
    Lost {
        stream: Std,
        from: u64,
        to: u64,
    },
    /// The last event.
    Ended(Box<TaskInfo>),
}

/// Where to begin watching, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Of the first byte wanted.
    pub stdout_offset: u64,
    /// Of the first byte wanted.
    pub stderr_offset: u64,
    /// Go on where output is no longer kept, with [`TaskEvent::Lost`]; otherwise that is
    /// the error `OUTPUT_LOST`.
    pub skip_lost: bool,
    /// Go on until the task ends; otherwise stop at what there is now.
    pub follow: bool,
}

impl Default for WatchOptions {
    /// All that is kept, from the beginning, until the task ends.
    fn default() -> Self {
        Self { stdout_offset: 0, stderr_offset: 0, skip_lost: true, follow: true }
    }
}

/// Output of a task, as it comes.
pub struct TaskStream {
    session: Session,
    /// How to start the task, as long as we don't know whether it was.
    run: Option<Run>,
    task: Option<TaskHandle>,
    info: Option<TaskInfo>,
    /// The next byte of stdout and of stderr.
    at: [u64; 2],
    skip_lost: bool,
    follow: bool,
    inner: Option<Streaming<v1::TaskEvent>>,
    pending: VecDeque<TaskEvent>,
    finished: bool,
    /// When something last came.
    alive: Instant,
    backoff: Backoff,
    /// Why there is no stream now.
    broken: Option<Error>,
}

struct Run {
    request: v1::RunRequest,
    attempt: Attempt,
}

impl TaskStream {
    fn new(session: Session, run: Option<Run>, task: Option<TaskHandle>, options: WatchOptions) -> Self {
        Self {
            session,
            run,
            task,
            info: None,
            at: [options.stdout_offset, options.stderr_offset],
            skip_lost: options.skip_lost,
            follow: options.follow,
            inner: None,
            pending: VecDeque::new(),
            finished: false,
            alive: Instant::now(),
            backoff: Backoff::default(),
            broken: None,
        }
    }

    pub(crate) async fn run(session: &Session, command: &Command) -> Result<Self, Error> {
        let attempt = Attempt::new(session, command).await?;
        let request = v1::RunRequest {
            session_id: session.id.to_string(),
            task: Some(command.to_wire()),
            request_id: command.key(),
            if_epoch: None,
            secrets: Vec::new(),
        };
        let options = WatchOptions { skip_lost: false, ..WatchOptions::default() };
        let mut stream = Self::new(session.clone(), Some(Run { request, attempt }), None, options);
        stream.started().await?;
        Ok(stream)
    }

    pub(crate) async fn watch(task: TaskHandle, options: WatchOptions) -> Result<Self, Error> {
        let mut stream = Self::new(task.session().clone(), None, Some(task), options);
        stream.started().await?;
        Ok(stream)
    }

    /// Go on where output is no longer kept, with [`TaskEvent::Lost`].
    #[must_use]
    pub fn skip_lost(mut self) -> Self {
        self.skip_lost = true;
        self
    }

    /// The task, to write to it or to end it.
    pub fn handle(&self) -> &TaskHandle {
        self.task.as_ref().expect("set by `started`, before the stream is handed out")
    }

    /// The task as it stood when the stream began.
    pub fn info(&self) -> &TaskInfo {
        self.info.as_ref().expect("set by `started`, before the stream is handed out")
    }

    /// Bytes of a stream handed out, counted from the task's first.
    pub fn offset(&self, stream: Std) -> u64 {
        self.at[stream as usize]
    }

    /// The next event. `None`: the task has ended, or what there is has been told.
    pub async fn next(&mut self) -> Result<Option<TaskEvent>, Error> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            if self.finished {
                return Ok(None);
            }
            self.advance().await.inspect_err(|_| self.finished = true)?;
        }
    }

    /// As a [`Stream`], which ends after its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<TaskEvent, Error>> + Send {
        futures::stream::try_unfold(self, |mut stream| async move {
            Ok(stream.next().await?.map(|event| (event, stream)))
        })
    }

    /// Waits for the first event, which tells which task it is.
    async fn started(&mut self) -> Result<(), Error> {
        while self.info.is_none() {
            if self.finished {
                return Err(Error::strange("the stream ended before it began"));
            }
            self.advance().await?;
        }
        Ok(())
    }

    /// Opens the stream if there is none, else takes one message from it.
    async fn advance(&mut self) -> Result<(), Error> {
        let Some(inner) = &mut self.inner else { return self.open().await };
        let message = match timeout_at(self.alive + SILENCE, inner.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) if !self.follow => {
                self.finished = true;
                return Ok(());
            }
            Ok(Ok(None)) => {
                return self.broke(self.temporary("the stream ended before the task did"));
            }
            Ok(Err(status)) => {
                let error = self.session.client.error(status);
                return self.broke(error);
            }
            Err(_) => return self.broke(self.temporary("nothing came for a minute")),
        };
        self.alive = Instant::now();
        self.backoff = Backoff::default();
        self.broken = None;
        self.take(message)
    }

    fn temporary(&self, why: &str) -> Error {
        self.session.client.error(tonic::Status::unavailable(why))
    }

    /// The stream is gone: to be resumed, or for good.
    fn broke(&mut self, error: Error) -> Result<(), Error> {
        self.inner = None;
        if let Some(run) = &mut self.run {
            self.broken = run.attempt.failed(&self.session, error)?;
            return Ok(());
        }
        let skippable = error.is(Reason::OutputLost) && self.skip_lost && self.broken.is_none();
        // Its machine was lost, and it is made ready elsewhere.
        let moves = error.is(Reason::SessionNotReady) && self.info.is_some();
        if !error.is_temporary() && !skippable && !moves {
            return Err(error);
        }
        tracing::debug!(?error, "a watched stream broke");
        self.broken = Some(error);
        Ok(())
    }

    /// The task is not there any more to be watched: what is known of it is the end of it.
    async fn ended_without_us(&mut self, error: Error) -> Result<(), Error> {
        self.inner = None;
        let Some(task) = &self.task else { return Err(error) };
        match task.info().await {
            Ok(info) if info.state == TaskState::Done => self.ended(info),
            Ok(_) => Err(error),
            Err(told) => self.broke(told),
        }
    }

    /// Opens, or after a break resumes, the stream.
    async fn open(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            let first = self.info.is_none();
            let window = if first { FIRST_WINDOW } else { self.session.client.resume_for() };
            if self.alive.elapsed() > window || (first && error.is_not_connected()) {
                let error = self.broken.take().expect("just seen");
                return Err(error);
            }
            self.backoff.wait().await;
        }
        let client = self.session.client.clone();
        let opened = match (&self.task, &self.run) {
            (None, Some(run)) => {
                let request = v1::RunRequest { if_epoch: run.attempt.if_epoch(), ..run.request.clone() };
                client.open(request, |channel, request| async { service(channel).run(request).await }).await
            }
            (Some(task), _) => {
                let request = v1::WatchTaskRequest {
                    session_id: self.session.id.to_string(),
                    task_id: task.id().to_string(),
                    stdout_offset: self.at[0],
                    stderr_offset: self.at[1],
                    skip_lost: self.skip_lost,
                    no_follow: !self.follow,
                };
                client
                    .open(request, |channel, request| async { service(channel).watch_task(request).await })
                    .await
            }
            (None, None) => return Err(Error::strange("a stream of no task")),
        };
        match opened {
            Ok(inner) => self.inner = Some(inner),
            Err(error) if self.info.is_some() && is_gone(&error) => {
                return self.ended_without_us(error).await;
            }
            Err(error) => return self.broke(error),
        }
        if self.info.is_none() {
            self.alive = Instant::now();
        }
        Ok(())
    }

    fn take(&mut self, message: v1::TaskEvent) -> Result<(), Error> {
        match message.event {
            Some(Event::Started(task)) => {
                let info = TaskInfo::try_from(task)?;
                if self.task.is_none() {
                    self.task = Some(TaskHandle::new_started(self.session.clone(), info.id));
                }
                self.run = None;
                self.info.get_or_insert(info);
                Ok(())
            }
            Some(Event::Stdout(chunk)) => self.output(Std::Out, chunk),
            Some(Event::Stderr(chunk)) => self.output(Std::Err, chunk),
            Some(Event::Ended(task)) => self.ended(TaskInfo::try_from(task)?),
            // A kind of event that a later version may add.
            Some(Event::Keepalive(_)) | None => Ok(()),
        }
    }

    fn ended(&mut self, info: TaskInfo) -> Result<(), Error> {
        // All that is kept has come: what is still missing is gone.
        self.missing(Std::Out, info.stdout.length)?;
        self.missing(Std::Err, info.stderr.length)?;
        self.pending.push_back(TaskEvent::Ended(Box::new(info)));
        self.finished = true;
        self.inner = None;
        Ok(())
    }

    /// Goes on at `to`, and says what is passed over.
    fn missing(&mut self, stream: Std, to: u64) -> Result<(), Error> {
        let from = self.at[stream as usize];
        if to <= from {
            return Ok(());
        }
        if !self.skip_lost {
            return Err(Error::output_lost(stream.name(), from, to));
        }
        self.at[stream as usize] = to;
        self.pending.push_back(TaskEvent::Lost { stream, from, to });
        Ok(())
    }

    /// Hands out what is new of a chunk.
    fn output(&mut self, stream: Std, chunk: v1::OutputChunk) -> Result<(), Error> {
        let v1::OutputChunk { offset, data } = chunk;
        let end = offset + data.len() as u64;
        let at = self.at[stream as usize];
        if end <= at {
            return Ok(());
        }
        self.missing(stream, offset)?;
        let new = data.slice(at.saturating_sub(offset) as usize..);
        self.at[stream as usize] = end;
        self.pending.push_back(match stream {
            Std::Out => TaskEvent::Stdout(new),
            Std::Err => TaskEvent::Stderr(new),
        });
        Ok(())
    }
}

/// Whether a task that was there is there no more.
fn is_gone(error: &Error) -> bool {
    error.is(Reason::TaskNotFound) || error.is(Reason::SessionEnded)
}

impl std::fmt::Debug for TaskStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task: Option<TaskId> = self.task.as_ref().map(TaskHandle::id);
        f.debug_struct("TaskStream").field("task", &task).field("at", &self.at).finish_non_exhaustive()
    }
}
