//! Files, through the service and as the task's user.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::PermissionsExt, fs::symlink},
};

use berth_proto::{Reason, transport::CHUNK, v1, v1::write_request::Part};
use tonic::{Code, Status};

use crate::rig::*;

fn header(rig: &Rig, path: &str) -> v1::WriteHeader {
    v1::WriteHeader { session_id: rig.session.clone(), path: path.to_owned(), ..Default::default() }
}

async fn write_with(rig: &Rig, header: v1::WriteHeader, data: &[u8]) -> Result<v1::FileInfo, Status> {
    let mut parts = vec![v1::WriteRequest { part: Some(Part::Header(header)) }];
    for chunk in data.chunks(CHUNK) {
        parts.push(v1::WriteRequest::data(chunk.to_vec()));
    }
    parts.push(v1::WriteRequest::end());
    Ok(rig.files.clone().write(futures::stream::iter(parts)).await?.into_inner())
}

pub async fn write(rig: &Rig, path: &str, data: &[u8]) -> Result<v1::FileInfo, Status> {
    write_with(rig, header(rig, path), data).await
}

async fn read_range(
    rig: &Rig,
    path: &str,
    offset: u64,
    length: u64,
) -> Result<(v1::FileInfo, Vec<u8>), Status> {
    let request = v1::ReadRequest {
        session_id: rig.session.clone(),
        path: path.to_owned(),
        offset,
        length,
        no_links: false,
    };
    let mut stream = rig.files.clone().read(request).await?.into_inner();
    let Some(v1::read_response::Part::Info(info)) = stream.message().await?.unwrap().part else {
        panic!("the info comes first")
    };
    let mut data = Vec::new();
    while let Some(message) = stream.message().await? {
        match message.part.unwrap() {
            v1::read_response::Part::Data(bytes) => data.extend_from_slice(&bytes),
            v1::read_response::Part::Info(_) => panic!("the info comes once"),
        }
    }
    Ok((info, data))
}

async fn read(rig: &Rig, path: &str) -> Result<Vec<u8>, Status> {
    Ok(read_range(rig, path, 0, 0).await?.1)
}

async fn stat(rig: &Rig, path: &str, follow: bool) -> Result<v1::FileInfo, Status> {
    let request = v1::StatRequest { session_id: rig.session.clone(), path: path.to_owned(), follow };
    Ok(rig.files.clone().stat(request).await?.into_inner())
}

pub async fn list(rig: &Rig, path: &str, depth: u32) -> Result<Vec<v1::FileInfo>, Status> {
    let (mut entries, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest {
            session_id: rig.session.clone(),
            path: path.to_owned(),
            depth,
            page_size: 0,
            page_token: token,
            no_links: false,
        };
        let page = rig.files.clone().list(request).await?.into_inner();
        entries.extend(page.entries);
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(entries);
        }
    }
}

async fn make_dir(rig: &Rig, path: &str, parents: bool, mode: Option<u32>) -> Result<v1::FileInfo, Status> {
    let request =
        v1::MakeDirRequest { session_id: rig.session.clone(), path: path.to_owned(), parents, mode };
    Ok(rig.files.clone().make_dir(request).await?.into_inner())
}

