//! A rolling restart: workers that are stopped and started one after the other, under load. It costs nobody anything
//! that could have ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth_client::{
    Client, Command, ConnectOptions, CreateOptions, EventStream, Reason, Session, SessionState,
    domain::OnWorkerLoss,
    model::{Change, Scheduling},
};
use berth_proto::spawn::spawn;
use berth_tests::{Cluster, READY, Setup, skip, until};
use futures::future::join_all;
use tokio::sync::oneshot;

const CLIENTS: usize = 6;
/// Tasks of a session before its client ends it.
const TASKS: usize = 4;
/// Of one that may go on elsewhere, with a pause before each: so it is quiet now and then while its worker stops. The first
/// of them ends only when it has moved, or the work is over.
const TASKS_OF_A_MOVER: usize = 30;
const PAUSE: Duration = Duration::from_millis(150);
/// In a session that a client left alone for longer nothing is under way: a stop may end it.
const LET_ALONE: Duration = Duration::from_millis(900);

/// What a client got.
#[derive(Default)]
struct Tally {
    sessions: usize,
    moved: usize,
    /// Sessions of which nobody can say that something was under way in them when they were ended.
    let_alone: usize,
    tasks: usize,
    wrong: Vec<String>,
}

/// What the clients and the test tell each other.
#[derive(Default)]
struct Progress {
    /// Sessions that their clients are through with.
    done: AtomicUsize,
    /// The session that ends only when it has moved has run something.
    settled: AtomicBool,
    stop: AtomicBool,
}

