//! A Berth of our own: a coordinator and a worker in this process, on a port of their own, for one MCP client.
//!
//! It starts in the background, since clients give a server some seconds to say hello, and a first start makes a few
//! files first. What fails is told to whoever first needs it.
//!
//! Several clients on one machine each have their own, each with a state directory: `mcp-1`, `mcp-2`, … below the usual
//! one, the first that no other process holds. So what a killed one left is put in order by the next that takes its place.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_client::{Client, ConnectOptions};
use berth_coordinator::Coordinator;
use berth_gateway::mcp::{Connect, Problem};
use berth_proto::WorkerId;
use berth_worker::Worker;
use futures::{FutureExt, future::LocalBoxFuture};
use nix::fcntl::Flock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    commands::up,
    failure::Failure,
    serve::{coordinator, worker, worker::MachineArgs},
};

/// Embedded ones that may run at the same time.
const MOST: u32 = 64;
/// Time for the worker to become ready.
const READY: Duration = Duration::from_secs(60);

/// How it stands.
#[derive(Clone)]
enum State {
    Starting,
    Ready(Box<ConnectOptions>),
    Failed { message: String, hint: String },
}

impl From<&Failure> for State {
    fn from(failure: &Failure) -> Self {
        Self::Failed { message: failure.message.clone(), hint: failure.hints.join("; ") }
    }
}

/// One that runs for as long as `run` is polled.
pub struct Embedded {
    state: watch::Receiver<State>,
    /// Ends it, its sandboxes included; `run` is over then.
    pub stop: CancellationToken,
    /// Also over when it can't go on, which those are told that need it.
    pub run: LocalBoxFuture<'static, ()>,
}

/// One that starts as soon as it is polled.
pub fn new(state_dir: &Path, machine: MachineArgs) -> Embedded {
    let (tell, state) = watch::channel(State::Starting);
    let stop = CancellationToken::new();
    let (dir, stopping) = (state_dir.to_owned(), stop.clone());
    let run = async move {
        if let Err(failure) = run(&dir, machine, &tell, stopping).await {
            tracing::error!(%failure, hints = ?failure.hints, "the embedded Berth can't go on");
            tell.send_replace(State::from(&failure));
        }
    };
    Embedded { state, stop, run: run.boxed_local() }
}

impl Embedded {
    /// Waits until it is ready, and connects to it.
    pub fn connect(&self) -> Connect {
        let state = self.state.clone();
        Box::new(move || reach(state.clone()).boxed())
    }
}

async fn reach(mut state: watch::Receiver<State>) -> Result<Client, Problem> {
    // An error: it is over. What was last said of it still holds.
    let _ = state.wait_for(|state| !matches!(state, State::Starting)).await;
    let stands = state.borrow().clone();
    match stands {
        State::Ready(options) => Client::connect(*options).await.map_err(Problem::from),
        State::Failed { message, hint } => Err(Problem::new(message, hint)),
        State::Starting => Err(Problem::new("Berth stops", "start this MCP server again")),
    }
}

async fn run(
    state_dir: &Path,
    machine: MachineArgs,
    tell: &watch::Sender<State>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let (dir, _lock) = place(state_dir)?;
    let config = berth_coordinator::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        state_dir: dir.clone(),
        ..Default::default()
    };
    let mut coordinator = Coordinator::start(config).await.map_err(coordinator::start_failure)?;
    let address = coordinator.addr().to_string();
    let mut config = machine.config(&address, &coordinator.credentials().join_token, &dir.join("w1"));
    config.worker_id = Some("local-1".parse::<WorkerId>().expect("a constant shape is valid"));
    let workers = match Worker::start(config).await {
        Ok(worker) => [worker],
        Err(error) => {
            coordinator.shutdown().await;
            return Err(worker::start_failure(error));
        }
    };
    let options = ConnectOptions::new(address.clone()).token(&coordinator.credentials().admin_token);
    let watched = async {
        tokio::select! {
            () = up::wait_ready(&workers) => {}
            failure = up::first_failure(&workers) => return Err(failure),
            () = tokio::time::sleep(READY) => up::unready(&workers, READY).map(drop)?,
        }
        tracing::info!(address, state_dir = %dir.display(), "the embedded Berth is ready");
        tell.send_replace(State::Ready(Box::new(options)));
        Err(up::first_failure(&workers).await)
    };
    let result = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        () = coordinator.wait() => Err(Failure::new("the coordinator ended by itself").hint("its log says why")),
        result = watched => result.map(|_: std::convert::Infallible| ()),
    };
    let [worker] = workers;
    worker.shutdown().await;
    coordinator.shutdown().await;
    result
}

/// A state directory that nobody else uses, for as long as the lock is held.
fn place(state_dir: &Path) -> Result<(PathBuf, Flock<fs::File>), Failure> {
    let mut number = 1;
    loop {
        let dir = state_dir.join(format!("mcp-{number}"));
        up::make_state_dir(&dir)?;
        let dir = dir.canonicalize().map_err(|error| Failure::io(dir.display(), error))?;
        match up::lock(&dir) {
            Ok(lock) => return Ok((dir, lock)),
            Err(failure) if number == MOST => return Err(failure),
            Err(_) => number += 1,
        }
    }
}
