//! Who is let in at the HTTP port: how many at once, and over TLS where the port has it.
//!
//! Who comes when there is no room, or without TLS where it is wanted, is told so in HTTP, which its own side shows.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use berth_net::{Acceptor, HANDSHAKE_WITHIN, Rooms, Seldom, Stream, TLS_HANDSHAKE};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Connections at once. Each may be a client's stream of events, so there are more than a client has requests.
pub const CONNECTIONS: usize = 2048;
/// The same from one address. Not from loopback: a proxy there is everybody.
const OF_ONE_ADDRESS: usize = 512;
/// Time for the other side to take our last words.
const PARTING: Duration = Duration::from_millis(500);
/// Told to who comes when all connections are taken.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n\
    Content-Length: 38\r\nConnection: close\r\n\r\ntoo many connections: try again later\n";
/// Told to who comes without TLS where there is TLS.
const WANTS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
    Content-Length: 32\r\nConnection: close\r\n\r\nthis port has TLS: use https://\n";

/// One connection's, until it is dropped.
pub struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_address: Option<berth_net::Place>,
}

/// The port's.
pub struct Door {
    acceptor: Option<Arc<Acceptor>>,
    all: Arc<Semaphore>,
    each: Arc<Rooms>,
    failed: Seldom,
}

impl Door {
    /// Without an acceptor there is no TLS.
    pub fn new(acceptor: Option<Arc<Acceptor>>) -> Self {
        Self {
            acceptor,
            all: Arc::new(Semaphore::new(CONNECTIONS)),
            each: Rooms::new(CONNECTIONS, OF_ONE_ADDRESS),
            failed: Seldom::new(),
        }
    }

    /// `None`: there is no room for one more.
    pub(crate) fn place(&self, address: IpAddr) -> Option<Place> {
        let of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let of_address = match address.to_canonical().is_loopback() {
            true => None,
            false => Some(Rooms::take(&self.each, address)?),
        };
        Some(Place { _of_all: of_all, _of_address: of_address })
    }

    /// Does the handshake, where there is one. `None`: it was sent away.
    pub(super) async fn enter(&self, stream: TcpStream, address: SocketAddr) -> Option<Stream> {
        let Some(acceptor) = &self.acceptor else { return Some(Stream::plain(stream, Some(address))) };
        let entered = tokio::time::timeout(HANDSHAKE_WITHIN, async {
            let mut first = [0];
            // Peeked, not read: TLS needs it.
            if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
                send_away(stream).await;
                return Ok(None);
            }
            acceptor.secure(stream, address).await.map(Some)
        });
        match entered.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                match self.failed.tell() {
                    Some(times) => tracing::warn!(%address, %error, times, "a TLS handshake failed"),
                    None => tracing::debug!(%address, %error, "a TLS handshake failed"),
                }
                None
            }
            Err(_) => None,
        }
    }
}

/// Says so at once, or not at all: who does not read it keeps nobody.
pub(super) async fn refuse(mut stream: TcpStream) {
    let _ = tokio::time::timeout(Duration::from_millis(100), stream.write_all(FULL)).await;
}

/// What it sent is read for a moment: to close on it would be a reset, which throws our word away.
async fn send_away(mut stream: TcpStream) {
    let parting = async {
        stream.write_all(WANTS_TLS).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let _ = tokio::time::timeout(PARTING, parting).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_sent_away_is_told_in_whole() {
        for text in [FULL, WANTS_TLS] {
            let text = std::str::from_utf8(text).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        }
    }

    /// Red when an address may take all, or loopback, where a proxy is, may not.
    #[test]
    fn one_address_leaves_room_for_others() {
        let door = Door::new(None);
        let [far, other, here] = ["10.0.0.1", "10.0.0.2", "::1"].map(|text| text.parse::<IpAddr>().unwrap());
        let mut held: Vec<Place> = (0..OF_ONE_ADDRESS).map(|_| door.place(far).unwrap()).collect();
        assert!(door.place(far).is_none());
        held.push(door.place(other).unwrap());
        held.extend((held.len()..CONNECTIONS).map(|_| door.place(here).unwrap()));
        assert!(door.place(here).is_none() && door.place(other).is_none(), "all are taken");
        held.clear();
        assert!(door.place(far).is_some());
    }
}
