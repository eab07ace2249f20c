//! Whose session is whose, and what becomes of it.

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, mcp::Mcp, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{USUAL, finish, live, native};

/// Red when a session is shared, or when one client's end is another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_have_two_sessions() {
    let Some((cluster, mut one)) = native("two_clients_have_two_sessions").await else { return };
    let mut two = Mcp::start(&cluster, &[], "2026-07-28").await;
    one.ok("fs_write", json!({"path": "mine", "contents": "1"})).await;
    let said = two.refused("fs_read", json!({"path": "mine"})).await;
    assert!(said.contains("FILE_NOT_FOUND"), "{said}");
    let ids = live(&cluster).await;
    assert_eq!(ids.len(), 2);
    // They say whose they are.
    let request = v1::ListSessionsRequest { page_size: 10, ..Default::default() };
    for session in cluster.sessions().list_sessions(request).await.unwrap().into_inner().sessions {
        assert_eq!(session.labels.get("mcp.client").map(String::as_str), Some("test 1"), "{session:?}");
    }
    assert_eq!(two.end().await, Some(0));
    assert_eq!(one.ok("fs_read", json!({"path": "mine"})).await["contents"], "1");
    finish(cluster, one).await;
}

/// Red without the lock in the script that makes the environment: one clears what another has half made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_one_session_share_its_python() {
    let Some((cluster, mut first)) = native("clients_of_one_session_share_its_python").await else { return };
    first.ok("session_create", json!({"name": "box"})).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Mcp::start(&cluster, &["--session", "box"], USUAL).await);
    }
    let code = "import sys, os; print(sys.prefix, os.path.exists(sys.prefix + '/bin/pip'))";
    let mut asked = Vec::new();
    for client in &mut clients {
        asked.push(client.ask_tool("run_python", json!({"code": code})).await);
    }
    for (client, id) in clients.iter_mut().zip(asked) {
        let answer = client.answer(id).await;
        let ran = &answer["result"]["structuredContent"];
        assert_eq!(ran["stdout"], "/home/user/.venv True\n", "{answer}");
    }
    for client in clients {
        assert_eq!(client.end().await, Some(0));
    }
    first.ok("session_end", json!({"session": "box"})).await;
    finish(cluster, first).await;
}

/// Red when the first failure is kept for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_that_could_not_be_made_is_tried_again() {
    let test = "an_environment_that_could_not_be_made_is_tried_again";
    let Some((cluster, mut mcp)) = native(test).await else { return };
    mcp.ok("fs_write", json!({"path": "/home/user/.venv", "contents": "in its way"})).await;
    let prefix = json!({"code": "import sys; print(sys.prefix)"});
    assert_eq!(mcp.ok("run_python", prefix.clone()).await["stdout"], "/usr\n");
    mcp.ok("fs_remove", json!({"path": "/home/user/.venv"})).await;
    assert_eq!(mcp.ok("run_python", prefix).await["stdout"], "/home/user/.venv\n");
    finish(cluster, mcp).await;
}

/// Who sees several tenants sees a name more than once. Red when the first one found is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_means_two_sessions_is_refused() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut ids = Vec::new();
    for tenant in ["red", "blue"] {
        let token = cluster.berth(&["token", "create", "--tenant", tenant]).await.ok();
        let token = token.split_whitespace().last().unwrap().to_owned();
        let mut mcp = Mcp::start_as(&cluster, &token, &[], USUAL).await;
        let made = mcp.ok("session_create", json!({"name": "box"})).await;
        ids.push(made["session"].as_str().unwrap().to_owned());
        let own = mcp.ok("session_info", json!({"session": "box"})).await;
        assert_eq!(own["session"], made["session"], "its own is the only one it sees");
        assert_eq!(mcp.end().await, Some(0));
    }
    let mut admin = Mcp::start(&cluster, &[], USUAL).await;
    let said = admin.refused("session_info", json!({"session": "box"})).await;
    assert!(ids.iter().all(|id| said.contains(id)), "{said}");
    for id in ids {
        admin.ok("session_end", json!({"session": id})).await;
    }
    finish(cluster, admin).await;
}

/// First use by several calls at once makes one session. Red without the lock around its making.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_calls_at_once_share_one_session() {
    let cluster = Cluster::start(Setup { max_sessions: 20, ..Setup::new("fake") }).await;
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(mcp.ask_tool("session_info", json!({})).await);
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < ids.len() {
        let message = mcp.next().await.expect("an answer");
        assert!(message["result"]["structuredContent"]["session"].is_string(), "{message}");
        seen.insert(message["id"].as_u64().unwrap());
    }
    assert_eq!(live(&cluster).await.len(), 1);
    finish(cluster, mcp).await;
}

