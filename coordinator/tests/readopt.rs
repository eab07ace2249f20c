//! A coordinator that is started again over ten thousand sessions of a hundred workers: all are taken up as they were.
//! What is counted here is measured by `make bench`.

mod common;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use berth_coordinator::{
    Coordinator,
    fleet::{Scheduling, Session, Spec, Worker},
    store::{Batch, Store, sqlite::SqliteStore},
};
use berth_proto::{
    Epoch, Incarnation, SessionId,
    domain::{
        BackendChoice, CheckpointPolicy, Labels, Limits, OnWorkerLoss, SessionState, TaskDefaultsPatch,
        TemplateSpec,
    },
    v1::{self, coordinator_message::Message},
};
use common::*;

const WORKERS: usize = 100;
const EACH: usize = 100;

/// As the store keeps one that is up.
fn session(number: u128, worker: &str) -> Session {
    let spec = Spec {
        tenant: Default::default(),
        template: TemplateSpec {
            name: "base".into(),
            root: None,
            image: None,
            backend: BackendChoice::Auto,
            user: "user".into(),
        },
        limits: Limits { cpu_millis: 100, memory_bytes: 128 << 20, disk_bytes: 512 << 20, pids: 64 },
        env: Labels::from([("KEY".into(), "value".into())]),
        selector: Labels::new(),
        priority: 0,
        wait_for_place: std::time::Duration::from_secs(30),
        patient: false,
        task_defaults: TaskDefaultsPatch::default(),
        on_worker_loss: if number.is_multiple_of(2) { OnWorkerLoss::End } else { OnWorkerLoss::Restore },
        checkpoints: CheckpointPolicy::default(),
        keyed: false,
        from_checkpoint: false,
        egress: Default::default(),
    };
    let mut session = Session::new(SessionId::from_u128(number), spec, SystemTime::UNIX_EPOCH);
    session.labels = Labels::from([("name".into(), format!("session-{number}"))]);
    session.state = SessionState::Ready;
    session.epoch = Epoch(1 + number as u64 % 3);
    session.worker = Some(worker.parse().unwrap());
    session.ready_at = Some(SystemTime::UNIX_EPOCH);
    session
}

fn name(worker: usize) -> String {
    format!("worker-{worker:03}")
}

fn sessions_of(worker: usize) -> impl Iterator<Item = Session> {
    (0..EACH).map(move |n| session((worker * EACH + n + 1) as u128, &name(worker)))
}

async fn fill(path: &std::path::Path) {
    let store = SqliteStore::open(path).await.unwrap();
    let workers = (0..WORKERS)
        .map(|n| Arc::new(Worker::from_record(name(n).parse().unwrap(), Incarnation(1), Scheduling::Active)));
    let sessions = (0..WORKERS).flat_map(sessions_of).map(Arc::new).collect();
    store.commit(&Batch { sessions, workers: workers.collect(), ..Batch::default() }).await.unwrap();
    store.close().await;
}

