//! What the tests stand on: an instance of their own, a stand-in for the agent, and a way
//! to the engine that can be cut.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_proto::domain::{BackendChoice, Limits};
use bollard::models::ContainerInspectResponse;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::sandbox::docker::*;

pub const LIMITS: Limits = Limits { cpu_millis: 500, memory_bytes: 256 << 20, disk_bytes: 1 << 30, pids: 50 };
/// For what takes well under a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Notes for the summary that this test could not run.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("docker").to_owned();
    eprintln!("skipped: {name}: {reason}");
    if let Some(log) = std::env::var_os("BERTH_SKIP_LOG") {
        let file = fs::OpenOptions::new().append(true).create(true).open(log);
        let _ = file.and_then(|mut file| writeln!(file, "{name}: {reason}"));
    }
}

const STAND_IN: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void copy(const char *from, const char *to) {
    char b[4096]; size_t n;
    FILE *i = fopen(from, "r"), *o = fopen(to, "w");
    while (i && o && (n = fread(b, 1, sizeof b, i)) > 0) fwrite(b, 1, n, o);
    if (o) fclose(o);
}
static void join(const char *dir, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s%s", dir, name);
    mkdir(path, 0755);
    strcat(path, "/cgroup.procs");
    FILE *procs = fopen(path, "w");
    if (procs) { fputs("0", procs); fclose(procs); }
}
/* As the agent does with a task, which here takes more memory than its session has. */
static void task(void) {
    join("/.berth/cg/unified/t", "/task");
    join("/.berth/cg/memory/t", "/task");
    join("/.berth/cg/pids/t", "");
    join("/.berth/cg/cpu/t", "");
    copy("/proc/self/cgroup", "/.berth/run/cgroup");
    for (size_t i = 0; i < 512; i++) memset(malloc(1 << 20), 1, 1 << 20);
    _exit(0);
}
int main(void) {
    copy("/proc/self/status", "/.berth/run/status");
    copy("/proc/self/environ", "/.berth/run/environ");
    copy("/proc/self/mountinfo", "/.berth/run/mountinfo");
    copy("/proc/net/dev", "/.berth/run/net");
    copy("/etc/passwd", "/.berth/run/passwd");
    copy("/.berth/config.json", "/.berth/run/config");
    printf("the stand-in is up\n"); fflush(stdout);
    if (access("/.berth/cg/memory", F_OK) == 0) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) task();
        waitpid(child, &status, 0);
        FILE *o = fopen("/.berth/run/task", "w");
        fprintf(o, "%d", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
        fclose(o);
    }
    copy("/dev/null", "/.berth/run/done");
    for (;;) pause();
}
"#;

/// One test's instance: its own labels, directory and cgroup tree.
pub struct Bench {
    pub temp: TempDir,
    pub backend: DockerBackend,
    pub instance: String,
}

impl Bench {
    /// `None`: this machine can't, and that is noted.
    pub async fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("these tests set owners and cgroups, as root");
            return None;
        }
        let temp = TempDir::with_prefix("berth-docker-").expect("a directory");
        let agent = match stand_in(temp.path()) {
            Ok(agent) => agent,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        let instance = format!("test-{}", SessionId::new());
        let mut settings = Settings::new(&instance, agent);
        if let Ok(image) = std::env::var("BERTH_SANDBOX_IMAGE") {
            settings.default_image = image;
        }
        let backend = DockerBackend::new(settings).expect("sound settings");
        let report = backend.preflight().await;
        if !report.ready() {
            skip(&report.summary());
            return None;
        }
        Some(Self { temp, backend, instance })
    }

    /// Directories as the worker's workspace makes them.
    pub fn spec(&self) -> SandboxSpec {
        let session = SessionId::new();
        let dirs = SessionDirs { root: self.temp.path().join(session.to_string()) };
        for dir in [dirs.berth(), dirs.run(), dirs.spool(), dirs.workspace(), dirs.home()] {
            fs::create_dir_all(dir).expect("made");
        }
        SandboxSpec { session, template: template(None), limits: LIMITS, files_in_memory: 0, dirs }
    }

    pub async fn inspect(&self, identity: &Identity) -> Result<ContainerInspectResponse, CallError> {
        let (_, container, _) = ours(identity).expect("ours");
        let docker = self.backend.inner.engine.client().await.expect("it answers");
        call("look", LOOK, docker.inspect_container(container, None)).await
    }

    pub async fn cgroups_usable(&self) -> bool {
        let inner = &self.backend.inner;
        let v1 = |layout| layout != crate::sandbox::cgroup::Layout::V2;
        inner.own_cgroups().await.expect("an answer") && inner.cgroups.probe().is_ok_and(v1)
    }

    /// Cgroup directories of this instance on this machine.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
        while let Some((dir, depth)) = open.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if entry.file_name().to_string_lossy().contains(&self.instance) {
                    found.push(entry.path());
                }
                if depth < 4 {
                    open.push((entry.path(), depth + 1));
                }
            }
        }
        found
    }
}

impl Drop for Bench {
    /// After a failed assertion: only what carries this test's own instance.
    fn drop(&mut self) {
        let filter = format!("label={LABEL_INSTANCE}={}", self.instance);
        let Ok(found) = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output() else {
            return;
        };
        for id in String::from_utf8_lossy(&found.stdout).split_whitespace() {
            let _ = Command::new("docker").args(["rm", "-fv", id]).output();
        }
        if let Ok(sessions) = self.backend.inner.cgroups.sessions() {
            for session in sessions {
                let _ = self.backend.inner.cgroups.remove(&session);
            }
        }
    }
}

fn stand_in(dir: &Path) -> Result<PathBuf, String> {
    let (source, binary) = (dir.join("agent.c"), dir.join("agent"));
    fs::write(&source, STAND_IN).expect("written");
    let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&binary).arg(&source).output();
    match built {
        Ok(output) if output.status.success() => Ok(binary),
        Ok(output) => Err(format!("cc -static failed: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("no C compiler for a stand-in of the agent: {error}")),
    }
}

pub fn template(image: Option<&str>) -> TemplateSpec {
    TemplateSpec {
        name: "base".into(),
        root: None,
        image: image.map(str::to_owned),
        backend: BackendChoice::Only(Backend::Docker),
        user: "user".into(),
    }
}

/// What the stand-in noted, once it has.
pub async fn noted(dirs: &SessionDirs, name: &str) -> String {
    let done = dirs.run().join("done");
    let waited = timeout(PATIENCE, async {
        while !done.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("the stand-in gets to work");
    fs::read_to_string(dirs.run().join(name)).expect("it was noted")
}

/// Passes connections on to the engine while it is `up`.
pub struct Proxy {
    pub up: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    pub fn start(path: &Path, target: PathBuf) -> Self {
        let (up, state) = tokio::sync::watch::channel(true);
        let listener = tokio::net::UnixListener::bind(path).expect("a socket");
        berth_proto::spawn::spawn("test-proxy", async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.clone());
                berth_proto::spawn::spawn("test-proxy-connection", async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut engine) = tokio::net::UnixStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut engine) => {}
                        _ = state.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Self { up }
    }
}
