//! Listing, in the order of paths' bytes, in pages that go on where the last one ended
//! whatever was made or removed in between: a page token is the last path told.
//!
//! The order, and what bounds the memory: [`Walk`].

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::Path};

use berth_proto::{Error, convert::bad_page_token, v1};
use nix::fcntl::OFlag;
use prost::Message;

use super::{
    Gone, file_error, path,
    walk::{LONGEST, Walk},
};

/// Bytes of one page: far below the message limit, also when every path and what every link says is long.
const PAGE_BYTES: usize = 1 << 20;

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
    // A directory's path, a slash and a name, of which each byte is two digits.
    if token.len() > 2 * (LONGEST + 256) {
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

/// List, as the service gives it.
pub fn list(absolute: &Path, shown: &str, listing: Listing, gone: &Gone) -> Result<v1::ListResponse, Error> {
    let failed = |error: io::Error| file_error(shown, error);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let root = path::open_strictly(absolute, flags, listing.no_links).map_err(failed)?;
    path::refuse_proc(&root).map_err(failed)?;
    let mut walk = Walk::new(root, listing.depth.max(1));
    walk.begin(listing.after.as_deref().unwrap_or_default())?;
    let (mut entries, mut bytes, mut last) = (Vec::new(), 0, Vec::new());
    while let Some(key) = walk.next(listing.page - entries.len()).map_err(failed)? {
        gone.check()?;
        let Some((full, stat)) = walk.look(&key).map_err(failed)? else { continue };
        let link = path::kind(&stat) == v1::FileType::Symlink;
        let target = if link { walk.link(&key) } else { None };
        let entry = path::info(OsStr::from_bytes(&full), &stat, target);
        bytes += entry.encoded_len();
        if entries.len() == listing.page || (!entries.is_empty() && bytes > PAGE_BYTES) {
            return Ok(v1::ListResponse { entries, next_page_token: token(&last) });
        }
        entries.push(entry);
        last = full;
    }
    Ok(v1::ListResponse { entries, next_page_token: String::new() })
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
