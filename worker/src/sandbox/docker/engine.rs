//! The connection to the engine: found as the `docker` command finds it, its API version
//! negotiated once, and every call under a deadline, with errors that say whose fault it is.
//!
//! A connection is made for each call (the engine is local), so an engine that was
//! restarted is simply there again: nothing has to be reconnected.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::{Code, Error, Reason};
use bollard::{Docker, errors::Error as Bollard, models::SystemInfo};
use tokio::{net::UnixStream, sync::OnceCell, time::timeout};

use crate::sandbox::Problem;

/// Time for a healthy engine to say who it is.
pub const ANSWER: Duration = Duration::from_secs(3);
/// Reading calls: inspect, list.
pub const LOOK: Duration = Duration::from_secs(10);
/// Calls that change something: create, start, remove.
pub const CHANGE: Duration = Duration::from_secs(30);

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// Oldest API that has all we ask for (private cgroup namespaces came with 1.41, engine 20.10).
const MIN_API: (usize, usize) = (1, 41);

/// What a start needs to know of the engine. It does not change while an engine runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub version: String,
    pub api: String,
    pub storage: String,
    pub cgroup_version: String,
    pub cgroup_driver: String,
    pub cpus: u32,
    pub seccomp: bool,
    /// Docker's API served by podman, which takes a profile's path where Docker takes the profile.
    pub podman: bool,
    pub rootless: bool,
    /// Container ids are not host ids.
    pub remapped: bool,
    /// The host's ids of container root, where ids are mapped and it is known.
    pub remap_base: Option<(u32, u32)>,
    pub live_restore: bool,
    /// What `Runtimes` says: by name, the program and its arguments.
    pub runtimes: BTreeMap<String, Runtime>,
}

/// One of the engine's runtimes. Newer engines tell neither of one that has a containerd shim of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    pub path: String,
    pub arguments: Vec<String>,
}

pub struct Engine {
    /// The Unix socket, or what `DOCKER_HOST` says that is none.
    socket: Result<PathBuf, String>,
    client: OnceCell<Docker>,
    facts: OnceCell<Facts>,
}

impl Engine {
    /// `host` is `DOCKER_HOST`. Connects to nothing yet.
    pub fn new(host: Option<&str>) -> Self {
        let socket = match host.filter(|host| !host.is_empty()) {
            None => Ok(default_socket()),
            Some(host) => match host.strip_prefix("unix://") {
                Some(path) => Ok(PathBuf::from(path)),
                None => Err(host.to_owned()),
            },
        };
        Self { socket, client: OnceCell::new(), facts: OnceCell::new() }
    }

    /// A client that has agreed on a version with the engine.
    ///
    /// # Errors
    /// UNAVAILABLE with a hint, within [`ANSWER`].
    pub async fn client(&self) -> Result<&Docker, Error> {
        let connected = self.client.get_or_try_init(|| async {
            let path = self.answers().await?;
            let address = path.to_str().ok_or_else(|| remote(&path.display().to_string()))?;
            let docker = Docker::connect_with_unix(address, 120, bollard::API_DEFAULT_VERSION)
                .map_err(|cause| silent(path, &cause.to_string()))?;
            let docker = timeout(ANSWER, docker.negotiate_version())
                .await
                .map_err(|_| silent(path, "no answer to a question for its version"))?
                .map_err(|cause| silent(path, &cause.to_string()))?;
            let api = docker.client_version();
            if (api.major_version, api.minor_version) < MIN_API {
                return Err(Problem {
                    what: format!("the container engine speaks API {api}, older than 1.41"),
                    hint: "install Docker 20.10 or newer".into(),
                });
            }
            Ok(docker)
        });
        connected.await.map_err(unavailable)
    }

    /// Whether something listens on the socket and lets us in.
    pub async fn answers(&self) -> Result<&Path, Problem> {
        let path = self.socket.as_deref().map_err(|host| remote(host))?;
        match timeout(ANSWER, UnixStream::connect(path)).await {
            Ok(Ok(_)) => Ok(path),
            Ok(Err(error)) => Err(closed_door(path, &error, engine_installed())),
            Err(_) => Err(silent(path, "no answer")),
        }
    }

    /// Whether what this process mounts is there for the engine too: it would bind the empty directory below without a
    /// word. `Err`: why not, or why that can't be told.
    pub async fn sees_our_mounts(&self) -> Result<(), String> {
        let path = self.answers().await.map_err(|problem| problem.what)?;
        let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        // Who listens there: the engine, or the machine's first process on its behalf.
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let Some(pid) = peer else {
            return Err("the engine runs outside of the worker's container".to_owned());
        };
        let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/mnt"));
        match (namespace("self"), namespace(&pid.to_string())) {
            (Ok(ours), Ok(theirs)) if ours == theirs => Ok(()),
            (Ok(_), Ok(_)) => {
                Err("the engine does not see what the worker mounts (another mount namespace)".to_owned())
            }
            (_, Err(error)) | (Err(error), _) => {
                Err(format!("whether the engine sees what the worker mounts can't be told ({error})"))
            }
        }
    }

