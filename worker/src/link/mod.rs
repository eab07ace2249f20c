//! The link to the coordinator. The worker dials; nothing has to reach it.
//!
//! One control stream carries Hello, heartbeats and reports out, and leases and commands in; bulk data
//! has connections of its own ([`data`]). The stream is made anew for ever, in any order of starts: sessions
//! live on meanwhile, and the next Hello says which they are. Commands are level-triggered wishes that are
//! noted and never waited for, so that a slow session can't hold up a heartbeat.
//!
//! The one thing that ends a link for good is STALE_INCARNATION: a newer process has this worker's id, and the
//! newest wins.

mod backoff;
mod converse;
pub mod data;
pub mod outbox;
mod templates;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use berth_net::Dialer;
use berth_proto::{
    Code, Error, Reason, VERSION, WorkerId, convert,
    domain::Labels,
    error::reason_of,
    spawn::spawn,
    transport,
    v1::{
        self, coordinator_message::Message as Command, worker_message::Message,
        worker_service_client::WorkerServiceClient,
    },
    world,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, metadata::MetadataValue, service::Routes};
use tracing::{error, info, warn};

pub use self::templates::Templates;
use self::{backoff::Backoff, converse::Pace, data::DataPool, outbox::Outbox};
use crate::{backends::Backends, credential::Credential, health::Health, sessions::Sessions};

/// The coordinator has this long to answer an attach, and then to say Welcome.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages handed to the transport ahead of it. More wait in the outbox, where they can still be replaced.
const SEND_AHEAD: usize = 16;
/// A coordinator may not make a worker beat faster than this.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
/// ... nor slower.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);
/// The coordinator has this long to end the stream of a worker that leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two heartbeats that news made due.
const NEWS_PAUSE: Duration = Duration::from_millis(20);

/// How the link stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    pub attached: bool,
    /// As the last Welcome gave it; 0 before the first.
    pub incarnation: u64,
    /// Why it is not attached.
    pub reason: String,
}

/// The worker's side of the link.
pub struct Link {
    pub settings: Settings,
    pub sessions: Sessions,
    pub outbox: Arc<Outbox>,
    pub backends: Arc<Backends>,
    pub health: Arc<Health>,
    pub state: watch::Sender<LinkState>,
    pub templates: Templates,
    /// Set when this worker begins to stop: by when it is gone.
    pub stopping: watch::Sender<Option<Instant>>,
    /// Cancelled when this worker holds nothing any more and goes.
    pub leaving: CancellationToken,
    /// Data connections that are up.
    pub open: Arc<AtomicUsize>,
    pub sequence: AtomicU64,
}

/// What the link is told at start.
pub struct Settings {
    pub coordinator: String,
    /// The same, with what is needed to get there.
    pub dialer: Dialer,
    pub credential: Arc<Credential>,
    pub worker: WorkerId,
    pub labels: Labels,
    /// Drawn for this process.
    pub process_id: String,
    /// Of the state directory.
    pub instance: String,
}

/// Why an attach ended.
enum Ended {
    /// Try again; the text is for the log and the status.
    Broken(String),
    /// What was shown is not taken.
    Refused(Option<Reason>, String),
    /// A newer process has our id.
    Superseded(String),
    /// This worker goes, and has said so.
    Left,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        let text = match convert_hint(&status) {
            Some(hint) => format!("{} ({hint})", status.message()),
            None => status.message().to_owned(),
        };
        if reason_of(&status) == Some(Reason::StaleIncarnation) {
            return Self::Superseded(text);
        }
        if reason_of(&status) == Some(Reason::WorkerCertificate) {
            return Self::Broken(format!("the coordinator refused this worker's certificate: {text}"));
        }
        // Over TLS the coordinator's refusal comes after the handshake, as the end of the first call.
        if let Some(source) = std::error::Error::source(&status) {
            return Self::Broken(with_sources(source));
        }
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Self::Refused(reason_of(&status), text),
            code => Self::Broken(format!("{code:?}: {text}")),
        }
    }
}

