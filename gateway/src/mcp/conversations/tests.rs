use std::{fs, os::unix::fs::PermissionsExt};

use berth_client::SessionId;
use rmcp::model::{ClientCapabilities, Implementation, InitializeRequestParams};
use tempfile::TempDir;

use super::*;

fn open(dir: &TempDir) -> Arc<Conversations> {
    Conversations::open(dir.path().join("conversations"))
}

fn hello(name: &str) -> SessionState {
    SessionState::new(InitializeRequestParams::new(
        ClientCapabilities::default(),
        Implementation::new(name, "1"),
    ))
}

/// What `rmcp` does in a request.
fn store(all: &Arc<Conversations>, link: &Arc<Link>) -> Store<impl Fn() -> Option<Arc<Link>> + use<>> {
    let link = Arc::clone(link);
    Store { all: Arc::clone(all), link: move || Some(Arc::clone(&link)) }
}

/// Begins one, as a client does.
async fn begin(all: &Arc<Conversations>, id: &str, token: &str, live: &[String]) -> Option<Arc<Link>> {
    let _room = all.reserve(token, live)?;
    let link = Link::new(token);
    store(all, &link).store(id, &hello("client")).await.expect("it is kept");
    Some(link)
}

fn made(own: bool) -> Made {
    Made { id: SessionId::new(), ends: own, own }
}

/// Red when what begins is not counted, when one token may take all the room, or when what sleeps takes none.
#[tokio::test]
async fn a_token_has_its_own_bound_and_what_begins_and_what_sleeps_count() {
    let dir = TempDir::new().unwrap();
    let all = open(&dir);
    let held: Vec<_> = (0..EACH).map(|_| all.reserve("a", &[]).expect("room")).collect();
    assert!(all.reserve("a", &[]).is_none(), "those that begin count");
    drop(held);
    let mut live = Vec::new();
    for n in 0..EACH {
        begin(&all, &format!("a{n}"), "a", &live).await.expect("room");
        live.push(format!("a{n}"));
    }
    assert!(all.reserve("a", &live).is_none(), "and so do those that have begun");
    assert!(all.reserve("b", &live).is_some(), "another token has room");
    assert!(all.is_of("a0", "a").await && !all.is_of("a0", "b").await && !all.is_of("a", "a").await);
    // After a start they all sleep, and count on.
    let all = open(&dir);
    assert!(all.reserve("a", &[]).is_none(), "what sleeps counts");
    for token in 0..ALL - EACH {
        let id = format!("t{token}");
        locked(&all.all).of.insert(hash(&id), Entry::new(hash(&id), false, SystemTime::now()));
        live.push(id);
    }
    assert!(all.reserve("one more", &live).is_none());
    // Those that are neither in memory nor asleep are gone.
    assert!(all.reserve("one more", &live[..ALL - 1]).is_some());
    assert!(!all.is_of(&live[ALL - 1], &live[ALL - 1]).await);
    assert!(locked(&all.all).beginning.is_empty());
}

/// Red when a sleeping one is anybody's, or without its sessions; when one that ended is there again; or when a file is another's to
/// read, or holds what opens something.
#[tokio::test]
async fn one_that_sleeps_is_its_owner_s_and_has_its_sessions() {
    let dir = TempDir::new().unwrap();
    let all = open(&dir);
    let link = begin(&all, "mine", "token", &[]).await.unwrap();
    let gone = begin(&all, "gone", "token", &["mine".to_owned()]).await.unwrap();
    let sessions = vec![made(true), made(false)];
    let kept = sessions.clone();
    link.conversation().unwrap().keep(move || kept).await;
    gone.conversation().unwrap().end().await;
    // Too late: it has ended.
    gone.conversation().unwrap().keep(|| vec![made(true)]).await;
    let path = dir.path().join("conversations");
    let files: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&files[0])), (0o700, 0o600));
    let text = format!("{files:?} {}", fs::read_to_string(&files[0]).unwrap());
    assert!(!text.contains("mine") && !text.contains("\"token\""), "{text}");

    let all = open(&dir);
    assert!(!all.is_of("gone", "token").await && !all.is_of("mine", "other").await);
    assert!(all.is_of("mine", "token").await);
    assert!(all.asleep("mine").await.is_some());
    let other = Link::new("other");
    assert!(store(&all, &other).load("gone").await.unwrap().is_none());
    let link = Link::new("token");
    let state = store(&all, &link).load("mine").await.unwrap().expect("it wakes");
    assert_eq!(state.initialize_params.client_info.name, "client");
    let ids = |sessions: &[Made]| sessions.iter().map(|made| (made.id, made.own)).collect::<Vec<_>>();
    assert_eq!(ids(&link.take_sessions()), ids(&sessions));
    link.conversation().unwrap().woke();
    assert!(all.asleep("mine").await.is_none());
    assert!(store(&all, &link).load("mine").await.unwrap().is_none(), "it does not wake twice");
}

/// Red when a DELETE of one that sleeps leaves its file, or loses its sessions; or when it is written again after that.
#[tokio::test]
async fn one_that_is_told_to_end_stays_ended() {
    let dir = TempDir::new().unwrap();
    let link = begin(&open(&dir), "asleep", "token", &[]).await.unwrap();
    link.conversation().unwrap().keep(|| vec![made(true)]).await;
    let all = open(&dir);
    let awake = begin(&all, "awake", "token", &[]).await.unwrap();
    let link = Link::new("token");
    store(&all, &link).delete("awake").await.unwrap();
    assert!(link.take_sessions().is_empty(), "who serves it ends its sessions");
    assert!(!awake.conversation().unwrap().goes_on());
    awake.conversation().unwrap().keep(|| vec![made(true)]).await;
    store(&all, &link).delete("asleep").await.unwrap();
    assert_eq!(link.take_sessions().len(), 1);
    assert_eq!(fs::read_dir(dir.path().join("conversations")).unwrap().count(), 0);
    let all = open(&dir);
    assert!(!all.is_of("awake", "token").await && !all.is_of("asleep", "token").await);
}

/// Red when one in which nothing came for a day wakes, before a start or after it; or when what is no record is taken for one.
#[tokio::test]
async fn one_that_is_over_does_not_wake() {
    let dir = TempDir::new().unwrap();
    let all = open(&dir);
    for id in ["old", "new"] {
        begin(&all, id, "token", &["old".to_owned()]).await.unwrap();
    }
    let file = |id: &str| dir.path().join("conversations").join(hash(id));
    let long_ago = SystemTime::now() - QUIET - Duration::from_secs(1);
    fs::File::options().write(true).open(file("old")).unwrap().set_modified(long_ago).unwrap();
    fs::write(file("broken"), "{").unwrap();
    fs::write(dir.path().join("conversations/other"), "{}").unwrap();
    fs::write(file("long"), vec![b' '; 1 << 20]).unwrap();
    let all = open(&dir);
    for id in ["old", "broken", "long"] {
        assert!(!all.is_of(id, "token").await, "{id}");
    }
    assert!(all.is_of("new", "token").await);
    assert_eq!(fs::read_dir(dir.path().join("conversations")).unwrap().count(), 1);
    locked(&all.all).of.get_mut(&hash("new")).unwrap().used = long_ago;
    assert!(!all.is_of("new", "token").await);
    assert!(!file("new").exists());
}
