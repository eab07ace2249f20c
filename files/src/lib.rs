//! The parts of `FileService` that need no disk: which lines and names are meant by a search, and what a tar archive is.
//!
//! Apart from the agent, because a fake sandbox serves the same calls from memory; and pure, because both read what
//! nobody vouches for: patterns of clients, text of tasks, archives of anybody.

pub mod search;
pub mod tar;
