//! The life of a session.

use berth_proto::{
    error::{Reason, reason_of},
    v1,
};
use berth_tests::{Cluster, READY, Setup, skip, until};
use tonic::Code;

use crate::util::{delete, run, seconds, shell, state, try_run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_makes_one_session() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let create = |label: &str| v1::CreateSessionRequest {
        request_id: "once".into(),
        labels: [("a".to_owned(), label.to_owned())].into(),
        ..Default::default()
    };
    let first = cluster.sessions().create_session(create("1")).await.unwrap().into_inner();
    let again = cluster.sessions().create_session(create("1")).await.unwrap().into_inner();
    assert_eq!(first.id, again.id);
    let error = cluster.sessions().create_session(create("2")).await.expect_err("another body");
    assert_eq!((error.code(), reason_of(&error)), (Code::AlreadyExists, Some(Reason::RequestIdReused)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_listed_in_pages_and_by_label() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    let mut made = Vec::new();
    for i in 0..5 {
        let labels = [("parity".to_owned(), (i % 2).to_string())].into();
        let request = v1::CreateSessionRequest { labels, ..Default::default() };
        made.push(cluster.sessions().create_session(request).await.unwrap().into_inner().id);
    }
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListSessionsRequest { page_size: 2, page_token, ..Default::default() };
        let page = cluster.sessions().list_sessions(request).await.unwrap().into_inner();
        listed.extend(page.sessions.into_iter().map(|s| s.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    listed.reverse();
    assert_eq!(listed, made);
    let labels = [("parity".to_owned(), "1".to_owned())].into();
    let request = v1::ListSessionsRequest { labels, ..Default::default() };
    assert_eq!(cluster.sessions().list_sessions(request).await.unwrap().into_inner().sessions.len(), 2);
    let request = v1::ListSessionsRequest { page_token: "forged".into(), ..Default::default() };
    let error = cluster.sessions().list_sessions(request).await.expect_err("not one of ours");
    assert_eq!(error.code(), Code::InvalidArgument);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_session_stands_still() {
    if skip::without_root("e2e a_paused_session_stands_still") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    let ticking = v1::StartTaskRequest {
        session_id: session.clone(),
        task: Some(v1::TaskSpec { detached: true, ..shell("while :; do echo x; sleep 0.02; done") }),
        ..Default::default()
    };
    let task = cluster.tasks().start_task(ticking).await.unwrap().into_inner();
    let length = async || {
        let request = v1::GetTaskRequest { session_id: session.clone(), task_id: task.id.clone() };
        cluster.tasks().get_task(request).await.unwrap().into_inner().stdout.unwrap().length
    };
    until(READY, "it to tick", async || (length().await > 10).then_some(())).await;
    let pause = v1::PauseSessionRequest { session_id: session.clone() };
    let paused = cluster.sessions().pause_session(pause).await.unwrap().into_inner();
    assert_eq!(paused.state(), v1::SessionState::Paused);
    // What was in the pipe is drained; then nothing comes any more.
    let before = length().await;
    let error = try_run(&cluster, &session, "true").await.expect_err("it is paused");
    assert_eq!((error.code(), reason_of(&error)), (Code::FailedPrecondition, Some(Reason::SessionPaused)));
    assert!(length().await <= before + 2, "it goes on while it is paused");
    let resume = v1::ResumeSessionRequest { session_id: session.clone() };
    let resumed = cluster.sessions().resume_session(resume).await.unwrap().into_inner();
    assert_eq!(resumed.state(), v1::SessionState::Ready);
    until(READY, "it to go on", async || (length().await > before + 10).then_some(())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ttl_and_idleness_end_a_session() {
    if skip::without_root("e2e the_ttl_and_idleness_end_a_session") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let make = async |request: v1::CreateSessionRequest| {
        cluster.sessions().create_session(request).await.unwrap().into_inner().id
    };
    let short = make(v1::CreateSessionRequest { ttl: seconds(1), ..Default::default() }).await;
    let idle = make(v1::CreateSessionRequest { idle_timeout: seconds(1), ..Default::default() }).await;
    for (session, reason) in [(&short, v1::EndReason::TtlExpired), (&idle, v1::EndReason::Idle)] {
        until(READY, "the session to end", async || {
            (state(&cluster, session).await.state() == v1::SessionState::Ended).then_some(())
        })
        .await;
        assert_eq!(state(&cluster, session).await.end_reason(), reason);
        let error = try_run(&cluster, session, "true").await.expect_err("it is over");
        assert_eq!((error.code(), reason_of(&error)), (Code::FailedPrecondition, Some(Reason::SessionEnded)));
    }
    // A running task keeps a session from being idle.
    let busy = make(v1::CreateSessionRequest { idle_timeout: seconds(1), ..Default::default() }).await;
    assert_eq!(run(&cluster, &busy, "sleep 3; echo done").await.0, "done");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_ends_what_runs_and_twice_is_no_error() {
    if skip::without_root("e2e deleting_ends_what_runs_and_twice_is_no_error") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    let running = run(&cluster, &session, "sleep 1000");
    let deleting = async {
        until(READY, "the task to run", async || {
            let request = v1::ListTasksRequest {
                session_id: session.clone(),
                running_only: true,
                ..Default::default()
            };
            (!cluster.tasks().list_tasks(request).await.ok()?.into_inner().tasks.is_empty()).then_some(())
        })
        .await;
        delete(&cluster, &session).await;
    };
    let ((_, outcome), ()) = tokio::join!(running, deleting);
    assert_eq!(outcome, v1::outcome::Kind::SessionEnded(v1::outcome::Empty {}));
    delete(&cluster, &session).await;
    assert_eq!(state(&cluster, &session).await.end_reason(), v1::EndReason::Deleted);
    // What its tasks came to is still known.
    let request = v1::ListTasksRequest { session_id: session.clone(), ..Default::default() };
    let tasks = cluster.tasks().list_tasks(request).await.expect("it is remembered").into_inner().tasks;
    assert_eq!(tasks.len(), 1);
    let unknown = v1::DeleteSessionRequest {
        session_id: berth_proto::SessionId::new().to_string(),
        ..Default::default()
    };
    let error = cluster.sessions().delete_session(unknown).await.expect_err("no such session");
    assert_eq!(error.code(), Code::NotFound);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_coordinator_loses_no_session() {
    if skip::without_root("e2e a_killed_coordinator_loses_no_session") {
        return;
    }
    let mut cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    run(&cluster, &session, "echo kept > file").await;
    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    let kept = until(READY, "the session to be reached again", async || {
        try_run(&cluster, &session, "cat file").await.ok()
    })
    .await;
    assert_eq!(kept.0, "kept");
    assert_eq!(state(&cluster, &session).await.epoch, 1, "it was not placed anew");
    cluster.stop().await;
}
