//! The order in which those who wait are tried, and what is fair between tenants.
//!
//! **Priority first.** Among those of one priority the **tenant that has the least of the fleet in use** goes next, and
//! of that tenant whoever has waited longest. What a tenant has in use is one figure, its *dominant share*: of CPU,
//! memory, disk and places it is the greatest part that its placed sessions have of all workers together. So one that
//! takes much memory and one that takes many places are compared by what each is greedy of.
//!
//! Of equals, whoever got a place longest ago goes next. Without that a fleet of few places would go by age alone, since
//! all have nothing in use whenever a place is given out, and a thousand that wait would be served one after the other.
//!
//! The shares are looked at anew after each placement, so a pass with many free places gives them out in turn. Nothing
//! else is remembered of the past: who had much yesterday and has nothing now is like who never had anything. (Rejected:
//! a deficit counter for each tenant. It has to forget at some rate, which is one more figure that nobody knows.)
//!
//! What it gives: a place never goes to a tenant that has more in use, while a session of one with less waits at the same
//! priority and would fit. A thousand that wait delay nobody else's first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use berth_proto::{
    SessionId,
    domain::{Capacity, SessionState},
};

use super::model::{Session, Worker};
use crate::{placement::share, tenant::Tenant};

/// Who waits: by priority, by tenant, and of those the oldest first (ids grow with time).
#[derive(Default, Debug)]
pub(super) struct Queue {
    lines: BTreeMap<Reverse<i32>, BTreeMap<Tenant, BTreeSet<SessionId>>>,
    by_tenant: BTreeMap<Tenant, usize>,
    count: usize,
}

impl Queue {
    pub fn insert(&mut self, priority: i32, tenant: &Tenant, id: SessionId) {
        let line = self.lines.entry(Reverse(priority)).or_default();
        if line.entry(tenant.clone()).or_default().insert(id) {
            *self.by_tenant.entry(tenant.clone()).or_default() += 1;
            self.count += 1;
        }
    }

    pub fn remove(&mut self, priority: i32, tenant: &Tenant, id: SessionId) {
        let Some(line) = self.lines.get_mut(&Reverse(priority)) else { return };
        let Some(ids) = line.get_mut(tenant) else { return };
        if !ids.remove(&id) {
            return;
        }
        if ids.is_empty() {
            line.remove(tenant);
        }
        if line.is_empty() {
            self.lines.remove(&Reverse(priority));
        }
        self.count -= 1;
        match self.by_tenant.get_mut(tenant) {
            Some(1) | None => drop(self.by_tenant.remove(tenant)),
            Some(count) => *count -= 1,
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// How many of one tenant.
    pub fn of(&self, tenant: &Tenant) -> usize {
        self.by_tenant.get(tenant).copied().unwrap_or_default()
    }

    /// Whoever waits now, each to be tried once.
    pub fn pass(&self) -> Pass {
        let line = |line: &BTreeMap<Tenant, BTreeSet<SessionId>>| {
            line.iter().map(|(tenant, ids)| (tenant.clone(), ids.iter().copied().collect())).collect()
        };
        Pass { lines: self.lines.values().map(line).collect() }
    }

    #[cfg(test)]
    pub fn ids(&self) -> BTreeSet<SessionId> {
        let ids: BTreeSet<_> =
            self.lines.values().flat_map(|line| line.values().flatten()).copied().collect();
        assert_eq!(ids.len(), self.count, "the count is off");
        assert_eq!(self.by_tenant.values().sum::<usize>(), self.count, "a tenant's count is off");
        ids
    }
}

/// One pass through the queue.
pub(super) struct Pass {
    /// By priority, the highest first.
    lines: VecDeque<BTreeMap<Tenant, VecDeque<SessionId>>>,
}

impl Pass {
    /// The next to be tried. `standing` is asked anew each time: what was placed meanwhile counts.
    pub fn next(&mut self, standing: impl Fn(&Tenant) -> Turn) -> Option<SessionId> {
        while let Some(line) = self.lines.front_mut() {
            let first = |ids: &VecDeque<SessionId>| ids.front().copied();
            let next = line.iter().min_by_key(|(tenant, ids)| (standing(tenant), first(ids)));
            let Some(tenant) = next.map(|(tenant, _)| tenant.clone()) else {
                self.lines.pop_front();
                continue;
            };
            let ids = line.get_mut(&tenant)?;
            let id = ids.pop_front();
            if ids.is_empty() {
                line.remove(&tenant);
            }
            return id;
        }
        None
    }
}

/// Where a tenant stands; the least goes next. The order of the fields is the policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Turn {
    pub share: Share,
    /// Number of the placement that it got last. 0: none as long as this coordinator runs.
    pub last: u64,
}

/// A part of the fleet, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Share(pub u64);

/// Of each resource so much. Wider than a worker's, since it is of all of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Sum {
    pub cpu_millis: u128,
    pub memory_bytes: u128,
    pub disk_bytes: u128,
    pub sessions: u128,
}

