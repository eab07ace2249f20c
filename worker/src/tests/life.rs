use std::time::Duration;

use berth_proto::{
    Code, Epoch, Reason, SessionId, convert,
    domain::Outcome,
    error::reason_of,
    v1::{
        self, coordinator_message::Message as Command, file_service_client::FileServiceClient,
        task_service_client::TaskServiceClient,
    },
};

use super::script::{PATIENCE, Rig, eventually, run, shell, small};
use crate::sessions::record;

const READY: v1::SessionState = v1::SessionState::Ready;
const ENDED: v1::SessionState = v1::SessionState::Ended;

fn outcome(end: v1::TaskEnd) -> Outcome {
    end.outcome.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn place_run_end() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.script.place(session).await;
    let report = rig.script.state(session, READY).await;
    assert_eq!((report.epoch, report.backend.as_str()), (1, "fake"));
    assert_eq!(rig.on_disk(), [session.to_string()]);

    let channel = rig.script.data().await;
    let (stdout, end) = run(channel.clone(), shell(session, "echo hello; exit 3")).await.unwrap();
    assert_eq!((stdout.as_str(), outcome(end)), ("hello\n", Outcome::Exited(3)));
    // The session's environment and the file plane.
    let (stdout, _) = run(channel.clone(), shell(session, "env")).await.unwrap();
    assert_eq!(stdout, "A=1\n");
    let mut files = FileServiceClient::new(channel.clone());
    let made = files
        .make_dir(v1::MakeDirRequest {
            session_id: session.to_string(),
            path: "d".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(made.into_inner().path, "d");
    // Both tasks' ends were told. (A start that was over before it could be sent is not.)
    let done = |report: &&v1::TaskReport| report.task.as_ref().is_some_and(|task| task.end.is_some());
    rig.script.until("two ends", |seen| (seen.tasks.iter().filter(done).count() == 2).then_some(())).await;
    assert!(rig.script.look(|seen| seen.tasks.iter().all(|report| report.epoch == 1)));

    let other = run(channel.clone(), shell(SessionId::new(), "true")).await.unwrap_err();
    assert_eq!(reason_of(&other), Some(Reason::SessionNotFound));

    rig.script.end(session, 1).await;
    let report = rig.script.state(session, ENDED).await;
    assert_eq!(report.end_reason(), v1::EndReason::Deleted);
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
    let gone = run(channel, shell(session, "true")).await.unwrap_err();
    assert_eq!((gone.code(), reason_of(&gone)), (Code::FailedPrecondition, Some(Reason::SessionEnded)));
    worker.shutdown().await;
}

/// Red when the second is taken for a new one, is not answered, or when nobody remembers what is over.
#[tokio::test]
async fn a_placement_that_comes_twice_starts_once() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let heard = rig.script.look(|seen| seen.sessions[&session.to_string()].len());
    rig.script.place(session).await;
    let again =
        rig.script.until("the state again", |seen| seen.sessions[&session.to_string()].get(heard).cloned());
    assert_eq!(again.await.state(), READY);
    assert_eq!((worker.status().sessions, rig.backend.sandboxes().len()), (1, 1));

    // Once it is over, it is over: a copy that comes late starts nothing.
    rig.script.end(session, 1).await;
    rig.script.state(session, ENDED).await;
    rig.script.place(session).await;
    // Nor does a placement whose end came first.
    let crossed = SessionId::new();
    rig.script.end(crossed, 1).await;
    rig.script.place(crossed).await;
    // Commands are obeyed in order: when this one is ready, those before it had their effect.
    let marker = SessionId::new();
    rig.placed(marker).await;
    assert_eq!(worker.status().sessions, 1);
    assert_eq!(rig.on_disk(), [marker.to_string()]);
    rig.script.look(|seen| {
        assert_eq!(seen.state(session), Some(ENDED));
        assert_eq!(seen.state(crossed), Some(ENDED));
    });
    worker.shutdown().await;
}

/// Red when an older placement or end counts, or a newer placement does not take the older one's place when that is
/// gone.
#[tokio::test]
async fn epochs_fence() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    let mut placement = record::sample(session);
    placement.epoch = Epoch(5);
    rig.script.send(Command::Place(placement.clone().into())).await;
    rig.script.state(session, READY).await;
    let channel = rig.script.data().await;
    let path =
        v1::MakeDirRequest { session_id: session.to_string(), path: "mark".into(), ..Default::default() };
    FileServiceClient::new(channel.clone()).make_dir(path.clone()).await.unwrap();

    // An older placement, and an older end, change nothing.
    placement.epoch = Epoch(4);
    rig.script.send(Command::Place(placement.clone().into())).await;
    rig.script.end(session, 4).await;
    // Commands are obeyed in order: those before this one have had their effect.
    rig.placed(SessionId::new()).await;
    let other = v1::MakeDirRequest { path: "other".into(), ..path.clone() };
    FileServiceClient::new(channel.clone()).make_dir(other).await.expect("it is as it was");
    // A newer one ends what is here first, however long that takes: its sandbox is another.
    rig.backend.faults(|faults| faults.fail_removes = 2);
    placement.epoch = Epoch(6);
    rig.script.send(Command::Place(placement.into())).await;
    rig.script
        .until("epoch 6 ready", |seen| {
            seen.last(session).filter(|r| r.epoch == 6 && r.state() == READY).cloned()
        })
        .await;
    assert_eq!((worker.status().sessions, rig.backend.sandboxes().len()), (2, 2));
    FileServiceClient::new(channel).make_dir(path).await.expect("a fresh tree has no such directory");
    rig.script.look(|seen| {
        let epochs: Vec<u64> =
            seen.sessions[&session.to_string()].iter().map(|report| report.epoch).collect();
        assert!(epochs.is_sorted() && !epochs.contains(&4), "{epochs:?}");
    });
    worker.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_figure() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.max_sessions = 2).await;
    rig.script.ready().await;
    let refused = async |limits, word: &str| {
        let session = SessionId::new();
        let mut placement = record::sample(session);
        placement.limits = limits;
        rig.script.send(Command::Place(placement.into())).await;
        let report = rig.script.state(session, ENDED).await;
        assert!(report.refused && report.message.contains(word), "{report:?}");
    };
    refused(small(100, 5 << 30), "memory").await;
    refused(small(2001, 64 << 20), "core").await;
    rig.script.send(Command::Cordoned(v1::Cordoned { cordoned: true })).await;
    refused(small(100, 64 << 20), "cordoned").await;
    rig.script.send(Command::Cordoned(v1::Cordoned { cordoned: false })).await;
    let (first, second) = (SessionId::new(), SessionId::new());
    rig.placed(first).await;
    rig.placed(second).await;
    refused(small(100, 64 << 20), "may hold 2").await;
    // An end frees the place.
    rig.script.end(first, 1).await;
    rig.script.state(first, ENDED).await;
    rig.placed(SessionId::new()).await;
    assert_eq!(worker.status().sessions, 2);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_sandbox_that_dies_ends_its_session() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let channel = rig.script.data().await;
    let mut tasks = TaskServiceClient::new(channel.clone());
    tasks.run(shell(session, "sleep 1000")).await.unwrap();
    rig.script.until("the task", |seen| seen.tasks.first().map(|_| ())).await;
    rig.backend.kill(&session.to_string());
    let report = rig.script.state(session, ENDED).await;
    assert_eq!(report.end_reason(), v1::EndReason::SandboxFailed);
    assert!(report.message.contains("died"), "{}", report.message);
    // The task that ran has an end too, and says the same.
    let end = rig.script.until("the task's end", |seen| seen.tasks.iter().find_map(|r| r.task.clone()?.end));
    assert_eq!(outcome(end.await), Outcome::SandboxFailed);
    assert!(rig.on_disk().is_empty());
    worker.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up_and_leaves_nothing() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let failed = async |timeout_ms, word: &str| {
        let session = SessionId::new();
        let mut placement = record::sample(session);
        placement.start_timeout = Duration::from_millis(timeout_ms);
        rig.script.send(Command::Place(placement.into())).await;
        let report = rig.script.state(session, ENDED).await;
        assert_eq!(report.end_reason(), v1::EndReason::SandboxFailed);
        assert!(!report.refused && report.message.contains(word), "{}", report.message);
        eventually("nothing left", || rig.on_disk().is_empty() && worker.status().sessions == 0).await;
        assert!(rig.backend.sandboxes().is_empty());
    };
    rig.backend.faults(|faults| faults.never_answer = true);
    failed(200, "in time").await;
    rig.backend.faults(|faults| {
        faults.never_answer = false;
        faults.fail_start = Some("out of ids".to_owned());
    });
    failed(5000, "out of ids").await;
    // A start that returns too late is undone when it does.
    rig.backend.faults(|faults| {
        faults.fail_start = None;
        faults.start_delay = Duration::from_millis(400);
    });
    failed(100, "in time").await;
    worker.shutdown().await;
}

