use std::collections::{BTreeMap, BTreeSet};

use berth_proto::{
    WorkerId,
    domain::{Capacity, Labels, Limits},
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// Owned, so that proptest can shrink it.
#[derive(Clone, Debug)]
struct Machine {
    id: WorkerId,
    open: bool,
    capacity: Capacity,
    reserved: Capacity,
    labels: Labels,
    templates: BTreeSet<String>,
    problems: BTreeMap<String, String>,
}

impl Machine {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            id: &self.id,
            standing: if self.open { Standing::Open } else { Standing::Cordoned },
            capacity: self.capacity,
            reserved: self.reserved,
            labels: &self.labels,
            templates: &self.templates,
            problems: &self.problems,
            full_egress: false,
            warmth: 0,
        }
    }
}

fn capacity(cpu: u32, memory_mib: u64, sessions: u32) -> Capacity {
    Capacity { cpu_millis: cpu, memory_bytes: memory_mib << 20, disk_bytes: 1 << 40, max_sessions: sessions }
}

fn machine(number: usize) -> impl Strategy<Value = Machine> {
    (
        any::<bool>(),
        0u32..8000,
        0u64..4096,
        0u32..6,
        0u32..8000,
        0u64..4096,
        0u32..6,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(move |(open, cpu, memory, sessions, used_cpu, used_memory, used, labelled, serves)| {
            Machine {
                id: format!("w{number}").parse().unwrap(),
                open,
                capacity: capacity(cpu, memory, sessions),
                reserved: Capacity { disk_bytes: 0, ..capacity(used_cpu, used_memory, used) },
                labels: if labelled { Labels::from([("zone".into(), "a".into())]) } else { Labels::new() },
                templates: if serves { BTreeSet::from(["base".to_owned()]) } else { BTreeSet::new() },
                problems: BTreeMap::new(),
            }
        })
}

fn machines() -> impl Strategy<Value = Vec<Machine>> {
    (0usize..40).prop_flat_map(|count| (0..count).map(machine).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(crate::test_scale::proptests(512))]

    /// The chosen worker may take it, and only if nobody may is nobody chosen.
    #[test]
    fn the_choice_is_sound_and_complete(
        machines in machines(), cpu in 10u32..4000, memory in 16u64..2048, zone in any::<bool>(), seed in any::<u64>(),
    ) {
        let selector = if zone { Labels::from([("zone".into(), "a".into())]) } else { Labels::new() };
        let limits = Limits { cpu_millis: cpu, memory_bytes: memory << 20, disk_bytes: 1 << 30, pids: 64 };
        let need = Need { limits, template: "base", selector: &selector, full_egress: false };
        let candidates: Vec<_> = machines.iter().map(Machine::candidate).collect();
        let chosen = choose(&need, &candidates, &mut StdRng::seed_from_u64(seed));
        match chosen {
            Some(id) => {
                let chosen = candidates.iter().find(|c| c.id == id).unwrap();
                prop_assert!(may_take(&need, chosen));
                prop_assert!(fits(&free(&chosen.capacity, &chosen.reserved), &share(&limits)));
            }
            None => {
                prop_assert!(candidates.iter().all(|c| !may_take(&need, c)));
                let words = explain(&need, &candidates);
                if (1..=6).contains(&candidates.len()) {
                    for candidate in &candidates {
                        prop_assert!(words.contains(candidate.id.as_str()), "{words}");
                    }
                }
                prop_assert!(!words.contains("has room by now") && !words.contains("free by now"), "{words}");
            }
        }
        // The same seed makes the same choice.
        prop_assert_eq!(choose(&need, &candidates, &mut StdRng::seed_from_u64(seed)), chosen);
    }

    /// A session that is called too big fits nowhere, however empty; one that isn't fits somewhere.
    #[test]
    fn too_high_means_never(machines in machines(), cpu in 10u32..9000, memory in 16u64..5000) {
        let selector = Labels::new();
        let limits = Limits { cpu_millis: cpu, memory_bytes: memory << 20, disk_bytes: 1 << 30, pids: 64 };
        let need = Need { limits, template: "base", selector: &selector, full_egress: false };
        let candidates: Vec<_> = machines.iter().map(Machine::candidate).collect();
        let somewhere = candidates.iter().any(|c| fits(&c.capacity, &share(&limits)));
        prop_assert_eq!(too_high(&need, &candidates).is_none(), somewhere || candidates.is_empty());
    }
}

const LIMITS: Limits = Limits { cpu_millis: 1000, memory_bytes: 512 << 20, disk_bytes: 1 << 30, pids: 64 };

fn worker(name: &str, total: Capacity, reserved: Capacity) -> Machine {
    Machine {
        id: name.parse().unwrap(),
        open: true,
        capacity: total,
        reserved,
        labels: Labels::new(),
        templates: BTreeSet::from(["base".to_owned()]),
        problems: BTreeMap::new(),
    }
}

#[test]
fn equal_workers_take_turns() {
    let selector = Labels::new();
    let need = Need { limits: LIMITS, template: "base", selector: &selector, full_egress: false };
    let mut workers = [
        worker("a", capacity(64_000, 64_000, 5), Capacity::default()),
        worker("b", capacity(64_000, 64_000, 5), Capacity::default()),
    ];
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..6 {
        let chosen = {
            let candidates: Vec<_> = workers.iter().map(Machine::candidate).collect();
            choose(&need, &candidates, &mut rng).unwrap().clone()
        };
        let taken = share(&LIMITS);
        let reserved = &mut workers.iter_mut().find(|w| w.id == chosen).unwrap().reserved;
        reserved.cpu_millis += taken.cpu_millis;
        reserved.memory_bytes += taken.memory_bytes;
        reserved.disk_bytes += taken.disk_bytes;
        reserved.max_sessions += 1;
    }
    assert_eq!(workers.map(|w| w.reserved.max_sessions), [3, 3]);
}

#[test]
fn the_explanation_names_what_was_missing() {
    let selector = Labels::new();
    let need = Need { limits: LIMITS, template: "base", selector: &selector, full_egress: false };
    let full = worker("worker-1", capacity(8000, 8000, 5), capacity(0, 0, 5));
    let cordoned =
        Machine { open: false, ..worker("worker-2", capacity(8000, 8000, 5), Capacity::default()) };
    let words = explain(&need, &[full.candidate(), cordoned.candidate()]);
    assert_eq!(words, "2 workers: worker-1 has no free place (5 of 5 sessions), worker-2 is cordoned");
    assert_eq!(explain(&need, &[]), "no worker is attached");
    let small = worker("worker-3", capacity(500, 8000, 5), Capacity::default());
    assert_eq!(
        explain(&need, &[small.candidate()]),
        "1 worker: worker-3 has 0.5 cores of cpu free (0.5 cores in all), 1 core needed"
    );
    assert_eq!(
        too_high(&need, &[small.candidate()]).unwrap(),
        "cpu: 1 core asked for, but the largest worker, worker-3, has 0.5 cores"
    );
}
