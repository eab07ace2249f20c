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
    fcntl::{AtFlags, OFlag, ResolveFlag},
    sys::{
        stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use prost::Message;

use super::{Gone, file_error, path};
use crate::openat::{How, openat2};

/// Bytes of tasks and keys that are held until the end, each with what it takes beside its own: twice what an agent puts
/// into an archive, and far from the 256 MiB that it has.
const HELD_MAX: usize = 32 << 20;
const HELD_EACH: usize = 256;

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
    largest: u64,
    mut next: impl FnMut() -> Option<Part>,
    gone: &Gone,
) -> Result<Made, Error> {
    let mut import = Import {
        roots: HashMap::new(),
        largest,
        directories: Vec::new(),
        file: None,
        held: 0,
        made: Made::default(),
    };
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
            Some(Part::Task(task)) => {
                import.hold(task.encoded_len())?;
                import.made.tasks.push(task);
            }
            Some(Part::Key(key)) => {
                import.hold(key.encoded_len())?;
                import.made.keys.push(key);
            }
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
    /// Bytes that a file may say it has.
    largest: u64,
    /// To be given their modes and times when all is in them.
    directories: Vec<v1::ArchiveEntry>,
    file: Option<Writing>,
    /// Bytes of tasks and keys so far.
    held: usize,
    made: Made,
}

struct Writing {
    file: File,
    entry: v1::ArchiveEntry,
    left: u64,
}

impl Import {
    /// Makes room for something that is held until the end.
    fn hold(&mut self, bytes: usize) -> Result<(), Error> {
        self.held += bytes + HELD_EACH;
        if self.held > HELD_MAX { Err(bad("it has more tasks than a session keeps")) } else { Ok(()) }
    }

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
            ArchiveKind::File if entry.size > self.largest => {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
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
    let mut how = How::new(flags | OFlag::O_CLOEXEC, resolve);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Red when they are not counted. What an agent puts into an archive at most is taken.
    #[test]
    fn no_more_tasks_and_keys_are_held_than_a_session_keeps() {
        let task =
            |bytes| Part::Task(v1::KeptTask { stdout_tail: vec![0; bytes].into(), ..Default::default() });
        let key = || Part::Key(v1::KeptKey { request_id: "k".repeat(128), ..Default::default() });
        let end = || Part::End(v1::ArchiveEnd::default());
        let run = |parts: Vec<Part>| {
            let mut parts = parts.into_iter();
            import(&[], u64::MAX, || parts.next(), &Gone::default())
        };
        let mut usual: Vec<Part> = (0..1000).map(|_| task(16 << 10)).collect();
        usual.extend((0..10_000).map(|_| key()));
        usual.push(end());
        assert_eq!(run(usual).unwrap().keys.len(), 10_000);
        for many in [vec![task(3 << 20); 11], vec![key(); 100_000]] {
            let error = run([many, vec![end()]].concat()).err().expect("must be refused");
            assert_eq!((error.code(), error.reason()), (Code::DataLoss, Reason::CheckpointFailed));
        }
    }
}
