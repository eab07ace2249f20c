//! The gateway, and the coordinator that it is in, are killed while code runs: the client sees that it has no whole answer,
//! and what its context had is there for it at the next gateway.

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, skip, until};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream};

use super::{
    hostile::{Reply, Wire},
    key,
};
use crate::recovery::workspace;

const SAID: &str = "MCP is served on http://";

/// Where the `n`th gateway of a cluster listens.
async fn nth_gateway(cluster: &Cluster, n: usize) -> String {
    until(READY, "the gateway", async || {
        let log = cluster.coordinator.log();
        let address = log.split(SAID).nth(n)?.split_once("/mcp")?.0.to_owned();
        Some(address)
    })
    .await
}

fn lines(reply: &Reply) -> Vec<Value> {
    reply.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn ended(lines: &[Value]) -> bool {
    lines.iter().any(|line| line["type"] == "end_of_execution")
}

async fn run(sandbox: &Wire, code: &str) -> Vec<Value> {
    let reply = sandbox.call("POST", "/execute", &json!({"code": code})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let lines = lines(&reply);
    assert!(ended(&lines) && !lines.iter().any(|line| line["type"] == "error"), "{lines:?}");
    lines
}

fn result(lines: &[Value]) -> &str {
    lines
        .iter()
        .find(|line| line["type"] == "result")
        .and_then(|line| line["text"].as_str())
        .expect("a result")
}

/// Asks for code to be run that says `begins`, and waits for that.
async fn begin(sandbox: &Wire, asked: &Value) -> (TcpStream, Vec<u8>) {
    let body = asked.to_string();
    let wire = sandbox.again().with("Content-Type", "application/json");
    let wire = wire.with("Content-Length", &body.len().to_string());
    let mut stream = wire.raw("POST /execute", body.as_bytes()).await;
    let mut said = Vec::new();
    let begun = async {
        while !String::from_utf8_lossy(&said).contains("begins") {
            assert!(stream.read_buf(&mut said).await.expect("it answers") > 0, "it ended");
        }
    };
    tokio::time::timeout(READY, begun).await.expect("the code runs");
    (stream, said)
}

/// HTTP says that this is no whole answer: the piece that ends one is missing.
async fn breaks_off((mut stream, mut said): (TcpStream, Vec<u8>)) {
    let read = tokio::time::timeout(READY, stream.read_to_end(&mut said));
    drop(read.await.expect("the connection ends"));
    let said = String::from_utf8_lossy(&said);
    assert!(said.to_lowercase().contains("transfer-encoding: chunked"), "{said}");
    assert!(!said.ends_with("0\r\n\r\n") && !said.contains("end_of_execution"), "{said}");
}

/// Red when an answer that broke off looks whole, or a context goes with the gateway that it was made through.
async fn survives(backend: &str) {
    let mut cluster = Cluster::start(Setup::new(backend)).await;
    let address = nth_gateway(&cluster, 1).await;
    let control = Wire::new(&address).with("X-API-KEY", &key(&cluster, "default").await);
    let made = control.call("POST", "/v2/sandboxes", &json!({"templateID": "base"})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    let (id, token) = (made["sandboxID"].as_str().unwrap(), made["envdAccessToken"].as_str().unwrap());
    let at = |address: &str| {
        Wire::new(address)
            .with("E2b-Sandbox-Id", id)
            .with("E2b-Sandbox-Port", "49999")
            .with("X-Access-Token", token)
    };
    let listed = cluster.sessions().list_sessions(v1::ListSessionsRequest::default()).await.unwrap();
    let files = workspace(&cluster, 0, &listed.into_inner().sessions[0].id);

    let sandbox = at(&address);
    run(&sandbox, "x = 7").await;
    let waits = "print('begins')\nimport os, time\n\
                 while not os.path.exists('/workspace/go'): time.sleep(0.01)\ny = x * 6";
    let begun = begin(&sandbox, &json!({"code": waits})).await;
    cluster.restart_coordinator().await;
    breaks_off(begun).await;

    // The same token, another gateway. What runs goes on, the next one waits for it, and finds what it made.
    cluster.workers_ready().await;
    let sandbox = at(&nth_gateway(&cluster, 2).await);
    let go = async {
        std::fs::write(files.join("go"), "").expect("the workspace is there");
    };
    let (next, ()) = tokio::join!(run(&sandbox, "x + y"), go);
    assert_eq!(result(&next), "49");

    // Code without an end that nobody can ask for any more: its context is restarted, and good again.
    let made = sandbox.call("POST", "/contexts", &json!({})).await.json();
    let context = made["id"].as_str().expect("an id");
    let endless = json!({"context_id": context, "code": "print('begins')\nwhile True: pass"});
    let begun = begin(&sandbox, &endless).await;
    cluster.restart_coordinator().await;
    breaks_off(begun).await;
    cluster.workers_ready().await;
    let sandbox = at(&nth_gateway(&cluster, 3).await);
    let listed = sandbox.call("GET", "/contexts", &json!({})).await.json();
    assert!(listed.as_array().unwrap().iter().any(|listed| listed["id"] == context), "{listed}");
    let restarted = sandbox.call("POST", &format!("/contexts/{context}/restart"), &json!({})).await;
    assert_eq!(restarted.status, 204, "{}", restarted.text());
    let asked = json!({"context_id": context, "code": "6 * 7"});
    let again = lines(&sandbox.call("POST", "/execute", &asked).await);
    assert_eq!(result(&again), "42");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_context_outlives_the_gateway_that_ran_its_code() {
    if !skip::without_root("e2e e2b native_a_context_outlives_the_gateway_that_ran_its_code") {
        survives("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_context_outlives_the_gateway_that_ran_its_code() {
    if !skip::without_docker("e2e e2b docker_a_context_outlives_the_gateway_that_ran_its_code") {
        survives("docker").await;
    }
}
