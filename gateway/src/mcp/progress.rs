//! Word of how a call comes along, for clients that asked for it with a progress token.

use std::time::Duration;

use rmcp::{
    Peer, RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
};
use tokio::time::timeout;

/// How often a call that waits says so.
pub const EVERY: Duration = Duration::from_secs(1);
/// A client that does not read holds nothing up for longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where to tell it. Without a token nothing is sent.
pub struct Progress {
    to: Option<(Peer<RoleServer>, ProgressToken)>,
    last: f64,
}

impl Progress {
    pub fn new(peer: Peer<RoleServer>, token: Option<ProgressToken>) -> Self {
        Self { to: token.map(|token| (peer, token)), last: -1.0 }
    }

    /// `seconds` into the call, and what is happening. The protocol wants a number that grows: what does not is left out.
    pub async fn tell(&mut self, seconds: f64, message: String) {
        let Some((peer, token)) = &self.to else { return };
        if seconds <= self.last {
            return;
        }
        self.last = seconds;
        let param = ProgressNotificationParam::new(token.clone(), seconds).with_message(message);
        let _ = timeout(PATIENCE, peer.notify_progress(param)).await;
    }
}
