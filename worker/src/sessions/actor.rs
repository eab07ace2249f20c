//! The life of one session, from its placement until nothing of it is left. Each session has an
//! actor of its own, and each step a deadline: one that is stuck holds up no other.
//!
//! `start` → `serve` → `finish`. Whatever way the first two end, `finish` runs, also after a panic.
//! What is wanted (paused, deadlines, the end) is read from the slot, level-triggered, so no command
//! can be lost and none has to be queued.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use berth_proto::{
    Error, convert,
    domain::{EndReason, Outcome, SessionState},
    v1::{
        self, agent_event::Event, agent_service_client::AgentServiceClient,
        task_service_client::TaskServiceClient,
    },
};
use futures::FutureExt;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Inner,
    events::{Events, Heard},
    launch::{self, Launch, await_agent, shut_down, take_down, with_log},
    record::{self, Meta},
    slot::{Desired, End, Slot},
};
use crate::{
    sandbox::{Running, SandboxBackend},
    workspace::blocking,
};

/// The agent holds the session's deadlines; so long after it the worker acts by itself.
const BACKSTOP: Duration = Duration::from_secs(2);
/// For a call to the agent that has nothing to wait for.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Tasks that are looked at after a gap, the newest: the most that one page holds.
const TASKS_LOOKED_AT: u32 = convert::bounds::PAGE_MAX;
/// For what an agent said just before its end.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How a session comes to this worker.
pub(super) enum Origin {
    /// Placed now; an earlier placement of it here, if there was one, has to be gone first.
    Placed { predecessor: Option<CancellationToken> },
    /// Found alive when the worker started.
    Adopted(Running),
}

/// How the first step ended.
enum Started {
    Live(Box<(Running, Events)>),
    /// This worker can't serve it: the coordinator shall look elsewhere.
    Refused(String),
    /// A start that has not returned yet may come along.
    Failed(End, Option<JoinHandle<()>>),
}

pub(super) struct Actor {
    pub inner: Arc<Inner>,
    /// What was wanted before the agent was configured.
    pub initial: Desired,
    pub slot: Arc<Slot>,
    pub backend: Arc<dyn SandboxBackend>,
}

impl Actor {
    /// Lives the session.
    pub async fn run(self, origin: Origin) {
        let life = AssertUnwindSafe(self.live(origin)).catch_unwind();
        tokio::select! {
            biased;
            // As if the process had died: nothing is cleaned up, the next one finds all.
            () = self.inner.crash.cancelled() => {}
            result = life => if result.is_err() {
                error!(session.id = %self.slot.placement.session, "a session's actor panicked");
                let end = End::new(EndReason::SandboxFailed, "a defect of the worker ended the session");
                self.finish(end, None, None).await;
            },
        }
    }

    async fn live(&self, origin: Origin) {
        let started = match origin {
            Origin::Placed { predecessor } => {
                if let Some(predecessor) = predecessor {
                    predecessor.cancelled().await;
                }
                self.start().await
            }
            Origin::Adopted(running) => self.take_up(running).await,
        };
        match started {
            Started::Live(live) => {
                let (running, mut events) = *live;
                let end = self.serve(&running, &mut events).await;
                self.finish(end, Some((running, events)), None).await;
            }
            Started::Failed(end, late) => self.finish(end, None, late).await,
            Started::Refused(message) => {
                let report = v1::SessionReport {
                    refused: true,
                    ..self.slot.end_report(&End::new(EndReason::NoPlace, message))
                };
                // Told first: another worker can take it while this one tidies up.
                let session = self.slot.placement.session;
                self.inner.outbox.session(session, report);
                launch::remove_dirs(&self.inner.workspaces, session).await;
                self.inner.over(&self.slot, None);
            }
        }
    }

    // ---- start --------------------------------------------------------------------

