//! For tests: a server that holds one task's output and breaks its streams as told, and a
//! proxy that cuts connections.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use berth_proto::{
    Code, Error as WireError, Reason, TaskId, transport,
    v1::{self, task_event::Event, task_service_server::TaskService, task_service_server::TaskServiceServer},
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// A task that wrote `stdout` and `stderr`, and where its streams break.
#[derive(Default)]
pub(crate) struct Stub {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The oldest byte of stdout still kept.
    pub first_kept: u64,
    /// Bytes that the first, second, ... stream sends before it breaks; then they don't.
    pub breaks: Vec<usize>,
    /// Bytes that a resumed stream sends again although it was asked not to.
    pub overlap: u64,
    /// The answers to the first so many starts are lost.
    pub lost_answers: usize,
    /// The session's epoch at the first, second, ... start, and from then on. Empty: always 1.
    pub epochs: Vec<u64>,
    /// From the second stream on, the session is elsewhere and does not know the task, which this record tells of.
    pub record: Option<v1::TaskEnd>,
    /// The stream stands still at its end rather than telling it, until this is cancelled.
    pub hold: Option<CancellationToken>,
    /// What `WriteStdin` takes at a time.
    pub stdin_step: usize,
    pub seen: Seen,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub streams: AtomicUsize,
    pub request_ids: Mutex<Vec<String>>,
    pub if_epochs: Mutex<Vec<Option<u64>>>,
    pub stdin: Mutex<Vec<u8>>,
    pub stdin_calls: AtomicUsize,
    pub token: Mutex<Option<String>>,
}

const PIECE: usize = 7;
pub(crate) const TASK: TaskId = TaskId::from_u128(7);

impl Stub {
    /// A start comes in: whether it is done, and its answer arrives.
    fn start(&self, request_id: String, if_epoch: Option<u64>) -> Result<(), Status> {
        let mut ids = self.seen.request_ids.lock().unwrap();
        let epoch = self.epochs.get(ids.len()).or(self.epochs.last()).copied().unwrap_or(1);
        ids.push(request_id);
        self.seen.if_epochs.lock().unwrap().push(if_epoch);
        if let Some(first) = if_epoch {
            berth_proto::convert::same_placement(berth_proto::Epoch(epoch), berth_proto::Epoch(first))?;
        }
        if ids.len() <= self.lost_answers {
            return Err(WireError::unavailable(Reason::WorkerUnreachable, "cut").into());
        }
        Ok(())
    }

    fn task(&self, session: &str, done: bool) -> v1::Task {
        let end = v1::TaskEnd {
            outcome: Some(berth_proto::domain::Outcome::Exited(3).into()),
            ..Default::default()
        };
        v1::Task {
            id: TASK.to_string(),
            session_id: session.to_owned(),
            state: if done { v1::TaskState::Done } else { v1::TaskState::Running }.into(),
            end: done.then_some(end),
            stdout: Some(v1::StreamInfo { length: self.stdout.len() as u64, first_kept: self.first_kept }),
            stderr: Some(v1::StreamInfo { length: self.stderr.len() as u64, first_kept: 0 }),
            ..Default::default()
        }
    }

    /// All messages of a stream from these offsets, with the break in its place.
    fn messages(&self, session: &str, from: [u64; 2]) -> Vec<Result<v1::TaskEvent, Status>> {
        let number = self.seen.streams.fetch_add(1, Ordering::SeqCst);
        let mut left = self.breaks.get(number).copied();
        let event = |event| Ok(v1::TaskEvent { event: Some(event) });
        let mut messages = vec![event(Event::Started(self.task(session, false)))];
        // The two streams take turns, so that a break falls into both.
        let pieces = |data: &[u8], from: u64| -> Vec<(u64, Bytes)> {
            let from = from.min(data.len() as u64) as usize;
            data[from..]
                .chunks(PIECE)
                .enumerate()
                .map(|(i, piece)| ((from + i * PIECE) as u64, Bytes::copy_from_slice(piece)))
                .collect()
        };
        let mut out = pieces(&self.stdout, from[0]).into_iter();
        let mut err = pieces(&self.stderr, from[1]).into_iter();
        loop {
            let (a, b) = (out.next(), err.next());
            if a.is_none() && b.is_none() {
                break;
            }
            let a = a.map(|(offset, data)| Event::Stdout(v1::OutputChunk { offset, data }));
            let b = b.map(|(offset, data)| Event::Stderr(v1::OutputChunk { offset, data }));
            for piece in [a, b].into_iter().flatten() {
                if let Some(left) = &mut left {
                    if *left < PIECE {
                        messages.push(Err(WireError::unavailable(Reason::WorkerUnreachable, "cut").into()));
                        return messages;
                    }
                    *left -= PIECE;
                }
                messages.push(event(piece));
            }
        }
        messages.push(event(Event::Keepalive(v1::task_event::Keepalive {})));
        messages.push(event(Event::Ended(self.task(session, true))));
        messages
    }

