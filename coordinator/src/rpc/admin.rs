//! `AdminService`: the fleet as operators and dashboards see it.

use std::{pin::Pin, sync::Arc, time::Duration};

use berth_proto::{
    Error, Reason, VERSION, WorkerId,
    convert::{duration, duration_out, time_out},
    domain::{BackendChoice, SessionState},
    spawn::spawn,
    transport::CHUNK,
    v1::{self, admin_service_server::AdminService},
};
use futures::Stream;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Context, guard::caller_of};
use crate::{
    audit::{AUDIT_FILE, about},
    driver::Watcher,
    fleet::{Event, Liveness, Refused},
    identity::Scope,
    start::{CATALOG_FILE, STORE_FILE},
    wire,
};

/// A drain without a deadline of its own.
const DRAIN_WITHIN: Duration = Duration::from_secs(600);
/// A quiet event stream says where it stands this often.
const MARKER_EVERY: Duration = Duration::from_secs(15);
/// Events under way to one watcher; the ring keeps the rest for it.
const WATCH_QUEUE: usize = 256;
/// Chunks of a backup under way.
const BACKUP_QUEUE: usize = 4;

fn scope_out(scope: Scope) -> v1::TokenScope {
    match scope {
        Scope::Client => v1::TokenScope::Client,
        Scope::Worker => v1::TokenScope::Worker,
        Scope::Admin => v1::TokenScope::Admin,
    }
}

pub struct Admin {
    context: Context,
}

impl Admin {
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    fn worker(&self, id: &WorkerId) -> Result<v1::Worker, Error> {
        let shared = &self.context.shared;
        let worker = shared.view.worker(id).ok_or_else(|| Error::from(Refused::NoWorker(id.clone())))?;
        let load = shared.view.load(id);
        Ok(wire::worker(&worker, &load, shared.links.channels(id)))
    }

    async fn change(
        &self,
        id: String,
        event: impl FnOnce(WorkerId) -> Event,
    ) -> Result<Response<v1::Worker>, Status> {
        about("worker", &id);
        let id = known_form(&id)?;
        self.context.driver.call(event(id.clone())).await.map_err(Error::from)?;
        Ok(Response::new(self.worker(&id)?))
    }
}

/// An id that can't exist is one that is not found.
fn known_form(id: &str) -> Result<WorkerId, Error> {
    id.parse().map_err(|_| {
        let shown: String = id.chars().take(64).collect();
        Error::not_found(Reason::WorkerNotFound, format!("no worker has the id {shown:?}"))
            .hint("`berth workers` lists them")
    })
}

