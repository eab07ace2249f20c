//! Workers, templates, the coordinator and its events, as they are told.

use std::time::{Duration, SystemTime};

use berth_proto::v1;
use serde::Serialize;

use super::{SessionInfo, TaskInfo, TokenScope, json};
use crate::{Error, domain::*};

/// What the coordinator sees of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    #[default]
    Alive,
    /// Its link is gone or its lease is near its end.
    Suspect,
    Dead,
}

impl Liveness {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

/// What an operator wants of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduling {
    #[default]
    Active,
    Cordoned,
    /// Or its process stops: the next one is scheduled as the operator last said.
    Draining,
}

impl Scheduling {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

/// One backend of a worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendInfo {
    pub name: String,
    pub ready: bool,
    /// Why it is not ready, or what of it is weaker than it should be.
    pub message: String,
    /// New sessions use it unless their template names another.
    pub chosen: bool,
}

/// The last canary: a task run in a throw-away sandbox.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CanaryInfo {
    pub ok: bool,
    #[serde(serialize_with = "json::opt_time")]
    pub at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_seconds")]
    pub duration: Option<Duration>,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerHealth {
    /// 0 to 1, of all cores.
    pub cpu_busy: f64,
    pub memory_available_bytes: u64,
    pub disk_free_bytes: u64,
    /// avg10 of `some`, in percent. `None`: the kernel has no pressure information.
    pub cpu_pressure: Option<f64>,
    pub memory_pressure: Option<f64>,
    pub io_pressure: Option<f64>,
    pub canary: Option<CanaryInfo>,
    /// Ready to take sessions; if not, `reason` says why.
    pub ready: bool,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WorkerInfo {
    pub id: String,
    pub liveness: Liveness,
    pub scheduling: Scheduling,
    pub incarnation: u64,
    pub version: String,
    pub labels: Labels,
    #[serde(serialize_with = "json::capacity")]
    pub capacity: Capacity,
    /// Of it, what its sessions hold.
    #[serde(serialize_with = "json::capacity")]
    pub reserved: Capacity,
    pub sessions: u32,
    pub backends: Vec<BackendInfo>,
    pub templates: Vec<String>,
    /// `None`: it has not said yet.
    pub health: Option<WorkerHealth>,
    #[serde(serialize_with = "json::opt_time")]
    pub attached_at: Option<SystemTime>,
    #[serde(serialize_with = "json::opt_time")]
    pub last_heartbeat_at: Option<SystemTime>,
    /// Set while it drains.
    #[serde(serialize_with = "json::opt_time")]
    pub drain_deadline: Option<SystemTime>,
    pub data_connections: u32,
    /// Templates that it can't serve, each with the reason.
    pub template_problems: Labels,
}

impl WorkerInfo {
    /// Whether it takes sessions now: alive, active, and healthy.
    pub fn is_ready(&self) -> bool {
        self.liveness == Liveness::Alive
            && self.scheduling == Scheduling::Active
            && self.health.as_ref().is_some_and(|health| health.ready)
    }

    /// The backend that new sessions get.
    pub fn chosen_backend(&self) -> Option<&BackendInfo> {
        self.backends.iter().find(|backend| backend.chosen)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TemplateInfo {
    pub name: String,
    pub description: String,
    /// An unpacked root directory. `None`: the worker's default.
    pub root: Option<String>,
    /// `None`: the worker's default.
    pub image: Option<String>,
    pub backend: String,
    #[serde(serialize_with = "json::limits")]
    pub limits: Limits,
    #[serde(serialize_with = "json::task_defaults")]
    /// What it leaves out is the worker's.
    pub task_defaults: TaskDefaultsPatch,
    /// Names only: values may be secret.
    pub env_names: Vec<String>,
    pub user: String,
    pub egress: String,
    /// What it allows beside that.
    pub egress_allow: Vec<String>,
    /// Workers that can serve it now.
    pub workers: Vec<String>,
    /// Workers that are there and can't serve it, each with the reason.
    pub problems: Labels,
    #[serde(serialize_with = "json::opt_seconds")]
    pub ttl: Option<Duration>,
    #[serde(serialize_with = "json::opt_seconds")]
    pub idle_timeout: Option<Duration>,
}

/// The coordinator itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CoordinatorInfo {
    pub version: String,
    /// Drawn when its process starts.
    pub boot_id: String,
    #[serde(serialize_with = "json::opt_time")]
    pub started_at: Option<SystemTime>,
    pub workers_alive: u32,
    pub sessions_ready: u32,
    pub sessions_pending: u32,
    /// They gave their places up, and wait to be resumed.
    pub sessions_parked: u32,
    pub running_tasks: u32,
    /// What the caller's token is good for. `None`: a coordinator of before it told that.
    pub scope: Option<TokenScope>,
    /// Whose sessions it makes.
    pub tenant: String,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Session(Box<SessionInfo>),
    Task(Box<TaskInfo>),
    Worker(Box<WorkerInfo>),
}

/// A change of a session, a task or a worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FleetEvent {
    /// To go on after this event.
    pub token: String,
    #[serde(serialize_with = "json::opt_time")]
    pub at: Option<SystemTime>,
    #[serde(flatten)]
    pub change: Change,
}

impl From<v1::WorkerHealth> for WorkerHealth {
    fn from(wire: v1::WorkerHealth) -> Self {
        Self {
            cpu_busy: wire.cpu_busy,
            memory_available_bytes: wire.memory_available_bytes,
            disk_free_bytes: wire.disk_free_bytes,
            cpu_pressure: wire.cpu_pressure,
            memory_pressure: wire.memory_pressure,
            io_pressure: wire.io_pressure,
            canary: wire.canary.map(|canary| CanaryInfo {
                ok: canary.ok,
                // A canary with a strange clock is still a canary.
                at: super::time(canary.at).unwrap_or_default(),
                duration: super::duration(canary.duration).unwrap_or_default(),
                message: canary.message,
            }),
            ready: wire.ready,
            reason: wire.reason,
        }
    }
}

impl TryFrom<v1::Worker> for WorkerInfo {
    type Error = Error;

    fn try_from(wire: v1::Worker) -> Result<Self, Error> {
        let liveness = match wire.liveness() {
            v1::Liveness::Alive => Liveness::Alive,
            v1::Liveness::Suspect => Liveness::Suspect,
            v1::Liveness::Dead => Liveness::Dead,
            v1::Liveness::Unspecified => return Err(Error::strange("a worker without a liveness")),
        };
        let scheduling = match wire.scheduling() {
            v1::Scheduling::Active => Scheduling::Active,
            v1::Scheduling::Cordoned => Scheduling::Cordoned,
            v1::Scheduling::Draining => Scheduling::Draining,
            v1::Scheduling::Unspecified => return Err(Error::strange("a worker without a scheduling")),
        };
        Ok(Self {
            liveness,
            scheduling,
            id: wire.id,
            incarnation: wire.incarnation,
            version: wire.version,
            labels: super::labels(wire.labels),
            capacity: wire.capacity.unwrap_or_default().into(),
            reserved: wire.reserved.unwrap_or_default().into(),
            sessions: wire.sessions,
            backends: wire
                .backends
                .into_iter()
                .map(|b| BackendInfo { name: b.name, ready: b.ready, message: b.message, chosen: b.chosen })
                .collect(),
            templates: wire.templates,
            health: wire.health.map(WorkerHealth::from),
            attached_at: super::time(wire.attached_at)?,
            last_heartbeat_at: super::time(wire.last_heartbeat_at)?,
            drain_deadline: super::time(wire.drain_deadline)?,
            data_connections: wire.data_connections,
            template_problems: wire.template_problems.into_iter().map(|p| (p.name, p.reason)).collect(),
        })
    }
}

impl TryFrom<v1::Template> for TemplateInfo {
    type Error = Error;

    fn try_from(wire: v1::Template) -> Result<Self, Error> {
        Ok(Self {
            name: wire.name,
            description: wire.description,
            root: super::non_empty(wire.root),
            image: super::non_empty(wire.image),
            backend: wire.backend,
            limits: super::limits(wire.limits)?,
            task_defaults: super::task_defaults(wire.task_defaults)?,
            env_names: wire.env_names,
            user: wire.user,
            egress: wire.egress,
            egress_allow: wire.egress_allow,
            workers: wire.workers,
            problems: wire.problems.into_iter().map(|p| (p.worker_id, p.reason)).collect(),
            ttl: super::limit(wire.ttl)?,
            idle_timeout: super::limit(wire.idle_timeout)?,
        })
    }
}

impl TryFrom<v1::Info> for CoordinatorInfo {
    type Error = Error;

    fn try_from(wire: v1::Info) -> Result<Self, Error> {
        let scope = match wire.scope() {
            v1::TokenScope::Client => Some(TokenScope::Client),
            v1::TokenScope::Worker => Some(TokenScope::Worker),
            v1::TokenScope::Admin => Some(TokenScope::Admin),
            v1::TokenScope::Unspecified => None,
        };
        Ok(Self {
            scope,
            tenant: wire.tenant,
            version: wire.version,
            boot_id: wire.boot_id,
            started_at: super::time(wire.started_at)?,
            workers_alive: wire.workers_alive,
            sessions_ready: wire.sessions_ready,
            sessions_pending: wire.sessions_pending,
            sessions_parked: wire.sessions_parked,
            running_tasks: wire.running_tasks,
        })
    }
}
