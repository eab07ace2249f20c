//! Removing a session's tree. What is in it was written by code that nobody trusts, so it must be safe on any
//! tree, and complete:
//! - names are only ever used relative to an open directory, one at a time and with
//!   `O_NOFOLLOW`: a planted symbolic link is unlinked, never followed;
//! - a tree of any depth takes three descriptors and no recursion: a directory that is
//!   not empty is moved up to the top and emptied there, so that the tree is never
//!   deeper than two levels where we work;
//! - what is on another mount is never entered: should a backend have left a bind mount
//!   of the host's `/usr`, removal fails and says so.
//!
//! Rejected: `std::fs::remove_dir_all` (a descriptor or a stack frame per level, follows
//! into mounts, stops at a directory of mode 000) and running `rm -rf`.

use std::{
    ffi::{CStr, CString},
    fs::Permissions,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat, renameat},
    sys::stat::{Mode, fchmod},
    unistd::{UnlinkatFlags, unlinkat},
};

/// Removes `path` and all below it. See the module's head for what that guards against.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a directory that can be removed"));
    };
    let name = CString::new(name.as_bytes())?;
    let parent = match openat(AT_FDCWD, parent, DIR_FLAGS & !OFlag::O_NOFOLLOW, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let removed = Removal::start(parent.as_fd(), &name).and_then(|removal| match removal {
        None => Ok(()),
        Some(mut removal) => {
            removal.run()?;
            Ok(unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir)?)
        }
    });
    removed.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

const DIR_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Removal {
    top: OwnedFd,
    /// Where the tree is mounted: nothing elsewhere is entered.
    mount: u64,
    /// For the names under which directories are moved up.
    moved: u64,
}

/// How one pass over a directory went.
#[derive(Default)]
struct Pass {
    progress: bool,
    /// Something is still there; the error says why, if the kernel did.
    rest: Option<io::Error>,
}

impl Removal {
    /// `None`: there was nothing, or it was no directory and is unlinked.
    fn start(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Self>> {
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(None),
            // Linux says EISDIR, POSIX EPERM.
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        let mount = mount_id(parent)?;
        let top = open_dir(parent, name, mount)?;
        Ok(Some(Self { top, mount, moved: 0 }))
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let pass = self.pass()?;
            match pass.rest {
                None => return Ok(()),
                Some(error) if !pass.progress => return Err(error),
                Some(_) => {}
            }
        }
    }

    /// Empties each of the top's entries once. New ones may come up meanwhile: `rest` is set then.
    fn pass(&mut self) -> io::Result<Pass> {
        let mut pass = Pass::default();
        let mut listing = Dir::openat(&self.top, c".", DIR_FLAGS, Mode::empty())?;
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match unlink_entry(self.top.as_fd(), name, entry.file_type()) {
                Ok(()) => pass.progress = true,
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                    let name = name.to_owned();
                    match self.empty(&name) {
                        Ok(moved) => pass.progress |= moved,
                        Err(error) => {
                            pass.rest = Some(error);
                            continue;
                        }
                    }
                    match unlinkat(&self.top, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                        Ok(()) => pass.progress = true,
                        Err(error) => pass.rest = Some(error.into()),
                    }
                    // What was moved up may not show in this listing.
                    pass.rest.get_or_insert_with(|| Errno::ENOTEMPTY.into());
                }
                Err(error) => pass.rest = Some(error.into()),
            }
        }
        Ok(pass)
    }

    /// Unlinks what is in `top/name`; directories with something in them are moved up to the top.
    /// True: something was done.
    fn empty(&mut self, name: &CStr) -> io::Result<bool> {
        let dir = open_dir(self.top.as_fd(), name, self.mount)?;
        let mut listing = Dir::openat(&dir, c".", DIR_FLAGS, Mode::empty())?;
        let mut progress = false;
        let mut failed = None;
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let done = match unlink_entry(dir.as_fd(), name, entry.file_type()) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => self.move_up(dir.as_fd(), name),
                other => other,
            };
            match done {
                Ok(()) => progress = true,
                // A full disk takes no new entry in the top: files go on being unlinked, the next
                // pass tries again.
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if !progress => Err(error.into()),
            _ => Ok(progress),
        }
    }

    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let target = CString::new(format!(".berth-removed-{}", self.moved)).expect("has no NUL");
            let result = match renameat(from, name, &self.top, target.as_c_str()) {
                // Its `..` is written: without CAP_DAC_OVERRIDE that needs its write bit.
                Err(Errno::EACCES) => {
                    open_up(from, name)?;
                    renameat(from, name, &self.top, target.as_c_str())
                }
                other => other,
            };
            match result {
                // The name is taken, by a file or by a directory of the tree's own.
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                other => return other,
            }
        }
    }
}

