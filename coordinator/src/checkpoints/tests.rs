//! Letting go of checkpoints and their pieces, on a clock that the test moves; and what becomes of the sessions that
//! named them. The catalog, the driver and the fleet are the real ones.

use std::sync::atomic::{AtomicU64, Ordering};

use berth_proto::{
    Epoch,
    domain::{
        BackendChoice, CheckpointPolicy, Labels, Limits, OnWorkerLoss, RestoreFrom, TaskDefaultsPatch,
        TemplateSpec,
    },
    spawn::spawn,
};

use super::{steady::Steady, *};
use crate::{
    driver::{Clock, Driver, Events, WelcomeTerms},
    fleet::{Fleet, FleetConfig, Spec},
    store::{Batch, Store, memory::MemoryStore},
    tenant::Sight,
};

const HOUR: u64 = 3600;
const GRACE: Duration = Duration::from_secs(HOUR);

struct Desk {
    checkpoints: Arc<Checkpoints>,
    seconds: Arc<AtomicU64>,
    session: SessionId,
}

pub(super) fn spec() -> Spec {
    Spec {
        tenant: Default::default(),
        template: TemplateSpec {
            name: "base".into(),
            root: None,
            image: None,
            backend: BackendChoice::Auto,
            user: "user".into(),
        },
        limits: Limits { cpu_millis: 1, memory_bytes: 2, disk_bytes: 3, pids: 4 },
        env: Labels::new(),
        selector: Labels::new(),
        priority: 0,
        wait_for_place: Duration::ZERO,
        patient: false,
        task_defaults: TaskDefaultsPatch::default(),
        on_worker_loss: OnWorkerLoss::Restore,
        checkpoints: CheckpointPolicy { keep: 2, ..CheckpointPolicy::default() },
        keyed: false,
        egress: Default::default(),
        from_checkpoint: false,
    }
}

fn clock() -> (Steady, Arc<AtomicU64>) {
    let seconds = Arc::new(AtomicU64::new(0));
    let passed = seconds.clone();
    let since = move || Duration::from_secs(passed.load(Ordering::SeqCst));
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    (Steady::with(wall, None, Arc::new(since)), seconds)
}

impl Desk {
    /// One session, ready at epoch 1.
    async fn start() -> Self {
        Self::start_as(SessionState::Ready).await
    }

    async fn start_as(state: SessionState) -> Self {
        let session = SessionId::from_u128(7);
        let mut ready = Session::new(session, spec(), SystemTime::UNIX_EPOCH);
        ready.state = state;
        ready.epoch = Epoch(1);
        ready.worker = Some("w".parse().unwrap());
        let store = Arc::new(MemoryStore::default());
        store.commit(&Batch { sessions: vec![Arc::new(ready)], ..Batch::default() }).await.unwrap();
        let (view, links) = Default::default();
        let shared = Shared {
            view,
            links,
            events: Arc::new(Events::new("boot".into())),
            store: store.clone(),
            metrics: Arc::default(),
        };
        let begun = Clock::start();
        let loaded = store.load().await.unwrap();
        let (fleet, effects) = Fleet::restore(FleetConfig::default(), 1, loaded, begun.now());
        let (lease, heartbeat) = (Duration::from_secs(10), Duration::from_secs(3));
        let welcome = WelcomeTerms { lease, heartbeat, data_connections: 1, templates: Vec::new() };
        let (driver, handle) = Driver::new(fleet, effects, shared.clone(), welcome, begun).await.unwrap();
        spawn("driver", driver.run());
        let (steady, seconds) = clock();
        let catalog = Catalog::open(None).await.unwrap().with_clock(steady);
        let checkpoints = Checkpoints::new(Arc::new(Blobs::in_memory()), Arc::new(catalog), shared, handle);
        Self { checkpoints, seconds, session }
    }

    fn at(&self, seconds: u64) {
        self.seconds.store(seconds, Ordering::SeqCst);
    }

    async fn bring(&self, piece: &str) -> Digest {
        let digest = Digest::of(piece.as_bytes());
        self.checkpoints.put(digest, berth_checkpoint::seal(piece.as_bytes()).unwrap()).await.unwrap();
        digest
    }

    /// A checkpoint of the session with these pieces, the first of which is its root. Its session hears of it.
    async fn keep(&self, id: &str, pieces: &[&str], keep_for: Option<u64>, cause: v1::CheckpointCause) {
        self.keep_of(Epoch(1), id, pieces, keep_for, cause).await;
    }

