//! The coordinator with its workers, its store and its operators: what comes, goes, and comes again.

use super::*;

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
