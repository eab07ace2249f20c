//! The same servers by HTTP, at the gateway: by host name, with a token or open to everybody.

use berth_client::UpdateOptions;
use berth_tests::http::{Http, Reply, gateway};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

const SERVER: &str = include_str!("server.py");
/// Of a download or an upload: more than everything between its ends holds.
const LARGE: usize = 24 << 20;

/// A cluster, and a session with a server in it.
struct Site {
    cluster: Cluster,
    address: String,
    id: String,
    port: u16,
}

async fn site(sandbox: &str) -> Site {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let id = cluster.session().await.id;
    let port = serve(&cluster, &id, &["python3", "-u", "-c", SERVER]).await;
    let address = gateway(&cluster).await;
    Site { cluster, address, id, port }
}

impl Site {
    fn host(&self) -> String {
        format!("{}-{}.localhost", self.port, self.id)
    }

    /// Who shows nothing.
    fn stranger(&self) -> Http {
        Http::new(&self.address, "").with("Authorization", "").with("Host", &self.host())
    }

    fn owner(&self) -> Http {
        self.stranger().with("X-Berth-Token", &self.cluster.admin_token)
    }
}

/// Where the gateway of a coordinator that was started a second time listens.
async fn gateway_again(cluster: &Cluster) -> String {
    until(READY, "the gateway", async || {
        let log = cluster.coordinator.log();
        let told: Vec<&str> = log.split("MCP is served on http://").skip(1).collect();
        let [_, second] = &told[..] else { return None };
        second.split_once("/mcp").map(|(address, _)| address.to_owned())
    })
    .await
}

async fn token(cluster: &Cluster, tenant: &str) -> (String, String) {
    let args = ["token", "create", "--tenant", tenant, "--format", "json"];
    let made: Value = serde_json::from_str(&cluster.berth(&args).await.ok()).expect("JSON");
    (made["id"].as_str().expect("an id").to_owned(), made["value"].as_str().expect("a token").to_owned())
}

/// A connection with a request on its way, read as it comes.
struct Open {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Open {
    async fn send(http: &Http, request: &str) -> Self {
        let mut stream = TcpStream::connect(&http.address).await.expect("it listens");
        let fields: String =
            http.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        stream.write_all(format!("{request} HTTP/1.1\r\n{fields}\r\n").as_bytes()).await.expect("it reads");
        Self { stream, heard: Vec::new() }
    }

    /// Reads until this has come.
    async fn until(&mut self, end: &[u8]) -> String {
        let all = async {
            while !self.heard.windows(end.len()).any(|window| window == end) {
                assert_ne!(self.stream.read_buf(&mut self.heard).await.expect("it goes on"), 0, "{self:?}");
            }
        };
        tokio::time::timeout(READY, all).await.expect("in time");
        String::from_utf8_lossy(&self.heard).into_owned()
    }

    /// The end of the connection.
    async fn ended(mut self) {
        let mut rest = [0; 1 << 12];
        let end = async { while !matches!(self.stream.read(&mut rest).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(READY, end).await.expect("it ends");
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.heard))
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is told of a failure.
fn said(reply: &Reply) -> (u16, Value) {
    (reply.status, serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("{reply:?}")))
}

/// What an application does. Red when the gateway holds an answer back, changes what is said, or shows the server what is ours.
async fn an_application_is_reached_by_its_host_name(sandbox: &str) {
    let site = site(sandbox).await;
    let owner = || site.owner();
    let reply = owner().send("GET", "/a%20b/../c?x=1&y=%2F", "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello /a%20b/../c?x=1&y=%2F"));
    let head = owner().send("HEAD", "/big/1000000000", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.headers["content-length"], "1000000000");
    let moved = owner().send("GET", "/cookie", "").await;
    assert_eq!((moved.status, moved.headers["location"].as_str()), (302, "/next?x=%20"));
    assert_eq!((moved.headers["set-cookie"].as_str(), moved.headers["x-own"].as_str()), ("a=b; Path=/", "1"));
    assert!(!moved.headers.contains_key("keep-alive"), "{moved:?}");

