//! Disk limits that hold: what a session may write is bounded in bytes and files, reserved when it is placed, and given
//! back when it ends. ABUSE 11 to 13.
//!
//! Sessions live on a disk of the test's own (an ext4 image), so that what is free there is the session's doing alone.

use std::{path::PathBuf, process::Command};

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, outcome::Kind},
};
use berth_tests::{Cluster, READY, Setup, left, process, skip, until};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    recovery::workspace,
    util::{delete, on_both, run, seconds, state, try_run},
};

const MIB: u64 = 1 << 20;
/// What a session may write, and the size of the disk.
const LIMIT: u64 = 32 * MIB;
const DISK: u64 = 640 * MIB;

/// Of the kinds of workspaces, the one that the engine mounts.
const VOLUME: &str = "volume";

/// Once with each backend, and once with docker where the engine mounts the files.
macro_rules! on_all {
    ($what:ident: $native:ident, $docker:ident, $volume:ident) => {
        on_both!($what: $native, $docker);

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $volume() {
            let test = concat!("e2e ", stringify!($volume));
            if !skip::without_docker(test) && !skip::without_root(test) {
                $what(VOLUME).await;
            }
        }
    };
}

/// A disk of the test's own.
struct Disk {
    dir: TempDir,
}

impl Disk {
    fn new() -> Self {
        let this = Self { dir: tempfile::Builder::new().prefix("berth-d").tempdir().expect("a directory") };
        let image = this.dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(DISK)).expect("an image");
        std::fs::create_dir(this.path()).expect("a directory");
        sh("mkfs.ext4 -q -F -m 0 \"$1\" && mount -o loop \"$1\" \"$2\"", &[&image, &this.path()]);
        this
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.path()).expect("it is mounted");
        stat.blocks_available() * stat.fragment_size()
    }

    /// A fleet of one worker whose sessions live here. `volume`: docker's, which the engine mounts.
    async fn cluster(&self, sandbox: &str) -> Cluster {
        let path = self.path().to_str().expect("our own paths are UTF-8").to_owned();
        let mut worker_env = vec![("BASE_WORKSPACE".to_owned(), path), ("BERTH_DISK".into(), "10G".into())];
        let sandbox = match sandbox {
            VOLUME => {
                worker_env.push(("BERTH_WORKSPACE".into(), VOLUME.into()));
                "docker"
            }
            other => other,
        };
        Cluster::start(Setup { worker_env, ..Setup::new(sandbox) }).await
    }

    /// Mounts and loop devices of sessions.
    fn of_sessions(&self) -> Vec<String> {
        let sessions = self.path().join("sessions");
        [left::mounts(&sessions), left::loop_devices(&sessions)].concat()
    }

    /// Fills what is free, so that an unprivileged writer, and root too, find nothing.
    fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let _ = Command::new("dd")
            .arg("if=/dev/zero")
            .arg(format!("of={}", filler.display()))
            .arg("bs=64k")
            .output();
        assert!(self.free() < MIB, "{} bytes are still free", self.free());
        filler
    }

    /// After the fleet's end.
    fn assert_empty(&self) {
        let names: Vec<_> =
            std::fs::read_dir(self.path().join("sessions")).into_iter().flatten().flatten().collect();
        assert!(names.is_empty(), "{names:?}");
        assert_eq!(self.of_sessions(), [] as [String; 0]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        left::unmount(self.dir.path());
    }
}

