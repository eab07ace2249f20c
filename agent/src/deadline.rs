//! The session's own deadlines: its TTL, its idle timeout and its fence, on the boot clock.
//! They are the agent's, so that they hold when the worker is stopped, dead, or cut off.
//!
//! Idle: no task runs and no call is being served. A paused session is not idle.
//!
//! The fence is no end: it is passed once, and each renewal puts it off again.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::clock::{BootAlarm, boot_now};

/// What keeps a session from being idle.
#[derive(Default)]
pub struct Activity {
    busy: AtomicUsize,
    /// Boot time when it was last busy.
    last: Mutex<Duration>,
    changed: Notify,
}

/// While this lives, the session is not idle.
pub struct Busy(Arc<Activity>);

impl Activity {
    pub fn new() -> Arc<Self> {
        let activity = Self::default();
        activity.touch();
        Arc::new(activity)
    }

    /// A call, a task, or a pause begins.
    pub fn enter(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Something happens at this moment: an idle time begins anew.
    pub fn touch(&self) {
        *self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = boot_now();
    }

    /// Since when it is idle, in boot time.
    fn idle_since(&self) -> Option<Duration> {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(*self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.busy.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.changed.notify_one();
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Ends {
    /// In boot time.
    ttl: Option<Duration>,
    idle: Option<Duration>,
    /// In boot time. Gone when it was passed.
    fence: Option<Duration>,
}

/// The deadlines of one session.
pub struct Deadlines {
    ends: Mutex<Ends>,
    pub activity: Arc<Activity>,
}

/// Which deadline passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    Ttl,
    Idle,
    Fence,
}

impl Deadlines {
    pub fn new() -> Self {
        Self { ends: Mutex::default(), activity: Activity::new() }
    }

    fn ends(&self) -> Ends {
        *self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut Ends)) {
        change(&mut self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.activity.changed.notify_one();
    }

    /// Sets the session's ends anew, from now. `None`: no end.
    pub fn set(&self, ttl_left: Option<Duration>, idle: Option<Duration>) {
        let ttl = ttl_left.map(|left| boot_now().saturating_add(left));
        self.activity.touch();
        self.change(|ends| (ends.ttl, ends.idle) = (ttl, idle));
    }

    /// Puts the fence to this boot time. `None`: there is none.
    pub fn set_fence(&self, at: Option<Duration>) {
        self.change(|ends| ends.fence = at);
    }

    /// The next moment at which something may have passed.
    fn next(ends: Ends, idle_since: Option<Duration>) -> Option<(Duration, Expiry)> {
        let ttl = ends.ttl.map(|at| (at, Expiry::Ttl));
        let idle = ends.idle.zip(idle_since).map(|(idle, since)| (since.saturating_add(idle), Expiry::Idle));
        let fence = ends.fence.map(|at| (at, Expiry::Fence));
        [ttl, idle, fence].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Waits until one of them passes. The fence is over then, until it is set again.
    pub async fn expired(&self) -> io::Result<Expiry> {
        let alarm = BootAlarm::new()?;
        loop {
            let next = Self::next(self.ends(), self.activity.idle_since());
            match next {
                Some((at, expiry)) if at <= boot_now() => {
                    if expiry == Expiry::Fence {
                        self.change(|ends| ends.fence = None);
                    }
                    return Ok(expiry);
                }
                _ => {}
            }
            tokio::select! {
                rung = alarm.wait_until(next.map(|(at, _)| at)) => rung?,
                () = self.activity.changed.notified() => {}
            }
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_earlier_one_counts_and_the_busy_are_not_idle() {
        let ends = Ends { ttl: Some(s(100)), idle: Some(s(10)), fence: None };
        assert_eq!(Deadlines::next(ends, Some(s(50))), Some((s(60), Expiry::Idle)));
        assert_eq!(Deadlines::next(ends, Some(s(95))), Some((s(100), Expiry::Ttl)));
        assert_eq!(Deadlines::next(ends, None), Some((s(100), Expiry::Ttl)));
        assert_eq!(Deadlines::next(Ends::default(), Some(s(1))), None);
        let fenced = Ends { fence: Some(s(7)), ..ends };
        assert_eq!(Deadlines::next(fenced, Some(s(50))), Some((s(7), Expiry::Fence)));
    }

    #[tokio::test]
    async fn idle_begins_when_the_last_call_ends() {
        let deadlines = Arc::new(Deadlines::new());
        let busy = deadlines.activity.enter();
        deadlines.set(None, Some(Duration::from_millis(30)));
        let waiter = deadlines.clone();
        let expired = tokio::time::timeout(Duration::from_millis(120), waiter.expired()).await;
        assert!(expired.is_err(), "a call is being served");
        let ended = boot_now();
        drop(busy);
        assert_eq!(deadlines.expired().await.unwrap(), Expiry::Idle);
        assert!(boot_now() >= ended + Duration::from_millis(30));
    }

    /// Red when it is passed again and again, can't be put off, or never rings.
    #[tokio::test]
    async fn the_fence_is_passed_once_and_can_be_put_off() {
        let deadlines = Deadlines::new();
        deadlines.set_fence(Some(boot_now() + Duration::from_millis(20)));
        assert_eq!(deadlines.expired().await.unwrap(), Expiry::Fence);
        let again = tokio::time::timeout(Duration::from_millis(60), deadlines.expired()).await;
        assert!(again.is_err(), "it was passed already");
        deadlines.set_fence(Some(boot_now() + Duration::from_secs(3600)));
        deadlines.set_fence(Some(boot_now() + Duration::from_millis(20)));
        assert_eq!(deadlines.expired().await.unwrap(), Expiry::Fence);
    }

    #[tokio::test]
    async fn a_new_ttl_replaces_the_old() {
        let deadlines = Arc::new(Deadlines::new());
        deadlines.set(Some(Duration::from_secs(3600)), None);
        let waiter = deadlines.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        berth_proto::spawn::spawn("wait", async move {
            let _ = tell.send(waiter.expired().await.unwrap());
        });
        tokio::task::yield_now().await;
        deadlines.set(Some(Duration::from_millis(20)), None);
        assert_eq!(told.await.unwrap(), Expiry::Ttl);
    }
}
