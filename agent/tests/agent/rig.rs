//! Starts an agent for one test, and takes everything away afterwards.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_agent::ledger::{BodyHash, Ledger};
use berth_proto::{
    SessionId, TaskId,
    agent_config::{self, AgentConfig, Cgroups, SOCKET_NAME, User},
    error::reason_of,
    transport,
    v1::{
        self, agent_service_client::AgentServiceClient, file_service_client::FileServiceClient,
        interpreter_service_client::InterpreterServiceClient, task_event::Event,
        task_service_client::TaskServiceClient,
    },
};
use tonic::{Code, Status, transport::Channel};

pub const UID: u32 = 54_321;
pub const GID: u32 = 54_322;
/// For things that take milliseconds, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);

/// Says why a test can't run here.
pub fn skip(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(path) = std::env::var_os("BERTH_SKIP_LOG")
        && let Ok(mut log) = fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(log, "{name}: {reason}");
    }
}

/// What kind of cgroups the agent gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// All that the machine has.
    All,
    /// Only the v1 memory controller.
    V1Only,
    None,
}

pub struct Options {
    pub groups: Groups,
    pub configure: bool,
    /// Limit of all tasks together, in bytes.
    pub memory: Option<u64>,
    /// Where tasks may write beside their own files.
    pub writable: Vec<PathBuf>,
    /// Bytes that a file may say it has.
    pub file_bytes: Option<u64>,
    pub request: v1::ConfigureRequest,
    /// A key in the ledger, as if an earlier agent had started this.
    pub earlier: Option<(&'static str, v1::TaskSpec)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            groups: Groups::All,
            configure: true,
            memory: None,
            writable: agent_config::memory_files(),
            file_bytes: None,
            request: v1::ConfigureRequest::default(),
            earlier: None,
        }
    }
}

pub struct Rig {
    pub session: String,
    pub dir: PathBuf,
    pub config: AgentConfig,
    pub tasks: TaskServiceClient<Channel>,
    pub files: FileServiceClient<Channel>,
    pub interpreter: InterpreterServiceClient<Channel>,
    pub agent: AgentServiceClient<Channel>,
    process: Child,
    groups: Vec<PathBuf>,
}

/// The mount point and our own path in it, of a controller, or of cgroup v2 (empty name).
fn cgroup_base(controller: &str) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        names.split(',').any(|name| name == controller).then(|| path.trim_start_matches('/').to_owned())
    })?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let right = match controller {
            "" => fields[2] == "cgroup2",
            name => fields[2] == "cgroup" && fields[3].split(',').any(|option| option == name),
        };
        right.then(|| Path::new(fields[1]).join(&own))
    })
}

fn make_cgroup(controller: &str, id: &str, made: &mut Vec<PathBuf>) -> Option<PathBuf> {
    let dir = cgroup_base(controller)?.join(format!("berth-test-{id}"));
    fs::create_dir(&dir).ok()?;
    made.push(dir.clone());
    fs::create_dir(dir.join("t")).ok()?;
    Some(dir)
}

fn cgroups(options: &Options, id: &str, made: &mut Vec<PathBuf>) -> Cgroups {
    if options.groups == Groups::None {
        return Cgroups::default();
    }
    let v1_memory = make_cgroup("memory", id, made);
    if options.groups == Groups::V1Only {
        return Cgroups { v1_memory, ..Cgroups::default() };
    }
    let v2 = make_cgroup("", id, made);
    // On pure v2 memory is only there if it was handed down to us.
    let v2_memory = v1_memory.is_none() && v2.as_ref().is_some_and(|v2| v2.join("t/memory.max").exists());
    let v1_shared = make_cgroup("pids", id, made).into_iter().collect();
    Cgroups { v2, v2_memory, v1_memory, v1_shared }
}

impl Rig {
    /// An agent that is ready for tasks. `None`: this machine can't, and the reason was said.
    pub async fn start(name: &str) -> Option<Self> {
        Self::with(name, Options::default()).await
    }

