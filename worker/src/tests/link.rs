use std::time::Duration;

use berth_proto::{
    Error, Reason, SessionId,
    v1::{self, coordinator_message::Message as Command},
};
use tonic::Status;

use super::script::{PATIENCE, Rig, Script, eventually, run, shell};
use crate::{StartError, Worker};

#[tokio::test]
async fn hello_welcome_heartbeat() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    let health = rig.script.ready().await;
    assert!(health.canary.unwrap().ok && health.memory_available_bytes > 0 && health.disk_free_bytes > 0);
    rig.script.look(|seen| {
        let hello = &seen.hellos[0];
        assert_eq!((hello.worker_id.as_str(), hello.incarnation), (worker.id().as_str(), 0));
        assert_eq!(hello.capacity.unwrap().max_sessions, 5);
        assert!(hello.running.is_empty());
        assert!(hello.backends.iter().any(|b| b.name == "fake" && b.ready && b.chosen));
    });
    rig.script
        .until("the template", |s| s.beats.last().filter(|b| b.templates == ["base"]).map(|_| ()))
        .await;
    // The canary left nothing and took no place.
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
    tokio::time::timeout(PATIENCE, worker.ready()).await.unwrap();
    let status = worker.status();
    assert_eq!((status.attached, status.ready, status.incarnation, status.sessions), (true, true, 1, 0));
    eventually("both data connections", || worker.status().data_connections == 2).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn any_start_order_works() {
    let rig = Rig::new().await;
    let address = rig.script.address.clone();
    let Rig { temp, backend, script } = rig;
    drop(script);
    let rig = Rig { temp, backend, script: Script::start().await };
    let worker = rig.start_with(|config| config.coordinator = address.clone()).await;
    eventually("a try", || worker.status().reason.contains("refused")).await;
    let script = Script::on(&address).await;
    script.ready().await;
    worker.shutdown().await;
}

#[tokio::test]
async fn a_wrong_token_is_told_and_tried_again() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.join_token = "wrong".to_owned()).await;
    eventually("the refusal", || worker.status().reason.contains("refused the join token")).await;
    assert!(!worker.status().ready);
    worker.shutdown().await;
}

/// Red when the credential is not shown, or not kept.
#[tokio::test]
async fn a_worker_shows_the_credential_that_it_was_given_and_stays_out_once_that_is_revoked() {
    let rig = Rig::new().await;
    rig.script.manners(|manners| manners.credential = "own".to_owned());
    let worker = rig.start().await;
    rig.script.ready().await;
    rig.script.until("that it is kept", |seen| (seen.kept == 1).then_some(())).await;
    rig.script.hang_up();
    rig.script.until("a second attach", |seen| (seen.presented.len() > 1).then_some(())).await;
    rig.script.look(|seen| assert_eq!(seen.presented[1], "Bearer own"));
    fn revoked() -> tonic::Status {
        let revoked = berth_proto::Reason::TokenRevoked;
        berth_proto::Error::new(berth_proto::Code::Unauthenticated, revoked, "the token was revoked").into()
    }
    rig.script.ready().await;
    rig.script.manners(|manners| manners.refuse = Some(revoked));
    rig.script.fail(revoked()).await;
    let told = "refused this worker's own credential: the token was revoked";
    eventually("the refusal", || worker.status().reason.contains(told)).await;
    let tries = rig.script.look(|seen| seen.presented.len());
    rig.script.until("another try", |seen| (seen.presented.len() > tries + 1).then_some(())).await;
    rig.script.look(|seen| assert!(seen.presented[1..].iter().all(|shown| shown == "Bearer own")));
    worker.shutdown().await;
}

#[tokio::test]
async fn a_lost_coordinator_costs_no_session() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    let session = SessionId::new();
    rig.script.ready().await;
    rig.placed(session).await;

    rig.script.hang_up();
    let hello = rig.script.until("a second hello", |seen| seen.hellos.get(1).cloned()).await;
    let process = rig.script.look(|seen| seen.hellos[0].process_id.clone());
    assert_eq!((hello.incarnation, hello.process_id), (1, process));
    assert_eq!(hello.running.len(), 1);
    assert_eq!(hello.running[0].session_id, session.to_string());
    assert_eq!(hello.running[0].state(), v1::SessionState::Ready);
    let (stdout, _) = run(rig.script.data().await, shell(session, "echo still here")).await.unwrap();
    assert_eq!(stdout, "still here\n");
    worker.shutdown().await;
}

#[tokio::test]
async fn an_end_that_nobody_heard_is_told_again() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    let session = SessionId::new();
    rig.script.ready().await;
    rig.placed(session).await;
    // No answers from now on: reports are heard, but not acknowledged.
    rig.script.manners(|manners| manners.answer_heartbeats = false);
    rig.script.hang_up();
    rig.script.until("a second hello", |seen| seen.hellos.get(1).map(|_| ())).await;
    rig.script.end(session, 1).await;
    rig.script.state(session, v1::SessionState::Ended).await;
    eventually("no session", || worker.status().sessions == 0).await;
    let heard = rig.script.look(|seen| seen.sessions[&session.to_string()].len());

    rig.script.manners(|manners| manners.answer_heartbeats = true);
    rig.script.hang_up();
    let hello = rig.script.until("a third hello", |seen| seen.hellos.get(2).cloned()).await;
    assert!(hello.running.is_empty());
    let again =
        rig.script.until("the end again", |seen| seen.sessions[&session.to_string()].get(heard).cloned());
    assert_eq!(again.await.state(), v1::SessionState::Ended);
    worker.shutdown().await;
}

