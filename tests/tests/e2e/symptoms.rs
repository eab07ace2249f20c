//! What people see when something is wrong: each is provoked here, and its words are looked for in docs/troubleshooting.md,
//! where they are explained. (Ports of a fleet in containers, and its newer binaries: `compose`.)

use std::path::Path;

use berth_tests::{Cluster, READY, Setup, process, skip, until};

const TROUBLESHOOTING: &str = include_str!("../../../docs/troubleshooting.md");

/// What was said has these words, and the document explains them.
#[track_caller]
pub fn explained(words: &str, said: &str) {
    assert!(said.contains(words), "{words:?} was to be said: {said}");
    let row = format!("| `{words}`");
    assert!(TROUBLESHOOTING.lines().any(|line| line.starts_with(&row)), "{words:?} is not explained");
}

async fn said(name: &'static str, args: &[&str], env: &[(&str, &str)]) -> String {
    let env: Vec<_> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let ended = process::run(name, args, &env, b"").await;
    assert!(!matches!(ended.code, Some(0)), "{}", ended.stdout);
    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert!(all.contains("hint: "), "what to do about it: {all}");
    all
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_nobody_takes_are_explained() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it is bound");
    let nobody = said("berth", &["ps"], &[("BERTH_ADDRESS", &free.to_string())]).await;
    explained("no coordinator answers at", &nobody);

    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let address = ("BERTH_ADDRESS", cluster.address.as_str());
    explained("the call carries no token", &said("berth", &["ps"], &[address]).await);
    let other = format!("berth_{}", "ab".repeat(32));
    explained(
        "the token is not known here",
        &said("berth", &["ps"], &[address, ("BERTH_TOKEN", &other)]).await,
    );

    // The port that it has, for another one.
    let state = cluster.dir.path().join("second");
    let port = cluster.address.rsplit(':').next().expect("a port");
    let second = [("GRPC_PORT", port), ("HTTP_PORT", "0"), ("BERTH_STATE_DIR", text(&state))];
    let taken = said("coordinator", &[], &second).await;
    explained("port N is in use by pid", &taken.replace(&format!("port {port}"), "port N"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_component_from_starting_is_explained() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = format!("unix://{}/none.sock", dir.path().display());
    let state = dir.path().join("w");
    let engine = [
        ("BERTH_SANDBOX", "docker"),
        ("DOCKER_HOST", socket.as_str()),
        ("BERTH_STATE_DIR", text(&state)),
        ("BERTH_JOIN_TOKEN", "berth_x"),
        ("BERTH_WORKSPACE", "directory"),
    ];
    explained("the container engine does not run", &said("worker", &[], &engine).await);

    if skip::without_root("e2e what_keeps_a_component_from_starting_is_explained") {
        return;
    }
    // As somebody whom the directory does not belong to.
    let refused = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(process::binary("coordinator"))
        .env_clear()
        .env("BERTH_STATE_DIR", dir.path().join("c"))
        .envs([("GRPC_PORT", "0"), ("HTTP_PORT", "0")])
        .output()
        .expect("setpriv");
    explained("can't be used: Permission denied", &String::from_utf8_lossy(&refused.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_can_not_join_are_explained() {
    let mut cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let bad = format!("berth_{}", "cd".repeat(32));
    let file = cluster.dir.path().join("another.token");
    std::fs::write(&file, bad).expect("a file");
    let own = [("BERTH_JOIN_TOKEN_FILE", text(&file))];
    cluster.join("stranger", &own).await;
    let log = until(READY, "it to be refused", async || {
        let log = cluster.workers[0].process.log();
        log.contains("will try on").then_some(log)
    })
    .await;
    explained("no link to the coordinator: will try on", &log);
    explained("the coordinator refused the join token", &log);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_runs_into_is_explained() {
    if skip::without_root("e2e what_a_task_runs_into_is_explained") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let run = async |args: &[&str]| {
        let ended = cluster.berth(args).await;
        assert_ne!(ended.code, Some(0), "{}", ended.stdout);
        format!("{}{}", ended.stdout, ended.stderr)
    };
    let hungry = ["run", "--memory", "64M", "--", "python3", "-c", "x = bytearray(10**9)"];
    explained("the task ran out of memory", &run(&hungry).await);
    let fetch = "import urllib.request as u; u.urlopen('https://berth.invalid')";
    let alone = run(&["run", "--", "python3", "-c", fetch]).await;
    explained("Temporary failure in name resolution", &alone);
    let elsewhere = run(&["run", "--egress", "packages", "--", "python3", "-c", fetch]).await;
    explained("Tunnel connection failed: 403", &elsewhere);
    explained("full egress is not enabled there", &run(&["create", "--egress", "full"]).await);
    cluster.stop().await;
}
