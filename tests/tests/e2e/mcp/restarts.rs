//! Conversations over HTTP when the coordinator, in whose process the gateway is, ends and comes again.

use std::{fs, time::Duration};

use berth_tests::{Cluster, READY, Setup, http::Http, http::gateway, until};
use serde_json::{Value, json};

use super::live;

const FILE: &str = "what was in it";

/// What ends the coordinator.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Kill,
    Stop,
}

async fn again(cluster: &mut Cluster, by: By) -> String {
    if by == By::Stop {
        cluster.coordinator.terminate().await;
    }
    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    gateway(cluster).await
}

fn conversation(http: &Http) -> String {
    http.headers.iter().find(|(name, _)| name == "Mcp-Session-Id").expect("it has one").1.clone()
}

async fn status(http: &mut Http) -> u16 {
    http.request("tools/list", json!({})).await.status
}

async fn text_of(http: &mut Http, arguments: Value) -> Value {
    http.call("fs_read", arguments).await["structuredContent"]["contents"].clone()
}

/// Red when a conversation is only in memory, when a stop ends its session, or when it is anybody's after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_on_after_the_coordinator_has_come_again() {
    let mut cluster = Cluster::start(Setup::new("fake")).await;
    let other = cluster.berth(&["token", "create", "--tenant", "red"]).await.ok();
    let other = other.split_whitespace().last().expect("a token").to_owned();
    let mut http = Http::begin(&gateway(&cluster).await, &cluster.admin_token).await;
    http.call("fs_write", json!({"path": "a", "contents": FILE})).await;
    let made = http.call("session_create", json!({})).await["structuredContent"]["session"].clone();
    http.call("fs_write", json!({"path": "b", "contents": FILE, "session": made})).await;
    let mut before = live(&cluster).await;
    before.sort();
    assert_eq!(before.len(), 2);
    for by in [By::Kill, By::Stop, By::Kill] {
        http.address = again(&mut cluster, by).await;
        let address = http.address.clone();
        http = http.with("Host", &address);
        // Another's token first: it must not be what wakes it.
        let mut thief = Http::new(&http.address, &other).with("Mcp-Session-Id", &conversation(&http));
        assert_eq!(status(&mut thief).await, 404, "{by:?}");
        assert_eq!(thief.send("DELETE", "/mcp", "").await.status, 404, "{by:?}");
        // Many at once: one wakes it, and all are answered.
        let answers = (1..=8).map(|n| {
            let http = &http;
            async move {
                let mut one = Http { next_id: http.next_id + n, ..http.clone() };
                text_of(&mut one, json!({"path": "a"})).await
            }
        });
        for read in futures::future::join_all(answers).await {
            assert_eq!(read, FILE, "{by:?}");
        }
        http.next_id += 8;
        assert_eq!(text_of(&mut http, json!({"path": "b", "session": made})).await, FILE, "{by:?}");
        let mut now = live(&cluster).await;
        now.sort();
        assert_eq!(now, before, "{by:?}");
        assert_eq!(status(&mut thief).await, 404, "{by:?}");
    }
    // Both of its sessions end with it.
    assert_eq!(http.send("DELETE", "/mcp", "").await.status, 204);
    until(READY, "its sessions to end", async || live(&cluster).await.is_empty().then_some(())).await;
    cluster.stop().await;
}

/// Red when what ended is there again after a restart, when one that sleeps can't be ended, or when it never is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_stays_ended() {
    let mut cluster = Cluster::start(Setup::new("fake")).await;
    let address = gateway(&cluster).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut http = Http::begin(&address, &cluster.admin_token).await;
        http.call("session_info", json!({})).await;
        clients.push(http);
    }
    assert_eq!(clients[0].send("DELETE", "/mcp", "").await.status, 204);
    let kept = cluster.dir.path().join("c/conversations");
    cluster.coordinator.terminate().await;
    assert_eq!(fs::read_dir(&kept).expect("they are kept").count(), 3);
    // For one of them the day is over.
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    let quiet = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    fs::File::options().write(true).open(&quiet).unwrap().set_modified(long_ago).unwrap();
    let address = again(&mut cluster, By::Kill).await;
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 2);
    for http in &mut clients {
        http.address.clone_from(&address);
        http.headers.retain(|(name, _)| name != "Host");
        http.headers.push(("Host".into(), address.clone()));
    }
    assert_eq!(status(&mut clients[0]).await, 404, "it was ended");
    let mut left = Vec::new();
    for mut http in clients.split_off(1) {
        if left.len() < 2 && status_of_delete(&http).await == 204 {
            left.push(http);
        } else {
            assert_eq!(status(&mut http).await, 404, "its day is over");
        }
    }
    assert_eq!(left.len(), 2, "one that sleeps can be ended");
    // Their sessions ended with them; that of the one that nothing came in has its idle timeout.
    until(READY, "their sessions to end", async || (live(&cluster).await.len() == 1).then_some(())).await;
    let address = again(&mut cluster, By::Kill).await;
    for mut http in left {
        http.address.clone_from(&address);
        assert_eq!(status(&mut http.with("Host", &address)).await, 404, "it was ended while it slept");
    }
    cluster.stop().await;
}

async fn status_of_delete(http: &Http) -> u16 {
    http.send("DELETE", "/mcp", "").await.status
}
