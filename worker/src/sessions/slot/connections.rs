//! Connections to a session's ports. They have places of their own, so that a browser's worth of them leaves room for calls,
//! and count as activity only while bytes move: one that is merely open keeps no session from being idle, and none from
//! leaving with its newest checkpoint.

use std::sync::Arc;

use berth_proto::{Error, Reason, convert::too_many_connections, relay::Hop, transport::PORT_CONNECTIONS};
use tonic::transport::Channel;

use super::{Slot, moves};

impl Slot {
    /// One more, if there may be. It ends with the session here.
    pub(super) fn connection(self: &Arc<Self>, channel: Channel) -> Result<Hop, Error> {
        let place = self.connections.clone().try_acquire_owned();
        let place = place.map_err(|_| too_many_connections(PORT_CONNECTIONS))?;
        self.touch();
        let (active, slot) = (self.clone(), self.clone());
        let over = async move {
            slot.unserved.cancelled().await;
            match slot.moves() {
                true => moves(),
                false => Error::precondition(Reason::SessionEnded, "the session is over"),
            }
        };
        Ok(Hop {
            channel,
            guard: Some(Box::new(place)),
            over: Some(Box::pin(over)),
            moved: Some(Arc::new(move || active.touch())),
        })
    }
}
