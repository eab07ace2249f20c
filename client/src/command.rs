//! What to run, in the manner of `std::process::Command`, and what came of it.

use std::time::Duration;

use berth_proto::{convert::duration_out, v1};
use bytes::Bytes;

use crate::{PtySize, TaskId, domain::*, model::TaskEnd};

/// Collected output beyond this many bytes of a stream is dropped, unless
/// [`Command::collect_limit`] says otherwise. As much as the server keeps by default.
pub(crate) const COLLECT_LIMIT: usize = 64 << 20;

/// A program to run in a session.
#[derive(Clone, Debug)]
pub struct Command {
    program: Program,
    cwd: String,
    env: Labels,
    timeout: Timeout,
    output_limit: u64,
    spool_bytes: u64,
    pty: bool,
    pty_size: Option<PtySize>,
    stdin: bool,
    detached: bool,
    reattach_grace: Option<Duration>,
    secrets: Vec<SecretUse>,
    pub(crate) input: Option<Bytes>,
    pub(crate) request_id: Option<String>,
    pub(crate) retry_after_recovery: bool,
    pub(crate) collect_limit: usize,
}

impl Command {
    fn of(program: Program) -> Self {
        Self {
            program,
            cwd: String::new(),
            env: Labels::new(),
            timeout: Timeout::Default,
            output_limit: 0,
            spool_bytes: 0,
            pty: false,
            pty_size: None,
            stdin: false,
            detached: false,
            reattach_grace: None,
            secrets: Vec::new(),
            input: None,
            request_id: None,
            retry_after_recovery: false,
            collect_limit: COLLECT_LIMIT,
        }
    }

    /// A program, looked up in PATH when its name has no slash.
    pub fn new(program: impl Into<String>) -> Self {
        Self::of(Program::Argv(vec![program.into()]))
    }

