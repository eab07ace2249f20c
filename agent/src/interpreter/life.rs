//! What moves a context on: one future for each, so that nothing in it races. It starts the interpreter, gives it one
//! execution at a time, takes in what comes of it, and ends it when it is told to, when it hangs or when it lies.
//!
//! **An interrupt is SIGINT to the process group**, through init. It must not hit a later execution than it was meant for, and
//! a signal is on its way for a moment; so the bridge counts those that have come, and the next execution waits (for a second
//! at most: a liar delays itself) until it has said that the last one has. Nor may it be lost because it comes before the code
//! runs; so an execution is told how many were sent before it, and what the bridge has counted beyond that is meant for it.
//!
//! **What comes while nothing runs**, from a thread or a child that lives on, is kept up to a bound and is the first that the
//! next execution puts out.

use std::{io, sync::Arc, time::Duration};

use berth_proto::{
    Code, Reason,
    v1::{self, ExecutionOutcome, execute_event::Event},
};
use tracing::{debug, info};

use super::{
    context::{Context, Job, Phase},
    frame::{Frames, Said, execute},
    process::Process,
};
use crate::{
    task::Refusal,
    tasks::{Session, Tasks},
    wire::Exited,
};

/// For an interpreter to take code. numpy and the like are not imported yet, but a cold disk is slow. In task time.
const UP_DEADLINE: Duration = Duration::from_secs(60);
/// Between the interrupt of one whose time is over and its end.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between the end of a bridge's socket and that of its process.
const EXIT_SOON: Duration = Duration::from_secs(1);
/// For an interrupt to arrive.
const SETTLE: Duration = Duration::from_secs(1);
/// Reads between two looks at what others want.
const YIELD: u32 = 8;
/// Bytes of one read.
const READ: usize = 64 << 10;
/// Bytes that are taken of a stream when an execution ends: no pipe holds more (fs.pipe-max-size).
const DRAIN_MAX: usize = 1 << 20;
/// Bytes of each stream that are kept while nothing runs.
const LATE_MAX: usize = 64 << 10;
/// Bytes of what an interpreter said before it failed to come up.
const LAST_WORDS: usize = 1 << 10;

/// Why an interpreter's life is over.
enum Why {
    Deleted,
    Restarted,
    SessionEnded,
    /// By itself, or its bridge is cut off.
    Exited,
    /// It said that it can't.
    Gave {
        what: String,
        why: String,
    },
    /// It is killed for this.
    Killed(String),
}

struct Current {
    job: Arc<Job>,
    /// In task time.
    began: Duration,
    deadline: Option<Duration>,
    /// Whether it was interrupted, and if so whether by its timeout.
    interrupted: Option<bool>,
}

/// One context's life.
pub struct Life {
    context: Arc<Context>,
    tasks: Arc<Tasks>,
    session: Session,
}

impl Life {
    pub fn new(context: Arc<Context>, tasks: Arc<Tasks>, session: Session) -> Self {
        Self { context, tasks, session }
    }

    /// Until nothing is left of the context.
    pub async fn run(self) {
        let mut first = true;
        loop {
            let phase = match self.one(first).await {
                Ok(()) => Phase::Starting,
                Err(phase) => phase,
            };
            let over = matches!(phase, Phase::Gone | Phase::Refused(_));
            self.context.set(phase);
            if over || !self.restart_wanted().await {
                break;
            }
            first = false;
        }
        self.end_all(ExecutionOutcome::Cancelled, "the context was deleted");
        if !matches!(self.context.state().phase, Phase::Refused(_)) {
            self.context.set(Phase::Gone);
        }
    }

    /// Waits until a dead one is to be started anew. False: it is to be deleted.
    async fn restart_wanted(&self) -> bool {
        loop {
            {
                let mut state = self.context.state();
                if state.wishes.delete {
                    return false;
                }
                if state.wishes.restart || matches!(state.phase, Phase::Starting) {
                    state.wishes = Default::default();
                    state.phase = Phase::Starting;
                    return true;
                }
            }
            tokio::select! {
                () = self.context.wake.notified() => {}
                () = self.tasks.contexts_end.cancelled() => return false,
            }
        }
    }

