//! What a session takes, as it is told.

use std::time::{Duration, SystemTime};

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::Error;

/// One reading of what a session takes: its tasks and contexts together. `None`: it can't be counted where the session is, or
/// has no limit there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionUsage {
    /// By the clock of the session's worker.
    #[serde(serialize_with = "json::time")]
    pub read_at: SystemTime,
    /// CPU time since its sandbox was started; a placement begins at zero.
    #[serde(rename = "cpu_seconds", serialize_with = "json::opt_seconds")]
    pub cpu: Option<Duration>,
    /// 1000 is one CPU.
    pub cpu_limit_millis: Option<u64>,
    /// With page cache, and with files in memory.
    pub memory_bytes: Option<u64>,
    /// Of these: page cache that the kernel takes back when memory is short.
    pub memory_cache_bytes: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    /// Processes and their threads, with up to two that are kept ready for the next tasks.
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    /// The session's files.
    pub disk_bytes: Option<u64>,
    pub disk_limit_bytes: Option<u64>,
    pub inodes: Option<u64>,
    pub inodes_limit: Option<u64>,
    /// Tasks that run.
    pub tasks: u32,
    pub tasks_limit: u32,
    /// Added up over the processes that run, since there are no cgroups for it: near the truth, and no more.
    pub summed: bool,
}

impl TryFrom<v1::SessionUsage> for SessionUsage {
    type Error = Error;

    fn try_from(wire: v1::SessionUsage) -> Result<Self, Error> {
        Ok(Self {
            read_at: super::time(wire.read_at)?
                .ok_or_else(|| Error::strange("a reading without its time"))?,
            cpu: wire.cpu_micros.map(Duration::from_micros),
            cpu_limit_millis: wire.cpu_limit_millis,
            memory_bytes: wire.memory_bytes,
            memory_cache_bytes: wire.memory_cache_bytes,
            memory_peak_bytes: wire.memory_peak_bytes,
            memory_limit_bytes: wire.memory_limit_bytes,
            pids: wire.pids,
            pids_limit: wire.pids_limit,
            disk_bytes: wire.disk_bytes,
            disk_limit_bytes: wire.disk_limit_bytes,
            inodes: wire.inodes,
            inodes_limit: wire.inodes_limit,
            tasks: wire.tasks,
            tasks_limit: wire.tasks_limit,
            summed: wire.summed,
        })
    }
}
