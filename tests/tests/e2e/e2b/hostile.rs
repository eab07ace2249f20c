//! What no SDK sends: on the wire, against sandboxes without isolation, since all of it ends before one.

use std::{collections::HashMap, time::Duration};

use berth_tests::{Cluster, Setup, http::gateway as address};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::key;

/// One answer, whose body may be any bytes.
pub(super) struct Reply {
    pub status: u16,
    body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The messages of a stream, each with its flags.
    fn frames(&self) -> Vec<(u8, Value)> {
        let mut rest = &self.body[..];
        let mut frames = Vec::new();
        while let [flags, a, b, c, d, more @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            frames.push((*flags, serde_json::from_slice(&more[..length]).expect("JSON")));
            rest = &more[length..];
        }
        frames
    }

    /// The code of the error that a stream ends with.
    fn ends_with(&self) -> String {
        let frames = self.frames();
        let (flags, last) = frames.last().expect("a last frame");
        assert_eq!(*flags, 2, "{frames:?}");
        last["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(super) struct Wire {
    address: String,
    headers: HashMap<&'static str, String>,
}

impl Wire {
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), headers: HashMap::new() }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.to_owned());
        self
    }

    /// Another one with the same headers.
    pub fn again(&self) -> Self {
        Self { address: self.address.clone(), headers: self.headers.clone() }
    }

    /// What is sent is up to the caller, who says of what length it is.
    pub async fn raw(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).await.expect("it listens");
        let mut text = format!("{head} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{text}\r\n").as_bytes()).await.expect("it reads");
        // It may answer before it has read all.
        let _ = stream.write_all(body).await;
        stream
    }

    async fn reply(&self, mut stream: TcpStream) -> Reply {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes));
        // A connection that is closed with bytes unread is reset; what was answered came before.
        let _ = read.await.expect("an answer in time");
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_lowercase();
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        let mut rest = &bytes[end + 4..];
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
                let size =
                    std::str::from_utf8(&rest[..at]).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
                let Some(size) = size.filter(|size| *size > 0 && at + 2 + size <= rest.len()) else { break };
                body.extend_from_slice(&rest[at + 2..at + 2 + size]);
                rest = &rest[(at + 4 + size).min(rest.len())..];
            }
        } else {
            body = rest.to_vec();
        }
        Reply { status, body }
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Reply {
        let head = format!("{method} {path}");
        let wire = Wire { address: self.address.clone(), headers: self.headers.clone() }
            .with("Content-Type", kind)
            .with("Content-Length", &body.len().to_string());
        let stream = wire.raw(&head, body).await;
        wire.reply(stream).await
    }

    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.send(method, path, "application/json", body.to_string().as_bytes()).await
    }

    /// A request that is a stream, of one message.
    async fn stream(&self, path: &str, message: &Value) -> Reply {
        self.send("POST", path, STREAM, &frame(0, message.to_string().as_bytes())).await
    }
}

const STREAM: &str = "application/connect+json";
const START: &str = "/process.Process/Start";

fn frame(flags: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flags];
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

fn shell(line: &str) -> Value {
    json!({"process": {"cmd": "/bin/sh", "args": ["-c", line]}, "stdin": false})
}

struct Site {
    cluster: Cluster,
    control: Wire,
    sandbox: Wire,
    id: String,
}

