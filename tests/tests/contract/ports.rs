//! Connections to a session's ports, as any hop must serve them. On the fake backend the server is its own, which sends back
//! what it gets; on the others it is a program in the sandbox.

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    transport::PORT_CONNECTIONS,
    v1::{self, dial_response::Part},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::hop::{DEADLINE, Hop, argv};

/// A server for tests, in the sandbox. Each connection begins with a word that says what the server shall do with it; what
/// became of each is printed, one line.
const SERVER: &str = r#"
import os, socket, struct, sys, threading
family, host = (socket.AF_INET6, '::1') if sys.argv[1:] == ['6'] else (socket.AF_INET, '127.0.0.1')
server = socket.create_server((host, 0), family=family, backlog=128)
print('port', server.getsockname()[1], flush=True)
def serve(conn):
    word = b''
    try:
        while not word.endswith(b'\n'): word += conn.recv(1)
        kind, left = word.decode().strip(), 0
        if kind == 'echo':
            while data := conn.recv(65536): conn.sendall(data)
        elif kind == 'sum':  # all of it first, then how much it was
            while data := conn.recv(65536): left += len(data)
            conn.sendall(b'%d' % left)
        elif kind == 'early':  # the end of what it says, and then it listens on
            conn.sendall(b'bye')
            conn.shutdown(socket.SHUT_WR)
            while data := conn.recv(65536): left += len(data)
        elif kind == 'flood':
            conn.settimeout(2)
            try:
                while True: left += conn.send(b'x' * 65536)
            except TimeoutError: pass
        elif kind == 'deaf':
            conn.sendall(b'!')
            threading.Event().wait()
        elif kind == 'reset':
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            conn.close()
        print(kind, 'end', left, flush=True)
    except OSError as error: print(kind, type(error).__name__, left, flush=True)
    conn.close()
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

/// The same for very many connections, which all echo: a thread for each would be more than a session may have.
const ECHOES: &str = r#"
import selectors, socket
server, all = socket.create_server(('127.0.0.1', 0), backlog=128), selectors.DefaultSelector()
print('port', server.getsockname()[1], flush=True)
all.register(server, selectors.EVENT_READ)
while True:
    for ready, _ in all.select():
        conn = ready.fileobj
        if conn is server:
            all.register(server.accept()[0], selectors.EVENT_READ)
            continue
        try: data = conn.recv(65536)
        except OSError: data = b''
        if data: conn.sendall(data)
        else:
            all.unregister(conn)
            conn.close()
"#;

/// What listens in the session.
struct Server {
    port: u16,
    task: Option<String>,
}

impl Server {
    async fn start(hop: &Hop) -> Self {
        Self::running(hop, &["python3", "-c", SERVER]).await
    }

    async fn running(hop: &Hop, program: &[&str]) -> Self {
        if hop.backend == "fake" {
            return Self { port: 7, task: None };
        }
        let task = hop.start_task(argv(program)).await.id;
        hop.prints(&task, "port ").await;
        let port =
            hop.output(&task).await.split_whitespace().nth(1).expect("a port").parse().expect("a port");
        Self { port, task: Some(task) }
    }

    /// Waits until it has printed this so many times.
    async fn prints(&self, hop: &Hop, times: usize, text: &str) {
        let task = self.task.as_ref().expect("a real one");
        berth_tests::until(DEADLINE, &format!("{text:?} of the server"), async || {
            (hop.output(task).await.matches(text).count() >= times).then_some(())
        })
        .await;
    }
}

/// One connection.
struct Connection {
    up: Option<mpsc::Sender<v1::DialRequest>>,
    down: Streaming<v1::DialResponse>,
}

async fn dial(hop: &Hop, port: u32) -> Result<Connection, Status> {
    begin(hop, vec![header(&hop.session, port)]).await
}

fn header(session: &str, port: u32) -> v1::DialRequest {
    let header = v1::DialHeader { session_id: session.to_owned(), port };
    v1::DialRequest { part: Some(v1::dial_request::Part::Header(header)) }
}

async fn begin(hop: &Hop, messages: Vec<v1::DialRequest>) -> Result<Connection, Status> {
    let (up, requests) = mpsc::channel(4);
    for message in messages {
        up.send(message).await.expect("there is room");
    }
    let mut ports = hop.ports.clone();
    let call = ports.dial(ReceiverStream::new(requests));
    let mut down = tokio::time::timeout(DEADLINE, call).await.expect("an answer")?.into_inner();
    let first = tokio::time::timeout(DEADLINE, down.message()).await.expect("a message")?;
    assert!(matches!(first.and_then(|m| m.part), Some(Part::Connected(_))), "it begins with that");
    Ok(Connection { up: Some(up), down })
}

impl Connection {
    /// One on which the server does this.
    async fn to(hop: &Hop, server: &Server, what: &str) -> Self {
        let connection = dial(hop, server.port.into()).await.expect("it listens");
        if server.task.is_some() {
            connection.send(format!("{what}\n").as_bytes()).await;
        }
        connection
    }

    async fn send(&self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("it is open");
    }

