//! Peers without a token that mean ill: hand-written HTTP/2 over a TCP connection to a real coordinator. After each the
//! coordinator serves others, a worker's link is up, and the attacker's connection is closed or holds what is bounded.
//! What is counted are frames and connections; the deadlines are only there so that a failure ends.

mod common;

use std::time::Duration;

use berth_coordinator::store::memory::MemoryStore;
use berth_proto::{
    Code, Reason,
    transport::{CLIENT_STREAMS, KEEPALIVE_EVERY, KEEPALIVE_TIMEOUT},
    v1,
};
use common::{Host, Puppet, SOON, failed, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// Why a connection ends that asks for too much (RFC 9113, 7).
const ENHANCE_YOUR_CALM: u32 = 0xb;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// What the attacks may cost in memory, all together (the coordinator is in this process).
const GROWTH: usize = 96 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The header block of a call, by HPACK without any compression.
fn call(path: &str) -> Vec<u8> {
    // :method POST and :scheme http are in the static table; :path is entry 4 of it, :authority entry 1.
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(4, path), (1, "localhost")] {
        block.extend_from_slice(&[index, u8::try_from(value.len()).unwrap()]);
        block.extend_from_slice(value.as_bytes());
    }
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.extend(literal(name, value));
    }
    block
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(u8::try_from(value.len()).unwrap());
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

fn health() -> Vec<u8> {
    call("/grpc.health.v1.Health/Check")
}

/// A connection of an attacker.
struct Raw(TcpStream);

impl Raw {
    async fn connect(host: &Host, settings: &[u8]) -> Self {
        let mut stream = TcpStream::connect(host.running.addr()).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
        Self(stream)
    }

    /// Sends until it is told to stop by the end of the connection. How much went out.
    async fn flood(&mut self, mut next: impl FnMut(u32) -> Vec<u8>, most: u32) -> u32 {
        for n in 0..most {
            let bytes = next(n);
            match tokio::time::timeout(SOON, self.0.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                // It is closed, or nobody reads any more: both are a bound.
                _ => return n,
            }
        }
        most
    }

    /// Reads to the end of the connection: the frames of each kind, and the code of a GOAWAY.
    async fn ended(mut self) -> Option<u32> {
        let (mut bytes, mut code) = (Vec::new(), None);
        let read = tokio::time::timeout(SOON, self.0.read_to_end(&mut bytes)).await.expect("it is closed");
        drop(read);
        let mut rest = &bytes[..];
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest[3] == GOAWAY && rest.len() >= 17 {
                code = Some(u32::from_be_bytes(rest[13..17].try_into().unwrap()));
            }
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        code
    }
}

/// A host with a worker, and what must go on whatever others do.
struct Harbour {
    host: Host,
    _worker: Puppet,
    before: usize,
}

impl Harbour {
    async fn open() -> Self {
        let host = Host::start().await;
        let worker = host.worker("w").await;
        let harbour = Self { host, _worker: worker, before: resident() };
        harbour.serves().await;
        harbour
    }

    /// A client's call, health, and a session that the worker makes ready: its link and the driver are alive.
    async fn serves(&self) {
        let all = async {
            let mut health = HealthClient::new(self.host.channel().await);
            health.check(HealthCheckRequest::default()).await.expect("health answers");
            let mut sessions = self.host.sessions().await;
            let session = sessions.create_session(v1::CreateSessionRequest::default()).await;
            let id = session.expect("a session").into_inner().id;
            let request = v1::DeleteSessionRequest { session_id: id, ..Default::default() };
            sessions.delete_session(request).await.expect("its end");
            let request = v1::GetWorkerRequest { worker_id: "w".into() };
            let worker = self.host.fleet().await.get_worker(request).await.expect("the worker").into_inner();
            assert_eq!(worker.liveness(), v1::Liveness::Alive, "its heartbeats come");
        };
        tokio::time::timeout(SOON, all).await.expect("others are served");
    }

    fn grew(&self) {
        let grown = resident().saturating_sub(self.before);
        assert!(grown < GROWTH, "{} MiB more", grown >> 20);
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// CVE-2023-44487: streams that are opened and reset at once. Red when `http2_max_pending_accept_reset_streams` is without
/// bound (`None` is hyper's own; usize::MAX shows it).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let harbour = Harbour::open().await;
    let mut attacker = Raw::connect(&harbour.host, &[]).await;
    let burst = |n: u32| {
        let mut bytes = Vec::new();
        for stream in (0..1000).map(|k| (n * 1000 + k) * 2 + 1) {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &health()));
            bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        bytes
    };
    let sent = attacker.flood(burst, 50).await;
    assert!(sent < 50, "all of it was taken");
    harbour.serves().await;
    harbour.grew();
}

