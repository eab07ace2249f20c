//! What the commands that serve have in common: where their settings came from, how they
//! say that they are ready, and how they stop.

pub mod coordinator;
pub mod gateway;
pub mod metrics;
pub mod probes;
pub mod worker;

use std::{
    ffi::OsString,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{
    ArgMatches, Args, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};

use self::probes::Probe;
use crate::{
    commands::backup::restore::put_back,
    env,
    failure::{CommandResult, Failure, code},
    logging::{self, LogArgs, json::Line},
    output,
    signals::Interrupts,
    spans::{self, TraceArgs},
};

/// Options of every command that serves.
#[derive(Args, Debug, Clone, Default)]
pub struct ServeArgs {
    #[command(flatten)]
    pub log: LogArgs,

    #[command(flatten)]
    pub trace: TraceArgs,

    /// Write the address (coordinator), or the id and the data-plane address if there is one (worker), to this file when ready
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,

    /// Print each setting and where it came from, and end
    #[arg(long)]
    pub print_config: bool,
}

/// What a command that serves does instead, and ends.
#[derive(Debug)]
pub enum Errand {
    /// Asks the one that runs with this state directory.
    Ask(Probe, PathBuf),
    /// Puts the backup in the first directory into the second.
    PutBack { from: PathBuf, state_dir: PathBuf },
}

/// A command that serves.
pub trait Serve: CommandFactory + FromArgMatches {
    fn serve_args(&self) -> &ServeArgs;

    /// What was asked for instead of serving.
    fn instead(&self) -> Result<Option<Errand>, Failure>;

    /// Values that `--print-config` shows for settings that were left out.
    fn computed(&self) -> Vec<(&'static str, String)>;

    fn serve(self, interrupts: Interrupts) -> impl Future<Output = CommandResult>;
}

/// Runs one: strict environment, settings, log, service.
pub fn main<S: Serve>() -> ExitCode {
    logging::look(std::env::args_os());
    crate::finish(run::<S>())
}

fn run<S: Serve>() -> CommandResult {
    env::check(std::env::vars_os().map(|(name, _)| name))?;
    let parsed =
        S::command().try_get_matches().and_then(|matches| Ok((S::from_arg_matches(&matches)?, matches)));
    let (settings, matches) =
        parsed.unwrap_or_else(|error| wrong_use(&plain_usage(&mut S::command(), error)));
    if settings.serve_args().print_config {
        return print_config(&S::command(), &matches, &settings.computed());
    }
    if let Some(errand) = settings.instead()? {
        logging::answers();
        let who = S::command().get_name().to_owned();
        return crate::block_on(async {
            match errand {
                Errand::Ask(probe, state_dir) => probes::ask(&state_dir, probe, &who).await,
                Errand::PutBack { from, state_dir } => put_back(&from, &state_dir).await,
            }
        });
    }
    logging::start(settings.serve_args().log);
    crate::block_on(async {
        let interrupts = Interrupts::new()?;
        if let Some(path) = &settings.serve_args().ready_file {
            // An earlier process may have left it: "ready" must mean this one.
            remove(path).map_err(|error| Failure::io(path.display(), error))?;
        }
        let name = format!("berth-{}", S::command().get_name());
        let export = spans::start(&settings.serve_args().trace, &name)?;
        let result = settings.serve(interrupts).await;
        export.finish().await;
        result
    })
}

/// Ends the process: with clap's words, or as a line of the log where it has nothing but such.
fn wrong_use(error: &clap::Error) -> ! {
    if !logging::only_json() || !error.use_stderr() {
        error.exit();
    }
    logging::fail(error.render().to_string().trim_end(), &[]);
    std::process::exit(error.exit_code())
}

/// clap's usage line for an error names each option that has a value, also those that have it from the environment:
/// nobody typed these.
pub fn plain_usage(command: &mut clap::Command, mut error: clap::Error) -> clap::Error {
    if error.get(ContextKind::Usage).is_some() {
        error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
    }
    error
}

/// One line a setting: its name, its value, where that came from.
fn print_config(command: &clap::Command, matches: &ArgMatches, computed: &[(&str, String)]) -> CommandResult {
    output::data(config_text(command, matches, computed))?;
    Ok(0)
}

pub fn config_text(command: &clap::Command, matches: &ArgMatches, computed: &[(&str, String)]) -> String {
    let mut rows = Vec::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        if matches!(id, "help" | "version" | "print_config") {
            continue;
        }
        let flag = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
        let name = arg.get_env().map_or_else(|| flag.clone(), |name| name.to_string_lossy().into_owned());
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => format!("command line ({flag})"),
            Some(ValueSource::EnvVariable) => "environment".to_owned(),
            _ => "default".to_owned(),
        };
        let raw = matches.try_get_raw(id).ok().flatten();
        let given = raw.map(|values| {
            values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        });
        let value = match (given, computed.iter().find(|(name, _)| *name == id)) {
            (Some(_), _) if arg.is_hide_env_values_set() => "(set, not shown)".to_owned(),
            (Some(value), _) => value,
            (None, Some((_, value))) => value.clone(),
            (None, None) => String::new(),
        };
        rows.push(vec![name, value, source]);
    }
    output::table_text(&["NAME", "VALUE", "FROM"], rows)
}

