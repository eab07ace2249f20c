//! What goes into the fleet and what comes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Code, Epoch, Error, Incarnation, Reason, SessionId, TaskId, WorkerId,
    domain::{BackendChoice, Capacity, Egress, EndReason, Labels, Placement, SessionState},
    v1,
};

use super::{
    model::{Kept, LinkId, RequestKey, Session, Spec, Worker},
    quota::{Exceeded, Quota, QuotaPatch},
};
use crate::tenant::{Sight, Tenant};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    Create(Box<Create>),
    Delete {
        by: Sight,
        session: SessionId,
        reason: EndReason,
    },
    Pause {
        by: Sight,
        session: SessionId,
        paused: bool,
    },
    Update(Box<Update>),
    /// A checkpoint of a session is kept.
    Checkpointed {
        session: SessionId,
        epoch: Epoch,
        kept: Box<Kept>,
    },
    /// One that its policy asked for could not be taken.
    CheckpointFailed {
        session: SessionId,
        epoch: Epoch,
        why: String,
    },
    /// A checkpoint was deleted, its time was over, or it is damaged.
    CheckpointGone(Box<Gone>),
    /// A paused session is about to be parked: its checkpoint is taken now. `attempt` is the caller's, to know it by.
    Parking {
        session: SessionId,
        epoch: Epoch,
        attempt: u64,
    },
    /// The checkpoint is kept: its place is given up.
    Park {
        session: SessionId,
        epoch: Epoch,
        attempt: u64,
        checkpoint: String,
        /// For people: why.
        why: String,
    },
    /// It stays paused.
    ParkingFailed {
        session: SessionId,
        attempt: u64,
        why: String,
    },
    /// A session of a worker that is drained goes elsewhere from its newest checkpoint.
    Move {
        session: SessionId,
        epoch: Epoch,
    },
    Hello(Box<Hello>),
    LinkLost {
        worker: WorkerId,
        link: LinkId,
    },
    /// Its process stops, and goes in this time.
    Stopping {
        worker: WorkerId,
        link: LinkId,
        within: Duration,
    },
    /// It stops, and says that it holds nothing any more.
    Leaving {
        worker: WorkerId,
        link: LinkId,
    },
    Heartbeat(Box<Heartbeat>),
    Report(Box<Report>),
    Task(Box<TaskReport>),
    /// A client is told that a task has ended, and its worker may not have said so yet: what was told stands.
    TaskEnded {
        session: SessionId,
        epoch: Epoch,
        task: TaskId,
        summary: Arc<v1::Task>,
    },
    Cordon {
        worker: WorkerId,
    },
    Uncordon {
        worker: WorkerId,
    },
    Drain {
        worker: WorkerId,
        within: Duration,
    },
    SetBackend {
        worker: WorkerId,
        backend: BackendChoice,
    },
    SetQuota {
        tenant: Tenant,
        patch: QuotaPatch,
    },
    /// Only time has passed.
    Tick,
}

/// A checkpoint from which nobody can be restored any more.
#[derive(Clone, Debug)]
pub struct Gone {
    pub checkpoint: String,
    /// What is wrong with it. `None`: it was removed.
    pub damage: Option<String>,
    /// The session that it is of, and the next older one of that session which is whole.
    pub older: Option<(SessionId, Kept)>,
}

/// A session to be made. All is validated and filled in from the template.
#[derive(Clone, Debug)]
pub struct Create {
    pub id: SessionId,
    pub spec: Spec,
    pub labels: Labels,
    pub ttl: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// The checkpoint that its files come from.
    pub restore: Option<Kept>,
    /// The request id and the body's hash.
    pub key: Option<(String, [u8; 32])>,
}

/// A change of a session's labels, clocks and egress. `None`: unchanged, `Some(None)`: no limit.
#[derive(Clone, Debug)]
pub struct Update {
    pub by: Sight,
    pub session: SessionId,
    pub set_labels: Labels,
    pub remove_labels: Vec<String>,
    pub ttl: Option<Option<Duration>>,
    pub idle_timeout: Option<Option<Duration>>,
    pub egress: Option<Egress>,
}

