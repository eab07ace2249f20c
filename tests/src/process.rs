//! Processes that a test starts: our own binaries, known by handle, ended by handle.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

/// How long an orderly stop may take.
const STOP: Duration = Duration::from_secs(60);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// One of our binaries, built by `make build`.
///
/// # Panics
/// When it is not there.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("BERTH_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin"));
    let path = dir.join(name);
    assert!(path.is_file(), "{} is missing: run `make build`, or `make test`", path.display());
    path.canonicalize().expect("it is there")
}

/// A component that runs until it is told to stop.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with nothing of our environment but PATH. Its output goes to `log`.
    pub fn spawn(name: &'static str, args: &[String], env: &[(String, String)], log: PathBuf) -> Self {
        let output = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let child = command(name, env)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name, child, log }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().expect("it runs") as i32
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a file that it writes once it is ready, and reads it.
    pub async fn wait_for_file(&mut self, path: &Path, deadline: Duration) -> String {
        let (name, log) = (self.name, self.log.clone());
        let child = &mut self.child;
        crate::until(deadline, &format!("{name} to be ready"), async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{name} ended with {status}:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("our own child can be signalled");
    }

    /// SIGTERM, and waits for it to end with status 0.
    pub async fn terminate(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal(Signal::SIGTERM);
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(status) => {
                assert!(status.as_ref().is_ok_and(|s| s.success()), "{} ended with {status:?}", self.name)
            }
            Err(_) => panic!("{} did not stop within {STOP:?}", self.name),
        }
    }

    /// Waits for it to end by itself. Its code; `None`: a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(STOP, self.child.wait()).await;
        status
            .unwrap_or_else(|_| panic!("{} did not end within {STOP:?}", self.name))
            .expect("our child")
            .code()
    }

    /// SIGKILL, without waiting.
    pub fn kill_now(&mut self) {
        let _ = self.child.start_kill();
    }

    /// SIGKILL, if it has not ended by itself.
    pub async fn kill(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.child.kill().await.expect("our own child can be killed");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- {} ({})", self.name, self.log.display());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// A command that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// `None`: ended by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its standard output, if it ended with 0.
    ///
    /// # Panics
    /// When it did not.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs one of our binaries to its end.
pub async fn run(name: &str, args: &[&str], env: &[(String, String)], stdin: &[u8]) -> Finished {
    let mut child = command(name, env)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    let mut input = child.stdin.take().expect("it is piped");
    // It may end without reading: that is its business.
    let _ = input.write_all(stdin).await;
    drop(input);
    let output = tokio::time::timeout(COMMAND, child.wait_with_output()).await;
    let output =
        output.unwrap_or_else(|_| panic!("{name} {args:?} did not end")).expect("it can be waited for");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn command(name: &str, env: &[(String, String)]) -> Command {
    let mut command = Command::new(binary(name));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // Without root no worker can hold disk limits, and none starts unless that is said.
    if !nix::unistd::geteuid().is_root() {
        command.env("BERTH_WORKSPACE", "directory");
    }
    command.envs(env.iter().cloned());
    command
}
