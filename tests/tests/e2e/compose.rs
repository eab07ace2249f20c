//! The fleet of docker-compose.yml, as `make docker-up` and its kin handle it: under a project name, ports and a directory
//! of the test's own.

use std::{fs::Permissions, os::unix::fs::PermissionsExt};

use berth_tests::{
    READY,
    containers::{Fleet, ok, said},
    left, process, skip, until,
};

use crate::symptoms::explained;

/// Its whole life: refused ports, a start, work on both workers, a worker's restart under a session, a stop that leaves
/// nothing on the engine and frees the ports, a start that finds what was stored, and the end of all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_compose_lives_and_leaves_nothing() {
    let test = "e2e a_fleet_of_compose_lives_and_leaves_nothing";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let mut fleet = Fleet::new();
    let refused = fleet.command(&["up-multi"]);
    let why = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    for port in fleet.ports {
        assert!(why.contains(&format!("port {port} is taken")), "all at once: {why}");
    }
    assert!(why.contains("BERTH_HOST_PORT") && fleet.of_project(&["ps", "-aq"]).is_empty(), "{why}");

    fleet.free();
    fleet.ok(&["up"]);
    assert_eq!(fleet.of_project(&["ps", "-q"]).len(), 2);
    let up = fleet.ok(&["up-multi"]);
    let [address, ca, _] = fleet.settings().map(|(name, value)| format!("{name}={value}"));
    assert!(up.contains(&address) && up.contains(&ca) && up.contains("BERTH_TOKEN="), "how it is used: {up}");
    assert!(!up.contains(&fleet.settings()[2].1), "and no secret: {up}");
    let containers = fleet.of_project(&["ps", "-q"]);
    assert_eq!(containers.len(), 3);
    for container in &containers {
        let seen = ok(&[
            "inspect",
            container,
            "-f",
            "{{.HostConfig.Privileged}} {{.HostConfig.NetworkMode}} {{.HostConfig.CapAdd}}",
        ]);
        assert!(seen.starts_with("false ") && !seen.contains(" host ") && seen.ends_with("[]"), "{seen}");
    }
    for worker in ["worker-1", "worker-2"] {
        fleet.berth(&["create", "--name", worker, "--on", &format!("worker={worker}")]).await;
        assert_eq!(
            fleet.berth(&["run", "-s", worker, "--", "sh", "-c", "echo kept > f; cat f"]).await,
            "kept"
        );
    }
    let status = fleet.berth(&["workers", "worker-1"]).await;
    assert!(status.contains("a volume of the engine"), "disk limits hold: {status}");

    fleet.ok(&["restart", "worker-1"]);
    assert_eq!(fleet.berth(&["run", "-s", "worker-1", "--", "cat", "f"]).await, "kept");

    let refused = said(&fleet.command(&["add", "Worker 3"]));
    assert!(refused.contains("small letters") && refused.contains("hint: "), "{refused}");
    fleet.ok(&["add", "worker-3"]);
    fleet.berth(&["create", "--name", "worker-3", "--on", "worker=worker-3"]).await;
    assert_eq!(fleet.berth(&["run", "-s", "worker-3", "--", "echo", "third"]).await, "third");

    newer_images(&fleet).await;

    let instances = ["worker-1", "worker-2", "worker-3"].map(|worker| fleet.instance(worker));
    fleet.ok(&["down"]);
    for instance in &instances {
        assert_eq!(left::containers(instance), [] as [String; 0]);
        assert_eq!(left::volumes(instance), [] as [String; 0]);
    }
    assert!(fleet.of_project(&["ps", "-aq"]).is_empty());
    for port in fleet.ports {
        std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    }

    fleet.ok(&["up-multi"]);
    assert_eq!(fleet.instance("worker-3"), instances[2], "what was stored is there, and what was added");
    assert_eq!(fleet.berth(&["run", "--", "echo", "again"]).await, "again", "and takes sessions");

    // A renewed certificate reaches the one that runs.
    let tls = fleet.dir.join("tls");
    process::run("berth", &["tls", "--dir", tls.to_str().expect("UTF-8"), "renew"], &[], b"").await.ok();
    fleet.ok(&["up-multi"]);
    let renewed = std::fs::read_to_string(tls.join("coordinator.pem")).expect("it is there");
    let coordinator = fleet.container("coordinator");
    assert_eq!(ok(&["exec", &coordinator, "cat", "/etc/berth/tls/coordinator.pem"]), renewed.trim());
    assert_eq!(fleet.berth(&["run", "--", "echo", "renewed"]).await, "renewed");
    fleet.ok(&["clean"]);
    assert!(
        fleet.of_project(&["ps", "-aq"]).is_empty() && fleet.of_project(&["volume", "ls", "-q"]).is_empty()
    );
    assert!(!fleet.dir.exists());
}

