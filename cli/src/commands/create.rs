//! `berth create`, and the options of a new session that `run` and `shell` share with it.

use std::time::Duration;

use berth_client::{CreateOptions, PtySize, domain::TaskDefaultsPatch};
use clap::Args;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, say},
    select, value,
};

/// What a new session may be told.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Options of a new session")]
pub struct SessionArgs {
    /// Template to make it of [default: base]
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,

    /// CPU in cores, for example 1.5 or 500m [default: the template's]
    #[arg(long, value_parser = value::cores, value_name = "CORES")]
    pub cpu: Option<u32>,

    /// Memory of all its tasks together, for example 512M [default: the template's]
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub memory: Option<u64>,

    /// Size of its workspace, for example 1G [default: the template's]
    #[arg(long, value_parser = value::size, value_name = "SIZE")]
    pub disk: Option<u64>,

    /// Processes and threads of all its tasks together [default: the template's]
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,

    /// Label, to find it by
    #[arg(long = "label", short = 'l', value_parser = value::pair, value_name = "NAME=VALUE")]
    pub labels: Vec<(String, String)>,

    /// Name, to call it by: the label `name`
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Life span, for example 2h; 0: no end [default: the template's]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub ttl: Option<Duration>,

    /// End it after this long without a task or a call; 0: never
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub idle_timeout: Option<Duration>,

    /// Label that its worker must have
    #[arg(long = "on", value_parser = value::pair, value_name = "NAME=VALUE")]
    pub selector: Vec<(String, String)>,

    /// -100 to 100: higher goes first when sessions wait for a place
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    pub priority: Option<i32>,

    /// How long to wait for a place [default: 30s]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub wait: Option<Duration>,
}

impl SessionArgs {
    pub fn options(&self) -> CreateOptions {
        let mut options = CreateOptions::new();
        if let Some(template) = &self.template {
            options = options.template(template);
        }
        options = options.limits(berth_client::LimitsPatch {
            cpu_millis: self.cpu,
            memory_bytes: self.memory,
            disk_bytes: self.disk,
            pids: self.pids,
        });
        for (name, value) in &self.labels {
            options = options.label(name, value);
        }
        if let Some(name) = &self.name {
            options = options.label(select::NAME_LABEL, name);
        }
        if let Some(ttl) = self.ttl {
            options = options.ttl(ttl);
        }
        if let Some(timeout) = self.idle_timeout {
            options = options.idle_timeout(timeout);
        }
        for (name, value) in &self.selector {
            options = options.on_worker(name, value);
        }
        if let Some(priority) = self.priority {
            options = options.priority(priority);
        }
        if let Some(wait) = self.wait {
            options = options.wait(wait);
        }
        options
    }

    /// The first option that was given, for a command where none has a meaning.
    pub fn given(&self) -> Option<&'static str> {
        [
            ("--template", self.template.is_some()),
            ("--cpu", self.cpu.is_some()),
            ("--memory", self.memory.is_some()),
            ("--disk", self.disk.is_some()),
            ("--pids", self.pids.is_some()),
            ("--label", !self.labels.is_empty()),
            ("--name", self.name.is_some()),
            ("--ttl", self.ttl.is_some()),
            ("--idle-timeout", self.idle_timeout.is_some()),
            ("--on", !self.selector.is_empty()),
            ("--priority", self.priority.is_some()),
            ("--wait", self.wait.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }

    /// Options of a new session say nothing about one that is there.
    pub fn refuse_with(&self, session: &str) -> Result<(), Failure> {
        match self.given() {
            None => Ok(()),
            Some(option) => {
                Err(Failure::usage(format!("{option} is for a new session, and {session:?} is there"))
                    .hint("leave it out, or leave the session out to make a new one"))
            }
        }
    }
}

const HELP: &str = "\
Examples:
  berth create --name web --memory 1G --ttl 8h
  session=$(berth create --label team=red)
  berth create --on disk=fast --wait 5m --env TOKEN
  berth create --name ci --task-timeout 30m --max-tasks 4

A worker offers four times its cores, so that sessions that mostly wait share them; memory and
disk are offered once. `berth workers` shows what is offered and what is taken.";

/// Makes a session and prints its id when it is ready.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CreateArgs {
    #[command(flatten)]
    pub session: SessionArgs,

    /// Variable for all its tasks; without =VALUE, as it is set here
    #[arg(long, short = 'e', value_parser = value::variable, value_name = "NAME[=VALUE]")]
    pub env: Vec<(String, String)>,

    /// The same id with the same options within a day is the same session
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,

    #[command(flatten)]
    pub tasks: TaskArgs,
}

/// Defaults for the tasks of a new session.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Defaults of its tasks")]
pub struct TaskArgs {
    /// Wall-clock time that a task may take that names none; 0: no limit [default: the template's]
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub task_timeout: Option<Duration>,

    /// Tasks that may run at the same time [default: the template's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub max_tasks: Option<u32>,

    /// Size of a task's terminal, for example 80x24 [default: the template's]
    #[arg(long, value_parser = value::pty_size, value_name = "COLSxROWS")]
    pub pty_size: Option<PtySize>,
}

impl TaskArgs {
    fn defaults(&self) -> TaskDefaultsPatch {
        TaskDefaultsPatch {
            timeout: self.task_timeout.map(|timeout| (!timeout.is_zero()).then_some(timeout)),
            pty_size: self.pty_size,
            max_concurrent: self.max_tasks,
        }
    }
}

pub async fn run(global: &Global, args: CreateArgs) -> CommandResult {
    let client = global.client().await?;
    let mut options = args.session.options().task_defaults(args.tasks.defaults());
    for (name, value) in args.env {
        options = options.env(name, value);
    }
    if let Some(id) = args.request_id {
        options = options.request_id(id);
    }
    let info = client.create(options).await?;
    if global.json() {
        output::json(&info)?;
    } else {
        output::data(info.id)?;
        if super::stderr_is_terminal() {
            let name = args.session.name.unwrap_or_else(|| select::short(info.id));
            say(format!("{} on {}", info.backend, info.worker.as_deref().unwrap_or("no worker yet")));
            output::hint(format!("berth run --session {name} -- …, berth shell {name}, berth rm {name}"));
        }
    }
    Ok(0)
}
