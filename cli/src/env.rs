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
pub const COORDINATOR_ADDR: &str = "COORDINATOR_ADDR";
pub const LOG_LEVEL: &str = "LOG_LEVEL";
pub const BERTH_LOG_FORMAT: &str = "BERTH_LOG_FORMAT";

/// All of them.
pub const KNOWN: &[Variable] = &[
    var("GRPC_PORT", "coordinator, worker", "gRPC port (coordinator: 50051; worker: no listener)"),
    var("HTTP_PORT", "coordinator", "HTTP port of the gateway (8080)"),
    var(LOG_LEVEL, "all", "off, error, warn, info, debug or trace (info)"),
    var("WORKER_ID", "worker", "name of the worker (a unique id, stored in the state directory)"),
    var("MAX_SESSIONS", "worker, berth up", "sessions that a worker holds at most (5)"),
    var("BASE_WORKSPACE", "worker", "where sessions live (under the state directory)"),
    var(COORDINATOR_ADDR, "worker, berth", "address of the coordinator (localhost:50051)"),
    var(BERTH_ADDRESS, "berth, client library", "address of the coordinator; goes before COORDINATOR_ADDR"),
    var(BERTH_TOKEN, "berth, client library", "token to call the coordinator with"),
    var(BERTH_STATE_DIR, "all", "state directory"),
    var("BERTH_LISTEN", "coordinator", "IP address to listen on (127.0.0.1)"),
    var("BERTH_INSECURE_LISTEN", "coordinator", "1: listen beyond loopback although the port has no TLS"),
    var("BERTH_TEMPLATES", "coordinator, berth up", "TOML file with templates"),
    var("BERTH_LEASE", "coordinator", "a worker's lease"),
    var("BERTH_SANDBOX", "worker, berth up, berth demo", "auto, native, docker or fake (auto)"),
    var("BERTH_SANDBOX_IMAGE", "worker, berth up", "image of docker sandboxes (berth/sandbox:base)"),
    var("BERTH_JOIN_TOKEN", "worker", "token to register with"),
    var("BERTH_JOIN_TOKEN_FILE", "worker", "file that holds the token to register with"),
    var("BERTH_LABELS", "worker, berth up", "labels of the worker: a=1,b=2"),
    var("BERTH_AGENT", "worker, berth up", "the berth-agent executable (beside this one)"),
    var("BERTH_CPU_MILLIS", "worker", "cpu to offer, in thousandths of a core (what the machine has)"),
    var("BERTH_MEMORY", "worker", "memory to offer (what the machine has)"),
    var("BERTH_DISK", "worker", "disk to offer (what the machine has)"),
    var(
        "BERTH_SHUTDOWN_GRACE",
        "coordinator, worker, berth up",
        "time that calls and sessions have to end at a stop",
    ),
    var(BERTH_LOG_FORMAT, "all", "text or json (text on a terminal, else json)"),
    var("BERTH_NO_INSTALL", "scripts", "1: install nothing"),
    var("BERTH_BIN_DIR", "tests", "where the built commands are"),
    var("BERTH_SKIP_LOG", "tests", "where tests write what they skip"),
    var("BERTH_TEST_DOCKER", "tests", "1: run the docker backend's tests"),
    var("BERTH_TEST_SCALE", "tests", "factor on the counts of long tests"),
    var("BERTH_BENCH_ROUNDS", "bench", "rounds of each measurement"),
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
    let mut failure = Failure::usage(format!(
        "unknown environment variable{} {}",
        if unknown.len() == 1 { "" } else { "s" },
        unknown.join(", ")
    ));
    for name in &unknown {
        if let Some(nearest) = nearest(name) {
            failure = failure.hint(format!("{name}: did you mean {nearest}?"));
        }
    }
    if failure.hints.is_empty() {
        failure = failure.hint(format!("unset {first}; `berth env` lists the names that are known"));
    }
    Err(failure)
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

    #[test]
    fn distances() {
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "abd"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
