//! What was promised, beside what happens. It sees each commit of the store, each task that starts in a sandbox, the
//! sandboxes themselves from outside, and what clients are answered; and it keeps the trace whose hash tells whether two
//! runs were the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_coordinator::{fleet, store::Batch};
use berth_proto::{
    SessionId, TaskId,
    domain::{EndReason, SessionState},
};
use berth_worker::sandbox::fake::Observed;

use crate::faults::WORKERS;

/// Sessions that a simulated worker takes.
pub const PLACES: u32 = 4;
/// The lease of the simulated cluster ...
pub const LEASE: Duration = Duration::from_secs(2);
/// ... and for how long a lost worker is waited for.
pub const LOSS_GRACE: Duration = Duration::from_secs(20);
/// A session that is paused for longer is parked.
pub const PAUSED_TTL: Duration = Duration::from_secs(4);
/// Longer than a worker needs to be attached again once it can be reached (its waits double up to 5 s).
const REATTACH: Duration = Duration::from_secs(9);

/// See the module.
#[derive(Default)]
pub struct Model(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// As of the last step of the simulation.
    now: Duration,
    hash: u64,
    events: u64,
    verbose: bool,
    tail: Vec<String>,
    violations: Vec<String>,
    sessions: BTreeMap<SessionId, Seen>,
    outcomes: BTreeMap<TaskId, String>,
    /// Tasks whose end the store has: the first stands.
    stored: BTreeSet<TaskId>,
    /// Starts of each command line: where, and under which epoch.
    starts: BTreeMap<String, Vec<(usize, SessionId, u64)>>,
    workers: [Reach; WORKERS],
    counts: BTreeMap<&'static str, u64>,
}

/// A session, as the store has had it.
#[derive(Default)]
struct Seen {
    epoch: u64,
    worker: Option<usize>,
    ever_ready: bool,
    ended: Option<EndReason>,
    /// Its client has asked for its end.
    deleting: bool,
    /// Something that ends or sets back a session has happened to the machine that had it.
    excused: bool,
}

/// Whether a worker can be reached.
#[derive(Default)]
struct Reach {
    /// Faults that keep it away now.
    away: u32,
    since: Duration,
    until: Duration,
}

impl Inner {
    /// Within a step hosts know better.
    fn now(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or(self.now)
    }