async fn site() -> Site {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = address(&cluster).await;
    let control = Wire::new(&address).with("X-API-KEY", &key(&cluster, "default").await);
    let made = control.call("POST", "/v2/sandboxes", &json!({"templateID": "base"})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    let id = made["sandboxID"].as_str().unwrap().to_owned();
    let sandbox = Wire::new(&address)
        .with("E2b-Sandbox-Id", &id)
        .with("X-Access-Token", made["envdAccessToken"].as_str().unwrap());
    Site { cluster, control, sandbox, id }
}

/// Red when a frame's length is believed, a message is held without a bound, or one that is wrong ends more than its call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_lie_are_refused() {
    let Site { cluster, control, sandbox, .. } = site().await;
    let huge = [&[0u8, 0xff, 0xff, 0xff, 0xff][..], b"{}"].concat();
    assert_eq!(sandbox.send("POST", START, STREAM, &huge).await.ends_with(), "resource_exhausted");
    assert_eq!(sandbox.send("POST", START, STREAM, &frame(1, b"xxxx")).await.ends_with(), "unimplemented");
    assert_eq!(
        sandbox.send("POST", START, STREAM, &[0, 0, 0, 0, 9, b'{']).await.ends_with(),
        "deadline_exceeded"
    );
    for bad in [&b""[..], b"{", b"[]", b"{\"process\": 1}", b"\xff\xfe"] {
        let code = sandbox.send("POST", START, STREAM, &frame(0, bad)).await.ends_with();
        assert_eq!(code, "invalid_argument", "{bad:?}");
    }
    let deep = [b"{\"process\":".repeat(100_000), b"1".to_vec()].concat();
    assert_eq!(sandbox.send("POST", START, STREAM, &frame(0, &deep)).await.ends_with(), "invalid_argument");
    let long = vec![b' '; 5 << 20];
    let reply = sandbox.send("POST", "/process.Process/List", "application/json", &long).await;
    assert_eq!((reply.status, reply.json()["code"].as_str()), (413, Some("resource_exhausted")));
    assert_eq!(control.send("POST", "/sandboxes", "application/json", &long).await.status, 413);
    assert_eq!(sandbox.send("POST", START, "application/grpc", b"").await.ends_with(), "invalid_argument");
    assert_eq!(sandbox.send("POST", "/process.Process/List", "application/proto", b"").await.status, 415);
    let odd = json!({"process": {"pid": 1}, "input": {"stdin": "no base64!"}});
    assert_eq!(sandbox.call("POST", "/process.Process/SendInput", &odd).await.status, 404);
    let tag = json!({"process": {"tag": "x"}});
    assert_eq!(sandbox.call("POST", "/process.Process/SendInput", &tag).await.status, 501);
    assert_eq!(sandbox.call("POST", "/process.Process/NoSuch", &json!({})).await.status, 501);
    assert_eq!(sandbox.call("GET", "/process.Process/List", &json!({})).await.status, 405);
    // It goes on.
    let ran = sandbox.stream(START, &shell("echo fine; exit 3")).await;
    let frames = ran.frames();
    assert!(frames[0].1["event"]["start"]["pid"].as_u64().is_some_and(|pid| pid > 0), "{frames:?}");
    let end = frames.iter().find(|(_, frame)| !frame["event"]["end"].is_null()).expect("an end");
    assert_eq!(end.1["event"]["end"]["exitCode"], 3, "{frames:?}");
    assert_eq!(ran.ends_with(), "");
    cluster.stop().await;
}

/// Red when the server leaves time to its client: this one waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_call_is_the_servers_to_keep() {
    let Site { cluster, sandbox, .. } = site().await;
    let timed = |millis: &str| {
        Wire { address: sandbox.address.clone(), headers: sandbox.headers.clone() }
            .with("Connect-Timeout-Ms", millis)
    };
    let reply = timed("300").stream(START, &shell("echo begin; sleep 1000")).await;
    assert_eq!(reply.ends_with(), "deadline_exceeded", "{:?}", reply.frames());
    let listed = sandbox.call("POST", "/process.Process/List", &json!({})).await;
    assert_eq!(listed.json()["processes"], json!([]), "it is dead");
    assert_eq!(timed("soon").stream(START, &shell("true")).await.status, 400);
    // Keepalives in quiet times, as often as the client wants.
    let wire = timed("3500").with("Keepalive-Ping-Interval", "1");
    let reply = wire.stream(START, &shell("sleep 1000")).await;
    let alive = reply.frames().iter().filter(|(_, frame)| !frame["event"]["keepalive"].is_null()).count();
    assert!((1..=3).contains(&alive), "{alive} in three seconds and a half");
    cluster.stop().await;
}

/// Red when a file is written although its upload broke off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_changes_nothing() {
    let Site { cluster, sandbox, .. } = site().await;
    const FILE: &str = "/files?path=/workspace/kept";
    assert_eq!(sandbox.send("POST", FILE, "application/octet-stream", b"as it was").await.status, 200);
    let cut = |kind: &str, body: &'static [u8]| {
        let wire = Wire { address: sandbox.address.clone(), headers: sandbox.headers.clone() }
            .with("Content-Type", kind)
            .with("Content-Length", "1000");
        async move {
            let mut stream = wire.raw(&format!("POST {FILE}"), body).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        }
    };
    const PART: &[u8] = b"--B\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhalf";
    cut("application/octet-stream", b"half").await;
    cut("multipart/form-data; boundary=B", PART).await;
    // One whose last boundary never comes, although its length is kept.
    let reply = sandbox.send("POST", FILE, "multipart/form-data; boundary=B", PART).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    for (kind, body) in [
        ("multipart/form-data", PART),
        ("multipart/form-data; boundary=B", b"--B\r\n\r\n\r\n--B--"),
        ("multipart/form-data; boundary=B", b"--B--"),
    ] {
        assert_eq!(sandbox.send("POST", FILE, kind, body).await.status, 400, "{kind}");
    }
    let read = sandbox.send("GET", FILE, "text/plain", b"").await;
    assert_eq!((read.status, &read.body[..]), (200, &b"as it was"[..]));
    cluster.stop().await;
}

