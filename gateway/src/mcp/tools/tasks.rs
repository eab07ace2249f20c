//! Tasks that run in the background: how they stand, what they said, input for them, their end.

use std::{cell::RefCell, time::Duration};

use berth_client::{
    Reason, Session, Std, TaskEvent, TaskHandle, TaskId, WatchOptions,
    model::{TaskInfo, TaskState},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    SessionArgument,
    run::{LINK, MOST_OUTPUT, link},
};
use crate::{
    mcp::{
        arguments::{self, Encoding},
        problem::Problem,
        resources::Uri,
        room, text,
        tool::{Answer, Call, Effect, Entry},
    },
    told::Ended,
};

/// Bytes of each stream in an answer, where nothing else is asked for.
const USUAL_OUTPUT: u64 = 64 << 10;
/// One wait on the server.
const ONE_WAIT: Duration = Duration::from_secs(5);
/// The longest that task_get_result waits: clients give up on a call after a minute or so.
const LONGEST_WAIT: f64 = 300.0;
/// A program that does not read its input is told of after this long.
const INPUT_TAKEN: Duration = Duration::from_secs(10);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TaskArgs {
    /// Session of the task, by id or name; left out: your own.
    session: SessionArgument,
    /// As run_background, run_shell or run_python answered it.
    task_id: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResultArgs {
    /// Session of the task, by id or name; left out: your own.
    session: SessionArgument,
    /// As run_background, run_shell or run_python answered it.
    task_id: String,
    /// Wait until it ends, at most so many seconds (300). Left out: do not wait, and read what there is now.
    wait_seconds: Option<f64>,
    /// First byte of standard output to read. Left out: the first that is kept.
    stdout_offset: Option<u64>,
    /// First byte of standard error to read. Left out: the first that is kept.
    stderr_offset: Option<u64>,
    /// How much of each stream to read. Left out: 65536; at most 1048576, as far as one answer has room. Of
    /// text at least one character.
    max_bytes: Option<u64>,
    /// text: to read; base64: the exact bytes. Left out: text.
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InputArgs {
    /// Session of the task, by id or name; left out: your own.
    session: SessionArgument,
    /// As run_background answered it.
    task_id: String,
    /// What to write. A line for a program that reads lines ends with a line feed.
    #[serde(default)]
    input: String,
    /// text, or base64 for bytes that are no text. Left out: text.
    #[serde(default)]
    encoding: Encoding,
    /// End its standard input after that.
    #[serde(default)]
    end: bool,
}

#[derive(Serialize, JsonSchema)]
struct Status {
    session: String,
    task_id: String,
    /// queued, dispatched, running or done.
    state: &'static str,
    /// What it runs, as a shell line.
    command: String,
    /// How it ended; set when the state is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Ended>,
    /// Bytes written to standard output so far.
    stdout_bytes: u64,
    /// The oldest of them that is still kept.
    stdout_first_kept: u64,
    stderr_bytes: u64,
    stderr_first_kept: u64,
}

#[derive(Serialize, JsonSchema)]
struct Read {
    session: String,
    task_id: String,
    /// queued, dispatched, running or done.
    state: &'static str,
    /// How it ended; set when the state is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Ended>,
    /// text or base64.
    encoding: &'static str,
    stdout: String,
    stderr: String,
    /// Offset to read on from.
    stdout_next: u64,
    stderr_next: u64,
    /// There is more to read already.
    more: bool,
}

#[derive(Serialize, JsonSchema)]
struct Written {
    session: String,
    task_id: String,
    bytes: u64,
    /// Its standard input is closed.
    ended: bool,
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "task_get_status",
            "Task status",
            Effect::Reads,
            "How a task stands: whether it runs, how it ended, and how much output it has.",
            status,
        ),
        Entry::new(
            "task_get_result",
            "Task output",
            Effect::Reads,
            "The output of a task, also while it runs, from any offset, and how it ended. To follow a task, call again with \
             the offsets that it answers with. With wait_seconds it waits for the end.",
            result,
        ),
        Entry::new(
            "task_input",
            "Write to a task",
            Effect::Destroys,
            "Writes to the standard input of a task that run_background started.",
            input,
        ),
        Entry::new(
            "task_cancel",
            "End a task",
            Effect::Overwrites,
            "Ends a task and all that it started: TERM, and KILL two seconds later. No error if it has ended already.",
            cancel,
        ),
    ]
}

