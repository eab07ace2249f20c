//! Directories that are watched, as any hop must serve them. Each step waits until what it does was told, so no test
//! depends on how fast anything is.

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, ChangeKind, watch_event::Event},
};
use tonic::{Code, Status, Streaming};

use crate::hop::{DEADLINE, Hop, argv, shell};

/// A stream of changes that is ready.
struct Watch {
    stream: Streaming<v1::WatchEvent>,
}

fn request(hop: &Hop, path: &str, recursive: bool) -> v1::WatchRequest {
    v1::WatchRequest {
        session_id: hop.session.clone(),
        path: path.into(),
        recursive,
        ..v1::WatchRequest::default()
    }
}

impl Watch {
    async fn begin(hop: &Hop, request: v1::WatchRequest) -> Result<Self, Status> {
        let mut files = hop.files.clone();
        let call = tokio::time::timeout(DEADLINE, files.watch(request));
        let mut watch = Self { stream: call.await.expect("an answer in time")?.into_inner() };
        assert!(matches!(watch.event().await?, Some(Event::Ready(_))), "it begins with that");
        Ok(watch)
    }

    async fn of(hop: &Hop, path: &str, recursive: bool) -> Self {
        Self::begin(hop, request(hop, path, recursive)).await.expect("it can be watched")
    }

