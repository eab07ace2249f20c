//! What a stream has to tell, between the watch thread and its reader. The thread never waits, and no lock is held across
//! anything: tasks may slow the thread down (it has their user's id), and must not slow down the agent by it.
//!
//! What does not fit is lost, and the reader hears of that when it has read all that came before. Until then all else is
//! lost too: who lists after it was told has seen it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

use berth_proto::{Error, v1};
use tokio::sync::{Notify, mpsc};

/// Changes that wait for their reader, and bytes of them.
const CHANGES: usize = 1024;
const BYTES: usize = 256 << 10;
/// What a change takes beside its names.
const EACH: usize = 128;

/// Bits of `lost`.
const CHANGES_LOST: u8 = 1;
const UNWATCHED: u8 = 2;

#[derive(Default)]
struct Shared {
    bytes: AtomicUsize,
    taken: AtomicU64,
    lost: AtomicU8,
    news: Notify,
    end: Mutex<Option<End>>,
}

/// Why nothing more comes.
pub enum End {
    /// The path names it no more.
    Gone,
    Failed(Error),
}

/// The thread's side.
pub struct Outbox {
    changes: mpsc::Sender<v1::FileChange>,
    shared: Arc<Shared>,
    sent: u64,
    last: Option<v1::FileChange>,
}

/// The reader's.
pub struct Inbox {
    changes: mpsc::Receiver<v1::FileChange>,
    shared: Arc<Shared>,
}

/// What comes next.
pub enum News {
    Change(v1::FileChange),
    Lost { unwatched: bool },
    End(End),
}

/// Both sides.
pub fn pair() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(CHANGES);
    let shared = Arc::new(Shared::default());
    let outbox = Outbox { changes: sender, shared: shared.clone(), sent: 0, last: None };
    (outbox, Inbox { changes: receiver, shared })
}

fn size(change: &v1::FileChange) -> usize {
    let entry = change.entry.as_ref();
    let entry = entry.map_or(0, |e| EACH + e.path.len() + e.path_bytes.len() + e.symlink_target.len());
    let names =
        [change.path.len(), change.path_bytes.len(), change.new_path.len(), change.new_path_bytes.len()];
    EACH + entry + names.iter().sum::<usize>()
}

impl Outbox {
    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.changes.is_closed()
    }

    /// Whether a change need not be made up, since it would be lost.
    pub fn is_behind(&self) -> bool {
        self.shared.lost.load(Ordering::SeqCst) != 0
    }

    pub fn send(&mut self, change: v1::FileChange) {
        if self.is_behind() {
            return;
        }
        // The same as one that waits: whoever reads that looks after both have happened.
        let waits = self.shared.taken.load(Ordering::SeqCst) < self.sent;
        if waits && self.last.as_ref() == Some(&change) {
            return;
        }
        let bytes = size(&change);
        let held = self.shared.bytes.fetch_add(bytes, Ordering::SeqCst);
        if held + bytes > BYTES || self.changes.try_send(change.clone()).is_err() {
            self.shared.bytes.fetch_sub(bytes, Ordering::SeqCst);
            return self.lose(false);
        }
        self.sent += 1;
        self.last = Some(change);
    }

    /// Something could not be told. `unwatched`: and never will be.
    pub fn lose(&self, unwatched: bool) {
        let bits = if unwatched { CHANGES_LOST | UNWATCHED } else { CHANGES_LOST };
        self.shared.lost.fetch_or(bits, Ordering::SeqCst);
        self.shared.news.notify_one();
    }

    /// Nothing more comes when this is dropped, for this reason.
    pub fn end(&self, end: End) {
        *self.shared.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }
}

impl Inbox {
    fn take(&self, change: v1::FileChange) -> News {
        self.shared.bytes.fetch_sub(size(&change), Ordering::SeqCst);
        self.shared.taken.fetch_add(1, Ordering::SeqCst);
        News::Change(change)
    }

    /// Nobody reads any more.
    pub fn close(&mut self) {
        self.changes.close();
    }

    /// The next. Cancel-safe.
    pub async fn next(&mut self) -> News {
        loop {
            let closed = match self.changes.try_recv() {
                Ok(change) => return self.take(change),
                Err(mpsc::error::TryRecvError::Empty) => false,
                Err(mpsc::error::TryRecvError::Disconnected) => true,
            };
            let lost = self.shared.lost.swap(0, Ordering::SeqCst);
            if lost != 0 {
                return News::Lost { unwatched: lost & UNWATCHED != 0 };
            }
            if closed {
                let end = self.shared.end.lock().unwrap_or_else(PoisonError::into_inner).take();
                let stopped = || End::Failed(Error::internal("what watches files has stopped"));
                return News::End(end.unwrap_or_else(stopped));
            }
            tokio::select! {
                biased;
                change = self.changes.recv() => if let Some(change) = change {
                    return self.take(change);
                },
                () = self.shared.news.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: String) -> v1::FileChange {
        v1::FileChange { kind: v1::ChangeKind::Written.into(), path, ..Default::default() }
    }

    async fn drain(inbox: &mut Inbox) -> usize {
        for n in 0.. {
            match inbox.next().await {
                News::Change(_) => {}
                News::Lost { unwatched } => {
                    assert!(!unwatched);
                    return n;
                }
                News::End(_) => panic!("it is no end"),
            }
        }
        unreachable!()
    }

    /// Red when a loss is not told, or is told before what came before it.
    #[tokio::test]
    async fn what_does_not_fit_is_told_after_what_did() {
        for length in [1, 60_000] {
            let (mut outbox, mut inbox) = pair();
            for n in 0..5000 {
                outbox.send(change(format!("{n:>length$}")));
            }
            let told = drain(&mut inbox).await;
            assert!(told > 0 && told <= CHANGES && told * length <= BYTES, "{told}");
            // And then it goes on as before.
            outbox.send(change("x".to_owned()));
            assert!(matches!(inbox.next().await, News::Change(change) if change.path == "x"));
        }
    }

    #[tokio::test]
    async fn what_waits_already_is_not_told_twice() {
        let (mut outbox, mut inbox) = pair();
        let tell = |outbox: &mut Outbox| outbox.send(change("x".to_owned()));
        tell(&mut outbox);
        tell(&mut outbox);
        assert!(matches!(inbox.next().await, News::Change(_)));
        tell(&mut outbox);
        assert!(matches!(inbox.next().await, News::Change(_)), "that one was taken before");
        outbox.end(End::Gone);
        drop(outbox);
        assert!(matches!(inbox.next().await, News::End(End::Gone)));
    }

    /// Red when a reader that waits is not woken.
    #[tokio::test]
    async fn who_waits_hears_of_a_loss() {
        let (outbox, mut inbox) = pair();
        let waits = inbox.next();
        tokio::pin!(waits);
        assert!(futures::poll!(&mut waits).is_pending());
        outbox.lose(true);
        assert!(matches!(waits.await, News::Lost { unwatched: true }));
    }
}
