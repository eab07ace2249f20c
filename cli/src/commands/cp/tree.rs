//! A directory on this machine that is filled with what a sandbox lists. The listing is not
//! to be trusted, and neither is what lies in the directory: an earlier copy may have left
//! links there, and one component of a path may change between two calls.
//!
//! So no path below the directory is ever given to the kernel to walk freely. Each parent is
//! opened from the directory's own descriptor with openat2, which refuses links and `..` in
//! one step with the walk, and each call after that works on the descriptor and one name.
//! Only the directory itself, which the user named, may be a link.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat},
    sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use crate::failure::Failure;

/// A directory to fill. Cheap to clone.
#[derive(Clone)]
pub struct Tree {
    dir: Arc<OwnedFd>,
    /// For messages.
    path: PathBuf,
}

/// One name in an open directory.
struct Spot {
    dir: OwnedFd,
    name: OsString,
    shown: String,
}

impl Tree {
    /// Opens a directory that the user named: links on the way are the user's own.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(AT_FDCWD, named, flags, Mode::empty())
            .map_err(|error| Failure::io(named.display(), io::Error::from(error)))?;
        Ok(Self { dir: Arc::new(dir), path: path.to_owned() })
    }

    /// A directory below this one as a tree of its own.
    pub fn below(&self, path: &Path) -> Result<Self, Failure> {
        let dir = self.open_dir(path).map_err(|error| refused(&self.shown(path), error))?;
        Ok(Self { dir: Arc::new(dir), path: self.path.join(path) })
    }

    /// How a path below it is called in messages.
    pub fn shown(&self, path: &Path) -> String {
        self.path.join(path).display().to_string()
    }

    /// A real directory below this one, or this one.
    fn open_dir(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        loop {
            match openat2(&*self.dir, path, how) {
                // A rename raced with the walk.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    fn spot(&self, path: &Path) -> Result<Spot, Failure> {
        let shown = self.shown(path);
        let name = path
            .file_name()
            .ok_or_else(|| Failure::new(format!("{shown} has no name of its own")).hint("name the target"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = self.open_dir(parent).map_err(|error| refused(&self.shown(parent), error))?;
        Ok(Spot { dir, name: name.to_owned(), shown })
    }

    /// A real directory at `path`, made or there. Whether it was made. A new one is its
    /// owner's alone until [`Tree::set_mode`].
    pub fn make_dir(&self, path: &Path) -> Result<bool, Failure> {
        let spot = self.spot(path)?;
        match mkdirat(&spot.dir, &*spot.name, Mode::S_IRWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) if spot.kind() == Some(SFlag::S_IFDIR) => Ok(false),
            Err(Errno::EEXIST) => {
                Err(Failure::new(format!("{} is there and is no directory", spot.shown)).hint(ELSEWHERE))
            }
            Err(error) => Err(spot.failed(error)),
        }
    }

    /// Permission bits of a directory that was made.
    pub fn set_mode(&self, path: &Path, mode: u32) -> Result<(), Failure> {
        let dir = self.open_dir(path).map_err(|error| refused(&self.shown(path), error))?;
        fchmod(&dir, bits(mode)).map_err(|error| Failure::io(self.shown(path), io::Error::from(error)))
    }

    /// Makes a link, over another one but over nothing else.
    pub fn make_link(&self, path: &Path, target: &str) -> Result<(), Failure> {
        let spot = self.spot(path)?;
        if let Some(kind) = spot.kind() {
            if kind != SFlag::S_IFLNK {
                return Err(Failure::new("something else is there").hint(ELSEWHERE));
            }
            unlinkat(&spot.dir, &*spot.name, UnlinkatFlags::NoRemoveDir).map_err(|e| spot.failed(e))?;
        }
        symlinkat(target, &spot.dir, &*spot.name).map_err(|error| spot.failed(error))
    }

    /// Begins a file: it is written beside its place, where nothing leads to it yet.
    pub fn new_file(&self, path: &Path) -> Result<NewFile, Failure> {
        let spot = self.spot(path)?;
        if spot.kind() == Some(SFlag::S_IFDIR) {
            let what = format!("{} is a directory: no file can replace it", spot.shown);
            return Err(Failure::new(what).hint(ELSEWHERE));
        }
        let temporary = OsString::from(format!(".berth-{}", berth_client::TaskId::new()));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&spot.dir, &*temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|error| spot.failed(error))?;
        Ok(NewFile { file: File::from(file), temporary: Some(temporary), spot })
    }
}

impl Spot {
    /// What is there; of a link, the link. `None`: nothing, or it can't be told.
    fn kind(&self) -> Option<SFlag> {
        let stat = fstatat(&self.dir, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        Some(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
    }

    fn failed(&self, error: Errno) -> Failure {
        Failure::io(&self.shown, io::Error::from(error))
    }
}

/// A file that goes away unless it is put in its place.
pub struct NewFile {
    file: File,
    temporary: Option<OsString>,
    spot: Spot,
}

impl NewFile {
    /// To write to.
    pub fn writer(&self) -> io::Result<tokio::fs::File> {
        Ok(tokio::fs::File::from_std(self.file.try_clone()?))
    }

    /// Into its place, over a file or a link that is there.
    pub fn finish(mut self, mode: u32) -> Result<(), Failure> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let (dir, name) = (&self.spot.dir, &*self.spot.name);
        fchmod(&self.file, bits(mode))
            .and_then(|()| renameat(dir, &**temporary, dir, name))
            .map_err(|error| self.spot.failed(error))?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = unlinkat(&self.spot.dir, &**temporary, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Never the bits that would run a program as somebody else.
fn bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o777)
}

const ELSEWHERE: &str = "remove it, or copy to a directory that is not there yet";

/// Why a directory that something shall go into was not opened.
fn refused(shown: &str, error: Errno) -> Failure {
    match error {
        Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV => Failure::new(format!(
            "{shown} is no real directory (a link leads elsewhere, or a file is there): nothing is written through it"
        ))
        .hint(ELSEWHERE),
        Errno::ENOSYS => Failure::new("this machine's kernel has no openat2 (Linux 5.6)")
            .hint("without it a copy out of a sandbox can't be held to its directory"),
        error => Failure::io(shown, io::Error::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    /// A tree `t` beside a directory `host` that nothing may be written to.
    fn beside() -> (PathBuf, Tree) {
        let root = std::env::temp_dir().join(format!("berth-tree-{}", berth_client::TaskId::new()));
        fs::create_dir_all(root.join("t/real")).unwrap();
        fs::create_dir_all(root.join("host")).unwrap();
        let tree = Tree::open(&root.join("t")).unwrap();
        (root, tree)
    }

    fn write(tree: &Tree, path: &str) -> Result<(), Failure> {
        let file = tree.new_file(Path::new(path))?;
        (&file.file).write_all(b"new").unwrap();
        file.finish(0o4755)
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (root, tree) = beside();
        std::os::unix::fs::symlink(root.join("host"), root.join("t/x")).unwrap();
        std::os::unix::fs::symlink("real", root.join("t/y")).unwrap();
        for dir in ["x", "y"] {
            let inside = format!("{dir}/f");
            for refused in [
                write(&tree, &inside),
                tree.make_dir(Path::new(&inside)).map(|_| ()),
                tree.make_dir(Path::new(dir)).map(|_| ()),
                tree.make_link(Path::new(&inside), "target"),
                tree.set_mode(Path::new(dir), 0o777),
                tree.below(Path::new(dir)).map(|_| ()),
            ] {
                let failure = refused.expect_err("a link is no directory");
                assert!(failure.message.contains(&format!("/t/{dir}")), "it names the path: {failure}");
            }
        }
        assert!(write(&tree, "real/../../host/f").is_err(), "`..` leads out");
        assert_eq!(fs::read_dir(root.join("host")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(root.join("t/real")).unwrap().count(), 0);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_directory_that_the_user_named_may_be_a_link() {
        let (root, _) = beside();
        std::os::unix::fs::symlink("t", root.join("named")).unwrap();
        let tree = Tree::open(&root.join("named")).unwrap();
        write(&tree, "real/f").unwrap();
        assert_eq!(fs::read(root.join("t/real/f")).unwrap(), b"new");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_file_takes_the_place_of_a_link_and_not_of_its_target() {
        let (root, tree) = beside();
        fs::write(root.join("host/f"), "host").unwrap();
        std::os::unix::fs::symlink(root.join("host/f"), root.join("t/f")).unwrap();
        write(&tree, "f").unwrap();
        assert_eq!(fs::read(root.join("host/f")).unwrap(), b"host");
        let meta = fs::symlink_metadata(root.join("t/f")).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o755, "no set-uid bit comes along");
        assert!(write(&tree, "real").is_err(), "no file replaces a directory");
        let left: Vec<_> = fs::read_dir(root.join("t")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "no temporary file is left: {left:?}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn directories_and_links_are_made_once() {
        let (root, tree) = beside();
        assert!(tree.make_dir(Path::new("new")).unwrap());
        assert!(!tree.make_dir(Path::new("new")).unwrap());
        tree.set_mode(Path::new("new"), 0o2750).unwrap();
        assert_eq!(fs::metadata(root.join("t/new")).unwrap().permissions().mode() & 0o7777, 0o750);
        tree.make_link(Path::new("link"), "one").unwrap();
        tree.make_link(Path::new("link"), "two").unwrap();
        assert_eq!(fs::read_link(root.join("t/link")).unwrap(), PathBuf::from("two"));
        assert!(tree.make_link(Path::new("real"), "x").is_err(), "a link replaces links only");
        fs::remove_dir_all(root).unwrap();
    }
}
