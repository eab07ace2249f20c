//! Who is let in at a port. Each connection says what it is within a deadline and beside the accept loop, so that a peer
//! that says nothing holds up nobody: over TLS with its handshake, and then, or without TLS, with its first bytes, which
//! are those of HTTP/2 (a client) or of a worker's data connection.
//!
//! How many there may be is bounded in all and for each address: those that have not said yet what they are, and clients.
//! A worker that shows its certificate takes no client's place. So an address that opens connections by the thousand
//! keeps no other out, and many addresses together keep no worker out that has TLS.
//!
//! Who speaks no TLS where it is wanted, or TLS where there is none, gets an answer that its own side shows, and is told
//! in the log at most once a minute.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_proto::{
    spawn::spawn,
    transport::{DATA_MAGIC, read_preface},
    v1::DataPreface,
    world::{TcpListener, TcpStream},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{Acceptor, HANDSHAKE_WITHIN, Seldom, Stream};

/// How an HTTP/2 client begins.
const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS handshake.
pub const TLS_HANDSHAKE: u8 = 0x16;
/// HTTP/2 error codes (RFC 9113, 7).
const ENHANCE_YOUR_CALM: u8 = 0xb;
const INADEQUATE_SECURITY: u8 = 0xc;
/// What a client is told that comes without TLS where there is TLS.
pub const WANTS_TLS: &str = "this port has TLS";
/// What a client is told that has too many connections.
pub const TOO_MANY: &str = "too many connections";
/// Time for the other side to take our last words.
const PARTING: Duration = Duration::from_millis(500);
/// Accepting failed (too many open files): before the next try.
const AGAIN: Duration = Duration::from_millis(50);

/// How many connections there may be at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients.
    pub clients: usize,
    /// Clients from one address.
    pub clients_per_address: usize,
    /// Connections that have not said yet what they are.
    pub undecided: usize,
    /// The same from one address.
    pub undecided_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 4096, clients_per_address: 1024, undecided: 1024, undecided_per_address: 256 }
    }
}

/// Accepts until `stop`. Clients come out of the returned end of the channel; `data` is called with each data connection.
pub fn listen<D, F>(
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    limits: Limits,
    stop: CancellationToken,
    data: D,
) -> mpsc::Receiver<io::Result<Stream>>
where
    D: Fn(Stream, DataPreface) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    // A few: the server takes them as they come.
    let (clients, receiver) = mpsc::channel(64);
    let door = Arc::new(Door::new(acceptor, limits));
    let data = Arc::new(data);
    spawn("listener", async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let Some(place) = Rooms::take(&door.undecided, address.ip()) else {
                door.told(&door.crowded, address, "too many connections at once that say nothing: closed");
                continue;
            };
            let (door, data, clients) = (door.clone(), data.clone(), clients.clone());
            spawn("arrival", async move {
                let _place = place;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY was refused");
                }
                match tokio::time::timeout(HANDSHAKE_WITHIN, door.arrival(stream, address)).await {
                    Err(_) => tracing::debug!(%address, "a connection did not say in time what it is"),
                    Ok(Err(error)) => door.came_to_nothing(&error, address),
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some(Arrival::Data(stream, preface)))) => data(stream, preface).await,
                    // The server is gone only when all comes down.
                    Ok(Ok(Some(Arrival::Client(stream)))) => drop(clients.send(Ok(stream)).await),
                }
            });
        }
    });
    receiver
}

/// What a new connection turned out to be.
enum Arrival {
    Client(Stream),
    Data(Stream, DataPreface),
}

struct Door {
    acceptor: Option<Arc<Acceptor>>,
    undecided: Arc<Rooms>,
    clients: Arc<Rooms>,
    crowded: Seldom,
    plain: Seldom,
    encrypted: Seldom,
    failed: Seldom,
}

impl Door {
    fn new(acceptor: Option<Arc<Acceptor>>, limits: Limits) -> Self {
        Self {
            acceptor,
            undecided: Rooms::new(limits.undecided, limits.undecided_per_address),
            clients: Rooms::new(limits.clients, limits.clients_per_address),
            crowded: Seldom::new(),
            plain: Seldom::new(),
            encrypted: Seldom::new(),
            failed: Seldom::new(),
        }
    }

    /// Tells of something that anybody can cause.
    fn told(&self, seldom: &Seldom, address: SocketAddr, what: &str) {
        match seldom.tell() {
            Some(1) => tracing::warn!(%address, "{what}"),
            Some(times) => tracing::warn!(%address, times, "{what}"),
            None => tracing::debug!(%address, "{what}"),
        }
    }

