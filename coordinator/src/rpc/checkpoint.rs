//! `CheckpointService`: taking, listing, restoring and forking.

use berth_proto::{
    Error, Reason, SessionId,
    convert::{self, bounds},
    domain::CreateSession,
    v1::{self, checkpoint_service_server::CheckpointService},
    world,
};
use tonic::{Request, Response, Status};

use super::{
    Context,
    guard::{sight_of, tenant_of},
    session::{Origin, Sessions},
};

use crate::{
    audit::about,
    checkpoints::{FREEZE_LIMIT, Record, Wanted, keep_for, unkept},
    tenant::{Sight, Tenant},
};

/// Bytes of a note.
const NOTE_MAX: usize = 256;
/// Sessions of one fork.
const FORK_MAX: u32 = 100;

pub struct Checkpointing {
    context: Context,
    sessions: Sessions,
}

impl Checkpointing {
    pub fn new(context: Context) -> Self {
        Self { sessions: Sessions::new(context.clone()), context }
    }

    async fn record(&self, by: &Sight, id: &str) -> Result<Record, Error> {
        let id = checkpoint_id(id)?;
        let found = world::on_thread(self.context.checkpoints.catalog.get(by, &id)).await.map_err(unkept)?;
        found.ok_or_else(|| Error::not_found(Reason::CheckpointNotFound, format!("no checkpoint {id}")))
    }

    /// Makes a session of a checkpoint.
    async fn restore(
        &self,
        tenant: Tenant,
        from: Origin<'_>,
        wanted: v1::CreateSessionRequest,
    ) -> Result<v1::Session, Status> {
        let record = from.record;
        let template = &record.shown.template;
        if !wanted.template.is_empty() && wanted.template != *template {
            return Err(Error::invalid(
                "session.template",
                format!("the checkpoint is of template {template}"),
            )
            .hint("leave it out")
            .into());
        }
        // What is left out stays as it was.
        let on_worker_loss = match wanted.on_worker_loss {
            0 => v1::OnWorkerLoss::from(record.spec.on_worker_loss).into(),
            asked => asked,
        };
        let checkpoints = wanted.checkpoints.or_else(|| Some(record.spec.checkpoints.into()));
        let template = template.clone();
        let wanted = v1::CreateSessionRequest { template, on_worker_loss, checkpoints, ..wanted };
        let wanted = CreateSession::try_from(wanted)?;
        self.sessions.create(tenant, wanted, Some(from)).await
    }
}

/// The same form as a session's id.
fn checkpoint_id(text: &str) -> Result<String, Error> {
    let id: SessionId = text.parse().map_err(|_| {
        Error::invalid("checkpoint_id", "is not 32 hex digits").hint("`berth checkpoint list` shows them")
    })?;
    Ok(id.to_string())
}

#[tonic::async_trait]
impl CheckpointService for Checkpointing {
    async fn checkpoint_session(
        &self,
        request: Request<v1::CheckpointSessionRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let id: SessionId = request.session_id.parse()?;
        about("session", id);
        if request.note.len() > NOTE_MAX {
            return Err(Error::invalid("note", format!("has more than {NOTE_MAX} bytes")).into());
        }
        let wanted = Wanted {
            cause: v1::CheckpointCause::Requested,
            note: request.note,
            keep_for: keep_for(request.keep_for)?,
            freeze_limit: FREEZE_LIMIT,
            parting: None,
        };
        Ok(Response::new(self.context.checkpoints.take(&by, id, wanted).await?.shown))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let size = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        let session = match request.session_id.as_str() {
            "" => None,
            id => Some(id.parse::<SessionId>()?),
        };
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(checkpoint_id(token).map_err(|_| convert::bad_page_token())?),
        };
        let catalog = &self.context.checkpoints.catalog;
        let found = world::on_thread(catalog.list(&by, session, before.as_deref(), size + 1))
            .await
            .map_err(unkept)?;
        let mut checkpoints: Vec<v1::Checkpoint> = found.into_iter().map(|record| record.shown).collect();
        let more = crate::wire::cut_page(&mut checkpoints, size);
        let last = checkpoints.last().filter(|_| more).map(|c| c.id.clone());
        Ok(Response::new(v1::ListCheckpointsResponse {
            checkpoints,
            next_page_token: last.unwrap_or_default(),
        }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let by = sight_of(&request)?;
        Ok(Response::new(self.record(&by, &request.into_inner().checkpoint_id).await?.shown))
    }

    async fn delete_checkpoint(
        &self,
        request: Request<v1::DeleteCheckpointRequest>,
    ) -> Result<Response<v1::DeleteCheckpointResponse>, Status> {
        let by = sight_of(&request)?;
        let id = checkpoint_id(&request.into_inner().checkpoint_id)?;
        about("checkpoint", &id);
        self.context.checkpoints.delete(&by, &id).await?;
        Ok(Response::new(v1::DeleteCheckpointResponse {}))
    }

    async fn restore_session(
        &self,
        request: Request<v1::RestoreSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let (by, tenant) = (sight_of(&request)?, tenant_of(&request)?);
        let request = request.into_inner();
        about("checkpoint", &request.checkpoint_id);
        let record = self.record(&by, &request.checkpoint_id).await?;
        let from = Origin { record: &record, named: &record.shown.id };
        Ok(Response::new(self.restore(tenant, from, request.session.unwrap_or_default()).await?))
    }

    async fn fork_session(
        &self,
        request: Request<v1::ForkSessionRequest>,
    ) -> Result<Response<v1::ForkSessionResponse>, Status> {
        let (by, tenant) = (sight_of(&request)?, tenant_of(&request)?);
        let request = request.into_inner();
        let id: SessionId = request.session_id.parse()?;
        about("fork_of", id);
        let count = request.count.max(1);
        if count > FORK_MAX {
            return Err(Error::invalid("count", format!("is more than {FORK_MAX}")).into());
        }
        let wanted = Wanted {
            cause: v1::CheckpointCause::Requested,
            note: format!("fork of {id}"),
            keep_for: None,
            freeze_limit: FREEZE_LIMIT,
            parting: None,
        };
        let record = self.context.checkpoints.take(&by, id, wanted).await?;
        let session = request.session.clone().unwrap_or_default();
        let forks = (1..=count).map(|n| {
            let mut wanted = session.clone();
            if !wanted.request_id.is_empty() {
                wanted.request_id = format!("{}-{n}", wanted.request_id);
            }
            self.restore(tenant.clone(), Origin { record: &record, named: &request.session_id }, wanted)
        });
        // Together: they may land on several workers. What was made stays when one fails, and is told.
        let made = futures::future::join_all(forks).await;
        let (made, failed): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        let sessions: Vec<v1::Session> = made.into_iter().filter_map(Result::ok).collect();
        match failed.into_iter().find_map(Result::err) {
            Some(status) => {
                let ids: Vec<&str> = sessions.iter().map(|s| s.id.as_str()).collect();
                let error = berth_proto::error::from_status(&status, Reason::CheckpointFailed);
                let text = format!("{} of {count} were made: {}", ids.len(), error.message());
                Err(Error::new(error.code(), error.reason(), text).with("sessions", ids.join(",")).into())
            }
            None => Ok(Response::new(v1::ForkSessionResponse { sessions, checkpoint: Some(record.shown) })),
        }
    }
}
