//! Metrics as Prometheus sees them: over the wire, of components that do what they are for.

mod expressions;
mod scrape;

use std::time::Duration;

use berth_proto::{
    error::{Reason, reason_of},
    spawn::spawn,
    v1::{self, outcome::Kind},
};
use berth_tests::{Cluster, READY, Setup, http::Http, http::gateway, process, skip, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use self::scrape::{Scrape, Seen, address, get, scrape};
use crate::{
    egress::origin::Origin,
    recovery::{checkpoint, index, moved, restorable},
    util::{run, seconds, shell, state},
};

/// What the scenario below can't bring about, and what does.
const ELSEWHERE: [&str; 3] = [
    // coordinator, audit: `what_finds_no_room_is_counted`.
    "berth_audit_records_lost",
    // How many are on their way: mostly none.
    "berth_audit_records_waiting",
    "berth_worker_reports_waiting",
];

fn env(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Two workers that offer more disk than there is, so that they refuse what the coordinator takes to fit.
fn setup(origin: &Origin) -> Setup {
    let port = origin.port;
    let any = ("BERTH_METRICS_ADDR", "127.0.0.1:0");
    let mut worker_env = env(&[any, ("BERTH_EGRESS_HOSTS", "good.test=127.0.0.1"), ("BERTH_DISK", "64T")]);
    worker_env.push(("BERTH_EGRESS_EXEMPT".to_owned(), format!("good.test:{port}")));
    Setup {
        workers: 2,
        coordinator_env: env(&[any, ("BERTH_LEASE", "1s"), ("BERTH_RESTORE_GRACE", "1s")]),
        worker_env,
        ..Setup::new("native")
    }
}

/// The cluster's components, and all that they have told.
struct Watched {
    cluster: Cluster,
    seen: Seen,
    texts: Vec<String>,
}

impl Watched {
    async fn coordinator(&mut self) -> Scrape {
        let address = address(|| self.cluster.coordinator.log()).await;
        self.keep(scrape(&address).await)
    }

    async fn worker(&mut self, index: usize) -> Scrape {
        let address = address(|| self.cluster.workers[index].process.log()).await;
        self.keep(scrape(&address).await)
    }

    fn keep(&mut self, scrape: Scrape) -> Scrape {
        self.seen.add(&scrape);
        self.texts.push(scrape.text.clone());
        scrape
    }

    /// Waits until a coordinator's scrape has more than 0 of this.
    async fn coordinator_has(&mut self, name: &str, labels: &[(&str, &str)]) {
        until(READY, name, async || (self.coordinator().await.sum(name, labels) > 0.0).then_some(())).await;
    }

    async fn worker_has(&mut self, index: usize, name: &str, labels: &[(&str, &str)]) {
        until(READY, name, async || (self.worker(index).await.sum(name, labels) > 0.0).then_some(())).await;
    }
}

/// Every way in which a task ends that a client can bring about, and what it writes.
async fn tasks(cluster: &Cluster, session: &str) {
    let ends = async |spec: v1::TaskSpec| {
        let (session_id, task) = (session.to_owned(), Some(spec));
        let request = v1::StartTaskRequest { session_id, task, ..Default::default() };
        let task = cluster.tasks().start_task(request).await.expect("it starts").into_inner();
        let request =
            v1::WaitTaskRequest { session_id: task.session_id, task_id: task.id, ..Default::default() };
        let task = cluster.tasks().wait_task(request).await.expect("it ends").into_inner();
        task.end.and_then(|end| end.outcome).and_then(|outcome| outcome.kind).expect("an outcome")
    };
    assert_eq!(ends(shell("true")).await, Kind::Exited(0));
    assert_eq!(ends(shell("exit 3")).await, Kind::Exited(3));
    let slow = v1::TaskSpec { timeout: seconds(1), ..shell("sleep 1000") };
    assert!(matches!(ends(slow).await, Kind::TimedOut(_)));
    let much = v1::TaskSpec { spool_bytes: 64 << 10, ..shell("head -c 3000000 /dev/zero") };
    assert_eq!(ends(much).await, Kind::Exited(0));
    let hungry = "python3 -c \"x = b'x' * (1 << 30)\"";
    assert!(matches!(ends(shell(hungry)).await, Kind::OutOfMemory(_)));
}

/// A request for each interface of the gateway. What the answers are does not matter, but that of MCP begins a conversation.
async fn requests(cluster: &Cluster, session: &str) {
    let at = gateway(cluster).await;
    let http = Http::new(&at, &cluster.admin_token);
    for path in ["/v1/sessions", "/sandboxes", "/nowhere"] {
        http.send("GET", path, "").await;
    }
    http.clone().with("Host", &format!("8000-{session}.berth.test")).send("GET", "/", "").await;
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    assert_eq!(http.send("POST", "/mcp", &hello.to_string()).await.status, 200);
}

/// One that no worker has room for, whatever the coordinator thinks; and one that no worker fits, which waits.
async fn refused_and_waiting(cluster: &Cluster) {
    let limits = v1::Limits { disk_bytes: Some(20 << 40), ..Default::default() };
    let large =
        v1::CreateSessionRequest { limits: Some(limits), wait_for_place: seconds(0), ..Default::default() };
    let error = cluster.sessions().create_session(large).await.expect_err("no disk is so large");
    assert_eq!(reason_of(&error), Some(Reason::NoPlace), "{error:?}");
    let waits = v1::CreateSessionRequest {
        worker_selector: [("no".to_owned(), "such".to_owned())].into(),
        wait_for_place: seconds(600),
        ..Default::default()
    };
    let mut sessions = cluster.sessions();
    spawn("one that waits", async move {
        let _ = sessions.create_session(waits).await;
    });
}

/// Every metric that is declared is recorded by what it is of, and alerts and dashboard ask for what there is. Red when one is
/// declared and recorded nowhere; when one of them names what is not there; and when an id becomes a label's value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_recorded_and_what_is_asked_for_is_there() {
    if skip::without_root("e2e every_metric_is_recorded_and_what_is_asked_for_is_there") {
        return;
    }
    let origin = Origin::start().await;
    let cluster = Cluster::start(setup(&origin)).await;
    let mut all = Watched { cluster, seen: Seen::default(), texts: Vec::new() };

    let allow = format!("--allow=good.test:{}", origin.port);
    let created = all.cluster.berth(&["create", "--name", "secret-name", "--memory", "256M", &allow]).await;
    let session = created.ok().trim().to_owned();
    let own = index(&all.cluster, &state(&all.cluster, &session).await.worker_id);
    tasks(&all.cluster, &session).await;
    let fetch = |host: &str| format!("curl -sS --noproxy '' -o /dev/null http://{host}:{}/x", origin.port);
    assert_eq!(run(&all.cluster, &session, &fetch("good.test")).await.1, Kind::Exited(0));
    run(&all.cluster, &session, &fetch("other.test")).await;
    let seen = all.worker(own).await;
    for outcome in ["succeeded", "failed", "timed_out", "out_of_memory"] {
        assert!(
            seen.sum("berth_worker_tasks_total", &[("outcome", outcome)]) >= 1.0,
            "{outcome}: {}",
            seen.text
        );
    }
    for decision in ["allowed", "denied"] {
        assert_eq!(seen.sum("berth_worker_egress_connections_total", &[("decision", decision)]), 1.0);
    }
    assert_eq!(seen.sum("berth_worker_sessions", &[("backend", "native"), ("state", "ready")]), 1.0);
    assert_eq!(seen.sum("berth_worker_places_free", &[]), 4.0);

    requests(&all.cluster, &session).await;
    refused_and_waiting(&all.cluster).await;
    let http = Http::new(&gateway(&all.cluster).await, &all.cluster.admin_token);
    let open = json!({"command": "sleep 1000", "session": session}).to_string();
    let mut open = http.begin_send("POST", "/v1/run", &open).await;
    all.coordinator_has("berth_tasks_running", &[]).await;
    all.coordinator_has("berth_queue_depth", &[]).await;
    all.worker_has(own, "berth_worker_tasks_running", &[]).await;
    let seen = all.coordinator().await;
    for interface in ["mcp", "rest", "e2b", "ports", "other"] {
        assert!(seen.sum("berth_http_requests_total", &[("interface", interface)]) >= 1.0, "{interface}");
    }
    assert_eq!(seen.sum("berth_http_requests_open", &[("interface", "rest")]), 1.0);
    assert_eq!(seen.sum("berth_mcp_conversations", &[]), 1.0);
    assert_eq!(seen.sum("berth_queue_depth", &[]), 1.0);
    assert_eq!(seen.sum("berth_sessions", &[("state", "pending")]), 1.0);
    assert_eq!(seen.sum("berth_workers_places", &[]), 10.0);
    assert_eq!(seen.sum("berth_workers_places_free", &[]), 9.0);
    assert_eq!(seen.sum("berth_workers", &[("state", "open")]), 2.0);
    assert_eq!(seen.sum("berth_call_errors_total", &[("reason", "NO_PLACE")]), 1.0);

    lost_and_found(&mut all, own).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(1), open.read_to_end(&mut rest)).await;

    let missing = until(READY, "the last of it", async || {
        all.coordinator().await;
        for index in 0..all.cluster.workers.len() {
            all.worker(index).await;
        }
        let silent: Vec<_> = all.seen.silent().into_iter().filter(|name| !ELSEWHERE.contains(name)).collect();
        println!("silent: {silent:?}");
        silent.is_empty().then_some(silent.len())
    });
    assert_eq!(missing.await, 0);
    expressions::hold(&all.seen);
    let secrets =
        [session.as_str(), "secret-name", "good.test", "worker-1", "default", &all.cluster.admin_token];
    for (text, secret) in all.texts.iter().flat_map(|text| secrets.map(|secret| (text, secret))) {
        assert!(!text.contains(secret), "{secret}:\n{text}");
    }
    all.cluster.stop().await;
}

