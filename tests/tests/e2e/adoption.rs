//! What a worker that comes back takes up, and what it does not: the same processes, and no others. INVARIANTS 17, 18.

use std::path::{Path, PathBuf};

use berth_proto::v1::{self, outcome::Kind, task_event::Event};
use berth_tests::{Cluster, READY, Setup, left, skip, until};

use crate::{
    recovery::{outcome, start, workspace},
    util::state,
};

/// A process, as nobody else can be.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Same {
    pid: i32,
    started: u64,
}

/// Field 22 of /proc/PID/stat.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Processes in a cgroup and those below it.
fn processes(cgroup: &Path) -> Vec<i32> {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// The process of a session's task whose command line has `word` in it, as the host sees it.
fn task_process(worker: &Path, session: &str, word: &str) -> Option<Same> {
    let trees = left::cgroups(&left::instance(worker)?);
    let pids = trees.iter().flat_map(|tree| processes(&tree.join(session).join("t")));
    let named = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    let pid = pids.into_iter().find(named)?;
    Some(Same { pid, started: started(pid)? })
}

/// All that a task wrote, and how it ended.
async fn watch(cluster: &Cluster, task: &v1::Task) -> (String, Kind) {
    let request = v1::WatchTaskRequest {
        session_id: task.session_id.clone(),
        task_id: task.id.clone(),
        ..Default::default()
    };
    let mut stream = cluster.tasks().watch_task(request).await.expect("it can be watched").into_inner();
    let mut output = Vec::new();
    while let Some(event) = stream.message().await.expect("it goes on") {
        match event.event {
            Some(Event::Stdout(chunk)) => output.extend_from_slice(&chunk.data),
            Some(Event::Ended(task)) => {
                let kind = task.end.and_then(|end| end.outcome).and_then(|o| o.kind).expect("an outcome");
                return (String::from_utf8_lossy(&output).into_owned(), kind);
            }
            _ => {}
        }
    }
    panic!("the stream ended before the task");
}

async fn the_same_process(sandbox: &str) {
    let mut cluster = Cluster::start(Setup::new(sandbox)).await;
    let session = cluster.session().await;
    let line = "i=0; while [ ! -e stop ]; do i=$((i + 1)); echo $i; echo $i > beat; sleep 0.01; done; : marked; exit 5";
    let task = start(&cluster, &session.id, line).await;
    let worker = cluster.workers[0].state.clone();
    let before =
        until(READY, "the task's process", async || task_process(&worker, &session.id, "marked")).await;
    let root = workspace(&cluster, 0, &session.id);
    let beat = || std::fs::read_to_string(root.join("beat")).unwrap_or_default();
    for _ in 0..2 {
        cluster.workers[0].process.kill().await;
        // It goes on without a worker.
        let then = beat();
        until(READY, "another beat", async || (beat() != then).then_some(())).await;
        cluster.restart_worker(0);
        cluster.workers_ready().await;
        until(READY, "the task to be reached", async || {
            let request = v1::GetTaskRequest { session_id: session.id.clone(), task_id: task.id.clone() };
            let now = cluster.tasks().get_task(request).await.ok()?.into_inner();
            (now.state() == v1::TaskState::Running).then_some(())
        })
        .await;
        assert_eq!(task_process(&worker, &session.id, "marked"), Some(before.clone()), "another process");
    }
    std::fs::write(root.join("stop"), "").expect("the workspace is there");
    let (output, kind) = watch(&cluster, &task).await;
    assert_eq!(kind, Kind::Exited(5), "its end is seen by who did not see its beginning");
    let numbers: Vec<usize> = output.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.len() > 10 && numbers.iter().copied().eq(1..=numbers.len()), "{numbers:?}");
    assert_eq!(state(&cluster, &session.id).await.epoch, session.epoch);
    cluster.stop().await;
}

