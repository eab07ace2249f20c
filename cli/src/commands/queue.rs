//! `berth queue`: who waits for a place, and for what.

use std::cmp::Reverse;

use berth_client::{ListOptions, SessionState, model::SessionInfo};
use clap::Args;

use super::Global;
use crate::{
    failure::CommandResult,
    output::{self, ago, bytes, clipped, cores},
    select,
};

const HELP: &str = "\
The first in the list is the first to be placed: higher priority goes first, then who has
waited longer. One that fits nowhere yet does not hold up those behind it.

Examples:
  berth queue
  berth queue --format json | jq -r '.[] | .id + \" \" + .message'";

/// Lists the sessions that wait for a place, next first.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct QueueArgs {}

pub async fn run(global: &Global, _: QueueArgs) -> CommandResult {
    let client = global.client().await?;
    let mut waiting = client.sessions(ListOptions::new().states([SessionState::Pending])).await?;
    // As the coordinator goes through them; ids grow with time.
    waiting.sort_by_key(|session| (Reverse(session.priority), session.id));
    if global.json() {
        output::json(&waiting)?;
        return Ok(0);
    }
    let header = ["SESSION", "NAME", "PRIORITY", "SINCE", "TEMPLATE", "CPU", "MEMORY", "WAITS FOR"];
    output::table(&header, waiting.iter().map(row).collect(), "nobody waits")?;
    Ok(0)
}

fn row(session: &SessionInfo) -> Vec<String> {
    let why = session.message.strip_prefix("waits for a place: ").unwrap_or(&session.message);
    vec![
        select::short(session.id),
        session.labels.get(select::NAME_LABEL).map(|name| clipped(name, 24)).unwrap_or_default(),
        session.priority.to_string(),
        ago(session.created_at),
        clipped(&session.template, 24),
        cores(session.limits.cpu_millis),
        bytes(session.limits.memory_bytes),
        why.to_owned(),
    ]
}