    /// One interpreter, from its start to its end. `Ok`: it is to be started anew.
    async fn one(&self, first: bool) -> Result<(), Phase> {
        let not_up = |refusal: Refusal| match first {
            true => Phase::Refused(refusal),
            false => Phase::Dead(refusal.error().message().to_owned()),
        };
        let (id, spec) = (self.context.id, &self.context.spec);
        let process = Process::start(&self.tasks, &self.session, id, spec).await.map_err(not_up)?;
        let mut alive = Alive::new(self, process);
        let why = alive.serve().await;
        let was_up = alive.up;
        let (mut exited, mut words) = (None, String::new());
        match &why {
            Why::Killed(text) | Why::Gave { why: text, .. } => words.clone_from(text),
            Why::Exited => {
                // The end of its socket comes a moment before its own.
                exited = alive.process.exit.within(EXIT_SOON).await;
                words = alive.process.epitaph(exited);
            }
            Why::Deleted | Why::Restarted | Why::SessionEnded => {}
        }
        alive.process.kill(&self.tasks).await;
        alive.drain();
        let refusal = (!was_up).then(|| alive.refusal(&why, exited, &words));
        let current = alive.current.take();
        drop(alive);
        let (outcome, phase) = match why {
            Why::Deleted => (ExecutionOutcome::Cancelled, Err(Phase::Gone)),
            Why::SessionEnded => (ExecutionOutcome::SessionEnded, Err(Phase::Gone)),
            Why::Restarted => (ExecutionOutcome::Cancelled, Ok(())),
            _ => match refusal {
                Some(refusal) => (ExecutionOutcome::Died, Err(not_up(refusal))),
                None => (ExecutionOutcome::Died, Err(Phase::Dead(words.clone()))),
            },
        };
        // First what it is, then what became of its executions: who is told of these finds it so.
        if let Err(phase @ Phase::Dead(_)) = &phase {
            info!(context = %id, why = words, "a context died");
            self.context.set(phase.clone());
        }
        let message = match outcome {
            ExecutionOutcome::Died => words.as_str(),
            ExecutionOutcome::SessionEnded => "",
            _ if phase.is_ok() => "the context was restarted",
            _ => "the context was deleted",
        };
        if let Some(current) = current {
            let ran = self.tasks.shared().clock.now().saturating_sub(current.began);
            let outcome = match (outcome, current.interrupted) {
                (ExecutionOutcome::Died, Some(true)) => ExecutionOutcome::TimedOut,
                (outcome, _) => outcome,
            };
            self.close(&current.job, outcome, message, ran);
        }
        self.end_all(outcome, message);
        phase
    }

    /// Ends all that waits. It has not run.
    fn end_all(&self, outcome: ExecutionOutcome, message: &str) {
        loop {
            let next = self.context.state().queue.pop_front();
            match next {
                Some(job) => self.close(&job, outcome, message, Duration::ZERO),
                None => return,
            }
        }
    }

    fn close(&self, job: &Job, outcome: ExecutionOutcome, message: &str, ran: Duration) {
        {
            let mut state = self.context.state();
            state.current = None;
            state.last = Some(job.record.clone());
        }
        job.record.end(outcome, message, ran);
    }
}

/// An interpreter that lives, or starts.
struct Alive<'a> {
    life: &'a Life,
    process: Process,
    frames: Frames,
    up: bool,
    up_by: Duration,
    current: Option<Current>,
    /// What came while nothing ran, stdout first.
    late: [Vec<u8>; 2],
    /// Interrupts that were sent, and those that the bridge has told of.
    sent: u64,
    seen: u64,
    settled_by: Duration,
    buffer: Vec<u8>,
}

impl<'a> Alive<'a> {
    fn new(life: &'a Life, process: Process) -> Self {
        life.context.state().pid = process.pid;
        Self {
            up_by: life.tasks.shared().clock.now().saturating_add(UP_DEADLINE),
            life,
            process,
            frames: Frames::default(),
            up: false,
            current: None,
            late: [Vec::new(), Vec::new()],
            sent: 0,
            seen: 0,
            settled_by: Duration::ZERO,
            buffer: vec![0; READ],
        }
    }

