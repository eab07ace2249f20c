//! Streams of which each piece is a job on a file thread: searches and archives. A job is made when the reader wants more.
//!
//! So many at a time, because each holds memory, a file or names, for as long as its reader likes; and so many jobs of
//! them at a time, because each takes a processor for a while, and others want the file threads too.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use berth_proto::{
    Error, Reason,
    v1::{self, pack_response::Part, search_event::Event},
};
use futures::{Stream, StreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::Status;

use super::{Files, Gone, pack, search, tree::Named};
use crate::deadline::Busy;

/// Searches and archives at a time.
const STREAMS: usize = 8;
/// Jobs of them: half of the file threads.
const JOBS: usize = super::THREADS / 2;
/// A search that finds nothing says that it is alive this often.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What they share.
pub struct Pieces {
    streams: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { streams: Arc::new(Semaphore::new(STREAMS)), jobs: Arc::new(Semaphore::new(JOBS)) }
    }
}

/// What a stream holds until it is dropped, beside what it is about.
struct Held {
    files: Arc<Files>,
    jobs: Arc<Semaphore>,
    _stream: OwnedSemaphorePermit,
    _busy: Busy,
}

impl Held {
    /// One piece of work, on a file thread.
    async fn job<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Gone) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _turn = self.jobs.acquire().await;
        self.files.run(job).await
    }
}

impl Pieces {
    fn held(&self, files: &Arc<Files>, busy: Busy) -> Result<Held, Error> {
        let stream = self.streams.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{STREAMS} searches and archives of the session are under way already");
            Error::exhausted(Reason::TooManyCalls, text).hint("wait until one has ended, or end it")
        })?;
        Ok(Held { files: files.clone(), jobs: self.jobs.clone(), _stream: stream, _busy: busy })
    }

    /// A search, as the service gives it.
    pub async fn search(
        &self,
        files: &Arc<Files>,
        named: Named,
        wire: v1::SearchRequest,
        busy: Busy,
    ) -> Result<impl Stream<Item = Result<v1::SearchEvent, Status>> + Send + use<>, Error> {
        let held = self.held(files, busy)?;
        let begin = move |_: &Gone| search::begin(&named.absolute, &named.shown, &wire);
        let searching = held.job(begin).await?;
        let state = (Some(searching), VecDeque::new(), held);
        Ok(futures::stream::unfold(state, |(mut searching, mut found, held)| async move {
            let keepalive_at = Instant::now() + KEEPALIVE;
            while found.is_empty() {
                let mut at = searching.take()?;
                match held.job(move |gone| Ok((at.step(gone)?, at))).await {
                    Ok((events, at)) => {
                        let over = matches!(events.last(), Some(Event::End(_)));
                        found.extend(events);
                        searching = (!over).then_some(at);
                    }
                    Err(error) => return Some((Err(error.into()), (None, found, held))),
                }
                if found.is_empty() && Instant::now() >= keepalive_at {
                    found.push_back(Event::Keepalive(v1::search_event::Keepalive {}));
                }
            }
            let event = found.pop_front();
            Some((Ok(v1::SearchEvent { event }), (searching, found, held)))
        })
        .fuse())
    }

    /// An archive, as the service gives it.
    pub async fn pack(
        &self,
        files: &Arc<Files>,
        named: Named,
        wire: v1::PackRequest,
        busy: Busy,
    ) -> Result<impl Stream<Item = Result<v1::PackResponse, Status>> + Send + use<>, Error> {
        let held = self.held(files, busy)?;
        let begin = move |_: &Gone| pack::begin(&named.absolute, &named.shown, &wire);
        let packing = held.job(begin).await?;
        let state = (Some(packing), None, held);
        Ok(futures::stream::unfold(state, |(mut packing, mut end, held)| async move {
            loop {
                if let Some(end) = end.take() {
                    let part = Some(Part::End(end));
                    return Some((Ok(v1::PackResponse { part }), (None, None, held)));
                }
                let mut at = packing.take()?;
                match held.job(move |gone| Ok((at.step(gone)?, at))).await {
                    Ok(((data, ended), at)) => {
                        packing = ended.is_none().then_some(at);
                        end = ended;
                        if !data.is_empty() {
                            let part = Some(Part::Data(data.into()));
                            return Some((Ok(v1::PackResponse { part }), (packing, end, held)));
                        }
                    }
                    Err(error) => return Some((Err(error.into()), (None, None, held))),
                }
            }
        })
        .fuse())
    }
}
