//! Sessions and workers as rows: the one place that knows how they are written down.
//! JSON for what has a shape that grows; unknown fields are ignored, missing ones get
//! their default, so that a downgrade or an upgrade reads the other's rows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_checkpoint::Digest;
use berth_proto::{
    Epoch, Incarnation,
    domain::{
        CheckpointPolicy, Egress, EndReason, Labels, Limits, OnWorkerLoss, PtySize, RestoreFrom,
        SessionState, TaskDefaultsPatch, TemplateSpec,
    },
    v1,
};
use serde::{Deserialize, Serialize};

use super::{StoreError, sums::Fields};
use crate::{
    fleet::{Kept, Recovery, Scheduling, Session, Spec, Waits, Worker},
    tenant::Tenant,
};

#[derive(Serialize, Deserialize)]
struct SpecRow {
    /// Absent in rows of before there were any: the default one.
    #[serde(default)]
    tenant: Option<String>,
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
    #[serde(default)]
    from_checkpoint: bool,
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
    /// Absent, like no rules at all: none.
    #[serde(default)]
    egress: Option<String>,
    #[serde(default)]
    egress_allow: Vec<String>,
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
        tenant: Some(spec.tenant.to_string()),
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
        from_checkpoint: spec.from_checkpoint,
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
        egress: Some(spec.egress.preset.to_string()),
        egress_allow: spec.egress.allow.iter().map(ToString::to_string).collect(),
    };
    serde_json::to_string(&row).map_err(|e| StoreError::Failed(e.to_string()))
}

pub(crate) fn spec_in(text: &str) -> Result<Spec, StoreError> {
    let row: SpecRow = serde_json::from_str(text).map_err(damaged("a session's spec"))?;
    let egress = v1::Egress { preset: row.egress.unwrap_or_default(), allow: row.egress_allow };
    let tenant = row.tenant.map(|name| name.parse::<Tenant>()).transpose();
    Ok(Spec {
        tenant: tenant.map_err(damaged("a tenant"))?.unwrap_or_default(),
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
        from_checkpoint: row.from_checkpoint,
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
        egress: Egress::try_from(egress).map_err(damaged("a session's egress"))?,
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
    /// JSON: what it can be restored from, and its last recovery.
    pub checkpoint: Option<String>,
    pub recovered: Option<String>,
    pub waits_since: Option<i64>,
    pub waits_until: Option<i64>,
    pub paused_at: Option<i64>,
    pub parked_at: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct KeptRow {
    id: String,
    /// Hex.
    root: String,
    at: i64,
}

/// A kept checkpoint with more beside it; a row of before has the checkpoint alone.
#[derive(Serialize, Deserialize)]
struct RecoveryRow {
    #[serde(flatten)]
    kept: KeptRow,
    #[serde(default)]
    passed_over: Vec<String>,
    #[serde(default)]
    under_way: bool,
}

fn kept_out(kept: &Kept) -> KeptRow {
    KeptRow { id: kept.from.checkpoint.clone(), root: Digest(kept.from.root).hex(), at: micros(kept.at) }
}

fn kept_in(row: KeptRow) -> Result<Kept, StoreError> {
    let root = Digest::from_hex(&row.root)
        .ok_or_else(|| StoreError::Damaged(format!("{:?} is no digest", row.root)))?;
    Ok(Kept { from: RestoreFrom { checkpoint: row.id, root: root.0 }, at: time(row.at) })
}

fn recovery_out(recovery: &Recovery) -> RecoveryRow {
    RecoveryRow {
        kept: kept_out(&recovery.kept),
        passed_over: recovery.passed_over.clone(),
        under_way: recovery.under_way,
    }
}

fn recovery_in(row: RecoveryRow) -> Result<Recovery, StoreError> {
    Ok(Recovery { kept: kept_in(row.kept)?, passed_over: row.passed_over, under_way: row.under_way })
}

fn json<T: Serialize>(value: Option<T>) -> Result<Option<String>, StoreError> {
    value.map(|v| serde_json::to_string(&v)).transpose().map_err(|e| StoreError::Failed(e.to_string()))
}

fn of_json<T: for<'de> Deserialize<'de>>(
    text: Option<String>,
    what: &'static str,
) -> Result<Option<T>, StoreError> {
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(damaged(what))
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
            checkpoint: json(session.checkpoint.as_ref().map(kept_out))?,
            recovered: json(session.recovered.as_ref().map(recovery_out))?,
            waits_since: Some(micros(session.waits.since)),
            waits_until: Some(micros(session.waits.until)),
            paused_at: session.paused_at.map(micros),
            parked_at: session.parked_at.map(micros),
        })
    }

    pub fn fields(self) -> Fields {
        vec![
            ("id", self.id.into()),
            ("state", self.state.into()),
            ("epoch", self.epoch.into()),
            ("worker_id", self.worker_id.into()),
            ("backend", self.backend.into()),
            ("end_reason", self.end_reason.into()),
            ("message", self.message.into()),
            ("labels", self.labels.into()),
            ("spec", self.spec.into()),
            ("idle_timeout", self.idle_timeout.into()),
            ("created_at", self.created_at.into()),
            ("ready_at", self.ready_at.into()),
            ("ended_at", self.ended_at.into()),
            ("expires_at", self.expires_at.into()),
            ("checkpoint", self.checkpoint.into()),
            ("recovered", self.recovered.into()),
            ("waits_since", self.waits_since.into()),
            ("waits_until", self.waits_until.into()),
            ("paused_at", self.paused_at.into()),
            ("parked_at", self.parked_at.into()),
        ]
    }

    pub fn session(self) -> Result<Session, StoreError> {
        let id = self.id.parse().map_err(damaged("a session's id"))?;
        let mut session = Session::new(id, spec_in(&self.spec)?, time(self.created_at));
        let checkpoint = of_json(self.checkpoint, "a session's checkpoint")?;
        let recovered = of_json(self.recovered, "a session's recovery")?;
        session.labels = serde_json::from_str(&self.labels).map_err(damaged("a session's labels"))?;
        session.state = state_in(&self.state)?;
        session.epoch = Epoch(self.epoch as u64);
        session.worker = self.worker_id.map(|id| id.parse()).transpose().map_err(damaged("a worker's id"))?;
        session.backend = self.backend;
        session.end = self.end_reason.as_deref().map(reason_in).transpose()?;
        session.message = self.message;
        session.waits = Waits {
            since: self.waits_since.map_or(session.waits.since, time),
            until: self.waits_until.map_or(session.waits.until, time),
        };
        session.ready_at = self.ready_at.map(time);
        session.ended_at = self.ended_at.map(time);
        session.expires_at = self.expires_at.map(time);
        session.paused_at = self.paused_at.map(time);
        session.parked_at = self.parked_at.map(time);
        session.idle_timeout = self.idle_timeout.map(|us| Duration::from_micros(us.max(0) as u64));
        session.checkpoint = checkpoint.map(kept_in).transpose()?;
        session.recovered = recovered.map(recovery_in).transpose()?;
        Ok(session)
    }
}

/// A session as the store would give it back.
#[cfg(test)]
pub(crate) fn as_kept(session: &Session) -> Session {
    SessionRow::of(session).and_then(SessionRow::session).expect("what is written can be read")
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

    pub fn fields(self) -> Fields {
        vec![
            ("id", self.id.into()),
            ("incarnation", self.incarnation.into()),
            ("scheduling", self.scheduling.into()),
            ("drain_until", self.drain_until.into()),
        ]
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

pub(super) fn damaged<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StoreError {
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
