//! Places are shared out between tenants, and the queue too.

use super::*;

/// A fleet of one worker with five places, on which everything of `config` but the queue's bounds is as ever.
fn desk(queue_limit: usize, tenant_queue_limit: usize) -> (Desk, LinkId) {
    let now = start();
    let config = FleetConfig { queue_limit, tenant_queue_limit, ..config() };
    let mut desk = Desk { fleet: Fleet::restore(config, 1, Loaded::default(), now).0, now, next: 0 };
    let link = desk.attach("w", 5);
    (desk, link)
}

fn of(tenant: &str) -> impl Fn(&mut Create) {
    move |create| create.spec.tenant = tenant.parse().unwrap()
}

fn placed(desk: &Desk, sessions: &[SessionId]) -> Vec<bool> {
    sessions.iter().map(|id| desk.state(*id) == SessionState::Placed).collect()
}

/// Red when the queue goes by age alone.
#[test]
fn a_tenant_with_a_thousand_waiting_does_not_delay_anothers_first() {
    let (mut desk, link) = desk(4000, 3000);
    let greedy: Vec<_> = (0..1005).map(|_| desk.create_with(of("greedy"))).collect();
    let late = [desk.create_with(of("late")), desk.create_with(of("late"))];
    assert_eq!(
        (placed(&desk, &greedy[..6]), placed(&desk, &late)),
        (vec![true, true, true, true, true, false], vec![false; 2])
    );
    for (ends, expected) in [(0, [true, false]), (1, [true, true])] {
        desk.say("w", link, greedy[ends], 1, SessionState::Ended);
        assert_eq!(placed(&desk, &late), expected);
    }
    // Each has what it asked for, or more than the other: now the oldest.
    desk.say("w", link, late[0], 1, SessionState::Ended);
    assert!(placed(&desk, &greedy[5..6])[0]);
}

/// Red without the bound for each tenant.
#[test]
fn one_tenant_can_not_fill_the_queue() {
    let (mut desk, _) = desk(8, 6);
    for _ in 0..11 {
        desk.create_with(of("greedy"));
    }
    let mut more = create(SessionId::from_u128(1000));
    of("greedy")(&mut more);
    let full = Refused::QueueFull { limit: 6, tenant: Some("greedy".parse().unwrap()) };
    assert_eq!(desk.refused(Event::Create(Box::new(more.clone()))), full);
    let error = berth_proto::Error::from(full);
    assert_eq!(error.message(), "6 sessions of tenant greedy wait for a place already");
    for _ in 0..2 {
        desk.create_with(of("late"));
    }
    of("another")(&mut more);
    assert_eq!(desk.refused(Event::Create(Box::new(more))), Refused::QueueFull { limit: 8, tenant: None });
    assert_eq!([1, 2, 3, 4, 10, 1000].map(tenant_queue_limit), [1, 1, 2, 3, 7, 750]);
}

#[test]
fn priority_goes_before_fairness() {
    let (mut desk, link) = desk(100, 100);
    let greedy: Vec<_> = (0..5).map(|_| desk.create_with(of("greedy"))).collect();
    let late = desk.create_with(of("late"));
    let urgent = desk.create_with(|create| {
        of("greedy")(create);
        create.spec.priority = 1;
    });
    desk.say("w", link, greedy[0], 1, SessionState::Ended);
    assert_eq!(placed(&desk, &[late, urgent]), [false, true]);
}

/// One with a single session that has most of the memory has more in use than one with three that have little.
/// Red when sessions are counted.
#[test]
fn what_counts_is_what_one_has_most_of() {
    let (mut desk, link) = desk(100, 100);
    let big = |create: &mut Create| {
        of("big")(create);
        create.spec.limits.memory_bytes = 50 * GIB;
    };
    desk.create_with(big);
    let many: Vec<_> = (0..4).map(|_| desk.create_with(of("many"))).collect();
    let older = desk.create_with(of("big"));
    let younger = desk.create_with(of("many"));
    desk.say("w", link, many[0], 1, SessionState::Ended);
    assert_eq!(placed(&desk, &[older, younger]), [false, true]);
}

#[test]
fn who_waits_tells_since_when_and_until_when() {
    let (mut desk, link) = desk(100, 100);
    let first = desk.create();
    let begun = start().wall;
    let waits = |desk: &Desk, id| {
        let waits = desk.session(id).waits;
        [waits.since, waits.until].map(|at| at.duration_since(begun).unwrap().as_secs())
    };
    desk.pass_beating(Duration::from_secs(4), &[("w", link)]);
    // A refusal doesn't lengthen the wait.
    desk.apply(refusal("w", link, first, 1));
    assert_eq!((desk.state(first), waits(&desk, first)), (SessionState::Pending, [0, 30]));
    // A worker that is lost is not its fault: it waits as long as a new one.
    desk.pass_beating(Duration::from_secs(3), &[("w", link)]);
    assert_eq!(desk.state(first), SessionState::Placed);
    desk.apply(Event::Leaving { worker: id("w"), link });
    assert_eq!((desk.state(first), waits(&desk, first)), (SessionState::Pending, [7, 37]));
}

/// One that lost its worker may wait for an hour, although a new one would not.
/// Red when the wait is counted from the creation again.
#[test]
fn a_wait_goes_on_after_a_restart() {
    let (mut desk, link) = desk(100, 100);
    let session = desk.create_with(|create| {
        create.spec.on_worker_loss = OnWorkerLoss::Restore;
        create.spec.keyed = true;
    });
    desk.say("w", link, session, 1, SessionState::Ready);
    let from = RestoreFrom { checkpoint: "c".into(), root: [1; 32] };
    let kept = Box::new(Kept { from, at: desk.now.wall });
    desk.apply(Event::Checkpointed { session, epoch: Epoch(1), kept });
    desk.apply(Event::Leaving { worker: id("w"), link });
    assert_eq!(desk.state(session), SessionState::Pending);
    desk.pass(Duration::from_secs(600));
    let loaded = Loaded { sessions: vec![desk.session(session).clone()], ..Loaded::default() };
    let (fleet, _) = Fleet::restore(config(), 1, loaded, desk.now);
    let mut desk = Desk { fleet, now: desk.now, next: 1000 };
    desk.pass(Duration::from_secs(2900));
    assert_eq!(desk.state(session), SessionState::Pending);
    desk.pass(Duration::from_secs(200));
    assert_eq!(desk.session(session).end, Some(EndReason::NoPlace));
}
