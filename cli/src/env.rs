//! Every environment variable that Berth reads, in one place. A `BERTH_*` variable that
//! is not here is a mistake, and a mistake that passes silently is a setting that somebody
//! believes in: it is refused, with the nearest known name.
//!
//! The names without the prefix are fixed, because deployments already use them; an
//! unknown name without the prefix is nobody's business.

use std::ffi::OsString;

use crate::failure::Failure;

/// A variable, who reads it, and what it sets.
pub struct Variable {
    pub name: &'static str,
    pub used_by: &'static str,
    pub what: &'static str,
}

const fn var(name: &'static str, used_by: &'static str, what: &'static str) -> Variable {
    Variable { name, used_by, what }
}

pub const BERTH_ADDRESS: &str = "BERTH_ADDRESS";
pub const BERTH_TOKEN: &str = "BERTH_TOKEN";
pub const BERTH_STATE_DIR: &str = "BERTH_STATE_DIR";
pub const BERTH_TLS_CA: &str = "BERTH_TLS_CA";
pub const BERTH_TLS_DIR: &str = "BERTH_TLS_DIR";
pub const COORDINATOR_ADDR: &str = "COORDINATOR_ADDR";
pub const LOG_LEVEL: &str = "LOG_LEVEL";
pub const BERTH_LOG_FORMAT: &str = "BERTH_LOG_FORMAT";

/// The commands that take a worker's settings.
const WORKERS: &str = "worker, berth up, berth doctor, berth mcp";

/// `make docker-up` and its kin.
const COMPOSE: &str = "compose";

