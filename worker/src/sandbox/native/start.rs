//! From a spec to a running sandbox: its files, its plan, and the launch. On an error nothing of it is left.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::PoisonError,
};

use berth_proto::{
    Code, Error, Reason,
    agent_config::{self, AgentConfig},
    domain::{Backend, Limits},
};

use super::{
    Inner, USER_ID, account,
    plan::{self, Mount, Plan, Reply},
    start_time, sys,
    uids::{self, UidRange},
};
use crate::{
    sandbox::{Identity, SandboxSpec, SessionDirs, cgroup::SessionCgroups, memory_files::MemoryFiles},
    workspace::store,
};

impl Inner {
    pub(super) fn start(&self, spec: &SandboxSpec) -> Result<(Identity, OwnedFd), Error> {
        let started = self.start_in(spec);
        if started.is_err() {
            // What was well may not be so any more: the next preflight looks again.
            *self.rehearsed.lock().unwrap_or_else(PoisonError::into_inner) = false;
        }
        started
    }

    fn start_in(&self, spec: &SandboxSpec) -> Result<(Identity, OwnedFd), Error> {
        let tree = self.tree()?;
        let range = uids::claim().map_err(|e| Error::internal("no host ids for the session").cause(e))?;
        let uploads = MemoryFiles::of(&spec.limits).charge() + spec.files_in_memory;
        let cgroups = self.cgroups(&spec.session.to_string(), &spec.charged(), uploads, &range)?;
        let started = self.launch(spec, &range, &cgroups);
        if started.is_err() {
            // Whatever got as far as its cgroup dies with it.
            if let Err(error) = tree.remove(&spec.session.to_string()) {
                tracing::warn!(?error, session.id = %spec.session, "a failed launch left something behind");
            }
        }
        started
    }

    /// Cgroups of this name that belong to the range, with their namespace where one has to be made before.
    pub(super) fn cgroups(
        &self,
        name: &str,
        limits: &Limits,
        uploads: u64,
        range: &UidRange,
    ) -> Result<SessionCgroups, Error> {
        let namespace = |dir: &Path, v1: &[PathBuf]| self.launcher.cgroup_namespace(range.base, dir, v1);
        self.tree()?.create(name, limits, uploads, (range.base, range.base), Some(&namespace))
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
        let namespace = cgroups.namespace.as_ref();
        let reply = self.launcher.launch(plan, &range.claim, namespace);
        let reply = reply.map_err(failed("the launcher failed"))?;
        let (pid, start) = match reply {
            Reply::Started { pid, start_time } => (pid, start_time),
            Reply::Namespace => {
                return Err(failed("the launcher answers what was not asked")(
                    io::ErrorKind::InvalidData.into(),
                ));
            }
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
            spools_bytes: store::spools(&spec.limits),
            writable: agent_config::memory_files(),
            file_bytes: Some(agent_config::file_bytes(&spec.limits)),
        };
        let berth = spec.dirs.berth();
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&spec.dirs.run())?;
        private(&spec.dirs.spool())?;
        for (_, name) in &cgroups.binds {
            private(&berth.join("cg").join(name))?;
        }
        crate::weaken::tell_agent(&berth)?;
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
        mounts.push(Mount::read_only(spec.dirs.ca(), agent_config::CA_PATH).no_exec().optional());
        for (dir, name) in &cgroups.binds {
            mounts.push(Mount::writable(dir, format!("{}/cg/{name}", agent_config::BERTH_DIR)).no_exec());
        }
        Ok(Plan {
            hostname,
            uid_base: range.base,
            uid_count: uids::SIZE,
            links,
            mounts,
            cgroup: cgroups.agent_v2(),
            cgroup_tasks: cgroups.agent_v1(),
            log: spec.dirs.agent_log(),
            memory_files: MemoryFiles::of(&spec.limits),
            program: agent_config::AGENT_PATH.to_owned(),
        })
    }
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
