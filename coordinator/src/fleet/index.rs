//! What can be derived from the sessions, kept at hand: the queue, each worker's load, the
//! ended ones by age. One function updates it all from a session's old and new value.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use berth_proto::{
    SessionId, WorkerId,
    domain::{Capacity, SessionState},
};

use super::{
    fair::{Queue, Sum},
    model::Session,
};
use crate::{placement::share, tenant::Tenant};

#[derive(Default)]
pub(super) struct Index {
    /// Sessions that wait.
    pub queue: Queue,
    /// What the placed sessions of each tenant take.
    pub used: BTreeMap<Tenant, Sum>,
    /// What all sessions of each tenant that have not ended ask for.
    pub held: BTreeMap<Tenant, Sum>,
    pub load: BTreeMap<WorkerId, Load>,
    pub ended: BTreeSet<(SystemTime, SessionId)>,
    /// Live sessions that have a name. More than one of a name only from a store of before
    /// names were checked.
    pub names: BTreeSet<(Tenant, String, SessionId)>,
    /// Workers that are alive.
    pub alive: usize,
}

/// What a worker's sessions take of it.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub sessions: BTreeSet<SessionId>,
    /// How many of them there are of each template.
    pub templates: BTreeMap<String, u32>,
    /// `max_sessions` is their number.
    pub reserved: Capacity,
}

impl Index {
    /// A session changed from `old` to `new`. True: a place became free.
    pub fn moved(&mut self, old: Option<&Session>, new: Option<&Session>) -> bool {
        let place = |s: Option<&Session>| s.filter(|s| s.holds_place()).and_then(|s| s.worker.clone());
        let (from, to) = (place(old), place(new));
        let mut freed = false;
        if from != to {
            if let (Some(worker), Some(old)) = (from, old) {
                self.leave(&worker, old);
                freed = true;
            }
            if let (Some(worker), Some(new)) = (to, new) {
                self.enter(worker, new);
            }
        }
        if let Some(old) = old.filter(|s| s.state == SessionState::Pending) {
            self.queue.remove(old.spec.priority, &old.spec.tenant, old.id);
        }
        if let Some(new) = new.filter(|s| s.state == SessionState::Pending) {
            self.queue.insert(new.spec.priority, &new.spec.tenant, new.id);
        }
        if let Some(entry) = old.and_then(ended_entry) {
            self.ended.remove(&entry);
        }
        if let Some(entry) = new.and_then(ended_entry) {
            self.ended.insert(entry);
        }
        self.named(old, new);
        self.hold(old, new);
        freed
    }

    /// Its limits are fixed for life, so only its coming and its end count.
    fn hold(&mut self, old: Option<&Session>, new: Option<&Session>) {
        let live = |s: Option<&'_ Session>| s.is_some_and(|s| s.state != SessionState::Ended);
        if live(old) == live(new) {
            return;
        }
        if let Some(new) = new.filter(|_| live(new)) {
            self.held.entry(new.spec.tenant.clone()).or_default().add(&share(&new.spec.limits));
        }
        let Some(old) = old.filter(|_| live(old)) else { return };
        if let Some(held) = self.held.get_mut(&old.spec.tenant) {
            held.subtract(&share(&old.spec.limits));
            if *held == Sum::default() {
                self.held.remove(&old.spec.tenant);
            }
        }
    }

    fn named(&mut self, old: Option<&Session>, new: Option<&Session>) {
        let entry = |s: &Session| s.live_name().map(|name| (s.spec.tenant.clone(), name.to_owned(), s.id));
        let (was, is) = (old.and_then(entry), new.and_then(entry));
        if was == is {
            return;
        }
        if let Some(entry) = was {
            self.names.remove(&entry);
        }
        self.names.extend(is);
    }

    /// A tenant's live session of this name.
    pub fn called(&self, tenant: &Tenant, name: &str) -> Option<SessionId> {
        let from = (tenant.clone(), name.to_owned(), SessionId::from_u128(0));
        let (of, found, id) = self.names.range(from..).next()?;
        (of == tenant && found == name).then_some(*id)
    }

    fn enter(&mut self, worker: WorkerId, session: &Session) {
        let load = self.load.entry(worker).or_default();
        if load.sessions.insert(session.id) {
            let taken = share(&session.spec.limits);
            load.reserved.cpu_millis += taken.cpu_millis;
            load.reserved.memory_bytes += taken.memory_bytes;
            load.reserved.disk_bytes += taken.disk_bytes;
            load.reserved.max_sessions += 1;
            *load.templates.entry(session.spec.template.name.clone()).or_default() += 1;
            self.used.entry(session.spec.tenant.clone()).or_default().add(&taken);
        }
    }

    fn leave(&mut self, worker: &WorkerId, session: &Session) {
        let Some(load) = self.load.get_mut(worker) else { return };
        if load.sessions.remove(&session.id) {
            let taken = share(&session.spec.limits);
            load.reserved.cpu_millis -= taken.cpu_millis;
            load.reserved.memory_bytes -= taken.memory_bytes;
            load.reserved.disk_bytes -= taken.disk_bytes;
            load.reserved.max_sessions -= 1;
            let name = &session.spec.template.name;
            match load.templates.get_mut(name) {
                Some(1) | None => drop(load.templates.remove(name)),
                Some(count) => *count -= 1,
            }
            if let Some(used) = self.used.get_mut(&session.spec.tenant) {
                used.subtract(&taken);
                if *used == Sum::default() {
                    self.used.remove(&session.spec.tenant);
                }
            }
        }
        if load.sessions.is_empty() {
            self.load.remove(worker);
        }
    }
}

fn ended_entry(session: &Session) -> Option<(SystemTime, SessionId)> {
    (session.state == SessionState::Ended)
        .then(|| (session.ended_at.unwrap_or(session.created_at), session.id))
}