/// A worker attaches.
#[derive(Clone, Debug)]
pub struct Hello {
    pub worker: WorkerId,
    pub link: LinkId,
    pub process: String,
    /// Of its state directory.
    pub instance: String,
    /// 0: its process has none yet.
    pub incarnation: Incarnation,
    pub version: String,
    pub capacity: Capacity,
    pub labels: Labels,
    pub running: Vec<Running>,
    pub backends: Vec<v1::BackendStatus>,
    pub templates: BTreeSet<String>,
    /// Templates that it can't serve, and why.
    pub template_problems: BTreeMap<String, String>,
    pub health: v1::WorkerHealth,
    /// Its process stops, and goes in this time.
    pub stopping_within: Option<Duration>,
    pub full_egress: bool,
}

/// A session that a worker says it holds.
#[derive(Clone, Debug)]
pub struct Running {
    pub session: SessionId,
    pub epoch: Epoch,
    pub state: SessionState,
    pub backend: String,
}

/// A worker lives.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    pub worker: WorkerId,
    pub link: LinkId,
    pub sequence: u64,
    pub health: v1::WorkerHealth,
    pub backends: Vec<v1::BackendStatus>,
    pub templates: BTreeSet<String>,
    pub template_problems: BTreeMap<String, String>,
}

/// A session's state, as its worker knows it.
#[derive(Clone, Debug)]
pub struct Report {
    pub worker: WorkerId,
    pub link: LinkId,
    pub session: SessionId,
    pub epoch: Epoch,
    pub state: SessionState,
    pub reason: Option<EndReason>,
    pub message: String,
    pub backend: String,
    pub refused: bool,
}

/// A task began or ended. The task itself passes through unread, but for its end.
#[derive(Clone, Debug)]
pub struct TaskReport {
    pub worker: WorkerId,
    pub link: LinkId,
    pub session: SessionId,
    pub epoch: Epoch,
    pub task: TaskId,
    pub done: bool,
    pub summary: Arc<v1::Task>,
}

/// Something to be done. Saves come before what depends on them: the driver commits all
/// saves of a batch, and only then does the rest.
#[derive(Clone, Debug)]
pub enum Effect {
    SaveSession(Arc<Session>),
    SaveWorker(Arc<Worker>),
    SaveKey(RequestKey),
    /// The longest lease under which a worker may hold sessions from now on.
    SaveLease(Duration),
    SaveQuota(Tenant, Quota),
    /// A finished task, for answers after its session's end.
    SaveTask {
        session: SessionId,
        task: TaskId,
        summary: Arc<v1::Task>,
    },
    /// The same for one of which nobody said how it ended: that follows from what became of its session, and holds only if
    /// the batch does.
    ConcludeTask {
        session: SessionId,
        task: TaskId,
        summary: Arc<v1::Task>,
    },
    ForgetSession(SessionId),
    ForgetWorker(WorkerId),
    ForgetKey(String),
    Send {
        link: LinkId,
        command: Command,
    },
    /// The link is to be dropped, with these words.
    Close {
        link: LinkId,
        why: CloseReason,
    },
    /// Waiters and watchers look again.
    SessionChanged(Arc<Session>),
    /// `visible`: more than load figures changed.
    WorkerChanged {
        worker: Arc<Worker>,
        visible: bool,
    },
    TaskChanged(Arc<v1::Task>),
    QuotaChanged(Tenant, Quota),
}

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Command {
    Welcome {
        incarnation: Incarnation,
        end: Vec<Ending>,
    },
    LeaseRenewed {
        sequence: u64,
    },
    Place(Box<Placement>),
    End(Ending),
    Pause {
        session: SessionId,
        epoch: Epoch,
        paused: bool,
    },
    Update {
        session: SessionId,
        epoch: Epoch,
        expires_at: Option<SystemTime>,
        /// What is left of its time to live.
        expires_in: Option<Duration>,
        idle_timeout: Option<Duration>,
        egress: Egress,
    },
    SetBackend(BackendChoice),
    Cordoned(bool),
}

