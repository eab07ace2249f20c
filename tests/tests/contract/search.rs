//! Searches, as any hop must serve them.

use berth_proto::{
    error::{Reason, detail_of, reason_of},
    v1::{self, SearchLimit, search_event::Event},
};
use tonic::{Code, Status, Streaming};

use crate::{
    files::put,
    hop::{DEADLINE, Hop, seconds, shell},
};

fn request(hop: &Hop, path: &str, pattern: &str) -> v1::SearchRequest {
    v1::SearchRequest {
        session_id: hop.session.clone(),
        path: path.into(),
        pattern: pattern.into(),
        ..Default::default()
    }
}

async fn begin(hop: &Hop, request: v1::SearchRequest) -> Result<Streaming<v1::SearchEvent>, Status> {
    let mut files = hop.files.clone();
    let call = tokio::time::timeout(DEADLINE, files.search(request));
    Ok(call.await.expect("an answer in time")?.into_inner())
}

/// All that it finds.
async fn search(
    hop: &Hop,
    request: v1::SearchRequest,
) -> Result<(Vec<v1::SearchMatch>, v1::SearchEnd), Status> {
    let mut stream = begin(hop, request).await?;
    let mut found = Vec::new();
    loop {
        let message =
            tokio::time::timeout(DEADLINE * 2, stream.message()).await.expect("an event in time")?;
        match message.expect("it ends with its end").event.expect("an event has a kind") {
            Event::Match(one) => found.push(one),
            Event::Keepalive(_) => {}
            Event::End(end) => {
                assert!(stream.message().await?.is_none(), "that is the last");
                return Ok((found, end));
            }
        }
    }
}

/// Where it is found.
async fn places(hop: &Hop, request: v1::SearchRequest) -> Vec<String> {
    let (found, _) = search(hop, request).await.expect("it is searched");
    found.iter().map(|one| format!("{}:{}", one.path, one.line)).collect()
}

async fn make(hop: &Hop) {
    for (path, content) in [
        ("s/src/x.rs", &b"a\nNeedle 1\nb\n"[..]),
        ("s/src/deep/y.py", b"needle 2\n"),
        ("s/.git/z", b"needle 3\n"),
        ("s/bin", b"needle\0"),
        ("s/large", &b"needle\n".repeat(1000)),
        ("s/literal", b"a.c\nabc\n"),
    ] {
        put(hop, path, content).await;
    }
}

pub async fn lines_are_found_with_their_context(hop: &Hop) {
    make(hop).await;
    let of = |pattern: &str| v1::SearchRequest { max_file_bytes: 1000, ..request(hop, "s", pattern) };
    let ignoring = v1::SearchRequest { ignore_case: true, ..of(r"needle \d") };
    assert_eq!(places(hop, ignoring.clone()).await, [".git/z:1", "src/deep/y.py:1", "src/x.rs:2"]);
    let (found, end) = search(hop, v1::SearchRequest { context: 2, ..of("Needle") }).await.unwrap();
    let [one] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (&one.text[..], &one.before[..], &one.after[..]),
        ("Needle 1", &["a".to_owned()][..], &["b".to_owned()][..])
    );
    assert_eq!((end.files_searched, end.files_skipped, end.limit()), (4, 2, SearchLimit::Unspecified));
    let globs = |globs: &[&str], exclude: &[&str]| {
        let list = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect();
        v1::SearchRequest { globs: list(globs), exclude: list(exclude), ..ignoring.clone() }
    };
    assert_eq!(places(hop, globs(&["*.rs", "*.py"], &[])).await, ["src/deep/y.py:1", "src/x.rs:2"]);
    assert_eq!(places(hop, globs(&[], &[".git", "deep"])).await, ["src/x.rs:2"]);
    assert_eq!(places(hop, globs(&["src/**"], &["*.py"])).await, ["src/x.rs:2"]);
    let literal = v1::SearchRequest { literal: true, ..of("a.c") };
    assert_eq!(
        (places(hop, literal).await, places(hop, of("a.c")).await.len()),
        (vec!["literal:1".to_owned()], 2)
    );
    // A file alone has the path that it was asked for by.
    assert_eq!(places(hop, request(hop, "s/src/x.rs", "b")).await, ["s/src/x.rs:3"]);
    let (found, end) =
        search(hop, v1::SearchRequest { max_matches: 7, ..request(hop, "s", "needle") }).await.unwrap();
    assert_eq!((found.len(), end.limit()), (7, SearchLimit::Matches));
}

