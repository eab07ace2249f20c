//! Interpreters that remember: contexts of a session, and what is executed in them. See [`Session::interpreter`].
//!
//! An execution goes on when its connection breaks, and its stream is resumed where it broke: it knows by byte offset what
//! output it has handed out, and counts the rest. An execution whose answer was lost before it began is asked for again
//! under the same request id, by which its context knows it; so it runs once.

use std::{collections::VecDeque, time::Duration};

use berth_proto::{
    ContextId, TaskId,
    convert::duration_out,
    transport::MESSAGE_LIMIT,
    v1::{self, execute_event::Event, interpreter_service_client::InterpreterServiceClient},
};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tonic::{Streaming, transport::Channel};

use crate::{
    Error, Labels, Session,
    backoff::Backoff,
    connect::Policy,
    model::{ContextInfo, ExecutionEnd, ExecutionError, Kernel, MimeBundle},
};

fn service(channel: Channel) -> InterpreterServiceClient<Channel> {
    InterpreterServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// For an interpreter to take code.
const START: Duration = Duration::from_secs(90);
/// Servers send keepalives in quiet times; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);

impl Session {
    /// Python that remembers what it was told.
    pub fn interpreter(&self) -> Interpreter {
        Interpreter { session: self.clone() }
    }
}

/// The interpreters of a session.
#[derive(Clone, Debug)]
pub struct Interpreter {
    session: Session,
}

/// What a context shall be.
#[derive(Clone, Default)]
pub struct ContextOptions {
    cwd: String,
    env: Labels,
    kernel: Option<Kernel>,
    executable: String,
    request_id: Option<String>,
}

impl ContextOptions {
    /// Python in the workspace, with ipykernel where the session's root has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where it starts: relative to the workspace, or absolute.
    #[must_use]
    pub fn cwd(mut self, cwd: impl Into<String>) -> Self {
        self.cwd = cwd.into();
        self
    }

    /// A variable, on top of the session's.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// This kernel, or an error where it is not to be had.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Another interpreter than `python3`: a path (that of a virtual environment's), or a name to look up in PATH.
    #[must_use]
    pub fn executable(mut self, executable: impl Into<String>) -> Self {
        self.executable = executable.into();
        self
    }

    /// The same id in a session makes one context only, for as long as that is there: who creates it again has that one.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }
}

impl Interpreter {
    /// Starts a context. Returns when it takes code. A session may have eight.
    pub async fn create(&self, options: ContextOptions) -> Result<Context, Error> {
        let ContextOptions { cwd, env, kernel, executable, request_id } = options;
        let message = v1::CreateContextRequest {
            session_id: self.session.id.to_string(),
            language: String::new(),
            cwd,
            env: env.into_iter().collect(),
            kernel: kernel.map_or(v1::Kernel::Unspecified, v1::Kernel::from).into(),
            executable,
            request_id: request_id.unwrap_or_else(|| TaskId::new().to_string()),
        };
        // Its request id makes it safe to repeat.
        let policy = Policy::REPEATABLE.deadline(START);
        let made = self
            .session
            .client
            .call(policy, message, |channel, request| async {
                service(channel).create_context(request).await
            })
            .await?;
        Ok(self.context(ContextInfo::try_from(made)?.id))
    }

    /// The session's contexts, oldest first.
    pub async fn list(&self) -> Result<Vec<ContextInfo>, Error> {
        let message = v1::ListContextsRequest { session_id: self.session.id.to_string() };
        let listed = self
            .session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).list_contexts(request).await
            })
            .await?;
        listed.contexts.into_iter().map(ContextInfo::try_from).collect()
    }

    /// A handle for a context that is there already. Asks nothing of the server.
    pub fn context(&self, id: ContextId) -> Context {
        Context { session: self.session.clone(), id }
    }
}

/// A context: what one execution defines in it is there for the next. Cheap to clone. Dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct Context {
    session: Session,
    id: ContextId,
}

/// Code, and how it is run.
#[derive(Clone, Debug)]
pub struct Snippet {
    code: String,
    timeout: Option<Duration>,
    output_limit: u64,
    env: Labels,
}

impl Snippet {
    pub fn new(code: impl Into<String>) -> Self {
        Self { code: code.into(), timeout: None, output_limit: 0, env: Labels::new() }
    }

    /// A variable that it alone has, on top of its context's.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Interrupt it after this time. Zero: never. Not said: the session's default for tasks.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Bytes that are kept of what comes of it, at most 16 MiB. Not said: 4 MiB.
    #[must_use]
    pub fn output_limit(mut self, bytes: u64) -> Self {
        self.output_limit = bytes;
        self
    }
}

impl From<&str> for Snippet {
    fn from(code: &str) -> Self {
        Self::new(code)
    }
}

impl From<String> for Snippet {
    fn from(code: String) -> Self {
        Self::new(code)
    }
}

impl Context {
    pub fn id(&self) -> ContextId {
        self.id
    }

    fn ids(&self) -> (String, String) {
        (self.session.id.to_string(), self.id.to_string())
    }

