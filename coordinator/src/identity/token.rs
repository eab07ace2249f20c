//! A token as it is kept: what it is good for, and for how long. Plain values; [`super`] looks them up and changes them.

use std::time::{Duration, SystemTime};

use berth_proto::{TokenId, WorkerId};

use crate::{auth::Digest, tenant::Tenant};

/// One that is over is listed for so long, and then forgotten.
const REMEMBERED: Duration = Duration::from_secs(30 * 86_400);

/// What a token is good for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// What its tenant has.
    Client,
    /// Everything that clients and operators do.
    Admin,
    /// To register a worker, which is then given a credential of its own.
    Join,
    /// To be this worker.
    Worker(WorkerId),
}

impl Kind {
    /// As a token begins, so that it is known for what it is wherever it turns up.
    pub fn prefix(&self) -> &'static str {
        match self {
            Self::Client => "berth_client_",
            Self::Admin => "berth_admin_",
            Self::Join => "berth_join_",
            Self::Worker(_) => "berth_worker_",
        }
    }
}

/// How a token stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Active,
    Expired,
    Revoked,
    /// As many workers as it is for have registered with it.
    UsedUp,
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub digest: Digest,
    pub name: String,
    pub kind: Kind,
    /// Of workers' tokens the default one, which means nothing there.
    pub tenant: Tenant,
    pub created_at: SystemTime,
    pub expires_at: Option<SystemTime>,
    pub revoked_at: Option<SystemTime>,
    /// Of [`Kind::Join`]: workers that may still register with it.
    pub uses_left: Option<u32>,
    /// Of [`Kind::Worker`]: what it registered with.
    pub issued_by: Option<TokenId>,
    /// Of [`Kind::Worker`]: the worker has it, and is given no other.
    pub kept: bool,
}

/// Without its hash, which is nobody's business.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl Token {
    pub fn state(&self, now: SystemTime) -> State {
        if self.revoked_at.is_some() {
            State::Revoked
        } else if self.expires_at.is_some_and(|at| at <= now) {
            State::Expired
        } else if self.uses_left == Some(0) {
            State::UsedUp
        } else {
            State::Active
        }
    }

    /// Whether it is over for so long that nobody asks any more.
    pub fn is_forgotten(&self, now: SystemTime) -> bool {
        let since = match self.state(now) {
            State::Active => return false,
            State::Revoked => self.revoked_at,
            State::Expired => self.expires_at,
            State::UsedUp => Some(self.created_at),
        };
        since.is_some_and(|at| now.duration_since(at).unwrap_or_default() > REMEMBERED)
    }

    /// The credential of this worker, if it is good.
    pub fn is_credential_of(&self, worker: &WorkerId, now: SystemTime) -> bool {
        matches!(&self.kind, Kind::Worker(of) if of == worker) && self.state(now) == State::Active
    }
}