impl Sum {
    pub fn add(&mut self, part: &Capacity) {
        self.cpu_millis += u128::from(part.cpu_millis);
        self.memory_bytes += u128::from(part.memory_bytes);
        self.disk_bytes += u128::from(part.disk_bytes);
        self.sessions += u128::from(part.max_sessions);
    }

    pub fn subtract(&mut self, part: &Capacity) {
        self.cpu_millis -= u128::from(part.cpu_millis);
        self.memory_bytes -= u128::from(part.memory_bytes);
        self.disk_bytes -= u128::from(part.disk_bytes);
        self.sessions -= u128::from(part.max_sessions);
    }

    /// The greatest part that this is of `all`. More than the whole where workers are gone for a while.
    pub fn dominant(&self, all: &Sum) -> Share {
        let part = |used: u128, of: u128| used * 1_000_000 / of.max(1);
        let parts = [
            part(self.cpu_millis, all.cpu_millis),
            part(self.memory_bytes, all.memory_bytes),
            part(self.disk_bytes, all.disk_bytes),
            part(self.sessions, all.sessions),
        ];
        Share(parts.into_iter().max().map_or(0, |part| u64::try_from(part).unwrap_or(u64::MAX)))
    }
}

/// Those that wait, in the order in which they would be tried if places came one by one. Near enough for people: whose
/// turn it is among equals is known to the fleet alone.
pub fn order<'a>(
    sessions: impl Iterator<Item = &'a Session>,
    workers: impl Iterator<Item = &'a Worker>,
) -> Vec<SessionId> {
    let (mut queue, mut used) = (Queue::default(), BTreeMap::<Tenant, Sum>::new());
    let mut asked = BTreeMap::new();
    for session in sessions {
        let taken = share(&session.spec.limits);
        if session.holds_place() {
            used.entry(session.spec.tenant.clone()).or_default().add(&taken);
        } else if session.state == SessionState::Pending {
            queue.insert(session.spec.priority, &session.spec.tenant, session.id);
            asked.insert(session.id, (session.spec.tenant.clone(), taken));
        }
    }
    let mut all = Sum::default();
    for worker in workers {
        all.add(&worker.capacity);
    }
    let mut pass = queue.pass();
    let mut order = Vec::with_capacity(queue.len());
    let turn = |used: &BTreeMap<Tenant, Sum>, tenant: &Tenant| Turn {
        share: used.get(tenant).map(|used| used.dominant(&all)).unwrap_or_default(),
        last: 0,
    };
    while let Some(id) = pass.next(|tenant| turn(&used, tenant)) {
        if let Some((tenant, taken)) = asked.remove(&id) {
            used.entry(tenant).or_default().add(&taken);
        }
        order.push(id);
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(number: usize) -> Tenant {
        format!("t{number}").parse().unwrap()
    }

    fn id(number: u128) -> SessionId {
        SessionId::from_u128(number)
    }

    #[test]
    fn the_dominant_share_is_of_what_one_is_greedy_of() {
        let all = Sum { cpu_millis: 100_000, memory_bytes: 1 << 40, disk_bytes: 1 << 42, sessions: 100 };
        let cpu = Sum { cpu_millis: 50_000, sessions: 1, ..Sum::default() };
        let memory = Sum { memory_bytes: 3 << 38, sessions: 1, ..Sum::default() };
        let places = Sum { sessions: 60, ..Sum::default() };
        let shares = [cpu, memory, places].map(|used| used.dominant(&all).0);
        assert_eq!(shares, [500_000, 750_000, 600_000]);
        assert_eq!(Sum::default().dominant(&Sum::default()), Share(0));
        // Where nothing is known of the fleet, who has something has more than who has nothing.
        assert!(places.dominant(&Sum::default()) > Share(0));
    }

    #[test]
    fn priority_goes_first_then_the_share_then_age() {
        let mut queue = Queue::default();
        for (priority, of, number) in [(0, 1, 1), (0, 1, 2), (0, 2, 3), (5, 1, 9), (-1, 2, 0), (0, 3, 4)] {
            queue.insert(priority, &tenant(of), id(number));
        }
        let turn = |share, last| Turn { share: Share(share), last };
        let turns =
            BTreeMap::from([(tenant(1), turn(7, 0)), (tenant(2), turn(3, 8)), (tenant(3), turn(3, 2))]);
        let mut pass = queue.pass();
        let order: Vec<_> = std::iter::from_fn(|| pass.next(|t| turns[t])).collect();
        assert_eq!(order, [9, 4, 3, 1, 2, 0].map(id));
        assert_eq!((queue.len(), queue.of(&tenant(1)), queue.of(&tenant(9))), (6, 3, 0));
        for (priority, of, number) in [(0, 1, 1), (0, 1, 1), (0, 2, 3), (5, 2, 9)] {
            queue.remove(priority, &tenant(of), id(number));
        }
        assert_eq!(queue.ids(), BTreeSet::from([9, 2, 0, 4].map(id)));
    }

    /// A fleet of equal places, and sessions that end in the order in which they began: what the fleet does with the
    /// queue, with nothing else in it.
    struct Model {
        queue: Queue,
        tenants: BTreeMap<SessionId, Tenant>,
        running: VecDeque<SessionId>,
        served: BTreeMap<Tenant, u64>,
        places: usize,
    }

    impl Model {
        fn new(places: usize) -> Self {
            let (queue, tenants, running, served) = Default::default();
            Self { queue, tenants, running, served, places }
        }

        fn waits(&mut self, of: usize, count: usize) {
            for _ in 0..count {
                let id = id(self.tenants.len() as u128);
                self.tenants.insert(id, tenant(of));
                self.queue.insert(0, &tenant(of), id);
            }
        }

        fn turn(&self, tenant: &Tenant) -> Turn {
            let used = self.running.iter().filter(|id| self.tenants[*id] == *tenant).count() as u64;
            Turn { share: Share(used), last: self.served.get(tenant).copied().unwrap_or_default() }
        }

        /// Whoever is the first of its tenant.
        fn heads(&self) -> Vec<SessionId> {
            self.queue
                .lines
                .values()
                .flat_map(|line| line.values().filter_map(BTreeSet::first))
                .copied()
                .collect()
        }

        /// Fills the free places. Who got one, and who was first and did not.
        fn fill(&mut self) -> Vec<(SessionId, Vec<SessionId>)> {
            let mut pass = self.queue.pass();
            let mut placed = Vec::new();
            while self.running.len() < self.places {
                let Some(id) = pass.next(|tenant| self.turn(tenant)) else { break };
                let tenant = self.tenants[&id].clone();
                let least = self.heads().iter().map(|id| self.turn(&self.tenants[id]).share).min();
                assert_eq!(Some(self.turn(&tenant).share), least, "somebody with less waits");
                self.queue.remove(0, &tenant, id);
                self.running.push_back(id);
                let last = self.served.values().max().copied().unwrap_or_default();
                self.served.insert(tenant, last + 1);
                placed.push((id, self.heads()));
            }
            placed
        }
    }

    proptest! {
        #![proptest_config(crate::test_scale::proptests(64))]

        /// One place after the other becomes free: each of the others has its first before the greedy one has another.
        /// Red when a pass goes by age alone; and, with few places, when equals go by age.
        #[test]
        fn a_thousand_that_wait_delay_nobody_elses_first(places in 1usize..12, others in 1usize..8) {
            let mut model = Model::new(places);
            model.waits(0, 1000);
            model.fill();
            for other in 1..=others {
                model.waits(other, 1);
            }
            for _ in 0..others {
                model.running.pop_front();
                for (placed, _) in model.fill() {
                    prop_assert_ne!(&model.tenants[&placed], &tenant(0));
                }
            }
            prop_assert_eq!(model.heads().len(), 1, "only the greedy one still waits");
        }

        /// Whoever is the first of its tenant has a place when all that run now have ended, and one of each other tenant.
        /// Red when a pass goes by the tenants' names, or by their number of sessions that wait.
        #[test]
        fn nobody_starves(
            places in 1usize..8,
            tenants in 2usize..6,
            turns in proptest::collection::vec((0usize..6, 0usize..4), 1..300),
        ) {
            let mut model = Model::new(places);
            let mut passed: BTreeMap<SessionId, usize> = BTreeMap::new();
            for (of, count) in turns {
                model.waits(of % tenants, count);
                if model.running.len() == places {
                    model.running.pop_front();
                }
                for (placed, heads) in model.fill() {
                    passed.remove(&placed);
                    for head in heads {
                        let times = passed.entry(head).or_default();
                        *times += 1;
                        prop_assert!(*times <= places + tenants, "it was passed {} times", times);
                    }
                }
            }
        }
    }
}
