//! What `berth up` leaves on a machine for its users: where it listens and the token
//! to use, both under the state directory.
//!
//! The token found there is only ever sent to this machine: an address elsewhere, given
//! by hand or by a stray variable, must not be handed the local administrator's rights.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Where a coordinator listens unless it is told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:50051";

/// The record of a running `berth up`: `<state>/up.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpRecord {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: with it, a reused pid is never taken for this process.
    pub start_time: u64,
    /// Of the boot that `pid` and `start_time` belong to.
    pub boot_id: String,
    /// `host:port` of the coordinator.
    pub address: String,
    /// Where the gateway serves HTTP, as a URL; absent where it does not.
    #[serde(default)]
    pub http: Option<String>,
    pub version: String,
    pub workers: usize,
    /// A worker takes sessions.
    pub ready: bool,
    /// Workers that were not ready when this was: each with its reason.
    #[serde(default)]
    pub unready: Vec<UnreadyWorker>,
    /// Set when it runs detached.
    pub log: Option<PathBuf>,
}

/// A worker of `berth up` that takes no sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadyWorker {
    pub worker: String,
    pub reason: String,
}

/// `BERTH_STATE_DIR`, else `/var/lib/berth` as root, else `$XDG_STATE_HOME/berth` or
/// `~/.local/state/berth`.
pub fn default_state_dir() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("BERTH_STATE_DIR") {
        return Ok(dir);
    }
    if is_root() {
        return Ok(PathBuf::from("/var/lib/berth"));
    }
    if let Some(dir) = set("XDG_STATE_HOME").filter(|dir| dir.is_absolute()) {
        return Ok(dir.join("berth"));
    }
    match set("HOME") {
        Some(home) => Ok(home.join(".local/state/berth")),
        None => Err(Error::invalid("there is no HOME, so no place for the state directory")
            .or_hint("set BERTH_STATE_DIR")),
    }
}

/// Whether this process is root, as the kernel sees it.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Where the administrator's token is.
pub fn admin_token_path(state_dir: &Path) -> PathBuf {
    state_dir.join("credentials/admin.token")
}

/// Where the workers' join token is.
pub fn join_token_path(state_dir: &Path) -> PathBuf {
    state_dir.join("credentials/join.token")
}

/// Where `berth tls init` puts certificates.
pub fn tls_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("tls")
}

/// Where the record of a running `berth up` is.
pub fn up_record_path(state_dir: &Path) -> PathBuf {
    state_dir.join("up.json")
}

/// Reads a token file. `None`: there is none.
pub fn read_token(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Err(Error::invalid(format!("{} is empty", path.display()))),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("can't read the token in {}", path.display()), &error)
            .or_hint("run as the user that started Berth, or set BERTH_TOKEN")),
    }
}

/// Reads the record of a running `berth up`. `None`: there is none. It may be stale:
/// check the identity before acting on the pid.
pub fn read_up_record(state_dir: &Path) -> Result<Option<UpRecord>, Error> {
    let path = up_record_path(state_dir);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::invalid(format!("{} is damaged: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Another user's: as good as none; the address may still be given by hand.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(Error::io(format!("can't read {}", path.display()), &error)),
    }
}

/// Whether `address` (`host:port` or a URI) is this machine's loopback.
pub fn is_loopback(address: &str) -> bool {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    // `user@host` would send the call to `host`.
    if authority.contains('@') {
        return false;
    }
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(""),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        for yes in
            ["localhost:50051", "127.0.0.1:1", "127.9.9.9:1", "[::1]:5", "http://localhost:5/", "localhost"]
        {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "example.org:1",
            "10.0.0.1:1",
            "localhost.example.org:1",
            "http://127.0.0.1@evil:1",
            "[fe80::1]:1",
            "",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
