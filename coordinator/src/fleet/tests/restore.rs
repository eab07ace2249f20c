//! Sessions that may go on elsewhere: when, from what, and when not.

use super::*;

/// A ready session that may be restored, with or without a checkpoint.
pub(super) fn restorable(desk: &mut Desk, worker: &str, link: LinkId, kept: bool) -> SessionId {
    let session = desk.create_with(|create| create.spec.on_worker_loss = OnWorkerLoss::Restore);
    desk.say(worker, link, session, 1, SessionState::Ready);
    if kept {
        keep(desk, session, 1, "first");
    }
    session
}

pub(super) fn keep(desk: &mut Desk, session: SessionId, epoch: u64, name: &str) {
    let from = RestoreFrom { checkpoint: name.into(), root: [1; 32] };
    let kept = Box::new(Kept { from, at: desk.now.wall });
    desk.apply(Event::Checkpointed { session, epoch: Epoch(epoch), kept });
}

/// A checkpoint is no more: removed, or damaged; and the next older one of this session is another.
pub(super) fn gone(checkpoint: &str, damage: Option<&str>, older: Option<(SessionId, &str)>) -> Event {
    let kept =
        |name: &str| Kept { from: RestoreFrom { checkpoint: name.into(), root: [1; 32] }, at: start().wall };
    Event::CheckpointGone(Box::new(Gone {
        checkpoint: checkpoint.into(),
        damage: damage.map(Into::into),
        older: older.map(|(session, name)| (session, kept(name))),
    }))
}

pub(super) fn placed(effects: &[Effect]) -> Vec<(SessionId, u64, Option<String>, bool)> {
    let place = |command: &&Command| match command {
        Command::Place(p) => {
            Some((p.session, p.epoch.0, p.restore.as_ref().map(|r| r.checkpoint.clone()), p.fenced))
        }
        _ => None,
    };
    sent(effects).iter().filter_map(place).collect()
}

/// The lease (10 s) and the grace (10 s) after the last heartbeat. Red when the grace is left out, when a hello keeps
/// what it names whatever its epoch and worker, or when a report is taken so.
#[test]
fn it_is_placed_elsewhere_after_the_lease_and_the_grace_and_not_before() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let other = desk.attach("other", 5);
    let effects = desk.pass_beating(Duration::from_secs(19), &[("other", other)]);
    assert_eq!(placed(&effects), [], "its agent may not have frozen it yet");
    let effects = desk.pass_beating(Duration::from_secs(5), &[("other", other)]);
    assert_eq!(placed(&effects), [(session, 2, Some("first".into()), true)]);
    assert_eq!(desk.session(session).recovered.as_ref().unwrap().kept.from.checkpoint, "first");
    // The old one comes back with it, and is told to end it.
    let link = LinkId(desk.draw());
    let mut late = hello("w", link, 5);
    let run = Running { session, epoch: Epoch(1), state: SessionState::Ready, backend: String::new() };
    late.running = vec![run];
    let effects = desk.apply(Event::Hello(Box::new(late)));
    let told = sent(&effects);
    assert!(matches!(told[0], Command::Welcome { end, .. } if end.len() == 1 && end[0].epoch == Epoch(1)));
    assert_eq!((desk.on(session).as_deref(), desk.session(session).epoch), (Some("other"), Epoch(2)));
    // What it says of it changes nothing.
    desk.say("w", link, session, 1, SessionState::Ended);
    assert_eq!((desk.on(session).as_deref(), desk.state(session)), (Some("other"), SessionState::Placed));
}

#[test]
fn without_a_checkpoint_or_without_leave_it_waits_for_its_worker() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let bare = restorable(&mut desk, "w", link, false);
    let plain = desk.ready("w", link);
    keep(&mut desk, plain, 1, "plain");
    let other = desk.attach("other", 5);
    let effects = desk.pass_beating(Duration::from_secs(290), &[("other", other)]);
    assert_eq!(placed(&effects), []);
    assert_eq!((desk.state(bare), desk.state(plain)), (SessionState::Ready, SessionState::Ready));
    desk.pass_beating(Duration::from_secs(60), &[("other", other)]);
    for session in [bare, plain] {
        assert_eq!(desk.session(session).end, Some(EndReason::WorkerLost));
    }
}

/// Red when sessions are moved while no worker is alive, or at once when the first is back.
#[test]
fn nobody_is_moved_while_all_workers_are_gone() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    desk.pass(Duration::from_secs(3600));
    assert_eq!(desk.on(session).as_deref(), Some("w"));
    // One is back: the other has its grace from now on.
    let other = desk.attach("other", 5);
    let effects = desk.pass_beating(Duration::from_secs(8), &[("other", other)]);
    assert_eq!(placed(&effects), []);
    let effects = desk.pass_beating(Duration::from_secs(6), &[("other", other)]);
    assert_eq!(placed(&effects).len(), 1);
}

