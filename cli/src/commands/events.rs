//! `berth events`: what happens in the fleet, as it happens.

use std::time::SystemTime;

use berth_client::model::{Change, FleetEvent, json::time_text, session_state_name};
use clap::Args;

use super::{
    Global,
    listing::{program_text, reason_text},
    stream::outcome_text,
};
use crate::{
    failure::{CommandResult, code},
    output::{self, clipped, count, printable},
    select,
    signals::Interrupts,
};

const HELP: &str = "\
Goes on until Ctrl-C. With --format json each line is one event; the token of the last one
seen, given to --after, goes on from there.

Examples:
  berth events
  berth events --format json | jq -r 'select(.session) | .session.state'";

/// Follows what happens in the fleet.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct EventsArgs {
    /// Begin after the event with this token [default: now]
    #[arg(long, value_name = "TOKEN")]
    pub after: Option<String>,
}

pub async fn run(global: &Global, args: EventsArgs) -> CommandResult {
    let client = global.client().await?;
    let mut interrupts = Interrupts::new()?;
    let mut events = client.events(args.after).await?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        };
        if global.json() {
            output::json_line(&event)?;
        } else {
            output::data(line(&event))?;
        }
    }
}

fn line(event: &FleetEvent) -> String {
    let at = time_text(event.at.unwrap_or_else(SystemTime::now));
    // To the second: for people.
    let at = at.split_once('.').map_or(at.as_str(), |(whole, _)| whole).trim_end_matches('Z');
    let what = match &event.change {
        Change::Session(session) => {
            let mut text = format!("session  {}  {}", session.id, session_state_name(session.state));
            if let Some(worker) = &session.worker {
                text.push_str(&format!("  on {worker}"));
            }
            if let Some(reason) = session.end_reason {
                text.push_str(&format!("  ({})", reason_text(reason)));
            }
            text
        }
        Change::Task(task) => {
            let end = task.end.as_ref().map(|end| outcome_text(end.outcome));
            format!(
                "task     {}  {}  in {}  {}",
                task.id,
                end.unwrap_or_else(|| task.state.name().to_owned()),
                select::short(task.session),
                clipped(&program_text(&task.program), 48)
            )
        }
        Change::Worker(worker) => {
            let reason = worker.health.as_ref().filter(|health| !health.ready).map(|health| &health.reason);
            format!(
                "worker   {}  {}  {}  {}  {}",
                worker.id,
                worker.liveness.name(),
                worker.scheduling.name(),
                count(worker.sessions, "session"),
                reason.map_or_else(|| "ready".to_owned(), |reason| format!("not ready: {reason}"))
            )
        }
    };
    printable(&format!("{at}  {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_client::model::{Liveness, Scheduling, WorkerInfo};

    #[test]
    fn an_event_is_told_in_words() {
        let worker = WorkerInfo {
            id: "w\x1b[2J".into(),
            liveness: Liveness::Suspect,
            scheduling: Scheduling::Cordoned,
            sessions: 1,
            ..WorkerInfo::default()
        };
        let event = FleetEvent {
            token: String::new(),
            at: Some(SystemTime::UNIX_EPOCH),
            change: Change::Worker(Box::new(worker)),
        };
        assert_eq!(
            line(&event),
            "1970-01-01T00:00:00  worker   w\\u{1b}[2J  suspect  cordoned  1 session  ready"
        );
    }
}
