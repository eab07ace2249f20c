//! Reading all of a session's files in one go, for an archive. Runs on a file thread while the tasks stand still.
//!
//! Everything below a root is opened from the root's descriptor, never through a link, never into another mount.
//! What the user itself took its own rights from (a file of mode 0) is read all the same: the mode is changed for
//! that moment, and the archive holds the one that it had.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
};

use berth_proto::{
    Code, Error, Reason,
    transport::CHUNK,
    v1::{self, ArchiveKind, ArchiveRoot, archive_part::Part},
};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, ResolveFlag, readlinkat},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat},
};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};

use super::{file_error, path};
use crate::openat::{How, openat2};

/// Longer paths can't be opened in one call.
const PATH_MAX: usize = 4095;
/// Directories that stay open.
const OPEN_MAX: usize = 64;
/// The agent's own, of uploads under way.
const UPLOAD: (&[u8], &[u8]) = (b".berth-", b".tmp");

/// What bounds an export.
pub struct Bounds {
    pub bytes: u64,
    pub until: Instant,
    /// Whose timer tells when that is.
    pub runtime: Handle,
}

/// Where the parts go.
pub type Sink = mpsc::Sender<Result<v1::ArchivePart, tonic::Status>>;

/// Sends everything below the roots. How many entries were left out.
pub fn export(roots: &[(ArchiveRoot, PathBuf)], bounds: Bounds, sink: &Sink) -> Result<u64, Error> {
    let mut export = Export { sink, bounds, bytes: 0, skipped: 0 };
    for (root, path) in roots {
        export.root(*root, path)?;
    }
    Ok(export.skipped)
}

struct Export<'a> {
    sink: &'a Sink,
    bounds: Bounds,
    bytes: u64,
    skipped: u64,
}

struct Level {
    /// Relative to the root: empty, or with a slash at its end.
    path: Vec<u8>,
    dir: Option<OwnedFd>,
    /// The next is the last.
    names: Vec<OsString>,
    /// For as long as something in it is read.
    _rights: Option<Rights>,
}

/// What the owner took its own rights from, and has them again while this lives.
struct Rights {
    dir: OwnedFd,
    name: OsString,
    mode: u32,
}

impl Rights {
    fn take(dir: &OwnedFd, name: &OsStr, stat: &FileStat, rights: u32) -> nix::Result<Self> {
        let dir = dir.try_clone().map_err(|_| Errno::EMFILE)?;
        let taken = Self { dir, name: name.to_owned(), mode: stat.st_mode & 0o7777 };
        taken.set(taken.mode | rights)?;
        Ok(taken)
    }

    fn set(&self, mode: u32) -> nix::Result<()> {
        let follow = FchmodatFlags::FollowSymlink;
        fchmodat(&self.dir, &*self.name, Mode::from_bits_truncate(mode), follow)
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        let _ = self.set(self.mode);
    }
}