    async fn try_send(&self, bytes: &[u8]) -> Result<(), ()> {
        let up = self.up.as_ref().expect("not ended yet");
        for piece in bytes.chunks(60_000) {
            up.send(v1::DialRequest::data(piece.to_vec())).await.map_err(drop)?;
        }
        Ok(())
    }

    async fn end(&mut self) {
        self.up.take().expect("not ended yet").send(v1::DialRequest::end()).await.expect("it is open");
    }

    /// Data, or `None` at the end of it.
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, Status> {
        let message =
            tokio::time::timeout(DEADLINE, self.down.message()).await.expect("a message in time")?;
        match message.expect("the stream is over without an end").part {
            Some(Part::Data(data)) => Ok(Some(data)),
            Some(Part::End(_)) => Ok(None),
            other => panic!("in the middle: {other:?}"),
        }
    }

    /// All that comes until the server's end.
    async fn rest(&mut self) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await? {
            all.extend_from_slice(&data);
        }
        Ok(all)
    }

    /// Exactly so many bytes.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < length {
            all.extend_from_slice(&self.next().await.expect("it goes on").expect("no end yet"));
        }
        assert_eq!(all.len(), length, "more than was sent");
        all
    }

    /// The stream's own end, after both directions'.
    async fn over(mut self) {
        let last = tokio::time::timeout(DEADLINE, self.down.message()).await.expect("in time");
        assert!(matches!(last, Ok(None)), "{last:?}");
    }

    /// The error that it ends with, whatever comes before.
    async fn breaks(mut self) -> Status {
        loop {
            match tokio::time::timeout(DEADLINE, self.down.message()).await.expect("in time") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended in order"),
                Err(status) => return status,
            }
        }
    }
}

/// Bytes of which none can be taken for another.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64 / 8).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

pub async fn each_direction_ends_for_itself(hop: &Hop) {
    let server = Server::start(hop).await;
    let mut connection = Connection::to(hop, &server, "echo").await;
    connection.send(b"ping").await;
    assert_eq!(connection.read(4).await, b"ping", "before any end");
    connection.send(b"pong").await;
    connection.end().await;
    assert_eq!(connection.rest().await.unwrap(), b"pong");
    connection.over().await;
    if server.task.is_none() {
        return;
    }
    // The client's end comes first, and the answer after it ...
    let mut connection = Connection::to(hop, &server, "sum").await;
    connection.send(&[7; 100_000]).await;
    connection.end().await;
    assert_eq!(connection.rest().await.unwrap(), b"100000");
    connection.over().await;
    // ... or the server's, and the client goes on.
    let mut connection = Connection::to(hop, &server, "early").await;
    assert_eq!(connection.rest().await.unwrap(), b"bye");
    connection.send(&[7; 200_000]).await;
    connection.end().await;
    connection.over().await;
    server.prints(hop, 1, "early end 200000").await;
}

pub async fn megabytes_go_both_ways_as_they_were(hop: &Hop) {
    let server = Server::start(hop).await;
    let mut connection = Connection::to(hop, &server, "echo").await;
    let sent = pattern(24 << 20);
    let up = connection.up.take().expect("open");
    let bytes = sent.clone();
    let sends = async {
        for piece in bytes.chunks(60_000) {
            up.send(v1::DialRequest::data(piece.to_vec())).await.expect("it is open");
        }
        up.send(v1::DialRequest::end()).await.expect("it is open");
    };
    let ((), heard) = tokio::join!(sends, connection.rest());
    let heard = heard.expect("it goes on");
    assert!(heard == sent, "{} bytes of {}, or others", heard.len(), sent.len());
    connection.over().await;
}

pub async fn where_nobody_listens_is_told(hop: &Hop) {
    // Port 1 is for root alone, whatever runs in the session.
    let error = dial(hop, 1).await.err().expect("nobody listens");
    assert_eq!((error.code(), reason_of(&error)), (Code::FailedPrecondition, Some(Reason::PortClosed)));
    assert!(error.message().contains("port 1 "), "{error:?}");
    let hint = detail_of(&error, "hint").unwrap_or_default();
    assert!(hint.contains("server"), "{hint}");
    if hop.backend != "fake" {
        assert!(hint.contains("127.0.0.1:1"), "{hint}");
        let server = Server::running(hop, &["python3", "-c", SERVER, "6"]).await;
        let mut connection = Connection::to(hop, &server, "echo").await;
        connection.send(b"six").await;
        assert_eq!(connection.read(3).await, b"six");
    }
}