/// Images of another build, under tasks that run and calls that come: containers are replaced one after the other, and no
/// session, no task, no line of its output and no call is lost.
async fn newer_images(fleet: &Fleet) {
    let counting = "i=0; while [ ! -e stop ]; do echo $i; i=$((i+1)); sleep 0.05; done";
    let mut tasks = Vec::new();
    for session in ["worker-1", "worker-2", "worker-3"] {
        let started = fleet.berth(&["run", "-s", session, "--detach", "--", "sh", "-c", counting]).await;
        let task = started.split_whitespace().last().expect("its session and its id").to_owned();
        tasks.push((session, task));
    }
    let before = ["coordinator", "worker-1", "worker-2", "worker-3"].map(|service| fleet.container(service));
    for component in ["coordinator", "worker"] {
        newer(&format!("berth/{component}:{}", fleet.project));
    }
    let settings = fleet.settings();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let calls = async {
        let mut calls = 0;
        while !*stopped.borrow() {
            let args = ["run", "-s", "worker-2", "--", "echo", "called"];
            let call = process::run("berth", &args, &settings, b"").await;
            assert_eq!(call.ok().trim(), "called", "call {calls}");
            calls += 1;
        }
        calls
    };
    let upgrade = async {
        let done = tokio::task::block_in_place(|| fleet.command(&["up-multi"]));
        let _ = stop.send(true);
        done
    };
    let (calls, done) = tokio::join!(calls, upgrade);
    assert!(done.status.success(), "{}", said(&done));
    assert!(calls > 0);
    let after = ["coordinator", "worker-1", "worker-2", "worker-3"].map(|service| fleet.container(service));
    for (before, after) in before.iter().zip(&after) {
        assert!(before != after && !after.is_empty(), "replaced: {before} {after}");
    }
    for (session, task) in tasks {
        fleet.berth(&["run", "-s", session, "--", "touch", "stop"]).await;
        let output = fleet.berth(&["logs", "-f", session, &task]).await;
        let lines: Vec<usize> = output.lines().map(|line| line.parse().expect("a number")).collect();
        assert!(lines.len() > 20 && lines.iter().copied().eq(0..lines.len()), "{session}: {output}");
    }
}

/// The same image with another id, under the same name.
fn newer(image: &str) {
    let container = ok(&["create", image]);
    ok(&["commit", "--change", "LABEL berth.test=newer", &container, image]);
    ok(&["rm", &container]);
}

