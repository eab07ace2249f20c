//! `berth secret`: what tasks can be given by name, and nobody can read back.

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    time::Duration,
};

use berth_client::model::SecretInfo;
use berth_proto::secret::VALUE_MAX;
use clap::{Args, Subcommand};

use super::Global;
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, ago, bytes, left},
    terminal, value,
};

const HELP: &str = "\
A secret is kept by the coordinator, in a file of mode 0600 for each (<state>/secrets/TENANT/NAME),
and is never shown again. A task of the tenant's sessions is given it by name: as a file in memory
that is gone when the task ends, or as a variable of this one task. It is read each time that a task
starts, so a new value needs no restart. A task that names one that is missing, expired or
unreadable is not started.

Examples:
  berth secret set npm-token < token.txt
  berth secret set db-password --tenant team-a --ttl 30d
  berth run --secret npm-token -- cat /run/secrets/npm-token
  berth run --secret-env NPM_TOKEN=npm-token -- npm publish
  berth secret list
  berth secret rm npm-token";

/// Secrets that tasks are given by name.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct SecretArgs {
    #[command(subcommand)]
    pub command: SecretCommand,
}

#[derive(Subcommand, Debug)]
pub enum SecretCommand {
    /// Set a secret: its value is read from standard input
    Set(SetArgs),
    /// List secrets: all but their values
    List {
        /// Tenant [default: all]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Remove secrets: tasks that have them keep them
    Rm {
        /// Secrets
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,

        /// Tenant [default: default]
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
}

#[derive(Args, Debug)]
pub struct SetArgs {
    /// Its name: 1 to 64 of A-Z, a-z, 0-9, _ and -
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Tenant whose tasks can be given it [default: default]
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,

    /// It expires after this long [default: never]
    #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
    pub ttl: Option<Duration>,

    /// File that holds the value, as it is (from standard input, line ends at the end are left out)
    #[arg(long, value_name = "FILE")]
    pub from_file: Option<PathBuf>,
}

pub async fn run(global: &Global, args: SecretArgs) -> CommandResult {
    match args.command {
        SecretCommand::Set(args) => set(global, args).await,
        SecretCommand::List { tenant } => {
            list(global, &global.client().await?.secrets(tenant.as_deref()).await?)
        }
        SecretCommand::Rm { names, tenant } => {
            let client = global.client().await?;
            for name in &names {
                client.delete_secret(tenant.as_deref(), name).await?;
                if !global.json() {
                    output::data(name)?;
                }
            }
            if global.json() {
                output::json(&names)?;
            }
            Ok(0)
        }
    }
}

async fn set(global: &Global, args: SetArgs) -> CommandResult {
    let value = match &args.from_file {
        Some(path) => {
            let failed = |error| {
                Failure::new(format!("{} can't be read: {error}", path.display()))
                    .hint("name a file that you may read, or pipe the value in")
            };
            let file = std::fs::File::open(path).map_err(failed)?;
            bounded(file).map_err(failed)?
        }
        None => {
            let Some(value) = typed_or_piped()? else { return Ok(code::CANCELLED) };
            value
        }
    };
    if value.is_empty() {
        return Err(Failure::usage("the value is empty").hint("pipe it in: berth secret set NAME < FILE"));
    }
    let client = global.client().await?;
    let set = client.set_secret(args.tenant.as_deref(), &args.name, value, args.ttl).await?;
    if global.json() {
        output::json(&set)?;
    } else {
        output::say(format!("secret {} of {}: {} bytes", set.name, set.tenant, set.bytes));
    }
    Ok(0)
}

/// What is one too many is left to the coordinator to refuse.
fn bounded(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut value = Vec::new();
    from.take(VALUE_MAX as u64 + 1).read_to_end(&mut value)?;
    Ok(value)
}

/// `None`: Ctrl-C.
fn typed_or_piped() -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error| {
        Failure::new(format!("standard input can't be read: {error}"))
            .hint("pipe the value in, or name a file: --from-file FILE")
    };
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return terminal::hidden_line("value: ").map_err(failed);
    }
    let mut value = bounded(stdin.lock()).map_err(failed)?;
    let end = value.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    value.truncate(end);
    Ok(Some(value))
}

fn list(global: &Global, secrets: &[SecretInfo]) -> CommandResult {
    if global.json() {
        output::json(&secrets)?;
        return Ok(0);
    }
    let row = |secret: &SecretInfo| {
        let expires = secret.expires_at.map_or_else(|| "never".to_owned(), |at| left(Some(at)));
        vec![
            secret.tenant.clone(),
            secret.name.clone(),
            bytes(secret.bytes),
            ago(secret.updated_at),
            expires,
            secret.unusable.clone().unwrap_or_else(|| "ok".to_owned()),
        ]
    };
    let header = ["TENANT", "NAME", "SIZE", "UPDATED", "EXPIRES IN", "STATE"];
    output::table(&header, secrets.iter().map(row).collect(), "no secrets")?;
    Ok(0)
}
