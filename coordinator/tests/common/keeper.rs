//! A scripted worker's side of checkpoints: all are of an empty workspace, which is enough to be kept and named.

use std::sync::{Arc, Mutex};

use berth_checkpoint::{pack_manifest, seal};
use berth_net::Dialer;
use berth_proto::{
    Code, Error, Reason,
    convert::duration_out,
    spawn::spawn,
    transport,
    v1::{
        self,
        blob_service_client::BlobServiceClient,
        worker_data_service_server::{WorkerDataService, WorkerDataServiceServer},
    },
};
use futures::StreamExt;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Guarded, Host, Puppet};

/// What becomes of the next checkpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OnCheckpoint {
    #[default]
    Taken,
    Fails(String),
    /// It waits until that is changed.
    Waits,
}

/// Serves one data connection of a worker whose script says that it serves none itself.
#[derive(Clone)]
pub struct Keeper {
    pub then: watch::Sender<OnCheckpoint>,
    asked: Arc<Mutex<Vec<v1::TakeCheckpointRequest>>>,
    blobs: BlobServiceClient<Guarded>,
}

impl Keeper {
    pub async fn serve(host: &Host, worker: &Puppet) -> Self {
        let preface = v1::DataPreface {
            worker_id: worker.name.clone(),
            incarnation: worker.welcome.incarnation,
            data_token: worker.welcome.data_token.clone(),
        };
        let dialer = Dialer::new(&host.running.addr().to_string(), None).expect("an address");
        let stream = dialer.data(&preface).await.expect("dials");
        let keeper = Self {
            then: watch::Sender::new(OnCheckpoint::Taken),
            asked: Arc::default(),
            blobs: BlobServiceClient::with_interceptor(host.channel().await, host.join()),
        };
        let service = WorkerDataServiceServer::new(keeper.clone());
        spawn("keeper", async move {
            let incoming = futures::stream::once(async { Ok::<_, std::io::Error>(stream) })
                .chain(futures::stream::pending());
            let server = transport::server(transport::DATA_STREAMS).add_service(service);
            let _ = server.serve_with_incoming(incoming).await;
        });
        keeper
    }

    /// What it was asked for.
    pub fn asked(&self) -> Vec<v1::TakeCheckpointRequest> {
        self.asked.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl WorkerDataService for Keeper {
    async fn take_checkpoint(
        &self,
        request: Request<v1::TakeCheckpointRequest>,
    ) -> Result<Response<v1::TakeCheckpointResponse>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        let mut then = self.then.subscribe();
        let decided = then.wait_for(|then| *then != OnCheckpoint::Waits).await.expect("it lives").clone();
        if let OnCheckpoint::Fails(why) = decided {
            return Err(Error::new(Code::Unavailable, Reason::CheckpointFailed, why).into());
        }
        let packed = pack_manifest(&v1::Manifest { version: 1, ..Default::default() }).expect("a manifest");
        let blob = |cut: &berth_checkpoint::Cut| v1::Blob {
            digest: cut.digest.to_wire(),
            data: seal(&cut.data).expect("it can be sealed"),
        };
        let blobs: Vec<v1::Blob> = packed.pieces.iter().map(blob).collect();
        self.blobs.clone().put_blobs(futures::stream::iter(blobs)).await?;
        Ok(Response::new(v1::TakeCheckpointResponse {
            root: packed.root.to_wire(),
            frozen_for: Some(duration_out(std::time::Duration::from_millis(1))),
            ..Default::default()
        }))
    }
}