fn convert_hint(status: &Status) -> Option<String> {
    berth_proto::error::detail_of(status, "hint")
}

impl Link {
    /// Keeps the link up until `stop`. `Err`: a newer process has this worker's id.
    pub async fn run(self: Arc<Self>, services: Routes, stop: CancellationToken) -> Result<(), Error> {
        let (attached, attached_seen) = watch::channel(false);
        let dialer = self.settings.dialer.clone();
        let mut pool = DataPool::new(dialer, services, attached_seen, self.open.clone());
        let mut backoff = Backoff::default();
        let mut last_reason = String::new();
        loop {
            let begun = Instant::now();
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                ended = self.attach(&mut pool, &attached) => match ended {
                    Ok(never) => match never {},
                    Err(ended) => ended,
                },
            };
            if !matches!(ended, Ended::Left) {
                self.sessions.metrics().broken();
            }
            if self.state.borrow().attached {
                backoff.lived(begun.elapsed());
            }
            attached.send_replace(false);
            let ended = match ended {
                Ended::Refused(why, text) => {
                    let shown = self.settings.credential.refused(why);
                    Ended::Broken(format!("the coordinator refused {shown}: {text}"))
                }
                ended => ended,
            };
            match ended {
                Ended::Refused(_, reason) | Ended::Broken(reason) => {
                    // Told once, not at each try.
                    if reason != last_reason {
                        warn!(
                            coordinator = self.settings.coordinator,
                            reason, "no link to the coordinator: will try on"
                        );
                        last_reason.clone_from(&reason);
                    }
                    self.detached(reason);
                }
                Ended::Left => {
                    self.detached("it was shut down".to_owned());
                    return Ok(());
                }
                Ended::Superseded(reason) => {
                    pool.end();
                    error!(worker.id = %self.settings.worker, reason, "a newer process has this worker's id: stopping");
                    self.detached(reason.clone());
                    return Err(Error::precondition(
                        Reason::StaleIncarnation,
                        format!(
                            "another process has registered as worker {}: {reason}",
                            self.settings.worker
                        ),
                    )
                    .hint("give each worker an id of its own with WORKER_ID, or stop one of the two"));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = backoff.wait() => {}
            }
        }
    }

    fn detached(&self, reason: String) {
        self.state.send_modify(|state| {
            state.attached = false;
            state.reason = reason;
        });
    }

    // ---- one attach -----------------------------------------------------------------

    async fn attach(
        self: &Arc<Self>,
        pool: &mut DataPool,
        attached: &watch::Sender<bool>,
    ) -> Result<Infallible, Ended> {
        let broken = |error: &dyn std::error::Error| Ended::Broken(with_sources(error));
        let channel = self.settings.dialer.connect().await.map_err(|e| not_reached(&e))?;
        let (sender, receiver) = mpsc::channel(SEND_AHEAD);
        let mut request = Request::new(ReceiverStream::new(receiver));
        let bearer = format!("Bearer {}", self.settings.credential.shown());
        let mut bearer = MetadataValue::try_from(bearer)
            .map_err(|_| Ended::Broken("the token has characters that no header takes".to_owned()))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        let hello = v1::WorkerMessage { message: Some(Message::Hello(self.hello())) };
        let said = world::boot_now();
        sender.try_send(hello).map_err(|e| broken(&e))?;

        let mut client =
            WorkerServiceClient::new(channel).max_decoding_message_size(transport::MESSAGE_LIMIT);
        let greeting = async {
            let mut incoming = client.attach(request).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, Status>((incoming, first.and_then(|message| message.message)))
        };
        let (incoming, first) = tokio::time::timeout(ATTACH_TIMEOUT, greeting)
            .await
            .map_err(|_| Ended::Broken("the coordinator did not answer the attach in time".to_owned()))??;
        let Some(Command::Welcome(welcome)) = first else {
            return Err(Ended::Broken("the coordinator did not say Welcome first".to_owned()));
        };
        if !welcome.credential.is_empty() && self.keeps(&welcome.credential) {
            let kept = Message::CredentialKept(v1::CredentialKept {});
            sender.try_send(v1::WorkerMessage { message: Some(kept) }).map_err(|e| broken(&e))?;
        }
        let pace = self.welcomed(welcome, pool)?;
        self.sessions.leased(said + pace.lease);
        attached.send_replace(true);
        self.converse(incoming, sender, pace).await
    }

