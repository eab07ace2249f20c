//! `openat2`, and the same rules kept by hand where the kernel under the sandbox does not have the call: gVisor has it
//! since September 2026 only.
//!
//! By hand, each part of a path is opened on its own, never following a link; what is opened is looked at, and a link's
//! text is read from the very link that was opened. So nobody who moves things meanwhile can lead the walk elsewhere. It
//! is stricter than the kernel where that is simpler: no link of a procfs is followed (any may be a magic one), and
//! [`ResolveFlag::RESOLVE_BENEATH`] refuses every `..`. It is weaker in one: [`ResolveFlag::RESOLVE_NO_XDEV`] goes by the
//! device's number, so a bind mount of the same file system is not seen. A sandbox can make no mounts.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    NixPath,
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

/// Links on the way: the kernel's own number.
const LINKS_MAX: usize = 40;

/// How to open. As [`OpenHow`], but it can be read again.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub flags: OFlag,
    pub mode: Mode,
    pub resolve: ResolveFlag,
}

impl How {
    /// With these flags and rules; nothing is made.
    pub fn new(flags: OFlag, resolve: ResolveFlag) -> Self {
        Self { flags, mode: Mode::empty(), resolve }
    }

    /// The mode of a file that is made.
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }
}

/// Opens a path below a directory (or an absolute one) by the kernel's `openat2`, or by hand.
///
/// # Errors
/// As the kernel's: ELOOP for a link that may not be followed, EXDEV for a path that leads out, EAGAIN for one to try
/// again.
pub fn openat2<P: ?Sized + NixPath>(dir: impl AsFd, path: &P, how: How) -> nix::Result<OwnedFd> {
    static ABSENT: AtomicBool = AtomicBool::new(false);
    if !ABSENT.load(Ordering::Relaxed) {
        let mut kernels = OpenHow::new().flags(how.flags).resolve(how.resolve);
        // The kernel refuses a mode beside flags that make nothing.
        if how.flags.contains(OFlag::O_CREAT) {
            kernels = kernels.mode(how.mode);
        }
        match nix::fcntl::openat2(&dir, path, kernels) {
            Err(Errno::ENOSYS) => ABSENT.store(true, Ordering::Relaxed),
            other => return other,
        }
    }
    let path = path.with_nix_path(|path| path.to_bytes().to_vec())?;
    walk(dir, &path, how)
}

/// The same by hand.
fn walk(dir: impl AsFd, path: &[u8], how: How) -> nix::Result<OwnedFd> {
    let below = how.resolve.contains(ResolveFlag::RESOLVE_BENEATH);
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if below && path.starts_with(b"/") {
        return Err(Errno::EXDEV);
    }
    let mut at = at_start(&dir, path)?;
    let device = fstat(&at)?.st_dev;
    let mut parts = split(path);
    let mut links = 0;
    while let Some(part) = parts.pop_front() {
        if below && part == b".." {
            return Err(Errno::EXDEV);
        }
        let last = parts.is_empty();
        let (seen, stat) = match look(&at, &part) {
            // To be made, perhaps.
            Err(Errno::ENOENT) if last => return finish(&at, &part, how),
            other => other?,
        };
        if how.resolve.contains(ResolveFlag::RESOLVE_NO_XDEV) && stat.st_dev != device {
            return Err(Errno::EXDEV);
        }
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
            if last {
                return finish(&at, &part, how);
            }
            at = seen;
            continue;
        }
        if last && (how.flags.contains(OFlag::O_NOFOLLOW) || how.flags.contains(OFlag::O_EXCL)) {
            return finish(&at, &part, how);
        }
        links += 1;
        if links > LINKS_MAX || !may_follow(&seen, how.resolve)? {
            return Err(Errno::ELOOP);
        }
        let target = readlinkat(&seen, "")?.into_vec();
        if target.starts_with(b"/") {
            at = at_start(&dir, &target)?;
        }
        let more = split(&target);
        for part in more.into_iter().rev() {
            parts.push_front(part);
        }
    }
    // Only slashes, or a link to the root.
    finish(&at, b".", how)
}

/// Where a path begins.
fn at_start(dir: impl AsFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let from: &[u8] = if path.starts_with(b"/") { b"/" } else { b"." };
    openat(dir, OsStr::from_bytes(from), flags, Mode::empty())
}

/// The parts of a path. One that ends in a slash must be a directory.
fn split(path: &[u8]) -> VecDeque<Vec<u8>> {
    let mut parts: VecDeque<_> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
    if path.ends_with(b"/") {
        parts.push_back(b".".to_vec());
    }
    parts
}

/// What is there, not followed.
fn look(at: &OwnedFd, part: &[u8]) -> nix::Result<(OwnedFd, FileStat)> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let seen = openat(at, OsStr::from_bytes(part), flags, Mode::empty())?;
    let stat = fstat(&seen)?;
    Ok((seen, stat))
}

