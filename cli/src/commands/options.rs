//! The options of a new session: those that `run` and `shell` share with `create`, and those that `restore` and `fork`
//! share with it.

use std::time::Duration;

use berth_client::{
    CheckpointPolicy, Command, CreateOptions, Egress, OnWorkerLoss, PtySize,
    domain::{Preset, TaskDefaultsPatch},
};
use berth_proto::{convert::bounds::CHECKPOINTS_KEPT, egress::Rule};
use clap::{ArgGroup, Args};

use crate::{failure::Failure, select, value};

/// What a new session may be told.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Options of a new session")]
pub struct SessionArgs {
    /// Template to make it of [default: base]
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,

    #[command(flatten)]
    pub any: AnySessionArgs,
}

impl SessionArgs {
    pub fn options(&self) -> CreateOptions {
        let options = self.any.options();
        match &self.template {
            Some(template) => options.template(template),
            None => options,
        }
    }

    /// Options of a new session say nothing about one that is there.
    pub fn refuse_with(&self, session: &str) -> Result<(), Failure> {
        let template = self.template.is_some().then_some("--template");
        match template.or_else(|| self.any.given()) {
            None => Ok(()),
            Some(option) => {
                Err(Failure::usage(format!("{option} is for a new session, and {session:?} is there"))
                    .hint("leave it out, or leave the session out to make a new one"))
            }
        }
    }
}

/// What any new session may be told, also one that is made of a checkpoint.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Options of a new session")]
pub struct AnySessionArgs {
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

    #[command(flatten)]
    pub egress: EgressArgs,
}

