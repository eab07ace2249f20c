//! What a process gets from outside: sockets, the wall clock, the clock that goes on in a suspend, chance, and threads
//! for work that blocks.
//!
//! All of Berth takes these from here, so that a simulation can give them instead: built with `--cfg berth_sim` they
//! come from turmoil and from a seed ([`sim`]), and the same seed gives the same run. That cfg is for `tests/sim` alone;
//! every other build has [`real`], which adds nothing.

#[cfg(not(berth_sim))]
mod real;
#[cfg(berth_sim)]
mod sim;

#[cfg(not(berth_sim))]
pub use real::*;
#[cfg(berth_sim)]
pub use sim::*;

/// A number that nobody can foretell (but a simulation).
pub fn random_u64() -> u64 {
    u64::from_le_bytes(random_bytes())
}

/// From 0 to below 1, each as likely.
pub fn chance() -> f64 {
    // 53 bits are what the type holds exactly.
    (random_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_stays_within_its_bounds_and_is_no_constant() {
        let drawn: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(drawn.iter().all(|c| (0.0..1.0).contains(c)));
        assert!(drawn.iter().any(|c| *c < 0.5) && drawn.iter().any(|c| *c >= 0.5));
    }
}
