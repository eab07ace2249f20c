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

/// A line that matches a search, with those around it. Of each line as much as is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SearchMatch {
    /// Below the path that was searched; that path itself if it is a file.
    pub path: String,
    /// The whole path, set only when it is not UTF-8; `path` then has U+FFFD in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// Counted from 1.
    pub line: u64,
    pub text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

impl From<v1::SearchMatch> for SearchMatch {
    fn from(wire: v1::SearchMatch) -> Self {
        Self {
            path: wire.path,
            path_bytes: (!wire.path_bytes.is_empty()).then(|| wire.path_bytes.to_vec()),
            line: wire.line,
            text: wire.text,
            before: wire.before,
            after: wire.after,
        }
    }
}

/// Why a search may not have told all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchLimit {
    /// There are as many matches as were asked for.
    Matches,
    /// The time was over.
    Time,
}

/// How a search ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SearchEnd {
    pub files_searched: u64,
    /// No text, too large, or not to be read.
    pub files_skipped: u64,
    /// `None`: it went to its end.
    pub limit: Option<SearchLimit>,
}

impl TryFrom<v1::SearchEnd> for SearchEnd {
    type Error = Error;

    fn try_from(wire: v1::SearchEnd) -> Result<Self, Error> {
        let limit = match v1::SearchLimit::try_from(wire.limit) {
            Ok(v1::SearchLimit::Unspecified) => None,
            Ok(v1::SearchLimit::Matches) => Some(SearchLimit::Matches),
            Ok(v1::SearchLimit::Time) => Some(SearchLimit::Time),
            Err(_) => return Err(Error::strange("a search ended for a reason that is none")),
        };
        Ok(Self { files_searched: wire.files_searched, files_skipped: wire.files_skipped, limit })
    }
}

/// What an archive holds, or what of one was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Archived {
    pub files: u64,
    pub directories: u64,
    /// Symbolic and hard ones.
    pub links: u64,
    /// Of content.
    pub bytes: u64,
    /// What was left out: pipes, sockets, devices, and what may not be read; and files that became shorter meanwhile.
    pub skipped: u64,
    /// The first 100 of them.
    pub skipped_paths: Vec<String>,
}

impl From<v1::PackEnd> for Archived {
    fn from(wire: v1::PackEnd) -> Self {
        let v1::PackEnd { files, directories, links, bytes, skipped, skipped_paths } = wire;
        Self { files, directories, links, bytes, skipped, skipped_paths }
    }
}

impl From<v1::UnpackResponse> for Archived {
    fn from(wire: v1::UnpackResponse) -> Self {
        let v1::UnpackResponse { files, directories, links, bytes } = wire;
        Self { files, directories, links, bytes, ..Self::default() }
    }
}
