//! What the worker counts and measures. All of it is declared here; docs/metrics.md has it as a table.
//!
//! Several workers of one process (`berth up --workers 3`) count in one place: ids are no labels. So what stands at a moment
//! ([`Observed`]) is read from each of them when somebody asks, and shown as a sum, or as the worst of them.

use std::{collections::BTreeMap, fmt, time::Duration};

use berth_metrics::{Counter, Counters, Gauge, Gauges, Histogram, Histograms, LATENCY, Registry, WAIT};
use berth_proto::{
    domain::{Backend, EndReason, Outcome, SessionState},
    v1,
};

const STATES: [SessionState; 4] =
    [SessionState::Placed, SessionState::Ready, SessionState::Paused, SessionState::Ending];
const OUTCOMES: [&str; 10] = [
    "succeeded",
    "failed",
    "signaled",
    "timed_out",
    "out_of_memory",
    "output_limit",
    "cancelled",
    "session_ended",
    "worker_lost",
    "sandbox_failed",
];

/// How one worker stands.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub sessions: BTreeMap<(Backend, SessionState), u64>,
    /// Those that it was started with, and whether each can be used.
    pub backends: BTreeMap<Backend, bool>,
    pub tasks: u64,
    pub places: u64,
    pub ready: bool,
    pub attached: bool,
    pub data_connections: u64,
    pub canary: Option<Canary>,
    pub disk_free_bytes: u64,
    /// What sessions may still take of it.
    pub disk_promised_bytes: u64,
    pub disk_margin_bytes: u64,
    pub reports_waiting: u64,
}

/// How the last canary fared.
#[derive(Clone, Copy, Debug)]
pub struct Canary {
    pub ok: bool,
    /// Since it returned.
    pub age: Duration,
    pub took: Duration,
}

/// See the module.
pub struct Metrics {
    registry: Registry,
    sessions: Gauges<2>,
    usable: Gauges<1>,
    places: Gauge,
    places_free: Gauge,
    tasks_running: Gauge,
    ready: Gauge,
    link_up: Gauge,
    data_connections: Gauge,
    canary_ok: Gauge,
    canary_age: Gauge,
    canary_time: Gauge,
    disk_free: Gauge,
    disk_promised: Gauge,
    disk_margin: Gauge,
    reports_waiting: Gauge,
    sandbox_start: Histograms<2>,
    backend_failures: Counters<2>,
    canaries: Counters<1>,
    refused: Counter,
    ended: Counters<1>,
    adopted: Counter,
    tasks: Counters<1>,
    task_time: Histogram,
    output: Counter,
    output_evicted: Counter,
    oom_kills: Counter,
    egress: Counters<1>,
    egress_bytes: Counters<1>,
    checkpoint_time: Histograms<2>,
    checkpoint_bytes: Counters<1>,
    frozen: Histogram,
    attaches: Counter,
    breaks: Counter,
    hop_time: Histograms<1>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    #[allow(clippy::too_many_lines, reason = "a list")]
    fn default() -> Self {
        let mut r = Registry::default();
        Self {
            sessions: r.gauges(
                "berth_worker_sessions",
                &["backend", "state"],
                "Sessions that are here, by backend and state",
            ),
            usable: r.gauges("berth_worker_backend_usable", &["backend"], "1: the backend's preflight passes"),
            places: r.gauge("berth_worker_places", "Sessions that may be here at once"),
            places_free: r.gauge("berth_worker_places_free", "Of these, how many are free"),
            tasks_running: r.gauge("berth_worker_tasks_running", "Tasks that run here"),
            ready: r.gauge("berth_worker_ready", "Workers of this process that are ready; 0 or 1, but for `berth up`"),
            link_up: r.gauge("berth_worker_link_up", "Links to the coordinator that are up; 0 or 1, but for `berth up`"),
            data_connections: r
                .gauge("berth_worker_data_connections", "Connections to the coordinator that carry calls"),
            canary_ok: r.gauge("berth_worker_canary_ok", "1: the last throw-away sandbox lived; 0: it did not"),
            canary_age: r.gauge("berth_worker_canary_age_seconds", "Since the last canary returned"),
            canary_time: r.gauge("berth_worker_canary_duration_seconds", "How long the last canary took, to its removal"),
            disk_free: r.gauge("berth_worker_disk_free_bytes", "Free where sessions' files are"),
            disk_promised: r.gauge("berth_worker_disk_promised_bytes", "Of this, what sessions here may still take"),
            disk_margin: r.gauge("berth_worker_disk_margin_bytes", "With less than this free a worker takes no sessions"),
            reports_waiting: r.gauge(
                "berth_worker_reports_waiting",
                "Reports of sessions and tasks that the coordinator has not been told, or has not confirmed",
            ),
            sandbox_start: r.histograms(
                "berth_worker_sandbox_start_seconds",
                &["backend", "outcome"],
                LATENCY,
                "Time that a backend took to start a session's sandbox, or to fail (failed), or its deadline (late)",
            ),
            backend_failures: r.counters(
                "berth_worker_backend_failures_total",
                &["backend", "what"],
                "Sandboxes that were not started (start), whose agent did not take its configuration (agent), that died \
                 under a session (died)",
            ),
            canaries: r
                .counters("berth_worker_canaries_total", &["result"], "Canaries that returned")
                .with([["ok"], ["failed"]]),
            refused: r.counter("berth_worker_placements_refused_total", "Placements that this worker did not take"),
            ended: r.counters("berth_worker_sessions_ended_total", &["reason"], "Sessions that ended here, by why"),
            adopted: r.counter(
                "berth_worker_sessions_adopted_total",
                "Sessions of an earlier process of the worker that were taken up",
            ),
            tasks: r
                .counters("berth_worker_tasks_total", &["outcome"], "Tasks that ended, by how")
                .with(OUTCOMES.map(|outcome| [outcome])),
            task_time: r.histogram("berth_worker_task_duration_seconds", WAIT, "Time that tasks ran"),
            output: r.counter("berth_worker_task_output_bytes_total", "Bytes that tasks that have ended wrote"),
            output_evicted: r.counter(
                "berth_worker_spool_evicted_bytes_total",
                "Of these, bytes that were no longer kept when the task ended, since the spool was full",
            ),
            oom_kills: r.counter("berth_worker_oom_kills_total", "Processes of tasks that the kernel killed for memory"),
            egress: r
                .counters("berth_worker_egress_connections_total", &["decision"], "What sessions asked to reach")
                .with([["allowed"], ["denied"]]),
            egress_bytes: r
                .counters(
                    "berth_worker_egress_bytes_total",
                    &["direction"],
                    "Bytes of connections out of sandboxes that are over",
                )
                .with([["sent"], ["received"]]),
            checkpoint_time: r.histograms(
                "berth_worker_checkpoint_duration_seconds",
                &["operation", "result"],
                LATENCY,
                "Time to take a checkpoint, or to restore one",
            ),
            checkpoint_bytes: r
                .counters(
                    "berth_worker_checkpoint_bytes_total",
                    &["kind"],
                    "Bytes of files in checkpoints that were taken (content), that were sent for them (stored), and that were \
                     restored (restored)",
                )
                .with([["content"], ["stored"], ["restored"]]),
            frozen: r.histogram(
                "berth_worker_checkpoint_frozen_seconds",
                LATENCY,
                "Time that a session's tasks stood still for a checkpoint",
            ),
            attaches: r.counter("berth_worker_link_attaches_total", "Times that the coordinator said Welcome"),
            breaks: r.counter("berth_worker_link_breaks_total", "Links that broke, and attaches that failed"),
            hop_time: r.histograms(
                "berth_worker_hop_duration_seconds",
                &["method"],
                LATENCY,
                "Time from passing a call on to a session's agent to the beginning of its answer",
            ),
            registry: r,
        }
    }
}

