//! What a session has lost with its machine is told, and nothing of it is done twice in silence.

use std::time::Duration;

use berth_client::{Client, Command, ConnectOptions, Outcome, SessionId, TaskEvent};
use berth_proto::{
    TaskId,
    error::{Reason, detail_of, reason_of},
    v1::{self, outcome::Kind},
};
use berth_tests::{Cluster, Proxy, READY, Setup, Way, skip, until};
use tonic::{Code, Status};

use crate::util::{run, shell, state};

const LOST: Kind = Kind::WorkerLost(v1::outcome::Empty {});

/// Two workers, and clocks short enough to be waited for.
fn fleet() -> Setup {
    let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Setup {
        workers: 2,
        coordinator_env: vec![env("BERTH_LEASE", "1s"), env("BERTH_RESTORE_GRACE", "1s")],
        ..Setup::new("native")
    }
}

async fn restorable(cluster: &Cluster) -> v1::Session {
    let request =
        v1::CreateSessionRequest { on_worker_loss: v1::OnWorkerLoss::Restore.into(), ..Default::default() };
    cluster.sessions().create_session(request).await.expect("a session").into_inner()
}

async fn checkpoint(cluster: &Cluster, session: &str) -> v1::Checkpoint {
    let request = v1::CheckpointSessionRequest { session_id: session.into(), ..Default::default() };
    cluster.checkpoints().checkpoint_session(request).await.expect("a checkpoint").into_inner()
}

async fn start(cluster: &Cluster, session: &str, line: &str) -> String {
    let spec = v1::TaskSpec { detached: true, ..shell(line) };
    let request = v1::StartTaskRequest { session_id: session.into(), task: Some(spec), ..Default::default() };
    cluster.tasks().start_task(request).await.expect("it starts").into_inner().id
}

async fn tasks(cluster: &Cluster, session: &str, running_only: bool) -> Vec<v1::Task> {
    let request = v1::ListTasksRequest { session_id: session.into(), running_only, ..Default::default() };
    cluster.tasks().list_tasks(request).await.expect("a list").into_inner().tasks
}

async fn get(cluster: &Cluster, session: &str, task: &str) -> Result<v1::Task, Status> {
    let request = v1::GetTaskRequest { session_id: session.into(), task_id: task.into() };
    Ok(cluster.tasks().get_task(request).await?.into_inner())
}

/// Until the coordinator knows of so many that run.
async fn running(cluster: &Cluster, count: u32) {
    until(READY, "the coordinator to know of what runs", async || {
        let info = cluster.admin().get_info(v1::GetInfoRequest {}).await.ok()?.into_inner();
        (info.running_tasks == count).then_some(())
    })
    .await;
}

/// The machine of a session is lost; the session as it goes on elsewhere.
async fn lose(cluster: &mut Cluster, session: &v1::Session) -> v1::Session {
    let lost = cluster.workers.iter().position(|w| w.id == session.worker_id).expect("one of ours");
    cluster.lose_machine(lost).await;
    until(READY, "the session to be ready elsewhere", async || {
        let now = state(cluster, &session.id).await;
        (now.state() == v1::SessionState::Ready && now.epoch > session.epoch).then_some(now)
    })
    .await
}

/// As the messages write it.
fn recovered_to(session: &v1::Session) -> String {
    let at = session.recovered_to.expect("it was recovered");
    format!("recovered to {}", prost_types::Timestamp { nanos: 0, ..at })
}

/// Red without `if_epoch` in the client's requests, or without the look at it in the agent: then the task runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_lost_with_its_machine_is_told_and_not_done_again() {
    if skip::without_root("e2e a_start_that_was_lost_with_its_machine") {
        return;
    }
    let mut cluster = Cluster::start(fleet()).await;
    let session = restorable(&cluster).await;
    let proxy = Proxy::start(&cluster.address).await;
    let options = ConnectOptions::new(proxy.address()).token(&cluster.admin_token);
    let client = Client::connect(options).await.unwrap();
    let handle = client.session(session.id.parse::<SessionId>().unwrap());
    handle.run(Command::new("true")).await.unwrap();
    checkpoint(&cluster, &session.id).await;

    let once = || Command::shell("echo ran >> ran; sleep 1000").detached(true).request_id("once");
    proxy.hold_one_way(Way::Down, true);
    let elsewhere = async {
        until(READY, "the task to run", async || {
            (tasks(&cluster, &session.id, true).await.len() == 1).then_some(())
        })
        .await;
        let now = lose(&mut cluster, &session).await;
        // Its answer is lost with the connection, so the library asks again.
        proxy.cut();
        proxy.hold_one_way(Way::Down, false);
        now
    };
    let (started, now) = tokio::join!(handle.start(once()), elsewhere);
    let error = started.expect_err("nobody knows whether it ran");
    assert_eq!(error.reason(), Some(berth_client::Reason::SessionRecovered), "{error:?}");
    assert!(error.in_doubt() && error.message().contains(&recovered_to(&now)), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("start it again")), "{error:?}");
    assert_eq!(tasks(&cluster, &session.id, true).await, []);
    assert_eq!(run(&cluster, &session.id, "cat ran 2>/dev/null").await.0, "", "it was not started again");
    // Who wants it all the same says so, by calling again.
    handle.start(once()).await.unwrap();
    until(READY, "it to have run", async || {
        (run(&cluster, &session.id, "cat ran").await.0 == "ran").then_some(())
    })
    .await;
    cluster.stop().await;
}

