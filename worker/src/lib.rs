//! The worker: owns the sandboxes of one machine and serves their sessions.
//!
//! It dials the coordinator and nothing listens by default. It has the last word on what it
//! takes, and owns the truth about what it holds: the coordinator's view is rebuilt from its Hello.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what it is told |
//! | [`credential`] | what it shows to the coordinator |
//! | [`worker`] | start, status, shutdown |
//! | [`link`] | to the coordinator: attach, heartbeats, reports, data connections |
//! | [`sessions`] | the sessions it holds |
//! | [`backends`], [`sandbox`] | how sessions are kept apart |
//! | [`egress`] | what sessions may reach, and the proxy through which they do |
//! | [`health`] | how the machine is, and whether a canary lives |
//! | [`metrics`] | what it counts and measures |
//! | [`workspace`], [`state`] | what is on the disk |
//! | [`orphans`] | what was left by a worker that is gone |
#![allow(clippy::module_inception)]

#[macro_use]
pub mod weaken;

pub mod backends;
pub mod checkpoint;
pub mod config;
pub mod credential;
pub mod egress;
pub mod health;
pub mod link;
pub mod metrics;
pub mod orphans;
pub mod sandbox;
pub mod sessions;
pub mod state;
pub mod worker;
pub mod workspace;

#[cfg(test)]
mod tests;

pub use backends::preflight;
pub use config::{CapacityOverride, Config, StartError};
pub use worker::{Running, Status, Worker};
pub use workspace::store;
