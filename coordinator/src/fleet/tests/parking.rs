//! Parking: how a paused session gives its place up. How it comes back: `resuming`.

use super::*;

/// A session that is ready on `w`, and then paused.
pub(super) fn paused(desk: &mut Desk, link: LinkId, change: impl FnOnce(&mut Create)) -> SessionId {
    let session = desk.create_with(change);
    desk.say("w", link, session, 1, SessionState::Ready);
    pause(desk, link, session, 1);
    session
}

pub(super) fn pause(desk: &mut Desk, link: LinkId, session: SessionId, epoch: u64) {
    let effects = desk.apply(Event::Pause { by: Sight::All, session, paused: true });
    assert!(matches!(sent(&effects)[..], [Command::Pause { paused: true, .. }]));
    desk.say("w", link, session, epoch, SessionState::Paused);
    assert_eq!(desk.state(session), SessionState::Paused);
}

pub(super) fn keep(desk: &mut Desk, session: SessionId, epoch: u64, name: &str) {
    let from = RestoreFrom { checkpoint: name.into(), root: [1; 32] };
    let kept = Box::new(Kept { from, at: desk.now.wall });
    desk.apply(Event::Checkpointed { session, epoch: Epoch(epoch), kept });
}

pub(super) fn gone(checkpoint: &str) -> Event {
    Event::CheckpointGone(Box::new(Gone { checkpoint: checkpoint.into(), damage: None, older: None }))
}

pub(super) fn attempt(session: SessionId, epoch: u64, attempt: u64) -> Event {
    Event::Parking { session, epoch: Epoch(epoch), attempt }
}

pub(super) fn parks(session: SessionId, epoch: u64, attempt: u64) -> Event {
    let (checkpoint, why) = ("parked".to_owned(), "it was paused for 10 min".to_owned());
    Event::Park { session, epoch: Epoch(epoch), attempt, checkpoint, why }
}

/// Up to where its worker is told.
pub(super) fn parked_but_there(desk: &mut Desk, session: SessionId) -> Vec<Effect> {
    desk.apply(attempt(session, 1, 7));
    keep(desk, session, 1, "parked");
    let effects = desk.apply(parks(session, 1, 7));
    assert_eq!(desk.state(session), SessionState::Parked);
    effects
}

pub(super) fn leaves(desk: &mut Desk, link: LinkId, session: SessionId) -> Vec<Effect> {
    let mut effects = Vec::new();
    for state in [SessionState::Ending, SessionState::Ended] {
        let Event::Report(mut report) = report("w", link, session, 1, state) else { unreachable!() };
        report.reason = Some(EndReason::Parked);
        effects.extend(desk.apply(Event::Report(report)));
    }
    effects
}

/// A parked session without a place.
pub(super) fn parked(desk: &mut Desk, link: LinkId, change: impl FnOnce(&mut Create)) -> SessionId {
    let session = paused(desk, link, change);
    parked_but_there(desk, session);
    leaves(desk, link, session);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    session
}

pub(super) fn resume(desk: &mut Desk, session: SessionId) -> Vec<Effect> {
    desk.apply(Event::Pause { by: Sight::All, session, paused: false })
}

/// Session, epoch and what it is restored from, of each placement.
pub(super) fn placed(effects: &[Effect]) -> Vec<(SessionId, u64, Option<String>)> {
    let place = |command: &&Command| match command {
        Command::Place(p) => Some((p.session, p.epoch.0, p.restore.as_ref().map(|r| r.checkpoint.clone()))),
        _ => None,
    };
    sent(effects).iter().filter_map(place).collect()
}

pub(super) fn from_parked(session: SessionId, epoch: u64) -> Vec<(SessionId, u64, Option<String>)> {
    vec![(session, epoch, Some("parked".to_owned()))]
}

