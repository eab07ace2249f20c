//! Workers: how they attach, live, are cordoned and drained, and get lost.
//!
//! A hello is the worker's truth about what it holds. It is compared with our record,
//! session by session, and both sides come out agreeing: what we no longer want there it is
//! told to end; what it no longer has we place anew (never ready: nobody has seen it) or
//! call lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_proto::{
    Epoch, Incarnation, SessionId, WorkerId,
    domain::{BackendChoice, EndReason, SessionState},
};

use super::{
    Fleet,
    event::{CloseReason, Command, Effect, Ending, Heartbeat, Hello, Refused, Running},
    left,
    model::{LinkId, Liveness, Now, Scheduling, Session, Worker},
    queue::may_restore,
};

impl Fleet {
    pub(super) fn hello(&mut self, hello: Hello, now: Now) -> Result<(), Refused> {
        let old = self.workers.get(&hello.worker).cloned();
        let incarnation = self.admit(old.as_deref(), &hello).inspect_err(|_| self.tally.stale_hellos += 1)?;
        self.tally.attached += 1;
        if let Some(older) = old.as_ref().and_then(|w| w.link).filter(|link| *link != hello.link) {
            let same = old.as_ref().is_some_and(|w| w.incarnation == incarnation);
            let why = if same { CloseReason::Replaced } else { CloseReason::Superseded };
            self.out.push(Effect::Close { link: older, why });
        }
        if self.index.alive == 0 {
            self.blackout_over = now.mono;
        }
        let scheduling = old.as_ref().map_or(Scheduling::Active, |w| w.scheduling);
        tracing::info!(worker.id = %hello.worker, %incarnation, sessions = hello.running.len(), "worker attached");
        self.put_worker(Worker {
            id: hello.worker.clone(),
            incarnation,
            scheduling,
            stopping: self.stop_of(old.as_deref(), incarnation, hello.stopping_within, now),
            liveness: Liveness::Alive,
            process: hello.process,
            version: hello.version,
            capacity: hello.capacity,
            known: true,
            labels: hello.labels,
            templates: hello.templates,
            template_problems: hello.template_problems,
            full_egress: hello.full_egress,
            backends: hello.backends,
            health: hello.health,
            attached_at: Some(now.wall),
            heartbeat_at: Some(now.wall),
            link: Some(hello.link),
            lease_until: now.mono + self.config.lease,
            down_since: now.mono,
            drain_at: old.as_ref().and_then(|w| w.drain_at),
            missing: Vec::new(),
            missing_until: self.missing_until(old.as_deref(), &hello.instance),
            instance: hello.instance,
        });
        // The welcome must be the first that goes over the link, with what reconciling finds.
        let others = std::mem::take(&mut self.out);
        let end = self.reconcile(&hello.worker, hello.running, now);
        let after = std::mem::replace(&mut self.out, others);
        self.send(&hello.worker, Command::Welcome { incarnation, end });
        if scheduling != Scheduling::Active {
            self.send(&hello.worker, Command::Cordoned(true));
        }
        self.out.extend(after);
        if hello.stopping_within.is_some() {
            self.unplace_starting(&hello.worker, "stops", now);
        }
        Ok(())
    }

    /// The incarnation that this process has from now on.
    fn admit(&self, old: Option<&Worker>, hello: &Hello) -> Result<Incarnation, Refused> {
        let newest = old.map_or(Incarnation(0), |w| w.incarnation);
        // Its welcome may have been lost on the way: the same process keeps what it was given.
        let same_process = old.is_some_and(|w| !w.process.is_empty() && w.process == hello.process);
        match hello.incarnation {
            Incarnation(0) if same_process => Ok(newest),
            Incarnation(0) => Ok(Incarnation(newest.0 + 1)),
            told if told < newest => Err(Refused::StaleIncarnation { told, newest }),
            told if told == newest => Ok(told),
            // Given by a coordinator whose store we don't have: never the same number twice.
            told => Ok(Incarnation(told.0.saturating_add(1))),
        }
    }

    /// From when on it counts that a worker does not hold a session. One that comes under the id of another, from another
    /// state directory (a second machine, or this one made anew), can't know what that one holds; and that one may only
    /// be stopped, or cut off. So it counts when whatever the other may hold has been fenced.
    fn missing_until(&self, old: Option<&Worker>, instance: &str) -> Duration {
        let known = old.filter(|w| w.known);
        let before = known.map_or(Duration::ZERO, |w| w.missing_until);
        if known.is_some_and(|w| w.instance == instance) {
            return before;
        }
        let lease = known.map_or(Duration::ZERO, |w| w.lease_until);
        before.max(lease.max(self.old_fences) + self.config.restore_grace)
    }

