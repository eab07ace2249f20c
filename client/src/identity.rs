//! For operators: API tokens, tenants, and what each tenant may have. Needs a token of scope admin.

use std::time::Duration;

use berth_proto::{
    convert::duration_out,
    transport::MESSAGE_LIMIT,
    v1::{self, identity_service_client::IdentityServiceClient},
};
use tonic::transport::Channel;

use crate::{
    Client, Error,
    connect::Policy,
    model::{NewToken, QuotaInfo, QuotaPatch, TenantInfo, TokenInfo, TokenScope},
};

fn service(channel: Channel) -> IdentityServiceClient<Channel> {
    IdentityServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// What a new token is to be good for.
#[derive(Clone, Debug)]
pub struct TokenOptions {
    scope: TokenScope,
    name: String,
    tenant: String,
    ttl: Option<Duration>,
    uses: Option<u32>,
}

impl TokenOptions {
    pub fn new(scope: TokenScope) -> Self {
        Self { scope, name: String::new(), tenant: String::new(), ttl: None, uses: None }
    }

    /// For people; at most 128 bytes.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Whose sessions it makes; `default` if this is left out.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = tenant.into();
        self
    }

    /// It expires after this long.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Of scope worker: so many workers may register with it.
    #[must_use]
    pub fn uses(mut self, uses: u32) -> Self {
        self.uses = Some(uses);
        self
    }
}

impl Client {
    /// Makes a token. What is returned is the only copy of it.
    pub async fn create_token(&self, options: TokenOptions) -> Result<NewToken, Error> {
        let message = v1::CreateTokenRequest {
            name: options.name,
            scope: v1::TokenScope::from(options.scope).into(),
            tenant: options.tenant,
            ttl: options.ttl.map(duration_out),
            uses: options.uses,
        };
        let made = self
            .call(Policy::ONCE, message, |channel, request| async {
                service(channel).create_token(request).await
            })
            .await?;
        let token = made.token.ok_or_else(|| Error::strange("a token without a record"))?;
        Ok(NewToken { token: token.try_into()?, value: made.value })
    }

    /// The tokens, newest first; `all`: those too that are revoked, expired or used up.
    pub async fn tokens(&self, all: bool) -> Result<Vec<TokenInfo>, Error> {
        let listed = self
            .call(Policy::REPEATABLE, v1::ListTokensRequest { all }, |channel, request| async {
                service(channel).list_tokens(request).await
            })
            .await?;
        listed.tokens.into_iter().map(TokenInfo::try_from).collect()
    }

    /// Revokes a token. No error if it is revoked already.
    pub async fn revoke_token(&self, id: &str) -> Result<TokenInfo, Error> {
        let message = v1::RevokeTokenRequest { token_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).revoke_token(request).await
        })
        .await?
        .try_into()
    }

    /// Changes what a tenant may have.
    pub async fn set_quota(&self, tenant: &str, patch: QuotaPatch) -> Result<TenantInfo, Error> {
        let (quota, unlimited) = patch.into_wire();
        let message = v1::SetQuotaRequest { tenant: tenant.to_owned(), quota: Some(quota), unlimited };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).set_quota(request).await
        })
        .await
        .map(tenant_info)
    }

    /// Tenants that have a quota, a token or a session.
    pub async fn tenants(&self) -> Result<Vec<TenantInfo>, Error> {
        let listed = self
            .call(Policy::REPEATABLE, v1::ListTenantsRequest {}, |channel, request| async {
                service(channel).list_tenants(request).await
            })
            .await?;
        Ok(listed.tenants.into_iter().map(tenant_info).collect())
    }

    /// One tenant.
    pub async fn tenant(&self, name: &str) -> Result<TenantInfo, Error> {
        let message = v1::GetTenantRequest { tenant: name.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).get_tenant(request).await
        })
        .await
        .map(tenant_info)
    }
}

fn tenant_info(wire: v1::Tenant) -> TenantInfo {
    TenantInfo {
        name: wire.name,
        quota: QuotaInfo::from(wire.quota.unwrap_or_default()),
        used: QuotaInfo::from(wire.used.unwrap_or_default()),
        tokens: wire.tokens,
    }
}
