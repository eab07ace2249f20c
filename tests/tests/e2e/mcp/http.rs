//! MCP over HTTP, as it is on the wire.

use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, gateway},
    mcp::Mcp,
    until,
};
use serde_json::{Value, json};

use super::{USUAL, live};

/// Red when two conversations share a session, or when one outlives its conversation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_over_http_has_a_session_of_its_own() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut one = Http::begin(&address, &cluster.admin_token).await;
    let mut two = Http::begin(&address, &cluster.admin_token).await;
    assert_eq!(live(&cluster).await.len(), 0);
    let first = one.call("run_shell", json!({"command": "echo a"})).await;
    assert_eq!(first["structuredContent"]["stdout"], "a\n", "{first}");
    let second = two.call("session_info", json!({})).await;
    assert_ne!(first["structuredContent"]["session"], second["structuredContent"]["session"]);
    // Kept over connections: each request here is one.
    let again = one.call("session_info", json!({})).await;
    assert_eq!(again["structuredContent"]["session"], first["structuredContent"]["session"]);
    // 202 would be a failure to the official Python SDK.
    assert_eq!(one.send("DELETE", "/mcp", "").await.status, 204);
    until(READY, "its session to end", async || (live(&cluster).await.len() == 1).then_some(())).await;
    let reply = one.request("tools/list", json!({})).await;
    assert_eq!(reply.status, 404, "{reply:?}");
    // A stop ends the other one's, so that nothing is left.
    cluster.stop().await;
}

/// The version without conversations. Red when a call without a session makes one that nobody can name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_stands_alone_must_say_its_session() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut http = Http::new(&address, &cluster.admin_token).with("MCP-Protocol-Version", "2026-07-28");
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "h", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let mut call = async |tool: &str, arguments: Value| {
        http.headers.retain(|(name, _)| !name.starts_with("Mcp-"));
        http.headers.push(("Mcp-Method".into(), "tools/call".into()));
        http.headers.push(("Mcp-Name".into(), tool.into()));
        let params = json!({"name": tool, "arguments": arguments, "_meta": meta});
        let reply = http.request("tools/call", params).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.message()["result"].clone()
    };
    let refused = call("run_shell", json!({"command": "true"})).await;
    assert_eq!(refused["isError"], true, "{refused}");
    assert!(refused["content"][0]["text"].as_str().unwrap().contains("session_create"), "{refused}");
    assert_eq!(live(&cluster).await.len(), 0);
    let made = call("session_create", json!({})).await["structuredContent"]["session"].clone();
    let ran = call("run_shell", json!({"command": "echo b", "session": made})).await;
    assert_eq!(ran["structuredContent"]["stdout"], "b\n", "{ran}");
    call("session_end", json!({"session": made})).await;
    assert_eq!(live(&cluster).await.len(), 0);
    cluster.stop().await;
}

/// Red when a page that was allowed can't call (browsers ask first, without a token), or one that was not can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_was_allowed_may_call() {
    let page = "http://app.example.org:3000";
    let coordinator_env = vec![("BERTH_HTTP_ORIGINS".to_owned(), page.to_owned())];
    let cluster = Cluster::start(Setup { coordinator_env, ..Setup::new("fake") }).await;
    let address = gateway(&cluster).await;
    let asks = Http::new(&address, "").with("Authorization", "").with("Origin", page);
    let reply = asks.send("OPTIONS", "/mcp", "").await;
    assert_eq!((reply.status, &reply.headers["access-control-allow-origin"][..]), (204, page), "{reply:?}");
    assert!(reply.headers["access-control-allow-headers"].contains("mcp-session-id"), "{reply:?}");
    let mut http = Http::new(&address, &cluster.admin_token).with("Origin", page);
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "h", "version": "1"}});
    let reply = http.request("initialize", params).await;
    assert_eq!((reply.status, &reply.headers["access-control-allow-origin"][..]), (200, page), "{reply:?}");
    let other = asks.with("Origin", "http://evil.example.org").send("OPTIONS", "/mcp", "").await;
    assert!(other.status >= 400 && !other.headers.contains_key("access-control-allow-origin"), "{other:?}");
    cluster.stop().await;
}

