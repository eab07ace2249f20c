//! What a stopped fleet must not leave: processes, mounts, cgroups, containers, files.
//!
//! Processes are noted while the fleet runs, as pid and start time, by walking the children
//! of its components; a sandbox whose parent is gone is found by its cgroup and by the
//! state directory in its command line. Only looked at, never touched: cleaning up is the
//! fleet's own business, and what it forgot shall be seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{Report, fleet::Fleet};
use crate::{failure::Failure, process};

/// Ended processes may take a moment to be reaped by whoever inherited them.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// The engine has this long to list its containers.
const ENGINE_WITHIN: Duration = Duration::from_secs(10);

/// Label of our containers.
const INSTANCE_LABEL: &str = "berth.instance";

/// What was seen of the fleet while it ran.
#[derive(Default)]
pub struct Traces {
    /// Pid → start time, and the name for messages.
    processes: BTreeMap<i32, (u64, String)>,
    /// Of the workers: marks everything that they make.
    instances: BTreeSet<String>,
    backends_docker: bool,
}

impl Traces {
    /// Notes what there is now.
    pub fn note(&mut self, fleet: &Fleet) {
        let children = children();
        let mut stack: Vec<i32> = fleet.components().map(|component| component.pid).collect();
        while let Some(pid) = stack.pop() {
            if let Some(started) = process::start_time(pid) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                self.processes.insert(pid, (started, name.trim().to_owned()));
            }
            stack.extend(children.get(&pid).into_iter().flatten());
        }
        for dir in fleet.worker_dirs() {
            if let Ok(instance) = fs::read_to_string(dir.join("instance")) {
                self.instances.insert(instance.trim().to_owned());
            }
            self.backends_docker |= uses_docker(&dir);
        }
    }

    /// Looks whether any of it is left.
    pub async fn check(&self, fleet: &Fleet, report: &mut Report) -> Result<(), Failure> {
        let mut left = self.processes_left(fleet.dir());
        let deadline = tokio::time::Instant::now() + SETTLE;
        while !left.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            left = self.processes_left(fleet.dir());
        }
        tell(report, "processes", &format!("all {} are gone", self.processes.len()), &left)?;
        tell(report, "mounts", "none is left", &mounts_below(fleet.dir()))?;
        let groups: Vec<String> =
            self.instances.iter().flat_map(|instance| cgroups(&format!("berth-{instance}"))).collect();
        tell(report, "cgroups", "none is left", &groups)?;
        if self.backends_docker {
            match tokio::time::timeout(ENGINE_WITHIN, self.containers()).await {
                Ok(Ok(left)) => tell(report, "containers", "none is left", &left)?,
                Ok(Err(problem)) => report.failed(format_args!("containers: can't be listed: {problem}"))?,
                Err(_) => report.failed("containers: the engine does not answer")?,
            }
        }
        let sessions: Vec<String> =
            fleet.worker_dirs().flat_map(|dir| entries(&dir.join("sessions"))).collect();
        tell(report, "workspaces", "none is left", &sessions)
    }

    fn processes_left(&self, dir: &Path) -> Vec<String> {
        let noted = self
            .processes
            .iter()
            .filter(|(pid, (started, _))| process::start_time(**pid) == Some(*started))
            .map(|(pid, (_, name))| format!("{name} (pid {pid})"));
        let needle = dir.as_os_str().as_encoded_bytes();
        let named = pids().filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            pid.cast_unsigned() != std::process::id()
                && line.windows(needle.len()).any(|window| window == needle)
        });
        noted.chain(named.map(|pid| format!("pid {pid}"))).collect()
    }

    /// Containers of our workers, by label, from the engine's own API.
    async fn containers(&self) -> Result<Vec<String>, String> {
        let mut left = Vec::new();
        for instance in &self.instances {
            let filter = format!("%7B%22label%22%3A%5B%22{INSTANCE_LABEL}%3D{instance}%22%5D%7D");
            let answer = engine_get(&format!("/containers/json?all=true&filters={filter}")).await?;
            let found: Vec<serde_json::Value> =
                serde_json::from_str(&answer).map_err(|error| error.to_string())?;
            left.extend(found.iter().map(|container| container["Names"].to_string()));
        }
        Ok(left)
    }
}

fn tell(report: &mut Report, what: &str, gone: &str, left: &[String]) -> Result<(), Failure> {
    if left.is_empty() {
        return report.ok(format_args!("{what}: {gone}"));
    }
    report.failed(format_args!("{what}: {} left", left.len()))?;
    for item in left.iter().take(10) {
        report.show(item)?;
    }
    Ok(())
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Parent → children, of all processes.
fn children() -> BTreeMap<i32, Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in pids() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state, then the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

/// Mount points of this mount namespace at or below `dir`, or whose source is there.
fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let needle = dir.display().to_string();
    table.lines().filter(|line| line.contains(&needle)).map(str::to_owned).collect()
}

/// Cgroup directories with this text in their name.
fn cgroups(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(text) {
                found.push(entry.path().display().to_string());
            }
            stack.push(entry.path());
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// Whether a session of this worker is in a container: its note says so.
fn uses_docker(worker_dir: &Path) -> bool {
    entries(&worker_dir.join("sessions")).iter().any(|session| {
        fs::read_to_string(Path::new(session).join("sandbox.json"))
            .is_ok_and(|text| text.contains("\"docker\""))
    })
}

/// A GET on the engine's Unix socket. HTTP/1.0: the answer ends with the connection.
async fn engine_get(path: &str) -> Result<String, String> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let Some(socket) = host.strip_prefix("unix://") else {
        return Err(format!("DOCKER_HOST is {host}, and only Unix sockets can be asked"));
    };
    let talk = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(16 << 20).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = talk.await.map_err(|error| format!("{socket}: {error}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split_whitespace().nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(format!("{socket}: {}", answer.lines().next().unwrap_or("no answer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_children_are_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let ours = children().remove(&std::process::id().cast_signed()).unwrap_or_default();
        assert!(ours.contains(&child.id().cast_signed()), "{ours:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_mount_is_found_by_its_place() {
        assert!(!mounts_below(Path::new("/proc")).is_empty());
        assert_eq!(mounts_below(Path::new("/nowhere/at/all")), Vec::<String>::new());
    }
}
