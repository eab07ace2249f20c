//! Going over a tree in the order of paths' bytes, through no link.
//!
//! The order: a directory's entries are sorted by name, and what is in a directory `d`
//! sorts as `d/`. So `a`, `a-b`, `a/x`: the order of whole paths, found without holding them.
//!
//! Memory is bounded by how many are wanted at a time and not by the tree: of each directory only the next
//! few names are held, and it is read again when they are used up. Few directories are
//! open at a time; others are opened again from the top. Of the way down there is one path, and it has a longest: a task can
//! make directories in one another for as long as its disk has room.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use berth_proto::{Error, convert::bad_page_token, v1};
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, ResolveFlag, readlinkat},
    sys::stat::{FileStat, fstatat},
};

use super::path;
use crate::openat::{How, openat2};

/// Names held in all levels together. Above it the upper levels forget theirs.
const HELD_MAX: usize = 16 << 10;
/// Levels whose directory stays open.
const OPEN_MAX: usize = 16;
/// Bytes of the path of a directory that is gone into. (A path of more than 4096 no program can name as a whole.)
pub(super) const LONGEST: usize = 64 << 10;
/// Of one openat2 call: below PATH_MAX.
const WALK: usize = 4000;
/// Below a directory, through no link.
pub(super) const BELOW: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

struct Level {
    /// So much of the walk's path is its own: nothing, or up to a slash.
    path: usize,
    dir: Option<OwnedFd>,
    /// Names, and `name/` for what is in a directory.
    keys: VecDeque<Vec<u8>>,
    /// The last key that was taken.
    after: Vec<u8>,
    /// `keys` are all that is left.
    complete: bool,
}

/// What a walk does not go into.
type Pruned = Box<dyn Fn(&[u8]) -> bool + Send>;

/// A walk over what is below a directory.
pub(super) struct Walk {
    root: OwnedFd,
    depth: usize,
    /// Of the last level, below the listed directory.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// Names in all of them.
    held: usize,
    resolve: ResolveFlag,
    pruned: Option<Pruned>,
    /// Directories that could not be gone into.
    pub closed: u64,
}

impl Walk {
    /// Over so many levels.
    pub fn new(root: OwnedFd, depth: usize) -> Self {
        Self {
            root,
            depth,
            path: Vec::new(),
            levels: Vec::new(),
            held: 0,
            resolve: BELOW,
            pruned: None,
            closed: 0,
        }
    }

    /// Not into other mounts, and not into directories of which this says so by their paths.
    pub fn within(self, pruned: impl Fn(&[u8]) -> bool + Send + 'static) -> Self {
        Self { resolve: BELOW | ResolveFlag::RESOLVE_NO_XDEV, pruned: Some(Box::new(pruned)), ..self }
    }

    /// Stands behind `after`, as far as its directories are still there.
    pub fn begin(&mut self, after: &[u8]) -> Result<(), Error> {
        self.push(None);
        let names: Vec<&[u8]> = after.split(|byte| *byte == b'/').collect();
        if names.len() > self.depth {
            return Err(bad_page_token());
        }
        for (i, name) in names.iter().enumerate() {
            let mut key = name.to_vec();
            if i + 1 < names.len() {
                key.push(b'/');
            }
            let level = self.levels.len() - 1;
            self.levels[level].after = key.clone();
            if i + 1 < names.len() && !self.descend(&key) {
                break;
            }
        }
        Ok(())
    }