    async fn serve(&mut self) -> Why {
        let tasks = self.life.tasks.clone();
        let context = self.life.context.clone();
        let mut open = [true, true];
        let mut turns = 0u32;
        loop {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(YIELD) {
                // One that floods shares the thread with all the rest of the agent.
                tokio::task::yield_now().await;
            }
            if let Some(why) = self.wishes().await {
                return why;
            }
            if let Err(why) = self.pass_time().await {
                return why;
            }
            self.begin_next();
            let deadline = self.deadline();
            let outputs = self.process.outputs.clone();
            let sending = !self.process.unsent.is_empty();
            tokio::select! {
                biased;
                () = tasks.contexts_end.cancelled() => return Why::SessionEnded,
                () = context.wake.notified() => {}
                () = tasks.shared().clock.sleep_until(deadline) => {}
                _ = self.process.exit.wait() => {
                    // Its last words.
                    loop {
                        match self.hear() {
                            Ok(true) => {}
                            Ok(false) => return Why::Exited,
                            Err(why) => return why,
                        }
                    }
                }
                ready = self.process.socket.readable() => {
                    if let Err(why) = ready.map_err(|_| Why::Exited).and_then(|()| self.hear()) {
                        return why;
                    }
                }
                ready = self.process.socket.writable(), if sending => {
                    if ready.and_then(|()| self.process.send()).is_err() {
                        // Its end comes next.
                        self.process.unsent.clear();
                    }
                }
                Ok(mut ready) = outputs[0].readable(), if open[0] => match self.take(0) {
                    Some(more) => open[0] = more,
                    None => ready.clear_ready(),
                },
                Ok(mut ready) = outputs[1].readable(), if open[1] => match self.take(1) {
                    Some(more) => open[1] = more,
                    None => ready.clear_ready(),
                },
            }
        }
    }

    fn now(&self) -> Duration {
        self.life.tasks.shared().clock.now()
    }

    /// What somebody wants of it.
    async fn wishes(&mut self) -> Option<Why> {
        let wishes = self.life.context.state().wishes;
        if wishes.delete {
            return Some(Why::Deleted);
        }
        if wishes.restart {
            return Some(Why::Restarted);
        }
        if wishes.interrupt {
            self.life.context.state().wishes.interrupt = false;
            if let Some(current) = &mut self.current {
                current.interrupted.get_or_insert(false);
                self.interrupt().await;
            }
        }
        None
    }

    async fn interrupt(&mut self) {
        self.sent += 1;
        if let Err(error) = self.life.tasks.shared().spawner.signal(self.process.number, libc::SIGINT).await {
            debug!(%error, "an interrupt could not be sent");
        }
    }

    /// When something is over if nothing happens.
    fn deadline(&self) -> Option<Duration> {
        match &self.current {
            _ if !self.up => Some(self.up_by),
            Some(current) => current.deadline,
            None if self.sent > self.seen && !self.life.context.state().queue.is_empty() => {
                Some(self.settled_by)
            }
            None => None,
        }
    }

    /// Does what the clock says.
    async fn pass_time(&mut self) -> Result<(), Why> {
        if self.deadline().is_none_or(|at| at > self.now()) {
            return Ok(());
        }
        if !self.up {
            return Err(Why::Killed(format!("it did not take code within {} s", UP_DEADLINE.as_secs())));
        }
        let now = self.now();
        let Some(current) = &mut self.current else {
            // What was to tell of an interrupt does not: the code may have taken SIGINT for itself.
            self.seen = self.sent;
            return Ok(());
        };
        if current.interrupted == Some(true) {
            let text =
                "its time was over, and it did not stop when it was interrupted: its interpreter was killed";
            return Err(Why::Killed(text.to_owned()));
        }
        current.interrupted = Some(true);
        current.deadline = Some(now.saturating_add(STOP_GRACE));
        self.interrupt().await;
        Ok(())
    }

    /// Gives the bridge the next execution, if it is free.
    fn begin_next(&mut self) {
        if !self.up || self.current.is_some() || self.sent > self.seen || !self.process.unsent.is_empty() {
            return;
        }
        let job = {
            let mut state = self.life.context.state();
            let Some(job) = state.queue.pop_front() else { return };
            state.current = Some(job.clone());
            job
        };
        // The code may have sent itself some that we did not.
        self.sent = self.seen;
        self.process.unsent = execute(job.record.number, self.sent, &job.code, &job.env);
        for (stream, late) in self.late.iter_mut().enumerate() {
            job.record.text(stream == 1, &std::mem::take(late));
        }
        let began = self.now();
        let deadline = job.timeout.map(|timeout| began.saturating_add(timeout));
        self.current = Some(Current { job, began, deadline, interrupted: None });
        // Mostly the socket takes all of it at once.
        let _ = self.process.send();
    }