impl Progress {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sessions one after the other, each with some short tasks. Every second one may go on elsewhere.
async fn work(client: Client, number: usize, progress: Arc<Progress>) -> Tally {
    let mut tally = Tally::default();
    while !progress.stopped() {
        let name = format!("c{number}s{}", tally.sessions);
        let until_moved = (number == 0 && tally.sessions == 0).then_some(&*progress);
        tally.sessions += 1;
        tally.session(&client, &name, number.is_multiple_of(2), until_moved).await;
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
    tally
}

async fn has_moved(session: &Session) -> bool {
    session.info().await.is_ok_and(|info| info.recovered_from.is_some())
}

impl Tally {
    async fn session(&mut self, client: &Client, name: &str, restore: bool, until_moved: Option<&Progress>) {
        let mut options = CreateOptions::new().request_id(name).wait(READY);
        if restore {
            options = options.on_worker_loss(OnWorkerLoss::Restore);
        }
        let mut touched = Instant::now();
        let session = match client.create_session(options).await {
            Ok(session) => session,
            Err(error) => return self.wrong.push(format!("{name}: not created: {error:?}")),
        };
        let mut tags = Vec::new();
        let tasks = if restore { TASKS_OF_A_MOVER } else { TASKS };
        for task in 0.. {
            let goes_on = match until_moved {
                Some(progress) if task > 0 => {
                    progress.settled.store(true, Ordering::Relaxed);
                    !progress.stopped() && !has_moved(&session).await
                }
                _ => task < tasks,
            };
            if !goes_on {
                break;
            }
            if restore {
                tokio::time::sleep(PAUSE).await;
            }
            let tag = format!("{name}t{task}");
            // It notes itself before its output, so that one that ran twice, or whose notes were lost, is seen.
            let line = format!("echo {tag} >> runs; for i in 1 2 3 4 5; do echo {tag} $i; sleep 0.03; done");
            let give_up = Instant::now() + READY;
            loop {
                let begun = Instant::now();
                let command = Command::shell(&line).request_id(&tag);
                let error = match session.run(command).await {
                    Ok(output) => {
                        let expected: String = (1..=5).map(|i| format!("{tag} {i}\n")).collect();
                        if (output.code(), output.stdout_text().as_ref()) != (Some(0), expected.as_str()) {
                            self.wrong.push(format!(
                                "{tag}: {:?} {:?}",
                                output.outcome,
                                output.stdout_text()
                            ));
                        }
                        touched = begun;
                        break;
                    }
                    Err(error) => error,
                };
                if error.is(Reason::SessionEnded) {
                    // Reckoned from before the last call, so that no delay on the way is taken for a client's.
                    let let_alone = !restore && touched.elapsed() > LET_ALONE;
                    if let_alone {
                        self.let_alone += 1;
                    } else {
                        self.wrong.push(format!("{tag}: lost with its session: {error:?}"));
                    }
                    return;
                }
                let on_its_way = error.is_temporary() || error.is(Reason::SessionNotReady);
                if !on_its_way || Instant::now() > give_up {
                    return self.wrong.push(format!("{tag}: {error:?}"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.tasks += 1;
            tags.push(tag);
        }
        self.check(client, &session, &tags).await;
    }

    /// Each task has noted itself once, wherever the session has been. Then it is ended.
    async fn check(&mut self, client: &Client, session: &Session, tags: &[String]) {
        let give_up = Instant::now() + READY;
        let runs = loop {
            match session.files().read("runs").await {
                Ok(runs) => break String::from_utf8_lossy(&runs).into_owned(),
                // It has ended, as it may by now: nobody was about to do anything in it.
                Err(error) if error.is(Reason::SessionEnded) => return,
                Err(error) if Instant::now() > give_up => {
                    return self.wrong.push(format!("{}: its notes: {error:?}", session.id()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let noted: Vec<&str> = runs.lines().collect();
        if noted != tags {
            self.wrong.push(format!("{}: ran {noted:?}", session.id()));
        }
        self.moved += usize::from(has_moved(session).await);
        if let Err(error) = client.session(session.id()).delete().await {
            self.wrong.push(format!("{}: not ended: {error:?}", session.id()));
        }
    }
}

/// Sees to it that a worker gets no session from when it is told to be drained to when its next process is there.
async fn watch(mut events: EventStream, told: oneshot::Sender<String>, mut stop: oneshot::Receiver<()>) {
    let mut drained: BTreeSet<String> = BTreeSet::new();
    let mut placed: BTreeSet<(berth_client::SessionId, u64)> = BTreeSet::new();
    let mut drains: BTreeMap<String, usize> = BTreeMap::new();
    let said = loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = &mut stop => break format!("{drains:?}"),
        };
        match event.map(|event| event.change) {
            Err(error) => break format!("no events: {error:?}"),
            Ok(Change::Worker(worker)) if worker.scheduling == Scheduling::Active => {
                drained.remove(&worker.id);
            }
            Ok(Change::Worker(worker)) => {
                if drained.insert(worker.id.clone()) {
                    *drains.entry(worker.id).or_default() += 1;
                }
            }
            Ok(Change::Session(session)) => {
                let Some(worker) = session.worker.filter(|_| session.state == SessionState::Placed) else {
                    continue;
                };
                if placed.insert((session.id, session.epoch)) && drained.contains(&worker) {
                    break format!("{} was given to {worker}, which is drained", session.id);
                }
            }
            Ok(Change::Task(_)) => {}
        }
    };
    let _ = told.send(said);
}

/// Red when the worker ends what is between two tasks (no linger), when a session that moves lets tasks begin after its
/// checkpoint was taken (no parting), and when what is drained is still open for placement.
async fn a_rolling_restart_loses_nothing(sandbox: &str) {
    let worker_env = vec![("BERTH_SHUTDOWN_GRACE".to_owned(), "50s".to_owned())];
    let setup = Setup { workers: 2, max_sessions: 8, worker_env, ..Setup::new(sandbox) };
    let mut cluster = Cluster::start(setup).await;
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    let client = Client::connect(options).await.expect("an address");
    let (tell, verdict) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    spawn("watcher", watch(client.events(None).await.expect("events"), tell, ended));
    let progress = Arc::new(Progress::default());
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (tell, told) = oneshot::channel();
        let work = work(client.clone(), number, progress.clone());
        spawn("client", async move {
            let _ = tell.send(work.await);
        });
        clients.push(told);
    }
    // Each round begins with load on both, and ends with load on the one that came back.
    let more = async || {
        let from = progress.done.load(Ordering::Relaxed);
        until(READY * 2, "more sessions", async || {
            let enough = progress.done.load(Ordering::Relaxed) > from + CLIENTS;
            (enough && progress.settled.load(Ordering::Relaxed)).then_some(())
        })
        .await;
    };
    more().await;
    for worker in [0, 1] {
        cluster.workers[worker].process.terminate().await;
        cluster.restart_worker(worker);
        cluster.workers_ready().await;
        more().await;
    }
    progress.stop.store(true, Ordering::Relaxed);
    let mut total = Tally::default();
    for tally in join_all(clients).await.into_iter().map(|tally| tally.expect("a client lives")) {
        total.sessions += tally.sessions;
        total.moved += tally.moved;
        total.let_alone += tally.let_alone;
        total.tasks += tally.tasks;
        total.wrong.extend(tally.wrong);
    }
    let _ = end.send(());
    let seen = verdict.await.expect("the watcher lives");
    println!(
        "{sandbox}: {} sessions, {} moved, {} let alone, {} tasks, {} wrong; drained: {seen}",
        total.sessions,
        total.moved,
        total.let_alone,
        total.tasks,
        total.wrong.len()
    );
    assert_eq!(total.wrong, Vec::<String>::new());
    assert_eq!(seen, r#"{"worker-1": 1, "worker-2": 1}"#);
    assert!(total.tasks > CLIENTS * TASKS && total.moved > 0, "there was load, and what could move did");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_rolling_restart_under_load_loses_nothing() {
    if !skip::without_root("e2e native_a_rolling_restart_under_load_loses_nothing") {
        a_rolling_restart_loses_nothing("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_rolling_restart_under_load_loses_nothing() {
    if !skip::without_docker("e2e docker_a_rolling_restart_under_load_loses_nothing") {
        a_rolling_restart_loses_nothing("docker").await;
    }
}
