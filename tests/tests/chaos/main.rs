//! A soak on real processes and real sandboxes: clients run tasks that write numbered lines with a checksum, while the
//! coordinator and the workers are killed, stopped, cut off, started again, and lost for good.
//!
//! There are two kinds of sessions. Those that stay (`on_worker_loss: end`) lose nothing at all: no line, no task; so
//! their machines are not lost for good. Those that may move (`restore`, with checkpoints) are never lost, are never in
//! two places at once, and lose no more than they say: see [`moving`] and [`copies`]. In the end nothing is left on the
//! machine. The faults come from a seed, which is printed; the machine's own timing does not, so a seed repeats the
//! faults and not the run. `BERTH_CHAOS_SECONDS` and `BERTH_CHAOS_SEED` choose (`make chaos`).
//!
//! Beside it the crash cycles: [`cycles`].

mod chance;
mod client;
mod copies;
mod cycles;
mod faults;
mod lines;
mod moving;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_client::{Client, ConnectOptions};
use berth_tests::{Cluster, READY, Setup, skip, until};
use chance::{number, seed};
use client::Tally;
use copies::Copies;
use faults::Faults;
use futures::future::join_all;
use moving::Moving;
use tokio::sync::oneshot;

/// Clients with sessions that stay, each with one of its own, and with sessions that may move.
const STAYING: usize = 4;
const MOVING: usize = 3;
/// Workers for the ones, and for the others.
const WORKERS: usize = 2;
const STAY: (&str, &str) = ("fleet", "stay");
const MOVE: (&str, &str) = ("fleet", "move");
const LEASE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);

/// In the background; its result comes when it is over.
fn begin<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> oneshot::Receiver<T> {
    let (tell, told) = oneshot::channel();
    berth_proto::spawn::spawn("chaos client", async move {
        let _ = tell.send(work.await);
    });
    told
}

async fn ends<T>(clients: Vec<oneshot::Receiver<T>>) -> Vec<T> {
    join_all(clients).await.into_iter().map(|told| told.expect("a client lives")).collect()
}

async fn fleet(sandbox: &str) -> Cluster {
    let env = |name: &str, value: Duration| (name.to_owned(), format!("{}s", value.as_secs()));
    let setup = Setup {
        workers: 0,
        proxied: true,
        coordinator_env: vec![env("BERTH_LEASE", LEASE), env("BERTH_RESTORE_GRACE", GRACE)],
        ..Setup::new(sandbox)
    };
    let mut cluster = Cluster::start(setup).await;
    for (label, value) in [STAY, MOVE] {
        for number in 0..WORKERS {
            let labels = format!("{label}={value}");
            cluster.join(&format!("{value}-{number}"), &[("BERTH_LABELS", &labels)]).await;
        }
    }
    cluster.workers_ready().await;
    cluster
}

/// What the clients saw, once they have been told to stop and have ended.
struct Saw {
    staying: Vec<Tally>,
    moving: Vec<Moving>,
}

/// Clients at work while one fault comes after the other.
async fn rage(cluster: &mut Cluster, faults: &mut Faults, time: Duration) -> Saw {
    let stop = Arc::new(AtomicBool::new(false));
    let options = ConnectOptions::new(&cluster.address).token(&cluster.admin_token);
    let options = options.resume_for(Duration::from_secs(60));
    let (mut staying, mut moving) = (Vec::new(), Vec::new());
    for number in 0..MOVING {
        let client = Client::connect(options.clone()).await.expect("an address");
        let session = moving::make(&client, number, MOVE).await;
        moving.push(begin(moving::work(session, number, stop.clone())));
    }
    for number in 0..STAYING {
        let client = Client::connect(options.clone()).await.expect("an address");
        staying.push(begin(client::work(client, number, STAY, stop.clone())));
    }
    faults.rage(cluster, time).await;
    stop.store(true, Ordering::Relaxed);
    let saw = Saw { staying: ends(staying).await, moving: ends(moving).await };
    cluster.workers_ready().await;
    saw
}

async fn soak(sandbox: &str) {
    let (time, seed) = (Duration::from_secs(number("BERTH_CHAOS_SECONDS", 60)), seed());
    println!("chaos on {sandbox}: {} s, BERTH_CHAOS_SEED={seed}", time.as_secs());
    let mut cluster = fleet(sandbox).await;
    let copies = Copies::watch(cluster.dir.path());
    let mut faults = Faults::new(seed, LEASE + GRACE, WORKERS, MOVE);
    let Saw { staying, mut moving } = rage(&mut cluster, &mut faults, time).await;
    for client in &mut moving {
        client.check_log().await;
        client.check_runs().await;
    }
    let (total, copies) = (Tally::sum(&staying), copies.end().await);
    println!("{total}\n{}\n{copies}\n{faults}", moving::report(&moving));
    let failed: Vec<&String> = moving.iter().flat_map(|client| &client.failed).collect();
    assert!(failed.is_empty(), "sessions that may move: {failed:#?}");
    assert!(copies.never_two(), "a session was in two places");
    until(READY, "all sessions to be reached", async || {
        for tally in &staying {
            let session = tally.session.as_ref()?;
            session.run(berth_client::Command::shell("true")).await.ok()?;
        }
        Some(())
    })
    .await;
    for tally in &staying {
        tally.check_runs().await;
    }
    cluster.stop().await;
    println!("orphans left: 0");
    total.assert_whole();
    assert!(
        total.tasks > 0 && moving.iter().all(|m| m.lines() > 0) && faults.total() > 0,
        "nothing was tried"
    );
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
