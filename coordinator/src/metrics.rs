//! What the coordinator counts and measures. All of it is declared here; docs/metrics.md has it as a table.
//!
//! What happens is recorded where it happens. How things stand (gauges) is read when somebody asks, from the view that every
//! call reads too: nothing has to be kept in step with it, and a scrape waits for nobody.
//!
//! Labels are words of ours ([`berth_metrics`]). Methods are those of the contract: what else is called is `other`.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use berth_metrics::{Counter, Counters, Gauge, Gauges, Histogram, Histograms, LATENCY, Registry, WAIT};
use berth_proto::{
    Code, DESCRIPTORS,
    domain::{EndReason, SessionState},
    error::reason_of,
    world,
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Status, body::Body, codegen::http};

use crate::{
    audit::Audit,
    driver::View,
    fleet::{Session, Tally, Worker},
    placement::Standing,
};

/// How a session may stand, in the words of `berth ps`. Those that have ended are history.
const STATES: [SessionState; 6] = [
    SessionState::Pending,
    SessionState::Placed,
    SessionState::Ready,
    SessionState::Paused,
    SessionState::Parked,
    SessionState::Ending,
];
/// How a worker may stand.
const STANDINGS: [&str; 5] = ["open", "not_ready", "cordoned", "draining", "unreachable"];
const ENDS: [EndReason; 8] = [
    EndReason::Deleted,
    EndReason::TtlExpired,
    EndReason::Idle,
    EndReason::NoPlace,
    EndReason::WorkerLost,
    EndReason::SandboxFailed,
    EndReason::Drained,
    EndReason::Abandoned,
];

