//! The sandbox image as a session has it: what is installed in it, and what a session installs for itself. None of this needs
//! a network.

use std::process::{Command, Stdio};

use berth_proto::v1::outcome::Kind;
use berth_tests::{
    Cluster, Setup,
    containers::{ok, said},
    skip,
};

use crate::util::run;

const BASE: &str = "berth/sandbox:base";
const FULL: &str = "berth/sandbox:full";
/// A project with a command of its own, in `p`.
const PROJECT: &str = r#"mkdir p && cd p && cat > setup.py <<'PY'
from setuptools import setup
setup(name="greets", version="1.2", py_modules=["greets"], entry_points={"console_scripts": ["greets=greets:main"]})
PY
printf 'def main():\n    print("greets from", __file__)\n' > greets.py; cd .."#;

/// A fleet whose usual template has this root, or this image.
async fn fleet(sandbox: &str, template: &str) -> (Cluster, String) {
    let templates = Some(format!("[[template]]\nname = \"base\"\n{template}\n"));
    let cluster = Cluster::start(Setup { templates, ..Setup::new(sandbox) }).await;
    let session = cluster.session().await.id;
    (cluster, session)
}

/// Its words, once it has ended well.
async fn ran(cluster: &Cluster, session: &str, line: &str) -> String {
    let (told, kind) = run(cluster, session, &format!("exec 2>&1; {line}")).await;
    assert_eq!(kind, Kind::Exited(0), "{line}: {told}");
    told
}

/// Red with Debian's mark that its Python is managed by apt (`error: externally-managed-environment`), or when `~/.local/bin` is
/// not in a task's PATH.
async fn pip_installs_without_a_venv(cluster: Cluster, session: String) {
    for pip in ["pip", "python3 -m pip"] {
        let version = ran(&cluster, &session, &format!("{pip} --version")).await;
        assert!(version.starts_with("pip ") && version.contains("(python 3"), "{pip}: {version}");
    }
    ran(&cluster, &session, PROJECT).await;
    let install = "pip install --no-index --no-build-isolation --disable-pip-version-check ./p";
    ran(&cluster, &session, install).await;
    let greeting = ran(&cluster, &session, "greets").await;
    assert!(greeting.starts_with("greets from /home/user/.local/lib/python3"), "{greeting}");
    ran(&cluster, &session, "pip uninstall -y greets").await;
    let (_, kind) = run(&cluster, &session, "greets 2>/dev/null").await;
    assert_eq!(kind, Kind::Exited(127), "it is gone");

    // A venv is as it was: its own pip, and its own packages.
    let venv =
        "python3 -m venv v && v/bin/pip --version && v/bin/python -m pip list --format freeze | grep -c ==";
    let venv = ran(&cluster, &session, venv).await;
    assert!(venv.contains("/workspace/v/lib/python3") && venv.ends_with("\n2"), "pip and setuptools: {venv}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_pip_installs_without_a_venv() {
    if skip::without_docker("e2e docker_pip_installs_without_a_venv") {
        return;
    }
    let size: u64 = ok(&["image", "inspect", BASE, "-f", "{{.Size}}"]).parse().expect("a number");
    assert!(size < 500_000_000, "the slim one: {size}");
    let (cluster, session) = fleet("docker", &format!("image = \"{BASE}\"")).await;
    pip_installs_without_a_venv(cluster, session).await;
}

/// The same root, unpacked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_pip_installs_without_a_venv() {
    let test = "e2e native_pip_installs_without_a_venv";
    if skip::without_root(test) || skip::without_docker(test) {
        return;
    }
    let root = tempfile::Builder::new().prefix("berth-r").tempdir().expect("a directory");
    let container = ok(&["create", "--network", "none", BASE]);
    let mut unpack = Command::new("tar");
    unpack.args(["-xp", "--numeric-owner", "-C"]).arg(root.path());
    let export = Command::new("docker").args(["export", &container]).stdout(Stdio::piped()).spawn();
    let done = export.and_then(|mut export| {
        let unpacked = unpack.stdin(export.stdout.take().expect("a pipe")).output();
        Ok((export.wait()?, unpacked?))
    });
    ok(&["rm", &container]);
    let (exported, unpacked) = done.expect("docker and tar");
    assert!(exported.success() && unpacked.status.success(), "{}", said(&unpacked));
    for dir in [root.path().to_owned(), root.path().join("dev")] {
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    }
    let (cluster, session) = fleet("native", &format!("root = \"{}\"", root.path().display())).await;
    pip_installs_without_a_venv(cluster, session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_full_image_has_pip_tools() {
    let test = "e2e the_full_image_has_pip_tools";
    if skip::without_docker(test) || skip::without_image(FULL, "make sandbox-image FORM=full", test) {
        return;
    }
    let (cluster, session) = fleet("docker", &format!("image = \"{FULL}\"")).await;
    if run(&cluster, &session, "command -v pip-compile").await.1 != Kind::Exited(0) {
        skip::note(
            test,
            "the image was made where no package index answered: FORM=full FORCE=1 scripts/sandbox-image.sh",
        );
        return cluster.stop().await;
    }
    ran(&cluster, &session, PROJECT).await;
    ran(
        &cluster,
        &session,
        "pip wheel -q --no-index --no-build-isolation --no-deps -w w ./p; echo greets > requirements.in",
    )
    .await;
    ran(&cluster, &session, "pip-compile -q --no-index --find-links w requirements.in").await;
    let pinned = ran(&cluster, &session, "cat requirements.txt; pip-sync --version; pip check").await;
    assert!(pinned.contains("greets==1.2") && pinned.contains("pip-sync"), "{pinned}");
    cluster.stop().await;
}
