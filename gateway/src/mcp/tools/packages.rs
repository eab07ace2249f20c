//! pkg_install: Python packages into the session's environment, by its own pip, over its own egress.

use std::{sync::LazyLock, time::Duration};

use berth_client::{Command, domain::Preset};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SessionArgument;
use crate::mcp::{
    problem::Problem,
    text,
    tool::{Answer, Call, Effect, Entry},
    venv::{PLACE, Venv},
};

/// Packages of one call.
const MOST: usize = 50;
/// Time for pip.
const INSTALLING: Duration = Duration::from_secs(600);
/// Bytes of what pip says that an answer has.
const SAID: usize = 4000;

/// A name, extras, and versions: what is on a line of a requirements file, less paths, URLs, markers and options.
static REQUIREMENT: LazyLock<Regex> = LazyLock::new(|| {
    let version = r"(?:===|==|~=|!=|<=|>=|<|>) ?[A-Za-z0-9.*+!_-]+";
    let extras = r"\[[A-Za-z0-9._-]+(?:, ?[A-Za-z0-9._-]+)*\]";
    Regex::new(&format!(
        r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{{0,99}})(?:{extras})? ?(?:{version}(?:, ?{version})*)?$"
    ))
    .expect("a constant pattern is good")
});

/// What is installed, as the environment itself says: pip's own words change with its versions. Of what is there twice the
/// first counts, as it does for an import: the sandbox's own Python may have another version.
const REPORT: &str = r#"
import importlib.metadata, json, re, sys
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
before = set(map(tuple, json.loads(sys.argv[1])))
first = {}
for d in importlib.metadata.distributions():
    if d.metadata["Name"]:
        first.setdefault(plain(d.metadata["Name"]), d.version)
now = set(first.items())
wanted = {plain(re.match(r"[A-Za-z0-9._-]+", name).group()) for name in sys.argv[2:]}
print(json.dumps([{"name": n, "version": v, "requested": n in wanted, "new": (n, v) not in before}
                  for n, v in sorted(now) if n in wanted or (n, v) not in before]))
"#;
const LIST: &str = r#"
import importlib.metadata, json, re
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
first = {}
for d in importlib.metadata.distributions():
    if d.metadata["Name"]:
        first.setdefault(plain(d.metadata["Name"]), d.version)
print(json.dumps(sorted(first.items())))
"#;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InstallArgs {
    /// Session to install in, by id or name; left out: your own.
    session: SessionArgument,
    /// Names, each with extras and versions if wanted, for example ["requests", "numpy>=2,<3", "uvicorn[standard]"]. At
    /// most 50.
    packages: Vec<String>,
    /// Take the newest version that fits, also where an older one is installed.
    #[serde(default)]
    upgrade: bool,
}

#[derive(Deserialize, Serialize, JsonSchema)]
struct Package {
    /// In lower case, with - for _ and dots.
    name: String,
    version: String,
    /// It was asked for; otherwise another one needs it.
    requested: bool,
    /// It was installed by this call; otherwise it was there.
    new: bool,
}

#[derive(Serialize, JsonSchema)]
struct Installed {
    session: String,
    /// What was asked for, and what came with it.
    packages: Vec<Package>,
}

pub fn tools() -> Vec<Entry> {
    vec![Entry::new(
        "pkg_install",
        "Install Python packages",
        Effect::Runs,
        "Installs Python packages from the package index into the session's environment, which run_python and shells use, \
         and answers with what is installed in which version. The session must be allowed to reach the index (egress \
         packages).",
        install,
    )]
}

