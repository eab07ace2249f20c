//! What moves a task on: one future for each, so that no two ends race. It starts the
//! task through init, waits for its end or for a reason to end it, kills, drains, and
//! only then says how it ended.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Code, Reason, TaskId,
    convert::{duration_out, time_out},
    domain::{Outcome, PtySize, TaskSpec},
    secret,
    trace::TraceContext,
    v1,
};
use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    cgroup::Group,
    clock::TaskClock,
    outcome::{self, Cause, Facts},
    output::Meter,
    secrets::{Held, SecretFiles},
    spawner::{Spawner, StartError, Started},
    spool::{Budget, Spool},
    streams::Streams,
    task::{Phase, Refusal, Stop, Task},
    wire::{self, Exited, Stage},
};

/// Between TERM and KILL when nobody said how long: a timeout shall be reported soon.
const SHORT_GRACE: Duration = Duration::from_millis(500);
/// What was killed is gone by then, or never will be (a process stuck in the kernel).
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// For a pump to hand over what it has. It waits for nothing but a terminal (1 s) and the disk.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// What a task needs to begin.
pub struct Plan {
    pub spawn: wire::Spawn,
    pub spec: TaskSpec,
    pub shown: v1::TaskSpec,
    pub session: String,
    /// Of the request that starts it.
    pub request: Option<TraceContext>,
    /// Resolved: `None` is no timeout.
    pub timeout: Option<Duration>,
    pub pty_size: Option<PtySize>,
    /// Secrets that it is given as files.
    pub secret_files: BTreeMap<String, Bytes>,
}

/// What drivers share.
pub struct Shared {
    pub spawner: Arc<Spawner>,
    pub clock: Arc<TaskClock>,
    pub budget: Arc<Budget>,
    pub cgroups: berth_proto::agent_config::Cgroups,
    pub spool_dir: std::path::PathBuf,
    /// Opens terminals as the task's user.
    pub files: Arc<crate::files::Files>,
    pub secrets: Arc<SecretFiles>,
    pub null: OwnedFd,
}

/// The future of one task.
pub struct Driver {
    task: Arc<Task>,
    shared: Arc<Shared>,
    plan: Plan,
    stops: mpsc::Receiver<Stop>,
    meter: Arc<Meter>,
}

impl Driver {
    /// A task that has not begun, and what makes it begin.
    pub fn new(id: TaskId, plan: Plan, shared: Arc<Shared>) -> (Arc<Task>, Driver) {
        let dir = shared.spool_dir.join(id.to_string());
        let spool = |name| Spool::new(dir.clone(), name, plan.spec.spool_bytes, shared.budget.clone());
        let (task, stops, changed) = Task::new(
            id,
            plan.session.clone(),
            plan.shown.clone(),
            plan.request,
            [spool("stdout"), spool("stderr")],
            shared.clock.now(),
        );
        let meter = Arc::new(Meter::new(plan.spec.output_limit, changed));
        (task.clone(), Driver { task, shared, plan, stops, meter })
    }

    /// Starts the task. `Err`: nothing runs, and everybody was told: it was refused, or,
    /// where it is not known whether it ran, it is done with `SandboxFailed`.
    pub async fn start(self) -> Result<Running, ()> {
        match self.launch().await {
            Ok((started, drains, secrets)) => {
                let group = Arc::new(match started.spawned.group {
                    Some(number) => Group::Cgroup { cgroups: self.shared.cgroups.clone(), number },
                    None => Group::Below { guard: started.spawned.guard.unwrap_or(started.spawned.pid) },
                });
                self.task.running(started.spawned.pid as u32, started.number, group.clone());
                Ok(Running { driver: self, started, drains, group, secrets, began: Instant::now() })
            }
            Err(NotStarted::Refused(refusal)) => {
                self.task.set(Phase::Refused(refusal));
                Err(())
            }
            Err(NotStarted::Unknown) => {
                self.task.lost(v1::TaskEnd {
                    outcome: Some(Outcome::SandboxFailed.into()),
                    message: "its start was given up: whether it ran is not known".to_owned(),
                    ended_at: Some(time_out(SystemTime::now())),
                    ..Default::default()
                });
                Err(())
            }
        }
    }