async fn rename(rig: &Rig, source: &str, destination: &str, overwrite: bool) -> Result<v1::FileInfo, Status> {
    let request = v1::MoveRequest {
        session_id: rig.session.clone(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        overwrite,
    };
    Ok(rig.files.clone().r#move(request).await?.into_inner())
}

pub async fn remove(rig: &Rig, path: &str, recursive: bool) -> Result<(), Status> {
    let request = v1::RemoveRequest { session_id: rig.session.clone(), path: path.to_owned(), recursive };
    rig.files.clone().remove(request).await.map(|_| ())
}

#[tokio::test]
async fn what_is_written_is_read_and_belongs_to_the_user() {
    let Some(rig) = Rig::start("what_is_written_is_read_and_belongs_to_the_user").await else { return };
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let info = write(&rig, "data.bin", &data).await.unwrap();
    assert_eq!((info.path.as_str(), info.size, info.mode), ("data.bin", 3_000_000, 0o644));
    assert_eq!((info.uid, info.gid), (UID, GID));
    assert_eq!(read(&rig, "data.bin").await.unwrap(), data);
    let (info, part) =
        read_range(&rig, rig.workspace("data.bin").to_str().unwrap(), 1_000_001, 500_000).await.unwrap();
    assert_eq!((info.size, &part[..]), (3_000_000, &data[1_000_001..1_500_001]));
    assert!(read_range(&rig, "data.bin", 3_000_000, 0).await.unwrap().1.is_empty());
    assert!(read_range(&rig, "data.bin", 9_000_000, 7).await.unwrap().1.is_empty());
    assert_eq!(write(&rig, "empty", b"").await.unwrap().size, 0);
    assert!(read(&rig, "empty").await.unwrap().is_empty());
    // Tasks and the service see the same.
    assert_eq!(
        rig.run(sh("wc -c < data.bin; stat -c '%u %g' data.bin")).await.out(),
        format!("3000000\n{UID} {GID}\n")
    );
}

#[tokio::test]
async fn a_file_is_replaced_in_one_step_and_keeps_its_mode() {
    let Some(rig) = Rig::start("a_file_is_replaced_in_one_step").await else { return };
    write_with(&rig, v1::WriteHeader { mode: Some(0o750), ..header(&rig, "f") }, b"one").await.unwrap();
    let before = fs::metadata(rig.workspace("f")).unwrap().ino();
    let info = write(&rig, "f", b"two").await.unwrap();
    assert_eq!(info.mode, 0o750);
    assert_ne!(fs::metadata(rig.workspace("f")).unwrap().ino(), before);
    let deep = v1::WriteHeader { make_parents: true, ..header(&rig, "a/b/c/f") };
    write_with(&rig, deep, b"x").await.unwrap();
    assert_eq!(fs::metadata(rig.workspace("a/b")).unwrap().uid(), UID);
    refused(write(&rig, "no/such/f", b"x").await, Code::NotFound, Reason::FileNotFound);
    // Through a link to what it means, there or not.
    rig.run(sh(
        "mkdir d; echo old > d/target; ln -s d/target link; ln -s target2 d/dangling; ln -s d/dangling far",
    ))
    .await;
    write(&rig, "link", b"new").await.unwrap();
    write(&rig, "far", b"made").await.unwrap();
    assert_eq!(fs::read(rig.workspace("d/target")).unwrap(), b"new");
    assert_eq!(fs::read(rig.workspace("d/target2")).unwrap(), b"made");
    assert!(fs::symlink_metadata(rig.workspace("link")).unwrap().is_symlink());
}

#[tokio::test]
async fn a_broken_upload_leaves_what_was_there_and_nothing_else() {
    let Some(rig) = Rig::start("a_broken_upload_leaves_nothing").await else { return };
    write(&rig, "f", b"old").await.unwrap();
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut files = rig.files.clone();
    let call = berth_proto::spawn::spawn("upload", async move {
        let _ = files.write(stream).await;
    });
    send.send(v1::WriteRequest { part: Some(Part::Header(header(&rig, "f"))) }).await.unwrap();
    send.send(v1::WriteRequest { part: Some(Part::Data(vec![1; 100_000].into())) }).await.unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(rig.config.workspace.clone())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    until("the upload has begun", || (names().len() == 2).then_some(())).await;
    // The client goes away in the middle.
    call.abort();
    until("the temporary file is gone", || (names() == ["f"]).then_some(())).await;
    assert_eq!(read(&rig, "f").await.unwrap(), b"old");
    // And one that breaks its own rules.
    let twice = futures::stream::iter([
        v1::WriteRequest { part: Some(Part::Header(header(&rig, "g"))) },
        v1::WriteRequest { part: Some(Part::Header(header(&rig, "g"))) },
    ]);
    refused(rig.files.clone().write(twice).await, Code::InvalidArgument, Reason::InvalidField);
    // The end of the stream is not the end of the file.
    let cut = futures::stream::iter([
        v1::WriteRequest { part: Some(Part::Header(header(&rig, "f"))) },
        v1::WriteRequest::data(vec![1; 100]),
    ]);
    refused(rig.files.clone().write(cut).await, Code::Aborted, Reason::UploadBroken);
    assert_eq!(read(&rig, "f").await.unwrap(), b"old");
    until("nothing is left", || (names() == ["f"]).then_some(())).await;
}

/// Given up at any moment, also while the temporary file is just being made and nobody knows of it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_given_up_at_any_moment_leaves_nothing() {
    let Some(rig) = Rig::start("an_upload_that_is_given_up_at_any_moment").await else { return };
    for n in 0..300u64 {
        let (send, receive) = tokio::sync::mpsc::channel(4);
        send.send(v1::WriteRequest { part: Some(Part::Header(header(&rig, "f"))) }).await.unwrap();
        let mut files = rig.files.clone();
        let call = berth_proto::spawn::spawn("upload", async move {
            let _ = files.write(tokio_stream::wrappers::ReceiverStream::new(receive)).await;
        });
        // Some before the agent has heard of it, some after the file was made.
        tokio::time::sleep(std::time::Duration::from_micros(n * 5)).await;
        call.abort();
    }
    until("nothing is left", || {
        let left = fs::read_dir(rig.config.workspace.clone()).unwrap().count();
        (left == 0).then_some(())
    })
    .await;
}

/// One hop, as a worker serves it.
struct OneHop(tonic::transport::Channel);

impl berth_proto::relay::Route for OneHop {
    async fn route(
        &self,
        _: berth_proto::SessionId,
        _: &'static str,
        _: &tonic::Extensions,
    ) -> Result<berth_proto::relay::Hop, berth_proto::Error> {
        Ok(berth_proto::relay::Hop { channel: self.0.clone(), guard: None, over: None, moved: None })
    }

    fn lost(&self) -> berth_proto::Error {
        berth_proto::relay::agent_unreachable()
    }
}

/// hyper shows a reset by the client as a clean end of the upload: no hop may believe it.
#[tokio::test]
async fn a_broken_upload_stays_broken_over_two_relays() {
    let Some(mut rig) = Rig::start("a_broken_upload_stays_broken_over_two_relays").await else { return };
    let mut channel = berth_proto::transport::channel_uds(rig.config.run_dir.join("agent.sock"));
    for name in ["worker.sock", "coordinator.sock"] {
        let path = rig.dir.join(name);
        let incoming =
            tokio_stream::wrappers::UnixListenerStream::new(tokio::net::UnixListener::bind(&path).unwrap());
        let relay = berth_proto::relay::Relay::new(OneHop(channel));
        let serving = berth_proto::transport::server(128)
            .add_service(v1::file_service_server::FileServiceServer::new(relay))
            .serve_with_incoming(incoming);
        berth_proto::spawn::spawn_fallible(name, serving);
        channel = berth_proto::transport::channel_uds(path);
    }
    rig.files = v1::file_service_client::FileServiceClient::new(channel);
    write(&rig, "f", b"old").await.unwrap();
    assert_eq!(read(&rig, "f").await.unwrap(), b"old");
    for _ in 0..20 {
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
        let mut files = rig.files.clone();
        let call = berth_proto::spawn::spawn("upload", async move {
            let _ = files.write(stream).await;
        });
        send.send(v1::WriteRequest { part: Some(Part::Header(header(&rig, "f"))) }).await.unwrap();
        send.send(v1::WriteRequest { part: Some(Part::Data(vec![1; 10_000].into())) }).await.unwrap();
        let count = || fs::read_dir(&rig.config.workspace).unwrap().count();
        until("the upload has begun", || (count() == 2).then_some(())).await;
        call.abort();
        until("the temporary file is gone", || (count() == 1).then_some(())).await;
        assert_eq!(read(&rig, "f").await.unwrap(), b"old");
    }
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_never_waited_for() {
    let Some(rig) = Rig::start("what_is_no_file_is_refused").await else { return };
    rig.run(sh("mkfifo fifo; mkdir dir; ln -s fifo to-fifo")).await;
    for path in ["fifo", "to-fifo", "dir", "/dev/zero", "."] {
        refused(read(&rig, path).await, Code::FailedPrecondition, Reason::FileKind);
    }
    for path in ["fifo", "dir", "/dev/null"] {
        refused(write(&rig, path, b"x").await, Code::FailedPrecondition, Reason::FileKind);
    }
    refused(list(&rig, "fifo", 1).await, Code::FailedPrecondition, Reason::FileKind);
    refused(read(&rig, "dir/../fifo/x").await, Code::FailedPrecondition, Reason::FileKind);
    assert_eq!(stat(&rig, "fifo", true).await.unwrap().r#type(), v1::FileType::Other);
}

#[tokio::test]
async fn the_kernel_decides_as_the_user() {
    let Some(rig) = Rig::start("the_kernel_decides_as_the_user").await else { return };
    fs::write(rig.dir.join("secret"), "s").unwrap();
    fs::set_permissions(rig.dir.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let outside = rig.dir.join("secret");
    let outside = outside.to_str().unwrap();
    symlink(outside, rig.workspace("link")).unwrap();
    for path in [outside, "link", "/etc/shadow", "../secret"] {
        refused(read(&rig, path).await, Code::PermissionDenied, Reason::FileDenied);
    }
    refused(write(&rig, "../x", b"x").await, Code::PermissionDenied, Reason::FileDenied);
    refused(write(&rig, "/usr/x", b"x").await, Code::PermissionDenied, Reason::FileDenied);
    refused(remove(&rig, outside, false).await, Code::PermissionDenied, Reason::FileDenied);
    refused(make_dir(&rig, "/x", false, None).await, Code::PermissionDenied, Reason::FileDenied);
    refused(
        list(&rig, rig.config.run_dir.to_str().unwrap(), 1).await,
        Code::PermissionDenied,
        Reason::FileDenied,
    );
    // Magic links lead nowhere, whoever names them.
    symlink("/proc/self/root", rig.workspace("magic")).unwrap();
    for path in ["/proc/self/root/etc/passwd", "magic/etc/passwd", "/proc/self/fd/0", "/proc/self/maps"] {
        refused(read(&rig, path).await, Code::PermissionDenied, Reason::FileDenied);
    }
    refused(write(&rig, "magic/tmp/x", b"x").await, Code::PermissionDenied, Reason::FileDenied);
    refused(list(&rig, "/proc/self/fd", 1).await, Code::PermissionDenied, Reason::FileDenied);
    refused(read(&rig, "none").await, Code::NotFound, Reason::FileNotFound);
    let long = "x/".repeat(2500);
    refused(read(&rig, &long).await, Code::InvalidArgument, Reason::InvalidField);
    refused(read(&rig, "a\0b").await, Code::InvalidArgument, Reason::InvalidField);
}

#[tokio::test]
async fn links_are_told_from_what_they_mean() {
    let Some(rig) = Rig::start("links_are_told_from_what_they_mean").await else { return };
    rig.run(sh("echo abc > file; ln -s file link")).await;
    let info = stat(&rig, "link", false).await.unwrap();
    assert_eq!((info.r#type(), info.symlink_target.as_str()), (v1::FileType::Symlink, "file"));
    let info = stat(&rig, "link", true).await.unwrap();
    assert_eq!((info.r#type(), info.size), (v1::FileType::File, 4));
    remove(&rig, "link", false).await.unwrap();
    assert_eq!(read(&rig, "file").await.unwrap(), b"abc\n");
}

#[tokio::test]
async fn names_that_are_no_utf8_are_listed_whole() {
    let Some(rig) = Rig::start("names_that_are_no_utf8_are_listed_whole").await else { return };
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    fs::write(rig.config.workspace.join(odd), "").unwrap();
    let entries = list(&rig, ".", 1).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].path.as_str(), &entries[0].path_bytes[..]), ("odd\u{fffd}", &b"odd\xff"[..]));
    // Removed with its directory.
    rig.run(sh("mkdir d")).await;
    fs::write(rig.workspace("d").join(odd), "").unwrap();
    remove(&rig, "d", true).await.unwrap();
    assert!(!rig.workspace("d").exists());
}

#[tokio::test]
async fn directories_are_made() {
    let Some(rig) = Rig::start("directories_are_made").await else { return };
    assert_eq!(make_dir(&rig, "d", false, None).await.unwrap().mode, 0o755);
    refused(make_dir(&rig, "d", false, None).await, Code::AlreadyExists, Reason::FileExists);
    make_dir(&rig, "d", true, None).await.unwrap();
    assert_eq!(make_dir(&rig, "d/e/f/g", true, Some(0o700)).await.unwrap().mode, 0o700);
    refused(make_dir(&rig, "x/y", false, None).await, Code::NotFound, Reason::FileNotFound);
    write(&rig, "file", b"").await.unwrap();
    refused(make_dir(&rig, "file/x", true, None).await, Code::FailedPrecondition, Reason::FileKind);
    assert_eq!(fs::metadata(rig.workspace("d/e/f")).unwrap().uid(), UID);
}

#[tokio::test]
async fn moving_replaces_only_when_asked() {
    let Some(rig) = Rig::start("moving_replaces_only_when_asked").await else { return };
    write(&rig, "a", b"a").await.unwrap();
    write(&rig, "b", b"b").await.unwrap();
    refused(rename(&rig, "a", "b", false).await, Code::AlreadyExists, Reason::FileExists);
    assert_eq!(rename(&rig, "a", "b", true).await.unwrap().path, "b");
    assert_eq!(read(&rig, "b").await.unwrap(), b"a");
    refused(rename(&rig, "a", "c", false).await, Code::NotFound, Reason::FileNotFound);
    make_dir(&rig, "d/e", true, None).await.unwrap();
    rename(&rig, "d", "moved", false).await.unwrap();
    assert!(rig.workspace("moved/e").is_dir());
    refused(rename(&rig, "moved", "moved/e/x", false).await, Code::InvalidArgument, Reason::InvalidField);
    // To another file system, where there is one that the user may write.
    let (shm, here) = (fs::metadata("/dev/shm"), fs::metadata(&rig.config.workspace).unwrap());
    if !shm.is_ok_and(|shm| shm.dev() != here.dev()) {
        skip("moving_replaces_only_when_asked", "/dev/shm is no file system of its own");
        return;
    }
    let away = format!("/dev/shm/berth-test-{}", berth_proto::TaskId::new());
    rename(&rig, "b", &away, false).await.unwrap();
    assert_eq!(fs::read(&away).unwrap(), b"a");
    write(&rig, "b", b"2").await.unwrap();
    refused(rename(&rig, "b", &away, false).await, Code::AlreadyExists, Reason::FileExists);
    rename(&rig, "b", &away, true).await.unwrap();
    assert_eq!(fs::read(&away).unwrap(), b"2");
    refused(
        rename(&rig, "moved", &format!("{away}-dir"), false).await,
        Code::Unimplemented,
        Reason::Unsupported,
    );
    rename(&rig, &away, "back", false).await.unwrap();
    assert!(!std::path::Path::new(&away).exists());
}

/// A task with a lease on its file keeps whoever opens it waiting, or asking again for the kernel's 45 s. Red when the agent
/// asks for as long as it is told to: the task would still be there to answer for the file.
#[tokio::test]
async fn a_lease_holds_nobody_up() {
    let Some(rig) = Rig::start("a_lease_holds_nobody_up").await else { return };
    let lease = "import fcntl, os, signal, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\n\
        fd = os.open('leased', os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, b'x')\n\
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\nopen('up', 'w').write('up\\n')\ntime.sleep(1000)";
    let holder = rig.begin(argv(&["python3", "-c", lease])).await;
    rig.file("up").await;
    // A task of the same user, which breaks the lease and so must wait until its time is over.
    let waiter = rig.begin(argv(&["python3", "-c", "open('leased').read(); open('broken', 'w')"])).await;
    for _ in 0..4 {
        let status = refused(read(&rig, "leased").await, Code::FailedPrecondition, Reason::FileKind);
        assert!(status.message().contains("busy"), "{status:?}");
    }
    assert!(!rig.workspace("broken").exists(), "it was answered while the lease held");
    for task in [holder, waiter] {
        rig.cancel(&task, std::time::Duration::ZERO).await;
    }
    assert_eq!(read(&rig, "leased").await.unwrap(), b"x");
}
