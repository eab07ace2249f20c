//! The images of the components, as `scripts/images.sh` makes them, started as shipped: here of the binaries that all tests
//! run.
//!
//! The worker's runs in a container of the engine that it uses, as with compose. It mounts nothing, so the engine mounts
//! sessions' files, and it has no more than a container's usual capabilities.

use std::process::Output;

use berth_proto::v1::{self, outcome::Kind};
use berth_tests::{
    Cluster, READY, Setup,
    containers::{docker, image, ok, repository, said},
    left, skip, until,
};

use crate::util::{delete, run, state, try_run};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 32 * MIB;
/// The state directory of the worker's image.
const STATE: &str = "/var/lib/berth/worker";

/// A container of a component's image. It, its image and its volume go with this.
struct Contained {
    /// Of the container, the volume, and the image's tag.
    name: String,
    image: String,
}

impl Contained {
    /// Makes the image. Nothing runs yet.
    fn of(component: &str) -> Self {
        let name = format!("berth-t-{}", berth_proto::SessionId::new());
        Self { image: image(component, &name), name }
    }

    fn run(&self, args: &[&str]) {
        ok(&[&["run", "-d", "--name", &self.name], args, &[&self.image]].concat());
    }

    fn exec(&self, args: &[&str]) -> Output {
        docker(&[&["exec", &self.name], args].concat())
    }

    fn log(&self) -> String {
        said(&docker(&["logs", &self.name]))
    }

    /// What the image's own check has found so far, by the engine's word.
    async fn healthy(&self) {
        until(READY, "the container to be healthy", async || {
            let status = ok(&["inspect", &self.name, "-f", "{{.State.Health.Status}}"]);
            assert_ne!(status, "unhealthy", "{}", self.log());
            (status == "healthy").then_some(())
        })
        .await;
    }

    /// Where its volume is.
    fn volume(&self) -> String {
        said(&docker(&["volume", "inspect", &self.name, "-f", "{{.Mountpoint}}"]))
    }

    /// The id of a worker's state, by which its sandboxes are labelled.
    fn instance(&self) -> String {
        left::instance(self.volume().as_ref()).expect("it has begun")
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let _ = docker(&["rm", "-fv", &self.name]);
        left::sweep(self.volume().as_ref());
        let _ = docker(&["volume", "rm", &self.name]);
        let _ = docker(&["rmi", &self.image]);
    }
}

/// With nothing said it serves, to itself alone, and says how it is. Red when its check asks nobody (`CMD true`): then it
/// is healthy with its process stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinators_image_serves_as_it_is() {
    if skip::without_docker("e2e a_coordinators_image_serves_as_it_is") {
        return;
    }
    let coordinator = Contained::of("coordinator");
    // It listens on its own loopback alone. (An engine may be without its default bridge.)
    coordinator.run(&["--health-interval", "1s", "--network", "none"]);
    coordinator.healthy().await;
    for probe in ["live", "started", "ready"] {
        let seen = coordinator.exec(&["coordinator", "health", probe]);
        assert_eq!((seen.status.code(), said(&seen).as_str()), (Some(0), "ok"), "{probe}");
    }
    let inside = coordinator.exec(&["sh", "-c", "id -u; ls /; ps; df /; command -v nc"]);
    let inside = said(&inside);
    assert!(inside.starts_with("10001\n") && inside.ends_with("nc"), "no root, and tools to look: {inside}");
    let other = coordinator.exec(&["coordinator", "--state-dir", "/tmp", "health"]);
    assert_eq!(other.status.code(), Some(1));
    let other = said(&other);
    assert!(
        other.contains("no coordinator answers at /tmp/health.sock") && other.contains("hint: "),
        "{other}"
    );

    // Its process is there, and answers nobody.
    ok(&["kill", "-s", "STOP", &coordinator.name]);
    until(READY, "the container to be unhealthy", async || {
        let status = ok(&["inspect", &coordinator.name, "-f", "{{.State.Health.Status}}"]);
        (status == "unhealthy").then_some(())
    })
    .await;
    ok(&["kill", "-s", "CONT", &coordinator.name]);
    coordinator_recovers(&coordinator).await;
    ok(&["stop", "-t", "30", &coordinator.name]);
    let ended = ok(&["inspect", &coordinator.name, "-f", "{{.State.ExitCode}}"]);
    assert_eq!(ended, "0", "{}", coordinator.log());
}

async fn coordinator_recovers(coordinator: &Contained) {
    until(READY, "the container to be healthy again", async || {
        let status = ok(&["inspect", &coordinator.name, "-f", "{{.State.Health.Status}}"]);
        (status == "healthy").then_some(())
    })
    .await;
}

/// Starts the worker's image beside a coordinator on this machine.
fn start_worker(worker: &Contained, cluster: &Cluster) {
    ok(&["volume", "create", &worker.name]);
    let token = std::fs::read_to_string(cluster.dir.path().join("c/credentials/join.token"));
    let set = [
        format!("COORDINATOR_ADDR={}", cluster.address),
        format!("BERTH_JOIN_TOKEN={}", token.expect("a token").trim()),
        "WORKER_ID=contained".to_owned(),
    ];
    let volume = format!("{}:{STATE}", worker.name);
    let mut args = vec!["--network", "host", "--health-interval", "1s", "-v", &volume];
    args.extend(["-v", "/var/run/docker.sock:/var/run/docker.sock"]);
    // What docs/security.md says that it needs for disk limits.
    args.extend(["--device", "/dev/loop-control", "--device-cgroup-rule", "b 7:* rwm"]);
    for set in &set {
        args.extend(["-e", set]);
    }
    worker.run(&args);
}

