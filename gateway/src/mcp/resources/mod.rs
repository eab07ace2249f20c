//! What there is to read, for clients that show it to people or hand it to a model by themselves: files and what tasks wrote.
//!
//! A resource is what the same client's tools could read with the same token, and no more: each name is resolved by the
//! coordinator as a tool's `session` is.

mod changes;
mod listing;
mod read;
mod seen;
mod uri;
mod watches;

pub use changes::{Changes, MOST as MOST_SUBSCRIBED};
pub use listing::{list, templates};
pub use read::read;
pub use uri::Uri;
