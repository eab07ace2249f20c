//! `sim seed N`: one seed, with its trace. `sim seeds FIRST COUNT REPLAYS`: so many, each in a process of its own, two or
//! more at a time; the first REPLAYS of them twice, with equal traces.
//!
//! A process of its own, since tokio numbers its tasks through the whole process, and a runtime that is dropped drops
//! them in an order which follows from that.

#[cfg(berth_sim)]
mod many;

#[cfg(berth_sim)]
fn main() -> std::process::ExitCode {
    many::main()
}

#[cfg(not(berth_sim))]
fn main() {
    eprintln!("built without --cfg berth_sim: use `make sim`");
    std::process::exit(2);
}
