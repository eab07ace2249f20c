//! Real processes on one machine: a coordinator, workers, sandboxes, and the ways in that
//! users have. Every test ends with [`berth_tests::Cluster::stop`], which asserts that
//! nothing is left on the machine.

mod admin;
mod adoption;
mod as_json;
mod audit;
mod background;
mod checkpoint_commands;
mod client_example;
mod clocks;
mod command_line;
mod commands;
mod coordinator;
mod copying;
mod disk;
mod doubt;
mod egress;
mod engine;
mod fence;
mod heartbeats;
mod identity;
mod isolation;
mod leave;
mod older;
mod parking;
mod placement;
mod putting_back;
mod recovery;
mod rolling;
mod s3;
mod sessions;
mod start;
mod store;
mod tls;
mod util;
mod worker;
