//! A soak on real processes and real sandboxes: clients run tasks that write numbered lines with a checksum, while the
//! coordinator and the workers are killed, stopped, cut off and started again at random.
//!
//! In the end nothing was lost, nothing came twice, no task ran twice, and nothing is left on the machine. The faults
//! come from a seed, which is printed; the machine's own timing does not, so a seed repeats the faults and not the run.
//! `BERTH_CHAOS_SECONDS` and `BERTH_CHAOS_SEED` choose (`make chaos`).

mod client;
mod faults;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_client::{Client, ConnectOptions};
use berth_tests::{Cluster, READY, Setup, skip, until};
use futures::future::join_all;

use client::Tally;
use faults::Faults;

/// Clients, each with a session of its own.
const CLIENTS: usize = 4;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

async fn soak(sandbox: &str) {
    let time = Duration::from_secs(number("BERTH_CHAOS_SECONDS", 30));
    let seed = number("BERTH_CHAOS_SEED", std::process::id().into());
    println!("chaos on {sandbox}: {} s, BERTH_CHAOS_SEED={seed}", time.as_secs());
    let lease = ("BERTH_LEASE".to_owned(), "2s".to_owned());
    let setup = Setup { workers: 2, proxied: true, coordinator_env: vec![lease], ..Setup::new(sandbox) };
    let mut cluster = Cluster::start(setup).await;
    let stop = Arc::new(AtomicBool::new(false));
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    let options = options.resume_for(Duration::from_secs(60));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = Client::connect(options.clone()).await.expect("an address");
        let (tell, told) = tokio::sync::oneshot::channel();
        let stop = stop.clone();
        berth_proto::spawn::spawn("chaos client", async move {
            let _ = tell.send(client::work(client, number, stop).await);
        });
        clients.push(told);
    }
    let mut faults = Faults::new(seed);
    faults.rage(&mut cluster, time).await;
    stop.store(true, Ordering::Relaxed);
    let tallies: Vec<Tally> =
        join_all(clients).await.into_iter().map(|t| t.expect("a client lives")).collect();
    let total = Tally::sum(&tallies);
    println!("{total}\n{faults}");
    cluster.workers_ready().await;
    until(READY, "all sessions to be reached", async || {
        for tally in &tallies {
            let session = tally.session.as_ref()?;
            session.run(berth_client::Command::shell("true")).await.ok()?;
        }
        Some(())
    })
    .await;
    for tally in &tallies {
        tally.check_runs().await;
    }
    cluster.stop().await;
    println!("orphans left: 0");
    total.assert_whole();
    assert!(total.tasks > 0 && faults.total() > 0, "nothing was tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_loses_nothing() {
    if skip::without_root("chaos native_loses_nothing") {
        return;
    }
    soak("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_loses_nothing() {
    if skip::without_docker("chaos docker_loses_nothing") {
        return;
    }
    soak("docker").await;
}
