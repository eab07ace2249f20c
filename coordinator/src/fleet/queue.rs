//! The queue of sessions that wait for a place.
//!
//! Order: priority, then the tenant that has the least in use, then age ([`super::fair`]). A session that fits nowhere
//! now doesn't hold up those behind it: a small one may slip past a big one. The big one can starve for as long as it
//! waits, and no longer; rejected was to reserve the next free places for it, which leaves a small fleet idle for the
//! sake of one. A new session that fits takes its place at once: whoever waits then has just been tried, and did not.
//!
//! The queue is bounded, and so is what one tenant may have in it.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    Epoch, SessionId, WorkerId,
    domain::{EndReason, OnWorkerLoss, Placement, Preset, SessionState},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Fleet,
    event::{Command, Create, Effect, Refused},
    fair::{Sum, Turn},
    model::{Clock, Now, RequestKey, Session, Spec, Waits, name_in},
    recovery::{recovery, stepped_back},
};
use crate::{
    placement::{self, Candidate, Need, Standing},
    tenant::Tenant,
};

/// Needs that one pass through the queue remembers to have found no place. More kinds than that are looked for again.
const IN_VAIN: usize = 16;

impl Fleet {
    pub(super) fn create(&mut self, create: Create, now: Now) -> Result<(), Refused> {
        let key = create.key.map(|(key, body)| (create.spec.tenant.scoped(&key), body));
        if let Some((key, body)) = &key
            && let Some(known) = self.keys.get(key)
        {
            return Err(if known.body == *body {
                Refused::AlreadyCreated(known.session)
            } else {
                Refused::RequestIdReused
            });
        }
        self.name_is_free(&create.spec.tenant, name_in(&create.labels), create.id)?;
        self.within_quota(&create.spec, now)?;
        let tenant = create.spec.tenant.clone();
        let spec = Spec { from_checkpoint: create.restore.is_some(), ..create.spec };
        let session = Session {
            labels: create.labels,
            expires_at: create.ttl.map(|ttl| now.wall + ttl),
            idle_timeout: create.idle_timeout,
            checkpoint: create.restore,
            clock: Clock { expires: create.ttl.map(|ttl| now.mono + ttl), ..Clock::default() },
            ..Session::new(create.id, spec, now.wall)
        };
        self.find_or_queue(session, now)?;
        self.count_create(&tenant, now);
        if let Some((key, body)) = key {
            self.put_key(RequestKey { key, body, session: create.id, created_at: now.wall });
        }
        Ok(())
    }

    /// Places a session that somebody waits for, or has it wait for as long as it may.
    pub(super) fn find_or_queue(&mut self, session: Session, now: Now) -> Result<(), Refused> {
        let wait = session.spec.wait_for_place;
        let session = Session {
            waits: Waits { since: now.wall, until: now.wall + wait },
            clock: Clock { wait_until: now.mono + wait, ..session.clock },
            ..session
        };
        match self.find_place(&session, now)? {
            Ok(worker) => self.place(session, worker, now),
            Err(missing) => {
                tracing::info!(session.id = %session.id, missing, "a session waits for a place");
                self.put_session(Session { message: format!("waits for a place: {missing}"), ..session });
            }
        }
        Ok(())
    }

    /// A place for a new session, or what is missing if it may wait for one.
    fn find_place(&mut self, session: &Session, now: Now) -> Result<Result<WorkerId, String>, Refused> {
        let need = need(session);
        // A worker that never said how big it is says nothing about what is too big.
        let sized: Vec<_> =
            self.workers.values().filter(|w| w.known).map(|w| self.candidate(w, session, now)).collect();
        if let Some(figures) = placement::too_high(&need, &sized) {
            return Err(Refused::LimitTooHigh(figures));
        }
        let mut rng = self.chance();
        let candidates: Vec<_> = self.workers.values().map(|w| self.candidate(w, session, now)).collect();
        Ok(match placement::choose(&need, &candidates, &mut rng).cloned() {
            Some(worker) => Ok(worker),
            None => {
                let why = placement::unservable(&need, &candidates);
                if let Some(why) = why.filter(|_| !waits_for_template(session)) {
                    return Err(Refused::TemplateUnavailable(why));
                }
                let missing = placement::explain(&need, &candidates);
                if session.spec.wait_for_place.is_zero() {
                    return Err(Refused::NoPlace(missing));
                }
                self.queue_has_room(&session.spec.tenant)?;
                Err(missing)
            }
        })
    }

