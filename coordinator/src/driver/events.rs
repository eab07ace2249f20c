//! The stream of changes for dashboards and integrators: a ring of the last ones, so that
//! a watcher who was away for a moment goes on where it was.
//!
//! Each watcher has its own cursor into the ring and pulls. Nobody waits for a slow one: it
//! falls out of the ring and is told that events were lost. Rejected: a broadcast channel
//! beside the ring, which has to be lined up with it at the seam.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use berth_proto::{Code, Error, Reason, convert::time_out, v1};
use prost::Message;
use tokio::sync::watch;

use crate::tenant::{Sight, Tenant};

/// Events that are kept, at most ...
const RING: usize = 10_000;
/// ... and their bytes: events carry labels and command lines.
const RING_BYTES: usize = 32 << 20;
/// Events that a watcher takes at a time.
const TAKE: usize = 256;

/// See the module.
pub struct Events {
    boot: String,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

struct Ring {
    /// Sequence number of the first kept event.
    first: u64,
    kept: VecDeque<Kept>,
    bytes: usize,
    /// The bounds.
    events_max: usize,
    bytes_max: usize,
}

/// An event, and whose it is. `None`: the operators'.
struct Kept {
    tenant: Option<Tenant>,
    event: Arc<v1::Event>,
}

impl Ring {
    /// Sequence number of the last event; 0 before the first.
    fn last(&self) -> u64 {
        self.first + self.kept.len() as u64 - 1
    }
}

impl Events {
    /// `boot` names this process, so that no token of another is taken for ours.
    pub fn new(boot: String) -> Self {
        Self::bounded(boot, RING, RING_BYTES)
    }

    fn bounded(boot: String, events_max: usize, bytes_max: usize) -> Self {
        let ring = Ring { first: 1, kept: VecDeque::new(), bytes: 0, events_max, bytes_max };
        Self { boot, ring: Mutex::new(ring), newest: watch::Sender::new(0) }
    }

    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Adds an event and wakes the watchers. `tenant`: whose it is; without one it is for operators alone.
    pub fn push(&self, subject: v1::event::Subject, tenant: Option<Tenant>, at: SystemTime) {
        let mut ring = self.ring();
        let sequence = ring.last() + 1;
        let event = v1::Event { token: self.token(sequence), at: Some(time_out(at)), subject: Some(subject) };
        ring.bytes += event.encoded_len();
        ring.kept.push_back(Kept { tenant, event: Arc::new(event) });
        while ring.kept.len() > ring.events_max || ring.bytes > ring.bytes_max {
            let Some(oldest) = ring.kept.pop_front() else { break };
            ring.bytes -= oldest.event.encoded_len();
            ring.first += 1;
        }
        drop(ring);
        self.newest.send_replace(sequence);
    }

    /// A watcher that has seen all up to `after_token`; an empty one begins now. It is told of what `sight` covers.
    pub fn watch(self: &Arc<Self>, sight: Sight, after_token: &str) -> Result<Watcher, Error> {
        let newest = self.newest.subscribe();
        let ring = self.ring();
        let cursor = if after_token.is_empty() { ring.last() } else { self.cursor(after_token, &ring)? };
        drop(ring);
        Ok(Watcher { events: self.clone(), sight, cursor, newest })
    }

    fn cursor(&self, token: &str, ring: &Ring) -> Result<u64, Error> {
        let bad = || {
            Error::invalid("after_token", "is not a token of this service").hint("pass a token on as it came")
        };
        let (boot, sequence) = token.rsplit_once('-').ok_or_else(bad)?;
        let sequence: u64 = sequence.parse().map_err(|_| bad())?;
        if boot != self.boot {
            return Err(lost("the token is of an earlier coordinator"));
        }
        if sequence > ring.last() {
            return Err(bad());
        }
        if sequence + 1 < ring.first {
            return Err(lost("the token is too old: events after it are gone"));
        }
        Ok(sequence)
    }

    fn token(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.boot)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(why: &str) -> Error {
    Error::new(Code::OutOfRange, Reason::EventsLost, why)
        .hint("list sessions and workers, then watch anew without a token")
}

/// One watcher's place in the stream.
pub struct Watcher {
    events: Arc<Events>,
    sight: Sight,
    cursor: u64,
    newest: watch::Receiver<u64>,
}

impl Watcher {
    /// A marker for where the watcher stands.
    pub fn marker(&self) -> v1::Event {
        v1::Event {
            token: self.events.token(self.cursor),
            at: Some(time_out(berth_proto::world::now())),
            subject: Some(v1::event::Subject::Marker(v1::event::Marker {})),
        }
    }

