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
    /// These effects followed from a request about `named`. For another session that they are about (one that waited gets the
    /// place of one that ends) the request that it was made for counts.
    pub fn note(&mut self, request: Option<TraceContext>, named: Option<SessionId>, effects: &[Effect]) {
        for effect in effects {
            let about = match effect {
                Effect::ForgetSession(session) => {
                    self.0.remove(session);
                    continue;
                }
                Effect::SessionChanged(session) => Some(session.id),
                Effect::Send { command, .. } => session_of(command),
                _ => None,
            };
            let (Some(session), Some(request)) = (about, request) else { continue };
            if Some(session) == named {
                self.0.insert(session, request);
            } else {
                self.0.entry(session).or_insert(request);
            }
        }
    }

    /// What the store did not take never was.
    pub fn keep(&mut self, known: impl Fn(&SessionId) -> bool) {
        self.0.retain(|session, _| known(session));
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

/// The session that a client's call is about.
pub fn named(event: &Event) -> Option<SessionId> {
    match event {
        Event::Create(create) => Some(create.id),
        Event::Update(update) => Some(update.session),
        Event::Delete { session, .. }
        | Event::Pause { session, .. }
        | Event::Checkpointed { session, .. }
        | Event::CheckpointFailed { session, .. }
        | Event::Parking { session, .. }
        | Event::Park { session, .. }
        | Event::ParkingFailed { session, .. }
        | Event::Move { session, .. }
        | Event::TaskEnded { session, .. } => Some(*session),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::{Epoch, domain::EndReason};

    use super::*;
    use crate::fleet::{Ending, LinkId};

    fn send(session: SessionId) -> Effect {
        let ending = Ending { session, epoch: Epoch(1), reason: EndReason::Deleted };
        Effect::Send { link: LinkId(1), command: Command::End(ending) }
    }

    /// Red when what one client asks for goes under the request of another.
    #[test]
    fn a_session_keeps_its_own_request_when_another_one_makes_room() {
        let [one, other] = [1, 2].map(SessionId::from_u128);
        let [make, end, make_other] = [(); 3].map(|()| TraceContext::begin());
        let mut causes = Causes::default();
        let of = |causes: &Causes, session| match send(session) {
            Effect::Send { command, .. } => causes.of_command(&command),
            _ => None,
        };
        causes.note(Some(make), Some(one), &[send(one)]);
        causes.note(Some(make_other), Some(other), &[send(other)]);
        causes.note(Some(end), Some(one), &[send(one), send(other)]);
        assert_eq!((of(&causes, one), of(&causes, other)), (Some(end), Some(make_other)));
        causes.note(None, None, &[Effect::ForgetSession(one)]);
        assert_eq!(of(&causes, one), None);
        causes.keep(|_| false);
        assert_eq!(of(&causes, other), None);
    }
}
