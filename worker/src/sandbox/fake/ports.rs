//! `PortService` over a fake machine, which has no network, but a server on one port: on 7, as of old, what comes goes back.

use std::{pin::Pin, sync::Arc};

use berth_proto::{
    Error, Reason,
    convert::{self, connection_broken, too_many_connections},
    relay::first_message,
    transport::PORT_CONNECTIONS,
    v1::{self, dial_request::Part, port_service_server::PortService},
};
use futures::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status, Streaming};

use super::agent::{Machine, Served};

/// RFC 862.
const ECHO: u16 = 7;

struct Echo {
    machine: Arc<Machine>,
    incoming: Streaming<v1::DialRequest>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Echo {
    async fn next(&mut self) -> Result<v1::DialResponse, Error> {
        let message = tokio::select! {
            message = self.incoming.message() => message.ok().flatten(),
            () = self.machine.stopping.cancelled() => {
                return Err(Error::precondition(Reason::SessionEnded, "the session is over"));
            }
        };
        self.machine.touch();
        match message.map(|message| message.part) {
            Some(Some(Part::Data(bytes))) => Ok(v1::DialResponse::data(bytes)),
            Some(Some(Part::End(_))) => {
                self.over = true;
                Ok(v1::DialResponse::end())
            }
            Some(Some(Part::Header(_))) => Err(Error::invalid("header", "came twice")),
            Some(None) => Err(Error::invalid("part", "is missing")),
            None => Err(connection_broken("the client went away without ending the connection")),
        }
    }
}

#[tonic::async_trait]
impl PortService for Served {
    type DialStream = Pin<Box<dyn Stream<Item = Result<v1::DialResponse, Status>> + Send>>;

    async fn dial(
        &self,
        request: Request<Streaming<v1::DialRequest>>,
    ) -> Result<Response<Self::DialStream>, Status> {
        let mut incoming = request.into_inner();
        let first = first_message(&mut incoming).await?;
        let header = convert::dial_header(first.as_ref())?;
        let machine = self.0.clone();
        let _call = machine.enter(&header.session_id)?;
        let port = convert::port("port", header.port)?;
        if port != ECHO {
            let text = format!("nothing listens on port {port} in the session");
            return Err(Error::precondition(Reason::PortClosed, text)
                .hint("a fake sandbox has no server but the one on port 7, which sends back what it gets")
                .into());
        }
        let place = machine.connections.clone().try_acquire_owned();
        let _place = place.map_err(|_| too_many_connections(PORT_CONNECTIONS))?;
        let echo = Echo { machine: machine.clone(), incoming, over: false, _place };
        let answers = futures::stream::unfold(echo, |mut echo| async move {
            if echo.over {
                return None;
            }
            let next = echo.next().await;
            echo.over |= next.is_err();
            Some((next.map_err(Status::from), echo))
        });
        let connected = futures::stream::iter([Ok(v1::DialResponse::connected())]);
        Ok(Response::new(Box::pin(connected.chain(answers))))
    }
}
