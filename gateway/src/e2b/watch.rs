//! Watching directories: `WatchDir`, a stream, which the asynchronous SDK uses, and `CreateWatcher` with the two calls that
//! follow it, which the synchronous one does.
//!
//! The latter is the one thing of a sandbox that is kept here between two requests: what happened since the last one. It is
//! bounded for each watcher, for each caller, and for all; and one that nobody asks for half an hour is ended. A gateway
//! that is started anew has none of them, and says so.
//!
//! E2B has no event for changes that were lost. So a watch that lost some ends with an error that says what to do.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use berth_client::{
    ChangeEvent, ChangeOptions, ChangeStream, Session, SessionId, TaskId,
    model::{ChangeKind, FileChange},
};
use berth_proto::spawn::spawn;
use http::{HeaderMap, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    body::{Body, Upload},
    connect::{self, Frames, Sender},
    paths,
    pool::Lease,
    problem::Problem,
    process::keepalive,
};

/// Watchers of all callers, and of one.
const WATCHERS: usize = 512;
const WATCHERS_EACH: usize = 64;
/// Events that wait in one of them, and bytes of their names.
const EVENTS: usize = 2048;
const BYTES: usize = 128 << 10;
/// One that nobody asks for this long is ended.
const UNASKED: Duration = Duration::from_secs(1800);

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wanted {
    path: String,
    recursive: bool,
    include_entry: bool,
    watcher_id: String,
}

impl Wanted {
    async fn open(&self, session: &Session) -> Result<ChangeStream, Problem> {
        if self.include_entry {
            return Err(Problem::unserved(
                "entries in events are not served: leave include_entry out, and ask for the entry",
            ));
        }
        let options = ChangeOptions::new();
        let options = if self.recursive { options.recursive() } else { options };
        Ok(session.files().watch(&paths::absolute(&self.path)?, options).await?)
    }
}

/// One sandbox, for one call.
pub struct Watching {
    pub lease: Lease,
    pub session: Session,
    /// Whose call it is.
    pub token: String,
}

/// The watchers that there are.
#[derive(Default)]
pub struct Watchers(Arc<Mutex<HashMap<String, Watcher>>>);

struct Watcher {
    session: SessionId,
    token: String,
    kept: Arc<Mutex<Kept>>,
    _ends: DropGuard,
}

/// What happened since it was last asked.
struct Kept {
    events: Vec<Value>,
    bytes: usize,
    asked: Instant,
    /// Why nothing more comes.
    over: Option<Problem>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this is the module for a method of `filesystem.Filesystem`.
pub fn takes(method: &str) -> bool {
    matches!(method, "WatchDir" | "CreateWatcher" | "GetWatcherEvents" | "RemoveWatcher")
}

impl Watchers {
    pub async fn call(
        &self,
        method: &str,
        headers: &HeaderMap,
        watching: Watching,
        body: Upload,
    ) -> Result<Response<Body>, Problem> {
        if method == "WatchDir" {
            return watch_dir(headers, watching, body).await;
        }
        let wanted: Wanted = connect::unary(headers, body).await?;
        paths::user(headers)?;
        let answer = match method {
            "CreateWatcher" => self.create(watching, &wanted).await?,
            "GetWatcherEvents" => self.events(watching.session.id(), &wanted.watcher_id)?,
            _ => self.remove(watching.session.id(), &wanted.watcher_id)?,
        };
        Ok(connect::answer(&answer))
    }

    async fn create(&self, watching: Watching, wanted: &Wanted) -> Result<Value, Problem> {
        // Asked before the watch, for a quick answer, and after it, for the truth.
        room(&lock(&self.0), &watching.token)?;
        let stream = wanted.open(&watching.session).await?;
        let id = TaskId::new().to_string();
        let kept = Kept { events: Vec::new(), bytes: 0, asked: Instant::now(), over: None };
        let kept = Arc::new(Mutex::new(kept));
        let ends = CancellationToken::new();
        let Watching { lease, session, token } = watching;
        let over = ends.clone();
        {
            let mut all = lock(&self.0);
            room(&all, &token)?;
            let (session, kept) = (session.id(), kept.clone());
            all.insert(id.clone(), Watcher { session, token, kept, _ends: ends.drop_guard() });
        }
        let (all, named) = (Arc::downgrade(&self.0), id.clone());
        spawn("e2b watcher", async move {
            // What is leased is in use for as long as the stream is.
            let _lease = lease;
            tokio::select! {
                () = over.cancelled() => {}
                () = keep(stream, &kept) => {}
                () = unasked(&kept) => forget(&all, &named),
            }
        });
        Ok(json!({ "watcherId": id }))
    }

    fn events(&self, session: SessionId, id: &str) -> Result<Value, Problem> {
        let all = lock(&self.0);
        let watcher = all.get(id).filter(|watcher| watcher.session == session).ok_or_else(unknown)?;
        let mut kept = lock(&watcher.kept);
        kept.asked = Instant::now();
        kept.bytes = 0;
        let events = std::mem::take(&mut kept.events);
        match &kept.over {
            Some(problem) if events.is_empty() => Err(problem.clone()),
            _ => Ok(json!({ "events": events })),
        }
    }

