//! A directory as a tar archive, piece by piece: each is a job of its own on a file thread, made when the reader wants
//! more. Nothing is held but the names that [`Walk`] holds, and which files have several.
//!
//! Tasks run on meanwhile: each file is as it was when it was read, and not all of one moment. A checkpoint is.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

use berth_files::{
    search::Exclude,
    tar::{self, Entry, Kind},
};
use berth_proto::{
    Error, Reason,
    transport::CHUNK,
    v1::{self, FileType},
};
use nix::{
    fcntl::OFlag,
    sys::stat::{FileStat, fstat},
};
use tokio::time::Instant;

use super::{
    Gone,
    export::is_upload,
    file_error, path,
    read::{self, must_be_file},
    search::{DEPTH, NAMES, STEP, below, opened},
    walk::Walk,
};

/// Bytes of content in one archive.
const BYTES_MAX: u64 = 64 << 30;
/// Files with several names that are remembered, and bytes of their paths. More are in the archive once for each name.
const SEVERAL: usize = 50_000;
const SEVERAL_BYTES: usize = 8 << 20;
/// Of what was left out, so many are named.
const NAMED: usize = 100;
/// Bytes of such a name.
const NAME: usize = 200;

/// An archive under way.
pub struct Packing {
    prefix: Vec<u8>,
    most: u64,
    walk: Option<Walk>,
    exclude: Exclude,
    several: HashMap<(u64, u64), Vec<u8>>,
    several_bytes: usize,
    file: Option<Open>,
    end: v1::PackEnd,
    over: bool,
    /// Headers that wait.
    out: Vec<u8>,
}

struct Open {
    file: File,
    at: u64,
    size: u64,
    shown: Vec<u8>,
}

