//! A seeded simulation: clients, workers and links at random, for thousands of steps, with
//! a store that fails now and then. After every step the invariants of the module hold; in
//! the end, with everybody attached and heard out, both sides agree.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use berth_proto::{
    Epoch, Incarnation, SessionId, WorkerId,
    domain::{Capacity, EndReason, Limits, OnWorkerLoss, RestoreFrom, SessionState},
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use restarts::Disk;

use super::{
    tests::{GIB, beat, config, create, hello, report, start},
    *,
};
use crate::placement::share;

mod restarts;

const TENANTS: [&str; 3] = ["default", "team-a", "team-b"];
const NAMES: [&str; 4] = ["w0", "w1", "w2", "w3"];
/// Of each of them.
const CAPACITY: Capacity =
    Capacity { cpu_millis: 8000, memory_bytes: 16 * GIB, disk_bytes: 64 * GIB, max_sessions: 4 };

/// What a worker process really holds.
#[derive(Default)]
struct Machine {
    link: Option<LinkId>,
    incarnation: u64,
    process: u64,
    /// Of its state directory.
    instance: u64,
    /// It said that it stops.
    stops: bool,
    held: BTreeMap<SessionId, Epoch>,
    /// Of those, the ones that stand still, as it was told last.
    paused: BTreeSet<SessionId>,
    /// Pauses and resumes that it has not reported yet, in their order.
    said: VecDeque<(SessionId, Epoch, SessionState)>,
    /// Placed there, and not answered yet.
    asked: Vec<(SessionId, Epoch)>,
    /// Ended as it was told to, and not reported yet.
    over: Vec<(SessionId, Epoch, EndReason)>,
    /// Its agents' fences: a lease after the hello or heartbeat that was answered last, or later, if an earlier
    /// coordinator promised more.
    fence: Duration,
    /// It is cut off until then.
    away_until: Duration,
}

