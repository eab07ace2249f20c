//! What Berth is deployed with beside Compose: Kubernetes' manifests, systemd's units, and the archive of a release. Each is
//! looked at by the script that users have for it; here also with something broken, which it has to name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use berth_tests::{READY, left, process, python, skip, until};
use tempfile::TempDir;

use berth_tests::containers::{docker, image, ok, repository, said};

const REQUIREMENTS: &str = include_str!("../../../deploy/kubernetes/requirements.txt");

fn script(name: &str, args: &[&str], env: &[(&str, &Path)]) -> Output {
    let mut command = Command::new("sh");
    command.arg(repository().join("scripts").join(name)).args(args);
    command.envs(env.iter().copied());
    // The programs that all tests use.
    command.env("BERTH_BIN_DIR", process::binary("berth").parent().expect("it is in a directory"));
    command.output().expect("sh")
}

fn there(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("sh").status.success()
}

/// A Python with what the scripts need, where there is also what renders manifests.
fn tools(test: &str) -> Option<PathBuf> {
    if !there("kubectl") && !there("kustomize") {
        skip::note(test, "neither kubectl nor kustomize is here, which render the manifests");
        return None;
    }
    Some(python::venv(test, REQUIREMENTS)?.join("bin/python"))
}

/// A copy of a directory of the repository's, to break.
fn copy_of(part: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let from = repository().join(part).join(".");
    let done = Command::new("cp").arg("-r").arg(from).arg(copy.path()).output().expect("cp");
    assert!(done.status.success(), "{}", said(&done));
    copy
}

/// Replaces what is there, in a file of a copy.
fn alter(copy: &TempDir, file: &str, was: &str, is: &str) {
    let path = copy.path().join(file);
    let text = fs::read_to_string(&path).expect("the file");
    assert!(text.contains(was), "{file} has no {was:?}");
    fs::write(path, text.replacen(was, is, 1)).expect("the file");
}

/// The overlays fit the API's schemas, one another, the documents, and Berth's own settings.
#[test]
fn kubernetes_manifests_hold() {
    let Some(python) = tools("e2e kubernetes_manifests_hold") else { return };
    let checked = script("kubernetes.sh", &["check"], &[("PYTHON", &python)]);
    let told = said(&checked);
    assert!(checked.status.success() && told.contains("all well"), "{told}");
    assert!(!told.contains("are not tried"), "Berth itself was asked for the settings: {told}");
}

