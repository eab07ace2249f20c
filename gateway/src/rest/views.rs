//! Sessions, tasks and the cluster, as they are told here. Types of their own, and not the client library's: what
//! is once told under `/v1` stays.

use std::{cmp::Reverse, collections::BTreeMap, time::SystemTime};

use berth_client::{
    Client, ListOptions, NAME_LABEL, Reason, SessionId, SessionState, TaskHandle, TaskId,
    model::{SessionInfo, TaskInfo, TokenScope, end_reason_name, json::time_text, session_state_name},
};
use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Call, json, problem::Problem, query};
use crate::{
    http::{Body, query::value},
    told::Ended,
};

const USUAL_LIMIT: usize = 100;
const MOST_LIMIT: usize = 1000;

/// How the cluster stands.
#[derive(Serialize, JsonSchema)]
pub struct Info {
    /// ok: sessions can be placed; no_workers: no worker is there.
    status: &'static str,
    /// The coordinator's time.
    timestamp: String,
    version: &'static str,
    /// Of the coordinator's process.
    uptime_seconds: f64,
    /// Tasks that run now, in all sessions.
    active_tasks: u32,
    sessions: SessionCounts,
    workers_alive: u32,
    system: System,
    /// What the token is good for: client or admin.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    /// Whose sessions it makes and, where it is a client's, sees.
    tenant: String,
}

#[derive(Serialize, JsonSchema)]
struct SessionCounts {
    ready: u32,
    /// They wait for a place.
    pending: u32,
    /// They gave their place up, and wait to be resumed.
    parked: u32,
}

/// The coordinator's machine.
#[derive(Serialize, JsonSchema)]
struct System {
    os: &'static str,
    arch: &'static str,
    cpus: usize,
}

pub async fn info(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let info = call.caller.client.info().await?;
    let now = SystemTime::now();
    let uptime = info.started_at.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
    let info = Info {
        status: if info.workers_alive > 0 { "ok" } else { "no_workers" },
        timestamp: time_text(now),
        version: berth_proto::VERSION,
        uptime_seconds: uptime.as_secs_f64(),
        active_tasks: info.running_tasks,
        sessions: SessionCounts {
            ready: info.sessions_ready,
            pending: info.sessions_pending,
            parked: info.sessions_parked,
        },
        workers_alive: info.workers_alive,
        system: System {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        },
        scope: info.scope.map(TokenScope::name),
        tenant: info.tenant,
    };
    Ok(json(StatusCode::OK, info))
}

/// A session.
#[derive(Serialize, JsonSchema)]
pub struct SessionView {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// pending, placed, ready, paused, parked, ending or ended.
    state: &'static str,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_reason: Option<&'static str>,
    /// Why it waits, is parked, or ended, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    template: String,
    /// Not set until it is placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// native, docker or fake; empty until it is placed.
    backend: String,
    tenant: String,
    labels: BTreeMap<String, String>,
    priority: i32,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    /// What it may reach: none, packages or full ...
    egress: &'static str,
    /// ... and beside that.
    allow: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// When its life span is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_seconds: Option<f64>,
    /// While it waits: 1 is the next to be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u32>,
    /// While it waits: since when ...
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_since: Option<String>,
    /// ... and until when it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_until: Option<String>,
}

impl From<SessionInfo> for SessionView {
    fn from(info: SessionInfo) -> Self {
        Self {
            id: info.id.to_string(),
            name: info.labels.get(NAME_LABEL).cloned(),
            state: session_state_name(info.state),
            end_reason: info.end_reason.map(end_reason_name),
            message: info.message,
            template: info.template,
            worker: info.worker,
            backend: info.backend,
            tenant: info.tenant,
            labels: info.labels.into_iter().collect(),
            priority: info.priority,
            cpu_millis: info.limits.cpu_millis,
            memory_bytes: info.limits.memory_bytes,
            disk_bytes: info.limits.disk_bytes,
            pids: info.limits.pids,
            egress: info.egress.preset.as_str(),
            allow: info.egress.allow.iter().map(ToString::to_string).collect(),
            created_at: info.created_at.map(time_text),
            ready_at: info.ready_at.map(time_text),
            ended_at: info.ended_at.map(time_text),
            expires_at: info.expires_at.map(time_text),
            idle_timeout_seconds: info.idle_timeout.map(|idle| idle.as_secs_f64()),
            queue_position: info.queue_position,
            waits_since: info.waits_since.map(time_text),
            waits_until: info.waits_until.map(time_text),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Sessions {
    /// Newest first.
    sessions: Vec<SessionView>,
    /// There are more than these.
    more: bool,
}

pub async fn sessions(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["label", "state", "all", "limit"])?;
    let limit = limit(call)?;
    let mut options = ListOptions::new();
    if flag(call, "all")? {
        options = options.all();
    }
    if let Some(name) = value(&call.query, "state") {
        let state = STATES.into_iter().find(|state| session_state_name(*state) == name);
        let state = state.ok_or_else(|| {
            let names = STATES.map(session_state_name).join(", ");
            Problem::invalid(format!("there is no state {name:?}")).hint(format!("give one of {names}"))
        })?;
        options = options.states([state]);
    }
    for (_, label) in call.query.iter().filter(|(name, _)| name == "label") {
        let (name, value) = label.split_once('=').ok_or_else(|| {
            Problem::invalid(format!("the label {label:?} has no value")).hint("write label=name%3Dvalue")
        })?;
        options = options.label(name, value);
    }
    let mut found = call.caller.client.sessions(options).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let sessions = found.into_iter().map(SessionView::from).collect();
    Ok(json(StatusCode::OK, Sessions { sessions, more }))
}

/// Those that wait for a place, as the coordinator goes through them.
#[derive(Serialize, JsonSchema)]
pub struct Queue {
    /// The next to be tried first.
    sessions: Vec<SessionView>,
    /// There are more than these.
    more: bool,
}

pub async fn queue(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["limit"])?;
    let limit = limit(call)?;
    let options = ListOptions::new().states([SessionState::Pending]);
    let mut waiting = call.caller.client.sessions(options).await?;
    // Ids grow with time.
    waiting.sort_by_key(|s| (s.queue_position.unwrap_or(u32::MAX), Reverse(s.priority), s.id));
    let more = waiting.len() > limit;
    waiting.truncate(limit);
    let sessions = waiting.into_iter().map(SessionView::from).collect();
    Ok(json(StatusCode::OK, Queue { sessions, more }))
}

const STATES: [SessionState; 7] = [
    SessionState::Pending,
    SessionState::Placed,
    SessionState::Ready,
    SessionState::Paused,
    SessionState::Parked,
    SessionState::Ending,
    SessionState::Ended,
];

/// How many are to be told at most.
pub fn limit(call: &Call) -> Result<usize, Problem> {
    match value(&call.query, "limit").map(str::parse) {
        None => Ok(USUAL_LIMIT),
        Some(Ok(limit)) if (1..=MOST_LIMIT).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::invalid("`limit` is no number that it takes").hint("give 1 to 1000")),
    }
}

