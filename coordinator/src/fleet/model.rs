//! What the fleet knows: sessions and workers, as plain values. A session's or worker's
//! *record* is the part that the store keeps; the rest is rebuilt from hellos and clocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Epoch, Incarnation, SessionId, WorkerId,
    domain::{
        Capacity, CheckpointPolicy, Egress, EndReason, Labels, Limits, OnWorkerLoss, RestoreFrom,
        SessionState, TaskDefaultsPatch, TemplateSpec,
    },
    redact::Names,
    v1,
};

use crate::{placement::Standing, tenant::Tenant};

/// The time, as the driver tells it. Deadlines are monotonic, so that a wall clock that
/// jumps ends nothing; the wall clock is for records and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the coordinator's process started.
    pub mono: Duration,
    pub wall: SystemTime,
}

/// One attach of one worker process. Drawn by the driver, never used twice in a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Figures of the policy.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// How long a worker holds its sessions after its last heartbeat.
    pub lease: Duration,
    /// How long a dead worker's sessions wait for it before they are `WorkerLost`. Counted
    /// anew from the coordinator's start, and from the end of a time without any worker.
    pub worker_loss_grace: Duration,
    /// How long after its worker's lease a session that may be restored is placed elsewhere. Its agent froze it at the
    /// end of the lease at the latest, by its own clock; this is for what two clocks may drift apart in a lease, and
    /// for a freeze to take hold.
    pub restore_grace: Duration,
    /// How long a session that is to be restored waits for a place.
    pub restore_wait: Duration,
    /// Time for a sandbox to become ready with its files from a checkpoint.
    pub restore_timeout: Duration,
    /// Time for a sandbox to become ready.
    pub start_timeout: Duration,
    /// Sessions that may wait for a place ...
    pub queue_limit: usize,
    /// ... and of them those of one tenant: so none can fill the queue alone.
    pub tenant_queue_limit: usize,
    /// A worker that refused a session isn't asked again for this long.
    pub refusal_cooldown: Duration,
    /// How often a worker is told again to end a session that it still holds.
    pub ending_check: Duration,
    /// How long the agent and the worker may take to enforce a TTL before we step in.
    pub ttl_margin: Duration,
    /// Ended sessions are forgotten after this long ...
    pub retention: Duration,
    /// ... or, the oldest first, when there are more than this.
    pub ended_limit: usize,
    /// Idempotency keys are kept this long.
    pub key_retention: Duration,
    /// A dead worker without sessions is forgotten after this long ...
    pub worker_retention: Duration,
    /// ... and one that an operator cordoned or drained, with that, after this long.
    pub cordon_retention: Duration,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            worker_loss_grace: Duration::from_secs(300),
            restore_grace: Duration::from_secs(10),
            restore_wait: Duration::from_secs(3600),
            restore_timeout: Duration::from_secs(900),
            start_timeout: Duration::from_secs(60),
            queue_limit: 1000,
            tenant_queue_limit: tenant_queue_limit(1000),
            refusal_cooldown: Duration::from_secs(2),
            ending_check: Duration::from_secs(10),
            ttl_margin: Duration::from_secs(15),
            retention: Duration::from_secs(86_400),
            ended_limit: 10_000,
            key_retention: Duration::from_secs(86_400),
            worker_retention: Duration::from_secs(600),
            cordon_retention: Duration::from_secs(86_400),
        }
    }
}

/// How many of a queue's places one tenant may take: three quarters.
pub fn tenant_queue_limit(queue_limit: usize) -> usize {
    (queue_limit - queue_limit.div_ceil(4)).max(1)
}

/// What a session was made with; but for its egress fixed for its life.
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    /// Of whoever made it.
    pub tenant: Tenant,
    pub template: TemplateSpec,
    pub limits: Limits,
    /// Emptied when the session ends: it may hold secrets.
    pub env: Labels,
    pub selector: Labels,
    pub priority: i32,
    pub wait_for_place: Duration,
    /// The client said how long it waits. If it did not, what waiting alone won't mend is
    /// refused at once.
    pub patient: bool,
    /// What it leaves out is the worker's.
    pub task_defaults: TaskDefaultsPatch,
    pub on_worker_loss: OnWorkerLoss,
    pub checkpoints: CheckpointPolicy,
    /// The create carried a request id, so that its client can come back for the session.
    pub keyed: bool,
    /// Its files come from a checkpoint: without one it is not to start.
    pub from_checkpoint: bool,
    pub egress: Egress,
}