/// Each line is a mistake, and the words by which it is named. All are told at once.
#[test]
fn what_is_wrong_in_kubernetes_manifests_is_named() {
    let Some(python) = tools("e2e what_is_wrong_in_kubernetes_manifests_is_named") else { return };
    let native = "workers-native/worker.yaml";
    let coordinator = "coordinator/coordinator.yaml";
    let mistakes = [
        (
            native,
            "readOnlyRootFilesystem: true\n            # The",
            "privileged: true\n            # The",
            "worker is privileged",
        ),
        (
            native,
            "add: [SYS_ADMIN,",
            "add: [SYS_MODULE,",
            "worker has SYS_MODULE, and docs/kubernetes.md does not say",
        ),
        (native, "automountServiceAccountToken: false", "hostNetwork: true", "hostNetwork is set"),
        (
            native,
            "enableServiceLinks: false",
            "enableServiceLinks: true",
            "it gets a variable for each service",
        ),
        (
            native,
            "{name: tmp, mountPath: /tmp}",
            "{name: temp, mountPath: /tmp}",
            "worker mounts temp, which is no volume",
        ),
        (
            native,
            "terminationGracePeriodSeconds: 660",
            "terminationGracePeriodSeconds: 60",
            "it is killed after 60 s, and has 600 s",
        ),
        (
            native,
            "berth-coordinator.berth.svc:50051",
            "berth-coordinator.other.svc:50051",
            "there is no such service",
        ),
        (
            native,
            "name: MAX_SESSIONS",
            "name: BERTH_MAX_SESSION",
            "unknown environment variable BERTH_MAX_SESSION",
        ),
        (native, "health, ready]", "health, fine]", "its readinessProbe is"),
        (
            native,
            "cp /secrets/join/join.token",
            "cp /secrets/join/token",
            "reads token of the secret berth-join",
        ),
        (
            coordinator,
            "secretName: berth-tokens",
            "secretName: berth-token",
            "no secret berth/berth-token is made",
        ),
        (coordinator, "runAsNonRoot: true", "runAsNonRoot: false", "may be, or become, root"),
        (
            coordinator,
            "limits: {cpu: \"2\", memory: 1Gi}",
            "limits: {cpu: \"2\"}",
            "coordinator has no limits of memory",
        ),
        (coordinator, "replicas: 1", "replica: 1", "not of the API"),
        (
            "coordinator/service.yaml",
            "targetPort: grpc",
            "targetPort: rpc",
            "berth-coordinator has no port rpc",
        ),
        (
            "coordinator/disruption.yaml",
            "name: berth-coordinator\n",
            "name: berth-coordinatr\n",
            "there is no disruption budget of berth-coordinator",
        ),
        (
            "coordinator/network.yaml",
            "app.kubernetes.io/name: berth-worker",
            "app.kubernetes.io/name: worker",
            "no policy lets it in at berth-coordinator:50051",
        ),
        (
            "workers/network.yaml",
            "- {port: 50051, protocol: TCP}",
            "- {port: 50052, protocol: TCP}",
            "no policy lets it dial berth-coordinator:50051",
        ),
    ];
    let copy = copy_of("deploy/kubernetes");
    for (file, was, is, _) in mistakes {
        alter(&copy, file, was, is);
    }
    let root = copy.path().to_str().expect("UTF-8");
    let checked = script("kubernetes.sh", &["check", root], &[("PYTHON", &python)]);
    let told = said(&checked);
    assert_eq!(checked.status.code(), Some(1), "{told}");
    for (file, _, is, named) in mistakes {
        // Where the address is wrong, the way there is not looked at.
        let hidden = named.starts_with("no policy");
        assert!(hidden || told.contains(named), "{file}: {is}: not named:\n{told}");
    }

    // What a wrong address hid.
    let copy = copy_of("deploy/kubernetes");
    for (file, was, is, named) in mistakes {
        if named.starts_with("no policy") {
            alter(&copy, file, was, is);
        }
    }
    let root = copy.path().to_str().expect("UTF-8");
    let told = said(&script("kubernetes.sh", &["check", root], &[("PYTHON", &python)]));
    for (_, _, is, named) in mistakes.iter().filter(|(_, _, _, named)| named.starts_with("no policy")) {
        assert!(told.contains(named), "{is}: not named:\n{told}");
    }
}

/// The pods of an overlay, on this machine's engine. All of it goes with this.
struct Rehearsal {
    dir: TempDir,
    name: String,
    python: PathBuf,
}

impl Rehearsal {
    fn new(python: PathBuf) -> Self {
        let name = format!("berth-t-{}", berth_proto::SessionId::new());
        for component in ["coordinator", "worker"] {
            image(component, &name);
        }
        let dir = tempfile::Builder::new().prefix("berth-k").tempdir().expect("a directory");
        Self { dir, name, python }
    }

    fn script(&self, args: &[&str]) -> Output {
        let env = [
            ("PYTHON", self.python.as_path()),
            ("BERTH_KUBERNETES_DIR", self.dir.path()),
            ("BERTH_TAG", self.name.as_ref()),
            ("REHEARSAL", self.name.as_ref()),
        ];
        script("kubernetes.sh", args, &env)
    }

    /// What clients use.
    fn settings(&self) -> [(String, String); 3] {
        let port = ok(&["port", &self.container("coordinator", 0), "50051"]);
        let token = fs::read_to_string(self.dir.path().join("admin.token")).expect("a token");
        [
            ("BERTH_ADDRESS".to_owned(), format!("https://{}", port.lines().next().expect("a port"))),
            ("BERTH_TLS_CA".to_owned(), self.dir.path().join("tls/ca.pem").display().to_string()),
            ("BERTH_TOKEN".to_owned(), token.trim().to_owned()),
        ]
    }

    fn container(&self, component: &str, number: usize) -> String {
        format!("{}-berth-{component}-{number}-{component}", self.name)
    }

    async fn berth(&self, args: &[&str]) -> String {
        process::run("berth", args, &self.settings(), b"").await.ok().trim().to_owned()
    }

    async fn ready(&self, component: &str, number: usize) {
        let container = self.container(component, number);
        let probe = format!("/usr/bin/{component}");
        until(READY, "a pod to be ready", async || {
            let asked = docker(&["exec", &container, &probe, "health", "ready"]);
            let running = ok(&["inspect", &container, "-f", "{{.State.Running}}"]);
            assert_eq!(running, "true", "{}", said(&docker(&["logs", &container])));
            asked.status.success().then_some(())
        })
        .await;
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        let _ = self.script(&["rehearse", "down"]);
        for component in ["coordinator", "worker"] {
            let _ = docker(&["rmi", &format!("berth/{component}:{}", self.name)]);
        }
    }
}

