//! `berth drain`: empties a worker, and shows how that goes.
//!
//! What became of each session is told by the events, so that none is missed that came and went between two looks;
//! whether the worker is empty, and until when it has time, by the worker itself.

use std::{collections::BTreeMap, time::Duration};

use berth_client::{
    Client, Error, EventStream, ListOptions, Reason, SessionId, SessionState,
    model::{Change, Scheduling, SessionInfo, WorkerInfo},
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::Instant;

use super::{Global, admin};
use crate::{
    failure::{CommandResult, Failure, code},
    output::{self, count, left, say, span},
    signals::Interrupts,
    value,
};

/// How often the worker is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What sessions take to be removed once their time is up.
const MARGIN: Duration = Duration::from_secs(90);
/// A coordinator that is started again is waited for so long: the drain is in its store.
const AWAY: Duration = Duration::from_secs(30);

const HELP: &str = "\
Sessions have until the deadline to end by themselves; then they are ended. Those with
--on-worker-loss restore go on elsewhere, with a checkpoint of just before: as soon as nothing
runs in them, or half a minute before the deadline.

Waits until the worker is empty. Ctrl-C stops the waiting, not the drain; `berth uncordon`
does that. With --format json it prints one object when the worker is empty: the worker, and
how many sessions `moved`, were `parked`, and `ended`.

Examples:
  berth drain worker-1
  berth drain worker-1 --deadline 0      end its sessions now
  berth drain worker-1 --no-wait";

/// Empties a worker.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct DrainArgs {
    /// Worker
    #[arg(value_name = "WORKER")]
    pub worker: String,

    /// Time that its sessions have to end by themselves
    #[arg(long, value_parser = value::duration, default_value = "10m", value_name = "TIME")]
    pub deadline: Duration,

    /// Return at once
    #[arg(long)]
    pub no_wait: bool,
}

pub async fn drain(global: &Global, args: DrainArgs) -> CommandResult {
    let client = global.client().await?;
    if args.no_wait {
        return admin::changed(global, &client.drain(&args.worker, Some(args.deadline)).await?);
    }
    let mut interrupts = Interrupts::new()?;
    let begun = Instant::now();
    // Watched and listed before it begins: all that leaves from then on is seen.
    let events = client.events(None).await?;
    let mut watch = Watch { client: client.clone(), events: Some(events), tally: Tally::new(&args.worker) };
    watch.list().await?;
    let worker = client.drain(&args.worker, Some(args.deadline)).await?;
    let bar = bar(&worker.id);
    let deadline = args.deadline.saturating_add(MARGIN);
    let waited = tokio::select! {
        waited = tokio::time::timeout(deadline, watch.until_empty(worker, &bar)) => waited,
        _ = interrupts.recv() => {
            bar.finish_and_clear();
            let left = count(watch.tally.of(Fate::Here), "session");
            say(format!("the drain goes on with {left}; `berth uncordon {}` ends it", args.worker));
            return Ok(code::CANCELLED);
        }
    };
    bar.finish_and_clear();
    let worker = waited.map_err(|_| {
        Failure::new(format!("{} is not empty although its time is over", args.worker))
            .hint("`berth ps` shows the sessions that are left; the worker's log says why")
    })??;
    let tally = &watch.tally;
    if global.json() {
        output::json(&tally.drained(&worker, begun.elapsed()))?;
        return Ok(0);
    }
    say(format!("{} is empty after {}: {}", worker.id, span(begun.elapsed()), tally.gone()));
    admin::changed(global, &worker)
}

/// What became of a session that was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Here,
    /// It goes on elsewhere, or waits for that.
    Moved,
    Parked,
    Ended,
}

/// The sessions of a worker since its drain began.
struct Tally {
    worker: String,
    fates: BTreeMap<SessionId, Fate>,
}

/// A worker that was emptied, as JSON.
#[derive(Serialize)]
struct Drained<'a> {
    #[serde(flatten)]
    worker: &'a WorkerInfo,
    moved: u32,
    parked: u32,
    ended: u32,
    /// Seconds.
    took: f64,
}

impl Tally {
    fn new(worker: &str) -> Self {
        Self { worker: worker.to_owned(), fates: BTreeMap::new() }
    }

    /// A session as it is now. One that was never there is nobody's business here.
    fn see(&mut self, session: &SessionInfo) {
        let on_it = session.worker.as_ref() == Some(&self.worker);
        let fate = match session.state {
            SessionState::Ended => Fate::Ended,
            SessionState::Parked => Fate::Parked,
            SessionState::Pending => Fate::Moved,
            _ if on_it => Fate::Here,
            _ => Fate::Moved,
        };
        if fate == Fate::Here || self.fates.contains_key(&session.id) {
            self.fates.insert(session.id, fate);
        }
    }

    fn of(&self, fate: Fate) -> u32 {
        self.fates.values().filter(|seen| **seen == fate).count() as u32
    }

    /// `2 moved, 1 ended`.
    fn gone(&self) -> String {
        let parked = self.of(Fate::Parked);
        let parked = if parked > 0 { format!("{parked} parked, ") } else { String::new() };
        format!("{} moved, {parked}{} ended", self.of(Fate::Moved), self.of(Fate::Ended))
    }

    fn drained<'a>(&self, worker: &'a WorkerInfo, took: Duration) -> Drained<'a> {
        let [moved, parked, ended] = [Fate::Moved, Fate::Parked, Fate::Ended].map(|fate| self.of(fate));
        Drained { worker, moved, parked, ended, took: took.as_secs_f64() }
    }
}

