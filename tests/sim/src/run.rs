//! One run: the cluster is built, faults come and go, the model looks on, and in the end all must be well.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_coordinator::{
    Storage,
    audit::Audit,
    auth::Credentials,
    checkpoints::{Blobs, Catalog},
};
use berth_proto::{SessionId, world};
use turmoil::{Builder, Sim};

use crate::{
    client::Script,
    faults::{CLIENTS, Entry, Fault, WORKERS, schedule},
    hosts::{Place, client_name, run_coordinator, sandbox_name, worker_name},
    model::Model,
    store::SimStore,
};

/// A run that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(600);
/// Time to let go of all sandboxes once no session is left.
const CLEARING: Duration = Duration::from_secs(60);
/// Ticks between two looks at the sandboxes.
const LOOK_EVERY: u64 = 2;
const COORDINATOR_HOST: &str = "coordinator";

/// What came of a seed.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    /// Of the trace: the same for the same run.
    pub hash: u64,
    pub events: u64,
    /// Simulated.
    pub took: Duration,
    pub faults: usize,
    pub counts: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
    /// The end of the trace.
    pub tail: String,
}

/// Runs a seed to its end. Once in a process: see the program.
pub fn run(seed: u64, verbose: bool) -> Report {
    run_with(seed, schedule(seed), verbose)
}

struct Cluster {
    sim: Sim<'static>,
    model: Arc<Model>,
    store: Arc<SimStore>,
    places: Vec<Place>,
    /// Faults that are in force, with their ends.
    active: Vec<(Duration, Fault)>,
}

fn run_with(seed: u64, faults: Vec<Entry>, verbose: bool) -> Report {
    world::seed(seed);
    let root = tempfile::Builder::new().prefix("b").tempdir().expect("a temporary directory");
    let model = Arc::new(Model::new(verbose));
    let mut cluster = build(seed, root.path(), &model);
    let count = faults.len();
    if let Err(error) = cluster.play(faults) {
        model.violated(format!("a host failed: {error}"));
    }
    let took = cluster.sim.elapsed();
    drop(cluster);
    Report {
        seed,
        hash: model.hash(),
        events: model.events(),
        took,
        faults: count,
        counts: model.counts(),
        violations: model.violations(),
        tail: model.tail(),
    }
}

fn build(seed: u64, root: &std::path::Path, model: &Arc<Model>) -> Cluster {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(10))
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(30))
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let state_dir = root.join("coordinator");
    std::fs::create_dir_all(&state_dir).expect("a directory");
    let credentials = Credentials::load_or_make(&state_dir).expect("credentials");
    let store = Arc::new(SimStore::new(model.clone()));
    let storage = Storage {
        store: store.clone(),
        catalog: Arc::new(catalog()),
        blobs: Arc::new(Blobs::in_memory()),
        audit: Audit::nowhere(),
    };
    sim.host(COORDINATOR_HOST, move || run_coordinator(state_dir.clone(), storage.clone()));
    let places: Vec<Place> = (0..WORKERS).map(|n| Place::new(n, root, model.clone())).collect();
    for (n, place) in places.iter().enumerate() {
        let (sandboxes, worker, token) = (place.clone(), place.clone(), credentials.join_token.clone());
        sim.host(sandbox_name(n), move || sandboxes.clone().sandboxes());
        sim.host(worker_name(n), move || worker.clone().worker(token.clone()));
    }
    for n in 0..CLIENTS {
        let script = Script { n, seed, token: credentials.admin_token.clone(), model: model.clone() };
        sim.client(client_name(n), script.run());
    }
    Cluster { sim, model: model.clone(), store, places, active: Vec::new() }
}

/// In memory, and outlives the coordinators.
fn catalog() -> Catalog {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(Catalog::open(None)).expect("a catalog in memory")
}

