//! What is in a tar archive, into a directory of the session, as it comes. Runs on file threads, as the task's user.
//!
//! The archive is not trusted. [`tar::Reader`] lets no name through that is absolute or has `..`; here each entry is made
//! below the directory through no link, neither one that was there nor one of the archive, and into no other mount. A file
//! is written beside its place and put there when it is whole. So whatever ends it, what is there is either as it was or
//! as the archive has it, and how far it came is said.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::Arc,
};

use berth_files::tar::{self, Bad, Entry, Event, Kind};
use berth_proto::{Error, v1};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, ResolveFlag},
    sys::{
        stat::{UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use super::{Files, Gone, file_error, path, path::Place, tree, walk::BELOW, write::Temporary};
use crate::openat::{How, openat2};

/// Entries of one archive.
const ENTRIES: u64 = 1_000_000;
/// Bytes of new directories' names: they are held, since a directory's mode and time can only be set when all is in it.
const HELD: usize = 16 << 20;
/// A directory that is in no entry of its own.
const NEW_DIR: u32 = 0o755;

/// An archive on its way in.
pub struct Unpacking {
    files: Arc<Files>,
    root: Arc<OwnedFd>,
    shown: String,
    reader: tar::Reader,
    /// New ones, each before what is in it.
    directories: Vec<Entry>,
    held: usize,
    file: Option<Writing>,
    entries: u64,
    done: v1::UnpackResponse,
}

struct Writing {
    file: File,
    temporary: Temporary,
    entry: Entry,
    left: u64,
}

/// Begins. On a file thread.
pub fn begin(files: Arc<Files>, absolute: PathBuf, shown: String, parents: bool) -> Result<Unpacking, Error> {
    if parents {
        tree::make_parents(&absolute, &shown)?;
    }
    let failed = |error| file_error(&shown, error);
    let root = path::open(&absolute, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
    path::refuse_proc(&root).map_err(failed)?;
    Ok(Unpacking {
        files,
        root: Arc::new(root),
        shown,
        reader: tar::Reader::default(),
        directories: Vec::new(),
        held: 0,
        file: None,
        entries: 0,
        done: v1::UnpackResponse::default(),
    })
}

impl Unpacking {
    /// Takes the next bytes of the archive.
    pub fn take(&mut self, mut data: &[u8], gone: &Gone) -> Result<(), Error> {
        let result = loop {
            if let Err(error) = gone.check() {
                break Err(error);
            }
            let step = match self.reader.next(&mut data) {
                Err(bad) => Err(self.bad(&bad)),
                Ok(None) => break Ok(()),
                Ok(Some(Event::Entry(entry))) => self.entry(entry),
                Ok(Some(Event::Data(data))) => self.data(data),
            };
            if let Err(error) = step {
                break Err(error);
            }
        };
        result.map_err(|error| self.failed(error))
    }

    /// The archive is complete.
    pub fn finish(&mut self) -> Result<v1::UnpackResponse, Error> {
        if let Err(bad) = self.reader.finish() {
            let error = self.bad(&bad);
            return Err(self.failed(error));
        }
        match self.set_directories() {
            Ok(()) => Ok(self.done),
            Err(error) => Err(self.told(error)),
        }
    }

    /// Not to be gone on with. What was made stays, and is as the archive has it.
    pub fn failed(&mut self, error: Error) -> Error {
        self.file = None;
        let _ = self.set_directories();
        self.told(error)
    }

    /// With how far it came.
    fn told(&self, error: Error) -> Error {
        let v1::UnpackResponse { files, directories, links, bytes } = self.done;
        let before = format!(
            "what came before it is there: {files} files, {directories} directories, {links} links, {bytes} bytes"
        );
        let hint = match error.hint_text() {
            Some(hint) => format!("{hint}; {before}"),
            None => before,
        };
        error
            .hint(hint)
            .with("files", files)
            .with("directories", directories)
            .with("links", links)
            .with("bytes", bytes)
    }

    fn bad(&self, bad: &Bad) -> Error {
        let error = Error::invalid("archive", bad);
        match bad {
            Bad::Packed(with) => error.hint(format!("send it uncompressed: undo {with} first")),
            Bad::NoTar => error.hint("send a tar archive (POSIX or GNU)"),
            Bad::Cut => error.hint("send all of it"),
            Bad::Entry(..) => error.hint("leave that entry out"),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > ENTRIES {
            return Err(Error::invalid("archive", format!("has more than {ENTRIES} entries"))
                .hint("send it in parts"));
        }
        if entry.path.is_empty() {
            // The directory that all goes into has its mode from whoever made it.
            return Ok(());
        }
        let shown = self.named(&entry);
        if entry.kind == Kind::Directory {
            self.held += entry.path.len() + size_of::<Entry>();
            if self.held > HELD {
                return Err(Error::invalid("archive", "has more directories than are taken at once")
                    .hint("send it in parts"));
            }
        }
        let failed = |error: io::Error| file_error(&shown, error);
        match entry.kind {
            Kind::Directory => self.directory(entry).map_err(failed),
            Kind::File => self.begin_file(entry).map_err(failed),
            Kind::Symlink | Kind::HardLink => self.link(&entry).map_err(failed),
        }
    }

    fn named(&self, entry: &Entry) -> String {
        let path: String = String::from_utf8_lossy(&entry.path).chars().take(200).collect();
        format!("{}/{path}", self.shown.trim_end_matches('/'))
    }

    /// Opens what is below the directory.
    fn below(&self, at: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let resolve = if weakened!("trusted-archive") {
            ResolveFlag::RESOLVE_NO_MAGICLINKS
        } else {
            BELOW | ResolveFlag::RESOLVE_NO_XDEV
        };
        let at: &[u8] = if at.is_empty() { b"." } else { at };
        let how = How::new(flags | OFlag::O_CLOEXEC, resolve);
        path::retried(|| openat2(&*self.root, OsStr::from_bytes(at), how))
    }

    /// The directory that something goes into, made if it is not there, and its name.
    fn place(&self, path: &[u8]) -> io::Result<Place> {
        let (dir, name) = split(path);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let opened = match self.below(dir, flags) {
            Err(Errno::ENOENT) => {
                let ends = dir.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
                for end in ends.chain([dir.len()]) {
                    let (above, name) = split(&dir[..end]);
                    let above = self.below(above, flags)?;
                    match mkdirat(&above, OsStr::from_bytes(name), path::bits(NEW_DIR)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                self.below(dir, flags)?
            }
            other => other?,
        };
        Ok(Place { dir: opened, name: OsStr::from_bytes(name).to_owned() })
    }

    fn directory(&mut self, entry: Entry) -> io::Result<()> {
        let place = self.place(&entry.path)?;
        match mkdirat(&place.dir, &*place.name, path::bits(entry.mode | 0o700)) {
            Ok(()) => self.directories.push(entry),
            Err(Errno::EEXIST) => drop(self.below(&entry.path, OFlag::O_PATH | OFlag::O_DIRECTORY)?),
            Err(errno) => return Err(errno.into()),
        }
        self.done.directories += 1;
        Ok(())
    }

    fn begin_file(&mut self, entry: Entry) -> io::Result<()> {
        if entry.size > self.files.largest() {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let (temporary, file) = Temporary::create(self.files.clone(), self.place(&entry.path)?)?;
        let left = entry.size;
        self.file = Some(Writing { file, temporary, entry, left });
        if left == 0 { self.end_file() } else { Ok(()) }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Error> {
        let Some(writing) = &mut self.file else { return Ok(()) };
        writing.left -= data.len() as u64;
        // Holes stay holes.
        let result = if data.iter().all(|byte| *byte == 0) {
            writing.file.seek(SeekFrom::Current(data.len() as i64)).map(drop)
        } else {
            writing.file.write_all(data)
        };
        let over = writing.left == 0;
        let shown = |writing: &Writing| self.named(&writing.entry);
        match result {
            Err(error) => Err(file_error(&self.file.as_ref().map(shown).unwrap_or_default(), error)),
            Ok(()) if over => {
                let shown = self.file.as_ref().map(shown).unwrap_or_default();
                self.end_file().map_err(|error| file_error(&shown, error))
            }
            Ok(()) => Ok(()),
        }
    }

    fn end_file(&mut self) -> io::Result<()> {
        let Some(Writing { file, temporary, entry, .. }) = self.file.take() else { return Ok(()) };
        file.set_len(entry.size)?;
        fchmod(&file, path::bits(entry.mode))?;
        let time = time_of(&entry);
        futimens(&file, &time, &time)?;
        temporary.put()?;
        self.done.files += 1;
        self.done.bytes += entry.size;
        Ok(())
    }

    fn link(&mut self, entry: &Entry) -> io::Result<()> {
        let temporary = Temporary::new(self.files.clone(), self.place(&entry.path)?);
        let (dir, name) = temporary.at();
        if entry.kind == Kind::Symlink {
            symlinkat(OsStr::from_bytes(&entry.target), dir, name)?;
            let time = time_of(entry);
            utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        } else {
            let (from, first) = split(&entry.target);
            let from = self.below(from, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            linkat(&from, OsStr::from_bytes(first), dir, name, AtFlags::empty())?;
        }
        temporary.put()?;
        // Where both are names of one file already, a rename leaves both.
        let _ = unlinkat(dir, name, UnlinkatFlags::NoRemoveDir);
        self.done.links += 1;
        Ok(())
    }

    /// Modes and times of new directories, the innermost first: one that may not be entered any more comes after what is
    /// in it.
    fn set_directories(&mut self) -> Result<(), Error> {
        for entry in std::mem::take(&mut self.directories).iter().rev() {
            let set = || -> io::Result<()> {
                let dir = self.below(&entry.path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                let time = time_of(entry);
                futimens(&dir, &time, &time)?;
                Ok(fchmod(&dir, path::bits(entry.mode))?)
            };
            set().map_err(|error| file_error(&self.named(entry), error))?;
        }
        Ok(())
    }
}

/// The directory that a path is in, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let cut = path.iter().rposition(|byte| *byte == b'/');
    cut.map_or((b"", path), |cut| (&path[..cut], &path[cut + 1..]))
}

fn time_of(entry: &Entry) -> TimeSpec {
    TimeSpec::new(entry.mtime.0, entry.mtime.1.into())
}
