//! TaskService, as the agent serves it: conversion and waiting; the rest is
//! [`crate::tasks`] and [`crate::task`].

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Error, TaskId,
    convert::{self, bad_page_token, bounds},
    domain::PtySize,
    v1::{self, task_service_server::TaskService},
};
use futures::Stream;
use prost::Message;
use tonic::{Request, Response, Status};

use crate::{
    outcome::Cause,
    stdin::task_done,
    task::{Stop, Task, WatchGuard},
    tasks::Tasks,
    usage,
    watch::{self, Range},
};

/// Bytes of one page: a task may show an argv of 1 MiB.
const PAGE_BYTES: usize = 1 << 20;
/// For a task that was asked to end, on top of the grace.
const CANCEL_DEADLINE: Duration = Duration::from_secs(45);

/// The service.
pub struct TaskApi {
    pub tasks: Arc<Tasks>,
    pub usage: usage::Sources,
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

impl TaskApi {
    fn watch(&self, task: Arc<Task>, range: Range) -> Result<Response<Events>, Status> {
        let clock = self.tasks.shared().clock.clone();
        Ok(Response::new(Box::pin(watch::stream(task, clock, range, self.tasks.busy())?)))
    }

    /// Waits until a task is done. False: the timeout passed first.
    async fn done(&self, task: &Arc<Task>, timeout: Option<Duration>) -> bool {
        // Who waits for a task watches it.
        let _watching = WatchGuard::new(task.clone(), self.tasks.shared().clock.clone());
        match timeout {
            None => {
                task.done.cancelled().await;
                true
            }
            Some(timeout) => tokio::time::timeout(timeout, task.done.cancelled()).await.is_ok(),
        }
    }
}

#[tonic::async_trait]
impl TaskService for TaskApi {
    type RunStream = Events;
    type WatchTaskStream = Events;

    async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<Events>, Status> {
        let v1::RunRequest { session_id, task, request_id, if_epoch, secrets } = request.into_inner();
        let task = self.tasks.start(&session_id, task, request_id, if_epoch, secrets).await?;
        // A second Run with the same key may come when the beginning is no longer kept. From
        // there on nothing may be left out.
        let range =
            Range { stdout: task.stdout.bounds().1, stderr: task.stderr.bounds().1, ..Range::default() };
        self.watch(task, range)
    }

    async fn start_task(&self, request: Request<v1::StartTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let _busy = self.tasks.busy();
        let v1::StartTaskRequest { session_id, task, request_id, if_epoch, secrets } = request.into_inner();
        let task = self.tasks.start(&session_id, task, request_id, if_epoch, secrets).await?;
        Ok(Response::new(task.to_wire()))
    }

    async fn watch_task(&self, request: Request<v1::WatchTaskRequest>) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        task.started().await?;
        let range = Range {
            stdout: request.stdout_offset,
            stderr: request.stderr_offset,
            skip_lost: request.skip_lost,
            no_follow: request.no_follow,
        };
        self.watch(task, range)
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        Ok(Response::new(self.tasks.get(&request.session_id, &request.task_id)?.to_wire()))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        self.tasks.session(&request.session_id)?;
        let page = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        let before: Option<TaskId> = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| bad_page_token())?),
        };
        let mut response = v1::ListTasksResponse::default();
        let mut bytes = 0;
        for task in self.tasks.list(before, request.running_only) {
            let task = task.to_wire();
            bytes += task.encoded_len();
            if let Some(last) = response.tasks.last()
                && (response.tasks.len() == page || bytes > PAGE_BYTES)
            {
                response.next_page_token = last.id.clone();
                break;
            }
            response.tasks.push(task);
        }
        Ok(Response::new(response))
    }

    async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let timeout = request.timeout.map(|t| convert::duration("timeout", t)).transpose()?;
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        self.done(&task, timeout).await;
        Ok(Response::new(task.to_wire()))
    }

    async fn write_stdin(
        &self,
        request: Request<v1::WriteStdinRequest>,
    ) -> Result<Response<v1::WriteStdinResponse>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        task.started().await?;
        if task.is_over() {
            return Err(task_done().into());
        }
        let offset = task.stdin.write(request.offset, &request.data, &task.done).await?;
        Ok(Response::new(v1::WriteStdinResponse { offset }))
    }

    async fn close_stdin(
        &self,
        request: Request<v1::CloseStdinRequest>,
    ) -> Result<Response<v1::CloseStdinResponse>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        task.started().await?;
        // Of a done task it is closed: a client that closes late does no wrong.
        if !task.is_over() {
            task.stdin.close(&task.done).await?;
        }
        Ok(Response::new(v1::CloseStdinResponse {}))
    }

    async fn resize_pty(
        &self,
        request: Request<v1::ResizePtyRequest>,
    ) -> Result<Response<v1::ResizePtyResponse>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let size: PtySize = convert::required("size", request.size)?.try_into()?;
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        task.started().await?;
        if task.is_over() {
            return Err(task_done().into());
        }
        task.resize(size)?;
        Ok(Response::new(v1::ResizePtyResponse {}))
    }

    async fn signal_task(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Result<Response<v1::SignalTaskResponse>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let signal = convert::signal(request.signal)?;
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        task.started().await?;
        let number = task.number().ok_or_else(task_done)?;
        self.tasks
            .shared()
            .spawner
            .signal(number, signal)
            .await
            .map_err(|error| Error::internal("the signal could not be sent").cause(error))?;
        Ok(Response::new(v1::SignalTaskResponse {}))
    }

    async fn cancel_task(
        &self,
        request: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        let _busy = self.tasks.busy();
        let request = request.into_inner();
        let grace = convert::grace(request.grace)?;
        let task = self.tasks.get(&request.session_id, &request.task_id)?;
        // A start that failed meanwhile has nothing to cancel, and says so.
        task.started().await?;
        task.stop(Stop { cause: Cause::Cancelled, grace });
        if !self.done(&task, Some(grace + CANCEL_DEADLINE)).await {
            return Err(Error::internal("the task's processes could not be ended").into());
        }
        Ok(Response::new(task.to_wire()))
    }

    /// No mark of activity: who watches what a session takes would keep it for ever.
    async fn get_usage(
        &self,
        request: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::SessionUsage>, Status> {
        let session = self.tasks.session(&request.into_inner().session_id)?;
        let sources = self.usage.clone();
        let read_at = Some(convert::time_out(SystemTime::now()));
        let read = tokio::task::spawn_blocking(move || usage::read(&sources)).await;
        let usage = read.map_err(|error| Error::internal("the reading broke off").cause(error))?;
        let tasks = u32::try_from(self.tasks.running()).unwrap_or(u32::MAX);
        let tasks_limit = session.defaults.max_concurrent;
        Ok(Response::new(v1::SessionUsage { read_at, tasks, tasks_limit, ..usage }))
    }
}
