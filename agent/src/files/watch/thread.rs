//! The thread that watches. All streams share one inotify instance, which is there while there is a stream: the kernel lets
//! a user have 128, and the session's tasks are the same user.
//!
//! The thread's *effective* ids are the task's, so that instances and watches count as the session's and not as root's. Its
//! real and saved ones are not, so no task may signal it. A task may set its priority: so nobody waits for it.
//!
//! What tasks do costs this thread, which runs outside of their limits. So it rests four times as long as it worked. The
//! kernel's queue is bounded, too; when it overflows, all streams begin anew and tell that changes were lost.

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use berth_proto::{Error, Reason};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
    },
    time::{ClockId, clock_gettime},
};
use tokio::sync::oneshot;

use super::{
    outbox::End,
    stream::{Stream, Trouble},
};

/// Directories that all streams watch together, each stream's counted.
const WATCHES: usize = 8192;
/// The other half of a rename comes at once, in milliseconds, or not at all.
const OTHER_HALF: u16 = 250;
/// Whether the paths still name what is watched is looked at this often. Mostly the kernel says so itself.
const LOOK: Duration = Duration::from_secs(5);
/// How long it rests for each moment that it worked, and at most.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(1);

const MASK: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// A stream that is to begin, and who waits for that.
pub struct Begin {
    pub stream: Stream,
    pub begun: oneshot::Sender<Result<(), Error>>,
}

/// The kernel's side, and who uses which watch.
pub struct Watches {
    inotify: Inotify,
    users: HashMap<WatchDescriptor, usize>,
    /// Of all streams.
    total: usize,
}

impl Watches {
    fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, users: HashMap::new(), total: 0 })
    }

    /// Whether there is room for one more directory.
    pub fn has_room(&self) -> bool {
        self.total < WATCHES
    }

    /// Watches the very directory that is open: no name is looked up again. (The link leads to what is open, and the file
    /// threads' own `/proc` is the only one that is asked.)
    pub fn add(&self, dir: &OwnedFd) -> nix::Result<WatchDescriptor> {
        self.inotify.add_watch(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str(), MASK)
    }

    /// A stream has this one now.
    pub fn used(&mut self, watch: WatchDescriptor) {
        *self.users.entry(watch).or_default() += 1;
        self.total += 1;
    }

    /// A stream has it no more.
    pub fn unused(&mut self, watch: WatchDescriptor) {
        let Some(users) = self.users.get_mut(&watch) else { return };
        *users -= 1;
        self.total -= 1;
        if *users == 0 {
            self.users.remove(&watch);
            // It may have gone with its directory.
            let _ = self.inotify.rm_watch(watch);
        }
    }
}

/// See the module.
pub struct Thread {
    begins: Receiver<Begin>,
    wake: Arc<EventFd>,
    watches: Option<Watches>,
    streams: Vec<Stream>,
    /// Half of a rename.
    moved: Option<InotifyEvent>,
}

impl Thread {
    pub fn new(begins: Receiver<Begin>, wake: Arc<EventFd>) -> Self {
        Self { begins, wake, watches: None, streams: Vec::new(), moved: None }
    }

    /// Until nobody can begin a stream any more.
    pub fn run(mut self) {
        let (mut owed, mut looked) = (Duration::ZERO, monotonic());
        loop {
            let since = worked();
            if !self.begin() {
                return;
            }
            self.read();
            if monotonic().saturating_sub(looked) >= LOOK {
                self.look();
                looked = monotonic();
            }
            self.part();
            owed += (worked().saturating_sub(since)) * REST;
            if owed >= Duration::from_millis(1) {
                let rest = owed.min(REST_MAX).as_millis() as u16;
                owed = Duration::ZERO;
                if self.wait(false, PollTimeout::from(rest)) {
                    continue;
                }
            }
            let timeout = match (&self.moved, self.streams.is_empty()) {
                (Some(_), _) => PollTimeout::from(OTHER_HALF),
                (None, false) => PollTimeout::from(LOOK.as_millis() as u16),
                (None, true) => PollTimeout::NONE,
            };
            if !self.wait(true, timeout)
                && let Some(half) = self.moved.take()
            {
                self.tell(&half, None);
            }
        }
    }

    /// Waits to be woken, or for something to read. False: neither came.
    fn wait(&self, also_read: bool, timeout: PollTimeout) -> bool {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if let Some(watches) = self.watches.as_ref().filter(|_| also_read) {
            fds.push(PollFd::new(watches.inotify.as_fd(), PollFlags::POLLIN));
        }
        // Interrupted is as good as woken.
        let came = poll(&mut fds, timeout) != Ok(0);
        if came && fds[0].any().unwrap_or(false) {
            let _ = self.wake.read();
        }
        came
    }

