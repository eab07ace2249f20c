//! The listings: sessions, tasks, templates, and the environment variables.

use std::{collections::BTreeMap, time::Duration};

use berth_client::{
    Client, EndReason, ListOptions, SessionState,
    model::{Liveness, SessionInfo, TaskInfo, TaskProgram, end_reason_name, session_state_name},
};
use clap::Args;
use futures::StreamExt;
use serde::Serialize;

use super::{Global, checkpoint, is_helper, shell::SHELL, stream::outcome_text};
use crate::{
    env as variables,
    failure::CommandResult,
    output::{self, ago, bytes, clipped, cores, left, span},
    select, value,
};

/// Sessions that are asked at a time for their tasks.
const ASKED_AT_ONCE: usize = 8;
/// A session that does not answer shall not hold the listing up.
const ASK_DEADLINE: Duration = Duration::from_secs(3);

const PS_HELP: &str = "\
Examples:
  berth ps
  berth ps -a --label team=red
  berth ps --format json | jq -r '.[].id'";

/// Lists sessions, newest first.
#[derive(Args, Debug)]
#[command(after_help = PS_HELP)]
pub struct PsArgs {
    /// Ended sessions too
    #[arg(long, short = 'a')]
    pub all: bool,

    /// Only sessions with this label
    #[arg(long = "label", short = 'l', value_parser = value::pair, value_name = "NAME=VALUE")]
    pub labels: Vec<(String, String)>,

    /// Only ids, one a line
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    session: SessionInfo,
    /// Of its worker. `null`: it has none, or the coordinator could not be asked for it.
    worker_liveness: Option<Liveness>,
    /// `null`: it could not be asked.
    running_tasks: Option<usize>,
}

