//! Checkpoints, as they are told.

use std::time::{Duration, SystemTime};

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::{Error, SessionId, domain::Labels};

/// Why a checkpoint was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointCause {
    /// Somebody asked for it, or for a fork.
    Requested,
    Interval,
    /// Its worker was drained.
    Drain,
    /// Before the session was deleted.
    Delete,
    /// A paused session gave up its place.
    Parked,
}

impl CheckpointCause {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Interval => "interval",
            Self::Drain => "drain",
            Self::Delete => "delete",
            Self::Parked => "parked",
        }
    }
}

/// A restorable copy of a session's files and of what its finished tasks said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointInfo {
    /// 32 lower-case hex digits.
    pub id: String,
    #[serde(serialize_with = "json::text")]
    pub session: SessionId,
    #[serde(serialize_with = "json::opt_time")]
    pub created_at: Option<SystemTime>,
    pub template: String,
    /// Of the session, at that time.
    pub labels: Labels,
    pub note: String,
    pub cause: CheckpointCause,
    /// Files, directories and links.
    pub entries: u64,
    /// Of all files together.
    pub content_bytes: u64,
    /// What this checkpoint added to the store, compressed.
    pub stored_bytes: u64,
    /// For how long the session's tasks stood still.
    #[serde(serialize_with = "json::opt_seconds")]
    pub frozen_for: Option<Duration>,
    /// Entries that were left out: sockets, devices, pipes, and what could not be read.
    pub skipped: u64,
    /// `None`: it is kept until it is deleted.
    #[serde(serialize_with = "json::opt_time")]
    pub expires_at: Option<SystemTime>,
    /// Of its session.
    pub tenant: String,
}

impl TryFrom<v1::Checkpoint> for CheckpointInfo {
    type Error = Error;

    fn try_from(wire: v1::Checkpoint) -> Result<Self, Error> {
        let cause = match wire.cause() {
            v1::CheckpointCause::Requested => CheckpointCause::Requested,
            v1::CheckpointCause::Interval => CheckpointCause::Interval,
            v1::CheckpointCause::Drain => CheckpointCause::Drain,
            v1::CheckpointCause::Delete => CheckpointCause::Delete,
            v1::CheckpointCause::Parked => CheckpointCause::Parked,
            v1::CheckpointCause::Unspecified => return Err(Error::strange("a checkpoint without a cause")),
        };
        Ok(Self {
            cause,
            id: wire.id,
            session: wire.session_id.parse().map_err(Error::strange)?,
            created_at: super::time(wire.created_at)?,
            template: wire.template,
            labels: super::labels(wire.labels),
            note: wire.note,
            entries: wire.entries,
            content_bytes: wire.content_bytes,
            stored_bytes: wire.stored_bytes,
            frozen_for: super::duration(wire.frozen_for)?,
            skipped: wire.skipped,
            expires_at: super::time(wire.expires_at)?,
            tenant: wire.tenant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_told_in_words_seconds_and_bytes() {
        let wire = v1::Checkpoint {
            id: "c".repeat(32),
            session_id: "a".repeat(32),
            created_at: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
            template: "base".into(),
            labels: [("name".to_owned(), "web".to_owned())].into(),
            cause: v1::CheckpointCause::Drain.into(),
            entries: 3,
            content_bytes: 10,
            frozen_for: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            ..Default::default()
        };
        let told = serde_json::to_value(CheckpointInfo::try_from(wire.clone()).unwrap()).unwrap();
        let expected = serde_json::json!({
            "id": "c".repeat(32), "session": "a".repeat(32), "created_at": "1970-01-01T00:01:00Z",
            "template": "base", "labels": {"name": "web"}, "note": "", "cause": "drain", "entries": 3,
            "content_bytes": 10, "stored_bytes": 0, "frozen_for": 1.5, "skipped": 0, "expires_at": null, "tenant": "",
        });
        assert_eq!(told, expected);
        let strange = v1::Checkpoint { cause: 0, ..wire };
        assert!(CheckpointInfo::try_from(strange).is_err());
    }
}
