//! Making certificates: the private CA of a cluster, and those that it issues. `berth tls` is the command for it.
//!
//! The CA lives for ten years, what it issues for one unless told otherwise. Each issue draws a new key. Nothing is
//! revoked by a list: a worker that is no longer trusted loses its join token; if that is not enough, `berth tls init` in
//! a new directory makes a CA that never issued it anything.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use berth_proto::{WorkerId, world};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Error, Files, KEY_MODE, Pair, WORKER_URI, facts_of,
    files::{certificates, write},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the CA is valid.
const CA_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long what it issues is valid, unless told otherwise.
pub const ISSUED_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of machines differ: a new certificate is good at once on those that are behind.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);
/// Certificates may be read by all.
const CERTIFICATE_MODE: u32 = 0o644;
/// What every coordinator is called on its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Validity {
    /// From now on.
    pub fn lasting(time: Duration) -> Self {
        Self { from: world::now() - CLOCK_SLACK, until: world::now() + time }
    }
}

/// A CA with its key.
pub struct Authority {
    files: Files,
    issuer: Issuer<'static, KeyPair>,
    /// Of all authorities that its file names, for those that get certificates.
    bundle: String,
}

impl Authority {
    /// Makes a CA in a directory that has none.
    pub fn make(files: &Files) -> Result<Self, Error> {
        let ca = files.ca();
        if ca.certificate.exists() || ca.key.exists() {
            return Err(Error::CaExists { path: files.dir().to_owned() });
        }
        make_dir(files.dir())?;
        let name = format!("Berth CA {:08x}", world::random_u64() >> 32);
        let mut params = params(&name, Validity::lasting(CA_FOR));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = params.self_signed(&key).map_err(issue)?;
        write(&ca.key, &key.serialize_pem(), KEY_MODE)?;
        write(&ca.certificate, &certificate.pem(), CERTIFICATE_MODE)?;
        Self::open(files)
    }

    /// Takes up the one that is there.
    pub fn open(files: &Files) -> Result<Self, Error> {
        let ca = files.ca();
        let bad = |what: &str| Error::Bad { path: ca.key.clone(), what: what.to_owned() };
        let key = text(&ca.key)?;
        let key = KeyPair::from_pem(&key).map_err(|error| bad(&format!("holds no private key: {error}")))?;
        let der = certificates(&ca.certificate)?.swap_remove(0);
        let fits = X509Certificate::from_der(&der)
            .is_ok_and(|(_, ca)| *ca.public_key().subject_public_key.data == *key.public_key_raw());
        if !fits {
            return Err(bad("is not the key of the first certificate in ca.pem"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(issue)?;
        Ok(Self { files: files.clone(), issuer, bundle: text(&ca.certificate)? })
    }

    /// Issues the coordinator's certificate, for these names and those that it has on its own machine.
    pub fn coordinator(&self, hosts: &[String], validity: Validity) -> Result<(), Error> {
        let mut params = params("Berth coordinator", validity);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for host in LOCAL.iter().map(|host| (*host).to_owned()).chain(hosts.iter().cloned()) {
            let name = name(&host)?;
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        self.issue(params, &self.files.coordinator())
    }

    /// Issues a worker's, in a directory of its own, and says which. With `hosts` it may listen, under these names.
    pub fn worker(&self, id: &WorkerId, hosts: &[String], validity: Validity) -> Result<Files, Error> {
        let files = self.files.worker_dir(id);
        make_dir(&self.files.dir().join("workers"))?;
        make_dir(files.dir())?;
        let mut params = params(&format!("Berth worker {id}"), validity);
        let uri = format!("{WORKER_URI}{id}").try_into().map_err(issue)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        for host in hosts {
            params.subject_alt_names.push(name(host)?);
        }
        if !hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        self.issue(params, &files.worker())?;
        write(&files.ca().certificate, &self.bundle, CERTIFICATE_MODE)?;
        Ok(files)
    }

    /// Issues anew what there is, with the names that it has; the coordinator's with these more.
    pub fn renew(&self, more: &[String], validity: Validity) -> Result<Vec<Pair>, Error> {
        let mut renewed = Vec::new();
        let coordinator = self.files.coordinator();
        if coordinator.certificate.exists() {
            let mut hosts = facts_of(&coordinator.certificate)?.names;
            hosts.extend_from_slice(more);
            self.coordinator(&hosts, validity)?;
            renewed.push(coordinator);
        }
        for id in self.files.workers() {
            let pair = self.files.worker_dir(&id).worker();
            if pair.certificate.exists() {
                self.worker(&id, &facts_of(&pair.certificate)?.names, validity)?;
                renewed.push(pair);
            }
        }
        Ok(renewed)
    }

    fn issue(&self, mut params: CertificateParams, to: &Pair) -> Result<(), Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(issue)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(issue)?;
        write(&to.key, &key.serialize_pem(), KEY_MODE)?;
        write(&to.certificate, &certificate.pem(), CERTIFICATE_MODE)
    }
}

fn params(subject: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.not_before = moment(validity.from);
    params.not_after = moment(validity.until);
    params
}

fn moment(time: SystemTime) -> OffsetDateTime {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Beyond what a certificate can say there is nothing to tell apart.
    let latest = CA_FOR.as_secs() * 100;
    OffsetDateTime::from_unix_timestamp(seconds.min(latest).cast_signed())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn name(host: &str) -> Result<SanType, Error> {
    let wrong = || Error::Name(host.to_owned());
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // `*.example.org` is for every name one step below: sandboxes' ports have such.
    ServerName::try_from(bare.strip_prefix("*.").unwrap_or(bare)).map_err(|_| wrong())?;
    Ok(SanType::DnsName(bare.try_into().map_err(|_| wrong())?))
}

fn issue(error: rcgen::Error) -> Error {
    Error::Issue(error.to_string())
}

fn text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| Error::Write { path: dir.to_owned(), source })
}

/// Whole days that are left, for people. `None`: it is over.
pub fn days_left(until: SystemTime) -> Option<u64> {
    until.duration_since(world::now()).ok().map(|left| left.as_secs() / DAY.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lasting() -> Validity {
        Validity::lasting(ISSUED_FOR)
    }

    #[test]
    fn what_is_issued_says_whose_it_is_and_keys_are_for_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("tls"));
        let authority = Authority::make(&files).unwrap();
        authority.coordinator(&["berth.example.org".into(), "10.0.0.1".into()], lasting()).unwrap();
        let id: WorkerId = "w-1.a_b".parse().unwrap();
        let own = authority.worker(&id, &[], lasting()).unwrap();

        let coordinator = facts_of(&files.coordinator().certificate).unwrap();
        assert_eq!(coordinator.names, ["localhost", "127.0.0.1", "::1", "berth.example.org", "10.0.0.1"]);
        assert_eq!((coordinator.worker, coordinator.is_ca), (None, false));
        let worker = facts_of(&own.worker().certificate).unwrap();
        assert_eq!((&worker.worker, worker.names.len()), (&Some(id.clone()), 0));
        assert!(worker.valid_at(world::now()) && days_left(worker.until) == Some(364));
        assert!(facts_of(&files.ca().certificate).unwrap().is_ca);
        assert_eq!(fs::read(own.ca().certificate).unwrap(), fs::read(files.ca().certificate).unwrap());
        assert_eq!((files.workers(), files.for_worker(&id)), (vec![id.clone()], own.clone()));
        assert_eq!(own.for_worker(&id), own, "a worker's own directory is one too");
        for key in [files.ca().key, files.coordinator().key, own.worker().key] {
            assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, KEY_MODE, "{key:?}");
        }
    }

