//! `berth doctor`: looks at everything that Berth needs here, and says all that is wrong
//! at once, each with what to do. "Cannot tell" is not "ok".

mod fleet;
mod repair;
mod tls;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_client::{Error, local};
use berth_net::Files;
use berth_worker::{Config, orphans, preflight, sandbox::Preflight, store};
use clap::Args;
use serde::Serialize;

use self::repair::{Kept, Repair};
use super::{Global, up};
use crate::{
    failure::{CommandResult, code},
    output::{self, bytes, printable},
    process,
    serve::{
        gateway,
        metrics::{Address, MetricsArgs},
        worker::MachineArgs,
    },
};

const HELP: &str = "\
Exit code 1 if something is missing that `berth up` needs. Nothing is changed or started, unless with --fix: that
closes credentials that others may read, moves records of processes that are gone out of the way, and removes sandboxes
of this state directory that no worker would take up. What it changed is kept, or written down, below
doctor/ in the state directory. What it could not mend counts as before.

Examples:
  berth doctor
  berth doctor --fix
  berth doctor --sandbox docker          docker alone must work
  berth doctor --format json";

/// Looks at what this machine has.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct DoctorArgs {
    /// gRPC port that `berth up` would take
    #[arg(long, env = "GRPC_PORT", default_value_t = 50051, value_name = "PORT")]
    pub port: u16,

    /// HTTP port that `berth up` would take
    #[arg(long, env = "HTTP_PORT", value_parser = gateway::port, value_name = "PORT|off")]
    pub http_port: Option<gateway::Port>,

    #[command(flatten)]
    pub metrics: MetricsArgs,

    /// Mend what is ours and safe to mend; what was there before is kept
    #[arg(long)]
    pub fix: bool,

    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Free disk below which sessions are in doubt: what one with the default limits takes, and the margin.
const DISK_WANTED: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, but is weaker than it should be, or is not needed for `berth up`.
    Note,
    /// Could not be looked at.
    Unknown,
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    text: String,
    hint: Option<String>,
    /// It was otherwise, and `--fix` has mended it.
    fixed: bool,
    #[serde(skip)]
    repair: Option<Repair>,
}

impl Finding {
    fn new(what: impl Into<String>, verdict: Verdict, text: impl Into<String>) -> Self {
        Self { what: what.into(), verdict, text: text.into(), hint: None, fixed: false, repair: None }
    }

    fn mended_by(self, repair: Repair) -> Self {
        Self { repair: Some(repair), ..self }
    }

    fn mended_if(self, repair: Option<Repair>) -> Self {
        Self { repair, ..self }
    }

