//! How a parked session comes back, and what becomes of it when it can not.

use super::{parking::*, *};

#[test]
fn a_resume_places_it_anew_with_its_files_and_says_what_is_gone() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = parked(&mut desk, link, |_| {});
    desk.pass_beating(Duration::from_secs(1), &[("w", link)]);
    let effects = resume(&mut desk, session);
    assert_eq!(placed(&effects), from_parked(session, 2));
    assert_eq!(resume(&mut desk, session).len(), 0, "it is under way");
    assert!(matches!(
        desk.refused(Event::Pause { by: Sight::All, session, paused: true }),
        Refused::SessionNotReady(SessionState::Placed)
    ));
    desk.say("w", link, session, 2, SessionState::Ready);
    let now = desk.session(session).clone();
    assert_eq!((now.state, now.paused_at), (SessionState::Ready, None));
    let at = berth_proto::convert::time_out(now.parked_at.expect("it was parked")).to_string();
    assert!(now.message.contains(&at) && now.message.contains("gone"), "{}", now.message);
    // It is a session like any other again: its next pause is a new one.
    pause(&mut desk, link, session, 2);
    assert_eq!(desk.session(session).message, "");
    desk.apply(attempt(session, 2, 8));
    keep(&mut desk, session, 2, "parked");
    desk.apply(parks(session, 2, 8));
}

#[test]
fn a_resume_goes_by_selector_and_priority() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 2);
    let with = |desk: &mut Desk, priority: i32| {
        parked(desk, link, |c| {
            c.spec.priority = priority;
            c.spec.wait_for_place = Duration::from_secs(300);
        })
    };
    let [low, high] = [with(&mut desk, -1), with(&mut desk, 5)];
    desk.apply(Event::Cordon { worker: id("w") });
    for session in [low, high] {
        assert_eq!(placed(&resume(&mut desk, session)), []);
        assert_eq!(desk.state(session), SessionState::Pending);
    }
    let effects = desk.apply(Event::Uncordon { worker: id("w") });
    let order: Vec<SessionId> = placed(&effects).into_iter().map(|(session, ..)| session).collect();
    assert_eq!(order, [high, low]);

    let mut desk = Desk::new();
    let link = LinkId(desk.draw());
    let mut fast = hello("w", link, 5);
    fast.labels.insert("disk".into(), "fast".into());
    desk.apply(Event::Hello(Box::new(fast)));
    let picky = parked(&mut desk, link, |c| drop(c.spec.selector.insert("disk".into(), "fast".into())));
    desk.attach("plain", 5);
    desk.apply(Event::Cordon { worker: id("w") });
    resume(&mut desk, picky);
    assert_eq!(desk.state(picky), SessionState::Pending, "the other worker is not what it asked for");
    desk.apply(Event::Uncordon { worker: id("w") });
    assert_eq!(desk.on(picky).as_deref(), Some("w"));
}

/// Red when `give_up` ends it like a new one: its checkpoint would go with it in the end.
#[test]
fn without_a_place_it_stays_parked() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = parked(&mut desk, link, |_| {});
    let hasty = parked(&mut desk, link, |c| c.spec.wait_for_place = Duration::ZERO);
    desk.apply(Event::Cordon { worker: id("w") });
    assert!(matches!(
        desk.refused(Event::Pause { by: Sight::All, session: hasty, paused: false }),
        Refused::NoPlace(_)
    ));
    assert_eq!(desk.state(hasty), SessionState::Parked);
    resume(&mut desk, session);
    assert!(matches!(desk.refused(gone("parked")), Refused::CheckpointInUse(_)));
    desk.pass_beating(Duration::from_secs(31), &[("w", link)]);
    let now = desk.session(session).clone();
    assert_eq!(
        (now.state, now.resume_failed, now.end),
        (SessionState::Parked, Some(EndReason::NoPlace), None)
    );
    assert!(now.message.starts_with("could not be resumed, and stays parked: "), "{}", now.message);
    desk.apply(Event::Uncordon { worker: id("w") });
    assert_eq!(desk.state(session), SessionState::Parked, "nobody asks for it any more");
    assert_eq!(placed(&resume(&mut desk, session)), from_parked(session, 2));
}

