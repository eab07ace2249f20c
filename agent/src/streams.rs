//! The descriptors of a task: what it gets as 0, 1 and 2, and our ends of them.

use std::{io, os::fd::OwnedFd, sync::Arc};

use berth_proto::Error;
use nix::{
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::stat::Mode,
    unistd::pipe2,
};
use std::os::fd::AsFd;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    driver::{Plan, Shared},
    spawner::set_nonblocking,
    sys,
};

/// Both ends of a task's standard streams.
pub struct Streams {
    /// For the task: a terminal, or stdin, stdout and stderr.
    pub theirs: Vec<OwnedFd>,
    pub stdin: Option<AsyncFd<OwnedFd>>,
    pub stdout: Arc<AsyncFd<OwnedFd>>,
    pub stderr: Option<Arc<AsyncFd<OwnedFd>>>,
    pub terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Streams {
    /// Opens what the plan asks for.
    pub async fn open(shared: &Shared, plan: &Plan) -> Result<Self, io::Error> {
        match plan.pty_size.filter(|_| plan.spawn.pty) {
            Some(size) => Self::terminal(shared, size).await,
            None => Self::pipes(shared, plan.spec.stdin),
        }
    }

    fn pipes(shared: &Shared, stdin: bool) -> io::Result<Self> {
        let (their_stdin, stdin) = if stdin {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(&ours)?;
            (theirs, Some(sys::watch(ours, Interest::WRITABLE)?))
        } else {
            (shared.null.try_clone()?, None)
        };
        let (stdout, their_stdout) = source()?;
        let (stderr, their_stderr) = source()?;
        Ok(Self {
            theirs: vec![their_stdin, their_stdout, their_stderr],
            stdin,
            stdout,
            stderr: Some(stderr),
            terminal: None,
        })
    }

    /// Opened as the task's user, so that the terminal belongs to it: programs reopen
    /// theirs by name, and the agent may not chown.
    async fn terminal(shared: &Shared, size: berth_proto::domain::PtySize) -> io::Result<Self> {
        let open = |_: &crate::files::Gone| {
            let run = || -> io::Result<(OwnedFd, OwnedFd)> {
                let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                let master = openat(AT_FDCWD, "/dev/ptmx", flags, Mode::empty())?;
                let peer = sys::open_peer(master.as_fd())?;
                Ok((master, peer))
            };
            run().map_err(|error| Error::internal("no terminal").cause(error))
        };
        let (master, peer) = shared.files.run(open).await.map_err(|e| io::Error::other(format!("{e:?}")))?;
        sys::resize(master.as_fd(), size)?;
        let master = Arc::new(sys::watch(master, Interest::READABLE | Interest::WRITABLE)?);
        Ok(Self {
            theirs: vec![peer],
            stdin: None,
            stdout: master.clone(),
            stderr: None,
            terminal: Some(master),
        })
    }
}

/// A pipe from the task to us.
pub(crate) fn source() -> io::Result<(Arc<AsyncFd<OwnedFd>>, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&ours)?;
    Ok((Arc::new(sys::watch(ours, Interest::READABLE)?), theirs))
}