/// Requests that are wrong, each of which costs us a reset: a header that HTTP/2 does not have. Red when
/// `http2_max_local_error_reset_streams` is h2's own (1024).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn making_us_reset_streams_ends_the_connection() {
    let harbour = Harbour::open().await;
    let mut attacker = Raw::connect(&harbour.host, &[]).await;
    let wrong = [health(), literal("connection", "x")].concat();
    // Fewer than h2 takes by itself.
    for stream in (0..900).map(|n| n * 2 + 1) {
        if attacker.0.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &wrong)).await.is_err() {
            break;
        }
    }
    let code = attacker.ended().await;
    assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
    harbour.serves().await;
}

/// CVE-2024-24549 and its kin: a header block that never ends. Red when nothing bounds it (h2 does by the header list).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_continuations_end_the_connection() {
    let harbour = Harbour::open().await;
    for size in [0, 1, 16_000] {
        let mut attacker = Raw::connect(&harbour.host, &[]).await;
        let begin = frame(HEADERS, 0, 1, &health());
        attacker.0.write_all(&begin).await.unwrap();
        // A header's value that goes on and on: 0x7f 0xff.. says "as long as you like".
        let more = vec![0; size];
        let sent = attacker.flood(|_| frame(CONTINUATION, 0, 1, &more), 20_000).await;
        let code = attacker.ended().await;
        assert!(sent < 20_000 || code.is_some(), "{size}: all of it was taken");
    }
    harbour.serves().await;
    harbour.grew();
}

/// Red with a larger `http2_max_header_list_size`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_beyond_the_bound_are_refused() {
    let harbour = Harbour::open().await;
    let mut client = HealthClient::new(harbour.host.channel().await);
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x", "y".repeat(20_000).parse().unwrap());
    client.check(request).await.expect_err("too much");
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.metadata_mut().insert("x", "y".repeat(4_000).parse().unwrap());
    client.check(request).await.expect("that much is fine");
}

/// Windows of zero, and nobody reads: what waits to be sent is bounded by the streams of a connection. Red without
/// `max_concurrent_streams`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_windows_hold_no_more_than_a_connection_s_streams() {
    let harbour = Harbour::open().await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    let mut attacker = Raw::connect(&harbour.host, &[0, 4, 0, 0, 0, 0]).await;
    let watch = call("/grpc.health.v1.Health/Watch");
    let body = frame(DATA, END_STREAM, 0, &[0, 0, 0, 0, 0]);
    let most = CLIENT_STREAMS * 4;
    let open = |n: u32| {
        let stream = n * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &watch);
        let mut body = body.clone();
        body[5..9].copy_from_slice(&stream.to_be_bytes());
        bytes.extend(body);
        bytes
    };
    attacker.flood(open, most).await;
    // Beyond the bound streams are refused (REFUSED_STREAM), and the connection may be ended for it.
    let (mut refused, mut bytes) = (0, vec![0; 64 << 10]);
    let mut seen = Vec::new();
    let reading = async {
        while refused < CLIENT_STREAMS {
            match attacker.0.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(n) => seen.extend_from_slice(&bytes[..n]),
            }
            refused = 0;
            let mut rest = &seen[..];
            while rest.len() >= 9 {
                let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
                if rest.len() >= 13 && rest[3] == RST_STREAM && rest[9..13] == 7u32.to_be_bytes() {
                    refused += 1;
                }
                rest = rest.get(9 + length..).unwrap_or_default();
            }
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("streams beyond the bound are refused, or the connection ends");
    harbour.serves().await;
    harbour.grew();
}

/// Much ado about nothing: pings that want an answer, settings that want one, a byte a frame, and nobody reads the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_small_frames_are_not_kept() {
    let harbour = Harbour::open().await;
    let floods: [&dyn Fn(u32) -> Vec<u8>; 4] = [
        &|_| frame(PING, 0, 0, &[0; 8]),
        &|_| frame(SETTINGS, 0, 0, &[]),
        &|_| frame(DATA, 0, 1, &[0]),
        &|_| frame(DATA, 0, 1, &[]),
    ];
    let mut attackers = Vec::new();
    for flood in floods {
        let mut attacker = Raw::connect(&harbour.host, &[]).await;
        // A call without a token and without an end.
        let begin = frame(HEADERS, END_HEADERS, 1, &call("/berth.v1.FileService/Write"));
        attacker.0.write_all(&begin).await.unwrap();
        let many = |n: u32| (0..1000).flat_map(|_| flood(n)).collect();
        let writing = attacker.flood(many, 100);
        // Others are served while it goes on.
        tokio::join!(writing, harbour.serves());
        attackers.push(attacker);
    }
    harbour.serves().await;
    harbour.grew();
}

