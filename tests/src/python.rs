//! Python environments for tests that need packages: each list of requirements has one, made once and kept under the
//! target directory, where `cargo clean` removes it.
//!
//! Requirements are pinned, all of them: nothing is installed that the list doesn't name, so a test runs tomorrow with
//! what it ran with today. `pip freeze` in a scratch environment prints such a list.

use std::{
    ffi::OsStr,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::skip;

/// Debian's, before any that a version manager puts first in PATH.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];
/// Written last: an environment without it was never finished.
const DONE: &str = "berth-done";

/// A virtual environment with these requirements, one `name==version` a line; its interpreter is `bin/python` in it.
/// `None`: there is no Python with venv, or no package index here, which is noted as the reason to skip `test`.
///
/// Waits while another process makes the same one.
///
/// # Panics
/// When the index answers and the requirements can't be installed all the same, or need more than they name.
pub fn venv(test: &str, requirements: &str) -> Option<PathBuf> {
    let lines: Vec<&str> = requirements
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    for line in &lines {
        assert!(line.contains("=="), "{line}: a requirement is pinned, as name==version");
    }
    let Some((python, version)) = interpreter() else {
        skip::note(test, "no Python with venv and pip: as root on Debian, apt-get install python3-venv");
        return None;
    };
    let all = kept();
    fs::create_dir_all(&all).expect("a directory under the target directory");
    let mut name = DefaultHasher::new();
    (&lines, &version).hash(&mut name);
    let venv = all.join(format!("{:016x}", name.finish()));
    // The kernel gives it back when this process ends, however that happens.
    let lock = File::create(venv.with_extension("lock")).expect("a lock file");
    lock.lock().expect("a lock");
    if !venv.join(DONE).exists()
        && let Err(output) = make(python, &venv, &lines)
    {
        assert!(!index_answers(python), "can't install {lines:?}:\n{output}");
        let last = output.lines().last().unwrap_or_default();
        skip::note(test, &format!("no package index: {last}"));
        return None;
    }
    Some(venv)
}

/// Beside the directories of the profile's own outputs: `target/debug/venvs`.
fn kept() -> PathBuf {
    let test = std::env::current_exe().expect("this executable");
    test.parent().and_then(Path::parent).expect("it is in target/<profile>/deps").join("venvs")
}

fn interpreter() -> Option<(&'static str, String)> {
    let asked = "import ensurepip, sys; print(sys.version)";
    let told = |python: &'static str| {
        let output = Command::new(python).args(["-c", asked]).output().ok()?;
        output.status.success().then(|| (python, String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    };
    PYTHONS.into_iter().find_map(told)
}

fn make(python: &str, venv: &Path, requirements: &[&str]) -> Result<(), String> {
    if venv.exists() {
        fs::remove_dir_all(venv).expect("what an earlier test began");
    }
    succeed(Command::new(python).args(["-m", "venv"]).arg(venv))?;
    // Without dependencies: all are named, and the check that follows says which is not.
    let mut install = pip(venv.join("bin/python"));
    install.args(["install", "-q", "--no-deps", "--only-binary", ":all:"]).args(requirements);
    succeed(&mut install)?;
    succeed(pip(venv.join("bin/python")).arg("check"))?;
    fs::write(venv.join(DONE), requirements.join("\n")).expect("a file");
    Ok(())
}

/// Whether packages can be had at all.
fn index_answers(python: &str) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    pip(python)
        .args(["download", "--no-deps", "--no-cache-dir", "six", "-d"])
        .arg(dir.path())
        .output()
        .is_ok_and(|output| output.status.success())
}

fn pip(python: impl AsRef<OsStr>) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]);
    pip
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let Output { status, stdout, stderr } = command.output().map_err(|error| error.to_string())?;
    let text = || format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(()) } else { Err(text().trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_has_what_was_asked_for_and_is_made_once() {
        let Some(venv) = venv("python an_environment_has_what_was_asked_for", "# one\nsix==1.16.0\n") else {
            return;
        };
        let version = "import six; print(six.__version__)";
        let output = Command::new(venv.join("bin/python")).args(["-c", version]).output().expect("it runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1.16.0\n");
        let made =
            |venv: &Path| fs::metadata(venv.join(DONE)).and_then(|file| file.modified()).expect("it is done");
        let (first, again) = (made(&venv), super::venv("python again", "six==1.16.0").expect("it is there"));
        assert_eq!((&again, made(&again)), (&venv, first));
    }

    /// Red when a list that names too little is taken: versions would then change from day to day.
    #[test]
    fn a_list_that_names_too_little_is_refused() {
        if venv("python a_list_that_names_too_little", "six==1.16.0").is_none() {
            return;
        }
        let said =
            std::panic::catch_unwind(|| venv("never", "python-dateutil==2.9.0.post0")).expect_err("refused");
        let said = said.downcast_ref::<String>().expect("words");
        assert!(said.contains("requires six, which is not installed"), "{said}");
    }
}
