//! Sessions: placed, used, listed, ended.

use super::*;

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