    pub async fn with(name: &str, options: Options) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            skip(name, "needs root");
            return None;
        }
        for tool in ["unshare", "setpriv"] {
            if Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err() {
                skip(name, &format!("needs {tool} of util-linux"));
                return None;
            }
        }
        let id = TaskId::new().to_string();
        let dir = std::env::temp_dir().join(format!("berth-agent-{id}"));
        let make = |path: &Path, mode: u32, owner: Option<u32>| {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            chown(path, owner, owner.map(|_| GID)).unwrap();
        };
        make(&dir, 0o755, None);
        make(&dir.join("run"), 0o700, None);
        make(&dir.join("workspace"), 0o755, Some(UID));
        make(&dir.join("home"), 0o755, Some(UID));
        make(&dir.join("spool"), 0o700, None);
        if let Some((key, spec)) = &options.earlier {
            let body = BodyHash::of(&spec.clone().try_into().unwrap());
            Ledger::open(&dir.join("spool")).unwrap().record(key, body, TaskId::new()).unwrap();
        }
        let mut groups = Vec::new();
        let cgroups = cgroups(&options, &id, &mut groups);
        if let Some(limit) = options.memory {
            let (base, file) = match (&cgroups.v1_memory, &cgroups.v2) {
                (Some(v1), _) => (v1, "memory.limit_in_bytes"),
                (None, Some(v2)) => (v2, "memory.max"),
                (None, None) => unreachable!("a memory limit needs cgroups"),
            };
            fs::write(base.join("t").join(file), limit.to_string()).unwrap();
        }
        let config = AgentConfig {
            session_id: SessionId::new().to_string(),
            backend: "fake".to_owned(),
            user: User { name: "user".to_owned(), uid: UID, gid: GID, home: dir.join("home") },
            workspace: dir.join("workspace"),
            run_dir: dir.join("run"),
            spool_dir: dir.join("spool"),
            cgroups,
            seccomp: true,
            spools_bytes: 512 << 20,
            writable: options.writable.clone(),
            file_bytes: options.file_bytes,
        };
        fs::write(dir.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "unshare",
                "--pid",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "--",
            ])
            // Another build of it, for measurements.
            .arg(std::env::var_os("BERTH_TEST_AGENT").unwrap_or(env!("CARGO_BIN_EXE_berth-agent").into()))
            .arg("--config")
            .arg(dir.join("config.json"))
            .env("BERTH_TEST_SECRET", "canary")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let channel = transport::channel_uds(dir.join("run").join(SOCKET_NAME));
        let rig = Self {
            session: config.session_id.clone(),
            dir,
            config,
            tasks: TaskServiceClient::new(channel.clone()),
            files: FileServiceClient::new(channel.clone()),
            interpreter: InterpreterServiceClient::new(channel.clone()),
            agent: AgentServiceClient::new(channel),
            process,
            groups,
        };
        Some(rig.ready(options).await)
    }

    async fn ready(mut self, options: Options) -> Self {
        let until = Instant::now() + SOON;
        while std::os::unix::net::UnixStream::connect(self.dir.join("run").join(SOCKET_NAME)).is_err() {
            assert!(Instant::now() < until, "the agent does not come up");
            assert!(self.process.try_wait().unwrap().is_none(), "the agent ended at once");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if options.configure {
            let request =
                v1::ConfigureRequest { session_id: self.session.clone(), epoch: 1, ..options.request };
            self.agent.configure(request).await.unwrap();
        }
        self
    }

    pub fn workspace(&self, path: &str) -> PathBuf {
        self.config.workspace.join(path)
    }

    /// Runs a task to its end.
    pub async fn run(&self, spec: v1::TaskSpec) -> Finished {
        self.try_run(spec).await.expect("the task must start")
    }

    pub async fn try_run(&self, spec: v1::TaskSpec) -> Result<Finished, Status> {
        let request =
            v1::RunRequest { session_id: self.session.clone(), task: Some(spec), ..Default::default() };
        let stream = self.tasks.clone().run(request).await?.into_inner();
        Ok(collect(stream).await.unwrap())
    }

    pub async fn begin(&self, spec: v1::TaskSpec) -> v1::Task {
        self.begin_with(spec, "").await.expect("the task must start")
    }

    pub async fn begin_with(&self, spec: v1::TaskSpec, key: &str) -> Result<v1::Task, Status> {
        let request = v1::StartTaskRequest {
            session_id: self.session.clone(),
            task: Some(spec),
            request_id: key.to_owned(),
            ..Default::default()
        };
        Ok(self.tasks.clone().start_task(request).await?.into_inner())
    }

    pub async fn wait(&self, task: &v1::Task) -> v1::Task {
        let request = v1::WaitTaskRequest {
            session_id: self.session.clone(),
            task_id: task.id.clone(),
            timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        };
        let task = self.tasks.clone().wait_task(request).await.unwrap().into_inner();
        assert_eq!(task.state(), v1::TaskState::Done, "it must end");
        task
    }

    pub async fn get(&self, task: &v1::Task) -> v1::Task {
        let request = v1::GetTaskRequest { session_id: self.session.clone(), task_id: task.id.clone() };
        self.tasks.clone().get_task(request).await.unwrap().into_inner()
    }

    pub fn watch_request(&self, task: &v1::Task) -> v1::WatchTaskRequest {
        v1::WatchTaskRequest {
            session_id: self.session.clone(),
            task_id: task.id.clone(),
            ..Default::default()
        }
    }

    pub async fn watch(&self, request: v1::WatchTaskRequest) -> Result<Finished, Status> {
        collect(self.tasks.clone().watch_task(request).await?.into_inner()).await
    }

    pub async fn stdin(&self, task: &v1::Task, offset: Option<u64>, data: &[u8]) -> Result<u64, Status> {
        let request = v1::WriteStdinRequest {
            session_id: self.session.clone(),
            task_id: task.id.clone(),
            offset,
            data: data.to_vec().into(),
        };
        Ok(self.tasks.clone().write_stdin(request).await?.into_inner().offset)
    }

    pub async fn close_stdin(&self, task: &v1::Task) -> Result<(), Status> {
        let request = v1::CloseStdinRequest { session_id: self.session.clone(), task_id: task.id.clone() };
        self.tasks.clone().close_stdin(request).await.map(|_| ())
    }

    pub async fn cancel(&self, task: &v1::Task, grace: Duration) -> v1::Task {
        let request = v1::CancelTaskRequest {
            session_id: self.session.clone(),
            task_id: task.id.clone(),
            grace: Some(grace.try_into().unwrap()),
        };
        self.tasks.clone().cancel_task(request).await.unwrap().into_inner()
    }

    /// Waits until a file in the workspace has some content.
    pub async fn file(&self, path: &str) -> String {
        let path = self.workspace(path);
        until("the file is written", || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')))
            .await
    }

    /// Whether a process of the sandbox's user with this text in its command line lives.
    pub fn alive(&self, marker: &str) -> bool {
        processes(marker) > 0
    }

    /// The exit code of the agent, once it has ended by itself.
    pub async fn ended(&mut self) -> i32 {
        let process = &mut self.process;
        until("the agent ends", || process.try_wait().unwrap()).await.code().unwrap_or(-1)
    }
}

/// Processes on this host whose arguments contain a text.
pub fn processes(marker: &str) -> usize {
    let me = std::process::id().to_string();
    let has = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let numeric = name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        numeric && name.to_string_lossy() != me && String::from_utf8_lossy(&line).contains(marker)
    };
    fs::read_dir("/proc").unwrap().flatten().map(has).filter(|found| *found).count()
}

