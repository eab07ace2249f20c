//! `berth dashboard`: a link to the gateway's page that signs its reader in.
//!
//! The link holds a token of its own, made for it and good for a while, behind `#`: browsers send that part to nobody, and
//! the page takes it out of the address. So neither the operator's own token nor one without an end lies about in a
//! browser's history.

use std::time::Duration;

use berth_client::{TokenOptions, local, model::TokenScope};
use clap::Args;
use serde::Serialize;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, say, span},
    value,
};

const HELP: &str = "\
Whoever has the link may what its token may: by default all that an operator may. `berth token
list` shows the token, `berth token revoke` ends it.

Examples:
  berth dashboard
  berth dashboard --tenant team-a --ttl 8h          sees team-a's sessions, and no workers
  berth dashboard --url https://berth.example.org   of a gateway that is not on this machine";

/// Prints a link to the dashboard that signs its reader in.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct DashboardArgs {
    /// Where the gateway serves HTTP [default: that of `berth up`]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// Sign in as this tenant, and not as an operator
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,

    /// The link is good for this long
    #[arg(long, value_parser = value::some_duration, default_value = "12h", value_name = "TIME")]
    pub ttl: Duration,
}

#[derive(Serialize)]
struct Told {
    /// With the token in it.
    link: String,
    url: String,
    /// Id of the token.
    token: String,
    scope: &'static str,
}

pub async fn run(global: &Global, args: DashboardArgs) -> CommandResult {
    let client = global.client().await?;
    let url = match args.url {
        Some(url) => checked(url)?,
        None => own(global, client.address())?,
    };
    let scope = if args.tenant.is_some() { TokenScope::Client } else { TokenScope::Admin };
    let options = TokenOptions::new(scope).name("dashboard").ttl(args.ttl);
    let made = client.create_token(args.tenant.into_iter().fold(options, TokenOptions::tenant)).await?;
    // Tokens are of letters, digits, `_` and `-`: nothing is to be escaped.
    let link = format!("{url}/#token={}", made.value);
    if global.json() {
        output::json(&Told { link, url, token: made.token.id, scope: scope.name() })?;
        return Ok(0);
    }
    say(format!(
        "good for {}, of scope {}; `berth token revoke {}` ends it",
        span(args.ttl),
        scope.name(),
        &made.token.id
    ));
    output::data(link)?;
    Ok(0)
}

fn checked(url: String) -> Result<String, Failure> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match rest {
        Some(host) if !host.is_empty() && !url.contains(['#', '?', '@', ' ']) => {
            Ok(url.trim_end_matches('/').to_owned())
        }
        _ => Err(Failure::new(format!("{url:?} is no address of a gateway"))
            .hint("write http://host:port or https://host")),
    }
}

/// The gateway of this machine's `berth up`, if that is what is called.
fn own(global: &Global, address: &str) -> Result<String, Failure> {
    let dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    let record = local::read_up_record(&dir)?.filter(|record| address.ends_with(&record.address));
    match record {
        Some(record) => record.http.ok_or_else(|| {
            Failure::new("this `berth up` serves no HTTP, so there is no dashboard")
                .hint("start it with a port that is free: `berth up --http-port 8081`")
        }),
        None => Err(Failure::new(format!("nobody told where the gateway of {address} serves HTTP"))
            .hint("give it with --url: the coordinator's log says \"MCP is served on URL/mcp\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_http() {
        assert_eq!(checked("http://127.0.0.1:8080/".into()).unwrap(), "http://127.0.0.1:8080");
        for bad in ["", "http://", "ftp://x", "127.0.0.1:8080", "https://u@x", "https://x/#a", "http://x ?"] {
            assert!(checked(bad.into()).is_err(), "{bad}");
        }
    }
}