    async fn start(&self) -> Started {
        let placement = &self.slot.placement;
        let begun = Instant::now();
        let deadline = begun + placement.start_timeout;
        match tokio::time::timeout_at(deadline, self.backend.can_serve(&placement.template)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Started::Refused(error.to_string()),
            Err(_) => return Started::Refused(format!("the {} backend does not answer", self.slot.backend)),
        }
        let made = self.inner.workspaces.create(placement.session);
        let dirs = match tokio::time::timeout_at(deadline, made).await {
            Ok(Ok(dirs)) => dirs,
            Ok(Err(error)) => return Started::Refused(format!("the workspace could not be made: {error}")),
            Err(_) => return Started::Refused("the workspace could not be made in time".to_owned()),
        };
        let meta = Meta::new(placement, self.slot.backend, false);
        if let Err(error) = record::write_meta(&dirs, &meta) {
            return Started::Refused(format!("the session's record could not be written: {error}"));
        }
        let start = Launch {
            backend: self.backend.clone(),
            workspaces: self.inner.workspaces.clone(),
            session: placement.session,
            template: placement.template.clone(),
            limits: placement.limits,
            dirs: dirs.clone(),
        };
        let running = match start.start(deadline).await {
            Ok(running) => running,
            Err(failed) => return Started::Failed(failure(&failed.error), failed.late),
        };
        self.slot.set_identity(running.identity.clone());
        if let Err(error) = record::write_identity(&dirs, &running.identity) {
            return Started::Failed(
                failure(&Error::internal(format!("the session's record: {error}"))),
                None,
            );
        }
        let answer = tokio::select! {
            biased;
            end = self.slot.end_wanted() => return Started::Failed(end, None),
            answer = await_agent(&running, &dirs, || self.configuration(), deadline) => answer,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Started::Failed(failure(&error), None),
        };
        let started = self.watch(running).await;
        if matches!(started, Started::Live(..)) {
            info!(session.id = %placement.session, epoch = placement.epoch.0, backend = %self.slot.backend,
                took_ms = begun.elapsed().as_millis() as u64, protections = ?answer.protections, "session ready");
            self.slot.enter(&self.inner.outbox, SessionState::Ready, "");
        }
        started
    }

    /// Takes up a session that an earlier process of this worker started.
    async fn take_up(&self, running: Running) -> Started {
        let placement = &self.slot.placement;
        let dirs = self.inner.workspaces.dirs(placement.session);
        self.slot.set_identity(running.identity.clone());
        let deadline = Instant::now() + placement.start_timeout;
        if let Err(error) = await_agent(&running, &dirs, || self.configuration(), deadline).await {
            return Started::Failed(failure(&error), None);
        }
        let started = self.watch(running).await;
        if let Started::Live(live) = &started {
            let (running, _) = &**live;
            info!(session.id = %placement.session, epoch = placement.epoch.0, "session taken up again");
            self.catch_up(running, true).await;
            let state =
                if self.initial.paused { self.still_paused(running).await } else { SessionState::Ready };
            self.slot.enter(&self.inner.outbox, state, "");
        }
        started
    }

    /// A session that was paused when its worker went is paused again, before anyone can use it.
    async fn still_paused(&self, running: &Running) -> SessionState {
        let mut agent = AgentServiceClient::new(running.agent.clone());
        let freeze = agent.freeze(v1::FreezeRequest { frozen: true });
        match tokio::time::timeout(CALL_TIMEOUT, freeze).await {
            Ok(Ok(_)) => SessionState::Paused,
            // `apply` tries once more, and tells.
            Ok(Err(_)) | Err(_) => SessionState::Ready,
        }
    }

    /// The last step of a start. Nobody calls the agent before it is watched.
    async fn watch(&self, running: Running) -> Started {
        match Events::open(running.agent.clone()).await {
            Ok(events) => {
                self.slot.set_agent(Some(running.agent.clone()));
                self.slot.touch();
                Started::Live(Box::new((running, events)))
            }
            Err(error) => {
                let message = format!("the agent could not be watched: {error}");
                Started::Failed(End::new(EndReason::SandboxFailed, message), None)
            }
        }
    }

    /// Reports tasks that ended while nobody watched: those that were known to run, or all.
    async fn catch_up(&self, running: &Running, all: bool) {
        let mut tasks = TaskServiceClient::new(running.agent.clone());
        let session_id = self.slot.placement.session.to_string();
        let request = v1::ListTasksRequest { session_id, page_size: TASKS_LOOKED_AT, ..Default::default() };
        let listed = match tokio::time::timeout(CALL_TIMEOUT, tasks.list_tasks(request)).await {
            Ok(Ok(listed)) => listed.into_inner().tasks,
            Ok(Err(status)) => return warn!(status = status.message(), "the agent's tasks can't be listed"),
            Err(_) => return warn!("the agent did not list its tasks in time"),
        };
        for task in listed.into_iter().filter(|task| task.end.is_some()) {
            if all || self.slot.runs(&task.id) {
                self.slot.task(&self.inner.outbox, task);
            }
        }
    }