/// One of the roots, and the files in it that have several names.
struct Tree {
    root: ArchiveRoot,
    dir: OwnedFd,
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl Tree {
    fn open(&self, at: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
        let how = How::new(
            flags | OFlag::O_CLOEXEC,
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
        let at: &[u8] = if at.is_empty() { b"." } else { at };
        path::retried(|| openat2(&self.dir, OsStr::from_bytes(at), how))
    }

    fn entry(&self, path: &[u8], kind: ArchiveKind, stat: &FileStat) -> v1::ArchiveEntry {
        v1::ArchiveEntry {
            root: self.root.into(),
            path: path.to_vec().into(),
            kind: kind.into(),
            mode: stat.st_mode & 0o7777,
            mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            size: 0,
            target: Default::default(),
        }
    }
}

fn late() -> Error {
    let text = "the files could not all be read in the time for which the tasks may stand still";
    Error::new(Code::DeadlineExceeded, Reason::CheckpointFailed, text)
        .hint("pause the session first, or allow more time")
}

impl Export<'_> {
    /// Waits for the reader, but not beyond the time for which the tasks may stand still.
    fn send(&self, part: Part) -> Result<(), Error> {
        let send = self.sink.send(Ok(v1::ArchivePart { part: Some(part) }));
        // The timer is made inside, where there is a runtime.
        let sent =
            self.bounds.runtime.block_on(async { tokio::time::timeout_at(self.bounds.until, send).await });
        let Ok(sent) = sent else { return Err(late()) };
        sent.map_err(|_| Error::new(Code::Cancelled, Reason::Internal, "the reader of the archive went away"))
    }

    fn root(&mut self, root: ArchiveRoot, at: &Path) -> Result<(), Error> {
        let shown = at.to_string_lossy().into_owned();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let dir = path::open(at, flags).map_err(|error| file_error(&shown, error))?;
        let stat = fstat(&dir).map_err(|error| file_error(&shown, error))?;
        let mut tree = Tree { root, dir, names: HashMap::new() };
        self.send(Part::Entry(tree.entry(b"", ArchiveKind::Directory, &stat)))?;
        let mut levels: Vec<Level> = Vec::new();
        levels.extend(self.level(&tree, Vec::new(), &stat, None, 0));
        while let Some(mut level) = levels.pop() {
            let Some(name) = level.names.pop() else { continue };
            let deeper = self.visit(&mut tree, &level, &name, levels.len())?;
            levels.push(level);
            levels.extend(deeper);
        }
        Ok(())
    }

    /// Opens a directory and reads its names. `None`: it can't be, and was counted.
    fn level(
        &mut self,
        tree: &Tree,
        path: Vec<u8>,
        stat: &FileStat,
        parent: Option<(&OwnedFd, &OsStr)>,
        depth: usize,
    ) -> Option<Level> {
        let open = || tree.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let names = |dir: &OwnedFd| -> nix::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in Dir::from_fd(dir.try_clone().map_err(|_| Errno::EMFILE)?)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." && !is_upload(name) {
                    names.push(OsStr::from_bytes(name).to_owned());
                }
            }
            // The first is taken from the end.
            names.sort_unstable_by(|a, b| b.cmp(a));
            Ok(names)
        };
        let read = || {
            let dir = open()?;
            let names = names(&dir)?;
            Ok((dir, names))
        };
        match with_rights(parent, stat, 0o700, read) {
            Ok(((dir, names), rights)) => {
                Some(Level { path, dir: (depth < OPEN_MAX).then_some(dir), names, _rights: rights })
            }
            Err(_) => {
                self.skipped += 1;
                None
            }
        }
    }

    /// Sends one entry. A directory's own entries come next.
    fn visit(
        &mut self,
        tree: &mut Tree,
        level: &Level,
        name: &OsStr,
        depth: usize,
    ) -> Result<Option<Level>, Error> {
        // Also where each send finds room at once: what is on the disk may take long to open.
        if Instant::now() > self.bounds.until {
            return Err(late());
        }
        let full = [&level.path, name.as_bytes()].concat();
        let reopened;
        let dir = match &level.dir {
            Some(dir) => dir,
            None => match tree.open(&level.path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(dir) => {
                    reopened = dir;
                    &reopened
                }
                Err(_) => return Ok(self.skip()),
            },
        };
        let Ok(stat) = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return Ok(self.skip()) };
        if full.len() >= PATH_MAX {
            return Ok(self.skip());
        }
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => {
                let mut inside = full.clone();
                inside.push(b'/');
                let deeper = self.level(tree, inside, &stat, Some((dir, name)), depth + 1);
                if deeper.is_some() {
                    self.send(Part::Entry(tree.entry(&full, ArchiveKind::Directory, &stat)))?;
                }
                Ok(deeper)
            }
            SFlag::S_IFREG => self.file(tree, dir, name, &full, &stat).map(|()| None),
            SFlag::S_IFLNK => {
                let Ok(target) = readlinkat(dir, name) else { return Ok(self.skip()) };
                let entry = tree.entry(&full, ArchiveKind::Symlink, &stat);
                let target = target.as_bytes().to_vec().into();
                self.send(Part::Entry(v1::ArchiveEntry { target, ..entry }))?;
                Ok(None)
            }
            _ => Ok(self.skip()),
        }
    }

    fn skip(&mut self) -> Option<Level> {
        self.skipped += 1;
        None
    }

    fn file(
        &mut self,
        tree: &mut Tree,
        dir: &OwnedFd,
        name: &OsStr,
        full: &[u8],
        stat: &FileStat,
    ) -> Result<(), Error> {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(first) = tree.names.get(&identity) {
            let target = first.clone().into();
            let entry = tree.entry(full, ArchiveKind::HardLink, stat);
            return self.send(Part::Entry(v1::ArchiveEntry { target, ..entry }));
        }
        // O_NONBLOCK: should it be a pipe by now, nobody waits for it.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let open = || tree.open(full, flags);
        let opened = with_rights(Some((dir, name)), stat, 0o400, open).ok().map(|(fd, _)| File::from(fd));
        let same = |file: &File| fstat(file).is_ok_and(|now| (now.st_dev, now.st_ino) == identity);
        let Some(file) = opened.filter(same) else {
            self.skipped += 1;
            return Ok(());
        };
        let size = stat.st_size.max(0) as u64;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.bounds.bytes {
            let text = format!("the session's files have more than {} bytes", self.bounds.bytes);
            return Err(Error::exhausted(Reason::DiskFull, text)
                .hint("sparse files count with their full length: remove or shorten them"));
        }
        if stat.st_nlink > 1 {
            tree.names.insert(identity, full.to_vec());
        }
        let entry = tree.entry(full, ArchiveKind::File, stat);
        self.send(Part::Entry(v1::ArchiveEntry { size, ..entry }))?;
        self.content(&file, size, full)
    }

    fn content(&self, file: &File, size: u64, full: &[u8]) -> Result<(), Error> {
        let mut at = 0;
        while at < size {
            let mut data = vec![0; CHUNK.min((size - at) as usize)];
            let shown = String::from_utf8_lossy(full);
            let n = file.read_at(&mut data, at).map_err(|error| file_error(&shown, error))?;
            if n == 0 {
                let text = format!("{shown}: it became shorter while it was read");
                return Err(Error::new(Code::Aborted, Reason::CheckpointFailed, text).hint("try again"));
            }
            data.truncate(n);
            at += n as u64;
            self.send(Part::Data(data.into()))?;
        }
        Ok(())
    }
}

/// Whether a name is the agent's own, of an upload under way.
pub(super) fn is_upload(name: &[u8]) -> bool {
    name.starts_with(UPLOAD.0) && name.ends_with(UPLOAD.1)
}

/// Runs something that may be refused for want of the owner's own rights, and then again with them.
fn with_rights<T>(
    entry: Option<(&OwnedFd, &OsStr)>,
    stat: &FileStat,
    rights: u32,
    run: impl Fn() -> nix::Result<T>,
) -> nix::Result<(T, Option<Rights>)> {
    let first = run();
    let (Err(Errno::EACCES), Some((dir, name))) = (&first, entry) else { return Ok((first?, None)) };
    let rights = Rights::take(dir, name, stat, rights)?;
    Ok((run()?, Some(rights)))
}
