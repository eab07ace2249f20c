//! The fake backend: sandboxes in memory, with an agent that speaks the real contract over
//! a few commands and a file tree, and faults to inject. It isolates nothing and runs no
//! program, so it is used only where it is asked for by name.
//!
//! It is shipped, not test-only: whole fleets of it drive the coordinator in simulations,
//! and the contract suite runs against it like against any other backend.
//!
//! | file | what |
//! |---|---|
//! | [`agent`] | the machine: tasks, deadlines, and `AgentService` |
//! | [`tasks`], [`feed`], [`service`] | one task, what its watchers get, `TaskService` |
//! | [`output`] | a bounded output stream with absolute offsets |
//! | [`commands`] | what can be run |
//! | [`files`] | the tree, and `FileService` |
//! | [`ports`] | `PortService`: one server, which echoes |
//! | [`interpreter`] | that there is none |
//! | [`archive`] | the tree out of one sandbox and into another |
//!
//! A clone of a [`FakeBackend`] is the same backend: a worker that starts anew with it finds the
//! sandboxes that an earlier one left, as it would with a real backend.

mod agent;
mod archive;
mod commands;
mod feed;
mod files;
mod interpreter;
mod output;
mod pack;
mod ports;
mod service;
mod tasks;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use berth_proto::{
    Error, Reason, SessionId,
    agent_config::{HOME, SOCKET_NAME, User},
    domain::{Backend, TemplateSpec},
    spawn::spawn,
    transport,
};
use tokio::{io::DuplexStream, net::UnixListener, runtime::Handle};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use self::agent::Machine;
pub use self::agent::Observed;
use super::{Identity, Preflight, Problem, Running, SandboxBackend, SandboxSpec, SessionDirs};

/// How the fake backend behaves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub faults: Faults,
    /// Templates that it can't serve.
    pub missing_templates: Vec<String>,
}

/// What shall go wrong. Read anew at each start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The preflight finds this problem.
    pub not_ready: Option<String>,
    /// A start fails with this message.
    pub fail_start: Option<String>,
    /// A start takes this long.
    pub start_delay: Duration,
    /// The agent takes calls and answers none.
    pub never_answer: bool,
    /// The sandbox dies by itself so long after its start.
    pub die_after: Option<Duration>,
    /// The agent forgets its deadlines.
    pub no_deadlines: bool,
    /// Freezing takes this long.
    pub freeze_delay: Duration,
    /// It takes this long to say whether a template can be served.
    pub serve_delay: Duration,
    /// So many removals fail before one works.
    pub fail_removes: u32,
}

/// In-memory sandboxes. They live on the runtime of whoever starts them, unless they are given a
/// [home](FakeBackend::at_home) of their own.
#[derive(Clone)]
pub struct FakeBackend {
    inner: Arc<Inner>,
}

/// Told of each task that starts: session, epoch, command line.
pub type Witness = Arc<dyn Fn(SessionId, u64, &str) + Send + Sync>;

struct Inner {
    settings: Mutex<Settings>,
    witness: Mutex<Option<Witness>>,
    sandboxes: Mutex<BTreeMap<String, Arc<Machine>>>,
    home: Mutex<Option<Handle>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeBackend {
    pub fn new(settings: Settings) -> Self {
        Self {
            inner: Arc::new(Inner {
                settings: Mutex::new(settings),
                witness: Mutex::default(),
                sandboxes: Mutex::default(),
                home: Mutex::default(),
            }),
        }
    }

    /// From now on sandboxes live on this runtime, and so outlive the worker's, as real ones do.
    pub fn at_home(&self, runtime: Handle) {
        *lock(&self.inner.home) = Some(runtime);
    }

    /// Has every task that starts from now on told to `witness`, in sandboxes that are made from now on.
    pub fn witness(&self, witness: Witness) {
        *lock(&self.inner.witness) = Some(witness);
    }

    /// The machine itself is gone, with all that was on it.
    pub fn lose_all(&self) {
        let lost = std::mem::take(&mut *lock(&self.inner.sandboxes));
        for machine in lost.into_values() {
            machine.die();
        }
    }

    /// What runs in each sandbox now, by session.
    pub fn observe(&self) -> Vec<Observed> {
        lock(&self.inner.sandboxes).iter().map(|(session, machine)| machine.observe(session)).collect()
    }

    /// Does it on the runtime of the sandboxes.
    fn home<T>(&self, work: impl FnOnce() -> T) -> T {
        let home = lock(&self.inner.home).clone();
        let _entered = home.as_ref().map(Handle::enter);
        work()
    }

    /// Changes what goes wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.inner.settings).faults);
    }

    /// Ids of the sessions that have a sandbox now.
    pub fn sandboxes(&self) -> Vec<String> {
        lock(&self.inner.sandboxes).keys().cloned().collect()
    }

    /// Ends a sandbox as if its agent had died.
    pub fn kill(&self, session: &str) {
        if let Some(machine) = lock(&self.inner.sandboxes).get(session) {
            machine.die();
        }
    }