    /// The same of the placement with this epoch.
    async fn keep_of(
        &self,
        epoch: Epoch,
        id: &str,
        pieces: &[&str],
        keep_for: Option<u64>,
        cause: v1::CheckpointCause,
    ) {
        let mut digests = BTreeSet::new();
        for piece in pieces {
            digests.insert(self.bring(piece).await);
        }
        let shown = v1::Checkpoint { id: id.into(), cause: cause.into(), ..Default::default() };
        let catalog = &self.checkpoints.catalog;
        let record = Record {
            shown,
            session: self.session,
            spec: spec(),
            root: Digest::of(pieces[0].as_bytes()),
            created_at: catalog.now(),
            expires_at: keep_for.map(|keep| catalog.now() + Duration::from_secs(keep)),
            held: cause == PARKED,
        };
        assert_eq!(catalog.add(&record, &digests).await.unwrap(), None);
        let from = RestoreFrom { checkpoint: id.into(), root: record.root.0 };
        let kept = Box::new(Kept { from, at: record.created_at });
        let event = Event::Checkpointed { session: self.session, epoch, kept };
        self.checkpoints.driver.call(event).await.unwrap();
    }

    async fn ids(&self) -> Vec<String> {
        let all = self.checkpoints.catalog.of_session(self.session).await.unwrap();
        all.into_iter().map(|record| record.shown.id).collect()
    }

    /// What the session would be restored from.
    fn named(&self) -> Option<String> {
        let session = self.checkpoints.shared.view.session(&Sight::All, &self.session).expect("it is there");
        session.checkpoint.as_ref().map(|kept| kept.from.checkpoint.clone())
    }

    /// Which of these the blob store still has.
    async fn there(&self, pieces: &[&'static str]) -> Vec<&'static str> {
        let mut there = Vec::new();
        for piece in pieces {
            if self.checkpoints.blobs.get(Digest::of(piece.as_bytes())).await.is_ok() {
                there.push(*piece);
            }
        }
        there
    }
}

const ASKED: v1::CheckpointCause = v1::CheckpointCause::Requested;
const BY_POLICY: v1::CheckpointCause = v1::CheckpointCause::Interval;
const PARKED: v1::CheckpointCause = v1::CheckpointCause::Parked;

/// Red when expiry looks at the time of day, when a sweep takes pieces that are in use, or when it does not wait.
#[tokio::test]
async fn a_checkpoint_goes_when_its_time_is_over_and_its_pieces_an_hour_after_they_were_counted_on() {
    let desk = Desk::start().await;
    desk.keep("old", &["a", "shared"], None, ASKED).await;
    desk.keep("new", &["b", "shared"], Some(100), BY_POLICY).await;
    assert_eq!(desk.named().as_deref(), Some("new"));
    desk.at(99);
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 0);
    assert_eq!(desk.ids().await, ["new", "old"]);
    desk.at(100);
    assert!(
        desk.checkpoints.catalog.get(&Sight::All, "new").await.unwrap().is_none(),
        "over, although nobody has swept"
    );
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 0);
    assert_eq!((desk.ids().await, desk.named().as_deref()), (vec!["old".to_owned()], Some("old")));
    assert_eq!(desk.there(&["a", "b", "shared"]).await, ["a", "b", "shared"]);
    desk.at(HOUR + 1);
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 1);
    assert_eq!(desk.there(&["a", "b", "shared"]).await, ["a", "shared"]);
    desk.at(1000 * HOUR);
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 0);
    assert_eq!(desk.there(&["a", "b", "shared"]).await, ["a", "shared"], "one is kept until it is removed");
    desk.checkpoints.delete(&Sight::All, "old").await.unwrap();
    assert_eq!((desk.checkpoints.sweep(GRACE).await.unwrap(), desk.named()), (2, None));
}

/// A checkpoint that is being taken was told that a piece is there, and has not been added yet.
/// Red when being told of a piece does not touch it.
#[tokio::test]
async fn a_piece_that_is_counted_on_stays_for_an_hour_more() {
    let desk = Desk::start().await;
    let digest = desk.bring("x").await;
    desk.at(HOUR - 1);
    assert_eq!(desk.checkpoints.missing(&[digest]).await.unwrap(), []);
    desk.at(2 * HOUR - 2);
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 0);
    desk.keep("late", &["x"], None, ASKED).await;
    desk.at(9 * HOUR);
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 0);
    desk.checkpoints.delete(&Sight::All, "late").await.unwrap();
    assert_eq!(desk.checkpoints.sweep(GRACE).await.unwrap(), 1);
    assert_eq!(desk.checkpoints.missing(&[digest]).await.unwrap(), [digest], "it has to be brought again");
}

