//! The server's end of the socket to init: starts and signals on their way out,
//! starts and ends on their way back.
//!
//! A start that nobody waits for any more is killed when it is reported: the caller's
//! deadline never leaves a process behind.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use prost::Message;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::TaskClock,
    sys,
    wire::{self, Event, Exited, Failed, Spawn, Spawned, Stage},
};

/// A start takes a millisecond; a machine that swaps may need longer. In task time: one that is caught by a pause
/// begins when that is over.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A task that runs.
pub struct Started {
    /// Init's number for it.
    pub number: u64,
    pub spawned: Spawned,
    /// The end of its main process. Closed: init is gone.
    pub exit: oneshot::Receiver<Exited>,
}

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{stage:?}: {error}")]
    Failed { stage: Stage, error: io::Error },
    #[error("init can't be reached: {0}")]
    Init(io::Error),
    #[error("not started within {} s", START_DEADLINE.as_secs())]
    Late,
}

struct Pending {
    started: oneshot::Sender<Result<Started, Failed>>,
}

#[derive(Default)]
struct Book {
    pending: HashMap<u64, Pending>,
    exits: HashMap<u64, oneshot::Sender<Exited>>,
}

/// Starts tasks through init.
pub struct Spawner {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    book: Mutex<Book>,
    /// Cancelled when init was asked to end, or is gone.
    pub terminate: CancellationToken,
}

impl Spawner {
    /// Needs a runtime. [`Spawner::listen`] must run for anything to happen.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        Ok(Self {
            socket: sys::watch(socket, Interest::READABLE | Interest::WRITABLE)?,
            next: AtomicU64::new(1),
            book: Mutex::default(),
            terminate: CancellationToken::new(),
        })
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| sys::send(socket.as_fd(), bytes, fds)).await
    }

    /// Starts a program. The descriptors are copied: drop them afterwards.
    pub async fn spawn(
        &self,
        spawn: &Spawn,
        fds: &[OwnedFd],
        clock: &TaskClock,
    ) -> Result<Started, StartError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (packet, spilled) = wire::spawn_packet(number, spawn).map_err(StartError::Init)?;
        let mut fds = wire::raw(fds);
        fds.extend(spilled.iter().map(|fd| fd.as_raw_fd()));
        let (started, wait) = oneshot::channel();
        self.book().pending.insert(number, Pending { started });
        let forget = Forget { spawner: self, number };
        let run = async {
            self.send(&packet, &fds).await.map_err(StartError::Init)?;
            match wait.await {
                Ok(Ok(started)) => Ok(started),
                Ok(Err(failed)) => Err(StartError::Failed {
                    stage: failed.stage(),
                    error: io::Error::from_raw_os_error(failed.errno),
                }),
                Err(_) => Err(StartError::Init(io::Error::other("init is gone"))),
            }
        };
        let result = tokio::select! {
            biased;
            result = run => result,
            () = clock.sleep_until(Some(clock.now().saturating_add(START_DEADLINE))) => Err(StartError::Late),
        };
        drop(forget);
        result
    }

    /// Signals the process group of a task's main process; nothing if that has ended.
    pub async fn signal(&self, number: u64, signal: i32) -> io::Result<()> {
        let body = wire::Signal { signal }.encode_to_vec();
        self.send(&wire::packet(wire::Kind::Signal, number, &body), &[]).await
    }

    /// Hears what init says, until init is gone.
    pub async fn listen(&self) {
        let mut buffer = vec![0; 4096];
        loop {
            let packet = self
                .socket
                .async_io(Interest::READABLE, |socket| sys::receive(socket.as_fd(), &mut buffer))
                .await;
            match packet {
                Ok((0, _)) | Err(_) => break,
                Ok((n, _)) => match wire::read_report(&buffer[..n]) {
                    Some((number, event)) => self.on_event(number, event).await,
                    None => tracing::error!("init sent a packet that is none"),
                },
            }
        }
        tracing::error!("init is gone");
        *self.book() = Book::default();
        self.terminate.cancel();
    }

    async fn on_event(&self, number: u64, event: Event) {
        match event {
            Event::Spawned(spawned) => {
                let (exited, exit) = oneshot::channel();
                let pending = {
                    let mut book = self.book();
                    book.exits.insert(number, exited);
                    book.pending.remove(&number)
                };
                let wanted =
                    pending.is_some_and(|p| p.started.send(Ok(Started { number, spawned, exit })).is_ok());
                if !wanted {
                    tracing::warn!("a task came up after its start was given up: it is killed");
                    let _ = self.signal(number, libc::SIGKILL).await;
                }
            }
            Event::Failed(failed) => {
                if let Some(pending) = self.book().pending.remove(&number) {
                    let _ = pending.started.send(Err(failed));
                }
            }
            Event::Exited(exited) => {
                if let Some(exit) = self.book().exits.remove(&number) {
                    let _ = exit.send(exited);
                }
            }
            Event::Terminate(_) => self.terminate.cancel(),
        }
    }
}

/// Takes a start out of the book when its caller is done with it, in whatever way.
struct Forget<'a> {
    spawner: &'a Spawner,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.spawner.book().pending.remove(&self.number);
    }
}

/// Makes a descriptor of ours fit for the runtime.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn spawn() -> Spawn {
        Spawn { argv: vec![b"x".to_vec()], ..Default::default() }
    }

    /// Answers one packet as init would.
    fn init(socket: OwnedFd, event: Event) -> std::thread::JoinHandle<OwnedFd> {
        std::thread::spawn(move || {
            let mut buffer = vec![0; wire::PACKET_MAX];
            let (n, _) = sys::receive(socket.as_fd(), &mut buffer).unwrap();
            let (_, task, _) = wire::open(&buffer[..n]).unwrap();
            wire::report(socket.as_fd(), task, event).unwrap();
            socket
        })
    }

    async fn with_init(event: Event) -> (Arc<Spawner>, Result<Started, StartError>) {
        let (mine, theirs) = wire::pair().unwrap();
        let spawner = Arc::new(Spawner::new(mine).unwrap());
        let listener = spawner.clone();
        berth_proto::spawn::spawn("listen", async move { listener.listen().await });
        let init = init(theirs, event);
        let result = spawner.spawn(&spawn(), &[], &TaskClock::new()).await;
        drop(init.join().unwrap());
        (spawner, result)
    }

    #[tokio::test]
    async fn a_failure_names_its_stage() {
        let failed = Failed { stage: Stage::Cwd.into(), errno: libc::ENOENT };
        let (_, result) = with_init(Event::Failed(failed)).await;
        match result {
            Err(StartError::Failed { stage: Stage::Cwd, error }) => {
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
            }
            other => panic!("{:?}", other.err()),
        }
    }

    /// Red when who waits is not told that init is gone.
    #[tokio::test]
    async fn a_lost_init_ends_the_wait() {
        let (spawner, result) =
            with_init(Event::Spawned(Spawned { pid: 5, group: Some(1), guard: None })).await;
        let started = result.expect("spawned");
        assert_eq!(started.spawned.pid, 5);
        assert!(started.exit.await.is_err(), "init is gone, and its status with it");
        spawner.terminate.cancelled().await;
    }
}
