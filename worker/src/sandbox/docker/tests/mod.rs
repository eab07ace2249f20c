//! Against a real engine, with a stand-in for the agent: a static program that notes what it
//! sees and waits. Skipped, by name, where there is no engine, image or compiler.

mod bench;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use berth_proto::agent_config::AgentConfig;
use bollard::models::HostConfig;
use tokio::time::timeout;

pub use self::bench::skip;
use self::bench::{Bench, PATIENCE, Proxy, noted, template};
use super::*;

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

fn check_host_config(host: &HostConfig) {
    assert_eq!(host.cap_drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.ipc_mode.as_deref(), Some("private"));
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.auto_remove, Some(false));
    let security = host.security_opt.as_deref().expect("it has some");
    assert_eq!(security, ["no-new-privileges:true".to_owned(), format!("seccomp={}", seccomp::profile())]);
    assert_eq!(host.memory, host.memory_swap);
    assert!(host.memory.is_some_and(|bytes| bytes >= 256 << 20));
    assert_eq!(host.nano_cpus, Some(500_000_000));
    assert_eq!(host.pids_limit, Some(114));
}

#[tokio::test]
async fn a_started_container_is_a_sandbox_and_leaves_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    fs::write(spec.dirs.workspace().join("kept"), "x").expect("written");
    let running = bench.backend.start(&spec).await.expect("it starts");
    let Identity::Docker { uid, .. } = running.identity else { panic!("another backend") };

    // As the engine has it.
    let seen = bench.inspect(&running.identity).await.expect("it is there");
    check_host_config(seen.host_config.as_ref().expect("it has one"));
    let config = seen.config.expect("it has one");
    let labels = config.labels.expect("it has some");
    assert_eq!(labels[LABEL_SESSION], spec.session.to_string());
    assert_eq!(labels[LABEL_UID], uid.to_string());
    assert_eq!(config.hostname, Some(spec::hostname(spec.session)));

    // As it is inside.
    let status = noted(&spec.dirs, "status").await;
    let four = "00000000000001e0";
    assert_eq!((line(&status, "CapEff"), line(&status, "CapBnd")), (four, four));
    assert_eq!((line(&status, "NoNewPrivs"), line(&status, "Seccomp")), ("1", "2"));
    let environ = noted(&spec.dirs, "environ").await;
    assert!(!environ.contains("LANG="), "the image's environment: {environ}");
    let net = noted(&spec.dirs, "net").await;
    assert_eq!(net.lines().filter(|line| line.contains(':')).count(), 1, "more than loopback: {net}");
    assert!(noted(&spec.dirs, "passwd").await.contains(&format!("user:x:{uid}:{uid}:")));
    let mounts = noted(&spec.dirs, "mountinfo").await;
    let options = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(target));
        line.unwrap_or_else(|| panic!("{target} is no mount"))
            .split(' ')
            .nth(5)
            .unwrap_or_default()
            .to_owned()
    };
    for (target, mode) in
        [("/", "ro"), ("/.berth/agent", "ro"), ("/etc/passwd", "ro"), ("/etc/resolv.conf", "ro")]
    {
        assert!(options(target).split(',').any(|o| o == mode), "{target} is {}", options(target));
    }
    for target in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
        assert!(options(target).contains("nosuid") && options(target).contains("nodev"), "{target}");
    }
    let agent: AgentConfig = serde_json::from_str(&noted(&spec.dirs, "config").await).expect("it is sound");
    assert_eq!((agent.user.uid, agent.user.gid), (uid, uid));

    // Owners on the host.
    let owner = |path: PathBuf| fs::symlink_metadata(path).expect("there").uid();
    assert_eq!(owner(spec.dirs.workspace().join("kept")), uid);
    assert_eq!((owner(spec.dirs.home()), owner(spec.dirs.run())), (uid, 0));
    assert_eq!(fs::metadata(spec.dirs.berth().join("config.json")).expect("there").mode() & 0o777, 0o400);

    bench.backend.remove(&running.identity).await.expect("it goes");
    timeout(PATIENCE, running.gone.cancelled()).await.expect("its end is told");
    assert!(matches!(bench.inspect(&running.identity).await, Err(CallError::NotFound)));
    assert_eq!(bench.cgroups(), Vec::<PathBuf>::new());
    assert_eq!(bench.backend.leftovers().await.expect("it answers"), vec![]);
    bench.backend.remove(&running.identity).await.expect("again is no error");
}

