//! `berth restore` and `berth fork`: new sessions from the files of another.

use berth_client::{
    Error,
    model::{CheckpointInfo, SessionInfo},
};
use clap::{Arg, Args};
use serde::Serialize;

use super::{
    Global, checkpoint,
    create::tell_made,
    options::{AnySessionArgs, LastingArgs, RequestArgs},
    wait,
};
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, say},
    select,
};

const RESTORE_HELP: &str = "\
What is left out stays as it was when the checkpoint was taken: template, limits, env, labels but
the name, defaults of tasks, and what is said of checkpoints. Limits, env and labels given here go
over these one by one; --checkpoint-… options replace all that was said of checkpoints, and
--checkpoint-every 0 alone ends them. Life span and idle timeout are the template's.

Processes are not restored. `berth logs` shows the ends of what finished tasks wrote.

A CHECKPOINT is a full id, or at least 4 characters of its beginning or end; `berth checkpoint
list` shows them.

Examples:
  berth restore 3f9ac2
  berth restore 3f9ac2 --name web --memory 2G
  berth restore $(berth checkpoint web)";

/// Makes a session of a checkpoint and prints its id when it is ready.
#[derive(Args, Debug)]
#[command(after_help = RESTORE_HELP, mut_args(of_checkpoint))]
pub struct RestoreArgs {
    /// Checkpoint
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: String,

    #[command(flatten)]
    pub session: AnySessionArgs,

    #[command(flatten)]
    pub lasting: LastingArgs,

    #[command(flatten)]
    pub request: RequestArgs,
}

const FORK_HELP: &str = "\
Takes one checkpoint, and makes each new session of it as `berth restore` does: the same files, no
processes. The session itself runs on. The checkpoint stays; `berth checkpoint rm` removes it.

Examples:
  berth fork web
  berth fork web -n 3 --label try=1
  for id in $(berth fork web -n 3); do berth run -d -s $id -- make test; done";

/// Makes sessions with the files of a session and prints their ids when they are ready.
#[derive(Args, Debug)]
#[command(after_help = FORK_HELP, mut_args(of_checkpoint))]
pub struct ForkArgs {
    /// Session
    #[arg(value_name = "SESSION")]
    pub source: String,

    /// Sessions to make
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "COUNT")]
    pub count: u32,

    #[command(flatten)]
    pub session: AnySessionArgs,

    #[command(flatten)]
    pub lasting: LastingArgs,
}

/// The options of `create` have other defaults here.
fn of_checkpoint(arg: Arg) -> Arg {
    let Some(help) = arg.get_help().map(ToString::to_string) else { return arg };
    // Life span is no part of a checkpoint.
    if arg.get_id() == "ttl" {
        return arg;
    }
    let help = help.replace("the template's", "as it was").replace("[default: end]", "[default: as it was]");
    arg.help(help)
}

pub async fn restore(global: &Global, args: RestoreArgs) -> CommandResult {
    let client = global.client().await?;
    let id = select::checkpoint(&client, &args.checkpoint).await?;
    let options = args.request.over(args.lasting.over(args.session.options()));
    let what = format!("restoring checkpoint {}", select::short(&id));
    let Some(info) = wait::for_call(what, client.restore(&id, options)).await? else {
        say("not waited for; `berth ps` shows what became of the new session");
        return Ok(code::CANCELLED);
    };
    tell_made(global, &info, args.session.name)?;
    Ok(0)
}

#[derive(Serialize)]
struct Forked {
    sessions: Vec<SessionInfo>,
    checkpoint: CheckpointInfo,
}

pub async fn fork(global: &Global, args: ForkArgs) -> CommandResult {
    if args.count > 1 && args.session.name.is_some() {
        return Err(Failure::usage("--name is for one session: of live sessions each has another name")
            .hint("leave it out and name each with `berth update`, or tell them apart by --label"));
    }
    let client = global.client().await?;
    let source = select::session(&client, &args.source).await?;
    let options = args.lasting.over(args.session.options());
    let what = format!("forking {}", output::clipped(&args.source, 40));
    let call = async { Ok(source.fork(args.count, options).await) };
    let forked = match wait::for_call(what, call).await? {
        None => {
            say("not waited for; `berth ps` shows which sessions were made");
            return Ok(code::CANCELLED);
        }
        Some(forked) => forked.map_err(incomplete)?,
    };
    tell_forked(global, forked)
}

/// Some of the sessions may have been made. They stay, so they are named.
fn incomplete(error: Error) -> Failure {
    let made = error.detail("sessions").unwrap_or_default().replace(',', " ");
    let failure = Failure::from(error);
    if made.is_empty() {
        failure
    } else {
        failure.hint(format!("those that were made stay: berth rm {made}"))
    }
}

fn tell_forked(global: &Global, (sessions, checkpoint): (Vec<SessionInfo>, CheckpointInfo)) -> CommandResult {
    if global.json() {
        output::json(&Forked { sessions, checkpoint })?;
        return Ok(0);
    }
    for session in &sessions {
        output::data(session.id)?;
    }
    say(format!("from checkpoint {}, which stays", checkpoint.id));
    checkpoint::tell(&checkpoint);
    Ok(0)
}
