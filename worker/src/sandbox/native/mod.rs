//! The native backend: sandboxes from namespaces and cgroups, started by our own
//! [`launcher`]. It needs root and nothing else: no image, no engine, no daemon.
//!
//! Why not libcontainer, as the first design had it: a launch here is one `clone3`, some
//! thirty detached mounts and one exec, in about the time of `unshare(1)`, and the agent's
//! needs (an own cgroup layout, kept capabilities, an id range claimed for life) are not an
//! OCI bundle's. docs/architecture.md has the measurements.

pub mod child;
pub mod launcher;
pub mod plan;
pub mod sys;
pub mod uids;

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use berth_proto::{
    Code, Error, Reason, SessionId,
    agent_config::{self, AgentConfig, User},
    domain::{Backend, Limits, TemplateSpec},
    spawn::spawn,
    transport,
};
use tokio_util::sync::CancellationToken;

pub use launcher::{ARGUMENT, launcher_main};

use self::{
    launcher::Launcher,
    plan::{Mount, Plan, Reply},
    uids::UidRange,
};
use super::{
    Identity, Preflight, Problem, Running, SandboxBackend, SandboxSpec, SessionDirs,
    cgroup::{CgroupTree, Layout, SessionCgroups},
};

/// The id of tasks' user inside (ARCHITECTURE: uid 1000 in native).
const USER_ID: u32 = 1000;
/// /tmp and /dev/shm are memory: at most this, and at most half of the session's.
const TMP_MAX: u64 = 256 << 20;
/// What a session's memory must hold besides.
const TMP_MIN: u64 = 4 << 20;

/// How to make a [`NativeBackend`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Id of this worker's state; part of all names.
    pub instance: String,
    /// The static agent binary.
    pub agent: PathBuf,
    /// Command line that becomes the launcher.
    pub launcher: Vec<OsString>,
    /// For scratch directories of the preflight.
    pub state_dir: PathBuf,
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
}

impl NativeBackend {
    /// Never fails: what this machine lacks is the preflight's to tell.
    pub fn new(settings: Settings) -> Self {
        let cgroups = CgroupTree::detect(&settings.instance).map_err(|error| error.to_string());
        let launcher = Launcher::new(settings.launcher.clone());
        Self { inner: Arc::new(Inner { settings, launcher, cgroups }) }
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
        self.blocking(move |inner| inner.tree()?.remove(&session)).await
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold spaces and parentheses: count from its end.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

impl Inner {
    fn tree(&self) -> Result<&CgroupTree, Error> {
        self.cgroups.as_ref().map_err(|problem| unavailable(problem.clone()))
    }

    fn start(&self, spec: &SandboxSpec) -> Result<(Identity, OwnedFd), Error> {
        let tree = self.tree()?;
        let range = uids::claim().map_err(|e| Error::internal("no host ids for the session").cause(e))?;
        let cgroups = tree.create(&spec.session, &spec.limits, (range.base, range.base))?;
        let started = self.launch(spec, &range, &cgroups);
        if started.is_err() {
            // Whatever got as far as its cgroup dies with it.
            if let Err(error) = tree.remove(&spec.session) {
                tracing::warn!(?error, session.id = %spec.session, "a failed launch left something behind");
            }
        }
        started
    }

    fn launch(
        &self,
        spec: &SandboxSpec,
        range: &UidRange,
        cgroups: &SessionCgroups,
    ) -> Result<(Identity, OwnedFd), Error> {
        let failed = |what: &'static str| {
            move |cause: io::Error| {
                Error::new(
                    Code::Internal,
                    Reason::SandboxFailed,
                    format!("the sandbox did not start: {what}"),
                )
                .cause(cause)
            }
        };
        let etc = spec.dirs.root.join("etc");
        let hostname = format!("berth-{}", &spec.session.to_string()[24..]);
        plan::write_etc(&etc, &spec.template.user, &hostname).map_err(failed("its /etc can't be written"))?;
        self.write_config(spec, cgroups).map_err(failed("its configuration can't be written"))?;
        give(&spec.dirs, range.base).map_err(failed("its directories can't be given to it"))?;
        let plan =
            self.plan(spec, range, cgroups, &etc, hostname).map_err(failed("its root can't be read"))?;
        let reply = self.launcher.launch(&plan, &range.claim).map_err(failed("the launcher failed"))?;
        let (pid, start) = match reply {
            Reply::Started { pid, start_time } => (pid, start_time),
            Reply::Failed { stage, error } => {
                let message = format!("the sandbox did not start: {stage}: {error}");
                return Err(Error::new(Code::Internal, Reason::SandboxFailed, message)
                    .hint("`berth doctor` on the worker tells what is missing"));
            }
        };
        let pidfd = sys::pidfd_open(pid).map_err(failed("it ended at once"))?;
        if start_time(pid) != Some(start) {
            return Err(failed("it ended at once")(io::Error::other("another process has its pid")));
        }
        let session = spec.session.to_string();
        Ok((Identity::Native { session, pid, start_time: start, uid_base: range.base }, pidfd))
    }

    fn write_config(&self, spec: &SandboxSpec, cgroups: &SessionCgroups) -> io::Result<()> {
        let inside = Path::new(agent_config::BERTH_DIR);
        let config = AgentConfig {
            session_id: spec.session.to_string(),
            backend: Backend::Native.to_string(),
            user: account(&spec.template.user),
            workspace: agent_config::WORKSPACE.into(),
            run_dir: inside.join("run"),
            spool_dir: inside.join("spool"),
            cgroups: cgroups.agent_config(&inside.join("cg")),
            seccomp: true,
        };
        let berth = spec.dirs.berth();
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&spec.dirs.run())?;
        private(&spec.dirs.spool())?;
        for (_, name) in &cgroups.binds {
            private(&berth.join("cg").join(name))?;
        }
        fs::write(berth.join("agent"), "")?;
        fs::write(berth.join("config.json"), serde_json::to_vec(&config)?)?;
        fs::set_permissions(berth.join("config.json"), fs::Permissions::from_mode(0o400))
    }

