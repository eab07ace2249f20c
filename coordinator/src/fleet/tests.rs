//! The rules, one by one. Time is what the test says it is.

mod fairness;
mod leaving;
mod names;
mod parking;
mod passing_over;
mod quotas;
mod restore;
mod resuming;
mod stopping;
mod templates;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use berth_proto::{
    Epoch, Incarnation, SessionId, TaskId, WorkerId,
    domain::{
        BackendChoice, Capacity, CheckpointPolicy, EndReason, Labels, Limits, OnWorkerLoss, RestoreFrom,
        SessionState, TaskDefaultsPatch, TemplateSpec,
    },
    v1,
};

use super::*;

pub(super) const GIB: u64 = 1 << 30;

/// A fleet with a hand on its clock.
pub(super) struct Desk {
    pub fleet: Fleet,
    pub now: Now,
    next: u64,
}

pub(super) fn config() -> FleetConfig {
    FleetConfig { queue_limit: 3, tenant_queue_limit: 3, ..FleetConfig::default() }
}

pub(super) fn start() -> Now {
    Now { mono: Duration::ZERO, wall: UNIX_EPOCH + Duration::from_secs(1_000_000) }
}

pub(super) fn create(id: SessionId) -> Create {
    Create {
        id,
        spec: Spec {
            tenant: Tenant::default(),
            template: TemplateSpec {
                name: "base".into(),
                root: None,
                image: None,
                backend: BackendChoice::Auto,
                user: "user".into(),
            },
            limits: Limits { cpu_millis: 1000, memory_bytes: GIB, disk_bytes: GIB, pids: 64 },
            env: Labels::from([("SECRET".into(), "x".into())]),
            selector: Labels::new(),
            priority: 0,
            wait_for_place: Duration::from_secs(30),
            patient: false,
            task_defaults: TaskDefaultsPatch::default(),
            on_worker_loss: OnWorkerLoss::End,
            checkpoints: CheckpointPolicy::default(),
            keyed: false,
            from_checkpoint: false,
            egress: Default::default(),
        },
        restore: None,
        labels: Labels::new(),
        ttl: None,
        idle_timeout: None,
        key: None,
    }
}

pub(super) fn hello(worker: &str, link: LinkId, sessions: u32) -> Hello {
    Hello {
        worker: worker.parse().unwrap(),
        link,
        process: format!("process of link {}", link.0),
        instance: format!("state of {worker}"),
        incarnation: Incarnation(0),
        version: "test".into(),
        capacity: Capacity {
            cpu_millis: 64_000,
            memory_bytes: 64 * GIB,
            disk_bytes: 64 * GIB,
            max_sessions: sessions,
        },
        labels: Labels::new(),
        running: Vec::new(),
        backends: Vec::new(),
        templates: BTreeSet::from(["base".to_owned()]),
        template_problems: BTreeMap::new(),
        health: v1::WorkerHealth { ready: true, ..Default::default() },
        stopping_within: None,
        full_egress: false,
    }
}

impl Desk {
    fn new() -> Self {
        let now = start();
        Self { fleet: Fleet::restore(config(), 1, Loaded::default(), now).0, now, next: 0 }
    }

    fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.fleet.apply(event, self.now).expect("not refused");
        self.fleet.commit();
        effects
    }

    fn refused(&mut self, event: Event) -> Refused {
        self.fleet.apply(event, self.now).expect_err("must be refused")
    }

    /// Lets time pass, with every timer at its time.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let until = self.now.mono + time;
        let mut effects = Vec::new();
        while let Some(at) = self.fleet.next_timer().filter(|at| *at <= until) {
            assert!(at > self.now.mono, "a timer that is due again at once is a busy loop");
            self.now.wall += at - self.now.mono;
            self.now.mono = at;
            effects.extend(self.apply(Event::Tick));
        }
        self.now.wall += until - self.now.mono;
        self.now.mono = until;
        effects
    }

    /// A worker that says nothing more than its heartbeats while time passes.
    fn pass_beating(&mut self, time: Duration, alive: &[(&str, LinkId)]) -> Vec<Effect> {
        let mut effects = Vec::new();
        let end = self.now.mono + time;
        while self.now.mono < end {
            effects.extend(self.pass(Duration::from_secs(3).min(end - self.now.mono)));
            for (worker, link) in alive {
                effects.extend(self.apply(beat(worker, *link)));
            }
        }
        effects
    }

    fn attach(&mut self, worker: &str, sessions: u32) -> LinkId {
        let link = LinkId(self.draw());
        self.apply(Event::Hello(Box::new(hello(worker, link, sessions))));
        link
    }

    fn create(&mut self) -> SessionId {
        self.create_with(|_| {})
    }

    fn create_with(&mut self, change: impl FnOnce(&mut Create)) -> SessionId {
        let id = SessionId::from_u128(self.draw().into());
        let mut wanted = create(id);
        change(&mut wanted);
        self.apply(Event::Create(Box::new(wanted)));
        id
    }

    fn say(
        &mut self,
        worker: &str,
        link: LinkId,
        id: SessionId,
        epoch: u64,
        state: SessionState,
    ) -> Vec<Effect> {
        self.apply(report(worker, link, id, epoch, state))
    }

    fn ready(&mut self, worker: &str, link: LinkId) -> SessionId {
        let id = self.create();
        self.say(worker, link, id, 1, SessionState::Ready);
        assert_eq!(self.state(id), SessionState::Ready);
        id
    }

    fn session(&self, id: SessionId) -> &Session {
        &self.fleet.sessions[&id]
    }

    fn state(&self, id: SessionId) -> SessionState {
        self.session(id).state
    }

    fn on(&self, id: SessionId) -> Option<String> {
        self.session(id).worker.as_ref().map(ToString::to_string)
    }
}

pub(super) fn beat(worker: &str, link: LinkId) -> Event {
    Event::Heartbeat(Box::new(Heartbeat {
        worker: worker.parse().unwrap(),
        link,
        sequence: 1,
        health: v1::WorkerHealth { ready: true, ..Default::default() },
        backends: Vec::new(),
        templates: BTreeSet::from(["base".to_owned()]),
        template_problems: BTreeMap::new(),
    }))
}

pub(super) fn report(
    worker: &str,
    link: LinkId,
    session: SessionId,
    epoch: u64,
    state: SessionState,
) -> Event {
    Event::Report(Box::new(Report {
        worker: worker.parse().unwrap(),
        link,
        session,
        epoch: Epoch(epoch),
        state,
        reason: None,
        message: String::new(),
        backend: "fake".into(),
        refused: false,
    }))
}

fn refusal(worker: &str, link: LinkId, session: SessionId, epoch: u64) -> Event {
    let Event::Report(mut report) = report(worker, link, session, epoch, SessionState::Ended) else {
        unreachable!()
    };
    report.refused = true;
    report.message = "full".into();
    Event::Report(report)
}

fn sent(effects: &[Effect]) -> Vec<&Command> {
    effects
        .iter()
        .filter_map(|e| if let Effect::Send { command, .. } = e { Some(command) } else { None })
        .collect()
}

fn id(worker: &str) -> WorkerId {
    worker.parse().unwrap()
}

/// Red when what is to be sent is among the effects before what is to be saved.
#[test]
fn a_session_is_saved_before_its_worker_is_told() {
    let mut desk = Desk::new();
    desk.attach("w", 5);
    let session = SessionId::from_u128(99);
    let effects = desk.apply(Event::Create(Box::new(create(session))));
    let saved =
        effects.iter().position(|e| matches!(e, Effect::SaveSession(s) if s.epoch == Epoch(1))).unwrap();
    let told = effects
        .iter()
        .position(|e| matches!(e, Effect::Send { command: Command::Place(p), .. } if p.epoch == Epoch(1)))
        .unwrap();
    assert!(saved < told);
    assert_eq!(desk.state(session), SessionState::Placed);
}

