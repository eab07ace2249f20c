//! The hosts of the simulated cluster: one coordinator; machines, each as a worker's process and, on a host of its own
//! that outlives it, its sandboxes.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_coordinator::{self as coordinator, Coordinator, Storage};
use berth_proto::{domain::BackendChoice, world};
use berth_worker::{self as worker, CapacityOverride, Worker, sandbox::fake::FakeBackend};
use tokio::runtime::Handle;

use crate::model::{LEASE, LOSS_GRACE, Model, PAUSED_TTL, PLACES};

pub const COORDINATOR: &str = "coordinator:50051";

pub fn worker_name(n: usize) -> String {
    format!("w{n}")
}

pub fn sandbox_name(n: usize) -> String {
    format!("s{n}")
}

pub fn client_name(n: usize) -> String {
    format!("c{n}")
}

/// What a machine is as long as it is not lost: its disk, and what runs on it.
#[derive(Clone)]
pub struct Machine {
    pub fake: FakeBackend,
    dir: PathBuf,
    /// The sandboxes' host has come up.
    up: Arc<AtomicBool>,
}

/// The place of a machine: one that is lost is followed by another.
#[derive(Clone)]
pub struct Place {
    n: usize,
    root: PathBuf,
    model: Arc<Model>,
    machine: Arc<Mutex<(u32, Machine)>>,
}

impl Place {
    pub fn new(n: usize, root: &Path, model: Arc<Model>) -> Self {
        let machine = machine(n, 0, root, &model);
        Self { n, root: root.to_owned(), model, machine: Arc::new(Mutex::new((0, machine))) }
    }

    pub fn machine(&self) -> Machine {
        self.machine.lock().expect("no panic under it").1.clone()
    }

    /// The machine that is here is gone. Another, with an empty disk, takes its place.
    pub fn lose(&self) {
        let mut place = self.machine.lock().expect("no panic under it");
        place.1.fake.lose_all();
        let generation = place.0 + 1;
        *place = (generation, machine(self.n, generation, &self.root, &self.model));
    }

    /// The host of the sandboxes: they live on its runtime.
    pub async fn sandboxes(self) -> turmoil::Result {
        let machine = self.machine();
        machine.fake.at_home(Handle::current());
        machine.up.store(true, Ordering::SeqCst);
        std::future::pending().await
    }

    /// The host of the worker's process.
    pub async fn worker(self, join_token: String) -> turmoil::Result {
        let machine = self.machine();
        while !machine.up.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let config = worker::Config {
            worker_id: Some(worker_name(self.n).parse()?),
            max_sessions: PLACES,
            sandbox: BackendChoice::Only(berth_proto::domain::Backend::Fake),
            capacity: CapacityOverride {
                cpu_millis: Some(100_000),
                memory_bytes: Some(1 << 40),
                disk_bytes: Some(1 << 40),
            },
            disk_margin_bytes: 0,
            canary_interval: Duration::from_secs(30),
            end_grace: Duration::from_millis(200),
            ..worker::Config::new(COORDINATOR, join_token, machine.dir.clone())
        };
        let running = Worker::start_with(config, vec![Arc::new(machine.fake.clone())]).await?;
        let why = running.wait().await;
        self.model.violated(format!("worker {} gave up: {why}", self.n));
        std::future::pending().await
    }
}

fn machine(n: usize, generation: u32, root: &Path, model: &Arc<Model>) -> Machine {
    let fake = FakeBackend::new(Default::default());
    let model = model.clone();
    fake.witness(Arc::new(move |session, epoch, command| model.started(n, session, epoch, command)));
    Machine { fake, dir: root.join(format!("w{n}-{generation}")), up: Arc::default() }
}

/// The host of the coordinator.
pub async fn run_coordinator(state_dir: PathBuf, storage: Storage) -> turmoil::Result {
    let config = coordinator::Config {
        listen: ([0, 0, 0, 0], 50051).into(),
        insecure_listen: true,
        state_dir,
        lease: LEASE,
        worker_loss_grace: LOSS_GRACE,
        restore_grace: Duration::from_secs(2),
        start_timeout: Duration::from_secs(15),
        paused_ttl: Some(PAUSED_TTL),
        ..coordinator::Config::default()
    };
    // Whatever starts it tries again, as systemd does: its disk may take nothing just now.
    let mut running = loop {
        match Coordinator::start_over(config.clone(), storage.clone()).await {
            Ok(running) => break running,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    running.wait().await;
    Err(format!("the coordinator ended by itself at {:?}", world::boot_now()).into())
}