    /// What is so no more, or why it still is.
    fn mended(&mut self, how: Result<String, String>) {
        match how {
            Ok(done) => {
                self.text = format!("{} (mended: {done})", self.text);
                (self.verdict, self.hint, self.fixed) = (Verdict::Ok, None, true);
            }
            Err(why) => self.text = format!("{} (could not be mended: {why})", self.text),
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

pub async fn run(global: &Global, args: DoctorArgs) -> CommandResult {
    let state_dir = match &global.state_dir {
        Some(dir) => Some(dir.clone()),
        None => local::default_state_dir().ok(),
    };
    let mut findings = certificates(global);
    match &state_dir {
        None => findings.push(
            Finding::new("state directory", Verdict::Problem, "there is no HOME to put it in")
                .hint("set BERTH_STATE_DIR"),
        ),
        Some(dir) => {
            findings.push(state_directory(dir));
            findings.push(disk(dir));
            findings.extend(repair::credentials(dir));
            findings.extend(credentials(dir));
            findings.extend(repair::record(dir));
            findings.push(port(args.port, dir));
            findings.extend(other_ports(&args));
        }
    }
    let dir = state_dir.clone().unwrap_or_else(|| PathBuf::from("/var/lib/berth"));
    let config = args.machine.config("localhost:50051", "", &dir.join("w1"));
    findings.push(agent(&config.agent));
    let (limits, kind) = store::preflight(&config).await;
    findings.extend(disk_limits(&limits));
    findings.extend(backends(&config, kind).await);
    findings.extend(leftovers(&args, &dir, kind).await);
    findings.extend(fleet::look(global).await);
    if let Some(dir) = state_dir.filter(|_| args.fix) {
        mend(&dir, &mut findings).await;
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    if global.json() {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            show(finding)?;
        }
    }
    Ok(if failed { code::FAILED } else { 0 })
}

/// Mends what can be, and says where it is kept.
async fn mend(state_dir: &Path, findings: &mut [Finding]) {
    let kept = Kept::new(state_dir);
    for finding in findings {
        if let Some(repair) = finding.repair.take() {
            finding.mended(kept.mend(&repair).await);
        }
    }
    if let Some(dir) = kept.dir() {
        output::say(format!("what was changed is kept in {}", dir.display()));
    }
}

/// Sandboxes that no worker would take up, of each worker that this state directory has, or is.
async fn leftovers(args: &DoctorArgs, dir: &Path, files: store::Kind) -> Vec<Finding> {
    let what = "leftover sandboxes";
    let is_worker = |name: &str| name.strip_prefix('w').is_some_and(|n| n.parse::<u32>().is_ok());
    let below = fs::read_dir(dir).into_iter().flatten().flatten();
    let below =
        below.filter(|entry| entry.file_name().to_str().is_some_and(is_worker)).map(|entry| entry.path());
    let mut findings = Vec::new();
    for worker in std::iter::once(dir.to_owned()).chain(below) {
        let config = args.machine.config("localhost:50051", "", &worker);
        let found = orphans::look(&config, files).await;
        for text in &found.unseen {
            findings.push(
                Finding::new(what, Verdict::Unknown, text)
                    .hint("start that backend's engine, or that worker: it removes its own"),
            );
        }
        let sessions: Vec<&str> = found.sessions().map(|(_, session)| session).collect();
        if !sessions.is_empty() {
            let text = format!("{}: of sessions that are gone: {}", worker.display(), sessions.join(", "));
            findings.push(
                Finding::new(what, Verdict::Note, text)
                    .hint("`berth doctor --fix` removes them; the next start of that worker does so too")
                    .mended_by(Repair::Remove(Box::new(config), files)),
            );
        }
    }
    findings
}

fn show(finding: &Finding) -> Result<(), crate::failure::Failure> {
    let mark = match finding.verdict {
        Verdict::Ok => "✓",
        Verdict::Note => "•",
        Verdict::Unknown => "?",
        Verdict::Problem => "✗",
    };
    output::data(format!("{mark} {}: {}", finding.what, printable(&finding.text)))?;
    match &finding.hint {
        Some(hint) => output::data(format!("    hint: {}", printable(hint))),
        None => Ok(()),
    }
}

/// The directory itself, or the nearest one above it that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn state_directory(dir: &Path) -> Finding {
    let (there, shown) = (existing(dir), dir.display());
    let hint = "give one that this user may write to: --state-dir or BERTH_STATE_DIR";
    let access = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    if !there.is_dir() {
        return Finding::new(
            "state directory",
            Verdict::Problem,
            format!("{} is no directory", there.display()),
        )
        .hint(hint);
    }
    match nix::unistd::access(there, access) {
        Ok(()) if there == dir => Finding::new("state directory", Verdict::Ok, format!("{shown}")),
        Ok(()) => Finding::new("state directory", Verdict::Ok, format!("{shown} will be made")),
        Err(error) => {
            Finding::new("state directory", Verdict::Problem, format!("{}: {error}", there.display()))
                .hint(hint)
        }
    }
}

fn disk(dir: &Path) -> Finding {
    let there = existing(dir);
    match nix::sys::statvfs::statvfs(there) {
        Err(error) => Finding::new("disk", Verdict::Unknown, format!("{}: {error}", there.display()))
            .hint("look at the disk under that path"),
        Ok(stats) => {
            let free = stats.blocks_available() * stats.fragment_size();
            let text = format!("{} free under {}", bytes(free), there.display());
            if free >= DISK_WANTED {
                Finding::new("disk", Verdict::Ok, text)
            } else {
                Finding::new("disk", Verdict::Problem, text)
                    .hint("free at least 2 GiB, or put the state directory elsewhere")
            }
        }
    }
}

fn credentials(dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in [local::admin_token_path(dir), local::join_token_path(dir)] {
        let what = format!("credentials {}", path.file_name().unwrap_or_default().to_string_lossy());
        match fs::metadata(&path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => findings.push(
                Finding::new(what, Verdict::Problem, format!("others may read {}", path.display()))
                    .hint(format!("chmod 600 {}, or `berth doctor --fix`", path.display()))
                    .mended_if(repair::closing(&path)),
            ),
            Ok(_) => match local::read_token(&path) {
                Ok(_) => findings.push(Finding::new(what, Verdict::Ok, path.display().to_string())),
                Err(error) => findings.push(from_error(what, Verdict::Problem, &error)),
            },
            Err(_) => findings.push(Finding::new(what, Verdict::Note, "made on first start")),
        }
    }
    findings
}

/// Those that were named, else those of the state directory, where there are any.
fn certificates(global: &Global) -> Vec<Finding> {
    let named = super::tls_dir();
    let mut findings: Vec<Finding> = global.tls_ca.iter().map(|path| tls::ca(path)).collect();
    let files = super::tls::files(global, named.as_ref()).ok();
    let of_use = |files: &Files| named.is_some() || files.dir().exists() || findings.is_empty();
    if let Some(files) = files.filter(of_use) {
        findings.extend(tls::directory(&files, named.is_some(), global.connect_options().ok().as_ref()));
    }
    findings
}

fn port(port: u16, dir: &Path) -> Finding {
    let what = format!("port {port}");
    let error = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => return Finding::new(what, Verdict::Ok, "free"),
        Err(error) => error,
    };
    let ours = local::read_up_record(dir).ok().flatten().filter(|record| {
        record.address.ends_with(&format!(":{port}"))
            && process::find(record).is_ok_and(|found| found.is_some())
    });
    if let Some(record) = ours {
        return Finding::new(
            what,
            Verdict::Ok,
            format!("held by the `berth up` of this machine (pid {})", record.pid),
        );
    }
    let owner = berth_coordinator::port_owner(port)
        .unwrap_or_else(|| "a process that can't be seen from here".to_owned());
    let text = if error.kind() == std::io::ErrorKind::AddrInUse {
        format!("held by {owner}")
    } else {
        error.to_string()
    };
    Finding::new(what, Verdict::Problem, text)
        .hint("stop that, or take another: GRPC_PORT or --port (0: a free one)")
}

/// Those beside gRPC's. 8080, if nobody has asked for it, is taken where it is free: then that is all there is to say.
fn other_ports(args: &DoctorArgs) -> Vec<Finding> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let http = match args.http_port {
        Some(gateway::Port::Off) => None,
        Some(gateway::Port::On(port)) => Some((local(port), Verdict::Problem, "HTTP_PORT")),
        None => Some((local(gateway::USUAL_PORT), Verdict::Note, "HTTP_PORT")),
    };
    let metrics = match args.metrics.metrics_addr {
        Some(Address::On(address)) => Some((address, Verdict::Problem, "BERTH_METRICS_ADDR")),
        Some(Address::Off) | None => None,
    };
    let look = |(address, verdict, name): (SocketAddr, Verdict, &str)| {
        let error = TcpListener::bind(address).err()?;
        // The one that runs here has it.
        let owner = berth_coordinator::port_owner(address.port());
        let text = owner.map_or_else(|| error.to_string(), |owner| format!("held by {owner}"));
        Some(Finding::new(format!("port {}", address.port()), verdict, text).hint(format!("another: {name}")))
    };
    http.into_iter().chain(metrics).filter_map(look).collect()
}

