//! Programs: to their end, in the background, cancelled, and how they come along.

use std::time::{Duration, Instant};

use berth_tests::{Cluster, READY, mcp::Mcp, until};
use serde_json::{Value, json};

use super::{USUAL, cluster, finish, native};

/// On both backends: what a model does most.
async fn programs_run(cluster: Cluster) {
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    let ran = mcp.call("run_shell", json!({"command": "echo out; echo err >&2; exit 7"})).await;
    let data = &ran["structuredContent"];
    assert_eq!((&data["stdout"], &data["stderr"]), (&json!("out\n"), &json!("err\n")), "{ran}");
    assert_eq!((&data["outcome"], &data["exit_code"]), (&json!("exited"), &json!(7)), "{ran}");
    let text = ran["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("exit code 7") && text.contains("--- stderr\nerr\n"), "{text}");
    assert_ne!(ran["isError"], true, "an exit code is what was asked for, and no error of the tool");
    let ran = mcp
        .ok("run_python", json!({"code": "import sys; print(6 * 7, sys.argv[1:])", "args": ["a b"]}))
        .await;
    assert_eq!(ran["stdout"], "42 ['a b']\n", "{ran}");
    mcp.ok("fs_write", json!({"path": "dir/p.py", "contents": "import os; print(os.getcwd(), input())"}))
        .await;
    let ran = mcp.ok("run_python", json!({"file": "p.py", "cwd": "dir", "input": "typed\n"})).await;
    assert_eq!(ran["stdout"], "/workspace/dir typed\n", "{ran}");
    let ran =
        mcp.ok("run_shell", json!({"command": "echo $A; cat dir/p.py | wc -l", "env": {"A": "b c"}})).await;
    assert_eq!(ran["stdout"], "b c\n0\n", "files stay, and so does the session: {ran}");
    let ran = mcp.ok("run_shell", json!({"command": "sleep 1000", "timeout_seconds": 0.5})).await;
    assert_eq!(ran["outcome"], "timed_out", "{ran}");
    finish(cluster, mcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_run_natively() {
    let Some(cluster) = cluster("native", "programs_run_natively").await else { return };
    programs_run(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_run_in_docker() {
    let Some(cluster) = cluster("docker", "programs_run_in_docker").await else { return };
    programs_run(cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_in_the_background_is_looked_after() {
    let Some((cluster, mut mcp)) = native("a_task_in_the_background_is_looked_after").await else { return };
    let started =
        mcp.ok("run_background", json!({"command": "while read l; do echo got $l; done; echo end"})).await;
    let task = started["task_id"].clone();
    let status = mcp.ok("task_get_status", json!({"task_id": task})).await;
    assert_eq!(status["state"], "running", "{status}");
    mcp.ok("task_input", json!({"task_id": task, "input": "one\n"})).await;
    let seen = until(READY, "its output", async || {
        let read = mcp.ok("task_get_result", json!({"task_id": task})).await;
        (read["stdout"] == "got one\n").then_some(read)
    })
    .await;
    assert_eq!((&seen["state"], &seen["stdout_next"]), (&json!("running"), &json!(8)), "{seen}");
    mcp.ok("task_input", json!({"task_id": task, "input": "dHdvCg==", "encoding": "base64", "end": true}))
        .await;
    let read =
        mcp.ok("task_get_result", json!({"task_id": task, "wait_seconds": 60, "stdout_offset": 8})).await;
    assert_eq!((&read["stdout"], &read["state"]), (&json!("got two\nend\n"), &json!("done")), "{read}");
    assert_eq!(read["end"]["exit_code"], 0, "{read}");
    let said = mcp.refused("task_input", json!({"task_id": task, "input": "x"})).await;
    assert!(said.contains("TASK_DONE"), "{said}");
    // Ended, with all that it started.
    let line = "trap '' TERM; sleep 1000 & wait";
    let task = mcp.ok("run_background", json!({"command": line})).await["task_id"].clone();
    let ended = mcp.ok("task_cancel", json!({"task_id": task})).await;
    assert_eq!((&ended["state"], &ended["end"]["outcome"]), (&json!("done"), &json!("cancelled")), "{ended}");
    let again = mcp.ok("task_cancel", json!({"task_id": task})).await;
    assert_eq!(again["end"]["outcome"], "cancelled", "{again}");
    // A wait that is over says how it stands.
    let task = mcp.ok("run_background", json!({"command": "sleep 1000"})).await["task_id"].clone();
    let read = mcp.ok("task_get_result", json!({"task_id": task, "wait_seconds": 0.3})).await;
    assert_eq!(read["state"], "running", "{read}");
    finish(cluster, mcp).await;
}

/// Red when the tool does not heed the cancel: the marker then comes, and the task stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_ends_its_task() {
    let Some((cluster, mut mcp)) = native("a_cancelled_call_ends_its_task").await else { return };
    for version in [USUAL, "2026-07-28"] {
        let mut mcp = Mcp::start(&cluster, &[], version).await;
        let id =
            mcp.ask_tool("run_shell", json!({"command": "touch begun; sleep 1000; touch survived"})).await;
        until(READY, "the task to begin", async || {
            let listed = mcp.ok("fs_list", json!({})).await;
            listed["entries"].as_array().unwrap().iter().any(|entry| entry["path"] == "begun").then_some(())
        })
        .await;
        let params = json!({"requestId": id, "reason": "no longer wanted"});
        mcp.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})).await;
        until(READY, "the task to end", async || {
            let ran = mcp.ok("run_shell", json!({"command": "pgrep -x sleep | wc -l"})).await;
            (ran["stdout"] == "0\n").then_some(())
        })
        .await;
        let answered = mcp.notifications.iter().any(|message| message["id"] == json!(id));
        assert!(!answered, "{version}: who cancelled gets no answer: {:?}", mcp.notifications);
        assert_eq!(mcp.end().await, Some(0));
    }
    assert_eq!(mcp.ok("echo", json!({"message": "x"})).await["message"], "x");
    finish(cluster, mcp).await;
}

/// Red without the ticks: nothing comes before the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_says_how_it_comes_along() {
    let Some((cluster, mut mcp)) = native("a_call_says_how_it_comes_along").await else { return };
    let line = "for i in 1 2 3 4 5 6; do echo step $i; sleep 0.5; done";
    let params =
        json!({"name": "run_shell", "arguments": {"command": line}, "_meta": {"progressToken": "p1"}});
    let answer = mcp.request("tools/call", params).await;
    assert_eq!(answer["result"]["structuredContent"]["exit_code"], 0, "{answer}");
    let told: Vec<Value> = mcp
        .notifications
        .iter()
        .filter(|message| message["method"] == "notifications/progress")
        .map(|message| message["params"].clone())
        .collect();
    assert!(told.len() >= 2, "{told:?}");
    assert!(told.iter().all(|params| params["progressToken"] == "p1"), "{told:?}");
    let steps: Vec<f64> = told.iter().filter_map(|params| params["progress"].as_f64()).collect();
    assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "it grows: {steps:?}");
    assert!(told.iter().any(|params| params["message"].as_str().unwrap().contains("step ")), "{told:?}");
    // Who gave no token is told nothing.
    mcp.notifications.clear();
    mcp.ok("run_shell", json!({"command": "sleep 1.5"})).await;
    assert_eq!(mcp.notifications, Vec::<Value>::new());
    finish(cluster, mcp).await;
}

/// Red when calls wait for one another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_run_beside_each_other() {
    let Some((cluster, mut mcp)) = native("calls_run_beside_each_other").await else { return };
    let wait = "until [ -e go ]; do sleep 0.05; done; echo went";
    let first = mcp.ask_tool("run_shell", json!({"command": wait})).await;
    let began = Instant::now();
    mcp.ok("run_shell", json!({"command": "touch go"})).await;
    let answer = match mcp.notifications.iter().find(|message| message["id"] == json!(first)) {
        Some(answer) => answer.clone(),
        None => mcp.answer(first).await,
    };
    assert_eq!(answer["result"]["structuredContent"]["stdout"], "went\n", "{answer}");
    assert!(began.elapsed() < Duration::from_secs(100));
    finish(cluster, mcp).await;
}
