//! A wall clock that jumps: by an hour, forth and back, under the coordinator, under the workers, under all of them.
//! INVARIANT 24.
//!
//! No kernel gives a process a wall clock of its own, so a library that is loaded before libc stands between: it moves
//! what the process is told of the time of day, and no other clock. (libfaketime was tried: that of Debian 12 breaks
//! sleeps where it leaves the monotonic clock alone, and a process that is killed leaves its shared memory behind.) The
//! agent is static, so it goes by the machine's own clock: its clock differs from its worker's then, as a third one.

use std::{
    io::Write,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, skip, until};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    recovery::{checkpoint, fleet, index, start, workspace},
    util::{run, seconds, state},
};

const HOUR: i64 = 3600;

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TIME_OF_DAY_SHIFT");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = fd < 0 ? MAP_FAILED : mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) shift = at;
    if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
"#;

/// How far the time of day of some processes is off.
pub struct Shift {
    dir: TempDir,
}

impl Shift {
    /// By nothing yet.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-clock").tempdir().expect("a temporary directory");
        let mut cc = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-x", "c", "-o"])
            .arg(dir.path().join("shim.so"))
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .expect("the C compiler that links this test");
        cc.stdin.take().expect("it is piped").write_all(SHIM.as_bytes()).expect("it reads");
        assert!(cc.wait().expect("it ends").success(), "the shim does not compile");
        std::fs::write(dir.path().join("shift"), [0; 8]).expect("the shift");
        let this = Self { dir };
        this.to(HOUR);
        let date = Command::new("date")
            .arg("+%s")
            .env_clear()
            .envs(this.env())
            .env("PATH", "/usr/bin:/bin")
            .output();
        let date = String::from_utf8(date.expect("date runs").stdout).unwrap();
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!(
            (date.trim().parse::<i64>().unwrap() - wall - HOUR).abs() < 60,
            "the shim moves nothing: {date}"
        );
        this.to(0);
        this
    }

    /// For the processes whose clock it is.
    pub fn env(&self) -> Vec<(String, String)> {
        let at =
            |name: &str| self.dir.path().join(name).to_str().expect("our own paths are UTF-8").to_owned();
        vec![("LD_PRELOAD".to_owned(), at("shim.so")), ("TIME_OF_DAY_SHIFT".to_owned(), at("shift"))]
    }

    /// Jumps, at once. In place: the processes have it mapped.
    pub fn to(&self, seconds: i64) {
        let file =
            std::fs::OpenOptions::new().write(true).open(self.dir.path().join("shift")).expect("the shift");
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the shift is written");
    }
}

/// How far a moment that a process told is off.
fn off(told: Option<prost_types::Timestamp>) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    told.expect("a moment").seconds - now
}

struct Clocks {
    coordinator: Shift,
    workers: Shift,
}

async fn two_workers(more: impl FnOnce(&mut Setup)) -> (Cluster, Clocks) {
    let clocks = Clocks { coordinator: Shift::new(), workers: Shift::new() };
    let mut setup = fleet("native");
    setup.coordinator_env.extend(clocks.coordinator.env());
    setup.worker_env.extend(clocks.workers.env());
    more(&mut setup);
    (Cluster::start(setup).await, clocks)
}

async fn session(cluster: &Cluster, request: v1::CreateSessionRequest) -> v1::Session {
    cluster.sessions().create_session(request).await.expect("a session").into_inner()
}

/// Half an hour to live, a quarter of an hour to be idle.
fn mortal() -> v1::CreateSessionRequest {
    v1::CreateSessionRequest { ttl: seconds(HOUR / 2), idle_timeout: seconds(HOUR / 4), ..Default::default() }
}

