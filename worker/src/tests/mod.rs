//! The worker against a scripted coordinator, over loopback, with fake sandboxes.

mod fake;
mod life;
mod link;
mod restart;
mod script;
mod settings;
mod stop;
