//! Which process is meant: pid, start time and boot together. A pid alone may be another
//! process by now, and ours to signal least of all.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use berth_client::local::UpRecord;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::time::Instant;

use crate::sys;

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything: count from its end. State is field 3.
    let rest = stat.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Drawn by the kernel at each boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The process of a record, held so that it can't become another. `None`: it is gone.
pub fn find(record: &UpRecord) -> io::Result<Option<OwnedFd>> {
    if record.boot_id != boot_id() {
        return Ok(None);
    }
    let fd = match sys::pidfd_open(record.pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Looked at after the descriptor was taken: now it is that process or none.
    Ok((start_time(record.pid) == Some(record.start_time)).then_some(fd))
}

/// Waits for the end of a process. False: it still runs after `limit`.
pub async fn ended_within(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let process = process.try_clone()?;
    let deadline = Instant::now() + limit;
    // A pidfd becomes readable when its process ends. A thread of its own waits for that;
    // should nobody want to know any more, it is not waited for.
    let waiting = tokio::task::spawn_blocking(move || {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
                Err(Errno::EINTR) => {}
                Ok(0) if Instant::now() < deadline => {}
                result => return Ok(result? > 0),
            }
        }
    });
    waiting.await.map_err(io::Error::other)?
}

/// The last lines of a log, for a message; none of what was there before byte `from`.
pub fn last_lines(path: &Path, from: u64, lines: usize) -> Vec<String> {
    const WINDOW: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW).max(from)))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| crate::output::printable(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: i32) -> UpRecord {
        UpRecord {
            pid,
            start_time: start_time(pid).unwrap_or(0),
            boot_id: boot_id(),
            address: "127.0.0.1:1".into(),
            http: None,
            version: "0".into(),
            workers: 1,
            ready: true,
            unready: Vec::new(),
            log: None,
        }
    }

    #[tokio::test]
    async fn a_process_is_known_by_more_than_its_pid() {
        let mut child = tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        let record = record(i32::try_from(child.id().unwrap()).unwrap());
        assert!(find(&UpRecord { start_time: record.start_time + 1, ..record.clone() }).unwrap().is_none());
        assert!(find(&UpRecord { boot_id: "another".into(), ..record.clone() }).unwrap().is_none());
        let process = find(&record).unwrap().expect("it runs");
        assert!(!ended_within(&process, Duration::from_millis(1)).await.unwrap());
        child.start_kill().unwrap();
        assert!(ended_within(&process, Duration::from_secs(20)).await.unwrap());
        child.wait().await.unwrap();
        assert!(find(&record).unwrap().is_none());
    }

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let path = std::env::temp_dir().join(format!("berth-log-{}", berth_client::TaskId::new()));
        fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(last_lines(&path, 0, 2), ["b", "c"]);
        assert_eq!(last_lines(&path, 4, 2), ["c"]);
        assert_eq!(last_lines(Path::new("/nowhere/at/all"), 0, 2), Vec::<String>::new());
        fs::remove_file(path).unwrap();
    }
}
