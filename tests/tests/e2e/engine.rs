//! A Docker engine that stops answering, dies, and comes back. INVARIANT 28: that says nothing about its containers.
//!
//! It is an engine of the test's own, with its own data, sockets and processes, and without a network: the machine's is
//! never touched, only read for the image. Its containers' cgroups lie below one of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use berth_proto::{
    error::{Reason, reason_of},
    v1::{self, outcome::Kind},
};
use berth_tests::{Cluster, READY, Setup, skip, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::process::Child;
use tonic::Code;

use crate::{
    recovery::{outcome, start, workspace},
    util::{run, seconds, state},
};

const IMAGE: &str = "berth/sandbox:base";
/// A canary runs once a minute, and may take a third of one.
const CANARIES: Duration = Duration::from_secs(150);

pub struct Engine {
    dir: TempDir,
    cgroup: String,
    process: Option<Child>,
}

impl Engine {
    /// Starts it, with the image of sandboxes. `Err`: why that can't be had here.
    async fn start() -> Result<Self, String> {
        Self::with(serde_json::json!({})).await
    }

    /// The same with these runtimes beside its own: name, program and arguments, as its configuration has them.
    pub async fn with(runtimes: serde_json::Value) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("berth-d").tempdir().expect("a temporary directory");
        let driver = machines(&["info", "--format", "{{.Driver}}"])?;
        let at = |name: &str| dir.path().join(name).to_str().expect("our own paths are UTF-8").to_owned();
        let cgroup = format!("berth-test-engine-{}", std::process::id());
        let config = serde_json::json!({
            "data-root": at("data"), "exec-root": at("exec"), "pidfile": at("pid"),
            "hosts": [format!("unix://{}", at("sock"))], "storage-driver": driver.trim(),
            "bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false,
            "live-restore": true, "cgroup-parent": format!("/{cgroup}"), "runtimes": runtimes,
        });
        std::fs::write(dir.path().join("daemon.json"), config.to_string()).expect("its configuration");
        let mut this = Self { dir, cgroup, process: None };
        this.run().await?;
        let load = format!("docker save {IMAGE} | docker -H unix://{} load", this.socket().display());
        let loaded = Command::new("sh").args(["-c", &load]).output().expect("sh");
        if !loaded.status.success() {
            return Err(format!("the image can't be loaded: {}", String::from_utf8_lossy(&loaded.stderr)));
        }
        Ok(this)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Runs the engine until it answers.
    async fn run(&mut self) -> Result<(), String> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log");
        // In a group of its own: nobody's Ctrl-C is its.
        let child = tokio::process::Command::new("dockerd")
            .arg("--config-file")
            .arg(self.dir.path().join("daemon.json"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("dockerd: {error}"))?;
        let child = self.process.insert(child);
        for _ in 0..600 {
            if self_answers(&self.dir.path().join("sock")) {
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                return Err(format!("a second dockerd ends with {status}: {last:?}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err("a second dockerd does not answer".to_owned())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.as_ref().and_then(Child::id).expect("it runs") as i32)
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our own child can be signalled");
    }

    /// And with it goes its containerd, which the next one must not find half dead.
    async fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.dir.path().join("exec/containerd/containerd.pid"));
        self.process.take().expect("it runs").kill().await.expect("our own child can be killed");
        let Ok(pid) = pid else { return };
        let process = Path::new("/proc").join(pid.trim());
        // The machine's first process takes its time to see that it is dead.
        until(CANARIES, "its containerd to go", async || (!process.exists()).then_some(())).await;
    }

    fn containers(&self) -> String {
        own(&self.socket(), &["ps", "-aq"]).expect("it answers")
    }

    /// Ends it in order, and sees that nothing of it is left.
    pub async fn stop(mut self) {
        assert_eq!(self.containers(), "", "containers are left");
        self.signal(Signal::SIGTERM);
        let process = self.process.as_mut().expect("it runs");
        tokio::time::timeout(READY, process.wait()).await.expect("it stops").expect("it can be waited for");
        self.process = None;
        // One that was killed left its own mount of its data.
        let _ = Command::new("umount").arg("-q").arg(self.dir.path().join("data")).output();
        let text = self.dir.path().to_str().expect("our own paths are UTF-8").to_owned();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let left =
            || mounts().lines().filter(|line| line.contains(&text)).map(str::to_owned).collect::<Vec<_>>();
        until(READY, "its mounts to go", async || left().is_empty().then_some(())).await;
        self.remove_cgroups();
    }

    /// What it had for containers' cgroups, empty by now, in each hierarchy.
    fn remove_cgroups(&self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_tree(&hierarchy.path().join(&self.cgroup));
        }
        remove_tree(&Path::new("/sys/fs/cgroup").join(&self.cgroup));
    }
}

impl Drop for Engine {
    /// A test that failed leaves an engine with containers, which outlive it.
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        if let Some(pid) = process.id() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGCONT);
        }
        let script = "docker ps -aq | xargs -r docker rm -fv";
        let host = format!("unix://{}", self.socket().display());
        let _ = Command::new("timeout").args(["20", "sh", "-c", script]).env("DOCKER_HOST", host).output();
        let _ = process.start_kill();
        // What it could not do itself any more: what names our directory is ours, and what is in our cgroup.
        let dir = self.dir.path().to_str().expect("our own paths are UTF-8").to_owned();
        let contained = Path::new("/sys/fs/cgroup/unified").join(&self.cgroup);
        let script = r#"
            for p in $(cat "$2"/*/cgroup.procs 2>/dev/null); do kill -9 "$p"; done
            for p in /proc/[0-9]*; do
                if tr '\0' ' ' <"$p/cmdline" | grep -qF "$1/"; then kill -9 "${p#/proc/}"; fi
            done
            for mount in $(cut -d' ' -f5 /proc/self/mountinfo | grep -F "$1/" | tac); do umount -l "$mount"; done"#;
        let _ = Command::new("bash").args(["-c", script, "bash", &dir]).arg(contained).output();
        self.remove_cgroups();
    }
}

/// A cgroup and those below it, as far as they are empty.
fn remove_tree(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout").arg("10").arg("docker").args(args).output();
    let output = output.map_err(|error| format!("docker: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Asks the machine's engine. Changes nothing.
fn machines(args: &[&str]) -> Result<String, String> {
    docker(args)
}

fn own(socket: &Path, args: &[&str]) -> Result<String, String> {
    let host = format!("unix://{}", socket.display());
    docker(&[&["-H", host.as_str()], args].concat())
}

fn self_answers(socket: &Path) -> bool {
    own(socket, &["version"]).is_ok()
}

async fn worker(cluster: &Cluster) -> v1::Worker {
    let list = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner();
    list.workers.into_iter().next().expect("the worker")
}

async fn ready(cluster: &Cluster, wanted: bool) -> v1::Worker {
    let what = if wanted { "the worker to be ready again" } else { "the engine to be missed" };
    until(CANARIES, what, async || {
        let seen = worker(cluster).await;
        let is = seen.health.as_ref().is_some_and(|health| health.ready);
        assert_eq!(seen.liveness(), v1::Liveness::Alive, "a dead engine is no dead worker");
        (is == wanted).then_some(seen)
    })
    .await
}

/// Its session is there, and can be used: what it needs is its agent, and no engine.
async fn goes_on(cluster: &Cluster, session: &v1::Session, beat: impl Fn() -> String) {
    let now = state(cluster, &session.id).await;
    assert_eq!((now.state(), now.epoch), (v1::SessionState::Ready, session.epoch), "{now:?}");
    let before = beat();
    until(READY, "the task to go on", async || (beat() != before).then_some(())).await;
    assert_eq!(run(cluster, &session.id, "echo $((6 * 7))").await.0, "42");
}

/// Red when an engine that does not answer counts as a container that is gone (`ended` in the backend's supervision):
/// the session ends. Red when the worker stays ready: the placement is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stops_or_dies_ends_no_session() {
    let name = "e2e an_engine_that_stops_or_dies_ends_no_session";
    if skip::without_root(name) || skip::without_docker(name) {
        return;
    }
    let mut engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => return skip::note(name, &why),
    };
    let mut setup = Setup::new("docker");
    setup.worker_env.push(("DOCKER_HOST".to_owned(), format!("unix://{}", engine.socket().display())));
    let cluster = Cluster::start(setup).await;
    let session = cluster.session().await;
    let line =
        "i=0; until [ -e stop ]; do i=$((i + 1)); echo $i; date +%s%N > beat; sleep 0.02; done; exit 3";
    let task = start(&cluster, &session.id, line).await;
    let root = workspace(&cluster, 0, &session.id);
    let beat = || std::fs::read_to_string(root.join("beat")).unwrap_or_default();
    until(READY, "a beat", async || (!beat().is_empty()).then_some(())).await;
    let container = engine.containers();

    // It hangs.
    engine.signal(Signal::SIGSTOP);
    let seen = ready(&cluster, false).await;
    let reason = seen.health.expect("its health").reason;
    assert!(reason.contains("docker") || reason.contains("engine"), "{reason}");
    let docker = seen.backends.iter().find(|backend| backend.name == "docker").expect("it is listed");
    assert!(!docker.ready && !docker.message.is_empty(), "{docker:?}");
    let request = v1::CreateSessionRequest { wait_for_place: seconds(0), ..Default::default() };
    let error = cluster.sessions().create_session(request).await.expect_err("nothing is placed there");
    let said = (error.code(), reason_of(&error));
    assert_eq!(said, (Code::FailedPrecondition, Some(Reason::TemplateUnavailable)), "{error:?}");
    assert!(error.message().contains("backend docker can't be used"), "{error:?}");
    goes_on(&cluster, &session, beat).await;

    // It dies, and comes back.
    engine.kill().await;
    goes_on(&cluster, &session, beat).await;
    engine.run().await.expect("it ran before");
    ready(&cluster, true).await;
    assert!(engine.containers().contains(&container), "the container is another");
    goes_on(&cluster, &session, beat).await;
    let other = cluster.session().await;
    assert_eq!(run(&cluster, &other.id, "echo new").await.0, "new");

    std::fs::write(root.join("stop"), "").expect("the workspace is there");
    until(READY, "the task to end", async || outcome(&cluster, &task).await).await;
    assert_eq!(outcome(&cluster, &task).await, Some(Kind::Exited(3)));
    cluster.stop().await;
    engine.stop().await;
}

/// The worker comes back while the engine does not answer: it waits for its word. Red when an engine that can't be asked
/// is taken for one that has no container (`find` in the worker's `adopt` without its patience).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_comes_back_before_its_engine_waits_for_its_word() {
    let name = "e2e a_worker_that_comes_back_before_its_engine";
    if skip::without_root(name) || skip::without_docker(name) {
        return;
    }
    let engine = match Engine::start().await {
        Ok(engine) => engine,
        Err(why) => return skip::note(name, &why),
    };
    // With `docker` alone a worker does not even start without its engine.
    let mut setup = Setup::new("auto");
    setup.templates = Some("[[template]]\nname = \"boxed\"\nbackend = \"docker\"\n".to_owned());
    setup.worker_env.push(("DOCKER_HOST".to_owned(), format!("unix://{}", engine.socket().display())));
    let mut cluster = Cluster::start(setup).await;
    let request = v1::CreateSessionRequest {
        template: "boxed".into(),
        wait_for_place: seconds(60),
        ..Default::default()
    };
    let session = cluster.sessions().create_session(request).await.expect("a session").into_inner();
    start(&cluster, &session.id, "while :; do date +%s%N > beat; sleep 0.02; done").await;
    let root = workspace(&cluster, 0, &session.id);
    let beat = || std::fs::read_to_string(root.join("beat")).unwrap_or_default();
    until(READY, "a beat", async || (!beat().is_empty()).then_some(())).await;

    cluster.workers[0].process.kill().await;
    engine.signal(Signal::SIGSTOP);
    cluster.restart_worker(0);
    until(READY, "the worker to ask", async || {
        let log = cluster.workers[0].process.log();
        let asked = log.contains("could not be taken up") || log.contains("did not say in time");
        asked.then_some(())
    })
    .await;
    engine.signal(Signal::SIGCONT);
    cluster.workers_ready().await;
    goes_on(&cluster, &session, beat).await;
    cluster.stop().await;
    engine.stop().await;
}
