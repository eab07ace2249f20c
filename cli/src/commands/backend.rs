//! `berth backend`: which sandbox backend a worker uses for new sessions. The coordinator
//! passes the wish on; it is in force when the worker itself says so.

use std::time::Duration;

use berth_client::{Client, model::WorkerInfo};
use clap::Args;

use super::Global;
use crate::{
    failure::{CommandResult, Failure},
    output::{self, span},
};

const BACKEND_HELP: &str = "\
Running sessions stay as they are.

Examples:
  berth backend worker-1 docker
  berth backend worker-1 auto            native where it works, else docker";

/// Chooses the sandbox backend of a worker's new sessions.
#[derive(Args, Debug)]
#[command(after_help = BACKEND_HELP)]
pub struct BackendArgs {
    /// Worker
    #[arg(value_name = "WORKER")]
    pub worker: String,

    /// Backend
    #[arg(value_parser = ["auto", "native", "docker", "fake"], value_name = "BACKEND")]
    pub backend: String,
}

pub async fn run(global: &Global, args: BackendArgs) -> CommandResult {
    let client = global.client().await?;
    let asked = client.set_backend(&args.worker, &args.backend).await?;
    let waited = tokio::time::timeout(BACKEND_WITHIN, until_in_force(&client, &asked, &args.backend)).await;
    let Ok(worker) = waited else {
        let seen = client.worker(&args.worker).await?;
        return Err(not_in_force(&seen, &args.backend));
    };
    let worker = worker?;
    if global.json() {
        output::json(&worker)?;
    } else {
        let chosen = worker.chosen_backend().map(|backend| backend.name.as_str()).unwrap_or("none");
        output::data(format!("{} {chosen}", worker.id))?;
    }
    Ok(0)
}

/// A worker tells what it uses with its next heartbeat.
const BACKEND_WITHIN: Duration = Duration::from_secs(15);
/// How often it is looked at.
const BACKEND_LOOK: Duration = Duration::from_millis(200);

/// Waits until the worker itself says that it does what was asked. `asked` is the worker as
/// it stood when it was told to: what it had said by then answers nothing.
async fn until_in_force(client: &Client, asked: &WorkerInfo, wanted: &str) -> Result<WorkerInfo, Failure> {
    loop {
        let worker = client.worker(&asked.id).await?;
        if in_force(&worker, asked, wanted) {
            return Ok(worker);
        }
        tokio::time::sleep(BACKEND_LOOK).await;
    }
}

fn in_force(worker: &WorkerInfo, asked: &WorkerInfo, wanted: &str) -> bool {
    let newer = worker.last_heartbeat_at > asked.last_heartbeat_at;
    let chosen = worker.chosen_backend().filter(|backend| backend.ready);
    // With `auto` any is right that the worker has chosen since.
    newer && chosen.is_some_and(|backend| wanted == "auto" || backend.name == wanted)
}

fn not_in_force(worker: &WorkerInfo, wanted: &str) -> Failure {
    let state = worker.backends.iter().find(|backend| backend.name == wanted);
    let why = match state {
        Some(backend) if !backend.message.is_empty() => backend.message.clone(),
        Some(_) => format!("it has not said so within {}", span(BACKEND_WITHIN)),
        None if wanted == "auto" => "none of its backends can be used".to_owned(),
        None => "this worker does not have it".to_owned(),
    };
    let still = worker.chosen_backend().map_or("none", |backend| backend.name.as_str());
    Failure::new(format!("{} does not use {wanted}, but {still}: {why}", worker.id))
        .hint(format!("`berth workers {}` shows what it can use", worker.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_client::model::BackendInfo;
    use std::time::SystemTime;

    fn worker(heartbeat: u64, chosen: &str) -> WorkerInfo {
        let backend = |name: &str| BackendInfo {
            name: name.to_owned(),
            ready: true,
            message: String::new(),
            chosen: name == chosen,
        };
        WorkerInfo {
            id: "w".into(),
            last_heartbeat_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(heartbeat)),
            backends: vec![backend("native"), backend("docker")],
            ..WorkerInfo::default()
        }
    }

    #[test]
    fn only_what_the_worker_says_afterwards_counts() {
        let asked = worker(5, "native");
        assert!(!in_force(&worker(5, "native"), &asked, "auto"), "it has said nothing since");
        assert!(!in_force(&worker(5, "native"), &asked, "native"));
        assert!(!in_force(&worker(6, "native"), &asked, "docker"), "it uses another one");
        assert!(!in_force(&worker(6, ""), &asked, "auto"), "it uses none");
        assert!(in_force(&worker(6, "docker"), &asked, "docker"));
        assert!(in_force(&worker(6, "docker"), &asked, "auto"));
        let failure = not_in_force(&worker(6, "native"), "docker");
        assert!(failure.message.starts_with("w does not use docker, but native"), "{failure}");
    }
}
