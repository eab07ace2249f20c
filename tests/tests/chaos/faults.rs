//! What goes wrong, in an order that a seed decides.

use std::{collections::BTreeMap, fmt, time::Duration};

use berth_tests::Cluster;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

const KINDS: [&str; 6] = [
    "coordinator killed",
    "coordinator stopped and started",
    "worker killed",
    "worker frozen",
    "worker cut off",
    "connections cut",
];

/// A run of faults.
pub struct Faults {
    state: u64,
    counts: BTreeMap<&'static str, usize>,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { state: seed | 1, counts: BTreeMap::new() }
    }

    pub fn total(&self) -> usize {
        self.counts.values().sum()
    }

    /// xorshift: the same seed draws the same faults on every machine.
    fn draw(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % below
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.draw(to - from))
    }

    /// One fault after the other until the time is over. All is whole again when this returns.
    pub async fn rage(&mut self, cluster: &mut Cluster, time: Duration) {
        let end = Instant::now() + time;
        // Let the clients begin.
        sleep(Duration::from_secs(1)).await;
        while Instant::now() < end {
            let kind = KINDS[self.draw(KINDS.len() as u64) as usize];
            *self.counts.entry(kind).or_default() += 1;
            let worker = self.draw(cluster.workers.len() as u64) as usize;
            let span = self.millis(100, 3500);
            match kind {
                "coordinator killed" => cluster.restart_coordinator().await,
                "coordinator stopped and started" => {
                    cluster.coordinator.terminate().await;
                    cluster.restart_coordinator().await;
                }
                "worker killed" => {
                    cluster.workers[worker].process.kill().await;
                    sleep(span / 2).await;
                    cluster.restart_worker(worker);
                }
                "worker frozen" => {
                    cluster.workers[worker].process.signal(Signal::SIGSTOP);
                    sleep(span).await;
                    cluster.workers[worker].process.signal(Signal::SIGCONT);
                }
                "worker cut off" => {
                    cluster.proxies[worker].hold(true);
                    sleep(span).await;
                    cluster.proxies[worker].hold(false);
                }
                _ => cluster.proxies[worker].cut(),
            }
            sleep(self.millis(100, 1500)).await;
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults: {}", self.total())?;
        self.counts.iter().try_for_each(|(kind, count)| write!(f, "\n  {kind}: {count}"))
    }
}