/// Red when something opens a sandbox that was not made for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_token_of_that_sandbox() {
    let Site { cluster, control, sandbox, id } = site().await;
    let other = control.call("POST", "/sandboxes", &json!({"templateID": "base"})).await.json();
    let without = |name: &str| {
        let mut headers = sandbox.headers.clone();
        headers.remove(name);
        Wire { address: sandbox.address.clone(), headers }
    };
    let list = async |wire: &Wire| wire.call("POST", "/process.Process/List", &json!({})).await.status;
    assert_eq!(list(&sandbox).await, 200);
    assert_eq!(list(&without("E2b-Sandbox-Id")).await, 200, "the token says which");
    assert_eq!(list(&without("X-Access-Token")).await, 401);
    let api_key = control.headers["X-API-KEY"].clone();
    for token in ["", "x", &api_key, &"y".repeat(8000), &sandbox.headers["X-Access-Token"][..50]] {
        assert_eq!(list(&without("X-Access-Token").with("X-Access-Token", token)).await, 401, "{token}");
    }
    let theirs = other["envdAccessToken"].as_str().unwrap();
    assert_eq!(list(&without("X-Access-Token").with("X-Access-Token", theirs)).await, 401);
    assert_eq!(
        without("X-Access-Token").send("GET", "/files?path=x&signature=v1_AAAA", "", b"").await.status,
        401
    );
    assert_eq!(Wire::new(&sandbox.address).send("GET", "/sandboxes", "", b"").await.status, 401);
    assert_eq!(Wire::new(&sandbox.address).send("GET", "/files?path=x", "", b"").await.status, 401);
    // A host name says it as well as the headers.
    let mut named = without("E2b-Sandbox-Id");
    named.headers.insert("X-Access-Token", sandbox.headers["X-Access-Token"].clone());
    assert_eq!(list(&named).await, 200);
    // Gone is gone, for who has its token.
    assert_eq!(control.call("DELETE", &format!("/sandboxes/{id}"), &json!({})).await.status, 204);
    let reply = sandbox.call("GET", "/health", &json!({})).await;
    assert_eq!((reply.status, &reply.json()["message"]), (502, &json!("The sandbox was not found")));
    assert_eq!(sandbox.stream(START, &shell("true")).await.status, 502);
    assert_eq!(control.call("DELETE", &format!("/sandboxes/{id}"), &json!({})).await.status, 404);
    // So is one whose key is revoked.
    cluster.stop().await;
}

/// Red when the same key makes two sandboxes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_is_sent_again_is_the_same() {
    let Site { cluster, control, .. } = site().await;
    let keyed = Wire { address: control.address.clone(), headers: control.headers.clone() }
        .with("Idempotency-Key", &"k".repeat(255));
    let one = keyed.call("POST", "/v2/sandboxes", &json!({"templateID": "base", "timeout": 60})).await.json();
    let two = keyed.call("POST", "/v2/sandboxes", &json!({"templateID": "base", "timeout": 60})).await.json();
    assert_eq!(one["sandboxID"], two["sandboxID"]);
    let other = keyed.call("POST", "/v2/sandboxes", &json!({"templateID": "base", "timeout": 61})).await;
    assert_eq!(other.status, 409, "{}", other.text());
    for (path, body, status) in [
        ("/sandboxes", json!({}), 400),
        ("/sandboxes", json!({"templateID": "base", "autoPause": true}), 501),
        ("/sandboxes", json!({"templateID": "base", "volumeMounts": [{}]}), 501),
        ("/sandboxes", json!({"templateID": "base", "timeout": -1}), 400),
        ("/sandboxes/x/pause", json!({}), 404),
        ("/sandboxes/../../etc", json!({}), 404),
        ("/templates", json!({}), 501),
        ("/nothing", json!({}), 404),
    ] {
        let reply = control.call("POST", path, &body).await;
        assert_eq!(reply.status, status, "{path} {body}: {}", reply.text());
    }
    cluster.stop().await;
}
