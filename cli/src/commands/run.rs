//! `berth run`: a program in a session, as if it ran here.

use std::{io::IsTerminal, time::Duration};

use berth_client::{Command, Session, TaskEvent, TaskHandle, TaskStream, model::TaskInfo};
use berth_proto::spawn::spawn;
use clap::Args;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use super::{
    Global,
    options::{GivenArgs, SessionArgs},
    place::Place,
    stream::{Sink, end_code, outcome_text, stdin_is_piped, told_end},
};
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, say},
    signals::{self, Interrupts},
    terminal::{self, RawMode},
    value,
};

const HELP: &str = "\
Without --session the program gets a session of its own, which is removed when it ends, also
after Ctrl-C (a second Ctrl-C leaves at once).

Standard input is passed on when it is a pipe or a file; from a terminal only with -i or -t.

The task never waits for whoever reads its output: its worker keeps the newest part of each
stream (--keep-output). What was dropped before it could be read here is told on stderr, and
the exit code is then 125 where it would have been 0.

Examples:
  berth run -- python3 -c 'print(6 * 7)'
  berth run --memory 256M --timeout 10s -- ./benchmark
  berth run --shell 'ls -l | sort -k5 -n'
  sort words.txt | berth run -- uniq -c
  berth run --session web --detach -- python3 -m http.server
  berth run -it -- python3";

/// Runs a program in a session.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct RunArgs {
    /// The program and its arguments: all from the first word on that is no option
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub program: Vec<String>,

    /// Session to run it in [default: a new one]
    #[arg(long, short = 's', value_name = "SESSION", conflicts_with = "keep")]
    pub session: Option<String>,

    /// Keep the new session
    #[arg(long)]
    pub keep: bool,

    /// Variable; without =VALUE, as it is set here
    #[arg(long, short = 'e', value_parser = value::variable, value_name = "NAME[=VALUE]")]
    pub env: Vec<(String, String)>,

    #[command(flatten)]
    pub given: GivenArgs,

    /// Wall-clock time it may take, 0 for no limit [default: the session's, 5 minutes]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub timeout: Option<Duration>,

    /// End it when it has written so much on stdout and stderr together
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub output_limit: Option<u64>,

    /// How much of each stream its worker keeps; the oldest goes first [default: 64M]
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub keep_output: Option<u64>,

    /// Directory to start in [default: the workspace]
    #[arg(long, short = 'C', value_name = "DIR")]
    pub cwd: Option<String>,

    /// Pass standard input on, also from a terminal
    #[arg(long = "stdin", short = 'i', overrides_with = "no_stdin")]
    pub stdin: bool,

    /// Pass no standard input on
    #[arg(long, short = 'n')]
    pub no_stdin: bool,

    /// Give it a terminal
    #[arg(long, short = 't', conflicts_with = "no_stdin")]
    pub tty: bool,

    /// Start it and return at once; prints the ids of session and task
    #[arg(long, short = 'd', conflicts_with_all = ["tty", "stdin"])]
    pub detach: bool,

    /// The program is a line for the shell
    #[arg(long)]
    pub shell: bool,

    #[command(flatten)]
    pub new_session: SessionArgs,
}

impl RunArgs {
    fn command(&self) -> Command {
        let mut command = if self.shell {
            Command::shell(self.program.join(" "))
        } else {
            Command::argv(self.program.iter().cloned())
        };
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        command = self.given.give(command);
        if let Some(timeout) = self.timeout {
            command = command.timeout(timeout);
        }
        if let Some(limit) = self.output_limit {
            command = command.output_limit(limit);
        }
        if let Some(bytes) = self.keep_output {
            command = command.spool_bytes(bytes);
        }
        if let Some(dir) = &self.cwd {
            command = command.cwd(dir);
        }
        if self.tty {
            command = on_terminal(command);
        }
        command.stdin(self.forwards_stdin()).detached(self.detach)
    }

    fn forwards_stdin(&self) -> bool {
        !self.detach && !self.no_stdin && (self.stdin || self.tty || stdin_is_piped())
    }
}

/// On a terminal like ours.
pub fn on_terminal(command: Command) -> Command {
    let command = match terminal::size(std::io::stdin()).or_else(|| terminal::size(std::io::stdout())) {
        Some(size) => command.pty_size(size),
        None => command.pty(),
    };
    ["TERM", "COLORTERM"].into_iter().fold(command, |command, name| match std::env::var(name) {
        Ok(value) if !value.is_empty() => command.env(name, value),
        _ => command,
    })
}

/// What `--format json` prints.
#[derive(Serialize)]
struct RunResult<'a> {
    #[serde(flatten)]
    task: &'a TaskInfo,
    /// How it ended, in words.
    outcome_text: Option<String>,
    exit_code: u8,
    /// What is not UTF-8 is U+FFFD here.
    stdout_text: String,
    stderr_text: String,
    truncated: bool,
}

pub async fn run(global: &Global, args: RunArgs) -> CommandResult {
    let ours = |failure: Failure| {
        if failure.code == code::FAILED { failure.with_code(code::BERTH_FAILED) } else { failure }
    };
    run_inner(global, args).await.map_err(ours)
}