fn sh(script: &str, args: &[&PathBuf]) {
    let ran = Command::new("sh").args(["-c", script, "sh"]).args(args).output().expect("sh");
    assert!(ran.status.success(), "{script}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Bytes that come of a part of the file `f`. 0 for the length: to its end.
async fn read(cluster: &Cluster, id: &str, offset: u64, length: u64) -> u64 {
    let request =
        v1::ReadRequest { session_id: id.into(), path: "f".into(), offset, length, no_links: false };
    let mut stream = cluster.files().read(request).await.expect("it can be read").into_inner();
    let mut bytes = 0;
    while let Some(part) = stream.message().await.expect("it can be read") {
        if let Some(v1::read_response::Part::Data(data)) = part.part {
            bytes += data.len() as u64;
        }
    }
    bytes
}

async fn try_session(cluster: &Cluster, disk_bytes: u64) -> Result<String, tonic::Status> {
    let limits = v1::Limits { disk_bytes: Some(disk_bytes), ..Default::default() };
    let request =
        v1::CreateSessionRequest { limits: Some(limits), wait_for_place: seconds(1), ..Default::default() };
    Ok(cluster.sessions().create_session(request).await?.into_inner().id)
}

async fn session(cluster: &Cluster, disk_bytes: u64) -> String {
    try_session(cluster, disk_bytes).await.expect("a session")
}

async fn upload(
    cluster: &Cluster,
    session: &str,
    path: &str,
    bytes: u64,
) -> Result<v1::FileInfo, tonic::Status> {
    let header = v1::WriteHeader { session_id: session.into(), path: path.into(), ..Default::default() };
    let mut parts = vec![v1::WriteRequest::header(header)];
    parts.extend((0..bytes / MIB).map(|_| v1::WriteRequest::data(vec![b'x'; MIB as usize])));
    parts.push(v1::WriteRequest::end());
    Ok(cluster.files().write(tokio_stream::iter(parts)).await?.into_inner())
}

/// ABUSE 11. Red when the store makes no file system (`provide` says Ok at once): dd ends with the disk, not the limit.
async fn a_session_is_held_to_its_bytes(sandbox: &str) {
    let disk = Disk::new();
    let cluster = disk.cluster(sandbox).await;
    let (full, neighbour) = (session(&cluster, LIMIT).await, session(&cluster, LIMIT).await);
    let before = disk.free();
    let (said, kind) = run(&cluster, &full, "dd if=/dev/zero of=f bs=1M 2>&1; stat -c %s f").await;
    assert_eq!(kind, Kind::Exited(0));
    assert!(said.contains("No space left on device"), "{said}");
    let written: u64 = said.lines().last().and_then(|line| line.parse().ok()).expect("a size");
    assert!(written <= LIMIT && written > LIMIT / 10 * 9, "{written} of {LIMIT} bytes could be written");
    // The home is of the same limit.
    let (said, _) = run(&cluster, &full, "dd if=/dev/zero of=$HOME/g bs=1M 2>&1; stat -c %s $HOME/g").await;
    assert!(said.contains("No space left on device") && said.ends_with('0'), "{said}");
    let taken = before.saturating_sub(disk.free());
    assert!(taken < MIB, "{taken} bytes of the disk went: they were not reserved");

    let error = upload(&cluster, &full, "upload", 4 * MIB).await.expect_err("nothing is free");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::ResourceExhausted, Some(Reason::DiskFull)),
        "{error:?}"
    );
    assert!(detail_of(&error, "hint").is_some_and(|hint| hint.contains("more disk")), "{error:?}");
    upload(&cluster, &neighbour, "upload", 4 * MIB).await.expect("the neighbour has its own");

    let (seen, _) = run(&cluster, &full, "rm -f f $HOME/g; echo again > h && cat h").await;
    assert_eq!(seen, "again", "a session is of use again when it has removed something");
    let again = upload(&cluster, &full, "upload", 4 * MIB).await.expect("there is room now");
    assert_eq!(again.size, 4 * MIB);
    // Parts of a file that are zeroed or taken out are the session's still, and none of the disk's.
    let line = "rm -f upload; fallocate -l 16M z && for i in 0 1 2 3 4 5 6 7; do
                dd if=h of=z bs=1 count=1 seek=$((i * 1000000)) conv=notrunc 2>/dev/null; done
                fallocate -z -o 8M -l 4M z; fallocate -p -o 12M -l 2M z; sync z; echo done";
    assert_eq!(run(&cluster, &full, line).await.0, "done");
    let image = disk.path().join("sessions").join(&full).join("files.img").metadata().expect("its image");
    let allocated = std::os::unix::fs::MetadataExt::blocks(&image) * 512;
    assert!(allocated >= LIMIT, "{allocated} of {LIMIT} bytes are still allocated");
    let taken = before.saturating_sub(disk.free());
    assert!(taken < MIB, "{taken} bytes of the disk went");
    cluster.stop().await;
    disk.assert_empty();
}
on_all!(a_session_is_held_to_its_bytes: native_a_session_is_held_to_its_bytes, docker_a_session_is_held_to_its_bytes, volume_a_session_is_held_to_its_bytes);

