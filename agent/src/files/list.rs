//! Listing, in the order of paths' bytes, in pages that go on where the last one ended
//! whatever was made or removed in between: a page token is the last path told.
//!
//! The order: a directory's entries are sorted by name, and what is in a directory `d`
//! sorts as `d/`. So `a`, `a-b`, `a/x`: the order of whole paths, found without holding them.
//!
//! Memory is bounded by the page and not by the tree: of each directory only the next
//! few names are held, and it is read again when they are used up. Few directories are
//! open at a time; others are opened again from the top.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use berth_proto::{Error, convert::bad_page_token, v1};
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, ResolveFlag, readlinkat},
    sys::stat::fstatat,
};

use super::{Gone, file_error, path};
use crate::openat::{How, openat2};

/// Path bytes of one page: far below the message limit, also when every path is long.
const PAGE_BYTES: usize = 1 << 20;
/// Names held in all levels together. Above it the upper levels forget theirs.
const HELD_MAX: usize = 16 << 10;
/// Levels whose directory stays open.
const OPEN_MAX: usize = 16;
/// Of one openat2 call: below PATH_MAX.
const WALK: usize = 4000;

/// What to list.
pub struct Listing {
    /// At least 1.
    pub depth: usize,
    pub page: usize,
    pub after: Option<Vec<u8>>,
    /// The directory's path may lead through no link.
    pub no_links: bool,
}

/// A page token from the wire.
pub fn cursor(token: &str) -> Result<Option<Vec<u8>>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    // In the one spelling that it is written in: to the standard library `+f` is a number, too.
    if !token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(bad_page_token());
    }
    let bytes: Option<Vec<u8>> =
        (0..token.len()).step_by(2).map(|i| u8::from_str_radix(token.get(i..i + 2)?, 16).ok()).collect();
    let path = bytes.ok_or_else(bad_page_token)?;
    let strange = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
    if path.split(|byte| *byte == b'/').any(strange) { Err(bad_page_token()) } else { Ok(Some(path)) }
}

