//! `berth usage`: what a session takes.

use berth_client::{SessionId, model::SessionUsage};
use clap::Args;
use serde::Serialize;

use super::Global;
use crate::{
    failure::CommandResult,
    output::{self, bytes, cores, span},
    select,
};

const HELP: &str = "\
Examples:
  berth usage web
  berth usage web --format json | jq .memory_bytes
  watch -n 5 berth usage web         to ask keeps no session from being idle";

/// Shows what the tasks of a session take now, and have taken.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct UsageArgs {
    /// Session
    pub session: String,
}

#[derive(Serialize)]
struct Told {
    session: String,
    #[serde(flatten)]
    usage: SessionUsage,
}

pub async fn run(global: &Global, args: UsageArgs) -> CommandResult {
    let client = global.client().await?;
    let session = select::session(&client, &args.session).await?;
    let (id, usage) = (session.id(), session.usage().await?);
    if global.json() {
        output::json(&Told { session: id.to_string(), usage })?;
        return Ok(0);
    }
    output::details(&lines(id, &usage))?;
    if usage.summed {
        output::say("added up over the processes that run: there are no cgroups for this session");
    }
    Ok(0)
}

fn lines(id: SessionId, usage: &SessionUsage) -> Vec<(&'static str, String)> {
    let size = |value: Option<u64>| value.map(bytes);
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let mut cpu = of(usage.cpu.map(span), None);
    if let Some(limit) = usage.cpu_limit_millis.and_then(|millis| u32::try_from(millis).ok()) {
        cpu.push_str(&format!(", limit {} CPU", cores(limit)));
    }
    let mut memory = of(size(usage.memory_bytes), size(usage.memory_limit_bytes));
    for (value, what) in [(usage.memory_cache_bytes, "of it cache"), (usage.memory_peak_bytes, "at most")] {
        if let Some(value) = value {
            memory.push_str(&format!(", {what} {}", bytes(value)));
        }
    }
    vec![
        ("session", id.to_string()),
        ("cpu time", cpu),
        ("memory", memory),
        ("pids", of(number(usage.pids), number(usage.pids_limit))),
        ("disk", of(size(usage.disk_bytes), size(usage.disk_limit_bytes))),
        ("inodes", of(number(usage.inodes), number(usage.inodes_limit))),
        ("tasks", of(Some(usage.tasks.to_string()), Some(usage.tasks_limit.to_string()))),
    ]
}

/// `12 of 64`.
fn of(value: Option<String>, limit: Option<String>) -> String {
    match (value, limit) {
        (Some(value), Some(limit)) => format!("{value} of {limit}"),
        (Some(value), None) => value,
        (None, Some(limit)) => format!("not counted here, limit {limit}"),
        (None, None) => "not counted here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_is_not_counted_is_said() {
        let usage = SessionUsage {
            read_at: SystemTime::UNIX_EPOCH,
            cpu: None,
            cpu_limit_millis: Some(1500),
            memory_bytes: Some(4 << 20),
            memory_cache_bytes: Some(1 << 20),
            memory_peak_bytes: None,
            memory_limit_bytes: None,
            pids: Some(3),
            pids_limit: Some(64),
            disk_bytes: None,
            disk_limit_bytes: None,
            inodes: None,
            inodes_limit: None,
            tasks: 1,
            tasks_limit: 32,
            summed: false,
        };
        let lines = lines(SessionId::new(), &usage);
        let line = |name: &str| lines.iter().find(|(key, _)| *key == name).map(|(_, text)| text.as_str());
        assert_eq!(line("cpu time"), Some("not counted here, limit 1.5 CPU"));
        assert_eq!(line("memory"), Some("4M, of it cache 1M"));
        assert_eq!(line("pids"), Some("3 of 64"));
        assert_eq!(line("disk"), Some("not counted here"));
    }
}
