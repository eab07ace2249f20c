//! What clients ask of a session, and what its worker reports of it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use berth_proto::{
    Epoch, SessionId, TaskId,
    convert::time_out,
    domain::{EndReason, Labels, Outcome, Preset, SessionState},
    v1,
};

use super::{
    Fleet,
    event::{Command, Effect, Ending, Refused, Report, TaskReport, Update},
    model::{Clock, Kept, Liveness, Now, Recovery, Session, Spec, Worker, name_in},
    parking::resumed,
    queue::may_restore,
    recovery::{CHECKPOINT_DAMAGED, goes_back, went_back},
};
use crate::tenant::Sight;

/// How a session's message begins when its last checkpoint by policy failed.
const CHECKPOINT_FAILED: &str = "the last checkpoint by its policy failed: ";
/// Running tasks that are remembered of one session, whatever its worker says.
const RUNNING_LIMIT: usize = 1024;

impl Fleet {
    pub(super) fn delete(
        &mut self,
        by: &Sight,
        id: SessionId,
        reason: EndReason,
        now: Now,
    ) -> Result<(), Refused> {
        self.seen(by, id)?;
        self.end_session(id, reason, "", now);
        Ok(())
    }

    pub(super) fn pause(&mut self, by: &Sight, id: SessionId, paused: bool, now: Now) -> Result<(), Refused> {
        let session = self.seen(by, id)?.clone();
        match session.state {
            // It is being resumed already, or stands as still as can be.
            SessionState::Pending | SessionState::Placed if !paused && session.comes_from_park() => {
                return Ok(());
            }
            SessionState::Parked if paused => return Ok(()),
            SessionState::Parked => return self.unpark(id, now),
            SessionState::Pending | SessionState::Placed => {
                return Err(Refused::SessionNotReady(session.state));
            }
            SessionState::Ending | SessionState::Ended => return Err(Refused::SessionEnded(session.end)),
            // Also if it seems to be so already: an earlier wish to the contrary may be on its way, or carried out and
            // not yet told.
            SessionState::Ready | SessionState::Paused => {}
        }
        let Some(worker) = session.worker.clone() else { return Err(Refused::NoSession(id)) };
        let command = Command::Pause { session: id, epoch: session.epoch, paused };
        if !self.workers.get(&worker).is_some_and(|w| w.attached()) {
            return Err(Refused::WorkerUnreachable(worker));
        }
        self.send(&worker, command);
        if !paused {
            // An attempt to park it is over with this: what it does from now on is in no checkpoint.
            let clock = Clock { resumes: true, ..session.clock.clone() };
            self.put_session(Session { parking: None, clock, ..(*session).clone() });
        }
        Ok(())
    }

    pub(super) fn update(&mut self, update: Update, now: Now) -> Result<(), Refused> {
        let id = update.session;
        let session = self.seen(&update.by, id)?.clone();
        if matches!(session.state, SessionState::Ending | SessionState::Ended) {
            return Err(Refused::SessionEnded(session.end));
        }
        self.name_is_free(&session.spec.tenant, name_in(&update.set_labels), id)?;
        let full = update.egress.as_ref().is_some_and(|egress| egress.preset == Preset::Full);
        let worker = session.worker.as_ref().filter(|_| full).and_then(|id| self.workers.get(id));
        if let Some(worker) = worker.filter(|worker| worker.known && !worker.full_egress) {
            return Err(Refused::NoFullEgress(worker.id.clone()));
        }
        let mut changed = (*session).clone();
        for name in &update.remove_labels {
            changed.labels.remove(name);
        }
        changed.labels.extend(update.set_labels);
        if let Some(ttl) = update.ttl {
            changed.expires_at = ttl.map(|ttl| now.wall + ttl);
            changed.clock.expires = ttl.map(|ttl| now.mono + ttl);
        }
        if let Some(idle) = update.idle_timeout {
            changed.idle_timeout = idle;
        }
        let told = update.ttl.is_some() || update.idle_timeout.is_some() || update.egress.is_some();
        if let Some(egress) = update.egress.filter(|egress| *egress != session.spec.egress) {
            changed.spec = Arc::new(Spec { egress, ..(*session.spec).clone() });
        }
        self.put_session(changed);
        if told {
            self.send_terms(id, now);
        }
        Ok(())
    }

