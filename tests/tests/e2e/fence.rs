//! Workers that are cut off, half cut off, or dead while their sandboxes live: a session stands still before it goes on
//! elsewhere, and what is left of it in its old place changes nothing any more. INVARIANTS 1, 2, 3 and 15.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{Cluster, READY, Setup, Way, left, skip, until};

use crate::{
    recovery::{checkpoint, fleet, index, moved, outcome, restorable, start, workspace},
    util::{run, state},
};

const BEAT: &str = "while :; do date +%s%N > beat; sleep 0.01; done";

/// A session that may be restored, with a checkpoint without files, in which a task beats since.
struct Watched {
    session: v1::Session,
    /// Index of its worker.
    old: usize,
    task: v1::Task,
    /// Its workspace there.
    root: PathBuf,
    /// The state of that worker.
    state: PathBuf,
}

async fn watched(cluster: &Cluster) -> Watched {
    let session = restorable(cluster).await;
    checkpoint(cluster, &session.id).await;
    let task = start(cluster, &session.id, BEAT).await;
    let old = index(cluster, &session.worker_id);
    let root = workspace(cluster, old, &session.id);
    let state = cluster.workers[old].state.clone();
    let watched = Watched { session, old, task, root, state };
    until(READY, "a beat", async || (!watched.beat().is_empty()).then_some(())).await;
    watched
}

impl Watched {
    fn beat(&self) -> String {
        std::fs::read_to_string(self.root.join("beat")).unwrap_or_default()
    }

    /// What the kernel says of its tasks in the old place. `None`: they are gone.
    fn tasks(&self) -> Option<Tasks> {
        tasks(&self.state, &self.session.id)
    }

    /// Waits until the session has left, and sees that it stood still by then.
    async fn leaves(&self, cluster: &Cluster) -> String {
        let now = until(READY, "the session to leave its worker", async || {
            let now = state(cluster, &self.session.id).await;
            (now.worker_id != self.session.worker_id).then_some(now)
        })
        .await;
        assert_ne!(now.state(), v1::SessionState::Ended, "{now:?}");
        assert_eq!(
            self.tasks(),
            Some(Tasks { alive: true, frozen: true }),
            "it stands still before it leaves"
        );
        self.beat()
    }

    /// It is ready elsewhere, as the checkpoint had it, and its old place has not stirred.
    async fn goes_on(&self, cluster: &Cluster, last: &str) -> v1::Session {
        let now = moved(cluster, &self.session).await;
        assert_ne!(now.worker_id, self.session.worker_id);
        let (seen, _) = run(cluster, &self.session.id, "ls; echo mine > mine").await;
        assert_eq!(seen, "", "the checkpoint was empty");
        assert_eq!(self.beat(), last, "the old one still acts beside the new one");
        assert_eq!(self.tasks(), Some(Tasks { alive: true, frozen: true }));
        now
    }

    /// The old sandbox goes without having stirred, and nothing that it says has changed what `now` is.
    async fn is_reaped(&self, cluster: &Cluster, last: &str, now: &v1::Session) {
        until(READY, "the stale sandbox to be reaped", async || {
            let beat = self.beat();
            assert!(beat.is_empty() || beat == last, "the old one stirs");
            (!self.root.exists() && self.tasks().is_none()).then_some(())
        })
        .await;
        let after = state(cluster, &self.session.id).await;
        let what = |s: &v1::Session| (s.epoch, s.state(), s.worker_id.clone());
        assert_eq!(what(&after), what(now), "the late one changes nothing");
        assert_eq!(outcome(cluster, &self.task).await, Some(Kind::WorkerLost(v1::outcome::Empty {})));
        assert_eq!(run(cluster, &self.session.id, "cat mine").await.0, "mine");
    }
}

#[derive(PartialEq, Eq, Debug)]
struct Tasks {
    alive: bool,
    frozen: bool,
}

/// The tasks of a session, by the cgroup that holds them all. (On a machine without the v2 mount there is no such word,
/// and the beat alone has to do.)
fn tasks(worker: &Path, session: &str) -> Option<Tasks> {
    let instance = left::instance(worker)?;
    let trees = left::cgroups(&instance);
    let events = trees
        .iter()
        .find_map(|tree| std::fs::read_to_string(tree.join(session).join("t/cgroup.events")).ok())?;
    let is = |line: &str| events.lines().any(|l| l == line);
    Some(Tasks { alive: is("populated 1"), frozen: is("frozen 1") })
}

