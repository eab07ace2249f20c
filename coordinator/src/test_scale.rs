//! How much a long test does: `make night` sets `BERTH_TEST_SCALE`, a factor on the counts.

use proptest::test_runner::Config;

/// proptest's settings with `cases` times the scale.
pub fn proptests(cases: u32) -> Config {
    let scale = std::env::var("BERTH_TEST_SCALE").unwrap_or_default();
    Config { cases: scaled(cases, &scale), failure_persistence: None, ..Config::default() }
}

/// Unset or empty is 1. A scale that means nothing must not look like a long night.
fn scaled(cases: u32, scale: &str) -> u32 {
    let factor = match scale {
        "" => 1,
        text => text.parse().ok().filter(|n| *n > 0).expect("BERTH_TEST_SCALE is a number of at least 1"),
    };
    cases.saturating_mul(factor)
}

#[test]
fn the_scale_is_a_factor() {
    assert_eq!([scaled(24, ""), scaled(24, "1"), scaled(24, "20")], [24, 24, 480]);
    assert!(std::panic::catch_unwind(|| scaled(24, "much")).is_err());
    assert!(std::panic::catch_unwind(|| scaled(24, "0")).is_err());
    let set = std::env::var("BERTH_TEST_SCALE").unwrap_or_default();
    assert_eq!(proptests(3).cases, scaled(3, &set));
}