    /// Chance for one decision: the candidates borrow the fleet, its own source can't lend.
    fn chance(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.random())
    }

    /// Those that come back to the queue count, but are never refused: they have been promised a place before.
    fn queue_has_room(&self, tenant: &Tenant) -> Result<(), Refused> {
        let (limit, of_tenant) = (self.config.queue_limit, self.config.tenant_queue_limit);
        if self.index.queue.len() >= limit {
            return Err(Refused::QueueFull { limit, tenant: None });
        }
        if self.index.queue.of(tenant) >= of_tenant {
            return Err(Refused::QueueFull { limit: of_tenant, tenant: Some(tenant.clone()) });
        }
        Ok(())
    }

    /// Where a tenant stands among those that wait.
    fn turn(&self, tenant: &Tenant, all: &Sum) -> Turn {
        let share = self.index.used.get(tenant).map(|used| used.dominant(all)).unwrap_or_default();
        Turn { share, last: self.served.get(tenant).copied().unwrap_or_default() }
    }

    /// Goes through the queue: places what fits, gives up what has waited long enough.
    pub(super) fn place_waiting(&mut self, now: Now) {
        let mut pass = self.index.queue.pass();
        let mut all = Sum::default();
        for worker in self.workers.values() {
            all.add(&worker.capacity);
        }
        // Nobody with an open door: spare the walk.
        let any_open = self.workers.values().any(|w| w.standing() == Standing::Open);
        // What found no place in this pass finds none later in it: places are only taken.
        let mut in_vain: Vec<Arc<Session>> = Vec::new();
        while let Some(id) = pass.next(|tenant| self.turn(tenant, &all)) {
            let Some(session) = self.sessions.get(&id).cloned() else { continue };
            let chosen = if any_open && !in_vain.iter().any(|other| asks_the_same(other, &session)) {
                let mut rng = self.chance();
                let candidates: Vec<_> =
                    self.workers.values().map(|w| self.candidate(w, &session, now)).collect();
                placement::choose(&need(&session), &candidates, &mut rng).cloned()
            } else {
                None
            };
            if let Some(worker) = chosen {
                self.place((*session).clone(), worker, now);
                continue;
            }
            if session.clock.wait_until <= now.mono {
                self.give_up(&session, now);
            } else {
                self.waits_on(&session, now);
            }
            let known = in_vain.iter().any(|other| asks_the_same(other, &session));
            if !known && in_vain.len() < IN_VAIN && session.clock.refused.is_empty() {
                in_vain.push(session);
            }
        }
    }

    /// No place yet. That no worker can serve the template is told to who waits for that,
    /// and ends the wait of who doesn't. Nothing else is worth a write for each session
    /// that waits.
    fn waits_on(&mut self, session: &Session, now: Now) {
        let name = &session.spec.template.name;
        let told = self.workers.values().any(|w| w.template_problems.contains_key(name));
        if !told && !session.unservable {
            return;
        }
        let candidates: Vec<_> = self.workers.values().map(|w| self.candidate(w, session, now)).collect();
        let need = need(session);
        let unservable = placement::unservable(&need, &candidates).is_some();
        if !unservable && !session.unservable {
            return;
        }
        if unservable && !waits_for_template(session) {
            return self.give_up(session, now);
        }
        let message = format!("waits for a place: {}", placement::explain(&need, &candidates));
        if (unservable, &message) != (session.unservable, &session.message) {
            self.put_session(Session { message, unservable, ..session.clone() });
        }
    }

    /// Of a tenant's live sessions each has another name.
    pub(super) fn name_is_free(
        &self,
        tenant: &Tenant,
        name: Option<&str>,
        asks: SessionId,
    ) -> Result<(), Refused> {
        let Some(name) = name else { return Ok(()) };
        match self.index.called(tenant, name).filter(|by| *by != asks) {
            Some(by) => Err(Refused::NameTaken { name: name.to_owned(), by }),
            None => Ok(()),
        }
    }

    /// The session has waited as long as it was to.
    pub(super) fn give_up(&mut self, session: &Session, now: Now) {
        let candidates: Vec<_> = self.workers.values().map(|w| self.candidate(w, session, now)).collect();
        let missing = placement::explain(&need(session), &candidates);
        let unservable = placement::unservable(&need(session), &candidates).is_some();
        tracing::info!(session.id = %session.id, missing, "no place was found in time");
        self.put_session(Session { unservable, ..session.clone() });
        if session.comes_from_park() {
            return self.park_again(session.id, EndReason::NoPlace, &missing);
        }
        self.finish(session.id, EndReason::NoPlace, &missing, now);
    }

    fn place(&mut self, session: Session, worker: WorkerId, now: Now) {
        let epoch = Epoch(session.epoch.0 + 1);
        let session = Session {
            state: SessionState::Placed,
            epoch,
            worker: Some(worker.clone()),
            message: String::new(),
            clock: Clock { placed_at: now.mono, ..session.clock },
            ..session
        };
        let order = Placement {
            session: session.id,
            epoch,
            template: session.spec.template.clone(),
            limits: session.spec.limits,
            env: session.spec.env.clone(),
            created_at: session.created_at,
            expires_at: session.expires_at,
            expires_in: session.clock.expires.map(|at| at.saturating_sub(now.mono)),
            idle_timeout: session.idle_timeout,
            task_defaults: session.spec.task_defaults,
            start_timeout: self.start_timeout(&session),
            restore: session.checkpoint.as_ref().map(|kept| kept.from.clone()),
            fenced: session.spec.on_worker_loss == OnWorkerLoss::Restore,
            checkpoint_on_drain: session.spec.kept_on_drain(),
            egress: session.spec.egress.clone(),
        };
        tracing::debug!(session.id = %session.id, worker.id = %worker, %epoch, "placed");
        self.placements += 1;
        self.served.insert(session.spec.tenant.clone(), self.placements);
        self.put_session(session);
        self.send(&worker, Command::Place(Box::new(order)));
    }

    /// How long its sandbox may take to become ready: longer when files come along.
    pub(super) fn start_timeout(&self, session: &Session) -> Duration {
        match session.needs_files() {
            true => self.config.restore_timeout.max(self.config.start_timeout),
            false => self.config.start_timeout,
        }
    }

    /// A worker has lost a session, or is lost with it. From a checkpoint it goes on elsewhere, if that is its policy;
    /// else it is over, and the reason is the truth.
    pub(super) fn lose(&mut self, session: &Session, why: &str, now: Now) {
        let kept = session.checkpoint.clone().filter(|_| may_restore(session));
        let Some(kept) = kept else {
            return self.finish(session.id, EndReason::WorkerLost, why, now);
        };
        tracing::warn!(session.id = %session.id, checkpoint.id = kept.from.checkpoint, why, "restored elsewhere");
        // What ran there is gone with it, and nobody may start it again but who asked for it.
        self.finish_tasks(session.id, EndReason::WorkerLost, now.wall);
        self.tasks.remove(&session.id);
        let until = now.mono + self.config.restore_wait.max(session.spec.wait_for_place);
        let recovered = Some(recovery(session, kept));
        self.back_to_queue(&Session { recovered, parked_at: None, ..session.clone() }, why, until, now);
    }

    /// Takes a session that was never ready off its worker: it waits for another place, for
    /// as long as a new one would.
    pub(super) fn unplace(&mut self, session: &Session, why: &str, now: Now) {
        let until = session.clock.wait_until.max(now.mono + session.spec.wait_for_place);
        self.back_to_queue(session, why, until, now);
    }

    /// It waits for another place. A wait that was under way goes on, if it is as long as before.
    pub(super) fn back_to_queue(&mut self, session: &Session, why: &str, wait_until: Duration, now: Now) {
        let Some(session) = stepped_back(session) else {
            return self.without_files(session, why, now);
        };
        let until = now.wall + wait_until.saturating_sub(now.mono);
        let fresh = Waits { since: now.wall, until };
        let waits = if wait_until == session.clock.wait_until { session.waits } else { fresh };
        self.put_session(Session {
            state: SessionState::Pending,
            worker: None,
            backend: String::new(),
            message: format!("waits for another place: {why}"),
            waits,
            clock: Clock { wait_until, ..session.clock },
            ..session
        });
    }

    pub(super) fn send(&mut self, worker: &WorkerId, command: Command) {
        if let Some(link) = self.workers.get(worker).and_then(|w| w.link) {
            self.out.push(Effect::Send { link, command });
        }
    }

    fn candidate<'a>(&'a self, worker: &'a super::Worker, session: &Session, now: Now) -> Candidate<'a> {
        let load = self.index.load.get(&worker.id);
        let refused = session.clock.refused.get(&worker.id).is_some_and(|until| *until > now.mono);
        let template = &session.spec.template.name;
        Candidate {
            id: &worker.id,
            standing: match worker.standing() {
                Standing::Open if refused => Standing::Refused,
                standing => standing,
            },
            capacity: worker.capacity,
            reserved: load.map(|l| l.reserved).unwrap_or_default(),
            labels: &worker.labels,
            templates: &worker.templates,
            problems: &worker.template_problems,
            full_egress: worker.full_egress,
            warmth: load.and_then(|l| l.templates.get(template)).copied().unwrap_or_default(),
        }
    }
}