    /// What it does not hold, and another one of its id may. Not what was never ready: no client has used that.
    pub(super) fn unsure(&self, worker: &Worker, now: Now) -> Vec<(SessionId, Epoch)> {
        let used = |held: &&(SessionId, Epoch)| {
            self.sessions.get(&held.0).is_some_and(|s| s.state != SessionState::Placed)
        };
        match now.mono < worker.missing_until {
            true => worker.missing.iter().filter(used).copied().collect(),
            false => Vec::new(),
        }
    }

    /// Compares what the worker holds with what it should. Returns what it shall end.
    fn reconcile(&mut self, worker: &WorkerId, running: Vec<Running>, now: Now) -> Vec<Ending> {
        let mut end = Vec::new();
        let mut held: BTreeMap<SessionId, ()> = BTreeMap::new();
        for run in running {
            let ours = self.sessions.get(&run.session).cloned();
            let parked = ours.as_ref().is_some_and(|s| s.state == SessionState::Parked);
            let otherwise = if parked { EndReason::Parked } else { EndReason::Deleted };
            let reason = ours.as_ref().and_then(|s| s.end).unwrap_or(otherwise);
            let ending = Ending { session: run.session, epoch: run.epoch, reason };
            let current =
                ours.filter(|s| s.holds_place() && s.worker.as_ref() == Some(worker) && s.epoch == run.epoch);
            let Some(session) = current else {
                end.push(ending);
                continue;
            };
            held.insert(session.id, ());
            match run.state {
                _ if matches!(session.state, SessionState::Ending | SessionState::Parked) => end.push(ending),
                SessionState::Ready | SessionState::Paused => {
                    self.is_up(&session, run.state, &run.backend, now);
                    self.send_terms(session.id, now);
                }
                // On its way elsewhere: its end comes.
                SessionState::Ending if may_restore(&session) => {}
                SessionState::Ending => {
                    self.end_session(session.id, EndReason::SandboxFailed, "the worker is ending it", now);
                }
                SessionState::Ended => {
                    self.finish(session.id, EndReason::SandboxFailed, "its worker ended it", now);
                }
                SessionState::Pending | SessionState::Placed | SessionState::Parked => {}
            }
        }
        let missing: Vec<_> = self.held_by(worker).filter(|(id, _)| !held.contains_key(id)).collect();
        if let Some(known) = self.workers.get(worker).cloned() {
            // What is placed here from now on is this one's own to know of.
            let missing_until = if missing.is_empty() { Duration::ZERO } else { known.missing_until };
            self.put_worker(Worker { missing, missing_until, ..(*known).clone() });
        }
        end
    }

    /// What we think to be on a worker.
    fn held_by(&self, worker: &WorkerId) -> impl Iterator<Item = (SessionId, Epoch)> {
        let load = self.index.load.get(worker).cloned().unwrap_or_default();
        load.sessions.into_iter().filter_map(|id| self.sessions.get(&id).map(|s| (id, s.epoch)))
    }

    /// What we thought to be on a worker, and is not: it is placed anew, or was lost there.
    fn not_held(&mut self, worker: &WorkerId, missing: Vec<(SessionId, Epoch)>, why: &str, now: Now) {
        for (id, epoch) in missing {
            let here =
                |s: &&Arc<Session>| s.holds_place() && s.worker.as_ref() == Some(worker) && s.epoch == epoch;
            let Some(session) = self.sessions.get(&id).filter(here).cloned() else { continue };
            match session.state {
                SessionState::Placed => self.unplace(&session, &format!("{worker} {why}"), now),
                SessionState::Parked => self.vacate(&session, now),
                _ => self.lose(&session, &format!("worker {worker} {why}"), now),
            }
        }
    }