    /// The next events, at least one; waits for it. Cancelling loses nothing.
    pub async fn next(&mut self) -> Result<Vec<Arc<v1::Event>>, Error> {
        loop {
            // Seen before looked at: an event that comes between is not slept through.
            self.newest.borrow_and_update();
            loop {
                let (looked_at, events) = self.take()?;
                if !events.is_empty() {
                    return Ok(events);
                }
                if looked_at == 0 {
                    break;
                }
            }
            if self.newest.changed().await.is_err() {
                return Err(Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping"));
            }
        }
    }

    /// The next ones: how many there were, and of those what is for this watcher.
    fn take(&mut self) -> Result<(usize, Vec<Arc<v1::Event>>), Error> {
        let ring = self.events.ring();
        if self.cursor + 1 < ring.first {
            return Err(lost("this watcher was too slow: events are gone"));
        }
        let skip = (self.cursor + 1 - ring.first) as usize;
        let looked_at = ring.kept.len().saturating_sub(skip).min(TAKE);
        let next = ring.kept.iter().skip(skip).take(TAKE);
        let events = next.filter(|kept| seen(&self.sight, kept)).map(|kept| kept.event.clone()).collect();
        self.cursor += looked_at as u64;
        Ok((looked_at, events))
    }
}

fn seen(sight: &Sight, kept: &Kept) -> bool {
    match &kept.tenant {
        Some(tenant) => sight.covers(tenant),
        None => *sight == Sight::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> v1::event::Subject {
        v1::event::Subject::Marker(v1::event::Marker {})
    }

    #[tokio::test]
    async fn a_watcher_goes_on_where_it_was() {
        let events = Arc::new(Events::bounded("boot".into(), 4, 1 << 20));
        let mut first = events.watch(Sight::All, "").unwrap();
        events.push(marker(), None, SystemTime::now());
        events.push(marker(), None, SystemTime::now());
        let seen = first.next().await.unwrap();
        assert_eq!(seen.iter().map(|e| e.token.as_str()).collect::<Vec<_>>(), ["boot-1", "boot-2"]);
        let mut second = events.watch(Sight::All, "boot-1").unwrap();
        assert_eq!(second.marker().token, "boot-1");
        assert_eq!(second.next().await.unwrap()[0].token, "boot-2");
    }

    /// Red when `take` does not ask whose an event is.
    #[tokio::test]
    async fn a_tenant_is_told_of_its_own_and_of_nothing_else() {
        let events = Arc::new(Events::bounded("boot".into(), 2000, 1 << 20));
        let [a, b]: [Tenant; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let mut watcher = events.watch(Sight::Of(a.clone()), "").unwrap();
        // More of others than are taken at a time.
        for _ in 0..3 * TAKE {
            events.push(marker(), Some(b.clone()), SystemTime::now());
            events.push(marker(), None, SystemTime::now());
        }
        assert!(futures::poll!(Box::pin(watcher.next())).is_pending());
        events.push(marker(), Some(a), SystemTime::now());
        let seen = watcher.next().await.unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].token, format!("boot-{}", 6 * TAKE + 1));
    }

    #[tokio::test]
    async fn what_fell_out_of_the_ring_is_said_to_be_lost() {
        let events = Arc::new(Events::bounded("boot".into(), 4, 1 << 20));
        let mut slow = events.watch(Sight::All, "").unwrap();
        for _ in 0..6 {
            events.push(marker(), None, SystemTime::now());
        }
        assert_eq!(slow.next().await.unwrap_err().reason(), Reason::EventsLost);
        assert_eq!(events.watch(Sight::All, "boot-1").err().unwrap().reason(), Reason::EventsLost);
        assert!(events.watch(Sight::All, "boot-2").is_ok());
        assert_eq!(events.watch(Sight::All, "other-2").err().unwrap().reason(), Reason::EventsLost);
        assert_eq!(events.watch(Sight::All, "nonsense").err().unwrap().reason(), Reason::InvalidField);
        assert_eq!(events.watch(Sight::All, "boot-99").err().unwrap().reason(), Reason::InvalidField);
    }

    #[tokio::test]
    async fn big_events_push_out_old_ones_before_memory_is_gone() {
        let events = Arc::new(Events::bounded("boot".into(), 100, 10_000));
        let big =
            || v1::event::Subject::Worker(v1::Worker { version: "x".repeat(4000), ..Default::default() });
        for _ in 0..5 {
            events.push(big(), None, SystemTime::now());
        }
        let kept = events.watch(Sight::All, "boot-3").unwrap().next().await.unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(events.watch(Sight::All, "boot-2").err().unwrap().reason(), Reason::EventsLost);
    }
}