impl AsRef<Registry> for Metrics {
    fn as_ref(&self) -> &Registry {
        &self.registry
    }
}

impl Metrics {
    /// Shows how the workers that count here stand.
    pub fn show(&self, all: &[Observed]) {
        let sum = |of: fn(&Observed) -> u64| all.iter().map(of).fold(0, u64::saturating_add) as f64;
        for backend in Backend::ALL {
            let Some(usable) = all.iter().filter_map(|one| one.backends.get(&backend)).min() else {
                continue;
            };
            self.usable.set([backend.as_str()], f64::from(u8::from(*usable)));
            for state in STATES {
                let of = |one: &Observed| one.sessions.get(&(backend, state)).copied().unwrap_or_default();
                let sessions: u64 = all.iter().map(of).sum();
                self.sessions.set([backend.as_str(), state_name(state)], sessions as f64);
            }
        }
        self.places.set(sum(|one| one.places));
        self.places_free.set(sum(|one| one.places.saturating_sub(one.sessions.values().sum())));
        self.tasks_running.set(sum(|one| one.tasks));
        self.ready.set(sum(|one| one.ready.into()));
        self.link_up.set(sum(|one| one.attached.into()));
        self.data_connections.set(sum(|one| one.data_connections));
        let canaries: Vec<Canary> = all.iter().filter_map(|one| one.canary).collect();
        let ok = canaries.len() == all.len() && canaries.iter().all(|canary| canary.ok);
        self.canary_ok.set(f64::from(u8::from(ok)));
        let worst =
            |of: fn(&Canary) -> Duration| canaries.iter().map(of).max().unwrap_or_default().as_secs_f64();
        self.canary_age.set(worst(|canary| canary.age));
        self.canary_time.set(worst(|canary| canary.took));
        // Workers of one process share a disk, and what each has promised is taken of it.
        self.disk_free.set(all.iter().map(|one| one.disk_free_bytes).min().unwrap_or_default() as f64);
        self.disk_promised.set(sum(|one| one.disk_promised_bytes));
        self.disk_margin.set(all.iter().map(|one| one.disk_margin_bytes).max().unwrap_or_default() as f64);
        self.reports_waiting.set(sum(|one| one.reports_waiting));
    }

