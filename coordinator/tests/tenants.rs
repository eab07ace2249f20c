//! Tenants do not see each other, whatever call they make; and none has more than its quota.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_coordinator::store::memory::MemoryStore;
use berth_proto::{
    Code, Reason, SessionId,
    convert::duration_out,
    error::{detail_of, reason_of},
    spawn::spawn,
    v1::{self, checkpoint_service_client::CheckpointServiceClient},
};
use common::{
    keeper::Keeper,
    raw::{Call, calls, string_at},
    *,
};
use futures::StreamExt;

fn named(name: &str) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest { labels: [("name".to_owned(), name.to_owned())].into(), ..Default::default() }
}

/// A queued session: nothing has to serve it.
fn waiting(request_id: &str) -> v1::CreateSessionRequest {
    v1::CreateSessionRequest {
        request_id: request_id.to_owned(),
        wait_for_place: Some(duration_out(Duration::from_secs(600))),
        ..Default::default()
    }
}

async fn create(host: &Host, token: &Bearer, request: v1::CreateSessionRequest) -> v1::Session {
    host.sessions_as(token).await.create_session(request).await.unwrap().into_inner()
}

/// What an answer says, with the id that was asked for taken out.
fn told(answer: &Result<Option<bytes::Bytes>, tonic::Status>, id: &str) -> String {
    match answer {
        Ok(message) => format!("{message:?}").replace(id, "<id>"),
        Err(status) => {
            let hint = detail_of(status, "hint").unwrap_or_default();
            format!("{:?} {:?} {} {hint}", status.code(), reason_of(status), status.message())
                .replace(id, "<id>")
        }
    }
}

/// A tenant with a live session and a checkpoint of it.
struct Owner {
    host: Host,
    token: Bearer,
    session: String,
    checkpoint: String,
    _worker: Puppet,
    _keeper: Keeper,
}

impl Owner {
    async fn new() -> Self {
        let host = Host::start().await;
        let worker = Puppet::attach(&host, "w", Script { data: false, ..Script::default() }).await.unwrap();
        let keeper = Keeper::serve(&host, &worker).await;
        let token = host.client_of("owner").await;
        let session = create(&host, &token, named("box")).await.id;
        let mut client = CheckpointServiceClient::with_interceptor(host.channel().await, token.clone());
        let request = v1::CheckpointSessionRequest { session_id: session.clone(), ..Default::default() };
        let checkpoint = client.checkpoint_session(request).await.unwrap().into_inner().id;
        Self { host, token, session, checkpoint, _worker: worker, _keeper: keeper }
    }

    /// The body of a call that names what is ours, or ids that nobody has.
    fn body(&self, call: &Call, ours: bool) -> (Vec<u8>, String) {
        let nobody = SessionId::new().to_string();
        let mut asked = String::new();
        let mut body = Vec::new();
        for (path, name) in &call.ids {
            let id = match (ours, name.as_str()) {
                (true, "session_id") => self.session.clone(),
                (true, "checkpoint_id") => self.checkpoint.clone(),
                _ => nobody.clone(),
            };
            if !["task_id", "context_id"].contains(&name.as_str()) {
                asked.clone_from(&id);
            }
            body.extend(string_at(path, &id));
        }
        (body, asked)
    }
}

fn naming() -> Vec<Call> {
    let of_clients = [
        "SessionService",
        "TaskService",
        "FileService",
        "PortService",
        "InterpreterService",
        "CheckpointService",
        "ArtifactService",
        "AdminService",
    ];
    let named = |call: &Call| of_clients.contains(&call.service.as_str()) && !call.ids.is_empty();
    calls().into_iter().filter(named).collect()
}

