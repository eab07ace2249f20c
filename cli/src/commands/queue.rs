//! `berth queue`: who waits for a place, and for what.

use std::cmp::Reverse;

use berth_client::{ListOptions, SessionState, model::SessionInfo};
use clap::Args;

use super::Global;
use crate::{
    failure::CommandResult,
    output::{self, ago, bytes, clipped, cores, left},
    select,
};

const HELP: &str = "\
The first in the list is the first to be placed, as it looks now: higher priority goes first,
then the tenant that has the least of the fleet in use, then who has waited longest. One that
fits nowhere yet does not hold up those behind it.

Examples:
  berth queue
  berth queue --format json | jq -r '.[] | .id + \" \" + .waits_until + \" \" + .message'";

/// Lists the sessions that wait for a place, next first: for what, since when and until when.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct QueueArgs {}

pub async fn run(global: &Global, _: QueueArgs) -> CommandResult {
    let client = global.client().await?;
    let mut waiting = client.sessions(ListOptions::new().states([SessionState::Pending])).await?;
    // As the coordinator goes through them. (One of before it told that: by priority and age. Ids grow with time.)
    waiting.sort_by_key(|s| (s.queue_position.unwrap_or(u32::MAX), Reverse(s.priority), s.id));
    if global.json() {
        output::json(&waiting)?;
        return Ok(0);
    }
    let header = [
        "SESSION",
        "NAME",
        "TENANT",
        "PRIORITY",
        "SINCE",
        "WAITS UNTIL",
        "TEMPLATE",
        "CPU",
        "MEMORY",
        "WAITS FOR",
    ];
    output::table(&header, waiting.iter().map(row).collect(), "nobody waits")?;
    Ok(0)
}

fn row(session: &SessionInfo) -> Vec<String> {
    let message = session.message.as_str();
    let why =
        ["waits for a place: ", "waits for another place: "].iter().find_map(|w| message.strip_prefix(w));
    let until = match left(session.waits_until) {
        left if left.is_empty() || left == "over" => left,
        left => format!("in {left}"),
    };
    vec![
        select::short(session.id),
        session.labels.get(select::NAME_LABEL).map(|name| clipped(name, 24)).unwrap_or_default(),
        session.tenant.clone(),
        session.priority.to_string(),
        ago(session.waits_since.or(session.created_at)),
        until,
        clipped(&session.template, 24),
        cores(session.limits.cpu_millis),
        bytes(session.limits.memory_bytes),
        why.unwrap_or(message).to_owned(),
    ]
}