    /// Red when `renew` forgets the names that a certificate has, or draws no new certificate.
    #[test]
    fn a_renewal_keeps_names_and_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let authority = Authority::make(&files).unwrap();
        let validity = Validity::lasting(DAY);
        authority.coordinator(&["a.example".into()], validity).unwrap();
        let id: WorkerId = "w".parse().unwrap();
        let own = authority.worker(&id, &["w.example".into()], validity).unwrap();
        let before = (fs::read(files.coordinator().key).unwrap(), fs::read(files.ca().certificate).unwrap());
        let renewed = Authority::open(&files).unwrap().renew(&["b.example".into()], lasting()).unwrap();
        assert_eq!(renewed, [files.coordinator(), own.worker()]);
        let facts = facts_of(&files.coordinator().certificate).unwrap();
        assert_eq!(facts.names[3..], ["a.example", "b.example"]);
        assert!(days_left(facts.until) > Some(300));
        assert_eq!(facts_of(&own.worker().certificate).unwrap().names, ["w.example"]);
        assert_ne!(before.0, fs::read(files.coordinator().key).unwrap());
        assert_eq!(before.1, fs::read(files.ca().certificate).unwrap());
        assert!(matches!(Authority::make(&files), Err(Error::CaExists { .. })));
    }

    /// Red without the comparison in `open`: certificates would come out that nobody accepts.
    #[test]
    fn another_ca_s_key_issues_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Files::new(dir.path().join("1")), Files::new(dir.path().join("2")));
        Authority::make(&one).unwrap();
        Authority::make(&two).unwrap();
        fs::copy(two.ca().key, one.ca().key).unwrap();
        assert!(matches!(Authority::open(&one), Err(Error::Bad { .. })));
        for wrong in ["", "a b", "-", "a/b"] {
            let refused = Authority::open(&two).unwrap().coordinator(&[wrong.into()], lasting());
            assert!(matches!(refused, Err(Error::Name(_))), "{wrong:?}");
        }
    }
}
