//! What can be wrong with certificates and handshakes, in words that say what to do.

use std::{io, path::PathBuf};

use rustls::CertificateError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("can't write {path}: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} {what}", path = path.display())]
    Bad { path: PathBuf, what: String },
    #[error("others may read the private key {path}", path = path.display())]
    OpenKey { path: PathBuf },
    #[error("{0:?} is no host:port whose certificate could be checked")]
    Address(String),
    #[error("{0:?} is neither a host's name nor an IP address")]
    Name(String),
    #[error("{0} says http://, but certificates are given")]
    NotWanted(String),
    #[error("{0} is reached over TLS, and no CA is known to check it by")]
    NoCa(String),
    #[error("there is a CA in {path} already", path = path.display())]
    CaExists { path: PathBuf },
    #[error("the certificate could not be made: {0}")]
    Issue(String),
    #[error("the other side does not speak TLS")]
    NotTls,
    #[error("the server's certificate has expired, or this machine's clock is wrong")]
    Expired,
    #[error("the server's certificate is not valid yet, or this machine's clock is wrong")]
    NotYet,
    #[error("the server's certificate is not for {0}")]
    WrongName(String),
    #[error("another CA issued the server's certificate")]
    WrongCa,
    #[error("the server refused the connection: {0}")]
    Refused(String),
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Read { source, .. } | Self::Write { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "run as the user whose it is, or correct its owner"
            }
            Self::Read { .. } => {
                "`berth tls init` and `berth tls worker` make what is needed (BERTH_TLS_DIR)"
            }
            Self::Write { .. } => "give a directory that this user may write to (--dir)",
            Self::Bad { .. } => "`berth tls show` looks at all of them; `berth tls renew` issues them anew",
            Self::OpenKey { path } => return format!("chmod 600 {}", path.display()),
            Self::Address(_) => "give host:port, for example coordinator.example.org:50051",
            Self::Name(_) => "name a host (coordinator.example.org) or an IP address (10.0.0.1)",
            Self::NotWanted(_) => "write https://, or leave BERTH_TLS_DIR and BERTH_TLS_CA out",
            Self::NoCa(_) => {
                "name the CA's certificate, ca.pem of `berth tls init`: BERTH_TLS_CA, or --tls-ca"
            }
            Self::CaExists { .. } => {
                "`berth tls renew` issues its certificates anew; a new CA needs a directory of its own (--dir)"
            }
            Self::Issue(_) => "look at the names and at the CA's key",
            Self::NotTls => "does it listen without TLS? Then its address begins with http://",
            Self::Expired => "on the CA's machine: `berth tls renew`; it is taken up without a restart",
            Self::NotYet => "compare the clocks of the two machines",
            Self::WrongName(_) => {
                "on the CA's machine: `berth tls renew --host NAME`, with all names that are used"
            }
            Self::WrongCa => {
                "BERTH_TLS_CA (or ca.pem in BERTH_TLS_DIR) must be that of the cluster's `berth tls init`"
            }
            Self::Refused(_) => {
                "its log says why; a worker needs a certificate of the cluster's CA that is valid: `berth tls worker ID`"
            }
            Self::Handshake(_) => "the other side's log may say more",
        };
        hint.to_owned()
    }

    /// A handshake that failed on the side that dialled `host`.
    pub(crate) fn handshake(error: &io::Error, host: &str) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::Handshake("the connection was closed in it".to_owned()),
                _ => Self::Handshake(error.to_string()),
            };
        };
        match tls {
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::InvalidCertificate(why) => match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYet,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongName(host.to_owned())
                }
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::WrongCa,
                other => Self::Handshake(other.to_string()),
            },
            rustls::Error::AlertReceived(alert) => Self::Refused(format!("{alert:?}")),
            other => Self::Handshake(other.to_string()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// What of TLS is behind an error of the transport, if it is that.
pub fn error_in<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // What an io::Error wraps is not its source, but what it wraps has one.
        let wrapped = error.downcast_ref::<io::Error>().and_then(|io| io.get_ref());
        if let Some(found) = wrapped.and_then(|wrapped| wrapped.downcast_ref::<Error>()) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
