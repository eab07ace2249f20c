//! Parking over real sockets: what clients, workers and the store see of a paused session that gives its place up.

mod common;

use std::time::Duration;

use berth_coordinator::{Config, Coordinator};
use berth_proto::{
    Code, Reason, TaskId,
    convert::duration_out,
    domain::Outcome,
    error::detail_of,
    v1::{
        self, SessionState, checkpoint_service_client::CheckpointServiceClient, coordinator_message::Message,
        worker_message,
    },
};
use common::{
    keeper::{Keeper, OnCheckpoint},
    *,
};

const SHORT: Option<Duration> = Some(Duration::from_millis(100));

async fn start(change: impl FnOnce(&mut Config)) -> Host {
    let state = tempfile::tempdir().unwrap();
    let mut config = config(state.path());
    change(&mut config);
    Host { running: Coordinator::start(config).await.expect("starts"), state }
}

/// A worker that takes checkpoints too.
async fn worker(host: &Host, name: &str, max_sessions: u32) -> (Puppet, Keeper) {
    let script = Script { data: false, max_sessions, ..Script::default() };
    let puppet = Puppet::attach(host, name, script).await.expect("attaches");
    let keeper = Keeper::serve(host, &puppet).await;
    (puppet, keeper)
}

async fn create(host: &Host) -> String {
    let wait_for_place = Some(duration_out(Duration::from_secs(1)));
    let request = v1::CreateSessionRequest { wait_for_place, ..Default::default() };
    host.sessions().await.create_session(request).await.expect("a session").into_inner().id
}

async fn pause(host: &Host, session_id: &str) -> v1::Session {
    let request = v1::PauseSessionRequest { session_id: session_id.into() };
    host.sessions().await.pause_session(request).await.expect("it is paused").into_inner()
}

async fn resume(host: &Host, session_id: &str) -> Result<v1::Session, tonic::Status> {
    let request = v1::ResumeSessionRequest { session_id: session_id.into() };
    host.sessions().await.resume_session(request).await.map(tonic::Response::into_inner)
}

async fn state(host: &Host, session_id: &str) -> v1::Session {
    let request = v1::GetSessionRequest { session_id: session_id.into() };
    host.sessions().await.get_session(request).await.unwrap().into_inner()
}

/// Waits until it has given its place up.
async fn parked(host: &Host, session_id: &str) -> v1::Session {
    until(|| async {
        let now = state(host, session_id).await;
        assert!(!matches!(now.state(), SessionState::Ending | SessionState::Ended), "{now:?}");
        (now.state() == SessionState::Parked && now.worker_id.is_empty()).then_some(now)
    })
    .await
}

async fn checkpoints(host: &Host) -> CheckpointServiceClient<Guarded> {
    CheckpointServiceClient::with_interceptor(host.channel().await, host.admin())
}

async fn delete(host: &Host, session_id: &str) -> v1::Session {
    let request = v1::DeleteSessionRequest { session_id: session_id.into(), ..Default::default() };
    host.sessions().await.delete_session(request).await.unwrap().into_inner()
}

/// One that has ended, and one that runs.
async fn two_tasks(worker: &Puppet, session: &str) -> [String; 2] {
    let ids = [TaskId::new().to_string(), TaskId::new().to_string()];
    for (id, state) in ids.iter().zip([v1::TaskState::Done, v1::TaskState::Running]) {
        let end = (state == v1::TaskState::Done)
            .then(|| v1::TaskEnd { outcome: Some(Outcome::Exited(7).into()), ..Default::default() });
        let (id, session_id) = (id.clone(), session.to_owned());
        let task = v1::Task { id, session_id, state: state.into(), end, ..Default::default() };
        worker.say(worker_message::Message::Task(v1::TaskReport { epoch: 1, task: Some(task) })).await;
    }
    ids
}

