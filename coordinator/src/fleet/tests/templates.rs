//! Templates that workers can't serve, or haven't looked at yet.

use berth_proto::domain::{Egress, Preset};

use super::*;

/// Attaches a worker that serves nothing, with what it says of `base`.
fn attach_without(desk: &mut Desk, worker: &str, problem: Option<&str>) -> LinkId {
    let link = LinkId(desk.draw());
    let mut hello = hello(worker, link, 5);
    hello.templates.clear();
    hello.template_problems = problems(problem);
    desk.apply(Event::Hello(Box::new(hello)));
    link
}

fn problems(problem: Option<&str>) -> BTreeMap<String, String> {
    problem.map(|reason| ("base".to_owned(), reason.to_owned())).into_iter().collect()
}

/// A heartbeat that tells of a problem instead of serving `base`.
fn sick(worker: &str, link: LinkId, problem: &str) -> Event {
    let Event::Heartbeat(mut beat) = beat(worker, link) else { unreachable!() };
    beat.templates.clear();
    beat.template_problems = problems(Some(problem));
    Event::Heartbeat(beat)
}

fn patient(c: &mut Create) {
    c.spec.patient = true;
}

#[test]
fn before_the_workers_review_is_in_a_session_waits_and_then_is_placed() {
    let mut desk = Desk::new();
    let link = attach_without(&mut desk, "w", None);
    let session = desk.create();
    assert_eq!(desk.state(session), SessionState::Pending);
    assert!(
        desk.session(session).message.contains("has not said yet whether"),
        "{}",
        desk.session(session).message
    );
    desk.apply(beat("w", link));
    assert_eq!(desk.on(session).as_deref(), Some("w"));
}

#[test]
fn what_no_worker_can_serve_is_refused_at_once_with_each_ones_reason() {
    let mut desk = Desk::new();
    attach_without(&mut desk, "one", Some("no such root"));
    let two = attach_without(&mut desk, "two", Some("no such image"));
    let words = "no worker can serve template \"base\": one: no such root; two: no such image";
    let wanted = || Event::Create(Box::new(create(SessionId::from_u128(500))));
    assert_eq!(desk.refused(wanted()), Refused::TemplateUnavailable(words.into()));
    // One that doesn't answer has no say ...
    desk.apply(Event::LinkLost { worker: id("two"), link: two });
    assert!(matches!(desk.refused(wanted()), Refused::TemplateUnavailable(words) if !words.contains("two")));
    // ... and one that hasn't looked yet is worth the wait.
    attach_without(&mut desk, "three", None);
    let waits = desk.create();
    assert_eq!(desk.state(waits), SessionState::Pending);
}

#[test]
fn without_any_worker_nobody_says_that_the_template_is_at_fault() {
    let mut desk = Desk::new();
    let session = desk.create();
    desk.pass(Duration::from_secs(31));
    assert_eq!(desk.session(session).message, "no worker is attached");
    assert!(!desk.session(session).unservable);
}

#[test]
fn who_asked_to_wait_waits_is_told_why_and_gets_the_worker_that_comes() {
    let mut desk = Desk::new();
    let link = attach_without(&mut desk, "w", Some("no such root"));
    let [waits, too_long] = [desk.create_with(patient), desk.create_with(patient)];
    assert!(desk.session(waits).message.contains("no worker can serve template \"base\": w: no such root"));
    desk.apply(sick("w", link, "another reason"));
    assert!(desk.session(waits).message.contains("another reason"), "{}", desk.session(waits).message);
    desk.apply(Event::Delete { by: Sight::All, session: waits, reason: EndReason::Deleted });
    for _ in 0..11 {
        desk.pass(Duration::from_secs(3));
        desk.apply(sick("w", link, "another reason"));
    }
    let session = desk.session(too_long);
    assert_eq!((session.end, session.unservable), (Some(EndReason::NoPlace), true));
    assert_eq!(session.message, "no worker can serve template \"base\": w: another reason");
    let comes = desk.create_with(patient);
    desk.attach("good", 5);
    assert_eq!(desk.on(comes).as_deref(), Some("good"));
}

#[test]
fn a_problem_told_later_ends_the_wait_of_who_did_not_ask_to_wait() {
    let mut desk = Desk::new();
    let link = attach_without(&mut desk, "w", None);
    let [hasty, waits] = [desk.create(), desk.create_with(patient)];
    desk.apply(sick("w", link, "no such root"));
    assert_eq!((desk.state(hasty), desk.session(hasty).unservable), (SessionState::Ended, true));
    assert_eq!(desk.state(waits), SessionState::Pending);
    // Mended, it is placed.
    desk.apply(beat("w", link));
    assert_eq!(desk.on(waits).as_deref(), Some("w"));
}

#[test]
fn a_message_that_is_no_longer_so_is_taken_back() {
    let mut desk = Desk::new();
    attach_without(&mut desk, "w", Some("no such root"));
    let waits = desk.create_with(patient);
    desk.apply(Event::Hello(Box::new(Hello { templates: BTreeSet::new(), ..hello("x", LinkId(90), 5) })));
    let message = &desk.session(waits).message;
    assert!(!message.contains("no worker can serve") && message.contains("x has not said yet"), "{message}");
}

/// Red when placement does not look at what a worker's operator gives (`may_take`), and when an update does not.
#[test]
fn full_egress_is_for_where_it_is_given() {
    let mut desk = Desk::new();
    let closed = desk.attach("closed", 5);
    let full = || Egress { preset: Preset::Full, allow: Vec::new() };
    let mut wanted = create(SessionId::from_u128(500));
    wanted.spec.egress = full();
    let refused = desk.refused(Event::Create(Box::new(wanted)));
    assert!(matches!(&refused, Refused::TemplateUnavailable(words) if words.contains("BERTH_EGRESS_FULL")));
    let there = desk.ready("closed", closed);
    let update = Update {
        by: Sight::All,
        session: there,
        set_labels: Labels::new(),
        remove_labels: Vec::new(),
        ttl: None,
        idle_timeout: None,
        egress: Some(full()),
    };
    let refused = desk.refused(Event::Update(Box::new(update)));
    assert_eq!(refused, Refused::NoFullEgress(id("closed")));

    let mut open = hello("open", LinkId(desk.draw()), 5);
    open.full_egress = true;
    desk.apply(Event::Hello(Box::new(open)));
    let session = desk.create_with(|c| c.spec.egress = full());
    assert_eq!(desk.on(session).as_deref(), Some("open"));
}