/// Begins. On a file thread.
///
/// # Errors
/// For a request that is not to be served, and a path that can't be opened.
pub fn begin(absolute: &Path, shown: &str, wire: &v1::PackRequest) -> Result<Packing, Error> {
    let exclude = Exclude::new(&wire.exclude)?;
    let prefix = prefix(&wire.prefix)?;
    let failed = |error| file_error(shown, error);
    let (_, stat) = path::look(absolute, true).map_err(failed)?;
    let most = if wire.max_bytes == 0 { BYTES_MAX } else { wire.max_bytes.min(BYTES_MAX) };
    let mut packing = Packing {
        prefix,
        most,
        walk: None,
        exclude,
        several: HashMap::new(),
        several_bytes: 0,
        file: None,
        end: v1::PackEnd::default(),
        over: false,
        out: Vec::new(),
    };
    if path::kind(&stat) == FileType::Directory {
        let root = path::open(absolute, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        packing.walk = Some(below(root, packing.exclude.clone()).map_err(failed)?);
        if !packing.prefix.is_empty() {
            packing.head(Vec::new(), Kind::Directory, &stat, 0, Vec::new());
        }
    } else {
        must_be_file(shown, &stat)?;
        let (file, stat) = read::open(absolute, shown, false)?;
        let (_, name) = path::split(absolute).map_err(failed)?;
        let name = if packing.prefix.is_empty() { name.as_bytes().to_vec() } else { Vec::new() };
        packing.begin_file(File::from(file), name, &stat)?;
    }
    Ok(packing)
}

/// Plain names with a slash between them.
fn prefix(given: &str) -> Result<Vec<u8>, Error> {
    let given = given.trim_end_matches('/');
    let strange = |name: &str| name.is_empty() || matches!(name, "." | "..") || name.contains('\0');
    if !given.is_empty() && (given.len() > 1024 || given.split('/').any(strange)) {
        return Err(Error::invalid("prefix", "is no relative path of plain names")
            .hint("write for example `results`, or leave it out"));
    }
    Ok(given.as_bytes().to_vec())
}

impl Packing {
    /// The next bytes; none at all: call again. With the end, it is over.
    pub fn step(&mut self, gone: &Gone) -> Result<(Vec<u8>, Option<v1::PackEnd>), Error> {
        let stop_at = Instant::now() + STEP;
        while self.out.len() < CHUNK && Instant::now() < stop_at {
            gone.check()?;
            if self.over {
                let closed = self.walk.as_ref().map_or(0, |walk| walk.closed);
                let end = v1::PackEnd { skipped: self.end.skipped + closed, ..std::mem::take(&mut self.end) };
                return Ok((std::mem::take(&mut self.out), Some(end)));
            }
            if self.file.is_some() {
                self.content()?;
            } else if !self.next()? {
                self.out.extend_from_slice(&tar::END);
                self.over = true;
            }
        }
        // Whatever a header and a piece of content are together.
        let rest = self.out.split_off(self.out.len().min(CHUNK));
        Ok((std::mem::replace(&mut self.out, rest), None))
    }

    /// The next entry, or something passed over. False: there is nothing more.
    fn next(&mut self) -> Result<bool, Error> {
        let Some(walk) = &mut self.walk else { return Ok(false) };
        let failed = |error| file_error("the directory", error);
        let Some(key) = walk.next(NAMES).map_err(failed)? else { return Ok(false) };
        let Ok(Some((at, stat))) = walk.look(&key) else { return Ok(true) };
        if is_upload(&key) || self.exclude.fits(&at) {
            return Ok(true);
        }
        // As long as a path may be that anybody unpacks.
        if at.len() + self.prefix.len() > 4000 || at.iter().filter(|byte| **byte == b'/').count() >= DEPTH - 1
        {
            self.skip(&at);
            return Ok(true);
        }
        match path::kind(&stat) {
            FileType::Directory => self.head(at, Kind::Directory, &stat, 0, Vec::new()),
            FileType::Symlink => match walk.link(&key) {
                Some(target) => self.head(at, Kind::Symlink, &stat, 0, target.as_bytes().to_vec()),
                None => self.skip(&at),
            },
            FileType::File => {
                if let Some(first) = self.several.get(&(stat.st_dev, stat.st_ino)) {
                    let first = first.clone();
                    self.head(at, Kind::HardLink, &stat, 0, first);
                } else if let Some(file) = opened(walk, &key, &stat) {
                    self.begin_file(file, at, &stat)?;
                } else {
                    self.skip(&at);
                }
            }
            _ => self.skip(&at),
        }
        Ok(true)
    }

    fn begin_file(&mut self, file: File, at: Vec<u8>, stat: &FileStat) -> Result<(), Error> {
        // What is read is what the header says.
        let size = fstat(&file).map_or(stat.st_size, |now| now.st_size).max(0) as u64;
        if self.end.bytes.saturating_add(size) > self.most {
            let text = format!("{}: with it there are more than {} bytes", named(&at), self.most);
            return Err(Error::exhausted(Reason::DiskFull, text)
                .hint("leave it out with `exclude`; a sparse file counts with its full length"));
        }
        if stat.st_nlink > 1 && self.several.len() < SEVERAL {
            let full = self.full(&at);
            if self.several_bytes + full.len() <= SEVERAL_BYTES {
                self.several_bytes += full.len();
                self.several.insert((stat.st_dev, stat.st_ino), full);
            }
        }
        self.head(at.clone(), Kind::File, stat, size, Vec::new());
        self.file = (size > 0).then_some(Open { file, at: 0, size, shown: at });
        Ok(())
    }

    fn full(&self, at: &[u8]) -> Vec<u8> {
        let parts: Vec<&[u8]> = [&self.prefix[..], at].into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(&b'/')
    }

    fn head(&mut self, at: Vec<u8>, kind: Kind, stat: &FileStat, size: u64, target: Vec<u8>) {
        let entry = Entry {
            path: self.full(&at),
            kind,
            mode: stat.st_mode & 0o777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec.clamp(0, 999_999_999) as u32),
            size,
            target,
        };
        self.out.extend(tar::header(&entry));
        match kind {
            Kind::File => self.end.files += 1,
            Kind::Directory => self.end.directories += 1,
            Kind::Symlink | Kind::HardLink => self.end.links += 1,
        }
    }

    /// More of the file that it is in.
    fn content(&mut self) -> Result<(), Error> {
        let Some(open) = &mut self.file else { return Ok(()) };
        let wanted = (open.size - open.at).min(CHUNK as u64) as usize;
        let begin = self.out.len();
        self.out.resize(begin + wanted, 0);
        let read = open.file.read_at(&mut self.out[begin..], open.at);
        let read = read.map_err(|error| file_error(&named(&open.shown), error))?;
        self.end.bytes += read as u64;
        open.at += read as u64;
        if read > 0 {
            self.out.truncate(begin + read);
        } else {
            // It became shorter. Its header is sent: what it lacks is zeros, and told.
            open.at += wanted as u64;
        }
        let shorter = read == 0;
        if open.at == open.size {
            self.out.resize(self.out.len() + tar::padding(open.size), 0);
            let open = self.file.take();
            if let Some(open) = open.filter(|_| shorter) {
                self.skip(&open.shown);
            }
        }
        Ok(())
    }

    fn skip(&mut self, at: &[u8]) {
        self.end.skipped += 1;
        if self.end.skipped_paths.len() < NAMED {
            self.end.skipped_paths.push(named(at));
        }
    }
}

fn named(at: &[u8]) -> String {
    OsStr::from_bytes(at).to_string_lossy().chars().take(NAME).collect()
}
