//! Searching files, in steps: each is a job of its own on a file thread, made when the reader wants more. So a reader who
//! is slow holds no thread, one who goes away ends it, and a long search leaves the threads to others in between.
//!
//! What is found below the path is reached through no link and in no other mount. What a search holds is one file, and the
//! names that [`Walk`] holds.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use berth_files::search::{Hit, Next, Search, Text};
use berth_proto::{
    Error,
    v1::{self, FileType, search_event::Event},
};
use nix::{
    fcntl::OFlag,
    sys::stat::{FileStat, fstat},
};
use tokio::time::Instant;

use super::{Gone, export::is_upload, file_error, path, read, walk::Walk};

/// Levels that are gone down.
pub(super) const DEPTH: usize = 256;
/// Names that are read at a time.
pub(super) const NAMES: usize = 1000;
/// A step is over after so long, and with so many matches.
pub(super) const STEP: Duration = Duration::from_millis(100);
const MATCHES: usize = 64;

/// A search under way.
pub struct Searching {
    search: Search,
    tree: Tree,
    /// The file that it is in.
    text: Option<(Vec<u8>, Text)>,
    /// Matches that are wanted yet.
    left: u64,
    until: Instant,
    end: v1::SearchEnd,
}

enum Tree {
    /// One file alone, as it was asked for.
    File(Option<(File, u64)>, String),
    Below(Box<Walk>),
}

/// Begins. On a file thread.
///
/// # Errors
/// For a request that is not to be served, and a path that can't be opened.
pub fn begin(absolute: &Path, shown: &str, wire: &v1::SearchRequest) -> Result<Searching, Error> {
    let search = Search::new(wire)?;
    let failed = |error| file_error(shown, error);
    let (_, stat) = path::look(absolute, true).map_err(failed)?;
    let tree = if path::kind(&stat) == FileType::Directory {
        let root = path::open(absolute, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        Tree::Below(Box::new(below(root, search.exclude().clone()).map_err(failed)?))
    } else {
        let (file, stat) = read::open(absolute, shown, false)?;
        Tree::File(Some((File::from(file), stat.st_size.max(0) as u64)), shown.to_owned())
    };
    let until = Instant::now() + search.time_limit;
    let left = search.most;
    Ok(Searching { search, tree, text: None, left, until, end: v1::SearchEnd::default() })
}

/// A walk over all that is not left out.
pub(super) fn below(root: OwnedFd, exclude: berth_files::search::Exclude) -> io::Result<Walk> {
    path::refuse_proc(&root)?;
    let mut walk = Walk::new(root, DEPTH).within(move |path| exclude.fits(path));
    walk.begin(&[]).map_err(io::Error::other)?;
    Ok(walk)
}

/// What there is to read of a regular file, if it is one and the one that was looked at.
pub(super) fn opened(walk: &mut Walk, key: &[u8], stat: &FileStat) -> Option<File> {
    // Should it be a pipe by now, nobody waits for it.
    let file = File::from(walk.open(key, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?);
    let now = fstat(&file).ok()?;
    ((now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino)).then_some(file)
}

impl Searching {
    /// What is found in a while; with the end, it is over. Nothing: there is more to do.
    pub fn step(&mut self, gone: &Gone) -> Result<Vec<Event>, Error> {
        let stop_at = Instant::now() + STEP;
        let mut found = Vec::new();
        while found.len() < MATCHES && Instant::now() < stop_at {
            gone.check()?;
            let (until, started) = (self.until, Instant::now());
            if started >= until {
                return Ok(self.over(found, v1::SearchLimit::Time));
            }
            let Some((at, text)) = &mut self.text else {
                if !self.next_file()? {
                    return Ok(self.over(found, v1::SearchLimit::Unspecified));
                }
                continue;
            };
            let stop = || gone.is_set() || Instant::now() >= stop_at;
            match text.next(&self.search, &mut self.left, stop) {
                Next::Hit(hit) => found.push(Event::Match(told(at, hit))),
                Next::Stopped => {}
                Next::End if self.left == 0 => return Ok(self.over(found, v1::SearchLimit::Matches)),
                Next::End => self.text = None,
            }
        }
        Ok(found)
    }

    fn over(&mut self, mut found: Vec<Event>, limit: v1::SearchLimit) -> Vec<Event> {
        if let Tree::Below(walk) = &self.tree {
            self.end.files_skipped += walk.closed;
        }
        found.push(Event::End(v1::SearchEnd { limit: limit.into(), ..self.end }));
        found
    }

    /// Takes up the next text, or passes something over. False: there is nothing more.
    fn next_file(&mut self) -> Result<bool, Error> {
        let (at, file, size) = match &mut self.tree {
            Tree::File(file, shown) => {
                let Some((file, size)) = file.take() else { return Ok(false) };
                (shown.clone().into_bytes(), Some(file), size)
            }
            Tree::Below(walk) => {
                let failed = |error| file_error("the directory", error);
                let Some(key) = walk.next(NAMES).map_err(failed)? else { return Ok(false) };
                let Ok(Some((at, stat))) = walk.look(&key) else { return Ok(true) };
                let wanted =
                    path::kind(&stat) == FileType::File && !is_upload(&key) && self.search.wants(&at);
                if !wanted {
                    return Ok(true);
                }
                let size = stat.st_size.max(0) as u64;
                let small = size <= self.search.largest;
                (at, if small { opened(walk, &key, &stat) } else { None }, size)
            }
        };
        match file.and_then(|file| content(&file, size, self.search.largest)).and_then(Text::new) {
            Some(text) => {
                self.end.files_searched += 1;
                self.text = Some((at, text));
            }
            None => self.end.files_skipped += 1,
        }
        Ok(true)
    }
}

/// All of a file. `None`: it is too large, or can't be read.
fn content(file: &File, size: u64, largest: u64) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(size.min(largest) as usize);
    // It may have grown since it was looked at, or be one that never ends.
    file.take(largest + 1).read_to_end(&mut data).ok()?;
    (data.len() as u64 <= largest).then_some(data)
}

fn told(at: &[u8], hit: Hit) -> v1::SearchMatch {
    let path = String::from_utf8_lossy(at).into_owned();
    let lossy = std::str::from_utf8(at).is_err();
    v1::SearchMatch {
        path,
        path_bytes: if lossy { at.to_vec().into() } else { Default::default() },
        line: hit.line,
        text: hit.text,
        before: hit.before,
        after: hit.after,
    }
}