    fn plan(
        &self,
        spec: &SandboxSpec,
        range: &UidRange,
        cgroups: &SessionCgroups,
        etc: &Path,
        hostname: String,
    ) -> io::Result<Plan> {
        let (links, mut mounts) = match &spec.template.root {
            None => plan::host_root(etc)?,
            Some(root) => plan::image_root(Path::new(root), etc)?,
        };
        mounts.extend(plan::common_mounts());
        mounts.push(Mount::writable(spec.dirs.workspace(), agent_config::WORKSPACE));
        mounts.push(Mount::writable(spec.dirs.home(), agent_config::HOME));
        mounts.push(Mount::writable(spec.dirs.berth(), agent_config::BERTH_DIR).no_exec());
        mounts.push(Mount::read_only(&self.settings.agent, agent_config::AGENT_PATH));
        for (dir, name) in &cgroups.binds {
            mounts.push(Mount::writable(dir, format!("{}/cg/{name}", agent_config::BERTH_DIR)).no_exec());
        }
        Ok(Plan {
            hostname,
            uid_base: range.base,
            uid_count: uids::SIZE,
            links,
            mounts,
            cgroup_procs: cgroups.agent_procs(),
            log: spec.dirs.agent_log(),
            tmp_bytes: tmp_bytes(&spec.limits),
            program: agent_config::AGENT_PATH.to_owned(),
        })
    }

