//! Watches of the workspaces that a listener has subscribed to files of: `FileService.Watch`, one for each session.
//!
//! A watch only wakes: what changed is then found by comparing, so that a change is told once, whoever saw it first. Where a
//! session can't be watched (too many watches or directories, a fake sandbox, a lost connection), it is looked at from
//! time to time, and a new watch tried later. A watch is a use of the session, as a look is: so it ends when its client
//! has asked for nothing for a while, and begins again when it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_client::{ChangeEvent, ChangeOptions, Session, SessionId, model::FileChange};
use berth_proto::spawn::spawn;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::uri::What;

/// Sessions that one listener watches. A session has 16 streams for all who watch it.
const MOST: usize = 16;
/// After one that failed, or lost what it was to tell, the next.
const AGAIN: Duration = Duration::from_secs(60);
/// Paths that are told apart until they are looked at.
const PATHS: usize = 256;

/// What has changed in a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// Anything may have.
    All,
    /// Below the workspace.
    Paths(BTreeSet<String>),
}

impl Changed {
    /// Both.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Paths(all), Self::Paths(more)) if all.len() + more.len() <= PATHS => all.extend(more),
            _ => *self = Self::All,
        }
    }

    /// Whether it may have changed this resource.
    pub fn concerns(&self, what: &What) -> bool {
        let (Self::Paths(paths), What::File(_)) = (self, what) else { return *self == Self::All };
        // Of another path a watch says nothing.
        let Some(file) = watched(what) else { return false };
        let below = |path: &str, dir: &str| {
            dir.is_empty()
                || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let parent = |path: &'_ str| path.rfind('/').map_or(0, |at| at);
        // It, one of the directories that it is in, or an entry of it.
        paths.iter().any(|path| below(file, path) || path[..parent(path)] == *file)
    }
}

/// The path below the workspace that a watch of that tells of. (One that leads through a link is told of by no watch.)
pub fn watched(what: &What) -> Option<&str> {
    let What::File(path) = what else { return None };
    let path = path.strip_prefix("/workspace/").unwrap_or(path);
    let plain = |name: &str| !matches!(name, "" | "." | "..");
    (path.is_empty() || path.split('/').all(plain)).then_some(path)
}

struct Watch {
    /// From then on nothing is missed.
    stands: Arc<AtomicBool>,
    /// Set: it is over.
    ended: Arc<Mutex<Option<Instant>>>,
    _end: DropGuard,
}

/// Hears of changes.
pub trait Hears: Send + Sync + 'static {
    fn changed(&self, session: SessionId, changed: Changed);
}

/// Those of a listener.
#[derive(Default)]
pub struct Watches(Mutex<BTreeMap<SessionId, Watch>>);

impl Watches {
    /// Watches these sessions, and no others.
    pub fn keep<H: Hears>(&self, sessions: Vec<Session>, listener: &Weak<H>) {
        let mut all = locked(&self.0);
        let wanted: BTreeMap<SessionId, Session> =
            sessions.into_iter().map(|session| (session.id(), session)).collect();
        all.retain(|id, watch| {
            let over = locked(&watch.ended).is_some_and(|ended| ended.elapsed() >= AGAIN);
            wanted.contains_key(id) && !over
        });
        for (id, session) in wanted {
            if all.len() < MOST && !all.contains_key(&id) {
                all.insert(id, begin(session, listener.clone()));
            }
        }
    }

    /// Whether all that happens in a session is told.
    pub fn stands(&self, session: SessionId) -> bool {
        locked(&self.0).get(&session).is_some_and(|watch| watch.stands.load(Ordering::Acquire))
    }
}

fn begin<H: Hears>(session: Session, listener: Weak<H>) -> Watch {
    let (stands, ended, end) =
        (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)), CancellationToken::new());
    let watch = Watch { stands: stands.clone(), ended: ended.clone(), _end: end.clone().drop_guard() };
    spawn("mcp watch", async move {
        tokio::select! {
            () = end.cancelled() => return,
            () = follow(&session, &listener, &stands) => {}
        }
        stands.store(false, Ordering::Release);
        *locked(&ended) = Some(Instant::now());
        // What happened since is found by comparing.
        tell(&listener, session.id(), Changed::All);
    });
    watch
}

/// Tells of changes for as long as none is lost.
async fn follow<H: Hears>(session: &Session, listener: &Weak<H>, stands: &AtomicBool) {
    let mut changes = match session.files().watch(".", ChangeOptions::new().recursive()).await {
        Ok(changes) => changes,
        Err(error) => {
            tracing::debug!(session.id = %session.id(), %error, "a workspace can't be watched: it is looked at instead");
            return;
        }
    };
    stands.store(true, Ordering::Release);
    // It may have changed since it was first looked at.
    tell(listener, session.id(), Changed::All);
    loop {
        let changed = match changes.next().await {
            Ok(Some(ChangeEvent::Change(change))) => paths(*change),
            Ok(Some(ChangeEvent::Overflow { unwatched: false })) => Changed::All,
            Ok(Some(ChangeEvent::Overflow { unwatched: true }) | None) => return,
            Err(error) => {
                tracing::debug!(session.id = %session.id(), %error, "the watch of a workspace is over");
                return;
            }
        };
        tell(listener, session.id(), changed);
    }
}

fn paths(change: FileChange) -> Changed {
    // A name that is no UTF-8 is that of no resource.
    Changed::Paths([Some(change.path), change.new_path].into_iter().flatten().collect())
}

fn tell<H: Hears>(listener: &Weak<H>, session: SessionId, changed: Changed) {
    if let Some(listener) = listener.upgrade() {
        listener.changed(session, changed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> What {
        What::File(path.into())
    }

    #[test]
    fn a_change_concerns_what_it_may_have_changed() {
        let changed = |paths: &[&str]| Changed::Paths(paths.iter().map(|path| (*path).to_owned()).collect());
        for (path, others) in
            [("a/b", "a/b"), ("a/b", "a"), ("a", "a/b"), ("", "a"), ("/workspace/a", "a"), ("a", "")]
        {
            assert!(changed(&["x", others]).concerns(&file(path)), "{path} {others}");
        }
        for (path, others) in
            [("a/b", "a/c"), ("a/b", "a/bc"), ("a", "a/b/c"), ("", "a/b"), ("ab", "a"), ("/a", "a")]
        {
            assert!(!changed(&[others]).concerns(&file(path)), "{path} {others}");
        }
        assert!(Changed::All.concerns(&file("/etc/x")) && Changed::All.concerns(&file("a")));
        for path in ["/a", "a/../b", "./a", "a//b"] {
            assert_eq!(watched(&file(path)), None, "{path}");
        }
    }

    #[test]
    fn many_changes_are_all() {
        let mut all = Changed::Paths(BTreeSet::new());
        for i in 0..PATHS {
            all.add(Changed::Paths([i.to_string()].into()));
        }
        assert!(matches!(&all, Changed::Paths(paths) if paths.len() == PATHS));
        all.add(Changed::Paths(["one more".to_owned()].into()));
        assert_eq!(all, Changed::All);
        all.add(Changed::Paths(BTreeSet::new()));
        assert_eq!(all, Changed::All);
    }
}