/// All sessions in these states, page by page.
async fn listed(host: &Host, states: &[v1::SessionState]) -> Vec<v1::Session> {
    let (mut client, mut all, mut page_token) = (host.sessions().await, Vec::new(), String::new());
    loop {
        let states = states.iter().map(|state| (*state).into()).collect();
        let request = v1::ListSessionsRequest { page_size: 1000, page_token, states, ..Default::default() };
        let page = client.list_sessions(request).await.unwrap().into_inner();
        all.extend(page.sessions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// Attaches worker after worker, each with its hundred sessions; each takes up what it had.
async fn attach_all(host: &Host) -> Vec<Puppet> {
    let attach = (0..WORKERS).map(async |n| {
        let running = sessions_of(n).map(|session| v1::RunningSession {
            session_id: session.id.to_string(),
            epoch: session.epoch.0,
            state: v1::SessionState::Ready.into(),
            backend: "fake".into(),
        });
        let script = Script {
            incarnation: 1,
            process: format!("process of {n}"),
            running: running.collect(),
            max_sessions: EACH as u32,
            data: false,
            ..Script::default()
        };
        Puppet::attach(host, &name(n), script).await.expect("attaches")
    });
    futures::future::join_all(attach).await
}

/// Red when a hello is answered with the end of what it names, when sessions are placed anew, and when a link has no
/// room for the words on all sessions of its worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_sessions_are_taken_up_as_they_were() {
    let state = tempfile::tempdir().unwrap();
    fill(&state.path().join("coordinator.db")).await;
    let known: BTreeMap<String, (String, u64)> = (0..WORKERS)
        .flat_map(|n| sessions_of(n).map(move |s| (s.id.to_string(), (name(n), s.epoch.0))))
        .collect();
    let running = Coordinator::start(config(state.path())).await.expect("starts");
    let mut host = Host { running, state };
    // And once more: what the first one wrote is what the second begins with.
    for _ in 0..2 {
        let mut workers = attach_all(&host).await;
        for worker in &mut workers {
            assert_eq!((worker.welcome.incarnation, worker.welcome.end.len()), (1, 0), "{}", worker.name);
            // The clocks of each of its sessions are the last that a hello is answered with.
            let mut told = BTreeMap::<String, u64>::new();
            worker
                .hear(|message| match message {
                    Message::Update(update) => {
                        told.insert(update.session_id.clone(), update.epoch);
                        (told.len() == EACH).then_some(())
                    }
                    Message::Place(_) | Message::End(_) => panic!("{message:?}"),
                    _ => None,
                })
                .await;
            assert!(told.iter().all(|(id, epoch)| known[id] == (worker.name.clone(), *epoch)));
        }
        let now: BTreeMap<_, _> = listed(&host, &[v1::SessionState::Ready])
            .await
            .into_iter()
            .map(|s| (s.id, (s.worker_id, s.epoch)))
            .collect();
        assert!(now == known, "{} sessions", now.len());
        let others = [
            v1::SessionState::Pending,
            v1::SessionState::Placed,
            v1::SessionState::Ending,
            v1::SessionState::Ended,
        ];
        assert_eq!(listed(&host, &others).await, []);
        let fleet = host.fleet().await.list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner();
        let up = |w: &&v1::Worker| w.liveness() == v1::Liveness::Alive && w.sessions as usize == EACH;
        assert_eq!((fleet.workers.len(), fleet.workers.iter().filter(up).count()), (WORKERS, WORKERS));
        let reserved = fleet.workers[7].reserved.unwrap();
        assert_eq!((reserved.max_sessions, reserved.cpu_millis), (EACH as u32, 100 * EACH as u32));
        for worker in workers {
            worker.leave().await;
        }
        host = host.restart().await;
    }
}

/// A worker may hold more sessions than its link has room for commands: the words on them are more.
/// Red when the link's queue is as long as ever.
#[tokio::test]
async fn a_worker_with_very_many_sessions_can_come_back() {
    const MANY: usize = 1500;
    let state = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&state.path().join("coordinator.db")).await.unwrap();
    let sessions = (1..=MANY).map(|n| Arc::new(session(n as u128, "w"))).collect();
    store.commit(&Batch { sessions, ..Batch::default() }).await.unwrap();
    store.close().await;
    let running = Coordinator::start(config(state.path())).await.expect("starts");
    let host = Host { running, state };
    let held = (1..=MANY).map(|n| session(n as u128, "w")).map(|session| v1::RunningSession {
        session_id: session.id.to_string(),
        epoch: session.epoch.0,
        state: v1::SessionState::Ready.into(),
        backend: "fake".into(),
    });
    let script =
        Script { running: held.collect(), max_sessions: MANY as u32, data: false, ..Script::default() };
    let mut worker = Puppet::attach(&host, "w", script).await.unwrap();
    let mut told = std::collections::BTreeSet::new();
    worker
        .hear(|message| {
            if let Message::Update(update) = message {
                told.insert(update.session_id.clone());
            }
            (told.len() == MANY).then_some(())
        })
        .await;
    assert!(worker.ended.borrow().is_none(), "its link is up");
}
