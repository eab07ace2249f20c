//! Where an attack is made: a cluster of its own, sandboxes in it, and what an attack came to. The same attack runs
//! twice: against the real thing, where it must not get through, and against a sandbox of which one protection is
//! loosened, where the very same check must see that it does.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_proto::v1::{
    self, outcome::Kind, read_response, task_event::Event, task_spec::Program, write_request,
};
use berth_tests::{Cluster, Setup, skip};
use nix::libc::c_long;
use tonic::Status;

const LOOSEN: &str = include_str!("loosen.py");

/// What an attack came to: it was held, with what was seen.
pub type Finding = Result<String, Not>;

/// Why it was not.
#[derive(Debug)]
pub enum Not {
    /// It got through: what it had.
    Held(String),
    /// This machine, or Berth as it is, can't show it: the reason.
    Here(String),
}

impl From<String> for Not {
    fn from(what: String) -> Self {
        Self::Held(what)
    }
}

/// Goes on if the sandbox held.
pub fn hold(held: bool, otherwise: impl Into<String>) -> Result<(), Not> {
    if held { Ok(()) } else { Err(Not::Held(otherwise.into())) }
}

/// What is loosened to see a test fail. Always one thing, and always bounded.
#[derive(Clone, Copy, Debug)]
pub enum Weak {
    /// A number or switch of the request: the attack picks it with [`Arena::pick`].
    Request(&'static str),
    /// Something that the test does to the running sandbox as root of the host, in [`Arena::loosened`].
    Host(&'static str),
    /// A protection of the agent or the worker, in binaries that are built for this alone.
    Built(&'static str),
    /// The two before: what holds a line twice must be loosened twice.
    Both(&'static str, &'static str),
    /// A protection of the agent: the system call filter lets these calls through.
    Calls(&'static [c_long]),
}

impl Weak {
    fn variable(&self) -> Option<String> {
        match self {
            Weak::Built(name) | Weak::Both(_, name) => Some((*name).to_owned()),
            Weak::Calls(calls) => {
                let calls: Vec<String> = calls.iter().map(ToString::to_string).collect();
                Some(format!("calls={}", calls.join(",")))
            }
            _ => None,
        }
    }

    fn words(&self) -> String {
        match self {
            Weak::Request(what) | Weak::Host(what) => (*what).to_owned(),
            Weak::Built(name) => format!("{} in the agent or worker", name.replace('-', " ")),
            Weak::Both(what, name) => format!("{what}, and {} in the agent", name.replace('-', " ")),
            Weak::Calls(_) => "these calls let through the filter".to_owned(),
        }
    }
}

pub struct Arena {
    weak: Option<Weak>,
    pub cluster: Cluster,
    /// A directory of the host that no sandbox has a way to, with a file in it.
    pub canary: PathBuf,
}

/// What is in the canary's file, and in the worker's environment.
pub const TOKEN: &str = "canary-7c1f0e5b9d";

/// Runs one line of the list, and asserts what must come of it.
///
/// # Panics
/// When it does not.
pub async fn run(
    line: &'static str,
    backend: &'static str,
    weak: Option<Weak>,
    gives: &str,
    attack: impl AsyncFnOnce(&Arena) -> Finding,
) {
    let name = format!("abuse {backend}{} {line}", if weak.is_some() { " weakened" } else { "" });
    if skip::without(backend, &name) {
        return row(line, backend, weak, "skipped", "the backend can't be tested here");
    }
    if weak.is_some_and(|weak| weak.variable().is_some()) && skip::without_weakened(&name) {
        return row(line, backend, weak, "skipped", "`make abuse` builds what it needs");
    }
    let arena = Arena::start(backend, weak).await;
    let finding = attack(&arena).await;
    match (weak.is_some(), &finding) {
        (_, Err(Not::Here(reason))) => {
            skip::note(&name, reason);
            row(line, backend, weak, "skipped", reason);
        }
        (false, Ok(seen)) => row(line, backend, weak, "held", seen),
        (true, Err(Not::Held(through))) if through.contains(gives) => {
            row(line, backend, weak, "red", through)
        }
        (false, Err(Not::Held(through))) => {
            row(line, backend, weak, "FAILED", through);
            panic!("{line} on {backend}: the attack got through: {through}");
        }
        (true, other) => {
            row(line, backend, weak, "FAILED", &format!("{other:?}"));
            panic!(
                "{line} on {backend}: loosened ({:?}), the test must see {gives:?}, and saw {other:?}",
                weak
            );
        }
    }
    arena.cluster.stop().await;
}

/// Notes a row for the table of `make abuse`.
fn row(line: &str, backend: &str, weak: Option<Weak>, result: &str, seen: &str) {
    let Some(path) = std::env::var_os("BERTH_ABUSE_LOG") else { return };
    let seen: String = seen.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect();
    let how = weak.map_or_else(|| "plain".to_owned(), |weak| weak.words());
    let text = format!("{line}\t{backend}\t{how}\t{result}\t{seen}\n");
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the table can be written");
}

impl Arena {
    async fn start(backend: &'static str, weak: Option<Weak>) -> Self {
        let mut setup = Setup::new(backend);
        setup.worker_env.push(("CANARY_TOKEN".into(), TOKEN.into()));
        if let Some(variable) = weak.and_then(|weak| weak.variable()) {
            setup.weakened = true;
            if variable == "follow-canary" {
                // An image is unmounted, and nobody walks what is in it.
                setup.worker_env.push(("BERTH_WORKSPACE".into(), "directory".into()));
            }
            setup.worker_env.push(("WEAKEN_FOR_TESTS".into(), variable));
        }
        let cluster = Cluster::start(setup).await;
        let canary = cluster.dir.path().join("berth-canary");
        std::fs::create_dir(&canary).expect("the canary's directory");
        std::fs::write(canary.join("secret"), format!("{TOKEN}\n")).expect("the canary");
        Self { weak, cluster, canary }
    }

    /// Whether a protection is loosened.
    pub fn loosened(&self) -> bool {
        self.weak.is_some()
    }

    pub fn pick<T>(&self, strict: T, loose: T) -> T {
        if self.loosened() { loose } else { strict }
    }

    /// How long something that must happen may take; of something that, loosened, does not happen: a while.
    pub fn patience(&self) -> Duration {
        self.pick(Duration::from_secs(60), Duration::from_secs(5))
    }

    /// A session of 64 MiB and 64 processes.
    pub async fn sandbox(&self) -> Sandbox<'_> {
        self.sandbox_with(v1::Limits::default()).await
    }

    pub async fn sandbox_with(&self, limits: v1::Limits) -> Sandbox<'_> {
        let limits = v1::Limits {
            memory_bytes: limits.memory_bytes.or(Some(64 << 20)),
            pids: limits.pids.or(Some(64)),
            ..limits
        };
        self.create(v1::CreateSessionRequest { limits: Some(limits), ..Default::default() }).await
    }

    pub async fn create(&self, request: v1::CreateSessionRequest) -> Sandbox<'_> {
        let session = self.cluster.sessions().create_session(request).await.expect("a session").into_inner();
        Sandbox { arena: self, id: session.id }
    }
}

pub struct Sandbox<'a> {
    pub arena: &'a Arena,
    pub id: String,
}