    fn note(&mut self, event: &str) {
        let line = format!("{:>10.3} {event}", self.now().as_secs_f64());
        for byte in line.bytes() {
            // FNV-1a: the trace is compared, not signed.
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        self.events += 1;
        if self.verbose {
            println!("{line}");
        }
        if self.tail.len() == 400 {
            self.tail.remove(0);
        }
        self.tail.push(line);
    }

    fn violated(&mut self, what: String) {
        // Once is enough.
        if self.violations.contains(&what) {
            return;
        }
        self.note(&format!("VIOLATED {what}"));
        self.violations.push(what);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether this worker was away for so long that its sessions may be given up.
    fn given_up(&self, worker: usize) -> bool {
        let reach = &self.workers[worker];
        let end = if reach.away > 0 { self.now() } else { (reach.until + REATTACH).min(self.now()) };
        end.saturating_sub(reach.since) >= LOSS_GRACE && reach.since > Duration::ZERO
    }

    /// Whether this worker was away at all a moment ago.
    fn troubled(&self, worker: usize) -> bool {
        let reach = &self.workers[worker];
        reach.away > 0 || (reach.since > Duration::ZERO && self.now() < reach.until + REATTACH)
    }
}

impl Model {
    pub fn new(verbose: bool) -> Self {
        let model = Self::default();
        model.inner().verbose = verbose;
        model
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- what is told to it ---------------------------------------------------

    /// The simulation is at this time.
    pub fn at(&self, now: Duration) {
        self.inner().now = now;
    }

    pub fn note(&self, event: &str) {
        self.inner().note(event);
    }

    pub fn violated(&self, what: impl Into<String>) {
        self.inner().violated(what.into());
    }

    /// Of the figures in the end.
    pub fn count(&self, what: &'static str) {
        self.inner().count(what);
    }

    /// A client has asked for this session's end.
    pub fn deleting(&self, session: SessionId) {
        self.inner().sessions.entry(session).or_default().deleting = true;
    }

    /// A worker can't be reached from now on, or one reason for it is gone.
    pub fn reach(&self, worker: usize, away: bool) {
        let mut inner = self.inner();
        let now = inner.now();
        let reach = &mut inner.workers[worker];
        if away {
            // Two times away with no time to attach in between are one.
            if reach.away == 0 && (reach.since.is_zero() || now > reach.until + REATTACH) {
                reach.since = now;
            }
            reach.away += 1;
        } else {
            reach.away -= 1;
            reach.until = now;
        }
    }

    /// A machine is gone with all that was on it.
    pub fn lost(&self, worker: usize) {
        let mut inner = self.inner();
        for seen in inner.sessions.values_mut().filter(|seen| seen.worker == Some(worker)) {
            seen.excused = true;
        }
    }

    /// A task has started in a sandbox on this machine.
    pub fn started(&self, machine: usize, session: SessionId, epoch: u64, command: &str) {
        let mut inner = self.inner();
        // A canary: no client has a hand in it.
        if command == "true" {
            return;
        }
        inner.note(&format!("machine {machine}: {session} epoch {epoch} starts {command:?}"));
        inner.count("tasks");
        let starts = inner.starts.entry(command.to_owned()).or_default();
        starts.push((machine, session, epoch));
        if starts.len() > 1 {
            let text = format!("a task was started more than once: {command:?} at {starts:?}");
            inner.violated(text);
        }
    }

    /// The store has taken a batch.
    pub fn committed(&self, batch: &Batch) {
        let mut inner = self.inner();
        for session in &batch.sessions {
            inner.saw(session);
        }
        for id in &batch.forget_sessions {
            inner.note(&format!("{id} is forgotten"));
        }
        for record in &batch.tasks {
            let outcome =
                record.summary.end.as_ref().map(|end| format!("{:?}", end.outcome)).unwrap_or_default();
            inner.note(&format!("store: task {} of {} {outcome}", record.task, record.session));
            if inner.stored.insert(record.task) {
                inner.outcome(record.task, outcome);
            }
        }
    }

    /// A client was told how a task ended.
    pub fn told(&self, task: TaskId, outcome: &berth_proto::domain::Outcome) {
        let wire = berth_proto::v1::Outcome::from(*outcome);
        self.inner().outcome(task, format!("{:?}", Some(wire)));
    }

    /// Whether a session may be gone, or have lost what it did.
    pub fn excused(&self, session: SessionId) -> bool {
        let inner = self.inner();
        let Some(seen) = inner.sessions.get(&session) else { return false };
        seen.excused || seen.deleting || seen.worker.is_some_and(|worker| inner.given_up(worker))
    }

    /// How the session stands in the store.
    pub fn ended(&self, session: SessionId) -> Option<EndReason> {
        self.inner().sessions.get(&session).and_then(|seen| seen.ended)
    }

    /// The sandboxes on all machines, as they are now.
    pub fn observed(&self, machines: &[Vec<Observed>]) {
        let mut inner = self.inner();
        let mut awake: BTreeMap<SessionId, Vec<(usize, u64)>> = BTreeMap::new();
        for (machine, sandboxes) in machines.iter().enumerate() {
            let mut held = 0;
            for sandbox in sandboxes.iter().filter(|sandbox| !sandbox.gone) {
                let Ok(id) = sandbox.session.parse::<SessionId>() else { continue };
                // Not in the store: a canary.
                let Some(seen) = inner.sessions.get(&id) else { continue };
                held += 1;
                if sandbox.epoch > seen.epoch {
                    let text = format!(
                        "{id} runs at epoch {} on machine {machine}, and the store knows {} only",
                        sandbox.epoch, seen.epoch
                    );
                    inner.violated(text);
                } else if !sandbox.frozen && !sandbox.tasks.is_empty() {
                    // One in which nobody ever ran anything may be a start whose answer is still under way.
                    awake.entry(id).or_default().push((machine, sandbox.epoch));
                }
            }
            if held > PLACES {
                inner.violated(format!("machine {machine} holds {held} sessions"));
            }
        }
        for (id, places) in awake {
            if places.len() > 1 {
                inner.violated(format!("{id} is awake at more than one place: {places:?}"));
            }
        }
    }

    /// Whether this is a session, and no canary.
    pub fn knows(&self, session: SessionId) -> bool {
        self.inner().sessions.contains_key(&session)
    }

    // ---- what it tells --------------------------------------------------------

    pub fn hash(&self) -> u64 {
        self.inner().hash
    }

    pub fn events(&self) -> u64 {
        self.inner().events
    }

    pub fn violations(&self) -> Vec<String> {
        self.inner().violations.clone()
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner().counts.clone()
    }

    /// The end of the trace, for a failure.
    pub fn tail(&self) -> String {
        self.inner().tail.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        })
    }
}

impl Inner {
    /// A session's record has been written.
    fn saw(&mut self, session: &fleet::Session) {
        let id = session.id;
        let worker = session.worker.as_ref().and_then(|id| id.as_str().strip_prefix('w')?.parse().ok());
        let seen = self.sessions.entry(id).or_default();
        let (epoch, was) = (session.epoch.0, seen.epoch);
        let ended = seen.ended;
        let moved = worker.is_some() && seen.worker.is_some() && epoch > was;
        seen.epoch = seen.epoch.max(epoch);
        if epoch > was {
            seen.worker = worker;
        }
        // What ran at the old place is gone.
        seen.excused |= moved && seen.ever_ready;
        // So is what ran in one that is parked.
        seen.excused |= session.state == SessionState::Parked;
        seen.ever_ready |= session.state == SessionState::Ready;
        let ends = session.state == SessionState::Ended;
        if ends {
            seen.ended = session.end;
        }
        self.note(&format!(
            "store: {id} {:?} epoch {epoch} worker {worker:?} {:?}",
            session.state, session.end
        ));
        if epoch < was {
            self.violated(format!("{id} went back from epoch {was} to {epoch}"));
        }
        if ended.is_some() && (!ends || session.end != ended) {
            self.violated(format!(
                "{id} had ended as {ended:?} and is {:?} {:?} now",
                session.state, session.end
            ));
        }
        if ends && ended.is_none() {
            self.check_end(id, session.end);
        }
    }

    fn check_end(&mut self, id: SessionId, reason: Option<EndReason>) {
        self.count("sessions ended");
        let seen = &self.sessions[&id];
        let worker = seen.worker;
        let fine = match reason {
            Some(EndReason::Deleted) => seen.deleting,
            Some(EndReason::WorkerLost) => seen.excused || worker.is_some_and(|worker| self.given_up(worker)),
            // It never came to be.
            Some(EndReason::NoPlace) => !seen.ever_ready || seen.excused,
            Some(EndReason::SandboxFailed) => {
                seen.excused || (!seen.ever_ready && worker.is_some_and(|worker| self.troubled(worker)))
            }
            _ => false,
        };
        if !fine {
            self.violated(format!("{id} ended as {reason:?} for no good reason"));
        }
    }

    /// The one outcome of a task.
    fn outcome(&mut self, task: TaskId, outcome: String) {
        let known = self.outcomes.entry(task).or_insert_with(|| outcome.clone()).clone();
        if known != outcome {
            self.violated(format!("task {task} ended as {known} and as {outcome}"));
        }
    }
}
