//! Reaching a server: the one place where an address and certificates become a connection. Clients, a worker's control
//! stream and its data connections all come through here.
//!
//! Files are read at each dial: whoever dials after a renewal shows the new certificate.

use std::{io, path::PathBuf, sync::Arc};

use berth_proto::{
    transport::{self, CONNECT_TIMEOUT},
    v1::DataPreface,
    world::{self, TcpStream},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, client::Resumption, pki_types::ServerName};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{ALPN_DATA, ALPN_H2, Clock, Error, Files, Pair, Peer, Stream, files::roots, provider};

/// Whom to trust, and whose certificate to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    ca: PathBuf,
    own: Option<Pair>,
}

impl Trust {
    /// A client's: it knows the CA, and has a token instead of a certificate.
    pub fn client(ca: impl Into<PathBuf>) -> Self {
        Self { ca: ca.into(), own: None }
    }

    /// A worker's.
    pub fn worker(files: &Files) -> Self {
        Self { ca: files.ca().certificate, own: Some(files.worker()) }
    }

    fn config(&self, protocol: &[u8]) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_details(provider(), Arc::new(Clock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| Error::Handshake(error.to_string()))?
            .with_root_certificates(roots(&self.ca)?);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let (chain, key) = pair.load()?;
                let bad = |error: rustls::Error| Error::Bad {
                    path: pair.certificate.clone(),
                    what: format!("does not fit its key: {error}"),
                };
                builder.with_client_auth_cert(chain, key).map_err(bad)?
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A server, and how it is reached.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// `host:port`.
    authority: String,
    tls: Option<(Trust, ServerName<'static>)>,
}

impl Dialer {
    /// `address`: `host:port`, or that with `http://` or `https://` before it. With a `trust`, `host:port` is reached over
    /// TLS, and `http://` is refused: whoever gives certificates means them.
    pub fn new(address: &str, trust: Option<Trust>) -> Result<Self, Error> {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest.strip_suffix('/').unwrap_or(rest)),
            None => (None, address),
        };
        let tls = match (scheme, trust) {
            (Some("https"), None) => return Err(Error::NoCa(address.to_owned())),
            (Some("http"), Some(_)) => return Err(Error::NotWanted(address.to_owned())),
            (Some("https") | None, Some(trust)) => Some((trust, server_name(rest)?)),
            (Some("http") | None, None) => None,
            _ => return Err(Error::Address(address.to_owned())),
        };
        let dialer = Self { authority: rest.to_owned(), tls };
        dialer.endpoint()?;
        Ok(dialer)
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let uri = |scheme: &str| format!("{scheme}://{}", self.authority);
        let wrong = || Error::Address(self.authority.clone());
        let endpoint = transport::endpoint(uri("http")).map_err(|_| wrong())?;
        match &self.tls {
            None => Ok(endpoint),
            // What is said to the server; how it is reached is the connector's business.
            Some(_) => Ok(endpoint.origin(uri("https").parse().map_err(|_| wrong())?)),
        }
    }

    /// Connects, or says why it can't.
    pub async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let endpoint = self.endpoint().expect("it was looked at when this was made");
        match &self.tls {
            None => world::connect(&endpoint).await,
            Some(_) => {
                let dialer = self.clone();
                endpoint.connect_with_connector(service_fn(move |_: http::Uri| dialer.clone().h2())).await
            }
        }
    }

    /// Connects when it is first used.
    pub fn connect_lazy(&self) -> Channel {
        let endpoint = self.endpoint().expect("it was looked at when this was made");
        match &self.tls {
            None => world::connect_lazy(&endpoint),
            Some(_) => {
                let dialer = self.clone();
                endpoint.connect_with_connector_lazy(service_fn(move |_: http::Uri| dialer.clone().h2()))
            }
        }
    }

    /// Dials for tonic, which says where to: we know already.
    async fn h2(self) -> io::Result<TokioIo<Stream>> {
        self.dial(ALPN_H2).await.map(TokioIo::new)
    }

    /// Dials the coordinator and announces a data connection. The caller serves HTTP/2 on it.
    pub async fn data(&self, preface: &DataPreface) -> io::Result<Stream> {
        let head = transport::data_head(preface)?;
        let connect = async {
            let mut stream = self.dial(ALPN_DATA).await?;
            stream.write_all(&head).await?;
            stream.flush().await?;
            Ok(stream)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the coordinator did not answer"))
        })
    }

    async fn dial(&self, protocol: &[u8]) -> io::Result<Stream> {
        // Before the other side is made to wait: files that can't be read are told at once.
        let tls = match &self.tls {
            None => None,
            Some((trust, name)) => Some((TlsConnector::from(Arc::new(trust.config(protocol)?)), name)),
        };
        let stream = TcpStream::connect(self.authority.as_str()).await?;
        stream.set_nodelay(true)?;
        let Some((connector, name)) = tls else { return Ok(Stream::plain(stream, None)) };
        let secured = connector
            .connect(name.clone(), stream)
            .await
            .map_err(|error| Error::handshake(&error, &name.to_str()))?;
        if secured.get_ref().1.alpn_protocol() != Some(protocol) {
            return Err(Error::Handshake("the other side is no coordinator".to_owned()).into());
        }
        Ok(Stream::tls(secured.into(), Peer::new(None, true, None)))
    }
}

/// The host of `host:port`, as a certificate names it.
fn server_name(authority: &str) -> Result<ServerName<'static>, Error> {
    let wrong = || Error::Address(authority.to_owned());
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    port.parse::<u16>().map_err(|_| wrong())?;
    ServerName::try_from(host.to_owned()).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_and_the_certificates_must_agree() {
        let trust = || Some(Trust::client("/nowhere"));
        let secure = |address, trust| Dialer::new(address, trust).map(|dialer| dialer.tls.is_some());
        assert!(secure("a:1", trust()).unwrap() && secure("https://a:1/", trust()).unwrap());
        assert!(!secure("a:1", None).unwrap() && !secure("http://a:1", None).unwrap());
        assert!(secure("https://[::1]:5", trust()).unwrap() && secure("10.0.0.1:5", trust()).unwrap());
        assert!(matches!(secure("http://a:1", trust()), Err(Error::NotWanted(_))));
        assert!(matches!(secure("https://a:1", None), Err(Error::NoCa(_))));
        for wrong in ["ftp://a:1", "a", "a:b", "a b:1", ""] {
            assert!(matches!(secure(wrong, trust()), Err(Error::Address(_))), "{wrong:?}");
        }
    }
}