    /// It stops, and holds nothing any more: nobody waits for it, and it is not listed. One
    /// that an operator cordoned is dead at once, but stays known for a while: started
    /// again, it is still cordoned.
    pub(super) fn leaving(&mut self, id: &WorkerId, link: LinkId, now: Now) {
        let Some(known) = self.linked(id, link).cloned() else { return };
        tracing::info!(worker.id = %id, "a worker has left");
        self.put_worker(Worker {
            link: None,
            liveness: Liveness::Dead,
            lease_until: now.mono,
            down_since: now.mono.max(known.missing_until.saturating_sub(self.config.restore_grace)),
            ..(*known).clone()
        });
        let unsure = self.unsure(&known, now);
        let held = self.held_by(id).filter(|held| !unsure.contains(held)).collect();
        self.not_held(id, held, "left without it", now);
        if known.scheduling == Scheduling::Active && unsure.is_empty() {
            self.forget_worker(id.clone());
        }
    }

    pub(super) fn link_lost(&mut self, worker: &WorkerId, link: LinkId) {
        let Some(known) = self.linked(worker, link).cloned() else { return };
        tracing::warn!(worker.id = %worker, "the link to a worker is lost");
        self.put_worker(Worker { link: None, liveness: Liveness::Suspect, ..(*known).clone() });
    }

    pub(super) fn heartbeat(&mut self, beat: Heartbeat, now: Now) {
        let Some(known) = self.linked(&beat.worker, beat.link).cloned() else { return };
        let unsure = self.unsure(&known, now);
        if self.index.alive == 0 {
            self.blackout_over = now.mono;
        }
        self.put_worker(Worker {
            liveness: Liveness::Alive,
            lease_until: now.mono + self.config.lease,
            heartbeat_at: Some(now.wall),
            health: beat.health,
            backends: beat.backends,
            templates: beat.templates,
            template_problems: beat.template_problems,
            missing: unsure.clone(),
            ..(*known).clone()
        });
        let gone = known.missing.iter().filter(|missing| !unsure.contains(missing)).copied().collect();
        self.not_held(&beat.worker, gone, "came back without it", now);
        self.out.push(Effect::Send {
            link: beat.link,
            command: Command::LeaseRenewed { sequence: beat.sequence },
        });
    }

    pub(super) fn schedule(&mut self, id: &WorkerId, wanted: Scheduling, now: Now) -> Result<(), Refused> {
        let worker = self.workers.get(id).ok_or_else(|| Refused::NoWorker(id.clone()))?.clone();
        let drain_at = match wanted {
            Scheduling::Draining { until } => Some(now.mono + left(until, now)),
            Scheduling::Active | Scheduling::Cordoned => None,
        };
        let changed = Worker { scheduling: wanted, drain_at, ..(*worker).clone() };
        let closed = changed.in_force() != Scheduling::Active;
        self.put_worker(changed);
        self.send(id, Command::Cordoned(closed));
        self.drain_if_due(id, now);
        Ok(())
    }

    /// Ends what a drained worker still holds when its time is up. What was never ready
    /// goes to another worker: its client still waits. So does what may, from the checkpoint that there is, as if the
    /// worker were lost.
    pub(super) fn drain_if_due(&mut self, id: &WorkerId, now: Now) {
        let due = self.workers.get(id).and_then(|w| w.drain_at).is_some_and(|at| at <= now.mono);
        if !due {
            return;
        }
        self.unplace_starting(id, "was drained", now);
        let load = self.index.load.get(id).cloned().unwrap_or_default();
        for session in load.sessions {
            let Some(session) = self.sessions.get(&session).cloned() else { continue };
            if session.state == SessionState::Parked || session.parking.is_some() {
                // It has been told to end there, or is when its checkpoint is kept: that is seen through.
            } else if may_restore(&session) {
                self.tell_end(&session, EndReason::Drained);
            } else {
                self.end_session(session.id, EndReason::Drained, &format!("worker {id} was drained"), now);
            }
        }
    }

    /// A session is to leave its worker, which is told to end it there. When it says that this is done, and not
    /// before, the session goes elsewhere: see [`Fleet::reported_end`].
    pub(super) fn move_away(&mut self, id: SessionId, epoch: Epoch) -> Result<(), Refused> {
        let session = self.sessions.get(&id).cloned().ok_or(Refused::NoSession(id))?;
        if session.epoch == epoch && may_restore(&session) {
            self.tell_end(&session, EndReason::Drained);
        }
        Ok(())
    }