#[test]
fn a_worker_that_comes_back_without_it_gives_it_up_at_once() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    keep(&mut desk, session, 1, "newer");
    desk.apply(Event::Hello(Box::new(hello("w", LinkId(99), 5))));
    // Its reports would have come by now.
    let effects = desk.apply(beat("w", LinkId(99)));
    assert_eq!(placed(&effects), [(session, 2, Some("newer".into()), true)]);
}

/// Of the id of `w`, but from another state directory.
fn another(link: LinkId) -> Event {
    Event::Hello(Box::new(Hello { instance: "another state".into(), ..hello("w", link, 5) }))
}

/// INVARIANT 2, where two machines have one WORKER_ID: what the second does not hold, the first may. Red when
/// `missing_until` is zero, when it is not kept for the next hello, or when a heartbeat does not ask `unsure`.
#[test]
fn what_another_instance_of_its_worker_does_not_hold_is_fenced_first() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let other = desk.attach("other", 5);
    desk.pass_beating(Duration::from_secs(3), &[("w", link), ("other", other)]);
    let second = LinkId(98);
    desk.apply(another(second));
    desk.apply(beat("w", second));
    // Its next process knows no more.
    let third = LinkId(99);
    desk.apply(another(third));
    let effects = desk.pass_beating(Duration::from_secs(18), &[("w", third), ("other", other)]);
    assert_eq!(placed(&effects), [], "the first one's agent may not have frozen it yet");
    let effects = desk.pass_beating(Duration::from_secs(3), &[("w", third), ("other", other)]);
    assert_eq!(placed(&effects), [(session, 2, Some("first".into()), true)]);
}

/// Red when `report` does not ask `unsure`, or `leaving` does not.
#[test]
fn that_another_instance_ended_it_or_leaves_says_nothing_of_it() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let other = desk.attach("other", 5);
    let second = LinkId(99);
    desk.apply(another(second));
    desk.apply(Event::Move { session, epoch: Epoch(1) });
    let Event::Report(mut done) = report("w", second, session, 1, SessionState::Ended) else {
        unreachable!()
    };
    done.reason = Some(EndReason::Drained);
    assert_eq!(placed(&desk.apply(Event::Report(done))), []);
    desk.apply(Event::Leaving { worker: id("w"), link: second });
    let effects = desk.pass_beating(Duration::from_secs(18), &[("other", other)]);
    assert_eq!(placed(&effects), [], "the first one's agent may not have frozen it yet");
    let effects = desk.pass_beating(Duration::from_secs(3), &[("other", other)]);
    assert_eq!(placed(&effects), [(session, 2, Some("first".into()), true)]);
}

#[test]
fn an_older_or_another_placements_checkpoint_is_not_its_newest() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    desk.pass_beating(Duration::from_secs(1), &[("w", link)]);
    keep(&mut desk, session, 7, "of another epoch");
    let newest = |desk: &Desk| desk.session(session).checkpoint.as_ref().map(|k| k.from.checkpoint.clone());
    assert_eq!(newest(&desk).as_deref(), Some("first"));
    desk.apply(gone("another", None, None));
    assert_eq!(newest(&desk).as_deref(), Some("first"));
    desk.apply(gone("first", None, None));
    assert_eq!(newest(&desk), None);
}

/// Told to end there; placed elsewhere only when that is done, since a word may be lost on its way. Red when it is
/// placed elsewhere before its worker says that it ended, or is over when that is said.
#[test]
fn a_move_waits_for_its_end() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    desk.attach("other", 5);
    let effects = desk.apply(Event::Move { session, epoch: Epoch(1) });
    assert!(matches!(sent(&effects)[..], [Command::End(end)] if end.reason == EndReason::Drained));
    assert_eq!(desk.on(session).as_deref(), Some("w"));
    desk.apply(Event::Cordon { worker: id("w") });
    for state in [SessionState::Ending, SessionState::Ended] {
        let Event::Report(mut report) = report("w", link, session, 1, state) else { unreachable!() };
        report.reason = Some(EndReason::Drained);
        desk.apply(Event::Report(report));
    }
    assert_eq!((desk.on(session).as_deref(), desk.session(session).epoch), (Some("other"), Epoch(2)));
}

