//! Running programs: run_shell and run_python to their end, run_background without waiting for it.

use std::{cell::RefCell, collections::BTreeMap};

use berth_client::{Command, Session, SessionId, Std, TaskEvent, TaskId};
use rmcp::model::{ContentBlock, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::{
    mcp::{
        arguments, images,
        output::Kept,
        problem::Problem,
        progress::EVERY,
        resources::Uri,
        room,
        tool::{Answer, Call, Effect, Entry},
        venv::Venv,
    },
    told::Ended,
};

/// Bytes of each stream in an answer, where nothing else is asked for.
const USUAL_OUTPUT: u64 = 64 << 10;
/// ... and at most, as far as there is room.
pub const MOST_OUTPUT: u64 = 1 << 20;
/// Room for a link to all of an output.
pub const LINK: usize = 1000;
/// Code is given to the interpreter as an argument, which the kernel bounds at 128 KiB.
const LONGEST_CODE: usize = 120 << 10;

impl Ended {
    /// In words, with what to do about it where that is not plain.
    pub fn text(&self) -> String {
        let took = format!("{:.1} s", self.duration_seconds);
        match (self.outcome, self.exit_code, self.signal) {
            (_, Some(code), _) => format!("exit code {code} after {took}"),
            (_, _, Some(signal)) => format!("ended by signal {signal} after {took}"),
            ("timed_out", ..) => format!(
                "timed out after {took}: all that it started was ended. Give a larger timeout_seconds, or use run_background"
            ),
            ("out_of_memory", ..) => {
                format!("out of memory after {took}: use less, or make a session with more memory_mib")
            }
            (outcome, ..) => format!("{outcome} after {took} {}", self.message).trim_end().to_owned(),
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct Ran {
    /// The session it ran in.
    session: String,
    task_id: String,
    #[serde(flatten)]
    end: Ended,
    /// Text to read: what is no UTF-8 is U+FFFD, control characters are written as \xNN. Of long output the beginning and
    /// the end. task_get_result has the exact bytes, and the rest.
    stdout: String,
    /// The same of standard error.
    stderr: String,
    /// All bytes that it wrote to standard output.
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// Not all of the output is in this answer.
    truncated: bool,
    /// Images that it made or changed in /workspace/artifacts, in the order in which they follow the text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<images::Told>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ShellArgs {
    /// Session to run in, by id or name; left out: your own.
    session: SessionArgument,
    /// A line (or several) for /bin/sh.
    command: String,
    /// Directory to start in: absolute, or relative to /workspace. Left out: /workspace.
    cwd: Option<String>,
    /// Environment variables, on top of the session's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Text for its standard input, which is then closed. Left out: it has none.
    input: Option<String>,
    /// Time that it may take; then all that it started is ended. Left out: the session's usual, mostly 300.
    timeout_seconds: Option<f64>,
    /// How much of each output stream to answer with: beginning and end are kept. Left out: 65536; at most 1048576, as
    /// far as one answer has room.
    max_output_bytes: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PythonArgs {
    /// Session to run in, by id or name; left out: your own.
    session: SessionArgument,
    /// Python code. Either this or `file`. Nothing is kept between calls but files: print what you want to see.
    code: Option<String>,
    /// Path of a Python file in the session. Either this or `code`.
    file: Option<String>,
    /// Arguments of the program: sys.argv[1:].
    #[serde(default)]
    args: Vec<String>,
    /// Directory to start in: absolute, or relative to /workspace. Left out: /workspace.
    cwd: Option<String>,
    /// Environment variables, on top of the session's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Text for its standard input, which is then closed. Left out: it has none.
    input: Option<String>,
    /// Time that it may take; then all that it started is ended. Left out: the session's usual, mostly 300.
    timeout_seconds: Option<f64>,
    /// How much of each output stream to answer with: beginning and end are kept. Left out: 65536; at most 1048576, as
    /// far as one answer has room.
    max_output_bytes: Option<u64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BackgroundArgs {
    /// Session to run in, by id or name; left out: your own.
    session: SessionArgument,
    /// A line (or several) for /bin/sh.
    command: String,
    /// Directory to start in: absolute, or relative to /workspace. Left out: /workspace.
    cwd: Option<String>,
    /// Environment variables, on top of the session's.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Time that it may take; left out: no limit but the session's life.
    timeout_seconds: Option<f64>,
}

#[derive(Serialize, JsonSchema)]
struct Started {
    session: String,
    /// For task_get_status, task_get_result, task_input and task_cancel.
    task_id: String,
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "run_shell",
            "Run a shell command",
            Effect::Runs,
            "Runs a shell command in the sandbox and waits for its end: for builds, tests, git, looking around. Answers with \
             its output and how it ended; an exit code that is not 0 is no error of this tool. Each call is a shell of its \
             own: cd and exports do not carry over, files do. What it started in the background ends with it: use \
             run_background for servers.",
            run_shell,
        ),
        Entry::new(
            "run_python",
            "Run Python",
            Effect::Runs,
            "Runs Python code, or a Python file of the session, in the sandbox and waits for its end. Answers with its \
             output, how it ended, and the images that it wrote to /workspace/artifacts; matplotlib's show() writes there. \
             Each call is an interpreter of its own: variables do not carry over, files do.",
            run_python,
        ),
        Entry::new(
            "run_background",
            "Start in the background",
            Effect::Runs,
            "Starts a shell command in the sandbox and answers at once with its task_id: for servers, watchers and long \
             jobs. It runs until it ends, is cancelled (task_cancel), or its session ends. task_get_result reads its \
             output, also while it runs; task_input writes to its standard input, which is open.",
            run_background,
        ),
    ]
}

/// What all programs may be told.
struct How {
    cwd: Option<String>,
    env: BTreeMap<String, String>,
    timeout_seconds: Option<f64>,
}

impl How {
    /// The session, and the program as it runs there: in the session's Python environment.
    async fn over(
        self,
        call: &Call,
        session: SessionArgument,
        mut command: Command,
        within: impl FnOnce(&Venv, Command) -> Command,
    ) -> Result<(Session, Command), Problem> {
        let timeout =
            self.timeout_seconds.map(|value| arguments::seconds("timeout_seconds", value)).transpose()?;
        let session = call.session(session.as_deref()).await?;
        command = within(&call.venv(&session).await?, command);
        if let Some(cwd) = self.cwd {
            command = command.cwd(cwd);
        }
        for (name, value) in self.env {
            command = command.env(name, value);
        }
        if let Some(timeout) = timeout {
            command = command.timeout(timeout);
        }
        Ok((session, command))
    }
}

async fn run_shell(call: Call, args: ShellArgs) -> Result<Answer<Ran>, Problem> {
    let ShellArgs { session, command, cwd, env, input, timeout_seconds, max_output_bytes } = args;
    if command.trim().is_empty() {
        return Err(Problem::new("`command` is empty", "give a line for the shell, for example `ls -la`"));
    }
    let how = How { cwd, env, timeout_seconds };
    let (session, command) = how.over(&call, session, Command::shell(command), Venv::over).await?;
    to_end(&call, session, command, input, max_output_bytes).await
}

async fn run_python(call: Call, args: PythonArgs) -> Result<Answer<Ran>, Problem> {
    let PythonArgs { session, code, file, args, cwd, env, input, timeout_seconds, max_output_bytes } = args;
    let command = Command::new("python3");
    let command = match (code, file) {
        (Some(code), None) if code.len() > LONGEST_CODE => {
            return Err(Problem::new(
                format!("`code` has {} bytes, more than {LONGEST_CODE}", code.len()),
                "write it to a file with fs_write, and give that as `file`",
            ));
        }
        (Some(code), None) => command.arg("-c").arg(code),
        // Not an option, whatever it is called.
        (None, Some(file)) if file.starts_with('-') => command.arg(format!("./{file}")),
        (None, Some(file)) => command.arg(file),
        _ => {
            return Err(Problem::new(
                "there must be one of `code` and `file`",
                "give one, and not the other",
            ));
        }
    };
    // With a PATH of its own it may be another Python.
    let within = if env.contains_key("PATH") { Venv::over } else { Venv::over_python };
    let how = How { cwd, env, timeout_seconds };
    let (session, command) = how.over(&call, session, command.args(args), within).await?;
    to_end(&call, session, command, input, max_output_bytes).await
}

async fn run_background(call: Call, args: BackgroundArgs) -> Result<Answer<Started>, Problem> {
    let BackgroundArgs { session, command, cwd, env, timeout_seconds } = args;
    if command.trim().is_empty() {
        return Err(Problem::new(
            "`command` is empty",
            "give a line for the shell, for example `./server --port 8000`",
        ));
    }
    let how = How { cwd, env, timeout_seconds };
    let (session, command) = how.over(&call, session, Command::shell(command), Venv::over).await?;
    let task = session.start(command.detached(true).stdin(true)).await?;
    call.started(&task);
    let (session, task_id) = (session.id().to_string(), task.id().to_string());
    let text = format!("started: task_id {task_id}\ntask_get_result reads its output, task_cancel ends it");
    Ok(Answer { data: Started { session, task_id }, text })
}

/// Runs a program until it ends, or the client no longer wants it: then it is cancelled, and all that it started.
async fn to_end(
    call: &Call,
    session: Session,
    command: Command,
    input: Option<String>,
    max_output: Option<u64>,
) -> Result<Answer<Ran>, Problem> {
    let limit = arguments::bytes("max_output_bytes", max_output, USUAL_OUTPUT, MOST_OUTPUT)?;
    let before = images::before(&session).await;
    // Not cut off by a cancel: a task must not be started that nobody knows of.
    let mut stream = session.stream(command.stdin(input.is_some())).await?.skip_lost();
    let task = stream.handle().clone();
    let (mut out, mut err) = (Kept::new(limit), Kept::new(limit));
    call.tell(format!("task {} runs", task.id())).await;
    let feed = async {
        // A program that ends before it has read all of it is no error here.
        if let Some(input) = input
            && task.write_stdin(input.as_bytes()).await.is_ok()
        {
            let _ = task.close_stdin().await;
        }
        std::future::pending::<()>().await
    };
    let mut feed = std::pin::pin!(feed);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    let end = loop {
        tokio::select! {
            biased;
            () = call.cancelled().cancelled() => {
                if let Err(error) = task.cancel().await {
                    tracing::warn!(task.id = %task.id(), ?error, "a task was not cancelled; its grace without a watcher ends it");
                }
                return Err(Problem::cancelled());
            }
            _ = tick.tick() => {
                call.tell(running(&out, &err, call.elapsed().as_secs_f64())).await;
            }
            event = stream.next() => match event? {
                Some(TaskEvent::Stdout(data)) => out.push(&data),
                Some(TaskEvent::Stderr(data)) => err.push(&data),
                Some(TaskEvent::Lost { stream, from, to }) => match stream {
                    berth_client::Std::Out => out.lost(to.saturating_sub(from)),
                    berth_client::Std::Err => err.lost(to.saturating_sub(from)),
                },
                Some(TaskEvent::Ended(info)) => break info.end,
                None => break None,
            },
            () = &mut feed => {}
        }
    };
    let end = end.map(Ended::from).ok_or_else(|| {
        Problem::new("the task ended, and nobody knows how", "run it again if that does no harm")
    })?;
    let made = call.wait("its images are read", async { Ok(images::made(&session, &before).await) }).await?;
    Ok(ran(call, (session.id(), task.id()), end, [&out, &err], &made))
}

fn running(out: &Kept, err: &Kept, seconds: f64) -> String {
    let line = if out.total() > 0 { out.last_line() } else { err.last_line() };
    format!("{seconds:.0} s: {line}").trim_end_matches([':', ' ']).to_owned()
}

/// As much of what it said as there is room for.
fn ran(
    call: &Call,
    (session, task): (SessionId, TaskId),
    end: Ended,
    output: [&Kept; 2],
    made: &images::Made,
) -> Answer<Ran> {
    let links = RefCell::new(Vec::new());
    let beside = room::size(&made.blocks) + 2 * LINK;
    let most = output.iter().map(|kept| kept.limit()).max().unwrap_or_default();
    let answer = room::fitting(most, beside, |limit| {
        let streams = [Std::Out, Std::Err];
        let [out, err] = output.map(|kept| kept.within(limit));
        let parts = streams.into_iter().zip([&out, &err]).filter(|(_, kept)| kept.left_out() > 0);
        *links.borrow_mut() = parts
            .map(|(stream, kept)| link(&Uri::output(session, task, stream), kept.total(), kept.gap()))
            .collect();
        told((session, task), &end, [&out, &err], made)
    });
    call.attach(links.into_inner());
    call.attach(made.blocks.iter().cloned());
    answer
}

fn told(
    (session, task): (SessionId, TaskId),
    end: &Ended,
    [out, err]: [&Kept; 2],
    made: &images::Made,
) -> Answer<Ran> {
    let shown = |stream: Std, kept: &Kept| {
        kept.text(|at| {
            let (uri, name) = (Uri::output(session, task, stream).at(at), stream.name());
            format!("task_get_result with task_id {task} and {name}_offset {at} reads them, and so does the resource {uri}")
        })
    };
    let (stdout, stderr) = (shown(Std::Out, out), shown(Std::Err, err));
    let plain = end.exit_code == Some(0) && stderr.is_empty();
    let mut text = match (plain, stdout.is_empty()) {
        (true, true) => "(no output, exit code 0)".to_owned(),
        (true, false) => stdout.clone(),
        (false, _) => {
            let section = |name: &str, text: &str| match text {
                "" => String::new(),
                text => format!("\n--- {name}\n{text}"),
            };
            format!("{}{}{}", end.text(), section("stdout", &stdout), section("stderr", &stderr))
        }
    };
    text.push_str(&made.text());
    let data = Ran {
        session: session.to_string(),
        task_id: task.to_string(),
        end: end.clone(),
        stdout,
        stderr,
        stdout_bytes: out.total(),
        stderr_bytes: err.total(),
        truncated: out.left_out() + err.left_out() > 0,
        images: made.told.clone(),
    };
    Answer { data, text }
}

/// To all of an output of which an answer has only a part. `from`: where that part ends.
pub fn link(uri: &Uri, total: u64, from: u64) -> ContentBlock {
    let name = uri.to_string().rsplit('/').next().unwrap_or_default().to_owned();
    let about =
        format!("all {total} bytes of it, as far as they are kept; add ?offset={from} to read on from there");
    let resource = Resource::new(uri.to_string(), name).with_description(about).with_mime_type("text/plain");
    ContentBlock::resource_link(resource.with_size(total))
}
