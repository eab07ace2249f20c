//! What a client shows a sandbox: its `envdAccessToken`, and its `trafficAccessToken`.
//!
//! The SDKs send the first with each call to a sandbox, in place of the API key, and sign file URLs with it. It opens one
//! sandbox, for as long as the token does that it was made with. The second is for people and programs to send to what
//! listens on the sandbox's ports, and opens nothing else. Both are seals: see [`super::seal`].
//!
//! A signed URL has only a hash of its access token, and (with `E2B_SANDBOX_URL`) does not say of which sandbox. So those
//! that were handed out or shown are remembered, the newest few thousand. What is forgotten, as at a restart, is known
//! again with the sandbox's next call.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use berth_client::SessionId;
use ring::digest;

use super::seal::{Grant, Kind, Seal};

/// Access tokens that are remembered for signed URLs.
const REMEMBERED: usize = 4096;

/// What a signed URL says.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    pub signature: &'a str,
    pub path: &'a str,
    /// `read` or `write`.
    pub operation: &'a str,
    /// Empty: the usual one.
    pub user: &'a str,
    /// As it stands in the URL.
    pub expiration: Option<&'a str>,
}

/// See the module.
pub struct Access {
    sandbox: Seal,
    traffic: Seal,
    public: Seal,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Access token → when it was last seen, in calls.
    tokens: HashMap<String, u64>,
    calls: u64,
}

impl Access {
    /// `secret`: what nobody else knows, and what stays the same for as long as access tokens shall be good.
    pub fn new(secret: &[u8]) -> Self {
        let of = |kind| Seal::new(secret, kind);
        let (sandbox, traffic, public) = (of(Kind::Sandbox), of(Kind::Traffic), of(Kind::Public));
        Self { sandbox, traffic, public, seen: Mutex::default() }
    }

    /// The access token of a sandbox for who has this token.
    pub fn grant(&self, session: SessionId, token: &str) -> String {
        let text = self.sandbox.close(session, token);
        self.remember(&text);
        text
    }

    /// What an access token opens, if it is one of ours.
    pub fn open(&self, text: &str) -> Option<Grant> {
        let grant = self.sandbox.open(text)?;
        self.remember(text);
        Some(grant)
    }

    /// The traffic access token of a sandbox for who has this token.
    pub fn traffic(&self, session: SessionId, token: &str) -> String {
        self.traffic.close(session, token)
    }

    /// Whose ports a traffic access token opens.
    pub fn traffic_grant(&self, text: &str) -> Option<Grant> {
        self.traffic.open(text)
    }

    /// What opens a sandbox's ports to everybody, as who has this token: see [`super::public`].
    pub fn publish(&self, session: SessionId, token: &str) -> String {
        self.public.close(session, token)
    }

    /// Whose ports are open by it.
    pub fn public(&self, text: &str) -> Option<Grant> {
        self.public.open(text)
    }

    /// What a signed URL opens. Whether it has expired is the caller's to ask.
    pub fn signed(&self, url: Signed<'_>) -> Option<Grant> {
        let wanted = STANDARD_NO_PAD.decode(url.signature.strip_prefix("v1_")?).ok()?;
        let begin = format!("{}:{}:{}:", url.path, url.operation, url.user);
        let end = url.expiration.map(|at| format!(":{at}")).unwrap_or_default();
        let fits = |token: &&String| {
            let mut hash = digest::Context::new(&digest::SHA256);
            [begin.as_str(), token, &end].iter().for_each(|part| hash.update(part.as_bytes()));
            hash.finish().as_ref() == wanted
        };
        let token = self.seen().tokens.keys().find(fits).cloned()?;
        self.open(&token)
    }

    fn remember(&self, text: &str) {
        let mut seen = self.seen();
        seen.calls += 1;
        let now = seen.calls;
        if let Some(last) = seen.tokens.get_mut(text) {
            *last = now;
            return;
        }
        if seen.tokens.len() >= REMEMBERED {
            // A quarter at a time, so that to look for the oldest costs little.
            let mut ages: Vec<u64> = seen.tokens.values().copied().collect();
            ages.sort_unstable();
            let oldest = ages[REMEMBERED / 4];
            seen.tokens.retain(|_, last| *last > oldest);
        }
        seen.tokens.insert(text.to_owned(), now);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed<'a>(signature: &'a str, path: &'a str, operation: &'a str) -> Signed<'a> {
        Signed { signature, path, operation, user: "user", expiration: None }
    }

    fn signature(text: &str) -> String {
        format!("v1_{}", STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes())))
    }

    #[test]
    fn it_opens_its_sandbox_for_its_token_and_says_neither() {
        let access = Access::new(b"secret");
        let session = SessionId::new();
        let text = access.grant(session, "berth_client_00");
        let grant = Grant { session, token: "berth_client_00".to_owned() };
        assert_eq!(access.open(&text), Some(grant.clone()));
        assert_eq!(access.grant(session, "berth_client_00"), text, "it is the same each time");
        assert!(!text.contains("client") && !text.contains(&session.to_string()));
        assert_eq!(Access::new(b"secret").open(&text), Some(grant), "another gateway of the same Berth");
        assert_eq!(Access::new(b"other").open(&text), None);
    }

    #[test]
    fn what_is_changed_or_made_up_opens_nothing() {
        let access = Access::new(b"secret");
        let text = access.grant(SessionId::new(), "berth_client_00");
        for at in Kind::Sandbox.prefix().len()..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(access.open(std::str::from_utf8(&bytes).unwrap()), None, "byte {at}");
        }
        let long = format!("berth_sandbox_{}", "A".repeat(1 << 20));
        for bad in ["", "berth_sandbox_", "berth_sandbox_!", "berth_sandbox_AAAA", &long] {
            assert_eq!(access.open(bad), None);
        }
    }

    /// Red when one part of a signed URL can be exchanged.
    #[test]
    fn a_signed_url_is_good_for_what_it_was_signed_for() {
        let access = Access::new(b"secret");
        let session = SessionId::new();
        let token = access.grant(session, "berth_client_00");
        access.grant(SessionId::new(), "berth_client_00");
        let made = signature(&format!("/a:read:user:{token}"));
        assert_eq!(access.signed(signed(&made, "/a", "read")).map(|grant| grant.session), Some(session));
        assert_eq!(access.signed(signed(&made, "/b", "read")), None);
        assert_eq!(access.signed(signed(&made, "/a", "write")), None);
        assert_eq!(access.signed(Signed { user: "", ..signed(&made, "/a", "read") }), None);
        let later = Signed { expiration: Some("99"), ..signed(&made, "/a", "read") };
        assert_eq!(access.signed(later), None);
        let timed = signature(&format!("/a:read:user:{token}:99"));
        assert!(access.signed(Signed { signature: &timed, ..later }).is_some());
        for bad in ["", "v1_", "v1_AAAA", "v2_x"] {
            assert_eq!(access.signed(signed(bad, "/a", "read")), None);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_newest() {
        let access = Access::new(b"secret");
        for _ in 0..REMEMBERED * 2 {
            access.grant(SessionId::new(), "t");
        }
        assert!(access.seen().tokens.len() <= REMEMBERED);
        let token = access.grant(SessionId::new(), "t");
        let made = signature(&format!("/a:read:user:{token}"));
        assert!(access.signed(signed(&made, "/a", "read")).is_some());
    }
}
