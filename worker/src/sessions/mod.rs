//! The sessions that this worker holds: the table, the commands that change it, and admission.
//!
//! The worker owns the truth about its sessions. A command names the epoch that it is meant for; one of an
//! older epoch changes nothing, one of a newer epoch ends what is held. What is over is remembered for a
//! while (tombstones), so that a placement that comes late, or twice, starts nothing.
//!
//! | file | what |
//! |---|---|
//! | [`admission`] | whether a session fits (pure) |
//! | [`slot`] | one session as others see it |
//! | [`actor`] | its life |
//! | [`launch`] | starting and removing sandboxes, shared with the canary |
//! | [`events`] | the agent's events |
//! | [`record`] | what is on the disk |
//! | [`adopt`] | taking up what an earlier process left |
//! | [`route`] | the data plane's way to the agents |

mod actor;
pub mod admission;
mod adopt;
mod events;
pub(crate) mod launch;
pub mod record;
pub mod route;
mod slot;

pub(crate) use slot::Desired;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use berth_proto::{
    Epoch, Error, Reason, SessionId,
    domain::{Backend, Capacity, Egress, EndReason, Placement, Preset, SessionState, TaskDefaults},
    spawn::spawn,
    v1,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::{
    actor::{Actor, Origin},
    admission::{Disk, Reserved},
    slot::{End, Slot},
};
use crate::{
    backends::Backends,
    checkpoint::{self, Source, Taken, Wanted},
    egress::Exits,
    health::machine,
    link::outbox::Outbox,
    metrics::{Metrics, Observed},
    sandbox::SandboxBackend,
    workspace::{Workspaces, store::Store},
};

/// Placements that are over and remembered. More than come within any delay of a message.
const TOMBSTONES: usize = 4096;

/// What sessions are held to.
#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: Capacity,
    pub disk_margin_bytes: u64,
    pub end_grace: Duration,
    pub session_calls: usize,
    /// For what neither a session nor its template sets.
    pub task_defaults: TaskDefaults,
    /// The way to the coordinator's pieces of checkpoints.
    pub checkpoints: Source,
    /// The way out, for sessions that have one.
    pub exits: Exits,
    pub metrics: Arc<Metrics>,
}

/// The sessions of a worker. A cheap handle.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    settings: Settings,
    workspaces: Workspaces,
    backends: Arc<Backends>,
    outbox: Arc<Outbox>,
    table: Mutex<Table>,
    /// How many are held.
    count: watch::Sender<usize>,
    /// Until when the coordinator counts on this worker's sessions, as far as it was heard: in boot time, which goes on
    /// while the machine sleeps, as the coordinator's does.
    lease: watch::Sender<Option<Duration>>,
    /// The process is gone, as far as the actors know.
    crash: CancellationToken,
}

#[derive(Default)]
struct Table {
    slots: BTreeMap<SessionId, Arc<Slot>>,
    over: BTreeMap<SessionId, Over>,
    over_order: VecDeque<SessionId>,
    /// Why nothing new is taken.
    closed: Option<String>,
    cordoned: bool,
}

/// A placement that is over.
struct Over {
    epoch: Epoch,
    /// The session goes on elsewhere.
    moves: bool,
}

impl Table {
    fn bury(&mut self, session: SessionId, epoch: Epoch, moves: bool) {
        match self.over.get_mut(&session) {
            Some(known) if known.epoch > epoch => {}
            Some(known) => *known = Over { epoch, moves: moves || (known.moves && known.epoch == epoch) },
            None => {
                self.over.insert(session, Over { epoch, moves });
                self.over_order.push_back(session);
                if self.over_order.len() > TOMBSTONES
                    && let Some(oldest) = self.over_order.pop_front()
                {
                    self.over.remove(&oldest);
                }
            }
        }
    }

    /// Reserved by all sessions but this one, whose newer placement takes its place.
    fn reserved(&self, but: SessionId) -> Reserved {
        let mut sum = Reserved::default();
        for (_, slot) in self.slots.iter().filter(|(id, _)| **id != but) {
            sum.add(&slot.placement.limits);
        }
        sum
    }