/// ABUSE 12. Red when the store makes no file system: the files end with the disk's (its 40,000), after the asserted 5,000.
async fn a_session_is_held_to_its_files(sandbox: &str) {
    let disk = Disk::new();
    let cluster = disk.cluster(sandbox).await;
    let (full, neighbour) = (session(&cluster, LIMIT).await, session(&cluster, LIMIT).await);
    let line =
        "i=0; while [ $i -lt 5000 ] && { : > f$i; } 2>/dev/null; do i=$((i + 1)); done; echo $i; : > more";
    let (said, kind) = run(&cluster, &full, line).await;
    let made: u64 = said.parse().expect("a number");
    assert!((3900..=4096).contains(&made), "{made} files: one is allowed for each 8 KiB of {LIMIT}");
    assert_ne!(kind, Kind::Exited(0), "one more is refused");
    assert_eq!(run(&cluster, &neighbour, "echo fine > f && cat f").await.0, "fine");
    assert_eq!(run(&cluster, &full, "rm f1; echo fine > f1 && cat f1").await.0, "fine");
    cluster.stop().await;
    disk.assert_empty();
}
on_all!(a_session_is_held_to_its_files: native_a_session_is_held_to_its_files, docker_a_session_is_held_to_its_files, volume_a_session_is_held_to_its_files);

/// Red without the limit on a file's size: it is 1 TiB then, and its download has no end.
async fn a_huge_hole_hurts_nobody(sandbox: &str) {
    // A file may be as large as the larger of the two.
    const MEMORY: u64 = 64 * MIB;
    let disk = Disk::new();
    let cluster = disk.cluster(sandbox).await;
    let limits = v1::Limits { disk_bytes: Some(LIMIT), memory_bytes: Some(MEMORY), ..Default::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
    let id = cluster.sessions().create_session(request).await.expect("a session").into_inner().id;
    let before = disk.free();
    let (said, _) =
        run(&cluster, &id, "truncate -s 1T f 2>&1; stat -c %s f; truncate -s 64M f && stat -c '%s %b' f")
            .await;
    assert!(said.contains("File too large") && said.ends_with("\n0\n67108864 0"), "{said}");
    let (said, _) = run(&cluster, &id, "printf x | dd of=f bs=1 seek=64M conv=notrunc 2>&1 | head -n1").await;
    assert!(said.contains("File too large"), "nor at its end: {said}");
    assert_eq!(read(&cluster, &id, MEMORY / 2, 1000).await, 1000);
    assert_eq!(read(&cluster, &id, 0, 0).await, MEMORY, "all of it ends");
    let request = v1::CheckpointSessionRequest { session_id: id.clone(), ..Default::default() };
    let error =
        cluster.checkpoints().checkpoint_session(request.clone()).await.expect_err("it is more than may be");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert_eq!(run(&cluster, &id, "truncate -s 16M f && echo on").await.0, "on");
    cluster.checkpoints().checkpoint_session(request).await.expect("a hole within the limit");
    let taken = before.saturating_sub(disk.free());
    assert!(taken < MIB, "{taken} bytes went");
    cluster.stop().await;
    disk.assert_empty();
}
on_both!(a_huge_hole_hurts_nobody: native_a_huge_hole_hurts_nobody, docker_a_huge_hole_hurts_nobody);

/// Red without the unmount in `remove`, or without the wait for the loop device.
async fn a_workspace_lives_as_long_as_its_session(sandbox: &str) {
    let disk = Disk::new();
    let mut cluster = disk.cluster(sandbox).await;
    let (kept, ended) = (session(&cluster, LIMIT).await, session(&cluster, LIMIT).await);
    // A loop device each, and a mount where the worker makes it.
    let each = if sandbox == VOLUME { 1 } else { 2 };
    assert_eq!(disk.of_sessions().len(), 2 * each, "{:?}", disk.of_sessions());
    run(&cluster, &kept, "echo kept > f; echo home > ~/f").await;
    cluster.workers[0].process.kill().await;
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "the session to be taken up", async || {
        let (seen, _) = try_run(&cluster, &kept, "cat f ~/f").await.ok()?;
        (seen == "kept\nhome").then_some(())
    })
    .await;
    let (said, _) = run(&cluster, &kept, "dd if=/dev/zero of=g bs=1M 2>&1; rm g").await;
    assert!(said.contains("No space left on device"), "its limit holds still: {said}");

    let before = disk.free();
    delete(&cluster, &ended).await;
    until(READY, "the session to be over", async || {
        (state(&cluster, &ended).await.state() == v1::SessionState::Ended).then_some(())
    })
    .await;
    let left = disk.of_sessions();
    assert!(left.len() == each && left.iter().all(|line| line.contains(&kept)), "{left:?}");
    assert!(disk.free() >= before + LIMIT, "its disk is free again when its end is told");

    // A worker that is killed, and whose sandboxes end meanwhile, leaves files, mounts and devices for its next start.
    cluster.workers[0].process.kill().await;
    left::end_instance(&left::instance(&cluster.workers[0].state).expect("an id"));
    // What the engine mounted went with the container; its record of it is left.
    assert_eq!(disk.of_sessions().len(), if sandbox == VOLUME { 0 } else { 2 });
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "the rest to be removed", async || {
        disk.of_sessions().iter().all(|line| !line.contains(&kept)).then_some(())
    })
    .await;
    cluster.stop().await;
    disk.assert_empty();
}
on_all!(a_workspace_lives_as_long_as_its_session: native_a_workspace_lives_as_long_as_its_session, docker_a_workspace_lives_as_long_as_its_session, volume_a_workspace_lives_as_long_as_its_session);

