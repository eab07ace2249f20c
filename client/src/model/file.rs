//! Files of a session, as they are told.

use std::time::SystemTime;

use berth_proto::v1;
use serde::Serialize;

use super::json;
use crate::Error;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    File,
    Directory,
    Symlink,
    /// A pipe, socket or device.
    Other,
}

/// A file, directory or link in a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileInfo {
    /// As it was asked for; in a listing, relative to the listed directory.
    pub path: String,
    #[serde(rename = "type")]
    pub kind: FileType,
    /// In bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    #[serde(serialize_with = "json::opt_time")]
    pub modified_at: Option<SystemTime>,
    /// Of a symbolic link.
    pub symlink_target: Option<String>,
    /// The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
}

impl FileInfo {
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub fn is_file(&self) -> bool {
        self.kind == FileType::File
    }
}

impl TryFrom<v1::FileInfo> for FileInfo {
    type Error = Error;

    fn try_from(wire: v1::FileInfo) -> Result<Self, Error> {
        let kind = match wire.r#type() {
            v1::FileType::File => FileType::File,
            v1::FileType::Directory => FileType::Directory,
            v1::FileType::Symlink => FileType::Symlink,
            v1::FileType::Other => FileType::Other,
            v1::FileType::Unspecified => return Err(Error::strange("a file without a type")),
        };
        Ok(Self {
            kind,
            path: wire.path,
            size: wire.size,
            mode: wire.mode,
            uid: wire.uid,
            gid: wire.gid,
            modified_at: super::time(wire.modified_at)?,
            symlink_target: super::non_empty(wire.symlink_target),
            path_bytes: (!wire.path_bytes.is_empty()).then(|| wire.path_bytes.to_vec()),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is there, made or moved in. Now and then this is told twice.
    Created,
    Written,
    Removed,
    Renamed,
    /// Its mode, owner or times have changed.
    Chmod,
}

/// Something has changed in a watched directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileChange {
    pub kind: ChangeKind,
    /// Relative to the watched directory; empty: that itself. When renamed, the old name.
    pub path: String,
    /// The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// When renamed, and still within what is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_path_bytes: Option<Vec<u8>>,
    pub directory: bool,
    /// What is there, if that was asked for and it still is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<FileInfo>,
}

impl TryFrom<v1::FileChange> for FileChange {
    type Error = Error;

    fn try_from(wire: v1::FileChange) -> Result<Self, Error> {
        let kind = match wire.kind() {
            v1::ChangeKind::Created => ChangeKind::Created,
            v1::ChangeKind::Written => ChangeKind::Written,
            v1::ChangeKind::Removed => ChangeKind::Removed,
            v1::ChangeKind::Renamed => ChangeKind::Renamed,
            v1::ChangeKind::Chmod => ChangeKind::Chmod,
            v1::ChangeKind::Unspecified => return Err(Error::strange("a change without a kind")),
        };
        let bytes = |bytes: bytes::Bytes| (!bytes.is_empty()).then(|| bytes.to_vec());
        Ok(Self {
            kind,
            path: wire.path,
            path_bytes: bytes(wire.path_bytes),
            new_path: super::non_empty(wire.new_path),
            new_path_bytes: bytes(wire.new_path_bytes),
            directory: wire.directory,
            entry: wire.entry.map(FileInfo::try_from).transpose()?,
        })
    }
}
