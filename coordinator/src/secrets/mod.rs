//! Secrets that tasks are given by name: a file for each, `<state>/secrets/<tenant>/<name>`, of mode 0600, which holds the
//! value and nothing else. So an operator, or a program of his that renews them, may as well write the file itself. Beside
//! it `<name>.expires` holds the time after which the value is not given any more, if there is one.
//!
//! A file is read each time that a task is given its secret, so a new value reaches the next task. What can't be had is said
//! by name and why, and nothing is started. The values are nowhere else: not in the store, in no log, in no backup.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use berth_proto::{
    Error, Reason,
    convert::time_out,
    secret::{self, TOTAL_MAX, VALUE_MAX},
    v1::{SecretValue, secret_value::Is},
    world,
};
use bytes::Bytes;
use prost_types::Timestamp;
use tokio::sync::Mutex;

use crate::tenant::Tenant;

/// Of one tenant.
const SECRETS_MAX: usize = 1000;
/// Name of the directory in the state directory.
const DIR: &str = "secrets";
/// Bytes of a time, with some room.
const TIME_MAX: usize = 64;
/// No secret's name has a dot.
const EXPIRES: &str = ".expires";

/// A secret, all but its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    pub tenant: Tenant,
    pub name: String,
    pub bytes: u64,
    pub updated_at: Option<SystemTime>,
    pub expires_at: Option<SystemTime>,
    /// Why tasks can't be given it.
    pub unusable: Option<String>,
}

/// The store of them.
pub struct Secrets {
    dir: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Secrets {
    pub fn new(state_dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: state_dir.join(DIR), changing: Mutex::default() })
    }

    /// What these names stand for now: each its value, or why there is none.
    pub async fn values(&self, tenant: &Tenant, names: BTreeSet<String>) -> Vec<SecretValue> {
        let (dir, now) = (self.of(tenant), world::now());
        let read = move || {
            let mut total = 0;
            let value = |name: String| {
                let is = read(&dir, &name, now).map_or_else(Is::Unusable, |value| {
                    total += value.len();
                    // More can't be given, so it is not held either.
                    if total > TOTAL_MAX { Is::Unusable(secret::too_much()) } else { Is::Value(value) }
                });
                SecretValue { name, is: Some(is) }
            };
            names.into_iter().map(value).collect()
        };
        // Broken off: none came, and the agent says of each that it can't be had.
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// Makes a secret, or gives it a new value.
    pub async fn set(
        &self,
        tenant: Tenant,
        name: String,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<Secret, Error> {
        let (dir, now) = (self.of(&tenant), world::now());
        let expires = ttl.map(|ttl| now.checked_add(ttl).unwrap_or(now));
        self.change(move || {
            let known = names(&dir).map_err(failed)?;
            if known.len() >= SECRETS_MAX && !known.contains(&name) {
                return Err(Error::exhausted(
                    Reason::TooManySecrets,
                    format!("the tenant {tenant} has {SECRETS_MAX} secrets"),
                ));
            }
            write(&dir, &name, &value, expires).map_err(failed)?;
            Ok(shown(&tenant, &dir, name, now))
        })
        .await
    }

    /// Those of a tenant, or of all, by tenant and name.
    pub async fn list(&self, tenant: Option<Tenant>) -> Result<Vec<Secret>, Error> {
        let (root, now) = (self.dir.clone(), world::now());
        blocking(move || {
            let tenants = match tenant {
                Some(tenant) => BTreeSet::from([tenant]),
                None => entries(&root).map_err(failed)?,
            };
            let mut all = Vec::new();
            for tenant in tenants {
                let dir = root.join(tenant.as_str());
                let names = names(&dir).map_err(failed)?;
                all.extend(names.into_iter().map(|name| shown(&tenant, &dir, name, now)));
            }
            Ok(all)
        })
        .await
    }

    /// Removes a secret.
    pub async fn remove(&self, tenant: Tenant, name: String) -> Result<(), Error> {
        let dir = self.of(&tenant);
        self.change(move || {
            match fs::remove_file(dir.join(&name)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let text = format!("the tenant {tenant} has no secret {name}");
                    return Err(Error::not_found(Reason::SecretNotFound, text));
                }
                Err(error) => return Err(failed(error)),
            }
            gone(fs::remove_file(expiry(&dir, &name))).and_then(|()| sync(&dir)).map_err(failed)
        })
        .await
    }

    fn of(&self, tenant: &Tenant) -> PathBuf {
        self.dir.join(tenant.as_str())
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _alone = self.changing.lock().await;
        blocking(work).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::internal("the secrets could not be reached").cause(error)))
}

