//! What the worker adds to a data-plane call: whether the session is here and ready, how many calls it
//! may have open, and that the call counts as activity.

use std::time::Duration;

use berth_proto::{
    Error, SessionId,
    relay::{self, Hop, Route},
};
use tonic::Extensions;

use super::Sessions;

/// The worker's [`Route`].
#[derive(Clone)]
pub struct SessionRoute {
    sessions: Sessions,
}

impl SessionRoute {
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

impl Route for SessionRoute {
    async fn route(&self, session: SessionId, call: &'static str, _: &Extensions) -> Result<Hop, Error> {
        match self.sessions.held(session) {
            Some(slot) => slot.hop(call),
            None => Err(self.sessions.not_held(session)),
        }
    }

    fn answered(&self, call: &'static str, took: Duration) {
        self.sessions.metrics().hop(call, took);
    }

    fn lost(&self) -> Error {
        relay::agent_unreachable()
    }
}
