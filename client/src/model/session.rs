//! Sessions, as they are told.

use std::time::{Duration, SystemTime};

use berth_proto::{convert, v1};
use serde::Serialize;

use super::json;
use crate::{Error, SessionId, domain::*};

/// A session as the coordinator last knew it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionInfo {
    #[serde(serialize_with = "json::text")]
    pub id: SessionId,
    #[serde(serialize_with = "json::state")]
    pub state: SessionState,
    /// Set when the state is `Ending` or `Ended`.
    #[serde(serialize_with = "json::opt_reason")]
    pub end_reason: Option<EndReason>,
    /// Why it waits, is parked, or ended, for people.
    pub message: String,
    pub template: String,
    /// `None` until it is placed.
    pub worker: Option<String>,
    pub epoch: u64,
    /// The sandbox backend in use; empty until it is placed.
    pub backend: String,
    #[serde(serialize_with = "json::limits")]
    pub limits: Limits,
    pub labels: Labels,
    pub priority: i32,
    #[serde(serialize_with = "json::opt_time")]
    pub created_at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_time")]
    pub ready_at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_time")]
    pub ended_at: Option<SystemTime>,
    /// When its TTL ends it. `None`: no TTL.
    #[serde(serialize_with = "json::opt_time")]
    pub expires_at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_seconds")]
    pub idle_timeout: Option<Duration>,
    pub worker_selector: Labels,
    #[serde(serialize_with = "json::task_defaults")]
    /// What it leaves out is the worker's.
    pub task_defaults: TaskDefaultsPatch,
    #[serde(serialize_with = "json::on_worker_loss")]
    pub on_worker_loss: OnWorkerLoss,
    /// Which checkpoints are taken without being asked for.
    #[serde(serialize_with = "json::checkpoint_policy")]
    pub checkpoints: CheckpointPolicy,
    /// The newest checkpoint that it can be restored from.
    pub checkpoint_id: Option<String>,
    #[serde(serialize_with = "json::opt_time")]
    pub checkpointed_at: Option<SystemTime>,
    /// Set after a recovery: the checkpoint that it was restored from.
    pub recovered_from: Option<String>,
    /// What happened after this time is lost.
    #[serde(serialize_with = "json::opt_time")]
    pub recovered_to: Option<SystemTime>,
    /// Set when it was parked and was not recovered since: its files are as of then, and what ran in it then is gone.
    #[serde(serialize_with = "json::opt_time")]
    pub parked_at: Option<SystemTime>,
    /// Whose it is. Places are shared out between tenants.
    pub tenant: String,
    /// While it waits for a place: since when ...
    #[serde(serialize_with = "json::opt_time")]
    pub waits_since: Option<SystemTime>,
    /// ... and until when it may.
    #[serde(serialize_with = "json::opt_time")]
    pub waits_until: Option<SystemTime>,
    /// 1 is the next to be tried, as it looks now. `None`: it does not wait, or that was not told.
    pub queue_position: Option<u32>,
    /// What it may reach.
    #[serde(serialize_with = "json::egress")]
    pub egress: Egress,
}

impl TryFrom<v1::Session> for SessionInfo {
    type Error = Error;

    fn try_from(wire: v1::Session) -> Result<Self, Error> {
        let on_worker_loss = match wire.on_worker_loss() {
            v1::OnWorkerLoss::Restore => OnWorkerLoss::Restore,
            v1::OnWorkerLoss::End | v1::OnWorkerLoss::Unspecified => OnWorkerLoss::End,
        };
        let checkpoints = wire.checkpoints.unwrap_or_default();
        Ok(Self {
            id: wire.id.parse().map_err(Error::strange)?,
            state: convert::session_state("state", wire.state).map_err(Error::strange)?,
            end_reason: convert::end_reason(wire.end_reason),
            message: wire.message,
            template: wire.template,
            worker: super::non_empty(wire.worker_id),
            epoch: wire.epoch,
            backend: wire.backend,
            limits: super::limits(wire.limits)?,
            labels: super::labels(wire.labels),
            priority: wire.priority,
            created_at: super::time(wire.created_at)?,
            ready_at: super::time(wire.ready_at)?,
            ended_at: super::time(wire.ended_at)?,
            expires_at: super::time(wire.expires_at)?,
            idle_timeout: super::limit(wire.idle_timeout)?,
            worker_selector: super::labels(wire.worker_selector),
            task_defaults: super::task_defaults(wire.task_defaults)?,
            on_worker_loss,
            checkpoints: CheckpointPolicy::try_from(checkpoints).map_err(Error::strange)?,
            checkpoint_id: super::non_empty(wire.checkpoint_id),
            checkpointed_at: super::time(wire.checkpointed_at)?,
            recovered_from: super::non_empty(wire.recovered_from),
            recovered_to: super::time(wire.recovered_to)?,
            parked_at: super::time(wire.parked_at)?,
            tenant: wire.tenant,
            waits_since: super::time(wire.waits_since)?,
            waits_until: super::time(wire.waits_until)?,
            queue_position: (wire.queue_position > 0).then_some(wire.queue_position),
            egress: wire.egress.unwrap_or_default().try_into().map_err(Error::strange)?,
        })
    }
}