    fn came_to_nothing(&self, error: &io::Error, address: SocketAddr) {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => self.told(&self.failed, address, &format!("a TLS handshake failed: {tls}")),
            None => tracing::debug!(%address, %error, "a connection came to nothing"),
        }
    }

    /// Reads as much as tells what it is. `None`: it was sent away.
    async fn arrival(&self, mut stream: TcpStream, address: SocketAddr) -> io::Result<Option<Arrival>> {
        let mut first = [0];
        // Peeked, not read: TLS needs it.
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_tls = first[0] == TLS_HANDSHAKE;
        match &self.acceptor {
            Some(acceptor) if is_tls => {
                let (stream, is_data) = acceptor.accept(stream, address).await?;
                self.identified(stream, Some(is_data), address).await
            }
            Some(_) => {
                self.told(
                    &self.plain,
                    address,
                    "a connection without TLS came to the port, which has TLS: closed",
                );
                let words = goaway(INADEQUATE_SECURITY, WANTS_TLS);
                send_away(&mut stream, &words).await;
                Ok(None)
            }
            None if is_tls => {
                self.told(
                    &self.encrypted,
                    address,
                    "a connection with TLS came to the port, which has none: closed",
                );
                send_away(&mut stream, b"this port has no TLS: use http://\n").await;
                Ok(None)
            }
            None => self.identified(Stream::plain(stream, Some(address)), None, address).await,
        }
    }

    /// `is_data`: what the handshake said of it, where there was one.
    async fn identified(
        &self,
        mut stream: Stream,
        is_data: Option<bool>,
        address: SocketAddr,
    ) -> io::Result<Option<Arrival>> {
        let mut head = [0; HTTP2.len()];
        let (begin, rest) = head.split_at_mut(DATA_MAGIC.len());
        stream.read_exact(begin).await?;
        if begin == DATA_MAGIC && is_data != Some(false) {
            let preface = read_preface(&mut stream).await?;
            return Ok(Some(Arrival::Data(stream, preface)));
        }
        if begin != &HTTP2[..DATA_MAGIC.len()] || is_data == Some(true) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks no HTTP/2"));
        }
        stream.read_exact(rest).await?;
        if head != *HTTP2 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks no HTTP/2"));
        }
        let place = match &stream.peer().worker {
            Some(_) => None,
            None => match Rooms::take(&self.clients, address.ip()) {
                Some(place) => Some(place),
                None => {
                    self.told(&self.crowded, address, "a client has too many connections: closed");
                    send_away(&mut stream, &goaway(ENHANCE_YOUR_CALM, TOO_MANY)).await;
                    return Ok(None);
                }
            },
        };
        Ok(Some(Arrival::Client(stream.unread(head.to_vec()).at(place))))
    }
}

/// The only words of HTTP/2 that we say by hand: SETTINGS, as any server must begin, and GOAWAY with a reason.
fn goaway(code: u8, why: &str) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&[0, 0, 8 + u8::try_from(why.len()).unwrap_or_default(), 7, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, code]);
    bytes.extend_from_slice(why.as_bytes());
    bytes
}

/// Says a last word and closes. What the other side still sends is taken for a moment: to close on it would be a reset,
/// which throws our word away.
async fn send_away(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), words: &[u8]) {
    let parting = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    let _ = tokio::time::timeout(PARTING, parting).await;
}

/// Counts connections, in all and for each address.
#[derive(Debug)]
pub struct Rooms {
    most: usize,
    most_each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

impl Rooms {
    /// `most` in all, `most_each` of one address.
    pub fn new(most: usize, most_each: usize) -> Arc<Self> {
        Arc::new(Self { most, most_each, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, or `None` where there is no room for this address.
    pub fn take(rooms: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut taken = rooms.lock();
        let each = taken.each.get(&address).copied().unwrap_or_default();
        if taken.all >= rooms.most || each >= rooms.most_each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(address, each + 1);
        Some(Place { rooms: rooms.clone(), address })
    }
}

/// One connection's, until it is dropped.
#[derive(Debug)]
pub struct Place {
    rooms: Arc<Rooms>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.rooms.lock();
        taken.all -= 1;
        if let Some(each) = taken.each.get_mut(&self.address) {
            *each -= 1;
            if *each == 0 {
                taken.each.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when `take` asks for one of its two bounds only, or `drop` gives nothing back.
    #[test]
    fn places_are_bounded_for_each_and_for_all_and_come_back() {
        let rooms = Rooms::new(3, 2);
        let [a, b, c]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let held = [Rooms::take(&rooms, a).unwrap(), Rooms::take(&rooms, a).unwrap()];
        assert!(Rooms::take(&rooms, a).is_none(), "two from one address");
        assert!(Rooms::take(&rooms, "::ffff:10.0.0.1".parse().unwrap()).is_none(), "the same address");
        let other = Rooms::take(&rooms, b).unwrap();
        assert!(Rooms::take(&rooms, c).is_none(), "three in all");
        drop(held);
        assert!(Rooms::take(&rooms, c).is_some());
        drop(other);
        assert!(rooms.lock().each.is_empty(), "nothing is kept of who is gone");
    }
}
