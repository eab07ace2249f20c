//! Berth for MCP clients: a computer for each of them, as tools.
//!
//! The wire, the versions of the protocol and the order of a conversation are `rmcp`'s, the official SDK. What is ours:
//!
//! - [`tool`]: what a tool is: its schemas, its hints to the client, how it is called and answers. One table, made once.
//! - [`tools`]: the tools, a file for each group.
//! - [`sessions`]: in which session a call happens. A client has one of its own, made on its first use and ended with it.
//! - [`conversations`]: those over HTTP, and what of them outlives this process.
//! - [`resources`]: files and outputs of tasks, for clients that read them without a tool.
//! - [`output`]: what a program said, bounded and made safe to show.
//! - [`room`]: how large an answer may be.
//! - [`reached`]: by what name a client reached us, for URLs.
//! - [`images`]: what a program drew.
//! - [`venv`]: the Python environment that each session has.
//! - [`problem`]: what went wrong, with what to do about it in words that make sense to who has only these tools.
//! - [`stdio`]: a client that started us as its child, and talks over our standard input and output.
//! - [`http`]: clients that come over HTTP.
//!
//! Two rules. A tool that fails answers, as a tool, with what to do next: a protocol error is shown to no model. And
//! nothing that a program in a sandbox does (100 MB of output, control characters, files that are no text) makes an
//! answer that is unbounded or no JSON.

mod arguments;
mod conversations;
pub mod http;
mod images;
mod media;
mod output;
mod part;
mod problem;
mod progress;
mod reached;
mod resources;
mod room;
mod server;
mod sessions;
pub mod stdio;
mod tool;
mod tools;
mod venv;

use crate::text;

pub use problem::Problem;
pub use server::Server;
pub use sessions::{Connect, IDLE_TIMEOUT, Own, Sessions, TTL, connect};