/// After a restart of the machine nothing is mounted, no sandbox runs, and records and images are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restarted_machine_finds_is_removed() {
    if skip::without_root("e2e what_a_restarted_machine_finds_is_removed") {
        return;
    }
    let disk = Disk::new();
    let mut cluster = disk.cluster("native").await;
    let id = session(&cluster, LIMIT).await;
    cluster.workers[0].process.kill().await;
    left::end_instance(&left::instance(&cluster.workers[0].state).expect("an id"));
    assert_eq!(left::unmount(&disk.path().join("sessions")), 1);
    let image = disk.path().join("sessions").join(&id).join("files.img");
    assert_eq!(image.metadata().map(|meta| meta.len()).ok(), Some(LIMIT));
    cluster.restart_worker(0);
    cluster.workers_ready().await;
    until(READY, "the session to be over", async || {
        (state(&cluster, &id).await.state() == v1::SessionState::Ended).then_some(())
    })
    .await;
    assert!(!image.exists());
    session(&cluster, LIMIT).await;
    cluster.stop().await;
    disk.assert_empty();
}

/// Red when images are not allocated (no `fallocate`): the writes of the session that is there fail, or are lost.
async fn a_full_disk_refuses_sessions_and_breaks_none(sandbox: &str) {
    let disk = Disk::new();
    let cluster = disk.cluster(sandbox).await;
    let id = session(&cluster, 2 * LIMIT).await;
    let filler = disk.fill();

    let line = "head -c 40M /dev/urandom > f && sync f && a=$(sha256sum < f) && \
                dd if=f of=g bs=1M iflag=direct oflag=direct count=10 2>/dev/null; [ \"$a\" = \"$(sha256sum < f)\" ] && echo same";
    assert_eq!(run(&cluster, &id, line).await.0, "same");
    upload(&cluster, &id, "upload", 4 * MIB).await.expect("it has its room");
    let error = try_session(&cluster, LIMIT).await.expect_err("there is no room");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::ResourceExhausted, Some(Reason::NoPlace)),
        "{error:?}"
    );
    let each = if sandbox == VOLUME { 1 } else { 2 };
    assert_eq!(disk.of_sessions().len(), each, "a session that was refused leaves nothing");

    std::fs::remove_file(filler).expect("the filler");
    until(READY, "the worker to take sessions again", async || try_session(&cluster, LIMIT).await.ok()).await;
    assert_eq!(
        run(&cluster, &id, "sha256sum < f | wc -c; rm f g upload; echo on > f; cat f").await.0,
        "68\non"
    );
    cluster.stop().await;
    disk.assert_empty();
}
on_all!(a_full_disk_refuses_sessions_and_breaks_none: native_a_full_disk_refuses_sessions_and_breaks_none, docker_a_full_disk_refuses_sessions_and_breaks_none, volume_a_full_disk_refuses_sessions_and_breaks_none);

