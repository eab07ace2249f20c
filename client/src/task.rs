//! A task that is there: watched, waited for, fed, signalled, cancelled.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    convert::{bounds, duration_out},
    transport::{CHUNK, MESSAGE_LIMIT},
    v1::{self, task_service_client::TaskServiceClient},
};
use tokio::sync::Mutex;
use tonic::transport::Channel;

use crate::{
    Error, PtySize, Session, TaskId, TaskStream, WatchOptions,
    connect::Policy,
    model::{TaskInfo, TaskState},
};

pub(crate) fn service(channel: Channel) -> TaskServiceClient<Channel> {
    TaskServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// One wait on the server; longer ones are made of several, so that each has a deadline.
const ONE_WAIT: Duration = Duration::from_secs(60);

/// A task of a session. Cheap to clone; clones share the position in standard input.
#[derive(Clone)]
pub struct TaskHandle {
    session: Session,
    id: TaskId,
    /// Bytes of standard input taken so far; `None`: others may have written, so the
    /// first write goes to the end. Held across a write on purpose: input has an order.
    stdin: Arc<Mutex<Option<u64>>>,
}

impl TaskHandle {
    pub(crate) fn new(session: Session, id: TaskId) -> Self {
        Self { session, id, stdin: Arc::new(Mutex::new(None)) }
    }

    /// Of a task that we started, so nobody has written to it yet.
    pub(crate) fn new_started(session: Session, id: TaskId) -> Self {
        Self { session, id, stdin: Arc::new(Mutex::new(Some(0))) }
    }

    pub fn id(&self) -> TaskId {
        self.id
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    fn ids(&self) -> (String, String) {
        (self.session.id.to_string(), self.id.to_string())
    }

    /// The task as it stands now.
    pub async fn info(&self) -> Result<TaskInfo, Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::GetTaskRequest { session_id, task_id };
        self.session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).get_task(request).await
            })
            .await?
            .try_into()
    }

    /// Its output, all that is kept from the beginning, until it ends.
    pub async fn watch(&self) -> Result<TaskStream, Error> {
        self.watch_from(WatchOptions::default()).await
    }

    /// Its output from given offsets.
    pub async fn watch_from(&self, options: WatchOptions) -> Result<TaskStream, Error> {
        TaskStream::watch(self.clone(), options).await
    }

    /// Waits until it is done.
    pub async fn wait(&self) -> Result<TaskInfo, Error> {
        loop {
            let info = self.wait_for(ONE_WAIT).await?;
            if info.state == TaskState::Done {
                return Ok(info);
            }
        }
    }

    /// Waits until it is done or the time is over; its state says which.
    pub async fn wait_for(&self, timeout: Duration) -> Result<TaskInfo, Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::WaitTaskRequest { session_id, task_id, timeout: Some(duration_out(timeout)) };
        let policy = Policy::REPEATABLE.deadline(timeout.saturating_add(Duration::from_secs(15)));
        self.session
            .client
            .call(policy, message, |channel, request| async { service(channel).wait_task(request).await })
            .await?
            .try_into()
    }

    /// Writes all of `data` to its standard input, in order with other writes through
    /// this handle, each byte once even if the connection breaks. Returns when the task's
    /// pipe has taken it: a program that does not read makes this wait.
    pub async fn write_stdin(&self, data: &[u8]) -> Result<(), Error> {
        let mut position = self.stdin.lock().await;
        let mut rest = bytes::Bytes::copy_from_slice(data);
        while !rest.is_empty() {
            let piece = rest.slice(..rest.len().min(CHUNK));
            let length = piece.len() as u64;
            let taken = self.write_piece(*position, piece).await?;
            let progress = match *position {
                // Bytes beyond this piece would be another writer's.
                Some(from) => taken.saturating_sub(from).min(length),
                None => length,
            };
            *position = Some(taken);
            rest = rest.slice(progress as usize..);
            if progress == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn write_piece(&self, offset: Option<u64>, data: bytes::Bytes) -> Result<u64, Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::WriteStdinRequest { session_id, task_id, offset, data };
        // Only a write at a known place is safe to repeat. A full pipe may take as long as
        // its reader does: the deadline is only for a server that is gone.
        let policy = if offset.is_some() { Policy::REPEATABLE } else { Policy::ONCE };
        let response = self
            .session
            .client
            .call(policy.deadline(bounds::DURATION_MAX), message, |channel, request| async {
                service(channel).write_stdin(request).await
            })
            .await?;
        Ok(response.offset)
    }

    /// Ends its standard input.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        let _order = self.stdin.lock().await;
        let (session_id, task_id) = self.ids();
        let message = v1::CloseStdinRequest { session_id, task_id };
        self.session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).close_stdin(request).await
            })
            .await?;
        Ok(())
    }

    /// Tells its terminal a new size.
    pub async fn resize(&self, size: PtySize) -> Result<(), Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::ResizePtyRequest { session_id, task_id, size: Some(size.into()) };
        self.session
            .client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).resize_pty(request).await
            })
            .await?;
        Ok(())
    }

    /// Signals its main process and process group. `signal` is Linux's number.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::SignalTaskRequest { session_id, task_id, signal };
        self.session
            .client
            .call(Policy::ONCE, message, |channel, request| async {
                service(channel).signal_task(request).await
            })
            .await?;
        Ok(())
    }

    /// Ends it: TERM, and after the grace KILL to all that it started. Returns when it is done.
    pub async fn cancel(&self) -> Result<TaskInfo, Error> {
        self.cancel_with(bounds::GRACE_DEFAULT).await
    }

    /// The same with another time between TERM and KILL, at most 60 s.
    pub async fn cancel_with(&self, grace: Duration) -> Result<TaskInfo, Error> {
        let (session_id, task_id) = self.ids();
        let message = v1::CancelTaskRequest { session_id, task_id, grace: Some(duration_out(grace)) };
        let policy = Policy::REPEATABLE.deadline(grace.saturating_add(Duration::from_secs(30)));
        self.session
            .client
            .call(policy, message, |channel, request| async { service(channel).cancel_task(request).await })
            .await?
            .try_into()
    }
}

impl std::fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskHandle({} of {})", self.id, self.session.id)
    }
}
