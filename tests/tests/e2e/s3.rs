//! Checkpoints in a real S3 server.

mod server;

use std::{path::PathBuf, time::Duration};

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, outcome::Kind},
};
use berth_tests::{Cluster, READY, Setup, process, skip, until};
use server::S3;
use tonic::Code;

use crate::{
    clocks::Shift,
    recovery::{checkpoint, fleet, index, moved, outcome, restorable, start, start_known},
    util::{run, state, try_run},
};

/// For a store that is gone to be given up: the client's tries of one request take a minute and a half at most.
const GIVEN_UP: Duration = Duration::from_secs(150);

/// Two workers, whose coordinator keeps its checkpoints there.
fn with(s3: &S3) -> Setup {
    let mut setup = fleet("native");
    setup.coordinator_env.extend(s3.env());
    setup
}

async fn restored(cluster: &Cluster, checkpoint: &str) -> Result<v1::Session, tonic::Status> {
    let request = v1::RestoreSessionRequest { checkpoint_id: checkpoint.into(), ..Default::default() };
    Ok(cluster.checkpoints().restore_session(request).await?.into_inner())
}

async fn refused(cluster: &Cluster, session: &str) -> tonic::Status {
    let request = v1::CheckpointSessionRequest { session_id: session.into(), ..Default::default() };
    let answer = tokio::time::timeout(GIVEN_UP, cluster.checkpoints().checkpoint_session(request)).await;
    answer.expect("it is given up").expect_err("there is no store")
}

/// The whole way: out of one machine into the bucket, and out of the bucket into another machine; forks; and what was
/// removed is not to be had.
async fn goes_on_elsewhere(sandbox: &str) {
    let s3 = S3::start().await;
    let mut cluster = Cluster::start(Setup { sandbox: sandbox.to_owned(), ..with(&s3) }).await;
    let session = restorable(&cluster).await;
    run(&cluster, &session.id, "mkdir d; head -c 3000000 /dev/urandom > d/big; echo kept > file").await;
    let (sum, _) = run(&cluster, &session.id, "sha256sum < d/big").await;
    let taken = checkpoint(&cluster, &session.id).await;
    let bytes: u64 = s3.pieces().iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(bytes, taken.stored_bytes, "all that was stored is in the bucket");
    assert!(!cluster.dir.path().join("c/blobs").exists(), "and nowhere else");
    let running = start_known(&cluster, &session.id, "echo lost > later; sleep 1000").await;

    let lost = index(&cluster, &session.worker_id);
    cluster.lose_machine(lost).await;
    let now = moved(&cluster, &session).await;
    assert_eq!(now.recovered_from, taken.id);
    let (seen, _) = run(&cluster, &session.id, "ls; cat file; sha256sum < d/big").await;
    assert_eq!(seen, format!("d\nfile\nkept\n{sum}"));
    assert_eq!(outcome(&cluster, &running).await, Some(Kind::WorkerLost(v1::outcome::Empty {})));

    let request = v1::ForkSessionRequest { session_id: session.id.clone(), count: 2, session: None };
    let forked = cluster.checkpoints().fork_session(request).await.expect("two forks").into_inner();
    for fork in &forked.sessions {
        assert_eq!(run(&cluster, &fork.id, "sha256sum < d/big").await.0, sum);
    }
    let request = v1::DeleteCheckpointRequest { checkpoint_id: taken.id.clone() };
    cluster.checkpoints().delete_checkpoint(request).await.unwrap();
    let error = restored(&cluster, &taken.id).await.expect_err("it was deleted");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::CheckpointNotFound)));
    cluster.stop().await;
}

/// Red without the bucket: there is nothing to go on from, and the session ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_session_goes_on_elsewhere_out_of_s3() {
    if skip::without_root("e2e native_a_session_goes_on_elsewhere_out_of_s3") {
        return;
    }
    goes_on_elsewhere("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_session_goes_on_elsewhere_out_of_s3() {
    if skip::without_docker("e2e docker_a_session_goes_on_elsewhere_out_of_s3") {
        return;
    }
    goes_on_elsewhere("docker").await;
}

