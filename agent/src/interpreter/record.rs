//! What came of one execution, and the streams of those who watch it. A record is bounded, and written whether or not
//! anybody reads it; readers go their own pace through it, so none of them holds up the code, or another reader.
//!
//! In memory: it is small, and gone with its context. (What must outlive that is for a file, or a task.)

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_proto::{
    transport::CHUNK,
    v1::{self, execute_event::Event},
};
use bytes::Bytes;
use futures::Stream;
use tokio::sync::watch;
use tonic::Status;

use crate::deadline::Busy;

/// Bytes of all records of a session together. Then the newest output is left out.
const STORED_MAX: u64 = 48 << 20;
/// What an entry takes beside its bytes: a flood of tiny ones is bounded by it.
const ENTRY: u64 = 128;
/// A quiet stream says that it is alive this often.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Bytes that the records of a session hold.
#[derive(Default)]
pub struct Stored(AtomicU64);

impl Stored {
    fn take(&self, bytes: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= STORED_MAX);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

enum Entry {
    /// Grows while nothing else comes between.
    Text {
        stderr: bool,
        offset: u64,
        data: Vec<u8>,
    },
    Whole(Event),
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// Bytes of each stream so far, stdout first.
    lengths: [u64; 2],
    stored: u64,
    lost: u64,
    end: Option<v1::ExecutionEnded>,
    /// The session is not idle until it has ended.
    busy: Option<Box<dyn Send>>,
}

/// What came of one execution so far.
pub struct Record {
    pub number: u64,
    limit: u64,
    all: Arc<Stored>,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

impl Record {
    /// `busy` is kept until it has ended.
    pub fn new(number: u64, limit: u64, all: Arc<Stored>, busy: Box<dyn Send>) -> Arc<Self> {
        let inner = Inner { busy: Some(busy), ..Inner::default() };
        Arc::new(Self { number, limit, all, inner: Mutex::new(inner), changed: watch::Sender::new(()) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for `bytes` more, unless that is over a limit. Once something was left out, so is all that follows.
    fn room(&self, inner: &mut Inner, bytes: u64) -> bool {
        let fits = inner.lost == 0 && inner.stored + bytes <= self.limit && self.all.take(bytes);
        if fits {
            inner.stored += bytes;
        }
        fits
    }

    /// Output has come.
    pub fn text(&self, stderr: bool, mut data: &[u8]) {
        let mut inner = self.inner();
        if inner.end.is_some() || data.is_empty() {
            return;
        }
        while !data.is_empty() {
            let grows = match inner.entries.last() {
                Some(Entry::Text { stderr: of, data, .. }) if *of == stderr => CHUNK - data.len(),
                _ => 0,
            };
            let extra = if grows == 0 { ENTRY } else { 0 };
            let left = if inner.lost > 0 { 0 } else { self.limit.saturating_sub(inner.stored + extra) };
            let most = if grows == 0 { CHUNK } else { grows };
            let (part, rest) = data.split_at(data.len().min(most).min(left as usize));
            if part.is_empty() || !self.room(&mut inner, part.len() as u64 + extra) {
                inner.lost += data.len() as u64;
                break;
            }
            let stream = usize::from(stderr);
            let offset = inner.lengths[stream];
            inner.lengths[stream] += part.len() as u64;
            match inner.entries.last_mut() {
                Some(Entry::Text { data, .. }) if grows > 0 => data.extend_from_slice(part),
                _ => inner.entries.push(Entry::Text { stderr, offset, data: part.to_vec() }),
            }
            data = rest;
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// Something is shown.
    pub fn bundle(&self, event: fn(v1::MimeBundle) -> Event, bundle: v1::MimeBundle) {
        let forms = bundle.data.iter().map(|form| form.data.len() as u64 + ENTRY);
        let bytes = forms.sum::<u64>() + ENTRY;
        let mut inner = self.inner();
        if inner.end.is_some() {
            return;
        }
        if self.room(&mut inner, bytes) {
            inner.entries.push(Entry::Whole(event(bundle)));
        } else {
            inner.lost += bytes;
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// The code raised. The first counts. It has room in any case; its words only while all records have some.
    pub fn error(&self, mut error: v1::ExecutionError) {
        let mut inner = self.inner();
        let told = inner.entries.iter().rev().any(|entry| matches!(entry, Entry::Whole(Event::Error(_))));
        if inner.end.is_none() && !told {
            let bytes = (error.name.len() + error.value.len() + error.traceback.len()) as u64;
            if self.all.take(bytes) {
                inner.stored += bytes;
            } else {
                inner.lost += bytes;
                error = v1::ExecutionError { name: "(left out)".to_owned(), ..Default::default() };
            }
            inner.entries.push(Entry::Whole(Event::Error(error)));
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// It has ended. The first end counts.
    pub fn end(&self, outcome: v1::ExecutionOutcome, message: impl Into<String>, duration: Duration) {
        let mut inner = self.inner();
        if inner.end.is_none() {
            inner.end = Some(v1::ExecutionEnded {
                outcome: outcome.into(),
                message: message.into(),
                duration: Some(berth_proto::convert::duration_out(duration)),
                output_lost: inner.lost,
            });
            inner.busy = None;
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// From its beginning to its end.
    pub fn watch(
        self: Arc<Self>,
        started: v1::ExecutionStarted,
        busy: Busy,
    ) -> impl Stream<Item = Result<v1::ExecuteEvent, Status>> + Send + 'static {
        let changes = self.changed.subscribe();
        let reader = Reader {
            record: self,
            changes,
            started: Some(started),
            at: 0,
            taken: 0,
            over: false,
            _busy: busy,
        };
        futures::stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((Ok(v1::ExecuteEvent { event: Some(event) }), reader))
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let stored = self.inner().stored;
        self.all.give_back(stored);
    }
}

struct Reader {
    record: Arc<Record>,
    changes: watch::Receiver<()>,
    started: Option<v1::ExecutionStarted>,
    /// The entry that comes next, and what was read of it.
    at: usize,
    taken: usize,
    over: bool,
    _busy: Busy,
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        if let Some(started) = self.started.take() {
            return Some(Event::Started(started));
        }
        while !self.over {
            // Before looking: what changes meanwhile wakes us again.
            self.changes.borrow_and_update();
            if let Some(event) = self.look() {
                return Some(event);
            }
            if tokio::time::timeout(KEEPALIVE, self.changes.changed()).await.is_err() {
                return Some(Event::Keepalive(v1::execute_event::Keepalive {}));
            }
        }
        None
    }

    fn look(&mut self) -> Option<Event> {
        let inner = self.record.inner();
        while let Some(entry) = inner.entries.get(self.at) {
            match entry {
                Entry::Whole(event) => {
                    self.at += 1;
                    return Some(event.clone());
                }
                Entry::Text { stderr, offset, data } if self.taken < data.len() => {
                    let offset = offset + self.taken as u64;
                    let chunk = v1::OutputChunk { offset, data: Bytes::copy_from_slice(&data[self.taken..]) };
                    self.taken = data.len();
                    return Some(if *stderr { Event::Stderr(chunk) } else { Event::Stdout(chunk) });
                }
                // The last one may grow.
                Entry::Text { .. } if self.at + 1 == inner.entries.len() => break,
                Entry::Text { .. } => (self.at, self.taken) = (self.at + 1, 0),
            }
        }
        let end = inner.end.clone()?;
        self.over = true;
        Some(Event::Ended(end))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::deadline::Activity;

    fn record(limit: u64, all: &Arc<Stored>) -> Arc<Record> {
        Record::new(1, limit, all.clone(), Box::new(()))
    }

    async fn events(record: &Arc<Record>) -> Vec<Event> {
        let stream = record.clone().watch(v1::ExecutionStarted::default(), Activity::new().enter());
        stream.map(|event| event.unwrap().event.unwrap()).collect().await
    }

    fn bytes(events: &[Event]) -> (usize, u64) {
        let mut total = 0;
        for event in events {
            match event {
                Event::Stdout(chunk) | Event::Stderr(chunk) => total += chunk.data.len(),
                Event::Ended(end) => return (total, end.output_lost),
                _ => {}
            }
        }
        panic!("no end: {events:?}");
    }

    #[tokio::test]
    async fn a_reader_that_comes_late_reads_all_of_it_in_order() {
        let record = record(1 << 20, &Arc::default());
        record.text(false, b"a");
        record.text(false, b"b");
        record.text(true, b"c");
        record.bundle(Event::Result, v1::MimeBundle::default());
        record.end(v1::ExecutionOutcome::Ok, "", Duration::ZERO);
        record.text(false, b"too late");
        let events = events(&record).await;
        let Event::Stdout(first) = &events[1] else { panic!("{events:?}") };
        assert_eq!(&first.data[..], b"ab", "what follows at once is one");
        assert!(matches!(
            &events[..],
            [Event::Started(_), Event::Stdout(_), Event::Stderr(_), Event::Result(_), Event::Ended(_)]
        ));
    }

    /// Red when tiny pieces, or bundles, are not counted, or not to the byte.
    #[tokio::test]
    async fn what_is_over_the_limit_is_left_out_and_counted() {
        let all = Arc::new(Stored::default());
        let record = record(1000, &all);
        record.text(false, &[1; 5000]);
        record.text(false, b"more");
        record.end(v1::ExecutionOutcome::Ok, "", Duration::ZERO);
        assert_eq!(bytes(&events(&record).await), (1000 - ENTRY as usize, 5004 - (1000 - ENTRY)));
        let tiny = self::record(1000, &all);
        for n in 0..1000 {
            tiny.text(n % 2 == 0, b"x");
        }
        tiny.end(v1::ExecutionOutcome::Ok, "", Duration::ZERO);
        let (kept, lost) = bytes(&events(&tiny).await);
        assert!(kept < 10 && kept as u64 + lost == 1000, "{kept} {lost}");
        assert!(all.0.load(Ordering::Relaxed) <= 2000);
        drop((record, tiny));
        assert_eq!(all.0.load(Ordering::Relaxed), 0, "what is forgotten is given back");
    }

    /// Red when the words of errors are not counted.
    #[tokio::test]
    async fn errors_are_bounded_too() {
        let all = Arc::new(Stored::default());
        let error = || v1::ExecutionError { traceback: "x".repeat(128 << 10), ..Default::default() };
        let records: Vec<_> = (0..500).map(|_| record(1 << 20, &all)).collect();
        for record in &records {
            record.error(error());
            record.error(error());
            record.end(v1::ExecutionOutcome::Error, "", Duration::ZERO);
        }
        assert!(all.0.load(Ordering::Relaxed) <= STORED_MAX);
        let last = events(&records[499]).await;
        assert!(matches!(&last[1], Event::Error(error) if error.traceback.is_empty()), "{last:?}");
    }

    /// Red when the session's bound is not looked at.
    #[tokio::test]
    async fn all_records_together_have_a_bound() {
        let all = Arc::new(Stored::default());
        let records: Vec<_> = (0..5).map(|_| record(16 << 20, &all)).collect();
        for record in &records {
            record.text(false, &vec![0; 15 << 20]);
        }
        let held = all.0.load(Ordering::Relaxed);
        assert!(held <= STORED_MAX && held > STORED_MAX / 2, "{held}");
    }
}
