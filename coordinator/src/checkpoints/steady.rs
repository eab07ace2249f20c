//! The time by which checkpoints and their pieces are kept.
//!
//! "For a week" outlives the process, so it has to be counted in times of day; and the time of day may jump: by an hour
//! that was set wrong, by years on a machine without a battery. A jump must not end a checkpoint. So time here begins
//! with the time of day and then follows the monotonic clock; and where it stood is noted in the catalog, once a minute,
//! so that the next process knows:
//! - it never stands before that, though the clock was put back;
//! - nor more than a day behind it, though a year seems to have passed. (What passed while nobody looked can't be told
//!   from a jump. A coordinator that was down for longer keeps its checkpoints for longer, which does no harm.)
//!
//! For people the time of day is shown, as it was.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// A time without a coordinator counts for this long at most.
const DOWN_AT_MOST: Duration = Duration::from_secs(86_400);

/// See the module.
#[derive(Clone)]
pub struct Steady {
    base: SystemTime,
    since: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Steady {
    /// `noted`: where an earlier process stood last.
    pub fn start(wall: SystemTime, noted: Option<SystemTime>) -> Self {
        let begun = Instant::now();
        Self::with(wall, noted, Arc::new(move || begun.elapsed()))
    }

    /// The same with another clock: how much time has passed since this call.
    pub fn with(
        wall: SystemTime,
        noted: Option<SystemTime>,
        since: Arc<dyn Fn() -> Duration + Send + Sync>,
    ) -> Self {
        let base = noted.map_or(wall, |noted| wall.clamp(noted, noted + DOWN_AT_MOST));
        if base != wall {
            tracing::warn!(
                "the time of day has jumped, or nobody looked for more than a day: checkpoints are kept as \
                if a day had passed at most"
            );
        }
        Self { base, since }
    }

    pub fn now(&self) -> SystemTime {
        self.base + (self.since)()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Red when it begins with the time of day as it finds it.
    #[test]
    fn a_jump_between_two_processes_is_no_time_that_passed() {
        let from = |wall, noted| Steady::with(wall, noted, Arc::new(|| Duration::from_secs(5))).now();
        let (noted, hour, day) = (1_000_000_000, 3600, 86_400);
        assert_eq!(from(at(noted), None), at(noted + 5));
        // Down for an hour.
        assert_eq!(from(at(noted + hour), Some(at(noted))), at(noted + hour + 5));
        // Put back by an hour, or to 1970.
        assert_eq!(from(at(noted - hour), Some(at(noted))), at(noted + 5));
        assert_eq!(from(at(0), Some(at(noted))), at(noted + 5));
        // Years later.
        assert_eq!(from(at(2 * noted), Some(at(noted))), at(noted + day + 5));
    }
}
