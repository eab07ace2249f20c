//! Starting a sandbox and taking it down: what sessions and canaries share.
//!
//! The backend's `start` is never cancelled half-way: it runs in a task of its own, and when its
//! caller has given up by the time that it returns, that task takes down what came of it.

use std::{
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    Code, Error, Reason, SessionId,
    domain::{Limits, TemplateSpec},
    error::reason_of,
    spawn::spawn,
    v1::{self, agent_service_client::AgentServiceClient},
};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tonic::{Status, transport::Channel};

use crate::{
    sandbox::{Identity, Running, SandboxBackend, SandboxSpec, SessionDirs},
    workspace::Workspaces,
};

/// The first pause between two tries to reach an agent. A start is to cost 30 ms in all.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_millis(50);
/// One try may take this long: an agent that took the connection may just be slow.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// A backend has this long to remove a sandbox before it is asked again.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);
const REMOVE_RETRY_MAX: Duration = Duration::from_secs(30);
/// How much of what an agent printed goes into a message.
const LOG_TAIL: u64 = 1024;

/// What to start.
pub struct Launch {
    pub backend: Arc<dyn SandboxBackend>,
    pub workspaces: Workspaces,
    pub session: SessionId,
    pub template: TemplateSpec,
    pub limits: Limits,
    pub dirs: SessionDirs,
}

/// A start that failed. When `late` is set, the backend is still at it, and the directories are in
/// use until that task is over.
pub struct Failed {
    pub error: Error,
    pub late: Option<JoinHandle<()>>,
}

impl Launch {
    /// Has the backend start the sandbox, until the deadline.
    pub async fn start(self, deadline: Instant) -> Result<Running, Failed> {
        let Self { backend, workspaces, session, template, limits, dirs } = self;
        let (sender, receiver) = oneshot::channel();
        let starting = spawn("sandbox-start", async move {
            let files_in_memory = workspaces.store().memory(&limits);
            let spec = SandboxSpec { session, template, limits, files_in_memory, dirs };
            let result = backend.start(&spec).await;
            if let Err(Ok(running)) = sender.send(result) {
                tracing::warn!(session.id = %session, "a sandbox started after its deadline: it is removed");
                take_down(&*backend, &workspaces, session, Some(&running.identity)).await;
            }
        });
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(Ok(result)) => result.map_err(|error| Failed { error, late: None }),
            Ok(Err(_)) => Err(Failed { error: Error::internal("the backend's start broke off"), late: None }),
            Err(_) => {
                Err(Failed { error: too_late("the sandbox did not start in time"), late: Some(starting) })
            }
        }
    }
}

fn too_late(message: impl Into<String>) -> Error {
    Error::new(Code::DeadlineExceeded, Reason::StartTimeout, message)
}

/// Asks the agent until it takes its configuration. `configure` is called for each try, as it holds
/// the time that is left.
pub async fn await_agent(
    running: &Running,
    dirs: &SessionDirs,
    configure: impl Fn() -> v1::ConfigureRequest,
    deadline: Instant,
) -> Result<v1::ConfigureResponse, Error> {
    let mut agent = AgentServiceClient::new(running.agent.clone());
    let mut pause = FIRST_RETRY;
    loop {
        let until = deadline.min(Instant::now() + TRY_TIMEOUT);
        let attempt = tokio::select! {
            biased;
            () = running.gone.cancelled() => {
                let message = with_log("the sandbox died before its agent answered", dirs).await;
                return Err(Error::unavailable(Reason::SandboxFailed, message));
            }
            attempt = tokio::time::timeout_at(until, agent.configure(configure())) => attempt,
        };
        let last = match attempt {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) if not_there_yet(&status) => status.message().to_owned(),
            Ok(Err(status)) => {
                return Err(Error::unavailable(
                    Reason::SandboxFailed,
                    format!("the agent refused its configuration: {}", status.message()),
                ));
            }
            Err(_) => "it took the call and did not answer".to_owned(),
        };
        if Instant::now() + pause >= deadline {
            let message = with_log(&format!("the agent did not answer in time: {last}"), dirs).await;
            return Err(too_late(message));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(LAST_RETRY);
    }
}

/// The connection could not be made, or broke: not the agent's own word.
fn not_there_yet(status: &Status) -> bool {
    reason_of(status).is_none()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// Asks the agent to end all tasks and itself. `false`: it did not within the time.
pub async fn shut_down(agent: Channel, grace: Duration) -> bool {
    let mut agent = AgentServiceClient::new(agent);
    let request = v1::ShutdownRequest { grace: Some(berth_proto::convert::duration_out(grace)) };
    matches!(tokio::time::timeout(grace + TRY_TIMEOUT, agent.shutdown(request)).await, Ok(Ok(_)))
}

/// Removes a sandbox and its directories, however often it takes. Only the crash of this process, or
/// its end, interrupts it; the next process finds what is left.
pub async fn take_down(
    backend: &dyn SandboxBackend,
    workspaces: &Workspaces,
    session: SessionId,
    identity: Option<&Identity>,
) {
    if let Some(identity) = identity {
        insist(session, "the sandbox", || async {
            match tokio::time::timeout(REMOVE_TIMEOUT, backend.remove(identity)).await {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("it took too long".to_owned()),
            }
        })
        .await;
    }
    remove_dirs(workspaces, session).await;
}

/// Removes a session's directories, however often it takes.
pub async fn remove_dirs(workspaces: &Workspaces, session: SessionId) {
    insist(session, "its directories", || async {
        workspaces.remove(session).await.map_err(|error| error.to_string())
    })
    .await;
}

async fn insist<F: Future<Output = Result<(), String>>>(
    session: SessionId,
    what: &str,
    work: impl Fn() -> F,
) {
    let mut pause = Duration::from_millis(100);
    while let Err(error) = work().await {
        tracing::warn!(session.id = %session, error, "{what} could not be removed: will try again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REMOVE_RETRY_MAX);
    }
}

/// A message, with the last that the agent printed.
pub async fn with_log(message: &str, dirs: &SessionDirs) -> String {
    let path = dirs.agent_log();
    let tail = crate::workspace::blocking(move || {
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).trim().to_owned())
    })
    .await
    .unwrap_or_default();
    if tail.is_empty() { message.to_owned() } else { format!("{message}; its agent's last words: {tail}") }
}
