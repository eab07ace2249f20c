//! The keys (request ids) of a session's starts, on disk before the fork: a start is
//! at-most-once, and a retry with the same key finds the task of the first try.
//!
//! One line a key, one write a line, no fsync: the file outlives the agent's process,
//! which is what can die; the machine's death takes the session with it anyway. A torn
//! last line, or one that can't be read, is dropped, loudly. Bounded: the oldest keys are forgotten.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hasher},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use berth_proto::{Error, Reason, TaskId, domain::TaskSpec, v1};

/// Keys that a session remembers.
pub const KEYS: usize = 10_000;

/// Of a request's body: the same spec gives the same value. 128 bits of SipHash with fixed
/// keys: it guards a client against its own mistakes, not against an attacker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyHash(u128);

impl BodyHash {
    pub fn of(spec: &TaskSpec) -> Self {
        // Every field is in the Debug form, strings escaped, the environment sorted.
        let text = format!("{spec:?}");
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u8(salt);
            hasher.write(text.as_bytes());
            u128::from(hasher.finish())
        };
        Self(half(1) << 64 | half(2))
    }
}

/// What is known of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub body: BodyHash,
    pub task: TaskId,
    /// Of an earlier agent process: what became of the task is not known.
    pub earlier: bool,
}

/// The keys of one session.
pub struct Ledger {
    path: PathBuf,
    file: File,
    lines: usize,
    entries: HashMap<String, Entry>,
    order: VecDeque<String>,
}

impl Ledger {
    /// Opens the ledger in a directory, with the keys that an earlier process left.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("ledger");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let mut ledger = Self { path, file, lines: 0, entries: HashMap::new(), order: VecDeque::new() };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            ledger.lines += 1;
            let line = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
            match line.and_then(parse) {
                Some((key, Some(entry))) => ledger.remember(key, entry),
                Some((key, None)) => ledger.forget(&key),
                None => tracing::warn!("a torn or damaged line of the ledger is dropped"),
            }
        }
        if bytes.last().is_some_and(|last| *last != b'\n') {
            ledger.rewrite()?;
        }
        Ok(ledger)
    }

    /// What is known of a key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).copied()
    }

    /// Writes a key down. Before the fork.
    pub fn record(&mut self, key: &str, body: BodyHash, task: TaskId) -> io::Result<()> {
        self.write(&format!("+ {} {:032x} {task}\n", hex(key), body.0))?;
        self.remember(key.to_owned(), Entry { body, task, earlier: false });
        Ok(())
    }

    /// All keys, oldest first.
    pub fn keys(&self) -> Vec<v1::KeptKey> {
        let kept = |key: &String| {
            self.entries.get(key).map(|entry| v1::KeptKey {
                request_id: key.clone(),
                body: entry.body.0.to_be_bytes().to_vec().into(),
                task_id: entry.task.to_string(),
            })
        };
        self.order.iter().filter_map(kept).collect()
    }

    /// Takes in a key of the session that this one's files come from. What it started is not started again here.
    pub fn take_up(&mut self, kept: &v1::KeptKey) -> Result<(), Error> {
        let body = kept.body.as_ref().try_into().map(u128::from_be_bytes);
        let body = body.map(BodyHash).map_err(|_| Error::invalid("key.body", "has not 16 bytes"))?;
        let task = kept.task_id.parse()?;
        self.record(&kept.request_id, body, task).map_err(|error| {
            Error::exhausted(Reason::DiskFull, "a key could not be written down").cause(error)
        })?;
        self.remember(kept.request_id.clone(), Entry { body, task, earlier: true });
        Ok(())
    }

    /// The start failed before anything ran: the key is free again.
    pub fn release(&mut self, key: &str) -> io::Result<()> {
        self.forget(key);
        self.write(&format!("- {}\n", hex(key)))
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.lines += 1;
        if self.lines > 2 * KEYS { self.rewrite() } else { Ok(()) }
    }

    fn remember(&mut self, key: String, entry: Entry) {
        if self.entries.insert(key.clone(), entry).is_none() {
            self.order.push_back(key);
        }
        while self.entries.len() > KEYS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.entries.remove(&oldest);
        }
    }

    fn forget(&mut self, key: &str) {
        if self.entries.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut text = String::new();
        for key in &self.order {
            if let Some(entry) = self.entries.get(key) {
                text += &format!("+ {} {:032x} {}\n", hex(key), entry.body.0, entry.task);
            }
        }
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.lines = self.order.len();
        Ok(())
    }
}

