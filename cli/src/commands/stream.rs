//! A task's output on our own: stdout to stdout, stderr to stderr, and its end as an exit
//! code with a word on stderr.
//!
//! A task never waits for its reader: what is written goes to the worker, which keeps the
//! newest part. A reader that is too slow so loses the oldest, and must hear of it.

use std::{borrow::Cow, io::IsTerminal};

use berth_client::{
    Outcome, Std, TaskEvent,
    model::{TaskEnd, TaskInfo},
};
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{
    failure::{Failure, code},
    output, value,
};

/// What is collected of each stream at most.
const COLLECT_LIMIT: usize = 64 << 20;

/// Where a task's output goes, and how much of it never came.
pub struct Sink {
    to: To,
    /// Bytes of stdout and of stderr that were dropped before they were read.
    lost: [u64; 2],
}

enum To {
    /// To our own stdout and stderr, as it comes.
    Through(tokio::io::Stdout, tokio::io::Stderr),
    /// As JSON, one object a line.
    Lines,
    /// Kept, to be printed in one piece.
    Collect { kept: [Vec<u8>; 2], truncated: bool },
}

impl Sink {
    pub fn through() -> Self {
        Self { to: To::Through(tokio::io::stdout(), tokio::io::stderr()), lost: [0; 2] }
    }

    pub fn lines() -> Self {
        Self { to: To::Lines, lost: [0; 2] }
    }

    pub fn collecting() -> Self {
        Self { to: To::Collect { kept: [Vec::new(), Vec::new()], truncated: false }, lost: [0; 2] }
    }

    /// Passes one event on. The end of the task is the caller's.
    pub async fn put(&mut self, event: &TaskEvent) -> Result<(), Failure> {
        match (&mut self.to, event) {
            (To::Lines, event) => output::json_line(&Line::from(event))?,
            (_, TaskEvent::Ended(_)) => {}
            (_, TaskEvent::Lost { stream, from, to }) => self.lost[*stream as usize] += to - from,
            (To::Through(stdout, _), TaskEvent::Stdout(data)) => write(stdout, data).await?,
            (To::Through(_, stderr), TaskEvent::Stderr(data)) => write(stderr, data).await?,
            (To::Collect { kept, truncated }, TaskEvent::Stdout(data)) => {
                *truncated |= !keep(&mut kept[Std::Out as usize], data);
            }
            (To::Collect { kept, truncated }, TaskEvent::Stderr(data)) => {
                *truncated |= !keep(&mut kept[Std::Err as usize], data);
            }
        }
        Ok(())
    }

    /// Whether it is kept rather than passed on.
    pub fn collects(&self) -> bool {
        matches!(self.to, To::Collect { .. })
    }

    pub fn has_lost(&self) -> bool {
        self.lost != [0; 2]
    }

    /// Says, at the end, what was lost. Whether something was.
    pub fn tell_lost(&self) -> bool {
        let text = lost_text(self.lost);
        if let Some(text) = &text {
            output::warning(text);
            output::hint("a task is never held up: read faster, or keep more of it with --keep-output SIZE");
        }
        text.is_some()
    }

    /// stdout, stderr, and whether some of it is missing.
    pub fn collected(self) -> Option<(Vec<u8>, Vec<u8>, bool)> {
        match self.to {
            To::Through(..) | To::Lines => None,
            To::Collect { kept: [stdout, stderr], truncated } => {
                Some((stdout, stderr, truncated || self.lost != [0; 2]))
            }
        }
    }
}

/// An event as a line of JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    /// What is not UTF-8 is U+FFFD here.
    Text {
        stream: &'static str,
        text: Cow<'a, str>,
    },
    /// Bytes `from` to `to` are no longer kept.
    Lost {
        stream: &'static str,
        lost_from: u64,
        lost_to: u64,
    },
    Ended {
        ended: &'a TaskInfo,
    },
}

impl<'a> From<&'a TaskEvent> for Line<'a> {
    fn from(event: &'a TaskEvent) -> Self {
        let text = |stream: Std, data: &'a [u8]| Self::Text {
            stream: stream.name(),
            text: String::from_utf8_lossy(data),
        };
        match event {
            TaskEvent::Stdout(data) => text(Std::Out, data),
            TaskEvent::Stderr(data) => text(Std::Err, data),
            TaskEvent::Lost { stream, from, to } => {
                Self::Lost { stream: stream.name(), lost_from: *from, lost_to: *to }
            }
            TaskEvent::Ended(info) => Self::Ended { ended: info },
        }
    }
}

/// What was lost, in words.
fn lost_text(lost: [u64; 2]) -> Option<String> {
    let parts: Vec<String> = [Std::Out, Std::Err]
        .into_iter()
        .map(|stream| (lost[stream as usize], stream.name()))
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, name)| format!("{} of {name}", output::count(bytes, "byte")))
        .collect();
    (!parts.is_empty()).then(|| format!("{} were dropped before they were read", parts.join(" and ")))
}

/// Whether all of `data` was kept.
fn keep(kept: &mut Vec<u8>, data: &[u8]) -> bool {
    let room = COLLECT_LIMIT.saturating_sub(kept.len()).min(data.len());
    kept.extend_from_slice(&data[..room]);
    room == data.len()
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), Failure> {
    // Flushed each time: the far side streams line by line, and so do we.
    let written = async {
        to.write_all(data).await?;
        to.flush().await
    };
    written.await.map_err(output::stdout_failure)
}