/// The way back: what was there at the backup is there again, with the images that were asked for; what came since is not, and its
/// worker ends it. What is refused changes nothing. Red when a restore that is refused leaves the coordinator stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_fleet_is_put_back() {
    let test = "e2e a_backup_of_a_fleet_is_put_back";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let mut fleet = Fleet::new();
    fleet.free();
    fleet.ok(&["up"]);
    fleet.berth(&["create", "--name", "kept"]).await;
    fleet.berth(&["run", "-s", "kept", "--", "sh", "-c", "echo kept > f"]).await;
    let own = fleet.dir.parent().expect("it is in one").to_owned();
    let at = |name: &str| own.join(name).display().to_string();
    fleet.ok(&["backup", &at("backup")]);

    fleet.berth(&["tenant", "set", "since", "--max-sessions", "3"]).await;
    let later = fleet.berth(&["create", "--name", "later"]).await;
    let of_later = |fleet: &Fleet| {
        left::volumes(&fleet.instance("worker-1")).iter().filter(|line| line.contains(&later)).count()
    };
    assert_eq!(of_later(&fleet), 1);

    // What is none is refused before anything stops; what is damaged, by the program that would start on it.
    let started =
        |fleet: &Fleet| ok(&["inspect", &fleet.container("coordinator"), "-f", "{{.State.StartedAt}}"]);
    let before = started(&fleet);
    let refused = fleet.command(&["restore", &own.display().to_string()]);
    assert!(
        refused.status.code() == Some(1) && said(&refused).contains("is no backup"),
        "{}",
        said(&refused)
    );
    assert_eq!(started(&fleet), before);
    std::fs::create_dir(own.join("damaged")).expect("a directory");
    for name in ["coordinator.db", "checkpoints.db"] {
        let mut bytes = std::fs::read(own.join("backup").join(name)).expect("it is there");
        bytes[4096..8192].fill(0x5a);
        std::fs::write(own.join("damaged").join(name), bytes).expect("a file");
    }
    let refused = fleet.command(&["restore", &at("damaged")]);
    let why = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("the backup can't be used") && why.contains("all is as it was"), "{why}");
    assert_eq!(fleet.berth(&["run", "-s", "later", "--", "echo", "here"]).await, "here", "it goes on");

    // With other images, as on the way back of an upgrade.
    let older = format!("{}-older", fleet.project);
    for component in ["coordinator", "worker"] {
        let image = |tag: &str| format!("berth/{component}:{tag}");
        ok(&["tag", &image(&fleet.project), &image(&older)]);
        newer(&image(&older));
    }
    fleet.env.push(("BERTH_TAG".to_owned(), older.clone()));
    let told = fleet.ok(&["restore", &at("backup")]);
    assert!(told.contains("with 1 session that had not ended") && told.contains("damaged-"), "{told}");
    for service in ["coordinator", "worker-1"] {
        let image = ok(&["inspect", &fleet.container(service), "-f", "{{.Config.Image}}"]);
        assert!(image.ends_with(&older), "{service}: {image}");
    }
    assert_eq!(fleet.berth(&["run", "-s", "kept", "--", "cat", "f"]).await, "kept");
    let sessions = fleet.berth(&["ps", "--all"]).await;
    assert!(sessions.contains("kept") && !sessions.contains("later"), "{sessions}");
    assert!(!fleet.berth(&["tenant", "list"]).await.contains("since"));
    fleet.berth(&["audit", "--verify"]).await;
    until(READY, "the session that is not known to be ended", async || (of_later(&fleet) == 0).then_some(()))
        .await;
    assert_eq!(fleet.berth(&["run", "--", "echo", "anew"]).await, "anew");
    let volume =
        ok(&["volume", "inspect", &format!("{}_coordinator-state", fleet.project), "-f", "{{.Mountpoint}}"]);
    let aside = std::fs::read_dir(volume).expect("the volume").filter_map(Result::ok);
    assert_eq!(aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-")).count(), 1);
    fleet.ok(&["clean"]);
}