    /// Runs code to its end and collects what comes of it. That the code failed is in the [`Execution`]; an error is that it
    /// could not be run, or is not known.
    pub async fn execute(&self, code: impl Into<Snippet>) -> Result<Execution, Error> {
        self.stream(code).await?.collect().await
    }

    /// Runs code, for what comes of it as it comes.
    pub async fn stream(&self, code: impl Into<Snippet>) -> Result<ExecutionStream, Error> {
        let Snippet { code, timeout, output_limit, env } = code.into();
        let (session_id, context_id) = self.ids();
        let request = v1::ExecuteRequest {
            session_id,
            context_id,
            code,
            timeout: timeout.map(duration_out),
            output_limit,
            env: env.into_iter().collect(),
            request_id: TaskId::new().to_string(),
        };
        ExecutionStream::begin(self.clone(), Some(request), 0).await
    }

    /// An execution from its beginning: one that waits or runs, or the newest. Zero: the newest.
    pub async fn watch(&self, execution: u64) -> Result<ExecutionStream, Error> {
        ExecutionStream::begin(self.clone(), None, execution).await
    }

    /// Interrupts what runs, as Control-C does. Its number; `None`: nothing runs.
    pub async fn interrupt(&self) -> Result<Option<u64>, Error> {
        self.interrupt_meant(0, Policy::ONCE).await
    }

    /// Interrupts this execution, and no other: whether it was still under way. One that waits ends without having run.
    pub async fn interrupt_execution(&self, number: u64) -> Result<bool, Error> {
        // It can't hit another, so it may be sent again.
        Ok(self.interrupt_meant(number, Policy::REPEATABLE).await?.is_some())
    }

    async fn interrupt_meant(&self, execution: u64, policy: Policy) -> Result<Option<u64>, Error> {
        let (session_id, context_id) = self.ids();
        let message = v1::InterruptContextRequest { session_id, context_id, execution };
        let told = self
            .session
            .client
            .call(policy, message, |channel, request| async {
                service(channel).interrupt_context(request).await
            })
            .await?;
        Ok((told.execution > 0).then_some(told.execution))
    }

    /// Starts its interpreter anew: all that it had defined is gone.
    pub async fn restart(&self) -> Result<ContextInfo, Error> {
        let (session_id, context_id) = self.ids();
        let message = v1::RestartContextRequest { session_id, context_id };
        self.session
            .client
            .call(Policy::ONCE.deadline(START), message, |channel, request| async {
                service(channel).restart_context(request).await
            })
            .await?
            .try_into()
    }

    /// Ends it. One that is gone already is no error.
    pub async fn delete(&self) -> Result<(), Error> {
        let (session_id, context_id) = self.ids();
        let message = v1::DeleteContextRequest { session_id, context_id };
        self.session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).delete_context(request).await
            })
            .await?;
        Ok(())
    }
}

/// What came of an execution, whole.
#[derive(Clone, Debug)]
pub struct Execution {
    pub number: u64,
    pub kernel: Kernel,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What it showed, in order.
    pub displays: Vec<MimeBundle>,
    /// The last expression's value.
    pub result: Option<MimeBundle>,
    pub error: Option<ExecutionError>,
    pub end: ExecutionEnd,
}

impl Execution {
    /// The result, as text.
    pub fn text(&self) -> Option<&str> {
        self.result.as_ref().and_then(MimeBundle::text)
    }
}

/// What happens in an execution.
#[derive(Clone, Debug)]
pub enum ExecutionEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    Display(MimeBundle),
    Result(MimeBundle),
    Error(ExecutionError),
    /// The last event.
    Ended(ExecutionEnd),
}

/// An execution, as it goes on.
pub struct ExecutionStream {
    context: Context,
    /// How to begin it, as long as we don't know whether it was.
    request: Option<v1::ExecuteRequest>,
    number: u64,
    kernel: Option<Kernel>,
    /// The next byte of stdout and of stderr.
    at: [u64; 2],
    /// Other events that were handed out, and those seen since the stream was last opened.
    told: u64,
    seen: u64,
    inner: Option<Streaming<v1::ExecuteEvent>>,
    pending: VecDeque<ExecutionEvent>,
    finished: bool,
    alive: Instant,
    backoff: Backoff,
    broken: Option<Error>,
}

impl ExecutionStream {
    async fn begin(
        context: Context,
        request: Option<v1::ExecuteRequest>,
        number: u64,
    ) -> Result<Self, Error> {
        let mut stream = Self {
            context,
            request,
            number,
            kernel: None,
            at: [0, 0],
            told: 0,
            seen: 0,
            inner: None,
            pending: VecDeque::new(),
            finished: false,
            alive: Instant::now(),
            backoff: Backoff::default(),
            broken: None,
        };
        while stream.kernel.is_none() {
            stream.advance().await?;
        }
        Ok(stream)
    }

