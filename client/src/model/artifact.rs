//! Artifacts, as they are told.

use std::time::SystemTime;

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::{Error, SessionId};

/// A file that a task left in `/workspace/artifacts`, kept past its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArtifactInfo {
    /// 32 lower-case hex digits.
    pub id: String,
    #[serde(serialize_with = "json::text")]
    pub session: SessionId,
    /// At whose end it was found. `None`: at its session's.
    pub task: Option<String>,
    /// Its path below `/workspace/artifacts`. A task chose it: any characters but NUL.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// 64 lower-case hex digits.
    pub sha256: String,
    /// As far as the name tells.
    pub media_type: String,
    #[serde(serialize_with = "json::opt_time")]
    pub created_at: Option<SystemTime>,
    /// When it is removed.
    #[serde(serialize_with = "json::opt_time")]
    pub expires_at: Option<SystemTime>,
    /// Of its session.
    pub tenant: String,
}

/// A file that did not become an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotKept {
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// For people.
    pub why: String,
}

/// Artifacts, and what is to be said of those that are not there.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct ArtifactList {
    /// Newest first.
    pub artifacts: Vec<ArtifactInfo>,
    /// Of one session: what was there and was not kept, at most 100 of them.
    pub not_kept: Vec<NotKept>,
    /// So many more there were.
    pub more_not_kept: u64,
    /// What the session's last tasks left may still come.
    pub pending: bool,
}

impl TryFrom<v1::Artifact> for ArtifactInfo {
    type Error = Error;

    fn try_from(wire: v1::Artifact) -> Result<Self, Error> {
        Ok(Self {
            id: wire.id,
            session: wire.session_id.parse().map_err(Error::strange)?,
            task: Some(wire.task_id).filter(|task| !task.is_empty()),
            name: wire.name,
            size: wire.size,
            sha256: wire.sha256,
            media_type: wire.media_type,
            created_at: super::time(wire.created_at)?,
            expires_at: super::time(wire.expires_at)?,
            tenant: wire.tenant,
        })
    }
}

impl From<v1::NotKept> for NotKept {
    fn from(wire: v1::NotKept) -> Self {
        let v1::NotKept { name, size, why } = wire;
        Self { name, size, why }
    }
}
