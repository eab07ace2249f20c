//! A line of the log that others can cause as often as they like, told at most every so often.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(60);

/// Counts what is not told.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Whether to tell it now: then with how many there were since the last time, this one included.
    pub fn tell(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += 1;
        let now = Instant::now();
        if state.0.is_some_and(|last| now < last + EVERY) {
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line_a_minute_that_counts() {
        let seldom = Seldom::new();
        assert_eq!(seldom.tell(), Some(1));
        assert!((0..1000).all(|_| seldom.tell().is_none()));
        tokio::time::advance(EVERY).await;
        assert_eq!(seldom.tell(), Some(1001));
    }
}
