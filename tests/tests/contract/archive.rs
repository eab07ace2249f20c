//! Archives out of a session and into it, as any hop must serve them.

use std::collections::BTreeMap;

use berth_files::tar::{self, Entry, Event, Kind, Reader};
use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, pack_response::Part},
};
use tonic::{Code, Status};

use crate::{
    files::{put, read, stat},
    hop::{DEADLINE, Hop, shell},
};

fn request(hop: &Hop, path: &str) -> v1::PackRequest {
    v1::PackRequest { session_id: hop.session.clone(), path: path.into(), ..Default::default() }
}

async fn pack(hop: &Hop, request: v1::PackRequest) -> Result<(Vec<u8>, v1::PackEnd), Status> {
    let mut stream = hop.files.clone().pack(request).await?.into_inner();
    let mut archive = Vec::new();
    loop {
        let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("a part in time")?;
        match message.expect("it ends with its end").part.expect("a part") {
            Part::Data(data) => archive.extend_from_slice(&data),
            Part::End(end) => {
                assert!(stream.message().await?.is_none(), "that is the last");
                return Ok((archive, end));
            }
        }
    }
}

fn unpacked(archive: &[u8]) -> BTreeMap<String, (Entry, Vec<u8>)> {
    let (mut reader, mut rest, mut all) = (Reader::default(), archive, BTreeMap::new());
    let mut last = String::new();
    while let Some(event) = reader.next(&mut rest).expect("it is an archive") {
        match event {
            Event::Entry(entry) => {
                last = String::from_utf8_lossy(&entry.path).into_owned();
                all.insert(last.clone(), (entry, Vec::new()));
            }
            Event::Data(data) => all.get_mut(&last).expect("an entry").1.extend_from_slice(data),
        }
    }
    reader.finish().expect("it is whole");
    all
}

fn header(hop: &Hop, path: &str) -> v1::UnpackRequest {
    let session_id = hop.session.clone();
    v1::UnpackRequest::header(v1::UnpackHeader { session_id, path: path.into(), make_parents: true })
}

async fn unpack(hop: &Hop, path: &str, archive: &[u8]) -> Result<v1::UnpackResponse, Status> {
    let mut parts = vec![header(hop, path)];
    // In pieces that fit nowhere.
    parts.extend(archive.chunks(100_001).map(|data| v1::UnpackRequest::data(data.to_vec())));
    parts.push(v1::UnpackRequest::end());
    let mut files = hop.files.clone();
    let call = tokio::time::timeout(DEADLINE, files.unpack(tokio_stream::iter(parts)));
    Ok(call.await.expect("an answer in time")?.into_inner())
}

fn entry(path: &str, kind: Kind, target: &str) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (1_000_000_000, 0),
        size: 0,
        target: target.into(),
    }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (entry, content) in entries {
        archive.extend(tar::header(&Entry { size: content.len() as u64, ..entry.clone() }));
        archive.extend_from_slice(content);
        archive.resize(archive.len() + tar::padding(content.len() as u64), 0);
    }
    archive.extend_from_slice(&tar::END);
    archive
}

pub async fn a_directory_goes_out_and_in(hop: &Hop) {
    let long = format!("d/{}/f", "x".repeat(150));
    for (path, content) in [
        ("d/a", &b"one"[..]),
        ("d/b/c", &[7; 100_000]),
        (&long, b"long"),
        ("d/.git/x", b"no"),
        ("d/empty", b""),
    ] {
        put(hop, path, content).await;
    }
    let wanted =
        v1::PackRequest { prefix: "top/p".into(), exclude: vec![".git".into()], ..request(hop, "d") };
    let (bytes, end) = pack(hop, wanted).await.expect("it is packed");
    let all = unpacked(&bytes);
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    let long = format!("top/p/{}", &long[2..]);
    assert_eq!(
        names,
        ["top/p", "top/p/a", "top/p/b", "top/p/b/c", "top/p/empty", &long[..long.len() - 2], &long]
    );
    assert_eq!((&all["top/p/a"].1[..], all["top/p/b/c"].1.len()), (&b"one"[..], 100_000));
    assert_eq!((end.files, end.directories, end.bytes, end.skipped), (4, 3, 100_007, 0));
    let done = unpack(hop, "new/place", &bytes).await.expect("it is unpacked");
    assert_eq!((done.files, done.directories, done.bytes), (4, 3, 100_007));
    assert_eq!(read(hop, "new/place/top/p/b/c").await.unwrap(), [7; 100_000]);
    // Without a prefix names are as below it; and over what is there.
    let (bytes, _) = pack(hop, request(hop, "d/b")).await.unwrap();
    assert_eq!(unpacked(&bytes).keys().collect::<Vec<_>>(), ["c"]);
    put(hop, "new/place/c", b"older").await;
    put(hop, "new/place/stays", b"x").await;
    unpack(hop, "new/place", &bytes).await.unwrap();
    assert_eq!(read(hop, "new/place/c").await.unwrap(), [7; 100_000]);
    assert_eq!(read(hop, "new/place/stays").await.unwrap(), b"x");
    // A file alone.
    let (bytes, _) = pack(hop, request(hop, "d/a")).await.unwrap();
    assert_eq!(unpacked(&bytes)["a"].1, b"one");
    let missing = pack(hop, request(hop, "nowhere")).await.expect_err("it is not there");
    assert_eq!(reason_of(&missing), Some(Reason::FileNotFound));
    for prefix in ["../x", "/x", "a//b"] {
        let refused = pack(hop, v1::PackRequest { prefix: prefix.into(), ..request(hop, "d") }).await;
        // (A fake sandbox names no files of anybody's.)
        assert!(refused.is_err() || hop.backend == "fake", "{prefix}");
    }
}

