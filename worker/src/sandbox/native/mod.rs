//! The native backend: sandboxes from namespaces and cgroups, started by our own
//! [`launcher`]. It needs root and nothing else: no image, no engine, no daemon.
//!
//! Why not libcontainer, as the first design had it: a launch here is one `clone3`, some
//! thirty detached mounts and one exec, in about the time of `unshare(1)`, and the agent's
//! needs (an own cgroup layout, kept capabilities, an id range claimed for life) are not an
//! OCI bundle's. docs/architecture.md has the measurements.

mod birth;
pub mod child;
mod container;
pub mod launcher;
pub mod plan;
mod preflight;
mod start;
pub mod sys;
pub mod uids;

use std::{
    ffi::OsString,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use berth_proto::{
    Code, Error, Reason, SessionId,
    agent_config::{self, AgentConfig, User},
    domain::{Backend, TemplateSpec},
    spawn::spawn,
    transport,
};
use tokio_util::sync::CancellationToken;

pub use launcher::{ARGUMENT, launcher_main};
pub use preflight::sweep_scratch;

use self::launcher::Launcher;
use super::{
    Identity, Preflight, Problem, Running, SandboxBackend, SandboxSpec, SessionDirs,
    cgroup::{self, CgroupTree},
};

/// The id of tasks' user inside (ARCHITECTURE: uid 1000 in native).
const USER_ID: u32 = 1000;

/// How to make a [`NativeBackend`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Id of this worker's state; part of all names.
    pub instance: String,
    /// The static agent binary.
    pub agent: PathBuf,
    /// Command line that becomes the launcher.
    pub launcher: Vec<OsString>,
    /// For scratch directories of the preflight. It has to be there.
    pub scratch: PathBuf,
    /// Take sessions although a restart of this process ends them ([`container`]).
    pub in_container: bool,
    /// Sandboxes that are there are looked at and removed, and none is started.
    pub only_looks: bool,
}

/// See the module.
pub struct NativeBackend {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    launcher: Launcher,
    /// An error is kept and told by the preflight.
    cgroups: Result<CgroupTree, String>,
    /// Sandboxes end with this process.
    short_lived: bool,
    /// Held by a rehearsal; whether one went well, and each launch since. After that the canary is the better proof.
    rehearsed: Mutex<bool>,
}

impl NativeBackend {
    /// Never fails: what this machine lacks is the preflight's to tell.
    pub fn new(settings: Settings) -> Self {
        let cgroups =
            cgroup::earlier(&settings.instance, None).and_then(|earlier| match settings.only_looks {
                true => Ok(CgroupTree::found(earlier)),
                false => Ok(CgroupTree::detect(&settings.instance)?.also_at(earlier)),
            });
        let cgroups = cgroups.map_err(|error| error.to_string());
        let launcher = Launcher::new(settings.launcher.clone());
        let short_lived = container::is_main_process();
        Self {
            inner: Arc::new(Inner { settings, launcher, cgroups, short_lived, rehearsed: Mutex::default() }),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|cause| Err(Error::internal("a launch panicked").cause(cause)))
    }
}

#[async_trait]
impl SandboxBackend for NativeBackend {
    fn backend(&self) -> Backend {
        Backend::Native
    }

    async fn preflight(&self) -> Preflight {
        let result = self.blocking(|inner| Ok(inner.preflight())).await;
        result.unwrap_or_else(|error| Preflight {
            problems: vec![Problem { what: error.to_string(), hint: "see the log".into() }],
            ..Preflight::default()
        })
    }

