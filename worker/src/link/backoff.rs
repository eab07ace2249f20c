//! How long to wait before the next try: doubling from 100 ms to 5 s, with jitter, so that a fleet
//! whose coordinator restarts does not come back in one instant.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);
/// What held for this long was good: the next wait is short again.
const GOOD: Duration = Duration::from_secs(1);

/// The waits of one thing that is tried for ever.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// What was tried worked, and held for this long.
    pub fn lived(&mut self, time: Duration) {
        if time >= GOOD {
            self.tries = 0;
        }
    }

    /// The next wait: half of the step for sure, the other half by chance.
    fn next(&mut self, chance: f64) -> Duration {
        let step = FIRST.saturating_mul(1 << self.tries.min(16)).min(LAST);
        self.tries = self.tries.saturating_add(1);
        step.mul_f64(0.5 + 0.5 * chance)
    }

    pub async fn wait(&mut self) {
        let wait = self.next(berth_proto::world::chance());
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_begin_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.next(1.0).as_millis() as u64).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.next(0.0), Duration::from_millis(2500));
        backoff.lived(Duration::from_millis(10));
        assert_eq!(backoff.next(1.0), LAST);
        backoff.lived(Duration::from_secs(2));
        assert_eq!(backoff.next(1.0), FIRST);
    }
}