fn restarted(desk: Desk) -> Desk {
    let worker = |w: &Arc<Worker>| Worker::from_record(w.id.clone(), w.incarnation, w.scheduling);
    let loaded = Loaded {
        sessions: desk.fleet.sessions().map(|s| (**s).clone()).collect(),
        workers: desk.fleet.workers().map(worker).collect(),
        ..Loaded::default()
    };
    let now = Now { mono: Duration::ZERO, wall: desk.now.wall };
    Desk { fleet: Fleet::restore(config(), 2, loaded, now).0, now, next: 1000 }
}

/// Red when `park` tells the worker without a change of the session, or changes it without a save.
#[test]
fn it_is_parked_in_the_store_before_its_worker_hears_of_it_and_its_place_is_free_when_that_is_done() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 1);
    let session = paused(&mut desk, link, |_| {});
    let task = TaskId::from_u128(5);
    let summary = Arc::new(v1::Task { id: task.to_string(), ..Default::default() });
    let running = TaskReport { worker: id("w"), link, session, epoch: Epoch(1), task, done: false, summary };
    desk.apply(Event::Task(Box::new(running)));
    let effects = parked_but_there(&mut desk, session);
    let saved = |e: &Effect| matches!(e, Effect::SaveSession(s) if s.state == SessionState::Parked);
    let told = |e: &Effect| matches!(e, Effect::Send { command: Command::End(end), .. } if end.reason == EndReason::Parked);
    let at = |what: &dyn Fn(&Effect) -> bool| effects.iter().position(what).expect("one of them");
    assert!(at(&saved) < at(&told));
    assert_eq!(desk.on(session).as_deref(), Some("w"), "its sandbox still ends");
    desk.say("w", link, session, 1, SessionState::Paused);
    assert_eq!(desk.state(session), SessionState::Parked, "that was said before");
    let next = desk.create();
    assert_eq!(desk.state(next), SessionState::Pending, "the place is not free yet");

    let effects = leaves(&mut desk, link, session);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    assert_eq!(placed(&effects), [(next, 1, None)]);
    let kind = effects.iter().find_map(|e| match e {
        Effect::ConcludeTask { summary, .. } => summary.end.as_ref()?.outcome.as_ref()?.kind,
        _ => None,
    });
    assert!(matches!(kind, Some(v1::outcome::Kind::SessionEnded(_))), "{kind:?}");
    assert_eq!(desk.fleet.running_tasks(), 0);
    assert!(desk.session(session).message.contains("paused for 10 min"));
    assert_eq!(desk.session(session).parked_at, desk.session(session).checkpoint.as_ref().map(|k| k.at));
}

/// Red when `pause` leaves the attempt standing: what it did since would be in no checkpoint.
#[test]
fn a_resume_ends_the_attempt() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    desk.apply(attempt(session, 1, 1));
    keep(&mut desk, session, 1, "parked");
    resume(&mut desk, session);
    assert_eq!(
        desk.refused(parks(session, 1, 1)),
        Refused::NotParked(session),
        "its worker was told already"
    );
    assert_eq!(desk.refused(attempt(session, 1, 2)), Refused::NotParked(session), "it is about to be ready");
    desk.say("w", link, session, 1, SessionState::Ready);
    pause(&mut desk, link, session, 1);
    desk.apply(attempt(session, 1, 3));
    assert_eq!(desk.refused(parks(session, 1, 1)), Refused::NotParked(session), "not the same pause");
    desk.apply(parks(session, 1, 3));
}

/// Red when state or epoch are not looked at, or any checkpoint is enough.
#[test]
fn only_what_is_paused_and_has_its_checkpoint_is_parked() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let ready = desk.ready("w", link);
    assert_eq!(desk.refused(attempt(ready, 1, 1)), Refused::NotParked(ready));
    let session = paused(&mut desk, link, |_| {});
    assert_eq!(desk.refused(attempt(session, 2, 1)), Refused::NotParked(session), "of another placement");
    desk.apply(attempt(session, 1, 1));
    assert_eq!(desk.refused(parks(session, 1, 1)), Refused::NotParked(session), "there is no checkpoint");
    keep(&mut desk, session, 1, "parked");
    desk.apply(gone("parked"));
    assert_eq!(desk.refused(parks(session, 1, 1)), Refused::NotParked(session), "it was removed");
    keep(&mut desk, session, 1, "parked");
    let from = RestoreFrom { checkpoint: "older".into(), root: [1; 32] };
    let older = Some((session, Kept { from, at: desk.now.wall }));
    desk.apply(Event::CheckpointGone(Box::new(Gone { checkpoint: "parked".into(), damage: None, older })));
    assert_eq!(desk.refused(parks(session, 1, 1)), Refused::NotParked(session), "an older one is not enough");
}

