//! How the worker is: what it tells the coordinator in each heartbeat, and whether it is ready.
//!
//! Ready means: the chosen backend works, a canary has lived through it lately, the disk has room, and the
//! worker is not stopping. (That the link is attached the coordinator sees by itself; `status` adds it.)
//! When it is not ready there is always a reason.

pub mod canary;
pub mod machine;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::v1;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::canary::Report;
use crate::{backends::Backends, metrics::Metrics, sessions::Sessions, workspace::Workspaces};

/// A canary may be this many intervals old: one may fail to start on time on a busy machine.
const CANARY_INTERVALS: u32 = 3;
/// After one that failed: what was wrong may soon be right again, an engine that is started anew above all.
const CANARY_RETRY: Duration = Duration::from_secs(5);

/// Readings of the machine and the canary's fate.
pub struct Health {
    settings: Settings,
    backends: Arc<Backends>,
    sessions: Sessions,
    canary: watch::Sender<Option<Report>>,
    ticks: Mutex<Option<machine::CpuTicks>>,
    /// Something that a heartbeat tells has changed: one is due now.
    news: Notify,
    /// A canary is due now.
    sing: Notify,
}

/// What readiness is measured by.
#[derive(Clone, Debug)]
pub struct Settings {
    pub workspaces: PathBuf,
    pub disk_margin_bytes: u64,
    pub canary_interval: Duration,
    pub canary_timeout: Duration,
    pub metrics: Arc<Metrics>,
}

impl Health {
    pub fn new(settings: Settings, backends: Arc<Backends>, sessions: Sessions) -> Self {
        Self {
            settings,
            backends,
            sessions,
            canary: watch::channel(None).0,
            ticks: Mutex::new(machine::cpu_ticks()),
            news: Notify::new(),
            sing: Notify::new(),
        }
    }

    /// Runs canaries, at once and then at their interval, and looks at the backends as often. A canary
    /// that runs when `stop` comes is seen through, so that nothing of it is left.
    pub async fn run(&self, workspaces: &Workspaces, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            let report = canary::run(&self.backends, workspaces, self.settings.canary_timeout).await;
            self.settings.metrics.canary(report.result.is_ok());
            match &report.result {
                Ok(()) => tracing::debug!(took_ms = report.took.as_millis() as u64, "canary lives"),
                Err(error) => tracing::warn!(error, "canary failed"),
            }
            let every = self.settings.canary_interval;
            let pause = if report.result.is_ok() { every } else { every.min(CANARY_RETRY) };
            self.canary.send_replace(Some(report));
            self.tell();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.sing.notified() => {}
                () = stop.cancelled() => return,
            }
            if self.backends.refresh().await {
                self.tell();
            }
        }
    }

    /// Makes the next heartbeat due.
    pub fn tell(&self) {
        self.news.notify_one();
    }

    /// Makes the next canary due.
    pub fn sing(&self) {
        self.sing.notify_one();
    }

    /// Returns when a heartbeat is due before its time.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// The last canary's report; changes wake.
    pub fn canary(&self) -> watch::Receiver<Option<Report>> {
        self.canary.subscribe()
    }

    /// Why the worker should get no session, if so.
    pub fn unready(&self) -> Option<String> {
        if let Some(why) = self.sessions.closed() {
            return Some(why);
        }
        if self.backends.chosen().is_none() {
            let problems: Vec<String> = self
                .backends
                .statuses()
                .into_iter()
                .map(|status| format!("{}: {}", status.name, status.message))
                .collect();
            return Some(format!("no sandbox backend can be used: {}", problems.join("; ")));
        }
        let oldest = self.settings.canary_interval * CANARY_INTERVALS + self.settings.canary_timeout;
        match &*self.canary.borrow() {
            None => return Some("the first canary has not returned yet".to_owned()),
            Some(Report { result: Err(error), .. }) => return Some(format!("the canary failed: {error}")),
            Some(report) if report.when + report.took + oldest < Instant::now() => {
                return Some("no canary has returned for too long".to_owned());
            }
            Some(_) => {}
        }
        match machine::disk_free(&self.settings.workspaces) {
            Ok(free) if free >= self.settings.disk_margin_bytes => None,
            Ok(free) => Some(format!(
                "only {free} bytes of disk are free, less than the margin of {}",
                self.settings.disk_margin_bytes
            )),
            Err(error) => Some(format!("the free disk can't be read: {error}")),
        }
    }

    /// For a heartbeat. `cpu_busy` is since the last call.
    pub fn sample(&self) -> v1::WorkerHealth {
        let reason = self.unready();
        let (ready, reason, canary) = (
            reason.is_none(),
            reason.unwrap_or_default(),
            self.canary.borrow().as_ref().map(v1::Canary::from),
        );
        // A simulated machine is never busy: what the real one does must not be seen.
        if cfg!(berth_sim) {
            let memory_available_bytes = machine::memory().map_or(0, |memory| memory.total_bytes);
            return v1::WorkerHealth { memory_available_bytes, canary, ready, reason, ..Default::default() };
        }
        let now = machine::cpu_ticks();
        let before = std::mem::replace(&mut *self.ticks.lock().unwrap_or_else(PoisonError::into_inner), now);
        let cpu_busy = now.zip(before).and_then(|(now, before)| now.busy_since(before)).unwrap_or(0.0);
        v1::WorkerHealth {
            cpu_busy,
            memory_available_bytes: machine::memory().map_or(0, |memory| memory.available_bytes),
            disk_free_bytes: machine::disk_free(&self.settings.workspaces).unwrap_or(0),
            cpu_pressure: machine::pressure("cpu"),
            memory_pressure: machine::pressure("memory"),
            io_pressure: machine::pressure("io"),
            canary,
            ready,
            reason,
        }
    }
}
