//! The same with a coordinator that is killed and started again, over what its store acknowledged: at any moment, also
//! between a commit and what was to follow it; for a moment or for longer than the leases; with another lease than
//! before. Workers come back in any order, and some never, or long after.
//!
//! All that is checked without restarts is checked here too: so an epoch is never given twice (4), no place is given
//! twice or lost (27), and nothing runs twice, whichever coordinator promised the lease (2). And nobody is given up
//! before each worker had its grace from the last start (14).

use super::*;
use crate::store::as_kept;

/// Short, so that sessions are given up now and then.
const LOSS_GRACE: Duration = Duration::from_secs(25);
/// Leases that a coordinator may be started with. The first is the one that all begin with.
const LEASES: [u64; 3] = [10, 4, 25];

/// What the store acknowledged.
#[derive(Default)]
pub(super) struct Disk {
    sessions: BTreeMap<SessionId, Session>,
    workers: BTreeMap<WorkerId, Worker>,
    keys: BTreeMap<String, RequestKey>,
    quotas: BTreeMap<Tenant, Quota>,
    promised_lease: Option<Duration>,
}

impl Disk {
    pub fn write(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::SaveSession(session) => drop(self.sessions.insert(session.id, as_kept(session))),
                Effect::ForgetSession(id) => drop(self.sessions.remove(id)),
                Effect::SaveWorker(w) => {
                    let kept = Worker::from_record(w.id.clone(), w.incarnation, w.scheduling);
                    self.workers.insert(w.id.clone(), kept);
                }
                Effect::ForgetWorker(id) => drop(self.workers.remove(id)),
                Effect::SaveKey(key) => drop(self.keys.insert(key.key.clone(), key.clone())),
                Effect::ForgetKey(key) => drop(self.keys.remove(key)),
                Effect::SaveQuota(tenant, quota) => drop(self.quotas.insert(tenant.clone(), *quota)),
                Effect::SaveLease(lease) => self.promised_lease = Some(*lease),
                _ => {}
            }
        }
    }

    fn load(&self) -> Loaded {
        Loaded {
            sessions: self.sessions.values().cloned().collect(),
            workers: self.workers.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
            quotas: self.quotas.clone().into_iter().collect(),
            promised_lease: self.promised_lease,
            tokens: Vec::new(),
        }
    }
}

impl World {
    fn with_restarts(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.fleet.config.worker_loss_grace = LOSS_GRACE;
        world.restarts = true;
        world
    }

    /// The batch is in the store.
    pub(super) fn commit(&mut self, effects: &[Effect]) {
        self.fleet.commit();
        self.disk.write(effects);
    }

    /// The coordinator's process is killed, and another begins some time later.
    pub(super) fn restart(&mut self) {
        let longest = if self.rng.random_bool(0.5) { 1000 } else { 15_000 };
        self.pass(longest);
        for name in NAMES {
            match self.rng.random_range(0..10) {
                // Its machine is gone meanwhile, with all that it held.
                0 => drop(self.machines.insert(name, Machine::default())),
                // It can't be reached for a while, or not for long enough to come back ever.
                1..3 => {
                    let away = Duration::from_secs(self.rng.random_range(0..120));
                    self.machines.get_mut(name).unwrap().away_until = self.now.mono + away;
                }
                _ => {}
            }
            self.machines.get_mut(name).unwrap().link = None;
        }
        let lease = Duration::from_secs(LEASES[self.rng.random_range(0..LEASES.len())]);
        let config = FleetConfig { lease, ..self.fleet.config.clone() };
        let seed = self.rng.random();
        let (fleet, effects) = Fleet::restore(config, seed, self.disk.load(), self.now);
        self.fleet = fleet;
        self.started = self.now.mono;
        self.made.clear();
        // What the last process had no time to tell is seen in the store by whoever asks this one.
        for session in self.disk.sessions.values() {
            let state = (session.state, session.epoch);
            let old = self.states.insert(session.id, state).unwrap_or((SessionState::Pending, Epoch(0)));
            assert!(old == state || edge(old.0, state.0), "{old:?} → {state:?} by what was not told");
            assert!(session.epoch >= old.1, "an epoch went back");
            match session.state {
                SessionState::Ended => {
                    self.ended.insert(session.id, 1);
                }
                SessionState::Ready | SessionState::Paused => {
                    self.used.insert((session.id, session.epoch));
                }
                SessionState::Parked => {
                    self.parked.insert((session.id, session.epoch));
                }
                _ => {}
            }
        }
        self.commit(&effects);
        self.deliver(effects);
        self.check();
        if self.rng.random_bool(0.5) {
            self.aftermath();
        }
    }

    /// All is well: sessions are up, with a checkpoint of just now, and so are their workers.
    pub(super) fn calm(&mut self) {
        for name in NAMES {
            if let Some(link) = self.reachable(name) {
                self.apply_surely(beat(name, link));
                while let Some(event) = self.answer(name) {
                    self.apply_surely(event);
                }
            }
        }
        let up = |s: &&Arc<Session>| matches!(s.state, SessionState::Ready | SessionState::Paused);
        let up: Vec<_> = self.fleet.sessions().filter(up).map(|s| (s.id, s.epoch)).collect();
        for (session, epoch) in up {
            let kept = Box::new(self.kept());
            self.apply_surely(Event::Checkpointed { session, epoch, kept });
        }
    }

    fn pass(&mut self, longest_ms: u64) {
        let time = Duration::from_millis(self.rng.random_range(0..longest_ms));
        self.now.mono += time;
        self.now.wall += time;
    }

