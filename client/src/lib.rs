//! The Rust client of Berth: sandboxes for agents, on machines you own.
//!
//! A [`Client`] talks to a coordinator. It opens a [`Session`]: a workspace and a
//! sandbox. In it run tasks, each a [`Command`], and there are [`Files`].
//!
//! ```
//! use std::time::Duration;
//! use berth_client::{Client, Command, CreateOptions};
//!
//! # async fn example() -> Result<(), berth_client::Error> {
//! let client = Client::from_env().await?;
//! let options = CreateOptions::new().memory_bytes(256 << 20).label("made-by", "doc example").ttl(Duration::from_secs(300));
//! let session = client.create_session(options).await?;
//!
//! // A program with arguments; its output is collected.
//! let output = session.run(Command::new("python3").arg("-c").arg("print(6 * 7)")).await?;
//! assert!(output.success());
//! assert_eq!(output.stdout_text(), "42\n");
//!
//! // Files, and a shell line that reads one.
//! session.files().write("notes.txt", "b\na\n").await?;
//! let output = session.run(Command::shell("sort notes.txt").timeout(Duration::from_secs(10))).await?;
//! assert_eq!(output.stdout_text(), "a\nb\n");
//!
//! session.delete().await?;
//! # Ok(())
//! # }
//! # // Runs for real where BERTH_ADDRESS and BERTH_TOKEN name a coordinator; elsewhere it starts nothing.
//! # if std::env::var_os("BERTH_ADDRESS").is_some() && std::env::var_os("BERTH_TOKEN").is_some() {
//! #     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! #     runtime.block_on(example()).unwrap();
//! # }
//! ```
//!
//! # What is kept for you
//! - Every unary call has a deadline. A call that is safe to repeat is repeated, briefly,
//!   when the connection breaks; one that is not gets an id by which the server knows it.
//! - A stream of output that breaks is resumed at the byte where it broke: no byte is lost
//!   and none comes twice ([`TaskStream`]).
//! - An upload that fails halfway leaves the file as it was ([`Files`]).
//! - An [`Error`] says why (a code and a [`Reason`] for programs) and what to do (a hint).
//!
//! A session lives until it is deleted or its TTL is over: dropping a [`Session`] ends nothing.

mod admin;
mod backoff;
mod command;
mod connect;
mod error;
mod files;
pub mod local;
pub mod model;
mod options;
mod session;
#[cfg(test)]
mod stub;
mod task;
mod upload;
mod watch;
#[cfg(test)]
mod watch_tests;

pub use admin::EventStream;
pub use berth_proto::{SessionId, TaskId, WorkerId, domain, transport::CHUNK};
pub use command::{Command, Output};
pub use connect::{Client, ConnectOptions};
pub use domain::{EndReason, Labels, LimitsPatch, Outcome, PtySize, SessionState, Usage};
pub use error::{Code, Error, Reason};
pub use files::{Files, WriteOptions};
pub use options::{CreateOptions, ListOptions, UpdateOptions};
pub use session::Session;
pub use task::TaskHandle;
pub use watch::{Std, TaskEvent, TaskStream, WatchOptions};

/// What this library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
