//! When to look at what again. A timer decides nothing: the look does, by the state as it
//! is then.

use std::time::Duration;

use berth_proto::{
    SessionId, WorkerId,
    domain::{EndReason, SessionState},
};

use super::{
    Effect, Fleet, Liveness, Scheduling,
    model::{Clock, Now, Session, Worker},
};

/// How often old records are looked for.
pub(super) const PURGE_EVERY: Duration = Duration::from_secs(60);
/// A look that left its own reason standing comes again after this: never a busy loop.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Beyond the start timeout, which the worker enforces first.
const START_MARGIN: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    Session(SessionId),
    Worker(WorkerId),
    Purge,
    /// The leases of an earlier coordinator are over.
    Lease,
}

impl Fleet {
    /// When a session is to be looked at next.
    pub(super) fn session_timer(&self, session: &Session) -> Option<Duration> {
        let clock = &session.clock;
        let ttl = clock.expires.map(|at| at.saturating_add(self.config.ttl_margin));
        match session.state {
            SessionState::Pending => {
                let refused = clock.refused.values().min().copied();
                [Some(clock.wait_until), clock.expires, refused].into_iter().flatten().min()
            }
            SessionState::Placed => ttl.into_iter().chain([self.start_deadline(session)]).min(),
            SessionState::Ready | SessionState::Paused => ttl,
            SessionState::Parked => {
                let leaves = session.worker.as_ref().map(|_| clock.ending_check);
                clock.expires.into_iter().chain(leaves).min()
            }
            SessionState::Ending => Some(clock.ending_check),
            SessionState::Ended => None,
        }
    }

    fn start_deadline(&self, session: &Session) -> Duration {
        session.clock.placed_at + self.start_timeout(session) + START_MARGIN
    }

    /// When a worker is to be looked at next.
    pub(super) fn worker_timer(&self, worker: &Worker) -> Option<Duration> {
        let lease = match worker.liveness {
            Liveness::Alive => Some(worker.lease_until.saturating_sub(self.config.lease / 3)),
            Liveness::Suspect => Some(worker.lease_until),
            Liveness::Dead if self.index.load.contains_key(&worker.id) => {
                // While no worker is alive there is no deadline: look from time to time.
                let next = self.restore_at(worker).or_else(|| self.eviction_at(worker));
                Some(next.unwrap_or(worker.down_since + self.config.worker_loss_grace))
            }
            Liveness::Dead => None,
        };
        let drain = worker.drain_at.filter(|_| self.index.load.contains_key(&worker.id));
        lease.into_iter().chain(drain).min()
    }

    pub(super) fn tick(&mut self, now: Now) {
        let later = self
            .timers
            .split_off(&(now.mono + Duration::from_nanos(1), Timer::Session(SessionId::from_u128(0))));
        let due = std::mem::replace(&mut self.timers, later).into_iter().map(|(_, timer)| timer);
        // Workers first: a session that is placed in this tick must not go to one whose lease ran out in it.
        let (workers, others): (Vec<_>, Vec<_>) = due.partition(|timer| matches!(timer, Timer::Worker(_)));
        for timer in workers.into_iter().chain(others) {
            match &timer {
                Timer::Session(id) => self.check_session(*id, now),
                Timer::Worker(id) => self.check_worker(id, now),
                Timer::Purge => self.purge(now),
                // Should the store refuse this, the longer one stands: that only takes longer after the next start.
                Timer::Lease => self.out.push(Effect::SaveLease(self.config.lease)),
            }
            let next = match &timer {
                Timer::Session(id) => self.sessions.get(id).and_then(|s| self.session_timer(s)),
                Timer::Worker(id) => self.workers.get(id).and_then(|w| self.worker_timer(w)),
                Timer::Purge => Some(now.mono + PURGE_EVERY),
                Timer::Lease => None,
            };
            if let Some(at) = next {
                self.arm(at, timer);
            }
        }
    }

    /// A time that has passed has had its look: if that left the reason standing, the next
    /// one comes a little later, and never in a busy loop.
    pub(super) fn arm(&mut self, at: Duration, timer: Timer) {
        let at = if at > self.clock { at } else { self.clock + LOOK_AGAIN };
        self.timers.insert((at, timer));
    }

