//! `berth logs`: what a task has written, and writes; or what Berth itself does ([`own`]).

mod own;

use std::collections::VecDeque;

use berth_client::{Std, TaskEvent, WatchOptions};
use bytes::Bytes;
use clap::Args;

use self::own::Component;
use super::{Global, stream::Sink};
use crate::{
    failure::{CommandResult, Failure, code},
    output, select,
    signals::Interrupts,
};

const HELP: &str = "\
stdout of the task goes to stdout, its stderr to stderr; with --format json both go to stdout, as
objects with `stream` and `text`, one a line, and last comes `ended` with the task. The worker keeps the newest 64 MiB of
each, or what `berth run --keep-output` said; how much is no longer kept is told on stderr.
What `berth cp` runs in a session does not count as its newest task.
Without a session, the log of the `berth up -d` of this machine; `coordinator`, `gateway` or `worker` (which then are no
sessions' names: give the id), of that part of it alone.

Examples:
  berth logs -f --tail 50          what Berth does here
  berth logs worker
  berth logs web                   all that is kept of the newest task
  berth logs -f --tail 20 web
  berth logs web 3f9ac2 2>/dev/null";

/// Shows the output of a task, or the log of Berth itself.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct LogsArgs {
    /// Go on until the task ends; of Berth's own log, until Ctrl-C
    #[arg(long, short = 'f')]
    pub follow: bool,

    /// Begin with the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,

    /// Session, or coordinator, gateway, worker [default: all of the Berth of this machine]
    pub session: Option<String>,

    /// Task [default: the newest]
    pub task: Option<String>,
}

pub async fn run(global: &Global, args: LogsArgs) -> CommandResult {
    let component = args.session.as_deref().map(Component::named);
    let session = match (component, args.session) {
        (Some(None), Some(session)) => session,
        (Some(Some(_)), Some(component)) if args.task.is_some() => {
            let message = format!("{component} is a component of Berth, and has no tasks");
            return Err(
                Failure::usage(message).hint("a session of that name is meant? Give its id (`berth ps`)")
            );
        }
        (component, _) => return own::run(global, component.flatten(), args.follow, args.tail).await,
    };
    let client = global.client().await?;
    let session = select::session(&client, &session).await?;
    let task = select::task(&session, args.task.as_deref()).await?;
    let mut interrupts = Interrupts::new()?;
    let options = WatchOptions { follow: args.follow, ..WatchOptions::default() };
    let mut stream = task.watch_from(options).await?;
    // What was there when we began is the past, of which only the tail is wanted.
    let past = [stream.info().stdout.length, stream.info().stderr.length];
    let mut tail = args.tail.map(Tail::new);
    let mut sink = if global.json() { Sink::lines() } else { Sink::through() };
    loop {
        let caught_up = stream.offset(Std::Out) >= past[0] && stream.offset(Std::Err) >= past[1];
        if caught_up && let Some(tail) = tail.take() {
            for event in tail.into_events() {
                sink.put(&event).await?;
            }
        }
        let event = tokio::select! {
            event = stream.next() => event?,
            _ = interrupts.recv() => {
                sink.tell_lost();
                return Ok(code::CANCELLED);
            }
        };
        match (event, &mut tail) {
            (Some(event @ (TaskEvent::Stdout(_) | TaskEvent::Stderr(_))), Some(tail)) => tail.push(event),
            // Only the tail is wanted: what went before it is no loss.
            (Some(TaskEvent::Lost { .. }), Some(_)) => {}
            (Some(event @ TaskEvent::Ended(_)), tail) => {
                flush(tail.take(), &mut sink).await?;
                sink.put(&event).await?;
            }
            (Some(event), None) => sink.put(&event).await?,
            (None, tail) => {
                flush(tail.take(), &mut sink).await?;
                break;
            }
        }
    }
    sink.tell_lost();
    if args.follow
        && crate::commands::stderr_is_terminal()
        && let Ok(info) = task.info().await
        && let Some(end) = info.end
    {
        output::say(format!("[{}]", crate::commands::stream::outcome_text(end.outcome)));
    }
    Ok(0)
}

async fn flush(tail: Option<Tail>, sink: &mut Sink) -> Result<(), Failure> {
    for event in tail.into_iter().flat_map(Tail::into_events) {
        sink.put(&event).await?;
    }
    Ok(())
}

/// The last lines of what went through, over both streams in the order in which they came.
struct Tail {
    lines: usize,
    /// Each one line, or the beginning of one that is not over.
    kept: VecDeque<(Std, Vec<u8>)>,
}

/// A line beyond this is cut up: a file without line ends shall not fill the memory.
const LONGEST_LINE: usize = 1 << 20;

impl Tail {
    fn new(lines: usize) -> Self {
        Self { lines, kept: VecDeque::new() }
    }

    fn push(&mut self, event: TaskEvent) {
        let (stream, data) = match event {
            TaskEvent::Stdout(data) => (Std::Out, data),
            TaskEvent::Stderr(data) => (Std::Err, data),
            TaskEvent::Lost { .. } | TaskEvent::Ended(_) => return,
        };
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let open = self.kept.iter_mut().rev().find(|(of, _)| *of == stream).map(|(_, line)| line);
            match open.filter(|line| line.last() != Some(&b'\n') && line.len() < LONGEST_LINE) {
                Some(line) => line.extend_from_slice(piece),
                None => self.kept.push_back((stream, piece.to_vec())),
            }
            while self.kept.len() > self.lines {
                self.kept.pop_front();
            }
        }
    }

    fn into_events(self) -> impl Iterator<Item = TaskEvent> {
        self.kept.into_iter().map(|(stream, line)| match stream {
            Std::Out => TaskEvent::Stdout(Bytes::from(line)),
            Std::Err => TaskEvent::Stderr(Bytes::from(line)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(lines: usize, pieces: &[(Std, &str)]) -> Vec<(Std, String)> {
        let mut tail = Tail::new(lines);
        for (stream, piece) in pieces {
            let data = Bytes::copy_from_slice(piece.as_bytes());
            tail.push(match stream {
                Std::Out => TaskEvent::Stdout(data),
                Std::Err => TaskEvent::Stderr(data),
            });
        }
        tail.kept.into_iter().map(|(stream, line)| (stream, String::from_utf8(line).unwrap())).collect()
    }

    #[test]
    fn the_last_lines_are_kept_however_they_were_cut() {
        let out = |text: &str| (Std::Out, text.to_owned());
        assert_eq!(tail(2, &[(Std::Out, "a\nb\nc\n")]), [out("b\n"), out("c\n")]);
        assert_eq!(
            tail(2, &[(Std::Out, "a\nb"), (Std::Out, "b\nc"), (Std::Out, "c")]),
            [out("bb\n"), out("cc")]
        );
        assert_eq!(tail(0, &[(Std::Out, "a\n")]), []);
    }

    #[test]
    fn the_two_streams_keep_their_order() {
        let kept = tail(3, &[(Std::Out, "1\n2\n"), (Std::Err, "e"), (Std::Out, "3\n"), (Std::Err, "f\n")]);
        let expected = [(Std::Out, "2\n"), (Std::Err, "ef\n"), (Std::Out, "3\n")];
        assert_eq!(kept, expected.map(|(stream, text)| (stream, text.to_owned())));
    }
}
