//! `worker`: started with no arguments, it serves.

fn main() -> std::process::ExitCode {
    berth_cli::worker()
}