/// Red when `keep_parking` is not started, or when a resume is not placed.
#[tokio::test]
async fn a_session_that_stays_paused_gives_its_place_up_and_comes_back() {
    let host = start(|config| config.paused_ttl = SHORT).await;
    let (mut worker, keeper) = worker(&host, "w1", 1).await;
    let session = create(&host).await;
    let [done, running] = two_tasks(&worker, &session).await;
    pause(&host, &session).await;
    let now = parked(&host, &session).await;
    assert!(now.parked_at.is_some() && now.parked_at == now.checkpointed_at, "{now:?}");
    assert!(now.message.contains("it was paused for"), "{now:?}");
    let asked = keeper.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].parting.is_some(), "nobody may change its files any more");
    worker
        .hear(|m| matches!(m, Message::End(end) if end.reason() == v1::EndReason::Parked).then_some(()))
        .await;

    // Its place is another's. (The worker has one.)
    let other = create(&host).await;
    let info = host.fleet().await.get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.sessions_parked, info.sessions_ready), (1, 1));
    let outcome = async |id: &String| {
        let get = v1::GetTaskRequest { session_id: session.clone(), task_id: id.clone() };
        let task = host.tasks().await.get_task(get).await.unwrap().into_inner();
        task.end.unwrap().outcome.unwrap().kind.unwrap()
    };
    assert_eq!(outcome(&done).await, v1::outcome::Kind::Exited(7));
    assert!(matches!(outcome(&running).await, v1::outcome::Kind::SessionEnded(_)));
    let list = v1::ListTasksRequest { session_id: session.clone(), ..Default::default() };
    let listed = host.tasks().await.list_tasks(list).await.unwrap().into_inner().tasks;
    assert_eq!(listed.iter().map(|task| &task.id).collect::<Vec<_>>(), [&running, &done]);

    // There is no room for it now; then there is.
    let status = failed(resume(&host, &session).await, Code::ResourceExhausted, Reason::NoPlace);
    assert!(status.message().contains("stays parked"), "{status:?}");
    assert_eq!(state(&host, &session).await.state(), SessionState::Parked);
    delete(&host, &other).await;
    let back = resume(&host, &session).await.expect("it is resumed");
    assert_eq!((back.state(), back.epoch, &back.worker_id[..]), (SessionState::Ready, 2, "w1"));
    let at = back.parked_at.expect("when it was parked").to_string();
    assert!(back.message.contains(&at) && back.message.contains("gone"), "{back:?}");
    let placed = worker
        .hear(|m| match m {
            Message::Place(place) if place.epoch == 2 => Some(place.clone()),
            _ => None,
        })
        .await;
    assert_eq!(placed.restore.unwrap().checkpoint_id, now.checkpoint_id);
}

/// Red when a state is left out of `usable` or of `Checkpoints::live`.
#[tokio::test]
async fn a_parked_session_says_so_to_every_call() {
    let host = start(|config| config.paused_ttl = SHORT).await;
    let (_worker, _keeper) = worker(&host, "w1", 1).await;
    let session_id = create(&host).await;
    pause(&host, &session_id).await;
    let checkpoint_id = parked(&host, &session_id).await.checkpoint_id;
    let parked_is_told = |status: tonic::Status| {
        let status = failed(Err::<(), _>(status), Code::FailedPrecondition, Reason::SessionParked);
        assert!(detail_of(&status, "hint").unwrap().contains("berth resume"), "{status:?}");
    };
    let (mut tasks, mut files) = (host.tasks().await, host.files().await);
    let run = v1::RunRequest { session_id: session_id.clone(), ..Default::default() };
    parked_is_told(tasks.run(run).await.err().unwrap());
    let watch = v1::WatchTaskRequest {
        session_id: session_id.clone(),
        task_id: TaskId::new().to_string(),
        ..Default::default()
    };
    parked_is_told(tasks.watch_task(watch).await.err().unwrap());
    let read = v1::ReadRequest { session_id: session_id.clone(), path: "f".into(), ..Default::default() };
    parked_is_told(files.read(read).await.err().unwrap());
    let mut keeps = checkpoints(&host).await;
    let take = v1::CheckpointSessionRequest { session_id: session_id.clone(), ..Default::default() };
    parked_is_told(keeps.checkpoint_session(take).await.err().unwrap());
    let fork = v1::ForkSessionRequest { session_id: session_id.clone(), count: 1, ..Default::default() };
    parked_is_told(keeps.fork_session(fork).await.err().unwrap());
    let get = v1::GetTaskRequest { session_id: session_id.clone(), task_id: TaskId::new().to_string() };
    failed(tasks.get_task(get).await, Code::NotFound, Reason::TaskNotFound);
    // A pause of it is no failure, and changes nothing.
    assert_eq!(pause(&host, &session_id).await.state(), SessionState::Parked);

    // Its files are in this checkpoint alone.
    let forget = v1::DeleteCheckpointRequest { checkpoint_id: checkpoint_id.clone() };
    let status = keeps.delete_checkpoint(forget.clone()).await;
    let status = failed(status, Code::FailedPrecondition, Reason::CheckpointInUse);
    assert_eq!(detail_of(&status, "session_id").as_deref(), Some(&session_id[..]));
    let get = v1::GetCheckpointRequest { checkpoint_id };
    let kept = keeps.get_checkpoint(get).await.unwrap().into_inner();
    assert_eq!((kept.cause(), kept.expires_at), (v1::CheckpointCause::Parked, None));
    assert_eq!(delete(&host, &session_id).await.end_reason(), v1::EndReason::Deleted);
    keeps.delete_checkpoint(forget).await.expect("nobody needs it any more");
}