    /// Reads what the bridge has said. False: nothing now.
    fn hear(&mut self) -> Result<bool, Why> {
        match self.process.socket.try_read(&mut self.buffer) {
            Ok(0) => return Err(Why::Exited),
            Ok(n) => self.frames.push(&self.buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(_) => return Err(Why::Exited),
        }
        // What was written before is in the pipes by now. (Once for all frames that came together: a flood of them must not
        // be a flood of drains.)
        self.drain();
        let broken = |error| Why::Killed(format!("its bridge broke the protocol ({error}), and was killed"));
        while let Some(said) = self.frames.read().map_err(broken)? {
            self.take_in(said)?;
        }
        Ok(true)
    }

    fn take_in(&mut self, said: Said) -> Result<(), Why> {
        match said {
            Said::Ready { kernel, version } => {
                if !self.up {
                    self.up = true;
                    // What it said on its way is no execution's.
                    self.late = Default::default();
                    let mut state = self.life.context.state();
                    (state.kernel, state.version) = (kernel, version);
                    drop(state);
                    self.life.context.set(Phase::Up);
                }
            }
            Said::Failed { what, why } => return Err(Why::Gave { what, why }),
            Said::Text { stderr, data } => self.put_out(usize::from(stderr), &data),
            Said::Display(bundle) => self.show(Event::Display, bundle),
            Said::Value(bundle) => self.show(Event::Result, bundle),
            Said::Error(error) => {
                if let Some(current) = &self.current {
                    current.job.record.error(error);
                }
            }
            Said::Interrupts(seen) => self.seen = seen,
            Said::Finished { number, ok, interrupts } => {
                self.seen = interrupts;
                self.finish(number, ok);
            }
        }
        Ok(())
    }

    fn show(&self, event: fn(v1::MimeBundle) -> Event, bundle: v1::MimeBundle) {
        if let Some(current) = &self.current {
            current.job.record.bundle(event, bundle);
        }
    }

    fn finish(&mut self, number: u64, ok: bool) {
        let Some(current) = self.current.take_if(|current| current.job.record.number == number) else {
            return;
        };
        let outcome = match (current.interrupted, ok) {
            (Some(true), _) => ExecutionOutcome::TimedOut,
            (_, true) => ExecutionOutcome::Ok,
            (Some(false), false) => ExecutionOutcome::Interrupted,
            (None, false) => ExecutionOutcome::Error,
        };
        self.settled_by = self.now().saturating_add(SETTLE);
        // One that comes from now on finds nothing to interrupt.
        self.life.context.state().wishes.interrupt = false;
        let ran = self.now().saturating_sub(current.began);
        self.life.close(&current.job, outcome, "", ran);
    }

    /// Takes a piece of a stream. False: it is closed. `None`: nothing is there.
    fn take(&mut self, stream: usize) -> Option<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.process.read(stream, &mut buffer);
        if let Some(n) = read {
            self.put_out(stream, &buffer[..n]);
        }
        self.buffer = buffer;
        read.map(|n| n > 0)
    }

    /// Takes what is in the pipes.
    fn drain(&mut self) {
        for stream in [0, 1] {
            let mut taken = 0;
            while taken < DRAIN_MAX && self.take(stream) == Some(true) {
                taken += READ;
            }
        }
    }

    fn put_out(&mut self, stream: usize, data: &[u8]) {
        match &self.current {
            Some(current) => current.job.record.text(stream == 1, data),
            None => {
                let late = &mut self.late[stream];
                late.extend_from_slice(&data[..data.len().min(LATE_MAX - late.len().min(LATE_MAX))]);
            }
        }
    }

    /// What is told of one that never came up.
    fn refusal(&self, why: &Why, exited: Option<Exited>, words: &str) -> Refusal {
        let code = exited.filter(|e| libc::WIFEXITED(e.status)).map(|e| libc::WEXITSTATUS(e.status));
        let said = String::from_utf8_lossy(&self.late[1]).into_owned();
        let said = said.trim_end();
        let last = &said[said.ceil_char_boundary(said.len().saturating_sub(LAST_WORDS))..];
        let executable = &self.life.context.spec.executable;
        match why {
            Why::Gave { what, why } if what == "missing" => {
                Refusal::new(Code::FailedPrecondition, Reason::InterpreterMissing, why.clone())
            }
            // As a shell tells it, and as our own start does.
            Why::Exited if matches!(code, Some(126 | 127)) => Refusal::new(
                Code::FailedPrecondition,
                Reason::InterpreterMissing,
                format!("{executable:?} can't be run in this session: {last}"),
            ),
            _ => {
                let words =
                    if words.is_empty() { "the context was given up while it started" } else { words };
                let text =
                    if last.is_empty() { words.to_owned() } else { format!("{words}; it said: {last}") };
                Refusal::new(Code::FailedPrecondition, Reason::InterpreterFailed, text)
            }
        }
    }
}
