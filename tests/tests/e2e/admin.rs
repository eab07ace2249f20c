//! What an operator and an integrator see: workers, events, health, reflection, tokens.

use berth_proto::{
    error::{Reason, reason_of},
    v1::{self, event::Subject},
};
use berth_tests::{Bearer, Cluster, READY, Setup, skip, until};
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_needs_the_right_token() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let channel = cluster.channel();
    let list = v1::ListSessionsRequest::default();
    let with = |token: Bearer| {
        v1::session_service_client::SessionServiceClient::with_interceptor(channel.clone(), token)
    };
    let error = with(Bearer::none()).list_sessions(list.clone()).await.expect_err("no token");
    assert_eq!((error.code(), reason_of(&error)), (Code::Unauthenticated, Some(Reason::TokenMissing)));
    let error = with(Bearer::new("berth_0000")).list_sessions(list.clone()).await.expect_err("a wrong token");
    assert_eq!((error.code(), reason_of(&error)), (Code::Unauthenticated, Some(Reason::TokenInvalid)));
    let join = std::fs::read_to_string(cluster.dir.path().join("c/credentials/join.token")).unwrap();
    let error = with(Bearer::new(join.trim())).list_sessions(list).await.expect_err("a worker's token");
    assert_eq!((error.code(), reason_of(&error)), (Code::PermissionDenied, Some(Reason::TokenScope)));
    // The files that hold them are for their owner alone.
    for file in ["admin.token", "join.token"] {
        let path = cluster.dir.path().join("c/credentials").join(file);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_tell_how_they_are() {
    let cluster = Cluster::start(Setup { workers: 2, ..Setup::new("fake") }).await;
    let workers = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    let ids: Vec<&str> = workers.iter().map(|w| w.id.as_str()).collect();
    assert_eq!(ids, ["worker-1", "worker-2"]);
    for worker in &workers {
        let health = worker.health.as_ref().unwrap();
        assert!(health.memory_available_bytes > 0 && health.disk_free_bytes > 0);
        let canary = health.canary.as_ref().expect("a canary has run");
        assert!(canary.ok, "{canary:?}");
        assert_eq!(worker.capacity.unwrap().max_sessions, 5);
        assert!(worker.incarnation >= 1 && worker.data_connections >= 1);
        let chosen: Vec<&str> =
            worker.backends.iter().filter(|b| b.chosen).map(|b| b.name.as_str()).collect();
        assert_eq!(chosen, ["fake"]);
        assert!(worker.templates.contains(&"base".to_owned()));
    }
    let error = cluster
        .admin()
        .get_worker(v1::GetWorkerRequest { worker_id: "nobody".into() })
        .await
        .expect_err("no such worker");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::WorkerNotFound)));
    let templates = cluster.admin().list_templates(v1::ListTemplatesRequest {}).await.unwrap().into_inner();
    assert!(templates.templates.iter().any(|t| t.name == "base" && t.workers.len() == 2), "{templates:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_on_from_a_token() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let watch = async |after: &str| {
        let request = v1::WatchEventsRequest { after_token: after.to_owned() };
        cluster.admin().watch_events(request).await
    };
    let mut stream = watch("").await.unwrap().into_inner();
    let marker = stream.message().await.unwrap().unwrap();
    assert!(matches!(marker.subject, Some(Subject::Marker(_))), "{marker:?}");
    let session = cluster.session().await.id;
    let mut token = String::new();
    while let Some(event) = tokio::time::timeout(READY, stream.message()).await.expect("in time").unwrap() {
        if let Some(Subject::Session(seen)) = &event.subject
            && seen.id == session
            && seen.state() == v1::SessionState::Ready
        {
            token = event.token;
            break;
        }
    }
    drop(stream);
    crate::util::delete(&cluster, &session).await;
    // What happened meanwhile comes now, and what was seen does not come again.
    let mut stream = watch(&token).await.unwrap().into_inner();
    let mut states = Vec::new();
    while let Some(event) = tokio::time::timeout(READY, stream.message()).await.expect("in time").unwrap() {
        if let Some(Subject::Session(seen)) = &event.subject
            && seen.id == session
        {
            states.push(seen.state());
            if seen.state() == v1::SessionState::Ended {
                break;
            }
        }
    }
    assert!(!states.contains(&v1::SessionState::Ready), "{states:?}");
    let error = watch("nonsense-1").await.expect_err("not of this coordinator");
    assert_eq!((error.code(), reason_of(&error)), (Code::OutOfRange, Some(Reason::EventsLost)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_answer() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut health = HealthClient::new(cluster.channel());
    for service in ["", "berth.v1.SessionService", "berth.v1.TaskService"] {
        let status = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(status.status(), ServingStatus::Serving, "{service:?}");
    }
    let mut reflection = ServerReflectionClient::new(cluster.channel());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut request = Request::new(tokio_stream::iter([ask]));
    let token = format!("Bearer {}", cluster.admin_token);
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let mut answers = reflection.server_reflection_info(request).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for service in ["SessionService", "TaskService", "FileService", "WorkerService", "AdminService"] {
        assert!(names.contains(&format!("berth.v1.{service}")), "{service} is not among {names:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_changes_its_backend_for_new_sessions() {
    if skip::without_root("e2e a_worker_changes_its_backend_for_new_sessions")
        || skip::without_docker("e2e a_worker_changes_its_backend_for_new_sessions")
    {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let before = cluster.session().await;
    let mut admin = cluster.admin();
    let set = |backend: &str| v1::SetBackendRequest { worker_id: "worker-1".into(), backend: backend.into() };
    let error = admin.set_backend(set("kata")).await.expect_err("no such backend");
    assert_eq!(error.code(), Code::InvalidArgument);
    admin.set_backend(set("docker")).await.expect("docker works here");
    let after = until(READY, "a docker session", async || {
        let session = cluster.sessions().create_session(v1::CreateSessionRequest::default()).await.ok()?;
        (session.get_ref().backend == "docker").then(|| session.into_inner())
    })
    .await;
    assert_eq!(crate::util::run(&cluster, &after.id, "echo docker").await.0, "docker");
    assert_eq!(crate::util::run(&cluster, &before.id, "echo native").await.0, "native", "it stays as it is");
    assert_eq!(crate::util::state(&cluster, &before.id).await.backend, "native");
    cluster.stop().await;
}
