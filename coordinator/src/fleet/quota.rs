//! How much of the fleet a tenant may have, and what keeps it within that.
//!
//! What counts is what was asked for and has not ended: a session that waits for a place, is parked, or still ends counts in
//! full. So nothing that the fleet does by itself (a recovery, a resume) can be refused for a quota, and a tenant that fills
//! the queue is stopped like one that fills the machines. A quota that is lowered ends nothing: new sessions are refused
//! until enough has ended.
//!
//! The rate of creates is of any 60 seconds (a sliding window, whose times are remembered by this process alone): a bucket
//! that refills would let twice the figure through in a minute.

use std::time::Duration;

use berth_proto::{Error, Reason};

use super::{Fleet, Now, Refused, Spec, fair::Sum};
use crate::{placement::share, tenant::Tenant};

/// The span that creates are counted in.
const MINUTE: Duration = Duration::from_secs(60);

/// What a tenant may have at the same time. `None`: as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    pub sessions: Option<u64>,
    pub cpu_millis: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    /// Not the fleet's to hold: see [`crate::streams`].
    pub streams: Option<u64>,
    pub creates_per_minute: Option<u64>,
}

/// A change of a quota. `None`: unchanged, `Some(None)`: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuotaPatch {
    pub sessions: Option<Option<u64>>,
    pub cpu_millis: Option<Option<u64>>,
    pub memory_bytes: Option<Option<u64>>,
    pub disk_bytes: Option<Option<u64>>,
    pub streams: Option<Option<u64>>,
    pub creates_per_minute: Option<Option<u64>>,
}

impl QuotaPatch {
    pub fn over(self, old: Quota) -> Quota {
        Quota {
            sessions: self.sessions.unwrap_or(old.sessions),
            cpu_millis: self.cpu_millis.unwrap_or(old.cpu_millis),
            memory_bytes: self.memory_bytes.unwrap_or(old.memory_bytes),
            disk_bytes: self.disk_bytes.unwrap_or(old.disk_bytes),
            streams: self.streams.unwrap_or(old.streams),
            creates_per_minute: self.creates_per_minute.unwrap_or(old.creates_per_minute),
        }
    }
}

/// Which quota it is that a tenant would go beyond.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exceeded {
    pub tenant: Tenant,
    /// For people, as in "3 of 5 sessions".
    pub what: &'static str,
    /// The option of `berth tenant set`.
    pub option: &'static str,
    pub used: u128,
    pub asked: u128,
    pub limit: u64,
}

impl From<Exceeded> for Error {
    fn from(exceeded: Exceeded) -> Error {
        let Exceeded { tenant, what, option, used, asked, limit } = exceeded;
        let text = format!("tenant {tenant} has {used} of {limit} {what}, and this asks for {asked} more");
        Error::exhausted(Reason::QuotaExceeded, text)
            .hint(format!(
                "free some first, or have an operator raise it: berth tenant set {tenant} {option} N; \
                 `berth tenant show {tenant}` says how it stands"
            ))
            .with("quota", option.trim_start_matches("--"))
            .with("used", used)
            .with("limit", limit)
    }
}

impl Fleet {
    /// What a tenant may have.
    pub fn quota(&self, tenant: &Tenant) -> Quota {
        self.quotas.get(tenant).copied().unwrap_or_default()
    }

    pub(super) fn set_quota(&mut self, tenant: &Tenant, patch: QuotaPatch) {
        let quota = patch.over(self.quota(tenant));
        let old = self.quotas.insert(tenant.clone(), quota);
        self.before.quotas.entry(tenant.clone()).or_insert(old);
    }

    /// Whether a tenant may have one more session like this.
    pub(super) fn within_quota(&mut self, spec: &Spec, now: Now) -> Result<(), Refused> {
        let tenant = &spec.tenant;
        let Some(quota) = self.quotas.get(tenant).copied() else { return Ok(()) };
        let (held, asked) = (self.index.held.get(tenant).copied().unwrap_or_default(), {
            let mut asked = Sum::default();
            asked.add(&share(&spec.limits));
            asked
        });
        let created = match quota.creates_per_minute {
            Some(_) => self.created_lately(tenant, now.mono),
            None => 0,
        };
        let rows = [
            ("sessions", "--max-sessions", held.sessions, asked.sessions, quota.sessions),
            ("thousandths of a core", "--cpu", held.cpu_millis, asked.cpu_millis, quota.cpu_millis),
            ("bytes of memory", "--memory", held.memory_bytes, asked.memory_bytes, quota.memory_bytes),
            ("bytes of disk", "--disk", held.disk_bytes, asked.disk_bytes, quota.disk_bytes),
            ("sessions a minute", "--creates-per-minute", created, 1, quota.creates_per_minute),
        ];
        for (what, option, used, asked, limit) in rows {
            if let Some(limit) = limit.filter(|limit| used + asked > u128::from(*limit)) {
                let tenant = tenant.clone();
                return Err(Refused::QuotaExceeded(Exceeded { tenant, what, option, used, asked, limit }));
            }
        }
        Ok(())
    }

    /// A session was made: it counts for a minute.
    pub(super) fn count_create(&mut self, tenant: &Tenant, now: Now) {
        if self.quota(tenant).creates_per_minute.is_some() {
            self.creates.entry(tenant.clone()).or_default().push_back(now.mono);
        }
    }

    fn created_lately(&mut self, tenant: &Tenant, now: Duration) -> u128 {
        let Some(times) = self.creates.get_mut(tenant) else { return 0 };
        while times.front().is_some_and(|at| now.saturating_sub(*at) >= MINUTE) {
            times.pop_front();
        }
        times.len() as u128
    }
}
