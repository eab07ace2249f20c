//! Connections to servers in a session, as a stream that is read and written like a socket.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use berth_proto::{
    spawn::spawn,
    transport::{MESSAGE_LIMIT, PORT_CHUNK},
    v1::{self, dial_response::Part, port_service_client::PortServiceClient},
};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::{Streaming, transport::Channel};

use crate::{Client, Error, Session};

/// Pieces that wait for the connection to the coordinator.
const QUEUE: usize = 2;
/// For what was written before a stream was dropped.
const LINGER: Duration = Duration::from_secs(30);

impl Session {
    /// Connects to a server that listens on this port of the session's own loopback. When nobody does, the error's reason is
    /// `PortClosed`.
    pub async fn connect_port(&self, port: u16) -> Result<PortStream, Error> {
        let (up, requests) = mpsc::channel(QUEUE);
        // There is room: it is the first.
        let _ = up.try_send(v1::DialRequest::header(self.id, port));
        let dial = |channel: Channel, request| async {
            PortServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT).dial(request).await
        };
        let mut down = self.client.open(ReceiverStream::new(requests), dial).await?;
        match down.message().await.map_err(|status| self.client.error(status))? {
            Some(v1::DialResponse { part: Some(Part::Connected(_)) }) => Ok(PortStream {
                client: self.client.clone(),
                up: PollSender::new(up),
                down: Some(down),
                read: Bytes::new(),
                ended: false,
            }),
            _ => Err(Error::strange("a connection began with something else")),
        }
    }
}

/// A connection to a port of a session. `shutdown` ends what is sent, and what comes can be read on: the two directions end
/// each for itself.
///
/// One that is dropped before it was shut down is reset for the server, which so never takes half of a message for all of
/// it. One that was shut down goes on in the background, for a moment, to bring what was written to the server. What breaks on the way is an error of reading, never an end; [`PortStream::cause`] has Berth's own word for it.
pub struct PortStream {
    client: Client,
    up: PollSender<v1::DialRequest>,
    /// `None`: it is over.
    down: Option<Streaming<v1::DialResponse>>,
    /// What has come and is not read yet.
    read: Bytes,
    /// The server sends nothing more.
    ended: bool,
}

impl PortStream {
    /// Why reading failed, out of the error that it failed with.
    pub fn cause(error: &io::Error) -> Option<&Error> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    /// The next message. What was read before must have been taken.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(down) = &mut self.down else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        let broken = |error: Error| Err(io::Error::new(io::ErrorKind::ConnectionReset, error));
        let message = ready!(down.poll_next_unpin(cx));
        let result = match message.map(|message| message.map(|message| message.part)) {
            Some(Ok(Some(Part::Data(bytes)))) if !self.ended => {
                self.read = bytes;
                return Poll::Ready(Ok(()));
            }
            Some(Ok(Some(Part::End(_)))) if !self.ended => {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            Some(Ok(_)) => broken(Error::strange("a connection has a part that is none")),
            Some(Err(status)) => broken(self.client.error(status)),
            None if self.ended => Ok(()),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        };
        self.down = None;
        Poll::Ready(result)
    }

    /// Nobody takes what is written: why, if that is here already.
    fn gone(&mut self, cx: &mut Context<'_>) -> io::Error {
        if self.read.is_empty()
            && !self.ended
            && let Poll::Ready(Err(error)) = self.poll_down(cx)
        {
            return error;
        }
        io::ErrorKind::BrokenPipe.into()
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() && !self.ended {
            ready!(self.poll_down(cx))?;
        }
        let length = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..length]);
        self.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let piece = &data[..data.len().min(PORT_CHUNK)];
        let sent = match ready!(self.up.poll_reserve(cx)) {
            Ok(()) => self.up.send_item(v1::DialRequest::data(Bytes::copy_from_slice(piece))),
            gone => gone,
        };
        Poll::Ready(sent.map(|()| piece.len()).map_err(|_| self.gone(cx)))
    }

    /// What was written is on its way: nothing waits to be flushed.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Where the server has ended its own direction before, this returns when it has all that was written.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.up.is_closed() {
            // Whoever is gone needs no end; why it is, reading says.
            if ready!(self.up.poll_reserve(cx)).is_ok() {
                let _ = self.up.send_item(v1::DialRequest::end());
            }
            self.up.close();
        }
        while self.ended && self.down.is_some() {
            ready!(self.poll_down(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for PortStream {
    /// To drop the answer would end the call, and with it what is still on its way to the server.
    fn drop(&mut self) {
        let Some(mut down) = self.down.take().filter(|_| self.up.is_closed()) else { return };
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        spawn("last bytes to a port", async move {
            let delivered = async {
                // Data that nobody wants any more is no end in order: then it is reset, as a socket would be.
                while let Ok(Some(v1::DialResponse { part: Some(Part::End(_)) })) = down.message().await {}
            };
            let _ = tokio::time::timeout(LINGER, delivered).await;
        });
    }
}

impl std::fmt::Debug for PortStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}
