//! What a session takes, as it is told here.

use berth_client::model::{SessionUsage, json::time_text};
use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Call, json, problem::Problem, query, views::named};
use crate::http::Body;

/// One reading of what a session's tasks take. What can't be counted where the session is, or has no limit there, is left out.
#[derive(Serialize, JsonSchema)]
pub struct UsageView {
    session: String,
    /// By the clock of the session's worker.
    read_at: String,
    /// Of CPU time, since its sandbox was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_seconds: Option<f64>,
    /// 1000 is one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_limit_millis: Option<u64>,
    /// With page cache, and with files in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    /// Of these: page cache that the kernel takes back when memory is short.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_cache_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    /// Processes and their threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pids: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pids_limit: Option<u64>,
    /// The session's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_limit: Option<u64>,
    /// Tasks that run.
    tasks: u32,
    tasks_limit: u32,
    /// Added up over the processes that run: near the truth, and no more.
    summed: bool,
}

impl UsageView {
    fn new(session: String, usage: &SessionUsage) -> Self {
        Self {
            session,
            read_at: time_text(usage.read_at),
            cpu_seconds: usage.cpu.map(|cpu| cpu.as_secs_f64()),
            cpu_limit_millis: usage.cpu_limit_millis,
            memory_bytes: usage.memory_bytes,
            memory_cache_bytes: usage.memory_cache_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
            pids: usage.pids,
            pids_limit: usage.pids_limit,
            disk_bytes: usage.disk_bytes,
            disk_limit_bytes: usage.disk_limit_bytes,
            inodes: usage.inodes,
            inodes_limit: usage.inodes_limit,
            tasks: usage.tasks,
            tasks_limit: usage.tasks_limit,
            summed: usage.summed,
        }
    }
}

pub async fn usage(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let client = &call.caller.client;
    let session = client.session(named(client, &call.parts[0]).await?);
    let usage = session.usage().await?;
    Ok(json(StatusCode::OK, UsageView::new(session.id().to_string(), &usage)))
}
