//! `TaskService` over a fake machine's tasks.

use berth_proto::{
    Code, Error, Reason, TaskId, convert,
    domain::Outcome,
    v1::{self, task_service_server::TaskService},
};
use tonic::{Request, Response, Status};

use super::{
    agent::Served,
    feed::{EventStream, Feed, stream},
    lock,
    tasks::{State, Task},
};

#[tonic::async_trait]
impl TaskService for Served {
    type RunStream = EventStream;
    type WatchTaskStream = EventStream;

    async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<EventStream>, Status> {
        let wire = request.into_inner();
        let call = self.0.enter(&wire.session_id)?;
        let task = self.0.start_task(wire.task, wire.request_id, wire.if_epoch, &wire.secrets)?;
        let from_start = v1::WatchTaskRequest { skip_lost: true, ..Default::default() };
        Ok(stream(Feed::new(task, &from_start, call)?))
    }

    async fn start_task(&self, request: Request<v1::StartTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.start_task(wire.task, wire.request_id, wire.if_epoch, &wire.secrets)?;
        Ok(Response::new(task.snapshot()))
    }

    async fn watch_task(
        &self,
        request: Request<v1::WatchTaskRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let wire = request.into_inner();
        let call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        Ok(stream(Feed::new(task, &wire, call)?))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        Ok(Response::new(self.0.task(&wire.task_id)?.snapshot()))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let size = convert::page_size(wire.page_size, convert::bounds::PAGE_DEFAULT)?;
        let after: Option<TaskId> = match wire.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| convert::bad_page_token())?),
        };
        let mut tasks: Vec<_> = self
            .0
            .tasks()
            .into_iter()
            .filter(|task| after.is_none_or(|after| task.id() < after))
            .filter(|task| !wire.running_only || !task.done())
            .take(size + 1)
            .collect();
        let more = tasks.len() > size;
        tasks.truncate(size);
        let next_page_token = tasks.last().filter(|_| more).map(|t| t.id().to_string()).unwrap_or_default();
        let tasks = tasks.iter().map(|task| task.snapshot()).collect();
        Ok(Response::new(v1::ListTasksResponse { tasks, next_page_token }))
    }

    async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        match wire.timeout.map(|timeout| convert::duration("timeout", timeout)).transpose()? {
            None => task.wait().await,
            Some(timeout) => {
                // Either way the answer is the task as it then is.
                let _ = tokio::time::timeout(timeout, task.wait()).await;
            }
        }
        Ok(Response::new(task.snapshot()))
    }

    async fn write_stdin(
        &self,
        request: Request<v1::WriteStdinRequest>,
    ) -> Result<Response<v1::WriteStdinResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        let offset = {
            let mut state = lock(&task.state);
            check_open(&task, &state)?;
            let taken = state.stdin_taken;
            let from = wire.offset.unwrap_or(taken);
            if from > taken {
                return Err(Error::new(
                    Code::OutOfRange,
                    Reason::OffsetBeyondEnd,
                    format!("{taken} bytes were taken so far"),
                )
                .with("length", taken)
                .into());
            }
            let known = usize::try_from(taken - from).unwrap_or(usize::MAX).min(wire.data.len());
            let data = wire.data.slice(known..);
            if !data.is_empty() {
                state.stdin_taken += data.len() as u64;
                state.stdin.push_back(data);
            }
            state.stdin_taken
        };
        task.changed.send_replace(());
        Ok(Response::new(v1::WriteStdinResponse { offset }))
    }

    async fn close_stdin(
        &self,
        request: Request<v1::CloseStdinRequest>,
    ) -> Result<Response<v1::CloseStdinResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        {
            let mut state = lock(&task.state);
            check_open(&task, &state)?;
            state.stdin_open = false;
        }
        task.changed.send_replace(());
        Ok(Response::new(v1::CloseStdinResponse {}))
    }

    async fn resize_pty(
        &self,
        request: Request<v1::ResizePtyRequest>,
    ) -> Result<Response<v1::ResizePtyResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        let size = convert::required("size", wire.size)?;
        berth_proto::domain::PtySize::try_from(size)?;
        if task.spec.pty.is_none() {
            return Err(Error::precondition(Reason::NoPty, "the task has no terminal").into());
        }
        Ok(Response::new(v1::ResizePtyResponse {}))
    }

    async fn signal_task(
        &self,
        request: Request<v1::SignalTaskRequest>,
    ) -> Result<Response<v1::SignalTaskResponse>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        let signal = convert::signal(wire.signal)?;
        if task.done() {
            return Err(Error::precondition(Reason::TaskDone, "the task is done").into());
        }
        // Those whose default is not to end a process: CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH.
        if !matches!(signal, 17..=23 | 28) {
            task.stop(Outcome::Signaled(signal));
        }
        Ok(Response::new(v1::SignalTaskResponse {}))
    }

    async fn cancel_task(
        &self,
        request: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::Task>, Status> {
        let wire = request.into_inner();
        let _call = self.0.enter(&wire.session_id)?;
        let task = self.0.task(&wire.task_id)?;
        convert::grace(wire.grace)?;
        task.stop(Outcome::Cancelled);
        task.wait().await;
        Ok(Response::new(task.snapshot()))
    }

    async fn get_usage(
        &self,
        request: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::SessionUsage>, Status> {
        Ok(Response::new(self.0.usage(&request.into_inner().session_id)?))
    }
}

fn check_open(task: &Task, state: &State) -> Result<(), Error> {
    if state.end.is_some() {
        return Err(Error::precondition(Reason::TaskDone, "the task is done"));
    }
    if !task.spec.stdin || !state.stdin_open {
        return Err(Error::precondition(Reason::NoStdin, "the task has no open standard input"));
    }
    Ok(())
}