/// What is looked at while a worker drains.
struct Watch {
    client: Client,
    /// `None`: events were lost, and are to be watched anew.
    events: Option<EventStream>,
    tally: Tally,
}

impl Watch {
    /// All sessions as they are now.
    async fn list(&mut self) -> Result<(), Error> {
        for session in self.client.sessions(ListOptions::new()).await? {
            self.tally.see(&session);
        }
        Ok(())
    }

    /// Looks until the worker holds nothing.
    async fn until_empty(
        &mut self,
        mut worker: WorkerInfo,
        bar: &ProgressBar,
    ) -> Result<WorkerInfo, Failure> {
        let mut told = String::new();
        let mut answered = Instant::now();
        loop {
            self.show(&worker, bar, &mut told);
            if worker.sessions == 0 {
                self.settle().await?;
                return Ok(worker);
            }
            self.listen(LOOK).await;
            worker = match self.client.worker(&worker.id).await {
                Ok(worker) => worker,
                Err(error) if error.is_temporary() && answered.elapsed() < AWAY => continue,
                Err(error) => return Err(error.into()),
            };
            answered = Instant::now();
            if worker.scheduling != Scheduling::Draining {
                return Err(Failure::new(format!("somebody ended the drain of {}", worker.id))
                    .hint("`berth workers` shows how it stands; `berth drain` begins anew"));
            }
        }
    }

    /// Takes in what happens for a while.
    async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            if self.events.is_none() {
                self.events = self.client.events(None).await.ok();
                // Who has ended meanwhile is asked for when the worker is empty.
                let _ = self.list().await;
            }
            let Some(events) = &mut self.events else { return tokio::time::sleep_until(end).await };
            match tokio::time::timeout_at(end, events.next()).await {
                Ok(Ok(event)) => {
                    if let Change::Session(session) = event.change {
                        self.tally.see(&session);
                    }
                }
                Ok(Err(_)) => {
                    self.events = None;
                    return tokio::time::sleep_until(end).await;
                }
                Err(_) => return,
            }
        }
    }

    /// The worker is empty: of whom the word has not come yet, is asked for.
    async fn settle(&mut self) -> Result<(), Error> {
        let here = |(id, fate): (&SessionId, &Fate)| (*fate == Fate::Here).then_some(*id);
        let open: Vec<SessionId> = self.tally.fates.iter().filter_map(here).collect();
        for id in open {
            match self.client.session(id).info().await {
                Ok(session) => self.tally.see(&session),
                Err(error) if error.is(Reason::SessionNotFound) => {
                    self.tally.fates.insert(id, Fate::Ended);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn show(&self, worker: &WorkerInfo, bar: &ProgressBar, told: &mut String) {
        let standing = format!("{} left, {}", count(worker.sessions, "session"), self.tally.gone());
        let time = match left(worker.drain_deadline).as_str() {
            "" | "over" => "its time is over".to_owned(),
            left => format!("for at most {left}"),
        };
        let line = format!("{standing}; {time}");
        // Without a terminal a line each time that the figures change.
        if bar.is_hidden() && *told != standing {
            say(format!("{}: {line}", worker.id));
        }
        *told = standing;
        let all = (self.tally.fates.len() as u64).max(worker.sessions.into());
        bar.set_length(all);
        bar.set_position(all - u64::from(worker.sessions));
        bar.set_message(line);
    }
}

fn bar(worker: &str) -> ProgressBar {
    let target =
        if super::stderr_is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{spinner} {prefix} [{bar:20}] {pos}/{len}  {msg}");
    let bar = ProgressBar::with_draw_target(None, target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(output::printable(worker));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

#[cfg(test)]
mod tests {
    use berth_proto::v1;

    use super::*;

    fn session(id: u128, state: v1::SessionState, worker: &str) -> SessionInfo {
        let id = SessionId::from_u128(id).to_string();
        let limits = v1::Limits {
            cpu_millis: Some(1000),
            memory_bytes: Some(1 << 30),
            disk_bytes: Some(1 << 30),
            pids: Some(64),
        };
        v1::Session {
            id,
            state: state.into(),
            worker_id: worker.into(),
            limits: Some(limits),
            task_defaults: Some(v1::TaskDefaults::default()),
            checkpoints: Some(v1::CheckpointPolicy::default()),
            ..Default::default()
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn of_each_session_that_was_there_its_fate_is_counted_once() {
        use v1::SessionState::*;
        let mut tally = Tally::new("w");
        for (id, state, worker) in [
            (1, Ready, "w"),
            (2, Ready, "w"),
            (3, Paused, "w"),
            (4, Placed, "w"),
            // Never there.
            (5, Ready, "other"),
            (6, Ended, "w"),
            // Away, and ended elsewhere after that.
            (1, Ending, "w"),
            (1, Pending, ""),
            (1, Ready, "other"),
            (1, Ended, "other"),
            (2, Pending, ""),
            (3, Parked, "w"),
        ] {
            tally.see(&session(id, state, worker));
        }
        let counts = [Fate::Here, Fate::Moved, Fate::Parked, Fate::Ended].map(|fate| tally.of(fate));
        assert_eq!(counts, [1, 1, 1, 1]);
        assert_eq!(tally.gone(), "1 moved, 1 parked, 1 ended");
        let worker = WorkerInfo { id: "w".into(), ..WorkerInfo::default() };
        let json = serde_json::to_value(tally.drained(&worker, Duration::from_millis(1500))).unwrap();
        assert_eq!(
            [&json["id"], &json["moved"], &json["parked"], &json["ended"], &json["took"]],
            [&serde_json::json!("w"), &1.into(), &1.into(), &1.into(), &1.5.into()]
        );
    }
}
