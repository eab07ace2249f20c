//! Settings that both ends of a connection must agree on, in one place: windows,
//! keepalive, message sizes, TCP_NODELAY, and the preface by which a worker's data
//! connection is told from a client's on the one port. (Who dials and who is let in: `net`.)
//!
//! Numbers come from measurements in ARCHITECTURE.md: without NODELAY on accepted
//! sockets every call took 44 ms; without keepalive a healed partition is never noticed.

use std::{io, path::PathBuf, time::Duration};

use futures::Stream;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::UnixStream,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use crate::{
    v1::DataPreface,
    world::{TcpListener, TcpStream},
};

/// Largest message that is decoded. Larger data is sent in chunks.
pub const MESSAGE_LIMIT: usize = 4 << 20;
/// Largest piece of a file or an output stream in one message.
pub const CHUNK: usize = 256 << 10;
/// Connections to its ports that one session may have open.
pub const PORT_CONNECTIONS: usize = 64;
/// Largest piece of such a connection in one message: what it holds on its way at each hop is a few of these, and a window.
pub const PORT_CHUNK: usize = 64 << 10;
/// Time for the first message of a call that is made by streaming to us.
pub const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 flow-control window of a stream.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// The largest window that HTTP/2 knows.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// A silent connection is probed after this long ...
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// ... and given up when the probe has no answer for this long.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a connection to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that one client connection may have open.
pub const CLIENT_STREAMS: u32 = 128;
/// Bytes of headers that one request may have: a token, and little more.
pub const HEADERS_LIMIT: u32 = 16 << 10;
/// Bytes of one frame. Larger ones would only hold up those of other streams.
const FRAME_LIMIT: u32 = 16 << 10;
/// Streams that a peer opened and reset before they were looked at: one more ends its connection (rapid reset).
const RESETS_PENDING: usize = 20;
/// Streams that we reset for what the peer did wrong: one more ends its connection.
const RESETS_FOR_ERRORS: usize = 128;
/// Streams on one data connection: every watched task of a worker is one.
pub const DATA_STREAMS: u32 = 4096;
/// What a data connection begins with. HTTP/2 begins with `PRI * HT`.
pub const DATA_MAGIC: &[u8; 8] = b"BERTHDC1";
/// HTTP/2 flow-control window of a connection with so many streams: what all of them may hold together. With less, some
/// that nobody reads would hold up all others, answers to other calls included: what is not read is held against the
/// connection too.
fn connection_window(streams: u32) -> u32 {
    streams.saturating_mul(STREAM_WINDOW).min(WINDOW_MAX)
}

/// A tonic server with our settings. `streams` bounds the open streams of a connection.
pub fn server(streams: u32) -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(streams))
        .max_concurrent_streams(streams)
        .http2_max_header_list_size(HEADERS_LIMIT)
        .max_frame_size(FRAME_LIMIT)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING))
        .http2_max_local_error_reset_streams(Some(RESETS_FOR_ERRORS))
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .tcp_nodelay(true)
}

/// A tonic endpoint with our settings. `uri` is `http://host:port`.
pub fn endpoint(uri: String) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW_MAX)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Turns `host:port` into the URI that [`endpoint`] wants; a URI stays as it is.
pub fn uri_of(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

/// Accepted connections with NODELAY set. A failed accept (too many open files,
/// a peer that gave up) is logged and does not end the stream.
pub fn accept(listener: TcpListener) -> impl Stream<Item = TcpStream> + Send + 'static {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY was refused");
                    }
                    return Some((stream, listener));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// A channel to the server that sits behind this one connection. It is never dialled
/// again: when the connection ends, the token is cancelled and the channel's calls fail.
pub async fn channel_over<Io>(io: Io) -> Result<(Channel, CancellationToken), tonic::transport::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closed = CancellationToken::new();
    let watched = Watched { io, _closed: closed.clone().drop_guard() };
    let slot = std::sync::Mutex::new(Some(watched));
    let connector = service_fn(move |_: http::Uri| {
        let io = slot.lock().ok().and_then(|mut slot| slot.take());
        async move { io.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection is gone")) }
    });
    let endpoint = endpoint("http://berth".to_owned()).expect("a constant URI is valid");
    // Not lazy: an unused connection must report its end too.
    Ok((endpoint.connect_with_connector(connector).await?, closed))
}

/// A channel to a server on a Unix socket, dialled again when it breaks.
pub fn channel_uds(path: PathBuf) -> Channel {
    let connector = service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint("http://berth".to_owned())
        .expect("a constant URI is valid")
        .connect_with_connector_lazy(connector)
}

/// Reports the end of the connection by being dropped with it.
struct Watched<Io> {
    io: Io,
    _closed: DropGuard,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What a data connection begins with.
pub fn data_head(preface: &DataPreface) -> io::Result<Vec<u8>> {
    let body = preface.encode_to_vec();
    let length = u16::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = DATA_MAGIC.to_vec();
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads what comes after [`DATA_MAGIC`].
pub async fn read_preface(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<DataPreface> {
    let length = stream.read_u16().await?;
    let mut body = vec![0u8; usize::from(length)];
    stream.read_exact(&mut body).await?;
    DataPreface::decode(&body[..]).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_preface_comes_back_as_it_was() {
        let sent = DataPreface { worker_id: "w".into(), incarnation: 3, data_token: "t".into() };
        let head = data_head(&sent).unwrap();
        let mut rest = head.strip_prefix(DATA_MAGIC).expect("it begins with that");
        assert_eq!(read_preface(&mut rest).await.unwrap(), sent);
        assert!(read_preface(&mut &head[DATA_MAGIC.len()..head.len() - 1]).await.is_err(), "half of it");
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_reported() {
        let (client, server) = pair().await;
        let (_channel, closed) = channel_over(client).await.unwrap();
        assert!(!closed.is_cancelled());
        drop(server);
        closed.cancelled().await;
    }
}