impl Spec {
    /// Whether a checkpoint is taken when its worker is drained: where its policy says so, or it then goes on elsewhere.
    pub fn kept_on_drain(&self) -> bool {
        self.checkpoints.on_drain || self.on_worker_loss == OnWorkerLoss::Restore
    }
}

/// Without the values of its env. The rest is told apart by it well enough.
impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("tenant", &self.tenant)
            .field("template", &self.template)
            .field("limits", &self.limits)
            .field("env", &Names(&self.env))
            .field("selector", &self.selector)
            .field("priority", &self.priority)
            .field("wait_for_place", &self.wait_for_place)
            .finish_non_exhaustive()
    }
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub spec: Arc<Spec>,
    pub labels: Labels,
    pub state: SessionState,
    /// Grows with each placement, before the worker is told.
    pub epoch: Epoch,
    pub worker: Option<WorkerId>,
    /// In use, as the worker says. Empty before.
    pub backend: String,
    /// Set when Ending or Ended.
    pub end: Option<EndReason>,
    pub message: String,
    pub created_at: SystemTime,
    pub waits: Waits,
    pub ready_at: Option<SystemTime>,
    pub ended_at: Option<SystemTime>,
    pub expires_at: Option<SystemTime>,
    pub idle_timeout: Option<Duration>,
    /// The newest from which it can be restored.
    pub checkpoint: Option<Kept>,
    /// Its last recovery.
    pub recovered: Option<Recovery>,
    /// Since when it is paused.
    pub paused_at: Option<SystemTime>,
    /// Of when its files are, if it was parked and not recovered since. What ran then is gone.
    pub parked_at: Option<SystemTime>,
    /// It is about to be parked: the attempt. Not in the record, since an attempt ends with the process.
    pub parking: Option<u64>,
    /// It is still parked because of this. Not in the record.
    pub resume_failed: Option<EndReason>,
    /// It failed because its time to start was up.
    pub start_timed_out: bool,
    /// No worker could serve its template when a place was last looked for.
    pub unservable: bool,
    pub(super) clock: Clock,
}

/// A checkpoint, as a session's record names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub from: RestoreFrom,
    pub at: SystemTime,
}

/// A session goes back to a checkpoint, or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The checkpoint.
    pub kept: Kept,
    /// Newer ones that could not be used, the newest first.
    pub passed_over: Vec<String>,
    /// It is not up again yet.
    pub under_way: bool,
}

/// When a session waits for a place, or last waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    pub since: SystemTime,
    /// Then it is over.
    pub until: SystemTime,
}

/// A session's deadlines: monotonic, not in the record.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    /// Pending: until then it waits for a place.
    pub wait_until: Duration,
    /// Placed: since then.
    pub placed_at: Duration,
    /// The TTL.
    pub expires: Option<Duration>,
    /// Ending: when to look again.
    pub ending_check: Duration,
    /// Workers that refused it, until when they are left alone.
    pub refused: BTreeMap<WorkerId, Duration>,
    /// Paused: its worker was told to resume it, and has not answered.
    pub resumes: bool,
    /// Parked: it is to be resumed as soon as its sandbox is gone.
    pub resume_next: bool,
}

/// The label that names a session. Of a tenant's live sessions each has another.
pub const NAME_LABEL: &str = "name";

