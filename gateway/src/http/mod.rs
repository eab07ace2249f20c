//! The gateway's HTTP server: one port for all that it serves over HTTP.
//!
//! The protocols are behind [`Site`], which gives each request to the one that it is for. What holds for all of them is
//! here and in [`callers`]:
//!
//! - **How many.** Connections at once, and for each token requests at once: who has one token takes nobody else's room.
//!   Who comes when there is no room is told so, and not left waiting in a queue that nobody reads.
//! - **How long.** A request's head ([`pace`]), its body, and each write of an answer have a deadline. An answer itself has none: a
//!   stream of events lasts for as long as its client reads it.
//! - **What is left** of a request that was refused is read: see [`received`].
//! - **Who.** A token is asked about at the coordinator before anything is made for it.
//!
//! It listens on loopback without TLS, and beyond that with it ([`door`]), or behind a proxy that has TLS.

pub mod callers;
mod door;
mod pace;
mod patience;
pub mod query;
mod received;
mod reply;
mod site;

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use berth_proto::{
    spawn::spawn,
    trace::{self, Hop, Role},
};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

pub use self::door::{CONNECTIONS, Door, Place};
use self::pace::{Pace, Paced};
pub use patience::{Patience, Timed};
pub use received::Received;
pub use reply::{Body, bearer, empty, plain, text, unauthorized};
pub use site::{Settings, Site};

use crate::metrics::Interface;

/// A client that reads nothing of what it is sent is gone.
const WRITE_WITHIN: Duration = Duration::from_secs(60);

/// Serves until `stop`, and ends what was made for clients then.
pub async fn serve(listener: TcpListener, door: Door, site: Site, stop: CancellationToken) {
    let (door, site) = (Arc::new(door), Arc::new(site));
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let Some(place) = door.place(address.ip()) else {
            door::refuse(stream).await;
            continue;
        };
        let arrival = arrive(Arc::clone(&door), (stream, address), place, Arc::clone(&site), stop.clone());
        spawn("http connection", arrival);
    }
    site.end().await;
}

/// A hop of its trace, which ends when the answer begins: what streams behind that is in the spans of the calls it makes.
fn arrived(request: &mut Request<Received>, interface: Interface) -> Hop {
    let sent = request.headers().contains_key(trace::HEADER);
    let to_port = interface == Interface::Ports;
    let hop = Hop::arrived(Role::Entry, request.headers(), &name_of(request, to_port));
    // What is asked of a server in a sandbox is between it and its user, who may have put a secret into the path.
    if !to_port {
        hop.note("http.request.method", crate::text::clipped(request.method().as_str(), 20));
        hop.note("url.path", crate::text::clipped(request.uri().path(), 200));
    }
    // Such a server is told of a trace that its user is in, or that is kept; of no other.
    if (!to_port || sent || hop.context().is_sampled())
        && let Ok(context) = hop.context().to_string().parse()
    {
        request.headers_mut().insert(trace::HEADER, context);
    }
    hop
}

/// A span's name is one of few: of a path that part which no client chooses.
fn name_of(request: &Request<Received>, to_port: bool) -> String {
    if to_port {
        return "port".to_owned();
    }
    let mut parts = request.uri().path().split('/').skip(1);
    let path = match (parts.next().unwrap_or_default(), parts.next()) {
        ("v1", Some(what))
            if what.bytes().all(|b| b.is_ascii_lowercase() || b == b'.') && what.len() < 20 =>
        {
            format!("/v1/{what}")
        }
        (known @ ("mcp" | "v1" | "v2" | "sandboxes" | "templates" | "snapshots" | "files" | "health"), _) => {
            format!("/{known}")
        }
        (call, Some(method)) if call.starts_with("process.") || call.starts_with("filesystem.") => {
            crate::text::clipped(&format!("/{call}/{method}"), 80)
        }
        _ => "other".to_owned(),
    };
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known,
        _ => "other",
    };
    format!("{method} {path}")
}

fn name_request(response: &mut http::Response<Body>, hop: &mut Hop) {
    hop.note("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        hop.fail(response.status().to_string());
    }
    if let Ok(id) = hop.context().request_id().parse() {
        // A server in a sandbox may have said one of its own.
        response.headers_mut().entry("x-request-id").or_insert(id);
    }
}

/// What a request came over. It is among the extensions of each, for what goes on after it.
#[derive(Clone)]
pub struct Connection {
    pub peer: IpAddr,
    /// It counts as a connection for as long as somebody has this.
    pub place: Arc<Place>,
    /// The gateway stops.
    pub stop: CancellationToken,
}

async fn arrive(
    door: Arc<Door>,
    (stream, address): (TcpStream, SocketAddr),
    place: Place,
    site: Arc<Site>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let secured = tokio::select! {
        secured = door.enter(stream, address) => secured,
        () = stop.cancelled() => return,
    };
    let Some(stream) = secured else { return };
    let secure = stream.peer().secure;
    let here = Connection { peer: address.ip(), place: Arc::new(place), stop: stop.clone() };
    let pace = Pace::default();
    let _counted = site.metrics().connection();
    let mut stream = TimeoutStream::new(Paced::new(stream, pace.clone()));
    stream.set_write_timeout(Some(WRITE_WITHIN));
    let service = service_fn(|request: Request<Incoming>| {
        let (site, here, pace) = (Arc::clone(&site), here.clone(), pace.clone());
        pace.asked();
        async move {
            let (mut head, body) = request.into_parts();
            head.extensions.insert(here);
            if secure {
                // Whatever a client says of it: here is where the TLS ends.
                head.headers.insert("x-forwarded-proto", http::HeaderValue::from_static("https"));
            }
            let (body, left) = received::receive(&head.headers, body);
            let mut request = Request::from_parts(head, body);
            let interface = site.interface(&request);
            let counted = site.metrics().request(interface);
            let mut hop = arrived(&mut request, interface);
            let mut response = hop.scope(site.handle(request)).await;
            name_request(&mut response, &mut hop);
            left.read().await;
            Ok::<_, Infallible>(counted.answered(pace.answered(response)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
        .with_upgrades();
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        },
        () = stop.cancelled() => {}
    }
}
