//! `berth checkpoint`: taking, listing, showing and removing checkpoints.
//!
//! `berth checkpoint SESSION` is short for `berth checkpoint create SESSION`. The words of the other commands always mean
//! those commands, wherever they stand, and a session beside one is refused: nothing that is typed means two things.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use berth_client::{
    CheckpointOptions, Client, SessionId,
    model::{CheckpointInfo, json::time_text},
};
use clap::{Args, Subcommand};

use super::{Global, removal::remove_each, wait};
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, ago, bytes, clipped, left, say, span},
    select, value,
};

const HELP: &str = "\
A checkpoint holds the files of a session, and the ends of what its finished tasks wrote. Its
tasks stand still while their files are read; what runs is not in it. `berth restore` and
`berth fork` make new sessions of one.

A session that is called list, show, rm or create is meant by `berth checkpoint create list`.

A CHECKPOINT is a full id, or at least 4 characters of its beginning or end.

Examples:
  berth checkpoint web
  berth checkpoint web --note 'before the upgrade' --keep-for 7days
  berth checkpoint list web
  berth checkpoint rm $(berth checkpoint list -q web)";

/// Takes a checkpoint of a session, or looks after those that there are.
#[derive(Args, Debug)]
#[command(after_help = HELP, subcommand_negates_reqs = true)]
#[command(
    override_usage = "berth checkpoint [OPTIONS] <SESSION>\n       berth checkpoint <create|list|show|rm> …"
)]
pub struct CheckpointArgs {
    #[command(subcommand)]
    pub command: Option<CheckpointCommand>,

    /// Session to take one of
    #[arg(required = true, value_name = "SESSION")]
    pub session: Option<String>,

    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Subcommand, Debug)]
pub enum CheckpointCommand {
    /// Take one; prints its id
    Create(CreateArgs),
    /// List them, newest first
    List(ListArgs),
    /// Show one in full
    Show(ShowArgs),
    /// Remove some
    Rm(RmArgs),
}

#[derive(Args, Debug, Clone, Default)]
pub struct HowArgs {
    /// Note for people
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,

    /// Remove it after this long [default: it stays]
    #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
    pub keep_for: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Session to take one of
    #[arg(value_name = "SESSION")]
    pub session: String,

    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only of this session, which may have ended: an id, a part of one, a name or a label that it had
    #[arg(value_name = "SESSION")]
    pub session: Option<String>,

    /// Only ids, one a line
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Checkpoint
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: String,
}

#[derive(Args, Debug)]
pub struct RmArgs {
    /// Checkpoints
    #[arg(required = true, value_name = "CHECKPOINT")]
    pub checkpoints: Vec<String>,
}

pub async fn run(global: &Global, args: CheckpointArgs) -> CommandResult {
    let CheckpointArgs { command, session, how } = args;
    let Some(command) = command else {
        let session = session.ok_or_else(|| {
            Failure::usage("of which session?").hint("berth checkpoint SESSION; `berth ps` lists them")
        })?;
        return create(global, CreateArgs { session, how }).await;
    };
    if session.is_some() || how.note.is_some() || how.keep_for.is_some() {
        return Err(Failure::usage("a session or an option of `create` stands before another command")
            .hint("put the options behind it: berth checkpoint create SESSION --note …")
            .hint("a session that is called like a command: berth checkpoint create list"));
    }
    match command {
        CheckpointCommand::Create(args) => create(global, args).await,
        CheckpointCommand::List(args) => list(global, args).await,
        CheckpointCommand::Show(args) => show(global, args).await,
        CheckpointCommand::Rm(args) => rm(global, args).await,
    }
}

async fn create(global: &Global, args: CreateArgs) -> CommandResult {
    let client = global.client().await?;
    let session = select::session(&client, &args.session).await?;
    let options = CheckpointOptions { note: args.how.note.unwrap_or_default(), keep_for: args.how.keep_for };
    let what = format!("taking a checkpoint of {}", output::clipped(&args.session, 40));
    let Some(taken) = wait::for_call(what, session.checkpoint(options)).await? else {
        say("not waited for; `berth checkpoint list` shows whether it was taken");
        return Ok(code::CANCELLED);
    };
    if global.json() {
        output::json(&taken)?;
    } else {
        output::data(&taken.id)?;
        tell(&taken);
    }
    Ok(0)
}

/// What is in a new checkpoint, and what is not.
pub fn tell(taken: &CheckpointInfo) {
    say(format!(
        "{}, {} ({} of it new, compressed); the tasks stood still for {}",
        entries(taken.entries),
        bytes(taken.content_bytes),
        bytes(taken.stored_bytes),
        span(taken.frozen_for.unwrap_or_default())
    ));
    if taken.skipped > 0 {
        output::warning(format!("{} left out: {LEFT_OUT}", entries(taken.skipped)));
    }
}

fn entries(number: u64) -> String {
    match number {
        1 => "1 entry".to_owned(),
        number => format!("{number} entries"),
    }
}

const LEFT_OUT: &str = "sockets, devices, pipes, and what could not be read";

