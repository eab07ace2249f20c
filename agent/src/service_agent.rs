//! AgentService: what the worker tells the agent of its session, and hears of it.

use std::{pin::Pin, sync::Arc, time::Duration};

use berth_proto::{
    Code, Epoch, Error, Reason, VERSION, convert,
    domain::{Labels, TaskDefaults, TaskDefaultsPatch},
    v1::{self, agent_event::Event, agent_service_server::AgentService},
};
use futures::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{error, info};

use crate::{
    archive,
    clock::boot_now,
    deadline::{Deadlines, Expiry},
    door::Door,
    files::Files,
    lockdown::Protections,
    task::Phase,
    tasks::{Session, Tasks},
};

/// Between TERM and KILL when the session's own deadline passed.
const EXPIRY_GRACE: Duration = Duration::from_secs(2);
/// For the worker to hear of it, before the agent ends by itself.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The service.
pub struct AgentApi {
    pub tasks: Arc<Tasks>,
    pub files: Arc<Files>,
    pub deadlines: Arc<Deadlines>,
    pub protections: Protections,
    pub door: Arc<Door>,
    /// Cancelled when the session ends, before its tasks do: what is cut then must not look as if a task had ended it.
    pub ending: CancellationToken,
    /// Cancelled to end the server.
    pub stop: CancellationToken,
}

impl AgentApi {
    /// Opens the way out. What tasks need to know of it.
    async fn open(&self, door: &v1::Door) -> Result<Labels, Error> {
        let mut env = convert::env("door.env", door.env.clone())?;
        let way = self.door.open().await;
        env.extend(way.map_err(|e| Error::internal("the way out could not be opened").cause(e))?);
        Ok(env)
    }

    /// Moves the fence, and lets the tasks go on if it is ahead of them now. Whether they stood.
    async fn put_off(&self, fence: Duration) -> Result<bool, Error> {
        // Moved before it is taken down: it must not be passed in between.
        self.tasks.fence_at(fence).await?;
        self.deadlines.set_fence(Some(fence));
        if fence > boot_now() { self.tasks.fence(false).await } else { Ok(false) }
    }
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::AgentEvent, Status>> + Send>>;
    type ExportStream = Pin<Box<dyn Stream<Item = Result<v1::ArchivePart, Status>> + Send>>;

    async fn configure(
        &self,
        request: Request<v1::ConfigureRequest>,
    ) -> Result<Response<v1::ConfigureResponse>, Status> {
        let request = request.into_inner();
        let defaults = TaskDefaultsPatch::try_from(request.task_defaults.unwrap_or_default())?;
        let own = convert::env("env", request.env)?;
        let mut env = match &request.door {
            Some(door) => self.open(door).await?,
            None => Labels::new(),
        };
        env.extend(own);
        let session = Session {
            id: convert::session_id(&request.session_id)?,
            epoch: Epoch(request.epoch),
            env,
            defaults: defaults.over(TaskDefaults::default()),
        };
        let ttl = request.ttl_left.map(|left| convert::duration("ttl_left", left)).transpose()?;
        let idle = convert::optional_limit("idle_timeout", request.idle_timeout)?.flatten();
        let fence = request.fence.map(fence_at).transpose()?;
        info!(session = %session.id, epoch = %session.epoch, "configured");
        self.tasks.configure(session)?;
        if request.door.is_none() {
            self.door.close();
        }
        self.deadlines.set(ttl, idle);
        // Without one, what was told before stands.
        if let Some(fence) = fence {
            self.put_off(fence).await?;
        }
        Ok(Response::new(v1::ConfigureResponse {
            version: VERSION.to_owned(),
            protections: self.protections.clone(),
        }))
    }