    fn preflight(&self) -> Preflight {
        let mut found = Preflight::default();
        let mut problem = |what: String, hint: &str| found.problems.push(Problem { what, hint: hint.into() });
        if !nix::unistd::geteuid().is_root() {
            problem("native sandboxes need root".into(), "run as root, or use BERTH_SANDBOX=docker");
            return found;
        }
        match is_static(&self.settings.agent) {
            Ok(true) => {}
            Ok(false) => problem(
                format!("the agent {} is not a static program", self.settings.agent.display()),
                "build it with `make build`",
            ),
            Err(error) => problem(
                format!("the agent {} can't be read: {error}", self.settings.agent.display()),
                "build it with `make build`, or name it with BERTH_AGENT",
            ),
        }
        if !fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nSeccomp:")) {
            problem("the kernel has no seccomp".into(), "use a kernel with CONFIG_SECCOMP_FILTER");
        }
        match &self.cgroups {
            Ok(tree) => {
                found.facts.push(format!("cgroup {}", tree.layout().as_str()));
                if tree.layout() == Layout::V1 {
                    found.weaker.push("no cgroup v2 mount: tasks are ended by walking /proc".into());
                }
            }
            Err(error) => problem(error.clone(), "see docs/security.md, cgroups"),
        }
        if found.problems.is_empty()
            && let Err(what) = self.rehearse()
        {
            let hint = "the kernel must allow user namespaces (user.max_user_namespaces) and mounts in them";
            found.problems.push(Problem { what, hint: hint.into() });
        }
        found.facts.push("user namespace per session, seccomp, no network".into());
        found
    }

    /// Does everything up to the exec, and nothing stays.
    fn rehearse(&self) -> Result<(), String> {
        let etc = tempfile_dir(&self.settings.state_dir).map_err(|e| format!("no scratch directory: {e}"))?;
        let result = (|| {
            plan::write_etc(&etc, "user", "preflight").map_err(|e| format!("/etc of a sandbox: {e}"))?;
            let range = uids::claim().map_err(|e| format!("host ids: {e}"))?;
            let (links, mut mounts) = plan::host_root(&etc).map_err(|e| format!("the host's /usr: {e}"))?;
            mounts.extend(plan::common_mounts());
            let plan = Plan {
                hostname: "preflight".into(),
                uid_base: range.base,
                uid_count: uids::SIZE,
                links,
                mounts,
                cgroup_procs: Vec::new(),
                log: "/dev/null".into(),
                tmp_bytes: TMP_MIN,
                program: String::new(),
            };
            match self.launcher.launch(&plan, &range.claim) {
                Ok(Reply::Started { .. }) => Ok(()),
                Ok(Reply::Failed { stage, error }) => {
                    Err(format!("a sandbox can't be made here: {stage}: {error}"))
                }
                Err(error) => Err(format!("the launcher failed: {error}")),
            }
        })();
        let _ = fs::remove_dir_all(&etc);
        result
    }
}

fn tmp_bytes(limits: &Limits) -> u64 {
    (limits.memory_bytes / 2).clamp(TMP_MIN, TMP_MAX)
}

fn tempfile_dir(parent: &Path) -> io::Result<PathBuf> {
    let dir = parent.join(format!("preflight-{}", SessionId::new()));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Gives the agent its directory and tasks their files. All of it was made by us just now
/// and nothing of the session has run, so no link can have been planted.
fn give(dirs: &SessionDirs, base: u32) -> io::Result<()> {
    let berth = dirs.berth();
    for path in [berth.clone(), dirs.run(), dirs.spool(), berth.join("cg"), berth.join("config.json")] {
        chown(path, Some(base), Some(base))?;
    }
    fs::set_permissions(&berth, fs::Permissions::from_mode(0o700))?;
    for path in [dirs.workspace(), dirs.home()] {
        chown(path, Some(base + USER_ID), Some(base + USER_ID))?;
    }
    Ok(())
}

/// Whether an ELF program has no interpreter: it must run in a root that is not ours.
fn is_static(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(path)?;
    let short = || io::Error::new(io::ErrorKind::InvalidData, "not an ELF program");
    if bytes.get(..5) != Some(b"\x7fELF\x02") {
        return Err(short());
    }
    // Elf64_Ehdr: e_phoff at 32 (8 bytes), e_phentsize at 54, e_phnum at 56.
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize);
    let offset =
        bytes.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(short)?;
    let (size, count) = (u16_at(54).ok_or_else(short)?, u16_at(56).ok_or_else(short)?);
    for i in 0..count {
        let at = offset as usize + i * size;
        let kind = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if kind.ok_or_else(short)? == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_read_past_a_name_with_parentheses() {
        assert!(start_time(std::process::id() as i32).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn a_dynamic_program_is_not_taken_for_the_agent() {
        assert!(!is_static(Path::new("/proc/self/exe")).unwrap());
        assert!(is_static(Path::new("/etc/passwd")).is_err());
    }

    #[test]
    fn memory_files_are_bounded_by_the_sessions_memory() {
        let limits = |memory_bytes| Limits { cpu_millis: 1, memory_bytes, disk_bytes: 1, pids: 1 };
        assert_eq!(tmp_bytes(&limits(64 << 20)), 32 << 20);
        assert_eq!(tmp_bytes(&limits(16 << 30)), TMP_MAX);
        assert_eq!(tmp_bytes(&limits(1 << 20)), TMP_MIN);
    }
}