fn failed(error: io::Error) -> Error {
    let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let error = match full {
        true => Error::exhausted(Reason::DiskFull, "no room for the secret").cause(error),
        false => Error::unavailable(Reason::StoreFailed, "the secrets can't be reached").cause(error),
    };
    error.hint("look at the disk under the coordinator's state directory, and at who owns <state>/secrets")
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn expiry(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}{EXPIRES}"))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What in a directory has a name of this kind.
fn entries<T: FromStr + Ord>(dir: &Path) -> io::Result<BTreeSet<T>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut all = BTreeSet::new();
    for entry in entries {
        all.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(all)
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = entries(dir)?;
    names.retain(|name| secret::name("name", name.clone()).is_ok());
    Ok(names)
}

/// Whatever breaks it off, no value is left with a later expiry than its own. Without a new expiry the value comes first: in
/// between it has the old one, and at worst is refused. With one, both are on the disk before the old value goes, and in
/// between there is none.
fn write(dir: &Path, name: &str, value: &[u8], expires: Option<SystemTime>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let (path, expiry) = (dir.join(name), expiry(dir, name));
    let new = New::write(dir.join(".new"), value)?;
    match expires {
        Some(at) => {
            let until = New::write(dir.join(".new.expires"), time_out(at).to_string().as_bytes())?;
            gone(fs::remove_file(&path))?;
            until.becomes(&expiry)?;
            new.becomes(&path)?;
        }
        None => {
            new.becomes(&path)?;
            gone(fs::remove_file(expiry))?;
        }
    }
    sync(dir)
}

/// A file that is whole on the disk before it has its name, and is gone if it never gets it.
struct New(PathBuf);

impl New {
    fn write(path: PathBuf, content: &[u8]) -> io::Result<Self> {
        gone(fs::remove_file(&path))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let new = Self(path);
        file.write_all(content).and_then(|()| file.sync_all()).map(|()| new)
    }

    fn becomes(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // Not there any more where it got its name.
        let _ = fs::remove_file(&self.0);
    }
}

fn shown(tenant: &Tenant, dir: &Path, name: String, now: SystemTime) -> Secret {
    let meta = fs::symlink_metadata(dir.join(&name)).ok();
    Secret {
        tenant: tenant.clone(),
        bytes: meta.as_ref().map_or(0, fs::Metadata::len),
        updated_at: meta.and_then(|meta| meta.modified().ok()),
        expires_at: expires_at(dir, &name).ok().flatten(),
        unusable: read(dir, &name, now).err(),
        name,
    }
}

/// A secret's value, or why it can't be had, for whoever asked for it: no paths in it.
fn read(dir: &Path, name: &str, now: SystemTime) -> Result<Bytes, String> {
    let at = expires_at(dir, name)?;
    if at.is_some_and(|at| at <= now) {
        return Err("it has expired".to_owned());
    }
    match contents(&dir.join(name), VALUE_MAX)? {
        None => Err("there is none".to_owned()),
        Some(value) if value.is_empty() => Err("it is empty".to_owned()),
        Some(value) => Ok(value.into()),
    }
}

/// What is in a file of ours, of at most so many bytes. `None`: it is not there.
fn contents(path: &Path, most: usize) -> Result<Option<Vec<u8>>, String> {
    let unreadable = |error: io::Error| format!("it can't be read: {}", error.kind());
    // No link, and no waiting for a pipe's other end.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err("it can't be read: it is no file".to_owned());
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(format!("its file is another user's (uid {})", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("others may use its file (mode {:04o}, not 0600)", meta.mode() & 0o7777));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > most {
        return Err(format!("it is larger than {most} bytes"));
    }
    Ok(Some(bytes))
}

/// An expiry that is there and says nothing is taken for one that has passed.
fn expires_at(dir: &Path, name: &str) -> Result<Option<SystemTime>, String> {
    let about = |why: String| format!("when it expires: {why}");
    let Some(bytes) = contents(&expiry(dir, name), TIME_MAX).map_err(about)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let at = Timestamp::from_str(text).ok().and_then(|at| SystemTime::try_from(at).ok());
    at.map(Some).ok_or_else(|| about("it is no RFC 3339 time".to_owned()))
}

#[cfg(test)]
mod tests;
