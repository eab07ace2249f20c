//! The demo's processes: one coordinator, two workers, each the shipped command with a
//! state directory and a log of its own. They are in process groups of their own, so that
//! a Ctrl-C reaches the demo alone and they are stopped in order.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use berth_client::{Client, ConnectOptions, local};
use tokio::process::{Child, Command};

use super::{DemoArgs, Report};
use crate::{env, failure::Failure, output, process};

const LOGS: &str = "what it said last is shown below; `berth doctor` looks at what this machine has";
/// Time for a process to say that it is ready: for a worker it includes a canary.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Time for a process to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// How often the ready file is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// Longest directory below which agents' sockets still have a path that the kernel takes.
const LONGEST_DIR: usize = 40;

/// One process of the fleet.
pub struct Component {
    pub name: String,
    pub pid: i32,
    child: Child,
    log: PathBuf,
    ready_file: PathBuf,
}

pub struct Fleet {
    dir: PathBuf,
    sandbox: String,
    agent: Option<PathBuf>,
    image: Option<String>,
    coordinator: Option<Component>,
    workers: Vec<Component>,
}

impl Fleet {
    pub fn new(args: &DemoArgs) -> Result<Self, Failure> {
        let name = format!("berth-demo-{}", &berth_client::TaskId::new().to_string()[24..]);
        let wanted = std::env::temp_dir().join(&name);
        let dir =
            if wanted.as_os_str().len() <= LONGEST_DIR { wanted } else { Path::new("/tmp").join(&name) };
        fs::DirBuilder::new().mode(0o711).create(&dir).map_err(|error| Failure::io(dir.display(), error))?;
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Ok(Self {
            dir,
            sandbox: args.sandbox.to_string(),
            agent: args.agent.as_ref().map(absolute),
            image: args.sandbox_image.clone(),
            coordinator: None,
            workers: Vec::new(),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.coordinator.iter().chain(&self.workers)
    }

    /// The workers' state directories.
    pub fn worker_dirs(&self) -> impl Iterator<Item = PathBuf> {
        ["w1", "w2"].into_iter().map(|name| self.dir.join(name))
    }

    /// Starts all three, and connects.
    pub async fn start(&mut self, report: &mut Report) -> Result<Client, Failure> {
        let state = self.dir.join("c");
        let options = ["--grpc-port", "0", "--shutdown-grace", "2s", "--state-dir"];
        let mut args: Vec<OsString> = options.map(OsString::from).to_vec();
        args.push(state.clone().into());
        self.coordinator = Some(self.spawn("coordinator", "coordinator", args)?);
        let coordinator = self.coordinator.as_mut().expect("just set");
        let address = coordinator.ready().await?;
        report.ok(format_args!("coordinator: listening on {address} (pid {})", coordinator.pid))?;
        let join_token = local::join_token_path(&state);
        for number in 1..=2 {
            let args = self.worker_args(&address, number, &join_token);
            let worker = self.spawn("worker", &format!("worker demo-{number}"), args)?;
            self.workers.push(worker);
        }
        for worker in &mut self.workers {
            let id = worker.ready().await?;
            report
                .ok(format_args!("worker: {id} has registered, and its canary lives (pid {})", worker.pid))?;
        }
        let token = local::read_token(&local::admin_token_path(&state))?
            .ok_or_else(|| Failure::new("the coordinator made no admin token").hint(LOGS))?;
        Ok(Client::connect(ConnectOptions::new(address).token(token)).await?)
    }

    fn worker_args(&self, address: &str, number: usize, join_token: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| args.extend([OsString::from(name), value]);
        option("--coordinator", address.into());
        option("--worker-id", format!("demo-{number}").into());
        option("--state-dir", self.dir.join(format!("w{number}")).into());
        option("--join-token-file", join_token.into());
        option("--sandbox", self.sandbox.clone().into());
        option("--shutdown-grace", "1s".into());
        if let Some(agent) = &self.agent {
            option("--agent", agent.into());
        }
        if let Some(image) = &self.image {
            option("--sandbox-image", image.into());
        }
        args
    }

    fn spawn(&self, program: &str, name: &str, args: Vec<OsString>) -> Result<Component, Failure> {
        let failed = |error: io::Error| Failure::io(format_args!("can't start {program}"), error);
        let path = std::env::current_exe().map_err(failed)?.with_file_name(program);
        let file_name = name.replace(' ', "-");
        let (log, ready_file) =
            (self.dir.join(format!("{file_name}.log")), self.dir.join(format!("{file_name}.ready")));
        let out = fs::File::create(&log).map_err(failed)?;
        let mut command = Command::new(&path);
        // Nothing of ours in it: a BERTH_TOKEN or GRPC_PORT of this shell is meant for another fleet.
        for known in env::KNOWN.iter().filter(|known| known.name != env::LOG_LEVEL) {
            command.env_remove(known.name);
        }
        let child = command
            .args(args)
            .args(["--log-format", "text", "--ready-file"])
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(Stdio::from(out.try_clone().map_err(failed)?))
            .stderr(Stdio::from(out))
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                failed(error).hint(format!("{} should be there: `make build`", path.display()))
            })?;
        let pid = child.id().unwrap_or_default().cast_signed();
        Ok(Component { name: name.to_owned(), pid, child, log, ready_file })
    }