#[test]
fn a_refused_session_goes_elsewhere_and_comes_back_only_later() {
    let mut desk = Desk::new();
    let one = desk.attach("one", 5);
    let session = desk.create();
    let effects = desk.apply(refusal("one", one, session, 1));
    assert!(sent(&effects).is_empty(), "not the same worker at once");
    assert_eq!(desk.state(session), SessionState::Pending);
    let two = desk.attach("two", 5);
    assert_eq!(desk.on(session).as_deref(), Some("two"));
    assert_eq!(desk.session(session).epoch, Epoch(2));
    // The first one's late word is stale, and it is told to end what it may have.
    let effects = desk.say("one", one, session, 1, SessionState::Ready);
    assert!(matches!(sent(&effects)[..], [Command::End(end)] if end.epoch == Epoch(1)));
    assert_eq!(desk.state(session), SessionState::Placed);
    // Refused by both, it comes back to one of them when the cool-down is over.
    desk.apply(refusal("two", two, session, 2));
    assert_eq!(desk.state(session), SessionState::Pending);
    desk.pass(Duration::from_secs(2));
    assert_eq!((desk.state(session), desk.session(session).epoch), (SessionState::Placed, Epoch(3)));
}

#[test]
fn the_queue_goes_by_priority_then_age_and_gives_up_in_time() {
    let mut desk = Desk::new();
    let old = desk.create();
    let urgent = desk.create_with(|c| c.spec.priority = 5);
    let short = desk.create_with(|c| c.spec.wait_for_place = Duration::from_secs(10));
    let overflow = create(SessionId::from_u128(77));
    assert_eq!(
        desk.refused(Event::Create(Box::new(overflow))),
        Refused::QueueFull { limit: 3, tenant: None }
    );
    let none = Create {
        spec: Spec { wait_for_place: Duration::ZERO, ..create(SessionId::from_u128(78)).spec },
        ..create(SessionId::from_u128(78))
    };
    assert!(
        matches!(desk.refused(Event::Create(Box::new(none))), Refused::NoPlace(missing) if missing == "no worker is attached")
    );
    desk.pass(Duration::from_secs(11));
    assert_eq!(desk.session(short).end, Some(EndReason::NoPlace));
    assert_eq!(desk.session(short).message, "no worker is attached");
    desk.attach("w", 1);
    assert_eq!(desk.state(urgent), SessionState::Placed);
    assert_eq!(desk.state(old), SessionState::Pending);
}

#[test]
fn a_limit_above_every_worker_is_refused_at_once_but_not_without_workers() {
    let mut desk = Desk::new();
    let big = |c: &mut Create| c.spec.limits.memory_bytes = 100 * GIB;
    let waits = desk.create_with(big);
    assert_eq!(desk.state(waits), SessionState::Pending);
    desk.attach("w", 5);
    let mut wanted = create(SessionId::from_u128(50));
    big(&mut wanted);
    let Refused::LimitTooHigh(words) = desk.refused(Event::Create(Box::new(wanted))) else {
        panic!("another refusal")
    };
    assert_eq!(words, "memory: 100 GiB asked for, but the largest worker, w, has 64 GiB");
}

/// Red when the key is not looked for, or the body not compared.
#[test]
fn the_same_request_makes_one_session() {
    let mut desk = Desk::new();
    desk.attach("w", 5);
    let keyed =
        |id, body| Create { key: Some(("key".into(), [body; 32])), ..create(SessionId::from_u128(id)) };
    desk.apply(Event::Create(Box::new(keyed(1, 7))));
    assert_eq!(
        desk.refused(Event::Create(Box::new(keyed(2, 7)))),
        Refused::AlreadyCreated(SessionId::from_u128(1))
    );
    assert_eq!(desk.refused(Event::Create(Box::new(keyed(3, 8)))), Refused::RequestIdReused);
    assert_eq!(desk.fleet.sessions().count(), 1);
}

