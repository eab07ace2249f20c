//! A connection, with TLS or without, and who is at its other end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use berth_proto::{Code, Error, Reason, WorkerId, world::TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::listen::Place;

/// Who is at the other end of a connection, as far as the connection itself tells. Requests carry it as an extension.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    /// Over TLS, so that a worker has shown its certificate, or is none.
    pub secure: bool,
    /// Whose certificate it showed.
    pub worker: Option<WorkerId>,
    connection: Connection,
}

/// One connection, as its calls know it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    number: u64,
    cut: CancellationToken,
}

impl Default for Connection {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), cut: CancellationToken::new() }
    }
}

impl Connection {
    /// No two of a process have the same.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Ends it, with all calls on it.
    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }
}

impl Peer {
    pub(crate) fn new(address: Option<SocketAddr>, secure: bool, worker: Option<WorkerId>) -> Self {
        Self { address, secure, worker, connection: Connection::default() }
    }

    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Of a request that came through a server of ours.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_default()
    }

    /// Whether it is on this machine.
    pub fn is_local(&self) -> bool {
        self.address.is_some_and(|address| address.ip().to_canonical().is_loopback())
    }

    /// Over TLS, only the holder of this worker's certificate speaks for it. Without TLS there is nothing to compare.
    pub fn speaks_for(&self, id: &WorkerId) -> Result<(), Error> {
        match &self.worker {
            Some(shown) if shown != id => Err(refused(format!(
                "the connection shows the certificate of worker {shown}, and speaks for worker {id}"
            ))
            .hint("each worker has a certificate of its own: `berth tls worker ID`")),
            _ => self.is_worker(),
        }
    }

    /// Over TLS, what is for workers is for those with a certificate.
    pub fn is_worker(&self) -> Result<(), Error> {
        if self.secure && self.worker.is_none() {
            return Err(refused("the connection shows no worker's certificate".to_owned()));
        }
        Ok(())
    }
}

fn refused(message: String) -> Error {
    Error::new(Code::PermissionDenied, Reason::WorkerCertificate, message)
}

/// A connection that is up.
pub struct Stream {
    io: Io,
    peer: Peer,
    /// Somebody here has had enough of it.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes that were read to tell what it is, for whoever reads next.
    head: Vec<u8>,
    /// What it takes up at the port that it came in at.
    place: Option<Place>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Without TLS.
    pub fn plain(io: TcpStream, address: Option<SocketAddr>) -> Self {
        Self::new(Io::Plain(io), Peer::new(address, false, None))
    }

    pub(crate) fn tls(io: TlsStream<TcpStream>, peer: Peer) -> Self {
        Self::new(Io::Tls(Box::new(io)), peer)
    }

    fn new(io: Io, peer: Peer) -> Self {
        let cut = Box::pin(peer.connection.cut.clone().cancelled_owned());
        Self { io, peer, cut, head: Vec::new(), place: None }
    }

    /// Fails when it was cut. `cx` is woken when it is.
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Gives bytes back that were read from it.
    pub(crate) fn unread(self, head: Vec<u8>) -> Self {
        Self { head, ..self }
    }

    pub(crate) fn at(self, place: Option<Place>) -> Self {
        Self { place, ..self }
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).field("place", &self.place.is_some()).finish()
    }
}

impl Connected for Stream {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// The same call on either kind.
macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Plain(io) => {
                let $io = Pin::new(io);
                $call
            }
            Io::Tls(io) => {
                let $io = Pin::new(&mut **io);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        if !self.head.is_empty() {
            let head = &mut self.get_mut().head;
            let taken = head.len().min(buf.remaining());
            buf.put_slice(&head[..taken]);
            head.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    // A connection that takes no answers is not read either: so writing fails, too.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when `speaks_for` leaves one of its two questions out.
    #[test]
    fn a_worker_speaks_for_itself_alone() {
        let id = |text: &str| text.parse::<WorkerId>().unwrap();
        let peer = |secure, worker: Option<&str>| Peer::new(None, secure, worker.map(id));
        assert!(peer(true, Some("a")).speaks_for(&id("a")).is_ok());
        for wrong in [peer(true, Some("b")), peer(true, None)] {
            let error = wrong.speaks_for(&id("a")).unwrap_err();
            assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Reason::WorkerCertificate));
        }
        assert!(peer(true, None).is_worker().is_err() && peer(true, Some("b")).is_worker().is_ok());
        assert!(peer(false, None).speaks_for(&id("a")).is_ok(), "without TLS the tokens are all there is");
    }
}
