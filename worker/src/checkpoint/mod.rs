//! Checkpoints, as far as a worker has to do with them: what the agent exports is staged on the worker's disk, cut
//! into pieces, and sent to the coordinator as far as it does not have them; and the way back.
//!
//! The tasks stand still only while the agent reads and this side writes to its disk: no network is in between. So
//! how long they stand depends on the workspace, and not on the coordinator.
//!
//! The staging file has no name, so that a worker that dies leaves none behind.

mod restore;
mod service;
mod take;

use std::{path::PathBuf, sync::Arc};

use berth_checkpoint::{Bad, Digest};
use berth_net::Dialer;
use berth_proto::{
    Code, Error, Reason,
    transport::MESSAGE_LIMIT,
    v1::{self, blob_service_client::BlobServiceClient},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::credential::Credential;

pub use restore::restore;
pub use service::CheckpointApi;
pub use take::{Parting, Taken, Wanted, take};

/// Pieces that one call asks about, or asks for.
const TOGETHER: usize = 512;

/// The coordinator's store of pieces.
pub type Blobs = BlobServiceClient<InterceptedService<Channel, Token>>;

/// Adds the worker's token to each call.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// The way to the coordinator's pieces, and where a checkpoint is staged on the way there.
#[derive(Clone)]
pub struct Source {
    coordinator: Dialer,
    credential: Arc<Credential>,
    staging: Staging,
}

/// Where archives wait to be cut.
#[derive(Clone, Debug)]
pub struct Staging {
    /// A directory on the disk of the workspaces.
    pub dir: PathBuf,
    /// What must stay free there: it is promised to sessions that run.
    pub margin_bytes: u64,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("coordinator", &self.coordinator).finish_non_exhaustive()
    }
}

impl Source {
    pub fn new(coordinator: Dialer, credential: Arc<Credential>, staging: Staging) -> Self {
        Self { coordinator, credential, staging }
    }

    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Connects to the coordinator, beside the link: pieces must not hold up a heartbeat.
    pub fn connect(&self) -> Result<Blobs, Error> {
        let unusable = |error: &dyn std::fmt::Display| {
            Error::unavailable(Reason::CheckpointFailed, format!("no connection for pieces: {error}"))
        };
        let token = MetadataValue::try_from(format!("Bearer {}", self.credential.shown()));
        let mut token = token.map_err(|e| unusable(&e))?;
        token.set_sensitive(true);
        let service = InterceptedService::new(self.coordinator.connect_lazy(), Token(token));
        Ok(BlobServiceClient::new(service).max_decoding_message_size(MESSAGE_LIMIT))
    }
}

/// What a peer refused, in its own words.
fn from_status(status: Status) -> Error {
    berth_proto::error::from_status(&status, Reason::CheckpointFailed)
}

fn broken(error: std::io::Error) -> Error {
    Error::internal("a checkpoint's worker thread ended").cause(error)
}

fn damaged(bad: Bad) -> Error {
    Error::new(Code::DataLoss, Reason::CheckpointFailed, format!("the checkpoint is damaged: {bad}"))
}

fn wire(digests: &[Digest]) -> Vec<bytes::Bytes> {
    digests.iter().map(|digest| digest.to_wire()).collect()
}

fn part(part: v1::archive_part::Part) -> v1::ArchivePart {
    v1::ArchivePart { part: Some(part) }
}