/// Removes a file or an empty directory.
fn unlink_entry(dir: BorrowedFd<'_>, name: &CStr, kind: Option<Type>) -> Result<(), Errno> {
    #[cfg(feature = "weakened")]
    if weakened!("follow-canary") && kind == Some(Type::Symlink) {
        follow_canary(dir, name);
    }
    if kind != Some(Type::Directory) {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => {}
            Err(Errno::EPERM) if kind.is_none() => {}
            Err(Errno::ENOENT) => return Ok(()),
            // The directory that holds it can't be written by its mode.
            Err(Errno::EACCES) => {
                fchmod(dir, Mode::S_IRWXU)?;
                return unlinkat(dir, name, UnlinkatFlags::NoRemoveDir);
            }
            other => return other,
        }
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EACCES) => {
            fchmod(dir, Mode::S_IRWXU)?;
            unlinkat(dir, name, UnlinkatFlags::RemoveDir)
        }
        other => other,
    }
}

/// What a removal that follows links would do; of one link only, to a directory that a test made for it.
#[cfg(feature = "weakened")]
fn follow_canary(dir: BorrowedFd<'_>, name: &CStr) {
    let target = nix::fcntl::readlinkat(dir, name).map(std::path::PathBuf::from).unwrap_or_default();
    if target.ends_with("berth-canary") {
        let _ = std::fs::remove_dir_all(target);
    }
}

/// Opens a directory of the tree, whatever its mode, if it is on `mount`.
fn open_dir(parent: BorrowedFd<'_>, name: &CStr, mount: u64) -> io::Result<OwnedFd> {
    let dir = match openat(parent, name, DIR_FLAGS, Mode::empty()) {
        Err(Errno::EACCES) => {
            open_up(parent, name)?;
            openat(parent, name, DIR_FLAGS, Mode::empty())?
        }
        other => other?,
    };
    if mount_id(dir.as_fd())? != mount {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is still mounted: not entered", name.to_string_lossy()),
        ));
    }
    Ok(dir)
}

/// Gives a directory that we own the mode 0700. Root needs this never: its capability passes by.
fn open_up(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    // Through /proc: chmod of an O_PATH descriptor, which no link can redirect.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(errno_of)
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The mount that a descriptor is on. Tells bind mounts of one file system apart, as `st_dev` does not.
fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel names no mount of a descriptor"))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::fs::symlink};

    use nix::sys::stat::mkdirat;

    use super::{super::set_mode, *};

    /// Abuse 7: what links point to stays, with its owner and mode.
    #[test]
    fn links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let canary = temp.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "precious").unwrap();
        let tree = temp.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&canary, tree.join("a/b/dir")).unwrap();
        symlink(canary.join("file"), tree.join("a/file")).unwrap();
        symlink("/", tree.join("root")).unwrap();
        symlink("loop", tree.join("loop")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "precious");
        // The tree itself as a link: the link goes, its target stays.
        symlink(&canary, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(tree.symlink_metadata().is_err() && canary.join("file").exists());
    }

    /// Abuse 8: deeper than any path may be long, and than we may have descriptors.
    #[test]
    fn a_very_deep_tree_goes() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut dir = openat(AT_FDCWD, &tree, DIR_FLAGS, Mode::empty()).unwrap();
        for _ in 0..5000 {
            mkdirat(&dir, "d", Mode::S_IRWXU).unwrap();
            openat(&dir, "f", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap();
            dir = openat(&dir, "d", DIR_FLAGS, Mode::empty()).unwrap();
        }
        drop(dir);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn modes_and_names_do_not_matter() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree");
        let odd = tree.join(OsStr::from_bytes(b"\xff\xfe\n"));
        fs::create_dir_all(odd.join("closed/inner")).unwrap();
        fs::write(odd.join("closed/inner/f"), "x").unwrap();
        fs::write(odd.join("read-only"), "x").unwrap();
        // Names that removal itself would use.
        fs::create_dir_all(tree.join(".berth-removed-1/x/y")).unwrap();
        fs::write(tree.join(".berth-removed-2"), "x").unwrap();
        set_mode(&odd.join("read-only"), 0o000).unwrap();
        set_mode(&odd.join("closed/inner"), 0o000).unwrap();
        set_mode(&odd.join("closed"), 0o000).unwrap();
        set_mode(&odd, 0o555).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn many_entries_go() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree");
        for d in 0..20 {
            fs::create_dir_all(tree.join(format!("{d}/sub"))).unwrap();
            for f in 0..200 {
                fs::write(tree.join(format!("{d}/sub/{f}")), "").unwrap();
            }
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    /// A mount is told by its id, so a directory on another mount than its parent is refused.
    #[test]
    fn another_mount_is_not_entered() {
        let root = openat(AT_FDCWD, "/", DIR_FLAGS, Mode::empty()).unwrap();
        let mount = mount_id(root.as_fd()).unwrap();
        let error = open_dir(root.as_fd(), c"proc", mount).unwrap_err();
        assert!(error.to_string().contains("mounted"), "{error}");
    }
}
