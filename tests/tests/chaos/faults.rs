//! What goes wrong, in an order that a seed decides.

use std::{collections::BTreeMap, fmt, time::Duration};

use berth_tests::{Cluster, Way};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;

/// Each comes once, in an order of its own, before one comes again.
const KINDS: [Kind; 12] = [
    Kind::CoordinatorKilled,
    Kind::CoordinatorRestarted,
    Kind::WorkerKilled,
    Kind::WorkerFrozen,
    Kind::CutOff,
    Kind::ConnectionsCut,
    Kind::MachineLost,
    Kind::FrozenForLong,
    Kind::DeadForLong,
    Kind::CutOffForLong,
    Kind::Unheard,
    Kind::Deaf,
];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    CoordinatorKilled,
    CoordinatorRestarted,
    WorkerKilled,
    WorkerFrozen,
    CutOff,
    ConnectionsCut,
    MachineLost,
    FrozenForLong,
    DeadForLong,
    CutOffForLong,
    Unheard,
    Deaf,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::CoordinatorKilled => "coordinator killed",
            Self::CoordinatorRestarted => "coordinator stopped and started",
            Self::WorkerKilled => "worker killed",
            Self::WorkerFrozen => "worker frozen",
            Self::CutOff => "worker cut off",
            Self::ConnectionsCut => "connections cut",
            Self::MachineLost => "machine lost for good",
            Self::FrozenForLong => "worker frozen beyond lease and grace",
            Self::DeadForLong => "worker dead beyond lease and grace",
            Self::CutOffForLong => "worker cut off beyond lease and grace",
            Self::Unheard => "worker cut off one way: it is not heard",
            Self::Deaf => "worker cut off one way: it hears nothing",
        }
    }
}

/// A run of faults.
pub struct Faults {
    chance: Chance,
    counts: BTreeMap<Kind, usize>,
    /// Which comes next is the last.
    coming: Vec<Kind>,
    /// What a worker has to be away for to lose what may move.
    long: Duration,
    /// Workers from this one on may be lost for good; those before hold sessions that stay.
    may_be_lost: usize,
    machines: usize,
    moving: (String, String),
}

impl Faults {
    /// `moving` is the label of the workers that may be lost for good, of which the first is `may_be_lost`.
    pub fn new(seed: u64, long: Duration, may_be_lost: usize, moving: (&str, &str)) -> Self {
        Self {
            chance: Chance::new(seed),
            counts: BTreeMap::new(),
            coming: Vec::new(),
            long,
            may_be_lost,
            machines: 0,
            moving: (moving.0.to_owned(), moving.1.to_owned()),
        }
    }

    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    fn next(&mut self) -> Kind {
        if self.coming.is_empty() {
            self.coming = KINDS.to_vec();
            for last in (1..self.coming.len()).rev() {
                let other = self.chance.index(last + 1);
                self.coming.swap(last, other);
            }
        }
        self.coming.pop().expect("there are kinds")
    }

    /// One fault after the other until the time is over. All is whole again when this returns.
    pub async fn rage(&mut self, cluster: &mut Cluster, time: Duration) {
        let end = Instant::now() + time;
        // Let the clients begin.
        sleep(Duration::from_secs(1)).await;
        while Instant::now() < end {
            let kind = self.next();
            *self.counts.entry(kind).or_default() += 1;
            self.strike(cluster, kind).await;
            sleep(self.chance.millis(100, 1500)).await;
        }
    }

    async fn strike(&mut self, cluster: &mut Cluster, kind: Kind) {
        let worker = self.chance.index(cluster.workers.len());
        // What only those notice that may move strikes where they are.
        let moving = self.may_be_lost + self.chance.index(cluster.workers.len() - self.may_be_lost);
        let short = self.chance.millis(100, 3500);
        let long = self.long + self.chance.millis(0, 3000);
        match kind {
            Kind::CoordinatorKilled => cluster.restart_coordinator().await,
            Kind::CoordinatorRestarted => {
                cluster.coordinator.terminate().await;
                cluster.restart_coordinator().await;
            }
            Kind::WorkerKilled => dead(cluster, worker, short / 2).await,
            Kind::DeadForLong => dead(cluster, moving, long).await,
            Kind::WorkerFrozen => frozen(cluster, worker, short).await,
            Kind::FrozenForLong => frozen(cluster, moving, long).await,
            Kind::CutOff => cut_off(cluster, worker, &[Way::Up, Way::Down], short).await,
            Kind::CutOffForLong => cut_off(cluster, moving, &[Way::Up, Way::Down], long).await,
            Kind::Unheard => cut_off(cluster, moving, &[Way::Up], long).await,
            Kind::Deaf => cut_off(cluster, moving, &[Way::Down], long).await,
            Kind::ConnectionsCut => cluster.proxies[worker].cut(),
            Kind::MachineLost => {
                cluster.lose_machine(moving).await;
                self.machines += 1;
                let label = format!("{}={}", self.moving.0, self.moving.1);
                let id = format!("machine-{}", self.machines);
                cluster.join(&id, &[("BERTH_LABELS", label.as_str())]).await;
            }
        }
    }
}

async fn dead(cluster: &mut Cluster, worker: usize, span: Duration) {
    cluster.workers[worker].process.kill().await;
    sleep(span).await;
    cluster.restart_worker(worker);
}

async fn frozen(cluster: &mut Cluster, worker: usize, span: Duration) {
    cluster.workers[worker].process.signal(Signal::SIGSTOP);
    sleep(span).await;
    cluster.workers[worker].process.signal(Signal::SIGCONT);
}

async fn cut_off(cluster: &mut Cluster, worker: usize, ways: &[Way], span: Duration) {
    ways.iter().for_each(|way| cluster.proxies[worker].hold_one_way(*way, true));
    sleep(span).await;
    ways.iter().for_each(|way| cluster.proxies[worker].hold_one_way(*way, false));
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults: {}", self.total())?;
        self.counts.iter().try_for_each(|(kind, count)| write!(f, "\n  {}: {count}", kind.name()))
    }
}