/// A sandbox dies; a worker stands still past its lease, and its session goes on elsewhere; it comes back; one is killed, and
/// its next process takes up what lives on.
async fn lost_and_found(all: &mut Watched, own: usize) {
    let doomed = all.cluster.session().await;
    let its = index(&all.cluster, &doomed.worker_id);
    let record = all.cluster.workers[its].state.join("sessions").join(&doomed.id).join("sandbox.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
    let agent = record["pid"].as_i64().expect("a pid") as i32;
    kill(Pid::from_raw(agent), Signal::SIGKILL).expect("it is ours");
    all.worker_has(its, "berth_worker_backend_failures_total", &[("what", "died")]).await;
    all.coordinator_has("berth_sessions_ended_total", &[("reason", "sandbox_failed")]).await;

    let kept = restorable(&all.cluster).await;
    checkpoint(&all.cluster, &kept.id).await;
    let slow = index(&all.cluster, &kept.worker_id);
    all.cluster.workers[slow].process.signal(Signal::SIGSTOP);
    moved(&all.cluster, &kept).await;
    let seen = all.coordinator().await;
    assert_eq!(seen.sum("berth_leases_expired_total", &[]), 1.0);
    assert_eq!(seen.sum("berth_sessions_recovered_total", &[]), 1.0);
    assert_eq!(seen.sum("berth_workers", &[("state", "unreachable")]), 1.0);
    all.cluster.workers[slow].process.signal(Signal::SIGCONT);
    all.coordinator_has("berth_epoch_rejections_total", &[("what", "report")]).await;
    all.worker_has(slow, "berth_worker_link_breaks_total", &[]).await;
    until(READY, "both to be open", async || {
        (all.coordinator().await.sum("berth_workers", &[("state", "open")]) == 2.0).then_some(())
    })
    .await;

    all.worker(own).await;
    all.cluster.workers[own].process.kill().await;
    all.cluster.restart_worker(own);
    all.cluster.workers_ready().await;
    all.worker_has(own, "berth_worker_sessions_adopted_total", &[]).await;
}

/// The port of a worker tells how it is, with the reason, and nothing else is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_tells_how_a_component_is_and_why() {
    let any = env(&[("BERTH_METRICS_ADDR", "127.0.0.1:0")]);
    let setup = Setup { worker_env: any.clone(), coordinator_env: any, ..Setup::new("fake") };
    let mut cluster = Cluster::start(setup).await;
    let coordinator = address(|| cluster.coordinator.log()).await;
    let worker = address(|| cluster.workers[0].process.log()).await;
    for address in [&coordinator, &worker] {
        for path in ["/livez", "/startupz", "/readyz"] {
            assert_eq!(get(address, path).await, (200, "ok\n".to_owned()), "{path}");
        }
        for path in ["/", "/metrics/", "/v1/sessions", "/mcp", "/debug/pprof"] {
            assert_eq!(get(address, path).await.0, 404, "{path}");
        }
        let posted = Http::new(address, "none").send("POST", "/metrics", "x").await;
        assert_eq!(posted.status, 405, "{posted:?}");
    }
    // Connections that say nothing take the port's own places, and only for a while.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(&worker).await.expect("it listens"));
    }
    let told = process::run(
        "worker",
        &["health"],
        &env(&[("BERTH_STATE_DIR", cluster.workers[0].state.to_str().expect("UTF-8"))]),
        b"",
    )
    .await;
    assert_eq!(told.code, Some(0), "the socket has places of its own: {told:?}");
    until(READY, "the silent to be sent away", async || {
        let mut stream = tokio::net::TcpStream::connect(&worker).await.ok()?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    drop(silent);

    cluster.coordinator.kill().await;
    let why = until(READY, "the worker to notice", async || {
        let (status, why) = get(&worker, "/readyz").await;
        (status == 503).then_some(why)
    })
    .await;
    assert!(why.starts_with("no link to the coordinator: "), "{why}");
    assert_eq!(scrape(&worker).await.sum("berth_worker_link_up", &[]), 0.0);
    assert_eq!((get(&worker, "/livez").await.0, get(&worker, "/startupz").await.0), (200, 200));
    cluster.restart_coordinator().await;
    until(READY, "it to be ready again", async || (get(&worker, "/readyz").await.0 == 200).then_some(()))
        .await;

    // The same is said on the health socket, where there is no port.
    let socket = cluster.workers[0].state.join("health.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.expect("the socket");
    let ask = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, ask).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert_eq!(Scrape::read(body.to_owned()).sum("berth_worker_link_up", &[]), 1.0);
    cluster.stop().await;
}

/// A port that is taken is a failure at the start, and none is opened unasked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("s");
    let rows = [
        ("BERTH_METRICS_ADDR", address.as_str()),
        ("GRPC_PORT", "0"),
        ("HTTP_PORT", "off"),
        ("BERTH_STATE_DIR", state.to_str().expect("UTF-8")),
    ];
    let seen = process::run("coordinator", &[], &env(&rows), b"").await;
    assert_eq!(seen.code, Some(1), "{seen:?}");
    assert!(
        seen.stderr.contains(&format!("can't serve metrics on {address}")) && seen.stderr.contains("hint: "),
        "{seen:?}"
    );
    let cluster = Cluster::start(Setup::new("fake")).await;
    assert!(!cluster.coordinator.log().contains("metrics are served"));
    assert!(!cluster.workers[0].process.log().contains("metrics are served"));
    cluster.stop().await;
}