/// Red when the stream does not ask for the task's record (`ended_without_us`): the run is then just an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_lost_with_its_machine_ends_as_worker_lost() {
    if skip::without_root("e2e a_run_that_is_lost_with_its_machine") {
        return;
    }
    let mut cluster = Cluster::start(fleet()).await;
    let session = restorable(&cluster).await;
    checkpoint(&cluster, &session.id).await;
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    let client = Client::connect(options.resume_for(Duration::from_secs(60))).await.unwrap();
    let handle = client.session(session.id.parse::<SessionId>().unwrap());
    let mut stream = handle.stream(Command::shell("echo up; sleep 1000")).await.unwrap();
    // The client has heard of it, and with the count so has the coordinator.
    let first = stream.next().await.unwrap();
    assert!(matches!(&first, Some(TaskEvent::Stdout(bytes)) if bytes.as_ref() == b"up\n"), "{first:?}");
    running(&cluster, 1).await;
    let rest = async {
        loop {
            match stream.next().await.expect("how it ended is known").expect("it is told") {
                TaskEvent::Ended(info) => break info,
                other => assert!(!matches!(other, TaskEvent::Stdout(_)), "{other:?}"),
            }
        }
    };
    let (ended, now) = tokio::join!(rest, lose(&mut cluster, &session));
    let end = ended.end.as_ref().expect("it has ended");
    assert_eq!(end.outcome, Outcome::WorkerLost, "{ended:?}");
    assert!(end.message.contains(&recovered_to(&now)), "{ended:?}");
    assert_eq!(tasks(&cluster, &session.id, false).await, [], "it was not started again");
    cluster.stop().await;
}

/// Red without `rpc/recovered.rs`: then what is lost is told like what never was, and lost output like output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_task_tells_what_was_lost_with_the_machine() {
    if skip::without_root("e2e get_task_tells_what_was_lost") {
        return;
    }
    let mut cluster = Cluster::start(fleet()).await;
    let session = restorable(&cluster).await;
    let id = session.id.as_str();
    let much = start(&cluster, id, "head -c 200000 /dev/zero; exit 3").await;
    let wait = v1::WaitTaskRequest { session_id: id.into(), task_id: much.clone(), timeout: None };
    cluster.tasks().wait_task(wait).await.unwrap();
    let ran = start(&cluster, id, "sleep 1000").await;
    checkpoint(&cluster, id).await;
    let after = start(&cluster, id, "echo hello; echo lost > file").await;
    let wait = v1::WaitTaskRequest { session_id: id.into(), task_id: after.clone(), timeout: None };
    cluster.tasks().wait_task(wait).await.unwrap();
    let ran_after = start(&cluster, id, "sleep 1001").await;
    // Reports come in order: with this one the coordinator has heard of all.
    running(&cluster, 2).await;
    let now = lose(&mut cluster, &session).await;

    // In the checkpoint: its outcome, and the end of its output.
    let task = get(&cluster, id, &much).await.unwrap();
    let stdout = task.stdout.unwrap();
    assert_eq!((stdout.length, stdout.first_kept), (200_000, 200_000 - (64 << 10)));
    assert_eq!(kind(&task), Kind::Exited(3));
    let watch = v1::WatchTaskRequest { session_id: id.into(), task_id: much.clone(), ..Default::default() };
    let error = cluster.tasks().watch_task(watch).await.expect_err("its beginning is lost");
    assert_eq!(detail_of(&error, "first_kept").as_deref(), Some("134464"), "{error:?}");

    // They ran: whatever they did is not known.
    for task in [&ran, &ran_after] {
        let task = get(&cluster, id, task).await.unwrap();
        let message = &task.end.as_ref().unwrap().message;
        assert_eq!(kind(&task), LOST);
        assert!(
            message.contains("what it did is not known") && message.contains(&recovered_to(&now)),
            "{message}"
        );
    }
    // It had ended, after the checkpoint: how is known, but its output and its files are lost.
    let task = get(&cluster, id, &after).await.unwrap();
    let (message, stdout) = (&task.end.as_ref().unwrap().message, task.stdout.unwrap());
    assert_eq!((kind(&task), stdout.length, stdout.first_kept), (Kind::Exited(0), 6, 6));
    assert!(message.contains(&recovered_to(&now)), "{message}");
    let watch = v1::WatchTaskRequest { session_id: id.into(), task_id: after, ..Default::default() };
    let error = cluster.tasks().watch_task(watch).await.expect_err("it is not where the session is now");
    gone(&error, &now);
    // Of one that nobody had heard of there is no record, and the reason for that is told.
    gone(&get(&cluster, id, &TaskId::new().to_string()).await.expect_err("unknown"), &now);
    // Elsewhere nobody speaks of a recovery.
    let other = cluster.session().await;
    let error = get(&cluster, &other.id, &TaskId::new().to_string()).await.expect_err("unknown");
    assert!(!error.message().contains("recovered"), "{error:?}");
    cluster.stop().await;
}

fn kind(task: &v1::Task) -> Kind {
    task.end.as_ref().and_then(|end| end.outcome).and_then(|outcome| outcome.kind).expect("it is done")
}

fn gone(error: &Status, session: &v1::Session) {
    assert_eq!((error.code(), reason_of(error)), (Code::NotFound, Some(Reason::TaskNotFound)), "{error:?}");
    assert!(error.message().contains(&recovered_to(session)), "{error:?}");
    assert!(detail_of(error, "hint").is_some_and(|hint| hint.contains("start it again")), "{error:?}");
}
