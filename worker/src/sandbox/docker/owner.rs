//! Who gives a session's files to its user. Root does it itself. A worker without root (but
//! with an engine) can't, so a short-lived container does it, without a network and with the
//! session's directory as all that it sees; the same takes them back when the session is
//! removed, so that the worker can delete them. That costs two containers a session.
//!
//! Where the engine maps ids (userns-remap), container ids are `base + id` on the host.

use std::{path::Path, time::Duration};

use berth_proto::{Code, Error, Reason, SessionId};
use bollard::{
    Docker,
    models::{ContainerCreateBody, HostConfig, Mount, MountType},
    query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder},
};
use futures::StreamExt;
use nix::unistd::{getegid, geteuid};

use super::{
    engine::{CHANGE, CallError, Facts, call},
    files,
    spec::{LABEL_INSTANCE, LABEL_SESSION},
    uids,
};
use crate::sandbox::SessionDirs;

/// For a whole tree: as long as removing it may take.
const TREE: Duration = Duration::from_secs(60);
const INSIDE: &str = "/session";

/// How owners are set here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By this process. `base` is the host's id of container root.
    Direct { base: (u32, u32) },
    /// By a container. `worker` are this process's ids as containers see them.
    Helper { worker: (u32, u32) },
}

impl Owner {
    /// # Errors
    /// FAILED_PRECONDITION where neither can work.
    pub fn choose(facts: &Facts) -> Result<Self, Error> {
        Self::of(facts, geteuid().as_raw(), getegid().as_raw())
    }

    fn of(facts: &Facts, uid: u32, gid: u32) -> Result<Self, Error> {
        let failed = |what: &str, hint: &str| {
            Error::new(Code::FailedPrecondition, Reason::BackendUnavailable, what).hint(hint)
        };
        match (uid, facts.rootless, facts.remap_base) {
            (0, false, Some(base)) => Ok(Self::Direct { base }),
            (0, false, None) if facts.remapped => Err(failed(
                "the engine maps user ids in a way that is not known",
                "turn its userns-remap off",
            )),
            (0, false, None) => Ok(Self::Direct { base: (0, 0) }),
            // The engine's user is container root, and the worker runs as that user, or could not use its socket.
            (_, true, _) => Ok(Self::Helper { worker: (0, 0) }),
            (_, false, _) if facts.remapped => Err(failed(
                "the engine maps user ids, so that a worker without root can't share files with sandboxes",
                "run the worker as root, or turn the engine's userns-remap off",
            )),
            (uid, false, _) => Ok(Self::Helper { worker: (uid, gid) }),
        }
    }

    /// First session id, and how many there are.
    pub fn range(self, facts: &Facts) -> (u32, u32) {
        if facts.rootless || facts.remapped {
            (uids::MAPPED_FIRST, uids::MAPPED_COUNT)
        } else {
            (uids::FIRST, uids::COUNT)
        }
    }

    /// A group that the agent must be in, to share its directory with the worker.
    pub fn agent_group(self) -> Option<u32> {
        match self {
            Self::Helper { worker: (_, gid) } if gid != 0 => Some(gid),
            _ => None,
        }
    }

    /// The host's id for a session's user.
    pub fn host_uid(self, uid: u32) -> u32 {
        match self {
            Self::Direct { base: (base, _) } => base + uid,
            Self::Helper { .. } => uid,
        }
    }

    pub fn needs_help(self) -> bool {
        matches!(self, Self::Helper { .. })
    }

    /// Gives a new session's files to its user, and the agent's to the agent.
    pub async fn give(self, dirs: &SessionDirs, uid: u32, helper: Helper<'_>) -> Result<(), Error> {
        match self {
            Self::Direct { base } => {
                let dirs = dirs.clone();
                let done = tokio::task::spawn_blocking(move || files::own(&dirs, base, uid)).await;
                done.map_err(|cause| failed().cause(cause))?.map_err(|cause| failed().cause(cause))
            }
            // The worker's group reaches the agent's socket, and puts its own beside it; tasks are in no group of it.
            Self::Helper { worker: (_, gid) } => {
                let script = format!(
                    "set -e; cd {INSIDE}; chown -hR {uid}:{uid} files/workspace files/home; \
                     chown -hR 0:{gid} berth; chmod 0710 berth; chmod 2730 berth/run; chmod 0700 berth/spool"
                );
                helper.run(&script).await
            }
        }
    }

