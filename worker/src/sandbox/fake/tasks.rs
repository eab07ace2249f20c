//! One fake task: its state, its streams, its end.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use berth_proto::{
    SessionId, TaskId, convert,
    domain::{Labels, Outcome, Program, TaskSpec, Timeout},
    secret::{self, Given},
    spawn::spawn,
    trace::{self, TraceContext},
    v1,
};
use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    agent::Machine,
    commands::{self, Exit},
    files::Tree,
    lock,
    output::Output,
};

pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) session: SessionId,
    pub(super) spec: TaskSpec,
    pub(super) asked: v1::TaskSpec,
    /// That started it.
    pub(super) request: Option<TraceContext>,
    pub(super) pid: u32,
    pub(super) env: Labels,
    pub(super) secret_files: BTreeMap<String, Bytes>,
    pub(super) started_at: SystemTime,
    pub(super) started: Instant,
    pub(super) timeout: Option<Duration>,
    pub(super) state: Mutex<State>,
    /// Marked changed whenever `state` did.
    pub(super) changed: watch::Sender<()>,
    /// Why it shall end. The first to say so is right.
    pub(super) stop: watch::Sender<Option<Outcome>>,
    pub(super) frozen: watch::Receiver<bool>,
    pub(super) machine: std::sync::Weak<Machine>,
}

pub(super) struct State {
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) stdin: VecDeque<Bytes>,
    pub(super) stdin_taken: u64,
    pub(super) stdin_open: bool,
    pub(super) watchers: usize,
    pub(super) end: Option<v1::TaskEnd>,
}

impl Task {
    pub fn new(
        session: SessionId,
        spec: TaskSpec,
        asked: v1::TaskSpec,
        pid: u32,
        Given { env, files: secret_files }: Given,
        machine: &Arc<Machine>,
        default_timeout: Option<Duration>,
    ) -> Self {
        let timeout = match spec.timeout {
            Timeout::Default if spec.detached => None,
            Timeout::Default => default_timeout,
            Timeout::Never => None,
            Timeout::After(after) => Some(after),
        };
        Self {
            id: TaskId::new(),
            session,
            request: trace::current(),
            pid,
            env,
            secret_files,
            started_at: berth_proto::world::now(),
            started: Instant::now(),
            timeout,
            state: Mutex::new(State {
                stdout: Output::new(spec.spool_bytes),
                stderr: Output::new(spec.spool_bytes),
                stdin: VecDeque::new(),
                stdin_taken: 0,
                stdin_open: spec.stdin,
                watchers: 0,
                end: None,
            }),
            changed: watch::channel(()).0,
            stop: watch::channel(None).0,
            frozen: machine.frozen.subscribe(),
            machine: Arc::downgrade(machine),
            spec,
            asked,
        }
    }

    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The request as it came, for comparison with a later one.
    pub fn asked(&self) -> &v1::TaskSpec {
        &self.asked
    }

    /// What it runs, in one line.
    pub fn command_line(&self) -> String {
        match &self.spec.program {
            Program::Argv(argv) => argv.join(" "),
            Program::Shell(line) => line.clone(),
        }
    }

    pub fn env(&self) -> &Labels {
        &self.env
    }

    pub fn done(&self) -> bool {
        lock(&self.state).end.is_some()
    }