    async fn launch(&self) -> Result<(Started, Drains, Held), NotStarted> {
        let plan = &self.plan;
        let internal = |error: &dyn std::fmt::Display| {
            error!(%error, "a task could not be started");
            NotStarted::Refused(Refusal::new(
                Code::Internal,
                Reason::Internal,
                "the task could not be started: see the sandbox's log".to_owned(),
            ))
        };
        let secrets = self.shared.secrets.put(&plan.secret_files).map_err(|error| {
            if error.kind() != std::io::ErrorKind::StorageFull {
                return internal(&error);
            }
            let text = format!("{} is full: the tasks that run have too many secrets", secret::DIR);
            NotStarted::Refused(Refusal::new(Code::ResourceExhausted, Reason::DiskFull, text))
        })?;
        let streams = Streams::open(&self.shared, plan).await.map_err(|e| internal(&e))?;
        let started = self.shared.spawner.spawn(&plan.spawn, &streams.theirs, &self.shared.clock).await;
        drop(streams.theirs);
        let started = started.map_err(|error| match &error {
            StartError::Failed { stage: Stage::Cwd, error } => NotStarted::Refused(Refusal::new(
                Code::FailedPrecondition,
                Reason::CwdNotFound,
                format!("cwd {:?} can't be entered: {}", plan.spec.cwd, crate::files::plain(error)),
            )),
            StartError::Failed { .. } => internal(&error),
            StartError::Init(_) | StartError::Late => {
                error!(%error, "a task's start was given up");
                NotStarted::Unknown
            }
        })?;
        self.task.set_terminal(streams.terminal.clone());
        if let Some(pipe) = streams.stdin {
            self.task.stdin.open_pipe(pipe).await;
        } else if let Some(master) = streams.terminal {
            self.task.stdin.open_terminal(master).await;
        }
        let mut drains = Drains { ending: CancellationToken::new(), waits: Vec::new() };
        for (source, terminal, spool) in [
            (Some(streams.stdout), plan.spawn.pty, &self.task.stdout),
            (streams.stderr, false, &self.task.stderr),
        ] {
            let Some(source) = source else { continue };
            let (tell, drained) = oneshot::channel();
            let pump = crate::output::Pump {
                source,
                spool: spool.clone(),
                meter: self.meter.clone(),
                ending: drains.ending.clone(),
                terminal,
                detached: plan.spec.detached,
            };
            berth_proto::spawn::spawn("pump", pump.run(tell));
            drains.waits.push(drained);
        }
        Ok((started, drains, secrets))
    }
}

/// Why nothing runs.
enum NotStarted {
    /// Nothing ever did.
    Refused(Refusal),
    /// It may have: at most once means that nobody may try again by itself.
    Unknown,
}

struct Drains {
    ending: CancellationToken,
    waits: Vec<oneshot::Receiver<()>>,
}

/// A task that runs.
pub struct Running {
    driver: Driver,
    started: Started,
    drains: Drains,
    group: Arc<Group>,
    secrets: Held,
    began: Instant,
}

/// What a task leaves to be tidied up.
pub struct Leftover {
    pub group: Arc<Group>,
}

impl Running {
    /// Runs the task to its end. Afterwards its state is `Done` and its watchers know.
    pub async fn run(mut self) -> Leftover {
        let stop = self.main_or_stop().await;
        let exited = match stop {
            Ok(exited) => exited,
            Err(stop) => self.kill_ladder(stop).await,
        };
        let attached = !self.driver.plan.spec.detached;
        #[cfg(feature = "weakened")]
        let attached = attached && !weakened!("outlived") && !weakened!("patient-drain");
        let cause = stop.as_ref().err().map(|stop| stop.cause);
        let dead = if attached || cause.is_some() { self.kill_all().await } else { true };
        self.drain().await;
        let counters = self.group.counters();
        let facts = Facts {
            cause,
            status: exited.filter(|_| dead).map(|exited| exited.status),
            oom_kills: counters.oom_kills,
            over_limit: self.driver.meter.over.is_cancelled(),
        };
        let (outcome, message) = outcome::decide(facts);
        let task = &self.driver.task;
        let end = v1::TaskEnd {
            outcome: Some(outcome.into()),
            message: message.to_owned(),
            ended_at: Some(time_out(SystemTime::now())),
            duration: Some(duration_out(self.began.elapsed())),
            usage: Some(outcome::usage(counters, exited).into()),
        };
        task.set_terminal(None);
        // Who is told of the end finds them gone.
        drop(self.secrets);
        task.set(Phase::Done(end));
        task.done.cancel();
        task.stdin.drop_sink().await;
        Leftover { group: self.group }
    }