struct World {
    fleet: Fleet,
    now: Now,
    rng: StdRng,
    machines: BTreeMap<&'static str, Machine>,
    /// Machines that live on, cut off, while another one has come under their id.
    cut_off: Vec<Machine>,
    sessions: Vec<SessionId>,
    next: u64,
    states: BTreeMap<SessionId, (SessionState, Epoch)>,
    ended: BTreeMap<SessionId, u32>,
    /// Placements that clients could use.
    used: BTreeSet<(SessionId, Epoch)>,
    /// Those with which a session was parked.
    parked: BTreeSet<(SessionId, Epoch)>,
    /// What the store acknowledged.
    disk: Disk,
    /// The coordinator is killed now and then.
    restarts: bool,
    /// When it began.
    started: Duration,
    /// When each tenant made a session, in the last minute.
    made: BTreeMap<Tenant, Vec<Duration>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = start();
        let config = FleetConfig { queue_limit: 20, ended_limit: 20, ..config() };
        let (fleet, effects) = Fleet::restore(config, seed, Loaded::default(), now);
        let mut disk = Disk::default();
        disk.write(&effects);
        Self {
            fleet,
            now,
            rng: StdRng::seed_from_u64(seed),
            machines: NAMES.iter().map(|name| (*name, Machine::default())).collect(),
            cut_off: Vec::new(),
            sessions: Vec::new(),
            next: 0,
            states: BTreeMap::new(),
            ended: BTreeMap::new(),
            used: BTreeSet::new(),
            parked: BTreeSet::new(),
            disk,
            restarts: false,
            started: now.mono,
            made: BTreeMap::new(),
        }
    }

    fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn some_session(&mut self) -> Option<SessionId> {
        // The recent ones: old ones are long over.
        let from = self.sessions.len().saturating_sub(40);
        let recent = &self.sessions[from..];
        (!recent.is_empty()).then(|| recent[self.rng.random_range(0..recent.len())])
    }

    /// Of those in one of these states.
    fn some_in(&mut self, states: &[SessionState]) -> Option<Arc<Session>> {
        let all: Vec<_> = self.fleet.sessions.values().filter(|s| states.contains(&s.state)).collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())].clone())
    }

    /// Something happens.
    fn step(&mut self) {
        if self.restarts && self.rng.random_range(0..150) == 0 {
            if self.rng.random_bool(0.5) {
                self.calm();
            }
            return self.restart();
        }
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        let event = match self.rng.random_range(0..100) {
            0..20 => Some(self.creation()),
            20..26 => self.some_session().map(|session| Event::Delete {
                by: Sight::All,
                session,
                reason: EndReason::Deleted,
            }),
            26..29 => {
                let ready = self.some_in(&[SessionState::Ready]).map(|s| s.id);
                let paused = self.rng.random_bool(0.9);
                ready.or(self.some_session()).map(|session| Event::Pause { by: Sight::All, session, paused })
            }
            29..30 => return self.checkpoint(),
            30..38 => return self.attach(name),
            38..40 => return self.leave(name),
            40..42 => {
                self.machines[name].link.map(|link| Event::LinkLost { worker: name.parse().unwrap(), link })
            }
            42..43 if self.rng.random_bool(0.5) => {
                self.replace(name);
                None
            }
            42..43 => {
                self.another_machine(name);
                None
            }
            43..58 => self.reachable(name).map(|link| self.beat(name, link)),
            58..80 => self.answer(name),
            80..84 => self.ends_by_itself(name),
            84 => return self.noise(name),
            85 => Some(self.quota()),
            86..88 => Some(Event::Cordon { worker: name.parse().unwrap() }),
            88..92 => Some(Event::Uncordon { worker: name.parse().unwrap() }),
            92..96 if self.rng.random_bool(0.9) => return self.park(),
            92..96 => Some(Event::Drain {
                worker: name.parse().unwrap(),
                within: Duration::from_secs(self.rng.random_range(0..20)),
            }),
            _ => {
                let step = Duration::from_millis(self.rng.random_range(0..4000));
                self.now.mono += step;
                self.now.wall += step;
                Some(Event::Tick)
            }
        };
        if let Some(event) = event {
            self.apply(event);
        }
    }

    /// The process dies, and its sandboxes with it: the next one finds none in its state directory.
    fn replace(&mut self, name: &'static str) -> Machine {
        let instance = self.machines[name].instance;
        self.machines.insert(name, Machine { instance, ..Machine::default() }).expect("all are there")
    }

    /// It is cut off, and another one comes under its id.
    fn another_machine(&mut self, name: &'static str) {
        let old = self.replace(name);
        self.machines.get_mut(name).unwrap().instance += 1;
        self.cut_off.push(old);
    }

    /// Now and then it can't serve the template.
    fn beat(&mut self, name: &str, link: LinkId) -> Event {
        let mut event = beat(name, link);
        if let (Event::Heartbeat(beat), true) = (&mut event, self.rng.random_bool(0.1)) {
            beat.templates.clear();
            beat.template_problems.insert("base".into(), "no such root".into());
        }
        event
    }

    fn some_tenant(&mut self) -> Tenant {
        TENANTS[self.rng.random_range(0..TENANTS.len())].parse().unwrap()
    }

    /// A tenant may have more or less from now on.
    fn quota(&mut self) -> Event {
        let mut limit = |most: u64, unit: u64| {
            self.rng
                .random_bool(0.5)
                .then(|| self.rng.random_bool(0.8).then(|| self.rng.random_range(0..most) * unit))
        };
        let patch = QuotaPatch {
            sessions: limit(6, 1),
            cpu_millis: limit(12, 1000),
            memory_bytes: limit(20, GIB),
            disk_bytes: limit(6, GIB),
            streams: limit(3, 1),
            creates_per_minute: limit(5, 1),
        };
        Event::SetQuota { tenant: self.some_tenant(), patch }
    }

    /// After a create that was taken its tenant is within all that it may have.
    fn check_quota(&mut self, created: SessionId) {
        let Some(session) = self.fleet.sessions.get(&created) else { return };
        let tenant = &session.spec.tenant;
        let quota = self.fleet.quota(tenant);
        let mut held = fair::Sum::default();
        let of_it = |s: &&Arc<Session>| s.spec.tenant == *tenant && s.state != SessionState::Ended;
        self.fleet.sessions.values().filter(of_it).for_each(|s| held.add(&share(&s.spec.limits)));
        // What was made while there was no limit, or by an earlier process, is not remembered.
        let made = self.made.entry(tenant.clone()).or_default();
        made.retain(|at| self.now.mono - *at < Duration::from_secs(60));
        made.extend(quota.creates_per_minute.map(|_| self.now.mono));
        let made = made.len() as u128;
        for (what, has, limit) in [
            ("sessions", held.sessions, quota.sessions),
            ("cpu", held.cpu_millis, quota.cpu_millis),
            ("memory", held.memory_bytes, quota.memory_bytes),
            ("disk", held.disk_bytes, quota.disk_bytes),
            ("sessions a minute", made, quota.creates_per_minute),
        ] {
            assert!(limit.is_none_or(|limit| has <= limit.into()), "{tenant} has {has} of {limit:?} {what}");
        }
    }

    fn creation(&mut self) -> Event {
        let id = SessionId::from_u128(self.draw().into());
        self.sessions.push(id);
        let mut wanted = create(id);
        wanted.spec.tenant = self.some_tenant();
        wanted.spec.limits = Limits {
            cpu_millis: self.rng.random_range(100..4000),
            memory_bytes: self.rng.random_range(1..8) * GIB,
            disk_bytes: GIB,
            pids: 64,
        };
        wanted.spec.priority = self.rng.random_range(-3..3);
        wanted.spec.wait_for_place = Duration::from_secs(self.rng.random_range(0..40));
        wanted.spec.patient = self.rng.random_bool(0.5);
        if self.rng.random_bool(0.3) {
            let name = format!("name-{}", self.rng.random_range(0..5));
            wanted.labels.insert(NAME_LABEL.to_owned(), name);
        }
        if self.rng.random_bool(0.5) {
            wanted.spec.on_worker_loss = OnWorkerLoss::Restore;
            wanted.restore = self.rng.random_bool(0.5).then(|| self.kept());
        }
        wanted.ttl = self.rng.random_bool(0.3).then(|| Duration::from_secs(self.rng.random_range(1..120)));
        Event::Create(Box::new(wanted))
    }

    fn kept(&mut self) -> Kept {
        let from = RestoreFrom { checkpoint: format!("checkpoint-{}", self.draw()), root: [0; 32] };
        Kept { from, at: self.now.wall }
    }

    /// One is taken, or one is gone, or a session is to move.
    fn checkpoint(&mut self) {
        let Some(session) = self.some_session() else { return };
        let Some(epoch) = self.fleet.sessions.get(&session).map(|s| s.epoch) else { return };
        let known = self.fleet.sessions[&session].checkpoint.clone();
        let event = match (self.rng.random_range(0..6), known) {
            (0, Some(kept)) => self.gone(session, kept),
            (1 | 2, Some(_)) => Event::Move { session, epoch },
            _ => Event::Checkpointed { session, epoch, kept: Box::new(self.kept()) },
        };
        self.apply(event);
    }

    /// A checkpoint is removed, or found to be damaged; and there is an older one of its session, or none.
    fn gone(&mut self, session: SessionId, kept: Kept) -> Event {
        let damage = self.rng.random_bool(0.5).then(|| "a piece is lost".to_owned());
        let older = self.rng.random_bool(0.5).then(|| (session, self.kept()));
        Event::CheckpointGone(Box::new(Gone { checkpoint: kept.from.checkpoint, damage, older }))
    }

    /// Some session that is paused or parked goes one step on: it is about to be parked, is, or is resumed; or that
    /// fails, or comes too late.
    fn park(&mut self) {
        let Some(one) = self.some_in(&[SessionState::Paused, SessionState::Parked]) else { return };
        let (session, epoch) = (one.id, one.epoch);
        let holds = |(name, m): (&&str, &Machine)| {
            one.worker.as_ref().is_some_and(|w| w.as_str() == *name) && m.held.get(&session) == Some(&epoch)
        };
        let there = self.machines.iter().any(holds);
        let resume = Event::Pause { by: Sight::All, session, paused: false };
        let event = match (one.state, one.parking, self.rng.random_range(0..10)) {
            (SessionState::Parked, _, 0..5) => resume,
            (SessionState::Parked, ..) => {
                let kept = one.checkpoint.clone().expect("a parked session has a checkpoint");
                let Event::CheckpointGone(mut gone) = self.gone(session, kept) else { unreachable!() };
                gone.damage = None;
                let refused = self.fleet.apply(Event::CheckpointGone(gone), self.now);
                return assert!(
                    matches!(refused, Err(Refused::CheckpointInUse(_))),
                    "it would be nothing without it"
                );
            }
            (_, None, _) => Event::Parking { session, epoch, attempt: self.draw() },
            (_, Some(attempt), 0) => Event::ParkingFailed { session, attempt, why: "no".into() },
            // Whoever is there now under the id of its worker can't take a checkpoint of what it does not hold.
            (_, Some(attempt), _) if !there => Event::ParkingFailed { session, attempt, why: "no".into() },
            (_, Some(_), 1..3) => resume,
            (_, Some(attempt), chance) => {
                let kept = self.kept();
                let checkpoint = kept.from.checkpoint.clone();
                self.apply(Event::Checkpointed { session, epoch, kept: Box::new(kept) });
                // Late, or another attempt's: then it is refused.
                let attempt = if chance == 3 { attempt + 1 } else { attempt };
                Event::Park { session, epoch, attempt, checkpoint, why: "it was paused".into() }
            }
        };
        self.apply(event);
    }

    fn greeting(&mut self, name: &'static str) -> Hello {
        let link = LinkId(self.draw());
        let process = self.draw();
        let machine = self.machines.get_mut(name).unwrap();
        if machine.process == 0 {
            machine.process = process;
        }
        let mut greeting = hello(name, link, 4);
        greeting.process = machine.process.to_string();
        greeting.instance = format!("{name}, {}", machine.instance);
        greeting.incarnation = Incarnation(machine.incarnation);
        greeting.stopping_within = machine.stops.then_some(Duration::from_secs(10));
        greeting.capacity = CAPACITY;
        machine.asked.clear();
        machine.said.clear();
        let state = |session| match machine.paused.contains(session) {
            true => SessionState::Paused,
            false => SessionState::Ready,
        };
        greeting.running = machine
            .held
            .iter()
            .map(|(session, epoch)| Running {
                session: *session,
                epoch: *epoch,
                state: state(session),
                backend: String::new(),
            })
            .collect();
        greeting
    }

    /// Its link, if what it says over it comes through.
    fn reachable(&self, name: &str) -> Option<LinkId> {
        self.machines[name].link.filter(|_| self.machines[name].away_until <= self.now.mono)
    }

    fn attach(&mut self, name: &'static str) {
        if self.machines[name].away_until > self.now.mono {
            return;
        }
        let greeting = self.greeting(name);
        self.apply(Event::Hello(Box::new(greeting)));
    }

    /// A worker stops, and nearly always as it should: with nothing left.
    fn leave(&mut self, name: &'static str) {
        let machine = &self.machines[name];
        let Some(link) = machine.link else { return };
        if !machine.stops && self.rng.random_bool(0.5) {
            self.machines.get_mut(name).unwrap().stops = true;
            let within = Duration::from_secs(10);
            return self.apply(Event::Stopping { worker: name.parse().unwrap(), link, within });
        }
        if machine.held.is_empty() || self.rng.random_bool(0.2) {
            // What it held is gone with it, whatever it forgot to say.
            self.machines.get_mut(name).unwrap().held.clear();
            self.apply(Event::Leaving { worker: name.parse().unwrap(), link });
            self.replace(name);
        }
    }

    /// A worker does what it was asked to: it starts the session, fails, or refuses it.
    fn answer(&mut self, name: &'static str) -> Option<Event> {
        let chance = self.rng.random_range(0..10);
        let machine = self.machines.get_mut(name)?;
        let link = machine.link?;
        if let Some((session, epoch, state)) = machine.said.pop_front() {
            return Some(report(name, link, session, epoch.0, state));
        }
        let (session, epoch) = machine.asked.pop()?;
        let Event::Report(mut answer) = report(name, link, session, epoch.0, SessionState::Ready) else {
            unreachable!()
        };
        match chance {
            0..2 => answer.refused = true,
            2 => answer.state = SessionState::Ended,
            _ => {
                machine.held.insert(session, epoch);
            }
        }
        Some(Event::Report(answer))
    }

    fn ends_by_itself(&mut self, name: &'static str) -> Option<Event> {
        let machine = self.machines.get_mut(name)?;
        let link = machine.link?;
        if let Some(over) = machine.over.pop() {
            return Some(ended(name, link, over));
        }
        let (session, epoch) = machine.held.pop_first()?;
        machine.paused.remove(&session);
        Some(report(name, link, session, epoch.0, SessionState::Ended))
    }

    /// A word on a placement that never was: it changes no session.
    fn noise(&mut self, name: &'static str) {
        let Some(session) = self.some_session() else { return };
        let epoch = self.fleet.sessions.get(&session).map_or(9, |s| s.epoch.0) + 1;
        let link = self.machines[name].link.unwrap_or(LinkId(0));
        let event = report(name, link, session, epoch, SessionState::Ended);
        let effects = self.fleet.apply(event, self.now).unwrap();
        // The queue may move on (a rollback leaves that to the next event); nothing fails by it.
        let believed =
            |e: &Effect| matches!(e, Effect::SaveSession(s) if s.end == Some(EndReason::SandboxFailed));
        assert!(!effects.iter().any(believed), "a stale report was believed");
        self.commit(&effects);
        self.deliver(effects);
    }

    /// Applies, and lets the store fail now and then.
    fn apply(&mut self, event: Event) {
        // An image of everything costs more than the step: now and then is often enough.
        let fails = self.rng.random_range(0..20) == 0;
        let before = fails.then(|| self.fleet.image());
        let ticked = matches!(event, Event::Tick);
        // A heartbeat too: with the first after a hello it is concluded what that left out.
        let own_word =
            matches!(event, Event::Hello(_) | Event::Heartbeat(_) | Event::Leaving { .. } | Event::Report(_));
        let created = if let Event::Create(create) = &event { Some(create.id) } else { None };
        let Ok(effects) = self.fleet.apply(event, self.now) else {
            if let Some(before) = before {
                assert_eq!(self.fleet.image(), before, "a refused event has changed nothing");
            }
            return;
        };
        self.promises(own_word, &effects);
        if let Some(before) = before {
            self.fleet.rollback();
            assert_eq!(self.fleet.image(), before, "a rollback leaves nothing behind");
            return;
        }
        self.commit(&effects);
        if let Some(created) = created {
            self.check_quota(created);
        }
        if ticked {
            assert!(self.fleet.next_timer().is_none_or(|at| at > self.now.mono), "a busy loop");
        }
        if self.restarts && self.rng.random_range(0..600) == 0 {
            // Killed between the commit and all that was to follow it.
            return self.restart();
        }
        self.deliver(effects);
        self.check();
    }

    fn promises(&self, own_word: bool, effects: &[Effect]) {
        self.saved_before_told(effects);
        self.fenced_before_placed(effects);
        self.placed_where_it_may_be(effects);
        self.nobody_is_given_up_early(own_word, effects);
    }

    fn saved_before_told(&self, effects: &[Effect]) {
        for (at, effect) in effects.iter().enumerate() {
            if let Effect::Send { command: Command::Place(place), .. } = effect {
                let saved = effects[..at].iter().any(
                    |e| matches!(e, Effect::SaveSession(s) if s.id == place.session && s.epoch >= place.epoch),
                );
                assert!(saved, "an epoch was sent before it was saved");
            }
        }
    }

    /// INVARIANTS 21: nothing new for a worker that is cordoned, drained or stops. (Let `standing` go by the operator's
    /// word alone, and this fails.)
    fn placed_where_it_may_be(&self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Send { link, command: Command::Place(_) } = effect else { continue };
            let worker = self.fleet.workers.values().find(|w| w.link == Some(*link)).expect("it has a link");
            assert_eq!(worker.in_force(), Scheduling::Active, "{} was given a session", worker.id);
        }
    }

    /// INVARIANTS 2: whoever still holds an older placement of a session that is placed again has been silent for a
    /// lease, and so its agent has frozen it. (Take the lease out of `restore_at`, and this fails; or believe at once
    /// what another instance does not hold, in `missing_until` or in `unsure`.)
    fn fenced_before_placed(&self, effects: &[Effect]) {
        for effect in effects {
            let Effect::Send { command: Command::Place(place), .. } = effect else { continue };
            let older = |m: &&Machine| {
                let held = m.held.get(&place.session);
                held.is_some_and(|epoch| *epoch < place.epoch && self.used.contains(&(place.session, *epoch)))
            };
            for machine in self.machines.values().chain(&self.cut_off).filter(older) {
                // Of a parked one its worker may not know yet: but it stands still there, and nobody makes it go on.
                if machine.paused.contains(&place.session)
                    && self.parked.contains(&(place.session, machine.held[&place.session]))
                {
                    continue;
                }
                assert!(place.fenced, "a session without a fence was placed twice");
                assert!(self.now.mono >= machine.fence, "placed before the fence");
            }
        }
    }

    /// Workers hear what was sent over their link.
    fn deliver(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { link, command } => {
                    let greeted = matches!(command, Command::Welcome { .. });
                    let owner =
                        self.fleet.workers.values().find(|w| w.link == Some(link)).map(|w| w.id.clone());
                    let Some(owner) = owner else { continue };
                    let machine = self.machines.iter_mut().find(|(n, _)| **n == owner.as_str()).unwrap().1;
                    if greeted {
                        machine.link = Some(link);
                    }
                    if greeted || matches!(command, Command::LeaseRenewed { .. }) {
                        machine.fence = machine.fence.max(self.now.mono + self.fleet.config.lease);
                    }
                    machine.hear(command);
                }
                Effect::Close { link, .. } => {
                    for machine in self.machines.values_mut().filter(|m| m.link == Some(link)) {
                        machine.link = None;
                    }
                }
                Effect::SessionChanged(session)
                    if matches!(session.state, SessionState::Ready | SessionState::Paused) =>
                {
                    self.used.insert((session.id, session.epoch));
                }
                Effect::SessionChanged(session) if session.state == SessionState::Parked => {
                    self.parked.insert((session.id, session.epoch));
                }
                Effect::SessionChanged(session) if session.state == SessionState::Ended => {
                    *self.ended.entry(session.id).or_default() += 1;
                }
                _ => {}
            }
        }
    }

    fn check(&mut self) {
        let mut loads: BTreeMap<WorkerId, (BTreeSet<SessionId>, Capacity)> = BTreeMap::new();
        let mut queue = BTreeSet::new();
        for session in self.fleet.sessions.values() {
            if session.holds_place() {
                let load = loads.entry(session.worker.clone().unwrap()).or_default();
                let taken = share(&session.spec.limits);
                load.0.insert(session.id);
                load.1.cpu_millis += taken.cpu_millis;
                load.1.memory_bytes += taken.memory_bytes;
                load.1.disk_bytes += taken.disk_bytes;
                load.1.max_sessions += 1;
            }
            if session.state == SessionState::Pending {
                queue.insert(session.id);
            }
            let state = (session.state, session.epoch);
            let old = self.states.insert(session.id, state).unwrap_or((SessionState::Pending, Epoch(0)));
            assert!(old == state || edge(old.0, state.0), "{:?} → {:?}", old, state);
            assert!(session.epoch >= old.1, "an epoch went back");
            if session.comes_from_park() {
                assert!(session.checkpoint.is_some(), "a parked session without files");
            }
            // What is parked, or on its way back, ends only when it is to, or its time is over.
            let waits = matches!(old.0, SessionState::Parked | SessionState::Pending | SessionState::Placed);
            if session.parked_at.is_some() && waits && session.state == SessionState::Ended && old != state {
                let end = session.end.expect("it has ended");
                assert!(
                    matches!(end, EndReason::Deleted | EndReason::TtlExpired),
                    "{end:?} of a parked session"
                );
            }
            let ended = self.ended.get(&session.id).copied().unwrap_or_default();
            assert_eq!(ended, u32::from(session.state == SessionState::Ended), "ended is told once");
        }
        let mut held: BTreeMap<Tenant, fair::Sum> = BTreeMap::new();
        for session in self.fleet.sessions.values().filter(|s| s.state != SessionState::Ended) {
            held.entry(session.spec.tenant.clone()).or_default().add(&share(&session.spec.limits));
        }
        assert_eq!(self.fleet.index.held, held, "what a tenant has is counted wrongly");
        let mut names = BTreeSet::new();
        for session in self.fleet.sessions.values() {
            if let Some(name) = session.live_name() {
                let tenant = &session.spec.tenant;
                assert!(names.insert((tenant, name)), "two live sessions of {tenant} are called {name}");
            }
        }
        assert_eq!(self.fleet.index.names.len(), names.len());
        let kept: BTreeMap<_, _> = self
            .fleet
            .index
            .load
            .iter()
            .map(|(id, l)| (id.clone(), (l.sessions.clone(), l.reserved)))
            .collect();
        assert_eq!(kept, loads, "a reservation leaked or was lost");
        for (worker, (_, reserved)) in &loads {
            // Not by `placement::fits`, which is what is looked at here.
            let within = reserved.cpu_millis <= CAPACITY.cpu_millis
                && reserved.memory_bytes <= CAPACITY.memory_bytes
                && reserved.disk_bytes <= CAPACITY.disk_bytes
                && reserved.max_sessions <= CAPACITY.max_sessions;
            assert!(within, "{worker} is oversubscribed: {reserved:?}");
        }
        assert_eq!(self.fleet.index.queue.ids(), queue);
        let alive = self.fleet.workers.values().filter(|w| w.liveness == Liveness::Alive).count();
        assert_eq!(self.fleet.index.alive, alive);
    }

    /// Everybody attaches and answers until nothing is left to say.
    fn settle(&mut self) {
        for name in NAMES {
            loop {
                let greeting = self.greeting(name);
                let now = self.now;
                let Ok(effects) = self.fleet.apply(Event::Hello(Box::new(greeting)), now) else {
                    // Told that it is stale: such a process ends, and a new one comes.
                    self.replace(name);
                    continue;
                };
                self.commit(&effects);
                self.deliver(effects);
                break;
            }
        }
        // What a worker can't know of another one of its id counts from then on.
        let sure = self.fleet.workers.values().map(|w| w.missing_until).max().unwrap_or_default();
        self.now.mono = self.now.mono.max(sure);
        for name in NAMES {
            let Some(link) = self.machines[name].link else { continue };
            let effects = self.fleet.apply(beat(name, link), self.now).unwrap();
            self.commit(&effects);
            self.deliver(effects);
        }
        for _ in 0..10_000 {
            let next = NAMES.iter().find_map(|name| {
                let machine = self.machines.get_mut(name).unwrap();
                let link = machine.link?;
                if let Some((session, epoch, state)) = machine.said.pop_front() {
                    return Some(report(name, link, session, epoch.0, state));
                }
                if let Some(over) = machine.ended_now() {
                    return Some(ended(name, link, over));
                }
                let (session, epoch) = machine.asked.pop()?;
                machine.held.insert(session, epoch);
                Some(report(name, link, session, epoch.0, SessionState::Ready))
            });
            let Some(event) = next else { break };
            let effects = self.fleet.apply(event, self.now).unwrap();
            self.commit(&effects);
            self.deliver(effects);
        }
        for name in NAMES {
            let ours: BTreeMap<SessionId, Epoch> = self
                .fleet
                .sessions
                .values()
                .filter(|s| s.holds_place() && s.worker.as_ref().is_some_and(|w| w.as_str() == name))
                .map(|s| (s.id, s.epoch))
                .collect();
            assert_eq!(self.machines[name].held, ours, "{name} and the coordinator disagree in the end");
        }
    }
}

