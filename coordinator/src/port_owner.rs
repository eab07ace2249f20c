//! Who holds a TCP port: for the message when it isn't free. Best effort over `/proc`: the
//! socket's inode by its port, then the process that has it open. Another user's processes
//! can only be looked into as root; then the message does without.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// "pid 123 (program)" of a listener on this port, if it can be told.
pub fn port_owner(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        listening_inode(&text, port).map(str::to_owned)
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if has_open(&process.path().join("fd"), &wanted) {
            let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("pid {pid} ({})", program.trim()));
        }
    }
    let owner = fs::metadata("/proc/self").map(|m| m.uid()).unwrap_or_default();
    (owner != 0).then(|| "another user's process".to_owned())
}

fn has_open(fds: &Path, wanted: &str) -> bool {
    let Ok(entries) = fs::read_dir(fds) else { return false };
    entries.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == wanted))
}

/// Columns of /proc/net/tcp: sl, local, remote, state (0A is LISTEN), ..., inode is the tenth.
fn listening_inode(table: &str, port: u16) -> Option<&str> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = columns.get(1)?.rsplit_once(':')?.1;
        let matches = u16::from_str_radix(local, 16).ok()? == port && *columns.get(3)? == "0A";
        matches.then(|| columns.get(9).copied()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = port_owner(listener.local_addr().unwrap().port()).expect("it listens");
        assert!(owner.contains(&format!("pid {} (", std::process::id())), "{owner}");
    }
}