/// Red when another attempt may fail it, the reason is not told, or `is_up` takes the same pause for a new one.
#[test]
fn what_can_not_be_parked_stays_paused_and_says_why() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    let since = desk.session(session).paused_at;
    desk.apply(attempt(session, 1, 1));
    desk.apply(Event::ParkingFailed { session, attempt: 9, why: "not this one".into() });
    assert_eq!(desk.session(session).message, "");
    desk.apply(Event::ParkingFailed { session, attempt: 1, why: "the blob store failed".into() });
    let now = desk.session(session).clone();
    assert_eq!((now.state, now.parking, now.paused_at), (SessionState::Paused, None, since));
    assert_eq!(now.message, "could not be parked, and stays paused: the blob store failed");
    // Its worker attaches anew: it is the same pause, and the same trouble.
    desk.pass(Duration::from_secs(2));
    desk.say("w", link, session, 1, SessionState::Paused);
    assert_eq!((desk.session(session).paused_at, &desk.session(session).message), (since, &now.message));
    resume(&mut desk, session);
    desk.say("w", link, session, 1, SessionState::Ready);
    assert_eq!((desk.session(session).paused_at, desk.session(session).message.as_str()), (None, ""));
}

/// Red when the TTL of what is parked is not looked at.
#[test]
fn its_ttl_runs_on_and_it_can_be_ended() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let short = parked(&mut desk, link, |c| c.ttl = Some(Duration::from_secs(60)));
    let other = parked(&mut desk, link, |_| {});
    desk.pass_beating(Duration::from_secs(59), &[("w", link)]);
    assert_eq!(desk.state(short), SessionState::Parked);
    desk.pass_beating(Duration::from_secs(2), &[("w", link)]);
    assert_eq!(
        (desk.state(short), desk.session(short).end),
        (SessionState::Ended, Some(EndReason::TtlExpired))
    );
    desk.pass_beating(Duration::from_secs(86_400), &[("w", link)]);
    assert_eq!(desk.state(other), SessionState::Parked, "no other clock runs");
    desk.apply(Event::Delete { by: Sight::All, session: other, reason: EndReason::Deleted });
    assert_eq!((desk.state(other), desk.session(other).end), (SessionState::Ended, Some(EndReason::Deleted)));
    assert!(desk.session(other).spec.env.is_empty());
    desk.apply(gone("parked"));
}

/// Red when a delete does not wait for the sandbox, or the worker's word on the TTL is lost.
#[test]
fn while_its_sandbox_ends_it_can_be_ended_or_its_ttl_be_over() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    for reason in [EndReason::Deleted, EndReason::TtlExpired] {
        let session = paused(&mut desk, link, |_| {});
        parked_but_there(&mut desk, session);
        if reason == EndReason::Deleted {
            desk.apply(Event::Delete { by: Sight::All, session, reason });
            assert_eq!(desk.state(session), SessionState::Ending);
        }
        let Event::Report(mut ended) = report("w", link, session, 1, SessionState::Ended) else {
            unreachable!()
        };
        ended.reason = Some(reason);
        desk.apply(Event::Report(ended));
        assert_eq!((desk.state(session), desk.session(session).end), (SessionState::Ended, Some(reason)));
    }
}

