//! Checkpoints: taking them through a session's worker, keeping them, and letting go of what nobody uses.
//!
//! The coordinator trusts no worker: a piece is opened and hashed before it is kept (or one worker could plant
//! another's files), and a manifest is read and checked before its checkpoint is told of.

mod blobs;
mod catalog;
mod claim;
mod drain;
mod park;
mod policy;
mod steady;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use berth_checkpoint::{Digest, PIECE_MAX, add_piece, unpack_manifest, unpack_root};
use berth_proto::{
    Code, Error, Reason, SessionId,
    convert::{self, duration_out, time_out},
    domain::{CheckpointPolicy, SessionState},
    v1::{self, worker_data_service_client::WorkerDataServiceClient},
    world,
};
use bytes::Bytes;
use tokio::{
    sync::{OnceCell, RwLock, Semaphore},
    time::Instant,
};

pub use blobs::{Blobs, Claim, Location};

pub use catalog::{Added, Catalog, Known, NewArtifact, Record, Room};
pub use claim::claim;
pub use park::keep_parking;
pub use policy::keep_policies;
pub use sweep::sweep_for_ever;

use crate::{
    driver::{CallError, Handle, Shared},
    fleet::{Event, Gone, Kept, Session, no_session, not_ready, session_ended, session_parked},
    store::{self, StoreError},
    tenant::Sight,
};

/// How often the store is asked to note a session's checkpoint ...
const KNOWN_TRIES: u32 = 10;
/// ... and the time between.
const KNOWN_PAUSE: Duration = Duration::from_millis(500);
/// Checkpoints that are taken at the same time, of all sessions.
const AT_ONCE: usize = 8;
/// A session's tasks don't stand still for longer: then the checkpoint fails.
pub const FREEZE_LIMIT: Duration = Duration::from_secs(30);
/// For the worker to be reached.
const CHANNEL_WITHIN: Duration = Duration::from_secs(5);
/// For a whole checkpoint: export, cutting, and sending what is new.
const TAKE_WITHIN: Duration = Duration::from_secs(900);
/// A sealed piece may be a little larger than what is in it.
const SEALED_MAX: usize = PIECE_MAX + (PIECE_MAX >> 6) + 1024;

/// Why a checkpoint is taken, and for how long it is kept.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub cause: v1::CheckpointCause,
    pub note: String,
    pub keep_for: Option<Duration>,
    /// The session's tasks don't stand still for longer.
    pub freeze_limit: Duration,
    /// It is to leave its worker with this one.
    pub parting: Option<Parting>,
}

/// How a session gets ready to leave its worker: see [`v1::Parting`].
#[derive(Clone, Copy, Debug)]
pub struct Parting {
    pub settle: Duration,
    pub anyway: bool,
}

impl Wanted {
    /// One that nobody asked for but the session's policy.
    pub fn by_policy(cause: v1::CheckpointCause, policy: &CheckpointPolicy) -> Self {
        let (note, parting) = Default::default();
        Self { cause, note, keep_for: Some(policy.keep_for), freeze_limit: FREEZE_LIMIT, parting }
    }
}

/// All of it.
pub struct Checkpoints {
    pub blobs: Arc<Blobs>,
    pub catalog: Arc<Catalog>,
    shared: Shared,
    driver: Handle,
    slots: Semaphore,
    /// Shared by those who store, alone for who removes: between a row's end and its blob's nobody may store it anew.
    removing: RwLock<()>,
    /// Held while the fleet is told of a checkpoint that is gone.
    forgetting: tokio::sync::Mutex<()>,
    /// Held while one of that session is taken.
    turns: Mutex<HashMap<SessionId, Arc<tokio::sync::Mutex<()>>>>,
    /// Set once the blob store is known to be this catalog's.
    ours: OnceCell<()>,
}

impl Checkpoints {
    pub fn new(blobs: Arc<Blobs>, catalog: Arc<Catalog>, shared: Shared, driver: Handle) -> Arc<Self> {
        let slots = Semaphore::new(AT_ONCE);
        let (removing, forgetting, turns, ours) = Default::default();
        Arc::new(Self { blobs, catalog, shared, driver, slots, removing, forgetting, turns, ours })
    }