async fn find(
    call: &Call,
    session: SessionArgument,
    task_id: &str,
) -> Result<(Session, TaskHandle), Problem> {
    let id: TaskId = task_id.parse().map_err(|_| {
        Problem::new(
            format!("{:?} is no task_id", text::clipped(task_id, 100)),
            "give the task_id that run_background answered with",
        )
    })?;
    let session = call.session(session.as_deref()).await?;
    let task = session.task(id);
    Ok((session, task))
}

async fn status(call: Call, args: TaskArgs) -> Result<Answer<Status>, Problem> {
    let (_, task) = find(&call, args.session, &args.task_id).await?;
    Ok(told(task.info().await?))
}

async fn cancel(call: Call, args: TaskArgs) -> Result<Answer<Status>, Problem> {
    let (_, task) = find(&call, args.session, &args.task_id).await?;
    match task.cancel().await {
        Ok(info) => Ok(told(info)),
        Err(error) if error.is(Reason::TaskDone) => Ok(told(task.info().await?)),
        Err(error) => Err(error.into()),
    }
}

fn told(info: TaskInfo) -> Answer<Status> {
    let (state, command) = (info.state.name(), text::clipped(&info.program.line(), 1000));
    let end = info.end.map(Ended::from);
    let how = end.as_ref().map_or_else(|| state.to_owned(), Ended::text);
    let text = format!(
        "{how}\ncommand: {command}\nstdout: {} bytes, stderr: {} bytes",
        info.stdout.length, info.stderr.length
    );
    let data = Status {
        session: info.session.to_string(),
        task_id: info.id.to_string(),
        state,
        command,
        end,
        stdout_bytes: info.stdout.length,
        stdout_first_kept: info.stdout.first_kept,
        stderr_bytes: info.stderr.length,
        stderr_first_kept: info.stderr.first_kept,
    };
    Answer { data, text }
}

async fn result(call: Call, args: ResultArgs) -> Result<Answer<Read>, Problem> {
    let limit = arguments::bytes("max_bytes", args.max_bytes, USUAL_OUTPUT, MOST_OUTPUT)?;
    let wait = match args.wait_seconds {
        None => None,
        Some(seconds) if (0.0..=LONGEST_WAIT).contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
        Some(seconds) => {
            let hint = format!("give 0 to {LONGEST_WAIT}, and call again if it still runs then");
            return Err(Problem::new(format!("wait_seconds is {seconds}"), hint));
        }
    };
    let (session, task) = find(&call, args.session, &args.task_id).await?;
    if let Some(wait) = wait {
        call.wait("the task runs", ended_within(&task, wait)).await?;
    }
    let info = task.info().await?;
    let from = [
        args.stdout_offset.unwrap_or(info.stdout.first_kept),
        args.stderr_offset.unwrap_or(info.stderr.first_kept),
    ];
    // What is cut in the middle of a character ends before it, unless nothing were left: then it goes on to its end.
    let room = if args.encoding == Encoding::Text { limit.max(text::LONGEST_CHARACTER) } else { limit };
    let read = call.wait("the output is read", pieces(&task, from, room)).await?;
    let links = RefCell::new(Vec::new());
    let answer = room::fitting(limit, 2 * LINK, |limit| {
        let done = info.state == TaskState::Done;
        let cut = |piece: &Piece, length: u64| piece.cut(limit, args.encoding, piece.next < length || !done);
        let (out, err) = (cut(&read[0], info.stdout.length), cut(&read[1], info.stderr.length));
        let streams = [(Std::Out, &out, info.stdout.length), (Std::Err, &err, info.stderr.length)];
        *links.borrow_mut() = streams
            .into_iter()
            .filter(|(_, piece, length)| piece.next < *length)
            .map(|(stream, piece, length)| {
                link(&Uri::output(session.id(), task.id(), stream), length, piece.next)
            })
            .collect();
        read_told(&info, args.encoding, [&out, &err])
    });
    call.attach(links.into_inner());
    Ok(answer)
}

