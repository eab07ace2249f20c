//! `WorkerService`: a worker's control stream.
//!
//! The stream has two halves that end apart. What the worker says is read by a task of its
//! own, slowed down by the driver's queue if need be; what we say waits in the link's bounded
//! queue. The link ends when either half does, when the driver drops it, or when the
//! coordinator stops; and only an end of *this* link is told as its loss, so that a newer
//! attach of the same worker never suffers from the end of the older one.

use std::{
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use berth_net::Peer;
use berth_proto::{Error, TokenId, WorkerId, convert, spawn::spawn, v1, world};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

use super::{Context, guard::caller_of};
use crate::{
    audit::{BERTH, Record, about},
    auth::random_hex,
    driver::{LINK_QUEUE, Link, Outgoing},
    fleet::{Event, LinkId},
    tenant::Sight,
    wire,
};

/// Time for the hello.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

pub struct Workers {
    context: Context,
}

impl Workers {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl v1::worker_service_server::WorkerService for Workers {
    type AttachStream = LinkStream;

    async fn attach(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<LinkStream>, Status> {
        let peer = Peer::of(&request);
        let caller = caller_of(request.extensions())?.clone();
        let mut incoming = request.into_inner();
        let id = self.context.shared.links.draw();
        let hello = wire::hello(first(&mut incoming).await?, id)?;
        let worker = hello.worker.clone();
        about("worker", &worker);
        peer.speaks_for(&worker)?;
        // Room for what the hello is answered with as well: a word on each session that it names.
        let (sender, receiver) = mpsc::channel(LINK_QUEUE + hello.running.len());
        let closed = CancellationToken::new();
        let credential = self.context.identity.register(&caller, &worker).await?;
        let link = Link {
            id,
            sender,
            closed: closed.clone(),
            data_token: random_hex(),
            credential: credential.as_ref().map(|credential| credential.value.clone()).unwrap_or_default(),
        };
        self.context.driver.attach(hello, link).await.map_err(Error::from)?;
        let context = self.context.clone();
        let guard = closed.clone().drop_guard();
        spawn("worker link", async move {
            let given = credential.as_ref().map(|credential| credential.token.id);
            // The link that a worker was given its credential on ends with that, like those that it makes with it.
            let revoked = async {
                match &credential {
                    Some(credential) => credential.over.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            let why = tokio::select! {
                () = read(&context, &worker, id, given, &mut incoming) => None,
                () = closed.cancelled() => None,
                () = context.stopping.cancelled() => None,
                () = revoked => Some(crate::identity::revoked()),
            };
            context.shared.links.close(id, why);
            closed.cancel();
            context.driver.tell(Event::LinkLost { worker, link: id }, id).await;
        });
        Ok(Response::new(LinkStream { receiver, _guard: guard }))
    }
}

async fn first(incoming: &mut Streaming<v1::WorkerMessage>) -> Result<v1::Hello, Status> {
    const ORDER: &str = "a worker's first message on this stream is Hello";
    let late =
        || Error::invalid("hello", format!("did not come within {} s", HELLO_WITHIN.as_secs())).hint(ORDER);
    let message = tokio::time::timeout(HELLO_WITHIN, incoming.message()).await.map_err(|_| late())??;
    match message.and_then(|m| m.message) {
        Some(v1::worker_message::Message::Hello(hello)) => Ok(hello),
        _ => Err(Error::invalid("hello", "must come first").hint(ORDER).into()),
    }
}

/// Passes on what the worker says until its half of the stream ends.
async fn read(
    context: &Context,
    worker: &WorkerId,
    link: LinkId,
    given: Option<TokenId>,
    incoming: &mut Streaming<v1::WorkerMessage>,
) {
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(worker.id = %worker, %status, "a worker's stream broke");
                return;
            }
        };
        if let (Some(v1::worker_message::Message::CredentialKept(_)), Some(given)) = (&message.message, given)
        {
            if let Err(error) = context.identity.kept(given).await {
                tracing::warn!(worker.id = %worker, %error, "that a worker keeps its credential could not be noted");
            }
            continue;
        }
        match event(context, worker, link, message) {
            Ok(Some(event)) => context.driver.tell(event, link).await,
            Ok(None) => {}
            // One bad message is a defect of one build: the rest of the stream is still good.
            Err(error) => {
                tracing::warn!(worker.id = %worker, %error, "a worker's message was not understood")
            }
        }
    }
}

fn event(
    context: &Context,
    worker: &WorkerId,
    link: LinkId,
    message: v1::WorkerMessage,
) -> Result<Option<Event>, Error> {
    use v1::worker_message::Message;
    Ok(match message.message {
        Some(Message::Heartbeat(beat)) => {
            Some(Event::Heartbeat(Box::new(wire::heartbeat(worker, link, beat)?)))
        }
        Some(Message::Session(report)) => Some(Event::Report(Box::new(wire::report(worker, link, report)?))),
        Some(Message::Task(report)) => Some(Event::Task(Box::new(wire::task_report(worker, link, report)?))),
        Some(Message::Stopping(stopping)) => {
            let within = convert::duration("within", convert::required("within", stopping.within)?)?;
            Some(Event::Stopping { worker: worker.clone(), link, within })
        }
        Some(Message::Egress(told)) => {
            egress(context, worker, told);
            None
        }
        Some(Message::Leaving(_)) => Some(Event::Leaving { worker: worker.clone(), link }),
        Some(Message::Hello(_)) => {
            return Err(Error::invalid("hello", "came twice").hint("one hello a stream: it comes first"));
        }
        // Said again on a link that it was not given on. Or a newer worker's word for something that we don't know.
        Some(Message::CredentialKept(_)) | None => None,
    })
}

/// What sessions of a worker reached or did not, and what went through.
fn egress(context: &Context, worker: &WorkerId, told: v1::EgressDecisions) {
    for decision in told.decisions {
        let v1::EgressDecision { session_id, epoch, allowed, host, port, address, why, at, carried } =
            decision;
        let at = at.and_then(|at| convert::time("at", at).ok()).unwrap_or_else(world::now);
        let what = if carried.is_some() { "egress ended" } else { "egress" };
        let mut record = Record::new(at, BERTH, what);
        let known = session_id.parse().ok().and_then(|id| context.shared.view.session(&Sight::All, &id));
        // A worker speaks for the sessions that it holds.
        let Some(session) = known.filter(|s| s.worker.as_ref() == Some(worker)) else { continue };
        record.tenant = session.spec.tenant.to_string();
        record.session = session_id;
        record.outcome = if allowed { "allowed" } else { "denied" }.to_owned();
        let details = [
            ("epoch", epoch.to_string()),
            ("host", host),
            ("port", port.to_string()),
            ("address", address),
            ("why", why),
            ("worker", worker.to_string()),
        ];
        record.details = details.map(|(name, value)| (name.to_owned(), value)).into();
        if let Some(v1::EgressCarried { sent, received, lasted }) = carried {
            record.outcome = "ended".to_owned();
            record.details.remove("why");
            let seconds =
                lasted.and_then(|lasted| convert::duration("lasted", lasted).ok()).unwrap_or_default();
            let carried = [
                ("sent", sent.to_string()),
                ("received", received.to_string()),
                ("seconds", format!("{:.3}", seconds.as_secs_f64())),
            ];
            record.details.extend(carried.map(|(name, value)| (name.to_owned(), value)));
        }
        context.audit.record(record);
    }
    if told.dropped > 0 {
        let mut record = Record::new(world::now(), BERTH, "lost");
        record.details.insert("egress decisions".to_owned(), told.dropped.to_string());
        record.details.insert("worker".to_owned(), worker.to_string());
        context.audit.record(record);
    }
}

/// What we say to a worker. Dropped with the call: then the link is over.
pub struct LinkStream {
    receiver: mpsc::Receiver<Outgoing>,
    _guard: DropGuard,
}

impl Stream for LinkStream {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Outgoing>> {
        self.receiver.poll_recv(cx)
    }
}
