//! Secrets as they are listed.

use std::time::SystemTime;

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::Error;

/// A secret, all but its value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecretInfo {
    pub tenant: String,
    pub name: String,
    /// Of its value.
    pub bytes: u64,
    #[serde(serialize_with = "json::opt_time")]
    pub updated_at: Option<SystemTime>,
    /// `None`: it does not expire.
    #[serde(serialize_with = "json::opt_time")]
    pub expires_at: Option<SystemTime>,
    /// Why tasks can't be given it.
    pub unusable: Option<String>,
}

impl TryFrom<v1::Secret> for SecretInfo {
    type Error = Error;

    fn try_from(wire: v1::Secret) -> Result<Self, Error> {
        Ok(Self {
            updated_at: super::time(wire.updated_at)?,
            expires_at: super::time(wire.expires_at)?,
            tenant: wire.tenant,
            name: wire.name,
            bytes: wire.bytes,
            unusable: super::non_empty(wire.unusable),
        })
    }
}