pub async fn what_is_no_search_is_refused(hop: &Hop) {
    make(hop).await;
    let of = |pattern: &str| request(hop, "s", pattern);
    let too_long = v1::SearchRequest { time_limit: seconds(3600), ..of("x") };
    for (request, field) in [
        (of("("), "pattern"),
        (of(&"x".repeat(5000)), "pattern"),
        (of(r"\w{1000}{1000}"), "pattern"),
        (v1::SearchRequest { globs: vec!["{a".into()], ..of("x") }, "globs"),
        (v1::SearchRequest { exclude: vec!["x".into(); 100], ..of("x") }, "exclude"),
        (v1::SearchRequest { context: 21, ..of("x") }, "context"),
        (v1::SearchRequest { max_matches: 1 << 30, ..of("x") }, "max_matches"),
        (v1::SearchRequest { max_file_bytes: 1 << 40, ..of("x") }, "max_file_bytes"),
        (too_long, "time_limit"),
        (request(hop, "s\0", "x"), "path"),
    ] {
        let refused = search(hop, request).await.expect_err(field);
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::InvalidArgument, Some(Reason::InvalidField))
        );
        assert!(refused.message().contains(field) && detail_of(&refused, "hint").is_some(), "{refused:?}");
    }
    let missing = search(hop, request(hop, "nowhere", "x")).await.expect_err("it is not there");
    assert_eq!(reason_of(&missing), Some(Reason::FileNotFound));
    let unknown = v1::SearchRequest { session_id: berth_proto::SessionId::new().to_string(), ..of("x") };
    assert_eq!(search(hop, unknown).await.expect_err("there is none").code(), Code::NotFound);
}

/// Red when a walk follows links, or opens a pipe as if it were a file.
pub async fn a_search_goes_through_no_link_and_waits_for_nothing(hop: &Hop) {
    let line = "mkdir -p t/d out && echo needle > out/f && echo needle > t/d/f && ln -s ../out t/dir && ln -s ../out/f t/file \
        && ln -s / t/root && ln -s /proc t/proc && ln -s . t/d/self && mkfifo t/pipe && echo needle > t/closed && chmod 0 t/closed \
        && mkdir t/shut && echo needle > t/shut/f && chmod 0 t/shut && printf 'needle\\n' > t/$(printf 'odd\\377')";
    hop.run(shell(line)).await.ok();
    let (found, end) = search(hop, request(hop, "t", "needle")).await.unwrap();
    let paths: Vec<&str> = found.iter().map(|one| &one.path[..]).collect();
    assert_eq!(paths, ["d/f", "odd\u{fffd}"], "{found:?}");
    assert_eq!(&found[1].path_bytes[..], b"odd\xff");
    assert_eq!((end.files_searched, end.files_skipped), (2, 2), "{end:?}");
    for path in ["t/pipe", "/proc/self/environ", "/dev/zero"] {
        let refused = search(hop, request(hop, path, "x")).await.expect_err(path);
        assert_eq!(
            refused.code(),
            if path.starts_with("/proc") { Code::PermissionDenied } else { Code::FailedPrecondition },
            "{refused:?}"
        );
    }
}

/// Red without the bound on time, on streams, or on what one that nobody reads holds.
pub async fn a_search_is_bounded_and_ends_with_its_caller(hop: &Hop) {
    let line = "mkdir -p h l; head -c 20000000 /dev/urandom | LC_ALL=C tr -dc abcd | fold -w 60000 > h/a; cp h/a h/b; \
        seq -f %0400g 9000 > l/many";
    hop.run(shell(line)).await.ok();
    // No search of megabytes is over by then.
    let moment = prost_types::Duration { seconds: 0, nanos: 1000 };
    let late = v1::SearchRequest { time_limit: Some(moment), ..request(hop, "h", "nowhere") };
    let (found, end) = search(hop, late).await.unwrap();
    assert_eq!((found.len(), end.limit()), (0, SearchLimit::Time));
    // Files are served while a pattern that is hard is looked for, and then it is over.
    let hard = v1::SearchRequest { time_limit: seconds(2), ..request(hop, "h", "(?:[a-d]{1,20}a){20}[xy]") };
    let (ended, ()) = tokio::join!(search(hop, hard), put(hop, "meanwhile", b"x"));
    assert!(ended.is_ok());
    // More than the windows of all hops hold: it waits for its reader.
    let much = v1::SearchRequest { max_matches: 10_000, context: 20, ..request(hop, "l", "0") };
    let mut held = Vec::new();
    let refused = loop {
        match begin(hop, much.clone()).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
        assert!(held.len() < 50, "there is a bound");
    };
    assert_eq!((held.len(), reason_of(&refused)), (8, Some(Reason::TooManyCalls)), "{refused:?}");
    put(hop, "again", b"x").await;
    let all = held.pop().expect("it is held");
    drop(held);
    let mut all = all;
    let mut matches = 0;
    while let Some(message) = tokio::time::timeout(DEADLINE, all.message()).await.expect("in time").unwrap() {
        matches += usize::from(matches!(message.event, Some(Event::Match(_))));
    }
    assert_eq!(matches, 9000, "none is lost on the way");
    berth_tests::until(DEADLINE, "room for a search", async || {
        search(hop, request(hop, "l", "^0+1$")).await.ok().map(|(found, _)| assert_eq!(found.len(), 1))
    })
    .await;
}
