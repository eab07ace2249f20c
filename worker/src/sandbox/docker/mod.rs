//! The `docker` backend: each session is a container of the local engine, with the agent as
//! PID 1 and nothing of the engine's in the way of a task (a `docker exec` would cost 44 ms).
//!
//! Invariants:
//! - A container is ours only if its labels say so: instance and session. Nothing is found,
//!   adopted or removed by name, and nothing else is touched.
//! - On an error of `start`, and when its caller goes away, nothing is left: the start runs as
//!   a task of its own that cleans up after itself.
//! - A dead engine is not a dead sandbox: only the engine's own word ends one ([`supervise`]).
//! - Images are neither pulled nor built.
//!
//! Weaker than native, and said so by the preflight: there is no user namespace of the session's
//! own (engine 20.10 has one mapping for all), so the agent is container root with four
//! capabilities, and tasks have one host uid of their own instead of a range.
//!
//! Rejected: the `docker` command (its version, its start-up time, its output as an interface);
//! AutoRemove (the exit code must survive a worker crash); the archive API for files (it runs
//! as root on paths that tasks can change: the agent does that, inside).

mod cgroups;
mod engine;
mod files;
mod hosts;
mod image;
mod owner;
mod preflight;
mod seccomp;
mod spec;
mod start;
mod supervise;
#[cfg(test)]
mod tests;
mod uids;
mod volume;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::{
    Error, Reason, SessionId,
    agent_config::{HOME, SOCKET_NAME, User},
    domain::{Backend, TemplateSpec},
    transport::channel_uds,
};
use bollard::{
    Docker,
    models::ContainerSummary,
    query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder},
};
use tokio::{
    sync::{OnceCell, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    engine::{CHANGE, CallError, Engine, LOOK, call},
    hosts::HostPaths,
    owner::{Helper, Owner},
    spec::{LABEL_INSTANCE, LABEL_ROOT, LABEL_SESSION, LABEL_UID, LABEL_USER},
    supervise::Verdict,
    uids::Uids,
};
use super::{Identity, Preflight, Running, SandboxBackend, SandboxSpec, SessionDirs};
use crate::workspace::store::Kind;

/// What templates use that name no image; `make sandbox-image` makes it.
pub const DEFAULT_IMAGE: &str = "berth/sandbox:base";

/// Pause between looks at a container that is being removed.
const POLL: Duration = Duration::from_millis(50);

/// How a worker uses the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The worker's own id: what it makes carries it, and only that is ever swept.
    pub instance: String,
    /// The agent's static binary.
    pub agent: PathBuf,
    /// For templates that name no image.
    pub default_image: String,
    /// The engine's runtime to use, by the engine's name for it. `None`: its default.
    pub runtime: Option<String>,
    /// `DOCKER_HOST`. `None`: the default socket.
    pub docker_host: Option<String>,
    /// What sessions' files are in. The engine has to see what the worker mounts, or to mount it itself.
    pub files: Kind,
    /// Sandboxes that are there are looked at and removed, and none is started.
    pub only_looks: bool,
}

impl Settings {
    /// The defaults, and `DOCKER_HOST` as it is set.
    pub fn new(instance: impl Into<String>, agent: impl Into<PathBuf>) -> Self {
        Self {
            instance: instance.into(),
            agent: agent.into(),
            default_image: DEFAULT_IMAGE.into(),
            runtime: None,
            docker_host: std::env::var("DOCKER_HOST").ok(),
            files: Kind::Directory,
            only_looks: false,
        }
    }
}

/// Sessions in containers of the local engine.
pub struct DockerBackend {
    inner: Arc<Inner>,
    /// Ends the watchers with the backend.
    _stop: DropGuard,
}

/// What the backend's own tasks share.
struct Inner {
    settings: Settings,
    engine: Arc<Engine>,
    uids: Uids,
    cgroups: cgroups::Cgroups,
    /// They have worked once.
    cgroups_work: AtomicBool,
    owner: OnceCell<Owner>,
    paths: OnceCell<HostPaths>,
    stop: CancellationToken,
}

