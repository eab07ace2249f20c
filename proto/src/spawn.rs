//! The one way to start a background task: it has a name, its panic is an error
//! in the log and not a silence, and its end by an error is told.
//!
//! clippy bans `tokio::spawn` elsewhere.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe};

use futures::FutureExt;
use tokio::task::JoinHandle;
use tracing::{Instrument, error, error_span};

use crate::trace;

/// Runs `future` in the background under `name`, for the request that it is started for ([`trace`]).
#[allow(clippy::disallowed_methods)]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let guarded = async move {
        if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
            error!(task = name, panic = panic_text(&*panic), "a background task panicked");
        }
    };
    tokio::spawn(trace::inherit(guarded.instrument(error_span!("background", task = name))))
}

/// The same for a future that may fail: the error goes to the log.
pub fn spawn_fallible<F, E>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display,
{
    spawn(name, async move {
        if let Err(error) = future.await {
            error!(task = name, %error, "a background task failed");
        }
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}
