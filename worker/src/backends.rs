//! The sandbox backends of this worker: which are there, which can be used, and which one new
//! sessions get.
//!
//! `auto` is native where its preflight passes (faster, and with its own user namespaces stronger), else
//! docker. A backend that is named is used or the worker does not start: never another in its place.
//! A template that names a backend, an image or a root has the say over the worker's choice.
//!
//! `fake` isolates nothing, so it exists only in a worker that was configured with it.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use berth_proto::{
    Error, Reason,
    domain::{Backend, BackendChoice, TemplateSpec},
    v1,
};
use tracing::{info, warn};

use crate::{
    config::{Config, StartError},
    sandbox::{Preflight, Problem, SandboxBackend, cgroup, docker, fake, native},
    workspace::store::Kind,
};

/// A preflight that takes longer is one that failed.
const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(10);

/// The backends, as last looked at. Short locks only; looking is done outside of them.
pub struct Backends {
    all: BTreeMap<Backend, Arc<dyn SandboxBackend>>,
    seen: RwLock<Seen>,
    /// What is the same for all of them.
    common: OnceLock<Preflight>,
}

struct Seen {
    choice: BackendChoice,
    preflights: BTreeMap<Backend, Preflight>,
}

/// Makes the backends that this configuration can use. Those that can't be made come as a preflight. `only_looks`: no sandbox is to be
/// started, and nothing is made for that.
pub(crate) fn construct(
    config: &Config,
    instance: &str,
    scratch: &std::path::Path,
    files: Kind,
    only_looks: bool,
) -> (Vec<Arc<dyn SandboxBackend>>, BTreeMap<Backend, Preflight>) {
    let mut made: Vec<Arc<dyn SandboxBackend>> = Vec::new();
    let mut failed = BTreeMap::new();
    if config.sandbox == BackendChoice::Only(Backend::Fake) {
        made.push(Arc::new(fake::FakeBackend::new(config.fake.clone())));
        return (made, failed);
    }
    let agent = std::path::absolute(&config.agent).unwrap_or_else(|_| config.agent.clone());
    if files == Kind::Volume {
        failed.insert(
            Backend::Native,
            broken(
                "sessions' files are in volumes of the container engine (BERTH_WORKSPACE=volume)",
                "run the worker beside the engine, in no container; or let it use docker: BERTH_SANDBOX=docker",
            ),
        );
    } else {
        made.push(Arc::new(native::NativeBackend::new(native::Settings {
            instance: instance.to_owned(),
            agent: agent.clone(),
            launcher: config.launcher.clone(),
            scratch: scratch.to_owned(),
            in_container: config.native_in_container,
            only_looks,
        })));
    }
    let mut settings = docker::Settings::new(instance, agent);
    settings.default_image.clone_from(&config.docker_image);
    settings.runtime.clone_from(&config.docker_runtime);
    settings.files = files;
    settings.only_looks = only_looks;
    match docker::DockerBackend::new(settings) {
        Ok(docker) => made.push(Arc::new(docker)),
        Err(error) => {
            failed.insert(Backend::Docker, broken(&error.to_string(), error.hint_text().unwrap_or_default()));
        }
    }
    (made, failed)
}

fn broken(what: &str, hint: &str) -> Preflight {
    Preflight {
        problems: vec![Problem { what: what.to_owned(), hint: hint.to_owned() }],
        ..Default::default()
    }
}

/// Looks at each backend as this configuration would use it, for `berth doctor`. Starts nothing, leaves
/// nothing, and removes what doctors left that were killed: the state directory need not be there, and is not made.
/// `files`: what is to hold sessions' files.
pub async fn preflight(config: &Config, files: Kind) -> Vec<(Backend, Preflight)> {
    let _ = tokio::task::spawn_blocking(cgroup::sweep_doctors).await;
    // A name of its own: another doctor's end would take the cgroups from under this one.
    let instance = format!("doctor-{}", &berth_proto::SessionId::new().to_string()[20..]);
    let (made, mut seen) = construct(config, &instance, &std::env::temp_dir(), files, false);
    for backend in made {
        let preflight = look(&*backend).await;
        seen.insert(backend.backend(), preflight);
        backend.close().await;
    }
    seen.into_iter().collect()
}

async fn look(backend: &dyn SandboxBackend) -> Preflight {
    match tokio::time::timeout(PREFLIGHT_TIMEOUT, backend.preflight()).await {
        Ok(preflight) => preflight,
        Err(_) => broken(
            &format!("the {} backend did not answer within {PREFLIGHT_TIMEOUT:?}", backend.backend()),
            "see `berth doctor`",
        ),
    }
}

