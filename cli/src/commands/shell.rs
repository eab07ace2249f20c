//! `berth shell`: a terminal in a session.

use std::{io::IsTerminal, time::Duration};

use berth_client::Command;
use clap::Args;

use super::{
    Global,
    options::{GivenArgs, SessionArgs},
    place::Place,
    run::{Attach, End, attached, on_terminal},
};
use crate::{
    failure::{CommandResult, Failure, code},
    signals::Interrupts,
    value,
};

/// The best shell that the sandbox has, as a login shell. Listings call it `shell`.
pub const SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi";

const HELP: &str = "\
Without SESSION it makes one, which is removed when the shell ends.

Examples:
  berth shell
  berth shell web
  berth shell --memory 2G
  berth shell web -- python3";

/// Opens a terminal in a session.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct ShellArgs {
    /// Session to open it in [default: a new one]
    #[arg(value_name = "SESSION")]
    pub session: Option<String>,

    /// Program to run instead of a shell
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,

    /// Keep the new session
    #[arg(long, conflicts_with = "session")]
    pub keep: bool,

    /// Variable; without =VALUE, as it is set here
    #[arg(long, short = 'e', value_parser = value::variable, value_name = "NAME[=VALUE]")]
    pub env: Vec<(String, String)>,

    #[command(flatten)]
    pub given: GivenArgs,

    /// Directory to start in [default: the workspace]
    #[arg(long, short = 'C', value_name = "DIR")]
    pub cwd: Option<String>,

    #[command(flatten)]
    pub new_session: SessionArgs,
}

pub async fn run(global: &Global, args: ShellArgs) -> CommandResult {
    let ours = |failure: Failure| {
        if failure.code == code::FAILED { failure.with_code(code::BERTH_FAILED) } else { failure }
    };
    run_inner(global, args).await.map_err(ours)
}

async fn run_inner(global: &Global, args: ShellArgs) -> CommandResult {
    if global.json() {
        return Err(Failure::usage("`berth shell` is for a person at a terminal: it has no JSON form")
            .hint("`berth run --format json` has a task's output in its result"));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("`berth shell` needs a terminal as its standard input")
            .hint("for programs without one there is `berth run`"));
    }
    let client = global.client().await?;
    let mut interrupts = Interrupts::new()?;
    let place = tokio::select! {
        place = Place::take(&client, args.session.as_deref(), &args.new_session, args.keep) => place?,
        _ = interrupts.recv() => return Ok(code::CANCELLED),
    };
    let mut command = if args.program.is_empty() {
        Command::shell(SHELL)
    } else {
        Command::argv(args.program.iter().cloned())
    };
    for (name, value) in &args.env {
        command = command.env(name, value);
    }
    command = args.given.give(command);
    if let Some(dir) = &args.cwd {
        command = command.cwd(dir);
    }
    // A person at a terminal is nobody's five-minute task.
    let command = on_terminal(command.timeout(Duration::ZERO).stdin(true));
    let how = Attach { stdin: true, tty: true, json: false };
    match attached(&place.session, command, how, &mut interrupts).await {
        Ok(End::Left) => Ok(code::CANCELLED),
        Ok(End::Code(code)) => {
            place.leave(&mut interrupts).await;
            Ok(code)
        }
        Err(failure) => {
            place.leave(&mut interrupts).await;
            Err(failure)
        }
    }
}
