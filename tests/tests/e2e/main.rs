//! Real processes on one machine: a coordinator, workers, sandboxes, and the ways in that
//! users have. Every test ends with [`berth_tests::Cluster::stop`], which asserts that
//! nothing is left on the machine.

mod admin;
mod commands;
mod isolation;
mod placement;
mod sessions;
mod start;
mod util;
