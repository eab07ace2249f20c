//! What several tests do.

use std::path::Path;

use berth_net::{
    Files, Pair,
    issue::{Authority, ISSUED_FOR, Validity},
};
use berth_proto::v1::{self, task_event::Event, task_spec::Program};
use berth_tests::Cluster;
use tonic::Status;

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn shell(line: &str) -> v1::TaskSpec {
    v1::TaskSpec { program: Some(Program::Shell(line.to_owned())), ..Default::default() }
}

/// Runs a shell line to its end; its standard output and its outcome.
pub async fn run(cluster: &Cluster, session: &str, line: &str) -> (String, v1::outcome::Kind) {
    try_run(cluster, session, line).await.expect("the task runs")
}

pub async fn try_run(
    cluster: &Cluster,
    session: &str,
    line: &str,
) -> Result<(String, v1::outcome::Kind), Status> {
    let request =
        v1::RunRequest { session_id: session.into(), task: Some(shell(line)), ..Default::default() };
    let mut stream = cluster.tasks().run(request).await?.into_inner();
    let mut output = Vec::new();
    while let Some(event) = stream.message().await? {
        match event.event {
            Some(Event::Stdout(chunk)) => output.extend_from_slice(&chunk.data),
            Some(Event::Ended(task)) => {
                let kind = task.end.and_then(|end| end.outcome).and_then(|o| o.kind).expect("an outcome");
                return Ok((String::from_utf8_lossy(&output).trim_end().to_owned(), kind));
            }
            _ => {}
        }
    }
    panic!("the stream ended before the task");
}

/// Starts a program in a session, which is named by its id or name; the task's id.
pub async fn started(cluster: &Cluster, session: &str, program: &[&str]) -> String {
    let told = cluster.berth(&[&["run", "--detach", "-s", session, "--"], program].concat()).await.ok();
    told.split_whitespace().last().expect("a task's id").to_owned()
}

pub async fn state(cluster: &Cluster, session: &str) -> v1::Session {
    let request = v1::GetSessionRequest { session_id: session.into() };
    cluster.sessions().get_session(request).await.expect("the session is known").into_inner()
}

pub async fn delete(cluster: &Cluster, session: &str) {
    let request = v1::DeleteSessionRequest { session_id: session.into(), ..Default::default() };
    cluster.sessions().delete_session(request).await.expect("it can be deleted");
}

/// Makes a test of each backend out of one for both.
macro_rules! on_both {
    ($what:ident: $native:ident, $docker:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $native() {
            if !berth_tests::skip::without_root(concat!("e2e ", stringify!($native))) {
                $what("native").await;
            }
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $docker() {
            let test = concat!("e2e ", stringify!($docker));
            if !berth_tests::skip::without_docker(test) && !berth_tests::skip::without_root(test) {
                $what("docker").await;
            }
        }
    };
}
pub(crate) use on_both;

/// A CA of the test's own in `dir`, and a server's certificate for `host` and this machine.
pub fn certificate(dir: &Path, host: &str) -> Files {
    let files = Files::new(dir.join("http-tls"));
    let authority = Authority::make(&files).expect("a CA");
    authority.coordinator(&[host.to_owned()], Validity::lasting(ISSUED_FOR)).expect("a certificate");
    files
}

/// Settings of a coordinator whose HTTP port has this certificate.
pub fn http_over_tls(pair: &Pair) -> Vec<(String, String)> {
    let row = |name: &str, file: &Path| (name.to_owned(), file.display().to_string());
    vec![row("BERTH_HTTP_CERT", &pair.certificate), row("BERTH_HTTP_KEY", &pair.key)]
}
