//! The first step: from a placement, or from what an earlier process left, to a session that is served.

use berth_checkpoint::Digest;
use berth_proto::{
    Code, Error, Reason, convert,
    domain::{EndReason, Placement, RestoreFrom, SessionState},
    v1::{self, agent_service_client::AgentServiceClient, task_service_client::TaskServiceClient},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Actor, CALL_TIMEOUT, Started, TASKS_LOOKED_AT, fence};
use crate::{
    checkpoint,
    metrics::Start,
    sandbox::{Running, SessionDirs},
    sessions::{
        events::Events,
        launch::{Launch, await_agent},
        record::{self, Meta},
        slot::End,
    },
};

impl Actor {
    pub(super) async fn start(&self) -> Started {
        let placement = &self.slot.placement;
        let begun = Instant::now();
        let deadline = begun + placement.start_timeout;
        match tokio::time::timeout_at(deadline, self.backend.can_serve(&placement.template)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Started::Refused(error.to_string()),
            Err(_) => return Started::Refused(format!("the {} backend does not answer", self.slot.backend)),
        }
        let made = self.inner.workspaces.create(placement.session, placement.limits.disk_bytes);
        let dirs = match tokio::time::timeout_at(deadline, made).await {
            Ok(Ok(dirs)) => {
                self.slot.set_allocated();
                dirs
            }
            Ok(Err(error)) => return Started::Refused(format!("the workspace could not be made: {error}")),
            Err(_) => return Started::Refused("the workspace could not be made in time".to_owned()),
        };
        let meta = Meta::new(&self.slot.as_of_now(), self.slot.backend, false);
        if let Err(error) = record::write_meta(&dirs, &meta) {
            return Started::Refused(format!("the session's record could not be written: {error}"));
        }
        if let Err(error) = self.inner.settings.exits.prepare(&dirs) {
            warn!(%error, "the worker's certificates could not be copied for a session");
        }
        let start = Launch {
            backend: self.backend.clone(),
            workspaces: self.inner.workspaces.clone(),
            session: placement.session,
            template: placement.template.clone(),
            limits: placement.limits,
            dirs: dirs.clone(),
        };
        let launched = Instant::now();
        let started = start.start(deadline).await;
        let how = match &started {
            Ok(_) => Start::Ok,
            Err(failed) if failed.late.is_some() => Start::Late,
            Err(_) => Start::Failed,
        };
        self.metrics().sandbox(self.slot.backend, launched.elapsed(), how);
        let running = match started {
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
        // Behind the start, which gives the directory to the agent, and before any task can ask for it.
        if let Err(error) = self.attend_exit() {
            let text = format!("the session's way out could not be made: {error}");
            return Started::Failed(End::new(EndReason::SandboxFailed, text), None);
        }
        let answer = tokio::select! {
            biased;
            end = self.slot.end_wanted() => return Started::Failed(end, None),
            answer = await_agent(&running, &dirs, || self.configuration(), deadline) => answer,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.metrics().no_agent(self.slot.backend);
                return Started::Failed(failure(&error), None);
            }
        };
        if let Some(from) = placement.restore.clone() {
            let restoring = tokio::time::timeout_at(deadline, self.restore(&running, &dirs, &from));
            let restored = tokio::select! {
                biased;
                end = self.slot.end_wanted() => return Started::Failed(end, None),
                restored = restoring => restored,
            };
            let late = || Error::new(Code::DeadlineExceeded, Reason::StartTimeout, "its time was up");
            if let Err(error) = restored.unwrap_or_else(|_| Err(late())) {
                let text = format!(
                    "its files could not be restored from checkpoint {}: {}",
                    from.checkpoint,
                    error.message()
                );
                return Started::Failed(End::new(EndReason::SandboxFailed, text), None);
            }
        }
        let started = self.watch(running).await;
        if matches!(started, Started::Live(..)) {
            info!(session.id = %placement.session, epoch = placement.epoch.0, backend = %self.slot.backend,
                took_ms = begun.elapsed().as_millis() as u64, protections = ?answer.protections, "session ready");
            self.slot.enter(&self.inner.outbox, SessionState::Ready, "");
        }
        started
    }

    /// Makes the session's files and finished tasks what they were. Nobody has seen it yet.
    async fn restore(&self, running: &Running, dirs: &SessionDirs, from: &RestoreFrom) -> Result<(), Error> {
        let blobs = self.inner.settings.checkpoints.connect()?;
        let begun = Instant::now();
        let made = checkpoint::restore(running.agent.clone(), blobs, Digest(from.root)).await;
        self.metrics().restored(begun.elapsed(), made.as_ref().ok().map(|made| made.bytes));
        let made = made?;
        info!(session.id = %self.slot.placement.session, checkpoint.id = from.checkpoint, entries = made.entries,
            bytes = made.bytes, tasks = made.tasks, "restored from a checkpoint");
        let whole = Placement { restore: None, ..self.slot.as_of_now() };
        let meta = Meta::new(&whole, self.slot.backend, false);
        record::write_meta(dirs, &meta).map_err(|error| Error::internal("the session's record").cause(error))
    }

    /// Takes up a session that an earlier process of this worker started.
    pub(super) async fn take_up(&self, running: Running) -> Started {
        let placement = &self.slot.placement;
        let dirs = self.inner.workspaces.dirs(placement.session);
        self.slot.set_identity(running.identity.clone());
        let deadline = Instant::now() + placement.start_timeout;
        if let Err(error) = self.attend_exit() {
            warn!(session.id = %placement.session, %error, "the session's way out could not be made");
        }
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
    pub(super) async fn catch_up(&self, running: &Running, all: bool) {
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
    pub(super) fn configuration(&self) -> v1::ConfigureRequest {
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
            door: (!desired.egress.is_none())
                .then(|| v1::Door { env: self.inner.settings.exits.env(&desired.egress) }),
            // Of one that was taken up nothing is known yet: the fence that its agent has stands.
            fence: self.inner.lease.borrow().filter(|_| placement.fenced).map(fence),
        }
    }
}

fn failure(error: &Error) -> End {
    End::new(EndReason::SandboxFailed, error.to_string())
}
