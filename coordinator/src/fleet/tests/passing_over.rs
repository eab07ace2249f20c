//! A session whose newest checkpoint is gone or damaged goes back to the next older one, and says so; with none left it
//! ends with the truth. It never starts without its files.

use super::{
    restore::{gone, keep, placed, restorable},
    *,
};

/// Lost by `w`, and placed on `other` at epoch 2 with the checkpoint `new`.
fn recovering() -> (Desk, SessionId, LinkId) {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, false);
    keep(&mut desk, session, 1, "new");
    let other = desk.attach("other", 5);
    let effects = desk.apply(Event::Leaving { worker: id("w"), link });
    assert_eq!(placed(&effects), [(session, 2, Some("new".into()), true)]);
    (desk, session, other)
}

fn failure(worker: &str, link: LinkId, session: SessionId, epoch: u64) -> Event {
    let Event::Report(mut report) = report(worker, link, session, epoch, SessionState::Ended) else {
        unreachable!()
    };
    report.reason = Some(EndReason::SandboxFailed);
    report.message = "piece 0123 is lost".into();
    Event::Report(report)
}

fn recovery(desk: &Desk, session: SessionId) -> (String, Vec<String>, bool) {
    let recovery = desk.session(session).recovered.clone().expect("it recovers");
    (recovery.kept.from.checkpoint, recovery.passed_over, recovery.under_way)
}

/// Red when a failed restore ends the session although an older checkpoint is named by then.
#[test]
fn it_goes_back_to_the_next_older_one_and_says_so() {
    let (mut desk, session, other) = recovering();
    desk.apply(gone("new", Some("a piece is lost"), Some((session, "old"))));
    assert_eq!(desk.state(session), SessionState::Placed, "its worker decides whether it has what it needs");
    // As workers do it: first that it fails, then that it has.
    desk.say("other", other, session, 2, SessionState::Ending);
    let effects = desk.apply(failure("other", other, session, 2));
    assert_eq!(placed(&effects), [(session, 3, Some("old".into()), true)]);
    assert_eq!(recovery(&desk, session), ("old".into(), vec!["new".into()], true));
    // And once more.
    desk.apply(gone("old", Some("a piece is lost"), Some((session, "oldest"))));
    let effects = desk.apply(failure("other", other, session, 3));
    assert_eq!(placed(&effects), [(session, 4, Some("oldest".into()), true)]);
    desk.say("other", other, session, 4, SessionState::Ready);
    assert_eq!(recovery(&desk, session), ("oldest".into(), vec!["new".into(), "old".into()], false));
    let told = "went back to an older checkpoint: its newest, new, could not be restored";
    assert_eq!(desk.session(session).message, told);
    // That is told until there is a newer one again.
    desk.say("other", other, session, 4, SessionState::Ready);
    assert_eq!(desk.session(session).message, told);
    keep(&mut desk, session, 4, "next");
    assert_eq!(desk.session(session).message, "");
}

#[test]
fn with_none_left_it_ends_with_the_truth() {
    let (mut desk, session, other) = recovering();
    desk.apply(gone("new", Some("a piece is lost"), None));
    desk.say("other", other, session, 2, SessionState::Ending);
    desk.apply(failure("other", other, session, 2));
    let over = desk.session(session);
    assert_eq!(over.end, Some(EndReason::SandboxFailed));
    assert_eq!(
        over.message,
        "checkpoint new can't be restored (piece 0123 is lost), and there is no older one"
    );
}

/// The older ones would do no better. Red when each failure steps back.
#[test]
fn a_restore_that_fails_for_another_reason_goes_back_to_nothing_older() {
    let (mut desk, session, other) = recovering();
    desk.apply(gone("another", Some("a piece is lost"), Some((session, "old"))));
    desk.apply(failure("other", other, session, 2));
    assert_eq!(desk.session(session).end, Some(EndReason::SandboxFailed));
}

