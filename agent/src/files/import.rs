//! Making a session's files from an archive, before anything runs in it. Runs on a file thread, as the task's user.
//!
//! The archive is not trusted: each entry is checked, each is made below its root without following any link, and
//! nothing may come twice. Times and modes of directories are set last, since filling one changes its time.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

use berth_proto::{
    Code, Error, Reason,
    archive::check_entry,
    v1::{self, ArchiveKind, archive_part::Part},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use super::{Gone, file_error, path};

/// What was made.
#[derive(Default)]
pub struct Made {
    pub entries: u64,
    pub bytes: u64,
    pub tasks: Vec<v1::KeptTask>,
    pub keys: Vec<v1::KeptKey>,
}

/// Makes what the parts say. `next` waits for one; `None` is the end of the stream.
pub fn import(
    roots: &[(v1::ArchiveRoot, PathBuf)],
    mut next: impl FnMut() -> Option<Part>,
    gone: &Gone,
) -> Result<Made, Error> {
    let mut import =
        Import { roots: HashMap::new(), directories: Vec::new(), file: None, made: Made::default() };
    for (root, at) in roots {
        let dir = path::open(at, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let dir = dir.map_err(|error| file_error(&at.to_string_lossy(), error))?;
        import.roots.insert((*root).into(), dir);
    }
    loop {
        gone.check()?;
        match next() {
            Some(Part::Entry(entry)) => import.entry(entry)?,
            Some(Part::Data(data)) => import.data(&data)?,
            Some(Part::Task(task)) => import.made.tasks.push(task),
            Some(Part::Key(key)) => import.made.keys.push(key),

            Some(Part::End(_)) => return import.end(),
            None => return Err(bad("it ends before its end")),
        }
    }
}

fn bad(what: &str) -> Error {
    Error::new(Code::DataLoss, Reason::CheckpointFailed, format!("the archive is damaged: {what}"))
}

struct Import {
    roots: HashMap<i32, OwnedFd>,
    /// To be given their modes and times when all is in them.
    directories: Vec<v1::ArchiveEntry>,
    file: Option<Writing>,
    made: Made,
}

struct Writing {
    file: File,
    entry: v1::ArchiveEntry,
    left: u64,
}

impl Import {
    fn entry(&mut self, entry: v1::ArchiveEntry) -> Result<(), Error> {
        self.close()?;
        if !weakened!("trusted-archive") {
            check_entry(&entry).map_err(|what| bad(&format!("an entry {what}")))?;
        }
        self.made.entries += 1;
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        self.make(entry).map_err(|error| file_error(&shown, error))
    }

    fn root(&self, entry: &v1::ArchiveEntry) -> io::Result<&OwnedFd> {
        self.roots.get(&entry.root).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// The directory that something is in, and its name there.
    fn place<'p>(&self, entry: &v1::ArchiveEntry, at: &'p [u8]) -> io::Result<(OwnedFd, &'p OsStr)> {
        let cut = at.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = cut.map_or((&b"."[..], at), |cut| (&at[..cut], &at[cut + 1..]));
        let dir = below(self.root(entry)?, dir, OFlag::O_PATH | OFlag::O_DIRECTORY, 0)?;
        Ok((dir, OsStr::from_bytes(name)))
    }

    fn make(&mut self, entry: v1::ArchiveEntry) -> io::Result<()> {
        if entry.path.is_empty() {
            self.directories.push(entry);
            return Ok(());
        }
        let path = entry.path.clone();
        let (dir, name) = self.place(&entry, &path)?;
        if entry.kind() != ArchiveKind::Directory {
            // A fresh home may have files of its own.
            match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        match entry.kind() {
            ArchiveKind::Directory => {
                match mkdirat(&dir, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                self.directories.push(entry);
            }
            ArchiveKind::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let file = File::from(below(self.root(&entry)?, &path, flags, 0o600)?);
                self.file = Some(Writing { file, left: entry.size, entry });
            }
            ArchiveKind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.target), &dir, name)?;
                let time = time_of(&entry);
                utimensat(&dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
            }
            ArchiveKind::HardLink => {
                let (from, first) = self.place(&entry, &entry.target)?;
                linkat(&from, first, &dir, name, AtFlags::empty())?;
            }
            ArchiveKind::Unspecified => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Error> {
        let Some(writing) = &mut self.file else { return Err(bad("content without a file")) };
        writing.left = writing
            .left
            .checked_sub(data.len() as u64)
            .ok_or_else(|| bad("a file has more content than its entry says"))?;
        self.made.bytes += data.len() as u64;
        // Holes stay holes.
        let hole = data.iter().all(|byte| *byte == 0);
        let result = if hole {
            writing.file.seek(SeekFrom::Current(data.len() as i64)).map(drop)
        } else {
            writing.file.write_all(data)
        };
        result.map_err(|error| file_error(&String::from_utf8_lossy(&writing.entry.path), error))
    }

    /// The last file is complete.
    fn close(&mut self) -> Result<(), Error> {
        let Some(writing) = self.file.take() else { return Ok(()) };
        if writing.left > 0 {
            return Err(bad("a file has less content than its entry says"));
        }
        let entry = &writing.entry;
        let finish = || -> io::Result<()> {
            writing.file.set_len(entry.size)?;
            fchmod(&writing.file, path::bits(entry.mode))?;
            let time = time_of(entry);
            Ok(futimens(&writing.file, &time, &time)?)
        };
        finish().map_err(|error| file_error(&String::from_utf8_lossy(&entry.path), error))
    }

    fn end(mut self) -> Result<Made, Error> {
        self.close()?;
        // The innermost first: a directory that may not be entered any more comes after what is in it.
        for entry in self.directories.iter().rev() {
            let set = || -> io::Result<()> {
                let at: &[u8] = if entry.path.is_empty() { b"." } else { &entry.path };
                let dir = below(self.root(entry)?, at, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?;
                let time = time_of(entry);
                futimens(&dir, &time, &time)?;
                Ok(fchmod(&dir, path::bits(entry.mode))?)
            };
            match set() {
                // The roots themselves may be another's.
                Err(error) if entry.path.is_empty() && error.raw_os_error() == Some(libc::EPERM) => {}
                other => other.map_err(|error| file_error(&String::from_utf8_lossy(&entry.path), error))?,
            }
        }
        Ok(self.made)
    }
}

fn below(root: &OwnedFd, at: &[u8], flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let resolve = if weakened!("trusted-archive") {
        ResolveFlag::RESOLVE_NO_MAGICLINKS
    } else {
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV
    };
    let mut how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    if mode != 0 {
        how = how.mode(path::bits(mode));
    }
    Ok(path::retried(|| openat2(root, OsStr::from_bytes(at), how))?)
}

fn time_of(entry: &v1::ArchiveEntry) -> TimeSpec {
    let (seconds, nanos) =
        (entry.mtime_ns.div_euclid(1_000_000_000), entry.mtime_ns.rem_euclid(1_000_000_000));
    TimeSpec::new(seconds, nanos)
}