    /// The last words of each, to find out what went wrong.
    pub fn show_logs(&self) {
        for component in self.components() {
            let lines = process::last_lines(&component.log, 0, 12);
            if !lines.is_empty() {
                output::say(format!("--- the last lines of {}:", component.name));
            }
            for line in lines {
                output::say(format!("    {line}"));
            }
        }
    }

    /// Stops the workers, then the coordinator.
    pub async fn stop(&mut self, report: &mut Report) -> Result<(), Failure> {
        let workers = futures::future::join_all(self.workers.iter_mut().map(Component::stop)).await;
        let mut ended: Vec<(String, Result<ExitStatus, String>)> =
            self.workers.iter().map(|worker| worker.name.clone()).zip(workers).collect();
        if let Some(coordinator) = &mut self.coordinator {
            ended.push((coordinator.name.clone(), coordinator.stop().await));
        }
        if ended.is_empty() {
            return Ok(());
        }
        let bad: Vec<String> = ended
            .iter()
            .filter_map(|(name, end)| match end {
                Ok(status) if status.success() => None,
                Ok(status) => Some(format!("{name}: {status}")),
                Err(problem) => Some(format!("{name}: {problem}")),
            })
            .collect();
        if bad.is_empty() {
            return report.ok(format_args!("stopped: {} processes, each with exit status 0", ended.len()));
        }
        report.failed(format_args!("stopped: {}", bad.join("; ")))?;
        self.show_logs();
        Ok(())
    }

    /// Removes the state directory.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

impl Component {
    /// Waits for its word that it is ready, and returns it.
    async fn ready(&mut self) -> Result<String, Failure> {
        let wait = async {
            loop {
                match fs::read_to_string(&self.ready_file) {
                    Ok(text) => return Ok(text.trim().to_owned()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Failure::io(self.ready_file.display(), error)),
                }
                if let Ok(Some(status)) = self.child.try_wait() {
                    let what = format!("{} ended before it was ready: {status}", self.name);
                    return Err(Failure::new(what).hint(LOGS));
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        match tokio::time::timeout(READY_WITHIN, wait).await {
            Ok(ready) => ready,
            Err(_) => {
                let what = format!("{} is not ready after {} s", self.name, READY_WITHIN.as_secs());
                Err(Failure::new(what).hint(LOGS))
            }
        }
    }

    /// SIGTERM, and wait. It is our child: its pid is its own until we have waited for it.
    async fn stop(&mut self) -> Result<ExitStatus, String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(|error| error.to_string())?;
        match tokio::time::timeout(STOP_WITHIN, self.child.wait()).await {
            Ok(status) => status.map_err(|error| error.to_string()),
            Err(_) => {
                let _ = self.child.kill().await;
                Err(format!("did not stop within {} s and was killed", STOP_WITHIN.as_secs()))
            }
        }
    }
}
