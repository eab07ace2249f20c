//! A context's process: started through init as a task is, so confined, counted and ended as one; and the ends of what
//! connects it with us: the bridge's socket, and its standard output and error.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    Code, ContextId, Reason,
    domain::{ContextSpec, KernelChoice, Program, TaskSpec, Timeout},
};
use bytes::Bytes;
use nix::{errno::Errno, unistd};
use tokio::{io::unix::AsyncFd, net::UnixStream, sync::oneshot};
use tracing::error;

use crate::{
    cgroup::Group,
    driver::{KILL_DEADLINE, kill_all},
    files::plain,
    spawner::StartError,
    streams::source,
    task::Refusal,
    tasks::{Session, Tasks},
    wire::{Exited, Stage},
};

/// The bridge, as the interpreter is given it.
const BRIDGE: &str = include_str!("bridge.py");
/// Reads the bridge from descriptor 0. Python takes the directory that it starts in for the first place to import from;
/// what lies there must not take the place of what the bridge needs.
const LOADER: &str = "import sys; sys.path[:] = [p for p in sys.path if p]; \
    exec(compile(open(0, 'rb', closefd=False).read(int(sys.argv[1])), '<berth>', 'exec'), {'__name__': 'berth_bridge'})";

/// One life of a context's interpreter.
pub struct Process {
    pub number: u64,
    pub pid: u32,
    pub exit: Exit,
    pub group: Arc<Group>,
    pub socket: UnixStream,
    /// Its standard output and error.
    pub outputs: [Arc<AsyncFd<OwnedFd>>; 2],
    /// What the bridge is still to be sent.
    pub unsent: Bytes,
}

/// The end of its main process.
pub struct Exit {
    told: oneshot::Receiver<Exited>,
    seen: Option<Option<Exited>>,
}

impl Exit {
    /// How it ended; `None`: nobody can say. May be asked again, and dropped.
    pub async fn wait(&mut self) -> Option<Exited> {
        if self.seen.is_none() {
            self.seen = Some((&mut self.told).await.ok());
        }
        self.seen.flatten()
    }

    /// The same, if it comes soon.
    pub async fn within(&mut self, time: Duration) -> Option<Exited> {
        tokio::time::timeout(time, self.wait()).await.ok().flatten()
    }
}

impl Process {
    /// Starts the interpreter, which does not take code yet.
    pub async fn start(
        tasks: &Tasks,
        session: &Session,
        id: ContextId,
        spec: &ContextSpec,
    ) -> Result<Self, Refusal> {
        let internal = |error: &dyn std::fmt::Display| {
            error!(%error, "a context could not be started");
            let text = "the context could not be started: see the sandbox's log".to_owned();
            Refusal::new(Code::Internal, Reason::Internal, text)
        };
        let (ours, theirs) = StdStream::pair().map_err(|e| internal(&e))?;
        ours.set_nonblocking(true).map_err(|e| internal(&e))?;
        let socket = UnixStream::from_std(ours).map_err(|e| internal(&e))?;
        let (stdout, their_stdout) = source().map_err(|e| internal(&e))?;
        let (stderr, their_stderr) = source().map_err(|e| internal(&e))?;
        let spawn = tasks.environment.spawn(&session.env, &as_task(id, spec), &Default::default(), None);
        let shared = tasks.shared();
        let theirs = [theirs.into(), their_stdout, their_stderr];
        let started = shared.spawner.spawn(&spawn, &theirs, &shared.clock).await;
        drop(theirs);
        let started = started.map_err(|error| match &error {
            StartError::Failed { stage: Stage::Cwd, error } => Refusal::new(
                Code::FailedPrecondition,
                Reason::CwdNotFound,
                format!("cwd {:?} can't be entered: {}", spec.cwd, plain(error)),
            ),
            _ => internal(&error),
        })?;
        let group = Arc::new(match started.spawned.group {
            Some(number) => Group::Cgroup { cgroups: shared.cgroups.clone(), number },
            None => Group::Below { guard: started.spawned.guard.unwrap_or(started.spawned.pid) },
        });
        tasks.hold_group(&group);
        Ok(Self {
            number: started.number,
            pid: started.spawned.pid as u32,
            exit: Exit { told: started.exit, seen: None },
            group,
            socket,
            outputs: [stdout, stderr],
            unsent: Bytes::from_static(BRIDGE.as_bytes()),
        })
    }

    /// Sends what the socket takes now.
    pub fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.try_write(&self.unsent) {
                Ok(n) => drop(self.unsent.split_to(n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what there is of a stream. `None`: nothing now. Empty: it is closed.
    pub fn read(&self, stream: usize, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match unistd::read(self.outputs[stream].get_ref(), buffer) {
                Ok(n) => return Some(n),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Err(_) => return Some(0),
            }
        }
    }

    /// Kills all that it started. Nothing of it is left then, or can't be killed.
    pub async fn kill(&mut self, tasks: &Tasks) {
        if let Group::Below { .. } = *self.group {
            let _ = tasks.shared().spawner.signal(self.number, libc::SIGKILL).await;
        }
        if !kill_all(&self.group).await {
            error!(pids = ?self.group.pids(), "a context's processes can't be killed");
        }
        self.exit.within(KILL_DEADLINE).await;
        tasks.release_group(&self.group).await;
    }

    /// A word on how it ended by itself, for people. Before it is tidied up.
    pub fn epitaph(&self, exited: Option<Exited>) -> String {
        let Some(Exited { status, .. }) = exited else { return "its bridge was cut off".to_owned() };
        if self.group.counters().oom_kills > 0 {
            return "the kernel killed its interpreter for want of memory".to_owned();
        }
        if libc::WIFSIGNALED(status) {
            return format!("its interpreter was killed by signal {}", libc::WTERMSIG(status));
        }
        format!("its interpreter exited with {}", libc::WEXITSTATUS(status))
    }
}

/// What is started, in the words in which a task is asked for.
fn as_task(id: ContextId, spec: &ContextSpec) -> TaskSpec {
    let kernel = match spec.kernel {
        KernelChoice::Best => "best",
        KernelChoice::Ipykernel => "ipykernel",
        KernelChoice::Builtin => "builtin",
    };
    let (length, id) = (BRIDGE.len().to_string(), id.to_string());
    let argv = [&spec.executable, "-c", LOADER, &length, kernel, &id].map(|arg: &str| arg.to_owned());
    TaskSpec {
        program: Program::Argv(argv.into()),
        cwd: spec.cwd.clone(),
        env: spec.env.clone(),
        timeout: Timeout::Never,
        output_limit: None,
        spool_bytes: 0,
        pty: None,
        stdin: true,
        detached: false,
        reattach_grace: Duration::ZERO,
        secrets: Vec::new(),
    }
}
