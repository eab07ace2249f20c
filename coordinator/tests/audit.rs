//! What is recorded of who did what, over real gRPC: calls, refusals, and ends.

mod common;

use std::{os::unix::fs::PermissionsExt, sync::Arc};

use berth_coordinator::store::memory::MemoryStore;
use berth_proto::{
    Code, Reason,
    v1::{self, audit_service_client::AuditServiceClient},
};
use common::*;
use tonic::service::interceptor::InterceptedService;

async fn list(host: &Host, request: v1::ListAuditRequest) -> Vec<v1::AuditRecord> {
    let channel = InterceptedService::new(host.channel().await, host.admin());
    AuditServiceClient::new(channel).list_audit(request).await.unwrap().into_inner().records
}

async fn verify(host: &Host) -> v1::VerifyAuditResponse {
    let channel = InterceptedService::new(host.channel().await, host.admin());
    AuditServiceClient::new(channel).verify_audit(v1::VerifyAuditRequest {}).await.unwrap().into_inner()
}

/// Of this session, oldest first: what, who, outcome.
async fn of(host: &Host, session: &str) -> Vec<(String, String, String)> {
    let request = v1::ListAuditRequest { session_id: session.into(), ..Default::default() };
    let mut records = list(host, request).await;
    records.reverse();
    records.into_iter().map(|r| (r.what, r.who, r.outcome)).collect()
}

