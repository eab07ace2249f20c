//! A connection, with TLS or without, and who is at its other end.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use berth_proto::{Code, Error, Reason, WorkerId, world::TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;
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
}

impl Peer {
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
        Self { io: Io::Plain(io), peer: Peer { address, ..Peer::default() }, head: Vec::new(), place: None }
    }

    pub(crate) fn tls(io: TlsStream<TcpStream>, peer: Peer) -> Self {
        Self { io: Io::Tls(Box::new(io)), peer, head: Vec::new(), place: None }
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
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        let peer = |secure, worker: Option<&str>| Peer { address: None, secure, worker: worker.map(id) };
        assert!(peer(true, Some("a")).speaks_for(&id("a")).is_ok());
        for wrong in [peer(true, Some("b")), peer(true, None)] {
            let error = wrong.speaks_for(&id("a")).unwrap_err();
            assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Reason::WorkerCertificate));
        }
        assert!(peer(true, None).is_worker().is_err() && peer(true, Some("b")).is_worker().is_ok());
        assert!(peer(false, None).speaks_for(&id("a")).is_ok(), "without TLS the tokens are all there is");
    }
}
