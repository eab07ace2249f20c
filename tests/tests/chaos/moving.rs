//! A client whose session may be placed elsewhere when its worker is lost: it has checkpoints every second or so.
//!
//! Its tasks append to a log in the workspace: each line is numbered, has a checksum and two clocks, and is on the disk
//! (fsync) before it is told. So whatever a recovery goes back to can be judged by the log alone:
//!
//! - it is whole: numbers without a gap, no damaged line, no torn one;
//! - a line that was told is there, unless a recovery went back to before it: and to when it went back was told
//!   (`recovered_to`);
//! - no two runs of one session wrote at the same time, in whatever copy of it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use berth_client::{
    CheckpointOptions, CheckpointPolicy, Client, Command, CreateOptions, Error, OnWorkerLoss, Outcome,
    Session, SessionState, TaskEvent, model::SessionInfo,
};
use tokio::time::Instant;

use crate::lines::{Entry, overlap, read_log};

/// Lines of one task.
const LINES: usize = 200;
const GIVE_UP: Duration = Duration::from_secs(120);
/// How often the session is looked at. Between two recoveries there are a lease and a grace.
const LOOK: Duration = Duration::from_millis(50);
/// A task takes the log for itself, finds out where it ends, and goes on there.
const SCRIPT: &str = r#"
import fcntl, os, sys, time, zlib
tag, lines = sys.argv[1], int(sys.argv[2])
with open('runs', 'a') as runs:
    runs.write(tag + '\n')
log = open('log', 'ab+')
fcntl.flock(log, fcntl.LOCK_EX)
log.seek(0)
first = len(log.read().splitlines())
run = os.urandom(6).hex()
for i in range(first, first + lines):
    text = '%d %s %d %d' % (i, run, time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    line = b'%s %d\n' % (text.encode(), zlib.crc32(text.encode()))
    log.write(line)
    log.flush()
    os.fsync(log.fileno())
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
    time.sleep(0.004)
"#;

/// A placement elsewhere, as it was told.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// What happened after this is lost.
    to: u64,
    /// When it was seen to be ready again.
    seen: u64,
    epoch: u64,
}

impl Recovery {
    fn of(info: &SessionInfo) -> Self {
        let to = info.recovered_to.map(nanos).unwrap_or_default();
        Self { to, seen: nanos(SystemTime::now()), epoch: info.epoch }
    }
}

/// What one client saw.
#[derive(Default)]
pub struct Moving {
    pub session: Option<Session>,
    pub recoveries: Vec<Recovery>,
    /// As they are noted.
    seen: Arc<Mutex<Vec<Recovery>>>,
    pub tasks: usize,
    /// Ended as `WorkerLost`, or refused after a recovery.
    pub tasks_lost: usize,
    /// All lines that were told, by number and run.
    told: BTreeMap<(u64, String), Entry>,
    /// Lines that recoveries lost, and the longest time that one went back.
    pub lines_lost: usize,
    pub went_back: Duration,
    /// The session has ended.
    pub lost: bool,
    /// What must not be.
    pub failed: Vec<String>,
    tags: Vec<String>,
}

/// Makes the session and its first checkpoint: from then on it must not be lost.
pub async fn make(client: &Client, number: usize, fleet: (&str, &str)) -> Session {
    // The one keeps all that it needs and not one more.
    let keep = if number == 0 { 1 } else { 3 };
    let interval = Duration::from_secs(1 + number as u64);
    let policy = CheckpointPolicy { interval: Some(interval), keep, ..Default::default() };
    let options = CreateOptions::new()
        .request_id(format!("moving-{number}"))
        .on_worker(fleet.0, fleet.1)
        .on_worker_loss(OnWorkerLoss::Restore)
        .checkpoints(policy);
    let session = client.create_session(options).await.expect("a session before any fault");
    session.checkpoint(CheckpointOptions::new()).await.expect("a checkpoint before any fault");
    session
}

