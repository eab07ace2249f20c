//! How components start, and what they say when they can't.

use berth_proto::v1;
use berth_tests::{
    Cluster, READY, Setup,
    http::{Http, gateway},
    left, process, skip, until,
};

use crate::util::{certificate, http_over_tls};

/// Writes that a command gets from us; nothing else of our environment.
fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_runs_stops_and_leaves_nothing() {
    if skip::without_root("e2e up_runs_stops_and_leaves_nothing") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
    let state = dir.path().join("up");
    let agent = process::binary("berth-agent");
    let env = env(&[
        ("BERTH_STATE_DIR", state.to_str().unwrap()),
        ("BERTH_AGENT", agent.to_str().unwrap()),
        ("GRPC_PORT", "0"),
        ("HTTP_PORT", "0"),
    ]);
    let berth = async |args: &[&str]| process::run("berth", args, &env, b"").await;
    let up = berth(&["up", "-d"]).await;
    assert_eq!(up.code, Some(0), "{}\n{}", up.stdout, up.stderr);
    assert!(format!("{}{}", up.stdout, up.stderr).contains("berth run"), "it says what to type next");
    // Credentials and the address are found without asking.
    assert_eq!(berth(&["run", "--", "python3", "-c", "print(1)"]).await.ok(), "1\n");
    let status = berth(&["status"]).await;
    assert_eq!(status.code, Some(0), "{}", status.stderr);
    let again = berth(&["up"]).await;
    assert_ne!(again.code, Some(0), "a second one must not start");
    assert!(again.stderr.contains("runs") || again.stderr.contains("running"), "{}", again.stderr);
    berth(&["stop"]).await.ok();
    let stopped = berth(&["status"]).await;
    assert_ne!(stopped.code, Some(0), "it says that nothing runs");
    left::assert_nothing(dir.path());
    let rest: Vec<String> = left::instances(&state)
        .iter()
        .flat_map(|i| left::cgroups(i))
        .map(|c| c.display().to_string())
        .collect();
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_order_of_start_works() {
    // The worker is there first and waits for its coordinator, which then comes on that port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut cluster = Cluster::start_coordinator(Setup {
        coordinator_env: env(&[("GRPC_PORT", &port.to_string())]),
        ..Setup::new("fake")
    })
    .await;
    cluster.coordinator.kill().await;
    cluster.add_worker("worker-1");
    cluster.restart_coordinator().await;
    cluster.workers_ready().await;
    assert_eq!(cluster.session().await.state(), v1::SessionState::Ready);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_coordinator_on_the_same_state_or_port_is_refused() {
    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let state = cluster.dir.path().join("c");
    let seen = process::run(
        "coordinator",
        &[],
        &env(&[("BERTH_STATE_DIR", state.to_str().unwrap()), ("GRPC_PORT", "0"), ("HTTP_PORT", "0")]),
        b"",
    )
    .await;
    assert_eq!(seen.code, Some(1), "{}", seen.stderr);
    assert!(seen.stderr.contains(state.to_str().unwrap()), "it names the state: {}", seen.stderr);
    let other = cluster.dir.path().join("other");
    let port = cluster.address.rsplit(':').next().unwrap();
    let seen = process::run(
        "coordinator",
        &[],
        &env(&[("BERTH_STATE_DIR", other.to_str().unwrap()), ("GRPC_PORT", port), ("HTTP_PORT", "0")]),
        b"",
    )
    .await;
    assert_eq!(seen.code, Some(1), "{}", seen.stderr);
    assert!(seen.stderr.contains(port), "it names the port: {}", seen.stderr);
    cluster.stop().await;
}

