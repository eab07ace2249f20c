//! What goes wrong, and when: drawn from the seed before the run.

use std::time::Duration;

use crate::draw::Draw;

/// Workers of the simulated cluster.
pub const WORKERS: usize = 3;
/// Clients.
pub const CLIENTS: usize = 3;
/// Faults begin, and clients work, for so long.
pub const ACTIVE: Duration = Duration::from_secs(25);

/// One thing that goes wrong, for as long as its entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The coordinator's process ends without a word; it is started again afterwards.
    CoordinatorDies,
    /// A worker's process does; its sandboxes live on.
    WorkerDies(usize),
    /// A machine is gone with its disk and its sandboxes; afterwards another with an empty disk has its name.
    MachineLost(usize),
    /// What goes between coordinator and worker waits, and comes afterwards.
    WorkerHeld(usize),
    /// It is lost: connections that had something under way are never whole again.
    WorkerCut(usize),
    /// Only what the worker says is lost.
    WorkerMute(usize),
    /// Only what it is told is lost.
    WorkerDeaf(usize),
    ClientHeld(usize),
    ClientCut(usize),
    /// The coordinator's disk takes nothing.
    StoreFails,
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

/// The faults of a seed, in their order. Never two at once on one host: each would end the other's.
pub fn schedule(seed: u64) -> Vec<Entry> {
    let mut draw = Draw::new(seed, 1);
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = draw.millis(500, 3000);
    while at < ACTIVE {
        let fault = fault(&mut draw);
        let lasts = lasts(&mut draw, fault);
        let place = host(fault);
        let free = |entry: &Entry| host(entry.fault) != place || entry.at + entry.lasts < at;
        if entries.iter().all(free) {
            entries.push(Entry { at, lasts, fault });
        }
        at += draw.millis(100, 4000);
    }
    entries
}

fn fault(draw: &mut Draw) -> Fault {
    let worker = draw.below(WORKERS as u64) as usize;
    let client = draw.below(CLIENTS as u64) as usize;
    match draw.below(100) {
        0..18 => Fault::CoordinatorDies,
        18..36 => Fault::WorkerDies(worker),
        36..42 => Fault::MachineLost(worker),
        42..56 => Fault::WorkerHeld(worker),
        56..66 => Fault::WorkerCut(worker),
        66..72 => Fault::WorkerMute(worker),
        72..78 => Fault::WorkerDeaf(worker),
        78..86 => Fault::ClientHeld(client),
        86..93 => Fault::ClientCut(client),
        _ => Fault::StoreFails,
    }
}

/// Mostly within a lease, sometimes past it, rarely past every grace.
fn lasts(draw: &mut Draw, fault: Fault) -> Duration {
    match (draw.below(100), fault) {
        (_, Fault::StoreFails) => draw.millis(50, 2000),
        (0..60, _) => draw.millis(20, 1500),
        (60..92, _) => draw.millis(1500, 9000),
        (_, Fault::CoordinatorDies) => draw.millis(1500, 9000),
        _ => draw.millis(25_000, 40_000),
    }
}

/// What a fault is done to.
fn host(fault: Fault) -> (u8, usize) {
    match fault {
        Fault::CoordinatorDies => (0, 0),
        Fault::StoreFails => (1, 0),
        Fault::WorkerDies(n)
        | Fault::MachineLost(n)
        | Fault::WorkerHeld(n)
        | Fault::WorkerCut(n)
        | Fault::WorkerMute(n)
        | Fault::WorkerDeaf(n) => (2, n),
        Fault::ClientHeld(n) | Fault::ClientCut(n) => (3, n),
    }
}
