//! Schedules sessions onto workers and routes every call to them.
//!
//! ```text
//! rpc ──▶ driver ──▶ fleet (pure: events in, effects out) ──▶ placement (pure)
//!  │         │
//!  │         └─────▶ store (SQLite behind a trait)
//!  ├──▶ view, links, events: what the driver publishes, read without asking it
//!  └──▶ identity: whose call it is
//! ```
//!
//! A control call becomes an event for the [`driver`], which owns the [`fleet`]; a data call
//! finds its session in the driver's view and goes straight on to the worker. Start with
//! [`fleet`]: the rules are there, and nowhere else.

pub mod artifacts;
pub mod audit;
pub mod auth;
pub mod checkpoints;
mod config;
pub mod driver;
pub mod fleet;
pub mod identity;
mod listener;
pub mod metrics;
pub mod placement;
mod port_owner;
pub mod restore;
mod rpc;
mod secrets;
mod start;
pub mod store;
pub mod streams;
pub mod templates;
pub mod tenant;
#[cfg(test)]
mod test_scale;
pub mod wire;

pub use config::{Config, Problem, StartError};
pub use port_owner::port_owner;
pub use start::{Coordinator, Running, Storage};
