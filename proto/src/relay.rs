//! The data plane, one hop on. Coordinator and worker serve `TaskService`, `FileService`,
//! `PortService` ([`dial`]) and `InterpreterService` with this one type; each brings its own [`Route`], which is what that
//! hop adds (the coordinator: where; the worker: how much).
//!
//! A broken upload must never look finished: when the stream from the client fails,
//! the call to the next hop is dropped, which resets it, rather than closed.

mod dial;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

pub use dial::{DialStream, first_message};

use futures::{Stream, StreamExt};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap, transport::Channel};

use crate::{
    error::{Error, Reason, reason_of},
    ids::SessionId,
    trace,
    transport::MESSAGE_LIMIT,
    v1::{
        self, file_service_client::FileServiceClient, file_service_server::FileService,
        interpreter_service_client::InterpreterServiceClient, interpreter_service_server::InterpreterService,
        task_service_client::TaskServiceClient, task_service_server::TaskService,
    },
};

/// Where a call goes next.
pub struct Hop {
    /// To the next server.
    pub channel: Channel,
    /// Kept until the call, stream included, is over: a permit, a count, an activity mark.
    pub guard: Guard,
    /// Ends the call, stream included: what it says then is stale.
    pub over: Over,
    /// Told of each message that passes on a connection to a port, whichever way.
    pub moved: Moved,
}

/// Hears that something moves.
pub type Moved = Option<Arc<dyn Fn() + Send + Sync>>;

/// Comes when a hop no longer leads where it should, with what is to be said of that. `None`: never.
pub type Over = Option<Pin<Box<dyn Future<Output = Error> + Send>>>;

/// Whatever a hop wants to hold for the length of a call.
pub type Guard = Option<Box<dyn std::any::Any + Send + Sync>>;

/// What one hop adds to a data-plane call.
pub trait Route: Send + Sync + 'static {
    /// Decides whether this call may go on, and where to. `call` names the method, e.g. `Run`; in `extensions` is what
    /// this hop's own layers know of the call, e.g. whose it is.
    fn route(
        &self,
        session: SessionId,
        call: &'static str,
        extensions: &Extensions,
    ) -> impl Future<Output = Result<Hop, Error>> + Send;

    /// What to answer when the session can't be reached although it should be there.
    fn lost(&self) -> Error;

    /// For this hop's records: the next one's answer to a call has begun, after so long.
    fn answered(&self, _call: &'static str, _took: Duration) {}

    /// For this hop's records: what is known of a call beside its session. Comes before [`Route::route`].
    fn note(&self, _name: &'static str, _value: String) {}
}

/// Serves the data plane by passing it on.
pub struct Relay<R> {
    route: R,
}

impl<R: Route> Relay<R> {
    pub fn new(route: R) -> Self {
        Self { route }
    }

    async fn hop(&self, session: &str, call: &'static str, extensions: &Extensions) -> Result<Hop, Status> {
        let session: SessionId = session.parse()?;
        trace::note("berth.session.id", session);
        Ok(self.route.route(session, call, extensions).await?)
    }

    /// What the next hop answers, and how long it took to begin.
    async fn timed<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let begun = Instant::now();
        let answer = answer.await;
        self.route.answered(call, begun.elapsed());
        answer
    }

    /// A status of the next hop goes through as it is; a broken connection gets our words.
    fn downstream(&self, status: Status) -> Status {
        let transport = std::error::Error::source(&status).is_some() && reason_of(&status).is_none();
        if transport { self.route.lost().cause(status.message().to_owned()).into() } else { status }
    }
}

/// The call, unless it is over before.
async fn unless_over<T>(over: &mut Over, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let Some(over) = over else { return call.await };
    tokio::select! {
        // First: an answer that comes with it is stale.
        biased;
        error = over => Err(error.into()),
        answer = call => answer,
    }
}

/// Metadata that travels on: the deadline, tracing, and our own keys. Credentials stay here.
fn passed_on<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for key in ["grpc-timeout", trace::HEADER, "tracestate"] {
        if let Some(value) = metadata.get(key) {
            request.metadata_mut().insert(key, value.clone());
        }
    }
    request
}

/// A stream of the next hop, holding the hop's guard until it is dropped.
pub struct RelayStream<T> {
    inner: Streaming<T>,
    lost: Option<Error>,
    over: Over,
    _guard: Guard,
}

