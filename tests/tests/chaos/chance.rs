//! Chance from a seed, and what the environment says of a run's length.

use std::time::Duration;

/// xorshift: the same seed draws the same on every machine.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        let mut chance = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first draws of small seeds are much alike.
        for _ in 0..8 {
            chance.draw(2);
        }
        chance
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.draw(length as u64) as usize
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.draw(to - from))
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// `BERTH_CHAOS_SEED`, or one of this process' own.
pub fn seed() -> u64 {
    number("BERTH_CHAOS_SEED", std::process::id().into())
}
