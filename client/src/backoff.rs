//! Waits that double, with jitter, so that a fleet of clients does not come back in step.

use std::time::Duration;

use berth_proto::world;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// Between half and all of the current step; the next step is twice as long, at most 2 s.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.0;
        self.0 = (step * 2).min(LONGEST);
        step.mul_f64(0.5 + 0.5 * world::chance())
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_and_are_bounded() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[11] >= LONGEST / 2 && waits[11] <= LONGEST);
    }
}
