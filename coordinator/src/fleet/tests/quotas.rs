//! What a tenant may have.

use super::*;

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn creation(number: u128, of: &str, change: impl FnOnce(&mut Create)) -> Event {
    let mut create = create(SessionId::from_u128(number));
    create.spec.tenant = tenant(of);
    change(&mut create);
    Event::Create(Box::new(create))
}

fn limit(of: &str, patch: QuotaPatch) -> Event {
    Event::SetQuota { tenant: tenant(of), patch }
}

/// Which quota refused it, with what there is of it and the limit.
fn exceeded(refused: Refused) -> (&'static str, u128, u64) {
    match refused {
        Refused::QuotaExceeded(exceeded) => (exceeded.option, exceeded.used, exceeded.limit),
        other => panic!("{other:?}"),
    }
}

/// Red when those that wait are not counted, when ended ones are, or when tenants share what they may have.
#[test]
fn what_waits_counts_and_what_has_ended_does_not() {
    let config = FleetConfig { queue_limit: 100, tenant_queue_limit: 100, ..config() };
    let fleet = Fleet::restore(config, 1, Loaded::default(), start()).0;
    let mut desk = Desk { fleet, now: start(), next: 0 };
    let sessions = QuotaPatch { sessions: Some(Some(2)), ..QuotaPatch::default() };
    desk.apply(limit("a", sessions));
    desk.apply(creation(1, "a", |_| {}));
    desk.apply(creation(2, "a", |_| {}));
    assert_eq!(exceeded(desk.refused(creation(3, "a", |_| {}))), ("--max-sessions", 2, 2));
    desk.apply(creation(4, "b", |_| {}));
    let session = SessionId::from_u128(1);
    desk.apply(Event::Delete { by: Sight::All, session, reason: EndReason::Deleted });
    desk.apply(creation(5, "a", |_| {}));
    // A request that is made again is answered with what it made, however little is left.
    let keyed = |number| creation(number, "b", |create| create.key = Some(("k".into(), [1; 32])));
    desk.apply(keyed(6));
    desk.apply(limit("b", sessions));
    assert_eq!(desk.refused(keyed(7)), Refused::AlreadyCreated(SessionId::from_u128(6)));
    assert_eq!(exceeded(desk.refused(creation(8, "b", |_| {}))), ("--max-sessions", 2, 2));
    // What is lowered ends nothing; without a limit there is none.
    desk.apply(limit("b", QuotaPatch { sessions: Some(Some(0)), ..QuotaPatch::default() }));
    assert_eq!(desk.state(SessionId::from_u128(6)), SessionState::Pending);
    desk.apply(limit("b", QuotaPatch { sessions: Some(None), ..QuotaPatch::default() }));
    desk.apply(creation(9, "b", |_| {}));
}

#[test]
fn each_resource_has_its_own_quota() {
    let none = QuotaPatch::default();
    for (patch, option) in [
        (QuotaPatch { cpu_millis: Some(Some(2500)), ..none }, "--cpu"),
        (QuotaPatch { memory_bytes: Some(Some(2 * GIB + 1)), ..none }, "--memory"),
        (QuotaPatch { disk_bytes: Some(Some(3 * GIB - 1)), ..none }, "--disk"),
        (QuotaPatch { creates_per_minute: Some(Some(2)), ..none }, "--creates-per-minute"),
    ] {
        let mut desk = Desk::new();
        desk.apply(limit("a", patch));
        desk.apply(creation(1, "a", |_| {}));
        desk.apply(creation(2, "a", |_| {}));
        assert_eq!(exceeded(desk.refused(creation(3, "a", |_| {}))).0, option);
        desk.apply(creation(4, "default", |_| {}));
    }
}

/// Red with a bucket that refills: then a third one is made after half a minute.
#[test]
fn in_any_minute_so_many_are_made() {
    let mut desk = Desk::new();
    desk.apply(limit("a", QuotaPatch { creates_per_minute: Some(Some(2)), ..QuotaPatch::default() }));
    desk.apply(creation(1, "a", |_| {}));
    desk.pass(Duration::from_secs(30));
    desk.apply(creation(2, "a", |_| {}));
    desk.pass(Duration::from_secs(29));
    assert_eq!(exceeded(desk.refused(creation(3, "a", |_| {}))).1, 2);
    desk.pass(Duration::from_secs(1));
    desk.apply(creation(4, "a", |_| {}));
    assert_eq!(exceeded(desk.refused(creation(5, "a", |_| {}))).1, 2);
}

/// Red when keys or names are looked up without their tenant.
#[test]
fn request_ids_and_names_are_each_tenants_own() {
    let mut desk = Desk::new();
    let both = |number, of: &str| {
        creation(number, of, |create| {
            create.key = Some(("k".into(), [1; 32]));
            create.labels = Labels::from([("name".to_owned(), "box".to_owned())]);
        })
    };
    desk.apply(both(1, "a"));
    desk.apply(both(2, "b"));
    assert_eq!(desk.refused(both(3, "b")), Refused::AlreadyCreated(SessionId::from_u128(2)));
    // A tenant's name is no way into another's ids.
    desk.apply(creation(4, "b", |create| create.key = Some(("a/k".into(), [1; 32]))));
}

/// Red when `seen` finds everything.
#[test]
fn anothers_session_is_not_found() {
    let mut desk = Desk::new();
    desk.apply(creation(1, "a", |_| {}));
    let session = SessionId::from_u128(1);
    let by = || Sight::Of(tenant("b"));
    let no_such = Refused::NoSession(session);
    let reason = EndReason::Deleted;
    assert_eq!(desk.refused(Event::Delete { by: by(), session, reason }), no_such);
    assert_eq!(desk.refused(Event::Pause { by: by(), session, paused: true }), no_such);
    let update = |by| Update {
        by,
        session,
        set_labels: Labels::new(),
        remove_labels: Vec::new(),
        ttl: Some(None),
        idle_timeout: None,
        egress: None,
    };
    assert_eq!(desk.refused(Event::Update(Box::new(update(by())))), no_such);
    desk.apply(Event::Update(Box::new(update(Sight::Of(tenant("a"))))));
    desk.apply(Event::Delete { by: Sight::All, session, reason });
}

#[test]
fn a_quota_that_the_store_refuses_is_not_in_force() {
    let mut desk = Desk::new();
    desk.fleet.commit();
    desk.fleet
        .apply(limit("a", QuotaPatch { sessions: Some(Some(0)), ..QuotaPatch::default() }), desk.now)
        .unwrap();
    desk.fleet.rollback();
    desk.apply(creation(1, "a", |_| {}));
}