fn read_told(info: &TaskInfo, encoding: Encoding, [out, err]: [&Piece; 2]) -> Answer<Read> {
    let shown = |piece: &Piece| match encoding {
        Encoding::Text => text::readable(&piece.data),
        Encoding::Base64 => text::base64(&piece.data),
    };
    let state = info.state.name();
    let more = out.next < info.stdout.length || err.next < info.stderr.length;
    let data = Read {
        session: info.session.to_string(),
        task_id: info.id.to_string(),
        state,
        encoding: if encoding == Encoding::Text { "text" } else { "base64" },
        stdout: shown(out),
        stderr: shown(err),
        stdout_next: out.next,
        stderr_next: err.next,
        more,
        end: info.end.clone().map(Ended::from),
    };
    let mut text = data.end.as_ref().map_or_else(|| state.to_owned(), Ended::text);
    for (name, shown) in [("stdout", &data.stdout), ("stderr", &data.stderr)] {
        if !shown.is_empty() {
            text.push_str(&format!("\n--- {name}\n{shown}"));
        }
    }
    if more || data.end.is_none() {
        text.push_str(&format!(
            "\n--- to read on: stdout_offset {}, stderr_offset {}",
            data.stdout_next, data.stderr_next
        ));
    }
    Answer { data, text }
}

async fn ended_within(task: &TaskHandle, wait: Duration) -> Result<(), Problem> {
    let end = tokio::time::Instant::now() + wait;
    loop {
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let info = task.wait_for(left.min(ONE_WAIT)).await?;
        if info.state == TaskState::Done || left <= ONE_WAIT {
            return Ok(());
        }
    }
}

/// A part of an output.
pub struct Piece {
    pub data: Vec<u8>,
    /// Offset after it.
    pub next: u64,
}

impl Piece {
    /// At most `limit` bytes of it. `goes_on`: a character whose other half is yet to come is read next time.
    fn cut(&self, limit: usize, encoding: Encoding, goes_on: bool) -> Self {
        let mut data = self.data.clone();
        data.truncate(match encoding {
            Encoding::Text => text::fitting(&data, limit),
            Encoding::Base64 => limit,
        });
        if encoding == Encoding::Text && (goes_on || data.len() < self.data.len()) {
            data.truncate(text::whole_characters(&data));
        }
        Self { next: self.next - (self.data.len() - data.len()) as u64, data }
    }
}

/// What there is now of both streams, at most `limit` bytes of each.
pub async fn pieces(task: &TaskHandle, from: [u64; 2], limit: usize) -> Result<[Piece; 2], Problem> {
    let options =
        WatchOptions { stdout_offset: from[0], stderr_offset: from[1], skip_lost: true, follow: false };
    let mut pieces = from.map(|next| Piece { data: Vec::new(), next });
    let mut stream = task.watch_from(options).await?;
    while pieces.iter().any(|piece| piece.data.len() < limit) {
        let (index, data) = match stream.next().await? {
            Some(TaskEvent::Stdout(data)) => (0, data),
            Some(TaskEvent::Stderr(data)) => (1, data),
            Some(TaskEvent::Lost { stream, to, .. }) => {
                let piece = &mut pieces[stream as usize];
                // What goes before the gap is told first: the next call goes on behind it.
                if piece.data.is_empty() {
                    piece.next = to;
                }
                continue;
            }
            Some(TaskEvent::Ended(_)) | None => break,
        };
        let piece = &mut pieces[index];
        let taken = data.len().min(limit - piece.data.len());
        piece.data.extend_from_slice(&data[..taken]);
        piece.next += taken as u64;
    }
    Ok(pieces)
}

async fn input(call: Call, args: InputArgs) -> Result<Answer<Written>, Problem> {
    let data = args.encoding.decode("input", args.input)?;
    if data.is_empty() && !args.end {
        return Err(Problem::new("there is nothing to write", "give `input`, or `end: true` to close it"));
    }
    let (session, task) = find(&call, args.session, &args.task_id).await?;
    match timeout(INPUT_TAKEN, task.write_stdin(&data)).await {
        Ok(written) => written?,
        Err(_) => {
            return Err(Problem::new(
                "the task does not read its input: part of it waits in its pipe, and the rest was not written",
                "look at its output with task_get_result: it may wait for something else",
            ));
        }
    }
    if args.end {
        task.close_stdin().await?;
    }
    let bytes = data.len() as u64;
    let closed = if args.end { ", and closed it" } else { "" };
    let data =
        Written { session: session.id().to_string(), task_id: task.id().to_string(), bytes, ended: args.end };
    Ok(Answer { data, text: format!("wrote {bytes} bytes to its standard input{closed}") })
}
