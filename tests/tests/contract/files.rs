//! Files, as any hop must serve them.

use berth_proto::{
    error::{Reason, reason_of},
    v1::{self, read_response},
};
use tonic::{Code, Status};

use crate::hop::{DEADLINE, Hop, argv, shell};

fn header(hop: &Hop, path: &str) -> v1::WriteRequest {
    let header = v1::WriteHeader { session_id: hop.session.clone(), path: path.into(), ..Default::default() };
    v1::WriteRequest::header(header)
}

fn data(bytes: &[u8]) -> v1::WriteRequest {
    v1::WriteRequest::data(bytes.to_vec())
}

/// With what is missing above it.
pub async fn put(hop: &Hop, path: &str, bytes: &[u8]) {
    let (session_id, path) = (hop.session.clone(), path.to_owned());
    let header = v1::WriteHeader { session_id, path, make_parents: true, mode: None };
    send(hop, v1::WriteRequest::header(header), bytes).await.expect("it is written");
}

pub async fn write(hop: &Hop, path: &str, bytes: &[u8]) -> Result<v1::FileInfo, Status> {
    send(hop, header(hop, path), bytes).await
}

async fn send(hop: &Hop, header: v1::WriteRequest, bytes: &[u8]) -> Result<v1::FileInfo, Status> {
    let mut parts = vec![header];
    parts.extend(bytes.chunks(256 << 10).map(data));
    parts.push(v1::WriteRequest::end());
    Ok(hop.files.clone().write(tokio_stream::iter(parts)).await?.into_inner())
}

async fn read_range(hop: &Hop, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
    let request = v1::ReadRequest {
        session_id: hop.session.clone(),
        path: path.into(),
        offset,
        length,
        no_links: false,
    };
    let mut stream = hop.files.clone().read(request).await?.into_inner();
    let mut bytes = Vec::new();
    let mut told = false;
    while let Some(part) = stream.message().await? {
        match part.part.expect("a part") {
            read_response::Part::Info(_) => told = true,
            read_response::Part::Data(data) => {
                assert!(told, "data before the file's info");
                bytes.extend_from_slice(&data);
            }
        }
    }
    Ok(bytes)
}

pub async fn read(hop: &Hop, path: &str) -> Result<Vec<u8>, Status> {
    read_range(hop, path, 0, 0).await
}

pub async fn stat(hop: &Hop, path: &str) -> Result<v1::FileInfo, Status> {
    let request = v1::StatRequest { session_id: hop.session.clone(), path: path.into(), follow: false };
    Ok(hop.files.clone().stat(request).await?.into_inner())
}

async fn list(hop: &Hop, path: &str, depth: u32, page_size: u32) -> Vec<v1::FileInfo> {
    let (mut entries, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest {
            session_id: hop.session.clone(),
            path: path.into(),
            depth,
            page_size,
            page_token,
            no_links: false,
        };
        let page = hop.files.clone().list(request).await.expect("it can be listed").into_inner();
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return entries;
        }
    }
}

