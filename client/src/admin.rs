//! For operators: workers, templates, the coordinator, and what happens in the fleet.

use std::time::Duration;

use berth_proto::{
    convert::duration_out,
    transport::MESSAGE_LIMIT,
    v1::{self, admin_service_client::AdminServiceClient, event::Subject},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Streaming, transport::Channel};

use crate::{
    Client, Error,
    backoff::Backoff,
    connect::Policy,
    model::{Change, CoordinatorInfo, FleetEvent, TemplateInfo, WorkerInfo},
};

fn service(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// Markers come in quiet times; a stream silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(60);

impl Client {
    /// All workers that the coordinator knows.
    pub async fn workers(&self) -> Result<Vec<WorkerInfo>, Error> {
        let response = self
            .call(Policy::REPEATABLE, v1::ListWorkersRequest {}, |channel, request| async {
                service(channel).list_workers(request).await
            })
            .await?;
        response.workers.into_iter().map(WorkerInfo::try_from).collect()
    }

    /// One worker.
    pub async fn worker(&self, id: &str) -> Result<WorkerInfo, Error> {
        let message = v1::GetWorkerRequest { worker_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).get_worker(request).await
        })
        .await?
        .try_into()
    }

    /// No new sessions on this worker.
    pub async fn cordon(&self, id: &str) -> Result<WorkerInfo, Error> {
        let message = v1::CordonRequest { worker_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).cordon(request).await
        })
        .await?
        .try_into()
    }

    /// New sessions again; ends a drain too.
    pub async fn uncordon(&self, id: &str) -> Result<WorkerInfo, Error> {
        let message = v1::UncordonRequest { worker_id: id.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).uncordon(request).await
        })
        .await?
        .try_into()
    }

    /// No new sessions; those that are there may end by themselves until the deadline
    /// (10 minutes by default), then they are ended. Returns at once.
    pub async fn drain(&self, id: &str, deadline: Option<Duration>) -> Result<WorkerInfo, Error> {
        let message = v1::DrainRequest { worker_id: id.to_owned(), deadline: deadline.map(duration_out) };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).drain(request).await
        })
        .await?
        .try_into()
    }

    /// Which backend a worker uses for new sessions: auto, native, docker or fake.
    pub async fn set_backend(&self, id: &str, backend: &str) -> Result<WorkerInfo, Error> {
        let message = v1::SetBackendRequest { worker_id: id.to_owned(), backend: backend.to_owned() };
        self.call(Policy::REPEATABLE, message, |channel, request| async {
            service(channel).set_backend(request).await
        })
        .await?
        .try_into()
    }

    /// The templates that sessions can be made of.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>, Error> {
        let response = self
            .call(Policy::REPEATABLE, v1::ListTemplatesRequest {}, |channel, request| async {
                service(channel).list_templates(request).await
            })
            .await?;
        response.templates.into_iter().map(TemplateInfo::try_from).collect()
    }

    /// The coordinator itself.
    pub async fn info(&self) -> Result<CoordinatorInfo, Error> {
        self.call(Policy::REPEATABLE, v1::GetInfoRequest {}, |channel, request| async {
            service(channel).get_info(request).await
        })
        .await?
        .try_into()
    }

    /// Changes of sessions, tasks and workers, in order, after the event with this token;
    /// `None`: from now on.
    pub async fn events(&self, after: Option<String>) -> Result<EventStream, Error> {
        let mut stream = EventStream {
            client: self.clone(),
            token: after.unwrap_or_default(),
            inner: None,
            alive: Instant::now(),
            backoff: Backoff::default(),
        };
        stream.open().await?;
        Ok(stream)
    }
}

/// Changes in the fleet. Resumes by itself after a break, as long as the coordinator is
/// the same one; after its restart that is the error `EVENTS_LOST`: list, then watch anew.
pub struct EventStream {
    client: Client,
    token: String,
    inner: Option<Streaming<v1::Event>>,
    alive: Instant,
    backoff: Backoff,
}

impl EventStream {
    async fn open(&mut self) -> Result<(), Error> {
        let request = v1::WatchEventsRequest { after_token: self.token.clone() };
        let stream = self
            .client
            .open(request, |channel, request| async { service(channel).watch_events(request).await })
            .await?;
        self.inner = Some(stream);
        Ok(())
    }

    /// To go on from here, in another process or later.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The next change. Ends only with an error. Cancel-safe.
    pub async fn next(&mut self) -> Result<FleetEvent, Error> {
        loop {
            let result = match &mut self.inner {
                None => self.open().await,
                Some(inner) => {
                    let result = match timeout_at(self.alive + SILENCE, inner.message()).await {
                        Ok(Ok(Some(event))) => {
                            if let Some(event) = self.take(event)? {
                                return Ok(event);
                            }
                            continue;
                        }
                        Ok(Ok(None)) => Err(tonic::Status::unavailable("the event stream ended")),
                        Ok(Err(status)) => Err(status),
                        Err(_) => Err(tonic::Status::unavailable("nothing came for a minute")),
                    };
                    result.map_err(|status| self.client.error(status))
                }
            };
            let Err(error) = result else { continue };
            self.inner = None;
            // Without a token there is nothing to resume after: changes would be missed in silence.
            let resumable = error.is_temporary() && !self.token.is_empty();
            if !resumable || self.alive.elapsed() > self.client.resume_for() + SILENCE {
                return Err(error);
            }
            self.backoff.wait().await;
        }
    }

    fn take(&mut self, event: v1::Event) -> Result<Option<FleetEvent>, Error> {
        self.alive = Instant::now();
        self.backoff = Backoff::default();
        let v1::Event { token, at, subject } = event;
        self.token.clone_from(&token);
        let change = match subject {
            Some(Subject::Session(session)) => Change::Session(Box::new(session.try_into()?)),
            Some(Subject::Task(task)) => Change::Task(Box::new(task.try_into()?)),
            Some(Subject::Worker(worker)) => Change::Worker(Box::new(worker.try_into()?)),
            Some(Subject::Marker(_)) | None => return Ok(None),
        };
        Ok(Some(FleetEvent { token, at: crate::model::time(at)?, change }))
    }
}