/// Tells scripts that we are ready: a line on stdout, and the ready file.
pub fn announce(args: &ServeArgs, what: &str) -> Result<(), Failure> {
    if let Some(path) = &args.ready_file {
        write_atomic(path, format!("{what}\n").as_bytes(), 0o644)
            .map_err(|error| Failure::io(path.display(), error))?;
    }
    // A closed stdout is no reason to stop serving.
    let _ = if logging::only_json() {
        let mut line = Line::new("info", "ready");
        line.fields.insert("address".to_owned(), what.into());
        writeln!(io::stdout().lock(), "{}", line.text())
    } else {
        writeln!(io::stdout().lock(), "ready {what}")
    };
    Ok(())
}

/// No longer ready.
pub fn withdraw(args: &ServeArgs) {
    if let Some(path) = &args.ready_file
        && let Err(error) = remove(path)
    {
        tracing::warn!(path = %path.display(), %error, "the ready file can't be removed");
    }
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file in one step. What a process that was killed meanwhile left beside it, the next one takes away.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    remove(&temporary)?;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        let _ = remove(&temporary);
    })
}

/// Waits for a stop in sequence; a second signal does not wait.
pub async fn stop(shutdown: impl Future<Output = ()>, interrupts: &mut Interrupts) -> CommandResult {
    tokio::select! {
        () = shutdown => Ok(0),
        signal = interrupts.recv() => {
            tracing::warn!(signal, "stopping at once: the next start puts in order what is left");
            Ok(code::CANCELLED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A setting of a service in `deploy/systemd`; each is there once.
    fn unit(name: &str) -> impl Fn(&str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        move |key| {
            let mut found = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            let value = found.next().unwrap_or_else(|| panic!("no {key}")).to_owned();
            assert_eq!(found.next(), None, "{key} is there twice");
            value
        }
    }

    /// Red when the line that keeps the sandboxes through a restart of the worker is not there, or an option is not known.
    #[test]
    fn the_services_start_what_there_is_and_a_restart_leaves_the_sandboxes() {
        let worker = unit("berth-worker.service");
        for (key, value) in [
            ("KillMode", "process"),
            ("Delegate", "yes"),
            ("OOMPolicy", "continue"),
            ("TasksMax", "infinity"),
        ] {
            assert_eq!(worker(key), value, "{key}");
        }
        let leaf = berth_worker::sandbox::cgroup::SUPERVISOR;
        assert_eq!(format!("/{}", worker("DelegateSubgroup")), leaf);
        let coordinator = unit("berth-coordinator.service");
        assert_eq!(coordinator("StateDirectoryMode"), "0700");
        let started = |unit: &dyn Fn(&str) -> String, command: clap::Command| {
            let line = unit("ExecStart");
            let state = format!("--state-dir /var/lib/{}", unit("StateDirectory"));
            assert!(line.ends_with(&state), "{line}");
            command.try_get_matches_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        };
        started(&worker, worker::WorkerArgs::command());
        started(&coordinator, coordinator::CoordinatorArgs::command());
    }

    #[test]
    fn a_file_is_written_in_one_step() {
        let path = std::env::temp_dir().join(format!("berth-ready-{}", berth_client::TaskId::new()));
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
