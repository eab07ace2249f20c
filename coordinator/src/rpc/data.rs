//! The data plane: `TaskService`, `FileService` and `PortService`, passed on to the session's worker by
//! the relay that every hop uses. This hop adds *who* and *where*: it looks the session up in the
//! view, as far as the caller sees it (no round trip through the driver), counts the call as its tenant's,
//! and takes one of its worker's data channels.
//!
//! What a session's tasks came to can be asked after its end too, and while it is parked: then the store answers. So it
//! does for those that a recovery has cost the session ([`super::recovered`]), and each has one end whoever tells it
//! ([`super::settled`]).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use berth_proto::{
    Error, Reason, SessionId, TaskId,
    convert::{self, bounds},
    domain::{EndReason, SessionState},
    error::reason_of,
    relay::{Guard, Hop, Relay, Route, worker_unreachable},
    secret,
    v1::{self, task_service_server::TaskService},
};
use tokio::time::Instant;
use tonic::{Extensions, Request, Response, Status};

use super::{
    Context,
    guard::{caller_of, sight_of},
    recovered,
    settled::{Settled, TaskEvents},
};
use crate::{
    audit::{about, about_program},
    driver::View,
    fleet::{Session, no_session, not_ready, session_ended, session_parked},
    store::StoreError,
    tenant::Sight,
};

/// How long a call waits for a data channel: a worker that attaches anew needs about that.
const CHANNEL_WITHIN: Duration = Duration::from_secs(2);
/// How long the end of a parked session's sandbox is waited for.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// The wait for what may never come, a piece at a time.
const FAR: Duration = Duration::from_secs(3600);

/// Calls that start a task or feed one, or go to a server, or to an interpreter: a paused session takes none of them.
const NEEDS_RUNNING: [&str; 8] =
    ["Run", "StartTask", "WriteStdin", "CloseStdin", "Dial", "CreateContext", "RestartContext", "Execute"];

pub struct ToWorker {
    context: Context,
}

impl ToWorker {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

impl Route for ToWorker {
    async fn route(&self, id: SessionId, call: &'static str, extensions: &Extensions) -> Result<Hop, Error> {
        let shared = &self.context.shared;
        let caller = caller_of(extensions)?;
        let session = shared.view.session(&caller.sight(), &id).ok_or_else(|| no_session(&id))?;
        about("session", id);
        about("tenant", &session.spec.tenant);
        let open = self.context.streams.open(&caller.tenant, shared.view.quota(&caller.tenant).streams)?;
        usable(&session, call)?;
        let worker = session.worker.as_ref().ok_or_else(not_ready)?;
        let channel = shared.links.channel(worker, Instant::now() + CHANNEL_WITHIN).await?;
        let (expelled, view) = (shared.links.expelled(worker), shared.view.clone());
        let over = async move {
            tokio::select! {
                error = placed_anew(view, session.clone()) => error,
                () = expelled.cancelled() => worker_unreachable(),
            }
        };
        let guard: Guard = Some(Box::new(open));
        Ok(Hop { channel, guard, over: Some(Box::pin(over)), moved: None })
    }

    fn lost(&self) -> Error {
        worker_unreachable()
    }

    fn answered(&self, call: &'static str, took: Duration) {
        self.context.shared.metrics.hop(call, took);
    }