/// Whether a session goes on elsewhere when its worker is lost. One that was told to end does not.
pub(super) fn may_restore(session: &Session) -> bool {
    session.spec.on_worker_loss == OnWorkerLoss::Restore
        && session.checkpoint.is_some()
        && matches!(session.state, SessionState::Placed | SessionState::Ready | SessionState::Paused)
}

/// Whether it waits even where no worker can serve its template: another one may come.
fn waits_for_template(session: &Session) -> bool {
    // One that lost its worker has nobody who could ask for it again.
    session.recovered.is_some() || (session.spec.patient && !session.spec.wait_for_place.is_zero())
}

/// Whether what is no place for the one is none for the other.
fn asks_the_same(one: &Session, other: &Session) -> bool {
    // Of a session that was refused some workers are left alone for a while.
    one.clock.refused.is_empty()
        && other.clock.refused.is_empty()
        && one.spec.limits == other.spec.limits
        && one.spec.template.name == other.spec.template.name
        && one.spec.selector == other.spec.selector
        && one.spec.egress.preset == other.spec.egress.preset
}

fn need(session: &Session) -> Need<'_> {
    Need {
        limits: session.spec.limits,
        template: &session.spec.template.name,
        selector: &session.spec.selector,
        full_egress: session.spec.egress.preset == Preset::Full,
    }
}