    // What the server is told: all that is for it, and nothing with which it could act as its caller.
    let mut asking = owner().with("Authorization", "Bearer the-application's-own").with("Cookie", "c=d");
    asking.headers.push(("X-API-KEY".into(), site.cluster.admin_token.clone()));
    asking.headers.push(("X-Forwarded-For".into(), "192.0.2.1".into()));
    let told = asking.send("GET", "/told", "").await;
    assert!(!told.body.contains("berth_"), "{told:?}");
    let told: Vec<(String, String)> = serde_json::from_str(&told.body).expect("JSON");
    let field = |name: &str| told.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let host = site.host();
    for (name, expected) in [
        ("host", Some(host.as_str())),
        ("x-forwarded-host", Some(&host)),
        ("x-forwarded-for", Some("192.0.2.1, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("authorization", Some("Bearer the-application's-own")),
        ("cookie", Some("c=d")),
        ("x-api-key", None),
        ("x-berth-token", None),
    ] {
        assert_eq!(field(name), expected, "{name}: {told:?}");
    }

    // Large ones, both ways at once: with a length, and in pieces.
    let down = owner();
    let down = down.send("GET", "/big/25165824", "");
    let body = "0123456789abcdef".repeat(LARGE / 16);
    let up = owner();
    let up = up.send("PUT", "/sum", &body);
    let (down, up) = tokio::join!(down, up);
    assert_eq!((down.status, down.body.len()), (200, LARGE));
    assert!(down.body.as_bytes().iter().enumerate().all(|(at, byte)| *byte == 33 + (at % 64) as u8));
    let sum = sha256(body.as_bytes());
    assert_eq!((up.status, up.body), (201, format!("PUT {LARGE} {sum}")));
    let mut chunked = Open::send(&owner().with("Transfer-Encoding", "chunked"), "POST /sum").await;
    for _ in 0..10 {
        chunked.stream.write_all(b"5\r\nhello\r\n").await.expect("it reads");
    }
    chunked.stream.write_all(b"0\r\n\r\n").await.expect("it reads");
    let sum = sha256("hello".repeat(10).as_bytes());
    chunked.until(format!("POST 50 {sum}").as_bytes()).await;

    // Events as they happen: the server says the next when the last has been seen.
    let mut events = Open::send(&owner(), "GET /events").await;
    for n in 0..3 {
        events.until(format!("data: {n}\n\n").as_bytes()).await;
        assert_eq!(owner().send("GET", "/go", "").await.status, 200);
    }
    events.until(b"0\r\n\r\n").await;
    site.cluster.stop().await;
}
on_both!(an_application_is_reached_by_its_host_name:
    native_an_application_is_reached_by_its_host_name,
    docker_an_application_is_reached_by_its_host_name);

fn frame(first: u8, text: &[u8]) -> Vec<u8> {
    let mask = [7, 11, 13, 17];
    let mut bytes = vec![first];
    match u8::try_from(text.len()) {
        Ok(short @ ..=125) => bytes.push(0x80 | short),
        _ => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(text.len()).expect("short").to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(text.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

/// A real handshake, and frames both ways for as long as both want. Red when it is held up, is taken for HTTP, or goes on after
/// the session.
async fn a_web_socket_is_carried_both_ways(sandbox: &str) {
    let site = site(sandbox).await;
    let asking = |http: Http| {
        http.with("Connection", "keep-alive, Upgrade")
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Version", "13")
            .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let begin = async || {
        let mut open = Open::send(&asking(site.owner()), "GET /ws").await;
        let head = open.until(b"\r\n\r\n").await.to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        open.heard.clear();
        open
    };
    let (mut one, mut two) = (begin().await, begin().await);
    for text in ["first", "second"] {
        for open in [&mut one, &mut two] {
            open.stream.write_all(&frame(0x81, text.as_bytes())).await.expect("it is open");
            open.until(text.as_bytes()).await;
        }
    }
    let long = vec![b'x'; 60_000];
    one.stream.write_all(&frame(0x82, &long)).await.expect("it is open");
    one.until(&long).await;
    // A close is answered with one, and ends the connection.
    one.stream.write_all(&frame(0x88, b"\x03\xe8")).await.expect("it is open");
    one.until(b"\x88\x02\x03\xe8").await;
    one.ended().await;
    // Without a token there is none; and the session's end is the other's.
    let mut refused = Open::send(&asking(site.stranger()), "GET /ws").await;
    assert!(refused.until(b"\r\n\r\n").await.starts_with("HTTP/1.1 401 "));
    delete(&site.cluster, &site.id).await;
    two.ended().await;
    site.cluster.stop().await;
}
on_both!(a_web_socket_is_carried_both_ways:
    native_a_web_socket_is_carried_both_ways,
    docker_a_web_socket_is_carried_both_ways);

/// Red when something opens a port that must not, or an answer tells a stranger what there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_open_to_whom_it_was_opened() {
    if berth_tests::skip::without_root("e2e a_port_is_open_to_whom_it_was_opened") {
        return;
    }
    let mut site = site("native").await;
    let ((own_id, own), (_, other)) =
        (token(&site.cluster, "team-a").await, token(&site.cluster, "team-b").await);
    // One of a tenant's, by E2B's API, and with a server in it.
    let control =
        |token: &str| Http::new(&site.address, "").with("Authorization", "").with("X-API-KEY", token);
    let make = async |token: &str, network: Value| {
        let body = json!({"templateID": "base", "timeout": 600, "network": network});
        let made = control(token).send("POST", "/v2/sandboxes", &body.to_string()).await;
        assert_eq!(made.status, 201, "{made:?}");
        serde_json::from_str::<Value>(&made.body).expect("JSON")
    };
    let made = make(&own, json!({"allowPublicTraffic": false})).await;
    let id = made["sandboxID"].as_str().expect("an id").to_owned();
    let port = serve(&site.cluster, &id, &["python3", "-u", "-c", SERVER]).await;
    let at = |id: &str, port: u16| {
        let host = format!("{port}-{id}.example.org");
        Http::new(&site.address, "").with("Authorization", "").with("Host", &host)
    };
    let traffic = made["trafficAccessToken"].as_str().expect("a token");
    let access = made["envdAccessToken"].as_str().expect("a token");
    let key = format!("e2b_{}", own.bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
    for (field, value) in [
        ("E2b-Traffic-Access-Token", traffic),
        ("X-Access-Token", access),
        ("X-API-KEY", &key),
        ("X-Berth-Token", &own),
        ("Authorization", &format!("Bearer {own}")),
    ] {
        let reply = at(&id, port).with(field, value).send("GET", "/told", "").await;
        assert_eq!(reply.status, 200, "{field}: {reply:?}");
        assert!(!reply.body.contains(value) && !reply.body.contains("berth_"), "{field}: {reply:?}");
    }
    let by_headers = control("").with("E2b-Sandbox-Id", &id).with("E2b-Sandbox-Port", &port.to_string());
    let reply = by_headers.with("E2b-Traffic-Access-Token", traffic).send("GET", "/", "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "hello /"));

    // Strangers, who learn nothing of what there is.
    let nowhere = berth_client::SessionId::new().to_string();
    let second = make(&own, json!({})).await;
    for (field, value) in [
        ("Cookie", "a=b"),
        ("X-Berth-Token", "berth_client_00"),
        ("X-Berth-Token", "hello"),
        ("Authorization", "Bearer berth_client_00"),
        ("E2b-Traffic-Access-Token", second["trafficAccessToken"].as_str().expect("a token")),
        ("X-Access-Token", second["envdAccessToken"].as_str().expect("a token")),
    ] {
        let there = said(&at(&id, port).with(field, value).send("GET", "/", "").await);
        assert_eq!(there.0, 401, "{field}: {there:?}");
        assert_eq!(said(&at(&nowhere, port).with(field, value).send("GET", "/", "").await), there, "{field}");
    }
    for id in [&id, &nowhere, "x"] {
        let reply = said(
            &at(&nowhere, port)
                .with("E2b-Sandbox-Id", id)
                .with("Host", &site.address)
                .with("E2b-Sandbox-Port", &port.to_string())
                .with("X-Berth-Token", &other)
                .send("GET", "/", "")
                .await,
        );
        assert_eq!(
            reply,
            (502, json!({"sandboxId": id, "message": "The sandbox was not found", "code": 502}))
        );
    }
    // What opens ports opens nothing else.
    let files =
        at(&id, 49983).with("X-Access-Token", traffic).send("GET", "/files?path=/etc/passwd", "").await;
    assert_eq!(files.status, 401, "{files:?}");

    // Opened to everybody by its owner, which a page of another sandbox can't make use of for this one by a header.
    let anybody = async || at(&id, port).send("GET", "/", "").await.status;
    let opened = |open: bool| json!({"allowPublicTraffic": open}).to_string();
    let network = format!("/sandboxes/{id}/network");
    assert_eq!(control(&own).send("PUT", &network, &opened(true)).await.status, 204);
    assert_eq!(anybody().await, 200);
    let crossed =
        at(&site.id, site.port).with("E2b-Sandbox-Id", &id).with("E2b-Sandbox-Port", &port.to_string());
    assert_eq!(crossed.send("GET", "/", "").await.status, 401);
    // A restart forgets nothing.
    site.cluster.restart_coordinator().await;
    site.cluster.workers_ready().await;
    site.address = gateway_again(&site.cluster).await;
    let at = |id: &str, port: u16| {
        let host = format!("{port}-{id}.example.org");
        Http::new(&site.address, "").with("Authorization", "").with("Host", &host)
    };
    let control =
        |token: &str| Http::new(&site.address, "").with("Authorization", "").with("X-API-KEY", token);
    let anybody = async || at(&id, port).send("GET", "/", "").await;
    let is = async |status: u16| {
        until(READY, "the port's state", async || (anybody().await.status == status).then_some(())).await;
    };
    is(200).await;
    // What opens one session opens no other, whoever writes it there.
    let sealed = state(&site.cluster, &id).await.labels["ports.public"].clone();
    assert!(sealed.starts_with("berth_public_"), "{sealed}");
    let change = UpdateOptions::new().label("ports.public", &sealed);
    session(&site.cluster, &site.id).await.update(change).await.expect("a label");
    assert_eq!(at(&site.id, site.port).send("GET", "/", "").await.status, 401);
    let shown = at(&id, port).with("E2b-Traffic-Access-Token", &sealed).send("GET", "/", "").await;
    assert_eq!(shown.status, 401, "{shown:?}");
    // Closed, opened again, and over with the token of who opened it.
    assert_eq!(control(&own).send("PUT", &network, &opened(false)).await.status, 204);
    is(401).await;
    assert_eq!(control(&own).send("PUT", &network, &opened(true)).await.status, 204);
    is(200).await;
    site.cluster.berth(&["token", "revoke", &own_id]).await.ok();
    is(401).await;
    let late = at(&id, port).with("E2b-Traffic-Access-Token", traffic).send("GET", "/", "").await;
    assert_eq!(late.status, 401, "{late:?}");
    site.cluster.stop().await;
}

/// Red when what fails in a sandbox looks like an answer, hangs, or takes the place of what works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_told_and_takes_no_place() {
    if berth_tests::skip::without_root("e2e what_fails_is_told_and_takes_no_place") {
        return;
    }
    let site = site("native").await;
    let at = |port: &str| site.owner().with("Host", &format!("{port}-{}.localhost:1", site.id));
    let closed = json!({
        "sandboxId": site.id, "message": "The sandbox is running but port is not open", "port": 1, "code": 502
    });
    assert_eq!(said(&at("1").send("GET", "/", "").await), (502, closed));
    for bad in ["0", "65536", "99999999999"] {
        assert_eq!(at(bad).send("GET", "/", "").await.status, 400, "{bad}");
    }
    // One that speaks no HTTP.
    let echo = serve(&site.cluster, &site.id, &["python3", "-c", ECHO]).await;
    let (status, text) = said(&at(&echo.to_string()).send("GET", "/", "").await);
    assert_eq!((status, &text["port"]), (502, &json!(echo)), "{text}");
    assert!(text["message"].as_str().expect("text").contains("no HTTP"), "{text}");

    // Streams that their clients leave, many more than a session has places for: each gives its place back.
    for _ in 0..3 {
        let begin = (0..PORT_CONNECTIONS).map(async |_| {
            until(READY, "a place", async || {
                let mut open = Open::send(&site.owner(), "GET /hold").await;
                open.until(b"\r\n\r\n").await.starts_with("HTTP/1.1 200 ").then_some(open)
            })
            .await
        });
        let open = futures::future::join_all(begin).await;
        let more = site.owner().send("GET", "/", "").await;
        assert_eq!(more.status, 429, "{more:?}");
        drop(open);
        until(READY, "a place", async || {
            (site.owner().send("GET", "/", "").await.status == 200).then_some(())
        })
        .await;
    }

    // A session that ends under a request, and is gone for the next.
    let mut open = Open::send(&site.owner(), "GET /events").await;
    open.until(b"data: 0").await;
    delete(&site.cluster, &site.id).await;
    open.ended().await;
    let gone = json!({"sandboxId": site.id, "message": "The sandbox was not found", "code": 502});
    assert_eq!(said(&site.owner().send("GET", "/", "").await), (502, gone));
    site.cluster.stop().await;
}
