//! Calls: who may, how large, and how they are refused.

use super::*;

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
