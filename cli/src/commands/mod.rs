//! The command line of `berth`: what there is, what holds for all of it, and the dispatch.

use std::{ffi::OsString, io::IsTerminal, path::PathBuf};

use berth_client::{Client, ConnectOptions, TraceContext};
use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};

use crate::{
    demo, env,
    failure::{CommandResult, Failure},
    output::{self, Format},
    serve::plain_usage,
};

pub mod admin;
mod artifact;
mod audit;
mod backend;
pub(crate) mod backup;
mod checkpoint;
mod completions;
mod cp;
mod create;
mod dashboard;
#[cfg(test)]
mod doc_tests;
mod doctor;
mod drain;
mod events;
mod lifecycle;
mod listing;
mod logs;
pub mod mcp;
mod options;
mod place;
mod port_forward;
mod queue;
mod reference;
mod removal;
mod restore;
mod run;
mod secret;
mod shell;
pub mod stream;
mod tenant;
mod tls;
mod token;
mod top;
mod up;
mod usage;
mod wait;

pub use cp::is_helper;
pub use listing::program_text;

const HELP: &str = "\
Examples:
  berth up -d                               start a coordinator and a worker on this machine
  berth run -- python3 -c 'print(6 * 7)'    run a program in a session of its own
  berth shell                               a terminal in a new session
  berth create --name web                   a session to keep
  berth run --session web -- make test      a program in it
  berth cp -r ./project web:.               files into it
  berth logs -f web                         the output of its newest task
  berth port-forward web 8000               a server in it, at 127.0.0.1:8000
  berth rm web                              end it
  berth restore $(berth checkpoint web)     a new session with the files of another

A SESSION is a full id, at least 4 characters of its beginning or end, a name given with
--name, or a label NAME=VALUE.

Exit codes:
  0    done
  1    failed; stderr says why (`error: …`) and what to do (`hint: …`)
  2    wrong use
  `berth run` and `berth shell` pass the task's own code through, and beside it know:
  124  the task's time was up          125  Berth failed, the session ended, or output was lost
  126  not executable                  127  no such program
  130  cancelled (Ctrl-C)              137  out of memory
  141  nobody reads our output         153  the output limit was reached
  128+N  ended by signal N
With --format json the error on stderr is JSON, too: an object of code, reason, message, hint.";

/// Sandboxes for agents, on machines you own.
#[derive(Parser, Debug)]
#[command(name = "berth", version = berth_proto::VERSION, after_help = HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true, infer_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Address of the coordinator [default: that of `berth up`, else 127.0.0.1:50051]
    #[arg(long, global = true, env = env::BERTH_ADDRESS, value_name = "HOST:PORT")]
    pub address: Option<String>,

    /// Token to call it with [default: the one that `berth up` left on this machine]
    #[arg(long, global = true, env = env::BERTH_TOKEN, hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,

    /// Certificate of the CA that the coordinator's must be of [default: ca.pem in BERTH_TLS_DIR]
    #[arg(long, global = true, env = env::BERTH_TLS_CA, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// State directory [default: /var/lib/berth as root, else ~/.local/state/berth]
    #[arg(long, global = true, env = env::BERTH_STATE_DIR, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// How data is printed on stdout, and the error on stderr
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

impl Global {
    /// A connection to the coordinator.
    pub async fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect(self.connect_options()?).await?)
    }

    /// The address that was given, if one was.
    fn named_address(&self) -> Option<String> {
        let fixed_name = std::env::var(env::COORDINATOR_ADDR).ok();
        self.address.clone().into_iter().chain(fixed_name).find(|text| !text.is_empty())
    }

    pub fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        let token = self.token.clone().filter(|text| !text.is_empty());
        let options = ConnectOptions::find(self.named_address(), token, self.state_dir.clone())?;
        let ca = self.tls_ca.clone().filter(|path| !path.as_os_str().is_empty());
        Ok(options.trust(ca, tls_dir(), self.state_dir.clone()))
    }

    pub fn json(&self) -> bool {
        self.format == Format::Json
    }
}

