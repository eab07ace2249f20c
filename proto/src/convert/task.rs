//! Tasks: what is asked for, and how they end.

use std::time::Duration;

use super::{bounds, duration, duration_out, env, no_nul, optional_limit, path, required};
use crate::{
    domain::{Outcome, Program, PtySize, TaskSpec, Timeout, Usage},
    error::{Error, Reason},
    ids::Epoch,
    secret, v1,
};

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = Error;
    fn try_from(wire: v1::TaskSpec) -> Result<Self, Error> {
        let cwd = if wire.cwd.is_empty() { String::new() } else { path("task.cwd", wire.cwd)? };
        let spool_bytes = match wire.spool_bytes {
            0 => bounds::SPOOL_DEFAULT,
            n if (bounds::SPOOL_MIN..=bounds::SPOOL_MAX).contains(&n) => n,
            n => {
                return Err(Error::invalid(
                    "task.spool_bytes",
                    format!("{n} is not within {} to {}", bounds::SPOOL_MIN, bounds::SPOOL_MAX),
                )
                .hint("leave it out for 64 MiB"));
            }
        };
        let timeout = match optional_limit("task.timeout", wire.timeout)? {
            None => Timeout::Default,
            Some(None) => Timeout::Never,
            Some(Some(after)) => Timeout::After(after),
        };
        if wire.pty_size.is_some() && !wire.pty {
            return Err(
                Error::invalid("task.pty_size", "needs `pty`").hint("set `pty`, or leave the size out")
            );
        }
        let pty_size = wire.pty_size.map(PtySize::try_from).transpose()?;
        Ok(Self {
            program: program(wire.program)?,
            cwd,
            env: env("task.env", wire.env)?,
            timeout,
            output_limit: (wire.output_limit > 0).then_some(wire.output_limit),
            spool_bytes,
            pty: wire.pty.then_some(pty_size),
            stdin: wire.stdin || wire.pty,
            detached: wire.detached,
            reattach_grace: match wire.reattach_grace {
                None => bounds::REATTACH_GRACE,
                Some(value) => duration("task.reattach_grace", value)?,
            },
            secrets: secret::uses(wire.secrets)?,
        })
    }
}

fn program(wire: Option<v1::task_spec::Program>) -> Result<Program, Error> {
    match required("task.program", wire).map_err(|e| e.hint("give `argv` or `shell`"))? {
        v1::task_spec::Program::Argv(v1::Argv { args }) => {
            if args.first().is_none_or(String::is_empty) {
                return Err(
                    Error::invalid("task.argv", "names no program").hint("give at least one argument")
                );
            }
            let mut total = 0;
            for arg in &args {
                no_nul("task.argv", arg)?;
                if arg.len() >= bounds::ARG {
                    return Err(Error::invalid(
                        "task.argv",
                        "an argument is longer than the kernel's 128 KiB",
                    )
                    .hint("write it to a file first"));
                }
                total += arg.len() + 1;
            }
            if total > bounds::ARGS_TOTAL {
                return Err(Error::invalid(
                    "task.argv",
                    format!("{total} bytes are more than {}", bounds::ARGS_TOTAL),
                )
                .hint("write them to a file, and give the program that"));
            }
            Ok(Program::Argv(args))
        }
        v1::task_spec::Program::Shell(line) => {
            no_nul("task.shell", &line)?;
            if line.trim().is_empty() {
                return Err(Error::invalid("task.shell", "is empty").hint("give a line for the shell"));
            }
            if line.len() >= bounds::ARG {
                return Err(Error::invalid(
                    "task.shell",
                    "is longer than the kernel's 128 KiB for one argument",
                )
                .hint("write it to a file and run that"));
            }
            Ok(Program::Shell(line))
        }
    }
}

/// The spec as it is shown: without the environment, which may hold secrets.
pub fn shown_spec(mut wire: v1::TaskSpec) -> v1::TaskSpec {
    wire.env.clear();
    wire
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        use v1::outcome::{Empty, Kind};
        let kind = match outcome {
            Outcome::Exited(code) => Kind::Exited(code),
            Outcome::Signaled(signal) => Kind::Signaled(signal),
            Outcome::TimedOut => Kind::TimedOut(Empty {}),
            Outcome::OutOfMemory => Kind::OutOfMemory(Empty {}),
            Outcome::OutputLimit => Kind::OutputLimit(Empty {}),
            Outcome::Cancelled => Kind::Cancelled(Empty {}),
            Outcome::SessionEnded => Kind::SessionEnded(Empty {}),
            Outcome::WorkerLost => Kind::WorkerLost(Empty {}),
            Outcome::SandboxFailed => Kind::SandboxFailed(Empty {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = Error;
    fn try_from(wire: v1::Outcome) -> Result<Self, Error> {
        use v1::outcome::Kind;
        Ok(match required("outcome.kind", wire.kind)? {
            Kind::Exited(code) => Self::Exited(code),
            Kind::Signaled(signal) => Self::Signaled(signal),
            Kind::TimedOut(_) => Self::TimedOut,
            Kind::OutOfMemory(_) => Self::OutOfMemory,
            Kind::OutputLimit(_) => Self::OutputLimit,
            Kind::Cancelled(_) => Self::Cancelled,
            Kind::SessionEnded(_) => Self::SessionEnded,
            Kind::WorkerLost(_) => Self::WorkerLost,
            Kind::SandboxFailed(_) => Self::SandboxFailed,
        })
    }
}

impl From<Usage> for v1::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_user: Some(duration_out(usage.cpu_user)),
            cpu_system: Some(duration_out(usage.cpu_system)),
            peak_memory_bytes: usage.peak_memory_bytes,
            oom_kills: usage.oom_kills,
        }
    }
}

