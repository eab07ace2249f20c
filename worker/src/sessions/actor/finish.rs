//! The last step, whatever way the others ended: nothing of the session is left, and it is told how it ended.

use berth_proto::{
    convert,
    domain::{EndReason, Outcome},
    v1::{self, agent_event::Event},
};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use super::{Actor, CALL_TIMEOUT, LAST_WORDS};
use crate::{
    sandbox::Running,
    sessions::{
        events::Events,
        launch::{shut_down, take_down},
        slot::End,
    },
};

impl Actor {
    /// Ends what runs, removes what is there, and says so: for whoever asked for it.
    pub(super) async fn finish(
        &self,
        end: End,
        live: Option<(Running, Events)>,
        late: Option<JoinHandle<()>>,
    ) {
        match end.request {
            Some(request) => request.scope(self.end(end, live, late)).await,
            None => self.end(end, live, late).await,
        }
    }

    async fn end(&self, end: End, live: Option<(Running, Events)>, late: Option<JoinHandle<()>>) {
        let session = self.slot.placement.session;
        info!(session.id = %session, epoch = self.slot.placement.epoch.0, reason = ?end.reason, why = end.message,
            "session ends");
        self.metrics().ended(end.reason);
        self.slot.set_agent(None);
        self.close_exit();
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

/// The task as it ends when nobody else says how.
fn ended(mut task: v1::Task, outcome: Outcome) -> v1::Task {
    let now = berth_proto::world::now();
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
