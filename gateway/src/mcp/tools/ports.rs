//! What listens in a session, by a URL that others can open.

use std::collections::BTreeMap;

use berth_client::Reason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    tool::{Answer, Call, Effect, Entry},
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PortArgs {
    /// Port that a server in the session listens on, 1 to 65535.
    port: u16,
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
}

#[derive(Serialize, JsonSchema)]
struct PortUrl {
    session: String,
    port: u16,
    /// Where the server is reached, by HTTP and WebSocket. Left out where this Berth is not reached over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Headers that each request to the URL needs. What stands in <> is for whoever sends it to fill in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// Line for a shell of who has `berth`: it makes the port one of that machine's own, for any TCP protocol.
    command: String,
}

pub fn tools() -> Vec<Entry> {
    vec![Entry::new(
        "port_url",
        "URL of a port",
        Effect::Reads,
        "How others reach a server that you run in a session: the URL of its port, and the header with a token that each \
         request to it needs; and a command that forwards the port. It does not look whether something listens there. \
         Inside the session the server is at http://127.0.0.1:PORT/ as usual.",
        port_url,
    )]
}

async fn port_url(call: Call, args: PortArgs) -> Result<Answer<PortUrl>, Problem> {
    let PortArgs { port, session } = args;
    if port == 0 {
        return Err(Problem::new("port is 0", "give 1 to 65535"));
    }
    let session = call.session(session.as_deref()).await?;
    let info = session.info().await?;
    if info.end_reason.is_some() {
        let error = berth_proto::Error::precondition(Reason::SessionEnded, "the session is over");
        return Err(berth_client::Error::from(error).into());
    }
    let id = session.id();
    let command = format!("berth port-forward {id} {port}");
    let Some(reached) = &call.sessions.reached else {
        let text = format!(
            "this Berth is not reached over HTTP here, so the port has no URL. Where `berth` has the same coordinator, \
             `{command}` makes it a port of that machine"
        );
        let data = PortUrl { session: id.to_string(), port, url: None, headers: BTreeMap::new(), command };
        return Ok(Answer { data, text });
    };
    let mut headers = BTreeMap::from([("X-Berth-Token".to_owned(), "<token>".to_owned())]);
    let url = reached.url(id, port).unwrap_or_else(|| {
        headers.insert("E2b-Sandbox-Id".to_owned(), id.to_string());
        headers.insert("E2b-Sandbox-Port".to_owned(), port.to_string());
        reached.base()
    });
    let listed: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let text = format!(
        "{url}\nEach request needs: {} (a token of Berth that may see the session; `berth token create` makes one). \
         A browser sends no such header: for it, `{command}` makes the port one of that machine",
        listed.join(", ")
    );
    Ok(Answer { data: PortUrl { session: id.to_string(), port, url: Some(url), headers, command }, text })
}
