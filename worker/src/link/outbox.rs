//! What the coordinator is still to be told. Sessions put reports in and never wait; the link
//! takes them out as fast as the stream lets it.
//!
//! Level-triggered: of each session and each task only the newest report is kept, so the box is
//! as big as what it describes, however long the coordinator is away. A final report (a session
//! ended or refused, a task done) stays until the coordinator has acknowledged it: it answers each
//! heartbeat, the stream is in order, so an answer covers all that was sent before that heartbeat.
//! After a new attach everything that is still here is sent again.
//!
//! Rejected: a queue. It either blocks sessions while the coordinator is away, or it drops, and
//! what it drops may be the last word on a session.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_proto::{
    Epoch, SessionId, TaskId,
    v1::{self, worker_message::Message},
};
use prost::Message as _;
use tokio::sync::Notify;

/// Final task reports kept without an answer. Beyond it the oldest go: the task is still to be
/// had from its agent.
const TASKS_KEPT: usize = 8192;
/// Final session reports kept without an answer: more than any worker holds and refuses in one lease.
const SESSIONS_KEPT: usize = 16_384;
/// Decisions on egress that wait to be told; beyond it the oldest go, and are counted. The log has them all.
const DECISIONS_KEPT: usize = 1024;
/// ... and how many one message carries.
const DECISIONS_TOLD: usize = 256;
/// A task's spec is told whole up to this size. Its start is for listings and events, not for running it.
const SPEC_KEPT: usize = 16 << 10;

/// Reports on their way to the coordinator.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<SessionId, Entry<v1::SessionReport>>,
    tasks: BTreeMap<TaskId, Entry<v1::TaskReport>>,
    /// What is to be sent, in the order in which it changed.
    unsent: VecDeque<Key>,
    dropped: u64,
    decisions: VecDeque<v1::EgressDecision>,
    decisions_dropped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Session(SessionId),
    Task(TaskId),
}

struct Entry<T> {
    report: T,
    session: SessionId,
    last: bool,
    /// `None`: to be sent. Else the number of the heartbeat whose answer covers it.
    covered_by: Option<u64>,
}

impl Outbox {
    /// The newest state of a session. One of an older epoch than what is here is not kept.
    pub fn session(&self, session: SessionId, report: v1::SessionReport) {
        let last = is_last(&report);
        let mut state = self.lock();
        if state.sessions.get(&session).is_some_and(|known| known.report.epoch > report.epoch) {
            return;
        }
        state.sessions.insert(session, Entry { report, session, last, covered_by: None });
        state.queue(Key::Session(session));
        if state.sessions.len() > SESSIONS_KEPT {
            let oldest = state.sessions.iter().find(|(_, entry)| entry.last).map(|(id, _)| *id);
            if let Some(id) = oldest {
                state.sessions.remove(&id);
                state.dropped += 1;
            }
        }
        drop(state);
        self.filled.notify_one();
    }

    /// The newest state of a task. `false`: it had ended before.
    pub fn task(&self, session: SessionId, id: TaskId, epoch: Epoch, mut task: v1::Task) -> bool {
        clip(&mut task);
        let last = task.state == i32::from(v1::TaskState::Done);
        let report = v1::TaskReport { epoch: epoch.0, task: Some(task) };
        let mut state = self.lock();
        if state.tasks.get(&id).is_some_and(|known| known.last) {
            return false;
        }
        state.tasks.insert(id, Entry { report, session, last, covered_by: None });
        state.queue(Key::Task(id));
        if state.tasks.len() > TASKS_KEPT {
            let oldest = state.tasks.iter().find(|(_, entry)| entry.last).map(|(id, _)| *id);
            if let Some(id) = oldest {
                state.tasks.remove(&id);
                state.dropped += 1;
            }
        }
        drop(state);
        self.filled.notify_one();
        true
    }

    /// How many reports are here.
    pub fn reports(&self) -> usize {
        let state = self.lock();
        state.sessions.len() + state.tasks.len()
    }

