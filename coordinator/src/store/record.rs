//! Sessions and workers as rows: the one place that knows how they are written down.
//! JSON for what has a shape that grows; unknown fields are ignored, missing ones get
//! their default, so that a downgrade or an upgrade reads the other's rows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_checkpoint::Digest;
use berth_proto::{
    Epoch, Incarnation,
    domain::{
        CheckpointPolicy, EndReason, Labels, Limits, OnWorkerLoss, PtySize, RestoreFrom, SessionState,
        TaskDefaultsPatch, TemplateSpec,
    },
    v1,
};
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::fleet::{Kept, Scheduling, Session, Spec, Times, Worker};

#[derive(Serialize, Deserialize)]
struct SpecRow {
    template: TemplateRow,
    cpu_millis: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    pids: u32,
    #[serde(default)]
    env: Labels,
    #[serde(default)]
    selector: Labels,
    #[serde(default)]
    priority: i32,
    #[serde(default)]
    wait_for_place_ms: u64,
    #[serde(default)]
    patient: bool,
    #[serde(default)]
    keyed: bool,
    /// 0: no limit. Absent, like the rest: the worker's.
    #[serde(default)]
    task_timeout_ms: Option<u64>,
    #[serde(default)]
    pty_cols: Option<u16>,
    #[serde(default)]
    pty_rows: Option<u16>,
    #[serde(default)]
    max_concurrent: Option<u32>,
    #[serde(default)]
    restore_on_loss: bool,
    #[serde(default)]
    checkpoint_interval_ms: Option<u64>,
    #[serde(default)]
    checkpoint_on_drain: bool,
    #[serde(default)]
    checkpoint_before_delete: bool,
    #[serde(default)]
    checkpoints_kept: Option<u32>,
    #[serde(default)]
    checkpoints_kept_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct TemplateRow {
    name: String,
    root: Option<String>,
    image: Option<String>,
    backend: String,
    user: String,
}

pub(crate) fn spec_out(spec: &Spec) -> Result<String, StoreError> {
    let defaults = &spec.task_defaults;
    let row = SpecRow {
        template: TemplateRow {
            name: spec.template.name.clone(),
            root: spec.template.root.clone(),
            image: spec.template.image.clone(),
            backend: spec.template.backend.to_string(),
            user: spec.template.user.clone(),
        },
        cpu_millis: spec.limits.cpu_millis,
        memory_bytes: spec.limits.memory_bytes,
        disk_bytes: spec.limits.disk_bytes,
        pids: spec.limits.pids,
        env: spec.env.clone(),
        selector: spec.selector.clone(),
        priority: spec.priority,
        wait_for_place_ms: millis(spec.wait_for_place),
        patient: spec.patient,
        keyed: spec.keyed,
        task_timeout_ms: defaults.timeout.map(|timeout| millis(timeout.unwrap_or_default())),
        pty_cols: defaults.pty_size.map(|size| size.cols),
        pty_rows: defaults.pty_size.map(|size| size.rows),
        max_concurrent: defaults.max_concurrent,
        restore_on_loss: spec.on_worker_loss == OnWorkerLoss::Restore,
        checkpoint_interval_ms: spec.checkpoints.interval.map(millis),
        checkpoint_on_drain: spec.checkpoints.on_drain,
        checkpoint_before_delete: spec.checkpoints.before_delete,
        checkpoints_kept: Some(spec.checkpoints.keep),
        checkpoints_kept_ms: Some(millis(spec.checkpoints.keep_for)),
    };
    serde_json::to_string(&row).map_err(|e| StoreError::Failed(e.to_string()))
}

pub(crate) fn spec_in(text: &str) -> Result<Spec, StoreError> {
    let row: SpecRow = serde_json::from_str(text).map_err(damaged("a session's spec"))?;
    Ok(Spec {
        template: TemplateSpec {
            name: row.template.name,
            root: row.template.root,
            image: row.template.image,
            backend: row.template.backend.parse().map_err(damaged("a template's backend"))?,
            user: row.template.user,
        },
        limits: Limits {
            cpu_millis: row.cpu_millis,
            memory_bytes: row.memory_bytes,
            disk_bytes: row.disk_bytes,
            pids: row.pids,
        },
        env: row.env,
        selector: row.selector,
        priority: row.priority,
        wait_for_place: Duration::from_millis(row.wait_for_place_ms),
        patient: row.patient,
        task_defaults: TaskDefaultsPatch {
            timeout: row.task_timeout_ms.map(|ms| (ms > 0).then(|| Duration::from_millis(ms))),
            pty_size: row.pty_cols.zip(row.pty_rows).map(|(cols, rows)| PtySize { cols, rows }),
            max_concurrent: row.max_concurrent,
        },
        keyed: row.keyed,
        on_worker_loss: if row.restore_on_loss { OnWorkerLoss::Restore } else { OnWorkerLoss::End },
        checkpoints: CheckpointPolicy {
            interval: row.checkpoint_interval_ms.map(Duration::from_millis),
            on_drain: row.checkpoint_on_drain,
            before_delete: row.checkpoint_before_delete,
            keep: row.checkpoints_kept.unwrap_or(CheckpointPolicy::default().keep),
            keep_for: row
                .checkpoints_kept_ms
                .map_or(CheckpointPolicy::default().keep_for, Duration::from_millis),
        },
    })
}

/// A row of `sessions`.
#[derive(sqlx::FromRow)]
pub(super) struct SessionRow {
    pub id: String,
    pub state: String,
    pub epoch: i64,
    pub worker_id: Option<String>,
    pub backend: String,
    pub end_reason: Option<String>,
    pub message: String,
    pub labels: String,
    pub spec: String,
    pub idle_timeout: Option<i64>,
    pub created_at: i64,
    pub ready_at: Option<i64>,
    pub ended_at: Option<i64>,
    pub expires_at: Option<i64>,
    /// JSON: what it can be restored from, and what it was.
    pub checkpoint: Option<String>,
    pub recovered: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct KeptRow {
    id: String,
    /// Hex.
    root: String,
    at: i64,
}

fn kept_out(kept: Option<&Kept>) -> Result<Option<String>, StoreError> {
    let Some(kept) = kept else { return Ok(None) };
    let row =
        KeptRow { id: kept.from.checkpoint.clone(), root: Digest(kept.from.root).hex(), at: micros(kept.at) };
    serde_json::to_string(&row).map(Some).map_err(|e| StoreError::Failed(e.to_string()))
}

fn kept_in(text: Option<String>) -> Result<Option<Kept>, StoreError> {
    let Some(text) = text else { return Ok(None) };
    let row: KeptRow = serde_json::from_str(&text).map_err(damaged("a session's checkpoint"))?;
    let root = Digest::from_hex(&row.root)
        .ok_or_else(|| StoreError::Damaged(format!("{:?} is no digest", row.root)))?;
    Ok(Some(Kept { from: RestoreFrom { checkpoint: row.id, root: root.0 }, at: time(row.at) }))
}

impl SessionRow {
    pub fn of(session: &Session) -> Result<Self, StoreError> {
        Ok(Self {
            id: session.id.to_string(),
            state: v1::SessionState::from(session.state).as_str_name().to_owned(),
            epoch: session.epoch.0 as i64,
            worker_id: session.worker.as_ref().map(ToString::to_string),
            backend: session.backend.clone(),
            end_reason: session.end.map(|r| v1::EndReason::from(r).as_str_name().to_owned()),
            message: session.message.clone(),
            labels: serde_json::to_string(&session.labels).map_err(|e| StoreError::Failed(e.to_string()))?,
            spec: spec_out(&session.spec)?,
            idle_timeout: session.idle_timeout.map(|d| d.as_micros() as i64),
            created_at: micros(session.created_at),
            ready_at: session.ready_at.map(micros),
            ended_at: session.ended_at.map(micros),
            expires_at: session.expires_at.map(micros),
            checkpoint: kept_out(session.checkpoint.as_ref())?,
            recovered: kept_out(session.recovered.as_ref())?,
        })
    }

