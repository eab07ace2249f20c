//! Where certificates and keys lie. One directory is all that a part of Berth is told (`BERTH_TLS_DIR`):
//!
//! ```text
//! ca.pem            the CA's certificate, the one thing that a client needs; it may hold several, for a change of CA
//! ca.key            its key: only for issuing
//! coordinator.pem   coordinator.key
//! workers/ID/       what the worker of that id gets as its own directory: ca.pem, worker.pem, worker.key
//! ```
//!
//! So on one machine the CA's directory serves all three; a worker elsewhere gets a copy of `workers/ID`, and a client
//! `ca.pem`.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use berth_proto::WorkerId;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::Error;

/// Of a private key's file.
pub const KEY_MODE: u32 = 0o600;

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    fn of(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) }
    }

    pub(crate) fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        Ok((certificates(&self.certificate)?, key(&self.key)?))
    }
}

/// A directory of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn ca(&self) -> Pair {
        Pair::of(&self.dir, "ca")
    }

    pub fn coordinator(&self) -> Pair {
        Pair::of(&self.dir, "coordinator")
    }

    /// Of a directory that is a worker's own.
    pub fn worker(&self) -> Pair {
        Pair::of(&self.dir, "worker")
    }

    /// The directory that this worker gets, in the CA's.
    pub fn worker_dir(&self, id: &WorkerId) -> Self {
        Self::new(self.dir.join("workers").join(id.as_str()))
    }

    /// What this worker uses if it is given this directory: its own, in the CA's, or this one.
    pub fn for_worker(&self, id: &WorkerId) -> Self {
        let own = self.worker_dir(id);
        if own.worker().certificate.exists() { own } else { self.clone() }
    }

    /// The ids of the workers that have one.
    pub fn workers(&self) -> Vec<WorkerId> {
        let entries = fs::read_dir(self.dir.join("workers")).into_iter().flatten().flatten();
        let mut ids: Vec<WorkerId> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        ids.sort();
        ids
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn bad(path: &Path, what: impl Into<String>) -> Error {
    Error::Bad { path: path.to_owned(), what: what.into() }
}

/// The certificates of a PEM file: at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(bad(path, "holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(bad(path, format!("is no PEM file: {error}"))),
    }
}

/// A private key that nobody else may read.
fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let mode = fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if mode.permissions().mode() & 0o077 != 0 {
        return Err(Error::OpenKey { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| bad(path, format!("holds no private key: {error}")))
}

/// The authorities in a CA's file.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| bad(path, format!("is no CA's certificate: {error}")))?;
    }
    Ok(roots)
}

/// By what a file's change is seen: which file it is, when it was written, how long it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(Vec<Option<(u64, Option<SystemTime>, u64)>>);

impl Stamp {
    pub fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let stamp = |meta: fs::Metadata| (meta.ino(), meta.modified().ok(), meta.len());
        Self(files.into_iter().map(|path| fs::metadata(path).ok().map(stamp)).collect())
    }
}

/// Writes a file in one step: whoever reads it meanwhile sees the old one or the new one.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    use io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed)
}
