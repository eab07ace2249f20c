//! `berth`: all of Berth for its users and operators.

fn main() -> std::process::ExitCode {
    berth_cli::berth()
}