async fn run_inner(global: &Global, args: RunArgs) -> CommandResult {
    let client = global.client().await?;
    let mut interrupts = Interrupts::new()?;
    let keep = args.keep || args.detach;
    let place = tokio::select! {
        place = Place::take(&client, args.session.as_deref(), &args.new_session, keep) => place?,
        _ = interrupts.recv() => return Ok(code::CANCELLED),
    };
    if args.detach {
        return detach(global, &place.session, args.command()).await;
    }
    let how = Attach { stdin: args.forwards_stdin(), tty: args.tty, json: global.json() };
    let result = attached(&place.session, args.command(), how, &mut interrupts).await;
    match result {
        Ok(End::Left) => Ok(code::CANCELLED),
        Ok(End::Code(code)) => {
            place.leave(&mut interrupts).await;
            Ok(code)
        }
        Err(failure) => {
            place.leave(&mut interrupts).await;
            Err(failure)
        }
    }
}

async fn detach(global: &Global, session: &Session, command: Command) -> CommandResult {
    let task = session.start(command).await?;
    if global.json() {
        output::json(&task.info().await?)?;
    } else {
        output::data(format!("{} {}", session.id(), task.id()))?;
    }
    Ok(0)
}

/// How a task is joined to this process.
#[derive(Clone, Copy)]
pub struct Attach {
    pub stdin: bool,
    pub tty: bool,
    pub json: bool,
}

/// How that ended.
pub enum End {
    /// The task is done, and this is our exit code.
    Code(u8),
    /// The user would not wait.
    Left,
}

/// Runs a command with its streams joined to ours.
pub async fn attached(
    session: &Session,
    command: Command,
    how: Attach,
    interrupts: &mut Interrupts,
) -> Result<End, Failure> {
    let stream = tokio::select! {
        stream = session.stream(command) => stream?.skip_lost(),
        _ = interrupts.recv() => return Ok(End::Code(code::CANCELLED)),
    };
    let task = stream.handle().clone();
    // Raw only now: until here Ctrl-C shall work as usual.
    let _raw = (how.tty && std::io::stdin().is_terminal())
        .then(RawMode::enter)
        .transpose()
        .map_err(|error| Failure::io("the terminal refuses raw mode", error))?;
    let mut background = Vec::new();
    if how.stdin {
        background.push(spawn("stdin", feed(task.clone())));
    }
    if how.tty {
        background.push(spawn("resize", follow_size(task.clone())));
    }
    let end = follow(stream, &task, how, interrupts).await;
    for helper in background {
        helper.abort();
    }
    end
}

async fn follow(
    mut stream: TaskStream,
    task: &TaskHandle,
    how: Attach,
    interrupts: &mut Interrupts,
) -> Result<End, Failure> {
    let mut sink = if how.json { Sink::collecting() } else { Sink::through() };
    let mut cancelling = false;
    loop {
        let event = tokio::select! {
            event = stream.next() => event?,
            _ = interrupts.recv() => {
                if cancelling {
                    return Ok(End::Left);
                }
                cancelling = true;
                say("cancelling the task; once more leaves at once");
                cancel(task);
                continue;
            }
        };
        match event {
            Some(TaskEvent::Ended(info)) => return ended(&info, sink).map(End::Code),
            Some(event) => {
                let put = tokio::select! {
                    put = sink.put(&event) => put,
                    // Our reader stands still: nothing more can be shown.
                    _ = interrupts.recv() => Err(Failure::unread()),
                };
                if let Err(failure) = put {
                    // Nobody reads: as with any pipe, the writer ends.
                    let _ = task.cancel().await;
                    return Err(failure);
                }
            }
            None => {
                return Err(Failure::new("the task's stream ended before the task")
                    .hint("`berth tasks SESSION` shows what became of it"));
            }
        }
    }
}

fn ended(info: &TaskInfo, sink: Sink) -> CommandResult {
    let json = sink.collects();
    // As JSON both are in the result.
    let (end, lost) =
        if json { (end_code(info), sink.has_lost()) } else { (told_end(info), sink.tell_lost()) };
    let code = match (end, lost) {
        // Whoever uses the output must not take it for all of it.
        (0, true) => code::BERTH_FAILED,
        (code, _) => code,
    };
    if let Some((stdout, stderr, truncated)) = sink.collected() {
        output::json(&RunResult {
            task: info,
            outcome_text: info.end.as_ref().map(|end| outcome_text(end.outcome)),
            exit_code: code,
            stdout_text: String::from_utf8_lossy(&stdout).into_owned(),
            stderr_text: String::from_utf8_lossy(&stderr).into_owned(),
            truncated,
        })?;
    }
    Ok(code)
}

fn cancel(task: &TaskHandle) {
    let task = task.clone();
    spawn("cancel", async move {
        if let Err(error) = task.cancel().await {
            output::warning(format!("the task could not be cancelled: {}", error.message()));
        }
    });
}

/// Our standard input to the task's, until either ends.
async fn feed(task: TaskHandle) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                // A task that is done takes no end of input either.
                let _ = task.close_stdin().await;
                return;
            }
            Ok(n) => {
                if task.write_stdin(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Our terminal's size to the task's, each time it changes.
async fn follow_size(task: TaskHandle) {
    let Ok(mut changes) = signals::resized() else { return };
    while changes.recv().await.is_some() {
        if let Some(size) = terminal::size(std::io::stdin()) {
            let _ = task.resize(size).await;
        }
    }
}
