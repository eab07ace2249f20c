//! The protocol: its versions, its errors, what is listed.

use berth_tests::{
    Cluster, Setup,
    mcp::{Mcp, VERSIONS},
};
use serde_json::{Value, json};

use super::{USUAL, finish, live};

/// Red for a version that `rmcp` no longer serves, or whose results lose a field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_version_of_the_protocol_is_served() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    for version in VERSIONS {
        let mut mcp = Mcp::start(&cluster, &[], version).await;
        let listed = mcp.request("tools/list", json!({})).await["result"]["tools"].clone();
        let names: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|t| t["name"].as_str()).collect();
        for name in ["echo", "fs_read", "fs_write", "run_shell", "run_python", "task_get_status"] {
            assert!(names.contains(&name), "{version}: {name} is not among {names:?}");
        }
        assert!(names.iter().all(|name| !name.contains('.')), "{names:?}");
        for tool in listed.as_array().unwrap() {
            assert!(tool["inputSchema"]["properties"].is_object(), "{tool}");
            assert!(tool["outputSchema"]["properties"].is_object(), "{tool}");
            assert!(tool["annotations"]["readOnlyHint"].is_boolean(), "{tool}");
        }
        assert_eq!(mcp.ok("echo", json!({"message": "hi\u{1b}"})).await["message"], "hi\u{1b}");
        assert_eq!(live(&cluster).await.len(), 0, "{version}: no session before one is needed");
        let ran = mcp.ok("run_shell", json!({"command": "echo a; exit 3"})).await;
        assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!("a\n"), &json!(3)), "{version}");
        assert_eq!(live(&cluster).await, [ran["session"].as_str().unwrap()], "{version}");
        assert_eq!(mcp.end().await, Some(0));
        assert_eq!(live(&cluster).await.len(), 0, "{version}");
    }
    cluster.stop().await;
}

/// A name with dots is the same tool. Red when only underscores are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_may_have_dots_and_content_is_contents() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    mcp.ok("fs.write", json!({"path": "a", "content": "x"})).await;
    assert_eq!(mcp.ok("fs.read", json!({"path": "a"})).await["contents"], "x");
    mcp.ok("fs_write", json!({"path": "a", "contents": "y"})).await;
    assert_eq!(mcp.ok("fs_read", json!({"path": "a"})).await["contents"], "y");
    finish(cluster, mcp).await;
}

/// What is no message, or asks for what is not there, is answered or passed over, and the conversation goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_does_not_end_the_conversation() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    for line in [&b"not json"[..], b"", b"{}", b"[1,2]", b"\xff\xfe", b"{\"jsonrpc\":\"2.0\"}", b"null"] {
        mcp.send_line(line).await;
    }
    let answer = mcp.request("no/such/method", json!({})).await;
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    let answer = mcp.request("tools/call", json!({"name": "no_such_tool", "arguments": {}})).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("no_such_tool"), "{answer}");
    let answer = mcp.request("tools/call", json!({"name": "echo", "arguments": [1]})).await;
    assert!(answer["error"].is_object(), "{answer}");
    assert_eq!(mcp.ok("echo", json!({"message": "still here"})).await["message"], "still here");
    finish(cluster, mcp).await;
}

