//! `berth mcp`: an MCP client's own server, on standard input and output.
//!
//! The client starts us, and shows its user little of what we say on stderr; so whatever is wrong with the address, the
//! token or this machine is told by the tools, and we start all the same.

mod embedded;

use std::time::Duration;

use berth_client::{CreateOptions, local};
use berth_gateway::mcp::{self, Connect, IDLE_TIMEOUT, Own, Sessions, TTL};
use clap::Args;
use embedded::Embedded;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{Global, options::EgressArgs};
use crate::{
    failure::{CommandResult, Failure, code},
    logging::{self, LogArgs},
    serve::worker::MachineArgs,
    signals::Interrupts,
    spans::{self, TraceArgs},
    value,
};

const HELP: &str = "\
The client's session is made on its first use of a tool, and ends with the client. With --session its calls go to
one that is there, and which stays.

Where no coordinator is named (--address, BERTH_ADDRESS, COORDINATOR_ADDR) and `berth up` does not run here, it
starts a coordinator and a worker of its own in this process, with the same settings as `berth up`; they end with it.

Standard output is the protocol's; logs go to stderr. docs/mcp.md has ready-made settings for clients.

Examples:
  claude mcp add berth -- berth mcp
  berth mcp --egress packages --template python
  berth mcp --session box";

/// Serves an MCP client on standard input and output.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct McpArgs {
    /// Session that its calls go to, by id or name [default: one of its own, made on first use]
    #[arg(long, short = 's', value_name = "SESSION", conflicts_with_all = ["template", "idle_timeout", "ttl", "egress", "allow"])]
    pub session: Option<String>,

    /// Template of its own session [default: base]
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,

    /// End its own session after this long without a task or a call; 0: never [default: 30m]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub idle_timeout: Option<Duration>,

    /// Life span of its own session; 0: no end [default: 24h]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub ttl: Option<Duration>,

    #[command(flatten)]
    pub egress: EgressArgs,

    #[command(flatten)]
    pub machine: MachineArgs,

    #[command(flatten)]
    pub log: LogArgs,

    #[command(flatten)]
    pub trace: TraceArgs,
}

impl McpArgs {
    fn own(&self) -> Own {
        if let Some(session) = &self.session {
            return Own::Named(session.clone());
        }
        let mut options = CreateOptions::new()
            .ttl(self.ttl.unwrap_or(TTL))
            .idle_timeout(self.idle_timeout.unwrap_or(IDLE_TIMEOUT));
        if let Some(template) = &self.template {
            options = options.template(template);
        }
        if let Some(egress) = self.egress.policy() {
            options = options.egress(egress);
        }
        Own::Make(Box::new(options))
    }
}

pub async fn run(global: &Global, args: McpArgs) -> CommandResult {
    logging::start(args.log);
    let export = spans::start(&args.trace, "berth-mcp")?;
    let result = serve(global, args).await;
    export.finish().await;
    result
}

async fn serve(global: &Global, args: McpArgs) -> CommandResult {
    let mut interrupts = Interrupts::new()?;
    let (connect, embedded) = reach(global, &args)?;
    let mut has_ours = embedded.is_some();
    let (end, mut ours) = match embedded {
        Some(Embedded { stop, run, .. }) => (stop, run),
        None => (CancellationToken::new(), futures::future::ready(()).boxed_local()),
    };
    let sessions = Sessions::new(connect, args.own());
    let stop = CancellationToken::new();
    let mut serving = std::pin::pin!(mcp::stdio::serve(sessions, stop.clone()));
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            () = &mut ours, if has_ours => has_ours = false,
            _ = interrupts.recv() => {
                if stop.is_cancelled() {
                    return Ok(code::CANCELLED);
                }
                stop.cancel();
            }
        }
    };
    end.cancel();
    if has_ours {
        tokio::select! {
            () = &mut ours => {}
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        }
    }
    served.map(|()| 0).map_err(|error| {
        Failure::new(format!("the client does not speak MCP: {error}"))
            .hint("this command is for MCP clients to start: docs/mcp.md has their settings")
    })
}

/// The coordinator that was named, or that runs here; else one of our own.
fn reach(global: &Global, args: &McpArgs) -> Result<(Connect, Option<Embedded>), Failure> {
    let state_dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    if global.named_address().is_some() || super::up::runs(&state_dir) {
        let options = global.connect_options()?;
        return Ok((mcp::connect(options), None));
    }
    let embedded = embedded::new(&state_dir, args.machine.clone());
    Ok((embedded.connect(), Some(embedded)))
}
