//! PortService, as the agent serves it: the conversion; the work is in [`crate::ports`].

use std::sync::Arc;

use berth_proto::{
    convert,
    relay::first_message,
    spawn::spawn,
    v1::{self, port_service_server::PortService},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{ports::Ports, tasks::Tasks};

/// Pieces that wait for the next hop.
const QUEUE: usize = 2;

/// The service.
pub struct PortApi {
    pub tasks: Arc<Tasks>,
    pub ports: Ports,
}

#[tonic::async_trait]
impl PortService for PortApi {
    type DialStream = ReceiverStream<Result<v1::DialResponse, Status>>;

    async fn dial(
        &self,
        request: Request<Streaming<v1::DialRequest>>,
    ) -> Result<Response<Self::DialStream>, Status> {
        let mut incoming = request.into_inner();
        let first = first_message(&mut incoming).await?;
        let header = convert::dial_header(first.as_ref())?;
        self.tasks.session(&header.session_id)?;
        let dialled = self.ports.dial(convert::port("port", header.port)?).await?;
        let (out, answer) = mpsc::channel(QUEUE);
        // There is room: it is the first.
        let _ = out.try_send(Ok(v1::DialResponse::connected()));
        spawn("connection to a port", dialled.carry(incoming, out));
        Ok(Response::new(ReceiverStream::new(answer)))
    }
}