impl Backends {
    /// Makes the backends, looks at them and chooses. The state directory is this process' alone. `files`: what holds
    /// sessions' files.
    pub async fn open(config: &Config, instance: &str, files: Kind) -> Result<Self, StartError> {
        native::sweep_scratch(&config.state_dir);
        let (made, failed) = construct(config, instance, &config.state_dir, files, false);
        Self::with(made, failed, config.sandbox).await
    }

    /// The same over backends that are there already.
    pub async fn with(
        made: Vec<Arc<dyn SandboxBackend>>,
        failed: BTreeMap<Backend, Preflight>,
        choice: BackendChoice,
    ) -> Result<Self, StartError> {
        let all: BTreeMap<_, _> = made.into_iter().map(|backend| (backend.backend(), backend)).collect();
        let this =
            Self { all, seen: RwLock::new(Seen { choice, preflights: failed }), common: OnceLock::new() };
        this.refresh().await;
        match this.say_which(choice) {
            Ok(()) => Ok(this),
            Err(error) => {
                // A start that is refused leaves nothing of what it tried.
                this.close().await;
                Err(error)
            }
        }
    }

    /// Has all of them tell this too.
    pub fn note(&self, common: Preflight) {
        let _ = self.common.set(common);
    }

    /// Removes what the backends made for themselves, as far as no sandbox is in it.
    pub async fn close(&self) {
        for backend in self.all.values() {
            backend.close().await;
        }
    }

