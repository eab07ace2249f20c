//! The data plane: `TaskService` and `FileService`, passed on to the session's worker by
//! the relay that every hop uses. This hop adds *where*: it looks the session up in the
//! view (no round trip through the driver) and takes one of its worker's data channels.
//!
//! What a session's tasks came to can be asked after its end too: then the store answers.

use std::time::Duration;

use berth_proto::{
    Error, Reason, SessionId, TaskId,
    convert::{self, bounds},
    domain::SessionState,
    error::reason_of,
    relay::{Hop, Relay, Route, worker_unreachable},
    v1::{self, task_service_server::TaskService},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::Context;
use crate::{
    fleet::{Session, no_session, not_ready, session_ended},
    store::StoreError,
};

/// How long a call waits for a data channel: a worker that attaches anew needs about that.
const CHANNEL_WITHIN: Duration = Duration::from_secs(2);

/// Calls that start a task or feed one: a paused session takes none of them.
const NEEDS_RUNNING: [&str; 4] = ["Run", "StartTask", "WriteStdin", "CloseStdin"];

pub struct ToWorker {
    context: Context,
}

impl Route for ToWorker {
    async fn route(&self, id: SessionId, call: &'static str, _: &MetadataMap) -> Result<Hop, Error> {
        let shared = &self.context.shared;
        let session = shared.view.session(&id).ok_or_else(|| no_session(&id))?;
        usable(&session, call)?;
        let worker = session.worker.as_ref().ok_or_else(not_ready)?;
        let channel = shared.links.channel(worker, Instant::now() + CHANNEL_WITHIN).await?;
        Ok(Hop { channel, guard: None })
    }

    fn lost(&self) -> Error {
        worker_unreachable()
    }
}

/// Whether a session takes this call in its state.
fn usable(session: &Session, call: &str) -> Result<(), Error> {
    match session.state {
        SessionState::Pending | SessionState::Placed => Err(not_ready()),
        SessionState::Ending | SessionState::Ended => Err(session_ended(session.end, &session.message)),
        SessionState::Paused if NEEDS_RUNNING.contains(&call) => {
            Err(Error::precondition(Reason::SessionPaused, "the session is paused")
                .hint(format!("resume it first: berth resume {}", session.id)))
        }
        SessionState::Ready | SessionState::Paused => Ok(()),
    }
}

pub type Files = Relay<ToWorker>;

/// `FileService`: all of it goes to the worker.
pub fn files(context: Context) -> Files {
    Relay::new(ToWorker { context })
}

/// `TaskService`: the worker's while the session lives, the store's afterwards.
pub struct Tasks {
    relay: Relay<ToWorker>,
    context: Context,
}

impl Tasks {
    pub fn new(context: Context) -> Self {
        Self { relay: Relay::new(ToWorker { context: context.clone() }), context }
    }

    /// The session, if it has ended.
    fn ended(&self, id: &str) -> Result<Option<SessionId>, Error> {
        let id: SessionId = id.parse()?;
        let session = self.context.shared.view.session(&id).ok_or_else(|| no_session(&id))?;
        Ok((session.state == SessionState::Ended).then_some(id))
    }

    async fn stored(&self, session: SessionId, task: &str) -> Result<Response<v1::Task>, Status> {
        let id: TaskId = task.parse()?;
        let found = self.context.shared.store.task(session, id).await.map_err(unread)?;
        let missing = || {
            Error::not_found(Reason::TaskNotFound, format!("no task of this ended session has the id {id}"))
                .hint("of an ended session the last 1000 finished tasks are kept")
        };
        Ok(Response::new(found.ok_or_else(missing)?))
    }

    /// A task of an earlier placement is not known where the session is now: what became of it is in the store.
    async fn or_stored(
        &self,
        answer: Result<Response<v1::Task>, Status>,
        session: SessionId,
        task: TaskId,
    ) -> Result<Response<v1::Task>, Status> {
        let unknown = |status: &Status| reason_of(status) == Some(Reason::TaskNotFound);
        let Some(status) = answer.as_ref().err().filter(|status| unknown(status)) else { return answer };
        match self.context.shared.store.task(session, task).await.map_err(unread)? {
            Some(task) => Ok(Response::new(task)),
            None => Err(status.clone()),
        }
    }

    async fn stored_list(
        &self,
        session: SessionId,
        request: &v1::ListTasksRequest,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let size = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        if request.running_only {
            return Ok(Response::new(v1::ListTasksResponse::default()));
        }
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<TaskId>().map_err(|_| convert::bad_page_token())?),
        };
        let mut tasks = self.context.shared.store.tasks(session, before, size + 1).await.map_err(unread)?;
        let more = crate::wire::cut_page(&mut tasks, size);
        let last = tasks.last().filter(|_| more).map(|task| task.id.clone());
        Ok(Response::new(v1::ListTasksResponse { tasks, next_page_token: last.unwrap_or_default() }))
    }
}

fn named(session: String, task: &str) -> Result<(SessionId, TaskId), Error> {
    Ok((session.parse()?, task.parse()?))
}

fn unread(error: StoreError) -> Error {
    Error::unavailable(Reason::StoreFailed, "the coordinator's store could not be read")
        .hint("look at the disk under the coordinator's state directory")
        .cause(error)
}

macro_rules! passed_on {
    ($($method:ident: $request:ident => $response:ty,)*) => {
        #[tonic::async_trait]
        impl TaskService for Tasks {
            type RunStream = <Relay<ToWorker> as TaskService>::RunStream;
            type WatchTaskStream = <Relay<ToWorker> as TaskService>::WatchTaskStream;

            async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
                match self.ended(&request.get_ref().session_id)? {
                    Some(session) => self.stored(session, &request.get_ref().task_id).await,
                    None => {
                        let (session, task) = named(request.get_ref().session_id.clone(), &request.get_ref().task_id)?;
                        let answer = self.relay.get_task(request).await;
                        self.or_stored(answer, session, task).await
                    }
                }
            }

            async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Result<Response<v1::Task>, Status> {
                match self.ended(&request.get_ref().session_id)? {
                    Some(session) => self.stored(session, &request.get_ref().task_id).await,
                    None => {
                        let (session, task) = named(request.get_ref().session_id.clone(), &request.get_ref().task_id)?;
                        let answer = self.relay.wait_task(request).await;
                        self.or_stored(answer, session, task).await
                    }
                }
            }

            async fn list_tasks(
                &self,
                request: Request<v1::ListTasksRequest>,
            ) -> Result<Response<v1::ListTasksResponse>, Status> {
                match self.ended(&request.get_ref().session_id)? {
                    Some(session) => self.stored_list(session, request.get_ref()).await,
                    None => self.relay.list_tasks(request).await,
                }
            }

            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                self.relay.$method(request).await
            })*
        }
    };
}

passed_on! {
    run: RunRequest => Self::RunStream,
    watch_task: WatchTaskRequest => Self::WatchTaskStream,
    start_task: StartTaskRequest => v1::Task,
    write_stdin: WriteStdinRequest => v1::WriteStdinResponse,
    close_stdin: CloseStdinRequest => v1::CloseStdinResponse,
    resize_pty: ResizePtyRequest => v1::ResizePtyResponse,
    signal_task: SignalTaskRequest => v1::SignalTaskResponse,
    cancel_task: CancelTaskRequest => v1::Task,
}