fn proxied(sandbox: &str) -> Setup {
    Setup { proxied: true, ..fleet(sandbox) }
}

/// Nothing passes, in either direction. A task that ends meanwhile in the old place has ended for nobody.
async fn a_cut(sandbox: &str) {
    let cluster = Cluster::start(proxied(sandbox)).await;
    let watched = watched(&cluster).await;
    let late =
        start(&cluster, &watched.session.id, "until [ -e go ]; do sleep 0.01; done; touch late; exit 7")
            .await;

    cluster.proxies[watched.old].hold(true);
    std::fs::write(watched.root.join("go"), "").expect("the workspace is there");
    let over = || watched.root.join("late").exists() || watched.tasks().is_some_and(|tasks| tasks.frozen);
    until(READY, "the task to end, or the fence", async || over().then_some(())).await;
    let last = watched.leaves(&cluster).await;
    let now = watched.goes_on(&cluster, &last).await;

    cluster.proxies[watched.old].hold(false);
    watched.is_reaped(&cluster, &last, &now).await;
    // It started after the checkpoint: nobody knows it any more, and its old worker's word for it is not taken.
    assert_eq!(outcome(&cluster, &late).await, Some(Kind::WorkerLost(v1::outcome::Empty {})));
    cluster.stop().await;
}

/// Red when the agent's fence is taken out (`set_fence` in its Configure and Renew): the tasks run when the session
/// leaves. So are all others here but the last two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_worker_that_is_cut_off_is_fenced_and_its_results_are_rejected() {
    if skip::without_root("e2e native_a_worker_that_is_cut_off") {
        return;
    }
    a_cut("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_worker_that_is_cut_off_is_fenced_and_its_results_are_rejected() {
    if skip::without_docker("e2e docker_a_worker_that_is_cut_off") {
        return;
    }
    a_cut("docker").await;
}

/// The worker's process alone is dead. Nobody but the agent is left to fence its sandbox.
async fn a_dead_process(sandbox: &str) {
    let mut cluster = Cluster::start(fleet(sandbox)).await;
    let watched = watched(&cluster).await;
    cluster.workers[watched.old].process.kill().await;
    let last = watched.leaves(&cluster).await;
    let now = watched.goes_on(&cluster, &last).await;
    cluster.restart_worker(watched.old);
    cluster.workers_ready().await;
    watched.is_reaped(&cluster, &last, &now).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_the_sandbox_of_a_killed_worker_is_fenced_by_its_agent() {
    if skip::without_root("e2e native_the_sandbox_of_a_killed_worker") {
        return;
    }
    a_dead_process("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_the_sandbox_of_a_killed_worker_is_fenced_by_its_agent() {
    if skip::without_docker("e2e docker_the_sandbox_of_a_killed_worker") {
        return;
    }
    a_dead_process("docker").await;
}

/// The coordinator hears nothing, while its own words arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_not_heard_is_fenced_before_its_session_goes_elsewhere() {
    if skip::without_root("e2e a_worker_that_is_not_heard") {
        return;
    }
    let cluster = Cluster::start(proxied("native")).await;
    let watched = watched(&cluster).await;
    cluster.proxies[watched.old].hold_one_way(Way::Up, true);
    let last = watched.leaves(&cluster).await;
    let now = watched.goes_on(&cluster, &last).await;
    cluster.proxies[watched.old].hold_one_way(Way::Up, false);
    watched.is_reaped(&cluster, &last, &now).await;
    cluster.stop().await;
}

/// The worker is heard, and hears no answer: it can't know that it may go on, so its session stands still, although
/// the coordinator knows it to be alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hears_no_answer_is_fenced() {
    if skip::without_root("e2e a_worker_that_hears_no_answer") {
        return;
    }
    let cluster = Cluster::start(proxied("native")).await;
    let watched = watched(&cluster).await;
    cluster.proxies[watched.old].hold_one_way(Way::Down, true);
    let last = watched.leaves(&cluster).await;
    let now = watched.goes_on(&cluster, &last).await;
    cluster.proxies[watched.old].hold_one_way(Way::Down, false);
    watched.is_reaped(&cluster, &last, &now).await;
    cluster.stop().await;
}