/// Red when `reported_end` or `start_is_late` ends it.
#[test]
fn a_start_that_fails_leaves_it_parked() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = parked(&mut desk, link, |_| {});
    resume(&mut desk, session);
    let Event::Report(mut failed) = report("w", link, session, 2, SessionState::Ended) else {
        unreachable!()
    };
    failed.reason = Some(EndReason::SandboxFailed);
    failed.message = "a piece is damaged".into();
    desk.apply(Event::Report(failed));
    let now = desk.session(session).clone();
    assert_eq!((now.state, now.resume_failed), (SessionState::Parked, Some(EndReason::SandboxFailed)));
    assert!(now.message.ends_with("a piece is damaged"), "{}", now.message);

    assert_eq!(placed(&resume(&mut desk, session)), from_parked(session, 3));
    let effects = desk.pass_beating(Duration::from_secs(910), &[("w", link)]);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Parked, None));
    let ended = |c: &&Command| matches!(c, Command::End(end) if end.epoch == Epoch(3));
    assert!(sent(&effects).iter().any(ended), "the late one is ended there");
    // A worker that stops meanwhile is not a failure: another one has room.
    resume(&mut desk, session);
    desk.attach("other", 5);
    desk.apply(Event::Cordon { worker: id("w") });
    let Event::Report(mut drained) = report("w", link, session, 4, SessionState::Ended) else {
        unreachable!()
    };
    drained.reason = Some(EndReason::Drained);
    desk.apply(Event::Report(drained));
    assert_eq!((desk.on(session).as_deref(), desk.session(session).epoch), (Some("other"), Epoch(5)));
}

/// A resume that comes while the sandbox still ends. Red when `vacate` forgets the resume.
#[test]
fn a_resume_that_comes_too_late_to_stop_it_waits_for_its_end() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 1);
    let session = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, session);
    assert_eq!(placed(&resume(&mut desk, session)), []);
    assert_eq!((desk.state(session), desk.on(session).as_deref()), (SessionState::Parked, Some("w")));
    let effects = leaves(&mut desk, link, session);
    assert_eq!(placed(&effects), from_parked(session, 2), "in the place that it gave up");
    desk.say("w", link, session, 2, SessionState::Ready);
}

/// Red when `vacate` does not say that the resume was refused.
#[test]
fn one_that_finds_no_place_then_stays_parked() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 1);
    let session = paused(&mut desk, link, |c| c.spec.wait_for_place = Duration::ZERO);
    parked_but_there(&mut desk, session);
    resume(&mut desk, session);
    desk.apply(Event::Cordon { worker: id("w") });
    leaves(&mut desk, link, session);
    let now = desk.session(session);
    assert_eq!(
        (now.state, &now.worker, now.resume_failed),
        (SessionState::Parked, &None, Some(EndReason::NoPlace))
    );
}

/// A tick that is late looks at more than one thing. Red when workers are not looked at first.
#[test]
fn a_late_tick_places_nothing_on_a_worker_whose_lease_is_over() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 1);
    let session = paused(&mut desk, link, |_| {});
    parked_but_there(&mut desk, session);
    resume(&mut desk, session);
    desk.pass_beating(Duration::from_secs(6), &[("w", link)]);
    desk.attach("other", 1);
    desk.apply(Event::LinkLost { worker: id("w"), link });
    desk.now.mono += Duration::from_secs(20);
    desk.now.wall += Duration::from_secs(20);
    let effects = desk.apply(Event::Tick);
    assert_eq!(placed(&effects), []);
    assert_eq!((desk.state(session), desk.on(session)), (SessionState::Pending, None));
}