/// Why a live worker can't serve a template, if it said so.
fn problem(worker: &crate::fleet::Worker, template: &str) -> Option<v1::WorkerProblem> {
    let reason = worker.template_problems.get(template).filter(|_| worker.liveness == Liveness::Alive)?;
    Some(v1::WorkerProblem { worker_id: worker.id.to_string(), reason: reason.clone() })
}

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupChunk, Status>> + Send>>;
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let shared = &self.context.shared;
        let loads = shared.view.loads();
        let one = |worker: &Arc<crate::fleet::Worker>| {
            let load = loads.get(&worker.id).copied().unwrap_or_default();
            wire::worker(worker, &load, shared.links.channels(&worker.id))
        };
        Ok(Response::new(v1::ListWorkersResponse {
            workers: shared.view.workers().iter().map(one).collect(),
        }))
    }

    async fn get_worker(
        &self,
        request: Request<v1::GetWorkerRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        Ok(Response::new(self.worker(&known_form(&request.into_inner().worker_id)?)?))
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Result<Response<v1::Worker>, Status> {
        self.change(request.into_inner().worker_id, |worker| Event::Cordon { worker }).await
    }

    async fn uncordon(&self, request: Request<v1::UncordonRequest>) -> Result<Response<v1::Worker>, Status> {
        self.change(request.into_inner().worker_id, |worker| Event::Uncordon { worker }).await
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::Worker>, Status> {
        let request = request.into_inner();
        let within = match request.deadline {
            None => DRAIN_WITHIN,
            Some(value) => duration("deadline", value)?,
        };
        self.change(request.worker_id, |worker| Event::Drain { worker, within }).await
    }

    async fn set_backend(
        &self,
        request: Request<v1::SetBackendRequest>,
    ) -> Result<Response<v1::Worker>, Status> {
        let request = request.into_inner();
        if request.backend.is_empty() {
            return Err(Error::invalid("backend", "is missing").hint("auto, native, docker or fake").into());
        }
        let backend: BackendChoice = request.backend.parse()?;
        self.change(request.worker_id, |worker| Event::SetBackend { worker, backend }).await
    }

    async fn list_templates(
        &self,
        _: Request<v1::ListTemplatesRequest>,
    ) -> Result<Response<v1::ListTemplatesResponse>, Status> {
        let workers = self.context.shared.view.workers();
        let one = |template: &crate::templates::Template| v1::Template {
            name: template.spec.name.clone(),
            description: template.description.clone(),
            root: template.spec.root.clone().unwrap_or_default(),
            image: template.spec.image.clone().unwrap_or_default(),
            backend: template.spec.backend.to_string(),
            limits: Some(template.limits.into()),
            task_defaults: Some(template.task_defaults.into()),
            env_names: template.env.keys().cloned().collect(),
            user: template.spec.user.clone(),
            egress: template.egress.preset.to_string(),
            egress_allow: template.egress.allow.iter().map(ToString::to_string).collect(),
            workers: workers
                .iter()
                .filter(|w| w.liveness == Liveness::Alive && w.templates.contains(&template.spec.name))
                .map(|w| w.id.to_string())
                .collect(),
            problems: workers.iter().filter_map(|w| problem(w, &template.spec.name)).collect(),
            ttl: template.ttl.map(duration_out),
            idle_timeout: template.idle_timeout.map(duration_out),
        };
        let templates = self.context.templates.iter().map(one).collect();
        Ok(Response::new(v1::ListTemplatesResponse { templates }))
    }

    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Result<Response<v1::Info>, Status> {
        let caller = caller_of(request.extensions())?;
        let by = caller.sight();
        let view = &self.context.shared.view;
        let alive = view.workers().iter().filter(|w| w.liveness == Liveness::Alive).count();
        Ok(Response::new(v1::Info {
            version: VERSION.to_owned(),
            boot_id: self.context.shared.events.boot().to_owned(),
            started_at: Some(time_out(self.context.started_at)),
            workers_alive: alive as u32,
            sessions_ready: view.count(&by, &[SessionState::Ready, SessionState::Paused]) as u32,
            sessions_pending: view.count(&by, &[SessionState::Pending, SessionState::Placed]) as u32,
            running_tasks: view.running_tasks(&by) as u32,
            sessions_parked: view.count(&by, &[SessionState::Parked]) as u32,
            scope: scope_out(caller.scope).into(),
            tenant: caller.tenant.to_string(),
        }))
    }

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let (shared, caller) = (&self.context.shared, caller_of(request.extensions())?.clone());
        let open = self.context.streams.open(&caller.tenant, shared.view.quota(&caller.tenant).streams)?;
        let watcher = shared.events.watch(caller.sight(), &request.into_inner().after_token)?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let stopping = self.context.stopping.clone();
        spawn("event watcher", async move {
            let _open = open;
            tokio::select! {
                () = follow(watcher, &sender) => {}
                () = stopping.cancelled() => {
                    let end = Error::unavailable(Reason::ShuttingDown, "the coordinator is stopping");
                    let _ = sender.try_send(Err(end.into()));
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let (sender, receiver) = mpsc::channel(BACKUP_QUEUE);
        let (store, checkpoints) = (self.context.shared.store.clone(), self.context.checkpoints.clone());
        let audit = self.context.audit.clone();
        spawn("backup", async move {
            // The catalog comes second: so what a session names is in it, if it was not deleted since.
            let sent = async {
                send_file(STORE_FILE, store.copy().await.map_err(uncopied)?, &sender).await?;
                send_file(CATALOG_FILE, checkpoints.catalog.copy().await.map_err(uncopied)?, &sender).await?;
                match audit.copy().await.map_err(uncopied)? {
                    Some(file) => send_file(AUDIT_FILE, file, &sender).await,
                    None => Ok(()),
                }
            };
            if let Err(error) = sent.await {
                let _ = sender.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Feeds one watcher until it goes away or has lost events.
async fn follow(mut watcher: Watcher, sender: &mpsc::Sender<Result<v1::Event, Status>>) {
    if sender.send(Ok(watcher.marker())).await.is_err() {
        return;
    }
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(MARKER_EVERY, watcher.next()) => next,
            () = sender.closed() => return,
        };
        let events: Vec<Result<v1::Event, Status>> = match next {
            Ok(Ok(events)) => events.iter().map(|event| Ok((**event).clone())).collect(),
            Ok(Err(error)) => {
                let _ = sender.send(Err(error.into())).await;
                return;
            }
            Err(_quiet) => vec![Ok(watcher.marker())],
        };
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}

fn uncopied(error: impl std::fmt::Display) -> Error {
    Error::unavailable(Reason::StoreFailed, "the coordinator's store could not be copied")
        .hint(
            "look at the disk under the coordinator's state directory: a copy needs as much room as the file",
        )
        .cause(error.to_string())
}

/// Sends a file for a backup. A client that goes away ends it.
async fn send_file(
    name: &str,
    file: std::fs::File,
    to: &mpsc::Sender<Result<v1::BackupChunk, Status>>,
) -> Result<(), Error> {
    use v1::backup_chunk::{File, Part};
    let size = file.metadata().map_err(uncopied)?.len();
    let gone = |_| uncopied("the client is gone");
    let chunk = |part| Ok(v1::BackupChunk { part: Some(part) });
    to.send(chunk(Part::File(File { name: name.to_owned(), size }))).await.map_err(gone)?;
    let (mut file, mut sum) = (tokio::fs::File::from_std(file), Sha256::new());
    loop {
        let mut data = Vec::with_capacity(CHUNK);
        (&mut file).take(CHUNK as u64).read_to_end(&mut data).await.map_err(uncopied)?;
        if data.is_empty() {
            let sum = sum.finalize().to_vec().into();
            return to.send(chunk(Part::Sha256(sum))).await.map_err(gone);
        }
        sum.update(&data);
        to.send(chunk(Part::Data(data.into()))).await.map_err(gone)?;
    }
}
