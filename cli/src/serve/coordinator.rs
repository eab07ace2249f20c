//! The `coordinator` command.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use berth_client::{Client, ConnectOptions, local};
use berth_coordinator::{
    Config, Coordinator, StartError, artifacts,
    audit::{Argv, Settings},
    checkpoints::{Location, Room},
};
use berth_gateway::mcp::http::Lasting;
use clap::{Args, Parser, Subcommand, builder::BoolishValueParser};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Errand, Serve, ServeArgs, announce,
    gateway::{self, Around, Gateway, HttpArgs},
    metrics::{MetricsArgs, Port, Told},
    probes::{Asked, Instead, Probes},
    stop, withdraw,
};
use crate::{
    commands::backup::restore::RestoreArgs,
    env,
    failure::{CommandResult, Failure, code},
    output,
    signals::Interrupts,
    value,
};

/// The health service has this long, less than who asks for it waits.
const HEALTH_WITHIN: Duration = Duration::from_secs(4);

const HELP: &str = "\
Started with no arguments it serves on 127.0.0.1:50051. `ready ADDRESS` on stdout says that it
takes calls. SIGINT and SIGTERM stop it in sequence; a second signal ends it at once.

The tokens are made on first start: <state>/credentials/admin.token for clients, join.token for
workers.

Exit codes: 0 stopped, 1 failed, 2 wrong use.";

/// Schedules sessions onto workers, and routes every call to them.
#[derive(Parser, Debug)]
#[command(name = "coordinator", version = berth_proto::VERSION, after_help = HELP, max_term_width = 100)]
pub struct CoordinatorArgs {
    /// gRPC port; 0 takes a free one
    #[arg(long, env = "GRPC_PORT", default_value_t = 50051, value_name = "PORT")]
    pub grpc_port: u16,

    #[command(flatten)]
    pub http: HttpArgs,

    /// IP address to listen on
    #[arg(long, env = "BERTH_LISTEN", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    pub listen: IpAddr,

    /// Directory of the certificates (`berth tls`); with it everything goes over TLS [default: no TLS]
    #[arg(long, env = env::BERTH_TLS_DIR, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,

    /// Listen beyond loopback although there is no TLS
    #[arg(long, env = "BERTH_INSECURE_LISTEN", value_parser = BoolishValueParser::new(), value_name = "BOOL",
          num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub insecure_listen: bool,

    /// State directory [default: /var/lib/berth as root, else ~/.local/state/berth]
    #[arg(long, env = env::BERTH_STATE_DIR, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// TOML file with templates
    #[arg(long, env = "BERTH_TEMPLATES", value_name = "FILE")]
    pub templates: Option<PathBuf>,

    /// How long a worker holds its sessions after its last heartbeat [default: 10s]
    #[arg(long, env = "BERTH_LEASE", value_parser = value::duration, value_name = "TIME")]
    pub lease: Option<Duration>,

    #[command(flatten)]
    pub recovery: RecoveryArgs,

    #[command(flatten)]
    pub audit: AuditArgs,

    #[command(flatten)]
    pub artifacts: ArtifactArgs,

    /// Time that running calls have to end when it stops [default: 5s]
    #[arg(long, env = "BERTH_SHUTDOWN_GRACE", value_parser = value::duration, value_name = "TIME")]
    pub shutdown_grace: Option<Duration>,

    #[command(flatten)]
    pub metrics: MetricsArgs,

    #[command(flatten)]
    pub serve: ServeArgs,

    #[command(subcommand)]
    pub instead: Option<Other>,
}

/// What it does instead of serving.
#[derive(Subcommand, Debug, Clone)]
pub enum Other {
    #[command(flatten)]
    Look(Instead),
    /// Put a backup back, where the store is damaged or gone, or an older version takes over
    Restore(RestoreArgs),
}

/// What is recorded of what is done. `berth up` takes these too.
#[derive(Args, Debug, Clone, Default)]
pub struct AuditArgs {
    /// How a task's command line is recorded: its SHA-256 (hash), or all of it (full) [default: hash]
    #[arg(long, env = "BERTH_AUDIT_ARGV", value_name = "HOW")]
    pub audit_argv: Option<Argv>,

    /// How long audit records are kept [default: 90 days]
    #[arg(long, env = "BERTH_AUDIT_KEEP", value_parser = value::some_duration, value_name = "TIME")]
    pub audit_keep: Option<Duration>,
}

impl AuditArgs {
    /// Puts them into a coordinator's settings.
    pub fn over(&self, config: Config) -> Config {
        let audit = Settings {
            argv: self.audit_argv.unwrap_or(config.audit.argv),
            keep: self.audit_keep.unwrap_or(config.audit.keep),
        };
        Config { audit, ..config }
    }
}

