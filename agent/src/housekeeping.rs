//! What is done for all tasks together: ending them, and keeping what the finished ones
//! leave behind within bounds.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    cgroup,
    driver::Leftover,
    outcome::Cause,
    task::{Phase, Stop, Task},
    tasks::{Tasks, lock},
};

/// On top of a grace, for what was killed to be gone.
const END_DEADLINE: Duration = Duration::from_secs(45);

impl Tasks {
    /// Removes a finished task's cgroups, and those of earlier ones that have emptied since.
    pub(crate) async fn tidy(&self, leftover: Leftover) {
        let groups = {
            let mut table = lock(&self.table);
            table.leftovers.push(leftover.group);
            std::mem::take(&mut table.leftovers)
        };
        let remove = move || groups.into_iter().filter(|group| !group.remove()).collect::<Vec<_>>();
        let kept = tokio::task::spawn_blocking(remove).await.unwrap_or_default();
        lock(&self.table).leftovers.extend(kept);
    }

    /// Keeps the session's spools under their cap: first the oldest done tasks' output goes
    /// (their records stay), then the oldest output of those that run.
    pub async fn reclaim(&self) {
        let budget = &self.shared.budget;
        if budget.excess() == 0 {
            return;
        }
        let (done, running): (Vec<_>, Vec<_>) = {
            let table = lock(&self.table);
            let done = table.done.iter().filter_map(|(id, _)| table.tasks.get(id).cloned()).collect();
            (done, table.running.keys().filter_map(|id| table.tasks.get(id).cloned()).collect())
        };
        for task in done {
            if budget.excess() == 0 {
                return;
            }
            purge(vec![task]).await;
        }
        info!("the session's output is over its cap: running tasks lose their oldest");
        for task in running {
            if budget.excess() > 0 {
                let _ = tokio::task::spawn_blocking(move || {
                    for spool in [&task.stdout, &task.stderr] {
                        let (length, first_kept) = spool.bounds();
                        spool.shrink((length - first_kept) / 2);
                    }
                })
                .await;
            }
        }
    }

    /// Looks after the spools' cap for as long as the agent lives.
    pub async fn keep_under_cap(self: Arc<Self>) {
        loop {
            self.shared.budget.over().await;
            self.reclaim().await;
        }
    }

    /// Ends every task. Returns when all are done, or can't be ended.
    pub async fn end_all(&self, grace: Duration) {
        let running: Vec<_> = {
            let mut table = lock(&self.table);
            table.ending = true;
            self.contexts_end.cancel();
            table.running.keys().filter_map(|id| table.tasks.get(id).cloned()).collect()
        };
        for task in running {
            task.stop(Stop { cause: Cause::SessionEnded, grace });
        }
        let all = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if lock(&self.table).running.is_empty() {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(grace + END_DEADLINE, all).await.is_err() {
            warn!("some tasks did not end");
        }
        let (leftovers, cgroups) = {
            let table = lock(&self.table);
            let groups: Vec<_> = table.leftovers.iter().chain(&table.contexts).cloned().collect();
            (groups, self.shared.cgroups.clone())
        };
        let kill = move || {
            for group in leftovers {
                group.kill();
            }
            cgroup::kill_everything(&cgroups);
        };
        let _ = self.freezer.hand.run(kill).await;
    }
}

/// Forgets tasks' output. On a blocking thread: it removes files.
pub async fn purge(tasks: Vec<Arc<Task>>) {
    if tasks.is_empty() {
        return;
    }
    let work = move || {
        for task in tasks {
            debug_assert!(matches!(task.phase(), Phase::Done(_)), "only the done are purged");
            task.stdout.purge();
            task.stderr.purge();
        }
    };
    let _ = tokio::task::spawn_blocking(work).await;
}
