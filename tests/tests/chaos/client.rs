//! A client that never gives up, and counts what it got.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_client::{Client, Command, CreateOptions, Session};
use tokio::time::Instant;

use crate::lines::checked;

/// Lines of one task, a few milliseconds apart.
const LINES: usize = 300;
/// A task is not waited for any longer.
const GIVE_UP: Duration = Duration::from_secs(120);
/// Each line is its number, some text, and the CRC of both. What a task has run it notes before its first line.
const SCRIPT: &str = r#"
import sys, time, zlib
tag, lines = sys.argv[1], int(sys.argv[2])
with open('runs', 'a') as runs:
    runs.write(tag + '\n')
for i in range(lines):
    text = '%d %s' % (i, tag * (i % 7 + 1))
    print(text, zlib.crc32(text.encode()), flush=True)
    time.sleep(0.004)
"#;

/// What one client saw.
#[derive(Default)]
pub struct Tally {
    pub session: Option<Session>,
    pub sessions: usize,
    pub tasks: usize,
    pub lines: usize,
    pub lost: usize,
    pub repeated: usize,
    pub damaged: usize,
    /// Calls that failed and were made again.
    pub repeats: usize,
    /// Tasks that ended otherwise than they should, with the words.
    pub failed: Vec<String>,
    tags: Vec<String>,
}

/// Runs tasks until it is told to stop.
pub async fn work(client: Client, number: usize, fleet: (&str, &str), stop: Arc<AtomicBool>) -> Tally {
    let mut tally = Tally { sessions: 1, ..Tally::default() };
    let session = loop {
        let options = CreateOptions::new().request_id(format!("chaos-{number}"));
        let options = options.on_worker(fleet.0, fleet.1).wait(Duration::from_secs(60));
        match client.create_session(options).await {
            Ok(session) => break session,
            Err(_) if !stop.load(Ordering::Relaxed) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => {
                tally.failed.push(format!("no session: {error}"));
                return tally;
            }
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let tag = format!("c{number}t{}", tally.tasks);
        tally.tasks += 1;
        tally.task(&session, &tag).await;
        tally.tags.push(tag);
    }
    tally.session = Some(session);
    tally
}

impl Tally {
    /// Runs one task to its end. A call that fails is made again under the same request id: however often, it is one
    /// task.
    async fn task(&mut self, session: &Session, tag: &str) {
        let lines = LINES.to_string();
        let give_up = Instant::now() + GIVE_UP;
        loop {
            let command = Command::argv(["python3", "-c", SCRIPT, tag, &lines]).request_id(tag);
            match session.run(command.reattach_grace(GIVE_UP)).await {
                Ok(output) if output.code() == Some(0) => return self.read(tag, &output.stdout_text()),
                Ok(output) => {
                    return self.failed.push(format!("{tag}: {:?} {}", output.outcome, output.stderr_text()));
                }
                Err(error) if Instant::now() > give_up => return self.failed.push(format!("{tag}: {error}")),
                Err(_) => {
                    self.repeats += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn read(&mut self, tag: &str, output: &str) {
        let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
        for line in output.lines() {
            match parse(tag, line) {
                Some(number) => *seen.entry(number).or_default() += 1,
                None => self.damaged += 1,
            }
        }
        self.lines += seen.len();
        self.lost += (0..LINES).filter(|number| !seen.contains_key(number)).count();
        self.repeated += seen.values().map(|count| count - 1).sum::<usize>();
    }

    /// Each task noted itself once.
    pub async fn check_runs(&self) {
        let Some(session) = &self.session else { return };
        let noted =
            session.run(Command::argv(["cat", "runs"])).await.expect("the notes can be read").stdout_text();
        let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
        for tag in noted.lines() {
            *runs.entry(tag).or_default() += 1;
        }
        for tag in &self.tags {
            let failed = self.failed.iter().any(|text| text.starts_with(&format!("{tag}:")));
            let count = runs.get(tag.as_str()).copied().unwrap_or_default();
            assert!(count == 1 || (failed && count == 0), "task {tag} ran {count} times");
        }
    }

    pub fn sum(all: &[Tally]) -> Tally {
        let mut sum = Tally::default();
        for tally in all {
            sum.sessions += tally.sessions;
            sum.tasks += tally.tasks;
            sum.lines += tally.lines;
            sum.lost += tally.lost;
            sum.repeated += tally.repeated;
            sum.damaged += tally.damaged;
            sum.repeats += tally.repeats;
            sum.failed.extend(tally.failed.iter().cloned());
        }
        sum
    }

    pub fn assert_whole(&self) {
        let all = (self.lost, self.repeated, self.damaged);
        assert_eq!(all, (0, 0, 0), "lines lost, repeated, damaged");
        assert!(self.failed.is_empty(), "{:#?}", self.failed);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sessions that stay: {}\ntasks: {}\nlines: {}\nlines lost: {}\nlines repeated: {}\nlines damaged: {}\ncalls made again: {}\ntasks failed: {}",
            self.sessions,
            self.tasks,
            self.lines,
            self.lost,
            self.repeated,
            self.damaged,
            self.repeats,
            self.failed.len()
        )
    }
}

fn parse(tag: &str, line: &str) -> Option<usize> {
    let (number, rest) = checked(line)?.split_once(' ')?;
    let number: usize = number.parse().ok()?;
    (rest == tag.repeat(number % 7 + 1)).then_some(number)
}