/// Between a row's end and its blob's, nobody may store that piece anew: the row would come to stand for nothing.
/// Red when the sweep does not wait for those who store.
#[tokio::test]
async fn a_sweep_waits_for_a_piece_that_is_being_stored() {
    let desk = Desk::start().await;
    desk.bring("x").await;
    desk.at(2 * HOUR);
    // As `put` holds it.
    let storing = desk.checkpoints.removing.read().await;
    let sweep = desk.checkpoints.sweep(GRACE);
    let mut sweep = std::pin::pin!(sweep);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut sweep).await.is_err(), "it did not wait");
    assert_eq!(desk.there(&["x"]).await, ["x"]);
    drop(storing);
    assert_eq!(sweep.await.unwrap(), 1);
}

/// Red when blobs are removed that have a row, or when nobody looks for those that have none.
#[tokio::test]
async fn what_a_crash_left_without_a_row_is_found() {
    let desk = Desk::start().await;
    desk.bring("known").await;
    let stray = Digest::of(b"stray");
    desk.checkpoints.blobs.put(stray, berth_checkpoint::seal(b"stray").unwrap()).await.unwrap();
    assert_eq!(desk.checkpoints.sweep_strays(GRACE).await.unwrap(), 0, "it is too young");
    assert_eq!(desk.checkpoints.sweep_strays(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(desk.there(&["known", "stray"]).await, ["known"]);
}

/// The ids are those of a wall clock that was put back, again and again. Red when the newest are found by their ids.
#[tokio::test]
async fn of_those_by_policy_the_newest_stay() {
    let desk = Desk::start().await;
    for (id, cause) in [("9", BY_POLICY), ("7", ASKED), ("6", BY_POLICY), ("4", BY_POLICY), ("2", BY_POLICY)]
    {
        desk.keep(id, &[id], None, cause).await;
    }
    let session = desk.checkpoints.shared.view.session(&Sight::All, &desk.session).unwrap();
    desk.checkpoints.keep_newest(&session).await;
    assert_eq!(
        (desk.ids().await, desk.named().as_deref()),
        (vec!["2".into(), "4".into(), "7".into()], Some("2"))
    );
    // Without the newest it goes back in the order in which they were taken.
    for (id, next) in [("2", Some("4")), ("4", Some("7")), ("7", None)] {
        desk.checkpoints.delete(&Sight::All, id).await.unwrap();
        assert_eq!(desk.named().as_deref(), next);
    }
}

/// Red when a lost piece is noted for the pieces alone; and when the next older one is taken as it comes.
#[tokio::test]
async fn a_session_passes_over_a_checkpoint_that_has_lost_a_piece() {
    let desk = Desk::start().await;
    desk.keep("first", &["a"], None, ASKED).await;
    desk.keep("second", &["b", "x"], None, ASKED).await;
    desk.keep("third", &["c", "x"], None, ASKED).await;
    desk.keep("fourth", &["d"], None, ASKED).await;
    let lose = async |piece: &str| {
        let digest = Digest::of(piece.as_bytes());
        desk.checkpoints.blobs.delete(digest).await.unwrap();
        let error = desk.checkpoints.read(digest).await.expect_err("it is lost");
        assert_eq!(error.code(), Code::DataLoss);
    };
    lose("x").await;
    assert_eq!(desk.named().as_deref(), Some("fourth"), "that one is whole");
    lose("d").await;
    assert_eq!(desk.named().as_deref(), Some("first"), "the two in between are not");
    let message = desk.checkpoints.shared.view.session(&Sight::All, &desk.session).unwrap().message.clone();
    assert!(message.contains("damaged") && message.contains("fourth"), "{message}");
    // A checkpoint that has the piece brings it again.
    desk.keep("fifth", &["e", "x"], None, ASKED).await;
    lose("e").await;
    assert_eq!(desk.named().as_deref(), Some("third"));
    for piece in ["c", "b", "a"] {
        lose(piece).await;
    }
    assert_eq!(desk.named(), None);
    assert_eq!(desk.ids().await.len(), 5, "what is damaged may become whole again, and is not removed");
}

/// Red when what a process noted is not what the next one begins with.
#[tokio::test]
async fn the_time_is_noted_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoints.db");
    let ahead = SystemTime::now() + Duration::from_secs(HOUR);
    let steady = Steady::with(ahead, None, Arc::new(|| Duration::ZERO));
    let catalog = Catalog::open(Some(&path)).await.unwrap().with_clock(steady);
    catalog.note_time().await.unwrap();
    catalog.close().await.unwrap();
    let again = Catalog::open(Some(&path)).await.unwrap();
    assert!(
        again.now() >= ahead - Duration::from_millis(1),
        "the wall clock was put back by an hour meanwhile"
    );
}

/// Red when a sweep lets go of what is needed, or holds what is not; when `expired` or `keep_newest` takes what is held.
#[tokio::test]
async fn what_a_parked_session_needs_stays_whatever_its_retention_says() {
    let desk = Desk::start_as(SessionState::Paused).await;
    let (session, epoch, attempt) = (desk.session, Epoch(1), 1);
    let checkpoints = &desk.checkpoints;
    let held = async || {
        let held = checkpoints.catalog.held().await.unwrap();
        held.into_iter().map(|record| record.shown.id).collect::<Vec<_>>()
    };
    for id in ["q", "r"] {
        desk.keep(id, &[id], None, BY_POLICY).await;
    }
    checkpoints.driver.call(Event::Parking { session, epoch, attempt }).await.unwrap();
    desk.keep("p", &["p"], None, PARKED).await;
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(held().await, ["p"], "it is about to be needed");
    let (checkpoint, why) = ("p".to_owned(), "it was paused".to_owned());
    checkpoints.driver.call(Event::Park { session, epoch, attempt, checkpoint, why }).await.unwrap();
    checkpoints.keep_newest(&checkpoints.shared.view.session(&Sight::All, &session).unwrap()).await;
    assert_eq!(desk.ids().await, ["p", "r", "q"], "two beside it stay");
    // Whatever it is that has let it go.
    let record = checkpoints.catalog.get(&Sight::All, "p").await.unwrap().unwrap();
    checkpoints.catalog.hold(&record, Some(Duration::from_secs(1000 * HOUR))).await.unwrap();
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(held().await, ["p"]);
    desk.at(1000 * HOUR);
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(checkpoints.catalog.get(&Sight::All, "p").await.unwrap().unwrap().shown.expires_at, None);
    let refused = checkpoints.delete(&Sight::All, "p").await.unwrap_err();
    assert_eq!(refused.reason(), Reason::CheckpointInUse);
    assert_eq!((desk.ids().await.len(), desk.there(&["p"]).await), (3, vec!["p"]));

    // Its session is over: it is kept for a week more, as its policy says, and goes.
    let reason = berth_proto::domain::EndReason::Deleted;
    checkpoints.driver.call(Event::Delete { by: Sight::All, session, reason }).await.unwrap();
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(held().await, [""; 0]);
    assert!(
        checkpoints.catalog.get(&Sight::All, "p").await.unwrap().unwrap().shown.expires_at.is_some(),
        "that is told"
    );
    desk.at(1000 * HOUR + 6 * 24 * HOUR);
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(desk.ids().await, ["p", "r", "q"]);
    desk.at(1000 * HOUR + 7 * 24 * HOUR);
    checkpoints.sweep(GRACE).await.unwrap();
    assert_eq!(desk.ids().await, ["r", "q"]);
}

/// A worker that was lost while it took a checkpoint may bring it when its session is elsewhere already. (Red when
/// `keep_newest` goes by age alone: then a restored session that keeps one checkpoint has none.)
#[tokio::test]
async fn what_comes_late_of_an_earlier_placement_takes_nothing_away() {
    let desk = Desk::start().await;
    desk.keep("base", &["a"], None, BY_POLICY).await;
    for late in ["late-1", "late-2"] {
        desk.keep_of(Epoch(0), late, &[late], None, BY_POLICY).await;
    }
    assert_eq!(desk.named().as_deref(), Some("base"), "the late ones are of no use to it");
    let session = desk.checkpoints.shared.view.session(&Sight::All, &desk.session).unwrap();
    desk.checkpoints.keep_newest(&session).await;
    assert_eq!(desk.ids().await, ["late-2", "late-1", "base"]);
    assert_eq!(desk.named().as_deref(), Some("base"));
    // Once it has a newer one of its own, that goes.
    desk.keep("own", &["b"], None, BY_POLICY).await;
    desk.checkpoints.keep_newest(&session).await;
    assert_eq!(desk.ids().await, ["own", "late-2"]);
}
