//! What is said on a control stream once the worker is welcome: heartbeats and reports out, leases and
//! commands in, and at the end of the worker that it stops, and that it leaves.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use berth_proto::{
    convert,
    domain::BackendChoice,
    spawn::spawn,
    trace::TraceContext,
    v1::{self, coordinator_message::Message as Command, worker_message::Message},
    world,
};
use tokio::{sync::mpsc, time::Instant};
use tonic::Streaming;
use tracing::{debug, warn};

use super::{Ended, LEAVE_TIMEOUT, Link, NEWS_PAUSE};

impl Link {
    /// Speaks and listens until the stream breaks or the lease is over.
    pub(super) async fn converse(
        self: &Arc<Self>,
        mut incoming: Streaming<v1::CoordinatorMessage>,
        sender: mpsc::Sender<v1::WorkerMessage>,
        pace: Pace,
    ) -> Result<Infallible, Ended> {
        let mut next_beat = Instant::now();
        let mut lease_over = Instant::now() + pace.lease;
        // Reports first: the first heartbeat's answer then covers them.
        let mut reports = true;
        let mut first_beat = true;
        // When the heartbeats went that have no answer yet.
        let mut sent: VecDeque<(u64, Duration)> = VecDeque::new();
        // That this worker stops, and by when. The Hello may have been written before it did.
        let mut stopping = self.stopping.subscribe();
        stopping.mark_changed();
        let mut stops = false;

        loop {
            let beat_due = next_beat <= Instant::now();
            tokio::select! {
                biased;
                message = incoming.message() => match message? {
                    Some(v1::CoordinatorMessage { message: Some(command), traceparent }) => {
                        if let Command::Lease(lease) = &command {
                            let span = renewed(lease, pace);
                            lease_over = Instant::now() + span;
                            // The lease counts from when the heartbeat left: the coordinator got it later.
                            while let Some((sequence, at)) = sent.pop_front() {
                                if sequence == lease.sequence {
                                    self.sessions.leased(at + span);
                                }
                                if sequence >= lease.sequence {
                                    break;
                                }
                            }
                        }
                        match traceparent.parse::<TraceContext>() {
                            Ok(request) => request.enter(|| self.obey(command)),
                            Err(_) => self.obey(command),
                        }
                    }
                    Some(_) => debug!("a message of a kind that this version does not know"),
                    None => return Err(Ended::Broken("the coordinator ended the stream".to_owned())),
                },
                () = self.leaving.cancelled() => break,
                Ok(()) = stopping.changed() => stops = stopping.borrow_and_update().is_some(),
                () = tokio::time::sleep_until(lease_over) => {
                    return Err(Ended::Broken("the coordinator did not renew the lease".to_owned()));
                }
                permit = sender.reserve(), if beat_due || reports || stops => {
                    let Ok(permit) = permit else {
                        return Err(Ended::Broken("the stream to the coordinator is closed".to_owned()));
                    };
                    if std::mem::take(&mut stops) {
                        let within = self.stopping_within().map(convert::duration_out);
                        permit.send(v1::WorkerMessage { message: Some(Message::Stopping(v1::Stopping { within })) });
                        continue;
                    }
                    let heartbeat = self.sequence.load(Ordering::Relaxed) + 1;
                    // A flood of reports must not starve the lease: a heartbeat that is due goes first,
                    // but for the attach's first, whose answer is to cover the reports before it.
                    let report = if beat_due && !first_beat { None } else { self.outbox.next(heartbeat) };
                    let message = match report {
                        Some(report) => report,
                        None if beat_due => {
                            first_beat = false;
                            next_beat = Instant::now() + pace.every;
                            let beat = self.heartbeat();
                            sent.push_back((beat.sequence, world::boot_now()));

                            Message::Heartbeat(beat)
                        }
                        None => {
                            reports = false;
                            continue;
                        }
                    };
                    permit.send(v1::WorkerMessage { message: Some(message) });
                }
                () = self.outbox.filled(), if !reports => reports = true,
                () = self.health.news(), if !beat_due => {
                    next_beat = next_beat.min(Instant::now() + NEWS_PAUSE);
                }
                () = tokio::time::sleep_until(next_beat), if !beat_due => {}
            }
        }
        Err(leave(incoming, sender).await)
    }

    fn heartbeat(&self) -> v1::Heartbeat {
        // In this order: a review that ends in between makes the next heartbeat due.
        let health = self.sample();
        let (templates, template_problems) = self.templates.report();
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        v1::Heartbeat {
            sequence,
            health: Some(health),
            backends: self.backends.statuses(),
            templates,
            template_problems,
        }
    }

    /// Does what the coordinator says. Never waits.
    fn obey(self: &Arc<Self>, command: Command) {
        match command {
            Command::Welcome(_) => warn!("a second Welcome on one stream is ignored"),
            Command::Lease(lease) => self.outbox.acknowledged(lease.sequence),
            Command::Place(place) => self.sessions.place(place),
            Command::End(end) => self.sessions.end(&end),
            Command::Pause(pause) => self.sessions.pause(&pause),
            Command::Update(update) => self.sessions.update(update),
            Command::SetBackend(wish) => self.set_backend(wish.backend),
            Command::Cordoned(cordoned) => self.sessions.cordon(cordoned.cordoned),
        }
    }

    fn set_backend(self: &Arc<Self>, wish: String) {
        let this = self.clone();
        spawn("set-backend", async move {
            let chosen = match wish.parse::<BackendChoice>() {
                Ok(choice) => this.backends.choose(choice).await,
                Err(error) => Err(error),
            };
            match chosen {
                Ok(()) => {
                    this.health.sing();
                    this.review_templates();
                }
                Err(error) => warn!(backend = wish, %error, "the backend stays as it was"),
            }
            this.health.tell();
        });
    }
}

/// Says that this worker goes, and sees the stream end: then it was heard.
async fn leave(
    mut incoming: Streaming<v1::CoordinatorMessage>,
    sender: mpsc::Sender<v1::WorkerMessage>,
) -> Ended {
    let last = v1::WorkerMessage { message: Some(Message::Leaving(v1::Leaving {})) };
    let parting = async {
        if sender.send(last).await.is_ok() {
            drop(sender);
            while let Ok(Some(_)) = incoming.message().await {}
        }
    };
    if tokio::time::timeout(LEAVE_TIMEOUT, parting).await.is_err() {
        debug!("the coordinator did not end the stream of a worker that leaves");
    }
    Ended::Left
}

/// How often to beat, and how long the coordinator may be silent.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub every: Duration,
    pub lease: Duration,
}

fn renewed(lease: &v1::LeaseRenewed, pace: Pace) -> Duration {
    let given = lease.lease.and_then(|lease| convert::duration("lease", lease).ok());
    given.unwrap_or(pace.lease).max(pace.every * 2)
}
