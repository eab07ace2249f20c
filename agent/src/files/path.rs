//! Opening paths, and telling what is there. Runs on file threads only.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_proto::{Error, convert::time_out, v1};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, ResolveFlag, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

use crate::openat::{How, openat2};

/// Links that a path may lead through: the kernel's own number.
const LINKS_MAX: usize = 40;

/// Opens a path below a directory (or an absolute one), never through a magic link.
pub fn open_at(dir: impl AsFd, path: &(impl AsRef<Path> + ?Sized), flags: OFlag) -> io::Result<OwnedFd> {
    // openat2, unlike open, refuses flags that mean nothing beside O_PATH.
    let terminal = if flags.contains(OFlag::O_PATH) { OFlag::empty() } else { OFlag::O_NOCTTY };
    let resolve =
        if weakened!("magic-links") { ResolveFlag::empty() } else { ResolveFlag::RESOLVE_NO_MAGICLINKS };
    let how = How::new(flags | OFlag::O_CLOEXEC | terminal, resolve);
    Ok(retried(|| openat2(&dir, path.as_ref(), how))?)
}

/// Opens an absolute path.
pub fn open(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    open_at(AT_FDCWD, path, flags)
}

/// The same; `no_links`: the path may lead through no symbolic link, nor end at one.
pub fn open_strictly(path: &Path, flags: OFlag, no_links: bool) -> io::Result<OwnedFd> {
    if !no_links {
        return open(path, flags);
    }
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = How::new(flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, resolve);
    Ok(retried(|| openat2(AT_FDCWD, path, how))?)
}

/// How often it is asked again.
const TRIES: u32 = 1000;

/// openat2 may ask to be called again when a rename raced with its walk. It says the same of a file that a task has a lease
/// on, and then for as long as the task likes: so it is asked again so often, and not for ever.
pub fn retried<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    let mut tries = TRIES;
    loop {
        match call() {
            Err(Errno::EAGAIN | Errno::EINTR) if tries > 0 => tries -= 1,
            other => return other,
        }
    }
}

/// Looks at a path without opening what is there.
pub fn look(path: &Path, follow: bool) -> io::Result<(OwnedFd, FileStat)> {
    let nofollow = if follow { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let fd = open(path, OFlag::O_PATH | nofollow)?;
    let stat = fstat(&fd)?;
    Ok((fd, stat))
}

/// Refuses procfs: its files tell of the agent that opens them, not of the caller's task.
pub fn refuse_proc(fd: &OwnedFd) -> io::Result<()> {
    if fstatfs(fd)?.filesystem_type() == PROC_SUPER_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// What a mode says of a file's kind.
pub fn kind(stat: &FileStat) -> v1::FileType {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => v1::FileType::File,
        SFlag::S_IFDIR => v1::FileType::Directory,
        SFlag::S_IFLNK => v1::FileType::Symlink,
        _ => v1::FileType::Other,
    }
}

/// On the wire. `path` as it shall be shown.
pub fn info(path: &OsStr, stat: &FileStat, target: Option<OsString>) -> v1::FileInfo {
    let since = Duration::new(stat.st_mtime.max(0) as u64, stat.st_mtime_nsec.clamp(0, 999_999_999) as u32);
    let shown = path.to_string_lossy();
    let lossy = path.to_str().is_none();
    v1::FileInfo {
        path_bytes: if lossy { path.as_bytes().to_vec().into() } else { Default::default() },
        path: shown.into_owned(),
        r#type: kind(stat).into(),
        size: stat.st_size.max(0) as u64,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_at: Some(time_out(SystemTime::UNIX_EPOCH + since)),
        symlink_target: target.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default(),
    }
}

/// Stat, as the service gives it.
pub fn stat(absolute: &Path, shown: &str, follow: bool) -> Result<v1::FileInfo, Error> {
    let run = || -> io::Result<v1::FileInfo> {
        let (fd, stat) = look(absolute, follow)?;
        let target =
            if kind(&stat) == v1::FileType::Symlink { readlinkat(&fd, OsStr::new("")).ok() } else { None };
        Ok(info(OsStr::new(shown), &stat, target))
    };
    run().map_err(|error| super::file_error(shown, error))
}

/// A directory and a name in it: what is made, replaced or removed.
pub struct Place {
    pub dir: OwnedFd,
    pub name: OsString,
}

/// Splits off the last name. A path that ends in `.`, `..` or `/` names no entry.
pub fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let bytes = &bytes[..end];
    let cut = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (dir, name) = bytes.split_at(cut);
    if name.is_empty() || name == b"." || name == b".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let dir = if dir.is_empty() { b"." } else { dir };
    Ok((PathBuf::from(OsStr::from_bytes(dir)), OsString::from_vec(name.to_vec())))
}

impl Place {
    /// The entry itself, a link included.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::below(AT_FDCWD, path)
    }

    fn below(base: impl AsFd, path: &Path) -> io::Result<Self> {
        let (dir, name) = split(path)?;
        Ok(Self { dir: open_at(base, &dir, OFlag::O_PATH | OFlag::O_DIRECTORY)?, name })
    }

    /// The entry that writing to the path would reach: the end of a chain of links, there
    /// or not.
    pub fn resolved(path: &Path) -> io::Result<Self> {
        let mut place = Self::of(path)?;
        for _ in 0..LINKS_MAX {
            match place.stat() {
                Ok(stat) if kind(&stat) == v1::FileType::Symlink => {
                    // A magic link's text is no path: the open of its parent must refuse it.
                    refuse_proc(&place.dir)?;
                    let target = PathBuf::from(readlinkat(&place.dir, &*place.name)?);
                    place = Self::below(&place.dir, &target)?;
                }
                _ => return Ok(place),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ELOOP))
    }

    /// Of the entry itself.
    pub fn stat(&self) -> nix::Result<FileStat> {
        fstatat(&self.dir, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

/// The permission bits of a mode.
pub fn bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_is_split_off() {
        let of = |path: &str| split(Path::new(path)).map(|(d, n)| (d, n.into_string().unwrap())).ok();
        assert_eq!(of("/a/b"), Some(("/a/".into(), "b".into())));
        assert_eq!(of("/a/b//"), Some(("/a/".into(), "b".into())));
        assert_eq!(of("b"), Some((".".into(), "b".into())));
        assert_eq!(of("/b"), Some(("/".into(), "b".into())));
        for bad in ["/", "", ".", "/a/..", "/a/.", "///"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
