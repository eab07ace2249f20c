//! Waiting for a call that may take minutes: a spinner where a person looks, and an interrupt ends it.

use std::time::Duration;

use berth_client::Error;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{failure::Failure, signals::Interrupts};

/// Waits for a call. `None`: the user would not wait any longer.
pub async fn for_call<T>(
    what: String,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<Option<T>, Failure> {
    let mut interrupts = Interrupts::new()?;
    let bar = spinner(what);
    let answer = tokio::select! {
        answer = call => Some(answer),
        _ = interrupts.recv() => None,
    };
    bar.finish_and_clear();
    Ok(answer.transpose()?)
}

fn spinner(what: String) -> ProgressBar {
    let target =
        if super::stderr_is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
    let bar = ProgressBar::with_draw_target(None, target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        .with_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
