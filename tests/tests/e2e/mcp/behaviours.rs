//! What holds for every tool, whatever it does: a call that is no good is answered by the tool, with what to do, and the
//! conversation goes on. The tools are those that are listed, and their arguments are made from their schemas: one that is
//! added later is tried, too.

use berth_tests::{
    Cluster, Setup,
    mcp::{Mcp, VERSIONS},
};
use serde_json::{Map, Value, json};

use super::{USUAL, finish, live};

const TASK: &str = "01900000000070008000000000000000";

/// Good arguments, as far as the schema can tell.
fn good(tool: &str, schema: &Value) -> Map<String, Value> {
    let mut arguments = Map::new();
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let value = match (name, schema["properties"][name]["type"].as_str().unwrap_or_default()) {
            ("task_id", _) => json!(TASK),
            ("session" | "artifact_id", _) => json!(TASK),
            (_, "integer" | "number") => json!(8000),
            (_, "boolean") => json!(true),
            (_, "array") => json!(["six"]),
            (_, "object") => json!({}),
            _ => json!("x"),
        };
        arguments.insert(name.to_owned(), value);
    }
    match tool {
        "run_python" => drop(arguments.insert("code".into(), json!("1"))),
        "task_input" => drop(arguments.insert("input".into(), json!("x"))),
        _ => {}
    }
    arguments
}

/// Calls that are no good, each with what the refusal says.
fn bad(tool: &str, schema: &Value, another: &[&str]) -> Vec<(Map<String, Value>, &'static str)> {
    let good = good(tool, schema);
    let with = |name: &str, value: Value| {
        let mut arguments = good.clone();
        arguments.insert(name.to_owned(), value);
        arguments
    };
    let mut calls = vec![(with("no_such_argument", json!(1)), "no_such_argument")];
    for (name, about) in schema["properties"].as_object().expect("properties") {
        let wrong = if about["type"] == "object" { json!([1]) } else { json!({"an": "object"}) };
        calls.push((with(name, wrong), "invalid type"));
    }
    for name in
        good.keys().filter(|name| schema["required"].as_array().is_some_and(|all| all.contains(&json!(name))))
    {
        let mut arguments = good.clone();
        arguments.remove(name);
        calls.push((arguments, "missing field"));
    }
    if schema["properties"]["session"].is_object() {
        calls.push((with("session", json!("nobody")), "no session is called"));
    }
    // What a session left outlives it: one that is not known has left nothing, and that is no error.
    if schema["properties"]["session"].is_object() && tool != "artifact_list" {
        calls.push((with("session", json!(TASK)), "SESSION_NOT_FOUND"));
        for session in another {
            let says = if session.len() == 32 { "SESSION_NOT_FOUND" } else { "no session is called" };
            calls.push((with("session", json!(session)), says));
        }
    }
    calls
}

/// Red for a tool that answers otherwise, runs anyway, reaches another tenant's session or takes the conversation with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tool_refuses_what_is_no_good_and_the_conversation_goes_on() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut theirs = Mcp::start(&cluster, &[], USUAL).await;
    let made = theirs.ok("session_create", json!({"name": "theirs"})).await["session"].clone();
    theirs.ok("fs_write", json!({"path": "x", "contents": "x", "session": made})).await;
    let token = cluster.berth(&["token", "create", "--tenant", "red"]).await.ok();
    let token = token.split_whitespace().last().unwrap().to_owned();
    for version in VERSIONS {
        let mut mcp = Mcp::start_as(&cluster, &token, &[], version).await;
        let tools = mcp.request("tools/list", json!({})).await["result"]["tools"].as_array().unwrap().clone();
        assert!(tools.len() >= 21, "{version}: {}", tools.len());
        let mut calls = 0;
        for tool in &tools {
            let name = tool["name"].as_str().unwrap();
            for (arguments, says) in bad(name, &tool["inputSchema"], &[made.as_str().unwrap(), "theirs"]) {
                let said = mcp.refused(name, Value::Object(arguments.clone())).await;
                // Which of two faults is told first is not ours to say.
                let says_it =
                    [says, "invalid type", "unknown variant", "missing field", "ARTIFACT_NOT_FOUND"]
                        .iter()
                        .any(|says| said.contains(says));
                assert!(says_it && said.len() < 5000, "{version}: {name} {arguments:?}: {said}");
                calls += 1;
            }
            assert_eq!(mcp.ok("echo", json!({"message": name})).await["message"], name, "{version}");
        }
        assert!(calls > 100, "{calls}");
        for package in [
            "--index-url=http://x",
            "--index-url",
            "-r/etc/passwd",
            "../x",
            "/etc",
            "git+https://x/y",
            "http://x/y.whl",
            "x @ http://y",
        ] {
            let said = mcp.refused("pkg_install", json!({"packages": ["six", package]})).await;
            assert!(said.contains("no name of a package"), "{version}: {package}: {said}");
        }
        assert_eq!(mcp.end().await, Some(0));
    }
    // What is another's is as it was.
    assert_eq!(theirs.ok("fs_read", json!({"path": "x", "session": "theirs"})).await["contents"], "x");
    assert_eq!(live(&cluster).await, [made.as_str().unwrap()], "nothing was made by what was refused");
    theirs.ok("session_end", json!({"session": "theirs"})).await;
    finish(cluster, theirs).await;
}