/// Red when `park` does not look whether the session is still paused, by this attempt: it would be gone from under its
/// client.
#[tokio::test]
async fn a_resume_that_comes_while_the_checkpoint_is_taken_is_in_time() {
    let host = start(|config| config.paused_ttl = SHORT).await;
    let (worker, keeper) = worker(&host, "w1", 1).await;
    keeper.then.send_replace(OnCheckpoint::Waits);
    let session = create(&host).await;
    pause(&host, &session).await;
    until(|| async { (!keeper.asked().is_empty()).then_some(()) }).await;
    assert_eq!(resume(&host, &session).await.unwrap().state(), SessionState::Ready);
    keeper.then.send_replace(OnCheckpoint::Taken);
    until(|| async { (!state(&host, &session).await.checkpoint_id.is_empty()).then_some(()) }).await;
    // What came of it has been decided when a later change is done.
    let update = v1::UpdateSessionRequest {
        session_id: session.clone(),
        set_labels: [("later".to_owned(), "x".to_owned())].into(),
        ..Default::default()
    };
    host.sessions().await.update_session(update).await.unwrap();
    let now = state(&host, &session).await;
    assert_eq!((now.state(), now.epoch, now.parked_at), (SessionState::Ready, 1, None));
    assert!(!worker.has_heard(|m| matches!(m, Message::End(_))));
}

/// Red when the reason is not told, or a start that fails ends the session.
#[tokio::test]
async fn what_can_not_be_parked_stays_paused_with_the_reason_and_what_can_not_be_resumed_parked() {
    let host = start(|config| config.paused_ttl = SHORT).await;
    let (worker, keeper) = worker(&host, "w1", 2).await;
    keeper.then.send_replace(OnCheckpoint::Fails("the disk is full".into()));
    let stuck = create(&host).await;
    pause(&host, &stuck).await;
    let told = until(|| async {
        let now = state(&host, &stuck).await;
        assert_eq!(now.state(), SessionState::Paused);
        (!now.message.is_empty()).then_some(now.message)
    })
    .await;
    assert_eq!(told, "could not be parked, and stays paused: the disk is full");
    assert_eq!(resume(&host, &stuck).await.unwrap().message, "");
    keeper.then.send_replace(OnCheckpoint::Taken);

    let session = create(&host).await;
    pause(&host, &session).await;
    parked(&host, &session).await;
    worker.script.lock().unwrap().on_place = OnPlace::Fail("a piece is damaged".into());
    let status = failed(resume(&host, &session).await, Code::Internal, Reason::SandboxFailed);
    assert!(status.message().contains("stays parked: a piece is damaged"), "{status:?}");
    worker.script.lock().unwrap().on_place = OnPlace::Ready;
    assert_eq!(resume(&host, &session).await.unwrap().state(), SessionState::Ready);
}

