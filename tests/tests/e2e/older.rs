//! A session whose newest checkpoints are damaged or gone goes back to the newest that is whole.

use std::{collections::BTreeSet, path::PathBuf};

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, skip, until};

use crate::{
    recovery::{checkpoint, fleet, index, moved, restorable, walk},
    util::{run, state},
};

/// Writes a file that has nothing in common with any other, and takes a checkpoint. What that has added.
async fn write_and_keep(cluster: &Cluster, session: &str, name: &str) -> (v1::Checkpoint, BTreeSet<PathBuf>) {
    let blobs = cluster.dir.path().join("c/blobs/pieces");
    let there = || if blobs.is_dir() { walk(&blobs) } else { Vec::new() };
    let before: BTreeSet<PathBuf> = there().into_iter().collect();
    run(cluster, session, &format!("head -c 2000000 /dev/urandom > {name}; sha256sum {name} >> sums")).await;
    let taken = checkpoint(cluster, session).await;
    (taken, there().into_iter().filter(|piece| !before.contains(piece)).collect())
}

fn largest(pieces: &BTreeSet<PathBuf>) -> &PathBuf {
    pieces.iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).expect("it has pieces")
}

/// Red when a restore that fails ends the session although it has an older checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    if skip::without_root("e2e a_damaged_checkpoint_is_passed_over") {
        return;
    }
    let mut cluster = Cluster::start(Setup { workers: 3, ..fleet("native") }).await;
    let session = restorable(&cluster).await;
    let (first, of_first) = write_and_keep(&cluster, &session.id, "one").await;
    let (_, of_second) = write_and_keep(&cluster, &session.id, "two").await;
    let (third, of_third) = write_and_keep(&cluster, &session.id, "three").await;
    // The disk has rotted under the newest, and has lost a part of the one before.
    let rotten = largest(&of_third);
    let mut bytes = std::fs::read(rotten).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(rotten, bytes).unwrap();
    std::fs::remove_file(largest(&of_second)).unwrap();

    let lost = index(&cluster, &session.worker_id);
    cluster.lose_machine(lost).await;
    let now = moved(&cluster, &session).await;
    assert_eq!((&now.recovered_from, now.recovered_to), (&first.id, first.created_at));
    assert!(now.message.contains("older checkpoint") && now.message.contains(&third.id), "{}", now.message);
    let (seen, _) = run(&cluster, &session.id, "ls; sha256sum --quiet -c sums && echo whole").await;
    assert_eq!(seen, "one\nsums\nwhole");
    let told = cluster.berth(&["ps"]).await.stderr;
    assert!(told.contains("recovered to") && told.contains("older checkpoint"), "{told}");

    // With none left it ends, and says what it was.
    for piece in of_first {
        std::fs::remove_file(piece).unwrap();
    }
    let lost = index(&cluster, &now.worker_id);
    cluster.lose_machine(lost).await;
    let over = until(READY, "the session to end", async || {
        let now = state(&cluster, &session.id).await;
        (now.state() == v1::SessionState::Ended).then_some(now)
    })
    .await;
    assert_eq!(over.end_reason(), v1::EndReason::SandboxFailed);
    assert!(over.message.contains(&first.id) && over.message.contains("no older one"), "{}", over.message);
    cluster.stop().await;
}
