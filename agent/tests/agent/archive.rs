//! Export and import: what leaves one sandbox arrives in another, whole and of one moment.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

use berth_proto::{
    Reason,
    v1::{self, ArchiveKind, ArchiveRoot, archive_part::Part, outcome::Kind},
};
use tonic::{Code, Status};

use crate::rig::{EMPTY, Rig, argv, outcome, refused, sh, skip, until};

async fn export(rig: &Rig) -> Result<Vec<v1::ArchivePart>, Status> {
    let request = v1::ExportRequest { max_bytes: 1 << 30, freeze_limit: None };
    collect(rig, request).await
}

async fn collect(rig: &Rig, request: v1::ExportRequest) -> Result<Vec<v1::ArchivePart>, Status> {
    let mut stream = rig.agent.clone().export(request).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await? {
        parts.push(part);
    }
    Ok(parts)
}

async fn import(rig: &Rig, parts: Vec<v1::ArchivePart>) -> Result<v1::ImportResponse, Status> {
    let response = rig.agent.clone().import(futures::stream::iter(parts)).await?;
    Ok(response.into_inner())
}

/// The content of one file of the workspace.
fn file_of(parts: &[v1::ArchivePart], path: &str) -> Vec<u8> {
    let mut found = None;
    let mut content = Vec::new();
    for part in parts {
        match part.part.as_ref().unwrap() {
            Part::Entry(entry) => found = (entry.path == path.as_bytes()).then_some(()),
            Part::Data(data) if found.is_some() => content.extend_from_slice(data),
            _ => {}
        }
    }
    content
}

fn entry(kind: ArchiveKind, path: &str) -> v1::ArchiveEntry {
    v1::ArchiveEntry {
        root: ArchiveRoot::Workspace.into(),
        path: path.as_bytes().to_vec().into(),
        kind: kind.into(),
        mode: 0o755,
        ..Default::default()
    }
}

fn part(part: Part) -> v1::ArchivePart {
    v1::ArchivePart { part: Some(part) }
}

const END: Part = Part::End(v1::ArchiveEnd { skipped: 0, frozen_for: None });

