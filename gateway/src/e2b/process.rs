//! `process.Process`: what a sandbox runs, as tasks of its session.
//!
//! A process is known by its pid in the sandbox, which a task tells. It is looked for among the tasks that run, so nothing
//! is kept here, and a pid that the kernel has given to another process since never means the old task.
//!
//! A process outlives its client's connection: its task is detached. `Connect-Timeout-Ms` of a start is the task's own
//! timeout, so it holds whatever becomes of the client, the gateway and the way between them; the stream then ends with
//! `deadline_exceeded`, as it also does, a little later, should the task's end not be told.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use berth_client::{
    Command, Outcome, PtySize, Session, TaskEvent, TaskHandle, TaskStream, WatchOptions, model::TaskInfo,
};
use berth_proto::spawn::spawn;
use http::{HeaderMap, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    body::{Body, Upload},
    connect::{self, Frames, Sender},
    paths,
    pool::Lease,
    problem::Problem,
};

/// Between a task's own timeout and the end of its stream without its word.
const MARGIN: Duration = Duration::from_secs(5);
/// Between keepalives, unless the client wants another.
const KEEPALIVE: Duration = Duration::from_secs(90);

#[derive(Deserialize, Default)]
#[serde(default)]
struct Start {
    process: Config,
    pty: Option<Pty>,
    tag: Option<String>,
    stdin: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    cmd: String,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct Pty {
    size: Size,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct Size {
    cols: u16,
    rows: u16,
}

impl From<Pty> for PtySize {
    fn from(pty: Pty) -> Self {
        Self { cols: pty.size.cols, rows: pty.size.rows }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Selector {
    pid: Option<u32>,
    tag: Option<String>,
}

/// Of every call that is about one process.
#[derive(Deserialize, Default)]
#[serde(default)]
struct About {
    process: Selector,
    input: Input,
    signal: Option<Signal>,
    pty: Option<Pty>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Input {
    stdin: Option<String>,
    pty: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Signal {
    Number(i32),
    Name(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StreamInput {
    start: Option<About>,
    data: Option<About>,
}

/// One sandbox, for one call.
pub struct Processes {
    pub lease: Lease,
    pub session: Session,
}

impl Processes {
    /// `Start`: begins a process, and streams what it says.
    pub async fn start(self, headers: &HeaderMap, body: Upload) -> Result<Response<Body>, Problem> {
        let timeout = connect::timeout(headers)?;
        let keepalive = keepalive(headers);
        let command = command(headers, body, timeout).await;
        let (command, is_pty) = match command {
            Ok(command) => command,
            Err(problem) => return Ok(connect::single(Err(problem))),
        };
        let stream = match self.session.stream(command).await.map_err(Problem::from) {
            Ok(stream) => stream,
            Err(problem) if problem.is_gone() => return Err(problem),
            Err(problem) => return Ok(connect::single(Err(problem))),
        };
        let pid = stream.info().pid;
        let deadline = timeout.map(|timeout| Instant::now() + timeout + MARGIN);
        Ok(connect::stream(|sender| async move {
            // What is leased is in use for as long as the stream is.
            let _lease = self.lease;
            let task = stream.handle().clone();
            let told = Told { sender, pid, is_pty, keepalive };
            let result = told.within(deadline, stream).await;
            if result.as_ref().is_err_and(|problem| problem.is("deadline_exceeded")) {
                // Its own timeout has ended it, or this does. The client need not wait for it.
                spawn("e2b kill", async move { drop(task.cancel_with(Duration::ZERO).await) });
            }
            result
        }))
    }

    /// `Connect`: streams what a process says from now on.
    pub async fn connect(self, headers: &HeaderMap, body: Upload) -> Result<Response<Body>, Problem> {
        let deadline = connect::timeout(headers)?.map(|timeout| Instant::now() + timeout);
        let keepalive = keepalive(headers);
        let watched = async {
            let about: About = Frames::new(headers, body)?.only().await?;
            let task = self.find(&about.process).await?;
            let options = WatchOptions {
                stdout_offset: task.stdout.length,
                stderr_offset: task.stderr.length,
                skip_lost: false,
                follow: true,
            };
            Ok((self.session.task(task.id).watch_from(options).await?, task))
        };
        let (stream, task) = match watched.await {
            Ok(watched) => watched,
            Err(problem) if Problem::is_gone(&problem) => return Err(problem),
            Err(problem) => return Ok(connect::single(Err(problem))),
        };
        Ok(connect::stream(|sender| async move {
            let _lease = self.lease;
            Told { sender, pid: task.pid, is_pty: task.program.pty, keepalive }.within(deadline, stream).await
        }))
    }

    /// `List`: what runs.
    pub async fn list(&self) -> Result<Value, Problem> {
        let tasks = self.session.running_tasks().await?;
        let processes: Vec<Value> = tasks.iter().filter(|task| task.pid > 0).map(listed).collect();
        Ok(json!({ "processes": processes }))
    }

    /// `Update`: a new size of its terminal.
    pub async fn update(&self, message: Message) -> Result<Value, Problem> {
        let task = self.handle(&message.0.process).await?;
        if let Some(pty) = message.0.pty {
            task.resize(pty.into()).await?;
        }
        Ok(json!({}))
    }

    pub async fn send_input(&self, message: Message) -> Result<Value, Problem> {
        let task = self.handle(&message.0.process).await?;
        task.write_stdin(&message.0.input.bytes()?).await?;
        Ok(json!({}))
    }

    pub async fn close_stdin(&self, message: Message) -> Result<Value, Problem> {
        self.handle(&message.0.process).await?.close_stdin().await?;
        Ok(json!({}))
    }

    pub async fn send_signal(&self, message: Message) -> Result<Value, Problem> {
        let number = match message.0.signal {
            Some(Signal::Number(number)) => number,
            Some(Signal::Name(name)) if name == "SIGNAL_SIGTERM" => 15,
            Some(Signal::Name(name)) if name == "SIGNAL_SIGKILL" => 9,
            _ => return Err(Problem::invalid("the signal is SIGNAL_SIGTERM or SIGNAL_SIGKILL")),
        };
        self.handle(&message.0.process).await?.signal(number).await?;
        Ok(json!({}))
    }

    /// `StreamInput`: input as it comes, in one call.
    pub async fn stream_input(&self, headers: &HeaderMap, body: Upload) -> Result<Response<Body>, Problem> {
        let fed = async {
            let mut frames = Frames::new(headers, body)?;
            let first: StreamInput = frames.next().await?.unwrap_or_default();
            let wrong = || Problem::invalid("the first message says of which process");
            let task = self.handle(&first.start.ok_or_else(wrong)?.process).await?;
            while let Some(next) = frames.next::<StreamInput>().await? {
                if let Some(data) = next.data {
                    task.write_stdin(&data.input.bytes()?).await?;
                }
            }
            Ok(json!({}))
        };
        let result = match connect::timeout(headers)? {
            None => fed.await,
            Some(limit) => tokio::time::timeout(limit, fed).await.unwrap_or_else(|_| Err(over())),
        };
        match result {
            Err(problem) if problem.is_gone() => Err(problem),
            result => Ok(connect::single(result)),
        }
    }

    async fn handle(&self, selector: &Selector) -> Result<TaskHandle, Problem> {
        Ok(self.session.task(self.find(selector).await?.id))
    }

    async fn find(&self, selector: &Selector) -> Result<TaskInfo, Problem> {
        if selector.tag.is_some() {
            return Err(Problem::unserved("processes are found by their pid: tags are not served"));
        }
        let pid = selector.pid.filter(|pid| *pid > 0);
        let pid = pid.ok_or_else(|| Problem::invalid("the call does not say of which process"))?;
        let tasks = self.session.running_tasks().await?;
        let found = tasks.into_iter().find(|task| task.pid == pid);
        found.ok_or_else(|| {
            Problem::not_found(format!("process with pid {pid} is not there: it may have ended"))
        })
    }
}

/// A message about one process.
pub struct Message(About);

impl Message {
    pub async fn read(headers: &HeaderMap, body: Upload) -> Result<Self, Problem> {
        connect::unary(headers, body).await.map(Self)
    }
}

impl Input {
    fn bytes(&self) -> Result<Vec<u8>, Problem> {
        let text = self.stdin.as_ref().or(self.pty.as_ref());
        let text = text.ok_or_else(|| Problem::invalid("the message has no input"))?;
        STANDARD.decode(text).map_err(|error| Problem::invalid(format!("the input is no base64: {error}")))
    }
}

fn over() -> Problem {
    Problem::deadline("the call took longer than its timeout")
}

pub fn keepalive(headers: &HeaderMap) -> Duration {
    let asked = headers.get("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.filter(|seconds| (1..=3600).contains(seconds)).map_or(KEEPALIVE, Duration::from_secs)
}

async fn command(
    headers: &HeaderMap,
    body: Upload,
    timeout: Option<Duration>,
) -> Result<(Command, bool), Problem> {
    let start: Start = Frames::new(headers, body)?.only().await?;
    paths::user(headers)?;
    if start.tag.is_some_and(|tag| !tag.is_empty()) {
        return Err(Problem::unserved(
            "tags are not served: leave `tag` out, and find the process by its pid",
        ));
    }
    let Config { cmd, args, envs, cwd } = start.process;
    let cwd = paths::absolute(&cwd.unwrap_or_default())?;
    let mut command = Command::new(cmd)
        .args(args)
        .cwd(cwd)
        .detached(true)
        // None at all is zero there.
        .timeout(timeout.map_or(Duration::ZERO, |timeout| timeout.max(Duration::from_millis(1))))
        // Older clients don't say, and write.
        .stdin(start.stdin.unwrap_or(true));
    for (name, value) in envs {
        command = command.env(name, value);
    }
    if let Some(pty) = start.pty {
        command = command.pty_size(pty.into());
    }
    Ok((command, start.pty.is_some()))
}

fn listed(task: &TaskInfo) -> Value {
    let argv = &task.program.argv;
    let (cmd, args) = match (argv.split_first(), &task.program.shell) {
        (Some((cmd, args)), _) => (cmd.clone(), args.to_vec()),
        (None, line) => ("/bin/sh".to_owned(), vec!["-c".to_owned(), line.clone().unwrap_or_default()]),
    };
    json!({"pid": task.pid, "config": {"cmd": cmd, "args": args, "cwd": task.program.cwd}})
}

/// Tells a client what a process does.
struct Told {
    sender: Sender,
    pid: u32,
    is_pty: bool,
    keepalive: Duration,
}

impl Told {
    async fn within(self, deadline: Option<Instant>, stream: TaskStream) -> Result<(), Problem> {
        match deadline {
            None => self.all(stream).await,
            Some(at) => tokio::time::timeout_at(at, self.all(stream)).await.unwrap_or_else(|_| Err(over())),
        }
    }

    async fn all(self, mut stream: TaskStream) -> Result<(), Problem> {
        self.event(json!({"start": {"pid": self.pid}})).await;
        let mut quiet = interval_at(Instant::now() + self.keepalive, self.keepalive);
        quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                event = stream.next() => event?,
                _ = quiet.tick() => {
                    self.event(json!({"keepalive": {}})).await;
                    continue;
                }
            };
            quiet.reset();
            match event {
                Some(TaskEvent::Stdout(data)) if self.is_pty => self.output("pty", &data).await,
                Some(TaskEvent::Stdout(data)) => self.output("stdout", &data).await,
                Some(TaskEvent::Stderr(data)) => self.output("stderr", &data).await,
                Some(TaskEvent::Lost { .. }) => {}
                Some(TaskEvent::Ended(info)) => {
                    self.event(json!({"end": ended(&info)?})).await;
                    return Ok(());
                }
                None => return Err(Problem::unavailable("the stream ended before the process did")),
            }
        }
    }

    async fn output(&self, kind: &str, data: &[u8]) {
        self.event(json!({"data": {kind: STANDARD.encode(data)}})).await;
    }

    async fn event(&self, event: Value) {
        self.sender.send(&json!({"event": event})).await;
    }
}

/// How a process ended, in the words of E2B's own; or why nobody can say.
fn ended(info: &TaskInfo) -> Result<Value, Problem> {
    let end =
        info.end.as_ref().ok_or_else(|| Problem::unavailable("the process ended without an outcome"))?;
    let killed =
        |why: &str| json!({"exitCode": -1, "exited": false, "status": "signal: killed", "error": why});
    let more = |why: &str| match end.message.as_str() {
        "" => why.to_owned(),
        message => format!("{why}: {message}"),
    };
    Ok(match end.outcome {
        Outcome::Exited(0) => json!({"exitCode": 0, "exited": true, "status": "exit status 0"}),
        Outcome::Exited(code) => {
            let status = format!("exit status {code}");
            json!({"exitCode": code, "exited": true, "status": status, "error": status})
        }
        Outcome::Signaled(signal) => {
            let status = format!("signal: {}", signal_name(signal));
            json!({"exitCode": -1, "exited": false, "status": status, "error": status})
        }
        Outcome::TimedOut => return Err(over()),
        Outcome::OutOfMemory => killed(&more("signal: killed (out of memory)")),
        Outcome::OutputLimit => killed(&more("signal: killed (too much output)")),
        Outcome::Cancelled => killed(&more("signal: killed")),
        Outcome::SessionEnded | Outcome::WorkerLost | Outcome::SandboxFailed => {
            return Err(Problem::unavailable(more("the sandbox ended while the process ran")));
        }
    })
}

/// As Go's runtime names it, which E2B's agent is written in.
fn signal_name(signal: i32) -> String {
    match signal {
        1 => "hangup".to_owned(),
        2 => "interrupt".to_owned(),
        3 => "quit".to_owned(),
        6 => "aborted".to_owned(),
        9 => "killed".to_owned(),
        11 => "segmentation fault".to_owned(),
        13 => "broken pipe".to_owned(),
        15 => "terminated".to_owned(),
        other => format!("signal {other}"),
    }
}
