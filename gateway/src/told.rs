//! What is told alike over several protocols.

use berth_client::{
    Outcome,
    model::{TaskEnd, outcome_name},
};
use schemars::JsonSchema;
use serde::Serialize;

/// How a task ended.
#[derive(Clone, Serialize, JsonSchema)]
pub struct Ended {
    /// exited, signaled, timed_out, out_of_memory, output_limit, cancelled, session_ended, worker_lost or sandbox_failed.
    pub outcome: &'static str,
    /// Set where it exited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Set where a signal ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// More about it, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub duration_seconds: f64,
    /// The most memory that it had at once, if that was measured.
    pub peak_memory_bytes: u64,
}

impl From<TaskEnd> for Ended {
    fn from(end: TaskEnd) -> Self {
        let (exit_code, signal) = match end.outcome {
            Outcome::Exited(code) => (Some(code), None),
            Outcome::Signaled(signal) => (None, Some(signal)),
            _ => (None, None),
        };
        Self {
            outcome: outcome_name(end.outcome),
            exit_code,
            signal,
            message: end.message,
            duration_seconds: end.duration.as_secs_f64(),
            peak_memory_bytes: end.usage.peak_memory_bytes,
        }
    }
}
