//! What the coordinator tells, as plain values: durations are durations, states are
//! enums, ids are ids. Made from the wire here and nowhere else.
//!
//! They serialise to JSON as a script wants to read them: states as words, times as
//! RFC 3339, durations as seconds with a fraction, sizes as bytes.

mod admin;
mod artifact;
mod checkpoint;
mod file;
mod identity;
mod interpreter;
mod secret;
mod session;
mod task;
mod usage;

pub use admin::*;
pub use artifact::*;
pub use checkpoint::*;
pub use file::*;
pub use identity::*;
pub use interpreter::*;
pub use secret::*;
pub use session::*;
pub use task::*;
pub use usage::*;

use std::time::{Duration, SystemTime};

use berth_proto::{convert, domain::*};

use crate::Error;

/// A state in a word.
pub fn session_state_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Pending => "pending",
        SessionState::Placed => "placed",
        SessionState::Ready => "ready",
        SessionState::Paused => "paused",
        SessionState::Parked => "parked",
        SessionState::Ending => "ending",
        SessionState::Ended => "ended",
    }
}

/// An end reason in a word.
pub fn end_reason_name(reason: EndReason) -> &'static str {
    reason.name()
}

/// What becomes of a session whose worker is lost, in a word.
pub fn on_worker_loss_name(on_loss: OnWorkerLoss) -> &'static str {
    match on_loss {
        OnWorkerLoss::End => "end",
        OnWorkerLoss::Restore => "restore",
    }
}

/// The kind of an outcome in a word.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(_) => "exited",
        Outcome::Signaled(_) => "signaled",
        Outcome::TimedOut => "timed_out",
        Outcome::OutOfMemory => "out_of_memory",
        Outcome::OutputLimit => "output_limit",
        Outcome::Cancelled => "cancelled",
        Outcome::SessionEnded => "session_ended",
        Outcome::WorkerLost => "worker_lost",
        Outcome::SandboxFailed => "sandbox_failed",
    }
}

pub(crate) fn time(wire: Option<prost_types::Timestamp>) -> Result<Option<SystemTime>, Error> {
    wire.map(|time| SystemTime::try_from(time).map_err(|_| Error::strange("a time before 1970"))).transpose()
}

pub(crate) fn duration(wire: Option<prost_types::Duration>) -> Result<Option<Duration>, Error> {
    wire.map(|span| Duration::try_from(span).map_err(|_| Error::strange("a negative duration"))).transpose()
}

/// Zero and absent both say "none".
pub(crate) fn limit(wire: Option<prost_types::Duration>) -> Result<Option<Duration>, Error> {
    Ok(duration(wire)?.filter(|span| !span.is_zero()))
}

pub(crate) fn labels(wire: std::collections::HashMap<String, String>) -> Labels {
    wire.into_iter().collect()
}

pub(crate) fn limits(wire: Option<berth_proto::v1::Limits>) -> Result<Limits, Error> {
    convert::full_limits(wire.ok_or_else(|| Error::strange("limits are missing"))?).map_err(Error::strange)
}

pub(crate) fn task_defaults(wire: Option<berth_proto::v1::TaskDefaults>) -> Result<TaskDefaultsPatch, Error> {
    TaskDefaultsPatch::try_from(wire.unwrap_or_default()).map_err(Error::strange)
}

pub(crate) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// How values look in JSON.
pub mod json {
    use std::time::{Duration, SystemTime};

    use serde::{
        Serialize, Serializer,
        ser::{SerializeMap, SerializeStruct},
    };

    use crate::domain::*;

    /// A time as text: RFC 3339 in UTC.
    pub fn time_text(time: SystemTime) -> String {
        prost_types::Timestamp::from(time).to_string()
    }