/// What of sessions' files is kept past them. `berth up` takes these too.
#[derive(Args, Debug, Clone, Default)]
pub struct ArtifactArgs {
    /// How long artifacts are kept [default: 7 days]
    #[arg(long, env = "BERTH_ARTIFACT_KEEP", value_parser = value::some_duration, value_name = "TIME")]
    pub artifact_keep: Option<Duration>,

    /// Bytes of all artifacts of a tenant; 0: none are kept [default: 1G]
    #[arg(long, env = "BERTH_ARTIFACT_QUOTA", value_parser = value::size, value_name = "SIZE")]
    pub artifact_quota: Option<u64>,

    /// Artifacts of a tenant [default: 10000]
    #[arg(long, env = "BERTH_ARTIFACT_COUNT", value_name = "NUMBER")]
    pub artifact_count: Option<u64>,

    /// Bytes of one artifact [default: 256M]
    #[arg(long, env = "BERTH_ARTIFACT_SIZE", value_parser = value::size, value_name = "SIZE")]
    pub artifact_size: Option<u64>,
}

impl ArtifactArgs {
    /// Puts them into a coordinator's settings.
    pub fn over(&self, config: Config) -> Config {
        let usual = config.artifacts;
        let artifacts = artifacts::Settings {
            keep: self.artifact_keep.unwrap_or(usual.keep),
            quota: Room {
                bytes: self.artifact_quota.unwrap_or(usual.quota.bytes),
                count: self.artifact_count.unwrap_or(usual.quota.count),
            },
            file_bytes: self.artifact_size.unwrap_or(usual.file_bytes),
        };
        Config { artifacts, ..config }
    }
}

/// How sessions outlive their workers. `berth up` takes these too.
#[derive(Args, Debug, Clone, Default)]
pub struct RecoveryArgs {
    /// Where checkpoints are kept: a directory, or s3://BUCKET/PREFIX with AWS_* set [default: blobs in the state directory]
    #[arg(long, env = "BERTH_BLOBS", value_name = "LOCATION")]
    pub blobs: Option<Location>,

    /// How long the sessions of a lost worker wait for it before they end [default: 5m]
    #[arg(long, env = "BERTH_WORKER_LOSS_GRACE", value_parser = value::duration, value_name = "TIME")]
    pub worker_loss_grace: Option<Duration>,

    /// How long after a lost worker's lease a session that may be restored is placed elsewhere [default: 10s]
    #[arg(long, env = "BERTH_RESTORE_GRACE", value_parser = value::duration, value_name = "TIME")]
    pub restore_grace: Option<Duration>,

    /// How long a session stays paused before it gives its place up; 0: for ever [default: 10m]
    #[arg(long, env = "BERTH_PAUSED_TTL", value_parser = value::duration, value_name = "TIME")]
    pub paused_ttl: Option<Duration>,
}

impl RecoveryArgs {
    /// Puts them into a coordinator's settings.
    pub fn over(&self, config: Config) -> Config {
        Config {
            blobs: self.blobs.clone().or(config.blobs),
            worker_loss_grace: self.worker_loss_grace.unwrap_or(config.worker_loss_grace),
            restore_grace: self.restore_grace.unwrap_or(config.restore_grace),
            paused_ttl: match self.paused_ttl {
                None => config.paused_ttl,
                Some(time) => Some(time).filter(|time| !time.is_zero()),
            },
            ..config
        }
    }
}

impl CoordinatorArgs {
    fn state_dir(&self) -> Result<PathBuf, Failure> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(local::default_state_dir()?),
        }
    }

    fn config(&self) -> Result<Config, Failure> {
        let state_dir = self.state_dir()?;
        let defaults = Config::default();
        Ok(self.artifacts.over(self.audit.over(self.recovery.over(Config {
            listen: SocketAddr::new(self.listen, self.grpc_port),
            state_dir,
            templates: self.templates.clone(),
            tls: self.tls_dir.clone().filter(|dir| !dir.as_os_str().is_empty()),
            insecure_listen: self.insecure_listen,
            lease: self.lease.unwrap_or(defaults.lease),
            shutdown_grace: self.shutdown_grace.unwrap_or(defaults.shutdown_grace),
            ..defaults
        }))))
    }
}

impl Serve for CoordinatorArgs {
    fn serve_args(&self) -> &ServeArgs {
        &self.serve
    }

    fn instead(&self) -> Result<Option<Errand>, Failure> {
        let state_dir = self.state_dir()?;
        Ok(match &self.instead {
            None => None,
            Some(Other::Look(Instead::Health { probe })) => Some(Errand::Ask(*probe, state_dir)),
            Some(Other::Restore(RestoreArgs { from })) => {
                Some(Errand::PutBack { from: from.clone(), state_dir })
            }
        })
    }

