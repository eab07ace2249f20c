//! The one port: client connections go to the server, workers' data connections become
//! channels. Which is which the first bytes tell, within a deadline and beside the accept
//! loop, so that a peer that says nothing holds up nobody.

use std::{sync::Arc, time::Duration};

use berth_proto::{
    WorkerId,
    spawn::spawn,
    transport::{Arrival, accept, arrival, channel_over},
    v1::DataPreface,
    world::{TcpListener, TcpStream},
};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::driver::Links;

/// Connections that have not said yet what they are. One more waits to be accepted.
const UNDECIDED: usize = 512;
/// Time for the HTTP/2 handshake on a data connection.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

/// Accepts until `stop`. Client connections come out of the returned end of the channel.
pub fn listen(
    listener: TcpListener,
    links: Arc<Links>,
    stop: CancellationToken,
) -> mpsc::Receiver<std::io::Result<TcpStream>> {
    let (clients, receiver) = mpsc::channel(UNDECIDED);
    spawn("listener", async move {
        let mut connections = std::pin::pin!(accept(listener));
        let undecided = Arc::new(Semaphore::new(UNDECIDED));
        loop {
            let Ok(permit) = undecided.clone().acquire_owned().await else { return };
            let stream = tokio::select! {
                stream = connections.next() => stream,
                () = stop.cancelled() => None,
            };
            let Some(stream) = stream else { return };
            let (clients, links) = (clients.clone(), links.clone());
            spawn("arrival", async move {
                let _permit = permit;
                match arrival(stream).await {
                    Ok(Arrival::Client(stream)) => {
                        // The server is gone only when all comes down.
                        let _ = clients.send(Ok(stream)).await;
                    }
                    Ok(Arrival::Data(stream, preface)) => data(stream, preface, &links).await,
                    Err(error) => tracing::debug!(%error, "a connection came to nothing"),
                }
            });
        }
    });
    receiver
}

async fn data(stream: TcpStream, preface: DataPreface, links: &Arc<Links>) {
    let Ok(worker) = preface.worker_id.parse::<WorkerId>() else {
        tracing::warn!("a data connection names no worker");
        return;
    };
    if !links.verify(&worker, &preface) {
        tracing::warn!(worker.id = %worker, incarnation = preface.incarnation, "a data connection was refused");
        return;
    }
    match tokio::time::timeout(HANDSHAKE_WITHIN, channel_over(stream)).await {
        Ok(Ok((channel, closed))) => {
            tracing::debug!(worker.id = %worker, "a data connection is up");
            links.add_channel(&worker, channel, closed);
        }
        Ok(Err(error)) => tracing::warn!(worker.id = %worker, %error, "a data connection failed"),
        Err(_) => tracing::warn!(worker.id = %worker, "a data connection was too slow"),
    }
}
