//! An ext4 file system in a file: how a session's files are held to a size.
//!
//! The file is allocated in full (`fallocate`), so a disk that others fill can't fail a write inside: on a sparse image
//! such a write is taken, and lost later. The empty file system in it is not made anew for each session: `mkfs.ext4`
//! costs 3.5 ms, so it runs once for each size, on a sparse file, and what it wrote (some 80 KiB for 1 GiB) is kept in
//! memory and copied. Allocating, copying, attaching and mounting 1 GiB takes 2 ms altogether, which is why nothing is
//! kept ready beside that: ready images would hold disk for sessions that may never come.
//!
//! No journal, since no session outlives its machine's boot; no barriers, for the same reason; no discard, which would
//! give reserved blocks back. The loop device (see [`loops`]) is set to clear itself with its last user, so a crash
//! leaves none.
//!
//! Where the engine mounts it (`volume`), nobody here can write into it afterwards: it gets its directories, with
//! their owner, as it is made.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, chown},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    mount::{MsFlags, mount},
    unistd::{Whence, lseek},
};

use super::{loops, remove_tree};

/// Bytes of a block: sizes are whole numbers of them.
pub const BLOCK: u64 = 4096;
/// One file for so many bytes, as in a session's file systems in memory. 256 bytes each: 3 % of the whole.
const BYTES_PER_FILE: u64 = 8 << 10;
/// Named one by one, so that neither the version of e2fsprogs nor its configuration has a say. None of them needs a journal.
const FEATURES: &str = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,uninit_bg,\
                        dir_nlink,extra_isize";
/// `noinit_itable`: the tables of inodes are unwritten parts of the file, so they are zero already.
pub const OPTIONS: &str = "noinit_itable,nobarrier,nodiscard,errors=remount-ro";
/// Sizes that are remembered, and how large one may be to be.
const REMEMBERED: usize = 16;
const REMEMBERED_MAX: usize = 4 << 20;

/// An empty file system of a certain size: what differs from zeros, by offset.
#[derive(Debug)]
struct Blank {
    size: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

/// The empty file systems made so far; the last used last.
#[derive(Debug, Default)]
pub struct Blanks(Mutex<Vec<Arc<Blank>>>);

impl Blanks {
    /// Makes the file `image`, allocates `size` bytes (whole blocks) for it, writes an empty file system and mounts it on `target`.
    /// On an error there is neither file nor mount.
    pub fn mount(&self, image: &Path, size: u64, target: &Path) -> io::Result<()> {
        let made = (|| {
            let file = reserve(image, size)?;
            for (at, bytes) in &self.of(size, image)?.pieces {
                file.write_all_at(bytes, *at)?;
            }
            mount_file(&file, target)
        })();
        if made.is_err() {
            let _ = fs::remove_file(image);
        }
        made
    }

    /// The empty file system of this size; `beside` is a path next to which it can be made.
    fn of(&self, size: u64, beside: &Path) -> io::Result<Arc<Blank>> {
        let known = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = known.iter().position(|blank| blank.size == size);
            at.map(|at| known.remove(at)).inspect(|blank| known.push(blank.clone()))
        };
        if let Some(blank) = known {
            return Ok(blank);
        }
        let blank = Arc::new(Blank::make(size, &beside.with_extension("blank"))?);
        if blank.pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= REMEMBERED_MAX {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.push(blank.clone());
            if known.len() > REMEMBERED {
                known.remove(0);
            }
        }
        Ok(blank)
    }
}

impl Blank {
    fn make(size: u64, scratch: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(scratch)?;
        let made = file.set_len(size).and_then(|()| mkfs(scratch, &[])).and_then(|()| written(&file, size));
        let _ = fs::remove_file(scratch);
        Ok(Self { size, pieces: made? })
    }
}

/// Makes the file and allocates `size` bytes (whole blocks) for it. On an error it may be there.
pub fn reserve(image: &Path, size: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(image)?;
    allocate(&file, size)?;
    Ok(file)
}

/// Writes a new file system into a reserved image, with these directories (names) of this user and group, 0755. The
/// image is mounted nowhere. Beside it there must be room for one name: `seed`.
pub fn furnish(image: &Path, directories: &[&str], uid: u32, gid: u32) -> io::Result<()> {
    let seed = image.with_file_name("seed");
    let made = (|| {
        fs::DirBuilder::new().mode(0o700).create(&seed)?;
        for name in directories {
            let path = seed.join(name);
            super::make_dir(&path, 0o755)?;
            chown(&path, Some(uid), Some(gid))?;
        }
        mkfs(image, &["-d".as_ref(), seed.as_os_str()])
    })();
    let removed = remove_tree(&seed);
    made.and(removed)
}

fn mkfs(image: &Path, more: &[&OsStr]) -> io::Result<()> {
    let files = BYTES_PER_FILE.to_string();
    let block = BLOCK.to_string();
    let arguments = [
        "-q",
        "-F",
        "-b",
        &block,
        "-I",
        "256",
        "-i",
        &files,
        "-m",
        "0",
        "-O",
        FEATURES,
        "-E",
        "lazy_itable_init=1,nodiscard",
    ];
    // Not every PATH of a service has the second.
    for program in ["mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"] {
        match Command::new(program).args(arguments).args(more).arg(image).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!(
                    "mkfs.ext4 failed ({}): {}",
                    output.status,
                    said.trim()
                )));
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "there is no mkfs.ext4 (the package e2fsprogs)"))
}

/// What of a sparse file is not zero, in pieces of a few blocks.
fn written(file: &File, size: u64) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < size {
        let data = match lseek(file, at as i64, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other? as u64,
        };
        let hole = lseek(file, data as i64, Whence::SeekHole)? as u64;
        let mut next = data / BLOCK * BLOCK;
        while next < hole.min(size) {
            file.read_exact_at(&mut block, next)?;
            if block.iter().any(|byte| *byte != 0) {
                match pieces.last_mut() {
                    Some((start, bytes)) if *start + bytes.len() as u64 == next => {
                        bytes.extend_from_slice(&block)
                    }
                    _ => pieces.push((next, block.clone())),
                }
            }
            next += BLOCK;
        }
        at = next.max(hole);
    }
    Ok(pieces)
}

fn allocate(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    fallocate(file, FallocateFlags::empty(), 0, length).map_err(|errno| {
        let error = io::Error::from(errno);
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the worker's disk has no room to reserve {size} bytes"),
            ),
            Errno::EOPNOTSUPP => io::Error::new(
                io::ErrorKind::Unsupported,
                "the file system there can't reserve space (fallocate)",
            ),
            _ => error,
        }
    })
}

/// Mounts the file system in a file.
fn mount_file(file: &File, target: &Path) -> io::Result<()> {
    let device = loops::attach(file)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    let mounted = mount(Some(device.path()), target, Some("ext4"), flags, Some(OPTIONS));
    // From here on the mount alone holds the device, which clears itself with it; or nothing does.
    drop(device);
    mounted.map_err(|error| loops::named("an ext4 image can't be mounted", error))
}