    /// Makes all of a session's files the worker's own again. The sandbox must be gone.
    pub async fn take_back(self, helper: Helper<'_>) -> Result<(), Error> {
        match self {
            Self::Direct { .. } => Ok(()),
            Self::Helper { worker: (uid, gid) } => {
                helper.run(&format!("cd {INSIDE} && chown -hR {uid}:{gid} .")).await
            }
        }
    }
}

fn failed() -> Error {
    Error::internal("the session's files could not be given to its user")
}

/// The container that changes owners.
pub struct Helper<'a> {
    pub docker: &'a Docker,
    pub instance: &'a str,
    pub session: SessionId,
    /// Has a shell and coreutils.
    pub image: &'a str,
    /// The session's directory, as the engine sees it.
    pub root: &'a Path,
}

impl Helper<'_> {
    async fn run(&self, script: &str) -> Result<(), Error> {
        let create = self.docker.create_container(None::<CreateContainerOptions>, self.body(script));
        let made = call("make a helper container", CHANGE, create).await?;
        let done = self.finish(&made.id).await;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match call("remove a helper container", CHANGE, self.docker.remove_container(&made.id, Some(options)))
            .await
        {
            Ok(()) | Err(CallError::NotFound) => done,
            // It carries our labels: the next sweep finds it.
            Err(error) => {
                tracing::warn!(container = made.id, %error, "a helper container stays");
                done
            }
        }
    }

    async fn finish(&self, id: &str) -> Result<(), Error> {
        call("start a helper container", CHANGE, self.docker.start_container(id, None)).await?;
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut ended = std::pin::pin!(self.docker.wait_container(id, Some(options)));
        // An exit code that is not 0 comes as an error.
        let ended = call("change owners", TREE, async {
            ended.next().await.unwrap_or(Err(bollard::errors::Error::RequestTimeoutError))
        });
        ended.await.map(|_| ()).map_err(|error| failed().cause(error))
    }

    fn body(&self, script: &str) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(self.image.to_owned()),
            entrypoint: Some(["/bin/sh", "-c", script].map(String::from).to_vec()),
            cmd: Some(Vec::new()),
            user: Some("0:0".into()),
            network_disabled: Some(true),
            labels: Some(
                [
                    (LABEL_INSTANCE.to_owned(), self.instance.to_owned()),
                    (LABEL_SESSION.to_owned(), self.session.to_string()),
                ]
                .into(),
            ),
            host_config: Some(HostConfig {
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: Some(["CHOWN", "FOWNER", "FSETID", "DAC_OVERRIDE"].map(String::from).to_vec()),
                security_opt: Some(vec!["no-new-privileges:true".into()]),
                network_mode: Some("none".into()),
                readonly_rootfs: Some(true),
                memory: Some(256 << 20),
                pids_limit: Some(16),
                mounts: Some(vec![Mount {
                    typ: Some(MountType::BIND),
                    source: Some(self.root.to_string_lossy().into_owned()),
                    target: Some(INSIDE.into()),
                    ..Mount::default()
                }]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changes_owners_follows_from_who_runs_what() {
        let plain = Facts::sample();
        let rootless = Facts { rootless: true, ..plain.clone() };
        let remapped = Facts { remapped: true, remap_base: Some((165_536, 165_537)), ..plain.clone() };
        let of = |facts, uid| Owner::of(facts, uid, uid).ok();
        assert_eq!(of(&plain, 0), Some(Owner::Direct { base: (0, 0) }));
        assert_eq!(of(&remapped, 0), Some(Owner::Direct { base: (165_536, 165_537) }));
        assert_eq!(of(&plain, 1000), Some(Owner::Helper { worker: (1000, 1000) }));
        assert_eq!(of(&rootless, 1000), Some(Owner::Helper { worker: (0, 0) }));
        assert_eq!(of(&remapped, 1000), None);
        assert_eq!(of(&Facts { remap_base: None, ..remapped.clone() }, 0), None);
    }
}