/// As if its worker were lost. Red when `drain_if_due` ends it.
#[test]
fn at_the_deadline_of_a_drain_it_goes_on_from_the_checkpoint_that_there_is() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let bare = restorable(&mut desk, "w", link, false);
    let other = desk.attach("other", 5);
    desk.apply(Event::Drain { worker: id("w"), within: Duration::from_secs(60) });
    let beating = [("w", link), ("other", other)];
    let told = |effects: &[Effect], session: SessionId| {
        let ends = |c: &&Command| matches!(c, Command::End(e) if e.session == session && e.reason == EndReason::Drained);
        sent(effects).into_iter().any(|c| ends(&c))
    };
    let effects = desk.pass_beating(Duration::from_secs(59), &beating);
    assert!(!told(&effects, session), "it still has time");
    let effects = desk.pass_beating(Duration::from_secs(2), &beating);
    assert!(told(&effects, session) && told(&effects, bare));
    assert_eq!((desk.state(session), desk.state(bare)), (SessionState::Ready, SessionState::Ending));
    // Until it says so, it is told again.
    let effects = desk.pass_beating(Duration::from_secs(2), &beating);
    assert!(told(&effects, session));
    let Event::Report(mut ended) = report("w", link, session, 1, SessionState::Ended) else { unreachable!() };
    ended.reason = Some(EndReason::Drained);
    let effects = desk.apply(Event::Report(ended));
    assert_eq!(placed(&effects), [(session, 2, Some("first".into()), true)]);
    assert_eq!(desk.on(session).as_deref(), Some("other"));
}

#[test]
fn what_was_told_to_end_is_not_restored() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let other = desk.attach("other", 5);
    desk.apply(Event::Delete { by: Sight::All, session, reason: EndReason::Deleted });
    let effects = desk.pass_beating(Duration::from_secs(120), &[("other", other)]);
    assert_eq!(placed(&effects), []);
    assert_eq!(
        (desk.state(session), desk.session(session).end),
        (SessionState::Ended, Some(EndReason::Deleted))
    );
}

#[test]
fn a_session_made_of_a_checkpoint_has_longer_to_start_and_goes_back_to_it() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let from = RestoreFrom { checkpoint: "seed".into(), root: [2; 32] };
    let at = desk.now.wall;
    let session = desk.create_with(|create| create.restore = Some(Kept { from, at }));
    desk.pass_beating(Duration::from_secs(300), &[("w", link)]);
    assert_eq!(desk.state(session), SessionState::Placed, "its files may be many");
    desk.apply(Event::LinkLost { worker: id("w"), link });
    desk.apply(Event::Hello(Box::new(hello("w", LinkId(99), 5))));
    // Its reports would have come by now.
    let effects = desk.apply(beat("w", LinkId(99)));
    assert_eq!(placed(&effects), [(session, 2, Some("seed".into()), false)]);
}

/// Its agents hold the fence of the lease that they were promised, whatever a newer coordinator's lease is.
/// Red when only the lease of this coordinator counts, or when the longest one is not kept.
#[test]
fn a_coordinator_with_a_shorter_lease_waits_for_the_fences_of_the_longer_one() {
    let saved = |effects: &[Effect]| {
        let lease = |e: &Effect| if let Effect::SaveLease(lease) = e { Some(lease.as_secs()) } else { None };
        effects.iter().filter_map(lease).collect::<Vec<_>>()
    };
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, true);
    let loaded = |promised| Loaded {
        sessions: vec![desk.session(session).clone()],
        promised_lease: Some(Duration::from_secs(promised)),
        ..Loaded::default()
    };
    let (_, effects) = Fleet::restore(config(), 1, loaded(5), desk.now);
    assert_eq!(saved(&effects), [10], "noted before anybody hears of it");
    let (fleet, effects) = Fleet::restore(config(), 1, loaded(60), desk.now);
    assert_eq!(saved(&effects), Vec::<u64>::new());
    let mut desk = Desk { fleet, now: desk.now, next: 100 };
    let other = desk.attach("other", 5);
    // The worker may even have been back, with the new lease: its agents still hold the old one.
    let back = LinkId(desk.draw());
    let mut hello = hello("w", back, 5);
    hello.running =
        vec![Running { session, epoch: Epoch(1), state: SessionState::Ready, backend: String::new() }];
    desk.apply(Event::Hello(Box::new(hello)));
    let effects = desk.pass_beating(Duration::from_secs(59), &[("other", other)]);
    assert_eq!((saved(&effects), placed(&effects)), (vec![], vec![]));
    let effects = desk.pass_beating(Duration::from_secs(9), &[("other", other)]);
    assert_eq!((saved(&effects), placed(&effects)), (vec![10], vec![]));
    let effects = desk.pass_beating(Duration::from_secs(6), &[("other", other)]);
    assert_eq!(placed(&effects).len(), 1);
}