/// A signal from the wire.
pub fn signal(value: i32) -> Result<i32, Error> {
    if (1..=64).contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid("signal", format!("{value} is not within 1 to 64"))
        .hint("15 asks a program to end, 2 interrupts it, 9 kills it"))
}

/// The time between TERM and KILL.
pub fn grace(value: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let Some(value) = value else { return Ok(bounds::GRACE_DEFAULT) };
    let value = duration("grace", value)?;
    if value > bounds::GRACE_MAX {
        return Err(Error::invalid("grace", format!("at most {} s", bounds::GRACE_MAX.as_secs()))
            .hint("leave it out for 2 s"));
    }
    Ok(value)
}

/// Whether the placement `ours` may start a task of whose request id it knows nothing, and which was first sent to the
/// placement `first`. What another one had started is not known here.
pub fn same_placement(ours: Epoch, first: Epoch) -> Result<(), Error> {
    let (reason, what) = match first.cmp(&ours) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => (
            Reason::SessionRecovered,
            "the session was placed anew since this task was first asked for: whether it had started is not known, and it \
             is not started again",
        ),
        std::cmp::Ordering::Greater => (Reason::StaleEpoch, "a newer placement of the session exists"),
    };
    Err(Error::precondition(reason, what).with("epoch", ours))
}

/// How a task ended, in the words of logs and the audit record: `exited 0`, `timed_out`. Empty: nobody said.
pub fn outcome_words(end: &v1::TaskEnd) -> String {
    use v1::outcome::Kind;
    match end.outcome.as_ref().and_then(|outcome| outcome.kind.as_ref()) {
        Some(Kind::Exited(status)) => format!("exited {status}"),
        Some(Kind::Signaled(signal)) => format!("signaled {signal}"),
        Some(Kind::TimedOut(_)) => "timed_out".to_owned(),
        Some(Kind::OutOfMemory(_)) => "out_of_memory".to_owned(),
        Some(Kind::OutputLimit(_)) => "output_limit".to_owned(),
        Some(Kind::Cancelled(_)) => "cancelled".to_owned(),
        Some(Kind::SessionEnded(_)) => "session_ended".to_owned(),
        Some(Kind::WorkerLost(_)) => "worker_lost".to_owned(),
        Some(Kind::SandboxFailed(_)) => "sandbox_failed".to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(args: &[&str]) -> v1::TaskSpec {
        v1::TaskSpec {
            program: Some(v1::task_spec::Program::Argv(v1::Argv {
                args: args.iter().map(|a| a.to_string()).collect(),
            })),
            ..Default::default()
        }
    }

    fn problem(spec: v1::TaskSpec) -> String {
        TaskSpec::try_from(spec).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_task_needs_a_program() {
        assert_eq!(problem(v1::TaskSpec::default()), "task.program: is missing");
        assert_eq!(problem(argv(&[])), "task.argv: names no program");
        assert_eq!(problem(argv(&[""])), "task.argv: names no program");
    }

    #[test]
    fn nul_bytes_are_refused_wherever_they_come() {
        assert!(problem(argv(&["a", "b\0c"])).contains("NUL"));
        assert!(problem(v1::TaskSpec { cwd: "a\0b".into(), ..argv(&["x"]) }).contains("NUL"));
    }

    #[test]
    fn zero_timeout_is_none_and_absent_is_the_default() {
        let with = |timeout| TaskSpec::try_from(v1::TaskSpec { timeout, ..argv(&["x"]) }).unwrap().timeout;
        assert_eq!(with(None), Timeout::Default);
        assert_eq!(with(Some(duration_out(Duration::ZERO))), Timeout::Never);
        assert_eq!(with(Some(duration_out(Duration::from_secs(2)))), Timeout::After(Duration::from_secs(2)));
        assert!(
            problem(v1::TaskSpec {
                timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..argv(&["x"])
            })
            .contains("negative")
        );
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for outcome in [
            Outcome::Exited(3),
            Outcome::Signaled(9),
            Outcome::TimedOut,
            Outcome::OutOfMemory,
            Outcome::OutputLimit,
            Outcome::Cancelled,
            Outcome::SessionEnded,
            Outcome::WorkerLost,
            Outcome::SandboxFailed,
        ] {
            assert_eq!(Outcome::try_from(v1::Outcome::from(outcome)).unwrap(), outcome);
        }
        assert!(Outcome::try_from(v1::Outcome { kind: None }).is_err());
    }
}
