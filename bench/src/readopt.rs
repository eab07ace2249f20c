//! A coordinator that is killed over ten thousand sessions on a hundred workers: how long until clients see all of them
//! taken up again. Coordinator and store are the real ones; the workers are links that say what a worker says, and hold
//! nothing. The sessions are made through the API as well, so the store is as it would be.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_proto::{
    spawn::spawn,
    transport,
    v1::{self, coordinator_message::Message, worker_message, worker_service_client::WorkerServiceClient},
};
use berth_tests::{Bearer, Cluster, Setup};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::stats::{Table, summary_of};

const WORKERS: usize = 100;
const EACH: usize = 100;
const ROUNDS: usize = 7;
/// Creates under way.
const AT_ONCE: usize = 32;
/// A real worker waits longer between two tries, and each for another time: that is not the coordinator's part.
const REDIAL: Duration = Duration::from_millis(5);
/// Beyond this something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures it, and notes the figure below the table.
pub async fn readopt(table: &mut Table) {
    let mut cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let join =
        std::fs::read_to_string(cluster.dir.path().join("c/credentials/join.token")).expect("the join token");
    let _links: Vec<Arc<Link>> =
        (0..WORKERS).map(|n| Link::start(n, &cluster.address, join.trim())).collect();
    alive(&cluster, |worker| worker.liveness() == v1::Liveness::Alive).await;
    let begun = Instant::now();
    create_all(&cluster).await;
    let made = begun.elapsed();
    let before = sessions(&cluster).await;
    assert_eq!(before.len(), WORKERS * EACH);
    let (mut serves, mut attached, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        cluster.restart_coordinator().await;
        serves.push(begun.elapsed());
        let up = |w: &v1::Worker| w.liveness() == v1::Liveness::Alive && w.sessions as usize == EACH;
        alive(&cluster, up).await;
        attached.push(begun.elapsed());
        let after = sessions(&cluster).await;
        samples.push(begun.elapsed());
        assert!(after == before, "a session has changed");
    }
    let per_second = (WORKERS * EACH) as f64 / made.as_secs_f64();
    table.note(format!(
        "{} sessions on {WORKERS} simulated workers, coordinator killed (SIGKILL) and started: all seen ready and \
         attached after {} ({ROUNDS} rounds; calls served after {}, all workers attached after {}); made at \
         {per_second:.0} a second, {AT_ONCE} at a time",
        WORKERS * EACH,
        summary_of(samples),
        summary_of(serves),
        summary_of(attached),
    ));
    cluster.coordinator.kill().await;
}