impl DockerBackend {
    /// Needs no engine yet: whether there is one is for [`SandboxBackend::preflight`] to say.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for settings that can't work.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        if settings.instance.is_empty() {
            return Err(Error::invalid("instance", "is empty: what is made could not be told from others'"));
        }
        if !settings.agent.is_absolute() {
            return Err(Error::invalid("agent", "must be an absolute path: the engine mounts it"));
        }
        let stop = CancellationToken::new();
        let inner = Inner {
            engine: Arc::new(Engine::new(settings.docker_host.as_deref())),
            cgroups: cgroups::Cgroups::new(&settings.instance, settings.only_looks),
            cgroups_work: AtomicBool::new(false),
            settings,
            uids: Uids::default(),
            owner: OnceCell::new(),
            paths: OnceCell::new(),
            stop: stop.clone(),
        };
        Ok(Self { inner: Arc::new(inner), _stop: stop.drop_guard() })
    }
}

#[async_trait]
impl SandboxBackend for DockerBackend {
    fn backend(&self) -> Backend {
        Backend::Docker
    }

    async fn preflight(&self) -> Preflight {
        preflight::check(&self.inner).await
    }

    async fn can_serve(&self, template: &TemplateSpec) -> Result<(), Error> {
        let default = &self.inner.settings.default_image;
        let reference = image::reference(template, default)?;
        image::find(self.inner.engine.client().await?, reference, default).await.map(|_| ())
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<Running, Error> {
        if self.inner.uids.holds(spec.session) {
            return Err(Error::internal("this session has a sandbox already"));
        }
        let (answer, started) = oneshot::channel();
        let (inner, spec) = (self.inner.clone(), spec.clone());
        berth_proto::spawn::spawn("docker-start", async move {
            let result = start::start(&inner, &spec).await;
            if let Err(Ok(running)) = answer.send(result) {
                // The caller has gone: nobody would ever remove it.
                if let Err(error) = inner.remove(&running.identity).await {
                    tracing::warn!(session = %spec.session, %error, "an abandoned sandbox stays for the next sweep");
                }
            }
        });
        started.await.unwrap_or_else(|_| Err(Error::internal("the start of the sandbox broke off")))
    }

    async fn adopt(&self, identity: &Identity, dirs: &SessionDirs) -> Result<Option<Running>, Error> {
        self.inner.adopt(identity, dirs).await
    }

    async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        self.inner.remove(identity).await
    }

    async fn leftovers(&self) -> Result<Vec<Identity>, Error> {
        self.inner.leftovers().await
    }

    async fn close(&self) {
        let cgroups = self.inner.cgroups.clone();
        let _ = tokio::task::spawn_blocking(move || cgroups.close()).await;
    }
}

/// The parts of our kind of identity.
fn ours(identity: &Identity) -> Result<(SessionId, &str, u32), Error> {
    match identity {
        Identity::Docker { session, container, uid } => Ok((session.parse()?, container, *uid)),
        _ => Err(Error::internal("the sandbox is not one of the docker backend")),
    }
}

impl Inner {
    async fn owner(&self) -> Result<Owner, Error> {
        self.owner.get_or_try_init(|| async { Owner::choose(self.engine.facts().await?) }).await.copied()
    }

    async fn paths(&self) -> Result<&HostPaths, Error> {
        self.paths.get_or_try_init(|| async { HostPaths::learn(self.engine.client().await?).await }).await
    }

    /// Whether the cgroup tree can be used with this engine.
    async fn own_cgroups(&self) -> Result<bool, Error> {
        if self.why_no_cgroups().await?.is_some() {
            return Ok(false);
        }
        if self.cgroups_work.load(Ordering::Relaxed) {
            return Ok(true);
        }
        // Tried once: mounted read-only, or without a controller, they are no reason to refuse sessions.
        let cgroups = self.cgroups.clone();
        let works = tokio::task::spawn_blocking(move || cgroups.probe().is_ok()).await.unwrap_or(false);
        self.cgroups_work.store(works, Ordering::Relaxed);
        Ok(works)
    }

