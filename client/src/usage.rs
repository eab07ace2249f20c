//! What a session takes.

use berth_proto::v1;

use crate::{Error, Session, connect::Policy, model::SessionUsage, task};

impl Session {
    /// What its tasks take now, and have taken. A paused session answers too; one that is parked or has ended takes nothing,
    /// which is an error. To ask keeps no session from being idle.
    pub async fn usage(&self) -> Result<SessionUsage, Error> {
        let message = v1::GetUsageRequest { session_id: self.id.to_string() };
        self.client
            .call(Policy::REPEATABLE, message, |channel, request| async {
                task::service(channel).get_usage(request).await
            })
            .await?
            .try_into()
    }
}
