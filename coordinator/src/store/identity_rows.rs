//! Tokens and quotas as rows. Whatever is added here later must be NULL in rows of before (see [`super::sums`]).

use berth_proto::WorkerId;

use super::{
    StoreError,
    record::{damaged, micros, time},
    sums::Fields,
};
use crate::{
    fleet::Quota,
    identity::{Kind, Token},
    tenant::Tenant,
};

/// A row of `tokens`.
#[derive(sqlx::FromRow)]
pub(super) struct TokenRow {
    id: String,
    digest: Vec<u8>,
    name: String,
    kind: String,
    tenant: String,
    worker_id: Option<String>,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    uses_left: Option<i64>,
    issued_by: Option<String>,
    kept: i64,
}

impl TokenRow {
    pub fn of(token: &Token) -> Self {
        let (kind, worker) = match &token.kind {
            Kind::Client => ("client", None),
            Kind::Admin => ("admin", None),
            Kind::Join => ("join", None),
            Kind::Worker(worker) => ("worker", Some(worker.to_string())),
        };
        Self {
            id: token.id.to_string(),
            digest: token.digest.to_vec(),
            name: token.name.clone(),
            kind: kind.to_owned(),
            tenant: token.tenant.to_string(),
            worker_id: worker,
            created_at: micros(token.created_at),
            expires_at: token.expires_at.map(micros),
            revoked_at: token.revoked_at.map(micros),
            uses_left: token.uses_left.map(i64::from),
            issued_by: token.issued_by.map(|id| id.to_string()),
            kept: token.kept.into(),
        }
    }

    pub fn fields(self) -> Fields {
        vec![
            ("id", self.id.into()),
            ("digest", self.digest.into()),
            ("name", self.name.into()),
            ("kind", self.kind.into()),
            ("tenant", self.tenant.into()),
            ("worker_id", self.worker_id.into()),
            ("created_at", self.created_at.into()),
            ("expires_at", self.expires_at.into()),
            ("revoked_at", self.revoked_at.into()),
            ("uses_left", self.uses_left.into()),
            ("issued_by", self.issued_by.into()),
            ("kept", self.kept.into()),
        ]
    }

    pub fn token(self) -> Result<Token, StoreError> {
        let worker = self.worker_id.map(|id| id.parse::<WorkerId>()).transpose();
        let kind = match (self.kind.as_str(), worker.map_err(damaged("a token's worker"))?) {
            ("client", None) => Kind::Client,
            ("admin", None) => Kind::Admin,
            ("join", None) => Kind::Join,
            ("worker", Some(worker)) => Kind::Worker(worker),
            (other, _) => return Err(StoreError::Damaged(format!("{other:?} is no kind of token"))),
        };
        let uses_left = self.uses_left.map(u32::try_from).transpose();
        Ok(Token {
            id: self.id.parse().map_err(damaged("a token's id"))?,
            digest: self.digest.try_into().map_err(|_| StoreError::Damaged("a token's hash".to_owned()))?,
            name: self.name,
            kind,
            tenant: self.tenant.parse().map_err(damaged("a token's tenant"))?,
            created_at: time(self.created_at),
            expires_at: self.expires_at.map(time),
            revoked_at: self.revoked_at.map(time),
            uses_left: uses_left.map_err(damaged("a token's uses"))?,
            issued_by: self.issued_by.map(|id| id.parse()).transpose().map_err(damaged("a token's id"))?,
            kept: self.kept != 0,
        })
    }
}

/// A row of `quotas`.
#[derive(sqlx::FromRow)]
pub(super) struct QuotaRow {
    tenant: String,
    sessions: Option<i64>,
    cpu_millis: Option<i64>,
    memory_bytes: Option<i64>,
    disk_bytes: Option<i64>,
    streams: Option<i64>,
    creates_per_minute: Option<i64>,
}

impl QuotaRow {
    pub fn of(tenant: &Tenant, quota: &Quota) -> Self {
        let limit = |limit: Option<u64>| limit.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        Self {
            tenant: tenant.to_string(),
            sessions: limit(quota.sessions),
            cpu_millis: limit(quota.cpu_millis),
            memory_bytes: limit(quota.memory_bytes),
            disk_bytes: limit(quota.disk_bytes),
            streams: limit(quota.streams),
            creates_per_minute: limit(quota.creates_per_minute),
        }
    }

    pub fn fields(self) -> Fields {
        vec![
            ("tenant", self.tenant.into()),
            ("sessions", self.sessions.into()),
            ("cpu_millis", self.cpu_millis.into()),
            ("memory_bytes", self.memory_bytes.into()),
            ("disk_bytes", self.disk_bytes.into()),
            ("streams", self.streams.into()),
            ("creates_per_minute", self.creates_per_minute.into()),
        ]
    }

    pub fn quota(self) -> Result<(Tenant, Quota), StoreError> {
        let limit = |limit: Option<i64>| limit.map(|n| n.max(0) as u64);
        let quota = Quota {
            sessions: limit(self.sessions),
            cpu_millis: limit(self.cpu_millis),
            memory_bytes: limit(self.memory_bytes),
            disk_bytes: limit(self.disk_bytes),
            streams: limit(self.streams),
            creates_per_minute: limit(self.creates_per_minute),
        };
        Ok((self.tenant.parse().map_err(damaged("a tenant"))?, quota))
    }
}