async fn list(global: &Global, args: ListArgs) -> CommandResult {
    let client = global.client().await?;
    let checkpoints = match &args.session {
        None => client.checkpoints(None).await?,
        Some(session) => of_session(&client, session).await?,
    };
    if args.quiet {
        output::ids(checkpoints.iter().map(|checkpoint| &checkpoint.id))?;
    } else if global.json() {
        output::json(&checkpoints)?;
    } else {
        let header = [
            "CHECKPOINT",
            "SESSION",
            "NAME",
            "CAUSE",
            "TEMPLATE",
            "ENTRIES",
            "SIZE",
            "STORED",
            "AGE",
            "LEFT",
            "NOTE",
        ];
        let tenants: Vec<&str> = checkpoints.iter().map(|checkpoint| checkpoint.tenant.as_str()).collect();
        output::table_of_tenants(&header, checkpoints.iter().map(row).collect(), &tenants, "no checkpoints")?;
    }
    Ok(0)
}

/// Those of the sessions that `text` means, also of ended ones: they outlive their sessions, so a name is also looked
/// for in the labels of that time.
async fn of_session(client: &Client, text: &str) -> Result<Vec<CheckpointInfo>, Failure> {
    if let Ok(id) = SessionId::from_str(text) {
        return Ok(client.checkpoints(Some(id)).await?);
    }
    let mut all = client.checkpoints(None).await?;
    let live = select::session(client, text).await;
    let id = live.as_ref().ok().map(berth_client::Session::id);
    all.retain(|checkpoint| Some(checkpoint.session) == id || select::is_of(checkpoint, text));
    if all.is_empty() {
        live?;
    }
    Ok(all)
}

fn row(checkpoint: &CheckpointInfo) -> Vec<String> {
    vec![
        select::short(&checkpoint.id),
        select::short(checkpoint.session),
        checkpoint.labels.get(select::NAME_LABEL).map(|name| clipped(name, 24)).unwrap_or_default(),
        checkpoint.cause.name().to_owned(),
        clipped(&checkpoint.template, 24),
        checkpoint.entries.to_string(),
        bytes(checkpoint.content_bytes),
        bytes(checkpoint.stored_bytes),
        ago(checkpoint.created_at),
        left(checkpoint.expires_at),
        clipped(&checkpoint.note, 40),
    ]
}

async fn show(global: &Global, args: ShowArgs) -> CommandResult {
    let client = global.client().await?;
    let id = select::checkpoint(&client, &args.checkpoint).await?;
    let checkpoint = client.checkpoint(&id).await?;
    if global.json() {
        output::json(&checkpoint)?;
        return Ok(0);
    }
    let skipped = match checkpoint.skipped {
        0 => String::new(),
        skipped => format!("{skipped}: {LEFT_OUT}"),
    };
    output::details(&[
        ("checkpoint", checkpoint.id.clone()),
        ("session", checkpoint.session.to_string()),
        ("taken", time(checkpoint.created_at)),
        ("cause", checkpoint.cause.name().to_owned()),
        ("note", checkpoint.note.clone()),
        ("template", checkpoint.template.clone()),
        ("labels", output::labels(&checkpoint.labels)),
        ("entries", checkpoint.entries.to_string()),
        ("left out", skipped),
        ("size", bytes(checkpoint.content_bytes)),
        ("stored", format!("{}, beside what was stored before", bytes(checkpoint.stored_bytes))),
        ("stood still", checkpoint.frozen_for.map(span).unwrap_or_default()),
        ("kept until", time(checkpoint.expires_at)),
    ])?;
    Ok(0)
}

/// A time for people, to the second.
pub fn time(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return String::new() };
    let text = time_text(time);
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
    format!("{}Z", whole.trim_end_matches('Z'))
}

async fn rm(global: &Global, args: RmArgs) -> CommandResult {
    remove_each(global, &args.checkpoints, async |client, text| {
        let id = select::checkpoint(client, text).await?;
        client.delete_checkpoint(&id).await?;
        Ok(id)
    })
    .await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        checkpoint: CheckpointArgs,
    }

    fn parse(args: &[&str]) -> Result<CheckpointArgs, clap::Error> {
        Line::try_parse_from(["checkpoint"].iter().chain(args)).map(|line| line.checkpoint)
    }

    #[test]
    fn a_session_alone_is_checkpointed() {
        let args = parse(&["web", "--note", "x"]).unwrap();
        assert!(args.command.is_none());
        assert_eq!((args.session.as_deref(), args.how.note.as_deref()), (Some("web"), Some("x")));
        assert!(parse(&[]).is_err() && parse(&["--note", "x"]).is_err());
    }

    #[test]
    fn the_word_of_a_command_is_never_a_session_unless_it_stands_behind_one() {
        for word in ["list", "create", "show", "rm"] {
            assert!(parse(&["create", word]).is_ok());
        }
        assert!(matches!(parse(&["list"]).unwrap().command, Some(CheckpointCommand::List(_))));
        assert!(parse(&["rm"]).is_err(), "of which checkpoint?");
        let after_option = parse(&["--note", "x", "list"]).unwrap();
        assert!(matches!(after_option.command, Some(CheckpointCommand::List(_))));
        assert_eq!(after_option.session, None);
    }

    #[test]
    fn times_are_told_to_the_second() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(60_250);
        assert_eq!(time(Some(at)), "1970-01-01T00:01:00Z");
        assert_eq!(time(Some(SystemTime::UNIX_EPOCH)), "1970-01-01T00:00:00Z");
        assert_eq!(time(None), "");
    }
}
