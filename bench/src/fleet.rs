//! Berth itself: coordinator, worker and agent as real processes, through all three hops.

use std::time::{Duration, Instant};

use berth_proto::v1::{self, task_event::Event, task_spec::Program};
use berth_tests::{Cluster, Setup, skip};

use crate::{context, stats::Table};

const BULK: usize = 64 << 20;
const CHUNK: usize = 256 << 10;

/// Measures one backend.
pub async fn berth(table: &mut Table, backend: &str, rounds: usize) {
    if !usable(table, backend).await {
        return;
    }
    let column = format!("berth {backend}");
    let cluster = Cluster::start(Setup { max_sessions: 8, ..Setup::new(backend) }).await;
    let slow = (rounds / 4).max(5);
    let (created, first) = sessions(&cluster, if backend == "docker" { slow / 2 } else { slow }).await;
    table.add("session: create to first output", &column, first);
    table.add("session: create", &column, created);

    let session = cluster.session().await.id;
    table.add("exec of true", &column, tasks(&cluster, &session, &["true"], rounds).await);
    let python = ["python3", "-c", "print(1)"];
    table.add("python3 -c 'print(1)'", &column, tasks(&cluster, &session, &python, slow).await);
    context::contexts(table, &column, &cluster, &session, rounds).await;
    let mut samples = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        upload(&cluster, &session, &vec![round as u8; 1 << 10], 1 << 10).await;
        assert_eq!(download(&cluster, &session).await, 1 << 10);
        samples.push(start.elapsed());
    }
    table.add("1 KiB write + read", &column, samples);
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let bulk = vec![7u8; BULK];
    for _ in 0..5 {
        let start = Instant::now();
        upload(&cluster, &session, &bulk, CHUNK).await;
        up.push(start.elapsed());
        let start = Instant::now();
        assert_eq!(download(&cluster, &session).await, BULK);
        down.push(start.elapsed());
    }
    table.add("64 MiB upload", &column, up);
    table.add("64 MiB download", &column, down);
    let request = v1::DeleteSessionRequest { session_id: session, ..Default::default() };
    cluster.sessions().delete_session(request).await.expect("it can be deleted");
    cluster.stop().await;
}

/// Whether this machine can run it; noted if not.
pub async fn usable(table: &mut Table, backend: &str) -> bool {
    let missing =
        backend == "native" && skip::without_root("bench") || backend == "docker" && !docker_usable().await;
    if missing {
        table.note(format!("berth {backend}: not measured: this machine can't run it"));
    }
    !missing
}

async fn docker_usable() -> bool {
    let mut inspect = tokio::process::Command::new("docker");
    inspect.args(["image", "inspect", "berth/sandbox:base"]).stdout(std::process::Stdio::null());
    inspect.stderr(std::process::Stdio::null()).status().await.is_ok_and(|status| status.success())
}

/// Cold sessions, one after another: until it is ready, and until its first task's output.
async fn sessions(cluster: &Cluster, rounds: usize) -> (Vec<Duration>, Vec<Duration>) {
    let (mut created, mut first) = (Vec::new(), Vec::new());
    for round in 0..rounds + 1 {
        let start = Instant::now();
        let session = cluster.session().await.id;
        let ready = start.elapsed();
        run(cluster, &session, &["echo", "1"]).await;
        if round > 0 {
            created.push(ready);
            first.push(start.elapsed());
        }
        let request = v1::DeleteSessionRequest { session_id: session, ..Default::default() };
        cluster.sessions().delete_session(request).await.expect("it can be deleted");
    }
    (created, first)
}

/// How long a program takes in a session, after some rounds that don't count.
pub async fn tasks(cluster: &Cluster, session: &str, program: &[&str], rounds: usize) -> Vec<Duration> {
    let mut samples = Vec::new();
    for round in 0..rounds + 10 {
        let start = Instant::now();
        run(cluster, session, program).await;
        if round >= 10 {
            samples.push(start.elapsed());
        }
    }
    samples
}

/// Runs a task through its stream, to its end with 0.
async fn run(cluster: &Cluster, session: &str, program: &[&str]) {
    let args = program.iter().map(|arg| (*arg).to_owned()).collect();
    let task = v1::TaskSpec { program: Some(Program::Argv(v1::Argv { args })), ..Default::default() };
    let request = v1::RunRequest { session_id: session.into(), task: Some(task), ..Default::default() };
    let mut stream = cluster.tasks().run(request).await.expect("it starts").into_inner();
    while let Some(event) = stream.message().await.expect("the stream goes on") {
        if let Some(Event::Ended(task)) = event.event {
            let kind = task.end.and_then(|end| end.outcome).and_then(|outcome| outcome.kind);
            assert_eq!(kind, Some(v1::outcome::Kind::Exited(0)), "{program:?}");
            return;
        }
    }
    panic!("{program:?}: the stream ended before the task");
}

async fn upload(cluster: &Cluster, session: &str, bytes: &[u8], chunk: usize) {
    let header = v1::WriteHeader { session_id: session.into(), path: "bench".into(), ..Default::default() };
    let mut parts = vec![v1::WriteRequest::header(header)];
    let bytes = bytes.to_vec();
    parts.extend(bytes.chunks(chunk).map(|c| v1::WriteRequest::data(c.to_vec())));
    parts.push(v1::WriteRequest::end());
    cluster.files().write(tokio_stream::iter(parts)).await.expect("it is written");
}

async fn download(cluster: &Cluster, session: &str) -> usize {
    let request = v1::ReadRequest { session_id: session.into(), path: "bench".into(), ..Default::default() };
    let mut stream = cluster.files().read(request).await.expect("it is read").into_inner();
    let mut length = 0;
    while let Some(part) = stream.message().await.expect("the stream goes on") {
        if let Some(v1::read_response::Part::Data(data)) = part.part {
            length += data.len();
        }
    }
    length
}
