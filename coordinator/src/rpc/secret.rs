//! `SecretService`: what there is to give to tasks. For operators alone: tasks get a secret by its name, and nobody gets a
//! value back.

use std::time::{Duration, SystemTime};

use berth_proto::{
    Error,
    convert::{self, time_out},
    secret::{self, VALUE_MAX},
    v1::{self, secret_service_server::SecretService},
};
use tonic::{Request, Response, Status};

use super::Context;
use crate::{audit::about, secrets::Secret, tenant::Tenant};

pub struct SecretApi {
    context: Context,
}

impl SecretApi {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl SecretService for SecretApi {
    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::Secret>, Status> {
        let v1::SetSecretRequest { tenant, name, value, ttl } = request.into_inner();
        let (tenant, name) = whose(&tenant, name)?;
        if value.is_empty() || value.len() > VALUE_MAX {
            let text = format!("has {} bytes; a secret has 1 to {VALUE_MAX}", value.len());
            return Err(Error::invalid("value", text).into());
        }
        let ttl = ttl.map(|ttl| convert::duration("ttl", ttl)).transpose()?;
        if ttl == Some(Duration::ZERO) {
            let text = "is zero: leave it out for a secret that does not expire";
            return Err(Error::invalid("ttl", text).into());
        }
        let set = self.context.secrets.set(tenant, name, value, ttl).await?;
        tracing::info!(tenant = %set.tenant, name = set.name, bytes = set.bytes, "secret set");
        Ok(Response::new(out(set)))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let tenant = request.into_inner().tenant;
        let tenant = if tenant.is_empty() { None } else { Some(tenant.parse()?) };
        let secrets = self.context.secrets.list(tenant).await?.into_iter().map(out).collect();
        Ok(Response::new(v1::ListSecretsResponse { secrets }))
    }

    async fn delete_secret(
        &self,
        request: Request<v1::DeleteSecretRequest>,
    ) -> Result<Response<v1::DeleteSecretResponse>, Status> {
        let v1::DeleteSecretRequest { tenant, name } = request.into_inner();
        let (tenant, name) = whose(&tenant, name)?;
        self.context.secrets.remove(tenant.clone(), name.clone()).await?;
        tracing::info!(%tenant, name, "secret removed");
        Ok(Response::new(v1::DeleteSecretResponse {}))
    }
}

/// The tenant and the name, which the audit record gets too.
fn whose(tenant: &str, name: String) -> Result<(Tenant, String), Error> {
    let tenant = if tenant.is_empty() { Tenant::default() } else { tenant.parse()? };
    let name = secret::name("name", name)?;
    about("of", &tenant);
    about("secret", &name);
    Ok((tenant, name))
}

fn out(secret: Secret) -> v1::Secret {
    let time = |at: Option<SystemTime>| at.map(time_out);
    v1::Secret {
        tenant: secret.tenant.to_string(),
        name: secret.name,
        bytes: secret.bytes,
        updated_at: time(secret.updated_at),
        expires_at: time(secret.expires_at),
        unusable: secret.unusable.unwrap_or_default(),
    }
}