    pub fn session(self) -> Result<Session, StoreError> {
        let times = Times {
            created_at: time(self.created_at),
            ready_at: self.ready_at.map(time),
            ended_at: self.ended_at.map(time),
            expires_at: self.expires_at.map(time),
        };
        Ok(Session::from_record(
            self.id.parse().map_err(damaged("a session's id"))?,
            spec_in(&self.spec)?,
            serde_json::from_str(&self.labels).map_err(damaged("a session's labels"))?,
            state_in(&self.state)?,
            Epoch(self.epoch as u64),
            self.worker_id.map(|id| id.parse()).transpose().map_err(damaged("a worker's id"))?,
            self.backend,
            self.end_reason.as_deref().map(reason_in).transpose()?,
            self.message,
            times,
            self.idle_timeout.map(|us| Duration::from_micros(us.max(0) as u64)),
            [kept_in(self.checkpoint)?, kept_in(self.recovered)?],
        ))
    }
}

fn state_in(text: &str) -> Result<SessionState, StoreError> {
    v1::SessionState::from_str_name(text)
        .and_then(|wire| berth_proto::convert::session_state("state", wire.into()).ok())
        .ok_or_else(|| StoreError::Damaged(format!("{text:?} is no session state")))
}

fn reason_in(text: &str) -> Result<EndReason, StoreError> {
    v1::EndReason::from_str_name(text)
        .and_then(|wire| berth_proto::convert::end_reason(wire.into()))
        .ok_or_else(|| StoreError::Damaged(format!("{text:?} is no end reason")))
}

/// A row of `workers`.
#[derive(sqlx::FromRow)]
pub(super) struct WorkerRow {
    pub id: String,
    pub incarnation: i64,
    pub scheduling: String,
    pub drain_until: Option<i64>,
}

impl WorkerRow {
    pub fn of(worker: &Worker) -> Self {
        let (scheduling, drain_until) = match worker.scheduling {
            Scheduling::Active => ("active", None),
            Scheduling::Cordoned => ("cordoned", None),
            Scheduling::Draining { until } => ("draining", Some(micros(until))),
        };
        Self {
            id: worker.id.to_string(),
            incarnation: worker.incarnation.0 as i64,
            scheduling: scheduling.to_owned(),
            drain_until,
        }
    }

    pub fn worker(self) -> Result<Worker, StoreError> {
        let scheduling = match (self.scheduling.as_str(), self.drain_until) {
            ("active", _) => Scheduling::Active,
            ("cordoned", _) => Scheduling::Cordoned,
            ("draining", Some(until)) => Scheduling::Draining { until: time(until) },
            (other, _) => return Err(StoreError::Damaged(format!("{other:?} is no scheduling"))),
        };
        let id = self.id.parse().map_err(damaged("a worker's id"))?;
        Ok(Worker::from_record(id, Incarnation(self.incarnation as u64), scheduling))
    }
}

fn damaged<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Damaged(format!("{what}: {error}"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970.
pub(crate) fn micros(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map(|d| d.as_micros() as i64).unwrap_or_default()
}

pub(crate) fn time(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.max(0) as u64)
}