/// Red when an archive that was cut off looks finished.
pub async fn what_is_no_archive_is_refused(hop: &Hop) {
    let good = archive(&[(entry("a", Kind::File, ""), b"one")]);
    let first = archive(&[(entry("first", Kind::File, ""), b"1")]);
    let first = &first[..1024];
    let after = |rest: Vec<u8>| [first, &rest].concat();
    let device = {
        let mut bytes = good.clone();
        bytes[156] = b'3';
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    for (what, bytes, says) in [
        ("text", vec![b'x'; 2000], "no tar archive"),
        ("gzip", [&b"\x1f\x8b\x08\0"[..], &[1; 1000]].concat(), "gzip"),
        ("nothing", Vec::new(), "ends before its end"),
        ("half", good[..700].to_vec(), "ends before its end"),
        ("absolute", after(archive(&[(entry("/tmp/out", Kind::File, ""), b"x")])), "absolute"),
        ("up", after(archive(&[(entry("a/../../out", Kind::File, ""), b"x")])), ".."),
        ("hard link", after(archive(&[(entry("l", Kind::HardLink, "/etc/passwd"), b"")])), "leads elsewhere"),
        ("device", after(device), "device"),
    ] {
        let refused = unpack(hop, "u", &bytes).await.expect_err(what);
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::InvalidArgument, Some(Reason::InvalidField)),
            "{what}"
        );
        assert!(refused.message().contains(says), "{what}: {refused:?}");
        if bytes.starts_with(first) {
            // What came before is there, and it is said how much.
            assert_eq!(read(hop, "u/first").await.unwrap(), b"1", "{what}");
            if hop.backend != "fake" {
                assert_eq!(detail_of(&refused, "files").as_deref(), Some("1"), "{refused:?}");
                assert!(detail_of(&refused, "hint").unwrap().contains("1 files"), "{refused:?}");
            }
        }
    }
    for (parts, code) in [
        (vec![header(hop, "u"), v1::UnpackRequest::data(good.clone())], Code::Aborted),
        (vec![v1::UnpackRequest::data(good.clone())], Code::InvalidArgument),
        (vec![header(hop, "u"), header(hop, "u")], Code::InvalidArgument),
    ] {
        let refused = hop.files.clone().unpack(tokio_stream::iter(parts)).await.expect_err("it is refused");
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let unknown =
        v1::UnpackHeader { session_id: berth_proto::SessionId::new().to_string(), ..Default::default() };
    let parts = [v1::UnpackRequest::header(unknown), v1::UnpackRequest::end()];
    let refused = hop.files.clone().unpack(tokio_stream::iter(parts)).await.expect_err("there is none");
    assert_eq!(refused.code(), Code::NotFound);
    put(hop, "plain", b"x").await;
    let refused = unpack(hop, "plain", &good).await.expect_err("it is no directory");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
}

