//! Where sessions go, and what happens when there is no place.

use std::collections::BTreeSet;

use berth_proto::{
    error::{Reason, reason_of},
    v1,
};
use berth_tests::{Cluster, READY, Setup, skip, until};
use tonic::Code;

use crate::util::{delete, run, seconds, state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_spread_over_two_workers() {
    if skip::without_root("e2e sessions_spread_over_two_workers") {
        return;
    }
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("native") }).await;
    let mut workers = BTreeSet::new();
    for _ in 0..4 {
        let session = cluster.session().await;
        assert_eq!(session.state(), v1::SessionState::Ready);
        assert_eq!(run(&cluster, &session.id, "echo $((6 * 7))").await.0, "42");
        workers.insert(session.worker_id);
    }
    assert_eq!(workers.len(), 2, "all went to {workers:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_fleet_makes_a_session_wait_and_then_serves_it() {
    let cluster = Cluster::start(Setup { max_sessions: 1, ..Setup::new("fake") }).await;
    let first = cluster.session().await;
    let create = |wait| v1::CreateSessionRequest { wait_for_place: wait, ..Default::default() };
    // Told at once, and why.
    let error = cluster.sessions().create_session(create(seconds(0))).await.expect_err("the fleet is full");
    assert_eq!((error.code(), reason_of(&error)), (Code::ResourceExhausted, Some(Reason::NoPlace)));
    assert!(error.message().contains("worker-1"), "it names what is full: {error:?}");
    // One that waits gets the place that becomes free.
    let mut sessions = cluster.sessions();
    let waiting = async { sessions.create_session(create(seconds(60))).await };
    let freeing = async {
        until(READY, "the second session to wait", async || {
            let info = cluster.admin().get_info(v1::GetInfoRequest {}).await.ok()?.into_inner();
            (info.sessions_pending == 1).then_some(())
        })
        .await;
        delete(&cluster, &first.id).await;
    };
    let (second, ()) = tokio::join!(waiting, freeing);
    assert_eq!(second.expect("it got the place").into_inner().state(), v1::SessionState::Ready);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn priority_goes_first() {
    let cluster = Cluster::start(Setup { max_sessions: 1, ..Setup::new("fake") }).await;
    let first = cluster.session().await;
    let create =
        |priority| v1::CreateSessionRequest { wait_for_place: seconds(60), priority, ..Default::default() };
    let pending = async |count| {
        until(READY, "sessions to wait", async || {
            let info = cluster.admin().get_info(v1::GetInfoRequest {}).await.ok()?.into_inner();
            (info.sessions_pending == count).then_some(())
        })
        .await;
    };
    let order = std::sync::Mutex::new(Vec::new());
    let take = async |priority: i32| {
        let session =
            cluster.sessions().create_session(create(priority)).await.expect("a place").into_inner();
        order.lock().unwrap().push(priority);
        delete(&cluster, &session.id).await;
    };
    let low = take(-5);
    let high = async {
        pending(1).await;
        take(5).await;
    };
    let freeing = async {
        pending(2).await;
        delete(&cluster, &first.id).await;
    };
    tokio::join!(low, high, freeing);
    assert_eq!(*order.lock().unwrap(), [5, -5]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_never_comes_is_told() {
    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let create = v1::CreateSessionRequest { wait_for_place: seconds(1), ..Default::default() };
    let error = cluster.sessions().create_session(create).await.expect_err("there is no worker");
    assert_eq!((error.code(), reason_of(&error)), (Code::ResourceExhausted, Some(Reason::NoPlace)));
    assert!(error.message().contains("no worker"), "{error:?}");
    let listed = cluster.sessions().list_sessions(v1::ListSessionsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().sessions, [], "nothing of it is left");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_selectors_and_templates_that_nobody_has_are_refused() {
    let env = vec![("BERTH_LABELS".to_owned(), "zone=a".to_owned())];
    let cluster = Cluster::start(Setup { worker_env: env, ..Setup::new("fake") }).await;
    let create = async |request| cluster.sessions().create_session(request).await;
    let now = || v1::CreateSessionRequest { wait_for_place: seconds(0), ..Default::default() };
    let huge = v1::Limits { memory_bytes: Some(1 << 50), ..Default::default() };
    let error = create(v1::CreateSessionRequest { limits: Some(huge), ..now() }).await.expect_err("too much");
    assert_eq!(reason_of(&error), Some(Reason::LimitTooHigh), "{error:?}");
    let zero = v1::Limits { pids: Some(0), ..Default::default() };
    let error = create(v1::CreateSessionRequest { limits: Some(zero), ..now() }).await.expect_err("zero");
    assert_eq!(error.code(), Code::InvalidArgument);
    let zone = |zone: &str| [("zone".to_owned(), zone.to_owned())].into();
    let error = create(v1::CreateSessionRequest { worker_selector: zone("b"), ..now() })
        .await
        .expect_err("no such zone");
    assert_eq!(reason_of(&error), Some(Reason::NoPlace));
    assert!(error.message().contains("zone"), "{error:?}");
    create(v1::CreateSessionRequest { worker_selector: zone("a"), ..now() }).await.expect("there is one");
    let error =
        create(v1::CreateSessionRequest { template: "none".into(), ..now() }).await.expect_err("no such");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::TemplateNotFound)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_worker_takes_nothing_and_a_drained_one_ends_its_sessions() {
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("fake") }).await;
    let worker_id = "worker-1".to_owned();
    let mut admin = cluster.admin();
    let worker = admin.cordon(v1::CordonRequest { worker_id: worker_id.clone() }).await.unwrap().into_inner();
    assert_eq!(worker.scheduling(), v1::Scheduling::Cordoned);
    for _ in 0..3 {
        assert_eq!(cluster.session().await.worker_id, "worker-2");
    }
    admin.uncordon(v1::UncordonRequest { worker_id: worker_id.clone() }).await.unwrap();
    let here = v1::CreateSessionRequest::default();
    let session = until(READY, "a session on worker-1", async || {
        let session = cluster.sessions().create_session(here.clone()).await.ok()?.into_inner();
        (session.worker_id == "worker-1").then_some(session)
    })
    .await;
    let request = v1::DrainRequest { worker_id: worker_id.clone(), deadline: seconds(0) };
    let worker = admin.drain(request).await.unwrap().into_inner();
    assert_eq!(worker.scheduling(), v1::Scheduling::Draining);
    until(READY, "the drained session to end", async || {
        (state(&cluster, &session.id).await.state() == v1::SessionState::Ended).then_some(())
    })
    .await;
    assert_eq!(state(&cluster, &session.id).await.end_reason(), v1::EndReason::Drained);
    let error =
        admin.cordon(v1::CordonRequest { worker_id: "nobody".into() }).await.expect_err("no such worker");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::WorkerNotFound)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_is_neither_oversubscribed_nor_leaked() {
    let cluster = Cluster::start(Setup { max_sessions: 3, workers: 2, ..Setup::new("fake") }).await;
    for round in 0..5 {
        let creates = (0..12).map(|_| {
            let mut sessions = cluster.sessions();
            async move {
                let request = v1::CreateSessionRequest { wait_for_place: seconds(0), ..Default::default() };
                sessions.create_session(request).await.ok().map(|s| s.into_inner().id)
            }
        });
        let made: Vec<String> = futures::future::join_all(creates).await.into_iter().flatten().collect();
        assert!((1..=6).contains(&made.len()), "round {round}: {} sessions in 6 places", made.len());
        futures::future::join_all(made.iter().map(|id| delete(&cluster, id))).await;
        let workers =
            cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
        for worker in workers {
            assert_eq!((worker.sessions, worker.reserved.unwrap().memory_bytes), (0, 0), "{}", worker.id);
        }
    }
    cluster.stop().await;
}