impl Session {
    /// One that waits for its first place.
    pub fn new(id: SessionId, spec: Spec, created_at: SystemTime) -> Self {
        Self {
            id,
            labels: Labels::new(),
            state: SessionState::Pending,
            epoch: Epoch(0),
            worker: None,
            backend: String::new(),
            end: None,
            message: String::new(),
            created_at,
            waits: Waits { since: created_at, until: created_at + spec.wait_for_place },
            ready_at: None,
            ended_at: None,
            expires_at: None,
            idle_timeout: None,
            checkpoint: None,
            recovered: None,
            paused_at: None,
            parked_at: None,
            parking: None,
            resume_failed: None,
            start_timed_out: false,
            unservable: false,
            clock: Clock::default(),
            spec: Arc::new(spec),
        }
    }

    /// On the coordinator's clock, when it was placed last.
    pub(crate) fn placed_at(&self) -> Duration {
        self.clock.placed_at
    }

    /// What people call it, while it can be called: until it begins to end.
    pub fn live_name(&self) -> Option<&str> {
        let over = matches!(self.state, SessionState::Ending | SessionState::Ended);
        name_in(&self.labels).filter(|_| !over)
    }

    /// Whether it is parked, or is not up again since it was.
    pub fn comes_from_park(&self) -> bool {
        use SessionState::{Parked, Pending, Placed};
        self.parked_at.is_some() && matches!(self.state, Parked | Pending | Placed)
    }

    /// Whether its files are nowhere but in this checkpoint.
    pub fn needs(&self, checkpoint: &str) -> bool {
        self.comes_from_park() && self.checkpoint.as_ref().is_some_and(|k| k.from.checkpoint == checkpoint)
    }

    /// Whether its files come from a checkpoint when it is placed: it was made of one, or has been up before.
    pub fn needs_files(&self) -> bool {
        self.spec.from_checkpoint || self.ready_at.is_some() || self.checkpoint.is_some()
    }

    /// Whether it takes a place on a worker. A parked one does until its sandbox is gone.
    pub fn holds_place(&self) -> bool {
        self.worker.is_some() && !matches!(self.state, SessionState::Pending | SessionState::Ended)
    }

    /// Whether the store would hold the same.
    pub(super) fn same_record(&self, other: &Session) -> bool {
        (self.state, self.epoch, &self.worker, self.end, self.ready_at, self.ended_at)
            == (other.state, other.epoch, &other.worker, other.end, other.ready_at, other.ended_at)
            && (&self.checkpoint, &self.recovered, self.waits)
                == (&other.checkpoint, &other.recovered, other.waits)
            // An attempt is not stored, but shown.
            && (self.paused_at, self.parked_at, self.parking)
                == (other.paused_at, other.parked_at, other.parking)
            && (&self.labels, &self.backend, &self.message, self.expires_at, self.idle_timeout)
                == (&other.labels, &other.backend, &other.message, other.expires_at, other.idle_timeout)
            && Arc::ptr_eq(&self.spec, &other.spec)
    }
}

/// The name among these labels; an empty one is none.
pub(super) fn name_in(labels: &Labels) -> Option<&str> {
    labels.get(NAME_LABEL).map(String::as_str).filter(|name| !name.is_empty())
}

/// What we see of a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Liveness {
    Alive,
    /// Its link is gone or its lease is near its end.
    Suspect,
    /// Its lease is over.
    Dead,
}

/// What the operator wants of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheduling {
    Active,
    Cordoned,
    /// Cordoned, and its sessions end at `until`.
    Draining {
        until: SystemTime,
    },
}

