//! One stream: which directories it watches, and what of the kernel's news it tells. Runs on the watch thread only.
//!
//! No directory stays open, or the kernel would not say that one is gone. Each is opened again below the root, through no
//! link, and the root by its path: what that names now must be what it named at first.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

use berth_proto::{Error, Reason, v1};
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::{
        inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor},
        stat::{fstat, fstatat},
    },
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    outbox::{End, Outbox},
    thread::Watches,
    told,
    tree::{Confused, Tree},
};
use crate::files::{export, file_error, path, walk};

/// Directories that one stream watches.
const DIRECTORIES: usize = 4096;

/// What to watch.
pub struct Wanted {
    pub absolute: PathBuf,
    pub shown: String,
    pub recursive: bool,
    pub include_entry: bool,
}

/// See the module.
pub struct Stream {
    wanted: Wanted,
    /// Device and inode of the root.
    identity: Option<(u64, u64)>,
    tree: Tree<WatchDescriptor>,
    /// `None`: it is over.
    out: Option<Outbox>,
    _place: OwnedSemaphorePermit,
}

/// Why a stream can't go on as it is.
#[derive(Debug)]
pub enum Trouble {
    /// The path names something else, or nothing.
    Gone,
    /// What was told does not fit together: it must look anew.
    Confused,
}

impl From<Confused> for Trouble {
    fn from(_: Confused) -> Self {
        Self::Confused
    }
}

/// Where a directory is taken up.
struct Found {
    parent: Option<WatchDescriptor>,
    name: OsString,
}

impl Stream {
    pub fn new(wanted: Wanted, out: Outbox, place: OwnedSemaphorePermit) -> Self {
        Self { wanted, identity: None, tree: Tree::default(), out: Some(out), _place: place }
    }

    pub fn is_over(&self) -> bool {
        self.out.as_ref().is_none_or(Outbox::is_closed)
    }

    pub fn end(&mut self, why: End) {
        if let Some(out) = self.out.take() {
            out.end(why);
        }
    }

    /// Gives all its watches back.
    pub fn clear(&mut self, watches: &mut Watches) {
        for dir in self.tree.clear() {
            watches.unused(dir);
        }
    }

    /// Watches all that there is. What does not fit is refused here, and told later.
    pub fn begin(&mut self, watches: &mut Watches) -> Result<(), Error> {
        let shown = self.wanted.shown.clone();
        let failed = |error: io::Error| file_error(&shown, error);
        let root = self.open_root().map_err(failed)?;
        path::refuse_proc(&root).map_err(failed)?;
        // Its right to be read is asked now, for the words of a refusal.
        path::open_at(&root, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?;
        let stat = fstat(&root).map_err(|errno| failed(errno.into()))?;
        self.identity = Some((stat.st_dev, stat.st_ino));
        drop(root);
        let full = match self.take_up(watches, Found { parent: None, name: OsString::new() }, false) {
            Ok(full) => full,
            Err(Trouble::Gone) => return Err(failed(Errno::ENOENT.into())),
            Err(Trouble::Confused) => return Err(failed(Errno::EAGAIN.into())),
        };
        if full {
            let text = format!(
                "{shown}: there are more directories below than can be watched ({DIRECTORIES} in one stream)"
            );
            return Err(Error::exhausted(Reason::TooManyWatches, text));
        }
        Ok(())
    }

    /// The same once more, after something was lost. That is told when all watches stand: whoever lists then must miss
    /// nothing from there on.
    pub fn anew(&mut self, watches: &mut Watches) -> Result<(), Trouble> {
        self.clear(watches);
        let full = self.take_up(watches, Found { parent: None, name: OsString::new() }, false)?;
        self.lose(full);
        Ok(())
    }

    fn lose(&self, unwatched: bool) {
        if let Some(out) = &self.out {
            out.lose(unwatched);
        }
    }

    /// Whether the path names what is watched.
    pub fn look(&self) -> Result<(), Trouble> {
        self.open_known().map(drop)
    }

    fn open_root(&self) -> io::Result<OwnedFd> {
        path::open(&self.wanted.absolute, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn open_known(&self) -> Result<OwnedFd, Trouble> {
        let root = self.open_root().map_err(|_| Trouble::Gone)?;
        let now = fstat(&root).map_err(|_| Trouble::Gone)?;
        if self.identity == Some((now.st_dev, now.st_ino)) { Ok(root) } else { Err(Trouble::Gone) }
    }

    /// What the kernel says. `other`: where what it says is gone came up again.
    pub fn tell(
        &mut self,
        watches: &mut Watches,
        event: &InotifyEvent,
        other: Option<&InotifyEvent>,
    ) -> Result<(), Trouble> {
        let here = self.tree.contains(event.wd);
        let there = other.filter(|other| self.tree.contains(other.wd));
        let mask = event.mask;
        if told::is_upload(event) {
            // The agent's own, until it takes the place of the file that it is for.
            let Some(there) = there else { return Ok(()) };
            self.created(watches, there)?;
            self.change(v1::ChangeKind::Written, there, None);
            return Ok(());
        }
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            return match (here, there) {
                (true, there) => self.renamed(watches, event, there),
                (false, Some(there)) => self.created(watches, there),
                (false, None) => Ok(()),
            };
        }
        if !here {
            return Ok(());
        }
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT;
        if mask.intersects(itself | AddWatchFlags::IN_IGNORED) {
            if self.tree.is_root(event.wd) {
                return Err(Trouble::Gone);
            }
            // Of all others the directory above says it, with the name.
            if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.forget(watches, event.wd);
            }
        } else if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            return self.created(watches, event);
        } else if mask.contains(AddWatchFlags::IN_DELETE) {
            self.change(v1::ChangeKind::Removed, event, None);
            if let Some(dir) = self.child(event) {
                self.forget(watches, dir);
            }
        } else if mask.contains(AddWatchFlags::IN_MODIFY) {
            self.change(v1::ChangeKind::Written, event, None);
        } else if mask.contains(AddWatchFlags::IN_ATTRIB)
            && (event.name.is_some() || self.tree.is_root(event.wd))
        {
            self.change(v1::ChangeKind::Chmod, event, None);
        }
        Ok(())
    }