impl<T> Stream for RelayStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(over) = &mut self.over
            && let Poll::Ready(error) = over.as_mut().poll(cx)
        {
            self.over = None;
            return Poll::Ready(Some(Err(error.into())));
        }
        match self.inner.poll_next_unpin(cx) {
            Poll::Ready(Some(Err(status))) if reason_of(&status).is_none() => {
                let status = match self.lost.take() {
                    Some(lost) => lost.cause(status.message().to_owned()).into(),
                    None => status,
                };
                Poll::Ready(Some(Err(status)))
            }
            other => other,
        }
    }
}

/// What `async_trait` would make of these methods; it does not see into our macros.
type BoxedCall<'a, T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'a>>;

macro_rules! unary {
    ($client:ident, $method:ident, $call:literal, $request:ty, $response:ty) => {
        fn $method<'a, 'b>(&'a self, request: Request<$request>) -> BoxedCall<'b, $response>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async move {
                let (metadata, extensions, message) = request.into_parts();
                let mut hop = self.hop(&message.session_id, $call, &extensions).await?;
                let mut client = $client::new(hop.channel).max_decoding_message_size(MESSAGE_LIMIT);
                let call = async {
                    let answer = self.timed($call, client.$method(passed_on(&metadata, message))).await;
                    answer.map_err(|status| self.downstream(status))
                };
                unless_over(&mut hop.over, call).await
            })
        }
    };
}

macro_rules! streaming {
    ($client:ident, $method:ident, $call:literal, $request:ty, $stream:ident) => {
        fn $method<'a, 'b>(&'a self, request: Request<$request>) -> BoxedCall<'b, Self::$stream>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async move {
                let (metadata, extensions, message) = request.into_parts();
                let hop = self.hop(&message.session_id, $call, &extensions).await?;
                let mut client = $client::new(hop.channel).max_decoding_message_size(MESSAGE_LIMIT);
                let answer = self.timed($call, client.$method(passed_on(&metadata, message))).await;
                let response = answer.map_err(|status| self.downstream(status))?;
                Ok(Response::new(RelayStream {
                    inner: response.into_inner(),
                    lost: Some(self.route.lost()),
                    over: hop.over,
                    _guard: hop.guard,
                }))
            })
        }
    };
}