    /// What a session was allowed to reach, or not. Told once, when nothing else is to be told.
    pub fn egress(&self, decision: v1::EgressDecision) {
        let mut state = self.lock();
        state.decisions.push_back(decision);
        if state.decisions.len() > DECISIONS_KEPT {
            state.decisions.pop_front();
            state.decisions_dropped += 1;
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Sends a session's newest report once more, if there is one of this epoch or a newer.
    pub fn again(&self, session: SessionId, epoch: Epoch) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.sessions.get_mut(&session).filter(|entry| entry.report.epoch >= epoch.0)
        else {
            return false;
        };
        entry.covered_by = None;
        state.queue(Key::Session(session));
        drop(state);
        self.filled.notify_one();
        true
    }

    /// A new attach: all that is here is to be sent again.
    pub fn renew(&self) {
        let mut state = self.lock();
        state.unsent.clear();
        let State { sessions, tasks, unsent, .. } = &mut *state;
        // Tasks first: once a session has ended nobody asks any more how its tasks did.
        for (id, entry) in tasks {
            entry.covered_by = None;
            unsent.push_back(Key::Task(*id));
        }
        for (id, entry) in sessions {
            entry.covered_by = None;
            unsent.push_back(Key::Session(*id));
        }
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        if dropped > 0 {
            tracing::warn!(dropped, "reports were too many to keep while the coordinator was away");
        }
        self.filled.notify_one();
    }

    /// The next report to send, before the heartbeat of this number.
    pub fn next(&self, heartbeat: u64) -> Option<Message> {
        let mut state = self.lock();
        while let Some(key) = state.unsent.pop_front() {
            match key {
                Key::Session(id) => {
                    if let Some(entry) = state.sessions.get_mut(&id).filter(|e| e.covered_by.is_none()) {
                        entry.covered_by = Some(heartbeat);
                        return Some(Message::Session(entry.report.clone()));
                    }
                }
                Key::Task(id) => {
                    if let Some(entry) = state.tasks.get_mut(&id).filter(|e| e.covered_by.is_none()) {
                        entry.covered_by = Some(heartbeat);
                        return Some(Message::Task(entry.report.clone()));
                    }
                }
            }
        }
        state.told_decisions().map(Message::Egress)
    }

    /// The coordinator answered this heartbeat: final reports sent before it are done with.
    pub fn acknowledged(&self, heartbeat: u64) {
        let mut state = self.lock();
        let covered = |by: Option<u64>| by.is_some_and(|by| by <= heartbeat);
        let mut over = Vec::new();
        state.sessions.retain(|id, entry| {
            let done = entry.last && covered(entry.covered_by);
            if done {
                over.push(*id);
            }
            !done
        });
        // A task that nobody reported as done goes with its session.
        state
            .tasks
            .retain(|_, entry| !(covered(entry.covered_by) && (entry.last || over.contains(&entry.session))));
    }

    /// Returns when there may be something to send.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Nothing is unsent, and nothing final waits for its answer.
    pub fn settled(&self) -> bool {
        let state = self.lock();
        !state.sessions.values().any(|e| e.last || e.covered_by.is_none())
            && !state.tasks.values().any(|e| e.covered_by.is_none())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn told_decisions(&mut self) -> Option<v1::EgressDecisions> {
        if self.decisions.is_empty() {
            return None;
        }
        let count = self.decisions.len().min(DECISIONS_TOLD);
        let decisions = self.decisions.drain(..count).collect();
        Some(v1::EgressDecisions { decisions, dropped: std::mem::take(&mut self.decisions_dropped) })
    }

    fn queue(&mut self, key: Key) {
        // Usually it is the last one, or not there. A duplicate is harmless: `next` skips what was sent.
        if self.unsent.back() != Some(&key) {
            self.unsent.push_back(key);
        }
    }
}

fn is_last(report: &v1::SessionReport) -> bool {
    report.refused || report.state == i32::from(v1::SessionState::Ended)
}

/// Shortens what a report need not carry whole.
fn clip(task: &mut v1::Task) {
    let Some(spec) = &mut task.spec else { return };
    if spec.encoded_len() <= SPEC_KEPT {
        return;
    }
    let short = |text: &str| -> String { text.chars().take(1024).chain("…".chars()).collect() };
    spec.program = match spec.program.take() {
        Some(v1::task_spec::Program::Argv(argv)) => Some(v1::task_spec::Program::Argv(v1::Argv {
            args: argv.args.iter().take(8).map(|arg| short(arg)).collect(),
        })),
        Some(v1::task_spec::Program::Shell(line)) => Some(v1::task_spec::Program::Shell(short(&line))),
        None => None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(epoch: u64, state: v1::SessionState) -> v1::SessionReport {
        v1::SessionReport { epoch, state: state.into(), ..Default::default() }
    }

    fn states(outbox: &Outbox, heartbeat: u64) -> Vec<i32> {
        std::iter::from_fn(|| outbox.next(heartbeat))
            .map(|message| match message {
                Message::Session(report) => report.state,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Red when an older epoch takes the place of a newer.
    #[test]
    fn only_the_newest_state_is_sent() {
        let (outbox, session) = (Outbox::default(), SessionId::new());
        outbox.session(session, report(2, v1::SessionState::Placed));
        outbox.session(session, report(2, v1::SessionState::Ready));
        outbox.session(session, report(1, v1::SessionState::Ended));
        assert_eq!(states(&outbox, 1), [i32::from(v1::SessionState::Ready)]);
        assert!(states(&outbox, 1).is_empty());
    }

    /// Red when any answer acknowledges it, none does, or a new attach does not send it again.
    #[test]
    fn an_end_is_told_until_it_is_acknowledged() {
        let (outbox, session) = (Outbox::default(), SessionId::new());
        let ended = i32::from(v1::SessionState::Ended);
        outbox.session(session, report(1, v1::SessionState::Ended));
        assert_eq!(states(&outbox, 5), [ended]);
        // An answer to an earlier heartbeat says nothing about it.
        outbox.acknowledged(4);
        assert!(!outbox.settled());
        outbox.renew();
        assert_eq!(states(&outbox, 6), [ended]);
        outbox.acknowledged(6);
        assert!(outbox.settled());
        outbox.renew();
        assert!(states(&outbox, 7).is_empty());
    }

    /// Red when a new report is taken for sent.
    #[test]
    fn a_report_that_changed_after_it_was_sent_is_sent_again() {
        let (outbox, session) = (Outbox::default(), SessionId::new());
        outbox.session(session, report(1, v1::SessionState::Ready));
        states(&outbox, 1);
        outbox.session(session, report(1, v1::SessionState::Ended));
        outbox.acknowledged(1);
        assert_eq!(states(&outbox, 2), [i32::from(v1::SessionState::Ended)]);
    }

    /// Red when a later report takes the place of the last, or an acknowledged one stays.
    #[test]
    fn a_done_task_never_runs_again() {
        let (outbox, session, id) = (Outbox::default(), SessionId::new(), TaskId::new());
        let task = |state: v1::TaskState| v1::Task { state: state.into(), ..Default::default() };
        outbox.task(session, id, Epoch(1), task(v1::TaskState::Done));
        outbox.task(session, id, Epoch(1), task(v1::TaskState::Running));
        match outbox.next(1) {
            Some(Message::Task(report)) => {
                assert_eq!(report.task.unwrap().state, i32::from(v1::TaskState::Done))
            }
            other => panic!("{other:?}"),
        }
        outbox.acknowledged(1);
        outbox.renew();
        assert!(outbox.next(2).is_none());
    }

    /// Red when nothing is taken off the queue: it grows for as long as the coordinator is away.
    #[test]
    fn decisions_are_told_last_and_those_that_were_too_many_are_counted() {
        let (outbox, session) = (Outbox::default(), SessionId::new());
        let decision = |port| v1::EgressDecision { port, ..Default::default() };
        (0..1030).for_each(|port| outbox.egress(decision(port)));
        outbox.session(session, report(1, v1::SessionState::Ready));
        assert!(matches!(outbox.next(1), Some(Message::Session(_))));
        let told: Vec<_> = std::iter::from_fn(|| outbox.next(1))
            .map(|message| match message {
                Message::Egress(told) => told,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told.iter().map(|t| t.dropped).sum::<u64>(), 6);
        let ports: Vec<u32> = told.iter().flat_map(|t| &t.decisions).map(|d| d.port).collect();
        assert!(ports.iter().copied().eq(6..1030) && told.len() == 4);
    }
}
