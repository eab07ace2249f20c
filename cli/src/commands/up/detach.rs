//! `berth up --detach`: start it in the background and wait until it is ready, or else say
//! why it is not. What the one in the background says goes to its log, its last error too:
//! that is read back here, so that nobody has to look for it.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_client::local::{self, UpRecord};
use tokio::process::{Child, Command};

use super::{next_steps, tell_unready};
use crate::{
    commands::Global,
    failure::{CommandResult, Failure},
    output, process,
    signals::Interrupts,
};

/// Time on top of a worker's own to become ready.
const MARGIN: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(30);
/// Time to stop one that did not come up.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Where a detached one logs.
pub fn log_path(state_dir: &Path) -> PathBuf {
    state_dir.join("berth.log")
}

pub async fn start(global: &Global, state_dir: &Path, ready_within: Duration) -> CommandResult {
    // Taken and given back: tells at once, and here, that one runs already.
    drop(super::lock(state_dir)?);
    let log = log_path(state_dir);
    let mut interrupts = Interrupts::new()?;
    let before = fs::metadata(&log).map_or(0, |meta| meta.len());
    let mut child = spawn(&log)?;
    let pid = child.id().unwrap_or_default();
    let problem = tokio::select! {
        ready = until_ready(&mut child, state_dir) => match ready {
            Ok(record) => {
                if global.json() {
                    output::json(&record)?;
                } else {
                    output::data(format!("ready {}", record.address))?;
                    tell_unready(&record);
                    next_steps(global, &record, None, "`berth stop` stops it");
                }
                return Ok(0);
            }
            Err(problem) => problem,
        },
        () = tokio::time::sleep(ready_within.saturating_add(MARGIN)) => {
            format!("it is not ready after {}", output::span(ready_within))
        }
        signal = interrupts.recv() => format!("{signal} came while it started"),
    };
    end(child).await;
    let lines = process::last_lines(&log, before, 50);
    Err(failure(pid, &problem, &lines).hint(format!("its log is {}", log.display())))
}

/// Why it did not come up: in its own words, where it left some.
fn failure(pid: u32, problem: &str, log: &[String]) -> Failure {
    let errors = said(log, "error: ");
    if errors.is_empty() {
        let last: Vec<&str> = log[log.len().saturating_sub(15)..].iter().map(String::as_str).collect();
        let message = format!("Berth did not come up (pid {pid}): {problem}");
        let message = [&[message.as_str()], &last[..]].concat().join("\n");
        return Failure::new(message).hint("`berth doctor` looks at what this machine has");
    }
    let failure = Failure::new(format!("Berth did not come up: {}", errors.join("\n")));
    failure.hints(said(log, "hint: "), "`berth doctor` looks at what this machine has")
}

/// What follows a mark in a log, each with the indented lines after it.
fn said(log: &[String], mark: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut open = false;
    for line in log {
        match (line.strip_prefix(mark), line.strip_prefix("  "), all.last_mut()) {
            (Some(text), ..) => {
                all.push(text.to_owned());
                open = true;
            }
            (None, Some(more), Some(last)) if open => last.extend(["\n", more]),
            _ => open = false,
        }
    }
    all
}

/// This executable again, with the same arguments, marked as the one in the background. It
/// starts where we are, since what it is told may be relative to that.
fn spawn(log: &Path) -> Result<Child, Failure> {
    let failed = |error: std::io::Error| Failure::io("can't start in the background", error);
    let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(log).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--daemon")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(file))
        .spawn()
        .map_err(failed)
}

/// Its own record says so: that of this very process, and ready.
async fn until_ready(child: &mut Child, state_dir: &Path) -> Result<UpRecord, String> {
    let pid = child.id().unwrap_or_default().cast_signed();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("it ended with {status}"));
        }
        if let Ok(Some(record)) = local::read_up_record(state_dir)
            && record.pid == pid
            && record.ready
        {
            return Ok(record);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends one that did not come up: it is our child, so its pid is its own until we have waited for it.
async fn end(mut child: Child) {
    let Some(pid) = child.id() else { return };
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn it_fails_with_its_own_words() {
        let earlier = "INFO starting\n  at once\nerror: port 1 is taken\nhint: take another";
        let log = lines(&format!("{earlier}\nerror: and\n  worse\nhint: sleep"));
        let failure = failure(7, "it ended", &log);
        assert_eq!(failure.message, "Berth did not come up: port 1 is taken\nand\nworse");
        assert_eq!(failure.hints, ["take another", "sleep"]);
    }

    #[test]
    fn without_words_its_last_lines_have_to_do() {
        let failure = failure(7, "it ended", &lines("INFO starting\nWARN hm"));
        assert_eq!(failure.message, "Berth did not come up (pid 7): it ended\nINFO starting\nWARN hm");
    }
}