/// All of them.
pub const KNOWN: &[Variable] = &[
    var(
        "GRPC_PORT",
        "coordinator, worker, berth up, berth doctor",
        "gRPC port (50051; for a worker: nothing listens)",
    ),
    var(
        "HTTP_PORT",
        "coordinator, berth up, berth doctor",
        "HTTP port of the gateway: MCP at /mcp, and E2B's API; off: none (8080)",
    ),
    var(
        "BERTH_HTTP_LISTEN",
        "coordinator, berth up",
        "IP address that the gateway listens on; beyond loopback with a certificate (127.0.0.1)",
    ),
    var(
        "BERTH_HTTP_CERT",
        "coordinator, berth up",
        "certificate of the HTTP port, a PEM file; with it HTTP goes over TLS",
    ),
    var(
        "BERTH_HTTP_KEY",
        "coordinator, berth up",
        "private key of that certificate, a PEM file of mode 0600",
    ),
    var(
        "BERTH_HTTP_HOSTS",
        "coordinator, berth up",
        "names that the gateway is reached by beside loopback's and its certificate's: a,b",
    ),
    var(
        "BERTH_HTTP_ORIGINS",
        "coordinator, berth up",
        "origins of web pages that may call the gateway: scheme://host:port,…",
    ),
    var(
        "BERTH_METRICS_ADDR",
        "coordinator, worker, berth up, berth doctor",
        "IP:PORT for /metrics and health in plain HTTP, without a token; off: none (off)",
    ),
    var(
        LOG_LEVEL,
        "coordinator, worker, berth up, berth mcp",
        "off, error, warn, info, debug or trace (info)",
    ),
    var(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "coordinator, worker, berth up, berth mcp",
        "send spans by OTLP over HTTP to this collector: http://host:4318 (none are sent)",
    ),
    var(
        "OTEL_EXPORTER_OTLP_HEADERS",
        "coordinator, worker, berth up, berth mcp",
        "headers for the collector: name=value,name=value",
    ),
    var(
        "OTEL_TRACES_SAMPLER_ARG",
        "coordinator, worker, berth up, berth mcp",
        "of the traces that begin here, send this part: 0 to 1 (1)",
    ),
    var(
        "OTEL_SERVICE_NAME",
        "coordinator, worker, berth up, berth mcp",
        "the name under which spans are sent (that of the command)",
    ),
    var("TRACEPARENT", "berth", "the trace that a command's request belongs to (one of its own)"),
    var("WORKER_ID", "worker", "name of the worker (drawn once, kept in the state directory)"),
    var("MAX_SESSIONS", WORKERS, "sessions that a worker holds at most (5)"),
    var("BASE_WORKSPACE", "worker", "where sessions live (under the state directory)"),
    var(COORDINATOR_ADDR, "worker, berth", "address of the coordinator (localhost:50051)"),
    var(BERTH_ADDRESS, "berth, client library", "address of the coordinator; goes before COORDINATOR_ADDR"),
    var(BERTH_TOKEN, "berth, client library", "token to call the coordinator with"),
    var(BERTH_STATE_DIR, "coordinator, worker, berth, client library", "state directory"),
    var(
        BERTH_TLS_DIR,
        "coordinator, worker, berth, berth tls, client library",
        "directory of the certificates; with it everything goes over TLS (for `berth tls`: tls in the state directory)",
    ),
    var(
        BERTH_TLS_CA,
        "berth, client library",
        "certificate of the CA that the coordinator's must be of (ca.pem in BERTH_TLS_DIR)",
    ),
    var("BERTH_LISTEN", "coordinator, worker", "IP address to listen on (127.0.0.1)"),
    var(
        "BERTH_INSECURE_LISTEN",
        "coordinator, worker",
        "true or 1: listen beyond loopback although there is no TLS (false)",
    ),
    var("BERTH_TEMPLATES", "coordinator, berth up", "TOML file with templates"),
    var("BERTH_LEASE", "coordinator", "how long a worker holds its sessions after its last heartbeat (10s)"),
    var(
        "BERTH_BLOBS",
        "coordinator, berth up",
        "where checkpoints are kept: a directory or s3://BUCKET/PREFIX (blobs in the state directory)",
    ),
    var(
        "BERTH_WORKER_LOSS_GRACE",
        "coordinator, berth up",
        "how long the sessions of a lost worker wait for it before they end (5m)",
    ),
    var(
        "BERTH_RESTORE_GRACE",
        "coordinator, berth up",
        "how long after a lost worker's lease a session that may be restored is placed elsewhere (10s)",
    ),
    var(
        "BERTH_PAUSED_TTL",
        "coordinator, berth up",
        "how long a session stays paused before it gives its place up; 0: for ever (10m)",
    ),
    var(
        "BERTH_AUDIT_ARGV",
        "coordinator, berth up",
        "what is recorded of command lines: hash or full (hash)",
    ),
    var("BERTH_AUDIT_KEEP", "coordinator, berth up", "how long audit records are kept (90 days)"),
    var("BERTH_ARTIFACT_KEEP", "coordinator, berth up", "how long artifacts are kept (7 days)"),
    var(
        "BERTH_ARTIFACT_QUOTA",
        "coordinator, berth up",
        "bytes of all artifacts of a tenant; 0: none are kept (1G)",
    ),
    var("BERTH_ARTIFACT_COUNT", "coordinator, berth up", "artifacts of a tenant (10000)"),
    var("BERTH_ARTIFACT_SIZE", "coordinator, berth up", "bytes of one artifact (256M)"),
    var(
        "BERTH_SANDBOX",
        "worker, berth up, berth doctor, berth demo, berth mcp",
        "auto, native, docker or fake (auto)",
    ),
    var(
        "BERTH_NATIVE_IN_CONTAINER",
        WORKERS,
        "true or 1: native sandboxes although the worker is its container's main process, so that its restart ends them (false)",
    ),
    var(
        "BERTH_SANDBOX_IMAGE",
        "worker, berth up, berth doctor, berth demo, berth mcp",
        "image of docker sandboxes (berth/sandbox:base)",
    ),
    var(
        "BERTH_DOCKER_RUNTIME",
        WORKERS,
        "the engine's runtime for docker sandboxes, such as runsc (the engine's default)",
    ),
    var("BERTH_JOIN_TOKEN", "worker", "token to register with"),
    var("BERTH_JOIN_TOKEN_FILE", "worker", "file that holds the token to register with"),
    var("BERTH_LABELS", WORKERS, "labels of the worker: a=1,b=2"),
    var(
        "BERTH_AGENT",
        "worker, berth up, berth doctor, berth demo, berth mcp",
        "the berth-agent executable (beside this one)",
    ),
    var("BERTH_CPU_MILLIS", WORKERS, "CPU to offer, in thousandths of a core (4000 for each core)"),
    var("BERTH_MEMORY", WORKERS, "memory to offer (what the machine has)"),
    var("BERTH_DISK", WORKERS, "disk to offer (of what is free, what leaves room for output)"),
    var(
        "BERTH_WORKSPACE",
        WORKERS,
        "what holds sessions' files to their size: auto, ext4, volume, tmpfs, or directory: nothing does (auto)",
    ),
    var(
        "BERTH_SHUTDOWN_GRACE",
        "coordinator, worker, berth up, berth doctor, berth mcp",
        "time that calls (coordinator: 5s) and sessions (worker: 10s) have to end at a stop",
    ),
    var(
        BERTH_LOG_FORMAT,
        "coordinator, worker, berth up, berth mcp",
        "text or json (text on a terminal and with `up -d`, else json)",
    ),
    var("BERTH_ON_STOP", "worker", "drain or keep: what a stop does with its sessions (drain)"),
    var("BERTH_TASK_TIMEOUT", WORKERS, "timeout of tasks where nothing else names one; 0: none (5m)"),
    var("BERTH_PTY_SIZE", WORKERS, "size of terminals where nothing else names one (80x24)"),
    var("BERTH_MAX_TASKS", WORKERS, "tasks of a session at once where nothing else says (32)"),
    var("BERTH_EGRESS_FULL", WORKERS, "true or 1: sessions may have any public address (false)"),
    var("BERTH_EGRESS_EXEMPT", WORKERS, "host:port,…: what may be reached although it is private"),
    var("BERTH_EGRESS_PACKAGES", WORKERS, "host:port,…: of `packages`, beside the index of the worker's pip"),
    var("BERTH_EGRESS_HOSTS", WORKERS, "name=address,…: what goes before the resolver for sessions' egress"),
    var("BERTH_HOST_PORT", COMPOSE, "port of this machine for gRPC (50051)"),
    var("BERTH_HOST_HTTP_PORT", COMPOSE, "port of this machine for the gateway (8080)"),
    var("BERTH_HOST_IP", COMPOSE, "where both are published (127.0.0.1)"),
    var("BERTH_HOST_NAME", COMPOSE, "a name for the coordinator's certificate, beside localhost"),
    var("BERTH_TAG", COMPOSE, "tag of the images (latest)"),
    var("BERTH_ENGINE_SOCKET", COMPOSE, "the engine that the workers use (/var/run/docker.sock)"),
    var("BERTH_MAX_SESSIONS", COMPOSE, "sessions of each worker (5)"),
    var("BERTH_OFFER_MEMORY", COMPOSE, "memory that each worker offers to sessions (4G)"),
    var("BERTH_COORDINATOR_MEMORY", COMPOSE, "memory of the coordinator's container (1g)"),
    var("BERTH_COORDINATOR_CPUS", COMPOSE, "cores of the coordinator's container (2)"),
    var("BERTH_WORKER_MEMORY", COMPOSE, "memory of a worker's container, its sandboxes apart (2g)"),
    var("BERTH_WORKER_CPUS", COMPOSE, "cores of a worker's container, its sandboxes apart (2)"),
    var("BERTH_COMPOSE_DIR", COMPOSE, "where certificates and tokens are kept (tmp/compose)"),
    var("BERTH_DEV_BIN", COMPOSE, "where `make docker-up-dev` takes binaries from (bin)"),
    var(
        "BERTH_DEV_USER",
        COMPOSE,
        "user and group of the coordinator of `make docker-up-dev` (who calls it)",
    ),
    var("BERTH_COMPOSE_WAIT", COMPOSE, "seconds that all of it has to be well (300)"),
    var("BERTH_DRAIN", COMPOSE, "time that sessions have to end by themselves at a stop (10s)"),
    var("BERTH_NO_INSTALL", "scripts", "1: install nothing"),
    var(
        "BERTH_KUBERNETES_DIR",
        "scripts",
        "where certificates and tokens for Kubernetes are kept (tmp/kubernetes)",
    ),
    var("BERTH_BIN_DIR", "tests, scripts", "where the built commands are"),
    var("BERTH_SKIP_LOG", "tests", "where tests write what they skip"),
    var("BERTH_ABUSE_LOG", "tests", "where the abuse suite writes the rows of its table"),
    var("BERTH_TEST_DOCKER", "tests", "1: run the docker backend's tests"),
    var(
        "BERTH_TEST_FULL_ROOT",
        "tests",
        "an unpacked root with a Jupyter kernel, for the interpreter's tests",
    ),
    var("BERTH_TEST_RUNSC", "tests", "the runsc that is tested (that of the PATH)"),
    var("BERTH_TEST_AGENT", "tests", "the berth-agent that the agent's own tests use"),
    var("BERTH_CHAOS_SECONDS", "Makefile", "how long the chaos suite runs"),
    var("BERTH_CHAOS_SEED", "Makefile", "which faults the chaos suite draws"),
    var("BERTH_TEST_SCALE", "Makefile", "factor on the counts of long tests"),
    var("BERTH_VM_MEMORY", "scripts", "memory of the virtual machine of scripts/vm.sh (4G)"),
    var("BERTH_VM_CGROUPS", "scripts", "v1: the layout of its cgroups (v2)"),
    var("BERTH_VM_SECONDS", "scripts", "how long it may take (3600)"),
    var("BERTH_BENCH_ROUNDS", "bench", "rounds of each measurement (200)"),
];