    fn computed(&self) -> Vec<(&'static str, String)> {
        let Ok(config) = self.config() else { return Vec::new() };
        vec![
            ("state_dir", config.state_dir.display().to_string()),
            ("lease", output::span(config.lease)),
            ("blobs", config.state_dir.join("blobs").display().to_string()),
            ("worker_loss_grace", output::span(config.worker_loss_grace)),
            ("restore_grace", output::span(config.restore_grace)),
            ("paused_ttl", config.paused_ttl.map_or_else(|| "0".to_owned(), output::span)),
            ("audit_argv", config.audit.argv.as_str().to_owned()),
            ("audit_keep", output::span(config.audit.keep)),
            ("artifact_keep", output::span(config.artifacts.keep)),
            ("artifact_quota", config.artifacts.quota.bytes.to_string()),
            ("artifact_count", config.artifacts.quota.count.to_string()),
            ("artifact_size", config.artifacts.file_bytes.to_string()),
            ("shutdown_grace", output::span(config.shutdown_grace)),
        ]
    }

    async fn serve(self, mut interrupts: Interrupts) -> CommandResult {
        let config = self.config()?;
        let port = self.metrics.listen().await?;
        let around = Around {
            tls: config.tls.clone(),
            insecure: config.insecure_listen,
            remedy: "`berth tls init` makes certificates, and BERTH_TLS_DIR names their directory; or give another with \
                BERTH_HTTP_CERT and BERTH_HTTP_KEY, or allow it on a network that you trust: BERTH_INSECURE_LISTEN=true",
            // The workers hold the sessions.
            lasting: Lasting { dir: config.state_dir.clone(), over_a_stop: true },
        };
        let own_tls = config.tls.clone();
        let start = Coordinator::start(config);
        let mut running = tokio::select! {
            started = start => started.map_err(start_failure)?,
            _ = interrupts.recv() => return Ok(code::CANCELLED),
        };
        let address = running.addr().to_string();
        tracing::info!(address, "listening on {address}");
        tracing::info!(
            admin = %running.credentials().admin_path.display(),
            join = %running.credentials().join_path.display(),
            "credentials"
        );
        let gateway = match Gateway::start(&self.http, &running, around).await {
            Ok(gateway) => gateway,
            Err(failure) => {
                running.shutdown().await;
                return Err(failure);
            }
        };
        let options = gateway::beside(&running, own_tls);
        let told = Told::of("coordinator").with(running.metrics());
        let told = gateway.metrics().into_iter().fold(told, Told::with);
        let asked = Asked::new(Arc::new(move || Box::pin(unready(options.clone()))), told.scrape());
        let _probes = Probes::open(&self.state_dir()?, &asked);
        let _port = Port::open(port, &asked);
        asked.started();
        announce(&self.serve, &address)?;
        let ended_by_itself = tokio::select! {
            () = running.wait() => true,
            signal = interrupts.recv() => {
                tracing::info!(signal, "stopping; once more stops at once");
                false
            }
        };
        withdraw(&self.serve);
        let stopping = async {
            gateway.shutdown().await;
            running.shutdown().await;
        };
        let stopped = stop(stopping, &mut interrupts).await?;
        Ok(if ended_by_itself { code::FAILED } else { stopped })
    }
}

/// Why the coordinator takes no calls, if so: what its own health service says on its own port.
pub async fn unready(options: ConnectOptions) -> Option<String> {
    let asked = async {
        let client = Client::connect(options).await.map_err(|error| error.to_string())?;
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(client.channel()).check(request).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(HEALTH_WITHIN, asked).await {
        Ok(Ok(ServingStatus::Serving)) => None,
        Ok(Ok(_)) => Some("it is stopping: its health service says NOT_SERVING".to_owned()),
        Ok(Err(why)) => Some(format!("its health service can't be asked: {why}")),
        Err(_) => Some(format!("its health service did not answer within {HEALTH_WITHIN:?}")),
    }
}

/// All that keeps it from starting, as one failure.
pub fn start_failure(error: StartError) -> Failure {
    let each = error.problems.iter().map(|problem| Failure::new(&problem.what).hint(&problem.hint));
    Failure::all(each)
        .unwrap_or_else(|| Failure::new("the coordinator did not start").hint("its log says why"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// What the list of known variables says that a coordinator reads.
    fn read_at_start() -> Vec<&'static str> {
        let ours = |by: &str| by.split(", ").any(|who| matches!(who, "coordinator" | "all"));
        env::KNOWN.iter().filter(|known| ours(known.used_by)).map(|known| known.name).collect()
    }

    #[test]
    fn every_setting_that_is_known_is_read_and_printed_and_no_other() {
        let mut command = CoordinatorArgs::command();
        command.build();
        let mut read: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| arg.get_env())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        let mut known = read_at_start();
        read.sort();
        known.sort_unstable();
        assert_eq!(read, known);
        let matches = CoordinatorArgs::command().try_get_matches_from(["coordinator"]).expect("defaults");
        let text = super::super::config_text(&CoordinatorArgs::command(), &matches, &[]);
        for name in known {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not printed:\n{text}");
        }
    }
}
