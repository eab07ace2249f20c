//! The file systems of a sandbox that live in memory: how large each is, and how many files it takes.
//! One page for both backends, since what is in them is charged to whoever wrote it: tasks to the
//! session's limit, and uploads to the agent's own share, which must therefore be able to hold all of
//! them (see [`MemoryFiles::charge`]).
//!
//! The number of files is bounded too: an empty file has no page, so a size alone lets a million of
//! them eat kernel memory.

use berth_proto::domain::Limits;
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
/// `/run/secrets`: what the secrets of some tasks at a time take ([`berth_proto::secret`] bounds one task's).
pub const SECRETS: u64 = 4 * MIB;
/// Small sessions get this much of each all the same.
const LEAST: u64 = 4 * MIB;
/// One file for so many bytes of size.
const BYTES_PER_FILE: u64 = 8 << 10;
/// What a file costs the kernel beside its pages: its inode, its name, and some room.
const FILE_COST: u64 = 2 << 10;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFiles {
    /// `/tmp`: half of the session's memory.
    pub tmp: u64,
    /// `/var/tmp`, where it is not a link to `/tmp`: an eighth.
    pub var_tmp: u64,
    /// `/dev/shm`: a quarter.
    pub shm: u64,
}

impl MemoryFiles {
    pub fn of(limits: &Limits) -> Self {
        let part = |divisor: u64, most: u64| (limits.memory_bytes / divisor).clamp(LEAST, most);
        Self { tmp: part(2, 1024 * MIB), var_tmp: part(8, 256 * MIB), shm: part(4, 256 * MIB) }
    }

    /// The least that there is, for a sandbox in which nothing runs.
    pub const SMALLEST: Self = Self { tmp: LEAST, var_tmp: LEAST, shm: LEAST };

    /// All that can be put into them, with what the files themselves cost.
    pub fn charge(&self) -> u64 {
        [self.tmp, self.var_tmp, self.shm, SECRETS].into_iter().map(charge).sum()
    }
}

/// Most files in a file system of this size. (`nr_inodes=0` would mean "no limit".)
pub fn files(size: u64) -> u64 {
    (size / BYTES_PER_FILE).max(64)
}

/// Memory that a file system of this size can take, its files' own cost included.
pub fn charge(size: u64) -> u64 {
    size + files(size) * FILE_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(memory_bytes: u64) -> MemoryFiles {
        MemoryFiles::of(&Limits { cpu_millis: 1, memory_bytes, disk_bytes: 1, pids: 1 })
    }

    #[test]
    fn they_are_parts_of_the_sessions_memory() {
        assert_eq!(of(1 << 30), MemoryFiles { tmp: 512 * MIB, var_tmp: 128 * MIB, shm: 256 * MIB });
        assert_eq!(of(1 << 20), MemoryFiles::SMALLEST);
        assert_eq!(of(1 << 40), MemoryFiles { tmp: 1024 * MIB, var_tmp: 256 * MIB, shm: 256 * MIB });
        // A session can fill none of them beyond its own limit, but for the very small ones.
        let size = |files: MemoryFiles| files.tmp + files.var_tmp + files.shm;
        assert!(size(of(64 * MIB)) < 64 * MIB);
    }

    #[test]
    fn the_number_of_files_is_always_bounded() {
        for size in [0, 1, LEAST, 1 << 40] {
            assert!(files(size) > 0, "no limit for {size}");
        }
        assert_eq!(files(512 * MIB), 65_536);
        assert!(of(1 << 30).charge() > 896 * MIB);
    }
}