/// The directory of certificates that was named.
pub fn tls_dir() -> Option<PathBuf> {
    std::env::var_os(env::BERTH_TLS_DIR).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a coordinator and workers on this machine
    Up(Box<up::UpArgs>),
    /// Stop the `berth up` of this machine
    Stop(up::StopArgs),
    /// Show the `berth up` of this machine
    Status,
    /// Look at what this machine has, and say what is missing
    Doctor(doctor::DoctorArgs),
    /// Show a fleet at work: real processes, real sandboxes, nothing left behind
    Demo(demo::DemoArgs),
    /// Run a program in a session, and pass its output and exit code through
    Run(run::RunArgs),
    /// A terminal in a session
    Shell(shell::ShellArgs),
    /// Make a session
    Create(create::CreateArgs),
    /// List sessions
    Ps(listing::PsArgs),
    /// List the tasks of a session
    Tasks(listing::TasksArgs),
    /// Show what a session takes: CPU, memory, processes, disk
    Usage(usage::UsageArgs),
    /// Show the output of a task
    Logs(logs::LogsArgs),
    /// Copy files into or out of a session
    Cp(cp::CpArgs),
    /// Listen here for servers in a session
    PortForward(port_forward::PortForwardArgs),
    /// End sessions and remove their files
    Rm(lifecycle::RmArgs),
    /// Freeze the processes of sessions
    Pause(lifecycle::SessionsArgs),
    /// Thaw the processes of sessions
    Resume(lifecycle::SessionsArgs),
    /// Change a session's labels and life span
    Update(lifecycle::UpdateArgs),
    /// Signal or cancel a task
    Kill(lifecycle::KillArgs),
    /// Take, list, show or remove checkpoints: copies of a session's files
    Checkpoint(checkpoint::CheckpointArgs),
    /// List, fetch or remove artifacts: files that sessions left behind
    Artifact(artifact::ArtifactArgs),
    /// Make a session of a checkpoint
    Restore(restore::RestoreArgs),
    /// Make sessions with the files of a session
    Fork(restore::ForkArgs),
    /// Show workers and sessions with their load, again and again
    Top(top::TopArgs),
    /// Print a link to the dashboard that signs its reader in
    Dashboard(dashboard::DashboardArgs),
    /// List workers, or show one
    Workers(admin::WorkersArgs),
    /// No new sessions on a worker
    Cordon(admin::WorkerArgs),
    /// New sessions on a worker again
    Uncordon(admin::WorkerArgs),
    /// Empty a worker: no new sessions, and those there end by a deadline
    Drain(drain::DrainArgs),
    /// Choose the sandbox backend of a worker's new sessions
    Backend(backend::BackendArgs),
    /// List sessions that wait for a place
    Queue(queue::QueueArgs),
    /// Copy the coordinator's databases, or put a copy back
    Backup(backup::BackupArgs),
    /// Serve an MCP client on standard input and output
    Mcp(Box<mcp::McpArgs>),
    /// List templates
    Templates,
    /// Show the coordinator
    Info,
    /// Follow what happens in the fleet
    Events(events::EventsArgs),
    /// Show what was done, by whom
    Audit(audit::AuditArgs),
    /// Make, list or revoke API tokens, or show where the credentials of this machine are
    Token(token::TokenArgs),
    /// Make, renew and show certificates
    Tls(tls::TlsArgs),
    /// Secrets that tasks are given by name
    Secret(secret::SecretArgs),
    /// List tenants, or set what each may have
    Tenant(tenant::TenantArgs),
    /// List the environment variables that Berth reads
    Env(reference::EnvArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// Parses the command line. What clap refuses, it prints and ends by itself.
pub fn parse() -> Cli {
    let parsed = Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = parsed.unwrap_or_else(|error| refuse(with_plain_usage(error)));
    // In the background there is nobody but the log.
    let in_background = matches!(&cli.command, Command::Up(args) if args.daemon);
    output::set_json(cli.global.json() && !in_background);
    cli
}

/// Whether the arguments ask for JSON, as far as can be told before they are parsed.
pub fn wants_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let args: Vec<OsString> = args.into_iter().take_while(|arg| arg != "--").collect();
    args.iter().any(|arg| arg == "--format=json")
        || args.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json")
}

/// [`plain_usage`] for the command that was meant.
fn with_plain_usage(error: clap::Error) -> clap::Error {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return error };
    let usage = usage.to_string();
    let mut root = Cli::command();
    root.build();
    let mut command = &mut root;
    for word in usage.split_whitespace().skip(2) {
        if command.find_subcommand(word).is_none() {
            break;
        }
        command = command.find_subcommand_mut(word).expect("just seen");
    }
    plain_usage(command, error)
}

fn refuse(error: clap::Error) -> ! {
    if !error.use_stderr() || !output::is_json() {
        error.exit();
    }
    let text = error.render().to_string();
    let mut parts = text.trim().split("\n\n").map(str::trim);
    let message = parts.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let hints = parts
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .flat_map(|part| part.lines().map(str::trim))
        .map(|line| line.trim_start_matches("tip: ").to_owned());
    let failure = Failure::usage(message).hints(hints, "`berth COMMAND --help` says what it takes");
    failure.report();
    std::process::exit(i32::from(failure.code));
}

/// Runs a command.
pub async fn dispatch(cli: Cli) -> CommandResult {
    // What they do is for the requests of others.
    let serves = matches!(cli.command, Command::Up(_) | Command::Mcp(_));
    let work = run_command(cli.global, cli.command);
    if serves { work.await } else { request().scope(work).await }
}

/// All that a command asks for is one request: of the trace that it was started in, else one of its own.
fn request() -> TraceContext {
    let given = std::env::var("TRACEPARENT").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(TraceContext::begin)
}

