//! The second step: serving a session until something ends it.

use std::time::Duration;

use berth_proto::{
    domain::{EndReason, SessionState},
    v1::{self, agent_event::Event, agent_service_client::AgentServiceClient},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Actor, BACKSTOP, CALL_TIMEOUT, fence};
use crate::{
    sandbox::Running,
    sessions::{
        events::{Events, Heard},
        launch::with_log,
        record::{self, Meta},
        slot::{Desired, End},
    },
    workspace::blocking,
};

/// The next heartbeat renews again.
const RENEW_TIMEOUT: Duration = Duration::from_secs(2);

impl Actor {
    /// Serves the session until something ends it, and says what.
    pub(super) async fn serve(&self, running: &Running, events: &mut Events) -> End {
        let dirs = self.inner.workspaces.dirs(self.slot.placement.session);
        let mut desired = self.slot.desired.subscribe();
        // What was wanted while the sandbox started is looked at too.
        desired.mark_changed();
        let paused = self.slot.state() == SessionState::Paused;
        let mut told = Told { paused, desired: self.initial.clone() };
        let mut lease = self.inner.lease.subscribe();
        lease.mark_changed();
        loop {
            let (at, idle) = self.backstop();
            tokio::select! {
                biased;
                end = self.slot.end_wanted() => return end,
                () = running.gone.cancelled() => {
                    self.metrics().died(self.slot.backend);
                    return End::new(EndReason::SandboxFailed, with_log("the sandbox died", &dirs).await);
                }
                next = events.next() => match next {
                    Some(Heard::Event(event)) => match *event {
                        Event::Started(task) | Event::Ended(task) => self.slot.task(&self.inner.outbox, task),
                        Event::Executing(executing) => self.slot.executing(executing.busy),
                        Event::Expired(expired) => return self.expired(expired.idle),
                    },
                    Some(Heard::Gap) => tokio::select! {
                        biased;
                        end = self.slot.end_wanted() => return end,
                        () = self.catch_up(running, false) => {}
                    },
                    None => {
                        self.metrics().died(self.slot.backend);
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
                Ok(()) = lease.changed(), if self.slot.placement.fenced => {
                    let until = *lease.borrow_and_update();
                    tokio::select! {
                        biased;
                        end = self.slot.end_wanted() => return end,
                        () = self.renew(running, until) => {}
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

    /// Puts the agent's fence off to the end of the lease.
    async fn renew(&self, running: &Running, until: Option<Duration>) {
        let Some(until) = until else { return };
        let request = v1::RenewRequest { epoch: self.slot.placement.epoch.0, fence: Some(fence(until)) };
        let mut agent = AgentServiceClient::new(running.agent.clone());
        match tokio::time::timeout(RENEW_TIMEOUT, agent.renew(request)).await {
            Ok(Ok(answer)) if answer.get_ref().was_fenced => {
                info!(session.id = %self.slot.placement.session, "the lease is confirmed: the session goes on");
            }
            Ok(Ok(_)) => {}
            Ok(Err(status)) => warn!(status = status.message(), "the agent refused to put its fence off"),
            Err(_) => warn!("the agent did not put its fence off in time"),
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
                warn!(session.id = %self.slot.placement.session, why = message, "pause or resume failed");
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
        let reach = before.egress != wanted.egress;
        let changed = before.expires != wanted.expires || before.idle_timeout != wanted.idle_timeout || reach;
        if reach && let Err(error) = self.attend_exit() {
            warn!(session.id = %self.slot.placement.session, %error, "the session's way out could not be made");
        }
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
        let mut placement = self.slot.as_of_now();
        // They are there.
        placement.restore = None;
        let meta = Meta::new(&placement, self.slot.backend, wanted.paused);
        let dirs = self.inner.workspaces.dirs(placement.session);
        if let Err(error) = blocking(move || record::write_meta(&dirs, &meta)).await {
            warn!(session.id = %placement.session, %error, "the session's record could not be written");
        }
    }
}

/// What the agent was told last.
struct Told {
    paused: bool,
    desired: Desired,
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