    /// A channel to the machine's agent, over memory.
    async fn connect(&self, machine: &Arc<Machine>) -> Result<Channel, Error> {
        let (client, server) = tokio::io::duplex(256 << 10);
        let serving = machine.clone();
        let incoming = one_connection(server, machine.gone().clone());
        self.home(|| spawn("fake-agent", async move { agent::serve(serving, incoming).await }));
        let (channel, _closed) = transport::channel_over(client).await.map_err(|error| {
            Error::unavailable(Reason::AgentUnreachable, "the fake agent does not answer").cause(error)
        })?;
        Ok(channel)
    }

    async fn running(&self, machine: &Arc<Machine>, session: &str) -> Result<Running, Error> {
        Ok(Running {
            identity: Identity::Fake { session: session.to_owned() },
            agent: self.connect(machine).await?,
            gone: machine.gone().clone(),
            user: User { name: "user".to_owned(), uid: 1000, gid: 1000, home: PathBuf::from(HOME) },
        })
    }
}

/// The agent on its socket as well, where every backend has it, so that a test can aim at it.
fn listen(machine: &Arc<Machine>, dirs: &SessionDirs) -> std::io::Result<()> {
    std::fs::create_dir_all(dirs.run())?;
    let listener = UnixListener::bind(dirs.run().join(SOCKET_NAME))?;
    let serving = machine.clone();
    spawn("fake-agent-socket", async move { agent::serve(serving, UnixListenerStream::new(listener)).await });
    Ok(())
}

/// The one connection that a server shall take; the stream then stays open until `closed`.
fn one_connection(
    io: DuplexStream,
    closed: CancellationToken,
) -> impl futures::Stream<Item = std::io::Result<DuplexStream>> {
    futures::stream::unfold(Some(io), move |io| {
        let closed = closed.clone();
        async move {
            match io {
                Some(io) => Some((Ok(io), None)),
                None => {
                    closed.cancelled().await;
                    None
                }
            }
        }
    })
}

#[async_trait]
impl SandboxBackend for FakeBackend {
    fn backend(&self) -> Backend {
        Backend::Fake
    }

    async fn preflight(&self) -> Preflight {
        let problem = lock(&self.inner.settings).faults.not_ready.clone();
        Preflight {
            problems: problem
                .map(|what| Problem { what, hint: "a fault was injected".to_owned() })
                .into_iter()
                .collect(),
            weaker: vec!["isolates nothing: for tests".to_owned()],
            facts: Vec::new(),
        }
    }

    async fn can_serve(&self, template: &TemplateSpec) -> Result<(), Error> {
        let delay = lock(&self.inner.settings).faults.serve_delay;
        tokio::time::sleep(delay).await;
        if lock(&self.inner.settings).missing_templates.contains(&template.name) {
            return Err(Error::not_found(
                Reason::TemplateNotFound,
                format!("the template {} has nothing here", template.name),
            ));
        }
        Ok(())
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<Running, Error> {
        let faults = lock(&self.inner.settings).faults.clone();
        tokio::time::sleep(faults.start_delay).await;
        if let Some(message) = faults.fail_start {
            return Err(Error::unavailable(Reason::SandboxFailed, message));
        }
        let session = spec.session.to_string();
        let witness = lock(&self.inner.witness).clone();
        let machine = self.home(|| Machine::start(spec, &faults, witness));
        if lock(&self.inner.sandboxes).insert(session.clone(), machine.clone()).is_some() {
            return Err(Error::internal("the session has a sandbox already"));
        }
        // A simulation has no sockets on a disk.
        if !cfg!(berth_sim) && spec.dirs.root.is_dir() {
            listen(&machine, &spec.dirs).map_err(|cause| {
                Error::unavailable(Reason::SandboxFailed, "the fake agent can't listen").cause(cause)
            })?;
        }
        self.running(&machine, &session).await
    }

    async fn adopt(&self, identity: &Identity, _dirs: &SessionDirs) -> Result<Option<Running>, Error> {
        let Identity::Fake { session } = identity else { return Ok(None) };
        let machine = lock(&self.inner.sandboxes).get(session).cloned();
        match machine {
            Some(machine) if !machine.gone().is_cancelled() => {
                Ok(Some(self.running(&machine, session).await?))
            }
            _ => Ok(None),
        }
    }

    async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let Identity::Fake { session } = identity else { return Ok(()) };
        {
            let mut settings = lock(&self.inner.settings);
            if settings.faults.fail_removes > 0 {
                settings.faults.fail_removes -= 1;
                return Err(Error::unavailable(Reason::SandboxFailed, "a fault was injected: removal"));
            }
        }
        if let Some(machine) = lock(&self.inner.sandboxes).remove(session) {
            machine.die();
        }
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<Identity>, Error> {
        Ok(self.sandboxes().into_iter().map(|session| Identity::Fake { session }).collect())
    }
}
