//! What a coordinator is started with, and what may be wrong with that.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use berth_net::{Bounds, Limits};

use crate::{
    artifacts, audit,
    checkpoints::Location,
    fleet::{FleetConfig, tenant_queue_limit},
    metrics::Metrics,
};

/// Settings of a coordinator. [`Config::default`] is a good one for loopback.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Holds the store and the credentials. Made if it is missing.
    pub state_dir: PathBuf,
    /// A TOML file; see [`crate::templates`].
    pub templates: Option<PathBuf>,
    /// The directory with the CA's and the coordinator's certificates. `None`: no TLS.
    pub tls: Option<PathBuf>,
    /// How many connections there may be.
    pub connections: Limits,
    /// Calls that may wait for an answer at once. A few more are taken of those that must get through.
    pub calls: usize,
    /// How long a call's stream may stand still.
    pub patience: Bounds,
    /// Listen beyond loopback although there is no TLS.
    pub insecure_listen: bool,
    /// Where checkpoints are kept. `None`: `blobs` in the state directory.
    pub blobs: Option<Location>,
    /// How long a worker holds its sessions after its last heartbeat.
    pub lease: Duration,
    /// How often workers are to send one. `None`: a third of the lease.
    pub heartbeat: Option<Duration>,
    /// How long a dead worker's sessions wait for it.
    pub worker_loss_grace: Duration,
    /// How long after its worker's lease a session that may be restored is placed elsewhere.
    pub restore_grace: Duration,
    /// How long a session may stay paused before it gives its place up. `None`: for ever.
    pub paused_ttl: Option<Duration>,
    /// Time for a sandbox to become ready.
    pub start_timeout: Duration,
    /// Sessions that may wait for a place; of one tenant three quarters of that.
    pub queue_limit: usize,
    /// Ended sessions are remembered for this long ...
    pub retention: Duration,
    /// ... but no more than so many of them.
    pub ended_limit: usize,
    /// Data connections that each worker is asked for.
    pub data_connections: u32,
    /// What is recorded of what is done, and for how long.
    pub audit: audit::Settings,
    /// What of sessions' files is kept past them, and for how long.
    pub artifacts: artifacts::Settings,
    /// How long running calls may take to end when the coordinator stops.
    pub shutdown_grace: Duration,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

impl Default for Config {
    fn default() -> Self {
        let fleet = FleetConfig::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50051)),
            state_dir: PathBuf::from("/var/lib/berth/coordinator"),
            templates: None,
            tls: None,
            connections: Limits::default(),
            calls: 4096,
            patience: Bounds::default(),
            insecure_listen: false,
            blobs: None,
            lease: fleet.lease,
            heartbeat: None,
            worker_loss_grace: fleet.worker_loss_grace,
            restore_grace: fleet.restore_grace,
            paused_ttl: Some(Duration::from_secs(600)),
            start_timeout: fleet.start_timeout,
            queue_limit: fleet.queue_limit,
            retention: fleet.retention,
            ended_limit: fleet.ended_limit,
            data_connections: 2,
            audit: audit::Settings::default(),
            artifacts: artifacts::Settings::default(),
            shutdown_grace: Duration::from_secs(5),
            metrics: Arc::default(),
        }
    }
}

impl Config {
    pub(crate) fn fleet(&self) -> FleetConfig {
        FleetConfig {
            lease: self.lease,
            worker_loss_grace: self.worker_loss_grace,
            restore_grace: self.restore_grace,
            start_timeout: self.start_timeout,
            queue_limit: self.queue_limit,
            tenant_queue_limit: tenant_queue_limit(self.queue_limit),
            retention: self.retention,
            ended_limit: self.ended_limit,
            ..FleetConfig::default()
        }
    }

    /// What of it can't be, apart from what only trying tells.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !self.listen.ip().is_loopback() && self.tls.is_none() && !self.insecure_listen {
            problems.push(Problem::new(
                format!("{} can be reached from other machines, and there is no TLS", self.listen),
                "`berth tls init` makes certificates, and BERTH_TLS_DIR names their directory; or listen on 127.0.0.1 \
                 (BERTH_LISTEN), or allow it on a network that you trust: BERTH_INSECURE_LISTEN=true",
            ));
        }
        if self.lease < Duration::from_millis(300) {
            problems.push(Problem::new(
                format!("a lease of {:?} is too short to be renewed in time", self.lease),
                "10 s is the default",
            ));
        }
        if self.heartbeat.is_some_and(|every| every.is_zero() || every * 2 > self.lease) {
            problems.push(Problem::new(
                "a heartbeat must come at least twice within a lease".to_owned(),
                "leave it out: a third of the lease is the default",
            ));
        }
        if self.restore_grace < Duration::from_millis(500) {
            problems.push(Problem::new(
                format!(
                    "{:?} after a lease is too short for a worker's tasks to have frozen",
                    self.restore_grace
                ),
                "10 s is the default (BERTH_RESTORE_GRACE)",
            ));
        }
        if self.artifacts.keep.is_zero() {
            problems.push(Problem::new(
                "artifacts can't be kept for no time".to_owned(),
                "7 days is the default (BERTH_ARTIFACT_KEEP); BERTH_ARTIFACT_QUOTA=0 keeps none",
            ));
        }
        if self.start_timeout.is_zero() || self.data_connections == 0 {
            problems.push(Problem::new(
                "start_timeout and data_connections must not be zero".to_owned(),
                "60 s and 2 are the defaults",
            ));
        }
        problems
    }
}

/// One thing that keeps the coordinator from starting, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    pub hint: String,
}

impl Problem {
    pub(crate) fn new(what: String, hint: impl Into<String>) -> Self {
        Self { what, hint: hint.into() }
    }
}

/// Everything that keeps the coordinator from starting: all of it at once, so that nobody
/// mends one thing to be told of the next.
#[derive(Clone, Debug)]
pub struct StartError {
    pub problems: Vec<Problem>,
}

impl StartError {
    pub(crate) fn one(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<_> = self.problems.iter().map(|p| p.what.as_str()).collect();
        f.write_str(&each.join("; "))
    }
}

impl std::error::Error for StartError {}
