//! The cgroup tree of docker sessions, which the worker makes beside Docker's own and gives
//! to the agents. Docker's cgroup then holds the agent alone, and its limits are only the
//! agent's: an OOM of tasks never reaches PID 1.
//!
//! The tree is made when the first session needs it and removed with the last one, so that
//! a worker that only looks leaves nothing. Its name differs from the native backend's:
//! each may sweep only what is its own.
//!
//! A worker in a container sees cgroups of its own only, which go with that container. It makes the tree below the root of
//! the host's, where it has those mounted ([`HostPaths::cgroups`](super::hosts::HostPaths::cgroups)).
//!
//! The agent is left in Docker's cgroups rather than moved into `agent/` of the tree: the
//! engine keeps its figures and its limits, and nothing can be forked in between.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use berth_proto::{Error, SessionId, agent_config, domain::Limits};

use super::engine::Facts;
use crate::sandbox::cgroup::{self, CgroupTree, Layout};

/// Where the agent finds its cgroups: `<CG_DIR>/<name>`.
pub const CG_DIR: &str = "/.berth/cg";

#[derive(Clone)]
pub struct Cgroups {
    instance: String,
    only_looks: bool,
    /// Where the host's are mounted, if they are not ours too.
    host: Arc<OnceLock<PathBuf>>,
    tree: Arc<Mutex<Option<CgroupTree>>>,
    /// What earlier processes of this instance made.
    earlier: Arc<OnceLock<Vec<PathBuf>>>,
}

/// What one session has: mounts and the agent's view. Empty where the tree can't be used.
#[derive(Default)]
pub struct Made {
    pub binds: Vec<(PathBuf, String)>,
    pub config: agent_config::Cgroups,
}

impl Cgroups {
    /// `only_looks`: makes nothing ([`CgroupTree::found`]).
    pub fn new(instance: &str, only_looks: bool) -> Self {
        let instance = format!("{instance}-docker");
        Self { instance, only_looks, host: Arc::default(), tree: Arc::default(), earlier: Arc::default() }
    }

    /// The host's are mounted there. Said before the tree is used, and always the same.
    pub fn host_at(&self, mounted: &Path) {
        let _ = self.host.set(mounted.to_owned());
    }

    fn tree(&self) -> MutexGuard<'_, Option<CgroupTree>> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        held: &mut Option<CgroupTree>,
        work: impl FnOnce(&CgroupTree) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(tree) = held {
            return work(tree);
        }
        let mounted = self.host.get().map(PathBuf::as_path);
        // Looked for once: the whole of each hierarchy.
        let earlier = match self.earlier.get() {
            Some(earlier) => earlier.clone(),
            None => {
                let found = cgroup::earlier(&self.instance, mounted)?;
                self.earlier.get_or_init(|| found).clone()
            }
        };
        let tree = match mounted {
            _ if self.only_looks => CgroupTree::found(earlier),
            Some(mounted) => CgroupTree::of_host(&self.instance, mounted)?.also_at(earlier),
            None => CgroupTree::detect(&self.instance)?.also_at(earlier),
        };
        work(held.insert(tree))
    }

    /// Makes a session's cgroups. Blocks, shortly.
    pub fn create(&self, session: &SessionId, limits: &Limits) -> Result<Made, Error> {
        let mut held = self.tree();
        self.with(&mut held, |tree| {
            // Container root is the host's root here: see `why_not`. The agent's own share, uploads
            // included, is the container's.
            let made = tree.create(&session.to_string(), limits, 0, (0, 0), None)?;
            Ok(Made { config: made.agent_config(Path::new(CG_DIR)), binds: made.binds })
        })
    }

    /// Kills what is in a session's cgroups and removes them. Blocks for up to ten seconds.
    pub fn remove(&self, session: &SessionId) -> Result<(), Error> {
        let mut held = self.tree();
        let tree = self.with(&mut held, |tree| Ok(tree.clone()))?;
        drop(held);
        // Not under the lock: processes may take their time to die.
        let removed = tree.remove(&session.to_string());
        self.close_unused();
        removed
    }

    /// Sessions that have a cgroup here. Blocks, shortly.
    pub fn sessions(&self) -> Result<Vec<SessionId>, Error> {
        let mut held = self.tree();
        let sessions = self.with(&mut held, |tree| Ok(tree.sessions()));
        drop(held);
        self.close_unused();
        sessions
    }

    /// The layout, or why there is no tree. Leaves nothing. Blocks, shortly.
    pub fn probe(&self) -> Result<Layout, Error> {
        let mut held = self.tree();
        let layout = self.with(&mut held, |tree| Ok(tree.layout()));
        drop(held);
        self.close_unused();
        layout
    }

    /// Removes the tree's own directories, unless a session is in it.
    pub fn close(&self) {
        if let Some(tree) = self.tree().take() {
            tree.close();
        }
    }

    fn close_unused(&self) {
        // A worker that lives may be about to need them.
        if self.only_looks {
            return;
        }
        let mut held = self.tree();
        // On v2 finding our place moves this process into a leaf: that is done once.
        let unused = held.as_ref().is_some_and(|t| t.layout() != Layout::V2 && t.sessions().is_empty());
        if let (true, Some(tree)) = (unused, held.take_if(|_| unused)) {
            tree.close();
        }
    }
}

/// Why the tree is not for sandboxes of this runtime, whatever the engine is. The agent moves a task by writing its pid
/// to a file of the host: with a kernel of its own between them (gVisor, a virtual machine) that number would be some
/// other process of the host's.
pub fn why_not_with(runtime: Option<&str>) -> Option<&'static str> {
    runtime.map(|_| "BERTH_DOCKER_RUNTIME is set: in its sandboxes process ids may not be the host's")
}

/// Why the tree can't be used with this engine, whatever the machine has. `cut_off`: this is a container without the
/// host's cgroups.
pub fn why_not(facts: &Facts, cut_off: bool) -> Option<&'static str> {
    if cut_off {
        Some("the worker runs in a container into which the host's /sys/fs/cgroup is not mounted")
    } else if facts.rootless {
        Some("the engine runs without root")
    } else if facts.remapped {
        Some("the engine maps user ids")
    } else if !nix::unistd::geteuid().is_root() {
        Some("the worker does not run as root")
    } else if facts.cgroup_version == "2" && facts.cgroup_driver == "systemd" {
        // Moving tasks out of systemd's scope for the container breaks its one-writer rule.
        Some("the engine leaves cgroups to systemd")
    } else {
        None
    }
}
