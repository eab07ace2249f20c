//! E2B's code interpreter package, unmodified: with the built-in kernel, and with ipykernel where there is one.

use berth_tests::{Cluster, Setup, python::venv, skip};

use super::{Sdk, drive_all};
use crate::interpreter::full_root;

const VERSION: &str = "2.11.5";
const REQUIREMENTS: &str = include_str!("python/e2b-code-interpreter-2.11.5.txt");
const IMAGE: &str = "berth/sandbox:full";

/// One program. `template` is what the name has that the package asks for; `None`: none has it, so it is the usual one.
async fn interprets(sandbox: &str, template: Option<String>, program: &str, test: &str) {
    let Some(venv) = venv(test, REQUIREMENTS) else { return };
    let sdk = Sdk { version: VERSION, python: venv.join("bin/python") };
    let templates = template.map(|of| format!("[[template]]\nname = \"code-interpreter-v1\"\n{of}\n"));
    let cluster = Cluster::start(Setup { max_sessions: 8, templates, ..Setup::new(sandbox) }).await;
    drive_all(&cluster, &[sdk], program).await;
    cluster.stop().await;
}

async fn native_jupyter(program: &str, test: &str) {
    let Some(root) = full_root(test) else { return };
    let template = (!root.is_empty()).then(|| format!("root = \"{root}\""));
    interprets("native", template, program, test).await;
}

async fn docker_builtin(program: &str, test: &str) {
    if !skip::without_docker(test) {
        interprets("docker", None, program, test).await;
    }
}

async fn docker_jupyter(program: &str, test: &str) {
    if !skip::without_docker(test) && !skip::without_image(IMAGE, "make sandbox-image FORM=full", test) {
        interprets("docker", Some(format!("image = \"{IMAGE}\"")), program, test).await;
    }
}

macro_rules! code {
    ($($name:ident: $place:ident, $program:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $place($program, concat!("e2e e2b ", stringify!($name))).await;
        })*
    };
}

code! {
    native_code_in_a_jupyter_kernel: native_jupyter, "interpret.py";
    native_code_asynchronously: native_jupyter, "interpret_async.py";
    native_plots_and_tables: native_jupyter, "interpret_rich.py";
    docker_code_in_the_built_in_kernel: docker_builtin, "interpret.py";
    docker_code_asynchronously: docker_builtin, "interpret_async.py";
    docker_plots_and_tables: docker_jupyter, "interpret_rich.py";
}
