//! The Python environment of a session, and what is installed into it.

use berth_tests::{Cluster, Setup, mcp::Mcp, skip};
use serde_json::{Value, json};

use super::{USUAL, finish, native};
use crate::{egress::packages::without_index, interpreter::full_root};

/// Red when a shell or run_python goes by another Python, or when a checkpoint leaves the environment out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_session_has_a_python_environment() {
    let Some((cluster, mut mcp)) = native("each_session_has_a_python_environment").await else { return };
    let where_is = "import sys; print(sys.prefix)";
    assert_eq!(mcp.ok("run_python", json!({"code": where_is})).await["stdout"], "/home/user/.venv\n");
    let shell = "command -v python pip; python -c 'import sys; print(sys.prefix)'; echo $VIRTUAL_ENV";
    let bin = "/home/user/.venv/bin/python\n/home/user/.venv/bin/pip\n/home/user/.venv\n/home/user/.venv\n";
    assert_eq!(mcp.ok("run_shell", json!({"command": shell})).await["stdout"], bin);
    // A program's own env goes before it.
    let own = json!({"command": "echo $PATH", "env": {"PATH": "/usr/bin:/bin"}});
    assert_eq!(mcp.ok("run_shell", own).await["stdout"], "/usr/bin:/bin\n");
    // It is in checkpoints: what was put there is there in a session made of one.
    let make = "printf 'x = 6 * 7\\n' > $(python -c 'import sysconfig as s; print(s.get_paths()[\"purelib\"])')/mine.py";
    assert_eq!(mcp.ok("run_shell", json!({"command": make})).await["exit_code"], 0);
    let taken = mcp.ok("session_checkpoint", json!({})).await["checkpoint_id"].as_str().unwrap().to_owned();
    cluster.berth(&["restore", &taken, "--name", "again"]).await.ok();
    let ran = mcp.ok("run_python", json!({"session": "again", "code": "import mine; print(mine.x)"})).await;
    assert_eq!(ran["stdout"], "42\n", "{ran}");
    let said = mcp.refused("pkg_install", json!({"packages": ["six"]})).await;
    assert!(said.contains("may reach no package index") && said.contains("egress"), "{said}");
    for bad in ["--index-url=http://x", "git+https://x/y", "../x"] {
        let said = mcp.refused("pkg_install", json!({"packages": [bad]})).await;
        assert!(said.contains("no name of a package"), "{said}");
    }
    cluster.berth(&["rm", "again"]).await.ok();
    finish(cluster, mcp).await;
}

/// Red when sessions share an environment, or when what is told is not what is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sessions_have_two_versions_of_a_package() {
    const NAME: &str = "e2e mcp two_sessions_have_two_versions_of_a_package";
    if skip::without_root(NAME) || without_index(NAME) {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let mut mcp = Mcp::start(&cluster, &["--egress", "packages"], USUAL).await;
    let other = mcp.ok("session_create", json!({"egress": "packages"})).await["session"].clone();
    let version = |installed: &Value| -> String {
        let packages = installed["packages"].as_array().unwrap();
        let six = packages.iter().find(|package| package["name"] == "six").expect("six");
        assert_eq!((&six["requested"], &six["new"]), (&json!(true), &json!(true)), "{installed}");
        six["version"].as_str().unwrap().to_owned()
    };
    // None that a Python of these years has by itself: that would count as installed.
    let one = mcp.ok("pkg_install", json!({"packages": ["six==1.15.0"]})).await;
    let two = mcp.ok("pkg_install", json!({"packages": ["six<1.15"], "session": other})).await;
    assert_eq!(version(&one), "1.15.0");
    assert_ne!(version(&two), "1.15.0");
    for (session, installed) in [(one["session"].clone(), &one), (other, &two)] {
        let code = "import six; print(six.__version__)";
        let ran = mcp.ok("run_python", json!({"code": code, "session": session})).await;
        assert_eq!(ran["stdout"], format!("{}\n", version(installed)), "{ran}");
    }
    let again = mcp.ok("pkg_install", json!({"packages": ["six"]})).await;
    assert_eq!(again["packages"][0]["new"], false, "{again}");
    let said = mcp.refused("pkg_install", json!({"packages": ["six==0.0.0.1"]})).await;
    assert!(said.contains("six") && said.contains("pip failed"), "{said}");
    finish(cluster, mcp).await;
}

/// Red when the environment is shut off from the sandbox's own Python, or when what that has can't be replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandboxs_own_packages_are_there_too() {
    const NAME: &str = "e2e mcp the_sandboxs_own_packages_are_there_too";
    let Some(root) = full_root(NAME) else { return };
    let mut setup = Setup::new("native");
    if !root.is_empty() {
        setup.templates = Some(format!("[[template]]\nname = \"base\"\nroot = \"{root}\"\n"));
    }
    let cluster = Cluster::start(setup).await;
    let mut mcp = Mcp::start(&cluster, &["--egress", "packages"], USUAL).await;
    let code = "import numpy, pandas, sys; print(sys.prefix, numpy.ones(3).sum())";
    let ran = mcp.ok("run_python", json!({"code": code})).await;
    assert_eq!(ran["stdout"], "/home/user/.venv 3.0\n", "{ran}");
    let shell = json!({"command": "python -c 'import six; print(six.__file__)'; pip --version"});
    let said = mcp.ok("run_shell", shell).await["stdout"].as_str().unwrap().to_owned();
    let own = said.lines().next().unwrap();
    assert!(own.starts_with("/usr/") && said.contains("pip "), "{said}");
    if !without_index(NAME) {
        // What is there counts as installed; another version goes before it, and takes nothing away from the sandbox's.
        let there = mcp.ok("pkg_install", json!({"packages": ["six"]})).await;
        assert_eq!(there["packages"][0]["new"], false, "{there}");
        let other = mcp.ok("pkg_install", json!({"packages": ["six==1.15.0"]})).await;
        let packages = other["packages"].as_array().unwrap();
        assert_eq!(packages.len(), 1, "{other}");
        assert_eq!(
            (&packages[0]["version"], &packages[0]["new"]),
            (&json!("1.15.0"), &json!(true)),
            "{other}"
        );
        let code = "import six; print(six.__version__, six.__file__.startswith('/home/user/.venv/'))";
        assert_eq!(mcp.ok("run_python", json!({"code": code})).await["stdout"], "1.15.0 True\n");
    }
    finish(cluster, mcp).await;
}
