//! Data connections: plain connections to the coordinator's port on which the coordinator is the HTTP/2
//! client. What clients send travels here, so that bulk output never delays a heartbeat.
//!
//! A connection belongs to a token. When an attach brings a new one, the connections of the old are told
//! to finish (what streams on them has a moment to do so) and new ones are dialled.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use berth_net::{Acceptor, Bounds, Dialer, Limits, Patience, Stream};
use berth_proto::{
    DESCRIPTORS,
    relay::Relay,
    spawn::spawn,
    trace::{Role, TraceLayer},
    transport::{self, DATA_STREAMS, MESSAGE_LIMIT},
    v1::{
        DataPreface, file_service_server::FileServiceServer,
        interpreter_service_server::InterpreterServiceServer, port_service_server::PortServiceServer,
        task_service_server::TaskServiceServer, worker_data_service_server::WorkerDataServiceServer,
    },
    world::TcpListener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
    transport::server::Connected,
};
use tracing::debug;

use super::backoff::Backoff;
use crate::{checkpoint::CheckpointApi, sessions::route::SessionRoute};

/// Streams of a connection that is replaced have this long to finish.
const LINGER: Duration = Duration::from_secs(10);
/// A coordinator that asks for more is not taken at its word.
const CONNECTIONS_MAX: u32 = 16;

/// The data plane as this worker serves it, on whatever it is reached.
pub fn services(route: &SessionRoute, checkpoints: CheckpointApi, health: Routes) -> Routes {
    health
        // For the coordinator alone: a listener of this worker's own does not have it.
        .add_service(WorkerDataServiceServer::new(checkpoints))
        .add_service(
            TaskServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            FileServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            PortServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            InterpreterServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT),
        )
}

/// The same behind a bearer token; health is open.
pub fn guarded_services(route: &SessionRoute, health: Routes, token: &str) -> Routes {
    let expected = format!("Bearer {token}");
    let check = move |request: Request<()>| {
        let presented = request.metadata().get("authorization").map(|value| value.as_bytes());
        match presented {
            Some(presented) if same(presented, expected.as_bytes()) => Ok(request),
            Some(_) => Err(Status::from(berth_proto::Error::new(
                berth_proto::Code::Unauthenticated,
                berth_proto::Reason::TokenInvalid,
                "the token is not this worker's",
            ))),
            None => Err(Status::from(
                berth_proto::Error::new(
                    berth_proto::Code::Unauthenticated,
                    berth_proto::Reason::TokenMissing,
                    "the call carries no token",
                )
                .hint("it is in the file `data_token` of the worker's state directory"),
            )),
        }
    };
    let tasks = TaskServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT);
    let files = FileServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT);
    let ports = PortServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT);
    let interpreters =
        InterpreterServiceServer::new(Relay::new(route.clone())).max_decoding_message_size(MESSAGE_LIMIT);
    health
        .add_service(InterceptedService::new(tasks, check.clone()))
        .add_service(InterceptedService::new(files, check.clone()))
        .add_service(InterceptedService::new(ports, check.clone()))
        .add_service(InterceptedService::new(interpreters, check))
}

/// Compares without telling by its time where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// The data connections of a worker.
pub struct DataPool {
    coordinator: Dialer,
    services: Routes,
    /// Dial only while this is true.
    attached: watch::Receiver<bool>,
    open: Arc<AtomicUsize>,
    current: Option<Current>,
}

struct Current {
    preface: DataPreface,
    count: u32,
    /// Ends all connections of this token when it is dropped.
    _stop: DropGuard,
}

impl DataPool {
    pub fn new(
        coordinator: Dialer,
        services: Routes,
        attached: watch::Receiver<bool>,
        open: Arc<AtomicUsize>,
    ) -> Self {
        Self { coordinator, services, attached, open, current: None }
    }

    /// Has `count` connections with this preface. Those of another are ended.
    pub fn renew(&mut self, preface: DataPreface, count: u32) {
        let count = count.clamp(1, CONNECTIONS_MAX);
        if self.current.as_ref().is_some_and(|known| known.preface == preface && known.count == count) {
            return;
        }
        let stop = CancellationToken::new();
        for _ in 0..count {
            let keep = Keep {
                coordinator: self.coordinator.clone(),
                preface: preface.clone(),
                services: self.services.clone(),
                attached: self.attached.clone(),
                open: self.open.clone(),
                stop: stop.clone(),
            };
            spawn("data-connection", keep.run());
        }
        self.current = Some(Current { preface, count, _stop: stop.drop_guard() });
    }

    /// Ends all of them.
    pub fn end(&mut self) {
        self.current = None;
    }
}

/// Keeps one connection up.
struct Keep {
    coordinator: Dialer,
    preface: DataPreface,
    services: Routes,
    attached: watch::Receiver<bool>,
    open: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Keep {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                attached = self.attached.wait_for(|attached| *attached) => if attached.is_err() { return },
            }
            let dialled = tokio::select! {
                () = stop.cancelled() => return,
                dialled = self.coordinator.data(&self.preface) => dialled,
            };
            match dialled {
                Ok(stream) => {
                    let begun = tokio::time::Instant::now();
                    self.open.fetch_add(1, Ordering::Relaxed);
                    serve(stream, self.services.clone(), stop.clone()).await;
                    self.open.fetch_sub(1, Ordering::Relaxed);
                    backoff.lived(begun.elapsed());
                }
                Err(error) => debug!(%error, "a data connection could not be made"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = backoff.wait() => {}
            }
        }
    }
}

/// Serves one connection until it ends. After `stop` it takes no new calls, and ends when the open ones have
/// or the time to linger is over.
async fn serve(stream: Stream, services: Routes, stop: CancellationToken) {
    // The server owns the connection: this ends it under its hands.
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    let closed = CancellationToken::new();
    let tracked =
        Tracked { io: stream, cut: Box::pin(cut.cancelled_owned()), _closed: closed.clone().drop_guard() };
    let incoming = futures::stream::unfold((Some(tracked), closed), |(io, closed)| async move {
        match io {
            Some(io) => Some((Ok::<_, io::Error>(io), (None, closed))),
            // The server serves for as long as there may be more to come.
            None => {
                closed.cancelled().await;
                None
            }
        }
    });
    let serving = transport::server(DATA_STREAMS)
        .layer(TraceLayer(Role::Inner))
        .add_routes(services)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let lingered = async {
        stop.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            debug!(%error, "a data connection ended");
        },
        () = lingered => {}
    }
}

/// A connection that reports its end by being dropped, and that can be cut.
struct Tracked {
    io: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _closed: DropGuard,
}

impl Connected for Tracked {
    type ConnectInfo = <Stream as Connected>::ConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A server always reads, so that looking here is enough.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves the optional listener until `stop`.
pub fn listen(
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    services: Routes,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    // Nobody has data connections to a worker.
    let clients = berth_net::listen(listener, acceptor, Limits::default(), stop.clone(), |_, _| async {});
    let incoming = ReceiverStream::new(clients);
    async move {
        let serving = transport::server(transport::CLIENT_STREAMS)
            .layer(TraceLayer(Role::Entry))
            .layer(Patience::new(Bounds::default(), DESCRIPTORS))
            .add_routes(services)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let lingered = async {
            stop.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            result = serving => if let Err(error) = result {
                tracing::error!(%error, "the data-plane listener ended");
            },
            () = lingered => {}
        }
    }
}