fn hex(key: &str) -> String {
    // Never empty, so that a line always has its fields.
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// A line: a key with its entry, or a key that was released.
fn parse(line: &str) -> Option<(String, Option<Entry>)> {
    let fields: Vec<&str> = line.split(' ').collect();
    match fields[..] {
        ["+", key, body, task] => {
            let body = BodyHash(u128::from_str_radix(body, 16).ok()?);
            Some((unhex(key)?, Some(Entry { body, task: task.parse().ok()?, earlier: true })))
        }
        ["-", key] => Some((unhex(key)?, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("berth-ledger-{}", TaskId::new()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn spec(line: &str) -> TaskSpec {
        berth_proto::v1::TaskSpec {
            program: Some(berth_proto::v1::task_spec::Program::Shell(line.to_owned())),
            ..Default::default()
        }
        .try_into()
        .unwrap()
    }

    /// Red when they are not read again, or a release is not.
    #[test]
    fn keys_survive_the_process() {
        let dir = Dir::new();
        let (body, task) = (BodyHash::of(&spec("a")), TaskId::new());
        let mut ledger = Ledger::open(&dir.0).unwrap();
        ledger.record("key 1\n", body, task).unwrap();
        ledger.record("gone", body, TaskId::new()).unwrap();
        ledger.release("gone").unwrap();
        assert_eq!(ledger.get("key 1\n"), Some(Entry { body, task, earlier: false }));
        drop(ledger);
        let ledger = Ledger::open(&dir.0).unwrap();
        assert_eq!(ledger.get("key 1\n"), Some(Entry { body, task, earlier: true }));
        assert_eq!(ledger.get("gone"), None);
    }

    /// Red when a torn line fails the start, or stays where the next one is written.
    #[test]
    fn a_torn_line_is_dropped_and_the_rest_kept() {
        let dir = Dir::new();
        let mut ledger = Ledger::open(&dir.0).unwrap();
        ledger.record("a", BodyHash::of(&spec("a")), TaskId::new()).unwrap();
        ledger.record("b", BodyHash::of(&spec("b")), TaskId::new()).unwrap();
        drop(ledger);
        let path = dir.0.join("ledger");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut ledger = Ledger::open(&dir.0).unwrap();
        assert!(ledger.get("a").is_some() && ledger.get("b").is_none());
        ledger.record("c", BodyHash::of(&spec("c")), TaskId::new()).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&dir.0).unwrap();
        assert!(ledger.get("a").is_some() && ledger.get("c").is_some());
    }

    /// Red when the file is read as one text: then one bad byte keeps the agent from starting.
    #[test]
    fn a_line_that_is_no_text_is_dropped_and_the_rest_kept() {
        let dir = Dir::new();
        let mut ledger = Ledger::open(&dir.0).unwrap();
        for key in ["a", "b", "c"] {
            ledger.record(key, BodyHash::of(&spec(key)), TaskId::new()).unwrap();
        }
        drop(ledger);
        let path = dir.0.join("ledger");
        let mut bytes = fs::read(&path).unwrap();
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        bytes[second + 10] = 0xff;
        fs::write(&path, &bytes).unwrap();
        let ledger = Ledger::open(&dir.0).unwrap();
        assert!(ledger.get("a").is_some() && ledger.get("b").is_none() && ledger.get("c").is_some());
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let dir = Dir::new();
        let mut ledger = Ledger::open(&dir.0).unwrap();
        let body = BodyHash::of(&spec("a"));
        for i in 0..2 * KEYS + 10 {
            ledger.record(&format!("{i}"), body, TaskId::new()).unwrap();
        }
        assert_eq!(ledger.entries.len(), KEYS);
        assert!(ledger.get("0").is_none() && ledger.get(&format!("{}", 2 * KEYS + 9)).is_some());
        assert!(ledger.lines <= 2 * KEYS);
    }

    /// Red when the hash is of nothing.
    #[test]
    fn another_body_has_another_hash() {
        assert_eq!(BodyHash::of(&spec("a")), BodyHash::of(&spec("a")));
        assert_ne!(BodyHash::of(&spec("a")), BodyHash::of(&spec("b")));
    }
}