    pub fn text<T: std::fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn time<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&time_text(*time))
    }

    pub fn opt_time<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        time.map(time_text).serialize(to)
    }

    pub fn seconds<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(span.as_secs_f64())
    }

    pub fn opt_seconds<S: Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        span.map(|span| span.as_secs_f64()).serialize(to)
    }

    pub fn state<S: Serializer>(state: &SessionState, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(super::session_state_name(*state))
    }

    pub fn opt_reason<S: Serializer>(reason: &Option<EndReason>, to: S) -> Result<S::Ok, S::Error> {
        reason.map(super::end_reason_name).serialize(to)
    }

    /// `{"kind": "exited", "code": 0}`, `{"kind": "signaled", "signal": 9}`, `{"kind": "timed_out"}`.
    pub fn outcome<S: Serializer>(outcome: &Outcome, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("kind", super::outcome_name(*outcome))?;
        match outcome {
            Outcome::Exited(code) => map.serialize_entry("code", code)?,
            Outcome::Signaled(signal) => map.serialize_entry("signal", signal)?,
            _ => {}
        }
        map.end()
    }

    pub fn usage<S: Serializer>(usage: &Usage, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Usage", 4)?;
        out.serialize_field("cpu_user", &usage.cpu_user.as_secs_f64())?;
        out.serialize_field("cpu_system", &usage.cpu_system.as_secs_f64())?;
        out.serialize_field("peak_memory_bytes", &usage.peak_memory_bytes)?;
        out.serialize_field("oom_kills", &usage.oom_kills)?;
        out.end()
    }

    pub fn limits<S: Serializer>(limits: &Limits, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Limits", 4)?;
        out.serialize_field("cpu_millis", &limits.cpu_millis)?;
        out.serialize_field("memory_bytes", &limits.memory_bytes)?;
        out.serialize_field("disk_bytes", &limits.disk_bytes)?;
        out.serialize_field("pids", &limits.pids)?;
        out.end()
    }

    pub fn capacity<S: Serializer>(capacity: &Capacity, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Capacity", 4)?;
        out.serialize_field("cpu_millis", &capacity.cpu_millis)?;
        out.serialize_field("memory_bytes", &capacity.memory_bytes)?;
        out.serialize_field("disk_bytes", &capacity.disk_bytes)?;
        out.serialize_field("max_sessions", &capacity.max_sessions)?;
        out.end()
    }

    pub fn on_worker_loss<S: Serializer>(on_loss: &OnWorkerLoss, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(super::on_worker_loss_name(*on_loss))
    }

    /// An `interval` of null: none are taken at intervals.
    pub fn checkpoint_policy<S: Serializer>(policy: &CheckpointPolicy, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("CheckpointPolicy", 5)?;
        out.serialize_field("interval", &policy.interval.map(|every| every.as_secs_f64()))?;
        out.serialize_field("on_drain", &policy.on_drain)?;
        out.serialize_field("before_delete", &policy.before_delete)?;
        out.serialize_field("keep", &policy.keep)?;
        out.serialize_field("keep_for", &policy.keep_for.as_secs_f64())?;
        out.end()
    }

    pub fn egress<S: Serializer>(egress: &Egress, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("Egress", 2)?;
        out.serialize_field("preset", egress.preset.as_str())?;
        let allow: Vec<String> = egress.allow.iter().map(ToString::to_string).collect();
        out.serialize_field("allow", &allow)?;
        out.end()
    }

    /// What is left out is the worker's; a `timeout` of null is none.
    pub fn task_defaults<S: Serializer>(defaults: &TaskDefaultsPatch, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_map(None)?;
        if let Some(timeout) = defaults.timeout {
            out.serialize_entry("timeout", &timeout.map(|span| span.as_secs_f64()))?;
        }
        if let Some(size) = defaults.pty_size {
            out.serialize_entry("pty_cols", &size.cols)?;
            out.serialize_entry("pty_rows", &size.rows)?;
        }
        if let Some(most) = defaults.max_concurrent {
            out.serialize_entry("max_concurrent", &most)?;
        }
        out.end()
    }
}
