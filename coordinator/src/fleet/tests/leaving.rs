//! Workers that go: told cleanly, or found dead, and when they are forgotten. And what they
//! may be switched to while they are there.

use berth_proto::domain::Backend;

use super::*;

fn leaving(worker: &str, link: LinkId) -> Event {
    Event::Leaving { worker: id(worker), link }
}

#[test]
fn a_worker_that_says_that_it_leaves_is_forgotten_at_once() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let effects = desk.apply(leaving("w", link));
    assert!(effects.iter().any(|e| matches!(e, Effect::ForgetWorker(gone) if *gone == id("w"))));
    assert_eq!(desk.fleet.workers().count(), 0);
    // The end of its stream, which follows, is no news.
    assert!(desk.apply(Event::LinkLost { worker: id("w"), link }).is_empty());
    desk.attach("w", 5);
    assert_eq!(desk.fleet.workers[&id("w")].liveness, Liveness::Alive);
}

#[test]
fn what_a_worker_left_behind_is_lost_or_placed_anew() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let ready = desk.ready("w", link);
    let placed = desk.create();
    desk.apply(leaving("w", link));
    assert_eq!(desk.session(ready).end, Some(EndReason::WorkerLost));
    assert_eq!(desk.state(placed), SessionState::Pending);
    desk.attach("other", 5);
    assert_eq!(desk.on(placed).as_deref(), Some("other"));
}

#[test]
fn only_the_newest_link_can_say_that_its_worker_leaves() {
    let mut desk = Desk::new();
    let old = desk.attach("w", 5);
    desk.attach("w", 5);
    assert!(desk.apply(leaving("w", old)).is_empty());
    assert_eq!(desk.fleet.workers[&id("w")].liveness, Liveness::Alive);
}

#[test]
fn a_cordoned_worker_that_leaves_comes_back_cordoned() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    desk.apply(Event::Cordon { worker: id("w") });
    desk.apply(leaving("w", link));
    assert_eq!(desk.fleet.workers[&id("w")].liveness, Liveness::Dead, "at once, and not suspect");
    desk.pass(Duration::from_secs(3600));
    desk.attach("w", 5);
    assert_eq!(desk.fleet.workers[&id("w")].scheduling, Scheduling::Cordoned);
}

#[test]
fn a_dead_worker_without_sessions_is_forgotten_after_ten_minutes() {
    let mut desk = Desk::new();
    desk.attach("empty", 5);
    let link = desk.attach("full", 5);
    // Only this one lives: it keeps the others from being everybody.
    let here = desk.attach("here", 0);
    let held = desk.ready("empty", LinkId(1));
    assert_eq!(desk.on(held).as_deref(), Some("empty"));
    desk.apply(Event::LinkLost { worker: id("full"), link });
    desk.pass_beating(Duration::from_secs(580), &[("here", here)]);
    assert!(desk.fleet.workers.contains_key(&id("full")), "not yet");
    desk.pass_beating(Duration::from_secs(120), &[("here", here)]);
    assert!(!desk.fleet.workers.contains_key(&id("full")));
    assert!(desk.fleet.workers.contains_key(&id("here")));
}

#[test]
fn a_backend_that_a_worker_does_not_offer_is_refused_and_auto_never_is() {
    let mut desk = Desk::new();
    let status = |name: &str, ready, message: &str| v1::BackendStatus {
        name: name.into(),
        ready,
        message: message.into(),
        chosen: false,
    };
    let mut hello = hello("w", LinkId(7), 5);
    hello.backends = vec![status("docker", false, "no engine answers"), status("native", true, "")];
    desk.apply(Event::Hello(Box::new(hello)));
    let set = |backend| Event::SetBackend { worker: id("w"), backend };
    let only = |backend| set(BackendChoice::Only(backend));
    assert_eq!(
        desk.refused(only(Backend::Docker)),
        Refused::BackendUnavailable(
            "docker can't be used on w now (no engine answers); it offers native".into()
        )
    );
    assert_eq!(
        desk.refused(only(Backend::Fake)),
        Refused::BackendUnavailable("w was not started with the backend fake; it offers native".into())
    );
    for backend in [BackendChoice::Auto, BackendChoice::Only(Backend::Native)] {
        assert!(
            matches!(sent(&desk.apply(set(backend)))[..], [Command::SetBackend(told)] if *told == backend)
        );
    }
}
