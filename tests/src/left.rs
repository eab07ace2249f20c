//! Looks for what a stopped fleet may have left behind: mounts, loop devices, cgroups, processes,
//! session directories. Everything of ours carries the state directory or the worker's
//! instance id in its name.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// # Panics
/// When anything of the fleet with its state below `dir` is still there, naming it.
pub fn assert_nothing(dir: &Path) {
    let found = everything(dir);
    assert!(found.is_empty(), "left behind:\n{}", found.join("\n"));
}

/// All that is left, each with its kind.
pub fn everything(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(mounts(dir).into_iter().map(|m| format!("mount {m}")));
    found.extend(loop_devices(dir).into_iter().map(|l| format!("loop device {l}")));
    found.extend(processes(dir).into_iter().map(|p| format!("process {p}")));
    for instance in instances(dir) {
        found.extend(cgroups(&instance).into_iter().map(|c| format!("cgroup {}", c.display())));
        found.extend(containers(&instance).into_iter().map(|c| format!("container {c}")));
        found.extend(volumes(&instance).into_iter().map(|v| format!("volume {v}")));
    }
    found.extend(session_dirs(dir).into_iter().map(|s| format!("directory {}", s.display())));
    found
}

/// Ends the sandboxes of a fleet whose workers are dead: best effort, after a failed test.
pub fn sweep(dir: &Path) {
    for instance in instances(dir) {
        let _ = end(&instance);
        for volume in volumes(&instance) {
            let _ = std::process::Command::new("docker").args(["volume", "rm", &volume]).output();
        }
    }
    unmount(dir);
}

/// The id of a worker's state, if it has got one.
pub fn instance(worker_state: &Path) -> Option<String> {
    fs::read_to_string(worker_state.join("instance")).ok().map(|id| id.trim().to_owned())
}

/// Ends all sandboxes of a worker whose process is dead, as the end of its machine would.
///
/// # Panics
/// When one of them is still there.
pub fn end_sandboxes(worker_state: &Path) {
    end_instance(&instance(worker_state).expect("a worker has an instance id"));
    unmount(worker_state);
}

/// The same by the id of its state.
///
/// # Panics
/// When one of them is still there.
pub fn end_instance(instance: &str) {
    let left = end(instance);
    assert!(left.is_empty(), "these outlived their machine: {left:?}");
}

/// What is left of them.
fn end(instance: &str) -> Vec<PathBuf> {
    let label = format!("label=berth.instance={instance}");
    let script = "docker ps -aq --filter \"$1\" | xargs -r docker rm -fv";
    let _ = std::process::Command::new("sh").args(["-c", script, "sh", &label]).output();
    for _ in 0..100_000 {
        let found = cgroups(instance);
        if found.is_empty() {
            break;
        }
        for cgroup in &found {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            remove(cgroup);
        }
        // What was killed is gone in a moment.
        std::thread::yield_now();
    }
    cgroups(instance)
}

/// Takes away what is mounted below a directory, and says of how many mounts.
pub fn unmount(dir: &Path) -> usize {
    let points: Vec<String> =
        mounts(dir).iter().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect();
    // The last one made first.
    for point in points.iter().rev() {
        let _ = nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH);
    }
    points.len()
}

/// Loop devices of files below a directory, also of files that are gone.
pub fn loop_devices(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim_end()).starts_with(dir) {
            found.push(format!("{} of {}", device.file_name().to_string_lossy(), file.trim_end()));
        }
    }
    found
}

/// A cgroup and those below it, as far as they are empty.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// Lines of the mount table that name a directory.
pub fn mounts(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(&*dir)).map(str::to_owned).collect()
}

/// Processes whose command line or environment names the state directory. The test itself
/// does not.
fn processes(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().into_string() else { continue };
        if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == own {
            continue;
        }
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&bytes).contains(&needle) {
                found.push(format!("{pid} ({file})"));
            }
        }
    }
    found
}

/// Ids of the worker instances below `dir`: a worker's state may lie in that of an `up`.
pub fn instances(dir: &Path) -> Vec<String> {
    fn below(dir: &Path, depth: usize, found: &mut Vec<String>) {
        found.extend(fs::read_to_string(dir.join("instance")).ok().map(|id| id.trim().to_owned()));
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|e| depth > 0 && e.file_type().is_ok_and(|t| t.is_dir())) {
            below(&entry.path(), depth - 1, found);
        }
    }
    let mut found = Vec::new();
    below(dir, 2, &mut found);
    found
}

/// Cgroups with the instance in their name, in any hierarchy.
pub fn cgroups(instance: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), instance, 0, &mut found);
    found
}

fn search(dir: &Path, needle: &str, depth: usize, found: &mut Vec<PathBuf>) {
    // Deep enough for a worker in a service in a slice in a container.
    if depth > 8 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(needle) {
            found.push(entry.path());
        } else {
            search(&entry.path(), needle, depth + 1, found);
        }
    }
}

/// Containers of the instance, running or not.
pub fn containers(instance: &str) -> Vec<String> {
    of_engine(instance, &["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}"])
}

/// Volumes of the instance.
pub fn volumes(instance: &str) -> Vec<String> {
    of_engine(instance, &["volume", "ls", "-q"])
}

/// What the engine lists for the instance. Nothing where docker is not tested.
fn of_engine(instance: &str, list: &[&str]) -> Vec<String> {
    if std::env::var_os("BERTH_TEST_DOCKER").is_none_or(|value| value != "1") {
        return Vec::new();
    }
    let label = format!("label=berth.instance={instance}");
    let listed = std::process::Command::new("docker").args(list).args(["--filter", &label]).output();
    let listed = listed.expect("docker is there");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
}

fn session_dirs(dir: &Path) -> Vec<PathBuf> {
    let workers = fs::read_dir(dir).into_iter().flatten().flatten();
    let sessions = workers.filter_map(|w| fs::read_dir(w.path().join("sessions")).ok());
    sessions.flat_map(|entries| entries.flatten()).map(|entry| entry.path()).collect()
}
