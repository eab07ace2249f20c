//! How a worker stops, and what its own listener says meanwhile.

use std::time::Duration;

use berth_proto::{
    Code, Reason, SessionId,
    domain::Outcome,
    error::reason_of,
    v1::{self, task_service_client::TaskServiceClient},
};
use tokio::time::Instant;
use tonic::Request;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::script::{PATIENCE, Rig, run, shell};

const ENDED: v1::SessionState = v1::SessionState::Ended;
/// A stop that waited for this has failed.
const LONG: Duration = Duration::from_secs(3600);

fn outcome(end: v1::TaskEnd) -> Outcome {
    end.outcome.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn shutdown_ends_all_and_leaves_nothing() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (idle, busy) = (SessionId::new(), SessionId::new());
    rig.placed(idle).await;
    rig.placed(busy).await;
    let mut tasks = TaskServiceClient::new(rig.script.data().await);
    tasks.run(shell(busy, "sleep 1000")).await.unwrap();
    rig.script.until("the task", |seen| seen.tasks.first().map(|_| ())).await;

    let stopping = worker.shutdown_within(Duration::from_millis(500));
    let watching = async {
        let health = rig.script.until("not ready", |seen| seen.health().filter(|h| !h.ready).cloned()).await;
        assert!(health.reason.contains("shutting down"), "{}", health.reason);
        // What is placed meanwhile is refused.
        let late = SessionId::new();
        rig.script.place(late).await;
        assert!(rig.script.state(late, ENDED).await.refused);
    };
    tokio::join!(stopping, watching);
    for session in [idle, busy] {
        let report = rig.script.state(session, ENDED).await;
        assert_eq!(report.end_reason(), v1::EndReason::Drained);
    }
    let ended =
        rig.script.until("the task's end", |seen| seen.tasks.iter().find_map(|r| r.task.clone()?.end));
    assert_eq!(outcome(ended.await), Outcome::SessionEnded);
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
}

#[tokio::test]
async fn a_session_in_which_nothing_runs_is_not_waited_for() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (idle, paused) = (SessionId::new(), SessionId::new());
    rig.placed(idle).await;
    rig.placed(paused).await;
    // One whose task is over, and one whose task stands still.
    let channel = rig.script.data().await;
    run(channel.clone(), shell(idle, "true")).await.unwrap();
    TaskServiceClient::new(channel).run(shell(paused, "sleep 1000")).await.unwrap();
    let pause = v1::PauseCommand { session_id: paused.to_string(), epoch: 1, paused: true };
    rig.script.send(v1::coordinator_message::Message::Pause(pause)).await;
    rig.script.state(paused, v1::SessionState::Paused).await;
    tokio::time::timeout(PATIENCE, worker.shutdown_within(LONG)).await.expect("it does not wait");
    assert_eq!(rig.script.state(idle, ENDED).await.end_reason(), v1::EndReason::Drained);
    assert!(rig.on_disk().is_empty());
}

#[tokio::test]
async fn a_task_that_runs_has_the_grace_and_the_rest_has_not() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (idle, busy) = (SessionId::new(), SessionId::new());
    rig.placed(idle).await;
    rig.placed(busy).await;
    let mut events = TaskServiceClient::new(rig.script.data().await)
        .run(shell(busy, "sleep 1"))
        .await
        .unwrap()
        .into_inner();
    rig.script.until("the task", |seen| seen.tasks.first().map(|_| ())).await;
    let begun = Instant::now();
    let reading = async {
        let mut end = None;
        while let Ok(Some(event)) = events.message().await {
            if let Some(v1::task_event::Event::Ended(task)) = event.event {
                end = task.end;
            }
        }
        end
    };
    let first = async {
        rig.script.state(idle, ENDED).await;
        rig.script.look(|seen| seen.state(busy))
    };
    let (end, state, stopped) =
        tokio::join!(reading, first, tokio::time::timeout(PATIENCE, worker.shutdown_within(LONG)));
    stopped.expect("it stops when the task is over");
    assert_eq!(outcome(end.expect("an end")), Outcome::Exited(0), "it was let be");
    assert_eq!(state, Some(v1::SessionState::Ready), "the idle one went first");
    assert!(begun.elapsed() >= Duration::from_millis(500), "the task was waited for");
}

#[tokio::test]
async fn a_worker_that_stops_says_that_it_leaves_after_all_else() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    worker.shutdown().await;
    rig.script.until("its leave", |seen| seen.left.first().copied()).await;
    rig.script.look(|seen| {
        assert_eq!(seen.left.len(), 1);
        assert_eq!(seen.state(session), Some(ENDED), "the end was told before");
    });
}

/// It still holds a session: the coordinator is to keep it for its return.
#[tokio::test]
async fn a_worker_that_is_killed_does_not_say_so() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    rig.placed(SessionId::new()).await;
    drop(worker);
    let worker = rig.start().await;
    rig.script.until("a second hello", |seen| seen.hellos.get(1).map(|_| ())).await;
    assert!(rig.script.look(|seen| seen.left.is_empty()));
    worker.shutdown().await;
}

#[tokio::test]
async fn the_workers_own_listener_wants_its_token() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.data_listen = Some("127.0.0.1:0".parse().unwrap())).await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let address = worker.data_address().unwrap();
    let endpoint = berth_proto::transport::endpoint(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let refused = run(channel.clone(), shell(session, "true")).await.unwrap_err();
    assert_eq!((refused.code(), reason_of(&refused)), (Code::Unauthenticated, Some(Reason::TokenMissing)));
    let token = std::fs::read_to_string(worker.data_token().unwrap()).unwrap();
    let mut request = Request::new(shell(session, "true"));
    let bearer = format!("Bearer {}", token.trim()).parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut events = TaskServiceClient::new(channel.clone()).run(request).await.unwrap().into_inner();
    let mut ended = false;
    while let Some(event) = events.message().await.unwrap() {
        ended |= matches!(event.event, Some(v1::task_event::Event::Ended(_)));
    }
    assert!(ended);
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    worker.shutdown().await;
}

#[tokio::test]
async fn health_says_not_serving_before_a_stop_ends_anything() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.data_listen = Some("127.0.0.1:0".parse().unwrap())).await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    TaskServiceClient::new(rig.script.data().await).run(shell(session, "sleep 1000")).await.unwrap();
    rig.script.until("the task", |seen| seen.tasks.first().map(|_| ())).await;
    let endpoint =
        berth_proto::transport::endpoint(format!("http://{}", worker.data_address().unwrap())).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    let told = async {
        let status = watch.message().await.unwrap().unwrap().status();
        (status, rig.script.look(|seen| seen.state(session)))
    };
    let ((status, state), ()) = tokio::join!(told, worker.shutdown_within(Duration::from_millis(300)));
    assert_eq!((status, state), (ServingStatus::NotServing, Some(v1::SessionState::Ready)));
}
