//! Loop devices: a file as a disk that can be mounted.
//!
//! A device reads and writes its file directly: what sessions write is not cached twice, and the dirty pages are those of
//! who wrote them. It clears itself with its last user: who attached it has it open until it is mounted, then the mount
//! has it. In a container the device files are not there, and are made: for that it needs MKNOD, and an engine that lets it
//! use them (`device_cgroup_rules: ["b 7:* rwm"]`). It takes no other capability.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::sandbox::native::sys;

/// Another process may take the free device that was named to us.
const ATTACH_TRIES: u32 = 64;
/// Of loop devices, as block devices (the kernel's `Documentation/admin-guide/devices.txt`).
const MAJOR: u64 = 7;

/// A device with a file behind it, as long as this or a mount of it is there.
#[derive(Debug)]
pub struct Attached {
    /// Keeps it.
    _device: File,
    path: PathBuf,
}

impl Attached {
    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A loop device for the file. It is cleared when nothing has it open any more.
pub fn attach(file: &File) -> io::Result<Attached> {
    let control =
        open(Path::new("/dev/loop-control")).map_err(|error| named("no loop devices here", error))?;
    for _ in 0..ATTACH_TRIES {
        let number = sys::loop_free(control.as_fd()).map_err(|error| named("no free loop device", error))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_block(&path, number)
            .map_err(|error| named(&format!("{} can't be opened", path.display()), error))?;
        match sys::loop_attach(device.as_fd(), file.as_fd()) {
            Ok(()) => return Ok(Attached { _device: device, path }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(named("a loop device can't be set up (needs Linux 5.8)", error)),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "every free loop device was taken by somebody else"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The same, made where it is not there: the /dev of a container is its own.
fn open_block(path: &Path, number: u32) -> io::Result<File> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match mknod(path, SFlag::S_IFBLK, mode, makedev(MAJOR, number.into())) {
        Err(error) if error != nix::errno::Errno::EEXIST => Err(error.into()),
        _ => open(path),
    }
}

/// Where the kernel says which file is behind each loop device, of those that have one below `dir`.
pub fn of_files_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = fs::read_dir("/sys/block")?.flatten().map(|entry| entry.file_name());
    let files = names.filter_map(|name| Some(behind(name.to_str().filter(|name| name.starts_with("loop"))?)));
    Ok(files.filter(|file| is_below(file, dir)).collect())
}

/// Whether the file behind a device (one of the paths from here) is below `dir`, or was.
pub fn is_below(behind: &Path, dir: &Path) -> bool {
    fs::read_to_string(behind).is_ok_and(|file| Path::new(&file).starts_with(dir))
}

fn behind(name: &str) -> PathBuf {
    Path::new("/sys/block").join(name).join("loop/backing_file")
}

pub fn named(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
