//! The gateway's HTTP server: one port for all that it serves over HTTP.
//!
//! The protocols are behind [`Site`], which gives each request to the one that it is for. What holds for all of them is
//! here and in [`callers`]:
//!
//! - **How many.** Connections at once, and for each token requests at once: who has one token takes nobody else's room.
//!   Who comes when there is no room is told so, and not left waiting in a queue that nobody reads.
//! - **How long.** A request's head, its body, and each write of an answer have a deadline. An answer itself has none: a
//!   stream of events lasts for as long as its client reads it.
//! - **What is left** of a request that was refused is read: see [`received`].
//! - **Who.** A token is asked about at the coordinator before anything is made for it.
//!
//! It listens on loopback only, without TLS. Beyond that it stands behind a proxy that has TLS.

pub mod callers;
mod patience;
pub mod query;
mod received;
mod reply;
mod site;

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use berth_proto::spawn::spawn;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

pub use patience::Patience;
pub use received::Received;
pub use reply::{Body, bearer, empty, plain, text, unauthorized};
pub use site::{Settings, Site};

/// Connections at once. Each may be a client's stream of events, so there are more than a client has requests.
pub const CONNECTIONS: usize = 2048;
/// A client that does not say what it wants is gone.
const HEAD_WITHIN: Duration = Duration::from_secs(15);
/// A client that reads nothing of what it is sent is gone.
const WRITE_WITHIN: Duration = Duration::from_secs(60);
/// Told to who comes when all connections are taken.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n\
    Content-Length: 38\r\nConnection: close\r\n\r\ntoo many connections: try again later\n";

/// Serves until `stop`, and ends what was made for clients then.
pub async fn serve(listener: TcpListener, site: Site, stop: CancellationToken) {
    let (site, room) = (Arc::new(site), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            refuse(stream).await;
            continue;
        };
        spawn("http connection", converse(stream, permit, Arc::clone(&site), stop.clone()));
    }
    site.end().await;
}

/// What a request came over. It is among the extensions of each, for what goes on after it.
#[derive(Clone)]
pub struct Connection {
    pub peer: IpAddr,
    /// It counts as a connection for as long as somebody has this.
    pub place: Arc<OwnedSemaphorePermit>,
    /// The gateway stops.
    pub stop: CancellationToken,
}

async fn converse(stream: TcpStream, permit: OwnedSemaphorePermit, site: Arc<Site>, stop: CancellationToken) {
    let Ok(peer) = stream.peer_addr() else { return };
    let here = Connection { peer: peer.ip(), place: Arc::new(permit), stop: stop.clone() };
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_WITHIN));
    let service = service_fn(|request: Request<Incoming>| {
        let (site, here) = (Arc::clone(&site), here.clone());
        async move {
            let (mut head, body) = request.into_parts();
            head.extensions.insert(here);
            let (body, left) = received::receive(&head.headers, body);
            let response = site.handle(Request::from_parts(head, body)).await;
            left.read().await;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades();
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        },
        () = stop.cancelled() => {}
    }
}

/// Says so at once, or not at all: who does not read it keeps nobody.
async fn refuse(mut stream: TcpStream) {
    let _ = tokio::time::timeout(Duration::from_millis(100), stream.write_all(FULL)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_told_in_whole() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
    }
}