/// Waits until all workers are as they should be, one by one as a client asks.
async fn alive(cluster: &Cluster, up: impl Fn(&v1::Worker) -> bool) {
    let mut admin = cluster.admin();
    let end = Instant::now() + PATIENCE;
    for n in 0..WORKERS {
        let request = v1::GetWorkerRequest { worker_id: name(n) };
        loop {
            let worker = admin.get_worker(request.clone()).await;
            if worker.is_ok_and(|worker| up(worker.get_ref())) {
                break;
            }
            assert!(Instant::now() < end, "worker {n} did not come back");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// All sessions that are ready: where, and at which epoch.
async fn sessions(cluster: &Cluster) -> BTreeMap<String, (String, u64)> {
    let (mut found, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let states = vec![v1::SessionState::Ready.into()];
        let request = v1::ListSessionsRequest { page_size: 1000, page_token, states, ..Default::default() };
        let page = cluster.sessions().list_sessions(request).await.expect("a page").into_inner();
        found.extend(page.sessions.into_iter().map(|s| (s.id, (s.worker_id, s.epoch))));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

async fn create_all(cluster: &Cluster) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut creators = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (mut client, next) = (cluster.sessions(), next.clone());
        creators.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < WORKERS * EACH {
                let limits = v1::Limits {
                    cpu_millis: Some(100),
                    memory_bytes: Some(128 << 20),
                    disk_bytes: Some(512 << 20),
                    pids: Some(64),
                };
                let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
                client.create_session(request).await.expect("a session");
            }
        });
    }
    creators.join_all().await;
}

fn name(number: usize) -> String {
    format!("worker-{number:03}")
}

/// What a worker says, without a worker.
struct Link {
    name: String,
    incarnation: Mutex<u64>,
    held: Mutex<BTreeMap<String, u64>>,
}

impl Link {
    fn start(number: usize, address: &str, token: &str) -> Arc<Self> {
        let link =
            Arc::new(Self { name: name(number), incarnation: Mutex::default(), held: Mutex::default() });
        let (endpoint, bearer) = (transport::uri_of(address), Bearer::new(token));
        let weak = Arc::downgrade(&link);
        spawn("simulated worker", async move {
            while let Some(link) = weak.upgrade() {
                // Its end is that of the coordinator, or of the measurement.
                let _ = link.converse(&endpoint, &bearer).await;
                drop(link);
                tokio::time::sleep(REDIAL).await;
            }
        });
        link
    }

    async fn converse(&self, endpoint: &str, bearer: &Bearer) -> Result<(), Status> {
        let failed = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        let endpoint = transport::endpoint(endpoint.to_owned()).map_err(|e| failed(&e))?;
        let channel = endpoint.connect().await.map_err(|e| failed(&e))?;
        let mut client = WorkerServiceClient::with_interceptor(channel, bearer.clone());
        let (say, said) = mpsc::channel(256);
        let tell = async |message| {
            let message = v1::WorkerMessage { message: Some(message) };
            say.send(message).await.map_err(|e| failed(&e))
        };
        tell(worker_message::Message::Hello(self.hello())).await?;
        let mut incoming = client.attach(ReceiverStream::new(said)).await?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_secs(3));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                next = incoming.message() => {
                    let Some(next) = next?.and_then(|m| m.message) else { return Ok(()) };
                    if let Some(answer) = self.hear(next) {
                        tell(worker_message::Message::Session(answer)).await?;
                    }
                }
                _ = beat.tick() => tell(worker_message::Message::Heartbeat(v1::Heartbeat {
                    sequence: 1,
                    health: ready(),
                    backends: backends(),
                    templates: vec!["base".into()],
                    ..Default::default()
                }))
                .await?,
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        let held = self.held.lock().expect("no panic");
        let running = held.iter().map(|(session, epoch)| v1::RunningSession {
            session_id: session.clone(),
            epoch: *epoch,
            state: v1::SessionState::Ready.into(),
            backend: "fake".into(),
        });
        v1::Hello {
            worker_id: self.name.clone(),
            process_id: self.name.clone(),
            instance: self.name.clone(),
            incarnation: *self.incarnation.lock().expect("no panic"),
            version: "simulated".into(),
            capacity: Some(v1::Capacity {
                cpu_millis: 16_000,
                memory_bytes: 64 << 30,
                disk_bytes: 256 << 30,
                max_sessions: EACH as u32,
            }),
            running: running.collect(),
            backends: backends(),
            templates: vec!["base".into()],
            health: ready(),
            ..Default::default()
        }
    }

    fn hear(&self, message: Message) -> Option<v1::SessionReport> {
        let report = |session_id, epoch, state: v1::SessionState| {
            let (state, backend) = (state.into(), "fake".into());
            Some(v1::SessionReport { session_id, epoch, state, backend, ..Default::default() })
        };
        let mut held = self.held.lock().expect("no panic");
        match message {
            Message::Welcome(welcome) => {
                assert!(welcome.end.is_empty(), "{} is to end {} sessions", self.name, welcome.end.len());
                *self.incarnation.lock().expect("no panic") = welcome.incarnation;
                None
            }
            Message::Place(place) => {
                let again = held.insert(place.session_id.clone(), place.epoch);
                assert_eq!(again, None, "a session was placed twice");
                report(place.session_id, place.epoch, v1::SessionState::Ready)
            }
            Message::End(end) => {
                held.remove(&end.session_id);
                report(end.session_id, end.epoch, v1::SessionState::Ended)
            }
            _ => None,
        }
    }
}

fn ready() -> Option<v1::WorkerHealth> {
    Some(v1::WorkerHealth { ready: true, ..Default::default() })
}

fn backends() -> Vec<v1::BackendStatus> {
    vec![v1::BackendStatus { name: "fake".into(), ready: true, chosen: true, ..Default::default() }]
}