/// The exit code for an outcome.
pub fn exit_code(outcome: Outcome) -> u8 {
    match outcome {
        // A code is one byte on Linux.
        Outcome::Exited(status) => (status & 0xff) as u8,
        Outcome::Signaled(signal) => 128u8.saturating_add(signal.clamp(0, 127) as u8),
        Outcome::TimedOut => code::TIMED_OUT,
        Outcome::OutOfMemory => code::OUT_OF_MEMORY,
        Outcome::OutputLimit => code::OUTPUT_LIMIT,
        Outcome::Cancelled => code::CANCELLED,
        Outcome::SessionEnded | Outcome::WorkerLost | Outcome::SandboxFailed => code::BERTH_FAILED,
    }
}

/// An outcome in words.
pub fn outcome_text(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(status) => format!("exit {status}"),
        Outcome::Signaled(signal) => format!("ended by {}", value::signal_name(signal)),
        Outcome::TimedOut => "timed out".to_owned(),
        Outcome::OutOfMemory => "out of memory".to_owned(),
        Outcome::OutputLimit => "output limit reached".to_owned(),
        Outcome::Cancelled => "cancelled".to_owned(),
        Outcome::SessionEnded => "the session ended".to_owned(),
        Outcome::WorkerLost => "the worker was lost: what the task did is not known".to_owned(),
        Outcome::SandboxFailed => "the sandbox failed".to_owned(),
    }
}

/// The exit code for how a task ended.
pub fn end_code(info: &TaskInfo) -> u8 {
    info.end.as_ref().map_or(code::BERTH_FAILED, |end| exit_code(end.outcome))
}

/// Says how a task ended, where its exit code alone does not, and is that code.
pub fn told_end(info: &TaskInfo) -> u8 {
    let Some(end) = &info.end else { return code::BERTH_FAILED };
    let TaskEnd { outcome, message, duration, usage, .. } = end;
    match outcome {
        // As a rule the task has said it itself.
        Outcome::Exited(status) => {
            if !message.is_empty() && *status != 0 && info.stderr.length == 0 && info.stdout.length == 0 {
                output::error(
                    message,
                    ["look at the program's name and at its arguments, or at what it needs"],
                );
            }
        }
        Outcome::OutOfMemory => {
            let peak = match usage.peak_memory_bytes {
                0 => String::new(),
                peak => format!(" at {}", output::bytes(peak)),
            };
            output::error(
                format!("the task ran out of memory{peak}"),
                ["give the session more: --memory SIZE"],
            );
        }
        Outcome::TimedOut => {
            let what = format!("the task was ended after {}: its time was up", output::span(*duration));
            output::error(what, ["give it more: --timeout TIME, or 0 for no limit"]);
        }
        Outcome::OutputLimit => {
            let what = "the task was ended: it wrote more than its output limit";
            output::error(what, ["allow more: --output-limit SIZE, or leave the limit out"]);
        }
        other => {
            let text = outcome_text(*other);
            let said = if message.is_empty() { text } else { format!("{text} ({message})") };
            output::error(format!("the task did not finish: {said}"), [outcome_hint(*other)]);
        }
    }
    exit_code(*outcome)
}

/// What to do about an end that is neither the program's own word nor a limit's.
fn outcome_hint(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::SessionEnded => "`berth ps -a` shows why its session ended; start it again in another one",
        Outcome::WorkerLost => "look at what it did, and start it again if that does no harm",
        Outcome::SandboxFailed => {
            "see the worker's log, and `berth workers`; start it again in another session"
        }
        Outcome::Cancelled => {
            "somebody cancelled it, or nobody watched it: --detach lets a task live on by itself"
        }
        _ => "somebody sent that signal, or the program did; start it again if that was not meant",
    }
}

/// Whether our own standard input has something for a task: a pipe or a file, not a terminal.
pub fn stdin_is_piped() -> bool {
    let stdin = std::io::stdin();
    !stdin.is_terminal() && nix::fcntl::fcntl(&stdin, nix::fcntl::FcntlArg::F_GETFD).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_once_for_each_stream() {
        assert_eq!(lost_text([0, 0]), None);
        let both = "5 bytes of stdout and 1 byte of stderr were dropped before they were read";
        assert_eq!(lost_text([5, 1]).as_deref(), Some(both));
        let one = "7 bytes of stderr were dropped before they were read";
        assert_eq!(lost_text([0, 7]).as_deref(), Some(one));
    }

    #[test]
    fn outcomes_have_the_exit_codes_that_help_promises() {
        for (outcome, expected) in [
            (Outcome::Exited(0), 0),
            (Outcome::Exited(3), 3),
            (Outcome::Exited(127), 127),
            (Outcome::Exited(255), 255),
            (Outcome::Signaled(15), 143),
            (Outcome::Signaled(9), 137),
            (Outcome::TimedOut, 124),
            (Outcome::OutOfMemory, 137),
            (Outcome::OutputLimit, 153),
            (Outcome::Cancelled, 130),
            (Outcome::SessionEnded, 125),
            (Outcome::WorkerLost, 125),
            (Outcome::SandboxFailed, 125),
        ] {
            assert_eq!(exit_code(outcome), expected, "{outcome:?}");
        }
    }
}