/// The pods of the native overlay as they are written, with their users, capabilities and mounts, on an engine: sandboxes are
/// made in them, their limits hold, and a worker that is stopped sends its session to the other. Red without any of the worker's
/// capabilities, and without the /proc that start.sh mounts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_serve_as_they_are_written() {
    let test = "e2e pods_serve_as_they_are_written";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let Some(python) = tools(test) else { return };
    let pods = Rehearsal::new(python);
    let up = pods.script(&["rehearse", "up", "native"]);
    assert!(up.status.success(), "{}", said(&up));
    for (component, number) in [("coordinator", 0), ("worker", 0), ("worker", 1)] {
        pods.ready(component, number).await;
        let asked = "{{.HostConfig.Privileged}} {{.HostConfig.NetworkMode}} {{.HostConfig.PidMode}}.";
        let seen = ok(&["inspect", &pods.container(component, number), "-f", asked]);
        assert_eq!(seen, format!("false {} .", pods.name));
    }

    let inside = "id -u; grep CapBnd /proc/self/status; . /etc/os-release; echo $ID; echo kept > f; \
                  dd if=/dev/zero of=g bs=1M 2>/dev/null; stat -c %s g; rm g";
    let options = ["create", "--name", "box", "--disk", "32M", "--on-worker-loss", "restore"];
    pods.berth(&options).await;
    let told = pods.berth(&["run", "-s", "box", "--", "sh", "-c", inside]).await;
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..3], ["1000", "CapBnd:\t0000000000000000", "debian"], "{told}");
    let written: u64 = lines[3].parse().expect("bytes");
    assert!(written > 20 << 20 && written <= 32 << 20, "{told}");

    let listed = pods.berth(&["ps"]).await;
    let at = usize::from(listed.contains("berth-worker-1"));
    assert!(listed.contains(&format!("berth-worker-{at}")), "{listed}");
    let worker = pods.container("worker", at);
    ok(&["stop", "-t", "120", &worker]);
    assert_eq!(
        ok(&["inspect", &worker, "-f", "{{.State.ExitCode}}"]),
        "0",
        "{}",
        said(&docker(&["logs", &worker]))
    );
    let other = format!("berth-worker-{}", 1 - at);
    until(READY, "the session to be elsewhere", async || {
        let listed = pods.berth(&["ps"]).await;
        (listed.contains(&other) && listed.contains("ready")).then_some(())
    })
    .await;
    assert_eq!(pods.berth(&["run", "-s", "box", "--", "cat", "f"]).await, "kept");

    let label = format!("label=rehearsal={}", pods.name);
    let down = pods.script(&["rehearse", "down"]);
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(ok(&["ps", "-aq", "--filter", &label]), "");
    assert_eq!(ok(&["network", "ls", "-q", "--filter", &label]), "");
    assert!(!pods.dir.path().join("pods").exists());
}

/// The same with the docker overlay: its worker has two capabilities, and its sandboxes outlive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_beside_an_engine_serve_as_they_are_written() {
    let test = "e2e pods_beside_an_engine_serve_as_they_are_written";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let Some(python) = tools(test) else { return };
    let pods = Rehearsal::new(python);
    let up = pods.script(&["rehearse", "up", "docker"]);
    assert!(up.status.success(), "{}", said(&up));
    pods.ready("coordinator", 0).await;
    pods.ready("worker", 0).await;
    let worker = pods.container("worker", 0);
    let seen = ok(&["inspect", &worker, "-f", "{{.HostConfig.Privileged}} {{.HostConfig.CapAdd}}"]);
    assert!(seen == "false [CHOWN DAC_OVERRIDE]" || seen == "false [CAP_CHOWN CAP_DAC_OVERRIDE]", "{seen}");
    pods.berth(&["create", "--name", "box"]).await;
    let told = pods
        .berth(&["run", "-s", "box", "--", "sh", "-c", "echo kept > f; . /etc/os-release; echo $ID"])
        .await;
    assert_eq!(told, "debian");
    ok(&["restart", "-t", "30", &worker]);
    pods.ready("worker", 0).await;
    assert_eq!(pods.berth(&["run", "-s", "box", "--", "cat", "f"]).await, "kept");

    let state = pods.dir.path().join("pods/host/berth-worker/state");
    let instance = left::instance(&state).expect("it has begun");
    assert!(!left::containers(&instance).is_empty());
    let down = pods.script(&["rehearse", "down"]);
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(left::containers(&instance), [] as [String; 0]);
}

