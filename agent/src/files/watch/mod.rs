//! Watching directories for changes: by inotify, as the task's user.
//!
//! - [`thread`]: the one thread that asks the kernel, and looks at files for it.
//! - [`stream`]: which directories a stream watches, and what it tells. [`tree`]: where these are. [`told`]: its words.
//! - [`outbox`]: what waits for its reader.
//!
//! Everything is bounded: streams, directories of each and of all together, changes that wait, and the thread's time. What
//! is beyond a bound is told, either as a refusal or, once a stream has begun, as an overflow.

mod outbox;
mod stream;
mod thread;
mod told;
mod tree;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use ::landlock::RulesetCreated;
use berth_proto::{
    Error, Reason,
    agent_config::AgentConfig,
    v1::{self, watch_event::Event},
};
use futures::Stream;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use stream::Wanted;

use self::{
    outbox::{End, Inbox, News},
    thread::{Begin, Thread},
};
use super::{Identity, file_thread};
use crate::deadline::Busy;

/// Streams that a session has open at a time.
const STREAMS: usize = 16;
/// A quiet stream says that it is alive this often.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The watch thread.
pub struct Watcher {
    begins: SyncSender<Begin>,
    wake: Arc<EventFd>,
    places: Arc<Semaphore>,
    /// The session ends.
    ending: CancellationToken,
}

impl Watcher {
    /// Starts it. Fails if it can't take on the identity, or its landlock rules.
    pub fn start(
        config: &AgentConfig,
        lock: Option<RulesetCreated>,
        ending: CancellationToken,
    ) -> io::Result<Self> {
        // A place is held from before a stream is sent until the thread lets go of it: so there is room for each.
        let (begins, queue) = sync_channel(STREAMS);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let thread = Thread::new(queue, wake.clone());
        file_thread("watch", &config.user, Identity::Effective, lock, move || thread.run())?;
        Ok(Self { begins, wake, places: Arc::new(Semaphore::new(STREAMS)), ending })
    }

    /// Begins a stream. All watches stand when this returns.
    pub async fn watch(
        &self,
        wanted: Wanted,
        busy: Busy,
    ) -> Result<impl Stream<Item = Result<v1::WatchEvent, Status>> + Send + 'static, Error> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            let text = format!("the session's files are watched by {STREAMS} streams already");
            Error::exhausted(Reason::TooManyWatches, text)
        })?;
        let (outbox, inbox) = outbox::pair();
        let (begun, told) = oneshot::channel();
        let reader = Reader {
            inbox: Woken { inbox, wake: self.wake.clone() },
            ending: self.ending.clone(),
            stage: Stage::Ready,
            _busy: busy,
        };
        let stopped = || Error::internal("what watches files has stopped");
        let stream = stream::Stream::new(wanted, outbox, place);
        self.begins.try_send(Begin { stream, begun }).map_err(|_| stopped())?;
        wake(&self.wake);
        told.await.map_err(|_| stopped())??;
        Ok(futures::stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((event.map(|event| v1::WatchEvent { event: Some(event) }).map_err(Status::from), reader))
        }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It sees that nobody can begin a stream any more.
        let (nobody, _) = sync_channel(0);
        self.begins = nobody;
        wake(&self.wake);
    }
}

fn wake(event: &EventFd) {
    // It can't be full: that takes 2^64 calls that nobody hears.
    let _ = event.write(1);
}

/// Tells the thread when it goes.
struct Woken {
    inbox: Inbox,
    wake: Arc<EventFd>,
}

impl Drop for Woken {
    fn drop(&mut self) {
        self.inbox.close();
        wake(&self.wake);
    }
}

enum Stage {
    Ready,
    Changes,
    Over,
}

struct Reader {
    inbox: Woken,
    ending: CancellationToken,
    stage: Stage,
    _busy: Busy,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        match self.stage {
            Stage::Over => return None,
            Stage::Ready => {
                self.stage = Stage::Changes;
                return Some(Ok(Event::Ready(v1::watch_event::Ready {})));
            }
            Stage::Changes => {}
        }
        let news = tokio::select! {
            biased;
            () = self.ending.cancelled() => {
                News::End(End::Failed(Error::precondition(Reason::SessionEnded, "the session is over")))
            }
            news = self.inbox.inbox.next() => news,
            () = tokio::time::sleep(KEEPALIVE) => {
                return Some(Ok(Event::Keepalive(v1::watch_event::Keepalive {})));
            }
        };
        Some(match news {
            News::Change(change) => Ok(Event::Change(change)),
            News::Lost { unwatched } => Ok(Event::Overflow(v1::watch_event::Overflow { unwatched })),
            News::End(end) => {
                self.stage = Stage::Over;
                match end {
                    End::Gone => Ok(Event::Ended(v1::watch_event::Ended {})),
                    End::Failed(error) => Err(error),
                }
            }
        })
    }
}