/// The cgroups are there, the agent may use them as it must, and a task's OOM is the task's.
#[tokio::test]
async fn tasks_have_cgroups_of_their_own() {
    let Some(bench) = Bench::new().await else { return };
    if !bench.cgroups_usable().await {
        return skip("no cgroup tree can be used here, or none with a v1 memory controller");
    }
    let spec = bench.spec();
    let running = bench.backend.start(&spec).await.expect("it starts");
    assert_eq!(noted(&spec.dirs, "task").await, "9", "the limit of the session's tasks does not hold");
    let joined = noted(&spec.dirs, "cgroup").await;
    let place = |suffix: &str| format!("{}-docker/{}/t{suffix}", bench.instance, spec.session);
    for (controller, suffix) in [("memory", "/task"), ("pids", ""), ("cpu", "")] {
        let line = joined
            .lines()
            .find(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
        assert!(line.is_some_and(|line| line.ends_with(&place(suffix))), "{controller}: {joined}");
    }
    let agent: AgentConfig = serde_json::from_str(&noted(&spec.dirs, "config").await).expect("it is sound");
    assert_eq!(agent.cgroups.v1_memory, Some("/.berth/cg/memory".into()));
    if agent.cgroups.v2.is_some() {
        let unified = joined.lines().find(|line| line.starts_with("0::"));
        assert!(unified.is_some_and(|line| line.ends_with(&place("/task"))), "{joined}");
    }
    assert!(!running.gone.is_cancelled(), "the agent died of its task's memory");
    let seen = bench.inspect(&running.identity).await.expect("it is there");
    assert_eq!(seen.state.and_then(|state| state.oom_killed), Some(false));
    bench.backend.remove(&running.identity).await.expect("it goes");
    assert_eq!(bench.cgroups(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_container_that_dies_is_told_with_its_last_words() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    let running = bench.backend.start(&spec).await.expect("it starts");
    noted(&spec.dirs, "status").await;
    assert!(!running.gone.is_cancelled());
    let (_, id, _) = ours(&running.identity).expect("ours");
    let docker = bench.backend.inner.engine.client().await.expect("it answers");
    docker.kill_container(id, None).await.expect("it dies");
    timeout(PATIENCE, running.gone.cancelled()).await.expect("its end is told");
    assert!(fs::read_to_string(spec.dirs.agent_log()).expect("kept").contains("the stand-in is up"));
    // What is dead is not adopted, but is left over, and goes.
    assert!(bench.backend.adopt(&running.identity, &spec.dirs).await.expect("an answer").is_none());
    assert_eq!(bench.backend.leftovers().await.expect("an answer"), vec![running.identity.clone()]);
    bench.backend.remove(&running.identity).await.expect("it goes");
}

#[tokio::test]
async fn a_running_container_is_adopted_by_its_own_worker_only() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    let running = bench.backend.start(&spec).await.expect("it starts");
    let Identity::Docker { session, container, uid } = running.identity.clone() else {
        panic!("another backend")
    };
    drop(running);

    let again = DockerBackend::new(bench.backend.inner.settings.clone()).expect("sound");
    let identity = |session: &str, container: &str, uid| Identity::Docker {
        session: session.to_owned(),
        container: container.to_owned(),
        uid,
    };
    let adopt = async |backend: &DockerBackend, identity: Identity| {
        backend.adopt(&identity, &spec.dirs).await.expect("an answer").is_some()
    };
    assert!(adopt(&again, identity(&session, &container, uid)).await);
    assert!(
        !adopt(&again, identity(&SessionId::new().to_string(), &container, uid)).await,
        "another session"
    );
    assert!(!adopt(&again, identity(&session, &container, uid + 1)).await, "another uid");
    assert!(!adopt(&again, identity(&session, &container[..12], uid)).await, "not the whole id");
    assert!(!adopt(&again, identity(&session, "", uid)).await, "no id");

    let settings = Settings { instance: "another".into(), ..bench.backend.inner.settings.clone() };
    let foreign = DockerBackend::new(settings).expect("sound");
    assert!(!adopt(&foreign, identity(&session, &container, uid)).await, "another worker");
    assert_eq!(foreign.leftovers().await.expect("an answer"), vec![]);
    foreign.remove(&identity(&session, &container, uid)).await.expect("nothing of its own is there");
    assert!(bench.inspect(&identity(&session, &container, uid)).await.is_ok(), "it was another worker's");

    assert_eq!(again.leftovers().await.expect("an answer"), vec![identity(&session, &container, uid)]);
    again.remove(&identity(&session, &container, uid)).await.expect("it goes");
}

#[tokio::test]
async fn a_missing_image_says_what_to_type_and_leaves_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let mut spec = bench.spec();
    spec.template = template(Some("berth/no-such-image:none"));
    let error = bench.backend.start(&spec).await.err().expect("there is no such image");
    assert_eq!(error.reason(), Reason::BackendUnavailable);
    assert!(bench.backend.can_serve(&spec.template).await.is_err());
    assert!(bench.backend.can_serve(&template(None)).await.is_ok());
    let rooted = TemplateSpec { root: Some("/srv/root".into()), ..template(None) };
    assert!(bench.backend.can_serve(&rooted).await.is_err());
    assert_eq!(bench.backend.leftovers().await.expect("an answer"), vec![]);
    assert_eq!(bench.cgroups(), Vec::<PathBuf>::new());

    let settings =
        Settings { default_image: "berth/no-such-image:none".into(), ..bench.backend.inner.settings.clone() };
    let without = DockerBackend::new(settings).expect("sound");
    let report = without.preflight().await;
    assert!(report.problems.iter().any(|p| p.hint == "make sandbox-image"), "{}", report.summary());
    let error =
        without.start(&SandboxSpec { template: template(None), ..spec }).await.err().expect("as before");
    assert_eq!(error.hint_text(), Some("make sandbox-image"));
}

#[tokio::test]
async fn a_program_that_can_not_start_leaves_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let broken = bench.temp.path().join("broken");
    fs::write(&broken, "no program").expect("written");
    let settings = Settings { agent: broken, ..bench.backend.inner.settings.clone() };
    let backend = DockerBackend::new(settings).expect("sound");
    assert!(!backend.preflight().await.ready());
    let error = backend.start(&bench.spec()).await.err().expect("it can't start");
    assert_eq!(error.reason(), Reason::SandboxFailed, "{error:?}");
    assert_eq!(backend.leftovers().await.expect("an answer"), vec![]);
    assert_eq!(bench.cgroups(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    // Long enough for the start to begin, never for it to end.
    let gone = timeout(Duration::from_millis(1), bench.backend.start(&spec)).await;
    assert!(gone.is_err(), "a container in a millisecond");
    let clean = timeout(PATIENCE, async {
        while bench.backend.inner.uids.holds(spec.session) || !spec.dirs.berth().join("config.json").exists()
        {
            sleep(Duration::from_millis(5)).await;
        }
    });
    clean.await.expect("the start cleans up after itself");
    assert_eq!(bench.backend.leftovers().await.expect("an answer"), vec![]);
}

#[tokio::test]
async fn a_leftover_of_the_same_session_makes_room() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    let first = bench.backend.start(&spec).await.expect("it starts");
    // An earlier process of this worker whose note was lost.
    let again = DockerBackend::new(bench.backend.inner.settings.clone()).expect("sound");
    let second = again.start(&spec).await.expect("it starts anew");
    assert_ne!(first.identity, second.identity);
    timeout(PATIENCE, first.gone.cancelled()).await.expect("the first is gone");
    assert_eq!(again.leftovers().await.expect("an answer"), vec![second.identity.clone()]);
    again.remove(&second.identity).await.expect("it goes");
}

/// As a worker without root does it; here by root, with somebody's ids.
#[tokio::test]
async fn a_helper_gives_files_and_takes_them_back() {
    let Some(bench) = Bench::new().await else { return };
    let spec = bench.spec();
    fs::write(spec.dirs.workspace().join("f"), "x").expect("written");
    std::os::unix::fs::symlink("/etc", spec.dirs.workspace().join("l")).expect("linked");
    let inner = &bench.backend.inner;
    let docker = inner.engine.client().await.expect("it answers");
    let owner = Owner::Helper { worker: (70_010, 70_011) };
    let helper = || inner.helper(docker, spec.session, &spec.dirs.root);
    let ids = |path: PathBuf| {
        fs::symlink_metadata(path).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).expect("there")
    };

    owner.give(&spec.dirs, 70_020, helper()).await.expect("given");
    assert_eq!(ids(spec.dirs.workspace().join("f")).0, 70_020);
    assert_eq!(ids(spec.dirs.workspace().join("l")).0, 70_020);
    assert_eq!(ids(spec.dirs.berth()), (0, 70_011, 0o710));
    assert_eq!(ids(spec.dirs.run()), (0, 70_011, 0o2730));
    assert_eq!(ids(spec.dirs.spool()).2, 0o700);

    owner.take_back(helper()).await.expect("taken back");
    for path in [spec.dirs.workspace().join("f"), spec.dirs.berth(), spec.dirs.root.clone()] {
        assert_eq!((ids(path.clone()).0, ids(path).1), (70_010, 70_011));
    }
    assert_eq!(ids("/etc".into()).0, 0);
    assert_eq!(bench.backend.leftovers().await.expect("an answer"), vec![], "a helper stays");
}