/// See the module.
pub struct Metrics {
    registry: Registry,
    sessions: Gauges<1>,
    workers: Gauges<1>,
    queue_depth: Gauge,
    queue_oldest: Gauge,
    places_free: Gauge,
    places: Gauge,
    tasks: Gauge,
    streams: Gauge,
    calls: Counters<3>,
    call_time: Histograms<2>,
    call_errors: Counters<1>,
    hop_time: Histograms<1>,
    created: Counter,
    ended: Counters<1>,
    recovered: Counter,
    queue_wait: Histogram,
    placement_time: Histogram,
    ready_time: Histogram,
    placements_refused: Counter,
    epoch_rejections: Counters<1>,
    leases_expired: Counter,
    attached: Counter,
    commit_time: Histograms<1>,
    blob_time: Histograms<2>,
    audit_written: Counter,
    audit_lost: Counter,
    audit_waiting: Gauge,
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
            sessions: r.gauges("berth_sessions", &["state"], "Sessions that have not ended"),
            workers: r.gauges("berth_workers", &["state"], "Workers that are known; open: they take sessions"),
            queue_depth: r.gauge("berth_queue_depth", "Sessions that wait for a place"),
            queue_oldest: r.gauge(
                "berth_queue_oldest_wait_seconds",
                "For how long the one that waits longest has waited; 0: none waits",
            ),
            places_free: r.gauge(
                "berth_workers_places_free",
                "Places for sessions that are free on open workers; CPU, memory or disk may be short all the same",
            ),
            places: r.gauge("berth_workers_places", "Places for sessions on open workers, taken or free"),
            tasks: r.gauge("berth_tasks_running", "Tasks that run, as far as workers have reported"),
            streams: r.gauge("berth_streams_open", "Calls to sessions that are open, streams included"),
            calls: r.counters(
                "berth_calls_total",
                &["service", "method", "code"],
                "gRPC calls, by the code with which their answer began; CANCELLED: the caller went away before",
            ),
            call_time: r.histograms(
                "berth_call_duration_seconds",
                &["service", "method"],
                LATENCY,
                "Time from a gRPC call to the beginning of its answer, waits that it asked for included",
            ),
            call_errors: r
                .counters(
                    "berth_call_errors_total",
                    &["reason"],
                    "gRPC calls that were answered with an error of Berth's own, by its reason",
                )
                .with([["OVERLOADED"], ["QUOTA_EXCEEDED"], ["STORE_FAILED"], ["NO_PLACE"], ["QUEUE_FULL"]]),
            hop_time: r.histograms(
                "berth_hop_duration_seconds",
                &["method"],
                LATENCY,
                "Time from passing a call on to a worker to the beginning of that worker's answer",
            ),
            created: r.counter("berth_sessions_created_total", "Sessions that were made"),
            ended: r
                .counters("berth_sessions_ended_total", &["reason"], "Sessions that ended, by why")
                .with(ENDS.map(|reason| [reason.name()])),
            recovered: r.counter(
                "berth_sessions_recovered_total",
                "Sessions that lost their worker and are up again elsewhere, from a checkpoint",
            ),
            queue_wait: r.histogram(
                "berth_queue_wait_seconds",
                WAIT,
                "Time that a session waited for the place that it got",
            ),
            placement_time: r.histogram(
                "berth_placement_duration_seconds",
                LATENCY,
                "Time from a session's placement on a worker until it was ready there",
            ),
            ready_time: r.histogram(
                "berth_session_ready_seconds",
                LATENCY,
                "Time from the making of a session until it was ready for the first time",
            ),
            placements_refused: r.counter(
                "berth_placements_refused_total",
                "Placements that the worker refused, so that another was looked for",
            ),
            epoch_rejections: r
                .counters(
                    "berth_epoch_rejections_total",
                    &["what"],
                    "What came too late and changed nothing: a report on a session that is no longer there (report), a \
                     worker's process after a newer one of its id (incarnation)",
                )
                .with([["report"], ["incarnation"]]),
            leases_expired: r
                .counter("berth_leases_expired_total", "Leases of workers that ran out: no heartbeat came"),
            attached: r.counter("berth_worker_attaches_total", "Times that a worker attached, anew or again"),
            commit_time: r.histograms(
                "berth_store_commit_duration_seconds",
                &["result"],
                LATENCY,
                "Time of a commit to the store, which holds up all that changes something",
            ),
            blob_time: r.histograms(
                "berth_blob_duration_seconds",
                &["operation", "result"],
                LATENCY,
                "Time of an operation on the store of checkpoints and artifacts",
            ),
            audit_written: r.counter("berth_audit_records_written_total", "Audit records in the file"),
            audit_lost: r
                .counter("berth_audit_records_lost_total", "Audit records that found no room while the file could not be written"),
            audit_waiting: r.gauge("berth_audit_records_waiting", "Audit records that are not in the file yet"),
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
    /// Reads how things stand.
    pub(crate) fn look(&self, view: &View, audit: &Audit, streams: u64) {
        let now = world::now();
        let census = view.census();
        for state in STATES {
            self.sessions
                .set([state_name(state)], census.states.get(&state).copied().unwrap_or_default() as f64);
        }
        let waiting = census.states.get(&SessionState::Pending).copied().unwrap_or_default();
        self.queue_depth.set(waiting as f64);
        let waits = census.oldest_wait.and_then(|since| now.duration_since(since).ok());
        self.queue_oldest.set(waits.unwrap_or_default().as_secs_f64());
        let mut standing: HashMap<&str, u64> = HashMap::new();
        let (mut places, mut free) = (0, 0);
        for worker in view.workers() {
            let name = standing_name(&worker);
            *standing.entry(name).or_default() += 1;
            if name == STANDINGS[0] {
                let most = u64::from(worker.capacity.max_sessions);
                places += most;
                free += most.saturating_sub(view.load(&worker.id).sessions.into());
            }
        }
        for name in STANDINGS {
            self.workers.set([name], standing.get(name).copied().unwrap_or_default() as f64);
        }
        self.places.set(places as f64);
        self.places_free.set(free as f64);
        self.tasks.set(view.running_tasks(&crate::tenant::Sight::All) as f64);
        self.streams.set(streams as f64);
        let records = audit.figures();
        self.audit_written.show(records.written);
        self.audit_lost.show(records.lost);
        self.audit_waiting.set(records.waiting as f64);
    }

    /// A session is as `now` says, and was as `before` says. `mono`: the driver's clock.
    pub(crate) fn session(&self, before: Option<&Session>, now: &Session, at: SystemTime, mono: Duration) {
        if before.is_none() {
            self.created.add(1);
        }
        let was = |state| before.is_some_and(|before| before.state == state);
        let placed = before.map_or(0, |before| before.epoch.0) < now.epoch.0;
        if placed {
            self.queue_wait.took(at.duration_since(now.waits.since).unwrap_or_default());
        }
        let up = matches!(now.state, SessionState::Ready | SessionState::Paused);
        if up && was(SessionState::Placed) {
            self.placement_time.took(mono.saturating_sub(now.placed_at()));
            if let Some(ready) =
                now.ready_at.filter(|_| before.is_some_and(|before| before.ready_at.is_none()))
            {
                self.ready_time.took(ready.duration_since(now.created_at).unwrap_or_default());
            }
            let under_way = |s: &Session| s.recovered.as_ref().is_some_and(|recovery| recovery.under_way);
            if before.is_some_and(under_way) && !under_way(now) {
                self.recovered.add(1);
            }
        }
        if let Some(reason) =
            now.end.filter(|_| now.state == SessionState::Ended && !was(SessionState::Ended))
        {
            self.ended.add([reason.name()], 1);
        }
    }

