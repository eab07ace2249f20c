//! The canary: a throw-away sandbox in which `true` is run through its agent. It is the one proof
//! that this worker can do its job; a preflight only says that it should.
//!
//! It is no session: it takes no place, has no record on the disk (a crash's rest is removed at the
//! next start), and leaves nothing, however it went.

use std::time::{Duration, SystemTime};

use berth_proto::{
    Error, Reason, SessionId, convert,
    domain::{BackendChoice, Limits, Outcome, TemplateSpec},
    v1::{self, task_service_client::TaskServiceClient},
};
use tokio::time::Instant;

use crate::{
    backends::Backends,
    sandbox::{Running, SessionDirs},
    sessions::launch::{Launch, await_agent, shut_down, take_down},
    workspace::Workspaces,
};

/// Enough for a shell and a little more.
const LIMITS: Limits = Limits { cpu_millis: 500, memory_bytes: 64 << 20, disk_bytes: 8 << 20, pids: 32 };

/// How the last canary fared.
#[derive(Clone, Debug)]
pub struct Report {
    pub at: SystemTime,
    pub when: Instant,
    pub took: Duration,
    /// `Err`: why it failed.
    pub result: Result<(), String>,
}

impl From<&Report> for v1::Canary {
    fn from(report: &Report) -> Self {
        Self {
            ok: report.result.is_ok(),
            at: Some(convert::time_out(report.at)),
            duration: Some(convert::duration_out(report.took)),
            message: report.result.clone().err().unwrap_or_default(),
        }
    }
}

/// Runs one canary in the chosen backend.
pub async fn run(backends: &Backends, workspaces: &Workspaces, timeout: Duration) -> Report {
    let (at, when) = (berth_proto::world::now(), Instant::now());
    let result = sing(backends, workspaces, when + timeout).await.map_err(|error| error.to_string());
    Report { at, when, took: when.elapsed(), result }
}

async fn sing(backends: &Backends, workspaces: &Workspaces, deadline: Instant) -> Result<(), Error> {
    let template = TemplateSpec {
        name: "base".to_owned(),
        root: None,
        image: None,
        backend: BackendChoice::Auto,
        user: "user".to_owned(),
    };
    let backend = backends.resolve(&template)?;
    let session = SessionId::new();
    let dirs = workspaces.create(session, LIMITS.disk_bytes).await.map_err(|error| {
        Error::unavailable(Reason::SandboxFailed, format!("the workspace could not be made: {error}"))
    })?;
    let launch = Launch {
        backend: backend.clone(),
        workspaces: workspaces.clone(),
        session,
        template,
        limits: LIMITS,
        dirs: dirs.clone(),
    };
    let running = match launch.start(deadline).await {
        Ok(running) => running,
        Err(failed) => {
            // A start that comes late cleans up after itself, directories included.
            if failed.late.is_none() {
                take_down(&*backend, workspaces, session, None).await;
            }
            return Err(failed.error);
        }
    };
    let result = note(&running, &dirs, session, deadline).await;
    if result.is_ok() {
        shut_down(running.agent.clone(), Duration::ZERO).await;
    }
    take_down(&*backend, workspaces, session, Some(&running.identity)).await;
    result
}

/// Runs `true` and sees it exit with 0.
async fn note(
    running: &Running,
    dirs: &SessionDirs,
    session: SessionId,
    deadline: Instant,
) -> Result<(), Error> {
    let failed = |message: String| Error::unavailable(Reason::SandboxFailed, message);
    let configure = || v1::ConfigureRequest {
        session_id: session.to_string(),
        epoch: 1,
        ttl_left: Some(convert::duration_out(Duration::from_secs(600))),
        ..Default::default()
    };
    await_agent(running, dirs, configure, deadline).await?;
    let argv = v1::Argv { args: vec!["true".to_owned()] };
    let spec = v1::TaskSpec { program: Some(v1::task_spec::Program::Argv(argv)), ..Default::default() };
    let request = v1::RunRequest { session_id: session.to_string(), task: Some(spec), ..Default::default() };
    let mut tasks = TaskServiceClient::new(running.agent.clone());
    let run = async {
        let mut events = tasks.run(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(v1::task_event::Event::Ended(task)) = event.event {
                return Ok(task.end.and_then(|end| end.outcome));
            }
        }
        Ok::<_, tonic::Status>(None)
    };
    match tokio::time::timeout_at(deadline, run).await {
        Ok(Ok(Some(outcome))) => match Outcome::try_from(outcome)? {
            Outcome::Exited(0) => Ok(()),
            other => Err(failed(format!("`true` ended with {other:?}"))),
        },
        Ok(Ok(None)) => Err(failed("`true` was started and its end not told".to_owned())),
        Ok(Err(status)) => Err(failed(format!("`true` could not be run: {}", status.message()))),
        Err(_) => Err(failed("`true` did not end in time".to_owned())),
    }
}