/// Red when the end of the lease is not looked at.
#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_the_link() {
    let rig = Rig::new().await;
    rig.script.manners(|manners| {
        manners.answer_heartbeats = false;
        manners.lease = Duration::from_millis(300);
    });
    let worker = rig.start().await;
    rig.script.until("a second hello", |seen| seen.hellos.get(1).map(|_| ())).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn data_connections_follow_the_token() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    let tokens = |seen: &super::script::Seen, token: &str| {
        seen.prefaces.iter().filter(|preface| preface.data_token == token).count()
    };
    rig.script.until("two connections", |seen| (tokens(seen, "first") == 2).then_some(())).await;
    // The same token: the connections stay.
    rig.script.hang_up();
    rig.script.until("a second hello", |seen| seen.hellos.get(1).map(|_| ())).await;
    eventually("attached", || worker.status().attached).await;
    assert_eq!(rig.script.look(|seen| seen.prefaces.len()), 2);
    // Another token: new ones, and the old ones end.
    rig.script.manners(|manners| manners.data_token = "second".to_owned());
    rig.script.hang_up();
    rig.script.until("two new connections", |seen| (tokens(seen, "second") == 2).then_some(())).await;
    eventually("the old ones gone", || worker.status().data_connections == 2).await;
    worker.shutdown().await;
}

/// Red when STALE_INCARNATION is a broken link like any other.
#[tokio::test]
async fn the_newest_process_wins() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let stale = || -> Status { Error::precondition(Reason::StaleIncarnation, "a newer one is here").into() };
    rig.script.manners(|manners| manners.refuse = Some(stale));
    rig.script.fail(stale()).await;
    let error = tokio::time::timeout(PATIENCE, worker.wait()).await.unwrap();
    assert_eq!(error.reason(), Reason::StaleIncarnation);
    assert!(!worker.status().attached);
    worker.shutdown().await;
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
}

#[tokio::test]
async fn a_failing_canary_makes_the_worker_unready_and_says_why() {
    let rig = Rig::new().await;
    rig.backend.faults(|faults| faults.fail_start = Some("no more namespaces".to_owned()));
    let worker = rig.start_with(|config| config.canary_interval = Duration::from_millis(50)).await;
    let health = rig.script.until("a failed canary", |seen| {
        seen.health().filter(|health| health.canary.as_ref().is_some_and(|canary| !canary.ok)).cloned()
    });
    let health = health.await;
    assert!(!health.ready && health.reason.contains("no more namespaces"), "{}", health.reason);
    assert!(worker.status().reason.contains("no more namespaces"));
    assert!(rig.on_disk().is_empty());
    // It recovers by itself.
    rig.backend.faults(|faults| faults.fail_start = None);
    rig.script.ready().await;
    // A backend that breaks is seen, too, and nothing is placed on it.
    rig.backend.faults(|faults| faults.not_ready = Some("the engine is gone".to_owned()));
    let health = rig.script.until("a broken backend", |seen| {
        seen.health().filter(|health| health.reason.contains("the engine is gone")).cloned()
    });
    assert!(!health.await.ready);
    let session = SessionId::new();
    rig.script.place(session).await;
    let report = rig.script.state(session, v1::SessionState::Ended).await;
    assert!(report.refused && report.message.contains("can't be used"), "{}", report.message);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_little_disk_makes_the_worker_unready() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.disk_margin_bytes = u64::MAX).await;
    let low = rig.script.until("a low disk", |seen| {
        seen.health().filter(|health| health.reason.contains("bytes of disk are free")).cloned()
    });
    assert!(!low.await.ready);
    worker.shutdown().await;
}

#[tokio::test]
async fn backends_can_be_changed_to_those_that_work() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let beats = rig.script.look(|seen| seen.beats.len());
    rig.script.send(Command::SetBackend(v1::SetBackendCommand { backend: "docker".into() })).await;
    rig.script.until("more beats", |seen| (seen.beats.len() > beats + 2).then_some(())).await;
    assert!(worker.status().backends.iter().any(|backend| backend.name == "fake" && backend.chosen));
    worker.shutdown().await;
}

#[tokio::test]
async fn a_second_worker_on_the_state_directory_is_kept_out() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    let error = Worker::start(rig.config()).await.err().expect("the directory is in use");
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    assert!(!error.hint().is_empty());
    worker.shutdown().await;
    Worker::start(rig.config()).await.expect("the lock is free again").shutdown().await;
}

#[tokio::test]
async fn a_named_backend_that_cannot_work_is_a_clear_word() {
    let rig = Rig::new().await;
    let mut config = rig.config();
    config.fake.faults.not_ready = Some("no engine here".to_owned());
    let error = Worker::start(config).await.err().expect("it can't work");
    assert!(error.to_string().contains("no engine here"), "{error}");
    assert!(!error.hint().is_empty());
}
