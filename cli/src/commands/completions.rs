//! `berth completions`: scripts that complete the command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::{Cli, Global};
use crate::{failure::CommandResult, output};

const HELP: &str = "\
Examples:
  berth completions bash > /etc/bash_completion.d/berth
  berth completions zsh > ~/.zfunc/_berth
  berth completions fish > ~/.config/fish/completions/berth.fish";

/// Prints a completion script.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CompletionsArgs {
    /// Shell
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Serialize)]
struct Script<'a> {
    shell: String,
    script: &'a str,
}

pub fn run(global: &Global, args: CompletionsArgs) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "berth", &mut script);
    let script = String::from_utf8_lossy(&script);
    if global.json() {
        output::json(&Script { shell: args.shell.to_string(), script: script.trim_end() })?;
    } else {
        output::data(script.trim_end())?;
    }
    Ok(0)
}
