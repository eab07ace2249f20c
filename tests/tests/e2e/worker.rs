//! The worker as a program: its settings, what it opens and leaves, and what its sandboxes show and hold.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, left, process, skip, until};

use crate::util::run;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are UTF-8")
}

// ---- settings ---------------------------------------------------------------------

/// A value for each variable of the worker, other than its default.
const SAMPLES: &[(&str, &str)] = &[
    ("COORDINATOR_ADDR", "10.0.0.9:5"),
    ("WORKER_ID", "some-worker"),
    ("BERTH_JOIN_TOKEN", "secret-of-the-test"),
    ("BERTH_JOIN_TOKEN_FILE", "/x/join.token"),
    ("BERTH_STATE_DIR", "/x/state"),
    ("BASE_WORKSPACE", "/x/base"),
    ("GRPC_PORT", "4321"),
    ("BERTH_LISTEN", "127.0.0.9"),
    ("BERTH_INSECURE_LISTEN", "true"),
    ("MAX_SESSIONS", "17"),
    ("BERTH_SANDBOX", "docker"),
    ("BERTH_NATIVE_IN_CONTAINER", "true"),
    ("BERTH_SANDBOX_IMAGE", "img:x"),
    ("BERTH_DOCKER_RUNTIME", "runsc-x"),
    ("BERTH_AGENT", "/x/agent"),
    ("BERTH_LABELS", "disk=fast"),
    ("BERTH_CPU_MILLIS", "1234"),
    ("BERTH_MEMORY", "3G"),
    ("BERTH_DISK", "5G"),
    ("BERTH_WORKSPACE", "tmpfs"),
    ("BERTH_TLS_DIR", "/x/tls"),
    ("BERTH_EGRESS_FULL", "true"),
    ("BERTH_EGRESS_EXEMPT", "10.0.0.1:443"),
    ("BERTH_EGRESS_PACKAGES", "mirror.example.org:443"),
    ("BERTH_EGRESS_HOSTS", "mirror.example.org=10.0.0.1"),
    ("BERTH_SHUTDOWN_GRACE", "77s"),
    ("BERTH_ON_STOP", "keep"),
    ("BERTH_TASK_TIMEOUT", "11m"),
    ("BERTH_PTY_SIZE", "123x45"),
    ("BERTH_MAX_TASKS", "9"),
    ("BERTH_METRICS_ADDR", "127.0.0.8:4713"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret"),
    ("OTEL_SERVICE_NAME", "some-name"),
    ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
    ("LOG_LEVEL", "debug"),
    ("BERTH_LOG_FORMAT", "json"),
];

/// Lines of `worker --print-config`: name, and the rest.
async fn print_config(set: &[(&str, &str)]) -> Vec<(String, String)> {
    let printed = process::run("worker", &["--print-config"], &env(set), b"").await.ok();
    let lines = printed.lines().skip(1).filter_map(|line| line.split_once(char::is_whitespace));
    lines.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_setting_of_a_worker_changes_what_print_config_shows() {
    let plain = print_config(&[]).await;
    let variables: BTreeSet<&str> =
        plain.iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("--")).collect();
    let sampled: BTreeSet<&str> = SAMPLES.iter().map(|(name, _)| *name).collect();
    assert_eq!(variables, sampled, "the list here is that of the program");
    for (name, value) in SAMPLES {
        let shown = print_config(&[(name, value)]).await;
        let line = |config: &[(String, String)]| config.iter().find(|(n, _)| n == name).cloned().unwrap().1;
        assert_ne!(line(&shown), line(&plain), "{name} changes nothing");
        assert!(line(&shown).ends_with("environment"), "{name}: {}", line(&shown));
        if ["BERTH_JOIN_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"].contains(name) {
            assert!(!line(&shown).contains(value), "a secret is not shown");
        } else {
            assert!(line(&shown).starts_with(value), "{name}: {}", line(&shown));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_setting_of_a_worker_is_refused() {
    for (name, _) in SAMPLES {
        let seen = process::run("worker", &["--print-config"], &env(&[(name, "")]), b"").await;
        if *name == "BERTH_JOIN_TOKEN" || name.starts_with("OTEL_") {
            // Documented: an empty one counts as left out.
            assert_eq!(seen.code, Some(0), "{}", seen.stderr);
            continue;
        }
        assert_eq!(seen.code, Some(2), "{name} may not be empty: {}{}", seen.stdout, seen.stderr);
        assert!(seen.stderr.contains("--") && seen.stderr.contains("value"), "{name}: {}", seen.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_of_a_worker_is_refused() {
    for (name, value) in [
        ("WORKER_ID", "Not An Id"),
        ("MAX_SESSIONS", "0"),
        ("MAX_SESSIONS", "-1"),
        ("BERTH_SANDBOX", "podman"),
        ("BERTH_LABELS", "nonsense"),
        ("BERTH_MEMORY", "much"),
        ("BERTH_WORKSPACE", "zfs"),
        ("BERTH_TASK_TIMEOUT", "soon"),
        ("BERTH_TASK_TIMEOUT", "11y"),
        ("BERTH_PTY_SIZE", "80"),
        ("BERTH_PTY_SIZE", "0x24"),
        ("BERTH_MAX_TASKS", "0"),
        ("BERTH_INSECURE_LISTEN", "perhaps"),
        ("BERTH_ON_STOP", "perhaps"),
        ("BERTH_TASK_TIMOUT", "5m"),
    ] {
        let seen = process::run("worker", &["--print-config"], &env(&[(name, value)]), b"").await;
        assert_eq!(seen.code, Some(2), "{name}={value}: {}{}", seen.stdout, seen.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_token_or_a_coordinator_says_what_it_wants() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("w");
    let elsewhere = [("COORDINATOR_ADDR", "192.0.2.1:1"), ("BERTH_STATE_DIR", text(&state))];
    let seen = process::run("worker", &[], &env(&elsewhere), b"").await;
    assert_eq!(seen.code, Some(1), "{}", seen.stderr);
    assert!(seen.stderr.contains("BERTH_JOIN_TOKEN_FILE"), "{}", seen.stderr);
    let twice = [("BERTH_JOIN_TOKEN", "a"), ("BERTH_JOIN_TOKEN_FILE", "/x"), elsewhere[0], elsewhere[1]];
    let seen = process::run("worker", &[], &env(&twice), b"").await;
    assert_eq!(seen.code, Some(2), "{}", seen.stderr);

    // With a token it goes on trying, and says so.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let lonely = env(&[
        ("COORDINATOR_ADDR", &closed),
        ("BERTH_STATE_DIR", text(&state)),
        ("BERTH_JOIN_TOKEN", "berth_x"),
        ("BERTH_SANDBOX", "fake"),
    ]);
    let mut worker = process::Process::spawn("worker", &[], &lonely, dir.path().join("w.log"));
    until(READY, "the worker to say what it misses", async || {
        let log = worker.log();
        (log.contains("no link to the coordinator") && log.contains(&closed)).then_some(())
    })
    .await;
    assert!(!worker.log().contains("ready "), "{}", worker.log());
    worker.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_listener_beyond_loopback_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("w");
    let open = [
        ("BERTH_STATE_DIR", text(&state)),
        ("BERTH_JOIN_TOKEN", "berth_x"),
        ("BERTH_SANDBOX", "fake"),
        ("COORDINATOR_ADDR", "127.0.0.1:1"),
    ];
    let flags = process::run("worker", &["--grpc-port", "0", "--listen", "0.0.0.0"], &env(&open), b"").await;
    let variables = [&open[..], &[("GRPC_PORT", "0"), ("BERTH_LISTEN", "0.0.0.0")]].concat();
    let variables = process::run("worker", &[], &env(&variables), b"").await;
    for seen in [flags, variables] {
        assert_eq!(seen.code, Some(1), "{}", seen.stderr);
        assert!(seen.stderr.contains("BERTH_INSECURE_LISTEN"), "{}", seen.stderr);
    }
    assert!(!state.exists(), "nothing was touched");
}

// ---- what it opens and leaves -------------------------------------------------------

/// Local addresses of this process' TCP sockets that listen, and of its UDP sockets.
fn listening(pid: i32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("our own child").flatten();
    let inodes: BTreeSet<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|target| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    assert!(!inodes.is_empty(), "it has a link to the coordinator at least");
    let mut found = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let lines = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in lines.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = table.starts_with("udp") || fields[3] == "0A";
            if listens && inodes.contains(fields[9]) {
                found.push(format!("{table} {}", fields[1]));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_listens_on_a_worker() {
    let cluster = Cluster::start(Setup::new("fake")).await;
    cluster.session().await;
    assert_eq!(listening(cluster.workers[0].process.pid()), Vec::<String>::new());
    cluster.stop().await;
    // And with a listener it is seen, so that this test could fail.
    let cluster = Cluster::start(Setup { worker_listener: true, ..Setup::new("fake") }).await;
    assert_eq!(listening(cluster.workers[0].process.pid()).len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("not-there");
    let agent = process::binary("berth-agent");
    let env = env(&[("BERTH_STATE_DIR", text(&state)), ("BERTH_AGENT", text(&agent)), ("GRPC_PORT", "0")]);
    let seen = process::run("berth", &["doctor"], &env, b"").await;
    assert!(seen.stdout.contains("sandboxes"), "{}\n{}", seen.stdout, seen.stderr);
    assert!(!state.exists(), "it made the state directory");
    // Those of other tests come and go.
    until(READY, "no cgroup of a doctor", async || left::cgroups("berth-doctor").is_empty().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_session_in_which_nothing_runs() {
    let mut cluster =
        Cluster::start(Setup { worker_env: env(&[("BERTH_SHUTDOWN_GRACE", "50s")]), ..Setup::new("fake") })
            .await;
    let session = cluster.session().await.id;
    let begun = Instant::now();
    cluster.workers[0].process.terminate().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    let ended = crate::util::state(&cluster, &session).await;
    assert_eq!(ended.state(), v1::SessionState::Ended);
    cluster.stop().await;
}

/// SIGKILL leaves cgroups; the next start of this worker removes those of its own in which nothing lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_start_removes_what_a_killed_worker_left() {
    if skip::without_root("e2e the_next_start_removes_what_a_killed_worker_left") {
        return;
    }
    let mut cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    cluster.workers[0].process.kill().await;
    // Its sandbox dies too, and there is one more of which only cgroups are left.
    let instance = left::instances(cluster.dir.path()).remove(0);
    for base in left::cgroups(&instance) {
        let _ = std::fs::write(base.join(&session).join("cgroup.kill"), "1");
        std::fs::create_dir_all(base.join("019a0000000070008000000000000001/t/7")).expect("an empty cgroup");
    }
    let worker = cluster.workers.remove(0);
    drop(worker);
    cluster.add_worker("worker-1");
    cluster.workers_ready().await;
    let rest: Vec<PathBuf> = left::cgroups(&instance)
        .into_iter()
        .flat_map(|base| std::fs::read_dir(base).into_iter().flatten().flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    assert_eq!(rest, Vec::<PathBuf>::new());
    cluster.stop().await;
}

// ---- memory -------------------------------------------------------------------------

/// Uploads `size` bytes. `Err`: the code with which it was refused.
async fn upload(cluster: &Cluster, session: &str, path: &str, size: usize) -> Result<(), tonic::Code> {
    const PIECE: usize = 256 << 10;
    let header =
        v1::WriteHeader { session_id: session.to_owned(), path: path.to_owned(), ..Default::default() };
    let head = std::iter::once(v1::WriteRequest::header(header));
    let body = (0..size / PIECE).map(|_| v1::WriteRequest::data(vec![7; PIECE]));
    let end = std::iter::once(v1::WriteRequest::end());
    let stream = tokio_stream::iter(head.chain(body).chain(end));
    cluster.files().write(stream).await.map(|_| ()).map_err(|status| status.code())
}

/// What a client uploads into a file system in memory is charged to the agent: it has to be able to hold it,
/// or an upload would end the session.
async fn uploads_into_memory_leave_the_agent_alive(backend: &str) {
    let cluster = Cluster::start(Setup::new(backend)).await;
    let limits = v1::Limits { memory_bytes: Some(1 << 30), ..Default::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
    let session = cluster.sessions().create_session(request).await.expect("a session").into_inner().id;
    assert_eq!(
        upload(&cluster, &session, "/tmp/large", 300 << 20).await,
        Ok(()),
        "half of 1 GiB is for /tmp"
    );
    // More than each can take: refused, and nothing else happens.
    for path in ["/tmp/too-large", "/dev/shm/too-large"] {
        assert!(upload(&cluster, &session, path, 600 << 20).await.is_err(), "{path}");
        assert_eq!(run(&cluster, &session, "echo alive").await.0, "alive", "after {path}");
    }
    // What is left of both is to be had, at once. (The kernel takes a moment to free what was refused.)
    for (path, size) in [("/dev/shm/large", 200 << 20), ("/tmp/more", 180 << 20)] {
        until(READY, path, async || upload(&cluster, &session, path, size).await.ok()).await;
    }
    assert_eq!(run(&cluster, &session, "stat -c %s /tmp/large").await.0, (300 << 20).to_string());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_uploads_into_memory_leave_the_agent_alive() {
    if !skip::without_root("e2e native_uploads_into_memory_leave_the_agent_alive") {
        uploads_into_memory_leave_the_agent_alive("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_uploads_into_memory_leave_the_agent_alive() {
    if !skip::without_docker("e2e docker_uploads_into_memory_leave_the_agent_alive") {
        uploads_into_memory_leave_the_agent_alive("docker").await;
    }
}

/// Empty files have no size: their number is bounded too.
async fn files_in_memory_are_counted(backend: &str) {
    let cluster = Cluster::start(Setup::new(backend)).await;
    let session = cluster.session().await.id;
    for dir in ["/tmp", "/dev/shm"] {
        let make = format!(
            "python3 -c 'import os, sys\n\
             for n in range(300000):\n\
             \x20   try: os.close(os.open(f\"{dir}/f{{n}}\", os.O_CREAT | os.O_WRONLY))\n\
             \x20   except OSError as e: print(e.errno); sys.exit()\n\
             print(\"no end\")'; find {dir} -name 'f*' -delete"
        );
        assert_eq!(run(&cluster, &session, &make).await.0, "28", "ENOSPC in {dir}");
    }
    assert_eq!(run(&cluster, &session, "echo alive > /tmp/x; cat /tmp/x").await.0, "alive");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_files_in_memory_are_counted() {
    if !skip::without_root("e2e native_files_in_memory_are_counted") {
        files_in_memory_are_counted("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_files_in_memory_are_counted() {
    if !skip::without_docker("e2e docker_files_in_memory_are_counted") {
        files_in_memory_are_counted("docker").await;
    }
}

/// System V shared memory goes with its task; and the host's own setting is not touched for that.
async fn shared_memory_ends_with_its_task(backend: &str) {
    let host = || std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").expect("the host has it");
    let before = host();
    let cluster = Cluster::start(Setup::new(backend)).await;
    let session = cluster.session().await.id;
    let segment = "python3 -c 'import ctypes\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        libc.shmat.restype = ctypes.c_void_p\n\
        id = libc.shmget(0, 1 << 20, 0o1600)\n\
        print(id >= 0, libc.shmat(id, None, 0) not in (None, 2**64 - 1))'; wc -l < /proc/sysvipc/shm";
    let (seen, _) = run(&cluster, &session, segment).await;
    assert_eq!(seen, "True True\n1", "the segment outlived its process");
    assert_eq!(run(&cluster, &session, "cat /proc/sys/kernel/shm_rmid_forced").await.0, "1");
    assert_eq!(host(), before, "the host's own setting");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_shared_memory_ends_with_its_task() {
    if !skip::without_root("e2e native_shared_memory_ends_with_its_task") {
        shared_memory_ends_with_its_task("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_shared_memory_ends_with_its_task() {
    if !skip::without_docker("e2e docker_shared_memory_ends_with_its_task") {
        shared_memory_ends_with_its_task("docker").await;
    }
}

// ---- what a sandbox shows -------------------------------------------------------------

/// What the host's /proc tells of the host.
const TELLING: [&str; 22] = [
    "buddyinfo",
    "cmdline",
    "config.gz",
    "consoles",
    "diskstats",
    "driver",
    "fs",
    "interrupts",
    "iomem",
    "ioports",
    "irq",
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "modules",
    "pagetypeinfo",
    "pressure",
    "slabinfo",
    "softirqs",
    "timer_list",
    "zoneinfo",
];

async fn proc_tells_nothing_of_the_host(backend: &str) {
    let cluster = Cluster::start(Setup::new(backend)).await;
    let session = cluster.session().await.id;
    for name in TELLING {
        let look = format!("test -d /proc/{name} && ls -A /proc/{name} 2>&- || head -c 64 /proc/{name} 2>&-");
        let (seen, _) = run(&cluster, &session, &look).await;
        assert_eq!(seen, "", "/proc/{name} is shown");
    }
    // Not for writing either, whatever they are hidden by.
    let (seen, _) = run(
        &cluster,
        &session,
        "for f in sysrq-trigger sys/kernel/core_pattern; do \
         test -e /proc/$f || continue; (exec 3>> /proc/$f) 2>&- && echo $f; done",
    )
    .await;
    assert_eq!(seen, "", "can be opened for writing");
    // What programs do need is there.
    let (seen, _) = run(
        &cluster,
        &session,
        "for f in cpuinfo meminfo stat uptime loadavg filesystems self/status sys/kernel/osrelease; do \
         test -s /proc/$f || head -c 1 /proc/$f | grep -q . || echo $f; done; ps -o tty= -p $$ >/dev/null || echo ps",
    )
    .await;
    assert_eq!(seen, "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_proc_tells_nothing_of_the_host() {
    if !skip::without_root("e2e native_proc_tells_nothing_of_the_host") {
        proc_tells_nothing_of_the_host("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_proc_tells_nothing_of_the_host() {
    if !skip::without_docker("e2e docker_proc_tells_nothing_of_the_host") {
        proc_tells_nothing_of_the_host("docker").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_says_which_system_it_is() {
    if skip::without_root("e2e a_sandbox_says_which_system_it_is") || !Path::new("/etc/os-release").exists() {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    let own = std::fs::read_to_string("/etc/os-release").unwrap();
    assert_eq!(run(&cluster, &session, "cat /etc/os-release").await.0, own.trim_end());
    cluster.stop().await;
}

// ---- templates ------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_a_worker_has_not_is_told_with_the_reason() {
    if skip::without_root("e2e a_template_that_a_worker_has_not_is_told_with_the_reason") {
        return;
    }
    let templates = "[[template]]\nname = \"rootless\"\nroot = \"/no/such/root\"\n";
    let cluster =
        Cluster::start(Setup { templates: Some(templates.to_owned()), ..Setup::new("native") }).await;
    // As soon as the worker is ready, it is known what for.
    let request = v1::ListWorkersRequest {};
    let workers = cluster.admin().list_workers(request).await.unwrap().into_inner().workers;
    let problem = workers[0].template_problems.iter().find(|problem| problem.name == "rootless");
    assert!(problem.is_some_and(|problem| problem.reason.contains("/no/such/root")), "{:?}", workers[0]);
    cluster.stop().await;
}

/// A worker's default is for what neither the task, nor the session, nor the template says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_task_timeout_comes_last_but_for_the_built_in() {
    let templates = "[[template]]\nname = \"patient\"\ntasks.timeout = \"60s\"\n";
    let cluster = Cluster::start(Setup {
        templates: Some(templates.to_owned()),
        worker_env: env(&[("BERTH_TASK_TIMEOUT", "1s")]),
        ..Setup::new("fake")
    })
    .await;
    let session = async |template: &str, timeout: Option<i64>| {
        let defaults =
            v1::TaskDefaults { timeout: timeout.and_then(crate::util::seconds), ..Default::default() };
        let request = v1::CreateSessionRequest {
            template: template.to_owned(),
            task_defaults: Some(defaults),
            ..Default::default()
        };
        cluster.sessions().create_session(request).await.expect("a session").into_inner().id
    };
    let outcome = async |session: String| run(&cluster, &session, "sleep 2").await.1;
    let timed_out = v1::outcome::Kind::TimedOut(v1::outcome::Empty {});
    assert_eq!(outcome(session("", None).await).await, timed_out, "nobody else says");
    assert_eq!(outcome(session("patient", None).await).await, v1::outcome::Kind::Exited(0), "its template");
    assert_eq!(outcome(session("", Some(60)).await).await, v1::outcome::Kind::Exited(0), "the session");
    cluster.stop().await;
}
