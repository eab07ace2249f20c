//! The Python environment of a session: a venv at a fixed place on the session's own disk.
//!
//! Debian's Python refuses to install anything outside of a venv, and a session's packages are nobody else's. It is made
//! on the first use of a program, from what the sandbox has (Python's own `venv` and `ensurepip`, which need no network),
//! and is in checkpoints like any other file. What the sandbox's own Python has (an image's numpy) is found in it too,
//! behind what is installed in it. Where there is no Python, or it can't be made, programs run without it.
//!
//! Programs find it by PATH. What a session's PATH is, its template and its env decide, so the session is asked, by the
//! very task that makes the environment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_client::{Command, Outcome, Session, SessionId};
use berth_proto::spawn::spawn;
use tokio::sync::{OnceCell, oneshot};

use super::{problem::Problem, text};

/// Where it is.
pub const PLACE: &str = "/home/user/.venv";
/// What the script ends with where there is no Python.
const NO_PYTHON: i32 = 3;
/// To make it takes half a second; on a busy machine more.
const MAKING: Duration = Duration::from_secs(180);

/// The mark comes last: an environment whose making was cut off is made anew. Who makes it has a lock, which ends with the
/// task: several clients may use one session, and each begins by this.
///
/// Where the sandbox's own Python has pip, that one installs. Else pip would take most of the time (ten times the rest), and
/// most sessions never use it. So there is a stand-in by its name, which puts pip in its own place (`ensurepip`, which needs no network) when it is first called, however it is
/// called.
const MAKE: &str = r#"
v=/home/user/.venv
if [ ! -e "$v/.complete" ]; then
    command -v python3 >/dev/null || { echo 'there is no python3' >&2; exit 3; }
    exec 9>"$v.lock" && python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || exit 4
fi
if [ ! -e "$v/.complete" ]; then
    python3 -m venv --clear --without-pip --system-site-packages "$v" >&2 && "$v/bin/python" - >&2 <<'PY' && : > "$v/.complete" || exit 4
import importlib.util, os, sysconfig
if importlib.util.find_spec("pip") is None:
    pip = os.path.join(sysconfig.get_paths()["purelib"], "pip")
    os.mkdir(pip)
    with open(os.path.join(pip, "__main__.py"), "w") as file:
        file.write('''# pip itself comes with its first use, from what Python brings along.
import os, subprocess, sys
if os.environ.get("_PIP_MADE"):
    sys.exit("there is no pip, and python -m ensurepip did not make it")
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
os.execve(sys.executable, [sys.executable, "-m", "pip", *sys.argv[1:]], {**os.environ, "_PIP_MADE": "1"})
''')
for name in "pip", "pip3":
    path = os.path.join(sysconfig.get_paths()["scripts"], name)
    with open(path, "w") as file:
        file.write('''#!/bin/sh
exec "${0%/*}/python" -m pip "$@"
''')
    os.chmod(path, 0o755)
PY
fi
for site in "$v"/lib/python3*/site-packages; do
    [ -d "$site" ] && [ ! -e "$site/berth_figures.py" ] || continue
    cat > "$site/.berth_figures" <<'PY' && mv "$site/.berth_figures" "$site/berth_figures.py" || exit 4
# A backend of matplotlib for where there is no screen: show() writes each open figure as a file.
import os
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
def show(*args, **kwargs):
    os.makedirs("/workspace/artifacts", exist_ok=True)
    for manager in Gcf.get_all_fig_managers():
        number = 1
        while os.path.exists(path := f"/workspace/artifacts/figure-{number}.png"):
            number += 1
        manager.canvas.figure.savefig(path)
    Gcf.destroy_all()
PY
done
printf '%s\n%s' "$PATH" "${MPLBACKEND:-module://berth_figures}""#;

/// How it stands in one session.
#[derive(Clone, Debug)]
pub enum Venv {
    /// There is one; with the PATH that finds its programs first, and what matplotlib draws with.
    Ready { path: String, backend: String },
    /// There is none, and why. `for_good`: to try again would not help.
    Missing { why: String, for_good: bool },
}

impl Venv {
    /// Lets the program find it, unless its own env says otherwise.
    pub fn over(&self, command: Command) -> Command {
        match self {
            Self::Ready { path, .. } => command.env("PATH", path).env("VIRTUAL_ENV", PLACE),
            Self::Missing { .. } => command,
        }
    }

    /// The same for a program that is Python itself, and so finds what matplotlib shows its figures with.
    pub fn over_python(&self, command: Command) -> Command {
        match self {
            Self::Ready { backend, .. } => self.over(command).env("MPLBACKEND", backend),
            Self::Missing { .. } => command,
        }
    }
}

/// Those of a client's sessions.
#[derive(Default)]
pub struct Venvs(Mutex<HashMap<SessionId, Arc<OnceCell<Venv>>>>);

impl Venvs {
    /// That of the session; it is made if there is none. Calls at once wait for the same one.
    ///
    /// # Errors
    /// When the session can't be asked.
    pub async fn of(&self, session: &Session) -> Result<Venv, Problem> {
        let cell = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(session.id()).or_default())
        };
        if let Some(venv) = cell.get() {
            return Ok(venv.clone());
        }
        // No call's end cuts it off: the next one would begin to make it while that of the first goes on.
        let ((tell, told), session) = (oneshot::channel(), session.clone());
        spawn("mcp venv", async move {
            // What went wrong this time (a full disk, a busy machine) may go well the next.
            let made = cell.get_or_try_init(async || match make(&session).await {
                Ok(passing @ Venv::Missing { for_good: false, .. }) => Err(Ok(passing)),
                Ok(venv) => Ok(venv),
                Err(problem) => Err(Err(problem)),
            });
            let _ = tell.send(made.await.cloned().or_else(|not_kept| not_kept));
        });
        told.await.unwrap_or_else(|_| Err(Problem::new("no Python environment could be made", "call again")))
    }

    pub fn forget(&self, id: SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

async fn make(session: &Session) -> Result<Venv, Problem> {
    let made = session.run(Command::shell(MAKE).timeout(MAKING)).await?;
    let told = made.stdout_text();
    if made.success()
        && let Some((path, backend)) = told.rsplit_once('\n').filter(|(path, _)| path.starts_with('/'))
    {
        return Ok(Venv::Ready { path: format!("{PLACE}/bin:{path}"), backend: backend.to_owned() });
    }
    let said = made.stderr_text();
    let why = text::clipped(said.trim().lines().last().unwrap_or("it could not be made"), 300);
    tracing::info!(session.id = %session.id(), why, "a session has no Python environment");
    Ok(Venv::Missing { why, for_good: made.outcome == Outcome::Exited(NO_PYTHON) })
}
