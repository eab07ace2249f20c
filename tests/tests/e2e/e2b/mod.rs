//! E2B's own packages, unmodified, against Berth: those of two versions, as the package index has them, driven by the
//! programs in `python/`. (Its code interpreter's: [`interpret`].)

mod hostile;
mod interpret;
mod killed;
mod start;

use std::{path::PathBuf, process::Stdio, time::Duration};

use berth_tests::{Cluster, Setup, http::gateway as address, python::venv, skip};

use crate::util::{certificate, http_over_tls};

/// The newest that is known to work, and one with the older routes: each with all that it needs.
const VERSIONS: [(&str, &str); 2] =
    [("2.63.0", include_str!("python/e2b-2.63.0.txt")), ("2.45.1", include_str!("python/e2b-2.45.1.txt"))];
/// For one program.
const WITHIN: Duration = Duration::from_secs(240);

/// A version of the package, installed.
struct Sdk {
    version: &'static str,
    python: PathBuf,
}

/// All of them. `None`: they can't be had here, which is noted for `test`.
fn sdks(test: &str) -> Option<Vec<Sdk>> {
    let installed = |(version, requirements): (&'static str, &str)| {
        Some(Sdk { version, python: venv(test, requirements)?.join("bin/python") })
    };
    VERSIONS.into_iter().map(installed).collect()
}

/// A key as an operator makes it.
async fn key(cluster: &Cluster, tenant: &str) -> String {
    let made = cluster.berth(&["token", "create", "--e2b", "--tenant", tenant]).await.ok();
    let key = made.trim().to_owned();
    assert!(key.starts_with("e2b_") && key[4..].bytes().all(|b| b.is_ascii_hexdigit()), "{key}");
    key
}

/// Runs a program with one version of the package, to its end.
async fn drive(sdk: &Sdk, program: &str, env: &[(&str, &str)]) {
    let version = sdk.version;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/e2b/python").join(program);
    let mut command = tokio::process::Command::new(&sdk.python);
    command
        .args(["-I", "-c", TO_ITS_END])
        .arg(script)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .kill_on_drop(true);
    command.envs(env.iter().copied()).stdin(Stdio::null());
    let ran = tokio::time::timeout(WITHIN, command.output()).await;
    let ran = ran.unwrap_or_else(|_| panic!("{program} with {version} takes too long")).expect("python");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (said(&ran.stdout), said(&ran.stderr));
    if let Some(why) = stdout.trim().strip_prefix("skipped: ") {
        return skip::note(&format!("e2e e2b {program} with {version}"), why);
    }
    let ended = ran.status.success() && stdout.trim() == "ok";
    assert!(ended, "{program} with {version}: {}: {stdout}{stderr}", ran.status);
}

/// Runs a program, and ends with its last line: a thread of the SDK's transport may still be there then, and CPython aborts when
/// it takes the interpreter down below that (with a word on `PyGILState_Release`, or with none).
const TO_ITS_END: &str = "\
import os, runpy, sys
runpy.run_path(sys.argv[1], run_name='__main__')
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)";

/// A program with the newest version alone, against what `env` names.
pub async fn drive_newest(program: &str, env: &[(&str, &str)], test: &str) {
    let (version, requirements) = VERSIONS[0];
    let Some(venv) = venv(test, requirements) else { return };
    drive(&Sdk { version, python: venv.join("bin/python") }, program, env).await;
}

/// A program with both versions, each with a key of its own.
async fn drive_all(cluster: &Cluster, sdks: &[Sdk], program: &str) {
    let url = format!("http://{}", address(cluster).await);
    drive_at(cluster, sdks, program, &[("E2B_API_URL", &url), ("E2B_SANDBOX_URL", &url)]).await;
}

async fn drive_at(cluster: &Cluster, sdks: &[Sdk], program: &str, at: &[(&str, &str)]) {
    let (key, other) = (key(cluster, "one").await, key(cluster, "other").await);
    for sdk in sdks {
        let keys = [("E2B_API_KEY", key.as_str()), ("OTHER_KEY", &other)];
        drive(sdk, program, &[at, &keys].concat()).await;
    }
}

async fn sdk(sandbox: &str, program: &str, test: &str) {
    if skip::without(sandbox, test) {
        return;
    }
    let Some(sdks) = sdks(test) else { return };
    let templates = "[[template]]\nname = \"small\"\nlimits = { disk = \"8MiB\" }\n\
                     [[template]]\nname = \"reaching\"\negress_allow = [\"example.org\"]\n"
        .to_owned();
    let setup = Setup { max_sessions: 8, templates: Some(templates), ..Setup::new(sandbox) };
    let cluster = Cluster::start(setup).await;
    drive_all(&cluster, &sdks, program).await;
    cluster.stop().await;
}

macro_rules! sdk {
    ($($name:ident: $sandbox:literal, $program:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            sdk($sandbox, $program, concat!("e2e e2b ", stringify!($name))).await;
        })*
    };
}

sdk! {
    native_control_plane: "native", "control.py";
    native_commands_and_terminals: "native", "commands.py";
    native_files: "native", "files.py";
    native_a_full_disk: "native", "full.py";
    native_errors: "native", "errors.py";
    native_by_host_names_over_tls: "native", "domain.py";
    native_ports: "native", "ports.py";
    docker_ports: "docker", "ports.py";
    native_asynchronously: "native", "asyncs.py";
    native_watching: "native", "watch.py";
    native_metrics: "native", "metrics.py";
    docker_metrics: "docker", "metrics.py";
    native_snapshots_and_networks: "native", "snapshots.py";
    docker_commands_and_terminals: "docker", "commands.py";
    docker_files: "docker", "files.py";
    docker_watching: "docker", "watch.py";
}

/// Without a proxy: the gateway has a certificate for the names of sandboxes. Red when the port speaks no TLS, or its
/// certificate is not the one that was given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_by_host_names_over_the_gateways_own_tls() {
    let test = "e2e e2b native_by_host_names_over_the_gateways_own_tls";
    if skip::without("native", test) {
        return;
    }
    let Some(sdks) = sdks(test) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let files = certificate(dir.path(), "*.berth.localhost");
    let setup = Setup { coordinator_env: http_over_tls(&files.coordinator()), ..Setup::new("native") };
    let cluster = Cluster::start(setup).await;
    let url = format!("https://{}", address(&cluster).await);
    let ca = files.ca().certificate.display().to_string();
    let at = [("E2B_API_URL", url.as_str()), ("E2B_SANDBOX_URL", &url), ("OWN_CA", &ca)];
    drive_at(&cluster, &sdks, "domain.py", &at).await;
    cluster.stop().await;
}
