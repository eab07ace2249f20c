//! Standing still: for whom, and for how long. All tasks freeze while anyone holds them:
//! - a **pause**, as the client asked;
//! - the **fence**: the worker may have lost its right to run this session, so nothing happens here until it is
//!   confirmed, or until a newer placement is known and this one is ended;
//! - an **archive** that is being read, so that no file in it is torn.
//!
//! They come and go independently, so each is a mark of its own, and what the kernel is told follows from all of
//! them. A hold that could not be taken is no hold, but for the fence: what does not come to a stand behind it is not let
//! go on, and is ended. One that could not be given back stays, and is told.
//!
//! The kernel is told by a thread that does nothing else ([`Hand`]), and which knows the fence by itself. The runtime keeps
//! the marks, but it writes to disks, and so do its other threads: while a disk stands still they may all wait for it. The
//! fence must not wait with them, since the session may run elsewhere by then.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use berth_proto::{Error, Reason, agent_config::Cgroups};
use nix::sys::signal::Signal;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    cgroup,
    clock::boot_now,
    deadline::Busy,
    tasks::{Tasks, lock},
};

/// For everything to stand still.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
/// Of the thread that tells the kernel: it opens a file, and writes a digit.
const STACK: usize = 128 << 10;

enum Order {
    /// By the marks, all tasks stand still, or none has to. Answered with whether there is a freezer.
    Hold(bool, oneshot::Sender<io::Result<bool>>),
    /// From this boot time on they stand still, whatever the marks are.
    Fence(Duration),
    /// Something else that takes the kernel's cgroup lock, and no disk.
    Do(Box<dyn FnOnce() + Send>),
}

/// The thread that tells the kernel. It ends with this.
pub(crate) struct Hand {
    orders: mpsc::Sender<Order>,
    /// Whether the fence is passed.
    behind: Arc<AtomicBool>,
}

impl Hand {
    fn new(cgroups: Cgroups) -> io::Result<Self> {
        let (orders, told) = mpsc::channel();
        let behind = Arc::new(AtomicBool::new(false));
        let kernel = Kernel { cgroups, held: false, fence: None, behind: behind.clone() };
        thread::Builder::new().name("freezer".to_owned()).stack_size(STACK).spawn(|| kernel.serve(told))?;
        Ok(Self { orders, behind })
    }

    async fn hold(&self, held: bool) -> io::Result<bool> {
        let (tell, done) = oneshot::channel();
        self.send(Order::Hold(held, tell))?;
        done.await.map_err(io::Error::other)?
    }

    pub(crate) async fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (tell, done) = oneshot::channel();
        self.send(Order::Do(Box::new(move || {
            work();
            let _ = tell.send(());
        })))?;
        done.await.map_err(io::Error::other)
    }

    /// Whether the fence is passed.
    fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    fn send(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| io::Error::other("the freezer's thread is gone"))
    }
}

/// What that thread knows.
struct Kernel {
    cgroups: Cgroups,
    held: bool,
    fence: Option<Duration>,
    behind: Arc<AtomicBool>,
}

