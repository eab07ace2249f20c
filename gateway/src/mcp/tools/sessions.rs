//! Sessions by their handle: to make several, to look at one, to keep its files, to end it.

use std::{collections::BTreeMap, time::Duration};

use berth_client::{
    CheckpointOptions, CreateOptions, Egress, NAME_LABEL,
    domain::Preset,
    model::{SessionInfo, json::time_text, session_state_name},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    sessions::{IDLE_TIMEOUT, TTL},
    tool::{Answer, Call, Effect, Entry},
};

/// The longest idle timeout that a client may ask for.
const LONGEST_IDLE: f64 = 86_400.0;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CreateArgs {
    /// Name to call it by, which no other session has. With a name it stays after you are gone, until it is idle for too
    /// long; without one it ends with you.
    name: Option<String>,
    /// Template to make it of. Left out: the usual one.
    template: Option<String>,
    /// CPU in cores, for example 0.5. Left out: the template's.
    cpu: Option<f64>,
    /// Memory of all its programs together, in MiB. Left out: the template's.
    memory_mib: Option<u64>,
    /// Size of its file system, in MiB. Left out: the template's.
    disk_mib: Option<u64>,
    /// Environment variables for all its programs.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// What its programs may reach: none, packages (the package index) or full (any public address). Left out: the
    /// template's, mostly none.
    egress: Option<Reach>,
    /// Hosts that they may reach beside that, each as host, *.domain or host:port.
    #[serde(default)]
    allow: Vec<String>,
    /// End it after so many seconds without a call or a running program. Left out: 1800.
    idle_timeout_seconds: Option<f64>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Reach {
    None,
    Packages,
    Full,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SessionArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EndArgs {
    /// Session to end, by id or name.
    session: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CheckpointArgs {
    /// Session, by id or name; left out: your own.
    session: SessionArgument,
    /// What it is for, in words.
    #[serde(default)]
    note: String,
}

#[derive(Serialize, JsonSchema)]
struct Told {
    /// Its id: the handle for the argument `session` of every tool.
    session: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// pending, placed, ready, paused, parked, ending or ended.
    state: String,
    template: String,
    /// What keeps it apart from others: native, docker or fake.
    backend: String,
    cpu: f64,
    memory_mib: u64,
    disk_mib: u64,
    /// Processes and threads that it may have.
    pids: u32,
    /// What its programs may reach: none, packages or full.
    egress: String,
    /// Hosts that they may reach beside that.
    allow: Vec<String>,
    /// When its life span is over, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// It ends after so long without a call or a running program.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout_seconds: Option<f64>,
    /// Why it waits or ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Serialize, JsonSchema)]
struct Checkpoint {
    session: String,
    checkpoint_id: String,
    /// Files, directories and links in it.
    entries: u64,
    content_bytes: u64,
}

pub fn tools() -> Vec<Entry> {
    vec![
        Entry::new(
            "session_create",
            "Make a session",
            Effect::Adds,
            "Makes one more session: a sandbox with files and programs of its own, apart from all others. Answers with its id; \
             give that (or its name) as `session` to other tools to work in it. Not needed for your first session, which \
             is made on first use; needed to work in several, or in one with other limits, with a way to the network, \
             or with a name to come back to.",
            create,
        ),
        Entry::new(
            "session_info",
            "Look at a session",
            Effect::Reads,
            "What a session is: its id, state, limits, what it may reach, and when it ends.",
            info,
        ),
        Entry::new(
            "session_checkpoint",
            "Keep a session's files",
            Effect::Adds,
            "Takes a checkpoint: a copy of all files of a session at this moment, from which an operator can make sessions \
             (berth restore). Programs stand still for that moment, and go on.",
            checkpoint,
        ),
        Entry::new(
            "session_end",
            "End a session",
            Effect::Overwrites,
            "Ends a session, its programs and its files. No error if it has ended already.",
            end,
        ),
    ]
}

async fn create(call: Call, args: CreateArgs) -> Result<Answer<Told>, Problem> {
    let idle = match args.idle_timeout_seconds {
        None => IDLE_TIMEOUT,
        Some(seconds) if (1.0..=LONGEST_IDLE).contains(&seconds) => Duration::from_secs_f64(seconds),
        Some(seconds) => {
            let hint = format!("give 1 to {LONGEST_IDLE} seconds");
            return Err(Problem::new(format!("idle_timeout_seconds is {seconds}"), hint));
        }
    };
    let mut options = CreateOptions::new().ttl(TTL).idle_timeout(idle);
    if let Some(name) = &args.name {
        if name.is_empty() {
            return Err(Problem::new("`name` is empty", "give a name, or leave it out"));
        }
        options = options.label(NAME_LABEL, name);
    }
    if let Some(template) = args.template {
        options = options.template(template);
    }
    if let Some(cpu) = args.cpu {
        if !(0.01..=1000.0).contains(&cpu) {
            return Err(Problem::new(format!("cpu is {cpu}"), "give 0.01 to 1000 cores"));
        }
        options = options.cpu_millis((cpu * 1000.0).round() as u32);
    }
    if let Some(mib) = args.memory_mib {
        options = options.memory_bytes(mib.saturating_mul(1 << 20));
    }
    if let Some(mib) = args.disk_mib {
        options = options.disk_bytes(mib.saturating_mul(1 << 20));
    }
    for (name, value) in args.env {
        options = options.env(name, value);
    }
    if args.egress.is_some() || !args.allow.is_empty() {
        options = options.egress(egress(args.egress, &args.allow)?);
    }
    let client = call.context.client_info().map(|client| format!("{} {}", client.name, client.version));
    let making = call.sessions.make(options, args.name.is_some(), client.as_deref());
    let info = call.wait("the session is made", making).await?;
    let mut answer = told(info);
    answer.text =
        format!("{}\ngive `session: \"{}\"` to other tools to work in it", answer.text, answer.data.session);
    Ok(answer)
}

fn egress(reach: Option<Reach>, allow: &[String]) -> Result<Egress, Problem> {
    let preset = match reach {
        None | Some(Reach::None) => Preset::None,
        Some(Reach::Packages) => Preset::Packages,
        Some(Reach::Full) => Preset::Full,
    };
    let allow = allow.iter().map(|rule| rule.parse()).collect::<Result<Vec<_>, _>>();
    let allow = allow.map_err(|error| {
        Problem::new(format!("a host in `allow` is no good: {error}"), "write host, *.domain or host:port")
    })?;
    Ok(Egress { preset, allow })
}

async fn info(call: Call, args: SessionArgs) -> Result<Answer<Told>, Problem> {
    let session = call.session(args.session.as_deref()).await?;
    Ok(told(session.info().await?))
}

async fn checkpoint(call: Call, args: CheckpointArgs) -> Result<Answer<Checkpoint>, Problem> {
    let session = call.session(args.session.as_deref()).await?;
    let taking = async { Ok(session.checkpoint(CheckpointOptions::new().note(args.note)).await?) };
    let taken = call.wait("the checkpoint is taken", taking).await?;
    let text = format!("checkpoint {}: {} entries, {} bytes", taken.id, taken.entries, taken.content_bytes);
    let data = Checkpoint {
        session: session.id().to_string(),
        checkpoint_id: taken.id,
        entries: taken.entries,
        content_bytes: taken.content_bytes,
    };
    Ok(Answer { data, text })
}

async fn end(call: Call, args: EndArgs) -> Result<Answer<Told>, Problem> {
    let session = call.session(Some(&args.session)).await?;
    let ended = session.delete().await?;
    call.sessions.forget(session.id()).await;
    Ok(told(ended))
}

fn told(info: SessionInfo) -> Answer<Told> {
    let mib = |bytes: u64| bytes >> 20;
    let data = Told {
        session: info.id.to_string(),
        name: info.labels.get(NAME_LABEL).cloned(),
        state: session_state_name(info.state).to_owned(),
        template: info.template,
        backend: info.backend,
        cpu: f64::from(info.limits.cpu_millis) / 1000.0,
        memory_mib: mib(info.limits.memory_bytes),
        disk_mib: mib(info.limits.disk_bytes),
        pids: info.limits.pids,
        egress: info.egress.preset.as_str().to_owned(),
        allow: info.egress.allow.iter().map(ToString::to_string).collect(),
        expires_at: info.expires_at.map(time_text),
        idle_timeout_seconds: info.idle_timeout.map(|idle| idle.as_secs_f64()),
        message: info.message,
    };
    let name = data.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let text = format!(
        "session {}{name}: {}, {} cores, {} MiB memory, {} MiB disk, egress {}",
        data.session, data.state, data.cpu, data.memory_mib, data.disk_mib, data.egress
    );
    Answer { data, text }
}