    /// The watched directory that an event is about.
    fn child(&self, event: &InotifyEvent) -> Option<WatchDescriptor> {
        if !event.mask.contains(AddWatchFlags::IN_ISDIR) {
            return None;
        }
        self.tree.child(event.wd, event.name.as_deref()?)
    }

    fn forget(&mut self, watches: &mut Watches, dir: WatchDescriptor) {
        for gone in self.tree.take(dir) {
            watches.unused(gone);
        }
    }

    fn created(&mut self, watches: &mut Watches, event: &InotifyEvent) -> Result<(), Trouble> {
        // Found already with the directory that it is in.
        if self.child(event).is_some() && event.mask.contains(AddWatchFlags::IN_CREATE) {
            return Ok(());
        }
        self.change(v1::ChangeKind::Created, event, None);
        self.follow(watches, event)
    }

    fn renamed(
        &mut self,
        watches: &mut Watches,
        from: &InotifyEvent,
        to: Option<&InotifyEvent>,
    ) -> Result<(), Trouble> {
        let known = self.child(from);
        self.change(v1::ChangeKind::Renamed, from, to);
        match (known, to) {
            (Some(dir), Some(to)) => {
                self.tree.put(dir, to.wd, to.name.as_deref().unwrap_or_default())?;
                Ok(())
            }
            (Some(dir), None) => {
                self.forget(watches, dir);
                Ok(())
            }
            // What is in it may not have been seen under its old name.
            (None, Some(to)) => self.follow(watches, to),
            (None, None) => Ok(()),
        }
    }

    /// Takes up a directory that has appeared, and tells what is in it.
    fn follow(&mut self, watches: &mut Watches, event: &InotifyEvent) -> Result<(), Trouble> {
        let Some(name) = event.name.as_ref().filter(|_| event.mask.contains(AddWatchFlags::IN_ISDIR)) else {
            return Ok(());
        };
        if !self.wanted.recursive {
            return Ok(());
        }
        let found = Found { parent: Some(event.wd), name: name.clone() };
        if self.take_up(watches, found, true)? {
            self.lose(true);
        }
        Ok(())
    }