/// Red when an attempt outlives its process, a resume under way is given up as nobody's, `reconcile` does not end what
/// is parked, or for another reason.
#[test]
fn a_restart_keeps_it_parked_and_a_resume_under_way() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let [gone, waits] = [parked(&mut desk, link, |_| {}), parked(&mut desk, link, |_| {})];
    let there = paused(&mut desk, link, |_| {});
    let trying = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, there);
    desk.apply(attempt(trying, 1, 8));
    desk.apply(Event::Cordon { worker: id("w") });
    resume(&mut desk, waits);
    desk.apply(Event::Uncordon { worker: id("w") });
    assert_eq!(desk.state(waits), SessionState::Placed);
    let mut desk = restarted(desk);
    assert_eq!(
        [gone, waits, there, trying].map(|id| desk.state(id)),
        [SessionState::Parked, SessionState::Placed, SessionState::Parked, SessionState::Paused]
    );
    assert_eq!(desk.session(trying).parking, None, "the attempt ended with the process");
    // Its worker still has both: the one is to end, the other is what it was.
    let link = LinkId(desk.draw());
    let mut again = hello("w", link, 5);
    again.incarnation = Incarnation(1);
    let run =
        |session| Running { session, epoch: Epoch(1), state: SessionState::Paused, backend: String::new() };
    again.running = vec![run(there), run(trying)];
    let effects = desk.apply(Event::Hello(Box::new(again)));
    let Command::Welcome { end, .. } = sent(&effects)[0] else { panic!("the welcome comes first") };
    assert_eq!(end[..], [Ending { session: there, epoch: Epoch(1), reason: EndReason::Parked }]);
    let effects = [effects, desk.apply(beat("w", link))].concat();
    assert_eq!(placed(&effects), from_parked(waits, 3), "it was never ready there");
    assert_eq!(placed(&resume(&mut desk, gone)), from_parked(gone, 2));
}

/// Red when `not_held` loses it, `reconcile` takes it for paused, or `still_leaving` does not look again.
#[test]
fn a_word_that_is_lost_leaves_no_place_taken() {
    // The worker comes back without it.
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, session);
    desk.apply(Event::Hello(Box::new(hello("w", LinkId(90), 5))));
    desk.apply(beat("w", LinkId(90)));
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    // It leaves.
    let session = paused(&mut desk, LinkId(90), |_| {});
    parked_but_there(&mut desk, session);
    desk.apply(Event::Leaving { worker: id("w"), link: LinkId(90) });
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    // It is told again and again, while it is there ...
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, session);
    let effects = desk.pass_beating(Duration::from_secs(21), &[("w", link)]);
    let told = |c: &&Command| matches!(c, Command::End(end) if end.reason == EndReason::Parked);
    assert_eq!(sent(&effects).into_iter().filter(told).count(), 2);
    assert_eq!(desk.on(session).as_deref(), Some("w"));
    // ... and not waited for when it is not. Nothing of it can act there: it stood still.
    let other = desk.attach("other", 5);
    desk.pass_beating(Duration::from_secs(25), &[("other", other)]);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    assert_eq!(placed(&resume(&mut desk, session)), from_parked(session, 2));
    assert_eq!(desk.on(session).as_deref(), Some("other"));
}

/// Red when a late checkpoint takes its place, or it may be removed.
#[test]
fn what_it_was_parked_with_is_what_it_has() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, session);
    desk.pass_beating(Duration::from_secs(1), &[("w", link)]);
    // One that somebody asked for, and that was late.
    keep(&mut desk, session, 1, "late");
    leaves(&mut desk, link, session);
    assert_eq!(desk.refused(gone("parked")), Refused::CheckpointInUse(session));
    desk.apply(gone("late"));
    resume(&mut desk, session);
    assert_eq!(desk.refused(gone("parked")), Refused::CheckpointInUse(session));
    desk.say("w", link, session, 2, SessionState::Ready);
    // From now on it is one like any other.
    desk.apply(gone("parked"));
    assert_eq!(desk.session(session).checkpoint, None);
}