pub async fn what_is_no_connection_is_refused(hop: &Hop) {
    for port in [0, 65_536, u32::MAX] {
        let error = dial(hop, port).await.err().expect("no port");
        assert_eq!(error.code(), Code::InvalidArgument, "{port}: {error:?}");
        assert_eq!(detail_of(&error, "field").as_deref(), Some("port"), "{error:?}");
    }
    for session in ["00000000-0000-7000-8000-000000000000", "nonsense"] {
        let error = begin(hop, vec![header(session, 7)]).await.err().expect("no session");
        assert_eq!(reason_of(&error), Some(Reason::SessionNotFound), "{error:?}");
    }
    for first in [v1::DialRequest::data(b"x".to_vec()), v1::DialRequest::end(), v1::DialRequest::default()] {
        let error = begin(hop, vec![first]).await.err().expect("no header");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    let server = Server::start(hop).await;
    let twice = Connection::to(hop, &server, "echo").await;
    twice.up.as_ref().unwrap().send(header(&hop.session, 7)).await.unwrap();
    assert_eq!(twice.breaks().await.code(), Code::InvalidArgument);
}

pub async fn so_many_connections_and_no_more(hop: &Hop) {
    let server = Server::running(hop, &["python3", "-c", ECHOES]).await;
    let port = u32::from(server.port);
    let mut open = Vec::new();
    for _ in 0..PORT_CONNECTIONS {
        open.push(dial(hop, port).await.expect("it listens"));
    }
    let error = dial(hop, port).await.err().expect("one too many");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::ResourceExhausted, Some(Reason::TooManyConnections)),
        "{error:?}"
    );
    // Other calls have places of their own.
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
    // One that ends in order gives its place back, and one that is dropped.
    let mut ends = open.pop().unwrap();
    ends.end().await;
    assert_eq!(ends.rest().await.unwrap(), b"");
    ends.over().await;
    drop(open.pop());
    for _ in 0..2 {
        open.push(berth_tests::until(DEADLINE, "a place", async || dial(hop, port).await.ok()).await);
    }
    for connection in [0, PORT_CONNECTIONS - 1] {
        let connection = &mut open[connection];
        connection.send(b"still").await;
        assert_eq!(connection.read(5).await, b"still");
    }
}

pub async fn what_breaks_never_looks_like_an_end(hop: &Hop) {
    let server = Server::start(hop).await;
    // The server breaks it: no end comes, but an error.
    let broken = Connection::to(hop, &server, "reset").await.breaks().await;
    assert_eq!((broken.code(), reason_of(&broken)), (Code::Aborted, Some(Reason::ConnectionBroken)));
    assert!(broken.message().contains("server"), "{broken:?}");
    // The client goes away in the middle, or its stream is over without a word: neither is an end for the server.
    let mut gone = Connection::to(hop, &server, "echo").await;
    let mut silent = Connection::to(hop, &server, "echo").await;
    for connection in [&mut gone, &mut silent] {
        connection.send(b"half").await;
        assert_eq!(connection.read(4).await, b"half");
    }
    drop(gone);
    server.prints(hop, 1, "echo ConnectionResetError").await;
    silent.up = None;
    assert_eq!(reason_of(&silent.breaks().await), Some(Reason::ConnectionBroken));
    server.prints(hop, 2, "echo ConnectionResetError").await;
    // And the server's death.
    let dies = Connection::to(hop, &server, "deaf").await;
    let cancel = v1::CancelTaskRequest {
        session_id: hop.session.clone(),
        task_id: server.task.clone().unwrap(),
        ..Default::default()
    };
    let mut dies = dies;
    assert_eq!(dies.read(1).await, b"!");
    dies.send(&[0; 300_000]).await;
    hop.tasks.clone().cancel_task(cancel).await.expect("it ends");
    assert_eq!(reason_of(&dies.breaks().await), Some(Reason::ConnectionBroken), "it had read nothing of it");
}

/// What nobody reads stays in the server's own hands, but for what the hops hold; and nobody else waits for it.
pub async fn who_does_not_read_holds_up_nobody(hop: &Hop) {
    const UNREAD: usize = 6;
    let server = Server::start(hop).await;
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(Connection::to(hop, &server, "flood").await);
        let deaf = Connection::to(hop, &server, "deaf").await;
        // As much as is taken: the server reads none of it.
        let piece = vec![0; 60_000];
        while tokio::time::timeout(std::time::Duration::from_millis(500), deaf.send(&piece)).await.is_ok() {}
        unread.push(deaf);
    }
    let mut connection = Connection::to(hop, &server, "echo").await;
    let sent = pattern(1 << 20);
    for piece in sent.chunks(1 << 16) {
        connection.send(piece).await;
        assert_eq!(connection.read(piece.len()).await, piece);
    }
    assert_eq!(hop.run(argv(&["echo", "alive"])).await.ok(), "alive");
    // A server that was not read from says what it got rid of. Each hop holds at most a window of 2 MiB and a little.
    let task = server.task.as_ref().expect("a real one");
    let floods = berth_tests::until(DEADLINE, "the floods to stand still", async || {
        let text = hop.output(task).await;
        let sent: Vec<u64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("flood end "))
            .map(|sent| sent.parse().expect("a number"))
            .collect();
        (sent.len() == UNREAD).then_some(sent)
    })
    .await;
    assert!(floods.iter().all(|sent| *sent < 24 << 20), "{floods:?}");
}

/// What listens on the machine is not what listens in the session.
pub async fn the_machines_own_ports_are_not_there(hop: &Hop) {
    let own = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
    let port = own.local_addr().expect("an address").port();
    let error = dial(hop, port.into()).await.err().expect("nobody listens there inside");
    assert_eq!(reason_of(&error), Some(Reason::PortClosed));
}
