//! What a cycle does: it makes sessions, runs tasks in them, and removes them. Whatever is not answered is asked again,
//! under the same request id, until it is.

use std::{collections::BTreeMap, fmt::Display, fs, io::Read, time::Duration};

use berth_client::{
    Client, Command, CreateOptions, EndReason, Error, Outcome, Reason, Session, SessionState,
    model::SessionInfo,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{Aimed, Cycles, Victim};

const SESSIONS: usize = 4;
/// In each session, all at once.
const TASKS: usize = 3;
/// Whoever asks does not ask for longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until it is answered.
async fn answered<T>(what: impl Display, mut ask: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < give_up, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One task: as what its start was asked for, and how it ended, if that was told.
struct Ran {
    key: String,
    outcome: Option<Outcome>,
}

impl Cycles {
    pub(super) async fn create(&mut self, aimed: Option<Aimed>) -> Vec<Session> {
        let keys: Vec<String> = (0..SESSIONS).map(|i| format!("cycle-{}-{i}", self.number)).collect();
        let client = self.client.clone();
        let (made, ()) =
            tokio::join!(join_all(keys.iter().map(|key| make(&client, key))), self.strike(aimed));
        // The same request id is the same session, also now.
        let again = make(&client, &keys[0]).await;
        assert_eq!(again.id, made[0].id, "{} made two sessions", keys[0]);
        let sessions: BTreeMap<_, _> = made.iter().map(|info| (info.id, client.session(info.id))).collect();
        assert_eq!(sessions.len(), SESSIONS, "two request ids are one session");
        sessions.into_values().collect()
    }

    /// Runs tasks in all sessions, which are on these workers. Returns the one whose agent was killed.
    pub(super) async fn run_tasks(
        &mut self,
        sessions: &[Session],
        workers: &[usize],
        aimed: Option<Aimed>,
    ) -> Option<usize> {
        let touch = |session: Session| async move {
            answered("a first task", async || session.run(Command::shell(": > runs")).await).await;
        };
        join_all(sessions.iter().cloned().map(touch)).await;
        // Held open: the files of one that ends can still be read.
        let runs = sessions.iter().zip(workers).map(|(session, worker)| {
            let dir = self.cluster.workers[*worker].state.join("sessions").join(session.id().to_string());
            fs::File::open(dir.join("files/workspace/runs")).expect("a task made it")
        });
        let runs: Vec<fs::File> = runs.collect();
        let killed = aimed.as_ref().filter(|aimed| matches!(aimed.blow.victim, Victim::Agent(_)));
        let killed = killed.map(|aimed| self.session_of(sessions, aimed.pids[0]));
        let keys = |session: usize| (0..TASKS).map(move |task| format!("s{session}t{task}"));
        let tasks = sessions.iter().enumerate().map(|(i, session)| {
            join_all(keys(i).map(move |key| run(session.clone(), key, killed == Some(i))))
        });
        let (ran, ()) = tokio::join!(join_all(tasks), self.strike(aimed));
        for (i, (ran, mut file)) in ran.into_iter().zip(runs).enumerate() {
            let mut noted = String::new();
            file.read_to_string(&mut noted).expect("notes of tasks");
            ran.iter().for_each(|ran| self.check(ran, &noted, killed == Some(i)));
        }
        if let Some(killed) = killed {
            let info = ended(&sessions[killed]).await;
            assert_eq!(info.end_reason, Some(EndReason::SandboxFailed), "its agent was killed: {info:?}");
        }
        killed
    }

    /// INVARIANT 8.
    fn check(&mut self, Ran { key, outcome }: &Ran, noted: &str, killed: bool) {
        let times = noted.lines().filter(|line| line == key).count();
        let number = self.number;
        assert!(times <= 1, "cycle {number}: {key} ran {times} times");
        match outcome {
            // The whole of it was seen.
            Some(Outcome::Exited(7)) => assert_eq!(times, 1, "cycle {number}: {key} is said to have run"),
            Some(Outcome::SandboxFailed | Outcome::WorkerLost) | None if killed => {}
            other => panic!("cycle {number}: {key}, which ran {times} times, ended with {other:?}"),
        }
        self.note(match outcome {
            Some(outcome) => format!("tasks that ended with {outcome:?}"),
            None => "tasks of which nobody heard before their sandbox failed".to_owned(),
        });
    }

    fn session_of(&self, sessions: &[Session], agent: i32) -> usize {
        let has = |session: &Session| {
            self.cluster.workers.iter().any(|worker| {
                let dir = worker.state.join("sessions").join(session.id().to_string());
                super::record_at(&dir.join("sandbox.json"), "pid").is_some_and(|pid| pid == agent)
            })
        };
        sessions.iter().position(has).expect("an agent has a session")
    }

    /// Ends all sessions. `failed` has ended by itself.
    pub(super) async fn remove(&mut self, sessions: &[Session], failed: Option<usize>, aimed: Option<Aimed>) {
        let removals = sessions.iter().map(|session| async move {
            answered("a removal", async || session.delete().await).await;
            ended(session).await
        });
        let (removed, ()) = tokio::join!(join_all(removals), self.strike(aimed));
        for (i, info) in removed.iter().enumerate() {
            let why = if failed == Some(i) { EndReason::SandboxFailed } else { EndReason::Deleted };
            assert_eq!(info.end_reason, Some(why), "cycle {}: {info:?}", self.number);
        }
    }
}

/// The session, once it has ended.
async fn ended(session: &Session) -> SessionInfo {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let info = answered("what became of it", async || session.info().await).await;
        if info.state == SessionState::Ended {
            return info;
        }
        assert!(Instant::now() < give_up, "it does not end: {info:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn make(client: &Client, key: &str) -> SessionInfo {
    answered(key, async || client.create(CreateOptions::new().request_id(key)).await).await
}

/// Asks for a task until its start is answered, and for its end until that is. With a sandbox that `may_fail` there may
/// be no answer.
async fn run(session: Session, key: String, may_fail: bool) -> Ran {
    let over = |error: &Error| may_fail && error.is(Reason::SessionEnded);
    let started = answered(&key, async || {
        let line = format!("echo {key} >> runs; sleep 0.02; exit 7");
        match session.start(Command::shell(line).detached(true).request_id(&key)).await {
            Ok(task) => Ok(Some(task)),
            Err(error) if over(&error) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let Some(task) = started.await else { return Ran { key, outcome: None } };
    let ended = answered(&key, async || match task.wait_for(PATIENCE).await {
        Ok(info) => Ok(info.end),
        Err(error) if over(&error) => Ok(None),
        Err(error) => Err(error),
    });
    let end = ended.await;
    Ran { key, outcome: end.map(|end| end.outcome) }
}
