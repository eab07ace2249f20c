//! Output: complete, by offset, for any number of watchers at their own pace.

use std::time::Instant;

use berth_proto::{Reason, error::detail_of, v1, v1::outcome::Kind};
use tonic::Code;

use crate::rig::*;

#[tokio::test]
async fn megabytes_arrive_as_they_were_written() {
    let Some(rig) = Rig::start("megabytes_arrive_as_they_were_written").await else { return };
    let done = rig.run(sh("head -c 9000000 /dev/urandom | tee copy; head -c 70000 /dev/zero >&2")).await;
    assert_eq!(done.outcome(), Kind::Exited(0));
    assert_eq!(done.stdout, std::fs::read(rig.workspace("copy")).unwrap());
    assert_eq!(done.stderr, vec![0; 70_000]);
    // Again, from any offset.
    for offset in [1, 4_194_303, 8_999_999, 9_000_000] {
        let request = v1::WatchTaskRequest {
            stdout_offset: offset,
            stderr_offset: 70_000,
            ..rig.watch_request(&done.started)
        };
        let again = rig.watch(request).await.unwrap();
        assert_eq!(again.stdout, done.stdout[offset as usize..]);
        assert!(again.stderr.is_empty() && again.ended.is_some());
    }
    let beyond = v1::WatchTaskRequest { stdout_offset: 9_000_001, ..rig.watch_request(&done.started) };
    refused(rig.watch(beyond).await, Code::OutOfRange, Reason::OffsetBeyondEnd);
}

#[tokio::test]
async fn below_retention_is_out_of_range_with_the_first_kept_byte() {
    let Some(rig) = Rig::start("below_retention_is_out_of_range").await else { return };
    let spec = v1::TaskSpec { spool_bytes: 64 << 10, ..sh("seq 1 60000") };
    let task = rig.begin(spec).await;
    let ended = rig.wait(&task).await;
    let info = ended.stdout.unwrap();
    let whole: String = (1..=60_000).map(|i| format!("{i}\n")).collect();
    assert_eq!(info.length, whole.len() as u64);
    assert!(info.length - info.first_kept <= 64 << 10 && info.first_kept > 0, "{info:?}");
    let status = refused(rig.watch(rig.watch_request(&task)).await, Code::OutOfRange, Reason::OutputLost);
    assert_eq!(detail_of(&status, "first_kept"), Some(info.first_kept.to_string()));
    let skipping = v1::WatchTaskRequest { skip_lost: true, ..rig.watch_request(&task) };
    let rest = rig.watch(skipping).await.unwrap();
    assert_eq!(rest.first[0], Some(info.first_kept));
    assert_eq!(rest.out(), whole[info.first_kept as usize..]);
    // On disk, and out of the task's reach.
    let files: Vec<_> = std::fs::read_dir(rig.config.spool_dir.join(&task.id)).unwrap().flatten().collect();
    assert!(!files.is_empty());
}

#[tokio::test]
async fn without_following_a_stream_ends_where_the_output_is() {
    let Some(rig) = Rig::start("without_following_a_stream_ends").await else { return };
    let task = rig.begin(sh("echo now; echo > ready; sleep 600")).await;
    rig.file("ready").await;
    let until = Instant::now() + SOON;
    let request = v1::WatchTaskRequest { no_follow: true, ..rig.watch_request(&task) };
    loop {
        let seen = rig.watch(request.clone()).await.unwrap();
        assert!(seen.ended.is_none());
        if seen.out() == "now\n" {
            break;
        }
        assert!(Instant::now() < until);
    }
}

#[tokio::test]
async fn a_watcher_that_does_not_read_holds_up_nobody() {
    let Some(rig) = Rig::start("a_watcher_that_does_not_read_holds_up_nobody").await else { return };
    let task = rig.begin(sh("head -c 30000000 /dev/zero; echo end >&2")).await;
    let lazy = rig.tasks.clone().watch_task(rig.watch_request(&task)).await.unwrap().into_inner();
    let quick = rig.watch(rig.watch_request(&task)).await.unwrap();
    assert_eq!((quick.stdout.len(), quick.err().as_str()), (30_000_000, "end\n"));
    assert_eq!(outcome(&rig.wait(&task).await), Kind::Exited(0));
    // And it can still have all of it.
    assert_eq!(collect(lazy).await.unwrap().stdout.len(), 30_000_000);
}

#[tokio::test]
async fn output_comes_while_the_task_runs() {
    let Some(rig) = Rig::start("output_comes_while_the_task_runs").await else { return };
    let task = rig.begin(v1::TaskSpec { stdin: true, ..sh("while read x; do echo got $x; done") }).await;
    let mut watch = rig.tasks.clone().watch_task(rig.watch_request(&task)).await.unwrap().into_inner();
    watch.message().await.unwrap();
    for i in 0..20 {
        rig.stdin(&task, None, format!("{i}\n").as_bytes()).await.unwrap();
        match watch.message().await.unwrap().unwrap().event.unwrap() {
            v1::task_event::Event::Stdout(chunk) => assert_eq!(chunk.data, format!("got {i}\n").as_bytes()),
            other => panic!("{other:?}"),
        }
    }
}