#[tokio::test]
async fn two_sessions_of_one_engine_have_two_users() {
    let Some(bench) = Bench::new().await else { return };
    let (spec, other) = (bench.spec(), bench.spec());
    let running = bench.backend.start(&spec).await.expect("it starts");
    let (_, id, uid) = ours(&running.identity).expect("ours");
    let docker = bench.backend.inner.engine.client().await.expect("it answers");
    assert!(!start::is_shared(docker, uid, id).await.expect("an answer"));

    // Another worker draws the same number: its container is made, and not yet started.
    let claim = bollard::models::ContainerCreateBody {
        image: Some(bench.backend.inner.settings.default_image.clone()),
        labels: Some(HashMap::from([
            (LABEL_INSTANCE.to_owned(), bench.instance.clone()),
            (LABEL_SESSION.to_owned(), other.session.to_string()),
            (LABEL_UID.to_owned(), uid.to_string()),
        ])),
        ..Default::default()
    };
    let options = None::<bollard::query_parameters::CreateContainerOptions>;
    let claim = docker.create_container(options, claim).await.expect("made");
    assert!(start::is_shared(docker, uid, &claim.id).await.expect("an answer"));
    remove_container(docker, &claim.id).await.expect("it goes");

    let second = bench.backend.start(&other).await.expect("it starts");
    assert_ne!(ours(&second.identity).expect("ours").2, uid);
    for sandbox in [running, second] {
        bench.backend.remove(&sandbox.identity).await.expect("it goes");
    }
}

