//! A whole cluster in one thread, on simulated time and a simulated network, from one seed.
//!
//! The coordinator, the workers and the client library are the real ones, with their real gRPC services; sandboxes are
//! the `fake` backend's. turmoil is the network and the clock; chance, ids and the wall clock come from the seed
//! ([`berth_proto::world`]). A [`schedule`](faults) of crashes, partitions and lost machines is drawn from the seed as
//! well, and a [`model`] of what was promised looks on. The same seed gives the same run: the hash of its trace says so.
//!
//! It builds with `--cfg berth_sim --cfg tokio_unstable` in a target directory of its own: `make sim`.
#![cfg(berth_sim)]

mod client;
mod draw;
mod faults;
mod hosts;
mod model;
mod run;
mod store;

pub use faults::schedule;
pub use run::{Report, run};
