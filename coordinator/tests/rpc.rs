//! The coordinator over real loopback sockets, with workers that follow a script.

mod common;

use std::{sync::Arc, time::Duration};

use berth_coordinator::{Config, Coordinator, StartError, store::memory::MemoryStore};
use berth_proto::{
    Code, Reason, SessionId, TaskId,
    convert::duration_out,
    error::{detail_of, reason_of},
    v1::{self, coordinator_message::Message, worker_message},
};
use common::*;
use futures::StreamExt;

fn wanted() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest::default()
}

fn waiting(seconds: u64) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest { wait_for_place: Some(duration_out(Duration::from_secs(seconds))), ..wanted() }
}

async fn in_state(host: &Host, id: &str, state: v1::SessionState) -> v1::Session {
    let client = host.sessions().await;
    until(|| async {
        let session =
            client.clone().get_session(v1::GetSessionRequest { session_id: id.into() }).await.unwrap();
        let session = session.into_inner();
        (session.state == i32::from(state)).then_some(session)
    })
    .await
}

#[tokio::test]
async fn a_session_is_placed_ready_used_and_deleted() {
    let host = Host::start().await;
    let mut worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let session = sessions.create_session(wanted()).await.unwrap().into_inner();
    assert_eq!(session.state(), v1::SessionState::Ready);
    assert_eq!((session.worker_id.as_str(), session.epoch, session.backend.as_str()), ("w1", 1, "fake"));
    assert_eq!(session.limits.unwrap().cpu_millis, Some(1000));
    assert!(session.expires_at.is_some());
    let place = worker.hear(|m| if let Message::Place(p) = m { Some(p.clone()) } else { None }).await;
    assert_eq!(place.template.unwrap().user, "user");

    let run = v1::RunRequest {
        session_id: session.id.clone(),
        task: Some(v1::TaskSpec {
            program: Some(v1::task_spec::Program::Shell("hello".into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let events: Vec<_> = host.tasks().await.run(run).await.unwrap().into_inner().collect().await;
    assert_eq!(events.len(), 3);
    let Some(v1::task_event::Event::Stdout(chunk)) = events[1].as_ref().unwrap().event.clone() else {
        panic!()
    };
    assert_eq!(&chunk.data[..], b"hello");

    let delete = v1::DeleteSessionRequest { session_id: session.id.clone(), ..Default::default() };
    let ended = sessions.delete_session(delete.clone()).await.unwrap().into_inner();
    assert_eq!((ended.state(), ended.end_reason()), (v1::SessionState::Ended, v1::EndReason::Deleted));
    assert_eq!(sessions.delete_session(delete).await.unwrap().into_inner(), ended);
    let get = v1::GetTaskRequest { session_id: session.id, task_id: TaskId::new().to_string() };
    failed(host.tasks().await.get_task(get).await, Code::NotFound, Reason::TaskNotFound);
    let worker = host
        .fleet()
        .await
        .get_worker(v1::GetWorkerRequest { worker_id: "w1".into() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((worker.sessions, worker.data_connections), (0, 2));
}

#[tokio::test]
async fn files_pass_through_in_both_directions() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let session = host.sessions().await.create_session(wanted()).await.unwrap().into_inner();
    let header = v1::WriteHeader { session_id: session.id.clone(), path: "f".into(), ..Default::default() };
    let part = |part| v1::WriteRequest { part: Some(part) };
    let chunks = (0..20).map(|n| part(v1::write_request::Part::Data(vec![n; 256 << 10].into())));
    let parts: Vec<_> =
        std::iter::once(part(v1::write_request::Part::Header(header))).chain(chunks).collect();
    let written = host.files().await.write(futures::stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!(written.size, 20 * (256 << 10));
    let unknown =
        v1::StatRequest { session_id: SessionId::new().to_string(), path: "f".into(), follow: false };
    failed(host.files().await.stat(unknown).await, Code::NotFound, Reason::SessionNotFound);
}

/// Red when the key is not looked for, or its body not compared.
#[tokio::test]
async fn the_same_request_id_is_the_same_session() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let request = v1::CreateSessionRequest { request_id: "r".into(), ..wanted() };
    let (a, b) = (host.sessions().await, host.sessions().await);
    let (mut a, mut b) = (a, b);
    let (first, second) = tokio::join!(a.create_session(request.clone()), b.create_session(request.clone()));
    assert_eq!(first.unwrap().into_inner().id, second.unwrap().into_inner().id);
    let other = v1::CreateSessionRequest { priority: 3, ..request };
    failed(a.create_session(other).await, Code::AlreadyExists, Reason::RequestIdReused);
    let list = a.list_sessions(v1::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions.len(), 1);
}

#[tokio::test]
async fn without_a_worker_the_wait_ends_with_what_was_missing() {
    let host = Host::start().await;
    let mut sessions = host.sessions().await;
    let status = failed(sessions.create_session(waiting(0)).await, Code::ResourceExhausted, Reason::NoPlace);
    assert!(status.message().contains("no worker is attached"), "{status:?}");
    let status = failed(sessions.create_session(waiting(1)).await, Code::ResourceExhausted, Reason::NoPlace);
    assert!(status.message().contains("no worker is attached"), "{status:?}");
    let script = Script { max_sessions: 0, ..Script::default() };
    let _full = Puppet::attach(&host, "w1", script).await.unwrap();
    let status = sessions.create_session(waiting(0)).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::LimitTooHigh), "{status:?}");
    let _good = host.worker("w2").await;
    host.fleet().await.cordon(v1::CordonRequest { worker_id: "w2".into() }).await.unwrap();
    let status = failed(sessions.create_session(waiting(0)).await, Code::ResourceExhausted, Reason::NoPlace);
    assert!(
        status.message().contains("w1 has no free place (0 of 0 sessions), w2 is cordoned"),
        "{status:?}"
    );
    let big = v1::CreateSessionRequest {
        limits: Some(v1::Limits { memory_bytes: Some(1 << 40), ..Default::default() }),
        ..wanted()
    };
    let status = failed(sessions.create_session(big).await, Code::ResourceExhausted, Reason::LimitTooHigh);
    assert!(status.message().contains("memory: 1 TiB asked for"), "{status:?}");
    let unknown = v1::CreateSessionRequest { template: "nope".into(), ..wanted() };
    failed(sessions.create_session(unknown).await, Code::NotFound, Reason::TemplateNotFound);
}

#[tokio::test]
async fn a_waiting_session_gets_the_place_that_comes() {
    let host = Host::start().await;
    let mut sessions = host.sessions().await;
    let waits = tokio::task::JoinSet::from_iter([async move { sessions.create_session(waiting(30)).await }]);
    let list =
        v1::ListSessionsRequest { states: vec![v1::SessionState::Pending.into()], ..Default::default() };
    let client = host.sessions().await;
    let pending = until(|| async {
        client.clone().list_sessions(list.clone()).await.unwrap().into_inner().sessions.into_iter().next()
    })
    .await;
    assert!(pending.message.contains("no worker is attached"), "{}", pending.message);
    let _worker = host.worker("w1").await;
    let ready = waits.join_all().await.remove(0).unwrap().into_inner();
    assert_eq!(ready.id, pending.id);
}

#[tokio::test]
async fn a_refused_session_goes_to_the_other_worker() {
    let host = Host::start().await;
    let script = Script { on_place: OnPlace::Refuse, ..Script::default() };
    let mut first = Puppet::attach(&host, "w1", script).await.unwrap();
    let mut sessions = host.sessions().await;
    let creating = tokio::task::JoinSet::from_iter([async move { sessions.create_session(wanted()).await }]);
    first.hear(|m| matches!(m, Message::Place(_)).then_some(())).await;
    let _second = host.worker("w2").await;
    let session = creating.join_all().await.remove(0).unwrap().into_inner();
    assert_eq!(session.worker_id, "w2");
    assert!(session.epoch >= 2);
}

#[tokio::test]
async fn a_sandbox_that_fails_says_why() {
    let host = Host::start().await;
    let script = Script { on_place: OnPlace::Fail("no user namespaces here".into()), ..Script::default() };
    let _worker = Puppet::attach(&host, "w1", script).await.unwrap();
    let status =
        failed(host.sessions().await.create_session(wanted()).await, Code::Internal, Reason::SandboxFailed);
    assert_eq!(status.message(), "no user namespaces here");
}

/// Red when `Abandoned` does nothing.
#[tokio::test]
async fn a_client_that_goes_away_leaves_no_session_behind() {
    let host = Host::start().await;
    let script = Script { on_place: OnPlace::Nothing, ..Script::default() };
    let mut worker = Puppet::attach(&host, "w1", script).await.unwrap();
    let mut sessions = host.sessions().await;
    let id = {
        let mut creating = Box::pin(sessions.create_session(wanted()));
        tokio::select! {
            _ = &mut creating => panic!("nobody made it ready"),
            place = worker.hear(|m| if let Message::Place(p) = m { Some(p.session_id.clone()) } else { None }) => place,
        }
    };
    let ended = in_state(&host, &id, v1::SessionState::Ended).await;
    assert_eq!(ended.end_reason(), v1::EndReason::Abandoned);
}

#[tokio::test]
async fn calls_without_the_right_token_are_refused() {
    let host = Host::start().await;
    let list = v1::ListSessionsRequest::default;
    let mut bare = v1::session_service_client::SessionServiceClient::new(host.channel().await);
    failed(bare.list_sessions(list()).await, Code::Unauthenticated, Reason::TokenMissing);
    let with = |token: Bearer, channel| {
        v1::session_service_client::SessionServiceClient::with_interceptor(channel, token)
    };
    let mut wrong = with(Bearer(format!("berth_{}", "0".repeat(64))), host.channel().await);
    failed(wrong.list_sessions(list()).await, Code::Unauthenticated, Reason::TokenInvalid);
    let mut join = with(host.join(), host.channel().await);
    failed(join.list_sessions(list()).await, Code::PermissionDenied, Reason::TokenScope);
    let attached = Puppet::attach_as(&host, host.admin(), "w1", Script::default()).await.map(|_| ());
    failed(attached, Code::PermissionDenied, Reason::TokenScope);
}

#[tokio::test]
async fn health_and_reflection_are_open_on_loopback() {
    let host = Host::start().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(host.channel().await);
    for service in ["", "berth.v1.SessionService", "berth.v1.TaskService", "berth.v1.WorkerService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(
            answer.status(),
            tonic_health::pb::health_check_response::ServingStatus::Serving,
            "{service}"
        );
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut reflection = ServerReflectionClient::new(host.channel().await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    assert!(names.contains(&"berth.v1.AdminService") && names.contains(&"berth.v1.FileService"), "{names:?}");
}

/// Every call that there is, with a message a little larger than its service takes, and those that only look with one that
/// just fits. Red for each service that takes 4 MiB instead.
#[tokio::test]
async fn each_service_takes_messages_of_its_own_size() {
    const KIB: usize = 1 << 10;
    let limit = |service: &str| match service {
        "SessionService" | "CheckpointService" | "SecretService" | "PortService" | "InterpreterService" => {
            1024 * KIB
        }
        "TaskService" => 2048 * KIB,
        "FileService" | "WorkerService" | "BlobService" => 4096 * KIB,
        // What is added later is small until somebody decides otherwise.
        _ => 64 * KIB,
    };
    // A field that no message of ours has: it is passed over once the message is taken.
    let padding = |bytes: usize| raw::string_at(&[1000], &"x".repeat(bytes));
    let host = Host::start().await;
    let (admin, join) = (host.admin(), host.join());
    for call in raw::calls().into_iter().filter(raw::Call::is_mounted) {
        let token = if ["WorkerService", "BlobService"].contains(&&*call.service) { &join } else { &admin };
        let limit = limit(&call.service);
        let words = async |bytes: usize| {
            let made = call.make(&host.channel().await, Some(token), padding(bytes)).await;
            made.err().map(|error| error.message().to_owned()).unwrap_or_default()
        };
        let refused = words(limit).await;
        // Ours, or tonic's own, where the answer has begun.
        let said = [format!("larger than {limit} bytes"), format!("the limit is: {limit} bytes")];
        assert!(said.iter().any(|words| refused.contains(words)), "{call:?}: {refused}");
        if ["List", "Get"].iter().any(|looks| call.method.starts_with(looks)) {
            let fits = words(limit - 64).await;
            assert!(!fits.contains("larger than") && !fits.contains("too large"), "{call:?}: {fits}");
        }
    }
}

#[tokio::test]
async fn a_message_of_ten_mebibytes_is_refused_and_the_connection_lives() {
    let host = Host::start().await;
    let mut sessions = host.sessions().await;
    let huge = v1::CreateSessionRequest { env: [("A".to_owned(), "x".repeat(10 << 20))].into(), ..wanted() };
    let status = failed(sessions.create_session(huge).await, Code::ResourceExhausted, Reason::InvalidField);
    assert!(status.message().contains("larger than 1048576 bytes"), "{status:?}");
    // The same connection.
    for _ in 0..3 {
        sessions.list_sessions(v1::ListSessionsRequest::default()).await.unwrap();
    }
}

/// Red when an error goes out with all of a request's words in it: no client takes headers that long, and instead of what
/// is wrong it tells of the protocol.
#[tokio::test]
async fn a_refusal_is_told_however_long_the_words_that_are_refused() {
    let host = Host::start().await;
    let long = "x".repeat(900 << 10);
    let egress = Some(v1::Egress { preset: long.clone(), ..Default::default() });
    let labels = [(long, String::new())].into();
    let mut sessions = host.sessions().await;
    for request in
        [v1::CreateSessionRequest { egress, ..wanted() }, v1::CreateSessionRequest { labels, ..wanted() }]
    {
        let refused = sessions.create_session(request).await;
        failed(refused, Code::InvalidArgument, Reason::InvalidField);
    }
}

#[tokio::test]
async fn a_pause_stops_tasks_but_not_questions() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let session_id = sessions.create_session(wanted()).await.unwrap().into_inner().id;
    let paused =
        sessions.pause_session(v1::PauseSessionRequest { session_id: session_id.clone() }).await.unwrap();
    assert_eq!(paused.into_inner().state(), v1::SessionState::Paused);
    let mut tasks = host.tasks().await;
    let run = v1::RunRequest { session_id: session_id.clone(), ..Default::default() };
    let status = failed(tasks.run(run.clone()).await, Code::FailedPrecondition, Reason::SessionPaused);
    assert!(detail_of(&status, "hint").unwrap().contains("berth resume"));
    let task_id = TaskId::new().to_string();
    let get = v1::GetTaskRequest { session_id: session_id.clone(), task_id };
    assert_eq!(tasks.get_task(get).await.unwrap().into_inner().pid, 42);
    let resumed =
        sessions.resume_session(v1::ResumeSessionRequest { session_id }).await.unwrap().into_inner();
    assert_eq!(resumed.state(), v1::SessionState::Ready);
    assert!(tasks.run(run).await.is_ok());
}

#[tokio::test]
async fn tasks_can_be_asked_for_after_their_session_is_over() {
    let host = Host::start().await;
    let worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let session_id = sessions.create_session(wanted()).await.unwrap().into_inner().id;
    let [done, running] = [TaskId::new().to_string(), TaskId::new().to_string()];
    for (id, state) in [(&done, v1::TaskState::Done), (&running, v1::TaskState::Running)] {
        let end = (state == v1::TaskState::Done).then(|| v1::TaskEnd {
            outcome: Some(berth_proto::domain::Outcome::Exited(7).into()),
            ..Default::default()
        });
        let task = v1::Task {
            id: id.clone(),
            session_id: session_id.clone(),
            state: state.into(),
            end,
            ..Default::default()
        };
        worker.say(worker_message::Message::Task(v1::TaskReport { epoch: 1, task: Some(task) })).await;
    }
    sessions
        .delete_session(v1::DeleteSessionRequest { session_id: session_id.clone(), ..Default::default() })
        .await
        .unwrap();
    let outcome = |task: v1::Task| task.end.unwrap().outcome.unwrap().kind.unwrap();
    let mut tasks = host.tasks().await;
    let get =
        |task_id: &String| v1::GetTaskRequest { session_id: session_id.clone(), task_id: task_id.clone() };
    let kind = outcome(tasks.get_task(get(&done)).await.unwrap().into_inner());
    assert_eq!(kind, v1::outcome::Kind::Exited(7));
    let kind = outcome(tasks.get_task(get(&running)).await.unwrap().into_inner());
    assert!(matches!(kind, v1::outcome::Kind::SessionEnded(_)));
    let list = |page_token: String| v1::ListTasksRequest {
        session_id: session_id.clone(),
        page_size: 1,
        page_token,
        running_only: false,
    };
    let first = tasks.list_tasks(list(String::new())).await.unwrap().into_inner();
    assert_eq!(first.tasks[0].id, running);
    let second = tasks.list_tasks(list(first.next_page_token)).await.unwrap().into_inner();
    assert_eq!((second.tasks[0].id.as_str(), second.next_page_token.as_str()), (done.as_str(), ""));
    let run = v1::RunRequest { session_id: session_id.clone(), ..Default::default() };
    let status = failed(tasks.run(run).await, Code::FailedPrecondition, Reason::SessionEnded);
    assert_eq!(detail_of(&status, "end_reason").as_deref(), Some("END_REASON_DELETED"));
}

#[tokio::test]
async fn events_come_in_order_and_can_be_taken_up_again() {
    let host = Host::start().await;
    let mut fleet = host.fleet().await;
    let mut first = fleet.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
    let marker = first.message().await.unwrap().unwrap();
    assert!(matches!(marker.subject, Some(v1::event::Subject::Marker(_))));
    let _worker = host.worker("w1").await;
    let session = host.sessions().await.create_session(wanted()).await.unwrap().into_inner();
    let mut seen = Vec::new();
    let mut tokens = Vec::new();
    while seen.last() != Some(&"READY".to_owned()) {
        let event = tokio::time::timeout(SOON, first.message()).await.unwrap().unwrap().unwrap();
        tokens.push(event.token);
        match event.subject.unwrap() {
            v1::event::Subject::Worker(worker) => seen.push(worker.id),
            v1::event::Subject::Session(s) => {
                assert_eq!(s.id, session.id);
                seen.push(s.state().as_str_name().trim_start_matches("SESSION_STATE_").to_owned());
            }
            _ => {}
        }
    }
    assert_eq!(seen, ["w1", "PLACED", "READY"]);
    let resume = v1::WatchEventsRequest { after_token: tokens[0].clone() };
    let mut again = fleet.watch_events(resume.clone()).await.unwrap().into_inner();
    assert_eq!(again.message().await.unwrap().unwrap().token, tokens[0]);
    assert_eq!(again.message().await.unwrap().unwrap().token, tokens[1]);
    let host = host.restart().await;
    failed(host.fleet().await.watch_events(resume).await.map(|_| ()), Code::OutOfRange, Reason::EventsLost);
}

/// Red when a report counts whatever its epoch, or a hello is not answered with the end of what is unknown.
#[tokio::test]
async fn a_restart_keeps_sessions_and_ignores_stale_epochs() {
    let host = Host::start().await;
    let worker = host.worker("w1").await;
    let mut request = v1::CreateSessionRequest { request_id: "r".into(), ..wanted() };
    request.labels.insert("a".into(), "b".into());
    let session = host.sessions().await.create_session(request.clone()).await.unwrap().into_inner();
    host.fleet().await.cordon(v1::CordonRequest { worker_id: "w1".into() }).await.unwrap();
    worker.leave().await;
    let host = host.restart().await;
    let mut sessions = host.sessions().await;
    let kept = sessions
        .get_session(v1::GetSessionRequest { session_id: session.id.clone() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(kept, session);
    assert_eq!(
        sessions.create_session(request).await.unwrap().into_inner(),
        session,
        "the request id is kept too"
    );
    let run = v1::RunRequest { session_id: session.id.clone(), ..Default::default() };
    failed(
        host.tasks().await.run(run.clone()).await.map(|_| ()),
        Code::Unavailable,
        Reason::WorkerUnreachable,
    );

    let holds = |id: &str, epoch| v1::RunningSession {
        session_id: id.into(),
        epoch,
        state: v1::SessionState::Ready.into(),
        backend: "fake".into(),
    };
    let stranger = SessionId::new().to_string();
    let script = Script {
        incarnation: 1,
        running: vec![holds(&session.id, 1), holds(&stranger, 4)],
        ..Script::default()
    };
    let mut worker = Puppet::attach(&host, "w1", script).await.unwrap();
    assert_eq!(worker.welcome.incarnation, 1);
    assert_eq!(worker.welcome.end.iter().map(|e| e.session_id.clone()).collect::<Vec<_>>(), [stranger]);
    worker.hear(|m| if let Message::Cordoned(c) = m { c.cordoned.then_some(()) } else { None }).await;
    assert!(host.tasks().await.run(run).await.is_ok());

    // A word on an epoch that never was: ignored, and its sender told to end that.
    worker.report(&session.id, 9, v1::SessionState::Paused).await;
    let told = worker.hear(|m| if let Message::End(e) = m { Some(e.clone()) } else { None }).await;
    assert_eq!((told.session_id.as_str(), told.epoch), (session.id.as_str(), 9));
    let still =
        sessions.get_session(v1::GetSessionRequest { session_id: session.id }).await.unwrap().into_inner();
    assert_eq!(still.state(), v1::SessionState::Ready);
}

/// Red when an older incarnation is taken, a known one gets another number, or the older link stays open.
#[tokio::test]
async fn of_two_processes_with_one_id_the_newest_wins() {
    let host = Host::start().await;
    let mut first = host.worker("w1").await;
    let second = host.worker("w1").await;
    assert_eq!((first.welcome.incarnation, second.welcome.incarnation), (1, 2));
    let status = first.end().await;
    assert_eq!(reason_of(&status), Some(Reason::StaleIncarnation), "{status:?}");
    let stale = Script { incarnation: 1, ..Script::default() };
    let refused = Puppet::attach(&host, "w1", stale).await.map(|_| ());
    failed(refused, Code::FailedPrecondition, Reason::StaleIncarnation);
    // The same process again: it keeps its incarnation, and only the older stream ends.
    let script = Script {
        incarnation: 2,
        process: second.script.lock().unwrap().process.clone(),
        ..Script::default()
    };
    let third = Puppet::attach(&host, "w1", script).await.unwrap();
    assert_eq!(third.welcome.incarnation, 2);
    let session = host.sessions().await.create_session(wanted()).await.unwrap().into_inner();
    assert_eq!(session.worker_id, "w1");
    assert!(third.ended.borrow().is_none());
}

#[tokio::test]
async fn a_data_connection_needs_the_token_of_the_attach() {
    let host = Host::start().await;
    let script = Script { data: false, ..Script::default() };
    let worker = Puppet::attach(&host, "w1", script).await.unwrap();
    let session = host.sessions().await.create_session(wanted()).await.unwrap().into_inner();
    let stop = tokio_util::sync::CancellationToken::new();
    let address = host.running.addr().to_string();
    serve_data(&address, "w1", &worker.welcome, "guess", stop.clone()).await;
    let run = v1::RunRequest { session_id: session.id, ..Default::default() };
    failed(
        host.tasks().await.run(run.clone()).await.map(|_| ()),
        Code::Unavailable,
        Reason::WorkerUnreachable,
    );
    // A call that waits for a connection gets the one that comes.
    let mut tasks = host.tasks().await;
    let (answer, ()) = tokio::join!(
        tasks.run(run),
        serve_data(&address, "w1", &worker.welcome, &worker.welcome.data_token, stop)
    );
    assert!(answer.is_ok());
}

/// Red when a batch that was refused is not rolled back, or the links of those who spoke in it stay open.
#[tokio::test]
async fn a_store_that_fails_changes_nothing_and_is_said_to() {
    let store = Arc::new(MemoryStore::default());
    let host = Host::start_with(store.clone(), |_| {}).await;
    let mut worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let kept = sessions.create_session(wanted()).await.unwrap().into_inner();
    store.fail(true);
    failed(sessions.create_session(wanted()).await, Code::Unavailable, Reason::StoreFailed);
    let delete = v1::DeleteSessionRequest { session_id: kept.id.clone(), ..Default::default() };
    failed(sessions.delete_session(delete.clone()).await, Code::Unavailable, Reason::StoreFailed);
    let list = sessions.list_sessions(v1::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions, std::slice::from_ref(&kept));
    // A report that can't be kept costs the link: the worker's next hello brings it again.
    worker.report(&kept.id, 1, v1::SessionState::Ended).await;
    worker.end().await;
    store.fail(false);
    let _worker = host.worker("w1").await;
    let lost = in_state(&host, &kept.id, v1::SessionState::Ended).await;
    assert_eq!(lost.end_reason(), v1::EndReason::WorkerLost);
    assert!(sessions.create_session(wanted()).await.is_ok());
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_dropped_and_its_new_session_moves() {
    let store = Arc::new(MemoryStore::default());
    let host = Host::start_with(store, |config| config.lease = Duration::from_millis(600)).await;
    // This one attaches, is told to place, and then its process hangs.
    let mut client =
        v1::worker_service_client::WorkerServiceClient::with_interceptor(host.channel().await, host.join());
    let (say, said) = tokio::sync::mpsc::channel(4);
    say.send(v1::WorkerMessage {
        message: Some(worker_message::Message::Hello(hello("w1", &Script::default()))),
    })
    .await
    .unwrap();
    let mut silent =
        client.attach(tokio_stream::wrappers::ReceiverStream::new(said)).await.unwrap().into_inner();
    let mut sessions = host.sessions().await;
    let creating = tokio::task::JoinSet::from_iter([async move { sessions.create_session(wanted()).await }]);
    while !matches!(silent.message().await.unwrap().unwrap().message, Some(Message::Place(_))) {}
    let _other = host.worker("w2").await;
    let session = creating.join_all().await.remove(0).unwrap().into_inner();
    assert_eq!((session.worker_id.as_str(), session.epoch), ("w2", 2));
    let end = loop {
        match tokio::time::timeout(SOON, silent.message()).await.expect("ends in time") {
            Ok(message) => assert!(message.is_some(), "an end without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason_of(&end), Some(Reason::WorkerUnreachable));
    let gone = host
        .fleet()
        .await
        .get_worker(v1::GetWorkerRequest { worker_id: "w1".into() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(gone.liveness(), v1::Liveness::Dead);
}

#[tokio::test]
async fn operators_see_and_steer_the_fleet() {
    let host = Host::start().await;
    let mut worker = host.worker("w1").await;
    let mut fleet = host.fleet().await;
    let session = host.sessions().await.create_session(wanted()).await.unwrap().into_inner();
    let info = fleet.get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.workers_alive, info.sessions_ready, info.sessions_pending), (1, 1, 0));
    let templates = fleet.list_templates(v1::ListTemplatesRequest {}).await.unwrap().into_inner().templates;
    assert_eq!((templates[0].name.as_str(), &templates[0].workers[..]), ("base", &["w1".to_owned()][..]));
    let set = v1::SetBackendRequest { worker_id: "w1".into(), backend: "native".into() };
    fleet.set_backend(set).await.unwrap();
    worker
        .hear(|m| if let Message::SetBackend(s) = m { (s.backend == "native").then_some(()) } else { None })
        .await;
    let bad = v1::SetBackendRequest { worker_id: "w1".into(), backend: "kvm".into() };
    failed(fleet.set_backend(bad).await, Code::InvalidArgument, Reason::InvalidField);
    failed(
        fleet.cordon(v1::CordonRequest { worker_id: "No Such".into() }).await,
        Code::NotFound,
        Reason::WorkerNotFound,
    );
    let drain = v1::DrainRequest { worker_id: "w1".into(), deadline: Some(duration_out(Duration::ZERO)) };
    let drained = fleet.drain(drain).await.unwrap().into_inner();
    assert_eq!(drained.scheduling(), v1::Scheduling::Draining);
    let ended = in_state(&host, &session.id, v1::SessionState::Ended).await;
    assert_eq!(ended.end_reason(), v1::EndReason::Drained);
    let open = fleet.uncordon(v1::UncordonRequest { worker_id: "w1".into() }).await.unwrap().into_inner();
    assert_eq!((open.scheduling(), open.sessions), (v1::Scheduling::Active, 0));
}

#[tokio::test]
async fn sessions_are_listed_newest_first_in_pages_by_label() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let labels = [("parity".to_owned(), (n % 2).to_string())].into();
        let made = sessions
            .create_session(v1::CreateSessionRequest { labels, ..wanted() })
            .await
            .unwrap()
            .into_inner();
        ids.push(made.id);
    }
    let page = |page_token: String| v1::ListSessionsRequest {
        labels: [("parity".to_owned(), "0".to_owned())].into(),
        page_size: 2,
        page_token,
        ..Default::default()
    };
    let first = sessions.list_sessions(page(String::new())).await.unwrap().into_inner();
    let second = sessions.list_sessions(page(first.next_page_token.clone())).await.unwrap().into_inner();
    let got: Vec<_> = first.sessions.iter().chain(&second.sessions).map(|s| s.id.clone()).collect();
    assert_eq!(got, [ids[4].clone(), ids[2].clone(), ids[0].clone()]);
    assert_eq!(second.next_page_token, "");
    failed(sessions.list_sessions(page("x".into())).await, Code::InvalidArgument, Reason::InvalidField);
    let update = v1::UpdateSessionRequest {
        session_id: ids[1].clone(),
        set_labels: [("parity".to_owned(), "0".to_owned())].into(),
        ttl: Some(duration_out(Duration::ZERO)),
        ..Default::default()
    };
    let updated = sessions.update_session(update).await.unwrap().into_inner();
    assert_eq!(updated.expires_at, None);
    assert_eq!(
        sessions.list_sessions(page(String::new())).await.unwrap().into_inner().sessions[1].id,
        ids[2]
    );
}

#[tokio::test]
async fn everything_that_is_wrong_is_said_at_once() {
    let state = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let templates = state.path().join("templates.toml");
    std::fs::write(&templates, "[[template]]\nname = \"x\"\nmemory = 1\n").unwrap();
    std::fs::write(state.path().join("file"), "").unwrap();
    let config = Config {
        listen: taken.local_addr().unwrap(),
        state_dir: state.path().join("file/state"),
        templates: Some(templates),
        ..Config::default()
    };
    let StartError { problems } = Coordinator::start(config).await.err().expect("must not start");
    let words: Vec<_> = problems.iter().map(|p| p.what.as_str()).collect();
    assert_eq!(words.len(), 3, "{words:?}");
    assert!(words[0].contains("line 3") && words[1].contains("state directory"), "{words:?}");
    assert!(
        words[2].contains("is in use") && words[2].contains(&format!("pid {}", std::process::id())),
        "{words:?}"
    );
    assert!(problems.iter().all(|p| !p.hint.is_empty()));

    let open = Config { listen: ([0, 0, 0, 0], 0).into(), ..common::config(state.path()) };
    let error = Coordinator::start(open.clone()).await.err().expect("must not start");
    assert!(error.to_string().contains("there is no TLS"), "{error}");
    let running = Coordinator::start(Config { insecure_listen: true, ..open }).await.expect("it was allowed");
    let second = Coordinator::start(common::config(state.path())).await.err().expect("the state is in use");
    assert!(second.to_string().contains("in use by another coordinator"), "{second}");
    running.shutdown().await;
    Coordinator::start(common::config(state.path())).await.expect("it is free again").shutdown().await;
}

#[tokio::test]
async fn a_stop_ends_streams_and_tells_workers_and_health() {
    let host = Host::start().await;
    let mut worker = host.worker("w1").await;
    let mut events =
        host.fleet().await.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
    let begun = std::time::Instant::now();
    host.running.shutdown().await;
    assert!(begun.elapsed() < SOON);
    let status = worker.end().await;
    assert_eq!(reason_of(&status), Some(Reason::ShuttingDown), "{status:?}");
    while let Ok(Some(_)) = events.message().await {}
}

/// Not a promise, but a figure to look at: what the coordinator adds to a create and a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a measurement"]
async fn added_latency() {
    let host = Host::start().await;
    let script = Script { max_sessions: 1000, ..Script::default() };
    let _worker = Puppet::attach(&host, "w1", script).await.unwrap();
    let mut sessions = host.sessions().await;
    let mut tasks = host.tasks().await;
    let small = v1::CreateSessionRequest {
        limits: Some(v1::Limits {
            cpu_millis: Some(10),
            memory_bytes: Some(16 << 20),
            disk_bytes: Some(1 << 20),
            pids: None,
        }),
        ..wanted()
    };
    let (mut creates, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..300 {
        let begun = std::time::Instant::now();
        let session = sessions.create_session(small.clone()).await.unwrap().into_inner();
        creates.push(begun.elapsed());
        let get = v1::GetTaskRequest { session_id: session.id, task_id: TaskId::new().to_string() };
        let begun = std::time::Instant::now();
        tasks.get_task(get).await.unwrap();
        calls.push(begun.elapsed());
    }
    for (what, mut times) in [("create", creates), ("call through to the worker", calls)] {
        times.sort();
        println!("{what}: p50 {:?}, p99 {:?}", times[150], times[297]);
    }
}
