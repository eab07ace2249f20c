//! What a client does: sessions, tasks, files, through the real client library, for as long as faults go on; and then it
//! looks whether all that it was promised is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use berth_client::{CheckpointOptions, Client, Command, ConnectOptions, CreateOptions, Error, Session};
use berth_proto::{
    Reason, SessionId,
    domain::{OnWorkerLoss, Outcome, SessionState},
    world,
};

use crate::{draw::Draw, faults::ACTIVE, hosts::COORDINATOR, model::Model};

/// Sessions that one client has at once.
const SESSIONS: usize = 3;
/// A client gives a call up after so long: there is more to do.
const RESUME_FOR: Duration = Duration::from_secs(12);
/// Once all faults are over, a session answers within this time, or it is lost.
const RECOVERY: Duration = Duration::from_secs(120);

/// A client.
pub struct Script {
    pub n: usize,
    pub seed: u64,
    pub token: String,
    pub model: Arc<Model>,
}

/// A client at work.
struct Work {
    n: usize,
    draw: Draw,
    model: Arc<Model>,
    client: Client,
    sessions: Vec<Session>,
    /// Sessions that were asked for and never answered, as they were asked for.
    unanswered: Vec<CreateOptions>,
    /// Of the next task.
    next: u64,
    /// Sessions that may still be paused, since nobody heard that they were not.
    paused: BTreeSet<SessionId>,
    files: BTreeMap<SessionId, Files>,
}

/// What was written into a session, and of that what its newest checkpoint must have.
#[derive(Clone, Default)]
struct Files {
    /// With the epoch of the session that they were written under.
    written: BTreeMap<String, (String, u64)>,
    kept: BTreeMap<String, String>,
}