/// Every call that takes the id of a session, a task or a checkpoint, as the contract has them: so one that is added later is
/// tried too. What is another tenant's is answered like what nobody has, word for word. Red when any look-up (view, fleet,
/// catalog) does not ask whose it is.
#[tokio::test]
async fn anothers_id_is_answered_like_one_that_nobody_has() {
    let owner = Owner::new().await;
    let other = owner.host.client_of("other").await;
    let channel = owner.host.channel().await;
    let calls = naming();
    assert!(calls.len() >= 32, "only {} calls were found", calls.len());
    // Answered without an error, and without anything in it.
    let quiet = ["DeleteCheckpoint", "ListCheckpoints", "DeleteArtifact", "ListArtifacts"];
    for call in &calls {
        let (body, id) = owner.body(call, true);
        let theirs = call.make(&channel, Some(&other), body).await;
        let (body, nobody) = owner.body(call, false);
        let missing = call.make(&channel, Some(&other), body).await;
        assert_eq!(told(&theirs, &id), told(&missing, &nobody), "{call:?}");
        match theirs {
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{call:?}"),
            Ok(message) => {
                assert!(quiet.contains(&call.method.as_str()), "{call:?}");
                assert_eq!(message, Some(bytes::Bytes::new()), "{call:?}");
            }
        }
    }
    // It is all there still, and the same bodies find it when they are its owner's.
    for call in
        calls.iter().filter(|call| !["DeleteSession", "DeleteCheckpoint"].contains(&call.method.as_str()))
    {
        let (body, _) = owner.body(call, true);
        let answer = call.make(&channel, Some(&owner.token), body).await;
        let reason = answer.as_ref().err().and_then(reason_of);
        let missing = [Reason::SessionNotFound, Reason::CheckpointNotFound];
        assert!(!reason.is_some_and(|reason| missing.contains(&reason)), "{call:?}: {answer:?}");
    }
}

