//! Tasks, as they are told.

use std::time::{Duration, SystemTime};

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::{Error, SessionId, TaskId, domain::*};

/// `Queued → Dispatched → Running → Done`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    Queued,
    Dispatched,
    Running,
    Done,
}

impl TaskState {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatched => "dispatched",
            Self::Running => "running",
            Self::Done => "done",
        }
    }
}

/// Where an output stream stands. Offsets count from the task's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StreamPosition {
    /// Bytes written so far.
    pub length: u64,
    /// The oldest byte still kept.
    pub first_kept: u64,
}

/// A task as it was asked for, less its environment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskProgram {
    /// Empty for a shell line.
    pub argv: Vec<String>,
    pub shell: Option<String>,
    /// Empty: the workspace.
    pub cwd: String,
    pub pty: bool,
    pub stdin: bool,
    pub detached: bool,
}

impl TaskProgram {
    /// On one line, as a shell would take it.
    pub fn line(&self) -> String {
        match &self.shell {
            Some(line) => line.clone(),
            None => self.argv.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" "),
        }
    }
}

fn quoted(arg: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&b);
    if !arg.is_empty() && arg.bytes().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

/// How a task ended. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskEnd {
    #[serde(serialize_with = "json::outcome")]
    pub outcome: Outcome,
    /// For people, when there is more to say than the outcome does.
    pub message: String,
    #[serde(serialize_with = "json::opt_time")]
    pub ended_at: Option<SystemTime>,
    #[serde(serialize_with = "json::seconds")]
    pub duration: Duration,
    #[serde(serialize_with = "json::usage")]
    pub usage: Usage,
}

/// A task as it stood when it was told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskInfo {
    #[serde(serialize_with = "json::text")]
    pub id: TaskId,
    #[serde(serialize_with = "json::text")]
    pub session: SessionId,
    pub state: TaskState,
    pub program: TaskProgram,
    /// Inside the sandbox's own PID namespace.
    pub pid: u32,
    #[serde(serialize_with = "json::opt_time")]
    pub started_at: Option<SystemTime>,
    pub stdout: StreamPosition,
    pub stderr: StreamPosition,
    /// Set when the state is `Done`.
    pub end: Option<TaskEnd>,
}

impl From<Option<v1::StreamInfo>> for StreamPosition {
    fn from(wire: Option<v1::StreamInfo>) -> Self {
        let wire = wire.unwrap_or_default();
        Self { length: wire.length, first_kept: wire.first_kept }
    }
}

impl From<Option<v1::TaskSpec>> for TaskProgram {
    fn from(wire: Option<v1::TaskSpec>) -> Self {
        let wire = wire.unwrap_or_default();
        let (argv, shell) = match wire.program {
            Some(v1::task_spec::Program::Argv(argv)) => (argv.args, None),
            Some(v1::task_spec::Program::Shell(line)) => (Vec::new(), Some(line)),
            None => (Vec::new(), None),
        };
        Self { argv, shell, cwd: wire.cwd, pty: wire.pty, stdin: wire.stdin, detached: wire.detached }
    }
}

impl TryFrom<v1::TaskEnd> for TaskEnd {
    type Error = Error;

    fn try_from(wire: v1::TaskEnd) -> Result<Self, Error> {
        let outcome = wire.outcome.ok_or_else(|| Error::strange("a task ended without an outcome"))?;
        let usage = wire.usage.unwrap_or_default();
        Ok(Self {
            outcome: outcome.try_into().map_err(Error::strange)?,
            message: wire.message,
            ended_at: super::time(wire.ended_at)?,
            duration: super::duration(wire.duration)?.unwrap_or_default(),
            usage: Usage {
                cpu_user: super::duration(usage.cpu_user)?.unwrap_or_default(),
                cpu_system: super::duration(usage.cpu_system)?.unwrap_or_default(),
                peak_memory_bytes: usage.peak_memory_bytes,
                oom_kills: usage.oom_kills,
            },
        })
    }
}

impl TryFrom<v1::Task> for TaskInfo {
    type Error = Error;

    fn try_from(wire: v1::Task) -> Result<Self, Error> {
        let state = match v1::TaskState::try_from(wire.state) {
            Ok(v1::TaskState::Queued) => TaskState::Queued,
            Ok(v1::TaskState::Dispatched) => TaskState::Dispatched,
            Ok(v1::TaskState::Running) => TaskState::Running,
            Ok(v1::TaskState::Done) => TaskState::Done,
            _ => return Err(Error::strange(format!("{} is no task state", wire.state))),
        };
        Ok(Self {
            id: wire.id.parse().map_err(Error::strange)?,
            session: wire.session_id.parse().map_err(Error::strange)?,
            state,
            program: wire.spec.into(),
            pid: wire.pid,
            started_at: super::time(wire.started_at)?,
            stdout: wire.stdout.into(),
            stderr: wire.stderr.into(),
            end: wire.end.map(TaskEnd::try_from).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reads_as_a_shell_line() {
        let program = TaskProgram::from(Some(v1::TaskSpec {
            program: Some(v1::task_spec::Program::Argv(v1::Argv {
                args: ["python3", "-c", "print('1')", ""].map(str::to_owned).to_vec(),
            })),
            ..Default::default()
        }));
        assert_eq!(program.line(), r"python3 -c 'print('\''1'\'')' ''");
    }
}