/// A task that ended.
#[derive(Debug)]
pub struct Ran {
    pub task: v1::Task,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Size of the largest piece that came.
    pub largest: usize,
}

impl Ran {
    pub fn outcome(&self) -> Kind {
        self.task.end.as_ref().and_then(|end| end.outcome).and_then(|o| o.kind).expect("an outcome")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Its output, if it ended with 0: attacks are programs of our own, which must run to their end.
    pub fn ok(&self) -> String {
        assert_eq!(self.outcome(), Kind::Exited(0), "{}\n{}", self.text(), self.errors());
        self.text()
    }
}

pub const EMPTY: v1::outcome::Empty = v1::outcome::Empty {};

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn shell(line: &str) -> v1::TaskSpec {
    v1::TaskSpec {
        program: Some(Program::Shell(line.to_owned())),
        timeout: seconds(100),
        ..Default::default()
    }
}

pub fn python(code: &str) -> v1::TaskSpec {
    let args = ["python3", "-c", code].map(str::to_owned).to_vec();
    v1::TaskSpec {
        program: Some(Program::Argv(v1::Argv { args })),
        timeout: seconds(100),
        ..Default::default()
    }
}

impl Sandbox<'_> {
    pub async fn run(&self, task: v1::TaskSpec) -> Ran {
        self.try_run(task).await.expect("the task runs")
    }

    pub async fn sh(&self, line: &str) -> Ran {
        self.run(shell(line)).await
    }

    pub async fn py(&self, code: &str) -> Ran {
        self.run(python(code)).await
    }

    pub async fn try_run(&self, task: v1::TaskSpec) -> Result<Ran, Status> {
        let request = v1::RunRequest { session_id: self.id.clone(), task: Some(task), ..Default::default() };
        gather(self.arena.cluster.tasks().run(request).await?.into_inner()).await
    }

    /// `None`: it has not ended within the arena's patience.
    pub async fn run_in_time(&self, task: v1::TaskSpec) -> Option<Ran> {
        tokio::time::timeout(self.arena.patience(), self.run(task)).await.ok()
    }

    pub async fn start(&self, task: v1::TaskSpec) -> v1::Task {
        let request =
            v1::StartTaskRequest { session_id: self.id.clone(), task: Some(task), ..Default::default() };
        self.arena.cluster.tasks().start_task(request).await.expect("the task starts").into_inner()
    }