#[tokio::test]
async fn files_arrive_as_they_were() {
    let Some(from) = Rig::start("files_arrive_as_they_were").await else { return };
    let made = from
        .run(sh(r#"
set -e
mkdir -p deep/er/still 'a b' shut ~/.config
printf 'x\0y' > deep/er/file; chmod 4751 deep/er/file; touch -d '2001-02-03 04:05:06.789' deep/er/file
ln deep/er/file deep/second
ln -s ../../etc/passwd deep/link; touch -h -d '1969-01-01' deep/link
head -c 3000000 /dev/urandom > big
truncate -s 50M sparse; printf end >> sparse
echo secret > shut/inside; chmod 000 shut/inside; chmod 000 shut
: > "$(printf 'bad\377name')"; echo home > ~/.config/f
mkfifo pipe; chmod 1777 'a b'; touch -d '2010-01-01' deep/er deep
"#))
        .await;
    assert_eq!((made.outcome(), made.err().as_str()), (Kind::Exited(0), ""));
    let big = fs::read(from.workspace("big")).unwrap();
    let parts = export(&from).await.unwrap();
    let Some(Part::End(end)) = parts.last().unwrap().part.clone() else { panic!("it must end") };
    assert_eq!(end.skipped, 1, "the pipe");
    assert!(end.frozen_for.is_some());
    // What had no mode has none after it was read.
    assert_eq!(fs::metadata(from.workspace("shut")).unwrap().mode() & 0o7777, 0);

    let Some(to) = Rig::start("files_arrive_as_they_were").await else { return };
    let answer = import(&to, parts).await.unwrap();
    assert_eq!((answer.bytes, answer.tasks), (3 + 3_000_000 + (50 << 20) + 3 + 7 + 5, 1));
    let at = |path: &str| fs::symlink_metadata(to.workspace(path)).unwrap();
    let file = at("deep/er/file");
    assert_eq!(fs::read(to.workspace("deep/er/file")).unwrap(), b"x\0y");
    assert_eq!((file.mode() & 0o7777, file.mtime_nsec(), file.nlink()), (0o4751, 789_000_000, 2));
    assert_eq!(at("deep/second").ino(), file.ino());
    assert_eq!(fs::read_link(to.workspace("deep/link")).unwrap().to_str(), Some("../../etc/passwd"));
    assert_eq!(at("deep/link").mtime(), fs::symlink_metadata(from.workspace("deep/link")).unwrap().mtime());
    assert_eq!(fs::read(to.workspace("big")).unwrap(), big);
    let sparse = at("sparse");
    assert!(sparse.size() == (50 << 20) + 3 && sparse.blocks() * 512 < 10 << 20, "holes stay holes");
    assert_eq!(at("shut").mode() & 0o7777, 0);
    assert_eq!(fs::read(to.workspace("shut/inside")).unwrap(), b"secret\n");
    assert_eq!(at("shut/inside").mode() & 0o7777, 0);
    assert_eq!(at("a b").mode() & 0o7777, 0o1777);
    assert_eq!(at("deep/er").mtime(), fs::metadata(from.workspace("deep/er")).unwrap().mtime());
    assert_eq!(fs::read(to.config.user.home.join(".config/f")).unwrap(), b"home\n");
    assert_eq!((at("big").uid(), at("deep").uid()), (crate::rig::UID, crate::rig::UID));
    assert!(!to.workspace("pipe").exists());
    // And again from there: the same.
    let again = export(&to).await.unwrap();
    assert_eq!(file_of(&again, "big"), big);
}

/// A task counts into `a` and then into `z`; between the two the archive reads a large file. Without the freeze,
/// `z` would be far ahead of `a`.
#[tokio::test]
async fn an_archive_is_of_one_moment() {
    let Some(rig) = Rig::start("an_archive_is_of_one_moment").await else { return };
    if rig.config.cgroups.v2.is_none() {
        return skip("an_archive_is_of_one_moment", "no cgroup v2 mount");
    }
    rig.run(sh("head -c 100000000 /dev/zero | tr '\\0' x > m")).await;
    let count = "import os\nn = 0\na = os.open('a', os.O_RDWR | os.O_CREAT); z = os.open('z', os.O_RDWR | os.O_CREAT)\n\
        while True:\n  n += 1\n  os.pwrite(a, b'%020d\\n' % n, 0); os.pwrite(z, b'%020d\\n' % n, 0)\n";
    let task = rig.begin(argv(&["python3", "-c", count])).await;
    rig.file("z").await;
    for _ in 0..3 {
        let parts = export(&rig).await.unwrap();
        let number =
            |name: &str| String::from_utf8(file_of(&parts, name)).unwrap().trim().parse::<u64>().unwrap();
        let (a, z) = (number("a"), number("z"));
        assert!(a == z || a == z + 1, "{a} {z}");
        // It goes on afterwards.
        crate::rig::until("it counts on", || {
            let now: u64 = fs::read_to_string(rig.workspace("a")).ok()?.trim().parse().ok()?;
            (now > a).then_some(())
        })
        .await;
    }
    assert_eq!(rig.get(&task).await.state(), v1::TaskState::Running);
    // A task that is started meanwhile is not refused.
    let (parts, ran) = tokio::join!(export(&rig), rig.run(sh("true")));
    parts.unwrap();
    assert_eq!(ran.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn nobody_stands_still_for_a_reader_that_does_not_read() {
    let name = "nobody_stands_still_for_a_reader_that_does_not_read";
    let Some(rig) = Rig::start(name).await else { return };
    if rig.config.cgroups.v2.is_none() {
        return skip(name, "no cgroup v2 mount");
    }
    rig.run(sh("head -c 100000000 /dev/zero > m")).await;
    rig.begin(sh("while :; do date +%s%N > beat; sleep 0.01; done")).await;
    rig.file("beat").await;
    let beats = || async {
        let was = fs::read_to_string(rig.workspace("beat")).unwrap_or_default();
        crate::rig::until("it beats", || {
            let now = fs::read_to_string(rig.workspace("beat")).ok()?;
            (now != was && !now.is_empty()).then_some(())
        })
        .await;
    };
    // It goes away.
    let request = v1::ExportRequest { max_bytes: 1 << 30, ..Default::default() };
    let mut stream = rig.agent.clone().export(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    beats().await;
    // It stays, and takes nothing: the limit ends it.
    let limit = Some(Duration::from_millis(300).try_into().unwrap());
    let request = v1::ExportRequest { max_bytes: 1 << 30, freeze_limit: limit };
    let mut stream = rig.agent.clone().export(request).await.unwrap().into_inner();
    beats().await;
    let error = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it can't have been read"),
            Err(error) => break error,
        }
    };
    refused(Err::<(), _>(error), Code::DeadlineExceeded, Reason::CheckpointFailed);
    beats().await;
}

#[tokio::test]
async fn too_much_is_refused() {
    let Some(rig) = Rig::start("too_much_is_refused").await else { return };
    rig.run(sh("truncate -s 10G hole")).await;
    refused(export(&rig).await, Code::ResourceExhausted, Reason::DiskFull);
    assert_eq!(rig.run(sh("true")).await.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn finished_tasks_come_along() {
    let Some(from) = Rig::start("finished_tasks_come_along").await else { return };
    let task = from.run(sh("seq 100000; echo bad >&2; exit 7")).await;
    let whole = task.stdout.clone();
    let Some(to) = Rig::start("finished_tasks_come_along").await else { return };
    from.begin(argv(&["sleep", "600"])).await;
    let answer = import(&to, export(&from).await.unwrap()).await.unwrap();
    assert_eq!(answer.tasks, 1, "one that runs does not come along");
    let there = to.get(&task.started).await;
    assert_eq!((outcome(&there), there.session_id.as_str()), (Kind::Exited(7), to.session.as_str()));
    assert_eq!(there.started_at, from.get(&task.started).await.started_at);
    let first = there.stdout.unwrap().first_kept;
    assert_eq!((there.stdout.unwrap().length, first), (whole.len() as u64, whole.len() as u64 - 65_536));
    let below = to.watch(to.watch_request(&there)).await;
    refused(below, Code::OutOfRange, Reason::OutputLost);
    let from_there = v1::WatchTaskRequest { stdout_offset: first, ..to.watch_request(&there) };
    let seen = to.watch(from_there).await.unwrap();
    assert_eq!((seen.stdout.as_slice(), seen.err().as_str()), (&whole[first as usize..], "bad\n"));
}

/// INVARIANTS 5 and 7 over a move: a client that repeats its call finds what its first one came to. Red when keys are
/// not taken up, or not asked for.
#[tokio::test]
async fn request_ids_come_along_and_start_nothing_again() {
    let name = "request_ids_come_along_and_start_nothing_again";
    let Some(from) = Rig::start(name).await else { return };
    let ended = from.begin_with(sh("echo once >> runs"), "ended").await.unwrap();
    from.wait(&ended).await;
    let running = from.begin_with(sh("echo twice >> runs; sleep 600"), "running").await.unwrap();
    until("it runs", || fs::read_to_string(from.workspace("runs")).ok().filter(|t| t.contains("twice")))
        .await;
    let Some(to) = Rig::start(name).await else { return };
    import(&to, export(&from).await.unwrap()).await.unwrap();
    let again = to.begin_with(sh("echo once >> runs"), "ended").await.unwrap();
    assert_eq!((again.id.as_str(), outcome(&again)), (ended.id.as_str(), Kind::Exited(0)));
    let again = to.begin_with(sh("echo twice >> runs; sleep 600"), "running").await.unwrap();
    assert_eq!((again.id.as_str(), outcome(&again)), (running.id.as_str(), Kind::WorkerLost(EMPTY)));
    let other = to.begin_with(sh("another"), "ended").await;
    refused(other, Code::AlreadyExists, Reason::RequestIdReused);
    assert_eq!(fs::read_to_string(to.workspace("runs")).unwrap(), "once\ntwice\n");
    assert_eq!(to.run(sh("true")).await.outcome(), Kind::Exited(0));
}

#[tokio::test]
async fn a_bad_archive_is_refused() {
    let name = "a_bad_archive_is_refused";
    let root = || part(Part::Entry(entry(ArchiveKind::Directory, "")));
    let link = |path: &str, target: &str| {
        let target = target.as_bytes().to_vec().into();
        part(Part::Entry(v1::ArchiveEntry { target, ..entry(ArchiveKind::Symlink, path) }))
    };
    let file =
        |path: &str, size| part(Part::Entry(v1::ArchiveEntry { size, ..entry(ArchiveKind::File, path) }));
    let data = |bytes: &'static [u8]| part(Part::Data(bytes.into()));
    let outside = std::env::temp_dir().join(format!("berth-outside-{}", berth_proto::TaskId::new()));
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    let cases: Vec<(&str, Vec<v1::ArchivePart>)> = vec![
        ("a path that leads out", vec![root(), file("../x", 0), part(END)]),
        (
            "through a link",
            vec![root(), link("d", outside.to_str().unwrap()), file("d/x", 1), data(b"x"), part(END)],
        ),
        ("less content", vec![root(), file("x", 5), data(b"abc"), part(END)]),
        ("more content", vec![root(), file("x", 2), data(b"abc"), part(END)]),
        ("content of nothing", vec![root(), data(b"abc"), part(END)]),
        ("no end", vec![root(), file("x", 3), data(b"abc")]),
        ("nothing", vec![]),
    ];
    for (what, parts) in cases {
        let Some(rig) = Rig::start(name).await else { return };
        assert!(import(&rig, parts).await.is_err(), "{what}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{what}");
    }
    fs::remove_dir(&outside).unwrap();
    // A session that has run something is no place for an archive.
    let Some(rig) = Rig::start(name).await else { return };
    rig.run(sh("true")).await;
    refused(import(&rig, vec![root(), part(END)]).await, Code::FailedPrecondition, Reason::CheckpointFailed);
}