/// A second machine comes under the id of one that is cut off. It has not the session, and that says nothing. Red when
/// the fleet believes it at once (`missing_until` zero): the tasks run when the session leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_machine_of_its_workers_id_moves_no_session_before_the_fence() {
    if skip::without_root("e2e a_second_machine_of_its_workers_id") {
        return;
    }
    let mut cluster = Cluster::start(proxied("native")).await;
    let watched = watched(&cluster).await;
    let id = cluster.workers[watched.old].id.clone();
    // Else it may go on with the second one, and would seem not to have left.
    cluster.admin().cordon(v1::CordonRequest { worker_id: id.clone() }).await.expect("a worker");
    cluster.proxies[watched.old].hold(true);
    let second = cluster.workers.len();
    cluster.join("second", &[("WORKER_ID", &id)]).await;
    let last = watched.leaves(&cluster).await;
    let now = watched.goes_on(&cluster, &last).await;

    cluster.workers[second].process.terminate().await;
    cluster.workers[watched.old].process.kill().await;
    cluster.proxies[watched.old].hold(false);
    cluster.restart_worker(watched.old);
    watched.is_reaped(&cluster, &last, &now).await;
    cluster.stop().await;
}

/// INVARIANT 15. It is the coordinator that is cut off, from all of them, for longer than every lease and grace there
/// is: that says nothing about the workers. Red when graces run while no worker is alive (`eviction_at`, `restore_at`).
async fn a_blackhole(sandbox: &str) {
    let mut setup = proxied(sandbox);
    setup.coordinator_env.push(("BERTH_WORKER_LOSS_GRACE".to_owned(), "2s".to_owned()));
    let cluster = Cluster::start(setup).await;
    let may_move = watched(&cluster).await;
    let stays = cluster.session().await;
    let beats = start(&cluster, &stays.id, BEAT).await;
    let root = workspace(&cluster, index(&cluster, &stays.worker_id), &stays.id);
    let beat = || std::fs::read_to_string(root.join("beat")).unwrap_or_default();
    until(READY, "a beat", async || (!beat().is_empty()).then_some(())).await;

    cluster.proxies.iter().for_each(|proxy| proxy.hold(true));
    until(READY, "all workers to be given up", async || {
        let list = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.ok()?.into_inner().workers;
        list.iter().all(|w| w.liveness() == v1::Liveness::Dead).then_some(())
    })
    .await;
    // Lease, restore grace and loss grace are four seconds together.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(may_move.tasks(), Some(Tasks { alive: true, frozen: true }), "what may move stands still");
    let (still, before) = (may_move.beat(), beat());
    until(READY, "the one that may not move to go on", async || (beat() != before).then_some(())).await;

    cluster.proxies.iter().for_each(|proxy| proxy.hold(false));
    until(READY, "the fence to be lifted", async || (may_move.beat() != still).then_some(())).await;
    for (session, task) in [(&may_move.session, &may_move.task), (&stays, &beats)] {
        until(READY, "calls to reach it again", async || {
            let request = v1::GetTaskRequest { session_id: session.id.clone(), task_id: task.id.clone() };
            let task = cluster.tasks().get_task(request).await.ok()?.into_inner();
            (task.state() == v1::TaskState::Running).then_some(())
        })
        .await;
        let now = state(&cluster, &session.id).await;
        let what = |s: &v1::Session| (s.epoch, s.state(), s.worker_id.clone());
        assert_eq!(what(&now), what(session), "nobody is evicted");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_a_coordinator_that_is_cut_off_from_all_workers_evicts_nobody() {
    if skip::without_root("e2e native_a_coordinator_that_is_cut_off") {
        return;
    }
    a_blackhole("native").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_a_coordinator_that_is_cut_off_from_all_workers_evicts_nobody() {
    if skip::without_docker("e2e docker_a_coordinator_that_is_cut_off") {
        return;
    }
    a_blackhole("docker").await;
}
