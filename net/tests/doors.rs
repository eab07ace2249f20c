//! A port and those that come to it, over real sockets on loopback.

use std::{io, path::Path, time::Duration};

use berth_net::{
    Acceptor, Dialer, Error, Files, HANDSHAKE_WITHIN, Limits, Peer, Stream, TOO_MANY, Trust, WANTS_TLS,
    error_in,
    issue::{Authority, Validity},
    listen,
};
use berth_proto::{
    WorkerId,
    transport::{DATA_MAGIC, channel_over},
    v1::DataPreface,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything takes.
const SOON: Duration = Duration::from_secs(20);

fn hours(hours: u64) -> Validity {
    Validity::lasting(Duration::from_secs(hours * 3600))
}

fn id(text: &str) -> WorkerId {
    text.parse().unwrap()
}

/// A CA with a coordinator's certificate and those of the workers a and b.
fn cluster(dir: &Path) -> (Files, Authority) {
    let files = Files::new(dir);
    let authority = Authority::make(&files).unwrap();
    authority.coordinator(&[], hours(1)).unwrap();
    for worker in ["a", "b"] {
        authority.worker(&id(worker), &[], hours(1)).unwrap();
    }
    (files, authority)
}

/// An open port: what came to it, by kind.
struct Port {
    address: String,
    clients: mpsc::Receiver<io::Result<Stream>>,
    data: mpsc::Receiver<(Stream, DataPreface)>,
    stop: CancellationToken,
}

impl Port {
    async fn open(files: Option<&Files>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, data) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let acceptor = files.map(|files| Acceptor::coordinator(files).unwrap());
        let clients = listen(listener, acceptor, limits, stop.clone(), move |stream, preface| {
            let sender = sender.clone();
            async move { drop(sender.send((stream, preface)).await) }
        });
        Self { address, clients, data, stop }
    }

    async fn tls(files: &Files) -> Self {
        Self::open(Some(files), Limits::default()).await
    }

    async fn client(&mut self) -> Stream {
        let came = tokio::time::timeout(SOON, self.clients.recv()).await.expect("a client comes");
        came.expect("the port is open").unwrap()
    }

    fn dialer(&self, trust: Trust) -> Dialer {
        Dialer::new(&self.address, Some(trust)).unwrap()
    }

    /// Dials as a client would. What came of it on both sides.
    async fn dial(&mut self, trust: Trust) -> Result<Peer, Error> {
        let dialer = self.dialer(trust);
        let dialled = tokio::time::timeout(SOON, dialer.connect()).await.expect("in time");
        match dialled {
            // The channel is up as soon as its own half is: whom the other half sees is known when it comes.
            Ok(_channel) => Ok(self.client().await.peer().clone()),
            Err(error) => Err(said(&error)),
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The same error, to be matched on.
fn said(error: &tonic::transport::Error) -> Error {
    match error_in(error).unwrap_or_else(|| panic!("not of TLS: {error:?}")) {
        Error::NotTls => Error::NotTls,
        Error::Expired => Error::Expired,
        Error::WrongCa => Error::WrongCa,
        Error::WrongName(name) => Error::WrongName(name.clone()),
        other => Error::Handshake(other.to_string()),
    }
}

fn preface(worker: &str) -> DataPreface {
    DataPreface { worker_id: worker.into(), incarnation: 1, data_token: "t".into() }
}

/// Red when a certificate is not asked for (`no_client_auth`), or a URI of another form is taken for a worker's.
#[tokio::test]
async fn clients_and_workers_come_through_one_port_and_are_known() {
    let dir = TempDir::new().unwrap();
    let (files, _) = cluster(dir.path());
    let mut port = Port::tls(&files).await;
    let client = port.dial(Trust::client(files.ca().certificate)).await.unwrap();
    assert!(client.secure && client.worker.is_none() && client.is_local());
    let own = files.worker_dir(&id("a"));
    let worker = port.dial(Trust::worker(&own)).await.unwrap();
    assert_eq!(worker.worker, Some(id("a")));

    let mut dialled = port.dialer(Trust::worker(&own)).data(&preface("a")).await.unwrap();
    let (mut accepted, said) = tokio::time::timeout(SOON, port.data.recv()).await.unwrap().unwrap();
    assert_eq!((said, &accepted.peer().worker), (preface("a"), &Some(id("a"))));
    // Bytes go both ways, and its end is seen.
    accepted.write_all(b"ping").await.unwrap();
    accepted.flush().await.unwrap();
    let mut seen = [0; 4];
    dialled.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"ping");
    drop(dialled);
    assert_eq!(accepted.read(&mut seen).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn without_tls_the_first_bytes_tell_which_it_is() {
    let mut port = Port::open(None, Limits::default()).await;
    let dialer = Dialer::new(&port.address, None).unwrap();
    let _channel = dialer.connect().await.unwrap();
    let client = port.client().await;
    assert!(!client.peer().secure && client.peer().is_local());
    let _dialled = dialer.data(&preface("a")).await.unwrap();
    let (_, said) = tokio::time::timeout(SOON, port.data.recv()).await.unwrap().unwrap();
    assert_eq!(said, preface("a"));
}

/// What was read to tell what a connection is comes back: HTTP/2 works over it. Red when `unread` is left out.
#[tokio::test]
async fn nothing_of_what_was_read_is_lost() {
    let mut port = Port::open(None, Limits::default()).await;
    let stream = TcpStream::connect(&port.address).await.unwrap();
    let (channel, _closed) = channel_over(stream).await.unwrap();
    let mut client = port.client().await;
    let mut head = [0; 24];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    drop(channel);
}

#[tokio::test]
async fn a_server_that_can_t_be_trusted_is_not() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (files, authority) = cluster(dir.path());
    let (others, _) = cluster(other.path());
    let mut port = Port::tls(&files).await;
    let refused = port.dial(Trust::client(others.ca().certificate)).await.unwrap_err();
    assert!(matches!(refused, Error::WrongCa), "{refused}");

    // A worker's certificate is no coordinator's.
    let own = files.worker_dir(&id("a")).worker();
    std::fs::copy(&own.certificate, files.coordinator().certificate).unwrap();
    std::fs::copy(&own.key, files.coordinator().key).unwrap();
    assert!(port.dial(Trust::client(files.ca().certificate)).await.is_err());

    let now = berth_proto::world::now();
    let past = Validity { from: now - Duration::from_secs(7200), until: now - Duration::from_secs(3600) };
    authority.coordinator(&[], past).unwrap();
    let refused = port.dial(Trust::client(files.ca().certificate)).await.unwrap_err();
    assert!(matches!(refused, Error::Expired), "{refused}");
    assert!(refused.hint().contains("renew"));

    authority.coordinator(&[], hours(1)).unwrap();
    let address = port.address.replace("127.0.0.1", "127.0.0.2");
    let dialer = Dialer::new(&address, Some(Trust::client(files.ca().certificate))).unwrap();
    // Nothing listens on 127.0.0.2; a forwarder does what a wrong name in a zone would.
    let forward = TcpListener::bind(&address).await.unwrap();
    let to = port.address.clone();
    let forwarding = async {
        let (mut from, _) = forward.accept().await.unwrap();
        let mut to = TcpStream::connect(to).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    };
    let (dialled, ()) = tokio::join!(dialer.connect(), forwarding);
    let refused = said(&dialled.unwrap_err());
    assert!(matches!(&refused, Error::WrongName(name) if name == "127.0.0.2"), "{refused}");
}

/// Over TLS 1.3 the server's refusal comes after the client's handshake: so what is asserted is that nobody comes through.
/// Red when the verifier's roots are those of another CA, or the clock is not asked.
#[tokio::test]
async fn a_worker_s_certificate_of_another_ca_or_of_the_past_lets_nobody_in() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (files, authority) = cluster(dir.path());
    let (others, _) = cluster(other.path());
    let mut port = Port::tls(&files).await;
    // Its certificate is of another CA, and it knows ours.
    let foreign = Files::new(dir.path().join("foreign"));
    std::fs::create_dir(foreign.dir()).unwrap();
    std::fs::copy(files.ca().certificate, foreign.ca().certificate).unwrap();
    let own = others.worker_dir(&id("a")).worker();
    std::fs::copy(own.certificate, foreign.worker().certificate).unwrap();
    std::fs::copy(own.key, foreign.worker().key).unwrap();
    let now = berth_proto::world::now();
    let past = Validity { from: now - Duration::from_secs(7200), until: now - Duration::from_secs(3600) };
    let late = authority.worker(&id("late"), &[], past).unwrap();
    for bad in [foreign, late] {
        let mut dialled = match port.dialer(Trust::worker(&bad)).data(&preface("a")).await {
            Ok(dialled) => dialled,
            Err(_) => continue,
        };
        let mut byte = [0];
        let ended = tokio::time::timeout(SOON, dialled.read(&mut byte)).await.expect("it is closed");
        assert!(!matches!(ended, Ok(n) if n > 0), "somebody answered");
    }
    // A good one comes after them: so they have been through, and have come to nothing.
    let good = port.dialer(Trust::worker(&files.worker_dir(&id("a")))).data(&preface("a")).await.unwrap();
    let (accepted, _) = tokio::time::timeout(SOON, port.data.recv()).await.unwrap().unwrap();
    assert_eq!(accepted.peer().worker, Some(id("a")));
    assert!(port.data.try_recv().is_err(), "only the good one");
    drop(good);
}

/// Red when the acceptor keeps what it read at its start, and when it takes files that do not fit each other.
#[tokio::test]
async fn a_renewed_certificate_is_taken_up_and_a_broken_one_is_not() {
    let dir = TempDir::new().unwrap();
    let (files, authority) = cluster(dir.path());
    let mut port = Port::tls(&files).await;
    let trust = || Trust::client(files.ca().certificate);
    let up = port.dialer(trust()).connect().await.unwrap();
    let mut before = port.client().await;
    // One that is not valid any more is told from the one before by what becomes of a dial.
    let now = berth_proto::world::now();
    let past = Validity { from: now - Duration::from_secs(7200), until: now - Duration::from_secs(3600) };
    authority.coordinator(&[], past).unwrap();
    assert!(matches!(port.dial(trust()).await, Err(Error::Expired)), "the new one is in force at once");
    authority.renew(&[], hours(1)).unwrap();
    port.dial(trust()).await.expect("and the next one");

    // Half of a pair: the old one stays in force.
    let key = std::fs::read(files.coordinator().key).unwrap();
    std::fs::copy(files.worker_dir(&id("a")).worker().key, files.coordinator().key).unwrap();
    port.dial(trust()).await.expect("the old pair");
    std::fs::write(files.coordinator().certificate, "no certificate").unwrap();
    port.dial(trust()).await.expect("the old pair still");
    std::fs::write(files.coordinator().key, key).unwrap();

    // Who came before any of that is still there.
    before.write_all(b"x").await.expect("the connection of before is up");
    drop(up);
}

/// Red when the plaintext is handed to the handshake, or the other way round: then neither side knows why.
#[tokio::test]
async fn who_speaks_no_tls_or_speaks_it_in_vain_is_told_and_closed() {
    let dir = TempDir::new().unwrap();
    let (files, _) = cluster(dir.path());
    let mut secure = Port::tls(&files).await;
    let mut plain = TcpStream::connect(&secure.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut words = Vec::new();
    tokio::time::timeout(SOON, plain.read_to_end(&mut words)).await.expect("it is closed").unwrap();
    assert!(String::from_utf8_lossy(&words).contains(WANTS_TLS), "{words:?}");
    assert!(secure.clients.try_recv().is_err());
    // A worker without TLS, too.
    let mut worker = Dialer::new(&secure.address, None).unwrap().data(&preface("a")).await.unwrap();
    words.clear();
    tokio::time::timeout(SOON, worker.read_to_end(&mut words)).await.expect("it is closed").unwrap();
    assert!(secure.data.try_recv().is_err());

    let mut open = Port::open(None, Limits::default()).await;
    let refused = open.dial(Trust::client(files.ca().certificate)).await.unwrap_err();
    assert!(matches!(refused, Error::NotTls), "{refused}");
    assert!(refused.hint().contains("http://"), "{}", refused.hint());
    assert!(open.clients.try_recv().is_err());
}

/// Three hundred connections that never end their handshake, and one that does. Red when the accept loop does the handshake
/// itself, and when there is no bound (then all three hundred are held).
#[tokio::test]
async fn half_open_handshakes_hold_nobody_up_and_are_bounded() {
    let dir = TempDir::new().unwrap();
    let (files, _) = cluster(dir.path());
    let limits = Limits { undecided_per_address: 100, ..Limits::default() };
    let mut port = Port::open(Some(&files), limits).await;
    let mut held = Vec::new();
    for n in 0..300 {
        let mut half = TcpStream::connect(&port.address).await.unwrap();
        // A record of 512 bytes of which one comes.
        half.write_all(&[0x16, 3, 1, 2, 0, 1][..1 + n % 6]).await.unwrap();
        held.push(half);
    }
    // Those beyond the bound are closed at once, long before any deadline.
    for mut half in held.drain(100..) {
        let mut byte = [0];
        let ended = tokio::time::timeout(HANDSHAKE_WITHIN / 2, half.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
    // The rest go when their time is over, and their places are free again: then others come in.
    for half in &mut held {
        let mut byte = [0];
        let ended = tokio::time::timeout(HANDSHAKE_WITHIN + SOON, half.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
    port.dial(Trust::client(files.ca().certificate)).await.expect("a good one comes in");
}

/// A good one beside as many bad ones as there may be. Red when the accept loop waits for a handshake.
#[tokio::test]
async fn a_good_handshake_does_not_wait_for_bad_ones() {
    let dir = TempDir::new().unwrap();
    let (files, _) = cluster(dir.path());
    let mut port = Port::tls(&files).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut half = TcpStream::connect(&port.address).await.unwrap();
        half.write_all(&[0x16, 3, 1]).await.unwrap();
        held.push(half);
    }
    port.dial(Trust::client(files.ca().certificate)).await.expect("it comes in");
    // None of the others was closed for it, so none of them was waited for.
    for half in &held {
        assert!(matches!(half.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock));
    }
}

/// Red without the places of clients; and without their return the last one is refused.
#[tokio::test]
async fn clients_are_bounded_for_each_address_and_workers_are_none_of_them() {
    let dir = TempDir::new().unwrap();
    let (files, _) = cluster(dir.path());
    let limits = Limits { clients_per_address: 3, ..Limits::default() };
    let mut port = Port::open(Some(&files), limits).await;
    let trust = || Trust::client(files.ca().certificate);
    let mut held = Vec::new();
    for _ in 0..3 {
        let channel = port.dialer(trust()).connect().await.unwrap();
        held.push((channel, port.client().await));
    }
    let _fourth = port.dialer(trust()).connect().await;
    let worker = port.dial(Trust::worker(&files.worker_dir(&id("a")))).await.unwrap();
    assert_eq!(worker.worker, Some(id("a")), "the fourth client did not come through, and the worker did");
    held.pop();
    port.dial(trust()).await.expect("there is a place again");

    let mut open = Port::open(None, Limits { clients_per_address: 0, ..Limits::default() }).await;
    let mut plain = TcpStream::connect(&open.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut words = Vec::new();
    tokio::time::timeout(SOON, plain.read_to_end(&mut words)).await.expect("it is closed").unwrap();
    assert!(String::from_utf8_lossy(&words).contains(TOO_MANY), "{words:?}");
    assert!(open.clients.try_recv().is_err());
}

/// Red when the deadline covers the first byte alone.
#[tokio::test]
async fn what_speaks_neither_or_stops_in_the_middle_is_closed() {
    let port = Port::open(None, Limits::default()).await;
    let mut preface = DATA_MAGIC.to_vec();
    preface.extend_from_slice(&[0, 200, 1]);
    for begin in
        [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), b"PRI * HTTP/2.0\r\n\r\nSM".to_vec(), preface]
    {
        let mut stream = TcpStream::connect(&port.address).await.unwrap();
        stream.write_all(&begin).await.unwrap();
        let mut byte = [0];
        let ended = tokio::time::timeout(HANDSHAKE_WITHIN + SOON, stream.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
}
