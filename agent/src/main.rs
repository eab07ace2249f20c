//! `berth-agent`: see the library.

fn main() -> std::process::ExitCode {
    berth_agent::main(std::env::args_os().skip(1))
}
