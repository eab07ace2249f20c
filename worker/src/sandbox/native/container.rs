//! Whether the end of the worker's process is the end of its sandboxes.
//!
//! As a rule it is not: they live on, and the next process of the worker takes them up. But where the worker is the main
//! process of a container, a restart of it is a restart of the container, and the kernel ends all that is in there. So a
//! worker like that does not take native sessions unless it was told that this may happen.
//!
//! A worker behind a shell script that did not `exec` it is not noticed.

use std::fs;

/// Programs that a container engine, or an image, puts before the one that it is for. They end with it.
const INITS: [&str; 5] = ["docker-init", "tini", "dumb-init", "catatonit", "podman-init"];

/// Whether this process is its container's main process.
pub fn is_main_process() -> bool {
    let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    decide(std::process::id(), std::os::unix::process::parent_id(), init.trim())
}

fn decide(pid: u32, parent: u32, init: &str) -> bool {
    pid == 1 || (parent == 1 && INITS.contains(&init))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_main_process_of_a_container_takes_its_sandboxes_along() {
        assert!(decide(1, 0, "worker"));
        assert!(decide(7, 1, "tini") && decide(7, 1, "docker-init"));
        assert!(!decide(7, 1, "systemd"), "a service is started again, and its sandboxes are still there");
        assert!(!decide(7, 3, "tini"), "somebody's shell");
        assert!(!decide(7, 0, "sleep"), "by `docker exec`");
    }
}
