//! What people would use instead: nothing at all, bubblewrap, Docker, runc. Each is run the
//! way its users run it, with no network and the same program.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::Command;

use crate::stats::Table;

/// The image that `make sandbox-image` makes.
const IMAGE: &str = "berth/sandbox:base";
const PYTHON: [&str; 3] = ["python3", "-c", "print(1)"];
/// Isolated, and of the system: what a sandbox runs too, not a user's own interpreter.
const HOST_PYTHON: [&str; 3] = ["/usr/bin/python3", "-c", "print(1)"];

/// Times `rounds` runs of a command that must end with 0.
async fn time(rounds: usize, command: &[&str]) -> Vec<Duration> {
    let mut samples = Vec::with_capacity(rounds);
    for round in 0..rounds + 1 {
        let start = Instant::now();
        let status = quiet(command).status().await;
        assert!(status.as_ref().is_ok_and(|s| s.success()), "{command:?}: {status:?}");
        if round > 0 {
            samples.push(start.elapsed());
        }
    }
    samples
}

fn quiet(command: &[&str]) -> Command {
    let mut run = Command::new(command[0]);
    run.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run
}

async fn works(command: &[&str]) -> bool {
    quiet(command).status().await.is_ok_and(|status| status.success())
}

pub async fn bare(table: &mut Table, rounds: usize) {
    table.add("exec of true", "fork+exec", time(rounds, &["/bin/true"]).await);
    table.add("python3 -c 'print(1)'", "fork+exec", time(rounds, &HOST_PYTHON).await);
}

pub async fn bubblewrap(table: &mut Table, rounds: usize) {
    let prefix = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/lib",
        "/lib",
        "--symlink",
        "usr/lib64",
        "/lib64",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
    ];
    let with = |program: &[&'static str]| [&prefix[..], program].concat();
    if !works(&with(&["true"])).await {
        table.note("bwrap: not measured: it is not installed or does not run here");
        return;
    }
    table.add("session: create to first output", "bwrap", time(rounds, &with(&["echo", "1"])).await);
    table.add("exec of true", "bwrap", time(rounds, &with(&["true"])).await);
    table.add("python3 -c 'print(1)'", "bwrap", time(rounds, &with(&HOST_PYTHON)).await);
}

pub async fn docker(table: &mut Table, rounds: usize) {
    if !works(&["docker", "image", "inspect", IMAGE]).await {
        table.note("docker: not measured: no engine answers, or `make sandbox-image` was not run");
        return;
    }
    let slow = (rounds / 10).clamp(3, 20);
    let run = ["docker", "run", "--rm", "--network", "none", IMAGE];
    let with = |program: &[&'static str]| [&run[..], program].concat();
    table.add("session: create to first output", "docker run", time(slow, &with(&["echo", "1"])).await);
    table.add("exec of true", "docker run", time(slow, &with(&["true"])).await);
    table.add("python3 -c 'print(1)'", "docker run", time(slow, &with(&PYTHON)).await);

    let name = format!("berth-bench-{}", std::process::id());
    assert!(
        works(&["docker", "run", "-d", "--network", "none", "--name", &name, IMAGE, "sleep", "3600"]).await
    );
    let exec = ["docker", "exec", name.as_str()];
    let medium = (rounds / 4).max(5);
    table.add("exec of true", "docker exec", time(medium, &[&exec[..], &["true"]].concat()).await);
    table.add("python3 -c 'print(1)'", "docker exec", time(medium, &[&exec[..], &PYTHON].concat()).await);
    copy(table, &name).await;
    assert!(works(&["docker", "rm", "-f", &name]).await, "the container {name} stays");
}

/// `docker cp` of a file of 64 MiB, in and out.
async fn copy(table: &mut Table, name: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    std::fs::write(&file, vec![7u8; 64 << 20]).expect("64 MiB");
    let inside = format!("{name}:/tmp/file");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    table.add("64 MiB upload", "docker cp", time(5, &["docker", "cp", &text(&file), &inside]).await);
    table.add("64 MiB download", "docker cp", time(5, &["docker", "cp", &inside, &text(&back)]).await);
}

pub async fn runc(table: &mut Table, rounds: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(bundle) = bundle(dir.path()).await else {
        table.note("runc: not measured: runc or the sandbox image is missing, or it does not run here");
        return;
    };
    let rounds = (rounds / 4).max(5);
    for (row, program) in [
        ("session: create to first output", &["echo", "1"][..]),
        ("exec of true", &["true"]),
        ("python3 -c 'print(1)'", &PYTHON),
    ] {
        write_spec(&bundle, program);
        let id = format!("berth-bench-{}", std::process::id());
        let path = bundle.to_str().expect("UTF-8");
        table.add(row, "runc run", time(rounds, &["runc", "run", "--bundle", path, &id]).await);
    }
}

/// An OCI bundle from the sandbox image. `None`: it can't be made or does not run.
async fn bundle(dir: &Path) -> Option<PathBuf> {
    let script = "set -e; mkdir rootfs; id=$(docker create \"$1\" true); \
                  docker export \"$id\" | tar -x -C rootfs; docker rm \"$id\" >/dev/null; runc spec";
    let mut make = quiet(&["sh", "-c", script, "sh", IMAGE]);
    if !make.current_dir(dir).status().await.is_ok_and(|status| status.success()) {
        return None;
    }
    write_spec(dir, &["true"]);
    let id = format!("berth-bench-{}", std::process::id());
    works(&["runc", "run", "--bundle", dir.to_str()?, &id]).await.then(|| dir.to_owned())
}

/// Puts the program into the bundle's config: `runc spec` writes one for `sh` on a terminal.
fn write_spec(bundle: &Path, program: &[&str]) {
    let path = bundle.join("config.json");
    let text = std::fs::read_to_string(&path).expect("runc spec wrote it");
    let args = program.iter().map(|arg| format!("{arg:?}")).collect::<Vec<_>>().join(", ");
    let start = text.find("\"args\": [").expect("it has args");
    let end = start + text[start..].find(']').expect("they end");
    let text = format!("{}\"args\": [{args}{}", &text[..start], &text[end..]);
    let text = text.replace("\"terminal\": true", "\"terminal\": false");
    std::fs::write(&path, text).expect("the bundle can be written");
}