    /// Takes a checkpoint, and returns when it is kept.
    pub async fn take(&self, by: &Sight, id: SessionId, wanted: Wanted) -> Result<Record, Error> {
        let session = self.live(by, &id)?;
        // One at a time of a session; the others wait.
        let turn = self.turn(id);
        let _turn = turn.lock().await;
        let session = self.live(by, &session.id)?;
        // Before any task stands still for it.
        self.ours().await?;
        let _slot = self.slots.acquire().await.map_err(|_| stopping())?;
        // Its time. What is written from now on may be in it or not; all that was written before is.
        let as_of = world::now();
        let taken = self.ask_worker(&session, &wanted).await?;
        let root = Digest::from_wire(&taken.root).map_err(damaged)?;
        let pieces = self.check(root).await?;
        let record = record(&session, wanted, &taken, root, as_of, self.catalog.now());
        // Nobody removes it before its session names it.
        let alone = self.forgetting.lock().await;
        if let Some(lost) = world::on_thread(self.catalog.add(&record, &pieces)).await.map_err(unkept)? {
            let text = format!("the checkpoint's worker did not send piece {lost:?}");
            return Err(Error::new(Code::DataLoss, Reason::CheckpointFailed, text));
        }
        tracing::info!(session.id = %id, checkpoint.id = record.shown.id, cause = record.shown.cause().as_str_name(),
            content_bytes = taken.content_bytes, stored_bytes = taken.stored_bytes, "checkpoint taken");
        let kept = Box::new(record.kept());
        let event = Event::Checkpointed { session: id, epoch: session.epoch, kept };
        let known = self.make_known(event).await;
        drop(alone);
        known?;
        if record.shown.cause() != v1::CheckpointCause::Requested {
            self.keep_newest(&session).await;
        }
        Ok(record)
    }