    /// Which execution of its context it is, counted from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it runs in.
    pub fn kernel(&self) -> Kernel {
        self.kernel.expect("set by `begin`, before the stream is handed out")
    }

    /// The next event. `None`: it has ended.
    pub async fn next(&mut self) -> Result<Option<ExecutionEvent>, Error> {
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

    /// Everything until its end.
    pub async fn collect(mut self) -> Result<Execution, Error> {
        let (mut stdout, mut stderr, mut displays) = (Vec::new(), Vec::new(), Vec::new());
        let (mut result, mut error) = (None, None);
        while let Some(event) = self.next().await? {
            match event {
                ExecutionEvent::Stdout(data) => stdout.extend_from_slice(&data),
                ExecutionEvent::Stderr(data) => stderr.extend_from_slice(&data),
                ExecutionEvent::Display(bundle) => displays.push(bundle),
                ExecutionEvent::Result(bundle) => result = Some(bundle),
                ExecutionEvent::Error(told) => error = Some(told),
                ExecutionEvent::Ended(end) => {
                    let (number, kernel) = (self.number, self.kernel());
                    return Ok(Execution { number, kernel, stdout, stderr, displays, result, error, end });
                }
            }
        }
        Err(Error::strange("the execution ended without an end"))
    }

    /// Opens the stream if there is none, else takes one message from it.
    async fn advance(&mut self) -> Result<(), Error> {
        let Some(inner) = &mut self.inner else { return self.open().await };
        let error = match timeout_at(self.alive + SILENCE, inner.message()).await {
            Ok(Ok(Some(message))) => {
                self.alive = Instant::now();
                self.backoff = Backoff::default();
                self.broken = None;
                return self.take(message);
            }
            Ok(Ok(None)) => self.temporary("the stream ended before the execution did"),
            Ok(Err(status)) => self.context.session.client.error(status),
            Err(_) => self.temporary("nothing came for a minute"),
        };
        self.broke(error)
    }

    fn temporary(&self, why: &str) -> Error {
        self.context.session.client.error(tonic::Status::unavailable(why))
    }

    fn broke(&mut self, error: Error) -> Result<(), Error> {
        self.inner = None;
        if !error.is_temporary() {
            return Err(error);
        }
        tracing::debug!(?error, "an execution's stream broke");
        self.broken = Some(error);
        Ok(())
    }

    async fn open(&mut self) -> Result<(), Error> {
        let client = self.context.session.client.clone();
        if let Some(error) = self.broken.take_if(|error| {
            self.alive.elapsed() > client.resume_for() || (self.kernel.is_none() && error.is_not_connected())
        }) {
            return Err(error);
        }
        if self.broken.is_some() {
            self.backoff.wait().await;
        }
        let opened = match &self.request {
            Some(request) => {
                let send = |channel, request| async { service(channel).execute(request).await };
                client.open(request.clone(), send).await
            }
            None => {
                let (session_id, context_id) = self.context.ids();
                let request = v1::WatchExecutionRequest { session_id, context_id, execution: self.number };
                let send = |channel, request| async { service(channel).watch_execution(request).await };
                client.open(request, send).await
            }
        };
        match opened {
            Ok(inner) => {
                self.inner = Some(inner);
                self.seen = 0;
                Ok(())
            }
            Err(error) => self.broke(error),
        }
    }

    fn take(&mut self, message: v1::ExecuteEvent) -> Result<(), Error> {
        let event = match message.event {
            Some(Event::Started(started)) => {
                self.kernel = Some(Kernel::try_from(started.kernel())?);
                self.number = started.execution;
                self.request = None;
                return Ok(());
            }
            Some(Event::Stdout(chunk)) => return self.output(0, chunk),
            Some(Event::Stderr(chunk)) => return self.output(1, chunk),
            // A kind of event that a later version may add.
            Some(Event::Keepalive(_)) | None => return Ok(()),
            Some(Event::Display(bundle)) => ExecutionEvent::Display(bundle.into()),
            Some(Event::Result(bundle)) => ExecutionEvent::Result(bundle.into()),
            Some(Event::Error(error)) => ExecutionEvent::Error(error.into()),
            Some(Event::Ended(end)) => {
                self.finished = true;
                self.inner = None;
                ExecutionEvent::Ended(end.try_into()?)
            }
        };
        self.seen += 1;
        if self.seen > self.told {
            self.told = self.seen;
            self.pending.push_back(event);
        }
        Ok(())
    }

    /// Hands out what is new of a chunk.
    fn output(&mut self, stream: usize, chunk: v1::OutputChunk) -> Result<(), Error> {
        let v1::OutputChunk { offset, data } = chunk;
        let (end, at) = (offset + data.len() as u64, self.at[stream]);
        if offset > at {
            return Err(Error::strange("output is missing in the stream"));
        }
        if end > at {
            self.at[stream] = end;
            let new = data.slice((at - offset) as usize..);
            let event = if stream == 0 { ExecutionEvent::Stdout } else { ExecutionEvent::Stderr };
            self.pending.push_back(event(new));
        }
        Ok(())
    }
}