/// A session that a worker shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub session: SessionId,
    pub epoch: Epoch,
    pub reason: EndReason,
}

/// Why we drop a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The same process attached anew.
    Replaced,
    /// A newer process of this worker id attached.
    Superseded,
    /// No heartbeat within the lease.
    LeaseOver,
}

impl From<CloseReason> for Error {
    fn from(why: CloseReason) -> Error {
        match why {
            CloseReason::Replaced => Error::unavailable(
                Reason::WorkerUnreachable,
                "this worker attached anew: the older link is closed",
            )
            .hint("nothing is to be done: the newer link is in use"),
            CloseReason::Superseded => Error::precondition(
                Reason::StaleIncarnation,
                "another process has registered under this worker id since",
            )
            .hint("two workers must not share a WORKER_ID"),
            CloseReason::LeaseOver => Error::unavailable(
                Reason::WorkerUnreachable,
                "no heartbeat came within the lease: attach anew",
            )
            .hint("a worker does so by itself; if it happens often, look at its load and at the network"),
        }
    }
}

/// Why the fleet would not do what it was asked to. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not a failure: the request id made this session before.
    AlreadyCreated(SessionId),
    RequestIdReused,
    NameTaken {
        name: String,
        by: SessionId,
    },
    /// With what keeps each worker from it.
    TemplateUnavailable(String),
    /// This worker holds the session, and its operator does not give that.
    NoFullEgress(WorkerId),
    /// With what the worker offers.
    BackendUnavailable(String),
    /// With the tenant, if it is that one's part of the queue that is full.
    QueueFull {
        limit: usize,
        tenant: Option<Tenant>,
    },
    QuotaExceeded(Exceeded),
    /// With what was missing.
    NoPlace(String),
    /// With the figures.
    LimitTooHigh(String),
    NoSession(SessionId),
    NoWorker(WorkerId),
    SessionNotReady(SessionState),
    SessionEnded(Option<EndReason>),
    /// It is not paused, was resumed since the parking began, or its checkpoint is gone.
    NotParked(SessionId),
    /// The files of this parked session are nowhere else.
    CheckpointInUse(SessionId),
    WorkerUnreachable(WorkerId),
    StaleIncarnation {
        told: Incarnation,
        newest: Incarnation,
    },
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::AlreadyCreated(id) => Error::internal(format!("session {id} exists already")),
            Refused::RequestIdReused => Error::new(
                Code::AlreadyExists,
                Reason::RequestIdReused,
                "request_id: it was used before, with another body",
            )
            .hint("draw a new request id for each new session"),
            Refused::NameTaken { name, by } => Error::new(
                Code::AlreadyExists,
                Reason::NameTaken,
                format!("a live session is called {name:?} already: {by}"),
            )
            .hint("choose another name, use that session, or end it first (`berth rm`)")
            .with("session_id", by),
            Refused::TemplateUnavailable(why) => Error::precondition(Reason::TemplateUnavailable, why)
                .hint("put that right on a worker (`berth templates` shows where it stands), or wait for one that can (wait_for_place)"),
            Refused::NoFullEgress(worker) => Error::precondition(
                Reason::EgressUnavailable,
                format!("full egress is not enabled on {worker}, which holds the session (BERTH_EGRESS_FULL)"),
            )
            .hint("name what it shall reach instead (`--allow HOST`), or have the operator of that worker enable it"),
            Refused::BackendUnavailable(what) => Error::precondition(Reason::BackendUnavailable, what)
                .hint("choose one that it offers, or `auto`; `berth doctor` on that machine says what another one needs"),
            Refused::QueueFull { limit, tenant } => {
                let whose = tenant.map(|tenant| format!(" of tenant {tenant}")).unwrap_or_default();
                let text = format!("{limit} sessions{whose} wait for a place already");
                Error::exhausted(Reason::QueueFull, text)
                    .hint("add a worker, or try again later")
                    .with("limit", limit)
            }
            Refused::QuotaExceeded(exceeded) => exceeded.into(),
            Refused::NoPlace(missing) => no_place(&missing),
            Refused::LimitTooHigh(figures) => {
                Error::exhausted(Reason::LimitTooHigh, format!("no worker is big enough: {figures}"))
                    .hint("ask for less, or add a bigger worker")
            }
            Refused::NoSession(id) => no_session(&id),
            Refused::NoWorker(id) => Error::not_found(Reason::WorkerNotFound, format!("no worker has the id {id}"))
                .hint("`berth workers` lists them"),
            Refused::SessionNotReady(_) => not_ready(),
            Refused::SessionEnded(reason) => session_ended(reason, ""),
            Refused::NotParked(_) => {
                Error::precondition(Reason::SessionNotReady, "it was resumed or ended, or its checkpoint was removed, meanwhile")
                    .hint("`berth ps` shows how it stands")
            }
            Refused::CheckpointInUse(id) => Error::precondition(
                Reason::CheckpointInUse,
                format!("session {id} is parked: its files are in this checkpoint alone"),
            )
            .hint(format!("resume it first (berth resume {id}), or end it (berth rm {id})"))
            .with("session_id", id),
            Refused::WorkerUnreachable(id) => {
                Error::unavailable(Reason::WorkerUnreachable, format!("worker {id} has no link now"))
                    .hint("try again in a few seconds, and see `berth workers`")
            }
            Refused::StaleIncarnation { told, newest } => Error::precondition(
                Reason::StaleIncarnation,
                format!("this process has incarnation {told}, but {newest} registered under the same worker id since"),
            )
            .hint("two workers must not share a WORKER_ID")
            .with("newest", newest),
        }
    }
}

