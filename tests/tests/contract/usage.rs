//! What a session takes, as any hop must tell it.

use berth_proto::{
    error::{Reason, reason_of},
    v1,
};
use tonic::Code;

use crate::{
    files,
    hop::{DEADLINE, Hop, argv, shell},
};

const MIB: u64 = 1 << 20;

async fn read(hop: &Hop) -> v1::SessionUsage {
    let request = v1::GetUsageRequest { session_id: hop.session.clone() };
    hop.tasks.clone().get_usage(request).await.expect("a reading").into_inner()
}

async fn until(hop: &Hop, what: &str, fits: impl Fn(&v1::SessionUsage) -> bool) -> v1::SessionUsage {
    berth_tests::until(DEADLINE, what, async || Some(read(hop).await).filter(|usage| fits(usage))).await
}

/// On every backend: tasks, processes and files, and whose they are. Red when tasks that are done are counted.
pub async fn tasks_and_files_are_counted(hop: &Hop) {
    let before = read(hop).await;
    assert!(before.read_at.is_some() && before.tasks == 0 && before.tasks_limit == 32, "{before:?}");
    assert_eq!(before.pids_limit, Some(64), "{before:?}");
    let written = vec![b'x'; 3 * MIB as usize];
    files::write(hop, "/workspace/large", &written).await.expect("it is written");
    let task = hop.start_task(argv(&["sleep", "1000"])).await;
    let during = until(hop, "a task, and its files", |usage| {
        usage.tasks == 1
            && usage.pids.is_some_and(|pids| pids >= 1)
            && usage.disk_bytes.is_some_and(|bytes| bytes >= before.disk_bytes.unwrap_or(0) + 3 * MIB)
    })
    .await;
    assert!(during.disk_bytes <= during.disk_limit_bytes, "{during:?}");
    assert!(during.inodes > before.inodes, "{during:?}");
    let cancel = v1::CancelTaskRequest { session_id: hop.session.clone(), task_id: task.id, grace: None };
    hop.tasks.clone().cancel_task(cancel).await.expect("it can be cancelled");
    until(hop, "no task", |usage| usage.tasks == 0).await;

    let other = v1::GetUsageRequest { session_id: berth_proto::SessionId::new().to_string() };
    let error = hop.tasks.clone().get_usage(other).await.expect_err("no such session");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::SessionNotFound)));
}

/// Red when the agent's own are counted, when a session's figures are those of one of its tasks, or when those of a task
/// that is done are lost.
pub async fn cpu_and_memory_are_the_sessions(hop: &Hop) {
    let before = read(hop).await;
    assert!(!before.summed, "there are cgroups here: {before:?}");
    assert!(before.memory_limit_bytes.is_some_and(|limit| limit >= 128 * MIB), "{before:?}");
    assert!(before.cpu_limit_millis.is_some_and(|limit| limit > 0), "{before:?}");
    assert!(before.memory_bytes.is_some_and(|bytes| bytes < 32 * MIB), "nothing runs: {before:?}");

    let burn = "import time\nwhile time.process_time() < 0.5: pass";
    hop.run(argv(&["python3", "-c", burn])).await.ok();
    let burnt = read(hop).await;
    let took = burnt.cpu_micros.expect("it is counted") - before.cpu_micros.expect("it is counted");
    assert!((500_000..60_000_000).contains(&took), "{took} us: {burnt:?}");

    let hold = "import sys, time\nhog = b'x' * (48 << 20)\nprint('ready', flush=True)\nsys.stdin.read()";
    let task = hop.start_task(v1::TaskSpec { stdin: true, ..argv(&["python3", "-c", hold]) }).await;
    hop.prints(&task.id, "ready").await;
    let held = read(hop).await;
    assert!(held.memory_bytes.is_some_and(|bytes| bytes >= 48 * MIB), "{held:?}");
    assert!(held.memory_cache_bytes <= held.memory_bytes, "{held:?}");
    let close = v1::CloseStdinRequest { session_id: hop.session.clone(), task_id: task.id.clone() };
    hop.tasks.clone().close_stdin(close).await.expect("its input ends");
    hop.done(&task.id).await;
    let after = until(hop, "the memory is free", |usage| usage.memory_bytes < held.memory_bytes).await;
    // A kernel before 5.19 has no peak on v2.
    assert!(after.memory_peak_bytes.is_none_or(|peak| peak >= 48 * MIB), "{after:?}");

    // Two may be kept ready for the next tasks.
    let many = hop.start_task(shell("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait")).await;
    until(hop, "nine processes", |usage| usage.pids.is_some_and(|pids| (9..=11).contains(&pids))).await;
    let cancel = v1::CancelTaskRequest { session_id: hop.session.clone(), task_id: many.id, grace: None };
    hop.tasks.clone().cancel_task(cancel).await.expect("it can be cancelled");
    until(hop, "no processes", |usage| usage.pids.is_some_and(|pids| pids <= 2)).await;
}