    fn remove(&self, session: SessionId, id: &str) -> Result<Value, Problem> {
        let mut all = lock(&self.0);
        all.get(id).filter(|watcher| watcher.session == session).ok_or_else(unknown)?;
        all.remove(id);
        Ok(json!({}))
    }
}

fn room(all: &HashMap<String, Watcher>, token: &str) -> Result<(), Problem> {
    if all.values().filter(|watcher| watcher.token == token).count() >= WATCHERS_EACH {
        return Err(Problem::crowded(format!(
            "there are {WATCHERS_EACH} watchers of this key already: stop those that nobody asks"
        )));
    }
    if all.len() >= WATCHERS {
        return Err(Problem::crowded("there are as many watchers as the gateway keeps: try again later"));
    }
    Ok(())
}

fn unknown() -> Problem {
    Problem::not_found(
        "there is no such watcher: it was stopped, or the gateway was started anew (watch again, and list)",
    )
}

fn forget(all: &Weak<Mutex<HashMap<String, Watcher>>>, id: &str) {
    if let Some(all) = all.upgrade() {
        lock(&all).remove(id);
    }
}

/// Gathers what happens. Does not return: what came of it is there until it is asked for, or nobody asks.
async fn keep(mut stream: ChangeStream, kept: &Mutex<Kept>) {
    let problem = loop {
        let events = match next(&mut stream).await {
            Ok(events) => events,
            Err(problem) => break problem,
        };
        let mut kept = lock(kept);
        kept.bytes += events.iter().map(|(name, _)| name.len()).sum::<usize>();
        kept.events.extend(events.into_iter().map(event));
        if kept.events.len() > EVENTS || kept.bytes > BYTES {
            kept.events = Vec::new();
            break lost();
        }
    };
    drop(stream);
    lock(kept).over = Some(problem);
    std::future::pending().await
}

async fn unasked(kept: &Mutex<Kept>) {
    loop {
        let until = lock(kept).asked + UNASKED;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

fn lost() -> Problem {
    Problem::crowded("changes were lost, since there were more than are kept: watch again, and list")
}

/// What happens next, in E2B's words: a name, and what came of it.
async fn next(stream: &mut ChangeStream) -> Result<Vec<(String, &'static str)>, Problem> {
    match stream.next().await? {
        Some(ChangeEvent::Change(change)) => Ok(told(*change)),
        Some(ChangeEvent::Overflow { .. }) => Err(lost()),
        None => Err(Problem::not_found("the watched directory is not there any more")),
    }
}

fn told(change: FileChange) -> Vec<(String, &'static str)> {
    let kind = match change.kind {
        ChangeKind::Created => "EVENT_TYPE_CREATE",
        ChangeKind::Written => "EVENT_TYPE_WRITE",
        ChangeKind::Removed => "EVENT_TYPE_REMOVE",
        ChangeKind::Renamed => "EVENT_TYPE_RENAME",
        ChangeKind::Chmod => "EVENT_TYPE_CHMOD",
    };
    // What is told there are the names in a directory, and not itself.
    if change.path.is_empty() {
        return Vec::new();
    }
    // A new name is a creation there.
    let new = change.new_path.map(|new| (new, "EVENT_TYPE_CREATE"));
    std::iter::once((change.path, kind)).chain(new).collect()
}

fn event((name, kind): (String, &'static str)) -> Value {
    json!({"name": name, "type": kind})
}

async fn watch_dir(headers: &HeaderMap, watching: Watching, body: Upload) -> Result<Response<Body>, Problem> {
    let deadline = connect::timeout(headers)?.map(|timeout| Instant::now() + timeout);
    let keepalive = keepalive(headers);
    let opened = async {
        let wanted: Wanted = Frames::new(headers, body)?.only().await?;
        paths::user(headers)?;
        wanted.open(&watching.session).await
    };
    let stream = match opened.await {
        Ok(stream) => stream,
        Err(problem) if problem.is_gone() => return Err(problem),
        Err(problem) => return Ok(connect::single(Err(problem))),
    };
    Ok(connect::stream(|sender| async move {
        let _watching = watching;
        let all = tell(&sender, stream, keepalive);
        match deadline {
            None => all.await,
            Some(at) => timeout_at(at, all).await.unwrap_or_else(|_| {
                Err(Problem::deadline("the watch took longer than its timeout (`timeout=0` has none)"))
            }),
        }
    }))
}

async fn tell(sender: &Sender, mut stream: ChangeStream, keepalive: Duration) -> Result<(), Problem> {
    sender.send(&json!({"start": {}})).await;
    let mut quiet = interval_at(Instant::now() + keepalive, keepalive);
    quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let events = tokio::select! {
            events = next(&mut stream) => events?,
            _ = quiet.tick() => {
                sender.send(&json!({"keepalive": {}})).await;
                continue;
            }
        };
        quiet.reset();
        for told in events {
            sender.send(&json!({"filesystem": event(told)})).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind, path: &str, new: Option<&str>) -> Vec<(String, &'static str)> {
        told(FileChange {
            kind,
            path: path.to_owned(),
            path_bytes: None,
            new_path: new.map(str::to_owned),
            new_path_bytes: None,
            directory: false,
            entry: None,
        })
    }

    #[test]
    fn a_rename_is_told_at_both_names() {
        let [old, new] = ["EVENT_TYPE_RENAME", "EVENT_TYPE_CREATE"];
        let named = |name: &str, kind| (name.to_owned(), kind);
        assert_eq!(change(ChangeKind::Renamed, "a", Some("b")), [named("a", old), named("b", new)]);
        assert_eq!(change(ChangeKind::Renamed, "a", None), [named("a", old)]);
        assert_eq!(change(ChangeKind::Chmod, "", None), []);
    }
}