/// A fleet for work on Berth itself: its sessions' files can be looked into, it says that nothing holds their disk limit, and
/// a newer binary is taken up by its own container alone, under a session that lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_dev_reloads_what_changed() {
    let test = "e2e a_fleet_of_dev_reloads_what_changed";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let mut fleet = Fleet::new();
    let bin = tempfile::tempdir().expect("a directory");
    for name in ["berth", "coordinator", "worker", "berth-agent"] {
        std::fs::copy(process::binary(name), bin.path().join(name)).expect("a copy");
    }
    fleet.env.push(("BERTH_DEV_BIN".to_owned(), bin.path().display().to_string()));
    fleet.env.push(("NO_BUILD".to_owned(), "1".to_owned()));
    fleet.free();
    fleet.ok(&["dev", "up"]);
    let id = fleet.berth(&["create", "--name", "box"]).await;
    fleet.berth(&["run", "-s", "box", "--", "sh", "-c", "echo seen > f"]).await;
    let file = fleet.dir.join("worker-1/workspaces/sessions").join(id).join("files/workspace/f");
    for dir in [fleet.dir.as_path(), fleet.dir.parent().expect("it is in one")] {
        std::fs::set_permissions(dir, Permissions::from_mode(0o711)).expect("a mode");
    }
    // As somebody else, who may read what everybody may.
    let read = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
        .arg(&file)
        .output()
        .expect("setpriv");
    assert_eq!(said(&read), "seen");
    assert!(fleet.berth(&["workers", "worker-1"]).await.contains("disk limits are not held"), "it is told");
    let looked = process::run("berth", &["doctor"], &fleet.settings(), b"").await;
    let told = "workers: worker-1: weaker: disk limits are not held (BERTH_WORKSPACE=directory)";
    assert!(looked.stdout.contains(told), "also by doctor: {looked:?}");

    let started = |service: &str| ok(&["inspect", &fleet.container(service), "-f", "{{.State.StartedAt}}"]);
    let before = ["coordinator", "worker-1"].map(started);
    let newer = [std::fs::read(bin.path().join("worker")).expect("it is there"), b"newer".to_vec()].concat();
    std::fs::write(bin.path().join("worker.new"), newer).expect("a file");
    let executable = Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.path().join("worker.new"), executable).expect("a mode");
    std::fs::rename(bin.path().join("worker.new"), bin.path().join("worker")).expect("in its place");
    fleet.ok(&["dev", "up"]);
    let after = ["coordinator", "worker-1"].map(started);
    assert_eq!((before[0] == after[0], before[1] == after[1]), (true, false), "{before:?} {after:?}");
    assert_eq!(fleet.berth(&["run", "-s", "box", "--", "cat", "f"]).await, "seen");
    fleet.ok(&["dev", "clean"]);
    assert!(fleet.of_project(&["ps", "-aq"]).is_empty() && !fleet.dir.exists());
}

/// Red when a service that does not come up is waited for without end, when nothing is said of why, or when what is said of an
/// engine without loop devices is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_come_up_is_told_with_its_last_words() {
    let test = "e2e what_does_not_come_up_is_told_with_its_last_words";
    if skip::without_docker(test) || skip::without_root(test) {
        return;
    }
    let mut fleet = Fleet::new();
    let usual = fleet.env.len();
    for (name, value) in [("BERTH_MAX_SESSIONS", "0"), ("BERTH_COMPOSE_WAIT", "25")] {
        fleet.env.push((name.to_owned(), value.to_owned()));
    }
    fleet.free();
    let failed = fleet.command(&["up"]);
    let why = said(&failed);
    assert_eq!(failed.status.code(), Some(1), "{why}");
    explained("is not well after", &why);
    // Which one, how it stands, and its own words.
    assert!(why.contains("worker-1") && why.contains("exit code 2"), "{why}");
    assert!(why.contains("--max-sessions") && why.contains("not all services are ready"), "{why}");

    // Put right; and where nothing holds a disk limit, which is told.
    fleet.env.truncate(usual);
    fleet.env.push(("BERTH_WORKSPACE".to_owned(), "directory".to_owned()));
    fleet.ok(&["up"]);
    assert_eq!(fleet.berth(&["run", "--", "echo", "works"]).await, "works");
    assert!(fleet.berth(&["workers", "worker-1"]).await.contains("disk limits are not held"));
    let devices = ok(&["inspect", &fleet.container("worker-1"), "-f", "{{json .HostConfig.Devices}}"]);
    assert!(
        devices.contains("/dev/null") && !devices.contains(r#""PathOnHost":"/dev/loop-control""#),
        "{devices}"
    );
    fleet.ok(&["clean"]);
    assert!(fleet.of_project(&["ps", "-aq"]).is_empty() && !fleet.dir.exists());
}