impl Kernel {
    fn serve(mut self, told: mpsc::Receiver<Order>) {
        loop {
            let order = match self.left() {
                Some(left) => told.recv_timeout(left),
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match order {
                Ok(Order::Hold(held, tell)) => {
                    self.held = held;
                    let _ = tell.send(self.tell());
                }
                Ok(Order::Fence(at)) => {
                    self.fence = Some(at);
                    self.look();
                }
                Ok(Order::Do(work)) => work(),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Until the fence. `None`: there is none, or it is passed.
    fn left(&self) -> Option<Duration> {
        let ahead = self.fence.filter(|_| !self.behind.load(Ordering::SeqCst));
        ahead.map(|at| at.saturating_sub(boot_now()))
    }

    fn look(&self) {
        let behind = self.fence.is_some_and(|at| at <= boot_now());
        if self.behind.swap(behind, Ordering::SeqCst) != behind
            && let Err(error) = self.tell()
        {
            tracing::error!(%error, behind, "the kernel could not be told of the fence");
        }
    }

    fn tell(&self) -> io::Result<bool> {
        cgroup::freeze(&self.cgroups, self.held || self.behind.load(Ordering::SeqCst))
    }
}

/// Who holds the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    pub paused: bool,
    pub fenced: bool,
    pub archives: u32,
}

impl Holds {
    fn any(self) -> bool {
        self.paused || self.fenced || self.archives > 0
    }
}

/// The marks, and what belongs to them.
pub(crate) struct Freezer {
    holds: watch::Sender<Holds>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    /// A session that is held is not idle.
    busy: Mutex<Option<Busy>>,
    pub(crate) hand: Hand,
}

impl Freezer {
    pub(crate) fn new(cgroups: Cgroups) -> io::Result<Self> {
        Ok(Self {
            holds: watch::Sender::new(Holds::default()),
            turn: tokio::sync::Mutex::new(()),
            busy: Mutex::new(None),
            hand: Hand::new(cgroups)?,
        })
    }

    pub(crate) fn holds(&self) -> Holds {
        *self.holds.borrow()
    }

    /// Waits until no archive holds the tasks: that is over in a moment, and nobody has to be refused for it.
    pub(crate) async fn archives_over(&self) {
        let mut holds = self.holds.subscribe();
        // It ends with the agent only.
        let _ = holds.wait_for(|holds| holds.archives == 0).await;
    }

    /// Refuses to start a task that would stand still at once.
    pub(crate) fn refuse_held(&self) -> Result<(), Error> {
        let holds = self.holds();
        if holds.paused {
            return Err(
                Error::precondition(Reason::SessionPaused, "the session is paused").hint("resume it first")
            );
        }
        // The thread is there first, and the mark a moment later.
        if holds.fenced || self.hand.is_behind() {
            let text = "the session's worker has lost the coordinator: it stands still until that is back";
            return Err(Error::unavailable(Reason::SessionFenced, text));
        }
        Ok(())
    }
}

impl Tasks {
    /// Pauses or resumes, as the client asked.
    pub async fn pause(&self, paused: bool) -> Result<(), Error> {
        self.hold(|holds| holds.paused = paused).await.map(|_| ())
    }

    /// From this boot time on all tasks stand still, until it is told anew. The mark comes by [`Tasks::fence`].
    pub async fn fence_at(&self, at: Duration) -> Result<(), Error> {
        let gone = |error: io::Error| Error::internal("the fence could not be set").cause(error);
        let hand = &self.freezer.hand;
        hand.send(Order::Fence(at)).map_err(gone)?;
        // Orders are done in turn: after this one the fence is where it was put.
        hand.run(|| ()).await.map_err(gone)
    }

    /// Puts the fence up, or takes it down. Says whether it was up.
    pub async fn fence(&self, fenced: bool) -> Result<bool, Error> {
        Ok(self.hold(|holds| holds.fenced = fenced).await?.fenced)
    }

    /// Holds all tasks for an archive.
    pub async fn stand_still(self: &Arc<Self>) -> Result<Still, Error> {
        self.hold(|holds| holds.archives += 1).await?;
        Ok(Still { tasks: Some(self.clone()), since: Instant::now() })
    }

    /// Changes the marks, and what the kernel does by them. The marks as they were.
    async fn hold(&self, change: impl FnOnce(&mut Holds)) -> Result<Holds, Error> {
        let _turn = self.freezer.turn.lock().await;
        let before = self.freezer.holds();
        let mut after = before;
        change(&mut after);
        match (before.any(), after.any()) {
            (false, true) => {
                // First nobody starts anything, and no clock runs: what is frozen must not time out.
                self.freezer.holds.send_replace(after);
                self.shared.clock.set_paused(true);
                if let Err(error) = self.freeze(true).await {
                    if !after.fenced {
                        let _ = self.freeze(false).await;
                        self.shared.clock.set_paused(false);
                        self.freezer.holds.send_replace(before);
                    }
                    return Err(error);
                }
                *lock(&self.freezer.busy) = Some(self.activity.enter());
            }
            (true, false) => {
                self.freeze(false).await?;
                self.shared.clock.set_paused(false);
                *lock(&self.freezer.busy) = None;
                self.freezer.holds.send_replace(after);
            }
            _ => drop(self.freezer.holds.send_replace(after)),
        }
        Ok(before)
    }

    /// Freezes or thaws everything that tasks started. Returns when it stands still.
    async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let failed = |error: io::Error| Error::internal("the tasks could not be frozen").cause(error);
        let hand = &self.freezer.hand;
        if !hand.hold(frozen).await.map_err(failed)? {
            self.signal_all(frozen);
            return Ok(());
        }
        let until = Instant::now() + FREEZE_DEADLINE;
        // Behind the fence they stand still all the same.
        let fenced = || !frozen && hand.is_behind();
        while cgroup::is_frozen(&self.shared.cgroups) != frozen && !fenced() {
            if Instant::now() > until {
                let text = "the tasks did not stand still in 5 s";
                return Err(Error::unavailable(Reason::SandboxFailed, text));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Without a freezer: STOP and CONT for everyone, more than once, since they may fork.
    fn signal_all(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let table = lock(&self.table);
        let running = table.running.keys().filter_map(|id| table.tasks.get(id)?.group());
        for group in running.chain(table.leftovers.iter().chain(&table.contexts).cloned()) {
            for _ in 0..3 {
                group.signal(signal, None);
            }
        }
    }
}

/// While this lives, all tasks stand still for an archive.
pub struct Still {
    tasks: Option<Arc<Tasks>>,
    since: Instant,
}

impl Still {
    /// Lets them go on. For how long they stood.
    pub async fn end(mut self) -> Result<Duration, Error> {
        if let Some(tasks) = self.tasks.take() {
            tasks.hold(|holds| holds.archives -= 1).await?;
        }
        Ok(self.since.elapsed())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if let Some(tasks) = self.tasks.take() {
            berth_proto::spawn::spawn("go on after an archive", async move {
                if let Err(error) = tasks.hold(|holds| holds.archives -= 1).await {
                    tracing::error!(?error, "the tasks could not be thawed");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel's file, and the thread that writes it.
    fn desk(name: &str) -> (std::path::PathBuf, Hand) {
        let dir = std::env::temp_dir().join(format!("berth-freezer-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("t")).unwrap();
        let cgroups = Cgroups { v2: Some(dir.clone()), ..Cgroups::default() };
        (dir, Hand::new(cgroups).unwrap())
    }

    /// Waits until the kernel was told so. There is no runtime: nothing else could tell it.
    fn told(dir: &std::path::Path, wanted: &str) {
        let begun = boot_now();
        while std::fs::read_to_string(dir.join("t/cgroup.freeze")).unwrap_or_default() != wanted {
            assert!(boot_now() - begun < Duration::from_secs(60), "it was not told {wanted}");
            thread::yield_now();
        }
    }

    /// Red when the fence is the runtime's affair: then a disk that stands still holds it up.
    #[test]
    fn the_fence_needs_no_runtime() {
        let (dir, hand) = desk("fence");
        let far = Duration::from_secs(3600);
        hand.send(Order::Fence(boot_now() + Duration::from_millis(20))).unwrap();
        told(&dir, "1");
        assert!(hand.is_behind());
        hand.send(Order::Fence(boot_now() + far)).unwrap();
        told(&dir, "0");
        // One that was put off is not passed; one that is long gone is, at once.
        hand.send(Order::Fence(Duration::ZERO)).unwrap();
        told(&dir, "1");
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Red when the end of one hold is the end of the other.
    #[test]
    fn marks_and_fence_hold_each_for_itself() {
        let (dir, hand) = desk("marks");
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        // What is told takes none of the runtime's threads.
        let (go_on, disk) = mpsc::channel::<()>();
        let waiting = runtime.spawn_blocking(move || disk.recv());
        let hold = |held| runtime.block_on(hand.hold(held)).unwrap();
        let far = boot_now() + Duration::from_secs(3600);
        assert!(hold(true));
        hand.send(Order::Fence(Duration::ZERO)).unwrap();
        assert!(hold(false));
        told(&dir, "1");
        assert!(hold(true));
        hand.send(Order::Fence(far)).unwrap();
        runtime.block_on(hand.run(|| ())).unwrap();
        told(&dir, "1");
        hold(false);
        told(&dir, "0");
        assert!(!waiting.is_finished());
        drop(go_on);
        runtime.block_on(waiting).unwrap().unwrap_err();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