    fn check_session(&mut self, id: SessionId, now: Now) {
        let Some(session) = self.sessions.get(&id).cloned() else { return };
        let passed = |at: Option<Duration>| at.is_some_and(|at| at <= now.mono);
        match session.state {
            SessionState::Pending if passed(session.clock.expires) => {
                self.finish(id, EndReason::TtlExpired, "it waited for a place until its TTL was over", now);
            }
            // A cool-down is over, or the wait: the pass through the queue decides.
            SessionState::Pending => {
                let mut clock = session.clock.clone();
                clock.refused.retain(|_, until| *until > now.mono);
                self.put_session(Session { clock, ..(*session).clone() });
            }
            SessionState::Placed | SessionState::Ready | SessionState::Paused
                if passed(session.clock.expires.map(|at| at + self.config.ttl_margin)) =>
            {
                self.end_session(id, EndReason::TtlExpired, "", now);
            }
            SessionState::Parked if passed(session.clock.expires) => {
                self.end_session(id, EndReason::TtlExpired, "its TTL was over while it was parked", now);
            }
            SessionState::Parked if session.worker.is_some() && session.clock.ending_check <= now.mono => {
                self.still_leaving(&session, now);
            }
            SessionState::Placed if self.start_deadline(&session) <= now.mono => {
                self.start_is_late(&session, now)
            }
            SessionState::Ending if session.clock.ending_check <= now.mono => {
                self.still_ending(&session, now)
            }
            _ => {}
        }
    }

    /// The worker should have said something by now. One that can't speak is left to its lease.
    fn start_is_late(&mut self, session: &Session, now: Now) {
        if !self.alive(session) {
            return;
        }
        self.put_session(Session { start_timed_out: true, ..session.clone() });
        let words = format!("the sandbox was not ready within {} s", self.start_timeout(session).as_secs());
        if session.comes_from_park() {
            self.tell_end(session, EndReason::SandboxFailed);
            return self.park_again(session.id, EndReason::SandboxFailed, &words);
        }
        self.end_session(session.id, EndReason::SandboxFailed, &words, now);
    }

    /// A live worker is told once more. For one that isn't there we don't wait: should it
    /// come back with the session, its hello is answered with the end.
    fn still_ending(&mut self, session: &Session, now: Now) {
        let reason = session.end.unwrap_or(EndReason::Deleted);
        if self.alive(session) {
            self.tell_end(session, reason);
            let clock = Clock { ending_check: now.mono + self.config.ending_check, ..session.clock.clone() };
            self.put_session(Session { clock, ..session.clone() });
        } else {
            self.finish(session.id, reason, "", now);
        }
    }

    pub(super) fn alive(&self, session: &Session) -> bool {
        let worker = session.worker.as_ref().and_then(|id| self.workers.get(id));
        worker.is_some_and(|w| w.liveness == Liveness::Alive)
    }

    /// Forgets what is old: ended sessions, request ids, workers that are gone.
    fn purge(&mut self, now: Now) {
        let age = |at: std::time::SystemTime| now.wall.duration_since(at).unwrap_or_default();
        let surplus = self.index.ended.len().saturating_sub(self.config.ended_limit);
        let old = |(at, _): &(std::time::SystemTime, SessionId)| age(*at) > self.config.retention;
        let count = surplus.max(self.index.ended.iter().take_while(|entry| old(entry)).count());
        let forgotten: Vec<_> = self.index.ended.iter().take(count).map(|(_, id)| *id).collect();
        for id in forgotten {
            self.forget_session(id);
        }
        let stale = |key: &&super::RequestKey| age(key.created_at) > self.config.key_retention;
        let keys: Vec<_> = self.keys.values().filter(stale).map(|k| k.key.clone()).collect();
        for key in keys {
            self.forget_key(&key);
        }
        let kept = |w: &Worker| match w.scheduling {
            Scheduling::Active => self.config.worker_retention,
            Scheduling::Cordoned | Scheduling::Draining { .. } => self.config.cordon_retention,
        };
        let gone = |w: &&std::sync::Arc<Worker>| {
            w.liveness == Liveness::Dead
                && now.mono.saturating_sub(w.down_since) > kept(w)
                && !self.index.load.contains_key(&w.id)
        };
        let workers: Vec<_> = self.workers.values().filter(gone).map(|w| w.id.clone()).collect();
        for id in workers {
            self.forget_worker(id);
        }
    }
}
