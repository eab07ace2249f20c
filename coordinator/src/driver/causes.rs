//! Which request each session was last changed for. Much of what follows from a request comes later, and from elsewhere: a
//! place that is found when another session ends, a worker's report that its sandbox is ready. With this it is logged, and
//! sent to the worker, under that request.
//!
//! In memory alone: after a restart what still follows is nobody's.

use std::collections::HashMap;

use berth_proto::{SessionId, trace::TraceContext};

use crate::fleet::{Command, Effect, Event};

/// See the module. One entry for each session that the fleet knows, at most.
#[derive(Default)]
pub struct Causes(HashMap<SessionId, TraceContext>);

impl Causes {
    /// These effects followed from a request.
    pub fn note(&mut self, request: Option<TraceContext>, effects: &[Effect]) {
        for effect in effects {
            match (effect, request) {
                (Effect::ForgetSession(session), _) => {
                    self.0.remove(session);
                }
                (Effect::SessionChanged(session), Some(request)) => {
                    self.0.insert(session.id, request);
                }
                (Effect::Send { command, .. }, Some(request)) => {
                    self.0.extend(session_of(command).map(|session| (session, request)));
                }
                _ => {}
            }
        }
    }

    /// What a worker reports is of the request that it was told to do it for.
    pub fn of_report(&self, event: &Event) -> Option<TraceContext> {
        match event {
            Event::Report(report) => self.0.get(&report.session).copied(),
            _ => None,
        }
    }

    /// The request that a command is sent for.
    pub fn of_command(&self, command: &Command) -> Option<TraceContext> {
        self.0.get(&session_of(command)?).copied()
    }
}

fn session_of(command: &Command) -> Option<SessionId> {
    match command {
        Command::Place(placement) => Some(placement.session),
        Command::End(ending) => Some(ending.session),
        Command::Pause { session, .. } | Command::Update { session, .. } => Some(*session),
        Command::Welcome { .. }
        | Command::LeaseRenewed { .. }
        | Command::SetBackend(_)
        | Command::Cordoned(_) => None,
    }
}
