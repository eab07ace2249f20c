//! The label `name`: of live sessions each has another.

use super::*;

fn named(name: &str) -> Labels {
    Labels::from([("name".to_owned(), name.to_owned())])
}

fn creation(number: u128, name: &str) -> Event {
    Event::Create(Box::new(Create { labels: named(name), ..create(SessionId::from_u128(number)) }))
}

fn taken(name: &str, by: SessionId) -> Refused {
    Refused::NameTaken { name: name.to_owned(), by }
}

fn rename(session: SessionId, labels: Labels, remove: &[&str]) -> Event {
    Event::Update(Box::new(Update {
        by: Sight::All,
        session,
        set_labels: labels,
        remove_labels: remove.iter().map(ToString::to_string).collect(),
        ttl: None,
        idle_timeout: None,
        egress: None,
    }))
}

#[test]
fn a_name_is_taken_for_as_long_as_its_session_lives() {
    let mut desk = Desk::new();
    let link = desk.attach("w", 5);
    let first = desk.create_with(|c| c.labels = named("box"));
    assert_eq!(desk.refused(creation(100, "box")), taken("box", first));
    desk.apply(creation(101, "boxes"));
    desk.say("w", link, first, 1, SessionState::Ready);
    assert_eq!(desk.refused(creation(102, "box")), taken("box", first));
    // From the moment it is being ended, another may have it.
    desk.apply(Event::Delete { by: Sight::All, session: first, reason: EndReason::Deleted });
    assert_eq!(desk.state(first), SessionState::Ending);
    desk.apply(creation(103, "box"));
}

#[test]
fn a_name_can_be_given_and_taken_back_later() {
    let mut desk = Desk::new();
    let [one, two] = [desk.create_with(|c| c.labels = named("one")), desk.create()];
    assert_eq!(desk.refused(rename(two, named("one"), &[])), taken("one", one));
    desk.apply(rename(one, named("one"), &[]));
    desk.apply(rename(one, Labels::new(), &["name"]));
    desk.apply(rename(two, named("one"), &[]));
    assert_eq!(desk.refused(creation(100, "one")), taken("one", two));
}

#[test]
fn the_same_request_finds_its_own_session_and_no_name_is_no_clash() {
    let mut desk = Desk::new();
    let keyed = |number| {
        let wanted = create(SessionId::from_u128(number));
        Event::Create(Box::new(Create { labels: named("box"), key: Some(("k".into(), [1; 32])), ..wanted }))
    };
    desk.apply(keyed(100));
    assert_eq!(desk.refused(keyed(101)), Refused::AlreadyCreated(SessionId::from_u128(100)));
    desk.apply(creation(102, ""));
    desk.apply(creation(103, ""));
}

#[test]
fn a_rolled_back_name_is_free_again() {
    let mut desk = Desk::new();
    desk.fleet.apply(creation(100, "box"), desk.now).unwrap();
    desk.fleet.rollback();
    desk.apply(creation(101, "box"));
    // And a refused create has taken none.
    desk.refused(creation(102, "box"));
    desk.apply(Event::Delete {
        by: Sight::All,
        session: SessionId::from_u128(101),
        reason: EndReason::Deleted,
    });
    desk.apply(creation(103, "box"));
}