pub async fn ps(global: &Global, args: PsArgs) -> CommandResult {
    let client = global.client().await?;
    let mut options = ListOptions::new();
    if args.all {
        options = options.all();
    }
    for (name, value) in args.labels {
        options = options.label(name, value);
    }
    let sessions = client.sessions(options).await?;
    if args.quiet {
        output::ids(sessions.iter().map(|session| session.id))?;
        return Ok(0);
    }
    let (client, workers) = (&client, &liveness_of_workers(&client).await);
    let rows: Vec<Row> = futures::stream::iter(sessions)
        .map(|session| async move {
            let worker_liveness = liveness(workers, &session);
            let running_tasks = match worker_liveness {
                Some(Liveness::Suspect | Liveness::Dead) => None,
                _ => running_tasks(client, &session).await,
            };
            Row { session, worker_liveness, running_tasks }
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    if global.json() {
        output::json(&rows)?;
        return Ok(0);
    }
    let header = [
        "SESSION", "NAME", "STATE", "TASKS", "TEMPLATE", "BACKEND", "WORKER", "CPU", "MEMORY", "AGE", "LEFT",
    ];
    let tenants: Vec<&str> = rows.iter().map(|row| row.session.tenant.as_str()).collect();
    output::table_of_tenants(&header, rows.iter().map(session_row).collect(), &tenants, "no sessions")?;
    for session in rows.iter().map(|row| &row.session) {
        for line in remarks(session) {
            output::say(format!("{}: {line}", select::short(session.id)));
        }
    }
    Ok(0)
}

/// What of a session does not fit into its row.
fn remarks(session: &SessionInfo) -> Vec<String> {
    let mut lines = Vec::new();
    if session.state != SessionState::Ended && !session.message.is_empty() {
        lines.push(session.message.clone());
    }
    if let (Some(checkpoint), true) = (&session.recovered_from, session.state != SessionState::Ended) {
        let to = checkpoint::time(session.recovered_to);
        lines.push(format!("recovered to {to} from checkpoint {}", select::short(checkpoint)));
    }
    lines
}

/// How each worker is. `None`: it could not be asked for.
async fn liveness_of_workers(client: &Client) -> Option<BTreeMap<String, Liveness>> {
    let asked = tokio::time::timeout(ASK_DEADLINE, client.workers()).await;
    let workers = asked.ok()?.ok()?;
    Some(workers.into_iter().map(|worker| (worker.id, worker.liveness)).collect())
}

fn liveness(workers: &Option<BTreeMap<String, Liveness>>, session: &SessionInfo) -> Option<Liveness> {
    if session.state == SessionState::Ended {
        return None;
    }
    let (workers, worker) = (workers.as_ref()?, session.worker.as_ref()?);
    // One that the coordinator has never seen since its start is as good as gone.
    Some(workers.get(worker).copied().unwrap_or(Liveness::Dead))
}

async fn running_tasks(client: &Client, session: &SessionInfo) -> Option<usize> {
    match session.state {
        SessionState::Ready | SessionState::Paused => {
            let session = client.session(session.id);
            let asked = tokio::time::timeout(ASK_DEADLINE, session.running_tasks()).await;
            asked.ok()?.ok().map(|tasks| tasks.len())
        }
        _ => Some(0),
    }
}

fn session_row(row: &Row) -> Vec<String> {
    let session = &row.session;
    let mut state = session_state_name(session.state).to_owned();
    if let Some(reason) = session.end_reason {
        state.push_str(&format!(" ({})", reason_text(reason)));
    }
    // What it was when its worker was last heard of.
    match row.worker_liveness {
        Some(Liveness::Suspect) => state.push_str(" (worker silent)"),
        Some(Liveness::Dead) => state.push_str(" (worker lost)"),
        Some(Liveness::Alive) | None => {}
    }
    let ended = session.state == SessionState::Ended;
    vec![
        select::short(session.id),
        session.labels.get(select::NAME_LABEL).map(|name| clipped(name, 24)).unwrap_or_default(),
        state,
        row.running_tasks.map_or_else(|| "?".to_owned(), |n| n.to_string()),
        clipped(&session.template, 24),
        session.backend.clone(),
        session.worker.as_deref().map(|id| clipped(id, 24)).unwrap_or_default(),
        cores(session.limits.cpu_millis),
        bytes(session.limits.memory_bytes),
        ago(session.created_at),
        if ended { String::new() } else { left(session.expires_at) },
    ]
}

/// Lists the tasks of a session, newest first.
#[derive(Args, Debug)]
pub struct TasksArgs {
    /// Session
    pub session: String,

    /// Those that `berth cp` started, too
    #[arg(long, short = 'a')]
    pub all: bool,

    /// Only tasks that run
    #[arg(long, short = 'r')]
    pub running: bool,

    /// Only ids, one a line
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

pub async fn tasks(global: &Global, args: TasksArgs) -> CommandResult {
    let client = global.client().await?;
    let session = select::session(&client, &args.session).await?;
    let mut tasks = if args.running { session.running_tasks().await? } else { session.tasks().await? };
    tasks.retain(|task| args.all || !is_helper(&task.program));
    if args.quiet {
        output::ids(tasks.iter().map(|task| task.id))?;
    } else if global.json() {
        output::json(&tasks)?;
    } else {
        let header =
            ["TASK", "STATE", "OUTCOME", "TIME", "CPU", "PEAK", "STDOUT", "STDERR", "AGE", "PROGRAM"];
        output::table(&header, tasks.iter().map(task_row).collect(), "no tasks")?;
    }
    Ok(0)
}

fn task_row(task: &TaskInfo) -> Vec<String> {
    let end = task.end.as_ref();
    vec![
        select::short(task.id),
        task.state.name().to_owned(),
        end.map(|end| outcome_text(end.outcome)).unwrap_or_default(),
        end.map(|end| span(end.duration)).unwrap_or_default(),
        end.map(|end| span(end.usage.cpu_user + end.usage.cpu_system)).unwrap_or_default(),
        end.filter(|end| end.usage.peak_memory_bytes > 0)
            .map(|end| bytes(end.usage.peak_memory_bytes))
            .unwrap_or_default(),
        bytes(task.stdout.length),
        bytes(task.stderr.length),
        ago(task.started_at),
        clipped(&program_text(&task.program), 48),
    ]
}

/// An end reason in words.
pub fn reason_text(reason: EndReason) -> String {
    end_reason_name(reason).replace('_', " ")
}

/// A program as listings show it.
pub fn program_text(program: &TaskProgram) -> String {
    match program.shell.as_deref() {
        Some(SHELL) => "shell".to_owned(),
        _ => program.line(),
    }
}

pub async fn templates(global: &Global) -> CommandResult {
    let templates = global.client().await?.templates().await?;
    if global.json() {
        output::json(&templates)?;
        return Ok(0);
    }
    let rows = templates
        .iter()
        .map(|template| {
            vec![
                template.name.clone(),
                template.backend.clone(),
                template.image.clone().or_else(|| template.root.clone()).unwrap_or_default(),
                cores(template.limits.cpu_millis),
                bytes(template.limits.memory_bytes),
                bytes(template.limits.disk_bytes),
                template.limits.pids.to_string(),
                template.ttl.map(span).unwrap_or_default(),
                template.workers.len().to_string(),
                clipped(&template.description, 48),
            ]
        })
        .collect();
    let header = [
        "TEMPLATE",
        "BACKEND",
        "ROOT OR IMAGE",
        "CPU",
        "MEMORY",
        "DISK",
        "PIDS",
        "TTL",
        "WORKERS",
        "DESCRIPTION",
    ];
    output::table(&header, rows, "no templates")?;
    for template in &templates {
        for (worker, reason) in &template.problems {
            output::say(format!("{worker} can't serve {}: {reason}", template.name));
        }
    }
    Ok(0)
}

#[derive(Serialize)]
struct VariableRow {
    name: &'static str,
    used_by: &'static str,
    what: &'static str,
    set: bool,
}

/// The variables that are known, and which of them are set here. Not their values: some are secrets.
pub fn env(global: &Global) -> CommandResult {
    let rows: Vec<VariableRow> = variables::KNOWN
        .iter()
        .map(|known| VariableRow {
            name: known.name,
            used_by: known.used_by,
            what: known.what,
            set: std::env::var_os(known.name).is_some(),
        })
        .collect();
    if global.json() {
        output::json(&rows)?;
        return Ok(0);
    }
    let cells = rows
        .iter()
        .map(|row| {
            let set = if row.set { "set" } else { "" };
            vec![row.name.to_owned(), set.to_owned(), row.used_by.to_owned(), row.what.to_owned()]
        })
        .collect();
    output::table(&["NAME", "HERE", "READ BY", "WHAT IT SETS (DEFAULT)"], cells, "")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_recovery_is_told_beside_the_table() {
        let mut session = select::tests::info(1, &[]);
        assert!(remarks(&session).is_empty());
        session.recovered_from = Some("c".repeat(32));
        session.recovered_to = Some(SystemTime::UNIX_EPOCH);
        assert_eq!(remarks(&session), ["recovered to 1970-01-01T00:00:00Z from checkpoint cccccccccccc"]);
        session.state = SessionState::Ended;
        assert!(remarks(&session).is_empty());
    }
}