/// Red when what is read back is not hashed (the comparison in `berth_checkpoint::open`, which coordinator and worker use).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_lost_object_in_s3_is_told_by_name() {
    if skip::without_root("e2e a_damaged_or_lost_object_in_s3") {
        return;
    }
    let s3 = S3::start().await;
    let cluster = Cluster::start(with(&s3)).await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "head -c 2000000 /dev/urandom > big").await;
    let taken = checkpoint(&cluster, &session.id).await;
    let largest = s3.pieces().into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let name = largest.file_name().unwrap().to_str().unwrap().to_owned();
    let whole = std::fs::read(&largest).unwrap();
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let error = restored(&cluster, &taken.id).await.expect_err("it is damaged");
    assert!(error.message().contains("damaged") && error.message().contains(&name[..8]), "{error:?}");
    std::fs::remove_file(&largest).unwrap();
    let error = restored(&cluster, &taken.id).await.expect_err("it is gone");
    assert!(error.message().contains("lost") && error.message().contains(&name[..8]), "{error:?}");
    until(READY, "nothing to be made of it", async || {
        let all =
            cluster.sessions().list_sessions(v1::ListSessionsRequest::default()).await.ok()?.into_inner();
        let up = all.sessions.iter().filter(|s| s.state() != v1::SessionState::Ended).map(|s| &s.id);
        up.eq([&session.id]).then_some(())
    })
    .await;
    // And what is whole again is taken.
    std::fs::write(&largest, whole).unwrap();
    let back = restored(&cluster, &taken.id).await.expect("it is whole");
    assert_eq!(run(&cluster, &back.id, "stat -c %s big").await.0, "2000000");
    cluster.stop().await;
}

/// Red without `claim` at the start, and at the first checkpoint where the store could not be asked at the start: the
/// second coordinator's sweep would take the first one's pieces for the rest of a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bucket_of_another_coordinator_is_refused() {
    if skip::without_root("e2e the_bucket_of_another_coordinator") {
        return;
    }
    let mut s3 = S3::start().await;
    let cluster = Cluster::start(with(&s3)).await;
    let session = cluster.session().await;
    checkpoint(&cluster, &session.id).await;
    let before = (s3.pieces(), std::fs::read(s3.at("owner")).unwrap());

    let state = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let mut env = s3.env();
    env.push(("BERTH_STATE_DIR".to_owned(), state.path().join("c").to_str().unwrap().to_owned()));
    env.push(("GRPC_PORT".to_owned(), "0".to_owned()));
    let second = process::run("coordinator", &[], &env, b"").await;
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("holds another coordinator's checkpoints"), "{}", second.stderr);

    // One that can't ask at its start learns it when it first needs it, and has written nothing by then.
    s3.go_down();
    let other = Cluster::start(with(&s3)).await;
    s3.go_up().await;
    let theirs = other.session().await;
    run(&other, &theirs.id, "echo theirs > file").await;
    let error = refused(&other, &theirs.id).await;
    assert!(error.message().contains("another coordinator's checkpoints"), "{error:?}");
    assert_eq!((s3.pieces(), std::fs::read(s3.at("owner")).unwrap()), before, "nothing was written");
    checkpoint(&cluster, &session.id).await;
    other.stop().await;
    cluster.stop().await;
}

/// Red when the start waits for the store (60 s are all that a start has here), and without the look before a
/// checkpoint, which then takes a minute and more to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_s3_a_coordinator_starts_and_checkpoints_wait_for_it() {
    if skip::without_root("e2e without_s3_a_coordinator_starts") {
        return;
    }
    let mut s3 = S3::new().await;
    let cluster = Cluster::start(with(&s3)).await;
    assert!(cluster.coordinator.log().contains("no checkpoints for now"), "{}", cluster.coordinator.log());
    let session = restorable(&cluster).await;
    run(&cluster, &session.id, "echo kept > file").await;
    let begun = tokio::time::Instant::now();
    let error = refused(&cluster, &session.id).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::Unavailable, Some(Reason::StoreFailed)),
        "{error:?}"
    );
    assert!(error.message().contains("the blob store"), "{error:?}");
    assert!(detail_of(&error, "hint").is_some(), "{error:?}");
    // All else goes on, and nothing stands still.
    assert_eq!(run(&cluster, &session.id, "cat file").await.0, "kept");

    s3.go_up().await;
    let taken = checkpoint(&cluster, &session.id).await;
    let back = restored(&cluster, &taken.id).await.expect("it is there");
    assert_eq!(run(&cluster, &back.id, "cat file").await.0, "kept");
    cluster.stop().await;
}