    /// A checkpoint of it is kept. One of an earlier placement is older than what it went back to since.
    pub(super) fn checkpointed(&mut self, id: SessionId, epoch: Epoch, kept: Kept) -> Result<(), Refused> {
        let session = self.sessions.get(&id).ok_or(Refused::NoSession(id))?;
        // What a session was parked with is what it is resumed from: nothing has happened in it since.
        let over =
            matches!(session.state, SessionState::Ending | SessionState::Ended) || session.comes_from_park();
        // Those of a session are taken one after the other, and told of in that order: their times say less, since the
        // wall clock may have been put back.
        if over || session.epoch != epoch {
            return Ok(());
        }
        let mut changed = Session { checkpoint: Some(kept), ..(**session).clone() };
        let told =
            [CHECKPOINT_FAILED, CHECKPOINT_DAMAGED].iter().any(|words| changed.message.starts_with(words));
        if told || went_back(session).is_some_and(|words| words == changed.message) {
            changed.message.clear();
        }
        self.put_session(changed);
        Ok(())
    }

    /// What its policy asked for could not be done: that is told where the session is looked at.
    pub(super) fn checkpoint_failed(
        &mut self,
        id: SessionId,
        epoch: Epoch,
        why: &str,
    ) -> Result<(), Refused> {
        let session = self.sessions.get(&id).ok_or(Refused::NoSession(id))?;
        let up = matches!(session.state, SessionState::Ready | SessionState::Paused);
        let message = format!("{CHECKPOINT_FAILED}{why}");
        if up && session.epoch == epoch && session.message != message {
            self.put_session(Session { message, ..(**session).clone() });
        }
        Ok(())
    }

