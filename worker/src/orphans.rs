//! Sandboxes of this machine that no worker would take up: they carry the mark of a worker's state directory, and the
//! session that they were of has no directory there. A worker's start removes them; `berth doctor --fix` does so where none
//! is to be started.
//!
//! What can't be looked at counts as there: a sandbox is removed only if the directory of all sessions can be read and that of its
//! session is not in it. A worker makes a session's directory before its sandbox, so to look needs no lock; to remove does.

use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};

use berth_proto::domain::Backend;

use crate::{
    Config, StartError,
    backends::construct,
    sandbox::{Identity, SandboxBackend},
    state::{self, State},
    workspace::store::Kind,
};

/// A backend says in this time what it has.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// One sandbox is removed in this time.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Default)]
pub struct Orphans {
    found: Vec<(Arc<dyn SandboxBackend>, Identity)>,
    looked_at: Vec<Arc<dyn SandboxBackend>>,
    /// Why not all of them could be looked for.
    pub unseen: Vec<String>,
}

impl Orphans {
    /// Of which sessions, on which backends.
    pub fn sessions(&self) -> impl Iterator<Item = (Backend, &str)> {
        self.found.iter().map(|(backend, identity)| (backend.backend(), identity.session()))
    }
}

/// Looks for them, and changes nothing.
pub async fn look(config: &Config, files: Kind) -> Orphans {
    let Some(instance) = state::known_instance(&config.state_dir) else { return Orphans::default() };
    let mut orphans = Orphans::default();
    let there = match sessions(&config.state_dir) {
        Ok(there) => there,
        Err(why) => {
            orphans.unseen.push(why);
            return orphans;
        }
    };
    let (backends, _) = construct(config, &instance, &config.state_dir, files, true);
    for backend in backends {
        match tokio::time::timeout(LOOK_TIMEOUT, backend.leftovers()).await {
            Ok(Ok(left)) => {
                let gone = left.into_iter().filter(|identity| !there.contains(identity.session()));
                orphans.found.extend(gone.map(|identity| (Arc::clone(&backend), identity)));
            }
            Ok(Err(error)) => orphans.unseen.push(format!("{}: {error}", backend.backend())),
            Err(_) => orphans.unseen.push(format!("{} does not answer", backend.backend())),
        }
        orphans.looked_at.push(backend);
    }
    orphans
}

/// Removes those that are there now, with the state directory locked. How many, and which could not be. A worker that runs is
/// [`StartError::Locked`]: it looks after its own.
pub async fn remove(config: &Config, files: Kind) -> Result<(usize, Vec<String>), StartError> {
    let _state = State::open(&config.state_dir)?;
    let orphans = look(config, files).await;
    let (mut removed, mut failed) = (0, orphans.unseen);
    for (backend, identity) in orphans.found {
        match tokio::time::timeout(REMOVE_TIMEOUT, backend.remove(&identity)).await {
            Ok(Ok(())) => removed += 1,
            Ok(Err(error)) => failed.push(format!("session {}: {error}", identity.session())),
            Err(_) => failed.push(format!("session {}: it takes too long", identity.session())),
        }
    }
    // No worker has them: the state is locked.
    for backend in orphans.looked_at {
        backend.close().await;
    }
    Ok((removed, failed))
}

/// The names in the directory of sessions, wherever the last worker of this state directory had it.
fn sessions(state_dir: &Path) -> Result<HashSet<String>, String> {
    let dir = state::known_sessions(state_dir).ok_or_else(|| {
        format!(
            "{} does not say where its sessions are: no worker of this version ran there",
            state_dir.display()
        )
    })?;
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let entries = std::fs::read_dir(&dir).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}