    /// Tells the session of its checkpoint. Whoever was told that there is one may count on it: a recovery goes back to
    /// what the session's record names. So a store that takes nothing just now is asked again for a while.
    async fn make_known(&self, event: Event) -> Result<(), Error> {
        for _ in 1..KNOWN_TRIES {
            match self.driver.call(event.clone()).await {
                // The checkpoint stands, whatever became of its session meanwhile.
                Ok(()) | Err(CallError::Refused(_)) => return Ok(()),
                Err(CallError::Failed(_)) => tokio::time::sleep(KNOWN_PAUSE).await,
            }
        }
        match self.driver.call(event).await {
            Ok(()) | Err(CallError::Refused(_)) => Ok(()),
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    fn turn(&self, id: SessionId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds any more.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(id).or_default().clone()
    }

    /// Whether one of this session is being taken.
    fn busy(&self, id: SessionId) -> bool {
        self.turn(id).try_lock().is_err()
    }

    fn live(&self, by: &Sight, id: &SessionId) -> Result<Arc<Session>, Error> {
        let session = self.shared.view.session(by, id).ok_or_else(|| no_session(id))?;
        match session.state {
            SessionState::Ready | SessionState::Paused => Ok(session),
            SessionState::Pending | SessionState::Placed => Err(not_ready()),
            SessionState::Parked => Err(session_parked(id)),
            SessionState::Ending | SessionState::Ended => Err(session_ended(session.end, &session.message)),
        }
    }

    async fn ask_worker(
        &self,
        session: &Session,
        wanted: &Wanted,
    ) -> Result<v1::TakeCheckpointResponse, Error> {
        let worker = session.worker.as_ref().ok_or_else(not_ready)?;
        let channel = self.shared.links.channel(worker, Instant::now() + CHANNEL_WITHIN).await?;
        let request = v1::TakeCheckpointRequest {
            session_id: session.id.to_string(),
            epoch: session.epoch.0,
            max_bytes: session.spec.limits.disk_bytes,
            freeze_limit: Some(duration_out(wanted.freeze_limit)),
            parting: wanted.parting.map(|parting| v1::Parting {
                settle: Some(duration_out(parting.settle)),
                anyway: parting.anyway,
            }),
        };
        let mut client = WorkerDataServiceClient::new(channel);
        let answer = tokio::time::timeout(TAKE_WITHIN, client.take_checkpoint(request)).await;
        let late =
            |_| Error::new(Code::DeadlineExceeded, Reason::CheckpointFailed, "the worker took too long");
        match answer.map_err(late)? {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(berth_proto::error::from_status(&status, Reason::CheckpointFailed)),
        }
    }

    /// Reads a manifest through and checks it. All pieces that it needs, itself included.
    async fn check(&self, root: Digest) -> Result<BTreeSet<Digest>, Error> {
        let listed = unpack_root(&self.read(root).await?.1).map_err(damaged)?;
        let mut bytes = Vec::new();
        for digest in &listed {
            add_piece(&mut bytes, &self.read(*digest).await?.1).map_err(damaged)?;
        }
        let check = move || unpack_manifest(&bytes);
        let manifest = world::blocking(check).await.map_err(|_| stopping())?.map_err(damaged)?;
        let mut pieces: BTreeSet<Digest> = listed.into_iter().collect();
        pieces.insert(root);
        for piece in &manifest.content {
            pieces.insert(Digest::from_wire(&piece.digest).map_err(damaged)?);
        }
        Ok(pieces)
    }

    /// Forgets a checkpoint; nobody shall be restored from it any more: a session of which it is the newest goes to the
    /// next older one. Refused for one that a parked session needs.
    pub async fn delete(&self, by: &Sight, id: &str) -> Result<(), Error> {
        // One after the other: what is named as the next older one must not go before that is known.
        let _alone = self.forgetting.lock().await;
        // Of one that is gone something may still be left to do; of another's nothing.
        let seen = || async { world::on_thread(self.catalog.get(by, id)).await.map_err(unkept) };
        if *by != Sight::All && seen().await?.is_none() {
            return Ok(());
        }
        self.gone(id, None, None).await?;
        world::on_thread(self.catalog.delete(id)).await.map(drop).map_err(unkept)
    }

    /// Has the fleet pass over a checkpoint. `of`: its session, should the catalog not know it any more.
    async fn gone(&self, id: &str, of: Option<SessionId>, damage: Option<String>) -> Result<(), Error> {
        let older = world::on_thread(self.catalog.older(id, of)).await.map_err(unkept)?;
        let older = older.map(|record| (record.session, record.kept()));
        let gone = Gone { checkpoint: id.to_owned(), damage, older };
        Ok(self.driver.call(Event::CheckpointGone(Box::new(gone))).await?)
    }

    /// A piece is lost or damaged: it is noted, and no session shall be restored from a checkpoint that has it. The
    /// fleet knows that when this returns, and so before the worker that asked for the piece is told.
    async fn damaged_piece(&self, digest: Digest, why: &str) -> Result<(), Error> {
        let _alone = self.forgetting.lock().await;
        world::on_thread(self.catalog.lost(digest)).await.map_err(unkept)?;
        let broken = world::on_thread(self.catalog.using(digest)).await.map_err(unkept)?;
        // The catalog may not know it any more, although a session still names it.
        let names = |kept: &Kept| kept.from.root == digest.0 || broken.contains(&kept.from.checkpoint);
        let live = |s: &Session| s.state != SessionState::Ended && s.checkpoint.as_ref().is_some_and(names);
        let mut told = BTreeSet::new();
        for session in self.shared.view.list(&Sight::All, None, usize::MAX, live) {
            let Some(kept) = &session.checkpoint else { continue };
            if told.insert(kept.from.checkpoint.clone()) {
                self.gone(&kept.from.checkpoint, Some(session.id), Some(why.to_owned())).await?;
            }
        }
        Ok(())
    }

    /// A sealed piece that is what it says, and what is in it. One that is not is remembered as lost, so that the next
    /// checkpoint which has it brings it again.
    pub async fn read(&self, digest: Digest) -> Result<(Bytes, Vec<u8>), Error> {
        let result = self.read_unchecked(digest).await;
        if let Err(error) = &result
            && error.code() == Code::DataLoss
        {
            tracing::error!(piece = %digest, "a piece of a checkpoint is lost or damaged");
            // Whoever asked is told of the damage, whatever becomes of the rest.
            if let Err(failed) = self.damaged_piece(digest, error.message()).await {
                tracing::error!(?failed, piece = %digest, "what the damage means could not be noted");
            }
        }
        result
    }

    async fn read_unchecked(&self, digest: Digest) -> Result<(Bytes, Vec<u8>), Error> {
        let sealed = self.blobs.get(digest).await?;
        let checked = sealed.clone();
        let open = move || berth_checkpoint::open(digest, &checked);
        let opened = world::blocking(open).await.map_err(|_| stopping())?;
        Ok((sealed, opened.map_err(damaged)?))
    }

    // ---- what workers ask -----------------------------------------------------

    /// Of these pieces, those that are not here.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Error> {
        world::on_thread(self.catalog.missing(digests)).await.map_err(unkept)
    }

    /// Keeps a piece, if it is what it says. The bytes that it added.
    pub async fn put(&self, digest: Digest, sealed: Bytes) -> Result<u64, Error> {
        if sealed.len() > SEALED_MAX {
            return Err(Error::invalid("data", "is larger than any piece"));
        }
        self.ours().await?;
        let _storing = self.removing.read().await;
        if self.missing(&[digest]).await?.is_empty() {
            return Ok(0);
        }
        let checked = sealed.clone();
        let check = move || berth_checkpoint::open(digest, &checked).map(drop);
        world::blocking(check).await.map_err(|_| stopping())?.map_err(damaged)?;
        let size = sealed.len() as u64;
        self.blobs.put(digest, sealed).await?;
        world::on_thread(self.catalog.stored(&[(digest, size)])).await.map_err(unkept)?;
        Ok(size)
    }
}

/// `steady`: the time by which it is kept.
fn record(
    session: &Session,
    wanted: Wanted,
    taken: &v1::TakeCheckpointResponse,
    root: Digest,
    as_of: SystemTime,
    steady: SystemTime,
) -> Record {
    // As the stores keep it: it is the same before and after a restart.
    let now = store::time(store::micros(as_of));
    let shown_until = wanted.keep_for.map(|keep| now + keep);
    let expires_at = wanted.keep_for.map(|keep| steady + keep);
    let shown = v1::Checkpoint {
        id: SessionId::new().to_string(),
        session_id: session.id.to_string(),
        created_at: Some(time_out(now)),
        template: session.spec.template.name.clone(),
        labels: session.labels.clone().into_iter().collect(),
        note: wanted.note,
        cause: wanted.cause.into(),
        entries: taken.entries,
        content_bytes: taken.content_bytes,
        stored_bytes: taken.stored_bytes,
        frozen_for: taken.frozen_for,
        skipped: taken.skipped,
        expires_at: shown_until.map(time_out),
        tenant: session.spec.tenant.to_string(),
    };
    let held = wanted.cause == v1::CheckpointCause::Parked;
    let spec = (*session.spec).clone();
    Record { shown, session: session.id, spec, root, created_at: now, expires_at, held }
}

fn damaged(bad: berth_checkpoint::Bad) -> Error {
    Error::new(Code::DataLoss, Reason::CheckpointFailed, format!("the checkpoint is damaged: {bad}"))
}

fn stopping() -> Error {
    Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping")
}

/// The catalog could not be read or written.
pub fn unkept(error: StoreError) -> Error {
    Error::unavailable(Reason::StoreFailed, "the catalog of checkpoints failed").cause(error.to_string())
}

/// A keep-for of a request: absent is for ever, and zero is refused.
pub fn keep_for(wire: Option<prost_types::Duration>) -> Result<Option<Duration>, Error> {
    let keep = wire.map(|keep| convert::duration("keep_for", keep)).transpose()?;
    match keep {
        Some(Duration::ZERO) => Err(Error::invalid("keep_for", "is zero: leave it out to keep it")),
        keep => Ok(keep),
    }
}