/// Red when a checkpoint is told of whose pieces are not all there: `PutBlobs`, `check` and `Catalog::add` each see that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_that_goes_down_in_a_checkpoint_fails_it_and_nothing_else() {
    if skip::without_root("e2e an_s3_that_goes_down_in_a_checkpoint") {
        return;
    }
    let mut s3 = S3::start().await;
    let cluster = Cluster::start(with(&s3)).await;
    let session = restorable(&cluster).await;
    run(&cluster, &session.id, "echo small > file").await;
    let first = checkpoint(&cluster, &session.id).await;
    // Some twenty pieces, of which five arrive.
    run(&cluster, &session.id, "head -c 6000000 /dev/urandom > big").await;
    let (sum, _) = run(&cluster, &session.id, "sha256sum < big").await;
    let beat = start(&cluster, &session.id, "while :; do date +%s%N > beat; sleep 0.01; done").await;
    s3.go_down_after(5);
    let error = tokio::join!(refused(&cluster, &session.id), async {
        until(READY, "the store to go down", async || s3.is_down().then_some(())).await;
        // The session is not held up by the tries.
        assert_eq!(try_run(&cluster, &session.id, "cat file").await.expect("it runs").0, "small");
    })
    .0;
    assert_eq!(reason_of(&error), Some(Reason::StoreFailed), "{error:?}");
    let now = state(&cluster, &session.id).await;
    assert_eq!((now.state(), now.epoch), (v1::SessionState::Ready, session.epoch));
    let before = run(&cluster, &session.id, "cat beat").await.0;
    until(READY, "another beat", async || {
        (run(&cluster, &session.id, "cat beat").await.0 != before).then_some(())
    })
    .await;
    let list = v1::ListCheckpointsRequest { session_id: session.id.clone(), ..Default::default() };
    let listed = cluster.checkpoints().list_checkpoints(list).await.unwrap().into_inner().checkpoints;
    assert_eq!(listed.iter().map(|c| &c.id).collect::<Vec<_>>(), [&first.id], "there is no half of one");

    s3.go_up().await;
    let kill =
        v1::CancelTaskRequest { session_id: session.id.clone(), task_id: beat.id, ..Default::default() };
    cluster.tasks().cancel_task(kill).await.unwrap();
    let second = checkpoint(&cluster, &session.id).await;
    for (checkpoint, seen) in [(&first, "small\n-".to_owned()), (&second, format!("small\n{sum}"))] {
        let back = restored(&cluster, &checkpoint.id).await.expect("it is whole");
        let line = "cat file; if [ -e big ]; then sha256sum < big; else echo -; fi";
        assert_eq!(run(&cluster, &back.id, line).await.0, seen);
    }
    cluster.stop().await;
}

/// The machine is lost while S3 is away for longer than a request is tried: the session waits for it. Red when a worker
/// gives up with the first answer that there is no store (`Pieces::next`): the session ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_waits_for_s3() {
    if skip::without_root("e2e a_recovery_waits_for_s3") {
        return;
    }
    let mut s3 = S3::start().await;
    let mut cluster = Cluster::start(with(&s3)).await;
    let session = restorable(&cluster).await;
    run(&cluster, &session.id, "echo kept > file; head -c 2000000 /dev/urandom > big").await;
    let (sum, _) = run(&cluster, &session.id, "sha256sum < big").await;
    checkpoint(&cluster, &session.id).await;
    s3.go_down();
    let lost = index(&cluster, &session.worker_id);
    cluster.lose_machine(lost).await;
    until(GIVEN_UP, "the store to be given up once", async || {
        cluster.workers[0].process.log().contains("can't be had for now").then_some(())
    })
    .await;
    let now = state(&cluster, &session.id).await;
    assert_eq!(now.state(), v1::SessionState::Placed, "{now:?}");
    s3.go_up().await;
    moved(&cluster, &session).await;
    assert_eq!(run(&cluster, &session.id, "cat file; sha256sum < big").await.0, format!("kept\n{sum}"));
    cluster.stop().await;
}

/// Unused pieces go an hour after they were last counted on, and the sweep looks once a minute: the coordinator is
/// started again two hours later. Red when both sweeps leave the store alone (what one leaves the other finds).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_checkpoint_uses_goes_from_s3() {
    if skip::without_root("e2e what_no_checkpoint_uses_goes_from_s3") {
        return;
    }
    let s3 = S3::start().await;
    let shift = Shift::new();
    let mut setup = with(&s3);
    setup.coordinator_env.extend(shift.env());
    let mut cluster = Cluster::start(setup).await;
    let session = cluster.session().await;
    run(&cluster, &session.id, "head -c 2000000 /dev/urandom > big").await;
    let first = checkpoint(&cluster, &session.id).await;
    let old = s3.pieces();
    run(&cluster, &session.id, "rm big; echo small > file").await;
    let second = checkpoint(&cluster, &session.id).await;
    let used: Vec<PathBuf> = s3.pieces().into_iter().filter(|path| !old.contains(path)).collect();
    assert!(old.len() > 3 && !used.is_empty(), "{old:?} {used:?}");
    let request = v1::DeleteCheckpointRequest { checkpoint_id: first.id };
    cluster.checkpoints().delete_checkpoint(request).await.unwrap();

    shift.to(2 * 3600);
    cluster.restart_coordinator().await;
    until(Duration::from_secs(120), "the unused pieces to go", async || {
        let left = s3.pieces();
        assert!(used.iter().all(|path| left.contains(path)), "one that is in use has gone");
        (!old.iter().any(|path| left.contains(path) && !used.contains(path)) || left.len() == used.len())
            .then_some(())
    })
    .await;
    let back = restored(&cluster, &second.id).await.expect("it is whole");
    assert_eq!(run(&cluster, &back.id, "ls").await.0, "file");
    cluster.stop().await;
}
