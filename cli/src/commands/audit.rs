//! `berth audit`: what was done, by whom, and what came of it.

use std::time::{Duration, SystemTime};

use berth_client::{AuditFilter, AuditRecord, model::json::time_text};
use clap::Args;

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, clipped, count, printable},
    value,
};

const HELP: &str = "\
Recorded is each call that changes something or is refused, each end of a task and of a session, and each
egress decision. WHO is a token's id (`berth token list`), admin.token or join.token of the
credential files, or - for Berth itself. Of a command line its SHA-256 is kept, or all of it where
the coordinator was started with --audit-argv full.

Each record is tied to the one before it. --verify reckons that chain: keep the sum that it prints
elsewhere, and you can tell later that nothing up to there was changed.

Examples:
  berth audit --since 1h
  berth audit --session 0190 --format json | jq -r '.[] | .what + \" \" + .outcome'
  berth audit --refused
  berth audit --what FileService/
  berth audit --verify";

/// Shows what was done, by whom, newest first.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct AuditArgs {
    /// Not older than this
    #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
    pub since: Option<Duration>,

    /// Of this session: its full id, also after it is forgotten
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,

    /// Of this task: its full id
    #[arg(long, value_name = "ID")]
    pub task: Option<String>,

    /// By this token
    #[arg(long, value_name = "TOKEN-ID")]
    pub who: Option<String>,

    /// Of this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,

    /// What begins with this, such as SessionService/ or `task ended`
    #[arg(long, value_name = "TEXT")]
    pub what: Option<String>,

    /// Only calls that were refused or failed
    #[arg(long)]
    pub refused: bool,

    /// As many at most
    #[arg(long, short = 'n', default_value_t = 100, value_name = "N")]
    pub limit: usize,

    /// Look through the whole record for changes instead
    #[arg(long, conflicts_with_all = ["since", "session", "task", "who", "tenant", "what", "refused"])]
    pub verify: bool,
}

pub async fn run(global: &Global, args: AuditArgs) -> CommandResult {
    let client = global.client().await?;
    if args.verify {
        return verify(global, &client).await;
    }
    let mut filter = AuditFilter::default();
    filter.since = args.since.and_then(|since| SystemTime::now().checked_sub(since));
    filter.who = args.who;
    filter.tenant = args.tenant;
    filter.what = args.what;
    filter.session = args.session;
    filter.task = args.task;
    filter.refused = args.refused;
    let records = client.audit(filter, args.limit).await?;
    if global.json() {
        output::json(&records)?;
        return Ok(0);
    }
    let header = ["AT", "WHO", "TENANT", "WHAT", "SESSION", "TASK", "OUTCOME", "DETAILS"];
    output::table(&header, records.iter().map(row).collect(), "no records")?;
    if records.len() == args.limit {
        output::hint(format!("these are the newest {}: --limit shows more", args.limit));
    }
    Ok(0)
}

async fn verify(global: &Global, client: &berth_client::Client) -> CommandResult {
    let seen = client.verify_audit().await?;
    if global.json() {
        output::json(&seen)?;
        return Ok(if seen.broken_at.is_some() { code::BERTH_FAILED } else { 0 });
    }
    if let Some(at) = seen.broken_at {
        return Err(Failure::new(format!(
            "record {at} is not as it was written, or does not follow the one before it"
        ))
        .hint("what is before it is as it was written; compare what follows with a backup of audit.db"));
    }
    output::data(format!(
        "{}, {} to {}, as they were written",
        count(seen.records, "record"),
        seen.first,
        seen.last
    ))?;
    output::data(format!("sum {}", seen.sum))?;
    Ok(0)
}

fn row(record: &AuditRecord) -> Vec<String> {
    let at = record.at.map(time_text).unwrap_or_default();
    // To the second: for people.
    let at = at.split_once('.').map_or(at.as_str(), |(whole, _)| whole).trim_end_matches('Z').to_owned();
    let details: Vec<_> = record.details.iter().map(|(name, value)| format!("{name}={value}")).collect();
    vec![
        at,
        clipped(&record.who, 14),
        clipped(&record.tenant, 16),
        record.what.clone(),
        short(&record.session),
        short(&record.task),
        record.outcome.clone(),
        clipped(&printable(&details.join(" ")), 48),
    ]
}

/// The end of an id tells it from others made in the same moment.
fn short(id: &str) -> String {
    id.get(id.len().saturating_sub(12)..).unwrap_or(id).to_owned()
}
