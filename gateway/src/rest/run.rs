//! `POST /v1/run`: a program to its end, in one request.
//!
//! It runs in a session that is named, or in one of its own, which is ended with it. The work is done by a task that goes
//! on by itself, and the answer is made of what it tells: so a client that goes away cuts nothing off halfway. The task
//! notices that nobody listens, cancels the program, and ends the session that it made.

use std::{collections::BTreeMap, time::Duration};

use berth_client::{
    Command, CreateOptions, Egress, Error, Session, Std, TaskEvent, TaskStream, domain::Preset,
    model::TaskEnd,
};
use berth_proto::spawn::spawn;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Call, events::events, json, problem::Problem, views::named};
use crate::{
    http::{Body, text},
    text::base64,
    told::Ended,
};

/// Bytes of each stream in an answer, where nothing else is asked for.
const USUAL_OUTPUT: usize = 256 << 10;
/// ... and at most.
const MOST_OUTPUT: usize = 16 << 20;
/// Pieces of output that wait for a slow reader. The program does not: the worker keeps its output.
const WAITING: usize = 16;
/// A session of its own lives no longer than this, should nobody be left to end it.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// And no longer than this without a task.
const IDLE: Duration = Duration::from_secs(300);

/// A program, and where it shall run.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The program and its arguments. Either this, `command` or `code`.
    argv: Option<Vec<String>>,
    /// A line (or several) for the shell.
    command: Option<String>,
    /// Python.
    code: Option<String>,
    /// Text for its standard input. Left out: it has none.
    stdin: Option<String>,
    /// Directory to start in: absolute, or relative to /workspace.
    cwd: Option<String>,
    /// Environment variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Time that it may take; then all that it started is ended. Left out: the session's usual, mostly 300.
    timeout_seconds: Option<f64>,
    /// How much of each stream to keep for an answer in JSON. Left out: 256 KiB; at most 16 MiB.
    max_output_bytes: Option<usize>,
    /// How output is written in JSON. text: bytes that are no UTF-8 become U+FFFD.
    #[serde(default)]
    encoding: Encoding,
    /// Session to run in, by id or name. Left out: one of its own, which ends with it.
    session: Option<String>,
    /// Labels that its worker must have. As all that follows, for a session of its own.
    #[serde(default)]
    selector: BTreeMap<String, String>,
    /// -100 to 100; higher goes first in the queue. Left out: 0.
    priority: Option<i32>,
    /// How long to wait for a place. Left out: 30; 0: not at all.
    wait_seconds: Option<f64>,
    template: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// CPU in cores, for example 0.5.
    cpu: Option<f64>,
    memory_bytes: Option<u64>,
    disk_bytes: Option<u64>,
    /// What it may reach: none, packages (the package index) or full (any public address).
    egress: Option<Reach>,
    /// Hosts that it may reach beside that, each as host, *.domain or host:port.
    #[serde(default)]
    allow: Vec<String>,
    /// Secrets that it is given, each as the file /run/secrets/NAME.
    #[serde(default)]
    secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    #[default]
    Text,
    Base64,
}