async fn install(call: Call, args: InstallArgs) -> Result<Answer<Installed>, Problem> {
    check(&args.packages)?;
    let session = call.session(args.session.as_deref()).await?;
    let info = session.info().await?;
    if info.egress.preset == Preset::None && info.egress.allow.is_empty() {
        return Err(Problem::new(
            "this session may reach no package index",
            "make one that may, with session_create and `egress: \"packages\"`; or ask the operator to start this server \
             with `berth mcp --egress packages`",
        ));
    }
    let venv = call.venv(&session).await?;
    if let Venv::Missing { why, .. } = &venv {
        return Err(Problem::new(
            format!("the session has no Python environment: {why}"),
            "make a session of a template with Python, or with more disk_mib and memory_mib",
        ));
    }
    let python = || venv.over(Command::new(format!("{PLACE}/bin/python")).timeout(INSTALLING));
    let installing = async {
        // pip itself comes with its first use, and is not what was asked for.
        session.run(python().args(["-m", "pip", "--version"])).await?;
        let before = session.run(python().args(["-c", LIST])).await?;
        let mut pip =
            python().args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]);
        if args.upgrade {
            pip = pip.arg("--upgrade");
        }
        // After `--` nothing is an option, whatever it looks like.
        let done = session.run(pip.arg("--").args(&args.packages)).await?;
        if !done.success() {
            let said = text::clipped(end(&done.stderr_text()), SAID);
            let how = berth_client::model::outcome_name(done.outcome);
            let hint = "look at what pip says: a name or version that is not there, no way to the index, no room, or no memory";
            return Err(Problem::new(format!("pip failed ({how}): {said}"), hint));
        }
        let report = python().args(["-c", REPORT]).arg(before.stdout_text().trim()).args(&args.packages);
        let report = session.run(report).await?;
        serde_json::from_slice(&report.stdout).map_err(|_| {
            let said = text::clipped(end(&report.stderr_text()), SAID);
            Problem::new(format!("it was installed, but can't be listed: {said}"), "list it with run_python")
        })
    };
    let packages: Vec<Package> = call.wait("pip installs", installing).await?;
    let line = |package: &Package| {
        let what = match (package.requested, package.new) {
            (true, true) => "",
            (true, false) => " (was there)",
            (false, _) => " (needed by another)",
        };
        format!("{} {}{what}", package.name, package.version)
    };
    let text = packages.iter().map(line).collect::<Vec<_>>().join("\n");
    Ok(Answer { data: Installed { session: session.id().to_string(), packages }, text })
}

/// The end is where pip says what was wrong.
fn end(text: &str) -> &str {
    let from = text.len().saturating_sub(SAID);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].trim()
}

fn check(packages: &[String]) -> Result<(), Problem> {
    if packages.is_empty() || packages.len() > MOST {
        let message = format!("`packages` has {} entries", packages.len());
        return Err(Problem::new(message, format!("give 1 to {MOST} names")));
    }
    match packages.iter().find(|package| package.len() > 200 || !REQUIREMENT.is_match(package)) {
        None => Ok(()),
        Some(package) => Err(Problem::new(
            format!("{:?} is no name of a package", text::clipped(package, 100)),
            "give names with versions, for example \"numpy>=2,<3\"; for files, URLs and options of pip use run_shell",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when an option, a path or a URL gets through: pip takes each for its own.
    #[test]
    fn only_names_and_versions_are_packages() {
        for good in [
            "six",
            "numpy>=2,<3",
            "uvicorn[standard]",
            "a.b-c_d==1.0.post1",
            "x~=1.4",
            "ruamel.yaml == 0.18.*",
        ] {
            assert!(check(&[good.to_owned()]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-r x",
            "--index-url=http://x",
            "./x",
            "../x.whl",
            "/etc/passwd",
            "git+https://x/y",
            "x @ http://y",
            "http://x/y.whl",
            "six;python_version<'4'",
            "six\n-r x",
            "six ==",
            "ä",
            "six>=1 --pre",
            "a b",
        ] {
            assert!(check(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(check(&[]).is_err() && check(&vec!["six".to_owned(); 51]).is_err());
        assert!(check(&["x".repeat(300)]).is_err());
    }
}