/// Red when it is tried once, or the end is told before.
#[tokio::test]
async fn a_removal_that_fails_is_tried_again() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    rig.backend.faults(|faults| faults.fail_removes = 2);
    rig.script.end(session, 1).await;
    rig.script.state(session, ENDED).await;
    assert!(rig.on_disk().is_empty() && rig.backend.sandboxes().is_empty());
    worker.shutdown().await;
}

#[tokio::test]
async fn time_to_live_and_idleness_end_a_session() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (ttl, idle, missed) = (SessionId::new(), SessionId::new(), SessionId::new());
    let mut placement = record::sample(ttl);
    placement.expires_in = Some(Duration::from_millis(300));
    rig.script.send(Command::Place(placement.into())).await;
    let mut placement = record::sample(idle);
    placement.idle_timeout = Some(Duration::from_millis(300));
    rig.script.send(Command::Place(placement.into())).await;
    assert_eq!(rig.script.state(ttl, ENDED).await.end_reason(), v1::EndReason::TtlExpired);
    assert_eq!(rig.script.state(idle, ENDED).await.end_reason(), v1::EndReason::Idle);
    // An agent that forgets its deadline: the worker does not.
    rig.backend.faults(|faults| faults.no_deadlines = true);
    let mut placement = record::sample(missed);
    placement.expires_in = Some(Duration::from_millis(100));
    rig.script.send(Command::Place(placement.into())).await;
    assert_eq!(rig.script.state(missed, ENDED).await.end_reason(), v1::EndReason::TtlExpired);
    assert!(rig.on_disk().is_empty());
    worker.shutdown().await;
}

