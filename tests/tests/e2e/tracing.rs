//! One request is one trace, from the client through every hop to the task: its spans arrive at a collector, its id is in
//! what a client is told when it fails, and in the log lines of every component.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use berth_proto::{trace::TraceContext, v1};
use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, gateway},
    process::{self, Finished},
    python, skip, until,
};
use serde_json::{Value, json};

/// No session has this id, and the coordinator alone knows that.
const NOBODY: &str = "0190000000007000800000000000000a";

/// OpenTelemetry's own reading of what is sent to it.
struct Collector {
    process: Child,
    address: String,
    spans: PathBuf,
}

impl Collector {
    /// `None`: skipped.
    fn start(test: &str, dir: &Path) -> Option<Self> {
        let python = python::venv(test, include_str!("../../python/otlp.txt"))?.join("bin/python");
        let spans = dir.join("spans");
        std::fs::write(&spans, "").expect("a file");
        let mut process = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/otlp_collector.py"))
            .arg(&spans)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut port = String::new();
        let mut told = std::io::BufReader::new(process.stdout.take().expect("it is piped"));
        told.read_line(&mut port).expect("its port");
        Some(Self { process, address: format!("http://127.0.0.1:{}", port.trim()), spans })
    }

    fn spans(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.spans).expect("its file");
        // The last line may be half there.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The one span of a trace that has this name.
    fn find(&self, trace: &str, service: &str, name: &str) -> Option<Value> {
        let is = |span: &Value| span["trace"] == trace && span["service"] == service && span["name"] == name;
        let mut found: Vec<Value> = self.spans().into_iter().filter(is).collect();
        assert!(found.len() < 2, "{found:#?}");
        found.pop()
    }

    async fn span(&self, trace: &str, service: &str, name: &str) -> Value {
        until(READY, &format!("{service} tells of {name:?}"), async || self.find(trace, service, name)).await
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn traced(backend: &str, more: &[(&str, &str)]) -> Setup {
    let mut setup = Setup::new(backend);
    let env = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    setup.coordinator_env.extend(env.clone());
    setup.worker_env.extend(env);
    setup
}

async fn berth(cluster: &Cluster, trace: &str, args: &[&str]) -> Finished {
    let env = [
        ("BERTH_ADDRESS", cluster.address.as_str()),
        ("BERTH_TOKEN", &cluster.admin_token),
        ("TRACEPARENT", trace),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    process::run("berth", args, &env, b"").await
}

/// Lines of a component's log that are of this request.
fn lines_of(log: &str, request: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["requestId"] == request).collect()
}

fn says(log: &str, request: &str, msg: &str) -> bool {
    lines_of(log, request).iter().any(|line| line["msg"] == msg)
}

/// Red without any one of: the layer of a server, the header on the way, the context of a command to the worker, the task's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_one_trace_from_the_client_to_the_task() {
    let test = "e2e tracing a_request_is_one_trace_from_the_client_to_the_task";
    let dir = tempfile::tempdir().expect("a directory");
    let Some(collector) = Collector::start(test, dir.path()) else { return };
    for backend in ["native", "docker"] {
        if !skip::without(backend, test) {
            follow(backend, &collector).await;
        }
    }
}

async fn follow(backend: &str, collector: &Collector) {
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k%20y"),
    ];
    let cluster = Cluster::start(traced(backend, &env)).await;
    let client = TraceContext::begin();
    let request = client.request_id();
    let line = "echo $TRACEPARENT; exit 3";
    let ran = berth(&cluster, &client.to_string(), &["run", "--", "sh", "-c", line]).await;
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    // What the task sees is its own span.
    let inside: TraceContext = ran.stdout.trim().parse().expect("a context");
    assert!(inside.is_sampled() && inside.request_id() == request, "{inside}");