fn may_follow(link: &OwnedFd, resolve: ResolveFlag) -> nix::Result<bool> {
    if resolve.contains(ResolveFlag::RESOLVE_NO_SYMLINKS) {
        return Ok(false);
    }
    let magic = resolve.contains(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(!magic || fstatfs(link)?.filesystem_type() != PROC_SUPER_MAGIC)
}

/// The last part: it was no link a moment ago, and is not followed if it is one now.
fn finish(at: &OwnedFd, part: &[u8], how: How) -> nix::Result<OwnedFd> {
    let flags = how.flags | OFlag::O_NOFOLLOW;
    let fd = openat(at, OsStr::from_bytes(part), flags, how.mode)?;
    // With O_PATH a link is opened rather than refused.
    if how.flags.contains(OFlag::O_PATH) && !how.flags.contains(OFlag::O_NOFOLLOW) {
        let mode = SFlag::from_bits_truncate(fstat(&fd)?.st_mode);
        if mode & SFlag::S_IFMT == SFlag::S_IFLNK {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
        path::{Path, PathBuf},
        sync::atomic::AtomicU32,
    };

    use nix::fcntl::AT_FDCWD;

    use super::*;

    const BELOW: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
        .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
        .union(ResolveFlag::RESOLVE_NO_MAGICLINKS)
        .union(ResolveFlag::RESOLVE_NO_XDEV);
    const PLAIN: ResolveFlag = ResolveFlag::RESOLVE_NO_MAGICLINKS;

    fn opened(fd: nix::Result<OwnedFd>) -> Result<u64, Errno> {
        fd.map(|fd| fstat(&fd).expect("it is open").st_ino)
    }

    /// A directory that goes with its test.
    struct Dir(PathBuf);

    impl Dir {
        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tree() -> Dir {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("berth-openat-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let dir = Dir(std::env::temp_dir().join(name));
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/b")).expect("directories");
        fs::write(at("a/file"), "x").expect("a file");
        for (target, link) in [
            ("file", "a/link"),
            ("../a/b", "a/b/up"),
            ("a/link", "two"),
            ("nowhere", "dangling"),
            ("loop", "loop"),
            ("a", "dir"),
            ("/", "root"),
            ("/proc/self/root/", "magic"),
        ] {
            symlink(target, at(link)).expect("a link");
        }
        symlink(at("a/file"), at("absolute")).expect("a link");
        dir
    }

    /// The kernel is asked the same. Red for each of the checks in `walk` and `finish` that is taken out.
    #[test]
    fn by_hand_it_is_as_by_the_kernel() {
        let dir = tree();
        let root = openat(AT_FDCWD, dir.path(), OFlag::O_PATH, Mode::empty()).expect("the directory");
        let paths = [
            "a",
            "a/",
            "a/b",
            "a/b/",
            "a//b",
            "./a/./b",
            "a/file",
            "a/file/",
            "a/file/x",
            "a/link",
            "a/link/",
            "a/b/up",
            "a/b/up/file",
            "a/b/up/b/up",
            "two",
            "dir",
            "dir/",
            "dir/file",
            "dir/b/up/../file",
            "dangling",
            "loop",
            "loop/x",
            "root",
            "root/",
            "absolute",
            "none",
            "none/x",
            "none/",
            ".",
            "/",
            "//",
            "",
            "/proc",
            "/usr/bin",
            "magic/usr",
            "/proc/self/root/usr",
        ];
        let read = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let all =
            [read, OFlag::O_PATH, read | OFlag::O_NOFOLLOW, OFlag::O_PATH | OFlag::O_NOFOLLOW, directory];
        for resolve in [PLAIN, BELOW] {
            for flags in all {
                for path in paths {
                    let how = How::new(flags, resolve);
                    let (kernels, ours) = (openat2(&root, path, how), walk(&root, path.as_bytes(), how));
                    assert_eq!(opened(ours), opened(kernels), "{path:?} {flags:?} {resolve:?}");
                }
            }
        }
    }

    #[test]
    fn by_hand_nothing_leads_out() {
        let dir = tree();
        let root =
            openat(AT_FDCWD, &dir.path().join("a"), OFlag::O_PATH, Mode::empty()).expect("the directory");
        for path in ["..", "b/..", "b/../../two", "/etc/passwd", "b/up/.."] {
            let ours = walk(&root, path.as_bytes(), How::new(OFlag::O_PATH, BELOW));
            assert!(matches!(ours, Err(Errno::EXDEV | Errno::ELOOP)), "{path}: {ours:?}");
        }
        // Not even a plain link of a procfs is followed.
        let how = How::new(OFlag::O_PATH, PLAIN);
        for path in ["/proc/self/status", "/proc/self/cwd", "/proc/thread-self/root/etc"] {
            assert_eq!(opened(walk(&root, path.as_bytes(), how)), Err(Errno::ELOOP), "{path}");
        }
        assert!(walk(&root, b"/proc/1/status", how).is_ok(), "without a link it is no link");
    }

    #[test]
    fn by_hand_a_file_is_made_once() {
        let dir = tree();
        let root = openat(AT_FDCWD, dir.path(), OFlag::O_PATH, Mode::empty()).expect("the directory");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let how = How::new(flags, PLAIN).mode(Mode::from_bits_truncate(0o640));
        assert!(walk(&root, b"a/new", how).is_ok());
        assert_eq!(
            fs::metadata(dir.path().join("a/new")).expect("it is there").mode() & 0o777 & !0o27,
            0o640 & !0o27
        );
        for there in ["a/new", "dangling", "a/link"] {
            assert_eq!(opened(walk(&root, there.as_bytes(), how)), Err(Errno::EEXIST), "{there}");
        }
        assert!(!dir.path().join("nowhere").exists(), "nothing is made through a link");
    }
}