/// Waits for a condition.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for group in &self.groups {
            remove_cgroup(group);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes a cgroup that empties in a moment: its processes are being killed with their
/// namespace, and until they are dead one may still be making a cgroup of its own.
fn remove_cgroup(dir: &Path) {
    let until = Instant::now() + SOON;
    while dir.exists() && Instant::now() < until {
        remove_tree(dir);
        std::thread::yield_now();
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// A whole stream of task events.
#[derive(Debug, Default)]
pub struct Finished {
    pub started: v1::Task,
    /// `None`: the stream ended without it.
    pub ended: Option<v1::Task>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Offsets of the first bytes.
    pub first: [Option<u64>; 2],
}

pub async fn collect(mut stream: tonic::Streaming<v1::TaskEvent>) -> Result<Finished, Status> {
    let mut finished = Finished::default();
    let (mut begun, mut over) = (false, false);
    while let Some(event) = stream.message().await? {
        assert!(!over, "`ended` comes last");
        match event.event.unwrap() {
            Event::Started(task) => {
                assert!(!begun, "`started` comes once");
                begun = true;
                finished.started = task;
            }
            Event::Stdout(chunk) => add(&mut finished.stdout, &mut finished.first[0], chunk),
            Event::Stderr(chunk) => add(&mut finished.stderr, &mut finished.first[1], chunk),
            Event::Ended(task) => {
                over = true;
                finished.ended = Some(task);
            }
            Event::Keepalive(_) => {}
        }
        assert!(begun, "`started` comes first");
    }
    Ok(finished)
}

fn add(to: &mut Vec<u8>, first: &mut Option<u64>, chunk: v1::OutputChunk) {
    let start = *first.get_or_insert(chunk.offset);
    assert_eq!(chunk.offset, start + to.len() as u64, "no gap and no overlap");
    assert!(chunk.data.len() <= transport::CHUNK && !chunk.data.is_empty());
    to.extend_from_slice(&chunk.data);
}

impl Finished {
    pub fn end(&self) -> &v1::TaskEnd {
        end(self.ended.as_ref().expect("it has ended"))
    }

    pub fn outcome(&self) -> v1::outcome::Kind {
        outcome(self.ended.as_ref().expect("it has ended"))
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

pub fn end(task: &v1::Task) -> &v1::TaskEnd {
    task.end.as_ref().expect("it has ended")
}

pub fn outcome(task: &v1::Task) -> v1::outcome::Kind {
    end(task).outcome.as_ref().unwrap().kind.unwrap()
}

pub const EMPTY: v1::outcome::Empty = v1::outcome::Empty {};

pub fn sh(line: &str) -> v1::TaskSpec {
    v1::TaskSpec { program: Some(v1::task_spec::Program::Shell(line.to_owned())), ..Default::default() }
}

pub fn argv(args: &[&str]) -> v1::TaskSpec {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    v1::TaskSpec { program: Some(v1::task_spec::Program::Argv(v1::Argv { args })), ..Default::default() }
}

pub fn secs(seconds: f64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs_f64(seconds).try_into().unwrap())
}

pub fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Asserts the code and the reason of a refusal.
pub fn refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    reason: berth_proto::Reason,
) -> Status {
    let status = result.expect_err("must be refused");
    assert_eq!((status.code(), reason_of(&status)), (code, Some(reason)), "{status:?}");
    status
}

/// A text that only one test's processes have in their arguments: a strange number for `sleep`.
pub fn marker() -> String {
    let id = u128::from_str_radix(&TaskId::new().to_string(), 16).unwrap();
    format!("{}.{:09}", 100_000 + (id >> 40) % 100_000, id % 1_000_000_000)
}