/// A client that says nothing more after its preface, and answers no ping. Red without keepalive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_no_ping_is_closed() {
    let host = Host::start().await;
    let attacker = Raw::connect(&host, &[]).await;
    let patience = KEEPALIVE_EVERY + KEEPALIVE_TIMEOUT + SOON;
    let mut stream = attacker.0;
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(patience, stream.read_to_end(&mut bytes)).await;
    assert!(ended.is_ok(), "it is held for ever");
}

/// Connections that take no part in anything, as many as one address may have (the good ones here come from the same). Red
/// without the deadline in `net/src/listen.rs`; that more of them are closed at once is shown in `net/tests/doors.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_bounded_and_in_nobody_s_way() {
    let harbour = Harbour::open().await;
    let mut held = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(harbour.host.running.addr()).await.unwrap();
        stream.write_all(&PREFACE[..n % 8]).await.unwrap();
        held.push(stream);
    }
    harbour.serves().await;
    for stream in &mut held {
        let mut byte = [0];
        let ended = tokio::time::timeout(SOON, stream.read(&mut byte)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    }
    harbour.grew();
}

/// Calls beyond the bound are refused at once, and what must get through does. Red without `Room` around the services;
/// and with an empty `VITAL` the end of a session is refused too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_calls_are_shed_but_not_what_must_get_through() {
    let store = std::sync::Arc::new(MemoryStore::default());
    let host = Host::start_with(store, |config| config.calls = 2).await;
    // No worker: who waits for a place waits.
    let waiting = v1::CreateSessionRequest {
        wait_for_place: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (mut sessions, request) = (host.sessions().await, waiting.clone());
        waiters.spawn(async move { sessions.create_session(request).await });
    }
    let list = async || host.sessions().await.list_sessions(v1::ListSessionsRequest::default()).await;
    let refused = until(|| async { list().await.err() }).await;
    failed::<()>(Err(refused), Code::Unavailable, Reason::Overloaded);
    HealthClient::new(host.channel().await).check(HealthCheckRequest::default()).await.expect("health");
    let request = v1::DeleteSessionRequest { session_id: "0".repeat(32), ..Default::default() };
    let ended = host.sessions().await.delete_session(request).await;
    failed(ended, Code::NotFound, Reason::SessionNotFound);
    let worker = host.worker("w").await;
    while waiters.join_next().await.is_some() {}
    list().await.expect("there is room again");
    drop(worker);
}

/// The frames of a connection as they come: kind, flags, stream, payload.
struct Frames {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Frames {
    fn of(raw: Raw) -> Self {
        Self { stream: raw.0, seen: Vec::new() }
    }

