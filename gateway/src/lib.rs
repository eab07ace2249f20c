//! Other protocols over Berth's own: the Model Context Protocol ([`mcp`]), over standard input and output and, with all
//! else that is served there, over HTTP ([`http`]): that of E2B's SDKs ([`e2b`]), plain JSON, and the dashboard.
//!
//! The gateway is a thin adapter. It knows only the client library, so whatever it may do, a client with the same
//! token may do, and nothing more: who may, where, and how much is for the coordinator and the worker to say.

mod dashboard;
pub mod e2b;
pub mod http;
pub mod mcp;
pub mod metrics;
mod ports;
mod rest;
mod text;
mod told;
