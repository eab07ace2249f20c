//! `berth tls`: the certificates of a cluster. What they are for and where they lie: `berth_net`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use berth_client::{WorkerId, local};
use berth_net::{
    Error, Facts, Files, Pair,
    issue::{Authority, ISSUED_FOR, Validity, days_left},
};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Global;
use crate::{
    env,
    failure::{CommandResult, Failure},
    output::{self, say},
    value,
};

/// A certificate that ends sooner than this is to be renewed.
pub const SOON_DAYS: u64 = 14;

const HELP: &str = "\
The directory holds the CA (ca.pem, ca.key), the coordinator's certificate, and in workers/ID what the
worker of that id gets. On one machine it serves all three as BERTH_TLS_DIR. Elsewhere a worker needs a
copy of workers/ID as its BERTH_TLS_DIR, and a client ca.pem as its BERTH_TLS_CA. ca.key is only needed
to issue: keep it where nobody else is. What was renewed is taken up without a restart.

Examples:
  berth tls init --host berth.example.org --host 10.0.0.1
  BERTH_TLS_DIR=/var/lib/berth/tls BERTH_LISTEN=0.0.0.0 coordinator
  berth tls worker w-2            then copy workers/w-2 to that machine, and there:
  BERTH_TLS_DIR=/etc/berth/tls WORKER_ID=w-2 COORDINATOR_ADDR=berth.example.org:50051 worker
  BERTH_TLS_CA=ca.pem BERTH_ADDRESS=https://berth.example.org:50051 berth ps
  berth tls renew                 all of them, for another year";

/// Certificates for coordinator, workers and clients.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct TlsArgs {
    /// Directory of the certificates [default: tls in the state directory]
    #[arg(long, global = true, env = env::BERTH_TLS_DIR, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    #[command(subcommand)]
    pub command: TlsCommand,
}

#[derive(Subcommand, Debug)]
pub enum TlsCommand {
    /// Make a private CA and the coordinator's certificate
    Init {
        /// Name or address that the coordinator is reached by, beside localhost; again for more
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,

        /// How long the certificate is valid [default: 365d]
        #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
        valid: Option<Duration>,
    },
    /// Issue a worker's certificate, with its id in it
    Worker {
        /// Id of the worker: WORKER_ID there
        #[arg(value_name = "ID", value_parser = worker_id)]
        id: WorkerId,

        /// Name of its own listener, if it has one (GRPC_PORT); again for more
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,

        /// How long the certificate is valid [default: 365d]
        #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
        valid: Option<Duration>,
    },
    /// Issue all of them anew, with the names that they have
    Renew {
        /// One more name or address of the coordinator; again for more
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,

        /// How long they are valid [default: 365d]
        #[arg(long, value_parser = value::some_duration, value_name = "TIME")]
        valid: Option<Duration>,
    },
    /// Show whose they are, for which names, and until when
    Show,
}

fn worker_id(text: &str) -> Result<WorkerId, String> {
    text.parse().map_err(|error: berth_proto::Error| error.to_string())
}

/// Where they lie, if nothing else is said.
pub fn files(global: &Global, dir: Option<&PathBuf>) -> Result<Files, Failure> {
    if let Some(dir) = dir {
        return Ok(Files::new(dir));
    }
    let state_dir = match &global.state_dir {
        Some(dir) => dir.clone(),
        None => local::default_state_dir()?,
    };
    Ok(Files::new(local::tls_dir(&state_dir)))
}

fn validity(time: Option<Duration>) -> Validity {
    Validity::lasting(time.unwrap_or(ISSUED_FOR))
}

pub fn failure(error: Error) -> Failure {
    let hint = error.hint();
    Failure::new(error.to_string()).hint(hint)
}

