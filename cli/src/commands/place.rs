//! The session that `run` and `shell` use: one that is there, or one made for the
//! occasion, which then goes with it. Should we be killed before we can delete it, its
//! idle timeout does.

use std::time::Duration;

use berth_client::{Client, Session};

use super::options::SessionArgs;
use crate::{
    failure::Failure,
    output::{self, say},
    select,
    signals::Interrupts,
};

/// Ends an ephemeral session whose owner was killed.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Place {
    pub session: Session,
    ephemeral: bool,
}

impl Place {
    /// The named session, or a new one; `keep` is for a new one that shall stay.
    pub async fn take(
        client: &Client,
        named: Option<&str>,
        options: &SessionArgs,
        keep: bool,
    ) -> Result<Self, Failure> {
        if let Some(named) = named {
            options.refuse_with(named)?;
            return Ok(Self { session: select::session(client, named).await?, ephemeral: false });
        }
        let mut create = options.options();
        if !keep && options.any.idle_timeout.is_none() {
            create = create.idle_timeout(ORPHAN_TIMEOUT);
        }
        let session = client.create_session(create).await?;
        if keep {
            say(format!(
                "session {} is kept; end it with `berth rm {}`",
                session.id(),
                select::short(session.id())
            ));
        }
        Ok(Self { session, ephemeral: !keep })
    }

    /// Removes it if it was made for the occasion. An interrupt leaves it to its idle timeout.
    pub async fn leave(self, interrupts: &mut Interrupts) {
        if !self.ephemeral {
            return;
        }
        let id = self.session.id();
        let problem = tokio::select! {
            result = self.session.delete_without_checkpoint() => match result {
                Ok(_) => return,
                Err(error) => error.message().to_owned(),
            },
            signal = interrupts.recv() => signal.to_owned(),
        };
        output::warning(format!("session {id} was not removed yet: {problem}"));
        output::hint(format!("berth rm {id}; else it ends by itself in {}", output::span(ORPHAN_TIMEOUT)));
    }
}