/// Red for each check that is taken out: token, owner, Host, Origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_refused_over_http() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut http = Http::begin(&address, &cluster.admin_token).await;
    let made = http.call("session_info", json!({})).await["structuredContent"]["session"].clone();
    let token = cluster.berth(&["token", "create", "--tenant", "red"]).await.ok();
    let token = token.split_whitespace().last().unwrap().to_owned();
    let list = json!({"jsonrpc": "2.0", "id": 9, "method": "tools/list", "params": {}}).to_string();
    let id = http.headers.iter().find(|(name, _)| name == "Mcp-Session-Id").unwrap().1.clone();
    let fresh = |token: &str| Http::new(&address, token);
    // Another's conversation, with a good token.
    let other = fresh(&token).with("Mcp-Session-Id", &id);
    for method in ["POST", "GET", "DELETE"] {
        assert_eq!(other.send(method, "/mcp", &list).await.status, 404, "{method}");
    }
    // Another's session, by its id.
    let mut red = Http::begin(&address, &token).await;
    let said = red.call("session_info", json!({"session": made})).await;
    assert!(said["content"][0]["text"].as_str().unwrap().contains("SESSION_NOT_FOUND"), "{said}");
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params":
        {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "h", "version": "1"}}});
    let hello = hello.to_string();
    for (http, status) in [
        (fresh("x").with("Authorization", ""), 401),
        (fresh("no-such-token"), 401),
        (fresh("no-such-token").with("MCP-Protocol-Version", "2026-07-28"), 401),
        (fresh(&cluster.admin_token).with("Host", "evil.example.org"), 403),
        (fresh(&cluster.admin_token).with("Origin", "http://evil.example.org"), 403),
        (fresh(&cluster.admin_token).with("Origin", "null"), 403),
        (fresh(&cluster.admin_token).with("Mcp-Session-Id", "made-up"), 404),
        (fresh(&cluster.admin_token), 200),
    ] {
        let reply = http.send("POST", "/mcp", &hello).await;
        assert_eq!(reply.status, status, "{:?} {reply:?}", http.headers);
    }
    // Who says that it stands alone begins no conversation that nobody counts.
    let alone = fresh(&cluster.admin_token).with("MCP-Protocol-Version", "2026-07-28");
    let reply = alone.send("POST", "/mcp", &hello).await;
    if let Some(id) = reply.headers.get("mcp-session-id") {
        let other = fresh(&token).with("Mcp-Session-Id", id);
        assert_eq!(other.send("POST", "/mcp", &list).await.status, 404, "it is nobody's");
    }
    assert_eq!(fresh(&cluster.admin_token).send("GET", "/nothing", "").await.status, 404);
    let reply = http.send("POST", "/mcp", &"x".repeat(25 << 20)).await;
    assert_eq!(reply.status, 413, "{reply:?}");
    assert_eq!(http.call("echo", json!({"message": "m"})).await["structuredContent"]["message"], "m");
    cluster.stop().await;
}

/// Red when the URL leads elsewhere, or what is said to be needed is not enough. (The one server of these sandboxes echoes: that
/// its answer is none shows that it was reached.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_has_a_url_where_there_is_http() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut http = Http::begin(&address, &cluster.admin_token).await;
    let told = http.call("port_url", json!({"port": 7})).await["structuredContent"].clone();
    let (id, (_, number)) =
        (told["session"].as_str().expect("an id"), address.split_once(':').expect("a port"));
    assert_eq!(told["url"], format!("http://7-{id}.localhost:{number}/"), "{told}");
    assert_eq!(told["headers"], json!({"X-Berth-Token": "<token>"}));
    assert_eq!(told["command"], format!("berth port-forward {id} 7"));
    let opened = Http::new(&address, "")
        .with("Authorization", "")
        .with("Host", &format!("7-{id}.localhost:{number}"))
        .with("X-Berth-Token", &cluster.admin_token)
        .send("GET", "/", "")
        .await;
    assert_eq!((opened.status, &opened.message()["port"]), (502, &json!(7)), "{opened:?}");
    assert!(opened.body.contains("no HTTP"), "{opened:?}");
    for (arguments, expected) in
        [(json!({"port": 0}), "1 to 65535"), (json!({"port": 65536}), "correct them")]
    {
        let refused = http.call("port_url", arguments).await;
        assert_eq!(refused["isError"], true, "{refused}");
        assert!(refused["content"][0]["text"].as_str().unwrap().contains(expected), "{refused}");
    }
    // Where the client came by standard input there is none, and it is told what else there is.
    let mut stdio = Mcp::start(&cluster, &[], USUAL).await;
    let told = stdio.ok("port_url", json!({"port": 7, "session": id})).await;
    assert_eq!(
        (&told["url"], &told["command"]),
        (&Value::Null, &json!(format!("berth port-forward {id} 7")))
    );
    stdio.ok("session_end", json!({"session": id})).await;
    assert!(stdio.refused("port_url", json!({"port": 7, "session": id})).await.contains("over"));
    assert_eq!(stdio.end().await, Some(0));
    cluster.stop().await;
}
