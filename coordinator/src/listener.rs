//! The one port: client connections go to the server, workers' data connections become channels. Who is let in, and
//! which of the two a connection is, is `net`'s business; here is whether a data connection is the worker's that it says.

use std::sync::Arc;

use berth_net::{Acceptor, HANDSHAKE_WITHIN, Limits, Stream};
use berth_proto::{WorkerId, transport::channel_over, v1::DataPreface, world::TcpListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::driver::Links;

/// Accepts until `stop`. Client connections come out of the returned end of the channel.
pub fn listen(
    listener: TcpListener,
    acceptor: Option<Arc<Acceptor>>,
    limits: Limits,
    links: Arc<Links>,
    stop: CancellationToken,
) -> mpsc::Receiver<std::io::Result<Stream>> {
    berth_net::listen(listener, acceptor, limits, stop, move |stream, preface| {
        let links = links.clone();
        async move { data(stream, preface, &links).await }
    })
}

async fn data(stream: Stream, preface: DataPreface, links: &Arc<Links>) {
    let Ok(worker) = preface.worker_id.parse::<WorkerId>() else {
        tracing::warn!("a data connection names no worker");
        return;
    };
    if let Err(error) = stream.peer().speaks_for(&worker) {
        tracing::warn!(worker.id = %worker, %error, "a data connection was refused");
        return;
    }
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