/// What is promised counts as taken: the worker's offer is more than its disk has, and it refuses all the same. Red when
/// `promised` is 0 in the worker's admission: a third session is taken, whose output has no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_is_not_promised_twice() {
    if skip::without_root("e2e disk_is_not_promised_twice") {
        return;
    }
    let disk = Disk::new();
    let cluster = disk.cluster("native").await;
    // Each takes 96 MiB of files and up to 48 of output; 256 stay free always.
    let most = (disk.free() - 256 * MIB) / (144 * MIB);
    let mut taken = 0;
    let refused = loop {
        match try_session(&cluster, 96 * MIB).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken <= most, "{taken} sessions on a disk for {most}");
    };
    assert_eq!(taken, most, "{refused:?}");
    assert_eq!(reason_of(&refused), Some(Reason::NoPlace));
    let log = cluster.workers[0].process.log();
    assert!(log.contains("are promised"), "{log}");
    cluster.stop().await;
    disk.assert_empty();
}

/// In memory, where there are no loop devices. A session that fills its disk is told so, and not killed for its memory.
async fn files_in_memory_are_held_too(sandbox: &str) {
    let worker_env = vec![("BERTH_WORKSPACE".to_owned(), "tmpfs".to_owned())];
    let cluster = Cluster::start(Setup { worker_env, ..Setup::new(sandbox) }).await;
    let limits =
        v1::Limits { disk_bytes: Some(96 * MIB), memory_bytes: Some(64 * MIB), ..Default::default() };
    let request = v1::CreateSessionRequest { limits: Some(limits), ..Default::default() };
    let id = cluster.sessions().create_session(request).await.expect("a session").into_inner().id;
    // Two files: one alone may be as large as the disk, and no larger.
    let fill = "head -c 1M /dev/zero > g; dd if=/dev/zero of=f bs=1M 2>&1; stat -c %s f";
    let (said, kind) = run(&cluster, &id, fill).await;
    assert_eq!(kind, Kind::Exited(0), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(said.ends_with(&(95 * MIB).to_string()), "{said}");
    assert_eq!(run(&cluster, &id, "rm f; echo on > f; cat f").await.0, "on");
    let listed = cluster.berth(&["workers", "worker-1"]).await.ok();
    assert!(listed.contains("files are in memory"), "{listed}");
    cluster.stop().await;
}
on_both!(files_in_memory_are_held_too: native_files_in_memory_are_held_too, docker_files_in_memory_are_held_too);

/// A worker that can't hold limits says so, and starts only if that was allowed. `setpriv` takes from root what mounting
/// needs. Red when `auto` falls back to a plain directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_can_not_hold_disk_limits_says_so() {
    let test = "e2e a_worker_that_can_not_hold_disk_limits_says_so";
    if skip::without_root(test) || skip::without_docker(test) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-t").tempdir().expect("a directory");
    let start = |prefix: &[&str], sandbox: &str, workspace: &str| {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(process::binary("worker"));
        command.args(["--sandbox", sandbox, "--workspace", workspace]);
        command.args(["--join-token", "x", "--coordinator", "127.0.0.1:9"]);
        command.arg("--state-dir").arg(dir.path().join("w"));
        // It would go on trying to reach its coordinator.
        Command::new("timeout")
            .arg("-s")
            .arg("TERM")
            .arg("5")
            .arg(command.get_program())
            .args(command.get_args())
            .output()
            .expect("it runs")
    };
    let weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"];
    // Nor are there loop devices.
    let hidden = "mount --bind /dev/null /dev/loop-control && exec \"$@\"";
    let weaker = [&["unshare", "-m", "--", "sh", "-c", hidden, "sh"], &weak[..]].concat();
    let refused = start(&weaker, "docker", "auto");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for kind in ["ext4:", "volume:", "tmpfs:"] {
        assert!(said.contains("disk limit") && said.contains(kind), "{said}");
    }
    assert!(said.contains("hint: ") && said.contains("BERTH_WORKSPACE=directory"), "{said}");
    let engines = start(&weak, "docker", "auto");
    let said = String::from_utf8_lossy(&engines.stderr).into_owned();
    assert!(said.contains("a volume of the engine") && said.contains("worker started"), "{said}");
    // Nothing but docker can use them.
    let native = start(&["env"], "native", VOLUME);
    let said = String::from_utf8_lossy(&native.stderr).into_owned();
    assert_eq!(native.status.code(), Some(1), "{said}");
    assert!(
        said.contains("volumes of the container engine") && said.contains("BERTH_SANDBOX=docker"),
        "{said}"
    );
    let named = start(&weak, "docker", "tmpfs");
    assert_eq!(named.status.code(), Some(1), "what was asked for by name is not replaced");

    // The engine would bind the empty directory below the mount.
    let apart = start(&["unshare", "-m", "--"], "docker", "auto");
    let said = String::from_utf8_lossy(&apart.stderr).into_owned();
    assert_eq!(apart.status.code(), Some(1), "{said}");
    assert!(said.contains("another mount namespace") && said.contains("BERTH_WORKSPACE=volume"), "{said}");

    let allowed = start(&weak, "docker", "directory");
    let said = String::from_utf8_lossy(&allowed.stderr).into_owned();
    assert!(said.contains("disk limits are not held") && said.contains("worker started"), "{said}");
    assert_eq!(left::mounts(dir.path()), [] as [String; 0]);
}