    pub(super) fn set_backend(&mut self, id: &WorkerId, backend: BackendChoice) -> Result<(), Refused> {
        let worker = self.workers.get(id).ok_or_else(|| Refused::NoWorker(id.clone()))?;
        if !worker.attached() {
            return Err(Refused::WorkerUnreachable(id.clone()));
        }
        if let Some(missing) = not_offered(worker, backend) {
            return Err(Refused::BackendUnavailable(missing));
        }
        self.send(id, Command::SetBackend(backend));
        Ok(())
    }

    /// Looks at a worker's lease, and at what its loss means.
    pub(super) fn check_worker(&mut self, id: &WorkerId, now: Now) {
        let Some(worker) = self.workers.get(id).cloned() else { return };
        let near_end = worker.lease_until.saturating_sub(self.config.lease / 3);
        if worker.liveness == Liveness::Dead {
            self.evict_if_lost(&worker, now);
        } else if worker.lease_until <= now.mono {
            tracing::warn!(worker.id = %id, "a worker's lease is over");
            self.tally.leases_expired += 1;
            if let Some(link) = worker.link {
                self.out.push(Effect::Close { link, why: CloseReason::LeaseOver });
            }
            self.put_worker(Worker {
                link: None,
                liveness: Liveness::Dead,
                down_since: now.mono,
                ..(*worker).clone()
            });
            self.unplace_starting(id, "was lost", now);
        } else if near_end <= now.mono && worker.liveness == Liveness::Alive {
            self.put_worker(Worker { liveness: Liveness::Suspect, ..(*worker).clone() });
        }
        self.drain_if_due(id, now);
    }

    /// When a dead worker's sessions are given up, or `None` while no worker at all is alive.
    pub(super) fn eviction_at(&self, worker: &Worker) -> Option<Duration> {
        let since = worker.down_since.max(self.blackout_over);
        (self.index.alive > 0).then(|| since + self.config.worker_loss_grace)
    }

    /// When those of a dead worker's sessions that may be restored are placed elsewhere: their agents have frozen them
    /// by then. `None`: there are none, or no worker at all is alive.
    pub(super) fn restore_at(&self, worker: &Worker) -> Option<Duration> {
        let load = self.index.load.get(&worker.id)?;
        let restorable = |id: &SessionId| self.sessions.get(id).is_some_and(|s| may_restore(s));
        if self.index.alive == 0 || !load.sessions.iter().any(restorable) {
            return None;
        }
        let since = worker.down_since.max(self.blackout_over).max(self.old_fences);
        Some(since + self.config.restore_grace)
    }

    fn restore_if_fenced(&mut self, worker: &Worker, now: Now) {
        if self.restore_at(worker).is_none_or(|at| at > now.mono) {
            return;
        }
        let load = self.index.load.get(&worker.id).cloned().unwrap_or_default();
        for id in load.sessions {
            let Some(session) = self.sessions.get(&id).filter(|s| may_restore(s)).cloned() else { continue };
            self.lose(&session, &format!("worker {} was lost", worker.id), now);
        }
    }

    fn evict_if_lost(&mut self, worker: &Worker, now: Now) {
        self.restore_if_fenced(worker, now);
        if self.eviction_at(worker).is_none_or(|at| at > now.mono) {
            return;
        }
        let load = self.index.load.get(&worker.id).cloned().unwrap_or_default();
        for id in load.sessions {
            match self.sessions.get(&id).filter(|s| s.state == SessionState::Parked).cloned() {
                Some(parked) => self.vacate(&parked, now),
                None => {
                    let why = format!("worker {} did not come back", worker.id);
                    self.finish(id, EndReason::WorkerLost, &why, now);
                }
            }
        }
    }
}

/// Why the worker can't switch to this backend, as far as it has told us. Which one `auto`
/// means is its own business.
fn not_offered(worker: &Worker, backend: BackendChoice) -> Option<String> {
    let BackendChoice::Only(wanted) = backend else { return None };
    let id = &worker.id;
    let status = worker.backends.iter().find(|b| b.name == wanted.as_str());
    let what = match status {
        Some(status) if status.ready => return None,
        Some(status) if status.message.is_empty() => format!("{wanted} can't be used on {id} now"),
        Some(status) => format!("{wanted} can't be used on {id} now ({})", status.message),
        None => format!("{id} was not started with the backend {wanted}"),
    };
    let ready: Vec<_> = worker.backends.iter().filter(|b| b.ready).map(|b| b.name.as_str()).collect();
    let offers = if ready.is_empty() { "nothing".to_owned() } else { ready.join(", ") };
    Some(format!("{what}; it offers {offers}"))
}
