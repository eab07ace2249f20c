//! What happens and what tasks write, over plain HTTP as it comes; the queue; and what operators want of workers.

use std::time::Duration;

use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, gateway},
    skip, until,
};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::util::started;

async fn client(cluster: &Cluster) -> Http {
    Http::new(&gateway(cluster).await, &cluster.admin_token)
}

async fn of_tenant(cluster: &Cluster, tenant: &str) -> Http {
    let token = cluster.berth(&["token", "create", "--tenant", tenant]).await.ok();
    client(cluster).await.with("Authorization", &format!("Bearer {}", token.trim()))
}

/// A stream of events, read until something is in it.
struct Events {
    stream: TcpStream,
    seen: String,
}

impl Events {
    async fn begin(http: &Http, path: &str) -> Self {
        let stream = http.begin_send("GET", path, "").await;
        let mut events = Self { stream, seen: String::new() };
        events.until(": begun").await;
        events
    }

    async fn until(&mut self, text: &str) -> &str {
        let read = async {
            while !self.seen.contains(text) {
                let mut buffer = [0; 16384];
                let count = self.stream.read(&mut buffer).await.expect("it goes on");
                assert!(count > 0, "it ended without {text:?}: {}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        };
        let heard = tokio::time::timeout(READY, read).await;
        assert!(heard.is_ok(), "no {text:?} in {}", self.seen);
        &self.seen
    }
}

/// The last id in a stream of events.
fn last_id(text: &str) -> String {
    let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.next_back().unwrap_or_else(|| panic!("no id: {text}")).to_owned()
}

/// Red when it starts over, leaves a byte out, or a half character breaks where it is taken up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_comes_as_it_is_written_and_goes_on_where_it_was_cut() {
    if skip::without("native", "e2e following output_comes_as_it_is_written") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let http = client(&cluster).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let line = "printf 'a\\303'; printf err >&2; while [ ! -e go ]; do sleep 0.02; done; printf '\\244b\\377'; exit 4";
    let task = started(&cluster, "box", &["sh", "-c", line]).await;
    let path = format!("/v1/sessions/box/tasks/{}/output", task);
    let mut first = Events::begin(&http, &format!("{path}?follow=true")).await;
    first.until("event: stderr").await;
    let seen = first.until("event: stdout").await.to_owned();
    assert!(seen.contains(r#""data":"a""#) && seen.contains(r#""data":"err""#), "{seen}");
    // The first half of the ä was not told, so it is not counted.
    let id = last_id(&seen);
    assert_eq!(id, "1-3");
    drop(first);
    // What there is, and no more: it still runs.
    let so_far = http.send("GET", &path, "").await;
    assert!(so_far.body.contains("event: so_far") && so_far.body.contains("running"), "{so_far:?}");
    assert_eq!(so_far.headers["content-type"], "text/event-stream");
    let mut rest =
        Events::begin(&http.clone().with("Last-Event-ID", &id), &format!("{path}?follow=true")).await;
    cluster.berth(&["run", "-s", "box", "--", "touch", "go"]).await.ok();
    let seen = rest.until("event: end").await;
    assert!(seen.contains("\"data\":\"äb\u{fffd}\"") && seen.contains(r#""exit_code":4"#), "{seen}");
    assert!(seen.contains(r#""from":1"#) && !seen.contains(r#""data":"err""#), "{seen}");
    // The end of it alone, and its exact bytes.
    let tail = http.send("GET", &format!("{path}?tail=2&encoding=base64"), "").await.body;
    assert!(tail.contains(r#""data":"Yv8=""#) && tail.contains(r#""data":"cnI=""#), "{tail}");
    assert!(tail.contains("event: end"), "{tail}");
    for (query, status, says) in
        [("?folow=true", 400, "folow"), ("?tail=much", 400, "number"), ("?encoding=hex", 400, "base64")]
    {
        let reply = http.send("GET", &format!("{path}{query}"), "").await;
        assert_eq!((reply.status, reply.body.contains(says)), (status, true), "{reply:?}");
    }
    let odd = http.clone().with("Last-Event-ID", "x").send("GET", &path, "").await;
    assert_eq!(odd.status, 400, "{odd:?}");
    // Another tenant's is not there; to cancel one ends it.
    let red = of_tenant(&cluster, "red").await;
    let session = http.send("GET", "/v1/sessions/box", "").await.message()["id"].as_str().unwrap().to_owned();
    let long = started(&cluster, "box", &["sleep", "1000"]).await;
    let long = format!("/v1/sessions/{session}/tasks/{}", long);
    for (method, path) in [("GET", format!("{long}/output?follow=true")), ("POST", format!("{long}/cancel"))]
    {
        let refused = red.send(method, &path, "").await;
        assert_eq!((refused.status, refused.body.contains("SESSION_NOT_FOUND")), (404, true), "{refused:?}");
    }
    let cancelled = http.send("POST", &format!("{long}/cancel"), "").await;
    assert_eq!(cancelled.message()["end"]["outcome"], "cancelled", "{cancelled:?}");
    cluster.stop().await;
}

/// Red when another tenant's changes are told, or when a stream that is taken up leaves one out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_to_those_whose_it_is() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let (http, red) = (client(&cluster).await, of_tenant(&cluster, "red").await);
    let (mut all, mut own) =
        (Events::begin(&http, "/v1/events").await, Events::begin(&red, "/v1/events").await);
    let (mine, reds) = (cluster.session().await.id, run(&red).await);
    let seen = all.until(&reds).await.to_owned();
    all.until("event: task").await;
    assert!(seen.contains("event: session") && seen.contains(&mine), "{seen}");
    let seen = own.until("event: task").await.to_owned();
    assert!(seen.contains(&reds) && !seen.contains(&mine) && !seen.contains("event: worker"), "{seen}");
    // Cut off, and taken up: what happened meanwhile is told.
    let id = last_id(own.until(&format!(r#""session":"{reds}""#)).await);
    drop(own);
    let more = run(&red).await;
    let mut rest = Events::begin(&red.clone().with("Last-Event-ID", &id), "/v1/events").await;
    rest.until(&more).await;
    // Of a coordinator that is no more nothing is told.
    let lost = red.send("GET", "/v1/events?after=nonsense-1", "").await;
    assert!([400, 409].contains(&lost.status) && lost.body.contains("hint"), "{lost:?}");
    cluster.stop().await;
}

/// Runs something in a session of its own; the session's id.
async fn run(http: &Http) -> String {
    let json = http.clone().with("Accept", "application/json");
    let done = json.send("POST", "/v1/run", &json!({"command": "echo x"}).to_string()).await;
    assert_eq!(done.status, 200, "{done:?}");
    done.message()["session"].as_str().unwrap().to_owned()
}

/// Red when a client's token cordons, or when the queue has another order than the coordinator's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_drained_and_the_queue_is_told() {
    let cluster = Cluster::start(Setup { max_sessions: 1, ..Setup::new("fake") }).await;
    let (http, red) = (client(&cluster).await, of_tenant(&cluster, "red").await);
    let document = http.send("GET", "/v1/openapi.json", "").await.message().clone();
    let paths = document["paths"].as_object().unwrap();
    for path in ["/v1/queue", "/v1/events", "/v1/workers/{worker}/drain"] {
        assert!(paths.contains_key(path), "{path}");
    }
    for (http, scope, tenant) in [(&http, "admin", "default"), (&red, "client", "red")] {
        let info = http.send("GET", "/v1/info", "").await.message();
        assert_eq!((&info["scope"], &info["tenant"]), (&json!(scope), &json!(tenant)));
    }
    let path = |what: &str| format!("/v1/workers/worker-1/{what}");
    for what in ["cordon", "uncordon", "drain"] {
        let refused = red.send("POST", &path(what), "").await;
        assert_eq!((refused.status, refused.body.contains("PERMISSION_DENIED")), (403, true), "{refused:?}");
    }
    let scheduling = async |what: &str, body: &str| {
        let reply = http.send("POST", &path(what), body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.message()["scheduling"].clone()
    };
    assert_eq!(scheduling("cordon", "").await, "cordoned");
    assert_eq!(scheduling("uncordon", "").await, "active");
    // One place, and two that wait for it: the one with the higher priority first.
    let held = cluster.session().await.id;
    let waits = [(&http, 1, "low"), (&red, 5, "high")];
    let mut waiting = Vec::new();
    for (http, priority, name) in waits {
        let request =
            json!({"command": "echo x", "priority": priority, "wait_seconds": 600, "labels": {"name": name}});
        waiting.push(http.begin_send("POST", "/v1/run", &request.to_string()).await);
    }
    let queue = async |http: &Http| {
        let told = http.send("GET", "/v1/queue", "").await.message();
        told["sessions"].as_array().unwrap().clone()
    };
    let both = until(READY, "both to wait", async || {
        let told = queue(&http).await;
        (told.len() == 2 && told.iter().all(|one| one["queue_position"].is_number())).then_some(told)
    })
    .await;
    let names = |told: &[Value]| told.iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&both), ["high", "low"]);
    assert!(both[0]["message"].as_str().unwrap().contains("waits for a place"), "{both:?}");
    assert!(both[0]["waits_until"].is_string() && both[0]["queue_position"] == 1, "{both:?}");
    assert_eq!(names(&queue(&red).await), ["high"]);
    let limited = http.send("GET", "/v1/queue?limit=1", "").await.message();
    assert_eq!((&limited["more"], limited["sessions"].as_array().unwrap().len()), (&json!(true), 1));
    // A drain answers at once, and says until when; at its deadline nothing is left.
    let draining = http.send("POST", &path("drain"), &json!({"deadline_seconds": 600}).to_string()).await;
    let draining = draining.message();
    assert_eq!((&draining["scheduling"], &draining["sessions"]), (&json!("draining"), &json!(1)));
    assert!(draining["drain_deadline"].is_string(), "{draining}");
    for bad in [json!({"deadline_seconds": -1}), json!({"deadline": 1})] {
        let refused = http.send("POST", &path("drain"), &bad.to_string()).await;
        assert_eq!(refused.status, 400, "{refused:?}");
    }
    assert_eq!(scheduling("drain", &json!({"deadline_seconds": 0}).to_string()).await, "draining");
    until(READY, "the worker to be empty", async || {
        (http.send("GET", "/v1/workers/worker-1", "").await.message()["sessions"] == 0).then_some(())
    })
    .await;
    let ended = http.send("GET", &format!("/v1/sessions/{held}"), "").await.message();
    assert_eq!((&ended["state"], &ended["end_reason"]), (&json!("ended"), &json!("drained")));
    assert_eq!(scheduling("uncordon", "").await, "active");
    for stream in &mut waiting {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        read.expect("its turn came").unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("x\\n"), "{}", String::from_utf8_lossy(&answer));
    }
    cluster.stop().await;
}