/// Red when a coordinator does not start because a port that nobody asked for is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_may_be_off_and_its_usual_port_taken() {
    let with = |port: &str| Setup { coordinator_env: env(&[("HTTP_PORT", port)]), ..Setup::new("fake") };
    let off = Cluster::start_coordinator(with("off")).await;
    assert!(!off.coordinator.log().contains("MCP"), "{}", off.coordinator.log());
    off.stop().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let given = [("BERTH_STATE_DIR", dir.path().to_str().unwrap()), ("GRPC_PORT", "0")];
    let seen =
        process::run("coordinator", &[], &env(&[&given[..], &[("HTTP_PORT", &port)]].concat()), b"").await;
    assert_eq!(seen.code, Some(1), "it was asked for: {}", seen.stderr);
    assert!(seen.stderr.contains(&port) && seen.stderr.contains("off"), "{}", seen.stderr);
    // Whoever has it.
    let _taken = std::net::TcpListener::bind("127.0.0.1:8080");
    let log = dir.path().join("log");
    let mut usual = process::Process::spawn("coordinator", &[], &env(&given), log);
    until(READY, "it to say that it goes without", async || {
        (usual.log().contains("port 8080 is taken") && usual.log().contains("ready 127.0.0.1")).then_some(())
    })
    .await;
    usual.terminate().await;
}

/// Red when the gateway listens for other machines without TLS, or takes a key that others may read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_for_other_machines_needs_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    let base = [("BERTH_STATE_DIR", state.to_str().unwrap()), ("GRPC_PORT", "0"), ("HTTP_PORT", "0")];
    let refused = async |more: &[(&str, &str)], words: &[&str]| {
        let seen = process::run("coordinator", &[], &env(&[&base[..], more].concat()), b"").await;
        assert_eq!(seen.code, Some(1), "{more:?}: {}", seen.stderr);
        for word in words {
            assert!(seen.stderr.contains(word), "{more:?}: {word}: {}", seen.stderr);
        }
    };
    refused(&[("BERTH_HTTP_LISTEN", "0.0.0.0")], &["no TLS", "berth tls init", "BERTH_HTTP_CERT"]).await;
    let files = certificate(dir.path(), "berth.example.org").coordinator();
    let (cert, key) = (files.certificate.to_str().unwrap(), files.key.to_str().unwrap());
    refused(&[("BERTH_HTTP_CERT", cert)], &["only one is given"]).await;
    refused(&[("BERTH_HTTP_CERT", cert), ("BERTH_HTTP_KEY", cert)], &["others may read", "chmod 600"]).await;
    refused(&[("BERTH_HTTP_CERT", "/nowhere"), ("BERTH_HTTP_KEY", key)], &["/nowhere"]).await;
}

