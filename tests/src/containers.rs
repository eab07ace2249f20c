//! An engine's containers: the images of the components as `scripts/images.sh` makes them, of the binaries that all tests
//! run; and the fleet of docker-compose.yml, as `make docker-up` and its kin handle it, under a project name, ports and a
//! directory of the test's own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use berth_net::{Dialer, Trust};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{left, process};

pub fn docker(args: &[&str]) -> Output {
    Command::new("docker").args(args).output().expect("docker is there")
}

pub fn said(done: &Output) -> String {
    [&done.stdout[..], &done.stderr].map(String::from_utf8_lossy).concat().trim().to_owned()
}

pub fn ok(args: &[&str]) -> String {
    let done = docker(args);
    assert!(done.status.success(), "docker {args:?}: {}", said(&done));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// Where the scripts are.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Makes a component's image with this tag, and says its name.
pub fn image(component: &str, tag: &str) -> String {
    let mut command = Command::new("sh");
    command.arg(repository().join("scripts/images.sh")).arg(component).env("PROFILE", "dev").env("TAG", tag);
    let made = command.output().expect("sh");
    assert!(made.status.success(), "{}", said(&made));
    format!("berth/{component}:{tag}")
}

/// A fleet.
pub struct Fleet {
    /// Where its certificates and tokens are.
    pub dir: PathBuf,
    pub project: String,
    /// gRPC, and the gateway's.
    pub ports: [u16; 2],
    /// Keep the ports from other tests until the fleet has them.
    held: Vec<std::net::TcpListener>,
    /// More variables for the scripts.
    pub env: Vec<(String, String)>,
    /// All of it goes with this, if it is the test's own.
    own: Option<TempDir>,
}

impl Fleet {
    /// One of the test's own. Nothing of it runs yet, but its images are there, and its ports are taken until [`Self::free`].
    pub fn new() -> Self {
        let project = format!("berth-t-{}", berth_proto::SessionId::new());
        for component in ["coordinator", "worker"] {
            image(component, &project);
        }
        let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
        let ports = held.each_ref().map(|listener| listener.local_addr().expect("it is bound").port());
        let own = tempfile::Builder::new().prefix("berth-c").tempdir().expect("a directory");
        let dir = own.path().join("fleet");
        let env = vec![("BERTH_TAG".to_owned(), project.clone())];
        Self { dir, project, ports, held: held.into(), env, own: Some(own) }
    }

    /// The one that `make docker-test` has started.
    pub fn running() -> Option<Self> {
        let set = |name: &str| std::env::var(name).ok();
        let dir = set("BERTH_TEST_FLEET")?.into();
        let port = |name: &str| set(name).and_then(|port| port.parse().ok()).expect("a port");
        let ports = [port("BERTH_HOST_PORT"), port("BERTH_HOST_HTTP_PORT")];
        let project = set("COMPOSE_PROJECT_NAME").expect("a name");
        Some(Self { dir, project, ports, held: Vec::new(), env: Vec::new(), own: None })
    }

    /// Gives the ports to the fleet.
    pub fn free(&mut self) {
        self.held.clear();
    }

    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new("sh");
        command.arg(repository().join("scripts/compose.sh")).args(args);
        command.env("COMPOSE_PROJECT_NAME", &self.project).env("BERTH_COMPOSE_DIR", &self.dir);
        command.env("BERTH_HOST_PORT", self.ports[0].to_string());
        command.env("BERTH_HOST_HTTP_PORT", self.ports[1].to_string());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.output().expect("sh")
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.command(args);
        assert!(done.status.success(), "compose.sh {args:?}: {}", said(&done));
        said(&done)
    }

    pub fn token(&self) -> String {
        let token = std::fs::read_to_string(self.dir.join("secrets/admin.token")).expect("a token");
        token.trim().to_owned()
    }

    /// What `up` and `env` tell clients to use.
    pub fn settings(&self) -> [(String, String); 3] {
        [
            ("BERTH_ADDRESS".to_owned(), format!("https://127.0.0.1:{}", self.ports[0])),
            ("BERTH_TLS_CA".to_owned(), self.dir.join("tls/ca.pem").display().to_string()),
            ("BERTH_TOKEN".to_owned(), self.token()),
        ]
    }

    pub async fn channel(&self) -> Channel {
        let trust = Trust::client(self.dir.join("tls/ca.pem"));
        let address = format!("127.0.0.1:{}", self.ports[0]);
        Dialer::new(&address, Some(trust)).expect("an address").connect().await.expect("a connection")
    }

    pub async fn berth(&self, args: &[&str]) -> String {
        process::run("berth", args, &self.settings(), b"").await.ok().trim().to_owned()
    }

    /// What `docker LIST` has of it: `["ps", "-aq"]`.
    pub fn of_project(&self, list: &[&str]) -> Vec<String> {
        let label = format!("label=com.docker.compose.project={}", self.project);
        ok(&[list, &["--filter", &label]].concat()).lines().map(str::to_owned).collect()
    }

    /// The container of a service.
    pub fn container(&self, service: &str) -> String {
        let label = format!("label=com.docker.compose.service={service}");
        self.of_project(&["ps", "-q", "--filter", &label]).concat()
    }

    /// The id by which a worker's sandboxes are labelled.
    pub fn instance(&self, worker: &str) -> String {
        let volume = format!("{}_{worker}-state", self.project);
        let state = ok(&["volume", "inspect", &volume, "-f", "{{.Mountpoint}}"]);
        left::instance(state.as_ref()).expect("an id")
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.own.is_none() {
            return;
        }
        self.free();
        let _ = self.command(&["clean"]);
        let images = docker(&["images", "-q", "--filter", &format!("reference=berth/*:{}*", self.project)]);
        for image in said(&images).lines() {
            let _ = docker(&["rmi", "-f", image]);
        }
    }
}
