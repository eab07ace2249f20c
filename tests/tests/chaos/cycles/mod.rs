//! Crash cycles: sessions are made, run tasks and are removed, while a worker, the coordinator, both, or a sandbox's own
//! agent is killed (SIGKILL) at a drawn point of it, and started again. However the kill falls:
//!
//! - INVARIANT 20: after each cycle the host has as much of the fleet as before: processes, namespaces, cgroups,
//!   containers, mounts, sockets, files. (Red when the sweep at a worker's start is left out: `Sessions::sweep`.)
//! - INVARIANT 8: a task runs at most once for its request id, however often its start is asked for; and what is told of
//!   its end is so. (Red when the agent forgets its request ids: `Ledger::record` or `same_key`.)
//! - INVARIANT 4: no two workers ever hold a session at one epoch, and a request id is one session. The coordinator is
//!   killed as it writes to its store: then a placement is durable, and not sent. (Red when one that came to nothing
//!   gives its epoch back: `Fleet::back_to_queue`.)
//! - No kill of a worker or of the coordinator ends a session. One whose agent was killed is `SandboxFailed`.
//!
//! 50 cycles in `make test`, of which 10 are docker's; `make night` makes a thousand of it.

mod counts;
mod points;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use berth_client::{Client, ConnectOptions, Session, SessionState};
use berth_tests::{Cluster, READY, Setup, skip, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;

use self::{
    counts::Counts,
    points::{CREATE, Point, REMOVAL, Scene, TASK},
};
use crate::chance::{self, Chance};

/// Cycles that only find out what a fleet has on its host when it holds nothing.
const WARM_UP: usize = 2;

/// What a kill falls into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Task,
    Removal,
}

/// Who is killed. Workers are counted as in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Worker(usize),
    Coordinator,
    Both(usize),
    /// The worker, and then the coordinator when it has noted that the worker is back without what it was given.
    OneAfterTheOther(usize),
    /// PID 1 of a sandbox of this worker.
    Agent(usize),
}

/// One kill.
struct Blow {
    step: Step,
    victim: Victim,
    point: Point,
    /// The worker is killed once more, so long after its new start.
    again: Option<Duration>,
}

/// A kill that is about to happen.
struct Aimed {
    blow: Blow,
    scene: Scene,
    pids: Vec<i32>,
}

struct Cycles {
    cluster: Cluster,
    client: Client,
    chance: Chance,
    native: bool,
    number: usize,
    /// The coordinator alone was killed while sessions were made.
    coordinator_alone: bool,
    /// First host ids of the sessions that were.
    claims: BTreeSet<u64>,
    /// Who was seen to hold a session at an epoch.
    held: BTreeMap<(String, u64), String>,
    tally: BTreeMap<String, usize>,
}

