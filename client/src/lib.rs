//! The Rust client of Berth: sandboxes for agents, on machines you own.
//!
//! A [`Client`] talks to a coordinator. It opens a [`Session`]: a workspace and a
//! sandbox. In it run tasks, each a [`Command`], and there are [`Files`]; servers in it are reached by their ports
//! ([`Session::connect_port`]). The suite runs this
//! very example (`client/examples/quickstart.rs`) against a fleet:
//!
//! ```no_run
#![doc = include_str!("../examples/quickstart.rs")]
//! ```
//!
//! # What is kept for you
//! - Every unary call has a deadline. A call that is safe to repeat is repeated, briefly,
//!   when the connection breaks; one that is not gets an id by which the server knows it. A task is so started at most
//!   once, also where the session went back to a checkpoint meanwhile ([`Command::retry_after_recovery`]).
//! - A stream of output that breaks is resumed at the byte where it broke: no byte is lost
//!   and none comes twice ([`TaskStream`]).
//! - Code that is executed in a [`Context`] runs once, and its stream is resumed where it broke
//!   ([`Session::interpreter`]).
//! - What takes long is waited for: a checkpoint ([`Session::checkpoint`]), and sessions made of one
//!   ([`Client::restore`], [`Session::fork`]).
//! - An upload that fails halfway leaves the file as it was ([`Files`]).
//! - An [`Error`] says why (a code and a [`Reason`] for programs) and what to do (a hint).
//!
//! A session lives until it is deleted or its TTL is over: dropping a [`Session`] ends nothing.

mod admin;
mod archive;
mod artifact;
mod audit;
mod backoff;
mod backup;
mod changes;
mod checkpoint;
mod command;
mod connect;
mod error;
mod files;
mod identity;
mod interpreter;
pub mod local;
pub mod model;
mod options;
mod port;
mod search;
mod secret;
mod session;
mod start;
#[cfg(test)]
mod stub;
mod task;
mod upload;
mod usage;
mod watch;
#[cfg(test)]
mod watch_tests;

pub use admin::EventStream;
pub use archive::{PackOptions, PackReader};
pub use artifact::ArtifactReader;
pub use audit::{AuditCheck, AuditFilter, AuditRecord};
pub use backup::{Backup, BackupPart};
/// Label that names a session. A name is had by one live session of a tenant at a time.
pub const NAME_LABEL: &str = "name";

pub use berth_proto::{
    ContextId, SessionId, TaskId, WorkerId, domain,
    trace::{NoTraceContext, TraceContext},
    transport::CHUNK,
};
pub use changes::{ChangeEvent, ChangeOptions, ChangeStream};
pub use checkpoint::CheckpointOptions;
pub use command::{Command, Output};
pub use connect::{Client, ConnectOptions};
pub use domain::{
    CheckpointPolicy, Egress, EndReason, Labels, LimitsPatch, OnWorkerLoss, Outcome, PtySize, SessionState,
    Usage,
};
pub use error::{Code, Error, Reason};
pub use files::{FileReader, Files, WriteOptions};
pub use identity::TokenOptions;
pub use interpreter::{
    Context, ContextOptions, Execution, ExecutionEvent, ExecutionStream, Interpreter, Snippet,
};
pub use options::{CreateOptions, ListOptions, UpdateOptions};
pub use port::PortStream;
pub use search::{SearchOptions, SearchStream};
pub use session::Session;
pub use task::TaskHandle;
pub use watch::{Std, TaskEvent, TaskStream, WatchOptions};

/// What this library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