#[test]
fn deleting_ends_through_the_worker_and_empties_the_env() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    let delete = || Event::Delete { by: Sight::All, session, reason: EndReason::Deleted };
    let effects = desk.apply(delete());
    assert!(matches!(sent(&effects)[..], [Command::End(end)] if end.reason == EndReason::Deleted));
    assert_eq!(desk.state(session), SessionState::Ending);
    assert!(desk.apply(delete()).is_empty(), "idempotent");
    desk.say("w", link, session, 1, SessionState::Ended);
    assert_eq!(desk.state(session), SessionState::Ended);
    assert_eq!(desk.session(session).end, Some(EndReason::Deleted));
    assert!(desk.session(session).spec.env.is_empty());
    assert!(desk.apply(delete()).is_empty());
    assert!(matches!(
        desk.refused(Event::Delete {
            by: Sight::All,
            session: SessionId::from_u128(9),
            reason: EndReason::Deleted
        }),
        Refused::NoSession(_)
    ));
}

#[test]
fn a_worker_that_does_not_end_a_session_is_told_again() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    desk.apply(Event::Delete { by: Sight::All, session, reason: EndReason::Deleted });
    let effects = desk.pass_beating(Duration::from_secs(25), &[("w", link)]);
    let told = sent(&effects).iter().filter(|c| matches!(c, Command::End(_))).count();
    assert_eq!(told, 2);
    assert_eq!(desk.state(session), SessionState::Ending);
}

#[test]
fn a_ready_session_outlives_its_workers_silence_and_is_reinstated() {
    let mut desk = Desk::new();
    let one = desk.attach("one", 5);
    let session = desk.ready("one", one);
    let two = desk.attach("two", 5);
    desk.apply(Event::LinkLost { worker: id("one"), link: one });
    desk.pass_beating(Duration::from_secs(120), &[("two", two)]);
    assert_eq!(desk.fleet.workers[&id("one")].liveness, Liveness::Dead);
    assert_eq!(desk.state(session), SessionState::Ready);
    let again = LinkId(desk.draw());
    let mut hello = hello("one", again, 5);
    hello.running =
        vec![Running { session, epoch: Epoch(1), state: SessionState::Ready, backend: "fake".into() }];
    let effects = desk.apply(Event::Hello(Box::new(hello)));
    assert!(
        matches!(sent(&effects)[0], Command::Welcome { incarnation: Incarnation(2), end } if end.is_empty())
    );
    assert_eq!(desk.state(session), SessionState::Ready);
}

#[test]
fn a_worker_that_stays_away_loses_its_sessions_after_the_grace() {
    let mut desk = Desk::new();
    let one = desk.attach("one", 5);
    let session = desk.ready("one", one);
    let two = desk.attach("two", 5);
    desk.pass_beating(Duration::from_secs(305), &[("two", two)]);
    assert_eq!(desk.state(session), SessionState::Ready, "the grace begins with the end of the lease");
    desk.pass_beating(Duration::from_secs(10), &[("two", two)]);
    assert_eq!(desk.session(session).end, Some(EndReason::WorkerLost));
    // Back with it, it is told to end it.
    let link = LinkId(desk.draw());
    let mut hello = hello("one", link, 5);
    hello.running =
        vec![Running { session, epoch: Epoch(1), state: SessionState::Ready, backend: String::new() }];
    let effects = desk.apply(Event::Hello(Box::new(hello)));
    assert!(
        matches!(sent(&effects)[0], Command::Welcome { end, .. } if end[0].reason == EndReason::WorkerLost)
    );
}