    /// The credential that we were given is on the disk.
    fn keeps(&self, credential: &str) -> bool {
        let kept = self.settings.credential.keep(credential);
        match &kept {
            Ok(()) => info!("registered: this worker has a credential of its own now"),
            Err(error) => {
                error!(%error, "this worker's credential can't be kept: a restart has to register anew")
            }
        }
        kept.is_ok()
    }

    fn hello(&self) -> v1::Hello {
        let (templates, template_problems) = self.templates.report();
        v1::Hello {
            worker_id: self.settings.worker.to_string(),
            process_id: self.settings.process_id.clone(),
            instance: self.settings.instance.clone(),
            incarnation: self.state.borrow().incarnation,
            version: VERSION.to_owned(),
            capacity: Some(self.sessions.capacity().into()),
            labels: self.settings.labels.clone().into_iter().collect(),
            running: self.sessions.running(),
            backends: self.backends.statuses(),
            templates,
            health: Some(self.sample()),
            template_problems,
            stopping_within: self.stopping_within().map(convert::duration_out),
            full_egress: self.sessions.full_egress(),
        }
    }

    /// How long this worker still has, if it stops.
    fn stopping_within(&self) -> Option<Duration> {
        let until = *self.stopping.borrow();
        until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    fn welcomed(self: &Arc<Self>, welcome: v1::Welcome, pool: &mut DataPool) -> Result<Pace, Ended> {
        let bad = |error: Error| Ended::Broken(format!("the coordinator's Welcome makes no sense: {error}"));
        let lease = convert::required("lease", welcome.lease)
            .and_then(|lease| convert::duration("lease", lease))
            .map_err(bad)?;
        let every = convert::required("heartbeat_interval", welcome.heartbeat_interval)
            .and_then(|every| convert::duration("heartbeat_interval", every))
            .map_err(bad)?
            .clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
        self.templates.offer(welcome.templates);
        self.review_templates();
        self.state.send_modify(|state| {
            state.attached = true;
            state.incarnation = welcome.incarnation;
            state.reason.clear();
        });
        for end in &welcome.end {
            self.sessions.end(end);
        }
        self.outbox.renew();
        let preface = v1::DataPreface {
            worker_id: self.settings.worker.to_string(),
            incarnation: welcome.incarnation,
            data_token: welcome.data_token,
        };
        pool.renew(preface, welcome.data_connections);
        self.sessions.metrics().attached();
        info!(coordinator = self.settings.coordinator, incarnation = welcome.incarnation, "attached");
        Ok(Pace { every, lease: lease.max(every * 2) })
    }

    /// Finds out which templates can be served, and tells with the next heartbeat.
    pub fn review_templates(self: &Arc<Self>) {
        let this = self.clone();
        spawn("templates", async move {
            this.templates.review(&this.backends).await;
            this.health.tell();
        });
    }

    /// Why the worker should get no session, if so, apart from the link itself.
    pub fn unready(&self) -> Option<String> {
        let unseen = || "the coordinator's templates have not been looked at yet".to_owned();
        self.health.unready().or_else(|| (!self.templates.reviewed()).then(unseen))
    }

    fn sample(&self) -> v1::WorkerHealth {
        let reason = self.unready();
        v1::WorkerHealth {
            ready: reason.is_none(),
            reason: reason.unwrap_or_default(),
            ..self.health.sample()
        }
    }
}

/// No connection came up. What is wrong with certificates is told with what to do about it.
fn not_reached(error: &tonic::transport::Error) -> Ended {
    Ended::Broken(match berth_net::error_in(error) {
        Some(tls) => format!("{tls} ({})", tls.hint()),
        None => with_sources(error),
    })
}

/// An error with its causes: tonic's own text for a refused connection is "transport error".
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
