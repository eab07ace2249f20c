//! The preset `packages`: `pip install` works in a session, with the index that its worker's pip is set up for, and
//! nothing else does.

use berth_proto::v1::outcome::Kind;
use berth_tests::{Cluster, Setup, skip};

use super::{create, decisions, status};
use crate::util::run;

/// Whether this machine has an index at all. The test's fleet reads pip's files as this does, and no variables.
pub fn without_index(test: &str) -> bool {
    let line = "env -i PATH=/usr/bin:/bin sh -c 'python3 -m pip download -q --no-deps --no-cache-dir -d \"$0\" six' \"$0\"";
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("UTF-8");
    let done = std::process::Command::new("sh").args(["-c", line, path]).output().expect("sh");
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        skip::note(test, &format!("no package index: {}", why.lines().last().unwrap_or_default()));
    }
    !done.status.success()
}

async fn pip_install_just_works(sandbox: &str) {
    let cluster = Cluster::start(Setup::new(sandbox)).await;
    let session = create(&cluster, &["--egress", "packages", "--memory", "1G", "--pids", "256"]).await;
    let install = "python3 -m venv v && v/bin/pip install --no-cache-dir six 2>&1 | tail -3 \
        && v/bin/python -c 'import six; print(\"imported\", six.__name__)'";
    let (said, kind) = run(&cluster, &session, install).await;
    assert!(kind == Kind::Exited(0) && said.ends_with("imported six"), "{said}");
    let target =
        "v/bin/pip install --no-cache-dir --target there six 2>&1 | tail -1; ls there | grep -c '^six.py'";
    assert!(run(&cluster, &session, target).await.0.ends_with('1'));
    for url in ["https://example.org/", "http://example.org/", "https://github.com/", "http://pypi.org:8080/"]
    {
        assert!(status(&cluster, &session, url).await.contains("403"), "{url}");
    }
    let told = decisions(&cluster.workers[0].process.log());
    let allowed: Vec<_> = told.iter().filter(|line| line["allowed"] == true).collect();
    assert!(
        !allowed.is_empty() && allowed.iter().all(|line| line["why"] == "the package index"),
        "{allowed:?}"
    );
    // Without the preset nothing of it works.
    let other = create(&cluster, &["--egress", "none"]).await;
    let (said, kind) =
        run(&cluster, &other, "python3 -m venv v && timeout 60 v/bin/pip install --retries 0 six 2>&1").await;
    assert_ne!(kind, Kind::Exited(0), "{said}");
    cluster.stop().await;
}

/// Red when the index is not exempt from the denied ranges, on a machine where it resolves into one, and when the
/// worker's certificates are not mounted, where they are the only ones that know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_pip_install_just_works() {
    const NAME: &str = "e2e native_pip_install_just_works";
    if !skip::without_root(NAME) && !without_index(NAME) {
        pip_install_just_works("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_pip_install_just_works() {
    const NAME: &str = "e2e docker_pip_install_just_works";
    if !skip::without_docker(NAME) && !without_index(NAME) {
        pip_install_just_works("docker").await;
    }
}