/// Red when the place or the state is not in the store.
#[tokio::test]
async fn a_restart_keeps_it_parked() {
    let host = start(|config| config.paused_ttl = SHORT).await;
    let (_worker, _keeper) = worker(&host, "w1", 1).await;
    let session = create(&host).await;
    pause(&host, &session).await;
    let before = parked(&host, &session).await;
    let host = host.restart().await;
    assert_eq!(state(&host, &session).await, before);
    let (_worker, _keeper) = worker(&host, "w2", 1).await;
    let back = resume(&host, &session).await.unwrap();
    assert_eq!((back.state(), &back.worker_id[..], back.epoch), (SessionState::Ready, "w2", 2));
}

/// Red when a drain leaves paused sessions to their deadline.
#[tokio::test]
async fn a_drain_parks_what_is_paused_whatever_its_policy() {
    let host = start(|config| config.paused_ttl = None).await;
    let (_worker, _keeper) = worker(&host, "w1", 2).await;
    let plain = create(&host).await;
    let request = v1::CreateSessionRequest {
        on_worker_loss: v1::OnWorkerLoss::Restore.into(),
        checkpoints: Some(v1::CheckpointPolicy { on_drain: true, ..Default::default() }),
        ..Default::default()
    };
    let movable = host.sessions().await.create_session(request).await.unwrap().into_inner().id;
    for session in [&plain, &movable] {
        pause(&host, session).await;
    }
    let deadline = Some(duration_out(Duration::from_secs(600)));
    let drain = v1::DrainRequest { worker_id: "w1".into(), deadline };
    host.fleet().await.drain(drain).await.unwrap();
    for session in [&plain, &movable] {
        let now = parked(&host, session).await;
        assert!(now.message.contains("worker w1 is drained"), "{now:?}");
    }
    let (_other, _keeper) = worker(&host, "w2", 2).await;
    for session in [&plain, &movable] {
        assert_eq!(resume(&host, session).await.unwrap().worker_id, "w2");
    }
}

/// Says how much of its 16 GiB is left.
async fn tells(worker: &Puppet, left: u64) {
    let health = v1::WorkerHealth { ready: true, memory_available_bytes: left, ..Default::default() };
    let templates = vec!["base".to_owned()];
    let beat = v1::Heartbeat { sequence: 9, health: Some(health), templates, ..Default::default() };
    worker.say(worker_message::Message::Heartbeat(beat)).await;
}

/// Workers tell how they are when the test says so, and not in between. Red when `ended` does not note that a worker
/// was relieved: then the next one goes at once.
#[tokio::test]
async fn a_worker_that_is_short_of_memory_gives_up_what_was_paused_first_and_no_more_until_it_is_heard_of_again()
 {
    let host = start(|config| {
        config.paused_ttl = None;
        config.lease = Duration::from_secs(300);
    })
    .await;
    let (one, kept) = worker(&host, "w1", 3).await;
    let [later, first] = [create(&host).await, create(&host).await];
    let up = create(&host).await;
    pause(&host, &first).await;
    pause(&host, &later).await;
    tells(&one, 1 << 30).await;
    let now = parked(&host, &first).await;
    assert!(now.message.contains("worker w1 is short of memory"), "{now:?}");
    // That another worker is helped says that this one was looked at meanwhile.
    let (two, _kept) = worker(&host, "w2", 3).await;
    let request = v1::CreateSessionRequest {
        worker_selector: [("name".to_owned(), "w2".to_owned())].into(),
        ..Default::default()
    };
    let other = host.sessions().await.create_session(request).await.unwrap().into_inner().id;
    pause(&host, &other).await;
    tells(&two, 1 << 30).await;
    parked(&host, &other).await;
    let asked = |keeper: &Keeper| keeper.asked().iter().map(|r| r.session_id.clone()).collect::<Vec<_>>();
    assert_eq!(asked(&kept), std::slice::from_ref(&first));
    tells(&one, 1 << 30).await;
    parked(&host, &later).await;
    assert_eq!(asked(&kept), [first, later]);
    assert_eq!(state(&host, &up).await.state(), SessionState::Ready, "only what is paused");
}