    async fn can_serve(&self, template: &TemplateSpec) -> Result<(), Error> {
        match &template.root {
            Some(root) if !Path::new(root).join("usr").is_dir() => {
                Err(unavailable(format!("{root} is no unpacked root on this worker"))
                    .hint("make one with `scripts/sandbox-image.sh --rootfs DIR`"))
            }
            None if template.image.is_some() => {
                Err(unavailable("the template names an image, which native can't run")
                    .hint("name an unpacked `root`, or the docker backend"))
            }
            _ => Ok(()),
        }
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<Running, Error> {
        let wanted = spec.clone();
        let (identity, pidfd) = self.blocking(move |inner| inner.start(&wanted)).await?;
        Ok(running(identity, pidfd, &spec.dirs, &spec.template.user))
    }

    async fn adopt(&self, identity: &Identity, dirs: &SessionDirs) -> Result<Option<Running>, Error> {
        let Identity::Native { pid, start_time: expected, .. } = *identity else { return Ok(None) };
        let Ok(pidfd) = sys::pidfd_open(pid) else { return Ok(None) };
        // Looked at after the descriptor is open: it can't change to another process any more.
        if start_time(pid) != Some(expected) {
            return Ok(None);
        }
        let user = self.blocking({
            let path = dirs.berth().join("config.json");
            move |_| {
                let text =
                    fs::read(&path).map_err(|e| Error::internal("the agent's config is gone").cause(e))?;
                let config: AgentConfig = serde_json::from_slice(&text)
                    .map_err(|e| Error::internal("the agent's config can't be read").cause(e))?;
                Ok(config.user.name)
            }
        });
        Ok(Some(running(identity.clone(), pidfd, dirs, &user.await?)))
    }

    async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let Identity::Native { session, .. } = identity else { return Ok(()) };
        let session: SessionId = session.parse()?;
        self.blocking(move |inner| inner.tree()?.remove(&session.to_string())).await
    }

    async fn leftovers(&self) -> Result<Vec<Identity>, Error> {
        self.blocking(|inner| {
            let sessions = inner.cgroups.iter().flat_map(CgroupTree::sessions);
            Ok(sessions
                .map(|session| Identity::Native {
                    session: session.to_string(),
                    pid: 0,
                    start_time: 0,
                    uid_base: 0,
                })
                .collect())
        })
        .await
    }

    async fn close(&self) {
        let closed = self.blocking(|inner| {
            inner.tree()?.close();
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::debug!(%error, "nothing to close");
        }
    }
}

fn unavailable(message: impl Into<String>) -> Error {
    Error::new(Code::FailedPrecondition, Reason::BackendUnavailable, message)
}

fn running(identity: Identity, pidfd: OwnedFd, dirs: &SessionDirs, user: &str) -> Running {
    let gone = CancellationToken::new();
    let told = gone.clone();
    spawn("native-sandbox-end", async move {
        match sys::watch(pidfd) {
            Ok(pidfd) => {
                let _ = pidfd.readable().await;
            }
            Err(error) => tracing::error!(%error, "a sandbox can't be watched"),
        }
        told.cancel();
    });
    let agent = transport::channel_uds(dirs.run().join(agent_config::SOCKET_NAME));
    Running { identity, agent, gone, user: account(user) }
}

fn account(name: &str) -> User {
    User { name: name.to_owned(), uid: USER_ID, gid: USER_ID, home: agent_config::HOME.into() }
}

/// Field 22 of /proc/PID/stat. `None`: there is no such process.
pub fn start_time(pid: i32) -> Option<u64> {
    start_time_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn start_time_in(stat: &str) -> Option<u64> {
    // The second field, the name, may hold spaces and parentheses: count from its end.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

impl Inner {
    fn tree(&self) -> Result<&CgroupTree, Error> {
        self.cgroups.as_ref().map_err(|problem| unavailable(problem.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever names a process names it as they like. Red when fields are counted from the first parenthesis.
    #[test]
    fn start_time_is_read_past_a_name_with_parentheses() {
        let stat = |name: &str| format!("7 ({name}) S {} 4711 0", ["1"; 18].join(" "));
        for name in ["sleep", "a) S 1 (b", "x) y) ("] {
            assert_eq!(start_time_in(&stat(name)), Some(4711), "{name}");
        }
        assert!(start_time(std::process::id() as i32).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
