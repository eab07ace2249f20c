//! Who may call what: each scope against every call that there is, tokens that end, and workers' credentials.

mod common;

use std::{sync::Arc, time::Duration};

use berth_coordinator::{Coordinator, store::memory::MemoryStore};
use berth_proto::{
    Code, Reason,
    convert::duration_out,
    error::reason_of,
    v1::{self, coordinator_message::Message},
};
use common::{raw::*, *};
use futures::StreamExt;

fn create(scope: v1::TokenScope) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest { name: "t".into(), scope: scope.into(), ..Default::default() }
}

async fn make(host: &Host, request: v1::CreateTokenRequest) -> (v1::Token, Bearer) {
    let made = host.identity().await.create_token(request).await.unwrap().into_inner();
    (made.token.unwrap(), Bearer(made.value))
}

fn joining(uses: u32) -> v1::CreateTokenRequest {
    v1::CreateTokenRequest { uses: Some(uses), ..create(v1::TokenScope::Worker) }
}

async fn revoke(host: &Host, id: &str) -> v1::Token {
    let request = v1::RevokeTokenRequest { token_id: id.into() };
    host.identity().await.revoke_token(request).await.unwrap().into_inner()
}

/// Who holds what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Nobody,
    Client,
    Admin,
    Join,
    Worker,
    JoinFile,
    AdminFile,
}

/// Who may make a call. Of the operators' calls a client may make three.
fn may(holder: Holder, call: &Call) -> bool {
    use Holder::*;
    let for_clients = ["ListTemplates", "GetInfo", "WatchEvents"].contains(&call.method.as_str());
    match call.service.as_str() {
        "SessionService" | "TaskService" | "FileService" | "PortService" | "InterpreterService"
        | "CheckpointService" | "ArtifactService" => {
            matches!(holder, Client | Admin | AdminFile)
        }
        "AdminService" if for_clients => matches!(holder, Client | Admin | AdminFile),
        "AdminService" | "IdentityService" | "AuditService" | "SecretService" => {
            matches!(holder, Admin | AdminFile)
        }
        "WorkerService" => matches!(holder, Join | Worker | JoinFile),
        "BlobService" => matches!(holder, Worker | JoinFile),
        other => panic!("who may use {other}?"),
    }
}