    /// What the agent is to know, with the time that is left now.
    fn configuration(&self) -> v1::ConfigureRequest {
        let placement = &self.slot.placement;
        let desired = self.slot.desired.borrow().clone();
        v1::ConfigureRequest {
            session_id: placement.session.to_string(),
            epoch: placement.epoch.0,
            env: placement.env.clone().into_iter().collect(),
            task_defaults: Some(placement.task_defaults.into()),
            ttl_left: desired
                .expires
                .map(|at| convert::duration_out(at.saturating_duration_since(Instant::now()))),
            idle_timeout: desired.idle_timeout.map(convert::duration_out),
        }
    }

    // ---- serve --------------------------------------------------------------------

    /// Serves the session until something ends it, and says what.
    async fn serve(&self, running: &Running, events: &mut Events) -> End {
        let dirs = self.inner.workspaces.dirs(self.slot.placement.session);
        let mut desired = self.slot.desired.subscribe();
        // What was wanted while the sandbox started is looked at too.
        desired.mark_changed();
        let paused = self.slot.state() == SessionState::Paused;
        let mut told = Told { paused, desired: self.initial.clone() };
        loop {
            let (at, idle) = self.backstop();
            tokio::select! {
                biased;
                end = self.slot.end_wanted() => return end,
                () = running.gone.cancelled() => {
                    return End::new(EndReason::SandboxFailed, with_log("the sandbox died", &dirs).await);
                }
                next = events.next() => match next {
                    Some(Heard::Event(event)) => match *event {
                        Event::Started(task) | Event::Ended(task) => self.slot.task(&self.inner.outbox, task),
                        Event::Expired(expired) => return self.expired(expired.idle),
                    },
                    Some(Heard::Gap) => tokio::select! {
                        biased;
                        end = self.slot.end_wanted() => return end,
                        () = self.catch_up(running, false) => {}
                    },
                    None => {
                        let message = with_log("the agent does not answer any more", &dirs).await;
                        return End::new(EndReason::SandboxFailed, message);
                    }
                },
                Ok(()) = desired.changed() => {
                    let wanted = desired.borrow_and_update().clone();
                    tokio::select! {
                        biased;
                        end = self.slot.end_wanted() => return end,
                        () = self.apply(running, wanted, &mut told) => {}
                    }
                }
                () = sleep_until(at) => {
                    // An idle session may have been busy since this was computed: the loop looks again.
                    let (again, _) = self.backstop();
                    if again.is_some_and(|again| again <= Instant::now()) {
                        warn!(session.id = %self.slot.placement.session, "the agent missed its deadline");
                        return self.expired(idle);
                    }
                }
            }
        }
    }

    /// When the worker acts if the agent did not, and whether that is for idleness.
    fn backstop(&self) -> (Option<Instant>, bool) {
        let desired = self.slot.desired.borrow();
        let ttl = desired.expires.map(|at| at + BACKSTOP);
        let idle = desired.idle_timeout.map(|idle| self.slot.idle_check(idle + BACKSTOP));
        match (ttl, idle) {
            (Some(ttl), Some(idle)) if idle < ttl => (Some(idle), true),
            (None, Some(idle)) => (Some(idle), true),
            (ttl, _) => (ttl, false),
        }
    }

    fn expired(&self, idle: bool) -> End {
        if idle {
            End::new(EndReason::Idle, "nothing happened in the session for its idle timeout")
        } else {
            End::new(EndReason::TtlExpired, "the session's time to live is over")
        }
    }

    /// Brings what is seen to what is wanted.
    async fn apply(&self, running: &Running, mut wanted: Desired, told: &mut Told) {
        let mut agent = AgentServiceClient::new(running.agent.clone());
        if wanted.paused != told.paused {
            let freeze = agent.freeze(v1::FreezeRequest { frozen: wanted.paused });
            let (state, message) = match tokio::time::timeout(CALL_TIMEOUT, freeze).await {
                Ok(Ok(_)) => {
                    told.paused = wanted.paused;
                    (wanted.paused, String::new())
                }
                Ok(Err(status)) => (told.paused, format!("could not be done: {}", status.message())),
                Err(_) => (told.paused, "the agent did not answer".to_owned()),
            };
            if !message.is_empty() {
                warn!(session.id = %self.slot.placement.session, message, "pause or resume failed");
                // The wish is dropped, not repeated: the caller was told, and may ask again.
                self.slot.desired.send_if_modified(|desired| {
                    desired.paused = told.paused;
                    false
                });
                wanted.paused = told.paused;
            }
            self.slot.touch();
            let state = if state { SessionState::Paused } else { SessionState::Ready };
            self.slot.enter(&self.inner.outbox, state, &message);
        }
        let before = &told.desired;
        let changed = before.expires != wanted.expires || before.idle_timeout != wanted.idle_timeout;
        let unrecorded = changed || before.paused != wanted.paused;
        if changed {
            let configure = agent.configure(self.configuration());
            match tokio::time::timeout(CALL_TIMEOUT, configure).await {
                Ok(Ok(_)) => {}
                // The worker's own deadline holds the new time, if later than the agent's.
                Ok(Err(status)) => warn!(status = status.message(), "the agent refused its new deadlines"),
                Err(_) => warn!("the agent did not take its new deadlines in time"),
            }
        }
        if unrecorded {
            self.write_meta(&wanted).await;
        }
        told.desired = wanted;
    }