fn agent(path: &Path) -> Finding {
    match up::agent_problem(path) {
        None => Finding::new("agent", Verdict::Ok, path.display().to_string()),
        Some(problem) => {
            Finding::new("agent", Verdict::Problem, &problem.message).hint(problem.hints.join("; "))
        }
    }
}

/// Whether sessions can be held to their disk limit.
fn disk_limits(seen: &Preflight) -> Vec<Finding> {
    let what = "disk limits";
    let mut findings: Vec<Finding> =
        seen.facts.iter().map(|fact| Finding::new(what, Verdict::Ok, fact)).collect();
    findings.extend(
        seen.weaker.iter().map(|weaker| Finding::new(what, Verdict::Note, format!("weaker: {weaker}"))),
    );
    let problems = seen.problems.iter();
    findings.extend(
        problems.map(|problem| Finding::new(what, Verdict::Problem, &problem.what).hint(&problem.hint)),
    );
    findings
}

/// One that works is enough; with a backend named, that one must.
async fn backends(config: &Config, files: store::Kind) -> Vec<Finding> {
    let seen = preflight(config, files).await;
    let named = match config.sandbox {
        berth_proto::domain::BackendChoice::Only(backend) => Some(backend),
        berth_proto::domain::BackendChoice::Auto => None,
    };
    let needed = |backend| named.is_none_or(|named| named == backend);
    let enough = seen.iter().any(|(backend, preflight)| needed(*backend) && preflight.ready());
    let mut findings = Vec::new();
    for (backend, preflight) in &seen {
        findings.extend(backend_findings(backend.as_str(), preflight, enough || !needed(*backend)));
    }
    if enough {
        let chosen = seen.iter().find(|(backend, preflight)| needed(*backend) && preflight.ready());
        let name = chosen.map(|(backend, _)| backend.as_str()).unwrap_or_default();
        findings.push(Finding::new("sandboxes", Verdict::Ok, format!("new sessions would get {name}")));
    } else {
        let text = match named {
            Some(named) => format!("{named} is asked for and can't be used"),
            None => "no backend can be used".to_owned(),
        };
        findings.push(
            Finding::new("sandboxes", Verdict::Problem, text).hint(
                "run as root for native sandboxes, or install a container engine that this user may use",
            ),
        );
    }
    findings
}

