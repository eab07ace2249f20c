//! From a spec to a running container, or to nothing at all.

use std::path::Path;

use berth_proto::{
    Error,
    agent_config::{AGENT_PATH, AgentConfig, BERTH_DIR, CA_PATH, HOME, User, WORKSPACE, file_bytes},
};
use bollard::{Docker, query_parameters::CreateContainerOptionsBuilder};

use super::{
    Inner,
    cgroups::{self, CG_DIR, Made},
    check_user,
    engine::{CHANGE, CallError, Facts, call},
    files,
    hosts::HostPaths,
    image::{self, Image},
    list,
    spec::{self, Bind, LABEL_INSTANCE, LABEL_SESSION, LABEL_UID, Plan},
    user,
    volume::{self, Volume},
};
use crate::{
    sandbox::{Running, SandboxSpec},
    workspace::store::{self, Kind},
};

/// How often another number is drawn, or a container of the same name removed, before it is
/// taken for a defect. With 65,536 numbers even two draws in a row that collide are a wonder.
const TRIES: u32 = 5;

/// What does not change between the attempts of one start.
struct Start<'a> {
    inner: &'a Inner,
    spec: &'a SandboxSpec,
    docker: &'a Docker,
    facts: &'a Facts,
    image: Image,
}

pub(super) async fn start(inner: &Inner, spec: &SandboxSpec) -> Result<Running, Error> {
    check_user(&spec.template.user)?;
    let docker = inner.engine.client().await?;
    let facts = inner.engine.facts().await?;
    let default = &inner.settings.default_image;
    let image = image::find(docker, image::reference(&spec.template, default)?, default).await?;
    let start = Start { inner, spec, docker, facts, image };
    start.clear_volume().await?;

    let result = start.attempt().await;
    if result.is_err() {
        // Whatever was made, it carries the labels or the session's name.
        if let Err(error) = inner.remove_session(spec.session, Some(spec.dirs.root.clone())).await {
            tracing::warn!(session = %spec.session, %error, "parts of a failed sandbox stay for the next sweep");
        }
        inner.uids.release(spec.session);
    }
    result
}

