//! Watches one container and says when it is gone. Asks the engine to tell (its wait call),
//! and believes only what an inspection confirms: a broken connection or a dead engine is
//! not a dead sandbox.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    Docker,
    errors::Error as Bollard,
    models::ContainerState,
    query_parameters::{LogsOptionsBuilder, WaitContainerOptionsBuilder},
};
use futures::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::engine::{CallError, Engine, LOOK, call};

/// Pause after a question that had no answer: doubled up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// What is kept of the agent's own output when it ends: the last lines, and no more bytes than this.
const LAST_LINES: &str = "200";
const LAST_BYTES: usize = 64 << 10;

/// One container's watch.
pub struct Watch {
    pub engine: Arc<Engine>,
    pub container: String,
    /// Gets the agent's last words.
    pub agent_log: PathBuf,
    /// Cancelled once the container does not run any more.
    pub gone: CancellationToken,
    /// Cancelled when we remove it ourselves: its end is no news then.
    pub ending: CancellationToken,
    /// Ends the watch without a verdict.
    pub stop: CancellationToken,
}

/// Watches in the background.
pub fn watch(watch: Watch) {
    berth_proto::spawn::spawn("docker-watch", async move {
        let Watch { engine, container, agent_log, gone, ending, stop } = watch;
        tokio::select! {
            () = stop.cancelled() => {}
            state = ended(&engine, &container) => {
                if !ending.is_cancelled() {
                    report(&engine, &container, state.as_ref(), agent_log).await;
                }
                gone.cancel();
            }
        }
    });
}

/// Returns when the container is known not to run: with its state, or `None` when it is removed.
async fn ended(engine: &Engine, id: &str) -> Option<ContainerState> {
    let mut pause = RETRY.0;
    loop {
        if let Ok(docker) = engine.client().await {
            wait(docker, id).await;
            match running(docker, id).await {
                Ok(Verdict::Running) => pause = RETRY.0,
                Ok(Verdict::Ended(state)) => return Some(*state),
                Ok(Verdict::Removed) => return None,
                Err(error) => tracing::debug!(container = id, %error, "the engine does not say how it is"),
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Blocks until the engine says something about the container's end, true or not.
async fn wait(docker: &Docker, id: &str) {
    let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
    let mut answers = std::pin::pin!(docker.wait_container(id, Some(options)));
    match answers.next().await {
        // An exit code that is not 0 comes as an error.
        None | Some(Ok(_) | Err(Bollard::DockerContainerWaitError { .. })) => {}
        Some(Err(error)) => tracing::debug!(container = id, %error, "waiting for a container broke off"),
    }
}

/// How a container is.
pub enum Verdict {
    Running,
    Ended(Box<ContainerState>),
    Removed,
}

/// Asks how a container is. An error is no verdict.
pub async fn running(docker: &Docker, id: &str) -> Result<Verdict, CallError> {
    match call("look at a container", LOOK, docker.inspect_container(id, None)).await {
        Ok(seen) => Ok(match seen.state {
            Some(state) if state.running == Some(true) => Verdict::Running,
            state => Verdict::Ended(Box::new(state.unwrap_or_default())),
        }),
        Err(CallError::NotFound) => Ok(Verdict::Removed),
        Err(error) => Err(error),
    }
}

/// Leaves the reason where people look for it: one line in the log, the last lines in the session's file.
async fn report(engine: &Engine, id: &str, state: Option<&ContainerState>, agent_log: PathBuf) {
    let Some(state) = state else { return };
    let (code, oom) = (state.exit_code.unwrap_or(-1), state.oom_killed.unwrap_or(false));
    let said = last_words(engine, id).await;
    let last = said.lines().last().unwrap_or_default();
    tracing::info!(container = id, code, oom, last, "a sandbox ended");
    if said.is_empty() {
        return;
    }
    // The directory may be gone already, with its session.
    if let Err(error) = tokio::fs::write(&agent_log, said).await {
        tracing::debug!(%error, file = %agent_log.display(), "the agent's last words could not be kept");
    }
}

async fn last_words(engine: &Engine, id: &str) -> String {
    let Ok(docker) = engine.client().await else { return String::new() };
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(LAST_LINES).build();
    let mut lines = std::pin::pin!(docker.logs(id, Some(options)));
    let mut said = String::new();
    let read = async {
        while let Some(Ok(line)) = lines.next().await {
            said.push_str(&String::from_utf8_lossy(&line.into_bytes()));
            if said.len() > LAST_BYTES {
                break;
            }
        }
    };
    let _ = timeout(LOOK, read).await;
    said
}
