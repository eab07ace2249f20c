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
