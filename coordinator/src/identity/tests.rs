//! What a token opens, and for how long.

use super::*;
use crate::store::memory::MemoryStore;

struct Desk {
    identity: Arc<Identity>,
    store: Arc<MemoryStore>,
    credentials: Credentials,
    _dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::load_or_make(dir.path()).unwrap();
        let store = Arc::new(MemoryStore::default());
        let identity = Identity::new(&credentials, store.clone(), Vec::new());
        Self { identity, store, credentials, _dir: dir }
    }

    fn check(&self, token: &str) -> Result<Caller, Error> {
        self.identity.check(Some(format!("Bearer {token}").as_bytes()))
    }

    async fn make(&self, kind: Kind, uses: Option<u32>) -> (Arc<Token>, String) {
        let tenant = "team-a".parse().unwrap();
        let new = New { name: "n".into(), kind, tenant, ttl: Some(Duration::from_secs(3600)), uses };
        self.identity.create(new).await.unwrap()
    }

    async fn register(&self, token: &str, worker: &str) -> Result<Option<Credential>, Error> {
        let caller = self.check(token)?;
        self.identity.register(&caller, &worker.parse().unwrap()).await
    }
}

fn worker(id: &str) -> Kind {
    Kind::Worker(id.parse().unwrap())
}

#[tokio::test]
async fn a_token_says_who_calls() {
    let desk = Desk::new();
    let caller = desk.check(&desk.credentials.admin_token).unwrap();
    assert_eq!((caller.scope, caller.tenant.as_str(), caller.sight()), (Scope::Admin, "default", Sight::All));
    assert_eq!(desk.check(&desk.credentials.join_token).unwrap().scope, Scope::Worker);
    let (token, value) = desk.make(Kind::Client, None).await;
    assert!(value.starts_with("berth_client_") && value.len() == "berth_client_".len() + 64);
    let caller = desk.check(&value).unwrap();
    assert_eq!((caller.scope, caller.sight()), (Scope::Client, Sight::Of("team-a".parse().unwrap())));
    // What is kept does not open anything, and does not show.
    let kept = format!("{:?} {:?}", token, token.digest);
    assert!(!kept.contains(&value["berth_client_".len()..]));
    for bad in ["", "berth_", "berth_client_", &value[..value.len() - 1], &token.id.to_string()] {
        assert_eq!(desk.check(bad).unwrap_err().reason(), Reason::TokenInvalid, "{bad:?}");
    }
    assert_eq!(desk.identity.check(Some(b"x")).unwrap_err().reason(), Reason::TokenInvalid);
    assert_eq!(desk.identity.check(None).unwrap_err().reason(), Reason::TokenMissing);
}

#[tokio::test]
async fn a_revoked_token_ends_what_is_under_way() {
    let desk = Desk::new();
    let (token, value) = desk.make(Kind::Admin, None).await;
    let mut ended = Box::pin(desk.check(&value).unwrap().ended().unwrap());
    assert!(futures::poll!(&mut ended).is_pending());
    desk.identity.revoke(token.id).await.unwrap();
    assert_eq!(ended.await.reason(), Reason::TokenRevoked);
    assert_eq!(desk.check(&value).unwrap_err().reason(), Reason::TokenRevoked);
    let (again, was_good) = desk.identity.revoke(token.id).await.unwrap();
    assert!(!was_good);
    assert_eq!(again.state(world::now()), State::Revoked);
    let missing = desk.identity.revoke(TokenId::new()).await.unwrap_err();
    assert_eq!(missing.reason(), Reason::TokenNotFound);
}

