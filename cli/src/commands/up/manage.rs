//! `berth stop` and `berth status`: the `berth up` of this machine, found by its record and
//! acted on by a pidfd, so that no other process is ever meant.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_client::{
    Client, ConnectOptions, SessionId,
    local::{self, UpRecord},
    model::CoordinatorInfo,
};
use clap::Args;
use serde::Serialize;

use crate::{
    commands::Global,
    failure::{CommandResult, Failure, code},
    output::{self, say},
    process,
    serve::remove,
    sys, value,
};

/// A status shall not take longer than this.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// A stop without sessions is over by then.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Time for the kernel to end a process that was killed.
const KILL_WITHIN: Duration = Duration::from_secs(10);

const HELP: &str = "\
Sessions have the worker's grace to end by themselves; then they are ended. It is no error if
nothing runs.

Examples:
  berth stop
  berth stop --timeout 10s --kill";

/// Stops the `berth up` of this machine.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct StopArgs {
    /// How long to wait for its end
    #[arg(long, value_parser = value::duration, default_value = "2m", value_name = "TIME")]
    pub timeout: Duration,

    /// Kill it when it has not ended by then
    #[arg(long)]
    pub kill: bool,
}

/// What was named, else the usual one.
pub fn state_dir(global: &Global) -> Result<PathBuf, Failure> {
    match &global.state_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(local::default_state_dir()?),
    }
}

/// Sessions that one left behind which was killed: each has a directory below a worker's.
fn sessions_left(state_dir: &Path) -> u64 {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten();
    let is_worker = |name: &str| name.strip_prefix('w').is_some_and(|n| n.parse::<u32>().is_ok());
    let is_session = |name: &str| name.parse::<SessionId>().is_ok();
    entries(state_dir.to_owned())
        .filter(|entry| entry.file_name().to_str().is_some_and(is_worker))
        .flat_map(|worker| entries(worker.path().join("sessions")))
        .filter(|entry| entry.file_name().to_str().is_some_and(is_session))
        .count() as u64
}

/// By design a session outlives its worker's process, so that a restart loses none.
fn tell_left(sessions: u64) {
    if sessions > 0 {
        let left = output::count(sessions, "session");
        say(format!("{left} of the last `berth up`, which was killed, may still run on this machine"));
        output::hint("`berth up` takes them back; `berth stop` after that ends them");
    }
}

/// The record and its process, if that runs.
fn running(state_dir: &Path) -> Result<Option<(UpRecord, OwnedFd)>, Failure> {
    let Some(record) = local::read_up_record(state_dir)? else { return Ok(None) };
    let found = process::find(&record)
        .map_err(|error| Failure::io(format_args!("can't look at pid {}", record.pid), error))?;
    Ok(found.map(|process| (record, process)))
}

/// Whether a `berth up` runs with this state directory.
pub fn runs(state_dir: &Path) -> bool {
    matches!(running(state_dir), Ok(Some(_)))
}

/// What `--format json` prints.
#[derive(Serialize, Default)]
struct Stopped {
    /// Whether one ran.
    stopped: bool,
    pid: Option<i32>,
    killed: bool,
    /// What a killed one left: `berth up` takes it back.
    sessions_left: u64,
}

impl Stopped {
    fn tell(&self, global: &Global) -> CommandResult {
        if global.json() {
            output::json(self)?;
        }
        match self.pid {
            Some(pid) => say(format!("stopped (pid {pid})")),
            None => {
                say("Berth does not run here");
                tell_left(self.sessions_left);
            }
        }
        Ok(0)
    }
}

pub async fn stop(global: &Global, args: StopArgs) -> CommandResult {
    let state_dir = state_dir(global)?;
    let Some((record, process)) = running(&state_dir)? else {
        // A record that a killed one left behind misleads whoever looks for an address.
        let _ = remove(&local::up_record_path(&state_dir));
        return Stopped { sessions_left: sessions_left(&state_dir), ..Stopped::default() }.tell(global);
    };
    let mut killed = false;
    let failed = |error: std::io::Error| Failure::io(format_args!("can't stop pid {}", record.pid), error);
    sys::pidfd_signal(&process, libc::SIGTERM).map_err(failed)?;
    if !ended(&process, args.timeout).await.map_err(failed)? {
        if !args.kill {
            let failure = Failure::new(format!(
                "pid {} has not stopped after {}",
                record.pid,
                output::span(args.timeout)
            ));
            return Err(failure.hint("`berth stop --kill` ends it without ceremony"));
        }
        sys::pidfd_signal(&process, libc::SIGKILL).map_err(failed)?;
        if !process::ended_within(&process, KILL_WITHIN).await.map_err(failed)? {
            return Err(Failure::new(format!("pid {} does not end although it was killed", record.pid))
                .hint("it is stuck in the kernel: look at its disk"));
        }
        let _ = remove(&local::up_record_path(&state_dir));
        output::warning("killed: the next start puts in order what is left");
        killed = true;
    }
    let sessions_left = if killed { sessions_left(&state_dir) } else { 0 };
    Stopped { stopped: true, pid: Some(record.pid), killed, sessions_left }.tell(global)
}

