//! `IdentityService`: tokens, tenants, and what each tenant may have. For operators alone.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Error, Reason, TokenId,
    convert::{self, time_out},
    v1::{self, identity_service_server::IdentityService},
    world,
};
use tonic::{Request, Response, Status};

use super::Context;
use crate::{
    audit::about,
    driver::Used,
    fleet::{Event, Quota, QuotaPatch},
    identity::{self, Kind, New, State, Token},
    tenant::Tenant,
};

/// Bytes of a token's name.
const NAME_MAX: usize = 128;
/// Greater figures say no more than none at all.
const FIGURE_MAX: u64 = 1 << 53;
/// Tenants that have a quota.
const TENANTS_MAX: usize = 10_000;

pub struct Identities {
    context: Context,
}

impl Identities {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// All tenants that there is something of, with what they have.
    fn tenants(&self) -> BTreeMap<Tenant, v1::Tenant> {
        let view = &self.context.shared.view;
        let minute = Duration::from_secs(60);
        let mut used = view.tenants(world::now().checked_sub(minute).unwrap_or(SystemTime::UNIX_EPOCH));
        let mut tokens: BTreeMap<Tenant, u32> = BTreeMap::new();
        let of_tenants = |token: &Token| matches!(token.kind, Kind::Client | Kind::Admin);
        for token in self.context.identity.list(false).iter().filter(|token| of_tenants(token)) {
            *tokens.entry(token.tenant.clone()).or_default() += 1;
            used.entry(token.tenant.clone()).or_default();
        }
        // Of the tokens in the credential files.
        used.entry(Tenant::default()).or_default();
        let one = |(tenant, used): (Tenant, Used)| {
            let quota = view.quota(&tenant);
            let streams = self.context.streams.of(&tenant);
            let count = tokens.get(&tenant).copied().unwrap_or_default();
            let shown = v1::Tenant {
                name: tenant.to_string(),
                quota: Some(quota_out(&quota)),
                used: Some(used_out(&used, streams)),
                tokens: count,
            };
            (tenant, shown)
        };
        used.into_iter().map(one).collect()
    }
}

