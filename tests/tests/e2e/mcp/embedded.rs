//! Without a coordinator: one of its own. And with one that is not there.

use berth_tests::{
    left,
    mcp::Mcp,
    process::{self, binary},
    skip,
};
use serde_json::json;

use super::USUAL;

/// Two at once, each with a Berth of its own, which is gone with it. Red when they share a state directory, or when one
/// leaves its sandbox behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_coordinator_it_starts_one_of_its_own() {
    if skip::without_root("e2e mcp without_a_coordinator_it_starts_one_of_its_own") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let state = dir.path().join("s");
    let agent = binary("berth-agent");
    let env = [
        ("BERTH_STATE_DIR", state.to_str().unwrap()),
        ("BERTH_SANDBOX", "native"),
        ("BERTH_AGENT", agent.to_str().unwrap()),
    ];
    let mut one = Mcp::start_with(&env, &[], USUAL, dir.path().join("one.log")).await;
    let mut two = Mcp::start_with(&env, &[], "2026-07-28", dir.path().join("two.log")).await;
    for (mcp, text) in [(&mut one, "1"), (&mut two, "2")] {
        mcp.ok("fs_write", json!({"path": "note", "contents": text})).await;
    }
    assert_eq!(one.ok("run_python", json!({"code": "print(open('note').read())"})).await["stdout"], "1\n");
    assert_eq!(two.ok("run_shell", json!({"command": "cat note"})).await["stdout"], "2");
    assert!(state.join("mcp-1").is_dir() && state.join("mcp-2").is_dir(), "each has its place");
    assert_eq!(one.end().await, Some(0));
    assert_eq!(two.end().await, Some(0));
    left::assert_nothing(dir.path());
}

/// What is wrong is told by the tools, and a coordinator that comes later is found. Red when it ends instead, or asks only
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_not_there_is_told_of_by_the_tools() {
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let address = format!("127.0.0.1:{port}");
    let state = dir.path().join("s");
    let env = [("BERTH_ADDRESS", address.as_str()), ("BERTH_STATE_DIR", state.to_str().unwrap())];
    let mut mcp = Mcp::start_with(&env, &[], USUAL, dir.path().join("mcp.log")).await;
    let said = mcp.refused("session_info", json!({})).await;
    assert!(said.contains("no coordinator answers at"), "{said}");
    assert_eq!(mcp.ok("echo", json!({"message": "here"})).await["message"], "here");
    assert_eq!(mcp.end().await, Some(0));
    // Nor is a machine on which no sandbox can be made a reason to end.
    let env = [
        ("BERTH_STATE_DIR", state.to_str().unwrap()),
        ("BERTH_SANDBOX", "native"),
        ("BERTH_AGENT", "/no/such/agent"),
    ];
    let mut mcp = Mcp::start_with(&env, &[], USUAL, dir.path().join("mcp.log")).await;
    let said = mcp.refused("session_info", json!({})).await;
    assert!(said.contains("agent"), "{said}");
    assert_eq!(mcp.end().await, Some(0));
    left::assert_nothing(dir.path());
    let seen = process::run("berth", &["mcp", "--session", "x", "--template", "y"], &[], b"").await;
    assert_eq!(seen.code, Some(2), "{seen:?}");
}