    /// Tells the worker a session's TTL, idle timeout and egress as they are now.
    pub(super) fn send_terms(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id).filter(|s| s.holds_place()) else { return };
        let Some(worker) = session.worker.clone() else { return };
        let command = Command::Update {
            session: id,
            epoch: session.epoch,
            expires_at: session.expires_at,
            expires_in: session.clock.expires.map(|at| at.saturating_sub(now.mono)),
            idle_timeout: session.idle_timeout,
            egress: session.spec.egress.clone(),
        };
        self.send(&worker, command);
    }

    /// Begins to end a session; one without a place has ended at once. Idempotent.
    pub(super) fn end_session(&mut self, id: SessionId, reason: EndReason, message: &str, now: Now) {
        let Some(session) = self.sessions.get(&id).cloned() else { return };
        match session.state {
            SessionState::Pending => self.finish(id, reason, message, now),
            SessionState::Parked if session.worker.is_none() => {
                let message = if message.is_empty() { "it was parked" } else { message };
                self.finish(id, reason, message, now);
            }
            SessionState::Placed | SessionState::Ready | SessionState::Paused | SessionState::Parked => {
                self.put_session(Session {
                    state: SessionState::Ending,
                    end: Some(reason),
                    message: message.to_owned(),
                    clock: Clock {
                        ending_check: now.mono + self.config.ending_check,
                        ..session.clock.clone()
                    },
                    ..(*session).clone()
                });
                self.tell_end(&session, reason);
                // A dead worker can't say that it is done. Should it come back, its hello is
                // answered with the end.
                let dead = |w: &Arc<Worker>| w.liveness == Liveness::Dead;
                if session.worker.as_ref().and_then(|id| self.workers.get(id)).is_none_or(dead) {
                    self.finish(id, reason, message, now);
                }
            }
            SessionState::Ending | SessionState::Ended => {}
        }
    }

    pub(super) fn tell_end(&mut self, session: &Session, reason: EndReason) {
        if let Some(worker) = &session.worker {
            let ending = Ending { session: session.id, epoch: session.epoch, reason };
            self.send(&worker.clone(), Command::End(ending));
        }
    }

    /// The session is over. A reason that it was being ended for stands.
    pub(super) fn finish(&mut self, id: SessionId, reason: EndReason, message: &str, now: Now) {
        let Some(session) = self.sessions.get(&id).filter(|s| s.state != SessionState::Ended).cloned() else {
            return;
        };
        let reason = session.end.unwrap_or(reason);
        tracing::info!(session.id = %id, epoch = %session.epoch, ?reason, why = message, "session ended");
        let spec = Spec { env: Labels::new(), ..(*session.spec).clone() };
        self.finish_tasks(id, reason, now.wall);
        self.put_session(Session {
            state: SessionState::Ended,
            end: Some(reason),
            message: if message.is_empty() { session.message.clone() } else { message.to_owned() },
            ended_at: Some(now.wall),
            spec: Arc::new(spec),
            ..(*session).clone()
        });
    }

    /// Tasks that ran when the session ended have an outcome too.
    pub(super) fn finish_tasks(&mut self, id: SessionId, reason: EndReason, at: SystemTime) {
        let outcome = match reason {
            EndReason::WorkerLost => Outcome::WorkerLost,
            EndReason::SandboxFailed => Outcome::SandboxFailed,
            _ => Outcome::SessionEnded,
        };
        for (task, running) in self.tasks.get(&id).cloned().unwrap_or_default() {
            let mut summary = (*running).clone();
            summary.state = v1::TaskState::Done.into();
            summary.end = Some(v1::TaskEnd {
                outcome: Some(outcome.into()),
                ended_at: Some(time_out(at)),
                ..Default::default()
            });
            let summary = Arc::new(summary);
            self.out.push(Effect::ConcludeTask { session: id, task, summary: summary.clone() });
            self.out.push(Effect::TaskChanged(summary));
        }
    }

    // ---- reports of workers --------------------------------------------------

    pub(super) fn report(&mut self, report: Report, now: Now) {
        let Some(worker) = self.linked(&report.worker, report.link) else { return };
        if report.state == SessionState::Ended
            && self.unsure(worker, now).contains(&(report.session, report.epoch))
        {
            // Told to end what it never held, it says that this is done. Of what the other one of its id holds that
            // says nothing.
            return;
        }
        let current = self.sessions.get(&report.session).filter(|s| {
            s.holds_place() && s.worker.as_ref() == Some(&report.worker) && s.epoch == report.epoch
        });
        let Some(session) = current.cloned() else {
            return self.stale_report(&report);
        };
        if report.refused {
            return self.refused(&session, &report, now);
        }
        match report.state {
            SessionState::Ready => self.is_up(&session, SessionState::Ready, &report.backend, now),
            SessionState::Paused => self.is_up(&session, SessionState::Paused, &report.backend, now),
            // On its way elsewhere: it goes when it has ended there.
            SessionState::Ending if moving(&session, &report) => {}
            // As it was told to: it is parked already.
            SessionState::Ending if session.state == SessionState::Parked => {}
            // It goes on elsewhere, or is parked again, when it has ended there.
            SessionState::Ending if goes_back(&session) || session.comes_from_park() => {}
            SessionState::Ending if session.state != SessionState::Ending => {
                self.put_session(Session {
                    state: SessionState::Ending,
                    end: report.reason.or(Some(EndReason::SandboxFailed)),
                    message: report.message,
                    clock: Clock {
                        ending_check: now.mono + self.config.ending_check,
                        ..session.clock.clone()
                    },
                    ..(*session).clone()
                });
            }
            SessionState::Ended => self.reported_end(&session, &report, now),
            SessionState::Pending | SessionState::Placed | SessionState::Parked | SessionState::Ending => {}
        }
    }

    fn reported_end(&mut self, session: &Session, report: &Report, now: Now) {
        let late = now.mono >= session.clock.placed_at.saturating_add(self.start_timeout(session));
        if session.state == SessionState::Placed && late {
            self.put_session(Session { start_timed_out: true, ..session.clone() });
        }
        if session.state == SessionState::Placed && report.reason == Some(EndReason::Drained) {
            // Its worker stops. It was never ready: its client still waits.
            return self.unplace(session, &format!("worker {} stops", report.worker), now);
        }
        if moving(session, report) {
            return self.lose(session, &format!("worker {} is drained", report.worker), now);
        }
        if session.state == SessionState::Parked {
            return self.parked_end(session, report, now);
        }
        if self.tries_older(session, report, now) {
            return;
        }
        let reason = report.reason.unwrap_or(EndReason::SandboxFailed);
        if session.comes_from_park() && reason == EndReason::SandboxFailed {
            return self.park_again(session.id, reason, &report.message);
        }
        self.finish(session.id, reason, &report.message, now);
    }

    /// Its worker says that the session runs, or is paused.
    pub(super) fn is_up(&mut self, session: &Session, state: SessionState, backend: &str, now: Now) {
        if matches!(session.state, SessionState::Ending | SessionState::Parked) {
            return;
        }
        // Why it is paused still, or what a resume has cost it, is for whoever looks at it next.
        let same = session.state == state && state == SessionState::Paused;
        let words = || resumed(session).or_else(|| went_back(session)).unwrap_or_default();
        let message = if same { session.message.clone() } else { words() };
        let recovered = session.recovered.clone().map(|recovery| Recovery { under_way: false, ..recovery });
        let paused = state == SessionState::Paused;
        self.put_session(Session {
            state,
            ready_at: session.ready_at.or(Some(now.wall)),
            message,
            recovered,
            paused_at: session.paused_at.filter(|_| same).or(paused.then_some(now.wall)),
            parking: session.parking.filter(|_| same),
            clock: Clock { resumes: false, ..session.clock.clone() },
            backend: if backend.is_empty() { session.backend.clone() } else { backend.to_owned() },
            ..session.clone()
        });
    }

    /// A report on something that is no longer so: its sender shall end what it holds.
    fn stale_report(&mut self, report: &Report) {
        self.tally.stale_reports += 1;
        tracing::debug!(session.id = %report.session, worker.id = %report.worker, epoch = %report.epoch,
            state = ?report.state, "a stale report was ignored");
        if report.state == SessionState::Ended || report.refused {
            return;
        }
        let reason = self.sessions.get(&report.session).and_then(|s| s.end).unwrap_or(EndReason::Deleted);
        let ending = Ending { session: report.session, epoch: report.epoch, reason };
        self.send(&report.worker, Command::End(ending));
    }

    /// The worker has the last word on its capacity: somewhere else, then.
    fn refused(&mut self, session: &Session, report: &Report, now: Now) {
        self.tally.refused += 1;
        match session.state {
            SessionState::Placed => {}
            // It was to end anyway, and was never there.
            SessionState::Ending => return self.finish(session.id, EndReason::Deleted, "", now),
            _ => return,
        }
        tracing::info!(session.id = %session.id, worker.id = %report.worker, why = report.message, "refused");
        let mut session = session.clone();
        session.clock.refused.retain(|_, until| *until > now.mono);
        session.clock.refused.insert(report.worker.clone(), now.mono + self.config.refusal_cooldown);
        // A refusal doesn't lengthen the wait.
        let wait_until = session.clock.wait_until;
        self.back_to_queue(
            &session,
            &format!("{} refused it ({})", report.worker, report.message),
            wait_until,
            now,
        );
    }

    pub(super) fn task_report(&mut self, report: TaskReport) {
        let current = self.linked(&report.worker, report.link).is_some()
            && self.sessions.get(&report.session).is_some_and(|s| {
                s.holds_place() && s.worker.as_ref() == Some(&report.worker) && s.epoch == report.epoch
            });
        if !current {
            return;
        }
        if report.done {
            return self.task_ended(report.session, report.task, report.summary);
        }
        let running: &mut BTreeMap<_, _> = self.tasks.entry(report.session).or_default();
        if running.len() < RUNNING_LIMIT {
            running.insert(report.task, report.summary.clone());
        }
        self.out.push(Effect::TaskChanged(report.summary));
    }

    /// A client has been told.
    pub(super) fn task_told(
        &mut self,
        session: SessionId,
        epoch: Epoch,
        task: TaskId,
        summary: Arc<v1::Task>,
    ) {
        let current = self.sessions.get(&session).is_some_and(|s| s.holds_place() && s.epoch == epoch);
        // Its worker was faster.
        let running = self.tasks.get(&session).is_some_and(|running| running.contains_key(&task));
        if !current || !running {
            return;
        }
        self.task_ended(session, task, summary);
    }

    fn task_ended(&mut self, session: SessionId, task: TaskId, summary: Arc<v1::Task>) {
        if let Some(running) = self.tasks.get_mut(&session) {
            running.remove(&task);
            if running.is_empty() {
                self.tasks.remove(&session);
            }
        }
        self.out.push(Effect::SaveTask { session, task, summary: summary.clone() });
        self.out.push(Effect::TaskChanged(summary));
    }

    /// Tasks that run now, as far as we were told.
    pub fn running_tasks(&self) -> usize {
        self.tasks.values().map(BTreeMap::len).sum()
    }
}

/// Whether its worker ended it so that it can go on elsewhere.
fn moving(session: &Session, report: &Report) -> bool {
    report.reason == Some(EndReason::Drained) && may_restore(session)
}