    /// What a task has written to its standard output so far.
    pub async fn output(&self, task: &str) -> String {
        let request = v1::WatchTaskRequest {
            session_id: self.id.clone(),
            task_id: task.to_owned(),
            no_follow: true,
            skip_lost: true,
            ..Default::default()
        };
        let mut stream =
            self.arena.cluster.tasks().watch_task(request).await.expect("it is known").into_inner();
        let mut bytes = Vec::new();
        while let Ok(Some(event)) = stream.message().await {
            if let Some(Event::Stdout(chunk)) = event.event {
                bytes.extend_from_slice(&chunk.data);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub async fn prints(&self, task: &str, text: &str) {
        berth_tests::until(Duration::from_secs(60), &format!("{text:?} in the output"), async || {
            self.output(task).await.contains(text).then_some(())
        })
        .await;
    }

    pub async fn cancel(&self, task: &str, grace: i64) -> Option<v1::Task> {
        let request = v1::CancelTaskRequest {
            session_id: self.id.clone(),
            task_id: task.to_owned(),
            grace: seconds(grace),
        };
        let mut tasks = self.arena.cluster.tasks();
        let cancel = tokio::time::timeout(self.arena.patience(), tasks.cancel_task(request)).await;
        Some(cancel.ok()?.expect("it can be cancelled").into_inner())
    }

    pub async fn delete(&self) {
        let request = v1::DeleteSessionRequest { session_id: self.id.clone(), ..Default::default() };
        self.arena.cluster.sessions().delete_session(request).await.expect("it can be deleted");
    }

    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Status> {
        let request = v1::ReadRequest {
            session_id: self.id.clone(),
            path: path.into(),
            offset: 0,
            length: 1 << 20,
            no_links: false,
        };
        let mut stream = self.arena.cluster.files().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            if let Some(read_response::Part::Data(data)) = part.part {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes)
    }

    pub async fn write(&self, path: &str, bytes: &'static [u8]) -> Result<v1::FileInfo, Status> {
        let part = |part| v1::WriteRequest { part: Some(part) };
        let header = v1::WriteHeader { session_id: self.id.clone(), path: path.into(), ..Default::default() };
        let parts = [
            part(write_request::Part::Header(header)),
            part(write_request::Part::Data(bytes.into())),
            part(write_request::Part::End(v1::WriteEnd {})),
        ];
        Ok(self.arena.cluster.files().write(tokio_stream::iter(parts)).await?.into_inner())
    }

    /// The session's directory on the host.
    pub fn directory(&self) -> PathBuf {
        self.arena.cluster.workers[0].state.join("sessions").join(&self.id)
    }

    /// Its PID 1, as the host sees it.
    pub fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.directory().join("sandbox.json")).expect("its identity");
        let identity: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        if let Some(pid) = identity["pid"].as_i64() {
            return pid as i32;
        }
        let id = identity["container"].as_str().expect("a container");
        let told = std::process::Command::new("docker")
            .args(["inspect", "-f", "{{.State.Pid}}", id])
            .output()
            .expect("docker is there");
        String::from_utf8_lossy(&told.stdout).trim().parse().expect("its pid")
    }

    /// Its cgroup for tasks in the hierarchy of a v1 controller, or of v2.
    pub fn cgroup(&self, controller: &str) -> PathBuf {
        let found = berth_tests::left::cgroups(&self.id);
        let on_v1 = found.iter().find(|dir| dir.components().any(|part| part.as_os_str() == controller));
        let dir = on_v1.or_else(|| found.first()).expect("a session has cgroups");
        dir.join("t")
    }

    /// Does one thing of `loosen.py` to it.
    pub fn loosen(&self, action: &str, arguments: &[&str]) {
        let done = std::process::Command::new("python3")
            .args(["-c", LOOSEN, &self.pid().to_string(), action])
            .args(arguments)
            .output()
            .expect("python3 is there");
        assert!(done.status.success(), "{action}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// The same with something that goes on until it is dropped.
    pub async fn hole(&self, arguments: &[&str]) -> tokio::process::Child {
        use tokio::io::AsyncBufReadExt;
        let mut child = tokio::process::Command::new("python3")
            .args(["-c", LOOSEN, &self.pid().to_string(), "listen"])
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 is there");
        let mut lines = tokio::io::BufReader::new(child.stdout.take().expect("it is piped")).lines();
        assert_eq!(lines.next_line().await.expect("it says so").as_deref(), Some("listening"));
        child
    }

    /// Shows the canary's directory inside, at a directory that the task makes for it.
    pub async fn show(&self, source: &Path, target: &str) {
        self.sh(&format!("mkdir -p '{target}'")).await.ok();
        self.loosen("bind", &[source.to_str().expect("UTF-8"), target]);
    }
}

pub async fn gather(mut stream: tonic::Streaming<v1::TaskEvent>) -> Result<Ran, Status> {
    let (mut stdout, mut stderr, mut largest) = (Vec::new(), Vec::new(), 0);
    while let Some(event) = stream.message().await? {
        match event.event.expect("a kind") {
            Event::Stdout(chunk) => {
                largest = largest.max(chunk.data.len());
                stdout.extend_from_slice(&chunk.data);
            }
            Event::Stderr(chunk) => stderr.extend_from_slice(&chunk.data),
            Event::Ended(task) => return Ok(Ran { task, stdout, stderr, largest }),
            Event::Started(_) | Event::Keepalive(_) => {}
        }
    }
    Err(Status::data_loss("the stream ended before the task"))
}