macro_rules! upload {
    ($method:ident, $call:literal, $request:ty, $part:path, $response:ty) => {
        fn $method<'a, 'b>(&'a self, request: Request<Streaming<$request>>) -> BoxedCall<'b, $response>
        where
            'a: 'b,
            Self: 'b,
        {
            use $part as Part;
            Box::pin(async move {
                let (metadata, extensions, mut incoming) = request.into_parts();
                let first = incoming.message().await?;
                let first = first.ok_or_else(|| Error::invalid("header", "the stream was empty"))?;
                let Some(Part::Header(header)) = &first.part else {
                    return Err(Error::invalid("header", "must come first").into());
                };
                let mut hop = self.hop(&header.session_id, $call, &extensions).await?;
                let (failed, broken) = oneshot::channel();
                let body = Upload { first: Some(first), incoming, failed: Some(failed) };
                let mut client = FileServiceClient::new(hop.channel).max_decoding_message_size(MESSAGE_LIMIT);
                let call = async {
                    let answer = self.timed($call, client.$method(passed_on(&metadata, body)));
                    tokio::select! {
                        biased;
                        // The sender is also dropped, unused, when the upload went through.
                        Ok(status) = broken => Err(status),
                        answer = answer => answer.map_err(|status| self.downstream(status)),
                    }
                };
                unless_over(&mut hop.over, call).await
            })
        }
    };
}

#[tonic::async_trait]
impl<R: Route> TaskService for Relay<R> {
    type RunStream = RelayStream<v1::TaskEvent>;
    type WatchTaskStream = RelayStream<v1::TaskEvent>;

    streaming!(TaskServiceClient, run, "Run", v1::RunRequest, RunStream);
    streaming!(TaskServiceClient, watch_task, "WatchTask", v1::WatchTaskRequest, WatchTaskStream);
    unary!(TaskServiceClient, start_task, "StartTask", v1::StartTaskRequest, v1::Task);
    unary!(TaskServiceClient, get_task, "GetTask", v1::GetTaskRequest, v1::Task);
    unary!(TaskServiceClient, list_tasks, "ListTasks", v1::ListTasksRequest, v1::ListTasksResponse);
    unary!(TaskServiceClient, wait_task, "WaitTask", v1::WaitTaskRequest, v1::Task);
    unary!(TaskServiceClient, write_stdin, "WriteStdin", v1::WriteStdinRequest, v1::WriteStdinResponse);
    unary!(TaskServiceClient, close_stdin, "CloseStdin", v1::CloseStdinRequest, v1::CloseStdinResponse);
    unary!(TaskServiceClient, resize_pty, "ResizePty", v1::ResizePtyRequest, v1::ResizePtyResponse);
    unary!(TaskServiceClient, signal_task, "SignalTask", v1::SignalTaskRequest, v1::SignalTaskResponse);
    unary!(TaskServiceClient, cancel_task, "CancelTask", v1::CancelTaskRequest, v1::Task);
    unary!(TaskServiceClient, get_usage, "GetUsage", v1::GetUsageRequest, v1::SessionUsage);
}

#[tonic::async_trait]
impl<R: Route> InterpreterService for Relay<R> {
    type ExecuteStream = RelayStream<v1::ExecuteEvent>;
    type WatchExecutionStream = RelayStream<v1::ExecuteEvent>;

    streaming!(InterpreterServiceClient, execute, "Execute", v1::ExecuteRequest, ExecuteStream);
    streaming!(
        InterpreterServiceClient,
        watch_execution,
        "WatchExecution",
        v1::WatchExecutionRequest,
        WatchExecutionStream
    );
    unary!(
        InterpreterServiceClient,
        create_context,
        "CreateContext",
        v1::CreateContextRequest,
        v1::InterpreterContext
    );
    unary!(
        InterpreterServiceClient,
        list_contexts,
        "ListContexts",
        v1::ListContextsRequest,
        v1::ListContextsResponse
    );
    unary!(
        InterpreterServiceClient,
        interrupt_context,
        "InterruptContext",
        v1::InterruptContextRequest,
        v1::InterruptContextResponse
    );
    unary!(
        InterpreterServiceClient,
        restart_context,
        "RestartContext",
        v1::RestartContextRequest,
        v1::InterpreterContext
    );
    unary!(
        InterpreterServiceClient,
        delete_context,
        "DeleteContext",
        v1::DeleteContextRequest,
        v1::DeleteContextResponse
    );
}

#[tonic::async_trait]
impl<R: Route> FileService for Relay<R> {
    type ReadStream = RelayStream<v1::ReadResponse>;
    type WatchStream = RelayStream<v1::WatchEvent>;
    type SearchStream = RelayStream<v1::SearchEvent>;
    type PackStream = RelayStream<v1::PackResponse>;

    streaming!(FileServiceClient, read, "Read", v1::ReadRequest, ReadStream);
    unary!(FileServiceClient, stat, "Stat", v1::StatRequest, v1::FileInfo);
    unary!(FileServiceClient, list, "List", v1::ListRequest, v1::ListResponse);
    unary!(FileServiceClient, make_dir, "MakeDir", v1::MakeDirRequest, v1::FileInfo);
    unary!(FileServiceClient, r#move, "Move", v1::MoveRequest, v1::FileInfo);
    unary!(FileServiceClient, remove, "Remove", v1::RemoveRequest, v1::RemoveResponse);
    streaming!(FileServiceClient, watch, "Watch", v1::WatchRequest, WatchStream);
    streaming!(FileServiceClient, search, "Search", v1::SearchRequest, SearchStream);
    streaming!(FileServiceClient, pack, "Pack", v1::PackRequest, PackStream);
    upload!(write, "Write", v1::WriteRequest, v1::write_request::Part, v1::FileInfo);
    upload!(unpack, "Unpack", v1::UnpackRequest, v1::unpack_request::Part, v1::UnpackResponse);
}

/// The client's upload on its way to the next hop. After a failure it reports it and
/// stays pending: to end would tell the next hop that the file is complete.
struct Upload<M> {
    first: Option<M>,
    incoming: Streaming<M>,
    failed: Option<oneshot::Sender<Status>>,
}

impl<M: Unpin> Stream for Upload<M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.failed.is_none() {
            return Poll::Pending;
        }
        match futures::ready!(self.incoming.poll_next_unpin(cx)) {
            Some(Ok(message)) => Poll::Ready(Some(message)),
            None => Poll::Ready(None),
            Some(Err(status)) => {
                if let Some(failed) = self.failed.take() {
                    let _ = failed.send(status);
                }
                Poll::Pending
            }
        }
    }
}

/// [`Route::lost`] for a hop whose next hop is a worker.
pub fn worker_unreachable() -> Error {
    Error::unavailable(Reason::WorkerUnreachable, "the session's worker can't be reached right now")
        .hint("the session may live on: try again in a few seconds, and see `berth workers`")
}

/// [`Route::lost`] for a hop whose next hop is an agent.
pub fn agent_unreachable() -> Error {
    Error::unavailable(Reason::AgentUnreachable, "the session's agent does not answer")
        .hint("see the session's state with `berth ps`")
}
