//! What the fleet says of itself, and what it refuses, over real sockets: templates that
//! nobody can serve, names, backends, workers that leave, hellos that make no sense.

mod common;

use std::time::{Duration, Instant};

use berth_proto::{
    Code, Reason,
    convert::duration_out,
    v1::{self, worker_message},
};
use common::*;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

fn wanted() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest::default()
}

async fn workers(host: &Host) -> Vec<v1::Worker> {
    host.fleet().await.list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers
}

#[tokio::test]
async fn a_template_that_nobody_can_serve_is_refused_at_once_with_the_reason() {
    let host = Host::start().await;
    let _sick = Puppet::attach(&host, "w1", Script::without_base("/srv/root is missing")).await.unwrap();
    let mut sessions = host.sessions().await;
    let begun = Instant::now();
    let refused = sessions.create_session(wanted()).await;
    let status = failed(refused, Code::FailedPrecondition, Reason::TemplateUnavailable);
    assert!(begun.elapsed() < Duration::from_secs(10), "it has waited");
    assert_eq!(status.message(), "no worker can serve template \"base\": w1: /srv/root is missing");
    // Who says how long it waits is told the same in the end.
    let waits =
        v1::CreateSessionRequest { wait_for_place: Some(duration_out(Duration::from_secs(1))), ..wanted() };
    let begun = Instant::now();
    let status =
        failed(sessions.create_session(waits).await, Code::FailedPrecondition, Reason::TemplateUnavailable);
    assert!(begun.elapsed() >= Duration::from_secs(1), "it was to wait");
    assert!(status.message().contains("w1: /srv/root is missing"), "{status:?}");
    let templates =
        host.fleet().await.list_templates(v1::ListTemplatesRequest {}).await.unwrap().into_inner().templates;
    let problem = v1::WorkerProblem { worker_id: "w1".into(), reason: "/srv/root is missing".into() };
    assert_eq!((&templates[0].workers[..], &templates[0].problems[..]), (&[][..], &[problem][..]));
    let problem = v1::TemplateProblem { name: "base".into(), reason: "/srv/root is missing".into() };
    assert_eq!(workers(&host).await[0].template_problems, [problem]);
}

#[tokio::test]
async fn before_the_review_is_reported_a_session_waits_and_is_placed() {
    let host = Host::start().await;
    let script = Script { templates: vec![], ..Script::default() };
    let worker = Puppet::attach(&host, "w1", script).await.unwrap();
    let mut sessions = host.sessions().await;
    let creating = tokio::task::JoinSet::from_iter([async move { sessions.create_session(wanted()).await }]);
    let client = host.sessions().await;
    until(|| async {
        let list = client.clone().list_sessions(v1::ListSessionsRequest::default()).await.unwrap();
        list.into_inner().sessions.into_iter().next()
    })
    .await;
    worker.script.lock().unwrap().templates = vec!["base".into()];
    let session = creating.join_all().await.remove(0).expect("it waits, and is placed").into_inner();
    assert_eq!(session.worker_id, "w1");
}

/// Red when the order is that of the ids, and when the wait is told without its end.
#[tokio::test]
async fn who_waits_tells_whose_it_is_until_when_it_waits_and_where_it_stands() {
    let host = Host::start().await;
    let _worker = Puppet::attach(&host, "w1", Script { max_sessions: 1, ..Script::default() }).await.unwrap();
    let mut sessions = host.sessions().await;
    let placed = sessions.create_session(wanted()).await.unwrap().into_inner();
    assert_eq!((placed.tenant.as_str(), placed.waits_until, placed.queue_position), ("default", None, 0));
    let minute = Duration::from_secs(60);
    let mut creating = tokio::task::JoinSet::new();
    let mut seen = Vec::new();
    for (count, priority) in [(1, 0), (2, 5), (3, 0)] {
        let mut client = host.sessions().await;
        let wait_for_place = Some(duration_out(minute));
        let request = v1::CreateSessionRequest { priority, wait_for_place, ..wanted() };
        creating.spawn(async move { client.create_session(request).await });
        let states = vec![v1::SessionState::Pending.into()];
        let request = v1::ListSessionsRequest { states, ..Default::default() };
        seen = until(|| async {
            let found =
                host.sessions().await.list_sessions(request.clone()).await.unwrap().into_inner().sessions;
            (found.len() == count).then_some(found)
        })
        .await;
    }
    // Newest first, as all listings are.
    let stand: Vec<_> = seen.iter().map(|s| (s.priority, s.queue_position)).collect();
    assert_eq!(stand, [(0, 3), (5, 1), (0, 2)]);
    for waits in &seen {
        let [since, end] = [waits.waits_since, waits.waits_until].map(|at| at.expect("it waits"));
        assert_eq!((end.seconds - since.seconds, waits.tenant.as_str()), (60, "default"));
        let get = v1::GetSessionRequest { session_id: waits.id.clone() };
        assert_eq!(sessions.get_session(get).await.unwrap().into_inner(), *waits);
    }
}

