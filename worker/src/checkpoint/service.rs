//! What the coordinator asks of a worker on its data connections.

use berth_proto::{
    Epoch, Error,
    convert::{self, duration_out},
    v1::{self, worker_data_service_server::WorkerDataService},
};
use tonic::{Request, Response, Status};

use super::{Parting, Wanted};
use crate::sessions::Sessions;

/// The service.
#[derive(Clone)]
pub struct CheckpointApi {
    sessions: Sessions,
}

impl CheckpointApi {
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }
}

#[tonic::async_trait]
impl WorkerDataService for CheckpointApi {
    async fn take_checkpoint(
        &self,
        request: Request<v1::TakeCheckpointRequest>,
    ) -> Result<Response<v1::TakeCheckpointResponse>, Status> {
        let request = request.into_inner();
        let session = convert::session_id(&request.session_id)?;
        let freeze_limit = convert::duration("freeze_limit", request.freeze_limit.unwrap_or_default())?;
        let parting = request.parting.map(|parting| {
            let settle = convert::duration("parting.settle", parting.settle.unwrap_or_default())?;
            Ok::<_, Error>(Parting { settle, anyway: parting.anyway })
        });
        let wanted = Wanted { max_bytes: request.max_bytes, freeze_limit, parting: parting.transpose()? };
        let taken = self.sessions.checkpoint(session, Epoch(request.epoch), wanted).await?;
        Ok(Response::new(v1::TakeCheckpointResponse {
            root: taken.root.to_wire(),
            entries: taken.entries,
            content_bytes: taken.content_bytes,
            stored_bytes: taken.stored_bytes,
            frozen_for: Some(duration_out(taken.frozen_for)),
            skipped: taken.skipped,
        }))
    }
}