impl Cluster {
    fn play(&mut self, faults: Vec<Entry>) -> turmoil::Result {
        let mut coming = faults.into_iter().peekable();
        let mut ticks = 0u64;
        loop {
            let clients_done = self.sim.step()?;
            let now = self.sim.elapsed();
            self.model.at(now);
            while let Some(entry) = coming.next_if(|entry| entry.at <= now) {
                self.begin(entry);
            }
            for at in (0..self.active.len()).rev() {
                if self.active[at].0 <= now {
                    let (_, fault) = self.active.remove(at);
                    self.end(fault);
                }
            }
            ticks += 1;
            if ticks.is_multiple_of(LOOK_EVERY) {
                self.look();
            }
            if clients_done {
                break;
            }
        }
        self.clear()
    }

    /// All sessions have ended: so must their sandboxes.
    fn clear(&mut self) -> turmoil::Result {
        for (_, fault) in std::mem::take(&mut self.active) {
            self.end(fault);
        }
        let until = self.sim.elapsed() + CLEARING;
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            if self.sim.elapsed() > until {
                self.model.violated(format!("sandboxes are left: {left:?}"));
                return Ok(());
            }
            self.sim.step()?;
            self.model.at(self.sim.elapsed());
            self.look();
        }
    }

    /// Sandboxes of sessions, and no canaries.
    fn left(&self) -> Vec<String> {
        let all = self.places.iter().flat_map(|place| place.machine().fake.sandboxes());
        all.filter(|id| id.parse::<SessionId>().is_ok_and(|id| self.model.knows(id))).collect()
    }

    fn look(&self) {
        let machines: Vec<_> = self.places.iter().map(|place| place.machine().fake.observe()).collect();
        self.model.observed(&machines);
    }

    fn begin(&mut self, entry: Entry) {
        self.model.note(&format!("fault: {:?} for {:?}", entry.fault, entry.lasts));
        match entry.fault {
            Fault::CoordinatorDies => self.sim.crash(COORDINATOR_HOST),
            Fault::StoreFails => self.store.fail(true),
            Fault::WorkerDies(n) => {
                self.model.reach(n, true);
                self.sim.crash(worker_name(n));
            }
            Fault::MachineLost(n) => {
                self.model.reach(n, true);
                self.model.lost(n);
                self.sim.crash(worker_name(n));
                self.places[n].lose();
                self.sim.crash(sandbox_name(n));
            }
            Fault::WorkerHeld(n) => {
                self.model.reach(n, true);
                self.sim.hold(COORDINATOR_HOST, worker_name(n));
            }
            Fault::WorkerCut(n) => {
                self.model.reach(n, true);
                self.sim.partition(COORDINATOR_HOST, worker_name(n));
            }
            Fault::WorkerMute(n) => {
                self.model.reach(n, true);
                self.sim.partition_oneway(worker_name(n), COORDINATOR_HOST);
            }
            Fault::WorkerDeaf(n) => {
                self.model.reach(n, true);
                self.sim.partition_oneway(COORDINATOR_HOST, worker_name(n));
            }
            Fault::ClientHeld(n) => self.sim.hold(COORDINATOR_HOST, client_name(n)),
            Fault::ClientCut(n) => self.sim.partition(COORDINATOR_HOST, client_name(n)),
        }
        self.active.push((entry.at + entry.lasts, entry.fault));
    }

    fn end(&mut self, fault: Fault) {
        self.model.note(&format!("over: {fault:?}"));
        match fault {
            Fault::CoordinatorDies => self.sim.bounce(COORDINATOR_HOST),
            Fault::StoreFails => self.store.fail(false),
            Fault::WorkerDies(n) => {
                self.sim.bounce(worker_name(n));
                self.model.reach(n, false);
            }
            Fault::MachineLost(n) => {
                self.sim.bounce(sandbox_name(n));
                self.sim.bounce(worker_name(n));
                self.model.reach(n, false);
            }
            Fault::WorkerHeld(n) => {
                self.sim.release(COORDINATOR_HOST, worker_name(n));
                self.model.reach(n, false);
            }
            Fault::WorkerCut(n) | Fault::WorkerMute(n) | Fault::WorkerDeaf(n) => {
                self.sim.repair(COORDINATOR_HOST, worker_name(n));
                self.model.reach(n, false);
            }
            Fault::ClientHeld(n) => self.sim.release(COORDINATOR_HOST, client_name(n)),
            Fault::ClientCut(n) => self.sim.repair(COORDINATOR_HOST, client_name(n)),
        }
    }
}