    async fn why_no_cgroups(&self) -> Result<Option<&'static str>, Error> {
        let contained = hosts::own_container().is_some();
        let of_host = if contained { self.paths().await?.cgroups() } else { None };
        if let Some(mounted) = of_host {
            self.cgroups.host_at(mounted);
        }
        Ok(cgroups::why_not(self.engine.facts().await?, contained && of_host.is_none()))
    }

    /// A started container as the caller wants it.
    fn running(&self, session: SessionId, container: String, user: User, dirs: &SessionDirs) -> Running {
        let gone = CancellationToken::new();
        supervise::watch(supervise::Watch {
            engine: self.engine.clone(),
            container: container.clone(),
            agent_log: dirs.agent_log(),
            gone: gone.clone(),
            ending: self.uids.ending(session),
            stop: self.stop.clone(),
        });
        Running {
            identity: Identity::Docker { session: session.to_string(), container, uid: user.uid },
            // The worker's workspace keeps this path below the kernel's 107 bytes.
            agent: channel_uds(dirs.run().join(SOCKET_NAME)),
            gone,
            user,
        }
    }

    async fn adopt(&self, identity: &Identity, dirs: &SessionDirs) -> Result<Option<Running>, Error> {
        let (session, container, uid) = ours(identity)?;
        if container.is_empty() {
            return Ok(None);
        }
        let docker = self.engine.client().await?;
        let seen = match call("look at a container", LOOK, docker.inspect_container(container, None)).await {
            Err(CallError::NotFound) => return Ok(None),
            other => other?,
        };
        let labels = seen.config.and_then(|config| config.labels).unwrap_or_default();
        let runs = seen.state.and_then(|state| state.running).unwrap_or(false);
        // The id itself too: the engine also takes names and beginnings of ids.
        let same = seen.id.as_deref() == Some(container) && labels.get(LABEL_UID) == Some(&uid.to_string());
        if !runs || !same || !self.is_ours(&labels, session) {
            return Ok(None);
        }
        let name = labels.get(LABEL_USER).cloned().unwrap_or_else(|| "user".into());
        self.uids.note(session, uid);
        Ok(Some(self.running(session, container.to_owned(), user(name, uid), dirs)))
    }

    fn is_ours(&self, labels: &HashMap<String, String>, session: SessionId) -> bool {
        labels.get(LABEL_INSTANCE) == Some(&self.settings.instance)
            && labels.get(LABEL_SESSION) == Some(&session.to_string())
    }

    async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let (session, _, _) = ours(identity)?;
        self.uids.ending(session).cancel();
        self.remove_session(session, None).await?;
        self.uids.release(session);
        Ok(())
    }

    /// Removes all that a session has on the engine and in the cgroup tree. `root` is its
    /// directory, where that is known; else a container's label says it.
    async fn remove_session(&self, session: SessionId, root: Option<PathBuf>) -> Result<(), Error> {
        let docker = self.engine.client().await?;
        // By label and not by the identity's id: a helper may be left, or a container whose id
        // never reached us.
        let labels = [(LABEL_INSTANCE, self.settings.instance.clone()), (LABEL_SESSION, session.to_string())];
        let found = list(docker, &labels).await?;
        for container in &found {
            remove_container(docker, container.id.as_deref().unwrap_or_default()).await?;
        }
        volume::remove(docker, &labels).await?;
        if self.own_cgroups().await? {
            let cgroups = self.cgroups.clone();
            let removed = tokio::task::spawn_blocking(move || cgroups.remove(&session)).await;
            removed.map_err(|cause| Error::internal("removing cgroups broke off").cause(cause))??;
        }
        let label = || found.iter().find_map(|c| c.labels.as_ref()?.get(LABEL_ROOT).map(PathBuf::from));
        match root.or_else(label) {
            Some(root) if root.is_dir() => self.take_back(docker, session, root).await,
            _ => Ok(()),
        }
    }

    /// Where the worker could not delete the session's files, makes them its own again.
    async fn take_back(&self, docker: &Docker, session: SessionId, root: PathBuf) -> Result<(), Error> {
        let owner = self.owner().await?;
        if !owner.needs_help() {
            return Ok(());
        }
        owner.take_back(self.helper(docker, session, &self.paths().await?.there(&root)?)).await
    }

    fn helper<'a>(&'a self, docker: &'a Docker, session: SessionId, root: &'a std::path::Path) -> Helper<'a> {
        let (instance, image) = (&self.settings.instance, &self.settings.default_image);
        Helper { docker, instance, session, image, root }
    }

    async fn leftovers(&self) -> Result<Vec<Identity>, Error> {
        let docker = self.engine.client().await?;
        let found = list(docker, &[(LABEL_INSTANCE, self.settings.instance.clone())]).await?;
        let mut left: Vec<Identity> = Vec::new();
        for container in found {
            let labels = container.labels.unwrap_or_default();
            let (Some(session), Some(container)) = (labels.get(LABEL_SESSION), container.id) else {
                continue;
            };
            let uid = labels.get(LABEL_UID).and_then(|uid| uid.parse().ok()).unwrap_or(0);
            left.push(Identity::Docker { session: session.clone(), container, uid });
        }
        // What has no container any more.
        let mut more = volume::sessions(docker, &self.settings.instance).await?;
        if self.own_cgroups().await? {
            let cgroups = self.cgroups.clone();
            let sessions = tokio::task::spawn_blocking(move || cgroups.sessions()).await;
            let sessions =
                sessions.map_err(|cause| Error::internal("looking at cgroups broke off").cause(cause))??;
            more.extend(sessions.iter().map(SessionId::to_string));
        }
        for session in more {
            if !left.iter().any(|i| matches!(i, Identity::Docker { session: s, .. } if *s == session)) {
                left.push(Identity::Docker { session, container: String::new(), uid: 0 });
            }
        }
        Ok(left)
    }
}