    /// `None`: the connection ended.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(head) = self.seen.get(..9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if self.seen.len() >= 9 + length {
                    let (kind, flags) = (head[3], head[4]);
                    let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
                    let payload = self.seen[9..9 + length].to_vec();
                    self.seen.drain(..9 + length);
                    return Some((kind, flags, stream, payload));
                }
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.seen.extend_from_slice(&bytes[..n]),
            }
        }
    }

    /// Answers pings, and does nothing else, until a frame is as it should be. `false`: the connection ended before.
    async fn until(&mut self, mut wanted: impl FnMut(u8, u8, u32) -> bool) -> bool {
        let waiting = async {
            while let Some((kind, flags, stream, payload)) = self.next().await {
                if kind == PING
                    && flags & ACK == 0
                    && self.stream.write_all(&frame(PING, ACK, 0, &payload)).await.is_err()
                {
                    return false;
                }
                if wanted(kind, flags, stream) {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(SOON, waiting).await.expect("it is not held for ever")
    }
}

/// A call with the whole of its request, which is empty.
fn asked(stream: u32, path: &str) -> Vec<u8> {
    let mut bytes = frame(HEADERS, END_HEADERS, stream, &call(path));
    bytes.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
    bytes
}

/// Who answers pings and never ends its request holds a call no longer than the bound. Red without `Patience` around the
/// services.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_never_comes_whole_is_ended() {
    let store = std::sync::Arc::new(MemoryStore::default());
    let host = Host::start_with(store, |config| config.patience.request = Duration::from_millis(300)).await;
    let worker = host.worker("w").await;
    let harbour = Harbour { host, _worker: worker, before: resident() };
    let begun = frame(HEADERS, END_HEADERS, 1, &health());
    let whole = [begun.clone(), frame(DATA, 0, 1, &[0; 5])].concat();
    let half = [begun.clone(), frame(DATA, 0, 1, &[0, 0, 0, 0, 9, 1])].concat();
    for request in [begun.clone(), whole, half] {
        let mut attacker = Raw::connect(&harbour.host, &[]).await;
        attacker.0.write_all(&request).await.unwrap();
        let mut frames = Frames::of(attacker);
        let over = |kind, flags, stream| stream == 1 && kind == HEADERS && flags & END_STREAM != 0;
        assert!(frames.until(over).await, "the call has an end, and the connection not");
    }
    // A byte now and then is no way round.
    let mut attacker = Raw::connect(&harbour.host, &[]).await;
    attacker.0.write_all(&begun).await.unwrap();
    let mut frames = Frames::of(attacker);
    let dripping = async {
        loop {
            frames.stream.write_all(&frame(DATA, 0, 1, &[0])).await.expect("the connection is kept");
            let next = tokio::time::timeout(Duration::from_millis(20), frames.next());
            if let Ok((HEADERS, flags, 1, _)) = next.await.map(|frame| frame.expect("the connection is kept"))
                && flags & END_STREAM != 0
            {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, dripping).await.expect("it is ended");
    // The worker's link, whose request never ends either, is up.
    harbour.serves().await;
}

/// An answer that its reader never takes is given up, also where pings are answered; one in which there is nothing to say
/// is not. Red without `Patience` around the services; red, too, when `waits` stays set for what was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_takes_is_given_up() {
    let store = std::sync::Arc::new(MemoryStore::default());
    let host = Host::start_with(store, |config| config.patience.still = Duration::from_millis(400)).await;
    let worker = host.worker("w").await;
    let harbour = Harbour { host, _worker: worker, before: resident() };
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    let shut = [0, 4, 0, 0, 0, 0];
    let watch = "/grpc.health.v1.Health/Watch";
    let opened = |stream| frame(WINDOW_UPDATE, 0, stream, &65_535u32.to_be_bytes());

    // One stream that is never read, and one that is, and has nothing more to say.
    let mut mixed = Raw::connect(&harbour.host, &shut).await;
    mixed.0.write_all(&[asked(1, watch), asked(3, watch), opened(3)].concat()).await.unwrap();
    let mut mixed = Frames::of(mixed);
    assert!(mixed.until(|kind, _, stream| kind == DATA && stream == 3).await, "it is told how health is");

    // Nothing else on its connection: that is closed. By then the older one was given up, too.
    let mut alone = Raw::connect(&harbour.host, &shut).await;
    alone.0.write_all(&asked(1, watch)).await.unwrap();
    assert!(!Frames::of(alone).until(|_, _, _| false).await);

    // A window of a byte: all of the answer is HTTP/2's to send, and the call itself is over.
    let mut dripping = Raw::connect(&harbour.host, &[0, 4, 0, 0, 0, 1]).await;
    dripping.0.write_all(&asked(1, "/grpc.health.v1.Health/Check")).await.unwrap();
    assert!(!Frames::of(dripping).until(|_, _, _| false).await);

    // Its reader comes back, and is told. The other one lives on.
    mixed.stream.write_all(&opened(1)).await.unwrap();
    let mut other_ended = false;
    let told = mixed.until(|kind, flags, stream| {
        other_ended |= stream == 3 && (kind == RST_STREAM || flags & END_STREAM != 0);
        stream == 1 && kind == HEADERS && flags & END_STREAM != 0
    });
    assert!(told.await, "the connection is kept for the other stream's sake");
    assert!(!other_ended, "what has nothing to say is not given up");

    // Too many of them, and the connection is closed for all.
    let mut crowd = Raw::connect(&harbour.host, &shut).await;
    let many: Vec<u8> = (1..=10).flat_map(|n| asked(2 * n + 1, watch)).collect();
    crowd.0.write_all(&[asked(1, watch), opened(1), many].concat()).await.unwrap();
    assert!(!Frames::of(crowd).until(|_, _, _| false).await);
    harbour.serves().await;
    harbour.grew();
}
