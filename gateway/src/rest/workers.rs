//! Workers, as they are told here, and what an operator wants of them. The coordinator lets admins' tokens alone do so.

use std::{collections::BTreeMap, time::Duration};

use berth_client::model::{WorkerHealth, WorkerInfo, json::time_text};
use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, json, problem::Problem, query};
use crate::http::Body;

/// A worker.
#[derive(Serialize, JsonSchema)]
pub struct WorkerView {
    id: String,
    /// alive, suspect or dead.
    liveness: &'static str,
    /// active, cordoned or draining.
    scheduling: &'static str,
    /// It takes sessions now.
    ready: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    version: String,
    labels: BTreeMap<String, String>,
    sessions: u32,
    max_sessions: u32,
    capacity: Capacity,
    /// Of it, what its sessions hold.
    reserved: Capacity,
    /// The backend that new sessions get.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<String>,
    templates: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attached_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_heartbeat_at: Option<String>,
    /// While it drains: when the sessions that are left are ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_deadline: Option<String>,
    /// Its machine, as it last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Load>,
}

#[derive(Serialize, JsonSchema)]
struct Capacity {
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
}

/// What a worker's machine is busy with, whoever it is for.
#[derive(Serialize, JsonSchema)]
struct Load {
    /// 0 to 1, of all cores.
    cpu_busy: f64,
    memory_available_bytes: u64,
    disk_free_bytes: u64,
    /// How much of the last ten seconds something waited for it, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_pressure: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_pressure: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io_pressure: Option<f64>,
}

impl From<&WorkerHealth> for Load {
    fn from(health: &WorkerHealth) -> Self {
        Self {
            cpu_busy: health.cpu_busy,
            memory_available_bytes: health.memory_available_bytes,
            disk_free_bytes: health.disk_free_bytes,
            cpu_pressure: health.cpu_pressure,
            memory_pressure: health.memory_pressure,
            io_pressure: health.io_pressure,
        }
    }
}

impl From<WorkerInfo> for WorkerView {
    fn from(info: WorkerInfo) -> Self {
        let capacity = |of: &berth_client::domain::Capacity| Capacity {
            cpu_millis: of.cpu_millis,
            memory_bytes: of.memory_bytes,
            disk_bytes: of.disk_bytes,
        };
        Self {
            liveness: info.liveness.name(),
            scheduling: info.scheduling.name(),
            ready: info.is_ready(),
            message: info.health.as_ref().map(|health| health.reason.clone()).unwrap_or_default(),
            sessions: info.sessions,
            max_sessions: info.capacity.max_sessions,
            capacity: capacity(&info.capacity),
            reserved: capacity(&info.reserved),
            backend: info.chosen_backend().map(|backend| backend.name.clone()),
            attached_at: info.attached_at.map(time_text),
            last_heartbeat_at: info.last_heartbeat_at.map(time_text),
            drain_deadline: info.drain_deadline.map(time_text),
            load: info.health.as_ref().map(Load::from),
            id: info.id,
            version: info.version,
            labels: info.labels.into_iter().collect(),
            templates: info.templates,
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Workers {
    workers: Vec<WorkerView>,
}

pub async fn workers(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let workers = call.caller.client.workers().await?;
    Ok(json(StatusCode::OK, Workers { workers: workers.into_iter().map(WorkerView::from).collect() }))
}

pub async fn worker(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    told(call.caller.client.worker(&call.parts[0]).await?)
}

pub async fn cordon(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    told(call.caller.client.cordon(&call.parts[0]).await?)
}

pub async fn uncordon(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    told(call.caller.client.uncordon(&call.parts[0]).await?)
}

/// How a worker is to be emptied.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Time that its sessions have to end by themselves. Left out: 600; 0: they are ended now.
    deadline_seconds: Option<f64>,
}

pub async fn drain(call: &Call) -> Result<Response<Body>, Problem> {
    /// A day.
    const MOST: f64 = 86_400.0;
    query::known(&call.query, &[])?;
    let request = if call.body.is_empty() { DrainRequest::default() } else { call.json()? };
    let deadline = match request.deadline_seconds {
        None => None,
        Some(seconds) if (0.0..=MOST).contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
        Some(seconds) => {
            return Err(Problem::invalid(format!("`deadline_seconds` is {seconds}"))
                .hint(format!("give seconds, at most {MOST}")));
        }
    };
    told(call.caller.client.drain(&call.parts[0], deadline).await?)
}

fn told(worker: WorkerInfo) -> Result<Response<Body>, Problem> {
    Ok(json(StatusCode::OK, WorkerView::from(worker)))
}