/// Invariant 28: an engine that is away says nothing about its containers.
#[tokio::test]
async fn a_dead_engine_is_not_a_dead_sandbox() {
    let Some(bench) = Bench::new().await else { return };
    let socket = bench.temp.path().join("engine.sock");
    let engine = bench.backend.inner.engine.answers().await.expect("it answers").to_owned();
    let proxy = Proxy::start(&socket, engine);
    let settings = Settings {
        docker_host: Some(format!("unix://{}", socket.display())),
        ..bench.backend.inner.settings.clone()
    };
    let through = DockerBackend::new(settings).expect("sound");
    let spec = bench.spec();
    let running = through.start(&spec).await.expect("it starts");

    proxy.up.send_replace(false);
    let error = through.remove(&running.identity).await.expect_err("there is no engine");
    assert_eq!(error.reason(), Reason::BackendUnavailable, "{error:?}");
    assert!(!through.preflight().await.ready());
    // Longer than the watcher needs to ask again, a few times.
    let early = timeout(Duration::from_secs(2), running.gone.cancelled()).await;
    assert!(early.is_err(), "taken for dead with its engine");
    assert!(bench.inspect(&running.identity).await.is_ok());

    proxy.up.send_replace(true);
    let (_, id, _) = ours(&running.identity).expect("ours");
    let docker = bench.backend.inner.engine.client().await.expect("it answers");
    docker.kill_container(id, None).await.expect("it dies");
    timeout(PATIENCE, running.gone.cancelled()).await.expect("its end is told after all");
    through.remove(&running.identity).await.expect("it goes");
}
