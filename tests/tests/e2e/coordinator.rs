//! The coordinator's own promises, as a real process: what its logs and files give away, what
//! its settings take, and what it says of workers that go.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1,
};
use berth_tests::{Cluster, READY, Setup, process, until};
use tonic::Code;

const SECRET: &str = "s3cr3t-that-no-log-may-show";
const TASK_SECRET: &str = "an0ther-that-no-log-may-show";

/// All files and directories below a directory, with their modes.
fn modes(dir: &Path) -> Vec<(PathBuf, u32, bool)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let meta = entry.metadata().unwrap();
        found.push((entry.path(), meta.permissions().mode() & 0o777, meta.is_dir()));
        if meta.is_dir() {
            found.extend(modes(&entry.path()));
        }
    }
    found
}

#[track_caller]
fn shows_none(what: &str, log: &str, secrets: &[&str]) {
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{what} shows a secret: {}", line.unwrap_or_default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_and_in_no_file_that_others_may_read() {
    let trace = vec![("LOG_LEVEL".to_owned(), "trace".to_owned())];
    let setup = Setup { coordinator_env: trace.clone(), worker_env: trace, ..Setup::new("fake") };
    let cluster = Cluster::start(setup).await;
    let request = v1::CreateSessionRequest {
        env: [("API_KEY".to_owned(), SECRET.to_owned())].into(),
        ..Default::default()
    };
    let session = cluster.sessions().create_session(request).await.expect("a session").into_inner();
    let task = v1::TaskSpec {
        env: [("TASK_KEY".to_owned(), TASK_SECRET.to_owned())].into(),
        ..crate::util::shell("true")
    };
    let run = v1::RunRequest { session_id: session.id.clone(), task: Some(task), ..Default::default() };
    let mut stream = cluster.tasks().run(run).await.expect("it runs").into_inner();
    while stream.message().await.expect("it goes on").is_some() {}

    let state = cluster.dir.path().join("c");
    for (path, mode, is_dir) in modes(&state) {
        let wanted = if is_dir { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{} is {mode:o}", path.display());
    }
    let itself = std::fs::metadata(&state).unwrap().permissions().mode() & 0o777;
    assert_eq!(itself, 0o700, "the state directory is {itself:o}");

    crate::util::delete(&cluster, &session.id).await;
    let join = std::fs::read_to_string(state.join("credentials/join.token")).unwrap();
    let secrets = [SECRET, TASK_SECRET, cluster.admin_token.as_str(), join.trim()];
    let log = cluster.coordinator.log();
    assert!(log.contains("\"level\":\"debug\""), "the log was to be a talkative one: {log}");
    shows_none("the coordinator's log", &log, &secrets);
    shows_none("the worker's log", &cluster.workers[0].process.log(), &secrets);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_is_gone_from_the_list_at_once() {
    let mut cluster = Cluster::start(Setup { workers: 2, ..Setup::new("fake") }).await;
    cluster.workers[0].process.terminate().await;
    // Its process has ended: what it had to say is said.
    let listed = until(std::time::Duration::from_secs(2), "the worker to be gone", async || {
        let list = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.ok()?.into_inner().workers;
        (list.len() == 1).then_some(list)
    })
    .await;
    assert_eq!((listed[0].id.as_str(), listed[0].liveness()), ("worker-2", v1::Liveness::Alive));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_no_worker_can_serve_is_refused_with_the_workers_reason() {
    let templates = "[[template]]\nname = \"lost\"\nbackend = \"docker\"\n";
    let setup = Setup { templates: Some(templates.to_owned()), ..Setup::new("fake") };
    let cluster = Cluster::start(setup).await;
    let problems = until(READY, "the worker's word on the template", async || {
        let list = cluster.admin().list_templates(v1::ListTemplatesRequest {}).await.ok()?.into_inner();
        let lost = list.templates.into_iter().find(|t| t.name == "lost")?;
        (!lost.problems.is_empty()).then_some(lost.problems)
    })
    .await;
    assert_eq!(problems[0].worker_id, "worker-1");
    let request = v1::CreateSessionRequest { template: "lost".into(), ..Default::default() };
    let begun = std::time::Instant::now();
    let error = cluster.sessions().create_session(request).await.expect_err("nobody can serve it");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it has waited");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::FailedPrecondition, Some(Reason::TemplateUnavailable))
    );
    let words = format!("no worker can serve template \"lost\": worker-1: {}", problems[0].reason);
    assert_eq!(error.message(), words);
    assert!(detail_of(&error, "hint").is_some());
    // The one that all can serve is served.
    assert_eq!(cluster.session().await.state(), v1::SessionState::Ready);
    cluster.stop().await;
}

/// The settings of a coordinator that come from its environment.
const SETTINGS: [&str; 21] = [
    "GRPC_PORT",
    "HTTP_PORT",
    "BERTH_HTTP_LISTEN",
    "BERTH_HTTP_HOSTS",
    "BERTH_HTTP_ORIGINS",
    "LOG_LEVEL",
    "BERTH_STATE_DIR",
    "BERTH_LISTEN",
    "BERTH_INSECURE_LISTEN",
    "BERTH_TEMPLATES",
    "BERTH_LEASE",
    "BERTH_PAUSED_TTL",
    "BERTH_AUDIT_ARGV",
    "BERTH_AUDIT_KEEP",
    "BERTH_ARTIFACT_KEEP",
    "BERTH_ARTIFACT_QUOTA",
    "BERTH_ARTIFACT_COUNT",
    "BERTH_ARTIFACT_SIZE",
    "BERTH_SHUTDOWN_GRACE",
    "BERTH_METRICS_ADDR",
    "BERTH_LOG_FORMAT",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_setting_is_refused_and_named() {
    for name in SETTINGS {
        let env = [(name.to_owned(), String::new())];
        let seen = process::run("coordinator", &["--print-config"], &env, b"").await;
        assert_eq!(seen.code, Some(2), "{name}: {}{}", seen.stdout, seen.stderr);
        let flag = format!("--{}", name.trim_start_matches("BERTH_").to_lowercase().replace('_', "-"));
        assert!(seen.stderr.contains(name) || seen.stderr.contains(&flag), "{name}: {}", seen.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn print_config_lists_every_setting_and_where_it_came_from() {
    let values = [
        ("GRPC_PORT", "4711"),
        ("HTTP_PORT", "4712"),
        ("BERTH_HTTP_LISTEN", "127.0.0.7"),
        ("BERTH_HTTP_CERT", "/nowhere/cert.pem"),
        ("BERTH_HTTP_KEY", "/nowhere/key.pem"),
        ("BERTH_HTTP_HOSTS", "berth.example.org"),
        ("BERTH_HTTP_ORIGINS", "https://app.example.org:443"),
        ("LOG_LEVEL", "debug"),
        ("BERTH_STATE_DIR", "/nowhere/state"),
        ("BERTH_LISTEN", "127.0.0.9"),
        ("BERTH_INSECURE_LISTEN", "true"),
        ("BERTH_TEMPLATES", "/nowhere/templates.toml"),
        ("BERTH_LEASE", "33s"),
        ("BERTH_PAUSED_TTL", "55s"),
        ("BERTH_AUDIT_ARGV", "full"),
        ("BERTH_AUDIT_KEEP", "66h"),
        ("BERTH_ARTIFACT_KEEP", "77h"),
        ("BERTH_ARTIFACT_QUOTA", "123456"),
        ("BERTH_ARTIFACT_COUNT", "234"),
        ("BERTH_ARTIFACT_SIZE", "345678"),
        ("BERTH_SHUTDOWN_GRACE", "44s"),
        ("BERTH_METRICS_ADDR", "127.0.0.8:4713"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("BERTH_LOG_FORMAT", "json"),
    ];
    let row = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("{name} is not listed:\n{text}")).to_owned()
    };
    let plain = process::run("coordinator", &["--print-config"], &[], b"").await.ok();
    let env = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let set = process::run("coordinator", &["--print-config"], &env, b"").await.ok();
    for (name, value) in values {
        assert!(row(&plain, name).ends_with("default"), "{}", row(&plain, name));
        let line = row(&set, name);
        assert!(line.contains(value) && line.ends_with("environment"), "{line}");
    }
}