async fn run_command(global: Global, command: Command) -> CommandResult {
    match command {
        Command::Up(args) => up::run(&global, *args).await,
        Command::Stop(args) => up::stop(&global, args).await,
        Command::Status => up::status(&global).await,
        Command::Doctor(args) => doctor::run(&global, args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Run(args) => run::run(&global, args).await,
        Command::Shell(args) => shell::run(&global, args).await,
        Command::Create(args) => create::run(&global, args).await,
        Command::Ps(args) => listing::ps(&global, args).await,
        Command::Tasks(args) => listing::tasks(&global, args).await,
        Command::Usage(args) => usage::run(&global, args).await,
        Command::Logs(args) => logs::run(&global, args).await,
        Command::Cp(args) => cp::run(&global, args).await,
        Command::PortForward(args) => port_forward::run(&global, args).await,
        Command::Rm(args) => lifecycle::rm(&global, args).await,
        Command::Pause(args) => lifecycle::pause(&global, args).await,
        Command::Resume(args) => lifecycle::resume(&global, args).await,
        Command::Update(args) => lifecycle::update(&global, args).await,
        Command::Kill(args) => lifecycle::kill(&global, args).await,
        Command::Checkpoint(args) => checkpoint::run(&global, args).await,
        Command::Artifact(args) => artifact::run(&global, args).await,
        Command::Restore(args) => restore::restore(&global, args).await,
        Command::Fork(args) => restore::fork(&global, args).await,
        Command::Top(args) => top::run(&global, args).await,
        Command::Dashboard(args) => dashboard::run(&global, args).await,
        Command::Workers(args) => admin::workers(&global, args).await,
        Command::Cordon(args) => admin::cordon(&global, args).await,
        Command::Uncordon(args) => admin::uncordon(&global, args).await,
        Command::Drain(args) => drain::drain(&global, args).await,
        Command::Backend(args) => backend::run(&global, args).await,
        Command::Queue(args) => queue::run(&global, args).await,
        Command::Backup(args) => backup::run(&global, args).await,
        Command::Mcp(args) => mcp::run(&global, *args).await,
        Command::Templates => listing::templates(&global).await,
        Command::Info => admin::info(&global).await,
        Command::Events(args) => events::run(&global, args).await,
        Command::Audit(args) => audit::run(&global, args).await,
        Command::Token(args) => token::run(&global, args).await,
        Command::Tls(args) => tls::run(&global, args),
        Command::Secret(args) => secret::run(&global, args).await,
        Command::Tenant(args) => tenant::run(&global, args).await,
        Command::Env(args) => reference::run(&global, &args),
        Command::Completions(args) => completions::run(&global, args),
    }
}

/// Whether a person sees what goes to stderr.
pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn arguments_of_the_program_are_its_own() {
        let cli =
            Cli::try_parse_from(["berth", "run", "--timeout", "3", "--", "ls", "--format", "-l"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.program, ["ls", "--format", "-l"]);
        assert_eq!(cli.global.format, Format::Text);
        // Without `--` too: the first word that is no option begins the program.
        let cli = Cli::try_parse_from(["berth", "run", "ls", "-l"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.program, ["ls", "-l"]);
    }

    #[test]
    fn a_mistyped_option_is_no_program() {
        let error = Cli::try_parse_from(["berth", "run", "--sesion", "box", "ls"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument);
        assert!(error.to_string().contains("--session"), "{error}");
        assert!(Cli::try_parse_from(["berth", "run", "-x", "ls"]).is_err());
        assert!(Cli::try_parse_from(["berth", "run", "--", "--sesion"]).is_ok());
    }

    #[test]
    fn an_update_needs_a_session_and_a_change() {
        let parse = |args: &[&str]| Cli::try_parse_from(["berth", "update"].iter().chain(args));
        assert!(parse(&["box"]).is_err(), "nothing to change");
        assert!(parse(&["--ttl", "2h"]).is_err(), "of which session?");
        for change in [
            ["--label", "a=b"],
            ["--remove-label", "a"],
            ["--name", "x"],
            ["--ttl", "2h"],
            ["--idle-timeout", "0"],
        ] {
            for args in [[change[0], change[1], "box"], ["box", change[0], change[1]]] {
                let Command::Update(update) = parse(&args).unwrap().command else { panic!("not update") };
                assert_eq!(update.session, "box", "{args:?}");
            }
        }
    }

    #[test]
    fn no_option_swallows_the_words_after_it() {
        fn walk(command: &clap::Command) {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let most = arg.get_num_args().map_or(0, |range| range.max_values());
                let name = arg.get_id();
                assert!(most <= 1 || arg.is_require_equals_set(), "{} {name}", command.get_name());
            }
            command.get_subcommands().for_each(walk);
        }
        let mut command = Cli::command();
        command.build();
        walk(&command);
    }

    #[test]
    fn a_wish_for_json_is_seen_before_the_rest_is_understood() {
        let wants = |args: &[&str]| wants_json(args.iter().map(OsString::from));
        assert!(
            wants(&["berth", "--format", "json", "nonsense"]) && wants(&["berth", "ps", "--format=json"])
        );
        assert!(!wants(&["berth", "ps"]) && !wants(&["berth", "run", "--", "x", "--format", "json"]));
    }
}
