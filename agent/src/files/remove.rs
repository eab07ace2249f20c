//! Removing, with all that is in it. Trees can be deeper than the stack, than the
//! number of open files and than the longest path, and have directories that their
//! owner locked: so the walk is a loop that holds one directory, goes down by name and
//! up by `..`, and knows each directory again by its device and inode.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use berth_proto::{Error, v1};
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FchmodatFlags, fchmod, fchmodat, fstat, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{Gone, file_error, path, path::Place};

/// Directories that a walk may be below its start. Deeper is a loop, or malice.
const DEPTH_MAX: usize = 1 << 20;

/// Remove, as the service gives it.
pub fn remove(absolute: &Path, shown: &str, recursive: bool, gone: &Gone) -> Result<(), Error> {
    let failed = |error: io::Error| file_error(shown, error);
    let place = Place::of(absolute).map_err(failed)?;
    let stat = place.stat().map_err(|e| failed(e.into()))?;
    if path::kind(&stat) != v1::FileType::Directory {
        return unlinkat(&place.dir, &*place.name, UnlinkatFlags::NoRemoveDir).map_err(|e| failed(e.into()));
    }
    match unlinkat(&place.dir, &*place.name, UnlinkatFlags::RemoveDir) {
        Ok(()) => return Ok(()),
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EACCES) if recursive => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    empty(&place, gone).map_err(|error| match error.raw_os_error() {
        Some(libc::ECANCELED) => gone.check().err().unwrap_or_else(|| failed(error)),
        _ => failed(error),
    })?;
    unlinkat(&place.dir, &*place.name, UnlinkatFlags::RemoveDir).map_err(|e| failed(e.into()))
}

/// A directory that the walk is in.
struct Level {
    name: CString,
    device: u64,
    inode: u64,
}

/// Opens a directory of ours, unlocking it if its owner locked it.
fn enter(parent: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let dir = match path::open_at(&parent, name, flags) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // chmod follows links, but a link to a directory was ruled out a moment ago,
            // and whatever the name means by now, it is changed as its owner.
            fchmodat(&parent, name, path::bits(0o700), FchmodatFlags::FollowSymlink)?;
            path::open_at(&parent, name, flags)?
        }
        other => other?,
    };
    if fstat(&dir)?.st_mode & 0o700 != 0o700 {
        // Not ours to change: then the unlinks say what is wrong.
        let _ = fchmod(&dir, path::bits(0o700));
    }
    Ok(dir)
}

fn empty(place: &Place, gone: &Gone) -> io::Result<()> {
    let mut current = enter(&place.dir, &place.name)?;
    let mut above: Vec<Level> = Vec::new();
    loop {
        if gone.is_set() {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        match sweep(&current)? {
            Some(child) => {
                if above.len() >= DEPTH_MAX || (weakened!("shallow-removal") && above.len() >= 1000) {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let stat = fstat(&current)?;
                let next = enter(&current, OsStr::from_bytes(child.as_bytes()))?;
                above.push(Level { name: child, device: stat.st_dev, inode: stat.st_ino });
                current = next;
            }
            None => {
                let Some(level) = above.pop() else { return Ok(()) };
                let parent = path::open_at(&current, "..", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                let stat = fstat(&parent)?;
                if (stat.st_dev, stat.st_ino) != (level.device, level.inode) {
                    // Moved elsewhere while we were in it: what is above is not ours to remove.
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                match unlinkat(&parent, &*level.name, UnlinkatFlags::RemoveDir) {
                    // Something new came into it: the next sweep goes down again.
                    Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                current = parent;
            }
        }
    }
}

/// Removes what is no full directory. A full one is where the walk goes next.
fn sweep(dir: &OwnedFd) -> io::Result<Option<CString>> {
    loop {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut entries = Dir::from_fd(path::open_at(dir, ".", flags)?)?;
        let mut removed = 0;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_dir = match entry.file_type() {
                Some(kind) => kind == Type::Directory,
                None => match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => path::kind(&stat) == v1::FileType::Directory,
                    Err(Errno::ENOENT) => continue,
                    Err(errno) => return Err(errno.into()),
                },
            };
            let flag = if is_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            match unlinkat(dir, name, flag) {
                Ok(()) => removed += 1,
                Err(Errno::ENOENT) => {}
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EACCES) if is_dir => {
                    return Ok(Some(name.to_owned()));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        // A listing may leave out entries when others are removed under it.
        if removed == 0 {
            return Ok(None);
        }
    }
}