fn user(name: String, uid: u32) -> User {
    User { name, uid, gid: uid, home: HOME.into() }
}

/// All containers, running or not, that have these labels.
async fn list(docker: &Docker, labels: &[(&str, String)]) -> Result<Vec<ContainerSummary>, CallError> {
    let labels = labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    let filters = HashMap::from([("label".to_owned(), labels)]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    call("list containers", LOOK, docker.list_containers(Some(options))).await
}

/// Kills and removes a container and its anonymous volumes. One that is gone is no error.
async fn remove_container(docker: &Docker, id: &str) -> Result<(), CallError> {
    let deadline = Instant::now() + CHANGE;
    loop {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let error = match call("remove a container", CHANGE, docker.remove_container(id, Some(options))).await
        {
            Ok(()) | Err(CallError::NotFound) => return Ok(()),
            // Somebody removes it already, or its mounts are busy for a moment.
            Err(error @ (CallError::Conflict(_) | CallError::Refused { .. })) => error,
            Err(error) => return Err(error),
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        sleep(POLL).await;
        if matches!(supervise::running(docker, id).await, Ok(Verdict::Removed)) {
            return Ok(());
        }
    }
}

/// Refuses a template user that would be another account, or break the files of /etc.
fn check_user(name: &str) -> Result<(), Error> {
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let taken = ["root", "nobody", "nogroup", "tty"].contains(&name);
    let sound = (1..=32).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    if sound && !taken {
        return Ok(());
    }
    Err(Error::precondition(Reason::InvalidField, format!("the template's user {name:?} can't be used"))
        .hint("1 to 32 of a-z 0-9 - _, beginning with a letter, and none of root, nobody, nogroup, tty"))
}
