//! For operators: workers and the coordinator.

use berth_client::model::{WorkerHealth, WorkerInfo};
use clap::Args;

use super::Global;
use crate::{
    failure::CommandResult,
    output::{self, ago, bytes, clipped, cores, count, left, say, span},
};

const WORKERS_HELP: &str = "\
Examples:
  berth workers
  berth workers worker-1
  berth workers --format json | jq '.[] | {id, sessions, ready: .health.ready}'";

/// Lists workers, or shows one.
#[derive(Args, Debug)]
#[command(after_help = WORKERS_HELP)]
pub struct WorkersArgs {
    /// Worker to show in full
    #[arg(value_name = "WORKER")]
    pub worker: Option<String>,
}

/// Which worker.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Worker
    #[arg(value_name = "WORKER")]
    pub worker: String,
}

pub async fn workers(global: &Global, args: WorkersArgs) -> CommandResult {
    let client = global.client().await?;
    if let Some(id) = args.worker {
        let worker = client.worker(&id).await?;
        return show(global, &worker);
    }
    let workers = client.workers().await?;
    if global.json() {
        output::json(&workers)?;
    } else {
        let rows = workers.iter().map(row).collect();
        output::table(&HEADER, rows, "no workers; start one with `berth up` or `worker`")?;
        for worker in workers.iter().filter(|worker| !worker.is_ready()) {
            let reason = worker.health.as_ref().map(|health| health.reason.as_str()).unwrap_or_default();
            if !reason.is_empty() {
                say(format!("{}: {reason}", worker.id));
            }
        }
    }
    Ok(0)
}

/// Of the table of workers, which `berth demo` shows too.
pub const HEADER: [&str; 11] = [
    "WORKER",
    "LIVENESS",
    "SCHEDULING",
    "READY",
    "BACKEND",
    "SESSIONS",
    "CPU",
    "MEMORY",
    "DISK FREE",
    "BUSY",
    "CANARY",
];

pub fn row(worker: &WorkerInfo) -> Vec<String> {
    let health = worker.health.as_ref();
    vec![
        worker.id.clone(),
        worker.liveness.name().to_owned(),
        worker.scheduling.name().to_owned(),
        if worker.is_ready() { "yes" } else { "no" }.to_owned(),
        worker.chosen_backend().map(|backend| backend.name.clone()).unwrap_or_default(),
        format!("{}/{}", worker.sessions, worker.capacity.max_sessions),
        format!("{}/{}", cores(worker.reserved.cpu_millis), cores(worker.capacity.cpu_millis)),
        format!("{}/{}", bytes(worker.reserved.memory_bytes), bytes(worker.capacity.memory_bytes)),
        health.map(|health| bytes(health.disk_free_bytes)).unwrap_or_default(),
        health.map(|health| format!("{:.0}%", health.cpu_busy * 100.0)).unwrap_or_default(),
        health.map(canary).unwrap_or_default(),
    ]
}

fn canary(health: &WorkerHealth) -> String {
    match &health.canary {
        None => String::new(),
        Some(canary) if canary.ok => {
            canary.duration.map_or_else(|| "ok".to_owned(), |took| format!("ok in {}", span(took)))
        }
        Some(_) => "failed".to_owned(),
    }
}