/// Who comes without TLS is told, and by the names of the certificate the gateway is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_with_tls_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let files = certificate(dir.path(), "berth.example.org");
    let coordinator_env = http_over_tls(&files.coordinator());
    let cluster = Cluster::start_coordinator(Setup { coordinator_env, ..Setup::new("fake") }).await;
    let address = gateway(&cluster).await;
    let told = Http::new(&address, "none").send("GET", "/v1/info", "").await;
    assert_eq!((told.status, told.body.trim()), (400, "this port has TLS: use https://"));
    let ca = files.ca().certificate.display().to_string();
    let port = address.rsplit(':').next().unwrap();
    let ask = async |name: &str| {
        let url = format!("https://{name}:{port}/mcp");
        let to = format!("{name}:{port}:127.0.0.1");
        let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, "--resolve", &to, &url];
        let seen = tokio::process::Command::new("curl").args(args).output().await.expect("curl");
        (String::from_utf8_lossy(&seen.stdout).into_owned(), seen.status.code())
    };
    assert_eq!(ask("berth.example.org").await, ("401".to_owned(), Some(0)), "who has no token is told");
    assert_eq!(ask("localhost").await.0, "401");
    assert_eq!(ask("other.example.org").await, ("000".to_owned(), Some(60)), "curl: not its certificate");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_settings_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    let templates = dir.path().join("templates.toml");
    std::fs::write(&templates, "[[template]]\nname = \"x\"\nmemroy = \"1G\"\n").unwrap();
    let base = [("BERTH_STATE_DIR", state.to_str().unwrap()), ("GRPC_PORT", "0"), ("HTTP_PORT", "0")];
    let with = |more: &[(&str, &str)]| env(&[&base[..], more].concat());
    let seen =
        process::run("coordinator", &[], &with(&[("BERTH_TEMPLATES", templates.to_str().unwrap())]), b"")
            .await;
    assert_ne!(seen.code, Some(0));
    assert!(seen.stderr.contains("memroy"), "it names the key: {}", seen.stderr);
    let seen = process::run("coordinator", &[], &with(&[("BERTH_LISTEN", "0.0.0.0")]), b"").await;
    assert_ne!(seen.code, Some(0), "beyond loopback without TLS");
    assert!(seen.stderr.contains("BERTH_INSECURE_LISTEN"), "{}", seen.stderr);
    let worker = env(&[
        ("BERTH_STATE_DIR", dir.path().join("w").to_str().unwrap()),
        ("BERTH_JOIN_TOKEN", "berth_x"),
        ("BERTH_SANDBOX", "docker"),
        ("BERTH_SANDBOX_IMAGE", "berth/no-such-image:none"),
    ]);
    let seen = process::run("worker", &[], &worker, b"").await;
    assert_ne!(seen.code, Some(0));
    assert!(seen.stderr.contains("hint:"), "{}", seen.stderr);
    // Not even the cgroups of the preflight.
    let rest: Vec<_> = left::instances(dir.path()).iter().flat_map(|i| left::cgroups(i)).collect();
    assert_eq!(rest, Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_a_wrong_join_token_is_told() {
    let cluster = Cluster::start_coordinator(Setup::new("fake")).await;
    let worker = env(&[
        ("COORDINATOR_ADDR", &cluster.address),
        ("BERTH_STATE_DIR", cluster.dir.path().join("w").to_str().unwrap()),
        ("BERTH_SANDBOX", "fake"),
        ("BERTH_JOIN_TOKEN", &format!("berth_{}", "0".repeat(64))),
    ]);
    let log = cluster.dir.path().join("w.log");
    let mut process = process::Process::spawn("worker", &[], &worker, log);
    until(READY, "the worker to be told", async || {
        process.log().contains("refused the join token").then_some(())
    })
    .await;
    let workers = cluster.admin().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    assert_eq!(workers, []);
    process.terminate().await;
    cluster.stop().await;
}

/// A process in mount and network namespaces of its own, in which nothing of this machine's state or ports is.
struct Elsewhere {
    sleeper: tokio::process::Child,
    /// What is `/var/lib/berth` in there.
    state: tempfile::TempDir,
}

impl Elsewhere {
    async fn new() -> Self {
        let state = tempfile::Builder::new().prefix("berth-t").tempdir().unwrap();
        let script = "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/berth && mount --bind \"$1\" /var/lib/berth \
                      && ip link set lo up && echo up && exec sleep infinity";
        let mut sleeper = tokio::process::Command::new("unshare")
            .args(["--mount", "--net", "sh", "-c", script, "sh"])
            .arg(state.path())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("unshare");
        let mut word = [0; 3];
        let stdout = sleeper.stdout.as_mut().unwrap();
        tokio::io::AsyncReadExt::read_exact(stdout, &mut word).await.expect("its word");
        Self { sleeper, state }
    }

    /// One of our programs in there, with no variable but PATH.
    fn command(&self, program: &str, args: &[&str]) -> tokio::process::Command {
        let target = self.sleeper.id().expect("it sleeps").to_string();
        let mut command = tokio::process::Command::new("nsenter");
        command
            .args(["--target", &target, "--mount", "--net", "--"])
            .arg(process::binary(program))
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Starts one and waits for the line on its stdout that says that it is ready.
    async fn serve(&self, program: &str) -> (tokio::process::Child, String) {
        let mut child =
            self.command(program, &[]).stdout(std::process::Stdio::piped()).spawn().expect("nsenter");
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line);
        tokio::time::timeout(READY, read).await.expect("it is ready in time").expect("its word");
        (child, line)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if std::thread::panicking() {
            left::sweep(self.state.path());
        }
    }
}

async fn terminate(mut child: tokio::process::Child) {
    // `nsenter` has become the program itself.
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(READY, child.wait()).await.expect("it stops").unwrap();
    assert!(status.success(), "{status}");
}

/// Red when a default of either does not fit the other's: the port, the token's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_argument_and_no_variable_they_find_each_other() {
    if skip::without_root("e2e with_no_argument_and_no_variable") {
        return;
    }
    let elsewhere = Elsewhere::new().await;
    let (coordinator, ready) = elsewhere.serve("coordinator").await;
    assert_eq!(ready, "ready 127.0.0.1:50051\n");
    let (worker, ready) = elsewhere.serve("worker").await;
    assert!(ready.starts_with("ready ") && ready.len() > 8, "{ready:?}");
    let ran = elsewhere.command("berth", &["run", "--", "echo", "found"]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "found\n", "{ran:?}");
    terminate(worker).await;
    terminate(coordinator).await;
    left::assert_nothing(elsewhere.state.path());
}

