//! What changes in a session's directories, as it happens. Such a stream can't be resumed, since nobody keeps what happened
//! while it was broken: whoever watches anew lists anew.

use std::time::Duration;

use berth_proto::v1::{self, watch_event::Event};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

use crate::{
    Error,
    files::{Files, service},
    model::FileChange,
};

/// Servers send keepalives in quiet times; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);

/// How to watch a directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChangeOptions {
    recursive: bool,
    include_entry: bool,
}

impl ChangeOptions {
    pub fn new() -> Self {
        Self::default()
    }

    /// With all directories below it, those to come included.
    #[must_use]
    pub fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    /// With each change, what is there when it is told.
    #[must_use]
    pub fn include_entry(mut self) -> Self {
        self.include_entry = true;
        self
    }
}

/// What a watched directory tells.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeEvent {
    Change(Box<FileChange>),
    /// Changes were lost: list again. `unwatched`: there are more directories below than are watched, and of those beyond
    /// nothing will be told.
    Overflow {
        unwatched: bool,
    },
}

/// The changes in a directory. Dropping it ends the watch.
pub struct ChangeStream {
    files: Files,
    inner: Streaming<v1::WatchEvent>,
    /// When something came last.
    alive: Instant,
    ended: bool,
}

impl Files {
    /// Watches a directory. When this returns the watch stands: who lists from then on misses nothing.
    pub async fn watch(&self, path: &str, options: ChangeOptions) -> Result<ChangeStream, Error> {
        let request = v1::WatchRequest {
            session_id: self.session.id.to_string(),
            path: path.to_owned(),
            recursive: options.recursive,
            include_entry: options.include_entry,
        };
        let inner = self
            .session
            .client
            .open(request, |channel, request| async { service(channel).watch(request).await })
            .await?;
        let mut stream = ChangeStream { files: self.clone(), inner, alive: Instant::now(), ended: false };
        match stream.event().await? {
            Some(Event::Ready(_)) => Ok(stream),
            _ => Err(Error::strange("a watch began with something else")),
        }
    }
}

impl ChangeStream {
    /// What happens next. `None`: the path does not name this directory any more. After an error it is over: watch anew,
    /// and then list. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<ChangeEvent>, Error> {
        loop {
            if self.ended {
                return Ok(None);
            }
            return Ok(match self.event().await? {
                Some(Event::Change(change)) => Some(ChangeEvent::Change(Box::new(change.try_into()?))),
                Some(Event::Overflow(told)) => Some(ChangeEvent::Overflow { unwatched: told.unwatched }),
                Some(Event::Keepalive(_)) => continue,
                Some(Event::Ended(_)) => {
                    self.ended = true;
                    None
                }
                Some(Event::Ready(_)) | None => return Err(Error::strange("a watch ended without a word")),
            });
        }
    }

    async fn event(&mut self) -> Result<Option<Event>, Error> {
        let client = &self.files.session.client;
        match timeout_at(self.alive + SILENCE, self.inner.message()).await {
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(message))) => {
                self.alive = Instant::now();
                message.event.map(Some).ok_or_else(|| Error::strange("an empty event of a watch"))
            }
            Ok(Err(status)) => Err(client.error(status)),
            Err(_) => Err(Error::deadline(client.address(), SILENCE)),
        }
    }
}

impl std::fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeStream").field("ended", &self.ended).finish_non_exhaustive()
    }
}