impl AnySessionArgs {
    pub fn options(&self) -> CreateOptions {
        let mut options = CreateOptions::new().limits(berth_client::LimitsPatch {
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
        if let Some(egress) = self.egress.policy() {
            options = options.egress(egress);
        }
        options
    }

    /// The first option that was given, for a command where none has a meaning.
    fn given(&self) -> Option<&'static str> {
        [
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
            ("--egress", self.egress.egress.is_some()),
            ("--allow", !self.egress.allow.is_empty()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }
}

/// What a session may reach.
#[derive(Args, Debug, Clone, Default)]
#[group(skip)]
pub struct EgressArgs {
    /// What it may reach: none, packages (the package index of its worker's pip) or full (any public address, where the
    /// worker's operator enabled that) [default: the template's, or none with --allow]
    #[arg(long, value_parser = value::preset, value_name = "WHAT")]
    pub egress: Option<Preset>,

    /// Host that it may reach too: host, *.domain or an address range, with :port or for 80 and 443
    #[arg(long, value_parser = value::rule, value_name = "HOST[:PORT]")]
    pub allow: Vec<Rule>,
}

impl EgressArgs {
    /// The whole policy, if anything is said of it.
    pub fn policy(&self) -> Option<Egress> {
        let said = self.egress.is_some() || !self.allow.is_empty();
        said.then(|| Egress { preset: self.egress.unwrap_or_default(), allow: self.allow.clone() })
    }
}

/// Secrets that a task is given.
#[derive(Args, Debug, Clone, Default)]
#[group(skip)]
pub struct GivenArgs {
    /// Secret that it is given as the file /run/secrets/NAME
    #[arg(long = "secret", value_name = "NAME")]
    pub files: Vec<String>,

    /// Secret that it is given as a variable
    #[arg(long = "secret-env", value_parser = value::pair, value_name = "VARIABLE=NAME")]
    pub variables: Vec<(String, String)>,
}

impl GivenArgs {
    pub fn give(&self, command: Command) -> Command {
        let command = self.files.iter().fold(command, |command, name| command.secret(name));
        self.variables.iter().fold(command, |command, (variable, name)| command.secret_env(variable, name))
    }
}

/// What a session that stays may be told, beside that.
#[derive(Args, Debug, Clone, Default)]
pub struct LastingArgs {
    /// Variable for all its tasks; without =VALUE, as it is set here
    #[arg(long, short = 'e', value_parser = value::variable, value_name = "NAME[=VALUE]")]
    pub env: Vec<(String, String)>,

    #[command(flatten)]
    pub tasks: TaskArgs,

    #[command(flatten)]
    pub recovery: RecoveryArgs,
}

impl LastingArgs {
    /// Adds them to those that any session may be given.
    pub fn over(&self, mut options: CreateOptions) -> CreateOptions {
        options = options.task_defaults(self.tasks.defaults());
        for (name, value) in &self.env {
            options = options.env(name, value);
        }
        if let Some(on_loss) = self.recovery.on_worker_loss {
            options = options.on_worker_loss(on_loss.into());
        }
        match self.recovery.policy() {
            Some(policy) => options.checkpoints(policy),
            None => options,
        }
    }
}

/// What makes a command safe to repeat.
#[derive(Args, Debug, Clone, Default)]
pub struct RequestArgs {
    /// The same id with the same options within a day is the same session
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

impl RequestArgs {
    pub fn over(&self, options: CreateOptions) -> CreateOptions {
        match &self.request_id {
            Some(id) => options.request_id(id),
            None => options,
        }
    }
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

/// What becomes of a session whose worker is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnLoss {
    // No doc comments here, as with `--format`.
    End,
    Restore,
}

impl From<OnLoss> for OnWorkerLoss {
    fn from(on_loss: OnLoss) -> Self {
        match on_loss {
            OnLoss::End => Self::End,
            OnLoss::Restore => Self::Restore,
        }
    }
}

/// Checkpoints that are taken without being asked for, and what they are for.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Checkpoints of its files")]
#[command(group = ArgGroup::new("checkpoints_taken").multiple(true)
    .args(["checkpoint_every", "checkpoint_on_drain", "checkpoint_before_rm"]))]
#[group(skip)]
pub struct RecoveryArgs {
    /// What becomes of it when its worker is lost: it ends, or is placed elsewhere from its newest checkpoint [default: end]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub on_worker_loss: Option<OnLoss>,

    /// Take a checkpoint this often, at least a second; 0: not at intervals
    #[arg(long, value_parser = value::duration, value_name = "TIME")]
    pub checkpoint_every: Option<Duration>,

    /// Take one when its worker is drained or stopped; with --on-worker-loss restore one is taken anyway
    #[arg(long)]
    pub checkpoint_on_drain: bool,

    /// Take one before `berth rm` ends it; if that fails, it stays
    #[arg(long)]
    pub checkpoint_before_rm: bool,

    /// Keep so many of these, the newest [default: 3]
    #[arg(long, requires = "checkpoints_taken", value_parser = clap::value_parser!(u32).range(1..=i64::from(CHECKPOINTS_KEPT)), value_name = "N")]
    pub checkpoints_kept: Option<u32>,

    /// Keep them for so long [default: 7days]
    #[arg(long, requires = "checkpoints_taken", value_parser = value::some_duration, value_name = "TIME")]
    pub checkpoints_kept_for: Option<Duration>,
}

impl RecoveryArgs {
    /// The whole policy, if anything is said of it.
    fn policy(&self) -> Option<CheckpointPolicy> {
        if self.checkpoint_every.is_none() && !self.checkpoint_on_drain && !self.checkpoint_before_rm {
            return None;
        }
        let usual = CheckpointPolicy::default();
        Some(CheckpointPolicy {
            interval: self.checkpoint_every.filter(|every| !every.is_zero()),
            on_drain: self.checkpoint_on_drain,
            before_delete: self.checkpoint_before_rm,
            keep: self.checkpoints_kept.unwrap_or(usual.keep),
            keep_for: self.checkpoints_kept_for.unwrap_or(usual.keep_for),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        recovery: RecoveryArgs,
    }

    fn policy(args: &[&str]) -> Result<Option<CheckpointPolicy>, clap::Error> {
        Line::try_parse_from(["x"].iter().chain(args)).map(|line| line.recovery.policy())
    }

    #[test]
    fn nothing_said_of_checkpoints_is_no_policy() {
        assert_eq!(policy(&[]).unwrap(), None);
        assert_eq!(policy(&["--on-worker-loss", "restore"]).unwrap(), None);
    }

    #[test]
    fn what_is_said_is_the_whole_policy() {
        let usual = CheckpointPolicy::default();
        let every = CheckpointPolicy { interval: Some(Duration::from_secs(60)), ..usual };
        assert_eq!(policy(&["--checkpoint-every", "1m"]).unwrap(), Some(every));
        assert_eq!(
            policy(&["--checkpoint-every", "0"]).unwrap(),
            Some(usual),
            "none, which may be inherited"
        );
        let args = ["--checkpoint-before-rm", "--checkpoints-kept", "9", "--checkpoints-kept-for", "1h"];
        let before =
            CheckpointPolicy { before_delete: true, keep: 9, keep_for: Duration::from_secs(3600), ..usual };
        assert_eq!(policy(&args).unwrap(), Some(before));
    }

    #[test]
    fn nothing_is_kept_of_what_is_never_taken() {
        assert!(policy(&["--checkpoints-kept", "9"]).is_err());
        assert!(policy(&["--checkpoint-on-drain", "--checkpoints-kept", "0"]).is_err());
        assert!(policy(&["--checkpoint-on-drain", "--checkpoints-kept-for", "0"]).is_err());
    }
}