/// A worker that is PID 1 of a PID namespace, as the main process of a container is. Its output goes to a log.
fn contained_worker(env: &[(String, String)], args: &[&str], log: &std::path::Path) -> tokio::process::Child {
    let output = std::fs::File::create(log).unwrap();
    tokio::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(process::binary("worker"))
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(env.iter().cloned())
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .expect("unshare")
}

/// Red without the look at the process' place (`sandbox/native/container.rs`) in the preflight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containers_main_process_takes_no_native_sessions_unless_it_is_told_to() {
    if skip::without_root("e2e a_containers_main_process") {
        return;
    }
    let cluster = Cluster::start_coordinator(Setup::new("native")).await;
    let (state, log) = (cluster.dir.path().join("w"), cluster.dir.path().join("w.log"));
    let ready = cluster.dir.path().join("w.ready");
    let token = cluster.dir.path().join("c/credentials/join.token");
    let mut settings = env(&[
        ("COORDINATOR_ADDR", &cluster.address),
        ("BERTH_STATE_DIR", state.to_str().unwrap()),
        ("BERTH_JOIN_TOKEN_FILE", token.to_str().unwrap()),
        ("BERTH_AGENT", process::binary("berth-agent").to_str().unwrap()),
        ("BERTH_SANDBOX", "native"),
    ]);
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut refused = contained_worker(&settings, &[], &log);
    let status = tokio::time::timeout(READY, refused.wait()).await.expect("it ends").unwrap();
    let said = read();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("container's main process") && said.contains("BERTH_NATIVE_IN_CONTAINER=true"),
        "{said}"
    );

    settings.extend(env(&[("BERTH_NATIVE_IN_CONTAINER", "true"), ("WORKER_ID", "contained")]));
    let mut told = contained_worker(&settings, &["--ready-file", ready.to_str().unwrap()], &log);
    until(READY, "the worker to be ready", async || {
        assert_eq!(told.try_wait().unwrap(), None, "{}", read());
        ready.exists().then_some(())
    })
    .await;
    assert_eq!(cluster.berth(&["run", "--", "echo", "inside"]).await.ok(), "inside\n");
    // `unshare` itself passes no signal on.
    let unshare = told.id().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    let worker = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(READY, told.wait()).await.expect("it stops").unwrap();
    assert!(status.success(), "{status}: {}", read());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_all_of_it() {
    if skip::without_root("e2e the_demo_shows_all_of_it") {
        return;
    }
    let seen = process::run("berth", &["demo"], &[], b"").await;
    assert_eq!(seen.code, Some(0), "{}\n{}", seen.stdout, seen.stderr);
}