    /// What all sessions but this one may still take of the disk.
    fn promised(&self, store: &Store, but: SessionId) -> u64 {
        let others = self.slots.iter().filter(|(id, _)| **id != but).map(|(_, slot)| slot);
        let rests = others.map(|slot| slot.still_takes(store.footprint(&slot.placement.limits)));
        rests.fold(0, u64::saturating_add)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of the session is left. It is reported (if it was not before) before its place is free, and
    /// both under the lock: who sees the free place, or a table without it, also finds the report.
    fn over(&self, slot: &Arc<Slot>, report: Option<v1::SessionReport>) {
        let session = slot.placement.session;
        let mut table = self.lock();
        if let Some(report) = report {
            self.outbox.session(session, report);
        }
        table.bury(session, slot.placement.epoch, slot.moves());
        if table.slots.get(&session).is_some_and(|held| Arc::ptr_eq(held, slot)) {
            table.slots.remove(&session);
        }
        self.count.send_replace(table.slots.len());
        drop(table);
        slot.done.cancel();
    }
}

impl Sessions {
    pub fn new(
        settings: Settings,
        workspaces: Workspaces,
        backends: Arc<Backends>,
        outbox: Arc<Outbox>,
        crash: CancellationToken,
    ) -> Self {
        let inner = Inner {
            settings,
            workspaces,
            backends,
            outbox,
            table: Mutex::default(),
            count: watch::channel(0).0,
            lease: watch::channel(None).0,
            crash,
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn capacity(&self) -> Capacity {
        self.inner.settings.capacity
    }

    pub fn metrics(&self) -> &Metrics {
        &self.inner.settings.metrics
    }

    /// What stands, with what is known of the sessions.
    pub fn observed(&self, base: Observed) -> Observed {
        let table = self.inner.lock();
        let store = self.inner.workspaces.store();
        let mut observed = Observed { disk_margin_bytes: self.inner.settings.disk_margin_bytes, ..base };
        for slot in table.slots.values() {
            let (state, tasks) = slot.figures();
            *observed.sessions.entry((slot.backend, state)).or_default() += 1;
            observed.tasks += tasks as u64;
            let rest = slot.still_takes(store.footprint(&slot.placement.limits));
            observed.disk_promised_bytes = observed.disk_promised_bytes.saturating_add(rest);
        }
        observed
    }

    /// Whether the operator gives that.
    pub fn full_egress(&self) -> bool {
        let full = Egress { preset: Preset::Full, ..Egress::default() };
        self.inner.settings.exits.refuses(&full).is_none()
    }

    /// The lease runs until then, in boot time. Agents that hold a fence are told.
    pub fn leased(&self, until: Duration) {
        self.inner.lease.send_replace(Some(until));
    }

    /// Takes a checkpoint of a session, at this epoch.
    pub async fn checkpoint(&self, session: SessionId, epoch: Epoch, wanted: Wanted) -> Result<Taken, Error> {
        let slot = self.held(session).filter(|slot| slot.placement.epoch == epoch).ok_or_else(|| {
            Error::precondition(
                Reason::StaleEpoch,
                format!("this worker does not hold {session} at epoch {epoch}"),
            )
        })?;
        let parting = match &wanted.parting {
            Some(parting) => Some(slot.part(parting.settle, parting.anyway).await?),
            None => None,
        };
        let hop = slot.hop("Export")?;
        let source = &self.inner.settings.checkpoints;
        let begun = Instant::now();
        let taken = checkpoint::take(hop.channel.clone(), source.connect()?, source.staging(), wanted).await;
        let figures = |taken: &Taken| (taken.content_bytes, taken.stored_bytes, taken.frozen_for);
        self.metrics().checkpoint(begun.elapsed(), taken.as_ref().ok().map(figures));
        let taken = taken?;
        if let Some(parting) = parting {
            parting.keep();
        }
        Ok(taken)
    }

    /// How many are held; changes wake.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.inner.count.subscribe()
    }

    /// What is held, for Hello. A session that is missing here has its end in the outbox.
    pub fn running(&self) -> Vec<v1::RunningSession> {
        let table = self.inner.lock();
        table
            .slots
            .values()
            .map(|slot| v1::RunningSession {
                session_id: slot.placement.session.to_string(),
                epoch: slot.placement.epoch.0,
                state: v1::SessionState::from(slot.state()).into(),
                backend: slot.backend.to_string(),
            })
            .collect()
    }

    /// Takes no new sessions any more, and says why.
    pub fn close(&self, why: &str) {
        self.inner.lock().closed.get_or_insert_with(|| why.to_owned());
    }

    /// Why nothing new is taken, if so.
    pub fn closed(&self) -> Option<String> {
        self.inner.lock().closed.clone()
    }

    /// The coordinator's wish; it is obeyed here too, should a placement cross it.
    pub fn cordon(&self, cordoned: bool) {
        self.inner.lock().cordoned = cordoned;
    }

    pub fn cordoned(&self) -> bool {
        self.inner.lock().cordoned
    }

    // ---- commands -----------------------------------------------------------------

    /// Takes a placement, or refuses it by a report. Never waits.
    pub fn place(&self, wire: v1::PlaceSession) {
        let (id, epoch) = (wire.session_id.clone(), wire.epoch);
        let placement = match self.completed(wire) {
            Ok(placement) => placement,
            Err(error) => {
                tracing::warn!(session.id = id, %error, "a placement makes no sense");
                if let Ok(session) = id.parse() {
                    self.inner.outbox.session(session, refusal(session, Epoch(epoch), &error.to_string()));
                }
                return;
            }
        };
        let (session, epoch) = (placement.session, placement.epoch);
        let free_bytes = machine::disk_free(self.inner.workspaces.base()).unwrap_or(0);
        let mut table = self.inner.lock();
        let mut predecessor = None;
        if let Some(held) = table.slots.get(&session) {
            match held.placement.epoch.cmp(&epoch) {
                std::cmp::Ordering::Equal => {
                    debug!(session.id = %session, %epoch, "placed twice: told again how it stands");
                    self.inner.outbox.again(session, epoch);
                    return;
                }
                std::cmp::Ordering::Greater => {
                    info!(session.id = %session, %epoch, held = %held.placement.epoch, "a stale placement is ignored");
                    return;
                }
                std::cmp::Ordering::Less => {
                    held.end(End::new(EndReason::WorkerLost, "a newer placement of the session exists"));
                    predecessor = Some(held.done.clone());
                }
            }
        }
        if table.over.get(&session).is_some_and(|over| over.epoch >= epoch) {
            info!(session.id = %session, %epoch, "a placement that is over already is not started");
            if !self.inner.outbox.again(session, epoch) {
                let report = refusal(session, epoch, "this placement is over already");
                self.inner.outbox.session(session, report);
            }
            return;
        }
        match self.admit(&table, &placement, free_bytes) {
            Ok(backend) => {
                let slot = self.slot(placement, backend.backend(), false);
                self.enter(&mut table, slot, backend, Origin::Placed { predecessor });
            }
            Err(message) => {
                info!(session.id = %session, %epoch, why = message, "placement refused");
                self.metrics().refused();
                self.inner.outbox.session(session, refusal(session, epoch, &message));
            }
        }
    }

    /// The placement, with this worker's task defaults where it leaves gaps. The coordinator has laid the
    /// session's over the template's; what neither sets is the worker's, and its own gaps are built in.
    fn completed(&self, wire: v1::PlaceSession) -> Result<Placement, Error> {
        let mut placement = Placement::try_from(wire)?;
        placement.task_defaults = placement.task_defaults.over(self.inner.settings.task_defaults).into();
        Ok(placement)
    }

    fn admit(
        &self,
        table: &Table,
        placement: &Placement,
        free_bytes: u64,
    ) -> Result<Arc<dyn SandboxBackend>, String> {
        if let Some(why) = &table.closed {
            return Err(why.clone());
        }
        if table.cordoned {
            return Err("the worker is cordoned".to_owned());
        }
        if let Some(why) = self.inner.settings.exits.refuses(&placement.egress) {
            return Err(why.to_owned());
        }
        let reserved = table.reserved(placement.session);
        let store = self.inner.workspaces.store();
        let wanted = store.footprint(&placement.limits);
        let disk = Disk {
            free_bytes,
            margin_bytes: self.inner.settings.disk_margin_bytes,
            promised_bytes: table.promised(store, placement.session),
            wanted_bytes: wanted.files.saturating_add(wanted.later),
        };
        admission::admit(&self.inner.settings.capacity, &reserved, &placement.limits, disk)?;
        self.inner.backends.resolve(&placement.template).map_err(|error| error.to_string())
    }

    fn enter(&self, table: &mut Table, slot: Slot, backend: Arc<dyn SandboxBackend>, origin: Origin) {
        let slot = Arc::new(slot);
        if matches!(origin, Origin::Placed { .. }) {
            slot.enter(&self.inner.outbox, SessionState::Placed, "");
        }
        table.slots.insert(slot.placement.session, slot.clone());
        self.inner.count.send_replace(table.slots.len());
        let initial = slot.desired.borrow().clone();
        let actor = Actor { inner: self.inner.clone(), initial, slot, backend, exit: Default::default() };
        spawn("session", actor.run(origin));
    }

    fn slot(&self, placement: Placement, backend: Backend, paused: bool) -> Slot {
        let settings = &self.inner.settings;
        Slot::new(placement, backend, paused, (settings.session_calls, settings.metrics.clone()))
    }

    /// Ends a session; one that is not held counts as ended, and stays so.
    pub fn end(&self, wire: &v1::EndSession) {
        let Ok(session) = wire.session_id.parse::<SessionId>() else { return };
        let epoch = Epoch(wire.epoch);
        let reason = berth_proto::convert::end_reason(wire.reason).unwrap_or(EndReason::Deleted);
        let mut table = self.inner.lock();
        match table.slots.get(&session) {
            Some(held) if held.placement.epoch > epoch => {
                debug!(session.id = %session, %epoch, "the end of an older placement is ignored");
                return;
            }
            Some(held) => {
                held.end(End::new(reason, ""));
                if held.placement.epoch == epoch {
                    return;
                }
            }
            None => {}
        }
        table.bury(session, epoch, false);
        let known = self.inner.outbox.again(session, epoch);
        if !known {
            let report = v1::SessionReport {
                session_id: session.to_string(),
                epoch: epoch.0,
                state: v1::SessionState::Ended.into(),
                end_reason: v1::EndReason::from(reason).into(),
                message: "the worker does not hold it".to_owned(),
                ..Default::default()
            };
            self.inner.outbox.session(session, report);
        }
    }

    pub fn pause(&self, wire: &v1::PauseCommand) {
        self.wish(&wire.session_id, wire.epoch, |desired| desired.paused = wire.paused);
        let resumed = wire.session_id.parse().ok().filter(|_| !wire.paused);
        if let Some(slot) = resumed.and_then(|session| self.held(session)) {
            slot.stay();
        }
    }

    pub fn update(&self, wire: v1::UpdateCommand) {
        let expires_at = wire.expires_at.and_then(|at| SystemTime::try_from(at).ok());
        let expires = slot::deadline(wire.expires_in.and_then(|left| Duration::try_from(left).ok()));
        let idle = match berth_proto::convert::optional_limit("idle_timeout", wire.idle_timeout) {
            Ok(idle) => idle.flatten(),
            Err(error) => {
                tracing::warn!(%error, "an update makes no sense");
                return;
            }
        };
        let egress = match wire.egress.map(Egress::try_from).transpose() {
            Ok(egress) => egress,
            Err(error) => {
                tracing::warn!(%error, "an update makes no sense");
                return;
            }
        };
        self.wish(&wire.session_id, wire.epoch, |desired| {
            if let Some(egress) = egress {
                desired.egress = egress;
            }
            desired.expires_at = expires_at;
            desired.expires = expires;
            desired.idle_timeout = idle;
        });
    }

    fn wish(&self, session: &str, epoch: u64, change: impl FnOnce(&mut slot::Desired)) {
        let Ok(session) = session.parse::<SessionId>() else { return };
        let held = self.inner.lock().slots.get(&session).cloned();
        match held {
            Some(slot) if slot.placement.epoch == Epoch(epoch) => slot.desired.send_modify(change),
            _ => debug!(session.id = %session, epoch, "a command for a session that is not held"),
        }
    }

    /// Ends all sessions, for this reason.
    pub fn end_all(&self, reason: EndReason, message: &str) {
        for slot in self.inner.lock().slots.values() {
            slot.end(End::new(reason, message));
        }
    }

    /// Ends the sessions in which nothing runs, for this reason, and says how many are left. While the coordinator
    /// attends to it, a session that leaves with a checkpoint is its to end.
    pub fn end_quiet(&self, reason: EndReason, message: &str, linger: Duration, attended: bool) -> usize {
        let table = self.inner.lock();
        let awaited = |slot: &Slot| attended && slot.goes_with_a_checkpoint() && !slot.ends();
        let (busy, quiet): (Vec<_>, Vec<_>) =
            table.slots.values().partition(|slot| slot.busy(linger) || awaited(slot));
        for slot in quiet {
            slot.end(End::new(reason, message));
        }
        busy.len()
    }

    /// Returns when no session is held.
    pub async fn empty(&self) {
        let mut count = self.inner.count.subscribe();
        let _ = count.wait_for(|count| *count == 0).await;
    }

    fn held(&self, session: SessionId) -> Option<Arc<Slot>> {
        self.inner.lock().slots.get(&session).cloned()
    }

    /// Why a session is not held. Its end may be known here before the coordinator has heard of it.
    fn not_held(&self, session: SessionId) -> Error {
        match self.inner.lock().over.get(&session) {
            Some(over) if over.moves => slot::moves(),
            Some(_) => Error::precondition(Reason::SessionEnded, "the session is over"),
            None => Error::not_found(Reason::SessionNotFound, format!("the worker has no session {session}")),
        }
    }
}

fn refusal(session: SessionId, epoch: Epoch, message: &str) -> v1::SessionReport {
    v1::SessionReport {
        session_id: session.to_string(),
        epoch: epoch.0,
        state: v1::SessionState::Ended.into(),
        end_reason: v1::EndReason::NoPlace.into(),
        message: message.to_owned(),
        refused: true,
        ..Default::default()
    }
}