/// Red when the deadline of a drain ends what is about to be parked.
#[test]
fn a_drain_waits_for_an_attempt_that_is_under_way() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let [tries, does_not] = [paused(&mut desk, link, |_| {}), paused(&mut desk, link, |_| {})];
    desk.apply(Event::Drain { worker: id("w"), within: Duration::from_secs(30) });
    desk.apply(attempt(tries, 1, 7));
    desk.pass_beating(Duration::from_secs(40), &[("w", link)]);
    assert_eq!(desk.session(does_not).end, Some(EndReason::Drained));
    assert_eq!(desk.state(tries), SessionState::Paused);
    keep(&mut desk, tries, 1, "parked");
    desk.apply(parks(tries, 1, 7));
    desk.pass_beating(Duration::from_secs(5), &[("w", link)]);
    leaves(&mut desk, link, tries);
    assert_eq!((desk.state(tries), desk.on(tries)), (SessionState::Parked, None));
    // One that fails is ended like any other.
    desk.apply(Event::Uncordon { worker: id("w") });
    let fails = paused(&mut desk, link, |_| {});
    desk.apply(attempt(fails, 1, 9));
    desk.apply(Event::Drain { worker: id("w"), within: Duration::ZERO });
    assert_eq!(desk.state(fails), SessionState::Paused);
    desk.apply(Event::ParkingFailed { session: fails, attempt: 9, why: "no".into() });
    desk.pass_beating(Duration::from_secs(2), &[("w", link)]);
    assert_eq!(desk.session(fails).end, Some(EndReason::Drained));
}

/// What is paused on a worker that is lost goes by the rules of before. Red when what is paused is never restored
/// (`may_restore`).
#[test]
fn a_paused_session_is_lost_with_its_worker_like_any_other() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let plain = paused(&mut desk, link, |_| {});
    let kept = paused(&mut desk, link, |c| c.spec.on_worker_loss = OnWorkerLoss::Restore);
    for session in [plain, kept] {
        desk.apply(attempt(session, 1, 7));
        keep(&mut desk, session, 1, "parked");
    }
    let other = desk.attach("other", 5);
    desk.pass_beating(Duration::from_secs(320), &[("other", other)]);
    assert_eq!(desk.session(plain).end, Some(EndReason::WorkerLost));
    assert_eq!((desk.on(kept).as_deref(), desk.state(kept)), (Some("other"), SessionState::Placed));
    assert_eq!(desk.session(kept).parked_at, None, "that was a recovery");
}

/// It is whole without its worker. Red when `evict_if_lost` takes it for lost: a grace may be shorter than the wait for
/// a word on its end. Red when `park` waits for the word of a worker that is dead.
#[test]
fn a_worker_that_is_lost_takes_nothing_with_it_that_is_parked() {
    let mut desk = Desk::new();
    desk.fleet.config.worker_loss_grace = Duration::from_secs(1);
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    let other = desk.attach("other", 5);
    desk.pass_beating(Duration::from_secs(5), &[("other", other)]);
    parked_but_there(&mut desk, session);
    desk.pass_beating(Duration::from_secs(7), &[("other", other)]);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));

    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = paused(&mut desk, link, |_| {});
    let other = desk.attach("other", 5);
    desk.pass_beating(Duration::from_secs(11), &[("other", other)]);
    parked_but_there(&mut desk, session);
    assert_eq!(desk.on(session), None);
}

/// Red when `lose` leaves `parked_at`: a recovery that finds no place would park it.
#[test]
fn one_that_was_parked_and_is_lost_later_is_recovered_like_any_other() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = parked(&mut desk, link, |c| c.spec.on_worker_loss = OnWorkerLoss::Restore);
    resume(&mut desk, session);
    desk.say("w", link, session, 2, SessionState::Ready);
    let other = desk.attach("other", 0);
    desk.pass_beating(Duration::from_secs(25), &[("other", other)]);
    assert_eq!((desk.state(session), desk.session(session).parked_at), (SessionState::Pending, None));
}