/// Refuses `BERTH_*` names that nobody reads.
pub fn check(names: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let mut unknown: Vec<String> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with("BERTH_") && !KNOWN.iter().any(|known| known.name == name))
        .collect();
    unknown.sort();
    let Some(first) = unknown.first() else { return Ok(()) };
    let failure = Failure::usage(format!(
        "unknown environment variable{} {}",
        if unknown.len() == 1 { "" } else { "s" },
        unknown.join(", ")
    ));
    let near = |name: &String| nearest(name).map(|nearest| format!("{name}: did you mean {nearest}?"));
    let otherwise = format!("unset {first}; `berth env` lists the names that are known");
    Err(failure.hints(unknown.iter().filter_map(near), otherwise))
}

/// The closest known name, if it is close at all.
pub fn nearest(name: &str) -> Option<&'static str> {
    KNOWN
        .iter()
        .map(|known| (distance(name, known.name), known.name))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .map(|(_, known)| known)
}

/// Levenshtein's: insertions, deletions and replacements between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::{Path, PathBuf},
    };

    use clap::CommandFactory;

    use super::*;

    fn check_names(names: &[&str]) -> Result<(), Failure> {
        check(names.iter().map(OsString::from))
    }

    #[test]
    fn known_and_foreign_names_pass() {
        let known: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        assert!(check_names(&known).is_ok());
        assert!(check_names(&["PATH", "GRPC_PROT", "XBERTH_A", "berth_x"]).is_ok());
    }

    #[test]
    fn a_misspelt_name_is_refused_with_the_nearest() {
        let failure = check_names(&["PATH", "BERTH_SANBOX"]).unwrap_err();
        assert_eq!(failure.code, crate::failure::code::USAGE);
        assert_eq!(failure.message, "unknown environment variable BERTH_SANBOX");
        assert_eq!(failure.hints, ["BERTH_SANBOX: did you mean BERTH_SANDBOX?"]);
    }

    #[test]
    fn a_far_name_is_refused_without_a_guess() {
        let failure = check_names(&["BERTH_XYZZY_PLUGH"]).unwrap_err();
        assert!(failure.hints[0].starts_with("unset BERTH_XYZZY_PLUGH"), "{failure:?}");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KNOWN.len());
    }

    /// What the command lines declare: each variable with the commands that take it.
    fn declared() -> BTreeMap<String, BTreeSet<String>> {
        fn take(to: &mut BTreeMap<String, BTreeSet<String>>, command: &clap::Command, name: &str) {
            for variable in command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()) {
                to.entry(variable.to_owned()).or_default().insert(name.to_owned());
            }
            for below in command.get_subcommands() {
                take(to, below, &format!("{name} {}", below.get_name()));
            }
        }
        let mut declared = BTreeMap::new();
        take(&mut declared, &crate::commands::Cli::command(), "berth");
        take(&mut declared, &crate::serve::coordinator::CoordinatorArgs::command(), "coordinator");
        take(&mut declared, &crate::serve::worker::WorkerArgs::command(), "worker");
        declared
    }

    /// Where those are read that no command line declares.
    fn sources(reader: &str) -> Option<&'static [&'static str]> {
        match reader {
            "client library" => Some(&["client/src"]),
            "scripts" => Some(&["scripts"]),
            "compose" => Some(&["docker-compose.yml", "scripts/compose.sh", "scripts/compose"]),
            "tests" => Some(&["tests/src", "tests/tests", "agent/tests"]),
            "bench" => Some(&["bench/src"]),
            "Makefile" => Some(&["Makefile"]),
            // Read by hand, as it goes after another one.
            "berth" => Some(&["cli/src/commands/mod.rs"]),
            _ => None,
        }
    }

    /// The text of a file, or of all files below a directory.
    fn text(path: &Path) -> String {
        match std::fs::read_dir(path) {
            Ok(entries) => entries.map(|entry| text(&entry.unwrap().path())).collect(),
            Err(_) => std::fs::read_to_string(path).unwrap_or_default(),
        }
    }

    fn workspace() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn each_variable_is_read_where_the_list_says_and_nowhere_else() {
        let mut declared = declared();
        for known in KNOWN {
            let declared = declared.remove(known.name).unwrap_or_default();
            let told: BTreeSet<String> = known.used_by.split(", ").map(str::to_owned).collect();
            let untold: Vec<_> = declared.difference(&told).collect();
            assert!(untold.is_empty(), "{} is also read by {untold:?}", known.name);
            for reader in told.difference(&declared) {
                let places = sources(reader).unwrap_or_default();
                let read = places.iter().any(|place| text(&workspace().join(place)).contains(known.name));
                assert!(read, "{} is not read by {reader}", known.name);
            }
        }
        assert!(declared.is_empty(), "not in the list: {declared:?}");
    }

    #[test]
    fn no_source_reads_a_variable_that_is_not_in_the_list() {
        for part in ["proto", "agent", "coordinator", "worker", "client", "cli", "tests", "bench"] {
            let text = text(&workspace().join(part));
            for call in ["env::var(\"", "env::var_os(\"", "env = \""] {
                for rest in text.split(call).skip(1) {
                    let name = rest.split('"').next().unwrap_or_default();
                    let known = !name.starts_with("BERTH_") || KNOWN.iter().any(|known| known.name == name);
                    assert!(known, "{part} reads {name}");
                }
            }
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "abd"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