/// Runs tasks until it is told to stop.
pub async fn work(session: Session, number: usize, stop: Arc<AtomicBool>) -> Moving {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let over = Arc::new(AtomicBool::new(false));
    let looking =
        berth_proto::spawn::spawn("look at a session", look(session.clone(), seen.clone(), over.clone()));
    let mut client = Moving { session: Some(session.clone()), seen: seen.clone(), ..Moving::default() };
    while !stop.load(Ordering::Relaxed) && client.failed.is_empty() {
        let tag = format!("m{number}t{}", client.tasks);
        client.tasks += 1;
        client.tags.push(tag.clone());
        client.task(&session, &tag).await;
        let known = seen.lock().expect("no panic").len();
        if known > client.recoveries.len() {
            client.check_log().await;
        }
    }
    over.store(true, Ordering::Relaxed);
    let _ = looking.await;
    client.recoveries = seen.lock().expect("no panic").clone();
    client
}

/// Notes each recovery.
async fn look(session: Session, seen: Arc<Mutex<Vec<Recovery>>>, over: Arc<AtomicBool>) {
    let mut epoch = 0;
    while !over.load(Ordering::Relaxed) {
        if let Ok(info) = session.info().await
            && info.state == SessionState::Ready
            && info.epoch > epoch
        {
            if epoch > 0 {
                seen.lock().expect("no panic").push(Recovery::of(&info));
            }
            epoch = info.epoch;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64
}

impl Moving {
    /// Runs one task to its end, whatever that is. A call that fails is made again under the same request id, as long
    /// as the session is where it was.
    async fn task(&mut self, session: &Session, tag: &str) {
        let give_up = Instant::now() + GIVE_UP;
        let Some(epoch) = self.info(session).await.map(|info| info.epoch) else { return };
        loop {
            let error = match self.stream(session, tag).await {
                Ok(Outcome::Exited(0)) => return,
                Ok(Outcome::WorkerLost) => return self.tasks_lost += 1,
                Ok(outcome) => return self.failed.push(format!("{tag} ended with {outcome:?}")),
                Err(error) => error,
            };
            if Instant::now() > give_up {
                return self.failed.push(format!("{tag}: {error}"));
            }
            match self.info(session).await {
                // It may have run, and what it did is lost or not: nobody knows.
                Some(info) if info.epoch > epoch => return self.tasks_lost += 1,
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                None => return,
            }
        }
    }

    async fn stream(&mut self, session: &Session, tag: &str) -> Result<Outcome, Error> {
        let lines = LINES.to_string();
        let command = Command::argv(["python3", "-c", SCRIPT, tag, &lines]).request_id(tag);
        let mut stream = session.stream(command.reattach_grace(GIVE_UP)).await?;
        let mut rest = Vec::new();
        while let Some(event) = stream.next().await? {
            match event {
                TaskEvent::Stdout(bytes) => rest.extend_from_slice(&bytes),
                TaskEvent::Ended(info) => {
                    let end = info.end.expect("an ended task has its end");
                    return Ok(end.outcome);
                }
                TaskEvent::Stderr(_) | TaskEvent::Lost { .. } => {}
            }
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                match Entry::read(&line) {
                    Some(entry) => drop(self.told.insert((entry.number, entry.run.clone()), entry)),
                    None => self.failed.push(format!("{tag}: a damaged line: {line:?}")),
                }
            }
        }
        unreachable!("a stream ends with its task")
    }

    /// The session, whatever happens to the coordinator. `None`: it was lost, and that is noted.
    async fn info(&mut self, session: &Session) -> Option<SessionInfo> {
        let give_up = Instant::now() + GIVE_UP;
        loop {
            match session.info().await {
                Ok(info) if info.state == SessionState::Ended => {
                    self.lost = true;
                    self.failed
                        .push(format!("session {} is lost: {:?} {}", info.id, info.end_reason, info.message));
                    return None;
                }
                Ok(info) => return Some(info),
                Err(error) if Instant::now() > give_up => {
                    self.failed.push(format!("session {}: {error}", session.id()));
                    return None;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The log is whole, and nothing is missing but what recoveries lost as they told. For a moment in which no task of
    /// the session runs.
    pub async fn check_log(&mut self) {
        let Some(session) = self.session.clone() else { return };
        let give_up = Instant::now() + GIVE_UP;
        let log = loop {
            let Some(before) = self.info(&session).await else { return };
            // Nobody writes once the lock is to be had.
            match session.run(Command::shell("touch log; flock log cat log")).await {
                Ok(output) if output.success() && !output.truncated => {
                    let Some(after) = self.info(&session).await else { return };
                    // Recovered meanwhile: which of the two was read?
                    if after.epoch == before.epoch {
                        self.knows(&after);
                        break output.stdout_text();
                    }
                }
                _ if self.info(&session).await.is_none() => return,
                other if Instant::now() > give_up => {
                    return self.failed.push(format!("the log can't be read: {other:?}"));
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        match read_log(&log) {
            Ok(entries) => self.judge(&entries),
            Err(what) => self.failed.push(format!("the log of session {}: {what}", session.id())),
        }
    }

    /// All recoveries up to this state of the session, also one that was not noted yet.
    fn knows(&mut self, info: &SessionInfo) {
        self.recoveries = self.seen.lock().expect("no panic").clone();
        let newest = self.recoveries.last().map_or(0, |recovery| recovery.epoch);
        if info.recovered_to.is_some() && info.epoch > newest {
            self.recoveries.push(Recovery::of(info));
        }
    }

    fn judge(&mut self, log: &[Entry]) {
        let (mut lost, mut went_back) = (0, 0);
        let mut untold = Vec::new();
        for entry in self.told.values() {
            if log.get(entry.number as usize) == Some(entry) {
                continue;
            }
            lost += 1;
            let by = self.recoveries.iter().find(|r| r.to <= entry.wall && entry.wall <= r.seen);
            match by {
                Some(recovery) => went_back = went_back.max(entry.wall - recovery.to),
                None => untold.push(entry),
            }
        }
        if let [first, ..] = untold[..] {
            let (count, told) = (untold.len(), &self.recoveries);
            let what = format!(
                "{count} lines are gone, and no recovery says so; the first is {first:?}, and the recoveries {told:?}"
            );
            self.failed.push(what);
        }
        self.lines_lost = lost;
        self.went_back = self.went_back.max(Duration::from_nanos(went_back));
        let all = self
            .told
            .values()
            .chain(log.iter().filter(|e| !self.told.contains_key(&(e.number, e.run.clone()))));
        self.failed.extend(overlap(all));
    }

    /// No request id ran twice in what there is of the session.
    pub async fn check_runs(&mut self) {
        let Some(session) = &self.session else { return };
        let noted = session.run(Command::shell("touch runs; cat runs")).await.expect("the notes can be read");
        let noted = noted.stdout_text();
        let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
        for tag in noted.lines() {
            *runs.entry(tag).or_default() += 1;
        }
        self.failed
            .extend(runs.iter().filter(|(_, n)| **n > 1).map(|(tag, n)| format!("{tag} ran {n} times")));
        let unknown = runs.keys().filter(|tag| !self.tags.iter().any(|known| known == *tag));
        self.failed.extend(unknown.map(|tag| format!("{tag:?} was never asked for")));
    }

    pub fn lines(&self) -> usize {
        self.told.len()
    }
}

/// The last lines of the table.
pub fn report(all: &[Moving]) -> String {
    let sum = |count: fn(&Moving) -> usize| all.iter().map(count).sum::<usize>();
    let back = all.iter().map(|m| m.went_back).max().unwrap_or_default();
    format!(
        "sessions that may move: {}\n  lost: {}\n  recoveries: {}\n  tasks: {}, of which lost with a worker: {}\n  lines: {}, of which lost \
         by recoveries, as told: {}\n  longest time that a recovery went back: {:.1} s",
        all.len(),
        all.iter().filter(|m| m.lost).count(),
        sum(|m| m.recoveries.len()),
        sum(|m| m.tasks),
        sum(|m| m.tasks_lost),
        sum(Moving::lines),
        sum(|m| m.lines_lost),
        back.as_secs_f64(),
    )
}
