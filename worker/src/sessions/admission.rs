//! The worker's last word on whether a session fits. Pure: the same load and the same wish always get
//! the same answer. The coordinator's own sums may be late; these are not, since they are taken
//! under the lock that the session is then entered under.
//!
//! Memory is a session's limit, as the coordinator counts it too: not the agent's own share, which is 256 MiB and
//! whatever clients upload into file systems in memory (docs/security.md, "Who pays for memory").

use berth_proto::domain::{Capacity, Limits};

/// What the sessions that are held may use, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub sessions: u32,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Reserved {
    pub fn add(&mut self, limits: &Limits) {
        self.sessions += 1;
        self.cpu_millis += u64::from(limits.cpu_millis);
        self.memory_bytes = self.memory_bytes.saturating_add(limits.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(limits.disk_bytes);
    }
}

/// The worker's own disk, as it is now. Others fill it too, so what sessions are promised is counted against what is
/// free, and in full.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub free_bytes: u64,
    /// What must stay free.
    pub margin_bytes: u64,
    /// What the sessions that are held may still take.
    pub promised_bytes: u64,
    /// What this one may take.
    pub wanted_bytes: u64,
}

/// `Err`: what is missing, for people.
pub fn admit(capacity: &Capacity, reserved: &Reserved, want: &Limits, disk: Disk) -> Result<(), String> {
    if reserved.sessions >= capacity.max_sessions {
        return Err(format!(
            "the worker holds {} sessions and may hold {}",
            reserved.sessions, capacity.max_sessions
        ));
    }
    let checks = [
        (
            "thousandths of a core",
            u64::from(capacity.cpu_millis),
            reserved.cpu_millis,
            u64::from(want.cpu_millis),
        ),
        ("bytes of memory", capacity.memory_bytes, reserved.memory_bytes, want.memory_bytes),
        ("bytes of disk", capacity.disk_bytes, reserved.disk_bytes, want.disk_bytes),
    ];
    for (what, all, taken, want) in checks {
        let free = all.saturating_sub(taken);
        if want > free {
            return Err(format!("{want} {what} are asked for, and {free} of {all} are not reserved"));
        }
    }
    if disk.free_bytes < disk.margin_bytes {
        return Err(format!(
            "only {} bytes of disk are free, less than the margin of {}",
            disk.free_bytes, disk.margin_bytes
        ));
    }
    let free = disk.free_bytes - disk.margin_bytes;
    if disk.wanted_bytes > free.saturating_sub(disk.promised_bytes) {
        return Err(format!(
            "the session takes up to {} bytes of the worker's disk, and of the {free} that are free there {} are promised",
            disk.wanted_bytes, disk.promised_bytes
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity =
        Capacity { cpu_millis: 2000, memory_bytes: 4 << 30, disk_bytes: 8 << 30, max_sessions: 3 };
    const DISK: Disk =
        Disk { free_bytes: 1 << 40, margin_bytes: 1 << 20, promised_bytes: 0, wanted_bytes: 1 };

    fn limits(cpu_millis: u32, memory_bytes: u64, disk_bytes: u64) -> Limits {
        Limits { cpu_millis, memory_bytes, disk_bytes, pids: 64 }
    }

    #[test]
    fn each_shortage_is_named() {
        let mut reserved = Reserved::default();
        reserved.add(&limits(1500, 1 << 30, 1 << 30));
        let refused = |want| admit(&CAPACITY, &reserved, &want, DISK).unwrap_err();
        assert!(refused(limits(600, 1, 1)).contains("500 of 2000"));
        assert!(refused(limits(1, 4 << 30, 1)).contains("memory"));
        assert!(refused(limits(1, 1, 8 << 30)).contains("disk"));
        assert_eq!(admit(&CAPACITY, &reserved, &limits(500, 1, 1), DISK), Ok(()));
        let low = Disk { free_bytes: 1, ..DISK };
        assert!(admit(&CAPACITY, &reserved, &limits(1, 1, 1), low).unwrap_err().contains("free"));
        let promised = Disk { promised_bytes: (1 << 40) - (1 << 20), ..DISK };
        assert!(admit(&CAPACITY, &reserved, &limits(1, 1, 1), promised).unwrap_err().contains("promised"));
        let just = Disk { promised_bytes: promised.promised_bytes - 1, ..DISK };
        assert_eq!(admit(&CAPACITY, &reserved, &limits(1, 1, 1), just), Ok(()));
        reserved.sessions = 3;
        assert!(admit(&CAPACITY, &reserved, &limits(1, 1, 1), DISK).unwrap_err().contains("may hold 3"));
    }

    proptest! {
        /// Invariant 27: whatever comes, what was admitted never adds up to more than there is. Red when the shortage
        /// is not looked at, or the number of sessions.
        #[test]
        fn capacity_is_never_exceeded(wishes in prop::collection::vec((1u32..1200, 1u64..2 << 30, 1u64..4 << 30), 0..20)) {
            let mut reserved = Reserved::default();
            for (cpu, memory, disk) in wishes {
                let want = limits(cpu, memory, disk);
                if admit(&CAPACITY, &reserved, &want, DISK).is_ok() {
                    reserved.add(&want);
                }
                prop_assert!(reserved.sessions <= CAPACITY.max_sessions);
                prop_assert!(reserved.cpu_millis <= u64::from(CAPACITY.cpu_millis));
                prop_assert!(reserved.memory_bytes <= CAPACITY.memory_bytes);
                prop_assert!(reserved.disk_bytes <= CAPACITY.disk_bytes);
            }
        }
    }
}
