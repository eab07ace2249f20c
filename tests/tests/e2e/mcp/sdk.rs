//! The official Python SDK as a client, over both transports. It holds each answer against its tool's schema, and reads the
//! protocol as its authors mean it.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use berth_tests::{Cluster, READY, Setup, http::gateway, process::binary, python, skip, until};

use super::live;

const REQUIREMENTS: &str = include_str!("../../../python/mcp.txt");
const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/agent_loop.py");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/mcp_sdk.py");

/// A cluster, and the SDK's Python. `None`: not here.
async fn ready(test: &str) -> Option<(Cluster, PathBuf)> {
    let test = format!("e2e mcp {test}");
    if skip::without_root(&test) {
        return None;
    }
    let venv = python::venv(&test, REQUIREMENTS)?;
    let cluster = Cluster::start(Setup { max_sessions: 8, ..Setup::new("native") }).await;
    Some((cluster, venv.join("bin/python")))
}

/// Runs Python with nothing of our environment but PATH.
async fn run(cluster: &Cluster, python: &Path, args: &[&str]) -> (ExitStatus, String) {
    let mut command = tokio::process::Command::new(python);
    command
        .arg("-B")
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", cluster.dir.path())
        .env("BERTH_ADDRESS", &cluster.address)
        .env("BERTH_TOKEN", &cluster.admin_token)
        .env("BERTH", binary("berth"))
        .env("MCP_URL", format!("http://{}/mcp", gateway(cluster).await))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output =
        tokio::time::timeout(READY * 5, command.output()).await.expect("it ends").expect("it starts");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status, text)
}

/// Runs the classes of the script, all of whose tests must pass.
async fn official_sdk(test: &str, classes: [&str; 2], at_least: usize) {
    let Some((cluster, python)) = ready(test).await else { return };
    let (status, text) = run(&cluster, &python, &[SCRIPT, classes[0], classes[1]]).await;
    let ran = text.split("\nRan ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    assert!(status.success() && text.ends_with("\nOK\n"), "{text}");
    assert!(ran.is_some_and(|ran| ran >= at_least), "{text}");
    assert!(!text.contains("termination failed"), "{text}");
    // Each client's sessions ended with it, and those that it had named it ended itself.
    until(READY, "all sessions to end", async || live(&cluster).await.is_empty().then_some(())).await;
    cluster.stop().await;
}

/// Red when an answer is not what its tool's schema says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_python_sdk_works_over_stdio() {
    official_sdk("the_official_python_sdk_works_over_stdio", ["StdioLegacy", "StdioAuto"], 34).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_python_sdk_works_over_http() {
    official_sdk("the_official_python_sdk_works_over_http", ["HttpLegacy", "HttpAuto"], 35).await;
}

/// `examples/agent_loop.py`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_an_agent_does_its_work() {
    let Some((cluster, python)) = ready("the_example_of_an_agent_does_its_work").await else { return };
    let (status, text) = run(&cluster, &python, &[AGENT]).await;
    assert!(status.success(), "{text}");
    let steps = ["-> fs_write", "<- ZeroDivisionError", "-> fs_edit", "<- all tests passed", "It works"];
    let mut rest = text.as_str();
    for step in steps {
        rest = rest.split_once(step).unwrap_or_else(|| panic!("no {step:?} where it belongs:\n{text}")).1;
    }
    assert_eq!(live(&cluster).await, Vec::<String>::new(), "its session ends with it");
    cluster.stop().await;
}
