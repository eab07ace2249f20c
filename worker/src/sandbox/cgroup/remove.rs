//! Kills what is in a cgroup and removes it.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::file::{ignore_missing, write};

pub(super) fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        kill_all(dir)?;
        match remove_dirs(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                wait_for_change(dir);
            }
            other => return other,
        }
    }
}

/// `cgroup.kill` where there is one; otherwise each process by id, read at this moment
/// from a cgroup that only this session's processes are in.
fn kill_all(dir: &Path) -> io::Result<()> {
    if write(&dir.join("cgroup.kill"), 1).is_ok() {
        return Ok(());
    }
    for child in subdirs(dir)? {
        kill_all(&child)?;
    }
    let procs = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(procs) => procs,
        Err(error) => return ignore_missing(error),
    };
    // 0 is a process that our PID namespace can't name: not ours to kill.
    for pid in procs.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

/// Deepest first. A cgroup has no other entries than its children that could be removed.
pub(super) fn remove_dirs(dir: &Path) -> io::Result<()> {
    for child in subdirs(dir)? {
        remove_dirs(&child)?;
    }
    fs::remove_dir(dir).or_else(ignore_missing)
}

fn subdirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return ignore_missing(error).map(|()| Vec::new()),
    };
    Ok(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
}

/// Sleeps until the cgroup's events change, or a few milliseconds.
pub(super) fn wait_for_change(dir: &Path) {
    let step = PollTimeout::from(5u8);
    match fs::File::open(dir.join("cgroup.events")) {
        Ok(events) => {
            let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], step);
        }
        Err(_) => {
            let _ = poll(&mut [], step);
        }
    }
}