    /// A program with its arguments. An empty list is refused by the server.
    pub fn argv<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::of(Program::Argv(args.into_iter().map(Into::into).collect()))
    }

    /// A line for the shell.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::of(Program::Shell(line.into()))
    }

    /// One more argument; on a shell line, one more word as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        match &mut self.program {
            Program::Argv(args) => args.push(arg.into()),
            Program::Shell(line) => {
                line.push(' ');
                line.push_str(&arg.into());
            }
        }
        self
    }

    #[must_use]
    pub fn args<S: Into<String>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, |command, arg| command.arg(arg))
    }

    /// Where it starts: relative to the workspace, or absolute inside the sandbox.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<String>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// A variable, on top of the session's.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// A secret of the tenant's, as the file `/run/secrets/NAME`, which is there while the task runs. One that can't be had
    /// is an error ([`crate::Reason::SecretUnusable`]), and nothing is started.
    #[must_use]
    pub fn secret(mut self, name: impl Into<String>) -> Self {
        self.secrets.push(SecretUse { name: name.into(), env: None });
        self
    }

    /// A secret of the tenant's, as a variable of this task alone.
    #[must_use]
    pub fn secret_env(mut self, variable: impl Into<String>, name: impl Into<String>) -> Self {
        self.secrets.push(SecretUse { name: name.into(), env: Some(variable.into()) });
        self
    }

    /// Wall-clock time that it may take; zero is none. Without this, the session's
    /// default holds (300 s unless set otherwise; none for a detached task).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = if timeout.is_zero() { Timeout::Never } else { Timeout::After(timeout) };
        self
    }

    /// Bytes on both streams together at which it is ended.
    #[must_use]
    pub fn output_limit(mut self, bytes: u64) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Bytes kept of each stream on the worker (64 MiB by default); the oldest go first.
    #[must_use]
    pub fn spool_bytes(mut self, bytes: u64) -> Self {
        self.spool_bytes = bytes;
        self
    }

    /// On a terminal of its own, of the session's default size: all output is on stdout,
    /// and standard input is open.
    #[must_use]
    pub fn pty(mut self) -> Self {
        self.pty = true;
        self
    }

    /// On a terminal of this size.
    #[must_use]
    pub fn pty_size(mut self, size: PtySize) -> Self {
        self.pty = true;
        self.pty_size = Some(size);
        self
    }

    /// Keeps standard input open for [`crate::TaskHandle::write_stdin`].
    #[must_use]
    pub fn stdin(mut self, open: bool) -> Self {
        self.stdin = open;
        self
    }

    /// What [`crate::Session::run`] writes to its standard input before closing it.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = true;
        self.input = Some(bytes.into());
        self
    }

    /// Lives on without a watcher.
    #[must_use]
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// How long an attached task lives without a watcher (30 s by default).
    #[must_use]
    pub fn reattach_grace(mut self, grace: Duration) -> Self {
        self.reattach_grace = Some(grace);
        self
    }

    /// The same id in a session starts one task only. Without this, each run or start
    /// makes an id of its own.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// What to do where the answer to a start was lost, and the session went back to a checkpoint before it could be
    /// asked again: nobody knows then whether the task has run. By default that is an error (SESSION_RECOVERED, and
    /// [`crate::Error::in_doubt`]); with this the task is started (again), in the files of the checkpoint.
    #[must_use]
    pub fn retry_after_recovery(mut self, retry: bool) -> Self {
        self.retry_after_recovery = retry;
        self
    }

    /// Bytes of each stream that [`crate::Session::run`] holds at most (64 MiB by
    /// default). What comes after is dropped, and [`Output::truncated`] is set.
    #[must_use]
    pub fn collect_limit(mut self, bytes: usize) -> Self {
        self.collect_limit = bytes;
        self
    }

    pub(crate) fn to_wire(&self) -> v1::TaskSpec {
        let program = match &self.program {
            Program::Argv(args) => v1::task_spec::Program::Argv(v1::Argv { args: args.clone() }),
            Program::Shell(line) => v1::task_spec::Program::Shell(line.clone()),
        };
        let secret = |secret: &SecretUse| v1::SecretUse {
            name: secret.name.clone(),
            env: secret.env.clone().unwrap_or_default(),
        };
        v1::TaskSpec {
            program: Some(program),
            cwd: self.cwd.clone(),
            env: self.env.clone().into_iter().collect(),
            timeout: match self.timeout {
                Timeout::Default => None,
                Timeout::Never => Some(duration_out(Duration::ZERO)),
                Timeout::After(after) => Some(duration_out(after)),
            },
            output_limit: self.output_limit,
            spool_bytes: self.spool_bytes,
            pty: self.pty,
            pty_size: self.pty_size.map(Into::into),
            stdin: self.stdin,
            detached: self.detached,
            reattach_grace: self.reattach_grace.map(duration_out),
            secrets: self.secrets.iter().map(secret).collect(),
        }
    }

    /// The caller's id, or one of its own.
    pub(crate) fn key(&self) -> String {
        self.request_id.clone().unwrap_or_else(|| TaskId::new().to_string())
    }
}

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Output {
    pub task: TaskId,
    pub outcome: Outcome,
    /// For people, when there is more to say than the outcome does.
    pub message: String,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Not all of the output is here: it was more than the collect limit, or more than
    /// the worker keeps.
    pub truncated: bool,
    pub duration: Duration,
    pub usage: Usage,
}

impl Output {
    pub(crate) fn new(task: TaskId, end: TaskEnd, stdout: Vec<u8>, stderr: Vec<u8>, truncated: bool) -> Self {
        let TaskEnd { outcome, message, duration, usage, .. } = end;
        Self { task, outcome, message, stdout, stderr, truncated, duration, usage }
    }

    /// Exit code 0.
    pub fn success(&self) -> bool {
        self.outcome == Outcome::Exited(0)
    }

    /// The exit code, if the program exited by itself.
    pub fn code(&self) -> Option<i32> {
        match self.outcome {
            Outcome::Exited(code) => Some(code),
            _ => None,
        }
    }

    /// stdout as text; what is not UTF-8 becomes U+FFFD.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// stderr as text; what is not UTF-8 becomes U+FFFD.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