    /// Waits for the main process's end, or for a reason to bring it about.
    async fn main_or_stop(&mut self) -> Result<Option<Exited>, Stop> {
        let Driver { task, shared, plan, stops, meter } = &mut self.driver;
        let clock = &shared.clock;
        let deadline = plan.timeout.map(|timeout| clock.now().saturating_add(timeout));
        let grace = (!plan.spec.detached).then_some(plan.spec.reattach_grace);
        let by = |cause| Stop { cause, grace: SHORT_GRACE };
        tokio::select! {
            // What happened first in the world counts, as far as we can tell.
            biased;
            exited = &mut self.started.exit => Ok(exited.ok()),
            Some(stop) = stops.recv() => Err(stop),
            () = meter.over.cancelled() => Err(by(Cause::OutputLimit)),
            () = clock.sleep_until(deadline) => Err(by(Cause::TimedOut)),
            () = task.abandoned(clock, grace) => Err(by(Cause::Abandoned)),
        }
    }

    /// TERM to all, then the grace. The KILL is [`Running::kill_all`].
    async fn kill_ladder(&mut self, stop: Stop) -> Option<Exited> {
        let mut kill_at = Instant::now() + stop.grace;
        let mut exited = None;
        if !stop.grace.is_zero() {
            let _ = self.driver.shared.spawner.signal(self.started.number, libc::SIGTERM).await;
            self.group.signal(Signal::SIGTERM, Some(self.started.spawned.pid));
        }
        while Instant::now() < kill_at && !(exited.is_some() && self.group.is_empty()) {
            // The main process's end is an event; that of the others is looked for.
            let look = kill_at.min(Instant::now() + Duration::from_millis(20));
            tokio::select! {
                end = &mut self.started.exit, if exited.is_none() => exited = Some(end.ok()),
                () = tokio::time::sleep_until(if exited.is_some() { look } else { kill_at }) => {}
                Some(more) = self.driver.stops.recv() => kill_at = kill_at.min(Instant::now() + more.grace),
            }
        }
        if exited.is_none() {
            self.kill_once().await;
            if let Group::Below { .. } = *self.group {
                let _ = self.driver.shared.spawner.signal(self.started.number, libc::SIGKILL).await;
            }
            let wait = tokio::time::timeout(KILL_DEADLINE, &mut self.started.exit);
            exited = Some(wait.await.ok().and_then(Result::ok));
        }
        exited.flatten()
    }

    /// KILL until nothing is left. False: something could not be killed.
    async fn kill_all(&self) -> bool {
        let dead = kill_all(&self.group).await;
        if !dead {
            error!(task = %self.driver.task.id, pids = ?self.group.pids(), "processes can't be killed");
        }
        dead
    }

    async fn kill_once(&self) {
        kill_once(&self.group).await;
    }

    async fn drain(&mut self) {
        if !weakened!("patient-drain") {
            self.drains.ending.cancel();
        }
        let all = futures::future::join_all(self.drains.waits.drain(..));
        if tokio::time::timeout(DRAIN_DEADLINE, all).await.is_err() {
            warn!(task = %self.driver.task.id, "the last output could not be taken in time");
        }
    }
}

/// KILL until nothing is left. False: something could not be killed.
pub(crate) async fn kill_all(group: &Arc<Group>) -> bool {
    let deadline = Instant::now() + KILL_DEADLINE;
    let mut pause = Duration::from_micros(250);
    while !group.is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        kill_once(group).await;
        // A killed process is gone within a millisecond or so; then it gets rarer.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    true
}

async fn kill_once(group: &Arc<Group>) {
    let group = group.clone();
    let _ = tokio::task::spawn_blocking(move || group.kill()).await;
}
