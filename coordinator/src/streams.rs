//! How many data-plane calls each tenant has open, and that there are no more than its quota says. Counted where calls pass,
//! and not in the fleet: a call must not wait for the driver.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_proto::Error;

use crate::{fleet::Exceeded, tenant::Tenant};

/// See the module.
#[derive(Default)]
pub struct Streams {
    open: Mutex<BTreeMap<Tenant, u64>>,
}

/// A call that is open until this is dropped.
pub struct Open {
    streams: Arc<Streams>,
    tenant: Tenant,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Tenant, u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, if there may be.
    pub fn open(self: &Arc<Self>, tenant: &Tenant, limit: Option<u64>) -> Result<Open, Error> {
        let mut open = self.lock();
        let count = open.entry(tenant.clone()).or_default();
        if let Some(limit) = limit.filter(|limit| *count >= *limit) {
            let used = u128::from(*count);
            if *count == 0 {
                open.remove(tenant);
            }
            let (what, option) = ("open calls", "--streams");
            return Err(Exceeded { tenant: tenant.clone(), what, option, used, asked: 1, limit }.into());
        }
        *count += 1;
        Ok(Open { streams: self.clone(), tenant: tenant.clone() })
    }

    /// Those of all tenants.
    pub fn all(&self) -> u64 {
        self.lock().values().sum()
    }

    /// Those of a tenant.
    pub fn of(&self, tenant: &Tenant) -> u64 {
        self.lock().get(tenant).copied().unwrap_or_default()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        match open.get_mut(&self.tenant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.tenant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_its_own_and_gives_them_back() {
        let streams = Arc::new(Streams::default());
        let [a, b]: [Tenant; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let held: Vec<_> = (0..3).map(|_| streams.open(&a, Some(3)).unwrap()).collect();
        assert_eq!(streams.open(&a, Some(3)).err().unwrap().reason(), berth_proto::Reason::QuotaExceeded);
        assert!(streams.open(&b, Some(1)).is_ok() && streams.open(&b, None).is_ok());
        assert!(streams.open(&b, Some(0)).is_err());
        assert_eq!((streams.of(&a), streams.of(&b)), (3, 0));
        drop(held);
        assert_eq!(streams.of(&a), 0);
        assert!(streams.open(&a, Some(3)).is_ok());
        assert!(streams.lock().is_empty(), "nothing is left of who has nothing");
    }
}
