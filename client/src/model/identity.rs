//! Tokens, tenants and quotas, as they are told.

use std::{fmt, time::SystemTime};

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::Error;

/// What a token is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// What its tenant has.
    Client,
    /// To register workers.
    Worker,
    /// Everything that clients and operators do.
    Admin,
}

impl TokenScope {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }
}

impl From<TokenScope> for v1::TokenScope {
    fn from(scope: TokenScope) -> Self {
        match scope {
            TokenScope::Client => Self::Client,
            TokenScope::Worker => Self::Worker,
            TokenScope::Admin => Self::Admin,
        }
    }
}

/// How a token stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    Active,
    Expired,
    Revoked,
    UsedUp,
}

impl TokenState {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::UsedUp => "used up",
        }
    }
}

/// A token as it is listed: all but the token itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenInfo {
    /// 32 lower-case hex digits.
    pub id: String,
    pub name: String,
    pub scope: TokenScope,
    /// `None`: a worker's.
    pub tenant: Option<String>,
    pub state: TokenState,
    #[serde(serialize_with = "json::opt_time")]
    pub created_at: Option<SystemTime>,
    /// `None`: it does not expire.
    #[serde(serialize_with = "json::opt_time")]
    pub expires_at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_time")]
    pub revoked_at: Option<SystemTime>,
    /// Workers that can still register with it. `None`: any number, or it is none to register with.
    pub uses_left: Option<u32>,
    /// The worker whose own credential it is.
    pub worker: Option<String>,
    /// What that worker registered with.
    pub issued_by: Option<String>,
}

/// A token that was just made.
#[derive(Clone, Serialize)]
pub struct NewToken {
    #[serde(flatten)]
    pub token: TokenInfo,
    /// Shown here and never again.
    pub value: String,
}

impl fmt::Debug for NewToken {
    /// Without the token itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// What a tenant may have, or has. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QuotaInfo {
    pub sessions: Option<u64>,
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub streams: Option<u64>,
    pub creates_per_minute: Option<u64>,
}

impl From<v1::Quota> for QuotaInfo {
    fn from(wire: v1::Quota) -> Self {
        Self {
            sessions: wire.sessions,
            cpu_millis: wire.cpu_millis,
            memory_bytes: wire.memory_bytes,
            disk_bytes: wire.disk_bytes,
            streams: wire.streams,
            creates_per_minute: wire.creates_per_minute,
        }
    }
}

/// A change of a quota. `None`: unchanged, `Some(None)`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaPatch {
    pub sessions: Option<Option<u64>>,
    pub cpu_millis: Option<Option<u64>>,
    pub memory_bytes: Option<Option<u64>>,
    pub disk_bytes: Option<Option<u64>>,
    pub streams: Option<Option<u64>>,
    pub creates_per_minute: Option<Option<u64>>,
}

impl QuotaPatch {
    pub(crate) fn into_wire(self) -> (v1::Quota, Vec<i32>) {
        let quota = v1::Quota {
            sessions: self.sessions.flatten(),
            cpu_millis: self.cpu_millis.flatten(),
            memory_bytes: self.memory_bytes.flatten(),
            disk_bytes: self.disk_bytes.flatten(),
            streams: self.streams.flatten(),
            creates_per_minute: self.creates_per_minute.flatten(),
        };
        let all = [
            (self.sessions, v1::QuotaKind::Sessions),
            (self.cpu_millis, v1::QuotaKind::Cpu),
            (self.memory_bytes, v1::QuotaKind::Memory),
            (self.disk_bytes, v1::QuotaKind::Disk),
            (self.streams, v1::QuotaKind::Streams),
            (self.creates_per_minute, v1::QuotaKind::CreatesPerMinute),
        ];
        let unlimited = all.into_iter().filter(|(change, _)| *change == Some(None));
        (quota, unlimited.map(|(_, kind)| kind.into()).collect())
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantInfo {
    pub name: String,
    pub quota: QuotaInfo,
    /// What it has now.
    pub used: QuotaInfo,
    /// Of it that are active.
    pub tokens: u32,
}

impl TryFrom<v1::Token> for TokenInfo {
    type Error = Error;

    fn try_from(wire: v1::Token) -> Result<Self, Error> {
        let scope = match wire.scope() {
            v1::TokenScope::Client => TokenScope::Client,
            v1::TokenScope::Worker => TokenScope::Worker,
            v1::TokenScope::Admin => TokenScope::Admin,
            v1::TokenScope::Unspecified => return Err(Error::strange("a token without a scope")),
        };
        let state = match wire.state() {
            v1::TokenState::Active => TokenState::Active,
            v1::TokenState::Expired => TokenState::Expired,
            v1::TokenState::Revoked => TokenState::Revoked,
            v1::TokenState::UsedUp => TokenState::UsedUp,
            v1::TokenState::Unspecified => return Err(Error::strange("a token without a state")),
        };
        Ok(Self {
            scope,
            state,
            id: wire.id,
            name: wire.name,
            tenant: super::non_empty(wire.tenant),
            created_at: super::time(wire.created_at)?,
            expires_at: super::time(wire.expires_at)?,
            revoked_at: super::time(wire.revoked_at)?,
            uses_left: wire.uses_left,
            worker: super::non_empty(wire.worker_id),
            issued_by: super::non_empty(wire.issued_by),
        })
    }
}