#[tokio::test]
async fn of_live_sessions_each_has_another_name() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let mut sessions = host.sessions().await;
    let named = || v1::CreateSessionRequest { labels: [("name".into(), "box".into())].into(), ..wanted() };
    let first = sessions.create_session(named()).await.unwrap().into_inner();
    let status = failed(sessions.create_session(named()).await, Code::AlreadyExists, Reason::NameTaken);
    assert!(status.message().contains("\"box\"") && status.message().contains(&first.id), "{status:?}");
    sessions
        .delete_session(v1::DeleteSessionRequest { session_id: first.id, ..Default::default() })
        .await
        .unwrap();
    let second = sessions.create_session(named()).await.unwrap().into_inner();
    // Names outlive the coordinator's process.
    drop(sessions);
    let host = host.restart().await;
    let mut sessions = host.sessions().await;
    let status = failed(sessions.create_session(named()).await, Code::AlreadyExists, Reason::NameTaken);
    assert!(status.message().contains(&second.id), "{status:?}");
}

#[tokio::test]
async fn a_backend_that_the_worker_does_not_offer_is_refused_at_once() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let mut fleet = host.fleet().await;
    let set = |backend: &str| v1::SetBackendRequest { worker_id: "w1".into(), backend: backend.into() };
    for backend in ["fake", "docker"] {
        let refused = fleet.set_backend(set(backend)).await;
        let status = failed(refused, Code::FailedPrecondition, Reason::BackendUnavailable);
        assert!(status.message().contains("it offers native"), "{status:?}");
    }
    for backend in ["native", "auto"] {
        fleet.set_backend(set(backend)).await.expect(backend);
    }
}

#[tokio::test]
async fn limits_beyond_the_kernels_are_the_callers_mistake() {
    let host = Host::start().await;
    let _worker = host.worker("w1").await;
    let limits = v1::Limits { pids: Some(u32::MAX), ..Default::default() };
    let huge = v1::CreateSessionRequest { limits: Some(limits), ..wanted() };
    let status =
        failed(host.sessions().await.create_session(huge).await, Code::InvalidArgument, Reason::InvalidField);
    assert_eq!(status.message(), "limits.pids: 4294967295 is more than the most, 4194304");
}

#[tokio::test]
async fn a_worker_that_leaves_is_gone_from_the_list_and_watchers_see_it_go() {
    let host = Host::start().await;
    let worker = host.worker("w1").await;
    let _stays = host.worker("w2").await;
    let mut events =
        host.fleet().await.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
    events.message().await.unwrap().expect("the marker");
    worker.say(worker_message::Message::Leaving(v1::Leaving {})).await;
    let gone = async {
        loop {
            let event = events.message().await.unwrap().expect("the stream goes on");
            match event.subject {
                Some(v1::event::Subject::Worker(w)) if w.id == "w1" => return w,
                _ => {}
            }
        }
    };
    let seen = tokio::time::timeout(SOON, gone).await.expect("in time");
    assert_eq!(seen.liveness(), v1::Liveness::Dead);
    let ids: Vec<_> = workers(&host).await.into_iter().map(|w| w.id).collect();
    assert_eq!(ids, ["w2"]);
    worker.leave().await;
    let _back = host.worker("w1").await;
    assert_eq!(workers(&host).await.len(), 2);
}

#[tokio::test]
async fn a_hello_without_a_proper_worker_id_is_refused_and_leaves_no_trace() {
    let host = Host::start().await;
    let long = "x".repeat(64);
    for name in ["", &long, "Worker", "a b", "-a", "ä", "a/b", "a\n"] {
        let refused = Puppet::attach(&host, name, Script::default()).await.map(|_| ());
        let status = failed(refused, Code::InvalidArgument, Reason::InvalidField);
        assert!(status.message().starts_with("worker_id: must be 1 to 63"), "{name:?}: {status:?}");
    }
    assert!(workers(&host).await.is_empty());
    let longest = "x".repeat(63);
    let _worker = host.worker(&longest).await;
    assert_eq!(workers(&host).await[0].id, longest);
}

#[tokio::test]
async fn health_says_not_serving_before_connections_close() {
    let host = Host::start().await;
    let mut streams = Vec::new();
    for service in ["", "berth.v1.SessionService", "berth.v1.WorkerService"] {
        let mut health = HealthClient::new(host.channel().await);
        let request = HealthCheckRequest { service: service.into() };
        let mut stream = health.watch(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().expect("a first state");
        assert_eq!(first.status(), ServingStatus::Serving);
        streams.push((service, stream));
    }
    let stopping = tokio::task::JoinSet::from_iter([host.running.shutdown()]);
    for (service, mut stream) in streams {
        let next = tokio::time::timeout(SOON, stream.message()).await.expect("in time");
        let next = next.expect("the connection is still up").expect("a state before the end");
        assert_eq!(next.status(), ServingStatus::NotServing, "{service:?}");
    }
    stopping.join_all().await;
}