/// No worker had room in time.
pub fn no_place(missing: &str) -> Error {
    Error::exhausted(Reason::NoPlace, format!("no place for the session: {missing}"))
        .hint("add a worker, end sessions, ask for less, or wait longer (wait_for_place); see `berth workers` and `berth templates`")
}

/// The session isn't known.
pub fn no_session(id: &SessionId) -> Error {
    Error::not_found(Reason::SessionNotFound, format!("no session has the id {id}"))
        .hint("`berth ps` lists sessions; ended ones are forgotten after a day")
}

/// The session has no sandbox yet.
pub fn not_ready() -> Error {
    Error::precondition(
        Reason::SessionNotReady,
        "the session isn't ready yet: it waits for a place or still starts",
    )
    .hint("CreateSession returns when it is ready; GetSession tells how it stands")
}

/// The session gave its place up.
pub fn session_parked(id: &SessionId) -> Error {
    Error::precondition(
        Reason::SessionParked,
        "the session is parked: its files are kept, and what ran in it is gone",
    )
    .hint(format!("resume it first: berth resume {id}"))
}

/// The session is over, and why.
pub fn session_ended(reason: Option<EndReason>, message: &str) -> Error {
    let why = match reason {
        Some(EndReason::Deleted) => "it was deleted",
        Some(EndReason::TtlExpired) => "its time to live was over",
        Some(EndReason::Idle) => "it was idle for too long",
        Some(EndReason::NoPlace) => "no place was found for it",
        Some(EndReason::WorkerLost) => "its worker was lost",
        Some(EndReason::SandboxFailed) => "its sandbox failed",
        Some(EndReason::Drained) => "its worker was drained",
        Some(EndReason::Abandoned) => "its client went away before it was ready",
        Some(EndReason::Parked) => "it was parked",
        None => "it is being ended",
    };
    let text = if message.is_empty() {
        format!("the session is over: {why}")
    } else {
        format!("the session is over: {why} ({message})")
    };
    let error = Error::precondition(Reason::SessionEnded, text).hint("create a new session");
    match reason {
        Some(reason) => error.with("end_reason", v1::EndReason::from(reason).as_str_name()),
        None => error,
    }
}
