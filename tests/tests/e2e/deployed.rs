//! A fleet of docker-compose.yml by the doors that its users have: the command line, the gateway's published port (plain HTTP,
//! MCP, E2B's SDK), all over TLS with the fleet's CA and tokens. `make docker-test` runs this against the fleet that it has
//! started; else one is started here. (The contract, over gRPC, is held by contract `fleet::`.)

use std::panic::AssertUnwindSafe;

use berth_tests::{
    containers::Fleet,
    http::{Reply, reply},
    process, skip,
};
use futures::{FutureExt, future::LocalBoxFuture};
use serde_json::{Value, json};

use crate::e2b;

const TEST: &str = "e2e each_door_of_a_fleet_opens";
type Door = for<'a> fn(&'a Fleet) -> LocalBoxFuture<'a, ()>;
const DOORS: [(&str, Door); 4] = [
    ("the command line", |fleet| Box::pin(command_line(fleet))),
    ("plain HTTP", |fleet| Box::pin(plain_http(fleet))),
    ("MCP over HTTP", |fleet| Box::pin(mcp(fleet))),
    ("E2B's SDK", |fleet| Box::pin(sdk(fleet))),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_door_of_a_fleet_opens() {
    if skip::without_docker(TEST) || skip::without_root(TEST) {
        return;
    }
    let fleet = Fleet::running().unwrap_or_else(|| {
        let mut fleet = Fleet::new();
        fleet.free();
        fleet.ok(&["up"]);
        fleet
    });
    let mut failed = Vec::new();
    for (name, door) in DOORS {
        // What is wrong of one is told of that one, and the others are tried.
        if AssertUnwindSafe(door(&fleet)).catch_unwind().await.is_err() {
            failed.push(name);
        }
    }
    assert_eq!(failed, [] as [&str; 0]);
}

async fn command_line(fleet: &Fleet) {
    let berth =
        async |args: &[&str], stdin: &[u8]| process::run("berth", args, &fleet.settings(), stdin).await;
    let name = format!("door-{}", berth_proto::SessionId::new());
    let made = fleet.berth(&["create", "--name", &name]).await;
    let line = "cat; echo told >&2; exit 7";
    let ran = berth(&["run", "-s", &name, "--", "sh", "-c", line], b"typed").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "typed"), "{ran:?}");
    assert!(ran.stderr.contains("told"), "{ran:?}");
    // Files, in and out.
    let dir = tempfile::tempdir().expect("a directory");
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&there, &bytes).expect("a file");
    let path = |path: &std::path::Path| path.display().to_string();
    fleet.berth(&["cp", &path(&there), &format!("{name}:copied")]).await;
    fleet.berth(&["cp", &format!("{name}:copied"), &path(&back)]).await;
    assert!(std::fs::read(&back).expect("it came back") == bytes);
    // What goes wrong says what to do, and by which id the logs have it.
    let nobody = berth_proto::SessionId::new().to_string();
    let wrong = berth(&["usage", &nobody], b"").await;
    assert!(wrong.code.is_some_and(|code| code != 0), "{wrong:?}");
    for line in ["error: ", "hint: ", "request: "] {
        assert!(wrong.stderr.lines().any(|told| told.starts_with(line)), "{line}: {wrong:?}");
    }
    let wrong = berth(&["usage", &nobody, "--format", "json"], b"").await;
    let told: Value = serde_json::from_str(wrong.stderr.trim()).expect("one object");
    assert!(told["reason"] == "SESSION_NOT_FOUND" && told["request_id"].is_string(), "{told}");
    let mut stranger = fleet.settings();
    stranger[2].1 = format!("berth_{}", "0".repeat(64));
    let refused = process::run("berth", &["ps"], &stranger, b"").await;
    assert!(refused.code.is_some_and(|code| code != 0) && refused.stderr.contains("hint: "), "{refused:?}");
    let listed = async || fleet.berth(&["ps", "--format", "json"]).await.contains(made.trim());
    assert!(listed().await);
    fleet.berth(&["rm", &name]).await;
    assert!(!listed().await, "it is over");
}

/// A request to the gateway's port, as curl makes it.
async fn ask(fleet: &Fleet, method: &str, path: &str, more: &[String], body: &str) -> Reply {
    let ca = fleet.dir.join("tls/ca.pem");
    let url = format!("https://127.0.0.1:{}{path}", fleet.ports[1]);
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "-i", "--raw", "--http1.1", "--noproxy", "*", "-m", "120", "-X", method, "--cacert"])
        .arg(ca);
    for header in more {
        curl.args(["-H", header]);
    }
    if !body.is_empty() {
        curl.args(["-d", body]);
    }
    let seen = curl.arg(url).output().await.expect("curl");
    assert!(seen.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&seen.stderr));
    reply(&seen.stdout)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