/// Red when a reading counts as activity, at the worker or in the agent: whoever watches a session would keep it for ever.
#[tokio::test]
async fn to_ask_what_a_session_takes_keeps_it_from_nothing() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let idle = SessionId::new();
    let mut placement = record::sample(idle);
    placement.idle_timeout = Some(Duration::from_millis(500));
    rig.script.send(Command::Place(placement.into())).await;
    let channel = rig.script.data().await;
    let asking = async {
        loop {
            let request = v1::GetUsageRequest { session_id: idle.to_string() };
            let _ = TaskServiceClient::new(channel.clone()).get_usage(request).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::select! {
        ended = rig.script.state(idle, ENDED) => ended,
        () = asking => unreachable!("it never ends"),
    };
    assert_eq!(ended.end_reason(), v1::EndReason::Idle);
    worker.shutdown().await;
}

#[tokio::test]
async fn an_update_moves_the_deadline() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let update = v1::UpdateCommand {
        session_id: session.to_string(),
        epoch: 1,
        expires_at: None,
        expires_in: Some(convert::duration_out(Duration::from_millis(50))),
        idle_timeout: None,
        egress: None,
    };
    // One for another epoch is none of ours.
    rig.script.send(Command::Update(v1::UpdateCommand { epoch: 9, ..update.clone() })).await;
    rig.placed(SessionId::new()).await;
    assert_eq!(rig.script.look(|seen| seen.state(session)), Some(READY));
    rig.script.send(Command::Update(update)).await;
    assert_eq!(rig.script.state(session, ENDED).await.end_reason(), v1::EndReason::TtlExpired);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_paused_session_takes_no_tasks_and_holds_up_nobody() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let (slow, other) = (SessionId::new(), SessionId::new());
    rig.backend.faults(|faults| faults.freeze_delay = Duration::from_secs(5));
    rig.placed(slow).await;
    rig.backend.faults(|faults| faults.freeze_delay = Duration::ZERO);
    let pause = |session: SessionId, paused| {
        Command::Pause(v1::PauseCommand { session_id: session.to_string(), epoch: 1, paused })
    };
    rig.script.send(pause(slow, true)).await;
    // While that freeze hangs, another session comes, runs, is paused, resumed and ended.
    rig.placed(other).await;
    let channel = rig.script.data().await;
    run(channel.clone(), shell(other, "true")).await.unwrap();
    rig.script.send(pause(other, true)).await;
    rig.script.state(other, v1::SessionState::Paused).await;
    let refused = run(channel.clone(), shell(other, "true")).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SessionPaused));
    let list = v1::ListTasksRequest { session_id: other.to_string(), ..Default::default() };
    TaskServiceClient::new(channel.clone()).list_tasks(list).await.expect("looking is allowed");
    let usage = v1::GetUsageRequest { session_id: other.to_string() };
    TaskServiceClient::new(channel.clone()).get_usage(usage).await.expect("looking is allowed");
    rig.script.send(pause(other, false)).await;
    rig.script.state(other, READY).await;
    run(channel, shell(other, "true")).await.unwrap();
    // And the end of the slow one does not wait for its freeze.
    rig.script.end(slow, 1).await;
    rig.script.state(slow, ENDED).await;
    worker.shutdown().await;
}

#[tokio::test]
async fn a_template_that_is_not_here_is_refused() {
    let rig = Rig::new().await;
    let worker = rig.start().await;
    rig.script.ready().await;
    let session = SessionId::new();
    let mut placement = record::sample(session);
    placement.template.backend =
        berth_proto::domain::BackendChoice::Only(berth_proto::domain::Backend::Docker);
    rig.script.send(Command::Place(placement.into())).await;
    let report = rig.script.state(session, ENDED).await;
    assert!(report.refused && report.message.contains("docker"), "{}", report.message);
    worker.shutdown().await;
}

#[tokio::test]
async fn a_session_has_a_bound_on_its_calls() {
    let rig = Rig::new().await;
    let worker = rig.start_with(|config| config.session_calls = 2).await;
    rig.script.ready().await;
    let session = SessionId::new();
    rig.placed(session).await;
    let mut tasks = TaskServiceClient::new(rig.script.data().await);
    let one = tasks.run(shell(session, "sleep 1000")).await.unwrap();
    let _two = tasks.run(shell(session, "sleep 1000")).await.unwrap();
    let three = tasks.run(shell(session, "true")).await.unwrap_err();
    assert_eq!((three.code(), reason_of(&three)), (Code::ResourceExhausted, Some(Reason::TooManyCalls)));
    drop(one);
    let free = async {
        while tasks.run(shell(session, "true")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("a call that ended gives its place back");
    worker.shutdown().await;
}
