//! The side-by-side benchmark: what a session, a task and a file cost through Berth, beside
//! the tools that people would use instead, in one run on one machine.
//!
//! Every figure is a wall-clock time seen by the client. Peers that the machine does not
//! have are named and left out. `BERTH_BENCH_ROUNDS` (default 200) is the number of rounds
//! of the quick rows; slow ones do fewer. No figure decides a test. With the argument `readopt`, `neighbour`
//! or `context` only that is measured.

mod context;
mod fleet;
mod neighbour;
mod peers;
mod readopt;
mod stats;

use stats::Table;

const ROWS: [&str; 9] = [
    "session: create to first output",
    "session: create",
    "exec of true",
    "python3 -c 'print(1)'",
    "1+1 in a built-in context",
    "1+1 in a Jupyter context",
    "1 KiB write + read",
    "64 MiB upload",
    "64 MiB download",
];

#[tokio::main]
async fn main() {
    let rounds = std::env::var("BERTH_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut table = Table::new("", ROWS);
    // One measurement alone, for whoever works on it.
    match std::env::args().nth(1).as_deref() {
        Some("readopt") => return readopt::readopt(&mut table).await,
        Some("neighbour") => return neighbour::neighbour(rounds).await,
        Some("context") => return context::alone(rounds).await,
        _ => {}
    }
    eprintln!("{rounds} rounds; times in milliseconds");
    peers::bare(&mut table, rounds).await;
    peers::bubblewrap(&mut table, rounds).await;
    peers::docker(&mut table, rounds).await;
    peers::runc(&mut table, rounds).await;
    for backend in ["native", "docker"] {
        fleet::berth(&mut table, backend, rounds).await;
    }
    readopt::readopt(&mut table).await;
    table.print();
    neighbour::neighbour(rounds).await;
}