impl Machine {
    fn hear(&mut self, command: Command) {
        match command {
            Command::Welcome { incarnation, end } => {
                self.incarnation = incarnation.0;
                for end in end {
                    self.end(end);
                }
            }
            Command::Place(place) => self.asked.push((place.session, place.epoch)),
            Command::End(end) => self.end(end),
            Command::Pause { session, epoch, paused } if self.held.get(&session) == Some(&epoch) => {
                let state = if paused { SessionState::Paused } else { SessionState::Ready };
                match paused {
                    true => self.paused.insert(session),
                    false => self.paused.remove(&session),
                };
                self.said.push_back((session, epoch, state));
            }
            _ => {}
        }
    }

    fn end(&mut self, end: Ending) {
        self.asked.retain(|asked| *asked != (end.session, end.epoch));
        if self.held.get(&end.session) == Some(&end.epoch) {
            self.held.remove(&end.session);
            self.paused.remove(&end.session);
        }
        self.over.push((end.session, end.epoch, end.reason));
    }

    fn ended_now(&mut self) -> Option<(SessionId, Epoch, EndReason)> {
        self.over.pop()
    }
}

/// A session ended as its worker was told to.
fn ended(worker: &str, link: LinkId, (session, epoch, reason): (SessionId, Epoch, EndReason)) -> Event {
    let Event::Report(mut report) = report(worker, link, session, epoch.0, SessionState::Ended) else {
        unreachable!()
    };
    report.reason = Some(reason);
    Event::Report(report)
}

/// The edges of ARCHITECTURE's states. `Placed → Paused` and `Paused → Ready` come with a hello.
fn edge(from: SessionState, to: SessionState) -> bool {
    use SessionState::*;
    match from {
        Pending => matches!(to, Placed | Ended | Pending | Parked),
        Placed => matches!(to, Pending | Placed | Ready | Paused | Ending | Ended | Parked),
        // Back to Pending: its worker was lost, or is drained, and it goes on from a checkpoint.
        Ready => matches!(to, Paused | Pending | Placed | Ending | Ended),
        Paused => matches!(to, Ready | Pending | Placed | Ending | Ended | Parked),
        // Resumed from a checkpoint, and back when that failed.
        Parked => matches!(to, Pending | Placed | Parked | Ending | Ended),
        Ending => matches!(to, Ended),
        Ended => false,
    }
}

proptest! {
    #![proptest_config(crate::test_scale::proptests(24))]

    /// Red when reports count whatever their epoch, or on sessions that have ended; when an epoch is given back, a
    /// reservation leaks, capacity is not looked at, what is drained is open, or nobody waits for the fence.
    #[test]
    fn the_fleet_keeps_its_promises(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..2500 {
            world.step();
        }
        world.settle();
    }
}