fn backend_findings(name: &str, preflight: &Preflight, can_do_without: bool) -> Vec<Finding> {
    let what = format!("{name} sandboxes");
    let mut findings = Vec::new();
    if preflight.ready() {
        findings.push(Finding::new(&what, Verdict::Ok, preflight.facts.join(", ")));
    }
    for weaker in &preflight.weaker {
        findings.push(Finding::new(&what, Verdict::Note, format!("weaker: {weaker}")));
    }
    let verdict = if can_do_without { Verdict::Note } else { Verdict::Problem };
    for problem in &preflight.problems {
        let finding = Finding::new(&what, verdict, &problem.what);
        let hint = if problem.hint.is_empty() { "see docs/security.md" } else { &problem.hint };
        findings.push(finding.hint(hint));
    }
    findings
}

fn from_error(what: impl Into<String>, verdict: Verdict, error: &Error) -> Finding {
    let finding = Finding::new(what, verdict, error.message());
    match error.hint() {
        Some(hint) => finding.hint(hint),
        None => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_worker::sandbox::Problem;

    #[test]
    fn what_is_weaker_is_a_note_and_what_is_missing_has_a_hint() {
        let problems =
            ["fix it", ""].map(|hint| Problem { what: "no root".into(), hint: hint.into() }).into();
        let preflight =
            Preflight { weaker: vec!["live-restore is off".into()], problems, ..Preflight::default() };
        for (can_do_without, verdict) in [(true, Verdict::Note), (false, Verdict::Problem)] {
            let found = backend_findings("docker", &preflight, can_do_without);
            let [weaker, hinted, bare] = &found[..] else { panic!("{found:?}") };
            assert!(weaker.verdict == Verdict::Note && weaker.text.contains("live-restore"), "{weaker:?}");
            assert_eq!((hinted.verdict, hinted.hint.as_deref()), (verdict, Some("fix it")));
            assert!(bare.hint.is_some(), "{bare:?}");
        }
    }
}
