//! What of a conversation outlives this process: a file for each, read once when it is gone on with.
//!
//! A file is named by the hash of the conversation's id, and has the hash of its owner's token: who reads it learns nothing
//! that opens anything. Its time is when the conversation was last used.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use berth_client::SessionId;
use ring::digest;
use rmcp::model::InitializeRequestParams;
use serde::{Deserialize, Serialize};

/// Bytes of one. What a client says of itself has a few hundred; one that says more is not kept.
const LONGEST: u64 = 64 << 10;

/// What there is of a conversation.
#[derive(Clone, Serialize, Deserialize)]
pub struct Record {
    /// The hash of its token.
    pub owner: String,
    /// What the client said when it began.
    pub client: InitializeRequestParams,
    pub sessions: Vec<Made>,
}

/// A session that was made for a client.
#[derive(Clone, Serialize, Deserialize)]
pub struct Made {
    #[serde(with = "as_text")]
    pub id: SessionId,
    /// It ends with the client.
    pub ends: bool,
    /// Calls that name no session go to it.
    pub own: bool,
}

mod as_text {
    use super::SessionId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &SessionId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SessionId, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// What stands for an id or a token where these must not be.
pub fn hash(secret: &str) -> String {
    let digest = digest::digest(&digest::SHA256, secret.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory of the files.
pub struct Records(PathBuf);

impl Records {
    /// # Errors
    /// When there is no such directory, and none can be made.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self(dir)),
        }
    }

    /// Those that are there, by their key, with when they were last used. What is no record is removed.
    pub fn all(&self) -> Vec<(String, Record, SystemTime)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut all = Vec::new();
        for entry in entries {
            let key = entry.file_name().to_string_lossy().into_owned();
            let used = entry.metadata().and_then(|about| about.modified());
            match (self.read(&key), used) {
                (Some(record), Ok(used)) if key.len() == hash("").len() => all.push((key, record, used)),
                _ => self.remove(OsStr::new(&key)),
            }
        }
        all
    }

    pub fn read(&self, key: &str) -> Option<Record> {
        let path = self.0.join(key);
        let size = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        if size > LONGEST {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes one in one step.
    ///
    /// # Errors
    /// When it can't be written, or is too long to be kept. What was there before is there still.
    pub fn write(&self, key: &str, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        if bytes.len() as u64 > LONGEST {
            return Err(io::Error::other("what the client says of itself is too long"));
        }
        let fresh = self.0.join(format!("{key}.new"));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, self.0.join(key))?;
            synced(&self.0)
        };
        write().inspect_err(|_| drop(fs::remove_file(&fresh)))
    }

    /// It was used now.
    pub fn touch(&self, key: &str) {
        let now = SystemTime::now();
        let touched =
            File::options().write(true).open(self.0.join(key)).and_then(|file| file.set_modified(now));
        if let Err(error) = touched
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the time of a conversation can't be written");
        }
    }

    pub fn remove(&self, key: impl AsRef<Path>) {
        match fs::remove_file(self.0.join(key)).and_then(|()| synced(&self.0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a conversation that has ended can't be removed");
            }
            _ => {}
        }
    }
}

/// What was put into a directory, or removed, is so after a loss of power too.
fn synced(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
