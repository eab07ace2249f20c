//! A policy goes with its session: it changes while the session lives, and outlives its worker's process, a checkpoint
//! and the coordinator.

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{READY, skip, until};

use super::{create, fleet, origin::Origin, status};
use crate::{
    recovery::{outcome, start},
    util::{run, state},
};

fn stream(host: &str, port: u16) -> String {
    format!("curl -sN http://{host}:{port}/stream")
}

async fn a_change_holds_at_once(sandbox: &str) {
    let origin = Origin::start().await;
    let cluster = fleet(sandbox, &origin).await;
    let port = origin.port;
    let (good, also) = (format!("--allow=good.test:{port}"), format!("--allow=also.test:{port}"));
    let session = create(&cluster, &[]).await;
    let url = format!("http://good.test:{port}/");
    assert!(status(&cluster, &session, &url).await.contains("resolve"), "there is no way out at all");

    cluster.berth(&["update", &session, &good, &also]).await.ok();
    until(READY, "the way out", async || (status(&cluster, &session, &url).await == "200 000").then_some(()))
        .await;
    origin.take();
    let cut = start(&cluster, &session, &stream("good.test", port)).await;
    let kept = start(&cluster, &session, &stream("also.test", port)).await;
    let open = |expected: usize| {
        let origin = origin.clone();
        async move {
            until(READY, "connections", async || {
                let heard = origin.heard();
                let open = heard.iter().filter(|one| !one.bytes.is_empty() && !one.over).count();
                (open == expected && heard.len() == 2).then_some(())
            })
            .await;
        }
    };
    open(2).await;
    // Of the two only one is allowed now.
    cluster.berth(&["update", &session, &also]).await.ok();
    until(READY, "what is not allowed to be cut", async || outcome(&cluster, &cut).await).await;
    open(1).await;
    assert_eq!(outcome(&cluster, &kept).await, None, "what is still allowed goes on");
    assert_eq!(status(&cluster, &session, &url).await, "403 000");

    cluster.berth(&["update", &session, "--egress", "none"]).await.ok();
    until(READY, "the rest to be cut", async || outcome(&cluster, &kept).await).await;
    let listens =
        "python3 -c \"import socket; socket.create_connection(('127.0.0.1', 3128), 5)\" 2>&1 | tail -1";
    until(READY, "nothing to listen", async || {
        run(&cluster, &session, listens).await.0.contains("refused").then_some(())
    })
    .await;
    let egress = state(&cluster, &session).await.egress.expect("it is told");
    assert_eq!((egress.preset.as_str(), egress.allow.len()), ("none", 0));
    cluster.stop().await;
}

/// Red when open connections don't look at a changed policy (`revoked` never returns).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_change_holds_at_once() {
    if !skip::without_root("e2e native_a_change_holds_at_once") {
        a_change_holds_at_once("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_change_holds_at_once() {
    if !skip::without_docker("e2e docker_a_change_holds_at_once") {
        a_change_holds_at_once("docker").await;
    }
}

async fn a_policy_goes_with_its_session(sandbox: &str) {
    let origin = Origin::start().await;
    let mut cluster = fleet(sandbox, &origin).await;
    let allow = format!("good.test:{}", origin.port);
    let session = create(&cluster, &["--allow=gone.test"]).await;
    cluster.berth(&["update", &session, "--allow", &allow]).await.ok();
    let url = format!("http://{allow}/");
    until(READY, "the new policy", async || {
        (status(&cluster, &session, &url).await == "200 000").then_some(())
    })
    .await;
    let reached = async |cluster: &berth_tests::Cluster, session: &str| {
        let egress = state(cluster, session).await.egress.expect("it is told");
        assert_eq!(egress.allow, std::slice::from_ref(&allow));
        assert_eq!(status(cluster, session, &url).await, "200 000");
        assert_eq!(status(cluster, session, "http://gone.test/").await, "403 000");
    };
    // A task that began before knows the way still.
    let waits = format!("while [ ! -e go ]; do sleep 0.05; done; curl -sS {url}; exit 7");
    let task = start(&cluster, &session, &waits).await;
    cluster.workers[0].process.kill().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "the session to be taken up", async || {
        crate::util::try_run(&cluster, &session, "true").await.ok()
    })
    .await;
    reached(&cluster, &session).await;
    origin.take();
    run(&cluster, &session, "touch go").await;
    assert_eq!(until(READY, "its end", async || outcome(&cluster, &task).await).await, Kind::Exited(7));
    assert_eq!(origin.take().len(), 1);

    let fork = cluster.berth(&["fork", &session]).await.ok().trim().to_owned();
    reached(&cluster, &fork).await;
    let checkpoint = cluster.berth(&["checkpoint", &session]).await.ok().trim().to_owned();
    let restored = cluster.berth(&["restore", &checkpoint]).await.ok().trim().to_owned();
    reached(&cluster, &restored).await;
    let without = cluster.berth(&["restore", &checkpoint, "--egress", "none"]).await.ok().trim().to_owned();
    assert!(status(&cluster, &without, &url).await.contains("resolve"));

    // Parked, and back.
    let named = v1::PauseSessionRequest { session_id: session.clone() };
    cluster.sessions().pause_session(named).await.expect("it can be paused");
    until(READY, "it to be parked", async || {
        let now = state(&cluster, &session).await;
        (now.state() == v1::SessionState::Parked && now.worker_id.is_empty()).then_some(())
    })
    .await;
    let named = v1::ResumeSessionRequest { session_id: session.clone() };
    cluster.sessions().resume_session(named).await.expect("it can be resumed");
    reached(&cluster, &session).await;
    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    until(READY, "the session to be known", async || {
        crate::util::try_run(&cluster, &session, "true").await.ok()
    })
    .await;
    reached(&cluster, &session).await;
    cluster.stop().await;
}

/// Red when the worker's record does not have it: after the restart nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_policy_goes_with_its_session() {
    if !skip::without_root("e2e native_a_policy_goes_with_its_session") {
        a_policy_goes_with_its_session("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_policy_goes_with_its_session() {
    if !skip::without_docker("e2e docker_a_policy_goes_with_its_session") {
        a_policy_goes_with_its_session("docker").await;
    }
}
