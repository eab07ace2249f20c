//! `ArtifactService`: what sessions left behind.

use std::pin::Pin;

use berth_proto::{
    Error, SessionId,
    convert::{self, bounds},
    v1::{self, artifact_service_server::ArtifactService, read_artifact_response::Part},
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::{
    Context,
    guard::{sight_of, tenant_of},
};
use crate::audit::about;

pub struct ArtifactApi {
    context: Context,
}

impl ArtifactApi {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

/// The same form as a session's id.
fn artifact_id(text: &str) -> Result<String, Error> {
    let id: SessionId = text.parse().map_err(|_| {
        Error::invalid("artifact_id", "is not 32 hex digits").hint("`berth artifact list` shows them")
    })?;
    Ok(id.to_string())
}

type Parts = Pin<Box<dyn Stream<Item = Result<v1::ReadArtifactResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ArtifactService for ArtifactApi {
    type ReadArtifactStream = Parts;

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let by = sight_of(&request)?;
        let request = request.into_inner();
        let size = convert::page_size(request.page_size, bounds::PAGE_DEFAULT)?;
        let session = match request.session_id.as_str() {
            "" => None,
            id => Some(id.parse::<SessionId>()?),
        };
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(artifact_id(token).map_err(|_| convert::bad_page_token())?),
        };
        let artifacts = &self.context.artifacts;
        let mut answer = v1::ListArtifactsResponse::default();
        if let (Some(session), None) = (session, &before) {
            let settled = artifacts.settle(&by, session, false).await;
            answer = artifacts.left_out(&by, session).await?;
            answer.pending = !settled;
        }
        answer.artifacts = artifacts.list(&by, session, before.as_deref(), size + 1).await?;
        let more = crate::wire::cut_page(&mut answer.artifacts, size);
        let last = answer.artifacts.last().filter(|_| more).map(|artifact| artifact.id.clone());
        answer.next_page_token = last.unwrap_or_default();
        Ok(Response::new(answer))
    }

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<v1::Artifact>, Status> {
        let by = sight_of(&request)?;
        let id = artifact_id(&request.into_inner().artifact_id)?;
        Ok(Response::new(self.context.artifacts.get(&by, &id).await?))
    }

    async fn read_artifact(
        &self,
        request: Request<v1::ReadArtifactRequest>,
    ) -> Result<Response<Parts>, Status> {
        let by = sight_of(&request)?;
        let tenant = tenant_of(&request)?;
        let limit = self.context.shared.view.quota(&tenant).streams;
        let open = self.context.streams.open(&tenant, limit)?;
        let v1::ReadArtifactRequest { artifact_id: id, offset, length } = request.into_inner();
        let id = artifact_id(&id)?;
        let artifacts = self.context.artifacts.clone();
        let (info, reading) = artifacts.open(&by, &id, offset, length).await?;
        let head = Ok(v1::ReadArtifactResponse { part: Some(Part::Info(info)) });
        let rest = futures::stream::try_unfold((artifacts, reading), |(artifacts, mut reading)| async {
            let data = artifacts.next(&mut reading).await?;
            let part = v1::ReadArtifactResponse { part: Some(Part::Data(data.clone())) };
            Ok::<_, Status>((!data.is_empty()).then_some((part, (artifacts, reading))))
        });
        let until = self.context.stopping.clone().cancelled_owned();
        // It counts among the tenant's open calls until it ends.
        let parts = futures::stream::iter([head]).chain(rest).take_until(until).map(move |part| {
            let _open = &open;
            part
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn delete_artifact(
        &self,
        request: Request<v1::DeleteArtifactRequest>,
    ) -> Result<Response<v1::DeleteArtifactResponse>, Status> {
        let by = sight_of(&request)?;
        let id = artifact_id(&request.into_inner().artifact_id)?;
        about("artifact", &id);
        self.context.artifacts.remove(&by, &id).await?;
        Ok(Response::new(v1::DeleteArtifactResponse {}))
    }
}
