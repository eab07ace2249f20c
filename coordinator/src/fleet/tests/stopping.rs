//! Workers whose process stops: drained, but only as this process.

use super::*;

const GRACE: Duration = Duration::from_secs(20);

fn stopping(worker: &str, link: LinkId) -> Event {
    Event::Stopping { worker: id(worker), link, within: GRACE }
}

fn in_force(desk: &Desk, worker: &str) -> Scheduling {
    desk.fleet.workers[&id(worker)].in_force()
}

/// Red when `standing` goes by what the operator said, or when what starts there is left there.
#[test]
fn it_takes_nothing_and_what_starts_there_goes_elsewhere() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let ready = desk.ready("w", link);
    let starting = desk.create();
    desk.attach("other", 2);
    let effects = desk.apply(stopping("w", link));
    assert_eq!(in_force(&desk, "w"), Scheduling::Draining { until: desk.now.wall + GRACE });
    assert!(
        !effects.iter().any(|e| matches!(e, Effect::SaveWorker(_))),
        "the next process knows nothing of it"
    );
    assert!(effects.iter().any(|e| matches!(e, Effect::WorkerChanged { visible: true, .. })));
    assert!(matches!(sent(&effects)[0], Command::End(end)
        if end.session == starting && end.epoch == Epoch(1) && end.reason == EndReason::Drained));
    assert_eq!((desk.on(starting).as_deref(), desk.session(starting).epoch), (Some("other"), Epoch(2)));
    assert_eq!(desk.on(ready).as_deref(), Some("w"), "it may end by itself");
    let (fits, waits) = (desk.create(), desk.create());
    assert_eq!(desk.on(fits).as_deref(), Some("other"));
    assert_eq!(desk.state(waits), SessionState::Pending, "there is room where nothing goes any more");
}

/// Red when `hello` keeps the stop of an earlier process, or writes it over what the operator said.
#[test]
fn the_next_process_is_scheduled_as_the_operator_said() {
    for (said, expected) in
        [(None, Scheduling::Active), (Some(Event::Cordon { worker: id("w") }), Scheduling::Cordoned)]
    {
        let mut desk = Desk::new();
        let link = desk.attach("w", 5);
        desk.apply(stopping("w", link));
        said.into_iter().for_each(|event| drop(desk.apply(event)));
        assert!(matches!(in_force(&desk, "w"), Scheduling::Draining { .. }), "it stops all the same");
        desk.apply(Event::LinkLost { worker: id("w"), link });
        assert!(matches!(in_force(&desk, "w"), Scheduling::Draining { .. }));
        // The same process, that attaches anew, still stops. How long it had is what it said first.
        let again = LinkId(desk.draw());
        let mut same = hello("w", again, 5);
        same.process = format!("process of link {}", link.0);
        same.stopping_within = Some(GRACE / 4);
        desk.apply(Event::Hello(Box::new(same)));
        let stop = desk.fleet.workers[&id("w")].stopping.expect("it stops");
        assert_eq!((stop.until, stop.within), (desk.now.wall + GRACE / 4, GRACE));
        desk.attach("w", 5);
        assert_eq!(in_force(&desk, "w"), expected);
    }
}

/// Red when the operator's deadline holds whatever the worker says.
#[test]
fn of_two_deadlines_the_sooner_one_holds_and_an_uncordon_keeps_no_process_from_stopping() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    desk.apply(stopping("w", link));
    let until = |desk: &Desk| match in_force(desk, "w") {
        Scheduling::Draining { until } => until.duration_since(desk.now.wall).unwrap(),
        other => panic!("{other:?}"),
    };
    desk.apply(Event::Drain { worker: id("w"), within: GRACE * 2 });
    assert_eq!(until(&desk), GRACE);
    desk.apply(Event::Drain { worker: id("w"), within: GRACE / 2 });
    assert_eq!(until(&desk), GRACE / 2);
    let effects = desk.apply(Event::Uncordon { worker: id("w") });
    assert!(matches!(sent(&effects)[..], [Command::Cordoned(true)]));
    assert_eq!(until(&desk), GRACE);
}

/// It may be killed while it stops, and its sandboxes live on: they wait for its next process like those of any
/// other that is lost. Red when the stop's deadline is kept here.
#[test]
fn what_it_held_when_it_was_killed_is_not_ended_by_its_deadline() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.ready("w", link);
    let other = desk.attach("other", 5);
    desk.apply(stopping("w", link));
    desk.apply(Event::LinkLost { worker: id("w"), link });
    desk.pass_beating(GRACE * 3, &[("other", other)]);
    assert_eq!(desk.state(session), SessionState::Ready);
    let mut next = hello("w", LinkId(99), 5);
    next.running =
        vec![Running { session, epoch: Epoch(1), state: SessionState::Ready, backend: String::new() }];
    desk.apply(Event::Hello(Box::new(next)));
    assert_eq!((desk.state(session), in_force(&desk, "w")), (SessionState::Ready, Scheduling::Active));
}

/// The worker's own word may come first: it ends what still starts. Red when `reported_end` takes it for the end of the
/// session.
#[test]
fn what_it_ends_before_it_was_ready_waits_for_another_place() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let session = desk.create();
    let Event::Report(mut ended) = report("w", link, session, 1, SessionState::Ended) else { unreachable!() };
    ended.reason = Some(EndReason::Drained);
    desk.apply(Event::Cordon { worker: id("w") });
    desk.apply(Event::Report(ended));
    assert_eq!(desk.state(session), SessionState::Pending);
    desk.attach("other", 5);
    assert_eq!((desk.on(session).as_deref(), desk.session(session).epoch), (Some("other"), Epoch(2)));
}

/// Red when `stopping` takes the word of any link.
#[test]
fn only_the_newest_link_can_say_that_its_worker_stops() {
    let mut desk = Desk::new();
    let old = desk.attach("w", 5);
    desk.attach("w", 5);
    assert!(desk.apply(stopping("w", old)).is_empty());
    assert_eq!(in_force(&desk, "w"), Scheduling::Active);
}