/// Red when a grace runs while no worker is alive, or does not begin anew with the first that is back
/// (`blackout_over`).
#[test]
fn nobody_is_evicted_while_all_workers_are_gone_nor_at_once_when_one_is_back() {
    let mut desk = Desk::new();
    let one = desk.attach("one", 5);
    let first = desk.ready("one", one);
    desk.attach("two", 0);
    desk.pass(Duration::from_secs(3600));
    assert_eq!(desk.state(first), SessionState::Ready);
    let two = desk.attach("two", 0);
    desk.pass_beating(Duration::from_secs(290), &[("two", two)]);
    assert_eq!(desk.state(first), SessionState::Ready, "a full grace from the first one's return");
    desk.pass_beating(Duration::from_secs(20), &[("two", two)]);
    assert_eq!(desk.session(first).end, Some(EndReason::WorkerLost));
}

#[test]
fn a_session_never_seen_ready_is_placed_anew_when_its_worker_is_lost() {
    let mut desk = Desk::new();
    let one = desk.attach("one", 5);
    let session = desk.create();
    let two = desk.attach("two", 5);
    desk.apply(Event::LinkLost { worker: id("one"), link: one });
    assert_eq!(desk.on(session).as_deref(), Some("one"), "the lease still runs");
    desk.pass_beating(Duration::from_secs(11), &[("two", two)]);
    assert_eq!((desk.on(session).as_deref(), desk.session(session).epoch), (Some("two"), Epoch(2)));
}

/// Red when a hello is not answered with the end of what is unknown, when what is missing is lost at once, or never.
#[test]
fn a_hello_reconciles_both_sides() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 9);
    let [kept, gone] = [desk.ready("w", link), desk.ready("w", link)];
    let placed = desk.create();
    let unknown = SessionId::from_u128(1234);
    let again = LinkId(desk.draw());
    let running = |session, epoch| Running {
        session,
        epoch: Epoch(epoch),
        state: SessionState::Paused,
        backend: String::new(),
    };
    let mut hello = hello("w", again, 9);
    hello.running = vec![running(kept, 1), running(unknown, 3)];
    let effects = desk.apply(Event::Hello(Box::new(hello)));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Close { link: l, why: CloseReason::Superseded } if *l == link))
    );
    let commands = sent(&effects);
    let Command::Welcome { end, .. } = commands[0] else { panic!("the welcome comes first") };
    assert_eq!(end[..], [Ending { session: unknown, epoch: Epoch(3), reason: EndReason::Deleted }]);
    assert_eq!(desk.state(kept), SessionState::Paused);
    assert_eq!(desk.state(gone), SessionState::Ready, "how it ended may be in the reports that follow");
    let effects = desk.apply(beat("w", again));
    let commands = sent(&effects);
    assert_eq!(desk.session(gone).end, Some(EndReason::WorkerLost));
    assert_eq!((desk.state(placed), desk.session(placed).epoch), (SessionState::Placed, Epoch(2)));
    assert!(
        commands.iter().any(|c| matches!(c, Command::Place(p) if p.session == placed && p.epoch == Epoch(2)))
    );
}

/// Red when an older incarnation is taken, a known one gets another number, or the older link stays open.
#[test]
fn the_newest_incarnation_wins_and_the_same_process_keeps_its_own() {
    let mut desk = Desk::new();
    let first = desk.attach("w", 5);
    let mut again = hello("w", LinkId(100), 5);
    again.incarnation = Incarnation(1);
    let effects = desk.apply(Event::Hello(Box::new(again)));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Close { link, why: CloseReason::Replaced } if *link == first))
    );
    assert_eq!(desk.fleet.workers[&id("w")].incarnation, Incarnation(1));
    // The end of the older link doesn't touch the newer one.
    desk.apply(Event::LinkLost { worker: id("w"), link: first });
    assert!(desk.fleet.workers[&id("w")].attached());
    desk.apply(Event::Hello(Box::new(hello("w", LinkId(101), 5))));
    assert_eq!(desk.fleet.workers[&id("w")].incarnation, Incarnation(2));
    let mut stale = hello("w", LinkId(102), 5);
    stale.incarnation = Incarnation(1);
    assert!(matches!(
        desk.refused(Event::Hello(Box::new(stale))),
        Refused::StaleIncarnation { newest: Incarnation(2), .. }
    ));
}

