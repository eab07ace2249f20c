//! Changes as they are told, and what is not.

use std::{io, os::unix::ffi::OsStrExt};

use berth_proto::v1;
use nix::{errno::Errno, sys::inotify::InotifyEvent};

use crate::files::export;

/// A directory that is gone by now, or is none, or is closed to the user, or of another file system: as if it were a file.
pub fn is_closed(error: &io::Error) -> bool {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    matches!(
        errno,
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::EPERM | Errno::EXDEV
    )
}

/// Whether it is about the temporary file of an upload.
pub fn is_upload(event: &InotifyEvent) -> bool {
    event.name.as_ref().is_some_and(|name| export::is_upload(name.as_bytes()))
}

fn shown(path: &[u8]) -> (String, bytes::Bytes) {
    match std::str::from_utf8(path) {
        Ok(text) => (text.to_owned(), bytes::Bytes::new()),
        Err(_) => (String::from_utf8_lossy(path).into_owned(), path.to_vec().into()),
    }
}

/// A change on the wire.
pub fn change(
    kind: v1::ChangeKind,
    path: &[u8],
    new: Option<&[u8]>,
    directory: bool,
    entry: Option<v1::FileInfo>,
) -> v1::FileChange {
    let (path, path_bytes) = shown(path);
    let (new_path, new_path_bytes) = new.map(shown).unwrap_or_default();
    v1::FileChange { kind: kind.into(), path, path_bytes, new_path, new_path_bytes, directory, entry }
}
