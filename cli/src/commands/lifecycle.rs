//! Changing and ending what is there: `rm`, `pause`, `resume`, `update`, `kill`.

use std::time::Duration;

use berth_client::{Client, Error, Session, UpdateOptions, model::SessionInfo};
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::{Global, options::EgressArgs, stream::outcome_text};
use crate::{
    failure::{CommandResult, Failure, code},
    output, select, value,
};

/// Which sessions.
#[derive(Args, Debug)]
pub struct SessionsArgs {
    /// Sessions
    #[arg(required = true, value_name = "SESSION")]
    pub sessions: Vec<String>,
}

const RM_HELP: &str = "\
Examples:
  berth rm web
  berth rm 3f9ac2 77d01b
  berth rm $(berth ps -q --label team=red)
  berth rm --no-checkpoint web           although it was created with --checkpoint-before-rm";

/// Ends sessions and removes their files.
#[derive(Args, Debug)]
#[command(after_help = RM_HELP)]
pub struct RmArgs {
    /// Sessions
    #[arg(required = true, value_name = "SESSION")]
    pub sessions: Vec<String>,

    /// Without the checkpoint that they were created to have taken now
    #[arg(long)]
    pub no_checkpoint: bool,
}

pub async fn rm(global: &Global, args: RmArgs) -> CommandResult {
    if args.no_checkpoint {
        return each(global, &args.sessions, async |session| session.delete_without_checkpoint().await).await;
    }
    each(global, &args.sessions, async |session| session.delete().await).await
}

pub async fn pause(global: &Global, args: SessionsArgs) -> CommandResult {
    each(global, &args.sessions, async |session| session.pause().await).await
}

/// What was parked in between is told: its files are back, its processes are not.
pub async fn resume(global: &Global, args: SessionsArgs) -> CommandResult {
    let told = |info: SessionInfo| {
        if !info.message.is_empty() {
            output::say(format!("{}: {}", select::short(info.id), info.message));
        }
        info
    };
    each(global, &args.sessions, async |session| session.resume().await.map(told)).await
}

/// Does the same to each session, whatever becomes of the others, and fails if one failed.
async fn each(
    global: &Global,
    names: &[String],
    act: impl AsyncFn(Session) -> Result<SessionInfo, Error>,
) -> CommandResult {
    let client = global.client().await?;
    let mut done = Vec::new();
    let mut failed = false;
    for name in names {
        match one(&client, name, &act).await {
            Ok(info) if global.json() => done.push(info),
            Ok(info) => output::data(info.id)?,
            Err(failure) => {
                failed = true;
                failure.about(name).report();
            }
        }
    }
    if global.json() {
        output::json(&done)?;
    }
    Ok(if failed { code::FAILED } else { 0 })
}

async fn one(
    client: &Client,
    name: &str,
    act: &impl AsyncFn(Session) -> Result<SessionInfo, Error>,
) -> Result<SessionInfo, Failure> {
    let session = select::session(client, name).await?;
    Ok(act(session).await?)
}

const UPDATE_HELP: &str = "\
Examples:
  berth update web --ttl 2h              two more hours from now
  berth update web --label team=blue --remove-label draft
  berth update web --egress packages --allow git.example.org:443
  berth update web --egress none         cuts what is open";

/// Changes a session's labels, life span and egress.
#[derive(Args, Debug)]
#[command(after_help = UPDATE_HELP, override_usage = "berth update [OPTIONS] <SESSION>")]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["labels", "remove_labels", "name", "ttl", "idle_timeout", "egress", "allow"]))]
#[group(skip)]
pub struct UpdateArgs {
    /// Session
    pub session: String,

    /// Label to set
    #[arg(long = "label", short = 'l', value_parser = value::pair, value_name = "NAME=VALUE")]
    pub labels: Vec<(String, String)>,

    /// Label to remove
    #[arg(long = "remove-label", value_name = "NAME")]
    pub remove_labels: Vec<String>,

    /// New name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// New life span, from now; 0: no end
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub ttl: Option<Duration>,

    /// New idle timeout; 0: none
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub idle_timeout: Option<Duration>,

    #[command(flatten)]
    pub egress: EgressArgs,
}

pub async fn update(global: &Global, args: UpdateArgs) -> CommandResult {
    let client = global.client().await?;
    let session = select::session(&client, &args.session).await?;
    let mut options = UpdateOptions::new();
    for (name, value) in args.labels {
        options = options.label(name, value);
    }
    if let Some(name) = args.name {
        options = options.label(select::NAME_LABEL, name);
    }
    for name in args.remove_labels {
        options = options.remove_label(name);
    }
    if let Some(ttl) = args.ttl {
        options = options.ttl(ttl);
    }
    if let Some(timeout) = args.idle_timeout {
        options = options.idle_timeout(timeout);
    }
    if let Some(egress) = args.egress.policy() {
        options = options.egress(egress);
    }
    let info = session.update(options).await?;
    if global.json() {
        output::json(&info)?;
    } else {
        output::data(info.id)?;
    }
    Ok(0)
}

const KILL_HELP: &str = "\
Without --signal the task is cancelled: TERM, and after the grace KILL to all that it started.
With it, the signal goes to the task's main process and its process group.

Examples:
  berth kill web                    cancel the newest task
  berth kill web 3f9ac2 --grace 10s
  berth kill web --signal HUP";

/// Signals or cancels a task.
#[derive(Args, Debug)]
#[command(after_help = KILL_HELP)]
pub struct KillArgs {
    /// Session
    pub session: String,

    /// Task [default: the newest that `berth cp` did not start]
    pub task: Option<String>,

    /// Signal to send: a name or a number
    #[arg(long, short = 's', value_parser = value::signal, value_name = "SIGNAL")]
    pub signal: Option<i32>,

    /// Time between TERM and KILL, at most 60s
    #[arg(long, value_parser = value::duration, default_value = "2s", conflicts_with = "signal", value_name = "TIME")]
    pub grace: Duration,
}

#[derive(Serialize)]
struct Signalled {
    task: String,
    signal: String,
}

pub async fn kill(global: &Global, args: KillArgs) -> CommandResult {
    let client = global.client().await?;
    let session = select::session(&client, &args.session).await?;
    let task = select::task(&session, args.task.as_deref()).await?;
    if let Some(signal) = args.signal {
        task.signal(signal).await?;
        if global.json() {
            output::json(&Signalled { task: task.id().to_string(), signal: value::signal_name(signal) })?;
        } else {
            output::data(task.id())?;
        }
        return Ok(0);
    }
    let info = task.cancel_with(args.grace).await?;
    if global.json() {
        output::json(&info)?;
    } else {
        output::data(info.id)?;
        if let Some(end) = &info.end {
            output::say(outcome_text(end.outcome));
        }
    }
    Ok(0)
}