pub fn flag(call: &Call, name: &str) -> Result<bool, Problem> {
    match value(&call.query, name) {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(value) => Err(Problem::invalid(format!("`{name}` is {value:?}")).hint("give true or false")),
    }
}

/// The session that an id or a name means.
pub async fn named(client: &Client, named: &str) -> Result<SessionId, Problem> {
    if let Ok(id) = named.parse() {
        return Ok(id);
    }
    let found = client.sessions(ListOptions::new().label(NAME_LABEL, named)).await?;
    match &found[..] {
        [info] => Ok(info.id),
        [] => Err(Problem::not_found(format!("no session is called {named:?}"))
            .reason(Reason::SessionNotFound)
            .hint("GET /v1/sessions lists them")),
        _ => {
            let ids: Vec<_> = found.iter().take(10).map(|info| info.id.to_string()).collect();
            Err(Problem::invalid(format!("{} sessions are called {named:?}", found.len()))
                .hint(format!("give one of these ids: {}", ids.join(", "))))
        }
    }
}

pub async fn session(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let client = &call.caller.client;
    let id = named(client, &call.parts[0]).await?;
    Ok(json(StatusCode::OK, SessionView::from(client.session(id).info().await?)))
}

pub async fn end_session(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    let client = &call.caller.client;
    let id = named(client, &call.parts[0]).await?;
    Ok(json(StatusCode::OK, SessionView::from(client.session(id).delete().await?)))
}

/// A task.
#[derive(Serialize, JsonSchema)]
pub struct TaskView {
    id: String,
    session: String,
    /// queued, dispatched, running or done.
    state: &'static str,
    /// What it runs, as a line for a shell.
    command: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    /// Bytes that it wrote.
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// Set when it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Ended>,
}

impl From<TaskInfo> for TaskView {
    fn from(info: TaskInfo) -> Self {
        Self {
            id: info.id.to_string(),
            session: info.session.to_string(),
            state: info.state.name(),
            command: info.program.line(),
            started_at: info.started_at.map(time_text),
            stdout_bytes: info.stdout.length,
            stderr_bytes: info.stderr.length,
            end: info.end.map(Ended::from),
        }
    }
}

#[derive(Serialize, JsonSchema)]
pub struct Tasks {
    /// Newest first.
    tasks: Vec<TaskView>,
}

pub async fn tasks(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &["running"])?;
    let client = &call.caller.client;
    let session = client.session(named(client, &call.parts[0]).await?);
    let found = if flag(call, "running")? { session.running_tasks().await? } else { session.tasks().await? };
    Ok(json(StatusCode::OK, Tasks { tasks: found.into_iter().map(TaskView::from).collect() }))
}

pub async fn task(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    Ok(json(StatusCode::OK, TaskView::from(handle(call).await?.info().await?)))
}

/// Ends it: TERM, and after 2 s KILL to all that it started. Answers when it is done.
pub async fn cancel(call: &Call) -> Result<Response<Body>, Problem> {
    query::known(&call.query, &[])?;
    Ok(json(StatusCode::OK, TaskView::from(handle(call).await?.cancel().await?)))
}

/// The task that a path names.
pub async fn handle(call: &Call) -> Result<TaskHandle, Problem> {
    let client = &call.caller.client;
    let session = client.session(named(client, &call.parts[0]).await?);
    let id: TaskId = call.parts[1].parse().map_err(|_| {
        Problem::not_found("that is no task's id").hint("GET /v1/sessions/{session}/tasks lists them")
    })?;
    Ok(session.task(id))
}
