//! PID 1 of every sandbox: starts tasks, keeps their output, serves files, and holds the
//! session's own deadlines.
//!
//! Two processes: **init** ([`init`]), single-threaded, which forks, reaps and kills; and
//! the **server** ([`server`]), its child, which talks gRPC. A task's bytes never pass
//! through init, and no task is ever forked from the server.
//!
//! ```text
//!   worker ──gRPC/UDS──▶ server ──packets + descriptors──▶ init ──▶ parked process ─exec─▶ task
//!                          ▲  spool ◀── pump ◀──────────── pipes or terminal ◀──────────────┘
//! ```
//!
//! In the order of reading: [`launch`] (a task's first process), [`task`] and
//! [`driver`] (its life), [`tasks`] (all of them), [`spool`] and [`watch`] (output), [`files`] (the user's files),
//! [`ports`] (connections to the user's servers), [`interpreter`] (Python that remembers), [`usage`] (what it all takes).

#[macro_use]
pub mod weaken;

pub mod archive;
pub mod cgroup;
pub mod clock;
pub mod deadline;
pub mod door;
pub mod driver;
pub mod environment;
pub mod files;
pub mod filter;
pub mod freezer;
pub mod housekeeping;
pub mod init;
pub mod interpreter;
pub mod landlock;
pub mod launch;
pub mod ledger;
pub mod lockdown;
pub mod openat;
pub mod outcome;
pub mod output;
pub mod ports;
pub mod secrets;
pub mod server;
pub mod service_agent;
pub mod service_file;
pub mod service_interpreter;
pub mod service_port;
pub mod service_task;
pub mod spawner;
pub mod spool;
pub mod stdin;
pub mod streams;
pub mod sys;
pub mod task;
pub mod tasks;
pub mod usage;
pub mod watch;
pub mod wire;

use std::{ffi::OsString, fs, path::PathBuf, process::ExitCode};

use berth_proto::agent_config::{AgentConfig, CONFIG_PATH};
use tracing::{Level, error};

/// The whole program: reads its configuration, locks itself down, and becomes init and server.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Before anything is opened.
    let inherited = lockdown::descriptors();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(Level::INFO)
        .init();
    #[cfg(feature = "weakened")]
    weaken::load();
    let result = inherited.map_err(|e| format!("inherited descriptors: {e}")).and_then(|()| start(arguments));
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(problem) => {
            error!("berth-agent: {problem}");
            ExitCode::from(2)
        }
    }
}

fn start(arguments: impl Iterator<Item = OsString>) -> Result<i32, String> {
    let config = read_config(&config_path(arguments)?)?;
    let mut protections = lockdown::apply(&config)?;
    let locks = landlock::locks(&config)?;
    if locks.tasks.is_some() {
        protections.push("landlock".to_owned());
    }
    let filters = match config.seccomp {
        true => Some(filter::Filters::build().map_err(|e| format!("the system call filter: {e}"))?),
        false => None,
    };
    let (of_init, of_server) = wire::pair().map_err(|e| format!("socketpair: {e}"))?;
    match sys::fork().map_err(|e| format!("fork: {e}"))? {
        sys::Forked::Child => {
            drop(of_init);
            if weakened!("killable-agent-without-landlock") {
                let _ = nix::unistd::setresuid(0.into(), 0.into(), config.user.uid.into());
            }
            if let Some(filters) = &filters {
                filters.take_on().map_err(|e| format!("the server's system call filter: {e}"))?;
            }
            let code = server::run(config, of_server, protections, locks.files);
            // No destructors: threads that hang in the kernel must not matter.
            sys::exit(code)
        }
        sys::Forked::Parent(server) => {
            drop(of_server);
            Ok(init::run(&config, filters.as_ref(), locks.tasks, of_init, server))
        }
    }
}

/// `--config PATH` is for tests; a sandbox starts the agent without arguments.
fn config_path(mut arguments: impl Iterator<Item = OsString>) -> Result<PathBuf, String> {
    match (arguments.next(), arguments.next(), arguments.next()) {
        (None, _, _) => Ok(CONFIG_PATH.into()),
        (Some(flag), Some(path), None) if flag == "--config" => Ok(path.into()),
        _ => Err("usage: berth-agent [--config PATH]".to_owned()),
    }
}

fn read_config(path: &PathBuf) -> Result<AgentConfig, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_strict() {
        let of = |args: &[&str]| config_path(args.iter().map(OsString::from));
        assert_eq!(of(&[]), Ok(CONFIG_PATH.into()));
        assert_eq!(of(&["--config", "/x"]), Ok("/x".into()));
        assert!(of(&["--config"]).is_err() && of(&["x"]).is_err() && of(&["--config", "a", "b"]).is_err());
    }
}
