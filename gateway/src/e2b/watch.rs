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

impl Kept {
    fn add(&mut self, events: Vec<(String, &'static str)>) -> Result<(), Problem> {
        self.bytes += events.iter().map(|(name, _)| name.len()).sum::<usize>();
        self.events.extend(events.into_iter().map(event));
        if self.events.len() > EVENTS || self.bytes > BYTES {
            self.events = Vec::new();
            return Err(lost());
        }
        Ok(())
    }
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
        let Watching { lease, session, token } = watching;
        let id = self.begin(session.id(), token, async move |kept| {
            // What is leased is in use for as long as the stream is.
            let _lease = lease;
            keep(stream, &kept).await;
        })?;
        Ok(json!({ "watcherId": id }))
    }

    /// A watcher that `gather` feeds, until it is removed, or nobody asks for what happened.
    fn begin<F>(
        &self,
        session: SessionId,
        token: String,
        gather: impl FnOnce(Arc<Mutex<Kept>>) -> F,
    ) -> Result<String, Problem>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = TaskId::new().to_string();
        let kept = Kept { events: Vec::new(), bytes: 0, asked: Instant::now(), over: None };
        let kept = Arc::new(Mutex::new(kept));
        let ends = CancellationToken::new();
        let over = ends.clone();
        {
            let mut all = lock(&self.0);
            room(&all, &token)?;
            all.insert(id.clone(), Watcher { session, token, kept: kept.clone(), _ends: ends.drop_guard() });
        }
        let (all, named) = (Arc::downgrade(&self.0), id.clone());
        let gathering = gather(kept.clone());
        spawn("e2b watcher", async move {
            tokio::select! {
                () = over.cancelled() => {}
                () = gathering => {}
                () = unasked(&kept) => forget(&all, &named),
            }
        });
        Ok(id)
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
        if let Err(problem) = lock(kept).add(events) {
            break problem;
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

    fn begin(watchers: &Watchers, session: SessionId, token: &str) -> Result<String, Problem> {
        watchers.begin(session, token.to_owned(), |_| std::future::pending())
    }

    /// Red when `room` leaves one of its two bounds out, or a removed watcher keeps its place.
    #[tokio::test]
    async fn watchers_are_bounded_for_a_key_and_for_all() {
        let (watchers, session) = (Watchers::default(), SessionId::new());
        let ids: Vec<_> = (0..WATCHERS_EACH).map(|_| begin(&watchers, session, "one").unwrap()).collect();
        let refused = begin(&watchers, session, "one").expect_err("one too many of this key");
        assert!(refused.is("resource_exhausted") && refused.to_string().contains("64"), "{refused}");
        begin(&watchers, SessionId::new(), "other").expect("another's has room");
        watchers.remove(session, &ids[0]).expect("it is there");
        begin(&watchers, session, "one").expect("there is room again");
        let there = lock(&watchers.0).len();
        for n in there..WATCHERS {
            begin(&watchers, session, &format!("key {n}")).expect("there is room for so many");
        }
        let refused = begin(&watchers, session, "a new key").expect_err("one too many");
        assert!(refused.is("resource_exhausted"), "{refused}");
        assert_eq!(lock(&watchers.0).len(), WATCHERS);
    }

    /// Red when asking does not count, or one that nobody asks keeps its stream.
    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_nobody_asks_ends() {
        let (watchers, session) = (Watchers::default(), SessionId::new());
        let held = Arc::new(());
        let stream = Arc::downgrade(&held);
        let gather = async move |_| {
            let _held = held;
            std::future::pending::<()>().await;
        };
        let id = watchers.begin(session, "key".into(), gather).unwrap();
        for _ in 0..3 {
            tokio::time::sleep(UNASKED - Duration::from_secs(1)).await;
            watchers.events(session, &id).expect("it was asked in time");
        }
        assert!(watchers.events(SessionId::new(), &id).is_err(), "it is of another sandbox");
        tokio::time::sleep(UNASKED + Duration::from_secs(1)).await;
        let gone = watchers.events(session, &id).expect_err("it is over");
        assert!(gone.is("not_found") && gone.to_string().contains("watch again"), "{gone}");
        assert!(stream.upgrade().is_none() && lock(&watchers.0).is_empty());
        // So does one that is removed, at once.
        let held = Arc::new(());
        let stream = Arc::downgrade(&held);
        let gather = async move |_| {
            let _held = held;
            std::future::pending::<()>().await;
        };
        let id = watchers.begin(session, "key".into(), gather).unwrap();
        watchers.remove(session, &id).expect("it is there");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(stream.upgrade().is_none());
        assert!(watchers.remove(session, &id).is_err());
    }

    /// Red when one of the two bounds is missing, or what was left out is not told.
    #[tokio::test]
    async fn more_than_is_kept_is_told_as_lost() {
        let (watchers, session) = (Watchers::default(), SessionId::new());
        let long = || vec![("n".repeat(BYTES / 4 + 1), "EVENT_TYPE_CREATE")];
        let short = || vec![("n".to_owned(), "EVENT_TYPE_CREATE")];
        for (events, most) in [(&long as &dyn Fn() -> Vec<_>, 3), (&short, EVENTS)] {
            let mut of = None;
            let gather = |kept| {
                of = Some(kept);
                std::future::pending()
            };
            let id = watchers.begin(session, "key".into(), gather).unwrap();
            let kept = of.unwrap();
            for _ in 0..2 {
                for _ in 0..most {
                    lock(&kept).add(events()).expect("that many are kept");
                }
                let told = watchers.events(session, &id).expect("they are told");
                assert_eq!(told["events"].as_array().unwrap().len(), most, "and there is room anew");
            }
            for _ in 0..most {
                lock(&kept).add(events()).unwrap();
            }
            let lost = lock(&kept).add(events()).expect_err("one too many");
            assert!(lock(&kept).events.is_empty(), "a part would pass for the whole");
            lock(&kept).over = Some(lost);
            for _ in 0..2 {
                let told = watchers.events(session, &id).expect_err("it is over");
                assert!(told.to_string().contains("lost"), "{told}");
            }
        }
    }
}