impl Cycles {
    async fn start(sandbox: &str, seed: u64) -> Self {
        let lease = ("BERTH_LEASE".to_owned(), "1s".to_owned());
        let cluster =
            Cluster::start(Setup { workers: 2, coordinator_env: vec![lease], ..Setup::new(sandbox) }).await;
        let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
        let client = Client::connect(options).await.expect("an address");
        Self {
            cluster,
            client,
            chance: Chance::new(seed),
            native: sandbox == "native",
            number: 0,
            coordinator_alone: false,
            claims: BTreeSet::new(),
            held: BTreeMap::new(),
            tally: BTreeMap::new(),
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    fn draw(&mut self) -> Blow {
        let step = self.chance.one_of(&[Step::Create, Step::Task, Step::Removal]);
        let worker = self.chance.index(self.cluster.workers.len());
        let victim = match (step, self.chance.draw(10)) {
            (_, 0..4) => Victim::Worker(worker),
            (_, 4..6) => Victim::Coordinator,
            (_, 6..8) => Victim::Both(worker),
            (Step::Create, _) => Victim::OneAfterTheOther(worker),
            (Step::Task, _) if self.native => Victim::Agent(worker),
            _ => Victim::Worker(worker),
        };
        let points: &[Point] = match (step, victim) {
            // It writes when it places, and when it hears of an end.
            (Step::Create | Step::Removal, Victim::Coordinator | Victim::Both(_)) => &[Point::Stored],
            (Step::Create, _) => &CREATE,
            (Step::Task, _) => &TASK,
            (Step::Removal, _) => &REMOVAL,
        };
        let drawn = Point::After(self.chance.millis(0, if self.native { 80 } else { 400 }));
        let point = if self.chance.draw(4) == 0 { drawn } else { self.chance.one_of(points) };
        let killed_again = matches!(victim, Victim::Worker(_) | Victim::Both(_)) && self.chance.draw(4) == 0;
        let again = killed_again.then(|| self.chance.millis(0, 200));
        Blow { step, victim, point, again }
    }

    /// To be called before what the kill is to fall into begins.
    fn aim(&self, mut blow: Blow) -> Aimed {
        if let Victim::Agent(worker) = blow.victim
            && agents(&self.cluster.workers[worker].state).is_empty()
        {
            blow.victim = Victim::Worker(worker);
        }
        let worker = match blow.victim {
            Victim::Worker(worker)
            | Victim::Both(worker)
            | Victim::OneAfterTheOther(worker)
            | Victim::Agent(worker) => worker,
            Victim::Coordinator => 0,
        };
        let worker = &self.cluster.workers[worker];
        let coordinator = self.cluster.coordinator.pid();
        let pids = match blow.victim {
            Victim::Worker(_) | Victim::OneAfterTheOther(_) => vec![worker.process.pid()],
            Victim::Coordinator => vec![coordinator],
            Victim::Both(_) => vec![coordinator, worker.process.pid()],
            Victim::Agent(_) => agents(&worker.state).into_iter().take(1).collect(),
        };
        let scene = Scene::new(&worker.state, &self.cluster.dir.path().join("c"));
        Aimed { blow, scene, pids }
    }

    /// Kills at the point, and starts again what was killed.
    async fn strike(&mut self, aimed: Option<Aimed>) {
        let Some(Aimed { blow, scene, pids }) = aimed else { return };
        let victim = match blow.victim {
            Victim::Worker(_) => "worker",
            Victim::Coordinator => "coordinator",
            Victim::Both(_) => "coordinator and worker",
            Victim::OneAfterTheOther(_) => "worker, and then coordinator",
            Victim::Agent(_) => "agent",
        };
        let at = match (blow.point, kill_at(scene, blow.point, pids).await) {
            (Point::After(_), _) => "at a drawn time".to_owned(),
            (point, true) => format!("at {point:?}"),
            (_, false) => "late: its point did not come".to_owned(),
        };
        self.note(format!("killed: {victim}, {:?} {at}", blow.step));
        if matches!(blow.victim, Victim::Coordinator | Victim::Both(_)) {
            self.cluster.restart_coordinator().await;
        }
        let (Victim::Worker(worker) | Victim::Both(worker) | Victim::OneAfterTheOther(worker)) = blow.victim
        else {
            return;
        };
        self.cluster.workers[worker].process.kill().await;
        self.look_at_placements();
        let scene = Scene::new(&self.cluster.workers[worker].state, &self.cluster.dir.path().join("c"));
        self.cluster.restart_worker(worker);
        if matches!(blow.victim, Victim::OneAfterTheOther(_)) {
            kill_at(scene, Point::Stored, vec![self.cluster.coordinator.pid()]).await;
            self.cluster.restart_coordinator().await;
        }
        if let Some(after) = blow.again {
            tokio::time::sleep(after).await;
            self.cluster.workers[worker].process.kill().await;
            self.cluster.restart_worker(worker);
            self.note("killed: worker, again while it started");
        }
    }

    /// INVARIANT 4: of an epoch there is one holder.
    fn look_at_placements(&mut self) -> BTreeMap<String, Vec<(usize, u64)>> {
        let mut holders: BTreeMap<String, Vec<(usize, u64)>> = BTreeMap::new();
        for (number, worker) in self.cluster.workers.iter().enumerate() {
            for entry in fs::read_dir(worker.state.join("sessions")).into_iter().flatten().flatten() {
                let Some(record) = record(&entry.path().join("meta.json")) else { continue };
                let session = entry.file_name().to_string_lossy().into_owned();
                let epoch = record["epoch"].as_u64().expect("a record has its epoch");
                let holder = self.held.entry((session.clone(), epoch)).or_insert_with(|| worker.id.clone());
                assert_eq!(*holder, worker.id, "epoch {epoch} of {session} was placed twice");
                holders.entry(session).or_default().push((number, epoch));
                let sandbox = record_at(&entry.path().join("sandbox.json"), "uid_base");
                self.claims.extend(sandbox.and_then(|base| base.as_u64()));
            }
        }
        holders
    }

    /// Each session is ready, and on the worker and at the epoch that are told, and nowhere else. Returns the workers.
    async fn settled(&mut self, sessions: &[Session]) -> Vec<usize> {
        let give_up = Instant::now() + READY;
        loop {
            let holders = self.look_at_placements();
            let mut at = Vec::new();
            for session in sessions {
                let Ok(info) = session.info().await else { break };
                assert_ne!(info.state, SessionState::Ended, "cycle {}: a kill ended {info:?}", self.number);
                let Some([(worker, epoch)]) = holders.get(&info.id.to_string()).map(Vec::as_slice) else {
                    break;
                };
                let told = info.worker.as_ref() == Some(&self.cluster.workers[*worker].id);
                if info.state == SessionState::Ready && told && *epoch == info.epoch {
                    at.push((*worker, info.epoch));
                }
            }
            if at.len() == sessions.len() && holders.len() == sessions.len() {
                let moved = at.iter().filter(|(_, epoch)| *epoch > 1).count();
                // Its workers lived on, and would have had what was sent to them.
                let what = match self.coordinator_alone {
                    true => "placements made again: written down, and never sent",
                    false => "placements made again: their worker was killed",
                };
                *self.tally.entry(what.into()).or_default() += moved;
                return at.into_iter().map(|(worker, _)| worker).collect();
            }
            assert!(Instant::now() < give_up, "cycle {}: not settled: {holders:?}", self.number);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn cycle(&mut self, blow: Option<Blow>) {
        let step = blow.as_ref().map(|blow| blow.step);
        self.coordinator_alone = blow.as_ref().is_some_and(|blow| blow.victim == Victim::Coordinator);
        let mut blow = blow;
        let mut take = |cycles: &Self, now: Step| {
            (step == Some(now)).then(|| cycles.aim(blow.take().expect("each is struck once")))
        };
        let aimed = take(self, Step::Create);
        let sessions = self.create(aimed).await;
        let workers = self.settled(&sessions).await;
        let aimed = take(self, Step::Task);
        let failed = self.run_tasks(&sessions, &workers, aimed).await;
        self.look_at_placements();
        let aimed = take(self, Step::Removal);
        self.remove(&sessions, failed, aimed).await;
        self.cluster.workers_ready().await;
        self.number += 1;
    }

    /// INVARIANT 20.
    async fn flat(&self, level: &Counts) {
        let give_up = Instant::now() + READY;
        loop {
            let now = Counts::take(&self.cluster, &self.claims);
            let differences = now.differences(level);
            if differences.is_empty() {
                return;
            }
            let told = differences.join("\n");
            assert!(Instant::now() < give_up, "cycle {} left something behind:\n{told}", self.number);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn empty(&self) {
        until(READY, "the workers to hold nothing", async || {
            let held =
                |state: &std::path::Path| fs::read_dir(state.join("sessions")).map_or(0, Iterator::count);
            self.cluster.workers.iter().all(|worker| held(&worker.state) == 0).then_some(())
        })
        .await;
    }
}

/// Kills at the point. False: it did not come, and they were killed all the same. They are ours, and not waited for
/// yet, so the ids are theirs.
async fn kill_at(scene: Scene, point: Point, pids: Vec<i32>) -> bool {
    let strike = move || {
        let reached = scene.wait_for(point);
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        reached
    };
    tokio::task::spawn_blocking(strike).await.expect("a look at files")
}

/// A JSON file of a session. A file is replaced in one step: it is whole, or not there.
fn record(path: &std::path::Path) -> Option<serde_json::Value> {
    let text = fs::read(path).ok()?;
    Some(serde_json::from_slice(&text).expect("a record is whole"))
}

fn record_at(path: &std::path::Path, key: &str) -> Option<serde_json::Value> {
    record(path)?.get(key).cloned()
}

/// Those of a worker's sandboxes.
fn agents(state: &std::path::Path) -> Vec<i32> {
    let sessions = fs::read_dir(state.join("sessions")).into_iter().flatten().flatten();
    sessions
        .filter_map(|s| record_at(&s.path().join("sandbox.json"), "pid")?.as_i64())
        .map(|pid| pid as i32)
        .collect()
}

async fn crash(sandbox: &str, cycles: u64) {
    let (cycles, seed) = (cycles * chance::number("BERTH_TEST_SCALE", 1), chance::seed());
    println!("{cycles} crash cycles on {sandbox}, BERTH_CHAOS_SEED={seed}");
    let mut test = Cycles::start(sandbox, seed).await;
    for _ in 0..WARM_UP {
        test.cycle(None).await;
    }
    test.empty().await;
    let level = Counts::take(&test.cluster, &test.claims);
    println!("after the warm-up: {level}");
    let begun = Instant::now();
    for _ in 0..cycles {
        let blow = test.draw();
        test.cycle(Some(blow)).await;
        test.flat(&level).await;
    }
    println!(
        "after {cycles} cycles, {:.1} s: {}",
        begun.elapsed().as_secs_f64(),
        Counts::take(&test.cluster, &test.claims)
    );
    test.tally.iter().for_each(|(what, count)| println!("{count:6} {what}"));
    test.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_crash_cycles_leave_nothing() {
    if !skip::without_root("chaos native_crash_cycles_leave_nothing") {
        crash("native", 40).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_crash_cycles_leave_nothing() {
    if !skip::without_docker("chaos docker_crash_cycles_leave_nothing") {
        crash("docker", 10).await;
    }
}
