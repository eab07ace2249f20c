//! The native launcher alone, for this crate's own tests and for programs that embed the
//! worker. The `berth` and `worker` commands are their own launchers.

fn main() -> std::process::ExitCode {
    berth_worker::sandbox::native::launcher_main()
}