#[tonic::async_trait]
impl IdentityService for Identities {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let new = new(request.into_inner())?;
        let (token, value) = self.context.identity.create(new).await?;
        about("token", token.id);
        tracing::info!(token.id = %token.id, name = token.name, kind = ?token.kind, tenant = %token.tenant, "token made");
        Ok(Response::new(v1::CreateTokenResponse { token: Some(token_out(&token)), value }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let tokens = self.context.identity.list(request.into_inner().all);
        Ok(Response::new(v1::ListTokensResponse {
            tokens: tokens.iter().map(|token| token_out(token)).collect(),
        }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::Token>, Status> {
        let id: TokenId = request.into_inner().token_id.parse()?;
        about("token", id);
        let (token, was_good) = self.context.identity.revoke(id).await?;
        if let (Kind::Worker(worker), true) = (&token.kind, was_good) {
            self.context.shared.links.expel(worker, identity::revoked);
        }
        Ok(Response::new(token_out(&token)))
    }

    async fn set_quota(&self, request: Request<v1::SetQuotaRequest>) -> Result<Response<v1::Tenant>, Status> {
        let request = request.into_inner();
        let tenant: Tenant = request.tenant.parse()?;
        about("of", &tenant);
        let patch = patch(request.quota.unwrap_or_default(), &request.unlimited)?;
        let known = self.tenants();
        if known.len() >= TENANTS_MAX && !known.contains_key(&tenant) {
            let text = format!("there are {TENANTS_MAX} tenants already");
            return Err(Error::exhausted(Reason::TooManyTokens, text).into());
        }
        let set = Event::SetQuota { tenant: tenant.clone(), patch };
        self.context.driver.call(set).await.map_err(Error::from)?;
        tracing::info!(%tenant, ?patch, "quota set");
        let shown = self.tenants().remove(&tenant);
        Ok(Response::new(shown.ok_or_else(|| Error::internal("a quota without a tenant"))?))
    }

    async fn list_tenants(
        &self,
        _: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        Ok(Response::new(v1::ListTenantsResponse { tenants: self.tenants().into_values().collect() }))
    }

    async fn get_tenant(
        &self,
        request: Request<v1::GetTenantRequest>,
    ) -> Result<Response<v1::Tenant>, Status> {
        let name = request.into_inner().tenant;
        let found = name.parse().ok().and_then(|tenant: Tenant| self.tenants().remove(&tenant));
        let no_such = || {
            let shown: String = name.chars().take(64).collect();
            let text = format!("no tenant {shown:?} has a quota, a token or a session");
            Error::not_found(Reason::TenantNotFound, text)
        };
        Ok(Response::new(found.ok_or_else(no_such)?))
    }
}

fn new(request: v1::CreateTokenRequest) -> Result<New, Error> {
    if request.name.len() > NAME_MAX || request.name.chars().any(char::is_control) {
        return Err(Error::invalid(
            "name",
            format!("must have at most {NAME_MAX} bytes and no control characters"),
        ));
    }
    let kind = match request.scope() {
        v1::TokenScope::Client => Kind::Client,
        v1::TokenScope::Worker => Kind::Join,
        v1::TokenScope::Admin => Kind::Admin,
        v1::TokenScope::Unspecified => {
            return Err(Error::invalid("scope", "is missing").hint("client, worker or admin"));
        }
    };
    let tenant = match request.tenant.as_str() {
        "" => Tenant::default(),
        _ if kind == Kind::Join => {
            return Err(Error::invalid("tenant", "workers serve all tenants").hint("leave it out"));
        }
        name => name.parse()?,
    };
    match request.uses {
        Some(0) => return Err(Error::invalid("uses", "is zero: nobody could register with it")),
        Some(_) if kind != Kind::Join => {
            return Err(Error::invalid("uses", "only a token to register workers with is used up")
                .hint("leave it out, or say scope worker"));
        }
        _ => {}
    }
    let ttl = request.ttl.map(|ttl| convert::duration("ttl", ttl)).transpose()?;
    if ttl == Some(Duration::ZERO) {
        return Err(Error::invalid("ttl", "is zero: leave it out for a token that does not expire"));
    }
    Ok(New { name: request.name, kind, tenant, ttl, uses: request.uses })
}

fn token_out(token: &Token) -> v1::Token {
    let (scope, worker) = match &token.kind {
        Kind::Client => (v1::TokenScope::Client, None),
        Kind::Admin => (v1::TokenScope::Admin, None),
        Kind::Join => (v1::TokenScope::Worker, None),
        Kind::Worker(worker) => (v1::TokenScope::Worker, Some(worker)),
    };
    let state = match token.state(world::now()) {
        State::Active => v1::TokenState::Active,
        State::Expired => v1::TokenState::Expired,
        State::Revoked => v1::TokenState::Revoked,
        State::UsedUp => v1::TokenState::UsedUp,
    };
    let tenant = if scope == v1::TokenScope::Worker { String::new() } else { token.tenant.to_string() };
    v1::Token {
        id: token.id.to_string(),
        name: token.name.clone(),
        scope: scope.into(),
        tenant,
        state: state.into(),
        created_at: Some(time_out(token.created_at)),
        expires_at: token.expires_at.map(time_out),
        revoked_at: token.revoked_at.map(time_out),
        uses_left: token.uses_left,
        worker_id: worker.map(ToString::to_string).unwrap_or_default(),
        issued_by: token.issued_by.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn quota_out(quota: &Quota) -> v1::Quota {
    v1::Quota {
        sessions: quota.sessions,
        cpu_millis: quota.cpu_millis,
        memory_bytes: quota.memory_bytes,
        disk_bytes: quota.disk_bytes,
        streams: quota.streams,
        creates_per_minute: quota.creates_per_minute,
    }
}

fn used_out(used: &Used, streams: u64) -> v1::Quota {
    v1::Quota {
        sessions: Some(used.sessions),
        cpu_millis: Some(used.cpu_millis),
        memory_bytes: Some(used.memory_bytes),
        disk_bytes: Some(used.disk_bytes),
        streams: Some(streams),
        creates_per_minute: Some(used.created),
    }
}

fn patch(set: v1::Quota, unlimited: &[i32]) -> Result<QuotaPatch, Error> {
    let figure = |name: &str, value: Option<u64>| match value {
        Some(n) if n > FIGURE_MAX => Err(Error::invalid(name, format!("is more than {FIGURE_MAX}"))
            .hint("leave the quota out: that is no limit")),
        value => Ok(value.map(Some)),
    };
    let mut patch = QuotaPatch {
        sessions: figure("quota.sessions", set.sessions)?,
        cpu_millis: figure("quota.cpu_millis", set.cpu_millis)?,
        memory_bytes: figure("quota.memory_bytes", set.memory_bytes)?,
        disk_bytes: figure("quota.disk_bytes", set.disk_bytes)?,
        streams: figure("quota.streams", set.streams)?,
        creates_per_minute: figure("quota.creates_per_minute", set.creates_per_minute)?,
    };
    for kind in unlimited {
        let field = match v1::QuotaKind::try_from(*kind) {
            Ok(v1::QuotaKind::Sessions) => &mut patch.sessions,
            Ok(v1::QuotaKind::Cpu) => &mut patch.cpu_millis,
            Ok(v1::QuotaKind::Memory) => &mut patch.memory_bytes,
            Ok(v1::QuotaKind::Disk) => &mut patch.disk_bytes,
            Ok(v1::QuotaKind::Streams) => &mut patch.streams,
            Ok(v1::QuotaKind::CreatesPerMinute) => &mut patch.creates_per_minute,
            Ok(v1::QuotaKind::Unspecified) | Err(_) => {
                return Err(Error::invalid("unlimited", format!("{kind} is no kind of quota")));
            }
        };
        if field.is_some() {
            return Err(Error::invalid("unlimited", "names a quota that the same request sets"));
        }
        *field = Some(None);
    }
    Ok(patch)
}
