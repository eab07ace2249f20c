//! The contract that every part of Berth shares: the protocol buffers, the
//! domain vocabulary with its one conversion from the wire, the errors, the
//! transport settings, and the relay that makes the data plane look the same
//! at every hop.
//!
//! Nothing here knows what a coordinator, a worker or an agent does.

pub mod agent_config;
pub mod archive;
pub mod convert;
pub mod domain;
pub mod egress;
pub mod error;
pub mod ids;
pub mod media;
pub mod redact;
pub mod relay;
pub mod secret;
pub mod spawn;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub mod system_calls;
pub mod trace;
pub mod transport;
pub mod world;

/// Generated from `proto/berth/v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("berth.v1");
}

/// All files of the contract, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Version of this build, told in every hello.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub use error::{Code, Error, Reason};
pub use ids::{ContextId, Epoch, Incarnation, SessionId, TaskId, TokenId, WorkerId};
