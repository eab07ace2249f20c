//! What went wrong with a call, and what to do about it.
//!
//! The client library's hints name the commands of `berth`, which a model that has only these tools can't type. So the
//! reasons that a tool can meet get a hint of their own here; any other goes through as it is.

use std::fmt;

use berth_client::{Error, Reason};
use berth_proto::trace;
use rmcp::{
    ErrorData,
    model::{CallToolResult, ContentBlock},
};
use serde_json::json;

use super::text;

/// Bytes of a message that are shown: some quote what they were given.
const LONGEST: usize = 2000;

/// Why a tool failed, and what to do next.
#[derive(Debug)]
pub struct Problem {
    message: String,
    hint: String,
    reason: Option<Reason>,
}

impl Problem {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), reason: None }
    }

    /// The caller would not wait any longer: nobody reads this.
    pub fn cancelled() -> Self {
        Self::new("the call was cancelled", "call again if it is still wanted")
    }

    pub fn is(&self, reason: Reason) -> bool {
        self.reason == Some(reason)
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Its session is gone for good.
    pub fn is_gone(&self) -> bool {
        [Reason::SessionEnded, Reason::SessionNotFound, Reason::WorkerLost]
            .into_iter()
            .any(|reason| self.is(reason))
    }

    /// As an error of the protocol, for what is not a tool's answer.
    pub fn into_error(self) -> ErrorData {
        use Reason::*;
        let hint = text::clipped(&self.hint, LONGEST);
        let message = format!("{}; {hint}", text::clipped(&self.message, LONGEST));
        let data = Some(json!({"reason": self.reason.map(Reason::as_str), "hint": hint}));
        match self.reason {
            Some(SessionNotFound | SessionEnded | WorkerLost | TaskNotFound | FileNotFound) => {
                ErrorData::resource_not_found(message, data)
            }
            // Ours, or about what was asked for: to ask again for the same helps nobody.
            None | Some(InvalidField | FileKind | FileDenied | OutputLost | OffsetBeyondEnd) => {
                ErrorData::invalid_params(message, data)
            }
            Some(_) => ErrorData::internal_error(message, data),
        }
    }

    /// As a tool answers it: `isError`, and text that a model reads.
    pub fn into_result(self) -> CallToolResult {
        let reason = self.reason.map(|reason| format!(" [{}]", reason.as_str())).unwrap_or_default();
        let message = text::clipped(&self.message, LONGEST);
        CallToolResult::error(vec![ContentBlock::text(format!(
            "error: {message}{reason}\nhint: {}{}",
            text::clipped(&self.hint, LONGEST),
            of_request()
        ))])
    }
}

/// For whoever looks into the logs afterwards.
fn of_request() -> String {
    trace::current().map(|request| format!("\nrequest: {}", request.request_id())).unwrap_or_default()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let hint = error.reason().and_then(hint).or(error.hint()).unwrap_or("try again");
        Self { message: error.message().to_owned(), hint: hint.to_owned(), reason: error.reason() }
    }
}

/// What to do about it with these tools.
fn hint(reason: Reason) -> Option<&'static str> {
    use Reason::*;
    Some(match reason {
        SessionNotFound | SessionEnded | WorkerLost => {
            "leave `session` out to work in your own, or make one with session_create; what was in it is gone"
        }
        SessionNotReady | SessionMoves | SessionFenced | SessionBusy | WorkerUnreachable
        | AgentUnreachable | Overloaded | ShuttingDown => "call again in a few seconds",
        SessionPaused | SessionParked => {
            "somebody paused it: ask the operator to resume it, or leave `session` out to work in your own"
        }
        SessionRecovered => {
            "its files are of an earlier moment now: look at them with fs_list, then run it again if that does no harm"
        }
        TaskNotFound => "give the task_id that run_background answered with, and its `session` if it has one",
        ArtifactNotFound => {
            "artifact_list tells the ids of those that there are; one is removed when its time is over"
        }
        TaskDone => "it takes no input any more: task_get_result has what it said",
        FileNotFound => {
            "fs_list shows what is there; paths are relative to /workspace, or absolute in the sandbox"
        }
        FileExists => "choose another path, or remove what is there with fs_remove",
        FileKind => "fs_stat tells what is there",
        FileDenied => "use a path below /workspace, /home/user or /tmp",
        DirectoryNotEmpty => "give `recursive: true` to remove all that is in it",
        DiskFull => "remove files with fs_remove, or make a session with a larger `disk_mib`",
        CwdNotFound => "make the directory first, or leave `cwd` out",
        NameTaken => "give its name as `session` to work in the one that is there, or choose another name",
        TooManyTasks => "task_cancel one that is not needed, or wait for one to end",
        NoPlace | QueueFull | LimitTooHigh => {
            "end sessions that are not needed (session_end), ask for less, or try again later"
        }
        QuotaExceeded => "end sessions that are not needed (session_end), or ask the operator for more",
        OutputLost | OffsetBeyondEnd => "task_get_status tells which bytes of the output there are",
        NoStdin => "only tasks of run_background take input",
        StdinFull => "the program does not read what it was sent: send the rest when it does",
        EgressUnavailable => "ask for less: egress packages, or `allow` with the hosts that are needed",
        TemplateNotFound | TemplateUnavailable => "leave `template` out for the usual one",
        TokenMissing | TokenInvalid | TokenRevoked | TokenExpired | TokenScope => {
            "the token of this MCP server is not good for that: ask the operator for one (`berth token create`)"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model has no shell on the operator's machine. Red when one of the reasons above loses its arm.
    #[test]
    fn hints_name_tools_and_not_commands() {
        for reason in [Reason::SessionNotFound, Reason::TaskNotFound, Reason::FileNotFound, Reason::NameTaken]
        {
            let said = hint(reason).expect("a hint of its own");
            assert!(!said.contains("`berth "), "{said}");
        }
    }

    #[test]
    fn a_problem_is_bounded_and_says_what_to_do() {
        let problem = Problem::new("x".repeat(1 << 20), "do that\u{1b}[2J");
        let told = serde_json::to_value(problem.into_result()).unwrap();
        assert_eq!(told["isError"], true);
        let text = told["content"][0]["text"].as_str().unwrap();
        assert!(text.len() < 3000 && text.ends_with("hint: do that\\x1b[2J"), "{}", text.len());
    }
}