    /// Whoever can be reached comes back and goes on as it should, until the others' time is over.
    fn aftermath(&mut self) {
        for _ in 0..self.rng.random_range(0..30) {
            self.pass(3000);
            let mut events = vec![Some(Event::Tick)];
            for name in NAMES {
                match self.reachable(name) {
                    Some(link) => events.extend([Some(beat(name, link)), self.answer(name)]),
                    None => self.attach(name),
                }
            }
            // Who said something before may have been killed by what came first.
            for event in events.into_iter().flatten() {
                self.apply_surely(event);
            }
        }
    }

    /// Without the chance of one more restart, or of a store that fails.
    fn apply_surely(&mut self, event: Event) {
        let own_word =
            matches!(event, Event::Hello(_) | Event::Heartbeat(_) | Event::Leaving { .. } | Event::Report(_));
        let effects = self.fleet.apply(event, self.now).expect("what workers say is not refused");
        self.promises(own_word, &effects);
        self.commit(&effects);
        self.deliver(effects);
        self.check();
    }

    /// INVARIANTS 14: a session that was up is lost only by its worker's own word, or when that has stayed away for its
    /// grace, counted from the coordinator's last start at the earliest. (Take `started` out of `promise`, and
    /// this fails.)
    pub(super) fn nobody_is_given_up_early(&self, own_word: bool, effects: &[Effect]) {
        for effect in effects {
            let Effect::SessionChanged(session) = effect else { continue };
            let was = self.states.get(&session.id).map(|(state, _)| *state);
            let up = matches!(was, Some(SessionState::Ready | SessionState::Paused));
            let lost = match session.state {
                SessionState::Ended if session.end == Some(EndReason::WorkerLost) => LOSS_GRACE,
                SessionState::Pending | SessionState::Placed => {
                    self.fleet.config.lease + self.fleet.config.restore_grace
                }
                _ => continue,
            };
            if up && !own_word {
                assert!(self.now.mono >= self.started + lost, "{:?} was given up early", session.id);
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::test_scale::proptests(16))]

    /// Red when an epoch is given back, a reservation leaks, or capacity is not looked at; and see above.
    #[test]
    fn a_coordinator_that_is_killed_keeps_its_promises(seed in any::<u64>()) {
        let mut world = World::with_restarts(seed);
        for _ in 0..2500 {
            world.step();
        }
        for machine in world.machines.values_mut() {
            machine.away_until = Duration::ZERO;
        }
        world.settle();
    }
}

/// INVARIANTS 14 in one picture: ten workers come back one after the other within a minute, in an order that nobody
/// chose, and no session is lost. One that may be restored elsewhere may have been, after its fence.
/// Red when nothing counts from the start: workers that were loaded are dead at once, the old fences are over, and the
/// first return puts off nothing. (Each of these alone is enough.)
#[test]
fn after_a_restart_nobody_is_lost_whose_worker_returns_within_a_minute() {
    let mut world = World::new(7);
    let names: Vec<String> = (0..10).map(|n| format!("worker-{n}")).collect();
    let mut held: BTreeMap<String, Vec<SessionId>> = BTreeMap::new();
    for name in &names {
        let link = LinkId(world.draw());
        let effects = world.fleet.apply(Event::Hello(Box::new(hello(name, link, 4))), world.now).unwrap();
        world.commit(&effects);
        for n in 0..4 {
            let id = SessionId::from_u128(world.draw().into());
            let mut wanted = create(id);
            if n % 2 == 0 {
                wanted.spec.on_worker_loss = OnWorkerLoss::Restore;
                wanted.restore = Some(world.kept());
            }
            for event in [Event::Create(Box::new(wanted)), report(name, link, id, 1, SessionState::Ready)] {
                let effects = world.fleet.apply(event, world.now).unwrap();
                world.commit(&effects);
            }
            held.entry(name.clone()).or_default().push(id);
        }
    }
    // It was down for longer than any grace.
    world.now.mono += Duration::from_secs(1000);
    let (fleet, effects) = Fleet::restore(config(), 1, world.disk.load(), world.now);
    world.fleet = fleet;
    world.commit(&effects);
    let begun = world.now.mono;
    let mut returns: Vec<(u64, String)> =
        names.into_iter().map(|n| (world.rng.random_range(1..60), n)).collect();
    returns.sort();
    let mut back: Vec<(String, LinkId)> = Vec::new();
    for second in 1..=120 {
        world.now.mono += Duration::from_secs(1);
        let mut events = vec![Event::Tick];
        events.extend(back.iter().map(|(name, link)| beat(name, *link)));
        for (_, name) in returns.extract_if(.., |(at, _)| *at == second) {
            let link = LinkId(world.draw());
            let mut hello = hello(&name, link, 4);
            let running = |id: &SessionId| Running {
                session: *id,
                epoch: Epoch(1),
                state: SessionState::Ready,
                backend: String::new(),
            };
            (hello.incarnation, hello.running) = (Incarnation(1), held[&name].iter().map(running).collect());
            events.push(Event::Hello(Box::new(hello)));
            back.push((name, link));
        }
        for event in events {
            let effects = world.fleet.apply(event, world.now).unwrap();
            world.commit(&effects);
        }
    }
    for (name, sessions) in held {
        for id in sessions {
            let session = &world.fleet.sessions[&id];
            assert_ne!(session.state, SessionState::Ended, "{:?}: {}", session.end, session.message);
            if session.spec.on_worker_loss == OnWorkerLoss::End {
                let at = session.worker.as_ref().map(WorkerId::as_str);
                assert_eq!(
                    (session.state, session.epoch, at),
                    (SessionState::Ready, Epoch(1), Some(name.as_str()))
                );
            } else if session.epoch > Epoch(1) {
                let moved = session.clock.placed_at.saturating_sub(begun);
                assert!(moved >= Duration::from_secs(20), "placed elsewhere after {moved:?}");
            }
        }
    }
}