    fn stream(&self, session: &str, from: [u64; 2]) -> EventStream {
        let messages = self.messages(session, from);
        let hold = self.hold.clone();
        let stream = futures::stream::iter(messages).then(move |message| {
            let hold = hold.clone();
            async move {
                let last = matches!(&message, Ok(v1::TaskEvent { event: Some(Event::Ended(_)) }));
                if let (true, Some(hold)) = (last, hold) {
                    hold.cancelled().await;
                }
                message
            }
        });
        Box::pin(stream)
    }

    /// Serves it on a free port.
    pub(crate) async fn serve(self) -> (Arc<Self>, SocketAddr) {
        let stub = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TaskServiceServer::new(Served(stub.clone()));
        berth_proto::spawn::spawn_fallible("stub", async move {
            let incoming = transport::accept(listener).map(Ok::<_, std::io::Error>);
            transport::server(64).add_service(service).serve_with_incoming(incoming).await
        });
        (stub, address)
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::TaskEvent, Status>> + Send>>;

struct Served(Arc<Stub>);

#[tonic::async_trait]
impl TaskService for Served {
    type RunStream = EventStream;
    type WatchTaskStream = EventStream;

    async fn run(&self, request: Request<v1::RunRequest>) -> Result<Response<EventStream>, Status> {
        let token = request.metadata().get("authorization").map(|t| t.to_str().unwrap().to_owned());
        *self.0.seen.token.lock().unwrap() = token;
        let request = request.into_inner();
        self.0.start(request.request_id, request.if_epoch)?;
        Ok(Response::new(self.0.stream(&request.session_id, [0, 0])))
    }

    async fn watch_task(
        &self,
        request: Request<v1::WatchTaskRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let request = request.into_inner();
        if self.0.record.is_some() {
            return Err(WireError::not_found(Reason::TaskNotFound, "not where the session is now").into());
        }
        let mut from = [request.stdout_offset, request.stderr_offset];
        if from[0] < self.0.first_kept {
            if !request.skip_lost {
                return Err(WireError::new(Code::OutOfRange, Reason::OutputLost, "lost")
                    .with("first_kept", self.0.first_kept)
                    .into());
            }
            from[0] = self.0.first_kept;
        }
        let from = from.map(|offset| offset.saturating_sub(self.0.overlap));
        Ok(Response::new(self.0.stream(&request.session_id, from)))
    }

    async fn start_task(&self, request: Request<v1::StartTaskRequest>) -> Result<Response<v1::Task>, Status> {
        let request = request.into_inner();
        self.0.start(request.request_id, request.if_epoch)?;
        Ok(Response::new(self.0.task(&request.session_id, false)))
    }

    async fn write_stdin(
        &self,
        request: Request<v1::WriteStdinRequest>,
    ) -> Result<Response<v1::WriteStdinResponse>, Status> {
        let request = request.into_inner();
        let call = self.0.seen.stdin_calls.fetch_add(1, Ordering::SeqCst);
        let mut stdin = self.0.seen.stdin.lock().unwrap();
        let known = request.offset.map_or(0, |offset| stdin.len() - offset as usize);
        let fresh = &request.data[known.min(request.data.len())..];
        stdin.extend_from_slice(&fresh[..fresh.len().min(self.0.stdin_step)]);
        // Every second answer is lost, after the bytes were taken.
        if call.is_multiple_of(2) {
            return Err(WireError::unavailable(Reason::AgentUnreachable, "the answer is lost").into());
        }
        Ok(Response::new(v1::WriteStdinResponse { offset: stdin.len() as u64 }))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::Task>, Status> {
        if let Some(end) = &self.0.record {
            let task = self.0.task(&request.get_ref().session_id, true);
            return Ok(Response::new(v1::Task { end: Some(end.clone()), ..task }));
        }
        Err(WireError::not_found(Reason::TaskNotFound, "no such task").hint("see `berth tasks`").into())
    }

    async fn list_tasks(
        &self,
        _: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn wait_task(&self, _: Request<v1::WaitTaskRequest>) -> Result<Response<v1::Task>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn close_stdin(
        &self,
        _: Request<v1::CloseStdinRequest>,
    ) -> Result<Response<v1::CloseStdinResponse>, Status> {
        Ok(Response::new(v1::CloseStdinResponse {}))
    }

    async fn resize_pty(
        &self,
        _: Request<v1::ResizePtyRequest>,
    ) -> Result<Response<v1::ResizePtyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn signal_task(
        &self,
        _: Request<v1::SignalTaskRequest>,
    ) -> Result<Response<v1::SignalTaskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_task(&self, _: Request<v1::CancelTaskRequest>) -> Result<Response<v1::Task>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_usage(&self, _: Request<v1::GetUsageRequest>) -> Result<Response<v1::SessionUsage>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Passes connections on until it is told to cut them.
pub(crate) struct Proxy {
    pub address: SocketAddr,
    cut: Arc<Notify>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new(Notify::new());
        let cuts = cut.clone();
        berth_proto::spawn::spawn("proxy", async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cut = cuts.clone();
                berth_proto::spawn::spawn("proxied", async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    /// Cuts all connections that are open now.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }
}
