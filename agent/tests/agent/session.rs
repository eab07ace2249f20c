//! The session as a whole: configuration, events, pause, deadlines, the end.

use std::{
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use berth_proto::{Reason, SessionId, v1, v1::agent_event::Event, v1::outcome::Kind};
use tonic::Code;

use crate::rig::*;

#[tokio::test]
async fn nothing_runs_before_the_session_is_configured() {
    let name = "nothing_runs_before_the_session_is_configured";
    let Some(mut rig) = Rig::with(name, Options { configure: false, ..Default::default() }).await else {
        return;
    };
    refused(rig.try_run(sh("true")).await, Code::FailedPrecondition, Reason::SessionNotReady);
    let stat = v1::StatRequest { session_id: rig.session.clone(), path: ".".into(), follow: false };
    refused(rig.files.stat(stat).await, Code::FailedPrecondition, Reason::SessionNotReady);
    let configure =
        |id: &str, epoch| v1::ConfigureRequest { session_id: id.to_owned(), epoch, ..Default::default() };
    let session = rig.session.clone();
    let told = rig.agent.configure(configure(&session, 3)).await.unwrap().into_inner();
    for protection in ["seccomp", "no-new-privs", "bounding-set", "uid"] {
        assert!(told.protections.iter().any(|p| p == protection), "{told:?}");
    }
    assert_eq!(told.version, berth_proto::VERSION);
    refused(rig.agent.configure(configure(&session, 2)).await, Code::FailedPrecondition, Reason::StaleEpoch);
    let other = SessionId::new().to_string();
    refused(
        rig.agent.configure(configure(&other, 9)).await,
        Code::FailedPrecondition,
        Reason::SessionNotFound,
    );
    assert_eq!(rig.run(sh("true")).await.outcome(), Kind::Exited(0));
    // Another session's name is not found, and so is no name.
    rig.session = other;
    refused(rig.try_run(sh("true")).await, Code::NotFound, Reason::SessionNotFound);
    rig.session = "x".to_owned();
    refused(rig.try_run(sh("true")).await, Code::NotFound, Reason::SessionNotFound);
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_reason() {
    let Some(rig) = Rig::start("bad_requests_are_refused_with_a_reason").await else { return };
    refused(rig.try_run(v1::TaskSpec::default()).await, Code::InvalidArgument, Reason::InvalidField);
    refused(rig.try_run(argv(&[])).await, Code::InvalidArgument, Reason::InvalidField);
    let nul = v1::TaskSpec { cwd: "a\0".into(), ..sh("true") };
    refused(rig.try_run(nul).await, Code::InvalidArgument, Reason::InvalidField);
    let ghost = |id: &str| v1::GetTaskRequest { session_id: rig.session.clone(), task_id: id.into() };
    let unknown = berth_proto::TaskId::new().to_string();
    for id in [unknown.as_str(), "nonsense", ""] {
        refused(rig.tasks.clone().get_task(ghost(id)).await, Code::NotFound, Reason::TaskNotFound);
    }
    let list = v1::ListTasksRequest {
        session_id: rig.session.clone(),
        page_token: "?".into(),
        ..Default::default()
    };
    refused(rig.tasks.clone().list_tasks(list).await, Code::InvalidArgument, Reason::InvalidField);
}

#[tokio::test]
async fn the_worker_hears_of_every_task() {
    let Some(mut rig) = Rig::start("the_worker_hears_of_every_task").await else { return };
    let before = rig.begin(argv(&["sleep", "600"])).await;
    let mut events = rig.agent.watch(v1::WatchAgentRequest {}).await.unwrap().into_inner();
    let mut next = async || events.message().await.unwrap().unwrap().event.unwrap();
    assert!(matches!(next().await, Event::Started(task) if task.id == before.id));
    assert!(matches!(next().await, Event::Executing(executing) if !executing.busy));
    let task = rig.run(sh("exit 2")).await.started;
    assert!(matches!(next().await, Event::Started(t) if t.id == task.id && t.pid > 1));
    assert!(matches!(next().await, Event::Ended(t) if t.id == task.id && outcome(&t) == Kind::Exited(2)));
}

#[tokio::test]
async fn a_pause_stops_everything_and_no_clock_runs_out() {
    let Some(mut rig) = Rig::start("a_pause_stops_everything").await else { return };
    if rig.config.cgroups.v2.is_none() {
        skip("a_pause_stops_everything", "no cgroup v2 mount");
        return;
    }
    let spec = v1::TaskSpec { timeout: secs(3.0), ..sh("while :; do echo > beat; sleep 0.01; done") };
    let task = rig.begin(spec).await;
    rig.file("beat").await;
    rig.agent.freeze(v1::FreezeRequest { frozen: true }).await.unwrap();
    refused(rig.try_run(sh("true")).await, Code::FailedPrecondition, Reason::SessionPaused);
    let beat = || std::fs::metadata(rig.workspace("beat")).unwrap();
    let stamp = |m: std::fs::Metadata| (m.mtime(), m.mtime_nsec());
    let still = stamp(beat());
    // Longer than its timeout.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert_eq!(stamp(beat()), still, "it runs on");
    assert_eq!(rig.get(&task).await.state(), v1::TaskState::Running);
    rig.agent.freeze(v1::FreezeRequest { frozen: false }).await.unwrap();
    until("it runs again", || {
        (stamp(std::fs::metadata(rig.workspace("beat")).unwrap()) != still).then_some(())
    })
    .await;
    assert_eq!(rig.run(sh("true")).await.outcome(), Kind::Exited(0));
    // A paused task can be ended.
    rig.agent.freeze(v1::FreezeRequest { frozen: true }).await.unwrap();
    assert_eq!(outcome(&rig.cancel(&task, Duration::from_millis(50)).await), Kind::Cancelled(EMPTY));
}

#[tokio::test]
async fn shutdown_ends_every_task_and_the_agent() {
    let Some(mut rig) = Rig::start("shutdown_ends_every_task_and_the_agent").await else { return };
    let mark = marker();
    let task = rig.begin(sh(&format!("trap '' TERM; sleep {mark}; sleep {mark}"))).await;
    let watch = rig.tasks.clone().watch_task(rig.watch_request(&task)).await.unwrap().into_inner();
    let (seen, answer) =
        tokio::join!(collect(watch), rig.agent.shutdown(v1::ShutdownRequest { grace: secs(0.2) }));
    answer.unwrap();
    assert_eq!(seen.unwrap().outcome(), Kind::SessionEnded(EMPTY));
    assert_eq!(rig.ended().await, 0);
    assert!(!rig.alive(&mark));
}

#[tokio::test]
async fn the_ttl_ends_the_session_without_any_worker() {
    let Some(mut rig) = Rig::start("the_ttl_ends_the_session").await else { return };
    let mark = marker();
    rig.begin(v1::TaskSpec { detached: true, ..argv(&["sleep", &mark]) }).await;
    let mut events = rig.agent.watch(v1::WatchAgentRequest {}).await.unwrap().into_inner();
    let request = v1::ConfigureRequest {
        session_id: rig.session.clone(),
        epoch: 1,
        ttl_left: secs(0.2),
        ..Default::default()
    };
    rig.agent.configure(request).await.unwrap();
    let mut ended = false;
    loop {
        match events.message().await.unwrap().unwrap().event.unwrap() {
            Event::Started(_) | Event::Executing(_) => {}
            Event::Ended(task) => {
                assert_eq!(outcome(&task), Kind::SessionEnded(EMPTY));
                ended = true;
            }
            Event::Expired(expired) => {
                assert!(ended && !expired.idle);
                break;
            }
        }
    }
    assert!(!rig.alive(&mark));
    refused(rig.try_run(sh("true")).await, Code::FailedPrecondition, Reason::SessionEnded);
    // Nobody has to tell it to go.
    assert_eq!(rig.ended().await, 0);
}

#[tokio::test]
async fn an_idle_session_ends_and_a_busy_one_does_not() {
    let Some(mut rig) = Rig::start("an_idle_session_ends").await else { return };
    let request = v1::ConfigureRequest {
        session_id: rig.session.clone(),
        epoch: 1,
        idle_timeout: secs(0.4),
        ..Default::default()
    };
    // Begun first: on a machine that stands still for that long it would end before anything runs.
    let began = Instant::now();
    let task = rig.begin(argv(&["sleep", "1"])).await;
    rig.agent.configure(request).await.unwrap();
    assert_eq!(outcome(&rig.wait(&task).await), Kind::Exited(0));
    assert_eq!(rig.ended().await, 0);
    assert!(began.elapsed() >= Duration::from_millis(1400));
}

#[tokio::test]
async fn health_is_served() {
    let Some(rig) = Rig::start("health_is_served").await else { return };
    let channel = berth_proto::transport::channel_uds(rig.config.run_dir.join("agent.sock"));
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    for service in ["", "berth.v1.TaskService", "berth.v1.FileService", "berth.v1.AgentService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(
            answer.status(),
            tonic_health::pb::health_check_response::ServingStatus::Serving,
            "{service}"
        );
    }
}
