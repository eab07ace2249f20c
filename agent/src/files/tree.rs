//! Making directories and moving things.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

use berth_proto::{Code, Error, Reason, v1};
use nix::{
    errno::Errno,
    fcntl::{OFlag, RenameFlags, readlinkat, renameat, renameat2},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use super::{Gone, file_error, path, path::Place};
use crate::openat::{How, openat2};

/// Mode of a new directory, unless the caller says otherwise.
const NEW_DIR: u32 = 0o755;

/// Makes a directory and all that is missing above it.
pub fn make_parents(dir: &Path, shown: &str) -> Result<(), Error> {
    let failed = |error: io::Error| file_error(shown, error);
    // What is there needs no walk, and may be readable to nobody.
    match path::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Ok(_) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    let mut current = path::open(Path::new("/"), OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
    for component in dir.components() {
        let name: OsString = match component {
            Component::Normal(name) => name.to_owned(),
            Component::ParentDir => "..".into(),
            _ => continue,
        };
        match mkdirat(&current, &*name, path::bits(NEW_DIR)) {
            // EROFS, EACCES and the like may be said of what is there already.
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS | Errno::EACCES | Errno::EPERM) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        current = match path::open_at(&current, &name, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(next) => next,
            // It could not be made after all: that is the error to tell.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let errno = mkdirat(&current, &*name, path::bits(NEW_DIR)).err().unwrap_or(Errno::ENOENT);
                return Err(failed(errno.into()));
            }
            Err(error) => return Err(failed(error)),
        };
    }
    Ok(())
}

/// MakeDir, as the service gives it.
pub fn make_dir(
    absolute: &Path,
    shown: &str,
    parents: bool,
    mode: Option<u32>,
) -> Result<v1::FileInfo, Error> {
    let failed = |error: io::Error| file_error(shown, error);
    if parents {
        if path::open(absolute, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok() {
            return path::stat(absolute, shown, true);
        }
        let (parent, _) = path::split(absolute).map_err(failed)?;
        make_parents(&parent, shown)?;
    }
    let place = Place::of(absolute).map_err(failed)?;
    match mkdirat(&place.dir, &*place.name, path::bits(NEW_DIR)) {
        Ok(()) => {}
        // Somebody else made it meanwhile: as good.
        Err(Errno::EEXIST) if parents => return path::stat(absolute, shown, true),
        Err(errno) => return Err(failed(errno.into())),
    }
    if let Some(mode) = mode {
        // The umask must not matter.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let dir = path::open_at(&place.dir, &place.name, flags).map_err(failed)?;
        fchmod(&dir, path::bits(mode)).map_err(|e| failed(e.into()))?;
    }
    path::stat(absolute, shown, false)
}

/// Move, as the service gives it. Between file systems a file or a link is copied first;
/// a directory is refused.
pub fn rename(
    from: (&Path, &str),
    to: (&Path, &str),
    overwrite: bool,
    gone: &Gone,
) -> Result<v1::FileInfo, Error> {
    let source = Place::of(from.0).map_err(|e| file_error(from.1, e))?;
    source.stat().map_err(|e| file_error(from.1, e))?;
    let target = Place::of(to.0).map_err(|e| file_error(to.1, e))?;
    match put(&source, &target, overwrite) {
        Ok(()) => {}
        Err(Errno::EXDEV) => copy(&source, &target, from.1, to.1, overwrite, gone)?,
        Err(Errno::ENOENT) => return Err(file_error(from.1, Errno::ENOENT)),
        Err(Errno::EINVAL) => {
            return Err(Error::invalid("destination", format!("{}: lies inside {}", to.1, from.1)));
        }
        Err(errno) => return Err(file_error(to.1, errno)),
    }
    path::stat(to.0, to.1, false)
}

fn put(source: &Place, target: &Place, overwrite: bool) -> nix::Result<()> {
    if overwrite {
        return renameat(&source.dir, &*source.name, &target.dir, &*target.name);
    }
    renameat2(&source.dir, &*source.name, &target.dir, &*target.name, RenameFlags::RENAME_NOREPLACE)
}

fn copy(
    source: &Place,
    target: &Place,
    from: &str,
    to: &str,
    overwrite: bool,
    gone: &Gone,
) -> Result<(), Error> {
    let stat = source.stat().map_err(|e| file_error(from, e))?;
    let name = OsString::from(format!(".berth-{}.tmp", berth_proto::TaskId::new()));
    let temporary = Place { dir: target.dir.try_clone().map_err(|e| file_error(to, e))?, name };
    let copied = match path::kind(&stat) {
        v1::FileType::File => {
            copy_file(source, &temporary, stat.st_mode, gone).map_err(|e| file_error(to, e))
        }
        v1::FileType::Symlink => readlinkat(&source.dir, &*source.name)
            .and_then(|link| symlinkat(&*link, &temporary.dir, &*temporary.name))
            .map_err(|e| file_error(to, e)),
        _ => Err(Error::new(
            Code::Unimplemented,
            Reason::Unsupported,
            format!("{from}: only files and links can be moved to another file system"),
        )
        .hint("run `mv` in a task")),
    };
    let done = copied.and_then(|()| put(&temporary, target, overwrite).map_err(|e| file_error(to, e)));
    if done.is_err() {
        let _ = unlinkat(&temporary.dir, &*temporary.name, UnlinkatFlags::NoRemoveDir);
        return done;
    }
    unlinkat(&source.dir, &*source.name, UnlinkatFlags::NoRemoveDir).map_err(|e| file_error(from, e))
}

fn copy_file(source: &Place, temporary: &Place, mode: u32, gone: &Gone) -> io::Result<()> {
    let reading = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let mut input = File::from(path::open_at(&source.dir, &source.name, reading)?);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let how =
        How::new(flags, nix::fcntl::ResolveFlag::RESOLVE_NO_MAGICLINKS).mode(Mode::from_bits_truncate(0o600));
    let opened = path::retried(|| openat2(&temporary.dir, &*temporary.name, how))?;
    let mut output = File::from(opened);
    loop {
        // In pieces, so that a caller who goes away ends it.
        if gone.is_set() {
            return Err(io::Error::from_raw_os_error(libc::ECANCELED));
        }
        if io::copy(&mut io::Read::take(&mut input, 8 << 20), &mut output)? == 0 {
            break;
        }
    }
    fchmod(&output, path::bits(mode))?;
    Ok(())
}

/// A path as a request gave it, and where that is.
pub struct Named {
    pub absolute: PathBuf,
    pub shown: String,
}