impl Encoding {
    pub fn of(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
            Self::Base64 => base64(bytes),
        }
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Reach {
    None,
    Packages,
    Full,
}

/// What came of it.
#[derive(Serialize, JsonSchema)]
pub struct RunAnswer {
    /// The session it ran in.
    session: String,
    task: String,
    #[serde(flatten)]
    end: Ended,
    stdout: String,
    stderr: String,
    /// All bytes that it wrote.
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// Not all of the output is in this answer: what came first is.
    truncated: bool,
}

impl RunRequest {
    fn command(&self) -> Result<Command, Problem> {
        let mut command = match (&self.argv, &self.command, &self.code) {
            (Some(argv), None, None) if !argv.is_empty() => Command::argv(argv),
            (None, Some(line), None) if !line.trim().is_empty() => Command::shell(line),
            (None, None, Some(code)) => Command::argv(["python3", "-c", code]),
            _ => {
                return Err(Problem::invalid(
                    "there must be one of `argv`, `command` and `code`, with something in it",
                )
                .hint(r#"send for example {"command": "echo hello"}"#));
            }
        };
        if let Some(cwd) = &self.cwd {
            command = command.cwd(cwd);
        }
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        if let Some(timeout) = seconds("timeout_seconds", self.timeout_seconds, f64::MIN_POSITIVE)? {
            command = command.timeout(timeout);
        }
        command = self.secrets.iter().fold(command, |command, name| command.secret(name));
        Ok(command.stdin(self.stdin.is_some()))
    }

    fn options(&self) -> Result<CreateOptions, Problem> {
        let mut options = CreateOptions::new().ttl(TTL).idle_timeout(IDLE);
        for (name, value) in &self.labels {
            options = options.label(name, value);
        }
        for (name, value) in &self.selector {
            options = options.on_worker(name, value);
        }
        if let Some(template) = &self.template {
            options = options.template(template);
        }
        if let Some(priority) = self.priority {
            options = options.priority(priority);
        }
        if let Some(wait) = seconds("wait_seconds", self.wait_seconds, 0.0)? {
            options = options.wait(wait);
        }
        if let Some(cpu) = self.cpu {
            if !(0.01..=1000.0).contains(&cpu) {
                return Err(Problem::invalid(format!("`cpu` is {cpu}")).hint("give 0.01 to 1000 cores"));
            }
            options = options.cpu_millis((cpu * 1000.0).round() as u32);
        }
        if let Some(bytes) = self.memory_bytes {
            options = options.memory_bytes(bytes);
        }
        if let Some(bytes) = self.disk_bytes {
            options = options.disk_bytes(bytes);
        }
        if self.egress.is_some() || !self.allow.is_empty() {
            options = options.egress(self.policy()?);
        }
        Ok(options)
    }

    fn policy(&self) -> Result<Egress, Problem> {
        let preset = match self.egress {
            None | Some(Reach::None) => Preset::None,
            Some(Reach::Packages) => Preset::Packages,
            Some(Reach::Full) => Preset::Full,
        };
        let allow = self.allow.iter().map(|rule| rule.parse()).collect::<Result<Vec<_>, _>>();
        let allow = allow.map_err(|error| {
            Problem::invalid(format!("a host in `allow` is no good: {error}"))
                .hint("write host, *.domain or host:port")
        })?;
        Ok(Egress { preset, allow })
    }

    /// Refuses what is for a session of its own where one was named: it would pass for granted.
    fn only_its_own(&self) -> Result<(), Problem> {
        let said = [
            ("selector", !self.selector.is_empty()),
            ("priority", self.priority.is_some()),
            ("wait_seconds", self.wait_seconds.is_some()),
            ("template", self.template.is_some()),
            ("labels", !self.labels.is_empty()),
            ("cpu", self.cpu.is_some()),
            ("memory_bytes", self.memory_bytes.is_some()),
            ("disk_bytes", self.disk_bytes.is_some()),
            ("egress", self.egress.is_some()),
            ("allow", !self.allow.is_empty()),
        ];
        match said.into_iter().find(|(_, said)| *said) {
            Some((name, _)) => Err(Problem::invalid(format!(
                "`{name}` is for a session of its own, and `session` names one"
            ))
            .hint("leave one of them out")),
            None => Ok(()),
        }
    }
}

/// A span, at least `least` and at most a day.
fn seconds(field: &str, value: Option<f64>, least: f64) -> Result<Option<Duration>, Problem> {
    const MOST: f64 = 86_400.0;
    match value {
        None => Ok(None),
        Some(value) if (least..=MOST).contains(&value) => Ok(Some(Duration::from_secs_f64(value))),
        Some(value) => {
            Err(Problem::invalid(format!("`{field}` is {value}"))
                .hint(format!("give seconds, at most {MOST}")))
        }
    }
}

/// What is told while it runs.
pub enum Told {
    Started { session: String, task: String },
    Output(Std, Bytes),
    Lost(Std, u64, u64),
    Ended(Box<TaskEnd>),
    Failed(Problem),
}

pub async fn run(call: Call) -> Result<Response<Body>, Problem> {
    super::query::known(&call.query, &[])?;
    let request: RunRequest = call.json()?;
    let command = request.command()?;
    let most = match request.max_output_bytes.unwrap_or(USUAL_OUTPUT) {
        most if (1..=MOST_OUTPUT).contains(&most) => most,
        most => {
            return Err(Problem::invalid(format!("`max_output_bytes` is {most}"))
                .hint(format!("give 1 to {MOST_OUTPUT}")));
        }
    };
    let client = call.caller.client.clone();
    let place = match &request.session {
        Some(session) => {
            request.only_its_own()?;
            Place::Named(client.session(named(&client, session).await?))
        }
        None => Place::New(client, Box::new(request.options()?)),
    };
    let as_events = text(&call.headers, header::ACCEPT.as_str())
        .is_some_and(|accept| accept.to_ascii_lowercase().contains("text/event-stream"));
    // Held until the answer is written.
    let room = if !as_events && most > USUAL_OUTPUT { Some(super::room(&call.caller)?) } else { None };
    let (tell, told) = mpsc::channel(WAITING);
    spawn("http run", work(place, command, request.stdin, tell));
    let response = match as_events {
        true => events(told, request.encoding),
        false => whole(told, request.encoding, most).await?,
    };
    let response = response.map(|body| {
        let held = body.map_frame(move |frame| {
            let _held = &room;
            frame
        });
        held.boxed_unsync()
    });
    Ok(call.caller.answered(response))
}

enum Place {
    Named(Session),
    New(berth_client::Client, Box<CreateOptions>),
}

/// Runs it and tells of it, until its end or until nobody listens.
async fn work(place: Place, command: Command, stdin: Option<String>, tell: mpsc::Sender<Told>) {
    let own = matches!(place, Place::New(..));
    let session = match place {
        Place::Named(session) => Ok(session),
        Place::New(client, options) => client.create_session(*options).await,
    };
    let session = match session {
        Ok(session) => session,
        Err(error) => return drop(tell.send(Told::Failed(error.into())).await),
    };
    // Made although nobody waits any more: it is ended all the same.
    if !tell.is_closed()
        && let Err(error) = program(&session, command, stdin, &tell).await
    {
        let _ = tell.send(Told::Failed(error.into())).await;
    }
    if own && let Err(error) = session.delete().await {
        tracing::warn!(session.id = %session.id(), ?error, "a session was not ended; its idle timeout ends it");
    }
}

async fn program(
    session: &Session,
    command: Command,
    stdin: Option<String>,
    tell: &mpsc::Sender<Told>,
) -> Result<(), Error> {
    let mut stream = session.stream(command).await?.skip_lost();
    let task = stream.handle().clone();
    let feed = async {
        // A program that ends before it has read all of it is no error here.
        if let Some(text) = stdin
            && task.write_stdin(text.as_bytes()).await.is_ok()
        {
            let _ = task.close_stdin().await;
        }
        std::future::pending::<()>().await
    };
    let started = Told::Started { session: session.id().to_string(), task: task.id().to_string() };
    let pass_on = async {
        if tell.send(started).await.is_err() {
            return Ok(false);
        }
        pass_on(&mut stream, tell).await
    };
    let heard = tokio::select! {
        heard = pass_on => heard?,
        () = tell.closed() => false,
        () = feed => unreachable!("the feed never ends"),
    };
    if !heard && let Err(error) = task.cancel().await {
        tracing::warn!(task.id = %task.id(), ?error, "a task was not cancelled; its grace without a watcher ends it");
    }
    Ok(())
}

/// Whether there was somebody to hear it to its end.
async fn pass_on(stream: &mut TaskStream, tell: &mpsc::Sender<Told>) -> Result<bool, Error> {
    while let Some(event) = stream.next().await? {
        let told = match event {
            TaskEvent::Stdout(data) => Told::Output(Std::Out, data),
            TaskEvent::Stderr(data) => Told::Output(Std::Err, data),
            TaskEvent::Lost { stream, from, to } => Told::Lost(stream, from, to),
            TaskEvent::Ended(info) => match info.end {
                Some(end) => Told::Ended(Box::new(end)),
                None => break,
            },
        };
        let last = matches!(told, Told::Ended(_));
        if tell.send(told).await.is_err() {
            return Ok(last);
        }
        if last {
            return Ok(true);
        }
    }
    let problem =
        Problem::not_found("the task ended, and nobody knows how").hint("run it again if that does no harm");
    Ok(tell.send(Told::Failed(problem)).await.is_ok())
}

/// A stream of output, its beginning kept.
#[derive(Default)]
struct Kept {
    data: Vec<u8>,
    total: u64,
}

impl Kept {
    fn push(&mut self, data: &[u8], most: usize) {
        self.total += data.len() as u64;
        let room = most - self.data.len();
        self.data.extend_from_slice(&data[..data.len().min(room)]);
    }
}

async fn whole(
    mut told: mpsc::Receiver<Told>,
    encoding: Encoding,
    most: usize,
) -> Result<Response<Body>, Problem> {
    let (mut out, mut err) = (Kept::default(), Kept::default());
    let (mut session, mut task) = (String::new(), String::new());
    while let Some(told) = told.recv().await {
        match told {
            Told::Started { session: of, task: id } => (session, task) = (of, id),
            Told::Output(Std::Out, data) => out.push(&data, most),
            Told::Output(Std::Err, data) => err.push(&data, most),
            Told::Lost(stream, from, to) => {
                let kept = if stream == Std::Out { &mut out } else { &mut err };
                kept.total += to.saturating_sub(from);
            }
            Told::Failed(problem) => return Err(problem),
            Told::Ended(end) => {
                let cut = |kept: &Kept| kept.total > kept.data.len() as u64;
                let answer = RunAnswer {
                    session,
                    task,
                    end: Ended::from(*end),
                    truncated: cut(&out) || cut(&err),
                    stdout: encoding.of(&out.data),
                    stderr: encoding.of(&err.data),
                    stdout_bytes: out.total,
                    stderr_bytes: err.total,
                };
                return Ok(json(StatusCode::OK, answer));
            }
        }
    }
    Err(Problem::not_found("nobody knows what came of it").hint("run it again if that does no harm"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(value: Value) -> RunRequest {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_program_is_one_of_three_and_bounded() {
        for bad in [
            json!({}),
            json!({"argv": []}),
            json!({"command": " "}),
            json!({"command": "a", "code": "b"}),
            json!({"command": "a", "timeout_seconds": 0}),
            json!({"command": "a", "timeout_seconds": 1e9}),
        ] {
            assert!(request(bad.clone()).command().is_err(), "{bad}");
        }
        assert!(serde_json::from_value::<RunRequest>(json!({"comand": "a"})).is_err(), "a mistake is told");
        for bad in [json!({"cpu": -1.0}), json!({"wait_seconds": -1.0}), json!({"allow": ["http://x"]})] {
            assert!(request(bad.clone()).options().is_err(), "{bad}");
        }
        assert!(request(json!({"session": "s", "priority": 1})).only_its_own().is_err());
        assert!(request(json!({"session": "s", "stdin": "x"})).only_its_own().is_ok());
    }

    #[test]
    fn the_beginning_is_kept_and_all_is_counted() {
        let mut kept = Kept::default();
        for piece in [&b"abc"[..], b"def", b"ghi"] {
            kept.push(piece, 4);
        }
        assert_eq!((&kept.data[..], kept.total), (&b"abcd"[..], 9));
    }
}