/// For longer than a lease and a restore grace all workers are alive, and all sessions where they were.
async fn nothing_happens(cluster: &Cluster, sessions: &[v1::Session]) {
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        let list =
            cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
        assert!(list.iter().all(|w| w.liveness() == v1::Liveness::Alive), "a lease is lost: {list:?}");
        for session in sessions {
            let now = state(cluster, &session.id).await;
            assert_eq!((now.state(), now.epoch), (v1::SessionState::Ready, session.epoch), "{now:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Red when a placement's end, or an update's, is reckoned from `expires_at` by the worker's time of day: the first
/// session that is placed while the two differ is over before it begins. Red when leases go by the time of day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_an_hour_ends_nothing() {
    if skip::without_root("e2e a_wall_clock_that_jumps_an_hour") {
        return;
    }
    let (cluster, clocks) = two_workers(|setup| setup.max_sessions = 20).await;
    let mut sessions = vec![session(&cluster, mortal()).await];
    let movable = v1::CreateSessionRequest { on_worker_loss: v1::OnWorkerLoss::Restore.into(), ..mortal() };
    sessions.push(session(&cluster, movable).await);
    checkpoint(&cluster, &sessions[1].id).await;
    let mut beats = Vec::new();
    for session in &sessions {
        let line = "while :; do date +%s%N > beat; sleep 0.01; done";
        let spec = v1::TaskSpec { timeout: seconds(HOUR / 3), detached: true, ..crate::util::shell(line) };
        let request =
            v1::StartTaskRequest { session_id: session.id.clone(), task: Some(spec), ..Default::default() };
        cluster.tasks().start_task(request).await.expect("it starts");
        beats.push(workspace(&cluster, index(&cluster, &session.worker_id), &session.id).join("beat"));
    }
    let together = [(HOUR, HOUR), (0, 0), (-HOUR, -HOUR)];
    let one_alone = [(HOUR, 0), (-HOUR, 0), (0, HOUR), (0, -HOUR), (HOUR, -HOUR)];
    for (coordinator, workers) in together.into_iter().chain(one_alone) {
        clocks.coordinator.to(coordinator);
        clocks.workers.to(workers);
        // Made, and given new time, while the two differ.
        let made = session(&cluster, mortal()).await;
        assert!((off(made.created_at) - coordinator).abs() < 60, "the coordinator's clock has not moved");
        sessions.push(made);
        let update = v1::UpdateSessionRequest {
            session_id: sessions[0].id.clone(),
            ttl: seconds(HOUR / 2),
            ..Default::default()
        };
        cluster.sessions().update_session(update).await.expect("it can be updated");
        nothing_happens(&cluster, &sessions).await;
        for beat in &beats {
            let read = || std::fs::read_to_string(beat).unwrap_or_default();
            let before = read();
            until(READY, "the tasks to go on", async || (read() != before).then_some(())).await;
        }
    }
    cluster.stop().await;
}

/// It is no longer than it should be either, and no shorter. Red as above, in both directions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_live_is_as_long_as_it_should_be_whatever_the_wall_clocks_say() {
    if skip::without_root("e2e a_time_to_live_is_as_long_as_it_should_be") {
        return;
    }
    let (cluster, clocks) = two_workers(|_| {}).await;
    for (coordinator, workers) in [(HOUR, -HOUR), (-HOUR, HOUR)] {
        clocks.coordinator.to(coordinator);
        clocks.workers.to(workers);
        let begun = Instant::now();
        let short =
            session(&cluster, v1::CreateSessionRequest { ttl: seconds(4), ..Default::default() }).await;
        // Jumps while it lives.
        clocks.coordinator.to(workers);
        clocks.workers.to(coordinator);
        let ended = until(READY, "its time to be over", async || {
            let now = state(&cluster, &short.id).await;
            (now.state() == v1::SessionState::Ended).then_some(now)
        })
        .await;
        assert_eq!(ended.end_reason(), v1::EndReason::TtlExpired, "{ended:?}");
        assert!(begun.elapsed() >= Duration::from_secs(4), "it ended after {:?}", begun.elapsed());
    }
    cluster.stop().await;
}

/// Red when the record of a session has its end as a time of day (`expires_boot`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_at_another_time_of_day_takes_up_its_sessions() {
    if skip::without_root("e2e a_worker_that_comes_back_at_another_time_of_day") {
        return;
    }
    let (mut cluster, clocks) = two_workers(|setup| {
        setup.workers = 1;
        setup.coordinator_env.push(("BERTH_WORKER_LOSS_GRACE".to_owned(), "60s".to_owned()));
    })
    .await;
    let session = session(&cluster, mortal()).await;
    let task = start(&cluster, &session.id, "sleep 1000").await;
    for (times, jump) in [(1, HOUR), (2, -HOUR)] {
        cluster.workers[0].process.kill().await;
        clocks.workers.to(jump);
        // The coordinator can't say how much is left before the worker has looked by itself.
        cluster.coordinator.signal(Signal::SIGSTOP);
        cluster.restart_worker(0);
        until(READY, "the session to be taken up", async || {
            (cluster.workers[0].process.log().matches("taken up again").count() == times).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        cluster.coordinator.signal(Signal::SIGCONT);
        cluster.workers_ready().await;
        let at = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner();
        let canary =
            at.workers[0].health.clone().and_then(|health| health.canary).and_then(|canary| canary.at);
        assert!((off(canary) - jump).abs() < 120, "the worker's clock has not moved");
        nothing_happens(&cluster, std::slice::from_ref(&session)).await;
        let request = v1::GetTaskRequest { session_id: session.id.clone(), task_id: task.id.clone() };
        let now = cluster.tasks().get_task(request).await.unwrap().into_inner();
        assert_eq!(now.state(), v1::TaskState::Running);
        run(&cluster, &session.id, "true").await;
    }
    cluster.stop().await;
}