/// Red when a drained worker is open for placement, or nothing happens at the deadline.
#[test]
fn draining_takes_nothing_new_and_ends_what_stays() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    let effects = desk.apply(Event::Drain { worker: id("w"), within: Duration::from_secs(60) });
    assert!(matches!(sent(&effects)[..], [Command::Cordoned(true)]));
    let waits = desk.create_with(|c| c.spec.wait_for_place = Duration::from_secs(300));
    assert_eq!(desk.state(waits), SessionState::Pending);
    let effects = desk.pass_beating(Duration::from_secs(61), &[("w", link)]);
    assert!(sent(&effects).iter().any(
        |c| matches!(c, Command::End(end) if end.session == session && end.reason == EndReason::Drained)
    ));
    desk.apply(Event::Uncordon { worker: id("w") });
    assert_eq!(desk.state(waits), SessionState::Placed);
    // At once.
    desk.apply(Event::Drain { worker: id("w"), within: Duration::ZERO });
    assert_eq!(desk.state(waits), SessionState::Pending, "never ready: its client still waits");
    assert!(matches!(desk.refused(Event::Cordon { worker: id("nobody") }), Refused::NoWorker(_)));
}

#[test]
fn a_start_that_takes_too_long_ends_the_session() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.create();
    desk.pass_beating(Duration::from_secs(66), &[("w", link)]);
    assert_eq!(
        (desk.state(session), desk.session(session).end),
        (SessionState::Ending, Some(EndReason::SandboxFailed))
    );
    assert!(desk.session(session).start_timed_out);
}

#[test]
fn the_ttl_is_a_backstop_and_can_be_moved() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.create_with(|c| c.ttl = Some(Duration::from_secs(60)));
    desk.say("w", link, session, 1, SessionState::Ready);
    let update = Update {
        by: Sight::All,
        session,
        set_labels: Labels::new(),
        remove_labels: vec![],
        ttl: Some(Some(Duration::from_secs(100))),
        idle_timeout: None,
        egress: None,
    };
    let effects = desk.apply(Event::Update(Box::new(update)));
    assert!(matches!(sent(&effects)[..], [Command::Update { .. }]));
    desk.pass_beating(Duration::from_secs(102), &[("w", link)]);
    assert_eq!(desk.state(session), SessionState::Ready, "its agent comes first");
    desk.pass_beating(Duration::from_secs(15), &[("w", link)]);
    assert_eq!(
        (desk.state(session), desk.session(session).end),
        (SessionState::Ending, Some(EndReason::TtlExpired))
    );
}

#[test]
fn running_tasks_end_with_their_session() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    let task = TaskId::from_u128(5);
    let summary = Arc::new(v1::Task { id: task.to_string(), ..Default::default() });
    let running = TaskReport { worker: id("w"), link, session, epoch: Epoch(1), task, done: false, summary };
    desk.apply(Event::Task(Box::new(running.clone())));
    assert_eq!(desk.fleet.running_tasks(), 1);
    desk.apply(Event::Hello(Box::new(hello("w", LinkId(50), 5))));
    let effects = desk.apply(beat("w", LinkId(50)));
    let stored = effects
        .iter()
        .find_map(|e| if let Effect::ConcludeTask { summary, .. } = e { Some(summary) } else { None })
        .unwrap();
    let kind = stored.end.as_ref().unwrap().outcome.as_ref().unwrap().kind.as_ref().unwrap();
    assert!(matches!(kind, v1::outcome::Kind::WorkerLost(_)));
    assert_eq!(desk.fleet.running_tasks(), 0);
    // A task of a stale epoch isn't taken.
    let late = TaskReport { done: true, link: LinkId(50), ..running };
    assert!(desk.apply(Event::Task(Box::new(late))).is_empty());
}

