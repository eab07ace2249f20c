//! `berth token`: makes, lists and revokes API tokens; and says where the credentials of this machine are.

use std::{path::PathBuf, time::Duration};

use berth_client::{
    Code, Reason, TokenOptions, local,
    model::{TokenInfo, TokenScope},
};
use berth_gateway::e2b;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, ago, clipped, left},
    select, value,
};

const HELP: &str = "\
A token is shown once, when it is made: `berth token create` prints it and nothing else on stdout.
Scopes: client (sessions, tasks, files and checkpoints of one tenant), worker (to register workers,
which are then given credentials of their own), admin (everything).

Examples:
  berth token create --tenant team-a --name ci --ttl 90d
  export E2B_API_KEY=$(berth token create --e2b)
  berth token create --scope worker --uses 1 | ssh worker-2 'umask 77; cat > /etc/berth/join.token'
  berth token list
  berth token revoke 3f9ac2
  berth token show
  berth token show --value join | ssh worker-2 'umask 77; cat > /etc/berth/join.token'";

/// API tokens, and where the credentials of this machine are.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Make a token and print it: it is never shown again
    Create(CreateArgs),
    /// List tokens: all but the tokens themselves
    List {
        /// Those too that are revoked, expired or used up
        #[arg(long, short = 'a')]
        all: bool,
    },
    /// Revoke tokens: calls and streams under way with them end
    Revoke {
        /// Tokens: ids, or at least 4 characters of the beginning or end of one
        #[arg(value_name = "TOKEN", required = true)]
        tokens: Vec<String>,
    },
    /// Show where the credentials of this machine are
    Show {
        /// Print this token itself, and nothing else
        #[arg(long, value_parser = ["admin", "join"], value_name = "TOKEN")]
        value: Option<String>,
    },
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// What it is good for
    #[arg(long, value_enum, default_value_t = Scope::Client, value_name = "SCOPE")]
    pub scope: Scope,

    /// For people: what it is for
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Whose sessions it makes and, with scope client, sees [default: default]
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,

    /// It expires after this long [default: never]
    #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
    pub ttl: Option<Duration>,

    /// Print it as E2B's SDKs want it: E2B_API_KEY
    #[arg(long)]
    pub e2b: bool,

    /// With scope worker: how many workers may register with it [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub uses: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Scope {
    // No doc comments: see `output::Format`.
    Client,
    Worker,
    Admin,
}

impl From<Scope> for TokenScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Client => Self::Client,
            Scope::Worker => Self::Worker,
            Scope::Admin => Self::Admin,
        }
    }
}

async fn create(global: &Global, args: CreateArgs) -> CommandResult {
    if args.e2b && args.scope == Scope::Worker {
        return Err(Failure::new("a token of scope worker is no API key").hint("leave --scope out, or --e2b"));
    }
    let mut options = TokenOptions::new(args.scope.into());
    options = args.name.into_iter().fold(options, TokenOptions::name);
    options = args.tenant.into_iter().fold(options, TokenOptions::tenant);
    options = args.ttl.into_iter().fold(options, TokenOptions::ttl);
    options = args.uses.into_iter().fold(options, TokenOptions::uses);
    let mut made = global.client().await?.create_token(options).await?;
    if args.e2b {
        made.value = e2b::key(&made.value);
    }
    if global.json() {
        output::json(&made)?;
    } else {
        output::say(format!("token {}; it is shown this once", made.token.id));
        output::data(&made.value)?;
    }
    Ok(0)
}

async fn list(global: &Global, all: bool) -> CommandResult {
    let tokens = global.client().await?.tokens(all).await?;
    if global.json() {
        output::json(&tokens)?;
        return Ok(0);
    }
    let row = |token: &TokenInfo| {
        let of = match (&token.tenant, &token.worker) {
            (_, Some(worker)) => format!("worker {worker}"),
            (Some(tenant), None) => tenant.clone(),
            (None, None) => String::new(),
        };
        vec![
            select::short(&token.id),
            clipped(&token.name, 32),
            token.scope.name().to_owned(),
            of,
            token.state.name().to_owned(),
            token.uses_left.map(|uses| uses.to_string()).unwrap_or_default(),
            ago(token.created_at),
            left(token.expires_at),
        ]
    };
    let header = ["TOKEN", "NAME", "SCOPE", "OF", "STATE", "USES LEFT", "AGE", "LEFT"];
    output::table(&header, tokens.iter().map(row).collect(), "no tokens but those of `berth token show`")?;
    Ok(0)
}

async fn revoke(global: &Global, wanted: Vec<String>) -> CommandResult {
    let client = global.client().await?;
    let known = client.tokens(true).await?;
    // All of them first: a slip in the last one must not leave the first revoked.
    let ids: Vec<String> = wanted.iter().map(|text| which(&known, text)).collect::<Result<_, _>>()?;
    let mut revoked = Vec::new();
    for id in ids {
        revoked.push(client.revoke_token(&id).await?);
    }
    if global.json() {
        output::json(&revoked)?;
    } else {
        output::ids(revoked.iter().map(|token| &token.id))?;
    }
    Ok(0)
}

/// Characters of an id that may stand for it.
const SHORTEST: usize = 4;

fn which(known: &[TokenInfo], text: &str) -> Result<String, Failure> {
    let fits =
        |id: &str| id == text || (text.len() >= SHORTEST && (id.starts_with(text) || id.ends_with(text)));
    let found: Vec<&TokenInfo> = known.iter().filter(|token| fits(&token.id)).collect();
    match found[..] {
        [token] => Ok(token.id.clone()),
        [] => Err(Failure::new(format!("no token has the id {:?}", clipped(text, 64)))
            .with_reason(Code::NotFound, Reason::TokenNotFound)
            .hint("`berth token list --all` lists them")),
        _ => Err(Failure::new(format!("{} tokens have an id like {:?}", found.len(), clipped(text, 64)))
            .hint("give more of it: `berth token list --format json` shows whole ids")),
    }
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

pub async fn run(global: &Global, args: TokenArgs) -> CommandResult {
    match args.command {
        TokenCommand::Create(args) => create(global, args).await,
        TokenCommand::List { all } => list(global, all).await,
        TokenCommand::Revoke { tokens } => revoke(global, tokens).await,
        TokenCommand::Show { value } => show(global, value),
    }
}

fn show(global: &Global, value: Option<String>) -> CommandResult {
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