/// The units are understood, and leave open what they left open; mistakes are named.
#[test]
fn systemd_units_hold() {
    if !there("systemd-analyze") {
        skip::note(
            "e2e systemd_units_hold",
            "no systemd-analyze: as root on Debian, apt-get install systemd",
        );
        return;
    }
    let checked = script("units.sh", &[], &[]);
    assert!(checked.status.success(), "{}", said(&checked));

    let copy = copy_of("deploy/systemd");
    alter(&copy, "berth-coordinator.service", "ProtectSystem=strict", "ProtectSystm=strict");
    alter(&copy, "berth-coordinator.service", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "");
    alter(&copy, "berth-worker.service", "NoNewPrivileges=yes", "PrivateTmp=yes");
    let checked = script("units.sh", &[copy.path().to_str().expect("UTF-8")], &[]);
    let told = said(&checked);
    assert_eq!(checked.status.code(), Some(1), "{told}");
    for named in [
        "Unknown key 'ProtectSystm'",
        "berth-coordinator.service leaves more open than",
        "mounts or devices of its own: PrivateTmp=yes",
    ] {
        assert!(told.contains(named), "{named}: {told}");
    }
}

/// The archive is what its sums say, the same each time, has what it is to have, and its bill of materials names each package
/// that cargo builds into the programs.
#[test]
fn a_release_is_what_it_says() {
    let out = tempfile::tempdir().expect("a directory");
    let again = tempfile::tempdir().expect("a directory");
    for dir in [&out, &again] {
        let made = script("release.sh", &[], &[("OUT", dir.path()), ("PROFILE", "dev".as_ref())]);
        assert!(made.status.success(), "{}", said(&made));
    }
    let sums = fs::read_to_string(out.path().join("SHA256SUMS")).expect("sums");
    assert_eq!(
        sums,
        fs::read_to_string(again.path().join("SHA256SUMS")).expect("sums"),
        "the same each time"
    );
    let verified = Command::new("sha256sum")
        .args(["-c", "SHA256SUMS"])
        .current_dir(out.path())
        .output()
        .expect("sha256sum");
    assert!(verified.status.success() && sums.lines().count() == 2, "{}{sums}", said(&verified));

    let name = format!("berth-{}-{}-linux", berth_proto::VERSION, std::env::consts::ARCH);
    let archive = out.path().join(format!("{name}.tar.gz"));
    let listed = Command::new("tar").arg("-tzf").arg(&archive).output().expect("tar");
    let listed = said(&listed);
    for file in [
        "bin/berth",
        "bin/coordinator",
        "bin/worker",
        "bin/berth-agent",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "completions/berth.bash",
        "deploy/systemd/berth-worker.service",
        "deploy/kubernetes/overlays/native/kustomization.yaml",
        "docs/upgrading.md",
        "sbom.cdx.json",
    ] {
        assert!(listed.lines().any(|line| line == format!("{name}/{file}")), "no {file}: {listed}");
    }

    let bill = fs::read_to_string(out.path().join(format!("{name}.cdx.json"))).expect("a bill of materials");
    let bill: serde_json::Value = serde_json::from_str(&bill).expect("JSON");
    let components = bill["components"].as_array().expect("components");
    let text =
        |component: &serde_json::Value, field: &str| component[field].as_str().unwrap_or_default().to_owned();
    let mut listed: Vec<String> =
        components.iter().map(|one| format!("{} v{}", text(one, "name"), text(one, "version"))).collect();
    listed.sort();
    let mut tree = Command::new("cargo");
    tree.args([
        "tree",
        "--locked",
        "--offline",
        "-e",
        "normal",
        "--prefix",
        "none",
        "-p",
        "berth-cli",
        "-p",
        "berth-agent",
    ]);
    let tree = tree.current_dir(repository()).output().expect("cargo");
    assert!(tree.status.success(), "{}", said(&tree));
    let tree = String::from_utf8_lossy(&tree.stdout);
    let word = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut built: Vec<String> = tree.lines().filter(|line| !line.is_empty()).map(word).collect();
    built.sort();
    built.dedup();
    assert_eq!(listed, built);
    let ours = |name: &str| name.starts_with("berth-");
    for component in components {
        let name = text(component, "name");
        assert!(component["licenses"].is_array() && component["purl"].is_string(), "{component}");
        assert!(
            ours(&name) || component["hashes"][0]["content"].as_str().is_some_and(|sum| sum.len() == 64),
            "{component}"
        );
    }
}
