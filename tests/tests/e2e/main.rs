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
mod coding_agent;
mod command_line;
mod commands;
mod coordinator;
mod copying;
mod disk;
mod doubt;
mod e2b;
mod egress;
mod engine;
mod fence;
mod gvisor;
mod heartbeats;
mod identity;
mod interpreter;
mod isolation;
mod leave;
mod mcp;
mod older;
mod parking;
mod placement;
mod ports;
mod putting_back;
mod python_client;
mod recovery;
mod rest;
mod rolling;
mod s3;
mod secrets;
mod sessions;
mod start;
mod store;
mod tls;
mod util;
mod watching;
mod worker;