/// Loop devices of a session's files, however their path is seen.
fn devices(session: &str) -> usize {
    left::loop_devices("/".as_ref()).iter().filter(|line| line.contains(session)).count()
}

/// Red when the worker binds a directory of its own where it should have the engine mount the image (dd ends with the
/// machine's disk, not the limit).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_in_a_container_holds_disk_limits() {
    let test = "e2e a_worker_in_a_container_holds_disk_limits";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let mut cluster = Cluster::start_coordinator(Setup::new("docker")).await;
    let worker = Contained::of("worker");
    start_worker(&worker, &cluster);
    let limits = v1::Limits { disk_bytes: Some(LIMIT), ..Default::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
    let id = until(READY, "a session in the contained worker", async || {
        cluster.sessions().create_session(request.clone()).await.ok().map(|made| made.into_inner().id)
    })
    .await;
    let listed = cluster.berth(&["workers", "contained"]).await.ok();
    assert!(listed.contains("a volume of the engine"), "{listed}");
    let fill = "echo kept > f; dd if=/dev/zero of=g bs=1M 2>&1; stat -c %s g; rm g; touch ~/h; id -u; stat -c %u . ~";
    let (told, kind) = run(&cluster, &id, fill).await;
    assert_eq!(kind, Kind::Exited(0), "{told}");
    assert!(told.contains("No space left on device"), "{told}");
    let numbers: Vec<u64> = told.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers[0] > LIMIT / 10 * 8 && numbers[0] <= LIMIT, "{told}");
    assert!(numbers[1] >= 70_000 && numbers[1] == numbers[2] && numbers[2] == numbers[3], "its own: {told}");
    assert_eq!(devices(&id), 1);
    worker.healthy().await;

    // It says how it is, and why.
    let asked = |probe: &str| {
        let seen = worker.exec(&["worker", "health", probe]);
        (seen.status.code(), said(&seen))
    };
    assert_eq!(asked("ready"), (Some(0), "ok".to_owned()));
    cluster.coordinator.kill().await;
    let why = until(READY, "the worker to miss its coordinator", async || {
        let (code, why) = asked("ready");
        (code == Some(1)).then_some(why)
    })
    .await;
    assert!(why.contains("no link to the coordinator"), "{why}");
    for probe in ["live", "started"] {
        assert_eq!(asked(probe), (Some(0), "ok".to_owned()), "{probe}");
    }
    cluster.restart_coordinator().await;
    worker.healthy().await;

    // The sandbox outlives the worker's container.
    ok(&["kill", &worker.name]);
    ok(&["start", &worker.name]);
    until(READY, "the session to be taken up", async || {
        let (seen, _) = try_run(&cluster, &id, "cat f").await.ok()?;
        (seen == "kept").then_some(())
    })
    .await;

    delete(&cluster, &id).await;
    until(READY, "the session to be over", async || {
        (state(&cluster, &id).await.state() == v1::SessionState::Ended).then_some(())
    })
    .await;
    assert_eq!(devices(&id), 0, "{}", worker.log());
    let instance = worker.instance();
    let of_session = |list: Vec<String>| list.iter().filter(|line| line.contains(&id)).count();
    assert_eq!(of_session(left::volumes(&instance)), 0);
    ok(&["stop", "-t", "30", &worker.name]);
    assert_eq!(left::containers(&instance), [] as [String; 0], "{}", worker.log());
    assert_eq!(left::volumes(&instance), [] as [String; 0], "{}", worker.log());
    cluster.stop().await;
}

/// Who builds by the Dockerfile gets what `make docker-build` makes.
#[test]
fn the_dockerfile_says_what_the_images_say() {
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).expect("it is there");
    assert!(dockerfile.contains("\nFROM scratch AS client\nCOPY --from=build /out/client /\n"));
    for component in ["coordinator", "worker"] {
        let stage =
            dockerfile.split("\nFROM ").find(|stage| stage.starts_with(&format!("scratch AS {component}\n")));
        let stage = stage.expect("a stage for each");
        let mut command = std::process::Command::new("sh");
        let script = repository().join("scripts/images.sh");
        let settings = said(&command.arg(script).args(["--settings", component]).output().expect("sh"));
        assert!(settings.lines().count() > 5, "{settings}");
        for line in settings.lines() {
            assert!(stage.lines().any(|there| there == line), "{component}: {line}");
        }
        // Which build it is, as the script has it from git, is told from outside: the context has no .git.
        let version = concat!("ARG VERSION=", env!("CARGO_PKG_VERSION"));
        let labels = "LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION berth.profile=$PROFILE";
        for line in [version, "ARG REVISION=unknown", labels] {
            assert!(stage.lines().any(|there| there == line), "{component}: {line}");
        }
    }
}