/// Where each session's files are, for people: the status says it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_disk_limits_is_told() {
    if skip::without_root("e2e what_holds_disk_limits_is_told") {
        return;
    }
    let cluster = Cluster::start(Setup::new("native")).await;
    let listed = cluster.berth(&["workers", "worker-1"]).await.ok();
    assert!(listed.contains("disk limits held (ext4 image per session)"), "{listed}");
    let id = cluster.session().await.id;
    let (inside, _) =
        run(&cluster, &id, "df -B1 --output=size /workspace | tail -1; stat -c %d /workspace ~").await;
    let numbers: Vec<u64> = inside.lines().map(|line| line.trim().parse().expect("a number")).collect();
    assert!(numbers[0] > 900 * MIB && numbers[0] <= 1 << 30, "{inside}");
    assert_eq!(numbers[1], numbers[2], "both are of one file system");
    let outside = std::fs::metadata(workspace(&cluster, 0, &id)).expect("the workspace");
    assert_eq!(std::os::unix::fs::MetadataExt::dev(&outside), numbers[1]);
    cluster.stop().await;
}

/// Out of one session's file system into another's, of the size that was asked for.
async fn a_checkpoint_goes_into_a_workspace_of_another_size(sandbox: &str) {
    let disk = Disk::new();
    let cluster = disk.cluster(sandbox).await;
    let id = session(&cluster, LIMIT).await;
    run(&cluster, &id, "head -c 20M /dev/urandom > f; sha256sum f > sum; echo ~ > ~/h").await;
    let request = v1::CheckpointSessionRequest { session_id: id.clone(), ..Default::default() };
    let taken = cluster.checkpoints().checkpoint_session(request).await.expect("a checkpoint").into_inner();
    let restore = |disk_bytes| v1::RestoreSessionRequest {
        checkpoint_id: taken.id.clone(),
        session: Some(v1::CreateSessionRequest {
            limits: Some(v1::Limits { disk_bytes: Some(disk_bytes), ..Default::default() }),
            ..Default::default()
        }),
    };
    let bigger =
        cluster.checkpoints().restore_session(restore(2 * LIMIT)).await.expect("it fits").into_inner();
    let (seen, _) = run(
        &cluster,
        &bigger.id,
        "sha256sum -c sum; cat ~/h; dd if=/dev/zero of=g bs=1M 2>/dev/null; stat -c %s g",
    )
    .await;
    assert!(seen.starts_with("f: OK\n/home/user\n"), "{seen}");
    let rest: u64 = seen.lines().last().and_then(|line| line.parse().ok()).expect("a size");
    assert!(rest > 36 * MIB && rest < 44 * MIB, "{rest} bytes beside the 20 MiB");
    cluster.stop().await;
    disk.assert_empty();
}
on_all!(a_checkpoint_goes_into_a_workspace_of_another_size: native_a_checkpoint_goes_into_a_workspace_of_another_size, docker_a_checkpoint_goes_into_a_workspace_of_another_size, volume_a_checkpoint_goes_into_a_workspace_of_another_size);
