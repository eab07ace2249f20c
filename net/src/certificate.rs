//! What stands in a certificate, for the handshake (whose is it?) and for people (until when, for which names?).

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_proto::WorkerId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Error, files::certificates};

/// A worker's certificate has its id in a name of this form.
pub const WORKER_URI: &str = "berth://worker/";

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    /// Hosts and addresses that it is for.
    pub names: Vec<String>,
    /// The worker whose it is.
    pub worker: Option<WorkerId>,
    pub is_ca: bool,
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Facts {
    pub(crate) fn of(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let alternatives = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        let (mut names, mut uris) = (Vec::new(), Vec::new());
        for name in alternatives.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                GeneralName::URI(uri) => uris.push(*uri),
                _ => {}
            }
        }
        // One worker, or none: of two nobody could say which it is.
        let worker = match &uris[..] {
            [uri] => uri.strip_prefix(WORKER_URI).and_then(|id| id.parse().ok()),
            _ => None,
        };
        let validity = certificate.validity();
        Ok(Self {
            subject: common_name(certificate.subject()),
            issuer: common_name(certificate.issuer()),
            names,
            worker,
            is_ca: certificate.is_ca(),
            from: time(validity.not_before.timestamp()),
            until: time(validity.not_after.timestamp()),
        })
    }

    /// Whether it is valid at this time.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

/// What the first certificate of a file says.
pub fn facts_of(path: &Path) -> Result<Facts, Error> {
    let certificates = certificates(path)?;
    Facts::of(&certificates[0])
        .map_err(|error| Error::Bad { path: path.to_owned(), what: format!("is no certificate: {error}") })
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

fn address(bytes: &[u8]) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(ip.to_string())
}

fn time(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH + Duration::from_secs(after),
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()),
    }
}
