//! Sessions: made, found, listed, changed and ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    convert::duration_out,
    transport::MESSAGE_LIMIT,
    v1::{self, session_service_client::SessionServiceClient},
};
use tonic::transport::Channel;

use crate::{
    Client, Command, CreateOptions, Error, Files, ListOptions, Output, SessionId, Std, TaskEvent, TaskHandle,
    TaskId, TaskStream, UpdateOptions,
    backoff::Backoff,
    checkpoint,
    connect::Policy,
    model::{SessionInfo, TaskInfo},
    start::Attempt,
    task,
};

pub(crate) fn service(channel: Channel) -> SessionServiceClient<Channel> {
    SessionServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// What a sandbox may take to start, on top of the wait for a place.
const START_MARGIN: Duration = Duration::from_secs(90);
/// Ending, freezing: as long as a worker may take over it.
const CHANGE: Duration = Duration::from_secs(90);
/// A parked session waits for a place for as long as it was made to: the coordinator says when that is over.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

impl Client {
    /// Makes a session and waits until it is ready.
    pub async fn create_session(&self, options: CreateOptions) -> Result<Session, Error> {
        let info = self.create(options).await?;
        let session = self.session(info.id);
        session.placed_at(info.epoch);
        Ok(session)
    }

    /// The same, for what is told of the new session.
    pub async fn create(&self, options: CreateOptions) -> Result<SessionInfo, Error> {
        let wait = options.wait.unwrap_or(berth_proto::convert::bounds::WAIT_FOR_PLACE);
        // Its request id makes it safe to repeat.
        let policy = Policy::REPEATABLE.deadline(wait.saturating_add(START_MARGIN));
        self.call(policy, options.into_wire(), |channel, request| async {
            service(channel).create_session(request).await
        })
        .await?
        .try_into()
    }

    /// A handle for a session that is there already. Asks nothing of the server.
    pub fn session(&self, id: SessionId) -> Session {
        Session { client: self.clone(), id, epoch: Arc::default() }
    }

    /// All sessions that fit, newest first.
    pub async fn sessions(&self, options: ListOptions) -> Result<Vec<SessionInfo>, Error> {
        let mut request = v1::ListSessionsRequest {
            labels: options.labels.into_iter().collect(),
            states: options.states.into_iter().map(|state| v1::SessionState::from(state).into()).collect(),
            page_size: 500,
            page_token: String::new(),
        };
        let mut sessions = Vec::new();
        loop {
            let page = self
                .call(Policy::REPEATABLE, request.clone(), |channel, request| async {
                    service(channel).list_sessions(request).await
                })
                .await?;
            for session in page.sessions {
                sessions.push(session.try_into()?);
            }
            if page.next_page_token.is_empty() {
                return Ok(sessions);
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// A session: one workspace and one sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    pub(crate) client: Client,
    pub(crate) id: SessionId,
    /// Of its newest placement, as far as this handle knows. 0: not asked yet.
    epoch: Arc<AtomicU64>,
}

impl Session {
    pub fn id(&self) -> SessionId {
        self.id
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the coordinator knows of it now.
    pub async fn info(&self) -> Result<SessionInfo, Error> {
        self.get().await?.try_into()
    }

    async fn get(&self) -> Result<v1::Session, Error> {
        let message = v1::GetSessionRequest { session_id: self.id.to_string() };
        self.client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).get_session(request).await
            })
            .await
    }

    /// The epoch of a placement that it has or has had. Asked for once.
    pub(crate) async fn epoch(&self) -> Result<u64, Error> {
        match self.epoch.load(Ordering::Relaxed) {
            0 => {
                let epoch = self.get().await?.epoch;
                self.placed_at(epoch);
                Ok(epoch)
            }
            epoch => Ok(epoch),
        }
    }

    pub(crate) fn placed_at(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Runs a command to its end and collects its output. How it ended is in the
    /// [`Output`]: only a failure to run it is an error. Should this future be dropped,
    /// the task ends when its reattach grace is over.
    pub async fn run(&self, mut command: Command) -> Result<Output, Error> {
        let limit = command.collect_limit;
        let input = command.input.take();
        let mut stream = self.stream(command).await?.skip_lost();
        let task = stream.handle().clone();
        let feed = async {
            // A program that ends before it read all of its input is no error here.
            if let Some(input) = input
                && task.write_stdin(&input).await.is_ok()
            {
                let _ = task.close_stdin().await;
            }
            std::future::pending::<()>().await
        };
        let collect = collect(&mut stream, task.id(), limit);
        tokio::select! {
            output = collect => output,
            () = feed => unreachable!("the feed never ends"),
        }
    }

    /// Runs a command and hands out its output as it comes.
    pub async fn stream(&self, command: Command) -> Result<TaskStream, Error> {
        TaskStream::run(self, &command).await
    }

    /// Starts a task and returns at once.
    pub async fn start(&self, command: Command) -> Result<TaskHandle, Error> {
        let task = self.start_once(&command).await?;
        let handle = TaskHandle::new_started(self.clone(), TaskInfo::try_from(task)?.id);
        if let Some(input) = &command.input {
            handle.write_stdin(input).await?;
            handle.close_stdin().await?;
        }
        Ok(handle)
    }

    async fn start_once(&self, command: &Command) -> Result<v1::Task, Error> {
        let mut attempt = Attempt::new(self, command).await?;
        let message = v1::StartTaskRequest {
            session_id: self.id.to_string(),
            task: Some(command.to_wire()),
            request_id: command.key(),
            if_epoch: None,
            secrets: Vec::new(),
        };
        let mut backoff = Backoff::default();
        let mut tries_left = Policy::REPEATABLE.attempts;
        loop {
            let message = v1::StartTaskRequest { if_epoch: attempt.if_epoch(), ..message.clone() };
            let sent = self.client.once(Policy::REPEATABLE.deadline, message, |channel, request| async {
                task::service(channel).start_task(request).await
            });
            let error = match sent.await {
                Ok(task) => return Ok(task),
                Err(error) => error,
            };
            let Some(error) = attempt.failed(self, error)? else { continue };
            tries_left -= 1;
            if tries_left == 0 {
                return Err(error);
            }
            backoff.wait().await;
        }
    }

    /// A handle for a task that is there already. Asks nothing of the server.
    pub fn task(&self, id: TaskId) -> TaskHandle {
        TaskHandle::new(self.clone(), id)
    }

    /// All tasks that the session still knows, newest first.
    pub async fn tasks(&self) -> Result<Vec<TaskInfo>, Error> {
        self.list_tasks(false).await
    }

    /// Those that are not done, newest first.
    pub async fn running_tasks(&self) -> Result<Vec<TaskInfo>, Error> {
        self.list_tasks(true).await
    }

    async fn list_tasks(&self, running_only: bool) -> Result<Vec<TaskInfo>, Error> {
        let mut request = v1::ListTasksRequest {
            session_id: self.id.to_string(),
            page_size: 100,
            page_token: String::new(),
            running_only,
        };
        let mut tasks = Vec::new();
        loop {
            let page = self
                .client
                .call(Policy::REPEATABLE, request.clone(), |channel, request| async {
                    task::service(channel).list_tasks(request).await
                })
                .await?;
            for task in page.tasks {
                tasks.push(task.try_into()?);
            }
            if page.next_page_token.is_empty() {
                return Ok(tasks);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The session's files.
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Freezes its processes. One that stays paused gives its place up after a while: it is *parked*, and what ran in
    /// it is gone. One that is parked stays so.
    pub async fn pause(&self) -> Result<SessionInfo, Error> {
        let message = v1::PauseSessionRequest { session_id: self.id.to_string() };
        self.client
            .call(Policy::REPEATABLE.deadline(CHANGE), message, |channel, request| async {
                service(channel).pause_session(request).await
            })
            .await?
            .try_into()
    }

    /// Thaws its processes. A parked session is placed anew and is ready with its files when this returns; what ran in
    /// it is gone, which `message` says, and `parked_at` of when its files are. If that fails it stays parked.
    pub async fn resume(&self) -> Result<SessionInfo, Error> {
        let message = v1::ResumeSessionRequest { session_id: self.id.to_string() };
        let longest = checkpoint::RESTORE.saturating_add(LONGEST_WAIT);
        self.client
            .call(Policy::REPEATABLE.deadline(longest), message, |channel, request| async {
                service(channel).resume_session(request).await
            })
            .await?
            .try_into()
    }

    /// Changes labels and life span.
    pub async fn update(&self, options: UpdateOptions) -> Result<SessionInfo, Error> {
        let message = v1::UpdateSessionRequest {
            session_id: self.id.to_string(),
            set_labels: options.set_labels.into_iter().collect(),
            remove_labels: options.remove_labels,
            ttl: options.ttl.map(duration_out),
            idle_timeout: options.idle_timeout.map(duration_out),
            egress: options.egress.map(Into::into),
        };
        self.client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).update_session(request).await
            })
            .await?
            .try_into()
    }

    /// Ends it and removes its files, after a checkpoint if its policy asks for one. No error if it has ended already.
    pub async fn delete(&self) -> Result<SessionInfo, Error> {
        self.end(false, checkpoint::TAKE.saturating_add(CHANGE)).await
    }

    /// The same without the checkpoint that its policy asks for.
    pub async fn delete_without_checkpoint(&self) -> Result<SessionInfo, Error> {
        self.end(true, CHANGE).await
    }

    async fn end(&self, skip_checkpoint: bool, within: Duration) -> Result<SessionInfo, Error> {
        let message = v1::DeleteSessionRequest { session_id: self.id.to_string(), skip_checkpoint };
        self.client
            .call(Policy::REPEATABLE.deadline(within), message, |channel, request| async {
                service(channel).delete_session(request).await
            })
            .await?
            .try_into()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({})", self.id)
    }
}

async fn collect(stream: &mut TaskStream, task: TaskId, limit: usize) -> Result<Output, Error> {
    let mut kept = [Vec::new(), Vec::new()];
    let mut truncated = false;
    while let Some(event) = stream.next().await? {
        let (which, data) = match event {
            TaskEvent::Stdout(data) => (Std::Out, data),
            TaskEvent::Stderr(data) => (Std::Err, data),
            TaskEvent::Lost { .. } => {
                truncated = true;
                continue;
            }
            TaskEvent::Ended(info) => {
                let end = info.end.ok_or_else(|| Error::strange("a task ended without an outcome"))?;
                let [stdout, stderr] = kept;
                return Ok(Output::new(task, end, stdout, stderr, truncated));
            }
        };
        let kept = &mut kept[which as usize];
        let room = limit.saturating_sub(kept.len()).min(data.len());
        kept.extend_from_slice(&data[..room]);
        truncated |= room < data.len();
    }
    Err(Error::strange("the stream ended before the task"))
}
