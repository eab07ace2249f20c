//! The side-by-side benchmark: what a session, a task and a file cost through Berth, beside
//! the tools that people would use instead, in one run on one machine.
//!
//! Every figure is a wall-clock time seen by the client. Peers that the machine does not
//! have are named and left out. `BERTH_BENCH_ROUNDS` (default 200) is the number of rounds
//! of the quick rows; slow ones do fewer. No figure decides a test. With the argument `readopt` only that is measured.

mod fleet;
mod peers;
mod readopt;
mod stats;

use stats::Table;

#[tokio::main]
async fn main() {
    let rounds = std::env::var("BERTH_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut table = Table::new();
    // One measurement alone, for whoever works on it.
    if std::env::args().nth(1).as_deref() == Some("readopt") {
        return readopt::readopt(&mut table).await;
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
}