    /// Begins the streams that are to. False: there will be no more.
    fn begin(&mut self) -> bool {
        loop {
            let Begin { mut stream, begun } = match self.begins.try_recv() {
                Ok(begin) => begin,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            let result = self.instance().and_then(|watches| {
                let result = stream.begin(watches);
                if result.is_err() {
                    stream.clear(watches);
                }
                result
            });
            if result.is_ok() {
                self.streams.push(stream);
            }
            // Whoever is gone leaves a stream that nobody reads, and that is seen.
            let _ = begun.send(result);
        }
    }

    fn instance(&mut self) -> Result<&mut Watches, Error> {
        if self.watches.is_none() {
            self.watches = Some(Watches::new().map_err(no_instance)?);
        }
        self.watches.as_mut().ok_or_else(|| Error::internal("no watches"))
    }

    /// Reads what the kernel has to tell, at most once: more is read after the rest.
    fn read(&mut self) {
        let Some(watches) = &self.watches else { return };
        let events = match watches.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(errno) => return self.fail(&no_instance(errno)),
        };
        for event in events {
            let Some(half) = self.moved.take() else {
                self.one(event);
                continue;
            };
            // The kernel tells both halves one after the other, unless something else happens at that very moment.
            if event.mask.contains(AddWatchFlags::IN_MOVED_TO) && event.cookie == half.cookie {
                self.tell(&half, Some(&event));
            } else {
                self.tell(&half, None);
                self.one(event);
            }
        }
    }

    fn one(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.anew();
        } else if event.mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            self.moved = Some(event);
        } else {
            self.tell(&event, None);
        }
    }

    /// `other`: the second half of a rename, where there is one.
    fn tell(&mut self, event: &InotifyEvent, other: Option<&InotifyEvent>) {
        let Some(watches) = &mut self.watches else { return };
        for stream in &mut self.streams {
            settle(stream, watches, |stream, watches| stream.tell(watches, event, other));
        }
    }

    /// The kernel's queue was full: what there is now is watched from the beginning.
    fn anew(&mut self) {
        self.moved = None;
        for stream in &mut self.streams {
            if let Some(watches) = &mut self.watches {
                stream.clear(watches);
            }
        }
        // What is in the old one's queue is of no use any more.
        self.watches = None;
        match Watches::new() {
            Ok(watches) => {
                let watches = self.watches.insert(watches);
                for stream in &mut self.streams {
                    settle(stream, watches, |_, _| Err(Trouble::Confused));
                }
            }
            Err(errno) => self.fail(&no_instance(errno)),
        }
    }

    fn look(&mut self) {
        let Some(watches) = &mut self.watches else { return };
        for stream in &mut self.streams {
            settle(stream, watches, |stream, _| stream.look());
        }
    }

    fn fail(&mut self, error: &Error) {
        for stream in &mut self.streams {
            let told = Error::new(error.code(), error.reason(), error.message());
            stream.end(End::Failed(told));
        }
    }

    /// Lets go of streams that are over, and of the instance with the last.
    fn part(&mut self) {
        let Some(watches) = &mut self.watches else { return };
        self.streams.retain_mut(|stream| {
            let over = stream.is_over();
            if over {
                stream.clear(watches);
            }
            !over
        });
        if self.streams.is_empty() {
            self.watches = None;
            self.moved = None;
        }
    }
}

/// Does something with a stream, and what has to follow from its trouble.
fn settle(
    stream: &mut Stream,
    watches: &mut Watches,
    work: impl FnOnce(&mut Stream, &mut Watches) -> Result<(), Trouble>,
) {
    if stream.is_over() {
        return;
    }
    let mut result = work(stream, watches);
    if let Err(Trouble::Confused) = result {
        result = stream.anew(watches);
    }
    match result {
        Ok(()) => {}
        Err(Trouble::Gone) => stream.end(End::Gone),
        // Things move faster than they can be looked at: later.
        Err(Trouble::Confused) => {
            stream.end(End::Failed(Error::unavailable(
                Reason::TooManyWatches,
                "directories move faster than they can be watched",
            )));
        }
    }
}

fn no_instance(errno: Errno) -> Error {
    let text = format!("changes can't be watched now: inotify: {}", crate::files::plain(&errno.into()));
    Error::exhausted(Reason::TooManyWatches, text).hint(
        "the kernel bounds them for each user: end programs that watch files; the machine's operator can raise \
         fs.inotify.max_user_instances",
    )
}

/// The processor time that this thread has had.
fn worked() -> Duration {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn monotonic() -> Duration {
    clock(ClockId::CLOCK_MONOTONIC)
}

fn clock(clock: ClockId) -> Duration {
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}
