//! Tests of one session's way out as a client has it: over real sockets, and on the paused clock, which goes on only when
//! nobody has anything left to do. So "no answer within an hour" is known at once, and without a race.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    Epoch, SessionId,
    domain::{Egress, Preset},
    spawn::spawn,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Exits, PER_SESSION, Settings, Shared, Who, accept, conversation::SAY_WITHIN, listen};
use crate::{link::outbox::Outbox, sessions::Desired};

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(3600);
/// Refused at once: it needs neither a rule nor a name.
const NO_HTTP: &[u8] = b"\x16\x03\x01\r\n\r\n";

/// The way out of one session.
struct Way {
    dir: TempDir,
    wanted: watch::Sender<Desired>,
    _stop: DropGuard,
}

impl Way {
    fn open(shared: &Arc<Shared>, allow: &[&str]) -> Self {
        let egress =
            Egress { preset: Preset::None, allow: allow.iter().map(|r| r.parse().unwrap()).collect() };
        let desired = Desired { paused: false, expires: None, expires_at: None, idle_timeout: None, egress };
        let (wanted, receiver) = watch::channel(desired);
        let dir = TempDir::new().unwrap();
        let who = Who { session: SessionId::new(), epoch: Epoch(1) };
        let stop = CancellationToken::new();
        spawn("egress", accept(shared.clone(), who, listen(dir.path()).unwrap(), receiver, stop.clone()));
        Self { dir, wanted, _stop: stop.drop_guard() }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join(berth_proto::agent_config::DOOR_NAME)).await.unwrap()
    }

    async fn say(&self, words: &[u8]) -> UnixStream {
        let mut client = self.connect().await;
        client.write_all(words).await.unwrap();
        client
    }
}

fn shared(hosts: &[(&str, &str)], exempt: &[String]) -> Arc<Shared> {
    let settings = Settings {
        hosts: hosts.iter().map(|(name, at)| ((*name).to_owned(), at.parse().unwrap())).collect(),
        exempt: exempt.iter().map(|target| target.parse().unwrap()).collect(),
        ..Settings::default()
    };
    Exits::new(&settings, Arc::new(Outbox::default()), Arc::default()).shared
}