/// Nobody said that it failed: its second worker is lost too. Red when the older one is not taken with it.
#[test]
fn it_steps_back_as_well_when_its_next_worker_is_lost() {
    let (mut desk, session, other) = recovering();
    desk.apply(gone("new", None, Some((session, "old"))));
    let third = desk.attach("third", 5);
    let effects = desk.apply(Event::Leaving { worker: id("other"), link: other });
    assert_eq!(placed(&effects), [(session, 3, Some("old".into()), true)]);
    assert_eq!(recovery(&desk, session), ("old".into(), vec!["new".into()], true));
    let effects = desk.apply(refusal("third", third, session, 3));
    assert_eq!((placed(&effects), recovery(&desk, session).0), (vec![], "old".into()));
}

#[test]
fn while_it_waits_it_takes_the_older_one_or_ends() {
    for left in [true, false] {
        let mut desk = Desk::new();
        let link = desk.attach("w", 5);
        let session = restorable(&mut desk, "w", link, false);
        keep(&mut desk, session, 1, "new");
        desk.apply(Event::Leaving { worker: id("w"), link });
        assert_eq!(desk.state(session), SessionState::Pending);
        desk.apply(gone("new", None, left.then_some((session, "old"))));
        let hello = Event::Hello(Box::new(hello("next", LinkId(99), 5)));
        if left {
            assert_eq!(recovery(&desk, session), ("old".into(), vec!["new".into()], true));
            assert_eq!(placed(&desk.apply(hello)), [(session, 2, Some("old".into()), true)]);
        } else {
            assert_eq!(desk.session(session).end, Some(EndReason::WorkerLost));
            let message = &desk.session(session).message;
            assert_eq!(message, "checkpoint new was removed, and there is no older checkpoint");
            assert_eq!(placed(&desk.apply(hello)), []);
        }
    }
}

/// A session that was to be made of a checkpoint, which is removed while it waits or is refused.
/// Red when it is placed with whatever checkpoint it still names.
#[test]
fn a_session_never_starts_without_the_files_that_it_was_to_have() {
    let made_of = |create: &mut Create| {
        let from = RestoreFrom { checkpoint: "seed".into(), root: [2; 32] };
        create.restore = Some(Kept { from, at: start().wall });
    };
    let mut desk = Desk::new();
    let waits = desk.create_with(made_of);
    desk.apply(gone("seed", None, Some((SessionId::from_u128(999), "of another session"))));
    assert_eq!(desk.session(waits).end, Some(EndReason::SandboxFailed));
    let link = desk.attach("w", 5);
    let placed_there = desk.create_with(made_of);
    desk.apply(gone("seed", None, None));
    assert_eq!(desk.state(placed_there), SessionState::Placed, "its worker may have it all");
    let effects = desk.apply(refusal("w", link, placed_there, 1));
    assert_eq!((placed(&effects), desk.session(placed_there).end), (vec![], Some(EndReason::SandboxFailed)));
}

/// What is up needs none now: it goes to the older one, and tells of the damage until there is a newer one.
#[test]
fn a_session_that_runs_names_the_next_older_one() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = restorable(&mut desk, "w", link, false);
    keep(&mut desk, session, 1, "new");
    let named = |desk: &Desk| desk.session(session).checkpoint.as_ref().map(|k| k.from.checkpoint.clone());
    desk.apply(gone("new", None, Some((session, "removed"))));
    assert_eq!((named(&desk).as_deref(), desk.session(session).message.as_str()), (Some("removed"), ""));
    desk.apply(gone("removed", Some("a piece is lost"), Some((session, "damaged"))));
    assert_eq!(desk.session(session).message, "its newest checkpoint is damaged: removed");
    assert_eq!((named(&desk).as_deref(), desk.state(session)), (Some("damaged"), SessionState::Ready));
    keep(&mut desk, session, 1, "next");
    assert_eq!(desk.session(session).message, "");
}