    async fn watch(&self, _: Request<v1::WatchAgentRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (running, busy, events) = self.tasks.watch();
        // One that still starts is told when it has.
        let running: Vec<_> = running
            .into_iter()
            .filter(|task| matches!(task.phase(), Phase::Running))
            .map(|task| wire(Event::Started(task.to_wire())))
            .collect();
        let later = futures::stream::unfold(
            (events, self.stop.clone(), false),
            |(mut events, stop, over)| async move {
                if over {
                    return None;
                }
                let event = tokio::select! {
                    biased;
                    event = events.recv() => event,
                    () = stop.cancelled() => return None,
                };
                match event {
                    Ok(event) => Some((wire(event), (events, stop, false))),
                    Err(RecvError::Closed) => None,
                    Err(RecvError::Lagged(missed)) => {
                        let error = Error::new(
                            Code::OutOfRange,
                            Reason::EventsLost,
                            format!("{missed} events were lost: the watcher was too slow"),
                        )
                        .hint("list the tasks, and watch anew");
                        Some((Err(error.into()), (events, stop, true)))
                    }
                }
            },
        );
        let executing = wire(Event::Executing(v1::agent_event::Executing { busy }));
        let now = running.into_iter().chain([executing]);
        Ok(Response::new(Box::pin(futures::stream::iter(now).chain(later))))
    }

    async fn freeze(
        &self,
        request: Request<v1::FreezeRequest>,
    ) -> Result<Response<v1::FreezeResponse>, Status> {
        self.tasks.pause(request.into_inner().frozen).await?;
        Ok(Response::new(v1::FreezeResponse {}))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let request = request.into_inner();
        let fence = convert::required("fence", request.fence).and_then(fence_at)?;
        self.tasks.must_be(Epoch(request.epoch))?;
        let was_fenced = self.put_off(fence).await?;
        if was_fenced {
            info!("confirmed: the tasks go on");
        }
        Ok(Response::new(v1::RenewResponse { was_fenced }))
    }

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let bounds = archive::bounds(&request.into_inner())?;
        let stream = archive::export(self.tasks.clone(), self.files.clone(), bounds);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn import(
        &self,
        request: Request<Streaming<v1::ArchivePart>>,
    ) -> Result<Response<v1::ImportResponse>, Status> {
        let _busy = self.tasks.busy();
        let response = archive::import(&self.tasks, &self.files, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        let grace = convert::grace(request.into_inner().grace)?;
        info!("shut down by the worker");
        self.ending.cancel();
        self.tasks.end_all(grace).await;
        // The server ends gracefully: this answer still goes out.
        self.stop.cancel();
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// In boot time. What a stopped worker reckoned long ago is long ago.
fn fence_at(fence: v1::Fence) -> Result<Duration, Error> {
    let within = convert::required("fence.within", fence.within)
        .and_then(|within| convert::duration("fence.within", within))?;
    let as_of = match fence.as_of_boot_ns {
        0 => boot_now(),
        nanos => Duration::from_nanos(nanos).min(boot_now()),
    };
    Ok(as_of.saturating_add(within))
}

fn wire(event: Event) -> Result<v1::AgentEvent, Status> {
    Ok(v1::AgentEvent { event: Some(event) })
}

/// Ends the session when its own deadline passes, whether or not a worker listens; at the
/// fence, lets it stand still.
pub async fn expire(
    tasks: Arc<Tasks>,
    deadlines: Arc<Deadlines>,
    ending: CancellationToken,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let expiry = loop {
        match deadlines.expired().await? {
            Expiry::Fence => {
                info!("the worker did not renew its right to this session: the tasks stand still");
                if let Err(error) = tasks.fence(true).await {
                    // What can't be stopped from acting must not go on.
                    error!(?error, "the tasks could not be fenced, and are ended");
                    tasks.end_all(Duration::ZERO).await;
                }
            }
            ended => break ended,
        }
    };
    info!(?expiry, "the session's deadline passed");
    ending.cancel();
    tasks.end_all(EXPIRY_GRACE).await;
    tasks.publish(Event::Expired(v1::agent_event::Expired { idle: expiry == Expiry::Idle }));
    tokio::time::sleep(LAST_WORDS).await;
    stop.cancel();
    Ok(())
}