    fn note(&self, name: &'static str, value: String) {
        about(name, value);
    }
}

/// Comes when the session is not where it was any more. Its old worker may not have heard of that, and what it still
/// says is stale: a client that reads on would be told two ends of one task.
async fn placed_anew(view: Arc<View>, was: Arc<Session>) -> Error {
    let stale = |now: Option<&Session>| {
        let now = now?;
        if now.end == Some(EndReason::WorkerLost) {
            return Some(session_ended(now.end, &now.message));
        }
        let moved = (now.epoch, &now.worker) != (was.epoch, &was.worker);
        moved.then(|| {
            Error::unavailable(
                Reason::WorkerUnreachable,
                "the session has left the worker that this call went to",
            )
            .hint("ask again: the call goes to where the session is now")
        })
    };
    loop {
        if let Some(error) = view.wait(&Sight::All, was.id, Instant::now() + FAR, stale).await {
            return error;
        }
    }
}

/// Whether a session takes this call in its state.
fn usable(session: &Session, call: &str) -> Result<(), Error> {
    match session.state {
        SessionState::Pending | SessionState::Placed => Err(not_ready()),
        SessionState::Parked => Err(session_parked(&session.id)),
        SessionState::Ending | SessionState::Ended => Err(session_ended(session.end, &session.message)),
        SessionState::Paused if NEEDS_RUNNING.contains(&call) => {
            Err(Error::precondition(Reason::SessionPaused, "the session is paused")
                .hint(format!("resume it first: berth resume {}", session.id)))
        }
        SessionState::Ready | SessionState::Paused => Ok(()),
    }
}

pub type Files = Relay<ToWorker>;
pub type Ports = Relay<ToWorker>;

/// `FileService` and `PortService`: all of it goes to the worker.
pub fn relay(context: Context) -> Relay<ToWorker> {
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

    /// The session, if it has ended or is parked: the store has its tasks then. While the sandbox of a parked one still
    /// ends, so do they: that is waited for.
    async fn over(&self, by: &Sight, id: &str) -> Result<Option<Arc<Session>>, Error> {
        let id: SessionId = id.parse()?;
        let view = &self.context.shared.view;
        let leaves = |s: &Session| s.state == SessionState::Parked && s.worker.is_some();
        let gone = |s: Option<&Session>| (!s.is_some_and(leaves)).then_some(());
        let _ = view.wait(by, id, Instant::now() + LEAVES_WITHIN, gone).await;
        let session = view.session(by, &id).ok_or_else(|| no_session(&id))?;
        Ok(matches!(session.state, SessionState::Ended | SessionState::Parked).then_some(session))
    }

    async fn stored(&self, session: &Session, task: &str) -> Result<Response<v1::Task>, Status> {
        let id: TaskId = task.parse()?;
        let found = self.context.shared.store.task(session.id, id).await.map_err(unread)?;
        let missing = || {
            let what = if session.state == SessionState::Parked { "parked" } else { "ended" };
            Error::not_found(Reason::TaskNotFound, format!("no task of this {what} session has the id {id}"))
                .hint(format!("of a session that is {what} the last 1000 finished tasks are kept"))
        };
        Ok(Response::new(told(found.ok_or_else(missing)?, session)))
    }

    /// What the session's worker refuses, with what is to be said of a recovery.
    fn told(&self, by: &Sight, session: &str, status: Status) -> Status {
        match session.parse().ok().and_then(|id| self.context.shared.view.session(by, &id)) {
            Some(session) => recovered::refusal(status, &session),
            None => status,
        }
    }

    /// A task of an earlier placement is not known where the session is now: what became of it is in the store.
    async fn or_stored(
        &self,
        by: &Sight,
        answer: Result<Response<v1::Task>, Status>,
        session: SessionId,
        task: TaskId,
    ) -> Result<Response<v1::Task>, Status> {
        let unknown = |status: &Status| reason_of(status) == Some(Reason::TaskNotFound);
        let Some(status) = answer.as_ref().err().filter(|status| unknown(status)) else { return answer };
        let Some(known) = self.context.shared.view.session(by, &session) else { return answer };
        match self.context.shared.store.task(session, task).await.map_err(unread)? {
            Some(task) => Ok(Response::new(recovered::record(task, &known))),
            None => Err(recovered::refusal(status.clone(), &known)),
        }
    }

    /// Adds the values of the secrets that a task asks for, or why there is none. The agent decides, since it alone knows
    /// whether this start is the first: of a task that runs already the answer is that task, whatever its secrets are now.
    async fn give(&self, by: &Sight, asks: Option<Asks<'_>>) -> Result<(), Error> {
        let Some(Asks { session, uses, values }) = asks else { return Ok(()) };
        if !values.is_empty() {
            return Err(Error::invalid("secrets", "are the coordinator's to add")
                .hint("name them in `task.secrets`; an operator sets their values"));
        }
        // Here and not at the agent: a use takes two bytes on the wire, and many more at each hop.
        secret::at_most(uses.len())?;
        // What else is wrong with the request, the relay and the agent say. Nothing is read for a call that they refuse.
        let known = session.parse().ok().and_then(|id| self.context.shared.view.session(by, &id));
        let Some(session) = known.filter(|session| usable(session, NEEDS_RUNNING[0]).is_ok()) else {
            return Ok(());
        };
        let names: BTreeSet<String> =
            uses.iter().filter_map(|wanted| secret::name("name", wanted.name.clone()).ok()).collect();
        if names.is_empty() {
            return Ok(());
        }
        about("secrets", names.iter().map(String::as_str).collect::<Vec<_>>().join(","));
        *values = self.context.secrets.values(&session.spec.tenant, names).await;
        Ok(())
    }

    async fn stored_list(
        &self,
        session: &Session,
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
        let mut tasks =
            self.context.shared.store.tasks(session.id, before, size + 1).await.map_err(unread)?;
        let more = crate::wire::cut_page(&mut tasks, size);
        let last = tasks.last().filter(|_| more).map(|task| task.id.clone());
        let tasks = tasks.into_iter().map(|task| told(task, session)).collect();
        Ok(Response::new(v1::ListTasksResponse { tasks, next_page_token: last.unwrap_or_default() }))
    }
}

/// A task of a session that is over. What a parked one kept of its output can be read when it is resumed.
fn told(task: v1::Task, session: &Session) -> v1::Task {
    if session.state == SessionState::Parked { task } else { recovered::record(task, session) }
}

fn unread(error: StoreError) -> Error {
    Error::unavailable(Reason::StoreFailed, "the coordinator's store could not be read")
        .hint("look at the disk under the coordinator's state directory")
        .cause(error)
}

/// What the audit record says of a call beside its session, and the secrets that it asks for.
trait Noted {
    fn noted(&self);
    fn asks(&mut self) -> Option<Asks<'_>> {
        None
    }
}