    let create = collector.span(&request, "berth-coordinator", "berth.v1.SessionService/CreateSession").await;
    let start = collector.span(&request, "berth-worker", "start sandbox").await;
    let run = collector.span(&request, "berth-coordinator", "berth.v1.TaskService/Run").await;
    let relayed = collector.span(&request, "berth-worker", "berth.v1.TaskService/Run").await;
    let task = collector.span(&request, "berth-worker", "task").await;
    // All that the command asks for is below what it was started in.
    for span in [&create, &run] {
        assert!(client.to_string().contains(span["parent"].as_str().expect("hex")), "{span:#}");
    }
    for (child, parent) in [(&start, &create), (&relayed, &run), (&task, &relayed)] {
        assert_eq!(child["parent"], parent["span"], "{child:#}\n{parent:#}");
        assert!(child["begun"].as_u64() >= parent["begun"].as_u64(), "{child:#}\n{parent:#}");
    }
    assert_eq!((create["kind"].as_i64(), start["kind"].as_i64()), (Some(2), Some(1)));
    assert_eq!(start["attributes"]["berth.backend"], backend);
    assert_eq!(create["attributes"]["rpc.grpc.status_code"], "0");
    let session = start["attributes"]["berth.session.id"].as_str().expect("an id");
    assert_eq!(run["attributes"]["berth.session.id"], session);
    assert_eq!(task["attributes"]["berth.task.status"], "exited 3");
    assert_eq!((&task["error"], &run["error"], &task["key"]), (&json!(true), &json!(false), &json!("k y")));
    let id = task["attributes"]["berth.task.id"].as_str().expect("an id");
    assert!(id.ends_with(task["span"].as_str().expect("hex")), "{task:#}");
    assert!(inside.to_string().contains(task["span"].as_str().expect("hex")), "{inside}");

    // And each component's log tells of it under the same id.
    let worker = &cluster.workers[0].process;
    for (process, msg) in [
        (&cluster.coordinator, "session ended"),
        (worker, "session ready"),
        (worker, "a task ended"),
        (worker, "session ends"),
    ] {
        until(READY, &format!("{msg:?} is told"), async || says(&process.log(), &request, msg).then_some(()))
            .await;
    }
    // Over HTTP the gateway's is between the client's and the coordinator's.
    let web = TraceContext::begin();
    let http = Http::new(&gateway(&cluster).await, &cluster.admin_token);
    http.with("traceparent", &web.to_string()).send("GET", &format!("/v1/sessions/{NOBODY}"), "").await;
    let at_gateway = collector.span(&web.request_id(), "berth-coordinator", "GET /v1/sessions").await;
    let asked = "berth.v1.SessionService/GetSession";
    let asked = collector.span(&web.request_id(), "berth-coordinator", asked).await;
    assert!(web.to_string().contains(at_gateway["parent"].as_str().expect("hex")), "{at_gateway:#}");
    assert_eq!(asked["parent"], at_gateway["span"], "{asked:#}\n{at_gateway:#}");
    assert_eq!(at_gateway["attributes"]["http.response.status_code"], "404");

    // Another request is another trace, and of its own.
    let other = cluster.berth(&["run", "--", "sh", "-c", line]).await;
    let inside: TraceContext = other.stdout.trim().parse().expect("a context");
    assert_ne!(inside.request_id(), request);
    cluster.stop().await;
}

/// Red when a client is not told the id, or another one than is in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_shows_the_request_that_the_logs_tell_of() {
    let cluster = Cluster::start(traced("fake", &[("LOG_LEVEL", "debug")])).await;
    let told = |request: &str| {
        let answered = lines_of(&cluster.coordinator.log(), request);
        let refused = answered.iter().filter(|line| line["msg"] == "answered" && line["code"] == "NOT_FOUND");
        assert!(refused.count() > 0, "{request}: {answered:#?}");
    };
    // For people, for programs.
    let failed = cluster.berth(&["usage", NOBODY]).await;
    let shown = failed.stderr.lines().find_map(|line| line.strip_prefix("request: ")).expect("an id");
    told(shown);
    let failed = cluster.berth(&["usage", NOBODY, "--format", "json"]).await;
    let error: Value = serde_json::from_str(&failed.stderr).expect("JSON");
    told(error["request_id"].as_str().expect("an id"));
    // What went wrong before anything was asked has none.
    let failed = cluster.berth(&["run", "--timeout", "never-ever", "--", "true"]).await;
    assert!(failed.code == Some(2) && !failed.stderr.contains("request: "), "{}", failed.stderr);

    // Over HTTP, where a client may say which.
    let http = Http::new(&gateway(&cluster).await, &cluster.admin_token);
    let mine = TraceContext::begin();
    let named = http.clone().with("traceparent", &mine.to_string());
    let reply = named.send("GET", &format!("/v1/sessions/{NOBODY}"), "").await;
    let body: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(body["error"]["request_id"], mine.request_id());
    assert_eq!(reply.headers["x-request-id"], mine.request_id());
    told(&mine.request_id());
    // One that makes no sense is not taken over.
    let nonsense =
        http.with("traceparent", "00-0-0-00").send("GET", &format!("/v1/sessions/{NOBODY}"), "").await;
    told(nonsense.headers["x-request-id"].as_str());
    cluster.stop().await;
}