/// `berth up` tells of its coordinator, its gateway and its workers in one place, each metric once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn berth_up_tells_of_all_its_parts() {
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().expect("a directory");
    let state = dir.path().join("up");
    let rows = env(&[
        ("BERTH_STATE_DIR", state.to_str().expect("UTF-8")),
        ("BERTH_AGENT", process::binary("berth-agent").to_str().expect("UTF-8")),
        ("BERTH_SANDBOX", "fake"),
        ("GRPC_PORT", "0"),
        ("HTTP_PORT", "0"),
        ("BERTH_METRICS_ADDR", "127.0.0.1:0"),
        ("MAX_SESSIONS", "3"),
    ]);
    process::run("berth", &["up", "-d", "--workers", "2"], &rows, b"").await.ok();
    let log = || std::fs::read_to_string(state.join("berth.log")).unwrap_or_default();
    let at = address(log).await;
    assert_eq!(get(&at, "/readyz").await, (200, "ok\n".to_owned()));
    process::run("berth", &["create"], &rows, b"").await.ok();
    let seen = scrape(&at).await;
    assert_eq!(seen.sum("berth_build_info", &[("component", "up")]), 1.0);
    assert_eq!(seen.sum("berth_workers", &[("state", "open")]), 2.0);
    assert_eq!(seen.sum("berth_workers_places_free", &[]), 5.0);
    // Of both workers together: they are told apart by nothing.
    assert_eq!(seen.sum("berth_worker_places", &[]), 6.0);
    assert_eq!(seen.sum("berth_worker_sessions", &[("state", "ready")]), 1.0);
    assert_eq!(seen.sum("berth_worker_link_up", &[]), 2.0);
    assert!(seen.families.contains_key("berth_http_requests"), "{}", seen.text);
    assert!(!seen.text.contains("local-"), "{}", seen.text);
    process::run("berth", &["stop"], &rows, b"").await.ok();
    berth_tests::left::assert_nothing(dir.path());
}
