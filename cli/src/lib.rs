//! The commands: `berth`, `coordinator`, `worker`. The executables are three lines each;
//! all that they do is here, so that it can be tested.

pub mod commands;
pub mod demo;
pub mod env;
pub mod failure;
pub mod logging;
pub mod output;
pub mod process;
pub mod select;
pub mod serve;
pub mod signals;
pub mod spans;
mod sys;
pub mod terminal;
pub mod value;

use std::process::ExitCode;

use failure::{CommandResult, Failure, code};

/// The `berth` command.
pub fn berth() -> ExitCode {
    if is_launcher() {
        return berth_worker::sandbox::native::launcher_main();
    }
    output::set_json(commands::wants_json(std::env::args_os()));
    finish(env::check(std::env::vars_os().map(|(name, _)| name)).and_then(|()| {
        let cli = commands::parse();
        block_on(commands::dispatch(cli))
    }))
}

/// The `coordinator` command.
pub fn coordinator() -> ExitCode {
    serve::main::<serve::coordinator::CoordinatorArgs>()
}

/// The `worker` command.
pub fn worker() -> ExitCode {
    if is_launcher() {
        return berth_worker::sandbox::native::launcher_main();
    }
    serve::main::<serve::worker::WorkerArgs>()
}

/// The native backend's launcher is this executable again. It must stay single-threaded,
/// so it is told apart before anything else.
fn is_launcher() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == "__launcher")
}

/// Runs a command on a runtime of its own. What still blocks then (a read from a terminal)
/// is not waited for.
fn block_on(command: impl Future<Output = CommandResult>) -> CommandResult {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("can't start", error))?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

fn finish(result: CommandResult) -> ExitCode {
    match result {
        // Who reads JSON is told in any case.
        Ok(code::CANCELLED) if output::is_json() && !output::has_told() => Failure::interrupted().report(),
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}
