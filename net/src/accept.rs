//! The server's side of TLS: its certificate, the CA of those that may show one, and the handshake.
//!
//! Whether the files have changed is looked at for each connection (three `stat`s against the millisecond of a
//! handshake): no watcher, no signal, no timer. New files that can't be used leave the old ones in force, and are told
//! once.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use berth_proto::world::TcpStream;
use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    ALPN_DATA, ALPN_H2, ALPN_HTTP, Clock, Error, Facts, Files, Pair, Peer, Stream,
    files::{Stamp, roots},
    provider,
};

/// See the module.
#[derive(Debug)]
pub struct Acceptor {
    own: Pair,
    /// Who may show a certificate: nobody, where there is none.
    ca: Option<PathBuf>,
    /// What is spoken here.
    alpn: &'static [&'static [u8]],
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    stamp: Stamp,
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// The coordinator's: workers show their certificates, clients none.
    pub fn coordinator(files: &Files) -> Result<Arc<Self>, Error> {
        Self::new(files.coordinator(), Some(files.ca().certificate), &[ALPN_H2, ALPN_DATA])
    }

    /// That of a worker's own listener, which is for clients with its token.
    pub fn worker(files: &Files) -> Result<Arc<Self>, Error> {
        let facts = crate::facts_of(&files.worker().certificate)?;
        if facts.names.is_empty() {
            return Err(Error::Bad {
                path: files.worker().certificate,
                what: "has no name to listen under: `berth tls worker ID --host NAME` gives it one"
                    .to_owned(),
            });
        }
        Self::new(files.worker(), None, &[ALPN_H2])
    }

    /// That of an HTTP port, for whoever has a token. Its certificate may be of an authority that browsers know.
    pub fn http(own: Pair) -> Result<Arc<Self>, Error> {
        Self::new(own, None, &[ALPN_HTTP])
    }

    fn new(own: Pair, ca: Option<PathBuf>, alpn: &'static [&'static [u8]]) -> Result<Arc<Self>, Error> {
        // Before they are read: a change after that is seen.
        let stamp = stamp(&own, ca.as_ref());
        let config = config(&own, ca.as_ref(), alpn)?;
        Ok(Arc::new(Self { own, ca, alpn, current: Mutex::new(Current { stamp, config }) }))
    }

    /// What is in force now.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.own, self.ca.as_ref());
        if stamp != current.stamp {
            match config(&self.own, self.ca.as_ref(), self.alpn) {
                Ok(config) => {
                    tracing::info!(certificate = %self.own.certificate.display(), "the certificate was read anew");
                    current.config = config;
                }
                Err(error) => {
                    tracing::warn!(%error, hint = error.hint(), "the old certificate stays in force");
                }
            }
            current.stamp = stamp;
        }
        current.config.clone()
    }

    /// Does the handshake.
    pub async fn secure(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Stream> {
        self.accept(stream, address).await.map(|(stream, _)| stream)
    }

    /// The same. Whether it is a data connection, by its ALPN name, is told beside it.
    pub(crate) async fn accept(&self, stream: TcpStream, address: SocketAddr) -> io::Result<(Stream, bool)> {
        let secured = TlsAcceptor::from(self.config()).accept(stream).await?;
        let (_, session) = secured.get_ref();
        let is_data = session.alpn_protocol() == Some(ALPN_DATA);
        // It has been verified: here it is only read.
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let worker = shown.and_then(|der| Facts::of(der).ok()?.worker);
        let peer = Peer::new(Some(address), true, worker);
        Ok((Stream::tls(secured.into(), peer), is_data))
    }
}

fn stamp(own: &Pair, ca: Option<&PathBuf>) -> Stamp {
    Stamp::of([&own.certificate, &own.key].into_iter().chain(ca))
}

fn config(own: &Pair, ca: Option<&PathBuf>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let broken = |error: &dyn std::fmt::Display| Error::Handshake(error.to_string());
    let verifier: Arc<dyn ClientCertVerifier> = match ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(ca) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::Bad { path: ca.clone(), what: format!("can't be used: {error}") })?,
    };
    let (chain, key) = own.load()?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(Clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| broken(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| Error::Bad {
            path: own.certificate.clone(),
            what: format!("does not fit its key: {error}"),
        })?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