    /// Watches a directory and, when it is recursive, all below it. What is found there is told, if it shall be: it may
    /// have come before the watch did. True: not all could be watched.
    fn take_up(&mut self, watches: &mut Watches, first: Found, tell: bool) -> Result<bool, Trouble> {
        let root = self.open_known()?;
        let (mut next, mut full) = (vec![first], false);
        while let Some(Found { parent, name }) = next.pop() {
            if self.is_over() {
                return Ok(full);
            }
            if self.tree.len() >= DIRECTORIES || !watches.has_room() {
                return Ok(true);
            }
            let at = parent.map(|parent| self.tree.path(parent, &name)).unwrap_or_default();
            let dir = match walk::open_below(&root, &at, walk::BELOW).and_then(|dir| {
                path::refuse_proc(&dir)?;
                let readable = path::open_at(&dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                if self.identity.is_none_or(|(device, _)| Ok(device) != fstat(&readable).map(|s| s.st_dev)) {
                    return Err(Errno::EXDEV.into());
                }
                Ok((watches.add(&readable)?, readable))
            }) {
                Ok(dir) => dir,
                Err(error) => {
                    full |= !told::is_closed(&error);
                    continue;
                }
            };
            let (watch, dir) = dir;
            let is_new = match parent {
                Some(_) if self.tree.is_root(watch) => return Err(Trouble::Confused),
                Some(parent) => self.tree.put(watch, parent, &name),
                None => {
                    self.tree.plant(watch);
                    Ok(true)
                }
            };
            match is_new {
                Ok(true) => watches.used(watch),
                Ok(false) => continue,
                Err(confused) => {
                    // Nobody has it, unless another stream does.
                    watches.used(watch);
                    watches.unused(watch);
                    return Err(confused.into());
                }
            }
            if self.wanted.recursive || tell {
                full |= self.look_into(watch, dir, tell, &mut next);
            }
        }
        Ok(full)
    }

    /// Reads a directory for those in it, and tells what there is. True: there are too many, or it can't be read.
    fn look_into(&mut self, watch: WatchDescriptor, dir: OwnedFd, tell: bool, next: &mut Vec<Found>) -> bool {
        let Ok(mut dir) = Dir::from_fd(dir) else { return true };
        let (mut names, mut full) = (Vec::new(), false);
        for entry in dir.iter() {
            let Ok(entry) = entry else { return true };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || export::is_upload(name.as_bytes()) {
                continue;
            }
            let is_dir = entry.file_type().map(|kind| kind == Type::Directory);
            let behind = self.out.as_ref().is_none_or(Outbox::is_behind);
            // Most are neither told nor looked at.
            if is_dir != Some(false) && names.len() + next.len() < DIRECTORIES {
                names.push((name.to_owned(), is_dir));
            } else if is_dir != Some(false) {
                full = true;
            }
            if tell && !behind && is_dir == Some(false) {
                self.found(watch, name, false);
            }
        }
        for (name, is_dir) in names {
            let is_dir = is_dir.unwrap_or_else(|| {
                let stat = fstatat(&dir, &*name, AtFlags::AT_SYMLINK_NOFOLLOW);
                stat.is_ok_and(|stat| path::kind(&stat) == v1::FileType::Directory)
            });
            if tell {
                self.found(watch, &name, is_dir);
            }
            if is_dir && self.wanted.recursive {
                next.push(Found { parent: Some(watch), name });
            }
        }
        full
    }

    fn found(&mut self, dir: WatchDescriptor, name: &OsStr, directory: bool) {
        let path = self.tree.path(dir, name);
        self.send(v1::ChangeKind::Created, path, None, directory);
    }

    fn change(&mut self, kind: v1::ChangeKind, event: &InotifyEvent, to: Option<&InotifyEvent>) {
        let of = |event: &InotifyEvent| self.tree.path(event.wd, event.name.as_deref().unwrap_or_default());
        let directory = event.mask.contains(AddWatchFlags::IN_ISDIR);
        let (path, new) = (of(event), to.map(of));
        self.send(kind, path, new, directory);
    }

    fn send(&mut self, kind: v1::ChangeKind, path: Vec<u8>, new: Option<Vec<u8>>, directory: bool) {
        if self.out.as_ref().is_none_or(Outbox::is_behind) {
            return;
        }
        let entry = match kind {
            v1::ChangeKind::Removed => None,
            v1::ChangeKind::Renamed => new.as_ref().and_then(|new| self.entry(new)),
            _ => self.entry(&path),
        };
        let change = told::change(kind, &path, new.as_deref(), directory, entry);
        if let Some(out) = &mut self.out {
            out.send(change);
        }
    }

    /// What is there now.
    fn entry(&self, at: &[u8]) -> Option<v1::FileInfo> {
        if !self.wanted.include_entry {
            return None;
        }
        let root = self.open_known().ok()?;
        let cut = at.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = cut.map_or((&b""[..], at), |cut| (&at[..cut], &at[cut + 1..]));
        let dir = walk::open_below(&root, dir, walk::BELOW).ok()?;
        let name = OsStr::from_bytes(if name.is_empty() { b"." } else { name });
        let stat = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let link = path::kind(&stat) == v1::FileType::Symlink;
        let target = if link { readlinkat(&dir, name).ok() } else { None };
        Some(path::info(OsStr::from_bytes(at), &stat, target))
    }
}
