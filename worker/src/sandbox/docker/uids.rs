//! Which host uid (and gid) a session's tasks run as. Engine 20.10 has one user-namespace
//! mapping for all containers, so a session can't have a range of its own; it has one
//! number, so that what the kernel counts by uid (inotify, message queues, pipes) and what
//! it lets a uid do to itself (signals, ptrace) ends at the session.
//!
//! Drawn at random from 65,536, so that a number comes back late; reserved here for this
//! process; and checked on the engine after the container is made, because other workers
//! draw from the same numbers: the `berth.uid` label is the claim, and whoever sees another
//! claim of its number gives its own up (see [`super::start`]).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_proto::{Error, Reason, SessionId};
use rand::RngExt;
use tokio_util::sync::CancellationToken;

/// The numbers of the docker backend on an engine whose ids are the host's: the last
/// 65,536 below those that systemd uses at 2^31, and above those of the native backend.
pub const FIRST: u32 = 0x7FFD_0000;
/// How many there are.
pub const COUNT: u32 = 0x1_0000;
/// The same where container ids are mapped (rootless, userns-remap): usually 65,536 exist.
pub const MAPPED_FIRST: u32 = 10_000;
pub const MAPPED_COUNT: u32 = 50_000;

/// What a session of this process holds.
#[derive(Default)]
struct Held {
    uid: u32,
    /// Cancelled when its end is ours: nothing to report then.
    ending: CancellationToken,
}

// The numbers stay below what systemd has, and what mapped engines have.
const _: () = assert!(FIRST + COUNT <= 0x7FFE_0000 && MAPPED_FIRST + MAPPED_COUNT <= 65_534);

/// The numbers that sessions of this process hold.
#[derive(Default)]
pub struct Uids {
    held: Mutex<HashMap<SessionId, Held>>,
}

impl Uids {
    fn held(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free number of `first..first + count` for a session; one that it held is given up.
    pub fn draw(&self, session: SessionId, first: u32, count: u32) -> Result<u32, Error> {
        let mut held = self.held();
        let start = rand::rng().random_range(0..count);
        let free = (0..count)
            .map(|i| first + (start + i) % count)
            .find(|uid| !held.values().any(|taken| taken.uid == *uid))
            .ok_or_else(|| {
                Error::exhausted(Reason::NoPlace, "all user ids of the docker backend are taken")
            })?;
        held.entry(session).or_default().uid = free;
        Ok(free)
    }

    /// Notes what a sandbox has that was found.
    pub fn note(&self, session: SessionId, uid: u32) {
        self.held().entry(session).or_default().uid = uid;
    }

    pub fn release(&self, session: SessionId) {
        self.held().remove(&session);
    }

    /// Cancelled once the session's sandbox is being removed by us.
    pub fn ending(&self, session: SessionId) -> CancellationToken {
        self.held().get(&session).map(|held| held.ending.clone()).unwrap_or_default()
    }

    pub fn holds(&self, session: SessionId) -> bool {
        self.held().contains_key(&session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sessions_hold_one_number() {
        let uids = Uids::default();
        let mut drawn: Vec<u32> =
            (0..64).map(|i| uids.draw(SessionId::from_u128(i), 100, 64).expect("one is free")).collect();
        drawn.sort_unstable();
        assert_eq!(drawn, (100..164).collect::<Vec<_>>());
        let full = uids.draw(SessionId::from_u128(64), 100, 64).expect_err("none is free");
        assert_eq!(full.reason(), Reason::NoPlace);
        uids.release(SessionId::from_u128(7));
        assert!(uids.draw(SessionId::from_u128(64), 100, 64).is_ok());
    }
}