/// Red when memory is changed before the store: then the token stays refused, although the store has it as good.
#[tokio::test]
async fn what_the_store_refuses_has_not_happened() {
    let desk = Desk::new();
    let (token, value) = desk.make(Kind::Client, None).await;
    desk.store.fail(true);
    assert_eq!(desk.identity.revoke(token.id).await.unwrap_err().reason(), Reason::StoreFailed);
    assert!(desk.check(&value).is_ok());
    desk.store.fail(false);
    desk.identity.revoke(token.id).await.unwrap();
    let loaded = desk.store.load().await.unwrap().tokens;
    assert_eq!(loaded.len(), 1);
    let restarted = Identity::new(&desk.credentials, desk.store.clone(), loaded);
    let refused = restarted.check(Some(format!("Bearer {value}").as_bytes())).unwrap_err();
    assert_eq!(refused.reason(), Reason::TokenRevoked);
}

#[tokio::test]
async fn a_token_for_one_worker_is_used_up_by_its_worker_id() {
    let desk = Desk::new();
    let (_, join) = desk.make(Kind::Join, Some(1)).await;
    let first = desk.register(&join, "w1").await.unwrap().expect("a credential of its own");
    assert_eq!(first.token.kind, worker("w1"));
    // The answer was lost: the same worker is given another, and the first is good for nothing.
    let second = desk.register(&join, "w1").await.unwrap().unwrap();
    assert!(first.over.is_cancelled());
    assert_eq!(desk.check(&first.value).unwrap_err().reason(), Reason::TokenRevoked);
    assert_eq!(desk.register(&join, "w2").await.err().unwrap().reason(), Reason::TokenUsedUp);
    // Once it is kept, no more.
    desk.identity.kept(second.token.id).await.unwrap();
    assert_eq!(desk.register(&join, "w1").await.err().unwrap().reason(), Reason::WorkerIdBound);
    let join_file = desk.credentials.join_token.clone();
    assert_eq!(desk.register(&join_file, "w1").await.err().unwrap().reason(), Reason::WorkerIdBound);
    assert!(desk.register(&join_file, "w2").await.unwrap().is_none(), "it goes on with what it has");
    // The credential is its worker's alone.
    assert!(desk.register(&second.value, "w1").await.unwrap().is_none());
    assert_eq!(desk.register(&second.value, "w2").await.err().unwrap().reason(), Reason::WorkerIdBound);
    // Revoked: the id is free again, for whoever may register one.
    desk.identity.revoke(second.token.id).await.unwrap();
    assert_eq!(desk.register(&second.value, "w1").await.err().unwrap().reason(), Reason::TokenRevoked);
    assert_eq!(desk.register(&join, "w1").await.err().unwrap().reason(), Reason::TokenUsedUp);
    assert!(desk.register(&join_file, "w1").await.unwrap().is_none());
}

#[tokio::test]
async fn of_many_at_once_as_many_register_as_may() {
    let desk = Desk::new();
    let (_, join) = desk.make(Kind::Join, Some(3)).await;
    let names: Vec<String> = (0..12).map(|n| format!("w{n}")).collect();
    let all = futures::future::join_all(names.iter().map(|name| desk.register(&join, name))).await;
    let refused: Vec<_> = all.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 9);
    assert!(refused.iter().all(|error| error.reason() == Reason::TokenUsedUp));
}

#[test]
fn a_token_stands_as_its_times_say() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let new =
        New { name: String::new(), kind: Kind::Client, tenant: Tenant::default(), ttl: None, uses: None };
    let token = Token { created_at: at(0), expires_at: Some(at(100)), ..drawn(new).0 };
    assert_eq!([99, 100].map(|now| token.state(at(now))), [State::Active, State::Expired]);
    assert!(!token.is_forgotten(at(100 + 30 * 86_400)) && token.is_forgotten(at(101 + 30 * 86_400)));
    let revoked = Token { revoked_at: Some(at(5)), ..token.clone() };
    assert_eq!(revoked.state(at(200)), State::Revoked);
    let used_up = Token { uses_left: Some(0), expires_at: None, ..token };
    assert_eq!(used_up.state(at(1)), State::UsedUp);
    assert!(!used_up.is_forgotten(at(1)));
}