/// All that comes, to the end.
async fn heard(client: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    timeout(LONG, client.read_to_end(&mut bytes)).await.expect("it ends").unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether anything comes, its end included.
async fn is_answered(client: &mut UnixStream, within: Duration) -> bool {
    timeout(within, client.read(&mut [0])).await.is_ok()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Red when `accept` waits for no place of the session's own: the one too many is answered.
#[tokio::test(start_paused = true)]
async fn a_session_has_so_many_connections_and_no_more() {
    let way = Way::open(&shared(&[], &[]), &[]);
    let mut held = Vec::new();
    for _ in 0..PER_SESSION {
        held.push(way.say(b"GET ").await);
    }
    let mut more = way.say(NO_HTTP).await;
    assert!(!is_answered(&mut more, SAY_WITHIN / 2).await, "it is one too many");
    held.pop();
    assert!(is_answered(&mut more, SAY_WITHIN / 4).await, "there is a place again");
}

/// Red when `accept` waits for no place of the worker's: the session beside is answered.
#[tokio::test(start_paused = true)]
async fn all_sessions_together_have_so_many_connections_and_no_more() {
    let mut all = shared(&[], &[]);
    Arc::get_mut(&mut all).expect("nobody has it yet").places = Arc::new(Semaphore::new(3));
    let (one, other) = (Way::open(&all, &[]), Way::open(&all, &[]));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(one.say(b"GET ").await);
    }
    // Taken in this order: those of the other session come last.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut more = other.say(NO_HTTP).await;
    assert!(!is_answered(&mut more, SAY_WITHIN / 2).await, "it is one too many");
    held.pop();
    assert!(is_answered(&mut more, SAY_WITHIN / 4).await, "there is a place again");
}

/// Red without the deadline around `read_request`, and without the one around `read_hello`.
#[tokio::test(start_paused = true)]
async fn what_is_not_said_in_time_is_not_waited_for() {
    let (server, port) = listener().await;
    let way = Way::open(
        &shared(&[("a.test", "127.0.0.1")], &[format!("a.test:{port}")]),
        &[&format!("a.test:{port}")],
    );
    for words in ["", "GET http://a.te"] {
        let begun = Instant::now();
        let answer = heard(&mut way.say(words.as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{words:?}: {answer}");
        assert!(begun.elapsed() >= SAY_WITHIN, "{:?}", begun.elapsed());
    }
    // A byte now and then is no request either.
    let begun = Instant::now();
    let mut slow = way.connect().await;
    let trickle = async {
        loop {
            if slow.write_all(b"G").await.is_err() {
                return;
            }
            tokio::time::sleep(SAY_WITHIN / 4).await;
        }
    };
    timeout(LONG, trickle).await.expect("it is closed");
    assert!(begun.elapsed() < SAY_WITHIN * 2, "{:?}", begun.elapsed());

    let mut tunnel = way.say(format!("CONNECT a.test:{port} HTTP/1.1\r\n\r\n\x16\x03").as_bytes()).await;
    let answer = heard(&mut tunnel).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    let (mut there, _) = server.accept().await.unwrap();
    let mut bytes = Vec::new();
    timeout(LONG, there.read_to_end(&mut bytes)).await.expect("it is closed").unwrap();
    assert!(bytes.is_empty(), "not a byte got there");
}

/// A look-up is a message, too. Red when the look-up comes before the decision; and red when the connection is made to the
/// name, which is looked up once more then, and may have another address by that time.
#[tokio::test(start_paused = true)]
async fn only_what_is_allowed_is_looked_up_and_only_once() {
    let (server, port) = listener().await;
    let shared = shared(&[("a.test", "127.0.0.1"), ("b.test", "127.0.0.1")], &[format!("a.test:{port}")]);
    let way = Way::open(&shared, &[&format!("a.test:{port}")]);
    let ask = |host: &str| format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    let refused = heard(&mut way.say(ask("b.test").as_bytes()).await).await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    assert_eq!(shared.resolver.asked(), 0, "it was not for looking up");
    let mut client = way.say(ask("a.test").as_bytes()).await;
    let (mut there, _) = timeout(LONG, server.accept()).await.expect("it comes").unwrap();
    assert_eq!(shared.resolver.asked(), 1);
    there.write_all(b"answer").await.unwrap();
    drop(there);
    assert_eq!(heard(&mut client).await, "answer");
}

/// Red when only the first of a name's addresses is looked at.
#[tokio::test(start_paused = true)]
async fn each_address_of_a_name_is_looked_at() {
    let (server, port) = listener().await;
    let hosts = [("two.test", "10.1.2.3"), ("two.test", "127.0.0.1"), ("two.test", "::ffff:127.0.0.1")];
    let way = Way::open(&shared(&hosts, &[]), &[&format!("two.test:{port}")]);
    let ask = format!("GET http://two.test:{port}/ HTTP/1.1\r\nHost: two.test:{port}\r\n\r\n");
    let refused = heard(&mut way.say(ask.as_bytes()).await).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("10.1.2.3 is a private"), "{refused}");
    assert!(timeout(LONG, server.accept()).await.is_err(), "somebody came");
}

/// Red when `revoked` never returns, and when it does not look again at what is open.
#[tokio::test(start_paused = true)]
async fn what_a_new_policy_forbids_is_cut() {
    let (server, port) = listener().await;
    let way = Way::open(
        &shared(&[("a.test", "127.0.0.1")], &[format!("a.test:{port}")]),
        &[&format!("a.test:{port}")],
    );
    let ask = format!("GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n");
    let mut client = way.say(ask.as_bytes()).await;
    let (_there, _) = timeout(LONG, server.accept()).await.expect("it comes").unwrap();
    way.wanted.send_modify(|desired| desired.paused = true);
    assert!(!is_answered(&mut client, SAY_WITHIN).await, "another change is nothing to it");
    way.wanted.send_modify(|desired| desired.egress.allow.clear());
    assert_eq!(heard(&mut client).await, "");
}
