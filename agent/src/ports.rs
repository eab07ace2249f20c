//! Connections to servers in the sandbox, for clients outside: TCP to the sandbox's own loopback, since the agent lives in
//! its network namespace, and to nothing else.
//!
//! Bytes are carried as they come, each direction for itself: a server that does not read holds up what is sent to it and
//! nothing else, by the flow control of every hop up to the client. What is kept here is one piece a direction. A
//! connection that is over before both sides have ended it is reset for the server as well: it must not take half of what
//! was sent for all of it.
//!
//! Not to the session's own way out ([`crate::door`]): through it a client could use the session as its proxy, and the
//! record of what the session reached would tell of what no task did.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::{
    Code, Error, Reason,
    convert::{connection_broken, too_many_connections},
    transport::{PORT_CHUNK, PORT_CONNECTIONS},
    v1::{self, dial_request::Part},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::{deadline::Activity, door::Door};

/// Time for a connection to come up. On loopback it takes none, unless the server's queue is full: then the kernel tries again
/// after 1, 3, 7 and 15 s. Many servers have a queue of five.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(18);
/// A connection on which nothing moves for this long is ended.
const IDLE: Duration = Duration::from_secs(3600);
/// For a client to take the last word.
const LAST_WORD: Duration = Duration::from_secs(10);

type Answer = Result<v1::DialResponse, Status>;

/// All connections of the session.
pub struct Ports {
    door: Arc<Door>,
    activity: Arc<Activity>,
    places: Arc<Semaphore>,
    /// The session ends.
    ending: CancellationToken,
}

/// One that has come up.
pub struct Dialled {
    stream: TcpStream,
    activity: Arc<Activity>,
    ending: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Ports {
    pub fn new(door: Arc<Door>, activity: Arc<Activity>, ending: CancellationToken) -> Self {
        Self { door, activity, places: Arc::new(Semaphore::new(PORT_CONNECTIONS)), ending }
    }

    /// Connects to what listens on a port of the sandbox.
    pub async fn dial(&self, port: u16) -> Result<Dialled, Error> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| too_many_connections(PORT_CONNECTIONS))?;
        self.not_the_door(port)?;
        let stream = connect(port).await?;
        // It may have been opened meanwhile.
        self.not_the_door(port)?;
        stream.set_nodelay(true).map_err(|e| Error::internal("a connection could not be set up").cause(e))?;
        self.activity.touch();
        Ok(Dialled { stream, activity: self.activity.clone(), ending: self.ending.clone(), _place: place })
    }

    fn not_the_door(&self, port: u16) -> Result<(), Error> {
        if self.door.port() != Some(port) {
            return Ok(());
        }
        Err(Error::new(
            Code::PermissionDenied,
            Reason::PortRefused,
            format!("port {port} is the session's own way out, and not for clients"),
        ))
    }
}

/// First where most servers listen, then where some others do.
async fn connect(port: u16) -> Result<TcpStream, Error> {
    let addresses: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) if !is_with_itself(&stream) => return Ok(stream),
            Ok(Ok(_)) => {}
            // A sandbox without the newer one has nobody there either.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused || address.is_ipv6() => {}
            Ok(Err(error)) => {
                return Err(hangs(port, "could not be connected to").cause(error));
            }
            Err(_) => return Err(hangs(port, "does not accept connections")),
        }
    }
    Err(Error::precondition(Reason::PortClosed, format!("nothing listens on port {port} in the session"))
        .hint(format!("start a server in it that listens on 127.0.0.1:{port} or 0.0.0.0:{port}"))
        .with("port", port))
}

fn hangs(port: u16, what: &str) -> Error {
    Error::unavailable(Reason::PortClosed, format!("the server on port {port} {what}"))
        .hint("something listens there: look at its output, and whether it hangs")
}

/// Linux connects a socket to itself where it happens to draw as its own port the one that it is to connect to.
fn is_with_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

impl Dialled {
    /// Carries bytes both ways until both have ended, or something breaks.
    pub async fn carry(self, incoming: Streaming<v1::DialRequest>, out: mpsc::Sender<Answer>) {
        let Self { mut stream, activity, ending, _place } = self;
        let moved = Moved { activity, last: Mutex::new(Instant::now()) };
        let (reads, writes) = stream.split();
        let result = tokio::select! {
            biased;
            () = ending.cancelled() => {
                Err(Error::precondition(Reason::SessionEnded, "the session is over"))
            }
            // Nobody hears of it any more.
            () = out.closed() => Err(connection_broken("the client is gone")),
            result = async { tokio::try_join!(up(incoming, writes, &moved), down(reads, &out, &moved)) } => {
                result.map(drop)
            }
            () = moved.stood_still() => Err(connection_broken("nothing moved on the connection for an hour")
                .hint("connect again; what is to stay open without traffic needs a keepalive of its own")),
        };
        let Err(error) = result else { return };
        // The place is free, and the server hears of it, however long the client takes for the last word.
        if let Err(error) = stream.set_zero_linger() {
            debug!(%error, "a connection ends in order although it broke");
        }
        drop((stream, _place));
        let _ = tokio::time::timeout(LAST_WORD, out.send(Err(error.into()))).await;
    }
}

