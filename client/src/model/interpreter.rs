//! Contexts of interpreters and what comes of executions, as they are told.

use std::time::{Duration, SystemTime};

use berth_proto::{ContextId, v1};
use bytes::Bytes;
use serde::Serialize;

use super::json;
use crate::{Error, SessionId};

/// What runs the code of a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// A Jupyter kernel: rich results, plots as PNG.
    Ipykernel,
    /// Where the root has plain Python only: results are text.
    Builtin,
}

impl From<Kernel> for v1::Kernel {
    fn from(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Ipykernel => Self::Ipykernel,
            Kernel::Builtin => Self::Builtin,
        }
    }
}

impl TryFrom<v1::Kernel> for Kernel {
    type Error = Error;

    fn try_from(wire: v1::Kernel) -> Result<Self, Error> {
        match wire {
            v1::Kernel::Ipykernel => Ok(Self::Ipykernel),
            v1::Kernel::Builtin => Ok(Self::Builtin),
            v1::Kernel::Unspecified => Err(Error::strange("a kernel of no kind")),
        }
    }
}

/// Where a context stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextState {
    Starting,
    Idle,
    Busy,
    /// Its interpreter has ended: restart it, or delete it.
    Dead,
}

/// A context.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ContextInfo {
    #[serde(serialize_with = "json::text")]
    pub id: ContextId,
    #[serde(serialize_with = "json::text")]
    pub session: SessionId,
    pub language: String,
    /// Empty: the workspace.
    pub cwd: String,
    pub state: ContextState,
    /// `None` while it starts.
    pub kernel: Option<Kernel>,
    /// Of the interpreter.
    pub version: String,
    /// In the sandbox.
    pub pid: u32,
    #[serde(serialize_with = "json::opt_time")]
    pub created_at: Option<SystemTime>,
    /// The newest execution's number.
    pub executions: u64,
    /// Executions that wait.
    pub waiting: u32,
    /// Why it is dead.
    pub message: Option<String>,
}

impl TryFrom<v1::InterpreterContext> for ContextInfo {
    type Error = Error;

    fn try_from(wire: v1::InterpreterContext) -> Result<Self, Error> {
        let strange = |_| Error::strange("a context without an id");
        Ok(Self {
            id: wire.id.parse().map_err(strange)?,
            session: wire.session_id.parse().map_err(strange)?,
            state: match wire.state() {
                v1::ContextState::Starting => ContextState::Starting,
                v1::ContextState::Idle => ContextState::Idle,
                v1::ContextState::Busy => ContextState::Busy,
                v1::ContextState::Dead => ContextState::Dead,
                v1::ContextState::Unspecified => return Err(Error::strange("a context in no state")),
            },
            kernel: Kernel::try_from(wire.kernel()).ok(),
            created_at: super::time(wire.created_at)?,
            language: wire.language,
            cwd: wire.cwd,
            version: wire.version,
            pid: wire.pid,
            executions: wire.executions,
            waiting: wire.waiting,
            message: super::non_empty(wire.message),
        })
    }
}

/// One thing in several forms.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MimeBundle {
    /// By mime type; text in UTF-8, the rest as it is.
    pub data: Vec<(String, Bytes)>,
    /// Types that were left out, since they were too large.
    pub left_out: Vec<String>,
    pub display_id: Option<String>,
    /// Takes the place of what was shown under its id.
    pub update: bool,
}

impl MimeBundle {
    /// A form of it.
    pub fn get(&self, mime: &str) -> Option<&Bytes> {
        self.data.iter().find(|(of, _)| of == mime).map(|(_, data)| data)
    }

    /// As plain text.
    pub fn text(&self) -> Option<&str> {
        self.get("text/plain").and_then(|data| std::str::from_utf8(data).ok())
    }

    /// As a picture.
    pub fn png(&self) -> Option<&Bytes> {
        self.get("image/png")
    }
}

impl From<v1::MimeBundle> for MimeBundle {
    fn from(wire: v1::MimeBundle) -> Self {
        Self {
            data: wire.data.into_iter().map(|form| (form.r#type, form.data)).collect(),
            left_out: wire.left_out,
            display_id: super::non_empty(wire.display_id),
            update: wire.update,
        }
    }
}

/// The exception that ended the code.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExecutionError {
    /// Its class.
    pub name: String,
    pub value: String,
    pub traceback: String,
}

impl From<v1::ExecutionError> for ExecutionError {
    fn from(wire: v1::ExecutionError) -> Self {
        Self { name: wire.name, value: wire.value, traceback: wire.traceback }
    }
}

/// How an execution ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionOutcome {
    Ok,
    /// The code raised.
    Error,
    Interrupted,
    TimedOut,
    /// The context died under it.
    Died,
    /// The context was restarted or deleted.
    Cancelled,
    SessionEnded,
}

/// The end of an execution.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExecutionEnd {
    pub outcome: ExecutionOutcome,
    /// When there is more to say.
    pub message: Option<String>,
    #[serde(serialize_with = "json::opt_seconds")]
    pub duration: Option<Duration>,
    /// Bytes that were left out.
    pub output_lost: u64,
}

impl TryFrom<v1::ExecutionEnded> for ExecutionEnd {
    type Error = Error;

    fn try_from(wire: v1::ExecutionEnded) -> Result<Self, Error> {
        use v1::ExecutionOutcome as Wire;
        Ok(Self {
            outcome: match wire.outcome() {
                Wire::Ok => ExecutionOutcome::Ok,
                Wire::Error => ExecutionOutcome::Error,
                Wire::Interrupted => ExecutionOutcome::Interrupted,
                Wire::TimedOut => ExecutionOutcome::TimedOut,
                Wire::Died => ExecutionOutcome::Died,
                Wire::Cancelled => ExecutionOutcome::Cancelled,
                Wire::SessionEnded => ExecutionOutcome::SessionEnded,
                Wire::Unspecified => return Err(Error::strange("an execution without an outcome")),
            },
            duration: super::duration(wire.duration)?,
            message: super::non_empty(wire.message),
            output_lost: wire.output_lost,
        })
    }
}