    async fn write_meta(&self, wanted: &Desired) {
        let mut placement = self.slot.placement.clone();
        placement.expires_at = wanted.expires_at;
        placement.idle_timeout = wanted.idle_timeout;
        let meta = Meta::new(&placement, self.slot.backend, wanted.paused);
        let dirs = self.inner.workspaces.dirs(placement.session);
        if let Err(error) = blocking(move || record::write_meta(&dirs, &meta)).await {
            warn!(session.id = %placement.session, %error, "the session's record could not be written");
        }
    }

    // ---- finish -------------------------------------------------------------------

    /// Ends what runs, removes what is there, and says so.
    async fn finish(&self, end: End, live: Option<(Running, Events)>, late: Option<JoinHandle<()>>) {
        let session = self.slot.placement.session;
        info!(session.id = %session, epoch = self.slot.placement.epoch.0, reason = ?end.reason, message = end.message,
            "session ends");
        self.slot.set_agent(None);
        self.slot.ending(&self.inner.outbox, &end);
        if let Some((running, mut events)) = live {
            self.farewell(&running, &mut events).await;
        }
        let outcome = match end.reason {
            EndReason::SandboxFailed => Outcome::SandboxFailed,
            _ => Outcome::SessionEnded,
        };
        let identity = self.slot.identity();
        let mut report = Some(self.slot.end_report(&end));
        if let Some(late) = late {
            // The coordinator need not wait for a start that may never return; the place is kept for it.
            if let Some(report) = report.take() {
                self.inner.outbox.session(session, report);
            }
            let _ = late.await;
        }
        take_down(&*self.backend, &self.inner.workspaces, session, identity.as_ref()).await;
        // Only now are their processes surely dead.
        for task in self.slot.orphans() {
            self.slot.task(&self.inner.outbox, ended(task, outcome));
        }
        self.inner.over(&self.slot, report);
        debug!(session.id = %session, "nothing of the session is left");
    }

    /// Lets the agent end its tasks, and hears their outcomes.
    async fn farewell(&self, running: &Running, events: &mut Events) {
        if running.gone.is_cancelled() {
            return;
        }
        let grace = self.inner.settings.end_grace;
        let each = |event| {
            if let Event::Started(task) | Event::Ended(task) = event {
                self.slot.task(&self.inner.outbox, task);
            }
        };
        let ended = async {
            let (down, ()) = tokio::join!(
                shut_down(running.agent.clone(), grace),
                // Its stream ends with the agent.
                async {
                    let _ = tokio::time::timeout(grace + CALL_TIMEOUT, events.rest(each)).await;
                }
            );
            down
        };
        tokio::select! {
            down = ended => {
                if !down {
                    debug!(session.id = %self.slot.placement.session, "the agent did not end by itself");
                }
                return;
            }
            () = running.gone.cancelled() => {}
        }
        // What it said before it went may still be on its way.
        let _ = tokio::time::timeout(LAST_WORDS, events.rest(each)).await;
    }
}

/// What the agent was told last.
struct Told {
    paused: bool,
    desired: Desired,
}

fn failure(error: &Error) -> End {
    End::new(EndReason::SandboxFailed, error.to_string())
}

/// The task as it ends when nobody else says how.
fn ended(mut task: v1::Task, outcome: Outcome) -> v1::Task {
    let now = std::time::SystemTime::now();
    let began = task.started_at.and_then(|at| std::time::SystemTime::try_from(at).ok());
    let duration = began.and_then(|began| now.duration_since(began).ok()).unwrap_or_default();
    task.state = v1::TaskState::Done.into();
    task.end = Some(v1::TaskEnd {
        outcome: Some(outcome.into()),
        message: "the session ended while the task ran".to_owned(),
        ended_at: Some(convert::time_out(now)),
        duration: Some(convert::duration_out(duration)),
        usage: None,
    });
    task
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
