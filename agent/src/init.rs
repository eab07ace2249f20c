//! Init: PID 1 of the sandbox. One thread, no runtime, no allocator that another
//! thread could hold: it forks tasks, reaps everything that ends, and kills what is
//! left when the session ends. All else is its child's business, the server.
//!
//! It keeps processes parked for the next tasks (see [`crate::launch`]), and refills that store only
//! when it has nothing else to do, so that a start never waits for it.
//!
//! A main process's pid is free for reuse only once init has reaped it, so signals for
//! a task go through init: it knows, and nobody else can know for sure.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use ::landlock::RulesetCreated;
use berth_proto::agent_config::AgentConfig;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        socket::{MsgFlags, Shutdown, recv, shutdown},
    },
    unistd::{Pid, getpid},
};
use prost::Message;
use std::os::fd::AsRawFd;
use tracing::{error, info, warn};

use crate::{
    cgroup,
    filter::Filters,
    landlock,
    launch::{self, Launch},
    sys::{self, Forked, Reaped},
    wire::{self, Event, Exited, Failed, Spawned, Stage, Terminate},
};

/// Parked processes. One for the next task, one for the task right behind it.
const PARKED: usize = 2;
/// After SIGTERM the server has this long to end its tasks in peace.
const TERMINATE: Duration = Duration::from_secs(20);
/// For what is killed to be gone.
const LAST: Duration = Duration::from_secs(5);

/// A forked first process: parked, or on its way to its program, or a guard.
struct First {
    pid: i32,
    socket: OwnedFd,
    group: Option<u64>,
}

enum Stop {
    No,
    /// The server is asked; after this moment it is killed.
    Asked(Instant),
}

struct Init<'a> {
    config: &'a AgentConfig,
    filters: Option<&'a Filters>,
    /// Whether processes can be forked into a cgroup here.
    births: bool,
    server: OwnedFd,
    server_pid: i32,
    parked: VecDeque<First>,
    /// Have their spawn, and no program yet.
    starting: HashMap<u64, First>,
    /// Task number → pid of its main process.
    mains: HashMap<u64, i32>,
    /// Pid of a process of ours → its task. Guards are here under their own pid.
    tasks: HashMap<i32, u64>,
    guards: HashMap<u64, First>,
    /// Pid → cgroup of those that failed to start: it goes when they are reaped.
    failed: HashMap<i32, Option<u64>>,
    next_group: u64,
    refill: bool,
    stop: Stop,
}

/// Runs until the server ends or a signal ends both. Returns the exit code.
///
/// Takes on the large part of the tasks' system call filter and their landlock rules itself: its children inherit both.
pub fn run(
    config: &AgentConfig,
    filters: Option<&Filters>,
    lock: Option<RulesetCreated>,
    server: OwnedFd,
    server_pid: Pid,
) -> i32 {
    if let Err(error) = confine(filters, lock) {
        error!(%error, "the tasks' confinement could not be taken on");
        let _ = kill(server_pid, Signal::SIGKILL);
        return 1;
    }
    let mut init = Init {
        config,
        filters,
        births: true,
        server,
        server_pid: server_pid.as_raw(),
        parked: VecDeque::new(),
        starting: HashMap::new(),
        mains: HashMap::new(),
        tasks: HashMap::new(),
        guards: HashMap::new(),
        failed: HashMap::new(),
        next_group: 1,
        refill: true,
        stop: Stop::No,
    };
    cgroup::enable_memory(&config.cgroups);
    let code = match init.serve() {
        Ok(code) => code,
        Err(error) => {
            error!(%error, "init failed");
            1
        }
    };
    init.kill_everything();
    code
}

