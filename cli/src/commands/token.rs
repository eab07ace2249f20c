//! `berth token`: where the credentials of this machine are.

use std::path::PathBuf;

use berth_client::local;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output,
};

const HELP: &str = "\
Examples:
  berth token show
  berth token show --value join | ssh worker-2 'umask 77; cat > /etc/berth/join.token'";

/// Where credentials are.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Show where the credentials of this machine are
    Show {
        /// Print this token itself, and nothing else
        #[arg(long, value_parser = ["admin", "join"], value_name = "TOKEN")]
        value: Option<String>,
    },
}

#[derive(Serialize)]
struct Row {
    token: &'static str,
    used_by: &'static str,
    path: PathBuf,
    present: bool,
}

#[derive(Serialize)]
struct Value<'a> {
    token: &'a str,
    value: &'a str,
}

pub fn run(global: &Global, args: TokenArgs) -> CommandResult {
    let TokenCommand::Show { value } = args.command;
    let dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    let places = [
        ("admin", "clients: BERTH_TOKEN", local::admin_token_path(&dir)),
        ("join", "workers: BERTH_JOIN_TOKEN_FILE", local::join_token_path(&dir)),
    ];
    if let Some(wanted) = value {
        for (_, _, path) in places.iter().filter(|(name, ..)| *name == wanted) {
            let token = local::read_token(path)?.ok_or_else(|| {
                Failure::new(format!("there is no {wanted} token in {}", path.display()))
                    .hint("the coordinator makes it on its first start: `berth up`, or `coordinator`")
            })?;
            if global.json() {
                output::json(&Value { token: &wanted, value: &token })?;
            } else {
                output::data(token)?;
            }
        }
        return Ok(0);
    }
    let rows: Vec<Row> = places
        .into_iter()
        // Readable is what counts: whoever may not read it has no token here.
        .map(|(token, used_by, path)| Row {
            token,
            used_by,
            present: std::fs::File::open(&path).is_ok(),
            path,
        })
        .collect();
    if global.json() {
        output::json(&rows)?;
        return Ok(0);
    }
    let cells = rows
        .iter()
        .map(|row| {
            let state = if row.present { "readable" } else { "absent or not yours" };
            vec![
                row.token.to_owned(),
                state.to_owned(),
                row.used_by.to_owned(),
                row.path.display().to_string(),
            ]
        })
        .collect();
    output::table(&["TOKEN", "STATE", "USED BY", "FILE"], cells, "")?;
    Ok(0)
}