/// Red when an entry is made by its path, through whatever links are on the way.
pub async fn an_archive_leads_nowhere_else(hop: &Hop) {
    hop.run(shell(
        "mkdir -p out in/sub; echo canary > out/canary; ln -s ../out in/there; ln -s ../out/canary in/link",
    ))
    .await
    .ok();
    for (what, entries) in [
        ("a link that is there", vec![(entry("there/canary", Kind::File, ""), &b"owned"[..])]),
        (
            "a link of its own",
            vec![
                (entry("l", Kind::Symlink, "/workspace/out"), b""),
                (entry("l/canary", Kind::File, ""), b"owned"),
            ],
        ),
        (
            "a directory through it",
            vec![(entry("l2", Kind::Symlink, "../out"), b""), (entry("l2", Kind::Directory, ""), b"")],
        ),
        (
            "a link to the root",
            vec![(entry("r", Kind::Symlink, "/"), b""), (entry("r/tmp/owned", Kind::File, ""), b"x")],
        ),
        ("a second name through it", vec![(entry("there/new", Kind::HardLink, "sub"), b"")]),
    ] {
        let refused = unpack(hop, "in", &archive(&entries)).await.expect_err(what);
        assert!(
            matches!(refused.code(), Code::PermissionDenied | Code::FailedPrecondition),
            "{what}: {refused:?}"
        );
    }
    // A file replaces a link, and does not go through it; set-uid bits are left out.
    let replaced = Entry { mode: 0o4755, ..entry("link", Kind::File, "") };
    unpack(hop, "in", &archive(&[(replaced, b"new")])).await.expect("it is replaced");
    let seen = hop.run(shell("cat out/canary in/link; stat -c %a in/link; ls out; [ -e /tmp/owned ] || echo none; ls -A in | grep -c berth")).await;
    assert_eq!(seen.text(), "canary\nnew755\ncanary\nnone\n0", "{seen:?}");
    // Neither does a directory become a file, nor a file a directory.
    for (path, kind) in [("sub", Kind::File), ("link", Kind::Directory)] {
        let refused = unpack(hop, "in", &archive(&[(entry(path, kind, ""), b"")])).await.expect_err(path);
        assert_eq!(reason_of(&refused), Some(Reason::FileKind), "{refused:?}");
    }
}

/// Red when a pipe is waited for, or a link followed.
pub async fn links_and_modes_come_along(hop: &Hop) {
    let line = "mkdir -p m/ro && cd m && echo 1 > f && ln f again && ln -s ../nowhere link && ln -s / root && chmod 751 f && mkfifo pipe \
        && echo 2 > closed && chmod 0 closed && echo 3 > ro/in && touch -d @1000000000 f ro && chmod 555 ro && truncate -s 3M holes";
    hop.run(shell(line)).await.ok();
    let (bytes, end) = pack(hop, request(hop, "m")).await.expect("it is packed");
    assert_eq!((end.files, end.directories, end.links), (3, 1, 3), "{end:?}");
    assert_eq!((end.skipped, &end.skipped_paths[..]), (2, &["closed".to_owned(), "pipe".to_owned()][..]));
    assert_eq!(unpacked(&bytes)["root"].0.target, b"/");
    unpack(hop, "n", &bytes).await.expect("it is unpacked");
    let same = "cd n && readlink link root && stat -c '%a %Y %h' f ro && [ f -ef again ] && cat ro/in && stat -c '%s %b' holes";
    assert_eq!(
        hop.run(shell(same)).await.ok(),
        "../nowhere\n/\n751 1000000000 2\n555 1000000000 2\n3\n3145728 0"
    );
    let info = stat(hop, "n/f").await.unwrap();
    assert_eq!(info.mode, 0o751);
    let large = v1::PackRequest { max_bytes: 1 << 20, ..request(hop, "m") };
    assert_eq!(reason_of(&pack(hop, large).await.expect_err("it is too much")), Some(Reason::DiskFull));
}

pub async fn large_archives_go_both_ways(hop: &Hop) {
    let line = "mkdir big && head -c 20000000 /dev/urandom > big/one && mkdir big/many && cd big/many && seq 3000 | split -l 1 -a 4 && cd ../.. && cat big/one big/many/* | sha256sum";
    let sum = hop.run(shell(line)).await.ok().to_owned();
    let (bytes, end) = pack(hop, request(hop, "big")).await.expect("it is packed");
    assert_eq!((end.files, end.directories), (3001, 1));
    let done = unpack(hop, "other", &bytes).await.expect("it is unpacked");
    assert_eq!((done.files, done.bytes), (3001, end.bytes));
    assert_eq!(hop.run(shell("cat other/one other/many/* | sha256sum")).await.ok(), sum);
    // One that nobody reads holds up nobody, and goes with its caller.
    let unread = hop.files.clone().pack(request(hop, "big")).await.expect("it begins");
    put(hop, "meanwhile", b"x").await;
    drop(unread);
}