    /// A backend was to start a session's sandbox.
    pub(crate) fn sandbox(&self, backend: Backend, took: Duration, outcome: Start) {
        let outcome = match outcome {
            Start::Ok => "ok",
            Start::Failed => "failed",
            Start::Late => "late",
        };
        self.sandbox_start.took([backend.as_str(), outcome], took);
        if outcome != "ok" {
            self.backend_failures.add([backend.as_str(), "start"], 1);
        }
    }

    /// The agent of a new sandbox did not take its configuration.
    pub(crate) fn no_agent(&self, backend: Backend) {
        self.backend_failures.add([backend.as_str(), "agent"], 1);
    }

    /// A sandbox died under its session.
    pub(crate) fn died(&self, backend: Backend) {
        self.backend_failures.add([backend.as_str(), "died"], 1);
    }

    pub(crate) fn canary(&self, ok: bool) {
        self.canaries.add([result_name(ok)], 1);
    }

    pub(crate) fn refused(&self) {
        self.refused.add(1);
    }

    pub(crate) fn ended(&self, reason: EndReason) {
        self.ended.add([reason.name()], 1);
    }

    pub(crate) fn adopted(&self, sessions: usize) {
        self.adopted.add(sessions as u64);
    }

    /// A task has ended. Called once for each.
    pub(crate) fn task(&self, task: &v1::Task) {
        let Some(end) = &task.end else { return };
        let outcome = end.outcome.and_then(|outcome| Outcome::try_from(outcome).ok());
        self.tasks.add([outcome.map_or(OUTCOMES[9], outcome_name)], 1);
        let took = end.duration.and_then(|took| Duration::try_from(took).ok());
        self.task_time.took(took.unwrap_or_default());
        let streams = [&task.stdout, &task.stderr].into_iter().flatten();
        let (wrote, lost) = streams.fold((0, 0), |(wrote, lost): (u64, u64), stream| {
            (wrote.saturating_add(stream.length), lost.saturating_add(stream.first_kept))
        });
        self.output.add(wrote);
        self.output_evicted.add(lost);
        self.oom_kills.add(end.usage.as_ref().map_or(0, |usage| usage.oom_kills));
    }

    pub(crate) fn egress(&self, allowed: bool) {
        self.egress.add([if allowed { "allowed" } else { "denied" }], 1);
    }

    pub(crate) fn carried(&self, sent: u64, received: u64) {
        self.egress_bytes.add(["sent"], sent);
        self.egress_bytes.add(["received"], received);
    }

    /// A checkpoint was taken, of so much content, of which so much had to be sent; or could not be.
    pub(crate) fn checkpoint(&self, took: Duration, taken: Option<(u64, u64, Duration)>) {
        self.checkpoint_time.took(["take", result_name(taken.is_some())], took);
        let Some((content, stored, frozen)) = taken else { return };
        self.checkpoint_bytes.add(["content"], content);
        self.checkpoint_bytes.add(["stored"], stored);
        self.frozen.took(frozen);
    }

    /// A checkpoint of so many bytes was restored, or could not be.
    pub(crate) fn restored(&self, took: Duration, bytes: Option<u64>) {
        self.checkpoint_time.took(["restore", result_name(bytes.is_some())], took);
        self.checkpoint_bytes.add(["restored"], bytes.unwrap_or_default());
    }

    pub(crate) fn attached(&self) {
        self.attaches.add(1);
    }

    pub(crate) fn broken(&self) {
        self.breaks.add(1);
    }

    pub(crate) fn hop(&self, method: &'static str, took: Duration) {
        self.hop_time.took([method], took);
    }
}

/// How the start of a sandbox went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    Ok,
    Failed,
    Late,
}

fn result_name(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(0) => OUTCOMES[0],
        Outcome::Exited(_) => OUTCOMES[1],
        Outcome::Signaled(_) => OUTCOMES[2],
        Outcome::TimedOut => OUTCOMES[3],
        Outcome::OutOfMemory => OUTCOMES[4],
        Outcome::OutputLimit => OUTCOMES[5],
        Outcome::Cancelled => OUTCOMES[6],
        Outcome::SessionEnded => OUTCOMES[7],
        Outcome::WorkerLost => OUTCOMES[8],
        Outcome::SandboxFailed => OUTCOMES[9],
    }
}

fn state_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Pending => "pending",
        SessionState::Placed => "placed",
        SessionState::Ready => "ready",
        SessionState::Paused => "paused",
        SessionState::Parked => "parked",
        SessionState::Ending => "ending",
        SessionState::Ended => "ended",
    }
}