    /// What kind of engine it is: asked once.
    pub async fn facts(&self) -> Result<&Facts, Error> {
        self.facts.get_or_try_init(|| async { self.look().await }).await
    }

    /// The same, asked now.
    pub async fn look(&self) -> Result<Facts, Error> {
        let docker = self.client().await?;
        let info = call("say what it is", ANSWER, docker.info()).await?;
        let version = call("say its version", ANSWER, docker.version()).await?;
        let podman =
            version.components.iter().flatten().any(|part| part.name.to_lowercase().contains("podman"));
        Ok(Facts { podman, ..facts(info, docker.client_version().to_string()) })
    }
}

fn facts(info: SystemInfo, api: String) -> Facts {
    let options = info.security_options.unwrap_or_default();
    let has = |name: &str| {
        let with = format!("name={name}");
        options.iter().any(|o| *o == with || o.starts_with(&format!("{with},")))
    };
    Facts {
        version: info.server_version.unwrap_or_else(|| "unknown".into()),
        api,
        storage: info.driver.unwrap_or_else(|| "unknown".into()),
        cgroup_version: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
        cgroup_driver: info.cgroup_driver.map(|d| d.to_string()).unwrap_or_default(),
        cpus: info.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1),
        seccomp: has("seccomp"),
        podman: false,
        rootless: has("rootless"),
        remapped: has("userns"),
        remap_base: info.docker_root_dir.as_deref().and_then(remap_base),
        live_restore: info.live_restore_enabled.unwrap_or(false),
        runtimes: info.runtimes.into_iter().flatten().map(|(name, runtime)| (name, runtime.into())).collect(),
    }
}

impl From<bollard::models::Runtime> for Runtime {
    fn from(seen: bollard::models::Runtime) -> Self {
        Self { path: seen.path.unwrap_or_default(), arguments: seen.runtime_args.unwrap_or_default() }
    }
}

