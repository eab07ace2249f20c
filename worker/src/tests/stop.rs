//! How a worker stops, and what its own listener says meanwhile.

use std::time::Duration;

use berth_proto::{
    Code, Reason, SessionId, convert,
    domain::{Outcome, Placement},
    error::reason_of,
    v1::{
        self, coordinator_message::Message as Command, task_service_client::TaskServiceClient,
        worker_data_service_client::WorkerDataServiceClient,
    },
};
use tokio::time::Instant;
use tonic::Request;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::script::{PATIENCE, Rig, eventually, run, shell};
use crate::sessions::record;

const ENDED: v1::SessionState = v1::SessionState::Ended;
/// A stop that waited for this has failed.
const LONG: Duration = Duration::from_secs(3600);

fn outcome(end: v1::TaskEnd) -> Outcome {
    end.outcome.unwrap().try_into().unwrap()
}

/// Red when nothing is ended, nothing is removed, or placements are still taken.
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

/// A paused one is the coordinator's to end: it parks it. Red when a stop ends what is paused by itself.
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
    let parked = async {
        assert_eq!(rig.script.state(idle, ENDED).await.end_reason(), v1::EndReason::Drained);
        assert_eq!(rig.script.look(|seen| seen.state(paused)), Some(v1::SessionState::Paused));
        rig.script.end(paused, 1).await;
    };
    let stopped = tokio::time::timeout(PATIENCE, worker.shutdown_within(LONG));
    tokio::join!(async { stopped.await.expect("it does not wait") }, parked);
    assert!(rig.on_disk().is_empty());
}

/// A session that leaves with a checkpoint.
async fn placed_to_leave(rig: &Rig, session: SessionId) {
    let placement = Placement { checkpoint_on_drain: true, fenced: true, ..record::sample(session) };
    rig.script.send(Command::Place(placement.into())).await;
    rig.script.state(session, v1::SessionState::Ready).await;
}

/// Red when the worker does not say that it stops, or ends what is quiet without asking.
#[tokio::test]
async fn a_worker_that_stops_says_so_and_leaves_to_the_coordinator_what_goes_with_a_checkpoint() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (idle, moves) = (SessionId::new(), SessionId::new());
    rig.placed(idle).await;
    placed_to_leave(&rig, moves).await;
    let moving = async {
        let within = rig.script.until("that it stops", |seen| seen.stopping.first().copied()).await;
        assert!(within <= LONG && within > LONG / 2, "{within:?}");
        rig.script.state(idle, ENDED).await;
        assert_eq!(rig.script.look(|seen| seen.state(moves)), Some(v1::SessionState::Ready));
        // It says so to a coordinator that comes later, too.
        rig.script.hang_up();
        let hello = rig.script.until("a second hello", |seen| seen.hellos.get(1).cloned()).await;
        assert!(hello.stopping_within.is_some());
        let end =
            v1::EndSession { session_id: moves.to_string(), epoch: 1, reason: v1::EndReason::Drained.into() };
        rig.script.send(Command::End(end)).await;
    };
    let stopped = tokio::time::timeout(PATIENCE, worker.shutdown_within(LONG));
    tokio::join!(async { stopped.await.expect("it goes when the last one has gone") }, moving);
    assert_eq!(rig.script.state(moves, ENDED).await.end_reason(), v1::EndReason::Drained);
    assert_eq!(rig.script.look(|seen| seen.left.len()), 1);
    assert!(rig.on_disk().is_empty());
}

/// Red when a stop counts on a coordinator that is not there.
#[tokio::test]
async fn a_coordinator_that_is_not_there_is_not_waited_for() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    placed_to_leave(&rig, SessionId::new()).await;
    rig.script.manners(|manners| manners.refuse = Some(|| tonic::Status::unavailable("it starts")));
    rig.script.hang_up();
    tokio::time::timeout(PATIENCE, worker.shutdown_within(LONG)).await.expect("it does not wait");
    assert!(rig.on_disk().is_empty());
}

/// The coordinator may not have heard of it yet. Red when a session that is over is just not there.
#[tokio::test]
async fn a_call_that_comes_after_the_end_is_told_whether_the_session_goes_on_elsewhere() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (moves, ended) = (SessionId::new(), SessionId::new());
    placed_to_leave(&rig, moves).await;
    placed_to_leave(&rig, ended).await;
    let drained =
        v1::EndSession { session_id: moves.to_string(), epoch: 1, reason: v1::EndReason::Drained.into() };
    rig.script.send(Command::End(drained)).await;
    rig.script.end(ended, 1).await;
    eventually("both to be gone", || worker.status().sessions == 0).await;
    let channel = rig.script.data().await;
    for (session, code, reason) in [
        (moves, Code::Unavailable, Reason::SessionMoves),
        (ended, Code::FailedPrecondition, Reason::SessionEnded),
        (SessionId::new(), Code::NotFound, Reason::SessionNotFound),
    ] {
        let refused = run(channel.clone(), shell(session, "true")).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused)), (code, Some(reason)));
    }
    worker.shutdown().await;
}

fn take(session: SessionId, settle: Duration, anyway: bool) -> v1::TakeCheckpointRequest {
    v1::TakeCheckpointRequest {
        session_id: session.to_string(),
        epoch: 1,
        parting: Some(v1::Parting { settle: Some(convert::duration_out(settle)), anyway }),
        ..Default::default()
    }
}

/// What is acknowledged is in the checkpoint with which the session goes. Red when `parted` lets all through, or when
/// `part` does not look whether something runs.
#[tokio::test]
async fn while_a_session_parts_nothing_begins_in_it_and_it_stays_while_something_runs() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let channel = rig.script.data().await;
    let mut tasks = TaskServiceClient::new(channel.clone());
    tasks.run(shell(session, "sleep 1000")).await.unwrap();
    let task = rig.script.until("the task", |seen| seen.tasks.first().and_then(|r| r.task.clone())).await;
    let mut checkpoints = WorkerDataServiceClient::new(channel.clone());
    let busy = checkpoints.take_checkpoint(take(session, Duration::ZERO, false)).await.unwrap_err();
    assert_eq!(reason_of(&busy), Some(Reason::SessionBusy));
    // It goes on, and the next attempt waits for its task.
    run(channel.clone(), shell(session, "true")).await.unwrap();
    let taking = checkpoints.take_checkpoint(take(session, LONG, false));
    let during = async {
        let refused = loop {
            match run(channel.clone(), shell(session, "true")).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), reason_of(&refused)), (Code::Unavailable, Some(Reason::SessionMoves)));
        let get = v1::GetTaskRequest { session_id: session.to_string(), task_id: task.id.clone() };
        tasks.clone().get_task(get).await.expect("what changes nothing goes on");
        let cancel = v1::CancelTaskRequest {
            session_id: session.to_string(),
            task_id: task.id.clone(),
            ..Default::default()
        };
        tasks.clone().cancel_task(cancel).await.expect("a cancel wins");
    };
    let both = async { tokio::join!(taking, during) };
    let (taken, ()) = tokio::time::timeout(PATIENCE, both).await.expect("it waits for no more");
    // Here is nobody who would keep it: it failed, and the session is as it was.
    assert_eq!(reason_of(&taken.unwrap_err()), Some(Reason::CheckpointFailed));
    run(channel, shell(session, "true")).await.unwrap();
    worker.shutdown().await;
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
    // It is not asked for where health is; and it serves once the canary, too, has been well.
    let mut watch =
        HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
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