impl Script {
    pub async fn run(self) -> turmoil::Result {
        let Self { n, seed, token, model } = self;
        let client = loop {
            match Client::connect(
                ConnectOptions::new(COORDINATOR).token(token.clone()).resume_for(RESUME_FOR),
            )
            .await
            {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let draw = Draw::new(seed, 100 + n as u64);
        let mut work = Work {
            n,
            draw,
            model,
            client,
            sessions: Vec::new(),
            unanswered: Vec::new(),
            next: 0,
            paused: BTreeSet::new(),
            files: BTreeMap::new(),
        };
        while world::boot_now() < ACTIVE {
            work.step().await;
            let pause = work.draw.millis(0, 300);
            tokio::time::sleep(pause).await;
        }
        work.find_unanswered().await;
        for session in std::mem::take(&mut work.sessions) {
            work.verify(&session).await;
            work.delete_at_last(&session).await;
        }
        Ok(())
    }
}

impl Work {
    async fn step(&mut self) {
        if self.sessions.is_empty() || (self.sessions.len() < SESSIONS && self.draw.percent(20)) {
            return self.create().await;
        }
        let at = self.draw.below(self.sessions.len() as u64) as usize;
        let session = self.sessions[at].clone();
        match self.draw.below(100) {
            0..50 => self.run_task(&session).await,
            50..65 => self.write_and_read(&session).await,
            65..75 => self.checkpoint(&session).await,
            75..83 => self.cancel(&session).await,
            83..91 => self.pause(&session).await,
            _ => {
                self.sessions.remove(at);
                self.delete(&session).await;
            }
        }
    }

    async fn create(&mut self) {
        let on_loss = if self.draw.percent(40) { OnWorkerLoss::Restore } else { OnWorkerLoss::End };
        let options =
            CreateOptions::new().memory_bytes(64 << 20).disk_bytes(16 << 20).on_worker_loss(on_loss);
        // Told again and again under the one id, as a program does that must know.
        let tag = self.tag();
        let options = options.request_id(format!("create-{tag}"));
        for _ in 0..3 {
            match self.client.create_session(options.clone()).await {
                Ok(session) => {
                    self.model.note(&format!("client {}: has {}", self.n, session.id()));
                    self.model.count("sessions");
                    self.sessions.push(session);
                    return;
                }
                Err(error) => self.failed("create", None, &error),
            }
        }
        self.unanswered.push(options);
    }

    /// What was asked for and never answered is asked for once more: it is that session, or a new one.
    async fn find_unanswered(&mut self) {
        let until = world::boot_now() + RECOVERY;
        while let Some(options) = self.unanswered.pop() {
            match self.client.create_session(options.clone()).await {
                Ok(session) => self.sessions.push(session),
                // It was, and is over.
                Err(error) if error.is(Reason::SessionEnded) => {}
                Err(_) if world::boot_now() < until => {
                    self.unanswered.push(options);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => {
                    self.model.violated(format!("client {}: no answer to a create: {error}", self.n))
                }
            }
        }
    }

    /// Numbered lines with time between them; the exit code is drawn as well.
    async fn run_task(&mut self, session: &Session) {
        let (tag, lines, code) = (self.tag(), 1 + self.draw.below(5), self.draw.below(3) as i32);
        let mut script = String::new();
        let mut expected = String::new();
        for line in 0..lines {
            script.push_str(&format!("echo {tag}-{line}; sleep 0.{}; ", self.draw.below(9)));
            expected.push_str(&format!("{tag}-{line}\n"));
        }
        script.push_str(&format!("exit {code}"));
        let command =
            Command::shell(script).timeout(Duration::from_secs(120)).reattach_grace(Duration::from_secs(600));
        match session.run(command).await {
            Ok(output) => {
                self.model.note(&format!(
                    "client {}: {tag} ({}) ended as {:?}",
                    self.n, output.task, output.outcome
                ));
                self.model.told(output.task, &output.outcome);
                match output.outcome {
                    Outcome::Exited(exit) if exit == code && output.stdout_text() == expected => {
                        self.model.count("tasks whole");
                    }
                    // The end is known, and that some of the output went with a machine is told.
                    Outcome::Exited(exit)
                        if exit == code
                            && output.truncated
                            && expected.starts_with(&output.stdout_text())
                            && self.model.excused(session.id()) =>
                    {
                        self.model.count("tasks with lost output, told");
                    }
                    // It says so, and what it had written may be gone as well.
                    Outcome::WorkerLost | Outcome::SessionEnded | Outcome::SandboxFailed
                        if self.model.excused(session.id()) => {}
                    other => self.model.violated(format!(
                        "{tag} in {} ended as {other:?} with {:?}, expected {code} and {expected:?}",
                        session.id(),
                        output.stdout_text()
                    )),
                }
            }
            Err(error) => self.failed("run", Some(session.id()), &error),
        }
    }

    async fn write_and_read(&mut self, session: &Session) {
        let Some(before) = self.epoch(session).await else { return };
        let tag = self.tag();
        let content = format!("{tag} ").repeat(1 + self.draw.below(2000) as usize);
        let path = format!("file-{tag}");
        if let Err(error) = session.files().write(&path, content.clone()).await {
            return self.failed("write", Some(session.id()), &error);
        }
        // Whether it was written before or after the session moved is not known otherwise.
        if self.epoch(session).await == Some(before) {
            let files = self.files.entry(session.id()).or_default();
            files.written.insert(path.clone(), (content.clone(), before));
        }
        match session.files().read(&path).await {
            Ok(read) if read == content.as_bytes() => self.model.count("files whole"),
            Ok(read) => {
                self.model.violated(format!("{path}: {} bytes came back of {}", read.len(), content.len()))
            }
            // Written to a machine that is lost since.
            Err(error) if error.is(Reason::FileNotFound) && self.model.excused(session.id()) => {}
            Err(error) => self.failed("read", Some(session.id()), &error),
        }
    }

    async fn checkpoint(&mut self, session: &Session) {
        let Some(before) = self.epoch(session).await else { return };
        match session.checkpoint(CheckpointOptions::new()).await {
            Ok(_) => {
                self.model.count("checkpoints");
                if self.epoch(session).await == Some(before) {
                    let files = self.files.entry(session.id()).or_default();
                    let here = files.written.iter().filter(|(_, (_, epoch))| *epoch == before);
                    files.kept.extend(here.map(|(path, (content, _))| (path.clone(), content.clone())));
                }
            }
            Err(error) => self.failed("checkpoint", Some(session.id()), &error),
        }
    }

    async fn epoch(&self, session: &Session) -> Option<u64> {
        session.info().await.ok().map(|info| info.epoch)
    }

    async fn cancel(&mut self, session: &Session) {
        let tag = self.tag();
        let command = Command::shell(format!("echo {tag}; sleep 1000")).detached(true);
        let task = match session.start(command).await {
            Ok(task) => task,
            Err(error) => return self.failed("start", Some(session.id()), &error),
        };
        let wait = self.draw.millis(0, 500);
        tokio::time::sleep(wait).await;
        match task.cancel().await {
            Ok(_) => match task.wait().await {
                Ok(info) => {
                    let outcome = info.end.map(|end| end.outcome);
                    self.model.note(&format!("client {}: {tag} cancelled: {outcome:?}", self.n));
                    if let Some(outcome) = outcome {
                        self.model.told(info.id, &outcome);
                    }
                    if outcome != Some(Outcome::Cancelled) && !self.model.excused(session.id()) {
                        self.model.violated(format!("{tag} was cancelled and ended as {outcome:?}"));
                    }
                    self.model.count("tasks cancelled");
                }
                Err(error) => self.failed("wait", Some(session.id()), &error),
            },
            Err(error) => self.failed("cancel", Some(session.id()), &error),
        }
    }

    async fn pause(&mut self, session: &Session) {
        if let Err(error) = session.pause().await {
            self.failed("pause", Some(session.id()), &error);
        }
        self.paused.insert(session.id());
        // Sometimes for so long that it is parked.
        let wait =
            if self.draw.percent(30) { self.draw.millis(3000, 8000) } else { self.draw.millis(0, 1000) };
        tokio::time::sleep(wait).await;
        for _ in 0..5 {
            match session.resume().await {
                Ok(info) => {
                    if info.message.contains("parked") {
                        self.model.count("sessions parked");
                    }
                    self.paused.remove(&session.id());
                    return self.model.count("pauses");
                }
                Err(error) => self.failed("resume", Some(session.id()), &error),
            }
        }
    }

    async fn delete(&mut self, session: &Session) {
        self.model.deleting(session.id());
        if let Err(error) = session.delete().await {
            self.failed("delete", Some(session.id()), &error);
            // Not forgotten: it is ended in the end.
            self.sessions.push(session.clone());
        }
    }

    /// All is well again: the session is there and works, or it ended for a reason.
    async fn verify(&mut self, session: &Session) {
        let id = session.id();
        let until = world::boot_now() + RECOVERY;
        let mut last = String::new();
        while world::boot_now() < until {
            match session.info().await {
                Ok(info) if matches!(info.state, SessionState::Ending | SessionState::Ended) => {
                    if !self.model.excused(id) && self.model.ended(id).is_none() {
                        self.model.violated(format!(
                            "{id} is told to have ended ({:?}), and the store knows nothing",
                            info.end_reason
                        ));
                    }
                    return self.model.note(&format!("client {}: {id} is {:?}", self.n, info.end_reason));
                }
                Ok(info) if matches!(info.state, SessionState::Paused | SessionState::Parked) => {
                    last = info.message;
                    let _ = session.resume().await;
                }
                Ok(info) if info.state == SessionState::Ready => {
                    let tag = self.tag();
                    let asked =
                        session.run(Command::shell(format!("echo {tag}")).timeout(Duration::from_secs(30)));
                    match asked.await {
                        Ok(output) if output.success() && output.stdout_text().trim() == tag => {
                            match self.check_files(session).await {
                                Ok(()) => return self.model.count("sessions whole"),
                                Err(error) => last = error.to_string(),
                            }
                        }
                        Ok(output) => last = format!("{:?} {:?}", output.outcome, output.stdout_text()),
                        Err(error) => last = error.to_string(),
                    }
                }
                Ok(info) => last = format!("{:?}", info.state),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.model.violated(format!("{id} did not come back within {RECOVERY:?}: {last}"));
    }

    /// All that was written is there; of a session that was set back, all that was in its checkpoint.
    async fn check_files(&mut self, session: &Session) -> Result<(), Error> {
        let Files { written, kept } = self.files.get(&session.id()).cloned().unwrap_or_default();
        let info = session.info().await?;
        if info.recovered_from.is_some() {
            self.model.count("sessions recovered");
        }
        let mut expected = kept;
        let here = written.into_iter().filter(|(_, (_, epoch))| *epoch == info.epoch);
        expected.extend(here.map(|(path, (content, _))| (path, content)));
        for (path, content) in expected {
            let found = match session.files().read(&path).await {
                Ok(read) => read == content.as_bytes(),
                Err(error) if error.is(Reason::FileNotFound) => false,
                Err(error) => return Err(error),
            };
            if !found {
                let from = &info.recovered_from;
                self.model.violated(format!("{} has lost {path} (recovered from {from:?})", session.id()));
            }
        }
        Ok(())
    }

    async fn delete_at_last(&mut self, session: &Session) {
        self.model.deleting(session.id());
        let until = world::boot_now() + RECOVERY;
        let mut last = String::new();
        while world::boot_now() < until {
            match session.delete().await {
                Ok(_) => return,
                Err(error) if error.is(Reason::SessionNotFound) => return,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.model.violated(format!("{} could not be deleted: {last}", session.id()));
    }

    /// A call that came to nothing. While things go wrong that is no broken promise, if it says what it must.
    fn failed(&self, what: &str, session: Option<SessionId>, error: &Error) {
        self.model.note(&format!("client {}: {what}: {:?} {:?}", self.n, error.code(), error.reason()));
        self.model.count("calls refused");
        let passing = error.is_temporary()
            || matches!(error.code(), berth_proto::Code::DeadlineExceeded | berth_proto::Code::Unavailable)
            || error.is(Reason::NoPlace)
            // Its machine was lost before it was told of.
            || (error.is(Reason::SessionEnded) && session.is_none())
            || error.is(Reason::StoreFailed)
            // It is on its way to another worker.
            || (error.is(Reason::SessionNotReady) && session.is_some())
            || ((error.is(Reason::SessionPaused) || error.is(Reason::SessionParked)) && session.is_some_and(|session| self.paused.contains(&session)));
        let excused =
            session.is_some_and(|session| self.model.excused(session) || self.model.ended(session).is_some());
        if !passing && !excused {
            self.model.violated(format!(
                "client {}: {what} in {session:?}: {error} ({:?})",
                self.n,
                error.reason()
            ));
        }
    }

    fn tag(&mut self) -> String {
        self.next += 1;
        format!("t{}.{}", self.n, self.next)
    }
}
