//! What an earlier process of this worker left, at start: sandboxes that are alive are taken up with
//! their sessions, everything else of this instance is removed. Only what carries our instance's mark
//! or lies in our own directory is touched.
//!
//! Runs before the link dials, so that the first Hello lists what is held.

use std::{collections::HashSet, path::Path, time::Duration};

use berth_proto::{
    Reason, SessionId,
    domain::{Backend, SessionState},
};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    Sessions,
    actor::Origin,
    launch::{remove_dirs, take_down},
    record::{self, Found},
};
use crate::{
    sandbox::{Identity, Running, SessionDirs},
    state::{State, quarantine},
};

/// Time for a backend to say whether a sandbox lives.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A backend that can't be asked says nothing about its sandboxes, so it is asked again for so long: an engine that is
/// started anew together with its worker soon answers. The coordinator waits for longer.
const ADOPT_PATIENCE: Duration = Duration::from_secs(60);
const ADOPT_PAUSE: Duration = Duration::from_secs(1);
/// Time for removing one thing that was left. What takes longer is left to the next start.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);

impl Sessions {
    /// Takes up or removes what is there. Returns how many sessions live on.
    pub async fn adopt(&self, state: &State) -> usize {
        let (sessions, others) = match self.inner.workspaces.list() {
            Ok(listing) => listing,
            Err(error) => {
                warn!(%error, "the sessions directory can't be read");
                return 0;
            }
        };
        for path in others {
            warn!(path = %path.display(), "no session's directory: kept aside");
            self.keep_aside(state, &path).await;
        }
        let patience = Instant::now() + ADOPT_PATIENCE;
        let mut alive = HashSet::new();
        let mut corrupt = HashSet::new();
        for session in sessions {
            let dirs = self.inner.workspaces.dirs(session);
            match record::read(session, &dirs) {
                Found::Nothing => self.remove(session, None).await,
                Found::Corrupt(error) => {
                    warn!(session.id = %session, %error, "the session's record can't be read: kept aside");
                    corrupt.insert(session);
                }
                Found::Session { placement, backend, paused, identity } => {
                    let running = self.find(backend, identity.as_ref(), &dirs, patience).await;
                    // One whose files were still coming was never ready: half of them is none.
                    let whole = placement.restore.is_none();
                    match (running, self.inner.backends.get(backend)) {
                        (Some(running), Some(sandboxes)) if whole => {
                            alive.insert(session.to_string());
                            let slot = self.slot(*placement, backend, paused);
                            slot.set_allocated();
                            let mut table = self.inner.lock();
                            self.enter(&mut table, slot, sandboxes, Origin::Adopted(running));
                        }
                        _ => {
                            info!(session.id = %session, "the session's sandbox is gone: removing the rest");
                            self.remove(session, identity.map(|identity| (backend, identity))).await;
                        }
                    }
                }
            }
        }
        self.sweep(&alive, &corrupt).await;
        // Their sandboxes are gone now.
        for session in corrupt {
            self.keep_aside(state, &self.inner.workspaces.dirs(session).root).await;
        }
        alive.len()
    }

    async fn find(
        &self,
        backend: Backend,
        identity: Option<&Identity>,
        dirs: &SessionDirs,
        patience: Instant,
    ) -> Option<Running> {
        let sandboxes = self.inner.backends.get(backend)?;
        let identity = identity?;
        loop {
            match tokio::time::timeout(ADOPT_TIMEOUT, sandboxes.adopt(identity, dirs)).await {
                Ok(Ok(running)) => return running,
                Ok(Err(error)) => {
                    warn!(?error, "a sandbox could not be taken up");
                    if error.reason() != Reason::BackendUnavailable {
                        return None;
                    }
                }
                Err(_) => warn!("the {backend} backend did not say in time whether a sandbox lives"),
            }
            if Instant::now() >= patience {
                return None;
            }
            tokio::time::sleep(ADOPT_PAUSE).await;
        }
    }

    async fn remove(&self, session: SessionId, identity: Option<(Backend, Identity)>) {
        let work = async {
            match identity.and_then(|(backend, identity)| Some((self.inner.backends.get(backend)?, identity)))
            {
                Some((backend, identity)) => {
                    take_down(&*backend, &self.inner.workspaces, session, Some(&identity)).await;
                }
                None => remove_dirs(&self.inner.workspaces, session).await,
            }
        };
        if tokio::time::timeout(REMOVE_TIMEOUT, work).await.is_err() {
            warn!(session.id = %session, "what is left of the session could not be removed in time");
        }
    }

    /// Removes the sandboxes of this instance that belong to no session held, and their directories but
    /// those that are to be `kept`.
    async fn sweep(&self, alive: &HashSet<String>, kept: &HashSet<SessionId>) {
        for backend in self.inner.backends.all() {
            let left = match tokio::time::timeout(ADOPT_TIMEOUT, backend.leftovers()).await {
                Ok(Ok(left)) => left,
                Ok(Err(error)) => {
                    // One that can't be used was told of when backends were chosen.
                    if self.inner.backends.usable().get(&backend.backend()) == Some(&true) {
                        warn!(?error, backend = %backend.backend(), "leftovers can't be listed");
                    }
                    continue;
                }
                Err(_) => {
                    warn!(backend = %backend.backend(), "leftovers could not be listed in time");
                    continue;
                }
            };
            for identity in left.iter().filter(|identity| !alive.contains(identity.session())) {
                info!(session.id = identity.session(), backend = %backend.backend(), "removing a leftover sandbox");
                match tokio::time::timeout(REMOVE_TIMEOUT, backend.remove(identity)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(?error, "a leftover could not be removed"),
                    Err(_) => warn!("a leftover could not be removed in time"),
                }
                match identity.session().parse() {
                    Ok(session) if !kept.contains(&session) => self.remove(session, None).await,
                    _ => {}
                }
            }
        }
    }

    /// Moves what can't be understood out of the way, for people to look at. It is never removed: where no
    /// place is to be had it stays where it is, and is said so at each start.
    async fn keep_aside(&self, state: &State, path: &Path) {
        // Whoever looks at it mounts the image themselves; for us it is over.
        if let Err(error) = self.inner.workspaces.release(path).await {
            warn!(%error, path = %path.display(), "what is mounted there stays");
        }
        let beside = self.inner.workspaces.base().parent().unwrap_or(Path::new("/")).to_owned();
        // The second is on the same file system, if BASE_WORKSPACE is on another than the state.
        match state.quarantine(path).or_else(|_| quarantine(&beside, path)) {
            Ok(target) => warn!(path = %path.display(), kept = %target.display(), "kept aside"),
            Err(error) => {
                error!(%error, path = %path.display(), "could not be kept aside: it stays, look at it and move it");
            }
        }
    }

    /// A held session's state, for status and tests.
    pub fn state_of(&self, session: SessionId) -> Option<SessionState> {
        self.held(session).map(|slot| slot.state())
    }
}
