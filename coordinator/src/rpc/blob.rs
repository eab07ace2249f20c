//! `BlobService`: workers bring and fetch the pieces of checkpoints.

use std::pin::Pin;

use berth_checkpoint::Digest;
use berth_net::Peer;
use berth_proto::{
    Error,
    v1::{self, blob_service_server::BlobService},
};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::Context;

/// Digests in one request.
const DIGESTS_MAX: usize = 10_000;
/// Pieces of one upload that are stored at the same time, and of one download that are read ahead.
const AT_ONCE: usize = 8;

pub struct Blobs {
    context: Context,
}

impl Blobs {
    pub fn new(context: Context) -> Self {
        Self { context }
    }
}

fn digests(wire: &[bytes::Bytes]) -> Result<Vec<Digest>, Error> {
    if wire.len() > DIGESTS_MAX {
        return Err(Error::invalid("digests", format!("more than {DIGESTS_MAX} at once")));
    }
    let digest =
        |bytes: &bytes::Bytes| Digest::from_wire(bytes).map_err(|e| Error::invalid("digests", e.to_string()));
    wire.iter().map(digest).collect()
}

#[tonic::async_trait]
impl BlobService for Blobs {
    type GetBlobsStream = Pin<Box<dyn Stream<Item = Result<v1::Blob, Status>> + Send>>;

    async fn find_missing(
        &self,
        request: Request<v1::FindMissingRequest>,
    ) -> Result<Response<v1::FindMissingResponse>, Status> {
        Peer::of(&request).is_worker()?;
        let asked = digests(&request.into_inner().digests)?;
        let missing = self.context.checkpoints.missing(&asked).await?;
        let digests = missing.into_iter().map(Digest::to_wire).collect();
        Ok(Response::new(v1::FindMissingResponse { digests }))
    }

    async fn put_blobs(
        &self,
        request: Request<Streaming<v1::Blob>>,
    ) -> Result<Response<v1::PutBlobsResponse>, Status> {
        Peer::of(&request).is_worker()?;
        let checkpoints = &self.context.checkpoints;
        let mut stored = request
            .into_inner()
            .map(|blob| async move {
                let blob = blob?;
                let digest =
                    Digest::from_wire(&blob.digest).map_err(|e| Error::invalid("digest", e.to_string()))?;
                Ok::<u64, Status>(checkpoints.put(digest, blob.data).await?)
            })
            .buffer_unordered(AT_ONCE);
        let mut stored_bytes = 0;
        while let Some(added) = stored.next().await {
            stored_bytes += added?;
        }
        Ok(Response::new(v1::PutBlobsResponse { stored_bytes }))
    }

    async fn get_blobs(
        &self,
        request: Request<v1::GetBlobsRequest>,
    ) -> Result<Response<Self::GetBlobsStream>, Status> {
        Peer::of(&request).is_worker()?;
        let asked = digests(&request.into_inner().digests)?;
        let checkpoints = self.context.checkpoints.clone();

        let read = futures::stream::iter(asked).map(move |digest| {
            let checkpoints = checkpoints.clone();
            async move { Ok(v1::Blob { digest: digest.to_wire(), data: checkpoints.read(digest).await?.0 }) }
        });
        Ok(Response::new(Box::pin(read.buffered(AT_ONCE))))
    }
}