/// Of a call that starts a task.
struct Asks<'a> {
    session: &'a str,
    uses: &'a [v1::SecretUse],
    values: &'a mut Vec<v1::SecretValue>,
}

macro_rules! noted {
    (programs: $($starts:ident)*; tasks: $($of_task:ident)*) => {
        $(impl Noted for v1::$starts {
            fn noted(&self) {
                about_program(self.task.as_ref());
            }
            fn asks(&mut self) -> Option<Asks<'_>> {
                let uses = self.task.as_ref().map_or(&[][..], |task| &task.secrets);
                Some(Asks { session: &self.session_id, uses, values: &mut self.secrets })
            }
        })*
        $(impl Noted for v1::$of_task {
            fn noted(&self) {
                about("task", &self.task_id);
            }
        })*
    };
}
noted! {
    programs: RunRequest StartTaskRequest;
    tasks: WatchTaskRequest CancelTaskRequest WriteStdinRequest CloseStdinRequest ResizePtyRequest SignalTaskRequest
}

/// A read: nothing of it is recorded.
impl Noted for v1::GetUsageRequest {
    fn noted(&self) {}
}

/// The methods by what is done with their answers; written out they differ in their types alone.
macro_rules! passed_on {
    (
        streams { $($stream:ident: $stream_request:ident,)* }
        tasks { $($ask:ident: $ask_request:ident,)* }
        plain { $($method:ident: $request:ident => $response:ty,)* }
    ) => {
        #[tonic::async_trait]
        impl TaskService for Tasks {
            type RunStream = TaskEvents;
            type WatchTaskStream = TaskEvents;

            $(async fn $stream(
                &self,
                mut request: Request<v1::$stream_request>,
            ) -> Result<Response<TaskEvents>, Status> {
                request.get_ref().noted();
                let (by, session) = (sight_of(&request)?, request.get_ref().session_id.clone());
                self.give(&by, request.get_mut().asks()).await?;
                let settled = Settled::new(&self.context, &by, &session);
                let answer = self.relay.$stream(request).await.map_err(|status| self.told(&by, &session, status))?;
                Ok(answer.map(|events| settled.events(events)))
            })*

            $(async fn $ask(&self, request: Request<v1::$ask_request>) -> Result<Response<v1::Task>, Status> {
                let by = sight_of(&request)?;
                let (session, task) = (request.get_ref().session_id.clone(), request.get_ref().task_id.clone());
                if let Some(over) = self.over(&by, &session).await? {
                    return self.stored(&over, &task).await;
                }
                let (id, task) = (session.parse()?, task.parse()?);
                let settled = Settled::new(&self.context, &by, &session);
                let answer = self.relay.$ask(request).await;
                Ok(settled.answer(self.or_stored(&by, answer, id, task).await?).await)
            })*

            async fn cancel_task(&self, request: Request<v1::CancelTaskRequest>) -> Result<Response<v1::Task>, Status> {
                request.get_ref().noted();
                let (by, session) = (sight_of(&request)?, request.get_ref().session_id.clone());
                let settled = Settled::new(&self.context, &by, &session);
                let answer = self.relay.cancel_task(request).await.map_err(|status| self.told(&by, &session, status))?;
                Ok(settled.answer(answer).await)
            }

            async fn list_tasks(
                &self,
                request: Request<v1::ListTasksRequest>,
            ) -> Result<Response<v1::ListTasksResponse>, Status> {
                let (by, session) = (sight_of(&request)?, request.get_ref().session_id.clone());
                if let Some(over) = self.over(&by, &session).await? {
                    return self.stored_list(&over, request.get_ref()).await;
                }
                let settled = Settled::new(&self.context, &by, &session);
                Ok(settled.list(self.relay.list_tasks(request).await?).await)
            }

            $(async fn $method(&self, mut request: Request<v1::$request>) -> Result<Response<$response>, Status> {
                request.get_ref().noted();
                let (by, session) = (sight_of(&request)?, request.get_ref().session_id.clone());
                self.give(&by, request.get_mut().asks()).await?;
                self.relay.$method(request).await.map_err(|status| self.told(&by, &session, status))
            })*
        }
    };
}

passed_on! {
    streams {
        run: RunRequest,
        watch_task: WatchTaskRequest,
    }
    tasks {
        get_task: GetTaskRequest,
        wait_task: WaitTaskRequest,
    }
    plain {
        start_task: StartTaskRequest => v1::Task,
        write_stdin: WriteStdinRequest => v1::WriteStdinResponse,
        close_stdin: CloseStdinRequest => v1::CloseStdinResponse,
        resize_pty: ResizePtyRequest => v1::ResizePtyResponse,
        signal_task: SignalTaskRequest => v1::SignalTaskResponse,
        get_usage: GetUsageRequest => v1::SessionUsage,
    }
}