/// Every call of every service that is mounted, by everybody. Red when a service is mounted with another access, or a call of
/// the operators is opened to clients.
#[tokio::test]
async fn each_scope_opens_its_own_calls_and_no_other() {
    let host = Host::start().await;
    let _worker = host.worker("w").await;
    let (_, client) = make(&host, create(v1::TokenScope::Client)).await;
    let (_, admin) = make(&host, create(v1::TokenScope::Admin)).await;
    let (_, join) = make(&host, joining(5)).await;
    let puppet = Puppet::attach_as(&host, join.clone(), "own", Script::default()).await.unwrap();
    let worker = Bearer(puppet.welcome.credential.clone());
    let channel = host.channel().await;
    let calls: Vec<Call> = calls().into_iter().filter(Call::is_mounted).collect();
    assert!(calls.len() > 49, "only {} calls were found", calls.len());
    for (holder, token) in [
        (Holder::Nobody, None),
        (Holder::Client, Some(client)),
        (Holder::Admin, Some(admin)),
        (Holder::Join, Some(join)),
        (Holder::Worker, Some(worker)),
        (Holder::JoinFile, Some(host.join())),
        (Holder::AdminFile, Some(host.admin())),
    ] {
        for call in &calls {
            let answer = call.make(&channel, token.as_ref(), Vec::new()).await;
            let refused = answer.err().map(|status| (status.code(), reason_of(&status)));
            let expected = match holder {
                Holder::Nobody => Some((Code::Unauthenticated, Some(Reason::TokenMissing))),
                _ => Some((Code::PermissionDenied, Some(Reason::TokenScope))),
            };
            assert_eq!(refused == expected, !may(holder, call), "{holder:?} {call:?}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn what_no_token_can_be_is_refused() {
    let host = Host::start().await;
    let mut identity = host.identity().await;
    let client = || create(v1::TokenScope::Client);
    for wrong in [
        create(v1::TokenScope::Unspecified),
        v1::CreateTokenRequest { tenant: "Not A Name".into(), ..client() },
        v1::CreateTokenRequest { uses: Some(1), ..client() },
        v1::CreateTokenRequest { uses: Some(0), ..create(v1::TokenScope::Worker) },
        v1::CreateTokenRequest { tenant: "a".into(), ..create(v1::TokenScope::Worker) },
        v1::CreateTokenRequest { ttl: Some(duration_out(Duration::ZERO)), ..client() },
        v1::CreateTokenRequest { name: "x".repeat(129), ..client() },
        v1::CreateTokenRequest { name: "a\nb".into(), ..client() },
    ] {
        failed(identity.create_token(wrong).await, Code::InvalidArgument, Reason::InvalidField);
    }
    for id in ["nonsense".to_owned(), berth_proto::TokenId::new().to_string()] {
        let request = v1::RevokeTokenRequest { token_id: id };
        failed(identity.revoke_token(request).await, Code::NotFound, Reason::TokenNotFound);
    }
    let tenant = v1::GetTenantRequest { tenant: "nobody".into() };
    failed(identity.get_tenant(tenant).await, Code::NotFound, Reason::TenantNotFound);
}

/// Red when the guard does not bound a call by its token: then the streams go on, and the create waits for its place.
#[tokio::test]
async fn a_revoked_token_ends_its_calls_and_streams_and_those_alone() {
    let host = Host::start().await;
    let (token, bearer) = make(&host, create(v1::TokenScope::Client)).await;
    let (_, other) = make(&host, create(v1::TokenScope::Client)).await;
    let mut events = host
        .fleet_as(&bearer)
        .await
        .watch_events(v1::WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut others = host
        .fleet_as(&other)
        .await
        .watch_events(v1::WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(events.next().await.unwrap().is_ok() && others.next().await.unwrap().is_ok(), "markers");
    let mut sessions = host.sessions_as(&bearer).await;
    let waiting = v1::CreateSessionRequest {
        wait_for_place: Some(duration_out(Duration::from_secs(600))),
        ..Default::default()
    };
    let mut create = Box::pin(async move { sessions.create_session(waiting).await });
    assert!(futures::poll!(&mut create).is_pending());
    let seen = host.fleet_as(&other).await;
    let queued = until(|| async {
        let info = seen.clone().get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
        (info.sessions_pending == 1).then_some(())
    });
    // Whichever comes first: the call is under way.
    tokio::select! {
        () = queued => {}
        answer = &mut create => panic!("{answer:?}"),
    }
    let revoked = revoke(&host, &token.id).await;
    assert_eq!(revoked.state(), v1::TokenState::Revoked);
    let ended = loop {
        if let Err(status) = tokio::time::timeout(SOON, events.next()).await.unwrap().expect("an end") {
            break status;
        }
    };
    assert_eq!((ended.code(), reason_of(&ended)), (Code::Unauthenticated, Some(Reason::TokenRevoked)));
    failed(create.await, Code::Unauthenticated, Reason::TokenRevoked);
    let next = host.sessions_as(&bearer).await.list_sessions(v1::ListSessionsRequest::default()).await;
    failed(next, Code::Unauthenticated, Reason::TokenRevoked);
    // The other one goes on: it hears of the session that was given up with its client.
    assert!(tokio::time::timeout(SOON, others.next()).await.unwrap().unwrap().is_ok());
    assert!(host.sessions_as(&other).await.list_sessions(v1::ListSessionsRequest::default()).await.is_ok());
    let listed = host.identity().await.list_tokens(v1::ListTokensRequest { all: false }).await.unwrap();
    assert!(listed.into_inner().tokens.iter().all(|listed| listed.id != token.id));
    let listed = host.identity().await.list_tokens(v1::ListTokensRequest { all: true }).await.unwrap();
    assert!(listed.into_inner().tokens.iter().any(|listed| listed.id == token.id));
}

/// Red when only new calls look at the expiry.
#[tokio::test]
async fn an_expired_token_ends_its_streams_too() {
    let host = Host::start().await;
    let ttl = Some(duration_out(Duration::from_secs(1)));
    let (_, bearer) = make(&host, v1::CreateTokenRequest { ttl, ..create(v1::TokenScope::Client) }).await;
    let mut events = host
        .fleet_as(&bearer)
        .await
        .watch_events(v1::WatchEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let end = async {
        loop {
            if let Err(status) = events.next().await.expect("an end") {
                return status;
            }
        }
    };
    let ended = tokio::time::timeout(SOON, end).await.unwrap();
    assert_eq!((ended.code(), reason_of(&ended)), (Code::Unauthenticated, Some(Reason::TokenExpired)));
    let next = host.sessions_as(&bearer).await.list_sessions(v1::ListSessionsRequest::default()).await;
    failed(next, Code::Unauthenticated, Reason::TokenExpired);
}

#[tokio::test]
async fn tokens_and_quotas_survive_a_restart_and_no_file_holds_a_token() {
    let host = Host::start().await;
    let (_, bearer) =
        make(&host, v1::CreateTokenRequest { tenant: "a".into(), ..create(v1::TokenScope::Client) }).await;
    let (revoked, over) = make(&host, create(v1::TokenScope::Client)).await;
    revoke(&host, &revoked.id).await;
    let quota = v1::Quota { sessions: Some(0), ..Default::default() };
    host.quota("a", quota).await;
    let host = host.restart().await;
    let create = host.sessions_as(&bearer).await.create_session(v1::CreateSessionRequest::default()).await;
    failed(create, Code::ResourceExhausted, Reason::QuotaExceeded);
    let list = host.sessions_as(&over).await.list_sessions(v1::ListSessionsRequest::default()).await;
    failed(list, Code::Unauthenticated, Reason::TokenRevoked);
    let tenants = host.identity().await.list_tenants(v1::ListTenantsRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = tenants.tenants.iter().map(|tenant| tenant.name.as_str()).collect();
    assert_eq!(names, ["a", "default"]);
    host.running.shutdown().await;
    let secret = &bearer.0.as_bytes()["berth_client_".len()..];
    for file in std::fs::read_dir(host.state.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            let bytes = std::fs::read(&file).unwrap();
            assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{}", file.display());
        }
    }
}

// ---- workers -----------------------------------------------------------------

/// Red when the use is counted by attach, or the credential is good for any worker id.
#[tokio::test]
async fn a_token_for_one_worker_registers_one_and_its_credential_is_that_ones_alone() {
    let host = Host::start().await;
    let (token, join) = make(&host, joining(1)).await;
    let first = Puppet::attach_as(&host, join.clone(), "w1", Script::default()).await.unwrap();
    assert!(first.welcome.credential.starts_with("berth_worker_"));
    let second = Puppet::attach_as(&host, join.clone(), "w2", Script::default()).await;
    failed(second.map(drop), Code::Unauthenticated, Reason::TokenUsedUp);
    first.say(v1::worker_message::Message::CredentialKept(v1::CredentialKept {})).await;
    until(|| async {
        let again = Puppet::attach_as(&host, join.clone(), "w1", Script::default()).await;
        // Until that is noted it is given another one.
        again.is_err().then_some(())
    })
    .await;
    let tokens =
        host.identity().await.list_tokens(v1::ListTokensRequest { all: false }).await.unwrap().into_inner();
    let own: Vec<_> = tokens.tokens.iter().filter(|listed| listed.worker_id == "w1").collect();
    assert_eq!((own.len(), own[0].issued_by.as_str()), (1, token.id.as_str()));
}

#[tokio::test]
async fn a_worker_with_its_credential_comes_back_and_a_revoked_one_does_not() {
    let host = Host::start().await;
    let (_, join) = make(&host, joining(1)).await;
    let worker = Puppet::attach_as(&host, join, "w1", Script::default()).await.unwrap();
    worker.say(v1::worker_message::Message::CredentialKept(v1::CredentialKept {})).await;
    let own = Bearer(worker.welcome.credential.clone());
    let script = Script {
        process: worker.script.lock().unwrap().process.clone(),
        incarnation: worker.welcome.incarnation,
        ..Script::default()
    };
    worker.leave().await;
    let mut worker = Puppet::attach_as(&host, own.clone(), "w1", script.clone()).await.unwrap();
    assert_eq!(worker.welcome.credential, "", "it has one");
    let other = Puppet::attach_as(&host, own.clone(), "w2", Script::default()).await;
    failed(other.map(drop), Code::PermissionDenied, Reason::WorkerIdBound);
    // Nobody else takes its id while the credential is good: not with the file either, and not with another token.
    let by_file = Puppet::attach_as(&host, host.join(), "w1", Script::default()).await;
    failed(by_file.map(drop), Code::PermissionDenied, Reason::WorkerIdBound);
    let (_, another) = make(&host, joining(9)).await;
    let by_token = Puppet::attach_as(&host, another.clone(), "w1", Script::default()).await;
    failed(by_token.map(drop), Code::PermissionDenied, Reason::WorkerIdBound);

    let session =
        host.sessions().await.create_session(v1::CreateSessionRequest::default()).await.unwrap().into_inner();
    let stat = v1::GetTaskRequest { session_id: session.id, task_id: berth_proto::TaskId::new().to_string() };
    assert!(host.tasks().await.get_task(stat.clone()).await.is_ok(), "its data connections are in use");
    let tokens =
        host.identity().await.list_tokens(v1::ListTokensRequest { all: false }).await.unwrap().into_inner();
    let id = &tokens.tokens.iter().find(|listed| listed.worker_id == "w1").unwrap().id;
    revoke(&host, id).await;
    let end = worker.end().await;
    assert_eq!((end.code(), reason_of(&end)), (Code::Unauthenticated, Some(Reason::TokenRevoked)));
    let back = Puppet::attach_as(&host, own.clone(), "w1", script).await;
    failed(back.map(drop), Code::Unauthenticated, Reason::TokenRevoked);
    // Neither what it has open nor what it would dial is used any more.
    failed(host.tasks().await.get_task(stat).await, Code::Unavailable, Reason::WorkerUnreachable);
    let preface = v1::DataPreface {
        worker_id: "w1".into(),
        incarnation: worker.welcome.incarnation,
        data_token: worker.welcome.data_token.clone(),
    };
    let dialer = berth_net::Dialer::new(&host.running.addr().to_string(), None).unwrap();
    let mut dialled = dialer.data(&preface).await.unwrap();
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut dialled, &mut byte);
    assert!(!matches!(tokio::time::timeout(SOON, read).await.expect("it is closed"), Ok(1..)));
    // Its id is free for whoever may register one.
    assert!(Puppet::attach_as(&host, another, "w1", Script::default()).await.is_ok());
}

/// Red when the link on which a worker was given its credential does not end with that.
#[tokio::test]
async fn the_first_link_of_a_worker_ends_with_its_credential_too() {
    let host = Host::start().await;
    let (_, join) = make(&host, joining(1)).await;
    let mut worker = Puppet::attach_as(&host, join, "w1", Script::default()).await.unwrap();
    let tokens =
        host.identity().await.list_tokens(v1::ListTokensRequest { all: false }).await.unwrap().into_inner();
    let id = &tokens.tokens.iter().find(|listed| listed.worker_id == "w1").unwrap().id;
    revoke(&host, id).await;
    let end = worker.end().await;
    assert_eq!((end.code(), reason_of(&end)), (Code::Unauthenticated, Some(Reason::TokenRevoked)));
}

/// The static token works as ever: any number of workers, and no ceremony.
#[tokio::test]
async fn the_join_token_of_the_file_registers_any_number() {
    let host = Host::start().await;
    let first = host.worker("w1").await;
    let second = host.worker("w2").await;
    assert_eq!((first.welcome.credential.as_str(), second.welcome.credential.as_str()), ("", ""));
    assert!(!first.has_heard(|message| matches!(message, Message::End(_))));
}

/// Red when a change is made in memory before it is in the store.
#[tokio::test]
async fn a_store_that_refuses_leaves_tokens_as_they_are() {
    let store = Arc::new(MemoryStore::default());
    let host = Host::start_with(store.clone(), |_| {}).await;
    let (token, bearer) = make(&host, create(v1::TokenScope::Client)).await;
    store.fail(true);
    let request = v1::RevokeTokenRequest { token_id: token.id };
    let mut identity = host.identity().await;
    failed(identity.revoke_token(request).await, Code::Unavailable, Reason::StoreFailed);
    let refused = identity.create_token(create(v1::TokenScope::Client)).await;
    failed(refused, Code::Unavailable, Reason::StoreFailed);
    store.fail(false);
    assert!(host.sessions_as(&bearer).await.list_sessions(v1::ListSessionsRequest::default()).await.is_ok());
    assert_eq!(
        identity.list_tokens(v1::ListTokensRequest { all: true }).await.unwrap().into_inner().tokens.len(),
        1
    );
}

/// Tokens are asked for wherever it listens, and beyond loopback it listens only when told so.
#[tokio::test]
async fn beyond_loopback_it_must_be_told_to_listen_and_asks_for_tokens_still() {
    let state = tempfile::tempdir().unwrap();
    let open = berth_coordinator::Config { listen: ([0, 0, 0, 0], 0).into(), ..config(state.path()) };
    assert!(Coordinator::start(open.clone()).await.is_err());
    let told = berth_coordinator::Config { insecure_listen: true, ..open };
    let running = Coordinator::start(told).await.expect("it was told to");
    let host = Host { running, state };
    let nobody = Bearer(String::new());
    let list = host.sessions_as(&nobody).await.list_sessions(v1::ListSessionsRequest::default()).await;
    failed(list, Code::Unauthenticated, Reason::TokenInvalid);
}
