//! What a session is made of, found by, and changed to. All of it may be left out.

use std::time::Duration;

use berth_proto::{
    convert::duration_out,
    domain::{CheckpointPolicy, Egress, LimitsPatch, OnWorkerLoss, TaskDefaultsPatch},
    v1,
};

use crate::{Labels, SessionState, TaskId};

/// What kind of session to make. All of it may be left out.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    request_id: Option<String>,
    template: String,
    limits: LimitsPatch,
    env: Labels,
    labels: Labels,
    ttl: Option<Duration>,
    idle_timeout: Option<Duration>,
    worker_selector: Labels,
    priority: i32,
    pub(crate) wait: Option<Duration>,
    task_defaults: TaskDefaultsPatch,
    on_worker_loss: Option<OnWorkerLoss>,
    checkpoints: Option<CheckpointPolicy>,
    egress: Option<Egress>,
}

impl CreateOptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// The same id with the same options within a day is the same session. Without this,
    /// each call makes an id of its own.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// `base` if left out.
    #[must_use]
    pub fn template(mut self, name: impl Into<String>) -> Self {
        self.template = name.into();
        self
    }

    /// What is left out comes from the template.
    #[must_use]
    pub fn limits(mut self, limits: LimitsPatch) -> Self {
        self.limits = limits;
        self
    }

    /// Thousandths of a core.
    #[must_use]
    pub fn cpu_millis(mut self, millis: u32) -> Self {
        self.limits.cpu_millis = Some(millis);
        self
    }

    /// Of all tasks of the session together.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.limits.memory_bytes = Some(bytes);
        self
    }

    /// Size of the workspace.
    #[must_use]
    pub fn disk_bytes(mut self, bytes: u64) -> Self {
        self.limits.disk_bytes = Some(bytes);
        self
    }

    /// Processes and threads of all tasks of the session together.
    #[must_use]
    pub fn pids(mut self, pids: u32) -> Self {
        self.limits.pids = Some(pids);
        self
    }

    /// A variable for every task of the session.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Life span from now; zero is none.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Ends the session after this long without a running task or a call; zero is none.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// A label that its worker must have, with this value.
    #[must_use]
    pub fn on_worker(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.worker_selector.insert(label.into(), value.into());
        self
    }

    /// -100 to 100; higher goes first in the queue.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// How long to wait for a place (30 s by default); zero: not at all.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Defaults for the tasks of the session.
    #[must_use]
    pub fn task_defaults(mut self, defaults: TaskDefaultsPatch) -> Self {
        self.task_defaults = defaults;
        self
    }

    /// What becomes of it when its worker is lost: by default it ends, after the worker has had time to come back.
    #[must_use]
    pub fn on_worker_loss(mut self, on_loss: OnWorkerLoss) -> Self {
        self.on_worker_loss = Some(on_loss);
        self
    }

    /// Checkpoints that are taken without being asked for.
    #[must_use]
    pub fn checkpoints(mut self, policy: CheckpointPolicy) -> Self {
        self.checkpoints = Some(policy);
        self
    }

    /// What it may reach, in place of the template's.
    #[must_use]
    pub fn egress(mut self, egress: Egress) -> Self {
        self.egress = Some(egress);
        self
    }

    /// With a request id, so that it is safe to repeat.
    pub(crate) fn into_wire(mut self) -> v1::CreateSessionRequest {
        self.request_id.get_or_insert_with(|| TaskId::new().to_string());
        self.into_wire_unkeyed()
    }

    /// With the request id that was given, if one was.
    pub(crate) fn into_wire_unkeyed(self) -> v1::CreateSessionRequest {
        v1::CreateSessionRequest {
            request_id: self.request_id.unwrap_or_default(),
            template: self.template,
            limits: Some(v1::Limits {
                cpu_millis: self.limits.cpu_millis,
                memory_bytes: self.limits.memory_bytes,
                disk_bytes: self.limits.disk_bytes,
                pids: self.limits.pids,
            }),
            env: self.env.into_iter().collect(),
            labels: self.labels.into_iter().collect(),
            ttl: self.ttl.map(duration_out),
            idle_timeout: self.idle_timeout.map(duration_out),
            worker_selector: self.worker_selector.into_iter().collect(),
            priority: self.priority,
            wait_for_place: self.wait.map(duration_out),
            task_defaults: Some(v1::TaskDefaults {
                timeout: self.task_defaults.timeout.map(|timeout| duration_out(timeout.unwrap_or_default())),
                pty_size: self.task_defaults.pty_size.map(Into::into),
                max_concurrent: self.task_defaults.max_concurrent,
            }),
            on_worker_loss: self
                .on_worker_loss
                .map_or(v1::OnWorkerLoss::Unspecified, v1::OnWorkerLoss::from)
                .into(),
            checkpoints: self.checkpoints.map(Into::into),
            egress: self.egress.map(Into::into),
        }
    }
}

/// Which sessions to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub(crate) labels: Labels,
    pub(crate) states: Vec<SessionState>,
}

impl ListOptions {
    /// All that are not ended.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ended ones too.
    #[must_use]
    pub fn all(self) -> Self {
        use SessionState::*;
        self.states([Pending, Placed, Ready, Paused, Parked, Ending, Ended])
    }

    #[must_use]
    pub fn states(mut self, states: impl IntoIterator<Item = SessionState>) -> Self {
        self.states = states.into_iter().collect();
        self
    }

    /// Only sessions with this label.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }
}

/// What to change of a session.
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    pub(crate) set_labels: Labels,
    pub(crate) remove_labels: Vec<String>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) egress: Option<Egress>,
}

impl UpdateOptions {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set_labels.insert(name.into(), value.into());
        self
    }

    #[must_use]
    pub fn remove_label(mut self, name: impl Into<String>) -> Self {
        self.remove_labels.push(name.into());
        self
    }

    /// A new life span, from now; zero is none.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Zero is none.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// What it may reach, in place of its whole policy. Holds for new connections at once, and open ones that it no
    /// longer allows are cut.
    #[must_use]
    pub fn egress(mut self, egress: Egress) -> Self {
        self.egress = Some(egress);
        self
    }
}
