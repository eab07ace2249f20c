//! Real processes on one machine: a coordinator, workers, sandboxes, and the ways in that
//! users have. Every test ends with [`berth_tests::Cluster::stop`], which asserts that
//! nothing is left on the machine.

mod admin;
mod background;
mod checkpoint_commands;
mod client_example;
mod command_line;
mod commands;
mod coordinator;
mod copying;
mod isolation;
mod placement;
mod recovery;
mod sessions;
mod start;
mod store;
mod util;
mod worker;
