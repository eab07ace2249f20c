//! Watches that no session is alive in two places, from outside: in the cgroups of the sandboxes. (A session's own
//! writing says the same: [`super::lines::overlap`]. But a copy that acts without writing is a copy too.)
//!
//! A copy is alive if it has tasks and is not told to stand still. Of a session that may move two must never be. (What an
//! agent holds ready for tasks to come is no task: a sandbox whose start was cut off, since its worker died or since its
//! session was given to another meanwhile, has that and no fence yet.)
//! (Red when the agent does not take its fence: `set_fence` in Configure and Renew.)

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_proto::agent_config::AGENT_PATH;
use berth_tests::left;
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(10);
const LOOKS_FOR_BASES: usize = 50;

/// Looks until it is asked what it saw.
pub struct Copies {
    over: Arc<AtomicBool>,
    found: Arc<Mutex<Found>>,
    looking: JoinHandle<()>,
}

/// What was seen.
#[derive(Default)]
pub struct Found {
    twice: Vec<String>,
    looks: usize,
    /// How often a copy was seen alive.
    alive: usize,
    /// How often one was seen that stands still while another is alive.
    still: usize,
}

impl Copies {
    /// Of the fleet below `dir`.
    pub fn watch(dir: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let found = Arc::new(Mutex::new(Found::default()));
        let (dir, done, seen) = (dir.to_owned(), over.clone(), found.clone());
        let looking = berth_proto::spawn::spawn("look for copies", async move {
            let mut bases = BTreeMap::new();
            while !done.load(Ordering::Relaxed) {
                let (dir, seen) = (dir.clone(), seen.clone());
                let look = move || {
                    look(&dir, &mut bases, &mut seen.lock().expect("no panic"));
                    bases
                };
                bases = tokio::task::spawn_blocking(look).await.expect("a look at files");
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { over, found, looking }
    }

    /// What was found.
    ///
    /// # Panics
    /// When nothing was ever seen alive: then it looked in the wrong place.
    pub async fn end(self) -> Found {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.looking.await;
        let found = std::mem::take(&mut *self.found.lock().expect("no panic"));
        assert!(found.alive > 0, "nothing was ever seen alive: the watch is blind");
        found
    }
}

impl Found {
    pub fn never_two(&self) -> bool {
        self.twice.is_empty()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { twice, looks, still, .. } = self;
        write!(
            f,
            "second copies seen alive: {} in {looks} looks ({still} times one stood still)",
            twice.len()
        )?;
        twice.first().map_or(Ok(()), |first| write!(f, "\n  {first}"))
    }
}

fn look(dir: &Path, bases: &mut BTreeMap<String, Vec<PathBuf>>, found: &mut Found) {
    found.looks += 1;
    let mut copies: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for instance in left::instances(dir) {
        // Looked for again from time to time: docker's are made with the first session.
        let known = bases.entry(instance.clone()).or_default();
        if known.is_empty() || found.looks.is_multiple_of(LOOKS_FOR_BASES) {
            *known =
                left::cgroups(&instance).into_iter().filter(|c| c.join("cgroup.events").exists()).collect();
        }
        let sessions = known.iter().flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten());
        for session in sessions.map(|entry| entry.path().join("t")).filter(|t| t.exists()) {
            let name = session.parent().and_then(Path::file_name).unwrap_or_default();
            copies.entry(name.to_string_lossy().into_owned()).or_default().push(session);
        }
    }
    for (session, copies) in copies {
        let alive: Vec<&PathBuf> = copies.iter().filter(|copy| is_alive(copy)).collect();
        found.alive += alive.len();
        found.still +=
            usize::from(alive.len() == 1 && copies.iter().filter(|copy| is_peopled(copy)).count() > 1);
        // The first is looked at again: alive before and after the second was, it was alive beside it.
        if let [first, second, ..] = alive[..]
            && has_tasks(second)
            && has_tasks(first)
            && is_alive(first)
        {
            found.twice.push(format!("{session} in {} and {}", first.display(), second.display()));
        }
    }
}

fn is_alive(copy: &Path) -> bool {
    is_peopled(copy) && read(copy, "cgroup.freeze").trim() == "0"
}

/// Whether anything in it is more than the agent's own program, held ready.
fn has_tasks(copy: &Path) -> bool {
    let groups = fs::read_dir(copy).into_iter().flatten().flatten().map(|entry| entry.path());
    let pids = groups.map(|group| read(&group, "cgroup.procs")).chain([read(copy, "cgroup.procs")]);
    pids.flat_map(|pids| pids.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok())
        .any(|program| program != Path::new(AGENT_PATH))
}

fn is_peopled(copy: &Path) -> bool {
    read(copy, "cgroup.events").lines().any(|line| line == "populated 1")
}

fn read(copy: &Path, file: &str) -> String {
    fs::read_to_string(copy.join(file)).unwrap_or_default()
}
