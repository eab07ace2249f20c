//! How a task ended, decided in one place from what is known: a pure function, so
//! that every rule of ARCHITECTURE's `Outcome` is a line in a test.

use berth_proto::domain::{Outcome, Usage};
use std::time::Duration;

use crate::{cgroup::Counters, wire::Exited};

/// Why Berth ended a task. The first one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    TimedOut,
    Cancelled,
    /// Nobody watched it for its reattach grace.
    Abandoned,
    OutputLimit,
    SessionEnded,
}

/// All that decides an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Set if Berth ended the task before its main process ended by itself.
    pub cause: Option<Cause>,
    /// As wait4 gave it. `None`: it was never heard of (init is gone, or it can't be killed).
    pub status: Option<i32>,
    pub oom_kills: u64,
    /// More output than the limit was seen, maybe only after the end.
    pub over_limit: bool,
}

/// The outcome, and what there is to say about it to people.
pub fn decide(facts: Facts) -> (Outcome, &'static str) {
    let Some(status) = facts.status else {
        return (Outcome::SandboxFailed, "the end of its main process was never seen");
    };
    match facts.cause {
        Some(Cause::TimedOut) => return (Outcome::TimedOut, "its timeout passed"),
        Some(Cause::Cancelled) => return (Outcome::Cancelled, ""),
        Some(Cause::Abandoned) => return (Outcome::Cancelled, "nobody watched it for its reattach grace"),
        Some(Cause::SessionEnded) => return (Outcome::SessionEnded, "the session ended"),
        Some(Cause::OutputLimit) => {}
        None => {}
    }
    if facts.over_limit || facts.cause == Some(Cause::OutputLimit) {
        // Also when it ended before we noticed: the same output, the same outcome.
        return (Outcome::OutputLimit, "it wrote more than its output limit");
    }
    let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    let failed = libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) != 0;
    if facts.oom_kills > 0 && killed {
        return (Outcome::OutOfMemory, "the kernel killed its main process for want of memory");
    }
    if facts.oom_kills > 0 && failed {
        return (
            Outcome::OutOfMemory,
            "it failed after the kernel killed one of its processes for want of memory",
        );
    }
    if libc::WIFSIGNALED(status) {
        (Outcome::Signaled(libc::WTERMSIG(status)), "")
    } else if facts.oom_kills > 0 {
        (Outcome::Exited(0), "the kernel killed one of its processes for want of memory")
    } else {
        (Outcome::Exited(libc::WEXITSTATUS(status)), "")
    }
}

/// What it used: the cgroup's figures where there are some, else those of wait4, which
/// miss what was never waited for.
pub fn usage(counters: Counters, exited: Option<Exited>) -> Usage {
    let exited = exited.unwrap_or_default();
    let waited = (Duration::from_nanos(exited.user_nanos), Duration::from_nanos(exited.system_nanos));
    let (cpu_user, cpu_system) = counters.cpu.unwrap_or(waited);
    Usage {
        cpu_user,
        cpu_system,
        peak_memory_bytes: counters.peak_bytes.unwrap_or(exited.peak_bytes),
        oom_kills: counters.oom_kills,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT_0: i32 = 0;
    const EXIT_3: i32 = 3 << 8;
    const KILLED: i32 = 9;
    const TERMINATED: i32 = 15;

    fn facts(status: i32) -> Facts {
        Facts { cause: None, status: Some(status), oom_kills: 0, over_limit: false }
    }

    #[test]
    fn by_itself() {
        assert_eq!(decide(facts(EXIT_0)).0, Outcome::Exited(0));
        assert_eq!(decide(facts(EXIT_3)).0, Outcome::Exited(3));
        assert_eq!(decide(facts(KILLED)).0, Outcome::Signaled(9));
        // With a core dump.
        assert_eq!(decide(facts(11 | 0x80)).0, Outcome::Signaled(11));
    }

    /// Red when the cause does not come first.
    #[test]
    fn a_timeout_is_never_an_exit() {
        for status in [EXIT_0, EXIT_3, KILLED, TERMINATED] {
            let f = Facts { cause: Some(Cause::TimedOut), oom_kills: 1, over_limit: true, ..facts(status) };
            assert_eq!(decide(f).0, Outcome::TimedOut);
        }
    }

    /// Red when the cause does not come first.
    #[test]
    fn the_cause_names_the_outcome() {
        let with = |cause| decide(Facts { cause: Some(cause), ..facts(TERMINATED) }).0;
        assert_eq!(with(Cause::Cancelled), Outcome::Cancelled);
        assert_eq!(with(Cause::Abandoned), Outcome::Cancelled);
        assert_eq!(with(Cause::SessionEnded), Outcome::SessionEnded);
        assert_eq!(with(Cause::OutputLimit), Outcome::OutputLimit);
    }

    #[test]
    fn output_over_the_limit_counts_even_when_seen_late() {
        assert_eq!(decide(Facts { over_limit: true, ..facts(EXIT_0) }).0, Outcome::OutputLimit);
    }

    #[test]
    fn out_of_memory() {
        let with = |status| decide(Facts { oom_kills: 1, ..facts(status) });
        assert_eq!(with(KILLED).0, Outcome::OutOfMemory);
        assert_eq!(with(EXIT_3).0, Outcome::OutOfMemory);
        assert_eq!(with(TERMINATED).0, Outcome::OutOfMemory);
        // It coped: an exit, and a word about it.
        assert_eq!(with(EXIT_0).0, Outcome::Exited(0));
        assert!(with(EXIT_0).1.contains("memory"));
    }

    /// Red when no status is taken for 0.
    #[test]
    fn an_end_that_nobody_saw_is_not_made_up() {
        let f = Facts { cause: Some(Cause::TimedOut), status: None, ..facts(0) };
        assert_eq!(decide(f).0, Outcome::SandboxFailed);
    }
}