/// Red when a listing, the events or the counts are everybody's.
#[tokio::test]
async fn of_anothers_things_there_is_no_trace() {
    let host = Host::start().await;
    let _worker = host.worker("w").await;
    let [a, b] = [host.client_of("a").await, host.client_of("b").await];
    let mut events =
        host.fleet_as(&b).await.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
    assert!(matches!(events.next().await.unwrap().unwrap().subject, Some(v1::event::Subject::Marker(_))));
    let theirs = create(&host, &a, named("box")).await;
    let run = v1::RunRequest {
        session_id: theirs.id.clone(),
        task: Some(v1::TaskSpec {
            program: Some(v1::task_spec::Program::Shell("x".into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut tasks =
        v1::task_service_client::TaskServiceClient::with_interceptor(host.channel().await, a.clone());
    assert!(tasks.run(run).await.unwrap().into_inner().next().await.unwrap().is_ok());
    // The same name, and so the first that is told of is its own.
    let own = create(&host, &b, named("box")).await;
    assert_eq!((theirs.tenant.as_str(), own.tenant.as_str()), ("a", "b"));
    let told = loop {
        let event = tokio::time::timeout(SOON, events.next()).await.unwrap().unwrap().unwrap();
        match event.subject {
            Some(v1::event::Subject::Marker(_)) => {}
            subject => break subject,
        }
    };
    assert!(matches!(told, Some(v1::event::Subject::Session(session)) if session.id == own.id));

    let (client, admin) = ((v1::TokenScope::Client, "b"), (v1::TokenScope::Admin, "default"));
    for (token, expected, told) in
        [(&b, vec![&own.id], client), (&host.admin(), vec![&own.id, &theirs.id], admin)]
    {
        let mut sessions = host.sessions_as(token).await;
        let all: Vec<i32> = (1..=7).collect();
        let list = v1::ListSessionsRequest { states: all, ..Default::default() };
        let listed = sessions.list_sessions(list).await.unwrap().into_inner().sessions;
        assert_eq!(listed.iter().map(|session| &session.id).collect::<Vec<_>>(), expected);
        let info = host.fleet_as(token).await.get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.sessions_ready as usize, expected.len());
        assert_eq!((info.scope(), info.tenant.as_str()), told);
    }
}

#[tokio::test]
async fn names_and_request_ids_are_each_tenants_own() {
    let host = Host::start().await;
    let _worker = host.worker("w").await;
    let [a, b] = [host.client_of("a").await, host.client_of("b").await];
    let keyed = || v1::CreateSessionRequest { request_id: "r".into(), ..named("box") };
    let first = create(&host, &a, keyed()).await;
    let second = create(&host, &b, keyed()).await;
    assert_ne!(first.id, second.id);
    assert_eq!(create(&host, &a, keyed()).await.id, first.id);
    let again = host.sessions_as(&b).await.create_session(named("box")).await;
    let taken = failed(again, Code::AlreadyExists, Reason::NameTaken);
    assert_eq!(detail_of(&taken, "session_id"), Some(second.id));
}

#[tokio::test]
async fn an_operator_sees_whose_everything_is() {
    let owner = Owner::new().await;
    let list = owner
        .host
        .sessions()
        .await
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.sessions[0].tenant, "owner");
    let admin = owner.host.admin();
    let mut client = CheckpointServiceClient::with_interceptor(owner.host.channel().await, admin);
    let list = client.list_checkpoints(v1::ListCheckpointsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.checkpoints[0].tenant, "owner");
    let delete = v1::DeleteSessionRequest { session_id: owner.session.clone(), ..Default::default() };
    assert!(owner.host.sessions().await.delete_session(delete).await.is_ok());
}

// ---- quotas ------------------------------------------------------------------

/// Red when what waits is not counted: then all twenty are made.
#[tokio::test]
async fn of_twenty_creates_at_once_as_many_are_made_as_may_be() {
    let host = Host::start().await;
    let token = host.client_of("a").await;
    host.quota("a", v1::Quota { sessions: Some(5), ..Default::default() }).await;
    let refused = Arc::new(AtomicUsize::new(0));
    for n in 0..20 {
        let (mut client, refused) = (host.sessions_as(&token).await, refused.clone());
        spawn("create", async move {
            // Those that are made wait for a place for as long as the test lasts.
            let status =
                client.create_session(waiting(&format!("r{n}"))).await.expect_err("no place, or no more");
            if reason_of(&status) == Some(Reason::QuotaExceeded) {
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert!(status.message().contains("tenant a has 5 of 5 sessions"), "{status:?}");
                assert!(detail_of(&status, "hint").unwrap().contains("berth tenant set a --max-sessions"));
                refused.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    until(|| async { (refused.load(Ordering::SeqCst) == 15).then_some(()) }).await;
    let mut sessions = host.sessions_as(&token).await;
    let list =
        sessions.list_sessions(v1::ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!(list.len(), 5);
    // One that ends makes room for one.
    let delete = v1::DeleteSessionRequest { session_id: list[0].id.clone(), ..Default::default() };
    sessions.delete_session(delete).await.unwrap();
    let now = |id: &str| v1::CreateSessionRequest {
        wait_for_place: Some(duration_out(Duration::ZERO)),
        ..waiting(id)
    };
    failed(sessions.create_session(now("s")).await, Code::ResourceExhausted, Reason::NoPlace);
    let tenant = host.identity().await.get_tenant(v1::GetTenantRequest { tenant: "a".into() }).await.unwrap();
    let tenant = tenant.into_inner();
    assert_eq!((tenant.quota.unwrap().sessions, tenant.used.unwrap().sessions), (Some(5), Some(4)));
    assert_eq!(tenant.tokens, 1);
}

#[tokio::test]
async fn each_quota_is_held_and_lifted() {
    let host = Host::start().await;
    let _worker = host.worker("w").await;
    let none = v1::Quota::default();
    for (tenant, quota, name, kind) in [
        ("cpu", v1::Quota { cpu_millis: Some(1500), ..none }, "cpu", v1::QuotaKind::Cpu),
        ("memory", v1::Quota { memory_bytes: Some(3 << 30), ..none }, "memory", v1::QuotaKind::Memory),
        ("disk", v1::Quota { disk_bytes: Some(3 << 30), ..none }, "disk", v1::QuotaKind::Disk),
        (
            "rate",
            v1::Quota { creates_per_minute: Some(1), ..none },
            "creates-per-minute",
            v1::QuotaKind::CreatesPerMinute,
        ),
    ] {
        let token = host.client_of(tenant).await;
        host.quota(tenant, quota).await;
        let mut sessions = host.sessions_as(&token).await;
        let gigabytes = |n: u64| v1::CreateSessionRequest {
            limits: Some(v1::Limits {
                cpu_millis: Some(1000),
                memory_bytes: Some(n << 30),
                disk_bytes: Some(n << 30),
                pids: None,
            }),
            ..Default::default()
        };
        sessions.create_session(gigabytes(2)).await.unwrap();
        let status = failed(
            sessions.create_session(gigabytes(2)).await,
            Code::ResourceExhausted,
            Reason::QuotaExceeded,
        );
        assert_eq!(detail_of(&status, "quota").as_deref(), Some(name));
        let lift = v1::SetQuotaRequest { tenant: tenant.into(), unlimited: vec![kind.into()], quota: None };
        host.identity().await.set_quota(lift).await.unwrap();
        let session = sessions.create_session(gigabytes(2)).await.unwrap().into_inner();
        let delete = v1::DeleteSessionRequest { session_id: session.id, ..Default::default() };
        sessions.delete_session(delete).await.unwrap();
    }
}

/// Red when the relay lets go of the count before the call is over, or counts for everybody together.
#[tokio::test]
async fn open_calls_are_held_to_the_quota_and_given_back() {
    let host = Host::start().await;
    let _worker = host.worker("w").await;
    let [a, b] = [host.client_of("a").await, host.client_of("b").await];
    let session = create(&host, &a, v1::CreateSessionRequest::default()).await;
    host.quota("a", v1::Quota { streams: Some(2), ..Default::default() }).await;
    let watch =
        host.fleet_as(&a).await.watch_events(v1::WatchEventsRequest::default()).await.unwrap().into_inner();
    // An upload that does not end yet.
    let header = v1::WriteHeader { session_id: session.id.clone(), path: "f".into(), ..Default::default() };
    let (upload, parts) = tokio::sync::mpsc::channel(4);
    let part = |part| v1::WriteRequest { part: Some(part) };
    upload.send(part(v1::write_request::Part::Header(header))).await.unwrap();
    let mut files =
        v1::file_service_client::FileServiceClient::with_interceptor(host.channel().await, a.clone());
    let (done, mut written) = tokio::sync::oneshot::channel();
    spawn("upload", async move {
        let _ = done.send(files.write(tokio_stream::wrappers::ReceiverStream::new(parts)).await);
    });
    let used = || async {
        let tenant =
            host.identity().await.get_tenant(v1::GetTenantRequest { tenant: "a".into() }).await.unwrap();
        tenant.into_inner().used.unwrap().streams.unwrap()
    };
    until(|| async { (used().await == 2).then_some(()) }).await;
    let stat = || v1::GetTaskRequest {
        session_id: session.id.clone(),
        task_id: berth_proto::TaskId::new().to_string(),
    };
    let mut tasks =
        v1::task_service_client::TaskServiceClient::with_interceptor(host.channel().await, a.clone());
    let status = failed(tasks.get_task(stat()).await, Code::ResourceExhausted, Reason::QuotaExceeded);
    assert_eq!(detail_of(&status, "quota").as_deref(), Some("streams"));
    let more = host.fleet_as(&a).await.watch_events(v1::WatchEventsRequest::default()).await;
    failed(more.map(drop), Code::ResourceExhausted, Reason::QuotaExceeded);
    assert!(host.fleet_as(&b).await.watch_events(v1::WatchEventsRequest::default()).await.is_ok());
    assert!(written.try_recv().is_err());
    drop(upload);
    assert!(written.await.unwrap().is_ok());
    until(|| async { (used().await == 1).then_some(()) }).await;
    assert!(tasks.get_task(stat()).await.is_ok());
    drop(watch);
    until(|| async { (used().await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn what_no_quota_can_be_is_refused_and_what_the_store_refuses_is_not_in_force() {
    let store = Arc::new(MemoryStore::default());
    let host = Host::start_with(store.clone(), |_| {}).await;
    let mut identity = host.identity().await;
    let set = |change: &dyn Fn(&mut v1::SetQuotaRequest)| {
        let mut request = v1::SetQuotaRequest { tenant: "a".into(), ..Default::default() };
        change(&mut request);
        request
    };
    let sessions = Some(v1::Quota { sessions: Some(1), ..Default::default() });
    for wrong in [
        set(&|r| r.tenant = "-".into()),
        set(&|r| r.quota = Some(v1::Quota { memory_bytes: Some(u64::MAX), ..Default::default() })),
        set(&|r| r.unlimited = vec![99]),
        set(&|r| {
            r.quota = sessions;
            r.unlimited = vec![v1::QuotaKind::Sessions.into()];
        }),
    ] {
        failed(identity.set_quota(wrong).await, Code::InvalidArgument, Reason::InvalidField);
    }
    store.fail(true);
    failed(identity.set_quota(set(&|r| r.quota = sessions)).await, Code::Unavailable, Reason::StoreFailed);
    store.fail(false);
    let token = host.client_of("a").await;
    let shown = identity.get_tenant(v1::GetTenantRequest { tenant: "a".into() }).await.unwrap().into_inner();
    assert_eq!(shown.quota.unwrap().sessions, None);
    let mut client = host.sessions_as(&token).await;
    failed(
        client
            .create_session(v1::CreateSessionRequest {
                wait_for_place: Some(duration_out(Duration::ZERO)),
                ..Default::default()
            })
            .await,
        Code::ResourceExhausted,
        Reason::NoPlace,
    );
}