/// Each tool, with arguments that are none of its. Red for one that runs anyway, or fails without a word of what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_arguments_are_answered_with_what_to_do() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    let listed = mcp.request("tools/list", json!({})).await["result"]["tools"].clone();
    for tool in listed.as_array().unwrap() {
        let name = tool["name"].as_str().unwrap();
        let said = mcp.refused(name, json!({"no_such_argument": 1})).await;
        assert!(said.contains("no_such_argument") || said.contains("missing field"), "{name}: {said}");
        for required in tool["inputSchema"]["required"].as_array().unwrap_or(&Vec::new()) {
            let said = mcp.refused(name, json!({required.as_str().unwrap(): {"an": "object"}})).await;
            assert!(said.contains("invalid type") || said.contains("missing field"), "{name}: {said}");
        }
    }
    let task = "01900000000070008000000000000000";
    let huge = "x".repeat(200 << 10);
    for (tool, arguments, says) in [
        ("run_shell", json!({"command": " "}), "empty"),
        ("run_shell", json!({"command": "true", "timeout_seconds": -1}), "timeout_seconds"),
        ("run_shell", json!({"command": "true", "timeout_seconds": 1e300}), "timeout_seconds"),
        ("run_shell", json!({"command": "true", "max_output_bytes": 0}), "max_output_bytes"),
        ("run_shell", json!({"command": "true", "env": {"A=B": "x"}}), "env"),
        ("run_shell", json!({"command": huge}), "task.shell"),
        ("run_python", json!({}), "one of `code` and `file`"),
        ("run_python", json!({"code": "1", "file": "a.py"}), "one of `code` and `file`"),
        ("run_python", json!({"code": huge}), "fs_write"),
        ("run_background", json!({"command": ""}), "empty"),
        ("task_get_status", json!({"task_id": "x"}), "no task_id"),
        ("task_get_status", json!({"task_id": task}), "TASK_NOT_FOUND"),
        ("task_get_result", json!({"task_id": task}), "TASK_NOT_FOUND"),
        ("task_get_result", json!({"task_id": task, "wait_seconds": 1e9}), "wait_seconds"),
        ("task_get_result", json!({"task_id": task, "max_bytes": 1u64 << 40}), "max_bytes"),
        ("task_cancel", json!({"task_id": task}), "TASK_NOT_FOUND"),
        ("task_input", json!({"task_id": task}), "nothing to write"),
        ("task_input", json!({"task_id": task, "input": "x"}), "TASK_NOT_FOUND"),
        ("task_input", json!({"task_id": task, "input": "!", "encoding": "base64"}), "base64"),
        ("fs_read", json!({"path": "no/such/file"}), "FILE_NOT_FOUND"),
        ("fs_read", json!({"path": "x", "length": 0}), "length"),
        ("fs_read", json!({"path": "x", "encoding": "ebcdic"}), "unknown variant"),
        ("fs_write", json!({"path": "x", "contents": "!", "encoding": "base64"}), "base64"),
        ("fs_write", json!({"path": "x", "contents": "", "mode": "4755"}), "octal"),
        ("fs_list", json!({"path": "no/such/dir"}), "FILE_NOT_FOUND"),
        ("fs_list", json!({"depth": 0}), "depth"),
        ("fs_stat", json!({"path": "no/such/file"}), "FILE_NOT_FOUND"),
        ("fs_move", json!({"source": "no/such/file", "destination": "x"}), "FILE_NOT_FOUND"),
        ("fs_remove", json!({"path": "no/such/file"}), "FILE_NOT_FOUND"),
        ("fs_edit", json!({"path": "x", "old_text": "", "new_text": "b"}), "empty"),
        ("fs_edit", json!({"path": "x", "old_text": "a", "new_text": "b"}), "FILE_NOT_FOUND"),
        ("fs_search", json!({"pattern": "("}), "regular expression"),
        ("fs_search", json!({"pattern": "x", "glob": "{a"}), "glob"),
        ("fs_search", json!({"pattern": "x", "context": 1000}), "context"),
        ("session_create", json!({"name": ""}), "name"),
        ("session_create", json!({"cpu": 0}), "cpu"),
        ("session_create", json!({"memory_mib": u64::MAX}), "memory"),
        ("session_create", json!({"template": "nothing like it"}), "TEMPLATE_NOT_FOUND"),
        ("session_create", json!({"allow": ["not a host!"]}), "allow"),
        ("session_create", json!({"idle_timeout_seconds": 0}), "idle_timeout_seconds"),
        ("session_info", json!({"session": task}), "SESSION_NOT_FOUND"),
        ("session_info", json!({"session": "nobody"}), "nobody"),
        ("session_end", json!({"session": "nobody"}), "nobody"),
        ("session_checkpoint", json!({"session": task}), "SESSION_NOT_FOUND"),
    ] {
        let said = mcp.refused(tool, arguments.clone()).await;
        assert!(said.contains(says), "{tool} {arguments}: {said}");
        assert!(said.len() < 5000, "{tool}: {} bytes", said.len());
    }
    let told: Value = mcp.ok("echo", json!({"message": "fine"})).await;
    assert_eq!(told["message"], "fine");
    finish(cluster, mcp).await;
}
