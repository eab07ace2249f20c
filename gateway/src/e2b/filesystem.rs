//! `filesystem.Filesystem`: names, kinds and places of files. What is in them comes and goes over `/files`.

use std::time::SystemTime;

use berth_client::{
    Error, Files, Reason, Session,
    model::{FileInfo, FileType},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{paths, problem::Problem, text};

/// Entries of one listing.
const ENTRIES: usize = 20_000;

/// What the calls have in common: each uses some of it.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Message {
    path: String,
    source: String,
    destination: String,
    depth: u32,
}

/// The files of one sandbox, for one call.
pub struct Filesystem {
    files: Files,
}

impl Filesystem {
    pub fn new(session: &Session) -> Self {
        Self { files: session.files() }
    }

    pub async fn stat(&self, message: Message) -> Result<Value, Problem> {
        let path = paths::absolute(&message.path)?;
        self.entry(&path).await
    }

    async fn entry(&self, path: &str) -> Result<Value, Problem> {
        let (info, owner) = tokio::join!(self.files.stat(path), self.owner());
        Ok(json!({"entry": entry(path, &info?, owner)}))
    }

    pub async fn make_dir(&self, message: Message) -> Result<Value, Problem> {
        let path = paths::absolute(&message.path)?;
        let (parent, _) = paths::split(&path);
        self.files.mkdir_all(parent).await?;
        self.files.mkdir(&path).await?;
        self.entry(&path).await
    }

    pub async fn r#move(&self, message: Message) -> Result<Value, Problem> {
        let from = paths::absolute(&message.source)?;
        let to = paths::absolute(&message.destination)?;
        self.files.mkdir_all(paths::split(&to).0).await?;
        self.files.rename(&from, &to, true).await?;
        self.entry(&to).await
    }

    pub async fn list_dir(&self, message: Message) -> Result<Value, Problem> {
        let dir = paths::absolute(&message.path)?;
        let depth = message.depth.max(1);
        let (listed, owner) = tokio::join!(self.files.list_at_most(&dir, depth, ENTRIES), self.owner());
        let (entries, more) = listed?;
        if more {
            let text =
                format!("{dir} has more than {ENTRIES} entries (hint: list what is below it, or less deep)");
            return Err(Problem::too_large(text));
        }
        let within = |info: &FileInfo| format!("{}/{}", dir.trim_end_matches('/'), info.path);
        let entries: Vec<Value> = entries.iter().map(|info| entry(&within(info), info, owner)).collect();
        Ok(json!({ "entries": entries }))
    }

    /// What is not there is removed already.
    pub async fn remove(&self, message: Message) -> Result<Value, Problem> {
        let path = paths::absolute(&message.path)?;
        match self.files.remove_all(&path).await {
            Err(error) if !error.is(Reason::FileNotFound) => Err(error.into()),
            _ => Ok(json!({})),
        }
    }

    /// The user id of the sandbox's user: it differs between sandboxes.
    async fn owner(&self) -> Option<u32> {
        let home: Result<FileInfo, Error> = self.files.stat(paths::HOME).await;
        home.ok().map(|home| home.uid)
    }
}

/// A file as E2B's clients know it. `user`: the id of the sandbox's user.
fn entry(path: &str, info: &FileInfo, user: Option<u32>) -> Value {
    let kind = match info.kind {
        FileType::File => "FILE_TYPE_FILE",
        FileType::Directory => "FILE_TYPE_DIRECTORY",
        FileType::Symlink => "FILE_TYPE_SYMLINK",
        FileType::Other => "FILE_TYPE_UNSPECIFIED",
    };
    let name = |id: u32| match id {
        0 => "root".to_owned(),
        id if Some(id) == user => "user".to_owned(),
        65_534 => "nobody".to_owned(),
        id => id.to_string(),
    };
    let path = if path == "/" { path } else { path.trim_end_matches('/') };
    let mut entry = json!({
        "name": paths::split(path).1,
        "type": kind,
        "path": path,
        // 64 bits are text in the JSON of protocol buffers.
        "size": info.size.to_string(),
        "mode": info.mode & 0o7777,
        "permissions": permissions(info),
        "owner": name(info.uid),
        "group": name(info.gid),
        "modifiedTime": text::time(info.modified_at.unwrap_or(SystemTime::UNIX_EPOCH)),
    });
    if let Some(target) = &info.symlink_target {
        entry["symlinkTarget"] = json!(target);
    }
    entry
}

/// As `ls -l` shows them, but `L` for a link, as in Go.
fn permissions(info: &FileInfo) -> String {
    let kind = match info.kind {
        FileType::File => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'L',
        FileType::Other => '?',
    };
    let bit = |at: u32| if info.mode >> at & 1 == 1 { ['x', 'w', 'r'][at as usize % 3] } else { '-' };
    std::iter::once(kind).chain((0..9).rev().map(bit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: FileType, mode: u32) -> FileInfo {
        FileInfo {
            path: "x".to_owned(),
            kind,
            size: 1 << 40,
            mode,
            uid: 1000,
            gid: 0,
            modified_at: Some(SystemTime::UNIX_EPOCH),
            symlink_target: None,
            path_bytes: None,
        }
    }

    #[test]
    fn a_file_is_told_as_the_sdks_read_it() {
        let told = entry("/home/user/x", &info(FileType::File, 0o644), Some(1000));
        assert_eq!(
            told,
            json!({
                "name": "x", "type": "FILE_TYPE_FILE", "path": "/home/user/x", "size": "1099511627776", "mode": 420,
                "permissions": "-rw-r--r--", "owner": "user", "group": "root", "modifiedTime": "1970-01-01T00:00:00Z",
            })
        );
        assert_eq!(permissions(&info(FileType::Directory, 0o751)), "drwxr-x--x");
    }
}