/// Red when the guard begins no note or does not end it, when `about` is left out of a service, or the ends are not recorded.
#[tokio::test]
async fn who_did_what_to_a_session_and_what_came_of_it() {
    let host = Host::start_with(Arc::new(MemoryStore::default()), |_| {}).await;
    let worker = host.worker("w").await;
    let tenant = host.client_of("team-a").await;
    let mut sessions = host.sessions_as(&tenant).await;
    let env = [("KEY".to_owned(), "a secret of mine".to_owned())].into();
    let made = sessions
        .create_session(v1::CreateSessionRequest { env, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    // To look is not recorded.
    sessions.get_session(v1::GetSessionRequest { session_id: made.id.clone() }).await.unwrap();
    let stranger = host.client_of("team-b").await;
    let delete = v1::DeleteSessionRequest { session_id: made.id.clone(), ..Default::default() };
    let refused = host.sessions_as(&stranger).await.delete_session(delete.clone()).await;
    failed(refused, Code::NotFound, Reason::SessionNotFound);
    sessions.delete_session(delete).await.unwrap();
    drop(worker);

    let told = until(|| async {
        let told = of(&host, &made.id).await;
        (told.len() == 4).then_some(told)
    })
    .await;
    let what: Vec<(&str, &str)> =
        told.iter().map(|(what, _, outcome)| (what.as_str(), outcome.as_str())).collect();
    let mut expected = [
        ("SessionService/CreateSession", "OK"),
        ("SessionService/DeleteSession", "NOT_FOUND SESSION_NOT_FOUND"),
        ("SessionService/DeleteSession", "OK"),
        ("session ended", "deleted"),
    ];
    // The end of the session and the answer to whom it was ended for come in either order.
    if what[2].0 == "session ended" {
        expected.swap(2, 3);
    }
    assert_eq!(what, expected);
    assert_eq!(told[0].1, told.iter().find(|t| t.2 == "OK").unwrap().1, "the token's id");
    assert_ne!(told[0].1, told[1].1, "a stranger's call is the stranger's");
    assert_eq!(told[0].1.len(), 32, "an id, and not the token: {}", told[0].1);
    assert!(told.iter().any(|(what, who, _)| what == "session ended" && who == "-"));
}

/// Red when `refused` records nothing, or records all.
#[tokio::test]
async fn who_has_no_token_is_recorded_and_can_not_flood_the_record() {
    let host = Host::start().await;
    let nobody = Bearer("berth_client_nothing".into());
    for _ in 0..40 {
        let refused = host.sessions_as(&nobody).await.list_sessions(v1::ListSessionsRequest::default()).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    }
    let seen = list(&host, v1::ListAuditRequest { refused: true, ..Default::default() }).await;
    assert!((1..40).contains(&seen.len()), "{}", seen.len());
    for record in &seen {
        assert_eq!((record.who.as_str(), record.what.as_str()), ("", "SessionService/ListSessions"));
        assert!(record.outcome.starts_with("UNAUTHENTICATED "), "{}", record.outcome);
        assert_eq!(record.details["peer"], "127.0.0.1");
    }
    // A good token that is not good for this: it is known whose.
    let client = host.client_of("team-a").await;
    let refused = host.fleet_as(&client).await.list_workers(v1::ListWorkersRequest {}).await;
    failed(refused, Code::PermissionDenied, Reason::TokenScope);
    let seen = list(&host, v1::ListAuditRequest { tenant: "team-a".into(), ..Default::default() }).await;
    assert_eq!((seen[0].what.as_str(), seen[0].who.len()), ("AdminService/ListWorkers", 32));
}

/// Red when the file is not gone on with, or what waits is not written at the stop.
#[tokio::test]
async fn a_restart_goes_on_with_the_record_and_no_secret_is_in_it() {
    let host = Host::start().await;
    let worker = host.worker("w").await;
    let mut sessions = host.sessions().await;
    let env = [("KEY".to_owned(), "a secret of mine".to_owned())].into();
    let made = sessions
        .create_session(v1::CreateSessionRequest { env, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let before = verify(&host).await;
    assert!(before.records >= 2 && before.broken_at.is_none(), "{before:?}");
    drop((worker, sessions));
    let host = host.restart().await;
    let after = verify(&host).await;
    assert!(after.last >= before.last && after.broken_at.is_none(), "{after:?}");
    assert_eq!(of(&host, &made.id).await[0].0, "SessionService/CreateSession");
    let path = host.state.path().join("audit.db");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for file in std::fs::read_dir(host.state.path()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("audit.db") {
            let bytes = std::fs::read(file.path()).unwrap();
            assert!(!bytes.windows(16).any(|seen| seen == b"a secret of mine"), "{:?}", file.path());
        }
    }
    // It is an operator's alone.
    let client = host.client_of("team-a").await;
    let channel = InterceptedService::new(host.channel().await, client);
    let refused = AuditServiceClient::new(channel).list_audit(v1::ListAuditRequest::default()).await;
    failed(refused, Code::PermissionDenied, Reason::TokenScope);
}

/// Red when `bounded` leaves one of them out.
#[tokio::test]
async fn nobody_writes_more_into_the_record_than_is_kept_of_a_text() {
    let host = Host::start().await;
    let long = "x".repeat(1 << 20);
    let delete = v1::DeleteSessionRequest { session_id: long.clone(), ..Default::default() };
    host.sessions().await.delete_session(delete).await.unwrap_err();
    let cancel = v1::CancelTaskRequest { session_id: long.clone(), task_id: long, ..Default::default() };
    host.tasks().await.cancel_task(cancel).await.unwrap_err();
    let seen = list(&host, v1::ListAuditRequest { refused: true, ..Default::default() }).await;
    assert_eq!(seen.len(), 2);
    for record in seen {
        assert!(prost::Message::encoded_len(&record) < 4096, "{}", prost::Message::encoded_len(&record));
    }
}

#[tokio::test]
async fn pages_are_without_gap_and_nonsense_is_refused() {
    let host = Host::start().await;
    for n in 0..5 {
        host.quota(&format!("team-{n}"), v1::Quota::default()).await;
    }
    let page = |page_token: &str| v1::ListAuditRequest {
        what: "IdentityService/SetQuota".into(),
        page_size: 2,
        page_token: page_token.into(),
        ..Default::default()
    };
    let channel = InterceptedService::new(host.channel().await, host.admin());
    let mut service = AuditServiceClient::new(channel);
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let answer = service.list_audit(page(&token)).await.unwrap().into_inner();
        assert!(answer.records.len() <= 2);
        seen.extend(answer.records.into_iter().map(|record| record.details["of"].clone()));
        if answer.next_page_token.is_empty() {
            break;
        }
        token = answer.next_page_token;
    }
    assert_eq!(seen, ["team-4", "team-3", "team-2", "team-1", "team-0"]);
    failed(service.list_audit(page("nonsense")).await, Code::InvalidArgument, Reason::InvalidField);
}