/// Waits for its end, and says what for when that is not at once.
async fn ended(process: &OwnedFd, limit: Duration) -> std::io::Result<bool> {
    if process::ended_within(process, limit.min(SILENT_FOR)).await? {
        return Ok(true);
    }
    say("its sessions have a moment to end by themselves");
    process::ended_within(process, limit.saturating_sub(SILENT_FOR)).await
}

#[derive(Serialize)]
struct Status {
    running: bool,
    #[serde(flatten)]
    record: Option<UpRecord>,
    coordinator: Option<CoordinatorInfo>,
    /// Why the coordinator could not be asked.
    problem: Option<String>,
    /// What a killed one left: `berth up` takes it back. 0 while one runs.
    sessions_left: u64,
}

pub async fn status(global: &Global) -> CommandResult {
    let state_dir = state_dir(global)?;
    let found = running(&state_dir)?.map(|(record, _)| record);
    let (coordinator, problem) = match &found {
        None => (None, None),
        Some(record) => match tokio::time::timeout(ASK_WITHIN, ask(&state_dir, record)).await {
            Ok(Ok(info)) => (Some(info), None),
            Ok(Err(error)) => (None, Some(error.to_string())),
            Err(_) => (None, Some("the coordinator does not answer".to_owned())),
        },
    };
    let sessions_left = if found.is_some() { 0 } else { sessions_left(&state_dir) };
    let status = Status { running: found.is_some(), record: found, coordinator, problem, sessions_left };
    let healthy = status.coordinator.is_some();
    if global.json() {
        output::json(&status)?;
    } else if let Some(record) = &status.record {
        show(record, &status)?;
    } else {
        output::data("not running")?;
        tell_left(status.sessions_left);
        output::hint(format!("`berth up` starts it (state directory: {})", state_dir.display()));
    }
    Ok(if healthy { 0 } else { code::FAILED })
}

async fn ask(state_dir: &Path, record: &UpRecord) -> Result<CoordinatorInfo, berth_client::Error> {
    let options = ConnectOptions::find(Some(record.address.clone()), None, Some(state_dir.to_owned()))?;
    Client::connect(options).await?.info().await
}

fn show(record: &UpRecord, status: &Status) -> Result<(), Failure> {
    let state = match (&status.problem, record.ready) {
        (Some(problem), _) => format!("running, but: {problem}"),
        (None, true) => "running".to_owned(),
        (None, false) => "starting or stopping".to_owned(),
    };
    let mut pairs = vec![
        ("state", state),
        ("address", record.address.clone()),
        ("http", record.http.clone().unwrap_or_else(|| "not served".to_owned())),
        ("pid", record.pid.to_string()),
        ("version", record.version.clone()),
        ("log", record.log.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
    ];
    if let Some(info) = &status.coordinator {
        pairs.push(("up for", output::ago(info.started_at)));
        pairs.push(("workers", format!("{} of {} alive", info.workers_alive, record.workers)));
        let waiting = format!("{} waiting, {} parked", info.sessions_pending, info.sessions_parked);
        pairs.push(("sessions", format!("{} ready, {waiting}", info.sessions_ready)));
        pairs.push(("tasks", format!("{} running", info.running_tasks)));
    }
    output::details(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_one_left_is_counted() {
        let dir = std::env::temp_dir().join(format!("berth-left-{}", berth_client::TaskId::new()));
        assert_eq!(sessions_left(&dir), 0);
        for path in ["w1/sessions", "w2/sessions", "credentials", "west/sessions"] {
            fs::create_dir_all(dir.join(path)).unwrap();
        }
        for worker in ["w1", "w2", "west"] {
            fs::create_dir(dir.join(worker).join("sessions").join(SessionId::new().to_string())).unwrap();
        }
        fs::create_dir(dir.join("w1/sessions/lost+found")).unwrap();
        assert_eq!(sessions_left(&dir), 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
