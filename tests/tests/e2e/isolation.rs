//! Two sessions on one worker know nothing of each other.

use berth_proto::v1;
use berth_tests::{Cluster, READY, Setup, containers::ok, skip, until};

use crate::util::run;

async fn sessions_are_strangers(backend: &str) {
    let cluster = Cluster::start(Setup::new(backend)).await;
    let (a, b) = (cluster.session().await.id, cluster.session().await.id);
    run(
        &cluster,
        &a,
        "echo secret > /workspace/f; echo secret > /tmp/f; echo secret > ~/f; echo secret > /dev/shm/f",
    )
    .await;
    let sleeper = v1::StartTaskRequest {
        session_id: a.clone(),
        task: Some(v1::TaskSpec { detached: true, ..crate::util::shell("exec sleep 4242") }),
        ..Default::default()
    };
    cluster.tasks().start_task(sleeper).await.expect("it starts");
    for path in ["/workspace/f", "/tmp/f", "/home/user/f", "/dev/shm/f"] {
        let (seen, _) = run(&cluster, &b, &format!("cat {path} 2>/dev/null || echo nothing")).await;
        assert_eq!(seen, "nothing", "{path} of the other session");
    }
    let (count, _) = run(&cluster, &b, "ps ax -o args | grep -c '[s]leep 4242' || true").await;
    assert_eq!(count, "0", "a process of the other session is seen");
    assert_eq!(run(&cluster, &a, "ps ax -o args | grep -c '[s]leep 4242' || true").await.0, "1");
    run(&cluster, &b, "kill -9 -1; true").await;
    assert_eq!(run(&cluster, &a, "ps ax -o args | grep -c '[s]leep 4242' || true").await.0, "1");
    // Their host ids differ, so what the kernel counts by user is counted apart.
    let uid = |session: &str| {
        let state = cluster.workers[0].state.join("sessions").join(session).join("files/workspace");
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(state).expect("the workspace"))
    };
    assert_ne!(uid(&a), uid(&b));
    assert!(uid(&a) > 65_536, "a uid of the host's own: {}", uid(&a));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_sessions_are_strangers() {
    if !skip::without_root("e2e native_sessions_are_strangers") {
        sessions_are_strangers("native").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_sessions_are_strangers() {
    if !skip::without_docker("e2e docker_sessions_are_strangers") {
        sessions_are_strangers("docker").await;
    }
}

/// The agent's server is PID 1's first child. What the kernel says of it.
fn server_of(pid: &str) -> String {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("PID 1");
    let server = children.split(' ').next().expect("its server");
    std::fs::read_to_string(format!("/proc/{server}/status")).expect("the server")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_agents_have_no_more_system_calls_than_tasks() {
    if skip::without_root("e2e native_agents_have_no_more_system_calls_than_tasks") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let session = cluster.session().await.id;
    let identity = cluster.workers[0].state.join("sessions").join(&session).join("sandbox.json");
    let identity: serde_json::Value =
        serde_json::from_slice(&std::fs::read(identity).expect("a record")).expect("JSON");
    // Init's part and the tasks'.
    let status = server_of(&identity["pid"].to_string());
    assert!(status.contains("Seccomp:\t2\n") && status.contains("Seccomp_filters:\t2\n"), "{status}");
    cluster.stop().await;
}

/// Red when the container is made without `seccomp=`, and when that refuses clone3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_containers_have_no_more_system_calls_than_tasks() {
    if skip::without_docker("e2e docker_containers_have_no_more_system_calls_than_tasks") {
        return;
    }
    let cluster = Cluster::start(Setup::new("docker")).await;
    let session = cluster.session().await.id;
    assert_eq!(run(&cluster, &session, "echo here").await.0, "here");
    let container = ok(&["ps", "-q", "--no-trunc", "--filter", &format!("label=berth.session={session}")]);
    let status = server_of(&ok(&["inspect", "--format", "{{.State.Pid}}", &container]));
    // The container's, and those two.
    assert!(status.contains("Seccomp:\t2\n") && status.contains("Seccomp_filters:\t3\n"), "{status}");
    let log = ok(&["logs", &container]);
    assert!(!log.contains("can't be born"), "tasks are moved into their cgroups: {log}");

    // Its profile alone, on a program that is not ours: PTRACE_TRACEME, and a raw socket.
    let options = ok(&["inspect", "--format", "{{json .HostConfig.SecurityOpt}}", &container]);
    let options: Vec<String> = serde_json::from_str(&options).expect("JSON");
    let profile = options.iter().find_map(|option| option.strip_prefix("seccomp=")).expect("a profile");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("profile.json");
    std::fs::write(&file, profile).expect("written");
    let program = "import ctypes, socket\nlibc = ctypes.CDLL(None)\nprint(libc.ptrace(0, 0, 0, 0))\n\
        try: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('raw')\nexcept PermissionError: print('none')";
    let said = |option: &[&str]| {
        let before = ["run", "--rm", "--network", "none"];
        ok(&[&before[..], option, &["berth/sandbox:base", "python3", "-c", program]].concat())
    };
    let ours = said(&["--security-opt", &format!("seccomp={}", file.display())]);
    assert_eq!(ours, "-1\nnone");
    assert_eq!(said(&[]), "0\nraw", "the engine's own refuses it too");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_stays_in_its_session() {
    if skip::without_root("e2e a_fork_bomb_stays_in_its_session") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let (bomb, neighbour) = (cluster.session().await.id, cluster.session().await.id);
    let request = v1::RunRequest {
        session_id: bomb.clone(),
        task: Some(v1::TaskSpec {
            timeout: crate::util::seconds(2),
            ..crate::util::shell("bomb() { bomb | bomb & }; bomb; sleep 1000")
        }),
        ..Default::default()
    };
    let mut tasks = cluster.tasks();
    let exploding = async {
        let mut stream = tasks.run(request).await.expect("it starts").into_inner();
        let mut end = None;
        while let Some(event) = stream.message().await.expect("the stream goes on") {
            if let Some(v1::task_event::Event::Ended(task)) = event.event {
                end = task.end.and_then(|end| end.outcome).and_then(|outcome| outcome.kind);
            }
        }
        end
    };
    let going_on = async {
        for _ in 0..10 {
            assert_eq!(run(&cluster, &neighbour, "echo fine").await.0, "fine");
        }
    };
    let (outcome, ()) = tokio::join!(exploding, going_on);
    assert_eq!(outcome, Some(v1::outcome::Kind::TimedOut(v1::outcome::Empty {})));
    assert_eq!(run(&cluster, &bomb, "ls /proc | grep -c '^[0-9]'").await.1, v1::outcome::Kind::Exited(0));
    cluster.stop().await;
}

/// Red when only the tasks have a CPU limit: their output costs the agent a core of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_does_for_a_session_is_within_its_cpu_limit() {
    if skip::without_root("e2e what_the_agent_does_for_a_session_is_within_its_cpu_limit") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let limits = v1::Limits { cpu_millis: Some(300), ..Default::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
    let session = cluster.sessions().create_session(request).await.expect("a session").into_inner().id;
    let flood = v1::StartTaskRequest {
        session_id: session.clone(),
        task: Some(v1::TaskSpec { detached: true, ..crate::util::shell("yes") }),
        ..Default::default()
    };
    cluster.tasks().start_task(flood).await.expect("it starts");
    // Counted by the kernel where agent and tasks are together, in the hierarchy that has the CPU controller.
    let dirs = berth_tests::left::cgroups(&session);
    let throttled = || {
        dirs.iter().find_map(|dir| {
            let text = std::fs::read_to_string(dir.join("cpu.stat")).ok()?;
            let times: u64 =
                text.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.trim().parse().ok())?;
            (times > 0).then_some(times)
        })
    };
    until(READY, "the agent to be held up", async || throttled()).await;
    // It answers nevertheless.
    assert_eq!(run(&cluster, &session, "echo here").await.0, "here");
    cluster.stop().await;
}
