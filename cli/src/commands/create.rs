//! `berth create`.

use berth_client::model::SessionInfo;
use clap::Args;

use super::{
    Global,
    options::{LastingArgs, RequestArgs, SessionArgs},
};
use crate::{
    failure::{CommandResult, Failure},
    output::{self, say},
    select,
};

const HELP: &str = "\
Examples:
  berth create --name web --memory 1G --ttl 8h
  session=$(berth create --label team=red)
  berth create --on disk=fast --wait 5m --env TOKEN
  berth create --name ci --task-timeout 30m --max-tasks 4
  berth create --name web --checkpoint-every 5m --on-worker-loss restore

A worker offers four times its cores, so that sessions that mostly wait share them; memory and
disk are offered once. `berth workers` shows what is offered and what is taken.";

/// Makes a session and prints its id when it is ready.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CreateArgs {
    #[command(flatten)]
    pub session: SessionArgs,

    #[command(flatten)]
    pub lasting: LastingArgs,

    #[command(flatten)]
    pub request: RequestArgs,
}

pub async fn run(global: &Global, args: CreateArgs) -> CommandResult {
    let client = global.client().await?;
    let options = args.request.over(args.lasting.over(args.session.options()));
    let info = client.create(options).await?;
    tell_made(global, &info, args.session.any.name)?;
    Ok(0)
}

/// A new session: its id, and for people what to do with it.
pub fn tell_made(global: &Global, info: &SessionInfo, name: Option<String>) -> Result<(), Failure> {
    if global.json() {
        return output::json(info);
    }
    output::data(info.id)?;
    if super::stderr_is_terminal() {
        let name = name.unwrap_or_else(|| select::short(info.id));
        say(format!("{} on {}", info.backend, info.worker.as_deref().unwrap_or("no worker yet")));
        output::hint(format!("berth run --session {name} -- …, berth shell {name}, berth rm {name}"));
    }
    Ok(())
}
