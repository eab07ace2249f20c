//! Writing a file: into a temporary one beside it, which replaces it in one step when
//! the stream has ended well. A stream that breaks removes the temporary file, and
//! leaves what was there as it was.
//!
//! No fsync: a session's files are as durable as its sandbox; checkpoints sync.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_proto::{Error, v1};
use bytes::Bytes;
use nix::{
    fcntl::{OFlag, ResolveFlag, renameat},
    sys::stat::{Mode, fchmod, fstat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{Files, file_error, path, path::Place, read::must_be_file, tree};
use crate::openat::{How, openat2};

/// Mode of a new file, unless the caller says otherwise.
const NEW_FILE: u32 = 0o644;

/// A file (or link) that is not in its place yet. It goes with this, unless it was put there: wherever that happens. A
/// caller may go away while it is being made, when it was made and nobody has heard of it, or later.
pub(super) struct Temporary {
    files: Arc<Files>,
    place: Arc<Place>,
    name: OsString,
    kept: AtomicBool,
}

impl Temporary {
    /// Beside that place. Nothing is made yet.
    pub fn new(files: Arc<Files>, place: Place) -> Self {
        let name = OsString::from(format!(".berth-{}.tmp", berth_proto::TaskId::new()));
        Self { files, place: Arc::new(place), name, kept: AtomicBool::new(false) }
    }

    /// With an empty file that only its owner may read.
    pub fn create(files: Arc<Files>, place: Place) -> io::Result<(Self, File)> {
        let temporary = Self::new(files, place);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let how = How::new(flags, ResolveFlag::RESOLVE_NO_MAGICLINKS).mode(Mode::from_bits_truncate(0o600));
        let (dir, name) = temporary.at();
        let file = File::from(path::retried(|| openat2(dir, name, how))?);
        Ok((temporary, file))
    }

    /// Its directory, and its name there.
    pub fn at(&self) -> (&OwnedFd, &OsStr) {
        (&self.place.dir, &self.name)
    }

    /// Puts it in its place, over what is there.
    pub fn put(&self) -> nix::Result<()> {
        renameat(&self.place.dir, &*self.name, &self.place.dir, &*self.place.name)?;
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        let (place, name) = (self.place.clone(), self.name.clone());
        let remove = move || {
            let _ = unlinkat(&place.dir, &*name, UnlinkatFlags::NoRemoveDir);
        };
        // Only a file thread may unlink it; elsewhere nobody waits for that.
        if super::on_file_thread() {
            remove();
        } else if tokio::runtime::Handle::try_current().is_ok() {
            let files = self.files.clone();
            berth_proto::spawn::spawn("remove a broken upload", async move {
                let run = move |_: &super::Gone| {
                    remove();
                    Ok(())
                };
                let _ = files.run(run).await;
            });
        }
    }
}

/// A file that is being written.
pub struct Writing {
    files: Arc<Files>,
    file: Arc<File>,
    temporary: Arc<Temporary>,
    mode: u32,
    shown: String,
    written: u64,
}

/// What a write was asked for.
pub struct Target {
    pub absolute: PathBuf,
    pub shown: String,
    pub mode: Option<u32>,
    pub make_parents: bool,
}

/// Opens a temporary file where the path leads.
pub async fn begin(files: &Arc<Files>, target: Target) -> Result<Writing, Error> {
    let shown = target.shown.clone();
    let owner = files.clone();
    let (file, temporary, mode) = files.run(move |_| open(target, owner)).await?;
    Ok(Writing {
        files: files.clone(),
        file: Arc::new(file),
        temporary: Arc::new(temporary),
        mode,
        shown,
        written: 0,
    })
}

fn open(target: Target, files: Arc<Files>) -> Result<(File, Temporary, u32), Error> {
    let failed = |error: io::Error| file_error(&target.shown, error);
    if target.make_parents {
        let (parent, _) = path::split(&target.absolute).map_err(failed)?;
        tree::make_parents(&parent, &target.shown)?;
    }
    let place = Place::resolved(&target.absolute).map_err(failed)?;
    let mode = match place.stat() {
        Ok(stat) => {
            must_be_file(&target.shown, &stat)?;
            target.mode.unwrap_or(stat.st_mode & 0o7777)
        }
        Err(nix::errno::Errno::ENOENT) => target.mode.unwrap_or(NEW_FILE),
        Err(errno) => return Err(failed(errno.into())),
    };
    let (temporary, file) = Temporary::create(files, place).map_err(failed)?;
    Ok((file, temporary, mode))
}

impl Writing {
    /// Adds to the end.
    pub async fn append(&mut self, data: Bytes) -> Result<(), Error> {
        self.written = self.written.saturating_add(data.len() as u64);
        if self.written > self.files.largest() {
            return Err(file_error(&self.shown, io::Error::from_raw_os_error(libc::EFBIG)));
        }
        let file = self.file.clone();
        let result = self.files.run(move |_| Ok((&*file).write_all(&data))).await?;
        result.map_err(|error| file_error(&self.shown, error))
    }

    /// Puts it in its place.
    pub async fn finish(self) -> Result<v1::FileInfo, Error> {
        let Self { files, file, temporary, mode, shown, .. } = self;
        files
            .run(move |_| {
                let run = || -> nix::Result<v1::FileInfo> {
                    fchmod(&*file, path::bits(mode))?;
                    temporary.put()?;
                    Ok(path::info(OsStr::new(&shown), &fstat(&*file)?, None))
                };
                run().map_err(|errno| file_error(&shown, errno))
            })
            .await
    }
}