pub async fn what_is_written_is_read(hop: &Hop) {
    let info = write(hop, "a.txt", b"first").await.expect("it can be written");
    assert_eq!((info.size, info.r#type()), (5, v1::FileType::File));
    assert_eq!(read(hop, "a.txt").await.unwrap(), b"first");
    write(hop, "/workspace/a.txt", b"second, longer").await.expect("it can be replaced");
    assert_eq!(read(hop, "a.txt").await.unwrap(), b"second, longer");
    assert_eq!(read_range(hop, "a.txt", 8, 3).await.unwrap(), b"lon");
    assert_eq!(read_range(hop, "a.txt", 14, 0).await.unwrap(), b"");
    assert_eq!(stat(hop, "a.txt").await.unwrap().size, 14);
    write(hop, "empty", b"").await.expect("an empty file");
    assert_eq!(read(hop, "empty").await.unwrap(), b"");
    let error = read(hop, "none").await.expect_err("no such file");
    assert_eq!((error.code(), reason_of(&error)), (Code::NotFound, Some(Reason::FileNotFound)));
    assert!(error.message().contains("none"), "{error:?}");
}

pub async fn large_files_go_both_ways(hop: &Hop) {
    let bytes: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    write(hop, "big", &bytes).await.expect("it can be written");
    assert!(read(hop, "big").await.unwrap() == bytes, "it came back changed");
    let sum = hop.run(shell("sha256sum < big | cut -c1-64; sha256sum big | cut -c1-64")).await;
    let lines: Vec<&str> = sum.ok().lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(hop.run(shell("stat -c %s big")).await.ok(), "9000001");
}

pub async fn a_broken_upload_leaves_the_file_as_it_was(hop: &Hop) {
    write(hop, "kept", b"whole").await.expect("it can be written");
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(header(hop, "kept")).await.unwrap();
    sender.send(data(b"half of")).await.unwrap();
    let mut files = hop.files.clone();
    let upload = berth_proto::spawn::spawn("upload", async move {
        let _ = files.write(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    });
    // The first bytes are on their way; then the client is gone.
    berth_tests::until(DEADLINE, "the upload to be taken", async || (sender.capacity() == 4).then_some(()))
        .await;
    upload.abort();
    assert!(upload.await.expect_err("it was aborted").is_cancelled());
    assert_eq!(read(hop, "kept").await.unwrap(), b"whole");
    berth_tests::until(DEADLINE, "the temporary file to go", async || {
        let names: Vec<String> = list(hop, ".", 1, 0).await.into_iter().map(|e| e.path).collect();
        (names == ["kept"]).then_some(())
    })
    .await;
}

pub async fn bad_paths_are_refused(hop: &Hop) {
    for path in ["", "a\0b", &"x".repeat(5000), &"y".repeat(256)] {
        let error = read(hop, path).await.expect_err("no kernel takes it");
        assert_eq!(error.code(), Code::InvalidArgument, "{:?}: {error:?}", &path[..path.len().min(10)]);
        let error = write(hop, path, b"x").await.expect_err("no kernel takes it");
        assert_eq!(error.code(), Code::InvalidArgument, "{error:?}");
    }
    let error = hop.files.clone().write(tokio_stream::iter([header(hop, "f"), data(b"x")])).await;
    let error = error.expect_err("an upload without its end is not complete");
    assert_eq!((error.code(), reason_of(&error)), (Code::Aborted, Some(Reason::UploadBroken)));
    let error = hop
        .files
        .clone()
        .write(tokio_stream::iter([data(b"no header")]))
        .await
        .expect_err("the header must come first");
    assert_eq!(error.code(), Code::InvalidArgument);
}

pub async fn the_kernel_decides_as_the_tasks_user(hop: &Hop) {
    let denied = write(hop, "/etc/x", b"x").await.expect_err("the root is read-only");
    assert_eq!((denied.code(), reason_of(&denied)), (Code::PermissionDenied, Some(Reason::FileDenied)));
    let denied = read(hop, "/.berth/config.json").await.expect_err("it is the agent's");
    assert_eq!(denied.code(), Code::PermissionDenied);
    write(hop, "mine", b"x").await.unwrap();
    let ids = hop.run(shell("id -u; stat -c %u mine")).await;
    let lines: Vec<&str> = ids.ok().lines().collect();
    assert_eq!(lines[0], lines[1], "a file belongs to who writes it");
    // Links resolve inside, as for a task.
    let planted = "ln -s /etc/passwd l; ln -s / d; ln -s /proc/self/root r; mkfifo f; ln -s /proc/1/root m";
    hop.run(shell(planted)).await.ok();
    let inside = hop.run(argv(&["cat", "/etc/passwd"])).await.stdout;
    assert_eq!(read(hop, "l").await.unwrap(), inside);
    assert_eq!(read(hop, "d/etc/passwd").await.unwrap(), inside);
    assert_eq!(read(hop, "../etc/passwd").await.unwrap(), inside);
    for magic in ["r/etc/passwd", "m/etc/passwd"] {
        match read(hop, magic).await {
            Ok(bytes) => assert_eq!(bytes, inside, "{magic}"),
            Err(error) => assert_eq!(error.code(), Code::PermissionDenied, "{magic}: {error:?}"),
        }
    }
    let error = tokio::time::timeout(DEADLINE / 6, read(hop, "f")).await.expect("a pipe blocks nobody");
    assert_eq!(reason_of(&error.expect_err("a pipe is no file")), Some(Reason::FileKind));
    let error = read(hop, ".").await.expect_err("a directory is no file");
    assert_eq!(reason_of(&error), Some(Reason::FileKind));
}

/// Red when `no_links` is not passed on, or goes by the path's last part alone.
pub async fn a_path_through_a_link_is_refused_where_that_is_asked(hop: &Hop) {
    hop.run(shell("mkdir -p d/e; echo x > d/e/f; ln -s d/e l; ln -s f d/e/g; ln -s /etc below")).await.ok();
    let read = async |path: &str, no_links| {
        let (session_id, path) = (hop.session.clone(), path.into());
        let request = v1::ReadRequest { session_id, path, no_links, ..Default::default() };
        let mut stream = hop.files.clone().read(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    let list = async |path: &str, no_links| {
        let (session_id, path) = (hop.session.clone(), path.into());
        let request = v1::ListRequest { session_id, path, depth: 9, no_links, ..Default::default() };
        Ok::<_, Status>(hop.files.clone().list(request).await?.into_inner().entries.len())
    };
    for path in ["d/e/f", "/workspace/d/e/f"] {
        read(path, true).await.expect("no link leads there");
    }
    for path in ["l/f", "d/e/g", "below/passwd", "/workspace/l/f"] {
        read(path, false).await.expect(path);
        let refused = reason_of(&read(path, true).await.expect_err(path)).expect("a reason");
        assert!([Reason::FileDenied, Reason::FileKind].contains(&refused), "{path}: {refused:?}");
    }
    // Links in it are told, and not followed.
    assert_eq!(list("/workspace/d", true).await.expect("it is none"), 3);
    for path in ["l", "below", "l/../e"] {
        list(path, false).await.expect(path);
        assert_eq!(reason_of(&list(path, true).await.expect_err(path)), Some(Reason::FileDenied), "{path}");
    }
}

pub async fn trees_are_listed_moved_and_removed(hop: &Hop) {
    let mut files = hop.files.clone();
    let session_id = hop.session.clone();
    let make = |path: &str, parents| v1::MakeDirRequest {
        session_id: hop.session.clone(),
        path: path.into(),
        parents,
        mode: None,
    };
    files.make_dir(make("t/u/v", true)).await.expect("parents are made");
    let error = files.make_dir(make("t", false)).await.expect_err("it is there");
    assert_eq!((error.code(), reason_of(&error)), (Code::AlreadyExists, Some(Reason::FileExists)));
    for name in ["t/b", "t/a", "t/u/c"] {
        write(hop, name, b"x").await.unwrap();
    }
    let names = |entries: Vec<v1::FileInfo>| entries.into_iter().map(|e| e.path).collect::<Vec<_>>();
    assert_eq!(names(list(hop, "t", 1, 2).await), ["a", "b", "u"]);
    assert_eq!(names(list(hop, "t", 9, 2).await), ["a", "b", "u", "u/c", "u/v"]);
    let go = |source: &str, destination: &str, overwrite| v1::MoveRequest {
        session_id: session_id.clone(),
        source: source.into(),
        destination: destination.into(),
        overwrite,
    };
    let error = files.r#move(go("t/a", "t/b", false)).await.expect_err("something is there");
    assert_eq!(error.code(), Code::AlreadyExists);
    files.r#move(go("t/a", "t/b", true)).await.expect("asked for");
    files.r#move(go("t/b", "w", false)).await.expect("a new name");
    let remove = |path: &str, recursive| v1::RemoveRequest {
        session_id: session_id.clone(),
        path: path.into(),
        recursive,
    };
    let error = files.remove(remove("t", false)).await.expect_err("it is not empty");
    assert_eq!(reason_of(&error), Some(Reason::DirectoryNotEmpty));
    files.remove(remove("t", true)).await.expect("asked for");
    assert_eq!(names(list(hop, ".", 1, 0).await), ["w"]);
    let error = files.remove(remove("t", true)).await.expect_err("it is gone");
    assert_eq!(error.code(), Code::NotFound);
}
