//! Connections between the parts of Berth over a network: who is let in at a port ([`listen`]), how another's port is
//! reached ([`Dialer`]), and TLS on both ends.
//!
//! TLS is one directory ([`Files`]), made by [`issue`]: a private CA, and a certificate for the coordinator and for each
//! worker. Nothing else is trusted, least of all the system's list of authorities: whoever has a certificate of this CA
//! belongs to this cluster. There is no way to leave the check out.
//!
//! - A worker's certificate carries its id (`berth://worker/ID`), and a connection is taken for that worker's alone.
//!   Clients show no certificate: they have tokens.
//! - Only TLS 1.3, and no resumption: a certificate is looked at on each connection, so that one that was replaced or has
//!   expired is not good for a while longer.
//! - Files are read anew when they change: a renewal needs no restart, and connections that are up stay up.
//! - The one port serves clients and workers' data connections, as it does without TLS. Which one it is tells the ALPN
//!   name, and its first bytes must say the same.

mod accept;
mod certificate;
mod dial;
mod error;
mod files;
pub mod issue;
mod listen;
mod patience;
mod request;
mod seldom;
mod stream;

pub use accept::Acceptor;
pub use certificate::{Facts, WORKER_URI, facts_of};
pub use dial::{Dialer, Trust};
pub use error::{Error, error_in};
pub use files::{Files, KEY_MODE, Pair};
pub use listen::{Limits, Place, Rooms, TLS_HANDSHAKE, TOO_MANY, WANTS_TLS, listen};
pub use patience::{Bounds, Patience, Patient};
pub use seldom::Seldom;
pub use stream::{Peer, Stream};

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use berth_proto::world;
use rustls::{crypto::CryptoProvider, pki_types::UnixTime, time_provider::TimeProvider};

/// ALPN name of gRPC.
const ALPN_H2: &[u8] = b"h2";
/// ALPN name of the gateway's HTTP.
const ALPN_HTTP: &[u8] = b"http/1.1";
/// ALPN name of a worker's data connection, on which the coordinator is the HTTP/2 client.
const ALPN_DATA: &[u8] = b"berth-data/1";
/// Time for a new connection to say what it is, and for its handshake.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Certificates are valid by the clock that all of Berth goes by.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        world::now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}