/// Red when a worker that starts takes up nothing (`find` in its `adopt` says `None`): the process is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_task_is_the_same_process_after_its_worker_was_killed() {
    if skip::without_root("e2e native_a_task_is_the_same_process") {
        return;
    }
    the_same_process("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_task_is_the_same_process_after_its_worker_was_killed() {
    if skip::without_docker("e2e docker_a_task_is_the_same_process") {
        return;
    }
    the_same_process("docker").await;
}

/// `sandbox.json` of a session, whose worker is dead.
struct Record {
    path: PathBuf,
    value: serde_json::Value,
}

impl Record {
    fn read(cluster: &Cluster, session: &str) -> Self {
        let path = cluster.workers[0].state.join("sessions").join(session).join("sandbox.json");
        let value = serde_json::from_slice(&std::fs::read(&path).expect("the record")).expect("JSON");
        Self { path, value }
    }

    /// The one field of this name, wherever it is.
    fn field(&mut self, name: &str) -> &mut serde_json::Value {
        fn find<'a>(value: &'a mut serde_json::Value, name: &str) -> Option<&'a mut serde_json::Value> {
            let object = value.as_object_mut()?;
            if object.contains_key(name) {
                return object.get_mut(name);
            }
            object.values_mut().find_map(|inner| find(inner, name))
        }
        find(&mut self.value, name).unwrap_or_else(|| panic!("no {name}"))
    }

    fn write(&self) {
        std::fs::write(&self.path, serde_json::to_vec(&self.value).unwrap()).expect("the record");
    }
}

/// A pid that is used again has another start time. What the record names is not taken up, nor touched; what is left of
/// the session is removed. Red without the comparison of start times in the native backend's `adopt`: both sessions
/// live on, one of them by a process that is none of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_names_another_process_is_not_taken_up_but_reaped() {
    if skip::without_root("e2e a_record_that_names_another_process") {
        return;
    }
    let mut cluster = Cluster::start(Setup::new("native")).await;
    let (wrong_time, wrong_pid, right) =
        (cluster.session().await, cluster.session().await, cluster.session().await);
    let mut tasks = Vec::new();
    for session in [&wrong_time, &wrong_pid, &right] {
        tasks.push(start(&cluster, &session.id, "sleep 1000; : marked").await);
    }
    let worker = cluster.workers[0].state.clone();
    let seen = async |session: &str| {
        until(READY, "the task's process", async || task_process(&worker, session, "marked")).await
    };
    let old = [seen(&wrong_time.id).await, seen(&wrong_pid.id).await];
    let kept = seen(&right.id).await;

    cluster.workers[0].process.kill().await;
    let mut record = Record::read(&cluster, &wrong_time.id);
    let time = record.field("start_time").as_u64().expect("a start time");
    *record.field("start_time") = (time - 1).into();
    record.write();
    // Somebody else's process has the pid now.
    let mut other =
        tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("sleep");
    let pid = other.id().expect("it runs");
    let mut record = Record::read(&cluster, &wrong_pid.id);
    *record.field("pid") = pid.into();
    record.write();

    cluster.restart_worker(0);
    cluster.workers_ready().await;
    for (session, old) in [(&wrong_time, &old[0]), (&wrong_pid, &old[1])] {
        let ended = until(READY, "the session to be over", async || {
            let now = state(&cluster, &session.id).await;
            (now.state() == v1::SessionState::Ended).then_some(now)
        })
        .await;
        assert_eq!(ended.end_reason(), v1::EndReason::WorkerLost, "{ended:?}");
        until(READY, "the rest to be reaped", async || (started(old.pid) != Some(old.started)).then_some(()))
            .await;
        assert!(!worker.join("sessions").join(&session.id).exists(), "its directory is still there");
    }
    assert_eq!(outcome(&cluster, &tasks[0]).await, Some(Kind::WorkerLost(v1::outcome::Empty {})));
    assert!(other.try_wait().expect("it is ours").is_none(), "it was somebody else's process");
    // The one whose record is true was taken up.
    assert_eq!(task_process(&worker, &right.id, "marked"), Some(kept));
    assert_eq!(state(&cluster, &right.id).await.state(), v1::SessionState::Ready);
    other.kill().await.expect("it is ours");
    cluster.stop().await;
}
