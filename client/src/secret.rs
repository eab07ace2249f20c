//! For operators: the secrets that tasks can be given. Needs a token of scope admin. A task is given one by its name:
//! [`crate::Command::secret`], [`crate::Command::secret_env`].

use std::time::Duration;

use berth_proto::{
    convert::duration_out,
    transport::MESSAGE_LIMIT,
    v1::{self, secret_service_client::SecretServiceClient},
};
use bytes::Bytes;
use tonic::transport::Channel;

use crate::{Client, Error, connect::Policy, model::SecretInfo};

fn service(channel: Channel) -> SecretServiceClient<Channel> {
    SecretServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

impl Client {
    /// Makes a secret of a tenant (`None`: `default`), or gives the one with this name a new value, which the next task has
    /// that is given it. 1 byte to 64 KiB. It expires after `ttl`.
    pub async fn set_secret(
        &self,
        tenant: Option<&str>,
        name: &str,
        value: impl Into<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<SecretInfo, Error> {
        let message = v1::SetSecretRequest {
            tenant: tenant.unwrap_or_default().to_owned(),
            name: name.to_owned(),
            value: value.into(),
            ttl: ttl.map(duration_out),
        };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).set_secret(request).await
        })
        .await?
        .try_into()
    }

    /// All but their values, by tenant and name. `None`: of all tenants.
    pub async fn secrets(&self, tenant: Option<&str>) -> Result<Vec<SecretInfo>, Error> {
        let message = v1::ListSecretsRequest { tenant: tenant.unwrap_or_default().to_owned() };
        let listed = self
            .call(Policy::REPEATABLE, message, |channel, request| async {
                service(channel).list_secrets(request).await
            })
            .await?;
        listed.secrets.into_iter().map(SecretInfo::try_from).collect()
    }

    /// Removes a secret. Tasks that have it keep it.
    pub async fn delete_secret(&self, tenant: Option<&str>, name: &str) -> Result<(), Error> {
        let tenant = tenant.unwrap_or_default().to_owned();
        let message = v1::DeleteSecretRequest { tenant, name: name.to_owned() };
        self.call(Policy::ONCE, message, |channel, request| async {
            service(channel).delete_secret(request).await
        })
        .await?;
        Ok(())
    }
}
