//! The pumps that carry a task's output from its pipes (or its terminal) to its spools,
//! count it against the output limit, and drain it when the task has ended.
//!
//! End-of-file is not exit: a process that lives on may hold the pipe. So the task's
//! driver reaps first, sees everything dead, and only then asks for the drain, which
//! takes what is there and waits for nothing that can be late but a terminal's queue.

use std::{
    cell::RefCell,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{errno::Errno, unistd};
use tokio::{
    io::unix::AsyncFd,
    sync::{oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::spool::Spool;

/// Bytes of one read: a pipe's default capacity.
const READ: usize = 64 << 10;
/// No pipe holds more (fs.pipe-max-size). What a drain takes at most.
const PIPE_MAX: usize = 1 << 20;
/// A terminal's last bytes pass through a kernel queue of their own.
const TERMINAL_DRAIN: Duration = Duration::from_secs(1);

/// What both streams of a task share.
pub struct Meter {
    total: AtomicU64,
    limit: Option<u64>,
    /// Cancelled by the first byte over the limit.
    pub over: CancellationToken,
    /// Told of every growth.
    changed: watch::Sender<()>,
}

impl Meter {
    pub fn new(limit: Option<u64>, changed: watch::Sender<()>) -> Self {
        Self { total: AtomicU64::new(0), limit, over: CancellationToken::new(), changed }
    }

    /// How many of `n` more bytes are within the limit.
    fn admit(&self, n: usize) -> usize {
        let before = self.total.fetch_add(n as u64, Ordering::Relaxed);
        let Some(limit) = self.limit else { return n };
        if before + n as u64 > limit {
            self.over.cancel();
        }
        (limit.saturating_sub(before) as usize).min(n)
    }
}

/// One stream's way from the task to its spool.
pub struct Pump {
    pub source: Arc<AsyncFd<OwnedFd>>,
    pub spool: Arc<Spool>,
    pub meter: Arc<Meter>,
    /// Cancelled when all that shall be kept is written.
    pub ending: CancellationToken,
    pub terminal: bool,
    /// Read on, and throw away, so that what lives on gets no SIGPIPE.
    pub detached: bool,
}

enum Step {
    More,
    Empty,
    Closed,
}

impl Pump {
    /// Runs until the stream is closed. `drained` fires when the spool has all it will get.
    pub async fn run(self, drained: oneshot::Sender<()>) {
        let closed = self.copy_until_ending().await || self.drain().await;
        let _ = drained.send(());
        if !closed && self.detached {
            self.discard().await;
        }
    }

    /// True: the stream was closed first.
    async fn copy_until_ending(&self) -> bool {
        loop {
            let mut ready = tokio::select! {
                ready = self.source.readable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return true,
                },
                () = self.ending.cancelled() => return false,
            };
            match self.step().await {
                Step::More => {}
                Step::Empty => ready.clear_ready(),
                Step::Closed => return true,
            }
        }
    }

    /// Takes what is there. True: the stream is closed.
    async fn drain(&self) -> bool {
        for _ in 0..=PIPE_MAX / READ * 16 {
            match self.step().await {
                Step::More => {}
                Step::Closed => return true,
                Step::Empty if self.terminal && !self.detached => {
                    let hung_up = tokio::time::timeout(TERMINAL_DRAIN, async {
                        while let Ok(mut ready) = self.source.readable().await {
                            match self.step().await {
                                Step::More => {}
                                Step::Empty => ready.clear_ready(),
                                Step::Closed => return,
                            }
                        }
                    });
                    return hung_up.await.is_ok();
                }
                Step::Empty => return false,
            }
        }
        false
    }

    async fn step(&self) -> Step {
        match self.read() {
            Ok(data) if data.is_empty() => Step::Closed,
            Err(Errno::EIO) => Step::Closed,
            Ok(mut data) => {
                data.truncate(self.meter.admit(data.len()));
                if !data.is_empty() {
                    #[cfg(feature = "weakened")]
                    if weakened!("hoarded-output") {
                        crate::weaken::hoard(&data);
                    }
                    self.spool.append(data).await;
                    self.meter.changed.send_replace(());
                }
                Step::More
            }
            Err(Errno::EAGAIN) => Step::Empty,
            Err(Errno::EINTR) => Step::More,
            Err(error) => {
                tracing::warn!(%error, "a task's output can't be read");
                Step::Closed
            }
        }
    }

    /// Through one buffer a thread: most reads find little, or nothing.
    fn read(&self) -> Result<Vec<u8>, Errno> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let n = unistd::read(self.source.get_ref(), buffer)?;
            Ok(buffer[..n].to_vec())
        })
    }

    async fn discard(&self) {
        let mut waste = vec![0; 4096];
        while let Ok(mut ready) = self.source.readable().await {
            match unistd::read(self.source.get_ref(), &mut waste) {
                Ok(0) | Err(Errno::EIO) => return,
                Ok(_) | Err(Errno::EINTR) => tokio::task::yield_now().await,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Budget, Read};
    use nix::fcntl::OFlag;

    struct Rig {
        write: OwnedFd,
        spool: Arc<Spool>,
        meter: Arc<Meter>,
        ending: CancellationToken,
        drained: oneshot::Receiver<()>,
    }

    fn rig(limit: Option<u64>, detached: bool) -> Rig {
        let (read, write) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let dir = std::env::temp_dir().join("berth-output-never-made");
        let spool = Spool::new(dir, "stdout", 64 << 10, Arc::new(Budget::new(1 << 20)));
        let meter = Arc::new(Meter::new(limit, watch::Sender::new(())));
        let ending = CancellationToken::new();
        let (tell, drained) = oneshot::channel();
        let pump = Pump {
            source: Arc::new(crate::sys::watch(read, tokio::io::Interest::READABLE).unwrap()),
            spool: spool.clone(),
            meter: meter.clone(),
            ending: ending.clone(),
            terminal: false,
            detached,
        };
        berth_proto::spawn::spawn("pump", pump.run(tell));
        Rig { write, spool, meter, ending, drained }
    }

    async fn kept(spool: &Arc<Spool>) -> Vec<u8> {
        match spool.read(0, 1 << 20).await.unwrap() {
            Read::Data(data) => data.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Red when nothing is drained, or the pipe's end is waited for.
    #[tokio::test]
    async fn a_drain_takes_what_is_there_although_the_pipe_stays_open() {
        let rig = rig(None, false);
        unistd::write(&rig.write, b"last words").unwrap();
        rig.ending.cancel();
        rig.drained.await.unwrap();
        assert_eq!(kept(&rig.spool).await, b"last words");
    }

    #[tokio::test]
    async fn the_limit_cuts_to_the_byte() {
        let rig = rig(Some(4), false);
        unistd::write(&rig.write, b"1234").unwrap();
        rig.ending.cancel();
        rig.drained.await.unwrap();
        assert!(!rig.meter.over.is_cancelled(), "as much as the limit is allowed");
        let rig = self::rig(Some(4), false);
        unistd::write(&rig.write, b"12345").unwrap();
        rig.meter.over.cancelled().await;
        rig.ending.cancel();
        rig.drained.await.unwrap();
        assert_eq!(kept(&rig.spool).await, b"1234");
    }

    #[tokio::test]
    async fn what_a_detached_task_leaves_behind_gets_no_sigpipe() {
        let rig = rig(None, true);
        unistd::write(&rig.write, b"kept").unwrap();
        rig.ending.cancel();
        rig.drained.await.unwrap();
        // More than the pipe holds: somebody must read it.
        let mut sent = 0;
        while sent < 300_000 {
            match unistd::write(&rig.write, &[1; 4096]) {
                Ok(n) => sent += n,
                Err(Errno::EAGAIN) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(kept(&rig.spool).await, b"kept");
    }
}