fn show(global: &Global, worker: &WorkerInfo) -> CommandResult {
    if global.json() {
        output::json(worker)?;
        return Ok(0);
    }
    let mut pairs = vec![
        ("worker", worker.id.clone()),
        ("liveness", worker.liveness.name().to_owned()),
        ("scheduling", worker.scheduling.name().to_owned()),
        ("drained by", left(worker.drain_deadline)),
        ("version", worker.version.clone()),
        ("incarnation", worker.incarnation.to_string()),
        ("labels", output::labels(&worker.labels)),
        ("templates", worker.templates.join(", ")),
        ("sessions", format!("{} of {}", worker.sessions, worker.capacity.max_sessions)),
        ("cpu", used(cores(worker.reserved.cpu_millis), cores(worker.capacity.cpu_millis))),
        ("memory", used(bytes(worker.reserved.memory_bytes), bytes(worker.capacity.memory_bytes))),
        ("disk", used(bytes(worker.reserved.disk_bytes), bytes(worker.capacity.disk_bytes))),
        (
            "attached",
            format!("{} ago, {}", ago(worker.attached_at), count(worker.data_connections, "data connection")),
        ),
        ("heartbeat", format!("{} ago", ago(worker.last_heartbeat_at))),
    ];
    for backend in &worker.backends {
        let state = if backend.ready { "ready" } else { "not ready" };
        let chosen = if backend.chosen { ", in use" } else { "" };
        let message = match backend.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        pairs.push(("backend", format!("{} {state}{chosen}{message}", backend.name)));
    }
    for (template, reason) in &worker.template_problems {
        pairs.push(("can't serve", format!("template {template}: {reason}")));
    }
    if let Some(health) = &worker.health {
        pairs.extend(health_pairs(health));
    }
    output::details(&pairs)?;
    Ok(0)
}

fn used(reserved: String, capacity: String) -> String {
    format!("{reserved} of {capacity} reserved")
}

fn health_pairs(health: &WorkerHealth) -> Vec<(&'static str, String)> {
    let pressure = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |value| format!("{value:.1}%"));
    let ready = if health.ready { "yes".to_owned() } else { format!("no: {}", health.reason) };
    let mut pairs = vec![
        ("ready", ready),
        ("cpu busy", format!("{:.0}%", health.cpu_busy * 100.0)),
        ("memory free", bytes(health.memory_available_bytes)),
        ("disk free", bytes(health.disk_free_bytes)),
        (
            "pressure",
            format!(
                "cpu {}, memory {}, io {}",
                pressure(health.cpu_pressure),
                pressure(health.memory_pressure),
                pressure(health.io_pressure)
            ),
        ),
    ];
    if let Some(last) = &health.canary {
        let message = if last.message.is_empty() { String::new() } else { format!(": {}", last.message) };
        pairs.push(("canary", format!("{}, {} ago{message}", canary(health), ago(last.at))));
    }
    pairs
}

pub async fn cordon(global: &Global, args: WorkerArgs) -> CommandResult {
    let worker = global.client().await?.cordon(&args.worker).await?;
    changed(global, &worker)
}

pub async fn uncordon(global: &Global, args: WorkerArgs) -> CommandResult {
    let worker = global.client().await?.uncordon(&args.worker).await?;
    changed(global, &worker)
}

pub fn changed(global: &Global, worker: &WorkerInfo) -> CommandResult {
    if global.json() {
        output::json(worker)?;
    } else {
        output::data(format!("{} {}", worker.id, worker.scheduling.name()))?;
    }
    Ok(0)
}

pub async fn info(global: &Global) -> CommandResult {
    let client = global.client().await?;
    let info = client.info().await?;
    if global.json() {
        output::json(&info)?;
        return Ok(0);
    }
    output::details(&[
        ("address", client.address().to_owned()),
        ("version", clipped(&info.version, 60)),
        ("up for", ago(info.started_at)),
        ("boot id", info.boot_id.clone()),
        ("workers alive", info.workers_alive.to_string()),
        ("sessions ready", info.sessions_ready.to_string()),
        ("sessions waiting", info.sessions_pending.to_string()),
        ("sessions parked", info.sessions_parked.to_string()),
        ("tasks running", info.running_tasks.to_string()),
        (
            "token",
            info.scope.map(|scope| format!("{}, of {}", scope.name(), info.tenant)).unwrap_or_default(),
        ),
    ])?;
    if info.version != berth_proto::VERSION {
        output::warning(format!(
            "this is berth {}, the coordinator is {}",
            berth_proto::VERSION,
            info.version
        ));
    }
    Ok(0)
}
