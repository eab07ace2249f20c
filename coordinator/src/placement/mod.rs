//! Which worker a session goes to. Pure: no clock, no runtime, and chance is an argument.
//!
//! Two steps: *filter* (may this worker take it at all?) and *score* (which of those is
//! best?). The score is a struct that derives `Ord`, so the order of its fields is the
//! policy, and the policy can be read in one place.
//!
//! Above [`SAMPLE_ABOVE`] workers that may, two are drawn at random and the better one
//! wins: nearly as good as the best of all, and a burst of sessions decided on the same
//! figures doesn't land on one worker.
//!
//! When nobody fits, [`explain`] says what was missing, worker by worker, in words for the
//! person who waits. Rejected: an opaque "no capacity". Half of all such calls are a wrong
//! label or a cordon that someone forgot.

mod explain;
#[cfg(test)]
mod proptests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use berth_proto::{
    WorkerId,
    domain::{Capacity, Labels, Limits},
};
use rand::{Rng, RngExt};

pub use explain::{explain, too_high, unservable};

/// With more workers than this that may take a session, two are drawn and compared.
pub const SAMPLE_ABOVE: usize = 16;

/// What a session asks of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    pub limits: Limits,
    pub template: &'a str,
    /// Labels that the worker must have, with these values.
    pub selector: &'a Labels,
    /// It is to reach any public address, which is each worker's operator's to give.
    pub full_egress: bool,
}

/// Whether a worker takes sessions now, apart from its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    Open,
    /// Its link is gone, or its lease is near its end or over.
    Unreachable,
    Cordoned,
    Draining,
    /// It says that it isn't ready, and why.
    NotReady(&'a str),
    /// It refused this very session a moment ago.
    Refused,
}

/// A worker, as placement sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub id: &'a WorkerId,
    pub standing: Standing<'a>,
    pub capacity: Capacity,
    /// Promised to sessions that it holds; `max_sessions` is their number.
    pub reserved: Capacity,
    pub labels: &'a Labels,
    pub templates: &'a BTreeSet<String>,
    /// Templates that it has said it can't serve, and why.
    pub problems: &'a BTreeMap<String, String>,
    pub full_egress: bool,
    /// Sessions of the needed template that it holds: their root is in its page cache.
    pub warmth: u32,
}

/// What a session takes from a worker.
pub fn share(limits: &Limits) -> Capacity {
    Capacity {
        cpu_millis: limits.cpu_millis,
        memory_bytes: limits.memory_bytes,
        disk_bytes: limits.disk_bytes,
        max_sessions: 1,
    }
}

/// What is left; never below zero (a worker may come back smaller than what it holds).
pub fn free(capacity: &Capacity, reserved: &Capacity) -> Capacity {
    Capacity {
        cpu_millis: capacity.cpu_millis.saturating_sub(reserved.cpu_millis),
        memory_bytes: capacity.memory_bytes.saturating_sub(reserved.memory_bytes),
        disk_bytes: capacity.disk_bytes.saturating_sub(reserved.disk_bytes),
        max_sessions: capacity.max_sessions.saturating_sub(reserved.max_sessions),
    }
}

/// Whether `need` fits into `room` in every dimension.
pub fn fits(room: &Capacity, need: &Capacity) -> bool {
    need.cpu_millis <= room.cpu_millis
        && need.memory_bytes <= room.memory_bytes
        && need.disk_bytes <= room.disk_bytes
        && need.max_sessions <= room.max_sessions
}

/// The policy, the most important first. The greatest wins.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Score {
    /// What stays free of the scarcer of CPU and memory, in tenths. Tenths, so that a hair's
    /// breadth of memory doesn't outweigh everything below.
    free_tenths: u64,
    fewer_sessions: Reverse<u32>,
    warmth: u32,
}

/// Picks a worker, or `None` when none may take it.
pub fn choose<'a>(need: &Need<'_>, candidates: &[Candidate<'a>], rng: &mut impl Rng) -> Option<&'a WorkerId> {
    let able: Vec<&Candidate<'a>> = candidates.iter().filter(|c| may_take(need, c)).collect();
    let drawn: Vec<&Candidate<'a>> = if able.len() > SAMPLE_ABOVE {
        let first = rng.random_range(0..able.len());
        // Drawn from the others, so that it is never the same twice.
        let second = (first + rng.random_range(1..able.len())) % able.len();
        vec![able[first], able[second]]
    } else {
        able
    };
    let best = drawn.iter().map(|c| score(need, c)).max()?;
    let ties: Vec<_> = drawn.into_iter().filter(|c| score(need, c) == best).collect();
    Some(ties[rng.random_range(0..ties.len())].id)
}

/// Whether a worker may take the session now.
pub fn may_take(need: &Need<'_>, candidate: &Candidate<'_>) -> bool {
    candidate.standing == Standing::Open
        && selected(need.selector, candidate.labels)
        && candidate.templates.contains(need.template)
        && (candidate.full_egress || !need.full_egress)
        && fits(&free(&candidate.capacity, &candidate.reserved), &share(&need.limits))
}

/// Whether a worker has the labels that a session asks for.
pub fn selected(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn score(need: &Need<'_>, candidate: &Candidate<'_>) -> Score {
    let left = free(&candidate.capacity, &candidate.reserved);
    let tenths =
        |left: u64, taken: u64, total: u64| left.saturating_sub(taken).saturating_mul(10) / total.max(1);
    let cpu =
        tenths(left.cpu_millis.into(), need.limits.cpu_millis.into(), candidate.capacity.cpu_millis.into());
    // In MiB: a machine's memory in bytes times ten still fits, but only just.
    let memory = tenths(
        left.memory_bytes >> 20,
        need.limits.memory_bytes >> 20,
        candidate.capacity.memory_bytes >> 20,
    );
    Score {
        free_tenths: cpu.min(memory),
        fewer_sessions: Reverse(candidate.reserved.max_sessions),
        warmth: candidate.warmth,
    }
}