fn token(path: &[u8]) -> String {
    path.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Level {
    /// Below the listed directory: empty, or with a slash at its end.
    path: Vec<u8>,
    dir: Option<OwnedFd>,
    /// Names, and `name/` for what is in a directory.
    keys: VecDeque<Vec<u8>>,
    /// The last key that was taken.
    after: Vec<u8>,
    /// `keys` are all that is left.
    complete: bool,
}

struct Walk {
    root: OwnedFd,
    depth: usize,
    levels: Vec<Level>,
}

/// List, as the service gives it.
pub fn list(absolute: &Path, shown: &str, listing: Listing, gone: &Gone) -> Result<v1::ListResponse, Error> {
    let failed = |error: io::Error| file_error(shown, error);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let root = path::open_strictly(absolute, flags, listing.no_links).map_err(failed)?;
    path::refuse_proc(&root).map_err(failed)?;
    let mut walk = Walk { root, depth: listing.depth.max(1), levels: Vec::new() };
    walk.begin(listing.after.as_deref().unwrap_or_default())?;
    let (mut entries, mut bytes, mut last) = (Vec::new(), 0, Vec::new());
    while let Some(key) = walk.next(listing.page - entries.len()).map_err(failed)? {
        gone.check()?;
        let Some((full, info)) = walk.look(&key).map_err(failed)? else { continue };
        if entries.len() == listing.page || (bytes > 0 && bytes + full.len() > PAGE_BYTES) {
            return Ok(v1::ListResponse { entries, next_page_token: token(&last) });
        }
        bytes += full.len();
        entries.push(info);
        last = full;
    }
    Ok(v1::ListResponse { entries, next_page_token: String::new() })
}

impl Walk {
    /// Stands behind `after`, as far as its directories are still there.
    fn begin(&mut self, after: &[u8]) -> Result<(), Error> {
        let root =
            Level { path: Vec::new(), dir: None, keys: VecDeque::new(), after: Vec::new(), complete: false };
        self.levels.push(root);
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
    fn next(&mut self, left: usize) -> io::Result<Option<Vec<u8>>> {
        while !self.levels.is_empty() {
            let at = self.levels.len() - 1;
            if self.levels[at].keys.is_empty() && !self.levels[at].complete {
                self.fill(at, 2 * left + 2)?;
            }
            let level = &mut self.levels[at];
            let Some(key) = level.keys.pop_front() else {
                self.levels.pop();
                continue;
            };
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
        let at = self.levels.len() - 1;
        let name = OsStr::from_bytes(&key[..key.len() - 1]);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let Ok(parent) = self.directory(at) else { return false };
        let Ok(dir) = path::open_at(parent, name, flags) else { return false };
        if path::refuse_proc(&dir).is_err() {
            return false;
        }
        let mut full = self.levels[at].path.clone();
        full.extend_from_slice(key);
        self.levels.push(Level {
            path: full,
            dir: Some(dir),
            keys: VecDeque::new(),
            after: Vec::new(),
            complete: false,
        });
        if let Some(old) = self.levels.len().checked_sub(OPEN_MAX + 1) {
            self.levels[old].dir = None;
        }
        let held: usize = self.levels.iter().map(|level| level.keys.len()).sum();
        if held > HELD_MAX {
            let upper = self.levels.len() - 1;
            for level in &mut self.levels[..upper] {
                level.keys = VecDeque::new();
                level.complete = false;
            }
        }
        true
    }

    fn directory(&mut self, at: usize) -> io::Result<&OwnedFd> {
        if self.levels[at].dir.is_none() {
            self.levels[at].dir = Some(open_below(&self.root, &self.levels[at].path)?);
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
        self.levels[at].keys = keys.into_iter().collect();
        self.levels[at].complete = all;
        Ok(())
    }

    /// The whole path of a key of the last level, and what is there. `None`: gone since.
    fn look(&mut self, key: &[u8]) -> io::Result<Option<(Vec<u8>, v1::FileInfo)>> {
        let at = self.levels.len() - 1;
        let mut full = self.levels[at].path.clone();
        full.extend_from_slice(key);
        let Ok(dir) = self.directory(at) else { return Ok(None) };
        let name = OsStr::from_bytes(key);
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let link = path::kind(&stat) == v1::FileType::Symlink;
        let target = if link { readlinkat(dir, name).ok() } else { None };
        let info = path::info(OsStr::from_bytes(&full), &stat, target);
        Ok(Some((full, info)))
    }
}

/// Opens a directory below another by a path of any length, through no link.
pub(super) fn open_below(root: &OwnedFd, relative: &[u8]) -> io::Result<OwnedFd> {
    let mut current = root.try_clone()?;
    let mut rest = relative.strip_suffix(b"/").unwrap_or(relative);
    while !rest.is_empty() {
        let cut = if rest.len() <= WALK {
            rest.len()
        } else {
            rest[..WALK].iter().rposition(|byte| *byte == b'/').ok_or(Errno::ENAMETOOLONG)?
        };
        let how = How::new(
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        current = path::retried(|| openat2(&current, OsStr::from_bytes(&rest[..cut]), how))?;
        rest = rest.get(cut + 1..).unwrap_or_default();
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    struct Temp(PathBuf);

    impl Temp {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("berth-list-{}", berth_proto::TaskId::new()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn page(dir: &Path, depth: usize, page: usize, after: &str) -> (Vec<String>, String) {
        let listing = Listing { depth, page, after: cursor(after).unwrap(), no_links: false };
        let response = list(dir, "x", listing, &Gone::default()).unwrap();
        (response.entries.into_iter().map(|entry| entry.path).collect(), response.next_page_token)
    }

    fn all(dir: &Path, depth: usize, size: usize) -> Vec<String> {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let (entries, next) = page(dir, depth, size, &token);
            assert!(entries.len() <= size && (next.is_empty() || !entries.is_empty()));
            found.extend(entries);
            if next.is_empty() {
                return found;
            }
            token = next;
        }
    }

    #[test]
    fn the_order_is_that_of_whole_paths_and_pages_make_no_difference() {
        let temp = Temp::new();
        let paths =
            ["a/", "a/x", "a/y/", "a/y/z", "a-b", "a.c/", "a.c/q", "b", "c/", "c/d/", "c/d/e/", "c/d/e/f"];
        for path in paths {
            match path.strip_suffix('/') {
                Some(dir) => fs::create_dir_all(temp.0.join(dir)).unwrap(),
                None => fs::write(temp.0.join(path), "").unwrap(),
            }
        }
        let mut expected: Vec<String> = paths.iter().map(|p| p.trim_end_matches('/').to_owned()).collect();
        expected.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for size in [1, 2, 3, 5, 100] {
            assert_eq!(all(&temp.0, 9, size), expected, "pages of {size}");
        }
        assert_eq!(all(&temp.0, 1, 2), ["a", "a-b", "a.c", "b", "c"]);
        assert_eq!(all(&temp.0, 2, 100), ["a", "a-b", "a.c", "a.c/q", "a/x", "a/y", "b", "c", "c/d"]);
    }

    #[test]
    fn a_page_goes_on_where_the_last_ended_whatever_happened() {
        let temp = Temp::new();
        for name in ["a", "b", "c", "d"] {
            fs::create_dir(temp.0.join(name)).unwrap();
            fs::write(temp.0.join(name).join("1"), "").unwrap();
        }
        let (entries, token) = page(&temp.0, 2, 4, "");
        assert_eq!(entries, ["a", "a/1", "b", "b/1"]);
        fs::remove_dir_all(temp.0.join("b")).unwrap();
        fs::write(temp.0.join("a0"), "").unwrap();
        fs::write(temp.0.join("b0"), "").unwrap();
        assert_eq!(page(&temp.0, 2, 100, &token).0, ["b0", "c", "c/1", "d", "d/1"]);
    }

    #[test]
    fn many_entries_in_small_pages() {
        let temp = Temp::new();
        for i in 0..500 {
            fs::write(temp.0.join(format!("{i:04}")), "").unwrap();
        }
        let found = all(&temp.0, 1, 7);
        assert_eq!(found.len(), 500);
        assert!(found.is_sorted());
    }

    #[test]
    fn strange_tokens_are_refused() {
        for bad in ["zz", "2", "2e2e", "2f", "612f2e2e", "6100", "+f", "6F"] {
            assert!(cursor(bad).is_err(), "{bad}");
        }
        assert_eq!(cursor("612f62").unwrap(), Some(b"a/b".to_vec()));
    }
}