    /// The next but a keepalive. `None`: the stream is over.
    async fn event(&mut self) -> Result<Option<Event>, Status> {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.stream.message()).await;
            match message.expect("an event in time")? {
                None => return Ok(None),
                Some(message) => match message.event.expect("an event has a kind") {
                    Event::Keepalive(_) => {}
                    event => return Ok(Some(event)),
                },
            }
        }
    }

    async fn change(&mut self) -> v1::FileChange {
        match self.event().await.expect("it goes on") {
            Some(Event::Change(change)) => change,
            other => panic!("no change: {other:?}"),
        }
    }

    /// All until this one, which is the last of them.
    async fn until(&mut self, kind: ChangeKind, path: &str) -> Vec<(ChangeKind, String, String)> {
        let mut all = Vec::new();
        loop {
            let change = self.change().await;
            let told = (change.kind(), change.path, change.new_path);
            // Several writes are told as one, or not.
            if told.0 != ChangeKind::Written || all.last() != Some(&told) {
                all.push(told.clone());
            }
            if (told.0, told.1.as_str()) == (kind, path) {
                return all;
            }
        }
    }

    async fn ends(mut self) {
        loop {
            match self.event().await.expect("no error") {
                Some(Event::Ended(_)) => break,
                Some(Event::Change(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(self.event().await, Ok(None)), "nothing comes after the end");
    }
}

async fn sh(hop: &Hop, line: &str) {
    hop.run(shell(line)).await.ok();
}

pub async fn what_happens_in_a_directory_is_told_in_order(hop: &Hop) {
    use ChangeKind::{Chmod, Created, Removed, Renamed, Written};
    sh(hop, "mkdir d; echo > elsewhere; echo > d/old").await;
    let mut watch = Watch::of(hop, "d", false).await;
    sh(
        hop,
        "cd d; printf x > a; chmod 600 a; mv a b; mkdir s; echo > s/inner; rm b; mv ../elsewhere in; mv in ../out; \
         mv old s/old; echo > end",
    )
    .await;
    let told = watch.until(Created, "end").await;
    let expected = [
        (Created, "a", ""),
        (Written, "a", ""),
        (Chmod, "a", ""),
        (Renamed, "a", "b"),
        (Created, "s", ""),
        (Removed, "b", ""),
        (Created, "in", ""),
        (Renamed, "in", ""),
        (Renamed, "old", ""),
        (Created, "end", ""),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(kind, path, new)| (kind, path.to_owned(), new.to_owned())).collect();
    assert_eq!(told, expected);
    // An upload is told as the file that it becomes, and what it was before as nothing.
    let header = v1::WriteHeader {
        session_id: hop.session.clone(),
        path: "d/uploaded".into(),
        ..v1::WriteHeader::default()
    };
    let parts =
        [v1::WriteRequest::header(header), v1::WriteRequest::data(&b"four"[..]), v1::WriteRequest::end()];
    let mut with = Watch::begin(hop, v1::WatchRequest { include_entry: true, ..request(hop, "d", false) })
        .await
        .expect("it can be watched twice");
    hop.files.clone().write(tokio_stream::iter(parts)).await.expect("it can be written");
    let told = watch.until(Written, "uploaded").await;
    let named: Vec<&str> = told.iter().map(|(_, path, _)| path.as_str()).collect();
    assert!(named.iter().all(|path| ["end", "uploaded"].contains(path)), "{told:?}");
    // What was on its way to the first stream when this one began may be told here too.
    let change = loop {
        let change = with.change().await;
        if change.path != "end" {
            break change;
        }
    };
    assert_eq!((change.kind(), change.path.as_str()), (Created, "uploaded"));
    let entry = change.entry.expect("it is there");
    assert_eq!((entry.path.as_str(), entry.size, entry.r#type()), ("uploaded", 4, v1::FileType::File));
}

pub async fn directories_are_followed_wherever_they_go(hop: &Hop) {
    use ChangeKind::{Created, Removed, Renamed};
    sh(hop, "mkdir -p top/was/there away").await;
    let mut watch = Watch::of(hop, "top", true).await;
    let mut flat = Watch::of(hop, "top", false).await;
    sh(hop, "echo > top/was/there/x").await;
    watch.until(Created, "was/there/x").await;
    // Made at once: what was in a directory before it was watched is told too.
    sh(hop, "mkdir -p top/a/b/c; echo > top/a/b/c/f").await;
    watch.until(Created, "a/b/c/f").await;
    sh(hop, "mv top/a top/z").await;
    let told = watch.until(Renamed, "a").await;
    assert_eq!(told.last().map(|(_, _, new)| new.as_str()), Some("z"));
    sh(hop, "echo > top/z/b/c/g").await;
    watch.until(Created, "z/b/c/g").await;
    // Out of it: that is none of its business any more. And in: all that it brings.
    sh(hop, "mv top/z away/z; echo > away/z/b/unseen; mv away/z top/back; echo > top/back/b/seen").await;
    let told = watch.until(Created, "back/b/seen").await;
    assert!(told.contains(&(Renamed, "z".into(), String::new())), "{told:?}");
    assert!(!told.iter().any(|(_, path, _)| path == "z/b/unseen"), "{told:?}");
    sh(hop, "rm -r top/back; mkdir -p top/back/b; echo > top/back/b/again").await;
    let told = watch.until(Created, "back/b/again").await;
    assert!(told.contains(&(Removed, "back".into(), String::new())), "{told:?}");
    // A link is a name like any other: what it leads to is not watched.
    sh(hop, "ln -s ../away top/link; echo > away/hidden; echo > top/last").await;
    let told = watch.until(Created, "last").await;
    assert!(!told.iter().any(|(_, path, _)| path.contains("hidden")), "{told:?}");
    let told = flat.until(Created, "last").await;
    assert!(told.iter().all(|(_, path, _)| !path.contains('/')), "{told:?}");
}

pub async fn a_watch_ends_with_its_directory(hop: &Hop) {
    for (name, end) in [
        ("removed", "rmdir removed; mkdir removed; echo > removed/new"),
        // Somebody stands in it: the kernel keeps it for that one, and says nothing.
        ("held", "cd held; rmdir ../held; exec sleep 1000"),
        ("moved", "mv moved elsewhere"),
        ("above/it", "mv above below"),
    ] {
        sh(hop, &format!("mkdir -p {name}")).await;
        let watch = Watch::of(hop, name, true).await;
        let task = hop.start_task(shell(end)).await;
        watch.ends().await;
        if name == "held" {
            let request = v1::CancelTaskRequest {
                session_id: hop.session.clone(),
                task_id: task.id,
                ..v1::CancelTaskRequest::default()
            };
            hop.tasks.clone().cancel_task(request).await.expect("it can be cancelled");
        } else {
            hop.done(&task.id).await;
        }
    }
}

/// Names faster than anybody reads them, until it is killed.
const FLOOD: &str = "
import os
n = 0
while True:
    name = 'flood/%0200d' % n
    os.close(os.open(name, os.O_CREAT))
    os.unlink(name)
    n += 1
";

pub async fn what_is_too_much_is_told(hop: &Hop) {
    sh(hop, "mkdir flood").await;
    let mut watch = Watch::of(hop, "flood", true).await;
    let flood = hop.start_task(argv(&["python3", "-c", FLOOD])).await;
    loop {
        match watch.event().await.expect("it goes on") {
            Some(Event::Overflow(overflow)) => break assert!(!overflow.unwatched),
            Some(Event::Change(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let request = v1::CancelTaskRequest {
        session_id: hop.session.clone(),
        task_id: flood.id,
        ..v1::CancelTaskRequest::default()
    };
    hop.tasks.clone().cancel_task(request).await.expect("it can be cancelled");
    // And it goes on: what is made after the last overflow was told is told.
    let mut tries = 0;
    sh(hop, "mkdir -p flood/deep; echo > flood/deep/0").await;
    loop {
        match watch.event().await.expect("it goes on") {
            Some(Event::Overflow(_)) => {
                tries += 1;
                sh(hop, &format!("echo > flood/deep/{tries}")).await;
            }
            Some(Event::Change(change)) if change.path == format!("deep/{tries}") => break,
            Some(Event::Change(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub async fn so_many_directories_and_streams_and_no_more(hop: &Hop) {
    let many = "import os\nfor n in range(4200): os.mkdir('%s/%d' % (os.environ['AT'], n))";
    let make = |at: &str| v1::TaskSpec {
        env: [("AT".to_owned(), at.to_owned())].into(),
        ..argv(&["python3", "-c", many])
    };
    sh(hop, "mkdir full grows").await;
    hop.run(make("full")).await.ok();
    let error = Watch::begin(hop, request(hop, "full", true)).await.err().expect("too many");
    assert_eq!(
        (error.code(), reason_of(&error)),
        (Code::ResourceExhausted, Some(Reason::TooManyWatches)),
        "{error:?}"
    );
    assert!(error.message().contains("4096"), "{error:?}");
    let mut watch = Watch::of(hop, "grows", true).await;
    hop.run(make("grows")).await.ok();
    loop {
        match watch.event().await.expect("it goes on") {
            Some(Event::Overflow(overflow)) if overflow.unwatched => break,
            Some(Event::Overflow(_) | Event::Change(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(watch);
    // What a stream had is given back with it.
    sh(hop, "rm -r full grows; mkdir small").await;
    let mut open = Vec::new();
    let refused = berth_tests::until(DEADLINE, "a refusal", async || {
        match Watch::begin(hop, request(hop, "small", true)).await {
            Ok(watch) => {
                open.push(watch);
                assert!(open.len() <= 16, "one more than may be");
                None
            }
            Err(error) => Some(error),
        }
    })
    .await;
    assert_eq!(reason_of(&refused), Some(Reason::TooManyWatches), "{refused:?}");
    assert!(detail_of(&refused, "hint").is_some_and(|hint| hint.contains("end watches")), "{refused:?}");
    drop(open);
    berth_tests::until(DEADLINE, "a place that is given back", async || {
        Watch::begin(hop, request(hop, "small", false)).await.ok().map(drop)
    })
    .await;
}

pub async fn what_can_not_be_watched_is_refused(hop: &Hop) {
    sh(hop, "echo > file; mkdir -m 0 closed; ln -s /proc/self/root magic; ln -s nowhere dangling").await;
    for (path, code, reason) in [
        ("none", Code::NotFound, Reason::FileNotFound),
        ("dangling", Code::NotFound, Reason::FileNotFound),
        ("file", Code::FailedPrecondition, Reason::FileKind),
        ("closed", Code::PermissionDenied, Reason::FileDenied),
        ("magic", Code::PermissionDenied, Reason::FileDenied),
        ("/proc/1", Code::PermissionDenied, Reason::FileDenied),
    ] {
        let error = Watch::begin(hop, request(hop, path, true)).await.err().expect(path);
        assert_eq!((error.code(), reason_of(&error)), (code, Some(reason)), "{path}: {error:?}");
    }
    sh(hop, "chmod 700 closed").await;
    let error = Watch::begin(hop, request(hop, "a\0b", false)).await.err().expect("no path");
    assert_eq!(error.code(), Code::InvalidArgument);
    let unknown = v1::WatchRequest {
        session_id: "00000000-0000-7000-8000-000000000000".into(),
        ..request(hop, ".", false)
    };
    let error = Watch::begin(hop, unknown).await.err().expect("no session");
    assert_eq!(reason_of(&error), Some(Reason::SessionNotFound));
}

pub async fn a_fake_sandbox_can_not_be_watched(hop: &Hop) {
    let error = Watch::begin(hop, request(hop, ".", true)).await.err().expect("it has no kernel");
    assert_eq!((error.code(), reason_of(&error)), (Code::Unimplemented, Some(Reason::Unsupported)));
    assert!(detail_of(&error, "hint").is_some_and(|hint| hint.contains("native")), "{error:?}");
}