/// Red when anything waits for a collector, or is lost with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_is_in_nobodys_way() {
    // A port that refuses.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").port()
    };
    let endpoint = format!("http://127.0.0.1:{port}");
    let cluster = Cluster::start(traced("fake", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])).await;
    cluster.berth(&["create", "--name", "box"]).await.ok();
    let complaint = until(READY, "the log tells of it", async || {
        let log = cluster.coordinator.log();
        log.lines().find(|line| line.contains("spans were not delivered")).map(ToOwned::to_owned)
    })
    .await;
    assert!(complaint.contains(&endpoint) && complaint.contains("refused"), "{complaint}");
    cluster.berth(&["rm", "box"]).await.ok();
    cluster.stop().await;
}

/// Red when anything waits for a collector that takes connections and never answers, or when spans pile up behind it without
/// end: each request below has a trace of its own, more of them than may wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_is_in_nobodys_way() {
    // The kernel takes connections for it, and what is sent on them; nobody accepts any.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let cluster = Cluster::start(traced("fake", &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])).await;
    let flood = (0..16).map(|_| async {
        let mut sessions = cluster.sessions();
        for _ in 0..400 {
            let mut request = tonic::Request::new(v1::ListSessionsRequest::default());
            let trace = TraceContext::begin().to_string();
            let sampled = format!("{}-01", trace.rsplit_once('-').expect("flags").0);
            request.metadata_mut().insert("traceparent", sampled.parse().expect("it is ASCII"));
            sessions.list_sessions(request).await.expect("it is answered");
        }
    });
    futures::future::join_all(flood).await;
    let complaint = until(READY, "the log tells of it", async || {
        let log = cluster.coordinator.log();
        log.lines().find(|line| line.contains("spans were not delivered")).map(ToOwned::to_owned)
    })
    .await;
    assert!(complaint.contains(&endpoint) && complaint.contains("timed out"), "{complaint}");
    cluster.berth(&["run", "--", "true"]).await.ok();
    cluster.stop().await;
}

/// Red when a trace that nobody keeps reaches the task, or is exported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_is_not_exported() {
    let test = "e2e tracing what_is_not_sampled_is_not_exported";
    if skip::without("native", test) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let Some(collector) = Collector::start(test, dir.path()) else { return };
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address.as_str()), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let cluster = Cluster::start(traced("native", &env)).await;
    let see = ["run", "--", "sh", "-c", "echo ${TRACEPARENT-none}"];
    assert_eq!(cluster.berth(&see).await.ok().trim(), "none");
    // What a client has decided to keep is kept.
    let kept = TraceContext::begin().to_string();
    let kept = format!("{}-01", kept.rsplit_once('-').expect("flags").0);
    let ran = berth(&cluster, &kept, &see).await.ok();
    let inside: TraceContext = ran.trim().parse().expect("a context");
    collector.span(&inside.request_id(), "berth-worker", "task").await;
    let spans = collector.spans();
    assert!(spans.iter().all(|span| span["trace"] == inside.request_id().as_str()), "{spans:#?}");
    cluster.stop().await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no pairs"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ] {
        let env = [(name.to_owned(), value.to_owned())];
        let ended = process::run("coordinator", &["--print-config"], &env, b"").await;
        assert!(ended.code == Some(2) && ended.stderr.contains("must be"), "{name}: {}", ended.stderr);
    }
}
