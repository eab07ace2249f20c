//! Secrets that tasks are given as files: in a file system in memory that is the agent's, so that tasks read them and
//! nobody else writes them. A file is there as long as a task runs that was given it; a task that is given a newer value
//! replaces it for all of them, at once and as a whole.
//!
//! Nothing of a secret is ever in a log, in a spool or in an archive: those are made of other directories.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tracing::warn;

use crate::tasks::lock;

/// The directory, and how many running tasks hold each file in it.
pub struct SecretFiles {
    dir: PathBuf,
    held: Mutex<HashMap<String, usize>>,
}

/// A task's part of them. They go with the last who holds them.
pub struct Held {
    files: Arc<SecretFiles>,
    names: Vec<String>,
}

impl SecretFiles {
    /// Removes what an earlier process left there.
    pub fn new(dir: impl Into<PathBuf>) -> Arc<Self> {
        let dir = dir.into();
        if usable(&dir).is_ok() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
        Arc::new(Self { dir, held: Mutex::default() })
    }

    /// Puts them where tasks find them. They are small and in memory: nothing waits for a disk here.
    pub fn put(self: &Arc<Self>, files: &BTreeMap<String, Bytes>) -> io::Result<Held> {
        let mut put = Held { files: self.clone(), names: Vec::new() };
        if files.is_empty() {
            return Ok(put);
        }
        usable(&self.dir)?;
        for (name, value) in files {
            let mut held = lock(&self.held);
            self.write(name, value)?;
            *held.entry(name.clone()).or_default() += 1;
            drop(held);
            put.names.push(name.clone());
        }
        Ok(put)
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        // No secret's name begins with a dot.
        let new = self.dir.join(format!(".{name}"));
        let written = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&new);
        let written = written.and_then(|mut file| file.write_all(value));
        let result = written.and_then(|()| fs::rename(&new, self.dir.join(name)));
        if result.is_err() {
            let _ = fs::remove_file(&new);
        }
        result
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = lock(&self.files.held);
        for name in &self.names {
            let Some(count) = held.get_mut(name) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            held.remove(name);
            if let Err(error) = fs::remove_file(self.files.dir.join(name)) {
                warn!(name, %error, "a secret could not be removed");
            }
        }
    }
}

/// In memory, and ours. Anywhere else a secret would be on a disk, or somebody else's to change.
fn usable(dir: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(dir)?;
    let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0;
    if ours && statfs(dir)?.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    Err(io::Error::other("it is no directory in memory that is the agent's alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> BTreeMap<String, Bytes> {
        [(name.to_owned(), Bytes::copy_from_slice(value.as_bytes()))].into()
    }

    /// A directory of this test's own, with this mode.
    struct Dir(PathBuf);

    impl Dir {
        fn below(place: &str, mode: u32) -> Self {
            let dir = Path::new(place).join(format!("berth-secrets-{}", berth_proto::TaskId::new()));
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            Self(dir)
        }

        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn in_memory() -> Dir {
        Dir::below("/dev/shm", 0o755)
    }

    #[test]
    fn a_file_goes_with_the_last_who_holds_it() {
        let dir = in_memory();
        let files = SecretFiles::new(dir.path());
        let path = dir.path().join("a");
        let first = files.put(&one("a", "old")).unwrap();
        let second = files.put(&one("a", "new")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o444);
        drop(second);
        assert!(path.exists());
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_earlier_process_left_is_removed() {
        let dir = in_memory();
        fs::write(dir.path().join("a"), "x").unwrap();
        SecretFiles::new(dir.path());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn nothing_is_written_to_a_disk_or_beside_others() {
        let on_disk = Dir::below(env!("CARGO_MANIFEST_DIR"), 0o755);
        let open = Dir::below("/dev/shm", 0o777);
        for dir in [on_disk.path(), open.path(), Path::new("/nowhere/at/all")] {
            assert!(SecretFiles::new(dir).put(&one("a", "x")).is_err(), "{dir:?}");
            assert!(!dir.join("a").exists());
            // Who is given none needs no such directory.
            assert!(SecretFiles::new(dir).put(&BTreeMap::new()).is_ok());
        }
    }
}