/// However a client goes, what it left ends: at once where it closes the pipe (also amid a call) or tells us to stop, by
/// the idle timeout where we are killed with it. Red for each without its part: `sessions.end()`, the idle timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_leaves_no_session() {
    let Some((cluster, mut mcp)) = native("a_client_that_vanishes_leaves_no_session").await else { return };
    mcp.ok("run_background", json!({"command": "sleep 1000"})).await;
    let extra = mcp.ok("session_create", json!({})).await["session"].clone();
    mcp.ask_tool("run_shell", json!({"command": "sleep 1000", "session": extra})).await;
    assert_eq!(live(&cluster).await.len(), 2);
    assert_eq!(mcp.end().await, Some(0), "also amid a call");
    assert_eq!(live(&cluster).await.len(), 0);

    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    mcp.ok("session_info", json!({})).await;
    kill(Pid::from_raw(mcp.pid() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(mcp.ended().await, Some(0));
    assert_eq!(live(&cluster).await.len(), 0);

    // While its session is still being made.
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    mcp.ask_tool("session_info", json!({})).await;
    assert_eq!(mcp.end().await, Some(0));
    assert_eq!(live(&cluster).await.len(), 0);

    let mut mcp = Mcp::start(&cluster, &["--idle-timeout", "1s"], USUAL).await;
    mcp.ok("session_info", json!({})).await;
    mcp.kill().await;
    until(READY, "the idle timeout", async || live(&cluster).await.is_empty().then_some(())).await;
    cluster.stop().await;
}

/// Red when the client goes on in the dark, or never gets another session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ended_is_told_of_and_then_replaced() {
    let Some((cluster, mut mcp)) = native("a_session_that_ended_is_told_of_and_then_replaced").await else {
        return;
    };
    let first = mcp.ok("session_info", json!({})).await["session"].clone();
    cluster.berth(&["rm", first.as_str().unwrap()]).await.ok();
    let said = mcp.refused("fs_list", json!({})).await;
    assert!(said.contains("SESSION_ENDED") && said.contains("new, empty session"), "{said}");
    let second = mcp.ok("session_info", json!({})).await["session"].clone();
    assert_ne!(first, second);
    // By its own tool, too.
    assert_eq!(mcp.ok("session_end", json!({"session": second})).await["state"], "ended");
    let third = mcp.ok("session_info", json!({})).await["session"].clone();
    assert_ne!(second, third);
    finish(cluster, mcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_session_is_there_to_be_come_back_to() {
    let Some((cluster, mut mcp)) = native("a_named_session_is_there_to_be_come_back_to").await else {
        return;
    };
    let options = json!({"name": "work", "env": {"A": "b"}, "memory_mib": 128, "allow": ["example.org:443"]});
    let made = mcp.ok("session_create", options).await;
    assert_eq!(
        (&made["name"], &made["memory_mib"], &made["allow"]),
        (&json!("work"), &json!(128), &json!(["example.org:443"]))
    );
    let ran = mcp.ok("run_shell", json!({"session": "work", "command": "echo $A | tee note"})).await;
    assert_eq!((&ran["stdout"], &ran["session"]), (&json!("b\n"), &made["session"]), "{ran}");
    let said = mcp.refused("session_create", json!({"name": "work"})).await;
    assert!(said.contains("NAME_TAKEN") && said.contains("as `session`"), "{said}");
    assert_eq!(mcp.end().await, Some(0));
    assert_eq!(live(&cluster).await.len(), 1, "a name keeps it");
    // By its name, by its id, and as the session of a client.
    let mut mcp = Mcp::start(&cluster, &[], USUAL).await;
    for handle in [json!("work"), made["session"].clone()] {
        assert_eq!(mcp.ok("fs_read", json!({"session": handle, "path": "note"})).await["contents"], "b\n");
    }
    assert_eq!(live(&cluster).await.len(), 1, "no session of its own was needed");
    assert_eq!(mcp.end().await, Some(0));
    let mut mcp = Mcp::start(&cluster, &["--session", "work"], USUAL).await;
    assert_eq!(mcp.ok("fs_read", json!({"path": "note"})).await["contents"], "b\n");
    assert_eq!(
        mcp.ok("session_checkpoint", json!({"note": "n"})).await["entries"].as_u64().map(|n| n > 0),
        Some(true)
    );
    assert_eq!(mcp.end().await, Some(0));
    assert_eq!(live(&cluster).await.len(), 1, "it was there before");
    cluster.stop().await;
}

/// Red when the gateway looks a session up with any other token than the caller's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reaches_the_session_of_another_tenant() {
    let cluster = Cluster::start(Setup { max_sessions: 20, ..Setup::new("fake") }).await;
    let token = async |tenant: &str| {
        let made = cluster.berth(&["token", "create", "--tenant", tenant]).await.ok();
        made.split_whitespace().last().expect("a token").to_owned()
    };
    let mut red = Mcp::start_as(&cluster, &token("red").await, &[], USUAL).await;
    let mut blue = Mcp::start_as(&cluster, &token("blue").await, &[], USUAL).await;
    let own = red.ok("session_info", json!({})).await["session"].clone();
    red.ok("session_create", json!({"name": "work"})).await;
    for (tool, arguments) in [
        ("session_info", json!({"session": own})),
        ("fs_list", json!({"session": own})),
        ("run_shell", json!({"session": own, "command": "true"})),
        ("session_end", json!({"session": own})),
        ("session_info", json!({"session": "work"})),
    ] {
        let said = blue.refused(tool, arguments).await;
        assert!(said.contains("SESSION_NOT_FOUND") || said.contains("no session is called"), "{said}");
    }
    // The name is free for another tenant.
    blue.ok("session_create", json!({"name": "work"})).await;
    assert_eq!(red.end().await, Some(0));
    assert_eq!(blue.end().await, Some(0));
    let mut nobody = Mcp::start_as(&cluster, "no-such-token", &[], USUAL).await;
    let said = nobody.refused("session_info", json!({})).await;
    assert!(said.contains("TOKEN_INVALID") && said.contains("token"), "{said}");
    assert_eq!(nobody.end().await, Some(0));
    cluster.stop().await;
}