/// From the client to the server.
async fn up(
    mut incoming: Streaming<v1::DialRequest>,
    mut server: WriteHalf<'_>,
    moved: &Moved,
) -> Result<(), Error> {
    loop {
        let message = incoming.message().await.map_err(|status| {
            connection_broken("the client's side of the connection broke").cause(status.message().to_owned())
        })?;
        let Some(message) = message else {
            return Err(connection_broken("the client went away without ending the connection"));
        };
        moved.mark();
        match message.part {
            Some(Part::Data(bytes)) => {
                server.write_all(&bytes).await.map_err(|error| broke("does not read any more", error))?;
            }
            Some(Part::End(_)) => {
                return server.shutdown().await.map_err(|error| broke("is gone", error));
            }
            Some(Part::Header(_)) => return Err(Error::invalid("header", "came twice")),
            None => return Err(Error::invalid("part", "is missing")),
        }
    }
}

/// From the server to the client.
async fn down(mut server: ReadHalf<'_>, out: &mpsc::Sender<Answer>, moved: &Moved) -> Result<(), Error> {
    let mut piece = vec![0; PORT_CHUNK];
    loop {
        // Nothing is read that can't be passed on: the server waits instead.
        let room = out.reserve().await.map_err(|_| connection_broken("the client is gone"))?;
        let read = server.read(&mut piece).await.map_err(|error| broke("reset it", error))?;
        moved.mark();
        if read == 0 {
            room.send(Ok(v1::DialResponse::end()));
            return Ok(());
        }
        // Copied: a few bytes must not keep the room of many.
        room.send(Ok(v1::DialResponse::data(Bytes::copy_from_slice(&piece[..read]))));
    }
}

fn broke(what: &str, error: io::Error) -> Error {
    connection_broken(format!("the connection broke: the server in the session {what}")).cause(error)
}

/// When bytes last moved, either way: that is also what keeps the session from being idle.
struct Moved {
    activity: Arc<Activity>,
    last: Mutex<Instant>,
}

impl Moved {
    fn mark(&self) {
        self.activity.touch();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn stood_still(&self) {
        loop {
            let until = *self.last.lock().unwrap_or_else(PoisonError::into_inner) + IDLE;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    fn ports() -> (Ports, Arc<Door>) {
        let door = Arc::new(Door::new(&std::env::temp_dir()));
        (Ports::new(door.clone(), Activity::new(), CancellationToken::new()), door)
    }

    #[tokio::test]
    async fn where_nothing_listens_is_said_with_what_to_do() {
        let (ports, _) = ports();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let error = ports.dial(port).await.err().expect("nothing listens");
        assert_eq!((error.code(), error.reason()), (Code::FailedPrecondition, Reason::PortClosed));
        assert!(error.message().contains(&port.to_string()), "{error:?}");
    }

    /// Red without the second address.
    #[tokio::test]
    async fn who_listens_on_the_newer_loopback_alone_is_found() {
        let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
            return; // A machine without it.
        };
        let (ports, _) = ports();
        let port = listener.local_addr().unwrap().port();
        let (dialled, accepted) = tokio::join!(ports.dial(port), listener.accept());
        let from = accepted.unwrap().1;
        assert_eq!(dialled.unwrap().stream.local_addr().unwrap(), from);
    }

    /// Red without the check: the door is a listener like any other.
    #[tokio::test]
    async fn the_way_out_is_not_for_clients() {
        let (ports, door) = ports();
        door.open().await.unwrap();
        let port = door.port().expect("it is open");
        let error = ports.dial(port).await.err().expect("refused");
        assert_eq!((error.code(), error.reason()), (Code::PermissionDenied, Reason::PortRefused));
        door.close();
        assert_eq!(door.port(), None);
    }

    /// Red when a place is not given back.
    #[tokio::test]
    async fn so_many_and_no_more() {
        let (ports, _) = ports();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut open = Vec::new();
        for _ in 0..PORT_CONNECTIONS {
            open.push(ports.dial(port).await.unwrap());
            listener.accept().await.unwrap();
        }
        let error = ports.dial(port).await.err().expect("one too many");
        assert_eq!(error.reason(), Reason::TooManyConnections);
        open.pop();
        assert!(ports.dial(port).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_not_ended() {
        let moved = Moved { activity: Activity::new(), last: Mutex::new(Instant::now()) };
        let begun = Instant::now();
        tokio::join!(moved.stood_still(), async {
            tokio::time::sleep(IDLE / 2).await;
            moved.mark();
        });
        assert_eq!(begun.elapsed(), IDLE / 2 + IDLE);
    }
}
