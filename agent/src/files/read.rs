//! Reading a file: it is looked at before it is opened, so that a FIFO or a device is
//! refused and never waited for, and each chunk is a job of its own, so that a slow
//! reader holds no thread.

use std::{
    ffi::OsStr,
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_proto::{Error, Reason, transport::CHUNK, v1};
use bytes::Bytes;
use nix::{
    fcntl::OFlag,
    sys::stat::{FileStat, fstat},
};

use super::{Files, file_error, path};

/// A file that is being read.
pub struct Reading {
    file: Arc<File>,
    shown: String,
    at: u64,
    /// Bytes still wanted.
    left: u64,
}

/// Refuses what is no regular file.
pub fn must_be_file(shown: &str, stat: &FileStat) -> Result<(), Error> {
    let what = match path::kind(stat) {
        v1::FileType::File => return Ok(()),
        v1::FileType::Directory => "is a directory",
        v1::FileType::Symlink => "is a symbolic link",
        _ => "is a pipe, socket or device",
    };
    Err(Error::precondition(Reason::FileKind, format!("{shown}: {what}")))
}

/// Opens a regular file for reading, and waits for nothing.
pub(super) fn open(absolute: &Path, shown: &str, no_links: bool) -> Result<(OwnedFd, FileStat), Error> {
    let failed = |error| file_error(shown, error);
    if weakened!("blocking-open") {
        path::open(absolute, OFlag::O_RDONLY).map_err(failed)?;
    }
    let (seen, stat) = path::look(absolute, !no_links).map_err(failed)?;
    must_be_file(shown, &stat)?;
    path::refuse_proc(&seen).map_err(failed)?;
    // It may be another by now: O_NONBLOCK keeps the open from waiting all the same.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file = path::open_strictly(absolute, flags, no_links).map_err(failed)?;
    path::refuse_proc(&file).map_err(failed)?;
    let stat = fstat(&file).map_err(|e| failed(e.into()))?;
    must_be_file(shown, &stat)?;
    Ok((file, stat))
}

fn read_chunk(file: &File, at: u64, left: u64) -> std::io::Result<Bytes> {
    let mut data = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
    let n = file.read_at(&mut data, at)?;
    data.truncate(n);
    Ok(data.into())
}

/// What is read of a file.
#[derive(Clone, Copy)]
pub struct Part {
    pub offset: u64,
    /// Zero: to the end.
    pub length: u64,
    /// The file's path may lead through no link.
    pub no_links: bool,
}

/// Opens a file and reads its first chunk.
pub async fn begin(
    files: &Files,
    absolute: PathBuf,
    shown: String,
    part: Part,
) -> Result<(v1::FileInfo, Bytes, Reading), Error> {
    let Part { offset, length, no_links } = part;
    let left = if length == 0 { u64::MAX } else { length };
    files
        .run(move |_| {
            let (file, stat) = open(&absolute, &shown, no_links)?;
            let file = File::from(file);
            let first = read_chunk(&file, offset, left).map_err(|error| file_error(&shown, error))?;
            let info = path::info(OsStr::new(&shown), &stat, None);
            let taken = first.len() as u64;
            let reading = Reading { file: Arc::new(file), shown, at: offset + taken, left: left - taken };
            Ok((info, first, reading))
        })
        .await
}

impl Reading {
    /// The next chunk; empty at the end.
    pub async fn next(&mut self, files: &Files) -> Result<Bytes, Error> {
        if self.left == 0 {
            return Ok(Bytes::new());
        }
        let (file, at, left) = (self.file.clone(), self.at, self.left);
        let result = files.run(move |_| Ok(read_chunk(&file, at, left))).await?;
        let data = result.map_err(|error| file_error(&self.shown, error))?;
        self.at += data.len() as u64;
        self.left -= data.len() as u64;
        Ok(data)
    }
}