    /// What the fleet has counted since the last time.
    pub(crate) fn tally(
        &self,
        Tally { stale_reports, stale_hellos, leases_expired, refused, attached }: Tally,
    ) {
        self.epoch_rejections.add(["report"], stale_reports);
        self.epoch_rejections.add(["incarnation"], stale_hellos);
        self.leases_expired.add(leases_expired);
        self.placements_refused.add(refused);
        self.attached.add(attached);
    }

    pub(crate) fn committed(&self, took: Duration, ok: bool) {
        self.commit_time.took([result_name(ok)], took);
    }

    pub(crate) fn blob(&self, operation: &'static str, took: Duration, ok: bool) {
        self.blob_time.took([operation, result_name(ok)], took);
    }

    /// A worker's answer to a call began.
    pub(crate) fn hop(&self, method: &'static str, took: Duration) {
        self.hop_time.took([method], took);
    }

    /// A call was refused before any service saw it: too many at once.
    pub(crate) fn shed(&self, path: &str, answer: &http::Response<Body>) {
        Call { metrics: self, of: method_of(path), begun: Instant::now(), done: false }.answered(answer);
    }

    /// A call begins.
    pub(crate) fn call(self: &Arc<Self>, path: &str) -> Call<Arc<Self>> {
        Call { metrics: self.clone(), of: method_of(path), begun: Instant::now(), done: false }
    }
}

/// A call under way. Dropped without an answer it was cancelled.
pub(crate) struct Call<M: AsRef<Metrics>> {
    metrics: M,
    of: (&'static str, &'static str),
    begun: Instant,
    done: bool,
}

impl AsRef<Metrics> for Metrics {
    fn as_ref(&self) -> &Metrics {
        self
    }
}

impl<M: AsRef<Metrics>> Call<M> {
    /// Its answer begins.
    pub fn answered(mut self, answer: &http::Response<Body>) {
        let status = Status::from_header_map(answer.headers());
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        if let Some(reason) = status.as_ref().and_then(reason_of) {
            self.metrics.as_ref().call_errors.add([reason.as_str()], 1);
        }
        self.over(code);
    }

    fn over(&mut self, code: Code) {
        self.done = true;
        let (service, method) = self.of;
        let metrics = self.metrics.as_ref();
        metrics.calls.add([service, method, code_name(code)], 1);
        metrics.call_time.took([service, method], self.begun.elapsed());
    }
}

impl<M: AsRef<Metrics>> Drop for Call<M> {
    fn drop(&mut self) {
        if !self.done {
            self.over(Code::Cancelled);
        }
    }
}

fn result_name(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
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

fn standing_name(worker: &Worker) -> &'static str {
    match worker.standing() {
        Standing::Open => STANDINGS[0],
        Standing::NotReady(_) | Standing::Refused => STANDINGS[1],
        Standing::Cordoned => STANDINGS[2],
        Standing::Draining => STANDINGS[3],
        Standing::Unreachable => STANDINGS[4],
    }
}

/// As gRPC's own documents write it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Service and method of a path, if the contract has them.
fn method_of(path: &str) -> (&'static str, &'static str) {
    static KNOWN: OnceLock<HashMap<String, (&'static str, &'static str)>> = OnceLock::new();
    KNOWN.get_or_init(known_methods).get(path).copied().unwrap_or(("other", "other"))
}

/// Each name is made once for the process.
fn known_methods() -> HashMap<String, (&'static str, &'static str)> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
    let mut known = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            let name: &'static str = service.name().to_owned().leak();
            for method in &service.method {
                let path = format!("/{}.{name}/{}", file.package(), method.name());
                known.insert(path, (name, &*method.name().to_owned().leak()));
            }
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when a path that the contract does not have becomes a label.
    #[test]
    fn only_methods_of_the_contract_are_labels() {
        assert_eq!(method_of("/berth.v1.TaskService/Run"), ("TaskService", "Run"));
        for unknown in ["/berth.v1.TaskService/Runs", "/x/y", "", "/grpc.health.v1.Health/Check"] {
            assert_eq!(method_of(unknown), ("other", "other"), "{unknown}");
        }
    }
}