impl Start<'_> {
    async fn attempt(&self) -> Result<Running, Error> {
        let session = self.spec.session;
        let made = self.cgroups().await?;
        let (first, count) = self.inner.owner().await?.range(self.facts);
        for _ in 0..TRIES {
            let uid = self.inner.uids.draw(session, first, count)?;
            let user = user(self.spec.template.user.clone(), uid);
            self.files(&user, &made).await?;
            // Its device is held until the engine has mounted it.
            let volume = self.volume(uid).await?;
            let id = self.create(&user, &made, volume.as_ref()).await?;
            if is_shared(self.docker, uid, &id).await? {
                tracing::info!(uid, "another session of this engine has this uid: drawing again");
                super::remove_container(self.docker, &id).await?;
                volume::remove(self.docker, &self.labels()).await?;
                continue;
            }
            call("start a container", CHANGE, self.docker.start_container(&id, None)).await?;
            return Ok(self.inner.running(session, id, user, &self.spec.dirs));
        }
        Err(Error::internal("no free user id was found for the sandbox"))
    }

    async fn cgroups(&self) -> Result<Made, Error> {
        let runtime = self.inner.settings.runtime.as_deref();
        if !self.inner.own_cgroups().await? || cgroups::why_not_with(runtime).is_some() {
            return Ok(Made::default());
        }
        let (cgroups, session, limits) = (self.inner.cgroups.clone(), self.spec.session, self.spec.charged());
        blocking(move || cgroups.create(&session, &limits)).await?
    }

    /// All that must be on disk, with its owners.
    async fn files(&self, user: &User, made: &Made) -> Result<(), Error> {
        let config = AgentConfig {
            session_id: self.spec.session.to_string(),
            backend: "docker".into(),
            user: user.clone(),
            workspace: WORKSPACE.into(),
            run_dir: Path::new(BERTH_DIR).join("run"),
            spool_dir: Path::new(BERTH_DIR).join("spool"),
            cgroups: made.config.clone(),
            seccomp: true,
            spools_bytes: store::spools(&self.spec.limits),
            writable: spec::writable(&self.image),
            file_bytes: Some(file_bytes(&self.spec.limits)),
        };
        let (dirs, hostname) = (self.spec.dirs.clone(), spec::hostname(self.spec.session));
        let by_engine = self.by_engine();
        let disk = by_engine.then(|| volume::DISK.into());
        let points: Vec<_> =
            made.binds.iter().map(|(_, name)| Path::new("cg").join(name)).chain(disk).collect();
        let copy = self.agent_copy().await?;
        blocking(move || {
            files::prepare(&dirs, &config, &hostname, &points, by_engine)?;
            match copy {
                Some((from, to)) => files::copy(&from, &to),
                None => Ok(()),
            }
        })
        .await?
        .map_err(|cause| Error::internal("the sandbox's own files could not be written").cause(cause))?;

        let root = self.inner.paths().await?.there(&self.spec.dirs.root)?;
        let helper = self.inner.helper(self.docker, self.spec.session, &root);
        self.inner.owner().await?.give(&self.spec.dirs, user.uid, helper).await
    }

    /// Where the agent's binary must be copied to because the engine can't see it: it is in the
    /// worker's own image.
    async fn agent_copy(&self) -> Result<Option<(std::path::PathBuf, std::path::PathBuf)>, Error> {
        let agent = &self.inner.settings.agent;
        let visible = self.inner.paths().await?.there(agent).is_ok();
        Ok((!visible).then(|| (agent.clone(), self.spec.dirs.root.join("agent"))))
    }

    /// Makes the container. One of the same name is a leftover of this session, or the end of us.
    async fn create(&self, user: &User, made: &Made, volume: Option<&Volume>) -> Result<String, Error> {
        let name = spec::name(&self.inner.settings.instance, self.spec.session);
        for _ in 0..TRIES {
            let body = spec::container(self.plan(user, made, volume).await?);
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let create = self.docker.create_container(Some(options), body);
            match call("create a container", CHANGE, create).await {
                Ok(created) => {
                    for warning in created.warnings {
                        tracing::warn!(session = %self.spec.session, warning, "the engine warns about a sandbox");
                    }
                    return Ok(created.id);
                }
                Err(CallError::Conflict(message)) => self.clear(message).await?,
                Err(CallError::NotFound) => {
                    return Err(image::absent(&self.image.id, &self.inner.settings.default_image));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::internal("the container's name stays taken").cause(name))
    }

    /// Removes an earlier container of this session, if that is what is in the way.
    async fn clear(&self, message: String) -> Result<(), Error> {
        let found = list(self.docker, &self.labels()).await?;
        if found.is_empty() {
            return Err(CallError::Conflict(message).into());
        }
        for container in found {
            super::remove_container(self.docker, container.id.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Of all that this session has on the engine.
    fn labels(&self) -> [(&'static str, String); 2] {
        let instance = self.inner.settings.instance.clone();
        [(LABEL_INSTANCE, instance), (LABEL_SESSION, self.spec.session.to_string())]
    }

    /// The engine mounts the session's files.
    fn by_engine(&self) -> bool {
        self.inner.settings.files == Kind::Volume
    }

    /// Removes what an earlier life of this session left: its volume is of a device that may be another's by now.
    async fn clear_volume(&self) -> Result<(), Error> {
        if !self.by_engine() {
            return Ok(());
        }
        for container in list(self.docker, &self.labels()).await? {
            super::remove_container(self.docker, container.id.as_deref().unwrap_or_default()).await?;
        }
        Ok(volume::remove(self.docker, &self.labels()).await?)
    }

    /// The session's files for this user, where the engine mounts them.
    async fn volume(&self, uid: u32) -> Result<Option<Volume>, Error> {
        if !self.by_engine() {
            return Ok(None);
        }
        let (dirs, uid) = (self.spec.dirs.clone(), self.inner.owner().await?.host_uid(uid));
        let device = blocking(move || store::furnished(&dirs, uid)).await?.map_err(|cause| {
            Error::internal("the session's files could not be made ready to be mounted").cause(cause)
        })?;
        let name = spec::name(&self.inner.settings.instance, self.spec.session);
        Ok(Some(Volume::make(self.docker, &name, &self.labels(), device).await?))
    }

    async fn plan<'a>(
        &'a self,
        user: &User,
        made: &Made,
        volume: Option<&'a Volume>,
    ) -> Result<Plan<'a>, Error> {
        let owner = self.inner.owner().await?;
        Ok(Plan {
            instance: &self.inner.settings.instance,
            session: self.spec.session,
            uid: user.uid,
            user: &self.spec.template.user,
            image: &self.image,
            limits: self.spec.limits,
            files_in_memory: self.spec.files_in_memory,
            mounts: self.mounts(made).await?,
            volume,
            root: self.spec.dirs.root.to_string_lossy().into_owned(),
            own_cgroups: !made.binds.is_empty(),
            facts: self.facts,
            agent_group: owner.agent_group(),
            runtime: self.inner.settings.runtime.clone(),
        })
    }

    async fn mounts(&self, made: &Made) -> Result<Vec<Bind>, Error> {
        let paths = self.inner.paths().await?;
        let dirs = &self.spec.dirs;
        let agent = match self.agent_copy().await? {
            Some((_, copy)) => copy,
            None => self.inner.settings.agent.clone(),
        };
        let bind = |host: &Path, inside: &str, read_only| -> Result<Bind, Error> {
            let on_volume = matches!(paths, HostPaths::Mounted(_));
            Ok(Bind { host: paths.there(host)?, inside: inside.to_owned(), read_only, on_volume })
        };
        let mut mounts = vec![bind(&dirs.berth(), BERTH_DIR, false)?, bind(&agent, AGENT_PATH, true)?];
        if !self.by_engine() {
            mounts.push(bind(&dirs.workspace(), WORKSPACE, false)?);
            mounts.push(bind(&dirs.home(), HOME, false)?);
        }
        if dirs.ca().is_file() {
            mounts.push(bind(&dirs.ca(), CA_PATH, true)?);
        }
        for (host, inside) in files::etc_binds(dirs) {
            mounts.push(bind(&host, &inside, true)?);
        }
        for (host, name) in &made.binds {
            let (host, inside) = (paths.there(host)?, format!("{CG_DIR}/{name}"));
            mounts.push(Bind { host, inside, read_only: false, on_volume: false });
        }
        Ok(mounts)
    }
}

/// Whether another container of this engine, of any worker, claims this uid. It is asked
/// after our own claim can be seen, so of two that draw the same at least one sees it.
pub(super) async fn is_shared(docker: &Docker, uid: u32, own: &str) -> Result<bool, Error> {
    let claims = list(docker, &[(LABEL_UID, uid.to_string())]).await?;
    Ok(claims.iter().any(|c| c.id.as_deref() != Some(own)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|cause| Error::internal("preparing the sandbox broke off").cause(cause))
}
