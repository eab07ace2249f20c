//! Two clocks. The **task clock** stands still while the session is paused, so that a
//! pause uses up neither timeouts nor reattach graces. The **boot clock** also counts
//! while the machine is suspended: the session's own deadlines are on it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::clock_gettime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::Instant,
};

use crate::sys;

#[derive(Clone, Copy)]
struct Pause {
    /// Since when it stands still.
    since: Option<Instant>,
    /// Earlier pauses together.
    total: Duration,
}

/// Time that tasks had, without pauses.
pub struct TaskClock {
    origin: Instant,
    pause: watch::Sender<Pause>,
}

impl TaskClock {
    /// Runs from now on.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            pause: watch::Sender::new(Pause { since: None, total: Duration::ZERO }),
        }
    }

    fn at(&self, pause: Pause) -> Duration {
        pause.since.unwrap_or_else(Instant::now).duration_since(self.origin).saturating_sub(pause.total)
    }

    /// Task time since the agent began.
    pub fn now(&self) -> Duration {
        self.at(*self.pause.borrow())
    }

    pub fn is_paused(&self) -> bool {
        self.pause.borrow().since.is_some()
    }

    /// Stops or starts the clock.
    pub fn set_paused(&self, paused: bool) {
        self.pause.send_modify(|pause| match (pause.since, paused) {
            (None, true) => pause.since = Some(Instant::now()),
            (Some(since), false) => {
                pause.total += since.elapsed();
                pause.since = None;
            }
            _ => {}
        });
    }

    /// Waits until the clock shows `deadline`. `None`: for ever.
    pub async fn sleep_until(&self, deadline: Option<Duration>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        let mut changes = self.pause.subscribe();
        loop {
            let pause = *changes.borrow_and_update();
            let left = deadline.saturating_sub(self.at(pause));
            if left.is_zero() {
                return;
            }
            let nap = async {
                match pause.since {
                    Some(_) => std::future::pending().await,
                    None => tokio::time::sleep(left).await,
                }
            };
            tokio::select! {
                () = nap => {}
                _ = changes.changed() => {}
            }
        }
    }
}

impl Default for TaskClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Time since boot, suspend included.
pub fn boot_now() -> Duration {
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// An alarm on the boot clock. (tokio's own timers stop while the machine is suspended.)
pub struct BootAlarm {
    timer: TimerFd,
    /// The same, for the runtime.
    ready: AsyncFd<OwnedFd>,
}

impl BootAlarm {
    pub fn new() -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let ready = sys::watch(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { timer, ready })
    }

    /// Waits until [`boot_now`] is `at`. `None`: for ever.
    pub async fn wait_until(&self, at: Option<Duration>) -> io::Result<()> {
        let Some(deadline) = at else { return std::future::pending().await };
        loop {
            let left = deadline.saturating_sub(boot_now());
            if left.is_zero() {
                return Ok(());
            }
            self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())?;
            let mut ready = self.ready.readable().await?;
            let _ = self.timer.wait();
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_uses_up_no_task_time() {
        let clock = std::sync::Arc::new(TaskClock::new());
        tokio::time::advance(Duration::from_secs(5)).await;
        clock.set_paused(true);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(clock.now(), Duration::from_secs(5));
        let sleeper = clock.clone();
        let nap = sleeper.sleep_until(Some(Duration::from_secs(6)));
        tokio::pin!(nap);
        assert!(tokio::time::timeout(Duration::from_secs(50), &mut nap).await.is_err());
        clock.set_paused(false);
        let began = Instant::now();
        nap.await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    /// Red when the timer is not set.
    #[tokio::test]
    async fn the_boot_alarm_rings() {
        let alarm = BootAlarm::new().unwrap();
        let at = boot_now() + Duration::from_millis(20);
        alarm.wait_until(Some(at)).await.unwrap();
        assert!(boot_now() >= at);
    }
}