/// Red when `rollback` leaves the sessions as they are.
#[test]
fn a_rollback_is_as_if_nothing_had_happened() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    let before = desk.fleet.image();
    desk.fleet
        .apply(Event::Delete { by: Sight::All, session, reason: EndReason::Deleted }, desk.now)
        .unwrap();
    desk.fleet.apply(Event::Create(Box::new(create(SessionId::from_u128(500)))), desk.now).unwrap();
    desk.fleet.apply(Event::Hello(Box::new(hello("x", LinkId(60), 1))), desk.now).unwrap();
    assert_ne!(desk.fleet.image(), before);
    desk.fleet.rollback();
    assert_eq!(desk.fleet.image(), before);
}

/// Red when nobody gives up what no client can come back for.
#[test]
fn a_restart_keeps_sessions_and_gives_up_those_that_nobody_can_claim() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let ready = desk.ready("w", link);
    let unclaimed = desk.create();
    let keyed = desk.create_with(|c| {
        c.key = Some(("k".into(), [1; 32]));
        c.spec.keyed = true;
    });
    let loaded = Loaded {
        sessions: desk.fleet.sessions().map(|s| (**s).clone()).collect(),
        workers: desk
            .fleet
            .workers()
            .map(|w| Worker::from_record(w.id.clone(), w.incarnation, w.scheduling))
            .collect(),
        keys: desk.fleet.keys.values().cloned().collect(),
        ..Loaded::default()
    };
    let (fleet, effects) = Fleet::restore(config(), 2, loaded, start());
    assert!(effects.iter().any(|e| matches!(e, Effect::SaveSession(s) if s.id == unclaimed)));
    let mut desk = Desk { fleet, now: start(), next: 1000 };
    assert_eq!(desk.state(ready), SessionState::Ready);
    assert_eq!(desk.session(unclaimed).end, Some(EndReason::Abandoned));
    assert_eq!(desk.state(keyed), SessionState::Placed);
    let mut hello = hello("w", LinkId(200), 5);
    hello.incarnation = Incarnation(1);
    hello.running = [ready, unclaimed, keyed]
        .map(|session| Running {
            session,
            epoch: Epoch(1),
            state: SessionState::Ready,
            backend: "fake".into(),
        })
        .into();
    let effects = desk.apply(Event::Hello(Box::new(hello)));
    let Command::Welcome { incarnation, end } = sent(&effects)[0] else { panic!("a welcome comes first") };
    assert_eq!((*incarnation, end.len(), end[0].session), (Incarnation(1), 1, unclaimed));
    assert_eq!([ready, keyed].map(|id| desk.state(id)), [SessionState::Ready; 2]);
}

#[test]
fn old_records_are_forgotten() {
    let mut desk = Desk::new();
    let session = desk.create();
    desk.apply(Event::Delete { by: Sight::All, session, reason: EndReason::Deleted });
    desk.attach("w", 5);
    let effects = desk.pass(Duration::from_secs(86_400 - 100));
    assert!(effects.iter().any(|e| matches!(e, Effect::ForgetWorker(_))));
    assert!(desk.fleet.sessions.contains_key(&session));
    let effects = desk.pass(Duration::from_secs(300));
    assert!(effects.iter().any(|e| matches!(e, Effect::ForgetSession(id) if *id == session)));
    assert_eq!(desk.fleet.workers().count(), 0);
}

impl Fleet {
    /// All that counts, to compare. Timers are hints and do not.
    pub(super) fn image(&self) -> String {
        format!(
            "{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{}",
            self.sessions,
            self.workers,
            self.keys,
            (&self.index.queue, &self.index.used, &self.index.held, &self.quotas),
            self.index.names,
            self.index.load,
            self.index.alive
        )
    }
}