    /// Says which backend is chosen and why, or why none is.
    fn say_which(&self, choice: BackendChoice) -> Result<(), StartError> {
        let seen = self.read();
        match (choice, self.chosen()) {
            (_, Some(chosen)) => {
                let why = match choice {
                    BackendChoice::Only(_) => "it is the one that was asked for",
                    BackendChoice::Auto if chosen == Backend::Native => "its preflight passes",
                    BackendChoice::Auto => "native can't be used here",
                };
                info!(backend = %chosen, why, facts = seen.summary(chosen), "sandbox backend chosen");
                for (backend, preflight) in seen.preflights.iter().filter(|(_, p)| !p.ready()) {
                    info!(%backend, problems = preflight.summary(), "sandbox backend not usable");
                }
            }
            (BackendChoice::Only(backend), None) => {
                return Err(StartError::Backend {
                    backend,
                    problems: seen.problems(backend),
                    hint: seen.hints([backend]),
                });
            }
            (BackendChoice::Auto, None) => {
                let problems = [Backend::Native, Backend::Docker]
                    .map(|backend| format!("{backend}: {}", seen.problems(backend)))
                    .join("; ");
                return Err(StartError::NoBackend {
                    problems,
                    hint: seen.hints([Backend::Native, Backend::Docker]),
                });
            }
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Seen> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at all backends anew. True: one of them changed between usable and not.
    pub async fn refresh(&self) -> bool {
        let looks = self.all.iter().map(|(name, backend)| async move { (*name, look(&**backend).await) });
        let found = futures::future::join_all(looks).await;
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for (backend, preflight) in found {
            let before = seen.preflights.get(&backend).map(Preflight::ready);
            if before.is_some_and(|before| before != preflight.ready()) {
                changed = true;
                warn!(%backend, ready = preflight.ready(), summary = preflight.summary(), "sandbox backend changed");
            }
            seen.preflights.insert(backend, preflight);
        }
        changed
    }

    /// The backend that new sessions get, if it can be used.
    pub fn chosen(&self) -> Option<Backend> {
        let seen = self.read();
        match seen.choice {
            BackendChoice::Only(backend) => seen.ready(backend).then_some(backend),
            BackendChoice::Auto => {
                [Backend::Native, Backend::Docker].into_iter().find(|backend| seen.ready(*backend))
            }
        }
    }

    /// Changes the choice for new sessions. One that can't be used changes nothing.
    pub async fn choose(&self, choice: BackendChoice) -> Result<(), Error> {
        self.refresh().await;
        let usable = {
            let seen = self.read();
            match choice {
                BackendChoice::Auto => seen.ready(Backend::Native) || seen.ready(Backend::Docker),
                BackendChoice::Only(backend) => seen.ready(backend),
            }
        };
        if !usable {
            let problems = match choice {
                BackendChoice::Only(backend) => self.read().problems(backend),
                BackendChoice::Auto => "neither native nor docker can be used".to_owned(),
            };
            return Err(unavailable(choice.as_str(), &problems));
        }
        self.seen.write().unwrap_or_else(PoisonError::into_inner).choice = choice;
        info!(choice = choice.as_str(), "sandbox backend for new sessions changed");
        Ok(())
    }

    /// Those that there are, and whether each can be used.
    pub fn usable(&self) -> BTreeMap<Backend, bool> {
        let seen = self.read();
        self.all.keys().map(|backend| (*backend, seen.ready(*backend))).collect()
    }

    pub fn get(&self, backend: Backend) -> Option<Arc<dyn SandboxBackend>> {
        self.all.get(&backend).cloned()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn SandboxBackend>> {
        self.all.values()
    }

    /// The backend for a session of this template.
    pub fn resolve(&self, template: &TemplateSpec) -> Result<Arc<dyn SandboxBackend>, Error> {
        let named = match template.backend {
            BackendChoice::Only(backend) => Some(backend),
            BackendChoice::Auto if template.root.is_some() => Some(Backend::Native),
            BackendChoice::Auto if template.image.is_some() => Some(Backend::Docker),
            BackendChoice::Auto => None,
        };
        // In a worker of fakes a template's root or image means nothing: only a backend by name does.
        let fake = self.read().choice == BackendChoice::Only(Backend::Fake);
        let named = named.filter(|_| !fake || template.backend != BackendChoice::Auto);
        let backend = match named {
            Some(backend) => backend,
            None => self.chosen().ok_or_else(|| {
                let choice = self.read().choice;
                unavailable(choice.as_str(), "no backend can be used on this worker now")
            })?,
        };
        if !self.read().ready(backend) {
            return Err(unavailable(backend.as_str(), &self.read().problems(backend)));
        }
        self.get(backend).ok_or_else(|| unavailable(backend.as_str(), "the worker was not started with it"))
    }

    /// As they are told to the coordinator.
    pub fn statuses(&self) -> Vec<v1::BackendStatus> {
        let chosen = self.chosen();
        self.read()
            .preflights
            .iter()
            .map(|(backend, preflight)| v1::BackendStatus {
                name: backend.to_string(),
                ready: preflight.ready(),
                message: match self.common.get().filter(|_| preflight.ready()) {
                    Some(common) => preflight.with(common).summary(),
                    None => preflight.summary(),
                },
                chosen: chosen == Some(*backend),
            })
            .collect()
    }

    /// Which of these templates can be served now, and why not the others.
    pub async fn review(&self, templates: &[TemplateSpec]) -> Review {
        let mut review = Review::default();
        for template in templates {
            match self.serves(template).await {
                Ok(()) => review.served.push(template.name.clone()),
                Err(reason) => {
                    info!(template = template.name, reason, "template not served here");
                    review.problems.push(v1::TemplateProblem { name: template.name.clone(), reason });
                }
            }
        }
        review
    }

    /// `Err`: why not, in one line.
    async fn serves(&self, template: &TemplateSpec) -> Result<(), String> {
        let told = |error: Error| match error.hint_text() {
            Some(hint) => format!("{error} ({hint})"),
            None => error.to_string(),
        };
        let backend = self.resolve(template).map_err(told)?;
        match tokio::time::timeout(PREFLIGHT_TIMEOUT, backend.can_serve(template)).await {
            Ok(result) => result.map_err(told),
            Err(_) => {
                Err(format!("the {} backend did not say in time whether it serves it", backend.backend()))
            }
        }
    }
}

/// How the coordinator's templates stand here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Review {
    pub served: Vec<String>,
    pub problems: Vec<v1::TemplateProblem>,
}

fn unavailable(backend: &str, problems: &str) -> Error {
    Error::unavailable(
        Reason::BackendUnavailable,
        format!("the sandbox backend {backend} can't be used on this worker: {problems}"),
    )
}

impl Seen {
    fn ready(&self, backend: Backend) -> bool {
        self.preflights.get(&backend).is_some_and(Preflight::ready)
    }

    fn summary(&self, backend: Backend) -> String {
        self.preflights.get(&backend).map(Preflight::summary).unwrap_or_default()
    }

    fn problems(&self, backend: Backend) -> String {
        match self.preflights.get(&backend) {
            Some(preflight) => {
                preflight.problems.iter().map(|problem| problem.what.clone()).collect::<Vec<_>>().join("; ")
            }
            None => "the worker was not started with it".to_owned(),
        }
    }

    fn hints<const N: usize>(&self, backends: [Backend; N]) -> String {
        let mut hints: Vec<&str> = Vec::new();
        for problem in backends.iter().filter_map(|b| self.preflights.get(b)).flat_map(|p| &p.problems) {
            if !problem.hint.is_empty() && !hints.contains(&problem.hint.as_str()) {
                hints.push(&problem.hint);
            }
        }
        hints.join("; or: ")
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::sandbox::{Identity, Running, SandboxSpec, SessionDirs};

    /// A backend that only says whether it is ready.
    struct Named(Backend, Option<&'static str>);

    #[async_trait]
    impl SandboxBackend for Named {
        fn backend(&self) -> Backend {
            self.0
        }
        async fn preflight(&self) -> Preflight {
            self.1.map(|what| broken(what, "repair it")).unwrap_or_default()
        }
        async fn can_serve(&self, _: &TemplateSpec) -> Result<(), Error> {
            Ok(())
        }
        async fn start(&self, _: &SandboxSpec) -> Result<Running, Error> {
            Err(Error::internal("not started here"))
        }
        async fn adopt(&self, _: &Identity, _: &SessionDirs) -> Result<Option<Running>, Error> {
            Ok(None)
        }
        async fn remove(&self, _: &Identity) -> Result<(), Error> {
            Ok(())
        }
        async fn leftovers(&self) -> Result<Vec<Identity>, Error> {
            Ok(Vec::new())
        }
    }

    async fn backends(
        native: Option<&'static str>,
        docker: Option<&'static str>,
        choice: BackendChoice,
    ) -> Result<Backends, StartError> {
        let made: Vec<Arc<dyn SandboxBackend>> =
            vec![Arc::new(Named(Backend::Native, native)), Arc::new(Named(Backend::Docker, docker))];
        Backends::with(made, BTreeMap::new(), choice).await
    }

    fn template(backend: BackendChoice, image: Option<&str>) -> TemplateSpec {
        TemplateSpec {
            name: "t".into(),
            root: None,
            image: image.map(str::to_owned),
            backend,
            user: "user".into(),
        }
    }

    #[tokio::test]
    async fn auto_is_native_else_docker_else_a_clear_word() {
        let chosen = |result: Result<Backends, StartError>| result.map(|b| b.chosen().unwrap());
        assert_eq!(chosen(backends(None, None, BackendChoice::Auto).await).unwrap(), Backend::Native);
        assert_eq!(chosen(backends(Some("x"), None, BackendChoice::Auto).await).unwrap(), Backend::Docker);
        let error = backends(Some("no root"), Some("no engine"), BackendChoice::Auto).await.err().unwrap();
        assert!(error.to_string().contains("no root") && error.to_string().contains("no engine"), "{error}");
        assert_eq!(error.hint(), "repair it");
    }

    #[tokio::test]
    async fn a_named_backend_is_used_or_refused() {
        let docker = BackendChoice::Only(Backend::Docker);
        assert_eq!(backends(None, None, docker).await.unwrap().chosen(), Some(Backend::Docker));
        let error = backends(None, Some("its image is absent"), docker).await.err().unwrap();
        assert!(error.to_string().contains("its image is absent"), "{error}");
    }

    #[tokio::test]
    async fn a_template_has_the_say() {
        let backends = backends(None, Some("stopped"), BackendChoice::Auto).await.unwrap();
        let of = |t| backends.resolve(&t).map(|b| b.backend());
        assert_eq!(of(template(BackendChoice::Auto, None)).unwrap(), Backend::Native);
        assert!(of(template(BackendChoice::Auto, Some("img"))).unwrap_err().to_string().contains("stopped"));
        assert!(of(template(BackendChoice::Only(Backend::Fake), None)).is_err());
        let refused = backends.choose(BackendChoice::Only(Backend::Docker)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BackendUnavailable);
        assert_eq!(backends.chosen(), Some(Backend::Native));
        let stopped = TemplateSpec { name: "i".into(), ..template(BackendChoice::Auto, Some("img")) };
        let review = backends.review(&[template(BackendChoice::Auto, None), stopped]).await;
        assert_eq!(review.served, ["t"]);
        assert_eq!(review.problems.len(), 1);
        assert_eq!(review.problems[0].name, "i");
        assert!(review.problems[0].reason.contains("stopped"), "{:?}", review.problems);
    }
}
