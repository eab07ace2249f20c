//! The moments at which something is killed: what can be seen of a step's progress on the disk and in the cgroups, looked
//! at without a pause, so that the kill comes within microseconds of the step. That is how a kill gets between two steps
//! of a program that nobody can ask to stop there.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_tests::left;

/// A point that does not come (the victim got nothing to do): then it is killed all the same.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    // Of a session that is made.
    Directory,
    Record,
    Cgroup,
    Config,
    Forked,
    Socket,
    Identity,
    // Of a task that is started.
    RequestIdWritten,
    TaskCgroup,
    Ran,
    // Of a session that is removed.
    Dying,
    NoCgroup,
    HalfRemoved,
    Removed,
    /// The coordinator has written to its store.
    Stored,
    /// At no point of all these.
    After(Duration),
}

use Point::*;

pub const CREATE: [Point; 7] = [Directory, Record, Cgroup, Config, Forked, Socket, Identity];
pub const TASK: [Point; 3] = [RequestIdWritten, TaskCgroup, Ran];
pub const REMOVAL: [Point; 4] = [Dying, NoCgroup, HalfRemoved, Removed];

/// What is looked at, and how it was before.
pub struct Scene {
    /// Of the worker.
    sessions: PathBuf,
    bases: Vec<PathBuf>,
    /// Of the coordinator.
    log: PathBuf,
    before: Seen,
}

struct Seen {
    sessions: BTreeSet<PathBuf>,
    ids: u64,
    ran: u64,
    stored: Option<(i64, i64, u64)>,
}

impl Scene {
    pub fn new(worker_state: &Path, coordinator_state: &Path) -> Self {
        let bases = left::instance(worker_state).map(|id| left::cgroups(&id)).unwrap_or_default();
        let sessions = worker_state.join("sessions");
        let log = coordinator_state.join("coordinator.db-wal");
        let before = Seen {
            ids: total(&sessions, LEDGER),
            ran: total(&sessions, RUNS),
            stored: stamp(&log),
            sessions: entries(&sessions).collect(),
        };
        Self { sessions, bases, log, before }
    }

    /// Blocks until the point is reached. False: it was not.
    pub fn wait_for(&self, point: Point) -> bool {
        let begun = Instant::now();
        loop {
            match point {
                After(time) if begun.elapsed() >= time => return true,
                After(_) => {}
                _ if self.reached(point) => return true,
                _ => {}
            }
            if begun.elapsed() > PATIENCE {
                return false;
            }
            std::thread::yield_now();
        }
    }

    fn reached(&self, point: Point) -> bool {
        let known = &self.before.sessions;
        let new =
            |has: &dyn Fn(&Path) -> bool| entries(&self.sessions).any(|s| !known.contains(&s) && has(&s));
        let old = |has: &dyn Fn(&Path) -> bool| known.iter().any(|session| has(session));
        match point {
            Directory => new(&|_| true),
            Record => new(&|session| session.join("meta.json").exists()),
            Cgroup => new(&|session| self.cgroups_of(session).next().is_some()),
            Config => new(&|session| session.join("berth/config.json").exists()),
            Forked => new(&|session| self.cgroups_of(session).any(|cgroup| peopled(&cgroup.join("agent")))),
            Socket => new(&|session| session.join("berth/run/agent.sock").exists()),
            Identity => new(&|session| session.join("sandbox.json").exists()),
            RequestIdWritten => total(&self.sessions, LEDGER) != self.before.ids,
            TaskCgroup => old(&|session| {
                let mut groups = self.cgroups_of(session).flat_map(|cgroup| entries(&cgroup.join("t")));
                groups.any(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("task-")))
            }),
            Ran => total(&self.sessions, RUNS) != self.before.ran,
            Dying => old(&|session| !self.cgroups_of(session).any(|cgroup| peopled(&cgroup.join("agent")))),
            NoCgroup => old(&|session| self.cgroups_of(session).next().is_none()),
            HalfRemoved => old(&|session| {
                session.exists()
                    && ["meta.json", "files", "berth"].iter().any(|name| !session.join(name).exists())
            }),
            Removed => old(&|session| !session.exists()),
            Stored => stamp(&self.log) != self.before.stored,
            After(_) => false,
        }
    }

    fn cgroups_of<'a>(&'a self, session: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
        let name = session.file_name().expect("a session's directory has a name");
        self.bases.iter().map(move |base| base.join(name)).filter(|cgroup| cgroup.exists())
    }
}

const LEDGER: &str = "berth/spool/ledger";
const RUNS: &str = "files/workspace/runs";

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn peopled(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| !pids.is_empty())
}

/// Bytes in a file of all sessions.
fn total(sessions: &Path, file: &str) -> u64 {
    entries(sessions).filter_map(|session| Some(session.join(file).metadata().ok()?.len())).sum()
}

fn stamp(file: &Path) -> Option<(i64, i64, u64)> {
    let meta = file.metadata().ok()?;
    Some((meta.mtime(), meta.mtime_nsec(), meta.len()))
}
