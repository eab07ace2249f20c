//! Sandboxes whose ports are open to everybody: E2B's `allow_public_traffic`, as it is asked for.
//!
//! Who comes shows nothing, so something must say that the sandbox is open, and with whose token the connection is made.
//! Both is in a label of the session ([`LABEL`]): its owner's token, sealed for this very session. It is with the session
//! wherever that is stored, so it outlives a restart of the gateway, holds at each of several, and ends with the session.
//!
//! To read that label the gateway uses its operator's token. It decides nothing by that: what is not sealed by the gateway
//! for this session opens nothing, whoever wrote it there (a label can be copied to another session, and is nothing there),
//! and the connection is made with the token that is in it: one that is revoked, or may not see the session any more, is
//! refused by the coordinator as always. Rejected: a table at the gateway, which a restart would lose, or which would have
//! to be stored and shared; and to connect as the operator, by which one wrong check here would open every tenant's sessions.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_client::{Reason, Session, SessionId, UpdateOptions};
use tokio::{sync::Semaphore, time::Instant};

use super::{access::Access, pool::Pool, problem::Problem, seal::Grant};

/// Of a session that is open to everybody.
pub const LABEL: &str = "ports.public";
/// For how long an answer holds, also that there is none.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Answers that are kept.
const KNOWN: usize = 4096;
/// Questions at once: a crowd with made-up names waits in line, and leaves the operator's calls alone.
const ASKING: usize = 16;

pub struct Public {
    /// The operator's token.
    operator: String,
    known: Mutex<HashMap<SessionId, (Option<Grant>, Instant)>>,
    asking: Semaphore,
}

impl Public {
    pub fn new(operator: String) -> Self {
        Self { operator, known: Mutex::default(), asking: Semaphore::new(ASKING) }
    }

    /// What everybody may do with a sandbox's ports. `None`: nothing, or there is no such sandbox.
    pub async fn grant(
        &self,
        pool: &Pool,
        access: &Access,
        session: SessionId,
    ) -> Result<Option<Grant>, Problem> {
        if let Some(grant) = self.kept(session) {
            return Ok(grant);
        }
        let Ok(_place) = self.asking.acquire().await else { return Ok(None) };
        // Somebody before us in the line may have asked.
        if let Some(grant) = self.kept(session) {
            return Ok(grant);
        }
        let grant = match pool.client(&self.operator).await?.session(session).info().await {
            Ok(info) => {
                let grant = info.labels.get(LABEL).and_then(|sealed| access.public(sealed));
                grant.filter(|grant| grant.session == session)
            }
            Err(error) if error.is(Reason::SessionNotFound) => None,
            Err(error) => {
                tracing::warn!(%error, "the gateway can't ask whether a sandbox is open to everybody");
                return Err(Problem::unavailable("Berth can't be asked now: try again in a moment"));
            }
        };
        self.keep(session, grant.clone());
        Ok(grant)
    }

    /// Opens a sandbox's ports to everybody, as who has this token, or closes them.
    pub async fn set(
        &self,
        session: &Session,
        open: bool,
        access: &Access,
        token: &str,
    ) -> Result<(), Problem> {
        let change = match open {
            true => UpdateOptions::new().label(LABEL, access.publish(session.id(), token)),
            false => UpdateOptions::new().remove_label(LABEL),
        };
        session.update(change).await?;
        self.known().remove(&session.id());
        Ok(())
    }

    fn kept(&self, session: SessionId) -> Option<Option<Grant>> {
        let known = self.known();
        let (grant, until) = known.get(&session)?;
        (*until > Instant::now()).then(|| grant.clone())
    }

    fn keep(&self, session: SessionId, grant: Option<Grant>) {
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= KNOWN {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(session, (grant, now + GOOD_FOR));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SessionId, (Option<Grant>, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