/// A mapping engine keeps its data in `.../<uid>.<gid>`, of container root.
fn remap_base(root_dir: &str) -> Option<(u32, u32)> {
    let (uid, gid) = root_dir.trim_end_matches('/').rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

#[cfg(test)]
impl Facts {
    /// Debian's engine, for tests.
    pub fn sample() -> Self {
        Self {
            version: "20.10".into(),
            api: "1.41".into(),
            storage: "overlay2".into(),
            cgroup_version: "1".into(),
            cgroup_driver: "cgroupfs".into(),
            cpus: 2,
            seccomp: true,
            podman: false,
            rootless: false,
            remapped: false,
            remap_base: None,
            live_restore: false,
            runtimes: [("runc".to_owned(), Runtime { path: "runc".to_owned(), arguments: Vec::new() })]
                .into(),
        }
    }
}

/// The system's engine, or the user's own where only that is there.
fn default_socket() -> PathBuf {
    let system = PathBuf::from(DEFAULT_SOCKET);
    if system.exists() {
        return system;
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("docker.sock")) {
        Some(own) if own.exists() => own,
        _ => system,
    }
}

fn engine_installed() -> bool {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/snap/bin"]
        .iter()
        .any(|dir| Path::new(dir).join("dockerd").exists())
}

// ---- what can be wrong with the way to it ----------------------------------------

fn remote(host: &str) -> Problem {
    Problem {
        what: format!(
            "DOCKER_HOST is {host}, and sandboxes share files with the worker, so the engine must be local"
        ),
        hint: "unset DOCKER_HOST, or let it name a Unix socket (unix:///path)".into(),
    }
}

fn silent(path: &Path, cause: &str) -> Problem {
    Problem {
        what: format!("the container engine at {} does not answer: {cause}", path.display()),
        hint: "see `journalctl -u docker`, and restart it".into(),
    }
}

fn closed_door(path: &Path, error: &io::Error, installed: bool) -> Problem {
    let path = path.display();
    let start = "start it: `systemctl start docker`";
    let (what, hint) = match error.kind() {
        io::ErrorKind::NotFound if installed => {
            (format!("the container engine does not run: {path} is not there"), start)
        }
        io::ErrorKind::NotFound => (
            format!("no container engine is installed: {path} is not there"),
            "install one: `apt-get install docker.io`",
        ),
        io::ErrorKind::ConnectionRefused => {
            (format!("the container engine does not run: nothing listens on {path}"), start)
        }
        io::ErrorKind::PermissionDenied => (
            format!("no permission to use the container engine at {path}"),
            "join its group, which is as good as root: `sudo usermod -aG docker $USER`, then log in again",
        ),
        _ => (
            format!("the container engine at {path} can't be reached: {error}"),
            "see `journalctl -u docker`",
        ),
    };
    Problem { what, hint: hint.into() }
}

/// A problem as the answer to a call.
pub fn unavailable(problem: Problem) -> Error {
    Error::unavailable(Reason::BackendUnavailable, problem.what).hint(problem.hint)
}

// ---- calls ----------------------------------------------------------------------

/// Why a call to the engine did not do what was asked.
#[derive(Debug)]
pub enum CallError {
    /// There is no such container or image.
    NotFound,
    /// A name is taken, or the same is being done already.
    Conflict(String),
    /// The engine answered with a failure.
    Refused {
        what: &'static str,
        status: u16,
        message: String,
    },
    /// There was no answer to be had.
    Unreachable {
        what: &'static str,
        cause: String,
    },
    Deadline {
        what: &'static str,
        limit: Duration,
    },
}

/// Runs one call of the engine's API. `what` completes "the engine could not ...".
pub async fn call<T>(
    what: &'static str,
    limit: Duration,
    future: impl Future<Output = Result<T, Bollard>>,
) -> Result<T, CallError> {
    match timeout(limit, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Bollard::DockerResponseServerError { status_code, message })) => Err(match status_code {
            404 => CallError::NotFound,
            409 => CallError::Conflict(message),
            status => CallError::Refused { what, status, message },
        }),
        Ok(Err(Bollard::RequestTimeoutError)) | Err(_) => Err(CallError::Deadline { what, limit }),
        Ok(Err(cause)) => Err(CallError::Unreachable { what, cause: cause.to_string() }),
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found"),
            Self::Conflict(message) => f.write_str(message),
            Self::Refused { what, status, message } => write!(f, "could not {what}: {status} {message}"),
            Self::Unreachable { what, cause } => write!(f, "could not be asked to {what}: {cause}"),
            Self::Deadline { what, limit } => write!(f, "did not {what} within {limit:?}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Error {
    /// The engine's own words are the cause, for the log: they name paths of the host.
    fn from(error: CallError) -> Error {
        let failed = |message: String| Error::new(Code::Internal, Reason::SandboxFailed, message);
        let public = match &error {
            CallError::NotFound => failed("the sandbox's container is gone".into()),
            CallError::Conflict(_) => failed("the container engine is busy with this sandbox already".into()),
            CallError::Refused { what, .. } => failed(format!("the container engine could not {what}")),
            CallError::Unreachable { what, .. } => Error::unavailable(
                Reason::BackendUnavailable,
                format!("the container engine can't be reached, to {what}"),
            )
            .hint("see `berth doctor` on the worker"),
            CallError::Deadline { what, limit } => Error::new(
                Code::DeadlineExceeded,
                Reason::StartTimeout,
                format!("the container engine did not {what} within {} s", limit.as_secs()),
            )
            .hint("see `journalctl -u docker` on the worker"),
        };
        public.cause(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_door_is_named_with_its_key() {
        let problem = |kind: io::ErrorKind, installed| {
            closed_door(Path::new("/x.sock"), &io::Error::from(kind), installed)
        };
        assert!(problem(io::ErrorKind::NotFound, false).what.contains("no container engine is installed"));
        assert!(problem(io::ErrorKind::NotFound, true).hint.contains("systemctl start"));
        assert!(problem(io::ErrorKind::ConnectionRefused, true).what.contains("does not run"));
        assert!(problem(io::ErrorKind::PermissionDenied, true).hint.contains("usermod -aG docker"));
    }

    #[tokio::test]
    async fn an_engine_elsewhere_is_refused_by_name() {
        let engine = Engine::new(Some("tcp://10.0.0.1:2375"));
        let error = engine.client().await.expect_err("it is remote");
        assert_eq!(error.reason(), Reason::BackendUnavailable);
        assert!(error.message().contains("tcp://10.0.0.1:2375"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_accepts_and_says_nothing_is_given_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let engine = Engine::new(Some(&format!("unix://{}", path.display())));
        let error = engine.client().await.expect_err("it never answers");
        assert!(error.message().contains("does not answer"), "{error}");
    }

    #[tokio::test]
    async fn an_engine_that_comes_later_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("docker.sock");
        let engine = Engine::new(Some(&format!("unix://{}", path.display())));
        assert!(engine.answers().await.is_err());
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        assert!(engine.answers().await.is_ok());
    }

    #[test]
    fn security_options_are_read_whole() {
        let info = |options: &[&str]| SystemInfo {
            security_options: Some(options.iter().map(|&o| o.to_owned()).collect()),
            ..SystemInfo::default()
        };
        let plain = facts(info(&["name=seccomp,profile=default"]), "1.41".into());
        assert!(plain.seccomp && !plain.rootless && !plain.remapped);
        let other = facts(info(&["name=rootless", "name=userns"]), "1.41".into());
        assert!(!other.seccomp && other.rootless && other.remapped);
        assert_eq!(remap_base("/var/lib/docker/165536.165537"), Some((165_536, 165_537)));
        assert_eq!(remap_base("/var/lib/docker"), None);
    }
}