/// That a worker's process stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    pub until: SystemTime,
    /// How long it had when it said so.
    pub within: Duration,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct Worker {
    pub id: WorkerId,
    pub incarnation: Incarnation,
    /// As the operator said last: what is in force is [`Worker::in_force`].
    pub scheduling: Scheduling,
    /// Its process stops: not in the record, since the next one does not.
    pub stopping: Option<Stop>,
    pub liveness: Liveness,
    /// Drawn by its process.
    pub process: String,
    /// Of its state directory. Not in the record: one of which only that is known may be any.
    pub(super) instance: String,
    pub version: String,
    /// Zero until its first hello to this coordinator: then `known` is false too.
    pub capacity: Capacity,
    pub known: bool,
    pub labels: Labels,
    pub templates: BTreeSet<String>,
    /// Templates that it can't serve, and why.
    pub template_problems: BTreeMap<String, String>,
    /// Its operator gives sessions any public address.
    pub full_egress: bool,
    pub backends: Vec<v1::BackendStatus>,
    pub health: v1::WorkerHealth,
    pub attached_at: Option<SystemTime>,
    pub heartbeat_at: Option<SystemTime>,
    pub(super) link: Option<LinkId>,
    pub(super) lease_until: Duration,
    pub(super) down_since: Duration,
    pub(super) drain_at: Option<Duration>,
    /// What it should hold and did not name in its hello. Its reports, which come before its first heartbeat, may say
    /// how that ended; what they don't is concluded then.
    pub(super) missing: Vec<(SessionId, Epoch)>,
    /// Nothing is concluded from that before: what is missing may live on with another instance of this id.
    pub(super) missing_until: Duration,
}

impl Worker {
    /// A worker of which only the record is known.
    pub fn from_record(id: WorkerId, incarnation: Incarnation, scheduling: Scheduling) -> Self {
        Self {
            id,
            incarnation,
            scheduling,
            stopping: None,
            liveness: Liveness::Suspect,
            process: String::new(),
            instance: String::new(),
            version: String::new(),
            capacity: Capacity::default(),
            known: false,
            labels: Labels::new(),
            templates: BTreeSet::new(),
            template_problems: BTreeMap::new(),
            full_egress: false,
            backends: Vec::new(),
            health: v1::WorkerHealth::default(),
            attached_at: None,
            heartbeat_at: None,
            link: None,
            lease_until: Duration::ZERO,
            down_since: Duration::ZERO,
            drain_at: None,
            missing: Vec::new(),
            missing_until: Duration::ZERO,
        }
    }

    /// Whether this is its link.
    pub fn has_link(&self, link: LinkId) -> bool {
        self.link == Some(link)
    }

    /// Whether it has a link now.
    pub fn attached(&self) -> bool {
        self.link.is_some()
    }

    /// What the operator said, and what the worker says itself: one that stops is drained.
    pub fn in_force(&self) -> Scheduling {
        match (self.scheduling, self.stopping) {
            (Scheduling::Draining { until }, Some(stop)) => {
                Scheduling::Draining { until: until.min(stop.until) }
            }
            (_, Some(stop)) => Scheduling::Draining { until: stop.until },
            (scheduling, None) => scheduling,
        }
    }

    /// Whether it takes sessions, and why not.
    pub(crate) fn standing(&self) -> Standing<'_> {
        match (self.liveness, self.in_force()) {
            (Liveness::Suspect | Liveness::Dead, _) => Standing::Unreachable,
            (_, Scheduling::Cordoned) => Standing::Cordoned,
            (_, Scheduling::Draining { .. }) => Standing::Draining,
            (Liveness::Alive, Scheduling::Active) if !self.health.ready => {
                Standing::NotReady(&self.health.reason)
            }
            (Liveness::Alive, Scheduling::Active) => Standing::Open,
        }
    }

    /// Whether the store would hold the same.
    pub(super) fn same_record(&self, other: &Worker) -> bool {
        (self.incarnation, self.scheduling) == (other.incarnation, other.scheduling)
    }

    /// Whether a watcher of events has nothing new to see. Load figures don't count: they
    /// change with every heartbeat.
    pub(super) fn looks_like(&self, other: &Worker) -> bool {
        self.same_record(other)
            && self.stopping == other.stopping
            && (self.liveness, self.known, self.health.ready, &self.health.reason)
                == (other.liveness, other.known, other.health.ready, &other.health.reason)
            && (&self.capacity, &self.labels, &self.templates, &self.backends, &self.version)
                == (&other.capacity, &other.labels, &other.templates, &other.backends, &other.version)
            && (&self.template_problems, self.link.is_some())
                == (&other.template_problems, other.link.is_some())
    }
}

/// An idempotency key of CreateSession.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    pub key: String,
    /// SHA-256 of the request's body.
    pub body: [u8; 32],
    pub session: SessionId,
    pub created_at: SystemTime,
}