async fn plain_http(fleet: &Fleet) {
    let headers = [bearer(&fleet.token()), "Content-Type: application/json".to_owned()];
    let asked = async |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask(fleet, method, path, &headers, &body).await
    };
    assert_eq!(ask(fleet, "GET", "/v1/info", &[], "").await.status, 401, "not without a token");
    let info = asked("GET", "/v1/info", Value::Null).await.message();
    assert!(info["workers_alive"].as_u64() >= Some(1) && info["scope"] == "admin", "{info}");
    // A session of its own for one program, and what it is told of its end.
    let code = "import sys; print(6 * 7); sys.exit(3)";
    let ran = asked("POST", "/v1/run", json!({"code": code})).await.message();
    assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!("42\n"), &json!(3)), "{ran}");
    // One that stays: a file that it leaves is an artifact, which outlives it.
    let name = format!("door-{}", berth_proto::SessionId::new());
    let id = fleet.berth(&["create", "--name", &name]).await;
    let leave = "mkdir -p artifacts && echo kept > artifacts/f && cat artifacts/f";
    let ran = asked("POST", "/v1/run", json!({"session": name, "command": leave})).await.message();
    assert_eq!(ran["stdout"], "kept\n", "{ran}");
    let listed = asked("GET", "/v1/sessions?limit=1000", Value::Null).await.message();
    let ids: Vec<&Value> =
        listed["sessions"].as_array().expect("a list").iter().map(|one| &one["id"]).collect();
    assert!(ids.contains(&&json!(id.trim())), "{listed}");
    let usage = asked("GET", &format!("/v1/sessions/{name}/usage"), Value::Null).await;
    assert_eq!(usage.status, 200, "{usage:?}");
    assert_eq!(asked("DELETE", &format!("/v1/sessions/{name}"), Value::Null).await.status / 100, 2);
    let kept = asked("GET", &format!("/v1/artifacts?session={}", id.trim()), Value::Null).await.message();
    let artifact =
        kept["artifacts"][0]["id"].as_str().unwrap_or_else(|| panic!("one is kept: {kept}")).to_owned();
    let content = asked("GET", &format!("/v1/artifacts/{artifact}/content"), Value::Null).await;
    assert_eq!((content.status, content.body.as_str()), (200, "kept\n"));
    assert_eq!(asked("DELETE", &format!("/v1/artifacts/{artifact}"), Value::Null).await.status / 100, 2);
    let gone = asked("GET", "/v1/sessions/no-such", Value::Null).await;
    assert!(gone.status == 404 && gone.message()["error"]["request_id"].is_string(), "{gone:?}");
}

async fn mcp(fleet: &Fleet) {
    let mut headers = vec![
        bearer(&fleet.token()),
        "Accept: application/json, text/event-stream".to_owned(),
        "Content-Type: application/json".to_owned(),
    ];
    let call = async |headers: &[String], method: &str, params: Value| {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        ask(fleet, "POST", "/mcp", headers, &message.to_string()).await
    };
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "door", "version": "1"}});
    let begun = call(&headers, "initialize", params).await;
    assert_eq!(begun.message()["result"]["serverInfo"]["name"], "berth", "{begun:?}");
    let conversation = begun.headers.get("mcp-session-id").expect("a conversation").clone();
    headers.push(format!("Mcp-Session-Id: {conversation}"));
    headers.push("MCP-Protocol-Version: 2025-11-25".to_owned());
    let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
    assert_eq!(ask(fleet, "POST", "/mcp", &headers, &done).await.status, 202);
    let tools = call(&headers, "tools/list", json!({})).await.message();
    let names: Vec<&str> = tools["result"]["tools"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    assert!(names.contains(&"run_python") && names.contains(&"run_shell"), "{names:?}");
    let run = json!({"name": "run_python", "arguments": {"code": "print(6 * 7)"}});
    let ran = call(&headers, "tools/call", run).await.message();
    assert_eq!(ran["result"]["structuredContent"]["stdout"], "42\n", "{ran}");
    assert_eq!(ask(fleet, "DELETE", "/mcp", &headers, "").await.status / 100, 2, "and ends it");
}

async fn sdk(fleet: &Fleet) {
    let made = fleet.berth(&["token", "create", "--e2b", "--tenant", "door"]).await;
    let url = format!("https://127.0.0.1:{}", fleet.ports[1]);
    let ca = fleet.dir.join("tls/ca.pem").display().to_string();
    let env = [
        ("E2B_API_URL", url.as_str()),
        ("E2B_SANDBOX_URL", &url),
        ("E2B_API_KEY", made.trim()),
        ("SSL_CERT_FILE", &ca),
    ];
    e2b::drive_newest("hello.py", &env, TEST).await;
}
