//! A directory for what a target writes: one a process, emptied before each input, gone at the end of a test. In memory
//! where the machine has `/dev/shm`.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// The directory.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self(tempfile::Builder::new().prefix("berth-fuzz-").tempdir_in(at).expect("a directory can be made"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A directory in it with nothing in it.
    pub fn empty(&self, name: &str) -> PathBuf {
        let dir = self.path().join(name);
        clear(&dir).expect("it can be emptied");
        fs::create_dir(&dir).expect("it can be made");
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let names = fs::read_dir(self.path()).into_iter().flatten().flatten();
        names.for_each(|entry| drop(clear(&entry.path())));
    }
}

/// Removes a directory and all in it, also where an archive's modes took the rights to do so.
fn clear(at: &Path) -> io::Result<()> {
    match fs::symlink_metadata(at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => return fs::remove_file(at),
        Ok(_) => {}
    }
    fs::set_permissions(at, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(at)? {
        clear(&entry?.path())?;
    }
    fs::remove_dir(at)
}
