//! What the agent gives up before it does anything else: inherited descriptors, core
//! dumps of itself, and every capability but the three that it works with.
//!
//! It keeps SETUID and SETGID (to become the task's user, and its file threads), and
//! KILL (to end tasks). SETPCAP only lives until the bounding set is empty.

use std::{fs, io};

use berth_proto::agent_config::AgentConfig;
use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::{
        prctl,
        stat::{Mode, umask},
    },
    unistd::{Uid, getpid},
};

use crate::sys;

const KEPT: [Capability; 3] = [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_KILL];

/// Levels of protection that tasks get here, e.g. "seccomp".
pub type Protections = Vec<String>;

/// Closes what was inherited. First, before anything is opened.
pub fn descriptors() -> io::Result<()> {
    sys::close_inherited()
}

/// Locks the agent down, or says why this can't be an agent.
pub fn apply(config: &AgentConfig) -> Result<Protections, String> {
    if config.user.uid == 0 || config.user.gid == 0 {
        return Err("the configured user is root: tasks never run as root".to_owned());
    }
    umask(Mode::from_bits_truncate(0o022));
    prctl::set_dumpable(false).map_err(|e| format!("PR_SET_DUMPABLE: {e}"))?;
    if getpid().as_raw() != 1 {
        prctl::set_child_subreaper(true).map_err(|e| format!("PR_SET_CHILD_SUBREAPER: {e}"))?;
    }
    // Lowering it needs a capability that most launchers do not leave us.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    let bounded = drop_capabilities()?;
    let mut protections = vec!["no-new-privs".to_owned(), "uid".to_owned()];
    if bounded {
        protections.push("bounding-set".to_owned());
    }
    if config.seccomp {
        protections.push("seccomp".to_owned());
    }
    let cgroups = &config.cgroups;
    if cgroups.v2.is_some() {
        protections.push("cgroup-kill".to_owned());
    } else if cgroups.v1_memory.is_some() {
        protections.push("cgroup-walk".to_owned());
    } else {
        protections.push("guard".to_owned());
    }
    if cgroups.v1_memory.is_some() || cgroups.v2_memory {
        protections.push("task-memory".to_owned());
    }
    Ok(protections)
}

/// What the server still needs once its file threads are what they are: KILL. For the
/// calling thread, and all that it starts afterwards.
pub fn only_kill() -> Result<(), caps::errors::CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = had.intersection(&CapsHashSet::from([Capability::CAP_KILL])).copied().collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// True if the bounding set is empty now.
fn drop_capabilities() -> Result<bool, String> {
    let failed = |what: &str, error: caps::errors::CapsError| format!("{what}: {error}");
    let had = caps::read(None, CapSet::Permitted).map_err(|e| failed("capabilities", e))?;
    let needed = [Capability::CAP_SETUID, Capability::CAP_SETGID];
    if let Some(missing) = needed.iter().find(|cap| !had.contains(cap)) {
        return Err(format!(
            "{missing} is missing (uid {}): the agent can't start tasks as another user without it; run it as root of its sandbox",
            Uid::current()
        ));
    }
    // Older kernels and some launchers have no ambient set to clear.
    let _ = caps::clear(None, CapSet::Ambient);
    if had.contains(&Capability::CAP_SETPCAP) {
        caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)
            .map_err(|e| failed("CAP_SETPCAP", e))?;
        for cap in caps::all() {
            if caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, cap).map_err(|e| failed("the bounding set", e))?;
            }
        }
    }
    let kept: CapsHashSet = KEPT.into_iter().filter(|cap| had.contains(cap)).collect();
    caps::set(None, CapSet::Effective, &kept).map_err(|e| failed("effective capabilities", e))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(|e| failed("permitted capabilities", e))?;
    caps::clear(None, CapSet::Inheritable).map_err(|e| failed("inheritable capabilities", e))?;
    Ok(caps::read(None, CapSet::Bounding).is_ok_and(|set| set.is_empty()))
}