    /// Asks it to end, with this outcome. A second wish changes nothing.
    pub fn stop(&self, outcome: Outcome) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            if first {
                *stop = Some(outcome);
            }
            first
        });
    }

    /// Returns when it is done.
    pub async fn wait(&self) {
        let mut changed = self.changed.subscribe();
        while !self.done() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Runs it to its end.
    pub async fn supervise(self: Arc<Self>, machine: Arc<Machine>) {
        self.orphan_watch();
        let mut stop = self.stop.subscribe();
        let cwd = commands::cwd_or_workspace(&self.spec.cwd);
        let outcome = tokio::select! {
            biased;
            stop = stop.wait_for(Option::is_some) => stop.ok().and_then(|s| *s).unwrap_or(Outcome::SandboxFailed),
            () = expire(self.timeout) => Outcome::TimedOut,
            exit = commands::run(&self, &self.spec.program, cwd) => match exit {
                Exit::Code(code) => Outcome::Exited(code),
                Exit::Signal(signal) => Outcome::Signaled(signal),
                Exit::OutOfMemory => Outcome::OutOfMemory,
            },
        };
        let duration = self.started.elapsed();
        let message = match outcome {
            Outcome::Exited(commands::NOT_FOUND) => "the program was not found".to_owned(),
            Outcome::TimedOut => format!("timed out after {:?}", self.timeout.unwrap_or_default()),
            _ => String::new(),
        };
        {
            let mut state = lock(&self.state);
            state.stdin_open = false;
            state.end = Some(v1::TaskEnd {
                outcome: Some(outcome.into()),
                message,
                ended_at: Some(convert::time_out(berth_proto::world::now())),
                duration: Some(convert::duration_out(duration)),
                usage: Some(v1::Usage {
                    oom_kills: u64::from(outcome == Outcome::OutOfMemory),
                    ..Default::default()
                }),
            });
        }
        machine.finished(&self);
        self.changed.send_replace(());
    }

    /// Cancels an attached task that nobody watches for its reattach grace.
    fn orphan_watch(self: &Arc<Self>) {
        if self.spec.detached {
            return;
        }
        let task = self.clone();
        spawn("fake-orphan", async move {
            let mut changed = task.changed.subscribe();
            let mut alone_since = Instant::now();
            loop {
                let watched = {
                    let state = lock(&task.state);
                    if state.end.is_some() {
                        return;
                    }
                    state.watchers > 0
                };
                if watched {
                    alone_since = Instant::now();
                }
                tokio::select! {
                    result = changed.changed() => if result.is_err() { return },
                    () = tokio::time::sleep_until(alone_since + task.spec.reattach_grace), if !watched => {
                        task.stop(Outcome::Cancelled);
                        return;
                    }
                }
            }
        });
    }

    pub async fn write(&self, to_stderr: bool, data: &[u8]) {
        let over = {
            let mut state = lock(&self.state);
            let written = state.stdout.length() + state.stderr.length();
            let left = self.spec.output_limit.map_or(u64::MAX, |limit| limit.saturating_sub(written));
            let fits = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            // A terminal has one stream.
            let stream =
                if to_stderr && self.spec.pty.is_none() { &mut state.stderr } else { &mut state.stdout };
            stream.append(&data[..fits]);
            fits < data.len()
        };
        self.changed.send_replace(());
        if over {
            self.stop(Outcome::OutputLimit);
            std::future::pending::<()>().await;
        }
    }

    /// The next piece of standard input; `None` at its end.
    pub async fn read_stdin(&self) -> Option<Bytes> {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let mut state = lock(&self.state);
                if let Some(data) = state.stdin.pop_front() {
                    return Some(data);
                }
                if !state.stdin_open {
                    return None;
                }
            }
            changed.changed().await.ok()?;
        }
    }

    /// Returns when the session is not frozen.
    pub async fn thawed(&self) {
        let mut frozen = self.frozen.clone();
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A file's content.
    pub fn file(&self, path: &str) -> Option<Bytes> {
        if let Some(name) = path.strip_prefix(secret::DIR).and_then(|rest| rest.strip_prefix('/')) {
            return self.secret_files.get(name).cloned();
        }
        let machine = self.machine.upgrade()?;
        let tree: std::sync::MutexGuard<'_, Tree> = lock(&machine.files);
        tree.content(path)
    }

    /// The task as it stands.
    pub fn snapshot(&self) -> v1::Task {
        let state = lock(&self.state);
        let info = |output: &Output| {
            Some(v1::StreamInfo { length: output.length(), first_kept: output.first_kept() })
        };
        let status = if state.end.is_some() { v1::TaskState::Done } else { v1::TaskState::Running };
        v1::Task {
            id: self.id.to_string(),
            session_id: self.session.to_string(),
            state: status.into(),
            spec: Some(convert::shown_spec(self.asked.clone())),
            traceparent: self.request.map(|request| request.to_string()).unwrap_or_default(),
            pid: self.pid,
            started_at: Some(convert::time_out(self.started_at)),
            stdout: info(&state.stdout),
            stderr: info(&state.stderr),
            end: state.end.clone(),
        }
    }
}

async fn expire(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}
