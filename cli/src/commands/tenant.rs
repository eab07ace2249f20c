//! `berth tenant`: whose the sessions are, and how much each may have.

use berth_client::model::{QuotaPatch, TenantInfo};
use clap::{Args, Subcommand};

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, bytes, cores},
    value,
};

const HELP: &str = "\
A tenant is made by its name: with the first token or the first quota that names it. It sees its
own sessions, tasks, files and checkpoints and nobody else's. Tokens in the coordinator's
credential files are of the tenant `default`.

Examples:
  berth tenant set team-a --max-sessions 20 --cpu 16 --memory 64G --creates-per-minute 30
  berth tenant set team-a --memory none        no limit any more
  berth token create --tenant team-a --name ci
  berth tenant show team-a";

/// Whose the sessions are, and how much each may have.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct TenantArgs {
    #[command(subcommand)]
    pub command: TenantCommand,
}

#[derive(Subcommand, Debug)]
pub enum TenantCommand {
    /// Set what a tenant may have; what is left out stays
    Set(SetArgs),
    /// List tenants, with what they have and may have
    List,
    /// Show a tenant
    Show {
        /// Tenant
        #[arg(value_name = "TENANT")]
        tenant: String,
    },
}

#[derive(Args, Debug)]
pub struct SetArgs {
    /// Tenant: 1 to 63 of a-z, 0-9 and -
    #[arg(value_name = "TENANT")]
    pub tenant: String,

    /// Sessions that have not ended, those that wait and parked ones too, or none for no limit
    #[arg(long, value_parser = number, value_name = "N")]
    pub max_sessions: Option<Figure>,

    /// Cores of all of them together, e.g. 16 or 500m, or none
    #[arg(long, value_parser = cpu, value_name = "CORES")]
    pub cpu: Option<Figure>,

    /// Memory of all of them together, e.g. 64G, or none
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub memory: Option<Figure>,

    /// Disk of all of them together, e.g. 100G, or none
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub disk: Option<Figure>,

    /// Open calls to tasks and files, and streams of events, or none
    #[arg(long, value_parser = number, value_name = "N")]
    pub streams: Option<Figure>,

    /// Sessions made in any 60 seconds, or none
    #[arg(long, value_parser = number, value_name = "N")]
    pub creates_per_minute: Option<Figure>,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug)]
pub struct Figure(Option<u64>);

fn figure(text: &str, parse: impl FnOnce(&str) -> Result<u64, String>) -> Result<Figure, String> {
    if text == "none" { Ok(Figure(None)) } else { parse(text).map(|limit| Figure(Some(limit))) }
}

fn number(text: &str) -> Result<Figure, String> {
    figure(text, |text| text.parse().map_err(|_| format!("{text:?} is neither a number nor `none`")))
}

fn cpu(text: &str) -> Result<Figure, String> {
    figure(text, |text| value::cores(text).map(u64::from))
}

fn size(text: &str) -> Result<Figure, String> {
    figure(text, value::size)
}

pub async fn run(global: &Global, args: TenantArgs) -> CommandResult {
    let client = global.client().await?;
    match args.command {
        TenantCommand::List => list(global, &client.tenants().await?),
        TenantCommand::Show { tenant } => show(global, &client.tenant(&tenant).await?),
        TenantCommand::Set(args) => {
            let limit = |figure: Option<Figure>| figure.map(|Figure(limit)| limit);
            let patch = QuotaPatch {
                sessions: limit(args.max_sessions),
                cpu_millis: limit(args.cpu),
                memory_bytes: limit(args.memory),
                disk_bytes: limit(args.disk),
                streams: limit(args.streams),
                creates_per_minute: limit(args.creates_per_minute),
            };
            if patch == QuotaPatch::default() {
                return Err(
                    Failure::usage("no quota is named").hint("name one, for example --max-sessions 20")
                );
            }
            show(global, &client.set_quota(&args.tenant, patch).await?)
        }
    }
}

/// What there is of each quota, and how much of it there may be.
fn pairs(tenant: &TenantInfo) -> Vec<(&'static str, String)> {
    fn plain(n: u64) -> String {
        n.to_string()
    }
    fn millis(n: u64) -> String {
        u32::try_from(n).map_or_else(|_| (n / 1000).to_string(), cores)
    }
    let pair = |used: Option<u64>, limit: Option<u64>, shown: fn(u64) -> String| {
        let limit = limit.map_or_else(|| "-".to_owned(), shown);
        format!("{}/{limit}", shown(used.unwrap_or_default()))
    };
    let TenantInfo { quota, used, .. } = tenant;
    vec![
        ("sessions", pair(used.sessions, quota.sessions, plain)),
        ("cpu", pair(used.cpu_millis, quota.cpu_millis, millis)),
        ("memory", pair(used.memory_bytes, quota.memory_bytes, bytes)),
        ("disk", pair(used.disk_bytes, quota.disk_bytes, bytes)),
        ("streams", pair(used.streams, quota.streams, plain)),
        ("creates/min", pair(used.creates_per_minute, quota.creates_per_minute, plain)),
    ]
}

fn list(global: &Global, tenants: &[TenantInfo]) -> CommandResult {
    if global.json() {
        output::json(&tenants)?;
        return Ok(0);
    }
    let row = |tenant: &TenantInfo| {
        let mut row = vec![tenant.name.clone()];
        row.extend(pairs(tenant).into_iter().map(|(_, text)| text));
        row.push(tenant.tokens.to_string());
        row
    };
    let header = ["TENANT", "SESSIONS", "CPU", "MEMORY", "DISK", "STREAMS", "CREATES/MIN", "TOKENS"];
    output::table(&header, tenants.iter().map(row).collect(), "no tenants")?;
    Ok(0)
}

fn show(global: &Global, tenant: &TenantInfo) -> CommandResult {
    if global.json() {
        output::json(tenant)?;
        return Ok(0);
    }
    let mut all = vec![("tenant", tenant.name.clone())];
    all.extend(pairs(tenant));
    all.push(("tokens", tenant.tokens.to_string()));
    output::details(&all)?;
    Ok(0)
}
