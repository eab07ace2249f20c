//! The Python package: installed from the checkout with pip, it runs its own tests and its example against a cluster.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use berth_net::{Files, issue::Authority};
use berth_tests::{Cluster, Setup, python, skip};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

const REQUIREMENTS: &str = include_str!("../../python/client.txt");
/// How long one run of Python may take on a busy machine.
const RUN: Duration = Duration::from_secs(200);

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/python").canonicalize().expect("it is there")
}

/// The package as a user has it: built and installed by pip.
pub struct Installed {
    pub python: PathBuf,
    /// Outside the environment, which is shared.
    dir: TempDir,
}

impl Installed {
    pub async fn new(test: &str) -> Option<Self> {
        let python = python::venv(test, REQUIREMENTS)?.join("bin/python");
        let installed = Self { python, dir: tempfile::tempdir().expect("a directory") };
        let to = installed.dir.path().to_str().expect("UTF-8");
        let from = checkout();
        let options = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"];
        let where_to = ["--no-build-isolation", "--target", to, from.to_str().expect("UTF-8")];
        let args: Vec<&str> = options.into_iter().chain(where_to).collect();
        let output = installed.run(&args, &[], b"").await;
        assert!(output.status.success(), "{}", told(&output));
        Some(installed)
    }

    /// Runs Python with nothing of our environment but PATH.
    async fn run(&self, args: &[&str], env: &[(&str, &OsStr)], input: &[u8]) -> Output {
        let mut command = tokio::process::Command::new(&self.python);
        command
            .args(args)
            .current_dir(checkout())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("PYTHONPATH", self.dir.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("Python starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // It fits into the pipe. Who does not read it is no failure of ours.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let output = tokio::time::timeout(RUN, child.wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("{args:?} did not end")).expect("Python starts")
    }

    pub async fn run_at(&self, cluster: &Cluster, args: &[&str]) -> Output {
        self.run_with(cluster, args, b"").await
    }

    /// The same, with something to read.
    pub async fn run_with(&self, cluster: &Cluster, args: &[&str], input: &[u8]) -> Output {
        let env =
            [("BERTH_ADDRESS", cluster.address.as_ref()), ("BERTH_TOKEN", cluster.admin_token.as_ref())];
        self.run(args, &env, input).await
    }
}

pub fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// All of a suite ran, and nothing of it was left out.
fn assert_passed(output: &Output, at_least: usize) {
    let text = told(output);
    let ran = text.split("\nRan ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
    assert!(output.status.success() && text.ends_with("\nOK\n"), "{text}");
    assert!(ran.is_some_and(|ran| ran >= at_least), "{text}");
}

async fn native() -> Cluster {
    let cluster = Cluster::start(Setup { max_sessions: 8, ..Setup::new("native") }).await;
    cluster.berth_with(&["secret", "set", "python-test"], b"sesame").await.ok();
    cluster
}

async fn suite(name: &str, test: &str, at_least: usize) {
    if skip::without_root(test) {
        return;
    }
    let Some(installed) = Installed::new(test).await else { return };
    let cluster = native().await;
    // One that is no admin's.
    let token = cluster.berth(&["token", "create", "--name", "python-test"]).await.ok();
    let env = [
        ("BERTH_ADDRESS", cluster.address.as_ref()),
        ("BERTH_TOKEN", cluster.admin_token.as_ref()),
        ("BERTH_TEST_CLIENT_TOKEN", token.trim().as_ref()),
    ];
    let args = ["-W", "error::ResourceWarning", "-m", "unittest", name];
    assert_passed(&installed.run(&args, &env, b"").await, at_least);
    cluster.stop().await;
}

/// Needs no cluster. Red when what is generated is stale, when a type is missing, and when the server has a reason that
/// the package doesn't know.
#[tokio::test]
async fn the_python_package_is_what_its_sources_say() {
    let Some(installed) = Installed::new("e2e the_python_package_is_what_its_sources_say").await else {
        return;
    };
    assert_passed(&installed.run(&["-m", "unittest", "tests.test_unit"], &[], b"").await, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sync_python_client_does_what_it_says() {
    suite("tests.test_client", "e2e the_sync_python_client_does_what_it_says", 24).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_async_python_client_does_what_it_says() {
    suite("tests.test_aio_client", "e2e the_async_python_client_does_what_it_says", 24).await;
}

/// Ports, usage, artifacts, secrets, the audit record. Red when a half of a connection looks whole, when a place is not given
/// back, or when content is not held against its hash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sync_python_client_has_the_other_services() {
    suite("tests.test_services", "e2e the_sync_python_client_has_the_other_services", 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_async_python_client_has_the_other_services() {
    suite("tests.test_aio_services", "e2e the_async_python_client_has_the_other_services", 9).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_starts_a_task_once_though_its_answer_is_lost() {
    suite("tests.test_breaks", "e2e a_python_client_starts_a_task_once_though_its_answer_is_lost", 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_works_over_tls() {
    let Some(installed) = Installed::new("e2e a_python_client_works_over_tls").await else { return };
    let cluster = Cluster::start(Setup { tls: true, ..Setup::new("fake") }).await;
    let foreign = Files::new(cluster.dir.path().join("foreign"));
    Authority::make(&foreign).expect("a CA");
    let address = format!("https://{}", cluster.address);
    let (ca, foreign) = (cluster.certificates().ca().certificate, foreign.ca().certificate);
    let env = [
        ("BERTH_ADDRESS", address.as_ref()),
        ("BERTH_TOKEN", cluster.admin_token.as_ref()),
        ("BERTH_STATE_DIR", installed.dir.path().as_os_str()),
        ("BERTH_TEST_CA", ca.as_os_str()),
        ("BERTH_TEST_FOREIGN_CA", foreign.as_os_str()),
    ];
    assert_passed(&installed.run(&["-m", "unittest", "tests.test_tls"], &env, b"").await, 2);
    cluster.stop().await;
}

/// The examples that the documents show: that of a model's programs in parallel sessions, and those of the READMEs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_examples_run() {
    const NAME: &str = "e2e the_python_examples_run";
    if skip::without_root(NAME) {
        return;
    }
    let Some(installed) = Installed::new(NAME).await else { return };
    let cluster = native().await;
    let output =
        installed.run_at(&cluster, &["examples/humaneval.py", "--parallel", "4", "--repeat", "2"]).await;
    let text = told(&output);
    assert!(output.status.success(), "{text}");
    for line in ["14 of 28 passed", "timed out (2)", "out of memory (2)", "SyntaxError (2)", "28/28 programs"]
    {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let own = std::fs::read_to_string(checkout().join("README.md")).expect("the package's README");
    let shown: Vec<&str> = [own.as_str(), include_str!("../../../README.md")]
        .iter()
        .flat_map(|text| text.split("```python\n").skip(1))
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(shown.len() >= 3, "{shown:?}");
    for code in shown {
        let output = installed.run_at(&cluster, &["-c", code]).await;
        assert!(output.status.success(), "{code}\n{}", told(&output));
    }
    cluster.stop().await;
}

/// `examples/parallel_tests.py`: red when a fork sees what another wrote (two of its files take the same name).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_parallel_tests_runs() {
    const NAME: &str = "e2e the_example_of_parallel_tests_runs";
    if skip::without_root(NAME) {
        return;
    }
    let Some(installed) = Installed::new(NAME).await else { return };
    let cluster = native().await;
    let output = installed.run_at(&cluster, &["../../examples/parallel_tests.py"]).await;
    let text = told(&output);
    // One test of the project fails, by design, and so says the program.
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("3 of 4 files passed, each in a fork of its own"), "{text}");
    assert!(text.contains("FAILED  test_divide.py"), "{text}");
    cluster.stop().await;
}