    /// The next entry's key, in the level that is last then. `left`: how many are wanted.
    pub fn next(&mut self, left: usize) -> io::Result<Option<Vec<u8>>> {
        while !self.levels.is_empty() {
            let at = self.levels.len() - 1;
            if self.levels[at].keys.is_empty() && !self.levels[at].complete {
                self.fill(at, 2 * left + 2)?;
            }
            let level = &mut self.levels[at];
            let Some(key) = level.keys.pop_front() else {
                self.levels.pop();
                self.path.truncate(self.levels.last().map_or(0, |level| level.path));
                continue;
            };
            self.held -= 1;
            level.after.clone_from(&key);
            if key.ends_with(b"/") {
                self.descend(&key);
            } else {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Goes into a directory of the last level. False: it is gone, or closed to us.
    fn descend(&mut self, key: &[u8]) -> bool {
        let mut full = self.whole(key);
        full.pop();
        if self.pruned.as_ref().is_some_and(|pruned| pruned(&full)) {
            return false;
        }
        if full.len() >= LONGEST {
            self.closed += 1;
            return false;
        }
        let Ok(dir) = self.open(&key[..key.len() - 1], OFlag::O_RDONLY | OFlag::O_DIRECTORY) else {
            self.closed += 1;
            return false;
        };
        if path::refuse_proc(&dir).is_err() {
            return false;
        }
        self.path.extend_from_slice(key);
        self.push(Some(dir));
        if let Some(old) = self.levels.len().checked_sub(OPEN_MAX + 1) {
            self.levels[old].dir = None;
        }
        if self.held > HELD_MAX {
            let upper = self.levels.len() - 1;
            for level in &mut self.levels[..upper] {
                level.keys = VecDeque::new();
                level.complete = false;
            }
            self.held = 0;
        }
        true
    }

    /// One level more, at the walk's path.
    fn push(&mut self, dir: Option<OwnedFd>) {
        let path = self.path.len();
        self.levels.push(Level { path, dir, keys: VecDeque::new(), after: Vec::new(), complete: false });
    }

    /// The whole path of a key of the last level.
    fn whole(&self, key: &[u8]) -> Vec<u8> {
        [&self.path, key].concat()
    }

    fn directory(&mut self, at: usize) -> io::Result<&OwnedFd> {
        if self.levels[at].dir.is_none() {
            let path = &self.path[..self.levels[at].path];
            self.levels[at].dir = Some(open_below(&self.root, path, self.resolve)?);
        }
        self.levels[at].dir.as_ref().ok_or_else(|| io::Error::other("no directory"))
    }

    /// Reads a level's directory for the next keys, at most `limit`.
    fn fill(&mut self, at: usize, limit: usize) -> io::Result<()> {
        let (deeper, top) = (self.levels.len() < self.depth, at == 0);
        self.levels[at].complete = true;
        let dir = match self.directory(at).and_then(|dir| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            Ok(Dir::from_fd(path::open_at(dir, ".", flags)?)?)
        }) {
            Ok(dir) => dir,
            // A subdirectory that went away, or is locked, is shown but not looked into.
            Err(_) if !top => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut dir = dir;
        let (mut keys, mut all) = (BTreeSet::new(), true);
        let after = self.levels[at].after.clone();
        let mut add = |key: Vec<u8>| {
            if key > after {
                keys.insert(key);
            }
            if keys.len() > limit {
                keys.pop_last();
                all = false;
            }
        };
        let mut unknown = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            match entry.file_type() {
                Some(Type::Directory) if deeper => add([name, b"/"].concat()),
                None if deeper => unknown.push(name.to_vec()),
                _ => {}
            }
            add(name.to_vec());
        }
        // File systems that do not tell kinds in listings.
        for name in unknown {
            let stat = fstatat(&dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| path::kind(&stat) == v1::FileType::Directory) {
                add([&name[..], b"/"].concat());
            }
        }
        self.held += keys.len();
        self.levels[at].keys = keys.into_iter().collect();
        self.levels[at].complete = all;
        Ok(())
    }

    /// The whole path of a key of the last level, and what is there. `None`: gone since.
    pub fn look(&mut self, key: &[u8]) -> io::Result<Option<(Vec<u8>, FileStat)>> {
        let full = self.whole(key);
        let Ok(dir) = self.directory(self.levels.len() - 1) else { return Ok(None) };
        match fstatat(dir, OsStr::from_bytes(key), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((full, stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What a link says.
    pub fn link(&mut self, key: &[u8]) -> Option<OsString> {
        let dir = self.directory(self.levels.len() - 1).ok()?;
        readlinkat(dir, OsStr::from_bytes(key)).ok()
    }

    /// Opens what has a name in the directory that the walk is in, through no link.
    pub fn open(&mut self, name: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
        let how = How::new(flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, self.resolve);
        let dir = self.directory(self.levels.len() - 1)?;
        Ok(path::retried(|| openat2(dir, OsStr::from_bytes(name), how))?)
    }
}

/// Opens a directory below another by a path of any length, through no link.
pub(super) fn open_below(root: &OwnedFd, relative: &[u8], resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let mut current = root.try_clone()?;
    let mut rest = relative.strip_suffix(b"/").unwrap_or(relative);
    while !rest.is_empty() {
        let cut = if rest.len() <= WALK {
            rest.len()
        } else {
            rest[..WALK].iter().rposition(|byte| *byte == b'/').ok_or(Errno::ENAMETOOLONG)?
        };
        let how = How::new(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, resolve);
        current = path::retried(|| openat2(&current, OsStr::from_bytes(&rest[..cut]), how))?;
        rest = rest.get(cut + 1..).unwrap_or_default();
    }
    Ok(current)
}