pub fn run(global: &Global, args: TlsArgs) -> CommandResult {
    let files = files(global, args.dir.as_ref())?;
    match args.command {
        TlsCommand::Init { hosts, valid } => {
            let authority = Authority::make(&files).map_err(failure)?;
            authority.coordinator(&hosts, validity(valid)).map_err(|error| {
                // A CA without a certificate would be in the way of the next try.
                for path in [files.ca().certificate, files.ca().key] {
                    let _ = fs::remove_file(path);
                }
                failure(error)
            })?;
            told(global, &[files.ca(), files.coordinator()])?;
            say(format!("the coordinator uses it with BERTH_TLS_DIR={}", files.dir().display()));
            say("each worker needs a certificate: `berth tls worker ID`");
        }
        TlsCommand::Worker { id, hosts, valid } => {
            let authority = Authority::open(&files).map_err(failure)?;
            let own = authority.worker(&id, &hosts, validity(valid)).map_err(failure)?;
            told(global, &[own.worker()])?;
            say(format!("worker {id} uses it with BERTH_TLS_DIR={}, or a copy of that", own.dir().display()));
        }
        TlsCommand::Renew { hosts, valid } => {
            let authority = Authority::open(&files).map_err(failure)?;
            told(global, &authority.renew(&hosts, validity(valid)).map_err(failure)?)?;
            say("the coordinator takes its own up by itself; copies on workers' machines are to be replaced");
        }
        TlsCommand::Show => {
            let rows: Vec<Row> = certificates(&files).into_iter().map(Row::from).collect();
            if rows.is_empty() {
                return Err(Failure::new(format!("there are no certificates in {}", files.dir().display()))
                    .hint("`berth tls init` makes them; --dir names another directory"));
            }
            shown(global, rows)?;
        }
    }
    Ok(0)
}

/// Each certificate of a directory, be it the CA's or a worker's own.
pub fn certificates(files: &Files) -> Vec<(Pair, Result<Facts, Error>)> {
    let workers = files.workers().into_iter().map(|id| files.worker_dir(&id).worker());
    [files.ca(), files.coordinator(), files.worker()]
        .into_iter()
        .chain(workers)
        .filter(|pair| pair.certificate.exists())
        .map(|pair| {
            let facts = berth_net::facts_of(&pair.certificate);
            (pair, facts)
        })
        .collect()
}

/// What is wrong with a key's file, if anything: it is there, and others may use it.
pub fn key_problem(pair: &Pair) -> Option<String> {
    let meta = fs::metadata(&pair.key).ok()?;
    let open = meta.permissions().mode() & 0o777 & !berth_net::KEY_MODE != 0;
    open.then(|| format!("others may use {}", pair.key.display()))
}

#[derive(Serialize)]
struct Row {
    file: PathBuf,
    subject: String,
    issuer: String,
    names: Vec<String>,
    worker: Option<String>,
    valid_from: Option<String>,
    valid_until: Option<String>,
    state: String,
}

impl From<(Pair, Result<Facts, Error>)> for Row {
    fn from((pair, facts): (Pair, Result<Facts, Error>)) -> Self {
        let state = match (&facts, key_problem(&pair)) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Some(problem)) => problem,
            (Ok(facts), None) => standing(facts),
        };
        let facts = facts.ok();
        let text = |time: fn(&Facts) -> SystemTime| {
            facts.as_ref().map(|facts| humantime::format_rfc3339_seconds(time(facts)).to_string())
        };
        Self {
            file: pair.certificate,
            valid_from: text(|facts| facts.from),
            valid_until: text(|facts| facts.until),
            subject: facts.as_ref().map(|facts| facts.subject.clone()).unwrap_or_default(),
            issuer: facts.as_ref().map(|facts| facts.issuer.clone()).unwrap_or_default(),
            worker: facts.as_ref().and_then(|facts| facts.worker.as_ref().map(ToString::to_string)),
            names: facts.map(|facts| facts.names).unwrap_or_default(),
            state,
        }
    }
}

fn standing(facts: &Facts) -> String {
    match days_left(facts.until) {
        None => "expired".to_owned(),
        Some(_) if !facts.valid_at(berth_proto::world::now()) => "not valid yet".to_owned(),
        Some(days) if days < SOON_DAYS => format!("expires in {}", output::count(days, "day")),
        Some(_) => "good".to_owned(),
    }
}

fn told(global: &Global, pairs: &[Pair]) -> Result<(), Failure> {
    let seen = pairs.iter().map(|pair| (pair.clone(), berth_net::facts_of(&pair.certificate)));
    shown(global, seen.map(Row::from).collect())
}

fn shown(global: &Global, rows: Vec<Row>) -> Result<(), Failure> {
    if global.json() {
        return output::json(&rows);
    }
    let cells = rows.into_iter().map(|row| {
        let worker = row.worker.map(|id| format!("worker {id}"));
        let names = worker.into_iter().chain(row.names).collect::<Vec<_>>().join(" ");
        let until = row.valid_until.unwrap_or_default();
        vec![row.file.display().to_string(), row.subject, names, until, row.state]
            .into_iter()
            .map(|cell| output::printable(&cell))
            .collect()
    });
    output::table(&["FILE", "SUBJECT", "NAMES", "VALID UNTIL", "STATE"], cells.collect(), "")
}