/// For init and all that it ever forks. Init needs nothing that a task may not do.
fn confine(filters: Option<&Filters>, lock: Option<RulesetCreated>) -> Result<(), String> {
    prctl::set_no_new_privs().map_err(|e| format!("PR_SET_NO_NEW_PRIVS: {e}"))?;
    if let Some(lock) = lock {
        landlock::enter(lock)?;
    }
    match filters {
        Some(filters) => seccompiler::apply_filter(&filters.init).map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

impl Init<'_> {
    fn serve(&mut self) -> io::Result<i32> {
        let mask: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut buffer = vec![0; wire::PACKET_MAX];
        // Whatever ended before the mask was set.
        if let Some(code) = self.reap() {
            return Ok(code);
        }
        loop {
            let events = self.wait(&signals)?;
            if events.idle && self.refill && self.parked.len() < PARKED {
                self.park();
            }
            // Reports of first processes come before their ends.
            for task in events.starting {
                self.hear(task);
            }
            if events.signals
                && let Some(code) = self.on_signals(&signals)
            {
                return Ok(code);
            }
            if events.server && !self.on_request(&mut buffer) {
                return Ok(self.last_status(&signals));
            }
            if matches!(self.stop, Stop::Asked(at) if Instant::now() >= at) {
                warn!("the server did not end in time");
                return Ok(1);
            }
        }
    }

    /// The server's socket is closed: its end, and how it ended, is a moment away.
    fn last_status(&mut self, signals: &SignalFd) -> i32 {
        let until = Instant::now() + LAST;
        while Instant::now() < until {
            if let Some(code) = self.reap() {
                return code;
            }
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, 100u8);
            let _ = signals.read_signal();
        }
        error!("the server does not end");
        1
    }

    fn wait(&self, signals: &SignalFd) -> io::Result<Events> {
        let first: Vec<(u64, &First)> =
            self.starting.iter().chain(&self.guards).map(|(task, first)| (*task, first)).collect();
        let mut fds = vec![
            PollFd::new(self.server.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(first.iter().map(|(_, first)| PollFd::new(first.socket.as_fd(), PollFlags::POLLIN)));
        let timeout = match self.stop {
            Stop::Asked(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now()))
                .unwrap_or(PollTimeout::MAX),
            Stop::No if self.refill && self.parked.len() < PARKED => PollTimeout::ZERO,
            Stop::No => PollTimeout::NONE,
        };
        let ready = match poll(&mut fds, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let has = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(Events {
            idle: ready == 0,
            server: has(&fds[0]),
            signals: has(&fds[1]),
            starting: first
                .iter()
                .zip(&fds[2..])
                .filter(|(_, fd)| has(fd))
                .map(|((task, _), _)| *task)
                .collect(),
        })
    }

    /// One packet of the server. False: it is gone.
    fn on_request(&mut self, buffer: &mut [u8]) -> bool {
        let (n, fds) = match sys::receive(self.server.as_fd(), buffer) {
            Ok((0, _)) => return false,
            Ok(packet) => packet,
            Err(error) => {
                error!(%error, "the server's socket failed");
                return false;
            }
        };
        let packet = &buffer[..n];
        match wire::open(packet) {
            Some((wire::Kind::Signal, task, body)) => {
                let signal = wire::Signal::decode(body).map(|m| m.signal).unwrap_or(0);
                if let Some(pid) = self.mains.get(&task) {
                    // The group it leads; nix has no names for real-time signals.
                    sys::signal_group(*pid, signal);
                }
            }
            Some((_, task, _)) => self.spawn(task, packet, &fds),
            None => error!("the server sent a packet that is none"),
        }
        true
    }

    fn spawn(&mut self, task: u64, packet: &[u8], fds: &[OwnedFd]) {
        // A parked process that died while it waited is no reason to fail: take the next.
        while let Some(first) = self.parked.pop_front() {
            if sys::send(first.socket.as_fd(), packet, &wire::raw(fds)).is_ok() {
                self.starting.insert(task, first);
                return;
            }
            self.forget_group(first.group);
        }
        let started = self.fork_first().and_then(|first| {
            sys::send(first.socket.as_fd(), packet, &wire::raw(fds)).map_err(|e| (Stage::Fork, e))?;
            Ok(first)
        });
        match started {
            Ok(first) => {
                self.starting.insert(task, first);
            }
            Err((stage, error)) => {
                let errno = error.raw_os_error().unwrap_or(0);
                self.tell(task, Event::Failed(Failed { stage: stage.into(), errno }));
            }
        }
    }

    fn park(&mut self) {
        match self.fork_first() {
            Ok(first) => self.parked.push_back(first),
            Err((stage, error)) => {
                warn!(?stage, %error, "no process could be parked");
                // The next start tries again, and then reports what is wrong.
                self.refill = false;
            }
        }
    }

    fn fork_first(&mut self) -> Result<First, (Stage, io::Error)> {
        let cgroups = &self.config.cgroups;
        let guard = cgroup::needs_guard(cgroups);
        let number = self.next_group;
        self.next_group += 1;
        let group = (!guard).then_some(number);
        let user = &self.config.user;
        let (mine, theirs) = wire::pair().map_err(|e| (Stage::Fork, e))?;
        let (forked, born) = match group.and_then(|number| self.give_birth(number)) {
            Some(forked) => (forked, true),
            None => {
                let forked = sys::fork().map_err(|error| {
                    self.forget_group(group);
                    (Stage::Fork, error)
                })?;
                (forked, false)
            }
        };
        if let Forked::Parent(pid) = forked {
            return Ok(First { pid: pid.as_raw(), socket: mine, group });
        }
        let launch = Launch {
            uid: user.uid,
            gid: user.gid,
            cgroups: &self.config.cgroups,
            number,
            born,
            filter: self.filters.map(|filters| &filters.task),
            guard,
            file_bytes: self.config.file_bytes,
        };
        launch::run(&launch, theirs)
    }

    /// Forks into the task's cgroup. `None` where that can't be, or not now: a plain fork joins by itself.
    fn give_birth(&mut self, number: u64) -> Option<Forked> {
        if !self.births {
            return None;
        }
        let place = cgroup::birthplace(&self.config.cgroups, number)?;
        match sys::fork_into(place.as_fd()) {
            Ok(forked) => Some(forked),
            Err(error) => {
                // What this kernel does not know, or its rules forbid, stays so. Anything else (as EAGAIN, where tasks have
                // all the processes that they may have) is of now.
                let lasting = [libc::ENOSYS, libc::E2BIG, libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP];
                if error.raw_os_error().is_some_and(|errno| lasting.contains(&errno)) {
                    warn!(%error, "tasks can't be born in their cgroups, and join them by themselves");
                    self.births = false;
                }
                None
            }
        }
    }

    fn forget_group(&self, group: Option<u64>) {
        if let Some(number) = group {
            cgroup::remove(&self.config.cgroups, number);
        }
    }

    /// Whatever the first process of a task has to say now.
    fn hear(&mut self, task: u64) {
        let mut buffer = [0; 256];
        let Some(first) = self.starting.get(&task).or_else(|| self.guards.get(&task)) else { return };
        let n = match recv(first.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => 0,
        };
        if let Some(first) = self.starting.remove(&task) {
            match wire::read_report(&buffer[..n]) {
                Some((_, Event::Failed(failed))) => {
                    self.tell(task, Event::Failed(failed));
                    self.failed.insert(first.pid, first.group);
                }
                Some((_, Event::Spawned(spawned))) => {
                    self.mains.insert(task, spawned.pid);
                    self.tasks.insert(first.pid, task);
                    self.guards.insert(task, first);
                    self.tell(task, Event::Spawned(spawned));
                    self.refill = true;
                }
                // Closed by its exec. (Or it was killed on the way: its end says so next.)
                _ => {
                    self.mains.insert(task, first.pid);
                    self.tasks.insert(first.pid, task);
                    self.tell(
                        task,
                        Event::Spawned(Spawned { pid: first.pid, group: first.group, guard: None }),
                    );
                    self.refill = true;
                }
            }
        } else if let Some((_, Event::Exited(exited))) = wire::read_report(&buffer[..n]) {
            self.mains.remove(&task);
            self.tell(task, Event::Exited(exited));
        } else if n == 0 {
            self.guards.remove(&task);
        }
    }

    fn on_signals(&mut self, signals: &SignalFd) -> Option<i32> {
        let mut terminate = false;
        while let Ok(Some(info)) = signals.read_signal() {
            terminate |= info.ssi_signo != Signal::SIGCHLD as u32;
        }
        if let Some(code) = self.reap() {
            return Some(code);
        }
        if terminate {
            if matches!(self.stop, Stop::Asked(_)) {
                return Some(0);
            }
            info!("asked to end");
            self.stop = Stop::Asked(Instant::now() + TERMINATE);
            self.refill = false;
            self.tell(0, Event::Terminate(Terminate {}));
        }
        None
    }

    /// Reaps all that ended. The exit code, if the server is among it.
    fn reap(&mut self) -> Option<i32> {
        while let Ok(Some(reaped)) = sys::reap() {
            if reaped.pid == self.server_pid {
                let code = if libc::WIFEXITED(reaped.status) { libc::WEXITSTATUS(reaped.status) } else { 1 };
                if code != 0 {
                    error!(status = reaped.status, "the server ended");
                }
                return Some(code);
            }
            self.ended(reaped);
        }
        None
    }

    fn ended(&mut self, reaped: Reaped) {
        if let Some(at) = self.parked.iter().position(|first| first.pid == reaped.pid) {
            // Killed for want of memory, or it could not prepare itself.
            let first = self.parked.remove(at).expect("the position was just found");
            self.refill = false;
            self.log_failure(&first);
            self.forget_group(first.group);
            return;
        }
        let starting = self.starting.iter().find(|(_, first)| first.pid == reaped.pid).map(|(task, _)| *task);
        if let Some(task) = starting {
            // It has said all it will: take that first.
            self.hear(task);
        }
        let Some(task) = self.tasks.remove(&reaped.pid) else {
            if let Some(group) = self.failed.remove(&reaped.pid) {
                self.forget_group(group);
            }
            return;
        };
        if self.guards.contains_key(&task) {
            // Its main process's end comes first.
            self.hear(task);
            self.guards.remove(&task);
        }
        // A guard that is killed before its main process takes the task with it.
        if self.mains.remove(&task).is_some() {
            self.tell(task, Event::Exited(Exited::from(reaped)));
        }
    }

    fn log_failure(&self, first: &First) {
        let mut buffer = [0; 256];
        if let Ok(n) = recv(first.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
            && let Some((_, Event::Failed(failed))) = wire::read_report(&buffer[..n])
        {
            let error = io::Error::from_raw_os_error(failed.errno);
            error!(stage = ?failed.stage(), %error, "a parked process could not prepare itself");
        }
    }

    /// A server that is gone is noticed elsewhere.
    fn tell(&self, task: u64, event: Event) {
        if let Err(error) = wire::report(self.server.as_fd(), task, event) {
            warn!(%error, "the server could not be told");
        }
    }

    fn kill_everything(&mut self) {
        // The server is outside of our landlock domain, where no signal of ours goes: this it hears, and ends.
        let _ = shutdown(self.server.as_raw_fd(), Shutdown::Both);
        cgroup::kill_everything(&self.config.cgroups);
        if getpid().as_raw() == 1 {
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        } else {
            // Not alone in this PID namespace: only what is ours.
            let ours = self.parked.iter().chain(self.starting.values()).map(|first| first.pid);
            let mut pids: Vec<i32> =
                ours.chain(self.tasks.keys().copied()).chain([self.server_pid]).collect();
            for guard in self.guards.values() {
                let group = cgroup::Group::Below { guard: guard.pid };
                group.kill();
                pids.push(guard.pid);
            }
            for pid in pids {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let until = Instant::now() + LAST;
        while Instant::now() < until {
            match sys::reap() {
                Ok(Some(_)) => {}
                Ok(None) => {
                    // SIGCHLD is blocked, so it waits for us if it comes before the poll.
                    let _ = poll(&mut [], 10u8);
                }
                Err(_) => break,
            }
        }
        cgroup::remove_all(&self.config.cgroups);
    }
}

struct Events {
    idle: bool,
    server: bool,
    signals: bool,
    /// Tasks whose first process has something to say.
    starting: Vec<u64>,
}
