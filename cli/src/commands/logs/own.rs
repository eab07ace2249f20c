//! `berth logs` of no session: the log of the `berth up` that runs in the background here, or of one of its components.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    commands::{Global, up},
    failure::{CommandResult, Failure, code},
    output::{self, printable},
    signals::Interrupts,
};

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A part of what runs, by the crate that its lines are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Component {
    Coordinator,
    Gateway,
    Worker,
}

impl Component {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "coordinator" => Some(Self::Coordinator),
            "gateway" => Some(Self::Gateway),
            "worker" => Some(Self::Worker),
            _ => None,
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Coordinator => "berth_coordinator",
            Self::Gateway => "berth_gateway",
            Self::Worker => "berth_worker",
        }
    }

    /// `None`: the line goes on with what the one before it was about.
    fn says(self, line: &str) -> Option<bool> {
        if let Ok(Value::Object(line)) = serde_json::from_str(line) {
            return Some(line.get("target").and_then(Value::as_str).is_some_and(|of| self.is(of)));
        }
        let begins = line.as_bytes().first().is_some_and(u8::is_ascii_digit);
        begins.then(|| {
            line.split_whitespace().find(|word| word.starts_with("berth_")).is_none_or(|of| self.is(of))
        })
    }

    /// What is of a crate that all of them use is shown for each.
    fn is(self, target: &str) -> bool {
        let of = target.split(':').next().unwrap_or_default();
        let all = [Self::Coordinator, Self::Gateway, Self::Worker];
        of == self.target() || !all.iter().any(|component| of == component.target())
    }
}

/// Lines of which only some are wanted.
struct Chosen {
    component: Option<Component>,
    /// Whether the last line was wanted.
    last: bool,
}

impl Chosen {
    fn wants(&mut self, line: &str) -> bool {
        self.last = match self.component {
            None => true,
            Some(component) => component.says(line).unwrap_or(self.last),
        };
        self.last
    }
}

pub async fn run(
    global: &Global,
    component: Option<Component>,
    follow: bool,
    tail: Option<usize>,
) -> CommandResult {
    let path = path(global)?;
    let mut chosen = Chosen { component, last: false };
    let mut before = path.clone().into_os_string();
    before.push(".1");
    let mut kept = VecDeque::new();
    // What was turned over, if it is there.
    if let Ok(file) = File::open(&before) {
        keep(&mut BufReader::new(file), &mut chosen, &mut kept, tail)
            .map_err(|error| Failure::io(path.display(), error))?;
    }
    let mut log = Log::open(path)?;
    while let Some(line) = log.next()? {
        if chosen.wants(&line) {
            push(&mut kept, line, tail);
        }
    }
    for line in kept {
        print(global, &line)?;
    }
    if !follow {
        // A line whose end has not come yet is one all the same.
        let last = Some(text(&log.open)).filter(|line| !line.is_empty() && chosen.wants(line));
        return last.map_or(Ok(0), |line| print(global, &line).map(|()| 0));
    }
    let mut interrupts = Interrupts::new()?;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        }
        while let Some(line) = log.next()? {
            if chosen.wants(&line) {
                print(global, &line)?;
            }
        }
    }
}

fn path(global: &Global) -> Result<PathBuf, Failure> {
    let path = up::log_path(&up::state_dir(global)?);
    if path.exists() {
        return Ok(path);
    }
    Err(Failure::new(format!("there is no log of a `berth up` in the background: {}", path.display())).hint(
        "`berth up -d` writes one; without -d its log is on its terminal; a service's is in the journal \
         (`journalctl -u berth-coordinator`), a container's with `make docker-logs`",
    ))
}

/// Reads to the end; of what is wanted the last lines stay.
fn keep(
    file: &mut impl BufRead,
    chosen: &mut Chosen,
    kept: &mut VecDeque<String>,
    tail: Option<usize>,
) -> io::Result<()> {
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        let text = text(&line);
        line.clear();
        if chosen.wants(&text) {
            push(kept, text, tail);
        }
    }
    Ok(())
}

fn push(kept: &mut VecDeque<String>, line: String, tail: Option<usize>) {
    kept.push_back(line);
    while tail.is_some_and(|most| kept.len() > most) {
        kept.pop_front();
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\n').to_owned()
}

fn print(global: &Global, line: &str) -> Result<(), Failure> {
    if !global.json() {
        return output::data(printable(line));
    }
    match serde_json::from_str::<Value>(line) {
        Ok(object @ Value::Object(_)) => output::json_line(&object),
        _ => output::json_line(&json!({ "text": line })),
    }
}

/// A log that is turned over now and then.
struct Log {
    path: PathBuf,
    file: BufReader<File>,
    /// A line whose end has not come yet.
    open: Vec<u8>,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let file = File::open(&path).map_err(|error| Failure::io(path.display(), error))?;
        Ok(Self { path, file: BufReader::new(file), open: Vec::new() })
    }

    /// The next whole line, if there is one.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let failed = |error| Failure::io(self.path.display(), error);
        // Asked first: what is written before it is turned over is still read.
        let ours = self.file.get_ref().metadata().map_err(failed)?;
        let over = is_another(&self.path, ours.ino());
        if self.file.read_until(b'\n', &mut self.open).map_err(failed)? == 0 {
            if !over {
                return Ok(None);
            }
            let open = std::mem::take(&mut self.open);
            *self = Self { open, ..Self::open(self.path.clone())? };
            return self.next();
        }
        if self.open.last() != Some(&b'\n') {
            return Ok(None);
        }
        Ok(Some(text(&std::mem::take(&mut self.open))))
    }
}

fn is_another(path: &Path, ours: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|there| there.ino() != ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_of_the_component_whose_crate_wrote_it() {
        let text = "2026-11-22T14:14:06Z  INFO background{task=\"driver\"}: berth_coordinator::start: ready of berth_worker";
        let json = r#"{"timestamp":"x","target":"berth_worker::link","msg":"berth_coordinator"}"#;
        let says =
            |line| [Component::Coordinator, Component::Gateway, Component::Worker].map(|of| of.says(line));
        assert_eq!(says(text), [Some(true), Some(false), Some(false)]);
        assert_eq!(says(json), [Some(false), Some(false), Some(true)]);
        assert_eq!(says("   0: core::panic"), [None; 3]);
        let mut chosen = Chosen { component: Some(Component::Worker), last: false };
        let shared = "2026-11-22T14:14:06Z ERROR berth_proto::spawn: a background task panicked";
        let wanted = [text, "more", json, "more of it", shared].map(|line| chosen.wants(line));
        assert_eq!(wanted, [false, false, true, true, true]);
        for name in ["coordinator", "gateway", "worker"] {
            assert!(Component::named(name).is_some());
        }
        assert_eq!(Component::named("box"), None);
    }
}
